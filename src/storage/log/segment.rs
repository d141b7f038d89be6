//! One segment: its names, its descriptor, its index.
//!
//! Invariants:
//! - the index of a segment that is written grows with it in memory; a sealed one's is loaded at
//!   the first read that needs it, from its files or, when these are missing or wrong, from the
//!   log;
//! - the memory of loaded indexes is bounded over all segments;
//! - a doomed segment's files go when the last holder drops it, so a holder is a pin.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::storage::fs::{Open, read_file, replace_file};
use crate::storage::log::descriptors::Descriptor;
use crate::storage::log::index::{Index, IndexBuilder, IndexExtent, IndexedBatch};
use crate::storage::log::names::{FileKind, SegmentName};
use crate::storage::log::scan::{ScanError, Scanned, Scanner};
use crate::storage::log::state::SegmentState;
use crate::storage::log::store::{Home, INDEX_BYTES_MAX, Listed, count};
use crate::storage::log::{Error, ReadError};
use crate::types::Timestamp;

/// Memory that the loaded indexes of sealed segments may take.
const INDEX_CACHE_BYTES: usize = 32 * 1024 * 1024;

/// Larger index files are not read: Kafka's bound on each.
const INDEX_FILE_BYTES_MAX: u64 = INDEX_BYTES_MAX as u64 + 64;

/// A segment of a partition.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) home: Arc<Home>,
    pub(super) name: SegmentName,
    pub(super) descriptor: Descriptor,
    is_doomed: AtomicBool,
    index: Mutex<IndexSlot>,
    /// Held while the index is loaded, so that many readers load it once.
    loading: Mutex<()>,
}

#[derive(Debug)]
enum IndexSlot {
    /// Of a sealed segment, not in memory.
    Unloaded,
    /// Of a sealed segment.
    Loaded(Arc<Index>, Origin),
    /// Of a segment that is written.
    Growing(Box<Growing>),
}

#[derive(Debug)]
struct Growing {
    builder: IndexBuilder,
    /// Bytes at the start of the segment that were there before this process and are not indexed
    /// until somebody reads from them.
    unindexed_bytes: u64,
}

/// Where a loaded index came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// From its files: right unless the disk is wrong.
    Files,
    /// From the log itself.
    Log,
}

/// The loaded indexes of sealed segments, oldest first.
#[derive(Debug, Default)]
pub(super) struct IndexCache(Mutex<LoadedIndexes>);

#[derive(Debug, Default)]
struct LoadedIndexes {
    bytes: usize,
    loaded: VecDeque<(Listed<Segment>, usize)>,
}

impl Segment {
    /// Makes a segment that is sealed.
    pub(super) fn sealed(home: Arc<Home>, name: SegmentName) -> Arc<Self> {
        Self::with_index(home, name, IndexSlot::Unloaded)
    }

    /// Makes a segment that is written on from `unindexed_bytes`, whose batches so far have
    /// `max_timestamp`.
    pub(super) fn growing(
        home: Arc<Home>,
        name: SegmentName,
        unindexed_bytes: u64,
        max_timestamp: Timestamp,
    ) -> Arc<Self> {
        let builder = IndexBuilder::new(name.base, home.store.config(), max_timestamp);
        let growing = Box::new(Growing { builder, unindexed_bytes });
        Self::with_index(home, name, IndexSlot::Growing(growing))
    }

    fn with_index(home: Arc<Home>, name: SegmentName, index: IndexSlot) -> Arc<Self> {
        Arc::new(Self {
            home,
            name,
            descriptor: Descriptor::default(),
            is_doomed: AtomicBool::new(false),
            index: Mutex::new(index),
            loading: Mutex::new(()),
        })
    }

    pub(super) fn path(&self, kind: FileKind) -> PathBuf {
        self.home.directory().join(self.name.file_name(kind))
    }

    /// Has the files removed when the last holder is gone.
    pub(super) fn doom(&self) {
        self.is_doomed.store(true, Ordering::Release);
    }

    /// Takes note of an appended batch; returns whether the segment has to be sealed because its
    /// index is full.
    pub(super) fn index_batch(&self, batch: IndexedBatch) -> bool {
        match &mut *self.index.lock() {
            IndexSlot::Growing(growing) => {
                growing.builder.push(batch);
                growing.builder.is_full()
            }
            IndexSlot::Unloaded | IndexSlot::Loaded(..) => false,
        }
    }

    /// Writes the indexes of a segment that was just sealed. Returns whether there are files now: a
    /// segment whose first part nobody has read since the start gets them with its next reader.
    pub(super) fn write_indexes(self: &Arc<Self>) -> Result<bool, Error> {
        let index = {
            let slot = self.index.lock();
            match &*slot {
                IndexSlot::Growing(growing) if growing.unindexed_bytes == 0 => {
                    growing.builder.clone().seal()
                }
                IndexSlot::Growing(_) | IndexSlot::Unloaded | IndexSlot::Loaded(..) => {
                    drop(slot);
                    *self.index.lock() = IndexSlot::Unloaded;
                    return Ok(false);
                }
            }
        };
        for (kind, bytes) in encoded(&index) {
            self.write_index_file(kind, &bytes)
                .map_err(|source| self.home.store.write_failed("write", self.path(kind), source))?;
        }
        self.install(index, Origin::Log);
        Ok(true)
    }

    /// Calls `answer` with the index of the segment's first `state.len` bytes. `suffices` tells
    /// whether the index of the segment's last part alone would do.
    pub(super) fn with_index_of<T>(
        self: &Arc<Self>,
        state: &SegmentState,
        suffices: impl Fn(&Index) -> bool,
        answer: impl Fn(&Index) -> T,
    ) -> Result<(T, Origin), ReadError> {
        let look = || match &*self.index.lock() {
            IndexSlot::Unloaded => None,
            IndexSlot::Loaded(index, origin) => Some((answer(index), *origin)),
            IndexSlot::Growing(growing) => {
                let index = growing.builder.index();
                let known = growing.unindexed_bytes == 0 || suffices(index);
                known.then(|| (answer(index), Origin::Log))
            }
        };
        if let Some(answer) = look() {
            return Ok(answer);
        }
        let _only_one = self.loading.lock();
        if let Some(answer) = look() {
            return Ok(answer);
        }
        let origin = self.load_index(state)?;
        // The cache may have dropped it again; the answer must not depend on that.
        match look() {
            Some(answer) => Ok(answer),
            None => Ok((answer(&self.rebuild(state.len)?.0.seal()), origin)),
        }
    }

    /// Replaces an index that came from files by one made from the log. Where the log is damaged
    /// the one from files stays: it alone knows where batches start behind the damage.
    pub(super) fn reindex(self: &Arc<Self>, state: &SegmentState) -> Result<(), ReadError> {
        let _only_one = self.loading.lock();
        let (builder, is_whole) = self.rebuild(state.len)?;
        if is_whole {
            self.install(builder.seal(), Origin::Log);
        }
        Ok(())
    }

    fn load_index(self: &Arc<Self>, state: &SegmentState) -> Result<Origin, ReadError> {
        let unindexed = match &*self.index.lock() {
            IndexSlot::Growing(growing) => Some(growing.unindexed_bytes),
            IndexSlot::Unloaded | IndexSlot::Loaded(..) => None,
        };
        if let Some(unindexed_bytes) = unindexed {
            let (first, _) = self.rebuild(unindexed_bytes)?;
            if let IndexSlot::Growing(growing) = &mut *self.index.lock() {
                growing.builder.prepend(first);
                growing.unindexed_bytes = 0;
            }
            return Ok(Origin::Log);
        }
        if let Some(index) = self.read_index_files(state) {
            self.install(index, Origin::Files);
            return Ok(Origin::Files);
        }
        let (builder, is_whole) = self.rebuild(state.len)?;
        let index = builder.seal();
        if is_whole && state.sealed {
            // Spares the next start the walk. Best effort: nothing depends on these files.
            for (kind, bytes) in encoded(&index) {
                let _ = replace_file(self.home.store.fs().as_ref(), &self.path(kind), &bytes);
            }
        }
        self.install(index, Origin::Log);
        Ok(Origin::Log)
    }

    fn read_index_files(&self, state: &SegmentState) -> Option<Index> {
        let fs = self.home.store.fs();
        let read = |kind| read_file(fs.as_ref(), &self.path(kind), INDEX_FILE_BYTES_MAX).ok();
        let extent = IndexExtent {
            base: state.base,
            next: state.next_offset,
            bytes: state.len,
            max_timestamp: state.max_timestamp,
        };
        Index::decode(&read(FileKind::OffsetIndex)?, &read(FileKind::TimeIndex)?, extent)
    }

    /// Builds the index of the first `len` bytes from the batches' headers; also tells whether the
    /// walk got to the end.
    fn rebuild(self: &Arc<Self>, len: u64) -> Result<(IndexBuilder, bool), ReadError> {
        let failed =
            |source| ReadError::Io { action: "read", path: self.path(FileKind::Log), source };
        let file = self.file().map_err(failed)?;
        let (base, none) = (self.name.base, Timestamp::NONE);
        let mut builder = IndexBuilder::new(base, self.home.store.config(), none);
        let mut scanner = Scanner::new(file.as_ref(), 0, len);
        let mut next = self.name.base;
        loop {
            match scanner.next() {
                // A batch that does not follow the one before has a damaged offset: the checksum
                // does not cover it. Segments as first written have no gaps, rewritten ones may.
                Ok(Some(Scanned { header, .. }))
                    if header.base_offset < next
                        || (self.name.generation == 0 && header.base_offset > next) =>
                {
                    return Ok((builder, false));
                }
                Ok(Some(Scanned { header, position })) => {
                    next = header.next_offset();
                    builder.push(IndexedBatch {
                        last_offset: header.last_offset(),
                        max_timestamp: header.max_timestamp,
                        position,
                        bytes: u64::try_from(header.total_bytes()).unwrap_or(u64::MAX),
                    });
                }
                Ok(None) => return Ok((builder, true)),
                // The reader that gets there finds the damage and reports it.
                Err(ScanError::Bad(_)) => return Ok((builder, false)),
                Err(ScanError::Io(error)) => return Err(failed(error)),
            }
        }
    }

    fn install(self: &Arc<Self>, index: Index, origin: Origin) {
        let bytes = index.memory_bytes();
        *self.index.lock() = IndexSlot::Loaded(Arc::new(index), origin);
        self.home.store.indexes.installed(self, bytes);
    }

    fn unload_index(&self) {
        let mut slot = self.index.lock();
        if matches!(&*slot, IndexSlot::Loaded(..)) {
            *slot = IndexSlot::Unloaded;
        }
    }

    /// Writes an index file anew. One may be there: of an earlier life that no checkpoint knew.
    fn write_index_file(&self, kind: FileKind, bytes: &[u8]) -> io::Result<()> {
        let (fs, path) = (self.home.store.fs(), self.path(kind));
        match fs.remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = fs.open(&path, Open::CreateNew)?;
        file.write_all_at(&[IoSlice::new(bytes)], 0)
    }
}

fn encoded(index: &Index) -> [(FileKind, Vec<u8>); 2] {
    [(FileKind::OffsetIndex, index.encode_offsets()), (FileKind::TimeIndex, index.encode_times())]
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.close_last();
        if !self.is_doomed.load(Ordering::Acquire) {
            return;
        }
        for kind in FileKind::ALL {
            match self.home.store.fs().remove_file(&self.path(kind)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    // It is an orphan from now on, which the next start finds.
                    count(&self.home.store.counts.failed_removals, 1);
                }
                _ => {}
            }
        }
    }
}

impl IndexCache {
    fn installed(&self, segment: &Arc<Segment>, bytes: usize) {
        let mut evicted = Vec::new();
        {
            let mut cache = self.0.lock();
            cache.bytes += bytes;
            cache.loaded.push_back((Arc::downgrade(segment), bytes));
            while cache.bytes > INDEX_CACHE_BYTES && cache.loaded.len() > 1 {
                let Some((oldest, bytes)) = cache.loaded.pop_front() else {
                    break;
                };
                cache.bytes -= bytes;
                evicted.push(oldest);
            }
        }
        evicted.iter().filter_map(Listed::upgrade).for_each(|oldest| oldest.unload_index());
    }
}
