//! CRC-32C (Castagnoli), the checksum of batches, WAL frames and checkpoint files. One place, so
//! that another implementation can be put behind it.

/// Computes the CRC-32C of `data`.
pub fn crc32c(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
}

/// Computes the CRC-32C of what `crc` was computed of, followed by `data`.
pub fn crc32c_append(crc: u32, data: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_has_the_published_check_values() {
        let counting: Vec<u8> = (0..32).collect();
        for (data, crc) in [
            (&b""[..], 0),
            (b"123456789", 0xe306_9283),
            (&[0; 32], 0x8a91_36aa),
            (&[0xff; 32], 0x62a8_ab43),
            (&counting, 0x46dd_794e),
        ] {
            assert_eq!(crc32c(data), crc, "{data:02x?}");
        }
    }

    #[test]
    fn a_crc_can_be_continued() {
        assert_eq!(crc32c_append(crc32c(b"1234"), b"56789"), 0xe306_9283);
    }
}
