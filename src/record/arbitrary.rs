//! Every decoder of this layer over bytes that mean nothing, for property tests and the fuzzer.

use bytes::Bytes;

use crate::record::header::{HeaderFields, write_crc, write_header};
use crate::record::varint::{take_i32, take_i64};
use crate::record::{
    Attributes, Batch, BatchHeader, Compression, DecompressLimit, HEADER_BYTES, KeyRule, Rules,
    TimestampRule, decompress, murmur2, partition_for_key, rewrite_append_time, validate,
};
use crate::types::{Offset, Timestamp};

const OUTPUT_LIMIT: DecompressLimit = DecompressLimit::new(64 * 1024);

/// Decodes `data` as everything that this layer decodes. It must return, for any bytes: a panic, an
/// abort for lack of memory or a hang is a bug.
pub fn decode_any(data: &[u8]) {
    let _ = take_i32(&mut &data[..]);
    let _ = take_i64(&mut &data[..]);
    let _ = BatchHeader::parse(data);
    let _ = partition_for_key(data, murmur2(data));
    for codec in Compression::ALL {
        let _ = decompress(codec, data, OUTPUT_LIMIT);
    }
    decode_batch(Bytes::copy_from_slice(data));
    decode_batch(with_true_crc(data));
    for codec in Compression::ALL {
        decode_batch(with_true_header(data, codec));
    }
}

fn decode_batch(bytes: Bytes) {
    let rules = Rules {
        batch_bytes_max: usize::MAX,
        segment_bytes: u64::MAX,
        timestamps: TimestampRule::Any,
        keys: KeyRule::Optional,
        decompress_limit: OUTPUT_LIMIT,
    };
    let _ = validate(&bytes, &rules);
    let _ = rewrite_append_time(&bytes, Timestamp::default());
    if let Ok(batch) = Batch::from_stored(bytes.clone()) {
        read(&batch);
    }
    if let Ok(batch) = Batch::new(bytes, Offset::ZERO, 0) {
        read(&batch);
    }
}

fn read(batch: &Batch) {
    let _ = batch.verify_crc();
    let _ = (batch.head(), batch.next_offset(), batch.header().last_sequence());
    let Ok(records) = batch.records(OUTPUT_LIMIT) else {
        return;
    };
    for record in records.iter().flatten() {
        for header in record.headers {
            let _ = std::hint::black_box(header);
        }
    }
}

/// The bytes with the CRC that they should have, so that the checks behind it are reached.
fn with_true_crc(data: &[u8]) -> Bytes {
    let mut bytes = data.to_vec();
    write_crc(&mut bytes);
    Bytes::from(bytes)
}

/// The bytes as the records of a batch that is otherwise in order.
fn with_true_header(data: &[u8], compression: Compression) -> Bytes {
    let count = data.first().map_or(1, |byte| i32::from(*byte) + 1);
    let mut bytes = vec![0; HEADER_BYTES];
    bytes.extend_from_slice(data);
    let fields = HeaderFields {
        attributes: Attributes { compression, ..Attributes::default() },
        last_offset_delta: count - 1,
        base_timestamp: Timestamp::default(),
        max_timestamp: Timestamp::default(),
        producer_id: -1,
        producer_epoch: -1,
        base_sequence: -1,
        record_count: count,
    };
    write_header(&mut bytes, &fields);
    Bytes::from(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::{BatchBuilder, NewHeader, NewRecord};
    use crate::types::TimestampType;

    fn batch(codec: Compression) -> Vec<u8> {
        let headers = [NewHeader { name: "a", value: Some(b"b") }];
        let mut builder = BatchBuilder::new(0);
        for n in 0..40 {
            let value = [n; 40];
            let record = NewRecord {
                timestamp: Timestamp::from_millis(i64::from(n)),
                key: Some(b"key"),
                value: Some(&value),
                headers: &headers,
            };
            builder.push(&record).unwrap();
        }
        builder.seal_compressed(codec, TimestampType::CreateTime).unwrap().to_vec()
    }

    #[test]
    fn batches_cut_anywhere_are_refused() {
        for codec in Compression::ALL {
            let whole = batch(codec);
            for length in 0..whole.len() {
                let cut = Bytes::copy_from_slice(&whole[..length]);
                assert!(Batch::from_stored(cut).is_err(), "{codec} {length}");
                decode_any(&whole[..length]);
            }
        }
    }

    #[test]
    fn cut_records_are_noticed_though_header_and_crc_fit() {
        for codec in Compression::ALL {
            let whole = batch(codec);
            for length in HEADER_BYTES..whole.len() {
                let mut cut = whole[..length].to_vec();
                write_crc(&mut cut);
                let batch = Batch::new(Bytes::from(cut), Offset::ZERO, 0).unwrap();
                batch.verify_crc().unwrap();
                let all = batch.records(OUTPUT_LIMIT);
                let sound = all.is_ok_and(|records| records.iter().all(|r| r.is_ok()));
                // What ends an LZ4 frame or a gzip member may be cut without losing a record.
                let trailer = match codec {
                    Compression::Lz4 => 4,
                    _ => 0,
                };
                assert!(!sound || length + trailer >= whole.len(), "{codec} {length}");
            }
        }
    }

    /// Many, and more where `PROPTEST_CASES` asks for them.
    fn many() -> ProptestConfig {
        let config = ProptestConfig::default();
        ProptestConfig { cases: config.cases.max(512), ..config }
    }

    proptest! {
        #![proptest_config(many())]

        #[test]
        fn any_bytes_never_panic(data in prop::collection::vec(any::<u8>(), 0..400)) {
            decode_any(&data);
        }

        #[test]
        fn changed_batches_never_panic_and_the_crc_notices(
            code in 0_u8..5,
            changes in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..8),
        ) {
            let good = batch(Compression::from_code(code).unwrap());
            let mut bad = good.clone();
            for (at, bits) in changes {
                bad[at.index(good.len())] ^= bits;
            }
            decode_any(&bad);
            // The records and codec bytes, with header and CRC made to fit them.
            decode_any(&bad[HEADER_BYTES..]);
            if bad[21..] != good[21..]
                && let Ok(batch) = Batch::new(Bytes::from(bad), Offset::ZERO, 0)
            {
                prop_assert!(batch.verify_crc().is_err());
            }
        }
    }
}
