//! Records of files as lines that `eddyline produce` takes.
//!
//! A line is a record as the API writes it, with the id of its topic in front. The offset is there
//! where the file has it: the log does not, offsets are given out when an entry is applied. A value
//! is text where it is UTF-8, JSON or not, and base64 otherwise: both come back byte for byte.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use crate::offline::Error;
use crate::raft;
use crate::record::{Batch, DecompressLimit, Record};
use crate::shard;
use crate::storage::fs::{Fs, SharedFs};
use crate::storage::{checkpoint, segment_tools, wal};
use crate::types::{Offset, RaftIndex, TopicPartition};

/// A batch that unpacks to more is left out.
const RECORDS_BYTES_MAX: usize = 1 << 30;

/// Members in the order of the API, section "A record".
#[derive(Serialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<i64>,
    timestamp: i64,
    key: Option<Text<'a>>,
    value: Option<Cow<'a, str>>,
    headers: Vec<(&'a str, Option<Text<'a>>)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Text<'a> {
    Utf8(&'a str),
    Bytes { base64: String },
}

/// Whether a record's offset is known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Offsets {
    Known,
    Unknown,
}

/// Prints the records of all entries of the log in `dir` that can be read, but for those that a
/// checkpoint in the data directory covers, if it is one.
pub(super) fn of_log(
    fs: &SharedFs,
    dir: &Path,
    data: &Path,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let covered = covered(fs, data)?;
    let mut left_out = 0;
    wal::salvage(fs.as_ref(), dir, &mut |_, id, payload| {
        let command = raft::command_of(payload);
        for (partition, bytes) in command.map(shard::batches_of).unwrap_or_default() {
            if covered.get(&partition).is_some_and(|upto| id.index <= *upto) {
                continue;
            }
            let batch = Batch::new(bytes, Offset::ZERO, 0).ok();
            match batch.filter(|batch| batch.verify_crc().is_ok()) {
                Some(batch) => {
                    left_out += print(&batch, (Some(partition), Offsets::Unknown), out)?;
                }
                None => left_out += 1,
            }
        }
        Ok(())
    })?;
    if left_out == 0 { Ok(()) } else { Err(Error::LeftOut(left_out)) }
}

/// Returns up to which entry of its shard's log each partition's records are in its segments.
fn covered(fs: &SharedFs, data: &Path) -> Result<BTreeMap<TopicPartition, RaftIndex>, Error> {
    let checkpoints = checkpoint::read_all(fs, &data.join("shards"))?.unwrap_or_default();
    let mut covered = BTreeMap::new();
    for checkpoint in checkpoints.into_values() {
        let Some(applied) = checkpoint.applied else { continue };
        covered.extend(checkpoint.partitions.into_keys().map(|id| (id, applied.index)));
    }
    Ok(covered)
}

/// Prints the records of a segment file, or of all below a directory.
pub(super) fn of_segments(fs: &dyn Fs, path: &Path, out: &mut dyn Write) -> Result<(), Error> {
    let mut left_out = 0;
    let bad = segment_tools::batches(fs, path, &mut |partition, batch| {
        left_out += print(batch, (partition, Offsets::Known), out)?;
        Ok(())
    })?;
    left_out += bad;
    if left_out == 0 { Ok(()) } else { Err(Error::LeftOut(left_out)) }
}

/// Prints a batch's records. Returns 1 if not all of them can be read.
fn print(
    batch: &Batch,
    (partition, offsets): (Option<TopicPartition>, Offsets),
    out: &mut dyn Write,
) -> io::Result<u64> {
    let Ok(records) = batch.records(DecompressLimit::new(RECORDS_BYTES_MAX)) else {
        return Ok(1);
    };
    for record in &records {
        let Ok(record) = record else { return Ok(1) };
        let mut line = line(&record, partition);
        if offsets == Offsets::Known {
            line.offset = Some(record.offset.get());
        }
        serde_json::to_writer(&mut *out, &line).map_err(io::Error::from)?;
        out.write_all(b"\n")?;
    }
    Ok(0)
}

fn line<'a>(record: &Record<'a>, partition: Option<TopicPartition>) -> Line<'a> {
    let (value, encoding) = match record.value.map(|value| (value, std::str::from_utf8(value))) {
        None => (None, None),
        Some((_, Ok(text))) => (Some(Cow::Borrowed(text)), Some("text")),
        Some((bytes, Err(_))) => (Some(Cow::Owned(base64(bytes))), Some("base64")),
    };
    Line {
        topic: partition.map(|id| id.topic.to_string()),
        partition: partition.map(|id| id.partition.get()),
        offset: None,
        timestamp: record.timestamp.as_millis(),
        key: record.key.map(text),
        value,
        headers: record.headers.iter().map(|(name, value)| (name, value.map(text))).collect(),
        encoding,
    }
}

fn text(bytes: &[u8]) -> Text<'_> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Text::Utf8(text),
        Err(_) => Text::Bytes { base64: base64(bytes) },
    }
}

fn base64(bytes: &[u8]) -> String {
    base64_simd::STANDARD.encode_to_string(bytes)
}
