//! What all partitions of a node share: file system, descriptors, the tail cache's budget, poison.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::clock::SharedClock;
use crate::metrics::Histogram;
use crate::storage::fs::{SharedFs, is_exhausted};
use crate::storage::log::Error;
use crate::storage::log::cache::TailCache;
use crate::storage::log::descriptors::Descriptors;
use crate::storage::log::segment::IndexCache;

/// Kafka's default for the size of an index, and the most that is read of one.
pub(super) const INDEX_BYTES_MAX: usize = 10 * 1024 * 1024;

/// What an operator may choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Bytes of recent batches kept in memory over all partitions. What is not yet in a file stays
    /// in memory beyond that.
    pub tail_cache_bytes: usize,
    /// Segment files held open; twice as many while they wait for a checkpoint to sync them. The
    /// files being written or read may exceed it for that time.
    pub open_files: usize,
    /// Bytes of batches between two entries of a segment's indexes (Kafka's
    /// `index.interval.bytes`).
    pub index_interval_bytes: u32,
    /// Bytes at which an index has its segment sealed (Kafka's `segment.index.bytes`).
    pub index_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tail_cache_bytes: 64 * 1024 * 1024,
            open_files: 512,
            index_interval_bytes: 4096,
            index_bytes_max: INDEX_BYTES_MAX,
        }
    }
}

/// What the store counted since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reads answered from the tail in memory.
    pub tail_hits: u64,
    /// Reads that needed a file.
    pub tail_misses: u64,
    /// Bytes that the tails of all partitions hold now.
    pub tail_bytes: u64,
    /// Bytes read from segment files.
    pub bytes_read: u64,
    /// Bytes written to segment files.
    pub bytes_written: u64,
    /// Segment files open now.
    pub files_open: u64,
    /// Damaged ranges found.
    pub damaged_ranges: u64,
    /// Files that should have been removed and could not be.
    pub failed_removals: u64,
}

type PoisonCallback = Box<dyn Fn(&str) + Send + Sync>;

/// What all partitions of a node share.
pub struct Store {
    fs: SharedFs,
    directory: PathBuf,
    config: Config,
    clock: SharedClock,
    timings: Timings,
    pub(super) cache: TailCache,
    pub(super) descriptors: Descriptors,
    pub(super) indexes: IndexCache,
    pub(super) counts: Counts,
    is_poisoned: AtomicBool,
    poison: Mutex<Poison>,
}

/// Where is counted how long the disk takes.
#[derive(Debug, Clone)]
pub struct Timings {
    /// One flush of a partition: its pending batches written through the page cache.
    pub flush: Histogram,
    /// One sync of a segment.
    pub sync: Histogram,
}

impl Default for Timings {
    fn default() -> Self {
        Self { flush: Histogram::seconds(), sync: Histogram::seconds() }
    }
}

#[derive(Default)]
struct Poison {
    reason: Option<Arc<str>>,
    callbacks: Vec<PoisonCallback>,
}

/// The counters that several threads write; each is a sum or a level of its own.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) tail_hits: AtomicU64,
    pub(super) tail_misses: AtomicU64,
    pub(super) bytes_read: AtomicU64,
    pub(super) bytes_written: AtomicU64,
    pub(super) files_open: AtomicUsize,
    pub(super) damaged_ranges: AtomicU64,
    pub(super) failed_removals: AtomicU64,
}

/// Adds to a counter.
pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Store {
    /// Makes the store of the partitions below `directory`, which need not exist yet.
    pub fn new(fs: SharedFs, directory: PathBuf, config: Config, clock: SharedClock) -> Arc<Self> {
        Self::timed(fs, directory, config, clock, Timings::default())
    }

    /// As [`Store::new`], with what the clock measures counted in `timings`.
    pub fn timed(
        fs: SharedFs,
        directory: PathBuf,
        config: Config,
        clock: SharedClock,
        timings: Timings,
    ) -> Arc<Self> {
        Arc::new(Self {
            fs,
            directory,
            config,
            clock,
            timings,
            cache: TailCache::new(config.tail_cache_bytes),
            descriptors: Descriptors::new(config.open_files),
            indexes: IndexCache::default(),
            counts: Counts::default(),
            is_poisoned: AtomicBool::new(false),
            poison: Mutex::default(),
        })
    }

    /// Returns why the store is poisoned, if it is.
    pub fn poisoned(&self) -> Option<Arc<str>> {
        if self.is_poisoned.load(Ordering::Acquire) {
            return self.poison.lock().reason.clone();
        }
        None
    }

    /// Has `callback` called, with the reason, when the store is poisoned; at once if it is. It is
    /// called on the thread that met the error and must not block.
    pub fn on_poison(&self, callback: impl Fn(&str) + Send + Sync + 'static) {
        let mut poison = self.poison.lock();
        match poison.reason.clone() {
            Some(reason) => {
                drop(poison);
                callback(&reason);
            }
            None => poison.callbacks.push(Box::new(callback)),
        }
    }

    /// Has `callback` called when so many open files wait for a sync that the next ones would have
    /// to be synced where they are opened: a checkpoint helps. It must not block.
    pub fn on_descriptor_pressure(&self, callback: impl Fn() + Send + Sync + 'static) {
        self.descriptors.on_pressure(callback);
    }

    /// Returns what was counted so far.
    pub fn counters(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let level = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
        Counters {
            tail_hits: read(&self.counts.tail_hits),
            tail_misses: read(&self.counts.tail_misses),
            tail_bytes: level(self.cache.used_bytes()),
            bytes_read: read(&self.counts.bytes_read),
            bytes_written: read(&self.counts.bytes_written),
            files_open: level(self.counts.files_open.load(Ordering::Relaxed)),
            damaged_ranges: read(&self.counts.damaged_ranges),
            failed_removals: read(&self.counts.failed_removals),
        }
    }

    pub(super) fn fs(&self) -> &SharedFs {
        &self.fs
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// Does something to the disk and counts how long it took.
    pub(super) fn measure<T>(
        &self,
        timing: impl FnOnce(&Timings) -> &Histogram,
        work: impl FnOnce() -> T,
    ) -> T {
        let started = self.clock.monotonic();
        let done = work();
        let took = self.clock.monotonic().saturating_sub(started);
        timing(&self.timings).observe_duration(took);
        done
    }

    /// Refuses when the store is poisoned.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.poisoned().map_or(Ok(()), |reason| Err(Error::Poisoned(reason)))
    }

    /// Turns a failed change into an error: a full disk or a lack of descriptors can be retried,
    /// anything else poisons.
    pub(super) fn write_failed(
        &self,
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    ) -> Error {
        if !is_exhausted(&source) {
            self.poison(&format!("cannot {action} {}: {source}", path.display()));
        }
        Error::io(action, path, source)
    }

    /// Turns a failed sync into an error. It always poisons: the bytes may be lost although they
    /// read back, so no later sync could be believed.
    pub(super) fn sync_failed(&self, path: PathBuf, source: io::Error) -> Error {
        self.poison(&format!("cannot sync {}: {source}", path.display()));
        Error::Io { action: "sync", path, source }
    }

    /// Refuses every further change and has the node end: something that belongs to the segments,
    /// their checkpoint for one, could not be made durable.
    pub fn poison(&self, reason: &str) {
        let callbacks = {
            let mut poison = self.poison.lock();
            if poison.reason.is_some() {
                return;
            }
            poison.reason = Some(reason.into());
            self.is_poisoned.store(true, Ordering::Release);
            std::mem::take(&mut poison.callbacks)
        };
        callbacks.iter().for_each(|callback| callback(reason));
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("directory", &self.directory)
            .field("config", &self.config)
            .field("poisoned", &self.poisoned())
            .finish_non_exhaustive()
    }
}

/// A partition's directory, shared by what lives in it.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) store: Arc<Store>,
    pub(super) id: crate::types::TopicPartition,
    /// Set when the partition is deleted: the directory goes with the last of its files.
    pub(super) is_doomed: AtomicBool,
}

/// A weak handle for lists that must not keep a thing alive.
pub(super) type Listed<T> = Weak<T>;

impl Home {
    pub(super) fn directory(&self) -> PathBuf {
        super::names::partition_dir(&self.store.directory, self.id)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if !self.is_doomed.load(Ordering::Acquire) {
            return;
        }
        // Best effort: a directory that stays is reported as an orphan at the next start. The
        // topic's goes with its last partition, which is why "not empty" is no failure.
        let fs = self.store.fs();
        if fs.remove_dir(&self.directory()).is_ok() {
            let topic = super::names::topic_dir(&self.store.directory, self.id.topic);
            let _ = fs.remove_dir(&topic);
        }
    }
}
