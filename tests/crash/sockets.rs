//! Thousands of WebSockets at once: ten thousand that are subscribed and idle, a hundred that never
//! read what they asked for. They cost bounded memory and harm nobody else.
//!
//! The idle ones are held by a process of their own, this test binary once more: the limit of open
//! files is for one process.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::abuse::{allow_many_files, assert_bounded, wait_for_metric, warmed_up, work};
use crate::client::{client, create, records_url};
use crate::image::{say, skipped};
use crate::load::PATIENCE;
use crate::node::{Node, Scratch};

const SOCKETS: usize = 10_000;
/// Sockets that are opened at a time.
const TOGETHER: usize = 200;
/// What an idle socket may cost the server; a build without optimisation is no measure of less.
const SOCKET_BYTES_MAX: u64 = 40 * 1024;
/// Tells this test binary to hold sockets of the node with this address.
const ADDRESS: &str = "EDDYLINE_TEST_HOLD_SOCKETS_OF";
/// The test that does it, which is none otherwise.
const HOLDER: &str = "sockets::holds_sockets_for_another_test_when_it_is_told_to";

/// Sockets that are opened and dropped again.
const STORM: usize = 4_000;

/// Sockets that nobody reads from.
const DEAF: usize = 100;
/// What each of them asks for.
const LOG_BYTES: usize = 60_000_000;
const RECORD_BYTES: usize = 10_000;

/// A text frame, masked with zeros, which leaves the text as it is.
fn frame(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap();
    let mut bytes = vec![0x81];
    match u8::try_from(length).ok().filter(|length| *length < 126) {
        Some(length) => bytes.push(0x80 | length),
        None => {
            bytes.push(0x80 | 126);
            bytes.extend(length.to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes.extend(text.as_bytes());
    bytes
}

/// Opens a socket and subscribes to `t`, without looking at the answers.
fn subscribe(address: &str, more: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut sent = format!(
        "GET /v1/ws HTTP/1.1\r\nhost: {address}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
         sec-websocket-protocol: eddyline.v1.json\r\n\r\n"
    )
    .into_bytes();
    sent.extend(frame(r#"{"type":"hello"}"#));
    sent.extend(frame(&format!(r#"{{"type":"subscribe","id":1,"topic":"t"{more}}}"#)));
    stream.write_all(&sent).unwrap();
    stream
}

/// Reads until a text has come.
fn read_until(stream: &mut TcpStream, text: &str) {
    let (mut seen, mut some) = (Vec::new(), [0; 1024]);
    while !seen.windows(text.len()).any(|bytes| bytes == text.as_bytes()) {
        let length = stream.read(&mut some).expect(text);
        assert!(length > 0, "closed before {text}");
        seen.extend_from_slice(&some[..length]);
    }
}

/// Opens sockets, says so, and for every line that it reads waits until each has got a record.
#[test]
fn holds_sockets_for_another_test_when_it_is_told_to() {
    let Ok(address) = std::env::var(ADDRESS) else { return };
    allow_many_files(SOCKETS as u64);
    let mut sockets = Vec::new();
    while sockets.len() < SOCKETS {
        let mut some: Vec<_> = (0..TOGETHER).map(|_| subscribe(&address, "")).collect();
        some.iter_mut().for_each(|socket| read_until(socket, "\"subscribed\""));
        sockets.append(&mut some);
    }
    say_out("open");
    for line in std::io::stdin().lines() {
        line.unwrap();
        sockets.iter_mut().for_each(|socket| read_until(socket, "\"type\":\"records\""));
        say_out("read");
    }
}

/// Writes a line to stdout past the test harness, which would keep it.
fn say_out(line: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "\n{line}").unwrap();
    out.flush().unwrap();
}

/// The process that holds idle sockets. Dropping it kills it.
struct Holder {
    process: Child,
    orders: ChildStdin,
    lines: mpsc::Receiver<String>,
}

impl Holder {
    fn start(address: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", HOLDER, "--nocapture"]).env(ADDRESS, address);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let out = BufReader::new(process.stdout.take().unwrap());
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let orders = process.stdin.take().unwrap();
        let holder = Self { process, orders, lines };
        holder.expect("open");
        holder
    }

    fn expect(&self, wanted: &str) {
        while self.lines.recv_timeout(PATIENCE).expect(wanted) != wanted {}
    }

    /// Waits until every socket has got a record.
    fn read(&mut self) {
        self.orders.write_all(b"read\n").unwrap();
        self.expect("read");
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_idle_subscribed_sockets_cost_little_and_get_what_comes() {
    let needed = 2 * SOCKETS as u64;
    if !allow_many_files(needed - 1_000) {
        return skipped("a process may have too few open files");
    }
    let dir = Scratch::new();
    let node = Node::start(dir.path(), &["storage.open_files=500"]);
    let address = node.url().strip_prefix("http://").unwrap().to_owned();
    let before = warmed_up(&node);
    let http = client();
    let open = "eddyline_ws_sockets_open";
    let mut holder = tokio::task::block_in_place(|| Holder::start(&address));
    wait_for_metric(&http, &node, open, SOCKETS as u64).await;
    let each = (node.peak_memory_bytes() - before) / SOCKETS as u64;
    say(&format!("{each} bytes each for {SOCKETS} idle sockets"));
    assert!(each < SOCKET_BYTES_MAX, "{each} bytes each");
    work(&http, &node, 20).await;
    tokio::task::block_in_place(|| holder.read());
    drop(holder);
    wait_for_metric(&http, &node, open, 0).await;
    work(&http, &node, 20).await;
    node.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_reconnects_leaves_nothing_behind() {
    let dir = Scratch::new();
    let node = Node::start(dir.path(), &[]);
    let address = node.url().strip_prefix("http://").unwrap().to_owned();
    let before = warmed_up(&node);
    let http = client();
    for _ in 0..STORM / TOGETHER {
        let some: Vec<_> = (0..TOGETHER).map(|_| subscribe(&address, "")).collect();
        work(&http, &node, 1).await;
        // Without a goodbye, some of them before they are open.
        drop(some);
    }
    wait_for_metric(&http, &node, "eddyline_ws_sockets_open", 0).await;
    assert_bounded(&node, before);
    node.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_never_read_cost_bounded_memory_and_harm_no_other() {
    let dir = Scratch::new();
    // What is kept for readers on purpose is no part of this.
    let node = Node::start(dir.path(), &["storage.tail_cache_bytes=1 MiB"]);
    let http = client();
    create(&http, node.url(), "t", json!({"partitions": 1})).await;
    let record = json!({"value": "x".repeat(RECORD_BYTES)});
    let (count, together) = (LOG_BYTES / RECORD_BYTES, 100);
    for _ in 0..count / together {
        let records = vec![&record; together];
        let sent = http.post(records_url(node.url(), "t")).json(&records).send().await.unwrap();
        assert_eq!(sent.status(), 200);
    }
    let before = node.peak_memory_bytes();
    let address = node.url().strip_prefix("http://").unwrap();
    let everything =
        r#","from":{"at":"earliest"},"credit":{"records":9999999,"bytes":99999999999}"#;
    let deaf: Vec<_> = (0..DEAF).map(|_| subscribe(address, everything)).collect();
    wait_for_metric(&http, &node, "eddyline_ws_sockets_open", DEAF as u64).await;
    // Somebody else reads all of it, and others write and read, while those are stuck.
    let mut request = format!("ws://{address}/v1/ws").into_client_request().unwrap();
    let protocol = "eddyline.v1.json".parse().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", protocol);
    let (mut socket, _) = connect_async(request).await.unwrap();
    let subscribe = format!(r#"{{"type":"subscribe","id":1,"topic":"t"{everything}}}"#);
    for sent in [r#"{"type":"hello"}"#, &subscribe] {
        socket.send(Message::text(sent)).await.unwrap();
    }
    let reading = async {
        let mut next = 0;
        while next < count as u64 {
            let Message::Text(text) = socket.next().await.unwrap().unwrap() else { continue };
            let frame: serde_json::Value = serde_json::from_str(&text).unwrap();
            if frame["type"] == "records" {
                assert_eq!(frame["base"], next);
                next = frame["next"].as_u64().unwrap();
            }
        }
    };
    let reading = tokio::time::timeout(PATIENCE, reading);
    let (read, ()) = tokio::join!(reading, work(&http, &node, 50));
    read.expect("one that reads is not held up");
    assert_bounded(&node, before);
    drop(deaf);
    node.stop();
}
