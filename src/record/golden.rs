//! The format against batches that Kafka's own kind of clients wrote (`tests/data/record-v2`, made
//! once with kafka-python 3.0.12, never regenerated).

use bytes::Bytes;

use crate::record::{
    Batch, BatchBuilder, BatchKind, Compression, DecompressLimit, HEAD_BYTES, NewHeader, NewRecord,
    Producer, stamp,
};
use crate::types::{Offset, Timestamp, TimestampType};

macro_rules! golden {
    ($name:literal) => {
        include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/data/record-v2/",
            $name,
            ".batch"
        ))
        .as_slice()
    };
}

const LIMIT: DecompressLimit = DecompressLimit::new(1 << 20);
const HEADERS: [NewHeader<'_>; 2] =
    [NewHeader { name: "h", value: Some(&[1]) }, NewHeader { name: "n", value: None }];
const PRODUCER: Producer = Producer { id: 4711, epoch: 3, base_sequence: 10 };

fn record<'a>(
    millis: i64,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    headers: &'a [NewHeader<'a>],
) -> NewRecord<'a> {
    NewRecord { timestamp: Timestamp::from_millis(millis), key, value, headers }
}

fn three_records() -> [NewRecord<'static>; 3] {
    [
        record(
            1_700_000_000_000,
            Some(b"user123"),
            Some(b"clicked_product_456"),
            HEADERS.as_slice(),
        ),
        record(1_700_000_000_005, None, Some(b""), &[]),
        record(1_700_000_000_003, Some(b""), None, &[]),
    ]
}

fn sealed(mut builder: BatchBuilder, records: &[NewRecord<'_>]) -> Bytes {
    for record in records {
        builder.push(record).unwrap();
    }
    builder.seal(TimestampType::CreateTime)
}

fn assert_reads_as(golden: &'static [u8], expected: &[NewRecord<'_>]) -> Batch {
    let batch = Batch::from_stored(Bytes::from_static(golden)).unwrap();
    batch.verify_crc().unwrap();
    let records = batch.records(LIMIT).unwrap();
    let mut left = expected.iter().enumerate();
    for (record, (index, expected)) in records.iter().zip(left.by_ref()) {
        let record = record.unwrap();
        let index = u64::try_from(index).unwrap();
        assert_eq!(record.offset.records_since(batch.base_offset()), index);
        assert_eq!(record.timestamp, expected.timestamp);
        assert_eq!(record.key, expected.key);
        assert_eq!(record.value, expected.value);
        let headers: Vec<_> = record.headers.iter().collect();
        let wanted: Vec<_> = expected.headers.iter().map(|h| (h.name, h.value)).collect();
        assert_eq!(headers, wanted);
        assert_eq!(record.headers.len(), wanted.len());
    }
    assert_eq!(left.next(), None, "records are missing");
    assert_eq!(records.iter().count(), expected.len());
    batch
}

#[test]
fn plain_batch_both_ways() {
    let golden = golden!("plain");
    let records = three_records();
    let batch = assert_reads_as(golden, &records);
    assert_eq!(batch.header().crc, 0xa676_16d6);
    assert_eq!(batch.header().producer_id, -1);
    assert_eq!(batch.max_timestamp(), Timestamp::from_millis(1_700_000_000_005));
    assert_eq!(sealed(BatchBuilder::new(0), &records), golden);
}

#[test]
fn transactional_batch_both_ways() {
    let golden = golden!("transactional");
    let records = three_records();
    let batch = assert_reads_as(golden, &records);
    let header = batch.header();
    assert_eq!(header.crc, 0x076e_5ada);
    assert!(header.attributes.is_transactional);
    assert!(!header.attributes.is_control);
    assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (4711, 3, 10));
    assert_eq!(header.last_sequence(), 12);
    let builder = BatchBuilder::new(0).with_producer(PRODUCER).with_kind(BatchKind::Transactional);
    assert_eq!(sealed(builder, &records), golden);
}

#[test]
fn markers_both_ways() {
    for (golden, kind, crc) in
        [(golden!("commit"), 1, 0xee82_e358_u32), (golden!("abort"), 0, 0x1abc_3510)]
    {
        let value = [0, 0, 0, 0, 0, 7];
        let key = [0, 0, 0, kind];
        let records = [record(1_700_000_000_100, Some(&key), Some(&value), &[])];
        let batch = assert_reads_as(golden, &records);
        assert_eq!(batch.header().crc, crc);
        assert!(batch.header().attributes.is_control);
        assert_eq!(batch.base_offset(), Offset::new(3).unwrap());
        let builder = BatchBuilder::new(0)
            .with_producer(Producer { base_sequence: -1, ..PRODUCER })
            .with_kind(BatchKind::Marker);
        let bytes = sealed(builder, &records);
        let head = stamp(bytes.len(), batch.base_offset(), 0).unwrap();
        assert_eq!([&head, &bytes[HEAD_BYTES..]].concat(), golden);
    }
}

#[test]
fn compressed_batches_of_another_client_are_read() {
    let keys: Vec<_> = (0..7).map(|n| format!("key-{n}")).collect();
    let values: Vec<_> = (0..700)
        .map(|n| format!("{{\"sequence\":{n},\"text\":\"the quick brown fox\"}}"))
        .collect();
    let records: Vec<_> = (0_i64..)
        .zip(&values)
        .zip(keys.iter().cycle())
        .map(|((n, value), key)| {
            let (key, value) = (Some(key.as_bytes()), Some(value.as_bytes()));
            record(1_700_000_000_000 + n, key, value, &[])
        })
        .collect();
    for (golden, codec) in [
        (golden!("gzip"), Compression::Gzip),
        (golden!("snappy"), Compression::Snappy),
        (golden!("lz4"), Compression::Lz4),
        (golden!("zstd"), Compression::Zstd),
    ] {
        let batch = assert_reads_as(golden, &records);
        assert_eq!(batch.header().attributes.compression, codec);
        assert!(batch.records(LIMIT).unwrap().len_bytes() > 32 * 1024, "several blocks");
    }
}
