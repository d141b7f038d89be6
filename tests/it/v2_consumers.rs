//! REST Proxy v2 consumers: from create to delete, every choice and every error number.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Reply, Server, eventually};

const V2: &str = "application/vnd.kafka.v2+json";
const JSON: &str = "application/vnd.kafka.json.v2+json";
const BINARY: &str = "application/vnd.kafka.binary.v2+json";
const TEXT: &str = "application/vnd.kafka.text.v2+json";

async fn send(server: &Server, method: Method, path: &str, body: Option<&Value>) -> Reply {
    let request = server.request(method, path).header("content-type", V2);
    Reply::of(match body {
        Some(body) => request.body(body.to_string()),
        None => request,
    })
    .await
}

async fn post(server: &Server, path: &str, body: &Value) -> Reply {
    send(server, Method::POST, path, Some(body)).await
}

/// Makes a topic with one partition and some values.
async fn topic(server: &Server, name: &str, values: &[Value]) {
    let put = server.request(Method::PUT, &format!("/v1/topics/{name}"));
    let reply = Reply::of(put.body(r#"{"partitions":1}"#)).await;
    assert!(reply.status.is_success(), "{}", reply.text());
    write(server, name, values).await;
}

async fn write(server: &Server, topic: &str, values: &[Value]) {
    let records: Vec<Value> = values.iter().map(|value| json!({"value": value})).collect();
    if records.is_empty() {
        return;
    }
    let request = server.request(Method::POST, &format!("/topics/{topic}"));
    let body = json!({"records": records}).to_string();
    let reply = Reply::of(request.header("content-type", JSON).body(body)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
}

/// Makes an instance and returns its path.
async fn create(server: &Server, group: &str, name: &str, more: Value) -> String {
    let mut body = json!({"name": name, "format": "json", "auto.offset.reset": "earliest"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let reply = post(server, &format!("/consumers/{group}"), &body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.header("content-type"), Some(V2));
    let made = reply.json();
    assert_eq!(made["instance_id"], name);
    let path = format!("/consumers/{group}/instances/{name}");
    assert_eq!(made["base_uri"], format!("{}{path}", server.url()));
    path
}

async fn subscribe(server: &Server, instance: &str, topics: &[&str]) {
    let reply = post(server, &format!("{instance}/subscription"), &json!({"topics": topics})).await;
    assert_eq!(reply.status, 204, "{}", reply.text());
}

async fn poll_with(server: &Server, instance: &str, query: &str, accept: &str) -> Reply {
    let request = server.request(Method::GET, &format!("{instance}/records?{query}"));
    Reply::of(request.header("accept", accept)).await
}

async fn poll(server: &Server, instance: &str, query: &str) -> Reply {
    let reply = poll_with(server, instance, query, JSON).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.header("content-type"), Some(JSON));
    reply
}

fn offsets(reply: &Reply) -> Vec<i64> {
    let records = reply.json();
    records.as_array().unwrap().iter().map(|record| record["offset"].as_i64().unwrap()).collect()
}

async fn committed(server: &Server, group: &str) -> Option<i64> {
    let reply =
        Reply::of(server.request(Method::GET, &format!("/v1/groups/{group}/offsets"))).await;
    reply.json()["offsets"][0]["offset"].as_i64()
}

fn error_code(reply: &Reply) -> Option<u64> {
    serde_json::from_str::<Value>(reply.text()).ok()?["error_code"].as_u64()
}

fn numbers(count: i64) -> Vec<Value> {
    (0..count).map(|n| json!(n)).collect()
}

fn assert_error(reply: &Reply, status: u16, error_code: u32, what: &str) {
    assert_eq!(reply.status, status, "{what}: {}", reply.text());
    let body = reply.json();
    assert_eq!(body["error_code"], error_code, "{what}: {body}");
    assert_eq!(body.as_object().unwrap().len(), 2, "{what}: {body}");
    assert_eq!(reply.header("content-type"), Some(V2), "{what}");
}

#[tokio::test]
async fn an_instance_lives_from_create_to_delete() {
    let server = Server::start().await;
    topic(&server, "t", &numbers(3)).await;
    let instance = create(&server, "g", "i", json!({"auto.commit.enable": "false"})).await;
    subscribe(&server, &instance, &["t"]).await;
    let shown = send(&server, Method::GET, &format!("{instance}/subscription"), None).await;
    assert_eq!(shown.json(), json!({"topics": ["t"]}));
    let shown = send(&server, Method::GET, &format!("{instance}/assignments"), None).await;
    assert_eq!(shown.json(), json!({"partitions": [{"topic": "t", "partition": 0}]}));

    // The first poll has partitions, and with them records.
    let reply = poll(&server, &instance, "timeout=10000").await;
    assert_eq!(offsets(&reply), [0, 1, 2]);
    let records = reply.json();
    let mut first = records[0].as_object().unwrap().clone();
    assert!(first.remove("timestamp").unwrap().as_i64().unwrap() > 0);
    assert_eq!(
        Value::Object(first),
        json!({"topic": "t", "key": null, "value": 0, "partition": 0, "offset": 0})
    );

    assert_eq!(committed(&server, "g").await, None, "nothing is committed unasked");
    let all = send(&server, Method::POST, &format!("{instance}/offsets"), None).await;
    assert_eq!((all.status, all.text()), (StatusCode::OK, "[]"));
    assert_eq!(committed(&server, "g").await, Some(3));
    let one = json!({"offsets": [{"topic": "t", "partition": 0, "offset": 0, "metadata": "m"}]});
    assert_eq!(post(&server, &format!("{instance}/offsets?async=true"), &one).await.status, 200);
    let asked =
        json!({"partitions": [{"topic": "t", "partition": 0}, {"topic": "u", "partition": 7}]});
    let path = format!("{instance}/offsets");
    let by_body = send(&server, Method::GET, &path, Some(&asked)).await;
    let expected =
        json!({"offsets": [{"topic": "t", "partition": 0, "offset": 1, "metadata": "m"}]});
    assert_eq!(by_body.json(), expected, "the offset after the processed one");
    let by_query = format!("{instance}/offsets?partitions=t:0,u:7");
    assert_eq!(send(&server, Method::GET, &by_query, None).await.json(), expected);

    assert_eq!(send(&server, Method::DELETE, &instance, None).await.status, 204);
    let gone = send(&server, Method::DELETE, &instance, None).await;
    assert_error(&gone, 404, 40403, "deleted");
    assert_eq!(gone.json()["message"], "Consumer instance not found.");
    let group = Reply::of(server.request(Method::GET, "/v1/groups/g")).await.json();
    assert_eq!(group["state"], "empty", "it has left");
    server.stop().await;
}

#[tokio::test]
async fn a_poll_whose_answer_was_lost_is_repeated() {
    let server = Server::start().await;
    topic(&server, "t", &numbers(4)).await;
    let instance = create(&server, "g", "i", json!({})).await;
    subscribe(&server, &instance, &["t"]).await;
    let first = poll(&server, &instance, "max_bytes=1").await;
    assert_eq!(offsets(&first), [0], "one record is answered whatever the bound");
    let again = poll(&server, &instance, "max_bytes=1&after=").await;
    assert_eq!(offsets(&again), [0]);
    let position = again.header("eddyline-position").unwrap().to_owned();
    assert_eq!(offsets(&poll(&server, &instance, "max_bytes=1").await), [1]);
    let again = poll(&server, &instance, &format!("after={position}")).await;
    assert_eq!(offsets(&again), [1, 2, 3]);
    let bad = poll_with(&server, &instance, "after=x", JSON).await;
    assert_error(&bad, 400, 400, "no position");
    server.stop().await;
}

#[tokio::test]
async fn what_the_last_answer_held_is_never_committed_unasked() {
    let server = Server::start().await;
    topic(&server, "t", &numbers(2)).await;
    let instance = create(&server, "g", "i", json!({})).await;
    subscribe(&server, &instance, &["t"]).await;
    assert_eq!(offsets(&poll(&server, &instance, "max_bytes=1").await), [0]);
    assert_eq!(offsets(&poll(&server, &instance, "max_bytes=1").await), [1]);
    assert_eq!(send(&server, Method::DELETE, &instance, None).await.status, 204);
    assert_eq!(committed(&server, "g").await, Some(1));

    let instance = create(&server, "g", "i", json!({})).await;
    subscribe(&server, &instance, &["t"]).await;
    let reply = poll(&server, &instance, "timeout=10000").await;
    assert_eq!(offsets(&reply), [1], "the next one goes on there");
    server.stop().await;
}

#[tokio::test]
async fn a_waiting_poll_stands_in_nobodys_way_and_gets_what_comes() {
    let server = Server::start().await;
    topic(&server, "t", &[]).await;
    let instance = create(&server, "g", "i", json!({})).await;
    subscribe(&server, &instance, &["t"]).await;
    let waiting = poll_with(&server, &instance, "timeout=60000", JSON);
    let others = async {
        let shown = send(&server, Method::GET, &format!("{instance}/assignments"), None).await;
        assert_eq!(shown.status, 200);
        let all = send(&server, Method::POST, &format!("{instance}/offsets"), None).await;
        assert_eq!(all.status, 200);
        write(&server, "t", &numbers(1)).await;
    };
    let (reply, ()) = tokio::join!(waiting, others);
    assert_eq!(offsets(&reply), [0]);

    // A newer poll ends it: its client gave it up. Which of the two began later is not known here.
    let (one, other) = tokio::join!(poll_with(&server, &instance, "timeout=60000", JSON), async {
        tokio::task::yield_now().await;
        poll_with(&server, &instance, "timeout=300", JSON).await
    });
    assert_eq!((one.text(), other.text()), ("[]", "[]"));
    server.stop().await;
}

/// Makes a topic with partitions and writes one record to each, with its number as value.
async fn topic_of(server: &Server, name: &str, partitions: u32) {
    let put = server.request(Method::PUT, &format!("/v1/topics/{name}"));
    let reply = Reply::of(put.body(json!({"partitions": partitions}).to_string())).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    write_to_each(server, name, partitions).await;
}

async fn write_to_each(server: &Server, topic: &str, partitions: u32) {
    let record = |partition: u32| json!({"partition": partition, "value": partition});
    let records: Vec<Value> = (0..partitions).map(record).collect();
    let request = server.request(Method::POST, &format!("/v1/topics/{topic}/records"));
    assert_eq!(Reply::of(request.json(&records)).await.status, 200);
}

/// The topics and partitions of an instance, or of a poll's records.
fn places(of: &Value) -> Vec<(String, u64)> {
    let list = of.as_array().unwrap().iter();
    let place =
        |of: &Value| (of["topic"].as_str().unwrap().to_owned(), of["partition"].as_u64().unwrap());
    let mut places: Vec<_> = list.map(place).collect();
    places.sort();
    places
}

async fn assigned(server: &Server, instance: &str) -> Vec<(String, u64)> {
    let shown = send(server, Method::GET, &format!("{instance}/assignments"), None).await;
    places(&shown.json()["partitions"])
}

#[tokio::test]
async fn two_instances_share_a_topic_and_a_slow_poll_delays_no_rebalance() {
    let server = Server::start().await;
    topic_of(&server, "t", 4).await;
    let manual = || json!({"auto.commit.enable": false});
    let one = create(&server, "g", "one", manual()).await;
    subscribe(&server, &one, &["t"]).await;
    assert_eq!(places(&poll(&server, &one, "").await.json()).len(), 4);
    let commit = format!("{one}/offsets");
    assert_eq!(send(&server, Method::POST, &commit, None).await.status, 200);
    // It polls for a minute and hears of nothing, but its partitions go as soon as they are wanted.
    let slow = poll_with(&server, &one, "timeout=60000", JSON);
    let meanwhile = async {
        let two = create(&server, "g", "two", manual()).await;
        subscribe(&server, &two, &["t"]).await;
        let taken = assigned(&server, &two).await;
        assert_eq!(taken.len(), 2, "the first poll has partitions");
        write_to_each(&server, "t", 4).await;
        let got = places(&poll(&server, &two, "timeout=10000").await.json());
        assert!(!got.is_empty() && got.iter().all(|of| taken.contains(of)), "{got:?} {taken:?}");
        (two, taken)
    };
    let (answered, (two, taken)) = tokio::join!(slow, meanwhile);
    let kept = places(&answered.json());
    assert!(!kept.is_empty() && kept.iter().all(|of| !taken.contains(of)), "{kept:?} {taken:?}");
    // What went it cannot commit, with nothing else of the request.
    let offset = |of: &(String, u64)| json!({"topic": of.0, "partition": of.1, "offset": 1});
    let both = json!({"offsets": [offset(&kept[0]), offset(&taken[0])]});
    assert_error(&post(&server, &commit, &both).await, 409, 40906, "another's partition");
    let own = json!({"offsets": [offset(&kept[0])]});
    assert_eq!(post(&server, &commit, &own).await.status, 200);
    assert_eq!(send(&server, Method::DELETE, &two, None).await.status, 204);
    assert_eq!(assigned(&server, &one).await.len(), 4, "at once");
    server.stop().await;
}

#[tokio::test]
async fn what_an_instance_that_crashed_had_not_committed_is_delivered_to_another() {
    let server = Server::start().await;
    topic_of(&server, "t", 2).await;
    let crashes = json!({"auto.commit.enable": false, "consumer.instance.timeout.ms": 1000});
    let crashed = create(&server, "g", "crashed", crashes).await;
    subscribe(&server, &crashed, &["t"]).await;
    assert_eq!(places(&poll(&server, &crashed, "").await.json()).len(), 2);
    let committed = json!({"offsets": [{"topic": "t", "partition": 0, "offset": 0}]});
    assert_eq!(post(&server, &format!("{crashed}/offsets"), &committed).await.status, 200);
    let other = create(&server, "g", "other", json!({"auto.commit.enable": false})).await;
    subscribe(&server, &other, &["t"]).await;
    let mut got = Vec::new();
    eventually("the rest is delivered again", async || {
        got.extend(places(&poll(&server, &other, "timeout=100").await.json()));
        got.contains(&("t".to_owned(), 1)).then_some(())
    })
    .await;
    eventually("only the other is left", async || {
        let group = Reply::of(server.request(Method::GET, "/v1/groups/g")).await.json();
        got.extend(places(&poll(&server, &other, "timeout=10").await.json()));
        (group["members"].as_array().unwrap().len() == 1).then_some(())
    })
    .await;
    got.extend(places(&poll(&server, &other, "timeout=100").await.json()));
    assert_eq!(got, [("t".to_owned(), 1)], "once, and nothing that was committed");
    let gone = post(&server, &format!("{crashed}/offsets"), &json!({})).await;
    assert_error(&gone, 404, 40403, "its time is over");
    assert_eq!(assigned(&server, &other).await.len(), 2);
    server.stop().await;
}

#[tokio::test]
async fn a_pattern_follows_topics_that_are_created_and_deleted() {
    let server = Server::start().await;
    let instance = create(&server, "g", "i", json!({})).await;
    let subscription = format!("{instance}/subscription");
    let pattern = json!({"topic_pattern": "f.*"});
    assert_eq!(post(&server, &subscription, &pattern).await.status, 204);
    assert_eq!(assigned(&server, &instance).await, []);
    let topics = async || {
        let shown = send(&server, Method::GET, &subscription, None).await.json();
        let group = Reply::of(server.request(Method::GET, "/v1/groups/g")).await.json();
        assert_eq!(group["members"][0]["topics"], shown["topics"]);
        shown["topics"].clone()
    };
    // A poll that waits learns of the topic, and has its records.
    let creating = async {
        topic_of(&server, "other", 1).await;
        topic_of(&server, "flights", 2).await;
    };
    let waiting = poll_with(&server, &instance, "timeout=60000", JSON);
    let (answered, ()) = tokio::join!(waiting, creating);
    let mut got = places(&answered.json());
    while got.len() < 2 {
        got.extend(places(&poll(&server, &instance, "timeout=10000").await.json()));
    }
    let both = [("flights".to_owned(), 0), ("flights".to_owned(), 1)];
    assert_eq!(got, both);
    assert_eq!(topics().await, json!(["flights"]));
    topic_of(&server, "ferries", 1).await;
    eventually("the new one is assigned", async || {
        (assigned(&server, &instance).await.len() == 3).then_some(())
    })
    .await;
    let delete = server.request(Method::DELETE, "/v1/topics/flights");
    assert_eq!(Reply::of(delete).await.status, 204);
    eventually("the old one is gone", async || {
        (assigned(&server, &instance).await == [("ferries".to_owned(), 0)]).then_some(())
    })
    .await;
    assert_eq!(topics().await, json!(["ferries"]));
    // Under its name there may be another topic, which begins at its beginning.
    topic_of(&server, "flights", 1).await;
    let mut got = Vec::new();
    while got.len() < 2 {
        got.extend(places(&poll(&server, &instance, "timeout=10000").await.json()));
    }
    got.sort();
    assert_eq!(got, [("ferries".to_owned(), 0), ("flights".to_owned(), 0)]);
    server.stop().await;
}

#[tokio::test]
async fn what_an_instance_was_made_with_counts() {
    let server = Server::start().await;
    topic(&server, "t", &numbers(3)).await;
    // Without a word a new group begins with what comes.
    let body = json!({"name": "late", "format": "json", "group.remote.assignor": "range",
        "group.instance.id": "fixed", "session.timeout.ms": "7000"});
    assert_eq!(post(&server, "/consumers/late", &body).await.status, 200);
    let late = "/consumers/late/instances/late";
    subscribe(&server, late, &["t"]).await;
    assert_eq!(offsets(&poll(&server, late, "timeout=1").await), [0_i64; 0]);
    write(&server, "t", &numbers(1)).await;
    assert_eq!(offsets(&poll(&server, late, "timeout=10000").await), [3]);
    let group = Reply::of(server.request(Method::GET, "/v1/groups/late")).await.json();
    let made = &group["members"][0];
    assert_eq!((&group["assignor"], &made["instance_id"]), (&json!("range"), &json!("fixed")));
    assert_eq!((&made["kind"], &made["session_timeout_ms"]), (&json!("rest_v2"), &json!(7000)));
    // A poll waits for so many bytes, but not longer than it may, and then has what there is.
    let many = json!({"fetch.min.bytes": "100000", "consumer.request.timeout.ms": 300});
    let patient = create(&server, "g", "patient", many).await;
    subscribe(&server, &patient, &["t"]).await;
    assert_eq!(offsets(&poll(&server, &patient, "timeout=60000").await), [0, 1, 2, 3]);
    let large = [json!("x".repeat(120_000))];
    let waiting = poll(&server, &patient, "timeout=60000");
    let (answered, ()) = tokio::join!(waiting, write(&server, "t", &large));
    assert_eq!(offsets(&answered), [4]);
    server.stop().await;
}

#[tokio::test]
async fn every_format_is_served_and_no_other_than_the_instances() {
    let server = Server::start().await;
    topic(&server, "t", &[]).await;
    let body = json!({"records": [
        {"key": "aw==", "value": "eyJhIjogMS4wfQ==", "headers": [{"key": "h", "value": "dg=="}]},
        {"key": null, "value": "/w=="},
    ]});
    let request = server.request(Method::POST, "/topics/t").header("content-type", BINARY);
    let written = Reply::of(request.body(body.to_string())).await;
    assert_eq!(written.status, 200, "{}", written.text());
    for (format, accept, key, value) in [
        ("json", JSON, json!("k"), json!({"a": 1.0})),
        ("text", TEXT, json!("k"), json!("{\"a\": 1.0}")),
        ("binary", BINARY, json!("aw=="), json!("eyJhIjogMS4wfQ==")),
    ] {
        let instance = create(&server, format, "i", json!({"format": format})).await;
        subscribe(&server, &instance, &["t"]).await;
        let other = if format == "json" { BINARY } else { JSON };
        let refused = poll_with(&server, &instance, "", other).await;
        assert_error(&refused, 406, 40601, format);
        assert_error(&poll_with(&server, &instance, "", "text/html").await, 406, 406, format);
        let reply = poll_with(&server, &instance, "", "*/*").await;
        assert_eq!(reply.header("content-type"), Some(accept));
        let records = reply.json();
        assert_eq!((&records[0]["key"], &records[0]["value"]), (&key, &value), "{format}");
        assert_eq!(records[0]["headers"], json!([{"key": "h", "value": "dg=="}]));
        assert_eq!(records[1]["value"], "/w==");
        assert_eq!(records[1].get("value_encoding").is_some(), format != "binary", "{format}");
        if format == "json" {
            assert!(reply.text().contains("{\"a\": 1.0}"), "as it is: {}", reply.text());
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn positions_are_moved_exactly_to_offsets_times_and_ends() {
    let server = Server::start().await;
    let put = server.request(Method::PUT, "/v1/topics/t").body(r#"{"partitions":1}"#);
    assert_eq!(Reply::of(put).await.status, 201);
    let records: Vec<Value> = (1..=4).map(|n| json!({"value": n, "timestamp": n * 1000})).collect();
    let request = server.request(Method::POST, "/v1/topics/t/records");
    let written = Reply::of(
        request.header("content-type", "application/json").body(json!(records).to_string()),
    );
    assert_eq!(written.await.status, 200);
    let instance = create(&server, "g", "i", json!({})).await;
    let moved = async |below: &str, body: Value| {
        let reply = post(&server, &format!("{instance}/positions{below}"), &body).await;
        (reply.status.as_u16(), error_code(&reply))
    };
    let at = json!({"topic": "t", "partition": 0});
    let here = json!({"partitions": [at]});
    assert_eq!(moved("/beginning", here.clone()).await, (409, Some(40903)), "not assigned");
    subscribe(&server, &instance, &["t"]).await;
    let offset =
        |offset: i64| json!({"offsets": [{"topic": "t", "partition": 0, "offset": offset}]});
    assert_eq!(moved("", offset(2)).await, (204, None));
    assert_eq!(offsets(&poll(&server, &instance, "").await), [2, 3]);
    assert_eq!(moved("/beginning", here.clone()).await, (204, None));
    assert_eq!(offsets(&poll(&server, &instance, "").await), [0, 1, 2, 3]);
    let time = json!({"topic": "t", "partition": 0, "timestamp": "1970-01-01T00:00:04Z"});
    assert_eq!(moved("", json!({"timestamps": [time]})).await, (204, None));
    assert_eq!(offsets(&poll(&server, &instance, "").await), [3]);
    assert_eq!(moved("/end", here).await, (204, None));
    assert_eq!(offsets(&poll(&server, &instance, "timeout=50").await), [0_i64; 0]);
    assert_eq!(moved("", offset(99)).await, (204, None), "as auto.offset.reset says");
    assert_eq!(offsets(&poll(&server, &instance, "").await), [0, 1, 2, 3]);
    assert_eq!(moved("", offset(-1)).await, (422, Some(422)));
    let other = json!({"offsets": [{"topic": "t", "partition": 9, "offset": 0}]});
    assert_eq!(moved("", other).await, (409, Some(40903)));
    let zoneless = json!({"topic": "t", "partition": 0, "timestamp": "noon"});
    assert_eq!(moved("", json!({"timestamps": [zoneless]})).await, (422, Some(422)));
    server.stop().await;
}

#[tokio::test]
async fn partitions_are_read_by_name_without_the_group() {
    let server = Server::start().await;
    topic(&server, "t", &numbers(2)).await;
    let instance = create(&server, "g", "i", json!({})).await;
    let assignments = format!("{instance}/assignments");
    let body = json!({"partitions": [{"topic": "t", "partition": 0}]});
    assert_eq!(post(&server, &assignments, &body).await.status, 204);
    assert_eq!(send(&server, Method::GET, &assignments, None).await.json(), body);
    assert_eq!(offsets(&poll(&server, &instance, "").await), [0, 1]);
    let commit = send(&server, Method::POST, &format!("{instance}/offsets"), None).await;
    assert_eq!(commit.status, 200, "{}", commit.text());
    assert_eq!(committed(&server, "g").await, Some(2));
    let subscription = format!("{instance}/subscription");
    let mixed = post(&server, &subscription, &json!({"topics": ["t"]})).await;
    assert_error(&mixed, 409, 40903, "assigned");
    for (topic, partition, error_code) in [("none", 0, 40401), ("t", 1, 40402)] {
        let body = json!({"partitions": [{"topic": topic, "partition": partition}]});
        assert_error(&post(&server, &assignments, &body).await, 404, error_code, topic);
    }
    assert_eq!(send(&server, Method::GET, &assignments, None).await.json(), body);
    assert_eq!(send(&server, Method::DELETE, &subscription, None).await.status, 204);
    let none = send(&server, Method::GET, &assignments, None).await;
    assert_eq!(none.json(), json!({"partitions": []}));
    subscribe(&server, &instance, &["t"]).await;
    assert_error(&post(&server, &assignments, &body).await, 409, 40903, "subscribed");
    server.stop().await;
}

#[tokio::test]
async fn a_name_is_taken_once_or_taken_over_from_what_is_committed() {
    let server = Server::start().await;
    topic(&server, "t", &numbers(3)).await;
    let instance = create(&server, "g", "i", json!({"auto.commit.enable": false})).await;
    subscribe(&server, &instance, &["t"]).await;
    assert_eq!(offsets(&poll(&server, &instance, "").await), [0, 1, 2]);
    let one = json!({"offsets": [{"topic": "t", "partition": 0, "offset": 0}]});
    assert_eq!(post(&server, &format!("{instance}/offsets"), &one).await.status, 200);
    let again = post(&server, "/consumers/g", &json!({"name": "i", "format": "json"})).await;
    assert_error(&again, 409, 40902, "twice");
    let text =
        "Consumer with specified consumer ID already exists in the specified consumer group.";
    assert_eq!(again.json()["message"], text);
    create(&server, "g", "i", json!({"if_exists": "reuse"})).await;
    assert_eq!(offsets(&poll(&server, &instance, "").await), [1, 2]);
    let other = create(&server, "h", "i", json!({})).await;
    assert_ne!(other, instance, "another group's names are its own");
    server.stop().await;
}

#[tokio::test]
async fn an_instance_that_is_idle_for_too_long_is_gone_and_its_member_with_it() {
    let server = Server::start_with(&[("groups.instance_timeout", "1s")]).await;
    topic(&server, "t", &numbers(1)).await;
    let kept = create(&server, "k", "i", json!({"consumer.instance.timeout.ms": 60_000})).await;
    let instance = create(&server, "g", "i", json!({})).await;
    subscribe(&server, &instance, &["t"]).await;
    // A poll that is longer than the idle time is no idleness.
    assert_eq!(offsets(&poll(&server, &instance, "timeout=10000").await), [0]);
    assert_eq!(offsets(&poll(&server, &instance, "timeout=1500").await), [0_i64; 0]);
    eventually("the member leaves", async || {
        let group = Reply::of(server.request(Method::GET, "/v1/groups/g")).await.json();
        (group["state"] == "empty").then_some(())
    })
    .await;
    let gone = poll_with(&server, &instance, "", JSON).await;
    assert_error(&gone, 404, 40403, "expired");
    let shown = send(&server, Method::GET, &format!("{kept}/assignments"), None).await;
    assert_eq!(shown.status, 200, "an instance's own time wins");
    server.stop().await;
}

#[tokio::test]
async fn slashes_forwarded_headers_and_escaped_names_are_understood() {
    let server = Server::start().await;
    topic(&server, "t", &numbers(1)).await;
    let request = server.request(Method::POST, "/consumers/my%2Fgroup/");
    let request = request.header("x-forwarded-host", "public.example:8443");
    let request = request.header("x-forwarded-proto", "https").header("content-type", V2);
    let made = Reply::of(request.body(r#"{"name":"a b","format":"json"}"#)).await;
    assert_eq!(made.status, 200, "{}", made.text());
    assert_eq!(
        made.json()["base_uri"],
        "https://public.example:8443/consumers/my%2Fgroup/instances/a%20b"
    );
    let path = "/consumers/my%2Fgroup/instances/a%20b";
    let body = json!({"topics": ["t"]});
    assert_eq!(post(&server, &format!("{path}/subscription/"), &body).await.status, 204);
    for (method, below, status) in [
        (Method::GET, "/subscription/", 200),
        (Method::GET, "/assignments/", 200),
        (Method::GET, "/records/?timeout=10", 200),
        (Method::GET, "/offsets/?partitions=t:0", 200),
        (Method::POST, "/offsets/", 200),
        (Method::DELETE, "/subscription/", 204),
        (Method::DELETE, "/", 204),
    ] {
        let reply = send(&server, method, &format!("{path}{below}"), None).await;
        assert_eq!(reply.status, status, "{below}: {}", reply.text());
    }
    let unnamed = post(&server, "/consumers/g", &json!({"unknown": 1})).await;
    assert!(unnamed.json()["instance_id"].as_str().unwrap().starts_with("rest-consumer-"));
    let bare = Reply::of(server.request(Method::POST, "/consumers/g")).await;
    assert_eq!(bare.status, 200, "{}", bare.text());
    server.stop().await;
}

#[tokio::test]
async fn every_refusal_has_its_number() {
    let server = Server::start().await;
    topic(&server, "t", &numbers(1)).await;
    for (body, status, error_code) in [
        (json!({"format": "xml"}), 422, 422),
        (json!({"format": "avro"}), 408, 40801),
        (json!({"auto.offset.reset": "bar"}), 422, 42204),
        (json!({"fetch.min.bytes": -2}), 422, 40001),
        (json!({"name": ""}), 422, 42206),
        (json!([]), 422, 422),
    ] {
        let reply = post(&server, "/consumers/g", &body).await;
        assert_error(&reply, status, error_code, &body.to_string());
    }
    assert_error(&post(&server, "/consumers/__g", &json!({})).await, 422, 42206, "group");
    let instance = create(&server, "g", "i", json!({"auto.offset.reset": "none"})).await;
    let subscription = format!("{instance}/subscription");
    for (body, status, error_code) in [
        (json!({}), 409, 40903),
        (json!({"topics": ["t"], "topic_pattern": "t.*"}), 409, 40903),
        (json!({"topics": "t"}), 422, 422),
        (json!({"topics": ["a b"]}), 422, 422),
        (json!({"topic_pattern": 1}), 422, 422),
        (json!({"x": 1}), 422, 422),
    ] {
        let reply = post(&server, &subscription, &body).await;
        assert_error(&reply, status, error_code, &body.to_string());
    }
    assert_eq!(post(&server, &subscription, &json!({"topic_pattern": "x.*"})).await.status, 204);
    let listed = post(&server, &subscription, &json!({"topics": ["t"]})).await;
    assert_error(&listed, 409, 40901, "a pattern stands");
    assert_eq!(send(&server, Method::DELETE, &subscription, None).await.status, 204);
    subscribe(&server, &instance, &["t"]).await;
    let none = poll_with(&server, &instance, "", JSON).await;
    assert_error(&none, 416, 41601, "no offset and no policy");
    let bodiless = send(&server, Method::GET, &format!("{instance}/offsets"), None).await;
    assert_error(&bodiless, 404, 40402, "no partitions");
    let pandas = json!({"partitions": [{"topic": "t", "partition": 0, "offset": 0}]});
    let reply = post(&server, &format!("{instance}/offsets"), &pandas).await;
    assert_error(&reply, 422, 422, "another proxy's member would commit everything");
    let request = server.request(Method::POST, &subscription).header("content-type", "text/xml");
    assert_error(&Reply::of(request.body("{}")).await, 415, 415, "type");
    let request = server.request(Method::POST, &subscription).header("content-type", V2);
    assert_error(&Reply::of(request.body("{")).await, 400, 400, "malformed");
    let request = server.request(Method::GET, &subscription).header("accept", "text/html");
    assert_error(&Reply::of(request).await, 406, 406, "accept");
    for (method, below) in [
        (Method::DELETE, ""),
        (Method::POST, "/subscription"),
        (Method::GET, "/subscription"),
        (Method::DELETE, "/subscription"),
        (Method::POST, "/assignments"),
        (Method::GET, "/assignments"),
        (Method::GET, "/records"),
        (Method::POST, "/offsets"),
        (Method::GET, "/offsets"),
        (Method::POST, "/positions"),
        (Method::POST, "/positions/beginning"),
        (Method::POST, "/positions/end"),
    ] {
        let path = format!("/consumers/g/instances/none{below}");
        assert_error(&send(&server, method, &path, None).await, 404, 40403, below);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_new_partition_that_cannot_be_started_moves_none_of_the_others() {
    let server = Server::start().await;
    topic(&server, "a", &numbers(2)).await;
    topic(&server, "b", &numbers(1)).await;
    let first = create(&server, "g", "first", json!({"auto.commit.enable": false})).await;
    subscribe(&server, &first, &["a"]).await;
    let offset = json!({"offsets": [{"topic": "a", "partition": 0, "offset": 0}]});
    assert_eq!(post(&server, &format!("{first}/offsets"), &offset).await.status, 200);
    assert_eq!(send(&server, Method::DELETE, &first, None).await.status, 204);

    let strict = json!({"auto.offset.reset": "none", "auto.commit.enable": false});
    let instance = create(&server, "g", "i", strict).await;
    subscribe(&server, &instance, &["a"]).await;
    assert_eq!(offsets(&poll(&server, &instance, "").await), [1], "after what is committed");
    assert_eq!(post(&server, &format!("{instance}/positions"), &offset).await.status, 204);
    let assignments = format!("{instance}/assignments");
    subscribe(&server, &instance, &["a", "b"]).await;
    eventually("the second topic is assigned", async || {
        (assigned(&server, &instance).await.len() == 2).then_some(())
    })
    .await;
    let refused = poll_with(&server, &instance, "", JSON).await;
    assert_error(&refused, 416, 41601, "the second topic has no offset");
    subscribe(&server, &instance, &["a"]).await;
    eventually("only the first topic is left", async || {
        let shown = send(&server, Method::GET, &assignments, None).await;
        let only = json!({"partitions": [{"topic": "a", "partition": 0}]});
        (shown.json() == only).then_some(())
    })
    .await;
    assert_eq!(offsets(&poll(&server, &instance, "").await), [0, 1], "it was told to be there");
    server.stop().await;
}

#[tokio::test]
async fn an_assignment_that_is_refused_changes_nothing() {
    let server = Server::start().await;
    topic(&server, "a", &numbers(2)).await;
    let instance = create(&server, "g", "i", json!({"auto.commit.enable": false})).await;
    let assignments = format!("{instance}/assignments");
    let own = json!({"topic": "a", "partition": 0});
    let body = json!({"partitions": [own]});
    assert_eq!(post(&server, &assignments, &body).await.status, 204);
    assert_eq!(offsets(&poll(&server, &instance, "").await), [0, 1]);
    let more = json!({"partitions": [own, {"topic": "nosuch", "partition": 0}]});
    assert_error(&post(&server, &assignments, &more).await, 404, 40401, "no such topic");
    assert_eq!(send(&server, Method::GET, &assignments, None).await.json(), body);
    write(&server, "a", &numbers(1)).await;
    assert_eq!(offsets(&poll(&server, &instance, "").await), [2], "it goes on where it was");
    server.stop().await;
}

#[tokio::test]
async fn without_offset_and_policy_only_polls_are_refused_until_the_client_names_a_position() {
    let server = Server::start().await;
    topic(&server, "t", &numbers(3)).await;
    let partitions = json!({"partitions": [{"topic": "t", "partition": 0}]});
    let offset = json!({"offsets": [{"topic": "t", "partition": 0, "offset": 1}]});
    for (group, by_group, below, body, status, expected) in [
        ("seek", true, "positions", &offset, 204, vec![1, 2]),
        ("named", false, "positions", &offset, 204, vec![1, 2]),
        ("all", true, "positions/beginning", &json!({"partitions": []}), 204, vec![0, 1, 2]),
        ("end", false, "positions/end", &partitions, 204, vec![]),
        ("commit", true, "offsets", &offset, 200, vec![2]),
        ("committed", false, "offsets", &offset, 200, vec![2]),
    ] {
        let instance = create(&server, group, "i", json!({"auto.offset.reset": "none"})).await;
        if by_group {
            subscribe(&server, &instance, &["t"]).await;
        } else {
            let assign = post(&server, &format!("{instance}/assignments"), &partitions).await;
            assert_eq!(assign.status, 204, "{group}: {}", assign.text());
        }
        let refused = poll_with(&server, &instance, "", JSON).await;
        assert_error(&refused, 416, 41601, group);
        assert_eq!(assigned(&server, &instance).await, [("t".to_owned(), 0)], "{group}");
        let all = send(&server, Method::POST, &format!("{instance}/offsets"), None).await;
        assert_eq!(all.status, 200, "{group}: {}", all.text());
        assert_eq!(committed(&server, group).await, None, "{group}: nothing was answered");
        let refused = poll_with(&server, &instance, "after=", JSON).await;
        assert_error(&refused, 416, 41601, group);
        let moved = post(&server, &format!("{instance}/{below}"), body).await;
        assert_eq!(moved.status, status, "{group}: {}", moved.text());
        assert_eq!(offsets(&poll(&server, &instance, "timeout=50").await), expected, "{group}");
    }
    server.stop().await;
}
