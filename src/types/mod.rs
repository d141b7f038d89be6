//! The words of the domain as types: identifiers, counters, names, limits.
//!
//! Every layer uses this one; it uses none. Values are checked where they enter (`parse`, `new`)
//! and carry their meaning afterwards: an [`Offset`] is never a [`RaftIndex`], an index never a
//! count.
//!
//! Invariants:
//! - an [`Offset`] is never negative; arithmetic on it is checked;
//! - a [`TopicName`] obeys Kafka's name rules, so it needs no escaping in a log line or a URL path;
//! - only this layer, configuration, metadata commands and API DTOs derive serde.

mod counters;
mod group;
mod ids;
pub mod limits;
mod names;
mod principal;
mod time;
mod topic_config;

pub use counters::{LogPosition, Offset, RaftIndex, Term};
pub use group::{Epoch, GroupName, GroupNameError, InstanceId, MemberId};
pub use ids::{ClusterId, NodeId, PartitionId, ReplicaId, ShardId, TopicId, TopicPartition};
pub use names::{NameError, TopicName};
pub use principal::Principal;
pub use time::Timestamp;
pub use topic_config::{ConfigError, TimestampType, TopicConfig};
