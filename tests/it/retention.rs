//! Retention and deletion on a real disk: what is gone is gone there too.

use std::path::Path;

use eddyline::clock::SystemClock;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Reply, Server, eventually};

const RECORDS: &str = "/v1/topics/t/records";
const FAST: &[(&str, &str)] = &[("storage.retention_interval", "100ms")];
const COUNT: u64 = 400;

async fn put(server: &Server, configs: Value) {
    let body = json!({"partitions": 1, "configs": configs}).to_string();
    let reply = Reply::of(server.request(Method::PUT, "/v1/topics/t").body(body)).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
}

/// Writes `range` with a timestamp each, 10 records of about 1 KiB at a time.
async fn fill(server: &Server, range: std::ops::Range<u64>, timestamp: impl Fn(u64) -> i64) {
    for first in range.clone().step_by(10) {
        let record = |i: u64| {
            let value = format!("{i}-{}", "x".repeat(1000));
            json!({"value": value, "timestamp": timestamp(i)})
        };
        let records: Vec<_> = (first..range.end.min(first + 10)).map(record).collect();
        let request = server.request(Method::POST, RECORDS);
        let request = request.header("content-type", "application/json");
        let reply = Reply::of(request.body(json!(records).to_string())).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
}

fn now() -> i64 {
    SystemClock::shared().now().as_millis()
}

async fn get(server: &Server, query: &str) -> Reply {
    Reply::of(server.request(Method::GET, &format!("{RECORDS}{query}"))).await
}

/// First and next offset of the partition, as the topic shows them.
async fn bounds(server: &Server) -> (u64, u64) {
    let shown = Reply::of(server.request(Method::GET, "/v1/topics/t")).await.json();
    let bound = |name: &str| shown["details"][0][name].as_u64().unwrap();
    (bound("log_start_offset"), bound("log_end_offset"))
}

/// The base offsets of all segment files, ascending.
fn segment_files(directory: &Path) -> Vec<u64> {
    let mut bases = Vec::new();
    let mut folders = vec![directory.join("partitions")];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "log") {
                bases.push(path.file_stem().unwrap().to_str().unwrap().parse().unwrap());
            }
        }
    }
    bases.sort_unstable();
    bases
}

/// Checks that everything from `start` is there as it was written, and that what lies before is
/// answered as gone.
async fn check_what_is_left(server: &Server, start: u64, old_cursor: &str) {
    let out = get(server, "?partition=0&offset=0").await;
    assert_eq!((out.status.as_u16(), &out.json()["error_code"]), (416, &json!(41601)));
    assert_eq!(out.json()["log_start_offset"], start);
    let reply = get(server, &format!("?from={old_cursor}&limit=1000")).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let page = reply.json();
    assert_eq!(page["gaps"], json!([{"partition": 0, "from": 1, "to": start - 1}]));
    let records = page["records"].as_array().unwrap();
    let expected: Vec<u64> = (start..COUNT).collect();
    let offset = |record: &Value| {
        let offset = record["offset"].as_u64().unwrap();
        assert!(record["value"].as_str().unwrap().starts_with(&format!("{offset}-")), "{record}");
        offset
    };
    assert_eq!(records.iter().map(offset).collect::<Vec<_>>(), expected);
    let events = server.request(Method::GET, &format!("{RECORDS}?from={old_cursor}"));
    let mut events = events.header("accept", "text/event-stream").send().await.unwrap();
    let mut text = String::new();
    let gap = format!(
        "event: gap\ndata: {{\"partition\":0,\"from\":1,\"to\":{},\"reason\":\"retention\"}}\n\n",
        start - 1
    );
    while !text.contains(&gap) {
        let chunk = events.chunk().await.unwrap().unwrap_or_else(|| panic!("ended: {text}"));
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
}

#[tokio::test]
async fn retention_by_size_deletes_files_and_nothing_else() {
    let server = Server::start().await;
    put(&server, json!({"segment.bytes": 65536, "retention.bytes": 100_000})).await;
    fill(&server, 0..1, |_| now()).await;
    let cursor = get(&server, "").await.json()["next"].as_str().unwrap().to_owned();
    fill(&server, 1..COUNT, |_| now()).await;
    // The first look of retention is at the start, so that one look does it all.
    let server = Server::start_in(server.halt().await, FAST).await;
    // About 400 KB were written; at least 100 KB stay, and less than a segment more.
    let start = eventually("the log start moves", async || {
        let (start, _) = bounds(&server).await;
        (start > 0).then_some(start)
    })
    .await;
    let files = eventually("old files go", async || {
        let files = segment_files(server.path());
        (files.first() >= Some(&start)).then_some(files)
    })
    .await;
    assert!(files.len() <= 3, "{files:?}");
    assert_eq!(bounds(&server).await, (start, COUNT));
    assert!(COUNT - start >= 95, "retention.bytes stay, {start} is the log start");
    check_what_is_left(&server, start, &cursor).await;
    // The log start outlives a restart.
    let server = Server::start_in(server.halt().await, FAST).await;
    assert_eq!(bounds(&server).await, (start, COUNT));
    check_what_is_left(&server, start, &cursor).await;
    server.stop().await;
}

#[tokio::test]
async fn retention_by_time_deletes_what_is_old_and_only_that() {
    let server = Server::start().await;
    put(&server, json!({"segment.bytes": 65536, "retention.ms": 3_600_000})).await;
    let day = 24 * 60 * 60 * 1000;
    // The first 200 are a day old, the others are not.
    fill(&server, 0..1, |_| now() - day).await;
    let cursor = get(&server, "").await.json()["next"].as_str().unwrap().to_owned();
    fill(&server, 1..COUNT, |i| if i < 200 { now() - day } else { now() }).await;
    let server = Server::start_in(server.halt().await, FAST).await;
    let start = eventually("the log start moves", async || {
        let (start, _) = bounds(&server).await;
        // A segment goes when its newest record is old: the one that holds both kinds stays.
        (start > 0).then_some(start)
    })
    .await;
    assert!((120..=200).contains(&start), "{start}");
    eventually("old files go", async || {
        (segment_files(server.path()).first() >= Some(&start)).then_some(())
    })
    .await;
    check_what_is_left(&server, start, &cursor).await;
    server.stop().await;
}

#[tokio::test]
async fn deleting_a_topic_frees_its_space_and_its_name() {
    let server = Server::start().await;
    put(&server, json!({"segment.bytes": 65536})).await;
    fill(&server, 0..COUNT, |_| now()).await;
    eventually("files are written", async || {
        (segment_files(server.path()).len() > 2).then_some(())
    })
    .await;
    let cursor = get(&server, "?limit=1").await.json()["next"].as_str().unwrap().to_owned();
    let deleted = Reply::of(server.request(Method::DELETE, "/v1/topics/t")).await;
    assert_eq!(deleted.status, 204);
    assert_eq!(get(&server, "").await.status, 404);
    let gone = get(&server, &format!("?from={cursor}")).await;
    assert_eq!((gone.status.as_u16(), &gone.json()["code"]), (410, &json!("cursor_gone")));
    eventually("the directories go", async || {
        let left = std::fs::read_dir(server.path().join("partitions")).unwrap().count();
        (left == 0).then_some(())
    })
    .await;

    put(&server, json!({})).await;
    assert_eq!(bounds(&server).await, (0, 0));
    fill(&server, 0..1, |_| 77).await;
    let first = get(&server, "").await.json();
    assert_eq!(first["records"].as_array().unwrap().len(), 1, "{first}");
    assert_eq!(
        (&first["records"][0]["offset"], &first["records"][0]["timestamp"]),
        (&json!(0), &json!(77))
    );
    let gone = get(&server, &format!("?from={cursor}")).await;
    assert_eq!((gone.status.as_u16(), &gone.json()["error_code"]), (410, &json!(41001)));
    assert_eq!(gone.json()["code"], "cursor_gone");
    // All of that outlives a restart.
    let server = Server::start_in(server.halt().await, &[]).await;
    assert_eq!(bounds(&server).await, (0, 1));
    let gone = get(&server, &format!("?from={cursor}")).await;
    assert_eq!(gone.status, 410);
    server.stop().await;
}
