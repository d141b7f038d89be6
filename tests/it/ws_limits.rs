//! WebSocket: what closes a socket or never opens it, and what a bad client costs others.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::support::Server;
use crate::ws_client::{Client, fill, topic};

const PROTOCOL: (&str, &str) = ("sec-websocket-protocol", "eddyline.v1.json");

#[tokio::test]
async fn handshakes_that_break_a_rule_are_refused_before_the_upgrade() {
    let server = Server::start_with(&[("ws.allowed_origins", "https://friend")]).await;
    let status = async |path: &str, headers: &[(&'static str, &str)]| match Client::open(
        &server, path, headers,
    )
    .await
    {
        Ok(_) => 101,
        Err(Error::Http(response)) => response.status().as_u16(),
        Err(error) => panic!("{error}"),
    };
    assert_eq!(status("/v1/ws", &[PROTOCOL]).await, 101);
    assert_eq!(status("/v1/ws?token=x", &[PROTOCOL]).await, 400);
    assert_eq!(status("/v1/ws?access_token=x", &[PROTOCOL]).await, 400);
    assert_eq!(status("/v1/ws?x=1", &[PROTOCOL]).await, 400);
    assert_eq!(status("/v1/ws", &[]).await, 400);
    assert_eq!(status("/v1/ws", &[("sec-websocket-protocol", "eddyline.v9.json")]).await, 400);
    let bearer = "eddyline.bearer.eA, eddyline.v1.json";
    assert_eq!(status("/v1/ws", &[("sec-websocket-protocol", bearer)]).await, 101);
    assert_eq!(status("/v1/ws", &[PROTOCOL, ("origin", "https://evil")]).await, 403);
    assert_eq!(status("/v1/ws", &[PROTOCOL, ("origin", "null")]).await, 403);
    assert_eq!(status("/v1/ws", &[PROTOCOL, ("origin", "https://friend")]).await, 101);
    let own = server.url().to_owned();
    assert_eq!(status("/v1/ws", &[PROTOCOL, ("origin", &own)]).await, 101);
    let plain = server.request(reqwest::Method::GET, "/v1/ws").send().await.unwrap();
    assert_eq!(plain.status(), 400);
    server.stop().await;
}

#[tokio::test]
async fn faults_of_the_whole_socket_close_it_with_their_code() {
    let server = Server::start_with(&[("ws.max_subscriptions", "2")]).await;
    topic(&server, "t", 1).await;
    let garbage = "x".repeat(64 * 1024);
    for (frame, code) in [
        (Message::text(garbage.as_str()), 4400),
        (Message::text("[]"), 4400),
        (Message::text(r#"{"type":"what"}"#), 4400),
        (Message::text(r#"{"type":"hello"}"#), 4400),
        (Message::binary(vec![1]), 4400),
        (Message::text("x".repeat(256 * 1024 + 1)), 1009),
    ] {
        let mut client = Client::hello(&server).await;
        client.send_message(frame).await;
        assert_eq!(client.closed().await, code);
    }
    for (frame, code) in
        [(Message::text(r#"{"type":"ping"}"#), 4400), (Message::text(garbage.as_str()), 1009)]
    {
        let mut client = Client::silent(&server).await;
        client.send_message(frame).await;
        assert_eq!(client.closed().await, code);
    }
    let subscribe = |id: u32| json!({"type": "subscribe", "id": id, "topic": "t"});
    for (id, code) in [(1, 4409), (3, 4413)] {
        let mut client = Client::hello(&server).await;
        for id in [1, 2] {
            client.send(subscribe(id)).await;
            client.next_of("subscribed").await;
        }
        client.send(subscribe(id)).await;
        assert_eq!(client.closed().await, code);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_says_nothing_is_closed() {
    let server = Server::start_tweaked(&[], |config| {
        config.ws.timers.hello = Duration::from_millis(50);
    })
    .await;
    let mut client = Client::silent(&server).await;
    assert_eq!(client.closed().await, 4408);
    server.stop().await;
}

/// Reads a metric without labels.
async fn metric(server: &Server, name: &str) -> u64 {
    let metrics = server.request(reqwest::Method::GET, "/metrics").send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
}

/// Waits until the server has closed a socket with a code 45xx.
async fn closed_by_the_server(server: &Server) {
    crate::support::eventually("the server closes a socket", async || {
        (metric(server, "eddyline_ws_closed_45xx_total").await == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_client_that_answers_no_ping_is_closed_with_4511() {
    let server = Server::start_tweaked(&[], |config| {
        config.ws.timers.heartbeat = Duration::from_millis(100);
        config.ws.timers.pong = Duration::from_millis(100);
        config.ws.timers.close = Duration::from_secs(60);
    })
    .await;
    let mut client = Client::hello(&server).await;
    // Nothing is read, so nothing is answered, until the server has lost its patience.
    closed_by_the_server(&server).await;
    assert_eq!(client.closed().await, 4511);
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_lets_the_connection_fill_up_is_closed_with_4508() {
    let server = Server::start_tweaked(&[], |config| {
        config.ws.timers.blocked = Duration::from_millis(300);
        config.ws.timers.close = Duration::from_secs(60);
    })
    .await;
    topic(&server, "t", 1).await;
    let value = "v".repeat(100_000);
    let records: Vec<_> = (0..100).map(|_| json!({"value": value})).collect();
    let post = server.request(reqwest::Method::POST, "/v1/topics/t/records").json(&records);
    assert_eq!(post.send().await.unwrap().status(), 200);
    let everything = json!({"topic": "t", "from": {"at": "earliest"},
        "credit": {"records": 1_000_000, "bytes": 1_000_000_000_000_i64}});
    let (mut client, _) = Client::subscribed(&server, everything).await;
    closed_by_the_server(&server).await;
    // What was on its way comes first.
    assert_eq!(client.closed().await, 4508);
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn a_socket_that_has_not_said_hello_when_the_server_stops_is_closed_with_4503() {
    let server = Server::start().await;
    let mut client = Client::silent(&server).await;
    crate::support::eventually("the socket is served", async || {
        (metric(&server, "eddyline_ws_sockets_open").await == 1).then_some(())
    })
    .await;
    let (code, ()) = tokio::join!(client.closed(), server.stop());
    assert_eq!(code, 4503);
}

/// Opens a socket without reading the answer. It has little room for what nobody reads.
async fn open_raw(server: &Server) -> TcpStream {
    let address = server.url().trim_start_matches("http://");
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(address.parse().unwrap()).await.unwrap();
    let head = format!(
        "GET /v1/ws HTTP/1.1\r\nhost: {address}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
         sec-websocket-protocol: eddyline.v1.json\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// A frame that is masked with zeros, which leaves a text as it is.
fn masked(head: u8, text: &[u8]) -> Vec<u8> {
    [&[head, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0], text].concat()
}

#[tokio::test]
async fn a_flood_of_pings_whose_answers_nobody_reads_is_stopped_and_harms_no_other() {
    let server = Server::start_tweaked(&[], |config| {
        config.ws.timers.blocked = Duration::from_millis(300);
    })
    .await;
    topic(&server, "t", 1).await;
    let (mut other, _) = Client::subscribed(&server, json!({"topic": "t"})).await;
    let mut stream = open_raw(&server).await;
    stream.write_all(&masked(0x81, b"{\"type\":\"hello\"}")).await.unwrap();
    let (pings, mut sent) = (masked(0x89, &[b'x'; 125]).repeat(1000), 0);
    while let Ok(Ok(())) =
        tokio::time::timeout(Duration::from_secs(5), stream.write_all(&pings)).await
    {
        sent += pings.len();
        // Of the pings of one read only the last is answered, so this takes a while.
        assert!(sent < 2 << 30, "all of it is taken in");
    }
    closed_by_the_server(&server).await;
    fill(&server, "t", 0, 0..10).await;
    other.records(&mut BTreeMap::from([(0, 0)]), 10).await;
    server.stop().await;
}

/// Sends bytes that no client library would send on an open socket; returns the close code.
async fn code_for(server: &Server, bytes: &[u8]) -> u16 {
    let mut stream = open_raw(server).await;
    // A server that has seen enough does not take the rest.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let frames = &answer[end..];
    let close = frames.iter().position(|byte| *byte == 0x88).expect("a close frame");
    u16::from_be_bytes([frames[close + 2], frames[close + 3]])
}

#[tokio::test]
async fn bytes_that_break_rfc_6455_close_the_socket_with_its_codes() {
    let server = Server::start().await;
    let hello = masked(0x81, b"{\"type\":\"hello\"}");
    let after_hello = |bytes: &[u8]| [hello.as_slice(), bytes].concat();
    let endless = masked(0x00, &[b'x'; 125]).repeat(3000);
    for (what, bytes, code) in [
        ("unmasked", vec![0x81, 2, b'{', b'}'], 1002),
        ("reserved bits", masked(0xf1, b"{}"), 1002),
        ("a reserved opcode", masked(0x83, b"{}"), 1002),
        ("a fragment of nothing", masked(0x80, b"{}"), 1002),
        ("no UTF-8", masked(0x81, &[0xff, 0xfe]), 1007),
        ("fragments without end", after_hello(&[masked(0x01, b"x"), endless].concat()), 1009),
        ("64 MiB announced", after_hello(&[0x81, 0xff, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]), 1009),
    ] {
        assert_eq!(code_for(&server, &bytes).await, code, "{what}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_quiet_socket_is_told_that_the_server_lives() {
    let server = Server::start_tweaked(&[], |config| {
        config.ws.timers.heartbeat = Duration::from_millis(50);
    })
    .await;
    topic(&server, "t", 1).await;
    fill(&server, "t", 0, 0..3).await;
    let (mut client, _) = Client::subscribed(&server, json!({"id": 7, "topic": "t"})).await;
    // Pongs go out by themselves while the client reads: it is not given up.
    for _ in 0..5 {
        let heartbeat = client.next_of("hb").await;
        assert_eq!(heartbeat["hw"], json!({"7": {"0": 3}}));
        assert!(heartbeat["t"].as_i64().unwrap() > 0);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_stopping_server_says_so_answers_what_is_open_and_closes() {
    let server = Server::start().await;
    topic(&server, "t", 1).await;
    let (mut client, _) = Client::subscribed(&server, json!({"topic": "t"})).await;
    let stopping = server.stop();
    let told = async {
        let goaway = r#"{"type":"goaway","reason":"drain","retry_in_ms":[200,5000]}"#;
        assert_eq!(client.next_text().await, goaway);
        assert_eq!(client.closed().await, 1001);
    };
    tokio::join!(stopping, told);
}

#[tokio::test]
async fn a_reader_that_never_reads_is_closed_and_harms_no_other() {
    let server = Server::start_tweaked(&[], |config| {
        config.ws.timers.blocked = Duration::from_millis(300);
    })
    .await;
    topic(&server, "t", 1).await;
    let value = "v".repeat(10_000);
    let records: Vec<_> = (0..500).map(|_| json!({"value": value})).collect();
    for _ in 0..6 {
        let path = "/v1/topics/t/records";
        let post = server.request(reqwest::Method::POST, path).json(&records).send().await;
        assert_eq!(post.unwrap().status(), 200);
    }
    let everything = || {
        json!({"topic": "t", "from": {"at": "earliest"},
            "credit": {"records": 1_000_000, "bytes": 1_000_000_000_000_i64}})
    };
    let mut deaf = Vec::new();
    for _ in 0..20 {
        deaf.push(Client::subscribed(&server, everything()).await.0);
    }
    let (mut client, _) = Client::subscribed(&server, everything()).await;
    client.records(&mut BTreeMap::new(), 3000).await;
    // Everybody else is gone in time; what they were sent was bounded by the sockets' buffers.
    crate::support::eventually("deaf readers are closed", async || {
        let metrics = server.request(reqwest::Method::GET, "/metrics").send().await.unwrap();
        let metrics = metrics.text().await.unwrap();
        metrics.lines().any(|line| line == "eddyline_ws_sockets_open 1").then_some(())
    })
    .await;
    drop(deaf);
    server.stop().await;
}
