//! Members of a group over every face, as their clients are: they work, leave, hang and die when
//! they are told to, and try to commit afterwards what is not theirs any more.
//!
//! Each checks what it sees by itself: nothing is skipped between two frames, and a commit of a
//! partition that somebody else was given is refused. What counts as given is what a member was
//! told, with the epoch of the group: the later epoch has the partition.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use rand::RngExt;
use rand::rngs::StdRng;
use reqwest::Client;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::client::{Lines, records_url};
use crate::load::PATIENCE;

/// What the members read, and as which group.
pub(crate) const TOPIC: &str = "flights";
pub(crate) const GROUP: &str = "workers";

/// How long the group waits for a member of which nothing is heard.
pub(crate) const SESSION: Duration = Duration::from_secs(15);

const V2: &str = "application/vnd.kafka.v2+json";
/// How often a member over REST is slow, and how slow at most.
const SLOW: f64 = 0.2;
const SLOW_MAX: Duration = Duration::from_secs(2);
const CREDIT_RECORDS: u64 = 2_000;
const CREDIT_BYTES: u64 = 4 << 20;

/// What a member has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Read, process, commit.
    Work,
    /// Leave as the face has it.
    Leave,
    /// Do nothing any more, with its connection open.
    Hang,
    /// Be gone without a word.
    Die,
    /// Wake up from hanging, or from the dead, and go on as if nothing had happened.
    Wake,
}

/// How a member is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Face {
    WebSocket,
    Events,
    RestV2,
}

/// What all members together know.
#[derive(Debug)]
pub(crate) struct Ledger(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// By partition and offset, how often the record was processed.
    processed: Vec<Vec<u8>>,
    distinct: usize,
    /// By partition, who was told to have it at the latest epoch.
    owners: Vec<(u32, u64)>,
    counts: Counts,
}

/// How much happened.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) repeated: u64,
    pub(crate) committed: u64,
    pub(crate) refused: u64,
    /// Commits of partitions that the member knew, or could have known, to be another's.
    pub(crate) stale_tried: u64,
    /// Members that the server gave up though they worked: a machine that is too slow.
    pub(crate) thrown_out: u64,
}

impl Ledger {
    pub(crate) fn new(partitions: u32) -> Arc<Self> {
        let of = partitions as usize;
        let known =
            Known { processed: vec![Vec::new(); of], owners: vec![(0, 0); of], ..Known::default() };
        Arc::new(Self(Mutex::new(known)))
    }

    /// How many different records were processed.
    pub(crate) fn distinct(&self) -> usize {
        self.0.lock().distinct
    }

    pub(crate) fn counts(&self) -> Counts {
        self.0.lock().counts
    }

    /// How many records of each partition were processed, from the first on without a gap.
    pub(crate) fn ends(&self) -> Vec<usize> {
        let known = self.0.lock();
        let dense = |of: &Vec<u8>| of.iter().take_while(|count| **count > 0).count();
        known.processed.iter().map(dense).collect()
    }

    fn process(&self, partition: u32, offset: u64) {
        let mut known = self.0.lock();
        let at = usize::try_from(offset).unwrap();
        let of = &mut known.processed[partition as usize];
        if of.len() <= at {
            of.resize(at + 1, 0);
        }
        let is_new = of[at] == 0;
        of[at] = of[at].saturating_add(1);
        if is_new {
            known.distinct += 1;
        } else {
            known.counts.repeated += 1;
        }
    }

    fn own(&self, partition: u32, epoch: u32, member: u64) {
        let owner = &mut self.0.lock().owners[partition as usize];
        assert!(epoch != owner.0 || member == owner.1, "{partition} has two owners in {epoch}");
        if epoch > owner.0 {
            *owner = (epoch, member);
        }
    }

    /// Whether somebody else was told to have a partition at a later epoch.
    fn is_anothers(&self, partition: u32, epoch: u32, member: u64) -> bool {
        let owner = self.0.lock().owners[partition as usize];
        owner.0 > epoch && owner.1 != member
    }

    fn count(&self, count: impl FnOnce(&mut Counts)) {
        count(&mut self.0.lock().counts);
    }
}

/// Why a member's work ended.
enum End {
    /// As it was told to.
    Ordered,
    /// The server ended it: it joins anew.
    ThrownOut,
}

/// What it takes to be a member.
pub(crate) struct Worker {
    pub(crate) number: u64,
    pub(crate) url: String,
    pub(crate) http: Client,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) orders: watch::Receiver<Order>,
    pub(crate) random: StdRng,
}

impl Worker {
    /// Is a member until it is told otherwise.
    pub(crate) async fn run(mut self, face: Face) {
        loop {
            let end = match face {
                Face::WebSocket => self.web_socket().await,
                Face::Events => self.events().await,
                Face::RestV2 => self.rest_v2().await,
            };
            match end {
                End::Ordered => return,
                End::ThrownOut => self.ledger.count(|counts| counts.thrown_out += 1),
            }
            // An order that came meanwhile is taken up by the next loop, at once.
            let order = *self.orders.borrow();
            if order != Order::Work {
                return;
            }
            self.number += 1_000_000;
        }
    }

    /// Waits for the next order.
    async fn order(&mut self) -> Order {
        match self.orders.changed().await {
            Ok(()) => *self.orders.borrow_and_update(),
            Err(_) => Order::Die,
        }
    }

    async fn until_woken(&mut self) {
        while self.order().await == Order::Hang {}
    }
}

/// A partition that a member has.
#[derive(Debug, Clone, Copy)]
struct Held {
    epoch: u32,
    next: u64,
}

// WebSocket.

type Stream = WebSocketStream<MaybeTlsStream<TcpStream>>;

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    seq: Option<u64>,
}

#[derive(Deserialize)]
struct Records<'a> {
    p: u32,
    base: u64,
    next: u64,
    #[serde(borrow)]
    records: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Assigned {
    generation: u32,
    start: BTreeMap<u32, u64>,
}

#[derive(Deserialize)]
struct Partitions {
    partitions: Vec<u32>,
}

/// The next text frame; `None` when the socket is closed.
async fn next_text(stream: &mut Stream) -> Option<String> {
    loop {
        match stream.next().await? {
            Ok(Message::Text(text)) => return Some(text.to_string()),
            Ok(Message::Ping(_) | Message::Pong(_)) => {}
            Ok(_) | Err(_) => return None,
        }
    }
}

/// A member on a WebSocket.
struct Socket<'w> {
    worker: &'w mut Worker,
    stream: Stream,
    held: BTreeMap<u32, Held>,
    seq: u64,
    /// Commits without an answer: the partition, and whether it was somebody else's when it was
    /// sent and was not given back since.
    commits: BTreeMap<u64, (u32, bool)>,
}

impl Socket<'_> {
    async fn send(&mut self, frame: Value) -> bool {
        self.stream.send(Message::text(frame.to_string())).await.is_ok()
    }

    async fn commit(&mut self, partition: u32, next: u64) {
        let Worker { number, ledger, .. } = &*self.worker;
        let is_anothers = match self.held.get(&partition) {
            Some(held) => ledger.is_anothers(partition, held.epoch, *number),
            None => true,
        };
        if is_anothers {
            ledger.count(|counts| counts.stale_tried += 1);
        }
        self.seq += 1;
        let seq = self.seq;
        self.commits.insert(seq, (partition, is_anothers));
        let offsets = json!({partition.to_string(): next});
        self.send(json!({"type": "commit", "id": 1, "offsets": offsets, "seq": seq})).await;
    }

    /// Takes a frame in; false when the membership has ended.
    async fn take(&mut self, text: &str, is_awake: bool) -> bool {
        let head: Head<'_> = serde_json::from_str(text).expect(text);
        match head.kind {
            "records" if is_awake => self.process(text).await,
            "records" | "subscribed" | "welcome" | "hb" | "progress" | "revoking" => {}
            "assigned" => {
                let Assigned { generation, start } = serde_json::from_str(text).expect(text);
                for (partition, next) in start {
                    self.worker.ledger.own(partition, generation, self.worker.number);
                    self.held.insert(partition, Held { epoch: generation, next });
                    for (of, is_anothers) in self.commits.values_mut() {
                        *is_anothers &= *of != partition;
                    }
                }
            }
            "revoked" => {
                let Partitions { partitions } = serde_json::from_str(text).expect(text);
                for partition in partitions {
                    let held = self.held.remove(&partition).expect("revoked what was assigned");
                    // Not its own any more: whatever it says now must not count.
                    self.commit(partition, held.next).await;
                }
            }
            "committed" => {
                let (partition, is_anothers) = self.commits.remove(&head.seq.unwrap()).unwrap();
                assert!(!is_anothers, "a stale commit of {partition} was accepted: {text}");
                self.worker.ledger.count(|counts| counts.committed += 1);
            }
            "error" => {
                let error: Value = serde_json::from_str(text).unwrap();
                assert_eq!(error["code"], "stale_member", "{text}");
                match head.seq {
                    Some(seq) => {
                        self.commits.remove(&seq).unwrap();
                        self.worker.ledger.count(|counts| counts.refused += 1);
                    }
                    None => return false,
                }
            }
            "goaway" | "unsubscribed" => return false,
            _ => panic!("nothing is lost here: {text}"),
        }
        true
    }

    async fn process(&mut self, text: &str) {
        let frame: Records<'_> = serde_json::from_str(text).expect(text);
        let held = self.held.get_mut(&frame.p).expect("records of a partition that is held");
        assert_eq!(held.next, frame.base, "a gap in partition {}", frame.p);
        assert_eq!(frame.next - frame.base, frame.records.len() as u64);
        held.next = frame.next;
        for offset in frame.base..frame.next {
            self.worker.ledger.process(frame.p, offset);
        }
        let (records, bytes) = (frame.records.len(), text.len());
        self.commit(frame.p, frame.next).await;
        self.send(json!({"type": "credit", "id": 1, "records": records, "bytes": bytes})).await;
    }

    /// Hangs, wakes up, and goes on committing what it believes to have, to the socket's end.
    async fn hang(mut self) {
        self.worker.until_woken().await;
        for (partition, held) in self.held.clone() {
            self.commit(partition, held.next).await;
        }
        let ending = async {
            while let Some(text) = next_text(&mut self.stream).await {
                if !self.take(&text, false).await {
                    break;
                }
            }
        };
        let ended = tokio::time::timeout(PATIENCE, ending).await;
        ended.expect("a socket on which nothing was heard is closed");
    }
}

impl Worker {
    async fn web_socket(&mut self) -> End {
        let url = format!("{}/v1/ws", self.url.replacen("http", "ws", 1));
        let mut request = url.into_client_request().unwrap();
        let protocol = "eddyline.v1.json".parse().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", protocol);
        let (stream, _) = connect_async(request).await.unwrap();
        let (held, commits) = (BTreeMap::new(), BTreeMap::new());
        let mut socket = Socket { worker: self, stream, held, seq: 0, commits };
        socket.send(json!({"type": "hello"})).await;
        let credit = json!({"records": CREDIT_RECORDS, "bytes": CREDIT_BYTES});
        let session = u64::try_from(SESSION.as_millis()).unwrap();
        let group = json!({"id": GROUP, "session_timeout_ms": session});
        let subscribe = json!({"type": "subscribe", "id": 1, "topic": TOPIC, "group": group,
            "credit": credit});
        socket.send(subscribe).await;
        loop {
            let text = tokio::select! {
                biased;
                order = socket.worker.order() => match order {
                    Order::Work | Order::Wake => continue,
                    Order::Die => return End::Ordered,
                    Order::Hang => {
                        socket.hang().await;
                        return End::Ordered;
                    }
                    Order::Leave => {
                        socket.send(json!({"type": "unsubscribe", "id": 1})).await;
                        while let Some(text) = next_text(&mut socket.stream).await {
                            if text.starts_with("{\"type\":\"unsubscribed\"") {
                                break;
                            }
                        }
                        return End::Ordered;
                    }
                },
                text = tokio::time::timeout(PATIENCE, next_text(&mut socket.stream)) => {
                    text.expect("heartbeats, at least")
                }
            };
            let Some(text) = text else { return End::ThrownOut };
            if !socket.take(&text, true).await {
                return End::ThrownOut;
            }
        }
    }
}

// Server-sent events, committed by POST.

#[derive(Deserialize)]
struct EventAssigned {
    partitions: Vec<u32>,
    start: BTreeMap<u32, u64>,
    member_id: String,
    epoch: u32,
}

#[derive(Deserialize)]
struct Place {
    partition: u32,
    offset: u64,
}

#[derive(Deserialize)]
struct Page {
    records: Vec<Place>,
}

/// What a member on a stream of events is known as.
#[derive(Debug, Default)]
struct Identity {
    member: String,
    epoch: u32,
    held: BTreeMap<u32, Held>,
    /// Processed, and not known to be committed.
    open: BTreeMap<u32, u64>,
}

impl Worker {
    async fn events(&mut self) -> End {
        let url = format!("{}?group={GROUP}&from=earliest", records_url(&self.url, TOPIC));
        let request = self.http.get(url).header("accept", "text/event-stream");
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        let mut lines = Lines::new(response);
        let (mut me, mut kind) = (Identity::default(), String::new());
        loop {
            let line = tokio::select! {
                biased;
                order = self.order() => match order {
                    Order::Work | Order::Wake => continue,
                    // There is no goodbye but the connection's end.
                    Order::Leave => return End::Ordered,
                    Order::Die | Order::Hang => {
                        if order == Order::Hang {
                            // Nobody can tell a client that does not read from one for whom there
                            // is nothing to read, until its connection breaks.
                            let hangs = self.random.random_range(Duration::ZERO..SESSION);
                            tokio::time::sleep(hangs).await;
                        }
                        drop(lines);
                        self.until_woken().await;
                        me.open = me.held.iter().map(|(of, held)| (*of, held.next)).collect();
                        let status = self.commit_open(&mut me).await;
                        assert!(matches!(status, None | Some(409)), "from the dead: {status:?}");
                        return End::Ordered;
                    }
                },
                line = lines.next() => line,
            };
            let Some(line) = line else { return End::ThrownOut };
            if let Some(event) = line.strip_prefix("event: ") {
                event.clone_into(&mut kind);
            } else if let Some(data) = line.strip_prefix("data: ") {
                match kind.as_str() {
                    "assigned" => self.told(&mut me, data),
                    "records" => self.process(&mut me, data),
                    "revoked" => {
                        let Partitions { partitions } = serde_json::from_str(data).expect(data);
                        me.held.retain(|partition, _| !partitions.contains(partition));
                        me.open.retain(|partition, _| !partitions.contains(partition));
                    }
                    "end" | "error" => return End::ThrownOut,
                    "revoking" | "progress" => {}
                    _ => panic!("nothing is lost here: {kind} {data}"),
                }
                self.commit_open(&mut me).await;
            }
        }
    }

    fn told(&self, me: &mut Identity, data: &str) {
        let told: EventAssigned = serde_json::from_str(data).expect(data);
        me.held.retain(|partition, _| told.partitions.contains(partition));
        me.open.retain(|partition, _| told.partitions.contains(partition));
        (me.member, me.epoch) = (told.member_id, told.epoch);
        for partition in told.partitions {
            self.ledger.own(partition, told.epoch, self.number);
            let held = Held { epoch: told.epoch, next: told.start[&partition] };
            me.held.entry(partition).or_insert(held).epoch = told.epoch;
        }
    }

    fn process(&self, me: &mut Identity, data: &str) {
        let page: Page = serde_json::from_str(data).expect(data);
        for Place { partition, offset } in page.records {
            // The last records of a partition that is gone by now may come after the word of it.
            let Some(held) = me.held.get_mut(&partition) else { continue };
            assert_eq!(held.next, offset, "a gap in partition {partition}");
            held.next = offset + 1;
            self.ledger.process(partition, offset);
            me.open.insert(partition, offset + 1);
        }
    }

    /// Commits what is open; returns the answer's status. What is refused is tried again when the
    /// member is told its next epoch.
    async fn commit_open(&self, me: &mut Identity) -> Option<u16> {
        if me.open.is_empty() {
            return None;
        }
        let is_anothers =
            me.open.keys().any(|of| self.ledger.is_anothers(*of, me.epoch, self.number));
        let offset = |of: (&u32, &u64)| json!({"topic": TOPIC, "partition": of.0, "offset": of.1});
        let offsets: Vec<Value> = me.open.iter().map(offset).collect();
        let body = json!({"offsets": offsets, "member_id": me.member, "epoch": me.epoch});
        let url = format!("{}/v1/groups/{GROUP}/offsets", self.url);
        let answer = self.http.post(url).json(&body).send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        assert!(matches!(status, 200 | 409), "{status} {text}");
        self.ledger.count(|counts| {
            counts.stale_tried += u64::from(is_anothers);
            counts.committed += u64::from(status == 200);
            counts.refused += u64::from(status == 409);
        });
        if status == 200 {
            assert!(!is_anothers, "a stale commit was accepted: {body}");
            me.open.clear();
        }
        Some(status)
    }
}

// REST Proxy v2.

impl Worker {
    async fn v2(&self, path: &str, body: &Value) -> (u16, String) {
        let url = format!("{}/consumers/{GROUP}{path}", self.url);
        let request = self.http.post(url).header("content-type", V2).body(body.to_string());
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.text().await.unwrap())
    }

    /// Takes its time, and then commits by name what is another's by then.
    async fn dawdle(&mut self, path: &str, records: &[Place]) {
        let takes = self.random.random_range(Duration::ZERO..SLOW_MAX);
        tokio::time::sleep(takes).await;
        let url = format!("{}/v1/groups/{GROUP}", self.url);
        let group: Value = self.http.get(url).send().await.unwrap().json().await.unwrap();
        // Those of other faces are certainly others.
        let others: BTreeSet<u64> = group["members"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|member| member["kind"] != "rest_v2")
            .flat_map(|member| member["assignment"].as_array().unwrap())
            .map(|place| place["partition"].as_u64().unwrap())
            .collect();
        for Place { partition, offset } in records {
            if !others.contains(&u64::from(*partition)) {
                continue;
            }
            let offsets = json!([{"topic": TOPIC, "partition": partition, "offset": offset}]);
            let body = json!({"offsets": offsets});
            let (status, text) = self.v2(&format!("{path}/offsets"), &body).await;
            assert!(matches!(status, 404 | 409), "a stale commit was accepted: {body} {text}");
            self.ledger.count(|counts| {
                counts.stale_tried += 1;
                counts.refused += 1;
            });
        }
    }

    async fn rest_v2(&mut self) -> End {
        let name = format!("worker-{}", self.number);
        let idle = u64::try_from(SESSION.as_millis()).unwrap();
        let create = json!({"name": name, "format": "binary", "auto.offset.reset": "earliest",
            "auto.commit.enable": "false", "consumer.instance.timeout.ms": idle});
        let (status, text) = self.v2("", &create).await;
        assert_eq!(status, 200, "{text}");
        let path = format!("/instances/{name}");
        let (status, text) =
            self.v2(&format!("{path}/subscription"), &json!({"topics": [TOPIC]})).await;
        assert_eq!(status, 204, "{text}");
        let instance = format!("{}/consumers/{GROUP}{path}", self.url);
        loop {
            let poll = self.http.get(format!("{instance}/records?timeout=500")).send();
            let polled = tokio::select! {
                biased;
                order = self.order() => match order {
                    Order::Work | Order::Wake => continue,
                    Order::Leave => {
                        let deleted = self.http.delete(&instance).send().await.unwrap();
                        assert_eq!(deleted.status(), 204);
                        return End::Ordered;
                    }
                    // Over HTTP they are the same until the client comes back.
                    Order::Die | Order::Hang => {
                        self.until_woken().await;
                        let (status, text) = self.v2(&format!("{path}/offsets"), &json!({})).await;
                        assert_eq!(status, 404, "an instance that was idle is gone: {text}");
                        return End::Ordered;
                    }
                },
                polled = poll => polled.unwrap(),
            };
            let status = polled.status().as_u16();
            let text = polled.text().await.unwrap();
            if status == 404 {
                return End::ThrownOut;
            }
            assert_eq!(status, 200, "{text}");
            let records: Vec<Place> = serde_json::from_str(&text).expect(&text);
            for Place { partition, offset } in &records {
                self.ledger.process(*partition, *offset);
            }
            if self.random.random_bool(SLOW) {
                self.dawdle(&path, &records).await;
            }
            // All that was answered. Refused when a partition is another's by now; what is still
            // this one's is committed with the next.
            let (status, text) = self.v2(&format!("{path}/offsets"), &json!({})).await;
            match status {
                200 => self.ledger.count(|counts| counts.committed += 1),
                409 => self.ledger.count(|counts| counts.refused += 1),
                404 => return End::ThrownOut,
                _ => panic!("{status} {text}"),
            }
        }
    }
}
