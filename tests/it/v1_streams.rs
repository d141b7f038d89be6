//! Timers of connections and of what stays open on the native face, shortened.

use std::convert::Infallible;
use std::time::Duration;

use eddyline::api::Timers;
use futures_util::{StreamExt, stream};
use reqwest::{Body, Method};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::{Reply, Server};

const RECORDS: &str = "/v1/topics/t/records";

async fn start(timers: Timers) -> Server {
    let server = Server::start_tweaked(&[], |config| config.http.timers = timers).await;
    let put = server.request(Method::PUT, "/v1/topics/t").body(r#"{"partitions":1}"#);
    assert_eq!(Reply::of(put).await.status, 201);
    server
}

async fn events(server: &Server) -> reqwest::Response {
    let request = server.request(Method::GET, RECORDS).header("accept", "text/event-stream");
    request.send().await.unwrap()
}

#[tokio::test]
async fn a_silent_stream_of_events_is_kept_alive_by_comments() {
    let timers = Timers { events_comment_every: Duration::from_millis(50), ..Timers::default() };
    let server = start(timers).await;
    let mut answer = events(&server).await;
    let mut text = String::new();
    while !text.ends_with(":\n\n:\n\n:\n\n") {
        let chunk = answer.chunk().await.unwrap().unwrap();
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    assert!(text.starts_with("retry: 2000\n\n"), "{text}");
    assert!(!text.contains("event:"), "{text}");
    server.stop().await;
}

#[tokio::test]
async fn a_stream_of_events_ends_after_its_life() {
    let timers = Timers { events_life: Duration::from_millis(300), ..Timers::default() };
    let server = start(timers).await;
    let answer = events(&server).await;
    let text = answer.text().await.unwrap();
    assert_eq!(text, "retry: 2000\n\nevent: end\ndata: {\"reason\":\"max_age\"}\n\n");
    server.stop().await;
}

/// Sends `text` as a body that never ends, and returns the whole answer.
async fn send_and_stop(server: &Server, text: &'static str) -> Vec<Value> {
    let begun = stream::iter([Ok::<_, Infallible>(text)]).chain(stream::pending());
    let request = server.request(Method::POST, RECORDS);
    let request = request.header("content-type", "application/x-ndjson");
    let reply = Reply::of(request.body(Body::wrap_stream(begun))).await;
    assert_eq!(reply.status, 200);
    reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_producer_that_falls_silent_is_given_up() {
    let timers = Timers { produce_idle: Duration::from_millis(300), ..Timers::default() };
    let server = start(timers).await;
    let reports = send_and_stop(&server, "{\"value\":1,\"timestamp\":5}\n").await;
    assert_eq!(json!(reports), json!([{"partition": 0, "offset": 0, "timestamp": 5}]));
    let reports = send_and_stop(&server, "{\"value\":2}\n{\"val").await;
    assert_eq!((reports.len(), &reports[0]["offset"]), (2, &json!(1)));
    assert_eq!(reports[1]["error"]["code"], "request_timeout", "every begun line has a report");
    let page = Reply::of(server.request(Method::GET, RECORDS)).await.json();
    assert_eq!(page["records"].as_array().unwrap().len(), 2, "half a line is not written");
    server.stop().await;
}

#[tokio::test]
async fn a_connection_whose_head_never_comes_is_closed() {
    let timers = Timers { head: Duration::from_millis(200), ..Timers::default() };
    let server = start(timers).await;
    let address = server.url().trim_start_matches("http://");
    for begun in ["", "PRI * HT", "GET /healthz HT", "GET /healthz HTTP/1.1\r\nhost: x\r\nx-slow: "]
    {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let closed = tokio::time::timeout(Duration::from_secs(30), read).await;
        let read = closed.unwrap_or_else(|_| panic!("{begun:?} keeps its connection"));
        let text = String::from_utf8_lossy(&answer);
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 408"), "{begun:?}: {read:?} {text}");
    }
    server.stop().await;
}

/// Reports that the client did not read filled the socket, and a write that waited for a minute
/// ended the connection although lines still arrived and there was room for their reports.
#[tokio::test]
async fn a_sender_that_reads_only_at_the_end_keeps_its_connection_however_long_it_sends() {
    // Refused lines: a report has a hundred times their bytes, and soon fills both sockets.
    const AT_ONCE: usize = 40_000;
    const SLOWLY: usize = 40;
    let stall = Duration::from_millis(300);
    let server = start(Timers { answer_stall: stall, ..Timers::default() }).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let address = server.url().trim_start_matches("http://").parse().unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let bytes = (AT_ONCE + SLOWLY) * 2;
    let head = format!(
        "POST {RECORDS} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-type: application/x-ndjson\r\ncontent-length: {bytes}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all("x\n".repeat(AT_ONCE).as_bytes()).await.unwrap();
    for _ in 0..SLOWLY {
        tokio::time::sleep(stall / 4).await;
        stream.write_all(b"x\n").await.unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{}", &answer[..answer.len().min(200)]);
    let reports = answer.matches(r#""code":"invalid_request""#).count();
    assert_eq!(reports, AT_ONCE + SLOWLY);
    server.stop().await;
}
