//! The writer's side of a partition's log.
//!
//! Invariants:
//! - an append touches memory only; the file is written by [`PartitionLog::flush`], in one call for
//!   all that is pending;
//! - a flush that failed on a full disk can be called again: bytes go to fixed positions, and what
//!   was not written entirely counts as not written;
//! - a segment's file exists only once it has bytes, so an empty partition has no directory.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use crate::record::{self, Batch, crc32c_append};
use crate::storage::fs::{File, Open};
use crate::storage::log::cache::cost;
use crate::storage::log::index::IndexedBatch;
use crate::storage::log::names::{FileKind, SegmentName};
use crate::storage::log::reader::LogReader;
use crate::storage::log::removal::{Pinned, Removed};
use crate::storage::log::retention::Rules;
use crate::storage::log::segment::Segment;
use crate::storage::log::state::{PartitionState, SegmentState};
use crate::storage::log::store::{Home, Store, count};
use crate::storage::log::sync::SyncTarget;
use crate::storage::log::view::{Entry, Shared};
use crate::storage::log::{BATCH_BYTES_MAX, Error, recovery};
use crate::types::{Offset, Timestamp, TopicConfig, TopicPartition};

/// Bytes of a segment that are written back at a time.
const WRITE_BACK_STEP: u64 = 1 << 20;

/// A partition's log, owned by the one thread that writes it.
#[derive(Debug)]
pub struct PartitionLog {
    pub(super) shared: Arc<Shared>,
    rules: Rules,
    /// Offset that the next record gets; readers see it once it is published.
    pub(super) end: Offset,
    /// Segments that are not entirely in their file yet, oldest first, and the active one.
    pub(super) writers: Vec<Writer>,
    pending_bytes: usize,
    /// Whether the partition's directory was made, and its name listed to be synced, before.
    pub(super) has_directory: bool,
    to_sync: ToSync,
    removed: Vec<Arc<Segment>>,
}

/// What [`PartitionLog::append`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Offset of the batch's first record.
    pub base_offset: Offset,
    /// Offset after its last record.
    pub next_offset: Offset,
}

/// A segment that is appended to, or that was and is not flushed.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) segment: Arc<Segment>,
    /// With everything that was appended; `crc` is that of what is in the file.
    pub(super) state: SegmentState,
    pub(super) file_exists: bool,
    is_index_full: bool,
    pending: Vec<Batch>,
}

/// What was written since [`PartitionLog::sync_targets`] was last called.
#[derive(Debug, Default)]
struct ToSync {
    segments: Vec<Arc<Segment>>,
    indexes: Vec<Arc<Segment>>,
    has_new_file: bool,
    has_new_directory: bool,
}

impl Writer {
    pub(super) fn new(segment: Arc<Segment>, state: SegmentState, file_exists: bool) -> Self {
        Self { segment, state, file_exists, is_index_full: false, pending: Vec::new() }
    }

    fn pending_bytes(&self) -> usize {
        self.pending.iter().map(Batch::total_bytes).sum()
    }
}

impl PartitionLog {
    /// Makes the log of a new partition, without touching the disk.
    pub fn create(store: &Arc<Store>, id: TopicPartition, config: &TopicConfig) -> Self {
        let home = home(store, id);
        Self::from_parts(Shared::new(home, Offset::ZERO, Offset::ZERO), config, Offset::ZERO)
    }

    /// Opens a log as a checkpoint recorded it. The active file is cut back to its recorded length.
    /// No batch is read: indexes are loaded by the first reader, and checksums are checked by each.
    ///
    /// Sealed files that are missing or too short, and an active one that is, are damage: the log
    /// opens, [`LogReader::damaged_ranges`] names the offsets, and appending goes on behind them in
    /// a new segment.
    ///
    /// # Errors
    /// [`Error::State`] when the state contradicts itself, [`Error::Io`] when a directory or file
    /// cannot be looked at or cut.
    pub fn open(
        store: &Arc<Store>,
        id: TopicPartition,
        config: &TopicConfig,
        state: &PartitionState,
    ) -> Result<Self, Error> {
        recovery::open(&home(store, id), config, state)
    }

    pub(super) fn from_parts(shared: Arc<Shared>, config: &TopicConfig, end: Offset) -> Self {
        Self {
            shared,
            rules: Rules::of(config),
            end,
            writers: Vec::new(),
            pending_bytes: 0,
            has_directory: false,
            to_sync: ToSync::default(),
            removed: Vec::new(),
        }
    }

    /// Returns a reader of this log.
    pub fn reader(&self) -> LogReader {
        LogReader::new(Arc::clone(&self.shared))
    }

    /// Returns which partition it is.
    pub fn id(&self) -> TopicPartition {
        self.shared.home.id
    }

    /// Returns the offset that the next record gets, published or not.
    pub fn end(&self) -> Offset {
        self.end
    }

    /// Returns the first readable offset.
    pub fn log_start(&self) -> Offset {
        self.shared.log_start()
    }

    /// Takes on a changed topic configuration; it counts from the next append and retention pass.
    pub fn set_config(&mut self, config: &TopicConfig) {
        self.rules = Rules::of(config);
    }

    /// Appends a batch, whose head is not looked at: it gets the log's end as its base offset and
    /// `leader_epoch`. It is in memory only until [`PartitionLog::flush`], and readers see it after
    /// [`PartitionLog::publish`].
    ///
    /// # Errors
    /// [`Error::Batch`], [`Error::OffsetsExhausted`]; nothing was appended.
    pub fn append(&mut self, batch: Bytes, leader_epoch: i32) -> Result<Appended, Error> {
        if batch.len() > BATCH_BYTES_MAX {
            let (bytes, limit) = (batch.len(), BATCH_BYTES_MAX);
            return Err(record::Error::BatchTooLarge { bytes, limit }.into());
        }
        let batch = Batch::new(batch, self.end, leader_epoch)?;
        let base_offset = self.end;
        let next_offset = batch.next_offset();
        if next_offset.get() == i64::MAX {
            return Err(Error::OffsetsExhausted(self.id()));
        }
        if self.must_roll(&batch) {
            self.roll();
        }
        let bytes = batch.total_bytes();
        let added = u64::try_from(bytes).unwrap_or(u64::MAX);
        let writer = self.active();
        writer.is_index_full = writer.segment.index_batch(IndexedBatch {
            last_offset: batch.last_offset(),
            max_timestamp: batch.max_timestamp(),
            position: writer.state.len,
            bytes: added,
        });
        writer.state.note(&batch, added);
        writer.pending.push(batch.clone());
        self.pending_bytes += bytes;
        self.end = next_offset;
        self.shared.size_bytes.fetch_add(added, Ordering::Relaxed);
        self.shared.home.store.cache.added(cost(&batch));
        self.shared.view.lock().tail.push_back(batch);
        Ok(Appended { base_offset, next_offset })
    }

    /// Lets readers see what was appended and wakes those who wait for it.
    pub fn publish(&mut self) {
        self.shared.publish(self.end);
    }

    /// Returns the bytes that were appended and are not in a file.
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Writes what is pending through the page cache, one call per segment, and the indexes of
    /// segments that were sealed. What was written is durable only once
    /// [`PartitionLog::sync_targets`] are synced.
    ///
    /// # Errors
    /// [`Error::Full`]: nothing is lost, make room and call again. [`Error::Io`] and
    /// [`Error::Poisoned`]: the node has to end.
    pub fn flush(&mut self) -> Result<(), Error> {
        let is_pending =
            self.writers.iter().any(|writer| writer.state.sealed || !writer.pending.is_empty());
        if !is_pending {
            return Ok(());
        }
        let home = Arc::clone(&self.shared.home);
        let store = &home.store;
        store.check()?;
        let flushed = store.measure(|timings| &timings.flush, || self.flush_writers());
        store.cache.flushed(&self.shared, self.flushed_end());
        flushed
    }

    /// Takes the list of what was flushed since this was last called. The checkpoint that is made
    /// of
    /// [`PartitionLog::state`] now may be written once [`sync_all`](super::sync_all) has synced it.
    pub fn sync_targets(&mut self) -> Vec<SyncTarget> {
        let taken = std::mem::take(&mut self.to_sync);
        let home = &self.shared.home;
        let mut targets: Vec<_> = taken.segments.into_iter().map(SyncTarget::segment).collect();
        targets.extend(taken.indexes.into_iter().map(SyncTarget::indexes));
        if taken.has_new_file {
            targets.push(SyncTarget::partition(Arc::clone(home)));
        }
        if taken.has_new_directory {
            targets.push(SyncTarget::parents(Arc::clone(home)));
        }
        targets
    }

    /// Returns the log as its files are, for a checkpoint; flush first. `extra` is empty.
    pub fn state(&self) -> PartitionState {
        let view = self.shared.view.lock();
        let with_bytes = view.segments.iter().filter(|entry| entry.state.len > 0);
        let end = self.flushed_end();
        PartitionState {
            log_start: self.log_start().min(end),
            end,
            segments: with_bytes.map(|entry| entry.state).collect(),
            extra: Bytes::new(),
        }
    }

    /// Returns the log start that retention by time and size asks for at `now`, `None` when it may
    /// stay. The active segment is included: when it is too old, the log may become empty.
    pub fn retention_target(&self, now: Timestamp) -> Option<Offset> {
        let segments = self.segments();
        let target = self.rules.expired(&segments, now)?.min(self.shared.log_end());
        (target > self.log_start()).then_some(target)
    }

    /// Moves the log start up to `start`, at most to the published end, and takes whole segments
    /// below it out of the log. Their files stay until [`PartitionLog::take_removed`] is unlinked.
    pub fn advance_log_start(&mut self, start: Offset) {
        let start = start.min(self.shared.log_end());
        if start <= self.log_start() {
            return;
        }
        let states = self.segments();
        let live = states.iter().find(|segment| segment.next_offset > start || segment.len == 0);
        let whole_below = live.map_or(self.end, |segment| segment.base);
        let gone = self.shared.advance(start, whole_below);
        let gone_bytes = states
            .iter()
            .filter(|segment| segment.base < whole_below)
            .map(|segment| segment.len)
            .sum();
        self.shared.size_bytes.fetch_sub(gone_bytes, Ordering::Relaxed);
        self.writers.retain(|writer| writer.state.base >= whole_below);
        self.pending_bytes = self.writers.iter().map(Writer::pending_bytes).sum();
        self.to_sync.segments.retain(|segment| segment.name.base >= whole_below);
        self.to_sync.indexes.retain(|segment| segment.name.base >= whole_below);
        self.removed.extend(gone.into_iter().map(|entry| entry.segment));
    }

    /// Takes the segments that left the log since this was last called. Unlink them when a
    /// checkpoint made of the present [`PartitionLog::state`], or of a later one, is durable.
    pub fn take_removed(&mut self) -> Removed {
        Removed { segments: std::mem::take(&mut self.removed), homes: Vec::new() }
    }

    /// Pins the files as they are now, for a snapshot; flush first.
    pub fn pin(&self) -> Pinned {
        self.reader().pin(self.log_start(), self.flushed_end())
    }

    /// Ends the log of a deleted partition: readers get `Deleted`, memory is freed. Unlink the
    /// files when a checkpoint without the partition is durable.
    pub fn remove(self) -> Removed {
        let mut segments = self.removed;
        segments.extend(self.shared.delete().into_iter().map(|entry| entry.segment));
        Removed { segments, homes: vec![Arc::clone(&self.shared.home)] }
    }

    fn must_roll(&self, batch: &Batch) -> bool {
        let Some(active) = self.writers.last().filter(|writer| !writer.state.sealed) else {
            return false;
        };
        self.rules.rolls(&active.state, batch) || active.is_index_full
    }

    /// Seals the active segment; the next append starts another.
    fn roll(&mut self) {
        if let Some(active) = self.writers.last_mut() {
            active.state.sealed = true;
        }
    }

    /// Returns the active segment's writer, starting a segment at the log's end if there is none.
    fn active(&mut self) -> &mut Writer {
        if self.writers.last().is_none_or(|writer| writer.state.sealed) {
            let name = SegmentName { base: self.end, generation: 0 };
            let none = Timestamp::NONE;
            let segment = Segment::growing(Arc::clone(&self.shared.home), name, 0, none);
            let state = SegmentState::empty(name.base);
            let entry = Entry { segment: Arc::clone(&segment), state };
            self.shared.view.lock().segments.push(entry);
            self.writers.push(Writer::new(segment, state, false));
        }
        let last = self.writers.len() - 1;
        #[expect(clippy::indexing_slicing, reason = "the list was just made non-empty")]
        &mut self.writers[last]
    }

    /// Returns the segments with everything that was appended.
    fn segments(&self) -> Vec<SegmentState> {
        let first = self.writers.first().map_or(self.end, |writer| writer.state.base);
        let view = self.shared.view.lock();
        let flushed = view.segments.iter().map(|entry| entry.state);
        let mut segments: Vec<_> = flushed.take_while(|segment| segment.base < first).collect();
        segments.extend(self.writers.iter().map(|writer| writer.state));
        segments
    }

    /// Returns the offset up to which everything is in files.
    fn flushed_end(&self) -> Offset {
        let unflushed = self.writers.iter().find_map(|writer| writer.pending.first());
        unflushed.map_or(self.end, Batch::base_offset)
    }

    fn flush_writers(&mut self) -> Result<(), Error> {
        for writer in &mut self.writers {
            if !writer.pending.is_empty() {
                let bytes = writer.pending_bytes();
                // Before the write, so that a failed one leaves no new name unsynced.
                self.to_sync.has_new_directory |= !self.has_directory;
                self.has_directory = true;
                write_pending(writer, &mut self.to_sync)?;
                self.pending_bytes = self.pending_bytes.saturating_sub(bytes);
                // Readers may go to the file for these bytes from here on.
                let written = SegmentState { sealed: false, ..writer.state };
                set_entry(&self.shared, written);
            }
            if writer.state.sealed {
                if writer.segment.write_indexes()? {
                    self.to_sync.indexes.push(Arc::clone(&writer.segment));
                    self.to_sync.has_new_file = true;
                }
                set_entry(&self.shared, writer.state);
            }
        }
        self.writers.retain(|writer| !writer.state.sealed);
        Ok(())
    }
}

impl SegmentState {
    pub(super) fn empty(base: Offset) -> Self {
        Self {
            base,
            generation: 0,
            len: 0,
            crc: 0,
            sealed: false,
            next_offset: base,
            first_timestamp: Timestamp::NONE,
            max_timestamp: Timestamp::NONE,
        }
    }

    /// Takes note of the newest timestamp of a batch, if it has any.
    pub(super) fn note_newest(&mut self, newest: Timestamp) {
        if newest != Timestamp::NONE {
            let before = Some(self.max_timestamp).filter(|before| *before != Timestamp::NONE);
            self.max_timestamp = before.map_or(newest, |before| before.max(newest));
        }
    }

    /// Takes note of an appended batch of `bytes`.
    fn note(&mut self, batch: &Batch, bytes: u64) {
        if self.len == 0 {
            self.first_timestamp = batch.max_timestamp();
        }
        self.len += bytes;
        self.next_offset = batch.next_offset();
        self.note_newest(batch.max_timestamp());
    }
}

fn home(store: &Arc<Store>, id: TopicPartition) -> Arc<Home> {
    Arc::new(Home { store: Arc::clone(store), id, is_doomed: AtomicBool::new(false) })
}

/// Shows readers how much of a segment is in its file.
fn set_entry(shared: &Shared, state: SegmentState) {
    let mut view = shared.view.lock();
    let entry = view.segments.iter_mut().rev().find(|entry| entry.state.base == state.base);
    if let Some(entry) = entry {
        entry.state = state;
    }
}

/// Writes a segment's pending batches behind what its file has, creating the file if need be.
fn write_pending(writer: &mut Writer, to_sync: &mut ToSync) -> Result<(), Error> {
    let segment = Arc::clone(&writer.segment);
    let store = &segment.home.store;
    let failed = |action, source| store.write_failed(action, segment.path(FileKind::Log), source);
    if !to_sync.segments.iter().any(|listed| Arc::ptr_eq(listed, &segment)) {
        to_sync.segments.push(Arc::clone(&segment));
    }
    let how = if writer.file_exists { Open::Write } else { Open::CreateNew };
    if !writer.file_exists {
        to_sync.has_new_file = true;
        make_room_for(&segment).map_err(|source| failed("create", source))?;
    }
    let file = segment.begin_write(how).map_err(|source| failed("open", source))?;
    writer.file_exists = true;
    let pending_bytes = u64::try_from(writer.pending_bytes()).unwrap_or(u64::MAX);
    let position = writer.state.len.saturating_sub(pending_bytes);
    let written = write_batches(file.as_ref(), &writer.pending, position);
    if written.is_ok() {
        start_write_back(file.as_ref(), position, pending_bytes);
    }
    segment.end_write();
    written.map_err(|source| failed("write", source))?;
    for batch in writer.pending.drain(..) {
        writer.state.crc = crc32c_append(writer.state.crc, &batch.head());
        writer.state.crc = crc32c_append(writer.state.crc, batch.body());
    }
    count(&store.counts.bytes_written, pending_bytes);
    Ok(())
}

/// Makes the directory of a segment's file, and removes a file of that name: one that an earlier
/// life wrote after its last checkpoint, whose records were replayed and come here again.
fn make_room_for(segment: &Segment) -> io::Result<()> {
    let fs = segment.home.store.fs();
    fs.create_dir_all(&segment.home.directory())?;
    match fs.remove_file(&segment.path(FileKind::Log)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Starts writing back the steps that a write filled up, so that the disk has an even load: the
/// syncs of the write-ahead log would wait behind all that a checkpoint finds unwritten.
fn start_write_back(file: &dyn File, position: u64, written: u64) {
    let step = |position: u64| position - position % WRITE_BACK_STEP;
    let (from, to) = (step(position), step(position.saturating_add(written)));
    if from < to {
        file.start_write_back(from, to - from);
    }
}

fn write_batches(file: &dyn File, batches: &[Batch], position: u64) -> io::Result<()> {
    let heads: Vec<_> = batches.iter().map(Batch::head).collect();
    let parts: Vec<_> = heads
        .iter()
        .zip(batches)
        .flat_map(|(head, batch)| [IoSlice::new(head), IoSlice::new(batch.body())])
        .collect();
    file.write_all_at(&parts, position)
}
