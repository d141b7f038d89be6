//! The load generator against a server that does well, and against one that does not: what it finds
//! is in its output and in its exit code. Nothing here depends on how fast anything is.

use futures_util::{SinkExt, StreamExt};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;

use crate::cli::{FAILURE, OK, Ran, USAGE, run};
use crate::support::{Reply, Server};

/// A short run whose result is read by a script.
fn short<'a>(words: &[&'a str]) -> Vec<&'a str> {
    let common = ["--duration", "500ms", "--warm-up", "100ms", "--output", "json"];
    ["bench"].iter().chain(words).chain(&common).copied().collect()
}

fn result(ran: &Ran) -> Value {
    assert_eq!(ran.out.lines().count(), 1, "{ran:?}");
    serde_json::from_str(&ran.out).expect(&ran.out)
}

async fn records_of(server: &Server, topic: &str) -> u64 {
    let shown = Reply::of(server.request(Method::GET, &format!("/v1/topics/{topic}"))).await.json();
    let ends = shown["details"].as_array().unwrap().iter();
    ends.map(|part| part["log_end_offset"].as_u64().unwrap()).sum()
}

#[tokio::test]
async fn every_record_reaches_every_subscriber_once() {
    let server = Server::start().await;
    let words = short(&["subscribe", "t", "-n", "20", "--rate", "2000", "--partitions", "3"]);
    let ran = run(server.url(), &words).await;
    let result = result(&ran);
    assert_eq!(ran.code, OK, "{ran:?}");
    assert_eq!(result["connected"], 20);
    for wrong in ["gaps", "duplicates", "lost", "errors", "not_written", "closed_early"] {
        assert_eq!(result[wrong], 0, "{wrong}: {result}");
    }
    // 2,000 a second for 600 ms, two a request.
    assert_eq!(result["produced"], 1200);
    assert_eq!(records_of(&server, "t").await, 1200);
    let latency = |name: &str| result["latency_us"][name].as_u64().unwrap();
    assert!(latency("p50") > 0 && latency("p50") <= latency("max"), "{result}");
    // The topic is there now, and has to be as it is asked for.
    let ran = run(server.url(), &short(&["subscribe", "t", "--partitions", "4"])).await;
    assert_eq!((ran.code, ran.out.as_str()), (FAILURE, ""));
    assert!(ran.err.contains("t has 3 partitions and not 4"), "{ran:?}");
    server.stop().await;
}

#[tokio::test]
async fn as_fast_as_possible_loses_nothing_either() {
    let server = Server::start().await;
    let words = ["subscribe", "t", "-n", "3", "--max", "--producers", "4", "--record-bytes", "20"];
    let ran = run(server.url(), &short(&words)).await;
    let result = result(&ran);
    assert_eq!(ran.code, OK, "{ran:?}");
    assert_eq!(result["asked_per_second"], Value::Null);
    assert_eq!(records_of(&server, "t").await, result["produced"].as_u64().unwrap());
    server.stop().await;
}

#[tokio::test]
async fn people_get_a_table_and_idle_subscribers_write_nothing() {
    let server = Server::start().await;
    let words =
        ["bench", "subscribe", "t", "-n", "30", "--idle", "--duration", "100ms", "--warm-up", "0s"];
    let ran = run(server.url(), &words).await;
    assert_eq!((ran.code, ran.err.as_str()), (OK, ""), "{ran:?}");
    assert!(ran.out.starts_with("subscribers  30 of 30 connected, 0 lost on the way\n"), "{ran:?}");
    assert!(ran.out.ends_with("errors       0, records not written 0\n"), "{ran:?}");
    assert_eq!(records_of(&server, "t").await, 0);
    server.stop().await;
}

#[tokio::test]
async fn commits_of_a_groups_members_are_counted_when_they_are_acknowledged() {
    let server = Server::start().await;
    // So many come at once that partitions are taken away from members before they have begun.
    let ran = run(server.url(), &short(&["commit", "t", "--members", "40", "--group", "g"])).await;
    let result = result(&ran);
    assert_eq!(ran.code, OK, "{ran:?}");
    let committed = result["committed"].as_u64().unwrap();
    assert!(committed > 0, "{result}");
    let path = "/v1/groups/g/offsets";
    let offsets = Reply::of(server.request(Method::GET, path)).await.json()["offsets"].clone();
    let offsets = offsets.as_array().unwrap();
    assert_eq!(offsets.len(), 40);
    let sum: u64 = offsets.iter().map(|each| each["offset"].as_u64().unwrap()).sum();
    assert!(sum >= committed, "{sum} of {committed}");
    let few = run(server.url(), &short(&["commit", "t", "--members", "41"])).await;
    assert_eq!(few.code, FAILURE);
    assert!(few.err.contains("41 members need as many partitions and t has 40"), "{few:?}");
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_begin_is_an_error_that_says_why() {
    let ran = run("http://127.0.0.1:1", &short(&["subscribe", "t"])).await;
    assert_eq!((ran.code, ran.out.as_str()), (FAILURE, ""));
    assert!(ran.err.starts_with("error: no connection to http://127.0.0.1:1"), "{ran:?}");
    let ran = run("http://127.0.0.1:1", &short(&["subscribe", "t", "-n", "4000000000"])).await;
    assert!(ran.err.contains("descriptors"), "{ran:?}");
    let ran = run("http://127.0.0.1:1", &["bench", "subscribe", "t", "--idle", "--max"]).await;
    assert_eq!(ran.code, USAGE);
}

/// Answers as a server does until somebody has subscribed, then sends these frames.
async fn serve(mut connection: TcpStream, frames: &'static [&'static str]) {
    let mut head = [0; 1024];
    connection.peek(&mut head).await.unwrap();
    if !head.starts_with(b"GET /v1/ws ") {
        let _ = connection.read(&mut head).await.unwrap();
        let body = r#"{"topic":"t","partitions":1}"#;
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        );
        return connection.write_all(answer.as_bytes()).await.unwrap();
    }
    #[expect(clippy::result_large_err, reason = "the library's signature")]
    let accept = |_: &Request, mut response: Response| {
        let protocol = HeaderValue::from_static("eddyline.v1.json");
        response.headers_mut().insert("sec-websocket-protocol", protocol);
        Ok(response)
    };
    let mut socket = tokio_tungstenite::accept_hdr_async(connection, accept).await.unwrap();
    while let Some(Ok(message)) = socket.next().await {
        if message.to_text().unwrap_or_default().contains(r#""type":"subscribe""#) {
            let subscribed = json!({"type": "subscribed", "id": 1, "start": {"0": 10}});
            socket.send(Message::text(subscribed.to_string())).await.unwrap();
            for frame in frames {
                socket.send(Message::text(*frame)).await.unwrap();
            }
        }
    }
}

async fn against(frames: &'static [&'static str]) -> (i32, Value) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let words = short(&["subscribe", "t", "--idle"]);
    let mut connections = JoinSet::new();
    let accepting = async {
        loop {
            connections.spawn(serve(listener.accept().await.unwrap().0, frames));
        }
    };
    let ran = tokio::select! {
        ran = run(&url, &words) => ran,
        () = accepting => panic!("it goes on for ever"),
    };
    (ran.code, result(&ran))
}

#[tokio::test]
async fn a_server_that_leaves_out_or_repeats_records_is_found_out() {
    let (code, result) = against(&[
        r#"{"type":"records","id":1,"p":0,"base":10,"next":20,"hw":20,"records":[]}"#,
        r#"{"type":"records","id":1,"p":0,"base":23,"next":30,"hw":30,"records":[]}"#,
        r#"{"type":"records","id":1,"p":0,"base":28,"next":31,"hw":31,"records":[]}"#,
        r#"{"type":"gap","id":1,"p":0,"from":31,"to":34,"reason":"damaged"}"#,
        r#"{"type":"records","id":1,"p":0,"base":35,"next":36,"hw":36,"records":[]}"#,
    ])
    .await;
    assert_eq!(code, FAILURE);
    assert_eq!((&result["gaps"], &result["duplicates"]), (&json!(3), &json!(2)), "{result}");
    assert_eq!((&result["lost"], &result["errors"]), (&json!(4), &json!(0)), "{result}");
}

#[tokio::test]
async fn a_server_that_ends_a_subscription_is_found_out() {
    let (code, result) =
        against(&[r#"{"type":"error","id":1,"code":"internal","message":"no"}"#]).await;
    assert_eq!(code, FAILURE);
    assert_eq!((&result["closed_early"], &result["errors"]), (&json!(1), &json!(1)), "{result}");
}
