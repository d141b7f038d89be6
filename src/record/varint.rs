//! Kafka's variable-length integers: zigzag, then LEB128.
//!
//! One and two bytes carry nearly every number of a record (lengths below 8192, small deltas), so
//! these two forms are inlined on both sides and the rest is out of line.

/// Longest encoding of an `i32`.
pub const I32_BYTES_MAX: usize = 5;

/// Longest encoding of an `i64`.
pub const I64_BYTES_MAX: usize = 10;

/// Appends a number.
#[inline]
pub fn put(out: &mut Vec<u8>, value: i64) {
    let zigzag = zigzag(value);
    match zigzag.to_le_bytes() {
        [low, 0, 0, 0, 0, 0, 0, 0] if low < 0x80 => out.push(low),
        [low, high, 0, 0, 0, 0, 0, 0] if high < 0x40 => {
            out.extend_from_slice(&[low | 0x80, high << 1 | low >> 7]);
        }
        _ => put_long(out, zigzag),
    }
}

/// A few numbers that are appended at once: growing a vector byte by byte costs more than the
/// bytes.
#[derive(Debug)]
pub struct Numbers {
    bytes: [u8; Self::BYTES_MAX],
    len: usize,
}

impl Default for Numbers {
    #[inline]
    fn default() -> Self {
        Self { bytes: [0; Self::BYTES_MAX], len: 0 }
    }
}

impl Numbers {
    /// Room for four numbers and some bytes.
    const BYTES_MAX: usize = 48;

    /// Adds a number.
    #[inline]
    pub fn put(&mut self, value: i64) {
        let mut zigzag = zigzag(value);
        while zigzag >= 0x80 {
            let [low, ..] = zigzag.to_le_bytes();
            self.byte(low | 0x80);
            zigzag >>= 7;
        }
        let [low, ..] = zigzag.to_le_bytes();
        self.byte(low);
    }

    /// Adds a byte as it is.
    #[inline]
    pub fn byte(&mut self, byte: u8) {
        debug_assert!(self.len < Self::BYTES_MAX, "too many numbers");
        if let Some(slot) = self.bytes.get_mut(self.len) {
            *slot = byte;
            self.len += 1;
        }
    }

    /// Returns the encoded numbers.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// Returns the bytes that [`put`] appends, 1 to 10.
#[inline]
pub fn len(value: i64) -> usize {
    let bits = u64::BITS - (zigzag(value) | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

/// Takes an `i32` from the front of `bytes`. `None`, and `bytes` unspecified, when the number is
/// cut off, has more than 5 bytes or does not fit.
#[inline]
pub fn take_i32(bytes: &mut &[u8]) -> Option<i32> {
    match take_short(bytes) {
        // Two bytes carry 14 bits, so the conversion cannot fail.
        Some(short) => i32::try_from(short).ok(),
        None => i32::try_from(take_long(bytes, I32_BYTES_MAX)?).ok(),
    }
}

/// Takes an `i64` from the front of `bytes`. `None`, and `bytes` unspecified, when the number is
/// cut off, has more than 10 bytes or does not fit.
#[inline]
pub fn take_i64(bytes: &mut &[u8]) -> Option<i64> {
    match take_short(bytes) {
        Some(short) => Some(short),
        None => take_long(bytes, I64_BYTES_MAX),
    }
}

/// Takes a number of one or two bytes; leaves `bytes` alone when it is longer.
#[inline]
fn take_short<'a>(bytes: &mut &'a [u8]) -> Option<i64> {
    let whole: &'a [u8] = bytes;
    match *whole {
        [low, ref rest @ ..] if low < 0x80 => {
            *bytes = rest;
            Some(unzigzag(u64::from(low)))
        }
        [low, high, ref rest @ ..] if high < 0x80 => {
            *bytes = rest;
            Some(unzigzag(u64::from(low & 0x7f) | u64::from(high) << 7))
        }
        _ => None,
    }
}

#[cold]
fn take_long(bytes: &mut &[u8], bytes_max: usize) -> Option<i64> {
    let mut value = 0_u64;
    for position in 0..bytes_max {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        let shift = u32::try_from(position).ok()? * 7;
        if bits << shift >> shift != bits {
            return None;
        }
        value |= bits << shift;
        if *byte < 0x80 {
            return Some(unzigzag(value));
        }
    }
    None
}

#[cold]
fn put_long(out: &mut Vec<u8>, mut zigzag: u64) {
    while zigzag >= 0x80 {
        let [low, ..] = zigzag.to_le_bytes();
        out.push(low | 0x80);
        zigzag >>= 7;
    }
    let [low, ..] = zigzag.to_le_bytes();
    out.push(low);
}

#[inline]
const fn zigzag(value: i64) -> u64 {
    (value << 1).cast_unsigned() ^ (value >> 63).cast_unsigned()
}

#[inline]
const fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(value: i64) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, value);
        out
    }

    #[test]
    fn numbers_have_kafkas_encoding() {
        for (value, bytes) in [
            (0, &[0x00][..]),
            (-1, &[0x01]),
            (1, &[0x02]),
            (63, &[0x7e]),
            (-64, &[0x7f]),
            (64, &[0x80, 0x01]),
            (300, &[0xd8, 0x04]),
            (-300, &[0xd7, 0x04]),
            (i64::from(i32::MAX), &[0xfe, 0xff, 0xff, 0xff, 0x0f]),
            (i64::from(i32::MIN), &[0xff, 0xff, 0xff, 0xff, 0x0f]),
            (i64::MAX, &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
            (i64::MIN, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
        ] {
            assert_eq!(encoded(value), bytes, "{value}");
            let mut rest = bytes;
            assert_eq!(take_i64(&mut rest), Some(value));
            assert!(rest.is_empty());
            let mut rest = bytes;
            assert_eq!(take_i32(&mut rest), i32::try_from(value).ok(), "{value}");
        }
    }

    #[test]
    fn overlong_numbers_are_refused() {
        assert_eq!(take_i32(&mut &[0x80, 0x80, 0x80, 0x80, 0x00][..]), Some(0));
        assert_eq!(take_i32(&mut &[0x80, 0x80, 0x80, 0x80, 0x80, 0x00][..]), None);
        assert_eq!(take_i32(&mut &[0xff, 0xff, 0xff, 0xff, 0x1f][..]), None);
        let mut eleven = [0x80; 11];
        eleven[10] = 0;
        assert_eq!(take_i64(&mut &eleven[..]), None);
        assert_eq!(take_i64(&mut &eleven[1..]), Some(0));
        let mut too_many_bits = [0xff; 10];
        too_many_bits[9] = 0x02;
        assert_eq!(take_i64(&mut &too_many_bits[..]), None);
    }

    #[test]
    fn cut_numbers_are_refused() {
        for value in [0, 64, 20_000, i64::MAX] {
            let bytes = encoded(value);
            for length in 0..bytes.len() {
                assert_eq!(take_i64(&mut &bytes[..length]), None);
            }
        }
    }

    proptest! {
        #[test]
        fn every_number_survives_and_has_the_announced_length(value: i64, small: i16, tail: u8) {
            for value in [value, value >> 32, i64::from(small)] {
                let mut bytes = encoded(value);
                prop_assert_eq!(bytes.len(), len(value));
                bytes.push(tail);
                let mut rest = &bytes[..];
                prop_assert_eq!(take_i64(&mut rest), Some(value));
                prop_assert_eq!(rest, &[tail][..]);
                let mut rest = &bytes[..];
                prop_assert_eq!(take_i32(&mut rest), i32::try_from(value).ok());
            }
        }

        #[test]
        fn numbers_put_together_are_the_same_as_one_by_one(values: [i64; 4], shift in 0..64_u32) {
            let (mut together, mut one_by_one) = (Numbers::default(), Vec::new());
            for value in values {
                together.put(value >> shift);
                put(&mut one_by_one, value >> shift);
            }
            together.byte(7);
            one_by_one.push(7);
            prop_assert_eq!(together.bytes(), &one_by_one[..]);
        }
    }
}
