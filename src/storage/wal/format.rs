//! The bytes of a log file: header, rounds, frames. All numbers are little-endian.
//!
//! A file is a header, then rounds without gaps; a round is a header and frames without gaps.
//!
//! ```text
//! file header     0  magic         8   "EDDYWAL1", the version is its last character
//! (64 bytes)      8  checksum      4   CRC-32C of bytes 16..64
//!                12  reserved      4   zeros
//!                16  sequence      8   the use of this file, never reused; also in its name
//!                24  void from     8   files from this sequence up to this file's are void
//!                32  previous      8   the last round of the file before this one, 0 for none
//!                40  reserved     24   zeros
//!
//! round header    0  magic         8   b"\xEDround\r\n"
//! (24 bytes)      8  checksum      4   CRC-32C of seed and bytes 12..24
//!                12  bytes         4   of the frames that follow
//!                16  round         8   one more than the round before
//!
//! frame head      0  length        4   of the frame with this head: never 0
//! (40 bytes)      4  head checksum 4   CRC-32C of seed, bytes 0..4 and 8..40
//!                 8  checksum      4   CRC-32C of seed and payload
//!                12  kind          1   see `Kind`
//!                13  reserved      3   zeros
//!                16  replica       8
//!                24  term          8
//!                32  index         8
//!                40  payload
//! ```
//!
//! Invariants:
//! - the seed of a checksum is the file's sequence and the position in the file, so what an earlier
//!   use of the file left at the same place does not validate;
//! - the head has a checksum of its own, so that damage in a payload can be ascribed to its entry;
//! - decoding any bytes neither panics nor allocates.

use bytes::Bytes;

use crate::storage::wal::{LogId, Vote};
use crate::types::{RaftIndex, ReplicaId, Term};

const FILE_MAGIC: [u8; 8] = *b"EDDYWAL1";
pub(super) const ROUND_MAGIC: [u8; 8] = *b"\xEDround\r\n";

pub(super) const FILE_HEADER_BYTES: usize = 64;
pub(super) const ROUND_HEADER_BYTES: usize = 24;
pub(super) const FRAME_HEAD_BYTES: usize = 40;
const VOTE_BYTES: usize = 9;

/// What closing a file needs; every file has that much room behind its last round.
pub(super) const CLOSING_BYTES: usize = ROUND_HEADER_BYTES + FRAME_HEAD_BYTES;

/// Largest payload of an entry, far above what a proposer makes.
pub(super) const PAYLOAD_BYTES_MAX: usize = 1 << 30;

/// What a frame says about its replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A log entry.
    Entry = 1,
    /// Entries after `index` are gone.
    Truncate = 2,
    /// All entries are gone.
    TruncateAll = 3,
    /// Hard state: `term`, payload: candidate (8 bytes), whether a majority gave it (1 byte).
    Vote = 4,
    /// The entry `term`, `index` is committed.
    Committed = 5,
    /// Entries up to `term`, `index` are not needed any more.
    Purged = 6,
    /// The replica has left this node for ever.
    Dropped = 7,
    /// A snapshot up to `term`, `index` may be installed without the entries before it.
    Announced = 8,
    /// The file ends here, another one follows.
    End = 9,
    /// The log was closed here when all before it had been synced.
    Stop = 10,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Entry,
        Self::Truncate,
        Self::TruncateAll,
        Self::Vote,
        Self::Committed,
        Self::Purged,
        Self::Dropped,
        Self::Announced,
        Self::End,
        Self::Stop,
    ];

    fn code(self) -> u8 {
        self as u8
    }

    fn parse(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// Returns whether nothing follows in the file.
    pub(super) fn closes(self) -> bool {
        matches!(self, Self::End | Self::Stop)
    }
}

/// What makes a checksum belong to one use of one file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seed(u32);

impl Seed {
    pub(super) fn of(sequence: u64) -> Self {
        Self(crc32c::crc32c(&sequence.to_le_bytes()))
    }

    fn at(self, position: u64) -> u32 {
        crc32c::crc32c_append(self.0, &position.to_le_bytes())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileHeader {
    pub(super) sequence: u64,
    pub(super) void_from: u64,
    pub(super) previous_round: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RoundHeader {
    pub(super) bytes: u32,
    pub(super) round: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHead {
    pub(super) length: u32,
    pub(super) kind: Kind,
    pub(super) replica: ReplicaId,
    pub(super) id: LogId,
    payload_crc: u32,
}

/// Why bytes are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Bad {
    #[error("the file ends within it")]
    Short,
    #[error("a file header without its mark")]
    FileMagic,
    #[error("a round header without its mark")]
    RoundMagic,
    #[error("a round out of order")]
    Order,
    #[error("a wrong checksum")]
    Checksum,
    #[error("a payload with a wrong checksum")]
    PayloadChecksum,
    #[error("a frame of an unknown kind")]
    Kind,
    #[error("a frame with an impossible length")]
    Length,
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Bad> {
    let part = at.checked_add(N).and_then(|end| bytes.get(at..end)).ok_or(Bad::Short)?;
    part.try_into().map_err(|_| Bad::Short)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Bad> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, Bad> {
    array(bytes, at).map(u64::from_le_bytes)
}

fn part(bytes: &[u8], from: usize, to: usize) -> Result<&[u8], Bad> {
    bytes.get(from..to).ok_or(Bad::Short)
}

impl FileHeader {
    pub(super) fn encode(&self) -> [u8; FILE_HEADER_BYTES] {
        let mut rest = [0; FILE_HEADER_BYTES - 16];
        put(&mut rest, 0, &self.sequence.to_le_bytes());
        put(&mut rest, 8, &self.void_from.to_le_bytes());
        put(&mut rest, 16, &self.previous_round.to_le_bytes());
        let mut bytes = [0; FILE_HEADER_BYTES];
        put(&mut bytes, 0, &FILE_MAGIC);
        put(&mut bytes, 8, &crc32c::crc32c(&rest).to_le_bytes());
        put(&mut bytes, 16, &rest);
        bytes
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Bad> {
        if array::<8>(bytes, 0)? != FILE_MAGIC {
            return Err(Bad::FileMagic);
        }
        if crc32c::crc32c(part(bytes, 16, FILE_HEADER_BYTES)?) != u32_at(bytes, 8)? {
            return Err(Bad::Checksum);
        }
        Ok(Self {
            sequence: u64_at(bytes, 16)?,
            void_from: u64_at(bytes, 24)?,
            previous_round: u64_at(bytes, 32)?,
        })
    }
}

impl RoundHeader {
    pub(super) fn encode(&self, seed: Seed, position: u64) -> [u8; ROUND_HEADER_BYTES] {
        let mut rest = [0; ROUND_HEADER_BYTES - 12];
        put(&mut rest, 0, &self.bytes.to_le_bytes());
        put(&mut rest, 4, &self.round.to_le_bytes());
        let checksum = crc32c::crc32c_append(seed.at(position), &rest);
        let mut bytes = [0; ROUND_HEADER_BYTES];
        put(&mut bytes, 0, &ROUND_MAGIC);
        put(&mut bytes, 8, &checksum.to_le_bytes());
        put(&mut bytes, 12, &rest);
        bytes
    }

    pub(super) fn parse(bytes: &[u8], seed: Seed, position: u64) -> Result<Self, Bad> {
        if array::<8>(bytes, 0)? != ROUND_MAGIC {
            return Err(Bad::RoundMagic);
        }
        let rest = part(bytes, 12, ROUND_HEADER_BYTES)?;
        if crc32c::crc32c_append(seed.at(position), rest) != u32_at(bytes, 8)? {
            return Err(Bad::Checksum);
        }
        Ok(Self { bytes: u32_at(bytes, 12)?, round: u64_at(bytes, 16)? })
    }
}

impl FrameHead {
    /// Parses the head at the start of `bytes`, which lies at `position` of its file.
    pub(super) fn parse(bytes: &[u8], seed: Seed, position: u64) -> Result<Self, Bad> {
        let checksum = crc32c::crc32c_append(seed.at(position), part(bytes, 0, 4)?);
        let checksum = crc32c::crc32c_append(checksum, part(bytes, 8, FRAME_HEAD_BYTES)?);
        if checksum != u32_at(bytes, 4)? {
            return Err(Bad::Checksum);
        }
        let [code] = array::<1>(bytes, 12)?;
        let head = Self {
            length: u32_at(bytes, 0)?,
            kind: Kind::parse(code).ok_or(Bad::Kind)?,
            replica: ReplicaId::new(u64_at(bytes, 16)?),
            id: LogId {
                term: Term::new(u64_at(bytes, 24)?),
                index: RaftIndex::new(u64_at(bytes, 32)?),
            },
            payload_crc: u32_at(bytes, 8)?,
        };
        if head.len() < FRAME_HEAD_BYTES { Err(Bad::Length) } else { Ok(head) }
    }

    /// Returns the length of the frame with its head.
    pub(super) fn len(&self) -> usize {
        usize::try_from(self.length).unwrap_or(usize::MAX)
    }

    /// Returns the payload of the frame at the start of `bytes` after checking it.
    pub(super) fn payload<'a>(
        &self,
        bytes: &'a [u8],
        seed: Seed,
        position: u64,
    ) -> Result<&'a [u8], Bad> {
        let payload = part(bytes, FRAME_HEAD_BYTES, self.len())?;
        if crc32c::crc32c_append(seed.at(position), payload) != self.payload_crc {
            return Err(Bad::PayloadChecksum);
        }
        Ok(payload)
    }
}

/// Appends a frame that will lie at `position` of its file; returns its length.
pub(super) fn push_frame(
    buffer: &mut Vec<u8>,
    (seed, position): (Seed, u64),
    kind: Kind,
    (replica, id): (ReplicaId, LogId),
    payload: &[Bytes],
) -> u32 {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; FRAME_HEAD_BYTES]);
    payload.iter().for_each(|part| buffer.extend_from_slice(part));
    // An append of more than `PAYLOAD_BYTES_MAX` is refused before it comes here.
    let length = u32::try_from(buffer.len() - start).unwrap_or(u32::MAX);
    let written = buffer.get(start + FRAME_HEAD_BYTES..).unwrap_or_default();
    let payload_crc = crc32c::crc32c_append(seed.at(position), written);
    let mut head = [0; FRAME_HEAD_BYTES];
    put(&mut head, 0, &length.to_le_bytes());
    put(&mut head, 8, &payload_crc.to_le_bytes());
    put(&mut head, 12, &[kind.code()]);
    put(&mut head, 16, &replica.get().to_le_bytes());
    put(&mut head, 24, &id.term.get().to_le_bytes());
    put(&mut head, 32, &id.index.get().to_le_bytes());
    let (before, after) = (head.get(..4).unwrap_or_default(), head.get(8..).unwrap_or_default());
    let checksum = crc32c::crc32c_append(crc32c::crc32c_append(seed.at(position), before), after);
    put(&mut head, 4, &checksum.to_le_bytes());
    put(buffer, start, &head);
    length
}

/// Returns a vote's payload; its term lies in the frame's head.
pub(super) fn encode_vote(vote: &Vote) -> Bytes {
    let mut bytes = [0; VOTE_BYTES];
    put(&mut bytes, 0, &vote.voted_for.get().to_le_bytes());
    put(&mut bytes, 8, &[u8::from(vote.committed)]);
    Bytes::copy_from_slice(&bytes)
}

pub(super) fn parse_vote(term: Term, payload: &[u8]) -> Result<Vote, Bad> {
    if payload.len() != VOTE_BYTES {
        return Err(Bad::Length);
    }
    let voted_for = ReplicaId::new(u64_at(payload, 0)?);
    Ok(Vote { term, voted_for, committed: array::<1>(payload, 8)? != [0] })
}

/// Writes `bytes` at `at`, which the caller knows to be inside of `target`.
pub(super) fn put(target: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = target.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}
