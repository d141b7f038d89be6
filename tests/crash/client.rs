//! The HTTP API as a client uses it, from its documentation.

use std::collections::BTreeMap;

use reqwest::{Client, Response};
use serde::Deserialize;
use serde_json::value::RawValue;

/// A record as it is read.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Record {
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    pub(crate) key: Option<String>,
    pub(crate) value: Box<RawValue>,
}

/// A report of a record that was written, or why it was not.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Report {
    pub(crate) partition: Option<u32>,
    pub(crate) offset: Option<u64>,
    pub(crate) error: Option<serde_json::Value>,
}

impl Report {
    /// Where the record is; fails the test when it was refused.
    pub(crate) fn place(&self) -> (u32, u64) {
        match (self.partition, self.offset, &self.error) {
            (Some(partition), Some(offset), None) => (partition, offset),
            _ => panic!("refused: {:?}", self.error),
        }
    }
}

/// Makes a client that does not keep connections to a node that was killed.
pub(crate) fn client() -> Client {
    Client::builder().no_proxy().pool_max_idle_per_host(8).build().unwrap()
}

pub(crate) fn records_url(url: &str, topic: &str) -> String {
    format!("{url}/v1/topics/{topic}/records")
}

/// Creates a topic.
pub(crate) async fn create(client: &Client, url: &str, topic: &str, body: serde_json::Value) {
    let request = client.put(format!("{url}/v1/topics/{topic}")).json(&body);
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 201, "{}", response.text().await.unwrap());
}

/// Reads one partition from its start to its end, checking that offsets are dense.
pub(crate) async fn read_partition(
    client: &Client,
    url: &str,
    topic: &str,
    partition: u32,
) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    loop {
        let from = records.len();
        let url =
            format!("{}?partition={partition}&offset={from}&limit=10000", records_url(url, topic));
        let request = client.get(url).header("accept", "application/x-ndjson");
        let response = request.send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        assert_eq!(status, 200, "partition {partition} from {from}: {text}");
        for line in text.lines() {
            let record: Record = serde_json::from_str(line).expect(line);
            assert_eq!(record.partition, partition);
            assert_eq!(record.offset, records.len() as u64, "a gap or a repetition");
            records.push(record);
        }
        if text.is_empty() {
            return records;
        }
    }
}

/// Reads all partitions.
pub(crate) async fn read_all(
    client: &Client,
    url: &str,
    topic: &str,
    partitions: u32,
) -> BTreeMap<u32, Vec<Record>> {
    let mut all = BTreeMap::new();
    for partition in 0..partitions {
        all.insert(partition, read_partition(client, url, topic, partition).await);
    }
    all
}

/// Reads an answer line by line, as it arrives.
pub(crate) struct Lines {
    response: Response,
    buffer: Vec<u8>,
    start: usize,
}

impl Lines {
    pub(crate) fn new(response: Response) -> Self {
        Self { response, buffer: Vec::new(), start: 0 }
    }

    /// The next whole line without its end; `None` when the answer has ended or broken off.
    pub(crate) async fn next(&mut self) -> Option<String> {
        loop {
            let rest = &self.buffer[self.start..];
            if let Some(length) = memchr::memchr(b'\n', rest) {
                let line = String::from_utf8(rest[..length].to_vec()).unwrap();
                self.start += length + 1;
                return Some(line);
            }
            self.buffer.drain(..self.start);
            self.start = 0;
            let chunk = self.response.chunk().await.ok().flatten()?;
            self.buffer.extend_from_slice(&chunk);
        }
    }
}
