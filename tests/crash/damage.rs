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

/// Runs a command of the binary; returns its exit code, what it printed and what it said.
fn run(words: &[&str], path: &Path, flags: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eddyline"));
    without_own_settings(&mut command);
    let output = command.args(words).arg(path).args(flags).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn wal_dump(wal: &Path, flags: &[&str], expected: i32) -> Vec<Frame> {
    let (code, text, errors) = run(&["wal", "dump"], wal, flags);
    assert_eq!(code, Some(expected), "{errors}");
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
    let frames = wal_dump(&data.join("wal"), &[], 0);
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
    let frames: Vec<Frame> = wal_dump(&wal, &[], 0).into_iter().filter(is_data).collect();
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
    assert!(log.contains("eddyline wal dump --salvage --records"), "what to do next: {log}");
    let stopped = wal_dump(&wal, &[], 1);
    assert!(stopped.iter().any(|f| f.what.starts_with("damaged")), "{stopped:?}");
    let salvaged = wal_dump(&wal, &["--salvage"], 1);
    let salvaged: Vec<Frame> = salvaged.into_iter().filter(is_data).collect();
    assert_eq!(salvaged.len(), frames.len() - 1, "all but the damaged one");
    assert!(stopped.iter().filter(|frame| is_data(frame)).count() < salvaged.len());
}

/// Some of any kind, so that each must come back byte for byte.
fn any_kind(n: u64) -> (Vec<u8>, String) {
    let value = match n % 4 {
        0 => format!("{{ \"n\":{n} }}").into_bytes(),
        1 => format!("text {n} \u{e9}\n\"").into_bytes(),
        2 => vec![0xff, 0, u8::try_from(n).unwrap()],
        _ => Vec::new(),
    };
    (value, format!("key-{n}"))
}

/// All values of a topic by their keys.
async fn by_key(url: &str, topic: &str) -> BTreeMap<String, serde_json::Value> {
    let url = format!("{}?format=base64&limit=10000", records_url(url, topic));
    let text = client().get(url).send().await.unwrap().text().await.unwrap();
    let page: serde_json::Value = serde_json::from_str(&text).unwrap();
    let records = page["records"].as_array().unwrap().iter();
    let pair = |record: &serde_json::Value| {
        let rest = serde_json::json!([record["value"], record["headers"], record["timestamp"]]);
        (record["key"].as_str().unwrap().to_owned(), rest)
    };
    records.map(pair).collect()
}

/// What README.md says under "When the log is damaged".
#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_read_of_a_damaged_node_can_be_fed_to_a_new_one() {
    const RECORDS: u64 = 40;
    let dir = Scratch::new();
    let (data, wal) = (dir.path().join("data"), dir.path().join("data/wal"));
    let node = Node::start(dir.path(), SETTINGS);
    let http = client();
    create(&http, node.url(), TOPIC, serde_json::json!({"partitions": 2})).await;
    for n in 0..RECORDS {
        let (value, key) = any_kind(n);
        let url = format!("{}?partition={}&key={key}", records_url(node.url(), TOPIC), n % 2);
        let request = http.post(url).body(value);
        let request = request.header("content-type", "application/octet-stream");
        let request = request.header("eddyline-header", format!("n={n}"));
        assert_eq!(request.send().await.unwrap().status(), 200);
    }
    let before = by_key(node.url(), TOPIC).await;
    let segments = || run(&["segment", "dump"], &data, &["--records"]).1;
    crate::node::wait_until("all is in segments", || segments().lines().count() == 40);
    node.kill();
    let frames: Vec<Frame> = wal_dump(&data, &[], 0).into_iter().filter(is_data).collect();
    let damaged = &frames[frames.len() - 15];
    let file = fs::OpenOptions::new().read(true).write(true).open(wal.join(&damaged.file));
    let (file, at, mut byte) = (file.unwrap(), damaged.position + 110, [0]);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    assert_eq!(Setup::new(dir.path(), SETTINGS).spawn().refused().0, Some(1));

    let (code, log, errors) = run(&["wal", "dump"], &data, &["--salvage", "--records"]);
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("the log is damaged") && errors.contains(&damaged.file), "{errors}");
    assert_eq!(log.lines().count() as u64, RECORDS - 1, "all but the damaged one: {log}");
    let (code, kept, errors) = run(&["segment", "dump"], &data, &["--records"]);
    assert_eq!(code, Some(0), "{errors}");
    let id = fs::read_dir(data.join("partitions")).unwrap().next().unwrap().unwrap().file_name();
    let start = format!("{{\"topic\":\"{}\",\"partition\":", id.to_str().unwrap());
    assert!(log.lines().chain(kept.lines()).all(|line| line.starts_with(&start)), "{log}{kept}");

    let fresh = dir.path().join("fresh");
    fs::create_dir(&fresh).unwrap();
    let node = Node::start(&fresh, SETTINGS);
    for (topic, lines) in [("log", log.clone()), ("both", kept + &log)] {
        create(&http, node.url(), topic, serde_json::json!({"partitions": 2})).await;
        let path = fresh.join(topic);
        fs::write(&path, lines).unwrap();
        let (code, _, errors) = run(&["produce", topic], &path, &["--url", node.url()]);
        assert_eq!(code, Some(0), "{errors}");
    }
    let (log, both) = (by_key(node.url(), "log").await, by_key(node.url(), "both").await);
    assert_eq!(both, before, "nothing that can be read is lost");
    assert_eq!(log.len() as u64, RECORDS - 1);
    assert!(log.iter().all(|(key, record)| before[key] == *record), "{log:?} {before:?}");
    node.stop();
    // What a checkpoint covers is in segments for sure, and is not printed twice.
    let (data, wal) = (fresh.join("data"), fresh.join("data/wal"));
    let printed = |path: &Path, flags: &[&str]| {
        let (code, lines, errors) = run(&["wal", "dump", "--salvage", "--records"], path, flags);
        assert_eq!(code, Some(0), "{errors}");
        lines.lines().count() as u64
    };
    assert_eq!(printed(&data, &[]), 0);
    assert_eq!(printed(&wal, &["--data-dir", data.to_str().unwrap()]), 0);
    assert_eq!(printed(&wal, &[]), 3 * RECORDS - 2);
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
