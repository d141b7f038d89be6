//! A disk whose syncs fail, or take for ever, under a server that is written to over HTTP.

use std::path::Path;
use std::sync::Arc;

use eddyline::server::Error;
use eddyline::storage::fs::Fs;
use eddyline::storage::fs::sim::{Fault, IO_FAILED, Operation, Repeat, SimFs};
use rand::RngExt;
use reqwest::{Client, Response};
use serde_json::{Value, json};

use crate::client::{client, create, read_partition, records_url};
use crate::inside::Inside;
use crate::load::{Load, PARTITIONS, PATIENCE, Target, seeded};
use crate::node::Scratch;

/// Small files, so that checkpoints are written while the test runs.
const SETTINGS: &[&str] = &["wal.file_bytes=1 MiB", "wal.max_bytes=2 MiB", "shards.count=2"];
/// A disk on which the data directory itself is durable, as it is on any machine that is set up.
fn disk_with(directory: &Path) -> SimFs {
    let fs = SimFs::new();
    fs.create_dir_all(directory).unwrap();
    directory.ancestors().skip(1).for_each(|above| fs.sync_dir(above).unwrap());
    fs
}

/// Files of the log, of partitions, of checkpoints; and how many syncs of them may still work.
const FAILING: &[(&str, u64)] =
    &[("/wal/", 40), ("/wal/", 1), ("/partitions/", 8), ("/shards/1/", 2), ("/shards/0/", 2)];

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failed_sync_nothing_is_acknowledged_and_the_node_ends() {
    let mut random = seeded();
    for (path, after_max) in FAILING {
        let dir = Scratch::new();
        let target = Target { allowed: &[207, 503, 504], ..Target::new("failing") };
        let http = client();
        let fs = disk_with(dir.path());
        let server = Inside::start(Arc::new(fs.clone()), dir.path(), SETTINGS).await.unwrap();
        create(&http, server.url(), target.topic, json!({"partitions": PARTITIONS})).await;
        let mut load = Load::start(server.url(), "before", &target, &mut random);
        load.wait_until(|answered| answered.acked >= 200).await;
        // Only one sync fails: whoever tried it again would succeed, and acknowledge what is lost.
        fs.inject(Fault {
            operation: Operation::Sync,
            after: random.random_range(0..*after_max),
            path_contains: (*path).to_owned(),
            errno: IO_FAILED,
            repeat: Repeat::Once,
        });
        let ended = server.ended().await;
        assert!(matches!(ended, Err(Error::Failed(_))), "{path}: {ended:?}");
        load.finish().await;
        // What is durable is what counts: nothing that was acknowledged may be only in memory.
        let fs = Arc::new(fs.cut());
        let server = Inside::start(fs, dir.path(), SETTINGS).await.unwrap();
        target.verify(&http, server.url()).await;
        server.stop().await;
    }
}

async fn produce(http: &Client, url: &str, topic: &str, value: u64) -> Response {
    let body = json!({"partition": 0, "value": value});
    http.post(records_url(url, topic)).json(&body).send().await.unwrap()
}

async fn assert_unknown(response: Response) {
    let status = response.status();
    let problem: Value = response.json().await.unwrap();
    assert_eq!(status, 504, "{problem}");
    assert_eq!(problem["code"], "outcome_unknown", "{problem}");
    assert_eq!(problem["may_have_applied"], true, "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_to_a_disk_that_hangs_end_with_an_unknown_outcome_and_reads_go_on() {
    let dir = Scratch::new();
    let http = client();
    let fs = disk_with(dir.path());
    let settings = ["http.request_timeout=300 ms"];
    let server = Inside::start(Arc::new(fs.clone()), dir.path(), &settings).await.unwrap();
    let url = server.url().to_owned();
    create(&http, &url, "slow", json!({"partitions": 1})).await;
    assert_eq!(produce(&http, &url, "slow", 0).await.status(), 200);
    fs.hold_syncs();
    let writes = (1..4).map(|value| produce(&http, &url, "slow", value));
    for response in futures_util::future::join_all(writes).await {
        assert_unknown(response).await;
    }
    let put = http.put(format!("{url}/v1/topics/other")).json(&json!({"partitions": 1}));
    assert_unknown(put.send().await.unwrap()).await;
    // A topic that the first record creates cannot be waited for either.
    assert_unknown(produce(&http, &url, "new", 0).await).await;
    let v2 = json!({"records": [{"value": 4}]});
    let v2 = http.post(format!("{url}/topics/slow/partitions/0")).body(v2.to_string());
    let v2 = v2.header("content-type", "application/vnd.kafka.json.v2+json");
    let answer = tokio::time::timeout(PATIENCE, v2.send()).await.unwrap().unwrap();
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert!(status == 504 || text.contains("\"error_code\":50"), "{status}: {text}");
    // Readers do not wait for the disk, and see nothing that a power cut could take back.
    assert_eq!(read_partition(&http, &url, "slow", 0).await.len(), 1);
    assert_eq!(http.get(format!("{url}/healthz")).send().await.unwrap().status(), 200);
    fs.resume_syncs();
    let written = async {
        while read_partition(&http, &url, "slow", 0).await.len() < 5 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, written).await.expect("what was queued is written in the end");
    assert_eq!(produce(&http, &url, "slow", 5).await.status(), 200);
    let records = read_partition(&http, &url, "slow", 0).await;
    let mut values: Vec<u64> =
        records.iter().map(|record| record.value.get().parse().unwrap()).collect();
    values.sort_unstable();
    assert_eq!(values, [0, 1, 2, 3, 4, 5], "each once");
    server.stop().await;
}
