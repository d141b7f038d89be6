//! Fifty members on sixty partitions that join, leave, hang and die at random while all flights
//! are written: every flight is processed, nothing stale is committed, and after every wave the
//! group is in order again within the session timeout and a little.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::Client;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::{client, create, records_url};
use crate::flights::{Flight, NDJSON, as_body, inputs};
use crate::load::{PATIENCE, seeded};
use crate::members::{Face, GROUP, Ledger, Order, SESSION, TOPIC, Worker};
use crate::node::{Node, Scratch};

const PARTITIONS: u32 = 60;
const MEMBERS: usize = 50;
const WAVES: usize = 3;
/// What happens in one wave, one member each.
const EVENTS: usize = 24;
/// What the group may take beyond the session timeout.
const MARGIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The members and what becomes of them.
struct Crowd {
    url: String,
    http: Client,
    ledger: Arc<Ledger>,
    random: StdRng,
    tasks: JoinSet<()>,
    live: Vec<watch::Sender<Order>>,
    /// Those that hang or are dead, until they are woken.
    gone: Vec<watch::Sender<Order>>,
    joined: u64,
    events: [u32; 4],
}

impl Crowd {
    fn join(&mut self) {
        self.joined += 1;
        self.events[0] += 1;
        let face = match self.random.random_range(0..10) {
            0..6 => Face::WebSocket,
            6..8 => Face::Events,
            _ => Face::RestV2,
        };
        let (orders, taken) = watch::channel(Order::Work);
        let worker = Worker {
            number: self.joined,
            url: self.url.clone(),
            http: self.http.clone(),
            ledger: Arc::clone(&self.ledger),
            orders: taken,
            random: StdRng::seed_from_u64(self.random.random()),
        };
        self.tasks.spawn(worker.run(face));
        self.live.push(orders);
    }

    /// Has something happen to a member, or a new one come.
    fn happen(&mut self) {
        let joins = self.live.len() < MEMBERS - EVENTS / 2 || self.random.random_bool(0.5);
        if joins && self.live.len() < MEMBERS {
            return self.join();
        }
        let at = self.random.random_range(0..self.live.len());
        let member = self.live.swap_remove(at);
        let (order, kind) = match self.random.random_range(0..3) {
            0 => (Order::Leave, 1),
            1 => (Order::Hang, 2),
            _ => (Order::Die, 3),
        };
        self.events[kind] += 1;
        member.send_replace(order);
        self.gone.push(member);
    }

    /// Fails when a member found something wrong.
    fn check(&mut self) {
        while let Some(ended) = self.tasks.try_join_next() {
            ended.expect("a member found something wrong");
        }
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.http.get(format!("{}{path}", self.url)).send().await.unwrap();
        answer.json().await.unwrap()
    }

    /// Waits until the group is in order: exactly those who live are in, and have shared out all
    /// partitions evenly. Returns how long that took since the last that happened.
    async fn converged(&mut self) -> Duration {
        let (mut since, mut thrown_out) = (Instant::now(), self.ledger.counts().thrown_out);
        loop {
            self.check();
            // A member that had no turn on this machine for so long that it was given up, and that
            // joins again: that happened, too.
            let now_out = self.ledger.counts().thrown_out;
            if now_out > thrown_out {
                (since, thrown_out) = (Instant::now(), now_out);
            }
            let group = self.get(&format!("/v1/groups/{GROUP}")).await;
            let Err(why) = in_order(&group, self.live.len()) else { return since.elapsed() };
            let counts = self.ledger.counts();
            assert!(since.elapsed() < SESSION + MARGIN, "not in order in time, {why}; {counts:?}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Those that hung or died go on as if nothing had happened; what they commit is refused.
    fn wake(&mut self) {
        for member in self.gone.drain(..) {
            member.send_replace(Order::Wake);
        }
    }
}

/// Says what of a group is not in order.
fn in_order(group: &Value, live: usize) -> Result<(), String> {
    let members = group["members"].as_array().ok_or("there is no group")?;
    let mut owned = BTreeSet::new();
    let mut loads = BTreeSet::new();
    for member in members {
        let assignment = member["assignment"].as_array().unwrap();
        loads.insert(assignment.len());
        for place in assignment {
            let partition = place["partition"].as_u64().unwrap();
            // Not a matter of time: this must never be.
            assert!(owned.insert(partition), "{partition} has two owners: {group}");
        }
    }
    let spread = loads.last().unwrap_or(&0) - loads.first().unwrap_or(&0);
    let is_so = group["state"] == "stable"
        && members.len() == live
        && owned.len() == PARTITIONS as usize
        && spread <= 1;
    if is_so {
        return Ok(());
    }
    let (state, members, owned) = (&group["state"], members.len(), owned.len());
    Err(format!("{state}: {members} members of {live}, {owned} partitions owned, {loads:?}"))
}

/// Writes flights and checks that each is acknowledged.
async fn write(http: &Client, url: &str, flights: &[Flight]) {
    let request = http.post(records_url(url, TOPIC)).header("content-type", NDJSON);
    let reports = request.body(as_body(flights)).send().await.unwrap().text().await.unwrap();
    assert_eq!(reports.lines().count(), flights.len());
    assert!(!reports.contains("\"error\""), "{reports:.1000}");
}

/// Waits until all that was written is processed and committed.
async fn finished(crowd: &mut Crowd, written: usize) {
    let since = Instant::now();
    let lag = format!("/v1/groups/{GROUP}");
    while crowd.ledger.distinct() < written || crowd.get(&lag).await["lag"] != 0 {
        crowd.check();
        let (done, counts) = (crowd.ledger.distinct(), crowd.ledger.counts());
        assert!(since.elapsed() < PATIENCE, "{done} of {written} are processed, {counts:?}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let topic = crowd.get(&format!("/v1/topics/{TOPIC}")).await;
    let details = topic["details"].as_array().unwrap().iter();
    let ends: Vec<u64> = details.map(|of| of["log_end_offset"].as_u64().unwrap()).collect();
    let processed: Vec<u64> = crowd.ledger.ends().into_iter().map(|end| end as u64).collect();
    assert_eq!(processed, ends, "every record of every partition");
    let offsets = crowd.get(&format!("/v1/groups/{GROUP}/offsets")).await;
    for of in offsets["offsets"].as_array().unwrap() {
        assert_eq!(of["offset"], of["log_end_offset"], "{of}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_join_leave_hang_and_die_process_every_flight_and_commit_nothing_stale() {
    let random = seeded();
    // The whole file, where it is.
    let flights = inputs().pop().unwrap().flights;
    let dir = Scratch::new();
    let node = Node::start(dir.path(), &[]);
    let http = client();
    create(&http, node.url(), TOPIC, json!({"partitions": PARTITIONS})).await;
    let mut crowd = Crowd {
        url: node.url().to_owned(),
        http: http.clone(),
        ledger: Ledger::new(PARTITIONS),
        random,
        tasks: JoinSet::new(),
        live: Vec::new(),
        gone: Vec::new(),
        joined: 0,
        events: [0; 4],
    };
    (0..MEMBERS).for_each(|_| crowd.join());
    let mut parts = flights.chunks(flights.len().div_ceil(WAVES * EVENTS));
    for _ in 0..WAVES {
        for part in parts.by_ref().take(EVENTS) {
            // Whatever happens comes in the middle of a write.
            join(write(&http, node.url(), part), async { crowd.happen() }).await;
        }
        let took = crowd.converged().await;
        eprintln!("{} members are in order after {} ms", crowd.live.len(), took.as_millis());
        crowd.wake();
    }
    finished(&mut crowd, flights.len()).await;
    let live: Vec<_> = crowd.live.drain(..).collect();
    for member in &live {
        member.send_replace(Order::Leave);
    }
    while let Some(ended) = crowd.tasks.join_next().await {
        ended.expect("a member found something wrong");
    }
    let [joined, left, hung, died] = crowd.events;
    let counts = crowd.ledger.counts();
    eprintln!("{joined} joined, {left} left, {hung} hung, {died} died; {counts:?}");
    assert!(counts.stale_tried > 0, "nothing stale was tried");
    node.stop();
}
