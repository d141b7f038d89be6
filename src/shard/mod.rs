//! Data shards: what a Raft group does with the partitions placed on it.
//!
//! ```text
//! Partition::enqueue -> accumulator -> proposer -> raft -> Machine::apply -> storage::log
//!          \______________________ Pending <- offsets __________/
//! ```
//!
//! Invariants:
//! - offsets are assigned in `apply` and nowhere else, the same on every replica;
//! - an acknowledged record is synced on a majority and visible to readers of this replica;
//! - `apply` reads the entry and the shard's own replicated state, nothing else: its only time is
//!   the shard's, which is the largest clock that any entry carried;
//! - what waits in accumulators is bounded in bytes, and refused beyond.

mod accumulator;
mod checkpointer;
mod command;
mod error;
mod machine;
mod pending;
mod proposer;
mod runtime;

pub use accumulator::{Group as RecordGroup, Partition};
pub use command::batches_of;
pub use error::{AppendError, ControlError, EnqueueError, OpenError};
pub use pending::{Outcome, Pending};
pub use runtime::{Config, Shard, ShardParts};
