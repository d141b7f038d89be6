//! The SQL view of the metadata: rows for search, for history and for operators' own tools.
//!
//! The driver of the metadata shard feeds row changes through a [`ViewFeed`]; a [`ViewWriter`]
//! task writes them to a [`MetadataStore`] in batches. Console and audit endpoints read the store.
//!
//! Invariants:
//! - nothing waits for SQL: the feed never blocks, and what does not fit in its queue is dropped;
//! - the rows are always those of one position of the log, written in the same transaction;
//! - a view that missed something is rebuilt from the current image, never patched.

mod lazy;
mod sql;
mod sqlite;
#[cfg(test)]
mod tests;
mod writer;

pub use lazy::LazySqlite;
pub use sqlite::SqliteStore;
pub use writer::{ViewFeed, ViewMonitor, ViewStatus, ViewWriter, view_writer};

use std::future::Future;
use std::sync::Arc;

use crate::metadata::{Image, RowChange};
use crate::types::{LogPosition, RaftIndex, Timestamp};

/// Why the view could not be read or written. Nothing depends on it: log it and try again later.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused or is away.
    #[error("the metadata view's database failed")]
    Database(#[from] sqlx::Error),
    /// The tables could not be made or brought up to date.
    #[error("the metadata view's tables could not be brought up to date")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// A number does not fit in a BIGINT.
    #[error("{0} does not fit in a column")]
    OutOfRange(u64),
    /// The file of an unusable database could not be removed.
    #[error("the metadata view's unusable file could not be removed")]
    Remove(#[source] std::io::Error),
}

/// What the rows are a copy of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewState {
    /// The cluster's id as text, `None` before the bootstrap.
    pub cluster_id: Option<String>,
    /// The last command that the rows contain.
    pub applied: LogPosition,
}

/// A topic as a search finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicRow {
    /// Its id as text.
    pub topic_id: String,
    /// Its name.
    pub name: String,
    /// Number of partitions.
    pub partitions: i64,
    /// `creating` or `active`.
    pub state: String,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRow {
    /// Index of the command that did it.
    pub index: RaftIndex,
    /// When, by the proposer's clock.
    pub at: Timestamp,
    /// What: `topic_created` or `topic_deleted`.
    pub event: String,
    /// The topic's id as text.
    pub topic_id: String,
    /// The topic's name.
    pub name: String,
    /// Who asked for it.
    pub principal: String,
}

/// A database that holds the view. One per supported kind of database.
///
/// # Cancel safety
/// Dropping the future of a write rolls the transaction back.
pub trait MetadataStore: Send + Sync + 'static {
    /// Returns what the rows are a copy of, `None` if nothing was ever written.
    ///
    /// # Errors
    /// [`StoreError`].
    fn state(&self) -> impl Future<Output = Result<Option<ViewState>, StoreError>> + Send;

    /// Writes changes, in order, and the position after them in one transaction.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was written.
    fn write(
        &self,
        changes: &[RowChange],
        applied: LogPosition,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Replaces all rows by those of an image in one transaction.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was written.
    fn rebuild(&self, image: &Image) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Finds visible topics whose name contains `text` in any case, by name; at most `limit`.
    ///
    /// # Errors
    /// [`StoreError`].
    fn search_topics(
        &self,
        text: &str,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<TopicRow>, StoreError>> + Send;

    /// Lists what happened, latest first; at most `limit`.
    ///
    /// # Errors
    /// [`StoreError`].
    fn history(
        &self,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<HistoryRow>, StoreError>> + Send;

    /// Closes all connections; waits for those in use.
    fn close(&self) -> impl Future<Output = ()> + Send;
}

/// Lists the rows of a whole image as changes of an empty view.
fn rows_of(image: &Image) -> Vec<RowChange> {
    let cluster = image.cluster_id().map(RowChange::Cluster);
    let nodes = image.nodes().cloned().map(RowChange::Node);
    let shards = image.shards().cloned().map(RowChange::Shard);
    let topics = image.topics().cloned().map(RowChange::TopicAdded);
    let history = image.history().cloned().map(RowChange::HistoryAdded);
    cluster.into_iter().chain(nodes).chain(shards).chain(topics).chain(history).collect()
}

/// Returns the pattern for `LIKE .. ESCAPE '!'` that finds `text` anywhere in a lower-case column.
fn like_pattern(text: &str) -> String {
    let mut pattern = String::from("%");
    for character in text.chars() {
        if matches!(character, '%' | '_' | '!') {
            pattern.push('!');
        }
        pattern.push(character.to_ascii_lowercase());
    }
    pattern.push('%');
    pattern
}

/// A shared image and the way to get the current one.
type CurrentImage = Box<dyn Fn() -> Arc<Image> + Send + Sync>;
