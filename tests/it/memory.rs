//! What all requests together may hold: readers that take nothing and senders that do not end get
//! their part of one budget, the others a refusal that says when to come back, or a shorter page.

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::ops::until;
use crate::support::{Reply, Server};

const RECORDS: &str = "/v1/topics/t/records";
const JSON: &str = "application/json";
const V2_JSON: &str = "application/vnd.kafka.json.v2+json";
const BUDGET: f64 = 16.0 * 1024.0 * 1024.0;
const GAUGE: &str = "eddyline_http_memory_bytes";

async fn start() -> Server {
    let settings = [("http.memory_bytes", "16 MiB"), ("http.max_body_bytes", "2 MiB")];
    let server = Server::start_with(&settings).await;
    let put = server.request(Method::PUT, "/v1/topics/t").body(r#"{"partitions":1}"#);
    assert_eq!(Reply::of(put).await.status, 201);
    server
}

/// Connects as a client that buffers little itself.
async fn connect(server: &Server) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(server.url().trim_start_matches("http://").parse().unwrap()).await.unwrap()
}

async fn send(server: &Server, text: &str) -> TcpStream {
    let mut stream = connect(server).await;
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

/// Waits for an answer's status and leaves the rest where it is.
async fn status(stream: &mut TcpStream) -> u16 {
    let mut begin = [0; 12];
    stream.read_exact(&mut begin).await.unwrap();
    std::str::from_utf8(&begin).unwrap().strip_prefix("HTTP/1.1 ").unwrap().parse().unwrap()
}

/// Reads the rest of an answer: its head, and its body.
async fn rest(mut stream: TcpStream) -> (String, String) {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

fn check_refusal(head: &str, body: &str) {
    assert!(head.contains("retry-after: 1"), "{head}");
    let problem: Value = serde_json::from_str(body).unwrap();
    assert_eq!((&problem["code"], &problem["error_code"]), (&json!("overloaded"), &json!(50303)));
    assert_eq!(
        (&problem["retriable"], &problem["may_have_applied"]),
        (&json!(true), &json!(false))
    );
}

async fn used(server: &Server) -> f64 {
    until(server, GAUGE, |_| true).await
}

/// Checks that a page's records are those from `first` on, without a gap, and returns the next.
fn check_page(page: &Value, first: u64) -> u64 {
    let records = page["records"].as_array().unwrap();
    for (offset, record) in (first..).zip(records) {
        assert_eq!(record["offset"], offset);
        assert!(record["value"].as_str().unwrap().starts_with(&format!("{offset}:x")));
    }
    first + records.len() as u64
}

#[tokio::test]
async fn slow_readers_of_large_pages_share_a_budget() {
    const RECORDS_COUNT: u64 = 20;
    const READERS: usize = 30;
    let server = start().await;
    for number in 0..RECORDS_COUNT {
        let value = format!("{number}:{}", "x".repeat(1_000_000));
        let request = server.request(Method::POST, RECORDS).header("content-type", "text/plain");
        assert_eq!(Reply::of(request.body(value)).await.status, 200);
    }
    let path = format!("{RECORDS}?from=earliest&max_bytes=67108864&limit=10000");
    let get = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let mut stream = send(&server, &get).await;
        readers.push((status(&mut stream).await, stream));
        assert!(used(&server).await <= BUDGET);
    }
    let held = used(&server).await;
    assert!(held > BUDGET / 2.0 && held <= BUDGET * 0.75, "pages leave a part: {held}");
    // Others go on: what is small, and a body.
    let small = Reply::of(server.request(Method::GET, &format!("{RECORDS}?max_bytes=1"))).await;
    assert_eq!(small.status, 503, "not even its one record fits");
    let meta = format!("{RECORDS}?format=meta&limit=10000&max_bytes=67108864");
    let meta = Reply::of(server.request(Method::GET, &meta)).await;
    assert_eq!(meta.status, 200, "{}", meta.text());
    assert_eq!(meta.json()["records"].as_array().unwrap().len() as u64, RECORDS_COUNT);
    let more = server.request(Method::POST, RECORDS).header("content-type", "text/plain");
    let more = Reply::of(more.body(format!("{RECORDS_COUNT}:{}", "x".repeat(900_000)))).await;
    assert_eq!(more.status, 200, "{}", more.text());

    let mut counts = [0; 2];
    let mut cursors = Vec::new();
    for (status, stream) in readers {
        let (head, body) = rest(stream).await;
        counts[usize::from(status == 503)] += 1;
        if status == 503 {
            check_refusal(&head, &body);
            continue;
        }
        assert_eq!(status, 200);
        let page: Value = serde_json::from_str(&body).unwrap();
        let next = check_page(&page, 0);
        assert!(next > 0, "an empty page would mean the end");
        cursors.push((next, page["next"].as_str().unwrap().to_owned()));
    }
    assert!(counts[0] > 0 && counts[1] > 0, "{counts:?}");
    until(&server, GAUGE, |value| value == 0.0).await;
    // What was cut goes on where it ended.
    for (mut next, mut cursor) in cursors {
        while next <= RECORDS_COUNT {
            let path = format!("{RECORDS}?from={cursor}&max_bytes=67108864&limit=10000");
            let page = Reply::of(server.request(Method::GET, &path)).await.json();
            let before = next;
            next = check_page(&page, next);
            assert!(next > before);
            cursor = page["next"].as_str().unwrap().to_owned();
        }
    }
    until(&server, GAUGE, |value| value == 0.0).await;
    server.stop().await;
}

/// A body of one record for each 500,000 bytes, about 2 MB.
fn large_body() -> String {
    json!({"records": vec![json!({"value": "y".repeat(500_000)}); 4]}).to_string()
}

/// Begins to send large bodies that fill the budget; each lacks its last byte.
async fn fill_with_bodies(server: &Server) -> Vec<TcpStream> {
    let body = large_body();
    let head = format!(
        "POST {RECORDS} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {JSON}\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    let mut senders = Vec::new();
    for count in 1..=4 {
        let text = format!("{head}{}", &body[..body.len() - 1]);
        senders.push(send(server, &text).await);
        let expected = (count * 2 * body.len()) as f64;
        until(server, GAUGE, |value| value >= expected - 1e5).await;
    }
    senders
}

async fn end_offset(server: &Server) -> u64 {
    let offsets = Reply::of(server.request(Method::GET, "/topics/t/partitions/0/offsets")).await;
    offsets.json()["end_offset"].as_u64().unwrap()
}

#[tokio::test]
async fn large_bodies_share_a_budget_and_a_refused_one_has_written_nothing() {
    let server = start().await;
    let senders = fill_with_bodies(&server).await;
    let body = large_body();
    for (path, content_type) in [(RECORDS, JSON), (RECORDS, "text/plain"), ("/topics/t", V2_JSON)] {
        let request = server.request(Method::POST, path).header("content-type", content_type);
        let reply = Reply::of(request.body(body.clone())).await;
        assert_eq!(
            (reply.status.as_u16(), reply.header("retry-after")),
            (503, Some("1")),
            "{path}"
        );
        assert_eq!(reply.json()["error_code"], 50303);
        // One whose length nobody knows before is refused when there is no more room for it.
        let chunks = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\n\
             connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        let mut stream = send(&server, &format!("{head}{chunks}")).await;
        assert_eq!(status(&mut stream).await, 503, "{path} {content_type}");
    }
    let small = server.request(Method::POST, RECORDS).header("content-type", JSON);
    assert_eq!(Reply::of(small.body(r#"{"value":1}"#)).await.status, 200, "small ones are served");
    assert_eq!(end_offset(&server).await, 1);
    for mut stream in senders {
        stream.write_all(b"}").await.unwrap();
        assert_eq!(status(&mut stream).await, 200);
    }
    assert_eq!(end_offset(&server).await, 1 + 4 * 4);
    until(&server, GAUGE, |value| value == 0.0).await;
    let again = server.request(Method::POST, RECORDS).header("content-type", JSON);
    assert_eq!(Reply::of(again.body(body)).await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn a_stream_waits_for_memory_and_is_not_refused() {
    // Refused lines: a report takes a hundred times their bytes.
    const LINES: usize = 30_000;
    let server = start().await;
    let senders = fill_with_bodies(&server).await;
    let head = format!(
        "POST {RECORDS} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-type: application/x-ndjson\r\ncontent-length: {}\r\n\r\n",
        LINES * 2
    );
    let mut stream = send(&server, &head).await;
    stream.write_all("x\n".repeat(LINES).as_bytes()).await.unwrap();
    assert_eq!(status(&mut stream).await, 200);
    assert!(used(&server).await <= BUDGET);
    for mut stream in senders {
        stream.write_all(b"}").await.unwrap();
        assert_eq!(status(&mut stream).await, 200);
    }
    let (_, body) = rest(stream).await;
    assert_eq!(body.matches(r#""code":"invalid_request""#).count(), LINES);
    assert!(!body.contains("overloaded"));
    until(&server, GAUGE, |value| value == 0.0).await;
    server.stop().await;
}

/// The head of an NDJSON request of one line, and the line, about 0.9 MB.
fn long_line() -> (String, String) {
    let line = json!({"value": "z".repeat(900_000)}).to_string();
    let head = format!(
        "POST {RECORDS} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-type: application/x-ndjson\r\ncontent-length: {}\r\n\r\n",
        line.len()
    );
    (head, line)
}

/// Each had a part of the budget once and waited for more, until all were given up.
#[tokio::test]
async fn long_lines_of_many_streams_get_through_a_small_budget() {
    const STREAMS: usize = 48;
    let server = start().await;
    let (head, line) = long_line();
    let (begin, end) = line.split_at(line.len() / 2);
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        streams.push(send(&server, &head).await);
    }
    let mut sending = tokio::task::JoinSet::new();
    let all_began = std::sync::Arc::new(tokio::sync::Barrier::new(STREAMS));
    for mut stream in streams {
        let (begin, end) = (begin.to_owned(), end.to_owned());
        let all_began = std::sync::Arc::clone(&all_began);
        sending.spawn(async move {
            // What is not taken in time is sent with the rest: the budget is full by then.
            let mut sent = 0;
            let begun = async {
                while sent < begin.len() {
                    sent += stream.write(&begin.as_bytes()[sent..]).await.unwrap();
                }
            };
            drop(tokio::time::timeout(std::time::Duration::from_secs(1), begun).await);
            all_began.wait().await;
            stream.write_all(&begin.as_bytes()[sent..]).await.unwrap();
            stream.write_all(end.as_bytes()).await.unwrap();
            rest(stream).await
        });
    }
    while let Some(answer) = sending.join_next().await {
        let (_, body) = answer.unwrap();
        assert!(body.contains(r#""offset":"#), "{body}");
        assert!(used(&server).await <= BUDGET);
    }
    assert_eq!(end_offset(&server).await, STREAMS as u64);
    until(&server, GAUGE, |value| value == 0.0).await;
    server.stop().await;
}

#[tokio::test]
async fn a_line_that_stands_still_without_memory_is_refused_and_lets_the_next_one_go_on() {
    // As many as the budget has room for.
    const HOLDERS: usize = 18;
    let settings = [
        ("http.memory_bytes", "16 MiB"),
        ("http.max_body_bytes", "2 MiB"),
        ("http.request_timeout", "2s"),
    ];
    let server = Server::start_with(&settings).await;
    let put = server.request(Method::PUT, "/v1/topics/t").body(r#"{"partitions":1}"#);
    assert_eq!(Reply::of(put).await.status, 201);
    let (head, line) = long_line();
    let begun = format!("{head}{}", &line[..line.len() - 1]);
    let mut holders = Vec::new();
    for count in 1..=HOLDERS {
        holders.push(send(&server, &begun).await);
        until(&server, GAUGE, |value| value >= (count * begun.len()) as f64 - 1e3).await;
    }
    let mut stalled = send(&server, &begun).await;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n0\r\n\r\n") {
        assert!(stalled.read_buf(&mut answer).await.unwrap() > 0);
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.contains(r#""code":"overloaded""#), "{answer}");
    let (_, body) = rest(send(&server, &format!("{head}{line}")).await).await;
    assert!(body.contains(r#""offset":"#), "{body}");
    assert_eq!(end_offset(&server).await, 1, "the refused line is not written");
    drop((holders, stalled));
    until(&server, GAUGE, |value| value == 0.0).await;
    server.stop().await;
}

#[tokio::test]
async fn a_poll_of_a_rest_consumer_is_answered_with_what_fits() {
    const V2: &str = "application/vnd.kafka.v2+json";
    const BINARY: &str = "application/vnd.kafka.binary.v2+json";
    let server = start().await;
    for number in 0..16 {
        let value = format!("{number}:{}", "x".repeat(1_000_000));
        let request = server.request(Method::POST, RECORDS).header("content-type", "text/plain");
        assert_eq!(Reply::of(request.body(value)).await.status, 200);
    }
    let post = async |path: &str, body: Value| {
        let request = server.request(Method::POST, path).header("content-type", V2);
        let reply = Reply::of(request.body(body.to_string())).await;
        assert!(reply.status.is_success(), "{}", reply.text());
    };
    let made = json!({"name": "i", "format": "binary", "auto.offset.reset": "earliest"});
    post("/consumers/g", made).await;
    let instance = "/consumers/g/instances/i";
    let assigned = json!({"partitions": [{"topic": "t", "partition": 0}]});
    post(&format!("{instance}/assignments"), assigned).await;
    let poll = || {
        let path = format!("{instance}/records?max_bytes=67108864");
        server.request(Method::GET, &path).header("accept", BINARY)
    };
    let senders = fill_with_bodies(&server).await;
    let refused = Reply::of(poll()).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!(refused.json()["error_code"], 50303);
    for mut stream in senders {
        stream.write_all(b"}").await.unwrap();
        assert_eq!(status(&mut stream).await, 200);
    }
    let mut offsets = Vec::new();
    while offsets.len() < 32 {
        let page = Reply::of(poll()).await;
        assert_eq!(page.status, 200);
        let page = page.json();
        let page = page.as_array().unwrap();
        assert!(!page.is_empty());
        offsets.extend(page.iter().map(|record| record["offset"].as_u64().unwrap()));
    }
    assert!(offsets.iter().copied().eq(0..32), "each once, in order: {offsets:?}");
    until(&server, GAUGE, |value| value == 0.0).await;
    server.stop().await;
}
