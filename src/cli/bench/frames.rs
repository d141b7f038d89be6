//! WebSocket frames as a load generator needs them: whole when they are short or unknown, and only
//! their beginning when they carry records, of which nobody looks at more.
//!
//! Invariants:
//! - a frame that lies whole in what was read is not copied; of one that does not, at most
//!   [`WHOLE_BYTES_MAX`] are kept, and [`RECORDS_BYTES_KEPT`] when it carries records;
//! - what comes in pieces is the same as what comes at once, wherever it is cut.

use std::io::Cursor;

use anyhow::{Context, bail, ensure};
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// What frames with records begin with.
pub(super) const RECORDS: &[u8] = b"{\"type\":\"records\",";

/// How much of a frame with records is kept: all of it up to the first record's value.
pub(super) const RECORDS_BYTES_KEPT: usize = 256;

/// Longest frame that is kept whole.
const WHOLE_BYTES_MAX: usize = 1024 * 1024;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A JSON object.
    Text,
    /// To be answered.
    Ping,
    /// The server has closed the connection.
    Close,
    /// Nothing that matters.
    Other,
}

/// A frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    pub(super) kind: Kind,
    /// All of it, or the beginning of a frame with records.
    pub(super) begin: &'a [u8],
    /// Bytes of all of it.
    pub(super) bytes: u64,
}

/// Finds frames in a stream of bytes.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// The beginning of a header, or of the frame that is under way.
    kept: Vec<u8>,
    open: Option<Open>,
}

/// A frame of which not everything has come.
#[derive(Debug, Clone, Copy)]
struct Open {
    kind: Kind,
    bytes: u64,
    missing: u64,
}

impl Frames {
    /// Takes bytes from the connection and hands over each frame that is complete.
    ///
    /// # Errors
    /// Those of `take`, and when the bytes are no frames of this protocol.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        mut take: impl FnMut(Frame<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        while !bytes.is_empty() {
            let Some(open) = self.open else {
                bytes = self.begin(bytes, &mut take)?;
                continue;
            };
            let come = usize::try_from(open.missing).unwrap_or(usize::MAX).min(bytes.len());
            let (piece, rest) = bytes.split_at(come);
            bytes = rest;
            self.keep(piece)?;
            let missing = open.missing - come as u64;
            self.open = Some(Open { missing, ..open });
            if missing == 0 {
                take(Frame { kind: open.kind, begin: &self.kept, bytes: open.bytes })?;
                self.open = None;
                // What is idle costs no memory, what is busy does not allocate.
                if self.kept.capacity() > RECORDS_BYTES_KEPT {
                    self.kept = Vec::new();
                }
                self.kept.clear();
            }
        }
        Ok(())
    }

    /// Takes a header, and the frame if it is there; returns what is behind.
    fn begin<'b>(
        &mut self,
        bytes: &'b [u8],
        take: &mut impl FnMut(Frame<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<&'b [u8]> {
        if !self.kept.is_empty() {
            return self.begin_cut(bytes, take);
        }
        let Some((open, at)) = header(bytes)? else {
            self.kept.extend_from_slice(bytes);
            return Ok(&[]);
        };
        let rest = bytes.get(at..).unwrap_or_default();
        let whole =
            usize::try_from(open.bytes).ok().and_then(|length| rest.split_at_checked(length));
        match whole {
            Some((begin, rest)) => {
                take(Frame { kind: open.kind, begin, bytes: open.bytes })?;
                Ok(rest)
            }
            None => {
                self.open = Some(open);
                Ok(rest)
            }
        }
    }

    /// Completes a header that was cut, byte by byte.
    fn begin_cut<'b>(
        &mut self,
        bytes: &'b [u8],
        take: &mut impl FnMut(Frame<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<&'b [u8]> {
        let Some((first, rest)) = bytes.split_first() else { return Ok(bytes) };
        self.kept.push(*first);
        let Some((open, _)) = header(&self.kept)? else { return Ok(rest) };
        self.kept.clear();
        if open.bytes == 0 {
            take(Frame { kind: open.kind, begin: &[], bytes: 0 })?;
        } else {
            self.open = Some(open);
        }
        Ok(rest)
    }

    fn keep(&mut self, mut piece: &[u8]) -> anyhow::Result<()> {
        while !piece.is_empty() {
            let limit = match self.kept.len().checked_sub(RECORDS.len()) {
                None => RECORDS.len(),
                Some(_) if self.kept.starts_with(RECORDS) => RECORDS_BYTES_KEPT,
                Some(_) => WHOLE_BYTES_MAX,
            };
            let room = limit.saturating_sub(self.kept.len());
            if room == 0 {
                ensure!(limit < WHOLE_BYTES_MAX, "a frame of the server is too long");
                return Ok(());
            }
            let (kept, rest) = piece.split_at(room.min(piece.len()));
            self.kept.extend_from_slice(kept);
            piece = rest;
        }
        Ok(())
    }
}

/// Reads a header; returns the frame that it announces and where that begins.
fn header(bytes: &[u8]) -> anyhow::Result<Option<(Open, usize)>> {
    let mut cursor = Cursor::new(bytes);
    let parsed = FrameHeader::parse(&mut cursor).context("the server's frames make no sense")?;
    let Some((header, length)) = parsed else { return Ok(None) };
    let kind = match header.opcode {
        OpCode::Data(Data::Text) => Kind::Text,
        OpCode::Control(Control::Ping) => Kind::Ping,
        OpCode::Control(Control::Close) => Kind::Close,
        OpCode::Control(_) => Kind::Other,
        OpCode::Data(_) => bail!("the server sent a frame that is not text"),
    };
    ensure!(header.is_final, "the server sent a frame in fragments");
    ensure!(header.mask.is_none(), "the server sent a masked frame");
    let open = Open { kind, bytes: length, missing: length };
    Ok(Some((open, usize::try_from(cursor.position()).unwrap_or(usize::MAX))))
}

/// Appends a frame to the server.
pub(super) fn push_frame(out: &mut Vec<u8>, opcode: OpCode, content: &[u8]) -> anyhow::Result<()> {
    let mask: [u8; 4] = rand::random();
    let header = FrameHeader { opcode, mask: Some(mask), ..FrameHeader::default() };
    header.format(content.len() as u64, out)?;
    out.extend(content.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn from_server(opcode: OpCode, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let header = FrameHeader { opcode, ..FrameHeader::default() };
        header.format(content.len() as u64, &mut out).unwrap();
        out.extend_from_slice(content);
        out
    }

    fn records(bytes: usize) -> Vec<u8> {
        let mut content = RECORDS.to_vec();
        content.resize(RECORDS.len() + bytes, b'7');
        content
    }

    #[test]
    fn a_frame_to_the_server_is_what_it_reads() {
        for length in [0, 1, 125, 126, 70_000] {
            let content = vec![b'x'; length];
            let mut out = Vec::new();
            push_frame(&mut out, OpCode::Data(Data::Text), &content).unwrap();
            let mut cursor = Cursor::new(&out);
            let (header, announced) = FrameHeader::parse(&mut cursor).unwrap().unwrap();
            let mask = header.mask.unwrap();
            let at = usize::try_from(cursor.position()).unwrap();
            let unmasked: Vec<u8> =
                out[at..].iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
            assert_eq!((announced, unmasked), (length as u64, content));
        }
    }

    #[test]
    fn what_cannot_be_understood_is_refused() {
        let mut masked = Vec::new();
        push_frame(&mut masked, OpCode::Data(Data::Text), b"{}").unwrap();
        let fragment = vec![0x01, 1, b'{'];
        let binary = from_server(OpCode::Data(Data::Binary), b"x");
        let long = from_server(OpCode::Data(Data::Text), &vec![b'x'; WHOLE_BYTES_MAX + 1]);
        for bytes in [masked, fragment, binary] {
            assert!(Frames::default().feed(&bytes, |_| Ok(())).is_err(), "{bytes:?}");
        }
        // Only what lies in one piece may be longer: it costs no memory.
        let (first, second) = long.split_at(100);
        let mut frames = Frames::default();
        frames.feed(first, |_| Ok(())).unwrap();
        assert!(frames.feed(second, |_| Ok(())).is_err());
    }

    #[test]
    fn of_records_that_come_in_pieces_only_the_beginning_is_kept() {
        let bytes = from_server(OpCode::Data(Data::Text), &records(200_000));
        let mut frames = Frames::default();
        let mut seen = Vec::new();
        for piece in bytes.chunks(10_000) {
            frames
                .feed(piece, |frame| {
                    seen.push((frame.begin.len(), frame.bytes));
                    Ok(())
                })
                .unwrap();
            assert!(frames.kept.len() <= RECORDS_BYTES_KEPT);
        }
        assert_eq!(seen, [(RECORDS_BYTES_KEPT, (RECORDS.len() + 200_000) as u64)]);
    }

    proptest! {
        #[test]
        fn frames_are_the_same_wherever_the_stream_is_cut(
            lengths in prop::collection::vec(
                (prop_oneof![Just(0usize), 0usize..400], any::<bool>()), 1..8),
            cuts in prop::collection::vec(1usize..90, 1..40),
        ) {
            let mut stream = Vec::new();
            let mut expected = Vec::new();
            for (length, are_records) in lengths {
                let content = if are_records { records(length) } else { vec![b'y'; length] };
                stream.extend(from_server(OpCode::Data(Data::Text), &content));
                expected.push(content);
            }
            let mut frames = Frames::default();
            let mut seen = Vec::new();
            let mut rest = stream.as_slice();
            let mut cuts = cuts.iter().cycle();
            while !rest.is_empty() {
                let (piece, behind) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                rest = behind;
                frames.feed(piece, |frame| {
                    seen.push((frame.begin.to_vec(), frame.bytes));
                    Ok(())
                }).unwrap();
            }
            prop_assert_eq!(seen.len(), expected.len());
            for ((begin, bytes), content) in seen.iter().zip(&expected) {
                prop_assert_eq!(*bytes, content.len() as u64);
                let kept = content.len().min(begin.len());
                prop_assert_eq!(begin, &content[..kept]);
                prop_assert!(kept == content.len() || kept == RECORDS_BYTES_KEPT);
            }
        }
    }
}
