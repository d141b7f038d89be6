//! Makes a shard's state durable, so that its part of the write-ahead log may go.
//!
//! The order is the whole point (each step without the one before it loses data):
//! 1. a picture of the machine is taken between two entries, with all records written to their
//!    files;
//! 2. the write-ahead log is synced past everything queued before the picture: otherwise a power
//!    cut leaves a checkpoint ahead of the log, which Raft refuses to start from;
//! 3. files and directories are synced, off the shard's thread;
//! 4. the checkpoint is renamed into place;
//! 5. only then files that no checkpoint names are unlinked and log entries may be purged.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::MissedTickBehavior;

use crate::metrics::ShardMetrics;
use crate::raft::Group;
use crate::shard::machine::{Machine, Picture};
use crate::storage::ballast::Ballast;
use crate::storage::checkpoint::CheckpointStore;
use crate::storage::log::{self, Removed, Store, sync_all};
use crate::storage::wal::Wal;
use crate::types::ReplicaId;

/// How often it is looked whether a checkpoint is due.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// A quiet shard's changes are checkpointed after this time.
const AGE_MAX: Duration = Duration::from_secs(60);
/// A checkpoint that found no room is tried again after this time.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Log written since the last checkpoint that makes the next one due. Bounds a restart's replay,
/// and how much is synced at a time: the log's own syncs wait behind it in the disk's queue.
const LOG_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Writes one shard's checkpoints.
pub(crate) struct Checkpointer {
    pub(crate) machine: Arc<Mutex<Machine>>,
    pub(crate) files: Arc<Mutex<CheckpointStore>>,
    /// Ends the node when a checkpoint cannot be written.
    pub(crate) store: Arc<Store>,
    /// Given back when a checkpoint finds no room: without it nothing is ever deleted again.
    pub(crate) ballast: Arc<Ballast>,
    pub(crate) wal: Wal,
    pub(crate) replica: ReplicaId,
    pub(crate) metrics: ShardMetrics,
    /// Asks for a checkpoint soon: a topic was deleted, or the server stops.
    pub(crate) wanted: Arc<Notify>,
    /// Serialises checkpoints of the shard.
    pub(crate) turn: tokio::sync::Mutex<()>,
}

/// Why a checkpoint was not written. The old one is still in force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointError {
    /// A segment could not be written or synced.
    #[error(transparent)]
    Log(#[from] log::Error),
    /// The checkpoint file could not be written.
    #[error(transparent)]
    File(#[from] crate::storage::checkpoint::Error),
    /// The write-ahead log is poisoned.
    #[error("the write-ahead log failed")]
    Wal,
}

impl CheckpointError {
    /// Returns whether the disk is full: the same can be tried again when there is room.
    fn is_full(&self) -> bool {
        match self {
            Self::Log(error) => error.is_full(),
            Self::File(error) => error.is_full(),
            Self::Wal => false,
        }
    }
}

impl Checkpointer {
    /// Writes checkpoints when they are due, until the group ends.
    pub(crate) async fn run(self: Arc<Self>, group: Group) {
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = tokio::time::Instant::now();
        let mut written = self.wal.appended_bytes();
        let mut was_full = false;
        while group.status().running {
            let wanted = tokio::select! {
                _ = look.tick() => false,
                () = self.wanted.notified() => true,
            };
            let grown = self.wal.appended_bytes().saturating_sub(written) >= LOG_BYTES_MAX;
            let is_due = wanted || grown || self.is_pressed() || last.elapsed() >= AGE_MAX;
            if if was_full { last.elapsed() >= RETRY_AFTER } else { is_due } {
                written = self.wal.appended_bytes();
                last = tokio::time::Instant::now();
                let outcome = self.write().await;
                was_full = outcome.is_err();
                if let Err(error) = outcome {
                    tracing::error!(shard = %group.shard(), %error, "checkpoint failed");
                    if !error.is_full() {
                        return;
                    }
                }
            }
            self.purge(&group).await;
        }
    }

    /// Writes a checkpoint now, if anything changed since the last one.
    ///
    /// # Errors
    /// [`CheckpointError`]; the state is as before. On a full disk the next checkpoint covers it,
    /// after any other failure the node ends.
    pub(crate) async fn write(&self) -> Result<(), CheckpointError> {
        let _turn = self.turn.lock().await;
        let mut written = self.write_once().await;
        if matches!(&written, Err(error) if error.is_full()) && self.ballast.release() {
            written = self.write_once().await;
        }
        let is_full = matches!(&written, Err(error) if error.is_full());
        self.machine.lock().checkpoint_had_room(!is_full);
        if let Err(CheckpointError::File(error)) = &written
            && !error.is_full()
        {
            self.store.poison(&error.to_string());
        }
        written
    }

    async fn write_once(&self) -> Result<(), CheckpointError> {
        let started = tokio::time::Instant::now();
        let picture = {
            let mut machine = self.machine.lock();
            if !machine.is_checkpoint_due() {
                return Ok(());
            }
            machine.picture()?
        };
        let covers = picture.covers.clone();
        match self.make_durable(picture).await {
            Ok(removed) => {
                self.machine.lock().picture_durable(covers);
                unlink(removed).await;
                self.metrics.checkpoint_seconds.observe_duration(started.elapsed());
                Ok(())
            }
            Err((picture, error)) => {
                self.machine.lock().picture_failed(*picture);
                Err(error)
            }
        }
    }

    async fn make_durable(
        &self,
        picture: Picture,
    ) -> Result<Vec<Removed>, (Box<Picture>, CheckpointError)> {
        let (done, synced) = oneshot::channel();
        self.wal.barrier(Box::new(move |result| drop(done.send(result))));
        if !matches!(synced.await, Ok(Ok(()))) {
            return Err((Box::new(picture), CheckpointError::Wal));
        }
        let files = Arc::clone(&self.files);
        let work = tokio::task::spawn_blocking(move || {
            if let Err(error) = sync_all(&picture.sync) {
                return Err((Box::new(picture), error.into()));
            }
            let saved = files.lock().save(&picture.changes);
            match saved {
                Ok(()) => Ok(picture.removed_files),
                Err(error) => Err((Box::new(picture), error.into())),
            }
        });
        joined(work.await)
    }

    /// Returns whether the log is too large and a newer checkpoint of this shard would let a file
    /// go.
    fn is_pressed(&self) -> bool {
        let Some(pressure) = self.wal.pressure() else { return false };
        let covered = self.machine.lock().checkpointed_index();
        let held = pressure.hold.iter().find(|(replica, _)| *replica == self.replica);
        held.is_some_and(|(_, held)| covered.is_none_or(|covered| covered < *held))
    }

    /// Purges this shard's log entries that keep the oldest file of a log that is too large.
    async fn purge(&self, group: &Group) {
        let Some(pressure) = self.wal.pressure() else { return };
        let held = pressure.hold.iter().find(|(replica, _)| *replica == self.replica);
        let covered = self.machine.lock().checkpointed_index();
        if let (Some((_, held)), Some(covered)) = (held, covered)
            && *held <= covered
        {
            group.purge(*held).await;
        }
    }
}

/// Unlinks files off the shard's thread: freeing a large one takes the disk a while. Waits for it,
/// so that there is at most one such job a shard.
async fn unlink(removed: Vec<Removed>) {
    if removed.iter().all(Removed::is_empty) {
        return;
    }
    let unlinking = move || removed.into_iter().for_each(Removed::unlink);
    joined(tokio::task::spawn_blocking(unlinking).await);
}

fn joined<T>(work: Result<T, tokio::task::JoinError>) -> T {
    // The blocking pool ends only with the process.
    work.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::IoSlice;
    use std::path::{Path, PathBuf};
    use std::pin::pin;
    use std::sync::atomic::AtomicBool;

    use bytes::Bytes;

    use super::*;
    use crate::clock::SystemClock;
    use crate::metrics::Metrics;
    use crate::raft::{Command, StateMachine};
    use crate::record::{BatchBuilder, NewRecord};
    use crate::shard::command::{Body, encode_control};
    use crate::shard::machine::MachineParts;
    use crate::shard::proposer::Proposer;
    use crate::storage::fs::sim::{Fault, NO_SPACE, Operation, Repeat, SimFs};
    use crate::storage::fs::{Fs, Open};
    use crate::storage::wal::{self, Entry};
    use crate::types::{
        LogPosition, PartitionId, RaftIndex, ShardId, Term, Timestamp, TimestampType, TopicConfig,
        TopicId, TopicPartition,
    };

    const REPLICA: ReplicaId = ReplicaId::new(2);
    const DIRECTORY: &str = "/shards/1";

    /// A checkpointer whose machine has applied entry `applied`, without a group above it.
    fn checkpointer(fs: &SimFs, applied: LogPosition) -> Checkpointer {
        let shared = fs.shared();
        shared.create_dir_all(Path::new(DIRECTORY)).unwrap();
        let floors = BTreeMap::new();
        let (config, observer) = (wal::Config::default(), Arc::new(wal::NoObserver));
        let wal = Wal::open(fs.shared(), Path::new("/wal"), config, &floors, observer).unwrap().0;
        let (files, _) = CheckpointStore::open(fs.shared(), Path::new(DIRECTORY)).unwrap();
        let (directory, config) = (PathBuf::from("/partitions"), log::Config::default());
        let store = Store::new(fs.shared(), directory, config, SystemClock::shared());
        let metrics = Metrics::shared().shards.clone();
        let parts = MachineParts {
            shard: ShardId::new(1),
            store: Arc::clone(&store),
            partitions: Arc::default(),
            proposer: Proposer::new(Arc::default(), Arc::<AtomicBool>::default()),
            metrics: metrics.clone(),
        };
        let mut machine = Machine::open(parts, None).unwrap();
        machine.advance(applied, None);
        Checkpointer {
            machine: Arc::new(Mutex::new(machine)),
            files: Arc::new(Mutex::new(files)),
            store,
            ballast: Arc::new(Ballast::new(fs.shared(), PathBuf::from("/ballast"))),
            wal,
            replica: REPLICA,
            metrics,
            wanted: Arc::default(),
            turn: tokio::sync::Mutex::new(()),
        }
    }

    fn at(index: u64) -> LogPosition {
        LogPosition { term: Term::new(1), index: RaftIndex::new(index) }
    }

    fn names(fs: &SimFs) -> Vec<String> {
        Fs::list(fs, Path::new(DIRECTORY)).unwrap().into_iter().map(|entry| entry.name).collect()
    }

    /// What the checkpoint in force names is all that there is of the records before it.
    #[tokio::test]
    async fn files_stay_until_a_checkpoint_that_does_not_name_them_is_durable() {
        let fs = SimFs::new();
        let checkpointer = checkpointer(&fs, at(1));
        let topic = TopicId::from_bytes([7; 16]);
        let apply = |position: LogPosition, body: &Body| {
            let command = Command::new(encode_control(Timestamp::from_millis(0), body), None);
            checkpointer.machine.lock().apply(position, &command).unwrap();
        };
        let (config, partitions) = (TopicConfig::default(), vec![PartitionId::ZERO]);
        apply(at(2), &Body::Create { origin: at(2), topic, config, partitions });
        let mut builder = BatchBuilder::new(64);
        let record = NewRecord {
            timestamp: Timestamp::from_millis(1),
            key: None,
            value: Some(b"value"),
            headers: &[],
        };
        builder.push(&record).unwrap();
        let batch = builder.seal(TimestampType::CreateTime);
        let id = TopicPartition { topic, partition: PartitionId::ZERO };
        apply(at(3), &Body::Append(vec![(id, batch)]));
        checkpointer.write().await.unwrap();
        let directory = format!("/partitions/{topic}/0");
        let files = || Fs::list(&fs, Path::new(&directory)).map_or(0, |entries| entries.len());
        assert_ne!(files(), 0);
        apply(at(4), &Body::Delete { origin: at(4), topic });
        fs.inject(Fault {
            operation: Operation::Sync,
            after: 0,
            path_contains: DIRECTORY.to_owned(),
            errno: NO_SPACE,
            repeat: Repeat::Always,
        });
        checkpointer.write().await.unwrap_err();
        assert_ne!(files(), 0, "the checkpoint in force names them");
        fs.clear_faults();
        checkpointer.write().await.unwrap();
        assert_eq!(files(), 0);
    }

    /// Without a checkpoint nothing is ever deleted again, and the disk stays full.
    #[tokio::test]
    async fn a_checkpoint_that_finds_no_room_takes_that_of_the_ballast() {
        let fs = SimFs::new();
        fs.set_capacity(Some(128 << 20));
        let checkpointer = checkpointer(&fs, at(1));
        checkpointer.ballast.hold().unwrap();
        let others = fs.open(Path::new("/others"), Open::CreateNew).unwrap();
        // It takes what fits.
        others.write_all_at(&[IoSlice::new(&vec![1; 128 << 20])], 0).unwrap_err();
        checkpointer.write().await.unwrap();
        assert_eq!(names(&fs), ["checkpoint"]);
        assert!(!checkpointer.ballast.is_held());
    }

    /// A follower applies what a majority has, its own log may not have it yet. A checkpoint ahead
    /// of the log is one that Raft refuses to start from for ever.
    #[test]
    fn a_checkpoint_waits_until_the_log_is_synced_past_what_it_covers() {
        // With one thread for blocking work its jobs run in the order in which they are given.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        runtime.block_on(async {
            let fs = SimFs::new();
            let applied = at(1);
            let checkpointer = checkpointer(&fs, applied);
            fs.hold_syncs_of("wal");
            let payload = vec![Bytes::from_static(b"applied")];
            let entry = Entry { index: applied.index, term: applied.term, payload };
            checkpointer.wal.append(REPLICA, vec![entry], Box::new(|_| {}));
            let mut writing = pin!(checkpointer.write());
            assert!(futures_util::poll!(writing.as_mut()).is_pending());
            tokio::task::spawn_blocking(|| {}).await.unwrap();
            assert!(futures_util::poll!(writing.as_mut()).is_pending());
            assert_eq!(names(&fs), Vec::<String>::new(), "it is ahead of the log");
            fs.resume_syncs();
            writing.await.unwrap();
            assert_eq!(names(&fs), ["checkpoint"]);
        });
    }
}
