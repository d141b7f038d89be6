//! What can go wrong between a proposer and its group.

use crate::types::{NodeId, ShardId};

/// Why a group could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings contradict each other.
    #[error("raft settings of shard {shard}: {detail}")]
    Config {
        /// The shard.
        shard: ShardId,
        /// What is wrong.
        detail: String,
    },
    /// The log or the state machine could not be opened, or contradict each other.
    #[error("shard {shard} could not start: {detail}")]
    Storage {
        /// The shard.
        shard: ShardId,
        /// What is wrong.
        detail: String,
    },
}

/// Why a command was not applied. Only [`ProposeError::NotLeader`] is *surely not applied*.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Another node leads the shard, or none: the command never got a place in the log.
    #[error("this node does not lead the shard")]
    NotLeader {
        /// The node that leads, if it is known.
        leader: Option<NodeId>,
    },
    /// The command may or may not be applied: the leader changed or the group stopped.
    #[error("the outcome of the command is unknown")]
    OutcomeUnknown,
}
