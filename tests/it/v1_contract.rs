//! The native face's contract line by line, where no other file plays it: names, parameters, the
//! shapes of topics and records, bodies that are no bodies.

use std::path::Path;

use reqwest::{Body, Method};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Reply, Server, eventually};

const RECORDS: &str = "/v1/topics/t/records";
const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";
const EVENTS: &str = "text/event-stream";

async fn send(server: &Server, method: Method, path: &str, body: impl Into<Body>) -> Reply {
    Reply::of(server.request(method, path).body(body)).await
}

async fn get(server: &Server, path: &str) -> Reply {
    send(server, Method::GET, path, "").await
}

async fn put_topic(server: &Server, partitions: u32) {
    let body = json!({ "partitions": partitions }).to_string();
    assert_eq!(send(server, Method::PUT, "/v1/topics/t", body).await.status, 201);
}

async fn post(server: &Server, content_type: &str, body: impl Into<Body>) -> Reply {
    let request = server.request(Method::POST, RECORDS).header("content-type", content_type);
    Reply::of(request.body(body)).await
}

fn names(value: &Value) -> Vec<&str> {
    let mut names: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn a_topic_has_the_documented_members_and_defaults() {
    let server = Server::start().await;
    let before = eddyline::clock::SystemClock::shared().now().as_millis();
    let body = r#"{"configs":{"retention.ms":"5","segment.ms":7}}"#;
    let topic = send(&server, Method::PUT, "/v1/topics/t", body).await.json();
    let common = ["configs", "created_at", "partitions", "replication_factor", "topic", "topic_id"];
    let mut detailed = common.to_vec();
    detailed.insert(2, "details");
    assert_eq!(names(&topic), detailed);
    assert_eq!((&topic["partitions"], &topic["replication_factor"]), (&json!(4), &json!(1)));
    assert_eq!(topic["configs"], json!({"retention.ms": "5", "segment.ms": "7"}));
    assert!(topic["created_at"].as_i64().unwrap() >= before);
    assert!(topic["topic_id"].as_str().unwrap().parse::<uuid::Uuid>().is_ok());
    let detail = &topic["details"][0];
    let expected = [
        "leader",
        "log_end_offset",
        "log_start_offset",
        "partition",
        "replicas",
        "shard",
        "size_bytes",
    ];
    assert_eq!(names(detail), expected);
    assert_eq!((&detail["replicas"], &detail["size_bytes"]), (&json!([1]), &json!(0)));
    let list = get(&server, "/v1/topics").await.json();
    assert_eq!(names(&list), ["next", "topics"]);
    assert_eq!(names(&list["topics"][0]), common, "a list has no details");
    server.stop().await;
}

#[tokio::test]
async fn unknown_parameters_and_members_are_refused_by_name() {
    let server = Server::start().await;
    put_topic(&server, 1).await;
    for (method, path, named) in [
        (Method::GET, "/v1/topics?limt=1", "limt"),
        (Method::GET, "/v1/topics?limit=1001", "limit"),
        (Method::GET, "/v1/topics?limit=x", "limit"),
        (Method::GET, "/v1/topics?cursor=!", "cursor"),
        (Method::GET, "/v1/topics/t?verbose=1", "verbose"),
        (Method::PUT, "/v1/topics/t?force=1", "force"),
        (Method::DELETE, "/v1/topics/t?force=1", "force"),
        (Method::GET, "/v1/topics/t/records?max=1", "max"),
        (Method::GET, "/v1/topics/t/records?last_event_id=x", "last_event_id"),
        (Method::POST, "/v1/topics/t/records?ack=1", "ack"),
    ] {
        let reply = send(&server, method.clone(), path, "").await;
        assert_eq!(reply.status, 400, "{method} {path}: {}", reply.text());
        let problem = reply.json();
        assert_eq!(problem["code"], "invalid_request");
        assert!(problem["detail"].as_str().unwrap().contains(named), "{problem}");
    }
    let put = send(&server, Method::PUT, "/v1/topics/u", r#"{"partition":1}"#).await;
    assert_eq!(
        (put.status.as_u16(), &put.json()["errors"][0]["pointer"]),
        (422, &json!("/partition"))
    );
    let text = server.request(Method::PUT, "/v1/topics/u").header("content-type", "text/plain");
    assert_eq!(Reply::of(text.body("{}")).await.status, 415);
    assert_eq!(get(&server, "/v1/topics/t").await.status, 200, "the topic is still there");
    server.stop().await;
}

#[tokio::test]
async fn names_are_decoded_once_and_slashes_at_the_end_do_not_matter() {
    let server = Server::start().await;
    put_topic(&server, 1).await;
    assert_eq!(get(&server, "/v1/topics/%74").await.json()["topic"], "t");
    assert_eq!(get(&server, "/v1/topics/%2574").await.status, 404);
    assert_eq!(send(&server, Method::PUT, "/v1/topics/%2574", "").await.status, 422);
    for path in
        ["/v1/topics/", "/v1/topics/t/", "/v1/topics/t/records/", "/v1/topics/t/records/?limit=1"]
    {
        assert_eq!(get(&server, path).await.status, 200, "{path}");
    }
    let reply = send(&server, Method::POST, "/v1/topics/t/records/", "x").await;
    assert_eq!(reply.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn accept_decides_or_is_refused() {
    let server = Server::start().await;
    put_topic(&server, 1).await;
    for (accept, media_type) in [
        (None, JSON),
        (Some("*/*"), JSON),
        (Some(JSON), JSON),
        (Some("application/*"), JSON),
        (Some(NDJSON), NDJSON),
        (Some("text/html, application/x-ndjson;q=0.1"), NDJSON),
    ] {
        let mut request = server.request(Method::GET, RECORDS);
        if let Some(accept) = accept {
            request = request.header("accept", accept);
        }
        let reply = Reply::of(request).await;
        assert_eq!((reply.status.as_u16(), reply.header("content-type")), (200, Some(media_type)));
    }
    for (method, path) in
        [(Method::GET, RECORDS), (Method::GET, "/v1/topics/t"), (Method::POST, RECORDS)]
    {
        let request = server.request(method.clone(), path).header("accept", "text/html").body("x");
        let reply = Reply::of(request).await;
        assert_eq!((reply.status.as_u16(), &reply.json()["code"]), (406, &json!("not_acceptable")));
    }
    for accept in ["text/html", JSON] {
        let lines = server.request(Method::POST, RECORDS).header("accept", accept);
        let lines = lines.header("content-type", NDJSON).body("{\"value\":1}\n");
        assert_eq!(Reply::of(lines).await.status, 406, "reports are lines: {accept}");
    }
    let end = get(&server, RECORDS).await.json();
    assert_eq!(end["records"], json!([]), "what is refused is not written");
    server.stop().await;
}

#[tokio::test]
async fn reads_create_nothing() {
    let server = Server::start().await;
    for accept in [JSON, NDJSON, EVENTS] {
        let request = server.request(Method::GET, RECORDS).header("accept", accept);
        let reply = Reply::of(request).await;
        assert_eq!((reply.status.as_u16(), &reply.json()["error_code"]), (404, &json!(40401)));
    }
    assert_eq!(get(&server, "/topics/t").await.status, 404);
    assert_eq!(get(&server, "/v1/topics").await.json()["topics"], json!([]));
    server.stop().await;
}

#[tokio::test]
async fn values_keep_their_bytes_whatever_they_are() {
    let server = Server::start().await;
    put_topic(&server, 1).await;
    // In, and the members that it comes out with by `format=json`.
    let cases = [
        (
            r#"{"value": {"a" : 1.00, "b":1e999} }"#,
            r#""value":{"a" : 1.00, "b":1e999},"headers":[]}"#,
        ),
        (r#"{"value":"\u0041\/"}"#, r#""value":"\u0041\/","headers":[]}"#),
        (r#"{"value":null}"#, r#""value":null,"headers":[]}"#),
        (r#"{"key":"k"}"#, r#""key":"k","value":null,"headers":[]}"#),
        (
            r#"{"value":"null","encoding":"text"}"#,
            r#""value":"null","headers":[],"encoding":"text"}"#,
        ),
        (
            r#"{"value":"a b","encoding":"text"}"#,
            r#""value":"a b","headers":[],"encoding":"text"}"#,
        ),
        (
            r#"{"value":"/w==","encoding":"base64"}"#,
            r#""value":"/w==","headers":[],"encoding":"base64"}"#,
        ),
        (r#"{"value":"WzFd","encoding":"base64"}"#, r#""value":[1],"headers":[]}"#),
        (
            r#"{"value":1,"key":{"base64":"/w=="},"headers":[["a",null],["a",{"base64":"/w=="}]]}"#,
            r#""key":{"base64":"/w=="},"value":1,"headers":[["a",null],["a",{"base64":"/w=="}]]}"#,
        ),
        (r#"{"value":1,"offset":99,"topic":"other","partition":0}"#, r#""value":1,"headers":[]}"#),
    ];
    for (offset, (sent, shown)) in cases.iter().enumerate() {
        let reply = post(&server, JSON, *sent).await;
        assert_eq!(reply.status, 200, "{sent}: {}", reply.text());
        let path = format!("{RECORDS}?partition=0&offset={offset}&limit=1");
        let request = server.request(Method::GET, &path).header("accept", NDJSON);
        let line = Reply::of(request).await;
        assert!(line.text().trim_end().ends_with(shown), "{sent}: {}", line.text());
    }
    for (format, members) in [
        ("text", r#""value":"{\"a\" : 1.00, \"b\":1e999}","headers":[]}"#),
        (
            "base64",
            r#""value":"eyJhIiA6IDEuMDAsICJiIjoxZTk5OX0=","headers":[],"encoding":"base64"}"#,
        ),
        ("meta", r#""value_bytes":23,"headers":[]}"#),
    ] {
        let path = format!("{RECORDS}?partition=0&offset=0&limit=1&format={format}");
        let page = get(&server, &path).await;
        assert!(page.text().contains(members), "{format}: {}", page.text());
    }
    server.stop().await;
}

#[tokio::test]
async fn bodies_that_are_none_write_nothing_and_leave_the_server_alone() {
    let server = Server::start_with(&[("http.max_body_bytes", "256 KiB")]).await;
    put_topic(&server, 1).await;
    let nested = |depth: usize| {
        format!(r#"{{"value":{}1{}}}"#, "[".repeat(depth), "]".repeat(depth)).into_bytes()
    };
    let many = format!("[{}{{}}]", "{},".repeat(10_000)).into_bytes();
    for (what, body, status) in [
        ("empty", Vec::new(), 400),
        ("cut", b"{\"value\":".to_vec(), 400),
        ("deep", nested(10_000), 400),
        ("two values", b"{\"value\":1}{\"value\":2}".to_vec(), 400),
        ("byte order mark", b"\xef\xbb\xbf{\"value\":1}".to_vec(), 400),
        ("NUL", b"{\"value\":\0}".to_vec(), 400),
        ("not UTF-8", b"{\"value\":\"\xff\"}".to_vec(), 400),
        ("compressed", b"\x1f\x8b\x08\0\0\0\0\0\0\x03".to_vec(), 400),
        ("no number", b"{\"value\":01}".to_vec(), 400),
        ("a number", b"7".to_vec(), 422),
        ("a repeated member", b"{\"value\":1,\"value\":2}".to_vec(), 422),
        ("a lone surrogate as key", b"{\"key\":\"\\ud800\"}".to_vec(), 422),
        ("no records", b"{\"records\":[]}".to_vec(), 422),
        ("an empty array", b"[]".to_vec(), 422),
        ("records that are none", b"{\"records\":{}}".to_vec(), 422),
        ("an ill-typed key", b"{\"key\":7}".to_vec(), 422),
        ("an ill-typed partition", b"{\"value\":1,\"partition\":\"0\"}".to_vec(), 422),
        ("a partition below all", b"{\"value\":1,\"partition\":-1}".to_vec(), 422),
        ("a fractional timestamp", b"{\"value\":1,\"timestamp\":1.5}".to_vec(), 422),
        ("an unknown encoding", b"{\"value\":\"x\",\"encoding\":\"hex\"}".to_vec(), 422),
        ("too many records", many, 413),
        ("too many bytes", vec![b' '; 300 * 1024], 413),
    ] {
        let reply = post(&server, JSON, body.clone()).await;
        assert_eq!(reply.status, status, "{what}: {}", reply.text());
        assert_eq!(reply.header("content-type"), Some("application/problem+json"), "{what}");
        let pieces: Vec<_> =
            body.chunks(1000).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
        let pieces = Body::wrap_stream(futures_util::stream::iter(pieces));
        assert_eq!(post(&server, JSON, pieces).await.status, status, "{what} in pieces");
    }
    assert_eq!(get(&server, RECORDS).await.json()["records"], json!([]));
    assert_eq!(post(&server, JSON, nested(50)).await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn dots_and_long_names_are_no_topics() {
    let server = Server::start().await;
    let address = server.url().trim_start_matches("http://");
    for (request, status) in [
        ("GET /v1/topics/.. HTTP/1.1", 404),
        ("GET /v1/topics/%2e%2e/records HTTP/1.1", 404),
        ("DELETE /v1/topics/. HTTP/1.1", 404),
        ("PUT /v1/topics/.. HTTP/1.1", 422),
        ("PUT /v1/topics/%2e%2e%2fx HTTP/1.1", 422),
        ("POST /v1/topics/../records HTTP/1.1", 422),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head =
            format!("{request}\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
    }
    let long = "x".repeat(249);
    assert_eq!(send(&server, Method::PUT, &format!("/v1/topics/{long}"), "").await.status, 201);
    assert_eq!(send(&server, Method::PUT, &format!("/v1/topics/{long}x"), "").await.status, 422);
    assert_eq!(get(&server, "/v1/topics").await.json()["topics"].as_array().unwrap().len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn last_event_id_beats_from_on_a_first_connect_too() {
    let server = Server::start().await;
    put_topic(&server, 1).await;
    for i in 0..3 {
        assert_eq!(post(&server, JSON, format!(r#"{{"value":{i}}}"#)).await.status, 200);
    }
    let page = get(&server, &format!("{RECORDS}?limit=2")).await.json();
    let cursor = page["next"].as_str().unwrap();
    let path = format!("{RECORDS}?from=earliest&last_event_id={cursor}");
    let request = server.request(Method::GET, &path).header("accept", EVENTS);
    let mut answer = request.send().await.unwrap();
    assert_eq!(answer.headers()["eddyline-start"], cursor, "the real start");
    let mut text = String::new();
    while !text.contains("\nid: ") {
        text.push_str(std::str::from_utf8(&answer.chunk().await.unwrap().unwrap()).unwrap());
    }
    assert!(text.contains("\"offset\":2,") && !text.contains("\"offset\":1,"), "{text}");
    server.stop().await;
}

#[tokio::test]
async fn a_long_poll_that_finds_nothing_ends_empty_with_a_cursor() {
    let server = Server::start().await;
    put_topic(&server, 1).await;
    let page = get(&server, &format!("{RECORDS}?wait=50")).await;
    assert_eq!((page.status.as_u16(), &page.json()["records"]), (200, &json!([])));
    assert!(page.json()["next"].is_string());
    server.stop().await;
}

/// Sends bytes as they are, ends the sending half, and returns what comes back.
async fn send_raw(server: &Server, request: &str) -> String {
    let address = server.url().trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    // A connection that is reset has said all that it says.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

/// Lists a folder's files and folders, by name.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn names_that_look_like_others_or_like_paths_are_refused() {
    let server = Server::start().await;
    put_topic(&server, 1).await;
    assert_eq!(post(&server, JSON, r#"{"value":1}"#).await.status, 200);
    let files = names_in(server.path());
    for name in [
        "%D1%82",                       // a Cyrillic letter that looks like t
        "%EF%BD%94",                    // a fullwidth t
        "t%CC%81",                      // t with a combining accent
        "t%E2%80%8B",                   // t with a space of no width
        "%EF%BC%8E%EF%BC%8E%EF%BC%8Fx", // fullwidth dots and slash
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "%2Fetc%2Fpasswd",
        "..%5c..%5cx",
        "t%00",
        "t%0d%0aset-cookie:%20x",
        "t%20",
        "t+",
        "%3Cscript%3E",
        "t%27%3B--",
        "%252e%252e",
        "t%2Frecords",
        "%ff",
    ] {
        let topic = format!("/v1/topics/{name}");
        let records = format!("{topic}/records");
        for (method, path, status) in [
            (Method::GET, &topic, 404),
            (Method::DELETE, &topic, 404),
            (Method::GET, &records, 404),
            (Method::PUT, &topic, 422),
            (Method::POST, &records, 422),
        ] {
            let reply = send(&server, method.clone(), path, "").await;
            assert_eq!(reply.status, status, "{method} {path}: {}", reply.text());
            assert_eq!(reply.header("content-type"), Some("application/problem+json"));
            assert_eq!(reply.header("set-cookie"), None);
            let code = if status == 404 { "topic_not_found" } else { "invalid_name" };
            assert_eq!(reply.json()["code"], code, "{method} {path}");
        }
    }
    let topics = get(&server, "/v1/topics").await.json();
    assert_eq!(topics["topics"].as_array().unwrap().len(), 1, "{topics}");
    assert_eq!(names_in(server.path()), files, "no name became a path");
    server.stop().await;
}

#[tokio::test]
async fn a_dot_at_the_end_makes_another_topic_whose_files_have_no_name_of_it() {
    let server = Server::start().await;
    for name in ["t", "t.", "..."] {
        let reply = send(&server, Method::PUT, &format!("/v1/topics/{name}"), "").await;
        assert_eq!(reply.status, 201, "{name}: {}", reply.text());
        let records = format!("/v1/topics/{name}/records");
        assert_eq!(send(&server, Method::POST, &records, name).await.status, 200);
        let read = get(&server, &records).await.json();
        assert_eq!(read["records"].as_array().unwrap().len(), 1, "{name}");
        assert_eq!(read["records"][0]["value"], name);
    }
    let reply = send(&server, Method::PUT, "/v1/topics/t_", "").await;
    assert_eq!((reply.status.as_u16(), &reply.json()["code"]), (422, &json!("invalid_name")));
    // Folders are made when records are written behind their acknowledgement.
    let partitions = server.path().join("partitions");
    let folders = eventually("every topic has a folder", async || {
        Some(&partitions)
            .filter(|path| path.exists())
            .map(|path| names_in(path))
            .filter(|folders| folders.len() == 3)
    })
    .await;
    assert!(folders.iter().all(|name| uuid::Uuid::try_parse(name).is_ok()), "{folders:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_body_of_another_length_than_announced_writes_nothing() {
    let server = Server::start().await;
    put_topic(&server, 1).await;
    let v2 = "application/vnd.kafka.json.v2+json";
    let record = r#"{"value":1}"#;
    for (path, content_type, body) in [
        (RECORDS, JSON, record),
        (RECORDS, "text/plain", "raw"),
        (RECORDS, NDJSON, record),
        ("/topics/t", v2, r#"{"records":[{"value":1}]}"#),
    ] {
        let post = |length: &str| {
            format!(
                "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\n\
                 content-length: {length}\r\n\r\n{body}"
            )
        };
        // More is announced than comes.
        let answer = send_raw(&server, &post(&(body.len() + 10).to_string())).await;
        let is_refusal = answer.is_empty() || answer.starts_with("HTTP/1.1 400");
        let is_report = content_type == NDJSON && answer.starts_with("HTTP/1.1 200");
        assert!(is_refusal || is_report, "{path} {content_type}: {answer}");
        assert!(!answer.contains("offset\""), "{answer}");
        for length in ["-1", "1x", "99999999999999999999999", "5\r\ncontent-length: 6"] {
            let answer = send_raw(&server, &post(length)).await;
            assert!(answer.starts_with("HTTP/1.1 400"), "{length}: {answer}");
        }
    }
    // Less is announced than comes: what is announced is no JSON, the rest no request.
    let request = format!(
        "POST {RECORDS} HTTP/1.1\r\nhost: x\r\ncontent-type: {JSON}\r\n\
         content-length: 5\r\n\r\n{record}"
    );
    let answer = send_raw(&server, &request).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), answer.matches("HTTP/1.1 400").count());
    let page = get(&server, RECORDS).await.json();
    assert_eq!(page["records"], json!([]));
    server.stop().await;
}
