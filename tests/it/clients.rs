//! Clients that others wrote, against a server: `tests/clients` has their scripts.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::{Reply, Server, skipped};

/// Longest time that a script may take; far more than it needs.
const PATIENCE: Duration = Duration::from_secs(120);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a script of `tests/clients` and returns what it printed.
async fn run(program: &Path, arguments: &[&str], server: &Server) -> String {
    let mut command = Command::new(program);
    command.args(arguments).args([server.url(), "t", "g"]).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await;
    let output = output.expect("the script hangs").unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{} {}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Makes a topic with one partition and three records.
async fn topic(server: &Server) {
    let put = server.request(Method::PUT, "/v1/topics/t").body(r#"{"partitions":1}"#);
    assert_eq!(Reply::of(put).await.status, 201);
    let records = json!([{"value": {"n": 1}}, {"value": {"n": 2}}, {"value": {"n": 3}}]);
    let request = server.request(Method::POST, "/v1/topics/t/records");
    let request = request.header("content-type", "application/json");
    assert_eq!(Reply::of(request.body(records.to_string())).await.status, 200);
}

async fn group(server: &Server) -> Value {
    Reply::of(server.request(Method::GET, "/v1/groups/g")).await.json()
}

#[tokio::test]
async fn a_rest_proxy_client_from_pypi_creates_subscribes_polls_commits_and_deletes() {
    let python: PathBuf = root().join("target/clients/bin/python");
    if !python.exists() {
        let reason = "target/clients has no Python client; run tests/prepare.sh";
        return skipped("REST Proxy client from PyPI", reason);
    }
    let server = Server::start().await;
    topic(&server).await;
    let script = root().join("tests/clients/rest_proxy.py");
    let printed = run(&python, &[script.to_str().unwrap()], &server).await;
    assert_eq!(printed, "0 {\"n\":1}\n1 {\"n\":2}\n2 {\"n\":3}\ndone\n");
    let group = group(&server).await;
    assert_eq!(group["offsets"][0]["offset"], 3, "{group}");
    assert_eq!(group["state"], "empty", "the instance was deleted: {group}");
    server.stop().await;
}

#[tokio::test]
async fn curl_alone_creates_subscribes_polls_commits_and_deletes() {
    let server = Server::start().await;
    topic(&server).await;
    let printed = run(&root().join("tests/clients/rest_proxy.sh"), &[], &server).await;
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 3, "{printed}");
    let records: Value = serde_json::from_str(lines[0]).unwrap();
    assert_eq!(records[2]["value"], json!({"n": 3}));
    assert_eq!(lines[1], "[]");
    let committed: Value = serde_json::from_str(lines[2]).unwrap();
    assert_eq!(committed["offsets"][0]["offset"], 3);
    assert_eq!(group(&server).await["state"], "empty");
    server.stop().await;
}
