//! What clients are told when the disk is slow, full or failing: nothing is written that was
//! refused, nothing is lost that was accepted, and the node goes on by itself afterwards.

use std::future::Future;
use std::time::Duration;

use eddyline::storage::fs::sim::{
    Fault, IO_FAILED, NOT_PERMITTED, NOT_SUPPORTED, Operation, Repeat, SimFs,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::ops::until;
use crate::support::{Reply, Server, eventually};

const RECORDS: &str = "/v1/topics/t/records";
const V2_JSON: &str = "application/vnd.kafka.json.v2+json";
const SMALL_LOG: (&str, &str) = ("wal.file_bytes", "8 MiB");

/// Syncs that wait until this is dropped, so that a test that fails ends all the same.
struct Held(SimFs);

impl Held {
    fn hold(fs: &SimFs) -> Self {
        fs.hold_syncs();
        Self(fs.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.resume_syncs();
    }
}

async fn start(fs: &SimFs, settings: &[(&str, &str)]) -> Server {
    let settings: Vec<_> = settings.iter().copied().chain([SMALL_LOG]).collect();
    let server = Server::start_on(fs, tempfile::tempdir().unwrap(), &settings).await;
    let put = server.request(Method::PUT, "/v1/topics/t").body(r#"{"partitions":1}"#);
    assert_eq!(Reply::of(put).await.status, 201);
    server
}

async fn produce(server: &Server) -> Reply {
    let request = server.request(Method::POST, RECORDS).header("content-type", "application/json");
    Reply::of(request.body(r#"[{"value":1},{"value":2}]"#)).await
}

/// Produces two records on the v2 face, by default or with an honest status.
async fn produce_v2(server: &Server, strict: bool) -> Reply {
    let mut request = server.request(Method::POST, "/topics/t").header("content-type", V2_JSON);
    if strict {
        request = request.header("prefer", "handling=strict");
    }
    Reply::of(request.body(r#"{"records":[{"value":1},{"value":2}]}"#)).await
}

async fn end_offset(server: &Server) -> u64 {
    let offsets = Reply::of(server.request(Method::GET, "/topics/t/partitions/0/offsets")).await;
    offsets.json()["end_offset"].as_u64().unwrap()
}

/// Checks a refusal on all faces: a problem, v2's outcome of each record, v2's status if asked.
async fn check_refused(server: &Server, status: u16, code: &str, error_code: u32) {
    let may_have_applied = code == "outcome_unknown";
    let reply = produce(server).await;
    assert_eq!(reply.status, status, "{}", reply.text());
    assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    assert_eq!(reply.header("retry-after").is_some(), !may_have_applied);
    let problem = reply.json();
    assert_eq!((&problem["code"], &problem["error_code"]), (&json!(code), &json!(error_code)));
    assert_eq!(problem["retriable"], true);
    assert_eq!(problem["may_have_applied"], may_have_applied);

    for strict in [false, true] {
        let reply = produce_v2(server, strict).await;
        assert_eq!(reply.status, if strict { status } else { 200 }, "{}", reply.text());
        let waits = strict && !may_have_applied;
        assert_eq!(reply.header("retry-after").is_some(), waits, "{strict}");
        let body = reply.json();
        let outcomes = body["offsets"].as_array().unwrap();
        assert_eq!(outcomes.len(), 2);
        for outcome in outcomes {
            assert_eq!(outcome["error_code"], 50003, "{body}");
            assert_eq!((&outcome["partition"], &outcome["offset"]), (&Value::Null, &Value::Null));
            assert!(outcome["error"].is_string());
        }
    }
}

#[tokio::test]
async fn a_write_that_takes_too_long_has_an_unknown_outcome() {
    let fs = SimFs::new();
    let server = start(&fs, &[("http.request_timeout", "200ms")]).await;
    let held = Held::hold(&fs);
    check_refused(&server, 504, "outcome_unknown", 50401).await;
    let lines =
        server.request(Method::POST, RECORDS).header("content-type", "application/x-ndjson");
    let lines = Reply::of(lines.body("{\"value\":1}\n{}x\n{\"value\":2}\n")).await;
    let reports: Vec<Value> =
        lines.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let codes: Vec<_> = reports.iter().map(|report| &report["error"]["code"]).collect();
    assert_eq!(json!(codes), json!(["outcome_unknown", "invalid_request", "outcome_unknown"]));
    drop(held);
    // It was written after all, which is why the outcome was called unknown.
    eventually("everything is written", async || (end_offset(&server).await == 8).then_some(()))
        .await;
    assert_eq!(produce(&server).await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn full_queues_refuse_and_keep_what_they_took() {
    let fs = SimFs::new();
    let server = start(&fs, &[("shards.count", "1")]).await;
    let held = Held::hold(&fs);
    let mut accepted = 0;
    let refused = loop {
        let request = server.request(Method::POST, &format!("{RECORDS}?acks=0"));
        let reply = Reply::of(request.body(vec![b'x'; 1_000_000])).await;
        match reply.status.as_u16() {
            202 => accepted += 1,
            _ => break reply,
        }
        assert!(accepted < 200, "the queues have no bound");
    };
    assert_eq!((refused.status.as_u16(), &refused.json()["code"]), (503, &json!("overloaded")));
    check_refused(&server, 503, "overloaded", 50303).await;
    drop(held);
    let taken = eventually("there is room again", async || {
        let reply = produce(&server).await;
        (reply.status == 200).then(|| reply.json()["records"][0]["offset"].as_u64().unwrap())
    })
    .await;
    assert_eq!(taken, accepted, "what was accepted is written and what was refused is not");
    server.stop().await;
}

#[tokio::test]
async fn metrics_show_what_waits_in_each_queue() {
    let fs = SimFs::new();
    let server = start(&fs, &[("shards.count", "1")]).await;
    let held = Held::hold(&fs);
    let levels = [
        "eddyline_shard_accumulator_bytes",
        "eddyline_shard_proposals_in_flight",
        "eddyline_wal_queued_bytes",
    ];
    // More than the log's writer took before its sync hung, and than one entry holds.
    for _ in 0..60 {
        let request = server.request(Method::POST, &format!("{RECORDS}?acks=0"));
        let reply = Reply::of(request.body(vec![b'x'; 500_000])).await;
        assert!(matches!(reply.status.as_u16(), 202 | 503), "{}", reply.text());
    }
    for level in levels {
        until(&server, level, |value| value > 0.0).await;
    }
    drop(held);
    for level in levels {
        until(&server, level, |value| value == 0.0).await;
    }
    server.stop().await;
}

/// Sends two lines while the queues are full, for as long as `hold` takes, and checks that both
/// are written.
async fn check_full_queues_wait(settings: &[(&str, &str)], hold: impl Future<Output = ()>) {
    let fs = SimFs::new();
    let settings: Vec<_> = settings.iter().copied().chain([("shards.count", "1")]).collect();
    let server = start(&fs, &settings).await;
    let held = Held::hold(&fs);
    loop {
        let request = server.request(Method::POST, &format!("{RECORDS}?acks=0"));
        if Reply::of(request.body(vec![b'x'; 1_000_000])).await.status != 202 {
            break;
        }
    }
    let lines =
        server.request(Method::POST, RECORDS).header("content-type", "application/x-ndjson");
    let mut answer = lines.body("{\"value\":1}\n{\"value\":2}\n").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    hold.await;
    drop(held);
    let mut text = String::new();
    while let Some(chunk) = answer.chunk().await.unwrap() {
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    let reports: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(reports.len(), 2, "{text}");
    assert!(reports.iter().all(|report| report["offset"].is_u64()), "{text}");
    server.stop().await;
}

#[tokio::test]
async fn full_queues_slow_a_stream_down_and_are_no_error() {
    check_full_queues_wait(&[], std::future::ready(())).await;
}

/// A line's time to be written began when it was read: queues that were full for longer had each
/// line reported as of unknown outcome, and then written.
#[tokio::test]
async fn the_wait_for_room_in_full_queues_is_not_the_time_of_the_write() {
    let timeout = Duration::from_millis(1500);
    let hold = tokio::time::sleep(timeout * 2);
    check_full_queues_wait(&[("http.request_timeout", "1500ms")], hold).await;
}

#[tokio::test]
async fn a_full_disk_refuses_writes_until_there_is_room() {
    let fs = SimFs::new();
    let server = start(&fs, &[]).await;
    assert_eq!(produce(&server).await.status, 200);
    for name in ["spare", "other"] {
        let put = server.request(Method::PUT, &format!("/v1/topics/{name}"));
        assert_eq!(Reply::of(put).await.status, 201);
    }
    // Less than one file of the log.
    fs.set_capacity(Some(4 << 20));
    let ready = eventually("the node notices", async || {
        let ready = Reply::of(server.request(Method::GET, "/readyz")).await;
        (ready.status == 503).then(|| ready.json())
    })
    .await;
    let storage = ready["checks"].as_array().unwrap().iter().find(|c| c["name"] == "storage");
    assert!(storage.unwrap()["detail"].as_str().unwrap().contains("full"), "{ready}");
    check_refused(&server, 507, "storage_full", 50701).await;
    let lines =
        server.request(Method::POST, RECORDS).header("content-type", "application/x-ndjson");
    let lines = Reply::of(lines.body("{\"value\":1}\n")).await;
    assert_eq!(lines.status, 200);
    let report: Value = serde_json::from_str(lines.text()).unwrap();
    assert_eq!(report["error"]["code"], "storage_full");
    let raw = server.request(Method::POST, &format!("{RECORDS}?acks=0")).body("x");
    assert_eq!(Reply::of(raw).await.status, 507);
    let put = Reply::of(server.request(Method::PUT, "/v1/topics/new")).await;
    assert_eq!((put.status.as_u16(), &put.json()["code"]), (507, &json!("storage_full")));
    let new = server.request(Method::POST, "/topics/new").header("content-type", V2_JSON);
    let new = Reply::of(new.body(r#"{"records":[{"value":1}]}"#)).await;
    assert_eq!(
        (new.status.as_u16(), &new.json()["offsets"][0]["error_code"]),
        (200, &json!(50003))
    );

    // Reads and deletes go on.
    let page = Reply::of(server.request(Method::GET, RECORDS)).await;
    assert_eq!(page.json()["records"].as_array().unwrap().len(), 2);
    let deleted = Reply::of(server.request(Method::DELETE, "/v1/topics/spare")).await;
    assert_eq!(deleted.status, 204, "{}", deleted.text());

    fs.set_capacity(None);
    let first = eventually("writes are accepted again", async || {
        let reply = produce(&server).await;
        (reply.status == 200).then(|| reply.json()["records"][0]["offset"].as_u64().unwrap())
    })
    .await;
    assert_eq!(first, 2, "what was refused is not written");
    server.stop().await;
}

/// Nothing of the log can go while no checkpoint gets done: its bound acts before Raft.
#[tokio::test]
async fn a_log_at_its_hard_bound_refuses_records_until_checkpoints_free_it() {
    const MIB: usize = 1 << 20;
    let fs = SimFs::new();
    let settings = [("wal.file_bytes", "1 MiB"), ("wal.max_bytes", "2 MiB")];
    let server = Server::start_on(&fs, tempfile::tempdir().unwrap(), &settings).await;
    let put = server.request(Method::PUT, "/v1/topics/t").body(r#"{"partitions":1}"#);
    assert_eq!(Reply::of(put).await.status, 201);
    fs.hold_syncs_of("/shards/");
    let held = Held(fs.clone());
    let mut acked = 0;
    let refused = loop {
        let raw = server.request(Method::POST, RECORDS);
        let reply = Reply::of(raw.body(vec![b'x'; MIB / 4])).await;
        if reply.status != 200 {
            break reply;
        }
        acked += 1;
        assert!(acked < 32 * 4, "{acked} records of 256 KiB and no bound");
    };
    assert_eq!((refused.status.as_u16(), &refused.json()["code"]), (507, &json!("storage_full")));
    assert!(acked >= 28, "four times the soft bound fits: {acked} records of 256 KiB");
    check_refused(&server, 507, "storage_full", 50701).await;
    assert_eq!(end_offset(&server).await, acked, "what was accepted is there, and no more");
    drop(held);
    let next = eventually("checkpoints free the log", async || {
        let reply = produce(&server).await;
        (reply.status == 200).then(|| reply.json()["records"][0]["offset"].as_u64().unwrap())
    })
    .await;
    assert_eq!(next, acked);
    server.stop().await;
}

/// Files of the log are allocated where that can be done, and filled where it cannot.
#[tokio::test]
async fn a_log_without_a_next_file_says_why_and_one_on_a_plain_file_system_needs_none_allocated() {
    for (errno, is_refused) in [(NOT_PERMITTED, true), (NOT_SUPPORTED, false)] {
        let fs = SimFs::new();
        fs.inject(Fault {
            operation: Operation::Allocate,
            after: 0,
            path_contains: String::new(),
            errno,
            repeat: Repeat::Always,
        });
        let server = Server::start_on(&fs, tempfile::tempdir().unwrap(), &[SMALL_LOG]).await;
        if is_refused {
            let why = eventually("the node says why", async || {
                let ready = Reply::of(server.request(Method::GET, "/readyz")).await;
                let checks = ready.json()["checks"].clone();
                let check = checks.as_array().unwrap().iter().find(|c| c["name"] == "storage");
                let why = check.unwrap()["detail"].as_str()?.to_owned();
                (ready.status == 503 && why.contains("507")).then_some(why)
            })
            .await;
            assert!(why.contains("cannot allocate ") && why.contains("os error 1"), "{why}");
            fs.clear_faults();
        }
        eventually("the node is ready", async || {
            let ready = Reply::of(server.request(Method::GET, "/readyz")).await;
            (ready.status == 200).then_some(())
        })
        .await;
        let put = server.request(Method::PUT, "/v1/topics/t").body(r#"{"partitions":1}"#);
        assert_eq!(Reply::of(put).await.status, 201);
        assert_eq!(produce(&server).await.status, 200);
        server.stop().await;
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_an_internal_error() {
    let fs = SimFs::new();
    let settings = [SMALL_LOG, ("storage.tail_cache_bytes", "1 MiB")];
    let server = start(&fs, &settings[1..]).await;
    assert_eq!(produce(&server).await.status, 200);
    let server = Server::start_on(&fs, server.halt().await, &settings).await;
    fs.inject(Fault {
        operation: Operation::Read,
        after: 0,
        path_contains: ".log".to_owned(),
        errno: IO_FAILED,
        repeat: Repeat::Always,
    });
    let reply = Reply::of(server.request(Method::GET, RECORDS)).await;
    assert_eq!(reply.status, 500, "{}", reply.text());
    let problem = reply.json();
    assert_eq!((&problem["code"], &problem["retriable"]), (&json!("internal"), &json!(false)));
    assert!(!reply.text().contains("partitions/"), "paths are for the log: {}", reply.text());
    fs.clear_faults();
    assert_eq!(Reply::of(server.request(Method::GET, RECORDS)).await.status, 200);
    server.stop().await;
}
