//! A write-ahead log belongs to one node: another one that is pointed at it does not touch it,
//! whether its owner runs or not.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::client::{client, create, read_partition, records_url};
use crate::node::{Node, Scratch, Setup};

const SETTINGS: &[&str] = &["shards.count=1", "wal.file_bytes=1 MiB", "wal.max_bytes=2 MiB"];
const TOPIC: &str = "owned";
const MARK: &str = "owner.json";

/// A node by its name: its data and what it logs are in a directory of their own.
fn named<'a>(home: &'a Path, wal: Option<&Path>) -> Setup<'a> {
    fs::create_dir_all(home).unwrap();
    let setup = Setup::new(home, SETTINGS);
    match wal {
        Some(wal) => setup.set("wal_dir", wal.display()),
        None => setup,
    }
}

/// Writes some records, each acknowledged.
async fn produce(node: &Node, values: std::ops::Range<u64>) {
    let http = client();
    for value in values {
        let request = http.post(records_url(node.url(), TOPIC));
        let response = request.json(&json!({"value": value})).send().await.unwrap();
        assert_eq!(response.status(), 200);
    }
}

/// Checks that a node has all records, and stops it.
async fn check_and_stop(node: Node, records: u64) {
    let found = read_partition(&client(), node.url(), TOPIC, 0).await;
    let values: Vec<String> = found.iter().map(|record| record.value.get().to_owned()).collect();
    let expected: Vec<String> = (0..records).map(|value| value.to_string()).collect();
    assert_eq!(values, expected);
    node.stop();
}

fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Checks that a node is refused for the sake of a log, in words that name log and node.
fn check_refused(setup: &Setup<'_>, why: &str, wal: &Path, home: &Path) {
    let (code, log) = setup.spawn().refused();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains(why), "{log}");
    let data = home.join("data");
    for named in [wal, &data] {
        assert!(log.contains(named.to_str().unwrap()), "{} is not named: {log}", named.display());
    }
}

/// The second node's recovery copied the log's last file and unlinked it: all that the first one
/// acknowledged from then on was in a file without a name.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_in_use_is_not_taken_by_another_node() {
    for elsewhere in [true, false] {
        let dir = Scratch::new();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let wal = if elsewhere { dir.path().join("wal") } else { a.join("data/wal") };
        let first = named(&a, elsewhere.then_some(wal.as_path()));
        let node = first.start();
        create(&client(), node.url(), TOPIC, json!({"partitions": 1})).await;
        produce(&node, 0..10).await;
        check_refused(&named(&b, Some(&wal)), "is in use by another process", &wal, &b);
        produce(&node, 10..20).await;
        node.kill();
        check_and_stop(first.start(), 20).await;
    }
}

/// Replica ids are alike on all nodes: the entries of another one's log pass for one's own.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_another_node_is_refused_and_left_as_it_is() {
    let dir = Scratch::new();
    let (a, b, c) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("c"));
    let wal = dir.path().join("wal");
    let first = named(&a, Some(&wal));
    let node = first.start();
    create(&client(), node.url(), TOPIC, json!({"partitions": 1})).await;
    produce(&node, 0..10).await;
    node.kill();
    // One that has data of its own, and a new one.
    named(&b, None).start().stop();
    let before = contents(&wal);
    for other in [&b, &c] {
        check_refused(&named(other, Some(&wal)), "has the write-ahead log of node 1", &wal, other);
        assert!(contents(&wal) == before, "the log was changed");
    }
    check_and_stop(first.start(), 10).await;
}

/// Earlier versions wrote no mark.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_without_a_mark_is_taken_where_it_always_was_and_nowhere_else() {
    let dir = Scratch::new();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let setup = named(&a, None);
    let node = setup.start();
    create(&client(), node.url(), TOPIC, json!({"partitions": 1})).await;
    produce(&node, 0..10).await;
    node.kill();
    let own = a.join("data/wal");
    let mark = fs::read(own.join(MARK)).unwrap();
    fs::remove_file(own.join(MARK)).unwrap();
    let before = contents(&own);
    for _ in 0..2 {
        check_refused(&named(&b, Some(&own)), "does not say whose", &own, &b);
        assert!(contents(&own) == before, "the log was changed");
    }
    let node = setup.start();
    assert_eq!(fs::read(own.join(MARK)).unwrap(), mark, "marked from now on");
    node.stop();

    // Moved to another disk by hand, without the mark: the refusal says how to go on.
    fs::remove_file(own.join(MARK)).unwrap();
    let moved = dir.path().join("moved");
    fs::rename(&own, &moved).unwrap();
    let setup = named(&a, Some(&moved));
    check_refused(&setup, std::str::from_utf8(&mark).unwrap(), &moved, &a);
    fs::write(moved.join(MARK), &mark).unwrap();
    check_and_stop(setup.start(), 10).await;
}
