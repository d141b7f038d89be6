//! Walks over the bytes of one log file, and tells a torn tail from damage.
//!
//! Invariants:
//! - walking any bytes ends, does not panic and visits only frames whose checksums fit;
//! - a bad place is torn only when no valid round header with a higher number follows in the file:
//!   a higher round exists only if the bad one had been synced.

use crate::storage::wal::format::{
    Bad, FILE_HEADER_BYTES, FrameHead, Kind, ROUND_HEADER_BYTES, ROUND_MAGIC, RoundHeader, Seed,
};

/// A frame as it lies in its file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    pub(super) position: u64,
    pub(super) round: u64,
    pub(super) head: FrameHead,
    pub(super) payload: &'a [u8],
}

/// Where and why walking stopped before the file was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stopped {
    pub(super) position: u64,
    pub(super) bad: Bad,
    /// The head of the frame whose payload is bad, when only that is.
    pub(super) head: Option<FrameHead>,
    /// Whether it stopped inside of a round.
    pub(super) in_round: bool,
    /// The round that is bad, or that should have begun here.
    pub(super) round: u64,
}

/// The bytes of a file, and how far they have been walked over.
#[derive(Debug)]
pub(super) struct Walker<'a> {
    bytes: &'a [u8],
    seed: Seed,
    at: usize,
    round_end: usize,
    last_round: u64,
    closed: Option<Kind>,
}

fn to_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

impl<'a> Walker<'a> {
    /// Begins behind the header of a file that follows `previous_round`.
    pub(super) fn new(bytes: &'a [u8], sequence: u64, previous_round: u64) -> Self {
        Self {
            bytes,
            seed: Seed::of(sequence),
            at: FILE_HEADER_BYTES,
            round_end: FILE_HEADER_BYTES,
            last_round: previous_round,
            closed: None,
        }
    }

    /// Returns the position behind the last good frame or round header.
    pub(super) fn position(&self) -> u64 {
        to_u64(self.at)
    }

    /// Returns the last round that was begun.
    pub(super) fn last_round(&self) -> u64 {
        self.last_round
    }

    /// Returns the kind of the frame that closed the file.
    pub(super) fn closed(&self) -> Option<Kind> {
        self.closed
    }

    fn from(&self, at: usize) -> &'a [u8] {
        self.bytes.get(at..).unwrap_or_default()
    }

    fn round_header(&self, at: usize) -> Result<RoundHeader, Bad> {
        RoundHeader::parse(self.from(at), self.seed, to_u64(at))
    }

    /// Returns the next frame, `None` behind the one that closed the file.
    pub(super) fn next_frame(&mut self) -> Result<Option<Frame<'a>>, Stopped> {
        if self.closed.is_some() {
            return Ok(None);
        }
        while self.at >= self.round_end {
            self.next_round()?;
        }
        let frame = self.frame()?;
        self.at = self.at.saturating_add(frame.head.len());
        if frame.head.kind.closes() {
            self.closed = Some(frame.head.kind);
        }
        Ok(Some(frame))
    }

    fn next_round(&mut self) -> Result<(), Stopped> {
        let expected = self.last_round.saturating_add(1);
        let stop = |bad| Stopped {
            position: to_u64(self.at),
            bad,
            head: None,
            in_round: false,
            round: expected,
        };
        let header = self.round_header(self.at).map_err(stop)?;
        if header.round != expected {
            return Err(stop(Bad::Order));
        }
        self.last_round = expected;
        self.at = self.at.saturating_add(ROUND_HEADER_BYTES);
        let bytes = usize::try_from(header.bytes).unwrap_or(usize::MAX);
        self.round_end = self.at.saturating_add(bytes);
        Ok(())
    }

    fn frame(&self) -> Result<Frame<'a>, Stopped> {
        let (position, round) = (to_u64(self.at), self.last_round);
        let end = self.round_end.min(self.bytes.len());
        let bytes = self.bytes.get(self.at..end).unwrap_or_default();
        let stop = |bad, head| Stopped { position, bad, head, in_round: true, round };
        let head = FrameHead::parse(bytes, self.seed, position).map_err(|bad| stop(bad, None))?;
        let payload =
            head.payload(bytes, self.seed, position).map_err(|bad| stop(bad, Some(head)))?;
        Ok(Frame { position, round, head, payload })
    }

    /// Goes on behind a frame whose head is good although its payload is not.
    pub(super) fn skip_frame(&mut self, head: &FrameHead) {
        self.at = self.at.saturating_add(head.len());
    }

    /// Goes on at a round header that [`Walker::higher_round`] found.
    pub(super) fn skip_to(&mut self, found: (u64, u64)) {
        let (position, round) = found;
        self.at = usize::try_from(position).unwrap_or(usize::MAX);
        self.round_end = self.at;
        self.last_round = round.saturating_sub(1);
    }

    /// Returns position and number of the first valid round header from here on with a number above
    /// `round`.
    pub(super) fn higher_round(&self, round: u64) -> Option<(u64, u64)> {
        memchr::memmem::find_iter(self.from(self.at), &ROUND_MAGIC).find_map(|offset| {
            let at = self.at.checked_add(offset)?;
            let header = self.round_header(at).ok()?;
            (header.round > round).then_some((to_u64(at), header.round))
        })
    }
}

/// Checks the frame in `bytes`, whose place is known from the index.
pub(super) fn check_frame(bytes: &[u8], seed: Seed, position: u64) -> Result<FrameHead, Bad> {
    let head = FrameHead::parse(bytes, seed, position)?;
    head.payload(bytes, seed, position)?;
    Ok(head)
}
