//! The running metadata shard: its thread, its group, its checkpoints, and the handle to it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::metadata::checkpoint::{Checkpoint, CheckpointFile};
use crate::metadata::machine::{Applying, Machine, SharedMachine};
use crate::metadata::view::ViewFeed;
use crate::metadata::{Command, Error, Image, Response};
use crate::raft::{self, Group, Members, ProposeError, StartError, Status};
use crate::storage::ballast::Ballast;
use crate::storage::wal::Wal;
use crate::types::{LogPosition, RaftIndex, ReplicaId, ShardId};

/// How often it is looked whether a checkpoint is due.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Changes are checkpointed after this time.
const AGE_MAX: Duration = Duration::from_secs(60);
/// Entries since the last checkpoint that make the next one due; bounds a restart's replay.
const ENTRIES_MAX: u64 = 10_000;

/// Why a change of the metadata was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// This node does not lead the metadata shard. Surely not made.
    #[error("the metadata shard has no leader here")]
    NotLeader,
    /// The change may or may not be made.
    #[error("the outcome is unknown")]
    OutcomeUnknown,
    /// The command could not be encoded: a bug. Not made.
    #[error(transparent)]
    Encode(#[from] Error),
}

/// Ends the node, for the reason given. Must not block.
pub type OnFailure = Arc<dyn Fn(&str) + Send + Sync>;

/// What the metadata shard is made of.
pub struct ShardParts {
    /// This node's replica of it.
    pub replica: ReplicaId,
    /// The members that the group starts with, when it has never started.
    pub members: Members,
    /// Its checkpoint files, and the newest good checkpoint in them.
    pub checkpoints: (CheckpointFile, Option<Checkpoint>),
    /// The node's write-ahead log.
    pub wal: Wal,
    /// Where the image is published; holds the checkpoint's image from the start.
    pub image: Arc<ArcSwap<Image>>,
    /// Where row changes go.
    pub feed: ViewFeed,
    /// Room on the disk that is given back when a checkpoint finds none.
    pub ballast: Arc<Ballast>,
    /// Called when a checkpoint cannot be made durable.
    pub on_failure: OnFailure,
    /// Timing of the group.
    pub config: raft::Config,
}

/// A handle to the metadata shard. Clones are cheap.
#[derive(Clone)]
pub struct MetadataShard {
    inner: Arc<Inner>,
}

struct Inner {
    image: Arc<ArcSwap<Image>>,
    opened: Opened,
    thread: raft::Thread,
}

struct Opened {
    group: Group,
    members_changed: watch::Receiver<u64>,
    checkpointer: Arc<Checkpointer>,
}

impl fmt::Debug for MetadataShard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.opened.group.fmt(f)
    }
}

impl MetadataShard {
    /// Recovers the shard and starts its group on a thread of its own.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(parts: ShardParts) -> Result<Self, StartError> {
        let image = Arc::clone(&parts.image);
        let name = format!("shard-{}", ShardId::METADATA);
        let failed = |error: std::io::Error| refuse(error.to_string());
        let (thread, opened) = raft::Thread::start(name, move || open(parts), failed).await?;
        Ok(Self { inner: Arc::new(Inner { image, opened, thread }) })
    }

    /// Returns the image as of the newest entry that was applied here.
    pub fn image(&self) -> Arc<Image> {
        self.inner.image.load_full()
    }

    /// Returns what holds the image, for readers that look often.
    pub fn published(&self) -> Arc<ArcSwap<Image>> {
        Arc::clone(&self.inner.image)
    }

    /// Returns what is told of every command that may change who reads what: changes of topics and
    /// of consumer groups, not commits.
    pub fn members_changed(&self) -> watch::Receiver<u64> {
        self.inner.opened.members_changed.clone()
    }

    /// Returns what is known of the shard's leadership.
    pub fn status(&self) -> Status {
        self.inner.opened.group.status()
    }

    /// Returns the shard's group.
    pub fn group(&self) -> &Group {
        &self.inner.opened.group
    }

    /// Proposes a command and waits until it is applied here: returns its place in the log and what
    /// became of it.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn change(&self, command: &Command) -> Result<(LogPosition, Response), ChangeError> {
        let (sender, applied) = oneshot::channel();
        let applying: Applying = Mutex::new(Some(sender));
        let command = raft::Command::new(vec![command.encode()?], Some(Box::new(applying)));
        match self.inner.opened.group.propose(command).await {
            Ok(()) => applied.await.map_err(|_lost| ChangeError::OutcomeUnknown),
            Err(ProposeError::NotLeader { .. }) => Err(ChangeError::NotLeader),
            Err(ProposeError::OutcomeUnknown) => Err(ChangeError::OutcomeUnknown),
        }
    }

    /// Stops the shard: no more entries, a last checkpoint, the thread ends.
    pub async fn close(&self) {
        self.inner.opened.group.shutdown().await;
        if self.inner.opened.checkpointer.wal.is_storage_full() {
            tracing::warn!("no last checkpoint of the metadata: the disk is full");
        } else if let Err(error) = self.inner.opened.checkpointer.write(Unchanged::Skip).await {
            tracing::warn!(%error, "no last checkpoint of the metadata");
        }
        self.inner.thread.join().await;
    }
}

fn refuse(detail: String) -> StartError {
    StartError::Storage { shard: ShardId::METADATA, detail }
}

async fn open(parts: ShardParts) -> Result<Opened, StartError> {
    let ShardParts { replica, members, checkpoints, wal, image, feed, config, .. } = parts;
    let (ballast, on_failure) = (parts.ballast, parts.on_failure);
    let (files, checkpoint) = checkpoints;
    let machine = Machine::open(checkpoint, image, feed);
    let machine = machine.map_err(|error| refuse(error.to_string()))?;
    let members_changed = machine.members_changed();
    let machine = Arc::new(Mutex::new(machine));
    let mut shared = SharedMachine(Arc::clone(&machine));
    let replayed = raft::replay(&wal, replica, &mut shared);
    let entries = replayed.map_err(|error| refuse(error.to_string()))?;
    tracing::info!(entries, "metadata recovered");
    let group = Group::start(raft::Parts {
        shard: ShardId::METADATA,
        replica,
        members,
        wal: wal.clone(),
        machine: Arc::new(Mutex::new(Box::new(shared))),
        config,
        leads: Arc::new(AtomicBool::new(false)),
    })
    .await?;
    let checkpointer = Arc::new(Checkpointer {
        machine,
        files: Arc::new(files),
        ballast,
        on_failure,
        wal,
        replica,
        purgeable: Mutex::new(None),
        turn: tokio::sync::Mutex::new(()),
    });
    group.runtime().spawn(Arc::clone(&checkpointer).run(group.clone()));
    Ok(Opened { group, members_changed, checkpointer })
}

/// What a checkpoint is for when nothing changed since the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unchanged {
    /// Nothing: it is not written.
    Skip,
    /// It replaces the older generation.
    Rewrite,
}

/// Writes the image's checkpoints; two generations are kept, so the log is purged only up to the
/// older one.
struct Checkpointer {
    machine: Arc<Mutex<Machine>>,
    files: Arc<CheckpointFile>,
    ballast: Arc<Ballast>,
    on_failure: OnFailure,
    wal: Wal,
    replica: ReplicaId,
    purgeable: Mutex<Option<RaftIndex>>,
    turn: tokio::sync::Mutex<()>,
}

impl Checkpointer {
    async fn run(self: Arc<Self>, group: Group) {
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = tokio::time::Instant::now();
        while group.status().running {
            look.tick().await;
            let many = self.machine.lock().entries_since_checkpoint() >= ENTRIES_MAX;
            if many || self.is_pressed() || last.elapsed() >= AGE_MAX {
                last = tokio::time::Instant::now();
                // The log is kept back to the older generation: two writes bring both past its
                // file.
                let written = match self.write(Unchanged::Skip).await {
                    Ok(()) if self.is_pressed() => self.write(Unchanged::Rewrite).await,
                    other => other,
                };
                if let Err(error) = written {
                    tracing::error!(%error, "checkpoint of the metadata failed");
                }
            }
            self.purge(&group).await;
        }
    }

    /// Writes a checkpoint if anything changed. The write-ahead log is synced past the picture
    /// first, or a power cut could leave the checkpoint ahead of the log.
    async fn write(&self, unchanged: Unchanged) -> Result<(), String> {
        let _turn = self.turn.lock().await;
        let picture = {
            let machine = self.machine.lock();
            let is_due = unchanged == Unchanged::Rewrite || machine.is_checkpoint_due();
            if is_due { machine.picture() } else { None }
        };
        let Some((checkpoint, covers)) = picture else { return Ok(()) };
        let (done, synced) = oneshot::channel();
        self.wal.barrier(Box::new(move |result| drop(done.send(result))));
        let synced = synced.await.map_err(|_ended| "the write-ahead log has ended".to_owned())?;
        synced.map_err(|error| error.to_string())?;
        let checkpoint = Arc::new(checkpoint);
        let mut written = self.write_file(&checkpoint).await;
        if matches!(&written, Err(error) if error.is_full()) && self.ballast.release() {
            written = self.write_file(&checkpoint).await;
        }
        let purgeable = written.map_err(|error| {
            if !error.is_full() {
                (self.on_failure)(&error.to_string());
            }
            error.to_string()
        })?;
        *self.purgeable.lock() = purgeable.map(|at| at.index);
        self.machine.lock().picture_durable(covers);
        Ok(())
    }

    /// Returns whether the log is too large and newer checkpoints of this shard would let a file
    /// go.
    fn is_pressed(&self) -> bool {
        let Some(pressure) = self.wal.pressure() else { return false };
        let purgeable = *self.purgeable.lock();
        let held = pressure.hold.iter().find(|(replica, _)| *replica == self.replica);
        held.is_some_and(|(_, held)| purgeable.is_none_or(|purgeable| purgeable < *held))
    }

    async fn write_file(&self, checkpoint: &Arc<Checkpoint>) -> Result<Option<LogPosition>, Error> {
        let (files, checkpoint) = (Arc::clone(&self.files), Arc::clone(checkpoint));
        match tokio::task::spawn_blocking(move || files.write(&checkpoint)).await {
            Ok(written) => written,
            // The blocking pool ends only with the process.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    async fn purge(&self, group: &Group) {
        let Some(pressure) = self.wal.pressure() else { return };
        let held = pressure.hold.iter().find(|(replica, _)| *replica == self.replica);
        let purgeable = *self.purgeable.lock();
        if let (Some((_, held)), Some(purgeable)) = (held, purgeable)
            && *held <= purgeable
        {
            group.purge(*held).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};
    use std::pin::pin;

    use bytes::Bytes;

    use super::*;
    use crate::metadata::view::{LazySqlite, view_writer};
    use crate::raft::StateMachine;
    use crate::storage::fs::Fs;
    use crate::storage::fs::sim::SimFs;
    use crate::storage::wal::{self, Entry};
    use crate::types::Term;

    const REPLICA: ReplicaId = ReplicaId::new(1);
    const DIRECTORY: &str = "/shards/0";

    /// A checkpointer whose machine has applied entry `applied`, without a group above it.
    fn checkpointer(fs: &SimFs, applied: LogPosition) -> Checkpointer {
        fs.shared().create_dir_all(Path::new(DIRECTORY)).unwrap();
        let floors = BTreeMap::new();
        let (config, observer) = (wal::Config::default(), Arc::new(wal::NoObserver));
        let wal = Wal::open(fs.shared(), Path::new("/wal"), config, &floors, observer).unwrap().0;
        let image: Arc<ArcSwap<Image>> = Arc::default();
        let current = Arc::clone(&image);
        let view = Arc::new(LazySqlite::new(PathBuf::from("/nowhere/metadata.db")));
        let (feed, _writer) = view_writer(view, move || current.load_full());
        let mut machine = Machine::open(None, image, feed).unwrap();
        machine.advance(applied, None);
        Checkpointer {
            machine: Arc::new(Mutex::new(machine)),
            files: Arc::new(CheckpointFile::new(fs.shared(), Path::new(DIRECTORY))),
            ballast: Arc::new(Ballast::new(fs.shared(), PathBuf::from("/ballast"))),
            on_failure: Arc::new(|reason| panic!("{reason}")),
            wal,
            replica: REPLICA,
            purgeable: Mutex::new(None),
            turn: tokio::sync::Mutex::new(()),
        }
    }

    fn names(fs: &SimFs) -> Vec<String> {
        Fs::list(fs, Path::new(DIRECTORY)).unwrap().into_iter().map(|entry| entry.name).collect()
    }

    fn at(index: u64) -> LogPosition {
        LogPosition { term: Term::new(1), index: RaftIndex::new(index) }
    }

    fn append(checkpointer: &Checkpointer, at: LogPosition) {
        let payload = vec![Bytes::from_static(b"applied")];
        let entry = Entry { index: at.index, term: at.term, payload };
        checkpointer.wal.append(REPLICA, vec![entry], Box::new(|_| {}));
    }

    /// As for data shards: see the test of their checkpointer.
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
            let checkpointer = checkpointer(&fs, at(1));
            fs.hold_syncs_of("wal");
            append(&checkpointer, at(1));
            let mut writing = pin!(checkpointer.write(Unchanged::Skip));
            assert!(futures_util::poll!(writing.as_mut()).is_pending());
            tokio::task::spawn_blocking(|| {}).await.unwrap();
            assert!(futures_util::poll!(writing.as_mut()).is_pending());
            assert_eq!(names(&fs), Vec::<String>::new(), "it is ahead of the log");
            fs.resume_syncs();
            writing.await.unwrap();
            assert_eq!(names(&fs), ["checkpoint"]);
        });
    }

    /// The older generation is what a start falls back to when the newer one is damaged.
    #[tokio::test]
    async fn the_log_is_kept_back_to_the_older_generation() {
        let fs = SimFs::new();
        let checkpointer = checkpointer(&fs, at(1));
        for (index, purgeable) in [(1, None), (2, Some(1)), (3, Some(2))] {
            append(&checkpointer, at(index));
            checkpointer.machine.lock().advance(at(index), None);
            checkpointer.write(Unchanged::Skip).await.unwrap();
            assert_eq!(*checkpointer.purgeable.lock(), purgeable.map(RaftIndex::new), "{index}");
        }
    }
}
