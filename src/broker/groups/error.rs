//! What can go wrong with groups.

use crate::broker::{ReadError, TopicError};
use crate::types::{GroupNameError, MemberId, PartitionId, TopicName};

/// Why a call about a group failed. Nothing was changed unless it is `OutcomeUnknown`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// The name breaks a rule.
    #[error("'{name}' is not a {what}: {source}")]
    InvalidName {
        /// What was given.
        name: String,
        /// What it should have been: a group name, an instance id.
        what: &'static str,
        /// The rule.
        source: GroupNameError,
    },
    /// No group has this name.
    #[error("group '{0}' does not exist")]
    NotFound(String),
    /// The group has members, and what was asked for would pull the offsets from under them.
    #[error("group '{group}' has {members} members")]
    NotEmpty {
        /// The group.
        group: String,
        /// How many members it has.
        members: usize,
    },
    /// The member is not in the group any more, the epoch is another one, or the partition belongs
    /// to another member: what was read with it is read again elsewhere. Join again.
    #[error("member '{member}' is stale: {detail}")]
    StaleMember {
        /// The member.
        member: MemberId,
        /// What does not fit.
        detail: String,
    },
    /// A topic that was named does not exist, or cannot be read now.
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
    /// What was asked for makes no sense: a pattern that does not compile, an empty list.
    #[error("{0}")]
    Invalid(String),
    /// Something is larger than its limit.
    #[error("{what} is {value}, the limit is {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// How large it is.
        value: usize,
        /// How large it may be.
        limit: usize,
    },
    /// The group has no usable offset of the partition, and the member asked for an error then.
    #[error("no offset of partition {partition} of topic '{topic}' is committed that can be read")]
    NoOffset {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: PartitionId,
    },
    /// A partition could not be looked at.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A bounded queue is full.
    #[error("too many commits are waiting")]
    Overloaded,
    /// The disk is nearly full.
    #[error("the disk is nearly full")]
    StorageFull,
    /// There is no coordinator now.
    #[error("{0}")]
    Unavailable(String),
    /// The change may or may not have been made.
    #[error("the outcome is unknown: {0}")]
    OutcomeUnknown(String),
}

impl GroupError {
    /// Whether the same request may succeed later.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Topic(error) => error.is_retriable(),
            Self::Read(error) => matches!(error, ReadError::Unavailable(_)),
            Self::Overloaded
            | Self::StorageFull
            | Self::Unavailable(_)
            | Self::OutcomeUnknown(_) => true,
            Self::InvalidName { .. }
            | Self::NotFound(_)
            | Self::NotEmpty { .. }
            | Self::StaleMember { .. }
            | Self::PartitionNotFound { .. }
            | Self::Invalid(_)
            | Self::TooLarge { .. }
            | Self::NoOffset { .. } => false,
        }
    }

    /// Whether the request may have taken effect although it failed.
    pub fn may_have_applied(&self) -> bool {
        matches!(self, Self::OutcomeUnknown(_))
    }
}
