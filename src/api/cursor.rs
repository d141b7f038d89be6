//! Cursors: where a reader is in a topic, as a text that only the server makes and reads.
//!
//! base64url without padding of
//!
//! ```text
//! byte 0        version, 1
//! bytes 1..17   topic id
//! then, for each partition in ascending order:
//!   varint      partition
//!   varint      next offset
//! ```
//!
//! Varints are unsigned LEB128 in their shortest form, so that a cursor has one spelling.

use base64_simd::URL_SAFE_NO_PAD;

use crate::types::limits::TOPIC_PARTITIONS_MAX;
use crate::types::{Offset, PartitionId, TopicId};

const VERSION: u8 = 1;

/// Longest text of a cursor: that of the largest topic, however much was written to it.
pub(crate) const TEXT_BYTES_MAX: usize = text_bytes(TOPIC_PARTITIONS_MAX);

/// Returns how long the cursor of so many partitions can be.
const fn text_bytes(partitions: u32) -> usize {
    // The version, the topic's id, and for each partition its number and the longest offset.
    let mut bytes = 1 + 16 + partitions as usize * varint_bytes(i64::MAX as u64);
    let mut partition = 0;
    while partition < partitions {
        bytes += varint_bytes(partition as u64);
        partition += 1;
    }
    (bytes * 4).div_ceil(3)
}

/// Returns how many bytes a number takes.
const fn varint_bytes(number: u64) -> usize {
    if number < 0x80 { 1 } else { 1 + varint_bytes(number >> 7) }
}

/// Why a text is not a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor of this server")]
pub(crate) struct CursorError;

/// A topic and the next offset of some of its partitions, in ascending order of partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// The topic's identity.
    pub(crate) topic: TopicId,
    /// Where reading goes on.
    pub(crate) positions: Vec<(PartitionId, Offset)>,
}

impl Cursor {
    /// Decodes a cursor.
    ///
    /// # Errors
    /// When the text is not what [`encode`] makes, byte for byte.
    pub(crate) fn decode(text: &str) -> Result<Self, CursorError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(CursorError);
        }
        let bytes = URL_SAFE_NO_PAD.decode_to_vec(text).map_err(|_| CursorError)?;
        let (version, rest) = bytes.split_first().ok_or(CursorError)?;
        let (topic, mut rest) = rest.split_first_chunk::<16>().ok_or(CursorError)?;
        if *version != VERSION {
            return Err(CursorError);
        }
        let mut positions: Vec<(PartitionId, Offset)> = Vec::new();
        while !rest.is_empty() {
            let partition = take_varint(&mut rest).ok_or(CursorError)?;
            let offset = take_varint(&mut rest).ok_or(CursorError)?;
            let partition = u32::try_from(partition).ok().and_then(PartitionId::new);
            let offset = i64::try_from(offset).ok().and_then(Offset::new);
            let (Some(partition), Some(offset)) = (partition, offset) else {
                return Err(CursorError);
            };
            if positions.last().is_some_and(|(last, _)| *last >= partition) {
                return Err(CursorError);
            }
            positions.push((partition, offset));
        }
        Ok(Self { topic: TopicId::from_bytes(*topic), positions })
    }

    /// Returns the next offset of a partition, `None` when the cursor lacks it.
    pub(crate) fn position(&self, partition: PartitionId) -> Option<Offset> {
        let found = self.positions.binary_search_by_key(&partition, |(partition, _)| *partition);
        found.ok().and_then(|index| self.positions.get(index)).map(|(_, offset)| *offset)
    }
}

/// Encodes a cursor; `positions` are in ascending order of partition.
pub(crate) fn encode(topic: TopicId, positions: &[(PartitionId, Offset)]) -> String {
    let mut bytes = Vec::with_capacity(17 + positions.len() * 5);
    bytes.push(VERSION);
    bytes.extend_from_slice(&topic.to_bytes());
    for (partition, offset) in positions {
        push_varint(&mut bytes, u64::from(partition.get()));
        push_varint(&mut bytes, offset.get().unsigned_abs());
    }
    URL_SAFE_NO_PAD.encode_to_string(&bytes)
}

/// Appends an unsigned LEB128 number in its shortest form.
pub(crate) fn push_varint(out: &mut Vec<u8>, mut number: u64) {
    while let (low, rest @ 1..) = ((number & 0x7f), number >> 7) {
        out.push(u8::try_from(low).unwrap_or_default() | 0x80);
        number = rest;
    }
    out.push(u8::try_from(number).unwrap_or_default());
}

/// Takes such a number off the front; `None` when there is none in its shortest form.
pub(crate) fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            // A last byte of zero could be left off: not the shortest form.
            return (*byte != 0 || shift == 0).then_some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_longest_cursor_is_that_of_the_largest_topic() {
        let at = |partition| (PartitionId::new(partition).unwrap(), Offset::new(i64::MAX).unwrap());
        let positions: Vec<_> = (0..TOPIC_PARTITIONS_MAX).map(at).collect();
        let text = encode(TopicId::from_bytes([255; 16]), &positions);
        assert_eq!(text.len(), TEXT_BYTES_MAX);
        assert_eq!(Cursor::decode(&text).unwrap().positions, positions);
        assert_eq!(Cursor::decode(&(text + "A")), Err(CursorError));
    }

    proptest! {
        #[test]
        fn a_cursor_survives_its_text(
            topic in any::<[u8; 16]>(),
            positions in proptest::collection::btree_map(0..=i32::MAX as u32, 0..=i64::MAX, 0..40),
        ) {
            let positions: Vec<_> = positions
                .into_iter()
                .map(|(p, o)| (PartitionId::new(p).unwrap(), Offset::new(o).unwrap()))
                .collect();
            let topic = TopicId::from_bytes(topic);
            let text = encode(topic, &positions);
            let cursor = Cursor::decode(&text).unwrap();
            let by_partition: BTreeMap<_, _> = positions.iter().copied().collect();
            for (partition, offset) in by_partition {
                prop_assert_eq!(cursor.position(partition), Some(offset));
            }
            prop_assert_eq!(cursor, Cursor { topic, positions });
        }

        #[test]
        fn any_bytes_are_a_cursor_in_one_spelling_or_none(
            tail in any::<Vec<u8>>(),
            versioned in any::<bool>(),
        ) {
            let mut bytes = vec![VERSION; usize::from(versioned) * 17];
            bytes.extend_from_slice(&tail);
            let text = URL_SAFE_NO_PAD.encode_to_string(&bytes);
            if let Ok(cursor) = Cursor::decode(&text) {
                prop_assert_eq!(encode(cursor.topic, &cursor.positions), text);
            }
        }

        #[test]
        fn any_text_is_decoded_without_panic(text in any::<String>()) {
            let _ = Cursor::decode(&text);
        }
    }

    #[test]
    fn foreign_texts_are_refused() {
        let good = encode(TopicId::new(Uuid::nil()), &[(PartitionId::ZERO, Offset::ZERO)]);
        assert!(Cursor::decode(&good).is_ok());
        assert!(good.starts_with('A'), "no RFC 3339 time starts like a cursor");
        let version_2 = URL_SAFE_NO_PAD.encode_to_string([2; 17]);
        let long = "A".repeat(TEXT_BYTES_MAX + 4);
        for bad in ["", "AQ", &good[1..], "earliest", &version_2, &format!("{good}="), &long] {
            assert_eq!(Cursor::decode(bad), Err(CursorError), "{bad}");
        }
    }
}
