//! The sparse offset index and the time index of a segment, in Kafka's formats.
//!
//! ```text
//! .index      8 bytes an entry:  relative offset i32 | position i32
//! .timeindex 12 bytes an entry:  timestamp i64 | relative offset i32
//! ```
//! Big-endian, offsets relative to the segment's base. An offset entry names the *last* offset of a
//! batch and the position where that batch starts; there is one per `index_interval_bytes` of
//! batches. A time entry holds the largest timestamp up to there (a running maximum, since
//! producers' timestamps go back and forth) and the last offset of the batch that brought it.
//!
//! Invariants:
//! - entries ascend strictly, so they can be searched;
//! - an index only says where to start to look: a wrong one costs time or is noticed, it cannot
//!   make a reader miss a record, because who uses an entry checks that the batch found there is
//!   the named one, by its last offset or its largest timestamp;
//! - both can be rebuilt from the `.log` alone and are then equal to what was written.

use std::collections::VecDeque;

use crate::storage::log::Config;
use crate::types::{Offset, Timestamp};

const OFFSET_ENTRY_BYTES: usize = 8;
const TIME_ENTRY_BYTES: usize = 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OffsetEntry {
    last: u32,
    position: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TimeEntry {
    timestamp: i64,
    last: u32,
}

/// Where the index says that a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Indexed {
    /// Where it starts in the file.
    pub(crate) position: u64,
    /// Its last offset, `None` for the first batch of the segment.
    pub(crate) last: Option<Offset>,
}

impl OffsetEntry {
    fn position(self) -> u64 {
        u64::from(self.position)
    }

    fn decode(bytes: &[u8; OFFSET_ENTRY_BYTES]) -> Self {
        let [a, b, c, d, e, f, g, h] = *bytes;
        let last = u32::from_be_bytes([a, b, c, d]);
        Self { last, position: u32::from_be_bytes([e, f, g, h]) }
    }
}

/// Both indexes of a segment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Index {
    offsets: Vec<OffsetEntry>,
    times: Vec<TimeEntry>,
}

/// What the index has to know of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IndexedBatch {
    /// Its last offset.
    pub(crate) last_offset: Offset,
    /// Its largest timestamp.
    pub(crate) max_timestamp: Timestamp,
    /// Where it starts in the file.
    pub(crate) position: u64,
    /// Its length.
    pub(crate) bytes: u64,
}

/// An index that grows with its segment.
#[derive(Debug, Clone)]
pub(crate) struct IndexBuilder {
    base: Offset,
    index: Index,
    interval_bytes: u64,
    /// Bytes of each index that may be reached.
    bytes_max: usize,
    since_entry_bytes: u64,
    /// Largest timestamp so far, that of a part that is not indexed included; -1 for none.
    max_timestamp: i64,
    /// Where that timestamp came from, `None` when from the part that is not indexed.
    largest: Option<TimeEntry>,
}

impl Index {
    /// Returns the memory that the entries take, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.offsets.len() * size_of::<OffsetEntry>() + self.times.len() * size_of::<TimeEntry>()
    }

    /// Returns a batch at or before the one that holds `offset`.
    pub(crate) fn position(&self, base: Offset, offset: Offset) -> Indexed {
        let relative = offset.records_since(base);
        let after = self.offsets.partition_point(|entry| u64::from(entry.last) <= relative);
        self.entry_before(base, after)
    }

    /// Returns whether the entries alone tell where `offset` is, without the part before them.
    pub(crate) fn covers(&self, base: Offset, offset: Offset) -> bool {
        let relative = offset.records_since(base);
        self.offsets.first().is_some_and(|first| u64::from(first.last) <= relative)
    }

    /// Lists the indexed batches after `position`, each with its last offset.
    pub(crate) fn batches_after(
        &self,
        base: Offset,
        position: u64,
    ) -> impl Iterator<Item = (u64, Offset)> {
        let after = self.offsets.iter().skip_while(move |entry| entry.position() <= position);
        after.map(move |entry| (entry.position(), base.saturating_add(u64::from(entry.last))))
    }

    /// Returns the last indexed batch before `position`, the first batch if there is none.
    pub(crate) fn position_before(&self, base: Offset, position: u64) -> Indexed {
        let after = self.offsets.partition_point(|entry| entry.position() < position);
        self.entry_before(base, after)
    }

    fn entry_before(&self, base: Offset, after: usize) -> Indexed {
        let entry = after.checked_sub(1).and_then(|found| self.offsets.get(found));
        match entry {
            Some(entry) => Indexed {
                position: entry.position(),
                last: Some(base.saturating_add(u64::from(entry.last))),
            },
            None => Indexed { position: 0, last: None },
        }
    }

    /// Returns the batch up to whose last offset every record of this segment is older than
    /// `timestamp`, as its last offset and the largest timestamp so far, which is its own.
    pub(crate) fn older_until(
        &self,
        base: Offset,
        timestamp: Timestamp,
    ) -> Option<(Offset, Timestamp)> {
        let older = self.times.partition_point(|entry| entry.timestamp < timestamp.as_millis());
        let entry = older.checked_sub(1).and_then(|found| self.times.get(found))?;
        let last = base.saturating_add(u64::from(entry.last));
        Some((last, Timestamp::from_millis(entry.timestamp)))
    }

    /// Encodes the offset index as Kafka's `.index` file.
    pub(crate) fn encode_offsets(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.offsets.len() * OFFSET_ENTRY_BYTES);
        for entry in &self.offsets {
            bytes.extend_from_slice(&entry.last.to_be_bytes());
            bytes.extend_from_slice(&entry.position.to_be_bytes());
        }
        bytes
    }

    /// Encodes the time index as Kafka's `.timeindex` file.
    pub(crate) fn encode_times(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.times.len() * TIME_ENTRY_BYTES);
        for entry in &self.times {
            bytes.extend_from_slice(&entry.timestamp.to_be_bytes());
            bytes.extend_from_slice(&entry.last.to_be_bytes());
        }
        bytes
    }

    /// Decodes both files of a segment of `segment_bytes` that ends before offset `next`; `None`
    /// when they cannot be that segment's.
    pub(crate) fn decode(offsets: &[u8], times: &[u8], extent: IndexExtent) -> Option<Self> {
        let records = u32::try_from(extent.next.records_since(extent.base)).ok()?;
        let mut index = Self::default();
        for entry in chunks::<OFFSET_ENTRY_BYTES>(offsets)? {
            let entry = OffsetEntry::decode(entry);
            let ascends = index.offsets.last().is_none_or(|previous| {
                previous.last < entry.last && previous.position < entry.position
            });
            if !ascends || entry.last >= records || u64::from(entry.position) >= extent.bytes {
                return None;
            }
            index.offsets.push(entry);
        }
        for entry in chunks::<TIME_ENTRY_BYTES>(times)? {
            let [a, b, c, d, e, f, g, h, i, j, k, l] = *entry;
            let entry = TimeEntry {
                timestamp: i64::from_be_bytes([a, b, c, d, e, f, g, h]),
                last: u32::from_be_bytes([i, j, k, l]),
            };
            let ascends = index.times.last().is_none_or(|previous| {
                previous.timestamp < entry.timestamp && previous.last < entry.last
            });
            let known = entry.timestamp <= extent.max_timestamp.as_millis();
            if !ascends || !known || entry.last >= records {
                return None;
            }
            index.times.push(entry);
        }
        // A sealed segment's time index always ends with its largest timestamp.
        let largest = index.times.last().map(|entry| entry.timestamp);
        let complete = largest == Some(extent.max_timestamp.as_millis());
        (complete || extent.max_timestamp.as_millis() < 0).then_some(index)
    }
}

/// What is known of a segment before its index is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IndexExtent {
    /// The segment's first offset.
    pub(crate) base: Offset,
    /// The offset after its last record.
    pub(crate) next: Offset,
    /// Its length.
    pub(crate) bytes: u64,
    /// Its largest timestamp.
    pub(crate) max_timestamp: Timestamp,
}

impl IndexBuilder {
    /// Starts the index of a segment, or of the rest of one whose first part has `max_timestamp`.
    pub(crate) fn new(base: Offset, config: &Config, max_timestamp: Timestamp) -> Self {
        Self {
            base,
            index: Index::default(),
            interval_bytes: u64::from(config.index_interval_bytes),
            bytes_max: config.index_bytes_max,
            since_entry_bytes: 0,
            max_timestamp: max_timestamp.as_millis(),
            largest: None,
        }
    }

    /// Takes note of a batch that was appended to the segment.
    pub(crate) fn push(&mut self, batch: IndexedBatch) {
        // The caller rolls before a relative offset or a position leaves 31 bits.
        let relative = batch.last_offset.records_since(self.base);
        let last = u32::try_from(relative).unwrap_or(u32::MAX);
        if batch.max_timestamp.as_millis() > self.max_timestamp {
            self.max_timestamp = batch.max_timestamp.as_millis();
            self.largest = Some(TimeEntry { timestamp: self.max_timestamp, last });
        }
        if self.since_entry_bytes > self.interval_bytes {
            let position = u32::try_from(batch.position).unwrap_or(u32::MAX);
            self.index.offsets.push(OffsetEntry { last, position });
            self.push_largest();
            self.since_entry_bytes = 0;
        }
        self.since_entry_bytes += batch.bytes;
    }

    /// Returns what is indexed so far.
    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    /// Puts the index of the segment's first part, which was not known so far, before what is here.
    pub(crate) fn prepend(&mut self, first: Self) {
        let rest = std::mem::replace(&mut self.index, first.index);
        self.index.offsets.extend_from_slice(&rest.offsets);
        self.index.times.extend_from_slice(&rest.times);
        self.largest = self.largest.or(first.largest);
    }

    /// Returns whether the segment has to be sealed because its index may grow no further.
    pub(crate) fn is_full(&self) -> bool {
        self.index.offsets.len() >= self.bytes_max / OFFSET_ENTRY_BYTES
            || self.index.times.len() >= self.bytes_max / TIME_ENTRY_BYTES
    }

    /// Ends the index of a segment that is sealed.
    pub(crate) fn seal(mut self) -> Index {
        self.push_largest();
        self.index.offsets.shrink_to_fit();
        self.index.times.shrink_to_fit();
        self.index
    }

    fn push_largest(&mut self) {
        let Some(entry) = self.largest else { return };
        if self.index.times.last().is_none_or(|last| last.timestamp < entry.timestamp) {
            self.index.times.push(entry);
        }
    }
}

/// The entries of an offset index file, compared with the batches of its segment one by one.
#[derive(Debug)]
pub(crate) struct OffsetEntries {
    base: Offset,
    /// `None` when the file does not even consist of entries.
    left: Option<VecDeque<OffsetEntry>>,
}

impl OffsetEntries {
    /// Reads the bytes of a file.
    pub(crate) fn new(base: Offset, bytes: &[u8]) -> Self {
        let left = chunks::<OFFSET_ENTRY_BYTES>(bytes)
            .map(|entries| entries.map(OffsetEntry::decode).collect());
        Self { base, left }
    }

    /// Goes past a batch, which takes its entry away if it has one.
    pub(crate) fn pass(&mut self, position: u64, last_offset: Offset) {
        let relative = last_offset.records_since(self.base);
        if let Some(left) = &mut self.left {
            left.pop_front_if(|entry| {
                u64::from(entry.position) == position && u64::from(entry.last) == relative
            });
        }
    }

    /// Returns whether every entry was that of a batch.
    pub(crate) fn are_good(&self) -> bool {
        self.left.as_ref().is_some_and(VecDeque::is_empty)
    }
}

/// Splits a file into entries; `None` when it does not consist of whole ones.
fn chunks<const N: usize>(bytes: &[u8]) -> Option<impl Iterator<Item = &[u8; N]>> {
    let (chunks, rest) = bytes.as_chunks::<N>();
    rest.is_empty().then_some(chunks.iter())
}
