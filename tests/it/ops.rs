//! Health, readiness, metrics, the cluster's state, the API document and its page.

use reqwest::{Method, redirect};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Reply, Server, eventually};

async fn get(server: &Server, path: &str) -> Reply {
    Reply::of(server.request(Method::GET, path)).await
}

#[tokio::test]
async fn a_started_server_is_healthy_and_ready() {
    let server = Server::start().await;
    let health = get(&server, "/healthz").await;
    assert_eq!((health.status.as_u16(), health.json()), (200, json!({"status": "ok"})));
    let ready = get(&server, "/readyz").await;
    assert_eq!(ready.status, 200, "{}", ready.text());
    let ready = ready.json();
    assert_eq!((&ready["status"], &ready["node"]), (&json!("ready"), &json!(1)));
    let checks = ready["checks"].as_array().unwrap();
    let names: Vec<&str> = checks.iter().filter_map(|check| check["name"].as_str()).collect();
    assert_eq!(names, ["wal", "storage", "metadata", "shards", "sql"]);
    assert!(checks.iter().all(|check| check["ok"] == true), "{ready}");
    server.stop().await;
}

/// The value of a sample, by its name with labels.
pub(crate) fn sample(text: &str, name: &str) -> Option<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    value.parse().ok()
}

#[tokio::test]
async fn metrics_show_what_was_written() {
    let server = Server::start().await;
    let body = r#"{"records":[{"value":1},{"value":2}]}"#;
    for _ in 0..3 {
        let request = server.request(Method::POST, "/topics/a");
        let request = request.header("content-type", "application/vnd.kafka.json.v2+json");
        assert_eq!(Reply::of(request.body(body)).await.status, 200);
    }
    let reply = get(&server, "/metrics").await;
    assert_eq!(
        reply.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    let text = reply.text();
    assert!(text.ends_with("# EOF\n"), "{text}");
    let requests =
        r#"eddyline_http_requests_total{route="/topics/{topic}",method="POST",status="2xx"}"#;
    assert_eq!(sample(text, requests), Some(3.0), "{text}");
    let bytes = |direction: &str| {
        let labels = r#"{route="/topics/{topic}",method="POST"}"#;
        sample(text, &format!("eddyline_http_{direction}_body_bytes_total{labels}"))
    };
    assert_eq!(bytes("request"), Some((3 * body.len()) as f64), "{text}");
    assert!(bytes("response").is_some_and(|bytes| bytes > 300.0), "{text}");
    let records = r#"eddyline_topic_records_in_total{topic="a"}"#;
    assert_eq!(sample(text, records), Some(6.0), "{text}");
    for name in [
        "eddyline_wal_sync_seconds_count",
        "eddyline_wal_round_bytes_sum",
        "eddyline_shard_batch_records_count",
        "eddyline_shard_entry_bytes_count",
        "eddyline_shard_apply_seconds_count",
    ] {
        assert!(sample(text, name).is_some_and(|value| value > 0.0), "{name} in\n{text}");
    }
    server.stop().await;
}

/// Waits until a sample is as it should be.
pub(crate) async fn until(server: &Server, name: &str, is_so: impl Fn(f64) -> bool) -> f64 {
    eventually(name, async || {
        let text = get(server, "/metrics").await;
        let value = sample(text.text(), name).unwrap_or_else(|| panic!("no {name}"));
        is_so(value).then_some(value)
    })
    .await
}

#[tokio::test]
async fn metrics_show_readers_that_wait_and_what_memory_spares_them() {
    let server = Server::start().await;
    let path = "/v1/topics/a/records";
    let produce = async || {
        let request = server.request(Method::POST, path).body(r#"{"value":1}"#);
        assert_eq!(Reply::of(request).await.status, 200);
    };
    produce().await;
    let waiting = "eddyline_http_long_polls_waiting";
    until(&server, waiting, |value| value == 0.0).await;
    let reads = async {
        let poll = |_| server.request(Method::GET, &format!("{path}?from=latest&wait=30000"));
        futures_util::future::join_all((0..3).map(poll).map(Reply::of)).await
    };
    let produced = async {
        until(&server, waiting, |value| value == 3.0).await;
        produce().await;
    };
    let (replies, ()) = tokio::join!(reads, produced);
    for reply in replies {
        assert_eq!(reply.json()["records"].as_array().unwrap().len(), 1);
    }
    until(&server, waiting, |value| value == 0.0).await;
    until(&server, "eddyline_storage_tail_cache_hits_total", |value| value >= 3.0).await;
    until(&server, "eddyline_storage_tail_cache_bytes", |value| value > 0.0).await;
    until(&server, "eddyline_wal_round_callers_sum", |value| value > 0.0).await;
    server.stop().await;
}

#[tokio::test]
async fn metrics_show_how_long_segments_take_to_reach_the_disk() {
    // Retention asks for a checkpoint, which flushes and syncs.
    let server = Server::start_with(&[("storage.retention_interval", "100ms")]).await;
    let put = r#"{"partitions":1,"configs":{"segment.bytes":65536,"retention.bytes":65536}}"#;
    let put = server.request(Method::PUT, "/v1/topics/a").body(put);
    assert_eq!(Reply::of(put).await.status, 201);
    for _ in 0..10 {
        let request = server.request(Method::POST, "/v1/topics/a/records");
        assert_eq!(Reply::of(request.body(vec![b'x'; 50_000])).await.status, 200);
    }
    for what in ["flush", "sync"] {
        let name = |part: &str| format!("eddyline_storage_segment_{what}_seconds_{part}");
        until(&server, &name("count"), |value| value >= 1.0).await;
        until(&server, &name("sum"), |value| value > 0.0).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn the_clock_can_be_confirmed() {
    let server = Server::start().await;
    let confirm = |query: &str| {
        let path = format!("/v1/cluster/clock/confirm{query}");
        Reply::of(server.request(Method::POST, &path))
    };
    assert_eq!(confirm("").await.status, 204);
    assert_eq!(confirm("?now=1").await.status, 400);
    server.stop().await;
}

#[tokio::test]
async fn the_cluster_is_one_node_that_leads_everything() {
    let server = Server::start().await;
    let request = server.request(Method::PUT, "/v1/topics/a");
    assert_eq!(Reply::of(request.body(r#"{"partitions":3}"#)).await.status, 201);
    let reply = get(&server, "/v1/cluster").await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let cluster = reply.json();
    assert_eq!(cluster["leader"], 1);
    let nodes = cluster["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 1);
    assert_eq!((&nodes[0]["node"], &nodes[0]["state"]), (&json!(1), &json!("up")));
    let shards = cluster["shards"].as_array().unwrap();
    assert_eq!(shards[0]["shard"], 0);
    assert!(shards.iter().all(|shard| shard["leader"] == 1), "{cluster}");
    let voter = json!([{"node": 1, "role": "voter", "lag": 0, "damaged": false}]);
    assert!(shards.iter().all(|shard| shard["replicas"] == voter), "{cluster}");
    let placed: u64 = shards.iter().filter_map(|shard| shard["partitions"].as_u64()).sum();
    assert_eq!(placed, 3);
    let reply = get(&server, "/v1/cluster?verbose=1").await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error_code"]), (400, &json!(400)));
    let accept = server.request(Method::GET, "/v1/cluster").header("accept", "text/html");
    assert_eq!(Reply::of(accept).await.status, 406);
    server.stop().await;
}

#[tokio::test]
async fn the_document_is_served_with_a_page_of_its_own() {
    let server = Server::start().await;
    let document = get(&server, "/openapi.json").await.json();
    assert_eq!(document["info"]["title"], "Eddyline");
    for path in ["/docs", "/docs/"] {
        let client = reqwest::Client::builder().redirect(redirect::Policy::none()).build().unwrap();
        let reply = Reply::of(client.get(format!("{}{path}", server.url()))).await;
        assert_eq!(reply.status, 303, "{path}");
        assert_eq!(reply.header("location"), Some("/docs/index.html"));
    }
    let page = get(&server, "/docs/index.html").await;
    assert_eq!(page.status, 200);
    assert!(page.header("content-type").is_some_and(|text| text.starts_with("text/html")));
    assert!(page.header("content-security-policy").is_some());
    let missing = get(&server, "/docs/..%2f..%2fetc%2fpasswd").await;
    assert_eq!((missing.status.as_u16(), &missing.json()["code"]), (404, &json!("not_found")));
    server.stop().await;
}

#[tokio::test]
async fn the_data_directory_has_the_documented_layout() {
    let server = Server::start().await;
    let put = server.request(Method::PUT, "/v1/topics/a").body(r#"{"partitions":3}"#);
    let topic = Reply::of(put).await.json()["topic_id"].as_str().unwrap().to_owned();
    let produce = server.request(Method::POST, "/v1/topics/a/records?partition=1").body("x");
    assert_eq!(Reply::of(produce).await.status, 200);
    let directory = server.halt().await;
    for name in ["node.json", "LOCK", "metadata.db", "wal/LOCK", "wal/owner.json"] {
        assert!(directory.path().join(name).is_file(), "{name}");
    }
    for name in ["wal", "shards/0", "shards/1"] {
        assert!(directory.path().join(name).is_dir(), "{name}");
    }
    let topics: Vec<_> = std::fs::read_dir(directory.path().join("partitions")).unwrap().collect();
    assert_eq!(topics.len(), 1);
    let topic = directory.path().join("partitions").join(topic);
    let partitions = std::fs::read_dir(&topic).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(partitions.collect::<Vec<_>>(), ["1"], "a directory is made at the first record");
    assert!(topic.join("1/00000000000000000000.log").is_file());
}

#[tokio::test]
async fn a_restart_on_the_same_port_works_at_once() {
    let server = Server::start().await;
    let address = server.url().trim_start_matches("http://").to_owned();
    // A connection that the server closes, and whose port lingers.
    let mut open = tokio::net::TcpStream::connect(&address).await.unwrap();
    open.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    open.read_to_end(&mut Vec::new()).await.unwrap();
    let server = Server::start_in(server.halt().await, &[("listen", &address)]).await;
    assert_eq!(server.url(), format!("http://{address}"));
    assert_eq!(get(&server, "/healthz").await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn other_methods_are_answered_with_a_problem() {
    let server = Server::start().await;
    for path in ["/healthz", "/readyz", "/metrics", "/v1/cluster", "/openapi.json", "/docs"] {
        let reply = Reply::of(server.request(Method::POST, path)).await;
        assert_eq!(reply.status, 405, "{path}");
        assert_eq!(reply.header("content-type"), Some("application/problem+json"), "{path}");
        assert_eq!(reply.json()["code"], Value::from("method_not_allowed"), "{path}");
        assert!(reply.header("allow").is_some_and(|allow| allow.contains("GET")), "{path}");
    }
    server.stop().await;
}
