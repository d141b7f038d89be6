//! A partition as its writers and readers see it, with the accumulator that merges small requests.
//!
//! Records are encoded into the partition's open batch right where they arrive, under one short
//! lock a request and partition. The proposer takes whole batches; checksums are made outside the
//! lock.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::record::{BatchBuilder, NewRecord};
use crate::shard::error::EnqueueError;
use crate::shard::pending::{Pending, Waiter};
use crate::shard::proposer::Proposer;
use crate::storage::log::LogReader;
use crate::types::{TopicConfig, TopicPartition};

/// Records of one request for one partition, which get consecutive offsets in one batch.
#[derive(Debug)]
pub struct Group<'a, I> {
    /// The records, encoded at most `bytes` long together.
    pub records: I,
    /// Upper bound of their encoded length.
    pub bytes: usize,
    /// The request that waits for them.
    pub pending: &'a Arc<Pending>,
    /// Which of the request's groups this is.
    pub group: u32,
}

/// One partition on this node. Shared by everyone who writes to it or reads from it.
pub struct Partition {
    id: TopicPartition,
    reader: LogReader,
    proposer: Arc<Proposer>,
    config: ArcSwap<TopicConfig>,
    deleted: AtomicBool,
    /// Guards encoding only; never held across an await or a system call.
    open: Mutex<Accumulator>,
}

impl fmt::Debug for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Partition({})", self.id)
    }
}

/// Batches that wait for the proposer. Bounded by the shard's `queued_bytes`.
#[derive(Default)]
struct Accumulator {
    /// Batches that had no room for another request, oldest first.
    full: VecDeque<OpenBatch>,
    open: Option<OpenBatch>,
    /// Whether the partition is on the proposer's dirty list.
    listed: bool,
    /// Size of the batches taken lately, in bytes: the next one is likely to be as large.
    usual_bytes: usize,
}

/// A batch that may still grow, and who waits for it.
pub(crate) struct OpenBatch {
    pub(crate) builder: BatchBuilder,
    pub(crate) waiters: Vec<Waiter>,
    /// What the proposer has counted of this batch as queued.
    pub(crate) counted_bytes: usize,
}

impl Partition {
    pub(crate) fn new(
        id: TopicPartition,
        reader: LogReader,
        proposer: Arc<Proposer>,
        config: TopicConfig,
    ) -> Self {
        Self {
            id,
            reader,
            proposer,
            config: ArcSwap::from_pointee(config),
            deleted: AtomicBool::new(false),
            open: Mutex::new(Accumulator::default()),
        }
    }

    /// Returns which partition this is.
    pub fn id(&self) -> TopicPartition {
        self.id
    }

    /// Returns the reader of its log.
    pub fn reader(&self) -> &LogReader {
        &self.reader
    }

    /// Returns the topic's configuration, as this shard applied it.
    pub fn config(&self) -> Arc<TopicConfig> {
        self.config.load_full()
    }

    /// Returns whether the partition was deleted.
    pub fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Acquire)
    }

    pub(crate) fn set_config(&self, config: TopicConfig) {
        self.config.store(Arc::new(config));
    }

    pub(crate) fn set_deleted(&self) {
        self.deleted.store(true, Ordering::Release);
    }

    /// Checks that the partition takes records now, before a request queues its first group.
    ///
    /// # Errors
    /// [`EnqueueError`]; a group of the same request that is queued at once is then accepted too,
    /// unless the partition is deleted in between.
    pub fn check_open(&self) -> Result<(), EnqueueError> {
        if self.is_deleted() {
            return Err(EnqueueError::Deleted);
        }
        self.proposer.check_open()
    }

    /// Encodes the records of a group into the open batch and wakes the proposer. The group's
    /// outcome reaches its [`Pending`].
    pub fn enqueue<'r, 'h: 'r, I>(self: &Arc<Self>, group: Group<'_, I>)
    where
        I: Iterator<Item = NewRecord<'r>>,
    {
        let (batch_bytes_max, _) = self.config.load().batch_limit();
        let batch_bytes_max = usize::try_from(batch_bytes_max).unwrap_or(usize::MAX);
        let newly_listed = {
            let mut accumulator = self.open.lock();
            let mut open = accumulator.open_batch(group.bytes, batch_bytes_max);
            let before = open.counted_bytes;
            let mut first = None;
            for record in group.records {
                match open.builder.push(&record) {
                    Ok(delta) => first = first.or(Some(delta)),
                    // Sizes were checked before; a batch that overflows all the same is refused
                    // by dropping the waiter below, which says "unknown".
                    Err(_) => break,
                }
            }
            open.counted_bytes = open.builder.bytes();
            // Under the lock, so that nobody can take the batch out before it is counted in.
            self.proposer.count_in(open.counted_bytes.saturating_sub(before));
            let waiter = Waiter::new(Arc::clone(group.pending), group.group, first.unwrap_or(0));
            open.waiters.push(waiter);
            accumulator.open = Some(open);
            !std::mem::replace(&mut accumulator.listed, true)
        };
        if newly_listed {
            self.proposer.list(Arc::clone(self));
        }
    }

    /// Takes batches, oldest first, until `bytes_max` is reached; at least one if there is any.
    /// Returns whether batches are left.
    pub(crate) fn take_batches(&self, bytes_max: usize, taken: &mut Vec<OpenBatch>) -> bool {
        let mut accumulator = self.open.lock();
        let mut bytes = 0;
        while bytes < bytes_max
            && let Some(batch) = accumulator.full.pop_front()
        {
            bytes += batch.builder.bytes();
            taken.push(batch);
        }
        if bytes < bytes_max
            && let Some(batch) = accumulator.open.take()
        {
            // A batch that outgrows its buffer is copied, so this falls more slowly than it rises.
            let (bytes, before) = (batch.builder.bytes(), accumulator.usual_bytes);
            accumulator.usual_bytes = bytes.max(bytes / 2 + before / 2);
            taken.push(batch);
        }
        accumulator.listed = !accumulator.full.is_empty() || accumulator.open.is_some();
        accumulator.listed
    }
}

impl Accumulator {
    /// Returns the batch that takes a group of `bytes`: the open one if it has room, else a new
    /// one.
    fn open_batch(&mut self, bytes: usize, bytes_max: usize) -> OpenBatch {
        match self.open.take() {
            Some(open) if open.builder.bytes().saturating_add(bytes) <= bytes_max => open,
            full => {
                self.full.extend(full);
                let likely = self.usual_bytes.saturating_add(self.usual_bytes / 4);
                let capacity = bytes.max(likely).min(bytes_max.max(bytes)).saturating_add(128);
                OpenBatch {
                    builder: BatchBuilder::new(capacity),
                    waiters: Vec::new(),
                    counted_bytes: 0,
                }
            }
        }
    }
}
