//! Consumer groups: who may read which partition, as a pure state machine (KIP-848's epochs).
//!
//! The metadata shard holds a [`Group`] per consumer group in its image and has [`Group::apply`]
//! carry out every [`Change`] of its log; the broker proposes the changes and keeps the members
//! alive. Time and topics are arguments; there is no I/O, no lock and no clock.
//!
//! Every change that alters who should have what begins a new epoch with a new *target*. Members
//! move towards it: one that has partitions beyond its target keeps its epoch and is asked for them
//! (`revoking`); one that has nothing to give up reaches the group's epoch and takes what is free.
//! A partition is free only when the [`Change::Revoked`] of its former owner is applied, or that
//! one is out of the group.
//!
//! Invariants:
//! - no partition is held by two members, whatever changes come in whatever order;
//! - a refused change leaves the group as it was;
//! - once every member has given up what it was asked for, all partitions have an owner.

mod assignor;
mod group;
mod model;
mod pattern;
#[cfg(test)]
mod tests;
mod timers;

pub use group::{Change, Fence, Group, Member, Profile, Refusal, Selection, Topics};
pub use model::{
    Assignor, Departure, GroupStatus, MemberKind, MemberStatus, Rebalance, RebalanceReason,
};
pub use pattern::{Pattern, PatternError};
pub use timers::Timers;
