//! Encoded frames that many subscribers need: at the tail and when they catch up.
//!
//! A frame is found by where it starts. Frames end at multiples of their record count where they
//! can, so that subscribers who started in different places soon walk the same frames.
//!
//! Invariants:
//! - a frame is encoded by one subscriber at a time; others who need it wait for that one, and
//!   take over when it goes away;
//! - the frames' bytes are bounded; the oldest go first. A frame that somebody still sends lives on
//!   outside of the cache;
//! - a frame that ended at the log end is used for a short while after the log has moved on: long
//!   enough for all who wait at the tail, not so long that those who come later read in crumbs.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::api::error::ApiError;
use crate::api::ws::encode::Style;
use crate::broker::Gap;
use crate::metrics::WebSocketMetrics;
use crate::types::{Offset, PartitionId, TopicId};

/// How long a frame that ended at the log end is used.
const SHORT_FRAME_LIFE: Duration = Duration::from_millis(100);

/// What an entry costs beside its frame's bytes.
const ENTRY_BYTES: usize = 256;

/// Notes of entries that were replaced, beside those that are there, before they are swept.
const STALE_NOTES_MAX: usize = 1024;

/// Which frame: subscribers with equal keys may share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) topic: TopicId,
    pub(super) partition: PartitionId,
    pub(super) from: Offset,
    /// The offset at which it ends at the latest.
    pub(super) until: Offset,
    /// Most records.
    pub(super) records_max: u32,
    /// Most bytes.
    pub(super) bytes_max: usize,
    pub(super) style: Style,
}

/// The records of a frame, encoded, and what the frame says of them.
#[derive(Debug)]
pub(super) struct Encoded {
    /// `[[...],[...]]}`: the list and the end of the frame.
    pub(super) body: Bytes,
    /// How many records.
    pub(super) records: u64,
    /// Bytes of their keys and values.
    pub(super) record_bytes: u64,
    /// Where the next frame starts.
    pub(super) next: Offset,
    /// What is missing before that.
    pub(super) gaps: Vec<Gap>,
    /// How many records were looked at.
    pub(super) scanned: u64,
    /// Whether it ended because it was full, not because there was no more.
    pub(super) full: bool,
    /// When it was made.
    pub(super) made: Instant,
}

impl Encoded {
    fn is_current(&self, log_end: Offset, now: Instant) -> bool {
        self.full
            || self.next >= log_end
            || now.saturating_duration_since(self.made) < SHORT_FRAME_LIFE
    }
}

/// A place for a frame that is encoded, or will be.
pub(super) type Cell = Arc<OnceCell<Arc<Encoded>>>;

/// What the cache has.
#[derive(Debug)]
pub(super) enum Lookup {
    /// The frame.
    Hit(Arc<Encoded>),
    /// A place for it; see [`FrameCache::fill`].
    Miss(Cell),
}

/// The frames of one server.
#[derive(Debug)]
pub(super) struct FrameCache {
    bytes_max: usize,
    metrics: WebSocketMetrics,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<Key, Entry>,
    /// Entries in the order in which they came, by key and number.
    notes: VecDeque<(Key, u64)>,
    /// The last entry's number.
    newest: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    cell: Cell,
    number: u64,
    bytes: usize,
}

impl FrameCache {
    /// Makes an empty cache.
    pub(super) fn new(bytes_max: usize, metrics: WebSocketMetrics) -> Self {
        Self { bytes_max, metrics, inner: Mutex::default() }
    }

    /// Looks a frame up, and makes a place for one that is not there.
    pub(super) fn look_up(&self, key: &Key, log_end: Offset, now: Instant) -> Lookup {
        let mut inner = self.inner.lock();
        if let Some(entry) = inner.entries.get(key) {
            match entry.cell.get() {
                None => return Lookup::Miss(Arc::clone(&entry.cell)),
                Some(frame) if frame.is_current(log_end, now) => {
                    self.metrics.cache_hits.inc();
                    return Lookup::Hit(Arc::clone(frame));
                }
                Some(_) => {}
            }
        }
        self.metrics.cache_misses.inc();
        let cell = inner.insert(*key);
        self.evict(&mut inner);
        Lookup::Miss(cell)
    }

    /// Returns whether a frame is there.
    pub(super) fn has(&self, key: &Key) -> bool {
        let inner = self.inner.lock();
        inner.entries.get(key).is_some_and(|entry| entry.cell.initialized())
    }

    /// Waits for the frame of a place, encoding it with `encode` when nobody else does.
    ///
    /// # Errors
    /// Those of `encode`.
    ///
    /// # Cancel safety
    /// When the future is dropped another one that waits encodes the frame.
    pub(super) async fn fill<F>(
        &self,
        key: &Key,
        cell: &Cell,
        encode: F,
    ) -> Result<Arc<Encoded>, ApiError>
    where
        F: Future<Output = Result<Encoded, ApiError>>,
    {
        let frame = cell.get_or_try_init(async || {
            let frame = Arc::new(encode.await?);
            let mut inner = self.inner.lock();
            inner.grow(key, cell, frame.body.len());
            self.evict(&mut inner);
            Ok(frame)
        });
        frame.await.cloned()
    }

    fn evict(&self, inner: &mut Inner) {
        while inner.bytes > self.bytes_max && inner.remove_oldest() {}
        self.metrics.cache_bytes.set(inner.bytes as u64);
    }
}

impl Inner {
    fn insert(&mut self, key: Key) -> Cell {
        self.newest += 1;
        let (cell, number) = (Cell::default(), self.newest);
        let entry = Entry { cell: Arc::clone(&cell), number, bytes: ENTRY_BYTES };
        self.bytes += entry.bytes;
        if let Some(replaced) = self.entries.insert(key, entry) {
            self.bytes -= replaced.bytes;
        }
        self.notes.push_back((key, number));
        if self.notes.len() > self.entries.len() * 2 + STALE_NOTES_MAX {
            let entries = &self.entries;
            self.notes.retain(|(key, number)| {
                entries.get(key).is_some_and(|entry| entry.number == *number)
            });
        }
        cell
    }

    fn grow(&mut self, key: &Key, cell: &Cell, bytes: usize) {
        if let Some(entry) = self.entries.get_mut(key)
            && Arc::ptr_eq(&entry.cell, cell)
        {
            entry.bytes += bytes;
            self.bytes += bytes;
        }
    }

    /// Returns whether there was one.
    fn remove_oldest(&mut self) -> bool {
        let Some((key, number)) = self.notes.pop_front() else { return false };
        if self.entries.get(&key).is_some_and(|entry| entry.number == number)
            && let Some(entry) = self.entries.remove(&key)
        {
            self.bytes -= entry.bytes;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use uuid::Uuid;

    use super::*;
    use crate::api::json::records_out::Format;

    fn offset(raw: i64) -> Offset {
        Offset::new(raw).unwrap()
    }

    fn key(from: i64) -> Key {
        Key {
            topic: TopicId::new(Uuid::nil()),
            partition: PartitionId::ZERO,
            from: offset(from),
            until: offset(500),
            records_max: 500,
            bytes_max: 1 << 18,
            style: Style { format: Format::Text, value_bytes_max: usize::MAX },
        }
    }

    fn frame(next: i64, bytes: usize, full: bool) -> Encoded {
        Encoded {
            body: vec![0; bytes].into(),
            records: 1,
            record_bytes: 1,
            next: offset(next),
            gaps: Vec::new(),
            scanned: 1,
            full,
            made: Instant::now(),
        }
    }

    fn cache(bytes_max: usize) -> FrameCache {
        FrameCache::new(bytes_max, WebSocketMetrics::default())
    }

    async fn put(cache: &FrameCache, from: i64, frame: Encoded) -> Arc<Encoded> {
        match cache.look_up(&key(from), offset(0), Instant::now()) {
            Lookup::Miss(cell) => cache.fill(&key(from), &cell, async { Ok(frame) }).await.unwrap(),
            Lookup::Hit(frame) => frame,
        }
    }

    fn has(cache: &FrameCache, from: i64, log_end: i64) -> bool {
        let found = cache.look_up(&key(from), offset(log_end), Instant::now());
        matches!(found, Lookup::Hit(_))
    }

    #[tokio::test]
    async fn a_frame_is_encoded_once_for_all_who_wait_for_it() {
        let cache = cache(1 << 20);
        let encoded = AtomicUsize::new(0);
        let one = async {
            match cache.look_up(&key(0), offset(9), Instant::now()) {
                Lookup::Hit(frame) => frame,
                Lookup::Miss(cell) => {
                    let encode = async {
                        tokio::task::yield_now().await;
                        encoded.fetch_add(1, Ordering::SeqCst);
                        Ok(frame(9, 10, false))
                    };
                    cache.fill(&key(0), &cell, encode).await.unwrap()
                }
            }
        };
        let again = async {
            let Lookup::Miss(cell) = cache.look_up(&key(0), offset(9), Instant::now()) else {
                panic!("nothing is encoded yet");
            };
            let encode = async {
                encoded.fetch_add(1, Ordering::SeqCst);
                Ok(frame(9, 10, false))
            };
            cache.fill(&key(0), &cell, encode).await.unwrap()
        };
        let (one, again) = tokio::join!(one, again);
        assert!(Arc::ptr_eq(&one, &again));
        assert_eq!(encoded.load(Ordering::SeqCst), 1);
        assert!(has(&cache, 0, 9));
    }

    #[tokio::test]
    async fn whoever_waits_takes_over_from_one_who_went_away() {
        let cache = cache(1 << 20);
        let Lookup::Miss(cell) = cache.look_up(&key(0), offset(9), Instant::now()) else {
            panic!("nothing is there");
        };
        let wanted = key(0);
        let never = cache.fill(&wanted, &cell, std::future::pending());
        assert!(futures_util::future::poll_immediate(never).await.is_none());
        assert_eq!(put(&cache, 0, frame(9, 10, true)).await.next, offset(9));
    }

    #[tokio::test]
    async fn memory_is_bounded_and_the_oldest_go_first() {
        let cache = cache(10 * 1024);
        for from in 0..100 {
            put(&cache, from, frame(500, 1024, true)).await;
            assert!(cache.inner.lock().bytes <= 10 * 1024);
        }
        assert!(has(&cache, 99, 500));
        assert!(cache.has(&key(99)) && !cache.has(&key(100)));
        assert!(!has(&cache, 0, 500));
        assert!(cache.inner.lock().entries.len() < 12);
        // A frame that is larger than the cache is delivered and not kept.
        assert_eq!(put(&cache, 1000, frame(500, 20_000, true)).await.body.len(), 20_000);
        assert_eq!(cache.inner.lock().bytes, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_frame_serves_those_at_the_tail_and_not_those_who_come_later() {
        let cache = cache(1 << 20);
        put(&cache, 0, frame(5, 10, false)).await;
        assert!(has(&cache, 0, 5));
        assert!(has(&cache, 0, 7));
        tokio::time::advance(SHORT_FRAME_LIFE).await;
        assert!(has(&cache, 0, 5), "the log has not moved on");
        assert!(!has(&cache, 0, 7));
        put(&cache, 0, frame(500, 10, true)).await;
        tokio::time::advance(SHORT_FRAME_LIFE).await;
        assert!(has(&cache, 0, 1000));
    }

    #[tokio::test(start_paused = true)]
    async fn entries_that_are_replaced_again_and_again_leave_nothing_behind() {
        let cache = cache(1 << 20);
        for _ in 0..10_000 {
            put(&cache, 0, frame(5, 10, false)).await;
            tokio::time::advance(SHORT_FRAME_LIFE).await;
            assert!(!has(&cache, 0, 7));
        }
        let inner = cache.inner.lock();
        assert_eq!(inner.entries.len(), 1);
        assert!(inner.notes.len() <= 2 + STALE_NOTES_MAX);
        assert!(inner.bytes <= ENTRY_BYTES + 10);
    }
}
