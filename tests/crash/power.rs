//! Power cuts: the node's disk is copied while the node stands still in the middle of its work,
//! without what the kernel has not written yet, and a node is started on the copy.

use std::path::Path;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use crate::client::{client, create};
use crate::image::{Image, disks};
use crate::load::{Load, PARTITIONS, Target, from_environment, seeded};
use crate::node::{Node, Scratch, Setup};

/// Power cuts of each test.
const ROUNDS: u64 = 5;
const DISK_MIB: u64 = 256;
/// Records acknowledged in one round before the cut, at most.
const ACKED_MAX: u64 = 2_500;
/// Small files, so that cuts meet rolling, recycling, checkpoints and purging.
const SETTINGS: &[&str] = &["wal.file_bytes=1 MiB", "wal.max_bytes=2 MiB", "shards.count=2"];
/// A file that is written to each disk right before a cut, and never synced.
const UNSYNCED: &str = "unsynced";
const UNSYNCED_BYTES: usize = 256 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn everything_acknowledged_survives_power_cuts() {
    cut_power_again_and_again(&["data"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_acknowledged_survives_power_cuts_with_the_log_on_a_disk_of_its_own() {
    cut_power_again_and_again(&["data", "wal"]).await;
}

async fn cut_power_again_and_again(names: &[&str]) {
    let dir = Scratch::new();
    let Some(mut disks) = disks(dir.path(), names, DISK_MIB) else { return };
    let rounds = from_environment("EDDYLINE_CUT_ROUNDS").unwrap_or(ROUNDS);
    let mut random = seeded();
    let target = Target::new("power");
    let http = client();
    let node = start(dir.path(), &disks);
    let configs = serde_json::json!({"segment.bytes": 65536});
    let body = serde_json::json!({"partitions": PARTITIONS, "configs": configs});
    create(&http, node.url(), target.topic, body).await;
    node.stop();
    for round in 0..rounds {
        let node = start(dir.path(), &disks);
        target.verify(&http, node.url()).await;
        disks = work_until_cut(node, disks, (&target, round), &mut random).await;
        for disk in &disks {
            let bytes = std::fs::read(disk.path().join(UNSYNCED)).unwrap_or_default();
            assert!(bytes.len() < UNSYNCED_BYTES, "the cut kept what was never synced");
        }
    }
    let node = start(dir.path(), &disks);
    target.verify(&http, node.url()).await;
    let ready = http.get(format!("{}/readyz", node.url())).send().await.unwrap();
    assert_eq!(ready.status(), 200, "{}", ready.text().await.unwrap());
    node.stop();
    let count = target.promises.lock().count();
    eprintln!("{count} records survived {rounds} power cuts");
    assert!(count as u64 > rounds, "too few records to prove anything: {count}");
}

fn start(logs: &Path, disks: &[Image]) -> Node {
    let setup = Setup::new(logs, SETTINGS).data(&disks[0].path().join("data"));
    match disks.get(1) {
        Some(disk) => setup.set("wal_dir", disk.path().join("wal").display()).start(),
        None => setup.start(),
    }
}

/// Runs producers and a reader, cuts the power at a random moment, and returns the disks as the
/// cut leaves them.
async fn work_until_cut(
    node: Node,
    disks: Vec<Image>,
    (target, round): (&Target, u64),
    random: &mut StdRng,
) -> Vec<Image> {
    let mut load = Load::start(node.url(), &round.to_string(), target, random);
    let enough = random.random_range(1..ACKED_MAX);
    load.wait_until(|answered| answered.acked >= enough).await;
    // An acknowledgement is always just behind a sync; the cut may come at any other moment.
    tokio::time::sleep(Duration::from_micros(random.random_range(0..5_000))).await;
    let cut = move || {
        node.pause();
        for disk in &disks {
            std::fs::write(disk.path().join(UNSYNCED), vec![1; UNSYNCED_BYTES]).unwrap();
        }
        let copies: Vec<_> = disks.iter().map(Image::as_power_cut_leaves_it).collect();
        node.kill();
        disks.into_iter().zip(copies).map(|(disk, copy)| disk.replace(&copy)).collect()
    };
    let disks = tokio::task::spawn_blocking(cut).await.unwrap();
    load.finish().await;
    disks
}
