//! WebSocket: subscriptions that are members of groups.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Reply, Server};
use crate::ws_client::{Client, fill, topic};

fn member(group: &str) -> Value {
    json!({"topic": "t", "group": {"id": group},
        "credit": {"records": 10_000, "bytes": 10_000_000}})
}

#[tokio::test]
async fn a_member_is_told_its_partitions_and_goes_on_where_it_committed() {
    let server = Server::start().await;
    topic(&server, "t", 2).await;
    fill(&server, "t", 0, 0..10).await;
    fill(&server, "t", 1, 0..5).await;
    let (mut client, subscribed) = Client::subscribed(&server, member("g")).await;
    assert_eq!(subscribed["start"], json!({}));
    let assigned = client.next_text().await;
    assert!(assigned.starts_with("{\"type\":\"assigned\",\"id\":1,\"generation\":"), "{assigned}");
    let end = ",\"partitions\":[0,1],\"start\":{\"0\":0,\"1\":0}}";
    assert!(assigned.ends_with(end), "{assigned}");
    client.records(&mut BTreeMap::new(), 15).await;
    client.send(json!({"type": "commit", "id": 1, "offsets": {"0": 7, "1": 5}, "seq": 12})).await;
    assert_eq!(client.next_text().await, r#"{"type":"committed","id":1,"seq":12}"#);
    client.send(json!({"type": "commit", "id": 1, "offsets": {"9": 7}, "seq": 13})).await;
    let refused = client.next_of("error").await;
    assert_eq!((&refused["seq"], &refused["code"]), (&json!(13), &json!("partition_not_found")));
    client.send(json!({"type": "unsubscribe", "id": 1})).await;
    client.next_of("unsubscribed").await;
    // Another member goes on there; a look at the group's backlog joins nothing.
    let (mut other, _) = Client::subscribed(&server, member("g")).await;
    assert_eq!(other.next_of("assigned").await["start"], json!({"0": 7, "1": 5}));
    other.records(&mut BTreeMap::from([(0, 7)]), 3).await;
    let backlog = json!({"id": 2, "topic": "t", "from": {"group": "g"}});
    assert_eq!(other.subscribe(backlog).await["start"], json!({"0": 7, "1": 5}));
    server.stop().await;
}

/// Shows the group `g`.
async fn group(server: &Server) -> Value {
    Reply::of(server.request(Method::GET, "/v1/groups/g")).await.json()
}

/// Subscribes as a member that asks for more than to be one.
async fn join(server: &Server, more: Value) -> (Client, Value) {
    let mut subscribe = member("g");
    subscribe["group"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Client::subscribed(server, subscribe).await
}

/// Reads to the next `assigned` with partitions, and returns them.
async fn assigned(client: &mut Client) -> Value {
    loop {
        let frame = client.next().await;
        if frame["type"] == "assigned" && frame["partitions"] != json!([]) {
            return frame["partitions"].clone();
        }
    }
}

#[tokio::test]
async fn a_page_that_is_loaded_again_has_its_partitions_without_a_rebalance() {
    let server = Server::start().await;
    topic(&server, "t", 2).await;
    let (mut other, _) = join(&server, json!({})).await;
    assert_eq!(assigned(&mut other).await, json!([0, 1]));
    let tab = || json!({"instance_id": "tab-7", "session_timeout_ms": 1});
    let (mut page, subscribed) = join(&server, tab()).await;
    assert_eq!(subscribed["session_timeout_ms"], 6000, "what was asked for is clamped and told");
    let own = assigned(&mut page).await;
    other.next_of("revoking").await;
    other.next_of("revoked").await;
    let before = group(&server).await;
    assert_eq!(
        (&before["state"], &before["members"][1]["instance_id"]),
        (&json!("stable"), &json!("tab-7"))
    );
    assert_eq!(before["members"][1]["session_timeout_ms"], 6000);
    drop(page);
    let (mut page, _) = join(&server, tab()).await;
    assert_eq!(assigned(&mut page).await, own);
    let after = group(&server).await;
    assert_eq!((&after["epoch"], &after["rebalances"]), (&before["epoch"], &before["rebalances"]));
    other.expect_silence().await;
    // Another page under the name fences this one.
    let (mut latest, _) = join(&server, tab()).await;
    assert_eq!(assigned(&mut latest).await, own);
    let fenced = page.next_of("error").await;
    let expected = (&json!("stale_member"), &json!("subscription"));
    assert_eq!((&fenced["code"], &fenced["fatal_to"]), expected);
    // It stays away: after its session the other one has it all.
    drop(latest);
    assert_eq!(assigned(&mut other).await, own);
    let last = group(&server).await["rebalances"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&last["reason"], &last["detail"]), (&json!("session_expired"), &json!("tab-7")));
    server.stop().await;
}

#[tokio::test]
async fn members_that_ask_for_ranges_have_neighbouring_partitions() {
    let server = Server::start().await;
    topic(&server, "t", 4).await;
    let (mut first, _) = join(&server, json!({"assignor": "range"})).await;
    assert_eq!(assigned(&mut first).await, json!([0, 1, 2, 3]));
    let (mut second, _) = join(&server, json!({"assignor": "range"})).await;
    let moved = first.next_of("revoking").await["partitions"].clone();
    assert!(moved == json!([0, 1]) || moved == json!([2, 3]), "{moved}");
    assert_eq!(assigned(&mut second).await, moved);
    assert_eq!(group(&server).await["assignor"], "range");
    server.stop().await;
}

#[tokio::test]
async fn what_was_sent_is_committed_late_for_those_who_ask_for_it() {
    let server = Server::start().await;
    topic(&server, "t", 1).await;
    fill(&server, "t", 0, 0..10).await;
    let (mut client, _) = join(&server, json!({"auto_commit": true})).await;
    assigned(&mut client).await;
    client.records(&mut BTreeMap::new(), 10).await;
    assert_eq!(group(&server).await["offsets"], json!([]), "not at once: it may not be processed");
    crate::support::eventually("the server commits", async || {
        (group(&server).await["offsets"][0]["offset"] == 10).then_some(())
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn signs_of_life_are_no_entries_of_the_log() {
    let server = Server::start_tweaked(&[], |config| {
        config.ws.timers.heartbeat = std::time::Duration::from_millis(20);
    })
    .await;
    topic(&server, "t", 1).await;
    let (mut client, _) = join(&server, json!({})).await;
    assigned(&mut client).await;
    let rounds = async || {
        let metrics = server.request(Method::GET, "/metrics").send().await.unwrap();
        let metrics = metrics.text().await.unwrap();
        let name = "eddyline_wal_round_callers_count ";
        metrics.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned)).unwrap()
    };
    let before = rounds().await;
    // As many pings were sent, and answered while this reads.
    for _ in 0..50 {
        client.next_of("hb").await;
    }
    assert_eq!(rounds().await, before);
    assert_eq!(group(&server).await["members"].as_array().unwrap().len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn groups_that_make_no_sense_are_refused() {
    let server = Server::start().await;
    topic(&server, "t", 1).await;
    let mut client = Client::hello(&server).await;
    for (more, code) in [
        (json!({"group": {"id": "g"}, "partitions": [0]}), "invalid_body"),
        (json!({"group": {"id": "g"}, "from": {"at": "latest"}}), "invalid_body"),
        (json!({"group": {"id": ""}}), "invalid_name"),
        (json!({"group": {"id": "g", "x": 1}}), "invalid_body"),
        (json!({"group": {"id": "g", "assignor": "fair"}}), "invalid_body"),
        (json!({"group": {"id": "g"}, "topic": "none"}), "topic_not_found"),
        (json!({"from": {"group": "none"}}), "group_not_found"),
    ] {
        let mut request = json!({"type": "subscribe", "id": 1, "topic": "t"});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        client.send(request).await;
        assert_eq!(client.next_of("error").await["code"], code, "{more}");
    }
    client.subscribe(json!({"topic": "t"})).await;
    client.send(json!({"type": "commit", "id": 1, "offsets": {"0": 0}, "seq": 1})).await;
    assert_eq!(client.next_of("error").await["code"], "invalid_request");
    server.stop().await;
}

#[tokio::test]
async fn a_member_whose_topic_is_deleted_is_told() {
    let server = Server::start().await;
    topic(&server, "t", 1).await;
    let (mut client, _) = Client::subscribed(&server, member("g")).await;
    client.next_of("assigned").await;
    let delete = server.request(Method::DELETE, "/v1/topics/t");
    assert_eq!(Reply::of(delete).await.status, 204);
    loop {
        let frame = client.next().await;
        match frame["type"].as_str().unwrap() {
            "revoking" | "revoked" => {}
            "unsubscribed" => break,
            _ => panic!("{frame}"),
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn members_share_partitions_and_hand_them_over_when_all_is_committed() {
    let server = Server::start().await;
    topic(&server, "t", 2).await;
    fill(&server, "t", 0, 0..10).await;
    fill(&server, "t", 1, 0..10).await;
    let (mut first, _) = Client::subscribed(&server, member("g")).await;
    assert_eq!(first.next_of("assigned").await["partitions"], json!([0, 1]));
    first.records(&mut BTreeMap::new(), 20).await;
    let mut second = Client::hello(&server).await;
    let mut join = member("g");
    let members = join.as_object_mut().unwrap();
    members.insert("type".to_owned(), json!("subscribe"));
    members.insert("id".to_owned(), json!(1));
    second.send(join).await;
    let revoking = first.next_of("revoking").await;
    assert_eq!(revoking["deadline_ms"], 3000);
    let given = revoking["partitions"][0].as_u64().unwrap();
    let kept = 1 - given;
    // All that was sent of it is committed: it is given up at once.
    let done = json!({given.to_string(): 10, kept.to_string(): 4});
    first.send(json!({"type": "commit", "id": 1, "offsets": done, "seq": 1})).await;
    let mut seen = [first.next().await, first.next().await];
    seen.sort_by_key(|frame| frame["type"].to_string());
    assert_eq!(seen[0], json!({"type": "committed", "id": 1, "seq": 1}));
    assert_eq!(seen[1], json!({"type": "revoked", "id": 1, "partitions": [given]}));
    let assigned = loop {
        let frame = second.next().await;
        if frame["type"] == "assigned" && frame["partitions"] != json!([]) {
            break frame;
        }
        assert!(frame["type"] == "subscribed" || frame["type"] == "assigned", "{frame}");
    };
    assert_eq!(assigned["start"], json!({given.to_string(): 10}));
    // What is not a member's own it cannot commit.
    let stolen = json!({"type": "commit", "id": 1, "offsets": {given.to_string(): 2}, "seq": 2});
    first.send(stolen).await;
    let refused = first.next_of("error").await;
    assert_eq!((&refused["seq"], &refused["code"]), (&json!(2), &json!("stale_member")));
    // A member that breaks off leaves its partition to the other one.
    drop(second);
    let assigned = first.next_of("assigned").await;
    assert_eq!(assigned["start"], json!({given.to_string(): 10}));
    fill(&server, "t", u32::try_from(given).unwrap(), 10..13).await;
    first.records(&mut BTreeMap::from([(given, 10)]), 3).await;
    server.stop().await;
}

#[tokio::test]
async fn what_was_received_can_be_committed_while_the_server_stops() {
    let server = Server::start().await;
    topic(&server, "t", 1).await;
    fill(&server, "t", 0, 0..3).await;
    let (mut client, _) = Client::subscribed(&server, member("g")).await;
    client.next_of("assigned").await;
    client.records(&mut BTreeMap::new(), 3).await;
    let stopping = server.stop();
    let told = async {
        client.next_of("goaway").await;
        client.send(json!({"type": "commit", "id": 1, "offsets": {"0": 3}, "seq": 7})).await;
        assert_eq!(client.next_of("committed").await["seq"], 7);
        assert_eq!(client.closed().await, 1001);
    };
    tokio::join!(stopping, told);
}
