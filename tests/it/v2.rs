//! REST Proxy v2, as its clients see it: metadata, produce in every format, every error row.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Reply, Server};

const V2: &str = "application/vnd.kafka.v2+json";
const JSON: &str = "application/vnd.kafka.json.v2+json";
const BINARY: &str = "application/vnd.kafka.binary.v2+json";
const TEXT: &str = "application/vnd.kafka.text.v2+json";

/// Creates a topic through the native face.
async fn create(server: &Server, topic: &str, partitions: u32) {
    let body = json!({"partitions": partitions}).to_string();
    let reply = put(server, topic, body).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
}

async fn put(server: &Server, topic: &str, body: String) -> Reply {
    let request = server.request(Method::PUT, &format!("/v1/topics/{topic}"));
    Reply::of(request.header("content-type", "application/json").body(body)).await
}

async fn get(server: &Server, path: &str) -> Reply {
    Reply::of(server.request(Method::GET, path)).await
}

async fn post(server: &Server, path: &str, content_type: &str, body: impl Into<String>) -> Reply {
    let request = server.request(Method::POST, path);
    Reply::of(request.header("content-type", content_type).body(body.into())).await
}

/// Reads all records of a topic through the native face, values and keys as base64.
async fn stored(server: &Server, topic: &str) -> Vec<Value> {
    let reply = get(server, &format!("/v1/topics/{topic}/records?format=base64&limit=10000")).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["records"].as_array().unwrap().clone()
}

async fn end_offset(server: &Server, topic: &str, partition: u32) -> i64 {
    let reply = get(server, &format!("/topics/{topic}/partitions/{partition}/offsets")).await;
    reply.json()["end_offset"].as_i64().unwrap()
}

fn assert_error(reply: &Reply, status: u16, error_code: u32, what: &str) {
    assert_eq!(reply.status, status, "{what}: {}", reply.text());
    let body = reply.json();
    assert_eq!(body["error_code"], error_code, "{what}: {body}");
    assert!(body["message"].as_str().is_some_and(|text| !text.is_empty()), "{what}: {body}");
    assert_eq!(body.as_object().unwrap().len(), 2, "{what}: two fields and no more: {body}");
    assert_eq!(reply.header("content-type"), Some(V2), "{what}");
}

fn base64(bytes: &[u8]) -> Value {
    Value::String(base64_simd::STANDARD.encode_to_string(bytes))
}

#[tokio::test]
async fn the_root_and_the_brokers_answer() {
    let server = Server::start().await;
    let reply = get(&server, "/").await;
    assert_eq!((reply.status, reply.json()), (StatusCode::OK, json!({})));
    assert_eq!(reply.header("content-type"), Some(V2));
    let reply = post(&server, "/", "application/json", r#"{"any":1}"#).await;
    assert_eq!((reply.status, reply.json()), (StatusCode::OK, json!({})));
    assert_eq!(get(&server, "/brokers").await.json(), json!({"brokers": [1]}));
    server.stop().await;
}

#[tokio::test]
async fn topics_and_partitions_have_confluents_shapes() {
    let server = Server::start().await;
    create(&server, "b", 2).await;
    let body = json!({"partitions": 1, "configs": {"retention.ms": "1000"}}).to_string();
    assert_eq!(put(&server, "a", body).await.status, 201);
    let partition = |number: u32| {
        json!({"partition": number, "leader": 1,
            "replicas": [{"broker": 1, "leader": true, "in_sync": true}]})
    };
    assert_eq!(get(&server, "/topics").await.json(), json!(["a", "b"]));
    let a = get(&server, "/topics/a").await.json();
    assert_eq!(a["name"], "a");
    assert_eq!(a["configs"]["retention.ms"], "1000");
    assert_eq!(a["configs"]["cleanup.policy"], "delete");
    assert!(a["configs"].as_object().unwrap().values().all(Value::is_string), "{a}");
    assert_eq!(a["partitions"], json!([partition(0)]));
    assert_eq!(
        get(&server, "/topics/b/partitions").await.json(),
        json!([partition(0), partition(1)])
    );
    assert_eq!(get(&server, "/topics/b/partitions/1").await.json(), partition(1));
    assert_eq!(
        get(&server, "/topics/b/partitions/1/offsets").await.json(),
        json!({"beginning_offset": 0, "end_offset": 0})
    );
    let body = r#"{"records":[{"value":1},{"value":2}]}"#;
    assert_eq!(post(&server, "/topics/b/partitions/1", JSON, body).await.status, 200);
    assert_eq!(
        get(&server, "/topics/b/partitions/1/offsets").await.json(),
        json!({"beginning_offset": 0, "end_offset": 2})
    );
    server.stop().await;
}

/// What Confluent's proxy says in words; clients compare it.
fn text_of(error_code: u32) -> &'static str {
    match error_code {
        404 => "HTTP 404 Not Found",
        405 => "HTTP 405 Method Not Allowed",
        40401 => "Topic not found.",
        40402 => "Partition not found.",
        40403 => "This server does not host this topic-partition.",
        other => panic!("no text is known for {other}"),
    }
}

#[tokio::test]
async fn what_is_missing_has_its_own_number_on_each_path() {
    let server = Server::start().await;
    create(&server, "a", 2).await;
    assert_eq!(get(&server, "/topics/%61").await.status, 200, "names are decoded once");
    for (path, error_code) in [
        ("/topics/nope", 40403),
        ("/topics/nope/partitions", 40401),
        ("/topics/nope/partitions/0", 40401),
        ("/topics/nope/partitions/0/offsets", 40401),
        ("/topics/nope/partitions/2147483648", 40401),
        ("/topics/a%2Fb", 40403),
        ("/topics/a%00b", 40403),
        ("/topics/%2561", 40403),
        ("/topics/a/partitions/2", 40402),
        ("/topics/a/partitions/2/offsets", 40402),
        ("/topics/a/partitions/-1", 40402),
        ("/topics/a/partitions/2147483648", 40402),
        ("/topics/a/partitions/99999999999999999999", 40402),
        ("/topics/a/partitions/x", 404),
        ("/topics/a/partitions/1.5/offsets", 404),
        ("/topics/%ff", 404),
        ("/topics/a/nope", 404),
        ("/brokers/1", 404),
    ] {
        let reply = get(&server, path).await;
        assert_error(&reply, 404, error_code, path);
        assert_eq!(reply.json()["message"], text_of(error_code), "{path}");
    }
    for path in ["/topics/a/partitions/2", "/topics/a/partitions/-1"] {
        let reply = post(&server, path, JSON, r#"{"records":[{"value":1}]}"#).await;
        assert_error(&reply, 404, 40402, path);
        assert_eq!(reply.json()["message"], text_of(40402), "{path}");
    }
    let body = r#"{"records":[{"value":1,"partition":2}]}"#;
    let reply = post(&server, "/topics/a", JSON, body).await;
    assert_error(&reply, 404, 40402, "a record's partition");
    assert_eq!(reply.json()["message"], text_of(40402));
    let v3 = get(&server, "/v3/nope").await;
    assert_eq!(
        (v3.status, v3.header("content-type")),
        (StatusCode::NOT_FOUND, Some("application/json"))
    );
    assert_eq!(v3.json(), json!({"error_code": 404, "message": text_of(404)}));
    for path in ["/topics/a/b/c/d/", "/consumers"] {
        let reply = post(&server, path, JSON, "{}").await;
        assert_error(&reply, 404, 404, path);
        assert_eq!(reply.json()["message"], text_of(404), "{path}");
    }
    server.stop().await;
}

#[tokio::test]
async fn json_values_are_stored_as_they_came_and_keys_compactly() {
    let server = Server::start().await;
    create(&server, "a", 1).await;
    let body = r#"{"records":[
        {"key": { "k" : 1.0, "a":"\u0061" }, "value": { "b" : 1.00,"a":[ 1,2 ]}},
        {"key": "user123", "value": "caf\u00e9"},
        {"value": null},
        {"key": null, "value": 1e400}
    ]}"#;
    let reply = post(&server, "/topics/a", JSON, body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let outcome =
        |offset: u32| json!({"partition": 0, "offset": offset, "error_code": null, "error": null});
    assert_eq!(
        reply.json(),
        json!({"offsets": [outcome(0), outcome(1), outcome(2), outcome(3)],
            "key_schema_id": null, "value_schema_id": null})
    );
    let records = stored(&server, "a").await;
    let value = |index: usize| records[index]["value"].clone();
    assert_eq!(records[0]["key"], r#"{"k":1.0,"a":"a"}"#);
    assert_eq!(value(0), base64(br#"{ "b" : 1.00,"a":[ 1,2 ]}"#));
    assert_eq!(records[1]["key"], "\"user123\"");
    assert_eq!(value(1), base64(br#""caf\u00e9""#));
    assert_eq!((records[2]["key"].clone(), value(2)), (Value::Null, Value::Null));
    assert_eq!(value(3), base64(b"1e400"));
    server.stop().await;
}

#[tokio::test]
async fn binary_and_text_store_what_the_strings_mean() {
    let server = Server::start().await;
    create(&server, "a", 1).await;
    let body = r#"{"records":[{"key":"a2V5","value":"\/w=="},{"value":""}]}"#;
    for content_type in [BINARY, V2, "application/json", "application/octet-stream"] {
        assert_eq!(post(&server, "/topics/a", content_type, body).await.status, 200);
    }
    let untyped = Reply::of(server.request(Method::POST, "/topics/a").body(body)).await;
    assert_eq!(untyped.status, 200, "{}", untyped.text());
    let body = r#"{"records":[{"key":"k","value":"a\n\u00e9","timestamp":17,
        "headers":[{"key":"h","value":"AQI="},{"key":"n","value":null}]}]}"#;
    assert_eq!(post(&server, "/topics/a", TEXT, body).await.status, 200);

    let records = stored(&server, "a").await;
    assert_eq!(records.len(), 11);
    for pair in records[..10].chunks(2) {
        assert_eq!((&pair[0]["key"], &pair[0]["value"]), (&json!("key"), &base64(&[0xff])));
        assert_eq!((&pair[1]["key"], &pair[1]["value"]), (&Value::Null, &base64(b"")));
    }
    let text = &records[10];
    assert_eq!(text["value"], base64("a\n\u{e9}".as_bytes()));
    assert_eq!(text["timestamp"], 17);
    assert_eq!(text["headers"], json!([["h", "\u{1}\u{2}"], ["n", null]]));
    server.stop().await;
}

#[tokio::test]
async fn keys_go_to_the_partition_that_kafkas_hash_gives() {
    let server = Server::start().await;
    create(&server, "a", 100).await;
    // Vectors of murmur2 modulo 100.
    let keys = [("", 81), ("a", 24), ("abc", 7), ("kafka", 80), ("user123", 5)];
    for (key, partition) in keys {
        let body = json!({"records": [{"key": key, "value": "x"}]}).to_string();
        let reply = post(&server, "/topics/a", TEXT, body).await.json();
        assert_eq!(reply["offsets"][0]["partition"], partition, "{key}");
    }
    server.stop().await;
}

#[tokio::test]
async fn the_paths_partition_is_for_records_that_name_none() {
    let server = Server::start().await;
    create(&server, "a", 3).await;
    let body = r#"{"records":[{"value":1},{"partition":2,"value":2},{"partition":null}]}"#;
    let reply = post(&server, "/topics/a/partitions/1", JSON, body).await.json();
    let partitions: Vec<_> =
        reply["offsets"].as_array().unwrap().iter().map(|o| o["partition"].clone()).collect();
    assert_eq!(json!(partitions), json!([1, 2, 1]));
    for (path, body) in [
        ("/topics/a", r#"{"records":[{"value":1},{"partition":3}]}"#),
        ("/topics/a", r#"{"records":[{"partition":-1}]}"#),
        ("/topics/a/partitions/3", r#"{"records":[{"value":1}]}"#),
        ("/topics/a/partitions/3", r#"{"records":[{"value":1,"partition":0}]}"#),
        ("/topics/a/partitions/2147483648", r#"{"records":[{"value":1}]}"#),
    ] {
        assert_error(&post(&server, path, JSON, body).await, 404, 40402, body);
    }
    assert_error(
        &post(&server, "/topics/a/partitions/x", JSON, r#"{"records":[{}]}"#).await,
        404,
        404,
        "no number",
    );
    for (partition, end) in [(0, 0), (1, 2), (2, 1)] {
        assert_eq!(end_offset(&server, "a", partition).await, end, "{partition}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_missing_topic_is_created_by_the_first_record() {
    let server = Server::start().await;
    let body = r#"{"records":[{"value":1}]}"#;
    assert_eq!(post(&server, "/topics/new", JSON, body).await.status, 200);
    let partitions = get(&server, "/topics/new/partitions").await.json();
    assert_eq!(partitions.as_array().unwrap().len(), 4);

    let reply = post(&server, "/topics/other/partitions/4", JSON, body).await;
    assert_error(&reply, 404, 40402, "a partition that the default count does not have");
    assert_error(&get(&server, "/topics/other").await, 404, 40403, "nothing was created");
    let reply = post(&server, "/topics/other", JSON, r#"{"records":[]}"#).await;
    assert_error(&reply, 422, 422, "an empty body");
    assert_error(&get(&server, "/topics/other").await, 404, 40403, "nothing was created");

    for name in ["a%20b", "__x", "a%2Fb", &"x".repeat(250), "new_a%00"] {
        let reply = post(&server, &format!("/topics/{name}"), JSON, body).await;
        assert_error(&reply, 422, 42206, name);
    }
    assert_eq!(post(&server, "/topics/a.b", JSON, body).await.status, 200);
    let reply = post(&server, "/topics/a_b", JSON, body).await;
    assert_error(&reply, 422, 42206, "a name that differs only by '.' and '_'");
    server.stop().await;
}

#[tokio::test]
async fn without_auto_creation_a_missing_topic_is_an_error_at_once() {
    let server = Server::start_with(&[("topics.auto_create", "false")]).await;
    let reply = post(&server, "/topics/new", JSON, r#"{"records":[{"value":1}]}"#).await;
    assert_error(&reply, 404, 40401, "no such topic");
    assert_eq!(reply.json()["message"], text_of(40401));
    assert_eq!(get(&server, "/topics").await.json(), json!([]));
    server.stop().await;
}

#[tokio::test]
async fn media_types_of_other_versions_are_refused() {
    let server = Server::start().await;
    let body = r#"{"records":[{"value":"YQ=="}]}"#;
    for content_type in [
        "application/vnd.kafka.v3+json",
        "application/vnd.kafka.v0+json",
        "application/vnd.kafka.json.v3+json",
        "application/vnd.kafka.binary+foo",
        "application/text",
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/vnd.kafka.json.v2+json; charset=latin1",
    ] {
        assert_error(&post(&server, "/topics/a", content_type, body).await, 415, 415, content_type);
    }
    for content_type in ["application/vnd.kafka.v1+json", "application/vnd.kafka+json", V2] {
        let reply = post(&server, "/topics/a", content_type, body).await;
        assert_eq!(reply.status, 200, "{content_type}");
    }
    server.stop().await;
}

#[tokio::test]
async fn accept_picks_the_answers_type_or_is_refused() {
    let server = Server::start().await;
    let accepting = |accept: &str| server.request(Method::GET, "/topics").header("accept", accept);
    for (accept, media_type) in [
        ("*/*", V2),
        ("application/*", V2),
        ("application/json", "application/json"),
        ("*/json", "application/json"),
        (JSON, JSON),
        ("text/html;q=0.9, application/json;q=0.1", "application/json"),
        ("application/vnd.kafka.v2+json;q=0, */*", "application/json"),
    ] {
        let reply = Reply::of(accepting(accept)).await;
        assert_eq!(reply.status, 200, "{accept}");
        assert_eq!(reply.header("content-type"), Some(media_type), "{accept}");
    }
    for accept in ["text/html", "application/vnd.kafka.v3+json", "application/json;q=0"] {
        assert_error(&Reply::of(accepting(accept)).await, 406, 406, accept);
    }
    let produce = server.request(Method::POST, "/topics/a").header("accept", "text/html");
    let produce = produce.header("content-type", JSON).body(r#"{"records":[{"value":1}]}"#);
    assert_error(&Reply::of(produce).await, 406, 406, "produce");
    assert_error(&get(&server, "/topics/a").await, 404, 40403, "nothing was written");
    server.stop().await;
}

#[tokio::test]
async fn a_body_that_is_refused_has_written_nothing() {
    let server = Server::start().await;
    create(&server, "a", 1).await;
    let deep =
        format!(r#"{{"records":[{{"value":{}1{}}}]}}"#, "[".repeat(10_000), "]".repeat(10_000));
    let good = r#"{"value":1}"#;
    for (content_type, body, status, error_code) in [
        (JSON, String::new(), 400, 400),
        (JSON, "{".to_owned(), 400, 400),
        (JSON, "[]".to_owned(), 400, 400),
        (JSON, "\u{feff}{\"records\":[{}]}".to_owned(), 400, 400),
        (JSON, format!(r#"{{"records":[{good}]}} x"#), 400, 400),
        (JSON, format!(r#"{{"records":[{good},"#), 400, 400),
        (JSON, format!(r#"{{"records":{good}}}"#), 400, 400),
        (JSON, format!(r#"{{"records":[{good},1]}}"#), 400, 400),
        (JSON, format!(r#"{{"records":[{good},{{"value":"\x"}}]}}"#), 400, 400),
        (JSON, format!(r#"{{"records":[{good},{{"key":"\ud800"}}]}}"#), 400, 400),
        (JSON, deep, 400, 400),
        (JSON, "{}".to_owned(), 422, 422),
        (JSON, r#"{"records":[]}"#.to_owned(), 422, 422),
        (JSON, format!(r#"{{"records":[{good}],"foo":1}}"#), 422, 422),
        (JSON, format!(r#"{{"records":[{good},{{"foo":1}}]}}"#), 422, 422),
        (JSON, format!(r#"{{"records":[{good},{{"key":1,"key":2}}]}}"#), 422, 422),
        (JSON, format!(r#"{{"records":[{good},{{"partition":"0"}}]}}"#), 422, 422),
        (JSON, format!(r#"{{"records":[{good},{{"timestamp":1.5}}]}}"#), 422, 422),
        (BINARY, r#"{"records":[{"value":"YQ="}]}"#.to_owned(), 400, 400),
        (BINARY, r#"{"records":[{"value":7}]}"#.to_owned(), 400, 400),
        (TEXT, r#"{"records":[{"value":7}]}"#.to_owned(), 422, 422),
    ] {
        let what: String = body.chars().take(60).collect();
        assert_error(
            &post(&server, "/topics/a", content_type, body).await,
            status,
            error_code,
            &what,
        );
    }
    let not_utf8 = server.request(Method::POST, "/topics/a").header("content-type", JSON);
    let not_utf8 = not_utf8.body(b"{\"records\":[{\"value\":\"\xff\"}]}".to_vec());
    assert_error(&Reply::of(not_utf8).await, 400, 400, "not UTF-8");
    let reply = post(&server, "/topics/a", JSON, r#"{"records":[{}],"foo":1}"#).await;
    assert_eq!(reply.json()["message"], "Unrecognized field: foo");
    assert_eq!(end_offset(&server, "a", 0).await, 0);
    server.stop().await;
}

#[tokio::test]
async fn schema_formats_say_what_is_missing() {
    let server = Server::start().await;
    for format in ["avro", "jsonschema", "protobuf"] {
        let content_type = format!("application/vnd.kafka.{format}.v2+json");
        for (body, status, error_code) in [
            (r#"{"records":[{"key":1,"value":1}]}"#, 422, 42201),
            (r#"{"records":[{"value":1}]}"#, 422, 42202),
            (r#"{"records":[{"value":1}],"value_schema_id":1}"#, 408, 40801),
        ] {
            let reply = post(&server, "/topics/a", &content_type, body).await;
            assert_error(&reply, status, error_code, body);
        }
    }
    let avro = "application/vnd.kafka.avro.v2+json";
    let request = server.request(Method::POST, "/topics/a").header("content-type", avro);
    let request = request.header("accept", "application/problem+json");
    let reply = Reply::of(request.body(r#"{"records":[{"value":1}],"value_schema_id":1}"#)).await;
    let problem = reply.json();
    assert_eq!((reply.status.as_u16(), &problem["code"]), (408, &json!("no_schema_registry")));
    assert_eq!((&problem["error_code"], &problem["retriable"]), (&json!(40801), &json!(false)));
    server.stop().await;
}

#[tokio::test]
async fn what_is_above_a_limit_is_refused_and_not_written() {
    let server =
        Server::start_with(&[("http.max_body_bytes", "64 KiB"), ("http.max_records", "5")]).await;
    create(&server, "a", 1).await;
    let records =
        |count: usize| format!(r#"{{"records":[{}]}}"#, vec![r#"{"value":1}"#; count].join(","));
    let reply = post(&server, "/topics/a", JSON, records(6)).await;
    assert_error(&reply, 413, 413, "too many records");
    let long = format!(r#"{{"records":[{{"value":"{}"}}]}}"#, "x".repeat(64 * 1024));
    assert_error(&post(&server, "/topics/a", JSON, long.clone()).await, 413, 413, "a long body");
    let chunks = long
        .into_bytes()
        .chunks(1000)
        .map(|c| Ok::<_, std::io::Error>(c.to_vec()))
        .collect::<Vec<_>>();
    let chunked = server.request(Method::POST, "/topics/a").header("content-type", JSON);
    let chunked = chunked.body(reqwest::Body::wrap_stream(futures_util::stream::iter(chunks)));
    assert_error(&Reply::of(chunked).await, 413, 413, "a long body of unknown length");

    let configs = json!({"partitions": 1, "configs": {"max.message.bytes": "1024"}}).to_string();
    assert_eq!(put(&server, "small", configs).await.status, 201);
    let large = format!(r#"{{"records":[{{"value":1}},{{"value":"{}"}}]}}"#, "x".repeat(1024));
    let reply = post(&server, "/topics/small", JSON, large).await;
    assert_error(&reply, 413, 413, "a record above max.message.bytes");
    assert_eq!(end_offset(&server, "small", 0).await, 0);
    assert_eq!(end_offset(&server, "a", 0).await, 0);
    assert_eq!(post(&server, "/topics/a", JSON, records(5)).await.status, 200);
    server.stop().await;
}

/// Sends a request as it is, which an HTTP library would clean up, and reads until the end.
async fn raw(server: &Server, request: &str) -> String {
    let address = server.url().trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.replace('\n', "\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn dots_are_no_topics_however_they_are_written() {
    let server = Server::start().await;
    for dots in ["..", "%2e%2e", ".", "%2E", "..%2f..%2fetc"] {
        let head = "host: x\nconnection: close";
        let answer = raw(&server, &format!("GET /topics/{dots} HTTP/1.1\n{head}\n\n")).await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{dots}: {answer}");
        assert!(answer.contains(r#""error_code":40403"#), "{dots}: {answer}");
        let body = r#"{"records":[{"value":1}]}"#;
        let head = format!("{head}\ncontent-type: {JSON}\ncontent-length: {}", body.len());
        let request = format!("POST /topics/{dots} HTTP/1.1\n{head}\n\n{body}");
        let answer = raw(&server, &request).await;
        assert!(answer.starts_with("HTTP/1.1 422"), "{dots}: {answer}");
        assert!(answer.contains(r#""error_code":42206"#), "{dots}: {answer}");
    }
    assert_eq!(get(&server, "/topics").await.json(), json!([]));
    server.stop().await;
}

#[tokio::test]
async fn a_body_that_is_announced_too_long_is_refused_before_it_is_sent() {
    let server = Server::start().await;
    let head = format!("host: x\ncontent-type: {JSON}\ncontent-length: 1000000000");
    let answer = raw(&server, &format!("POST /topics/a HTTP/1.1\n{head}\n\n")).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains(r#""error_code":413"#), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn a_body_that_comes_too_slowly_is_given_up() {
    let server = Server::start_with(&[("http.request_timeout", "200ms")]).await;
    let head = format!("host: x\nconnection: close\ncontent-type: {JSON}\ncontent-length: 100");
    let begun = r#"{"records":["#;
    let answer = raw(&server, &format!("POST /topics/a HTTP/1.1\n{head}\n\n{begun}")).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains(r#""error_code":408"#), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn problems_are_answered_where_they_are_asked_for() {
    let server = Server::start().await;
    let request = server.request(Method::POST, "/topics/a").header("content-type", JSON);
    let request =
        request.header("accept", "application/vnd.kafka.v2+json, application/problem+json");
    let reply = Reply::of(request.body(r#"{"records":[{},{"foo":1}]}"#)).await;
    assert_eq!(reply.status, 422);
    assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    let problem = reply.json();
    assert_eq!(problem["code"], "invalid_body");
    assert_eq!(problem["errors"][0]["pointer"], "/records/1/foo");
    server.stop().await;
}

#[tokio::test]
async fn strict_handling_is_confirmed() {
    let server = Server::start().await;
    let request = server.request(Method::POST, "/topics/a").header("content-type", JSON);
    let request = request.header("prefer", "handling=strict").body(r#"{"records":[{"value":1}]}"#);
    let reply = Reply::of(request).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("preference-applied"), Some("handling=strict"));
    server.stop().await;
}

#[tokio::test]
async fn methods_and_slashes_are_forgiving_where_it_is_harmless() {
    let server = Server::start().await;
    create(&server, "a", 1).await;
    for path in ["/topics/", "/topics/a/", "/topics/a/partitions/", "/brokers/"] {
        assert_eq!(get(&server, path).await.status, 200, "{path}");
    }
    let body = r#"{"records":[{"value":1}]}"#;
    assert_eq!(post(&server, "/topics/a/", JSON, body).await.status, 200);
    let head = Reply::of(server.request(Method::HEAD, "/topics/a")).await;
    assert_eq!((head.status, head.text()), (StatusCode::OK, ""));
    let reply = Reply::of(server.request(Method::DELETE, "/topics/a")).await;
    assert_error(&reply, 405, 405, "DELETE");
    assert_eq!(reply.json()["message"], text_of(405));
    let allow = reply.header("allow").unwrap_or_default();
    assert!(allow.contains("GET") && allow.contains("POST"), "{allow}");
    server.stop().await;
}
