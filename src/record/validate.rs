//! What a batch made by a client must be before it may be appended (Kafka, `LogValidator.java`).

use bytes::Bytes;

use crate::record::header::batch_crc;
use crate::record::{
    Batch, BatchHeader, DecompressLimit, Error, HEADER_BYTES, Record, RecordFault,
};
use crate::types::{Offset, Timestamp, TimestampType};

/// What a topic accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// `max.message.bytes`: largest batch.
    pub batch_bytes_max: usize,
    /// `segment.bytes`: a batch must fit in a segment.
    pub segment_bytes: u64,
    /// Which timestamps are accepted.
    pub timestamps: TimestampRule,
    /// Whether records need keys.
    pub keys: KeyRule,
    /// Most bytes that the records may have when decompressed.
    pub decompress_limit: DecompressLimit,
}

/// Which timestamps a topic accepts from clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestampRule {
    /// Any: the server writes its own.
    Any,
    /// Those in the range, and -1, which says that there is none.
    Within {
        /// Oldest accepted.
        oldest: Timestamp,
        /// Newest accepted.
        newest: Timestamp,
    },
}

impl TimestampRule {
    /// Accepts `before_max_ms` before `now` to `after_max_ms` after it.
    pub const fn around(now: Timestamp, before_max_ms: i64, after_max_ms: i64) -> Self {
        let now = now.as_millis();
        Self::Within {
            oldest: Timestamp::from_millis(now.saturating_sub(before_max_ms)),
            newest: Timestamp::from_millis(now.saturating_add(after_max_ms)),
        }
    }

    fn accepts(self, timestamp: Timestamp) -> bool {
        match self {
            Self::Any => true,
            Self::Within { oldest, newest } => {
                timestamp == Timestamp::NONE || (oldest..=newest).contains(&timestamp)
            }
        }
    }
}

/// Whether a topic's records need keys; compacted topics' do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyRule {
    /// Null keys are fine.
    Optional,
    /// Every record has a key, though it may be empty.
    Required,
}

/// What a valid batch contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// The header as the client wrote it.
    pub header: BatchHeader,
    /// The largest timestamp that a record has. Where the header has another, store the batch with
    /// [`rewrite_max_timestamp`](crate::record::rewrite_max_timestamp): time queries and retention
    /// trust the header.
    pub max_timestamp: Timestamp,
}

/// Checks that `bytes` are exactly one batch that a client may append.
///
/// # Errors
/// The first rule that is broken; [`Error::kind`] gives Kafka's class. Nothing may be appended.
pub fn validate(bytes: &Bytes, rules: &Rules) -> Result<Summary, Error> {
    let header = check_bytes(bytes, rules)?;
    check_header(&header)?;
    let batch = Batch::new(bytes.clone(), Offset::ZERO, 0)?;
    let max_timestamp = check_records(&batch, rules)?;
    Ok(Summary { header, max_timestamp })
}

/// Checks sizes and CRC: that these are the bytes that the sender meant.
fn check_bytes(bytes: &[u8], rules: &Rules) -> Result<BatchHeader, Error> {
    let have = bytes.len();
    if have < HEADER_BYTES {
        return Err(Error::Truncated { need: HEADER_BYTES, have });
    }
    let limit = rules.batch_bytes_max;
    if have > limit {
        return Err(Error::BatchTooLarge { bytes: have, limit });
    }
    let limit = rules.segment_bytes;
    if u64::try_from(have).unwrap_or(u64::MAX) > limit {
        return Err(Error::SegmentTooSmall { bytes: have, limit });
    }
    // Length and CRC first: what damaged bytes say about themselves is no reason for anything.
    let (need, stored) = BatchHeader::framing(bytes)?;
    if have < need {
        return Err(Error::Truncated { need, have });
    }
    if have > need {
        return Err(Error::TrailingBytes(have - need));
    }
    let computed = batch_crc(bytes);
    if computed != stored {
        return Err(Error::Crc { stored, computed });
    }
    BatchHeader::parse_unstamped(bytes, Offset::ZERO, 0)
}

fn check_header(header: &BatchHeader) -> Result<(), Error> {
    if header.attributes.is_control {
        return Err(Error::Control);
    }
    if header.attributes.timestamp_type == TimestampType::LogAppendTime {
        return Err(Error::AppendTime);
    }
    if header.producer_id >= 0 && header.base_sequence < 0 {
        return Err(Error::Sequence(header.producer_id));
    }
    // Offsets that grow from record to record up to the last one, as the iterator demands, are then
    // dense. The header's parser has bounded both numbers, so neither conversion is lossy.
    if u64::from(header.record_count) != u64::from(header.last_offset_delta) + 1 {
        return Err(Error::RecordCount {
            count: i32::try_from(header.record_count).unwrap_or(i32::MAX),
            delta: i32::try_from(header.last_offset_delta).unwrap_or(i32::MAX),
        });
    }
    Ok(())
}

/// Checks every record and returns the largest timestamp.
fn check_records(batch: &Batch, rules: &Rules) -> Result<Timestamp, Error> {
    let records = batch.records(rules.decompress_limit)?;
    let mut max = Timestamp::from_millis(i64::MIN);
    for (index, record) in (0_u32..).zip(&records) {
        let record = record?;
        check_record(&record, rules).map_err(|fault| Error::Record { index, fault })?;
        max = max.max(record.timestamp);
    }
    Ok(max)
}

fn check_record(record: &Record<'_>, rules: &Rules) -> Result<(), RecordFault> {
    if rules.keys == KeyRule::Required && record.key.is_none() {
        return Err(RecordFault::NoKey);
    }
    if !rules.timestamps.accepts(record.timestamp) {
        return Err(RecordFault::Timestamp(record.timestamp));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::header::{HeaderFields, write_crc, write_header};
    use crate::record::{
        Attributes, BatchBuilder, BatchKind, Compression, ErrorKind, NewRecord, Producer,
    };

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    fn rules() -> Rules {
        Rules {
            batch_bytes_max: 1000,
            segment_bytes: 2000,
            timestamps: TimestampRule::around(NOW, 1000, 100),
            keys: KeyRule::Optional,
            decompress_limit: DecompressLimit::new(10_000),
        }
    }

    fn builder(timestamps: &[i64]) -> BatchBuilder {
        let mut builder = BatchBuilder::new(0);
        for offset in timestamps {
            let timestamp = Timestamp::from_millis(NOW.as_millis() + offset);
            let (key, value) = (Some(&b"k"[..]), Some(&b"v"[..]));
            builder.push(&NewRecord { timestamp, key, value, headers: &[] }).unwrap();
        }
        builder
    }

    fn good() -> Bytes {
        builder(&[0, 50, -1000]).seal(TimestampType::CreateTime)
    }

    /// A batch with these records' bytes and a count and last offset delta of choice.
    fn raw(records: &[u8], count: i32, last_offset_delta: i32) -> Bytes {
        let mut batch = [&[0; HEADER_BYTES][..], records].concat();
        let fields = HeaderFields {
            attributes: Attributes::default(),
            last_offset_delta,
            base_timestamp: NOW,
            max_timestamp: NOW,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            record_count: count,
        };
        write_header(&mut batch, &fields);
        Bytes::from(batch)
    }

    fn changed(at: usize, value: &[u8]) -> Bytes {
        let mut batch = good().to_vec();
        batch[at..][..value.len()].copy_from_slice(value);
        write_crc(&mut batch);
        Bytes::from(batch)
    }

    fn kind(bytes: &Bytes, rules: &Rules) -> ErrorKind {
        validate(bytes, rules).unwrap_err().kind()
    }

    fn fault(bytes: &Bytes, rules: &Rules) -> (u32, RecordFault) {
        match validate(bytes, rules) {
            Err(Error::Record { index, fault }) => (index, fault),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn good_batches_pass_with_every_codec() {
        for codec in Compression::ALL {
            let bytes =
                builder(&[0, 50, -1000]).seal_compressed(codec, TimestampType::CreateTime).unwrap();
            let summary = validate(&bytes, &rules()).unwrap();
            assert_eq!(summary.header.record_count, 3);
            assert_eq!(summary.header.attributes.compression, codec);
            assert_eq!(summary.max_timestamp.millis_since(NOW), 50);
            assert_eq!(summary.header.max_timestamp, summary.max_timestamp);
        }
    }

    #[test]
    fn damage_is_corruption_whatever_the_damaged_bytes_say() {
        let rules = rules();
        let good = good();
        for length in [0, 60, 61, good.len() - 1] {
            assert_eq!(kind(&good.slice(..length), &rules), ErrorKind::CorruptMessage, "{length}");
        }
        for at in 16..good.len() {
            for bit in 0..8 {
                let mut bad = good.to_vec();
                bad[at] ^= 1 << bit;
                assert_eq!(kind(&bad.into(), &rules), ErrorKind::CorruptMessage, "{at} {bit}");
            }
        }
        for length in [-1_i32, 48, 10_000, i32::MIN, i32::MAX] {
            let bad = changed(8, &length.to_be_bytes());
            assert_eq!(kind(&bad, &rules), ErrorKind::CorruptMessage, "{length}");
        }
    }

    #[test]
    fn the_client_decides_neither_offset_nor_epoch() {
        let bytes = changed(0, &[0xff; 8]);
        let bytes = [&bytes[..12], &[0xff; 4], &bytes[16..]].concat();
        assert!(validate(&bytes.into(), &rules()).is_ok());
    }

    #[test]
    fn exactly_one_batch_comes_at_a_time() {
        let two = Bytes::from(good().repeat(2));
        let result = validate(&two, &rules());
        assert!(matches!(result, Err(Error::TrailingBytes(n)) if n == good().len()), "{result:?}");
        assert_eq!(kind(&two, &rules()), ErrorKind::InvalidRecord);
    }

    #[test]
    fn counts_fit_the_offsets() {
        let record = [0x0c, 0, 0, 0, 1, 1, 0];
        assert!(validate(&raw(&record, 1, 0), &rules()).is_ok());
        for (count, delta) in [(1, 1), (2, 0), (0, 0), (-1, 0), (1, -1), (0, -1)] {
            let bytes = raw(&record, count, delta);
            assert_eq!(kind(&bytes, &rules()), ErrorKind::InvalidRecord, "{count} {delta}");
        }
    }

    #[test]
    fn offsets_are_dense() {
        let two = |first, second| {
            let records = [0x0c, 0, 0, first, 1, 1, 0, 0x0c, 0, 0, second, 1, 1, 0];
            validate(&raw(&records, 2, 1), &rules())
        };
        assert!(two(0, 2).is_ok());
        for (first, second) in [(0, 0), (2, 2), (2, 4), (0, 4), (1, 2), (2, 0)] {
            let result = two(first, second);
            let refused = matches!(result, Err(Error::Record { fault: RecordFault::Offset, .. }));
            assert!(refused, "{first} {second} {result:?}");
        }
    }

    #[test]
    fn records_that_cannot_be_decoded_are_named() {
        let rules = rules();
        let good = [0x0c, 0, 0, 0, 1, 1, 0];
        for (second, expected) in [
            (&[][..], RecordFault::Number),
            (&[0x0c], RecordFault::Truncated),
            (&[0x01], RecordFault::Number),
            (&[0x00], RecordFault::Length),
            (&[0x80, 0x80, 0x80, 0x80, 0x80, 0x00], RecordFault::Number),
            // key of length -2, of more than there is; value likewise
            (&[0x0c, 0, 0, 2, 3, 1, 0], RecordFault::Number),
            (&[0x0c, 0, 0, 2, 20, 1, 0], RecordFault::Truncated),
            (&[0x0c, 0, 0, 2, 1, 20, 0], RecordFault::Truncated),
            // the fields end before the record does
            (&[0x0e, 0, 0, 2, 1, 1, 0, 0], RecordFault::Length),
            // headers: -1 of them, one that is not there, a null name, a name that is not UTF-8
            (&[0x0c, 0, 0, 2, 1, 1, 1], RecordFault::Number),
            (&[0x0c, 0, 0, 2, 1, 1, 2], RecordFault::Number),
            (&[0x10, 0, 0, 2, 1, 1, 2, 1, 1], RecordFault::Number),
            (&[0x12, 0, 0, 2, 1, 1, 2, 2, 0xff, 1], RecordFault::HeaderName),
        ] {
            let bytes = raw(&[&good[..], second].concat(), 2, 1);
            assert_eq!(fault(&bytes, &rules), (1, expected), "{second:02x?}");
            assert_eq!(kind(&bytes, &rules), ErrorKind::InvalidRecord);
        }
        let fine = [&good[..], &[0x12, 0, 0, 2, 1, 1, 2, 2, b'n', 1]].concat();
        assert!(validate(&raw(&fine, 2, 1), &rules).is_ok());
        let trailing = [&good[..], &[0]].concat();
        assert_eq!(fault(&raw(&trailing, 1, 0), &rules), (1, RecordFault::TrailingBytes));
    }

    #[test]
    fn what_only_the_server_writes_is_refused() {
        let bytes = builder(&[0]).with_kind(BatchKind::Marker).seal(TimestampType::CreateTime);
        assert_eq!(kind(&bytes, &rules()), ErrorKind::InvalidRecord);
        let bytes = builder(&[0]).seal(TimestampType::LogAppendTime);
        assert_eq!(kind(&bytes, &rules()), ErrorKind::InvalidTimestamp);
        let transactional = builder(&[0]).with_kind(BatchKind::Transactional);
        assert!(validate(&transactional.seal(TimestampType::CreateTime), &rules()).is_ok());
    }

    #[test]
    fn a_producer_has_a_sequence() {
        let with = |id, base_sequence| {
            let builder = builder(&[0]).with_producer(Producer { id, epoch: 0, base_sequence });
            validate(&builder.seal(TimestampType::CreateTime), &rules())
        };
        assert!(with(5, 0).is_ok());
        assert!(matches!(with(5, -1), Err(Error::Sequence(5))));
        assert!(with(-1, -1).is_ok());
    }

    #[test]
    fn timestamps_have_a_range() {
        let at =
            |offset| validate(&builder(&[0, offset]).seal(TimestampType::CreateTime), &rules());
        for fine in [-1000, 100, -1 - NOW.as_millis()] {
            assert!(at(fine).is_ok(), "{fine}");
        }
        for bad in [-1001, 101, -NOW.as_millis(), -2 - NOW.as_millis()] {
            let error = at(bad).unwrap_err();
            assert!(matches!(error, Error::Record { index: 1, .. }), "{bad} {error:?}");
            assert_eq!(error.kind(), ErrorKind::InvalidTimestamp);
        }
        let any = Rules { timestamps: TimestampRule::Any, ..rules() };
        assert!(validate(&builder(&[-1001]).seal(TimestampType::CreateTime), &any).is_ok());
        let widest = TimestampRule::around(NOW, i64::MAX, i64::MAX);
        assert!(widest.accepts(Timestamp::from_millis(i64::MAX)));
    }

    #[test]
    fn a_wrong_largest_timestamp_is_reported() {
        let summary = validate(&changed(35, &[0; 8]), &rules()).unwrap();
        assert_eq!(summary.header.max_timestamp, Timestamp::default());
        assert_eq!(summary.max_timestamp.millis_since(NOW), 50);
    }

    #[test]
    fn compacted_topics_need_keys() {
        let rules = Rules { keys: KeyRule::Required, ..rules() };
        assert!(validate(&good(), &rules).is_ok());
        let mut builder = builder(&[0]);
        builder.push(&NewRecord { timestamp: NOW, key: None, value: None, headers: &[] }).unwrap();
        let bytes = builder.seal(TimestampType::CreateTime);
        assert_eq!(fault(&bytes, &rules), (1, RecordFault::NoKey));
        assert_eq!(kind(&bytes, &rules), ErrorKind::InvalidRecord);
    }

    #[test]
    fn sizes_have_limits() {
        let bytes = good();
        let exact = Rules { batch_bytes_max: bytes.len(), ..rules() };
        assert!(validate(&bytes, &exact).is_ok());
        let small = Rules { batch_bytes_max: bytes.len() - 1, ..rules() };
        assert_eq!(kind(&bytes, &small), ErrorKind::MessageTooLarge);
        let segments = Rules { segment_bytes: 88, ..rules() };
        assert_eq!(bytes.len(), 89);
        assert_eq!(kind(&bytes, &segments), ErrorKind::RecordListTooLarge);
    }

    #[test]
    fn codecs_are_known_and_bounded() {
        assert_eq!(kind(&changed(21, &[0, 7]), &rules()), ErrorKind::UnsupportedCompressionType);
        // The plain records are not what the codec wrote.
        assert_eq!(kind(&changed(21, &[0, 4]), &rules()), ErrorKind::InvalidRecord);
        let zeros = [0; 20_000];
        let mut builder = BatchBuilder::new(0);
        let value = Some(&zeros[..]);
        builder.push(&NewRecord { timestamp: NOW, key: None, value, headers: &[] }).unwrap();
        let bytes = builder.seal_compressed(Compression::Zstd, TimestampType::CreateTime).unwrap();
        assert_eq!(kind(&bytes, &rules()), ErrorKind::MessageTooLarge);
    }
}
