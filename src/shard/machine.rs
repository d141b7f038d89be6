//! The state machine of a data shard: its partitions' logs and what decides how they change.
//!
//! Records are appended in memory; files are written in [`Machine::flush`], between entries, at the
//! latest [`FLUSH_INTERVAL`] later: with many partitions one write a partition and interval
//! replaces one a batch. Readers take what is not written yet from the tail cache, and a restart
//! replays it from the write-ahead log.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;

use crate::metrics::ShardMetrics;
use crate::raft::{self, Command, Recovered, StateMachine};
use crate::record;
use crate::shard::accumulator::Partition;
use crate::shard::command::{self, Body, ShardCommand, invalid};
use crate::shard::error::AppendError;
use crate::shard::pending::Waiter;
use crate::shard::proposer::{NoRoom, Proposer, Waiters};
use crate::shard::runtime::Partitions;
use crate::storage::checkpoint::{Changes, ShardCheckpoint};
use crate::storage::log::{self, PartitionLog, Removed, Store, SyncTarget};
use crate::types::{
    LogPosition, Offset, PartitionId, ShardId, Timestamp, TimestampType, TopicConfig, TopicId,
    TopicPartition,
};

/// Longest time that applied records stay out of the segment files.
pub(crate) const FLUSH_INTERVAL: Duration = Duration::from_millis(50);

/// A partition with this much to write is written at the end of the run of entries.
const FLUSH_BYTES: usize = 256 * 1024;

/// Topics that were deleted and are remembered, so that a late command cannot bring them back.
const DELETED_TOPICS_MAX: usize = 10_000;

/// What a waiter of a control command learns: that it was applied.
pub(crate) type Applying = Mutex<Option<tokio::sync::oneshot::Sender<()>>>;

/// The state machine of one data shard.
pub(crate) struct Machine {
    shard: ShardId,
    store: Arc<Store>,
    partitions: Arc<Partitions>,
    proposer: Arc<Proposer>,
    metrics: ShardMetrics,
    applied: Option<LogPosition>,
    /// An entry is applied, or was in part when something failed: then no checkpoint may have it,
    /// since the next start would apply it again from the beginning.
    is_applying: bool,
    membership: Option<(LogPosition, Bytes)>,
    /// Largest clock that any entry carried; the only time that `apply` knows.
    time: Timestamp,
    topics: BTreeMap<TopicId, TopicState>,
    /// The newest deletion that is no longer remembered: a topic that is not known is not news at
    /// or below it.
    forgotten: Option<LogPosition>,
    logs: HashMap<TopicPartition, PartitionLog>,
    /// Partitions with records that are not in their segment files.
    unflushed: BTreeSet<TopicPartition>,
    /// Partitions whose checkpointed state is out of date.
    changed: BTreeSet<TopicPartition>,
    /// Partitions that the newest checkpoint may still name and that are gone.
    removed: BTreeSet<TopicPartition>,
    /// Files that the newest checkpoint may still name and that are no longer part of a log.
    removed_files: Vec<Removed>,
    /// What checkpoints that failed should have synced: the next one does.
    unsynced: Vec<SyncTarget>,
    checkpointed: Recovered,
}

/// What a shard knows of a topic.
#[derive(Debug, Clone)]
struct TopicState {
    /// The metadata entry that was last carried out for it; older ones are refused.
    origin: LogPosition,
    config: TopicConfig,
    deleted: bool,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("shard", &self.shard)
            .field("applied", &self.applied)
            .finish()
    }
}

/// What a machine is made of.
pub(crate) struct MachineParts {
    pub(crate) shard: ShardId,
    pub(crate) store: Arc<Store>,
    pub(crate) partitions: Arc<Partitions>,
    pub(crate) proposer: Arc<Proposer>,
    pub(crate) metrics: ShardMetrics,
}

/// A consistent picture of the machine, to be made durable.
pub(crate) struct Picture {
    pub(crate) changes: Changes,
    pub(crate) covers: Recovered,
    pub(crate) sync: Vec<SyncTarget>,
    /// Files that this checkpoint does not name any more.
    pub(crate) removed_files: Vec<Removed>,
}

impl Machine {
    /// Rebuilds the machine from its newest checkpoint.
    ///
    /// # Errors
    /// The storage layer's, and `InvalidData` when the checkpoint does not decode.
    pub(crate) fn open(
        parts: MachineParts,
        checkpoint: Option<&ShardCheckpoint>,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let MachineParts { shard, store, partitions, proposer, metrics } = parts;
        let mut machine = Self {
            shard,
            store,
            partitions,
            proposer,
            metrics,
            applied: None,
            is_applying: false,
            membership: None,
            time: Timestamp::from_millis(0),
            topics: BTreeMap::new(),
            forgotten: None,
            logs: HashMap::new(),
            unflushed: BTreeSet::new(),
            changed: BTreeSet::new(),
            removed: BTreeSet::new(),
            removed_files: Vec::new(),
            unsynced: Vec::new(),
            checkpointed: Recovered::default(),
        };
        let Some(checkpoint) = checkpoint else { return Ok(machine) };
        machine.applied = checkpoint.applied;
        machine.membership = raft::split_membership(checkpoint.membership.clone())?;
        machine.time = checkpoint.shard_time;
        (machine.topics, machine.forgotten) = decode_topics(checkpoint.extra.clone())?;
        for (id, state) in &checkpoint.partitions {
            let config = machine.config(id.topic);
            let log = PartitionLog::open(&machine.store, *id, &config, state)?;
            machine.publish_partition(*id, log, config);
        }
        machine.checkpointed = machine.recovered();
        Ok(machine)
    }

    fn config(&self, topic: TopicId) -> TopicConfig {
        self.topics.get(&topic).map(|topic| topic.config.clone()).unwrap_or_default()
    }

    fn publish_partition(&mut self, id: TopicPartition, log: PartitionLog, config: TopicConfig) {
        let partition = Partition::new(id, log.reader(), Arc::clone(&self.proposer), config);
        self.partitions.insert(Arc::new(partition));
        self.logs.insert(id, log);
    }

    /// Returns whether a command that carries out the metadata entry `origin` is news for a topic.
    fn is_news(&self, topic: TopicId, origin: LogPosition) -> bool {
        match self.topics.get(&topic) {
            Some(known) => !known.deleted && origin >= known.origin,
            None => self.forgotten.is_none_or(|forgotten| origin > forgotten),
        }
    }

    fn create(
        &mut self,
        origin: LogPosition,
        topic: TopicId,
        config: &TopicConfig,
        partitions: &[PartitionId],
    ) {
        if !self.is_news(topic, origin) {
            return;
        }
        let state = TopicState { origin, config: config.clone(), deleted: false };
        self.topics.insert(topic, state);
        for partition in partitions {
            let id = TopicPartition { topic, partition: *partition };
            if !self.logs.contains_key(&id) {
                let log = PartitionLog::create(&self.store, id, config);
                self.publish_partition(id, log, config.clone());
                self.changed.insert(id);
            }
        }
        self.configure(topic, config);
    }

    fn configure(&mut self, topic: TopicId, config: &TopicConfig) {
        for (id, log) in self.logs.iter_mut().filter(|(id, _)| id.topic == topic) {
            log.set_config(config);
            if let Some(partition) = self.partitions.get(*id) {
                partition.set_config(config.clone());
            }
        }
    }

    fn delete(&mut self, origin: LogPosition, topic: TopicId) {
        if !self.is_news(topic, origin) {
            return;
        }
        let config = TopicConfig::default();
        self.topics.insert(topic, TopicState { origin, config, deleted: true });
        let gone: Vec<_> = self.logs.keys().filter(|id| id.topic == topic).copied().collect();
        for id in gone {
            self.partitions.remove(id);
            self.unflushed.remove(&id);
            self.changed.remove(&id);
            self.removed.insert(id);
            if let Some(log) = self.logs.remove(&id) {
                self.removed_files.push(log.remove());
            }
        }
        self.forget_oldest_deleted();
    }

    fn forget_oldest_deleted(&mut self) {
        let deleted: Vec<_> = self
            .topics
            .iter()
            .filter(|(_, topic)| topic.deleted)
            .map(|(id, topic)| (topic.origin, *id))
            .collect();
        if let Some(extra) =
            deleted.len().checked_sub(DELETED_TOPICS_MAX).filter(|extra| *extra > 0)
        {
            let mut oldest = deleted;
            oldest.sort_unstable();
            for (origin, id) in oldest.into_iter().take(extra) {
                self.topics.remove(&id);
                self.forgotten = self.forgotten.max(Some(origin));
            }
        }
    }

    fn append(
        &mut self,
        position: LogPosition,
        batches: Vec<(TopicPartition, Bytes)>,
        waiters: Vec<Vec<Waiter>>,
    ) -> io::Result<()> {
        let mut waiters = waiters.into_iter();
        for (id, batch) in batches {
            let waiters = waiters.next().unwrap_or_default();
            let Some(log) = self.logs.get_mut(&id) else {
                for waiter in waiters {
                    waiter.failed(AppendError::Deleted);
                }
                continue;
            };
            let stamp = self.topics.get(&id.topic).map(|topic| topic.config.timestamp_type());
            let (batch, time) = match stamp {
                Some(TimestampType::LogAppendTime) => {
                    let stamped = record::rewrite_append_time(&batch, self.time);
                    (stamped.map_err(invalid)?, Some(self.time))
                }
                _ => (batch, None),
            };
            let appended =
                log.append(batch, position.term.leader_epoch()).map_err(io::Error::other)?;
            log.publish();
            if log.pending_bytes() > 0 {
                self.unflushed.insert(id);
            }
            self.changed.insert(id);
            for waiter in waiters {
                waiter.written(appended.base_offset, time);
            }
        }
        Ok(())
    }

    fn advance_log_start(&mut self, id: TopicPartition, offset: Offset) {
        if let Some(log) = self.logs.get_mut(&id) {
            log.advance_log_start(offset);
            self.changed.insert(id);
        }
    }

    /// Writes records to the segment files: of the partitions that have much to write, or of all.
    ///
    /// # Errors
    /// The storage layer's. When the disk is full the records are still in memory and in the
    /// write-ahead log: calling again writes them once there is room, and no more are accepted
    /// until all are written.
    pub(crate) fn flush(&mut self, which: Flush) -> Result<(), log::Error> {
        let flushed = self.flush_each(which);
        if matches!(&flushed, Err(error) if error.is_full()) {
            self.proposer.set_no_room(NoRoom::Segments, true);
        } else if self.unflushed.is_empty() {
            self.proposer.set_no_room(NoRoom::Segments, false);
        }
        flushed
    }

    /// Writes each partition that is due; one for which there is no room keeps none of the others
    /// from being written.
    fn flush_each(&mut self, which: Flush) -> Result<(), log::Error> {
        let due = |log: &PartitionLog| match which {
            Flush::All => true,
            Flush::Large => log.pending_bytes() >= FLUSH_BYTES,
        };
        let mut outcome = Ok(());
        let ids: Vec<_> = self.unflushed.iter().copied().collect();
        for id in ids {
            let Some(log) = self.logs.get_mut(&id) else { continue };
            if !due(log) {
                continue;
            }
            match log.flush() {
                Ok(()) => {
                    self.unflushed.remove(&id);
                    self.changed.insert(id);
                }
                Err(error) if error.is_full() => outcome = outcome.and(Err(error)),
                Err(error) => return Err(error),
            }
        }
        outcome
    }

    /// Returns the shard's time.
    pub(crate) fn time(&self) -> Timestamp {
        self.time
    }

    /// Notes whether there was room for the last checkpoint.
    pub(crate) fn checkpoint_had_room(&self, had_room: bool) {
        self.proposer.set_no_room(NoRoom::Checkpoint, !had_room);
    }

    /// Lists the log starts that retention wants now.
    pub(crate) fn retention_targets(&mut self, now: Timestamp) -> Vec<(TopicPartition, Offset)> {
        let targets = self.logs.iter_mut();
        targets.filter_map(|(id, log)| Some((*id, log.retention_target(now)?))).collect()
    }

    /// Returns whether anything changed since the newest checkpoint.
    pub(crate) fn is_checkpoint_due(&self) -> bool {
        self.applied != self.checkpointed.applied
            || !self.changed.is_empty()
            || !self.removed.is_empty()
    }

    /// Takes a picture to be made durable: everything applied so far, with all files written.
    ///
    /// # Errors
    /// As [`Machine::flush`]; [`log::Error::Poisoned`] when an entry was applied in part.
    pub(crate) fn picture(&mut self) -> Result<Picture, log::Error> {
        if self.is_applying {
            return Err(log::Error::Poisoned("an entry was applied in part".into()));
        }
        self.flush(Flush::All)?;
        let changed = std::mem::take(&mut self.changed);
        let mut partitions = BTreeMap::new();
        let mut sync = std::mem::take(&mut self.unsynced);
        for id in changed {
            if let Some(log) = self.logs.get_mut(&id) {
                partitions.insert(id, log.state());
                sync.extend(log.sync_targets());
                let removed = log.take_removed();
                if !removed.is_empty() {
                    self.removed_files.push(removed);
                }
            }
        }
        log::dedup(&mut sync);
        let covers = self.recovered();
        let changes = Changes {
            applied: covers.applied,
            membership: raft::join_membership(self.membership.as_ref()),
            shard_time: self.time,
            extra: encode_topics(&self.topics, self.forgotten),
            changed: partitions,
            removed: std::mem::take(&mut self.removed).into_iter().collect(),
        };
        Ok(Picture {
            changes,
            covers,
            sync,
            removed_files: std::mem::take(&mut self.removed_files),
        })
    }

    /// Returns the last entry that the newest checkpoint covers.
    pub(crate) fn checkpointed_index(&self) -> Option<crate::types::RaftIndex> {
        self.checkpointed.applied.map(|at| at.index)
    }

    /// Puts back what a picture took when it could not be made durable.
    pub(crate) fn picture_failed(&mut self, picture: Picture) {
        self.changed.extend(picture.changes.changed.into_keys());
        self.removed.extend(picture.changes.removed);
        self.removed_files.extend(picture.removed_files);
        self.unsynced.extend(picture.sync);
    }

    /// Notes that a picture is durable: files that it does not name may go.
    pub(crate) fn picture_durable(&mut self, covers: Recovered) {
        self.checkpointed = covers;
    }
}

/// Which partitions are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    /// Those with at least [`FLUSH_BYTES`].
    Large,
    /// All that have anything.
    All,
}

impl StateMachine for Machine {
    fn recovered(&self) -> Recovered {
        Recovered { applied: self.applied, membership: self.membership.clone() }
    }

    fn apply(&mut self, position: LogPosition, command: &Command) -> io::Result<()> {
        let ShardCommand { clock, body } = command::decode(command.parts())?;
        self.is_applying = true;
        self.time = self.time.max(clock);
        match body {
            Body::Append(batches) => {
                let waiters = command.local::<Arc<Waiters>>();
                let groups = waiters.map(|waiters| waiters.take()).unwrap_or_default();
                self.append(position, batches, groups)?;
                if let Some(waiters) = waiters {
                    waiters.finish();
                }
            }
            Body::Create { origin, topic, config, partitions } => {
                self.create(origin, topic, &config, &partitions);
            }
            Body::Delete { origin, topic } => self.delete(origin, topic),
            Body::Configure { origin, topic, config } => {
                if self.is_news(topic, origin) {
                    self.configure(topic, &config);
                    self.topics.insert(topic, TopicState { origin, config, deleted: false });
                }
            }
            Body::LogStart { partition, offset } => self.advance_log_start(partition, offset),
        }
        self.applied = Some(position);
        self.is_applying = false;
        if let Some(applying) = command.local::<Applying>()
            && let Some(applied) = applying.lock().take()
        {
            // The caller may have given up waiting; the command is applied all the same.
            let _ = applied.send(());
        }
        Ok(())
    }

    fn advance(&mut self, position: LogPosition, membership: Option<Bytes>) {
        self.applied = Some(position);
        if let Some(membership) = membership {
            self.membership = Some((position, membership));
        }
    }

    fn end_of_run(&mut self) -> io::Result<()> {
        match self.flush(Flush::Large) {
            // Not lost: still in memory and in the write-ahead log, and tried again on the sweep.
            Ok(()) => Ok(()),
            Err(error) if error.is_full() => Ok(()),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn checkpointed(&self) -> Recovered {
        self.checkpointed.clone()
    }
}

/// A machine that the group, the sweep and the checkpointer share.
#[derive(Debug, Clone)]
pub(crate) struct SharedMachine(pub(crate) Arc<Mutex<Machine>>);

impl StateMachine for SharedMachine {
    fn recovered(&self) -> Recovered {
        self.0.lock().recovered()
    }

    fn apply(&mut self, position: LogPosition, command: &Command) -> io::Result<()> {
        let mut machine = self.0.lock();
        let timer = machine.metrics.apply_seconds.clone();
        let start = tokio::time::Instant::now();
        let result = machine.apply(position, command);
        timer.observe_duration(start.elapsed());
        result
    }

    fn advance(&mut self, position: LogPosition, membership: Option<Bytes>) {
        self.0.lock().advance(position, membership);
    }

    fn end_of_run(&mut self) -> io::Result<()> {
        self.0.lock().end_of_run()
    }

    fn checkpointed(&self) -> Recovered {
        self.0.lock().checkpointed()
    }
}

/// The topic table: `count u32, count x { topic 16, origin, deleted u8, config }`, and the newest
/// forgotten deletion's origin if there is one.
fn encode_topics(topics: &BTreeMap<TopicId, TopicState>, forgotten: Option<LogPosition>) -> Bytes {
    let mut out = BytesMut::with_capacity(4 + topics.len() * 48);
    out.put_u32(u32::try_from(topics.len()).unwrap_or(u32::MAX));
    for (id, topic) in topics {
        out.put_slice(&id.to_bytes());
        command::put_origin(&mut out, topic.origin);
        out.put_u8(u8::from(topic.deleted));
        command::put_config(&mut out, &topic.config);
    }
    if let Some(forgotten) = forgotten {
        command::put_origin(&mut out, forgotten);
    }
    out.freeze()
}

type Topics = (BTreeMap<TopicId, TopicState>, Option<LogPosition>);

fn decode_topics(mut bytes: Bytes) -> io::Result<Topics> {
    let mut topics = BTreeMap::new();
    for _ in 0..bytes.try_get_u32().map_err(invalid)? {
        let id = command::get_topic(&mut bytes)?;
        let origin = command::get_origin(&mut bytes)?;
        let deleted = bytes.try_get_u8().map_err(invalid)? != 0;
        let config = command::get_config(&mut bytes)?;
        topics.insert(id, TopicState { origin, config, deleted });
    }
    let forgotten = if bytes.is_empty() { None } else { Some(command::get_origin(&mut bytes)?) };
    Ok((topics, forgotten))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::clock::SystemClock;
    use crate::metrics::Metrics;
    use crate::storage::fs::sim::SimFs;
    use crate::types::{RaftIndex, Term};

    fn machine(checkpoint: Option<&ShardCheckpoint>) -> Machine {
        machine_on(&SimFs::new(), checkpoint)
    }

    fn machine_on(fs: &SimFs, checkpoint: Option<&ShardCheckpoint>) -> Machine {
        let (leads, full) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        let store = Store::new(
            fs.shared(),
            PathBuf::from("partitions"),
            log::Config::default(),
            SystemClock::shared(),
        );
        let parts = MachineParts {
            shard: ShardId::new(1),
            store,
            partitions: Arc::default(),
            proposer: Proposer::new(leads, full),
            metrics: Metrics::shared().shards.clone(),
        };
        Machine::open(parts, checkpoint).unwrap()
    }

    fn at(index: u64) -> LogPosition {
        LogPosition { term: Term::new(1), index: RaftIndex::new(index) }
    }

    fn topic(number: u64) -> TopicId {
        let [a, b, c, d, e, f, g, h] = number.to_be_bytes();
        TopicId::from_bytes([0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d, e, f, g, h])
    }

    /// An error that apply returns ends the group for good.
    #[test]
    fn a_full_disk_is_no_error_of_apply_and_its_records_are_written_when_there_is_room() {
        let fs = SimFs::new();
        let mut machine = machine_on(&fs, None);
        let topic = topic(1);
        machine.create(at(1), topic, &TopicConfig::default(), &[PartitionId::ZERO]);
        let id = TopicPartition { topic, partition: PartitionId::ZERO };
        let mut builder = record::BatchBuilder::new(FLUSH_BYTES);
        let value = vec![b'x'; FLUSH_BYTES];
        let record = record::NewRecord {
            timestamp: Timestamp::from_millis(1),
            key: None,
            value: Some(&value),
            headers: &[],
        };
        builder.push(&record).unwrap();
        let batch = builder.seal(TimestampType::CreateTime);
        let command = command::encode_append(Timestamp::from_millis(1), vec![(id, batch)]);
        fs.set_capacity(Some(1));
        machine.apply(at(2), &Command::new(command, None)).unwrap();
        machine.end_of_run().unwrap();
        assert!(machine.proposer.has_no_room(), "no more are taken meanwhile");
        assert!(machine.flush(Flush::All).unwrap_err().is_full());
        fs.set_capacity(None);
        machine.flush(Flush::All).unwrap();
        assert!(!machine.proposer.has_no_room());
        assert_eq!(machine.picture().unwrap().changes.changed[&id].end.get(), 1);
    }

    #[test]
    fn a_late_command_brings_no_deleted_topic_back_however_many_were_deleted_since() {
        let mut machine = machine(None);
        let config = TopicConfig::default();
        let deleted = DELETED_TOPICS_MAX as u64 + 10;
        for number in 0..deleted {
            machine.create(at(2 * number), topic(number), &config, &[PartitionId::ZERO]);
            machine.delete(at(2 * number + 1), topic(number));
        }
        assert_eq!(machine.topics.len(), DELETED_TOPICS_MAX, "what is remembered has a bound");
        let picture = machine.picture().unwrap();
        let checkpoint = ShardCheckpoint { extra: picture.changes.extra, ..Default::default() };
        for mut machine in [machine, self::machine(Some(&checkpoint))] {
            for number in [0, 9, 10, deleted - 1] {
                machine.create(at(2 * number), topic(number), &config, &[PartitionId::ZERO]);
            }
            assert!(machine.logs.is_empty(), "{:?}", machine.logs.keys());
            machine.create(at(2 * deleted), topic(deleted), &config, &[PartitionId::ZERO]);
            assert_eq!(machine.logs.len(), 1, "a new topic is news");
        }
    }
}
