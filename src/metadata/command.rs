//! What may be asked of the metadata shard, and the bytes of it in the Raft log.
//!
//! A command carries everything that [`apply`](crate::metadata::apply) needs, times and identities
//! included. Bytes: one version byte (1), then JSON. Unknown members are refused: a replica that
//! ignored what another one understands would compute another image.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::metadata::{ChangeGroup, Commit, DeleteOffsets, Error, ExpireOffsets, Replica};
use crate::types::{
    ClusterId, GroupName, NodeId, Principal, ShardId, Timestamp, TopicConfig, TopicId, TopicName,
};

/// The version of the JSON that follows it.
const VERSION: u8 = 1;

/// A change of the metadata, as it stands in the Raft log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Founds the cluster.
    Bootstrap(Bootstrap),
    /// Adds a node or changes its address.
    RegisterNode(RegisterNode),
    /// Adds shards.
    AddShards(AddShards),
    /// Adds a topic and places its partitions.
    CreateTopic(CreateTopic),
    /// Reports that every shard has applied the topic's creation.
    TopicReady {
        /// The topic.
        topic_id: TopicId,
    },
    /// Replaces a topic's configuration.
    AlterTopicConfig(AlterTopicConfig),
    /// Hides a topic. Its name stays taken until [`Command::FinishDeleteTopic`].
    DeleteTopic(DeleteTopic),
    /// Reports that every shard has applied the topic's deletion; frees its name.
    FinishDeleteTopic {
        /// The topic.
        topic_id: TopicId,
    },
    /// Something happens to a consumer group's members.
    ChangeGroup(ChangeGroup),
    /// Commits offsets of many clients.
    CommitOffsets {
        /// Each is taken or refused by itself.
        commits: Vec<Commit>,
    },
    /// Deletes an empty consumer group with its offsets.
    DeleteGroup {
        /// The group.
        group: GroupName,
    },
    /// Deletes committed offsets.
    DeleteOffsets(DeleteOffsets),
    /// Forgets committed offsets and groups that were left alone for too long.
    ExpireOffsets(ExpireOffsets),
}

impl Command {
    /// Returns whether the command may change who reads what: topics and groups, not offsets.
    pub(in crate::metadata) fn concerns_members(&self) -> bool {
        !matches!(self, Self::CommitOffsets { .. })
    }
}

/// Founds the cluster with its first node and shards. Accepted once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bootstrap {
    /// The cluster's identity.
    pub cluster_id: ClusterId,
    /// The founding node.
    pub node: NodeId,
    /// Where it can be reached.
    pub url: String,
    /// The first shards, the metadata shard among them.
    pub shards: Vec<NewShard>,
    /// When, by the proposer's clock.
    pub at: Timestamp,
}

/// Adds a node or changes its address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterNode {
    /// The node.
    pub node: NodeId,
    /// Where it can be reached.
    pub url: String,
    /// When, by the proposer's clock.
    pub at: Timestamp,
}

/// Adds shards on registered nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddShards {
    /// The shards.
    pub shards: Vec<NewShard>,
    /// When, by the proposer's clock.
    pub at: Timestamp,
}

/// A shard to be added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewShard {
    /// Its id, not in use.
    pub shard: ShardId,
    /// Copies of each of its partitions, which is the number of `replicas`.
    pub replication_factor: u16,
    /// Its replicas, each on another node, under ids never issued before.
    pub replicas: Vec<Replica>,
}

/// Adds a topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateTopic {
    /// Its identity, never used before.
    pub topic_id: TopicId,
    /// Its name.
    pub name: TopicName,
    /// Number of partitions, from 1.
    pub partitions: u32,
    /// Copies of each partition; shards with this factor must exist.
    pub replication_factor: u16,
    /// The configs that are set.
    pub config: TopicConfig,
    /// When, by the proposer's clock.
    pub created_at: Timestamp,
    /// Who asked for it.
    pub principal: Principal,
}

/// Replaces a topic's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlterTopicConfig {
    /// The topic.
    pub topic_id: TopicId,
    /// All configs that are set from now on.
    pub config: TopicConfig,
}

/// Hides a topic and starts its deletion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteTopic {
    /// The topic.
    pub topic_id: TopicId,
    /// When, by the proposer's clock.
    pub at: Timestamp,
    /// Who asked for it.
    pub principal: Principal,
}

impl Command {
    /// Encodes the command for the Raft log.
    ///
    /// # Errors
    /// [`Error::Json`], which would be a bug: every command has a JSON form.
    pub fn encode(&self) -> Result<Bytes, Error> {
        let mut bytes = vec![VERSION];
        serde_json::to_writer(&mut bytes, self).map_err(Error::json("command"))?;
        Ok(bytes.into())
    }

    /// Decodes a command from the Raft log.
    ///
    /// # Errors
    /// [`Error::Truncated`], [`Error::Version`] or [`Error::Json`]; the caller cannot go on without
    /// the command, since its replica would differ from the others.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let (&version, json) = bytes.split_first().ok_or(Error::Truncated { what: "command" })?;
        if version != VERSION {
            return Err(Error::Version { what: "command", found: version.into() });
        }
        serde_json::from_slice(json).map_err(Error::json("command"))
    }
}
