//! A node whose parts end under it.

use super::*;
use crate::config::{Machine, Sources, load};
use crate::storage::fs::Fs;
use crate::storage::fs::sim::SimFs;

const PATIENCE: Duration = Duration::from_secs(30);

async fn start(directory: &Path) -> Server {
    let set = vec![
        format!("data_dir={}", directory.display()),
        "listen=127.0.0.1:0".to_owned(),
        "shards.count=2".to_owned(),
    ];
    let machine = Machine { cores: 2, open_files_limit: 4096 };
    let config = load(&Sources { set, ..Sources::default() }, machine).unwrap().config;
    let fs = SimFs::new();
    fs.create_dir_all(&config.data_dir).unwrap();
    let listener = TcpListener::bind(config.listen).await.unwrap();
    Server::start_on(&config, listener, fs.shared(), SystemClock::shared()).await.unwrap()
}

/// The log goes on, and nothing else says that the shard takes no more records.
#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_ends_unasked_ends_the_node() {
    for ending in [1, 2, 0].map(ShardId::new) {
        let directory = tempfile::tempdir().unwrap();
        let server = start(directory.path()).await;
        let group = match server.shards.get(&ending) {
            Some(shard) => shard.group(),
            None => server.metadata.group(),
        };
        group.shutdown().await;
        let serving = server.serve(std::future::pending());
        let ended = tokio::time::timeout(PATIENCE, serving).await.expect("the node goes on");
        let text = ended.unwrap_err().to_string();
        assert!(text.contains(&format!("shard {ending} has ended")), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_does_not_come_up_is_an_error_of_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let server = start(directory.path()).await;
    lead_all(&server.shards).await.unwrap();
    let ending = ShardId::new(2);
    server.shards[&ending].group().shutdown().await;
    server.shards[&ending].group().stopped().await;
    let refused = lead_all(&server.shards).await;
    assert!(matches!(refused, Err(Error::NotUp { shard, .. }) if shard == ending), "{refused:?}");
}

/// An ordered stop ends the shards itself, and that is no failure.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_was_asked_for_is_no_failure() {
    let directory = tempfile::tempdir().unwrap();
    start(directory.path()).await.serve(std::future::ready(())).await.unwrap();
}
