//! A bit that flipped on the disk of a stopped node: what it hit is never served, said plainly, and
//! can be gone around.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Reply, Server};

const RECORDS: &str = "/v1/topics/t/records";
const NDJSON: &str = "application/x-ndjson";
pub(crate) const PER_PARTITION: u64 = 400;

/// A value of about 1 KiB, so that the smallest segments hold about 60 records.
fn value(i: u64) -> String {
    format!("{i}-{}", "x".repeat(1000))
}

/// Writes both partitions in small batches, so that damage hits few records and segments roll.
pub(crate) async fn fill(server: &Server) {
    let body = json!({"partitions": 2, "configs": {"segment.bytes": 65536, "retention.ms": -1}})
        .to_string();
    let reply = Reply::of(server.request(Method::PUT, "/v1/topics/t").body(body)).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    for first in (0..PER_PARTITION).step_by(4) {
        for partition in [0, 1] {
            let records: Vec<_> = (first..first + 4)
                .map(|i| json!({"partition": partition, "value": value(i), "timestamp": 1000 + i}))
                .collect();
            let request = server.request(Method::POST, RECORDS);
            let request = request.header("content-type", "application/json");
            let reply = Reply::of(request.body(json!(records).to_string())).await;
            assert_eq!(reply.status, 200, "{}", reply.text());
        }
    }
}

/// The segments of a partition, oldest first.
pub(crate) fn segments(directory: &Path, partition: &str) -> Vec<PathBuf> {
    let topics = std::fs::read_dir(directory.join("partitions")).unwrap();
    let topic = topics.map(|entry| entry.unwrap().path()).next().unwrap();
    let files = std::fs::read_dir(topic.join(partition)).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    let mut logs: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|kind| kind == "log")).collect();
    logs.sort();
    logs
}

/// Flips a bit in the middle of the second segment of partition 0, which is sealed.
pub(crate) fn flip_a_bit(directory: &Path) {
    let logs = segments(directory, "0");
    assert!(logs.len() > 3, "{logs:?}");
    let mut bytes = std::fs::read(&logs[1]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&logs[1], bytes).unwrap();
}

async fn get(server: &Server, query: &str, accept: &str) -> Reply {
    let request = server.request(Method::GET, &format!("{RECORDS}{query}"));
    Reply::of(request.header("accept", accept)).await
}

/// Checks that records are what was written, and returns their offsets.
fn offsets<'a>(records: impl IntoIterator<Item = &'a Value>) -> BTreeSet<u64> {
    let check = |record: &Value| {
        let offset = record["offset"].as_u64().unwrap();
        assert_eq!(record["value"], value(offset), "what is served is what was written");
        offset
    };
    records.into_iter().map(check).collect()
}

/// Reads partition 0 page by page from `query` to the end, and returns what was there and the gaps.
async fn read_all(server: &Server, query: &str) -> (BTreeSet<u64>, Vec<Value>) {
    let (mut seen, mut gaps) = (BTreeSet::new(), Vec::new());
    let mut start = query.to_owned();
    loop {
        let reply = get(server, &format!("?{start}&limit=50&skip_damaged=true"), "*/*").await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let page = reply.json();
        gaps.extend(page.get("gaps").and_then(Value::as_array).into_iter().flatten().cloned());
        let records = page["records"].as_array().unwrap();
        if records.is_empty() {
            return (seen, gaps);
        }
        seen.extend(offsets(records));
        start = format!("from={}&partitions=0", page["next"].as_str().unwrap());
    }
}

/// Reads partition 0 until an error, without skipping.
async fn read_to_error(server: &Server) -> (BTreeSet<u64>, Reply) {
    let mut seen = BTreeSet::new();
    let mut start = "from=earliest&partitions=0".to_owned();
    loop {
        let reply = get(server, &format!("?{start}&limit=50"), "*/*").await;
        if reply.status != 200 {
            return (seen, reply);
        }
        let page = reply.json();
        assert!(!page["records"].as_array().unwrap().is_empty(), "the damage was passed");
        seen.extend(offsets(page["records"].as_array().unwrap()));
        start = format!("from={}&partitions=0", page["next"].as_str().unwrap());
    }
}

/// Reads the events of partition 0 up to its last record.
async fn read_events(server: &Server) -> (BTreeSet<u64>, Vec<Value>) {
    let query = "?from=earliest&partitions=0&limit=50";
    let request = server.request(Method::GET, &format!("{RECORDS}{query}"));
    let mut answer = request.header("accept", "text/event-stream").send().await.unwrap();
    let (mut seen, mut gaps, mut text) = (BTreeSet::new(), Vec::new(), String::new());
    while !seen.contains(&(PER_PARTITION - 1)) {
        let chunk = answer.chunk().await.unwrap().unwrap();
        text.push_str(std::str::from_utf8(&chunk).unwrap());
        while let Some((block, rest)) = text.split_once("\n\n") {
            let field = |name| block.lines().find_map(|line| line.strip_prefix(name));
            let data = || serde_json::from_str::<Value>(field("data: ").unwrap()).unwrap();
            match field("event: ") {
                Some("records") => seen.extend(offsets(data()["records"].as_array().unwrap())),
                Some("gap") => gaps.push(data()),
                Some(other) => panic!("{other}: {block}"),
                None => {}
            }
            text = rest.to_owned();
        }
    }
    (seen, gaps)
}

#[tokio::test]
async fn a_flipped_bit_is_never_served_and_can_be_skipped() {
    let server = Server::start().await;
    fill(&server).await;
    let directory = server.halt().await;
    flip_a_bit(directory.path());
    let server = Server::start_in(directory, &[]).await;

    let (before, error) = read_to_error(&server).await;
    assert_eq!(error.status, 503, "{}", error.text());
    assert!(error.header("retry-after").is_some());
    let problem = error.json();
    assert_eq!(problem["retriable"], true);
    assert_eq!((&problem["code"], &problem["partition"]), (&json!("unavailable"), &json!(0)));
    let from = problem["damaged_from"].as_u64().unwrap();
    let to = problem["next_good_offset"].as_u64().unwrap();
    assert_eq!(before, (0..from).collect(), "all that lies before is served");
    assert!(from < to && to - from <= 8, "one batch is damaged, not {from}..{to}");

    let left: BTreeSet<u64> = (0..PER_PARTITION).filter(|i| !(from..to).contains(i)).collect();
    let gap = json!({"partition": 0, "from": from, "to": to - 1});
    let (seen, gaps) = read_all(&server, "from=earliest&partitions=0").await;
    assert_eq!((seen, gaps), (left.clone(), vec![gap]));
    let (seen, _) = read_all(&server, &format!("partition=0&offset={to}")).await;
    assert_eq!(seen, (to..PER_PARTITION).collect(), "the next good offset is one");

    let inside = format!("?partition=0&offset={from}&limit=1");
    let lines = get(&server, &format!("{inside}&skip_damaged=true"), NDJSON).await;
    assert_eq!(lines.status, 200, "{}", lines.text());
    assert_eq!(lines.header("eddyline-gaps"), Some(format!("0:{from}-{}", to - 1).as_str()));
    assert_eq!(offsets([&lines.json()]), BTreeSet::from([to]));
    for query in [&inside, &format!("{inside}&skip_damaged=false")] {
        assert_eq!(get(&server, query, NDJSON).await.status, 503, "{query}");
    }

    let (seen, gaps) = read_events(&server).await;
    let gap = json!({"partition": 0, "from": from, "to": to - 1, "reason": "damaged"});
    assert_eq!((seen, gaps), (left, vec![gap]));

    // A stream that is told not to skip says why it ends.
    let strict = format!("{inside}&skip_damaged=false");
    let events = get(&server, &strict, "text/event-stream").await;
    let error = events.text().split_once("event: error\ndata: ").unwrap().1;
    let error: Value = serde_json::from_str(error.trim()).unwrap();
    assert_eq!((&error["code"], &error["next_good_offset"]), (&json!("unavailable"), &json!(to)));

    // Searching by time goes around it where it is told to.
    let time = format!("1970-01-01T00:00:{:06.3}Z", (1000 + from) as f64 / 1000.0);
    let query = format!("?from={time}&partitions=0&limit=1");
    let found = get(&server, &format!("{query}&skip_damaged=true"), "*/*").await.json();
    assert_eq!(found["records"][0]["offset"], to);
    assert_eq!(get(&server, &query, "*/*").await.status, 503);
    server.stop().await;
}

#[tokio::test]
async fn a_damaged_range_is_told_and_leaves_everything_else_alone() {
    let server = Server::start().await;
    fill(&server).await;
    let directory = server.halt().await;
    flip_a_bit(directory.path());
    let server = Server::start_in(directory, &[]).await;
    assert_eq!(read_to_error(&server).await.1.status, 503);

    let ready = Reply::of(server.request(Method::GET, "/readyz")).await;
    assert_eq!(ready.status, 503);
    let ready = ready.json();
    for check in ready["checks"].as_array().unwrap() {
        assert_eq!(check["ok"], check["name"] != "storage", "{ready}");
    }
    let cluster = Reply::of(server.request(Method::GET, "/v1/cluster")).await.json();
    let damaged = |shard: &&Value| shard["replicas"][0]["damaged"] == true;
    let shards = cluster["shards"].as_array().unwrap();
    assert_eq!(shards.iter().filter(damaged).count(), 1, "one shard has it: {cluster}");

    let reply = get(&server, "?partition=1&offset=0&limit=1000", "*/*").await;
    assert_eq!(offsets(reply.json()["records"].as_array().unwrap()).len(), 400);
    let request = server.request(Method::POST, "/topics/t/partitions/0");
    let request = request.header("content-type", "application/vnd.kafka.json.v2+json");
    let reply = Reply::of(request.body(r#"{"records":[{"value":1}]}"#)).await;
    assert_eq!(reply.json()["offsets"][0]["offset"], PER_PARTITION, "{}", reply.text());
    let offsets = Reply::of(server.request(Method::GET, "/topics/t/partitions/0/offsets")).await;
    assert_eq!(offsets.json()["end_offset"], PER_PARTITION + 1, "{}", offsets.text());
    server.stop().await;
}
