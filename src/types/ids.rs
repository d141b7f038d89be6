//! Identifiers: who or what a value names. None of them is a number to calculate with.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Declares a numeric identifier: private field, `new`, `get`, `Display`, serde as the number.
macro_rules! numeric_id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name($inner);

        impl $name {
            /// Wraps the raw number.
            pub const fn new(raw: $inner) -> Self {
                Self(raw)
            }

            /// Returns the raw number, for encoding and display only.
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

numeric_id! {
    /// One server process. The REST Proxy faces call it *broker*.
    NodeId(u64)
}
numeric_id! {
    /// One Raft group that replicates the partitions placed on it; shard 0 is the metadata shard.
    ShardId(u32)
}
numeric_id! {
    /// One replica of one shard, for ever: issued by the metadata shard and never reused, so that
    /// a replica which lost its disk cannot be mistaken for the one that voted before.
    ReplicaId(u64)
}

impl ShardId {
    /// The shard whose log is the cluster's metadata.
    pub const METADATA: Self = Self(0);
}

/// A partition's number within its topic, `0..2^31`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartitionId(u32);

impl Default for PartitionId {
    fn default() -> Self {
        Self::ZERO
    }
}

impl PartitionId {
    /// Wraps a partition number; numbers from 2^31 on do not exist in Kafka's formats.
    pub const fn new(raw: u32) -> Option<Self> {
        if raw <= i32::MAX as u32 { Some(Self(raw)) } else { None }
    }

    /// The first partition, which every topic has.
    pub const ZERO: Self = Self(0);

    /// Returns the number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Returns the number as a position in a list of partitions.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Lists the partitions `0..count`.
    pub fn all(count: u32) -> impl ExactSizeIterator<Item = Self> + Clone {
        (0..count.min(i32::MAX as u32)).map(Self)
    }
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PartitionId({})", self.0)
    }
}

/// A topic's identity (UUIDv7). A topic that is deleted and created again gets another one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TopicId(Uuid);

impl TopicId {
    /// Wraps a UUID.
    pub const fn new(raw: Uuid) -> Self {
        Self(raw)
    }

    /// Rebuilds the id from its 16 bytes (RFC 9562 order).
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// Returns the 16 bytes (RFC 9562 order).
    pub const fn to_bytes(self) -> [u8; 16] {
        *self.0.as_bytes()
    }

    /// Returns the UUID.
    pub const fn uuid(self) -> Uuid {
        self.0
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TopicId({})", self.0)
    }
}

impl FromStr for TopicId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(text).map(Self)
    }
}

/// The identity of a cluster, made once at its first start.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(Uuid);

impl ClusterId {
    /// Wraps a UUID.
    pub const fn new(raw: Uuid) -> Self {
        Self(raw)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({})", self.0)
    }
}

/// One partition of one topic, by identity and not by name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct TopicPartition {
    /// The topic.
    pub topic: TopicId,
    /// The partition within it.
    pub partition: PartitionId,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partition_numbers_end_where_kafkas_do() {
        assert_eq!(PartitionId::new(0), Some(PartitionId::ZERO));
        assert!(PartitionId::new(i32::MAX as u32).is_some());
        assert!(PartitionId::new(i32::MAX as u32 + 1).is_none());
    }

    #[test]
    fn topic_id_survives_text_and_bytes() {
        let id = TopicId::new(Uuid::now_v7());
        assert_eq!(id.to_string().parse::<TopicId>().unwrap(), id);
        assert_eq!(TopicId::from_bytes(id.to_bytes()), id);
    }
}
