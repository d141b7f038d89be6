//! The 61 bytes in front of a batch's records.

use crate::record::{Compression, Error};
use crate::types::{Offset, Timestamp, TimestampType};

// RecordBatch v2, all numbers big-endian. The leader stamps the first three fields; the CRC covers
// everything from the attributes to the end, so stamping leaves it true.
//
//   base offset            i64   offset of the first record
//   batch length           i32   bytes after this field
//   partition leader epoch i32   the term of the shard's leader that appended the batch
//   magic                  i8    2
//   crc                    u32   CRC-32C from the attributes to the end
//   attributes             i16   bits 0-2 codec, 3 timestamp type, 4 transactional, 5 control,
//                                6 delete horizon, 7-15 unused
//   last offset delta      i32   offset of the last record less the base offset
//   base timestamp         i64   what the records' timestamp deltas count from
//   max timestamp          i64   largest of the records', or the append time
//   producer id            i64   -1 none
//   producer epoch         i16   -1 none
//   base sequence          i32   -1 none
//   record count           i32
//   records                      as they are, or compressed in one piece
const BASE_OFFSET_AT: usize = 0;
const LENGTH_AT: usize = BASE_OFFSET_AT + size_of::<i64>();
const LEADER_EPOCH_AT: usize = LENGTH_AT + size_of::<i32>();
const MAGIC_AT: usize = LEADER_EPOCH_AT + size_of::<i32>();
const CRC_AT: usize = MAGIC_AT + size_of::<i8>();
const ATTRIBUTES_AT: usize = CRC_AT + size_of::<u32>();
const LAST_OFFSET_DELTA_AT: usize = ATTRIBUTES_AT + size_of::<i16>();
const BASE_TIMESTAMP_AT: usize = LAST_OFFSET_DELTA_AT + size_of::<i32>();
const MAX_TIMESTAMP_AT: usize = BASE_TIMESTAMP_AT + size_of::<i64>();
const PRODUCER_ID_AT: usize = MAX_TIMESTAMP_AT + size_of::<i64>();
const PRODUCER_EPOCH_AT: usize = PRODUCER_ID_AT + size_of::<i64>();
const BASE_SEQUENCE_AT: usize = PRODUCER_EPOCH_AT + size_of::<i16>();
const RECORD_COUNT_AT: usize = BASE_SEQUENCE_AT + size_of::<i32>();

/// Bytes of a batch's header; the records follow.
pub const HEADER_BYTES: usize = RECORD_COUNT_AT + size_of::<i32>();

/// Bytes at the start of a batch that the leader stamps: base offset, length, leader epoch. The CRC
/// does not cover them.
pub const HEAD_BYTES: usize = MAGIC_AT;

/// First byte that the CRC covers.
pub(crate) const CRC_FROM: usize = ATTRIBUTES_AT;

/// Bytes in front of what the length field counts.
const LENGTH_FROM: usize = LEADER_EPOCH_AT;

const _: () = assert!(HEADER_BYTES == 61);
const _: () = assert!(HEAD_BYTES == 16);

const MAGIC: i8 = 2;
const CODEC_BITS: i16 = 0b111;
const APPEND_TIME_BIT: i16 = 1 << 3;
const TRANSACTIONAL_BIT: i16 = 1 << 4;
const CONTROL_BIT: i16 = 1 << 5;
const DELETE_HORIZON_BIT: i16 = 1 << 6;

/// What a batch says about itself in its attribute bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes {
    /// The codec of the records.
    pub compression: Compression,
    /// Whose time the timestamps are.
    pub timestamp_type: TimestampType,
    /// The batch is part of a transaction.
    pub is_transactional: bool,
    /// The batch is a marker and not for consumers.
    pub is_control: bool,
    /// The base timestamp is a compaction's delete horizon.
    pub has_delete_horizon: bool,
}

impl Attributes {
    fn parse(bits: i16) -> Result<Self, Error> {
        let timestamp_type = match bits & APPEND_TIME_BIT {
            0 => TimestampType::CreateTime,
            _ => TimestampType::LogAppendTime,
        };
        let [_, codec] = (bits & CODEC_BITS).to_be_bytes();
        Ok(Self {
            compression: Compression::from_code(codec)?,
            timestamp_type,
            is_transactional: bits & TRANSACTIONAL_BIT != 0,
            is_control: bits & CONTROL_BIT != 0,
            has_delete_horizon: bits & DELETE_HORIZON_BIT != 0,
        })
    }

    fn bits(self) -> i16 {
        let set = |condition, bit| if condition { bit } else { 0 };
        i16::from(self.compression.code())
            | set(self.timestamp_type == TimestampType::LogAppendTime, APPEND_TIME_BIT)
            | set(self.is_transactional, TRANSACTIONAL_BIT)
            | set(self.is_control, CONTROL_BIT)
            | set(self.has_delete_horizon, DELETE_HORIZON_BIT)
    }
}

/// A batch's header. The offsets `base_offset ..= last_offset()` are valid and another follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// Bytes of the whole batch, at least [`HEADER_BYTES`]; see [`BatchHeader::total_bytes`].
    total_bytes: usize,
    /// Term of the leader that appended the batch.
    pub leader_epoch: i32,
    /// CRC-32C from the attributes to the end.
    pub crc: u32,
    /// Codec, timestamp type and flags.
    pub attributes: Attributes,
    /// Offset of the last record less the base offset; compaction keeps it when records go.
    pub last_offset_delta: u32,
    /// What the records' timestamp deltas count from.
    pub base_timestamp: Timestamp,
    /// Largest timestamp of the records, or the append time.
    pub max_timestamp: Timestamp,
    /// Producer id, -1 for none.
    pub producer_id: i64,
    /// Producer epoch, -1 for none.
    pub producer_epoch: i16,
    /// Sequence of the first record, -1 for none.
    pub base_sequence: i32,
    /// Number of records.
    pub record_count: u32,
}

impl BatchHeader {
    /// Reads the header at the start of `bytes`, which may end anywhere behind it. Cheap; the CRC
    /// is not looked at.
    ///
    /// # Errors
    /// [`Error::Truncated`] below 61 bytes; [`Error::Length`], [`Error::Magic`],
    /// [`Error::UnknownCodec`], [`Error::Offsets`], [`Error::RecordCount`] when a field makes no
    /// sense.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let header = header_of(bytes)?;
        let (total_bytes, _) = Self::framing(bytes)?;
        let base_offset = i64::from_be_bytes(field(header, BASE_OFFSET_AT));
        let leader_epoch = i32::from_be_bytes(field(header, LEADER_EPOCH_AT));
        Self::parse_stamped(header, Head { base_offset, total_bytes, leader_epoch })
    }

    /// Reads what must be right before anything else is believed: magic, total bytes and CRC.
    pub(crate) fn framing(bytes: &[u8]) -> Result<(usize, u32), Error> {
        let header = header_of(bytes)?;
        check_magic(header)?;
        let length = i32::from_be_bytes(field(header, LENGTH_AT));
        let total_bytes = usize::try_from(length)
            .ok()
            .map(|length| length.saturating_add(LENGTH_FROM))
            .filter(|total| *total >= HEADER_BYTES)
            .ok_or(Error::Length(i64::from(length)))?;
        Ok((total_bytes, u32::from_be_bytes(field(header, CRC_AT))))
    }

    /// Reads the header of the whole batch `bytes`, taking base offset and leader epoch from the
    /// arguments instead of the bytes.
    pub(crate) fn parse_unstamped(
        bytes: &[u8],
        base_offset: Offset,
        leader_epoch: i32,
    ) -> Result<Self, Error> {
        let header = header_of(bytes)?;
        let head = Head { base_offset: base_offset.get(), total_bytes: bytes.len(), leader_epoch };
        Self::parse_stamped(header, head)
    }

    fn parse_stamped(header: &[u8; HEADER_BYTES], head: Head) -> Result<Self, Error> {
        check_magic(header)?;
        let delta = i32::from_be_bytes(field(header, LAST_OFFSET_DELTA_AT));
        let offsets_error = Error::Offsets { base: head.base_offset, delta };
        let (Some(base_offset), Ok(last_offset_delta)) =
            (Offset::new(head.base_offset), u32::try_from(delta))
        else {
            return Err(offsets_error);
        };
        if base_offset.checked_add(u64::from(last_offset_delta) + 1).is_none() {
            return Err(offsets_error);
        }
        let count = i32::from_be_bytes(field(header, RECORD_COUNT_AT));
        let record_count = u32::try_from(count)
            .ok()
            .filter(|count| u64::from(*count) <= u64::from(last_offset_delta) + 1)
            .ok_or(Error::RecordCount { count, delta })?;
        let millis = |at| Timestamp::from_millis(i64::from_be_bytes(field(header, at)));
        Ok(Self {
            base_offset,
            total_bytes: head.total_bytes,
            leader_epoch: head.leader_epoch,
            crc: u32::from_be_bytes(field(header, CRC_AT)),
            attributes: Attributes::parse(i16::from_be_bytes(field(header, ATTRIBUTES_AT)))?,
            last_offset_delta,
            base_timestamp: millis(BASE_TIMESTAMP_AT),
            max_timestamp: millis(MAX_TIMESTAMP_AT),
            producer_id: i64::from_be_bytes(field(header, PRODUCER_ID_AT)),
            producer_epoch: i16::from_be_bytes(field(header, PRODUCER_EPOCH_AT)),
            base_sequence: i32::from_be_bytes(field(header, BASE_SEQUENCE_AT)),
            record_count,
        })
    }

    /// Returns the bytes of the whole batch, header and records.
    pub const fn total_bytes(&self) -> usize {
        self.total_bytes
    }

    /// Returns the offset of the last record.
    pub const fn last_offset(&self) -> Offset {
        self.base_offset.saturating_add(self.last_offset_delta as u64)
    }

    /// Returns the offset after the last record.
    pub const fn next_offset(&self) -> Offset {
        self.base_offset.saturating_add(self.last_offset_delta as u64 + 1)
    }

    /// Returns the sequence of the last record, -1 for none; 0 follows 2^31 - 1.
    pub fn last_sequence(&self) -> i32 {
        if self.base_sequence < 0 {
            return -1;
        }
        let sum = i64::from(self.base_sequence) + i64::from(self.last_offset_delta);
        i32::try_from(sum % (i64::from(i32::MAX) + 1)).unwrap_or(-1)
    }
}

/// Returns the head that goes in front of `batch[HEAD_BYTES..]` where the batch is stored or sent.
/// `batch_bytes` counts the whole batch, head included.
///
/// # Errors
/// [`Error::Truncated`] below 61 bytes, [`Error::BatchTooLarge`] above 2 GiB.
pub fn stamp(
    batch_bytes: usize,
    base_offset: Offset,
    leader_epoch: i32,
) -> Result<[u8; HEAD_BYTES], Error> {
    if batch_bytes < HEADER_BYTES {
        return Err(Error::Truncated { need: HEADER_BYTES, have: batch_bytes });
    }
    let length = i32::try_from(batch_bytes - LENGTH_FROM)
        .map_err(|_| Error::BatchTooLarge { bytes: batch_bytes, limit: BATCH_BYTES_MAX })?;
    Ok(head_bytes(base_offset.get(), length, leader_epoch))
}

/// Largest batch that the length field can count.
pub(crate) const BATCH_BYTES_MAX: usize = i32::MAX as usize;

/// The fields of a header that a writer decides; base offset and leader epoch are zeros until the
/// leader stamps them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeaderFields {
    pub(crate) attributes: Attributes,
    pub(crate) last_offset_delta: i32,
    pub(crate) base_timestamp: Timestamp,
    pub(crate) max_timestamp: Timestamp,
    pub(crate) producer_id: i64,
    pub(crate) producer_epoch: i16,
    pub(crate) base_sequence: i32,
    pub(crate) record_count: i32,
}

/// Writes the header into the first 61 bytes of `batch` and seals it with the CRC. The caller has
/// reserved the bytes and kept the batch below [`BATCH_BYTES_MAX`].
pub(crate) fn write_header(batch: &mut [u8], fields: &HeaderFields) {
    let length = i32::try_from(batch.len().saturating_sub(LENGTH_FROM)).unwrap_or(i32::MAX);
    let Some(header) = batch.first_chunk_mut::<HEADER_BYTES>() else {
        debug_assert!(false, "a batch without room for its header");
        return;
    };
    put(header, BASE_OFFSET_AT, head_bytes(0, length, 0));
    put(header, MAGIC_AT, MAGIC.to_be_bytes());
    put(header, ATTRIBUTES_AT, fields.attributes.bits().to_be_bytes());
    put(header, LAST_OFFSET_DELTA_AT, fields.last_offset_delta.to_be_bytes());
    put(header, BASE_TIMESTAMP_AT, fields.base_timestamp.as_millis().to_be_bytes());
    put(header, MAX_TIMESTAMP_AT, fields.max_timestamp.as_millis().to_be_bytes());
    put(header, PRODUCER_ID_AT, fields.producer_id.to_be_bytes());
    put(header, PRODUCER_EPOCH_AT, fields.producer_epoch.to_be_bytes());
    put(header, BASE_SEQUENCE_AT, fields.base_sequence.to_be_bytes());
    put(header, RECORD_COUNT_AT, fields.record_count.to_be_bytes());
    write_crc(batch);
}

/// Sets timestamp type and largest timestamp of a batch and seals it again.
pub(crate) fn write_max_timestamp(batch: &mut [u8], kind: TimestampType, max: Timestamp) {
    let Some(header) = batch.first_chunk_mut::<HEADER_BYTES>() else {
        debug_assert!(false, "a batch without a header");
        return;
    };
    let bits = i16::from_be_bytes(field(header, ATTRIBUTES_AT));
    let bits = match kind {
        TimestampType::CreateTime => bits & !APPEND_TIME_BIT,
        TimestampType::LogAppendTime => bits | APPEND_TIME_BIT,
    };
    put(header, ATTRIBUTES_AT, bits.to_be_bytes());
    put(header, MAX_TIMESTAMP_AT, max.as_millis().to_be_bytes());
    write_crc(batch);
}

/// Computes the CRC that belongs in the header of `batch`.
pub(crate) fn batch_crc(batch: &[u8]) -> u32 {
    crate::record::crc32c(batch.get(CRC_FROM..).unwrap_or_default())
}

/// Puts the right CRC into the header of `batch`.
pub(crate) fn write_crc(batch: &mut [u8]) {
    let crc = batch_crc(batch);
    if let Some(header) = batch.first_chunk_mut::<HEADER_BYTES>() {
        put(header, CRC_AT, crc.to_be_bytes());
    }
}

/// The stamped fields of a header.
#[derive(Clone, Copy)]
struct Head {
    base_offset: i64,
    total_bytes: usize,
    leader_epoch: i32,
}

fn head_bytes(base_offset: i64, length: i32, leader_epoch: i32) -> [u8; HEAD_BYTES] {
    let [a, b, c, d, e, f, g, h] = base_offset.to_be_bytes();
    let [i, j, k, l] = length.to_be_bytes();
    let [m, n, o, p] = leader_epoch.to_be_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

fn check_magic(header: &[u8; HEADER_BYTES]) -> Result<(), Error> {
    let magic = i8::from_be_bytes(field(header, MAGIC_AT));
    if magic == MAGIC { Ok(()) } else { Err(Error::Magic(magic)) }
}

fn header_of(bytes: &[u8]) -> Result<&[u8; HEADER_BYTES], Error> {
    bytes
        .first_chunk::<HEADER_BYTES>()
        .ok_or(Error::Truncated { need: HEADER_BYTES, have: bytes.len() })
}

/// Reads a field. The offsets are this file's constants, so there is always a field to read and
/// the compiler drops the checks.
#[inline]
fn field<const N: usize>(header: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    header.get(at..).and_then(|bytes| bytes.first_chunk()).copied().unwrap_or([0; N])
}

/// Writes a field; like [`field`], it always finds its place.
#[inline]
fn put<const N: usize>(header: &mut [u8; HEADER_BYTES], at: usize, value: [u8; N]) {
    if let Some(place) = header.get_mut(at..).and_then(|bytes| bytes.first_chunk_mut()) {
        *place = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header_bytes(change: impl FnOnce(&mut [u8; HEADER_BYTES])) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        let none = HeaderFields {
            attributes: Attributes::default(),
            last_offset_delta: 0,
            base_timestamp: Timestamp::NONE,
            max_timestamp: Timestamp::NONE,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            record_count: 0,
        };
        write_header(&mut bytes, &none);
        change(bytes.first_chunk_mut().unwrap());
        bytes
    }

    #[test]
    fn fields_are_where_kafka_puts_them() {
        let places = [
            (LENGTH_AT, 8),
            (LEADER_EPOCH_AT, 12),
            (MAGIC_AT, 16),
            (CRC_AT, 17),
            (ATTRIBUTES_AT, 21),
            (LAST_OFFSET_DELTA_AT, 23),
            (BASE_TIMESTAMP_AT, 27),
            (MAX_TIMESTAMP_AT, 35),
            (PRODUCER_ID_AT, 43),
            (PRODUCER_EPOCH_AT, 51),
            (BASE_SEQUENCE_AT, 53),
            (RECORD_COUNT_AT, 57),
        ];
        assert!(places.iter().all(|(ours, kafkas)| ours == kafkas), "{places:?}");
    }

    #[test]
    fn an_emptied_batch_is_a_batch() {
        let header = BatchHeader::parse(&header_bytes(|_| ())).unwrap();
        assert_eq!(header.total_bytes(), HEADER_BYTES);
        assert_eq!(header.record_count, 0);
        assert_eq!(header.next_offset(), Offset::new(1).unwrap());
    }

    #[test]
    fn fields_that_make_no_sense_are_refused() {
        let parse = |at: usize, value: &[u8]| {
            let bytes = header_bytes(|header| header[at..][..value.len()].copy_from_slice(value));
            BatchHeader::parse(&bytes)
        };
        let minus_one = (-1_i32).to_be_bytes();
        assert!(matches!(parse(MAGIC_AT, &[1]), Err(Error::Magic(1))));
        assert!(matches!(parse(LENGTH_AT, &minus_one), Err(Error::Length(-1))));
        assert!(matches!(parse(LENGTH_AT, &48_i32.to_be_bytes()), Err(Error::Length(48))));
        assert!(parse(LENGTH_AT, &i32::MAX.to_be_bytes()).is_ok());
        assert!(matches!(parse(LAST_OFFSET_DELTA_AT, &minus_one), Err(Error::Offsets { .. })));
        assert!(matches!(
            parse(BASE_OFFSET_AT, &(-1_i64).to_be_bytes()),
            Err(Error::Offsets { base: -1, delta: 0 })
        ));
        assert!(matches!(
            parse(BASE_OFFSET_AT, &i64::MAX.to_be_bytes()),
            Err(Error::Offsets { base: i64::MAX, delta: 0 })
        ));
        assert!(parse(BASE_OFFSET_AT, &(i64::MAX - 1).to_be_bytes()).is_ok());
        assert!(matches!(
            parse(RECORD_COUNT_AT, &minus_one),
            Err(Error::RecordCount { count: -1, delta: 0 })
        ));
        assert!(matches!(
            parse(RECORD_COUNT_AT, &2_i32.to_be_bytes()),
            Err(Error::RecordCount { count: 2, delta: 0 })
        ));
        for codec in 5..=7 {
            let result = parse(ATTRIBUTES_AT, &[0, codec]);
            assert!(matches!(result, Err(Error::UnknownCodec(c)) if c == codec), "{codec}");
        }
        assert!(parse(ATTRIBUTES_AT, &[0xff, 0x84]).is_ok(), "unused bits are ignored");
    }

    #[test]
    fn attribute_bits_survive() {
        for bits in 0..128 {
            match Attributes::parse(bits) {
                Ok(attributes) => assert_eq!(attributes.bits(), bits),
                Err(_) => assert!(bits & CODEC_BITS > 4),
            }
        }
    }

    #[test]
    fn a_stamp_is_read_back() {
        let bytes = header_bytes(|_| ());
        let base = Offset::new(0x0102_0304_0506_0708).unwrap();
        let head = stamp(bytes.len(), base, 0x0a0b_0c0d).unwrap();
        assert_eq!(head, [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 49, 0xa, 0xb, 0xc, 0xd]);
        let stamped = [&head, &bytes[HEAD_BYTES..]].concat();
        let header = BatchHeader::parse(&stamped).unwrap();
        assert_eq!((header.base_offset, header.leader_epoch), (base, 0x0a0b_0c0d));
        assert_eq!(header.crc, batch_crc(&stamped), "the head is outside of the CRC");
    }

    #[test]
    fn sizes_that_no_length_field_can_hold_are_not_stamped() {
        assert!(matches!(stamp(60, Offset::ZERO, 0), Err(Error::Truncated { .. })));
        let largest = BATCH_BYTES_MAX + LENGTH_FROM;
        assert!(stamp(largest, Offset::ZERO, 0).is_ok());
        assert!(matches!(stamp(largest + 1, Offset::ZERO, 0), Err(Error::BatchTooLarge { .. })));
    }

    #[test]
    fn sequences_start_again_at_zero() {
        let last = |base: i32, delta: i32| {
            let bytes = header_bytes(|header| {
                put(header, BASE_SEQUENCE_AT, base.to_be_bytes());
                put(header, LAST_OFFSET_DELTA_AT, delta.to_be_bytes());
            });
            BatchHeader::parse(&bytes).unwrap().last_sequence()
        };
        assert_eq!(last(-1, 5), -1);
        assert_eq!(last(10, 2), 12);
        assert_eq!(last(i32::MAX, 0), i32::MAX);
        assert_eq!(last(i32::MAX, 1), 0);
        assert_eq!(last(i32::MAX - 1, 4), 2);
    }
}
