//! The files of a node that was killed, cut and changed byte by byte before it is started again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use eddyline::storage::fs::RealFs;
use eddyline::storage::wal::{Config, NoObserver, Wal};
use eddyline::types::ReplicaId;

use crate::client::{client, create, read_partition, records_url};
use crate::inside::Inside;
use crate::node::{Node, Scratch, Setup, without_own_settings};

const SETTINGS: &[&str] = &["shards.count=1", "wal.file_bytes=1 MiB", "wal.max_bytes=2 MiB"];
const TOPIC: &str = "damaged";
/// The replica of the only data shard.
const REPLICA: ReplicaId = ReplicaId::new(2);
/// Every byte is cut at below the server, every so many with a whole server on top.
const SERVER_EVERY: u64 = 23;

async fn produce(node: &Node, values: std::ops::Range<u64>) {
    let http = client();
    for value in values {
        let request = http.post(records_url(node.url(), TOPIC));
        let response = request.json(&serde_json::json!({"value": value})).send().await.unwrap();
        assert_eq!(response.status(), 200);
    }
}

/// A node's directory after `kill -9`, with one record a request and nothing after it.
async fn killed_with(dir: &Path, records: u64) {
    let node = Node::start(dir, SETTINGS);
    create(&client(), node.url(), TOPIC, serde_json::json!({"partitions": 1})).await;
    produce(&node, 0..records).await;
    node.kill();
}

/// A frame as `eddyline wal dump` lists it.
#[derive(Debug, Clone)]
struct Frame {
    file: String,
    position: u64,
    what: String,
}

fn wal_dump(wal: &Path, flags: &[&str]) -> Vec<Frame> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eddyline"));
    without_own_settings(&mut command);
    let output = command.args(["wal", "dump"]).arg(wal).args(flags).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let frame = |line: &str| {
        let (file, rest) = line.split_once(' ')?;
        let (position, what) = rest.split_once(' ')?;
        let (file, what) = (file.to_owned(), what.to_owned());
        Some(Frame { file, position: position.parse().ok()?, what })
    };
    text.lines().filter_map(frame).collect()
}

fn is_data(frame: &Frame) -> bool {
    frame.what.contains(&format!("Entry replica={REPLICA} "))
}

/// Copies a directory with all below it.
fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}

fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_torn_at_any_byte_of_its_last_round_keeps_every_round_before() {
    const RECORDS: u64 = 20;
    let dir = Scratch::new();
    killed_with(dir.path(), RECORDS).await;
    let (data, torn) = (dir.path().join("data"), dir.path().join("torn"));
    let frames = wal_dump(&data.join("wal"), &[]);
    let last = frames.iter().rfind(|frame| is_data(frame)).unwrap().clone();
    let end = frames.iter().rfind(|frame| frame.file == last.file).unwrap().position;
    assert!(end > last.position, "the end of the log is listed: {frames:?}");
    let floors = BTreeMap::new();
    let config = Config { file_bytes: 1 << 20, max_bytes: 2 << 20, ..Config::default() };
    let whole = {
        copy(&data, &torn);
        let wal = torn.join("wal");
        Wal::open(RealFs::shared(), &wal, config, &floors, Arc::new(NoObserver)).unwrap().1
    };
    let whole = whole.replicas[&REPLICA].last.unwrap().index.get();
    for cut in last.position..end {
        copy(&data, &torn);
        let file = fs::OpenOptions::new().write(true).open(torn.join("wal").join(&last.file));
        let file = file.unwrap();
        let length = file.metadata().unwrap().len();
        if cut % 2 == 0 {
            file.set_len(cut).unwrap();
        } else {
            // The rest of the file as it was before: filled in advance.
            let zeros = vec![0; usize::try_from(length - cut).unwrap()];
            file.write_all_at(&zeros, cut).unwrap();
        }
        if cut % SERVER_EVERY == 0 {
            let server = Inside::start(RealFs::shared(), &torn, SETTINGS).await;
            let server = server.unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
            let records = read_partition(&client(), server.url(), TOPIC, 0).await;
            assert!(records.len() as u64 >= RECORDS - 1, "{} at {cut}", records.len());
            for (value, record) in (0u64..).zip(&records) {
                assert_eq!(record.value.get(), value.to_string());
            }
            server.stop().await;
        } else {
            let wal = torn.join("wal");
            let opened = Wal::open(RealFs::shared(), &wal, config, &floors, Arc::new(NoObserver));
            let (_, recovery) = opened.unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
            let found = recovery.replicas[&REPLICA].last.unwrap().index.get();
            assert!(found + 1 >= whole && found <= whole, "{found} of {whole} at {cut}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_the_middle_of_the_log_is_refused_named_and_left_as_it_is() {
    let dir = Scratch::new();
    killed_with(dir.path(), 30).await;
    let wal = dir.path().join("data/wal");
    let frames: Vec<Frame> = wal_dump(&wal, &[]).into_iter().filter(is_data).collect();
    let middle = &frames[frames.len() / 2];
    let path = wal.join(&middle.file);
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let at = middle.position + 60;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    let before = contents(&wal);
    let (code, log) = Setup::new(dir.path(), SETTINGS).spawn().refused();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains(&middle.file), "the file is named: {log}");
    assert!(log.contains(&format!("at byte {}", middle.position)), "and the place: {log}");
    assert!(contents(&wal) == before, "a damaged log is not changed");
    let stopped = wal_dump(&wal, &[]);
    assert!(stopped.iter().any(|f| f.what.starts_with("damaged")), "{stopped:?}");
    let salvaged: Vec<Frame> = wal_dump(&wal, &["--salvage"]).into_iter().filter(is_data).collect();
    assert_eq!(salvaged.len(), frames.len() - 1, "all but the damaged one");
    assert!(stopped.iter().filter(|frame| is_data(frame)).count() < salvaged.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_active_segment_is_made_whole_from_the_log_wherever_it_ends() {
    let dir = Scratch::new();
    let node = Node::start(dir.path(), SETTINGS);
    create(&client(), node.url(), TOPIC, serde_json::json!({"partitions": 1})).await;
    produce(&node, 0..5).await;
    node.stop();
    let (data, torn) = (dir.path().join("data"), dir.path().join("torn"));
    let topic = fs::read_dir(data.join("partitions")).unwrap().next().unwrap().unwrap();
    let segment = Path::new("partitions").join(topic.file_name());
    let segment = segment.join("0/00000000000000000000.log");
    let checkpointed = fs::metadata(data.join(&segment)).unwrap().len();
    let node = Node::start(dir.path(), SETTINGS);
    produce(&node, 5..8).await;
    let flushed = || fs::metadata(data.join(&segment)).unwrap().len() >= checkpointed * 8 / 5;
    crate::node::wait_until("the segment is written", flushed);
    node.kill();
    let end = fs::metadata(data.join(&segment)).unwrap().len();
    for cut in (checkpointed..=end).step_by(9) {
        copy(&data, &torn);
        let file = fs::OpenOptions::new().write(true).open(torn.join(&segment)).unwrap();
        file.set_len(cut).unwrap();
        match cut % 3 {
            0 => file.write_all_at(&[0; 300], cut).unwrap(),
            1 => file.write_all_at(b"what was on the disk before", cut).unwrap(),
            _ => {}
        }
        let server = Inside::start(RealFs::shared(), &torn, SETTINGS).await.unwrap();
        let records = read_partition(&client(), server.url(), TOPIC, 0).await;
        let values: Vec<String> = records.iter().map(|r| r.value.get().to_owned()).collect();
        assert_eq!(values, ["0", "1", "2", "3", "4", "5", "6", "7"], "cut at {cut}");
        server.stop().await;
    }
    // What a checkpoint covers is not in the log any more: its loss is damage, and said so.
    copy(&data, &torn);
    let file = fs::OpenOptions::new().write(true).open(torn.join(&segment)).unwrap();
    file.set_len(checkpointed - 1).unwrap();
    let server = Inside::start(RealFs::shared(), &torn, SETTINGS).await.unwrap();
    let url = format!("{}?partition=0&offset=0", records_url(server.url(), TOPIC));
    let answer = client().get(url).send().await.unwrap();
    let status = answer.status();
    let text = answer.text().await.unwrap();
    assert!(status == 503 || !text.contains("\"offset\":4"), "{status}: {text}");
    let ready = client().get(format!("{}/readyz", server.url())).send().await.unwrap();
    assert_eq!(ready.status(), 503);
    server.stop().await;
}
