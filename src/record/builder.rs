//! Writing batches: records are encoded as they come, the header when the batch is sealed.

use bytes::Bytes;

use crate::record::header::{BATCH_BYTES_MAX, HeaderFields, write_header, write_max_timestamp};
use crate::record::varint::Numbers;
use crate::record::{Attributes, BatchHeader, Compression, Error, HEADER_BYTES, compress, varint};
use crate::types::{Timestamp, TimestampType};

/// A header to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewHeader<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its value, `None` is null.
    pub value: Option<&'a [u8]>,
}

/// A record to be written, borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewRecord<'a> {
    /// Its timestamp.
    pub timestamp: Timestamp,
    /// Its key, `None` is the null key.
    pub key: Option<&'a [u8]>,
    /// Its value, `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Its headers in order; a name may repeat.
    pub headers: &'a [NewHeader<'a>],
}

/// Who wrote a batch, for deduplication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Producer {
    /// Producer id, -1 for none.
    pub id: i64,
    /// Producer epoch, -1 for none.
    pub epoch: i16,
    /// Sequence of the batch's first record, -1 for none.
    pub base_sequence: i32,
}

impl Producer {
    /// No producer: the batch is not deduplicated.
    pub const NONE: Self = Self { id: -1, epoch: -1, base_sequence: -1 };
}

/// What a batch's records are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BatchKind {
    /// Records for consumers.
    #[default]
    Data,
    /// Records for consumers, part of a transaction.
    Transactional,
    /// One marker that ends a transaction.
    Marker,
}

/// Returns the bytes that a record adds to a batch at most; at most 22 too many.
///
/// The exact number depends on the record's place in its batch, which is known too late for limits.
pub fn encoded_len(record: &NewRecord<'_>) -> usize {
    let deltas = varint::I64_BYTES_MAX + varint::I32_BYTES_MAX;
    varint::I32_BYTES_MAX + 1 + deltas + fields_len(record)
}

/// An open batch. Records are encoded at once, so they may borrow from a request's body.
#[derive(Debug)]
pub struct BatchBuilder {
    /// Room for the header, then the encoded records; below 2 GiB.
    bytes: Vec<u8>,
    count: u32,
    base_timestamp: Timestamp,
    max_timestamp: Timestamp,
    producer: Producer,
    kind: BatchKind,
}

impl BatchBuilder {
    /// Makes an empty batch with room for `capacity` bytes, header included. It grows when needed.
    pub fn new(capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity.max(HEADER_BYTES));
        bytes.resize(HEADER_BYTES, 0);
        Self {
            bytes,
            count: 0,
            base_timestamp: Timestamp::NONE,
            max_timestamp: Timestamp::NONE,
            producer: Producer::NONE,
            kind: BatchKind::Data,
        }
    }

    /// Names the producer.
    #[must_use]
    pub const fn with_producer(mut self, producer: Producer) -> Self {
        self.producer = producer;
        self
    }

    /// Says what the records are.
    #[must_use]
    pub const fn with_kind(mut self, kind: BatchKind) -> Self {
        self.kind = kind;
        self
    }

    /// Appends a record and returns its offset delta, which is its position in the batch.
    ///
    /// # Errors
    /// [`Error::BatchTooLarge`] when the batch would pass 2 GiB; nothing was appended. Smaller
    /// limits are the caller's, see [`encoded_len`].
    #[inline]
    pub fn push(&mut self, record: &NewRecord<'_>) -> Result<u32, Error> {
        let delta = self.count;
        if self.count == 0 {
            self.base_timestamp = record.timestamp;
        }
        // Wraps like the reader, so that any two timestamps may share a batch.
        let timestamp_delta =
            record.timestamp.as_millis().wrapping_sub(self.base_timestamp.as_millis());
        let deltas = varint::len(timestamp_delta) + varint::len(i64::from(delta));
        let body = 1 + deltas + fields_len(record);
        // Every record has more than one byte, so the count stays below 2^31 with the bytes.
        let bytes = self.bytes.len().saturating_add(varint::I32_BYTES_MAX).saturating_add(body);
        let (true, Ok(length)) = (bytes <= BATCH_BYTES_MAX, i64::try_from(body)) else {
            return Err(Error::BatchTooLarge { bytes, limit: BATCH_BYTES_MAX });
        };

        let out = &mut self.bytes;
        out.reserve(varint::I32_BYTES_MAX + body);
        let mut head = Numbers::default();
        head.put(length);
        head.byte(0);
        head.put(timestamp_delta);
        head.put(i64::from(delta));
        head.put(nullable_length(record.key));
        out.extend_from_slice(head.bytes());
        out.extend_from_slice(record.key.unwrap_or_default());
        put_nullable(out, record.value);
        varint::put(out, i64::try_from(record.headers.len()).unwrap_or(i64::MAX));
        for header in record.headers {
            put_nullable(out, Some(header.name.as_bytes()));
            put_nullable(out, header.value);
        }

        self.max_timestamp = match delta {
            0 => record.timestamp,
            _ => self.max_timestamp.max(record.timestamp),
        };
        self.count += 1;
        Ok(delta)
    }

    /// Returns the number of records.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Returns whether there are no records.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns the bytes of the batch so far, header included.
    pub const fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the largest timestamp of the records, -1 while there are none.
    pub const fn max_timestamp(&self) -> Timestamp {
        self.max_timestamp
    }

    /// Writes header and CRC and returns the batch, without copying it. Base offset and leader
    /// epoch are zeros. An empty builder has no batch to return and gives no bytes.
    ///
    /// The CRC reads the whole batch: take the builder out of its lock first.
    pub fn seal(mut self, timestamp_type: TimestampType) -> Bytes {
        if self.is_empty() {
            return Bytes::new();
        }
        let fields = self.fields(Compression::None, timestamp_type);
        write_header(&mut self.bytes, &fields);
        Bytes::from(self.bytes)
    }

    /// Like [`BatchBuilder::seal`], with the records compressed.
    ///
    /// # Errors
    /// [`Error::Codec`] when the codec fails, [`Error::BatchTooLarge`] when the compressed batch
    /// passes 2 GiB.
    pub fn seal_compressed(
        self,
        codec: Compression,
        timestamp_type: TimestampType,
    ) -> Result<Bytes, Error> {
        if codec == Compression::None || self.is_empty() {
            return Ok(self.seal(timestamp_type));
        }
        let records = self.bytes.get(HEADER_BYTES..).unwrap_or_default();
        let compressed = compress(codec, records)?;
        let bytes = HEADER_BYTES.saturating_add(compressed.len());
        if bytes > BATCH_BYTES_MAX {
            return Err(Error::BatchTooLarge { bytes, limit: BATCH_BYTES_MAX });
        }
        let mut batch = Vec::with_capacity(bytes);
        batch.resize(HEADER_BYTES, 0);
        batch.extend_from_slice(&compressed);
        write_header(&mut batch, &self.fields(codec, timestamp_type));
        Ok(Bytes::from(batch))
    }

    fn fields(&self, compression: Compression, timestamp_type: TimestampType) -> HeaderFields {
        let count = i32::try_from(self.count).unwrap_or(i32::MAX);
        HeaderFields {
            attributes: Attributes {
                compression,
                timestamp_type,
                is_transactional: self.kind != BatchKind::Data,
                is_control: self.kind == BatchKind::Marker,
                has_delete_horizon: false,
            },
            last_offset_delta: count - 1,
            base_timestamp: self.base_timestamp,
            max_timestamp: self.max_timestamp,
            producer_id: self.producer.id,
            producer_epoch: self.producer.epoch,
            base_sequence: self.producer.base_sequence,
            record_count: count,
        }
    }
}

/// Copies a batch with `time` as the append time of all its records.
///
/// # Errors
/// [`Error`] when `batch` does not start with a header that makes sense.
pub fn rewrite_append_time(batch: &[u8], time: Timestamp) -> Result<Bytes, Error> {
    rewrite_max_timestamp(batch, TimestampType::LogAppendTime, time)
}

/// Copies a batch with another timestamp type and largest timestamp, and the CRC that they need.
/// The first 16 bytes are copied as they are.
///
/// # Errors
/// [`Error`] when `batch` does not start with a header that makes sense.
pub fn rewrite_max_timestamp(
    batch: &[u8],
    timestamp_type: TimestampType,
    max: Timestamp,
) -> Result<Bytes, Error> {
    BatchHeader::parse_unstamped(batch, crate::types::Offset::ZERO, 0)?;
    let mut copy = batch.to_vec();
    write_max_timestamp(&mut copy, timestamp_type, max);
    Ok(Bytes::from(copy))
}

/// Bytes of everything behind the deltas.
#[inline]
fn fields_len(record: &NewRecord<'_>) -> usize {
    let headers = match record.headers {
        [] => 1,
        headers => headers_len(headers),
    };
    nullable_len(record.key).saturating_add(nullable_len(record.value)).saturating_add(headers)
}

fn headers_len(headers: &[NewHeader<'_>]) -> usize {
    headers.iter().fold(length_len(headers.len()), |sum, header| {
        let name = nullable_len(Some(header.name.as_bytes()));
        sum.saturating_add(name).saturating_add(nullable_len(header.value))
    })
}

#[inline]
fn nullable_len(bytes: Option<&[u8]>) -> usize {
    match bytes {
        Some(bytes) => length_len(bytes.len()).saturating_add(bytes.len()),
        None => 1,
    }
}

#[inline]
fn length_len(length: usize) -> usize {
    i64::try_from(length).map_or(usize::MAX, varint::len)
}

/// Returns the length that stands before bytes, -1 for null. `push` has checked that all lengths of
/// a record together are below 2 GiB.
#[inline]
fn nullable_length(bytes: Option<&[u8]>) -> i64 {
    bytes.map_or(-1, |bytes| i64::try_from(bytes.len()).unwrap_or(i64::MAX))
}

#[inline]
fn put_nullable(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    varint::put(out, nullable_length(bytes));
    out.extend_from_slice(bytes.unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::{Batch, DecompressLimit, Error, RecordFault};
    use crate::types::Offset;

    const LIMIT: DecompressLimit = DecompressLimit::new(1 << 24);

    /// A record that owns its parts.
    #[derive(Debug, Clone, PartialEq)]
    struct Owned {
        timestamp: Timestamp,
        key: Option<Vec<u8>>,
        value: Option<Vec<u8>>,
        headers: Vec<(String, Option<Vec<u8>>)>,
    }

    impl Owned {
        fn new(timestamp: i64) -> Self {
            let timestamp = Timestamp::from_millis(timestamp);
            Self { timestamp, key: None, value: None, headers: Vec::new() }
        }
    }

    fn push(builder: &mut BatchBuilder, record: &Owned) -> u32 {
        let headers: Vec<_> = record
            .headers
            .iter()
            .map(|(name, value)| NewHeader { name, value: value.as_deref() })
            .collect();
        let new = NewRecord {
            timestamp: record.timestamp,
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers: &headers,
        };
        let before = builder.bytes();
        let delta = builder.push(&new).unwrap();
        let added = builder.bytes() - before;
        assert!(added <= encoded_len(&new), "{added} <= {}", encoded_len(&new));
        assert!(added + 22 >= encoded_len(&new), "{added} + 22 >= {}", encoded_len(&new));
        delta
    }

    fn built(records: &[Owned]) -> BatchBuilder {
        let mut builder = BatchBuilder::new(100);
        for (index, record) in (0..).zip(records) {
            assert_eq!(push(&mut builder, record), index);
        }
        builder
    }

    fn read(batch: &Batch) -> Vec<Owned> {
        let records = batch.records(LIMIT).unwrap();
        let mut next = batch.base_offset();
        let own = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
        let owned = records.iter().map(|record| {
            let record = record.unwrap();
            assert_eq!(record.offset, next);
            next = next.checked_add(1).unwrap();
            let headers = record.headers.iter();
            Owned {
                timestamp: record.timestamp,
                key: own(record.key),
                value: own(record.value),
                headers: headers.map(|(name, value)| (name.to_owned(), own(value))).collect(),
            }
        });
        owned.collect()
    }

    fn record_strategy() -> impl Strategy<Value = Owned> {
        let bytes = || prop::option::of(prop::collection::vec(any::<u8>(), 0..300));
        let headers = prop::collection::vec(("[a-c\u{e9}]{0,2}", bytes()), 0..4);
        let timestamp = prop_oneof![1_700_000_000_000_i64..1_700_000_100_000, any::<i64>()];
        (timestamp, bytes(), bytes(), headers).prop_map(|(timestamp, key, value, headers)| Owned {
            key,
            value,
            headers,
            ..Owned::new(timestamp)
        })
    }

    proptest! {
        #[test]
        fn what_was_pushed_is_read(
            records in prop::collection::vec(record_strategy(), 1..40),
            base in 0..i64::MAX - 40,
            epoch: i32,
            code in 0_u8..5,
        ) {
            let codec = Compression::from_code(code).unwrap();
            let bytes = built(&records).seal_compressed(codec, TimestampType::CreateTime).unwrap();
            let batch = Batch::new(bytes, Offset::new(base).unwrap(), epoch).unwrap();
            batch.verify_crc().unwrap();
            prop_assert_eq!(&read(&batch), &records);
            let max = records.iter().map(|record| record.timestamp).max();
            prop_assert_eq!(Some(batch.max_timestamp()), max);
            prop_assert_eq!(usize::try_from(batch.record_count()).unwrap(), records.len());

            let stored = Bytes::from([&batch.head(), batch.body()].concat());
            let stored = Batch::from_stored(stored).unwrap();
            prop_assert_eq!(stored.header(), batch.header());
            stored.verify_crc().unwrap();
            prop_assert_eq!(&read(&stored), &records);
        }
    }

    #[test]
    fn null_and_empty_and_repeated_headers_are_told_apart() {
        let header =
            |name: &str, value: Option<&[u8]>| (name.to_owned(), value.map(<[u8]>::to_vec));
        let records = [
            Owned { key: Some(Vec::new()), ..Owned::new(5) },
            Owned { value: Some(Vec::new()), ..Owned::new(5) },
            Owned {
                headers: vec![
                    header("x", None),
                    header("x", Some(b"")),
                    header("", Some(b"1")),
                    header("x", None),
                ],
                ..Owned::new(5)
            },
        ];
        let bytes = built(&records).seal(TimestampType::CreateTime);
        assert_eq!(read(&Batch::new(bytes, Offset::ZERO, 0).unwrap()), records);
    }

    #[test]
    fn the_extremes_of_time_share_a_batch() {
        let records = [i64::MIN, i64::MAX, 0, -1].map(Owned::new);
        let bytes = built(&records).seal(TimestampType::CreateTime);
        assert_eq!(read(&Batch::new(bytes, Offset::ZERO, 0).unwrap()), records);
    }

    #[test]
    fn sealing_does_not_copy() {
        let builder = built(&[Owned::new(1)]);
        let at = builder.bytes.as_ptr();
        assert_eq!(builder.seal(TimestampType::CreateTime).as_ptr(), at);
    }

    #[test]
    fn an_empty_builder_has_no_batch() {
        assert!(BatchBuilder::new(0).seal(TimestampType::CreateTime).is_empty());
        let packed = BatchBuilder::new(0)
            .seal_compressed(Compression::Zstd, TimestampType::CreateTime)
            .unwrap();
        assert!(packed.is_empty());
    }

    #[test]
    fn the_append_time_is_every_records_time() {
        let records = [1, 9, 4].map(Owned::new);
        let plain = built(&records).seal(TimestampType::CreateTime);
        let bytes = rewrite_append_time(&plain, Timestamp::from_millis(77)).unwrap();
        let batch = Batch::new(bytes.clone(), Offset::ZERO, 0).unwrap();
        batch.verify_crc().unwrap();
        assert_eq!(batch.max_timestamp(), Timestamp::from_millis(77));
        assert_eq!(batch.header().attributes.timestamp_type, TimestampType::LogAppendTime);
        assert!(read(&batch).iter().all(|record| record.timestamp == batch.max_timestamp()));

        let back =
            rewrite_max_timestamp(&bytes, TimestampType::CreateTime, Timestamp::from_millis(9));
        assert_eq!(back.unwrap(), plain);
        assert!(rewrite_append_time(&plain[..60], Timestamp::default()).is_err());
    }

    #[test]
    fn a_batch_in_memory_does_not_believe_its_own_head() {
        let bytes = built(&[Owned::new(1)]).seal(TimestampType::CreateTime);
        let mut zeros = bytes.to_vec();
        zeros[..16].fill(0);
        let base = Offset::new(42).unwrap();
        for bytes in [bytes, Bytes::from(zeros)] {
            let batch = Batch::new(bytes, base, 7).unwrap();
            assert_eq!((batch.base_offset(), batch.header().leader_epoch), (base, 7));
            assert_eq!(batch.last_offset(), base);
            assert_eq!(batch.next_offset(), Offset::new(43).unwrap());
            assert_eq!(batch.head(), stamped_head(batch.total_bytes()));
        }
        fn stamped_head(bytes: usize) -> [u8; 16] {
            crate::record::stamp(bytes, Offset::new(42).unwrap(), 7).unwrap()
        }
    }

    #[test]
    fn stored_bytes_are_exactly_one_batch() {
        let bytes = built(&[Owned::new(1)]).seal(TimestampType::CreateTime);
        let longer = Bytes::from([&bytes[..], &[0]].concat());
        assert!(matches!(Batch::from_stored(longer), Err(Error::TrailingBytes(1))));
        let shorter = bytes.slice(..bytes.len() - 1);
        assert!(matches!(Batch::from_stored(shorter), Err(Error::Truncated { .. })));
    }

    #[test]
    fn uncompressed_records_are_read_in_place() {
        let record = Owned { value: Some(vec![1; 50]), ..Owned::new(1) };
        let bytes = built(&[record]).seal(TimestampType::CreateTime);
        let memory = bytes.as_ptr_range();
        let batch = Batch::new(bytes, Offset::ZERO, 0).unwrap();
        let records = batch.records(DecompressLimit::new(0)).unwrap();
        let value = records.iter().next().unwrap().unwrap().value.unwrap();
        assert!(memory.contains(&value.as_ptr()));
    }

    #[test]
    fn the_first_bad_record_ends_the_iteration() {
        let records: Vec<_> = (0..3).map(Owned::new).collect();
        let mut bytes = built(&records).seal(TimestampType::CreateTime).to_vec();
        // The records have seven bytes each; the second one's offset delta becomes 0.
        assert_eq!(bytes.len(), 61 + 3 * 7);
        bytes[61 + 7 + 3] = 0;
        let batch = Batch::new(Bytes::from(bytes), Offset::ZERO, 0).unwrap();
        let records = batch.records(LIMIT).unwrap();
        let mut iter = records.iter();
        assert!(iter.next().unwrap().is_ok());
        let error = iter.next().unwrap().unwrap_err();
        assert!(matches!(error, Error::Record { index: 1, fault: RecordFault::Offset }));
        assert!(iter.next().is_none());
    }
}
