//! The use cases: what a client of any face may ask of the server.
//!
//! Faces (`api`, later the Kafka wire protocol) translate requests into these calls and answers
//! back; they never see a shard, Raft or a file. Every call takes the caller's [`Principal`], but
//! for those of the process that runs the node (its health, its clock, its flow control).
//!
//! Invariants:
//! - an error that says *not applied* is only returned when nothing was written; where that is not
//!   known the error is [`AppendError::OutcomeUnknown`] and its kin (`may_have_applied`);
//! - all checks that can refuse a single record happen before any record of the request is queued.
//!
//! [`Principal`]: crate::types::Principal

mod clock_guard;
mod cluster;
mod epochs;
mod error;
mod groups;
mod maintenance;
mod produce;
mod read;
#[cfg(test)]
mod tests;
mod topics;
mod turns;
mod watch;

pub use clock_guard::ClockMark;
pub use cluster::{Check, ClusterView, NodeView, Part, ReplicaView, ShardView};
pub use error::{AppendError, ProduceError, ReadError, TopicError};
pub use groups::{
    AssignedPartition, CommitAs, CommittedOffset, Fenced, GroupDescription, GroupError,
    GroupSummary, JoinGroup, Member, MemberDescription, MemberView, OffsetCommit, OffsetMove,
    OffsetReset, ResetMode, ResetOffsets, ResetTo, Revocation, StartOffset, Subscription,
};
pub use maintenance::SpaceWatch;
pub use produce::{
    Acknowledged, Appending, NewHeader, Outcomes, ProduceRecord, RecordFault, RecordFaultKind,
};
pub use read::{Gap, GapReason, OnDamage, ReadEnd, ReadRequest, Search, Start, Visit};
pub use topics::{CreateTopic, Creation, PartitionDetails, Topic, TopicSummary};
pub use watch::Watcher;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rand::rngs::SmallRng;

use crate::broker::clock_guard::ClockGuard;
use crate::broker::turns::Turns;
use crate::clock::SharedClock;
pub use crate::groups::{
    Assignor, GroupStatus, MemberKind, MemberStatus, Rebalance, RebalanceReason,
};
use crate::metadata::MetadataShard;
use crate::metrics::Metrics;
use crate::shard::Shard;
use crate::storage::log::Store;
use crate::storage::wal::Wal;
use crate::types::limits::TOPIC_PARTITIONS_MAX;
use crate::types::{NodeId, ShardId, TopicId};

/// What an operator decides about topics and groups.
#[derive(Debug, Clone)]
pub struct Config {
    /// Whether the first produce to a missing topic creates it.
    pub auto_create: bool,
    /// Partitions of a topic that does not say, from 1.
    pub default_partitions: u32,
    /// Most partitions of one topic.
    pub max_partitions: u32,
    /// Session timeout of members that do not say.
    pub session_timeout: Duration,
    /// How long the offsets of a group are kept after its last member has gone.
    pub offsets_retention: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            auto_create: true,
            default_partitions: 4,
            max_partitions: TOPIC_PARTITIONS_MAX,
            session_timeout: Duration::from_secs(45),
            offsets_retention: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

/// What a broker is made of: the running parts of one node.
pub struct BrokerParts {
    /// This node.
    pub node: NodeId,
    /// The metadata shard.
    pub metadata: MetadataShard,
    /// The data shards.
    pub shards: BTreeMap<ShardId, Shard>,
    /// The node's write-ahead log.
    pub wal: Wal,
    /// The node's segment store.
    pub store: Arc<Store>,
    /// Time.
    pub clock: SharedClock,
    /// Measurements.
    pub metrics: Arc<Metrics>,
    /// Randomness for partitioners that need it.
    pub random: SmallRng,
    /// Set by [`Broker::watch_space`] while the disk is nearly full.
    pub storage_full: Arc<AtomicBool>,
    /// What an operator decides.
    pub config: Config,
    /// Where a pause of all deletions by time is noted.
    pub clock_mark: ClockMark,
}

/// The handle to all use cases. Clones are cheap and share the server's state.
#[derive(Clone)]
pub struct Broker {
    inner: Arc<Inner>,
}

struct Inner {
    node: NodeId,
    metadata: MetadataShard,
    shards: BTreeMap<ShardId, Shard>,
    wal: Wal,
    store: Arc<Store>,
    clock: SharedClock,
    /// Asked by all who delete by wall time.
    clock_guard: ClockGuard,
    metrics: Arc<Metrics>,
    storage_full: Arc<AtomicBool>,
    config: Config,
    /// Asked when null-key records change their partition.
    random: Mutex<SmallRng>,
    /// Handles of topics that were asked for; bounded by the topics of the image, whose deletion
    /// removes them.
    handles: RwLock<HashMap<TopicId, Arc<Topic>>>,
    /// Serialises the creation of each topic, so that a thousand first produces create it once.
    creating: Turns,
    groups: Arc<groups::Groups>,
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("node", &self.inner.node).finish_non_exhaustive()
    }
}

impl Broker {
    /// Assembles a broker.
    pub fn new(parts: BrokerParts) -> Self {
        let written = parts.shards.values().filter_map(Shard::last_write).max();
        let clock_guard = ClockGuard::new(Arc::clone(&parts.clock), written, parts.clock_mark);
        Self {
            inner: Arc::new(Inner {
                node: parts.node,
                metadata: parts.metadata,
                shards: parts.shards,
                wal: parts.wal,
                store: parts.store,
                clock: parts.clock,
                clock_guard,
                metrics: parts.metrics,
                storage_full: parts.storage_full,
                config: parts.config,
                random: Mutex::new(parts.random),
                handles: RwLock::new(HashMap::new()),
                creating: Turns::default(),
                groups: Arc::default(),
            }),
        }
    }

    /// Returns the server's clock.
    pub fn clock(&self) -> &SharedClock {
        &self.inner.clock
    }

    /// Returns the server's measurements.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.inner.metrics
    }
}
