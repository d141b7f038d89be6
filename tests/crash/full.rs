//! A full disk refuses, loses nothing, still reads and deletes, and takes records again when there
//! is room, without a restart.

use std::time::Duration;

use reqwest::Client;

use crate::client::{client, create, records_url};
use crate::image::disks;
use crate::load::{Load, PARTITIONS, PATIENCE, Target, seeded};
use crate::node::{Node, Scratch, Setup};

const DISK_MIB: u64 = 192;
const SETTINGS: &[&str] = &[
    "wal.file_bytes=4 MiB",
    "wal.max_bytes=16 MiB",
    "shards.count=2",
    "storage.retention_interval=200 ms",
];
/// Values that are small compared with the disk, large compared with a test's time.
const PADDING_MAX: usize = 2_000;
/// Bytes of one record of the topics that fill the disk.
const FILLER_BYTES: usize = 512 * 1024;
const FILLER: &str = "filler";

fn target() -> Target {
    Target { padding_max: PADDING_MAX, allowed: &[207, 507], ..Target::new("kept") }
}

async fn create_topics(http: &Client, node: &Node, target: &Target) {
    let configs = serde_json::json!({"segment.bytes": 1_048_576});
    for topic in [target.topic, FILLER] {
        let body = serde_json::json!({"partitions": PARTITIONS, "configs": configs});
        create(http, node.url(), topic, body).await;
    }
}

/// Writes large records until the disk is full or `bytes` are written.
async fn fill_topic(http: &Client, node: &Node, topic: &str, bytes: usize) {
    for n in 0..bytes / FILLER_BYTES {
        let url = format!("{}?key={n}", records_url(node.url(), topic));
        let request = http.post(url).header("content-type", "application/octet-stream");
        let response = request.body(vec![b'x'; FILLER_BYTES]).send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        assert!(matches!(status, 200 | 503 | 507), "{status}: {text}");
        if status == 507 {
            return;
        }
    }
}

async fn delete(http: &Client, node: &Node, topic: &str) {
    let url = format!("{}/v1/topics/{topic}", node.url());
    let response = http.delete(url).send().await.unwrap();
    assert_eq!(response.status(), 204, "{}", response.text().await.unwrap());
}

/// Waits until the condition of an answer from the node is so.
async fn wait_for(http: &Client, url: String, is_so: impl Fn(u16, &str) -> bool) {
    let look = async {
        loop {
            let response = http.get(&url).send().await.unwrap();
            let status = response.status().as_u16();
            if is_so(status, &response.text().await.unwrap()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.expect("it is never so");
}

/// Kills the node, and checks that everything is there and writable on the next one.
async fn kill_and_check(http: &Client, setup: &Setup<'_>, node: Node, load: Load, target: &Target) {
    tokio::task::spawn_blocking(move || node.kill()).await.unwrap();
    load.finish().await;
    let node = setup.start();
    target.verify(http, node.url()).await;
    let mut load = Load::start(node.url(), "after", target, &mut seeded());
    load.wait_until(|answered| answered.acked >= 100).await;
    node.terminate();
    load.finish().await;
    node.ended();
    let node = setup.start();
    target.verify(http, node.url()).await;
    wait_for(http, format!("{}/readyz", node.url()), |status, text| {
        status == 200 && !text.contains("away") && !text.contains("behind")
    })
    .await;
    node.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_producers_fill_refuses_and_goes_on_after_a_deletion() {
    let dir = Scratch::new();
    let Some(disks) = disks(dir.path(), &["data"], DISK_MIB) else { return };
    let setup = Setup::new(dir.path(), SETTINGS).data(&disks[0].path().join("data"));
    let (http, target) = (client(), target());
    let node = setup.start();
    create_topics(&http, &node, &target).await;
    let mut load = Load::start(node.url(), "before", &target, &mut seeded());
    load.wait_until(|answered| answered.acked >= 100).await;
    fill_topic(&http, &node, FILLER, 2 * usize::try_from(DISK_MIB << 20).unwrap()).await;
    load.wait_until(|answered| answered.refused >= 100).await;
    let space = rustix::fs::statvfs(disks[0].path()).unwrap();
    assert!(space.f_bavail > 0, "it is refused before the disk is full, not after");
    // Reading goes on; what was acknowledged is there, what was refused is not.
    target.verify(&http, node.url()).await;
    let before = load.answered();
    delete(&http, &node, FILLER).await;
    load.wait_until(|answered| answered.acked >= before.acked + 500).await;
    target.verify(&http, node.url()).await;
    kill_and_check(&http, &setup, node, load, &target).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_others_fill_to_the_last_byte_loses_nothing_and_takes_a_start() {
    let dir = Scratch::new();
    let Some(disks) = disks(dir.path(), &["data"], DISK_MIB) else { return };
    let setup = Setup::new(dir.path(), SETTINGS).data(&disks[0].path().join("data"));
    let (http, target) = (client(), target());
    let node = setup.start();
    create_topics(&http, &node, &target).await;
    fill_topic(&http, &node, FILLER, 32 << 20).await;
    let mut load = Load::start(node.url(), "before", &target, &mut seeded());
    load.wait_until(|answered| answered.acked >= 1_000).await;
    let others = disks[0].fill("others");
    load.wait_until(|answered| answered.refused >= 200).await;
    // Nothing is left at all, not even the ballast; reading and deleting do without.
    let more = disks[0].fill("more of others");
    target.verify(&http, node.url()).await;
    // It starts on a disk that is still full: otherwise nothing could be deleted from it.
    tokio::task::spawn_blocking(move || node.kill()).await.unwrap();
    load.finish().await;
    let node = setup.start();
    target.verify(&http, node.url()).await;
    let mut load = Load::start(node.url(), "between", &target, &mut seeded());
    load.wait_until(|answered| answered.refused >= 200).await;
    delete(&http, &node, FILLER).await;
    let before = load.answered();
    [others, more].into_iter().for_each(|path| std::fs::remove_file(path).unwrap());
    load.wait_until(|answered| answered.acked >= before.acked + 500).await;
    target.verify(&http, node.url()).await;
    kill_and_check(&http, &setup, node, load, &target).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_frees_a_full_disk() {
    let dir = Scratch::new();
    let Some(disks) = disks(dir.path(), &["data"], DISK_MIB) else { return };
    let setup = Setup::new(dir.path(), SETTINGS).data(&disks[0].path().join("data"));
    let (http, target) = (client(), target());
    let node = setup.start();
    create_topics(&http, &node, &target).await;
    let configs = serde_json::json!({"segment.bytes": 1_048_576, "retention.ms": 4_000});
    let body = serde_json::json!({"partitions": PARTITIONS, "configs": configs});
    create(&http, node.url(), "short", body).await;
    fill_topic(&http, &node, "short", 24 << 20).await;
    let mut load = Load::start(node.url(), "before", &target, &mut seeded());
    load.wait_until(|answered| answered.acked >= 100).await;
    disks[0].fill("others");
    load.wait_until(|answered| answered.refused >= 100).await;
    // Nobody makes room but the node itself: what is too old goes.
    let before = load.answered();
    load.wait_until(|answered| answered.acked >= before.acked + 500).await;
    kill_and_check(&http, &setup, node, load, &target).await;
}
