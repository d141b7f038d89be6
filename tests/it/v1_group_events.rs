//! Events as a member of a group: partitions, commits by the client and by the server, the end.

use std::time::Duration;

use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::support::{Reply, Server, eventually};

/// A stream of events.
struct Events {
    response: Response,
    buffer: String,
}

impl Events {
    async fn open(server: &Server, query: &str) -> Self {
        let request = server.request(Method::GET, &format!("/v1/topics/t/records?{query}"));
        let response = request.header("accept", "text/event-stream").send().await.unwrap();
        assert_eq!(response.status(), 200);
        Self { response, buffer: String::new() }
    }

    /// Returns the next event that has data: its name and the data.
    async fn next(&mut self) -> (String, Value) {
        loop {
            while let Some((event, rest)) = self.buffer.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.buffer = rest;
                assert!(!event.contains("\nid: "), "the group keeps the place: {event}");
                let field = |name| event.lines().find_map(|line| line.strip_prefix(name));
                if let (Some(kind), Some(data)) = (field("event: "), field("data: ")) {
                    return (kind.to_owned(), serde_json::from_str(data).unwrap());
                }
            }
            let chunk = tokio::time::timeout(Duration::from_secs(60), self.response.chunk());
            let chunk = chunk.await.expect("an event in time").unwrap().expect("no end yet");
            self.buffer.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// Returns the data of the next event of a kind.
    async fn expect(&mut self, kind: &str) -> Value {
        loop {
            let (found, data) = self.next().await;
            if found == kind {
                return data;
            }
            assert_ne!(found, "error", "{data}");
        }
    }

    /// Reads until records of all offsets below `end` of partition 0 came, and returns them.
    async fn offsets(&mut self, end: i64) -> Vec<i64> {
        let mut offsets = Vec::new();
        while offsets.last() != Some(&(end - 1)) {
            let page = self.expect("records").await;
            let records = page["records"].as_array().unwrap();
            offsets.extend(records.iter().map(|record| record["offset"].as_i64().unwrap()));
        }
        offsets
    }
}

async fn topic(server: &Server, partitions: u32, records: i64) {
    let put = server.request(Method::PUT, "/v1/topics/t");
    let put = put.body(json!({"partitions": partitions}).to_string());
    assert!(Reply::of(put).await.status.is_success());
    if records > 0 {
        write(server, records).await;
    }
}

async fn write(server: &Server, records: i64) {
    let records: Vec<Value> = (0..records).map(|n| json!({"value": n, "partition": 0})).collect();
    let request = server.request(Method::POST, "/v1/topics/t/records");
    let request = request.header("content-type", "application/json");
    let reply = Reply::of(request.body(json!(records).to_string())).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
}

async fn committed(server: &Server) -> Option<i64> {
    let reply = Reply::of(server.request(Method::GET, "/v1/groups/g/offsets")).await;
    reply.json()["offsets"][0]["offset"].as_i64()
}

async fn state(server: &Server) -> Value {
    Reply::of(server.request(Method::GET, "/v1/groups/g")).await.json()
}

async fn commit(server: &Server, member: &Value, offset: i64) -> Reply {
    let offsets = json!([{"topic": "t", "partition": 0, "offset": offset}]);
    let body =
        json!({"offsets": offsets, "member_id": member["member_id"], "epoch": member["epoch"]});
    let request = server.request(Method::POST, "/v1/groups/g/offsets");
    Reply::of(request.header("content-type", "application/json").body(body.to_string())).await
}

#[tokio::test]
async fn a_stream_is_a_member_that_goes_on_where_its_client_committed() {
    let server = Server::start().await;
    topic(&server, 1, 5).await;
    let mut events = Events::open(&server, "group=g&from=earliest").await;
    let assigned = events.expect("assigned").await;
    assert_eq!(assigned["type"], "assigned");
    assert_eq!((&assigned["partitions"], &assigned["start"]), (&json!([0]), &json!({"0": 0})));
    assert_eq!(assigned["generation"], assigned["epoch"]);
    assert_eq!(events.offsets(5).await, [0, 1, 2, 3, 4]);
    let reply = commit(&server, &assigned, 3).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let group = state(&server).await;
    assert_eq!(group["members"][0]["kind"], "sse", "{group}");
    assert_eq!(group["members"][0]["member_id"], assigned["member_id"]);
    assert_eq!(group["members"][0]["assignment"], json!([{"topic": "t", "partition": 0}]));
    for (method, below, body) in [
        (Method::DELETE, "", json!(null)),
        (Method::DELETE, "/offsets?topic=t", json!(null)),
        (Method::POST, "/offsets/reset", json!({"topic": "t", "to": "earliest"})),
        (
            Method::POST,
            "/offsets",
            json!({"offsets": [{"topic": "t", "partition": 0, "offset": 0}]}),
        ),
    ] {
        let request = server.request(method, &format!("/v1/groups/g{below}"));
        let reply = Reply::of(request.body(body.to_string())).await;
        assert_eq!(reply.status, 409, "{below}: {}", reply.text());
        assert_eq!(reply.json()["code"], "group_not_empty", "{below}");
        assert_eq!(reply.json()["error_code"], 40905, "{below}");
    }
    assert_eq!(committed(&server).await, Some(3), "nothing was moved");
    drop(events);
    eventually("the member leaves with its connection", async || {
        (state(&server).await["state"] == "empty").then_some(())
    })
    .await;
    let stale = commit(&server, &assigned, 5).await;
    assert_eq!((stale.status.as_u16(), stale.json()["code"].clone()), (409, json!("stale_member")));

    let mut events = Events::open(&server, "group=g&commit=manual").await;
    assert_eq!(events.expect("assigned").await["start"], json!({"0": 3}));
    assert_eq!(events.offsets(5).await, [3, 4]);
    write(&server, 1).await;
    assert_eq!(events.offsets(6).await, [5], "and live from there");
    drop(events);
    server.stop().await;
}

#[tokio::test]
async fn what_the_socket_accepted_is_committed_late() {
    let server = Server::start().await;
    topic(&server, 1, 5).await;
    let mut events = Events::open(&server, "group=g&from=earliest&commit=auto").await;
    assert_eq!(events.offsets(5).await, [0, 1, 2, 3, 4]);
    let offset = eventually("the server commits", async || committed(&server).await).await;
    assert_eq!(offset, 5);
    drop(events);
    server.stop().await;
}

#[tokio::test]
async fn partitions_move_between_streams_that_are_told_so() {
    let server = Server::start().await;
    topic(&server, 2, 0).await;
    let mut first = Events::open(&server, "group=g").await;
    assert_eq!(first.expect("assigned").await["partitions"], json!([0, 1]));
    let mut second = Events::open(&server, "group=g").await;
    let revoking = first.expect("revoking").await;
    let moved = revoking["partitions"].as_array().unwrap().clone();
    assert_eq!(moved.len(), 1, "{revoking}");
    assert_eq!(first.expect("revoked").await["partitions"], json!(moved));
    let mut got = second.expect("assigned").await;
    while got["partitions"] != json!(moved) {
        got = second.expect("assigned").await;
    }
    drop(second);
    let mut back = first.expect("assigned").await;
    while back["partitions"] != json!([0, 1]) {
        back = first.expect("assigned").await;
    }
    drop(first);
    server.stop().await;
}

#[tokio::test]
async fn a_stream_with_an_instance_id_comes_back_without_a_rebalance() {
    let server = Server::start().await;
    topic(&server, 2, 0).await;
    let mut other = Events::open(&server, "group=g&assignor=range").await;
    other.expect("assigned").await;
    let mut first = Events::open(&server, "group=g&instance_id=i&assignor=range").await;
    let mut got = first.expect("assigned").await;
    while got["partitions"] == json!([]) {
        got = first.expect("assigned").await;
    }
    other.expect("revoked").await;
    let before = state(&server).await;
    assert_eq!((&before["state"], &before["assignor"]), (&json!("stable"), &json!("range")));
    drop(first);
    let mut again = Events::open(&server, "group=g&instance_id=i&assignor=range").await;
    let back = again.expect("assigned").await;
    assert_eq!((&back["partitions"], &back["epoch"]), (&got["partitions"], &before["epoch"]));
    assert_ne!(back["member_id"], got["member_id"], "another member, which fences the former");
    let after = state(&server).await;
    assert_eq!((&after["epoch"], &after["rebalances"]), (&before["epoch"], &before["rebalances"]));
    let stale = commit(&server, &got, 1).await;
    assert_eq!(stale.json()["code"], "stale_member");
    drop((other, again));
    server.stop().await;
}

#[tokio::test]
async fn a_group_decides_where_it_reads() {
    let server = Server::start().await;
    topic(&server, 1, 1).await;
    for query in [
        "group=g&partitions=0",
        "group=g&partition=0&offset=0",
        "group=g&from=2024-01-01T00:00:00Z",
        "group=g&last_event_id=x",
        "group=g&commit=perhaps",
        "commit=auto",
        "instance_id=i",
        "assignor=range",
        "group=g&assignor=fair",
    ] {
        let request = server.request(Method::GET, &format!("/v1/topics/t/records?{query}"));
        let reply = Reply::of(request.header("accept", "text/event-stream")).await;
        assert_eq!(reply.status, 400, "{query}: {}", reply.text());
    }
    let page = Reply::of(server.request(Method::GET, "/v1/topics/t/records?group=g")).await;
    assert_eq!(page.status, 400, "pages have no membership");
    let request = server.request(Method::GET, "/v1/topics/t/records?group=__g");
    let reply = Reply::of(request.header("accept", "text/event-stream")).await;
    assert_eq!(reply.json()["code"], "invalid_name");
    server.stop().await;
}

#[tokio::test]
async fn a_stream_is_told_what_retention_took_before_it_could_read_on() {
    let server = Server::start_with(&[("storage.retention_interval", "100ms")]).await;
    let body = json!({"partitions": 1, "configs": {"retention.ms": 1000}}).to_string();
    let reply = Reply::of(server.request(Method::PUT, "/v1/topics/t").body(body)).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    let offsets = json!({"offsets": [{"topic": "t", "partition": 0, "offset": 0}]}).to_string();
    let request = server.request(Method::POST, "/v1/groups/g/offsets");
    let reply = Reply::of(request.header("content-type", "application/json").body(offsets)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    for _ in 0..3 {
        let record = json!({"value": 1, "timestamp": 1}).to_string();
        let request = server.request(Method::POST, "/v1/topics/t/records");
        let reply = Reply::of(request.header("content-type", "application/json").body(record));
        assert_eq!(reply.await.status, 200);
    }
    eventually("retention takes the records", async || {
        let shown = Reply::of(server.request(Method::GET, "/v1/topics/t")).await.json();
        (shown["details"][0]["log_start_offset"] == 3).then_some(())
    })
    .await;
    let mut events = Events::open(&server, "group=g&from=earliest").await;
    assert_eq!(events.expect("assigned").await["start"], json!({"0": 3}));
    let gap = json!({"partition": 0, "from": 0, "to": 2, "reason": "retention"});
    assert_eq!(events.expect("gap").await, gap);
    drop(events);
    server.stop().await;
}
