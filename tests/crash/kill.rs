//! SIGKILL at random moments, and everything that was promised checked after every restart.

use std::time::Duration;

use rand::RngExt;

use crate::client::{client, create};
use crate::load::{Load, PARTITIONS, Target, from_environment, seeded};
use crate::node::{Node, Scratch, Starting};

const ROUNDS: u64 = 30;
/// Records acknowledged in one round before the node is killed, at most.
const ACKED_MAX: u64 = 1_200;

/// Small files, so that kills meet rolling, recycling, checkpoints and purging.
const SETTINGS: &[&str] = &["wal.file_bytes=1 MiB", "wal.max_bytes=3 MiB", "shards.count=2"];

#[tokio::test(flavor = "multi_thread")]
async fn everything_acknowledged_survives_kill_9_at_any_moment() {
    let rounds = from_environment("EDDYLINE_CRASH_ROUNDS").unwrap_or(ROUNDS);
    let mut random = seeded();
    let dir = Scratch::new();
    let target = Target::new("crash");
    let http = client();
    let node = Node::start(dir.path(), SETTINGS);
    let configs = serde_json::json!({"segment.bytes": 65536});
    let body = serde_json::json!({"partitions": PARTITIONS, "configs": configs});
    create(&http, node.url(), target.topic, body).await;
    node.stop();
    for round in 0..rounds {
        if random.random_range(0..4) == 0 {
            // Recovery itself may be killed at any moment.
            let at = Duration::from_millis(random.random_range(1..300));
            Starting::spawn(dir.path(), SETTINGS).kill_within(at);
        }
        let node = Node::start(dir.path(), SETTINGS);
        target.verify(&http, node.url()).await;
        let mut load = Load::start(node.url(), &round.to_string(), &target, &mut random);
        let enough = random.random_range(1..ACKED_MAX);
        load.wait_until(|answered| answered.acked >= enough).await;
        tokio::task::spawn_blocking(move || node.kill()).await.unwrap();
        load.finish().await;
    }
    for _ in 0..2 {
        let node = Node::start(dir.path(), SETTINGS);
        target.verify(&http, node.url()).await;
        node.stop();
    }
    let count = target.promises.lock().count();
    eprintln!("{count} records survived {rounds} kills");
    assert!(count as u64 > rounds, "too few records to prove anything: {count}");
}
