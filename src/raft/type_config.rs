//! The types that the Raft library is instantiated with.

use openraft::impls::leader_id_std;

use crate::raft::command::Command;
use crate::types::{LogPosition, NodeId, RaftIndex, Term};

openraft::declare_raft_types!(
    /// One configuration for all shards.
    ///
    /// A member of a group is a *replica id*, which is never reused; the node that holds it is the
    /// member's `Node`. At most one leader per term (`leader_id_std`), so that the term can serve
    /// as Kafka's leader epoch.
    pub(crate) TypeConfig:
        D = Command,
        R = (),
        NodeId = u64,
        Node = NodeId,
        LeaderId = leader_id_std::LeaderId<Self::Term, Self::NodeId>,
);

pub(crate) type Raft = openraft::Raft<TypeConfig, crate::raft::machine::Adapter>;
pub(crate) type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
pub(crate) type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
pub(crate) type Payload = openraft::type_config::alias::PayloadOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, NodeId>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type Snapshot = openraft::type_config::alias::SnapshotOf<TypeConfig, ()>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;

/// Converts to the library's log id.
pub(crate) fn log_id_of(position: LogPosition) -> LogId {
    LogId::new_term_index(position.term.get(), position.index.get())
}

/// Converts from the library's log id.
pub(crate) fn position_of(id: &LogId) -> LogPosition {
    let term = Term::new(id.committed_leader_id().term);
    LogPosition { term, index: RaftIndex::new(id.index()) }
}
