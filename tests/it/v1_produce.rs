//! Produce on the native face.

use std::convert::Infallible;

use futures_util::stream;
use reqwest::{Body, Method};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::support::{Reply, Server, eventually};

const RECORDS: &str = "/v1/topics/t/records";
const NDJSON: &str = "application/x-ndjson";

async fn put_topic(server: &Server, body: &'static str) {
    let reply = Reply::of(server.request(Method::PUT, "/v1/topics/t").body(body)).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
}

async fn produce(server: &Server, query: &str, content_type: &str, body: impl Into<Body>) -> Reply {
    let request = server.request(Method::POST, &format!("{RECORDS}{query}"));
    Reply::of(request.header("content-type", content_type).body(body)).await
}

async fn json(server: &Server, body: impl Into<Body>) -> Reply {
    produce(server, "", "application/json", body).await
}

/// Reads everything as lines.
async fn read_lines(server: &Server) -> Vec<String> {
    let request = server.request(Method::GET, &format!("{RECORDS}?limit=10000"));
    let reply = Reply::of(request.header("accept", "application/x-ndjson")).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.text().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn records_of_every_form_are_written_and_read_back() {
    let server = Server::start().await;
    put_topic(&server, r#"{"partitions":12}"#).await;
    // murmur2("user123") mod 12 is 9.
    let one = json(&server, r#"{"key":"user123","value":{"a": 1.0}, "timestamp":5}"#).await;
    assert_eq!(one.status, 200, "{}", one.text());
    assert_eq!(
        one.text(),
        r#"{"records":[{"partition":9,"offset":0,"timestamp":5}]}"#,
        "the key decides the partition"
    );
    let array = json(&server, r#"[{"key":"user123","value":1},{"key":"user123","value":null}]"#);
    let array = array.await.json();
    assert_eq!(array["records"][1]["offset"], 2);
    let listed =
        r#"{"records":[{"partition":9,"value":"x\ny","encoding":"text","headers":[["h",null]]}]}"#;
    let form = "application/x-www-form-urlencoded";
    let listed = produce(&server, "?acks=all", form, listed).await;
    assert_eq!(listed.json()["records"][0]["offset"], 3);

    let lines = read_lines(&server).await;
    assert_eq!(
        lines[0],
        concat!(
            r#"{"partition":9,"offset":0,"timestamp":5,"key":"user123","value":{"a": 1.0},"#,
            r#""headers":[]}"#
        )
    );
    assert!(lines[2].contains(r#""key":"user123","value":null,"headers":[]}"#), "{}", lines[2]);
    let text = r#""key":null,"value":"x\ny","headers":[["h",null]],"encoding":"text"}"#;
    assert!(lines[3].ends_with(text), "{}", lines[3]);

    // What was read can be written back as it is.
    let again = produce(&server, "", "application/x-ndjson", lines.join("\n")).await;
    assert_eq!(again.text().lines().count(), 4);
    let copies = read_lines(&server).await;
    let value = |line: &String| serde_json::from_str::<Value>(line).unwrap()["value"].clone();
    let values: Vec<_> = copies.iter().map(value).collect();
    assert_eq!(values[..4], values[4..]);
    server.stop().await;
}

#[tokio::test]
async fn a_raw_record_is_stored_as_it_came() {
    let server = Server::start().await;
    put_topic(&server, r#"{"partitions":2}"#).await;
    let body = vec![0_u8, 255, 10, 13];
    let request = server
        .request(Method::POST, &format!("{RECORDS}?key=k%20&partition=1&timestamp=7"))
        .header("content-type", "image/png")
        .header("eddyline-header", "trace=a=b")
        .body(body);
    assert_eq!(
        Reply::of(request).await.text(),
        r#"{"records":[{"partition":1,"offset":0,"timestamp":7}]}"#
    );
    assert_eq!(
        read_lines(&server).await,
        [concat!(
            r#"{"partition":1,"offset":0,"timestamp":7,"key":"k ","value":"AP8KDQ==","#,
            r#""headers":[["content-type","image/png"],["trace","a=b"]],"encoding":"base64"}"#
        )]
    );
    server.stop().await;
}

#[tokio::test]
async fn acks_0_answers_before_the_write() {
    let server = Server::start().await;
    let reply = produce(&server, "?acks=0", "application/json", r#"{"value":1}"#).await;
    assert_eq!((reply.status.as_u16(), reply.text()), (202, "{}"));
    let path = format!("{RECORDS}?wait=30000");
    let page = Reply::of(server.request(Method::GET, &path)).await.json();
    assert_eq!(page["records"][0]["value"], 1);
    server.stop().await;
}

#[tokio::test]
async fn acks_0_reports_each_line_when_it_is_queued() {
    let server = Server::start().await;
    put_topic(&server, r#"{"partitions":1}"#).await;
    let lines = "{\"value\":1}\n{\"value\":\n{\"value\":2}\n{\"value\":3,\"partition\":7}\n";
    let reply = produce(&server, "?acks=0", NDJSON, lines).await;
    assert_eq!(reply.status, 202);
    assert_eq!(reply.header("content-type"), Some(NDJSON));
    let reports: Vec<Value> =
        reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let code = |report: &Value| report["error"]["code"].as_str().map(str::to_owned);
    let codes: Vec<_> = reports.iter().map(code).collect();
    let (bad, missing) = ("invalid_request".to_owned(), "partition_not_found".to_owned());
    assert_eq!(codes, [None, Some(bad), None, Some(missing)]);
    assert_eq!((&reports[0], &reports[2]), (&json!({}), &json!({})));
    eventually("both are written", async || (read_lines(&server).await.len() == 2).then_some(()))
        .await;
    server.stop().await;
}

#[tokio::test]
async fn what_stands_in_a_list_is_a_record_even_without_members() {
    let server = Server::start().await;
    put_topic(&server, r#"{"partitions":1}"#).await;
    for (body, count) in [
        (r#"[{},{"partition":0}]"#, 2),
        (r#"{"records":[{}]}"#, 1),
        (r#"{"records":[{"offset":5,"topic":"x"},{"timestamp":7}]}"#, 2),
    ] {
        let reply = json(&server, body).await;
        assert_eq!(reply.status, 200, "{body}: {}", reply.text());
        assert_eq!(reply.json()["records"].as_array().unwrap().len(), count, "{body}");
    }
    let lines = produce(&server, "", NDJSON, "{}\n{\"partition\":0}\n").await;
    assert_eq!(lines.text().matches("\"offset\"").count(), 2, "{}", lines.text());
    for body in ["{}", r#"{"partition":0}"#, r#"{"offset":5}"#] {
        let reply = json(&server, body).await;
        assert_eq!(reply.status, 422, "{body}: {}", reply.text());
    }
    let page = Reply::of(server.request(Method::GET, RECORDS)).await.json();
    let records = page["records"].as_array().unwrap();
    assert_eq!(records.len(), 7);
    let is_bare =
        |r: &Value| r["key"].is_null() && r["value"].is_null() && r["headers"] == json!([]);
    assert!(records.iter().all(is_bare), "{page}");
    server.stop().await;
}

#[tokio::test]
async fn compressed_bodies_are_refused_on_every_face() {
    const V2: &str = "application/vnd.kafka.json.v2+json";
    let server = Server::start().await;
    let send = async |method: Method, path: &str, (content_type, coding): (&str, &str)| {
        let request = server.request(method, path).header("content-type", content_type);
        Reply::of(request.header("content-encoding", coding).body(r#"{"records":[{}]}"#)).await
    };
    for coding in ["gzip", "identity, zstd", "br"] {
        for content_type in ["application/json", NDJSON, "text/plain"] {
            let reply = send(Method::POST, RECORDS, (content_type, coding)).await;
            assert_eq!(reply.status, 415, "{content_type} {coding}");
            assert_eq!(reply.json()["code"], "unsupported_media_type");
        }
        let reply = send(Method::POST, "/topics/t", (V2, coding)).await;
        assert_eq!((reply.status.as_u16(), &reply.json()["error_code"]), (415, &json!(415)));
        let reply = send(Method::PUT, "/v1/topics/t", ("application/json", coding)).await;
        assert_eq!(reply.status, 415);
    }
    let reply = Reply::of(server.request(Method::GET, "/v1/topics/t")).await;
    assert_eq!(reply.status, 404, "what is refused creates nothing");
    for coding in ["identity", "Identity", ""] {
        let reply = send(Method::POST, RECORDS, ("application/json", coding)).await;
        assert_eq!(reply.status, 200, "{coding}");
        assert_eq!(send(Method::POST, "/topics/t", (V2, coding)).await.status, 200, "{coding}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_request_with_any_bad_record_writes_nothing() {
    let server =
        Server::start_with(&[("http.max_records", "3"), ("http.max_body_bytes", "64 KiB")]).await;
    put_topic(&server, r#"{"partitions":2,"configs":{"max.message.bytes":2000}}"#).await;
    let large = "x".repeat(3000);
    let too_large = format!(r#"[{{"value":1}},{{"value":"{large}"}}]"#);
    let body_too_large = "x".repeat(65 * 1024);
    for (body, status, code, pointer) in [
        (r#"[{"value":1},{"value":]"#, 400, "invalid_request", None),
        ("{\"value\":\"\u{1}\"}", 400, "invalid_request", None),
        (r#"[{"value":1},{"value":1,"x":1}]"#, 422, "invalid_body", Some("/1/x")),
        (r#"{"records":[]}"#, 422, "invalid_body", Some("/records")),
        (
            r#"{"records":[{"value":1},{"value":1,"partition":2}]}"#,
            404,
            "partition_not_found",
            Some("/records/1/partition"),
        ),
        (&too_large, 413, "too_large", Some("/1")),
        (r#"[{"value":1},{"value":1},{"value":1},{"value":1}]"#, 413, "too_large", None),
        (&body_too_large, 413, "too_large", None),
    ] {
        let reply = json(&server, body.to_owned()).await;
        assert_eq!(reply.status, status, "{}", reply.text());
        assert_eq!(reply.json()["code"], code);
        assert_eq!(reply.json()["errors"][0]["pointer"].as_str(), pointer, "{}", reply.text());
        assert_eq!(reply.json()["may_have_applied"], false);
    }
    for (query, content_type, status) in [
        ("?ack=all", "application/json", 400),
        ("?acks=2", "application/json", 400),
        ("?key=k", "application/json", 400),
        ("?partition=-1", "text/plain", 400),
        ("", "application/json; charset=latin1", 415),
        ("", "application/x-ndjson; charset=utf-16", 415),
    ] {
        let reply = produce(&server, query, content_type, r#"{"value":1}"#).await;
        assert_eq!(reply.status, status, "{query} {content_type}: {}", reply.text());
    }
    assert_eq!(read_lines(&server).await, [""; 0]);
    server.stop().await;
}

#[tokio::test]
async fn the_first_record_creates_its_topic_unless_it_could_not_be_there() {
    let server = Server::start().await;
    let reply = json(&server, r#"{"value":1,"partition":4}"#).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error_code"]), (404, &json!(40402)));
    let shown = Reply::of(server.request(Method::GET, "/v1/topics/t")).await;
    assert_eq!(shown.status, 404, "nothing was created");
    assert_eq!(json(&server, r#"{"value":1,"partition":3}"#).await.status, 200);
    for name in ["__t", "a%20b", "%ff"] {
        let path = format!("/v1/topics/{name}/records");
        let reply = Reply::of(server.request(Method::POST, &path).body("x")).await;
        assert_eq!((reply.status.as_u16(), &reply.json()["code"]), (422, &json!("invalid_name")));
    }
    server.stop().await;
    let server = Server::start_with(&[("topics.auto_create", "false")]).await;
    assert_eq!(json(&server, r#"{"value":1}"#).await.json()["error_code"], 40401);
    server.stop().await;
}

/// A body that is written piece by piece while the answer is read.
struct Stream {
    body: mpsc::Sender<String>,
    answer: reqwest::Response,
    received: String,
}

impl Stream {
    async fn open(server: &Server, headers: &[(&str, &str)]) -> Self {
        let (body, pieces) = mpsc::channel(16);
        let pieces = stream::unfold(pieces, async |mut pieces: mpsc::Receiver<String>| {
            let piece = pieces.recv().await?;
            Some((Ok::<_, Infallible>(piece), pieces))
        });
        let mut request = server
            .request(Method::POST, RECORDS)
            .header("content-type", "application/x-ndjson")
            .body(Body::wrap_stream(pieces));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200, "before any line was sent");
        Self { body, answer, received: String::new() }
    }

    async fn send(&mut self, text: &str) {
        self.body.send(text.to_owned()).await.unwrap();
    }

    /// Ends the body.
    fn finish(&mut self) {
        self.body = mpsc::channel(1).0;
    }

    /// Waits for the next report; `None` at the end of the answer.
    async fn report(&mut self) -> Option<Value> {
        loop {
            if let Some((line, rest)) = self.received.split_once('\n') {
                let report = serde_json::from_str(line).unwrap();
                self.received = rest.to_owned();
                return Some(report);
            }
            let chunk = self.answer.chunk().await.unwrap()?;
            self.received.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }
}

#[tokio::test]
async fn every_line_is_reported_while_the_request_is_open() {
    let server = Server::start_with(&[("http.max_line_bytes", "1 KiB")]).await;
    put_topic(&server, r#"{"partitions":1}"#).await;
    let mut stream = Stream::open(&server, &[]).await;
    for offset in 0..3 {
        stream.send(&format!("{{\"value\":{offset},\"timestamp\":9}}\n")).await;
        let report = stream.report().await.unwrap();
        assert_eq!(report, json!({"partition": 0, "offset": offset, "timestamp": 9}));
    }
    // Lines cut anywhere, empty ones, a bad one, one that is too long, a missing partition.
    stream.send("\n \r\n{\"val").await;
    stream.send("ue\":3}\r\n{\"value\":4}x\n").await;
    stream.send(&format!("{{\"value\":\"{}", "x".repeat(700))).await;
    stream.send(&"x".repeat(700)).await;
    stream.send("\"}\n{\"value\":5,\"partition\":1}\n{\"value\":6}").await;
    stream.finish();
    let mut reports = Vec::new();
    while let Some(report) = stream.report().await {
        reports.push(report);
    }
    let codes: Vec<_> = reports.iter().map(|report| report["error"]["code"].as_str()).collect();
    let bad = ["invalid_request", "too_large", "partition_not_found"].map(Some);
    assert_eq!(codes, [None, bad[0], bad[1], bad[2], None], "{reports:?}");
    assert_eq!(reports[0]["offset"], 3);
    assert_eq!(reports[4]["offset"], 4, "the stream goes on after bad lines");
    server.stop().await;
}

#[tokio::test]
async fn a_client_may_send_everything_before_it_reads() {
    const LINES: usize = 60_000;
    let server = Server::start().await;
    put_topic(&server, r#"{"partitions":1}"#).await;
    let body: String = (0..LINES).map(|i| format!("{{\"value\":{i},\"timestamp\":1}}\n")).collect();
    let mut stream = Stream::open(&server, &[("expect", "100-continue")]).await;
    for piece in body.as_bytes().chunks(100_000) {
        // Nothing is read meanwhile: about 2.5 MB of reports wait, far beyond the sockets' buffers.
        stream.send(std::str::from_utf8(piece).unwrap()).await;
    }
    stream.finish();
    let mut offset = 0;
    while let Some(report) = stream.report().await {
        assert_eq!(report["offset"], offset, "{report}");
        offset += 1;
    }
    assert_eq!(offset, LINES);
    server.stop().await;
}

#[tokio::test]
async fn reports_that_nobody_reads_stop_the_reading_and_nothing_else() {
    let server = Server::start_with(&[("http.report_buffer_bytes", "64 KiB")]).await;
    put_topic(&server, r#"{"partitions":1}"#).await;
    let mut stream = Stream::open(&server, &[]).await;
    let piece = "{\"value\":1}\n".repeat(10_000);
    // Without reading, the sender is stopped sooner or later: sockets hold a few megabytes.
    let mut sent = 0_u32;
    while tokio::time::timeout(std::time::Duration::from_secs(2), stream.send(&piece)).await.is_ok()
    {
        sent += 10_000;
        assert!(sent < 4_000_000, "the sender is never stopped");
    }
    for offset in 0..sent {
        assert_eq!(stream.report().await.unwrap()["offset"], offset);
    }
    drop(stream);
    server.stop().await;
}

#[tokio::test]
async fn a_stopping_server_reports_what_it_wrote_and_takes_no_half_line() {
    let server = Server::start().await;
    put_topic(&server, r#"{"partitions":1}"#).await;
    let mut stream = Stream::open(&server, &[]).await;
    stream.send("{\"value\":1}\n").await;
    assert_eq!(stream.report().await.unwrap()["offset"], 0);
    stream.send("{\"value\":2}\n{\"val").await;
    assert_eq!(stream.report().await.unwrap()["offset"], 1);
    let (end, ()) = tokio::join!(stream.report(), server.stop());
    assert_eq!(end, None);
}
