//! Walking over a segment's batches by their headers alone.

use std::io;

use crate::record::{BatchHeader, HEADER_BYTES};
use crate::storage::fs::File;

/// What is read at once while batches are small.
const WINDOW_BYTES: usize = 64 * 1024;

/// From this size on, batches are too far apart for a window to hold several headers.
const LARGE_BATCH_BYTES: usize = 16 * 1024;

/// A batch's header and where it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scanned {
    /// The header.
    pub(crate) header: BatchHeader,
    /// Where the batch starts in the file.
    pub(crate) position: u64,
}

/// Reads the headers of batches one after the other. The bytes between them are not looked at, so
/// a walk over large batches reads little of the file.
#[derive(Debug)]
pub(crate) struct Scanner<'a> {
    file: &'a dyn File,
    position: u64,
    end: u64,
    window: Vec<u8>,
    window_at: u64,
    last_bytes: usize,
}

/// Why a walk stopped before the end.
#[derive(Debug)]
pub(crate) enum ScanError {
    /// The file could not be read.
    Io(io::Error),
    /// At this position there is no batch that fits into the rest.
    Bad(u64),
}

impl<'a> Scanner<'a> {
    /// Walks from `start`, where a batch starts, to `end`.
    pub(crate) fn new(file: &'a dyn File, start: u64, end: u64) -> Self {
        let window = Vec::new();
        Self { file, position: start, end, window, window_at: start, last_bytes: 0 }
    }

    /// Returns the next batch, `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Scanned>, ScanError> {
        if self.position >= self.end {
            return Ok(None);
        }
        let position = self.position;
        let bad = ScanError::Bad(position);
        let Some(bytes) = self.header_bytes().map_err(ScanError::Io)? else {
            return Err(bad);
        };
        let Ok(header) = BatchHeader::parse(bytes) else {
            return Err(bad);
        };
        self.last_bytes = header.total_bytes();
        let total = u64::try_from(self.last_bytes).unwrap_or(u64::MAX);
        self.position = position.saturating_add(total);
        if self.position > self.end { Err(bad) } else { Ok(Some(Scanned { header, position })) }
    }

    /// Returns the header's bytes at the current position, `None` when the file ends in them.
    fn header_bytes(&mut self) -> io::Result<Option<&[u8]>> {
        let skipped = usize::try_from(self.position - self.window_at).unwrap_or(usize::MAX);
        let in_window = skipped.saturating_add(HEADER_BYTES) <= self.window.len();
        if !in_window {
            let left = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
            let want =
                if self.last_bytes >= LARGE_BATCH_BYTES { HEADER_BYTES } else { WINDOW_BYTES };
            self.window.resize(want.min(left), 0);
            let read = self.file.read_at(&mut self.window, self.position)?;
            self.window.truncate(read);
            self.window_at = self.position;
        }
        let start = usize::try_from(self.position - self.window_at).unwrap_or(usize::MAX);
        Ok(self.window.get(start..start.saturating_add(HEADER_BYTES)))
    }
}
