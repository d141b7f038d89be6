//! Checkpoints: what a shard restarts from.
//!
//! A checkpoint names everything that is durable of a shard at one applied index: its partitions'
//! files with their lengths, and what the layers above keep beside them. It is a base file and
//! deltas, so that 10,000 partitions are not written again because one of them grew.
//!
//! Invariants:
//! - every file is written whole under another name, synced, renamed and its directory synced: a
//!   checkpoint is the old one or the new one, never a mixture;
//! - deltas are chained to their base by its number and by the checksum of the file before, so that
//!   a delta of an older base is told from one that is missing;
//! - a file that is there and does not check is an error, never skipped: the Raft log before the
//!   checkpoint may be gone;
//! - the caller syncs what a checkpoint names, and the WAL, before it saves the checkpoint.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use bytes::Bytes;

use crate::storage::log::{PartitionState, StateError};
use crate::types::{Timestamp, TopicPartition};

mod codec;
mod store;
#[cfg(test)]
mod tests;

pub use store::{CheckpointStore, read_all};

pub use crate::types::LogPosition as LogId;

/// Everything that a shard restarts from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ShardCheckpoint {
    /// Last entry that is applied in it, `None` before the first.
    pub applied: Option<LogId>,
    /// The group's membership, opaque here.
    pub membership: Bytes,
    /// The shard's time, which only grows.
    pub shard_time: Timestamp,
    /// What else the shard keeps, opaque here.
    pub extra: Bytes,
    /// Its partitions.
    pub partitions: BTreeMap<TopicPartition, PartitionState>,
}

/// How a checkpoint differs from the one before.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// As in [`ShardCheckpoint`].
    pub applied: Option<LogId>,
    /// As in [`ShardCheckpoint`].
    pub membership: Bytes,
    /// As in [`ShardCheckpoint`].
    pub shard_time: Timestamp,
    /// As in [`ShardCheckpoint`].
    pub extra: Bytes,
    /// Partitions that are new or differ.
    pub changed: BTreeMap<TopicPartition, PartitionState>,
    /// Partitions that are gone.
    pub removed: Vec<TopicPartition>,
}

/// Why a checkpoint could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk is full; the old checkpoint stands. Make room and save again.
    #[error("no space left to write {}", path.display())]
    Full {
        /// What could not be written.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A file operation failed. After a failed save the node has to end.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A file is not what was written. The shard cannot start from this disk.
    #[error("checkpoint {} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: Damage,
    },
    /// An earlier save failed and left the disk in an unknown state.
    #[error("an earlier save of this checkpoint failed")]
    Failed,
}

/// What is wrong with a checkpoint file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It does not start like a checkpoint.
    #[error("it is not a checkpoint")]
    Magic,
    /// Another version of this program wrote it.
    #[error("its version {0} is not known")]
    Version(u8),
    /// Its checksum is wrong.
    #[error("its checksum is wrong")]
    Crc,
    /// It is a base where a delta belongs, or the other way round.
    #[error("it is not of the expected kind")]
    Kind,
    /// It does not follow the file before it.
    #[error("it does not follow the file before it")]
    Chain,
    /// It is missing, and a later one is there.
    #[error("it is missing")]
    Missing,
    /// Its content makes no sense although its checksum is right.
    #[error("its content is wrong: {0}")]
    Content(#[from] StateError),
}

impl ShardCheckpoint {
    /// Changes this checkpoint into the next one.
    pub fn apply(&mut self, changes: Changes) {
        self.applied = changes.applied;
        self.membership = changes.membership;
        self.shard_time = changes.shard_time;
        self.extra = changes.extra;
        for gone in &changes.removed {
            self.partitions.remove(gone);
        }
        self.partitions.extend(changes.changed);
    }
}

impl Error {
    /// Returns whether the disk is full: the caller makes room and saves again.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }
}
