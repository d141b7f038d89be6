//! SIGTERM: what is open is finished or ended, the exit code is 0, the next start is quick.

use std::time::Duration;

use eddyline::storage::fs::sim::SimFs;
use reqwest::Client;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::client::{client, create, records_url};
use crate::inside::Inside;
use crate::load::{Load, PARTITIONS, PATIENCE, Target, seeded};
use crate::node::{Log, Scratch, Setup};

/// Entries that a shard may have to replay after a stop in order: those that Raft itself adds.
const REPLAYED_MAX: u64 = 2;

/// How many entries each shard replayed at its start.
fn replayed(log: &Log) -> Vec<u64> {
    let text = log.text();
    let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok());
    let recovered = lines.filter(|line: &serde_json::Value| {
        line["message"].as_str().is_some_and(|message| message.ends_with(" recovered"))
    });
    recovered.map(|line| line["entries"].as_u64().unwrap()).collect()
}

async fn open_events(http: &Client, url: &str, from: &str) -> reqwest::Response {
    let request = http.get(format!("{url}?from={from}")).header("accept", "text/event-stream");
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_under_load_acknowledges_what_it_wrote_and_leaves_nothing_to_replay() {
    let dir = Scratch::new();
    let setup = Setup::new(dir.path(), &["shards.count=2"]).verbose();
    let target = Target::new("stopped");
    let http = client();
    let mut node = setup.start();
    create(&http, node.url(), target.topic, serde_json::json!({"partitions": PARTITIONS})).await;
    for round in 0..3 {
        let events =
            open_events(&http, &records_url(node.url(), target.topic), "latest").await.text();
        let mut load = Load::start(node.url(), &round.to_string(), &target, &mut seeded());
        load.wait_until(|answered| answered.acked >= 500).await;
        node.terminate();
        let ended = tokio::task::spawn_blocking(move || node.ended());
        let events = tokio::time::timeout(PATIENCE, events).await.unwrap().unwrap();
        let last = events.trim_end().rsplit("\n\n").next().unwrap();
        assert_eq!(last, "event: end\ndata: {\"reason\":\"shutdown\"}");
        ended.await.unwrap();
        load.finish().await;
        node = setup.start();
        let replayed = replayed(node.log());
        assert_eq!(replayed.len(), 3, "two data shards and the metadata");
        assert!(replayed.iter().all(|entries| *entries <= REPLAYED_MAX), "{replayed:?}");
        target.verify(&http, node.url()).await;
    }
    node.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_are_stuck_do_not_keep_a_node_from_stopping() {
    let dir = Scratch::new();
    let setup = Setup::new(dir.path(), &[]);
    let http = client();
    let node = setup.start();
    create(&http, node.url(), "stuck", serde_json::json!({"partitions": 1})).await;
    let url = records_url(node.url(), "stuck");
    let value = "x".repeat(500_000);
    for _ in 0..20 {
        let body = serde_json::json!({"value": value});
        assert_eq!(http.post(&url).json(&body).send().await.unwrap().status(), 200);
    }
    // One sends half of a request and no more, one half of a line, one does not read its events.
    let address = node.url().strip_prefix("http://").unwrap().to_owned();
    let path = "POST /v1/topics/stuck/records HTTP/1.1\r\nhost: x\r\n";
    let mut half = TcpStream::connect(&address).await.unwrap();
    let request = format!("{path}content-type: application/json\r\ncontent-length: 100\r\n\r\n[");
    half.write_all(request.as_bytes()).await.unwrap();
    let mut line = TcpStream::connect(&address).await.unwrap();
    let head = "content-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n";
    line.write_all(format!("{path}{head}5\r\n{{\"val\r\n").as_bytes()).await.unwrap();
    let unread = open_events(&http, &url, "earliest").await;
    let ended = tokio::task::spawn_blocking(move || {
        node.terminate();
        node.ended()
    });
    tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap();
    drop((half, line, unread));
    let node = setup.start();
    let records = crate::client::read_partition(&http, node.url(), "stuck", 0);
    let records = tokio::time::timeout(Duration::from_secs(60), records).await.unwrap();
    assert_eq!(records.len(), 20, "half a request writes nothing");
    node.stop();
}

/// Syncs that wait until this is dropped, so that a test that fails ends all the same.
struct Held(SimFs);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.resume_syncs();
    }
}

async fn inside(fs: &SimFs, dir: &Scratch) -> Inside {
    fs.shared().create_dir_all(dir.path()).unwrap();
    let settings = ["shards.count=1", "wal.file_bytes=1 MiB"];
    let server = Inside::start(fs.shared(), dir.path(), &settings).await.unwrap();
    let url = records_url(server.url(), "t");
    let response = client().post(url).json(&serde_json::json!({"value": 1})).send().await.unwrap();
    assert_eq!(response.status(), 200);
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_does_not_answer_does_not_keep_a_server_from_ending() {
    let (fs, dir) = (SimFs::new(), Scratch::new());
    let server = inside(&fs, &dir).await;
    fs.hold_syncs();
    let _held = Held(fs);
    assert!(server.asked_to_stop().await.is_err(), "it says that it did not end in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_on_a_full_disk_ends_in_order() {
    let (fs, dir) = (SimFs::new(), Scratch::new());
    let server = inside(&fs, &dir).await;
    fs.set_capacity(Some(0));
    // The room that the log had is used up by what is neither accepted nor refused.
    let url = records_url(server.url(), "t");
    let waits = client().post(&url).body(vec![b'x'; 900_000]).timeout(Duration::from_secs(2));
    while waits.try_clone().unwrap().send().await.is_ok_and(|answer| answer.status() == 200) {}
    server.asked_to_stop().await.unwrap();
}

async fn read_json(response: reqwest::Response) -> serde_json::Value {
    let status = response.status();
    let text = response.text().await.unwrap();
    assert!(status.is_success(), "{status}: {text}");
    serde_json::from_str(&text).unwrap_or_default()
}

/// Members need commits and leaving to the last: what serves those must not stop before them.
#[tokio::test(flavor = "multi_thread")]
async fn members_of_groups_commit_and_leave_when_a_node_stops() {
    const V2: &str = "application/vnd.kafka.json.v2+json";
    let dir = Scratch::new();
    let setup = Setup::new(dir.path(), &[]);
    let http = client();
    let node = setup.start();
    create(&http, node.url(), "t", serde_json::json!({"partitions": 1})).await;
    for n in 0..3 {
        let body = serde_json::json!({"value": n});
        read_json(http.post(records_url(node.url(), "t")).json(&body).send().await.unwrap()).await;
    }
    let url = format!("{}?group=events&from=earliest", records_url(node.url(), "t"));
    let events = http.get(url).header("accept", "text/event-stream").send().await.unwrap();
    assert_eq!(events.status(), 200);
    let post = |path: &str, body: serde_json::Value| {
        let request = http.post(format!("{}/consumers/proxied{path}", node.url()));
        request.header("content-type", V2).body(body.to_string()).send()
    };
    let settings = serde_json::json!({"name": "i", "format": "json",
        "auto.offset.reset": "earliest"});
    read_json(post("", settings).await.unwrap()).await;
    let topics = serde_json::json!({"topics": ["t"]});
    read_json(post("/instances/i/subscription", topics).await.unwrap()).await;
    let poll = async || {
        let url = format!("{}/consumers/proxied/instances/i/records?timeout=1000", node.url());
        let records = read_json(http.get(url).header("accept", V2).send().await.unwrap()).await;
        records.as_array().unwrap().len()
    };
    let mut polled = 0;
    while polled < 3 {
        polled += poll().await;
    }
    // The next poll says that the answer of the last one arrived.
    assert_eq!(poll().await, 0);
    let ended = tokio::task::spawn_blocking(move || {
        node.terminate();
        node.ended()
    });
    let (text, ended) = tokio::join!(events.text(), ended);
    drop((text.unwrap(), ended.unwrap()));
    let node = setup.start();
    for group in ["events", "proxied"] {
        let url = format!("{}/v1/groups/{group}", node.url());
        let found = read_json(http.get(url).send().await.unwrap()).await;
        assert_eq!(found["members"], serde_json::json!([]), "{found}");
    }
    let url = format!("{}/v1/groups/proxied/offsets", node.url());
    let found = read_json(http.get(url).send().await.unwrap()).await;
    assert_eq!(found["offsets"][0]["offset"], 3, "{found}");
    node.stop();
}
