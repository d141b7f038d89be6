//! What can go wrong, one enum per operation, so that each face maps every case and no other.
//!
//! Each answers two questions: may the client send the same again ([`is_retriable`]), and may the
//! first attempt have been applied all the same ([`may_have_applied`]).
//!
//! [`is_retriable`]: AppendError::is_retriable
//! [`may_have_applied`]: AppendError::may_have_applied

use crate::types::{NameError, Offset, PartitionId, TopicName};

/// Why a topic could not be created, shown or deleted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// No topic has this name (or none that the caller may know of).
    #[error("topic '{0}' does not exist")]
    NotFound(String),
    /// The topic exists and differs from what was asked for.
    #[error("topic '{name}' exists with other values: {difference}")]
    Exists {
        /// The topic.
        name: TopicName,
        /// Which values differ.
        difference: String,
    },
    /// The name breaks a rule.
    #[error("'{name}' is not a topic name: {source}")]
    InvalidName {
        /// What was given.
        name: String,
        /// The rule.
        source: NameError,
    },
    /// The name differs from an existing one only by `.` and `_`.
    #[error(
        "'{name}' collides with the existing topic '{other}' ('.' and '_' are one in metric names)"
    )]
    NameCollides {
        /// What was given.
        name: TopicName,
        /// The topic that has the name's other spelling.
        other: TopicName,
    },
    /// A partition count, replication factor or config value is not acceptable.
    #[error("{0}")]
    InvalidConfig(String),
    /// Nothing was changed; the metadata or a shard has no leader now, or not enough nodes.
    #[error("{0}")]
    Unavailable(String),
    /// The disk is nearly full; nothing was changed.
    #[error("the disk is nearly full")]
    StorageFull,
    /// The change may or may not have happened.
    #[error("the outcome is unknown: {0}")]
    OutcomeUnknown(String),
}

impl TopicError {
    /// Whether the same request may succeed later.
    pub fn is_retriable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::StorageFull | Self::OutcomeUnknown(_))
    }

    /// Whether the request may have taken effect although it failed.
    pub fn may_have_applied(&self) -> bool {
        matches!(self, Self::OutcomeUnknown(_))
    }
}

/// Why a produce request was refused as a whole. Nothing of it was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProduceError {
    /// The topic does not exist and was not created, or creating it failed.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The topic has no such partition.
    #[error("topic '{topic}' has no partition {partition}")]
    PartitionNotFound {
        /// The topic.
        topic: TopicName,
        /// What was asked for.
        partition: u32,
    },
    /// Some records are not acceptable; each fault names its record.
    #[error("{} records are not acceptable", .0.len())]
    Records(Vec<crate::broker::RecordFault>),
    /// A bounded queue is full.
    #[error("too much is waiting to be written")]
    Overloaded,
    /// The disk is nearly full.
    #[error("the disk is nearly full")]
    StorageFull,
    /// A partition has no leader that could take the records now.
    #[error("{0}")]
    Unavailable(String),
}

/// Why an append that was queued failed, for all records of one partition of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The topic or partition was deleted before the append was applied. Not written.
    #[error("the topic was deleted")]
    Deleted,
    /// The shard lost its leader before the append got a place in the log. Not written.
    #[error("the partition has no leader")]
    Unavailable,
    /// A bounded queue is full. Not written.
    #[error("too much is waiting to be written")]
    Overloaded,
    /// The disk is nearly full. Not written.
    #[error("the disk is nearly full")]
    StorageFull,
    /// Leader lost or deadline passed after the append got a place in the log: it may still commit.
    #[error("the outcome is unknown: the records may have been written")]
    OutcomeUnknown,
}

impl AppendError {
    /// Whether the same request may succeed later.
    pub fn is_retriable(self) -> bool {
        !matches!(self, Self::Deleted)
    }

    /// Whether the records may have been written although this is an error.
    pub fn may_have_applied(self) -> bool {
        matches!(self, Self::OutcomeUnknown)
    }
}

/// Why records could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The topic was deleted (and perhaps created again) since the handle or cursor was made.
    #[error("the topic was deleted")]
    TopicDeleted,
    /// The topic has no such partition.
    #[error("topic '{topic}' has no partition {partition}")]
    PartitionNotFound {
        /// The topic.
        topic: TopicName,
        /// What was asked for.
        partition: PartitionId,
    },
    /// An explicit offset lies outside of the log.
    #[error("offset {offset} of partition {partition} is outside of {log_start}..={log_end}")]
    OffsetOutOfRange {
        /// The partition.
        partition: PartitionId,
        /// What was asked for.
        offset: Offset,
        /// First readable offset.
        log_start: Offset,
        /// Offset that the next record gets.
        log_end: Offset,
    },
    /// The bytes on disk fail their checksum and no other replica could answer.
    #[error("partition {partition} is damaged at offset {from}, next good offset {to}")]
    Damaged {
        /// The partition.
        partition: PartitionId,
        /// First damaged offset.
        from: Offset,
        /// First good offset after the damage.
        to: Offset,
    },
    /// The partition cannot be read now.
    #[error("{0}")]
    Unavailable(String),
    /// A bug or an I/O error; details are in the server's log.
    #[error("{0}")]
    Internal(String),
}
