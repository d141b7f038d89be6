//! A client of `/v1/ws` for tests: sends JSON, reads frames one by one.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::support::{Reply, Server};

/// A frame that does not come within this never comes.
const FRAME_TIME_MAX: Duration = Duration::from_secs(30);

/// How long nothing has to come for a test to believe that nothing will.
const SILENCE: Duration = Duration::from_millis(200);

/// An open socket.
pub(crate) struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Client {
    /// Opens a socket with some headers more than it needs.
    pub(crate) async fn open(
        server: &Server,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, tungstenite::Error> {
        let url = format!("{}{path}", server.url().replacen("http", "ws", 1));
        let mut request = url.into_client_request()?;
        for (name, value) in headers {
            request.headers_mut().insert(*name, HeaderValue::from_str(value)?);
        }
        Ok(Self { socket: connect_async(request).await?.0 })
    }

    /// Opens a socket that has not said hello.
    pub(crate) async fn silent(server: &Server) -> Self {
        let protocol = [("sec-websocket-protocol", "eddyline.v1.json")];
        Self::open(server, "/v1/ws", &protocol).await.unwrap()
    }

    /// Opens a socket and says hello.
    pub(crate) async fn hello(server: &Server) -> Self {
        let mut client = Self::silent(server).await;
        client.send(json!({"type": "hello"})).await;
        assert_eq!(client.next().await["type"], "welcome");
        client
    }

    /// Opens a socket and subscribes; returns `subscribed` too.
    pub(crate) async fn subscribed(server: &Server, subscribe: Value) -> (Self, Value) {
        let mut client = Self::hello(server).await;
        let subscribed = client.subscribe(subscribe).await;
        (client, subscribed)
    }

    /// Subscribes with the id 1, unless another is given.
    pub(crate) async fn subscribe(&mut self, mut subscribe: Value) -> Value {
        let members = subscribe.as_object_mut().unwrap();
        members.insert("type".to_owned(), json!("subscribe"));
        members.entry("id").or_insert(json!(1));
        self.send(subscribe).await;
        let subscribed = self.next().await;
        assert_eq!(subscribed["type"], "subscribed", "{subscribed}");
        subscribed
    }

    /// Sends a frame.
    pub(crate) async fn send(&mut self, frame: Value) {
        self.send_text(&frame.to_string()).await;
    }

    /// Sends a text frame.
    pub(crate) async fn send_text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    /// Sends any frame.
    pub(crate) async fn send_message(&mut self, message: Message) {
        self.socket.send(message).await.unwrap();
    }

    async fn message(&mut self, within: Duration) -> Option<Message> {
        let message = tokio::time::timeout(within, self.socket.next()).await.ok()?;
        Some(message.expect("the socket has ended").unwrap())
    }

    /// Reads the next frame as text.
    pub(crate) async fn next_text(&mut self) -> String {
        loop {
            match self.message(FRAME_TIME_MAX).await.expect("no frame came") {
                Message::Text(text) => return text.to_string(),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Reads the next frame.
    pub(crate) async fn next(&mut self) -> Value {
        let text = self.next_text().await;
        assert!(text.starts_with("{\"type\":\""), "type comes first: {text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Reads the next frame, which has this type.
    pub(crate) async fn next_of(&mut self, kind: &str) -> Value {
        let frame = self.next().await;
        assert_eq!(frame["type"], kind, "{frame}");
        frame
    }

    /// Checks that nothing comes for a while.
    pub(crate) async fn expect_silence(&mut self) {
        if let Some(message) = self.message(SILENCE).await {
            panic!("expected silence: {message:?}");
        }
    }

    /// Reads to the close frame and returns its code.
    pub(crate) async fn closed(&mut self) -> u16 {
        loop {
            match self.message(FRAME_TIME_MAX).await.expect("no close frame came") {
                Message::Close(Some(frame)) => return frame.code.into(),
                Message::Close(None) => panic!("closed without a code"),
                _ => {}
            }
        }
    }

    /// Reads records until there are `count`, checking that each frame goes on where the last one
    /// of its partition ended; returns them with their partitions.
    pub(crate) async fn records(
        &mut self,
        next: &mut std::collections::BTreeMap<u64, i64>,
        count: usize,
    ) -> Vec<(u64, Value)> {
        let mut records = Vec::new();
        while records.len() < count {
            let frame = self.next_of("records").await;
            let partition = frame["p"].as_u64().unwrap();
            let base = frame["base"].as_i64().unwrap();
            if let Some(told) = next.insert(partition, frame["next"].as_i64().unwrap()) {
                assert_eq!(told, base, "{frame}");
            }
            let list = frame["records"].as_array().unwrap();
            records.extend(list.iter().map(|record| (partition, record.clone())));
        }
        assert_eq!(records.len(), count);
        records
    }
}

/// Creates a topic.
pub(crate) async fn topic(server: &Server, name: &str, partitions: u32) {
    let body = json!({"partitions": partitions});
    let put = server.request(Method::PUT, &format!("/v1/topics/{name}")).json(&body);
    assert_eq!(Reply::of(put).await.status, 201);
}

/// Writes records with the values `from..to` and their text as key to a partition.
pub(crate) async fn fill(server: &Server, name: &str, partition: u32, range: std::ops::Range<u32>) {
    let numbers: Vec<u32> = range.collect();
    for chunk in numbers.chunks(5000) {
        let record = |n: &u32| json!({"partition": partition, "key": format!("k{n}"), "value": n});
        let records: Vec<Value> = chunk.iter().map(record).collect();
        let path = format!("/v1/topics/{name}/records");
        let post = server.request(Method::POST, &path).json(&json!({"records": records}));
        assert_eq!(Reply::of(post).await.status, 200);
    }
}
