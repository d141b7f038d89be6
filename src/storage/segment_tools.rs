//! What `eddyline segment dump` and `eddyline segment verify` do: looking at segment files without
//! a server.
//!
//! Invariants:
//! - nothing is written to the disk;
//! - any bytes can be looked at: what is wrong is a line of output, not an error.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::record::{Batch, BatchHeader};
use crate::storage::checkpoint::{self, ShardCheckpoint};
use crate::storage::fs::{EntryKind, File, Fs, Open, SharedFs, read_file};
use crate::storage::log::{
    FileKind, OffsetEntries, ScanError, Scanned, Scanner, SegmentName, SegmentState, checksum,
    parse_partition, partition_dir,
};
use crate::types::{Offset, ShardId, TopicPartition};

/// `partitions/<topic>/<partition>/<file>`: so deep is looked for segments below a directory.
const DEPTH_MAX: usize = 3;

/// Larger index files are not looked at.
const INDEX_FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Why a tool stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A checkpoint is not what was written, so that it cannot be told what should be there.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The output could not be written.
    #[error("cannot write the output")]
    Output(#[from] io::Error),
}

/// What [`verify`] found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Segment files.
    pub files: u64,
    /// Batches with a right checksum.
    pub batches: u64,
    /// Their records.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Batches with a wrong checksum or out of order.
    pub bad_batches: u64,
    /// Files that end in something that is no batch: torn, or damaged so that its end is not known.
    pub bad_tails: u64,
    /// Index files that do not belong to their segment. They are made again when they are read.
    pub bad_indexes: u64,
    /// Files that are not as a checkpoint has them: missing, too short, or changed.
    pub bad_files: u64,
    /// Files that no checkpoint names, of a node that has checkpoints: what they hold is in the
    /// write-ahead log, and they are not looked into.
    pub unnamed: u64,
}

impl Summary {
    /// Returns whether all records are there. Indexes do not count: they can be made again.
    pub fn is_good(&self) -> bool {
        self.bad_batches == 0 && self.bad_tails == 0 && self.bad_files == 0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} files, {} batches, {} records, {} bytes; bad: {} batches, {} tails, {} indexes, \
             {} files",
            self.files,
            self.batches,
            self.records,
            self.bytes,
            self.bad_batches,
            self.bad_tails,
            self.bad_indexes,
            self.bad_files,
        )?;
        match self.unnamed {
            0 => Ok(()),
            unnamed => write!(f, "; {unnamed} files that no checkpoint names"),
        }
    }
}

/// Prints one line for each batch of a segment file.
///
/// # Errors
/// [`Error`].
pub fn dump(fs: &dyn Fs, path: &Path, out: &mut dyn io::Write) -> Result<(), Error> {
    let end = walk(fs, (path, u64::MAX), &mut |scanned, batch| {
        let header = &scanned.header;
        write!(out, "position={} offsets={}..={}", scanned.position, header.base_offset, {
            header.last_offset()
        })?;
        write!(out, " records={} bytes={}", header.record_count, header.total_bytes())?;
        write!(out, " codec={:?} ", header.attributes.compression)?;
        write!(out, "max_timestamp={} epoch={}", header.max_timestamp, header.leader_epoch)?;
        if header.producer_id >= 0 {
            write!(out, " producer={}/{}", header.producer_id, header.producer_epoch)?;
            write!(out, " sequence={}", header.base_sequence)?;
        }
        writeln!(out, " crc={}", if is_good(batch) { "ok" } else { "WRONG" })
    })?;
    if let Some(position) = end {
        writeln!(out, "position={position} is not the start of a batch")?;
    }
    Ok(())
}

/// Checks a segment file, or all below a directory, with the indexes beside them, and prints a line
/// for everything that is wrong. A node's data directory is compared with its newest checkpoints,
/// too: what they name must be there, as long as they say, with the bytes that it had then.
///
/// # Errors
/// [`Error`].
pub fn verify(fs: &SharedFs, path: &Path, out: &mut dyn io::Write) -> Result<Summary, Error> {
    let mut summary = Summary::default();
    let shards = path.join("shards");
    let is_node = fs.list(&shards).is_ok();
    if is_node {
        let checkpoints = checkpoint::read_all(fs, &shards)?.unwrap_or_default();
        let recorded = recorded(&path.join("partitions"), &checkpoints);
        verify_node(fs.as_ref(), path, &recorded, (out, &mut summary))?;
    } else {
        let fs = fs.as_ref();
        let mut each = |file: &Path| verify_file(fs, (file, u64::MAX), out, &mut summary);
        verify_below(fs, path, DEPTH_MAX, &mut each)?;
    }
    Ok(summary)
}

/// What checkpoints say of each segment file.
type Recorded = BTreeMap<PathBuf, SegmentState>;

fn recorded(partitions: &Path, checkpoints: &BTreeMap<ShardId, ShardCheckpoint>) -> Recorded {
    let states = checkpoints.values().flat_map(|checkpoint| &checkpoint.partitions);
    let files = states.flat_map(|(id, state)| {
        let directory = partition_dir(partitions, *id);
        state.segments.iter().map(move |segment| {
            let name = SegmentName { base: segment.base, generation: segment.generation };
            (directory.join(name.file_name(FileKind::Log)), *segment)
        })
    });
    files.collect()
}

fn verify_node(
    fs: &dyn Fs,
    data: &Path,
    recorded: &Recorded,
    (out, summary): (&mut dyn io::Write, &mut Summary),
) -> Result<(), Error> {
    for (path, state) in recorded {
        if let Some(what) = compare(fs, path, state)? {
            summary.bad_files += 1;
            writeln!(out, "{}: {what}", path.display())?;
        }
    }
    let partitions = data.join("partitions");
    match fs.list(&partitions) {
        // A node that has no record yet has no directory for them.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        listed => drop(listed.map_err(|source| failed(&partitions, source))?),
    }
    verify_below(fs, &partitions, DEPTH_MAX, &mut |file| match recorded.get(file) {
        // What is behind the recorded end is cut off by the next start and replayed.
        Some(state) => verify_file(fs, (file, state.len), out, summary),
        None => {
            summary.unnamed += 1;
            Ok(())
        }
    })
}

/// Compares a file with what a checkpoint says of it; returns what is wrong.
fn compare(fs: &dyn Fs, path: &Path, state: &SegmentState) -> Result<Option<String>, Error> {
    let file = match fs.open(path, Open::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Some(format!("is missing, {} bytes of it are in a checkpoint", state.len)));
        }
        opened => opened.map_err(|source| failed(path, source))?,
    };
    let len = file.len().map_err(|source| failed(path, source))?;
    if len < state.len {
        return Ok(Some(format!("has {len} bytes, a checkpoint has {} of it", state.len)));
    }
    let crc = checksum(file.as_ref(), state.len).map_err(|source| failed(path, source))?;
    let changed = || format!("its first {} bytes are not those of the checkpoint", state.len);
    Ok((crc != state.crc).then(changed))
}

/// Calls `each` with every batch that is whole of a segment file, or of all below a directory, and
/// with the partition whose it is, where the path tells. Returns how many batches and tails are
/// not.
///
/// # Errors
/// [`Error`].
pub fn batches(
    fs: &dyn Fs,
    path: &Path,
    each: &mut dyn FnMut(Option<TopicPartition>, &Batch) -> io::Result<()>,
) -> Result<u64, Error> {
    let mut bad = 0;
    verify_below(fs, path, DEPTH_MAX, &mut |file| {
        let partition = partition_of(file);
        let end = walk(fs, (file, u64::MAX), &mut |_, batch| match batch
            .filter(|batch| is_good(Some(batch)))
        {
            Some(batch) => each(partition, batch),
            None => {
                bad += 1;
                Ok(())
            }
        })?;
        bad += u64::from(end.is_some());
        Ok(())
    })?;
    Ok(bad)
}

/// Reads `.../<topic>/<partition>/<file>`.
fn partition_of(file: &Path) -> Option<TopicPartition> {
    let mut above = file.ancestors().skip(1).map(|above| above.file_name()?.to_str());
    let partition = parse_partition(above.next()??)?;
    let topic = above.next()??.parse().ok()?;
    Some(TopicPartition { topic, partition })
}

fn verify_below(
    fs: &dyn Fs,
    path: &Path,
    depth: usize,
    each: &mut dyn FnMut(&Path) -> Result<(), Error>,
) -> Result<(), Error> {
    if path.extension().is_some_and(|extension| extension == "log") {
        return each(path);
    }
    for entry in fs.list(path).map_err(|source| failed(path, source))? {
        let below = path.join(&entry.name);
        let is_log = SegmentName::parse(&entry.name).is_some_and(|(_, kind)| kind == FileKind::Log);
        match entry.kind {
            EntryKind::Directory if depth > 0 => verify_below(fs, &below, depth - 1, each)?,
            EntryKind::File if is_log => each(&below)?,
            EntryKind::Directory | EntryKind::File => {}
        }
    }
    Ok(())
}

fn verify_file(
    fs: &dyn Fs,
    (path, limit): (&Path, u64),
    out: &mut dyn io::Write,
    summary: &mut Summary,
) -> Result<(), Error> {
    let name = path.file_name().and_then(|name| SegmentName::parse(name.to_str()?));
    let mut next = name.map_or(Offset::ZERO, |(name, _)| name.base);
    let mut index = name.and_then(|(name, _)| {
        let path = path.with_file_name(name.file_name(FileKind::OffsetIndex));
        let bytes = read_file(fs, &path, INDEX_FILE_BYTES_MAX).ok()?;
        Some((OffsetEntries::new(name.base, &bytes), path))
    });
    summary.files += 1;
    let end = walk(fs, (path, limit), &mut |scanned, batch| {
        let header = &scanned.header;
        let is_in_order = header.base_offset >= next;
        next = next.max(header.next_offset());
        if let Some((entries, _)) = &mut index {
            entries.pass(scanned.position, header.last_offset());
        }
        if is_good(batch) && is_in_order {
            summary.batches += 1;
            summary.records += u64::from(header.record_count);
            summary.bytes += u64::try_from(header.total_bytes()).unwrap_or(u64::MAX);
            return Ok(());
        }
        summary.bad_batches += 1;
        let what = if is_in_order { "checksum is wrong" } else { "offsets go back" };
        let (first, last) = (header.base_offset, header.last_offset());
        let position = scanned.position;
        writeln!(out, "{}: position {position}, offsets {first}..={last}: {what}", path.display())
    })?;
    if let Some(position) = end {
        summary.bad_tails += 1;
        writeln!(out, "{}: position {position}: no batch starts here", path.display())?;
    }
    if let Some((entries, path)) = index
        && !entries.are_good()
    {
        summary.bad_indexes += 1;
        writeln!(out, "{}: does not belong to its segment", path.display())?;
    }
    Ok(())
}

/// Calls `each` with every batch of a file's first `limit` bytes. Returns the position of the first
/// thing that is none, `None` when they end behind a batch.
fn walk(
    fs: &dyn Fs,
    (path, limit): (&Path, u64),
    each: &mut dyn FnMut(&Scanned, Option<&Batch>) -> io::Result<()>,
) -> Result<Option<u64>, Error> {
    let read = |source| failed(path, source);
    let file = fs.open(path, Open::Read).map_err(read)?;
    let len = file.len().map_err(read)?.min(limit);
    let mut scanner = Scanner::new(file.as_ref(), 0, len);
    loop {
        match scanner.next() {
            Ok(Some(scanned)) => {
                let batch = read_batch(file.as_ref(), scanned.position, &scanned.header);
                each(&scanned, batch.map_err(read)?.as_ref())?;
            }
            Ok(None) => return Ok(None),
            Err(ScanError::Bad(position)) => return Ok(Some(position)),
            Err(ScanError::Io(source)) => return Err(read(source)),
        }
    }
}

/// Reads a batch whose length was checked against the file's.
fn read_batch(file: &dyn File, position: u64, header: &BatchHeader) -> io::Result<Option<Batch>> {
    let mut bytes = vec![0; header.total_bytes()];
    let read = file.read_at(&mut bytes, position)?;
    bytes.truncate(read);
    Ok(Batch::from_stored(Bytes::from(bytes)).ok())
}

fn is_good(batch: Option<&Batch>) -> bool {
    batch.is_some_and(|batch| batch.verify_crc().is_ok())
}

fn failed(path: &Path, source: io::Error) -> Error {
    Error::Read { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use super::*;
    use crate::storage::fs::sim::SimFs;

    const GOLDEN: &str = "tests/data/segment-v1/00000000000000000000.log";
    const NAME: &str = "/00000000000000000000.log";

    fn golden() -> Vec<u8> {
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(GOLDEN)).unwrap()
    }

    fn disk(bytes: &[u8]) -> SimFs {
        let fs = SimFs::new();
        let file = fs.open(Path::new(NAME), Open::CreateNew).unwrap();
        file.write_all_at(&[IoSlice::new(bytes)], 0).unwrap();
        fs
    }

    fn verified(bytes: &[u8]) -> (Summary, String) {
        let mut out = Vec::new();
        let summary = verify(&disk(bytes).shared(), Path::new("/"), &mut out).unwrap();
        (summary, String::from_utf8(out).unwrap())
    }

    #[test]
    fn dump_prints_a_line_for_each_batch() {
        let mut out = Vec::new();
        dump(&disk(&golden()), Path::new(NAME), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("position=0 offsets=0..=2 records=3 bytes=115"), "{text}");
        assert!(lines[1].starts_with("position=115 offsets=3..=5 records=3"), "{text}");
        assert!(lines[1].ends_with("producer=4711/3 sequence=10 crc=ok"), "{text}");
    }

    #[test]
    fn verify_counts_what_is_good_and_names_what_is_not() {
        let (summary, text) = verified(&golden());
        assert!(summary.is_good());
        assert_eq!((summary.files, summary.batches, summary.records), (1, 2, 6));
        assert_eq!(text, "");

        let mut flipped = golden();
        flipped[100] ^= 1;
        let (summary, text) = verified(&flipped);
        assert_eq!((summary.batches, summary.bad_batches, summary.bad_tails), (1, 1, 0));
        assert!(text.contains("position 0, offsets 0..=2: checksum is wrong"), "{text}");

        let (summary, text) = verified(&golden()[..200]);
        assert_eq!((summary.batches, summary.bad_tails), (1, 1));
        assert!(text.contains("position 115: no batch starts here"), "{text}");
    }

    #[test]
    fn any_bytes_can_be_looked_at() {
        for len in 0..300 {
            let bytes: Vec<u8> =
                (0..=255).map(|i: u8| i.wrapping_mul(7)).cycle().take(len).collect();
            verified(&bytes);
            dump(&disk(&bytes), Path::new(NAME), &mut io::sink()).unwrap();
        }
    }

    #[test]
    fn an_index_of_another_segment_is_noticed() {
        let fs = disk(&golden());
        let path = Path::new("/00000000000000000000.index");
        let file = fs.open(path, Open::CreateNew).unwrap();
        let right = [0, 0, 0, 5, 0, 0, 0, 115];
        file.write_all_at(&[IoSlice::new(&right)], 0).unwrap();
        let check = || verify(&fs.shared(), Path::new("/"), &mut io::sink()).unwrap().bad_indexes;
        assert_eq!(check(), 0);
        file.write_all_at(&[IoSlice::new(&[114])], 7).unwrap();
        assert_eq!(check(), 1);
    }
}
