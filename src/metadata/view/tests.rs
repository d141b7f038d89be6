//! The SQLite view against the image.

use std::collections::BTreeSet;
use std::path::PathBuf;

use proptest::prelude::*;
use sqlx::{Executor, Row, SqlSafeStr};

use crate::metadata::tests::{any_commands, at, bootstrap, create, delete, name, run};
use crate::metadata::view::*;
use crate::metadata::{Command, CreateTopic, Image, RowChange, apply};
use crate::types::{LogPosition, Principal, TopicConfig, TopicId};

struct Database {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl Database {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metadata.db");
        Self { _directory: directory, path }
    }

    async fn open(&self) -> SqliteStore {
        SqliteStore::open(&self.path).await.unwrap()
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(future)
}

/// Every row of every table as text, which is read without the code under test.
const DUMP: &[&str] = &[
    "SELECT 'state ' || coalesce(cluster_id, '') || ' ' || applied_term || ' ' || applied_index \
     AS row FROM view_state",
    "SELECT 'node ' || node_id || ' ' || url || ' ' || registered_at AS row FROM nodes",
    "SELECT 'shard ' || shard_id || ' ' || replication_factor AS row FROM shards",
    "SELECT 'replica ' || replica_id || ' ' || shard_id || ' ' || node_id AS row FROM replicas",
    "SELECT 'topic ' || topic_id || ' ' || name || ' ' || partitions || ' ' \
     || replication_factor || ' ' || state || ' ' || created_at || ' ' || changed_term || ' ' \
     || changed_index AS row FROM topics",
    "SELECT 'config ' || topic_id || ' ' || name || ' ' || value AS row FROM topic_configs",
    "SELECT 'partition ' || topic_id || ' ' || partition_id || ' ' || shard_id AS row \
     FROM partitions",
    "SELECT 'history ' || log_index || ' ' || happened_at || ' ' || event || ' ' || topic_id \
     || ' ' || name || ' ' || principal AS row FROM history",
];

async fn dump(store: &SqliteStore) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for select in DUMP {
        for row in sqlx::query(*select).fetch_all(store.writer()).await.unwrap() {
            assert!(lines.insert(row.get::<String, _>("row")), "a row twice");
        }
    }
    lines
}

fn expected(image: &Image) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    let cluster = image.cluster_id().map_or_else(String::new, |id| id.to_string());
    let changed = image.changed();
    lines.insert(format!("state {cluster} {} {}", changed.term, changed.index));
    for node in image.nodes() {
        lines.insert(format!("node {} {} {}", node.id, node.url, node.registered_at));
    }
    for shard in image.shards() {
        lines.insert(format!("shard {} {}", shard.id, shard.replication_factor));
        for replica in &shard.replicas {
            lines.insert(format!("replica {} {} {}", replica.replica, shard.id, replica.node));
        }
    }
    for topic in image.topics() {
        let crate::metadata::Topic { id, name, replication_factor, created_at, .. } = &**topic;
        let (count, state) = (topic.partitions.len(), topic.state.as_str());
        let LogPosition { term, index } = topic.changed;
        lines.insert(format!(
            "topic {id} {name} {count} {replication_factor} {state} {created_at} {term} {index}"
        ));
        for (name, value) in topic.config.iter() {
            lines.insert(format!("config {id} {name} {value}"));
        }
        for (partition, shard) in topic.partitions.iter().enumerate() {
            lines.insert(format!("partition {id} {partition} {shard}"));
        }
    }
    for entry in image.history() {
        let crate::metadata::HistoryEntry { index, at, topic_id, name, principal, .. } = &**entry;
        let event = entry.event.as_str();
        lines.insert(format!("history {index} {at} {event} {topic_id} {name} {principal}"));
    }
    lines
}

async fn feed(store: &SqliteStore, image: &mut Image, first: u64, commands: &[Command]) {
    for (command, index) in commands.iter().zip(first..) {
        let (_, rows) = apply(image, at(index), command);
        if !rows.is_empty() {
            store.write(&rows, at(index)).await.unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_rows_are_those_of_the_image_after_random_commands(commands in any_commands()) {
        block_on(async {
            let database = Database::new();
            let store = database.open().await;
            let mut image = Image::default();
            feed(&store, &mut image, 1, &commands).await;
            if image != Image::default() {
                assert_eq!(dump(&store).await, expected(&image));
            }
            // All in one transaction, and from nothing, are the same rows.
            store.rebuild(&Image::default()).await.unwrap();
            let mut image = Image::default();
            let rows = |(command, index)| apply(&mut image, at(index), command).1;
            let rows: Vec<RowChange> = commands.iter().zip(1..).flat_map(rows).collect();
            store.write(&rows, image.changed()).await.unwrap();
            assert_eq!(dump(&store).await, expected(&image));
            store.rebuild(&image).await.unwrap();
            assert_eq!(dump(&store).await, expected(&image));
        });
    }
}

#[test]
fn every_statement_is_one_that_sqlite_understands() {
    block_on(async {
        let database = Database::new();
        let store = database.open().await;
        let mut connection = store.writer().acquire().await.unwrap();
        for statement in sql::ALL_SQLITE.iter().chain(sql::CLEAR) {
            let prepared = connection.prepare((*statement).into_sql_str()).await;
            assert!(prepared.is_ok(), "{statement}: {:?}", prepared.err());
        }
        let source = include_str!("sql.rs");
        let constants = source.matches("pub(super) const ").count();
        // All but the two lists themselves are in the list.
        assert_eq!(sql::ALL_SQLITE.len(), constants - 2);
    });
}

#[test]
fn a_view_that_is_not_the_images_is_replaced_by_a_rebuild() {
    block_on(async {
        let database = Database::new();
        let store = database.open().await;
        let (other, _) = run(&[bootstrap(3), create(7, "other", 9, 1), delete(7)]);
        store.rebuild(&other).await.unwrap();
        let (image, _) = run(&[bootstrap(2), create(1, "a", 3, 1)]);
        store.rebuild(&image).await.unwrap();
        assert_eq!(dump(&store).await, expected(&image));
        store.close().await;
        let state = database.open().await.state().await.unwrap().unwrap();
        assert_eq!(state.applied, image.changed());
        assert_eq!(state.cluster_id, image.cluster_id().map(|id| id.to_string()));
    });
}

#[test]
fn a_failed_write_leaves_the_rows_of_the_position_before() {
    block_on(async {
        let database = Database::new();
        let store = database.open().await;
        let mut image = Image::default();
        feed(&store, &mut image, 1, &[bootstrap(1), create(1, "a", 1, 1)]).await;
        // The second change violates the unique name, after the first one was written.
        let (twin, _) = run(&[bootstrap(1), create(2, "a", 1, 1), create(3, "b", 1, 1)]);
        let topic = |name| RowChange::TopicAdded(twin.topic_by_name(name).unwrap().clone());
        assert!(store.write(&[topic("b"), topic("a")], at(9)).await.is_err());
        assert_eq!(dump(&store).await, expected(&image));
    });
}

#[test]
fn a_missing_damaged_or_newer_file_is_replaced_by_an_empty_view() {
    block_on(async {
        let database = Database::new();
        let (image, _) = run(&[bootstrap(1), create(1, "a", 1, 1)]);
        let fill = async || {
            let store = database.open().await;
            store.rebuild(&image).await.unwrap();
            store
        };
        let check_empty = async || {
            let store = database.open().await;
            assert_eq!(store.state().await.unwrap(), None);
            store.close().await;
        };
        fill().await.close().await;
        std::fs::remove_file(&database.path).unwrap();
        check_empty().await;

        // The log of a file that is gone is not replayed into the new one.
        let store = fill().await;
        let log = database.path.with_extension("db-wal");
        let stale = std::fs::read(&log).unwrap();
        store.close().await;
        std::fs::remove_file(&database.path).unwrap();
        std::fs::write(&log, stale).unwrap();
        check_empty().await;

        fill().await.close().await;
        std::fs::write(&database.path, vec![b'x'; 8192]).unwrap();
        check_empty().await;

        let store = fill().await;
        let newer = "INSERT INTO _sqlx_migrations \
            (version, description, success, checksum, execution_time) \
            VALUES (2, 'newer', true, x'00', 0)";
        sqlx::query(newer).execute(store.writer()).await.unwrap();
        store.close().await;
        check_empty().await;
        let store = fill().await;
        assert_eq!(dump(&store).await, expected(&image));
    });
}

#[test]
fn search_finds_names_that_contain_the_text_literally() {
    block_on(async {
        let database = Database::new();
        let store = database.open().await;
        let commands = [
            bootstrap(1),
            create(1, "Flights.eu", 1, 1),
            create(2, "old-flights", 1, 1),
            create(3, "a_b", 2, 1),
            create(4, "axb", 1, 1),
            create(5, "flights-gone", 1, 1),
            delete(5),
        ];
        feed(&store, &mut Image::default(), 1, &commands).await;
        let found = async |text, limit| {
            let rows = store.search_topics(text, limit).await.unwrap();
            rows.into_iter().map(|row| row.name).collect::<Vec<_>>()
        };
        assert_eq!(found("fLights", 10).await, ["Flights.eu", "old-flights"]);
        assert_eq!(found("flights", 1).await, ["Flights.eu"]);
        assert_eq!(found("a_b", 10).await, ["a_b"]);
        assert_eq!(found("%", 10).await, [""; 0]);
        assert_eq!(found("' OR 1=1 --", 10).await, [""; 0]);
        assert_eq!(found("", 10).await.len(), 4);
        let row = store.search_topics("a_b", 1).await.unwrap().remove(0);
        assert_eq!((row.partitions, row.state.as_str()), (2, "creating"));

        let history = store.history(2).await.unwrap();
        let seen: Vec<(&str, u64)> =
            history.iter().map(|row| (row.event.as_str(), row.index.get())).collect();
        assert_eq!(seen, [("topic_deleted", 7), ("topic_created", 6)]);
        assert_eq!(history[0].principal, "User:__server");
    });
}

#[test]
fn a_wide_topic_is_one_statement() {
    block_on(async {
        let database = Database::new();
        let store = database.open().await;
        let wide = Command::CreateTopic(CreateTopic {
            topic_id: TopicId::from_bytes([1; 16]),
            name: name("wide"),
            partitions: 10_000,
            replication_factor: 1,
            config: TopicConfig::default(),
            created_at: Timestamp::from_millis(1),
            principal: Principal::anonymous(),
        });
        let mut image = Image::default();
        feed(&store, &mut image, 1, &[bootstrap(3), wide]).await;
        assert_eq!(dump(&store).await, expected(&image));
    });
}

#[test]
fn numbers_beyond_bigint_are_refused_and_not_bent() {
    block_on(async {
        let database = Database::new();
        let store = database.open().await;
        let node = crate::metadata::Node {
            id: crate::types::NodeId::new(u64::MAX),
            url: String::new(),
            registered_at: Timestamp::from_millis(0),
        };
        let written = store.write(&[RowChange::Node(Arc::new(node))], at(1)).await;
        assert!(matches!(written, Err(StoreError::OutOfRange(u64::MAX))));
    });
}
