//! Kafka's murmur2, written from its description a second time: the server's own must agree.

/// Returns the partition of a key.
pub(crate) fn partition(key: &str, partitions: u32) -> u32 {
    (murmur2(key.as_bytes()) & 0x7fff_ffff) % partitions
}

fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ u32::try_from(data.len()).unwrap();
    let mut words = data.chunks_exact(4);
    for word in words.by_ref() {
        let mut k = u32::from_le_bytes(word.try_into().unwrap()).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let tail = words.remainder();
    for (at, byte) in tail.iter().enumerate().rev() {
        hash ^= u32::from(*byte) << (8 * at);
    }
    if !tail.is_empty() {
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[test]
fn keys_hash_as_kafkas_clients_hash_them() {
    let vectors: &[(&str, u32)] = &[
        ("", 0x106e_08d9),
        ("a", 0xa2d0_b27c),
        ("ab", 0x12d8_262a),
        ("abc", 0x1c94_221b),
        ("foobar", 0xd0e4_7bbe),
        ("a-little-bit-longer-string", 0xa768_c9c3),
    ];
    for (key, hash) in vectors {
        assert_eq!(murmur2(key.as_bytes()), *hash, "{key}");
    }
    assert_eq!(partition("user123", 12), 9);
}
