//! The bytes of checkpoint files.
//!
//! Big-endian. Base and deltas have the same layout; a base lists all partitions, a delta those
//! that changed and those that are gone.
//!
//! ```text
//!    0  8  magic "EDDYCKPT"
//!    8  1  version, 1
//!    9  1  kind: 0 base, 1 delta
//!   10  2  reserved, zero
//!   12  4  CRC-32C of everything from byte 16 to the end
//!   16  8  number of the base, counted up with each base
//!   24  4  number of the delta, from 1; 0 in a base
//!   28  4  CRC-32C field of the file before it in the chain; 0 in a base
//!   32     1  applied: 0 none, 1 term u64 | index u64 follow
//!          8  shard time i64
//!          membership length u32 | membership
//!          extra length u32 | extra
//!          removed count u32 | removed partitions, 20 bytes each
//!          changed count u32 | per partition: partition, 20 bytes | length u32 | its state
//! ```
//! A partition is topic id (16 bytes) | number u32. Its state is described in
//! `storage/log/state.rs`.

use bytes::{Buf, BufMut, Bytes};

use crate::record::crc32c;
use crate::storage::checkpoint::{Changes, Damage, LogId};
use crate::storage::log::{PartitionState, StateError, put_bytes, take_bytes};
use crate::types::{PartitionId, RaftIndex, Term, Timestamp, TopicId, TopicPartition};

const MAGIC: &[u8; 8] = b"EDDYCKPT";
const VERSION: u8 = 1;
const CRC_AT: usize = MAGIC.len() + 1 + 1 + 2;
const CRC_FROM: usize = CRC_AT + 4;
const PARTITION_BYTES: usize = 16 + 4;
/// Least that a changed partition takes: itself, a length, and a state without segments.
const CHANGED_BYTES_MIN: usize = PARTITION_BYTES + 4 + 24;

/// Where a file stands among the files of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Number of the base.
    pub(super) base: u64,
    /// Number of the delta, 0 for the base itself.
    pub(super) delta: u32,
    /// Checksum of the file before it, 0 for the base.
    pub(super) previous_crc: u32,
}

/// A decoded file.
#[derive(Debug)]
pub(super) struct File {
    pub(super) place: Place,
    /// Its own checksum.
    pub(super) crc: u32,
    pub(super) changes: Changes,
}

/// Encodes a file: `changes`, but with `partitions` as the changed ones. Returns it with its
/// checksum.
pub(super) fn encode<'a>(
    place: Place,
    changes: &Changes,
    partitions: impl ExactSizeIterator<Item = (&'a TopicPartition, &'a PartitionState)>,
) -> (Vec<u8>, u32) {
    let mut out = Vec::with_capacity(256 + 128 * partitions.len());
    out.put_slice(MAGIC);
    out.put_u8(VERSION);
    out.put_u8(u8::from(place.delta > 0));
    out.put_u16(0);
    out.put_u32(0);
    out.put_u64(place.base);
    out.put_u32(place.delta);
    out.put_u32(place.previous_crc);
    match changes.applied {
        None => out.put_u8(0),
        Some(LogId { term, index }) => {
            out.put_u8(1);
            out.put_u64(term.get());
            out.put_u64(index.get());
        }
    }
    out.put_i64(changes.shard_time.as_millis());
    put_bytes(&mut out, &changes.membership);
    put_bytes(&mut out, &changes.extra);
    // What is gone concerns a delta only: a base lists everything that there is.
    let removed = if place.delta > 0 { changes.removed.as_slice() } else { &[] };
    put_count(&mut out, removed.len());
    removed.iter().for_each(|id| put_partition(&mut out, *id));
    put_count(&mut out, partitions.len());
    let mut state = Vec::new();
    for (id, partition) in partitions {
        put_partition(&mut out, *id);
        state.clear();
        partition.encode(&mut state);
        put_bytes(&mut out, &state);
    }
    let crc = crc32c(out.get(CRC_FROM..).unwrap_or_default());
    if let Some(field) = out.get_mut(CRC_AT..CRC_FROM) {
        field.copy_from_slice(&crc.to_be_bytes());
    }
    (out, crc)
}

/// Decodes a file.
pub(super) fn decode(mut bytes: Bytes) -> Result<File, Damage> {
    if bytes.len() < CRC_FROM || !bytes.starts_with(MAGIC) {
        return Err(Damage::Magic);
    }
    bytes.advance(MAGIC.len());
    let version = bytes.get_u8();
    if version != VERSION {
        return Err(Damage::Version(version));
    }
    let is_delta = bytes.get_u8();
    let reserved = bytes.get_u16();
    let crc = bytes.get_u32();
    if crc32c(&bytes) != crc {
        return Err(Damage::Crc);
    }
    let short = |_| StateError::Short;
    let place = Place {
        base: bytes.try_get_u64().map_err(short)?,
        delta: bytes.try_get_u32().map_err(short)?,
        previous_crc: bytes.try_get_u32().map_err(short)?,
    };
    if reserved != 0 || is_delta != u8::from(place.delta > 0) {
        return Err(Damage::Kind);
    }
    let changes = decode_changes(&mut bytes)?;
    if bytes.is_empty() { Ok(File { place, crc, changes }) } else { Err(StateError::Long.into()) }
}

fn decode_changes(bytes: &mut Bytes) -> Result<Changes, StateError> {
    let short = |_| StateError::Short;
    let applied = match bytes.try_get_u8().map_err(short)? {
        0 => None,
        1 => Some(LogId {
            term: Term::new(bytes.try_get_u64().map_err(short)?),
            index: RaftIndex::new(bytes.try_get_u64().map_err(short)?),
        }),
        _ => return Err(StateError::Flags),
    };
    let shard_time = Timestamp::from_millis(bytes.try_get_i64().map_err(short)?);
    let membership = take_bytes(bytes)?;
    let extra = take_bytes(bytes)?;
    let mut changes = Changes { applied, membership, shard_time, extra, ..Changes::default() };
    let removed = take_count(bytes, PARTITION_BYTES)?;
    for _ in 0..removed {
        changes.removed.push(take_partition(bytes)?);
    }
    let changed = take_count(bytes, CHANGED_BYTES_MIN)?;
    for _ in 0..changed {
        let id = take_partition(bytes)?;
        let state = PartitionState::decode(take_bytes(bytes)?)?;
        if changes.changed.insert(id, state).is_some() {
            return Err(StateError::Order);
        }
    }
    Ok(changes)
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    // More than 2^32 partitions do not fit in memory.
    out.put_u32(u32::try_from(count).unwrap_or(u32::MAX));
}

/// Takes a count of things of at least `each` bytes, so that a wrong one makes no long loop.
fn take_count(bytes: &mut Bytes, each: usize) -> Result<usize, StateError> {
    let count = bytes.try_get_u32().map_err(|_| StateError::Short)?;
    let count = usize::try_from(count).map_err(|_| StateError::Short)?;
    if count > bytes.len() / each { Err(StateError::Short) } else { Ok(count) }
}

fn put_partition(out: &mut Vec<u8>, id: TopicPartition) {
    out.put_slice(&id.topic.to_bytes());
    out.put_u32(id.partition.get());
}

fn take_partition(bytes: &mut Bytes) -> Result<TopicPartition, StateError> {
    let mut topic = [0; 16];
    bytes.try_copy_to_slice(&mut topic).map_err(|_| StateError::Short)?;
    let number = bytes.try_get_u32().map_err(|_| StateError::Short)?;
    let partition = PartitionId::new(number).ok_or(StateError::Flags)?;
    Ok(TopicPartition { topic: TopicId::from_bytes(topic), partition })
}
