//! Partitions' logs: segment files of committed record batches, their indexes, and the tail in
//! memory.
//!
//! ```text
//!   apply -> PartitionLog::append -> tail (memory) + pending -> flush -> <base>.log (page cache)
//!                      publish -> log end, wakes readers         |
//!   LogReader::read <- tail, else file (index, one pread, CRC)   sync_targets -> checkpoint
//! ```
//!
//! Each [`PartitionLog`] has exactly one owner, the storage thread of its shard; any number of
//! [`LogReader`]s read beside it. [`Store`] is what all partitions of a node share: the file
//! system, open descriptors, the budget of the tail cache, the poison.
//!
//! Invariants:
//! - a segment's bytes are Kafka's `.log` format, only ever appended to, and hold committed
//!   batches;
//! - what is not in the file is in the tail, so a reader never waits for a write;
//! - readers see offsets `log start <= o < log end` and nothing beyond, whatever the files hold;
//! - what comes from disk is checked by CRC; a damaged range is never served and never skipped
//!   silently;
//! - a failed write or sync poisons the store, except a full disk at a write, which can be retried;
//! - a file goes only when a durable checkpoint no longer names it and nobody has pinned it.
//!
//! Deliberately absent: threads, time (a [`Clock`](crate::clock::Clock) only measures flushes and
//! syncs), Raft, topic names, and the decision when to flush, to sync or to apply retention.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::record;
use crate::storage::fs::is_exhausted;
use crate::types::limits::MESSAGE_BYTES_MAX_CEILING;
use crate::types::{Offset, TopicPartition};

mod cache;
mod damage;
mod descriptors;
mod disk;
mod index;
mod names;
mod orphans;
mod partition;
mod reader;
mod recovery;
mod removal;
mod retention;
mod scan;
mod segment;
mod state;
mod store;
mod sync;
#[cfg(test)]
mod tests;
mod view;
mod waiters;

pub use damage::DamagedRange;
pub(super) use index::OffsetEntries;
pub(super) use names::{FileKind, SegmentName, parse_partition, partition_dir};
pub use orphans::Orphan;
pub use partition::{Appended, PartitionLog};
pub use reader::{Chunk, LogReader};
pub(super) use recovery::checksum;
pub use removal::{Pinned, PinnedFile, Removed};
pub(super) use scan::{ScanError, Scanned, Scanner};
pub use state::{PartitionState, SegmentState, StateError};
pub(super) use state::{put_bytes, take_bytes};
pub use store::{Config, Counters, Store, Timings};
pub use sync::{SyncTarget, dedup, sync_all};
pub use waiters::Registration;

/// Largest batch that is stored, so that a damaged length in a file allocates no more.
const BATCH_BYTES_MAX: usize = MESSAGE_BYTES_MAX_CEILING as usize;

/// Why a partition's log could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk is full, or there are no descriptors left. Nothing is lost and nothing is poisoned:
    /// make room and call again.
    #[error("no room or descriptor left for {}", path.display())]
    Full {
        /// What could not be written or opened.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A file operation failed. Where it was a write or a sync, the store is poisoned.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// An earlier write or sync failed; the node has to end.
    #[error("the segment store is poisoned: {0}")]
    Poisoned(Arc<str>),
    /// The batch's bytes are not a record batch.
    #[error("not a record batch")]
    Batch(#[from] record::Error),
    /// The partition has used up its 2^63 offsets.
    #[error("partition {0} has no offsets left")]
    OffsetsExhausted(TopicPartition),
    /// A checkpoint's description of the partition contradicts itself.
    #[error("recorded state of partition {partition} is wrong: {reason}")]
    State {
        /// The partition.
        partition: TopicPartition,
        /// What is wrong with it.
        reason: StateError,
    },
}

impl Error {
    /// Returns whether the disk is full, or no descriptor is left: the caller makes room and tries
    /// again.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }

    fn io(action: &'static str, path: PathBuf, source: io::Error) -> Self {
        if is_exhausted(&source) {
            Self::Full { path, source }
        } else {
            Self::Io { action, path, source }
        }
    }
}

/// Why a read returned no batches.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The offset is not in `start..=end`.
    #[error("offset is out of range: the log has {start} to {end}")]
    OutOfRange {
        /// The log start offset.
        start: Offset,
        /// The log end offset.
        end: Offset,
    },
    /// The offset lies in a range that cannot be read from this disk.
    #[error("offsets {from} to before {to} are damaged")]
    Damaged {
        /// First damaged offset.
        from: Offset,
        /// First good offset after it.
        to: Offset,
    },
    /// The partition was deleted.
    #[error("the partition was deleted")]
    Deleted,
    /// A file could not be read.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
}
