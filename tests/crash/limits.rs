//! A node that may have few descriptors, and clients that take as many as they get.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use reqwest::RequestBuilder;

use crate::client::{client, read_partition, records_url};
use crate::load::PATIENCE;
use crate::node::{Scratch, Setup, wait_until};

/// Fewer than the partitions and connections here want: about 20 are for connections.
const DESCRIPTORS: u32 = 160;
const PARTITIONS: u32 = 120;
const CONNECTIONS: usize = 14;
const SETTINGS: &[&str] = &["shards.count=1", "wal.file_bytes=4 MiB", "wal.max_bytes=16 MiB"];

/// Sends a request and reads the answer to its end, so that its connection can be used again.
async fn answered(request: RequestBuilder) -> (u16, String) {
    let response = request.timeout(PATIENCE).send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

/// Name, length and time of the files that checkpoints are made of.
fn checkpoint_files(directory: &Path) -> Vec<(PathBuf, u64, SystemTime)> {
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let found = fs::metadata(&path).ok()?;
            Some((path, found.len(), found.modified().ok()?))
        })
        .collect();
    files.sort_unstable();
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_few_descriptors_outlives_many_connections_and_partitions() {
    let dir = Scratch::new();
    let setup = Setup::new(dir.path(), SETTINGS).descriptors(DESCRIPTORS);
    let node = setup.start();
    let http = client();
    for (topic, partitions) in [("many", PARTITIONS), ("gone", 1)] {
        let request = http.put(format!("{}/v1/topics/{topic}", node.url()));
        let body = serde_json::json!({"partitions": partitions});
        assert_eq!(answered(request.json(&body)).await.0, 201);
    }
    let address = node.url().strip_prefix("http://").unwrap();
    let connect = |_| TcpStream::connect(address).unwrap();
    let mut silent: Vec<_> = (0..CONNECTIONS).map(connect).collect();
    // A file for each partition, and a checkpoint of all of them.
    for partition in 0..PARTITIONS {
        let record = serde_json::json!({"partition": partition, "value": partition});
        let request = http.post(records_url(node.url(), "many"));
        let (status, text) = answered(request.json(&[record])).await;
        assert_eq!(status, 200, "{text}");
    }
    // A checkpoint is a file of its own, or more at the end of one: its number may come again.
    let checkpoint = || checkpoint_files(&dir.path().join("data/shards/1"));
    let before = checkpoint();
    let request = http.delete(format!("{}/v1/topics/gone", node.url()));
    assert_eq!(answered(request).await.0, 204);
    wait_until("there is a newer checkpoint", || checkpoint() != before);
    silent.extend((0..CONNECTIONS * 4).map(connect));
    let log = node.log().clone();
    wait_until("the places are used up", || log.text().contains("no more connections"));
    drop(silent);
    let fresh = answered(client().get(format!("{}/healthz", node.url()))).await;
    assert_eq!(fresh.0, 200, "who waited is served when there is a place");
    node.stop();
    let node = setup.start();
    for partition in 0..PARTITIONS {
        let records = read_partition(&http, node.url(), "many", partition).await;
        assert_eq!(records.len(), 1, "{partition}");
    }
    node.stop();
}
