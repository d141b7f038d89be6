//! Prints a log that is not open, for people who look after a broken one.

use std::io::Write;
use std::path::Path;

use crate::storage::fs::{Fs, Open};
use crate::storage::wal::Error;
use crate::storage::wal::files::{Name, parse_name};
use crate::storage::wal::format::{Bad, FileHeader, FrameHead};
use crate::storage::wal::parse::{Frame, Walker};

/// What to do at a damaged place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Salvage {
    /// End the file's listing.
    StopAtDamage,
    /// Go on at the next round that can be read.
    SkipDamage,
}

/// Prints a line for each frame of each file in `dir`, and one for each place that is not valid.
/// Nothing is changed.
///
/// # Errors
/// [`Error::Io`] for the log's files and for `out`.
pub fn dump(fs: &dyn Fs, dir: &Path, out: &mut dyn Write, salvage: Salvage) -> Result<(), Error> {
    let io = |action| move |source| Error::Io { action, path: dir.to_owned(), source };
    for entry in fs.list(dir).map_err(io("list"))? {
        let Name::Live(sequence) = parse_name(&entry.name) else {
            continue;
        };
        let bytes = read_whole(fs, &dir.join(&entry.name))?;
        dump_file(&entry.name, sequence, &bytes, (out, salvage)).map_err(io("print"))?;
    }
    Ok(())
}

/// Reads a file of the log; its size is bounded by the log's.
pub(super) fn read_whole(fs: &dyn Fs, path: &Path) -> Result<Vec<u8>, Error> {
    let read = || {
        let file = fs.open(path, Open::Read)?;
        let len = usize::try_from(file.len()?).map_err(std::io::Error::other)?;
        let mut bytes = vec![0; len];
        let read = file.read_at(&mut bytes, 0)?;
        bytes.truncate(read);
        Ok(bytes)
    };
    read().map_err(|source| Error::Io { action: "read", path: path.to_owned(), source })
}

fn dump_file(
    name: &str,
    sequence: u64,
    bytes: &[u8],
    (out, salvage): (&mut dyn Write, Salvage),
) -> std::io::Result<()> {
    let header = match FileHeader::parse(bytes) {
        Ok(header) if header.sequence == sequence => header,
        Ok(header) => {
            return writeln!(out, "{name} not begun, was file {} before", header.sequence);
        }
        Err(Bad::FileMagic) => return writeln!(out, "{name} not begun"),
        Err(bad) => return writeln!(out, "{name} 0 damaged header: {bad}"),
    };
    let FileHeader { void_from, previous_round, .. } = header;
    writeln!(out, "{name} 0 header void_from={void_from} previous_round={previous_round}")?;
    let mut walker = Walker::new(bytes, sequence, previous_round);
    loop {
        let stopped = match walker.next_frame() {
            Ok(Some(frame)) => {
                print_frame(out, name, &frame)?;
                continue;
            }
            Ok(None) => return Ok(()),
            Err(stopped) => stopped,
        };
        let higher = walker.higher_round(stopped.round);
        let verdict = match (stopped.in_round, higher) {
            (_, Some((position, _))) => format!("damaged, next round at {position}"),
            (true, None) => "torn tail".to_owned(),
            (false, None) => "end".to_owned(),
        };
        writeln!(out, "{name} {} {verdict}: {}", stopped.position, stopped.bad)?;
        match (salvage, higher) {
            (Salvage::SkipDamage, Some(found)) => match &stopped.head {
                Some(head) => walker.skip_frame(head),
                None => walker.skip_to(found),
            },
            _ => return Ok(()),
        }
    }
}

fn print_frame(out: &mut dyn Write, name: &str, frame: &Frame<'_>) -> std::io::Result<()> {
    let FrameHead { kind, replica, id, .. } = frame.head;
    let (position, round, bytes) = (frame.position, frame.round, frame.payload.len());
    writeln!(
        out,
        "{name} {position} round={round} {kind:?} replica={replica} term={} index={} bytes={bytes}",
        id.term, id.index
    )
}
