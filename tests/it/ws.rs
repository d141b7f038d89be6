//! WebSocket: what a client that keeps to the protocol sees.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Reply, Server};
use crate::ws_client::{Client, fill, topic};

fn offsets(records: &[(u64, Value)]) -> Vec<i64> {
    records.iter().map(|(_, record)| record[0].as_i64().unwrap()).collect()
}

#[tokio::test]
async fn a_subscription_starts_where_it_asks_to_and_says_where() {
    let server = Server::start().await;
    topic(&server, "t", 2).await;
    fill(&server, "t", 0, 0..10).await;
    fill(&server, "t", 1, 0..3).await;
    let mut client = Client::silent(&server).await;
    client.send(json!({"type": "hello", "client": "test", "max_frame_bytes": 65536})).await;
    let welcome = client.next_text().await;
    assert!(welcome.starts_with("{\"type\":\"welcome\",\"node\":1,\"session\":\""), "{welcome}");
    let end = "\",\"hb_ms\":20000,\"limits\":{\"subs\":64,\"frame\":262144},\"expires_at\":null}";
    assert!(welcome.ends_with(end), "{welcome}");
    let none = json!({"records": 0});
    for (id, (from, start)) in [
        (json!({"at": "earliest"}), json!({"0": 0, "1": 0})),
        (json!({"at": "latest"}), json!({"0": 10, "1": 3})),
        (json!({"tail": 4}), json!({"0": 6, "1": 0})),
        (json!({"at": "timestamp", "ts": 0}), json!({"0": 0, "1": 0})),
        (json!({"at": "timestamp", "ts": 99_999_999_999_999_i64}), json!({"0": 10, "1": 3})),
        (json!({"offsets": {"0": 4}}), json!({"0": 4, "1": 0})),
        (json!({"offsets": {"0": 4, "1": 9}}), json!({"0": 4, "1": 3})),
    ]
    .into_iter()
    .enumerate()
    {
        let subscribe = json!({"id": id, "topic": "t", "from": from, "credit": none});
        let subscribed = client.subscribe(subscribe).await;
        assert_eq!(subscribed["start"], start, "{from}");
        assert_eq!(subscribed["hw"], json!({"0": 10, "1": 3}));
        let reset = match &from["offsets"]["1"] {
            Value::Null => json!({}),
            asked => json!({"1": {"asked": asked, "reason": "truncated"}}),
        };
        assert_eq!(subscribed["reset"], reset);
        assert!(subscribed["epoch"]["0"].as_i64().unwrap() >= 1);
    }
    let one = json!({"id": 9, "topic": "t", "partitions": [1], "credit": none});
    assert_eq!(client.subscribe(one).await["start"], json!({"1": 3}));
    let later = json!({"id": 10, "topic": "t", "credit": none, "partitions": [0],
        "from": {"offsets": {"0": 5}, "epoch": {"0": 1_000_000}}});
    let replaced = client.subscribe(later).await;
    assert_eq!(replaced["reset"], json!({"0": {"asked": 5, "reason": "truncated"}}));
    server.stop().await;
}

#[tokio::test]
async fn who_has_read_what_others_were_written_in_the_place_of_is_reset_to_there() {
    let server = Server::start().await;
    topic(&server, "t", 1).await;
    let (mut epochs, mut directory) = (Vec::new(), None);
    let mut server = Some(server);
    // Every start is another epoch, with three records each.
    for start in 0..4_u32 {
        let running = match directory.take() {
            Some(directory) => Server::start_in(directory, &[]).await,
            None => server.take().unwrap(),
        };
        fill(&running, "t", 0, start * 3..start * 3 + 3).await;
        let (_, subscribed) = Client::subscribed(&running, json!({"topic": "t"})).await;
        epochs.push(subscribed["epoch"]["0"].as_i64().unwrap());
        if start < 3 {
            directory = Some(running.halt().await);
        } else {
            server = Some(running);
        }
    }
    assert!(epochs.is_sorted_by(|a, b| a < b), "{epochs:?}");
    let server = server.unwrap();
    let mut client = Client::hello(&server).await;
    for (id, (offset, start)) in
        [(0, 0), (3, 0), (4, 0), (6, 1), (7, 1), (12, 1), (9, 2), (12, 2), (12, 3), (10, 3)]
            .into_iter()
            .enumerate()
    {
        let from = json!({"offsets": {"0": offset}, "epoch": {"0": epochs[start]}});
        let none = json!({"records": 0});
        let subscribe = json!({"id": id, "topic": "t", "from": from, "credit": none});
        let subscribed = client.subscribe(subscribe).await;
        let end = (start as u64 + 1) * 3;
        let reset = if offset > end {
            json!({"0": {"asked": offset, "reason": "truncated"}})
        } else {
            json!({})
        };
        assert_eq!(subscribed["reset"], reset, "{from}");
        assert_eq!(subscribed["start"], json!({"0": offset.min(end)}), "{from}");
    }
    server.stop().await;
}

#[tokio::test]
async fn records_come_in_order_in_shared_frames_then_live() {
    let server = Server::start().await;
    topic(&server, "t", 2).await;
    fill(&server, "t", 0, 0..1300).await;
    fill(&server, "t", 1, 0..700).await;
    let subscribe = json!({"topic": "t", "from": {"at": "earliest"},
        "credit": {"records": 100_000, "bytes": 100_000_000}});
    let (mut client, _) = Client::subscribed(&server, subscribe).await;
    let mut next = BTreeMap::from([(0, 0), (1, 0)]);
    let records = client.records(&mut next, 2000).await;
    for (partition, count) in [(0, 1300), (1, 700)] {
        let of: Vec<_> = records.iter().filter(|(p, _)| *p == partition).cloned().collect();
        assert_eq!(offsets(&of), (0..count).collect::<Vec<_>>());
    }
    let (_, first) = &records[0];
    assert_eq!(first[2], "k0");
    assert_eq!(first[3], "0", "text unless asked otherwise");
    assert_eq!(first[4], json!([]));
    assert_eq!(first.as_array().unwrap().len(), 5);
    for round in 0..20 {
        fill(&server, "t", 1, round..round + 1).await;
        let live = client.records(&mut next, 1).await;
        assert_eq!(offsets(&live), [700 + i64::from(round)]);
    }
    client.expect_silence().await;
    let metrics = Reply::of(server.request(Method::GET, "/metrics")).await;
    let out = "eddyline_topic_records_out_total{topic=\"t\"} 2020";
    assert!(metrics.text().lines().any(|line| line == out), "{}", metrics.text());
    assert!(metrics.text().lines().any(|line| line == "eddyline_ws_sockets_open 1"));
    server.stop().await;
}

#[tokio::test]
async fn frames_are_encoded_once_for_all_subscribers() {
    let server = Server::start().await;
    topic(&server, "t", 1).await;
    fill(&server, "t", 0, 0..2000).await;
    let mut seen = Vec::new();
    for id in [1, 2, 1, 77] {
        let subscribe = json!({"id": id, "topic": "t", "from": {"at": "earliest"},
            "credit": {"records": 10_000, "bytes": 10_000_000}});
        let (mut client, _) = Client::subscribed(&server, subscribe).await;
        let records = client.records(&mut BTreeMap::new(), 2000).await;
        seen.push(records);
    }
    // Who starts in the middle of a frame shares those that follow.
    let middle = json!({"topic": "t", "from": {"offsets": {"0": 250}},
        "credit": {"records": 10_000, "bytes": 10_000_000}});
    let (mut client, _) = Client::subscribed(&server, middle).await;
    client.records(&mut BTreeMap::new(), 1750).await;
    assert!(seen.iter().all(|records| *records == seen[0]));
    let metrics = Reply::of(server.request(Method::GET, "/metrics")).await;
    let count = |name: &str| {
        let line = metrics.text().lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        line.split(' ').next_back().unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(count("eddyline_ws_frame_cache_misses_total"), 5);
    assert_eq!(count("eddyline_ws_frame_cache_hits_total"), 15);
    server.stop().await;
}

#[tokio::test]
async fn credit_is_kept_to_the_record_and_overdrawn_by_one_record_at_most() {
    let server = Server::start().await;
    topic(&server, "t", 1).await;
    fill(&server, "t", 0, 0..100).await;
    let subscribe =
        |credit: Value| json!({"topic": "t", "from": {"at": "earliest"}, "credit": credit});
    let (mut client, _) = Client::subscribed(&server, subscribe(json!({"records": 0}))).await;
    client.expect_silence().await;
    let mut next = BTreeMap::new();
    for credit in [1, 3, 20] {
        client.send(json!({"type": "credit", "id": 1, "records": credit})).await;
        client.records(&mut next, credit).await;
        client.expect_silence().await;
    }
    // Bytes: one record may overshoot what is left of them.
    let none = json!({"records": 50, "bytes": 1});
    let (mut client, _) = Client::subscribed(&server, subscribe(none)).await;
    assert_eq!(client.records(&mut BTreeMap::new(), 1).await.len(), 1);
    client.expect_silence().await;
    let (mut client, _) =
        Client::subscribed(&server, subscribe(json!({"records": 50, "bytes": 500}))).await;
    let first = client.next_text().await;
    assert!(first.len() <= 500 && first.len() > 300, "{first}");
    server.stop().await;
}

#[tokio::test]
async fn credit_in_bytes_is_charged_by_the_text_that_the_client_sees() {
    let server = Server::start().await;
    topic(&server, "t", 1).await;
    fill(&server, "t", 0, 0..9).await;
    let subscribe = |bytes: usize| {
        let credit = json!({"records": 9, "bytes": bytes});
        json!({"topic": "t", "from": {"at": "earliest"}, "credit": credit})
    };
    let (mut client, _) = Client::subscribed(&server, subscribe(1)).await;
    let seen = client.next_text().await.len();
    client.expect_silence().await;
    // All that was seen is given back, so the one byte is there again, for ever.
    for _ in 0..3 {
        client.send(json!({"type": "credit", "id": 1, "records": 1, "bytes": seen})).await;
        assert_eq!(client.next_text().await.len(), seen);
        client.expect_silence().await;
    }
    // One byte is left, and one record may overdraw it.
    let (mut client, _) = Client::subscribed(&server, subscribe(seen + 1)).await;
    assert_eq!(client.records(&mut BTreeMap::new(), 2).await.len(), 2);
    client.expect_silence().await;
    server.stop().await;
}

/// Subscriptions whose rounds fell a little later than those of others sent one short frame a
/// round, and fell behind by up to 100 ms.
#[tokio::test]
async fn a_subscription_that_is_behind_others_sends_at_once_what_they_have_sent() {
    let hour = Duration::from_secs(3600);
    let server = Server::start_tweaked(&[], |config| config.ws.linger = hour).await;
    topic(&server, "t", 1).await;
    let (mut ahead, _) = Client::subscribed(&server, json!({"topic": "t"})).await;
    fill(&server, "t", 0, 0..1).await;
    let mut next = BTreeMap::from([(0, 0)]);
    ahead.records(&mut next, 1).await;
    fill(&server, "t", 0, 1..2).await;
    // It would wait for an hour; seeking ends the wait.
    ahead.send(json!({"type": "seek", "id": 1, "offsets": {"0": 1}})).await;
    ahead.next_of("seeked").await;
    ahead.records(&mut next, 1).await;
    let earliest = json!({"topic": "t", "from": {"at": "earliest"}});
    let (mut behind, _) = Client::subscribed(&server, earliest).await;
    behind.records(&mut BTreeMap::from([(0, 0)]), 2).await;
    // Nobody was ahead of it there: now it waits for others to share its next frame with.
    fill(&server, "t", 0, 2..3).await;
    behind.expect_silence().await;
    server.stop().await;
}

#[tokio::test]
async fn a_subscription_is_paused_moved_and_ended() {
    let server = Server::start().await;
    topic(&server, "t", 1).await;
    fill(&server, "t", 0, 0..10).await;
    let (mut client, _) = Client::subscribed(&server, json!({"topic": "t"})).await;
    client.send(json!({"type": "pause", "id": 1})).await;
    client.send(json!({"type": "seek", "id": 1, "offsets": {"0": 4}})).await;
    assert_eq!(client.next_text().await, r#"{"type":"seeked","id":1,"start":{"0":4}}"#);
    client.expect_silence().await;
    client.send(json!({"type": "resume", "id": 1})).await;
    let mut next = BTreeMap::from([(0, 4)]);
    assert_eq!(offsets(&client.records(&mut next, 6).await), [4, 5, 6, 7, 8, 9]);
    client.send(json!({"type": "seek", "id": 1, "offsets": {"0": 999}})).await;
    assert_eq!(client.next_of("seeked").await["start"], json!({"0": 10}));
    client.send(json!({"type": "ping", "t": 123})).await;
    assert_eq!(client.next_text().await, r#"{"type":"pong","t":123}"#);
    client.send(json!({"type": "auth", "token": "x"})).await;
    assert_eq!(client.next_text().await, r#"{"type":"authenticated","expires_at":null}"#);
    client.send(json!({"type": "unsubscribe", "id": 1})).await;
    let ended = r#"{"type":"unsubscribed","id":1,"reason":"client"}"#;
    assert_eq!(client.next_text().await, ended);
    fill(&server, "t", 0, 0..1).await;
    client.expect_silence().await;
    // The id is free again.
    client.subscribe(json!({"topic": "t"})).await;
    let delete = server.request(Method::DELETE, "/v1/topics/t");
    assert_eq!(Reply::of(delete).await.status, 204);
    let deleted = r#"{"type":"unsubscribed","id":1,"reason":"topic_deleted"}"#;
    assert_eq!(client.next_text().await, deleted);
    server.stop().await;
}

#[tokio::test]
async fn a_slow_subscription_does_not_hold_up_another_one_of_its_socket() {
    let server = Server::start().await;
    topic(&server, "t", 1).await;
    fill(&server, "t", 0, 0..3000).await;
    let earliest = json!({"at": "earliest"});
    let slow = json!({"id": 1, "topic": "t", "from": earliest, "credit": {"records": 7}});
    let fast = json!({"id": 2, "topic": "t", "from": earliest,
        "credit": {"records": 10_000, "bytes": 10_000_000}});
    let (mut client, _) = Client::subscribed(&server, slow).await;
    client.records(&mut BTreeMap::new(), 7).await;
    client.subscribe(fast).await;
    client.records(&mut BTreeMap::new(), 3000).await;
    client.send(json!({"type": "credit", "id": 1, "records": 2})).await;
    assert_eq!(offsets(&client.records(&mut BTreeMap::new(), 2).await), [7, 8]);
    server.stop().await;
}

#[tokio::test]
async fn filters_choose_records_and_what_they_pass_over_is_told() {
    let server = Server::start().await;
    topic(&server, "t", 1).await;
    let record = |n: u32| {
        json!({"key": format!("{}-{n}", if n.is_multiple_of(2) { "user" } else { "bot" }),
            "headers": [["type", if n.is_multiple_of(3) { "purchase" } else { "view" }]],
            "value": {"total": n, "text": if n.is_multiple_of(5) { "laptop" } else { "phone" }}})
    };
    let records: Vec<_> = (0..3000).map(record).collect();
    let post = server.request(Method::POST, "/v1/topics/t/records").json(&records);
    assert_eq!(Reply::of(post).await.status, 200);
    let wanted = |filter: Value| {
        json!({"topic": "t", "from": {"at": "earliest"}, "filter": filter,
            "credit": {"records": 10_000, "bytes": 10_000_000}})
    };
    for (filter, keep) in [
        (json!({"key": {"prefix": "user-"}}), (|n| n.is_multiple_of(2)) as fn(u32) -> bool),
        (json!({"key": {"equals": "bot-7"}}), |n| n == 7),
        (json!({"headers": {"type": "purchase"}}), |n| n.is_multiple_of(3)),
        (json!({"value": {"contains": "laptop"}}), |n| n.is_multiple_of(5)),
        (json!({"json": {"ptr": "/total", "op": ">", "v": 2990}}), |n| n > 2990),
        (
            json!({"key": {"prefix": "user"}, "headers": {"type": "purchase"},
                "value": {"contains": "laptop"}, "json": {"ptr": "/total", "op": "<", "v": 100}}),
            |n| n.is_multiple_of(30) && n < 100,
        ),
    ] {
        let expected: Vec<i64> = (0..3000).filter(|n| keep(*n)).map(i64::from).collect();
        let (mut client, _) = Client::subscribed(&server, wanted(filter.clone())).await;
        let mut next = BTreeMap::from([(0, 0)]);
        let mut found = Vec::new();
        let mut scanned = 0;
        while next[&0] < 3000 {
            let frame = client.next().await;
            match frame["type"].as_str().unwrap() {
                "records" => {
                    assert_eq!(frame["base"], next[&0], "{filter}");
                    next.insert(0, frame["next"].as_i64().unwrap());
                    let records = frame["records"].as_array().unwrap();
                    found.extend(records.iter().map(|record| record[0].as_i64().unwrap()));
                }
                "progress" => {
                    next.insert(0, frame["next"]["0"].as_i64().unwrap());
                    scanned += frame["scanned"].as_i64().unwrap();
                    assert!(frame["next"]["0"] != 3000 || frame["caught_up"] == true, "{frame}");
                }
                _ => panic!("{frame}"),
            }
        }
        assert_eq!(found, expected, "{filter}");
        assert!(scanned <= 3000);
    }
    // Nothing matches: the place to go on from moves all the same, and live records are found.
    let none = wanted(json!({"key": {"equals": "nobody"}}));
    let (mut client, _) = Client::subscribed(&server, none).await;
    let progress = client.next_text().await;
    assert_eq!(
        progress,
        concat!(
            r#"{"type":"progress","id":1,"next":{"0":3000},"#,
            r#""scanned":3000,"matched":0,"caught_up":true}"#
        )
    );
    let post = server.request(Method::POST, "/v1/topics/t/records?key=nobody").body("x");
    assert_eq!(Reply::of(post).await.status, 200);
    let live = client.records(&mut BTreeMap::from([(0, 3000)]), 1).await;
    assert_eq!(offsets(&live), [3000]);
    server.stop().await;
}

#[tokio::test]
async fn who_skips_goes_on_with_the_newest_and_is_told_what_it_missed() {
    let server = Server::start().await;
    topic(&server, "t", 1).await;
    let subscribe = json!({"topic": "t", "from": {"at": "earliest"}, "on_lag": "skip",
        "credit": {"records": 5}});
    let (mut client, _) = Client::subscribed(&server, subscribe).await;
    fill(&server, "t", 0, 0..100).await;
    let mut next = BTreeMap::from([(0, 0)]);
    client.records(&mut next, 5).await;
    client.send(json!({"type": "credit", "id": 1, "records": 10})).await;
    let gap = r#"{"type":"gap","id":1,"p":0,"from":5,"to":89,"reason":"skip"}"#;
    assert_eq!(client.next_text().await, gap);
    let newest = client.records(&mut BTreeMap::from([(0, 90)]), 10).await;
    assert_eq!(offsets(&newest), (90..100).collect::<Vec<_>>());
    server.stop().await;
}

#[tokio::test]
async fn records_are_written_over_the_socket_and_acknowledged() {
    let server = Server::start().await;
    let mut client = Client::hello(&server).await;
    let produce = |seq: u32, topic: &str, records: Value| {
        json!({"type": "produce", "seq": seq, "topic": topic, "records": records,
            "acks": "all"})
    };
    // The first one creates the topic; those behind it wait for that and keep their order.
    for seq in 0..50 {
        let record = json!({"key": "k", "value": {"n": seq}, "headers": [["h", "v"]]});
        client.send(produce(seq, "new", json!([record]))).await;
    }
    let mut seen = BTreeMap::new();
    while seen.len() < 50 {
        let produced = client.next_of("produced").await;
        let records = produced["records"].as_array().unwrap();
        assert_eq!(records.len(), 1);
        assert!(records[0]["timestamp"].as_i64().unwrap() > 0);
        seen.insert(produced["seq"].as_i64().unwrap(), records[0]["offset"].as_i64().unwrap());
    }
    assert!(seen.iter().all(|(seq, offset)| seq == offset), "{seen:?}");
    let page = server.request(Method::GET, "/v1/topics/new/records?limit=1");
    let page = Reply::of(page).await.json();
    assert_eq!(page["records"][0]["value"], json!({"n": 0}));
    assert_eq!(page["records"][0]["headers"], json!([["h", "v"]]));
    let error = |frame: &Value| (frame["seq"].clone(), frame["code"].clone());
    client.send(produce(1, "new", json!([{"value": 1, "partition": 99}]))).await;
    assert_eq!(error(&client.next_of("error").await), (json!(1), json!("partition_not_found")));
    client.send(produce(2, "new", json!([{"value": 1, "what": 1}]))).await;
    let refused = client.next_of("error").await;
    assert_eq!(error(&refused), (json!(2), json!("invalid_body")));
    assert!(refused["message"].as_str().unwrap().contains("/records/0/what"), "{refused}");
    client.send(produce(3, "new", json!([]))).await;
    assert_eq!(error(&client.next_of("error").await), (json!(3), json!("invalid_body")));
    client.send(produce(4, "not/a/name", json!([{"value": 1}]))).await;
    assert_eq!(error(&client.next_of("error").await), (json!(4), json!("invalid_name")));
    client.send(produce(5, "missing", json!([{"value": 1, "partition": 99}]))).await;
    assert_eq!(error(&client.next_of("error").await), (json!(5), json!("partition_not_found")));
    // Not waited for, and so not answered.
    client
        .send(json!({"type": "produce", "seq": 6, "topic": "new", "acks": 0,
        "records": [{"key": "k", "value": "last"}]}))
        .await;
    client.send(json!({"type": "ping"})).await;
    assert_eq!(client.next_text().await, r#"{"type":"pong","t":null}"#);
    client.subscribe(json!({"topic": "new", "from": {"at": "earliest"}})).await;
    let records = client.records(&mut BTreeMap::new(), 51).await;
    assert_eq!(records[50].1[3], "\"last\"");
    server.stop().await;
}

#[tokio::test]
async fn bad_requests_are_refused_and_the_socket_goes_on() {
    let server = Server::start().await;
    topic(&server, "t", 1).await;
    let mut client = Client::hello(&server).await;
    let subscribe = |more: Value| {
        let mut request = json!({"type": "subscribe", "id": 1, "topic": "t"});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        request
    };
    for (request, code) in [
        (subscribe(json!({"topic": "none"})), "topic_not_found"),
        (subscribe(json!({"topic": "../x"})), "topic_not_found"),
        (subscribe(json!({"partitions": [1]})), "partition_not_found"),
        (subscribe(json!({"partitions": []})), "invalid_body"),
        (subscribe(json!({"from": {}})), "invalid_body"),
        (subscribe(json!({"from": {"offsets": {"3": 1}}})), "partition_not_found"),
        (subscribe(json!({"format": "xml"})), "invalid_body"),
        (subscribe(json!({"isolation": "none"})), "invalid_body"),
        (subscribe(json!({"filter": {"key": {}}})), "invalid_body"),
        (subscribe(json!({"credits": {}})), "invalid_body"),
        (json!({"type": "credit", "id": 1, "records": 1}), "invalid_request"),
        (json!({"type": "credit", "id": 1, "records": -1}), "invalid_body"),
        (json!({"type": "seek", "id": 1, "offsets": {"0": 1}}), "invalid_request"),
        (json!({"type": "unsubscribe", "id": 1}), "invalid_request"),
    ] {
        client.send(request.clone()).await;
        let error = client.next_text().await;
        let start = format!("{{\"type\":\"error\",\"id\":1,\"code\":\"{code}\",\"error_code\":");
        assert!(error.starts_with(&start), "{request}: {error}");
        assert!(error.ends_with(",\"retriable\":false,\"fatal_to\":\"request\"}"), "{error}");
    }
    client.subscribe(json!({"topic": "t"})).await;
    client.send(json!({"type": "seek", "id": 1, "offsets": {"1": 1}})).await;
    assert_eq!(client.next_of("error").await["code"], "partition_not_found");
    fill(&server, "t", 0, 0..1).await;
    client.records(&mut BTreeMap::new(), 1).await;
    server.stop().await;
}

#[tokio::test]
async fn a_reader_that_retention_has_passed_is_told_what_it_lost() {
    let server = Server::start_with(&[("storage.retention_interval", "100ms")]).await;
    let configs = json!({"segment.bytes": 65536, "retention.bytes": 100_000});
    let body = json!({"partitions": 1, "configs": configs});
    let put = server.request(Method::PUT, "/v1/topics/t").json(&body);
    assert_eq!(Reply::of(put).await.status, 201);
    let write = async |count: u32| {
        let value = "x".repeat(1000);
        for _ in 0..count / 10 {
            let records: Vec<_> = (0..10).map(|_| json!({"value": value})).collect();
            let post = server.request(Method::POST, "/v1/topics/t/records").json(&records);
            assert_eq!(Reply::of(post).await.status, 200);
        }
    };
    write(20).await;
    let subscribe = json!({"topic": "t", "from": {"at": "earliest"}, "credit": {"records": 5}});
    let (mut client, _) = Client::subscribed(&server, subscribe).await;
    client.records(&mut BTreeMap::from([(0, 0)]), 5).await;
    write(400).await;
    let log_start = crate::support::eventually("retention has passed the reader", async || {
        let shown = server.request(Method::GET, "/v1/topics/t");
        let start = Reply::of(shown).await.json()["details"][0]["log_start_offset"].as_i64();
        start.filter(|start| *start > 200)
    })
    .await;
    client.send(json!({"type": "credit", "id": 1, "records": 5})).await;
    let gap = client.next_of("gap").await;
    let to = gap["to"].as_i64().unwrap();
    assert_eq!((&gap["from"], &gap["reason"]), (&json!(5), &json!("retention")));
    assert!(to >= log_start - 1, "{gap}");
    let records = client.records(&mut BTreeMap::from([(0, to + 1)]), 5).await;
    assert_eq!(offsets(&records), (to + 1..to + 6).collect::<Vec<_>>());
    server.stop().await;
}
