//! Consensus: every shard is one Raft group over the node's write-ahead log.
//!
//! This module is the only one that names the Raft library, and instantiates it once, for all
//! shards: what is replicated is a [`Command`], opaque bytes plus whatever the proposer wants back
//! on the node where it proposed. What a command means is decided by a [`StateMachine`].
//!
//! ```text
//! Group::propose -> core -> LogStore::append -> Wal (fdatasync) -> committed ->
//! StateMachine::apply
//! ```
//!
//! Invariants:
//! - an entry is applied on a node only after a majority has it on stable storage;
//! - leader restore is off: a restored leader reused the log id of an entry that was acknowledged;
//! - nothing here waits for space or for a bounded queue inside `append`, `save_vote`,
//!   `truncate_after` or `purge`, which run in the core's one loop;
//! - the Raft index of an entry is not an offset; nobody converts one into the other.

mod codec;
mod command;
mod error;
mod group;
mod log_store;
mod machine;
mod network;
mod thread;
mod type_config;

pub use codec::{command_of, join_membership, split_membership};
pub use command::{Command, Local};
pub use error::{ProposeError, StartError};
pub use group::{Config, Group, Members, Parts, Status};
pub use machine::{Recovered, StateMachine, replay};
pub use thread::Thread;
