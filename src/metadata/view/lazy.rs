//! A view that is opened when it is first needed, and again after that failed.
//!
//! A node starts, serves and stops without its SQL database: what cannot be opened is an error of
//! the write that needed it, which the writer repeats with pauses.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Mutex;

use crate::metadata::view::{
    HistoryRow, MetadataStore, SqliteStore, StoreError, TopicRow, ViewState,
};
use crate::metadata::{Image, RowChange};
use crate::types::LogPosition;

/// A SQLite file that is opened at its first use.
#[derive(Debug)]
pub struct LazySqlite {
    path: PathBuf,
    /// Held while the file is being opened, so that it is opened once.
    opened: Mutex<Option<Arc<SqliteStore>>>,
}

impl LazySqlite {
    /// Names the file. Touches nothing.
    pub fn new(path: PathBuf) -> Self {
        Self { path, opened: Mutex::new(None) }
    }

    async fn store(&self) -> Result<Arc<SqliteStore>, StoreError> {
        let mut opened = self.opened.lock().await;
        if let Some(store) = opened.as_ref() {
            return Ok(Arc::clone(store));
        }
        let store = Arc::new(SqliteStore::open(&self.path).await?);
        *opened = Some(Arc::clone(&store));
        Ok(store)
    }
}

impl MetadataStore for LazySqlite {
    async fn state(&self) -> Result<Option<ViewState>, StoreError> {
        self.store().await?.state().await
    }

    async fn write(&self, changes: &[RowChange], applied: LogPosition) -> Result<(), StoreError> {
        self.store().await?.write(changes, applied).await
    }

    async fn rebuild(&self, image: &Image) -> Result<(), StoreError> {
        self.store().await?.rebuild(image).await
    }

    async fn search_topics(&self, text: &str, limit: u32) -> Result<Vec<TopicRow>, StoreError> {
        self.store().await?.search_topics(text, limit).await
    }

    async fn history(&self, limit: u32) -> Result<Vec<HistoryRow>, StoreError> {
        self.store().await?.history(limit).await
    }

    async fn close(&self) {
        if let Some(store) = self.opened.lock().await.take() {
            store.close().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_view_that_could_not_be_opened_is_opened_once_it_can_be() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("later");
        let view = LazySqlite::new(below.join("metadata.db"));
        assert!(view.state().await.is_err(), "the directory is not there yet");
        std::fs::create_dir(&below).unwrap();
        assert!(view.state().await.unwrap().is_none());
        view.rebuild(&Image::default()).await.unwrap();
        assert!(view.state().await.unwrap().is_some());
        view.close().await;
    }
}
