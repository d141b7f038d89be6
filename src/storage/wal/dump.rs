//! Prints a log that is not open, for people who look after a broken one.

use std::io::Write;
use std::path::Path;

use crate::storage::fs::Fs;
use crate::storage::wal::Error;
use crate::storage::wal::files::{Name, parse_name};
use crate::storage::wal::format::{Bad, FileHeader, FrameHead};
use crate::storage::wal::parse::{Frame, Walker};
use crate::storage::wal::salvage::{Salvage, Step, read_whole, walk};

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
    let walker = Walker::new(bytes, sequence, previous_round);
    walk(walker, salvage, &mut |step| match step {
        Step::Frame(frame) => print_frame(out, name, frame),
        Step::Stopped(stopped, higher) => {
            let verdict = match (stopped.in_round, higher) {
                (_, Some((position, _))) => format!("damaged, next round at {position}"),
                (true, None) => "torn tail".to_owned(),
                (false, None) => "end".to_owned(),
            };
            writeln!(out, "{name} {} {verdict}: {}", stopped.position, stopped.bad)
        }
    })
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
