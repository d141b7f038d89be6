//! What a topic's configuration and the limits say about records, on every face that writes.

use std::path::Path;

use eddyline::clock::SystemClock;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Reply, Server, eventually};

const RECORDS: &str = "/v1/topics/t/records";
const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";
const V2_JSON: &str = "application/vnd.kafka.json.v2+json";
const V2_BINARY: &str = "application/vnd.kafka.binary.v2+json";

async fn put(server: &Server, configs: Value) {
    let body = json!({"partitions": 1, "configs": configs}).to_string();
    let reply = Reply::of(server.request(Method::PUT, "/v1/topics/t").body(body)).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
}

async fn post(server: &Server, path: &str, content_type: &str, body: impl Into<String>) -> Reply {
    let request = server.request(Method::POST, path).header("content-type", content_type);
    Reply::of(request.body(body.into())).await
}

async fn records(server: &Server, query: &str) -> Vec<Value> {
    let reply = Reply::of(server.request(Method::GET, &format!("{RECORDS}{query}"))).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["records"].as_array().unwrap().clone()
}

fn now() -> i64 {
    SystemClock::shared().now().as_millis()
}

#[tokio::test]
async fn with_log_append_time_the_servers_clock_counts_and_no_other() {
    let server = Server::start().await;
    put(&server, json!({"message.timestamp.type": "LogAppendTime"})).await;
    let before = now();
    let far = i64::MAX / 2;
    let body = format!(r#"[{{"value":0,"timestamp":5}},{{"value":1,"timestamp":{far}}}]"#);
    let one = post(&server, RECORDS, JSON, body).await;
    assert_eq!(one.status, 200, "what clients claim is not even checked: {}", one.text());
    let two = post(&server, RECORDS, NDJSON, "{\"value\":2,\"timestamp\":6}\n").await;
    let v2 =
        post(&server, "/topics/t", V2_JSON, r#"{"records":[{"value":3,"timestamp":7}]}"#).await;
    assert_eq!(v2.json()["offsets"][0]["offset"], 3);
    let after = now();
    let told = |report: &Value| report["timestamp"].as_i64().unwrap();
    let told =
        [told(&one.json()["records"][0]), told(&one.json()["records"][1]), told(&two.json())];
    let check = async |server: &Server| {
        let read = records(server, "").await;
        let times: Vec<_> = read.iter().map(|r| r["timestamp"].as_i64().unwrap()).collect();
        assert_eq!(times[..3], told, "the report says what readers see");
        assert!(times.iter().all(|time| (before..=after).contains(time)), "{times:?}");
        assert!(times.is_sorted(), "{times:?}");
        let none = records(server, "?from=2100-01-01T00:00:00Z").await;
        assert_eq!(none.len(), 0, "the claimed time is nowhere");
    };
    check(&server).await;
    let server = Server::start_in(server.halt().await, &[]).await;
    check(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn timestamps_outside_of_the_topics_range_are_refused() {
    let server = Server::start().await;
    let range = json!({"message.timestamp.after.max.ms": 60_000,
        "message.timestamp.before.max.ms": 600_000});
    put(&server, range).await;
    let (ahead, behind, inside) = (now() + 3_600_000, now() - 3_600_000, now() - 60_000);
    for bad in [ahead, behind] {
        let body = format!(r#"[{{"value":1}},{{"value":2,"timestamp":{bad}}}]"#);
        let reply = post(&server, RECORDS, JSON, body).await;
        assert_eq!((reply.status.as_u16(), &reply.json()["code"]), (422, &json!("invalid_body")));
        assert_eq!(reply.json()["errors"][0]["pointer"], "/1/timestamp");
        let body = format!(r#"{{"records":[{{"value":2,"timestamp":{bad}}}]}}"#);
        assert_eq!(post(&server, "/topics/t", V2_JSON, body).await.status, 422);
        let raw = post(&server, &format!("{RECORDS}?timestamp={bad}"), "text/plain", "x").await;
        assert_eq!(raw.status, 422);
        let line = format!("{{\"value\":1,\"timestamp\":{bad}}}\n");
        let report = post(&server, RECORDS, NDJSON, line).await.json();
        assert_eq!(report["error"]["code"], "invalid_body");
    }
    assert_eq!(records(&server, "").await.len(), 0, "what is refused is not written");
    let body = format!(r#"{{"value":3,"timestamp":{inside}}}"#);
    assert_eq!(post(&server, RECORDS, JSON, body).await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn a_record_above_the_topics_limit_is_refused_on_every_face() {
    let server = Server::start().await;
    put(&server, json!({"max.message.bytes": 2000})).await;
    let large = "x".repeat(2000);
    let reply =
        post(&server, RECORDS, JSON, format!(r#"[{{"value":1}},{{"value":"{large}"}}]"#)).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["code"]), (413, &json!("too_large")));
    let detail = reply.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("max.message.bytes") && detail.contains("2000"), "{detail}");
    let raw = post(&server, RECORDS, "text/plain", large.clone()).await;
    assert_eq!(raw.status, 413);
    let lines = format!("{{\"value\":1}}\n{{\"value\":\"{large}\"}}\n{{\"value\":2}}\n");
    let lines = post(&server, RECORDS, NDJSON, lines).await;
    let reports: Vec<Value> =
        lines.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(reports[1]["error"]["code"], "too_large");
    assert_eq!((&reports[0]["offset"], &reports[2]["offset"]), (&json!(0), &json!(1)));
    let v2 = format!(r#"{{"records":[{{"value":1}},{{"value":"{large}"}}]}}"#);
    let v2 = post(&server, "/topics/t", V2_JSON, v2).await;
    assert_eq!((v2.status.as_u16(), &v2.json()["error_code"]), (413, &json!(413)));
    assert_eq!(records(&server, "").await.len(), 2);
    let fits = post(&server, RECORDS, "text/plain", "x".repeat(1500)).await;
    assert_eq!(fits.status, 200, "{}", fits.text());
    server.stop().await;
}

#[tokio::test]
async fn base64_that_was_cut_off_is_refused_on_every_face() {
    let server = Server::start().await;
    put(&server, json!({})).await;
    for bad in ["QQ", "QQ=", "QUI", "Q", "QR==", "QQ==\\n", "Q-==", "QQ== ", "QQ==QQ=="] {
        for body in [
            format!(r#"{{"value":"{bad}","encoding":"base64"}}"#),
            format!(r#"{{"value":1,"key":{{"base64":"{bad}"}}}}"#),
            format!(r#"{{"value":1,"headers":[["h",{{"base64":"{bad}"}}]]}}"#),
        ] {
            let reply = post(&server, RECORDS, JSON, body.clone()).await;
            assert_eq!(reply.status, 400, "{body}: {}", reply.text());
            let report = post(&server, RECORDS, NDJSON, body.clone()).await.json();
            assert_eq!(report["error"]["code"], "invalid_request", "{body}");
        }
        for record in [
            format!(r#"{{"value":"{bad}"}}"#),
            format!(r#"{{"key":"{bad}"}}"#),
            format!(r#"{{"headers":[{{"key":"h","value":"{bad}"}}]}}"#),
        ] {
            let body = format!(r#"{{"records":[{record}]}}"#);
            let reply = post(&server, "/topics/t", V2_BINARY, body).await;
            assert_eq!(reply.status, 400, "{record}: {}", reply.text());
        }
    }
    assert_eq!(records(&server, "").await.len(), 0, "nothing was written");
    let reply = post(&server, RECORDS, JSON, r#"{"value":"QQ==","encoding":"base64"}"#).await;
    assert_eq!(reply.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn reading_by_time_finds_the_first_record_in_offset_order_that_is_not_older() {
    let server = Server::start().await;
    put(&server, json!({})).await;
    // Out of order on purpose: 1970-01-01T00:00:01Z is 1000.
    for time in [500, 2000, 1000, 3000, 10] {
        let body = format!(r#"{{"value":{time},"timestamp":{time}}}"#);
        assert_eq!(post(&server, RECORDS, JSON, body).await.status, 200);
    }
    let values = async |from: &str| {
        let read = records(&server, &format!("?from={from}")).await;
        read.iter().map(|record| record["value"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(values("1970-01-01T00:00:01Z").await, [2000, 1000, 3000, 10]);
    assert_eq!(values("1970-01-01T00:00:02.0001Z").await, [3000, 10]);
    assert_eq!(values("1970-01-01T01:00:03%2B01:00").await, [3000, 10]);
    assert_eq!(values("1969-12-31T00:00:00Z").await, [500, 2000, 1000, 3000, 10]);
    assert_eq!(values("2026-01-01T00:00:00Z").await, [0_u64; 0]);
    for bad in ["2026-01-01", "noon", "1970-01-01T00:00:01"] {
        let path = format!("{RECORDS}?from={bad}");
        let reply = Reply::of(server.request(Method::GET, &path)).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.json()["error_code"]),
            (400, &json!(400)),
            "{bad}"
        );
    }
    server.stop().await;
}

#[tokio::test]
async fn a_body_that_comes_too_slowly_is_given_up_with_a_problem() {
    let server = Server::start_with(&[("http.request_timeout", "200ms")]).await;
    let address = server.url().trim_start_matches("http://");
    for content_type in [JSON, "text/plain"] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "POST {RECORDS} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-type: {content_type}\r\ncontent-length: 100\r\n\r\n{{\"val"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        assert!(answer.contains(r#""code":"request_timeout""#), "{answer}");
        assert!(answer.contains(r#""retriable":true"#), "{answer}");
    }
    let shown = Reply::of(server.request(Method::GET, "/v1/topics/t")).await;
    assert_eq!(shown.status, 404, "nothing was created");
    server.stop().await;
}

/// How a body says where it ends.
#[derive(Debug, Clone, Copy)]
enum Length {
    Announced,
    Chunked,
}

/// Sends a request to its end before reading anything, as most clients do, and returns the status.
/// What is sent is far more than sockets buffer.
async fn status_after_sending(
    server: &Server,
    line: &str,
    content_type: &str,
    (length, chunks): (Length, usize),
) -> String {
    const CHUNK_BYTES: usize = 0x10000;
    let address = server.url().strip_prefix("http://").unwrap();
    let mut socket = TcpStream::connect(address).await.unwrap();
    let framing = match length {
        Length::Announced => format!("content-length: {}", CHUNK_BYTES * chunks),
        Length::Chunked => "transfer-encoding: chunked".to_owned(),
    };
    let head =
        format!("{line} HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\n{framing}\r\n\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut chunk = vec![b'1'; CHUNK_BYTES];
    chunk[CHUNK_BYTES - 1] = b'\n';
    if let Length::Chunked = length {
        chunk = [b"10000\r\n".as_slice(), &chunk, b"\r\n"].concat();
    }
    for _ in 0..chunks {
        socket.write_all(&chunk).await.unwrap();
    }
    if let Length::Chunked = length {
        socket.write_all(b"0\r\n\r\n").await.unwrap();
    }
    let mut answer = [0; 12];
    socket.read_exact(&mut answer).await.unwrap();
    std::str::from_utf8(&answer).unwrap().strip_prefix("HTTP/1.1 ").unwrap().to_owned()
}

#[tokio::test]
async fn a_sender_that_looks_up_only_at_the_end_still_finds_out_why_it_was_refused() {
    let server = Server::start_with(&[("http.max_body_bytes", "64 KiB")]).await;
    let post = format!("POST {RECORDS}");
    let (large, streamed) = ((Length::Announced, 1250), (Length::Chunked, 128));
    for (line, content_type, sent, status) in [
        (post.as_str(), JSON, large, "413"),
        (post.as_str(), JSON, streamed, "413"),
        ("POST /topics/t", V2_JSON, streamed, "413"),
        ("POST /v1/topics/a%20b/records", NDJSON, streamed, "422"),
        ("POST /v1/topics/a%20b/records", NDJSON, large, "422"),
        (&format!("{post}?nonsense=1"), "text/plain", streamed, "400"),
        ("PUT /v1/topics/t", "text/plain", streamed, "415"),
        ("POST /v1/nowhere", JSON, streamed, "404"),
        ("POST /v1/topics/t", JSON, streamed, "405"),
    ] {
        let found = status_after_sending(&server, line, content_type, sent).await;
        assert_eq!(found, status, "{line} {content_type} {sent:?}");
    }
    server.stop().await;
}

/// Returns the sizes of all segment files of the one topic.
fn segment_sizes(server: &Server) -> Vec<u64> {
    let folder = |path: &Path| {
        // Made when the first records are written to segments, a moment after they are acked.
        let entries = std::fs::read_dir(path).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    let topics = folder(&server.path().join("partitions"));
    let files = topics.iter().flat_map(|topic| folder(topic)).flat_map(|path| folder(&path));
    let logs = files.filter(|file| file.extension().is_some_and(|extension| extension == "log"));
    logs.map(|file| file.metadata().unwrap().len()).collect()
}

#[tokio::test]
async fn a_batch_lies_in_one_segment_and_is_never_larger() {
    const SEGMENT_BYTES: u64 = 65_536;
    let server = Server::start().await;
    put(&server, json!({"segment.bytes": SEGMENT_BYTES})).await;
    let large = "x".repeat(70_000);
    let lines = format!("{{\"value\":\"{large}\"}}\n");
    let report = post(&server, RECORDS, NDJSON, lines).await.json();
    assert_eq!(report["error"]["code"], "too_large");
    let v2 = format!(r#"{{"records":[{{"value":"{large}"}}]}}"#);
    assert_eq!(post(&server, "/topics/t", V2_JSON, v2).await.status, 413);
    let reply = post(&server, RECORDS, "text/plain", large).await;
    assert_eq!(reply.status, 413);
    let detail = reply.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("segment.bytes (65536)"), "{detail}");
    assert_eq!(records(&server, "").await.len(), 0);
    // One request of more than a segment is cut into batches that fit.
    let value = "y".repeat(1000);
    let body: Vec<_> = (0..200).map(|_| json!({"value": value})).collect();
    let reply = post(&server, RECORDS, JSON, json!(body).to_string()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(records(&server, "?limit=1000").await.len(), 200);
    let sizes = eventually("four segments", async || {
        Some(segment_sizes(&server)).filter(|sizes| sizes.iter().sum::<u64>() > 200_000)
    });
    let sizes = sizes.await;
    assert!(sizes.iter().all(|size| *size <= SEGMENT_BYTES), "{sizes:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_request_that_its_new_topic_would_refuse_creates_none() {
    let server = Server::start().await;
    let large = "x".repeat(1_100_000);
    let far = i64::MAX / 2;
    let refused = [
        (RECORDS, "text/plain", large.clone(), 413),
        (RECORDS, JSON, format!(r#"[{{"value":1}},{{"value":"{large}"}}]"#), 413),
        (RECORDS, JSON, format!(r#"{{"value":1,"timestamp":{far}}}"#), 422),
        ("/topics/t", V2_JSON, format!(r#"{{"records":[{{"value":"{large}"}}]}}"#), 413),
        ("/topics/t", V2_JSON, format!(r#"{{"records":[{{"timestamp":{far}}}]}}"#), 422),
        ("/topics/t/partitions/0", V2_JSON, format!(r#"{{"records":[{{"key":"{large}"}}]}}"#), 413),
    ];
    for (path, content_type, body, status) in refused {
        let what = format!("{path} {content_type} {}", body.get(..40).unwrap());
        let reply = post(&server, path, content_type, body).await;
        assert_eq!(reply.status, status, "{what}: {}", reply.text());
        let shown = Reply::of(server.request(Method::GET, "/v1/topics/t")).await;
        assert_eq!(shown.status, 404, "{what}");
    }
    assert_eq!(post(&server, RECORDS, JSON, r#"{"value":1}"#).await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_like_one_of_http_2() {
    let server = Server::start().await;
    let get = |bytes: usize| {
        let fields = (0..bytes / 4000)
            .fold(server.request(Method::GET, "/healthz"), |request, n| {
                request.header(format!("x-{n}"), "x".repeat(4000))
            });
        Reply::of(fields)
    };
    assert_eq!(get(150_000).await.status, 200);
    assert_eq!(get(180_000).await.status, 431);
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_never_reads_its_answer_loses_its_connection() {
    let shorten = |config: &mut eddyline::config::Config| {
        config.http.timers.answer_stall = std::time::Duration::from_millis(300);
    };
    let server = Server::start_tweaked(&[], shorten).await;
    put(&server, json!({})).await;
    for _ in 0..12 {
        let raw = post(&server, RECORDS, "text/plain", "x".repeat(1_000_000)).await;
        assert_eq!(raw.status, 200, "{}", raw.text());
    }
    let address = server.url().trim_start_matches("http://");
    let mut socket = TcpStream::connect(address).await.unwrap();
    let head = format!("GET {RECORDS}?max_bytes=16000000 HTTP/1.1\r\nhost: x\r\n\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    // Where the connection is gone, what is sent on it is refused.
    eventually("the connection is ended", async || socket.write_all(b"x").await.err()).await;
    // What the sockets hold may still be there to be read; the rest never comes.
    let mut answer = Vec::new();
    let ended = socket.read_to_end(&mut answer).await;
    assert!(answer.len() < 12_000_000, "{ended:?}: {} bytes came", answer.len());
    server.stop().await;
}
