//! A round in the making: the bytes that one write puts on disk, and what they mean once synced.
//!
//! Invariants:
//! - committed marks come last in a round, never above the last entry written: a round that is torn
//!   in its entries must not have a mark that says they were there;
//! - the marks of all replicas stand at the head of each file, so that the votes in older files are
//!   superseded.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::storage::wal::format::{
    CLOSING_BYTES, FILE_HEADER_BYTES, FileHeader, Kind, ROUND_HEADER_BYTES, RoundHeader, Seed,
    encode_vote, push_frame, put,
};
use crate::storage::wal::index::Slot;
use crate::storage::wal::{Entry, LogId, Vote};
use crate::types::{RaftIndex, ReplicaId, Term};

/// Zeros behind the last round of a file that grows: the room for closing it.
pub(super) const CLOSING_ROOM: [u8; CLOSING_BYTES] = [0; CLOSING_BYTES];

/// Its length.
pub(super) const CLOSING_ROOM_BYTES: u64 = CLOSING_ROOM.len() as u64;

/// What the head of a file says of a replica.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Marks {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    pub(super) announced: Option<LogId>,
    /// The last entry written, or the purged one.
    pub(super) last: Option<RaftIndex>,
}

impl Marks {
    /// Returns the announced snapshot, unless the log was purged up to it since.
    pub(super) fn pending_announcement(&self) -> Option<LogId> {
        let purged = self.purged.map(|id| id.index);
        self.announced.filter(|id| purged < Some(id.index))
    }
}

/// The marks of all replicas that have anything in the log and were not dropped.
pub(super) type AllMarks = BTreeMap<ReplicaId, Marks>;

/// An entry's place within a round.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed {
    pub(super) replica: ReplicaId,
    pub(super) index: RaftIndex,
    pub(super) ticket: u64,
    pub(super) slot: Slot,
}

/// A round's bytes, with the file header before them when it is a file's first.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) bytes: Vec<u8>,
    pub(super) placed: Vec<Placed>,
    seed: Seed,
    file: u32,
    start: u64,
    header_at: usize,
}

/// No replica and no entry, for frames that close a file.
const NOBODY: (ReplicaId, LogId) = (ReplicaId::new(0), no_entry(Term::new(0)));

const fn no_entry(term: Term) -> LogId {
    LogId { term, index: RaftIndex::new(0) }
}

impl Round {
    /// Begins a round at `start` of a file; `bytes` is a buffer to be reused.
    pub(super) fn begin(mut bytes: Vec<u8>, sequence: u32, start: u64) -> Self {
        bytes.clear();
        bytes.extend_from_slice(&[0; ROUND_HEADER_BYTES]);
        let seed = Seed::of(u64::from(sequence));
        Self { bytes, placed: Vec::new(), seed, file: sequence, start, header_at: 0 }
    }

    /// Begins a file with its header and its first round.
    pub(super) fn begin_file(mut bytes: Vec<u8>, sequence: u32, header: &FileHeader) -> Self {
        bytes.clear();
        bytes.extend_from_slice(&header.encode());
        bytes.extend_from_slice(&[0; ROUND_HEADER_BYTES]);
        let seed = Seed::of(u64::from(sequence));
        let placed = Vec::new();
        Self { bytes, placed, seed, file: sequence, start: 0, header_at: FILE_HEADER_BYTES }
    }

    fn position(&self) -> u64 {
        self.start.saturating_add(u64::try_from(self.bytes.len()).unwrap_or(u64::MAX))
    }

    /// Returns the bytes that are to be written.
    pub(super) fn len(&self) -> u64 {
        u64::try_from(self.bytes.len()).unwrap_or(u64::MAX)
    }

    /// Returns whether there is no frame in it.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.len() <= self.header_at + ROUND_HEADER_BYTES
    }

    pub(super) fn frame(&mut self, kind: Kind, replica: ReplicaId, id: LogId, payload: &[Bytes]) {
        let place = (self.seed, self.position());
        push_frame(&mut self.bytes, place, kind, (replica, id), payload);
    }

    pub(super) fn entry(&mut self, replica: ReplicaId, entry: &Entry, ticket: u64) -> Slot {
        let position = self.position();
        let place = (self.seed, position);
        let named = (replica, entry.id());
        let length = push_frame(&mut self.bytes, place, Kind::Entry, named, &entry.payload);
        let slot = Slot { position, file: self.file, length };
        self.placed.push(Placed { replica, index: entry.index, ticket, slot });
        slot
    }

    pub(super) fn vote(&mut self, replica: ReplicaId, vote: &Vote) {
        self.frame(Kind::Vote, replica, no_entry(vote.term), &[encode_vote(vote)]);
    }

    pub(super) fn truncate(&mut self, replica: ReplicaId, keep: Option<RaftIndex>) {
        let kind = if keep.is_some() { Kind::Truncate } else { Kind::TruncateAll };
        let index = keep.unwrap_or_default();
        self.frame(kind, replica, LogId { term: Term::new(0), index }, &[]);
    }

    pub(super) fn dropped(&mut self, replica: ReplicaId) {
        self.frame(Kind::Dropped, replica, no_entry(Term::new(0)), &[]);
    }

    /// Adds the frame that closes the file.
    pub(super) fn close(&mut self, kind: Kind) {
        let (nobody, nothing) = NOBODY;
        self.frame(kind, nobody, nothing, &[]);
    }

    /// Adds what each file begins with. Purged marks come first, committed ones are a promise about
    /// entries of older files, which are all synced.
    pub(super) fn head(&mut self, all: &AllMarks) {
        for (replica, marks) in all {
            if let Some(id) = marks.purged {
                self.frame(Kind::Purged, *replica, id, &[]);
            }
            if let Some(vote) = &marks.vote {
                self.vote(*replica, vote);
            }
            if let Some(id) = marks.pending_announcement() {
                self.frame(Kind::Announced, *replica, id, &[]);
            }
            if let Some(id) = marks.committed {
                self.frame(Kind::Committed, *replica, id, &[]);
            }
        }
    }

    /// Fills in the round's header; the bytes are then ready to be written.
    pub(super) fn finish(&mut self, number: u64) {
        let frames = self.bytes.len().saturating_sub(self.header_at + ROUND_HEADER_BYTES);
        // The queue hands out a few MiB and at most one entry more, which is bounded too.
        let bytes = u32::try_from(frames).unwrap_or(u32::MAX);
        let position = self.start.saturating_add(u64::try_from(self.header_at).unwrap_or(u64::MAX));
        let header = RoundHeader { bytes, round: number }.encode(self.seed, position);
        put(&mut self.bytes, self.header_at, &header);
    }
}
