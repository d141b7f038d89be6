//! The view in a SQLite file, `metadata.db` in the data directory.
//!
//! Invariants:
//! - one connection writes, a few others read; WAL mode lets them do so at the same time;
//! - a power cut may take the last transactions (`synchronous = NORMAL`), never a part of one. The
//!   position is part of each, so the writer notices and rebuilds.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions, Row, SqlSafeStr};

use crate::metadata::view::{
    HistoryRow, MetadataStore, StoreError, TopicRow, ViewState, like_pattern, rows_of, sql,
};
use crate::metadata::{HistoryEntry, Image, Node, RowChange, Shard, Topic};
use crate::types::{ClusterId, LogPosition, RaftIndex, ShardId, Term, Timestamp, TopicId};

/// Connections for reading at the same time.
const READERS: u32 = 2;

/// How long a statement waits for a lock that another process (an operator's tool) holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a reader waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// SQLite's result codes for a file that is damaged, and for one that is no database.
const UNUSABLE_FILE_CODES: [&str; 2] = ["11", "26"];

/// The view in a SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl SqliteStore {
    /// Opens the file and brings its tables up to date; makes it when it is missing. A file that is
    /// damaged, or has tables of another version than this server knows, is replaced by an empty
    /// one: it holds nothing that the image does not.
    ///
    /// # Errors
    /// [`StoreError`]; the server can go on without a view.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        match Self::try_open(path).await {
            Err(error) if is_unusable_file(&error) => {
                tracing::warn!(path = %path.display(), %error, "replacing unusable metadata view");
                remove_database(path)?;
                Self::try_open(path).await
            }
            opened => opened,
        }
    }

    async fn try_open(path: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(BUSY_TIMEOUT)
            .disable_statement_logging();
        let pool = |connections| {
            SqlitePoolOptions::new().max_connections(connections).acquire_timeout(ACQUIRE_TIMEOUT)
        };
        let writer = pool(1).connect_with(options.clone()).await?;
        let opened = async {
            migrator().run(&writer).await?;
            let readers = pool(READERS).connect_with(options.read_only(true)).await?;
            let store = Self { writer: writer.clone(), readers };
            store.state().await?;
            Ok(store)
        };
        match opened.await {
            Ok(store) => Ok(store),
            Err(error) => {
                writer.close().await;
                Err(error)
            }
        }
    }

    #[cfg(test)]
    pub(super) fn writer(&self) -> &SqlitePool {
        &self.writer
    }
}

impl MetadataStore for SqliteStore {
    async fn state(&self) -> Result<Option<ViewState>, StoreError> {
        let row = sqlx::query(sql::GET_STATE).fetch_optional(&self.readers).await?;
        let Some(row) = row else { return Ok(None) };
        let term = Term::new(row.try_get::<i64, _>("applied_term")?.unsigned_abs());
        let index = RaftIndex::new(row.try_get::<i64, _>("applied_index")?.unsigned_abs());
        let applied = LogPosition { term, index };
        Ok(Some(ViewState { cluster_id: row.try_get("cluster_id")?, applied }))
    }

    async fn write(&self, changes: &[RowChange], applied: LogPosition) -> Result<(), StoreError> {
        let mut transaction = self.writer.begin().await?;
        write_all(&mut transaction, changes, applied).await?;
        Ok(transaction.commit().await?)
    }

    async fn rebuild(&self, image: &Image) -> Result<(), StoreError> {
        let mut transaction = self.writer.begin().await?;
        for statement in sql::CLEAR {
            sqlx::query(*statement).execute(&mut *transaction).await?;
        }
        write_all(&mut transaction, &rows_of(image), image.changed()).await?;
        Ok(transaction.commit().await?)
    }

    async fn search_topics(&self, text: &str, limit: u32) -> Result<Vec<TopicRow>, StoreError> {
        let query = sqlx::query(sql::SEARCH_TOPICS).bind(like_pattern(text));
        let rows = query.bind(i64::from(limit)).fetch_all(&self.readers).await?;
        let topic = |row: &sqlx::sqlite::SqliteRow| {
            Ok(TopicRow {
                topic_id: row.try_get("topic_id")?,
                name: row.try_get("name")?,
                partitions: row.try_get("partitions")?,
                state: row.try_get("state")?,
            })
        };
        rows.iter().map(topic).collect()
    }

    async fn history(&self, limit: u32) -> Result<Vec<HistoryRow>, StoreError> {
        let query = sqlx::query(sql::LIST_HISTORY).bind(i64::from(limit));
        let rows = query.fetch_all(&self.readers).await?;
        let entry = |row: &sqlx::sqlite::SqliteRow| {
            Ok(HistoryRow {
                index: RaftIndex::new(row.try_get::<i64, _>("log_index")?.unsigned_abs()),
                at: Timestamp::from_millis(row.try_get("happened_at")?),
                event: row.try_get("event")?,
                topic_id: row.try_get("topic_id")?,
                name: row.try_get("name")?,
                principal: row.try_get("principal")?,
            })
        };
        rows.iter().map(entry).collect()
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

fn migrator() -> Migrator {
    let init = include_str!("../../../migrations/sqlite/0001_init.sql");
    let kind = MigrationType::Simple;
    Migrator::with_migrations(vec![Migration::new(
        1,
        "init".into(),
        kind,
        init.into_sql_str(),
        false,
    )])
}

fn is_unusable_file(error: &StoreError) -> bool {
    let database = match error {
        StoreError::Database(error)
        | StoreError::Migration(
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _),
        ) => error.as_database_error(),
        StoreError::Migration(
            MigrateError::VersionMissing(_)
            | MigrateError::VersionMismatch(_)
            | MigrateError::Dirty(_),
        ) => return true,
        StoreError::Migration(_) | StoreError::OutOfRange(_) | StoreError::Remove(_) => None,
    };
    let code = database.and_then(|error| error.code());
    code.is_some_and(|code| UNUSABLE_FILE_CODES.contains(&code.as_ref()))
}

/// Removes the file and those that SQLite keeps beside it.
fn remove_database(path: &Path) -> Result<(), StoreError> {
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match std::fs::remove_file(PathBuf::from(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::Remove(error));
            }
            _ => {}
        }
    }
    Ok(())
}

async fn write_all(
    connection: &mut SqliteConnection,
    changes: &[RowChange],
    applied: LogPosition,
) -> Result<(), StoreError> {
    for change in changes {
        match change {
            RowChange::Cluster(id) => put_cluster(connection, *id).await?,
            RowChange::Node(node) => put_node(connection, node).await?,
            RowChange::Shard(shard) => put_shard(connection, shard).await?,
            RowChange::TopicAdded(topic) => {
                put_topic(connection, topic).await?;
                put_partitions(connection, topic).await?;
            }
            RowChange::TopicChanged(topic) => put_topic(connection, topic).await?,
            RowChange::TopicRemoved(id) => remove_topic(connection, *id).await?,
            RowChange::HistoryAdded(entry) => put_history(connection, entry).await?,
            RowChange::HistoryTrimmed(through) => {
                let query = sqlx::query(sql::TRIM_HISTORY).bind(bigint(through.get())?);
                query.execute(&mut *connection).await?;
            }
        }
    }
    let query = sqlx::query(sql::PUT_STATE).bind(bigint(applied.term.get())?);
    query.bind(bigint(applied.index.get())?).execute(connection).await?;
    Ok(())
}

async fn put_cluster(connection: &mut SqliteConnection, id: ClusterId) -> Result<(), StoreError> {
    sqlx::query(sql::PUT_CLUSTER).bind(id.to_string()).execute(connection).await?;
    Ok(())
}

async fn put_node(connection: &mut SqliteConnection, node: &Node) -> Result<(), StoreError> {
    sqlx::query(sql::PUT_NODE)
        .bind(bigint(node.id.get())?)
        .bind(&node.url)
        .bind(node.registered_at.as_millis())
        .execute(connection)
        .await?;
    Ok(())
}

async fn put_shard(connection: &mut SqliteConnection, shard: &Shard) -> Result<(), StoreError> {
    let id = i64::from(shard.id.get());
    let query = sqlx::query(sql::PUT_SHARD).bind(id).bind(i64::from(shard.replication_factor));
    query.execute(&mut *connection).await?;
    for replica in &shard.replicas {
        sqlx::query(sql::PUT_REPLICA)
            .bind(bigint(replica.replica.get())?)
            .bind(id)
            .bind(bigint(replica.node.get())?)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

async fn put_topic(connection: &mut SqliteConnection, topic: &Topic) -> Result<(), StoreError> {
    let id = topic.id.to_string();
    sqlx::query(sql::PUT_TOPIC)
        .bind(&id)
        .bind(topic.name.as_str())
        .bind(bigint(topic.partitions.len() as u64)?)
        .bind(i64::from(topic.replication_factor))
        .bind(topic.state.as_str())
        .bind(topic.created_at.as_millis())
        .bind(bigint(topic.changed.term.get())?)
        .bind(bigint(topic.changed.index.get())?)
        .execute(&mut *connection)
        .await?;
    sqlx::query(sql::REMOVE_CONFIGS).bind(&id).execute(&mut *connection).await?;
    for (name, value) in topic.config.iter() {
        let query = sqlx::query(sql::PUT_CONFIG).bind(&id).bind(name).bind(value);
        query.execute(&mut *connection).await?;
    }
    Ok(())
}

async fn put_partitions(
    connection: &mut SqliteConnection,
    topic: &Topic,
) -> Result<(), StoreError> {
    let query = sqlx::query(sql::PUT_PARTITIONS_SQLITE).bind(topic.id.to_string());
    query.bind(json_array(&topic.partitions)).execute(connection).await?;
    Ok(())
}

async fn remove_topic(connection: &mut SqliteConnection, id: TopicId) -> Result<(), StoreError> {
    for statement in [sql::REMOVE_TOPIC, sql::REMOVE_CONFIGS, sql::REMOVE_PARTITIONS] {
        sqlx::query(statement).bind(id.to_string()).execute(&mut *connection).await?;
    }
    Ok(())
}

async fn put_history(
    connection: &mut SqliteConnection,
    entry: &HistoryEntry,
) -> Result<(), StoreError> {
    sqlx::query(sql::PUT_HISTORY)
        .bind(bigint(entry.index.get())?)
        .bind(entry.at.as_millis())
        .bind(entry.event.as_str())
        .bind(entry.topic_id.to_string())
        .bind(entry.name.as_str())
        .bind(entry.principal.as_str())
        .execute(connection)
        .await?;
    Ok(())
}

fn json_array(shards: &[ShardId]) -> String {
    let numbers: Vec<String> = shards.iter().map(ShardId::to_string).collect();
    format!("[{}]", numbers.join(","))
}

fn bigint(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| StoreError::OutOfRange(number))
}
