//! What goes wrong with the log.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::types::{RaftIndex, ReplicaId};

/// Why the log could not be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// Bytes that had been synced are not what was written. The log was not changed.
    #[error("the log is damaged: {0}")]
    Damaged(Damage),
    /// The replica's log ends before what its checkpoint or its saved committed index says.
    #[error("replica {replica} has applied or committed index {known}, its log ends at {last:?}")]
    Behind {
        /// The replica.
        replica: ReplicaId,
        /// What is known to have been in its log.
        known: RaftIndex,
        /// The last index that is in it.
        last: Option<RaftIndex>,
        /// The end of the log that was found torn, if it was.
        torn: Option<Damage>,
    },
    /// The replica's log was purged because a checkpoint covered what it had, and that checkpoint
    /// is gone: a part of the replica's records is in neither.
    #[error(
        "the log of replica {replica} starts after index {purged}, its checkpoint is {}",
        .covers.map_or("missing".to_owned(), |covers| format!("of index {covers}"))
    )]
    NoCheckpoint {
        /// The replica.
        replica: ReplicaId,
        /// The last index that is not in its log any more.
        purged: RaftIndex,
        /// The last index that its checkpoint covers, `None` when there is no checkpoint.
        covers: Option<RaftIndex>,
    },
    /// There is no log where one was looked for.
    #[error("{0} has no write-ahead log, nor has a folder `wal` in it")]
    NoLog(PathBuf),
    /// The index is not in the log any more, or the replica is not.
    #[error("index {index} of replica {replica} is not in the log")]
    NotInLog {
        /// The replica.
        replica: ReplicaId,
        /// The index that was asked for.
        index: RaftIndex,
    },
    /// File numbers are used up.
    #[error("the log has no file numbers left after {0}")]
    OutOfSequences(u64),
}

/// A place in the log that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// The first byte that does not fit.
    pub position: u64,
    /// What does not fit.
    pub reason: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}: {}", self.path.display(), self.position, self.reason)
    }
}

/// The log has ended: a write or sync failed, or it was closed. Nothing more is acknowledged, and
/// the outcome of what was queued is unknown; only a restart helps.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the write-ahead log has ended: {reason}")]
pub struct Poisoned {
    /// What happened.
    pub reason: Arc<str>,
}

impl Poisoned {
    pub(super) fn new(reason: impl fmt::Display) -> Self {
        Self { reason: reason.to_string().into() }
    }
}
