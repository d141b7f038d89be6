//! What a node refuses to start on: nothing on its disk is changed then, since what is left may be
//! all that there is.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::client::{client, create, records_url};
use crate::node::{Node, Scratch, Setup, wait_until};

/// A small log, so that a few megabytes have it purged.
const SETTINGS: &[&str] = &["shards.count=1", "wal.file_bytes=1 MiB", "wal.max_bytes=2 MiB"];
const RECORD_BYTES: usize = 256 << 10;

/// The bytes of all files below the directories that hold data.
fn contents(data: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut directories: Vec<_> =
        ["partitions", "shards", "wal"].map(|name| data.join(name)).into();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                files.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
    }
    files
}

fn segments(data: &Path) -> usize {
    let is_log = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "log");
    contents(data).into_keys().filter(is_log).count()
}

/// A node with a topic of small segments.
async fn start(dir: &Path) -> Node {
    let node = Node::start(dir, SETTINGS);
    let configs = serde_json::json!({"segment.bytes": 1_048_576});
    let body = serde_json::json!({"partitions": 1, "configs": configs});
    create(&client(), node.url(), "kept", body).await;
    node
}

async fn produce(node: &Node, records: usize) {
    let http = client();
    let mut written = 0;
    while written < records {
        let request = http.post(records_url(node.url(), "kept"));
        let request = request.header("content-type", "application/octet-stream");
        let response = request.body(vec![b'x'; RECORD_BYTES]).send().await.unwrap();
        // A log that is full to its bound is freed by a checkpoint soon.
        assert!(matches!(response.status().as_u16(), 200 | 507), "{}", response.status());
        written += usize::from(response.status() == 200);
    }
}

/// Checks that a node does not start, says why, and leaves everything as it was.
fn check_refused(dir: &Path, why: &str) {
    let data = dir.join("data");
    let before = contents(&data);
    let (code, log) = Setup::new(dir, SETTINGS).spawn().refused();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains(why), "{log}");
    let after = contents(&data);
    assert!(before.keys().eq(after.keys()), "{:?} {:?}", before.keys(), after.keys());
    assert!(before == after, "files were changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_without_its_checkpoint_is_refused_once_its_log_was_purged() {
    let dir = Scratch::new();
    let data = dir.path().join("data");
    let node = start(dir.path()).await;
    produce(&node, 40).await;
    let first = data.join("wal/00000000000000000001.wal");
    wait_until("the log is purged", || !first.exists());
    node.stop();
    assert!(segments(&data) > 5, "most records are in segments alone");
    for remove in [false, true] {
        let shard = data.join("shards/1");
        fs::remove_dir_all(&shard).unwrap();
        if !remove {
            fs::create_dir(&shard).unwrap();
        }
        check_refused(dir.path(), "its checkpoint is missing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_that_no_checkpoint_names_stay_while_the_log_is_damaged() {
    let dir = Scratch::new();
    let data = dir.path().join("data");
    let node = start(dir.path()).await;
    produce(&node, 6).await;
    wait_until("the records are in segments", || segments(&data) >= 2);
    node.kill();
    // An entry of the first file, which others follow: not the end of the log.
    let mut files = contents(&data).into_keys();
    let path = files.find(|path| path.extension().is_some_and(|name| name == "wal")).unwrap();
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let (mut byte, at) = ([0], u64::try_from(RECORD_BYTES * 3 / 2).unwrap());
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    check_refused(dir.path(), "the log is damaged");
    assert!(segments(&data) >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_of_which_neither_log_nor_checkpoint_knows_are_not_removed() {
    let dir = Scratch::new();
    let data = dir.path().join("data");
    let node = start(dir.path()).await;
    produce(&node, 6).await;
    node.stop();
    for lost in ["shards", "wal"] {
        fs::remove_dir_all(data.join(lost)).unwrap();
    }
    let before = segments(&data);
    let (code, log) = Setup::new(dir.path(), SETTINGS).spawn().refused();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("there are no checkpoints"), "{log}");
    let (code, _) = Setup::new(dir.path(), SETTINGS).spawn().refused();
    assert_eq!(
        (code, segments(&data)),
        (Some(1), before),
        "the log of the last attempt is new, too"
    );
}
