//! HTTP/2: the faces work as on HTTP/1, and what one connection can do to the server has a bound.

use std::time::Duration;

use bytes::Bytes;
use eddyline::api::Timers;
use futures_util::{StreamExt, stream};
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use reqwest::{Client, Method, StatusCode, Version};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::ops::until;
use crate::support::{Reply, Server};

const RECORDS: &str = "/v1/topics/t/records";
const NDJSON: &str = "application/x-ndjson";
const GAUGE: &str = "eddyline_http_memory_bytes";

/// Types and flags of frames (RFC 9113, 6).
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ENHANCE_YOUR_CALM: u32 = 11;
const REFUSED_STREAM: u32 = 7;

async fn start(timers: Timers, settings: &[(&str, &str)]) -> Server {
    let server = Server::start_tweaked(settings, |config| config.http.timers = timers).await;
    let put = server.request(Method::PUT, "/v1/topics/t").body(r#"{"partitions":1}"#);
    assert_eq!(Reply::of(put).await.status, 201);
    server
}

async fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.url().trim_start_matches("http://")).await.unwrap()
}

/// Connects with windows of these sizes; room is only made by who reads.
async fn open(server: &Server, (stream, connection): (u32, u32)) -> SendRequest<Bytes> {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(stream).initial_connection_window_size(connection);
    let (send, connection) = builder.handshake(connect(server).await).await.unwrap();
    tokio::runtime::Handle::current().spawn(async move { drop(connection.await) });
    send.ready().await.unwrap()
}

fn ask(
    send: &mut SendRequest<Bytes>,
    (method, path): (Method, &str),
    headers: &[(&str, &str)],
    is_whole: bool,
) -> (ResponseFuture, SendStream<Bytes>) {
    let mut request = http::Request::builder().method(method).uri(format!("http://x{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send.send_request(request.body(()).unwrap(), is_whole).unwrap()
}

/// Reads to the end, making room.
async fn read(body: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut whole = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        whole.extend_from_slice(&data);
    }
    Ok(whole)
}

#[tokio::test]
async fn every_kind_of_request_works() {
    let server = start(Timers::default(), &[]).await;
    let client = Client::builder().http2_prior_knowledge().build().unwrap();
    let request =
        |method: Method, path: &str| client.request(method, format!("{}{path}", server.url()));
    let large = "x".repeat(300_000);
    for (path, content_type, body) in [
        (RECORDS, "application/json", json!([{"value": 0}, {"value": large}]).to_string()),
        (RECORDS, "text/plain", large.clone()),
        (RECORDS, NDJSON, "{\"value\":3}\n".repeat(5000)),
        ("/topics/t", "application/vnd.kafka.json.v2+json", r#"{"records":[{"value":1}]}"#.into()),
    ] {
        let request = request(Method::POST, path).header("content-type", content_type);
        let response = request.body(body).send().await.unwrap();
        assert_eq!((response.version(), response.status()), (Version::HTTP_2, StatusCode::OK));
        assert!(!response.text().await.unwrap().contains(r#""error":{"#));
    }
    let page = Reply::of(request(Method::GET, &format!("{RECORDS}?limit=10000"))).await;
    let records = page.json()["records"].as_array().unwrap().clone();
    assert_eq!(records.len(), 2 + 1 + 5000 + 1);
    assert_eq!((&records[1]["value"], &records[2]["value"]), (&json!(large), &json!(large)));
    assert_eq!(page.header("content-length"), Some(&*page.text().len().to_string()));
    let lines = request(Method::GET, &format!("{RECORDS}?limit=10000")).header("accept", NDJSON);
    let lines = Reply::of(lines).await;
    let lines: Vec<Value> =
        lines.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines, records);
    let events = request(Method::GET, &format!("{RECORDS}?from=earliest"));
    let mut events = events.header("accept", "text/event-stream").send().await.unwrap();
    let mut text = String::new();
    while !text.contains("\nid: ") {
        text.push_str(std::str::from_utf8(&events.chunk().await.unwrap().unwrap()).unwrap());
    }
    let missing = Reply::of(request(Method::GET, "/v1/topics/missing")).await;
    assert_eq!(
        (missing.status.as_u16(), &missing.json()["code"]),
        (404, &json!("topic_not_found"))
    );
    let head = Reply::of(request(Method::HEAD, RECORDS)).await;
    assert_eq!((head.status.as_u16(), head.text()), (200, ""));
    drop(events);
    until(&server, GAUGE, |value| value == 0.0).await;
    server.stop().await;
}

#[tokio::test]
async fn reports_come_while_the_request_is_open() {
    let server = start(Timers::default(), &[]).await;
    let mut send = open(&server, (65_535, 65_535)).await;
    let produce = (Method::POST, RECORDS);
    let (answer, mut body) = ask(&mut send, produce, &[("content-type", NDJSON)], false);
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    let mut reports = answer.into_body();
    for offset in 0..5 {
        body.send_data("{\"value\":1}\n".into(), offset == 4).unwrap();
        let report = reports.data().await.unwrap().unwrap();
        let report: Value = serde_json::from_slice(&report).unwrap();
        assert_eq!(report["offset"], offset);
    }
    assert!(read(&mut reports).await.unwrap().is_empty());
    server.stop().await;
}

/// Waits for the end of an answer that is not to be whole, without making room for it.
async fn error_of(body: &mut RecvStream) -> h2::Error {
    let reading = async {
        loop {
            match body.data().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => return error,
                None => panic!("the answer is cut off and looks whole"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reading).await.expect("it is never given up")
}

/// Writes records of 1 MB, so that pages are larger than what sockets and windows hold.
async fn write_large(server: &Server, count: usize) {
    for _ in 0..count {
        let request = server.request(Method::POST, RECORDS).header("content-type", "text/plain");
        assert_eq!(Reply::of(request.body("x".repeat(1_000_000))).await.status, 200);
    }
}

#[tokio::test]
async fn answers_for_which_no_room_is_made_are_given_up_and_the_rest_goes_on() {
    const PAGES: usize = 40;
    let timers = Timers { answer_stall: Duration::from_millis(700), ..Timers::default() };
    let settings = [("http.memory_bytes", "16 MiB"), ("http.max_body_bytes", "2 MiB")];
    let server = start(timers, &settings).await;
    write_large(&server, 3).await;
    // The connection has room for ever, its streams have none; it answers PINGs.
    for window in [0, 1, 65_535] {
        let mut send = open(&server, (window, 1 << 30)).await;
        let mut answers = Vec::new();
        for _ in 0..PAGES {
            send = send.ready().await.unwrap();
            answers.push(ask(&mut send, (Method::GET, RECORDS), &[], true).0);
        }
        let mut stuck = Vec::new();
        let mut refused = 0;
        for answer in answers {
            let answer = answer.await.unwrap();
            match answer.status().as_u16() {
                200 => stuck.push(answer.into_body()),
                503 => refused += 1,
                other => panic!("{other}"),
            }
        }
        assert!(!stuck.is_empty() && refused > 0, "{} stuck, {refused} refused", stuck.len());
        // A stream that reads goes on meanwhile, as far as its window allows.
        if window == 65_535 {
            let (answer, _) = ask(&mut send, (Method::GET, "/healthz"), &[], true);
            let mut body = answer.await.unwrap().into_body();
            assert_eq!(read(&mut body).await.unwrap(), br#"{"status":"ok"}"#);
        }
        for mut body in stuck {
            let error = error_of(&mut body).await;
            assert_eq!(error.reason(), Some(Reason::CANCEL), "{error}");
        }
        until(&server, GAUGE, |value| value == 0.0).await;
        // The connection is still there.
        let (answer, _) = ask(&mut send, (Method::GET, "/healthz"), &[], true);
        assert_eq!(answer.await.unwrap().status(), 200);
    }
    server.stop().await;
}

#[tokio::test]
async fn small_answers_for_which_no_room_is_made_are_given_up_too() {
    let timers = Timers { answer_stall: Duration::from_millis(300), ..Timers::default() };
    let server = start(timers, &[]).await;
    let request = server.request(Method::POST, RECORDS).header("content-type", "text/plain");
    assert_eq!(Reply::of(request.body("x".repeat(10_000))).await.status, 200);
    for window in [0, 1, 9_000] {
        let mut send = open(&server, (window, 1 << 30)).await;
        let (answer, _) = ask(&mut send, (Method::GET, RECORDS), &[], true);
        let mut body = answer.await.unwrap().into_body();
        until(&server, GAUGE, |value| value > 0.0).await;
        let error = error_of(&mut body).await;
        assert_eq!(error.reason(), Some(Reason::CANCEL), "{error}");
        until(&server, GAUGE, |value| value == 0.0).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn streams_are_charged_and_refused_when_nothing_is_left() {
    let settings = [("http.memory_bytes", "4 MiB"), ("http.max_body_bytes", "1 MiB")];
    let server = start(Timers::default(), &settings).await;
    let mut send = open(&server, (65_535, 65_535)).await;
    let poll = format!("{RECORDS}?from=latest&wait=60000");
    let mut waiting = Vec::new();
    for _ in 0..64 {
        send = send.ready().await.unwrap();
        waiting.push(ask(&mut send, (Method::GET, &poll), &[], true).0);
    }
    until(&server, GAUGE, |value| value == f64::from(4 << 20)).await;
    let (answer, _) = ask(&mut send, (Method::GET, RECORDS), &[], true);
    let answer = answer.await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["retry-after"]),
        (503, &http::HeaderValue::from_static("1"))
    );
    let problem: Value =
        serde_json::from_slice(&read(&mut answer.into_body()).await.unwrap()).unwrap();
    assert_eq!(problem["code"], "overloaded");
    let post = server.request(Method::POST, RECORDS).body("x");
    assert_eq!(Reply::of(post).await.status, 200, "HTTP/1 has its connections as a bound");
    for answer in waiting {
        let mut body = answer.await.unwrap().into_body();
        assert!(read(&mut body).await.unwrap().starts_with(br#"{"records":[{"#));
    }
    until(&server, GAUGE, |value| value == 0.0).await;
    server.stop().await;
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [head.as_slice(), payload].concat()
}

/// The fields of a GET without any compression to speak of (RFC 7541).
fn fields(path: &str) -> Vec<u8> {
    let length = u8::try_from(path.len()).unwrap();
    [&[0x82, 0x86, 0x41, 1, b'x', 0x04, length][..], path.as_bytes()].concat()
}

/// Begins a connection by hand.
async fn begin(server: &Server) -> TcpStream {
    let mut stream = connect(server).await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    stream
}

/// Reads the next frame: its type, its stream and its payload; `None` when the connection ends.
async fn next_frame(stream: &mut TcpStream) -> Option<(u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; usize::try_from(length).unwrap()];
    stream.read_exact(&mut payload).await.ok()?;
    Some((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
}

/// Reads until the connection ends and returns the reason that GOAWAY gave.
async fn goaway(stream: &mut TcpStream) -> Option<u32> {
    let mut reason = None;
    while let Some((kind, _, payload)) = next_frame(stream).await {
        if kind == GOAWAY {
            reason = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
    }
    reason
}

async fn check_alive(server: &Server) {
    let reply = Reply::of(server.request(Method::GET, "/healthz")).await;
    assert_eq!(reply.status, 200);
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_one_by_one() {
    const STREAMS: u32 = 300;
    let server = start(Timers::default(), &[]).await;
    let mut stream = begin(&server).await;
    let fields = fields(&format!("{RECORDS}?from=latest&wait=300000"));
    for number in 0..STREAMS {
        let headers = frame(HEADERS, END_STREAM | END_HEADERS, number * 2 + 1, &fields);
        stream.write_all(&headers).await.unwrap();
    }
    let mut refused = 0;
    while refused < STREAMS - 256 {
        let (kind, _, payload) = next_frame(&mut stream).await.unwrap();
        assert_ne!(kind, GOAWAY);
        if kind == RST_STREAM {
            assert_eq!(payload, REFUSED_STREAM.to_be_bytes());
            refused += 1;
        }
    }
    until(&server, "eddyline_http_long_polls_waiting", |value| value == 256.0).await;
    drop(stream);
    until(&server, "eddyline_http_long_polls_waiting", |value| value == 0.0).await;
    until(&server, GAUGE, |value| value == 0.0).await;
    server.stop().await;
}

#[tokio::test]
async fn a_flood_of_resets_ends_its_connection() {
    let server = start(Timers::default(), &[]).await;
    let mut stream = begin(&server).await;
    let fields = fields(RECORDS);
    let pairs = (0..2000).flat_map(|number| {
        let id = number * 2 + 1;
        let headers = frame(HEADERS, END_STREAM | END_HEADERS, id, &fields);
        [headers, frame(RST_STREAM, 0, id, &8_u32.to_be_bytes())]
    });
    let flood: Vec<u8> = pairs.flatten().collect();
    // The end may come while it is still sent.
    let _ = stream.write_all(&flood).await;
    assert!(matches!(goaway(&mut stream).await, Some(ENHANCE_YOUR_CALM) | None));
    check_alive(&server).await;
    until(&server, GAUGE, |value| value == 0.0).await;
    server.stop().await;
}

#[tokio::test]
async fn a_head_without_an_end_ends_its_connection() {
    const FRAMES_MAX: usize = 1000;
    let server = start(Timers::default(), &[]).await;
    let mut stream = begin(&server).await;
    stream.write_all(&frame(HEADERS, END_STREAM, 1, &fields(RECORDS))).await.unwrap();
    // A literal field that is not kept: `a: xxx...`.
    let field = [&[0x00, 1, b'a', 0x7f, 0x81, 0x7d][..], &[b'x'; 16_128]].concat();
    let mut sent = 0;
    while sent < FRAMES_MAX && stream.write_all(&frame(CONTINUATION, 0, 1, &field)).await.is_ok() {
        sent += 1;
    }
    assert!(sent < FRAMES_MAX, "{FRAMES_MAX} frames were taken");
    check_alive(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_and_the_connection_goes_on() {
    let server = start(Timers::default(), &[]).await;
    let mut send = open(&server, (65_535, 65_535)).await;
    for (bytes, status) in [(100_000, 200), (200_000, 431), (100, 200)] {
        let value = "x".repeat(bytes);
        send = send.ready().await.unwrap();
        let (answer, _) = ask(&mut send, (Method::GET, "/healthz"), &[("x-large", &value)], true);
        assert_eq!(answer.await.unwrap().status().as_u16(), status, "{bytes}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_answers_no_ping_loses_its_connection() {
    let timers = Timers { head: Duration::from_millis(300), ..Timers::default() };
    let server = start(timers, &[]).await;
    let mut stream = begin(&server).await;
    let mut pings = 0;
    while let Some((kind, ..)) = next_frame(&mut stream).await {
        pings += usize::from(kind == PING);
    }
    assert!(pings > 0);
    // One that answers keeps it.
    let mut send = open(&server, (65_535, 65_535)).await;
    tokio::time::sleep(timers.head * 5).await;
    let (answer, _) = ask(&mut send, (Method::GET, "/healthz"), &[], true);
    assert_eq!(answer.await.unwrap().status(), 200);
    server.stop().await;
}

#[tokio::test]
async fn a_stop_lets_open_streams_end_in_order() {
    let server = start(Timers::default(), &[]).await;
    let mut send = open(&server, (65_535, 65_535)).await;
    let poll = format!("{RECORDS}?from=latest&wait=300000");
    let (poll, _) = ask(&mut send, (Method::GET, &poll), &[], true);
    let produce = (Method::POST, RECORDS);
    let (produced, mut body) = ask(&mut send, produce, &[("content-type", NDJSON)], false);
    let mut reports = produced.await.unwrap().into_body();
    until(&server, "eddyline_http_long_polls_waiting", |value| value == 1.0).await;
    // Whether the poll sees the record or not, it is answered.
    body.send_data("{\"value\":1}\n".into(), false).unwrap();
    let first = reports.data().await.unwrap().unwrap();
    assert!(first.starts_with(br#"{"partition":0,"offset":0"#));
    let events = [("accept", "text/event-stream")];
    let (events, _) = ask(&mut send, (Method::GET, RECORDS), &events, true);
    let mut events = events.await.unwrap().into_body();
    let stopping = tokio::runtime::Handle::current().spawn(server.stop());
    assert!(read(&mut reports).await.unwrap().is_empty(), "the stream ends and is not cut off");
    let text = String::from_utf8(read(&mut events).await.unwrap()).unwrap();
    assert!(text.ends_with("event: end\ndata: {\"reason\":\"shutdown\"}\n\n"), "{text}");
    let page = read(&mut poll.await.unwrap().into_body()).await.unwrap();
    assert!(page.starts_with(br#"{"records":["#));
    stopping.await.unwrap();
    let after = std::future::poll_fn(|context| send.poll_ready(context)).await;
    assert!(after.is_err(), "the connection takes nothing more");
}

#[tokio::test]
async fn a_sender_that_reads_only_at_the_end_gets_its_reports() {
    const LINES: usize = 20_000;
    let server = start(Timers::default(), &[]).await;
    let client = Client::builder().http2_prior_knowledge().build().unwrap();
    let chunks = stream::iter(0..LINES / 100).map(|_| Ok::<_, h2::Error>("x\n".repeat(100)));
    let request = client.post(format!("{}{RECORDS}", server.url())).header("content-type", NDJSON);
    let reply = Reply::of(request.body(reqwest::Body::wrap_stream(chunks))).await;
    assert_eq!(reply.text().lines().count(), LINES);
    until(&server, GAUGE, |value| value == 0.0).await;
    server.stop().await;
}
