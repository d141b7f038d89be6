//! The metadata as a value: what all applied commands add up to.
//!
//! Invariants (checked again by [`Image::decode`]):
//! - names are unique, also when `.` and `_` are taken for one; a topic that is being deleted keeps
//!   its name but cannot be found by it;
//! - every partition of a topic is on a data shard that has the topic's replication factor;
//! - every replica's node is registered, and no replica id was ever issued twice.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::metadata::ConsumerGroup;
use crate::metadata::cow_map::CowMap;
use crate::types::{
    ClusterId, GroupName, LogPosition, NodeId, PartitionId, Principal, RaftIndex, ReplicaId,
    ShardId, Timestamp, TopicConfig, TopicId, TopicName,
};

/// Bounds of the image. They are part of what `apply` computes: a new value is a new format.
pub mod limits {
    /// Things that the image remembers in its history.
    pub const HISTORY_LEN_MAX: usize = 1_000;

    /// Partitions that one topic can have at most, whatever is configured.
    pub const TOPIC_PARTITIONS_CEILING: u32 = 1_000_000;
}

/// A server process of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Where it can be reached.
    pub url: String,
    /// When it first registered.
    pub registered_at: Timestamp,
}

/// One copy of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replica {
    /// Its id in the shard's Raft group, never issued twice.
    pub replica: ReplicaId,
    /// The node that holds it.
    pub node: NodeId,
}

/// A Raft group and where its replicas are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Its id; shard 0 is the metadata shard and holds no partitions.
    pub id: ShardId,
    /// Copies of each of its partitions.
    pub replication_factor: u16,
    /// Its replicas, each on another node.
    pub replicas: Vec<Replica>,
}

/// How far a topic's creation or deletion has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TopicState {
    /// Not all shards have its partitions yet.
    Creating,
    /// It can be written and read.
    Active,
    /// It is hidden, and its shards are dropping its partitions.
    Deleting,
}

impl TopicState {
    /// Returns the state's name as it stands in the SQL view.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Active => "active",
            Self::Deleting => "deleting",
        }
    }
}

/// A topic and where its partitions are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topic {
    /// Its identity.
    pub id: TopicId,
    /// Its name.
    pub name: TopicName,
    /// The shard of each partition, in order.
    pub partitions: Arc<[ShardId]>,
    /// Copies of each partition.
    pub replication_factor: u16,
    /// The configs that are set.
    pub config: TopicConfig,
    /// When it was created, by the proposer's clock.
    pub created_at: Timestamp,
    /// How far its creation or deletion has come.
    pub state: TopicState,
    /// The last command that touched it. Shards refuse commands about it that are older.
    pub changed: LogPosition,
}

impl Topic {
    /// Returns the shard of a partition.
    pub fn shard_of(&self, partition: PartitionId) -> Option<ShardId> {
        self.partitions.get(partition.index()).copied()
    }

    /// Lists the shards that hold partitions of the topic, each once, with their partitions.
    pub fn by_shard(&self) -> BTreeMap<ShardId, Vec<PartitionId>> {
        let mut shards: BTreeMap<ShardId, Vec<PartitionId>> = BTreeMap::new();
        let count = u32::try_from(self.partitions.len()).unwrap_or(u32::MAX);
        for (partition, shard) in PartitionId::all(count).zip(self.partitions.iter()) {
            shards.entry(*shard).or_default().push(partition);
        }
        shards
    }

    /// Returns whether clients may write and read it.
    pub fn is_active(&self) -> bool {
        self.state == TopicState::Active
    }

    /// Returns whether clients may find the topic by its name.
    pub fn is_visible(&self) -> bool {
        self.state != TopicState::Deleting
    }
}

/// What happened to a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HistoryEvent {
    /// It was created.
    TopicCreated,
    /// Its deletion began.
    TopicDeleted,
}

impl HistoryEvent {
    /// Returns the event's name as it stands in the SQL view.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TopicCreated => "topic_created",
            Self::TopicDeleted => "topic_deleted",
        }
    }
}

/// Something to be remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistoryEntry {
    /// Index of the command that did it; there is one entry of each at most.
    pub index: RaftIndex,
    /// When, by the proposer's clock.
    pub at: Timestamp,
    /// What happened.
    pub event: HistoryEvent,
    /// To which topic.
    pub topic_id: TopicId,
    /// The topic's name.
    pub name: TopicName,
    /// Who asked for it.
    pub principal: Principal,
}

/// The metadata after some command. Clones are cheap: they share everything that did not change.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Image {
    pub(in crate::metadata) cluster: Option<ClusterId>,
    pub(in crate::metadata) changed: LogPosition,
    pub(in crate::metadata) next_replica: u64,
    pub(in crate::metadata) nodes: BTreeMap<NodeId, Arc<Node>>,
    pub(in crate::metadata) shards: BTreeMap<ShardId, Arc<Shard>>,
    /// Partitions on each data shard, those of topics that are being deleted included.
    pub(in crate::metadata) partitions_on: BTreeMap<ShardId, u64>,
    pub(in crate::metadata) topics: CowMap<TopicId, Arc<Topic>>,
    names: CowMap<TopicName, Arc<Topic>>,
    folded_names: CowMap<Arc<str>, TopicId>,
    pub(in crate::metadata) history: CowMap<RaftIndex, Arc<HistoryEntry>>,
    pub(in crate::metadata) groups: CowMap<GroupName, Arc<ConsumerGroup>>,
}

impl Image {
    /// Returns the cluster's identity, `None` before the bootstrap.
    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.cluster
    }

    /// Returns the position of the last command that changed anything but consumer groups, which
    /// are not part of the SQL view.
    pub fn changed(&self) -> LogPosition {
        self.changed
    }

    /// Finds a node.
    pub fn node(&self, id: NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(&id)
    }

    /// Lists the nodes by id.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// Finds a shard.
    pub fn shard(&self, id: ShardId) -> Option<&Arc<Shard>> {
        self.shards.get(&id)
    }

    /// Lists the shards by id, the metadata shard first.
    pub fn shards(&self) -> impl ExactSizeIterator<Item = &Arc<Shard>> {
        self.shards.values()
    }

    /// Returns the first shard id that is not in use.
    pub fn next_shard(&self) -> ShardId {
        let last = self.shards.last_key_value();
        ShardId::new(last.map_or(0, |(id, _)| id.get().saturating_add(1)))
    }

    /// Returns the first replica id that was never issued.
    pub fn next_replica(&self) -> ReplicaId {
        ReplicaId::new(self.next_replica)
    }

    /// Counts the partitions on a shard, those of topics that are being deleted included.
    pub fn partitions_on(&self, shard: ShardId) -> u64 {
        self.partitions_on.get(&shard).copied().unwrap_or(0)
    }

    /// Finds a topic that clients may see, being created or active.
    pub fn topic_by_name(&self, name: &str) -> Option<&Arc<Topic>> {
        self.names.get(name).filter(|topic| topic.is_visible())
    }

    /// Finds a topic in whatever state.
    pub fn topic(&self, id: TopicId) -> Option<&Arc<Topic>> {
        self.topics.get(&id)
    }

    /// Lists all topics in whatever state, by id.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.topics.iter().map(|(_, topic)| topic)
    }

    /// Counts the topics in whatever state.
    pub fn topics_len(&self) -> usize {
        self.topics.len()
    }

    /// Lists visible topics by name: those that start with `prefix`, after the name `after`; at
    /// most `limit`.
    pub fn topics_from<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> impl Iterator<Item = &'a Arc<Topic>> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.names
            .iter_from(start)
            .take_while(move |(name, _)| name.as_str().starts_with(prefix))
            .map(|(_, topic)| topic)
            .filter(|topic| topic.is_visible())
            .take(limit)
    }

    /// Lists what is remembered, oldest first, at most [`limits::HISTORY_LEN_MAX`] entries.
    pub fn history(&self) -> impl DoubleEndedIterator<Item = &Arc<HistoryEntry>> {
        self.history.iter().map(|(_, entry)| entry)
    }

    /// Finds the topic, in whatever state, that stands in the way of a new one with this name: it
    /// has the name, or one that differs only by `.` and `_`.
    pub fn topic_in_the_way(&self, name: &TopicName) -> Option<&Arc<Topic>> {
        self.topics.get(self.folded_names.get(name.collision_key().as_str())?)
    }

    /// Adds a topic or replaces the one with its id, which has the same name and partitions.
    pub(in crate::metadata) fn put_topic(&mut self, topic: Arc<Topic>) {
        if self.topics.insert(topic.id, Arc::clone(&topic)).is_none() {
            for shard in topic.partitions.iter() {
                *self.partitions_on.entry(*shard).or_default() += 1;
            }
            self.folded_names.insert(topic.name.collision_key().into(), topic.id);
        }
        self.names.insert(topic.name.clone(), topic);
    }

    /// Removes a topic and frees its name.
    pub(in crate::metadata) fn remove_topic(&mut self, topic: &Topic) {
        self.topics.remove(&topic.id);
        self.names.remove(&topic.name);
        self.folded_names.remove(topic.name.collision_key().as_str());
        for shard in topic.partitions.iter() {
            if let Some(count) = self.partitions_on.get_mut(shard) {
                *count = count.saturating_sub(1);
            }
        }
    }

    /// Adds a shard and takes note of the replica ids that it uses up.
    pub(in crate::metadata) fn put_shard(&mut self, shard: Arc<Shard>) {
        for replica in &shard.replicas {
            let next = replica.replica.get().saturating_add(1);
            self.next_replica = self.next_replica.max(next);
        }
        if shard.id != ShardId::METADATA {
            self.partitions_on.entry(shard.id).or_default();
        }
        self.shards.insert(shard.id, shard);
    }
}
