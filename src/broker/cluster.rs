//! The cluster as an operator sees it: nodes, shards, health.

use crate::broker::Broker;
use crate::shard::Shard;
use crate::types::{ClusterId, NodeId, Principal, ShardId, Term};

/// The cluster as this node knows it.
#[derive(Debug, Clone)]
pub struct ClusterView {
    /// The cluster's identity, once it has been founded.
    pub cluster_id: Option<ClusterId>,
    /// The node that leads the metadata shard, if any does.
    pub leader: Option<NodeId>,
    /// All nodes, by id.
    pub nodes: Vec<NodeView>,
    /// All shards, by id.
    pub shards: Vec<ShardView>,
}

/// A node.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// Its id.
    pub node: NodeId,
    /// Where its clients reach it.
    pub url: String,
}

/// A shard.
#[derive(Debug, Clone)]
pub struct ShardView {
    /// Its id.
    pub shard: ShardId,
    /// The node that leads it, if any does.
    pub leader: Option<NodeId>,
    /// Its newest term.
    pub term: Term,
    /// Its replicas.
    pub replicas: Vec<ReplicaView>,
    /// Partitions placed on it.
    pub partitions: u64,
}

/// A replica of a shard.
#[derive(Debug, Clone)]
pub struct ReplicaView {
    /// The node that holds it.
    pub node: NodeId,
    /// Whether a range of it fails its checksum.
    pub damaged: bool,
}

/// A part of the node that must work for it to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The write-ahead log takes writes.
    Wal,
    /// Segments can be read and written, and there is room.
    Storage,
    /// The metadata shard has a leader.
    Metadata,
    /// The data shards have leaders.
    Shards,
}

/// One part of the node's health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Which part.
    pub part: Part,
    /// Whether it works.
    pub ok: bool,
    /// More, where there is more to say.
    pub detail: Option<String>,
}

impl Broker {
    /// Returns this node's id.
    pub fn node(&self) -> NodeId {
        self.inner.node
    }

    /// Describes nodes and shards.
    pub fn cluster(&self, _principal: &Principal) -> ClusterView {
        let image = self.inner.metadata.image();
        let nodes = image.nodes().map(|node| NodeView { node: node.id, url: node.url.clone() });
        let shards = image.shards().map(|shard| {
            let status = match self.inner.shards.get(&shard.id) {
                Some(running) => Some(running.status()),
                None if shard.id == ShardId::METADATA => Some(self.inner.metadata.status()),
                None => None,
            };
            let running = self.inner.shards.get(&shard.id);
            let damaged = running.is_some_and(|running| !running.damaged_ranges().is_empty());
            let replicas = shard.replicas.iter().map(|replica| ReplicaView {
                node: replica.node,
                damaged: damaged && replica.node == self.inner.node,
            });
            ShardView {
                shard: shard.id,
                leader: status.and_then(|status| status.leader),
                term: status.map(|status| status.term).unwrap_or_default(),
                replicas: replicas.collect(),
                partitions: image.partitions_on(shard.id),
            }
        });
        ClusterView {
            cluster_id: image.cluster_id(),
            leader: self.inner.metadata.status().leader,
            nodes: nodes.collect(),
            shards: shards.collect(),
        }
    }

    /// Checks the parts of this node that must work for it to serve. Whoever watches the process
    /// asks this, and no client: it has no principal.
    pub fn checks(&self) -> Vec<Check> {
        let poisoned = self.inner.wal.poisoned().map(|error| error.to_string());
        let wal = Check { part: Part::Wal, ok: poisoned.is_none(), detail: poisoned };
        let metadata = self.inner.metadata.status();
        let metadata = Check {
            part: Part::Metadata,
            ok: metadata.leader.is_some() && metadata.running,
            detail: metadata.leader.is_none().then(|| "no leader".to_owned()),
        };
        let leaderless: Vec<String> = self
            .inner
            .shards
            .values()
            .filter(|shard| shard.status().leader.is_none())
            .map(|shard| shard.id().to_string())
            .collect();
        let shards = Check {
            part: Part::Shards,
            ok: leaderless.is_empty(),
            detail: (!leaderless.is_empty())
                .then(|| format!("shards without a leader: {}", leaderless.join(", "))),
        };
        vec![wal, self.storage_check(), metadata, shards]
    }

    fn storage_check(&self) -> Check {
        let mut details = Vec::new();
        let poisoned = self.inner.store.poisoned();
        if let Some(error) = &poisoned {
            details.push(error.to_string());
        }
        let damaged: Vec<_> = self.inner.shards.values().flat_map(Shard::damaged_ranges).collect();
        if let Some((partition, range)) = damaged.first() {
            details.push(format!(
                "{} damaged ranges, the first is offsets {}..{} of {partition}",
                damaged.len(),
                range.from,
                range.to,
            ));
        }
        let full = self.is_storage_full();
        if full {
            details.push("the disk is nearly full: produce answers 507".to_owned());
        }
        if let Some(left) = self.inner.clock_guard.pause_left() {
            let minutes = left.as_secs().div_ceil(60);
            details.push(format!(
                "the wall clock was set: nothing is deleted by time for {minutes} minutes, or \
                 until it is confirmed"
            ));
        }
        if let Some(why) = self.inner.wal.no_file() {
            details.push(format!("the log's next file cannot be made: {why}"));
        }
        Check {
            part: Part::Storage,
            ok: poisoned.is_none() && damaged.is_empty() && !full,
            detail: (!details.is_empty()).then(|| details.join("; ")),
        }
    }
}
