//! The commands as people and scripts run them: the real binary against a server. What it prints
//! where, and how it ends, is what scripts rely on.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use reqwest::Method;
use rustix::pty::OpenptFlags;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

use crate::damage;
use crate::support::{Reply, Server, eventually};
use crate::v1_read::huge_cursor;

/// Longest time that a command may take; far more than it needs.
const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const OK: i32 = 0;
pub(crate) const FAILURE: i32 = 1;
pub(crate) const USAGE: i32 = 64;

/// How a command ended and what it said.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// Checks that it did what it was asked for, and returns what it printed.
    fn good(self) -> String {
        assert_eq!(self.code, OK, "{self:?}");
        self.out
    }
}

/// Prepares a command that talks to `url` and that nothing of this process's environment changes.
fn command<S: AsRef<OsStr>>(url: &str, words: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eddyline"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("EDDYLINE_") {
            command.env_remove(name);
        }
    }
    command.args(words).env("EDDYLINE_URL", url).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn end(child: Child) -> Ran {
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output());
    let output = output.await.expect("the command hangs").unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

pub(crate) async fn run<S: AsRef<OsStr>>(url: &str, words: &[S]) -> Ran {
    end(command(url, words).spawn().unwrap()).await
}

async fn run_with_input(url: &str, words: &[&str], input: &str) -> Ran {
    let mut child = command(url, words).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    end(child).await
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// Lines of `{"key":"k<n>","value":<n>}`.
fn records(numbers: std::ops::Range<u32>) -> String {
    numbers.map(|n| format!("{{\"key\":\"k{n}\",\"value\":{n}}}\n")).collect()
}

async fn count(server: &Server, topic: &str) -> u64 {
    let shown = Reply::of(server.request(Method::GET, &format!("/v1/topics/{topic}"))).await.json();
    let ends = shown["details"].as_array().unwrap().iter();
    ends.map(|part| part["log_end_offset"].as_u64().unwrap()).sum()
}

#[tokio::test]
async fn topics_are_created_confirmed_listed_described_and_deleted() {
    let server = Server::start().await;
    let url = server.url();
    let create = ["topic", "create", "a.one", "-p", "3", "--config", "retention.ms=60000"];
    assert_eq!(run(url, &create).await.good(), "created a.one with 3 partitions\n");
    assert_eq!(run(url, &create).await.good(), "exists a.one with 3 partitions\n");
    let other = run(url, &["topic", "create", "a.one", "-p", "4"]).await;
    assert_eq!((other.code, other.out.as_str()), (FAILURE, ""));
    assert!(other.err.starts_with("error: topic_exists: "), "{other:?}");
    run(url, &["topic", "create", "b"]).await.good();
    assert_eq!(run(url, &["topic", "list"]).await.good(), "a.one\t3\t1\nb\t4\t1\n");
    assert_eq!(run(url, &["topic", "list", "--prefix", "a."]).await.good(), "a.one\t3\t1\n");
    run_with_input(url, &["produce", "a.one"], &records(0..5)).await.good();
    let described = run(url, &["topic", "describe", "a.one"]).await.good();
    assert!(described.contains("config              retention.ms=60000\n"), "{described}");
    let table = described.split_once("bytes\n").unwrap().1;
    let ends = table.lines().map(|row| row.split_whitespace().nth(3).unwrap());
    assert_eq!(ends.map(|end| end.parse::<u64>().unwrap()).sum::<u64>(), 5, "{described}");
    assert_eq!(run(url, &["topic", "delete", "a.one"]).await.good(), "deleted a.one\n");
    let gone = run(url, &["topic", "describe", "a.one"]).await;
    assert_eq!(gone.code, FAILURE);
    assert!(gone.err.starts_with("error: topic_not_found: "), "{gone:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_pipe_carries_data_and_nothing_else() {
    let server = Server::start().await;
    let url = server.url();
    let produced = run_with_input(url, &["produce", "t"], &records(0..1000)).await;
    assert_eq!((produced.code, produced.out.as_str()), (OK, ""), "{produced:?}");
    assert!(produced.err.starts_with("1000 records, "), "{produced:?}");
    assert_eq!(produced.err.lines().count(), 1, "no bar where nobody watches: {produced:?}");
    assert!(!produced.err.contains('\x1b'), "{produced:?}");

    let consumed = run(url, &["consume", "t"]).await;
    assert_eq!((consumed.code, consumed.err.as_str()), (OK, ""), "{consumed:?}");
    let mut seen: Vec<u64> =
        lines(&consumed.out).iter().map(|record| record["value"].as_u64().unwrap()).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..1000).collect::<Vec<_>>());

    let reports = run_with_input(url, &["produce", "t", "--reports"], &records(0..3)).await;
    let reports = lines(&reports.good());
    assert_eq!(reports.len(), 3);
    assert!(reports.iter().all(|report| report["offset"].is_u64()), "{reports:?}");
    server.stop().await;
}

#[tokio::test]
async fn files_are_read_in_turn_packed_or_not_and_a_dash_is_standard_input() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (plain, packed) = (dir.path().join("plain.ndjson"), dir.path().join("packed.gz"));
    // No line end at the end, and blank lines: still one record a line.
    std::fs::write(&plain, format!("\n{}", records(0..3).trim_end())).unwrap();
    let file = File::create(&packed).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    gzip.write_all(records(3..6).as_bytes()).unwrap();
    gzip.finish().unwrap();
    run(server.url(), &["topic", "create", "t", "--partitions", "1"]).await.good();
    let words = ["produce", "t", plain.to_str().unwrap(), "-", packed.to_str().unwrap()];
    run_with_input(server.url(), &words, &records(10..12)).await.good();
    let read = run(server.url(), &["consume", "t"]).await.good();
    let values: Vec<_> = lines(&read).iter().map(|record| record["value"].clone()).collect();
    assert_eq!(json!(values), json!([0, 1, 2, 10, 11, 3, 4, 5]));
    server.stop().await;
}

#[tokio::test]
async fn records_that_were_refused_are_told_by_file_and_line() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mixed.ndjson");
    std::fs::write(&path, "{\"value\":1}\n\nnonsense\n{\"value\":2}\n").unwrap();
    let path = path.to_str().unwrap();
    let ran = run(server.url(), &["produce", "t", path]).await;
    assert_eq!((ran.code, ran.out.as_str()), (FAILURE, ""), "{ran:?}");
    assert!(ran.err.contains(&format!("{path}:3: invalid_")), "{ran:?}");
    assert!(ran.err.contains("; 1 failed\n"), "{ran:?}");
    assert_eq!(count(&server, "t").await, 2, "the others are written");
    let ran = run(server.url(), &["produce", "t", path, "/nowhere/at/all"]).await;
    assert_eq!(ran.code, FAILURE);
    assert!(ran.err.contains("error: reading /nowhere/at/all: "), "{ran:?}");
    server.stop().await;
}

#[tokio::test]
async fn reports_that_nobody_reads_keep_no_record_from_being_written() {
    let server = Server::start().await;
    let words = ["produce", "t", "--reports"];
    let mut child = command(server.url(), &words).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdin.write_all(records(0..10).as_bytes()).await.unwrap();
    let mut first = String::new();
    let read = tokio::time::timeout(PATIENCE, stdout.read_line(&mut first)).await;
    read.expect("reports come while the input is open").unwrap();
    assert!(first.contains("\"offset\""), "{first}");
    // As `head -n 1` does.
    drop(stdout);
    stdin.write_all(records(10..20_000).as_bytes()).await.unwrap();
    drop(stdin);
    let ran = end(child).await;
    assert_eq!(ran.code, OK, "all are written and known to be: {ran:?}");
    assert!(ran.err.starts_with("20000 records, "), "{ran:?}");
    assert_eq!(count(&server, "t").await, 20_000);
    server.stop().await;
}

#[tokio::test]
async fn a_connection_that_breaks_leaves_unknown_records_and_an_exit_code_that_says_so() {
    // Takes the request and some of its body, and answers with half of a stream.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let words = ["produce", "t", "--reports"];
    let produced = run_with_input(&url, &words, "{\"value\":1}\n{\"value\":2}\n");
    let broken = async {
        let (mut connection, _) = listener.accept().await.unwrap();
        let report = "{\"partition\":0,\"offset\":0,\"timestamp\":1}\n";
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n";
        let chunk = format!("{:x}\r\n{report}\r\n", report.len());
        let answer = format!("{head}transfer-encoding: chunked\r\n\r\n{chunk}");
        let mut request = Vec::new();
        while !String::from_utf8_lossy(&request).contains("\"value\":2") {
            tokio::io::AsyncReadExt::read_buf(&mut connection, &mut request).await.unwrap();
        }
        connection.write_all(answer.as_bytes()).await.unwrap();
    };
    let (ran, ()) = tokio::join!(produced, broken);
    assert_eq!(ran.code, FAILURE, "{ran:?}");
    assert_eq!(ran.out.lines().count(), 1, "{ran:?}");
    assert!(ran.err.contains("1 records from stdin:2 on have no report"), "{ran:?}");
}

#[tokio::test]
async fn a_reader_that_has_enough_ends_the_command_quietly() {
    let server = Server::start().await;
    run_with_input(server.url(), &["produce", "t"], &records(0..20_000)).await.good();
    let mut child = command(server.url(), &["consume", "t"]).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    stdout.read_line(&mut first).await.unwrap();
    drop(stdout);
    let ran = end(child).await;
    assert_eq!((ran.code, ran.err.as_str()), (OK, ""), "{first}");
    server.stop().await;
}

#[tokio::test]
async fn following_prints_what_comes_and_a_cursor_goes_on_after_it() {
    let server = Server::start().await;
    let url = server.url();
    run(url, &["topic", "create", "t", "-p", "2"]).await.good();
    run_with_input(url, &["produce", "t"], &records(0..2)).await.good();
    let words = ["consume", "t", "--follow", "--limit", "5", "--cursor"];
    let mut following = command(url, &words).spawn().unwrap();
    let mut out = BufReader::new(following.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        out.next_line().await.unwrap().unwrap();
    }
    run_with_input(url, &["produce", "t"], &records(2..8)).await.good();
    for _ in 0..3 {
        out.next_line().await.unwrap().unwrap();
    }
    let ran = end(following).await;
    assert_eq!(ran.code, OK, "{ran:?}");
    let rest = run(url, &["consume", "t", "--from", ran.err.trim()]).await.good();
    assert_eq!(lines(&rest).len(), 3, "{rest}");

    let one = run(url, &["consume", "t", "--key", "k7", "--format", "meta"]).await.good();
    let one = lines(&one);
    assert_eq!((one.len(), &one[0]["key"]), (1, &json!("k7")));
    let mut both = 0;
    for partition in ["0", "1"] {
        let part = run(url, &["consume", "t", "--partition", partition]).await.good();
        both += lines(&part).len();
    }
    assert_eq!(both, 8);
    server.stop().await;
}

/// A cursor was asked for in the address, which has no room for that of a large topic in which much
/// was written: the command failed after the first page.
#[tokio::test]
async fn a_very_large_topic_is_read_on_from_its_cursor() {
    let server = Server::start().await;
    let url = server.url();
    run(url, &["topic", "create", "t", "-p", "10000"]).await.good();
    let topic = Reply::of(server.request(Method::GET, "/v1/topics?prefix=t")).await.json();
    let cursor = huge_cursor(topic["topics"][0]["topic_id"].as_str().unwrap());
    // With a filter an empty page is not yet the end: the cursor that it gave is followed.
    let words = ["consume", "t", "--from", &cursor, "--key", "k", "--cursor"];
    let ran = run(url, &words).await;
    assert_eq!((ran.code, ran.out.as_str()), (OK, ""), "{:.200}", ran.err);
    assert!(ran.err.trim() == cursor, "another cursor: {:.200}", ran.err);
    // From the beginning it is short, and goes the same way.
    run_with_input(url, &["produce", "t"], &records(0..10)).await.good();
    let all = run(url, &["consume", "t", "--key-prefix", "k"]).await.good();
    assert_eq!(lines(&all).len(), 10);
    server.stop().await;
}

#[tokio::test]
async fn what_is_damaged_stops_a_reader_or_is_told_as_a_gap() {
    let server = Server::start().await;
    damage::fill(&server).await;
    let directory = server.halt().await;
    damage::flip_a_bit(directory.path());
    let server = Server::start_in(directory, &[]).await;
    let words = ["consume", "t", "--partition", "0"];
    let stopped = run(server.url(), &words).await;
    assert_eq!(stopped.code, FAILURE);
    assert!(stopped.err.contains("unavailable: "), "{}", stopped.err);
    let before = lines(&stopped.out).len() as u64;

    let words = [&words[..], &["--skip-damaged"]].concat();
    let skipped = run(server.url(), &words).await;
    assert_eq!(skipped.code, OK, "{}", skipped.err);
    let seen = lines(&skipped.out);
    let gap = (before..damage::PER_PARTITION)
        .find(|offset| seen.iter().any(|record| record["offset"] == *offset));
    let gap = format!("not there any more: 0:{before}-{} ", gap.unwrap() - 1);
    assert!(skipped.err.contains(&gap), "{gap}: {}", skipped.err);
    assert_eq!(skipped.err.lines().count(), 1, "a gap is told once: {}", skipped.err);
    assert_eq!(seen.last().unwrap()["offset"], damage::PER_PARTITION - 1);
    server.stop().await;
}

/// A terminal that a command's output can be drawn on, and what was drawn.
struct Terminal {
    ours: File,
    path: String,
}

impl Terminal {
    fn open() -> Self {
        let ours = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        rustix::pty::grantpt(&ours).unwrap();
        rustix::pty::unlockpt(&ours).unwrap();
        let path = rustix::pty::ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
        Self { ours: File::from(ours), path }
    }

    /// The end that belongs to the command.
    fn theirs(&self) -> File {
        File::options().read(true).write(true).open(&self.path).unwrap()
    }

    /// Collects what is drawn until no process has the terminal open any more.
    fn watch(mut self) -> tokio::task::JoinHandle<String> {
        tokio::task::spawn_blocking(move || {
            let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
            // The end of the other side is told as an error.
            while let Ok(bytes @ 1..) = self.ours.read(&mut buffer) {
                seen.extend_from_slice(&buffer[..bytes]);
            }
            String::from_utf8_lossy(&seen).into_owned()
        })
    }
}

/// Whether a bar was drawn: it is redrawn in place, which plain lines never are.
fn has_bar(drawn: &str) -> bool {
    drawn.contains("records/s") && drawn.contains("\x1b[")
}

#[tokio::test]
async fn a_terminal_shows_progress_while_a_pipe_stays_clean() {
    let server = Server::start().await;
    let url = server.url();
    let terminal = Terminal::open();
    let mut producing = command(url, &["produce", "t", "--reports"]);
    producing.stderr(terminal.theirs()).stdin(Stdio::piped()).env("TERM", "xterm");
    let mut child = producing.spawn().unwrap();
    drop(producing);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(records(0..500).as_bytes()).await.unwrap();
    eventually("everything is written", async || {
        let shown = Reply::of(server.request(Method::GET, "/v1/topics/t")).await;
        (shown.status == 200 && count(&server, "t").await == 500).then_some(())
    })
    .await;
    drop(stdin);
    let drawn = terminal.watch();
    let ran = end(child).await;
    assert_eq!((ran.code, lines(&ran.out).len()), (OK, 500));
    let drawn = drawn.await.unwrap();
    assert!(has_bar(&drawn), "{drawn:?}");

    let terminal = Terminal::open();
    let mut consuming = command(url, &["consume", "t"]);
    consuming.stderr(terminal.theirs()).env("TERM", "xterm");
    let child = consuming.spawn().unwrap();
    drop(consuming);
    let drawn = terminal.watch();
    assert_eq!(lines(&end(child).await.good()).len(), 500);
    let drawn = drawn.await.unwrap();
    assert!(drawn.contains("500 records, "), "{drawn:?}");

    // Where data goes to the terminal, a bar would be drawn across it.
    let terminal = Terminal::open();
    let mut consuming = command(url, &["consume", "t", "--limit", "3"]);
    consuming.stderr(terminal.theirs()).stdout(terminal.theirs()).env("TERM", "xterm");
    let child = consuming.spawn().unwrap();
    drop(consuming);
    let drawn = terminal.watch();
    end(child).await.good();
    let drawn = drawn.await.unwrap();
    assert_eq!(lines(&drawn).len(), 3, "{drawn:?}");
    server.stop().await;
}

#[tokio::test]
async fn exit_codes_tell_a_wrong_command_line_from_a_failure() {
    let server = Server::start().await;
    for words in [
        &["nonsense"][..],
        &["consume"],
        &["topic", "create", "a/b"],
        &["consume", "t", "--offset", "3"],
        &["produce", "t", "--no-such-flag"],
        &["--no-such-flag"],
        &["wal"],
    ] {
        let ran = run(server.url(), words).await;
        assert_eq!((ran.code, ran.out.as_str()), (USAGE, ""), "{words:?}: {ran:?}");
        assert!(ran.err.starts_with("error: ") || ran.err.contains("Usage: "), "{ran:?}");
    }
    for words in [&["--help"][..], &["--version"], &["help"], &["consume", "--help"]] {
        let ran = run(server.url(), words).await;
        assert!(ran.err.is_empty() && !ran.out.is_empty(), "{words:?}: {ran:?}");
        ran.good();
    }
    let nobody = "http://127.0.0.1:1";
    for words in [&["consume", "t"][..], &["produce", "t"], &["topic", "list"]] {
        let ran = run(nobody, words).await;
        assert_eq!((ran.code, ran.out.as_str()), (FAILURE, ""), "{words:?}: {ran:?}");
        assert!(ran.err.contains("no connection to http://127.0.0.1:1"), "{ran:?}");
    }
    for words in [
        &["consume", "missing"][..],
        &["topic", "describe", "missing"],
        &["topic", "delete", "missing"],
        &["topic", "list", "--url", "ftp://x"],
        &["segment", "dump", "/nowhere"],
        &["segment", "verify", "/nowhere"],
        &["wal", "dump", "/nowhere"],
        &["wal", "dump", "/proc/self"],
        &["serve", "--listen", server.url().trim_start_matches("http://"), "--data-dir", "/proc/x"],
    ] {
        let ran = run(server.url(), words).await;
        assert_eq!((ran.code, ran.out.as_str()), (FAILURE, ""), "{words:?}: {ran:?}");
        assert!(ran.err.starts_with("error: "), "{words:?}: {ran:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn the_configuration_is_checked_without_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.toml");
    std::fs::write(&file, "[topics]\ndefault_partitions = 7\n").unwrap();
    let file = file.to_str().unwrap();
    let checked = run("", &["config", "check", "--config", file]).await.good();
    let line = format!("topics.default_partitions = 7  # from {file}\n");
    assert!(checked.contains(&line), "{checked}");
    let wrong = ["--config", file, "--set", "wal.file_bytes=1", "--set", "nothing=1"];
    for command in [&["config", "check"][..], &["serve"], &[]] {
        let ran = run("", &[command, &wrong[..]].concat()).await;
        assert_eq!((ran.code, ran.out.as_str()), (USAGE, ""), "{command:?}: {ran:?}");
        assert!(ran.err.contains("wal.file_bytes (from --set): "), "{ran:?}");
        assert!(ran.err.contains("nothing (from --set): "), "{ran:?}");
    }
    let missing = run("", &["config", "check", "--config", "/nowhere.toml"]).await;
    assert_eq!(missing.code, USAGE, "{missing:?}");
    let ahead = run("", &["config", "check", "--join", "a:1"]).await;
    assert_eq!(ahead.code, USAGE, "{ahead:?}");
}

/// Where the first batch of a segment ends.
fn batch_end(segment: &[u8]) -> usize {
    12 + usize::try_from(u32::from_be_bytes(segment[8..12].try_into().unwrap())).unwrap()
}

async fn run_on(words: [&str; 2], path: &Path) -> Ran {
    run("", &[words[0].as_ref(), words[1].as_ref(), path.as_os_str()]).await
}

#[tokio::test]
async fn a_stopped_nodes_files_can_be_looked_at_and_checked() {
    let server = Server::start().await;
    damage::fill(&server).await;
    let directory = server.halt().await;
    let logs = damage::segments(directory.path(), "0");

    let dumped = run_on(["segment", "dump"], &logs[0]).await.good();
    let first = dumped.lines().next().unwrap();
    assert!(first.starts_with("position=0 offsets=0..=3 records=4 bytes="), "{first}");
    assert!(dumped.lines().all(|line| line.ends_with(" crc=ok")), "{dumped}");

    let partitions = directory.path().join("partitions");
    let verified = run_on(["segment", "verify"], &partitions).await.good();
    let records = format!(" {} records, ", 2 * damage::PER_PARTITION);
    assert!(verified.contains(&records), "{verified}");
    assert!(verified.ends_with("bad: 0 batches, 0 tails, 0 indexes, 0 files\n"), "{verified}");

    let frames = run_on(["wal", "dump"], &directory.path().join("wal")).await.good();
    assert!(frames.lines().count() > 100, "{frames}");
    assert!(frames.lines().all(|line| line.contains(".wal ")), "{frames}");
    assert_eq!(
        run_on(["wal", "dump"], directory.path()).await.good(),
        frames,
        "of a data directory"
    );
    let none = run_on(["wal", "dump"], &partitions).await;
    assert_eq!((none.code, none.out.as_str()), (FAILURE, ""), "{none:?}");
    assert!(none.err.contains("has no write-ahead log"), "{none:?}");

    // A data directory is compared with its checkpoints.
    let verified = run_on(["segment", "verify"], directory.path()).await.good();
    assert!(verified.contains(&records), "{verified}");
    let crooked =
        |text: &str| text.contains("bad: 0 batches, 0 tails, ") && text.ends_with(", 1 files\n");
    for (name, what) in [("missing", "is missing, "), ("short", " bytes, a checkpoint has ")] {
        let kept = std::fs::read(&logs[2]).unwrap();
        match name {
            "missing" => std::fs::remove_file(&logs[2]).unwrap(),
            _ => std::fs::write(&logs[2], &kept[..batch_end(&kept)]).unwrap(),
        }
        let ran = run_on(["segment", "verify"], directory.path()).await;
        assert_eq!(ran.code, FAILURE, "{name}: {ran:?}");
        assert!(ran.out.contains(logs[2].to_str().unwrap()) && ran.out.contains(what), "{ran:?}");
        assert!(crooked(&ran.out), "{ran:?}");
        run_on(["segment", "verify"], &partitions).await.good();
        std::fs::write(&logs[2], kept).unwrap();
    }
    // Whole batches, their checksums right, in order: only the checkpoint knows others.
    let kept = std::fs::read(&logs[2]).unwrap();
    let mut changed = kept.clone();
    // A byte of the first batch's leader epoch, which no checksum of the batch covers.
    changed[12] ^= 1;
    std::fs::write(&logs[2], changed).unwrap();
    let ran = run_on(["segment", "verify"], directory.path()).await;
    assert_eq!(ran.code, FAILURE, "{ran:?}");
    assert!(ran.out.contains(" bytes are not those of the checkpoint") && crooked(&ran.out));
    run_on(["segment", "verify"], &partitions).await.good();
    std::fs::write(&logs[2], kept).unwrap();
    // Behind the checkpoint's end of an active file: the next start cuts it off.
    let active = logs.last().unwrap();
    let kept = std::fs::read(active).unwrap();
    std::fs::write(active, [kept.as_slice(), b"torn"].concat()).unwrap();
    run_on(["segment", "verify"], directory.path()).await.good();
    assert_eq!(run_on(["segment", "verify"], &partitions).await.code, FAILURE);
    std::fs::write(active, kept).unwrap();

    damage::flip_a_bit(directory.path());
    let damaged = run_on(["segment", "verify"], &partitions).await;
    assert_eq!(damaged.code, FAILURE, "{damaged:?}");
    assert!(damaged.out.contains(logs[1].to_str().unwrap()), "it names the file: {damaged:?}");
    assert!(damaged.out.contains("bad: 1 batches, 0 tails"), "{damaged:?}");
    assert!(damaged.err.ends_with(" is damaged\n"), "{damaged:?}");
    let dumped = run_on(["segment", "dump"], &logs[1]).await.good();
    assert_eq!(dumped.matches(" crc=WRONG\n").count(), 1, "{dumped}");
    directory.close().unwrap();
}

#[tokio::test]
async fn the_document_and_the_greeting_are_printed_as_programs_expect_them() {
    let printed = run("", &["openapi"]).await.good();
    assert_eq!(printed, eddyline::api::openapi::json());
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let words = ["--listen", "127.0.0.1:0", "--data-dir", data.to_str().unwrap()];
    let mut node = command("", &words).spawn().unwrap();
    let mut out = BufReader::new(node.stdout.take().unwrap()).lines();
    let ready = out.next_line().await.unwrap().unwrap();
    let url = ready.strip_prefix("ready ").unwrap().to_owned();
    // Each of the three lines is a command that works as it is.
    for _ in 0..3 {
        let line = out.next_line().await.unwrap().unwrap();
        assert!(line.starts_with("curl ") && line.contains(&url), "{line}");
        let shell = Command::new("sh").args(["-c", &format!("{line} -sSf -m 2")]).output();
        let output = shell.await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        // The third follows until it is ended; curl calls that 28.
        assert!(matches!(output.status.code(), Some(0 | 28)), "{line}: {output:?}");
        assert!(said.contains("\"offset\""), "{line}: {said}");
    }
    drop(out);
    stop(node).await;
}

/// Starts a node on a directory and returns it with its URL.
async fn start_node(dir: &Path, words: &[&str]) -> (Child, String) {
    let mut command = command("", &["serve", "--listen", "127.0.0.1:0", "--data-dir"]);
    let mut node = command.arg(dir.join("data")).args(words).spawn().unwrap();
    let mut ready = String::new();
    let mut out = BufReader::new(node.stdout.take().unwrap());
    tokio::time::timeout(PATIENCE, out.read_line(&mut ready)).await.unwrap().unwrap();
    let url = ready.trim_end().strip_prefix("ready ").unwrap().to_owned();
    (node, url)
}

/// Asks a node to stop; it must end well.
async fn stop(node: Child) -> Ran {
    let pid = rustix::process::Pid::from_raw(i32::try_from(node.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ran = end(node).await;
    assert_eq!(ran.code, OK, "{ran:?}");
    ran
}

#[tokio::test]
async fn each_request_is_logged_as_a_span_for_those_who_ask_and_tells_no_key() {
    for (filter, requests) in [("info,eddyline::api=debug", 2), ("info", 0)] {
        let dir = tempfile::tempdir().unwrap();
        let (node, url) = start_node(dir.path(), &["--log", filter]).await;
        let http = reqwest::Client::new();
        let records = format!("{url}/v1/topics/a/records?key=secret");
        let request = http.post(&records).header("x-header", "secret").body("secret");
        assert_eq!(Reply::of(request).await.status, 200);
        let missing = http.get(records.replace("/a/", "/missing/"));
        assert_eq!(Reply::of(missing).await.status, 404);
        drop(http);
        let logged = stop(node).await.err;
        assert!(!logged.contains("secret"), "{logged}");
        let lines = lines(&logged);
        let answered: Vec<_> = lines.iter().filter(|line| line["message"] == "answered").collect();
        assert_eq!(answered.len(), requests, "{logged}");
        let expected = [("POST", "a", 200), ("GET", "missing", 404)];
        for (line, (method, topic, status)) in answered.iter().zip(expected) {
            assert_eq!((&line["level"], &line["status"]), (&json!("DEBUG"), &json!(status)));
            let path = format!("/v1/topics/{topic}/records");
            assert_eq!(line["span"], json!({"name": "request", "method": method, "path": path}));
            assert!(line["elapsed_us"].is_u64(), "{line}");
        }
    }
}

/// The commands of the README's quick start, one shell script a block.
fn quick_start() -> Vec<String> {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = std::fs::read_to_string(readme).unwrap();
    let part = text.split_once("## Quick start\n").unwrap().1.split_once("\n## ").unwrap().0;
    let mut blocks = vec![String::new()];
    for line in part.lines() {
        match line.strip_prefix("    ") {
            Some(command) => blocks.last_mut().unwrap().push_str(&format!("{command}\n")),
            None if line.is_empty() => {}
            None => blocks.push(String::new()),
        }
    }
    blocks.retain(|block| !block.is_empty() && !block.starts_with("cargo run"));
    blocks
}

#[tokio::test]
async fn the_quick_start_of_the_readme_works_as_it_is_written() {
    let server = Server::start().await;
    let blocks = quick_start();
    assert!(blocks.len() >= 4, "{blocks:?}");
    // A refusal is a failure, and what follows for ever is ended.
    let shell = "set -e\ncurl() { command curl --fail --silent --show-error \"$@\"; }\n\
                 follow() { curl -N -m 2 \"$@\" || test $? = 28; }\n";
    let mut printed = String::new();
    for block in blocks {
        let script = block
            .replace("http://127.0.0.1:8080", server.url())
            .replace("target/release/eddyline", env!("CARGO_BIN_EXE_eddyline"))
            .replace("curl -N ", "follow ");
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{shell}{script}")]).env("EDDYLINE_URL", server.url());
        command.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null()).kill_on_drop(true);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let ran = end(command.spawn().unwrap()).await;
        assert_eq!(ran.code, OK, "{block}\n{ran:?}");
        printed.push_str(&ran.out);
    }
    assert!(printed.contains("event: records"), "{printed}");
    assert_eq!(count(&server, "flights").await, 10_000);
    assert_eq!(count(&server, "hello").await, 2);
    server.stop().await;
}

#[tokio::test]
async fn a_group_goes_on_where_what_it_printed_ended() {
    let server = Server::start().await;
    let url = server.url();
    run(url, &["topic", "create", "t", "-p", "2"]).await.good();
    run_with_input(url, &["produce", "t"], &records(0..50)).await.good();
    let group = ["consume", "t", "--group", "my group/1"];
    let mut seen: Vec<u64> = Vec::new();
    let some = run(url, &[&group[..], &["--limit", "20"]].concat()).await.good();
    let rest = run(url, &group).await.good();
    for record in lines(&some).iter().chain(&lines(&rest)) {
        seen.push(record["value"].as_u64().unwrap());
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..50).collect::<Vec<_>>(), "each once: nothing broke off in between");
    assert_eq!(run(url, &group).await.good(), "", "the end is an end");

    let empty = async || {
        let listed = run(url, &["group", "list"]).await.good();
        (listed == "my group/1\tempty\t0\t0\n").then_some(())
    };
    eventually("the member leaves", empty).await;
    let described = run(url, &["group", "describe", "my group/1"]).await.good();
    assert!(described.starts_with("group        my group/1\nstate        empty\n"), "{described}");
    assert!(described.contains("member_joined"), "{described}");

    let reset = ["group", "reset", "my group/1", "--topic", "t", "--shift", "-5", "-p", "0"];
    let dry = run(url, &[&reset[..], &["--dry-run"]].concat()).await.good();
    assert_eq!(run(url, &reset).await.good(), dry);
    let again = run(url, &group).await.good();
    assert_eq!(lines(&again).len(), 5, "{dry}{again}");
    let bad = run(url, &["group", "reset", "my group/1", "--topic", "t", "--to", "noon"]).await;
    assert_eq!(bad.code, FAILURE, "{bad:?}");
    eventually("the member leaves", async || {
        (run(url, &["group", "delete", "my group/1"]).await.code == OK).then_some(())
    })
    .await;
    let gone = run(url, &["group", "describe", "my group/1"]).await;
    assert!(gone.err.starts_with("error: group_not_found: "), "{gone:?}");
    server.stop().await;
}
