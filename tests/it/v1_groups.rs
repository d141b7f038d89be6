//! Consumer groups on the native face: committed offsets, resets, deletion, every error row.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Reply, Server};

async fn send(server: &Server, method: Method, path: &str) -> Reply {
    Reply::of(server.request(method, path)).await
}

async fn post(server: &Server, path: &str, body: &Value) -> Reply {
    let request = server.request(Method::POST, path).header("content-type", "application/json");
    Reply::of(request.body(body.to_string())).await
}

/// Creates a topic of two partitions: five records in the first, timestamps 1000 to 5000, and
/// three in the second.
async fn topic(server: &Server, name: &str) {
    let request = server.request(Method::PUT, &format!("/v1/topics/{name}"));
    let created = Reply::of(request.body(r#"{"partitions":2}"#)).await;
    assert_eq!(created.status, StatusCode::CREATED, "{}", created.text());
    let record = |(partition, n): (u32, u32)| {
        let timestamp = n * 1000;
        json!({"partition": partition, "timestamp": timestamp, "value": n})
    };
    let records: Vec<Value> =
        (1..=5).map(|n| (0, n)).chain((1..=3).map(|n| (1, n))).map(record).collect();
    let written = post(server, &format!("/v1/topics/{name}/records"), &json!(records)).await;
    assert_eq!(written.status, StatusCode::OK, "{}", written.text());
}

async fn commit(server: &Server, group: &str, offsets: Value) -> Reply {
    post(server, &format!("/v1/groups/{group}/offsets"), &json!({"offsets": offsets})).await
}

fn assert_problem(reply: &Reply, status: u16, code: &str, error_code: u32, what: &str) {
    assert_eq!(reply.status, status, "{what}: {}", reply.text());
    let problem = reply.json();
    assert_eq!(problem["code"], code, "{what}: {problem}");
    assert_eq!(problem["error_code"], error_code, "{what}: {problem}");
    assert_eq!(reply.header("content-type"), Some("application/problem+json"), "{what}");
}

#[tokio::test]
async fn a_commit_makes_the_group_and_answers_its_offsets_and_lag() {
    let server = Server::start().await;
    topic(&server, "a").await;
    let reply = commit(
        &server,
        "my%20group",
        json!([
            {"topic": "a", "partition": 1, "offset": 1, "metadata": "here"},
            {"topic": "a", "partition": 0, "offset": 5},
        ]),
    )
    .await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let answer = reply.json();
    assert_eq!(answer["group"], "my group");
    let offsets = answer["offsets"].as_array().unwrap();
    assert_eq!(offsets.len(), 2);
    let members: Vec<&String> = offsets[1].as_object().unwrap().keys().collect();
    assert_eq!(members.len(), 8, "{members:?}");
    assert_eq!(
        (&offsets[0]["partition"], &offsets[0]["offset"], &offsets[0]["lag"]),
        (&json!(0), &json!(5), &json!(0))
    );
    assert_eq!(offsets[1]["topic"], "a");
    assert_eq!(offsets[1]["metadata"], "here");
    assert_eq!((&offsets[1]["log_end_offset"], &offsets[1]["lag"]), (&json!(3), &json!(2)));
    assert!(offsets[1]["committed_at"].as_i64().unwrap() > 0);
    let order = [
        "\"topic\":",
        "\"partition\":",
        "\"offset\":",
        "\"metadata\":",
        "\"committed_at\":",
        "\"log_end_offset\":",
        "\"lag\":",
        "\"lag_ms\":",
    ];
    let places: Vec<_> = order.iter().map(|name| reply.text().find(name).unwrap()).collect();
    assert!(places.is_sorted(), "{}", reply.text());

    let again = send(&server, Method::GET, "/v1/groups/my%20group/offsets/").await;
    assert_eq!(again.status, 200);
    assert_eq!(again.json()["offsets"].as_array().unwrap().len(), 2);
    server.stop().await;
}

#[tokio::test]
async fn a_group_is_shown_whole_and_listed_by_name_in_pages() {
    let server = Server::start().await;
    topic(&server, "a").await;
    for group in ["g2", "g1", "g3"] {
        let offsets = json!([{"topic": "a", "partition": 0, "offset": 1}]);
        assert_eq!(commit(&server, group, offsets).await.status, 200);
    }
    let shown = send(&server, Method::GET, "/v1/groups/g1").await;
    assert_eq!(shown.status, 200, "{}", shown.text());
    let group = shown.json();
    assert_eq!(group["group"], "g1");
    assert_eq!(group["state"], "empty");
    assert_eq!(group["assignor"], "uniform");
    assert_eq!(group["coordinator"], 1);
    assert_eq!(group["members"], json!([]));
    assert_eq!(group["lag"], 4);
    assert_eq!(group["offsets"][0]["offset"], 1);
    assert!(group["epoch"].is_u64() && group["rebalances"].is_array());

    let first = send(&server, Method::GET, "/v1/groups?limit=2").await.json();
    let names = |page: &Value| -> Vec<String> {
        let groups = page["groups"].as_array().unwrap();
        groups.iter().map(|group| group["group"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&first), ["g1", "g2"]);
    let summary = json!({"group": "g1", "state": "empty", "members": 0, "topics": ["a"], "lag": 4});
    assert_eq!(first["groups"][0], summary);
    let cursor = first["next"].as_str().unwrap();
    let last = send(&server, Method::GET, &format!("/v1/groups?cursor={cursor}")).await.json();
    assert_eq!(names(&last), ["g3"]);
    assert_eq!(last["next"], Value::Null);
    for bad in ["limit=0", "limit=1001", "cursor=%21", "x=1"] {
        let reply = send(&server, Method::GET, &format!("/v1/groups?{bad}")).await;
        assert_problem(&reply, 400, "invalid_request", 400, bad);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_reset_goes_to_every_place_clamped_and_a_dry_run_changes_nothing() {
    let server = Server::start().await;
    topic(&server, "a").await;
    let offsets = json!([{"topic": "a", "partition": 0, "offset": 3}]);
    assert_eq!(commit(&server, "g", offsets).await.status, 200);
    let reset = async |to: Value, dry_run: bool| {
        let body = json!({"topic": "a", "partitions": [0], "to": to, "dry_run": dry_run});
        let reply = post(&server, "/v1/groups/g/offsets/reset", &body).await;
        assert_eq!(reply.status, 200, "{to}: {}", reply.text());
        let answer = reply.json();
        assert_eq!(answer["dry_run"], dry_run);
        let step = &answer["offsets"][0];
        assert_eq!((&step["topic"], &step["partition"]), (&json!("a"), &json!(0)));
        (step["from"].as_i64(), step["to"].as_i64().unwrap())
    };
    for (to, expected) in [
        (json!("earliest"), 0),
        (json!("latest"), 5),
        (json!({"offset": 2}), 2),
        (json!({"offset": 99}), 5),
        (json!({"shift": -2}), 1),
        (json!({"shift": -10}), 0),
        (json!({"shift": 1}), 4),
        (json!({"timestamp": 2000}), 1),
        (json!({"timestamp": "1970-01-01T00:00:02.0001Z"}), 2),
        (json!({"timestamp": 9_000_000}), 5),
    ] {
        assert_eq!(reset(to.clone(), true).await, (Some(3), expected), "{to}");
    }
    assert_eq!(reset(json!({"offset": 1}), false).await, (Some(3), 1));
    assert_eq!(reset(json!("latest"), true).await, (Some(1), 5));
    let whole = json!({"topic": "a", "to": "latest"});
    let reply = post(&server, "/v1/groups/g/offsets/reset", &whole).await.json();
    assert_eq!(reply["dry_run"], false);
    assert_eq!(reply["offsets"][1], json!({"topic": "a", "partition": 1, "from": null, "to": 3}));
    server.stop().await;
}

#[tokio::test]
async fn offsets_of_a_group_that_is_left_alone_are_forgotten_as_the_setting_says() {
    let server = Server::start_tweaked(&[], |config| {
        config.groups.offsets_retention = std::time::Duration::from_secs(1);
    })
    .await;
    topic(&server, "a").await;
    let one = json!([{"topic": "a", "partition": 0, "offset": 3}]);
    assert_eq!(commit(&server, "g", one).await.status, 200);
    crate::support::eventually("the group is forgotten", async || {
        (send(&server, Method::GET, "/v1/groups/g").await.status == 404).then_some(())
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn groups_and_offsets_are_deleted() {
    let server = Server::start().await;
    topic(&server, "a").await;
    let both = json!([
        {"topic": "a", "partition": 0, "offset": 3},
        {"topic": "a", "partition": 1, "offset": 3},
    ]);
    assert_eq!(commit(&server, "g", both).await.status, 200);
    let deleted = send(&server, Method::DELETE, "/v1/groups/g/offsets?topic=a&partition=0").await;
    assert_eq!(deleted.status, 204, "{}", deleted.text());
    let left = send(&server, Method::GET, "/v1/groups/g/offsets").await.json();
    assert_eq!(left["offsets"].as_array().unwrap().len(), 1);
    assert_eq!(left["offsets"][0]["partition"], 1);
    for bad in ["", "?partition=0", "?topic=a&partition=x", "?topic=a&topic=b", "?topic=a&x=1"] {
        let path = format!("/v1/groups/g/offsets{bad}");
        let reply = send(&server, Method::DELETE, &path).await;
        assert_problem(&reply, 400, "invalid_request", 400, bad);
    }
    assert_eq!(send(&server, Method::DELETE, "/v1/groups/g").await.status, 204);
    let gone = send(&server, Method::GET, "/v1/groups/g").await;
    assert_problem(&gone, 404, "group_not_found", 40405, "deleted");
    server.stop().await;
}

#[tokio::test]
async fn names_that_are_none_are_refused_and_not_repeated_as_a_page() {
    let server = Server::start().await;
    topic(&server, "a").await;
    let one = || json!([{"topic": "a", "partition": 0, "offset": 0}]);
    for name in ["a%0D%0Ab", "a%00", &"x".repeat(250)] {
        let reply = commit(&server, name, one()).await;
        assert_problem(&reply, 422, "invalid_name", 42206, name);
        let reply = send(&server, Method::GET, &format!("/v1/groups/{name}")).await;
        assert_problem(&reply, 404, "group_not_found", 40405, name);
    }
    let markup = "%3Cscript%3Ealert(1)%3C/script%3E";
    let reply = send(&server, Method::GET, &format!("/v1/groups/{markup}/offsets")).await;
    assert_eq!(reply.header("content-type"), Some("application/problem+json"), "no page of it");
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_done_with_a_group_has_its_row() {
    let server = Server::start().await;
    topic(&server, "a").await;
    for (method, path) in [
        (Method::GET, "/v1/groups/none"),
        (Method::GET, "/v1/groups/none/offsets"),
        (Method::GET, "/v1/groups/%ff"),
        (Method::DELETE, "/v1/groups/none"),
        (Method::DELETE, "/v1/groups/none/offsets?topic=a"),
    ] {
        let reply = send(&server, method, path).await;
        assert_problem(&reply, 404, "group_not_found", 40405, path);
    }
    let one = |topic: &str, partition: i64, offset: i64| {
        let offset = json!({"topic": topic, "partition": partition, "offset": offset});
        json!([offset])
    };
    let reply = commit(&server, "g", one("missing", 0, 0)).await;
    assert_problem(&reply, 404, "topic_not_found", 40401, "topic");
    let reply = commit(&server, "g", one("a", 2, 0)).await;
    assert_problem(&reply, 404, "partition_not_found", 40402, "partition");
    let reply = commit(&server, "__g", one("a", 0, 0)).await;
    assert_problem(&reply, 422, "invalid_name", 42206, "name");
    let stale = json!({"offsets": one("a", 0, 0), "member_id": "m", "epoch": 1});
    let reply = post(&server, "/v1/groups/g/offsets", &stale).await;
    assert_problem(&reply, 409, "stale_member", 40906, "member");
    for (body, pointer) in [
        (json!({"offsets": one("a", 0, -1)}), "/offsets/0/offset"),
        (json!({"offsets": one("a", -1, 0)}), "/offsets/0/partition"),
        (json!({"offsets": one("a", 1 << 32, 0)}), "/offsets/0/partition"),
        (
            json!({"offsets": [{"topic": "a", "partition": 0, "offset": 1_u64 << 63}]}),
            "/offsets/0/offset",
        ),
        (json!({"offsets": 1}), "/offsets"),
        (json!({"offsets": [], "x": 1}), "/x"),
        (json!({"offsets": [], "member_id": "m"}), "/epoch"),
        (json!({"offsets": [], "epoch": 1}), "/member_id"),
        (json!({}), ""),
        (json!([]), ""),
    ] {
        let reply = post(&server, "/v1/groups/g/offsets", &body).await;
        assert_problem(&reply, 422, "invalid_body", 422, &body.to_string());
        assert_eq!(reply.json()["errors"][0]["pointer"], pointer, "{}", reply.text());
    }
    for (to, pointer) in [
        (json!("sideways"), "/to"),
        (json!({"offset": -1}), "/to/offset"),
        (json!({"timestamp": "noon"}), "/to/timestamp"),
    ] {
        let body = json!({"topic": "a", "to": to});
        let reply = post(&server, "/v1/groups/g/offsets/reset", &body).await;
        assert_problem(&reply, 422, "invalid_body", 422, &body.to_string());
        let found = reply.json()["errors"][0]["pointer"].as_str().unwrap().to_owned();
        assert!(found.starts_with(pointer), "{found}");
    }
    let request = server.request(Method::POST, "/v1/groups/g/offsets").body("{");
    let reply = Reply::of(request).await;
    assert_problem(&reply, 400, "invalid_request", 400, "malformed");
    let request = server.request(Method::POST, "/v1/groups/g/offsets");
    let reply = Reply::of(request.header("content-type", "text/xml").body("{}")).await;
    assert_problem(&reply, 415, "unsupported_media_type", 415, "type");
    let reply = Reply::of(server.request(Method::GET, "/v1/groups").header("accept", "x/y")).await;
    assert_problem(&reply, 406, "not_acceptable", 406, "accept");
    server.stop().await;
}
