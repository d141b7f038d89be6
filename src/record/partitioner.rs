//! From keys to partitions, as Kafka's Java clients do it, and from keys to buckets.

use crate::types::PartitionId;

const MURMUR2_SEED: u32 = 0x9747_b28c;
const MURMUR2_MULTIPLIER: u32 = 0x5bd1_e995;

/// Hashes bytes with the variant of MurmurHash2 that Kafka's default partitioner uses.
pub fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = MURMUR2_MULTIPLIER;
    // The algorithm knows 32-bit lengths; longer keys do not exist, records are below 2 GiB.
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let (words, tail) = data.as_chunks::<4>();
    let mut hash = MURMUR2_SEED ^ length;
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = match *tail {
        [a] => [a, 0, 0, 0],
        [a, b] => [a, b, 0, 0],
        [a, b, c] => [a, b, c, 0],
        _ => [0; 4],
    };
    if !tail.is_empty() {
        hash = (hash ^ u32::from_le_bytes(rest)).wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// Returns the partition of a key among `count` partitions, all of the topic's, available or not.
/// A topic has at least one partition; 0 counts as 1.
pub fn partition_for_key(key: &[u8], count: u32) -> PartitionId {
    let positive = murmur2(key) & 0x7fff_ffff;
    PartitionId::new(positive % count.max(1)).unwrap_or(PartitionId::ZERO)
}

/// Returns the bucket of a key among `buckets` (0 counts as 1), so that a bucket more moves only
/// the keys that go there (Lamping and Veach, "A Fast, Minimal Memory, Consistent Hash Algorithm").
pub fn jump_hash(mut key: u64, buckets: u32) -> u32 {
    let mut bucket = 0;
    let mut next = 0;
    while next < i64::from(buckets) {
        bucket = u32::try_from(next).unwrap_or(0);
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        let random = u32::try_from((key >> 33) + 1).unwrap_or(u32::MAX);
        let jump = (f64::from(bucket) + 1.0) * (f64::from(1_u32 << 31) / f64::from(random));
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the algorithm's rounding; the product is below 2^63"
        )]
        let jump = jump as i64;
        next = jump;
    }
    bucket
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn murmur2_and_partitions_are_those_of_kafkas_clients() {
        let all: Vec<u8> = (0..=255).collect();
        // key, hash, and the partition of 3, 6, 12 and 100
        let vectors: [(&[u8], u32, [u32; 4]); 14] = [
            (b"", 0x106e_08d9, [0, 3, 9, 81]),
            (b"a", 0xa2d0_b27c, [1, 4, 4, 24]),
            (b"ab", 0x12d8_262a, [2, 2, 2, 34]),
            (b"abc", 0x1c94_221b, [0, 3, 3, 7]),
            (b"21", 0xc5f2_f8ec, [0, 0, 0, 40]),
            (b"foobar", 0xd0e4_7bbe, [0, 0, 6, 66]),
            (b"kafka", 0xd067_cf64, [1, 4, 4, 80]),
            (b"user123", 0x1157_8341, [0, 3, 9, 5]),
            (b"a-little-bit-long-string", 0xc53b_1da0, [2, 2, 8, 12]),
            (b"a-little-bit-longer-string", 0xa768_c9c3, [2, 5, 11, 19]),
            (&[0; 4], 0x32b8_9340, [1, 4, 4, 20]),
            (&[0xff, 0xfe, 0xfd], 0x3b85_fe24, [2, 2, 8, 92]),
            ("za\u{17c}\u{f3}\u{142}\u{107}".as_bytes(), 0x001f_6200, [0, 0, 0, 4]),
            (&all, 0x8bde_9476, [1, 4, 10, 74]),
        ];
        for (key, hash, partitions) in vectors {
            assert_eq!(murmur2(key), hash, "{key:02x?}");
            for (count, partition) in [3, 6, 12, 100].into_iter().zip(partitions) {
                assert_eq!(partition_for_key(key, count).get(), partition, "{key:02x?} {count}");
            }
        }
    }

    #[test]
    fn jump_hash_is_the_published_one() {
        for (key, bucket) in [(0, 0), (1, 6), (2, 6), (3, 8), (0xdead_beef, 5)] {
            assert_eq!(jump_hash(key, 10), bucket, "{key}");
        }
    }

    proptest! {
        #[test]
        fn a_new_bucket_takes_keys_and_moves_no_others(key: u64, buckets in 1_u32..1000) {
            let before = jump_hash(key, buckets);
            let after = jump_hash(key, buckets + 1);
            prop_assert!(before < buckets);
            prop_assert!(after == before || after == buckets);
        }

        #[test]
        fn a_partition_is_always_one_of_the_topics(key: Vec<u8>, count: u32) {
            prop_assert!(partition_for_key(&key, count).get() < count.max(1));
        }
    }
}
