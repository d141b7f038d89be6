//! What a checkpoint records of a partition, and its bytes.
//!
//! All integers big-endian. Version is that of the checkpoint file that holds it.
//!
//! ```text
//! partition:  log start i64 | log end i64 | extra length u32 | extra
//!             | segment count u32 | segments
//! segment, 57 bytes each:
//!    0  8  base offset i64
//!    8  4  generation u32
//!   12  8  length u64
//!   20  4  CRC-32C of the first `length` bytes of the file u32
//!   24  1  flags: bit 0 sealed
//!   25  8  next offset i64
//!   33  8  first timestamp i64
//!   41  8  largest timestamp i64
//!   49  8  reserved, zero
//! ```

use bytes::{Buf, BufMut, Bytes};

use crate::types::{Offset, Timestamp};

const SEGMENT_BYTES: usize = 8 + 4 + 8 + 4 + 1 + 8 + 8 + 8 + 8;
const SEALED: u8 = 1;

/// A partition as its files are: written by [`PartitionLog::state`](super::PartitionLog::state).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PartitionState {
    /// First readable offset.
    pub log_start: Offset,
    /// Offset after the last record that the files hold.
    pub end: Offset,
    /// The segments that have bytes, by base offset; only the last one may be active.
    pub segments: Vec<SegmentState>,
    /// What the shard keeps beside it (the producer table), opaque here.
    pub extra: Bytes,
}

/// A segment as its file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentState {
    /// Offset of the first record that it may hold; with `generation` the file's name.
    pub base: Offset,
    /// How often it was rewritten.
    pub generation: u32,
    /// Its length in bytes. An active segment's file may be longer; recovery cuts it back.
    pub len: u64,
    /// CRC-32C of its first `len` bytes.
    pub crc: u32,
    /// Sealed segments are never written again.
    pub sealed: bool,
    /// Offset after its last record.
    pub next_offset: Offset,
    /// Largest timestamp of its first batch, from which its age counts; -1 for none.
    pub first_timestamp: Timestamp,
    /// Largest timestamp of all its batches; -1 for none.
    pub max_timestamp: Timestamp,
}

/// What is wrong with a recorded state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The bytes end early.
    #[error("it ends early")]
    Short,
    /// There are bytes after its end.
    #[error("it has bytes after its end")]
    Long,
    /// An offset is negative.
    #[error("an offset is negative")]
    Offset,
    /// A flag has no meaning.
    #[error("a flag is not known")]
    Flags,
    /// Log start, segments and log end do not follow one another.
    #[error("its offsets do not ascend")]
    Order,
    /// A segment that is not the last is not sealed.
    #[error("two segments are active")]
    TwoActive,
}

impl PartitionState {
    /// Appends the state's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_i64(self.log_start.get());
        out.put_i64(self.end.get());
        put_bytes(out, &self.extra);
        // Segments are bounded by the disk: 2^32 of them do not fit on one.
        out.put_u32(u32::try_from(self.segments.len()).unwrap_or(u32::MAX));
        for segment in &self.segments {
            out.put_i64(segment.base.get());
            out.put_u32(segment.generation);
            out.put_u64(segment.len);
            out.put_u32(segment.crc);
            out.put_u8(if segment.sealed { SEALED } else { 0 });
            out.put_i64(segment.next_offset.get());
            out.put_i64(segment.first_timestamp.as_millis());
            out.put_i64(segment.max_timestamp.as_millis());
            out.put_u64(0);
        }
    }

    /// Decodes a state that takes all of `bytes`.
    ///
    /// # Errors
    /// [`StateError`] for any bytes that [`PartitionState::encode`] does not make.
    pub fn decode(mut bytes: Bytes) -> Result<Self, StateError> {
        let log_start = take_offset(&mut bytes)?;
        let end = take_offset(&mut bytes)?;
        let extra = take_bytes(&mut bytes)?;
        let count = bytes.try_get_u32().map_err(|_| StateError::Short)?;
        let count = usize::try_from(count).map_err(|_| StateError::Short)?;
        let expected = count.checked_mul(SEGMENT_BYTES).ok_or(StateError::Short)?;
        match bytes.len().cmp(&expected) {
            std::cmp::Ordering::Less => return Err(StateError::Short),
            std::cmp::Ordering::Greater => return Err(StateError::Long),
            std::cmp::Ordering::Equal => {}
        }
        let segments =
            (0..count).map(|_| SegmentState::decode(&mut bytes)).collect::<Result<_, _>>();
        let state = Self { log_start, end, segments: segments?, extra };
        state.check()?;
        Ok(state)
    }

    /// Checks that the segments follow one another within the log.
    ///
    /// # Errors
    /// [`StateError::Order`], [`StateError::TwoActive`].
    pub fn check(&self) -> Result<(), StateError> {
        let mut next = Offset::ZERO;
        for (position, segment) in self.segments.iter().enumerate() {
            if segment.base < next || segment.next_offset < segment.base {
                return Err(StateError::Order);
            }
            if !segment.sealed && position + 1 < self.segments.len() {
                return Err(StateError::TwoActive);
            }
            next = segment.next_offset;
        }
        if next > self.end || self.log_start > self.end { Err(StateError::Order) } else { Ok(()) }
    }
}

impl SegmentState {
    fn decode(bytes: &mut Bytes) -> Result<Self, StateError> {
        let short = |_| StateError::Short;
        let base = take_offset(bytes)?;
        let generation = bytes.try_get_u32().map_err(short)?;
        let len = bytes.try_get_u64().map_err(short)?;
        let crc = bytes.try_get_u32().map_err(short)?;
        let sealed = match bytes.try_get_u8().map_err(short)? {
            0 => false,
            SEALED => true,
            _ => return Err(StateError::Flags),
        };
        let next_offset = take_offset(bytes)?;
        let first_timestamp = Timestamp::from_millis(bytes.try_get_i64().map_err(short)?);
        let max_timestamp = Timestamp::from_millis(bytes.try_get_i64().map_err(short)?);
        if bytes.try_get_u64().map_err(short)? != 0 {
            return Err(StateError::Flags);
        }
        Ok(Self { base, generation, len, crc, sealed, next_offset, first_timestamp, max_timestamp })
    }
}

/// Appends a length in four bytes and the bytes.
pub(in crate::storage) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    // Callers hold less than 4 GiB in any field; a longer one would not be read back.
    out.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.put_slice(bytes);
}

/// Takes what [`put_bytes`] appended, without copying.
pub(in crate::storage) fn take_bytes(from: &mut Bytes) -> Result<Bytes, StateError> {
    let len = from.try_get_u32().map_err(|_| StateError::Short)?;
    let len = usize::try_from(len).map_err(|_| StateError::Short)?;
    if len > from.len() { Err(StateError::Short) } else { Ok(from.split_to(len)) }
}

fn take_offset(from: &mut Bytes) -> Result<Offset, StateError> {
    let raw = from.try_get_i64().map_err(|_| StateError::Short)?;
    Offset::new(raw).ok_or(StateError::Offset)
}
