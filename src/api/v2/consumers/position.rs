//! Where a consumer instance is, as a text that only the server makes and reads.
//!
//! A poll answers it in `Eddyline-Position`; given back as `after=` it says which answer was the
//! last to arrive, so that a poll whose answer was lost can be repeated, on any node.
//!
//! base64url without padding of
//!
//! ```text
//! byte 0        version, 1
//! then, for each topic:
//!   16 bytes    topic id
//!   varint      number of its partitions
//!   then, for each: varint partition, varint next offset
//! ```
//!
//! The sum of all is no larger than [`TEXT_BYTES_MAX`]; an instance with more partitions than fit
//! has no text.

use base64_simd::URL_SAFE_NO_PAD;

use crate::api::cursor::{push_varint, take_varint};
use crate::types::{Offset, PartitionId, TopicId};

const VERSION: u8 = 1;

/// Longest text: what clients and proxies take as one header line.
const TEXT_BYTES_MAX: usize = 6 * 1024;

/// The next offset of a partition.
pub(super) type Place = (TopicId, PartitionId, Offset);

/// Encodes places, which are grouped by topic; `None` when there are too many.
pub(super) fn encode(places: &[Place]) -> Option<String> {
    let mut bytes = vec![VERSION];
    for topic in places.chunk_by(|a, b| a.0 == b.0) {
        let (id, _, _) = topic.first()?;
        bytes.extend_from_slice(&id.to_bytes());
        push_varint(&mut bytes, u64::try_from(topic.len()).ok()?);
        for (_, partition, offset) in topic {
            push_varint(&mut bytes, u64::from(partition.get()));
            push_varint(&mut bytes, offset.get().unsigned_abs());
        }
        if bytes.len() > TEXT_BYTES_MAX {
            return None;
        }
    }
    let text = URL_SAFE_NO_PAD.encode_to_string(&bytes);
    (text.len() <= TEXT_BYTES_MAX).then_some(text)
}

/// Decodes what [`encode`] made; `None` for any other text.
pub(super) fn decode(text: &str) -> Option<Vec<Place>> {
    if text.len() > TEXT_BYTES_MAX {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode_to_vec(text).ok()?;
    let (version, mut rest) = bytes.split_first()?;
    if *version != VERSION {
        return None;
    }
    let mut places = Vec::new();
    while !rest.is_empty() {
        let (id, after) = rest.split_first_chunk::<16>()?;
        rest = after;
        let count = take_varint(&mut rest)?;
        for _ in 0..count {
            let partition =
                u32::try_from(take_varint(&mut rest)?).ok().and_then(PartitionId::new)?;
            let offset = i64::try_from(take_varint(&mut rest)?).ok().and_then(Offset::new)?;
            places.push((TopicId::from_bytes(*id), partition, offset));
        }
    }
    Some(places)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn places_survive_their_text(
            places in proptest::collection::vec(
                (any::<[u8; 16]>(), 0..=i32::MAX as u32, 0..=i64::MAX), 0..40),
        ) {
            let places: Vec<Place> = places
                .into_iter()
                .map(|(topic, partition, offset)| {
                    let (partition, offset) = (PartitionId::new(partition), Offset::new(offset));
                    (TopicId::from_bytes(topic), partition.unwrap(), offset.unwrap())
                })
                .collect();
            prop_assert_eq!(decode(&encode(&places).unwrap()), Some(places));
        }

        #[test]
        fn any_text_is_decoded_without_panic(text in any::<String>(), bytes in any::<Vec<u8>>()) {
            let _ = decode(&text);
            let bytes = [&[VERSION], bytes.as_slice()].concat();
            let _ = decode(&URL_SAFE_NO_PAD.encode_to_string(bytes));
        }
    }

    #[test]
    fn what_is_too_long_for_a_header_has_no_text() {
        let place = |n| (TopicId::from_bytes([7; 16]), PartitionId::new(n).unwrap(), Offset::ZERO);
        let few: Vec<Place> = (0..1_000).map(place).collect();
        assert!(encode(&few).is_some());
        let many: Vec<Place> = (0..10_000).map(place).collect();
        assert_eq!(encode(&many), None);
        assert_eq!(decode(&"A".repeat(TEXT_BYTES_MAX + 1)), None);
    }
}
