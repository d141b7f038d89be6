//! Records from files and standard input: whole lines in chunks, gzip unpacked.
//!
//! Invariants:
//! - a chunk holds whole lines, each ending in one LF, none of them blank, so the nth line sent is
//!   the nth line reported;
//! - what has arrived is passed on at once: a slow pipe is not held back to fill a buffer.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;

/// Bytes read at a time.
const READ_BYTES: usize = 256 * 1024;
/// Longest line; a server refuses far shorter ones, this keeps a binary file from filling memory.
const LINE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Some lines of one source.
#[derive(Debug)]
pub(super) struct Chunk {
    /// The lines.
    pub(super) bytes: Bytes,
    /// Which lines of the source they are, as runs without a blank line between: number of the
    /// first (from 1), and how many.
    pub(super) runs: Vec<(u64, u64)>,
}

/// Where records come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// Standard input.
    Stdin,
    /// A file.
    File(PathBuf),
}

impl Source {
    /// Reads the command line's list: `-`, and nothing at all, is standard input.
    pub(super) fn list(files: &[PathBuf]) -> Vec<Self> {
        if files.is_empty() {
            return vec![Self::Stdin];
        }
        let source = |path: &PathBuf| match path.to_str() {
            Some("-") => Self::Stdin,
            _ => Self::File(path.clone()),
        };
        files.iter().map(source).collect()
    }

    /// Opens it, unpacking gzip wherever it starts like gzip.
    pub(super) fn open(&self) -> io::Result<Box<dyn BufRead>> {
        let raw: Box<dyn Read> = match self {
            Self::Stdin => Box::new(io::stdin()),
            Self::File(path) => Box::new(File::open(path)?),
        };
        let mut reader = BufReader::with_capacity(READ_BYTES, raw);
        let is_gzip = reader.fill_buf()?.starts_with(&[0x1f, 0x8b]);
        if is_gzip {
            let unpacked = MultiGzDecoder::new(reader);
            return Ok(Box::new(BufReader::with_capacity(READ_BYTES, unpacked)));
        }
        Ok(Box::new(reader))
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stdin => f.write_str("stdin"),
            Self::File(path) => Path::display(path).fmt(f),
        }
    }
}

/// Cuts a reader into chunks of whole lines.
pub(super) struct Chunks<R> {
    reader: R,
    /// The start of a line whose end has not come yet.
    partial: Vec<u8>,
    /// Number of the next line.
    line: u64,
    ended: bool,
}

impl<R: BufRead> Chunks<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, partial: Vec::new(), line: 1, ended: false }
    }

    /// Reads until at least one line that is not blank is there; `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Chunk>> {
        while !self.ended {
            let arrived = match self.reader.fill_buf() {
                Ok(arrived) => arrived,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let taken = arrived.len();
            let mut whole = std::mem::take(&mut self.partial);
            if taken == 0 {
                self.ended = true;
                if !whole.is_empty() {
                    whole.push(b'\n');
                }
            } else {
                let end = memchr::memrchr(b'\n', arrived).map_or(0, |at| at + 1);
                let (lines, rest) = arrived.split_at(end);
                whole.extend_from_slice(lines);
                if end == 0 {
                    self.partial = whole;
                    whole = Vec::new();
                }
                self.partial.extend_from_slice(rest);
            }
            self.reader.consume(taken);
            if self.partial.len() > LINE_BYTES_MAX {
                let message = format!("line {} is longer than {LINE_BYTES_MAX} bytes", self.line);
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            if let Some(chunk) = self.without_blank_lines(whole) {
                return Ok(Some(chunk));
            }
        }
        Ok(None)
    }

    fn without_blank_lines(&mut self, whole: Vec<u8>) -> Option<Chunk> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let mut kept: Option<Vec<u8>> = None;
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', &whole).map(|at| at + 1) {
            let line = whole.get(start..end).unwrap_or_default();
            if line.iter().all(u8::is_ascii_whitespace) {
                kept.get_or_insert_with(|| whole.get(..start).unwrap_or_default().to_vec());
            } else {
                if let Some(kept) = &mut kept {
                    kept.extend_from_slice(line);
                }
                match runs.last_mut() {
                    Some((first, count)) if *first + *count == self.line => *count += 1,
                    _ => runs.push((self.line, 1)),
                }
            }
            self.line += 1;
            start = end;
        }
        let bytes = Bytes::from(kept.unwrap_or(whole));
        (!runs.is_empty()).then_some(Chunk { bytes, runs })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Hands out what it has in pieces of the given sizes.
    fn chunks_of(text: &[u8], capacity: usize) -> Vec<Chunk> {
        let mut chunks = Chunks::new(BufReader::with_capacity(capacity, text));
        let mut all = Vec::new();
        while let Some(chunk) = chunks.next().unwrap() {
            all.push(chunk);
        }
        all
    }

    proptest! {
        #[test]
        fn every_line_that_is_not_blank_arrives_once_with_its_number(
            lines in prop::collection::vec("[a-z \t]{0,12}", 0..40),
            capacity in 1usize..64,
            ends_with_newline: bool,
        ) {
            let mut text = lines.join("\n");
            if ends_with_newline {
                text.push('\n');
            }
            let mut expected = Vec::new();
            for (at, line) in text.split('\n').enumerate() {
                if !line.trim_ascii().is_empty() {
                    expected.push((at as u64 + 1, line.to_owned()));
                }
            }
            let mut seen = Vec::new();
            for chunk in chunks_of(text.as_bytes(), capacity) {
                let numbers = chunk.runs.iter().flat_map(|(first, count)| *first..first + count);
                let sent = std::str::from_utf8(&chunk.bytes).unwrap();
                let sent = sent.strip_suffix('\n').unwrap().split('\n').map(str::to_owned);
                let before = seen.len();
                seen.extend(numbers.zip(sent.clone()));
                prop_assert_eq!(seen.len() - before, sent.count());
            }
            prop_assert_eq!(seen, expected);
        }
    }

    #[test]
    fn gzip_is_unpacked_by_its_content_and_not_its_name() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records");
        let mut packed = Vec::new();
        for part in ["{\"a\":1}\n", "{\"b\":2}"] {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(part.as_bytes()).unwrap();
            packed.extend(encoder.finish().unwrap());
        }
        std::fs::write(&path, packed).unwrap();
        let mut text = String::new();
        Source::File(path).open().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "{\"a\":1}\n{\"b\":2}");
    }

    #[test]
    fn a_dash_and_nothing_are_standard_input() {
        assert_eq!(Source::list(&[]), [Source::Stdin]);
        let files = [PathBuf::from("-"), PathBuf::from("x")];
        assert_eq!(Source::list(&files), [Source::Stdin, Source::File(PathBuf::from("x"))]);
    }
}
