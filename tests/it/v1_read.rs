//! Stateless reads on the native face: pages, lines, events.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Reply, Server};

const RECORDS: &str = "/v1/topics/t/records";

async fn put_topic(server: &Server, partitions: u32) {
    let body = json!({ "partitions": partitions }).to_string();
    let reply = Reply::of(server.request(Method::PUT, "/v1/topics/t").body(body)).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
}

async fn produce(server: &Server, records: Value) {
    let body = json!({ "records": records }).to_string();
    let request = server.request(Method::POST, RECORDS).header("content-type", "application/json");
    let reply = Reply::of(request.body(body)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
}

/// Writes the values `range`, round robin over the partitions, with a timestamp each.
async fn fill(server: &Server, range: std::ops::Range<u32>, partitions: u32) {
    let record = |i: u32| {
        json!({"partition": i % partitions, "key": format!("k{i}"), "value": i, "timestamp": i * 10,
            "headers": [["odd", (i % 2).to_string()]]})
    };
    produce(server, range.map(record).collect()).await;
}

async fn get(server: &Server, query: &str) -> Reply {
    Reply::of(server.request(Method::GET, &format!("{RECORDS}{query}"))).await
}

async fn page(server: &Server, query: &str) -> Value {
    let reply = get(server, query).await;
    assert_eq!(reply.status, 200, "{query}: {}", reply.text());
    reply.json()
}

fn values(page: &Value) -> Vec<u64> {
    let records = page["records"].as_array().unwrap();
    records.iter().map(|record| record["value"].as_u64().unwrap()).collect()
}

fn next(page: &Value) -> &str {
    page["next"].as_str().unwrap()
}

#[tokio::test]
async fn pages_cover_every_record_once_and_in_order() {
    let server = Server::start().await;
    put_topic(&server, 3).await;
    fill(&server, 0..100, 3).await;
    let mut seen: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let mut query = "?limit=7".to_owned();
    loop {
        let page = page(&server, &query).await;
        assert_eq!(page["end_offsets"], json!({"0": 34, "1": 33, "2": 33}));
        assert!(page.get("gaps").is_none());
        for record in page["records"].as_array().unwrap() {
            let offsets = seen.entry(record["partition"].as_u64().unwrap()).or_default();
            offsets.push(record["offset"].as_u64().unwrap());
        }
        query = format!("?limit=7&from={}", next(&page));
        if page["records"].as_array().unwrap().is_empty() {
            break;
        }
    }
    for (partition, offsets) in &seen {
        let expected: Vec<_> = (0..if *partition == 0 { 34 } else { 33 }).collect();
        assert_eq!(offsets, &expected);
    }
    // The last cursor is where new records begin.
    fill(&server, 100..103, 3).await;
    let mut new = values(&page(&server, &query).await);
    new.sort_unstable();
    assert_eq!(new, [100, 101, 102]);
    server.stop().await;
}

#[tokio::test]
async fn a_read_starts_where_it_is_told_to() {
    let server = Server::start().await;
    put_topic(&server, 2).await;
    fill(&server, 0..10, 2).await;
    let read = async |query: &str| {
        let mut values = values(&page(&server, query).await);
        values.sort_unstable();
        values
    };
    assert_eq!(read("").await, (0..10).collect::<Vec<_>>());
    assert_eq!(read("?from=latest").await, [0; 0]);
    assert_eq!(read("?partitions=1").await, [1, 3, 5, 7, 9]);
    assert_eq!(read("?partition=0&offset=3").await, [6, 8]);
    assert_eq!(read("?partition=0&offset=5").await, [0; 0], "the end is a place to wait at");
    // 45 ms: the first not older are 6 (60 ms) of partition 0 and 5 (50 ms) of partition 1.
    assert_eq!(read("?from=1970-01-01T00:00:00.045Z").await, [5, 6, 7, 8, 9]);
    assert_eq!(read("?from=1970-01-01T00:00:01Z").await, [0; 0]);
    assert_eq!(read("?max_bytes=1").await.len(), 1, "one record always fits");
    let cursor = page(&server, "?partition=0&offset=3&limit=1").await;
    assert_eq!(read(&format!("?from={}&partitions=0", next(&cursor))).await, [8]);
    assert_eq!(
        read(&format!("?from={}", next(&cursor))).await,
        [1, 3, 5, 7, 8, 9],
        "a partition that the cursor lacks starts at its beginning"
    );
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_read_is_refused() {
    let server = Server::start().await;
    put_topic(&server, 2).await;
    fill(&server, 0..4, 2).await;
    for (query, status, code) in [
        ("?limit=0", 400, "invalid_request"),
        ("?from=AQ", 400, "invalid_request"),
        ("?offset=1", 400, "invalid_request"),
        ("?topic=t", 400, "invalid_request"),
        ("?a=%zz", 400, "invalid_request"),
        ("?partition=2&offset=0", 404, "partition_not_found"),
        ("?partitions=0,2", 404, "partition_not_found"),
        ("?partition=0&offset=3", 416, "offset_out_of_range"),
    ] {
        let reply = get(&server, query).await;
        assert_eq!(reply.status, status, "{query}: {}", reply.text());
        assert_eq!(reply.json()["code"], code, "{query}");
    }
    let out = get(&server, "?partition=0&offset=3").await.json();
    assert_eq!((&out["log_start_offset"], &out["log_end_offset"]), (&json!(0), &json!(2)));
    let missing = Reply::of(server.request(Method::GET, "/v1/topics/a%2Fb/records")).await;
    assert_eq!((missing.status.as_u16(), &missing.json()["error_code"]), (404, &json!(40401)));

    let cursor = page(&server, "").await;
    assert_eq!(Reply::of(server.request(Method::DELETE, "/v1/topics/t")).await.status, 204);
    assert_eq!(get(&server, &format!("?from={}", next(&cursor))).await.status, 410);
    assert_eq!(get(&server, "").await.status, 404);
    put_topic(&server, 2).await;
    let gone = get(&server, &format!("?from={}", next(&cursor))).await;
    assert_eq!((gone.status.as_u16(), &gone.json()["error_code"]), (410, &json!(41001)));
    server.stop().await;
}

#[tokio::test]
async fn lines_carry_their_cursor_in_headers() {
    let server = Server::start().await;
    put_topic(&server, 2).await;
    let lines = async |query: &str| {
        let request = server.request(Method::GET, &format!("{RECORDS}{query}"));
        Reply::of(request.header("accept", "application/x-ndjson")).await
    };
    let empty = lines("").await;
    assert_eq!((empty.status.as_u16(), empty.text()), (200, ""));
    fill(&server, 0..5, 2).await;
    let some = lines(&format!("?limit=3&from={}", empty.header("eddyline-next").unwrap())).await;
    assert_eq!(some.header("content-type"), Some("application/x-ndjson"));
    assert_eq!(some.header("eddyline-end"), Some("0:3,1:2"));
    let rest = lines(&format!("?from={}", some.header("eddyline-next").unwrap())).await;
    let mut all: Vec<u64> = some
        .text()
        .lines()
        .chain(rest.text().lines())
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["value"].as_u64().unwrap())
        .collect();
    all.sort_unstable();
    assert_eq!(all, [0, 1, 2, 3, 4]);
    assert_eq!(some.text().lines().count(), 3);
    server.stop().await;
}

#[tokio::test]
async fn filters_choose_and_the_cursor_moves_past_what_was_scanned() {
    let server = Server::start().await;
    put_topic(&server, 2).await;
    fill(&server, 0..50, 2).await;
    assert_eq!(values(&page(&server, "?key=k7").await), [7]);
    let prefix = values(&page(&server, "?key_prefix=k4").await);
    assert_eq!(prefix.len(), 11, "{prefix:?}");
    assert_eq!(values(&page(&server, "?header=odd:1&key=k7").await), [7]);
    assert_eq!(values(&page(&server, "?header=odd:0&key=k7").await), [0; 0]);
    let none = page(&server, "?key=nobody").await;
    assert_eq!(values(&none), [0; 0]);
    assert_eq!(values(&page(&server, &format!("?from={}", next(&none))).await), [0; 0]);
    let meta = page(&server, "?key=k7&format=meta").await;
    assert_eq!(meta["records"][0]["value_bytes"], 1);
    server.stop().await;
}

#[tokio::test]
async fn a_long_poll_is_answered_by_the_first_matching_record() {
    let server = Server::start().await;
    put_topic(&server, 2).await;
    let timed_out = page(&server, "?wait=1").await;
    assert_eq!(values(&timed_out), [0; 0]);
    let query = format!("?wait=60000&key=wanted&from={}", next(&timed_out));
    let mut poll = Box::pin(page(&server, &query));
    let other = produce(&server, json!([{"key": "other", "value": 1}]));
    tokio::select! {
        answered = &mut poll => panic!("answered before anything was written: {answered}"),
        () = other => {}
    }
    let write = produce(&server, json!([{"key": "wanted", "value": 2}]));
    let (answer, ()) = tokio::join!(poll, write);
    assert_eq!(values(&answer), [2]);
    server.stop().await;
}

/// An open stream of events.
struct Events {
    answer: reqwest::Response,
    received: String,
}

#[derive(Debug)]
struct Event {
    name: String,
    id: Option<String>,
    data: Value,
}

impl Events {
    async fn open(server: &Server, query: &str, last_event_id: Option<&str>) -> Self {
        let mut request = server
            .request(Method::GET, &format!("{RECORDS}{query}"))
            .header("accept", "text/event-stream");
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let headers = answer.headers();
        assert_eq!(headers["content-type"], "text/event-stream");
        assert_eq!(headers["cache-control"], "no-store");
        assert_eq!(headers["x-accel-buffering"], "no");
        assert!(headers.contains_key("eddyline-start"));
        Self { answer, received: String::new() }
    }

    /// Waits for the next event, `None` at the end.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((block, rest)) = self.received.split_once("\n\n") {
                let mut event = Event { name: String::new(), id: None, data: Value::Null };
                for line in block.lines() {
                    let (field, value) = line.split_once(": ").unwrap_or((line, ""));
                    match field {
                        "event" => event.name = value.to_owned(),
                        "id" => event.id = Some(value.to_owned()),
                        "data" => event.data = serde_json::from_str(value).unwrap(),
                        "retry" | "" | ":" => {}
                        other => panic!("unknown field {other} in {block:?}"),
                    }
                }
                self.received = rest.to_owned();
                if !event.name.is_empty() {
                    return Some(event);
                }
            }
            let chunk = self.answer.chunk().await.unwrap()?;
            self.received.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }
}

#[tokio::test]
async fn events_resume_without_gap_or_repeat() {
    const COUNT: u32 = 300;
    let server = Server::start().await;
    put_topic(&server, 3).await;
    fill(&server, 0..100, 3).await;
    let mut seen = Vec::new();
    let mut last_id = None;
    for round in 0.. {
        assert!(round < 100, "{seen:?}");
        if round == 2 {
            fill(&server, 100..COUNT, 3).await;
        }
        let query = "?from=earliest&limit=20";
        let mut events = Events::open(&server, query, last_id.as_deref()).await;
        // The connection breaks off after an event or two.
        for _ in 0..=(round % 2) {
            let event = events.next().await.unwrap();
            assert_eq!(event.name, "records", "{event:?}");
            assert_eq!(event.data["next"].as_str(), event.id.as_deref());
            seen.extend(values(&event.data));
            last_id = event.id;
            if seen.len() >= 100 && round < 2 || seen.len() == COUNT as usize {
                break;
            }
        }
        if seen.len() == COUNT as usize {
            break;
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..u64::from(COUNT)).collect::<Vec<_>>());
    server.stop().await;
}

#[tokio::test]
async fn events_begin_at_the_end_and_end_with_their_topic() {
    let server = Server::start().await;
    put_topic(&server, 1).await;
    fill(&server, 0..3, 1).await;
    let mut events = Events::open(&server, "", None).await;
    fill(&server, 3..4, 1).await;
    let event = events.next().await.unwrap();
    assert_eq!(values(&event.data), [3]);
    assert_eq!(Reply::of(server.request(Method::DELETE, "/v1/topics/t")).await.status, 204);
    let end = events.next().await.unwrap();
    assert_eq!((end.name.as_str(), &end.data), ("end", &json!({"reason": "topic_deleted"})));
    assert!(events.next().await.is_none());
    server.stop().await;
}

#[tokio::test]
async fn filtered_events_tell_their_progress_and_stop_with_the_server() {
    let server = Server::start().await;
    put_topic(&server, 1).await;
    fill(&server, 0..30, 1).await;
    let mut events = Events::open(&server, "?from=earliest&key=nobody", None).await;
    let progress = events.next().await.unwrap();
    assert_eq!(progress.name, "progress");
    assert_eq!(progress.data["next"].as_str(), progress.id.as_deref());
    let rest = page(&server, &format!("?from={}", progress.id.unwrap())).await;
    assert_eq!(values(&rest), [0; 0]);
    let (end, ()) = tokio::join!(events.next(), server.stop());
    assert_eq!(end.unwrap().data, json!({"reason": "shutdown"}));
}

#[tokio::test]
async fn headers_count_towards_the_bytes_of_an_answer() {
    const HEADER_BYTES: usize = 100_000;
    let server = Server::start().await;
    put_topic(&server, 1).await;
    let text = "h".repeat(HEADER_BYTES);
    let record = |n: u64| json!({"key": n.to_string(), "headers": [["h", text]]});
    produce(&server, (0..7).map(record).collect()).await;
    let count = |page: &Value| page["records"].as_array().unwrap().len();
    assert_eq!(count(&page(&server, "?max_bytes=1").await), 1, "one record always fits");
    assert_eq!(count(&page(&server, "?max_bytes=150000").await), 2);
    assert_eq!(count(&page(&server, "").await), 7);
    // A filtered scan looks at 16 MiB; here everything, header by header, and takes nothing.
    assert_eq!(count(&page(&server, "?key=nobody").await), 0);
    let mut events = Events::open(&server, "?from=earliest", None).await;
    let event = events.next().await.unwrap();
    assert_eq!(count(&event.data), 3, "an event has 256 KiB and a record at most");
    let metrics = Reply::of(server.request(Method::GET, "/metrics")).await;
    let out = metrics.text().lines().find_map(|line| {
        line.strip_prefix("eddyline_topic_out_bytes_total{topic=\"t\"} ")?.parse::<usize>().ok()
    });
    assert!(out.is_some_and(|out| out >= 13 * HEADER_BYTES), "{out:?}");
    drop(events);
    server.stop().await;
}

#[tokio::test]
async fn a_busy_partition_does_not_keep_a_reader_from_the_others() {
    let server = Server::start().await;
    put_topic(&server, 3).await;
    let record = |partition: u32| json!({"partition": partition, "value": partition});
    produce(&server, [0, 0, 1, 2].into_iter().map(record).collect()).await;
    let mut cursor = "earliest".to_owned();
    let mut seen = std::collections::BTreeSet::new();
    // One record a page, and each time more of them in the first partition.
    for _ in 0..100 {
        produce(&server, [0, 0].into_iter().map(record).collect()).await;
        let read = page(&server, &format!("?limit=1&from={cursor}")).await;
        let again = page(&server, &format!("?limit=1&from={cursor}")).await;
        assert_eq!(read["records"], again["records"], "a repeated read gives the same page");
        seen.insert(read["records"][0]["partition"].as_u64().unwrap());
        cursor = read["next"].as_str().unwrap().to_owned();
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
    server.stop().await;
}

/// Makes the cursor of a topic of 10,000 partitions in which much was written: no address has room
/// for it.
pub(crate) fn huge_cursor(topic_id: &str) -> String {
    let id = topic_id.replace('-', "");
    let id = (0..16).map(|i| u8::from_str_radix(&id[2 * i..2 * i + 2], 16).unwrap());
    let mut bytes: Vec<u8> = std::iter::once(1).chain(id).collect();
    for partition in 0..10_000_u64 {
        for mut number in [partition, 1 << 34] {
            while number >= 0x80 {
                bytes.push(u8::try_from(number & 0x7f).unwrap() | 0x80);
                number >>= 7;
            }
            bytes.push(u8::try_from(number).unwrap());
        }
    }
    base64_simd::URL_SAFE_NO_PAD.encode_to_string(bytes)
}

#[tokio::test]
async fn the_cursor_of_a_huge_topic_fits_a_header_where_no_address_has_room() {
    let server = Server::start().await;
    put_topic(&server, 10_000).await;
    let topic = Reply::of(server.request(Method::GET, "/v1/topics?prefix=t")).await.json();
    let cursor = huge_cursor(topic["topics"][0]["topic_id"].as_str().unwrap());
    assert!(cursor.len() > 90_000);
    for accept in ["application/json", "application/x-ndjson"] {
        let request = server.request(Method::GET, &format!("{RECORDS}?limit=1&from=earliest"));
        let request = request.header("accept", accept).header("last-event-id", &cursor);
        let reply = Reply::of(request).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let next = match accept {
            "application/json" => reply.json()["next"].as_str().unwrap().to_owned(),
            _ => reply.header("eddyline-next").unwrap().to_owned(),
        };
        assert_eq!(next, cursor, "{accept}");
        assert_eq!(reply.header("eddyline-end"), None, "too long for a head");
    }
    let request = server.request(Method::GET, RECORDS).header("accept", "text/event-stream");
    let answer = request.header("last-event-id", &cursor).send().await.unwrap();
    assert_eq!(answer.headers()["eddyline-start"], cursor.as_str());
    drop(answer);
    // An HTTP library would not even send it.
    let address = server.url().strip_prefix("http://").unwrap();
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!("GET {RECORDS}?from={cursor} HTTP/1.1\r\nhost: x\r\n\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    socket.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 414");
    server.stop().await;
}
