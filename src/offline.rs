//! What is done with a stopped node's files: `eddyline segment ...` and `eddyline wal ...`.
//!
//! Invariants:
//! - nothing is written but the output;
//! - the verdict of a check is its exit code, whoever reads the output.

use std::io::{self, Write};
use std::path::PathBuf;

use crate::cli::{Offline, SegmentCommand, WalCommand};
use crate::storage::fs::RealFs;
use crate::storage::{checkpoint, segment_tools, wal};

mod records;

/// Why a command did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A segment or the output failed.
    #[error(transparent)]
    Segment(#[from] segment_tools::Error),
    /// The write-ahead log or the output failed.
    #[error(transparent)]
    Wal(#[from] wal::Error),
    /// The output could not be written.
    #[error("cannot write the output")]
    Output(#[from] io::Error),
    /// A checkpoint could not be read.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// Batches that are not whole have no records to print.
    #[error("{0} batches or ends of files are damaged, their records are left out")]
    LeftOut(u64),
    /// What was checked is not as it should be; the output says what.
    #[error("{} is damaged", .0.display())]
    Damaged(PathBuf),
}

impl Error {
    /// Returns whether the reader of the output went away, as `head` does when it has enough.
    fn is_unread(&self) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
            if kind == Some(io::ErrorKind::BrokenPipe) {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

/// Runs a command, with what it finds written to `out`.
///
/// # Errors
/// [`Error`]; a dump that nobody reads to its end is none.
pub fn run(command: &Offline, out: &mut dyn Write) -> Result<(), Error> {
    match command {
        Offline::Segment(SegmentCommand::Verify { path }) => {
            let summary = segment_tools::verify(&RealFs::shared(), path, out)?;
            writeln!(out, "{summary}")?;
            out.flush()?;
            if summary.is_good() { Ok(()) } else { Err(Error::Damaged(path.clone())) }
        }
        Offline::Segment(SegmentCommand::Dump { path, records: false }) => {
            unless_unread(segment_tools::dump(&RealFs, path, out).map_err(Error::from), out)
        }
        Offline::Segment(SegmentCommand::Dump { path, records: true }) => {
            unless_unread(records::of_segments(&RealFs, path, out), out)
        }
        Offline::Wal(WalCommand::Dump { dir, salvage, records, data_dir }) => {
            let data = data_dir.as_ref().unwrap_or(dir);
            let dir = wal::find(&RealFs, dir)?;
            let salvage =
                if *salvage { wal::Salvage::SkipDamage } else { wal::Salvage::StopAtDamage };
            let dumped = match records {
                true => records::of_log(&RealFs::shared(), &dir, data, out),
                false => wal::dump(&RealFs, &dir, out, salvage).map_err(Error::from),
            };
            unless_unread(dumped, out)?;
            Ok(wal::check(&RealFs, &dir)?)
        }
    }
}

fn unless_unread(dumped: Result<(), Error>, out: &mut dyn Write) -> Result<(), Error> {
    match dumped.and_then(|()| Ok(out.flush()?)) {
        Err(error) if error.is_unread() => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = "tests/data/segment-v1/00000000000000000000.log";

    /// Fails as a pipe does whose reader is gone.
    struct Unread;

    impl Write for Unread {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_dump_may_be_left_unread_and_a_verdict_may_not() {
        let dump = Offline::Segment(SegmentCommand::Dump { path: GOLDEN.into(), records: false });
        assert!(run(&dump, &mut Unread).is_ok());
        let verify = Offline::Segment(SegmentCommand::Verify { path: GOLDEN.into() });
        assert!(run(&verify, &mut Unread).is_err());
        let mut out = Vec::new();
        run(&verify, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("bad: 0 batches, 0 tails"), "{text}");
        let path = "nowhere.log".into();
        let missing = Offline::Segment(SegmentCommand::Dump { path, records: false });
        assert!(matches!(run(&missing, &mut Vec::new()), Err(Error::Segment(_))));
    }
}
