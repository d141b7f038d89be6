//! A running shard: its thread, its group, and the handle that the broker uses.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, oneshot};

use crate::clock::SharedClock;
use crate::metrics::ShardMetrics;
use crate::raft::{self, Command, Group, Members, ProposeError, Status};
use crate::shard::accumulator::Partition;
use crate::shard::checkpointer::Checkpointer;
use crate::shard::command::{Body, encode_control};
use crate::shard::error::{ControlError, OpenError};
use crate::shard::machine::{
    Applying, FLUSH_INTERVAL, Flush, Machine, MachineParts, SharedMachine,
};
use crate::shard::proposer::{self, Proposer};
use crate::storage::ballast::Ballast;
use crate::storage::checkpoint::{CheckpointStore, ShardCheckpoint};
use crate::storage::log::{DamagedRange, Store};
use crate::storage::wal::Wal;
use crate::types::{
    LogPosition, Offset, PartitionId, ReplicaId, ShardId, Timestamp, TopicConfig, TopicId,
    TopicPartition,
};

/// How long a shard that stops waits for what was accepted to be written.
const LAST_WRITES_MAX: Duration = Duration::from_secs(5);

/// Settings of a shard.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Timing of the group.
    pub raft: raft::Config,
}

/// What a shard is made of.
pub struct ShardParts {
    /// The shard.
    pub shard: ShardId,
    /// This node's replica of it.
    pub replica: ReplicaId,
    /// The members that the group starts with, when it has never started.
    pub members: Members,
    /// The shard's checkpoint files, and the newest checkpoint in them.
    pub checkpoints: (CheckpointStore, Option<ShardCheckpoint>),
    /// The node's write-ahead log.
    pub wal: Wal,
    /// The node's segment store.
    pub store: Arc<Store>,
    /// Time.
    pub clock: SharedClock,
    /// Measurements.
    pub metrics: ShardMetrics,
    /// Set while the disk is nearly full.
    pub storage_full: Arc<AtomicBool>,
    /// Room on the disk that is given back when a write finds none.
    pub ballast: Arc<Ballast>,
    /// Settings.
    pub config: Config,
}

/// The partitions of a shard by identity. Read by anyone, changed by `apply`.
#[derive(Debug, Default)]
pub(crate) struct Partitions {
    map: RwLock<HashMap<TopicPartition, Arc<Partition>>>,
}

impl Partitions {
    pub(crate) fn get(&self, id: TopicPartition) -> Option<Arc<Partition>> {
        self.map.read().get(&id).cloned()
    }

    pub(crate) fn insert(&self, partition: Arc<Partition>) {
        self.map.write().insert(partition.id(), partition);
    }

    pub(crate) fn remove(&self, id: TopicPartition) {
        if let Some(partition) = self.map.write().remove(&id) {
            partition.set_deleted();
        }
    }
}

/// A handle to a running shard. Clones are cheap.
#[derive(Clone)]
pub struct Shard {
    inner: Arc<Inner>,
}

struct Inner {
    opened: Opened,
    thread: raft::Thread,
}

/// What the shard's thread hands to the handle.
struct Opened {
    group: Group,
    partitions: Arc<Partitions>,
    proposer: Arc<Proposer>,
    checkpointer: Arc<Checkpointer>,
    machine: Arc<Mutex<Machine>>,
    clock: SharedClock,
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.opened.group.fmt(f)
    }
}

impl Shard {
    /// Recovers a shard and starts its group on a thread of its own. It serves once it leads.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn start(parts: ShardParts) -> Result<Self, OpenError> {
        let shard = parts.shard;
        let failed =
            move |error: std::io::Error| OpenError::Storage { shard, source: error.into() };
        let (thread, opened) =
            raft::Thread::start(format!("shard-{shard}"), move || open(parts), failed).await?;
        Ok(Self { inner: Arc::new(Inner { opened, thread }) })
    }

    /// Returns which shard this is.
    pub fn id(&self) -> ShardId {
        self.inner.opened.group.shard()
    }

    /// Returns what is known of the shard's leadership.
    pub fn status(&self) -> Status {
        self.inner.opened.group.status()
    }

    /// Returns the shard's group.
    pub fn group(&self) -> &Group {
        &self.inner.opened.group
    }

    /// Finds a partition that this replica has applied.
    pub fn partition(&self, id: TopicPartition) -> Option<Arc<Partition>> {
        self.inner.opened.partitions.get(id)
    }

    /// Returns the number of partitions.
    pub fn partition_count(&self) -> usize {
        self.inner.opened.partitions.map.read().len()
    }

    /// Lists what is known to be damaged on this disk.
    pub fn damaged_ranges(&self) -> Vec<(TopicPartition, DamagedRange)> {
        let partitions = self.inner.opened.partitions.map.read();
        let damaged = partitions.values().flat_map(|partition| {
            let ranges = partition.reader().damaged_ranges();
            ranges.into_iter().map(|range| (partition.id(), range))
        });
        damaged.collect()
    }

    /// Returns the bytes that wait in accumulators, and the entries in flight.
    pub fn queue(&self) -> (usize, usize) {
        (self.inner.opened.proposer.queued_bytes(), self.inner.opened.proposer.in_flight())
    }

    /// Returns whether something of the shard found no room on the disk when it was last written.
    pub fn has_no_room(&self) -> bool {
        self.inner.opened.proposer.has_no_room()
    }

    /// Returns the newest time that any entry carried, if any did.
    pub fn last_write(&self) -> Option<Timestamp> {
        let time = self.inner.opened.machine.lock().time();
        (time > Timestamp::from_millis(0)).then_some(time)
    }

    /// Waits until the accumulators have room.
    pub async fn wait_for_room(&self) {
        self.inner.opened.proposer.wait_for_room().await;
    }

    /// Creates partitions of a topic, as the metadata entry at `origin` says. Those that exist
    /// stay.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn create_partitions(
        &self,
        origin: LogPosition,
        topic: TopicId,
        config: TopicConfig,
        partitions: Vec<PartitionId>,
    ) -> Result<(), ControlError> {
        self.control(Body::Create { origin, topic, config, partitions }).await
    }

    /// Changes a topic's configuration, as the metadata entry at `origin` says.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn configure_topic(
        &self,
        origin: LogPosition,
        topic: TopicId,
        config: TopicConfig,
    ) -> Result<(), ControlError> {
        self.control(Body::Configure { origin, topic, config }).await
    }

    /// Drops all partitions of a topic; from here on producing to them fails. Their files go with
    /// the next checkpoint, which is asked for.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn delete_topic(
        &self,
        origin: LogPosition,
        topic: TopicId,
    ) -> Result<(), ControlError> {
        self.control(Body::Delete { origin, topic }).await?;
        self.inner.opened.checkpointer.wanted.notify_one();
        Ok(())
    }

    /// Moves a partition's log start forward: records before it are gone.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn advance_log_start(
        &self,
        partition: TopicPartition,
        offset: Offset,
    ) -> Result<(), ControlError> {
        self.advance_log_starts(vec![(partition, offset)]).await
    }

    /// Moves the log starts that retention wants moved at `now`, as the leader does by itself now
    /// and then. Returns how many moved. The caller has checked that the clock can be trusted.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn run_retention(&self, now: Timestamp) -> Result<usize, ControlError> {
        let targets = self.inner.opened.machine.lock().retention_targets(now);
        let count = targets.len();
        self.advance_log_starts(targets).await?;
        Ok(count)
    }

    /// Moves log starts, and asks for one checkpoint, with which the files of all of them go.
    async fn advance_log_starts(
        &self,
        targets: Vec<(TopicPartition, Offset)>,
    ) -> Result<(), ControlError> {
        let mut moved = Ok(());
        for (partition, offset) in targets {
            moved = self.control(Body::LogStart { partition, offset }).await;
            if moved.is_err() {
                break;
            }
        }
        self.inner.opened.checkpointer.wanted.notify_one();
        moved
    }

    /// Writes a checkpoint now, if anything changed.
    ///
    /// # Errors
    /// What kept it from being written, in words.
    pub async fn checkpoint(&self) -> Result<(), String> {
        self.inner.opened.checkpointer.write().await.map_err(|error| error.to_string())
    }

    /// Stops the shard: no more records, those that were accepted are written, a last checkpoint,
    /// the thread ends. Without room for the log nothing is waited for and there is no checkpoint,
    /// since both would wait for the log; the next start replays more.
    pub async fn close(&self) {
        let proposer = &self.inner.opened.proposer;
        proposer.close();
        if !self.inner.opened.checkpointer.wal.is_storage_full() && self.status().leads {
            let written = tokio::time::timeout(LAST_WRITES_MAX, proposer.wait_until_idle()).await;
            if written.is_err() {
                tracing::warn!(shard = %self.id(), "records that were accepted are not written");
            }
        }
        self.inner.opened.group.shutdown().await;
        if self.inner.opened.checkpointer.wal.is_storage_full() {
            tracing::warn!(shard = %self.id(), "no last checkpoint: the disk is full");
        } else if let Err(error) = self.checkpoint().await {
            tracing::warn!(shard = %self.id(), %error, "no last checkpoint");
        }
        self.inner.thread.join().await;
    }

    async fn control(&self, body: Body) -> Result<(), ControlError> {
        let (sender, applied) = oneshot::channel();
        let applying: Applying = Mutex::new(Some(sender));
        let parts = encode_control(self.inner.opened.clock.now(), &body);
        let command = Command::new(parts, Some(Box::new(applying)));
        match self.inner.opened.group.propose(command).await {
            Ok(()) => applied.await.map_err(|_lost| ControlError::OutcomeUnknown),
            Err(ProposeError::NotLeader { .. }) => Err(ControlError::NotLeader),
            Err(ProposeError::OutcomeUnknown) => Err(ControlError::OutcomeUnknown),
        }
    }
}

async fn open(parts: ShardParts) -> Result<Opened, OpenError> {
    let ShardParts {
        shard,
        replica,
        members,
        checkpoints: (files, checkpoint),
        wal,
        store,
        clock,
        metrics,
        storage_full,
        ballast,
        config,
    } = parts;
    let refuse = |source| OpenError::Storage { shard, source };
    let partitions = Arc::new(Partitions::default());
    let leads = Arc::new(AtomicBool::new(false));
    let proposer = Proposer::new(Arc::clone(&leads), storage_full);
    let machine_parts = MachineParts {
        shard,
        store: Arc::clone(&store),
        partitions: Arc::clone(&partitions),
        proposer: Arc::clone(&proposer),
        metrics: metrics.clone(),
    };
    let machine = Machine::open(machine_parts, checkpoint.as_ref()).map_err(refuse)?;
    let machine = Arc::new(Mutex::new(machine));
    let mut shared = SharedMachine(Arc::clone(&machine));
    let replayed = raft::replay(&wal, replica, &mut shared).map_err(|e| refuse(e.into()))?;
    tracing::info!(%shard, entries = replayed, "shard recovered");
    let group = Group::start(raft::Parts {
        shard,
        replica,
        members,
        wal: wal.clone(),
        machine: Arc::new(Mutex::new(Box::new(shared))),
        config: config.raft.clone(),
        leads,
    })
    .await?;
    let wanted = Arc::new(Notify::new());
    let asked = Arc::clone(&wanted);
    store.on_descriptor_pressure(move || asked.notify_one());
    let checkpointer = Arc::new(Checkpointer {
        machine: Arc::clone(&machine),
        files: Arc::new(Mutex::new(files)),
        store,
        ballast: Arc::clone(&ballast),
        wal,
        replica,
        metrics: metrics.clone(),
        wanted,
        turn: tokio::sync::Mutex::new(()),
    });
    let runtime = group.runtime().clone();
    let proposing = proposer::run(Arc::clone(&proposer), group.clone(), clock.clone(), metrics);
    runtime.spawn(proposing);
    runtime.spawn(sweep(Arc::clone(&machine), group.clone(), ballast));
    runtime.spawn(Arc::clone(&checkpointer).run(group.clone()));
    Ok(Opened { group, partitions, proposer, checkpointer, machine, clock })
}

/// Writes what small appends left in memory.
async fn sweep(machine: Arc<Mutex<Machine>>, group: Group, ballast: Arc<Ballast>) {
    let mut tick = tokio::time::interval(FLUSH_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while group.status().running {
        tick.tick().await;
        let mut flushed = machine.lock().flush(Flush::All);
        if matches!(&flushed, Err(error) if error.is_full()) && ballast.release() {
            flushed = machine.lock().flush(Flush::All);
        }
        match flushed {
            Ok(()) => {}
            // Still in memory and in the write-ahead log; written when there is room.
            Err(error) if error.is_full() => {}
            Err(error) => {
                tracing::error!(shard = %group.shard(), %error, "segments cannot be written");
                return;
            }
        }
    }
}
