//! The node's write-ahead log: one log for the entries, votes and marks of all its replicas.
//!
//! The Raft log store is its only caller. One thread (`wal`) writes; a second one (`wal-files`)
//! prepares files ahead of it. Callers queue and are answered through a callback, in arrival order.
//!
//! Invariants:
//! - nothing is answered `Ok` before it is synced; after a failed write or sync nothing is answered
//!   `Ok` any more, and no sync is ever retried;
//! - one round (one write, one sync) at a time: round n + 1 is written only when n was synced;
//! - no call waits for space, for the queue or for the disk; the bound on [`Wal::queued_bytes`] is
//!   kept by those who propose and receive entries;
//! - a file is written first when its name is durable, goes only after all older files, and only
//!   when each entry in it is at or below its replica's durable purged index;
//! - what recovery keeps is durable before anything is answered;
//! - a damaged log is never cut: only a torn last round is.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::types::{RaftIndex, ReplicaId, Term};

mod dump;
mod error;
mod files;
mod format;
mod handle;
mod index;
mod parse;
mod read;
mod rebuild;
mod recovery;
mod replay;
mod round;
mod salvage;
mod state;
#[cfg(test)]
mod tests;
mod writer;

pub use dump::dump;
pub use error::{Damage, Error, Poisoned};
pub use files::is_in;
pub use handle::Wal;
pub use recovery::check;
pub use salvage::{Salvage, find, salvage};

pub use crate::types::LogPosition as LogId;

/// Sizes of the log, and what to do when it is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Bytes of a file before the next one is begun.
    pub file_bytes: u64,
    /// Bytes above which the oldest file's replicas are asked to purge; four times that is the
    /// bound that callers must not pass.
    pub max_bytes: u64,
    /// What opening a damaged log does.
    pub on_damage: OnDamage,
}

impl Default for Config {
    fn default() -> Self {
        Self { file_bytes: 64 << 20, max_bytes: 1 << 30, on_damage: OnDamage::Refuse }
    }
}

/// What opening a log does that was damaged after it was synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDamage {
    /// Refuses: a lone node has no other copy, a person must decide.
    Refuse,
    /// Opens and lists the replicas that lost something, which the cluster replaces under new ids.
    Retire,
}

/// What is known of the node's replicas beside their log: the applied index of the durable
/// checkpoint of each, `None` where there is none. A replica that is not named is not checked.
pub type Floors = BTreeMap<ReplicaId, Option<LogId>>;

/// A log entry as Raft hands it over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its position; one more than the entry's before it.
    pub index: RaftIndex,
    /// The term in which it was proposed.
    pub term: Term,
    /// Its bytes in parts, which are concatenated on disk; an entry that was read has one part.
    pub payload: Vec<Bytes>,
}

impl Entry {
    /// Returns term and index.
    pub fn id(&self) -> LogId {
        LogId { term: self.term, index: self.index }
    }

    /// Returns the payload's bytes.
    pub fn payload_bytes(&self) -> usize {
        self.payload.iter().map(Bytes::len).sum()
    }
}

/// Raft's hard state of a replica. The log keeps it and does not look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vote {
    /// The term of the vote.
    pub term: Term,
    /// Whom it was given to.
    pub voted_for: ReplicaId,
    /// Whether a majority gave it.
    pub committed: bool,
}

/// What the log knows of a replica.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplicaState {
    /// The vote that was saved last.
    pub vote: Option<Vote>,
    /// The committed entry that was saved last; after a restart an earlier one may be found.
    pub committed: Option<LogId>,
    /// The last entry that was purged.
    pub purged: Option<LogId>,
    /// The first entry that can be read.
    pub first: Option<RaftIndex>,
    /// The last entry, or the purged one when there is none after it.
    pub last: Option<LogId>,
}

/// What opening a log found.
#[derive(Debug, Default)]
pub struct Recovery {
    /// The replicas with anything in the log; those in `damaged` are not among them.
    pub replicas: BTreeMap<ReplicaId, ReplicaState>,
    /// The end of the log that was cut because its round was never synced.
    pub torn_tail: Option<Damage>,
    /// Replicas that lost something which was synced, with [`OnDamage::Retire`] only.
    pub damaged: BTreeMap<ReplicaId, Vec<Damage>>,
}

/// Why files cannot be given back: the log is larger than its soft bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pressure {
    /// The replicas that hold the oldest file, with the index that each must purge up to.
    pub hold: Vec<(ReplicaId, RaftIndex)>,
}

/// Answers a caller. Called once: by the writer thread, in arrival order, or by the caller's own
/// when the log was closed before the call. It must not block.
pub type Done = Box<dyn FnOnce(Result<(), Poisoned>) + Send>;

/// Watches the writer, for metrics. Called by the writer thread; must not block.
pub trait Observer: Send + Sync {
    /// A round's bytes are about to be written.
    fn round_begins(&self, round: RoundSize);
    /// The round's bytes are written, its sync begins.
    fn sync_begins(&self);
    /// The round is synced.
    fn round_ends(&self);
}

/// How much a round carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundSize {
    /// Bytes written, headers included.
    pub bytes: u64,
    /// Callers that are answered.
    pub callers: u64,
}

/// An observer that looks away.
#[derive(Debug)]
pub struct NoObserver;

impl Observer for NoObserver {
    fn round_begins(&self, _round: RoundSize) {}
    fn sync_begins(&self) {}
    fn round_ends(&self) {}
}

/// An observer that can be handed around.
pub type SharedObserver = Arc<dyn Observer>;
