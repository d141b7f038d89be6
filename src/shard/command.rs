//! The bytes of a shard's commands.
//!
//! ```text
//! command  = version u8 (1), kind u8, clock i64, body          clock: the proposer's, in ms
//! 1 append = count u32, count x { topic 16, partition u32, bytes u32 }, the batches back to back
//! 2 create = origin, topic 16, config, count u32, count x { partition u32 }
//! 3 delete = origin, topic 16
//! 4 config = origin, topic 16, config
//! 5 start  = topic 16, partition u32, offset i64
//! origin   = term u64, index u64            of the metadata entry that this command carries out
//! config   = count u16, count x { name length u16, name, value length u16, value }
//! ```
//! Numbers are big-endian.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::types::{
    LogPosition, Offset, PartitionId, RaftIndex, Term, Timestamp, TopicConfig, TopicId,
    TopicPartition,
};

const VERSION: u8 = 1;
const KIND_APPEND: u8 = 1;
const KIND_CREATE: u8 = 2;
const KIND_DELETE: u8 = 3;
const KIND_CONFIG: u8 = 4;
const KIND_LOG_START: u8 = 5;

/// Bytes of an append's table before its first row.
const APPEND_HEAD_BYTES: usize = 1 + 1 + 8 + 4;
/// Bytes of one row of an append's table.
const APPEND_ROW_BYTES: usize = 16 + 4 + 4;

/// A decoded command with the clock of its proposer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ShardCommand {
    pub(crate) clock: Timestamp,
    pub(crate) body: Body,
}

/// What a command does.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Body {
    /// Appends batches, in order.
    Append(Vec<(TopicPartition, Bytes)>),
    /// Creates partitions of a topic; those that exist stay as they are.
    Create {
        origin: LogPosition,
        topic: TopicId,
        config: TopicConfig,
        partitions: Vec<PartitionId>,
    },
    /// Drops all partitions of a topic.
    Delete { origin: LogPosition, topic: TopicId },
    /// Changes a topic's configuration.
    Configure { origin: LogPosition, topic: TopicId, config: TopicConfig },
    /// Moves a partition's log start forward.
    LogStart { partition: TopicPartition, offset: Offset },
}

/// Encodes an append as a table part followed by the batches, which are not copied.
pub(crate) fn encode_append(clock: Timestamp, batches: Vec<(TopicPartition, Bytes)>) -> Vec<Bytes> {
    let table = APPEND_HEAD_BYTES + APPEND_ROW_BYTES * batches.len();
    let mut head = BytesMut::with_capacity(table);
    put_head(&mut head, KIND_APPEND, clock);
    head.put_u32(count(batches.len()));
    for (partition, batch) in &batches {
        put_partition(&mut head, *partition);
        head.put_u32(count(batch.len()));
    }
    let mut parts = Vec::with_capacity(batches.len() + 1);
    parts.push(head.freeze());
    parts.extend(batches.into_iter().map(|(_, batch)| batch));
    parts
}

/// Encodes any other command in one part.
pub(crate) fn encode_control(clock: Timestamp, body: &Body) -> Vec<Bytes> {
    let mut out = BytesMut::with_capacity(64);
    match body {
        Body::Append(batches) => return encode_append(clock, batches.clone()),
        Body::Create { origin, topic, config, partitions } => {
            put_head(&mut out, KIND_CREATE, clock);
            put_origin(&mut out, *origin);
            out.put_slice(&topic.to_bytes());
            put_config(&mut out, config);
            out.put_u32(count(partitions.len()));
            for partition in partitions {
                out.put_u32(partition.get());
            }
        }
        Body::Delete { origin, topic } => {
            put_head(&mut out, KIND_DELETE, clock);
            put_origin(&mut out, *origin);
            out.put_slice(&topic.to_bytes());
        }
        Body::Configure { origin, topic, config } => {
            put_head(&mut out, KIND_CONFIG, clock);
            put_origin(&mut out, *origin);
            out.put_slice(&topic.to_bytes());
            put_config(&mut out, config);
        }
        Body::LogStart { partition, offset } => {
            put_head(&mut out, KIND_LOG_START, clock);
            put_partition(&mut out, *partition);
            out.put_i64(offset.get());
        }
    }
    vec![out.freeze()]
}

/// Decodes a command from its parts, as proposed here (batches apart) or as read from the log (all
/// in one); batches stay shared with the parts.
///
/// # Errors
/// `InvalidData` when the bytes are not a command.
pub(crate) fn decode(parts: &[Bytes]) -> io::Result<ShardCommand> {
    let (head, batches) = parts.split_first().ok_or_else(|| invalid("empty command"))?;
    let mut bytes = head.clone();
    let version = bytes.try_get_u8().map_err(invalid)?;
    if version != VERSION {
        return Err(invalid(format!("shard command of unknown version {version}")));
    }
    let kind = bytes.try_get_u8().map_err(invalid)?;
    let clock = Timestamp::from_millis(bytes.try_get_i64().map_err(invalid)?);
    let body = match kind {
        KIND_APPEND => Body::Append(decode_append(&mut bytes, batches)?),
        KIND_CREATE => {
            let origin = get_origin(&mut bytes)?;
            let topic = get_topic(&mut bytes)?;
            let config = get_config(&mut bytes)?;
            let mut partitions = Vec::new();
            for _ in 0..bytes.try_get_u32().map_err(invalid)? {
                partitions.push(get_partition_id(&mut bytes)?);
            }
            Body::Create { origin, topic, config, partitions }
        }
        KIND_DELETE => {
            Body::Delete { origin: get_origin(&mut bytes)?, topic: get_topic(&mut bytes)? }
        }
        KIND_CONFIG => Body::Configure {
            origin: get_origin(&mut bytes)?,
            topic: get_topic(&mut bytes)?,
            config: get_config(&mut bytes)?,
        },
        KIND_LOG_START => {
            let topic = get_topic(&mut bytes)?;
            let partition = TopicPartition { topic, partition: get_partition_id(&mut bytes)? };
            let offset = Offset::new(bytes.try_get_i64().map_err(invalid)?);
            Body::LogStart { partition, offset: offset.ok_or_else(|| invalid("negative offset"))? }
        }
        kind => return Err(invalid(format!("shard command of unknown kind {kind}"))),
    };
    if !bytes.is_empty() {
        return Err(invalid("shard command with trailing bytes"));
    }
    Ok(ShardCommand { clock, body })
}

/// Returns the batches that a command appends, without base offsets; none when it does anything
/// else, or is no shard's.
pub fn batches_of(command: Bytes) -> Vec<(TopicPartition, Bytes)> {
    match decode(&[command]) {
        Ok(ShardCommand { body: Body::Append(batches), .. }) => batches,
        _ => Vec::new(),
    }
}

fn decode_append(bytes: &mut Bytes, apart: &[Bytes]) -> io::Result<Vec<(TopicPartition, Bytes)>> {
    let rows = usize::try_from(bytes.try_get_u32().map_err(invalid)?).map_err(invalid)?;
    let table = rows.checked_mul(APPEND_ROW_BYTES).filter(|table| *table <= bytes.len());
    let mut table = bytes.split_to(table.ok_or_else(|| invalid("append table is cut"))?);
    let mut batches = Vec::with_capacity(rows);
    let mut apart = apart.iter();
    for _ in 0..rows {
        let topic = get_topic(&mut table)?;
        let partition = TopicPartition { topic, partition: get_partition_id(&mut table)? };
        let len = usize::try_from(table.try_get_u32().map_err(invalid)?).map_err(invalid)?;
        let batch = match apart.next() {
            Some(batch) if batch.len() == len => batch.clone(),
            None if len <= bytes.len() => bytes.split_to(len),
            _ => return Err(invalid("append batch is cut")),
        };
        batches.push((partition, batch));
    }
    Ok(batches)
}

/// Encodes a configuration; also used by the shard's checkpoint.
pub(crate) fn put_config(out: &mut BytesMut, config: &TopicConfig) {
    let pairs: Vec<_> = config.iter().collect();
    out.put_u16(u16::try_from(pairs.len()).unwrap_or(u16::MAX));
    for (name, value) in pairs {
        for text in [name, value] {
            out.put_u16(u16::try_from(text.len()).unwrap_or(u16::MAX));
            out.put_slice(text.as_bytes());
        }
    }
}

/// Decodes a configuration. It was checked before it was proposed, maybe by another version: a
/// replica that refused it here would be lost.
///
/// # Errors
/// `InvalidData` when the bytes are cut.
pub(crate) fn get_config(bytes: &mut Bytes) -> io::Result<TopicConfig> {
    let mut config = TopicConfig::default();
    for _ in 0..bytes.try_get_u16().map_err(invalid)? {
        let name = get_text(bytes)?;
        let value = get_text(bytes)?;
        config.keep(name, value);
    }
    Ok(config)
}

fn get_text(bytes: &mut Bytes) -> io::Result<String> {
    let len = usize::from(bytes.try_get_u16().map_err(invalid)?);
    if len > bytes.len() {
        return Err(invalid("text is cut"));
    }
    String::from_utf8(bytes.split_to(len).to_vec()).map_err(invalid)
}

fn put_head(out: &mut BytesMut, kind: u8, clock: Timestamp) {
    out.put_u8(VERSION);
    out.put_u8(kind);
    out.put_i64(clock.as_millis());
}

/// Encodes a log position; also used by the shard's checkpoint.
pub(crate) fn put_origin(out: &mut BytesMut, origin: LogPosition) {
    out.put_u64(origin.term.get());
    out.put_u64(origin.index.get());
}

/// Decodes a log position.
///
/// # Errors
/// `InvalidData` when the bytes are cut.
pub(crate) fn get_origin(bytes: &mut Bytes) -> io::Result<LogPosition> {
    let term = Term::new(bytes.try_get_u64().map_err(invalid)?);
    Ok(LogPosition { term, index: RaftIndex::new(bytes.try_get_u64().map_err(invalid)?) })
}

fn put_partition(out: &mut BytesMut, partition: TopicPartition) {
    out.put_slice(&partition.topic.to_bytes());
    out.put_u32(partition.partition.get());
}

/// Decodes a topic id.
///
/// # Errors
/// `InvalidData` when the bytes are cut.
pub(crate) fn get_topic(bytes: &mut Bytes) -> io::Result<TopicId> {
    let mut topic = [0; 16];
    bytes.try_copy_to_slice(&mut topic).map_err(invalid)?;
    Ok(TopicId::from_bytes(topic))
}

fn get_partition_id(bytes: &mut Bytes) -> io::Result<PartitionId> {
    PartitionId::new(bytes.try_get_u32().map_err(invalid)?)
        .ok_or_else(|| invalid("partition number above 2^31 - 1"))
}

/// Entries are bounded far below 2^32 batches and bytes.
fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

pub(crate) fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn partition(number: u32) -> TopicPartition {
        let topic = TopicId::new(Uuid::from_u128(77));
        TopicPartition { topic, partition: PartitionId::new(number).unwrap() }
    }

    fn in_one_piece(parts: &[Bytes]) -> Vec<Bytes> {
        vec![parts.concat().into()]
    }

    #[test]
    fn commands_survive_their_bytes_in_parts_and_in_one_piece() {
        let origin = LogPosition { term: Term::new(3), index: RaftIndex::new(9) };
        let topic = partition(0).topic;
        let mut config = TopicConfig::default();
        config.set("retention.ms", "1000").unwrap();
        // Of a version to come.
        config.keep("compression.type".to_owned(), "zstd".to_owned());
        let partitions = vec![PartitionId::ZERO, PartitionId::new(4).unwrap()];
        let offset = Offset::new(5).unwrap();
        let bodies = [
            Body::Append(vec![
                (partition(1), Bytes::from("abc")),
                (partition(2), Bytes::new()),
                (partition(1), Bytes::from("d")),
            ]),
            Body::Create { origin, topic, config: config.clone(), partitions },
            Body::Delete { origin, topic },
            Body::Configure { origin, topic, config },
            Body::LogStart { partition: partition(7), offset },
        ];
        for body in bodies {
            let clock = Timestamp::from_millis(1_764_000_000_000);
            let parts = encode_control(clock, &body);
            let expected = ShardCommand { clock, body };
            assert_eq!(decode(&parts).unwrap(), expected);
            assert_eq!(decode(&in_one_piece(&parts)).unwrap(), expected);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail_and_never_panic(
            kind in 0u8..8, rest in proptest::collection::vec(any::<u8>(), 0..96),
        ) {
            let mut bytes = vec![VERSION, kind];
            bytes.extend(rest);
            let _ = decode(&[Bytes::from(bytes)]);
        }
    }
}
