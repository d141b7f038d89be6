//! Splits a body into lines while it arrives.
//!
//! Lines that lie in one chunk are borrowed from it; only one that crosses chunks is copied.
//!
//! Invariants:
//! - the lines are the same however the body is cut into chunks;
//! - at most one line is kept, and none longer than the limit: a longer one is skipped and told.

use axum::body::Bytes;

use crate::api::error::{ApiError, Code};

/// A line without its line feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// The line.
    Whole(&'a [u8]),
    /// It was longer than the limit.
    TooLong,
}

/// The part of a line that came so far.
#[derive(Debug)]
pub(super) struct Lines {
    partial: Vec<u8>,
    /// The line is longer than the limit; its rest is skipped.
    skipping: bool,
    line_bytes_max: usize,
}

/// Lines that are complete.
#[derive(Debug)]
pub(super) struct Batch {
    /// The line that began in an earlier chunk; `None` inside when it is too long.
    head: Option<Option<Vec<u8>>>,
    /// Whole lines, each with its line feed.
    rest: Bytes,
    line_bytes_max: usize,
}

impl Lines {
    /// Starts at the beginning of a body.
    pub(super) fn new(line_bytes_max: usize) -> Self {
        Self { partial: Vec::new(), skipping: false, line_bytes_max }
    }

    /// Takes the next chunk and returns the lines that it completes.
    pub(super) fn push(&mut self, mut chunk: Bytes) -> Batch {
        let mut head = None;
        if self.is_inside() {
            let Some(end) = memchr::memchr(b'\n', &chunk) else {
                self.keep(&chunk);
                return self.batch(None, Bytes::new());
            };
            let line = chunk.split_to(end + 1);
            self.keep(line.get(..end).unwrap_or_default());
            head = Some(self.take());
        }
        let whole = memchr::memrchr(b'\n', &chunk).map_or(0, |end| end + 1);
        let rest = chunk.split_to(whole);
        self.keep(&chunk);
        self.batch(head, rest)
    }

    /// Returns the last line, which needs no line feed.
    pub(super) fn end(&mut self) -> Batch {
        let head = self.is_inside().then(|| self.take());
        self.batch(head, Bytes::new())
    }

    /// Returns whether a line has begun that has not ended.
    pub(super) fn is_inside(&self) -> bool {
        self.skipping || !self.partial.is_empty()
    }

    /// Returns how many bytes of a line that has not ended are kept.
    pub(super) fn kept_bytes(&self) -> usize {
        self.partial.len()
    }

    /// The error of a line that is too long.
    pub(super) fn too_long(&self) -> ApiError {
        let limit = self.line_bytes_max;
        let detail = format!("the line has more than http.max_line_bytes ({limit}) bytes");
        ApiError::new(Code::TooLarge, detail)
    }

    fn batch(&self, head: Option<Option<Vec<u8>>>, rest: Bytes) -> Batch {
        Batch { head, rest, line_bytes_max: self.line_bytes_max }
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.partial.len() + bytes.len() > self.line_bytes_max {
            self.partial = Vec::new();
            self.skipping = true;
        }
        if !self.skipping {
            self.partial.extend_from_slice(bytes);
        }
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        let partial = std::mem::take(&mut self.partial);
        (!std::mem::take(&mut self.skipping)).then_some(partial)
    }
}

impl Batch {
    /// Returns whether there is no line in it, not even a blank one.
    pub(super) fn is_empty(&self) -> bool {
        self.head.is_none() && self.rest.is_empty()
    }

    /// Returns how many bytes it has.
    pub(super) fn bytes(&self) -> usize {
        self.head.iter().flatten().map(Vec::len).sum::<usize>() + self.rest.len()
    }

    /// Takes the first lines out: no more than `lines_max`, and none after `bytes_max` bytes.
    pub(super) fn split_off_group(&mut self, lines_max: usize, bytes_max: usize) -> Self {
        let head = self.head.take();
        let before = usize::from(head.is_some());
        let head_bytes = head.iter().flatten().map(Vec::len).sum::<usize>();
        let mut end = 0;
        for (lines, feed) in (before..).zip(memchr::memchr_iter(b'\n', &self.rest)) {
            if lines >= lines_max || head_bytes + end >= bytes_max {
                break;
            }
            end = feed + 1;
        }
        Self { head, rest: self.rest.split_to(end), line_bytes_max: self.line_bytes_max }
    }

    /// Iterates over the lines that are not blank.
    pub(super) fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        let head = self.head.iter().map(|line| match line {
            Some(line) => Line::Whole(line),
            None => Line::TooLong,
        });
        let mut rest = self.rest.as_ref();
        let rest = std::iter::from_fn(move || {
            let end = memchr::memchr(b'\n', rest)?;
            let (line, after) = rest.split_at_checked(end)?;
            rest = after.get(1..)?;
            Some(if line.len() > self.line_bytes_max { Line::TooLong } else { Line::Whole(line) })
        });
        head.chain(rest).filter(|line| match line {
            Line::Whole(line) => !line.trim_ascii().is_empty(),
            Line::TooLong => true,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 6;

    fn expected(body: &[u8]) -> Vec<Option<Vec<u8>>> {
        body.split(|byte| *byte == b'\n')
            .map(|line| (line.len() <= LIMIT).then(|| line.to_vec()))
            .filter(|line| line.as_ref().is_none_or(|line| !line.trim_ascii().is_empty()))
            .collect()
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_the_chunks(
            body in "[ab \r\n]{0,60}",
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..10),
            (lines_max, bytes_max) in (1_usize..5, 1_usize..20),
        ) {
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
            cuts.extend([0, body.len()]);
            cuts.sort_unstable();
            let mut lines = Lines::new(LIMIT);
            let mut found = Vec::new();
            let mut collect = |mut batch: Batch| {
                while !batch.is_empty() {
                    let group = batch.split_off_group(lines_max, bytes_max);
                    let lines: Vec<_> = group.lines().map(|line| match line {
                        Line::Whole(line) => Some(line.to_vec()),
                        Line::TooLong => None,
                    }).collect();
                    assert!(lines.len() <= lines_max && !group.is_empty());
                    found.extend(lines);
                }
            };
            for pair in cuts.windows(2) {
                let chunk = &body.as_bytes()[pair[0]..pair[1]];
                collect(lines.push(Bytes::copy_from_slice(chunk)));
                prop_assert!(lines.partial.len() <= LIMIT);
            }
            collect(lines.end());
            prop_assert_eq!(found, expected(body.as_bytes()));
        }
    }
}
