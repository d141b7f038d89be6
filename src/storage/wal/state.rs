//! What callers, writer and file thread share, behind one mutex.
//!
//! Invariants:
//! - the mutex is held for short sections that do no I/O and call nobody back;
//! - the queue has a caller's order; only a round takes from its front.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::storage::fs::SharedFs;
use crate::storage::wal::files::{LiveFile, OpenFile};
use crate::storage::wal::format::CLOSING_BYTES;
use crate::storage::wal::index::{Batch, ReplicaLog};
use crate::storage::wal::{Config, Done, LogId, Poisoned, SharedObserver, Vote};
use crate::types::{RaftIndex, ReplicaId};

/// Bytes of entries after which a round takes no further command.
pub(super) const ROUND_BYTES: u64 = 4 << 20;

/// Commands that may lie in the queue without waking the writer.
const LAZY_COMMANDS_MAX: usize = 1024;

/// Entries of one replica to be written together.
pub(super) struct Append {
    pub(super) replica: ReplicaId,
    pub(super) batch: Batch,
    /// Names these entries among all that were ever queued.
    pub(super) ticket: u64,
    /// Of all payloads.
    pub(super) bytes: u64,
    /// `None` when more entries of the same call follow.
    pub(super) done: Option<Done>,
}

/// Something to be written, or waited for.
pub(super) enum Command {
    Append(Append),
    Vote { replica: ReplicaId, vote: Vote, done: Done },
    Truncate { replica: ReplicaId, keep: Option<RaftIndex>, done: Done },
    Announce { replica: ReplicaId, id: LogId, done: Done },
    Committed { replica: ReplicaId, id: LogId },
    Purge { replica: ReplicaId, id: LogId },
    Forget { replica: ReplicaId },
    Barrier { done: Done },
}

impl Command {
    /// Returns the payload bytes it brings.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Append(append) => append.bytes,
            _ => 0,
        }
    }

    /// Returns about how much a file grows by it.
    pub(super) fn bytes_on_disk(&self) -> u64 {
        let frames = match self {
            Self::Append(append) => append.batch.len(),
            _ => 2,
        };
        let heads = u64::try_from(frames.saturating_mul(CLOSING_BYTES)).unwrap_or(u64::MAX);
        self.bytes().saturating_add(heads)
    }

    /// Returns whether somebody waits for it.
    pub(super) fn is_awaited(&self) -> bool {
        self.wakes() && !matches!(self, Self::Append(Append { done: None, .. }))
    }

    /// Returns whether the writer should do it now.
    fn wakes(&self) -> bool {
        !matches!(self, Self::Committed { .. } | Self::Purge { .. } | Self::Forget { .. })
    }

    /// Returns whether it puts anything into a round.
    pub(super) fn writes(&self) -> bool {
        !matches!(self, Self::Barrier { .. })
    }

    /// Returns whom it is about.
    pub(super) fn replica(&self) -> Option<ReplicaId> {
        match self {
            Self::Append(append) => Some(append.replica),
            Self::Vote { replica, .. }
            | Self::Truncate { replica, .. }
            | Self::Announce { replica, .. }
            | Self::Committed { replica, .. }
            | Self::Purge { replica, .. }
            | Self::Forget { replica } => Some(*replica),
            Self::Barrier { .. } => None,
        }
    }

    pub(super) fn into_done(self) -> Option<Done> {
        match self {
            Self::Append(append) => append.done,
            Self::Vote { done, .. }
            | Self::Truncate { done, .. }
            | Self::Announce { done, .. }
            | Self::Barrier { done } => Some(done),
            Self::Committed { .. } | Self::Purge { .. } | Self::Forget { .. } => None,
        }
    }
}

/// Whether the threads go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// They do.
    Running,
    /// They end after writing what is queued and the mark of a clean stop.
    Closing,
    /// They end at once: the last handle is gone without a close.
    Abandoned,
}

/// Called once when the log is poisoned.
pub(super) type OnPoison = Box<dyn FnOnce(&Poisoned) + Send>;

pub(super) struct State {
    pub(super) replicas: BTreeMap<ReplicaId, ReplicaLog>,
    /// Replicas that have left; what is said of them later must not reach the log.
    pub(super) forgotten: BTreeSet<ReplicaId>,
    pub(super) queue: VecDeque<Command>,
    /// Payload bytes that are queued or being written.
    pub(super) queued_bytes: u64,
    /// Payload bytes that were ever appended since the log was opened.
    pub(super) appended_bytes: u64,
    pub(super) next_ticket: u64,
    pub(super) wake: bool,
    pub(super) phase: Phase,
    /// Set for ever by the first failure and by the end of the writer.
    pub(super) poisoned: Option<Poisoned>,
    pub(super) on_poison: Vec<OnPoison>,
    /// Files in which there may be something that is needed, the current one last.
    pub(super) files: BTreeMap<u32, LiveFile>,
    /// The file to be written when the current one is full; its name is durable.
    pub(super) next: Option<OpenFile>,
    /// Whether the writer would go on in the next file now if there were one.
    pub(super) wants_next: bool,
    pub(super) next_sequence: u32,
    /// Files that nobody needs any more.
    pub(super) retired: Vec<Arc<OpenFile>>,
    /// Whether the last attempt to get space failed.
    pub(super) storage_full: bool,
    /// Why the last attempt to make a file failed; `None` since one succeeded.
    pub(super) no_file: Option<Arc<str>>,
}

pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    /// Wakes the writer.
    pub(super) work: Condvar,
    /// Wakes the file thread.
    pub(super) upkeep: Condvar,
    pub(super) fs: SharedFs,
    pub(super) dir: PathBuf,
    pub(super) config: Config,
    pub(super) observer: SharedObserver,
}

impl State {
    /// Adds a command; returns whether the writer must be woken.
    pub(super) fn enqueue(&mut self, command: Command) -> bool {
        self.queued_bytes = self.queued_bytes.saturating_add(command.bytes());
        self.appended_bytes = self.appended_bytes.saturating_add(command.bytes());
        let wakes = command.wakes() || self.queue.len() >= LAZY_COMMANDS_MAX;
        if let Command::Committed { replica, id } = &command
            && let Some(Command::Committed { replica: before, id: older }) = self.queue.back_mut()
            && before == replica
        {
            *older = *id;
            return false;
        }
        self.queue.push_back(command);
        let was_awake = self.wake;
        self.wake |= wakes;
        wakes && !was_awake
    }

    /// Returns why nothing can be written for a replica.
    pub(super) fn refusal(&self, replica: Option<ReplicaId>) -> Option<Poisoned> {
        if let Some(poisoned) = &self.poisoned {
            return Some(poisoned.clone());
        }
        let forgotten = replica.filter(|replica| self.forgotten.contains(replica))?;
        Some(Poisoned::new(format_args!("replica {forgotten} has left this node")))
    }

    /// Returns the bytes written in all live files.
    pub(super) fn live_bytes(&self) -> u64 {
        self.files.values().map(|file| file.used).sum()
    }
}

impl Shared {
    /// Ends the log for good, and tells those who asked to be told.
    pub(super) fn poison(&self, poisoned: &Poisoned) {
        let callbacks = {
            let mut state = self.state.lock();
            if state.poisoned.is_some() {
                return;
            }
            state.poisoned = Some(poisoned.clone());
            // The writer answers what is queued.
            state.wake = true;
            std::mem::take(&mut state.on_poison)
        };
        self.work.notify_all();
        self.upkeep.notify_all();
        for callback in callbacks {
            callback(poisoned);
        }
    }
}
