//! The task that keeps the view close behind the log.
//!
//! Each item of the queue says which position it follows, so that a hole (an item that did not fit,
//! a failed transaction) is seen where it is, whatever was queued after it. The answer to every
//! hole is the same: rebuild from the current image, then go on with what is newer.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::metadata::view::{CurrentImage, MetadataStore, StoreError, ViewState};
use crate::metadata::{Image, RowChange};
use crate::types::{LogPosition, RaftIndex};

#[cfg(test)]
mod tests;

/// Commands that wait to be written. When it is full, further ones are dropped and the view is
/// rebuilt later; an item is a few pointers into the image.
const QUEUE_LEN_MAX: usize = 4_096;

/// Commands of one transaction.
const BATCH_LEN_MAX: usize = 512;

/// Pause after a first failure; doubled after each further one.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);

/// Longest pause between attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// How the view stands, for `/readyz` and metrics. A view that is behind is not a fault.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ViewStatus {
    /// Index of the last command that the rows contain.
    pub applied_index: RaftIndex,
    /// Log entries from there to the last command that changed anything, 0 when up to date.
    pub behind: u64,
    /// Why the last attempt failed, `None` after one that succeeded.
    pub last_error: Option<String>,
}

/// The end of the queue that the metadata shard's driver holds. Never blocks.
#[derive(Debug)]
pub struct ViewFeed {
    queue: mpsc::Sender<Item>,
    last: LogPosition,
    shared: Arc<Shared>,
}

/// Watches a view's progress. Clones are cheap.
#[derive(Debug, Clone)]
pub struct ViewMonitor {
    shared: Arc<Shared>,
}

/// The task's body; see [`view_writer`].
pub struct ViewWriter<S> {
    store: Arc<S>,
    queue: mpsc::Receiver<Item>,
    current: CurrentImage,
    shared: Arc<Shared>,
    /// What the rows contain. `None`: unknown, rebuild.
    applied: Option<LogPosition>,
}

/// The rows that one command changed.
#[derive(Debug)]
struct Item {
    after: LogPosition,
    at: LogPosition,
    rows: Vec<RowChange>,
}

#[derive(Debug)]
struct Shared {
    /// Short sections without await.
    progress: Mutex<Progress>,
    /// Wakes the writer when something was dropped.
    dropped: Notify,
}

#[derive(Debug)]
struct Progress {
    written: LogPosition,
    submitted: LogPosition,
    /// The last item that only a rebuild can write: it did not reach the queue or the rows.
    dropped: LogPosition,
    last_error: Option<String>,
}

/// Makes a feed and the task that writes what is fed. `current` returns the published image.
///
/// The feed expects changes after those that the image of this moment contains.
pub fn view_writer<S: MetadataStore>(
    store: Arc<S>,
    current: impl Fn() -> Arc<Image> + Send + Sync + 'static,
) -> (ViewFeed, ViewWriter<S>) {
    let last = current().changed();
    let (sender, receiver) = mpsc::channel(QUEUE_LEN_MAX);
    let zero = LogPosition::default();
    let progress = Progress { written: zero, submitted: last, dropped: zero, last_error: None };
    let shared = Arc::new(Shared { progress: Mutex::new(progress), dropped: Notify::new() });
    let feed = ViewFeed { queue: sender, last, shared: Arc::clone(&shared) };
    let current = Box::new(current);
    (feed, ViewWriter { store, queue: receiver, current, shared, applied: None })
}

impl ViewFeed {
    /// Queues the rows that the command at `at` changed. Call it after its image is published.
    pub fn submit(&mut self, at: LogPosition, rows: Vec<RowChange>) {
        if rows.is_empty() {
            return;
        }
        let item = Item { after: std::mem::replace(&mut self.last, at), at, rows };
        let is_dropped = self.queue.try_send(item).is_err();
        self.note_submitted(at, is_dropped);
    }

    /// Says that the image was replaced by another node's, so that there are no rows to feed. Call
    /// it after the image is published.
    pub fn replaced(&mut self, image: &Image) {
        self.last = image.changed();
        self.note_submitted(self.last, true);
    }

    /// Returns what watches the view's progress.
    pub fn monitor(&self) -> ViewMonitor {
        ViewMonitor { shared: Arc::clone(&self.shared) }
    }

    fn note_submitted(&self, at: LogPosition, is_dropped: bool) {
        let mut progress = self.shared.progress.lock();
        progress.submitted = at;
        if is_dropped {
            progress.dropped = progress.dropped.max(at);
            self.shared.dropped.notify_one();
        }
    }
}

impl ViewMonitor {
    /// Returns how the view stands.
    pub fn status(&self) -> ViewStatus {
        let progress = self.shared.progress.lock();
        let (written, submitted) = (progress.written.index, progress.submitted.index);
        ViewStatus {
            applied_index: written,
            behind: submitted.get().saturating_sub(written.get()),
            last_error: progress.last_error.clone(),
        }
    }
}

impl<S: MetadataStore> ViewWriter<S> {
    /// Writes what is fed until `stop` is cancelled or the feed is dropped, then closes the store.
    /// Whoever starts it need not wait for anything but its end.
    pub async fn run(mut self, stop: CancellationToken) {
        self.compare(&stop).await;
        while let Some(batch) = self.next_batch(&stop).await {
            self.write(batch).await;
            if self.has_hole() {
                self.rebuild(&stop).await;
            }
        }
        self.store.close().await;
    }

    /// Finds out whether the rows are those of the image; if not, rebuilds them.
    async fn compare(&mut self, stop: &CancellationToken) {
        let image = (self.current)();
        match self.store.state().await {
            Ok(Some(state)) if is_copy_of(&state, &image) => self.note_written(image.changed()),
            Ok(_) => {}
            Err(error) => self.note_error(&error),
        }
        if self.has_hole() {
            self.rebuild(stop).await;
        }
    }

    /// Waits for something to do: items in the order of the log, or none when one was dropped.
    /// `None` when there is nothing left to do.
    async fn next_batch(&mut self, stop: &CancellationToken) -> Option<Vec<Item>> {
        let first = tokio::select! {
            biased;
            item = self.queue.recv() => item?,
            () = stop.cancelled() => return None,
            () = self.shared.dropped.notified() => return Some(Vec::new()),
        };
        let mut batch = vec![first];
        while batch.len() < BATCH_LEN_MAX
            && let Ok(item) = self.queue.try_recv()
        {
            batch.push(item);
        }
        Some(batch)
    }

    /// Writes the items that follow what is written, up to the first hole.
    async fn write(&mut self, batch: Vec<Item>) {
        let (Some(mut applied), Some(last)) = (self.applied, batch.last()) else {
            return;
        };
        let last = last.at;
        let mut changes = Vec::new();
        // What a rebuild has covered is not written again.
        for item in batch {
            if item.at <= applied {
                continue;
            }
            if item.after != applied {
                self.note_dropped(last);
                return;
            }
            applied = item.at;
            changes.extend(item.rows);
        }
        if changes.is_empty() {
            return;
        }
        match self.store.write(&changes, applied).await {
            Ok(()) => self.note_written(applied),
            Err(error) => {
                self.note_dropped(last);
                self.note_error(&error);
            }
        }
    }

    /// Replaces the rows by those of the current image, trying again until it succeeds.
    async fn rebuild(&mut self, stop: &CancellationToken) {
        let mut pause = BACKOFF_FIRST;
        while self.has_hole() && !stop.is_cancelled() {
            let image = (self.current)();
            match self.store.rebuild(&image).await {
                Ok(()) => self.note_written(image.changed()),
                Err(error) => self.note_error(&error),
            }
            // Also after success there may be a hole: the image is published a moment later.
            if self.has_hole() {
                let _ = stop.run_until_cancelled(tokio::time::sleep(pause)).await;
                pause = (pause * 2).min(BACKOFF_MAX);
            }
        }
    }

    /// Returns whether the rows are unknown or lack something that will not come by the queue.
    fn has_hole(&self) -> bool {
        self.applied.is_none_or(|applied| applied < self.shared.progress.lock().dropped)
    }

    /// Notes that everything up to `through` can only come by a rebuild.
    fn note_dropped(&self, through: LogPosition) {
        let mut progress = self.shared.progress.lock();
        progress.dropped = progress.dropped.max(through);
    }

    fn note_written(&mut self, applied: LogPosition) {
        self.applied = Some(applied);
        let mut progress = self.shared.progress.lock();
        progress.written = applied;
        if progress.last_error.take().is_some() {
            tracing::info!(applied_index = applied.index.get(), "metadata view is written again");
        }
    }

    fn note_error(&self, error: &StoreError) {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        let mut progress = self.shared.progress.lock();
        if progress.last_error.is_none() {
            tracing::warn!(error = text, "metadata view cannot be written, it is rebuilt later");
        }
        progress.last_error = Some(text);
    }
}

impl<S> std::fmt::Debug for ViewWriter<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ViewWriter").field("applied", &self.applied).finish_non_exhaustive()
    }
}

fn is_copy_of(state: &ViewState, image: &Image) -> bool {
    let cluster_id = image.cluster_id().map(|id| id.to_string());
    state.applied == image.changed() && state.cluster_id == cluster_id
}
