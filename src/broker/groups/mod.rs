//! Consumer groups as use cases: join and be kept alive, commit, look, reset, delete.
//!
//! A face joins a group by [`Broker::join_group`] and holds the [`Member`] for as long as its
//! client is there. The handle needs no heartbeats: it is one. What the member may read is in
//! [`Member::state`]; [`Member::changed`] says when to look again.
//!
//! Invariants:
//! - what a handle shows is what an applied entry says: nothing is told before;
//! - heartbeats are no entries of the log: a member is alive while its handle is;
//! - a commit is answered when it is replicated, and never taken from a member that has lost the
//!   partition or is out of the group.

mod commits;
mod coordinator;
mod describe;
mod error;
mod keeper;
mod member;
mod offsets;

pub use error::GroupError;
pub use member::{Fenced, Member, MemberView};

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::groups::{Assignor, GroupStatus, MemberKind, MemberStatus, Rebalance};
use crate::types::{
    Epoch, GroupName, InstanceId, MemberId, NodeId, Offset, PartitionId, Timestamp, TopicId,
    TopicName,
};

pub(in crate::broker) use coordinator::Groups;

/// What a member wants to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subscription {
    /// These topics, whether they exist yet or not.
    Topics(BTreeSet<TopicName>),
    /// All topics whose whole name matches this regular expression, now and later, at most 1,000:
    /// refused when there are more, and told in [`MemberDescription::topics_left_out`] when there
    /// are later. The engine takes linear time; look-around and back references do not exist.
    Pattern(String),
}

/// Where a member starts in a partition whose committed offset is missing or cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetReset {
    /// At the log start.
    Earliest,
    /// At the log end.
    Latest,
    /// Nowhere: [`GroupError::NoOffset`].
    None,
}

/// Who says that a member has given up a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revocation {
    /// The handle itself, as soon as [`Member::state`] shows it: for faces whose clients have no
    /// say. A slow poll blocks nobody.
    Automatic,
    /// The face, by [`Member::revoked`], within the rebalance timeout.
    Acknowledged,
}

/// A request to join a group.
#[derive(Debug, Clone)]
pub struct JoinGroup {
    /// The group's name as the client gave it.
    pub group: String,
    /// Makes the member static: whoever joins with the same id takes over its partitions without a
    /// rebalance, and the former holder of the id is fenced.
    pub instance_id: Option<String>,
    /// How the member is connected.
    pub kind: MemberKind,
    /// What the client calls itself, for people; cut at 249 bytes.
    pub client: String,
    /// What it wants to read.
    pub subscription: Subscription,
    /// How partitions are shared out; `None` takes the group's, `uniform` for a new group.
    pub assignor: Option<Assignor>,
    /// How long the member is waited for when it is gone; clamped to 6 s to 30 min. `None`: 45 s.
    pub session_timeout: Option<Duration>,
    /// How long it may take to give up partitions; clamped like the session's. `None`: 60 s.
    pub rebalance_timeout: Option<Duration>,
    /// Where it starts when no offset is committed.
    pub offset_reset: OffsetReset,
    /// Who acknowledges revocations.
    pub revocation: Revocation,
}

/// A partition that a member may read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignedPartition {
    /// The topic's name.
    pub topic: TopicName,
    /// Its identity.
    pub topic_id: TopicId,
    /// The partition.
    pub partition: PartitionId,
    /// The committed offset (the next to read) when the view was made, `None` if there is none.
    pub committed: Option<Offset>,
}

/// Where a member starts to read a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartOffset {
    /// The first offset to read.
    pub offset: Offset,
    /// The committed offset, when it could not be used: it lies outside of the log.
    pub reset_from: Option<Offset>,
}

/// An offset to be committed.
#[derive(Debug, Clone)]
pub struct OffsetCommit {
    /// The topic's name as the client gave it.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The next offset to read.
    pub offset: Offset,
    /// What the client wants to find with it, at most 4,096 bytes.
    pub metadata: String,
}

/// In whose name offsets are committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommitAs {
    /// The group's, which must be empty or new: an administrator, or a consumer that assigns its
    /// partitions by itself.
    Group,
    /// A member's, which must be in the group at exactly this epoch.
    Member(MemberId, Epoch),
}

/// A committed offset, and how far it is behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedOffset {
    /// The topic's name.
    pub topic: TopicName,
    /// Its identity.
    pub topic_id: TopicId,
    /// The partition.
    pub partition: PartitionId,
    /// The next offset to read.
    pub offset: Offset,
    /// What the client stored with it.
    pub metadata: Arc<str>,
    /// When it was committed.
    pub committed_at: Timestamp,
    /// Offset that the next record of the partition gets.
    pub log_end: Offset,
    /// Records from there to the end, those that retention took not counted.
    pub lag: u64,
    /// Age of the first record that is to be read, in milliseconds; 0 when there is none, `None`
    /// when it could not be read.
    pub lag_ms: Option<u64>,
}

/// A group in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSummary {
    /// Its name.
    pub group: GroupName,
    /// How it stands.
    pub status: GroupStatus,
    /// How many members it has.
    pub members: usize,
    /// The topics that its members are subscribed to and those with committed offsets, by name.
    pub topics: Vec<TopicName>,
    /// Sum of the lag of all committed offsets, in records.
    pub lag: u64,
}

/// A group in all detail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupDescription {
    /// Its name.
    pub group: GroupName,
    /// How it stands.
    pub status: GroupStatus,
    /// The newest epoch.
    pub epoch: Epoch,
    /// How its partitions are shared out.
    pub assignor: Assignor,
    /// The node that coordinates it.
    pub coordinator: Option<NodeId>,
    /// Its members, by id.
    pub members: Vec<MemberDescription>,
    /// Its committed offsets, by topic name and partition.
    pub offsets: Vec<CommittedOffset>,
    /// Sum of their lag, in records.
    pub lag: u64,
    /// What made it share out its partitions, oldest first.
    pub rebalances: Vec<Rebalance>,
}

/// A member in all detail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberDescription {
    /// Its id.
    pub id: MemberId,
    /// The instance id of a static member.
    pub instance_id: Option<InstanceId>,
    /// How it is connected.
    pub kind: MemberKind,
    /// What the client calls itself.
    pub client: String,
    /// The node that keeps it alive.
    pub node: NodeId,
    /// The epoch that it has reached.
    pub epoch: Epoch,
    /// How it stands.
    pub status: MemberStatus,
    /// The topics that it is subscribed to, those of a pattern as they match now.
    pub topics: Vec<TopicName>,
    /// The pattern that it is subscribed to.
    pub pattern: Option<String>,
    /// How many topics match the pattern and are not read: topics that were made since it was
    /// subscribed to, beyond the limit of one subscription.
    pub topics_left_out: usize,
    /// The partitions that it may read, by topic name and partition.
    pub assignment: Vec<(TopicName, PartitionId)>,
    /// How long it is waited for when it is gone.
    pub session_timeout: Duration,
    /// How long it may take to give up partitions.
    pub rebalance_timeout: Duration,
}

/// A request to move committed offsets.
#[derive(Debug, Clone)]
pub struct ResetOffsets {
    /// The topic's name as the client gave it.
    pub topic: String,
    /// The partitions, `None` for all of the topic.
    pub partitions: Option<Vec<u32>>,
    /// Where to.
    pub to: ResetTo,
    /// Whether it is done or only told.
    pub mode: ResetMode,
}

/// Where committed offsets are moved to; always clamped to log start and log end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetTo {
    /// The log start.
    Earliest,
    /// The log end.
    Latest,
    /// This offset.
    Offset(Offset),
    /// The first record, in offset order, that is not older; the log end if there is none.
    Timestamp(Timestamp),
    /// So many records on or, negative, back. A partition without committed offset is counted
    /// from its log start.
    Shift(i64),
}

/// Whether a reset is done or only told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetMode {
    /// It is done.
    Apply,
    /// Nothing is changed.
    DryRun,
}

/// What a reset does to one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetMove {
    /// The topic's name.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionId,
    /// The committed offset before, `None` if there was none.
    pub from: Option<Offset>,
    /// The committed offset after.
    pub to: Offset,
}
