//! What can go wrong between a caller and a shard.

use crate::types::ShardId;

/// Why records were not queued. Nothing of them was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnqueueError {
    /// The shard's accumulators are full.
    #[error("the shard's queue is full")]
    Overloaded,
    /// The disk is nearly full.
    #[error("the disk is nearly full")]
    StorageFull,
    /// This node does not lead the shard.
    #[error("the shard has no leader here")]
    NotLeader,
    /// The partition was deleted.
    #[error("the partition was deleted")]
    Deleted,
}

/// Why queued records were not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The partition was deleted before the entry was applied. Surely not written.
    #[error("the partition was deleted")]
    Deleted,
    /// The entry never got a place in the log. Surely not written.
    #[error("the shard has no leader here")]
    NotLeader,
    /// The entry may or may not be applied.
    #[error("the outcome is unknown")]
    OutcomeUnknown,
}

/// Why a change of the shard's partitions was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// This node does not lead the shard. Surely not made.
    #[error("the shard has no leader here")]
    NotLeader,
    /// The change may or may not be made.
    #[error("the outcome is unknown")]
    OutcomeUnknown,
}

/// Why a shard could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its files could not be read.
    #[error("shard {shard}: {source}")]
    Storage {
        /// The shard.
        shard: ShardId,
        /// What the storage layer says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Its group could not start.
    #[error(transparent)]
    Raft(#[from] crate::raft::StartError),
}
