//! Clients that ask for far more than is good: bodies of a gigabyte, thousands of connections that
//! do nothing. They are refused or borne in bounded memory, and harm nobody else.
//!
//! Bodies are made while they are sent, so the test itself holds none of them.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use reqwest::Client;
use rustix::process::{Resource, Rlimit};

use crate::client::{client, records_url};
use crate::load::PATIENCE;
use crate::node::{Node, Scratch};

const RECORDS: &str = "/v1/topics/t/records";
const GIGABYTE: usize = 1_000_000_000;
/// Bytes of a stream whose records are all written.
const STREAM_BYTES: usize = 200_000_000;
/// Connections that do nothing, all at once.
const IDLE_CONNECTIONS: usize = 2_000;
/// What a node's memory may grow by at its peak: the largest body a few times over, because an
/// allocator takes its time to return memory. Gigabytes are sent.
const GROWTH_BYTES_MAX: u64 = 128 << 20;
const NDJSON: &str = "application/x-ndjson";

/// How a body's end is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length,
    Chunked,
}

/// A request whose body is `start`, then `piece` again and again, then `end`.
struct Flood<'a> {
    path: &'a str,
    content_type: &'a str,
    framing: Framing,
    /// What the body begins with.
    start: &'a [u8],
    piece: &'a [u8],
    pieces: usize,
    end: &'a [u8],
}

impl Flood<'_> {
    fn bytes(&self) -> usize {
        self.start.len() + self.pieces * self.piece.len() + self.end.len()
    }

    fn head(&self) -> String {
        let framing = match self.framing {
            Framing::Length => format!("content-length: {}", self.bytes()),
            Framing::Chunked => "transfer-encoding: chunked".to_owned(),
        };
        let (path, content_type) = (self.path, self.content_type);
        format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\n{framing}\r\n\r\n"
        )
    }

    /// Puts a part of the body into its frame.
    fn framed(&self, part: &[u8]) -> Vec<u8> {
        match self.framing {
            Framing::Length => part.to_vec(),
            // An empty chunk would be the body's end.
            Framing::Chunked if part.is_empty() => Vec::new(),
            Framing::Chunked => {
                [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat()
            }
        }
    }

    /// Sends it until it is sent or the server does not want more; returns how much of the body and
    /// its frames was sent.
    fn send(&self, mut to: &TcpStream) -> usize {
        let (start, piece) = (self.framed(self.start), self.framed(self.piece));
        let mut end = self.framed(self.end);
        if self.framing == Framing::Chunked {
            end.extend_from_slice(b"0\r\n\r\n");
        }
        to.write_all(self.head().as_bytes()).unwrap();
        let mut sent = 0;
        let pieces = std::iter::repeat_n(&piece, self.pieces);
        for bytes in [&start].into_iter().chain(pieces).chain([&end]) {
            if to.write_all(bytes).is_err() {
                break;
            }
            sent += bytes.len();
        }
        sent
    }

    /// Sends it and reads the answer meanwhile, as HTTP clients do. `each` sees the answer's lines,
    /// its head's first, until it returns false. Returns how much was sent.
    fn play(&self, node: &Node, mut each: impl FnMut(&str) -> bool) -> usize {
        let address = node.url().strip_prefix("http://").unwrap();
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        thread::scope(|scope| {
            let sending = scope.spawn(|| self.send(&stream));
            for line in BufReader::new(&stream).lines() {
                let Ok(line) = line else { break };
                if !each(&line) {
                    break;
                }
            }
            let _ = stream.shutdown(Shutdown::Both);
            sending.join().unwrap()
        })
    }
}

/// Has a node do once what every later request profits from, and returns its memory then.
pub(crate) fn warmed_up(node: &Node) -> u64 {
    let small = Flood {
        path: RECORDS,
        content_type: "application/json",
        framing: Framing::Length,
        start: b"{\"value\":1}",
        piece: b"",
        pieces: 0,
        end: b"",
    };
    let mut status = String::new();
    small.play(node, |line| {
        status.push_str(line);
        false
    });
    assert_eq!(status, "HTTP/1.1 200 OK");
    node.peak_memory_bytes()
}

pub(crate) fn assert_bounded(node: &Node, before: u64) {
    let grown = node.peak_memory_bytes() - before;
    assert!(grown < GROWTH_BYTES_MAX, "grew by {grown} bytes");
}

#[test]
fn a_body_of_a_gigabyte_is_refused_in_bounded_memory() {
    let dir = Scratch::new();
    let node = Node::start(dir.path(), &[]);
    let before = warmed_up(&node);
    let piece = &b"1,".repeat(32 * 1024);
    let pieces = GIGABYTE / piece.len();
    for (path, content_type, start) in [
        (RECORDS, "application/json", &b"[{\"value\":["[..]),
        (RECORDS, "application/octet-stream", b""),
        ("/topics/t", "application/vnd.kafka.json.v2+json", b"{\"records\":[{\"value\":["),
    ] {
        for framing in [Framing::Length, Framing::Chunked] {
            let flood = Flood { path, content_type, framing, start, piece, pieces, end: b"1" };
            let mut answer = String::new();
            let sent = flood.play(&node, |line| {
                answer.push_str(line);
                answer.push('\n');
                // The answer's body is one line of JSON.
                !line.starts_with('{')
            });
            let what = format!("{content_type} {framing:?}: {answer}");
            assert!(answer.starts_with("HTTP/1.1 413 "), "{what}");
            assert!(sent < GIGABYTE / 2, "it was read to the end: {what}");
        }
    }
    assert_bounded(&node, before);
    node.stop();
}

#[test]
fn a_line_of_a_gigabyte_is_skipped_and_the_lines_around_it_are_written() {
    let dir = Scratch::new();
    let node = Node::start(dir.path(), &[]);
    let before = warmed_up(&node);
    let piece = &[b'x'; 64 * 1024];
    for framing in [Framing::Length, Framing::Chunked] {
        let lines = Flood {
            path: RECORDS,
            content_type: NDJSON,
            framing,
            start: b"{\"value\":1}\n",
            piece,
            pieces: GIGABYTE / piece.len(),
            end: b"\n{\"value\":2}\n",
        };
        let mut reports = Vec::new();
        let sent = lines.play(&node, |line| {
            reports.extend(line.starts_with('{').then(|| line.to_owned()));
            reports.len() < 3
        });
        assert!(sent >= lines.bytes(), "{reports:?}");
        assert!(reports[0].contains("\"offset\":"), "{reports:?}");
        assert!(reports[1].contains("\"too_large\""), "{reports:?}");
        assert!(reports[2].contains("\"offset\":"), "{reports:?}");
    }
    assert_bounded(&node, before);
    node.stop();
}

#[test]
fn a_stream_of_many_records_is_written_in_memory_far_below_its_size() {
    let dir = Scratch::new();
    // What is kept for readers on purpose is no part of this.
    let node = Node::start(dir.path(), &["storage.tail_cache_bytes=1 MiB"]);
    let before = warmed_up(&node);
    let line = format!("{{\"key\":\"some key\",\"value\":\"{}\"}}\n", "x".repeat(400));
    let piece = line.repeat(150);
    let pieces = STREAM_BYTES / piece.len();
    let records = 150 * pieces;
    for framing in [Framing::Length, Framing::Chunked] {
        let stream = Flood {
            path: RECORDS,
            content_type: NDJSON,
            framing,
            start: b"",
            piece: piece.as_bytes(),
            pieces,
            end: b"",
        };
        let mut written = 0;
        stream.play(&node, |line| {
            assert!(!line.contains("\"error\""), "{line}");
            written += usize::from(line.contains("\"offset\":"));
            written < records
        });
        assert_eq!(written, records);
    }
    assert_bounded(&node, before);
    node.stop();
}

/// Lets this process and the node that it starts have many connections; returns whether they may
/// have so many files open.
pub(crate) fn allow_many_files(needed: u64) -> bool {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let all = Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(Resource::Nofile, all).unwrap();
    all.current.is_none_or(|allowed| allowed > needed)
}

/// The value of a metric without labels.
async fn metric(http: &Client, node: &Node, name: &str) -> u64 {
    let answer = http.get(format!("{}/metrics", node.url())).send().await.unwrap();
    let text = answer.text().await.unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

/// Waits until a metric has a value.
pub(crate) async fn wait_for_metric(http: &Client, node: &Node, name: &str, value: u64) {
    let looking = async {
        while metric(http, node, name).await != value {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, looking).await;
    found.unwrap_or_else(|_| panic!("{name} is never {value}"));
}

/// Writes and reads as someone else does meanwhile.
pub(crate) async fn work(http: &Client, node: &Node, rounds: u64) {
    let url = records_url(node.url(), "t");
    for _ in 0..rounds {
        let sent = http.post(&url).json(&serde_json::json!({"value": 1})).send().await.unwrap();
        assert_eq!(sent.status(), 200);
        let read = http.get(format!("{url}?limit=10")).send().await.unwrap();
        assert_eq!(read.status(), 200);
        assert!(read.text().await.unwrap().contains("\"offset\""));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_idle_connections_cost_little_and_harm_nobody() {
    assert!(allow_many_files(2 * IDLE_CONNECTIONS as u64), "too few open files to test this");
    let dir = Scratch::new();
    let node = Node::start(dir.path(), &[]);
    let address = node.url().strip_prefix("http://").unwrap().to_owned();
    let before = warmed_up(&node);
    let http = client();
    let stream_head =
        format!("POST {RECORDS} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n");
    // Five ways to be idle: before a head, in it, after an answer, in a body, in an endless answer.
    let half_a_body = format!("{stream_head}content-type: {NDJSON}\r\n\r\n5\r\n{{\"val\r\n");
    let events = format!("GET {RECORDS} HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n");
    let ways = [
        "",
        "GET /healthz HTTP/1.1\r\nho",
        "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
        &half_a_body,
        &events,
    ];
    let mut idle = Vec::new();
    for (number, sent) in ways.iter().cycle().take(IDLE_CONNECTIONS).enumerate() {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(sent.as_bytes()).unwrap();
        idle.push(stream);
        if number % 100 == 0 {
            work(&http, &node, 1).await;
        }
    }
    let each = (IDLE_CONNECTIONS / ways.len()) as u64;
    wait_for_metric(&http, &node, "eddyline_http_produce_streams_open", each).await;
    wait_for_metric(&http, &node, "eddyline_http_sse_streams_open", each).await;
    work(&http, &node, 200).await;
    assert_bounded(&node, before);
    drop(idle);
    wait_for_metric(&http, &node, "eddyline_http_produce_streams_open", 0).await;
    wait_for_metric(&http, &node, "eddyline_http_sse_streams_open", 0).await;
    work(&http, &node, 10).await;
    node.stop();
}
