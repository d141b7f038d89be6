//! The codecs of a batch's records, with a bound on what they may put out.
//!
//! Kafka's variants: gzip with any number of members, Snappy in Xerial framing (read also as one
//! raw block, which some clients write), one LZ4 frame, zstd frames.
//!
//! Invariant: decompressing allocates at most the limit for its output, whatever the input claims,
//! plus the codec's own bounded working memory (LZ4: 12 MiB, of two blocks of 4 MiB and one to
//! read; gzip and zstd: well below 1 MiB).

use std::fmt;
use std::io::{self, Read, Write};

use zstd::zstd_safe::{self, DCtx};

use crate::record::Error;

/// Codec of a batch's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compression {
    /// As they are.
    #[default]
    None,
    /// Gzip (RFC 1952).
    Gzip,
    /// Snappy.
    Snappy,
    /// LZ4 frame format.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// Every codec, in the order of their codes.
    pub const ALL: [Self; 5] = [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    /// Returns the codec with a code of the attributes' bits 0 to 2.
    ///
    /// # Errors
    /// [`Error::UnknownCodec`].
    pub const fn from_code(code: u8) -> Result<Self, Error> {
        match code {
            0 => Ok(Self::None),
            1 => Ok(Self::Gzip),
            2 => Ok(Self::Snappy),
            3 => Ok(Self::Lz4),
            4 => Ok(Self::Zstd),
            unknown => Err(Error::UnknownCodec(unknown)),
        }
    }

    /// Returns the code, 0 to 4.
    pub const fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Gzip => 1,
            Self::Snappy => 2,
            Self::Lz4 => 3,
            Self::Zstd => 4,
        }
    }

    /// Returns the name that Kafka's configurations use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Most bytes that a decompression may put out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecompressLimit(usize);

impl DecompressLimit {
    /// Wraps a number of bytes.
    pub const fn new(bytes: usize) -> Self {
        Self(bytes)
    }

    /// Returns the number of bytes.
    pub const fn bytes(self) -> usize {
        self.0
    }
}

/// Level 1 packs records nearly as well as the default 3 and is a quarter faster.
const ZSTD_LEVEL: i32 = 1;

/// First output buffer when nothing tells the size.
const OUTPUT_BYTES_MIN: usize = 4096;

/// Snappy's densest element, a copy, makes 64 bytes of 3. An output that claims more is a lie.
const SNAPPY_RATIO_MAX: usize = 22;

const XERIAL_MAGIC: [u8; 8] = *b"\x82SNAPPY\0";

/// Magic, then version and oldest compatible version, both 1.
const XERIAL_HEADER: [u8; 16] = *b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01";

/// Input bytes of one Xerial block, as Kafka's writer cuts them.
const XERIAL_BLOCK_BYTES: usize = 32 * 1024;

const LZ4_MAGIC: [u8; 4] = 0x184D_2204_u32.to_le_bytes();

const ZSTD_MAGIC: [u8; 4] = zstd_safe::MAGICNUMBER.to_le_bytes();

/// `ZSTD_error_dstSize_tooSmall`, negated as zstd returns it.
const ZSTD_OUTPUT_TOO_SMALL: usize = 70_usize.wrapping_neg();

/// Compresses `data`.
///
/// # Errors
/// [`Error::Codec`] when the codec fails, which takes more than 4 GiB of input.
pub fn compress(codec: Compression, data: &[u8]) -> Result<Vec<u8>, Error> {
    match codec {
        Compression::None => Ok(data.to_vec()),
        Compression::Gzip => gzip(data),
        Compression::Snappy => snappy(data),
        Compression::Lz4 => lz4(data),
        Compression::Zstd => zstd::bulk::compress(data, ZSTD_LEVEL),
    }
    .map_err(|source| Error::Codec { codec, source })
}

/// Decompresses `data`, which must be exactly what the codec wrote.
///
/// # Errors
/// [`Error::TooLarge`] when the output would pass `limit`, [`Error::Codec`] when `data` is damaged.
pub fn decompress(
    codec: Compression,
    data: &[u8],
    limit: DecompressLimit,
) -> Result<Vec<u8>, Error> {
    let limit = limit.bytes();
    match codec {
        Compression::None if data.len() > limit => Err(Failure::TooLarge),
        Compression::None => Ok(data.to_vec()),
        Compression::Gzip => read_capped(flate2::bufread::MultiGzDecoder::new(data), limit),
        Compression::Snappy => unsnappy(data, limit),
        Compression::Lz4 => unlz4(data, limit),
        Compression::Zstd => unzstd(data, limit),
    }
    .map_err(|failure| match failure {
        Failure::TooLarge => Error::TooLarge { limit },
        Failure::Codec(source) => Error::Codec { codec, source },
    })
}

/// Why a decompression stopped.
enum Failure {
    TooLarge,
    Codec(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Codec(error)
    }
}

impl From<snap::Error> for Failure {
    fn from(error: snap::Error) -> Self {
        Self::Codec(error.into())
    }
}

fn damaged(what: &'static str) -> Failure {
    Failure::Codec(io::Error::new(io::ErrorKind::InvalidData, what))
}

fn gzip(data: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(data)?;
    encoder.finish()
}

fn lz4(data: &[u8]) -> io::Result<Vec<u8>> {
    use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
    // What Kafka's own writer makes: its reader knows only independent blocks.
    let info = FrameInfo::new().block_size(BlockSize::Max64KB).block_mode(BlockMode::Independent);
    let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
    encoder.write_all(data)?;
    Ok(encoder.finish()?)
}

fn unlz4(data: &[u8], limit: usize) -> Result<Vec<u8>, Failure> {
    // The decoder also reads the legacy format, which Kafka never had.
    if !data.starts_with(&LZ4_MAGIC) {
        return Err(damaged("no lz4 frame"));
    }
    let mut decoder = lz4_flex::frame::FrameDecoder::new(data);
    let out = read_capped(&mut decoder, limit)?;
    if !decoder.get_ref().is_empty() {
        return Err(damaged("bytes follow the lz4 frame"));
    }
    Ok(out)
}

fn snappy(data: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = snap::raw::Encoder::new();
    let mut out = XERIAL_HEADER.to_vec();
    for block in data.chunks(XERIAL_BLOCK_BYTES) {
        let block = encoder.compress_vec(block)?;
        let length = u32::try_from(block.len()).map_err(io::Error::other)?;
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&block);
    }
    Ok(out)
}

fn unsnappy(data: &[u8], limit: usize) -> Result<Vec<u8>, Failure> {
    let mut out = Vec::new();
    if !data.starts_with(&XERIAL_MAGIC) {
        unsnappy_block(data, limit, &mut out)?;
        return Ok(out);
    }
    let mut rest = data.get(XERIAL_HEADER.len()..).ok_or_else(|| damaged("cut xerial header"))?;
    while !rest.is_empty() {
        let (length, blocks) =
            rest.split_first_chunk::<4>().ok_or_else(|| damaged("cut xerial block"))?;
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        let (block, blocks) =
            blocks.split_at_checked(length).ok_or_else(|| damaged("cut xerial block"))?;
        unsnappy_block(block, limit, &mut out)?;
        rest = blocks;
    }
    Ok(out)
}

/// Appends the output of one raw block to `out`, which may reach `limit` bytes.
fn unsnappy_block(block: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), Failure> {
    let from = out.len();
    let length = snap::raw::decompress_len(block)?;
    if length > limit.saturating_sub(from) {
        return Err(Failure::TooLarge);
    }
    if length > block.len().saturating_mul(SNAPPY_RATIO_MAX) {
        return Err(damaged("impossible snappy length"));
    }
    grow(out, from + length, limit);
    let target = out.get_mut(from..).unwrap_or_default();
    let written = snap::raw::Decoder::new().decompress(block, target)?;
    out.truncate(from + written);
    Ok(())
}

/// Decompresses into one buffer, so that zstd needs no window of its own, however large a window
/// the frame asks for. Where the frame does not tell the size it is found by trying; the tries
/// quadruple, so together they cost a third more than the last one.
fn unzstd(data: &[u8], limit: usize) -> Result<Vec<u8>, Failure> {
    check_zstd_frames(data)?;
    let mut context =
        DCtx::try_create().ok_or_else(|| Failure::Codec(io::ErrorKind::OutOfMemory.into()))?;
    let announced = zstd_safe::get_frame_content_size(data).ok().flatten();
    let mut room = match announced.map(usize::try_from) {
        Some(Ok(bytes)) if bytes <= limit => bytes,
        Some(_) => return Err(Failure::TooLarge),
        None => data.len().saturating_mul(4).max(OUTPUT_BYTES_MIN).min(limit),
    };
    loop {
        let mut out = Vec::with_capacity(room);
        match context.decompress(&mut out, data) {
            Ok(_) if out.len() > limit => return Err(Failure::TooLarge),
            Ok(_) => return Ok(out),
            Err(ZSTD_OUTPUT_TOO_SMALL) if room >= limit => return Err(Failure::TooLarge),
            Err(ZSTD_OUTPUT_TOO_SMALL) => {
                room = room.saturating_mul(4).max(OUTPUT_BYTES_MIN).min(limit);
            }
            Err(code) => return Err(zstd_failure(code)),
        }
    }
}

/// Lets only frames of the current format through: the library would also run its decoders of the
/// formats before 1.0, which Kafka never had.
fn check_zstd_frames(data: &[u8]) -> Result<(), Failure> {
    let mut rest = data;
    while !rest.is_empty() {
        if !rest.starts_with(&ZSTD_MAGIC) {
            return Err(damaged("no zstd frame"));
        }
        let bytes = zstd_safe::find_frame_compressed_size(rest).map_err(zstd_failure)?;
        // A frame has at least its magic, so every turn shortens the rest.
        rest = rest.get(bytes.max(ZSTD_MAGIC.len())..).unwrap_or_default();
    }
    Ok(())
}

fn zstd_failure(code: usize) -> Failure {
    io::Error::other(zstd_safe::get_error_name(code)).into()
}

/// Reads to the end, refusing to put out more than `limit` bytes. The buffer doubles and never has
/// more than `limit` bytes.
fn read_capped(mut reader: impl Read, limit: usize) -> Result<Vec<u8>, Failure> {
    let mut out = Vec::new();
    let mut filled = 0;
    loop {
        if filled == out.len() {
            if filled == limit {
                // Full: one more byte would be too much, the end is fine.
                return match read_some(&mut reader, &mut [0])? {
                    0 => Ok(out),
                    _ => Err(Failure::TooLarge),
                };
            }
            grow(&mut out, filled.saturating_mul(2).max(OUTPUT_BYTES_MIN).min(limit), limit);
        }
        let read = read_some(&mut reader, out.get_mut(filled..).unwrap_or_default())?;
        if read == 0 {
            out.truncate(filled);
            return Ok(out);
        }
        filled += read;
    }
}

fn read_some(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Lengthens `out` to `bytes`, with a capacity that doubles but does not pass `limit`.
fn grow(out: &mut Vec<u8>, bytes: usize, limit: usize) {
    if bytes > out.capacity() {
        let capacity = out.capacity().saturating_mul(2).min(limit).max(bytes);
        out.reserve_exact(capacity - out.len());
    }
    out.resize(bytes, 0);
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    const MIB: usize = 1 << 20;

    fn decompressed(codec: Compression, data: &[u8], limit: usize) -> Result<Vec<u8>, Error> {
        decompress(codec, data, DecompressLimit::new(limit))
    }

    fn is_too_large(result: &Result<Vec<u8>, Error>, at: usize) -> bool {
        matches!(result, Err(Error::TooLarge { limit }) if *limit == at)
    }

    #[test]
    fn codes_are_kafkas() {
        for (code, codec) in (0..).zip(Compression::ALL) {
            assert_eq!(codec.code(), code);
            assert_eq!(Compression::from_code(code).unwrap(), codec);
        }
        assert!(Compression::from_code(5).is_err());
    }

    #[test]
    fn the_limit_is_exact_and_bounds_what_is_allocated() {
        for bytes in [0, 1, 4095, 4096, 4097, 100_000] {
            let data: Vec<u8> = (0..251).cycle().take(bytes).collect();
            for codec in Compression::ALL {
                let packed = compress(codec, &data).unwrap();
                let out = decompressed(codec, &packed, bytes).unwrap();
                assert_eq!(out, data, "{codec} {bytes}");
                assert!(out.capacity() <= bytes.max(1), "{codec} {bytes}: {}", out.capacity());
                if bytes > 0 {
                    let result = decompressed(codec, &packed, bytes - 1);
                    assert!(is_too_large(&result, bytes - 1), "{codec} {bytes}: {result:?}");
                }
            }
        }
    }

    #[test]
    fn bombs_end_at_the_limit() {
        let zeros = vec![0; MIB];
        // zstd: 1 MiB of blocks that each repeat a byte 128 Ki times, 32 GiB in all.
        let mut zstd = [&0xfd2f_b528_u32.to_le_bytes()[..], &[0, 0x58]].concat();
        zstd.extend([2, 0, 0x10, 0].repeat(MIB / 4));
        zstd.extend([3, 0, 0x10, 0]);
        // gzip: members one after the other. LZ4: one frame's blocks again and again.
        let gzip = compress(Compression::Gzip, &zeros).unwrap().repeat(1000);
        let frame = compress(Compression::Lz4, &zeros).unwrap();
        let (head, blocks) = frame.split_at(7);
        let lz4 = [head, &blocks[..blocks.len() - 4].repeat(200)].concat();
        // Snappy: as the others, and a raw block that claims 4 GiB.
        let framed = compress(Compression::Snappy, &zeros).unwrap();
        let snappy = [&framed[..16], &framed[16..].repeat(20)].concat();
        for (codec, bomb) in [
            (Compression::Zstd, zstd),
            (Compression::Gzip, gzip),
            (Compression::Lz4, lz4),
            (Compression::Snappy, snappy),
            (Compression::Snappy, vec![0xff, 0xff, 0xff, 0xff, 0x0f]),
        ] {
            assert!(bomb.len() <= 2 * MIB, "{codec}");
            for limit in [0, 1000, 3 * MIB] {
                let result = decompressed(codec, &bomb, limit);
                assert!(is_too_large(&result, limit), "{codec} {limit}");
            }
        }
    }

    #[test]
    fn no_more_than_one_byte_past_the_limit_is_asked_for() {
        struct Endless<'a>(&'a Cell<usize>);
        impl Read for Endless<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0.set(self.0.get() + buffer.len());
                Ok(buffer.len())
            }
        }
        for limit in [0, 1, 4096, 10_000] {
            let asked = Cell::new(0);
            let result = read_capped(Endless(&asked), limit);
            assert!(matches!(result, Err(Failure::TooLarge)));
            assert_eq!(asked.get(), limit + 1);
        }
    }

    #[test]
    fn a_small_input_cannot_claim_a_large_output() {
        let snappy = [0x80, 0x80, 0x80, 0x10, 0];
        assert_eq!(snap::raw::decompress_len(&snappy).unwrap(), 32 * MIB);
        let mut out = Vec::new();
        let result = unsnappy_block(&snappy, 64 * MIB, &mut out);
        assert!(matches!(result, Err(Failure::Codec(_))));
        assert_eq!(out.capacity(), 0);
    }

    #[test]
    fn raw_snappy_blocks_are_read() {
        let raw = snap::raw::Encoder::new().compress_vec(b"hello hello hello").unwrap();
        let out = decompressed(Compression::Snappy, &raw, 100).unwrap();
        assert_eq!(out, b"hello hello hello");
    }

    #[test]
    fn gzip_members_are_read_one_after_the_other() {
        let members = [gzip(b"one ").unwrap(), gzip(b"two").unwrap()].concat();
        assert_eq!(decompressed(Compression::Gzip, &members, 100).unwrap(), b"one two");
    }

    #[test]
    fn zstd_frames_of_unknown_size_are_read() {
        let data = vec![7; 3 * MIB];
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(27).unwrap();
        encoder.write_all(&data).unwrap();
        let frame = encoder.finish().unwrap();
        assert_eq!(zstd_safe::get_frame_content_size(&frame).unwrap(), None);
        assert_eq!(decompressed(Compression::Zstd, &frame, 3 * MIB).unwrap(), data);
        assert!(is_too_large(&decompressed(Compression::Zstd, &frame, 3 * MIB - 1), 3 * MIB - 1));
    }

    #[test]
    fn zstd_frames_are_read_one_after_the_other_and_legacy_ones_are_not() {
        let frame = |data| zstd::bulk::compress(data, 1).unwrap();
        let two = [frame(b"one "), frame(&[b'2'; 9000])].concat();
        let out = decompressed(Compression::Zstd, &two, 9004).unwrap();
        assert!(out.starts_with(b"one 22") && out.len() == 9004);
        assert!(is_too_large(&decompressed(Compression::Zstd, &two, 9003), 9003));
        // An empty frame of format 0.7: magic, descriptor, window, end block.
        let legacy = [0x27, 0xb5, 0x2f, 0xfd, 0, 0x58, 0xc0, 0, 0];
        assert_eq!(zstd_safe::decompress(&mut Vec::with_capacity(10), &legacy), Ok(0));
        let result = decompressed(Compression::Zstd, &legacy, 100);
        assert!(matches!(result, Err(Error::Codec { .. })), "{result:?}");
    }

    #[test]
    fn legacy_lz4_is_not_read() {
        let block = lz4_flex::block::compress(b"some records");
        let length = u32::try_from(block.len()).unwrap().to_le_bytes();
        let legacy = [&0x184c_2102_u32.to_le_bytes(), &length, &block[..]].concat();
        let mut out = Vec::new();
        lz4_flex::frame::FrameDecoder::new(&legacy[..]).read_to_end(&mut out).unwrap();
        assert_eq!(out, b"some records", "the library reads it");
        let result = decompressed(Compression::Lz4, &legacy, 100);
        assert!(matches!(result, Err(Error::Codec { .. })), "{result:?}");
    }

    #[test]
    fn bytes_behind_the_end_are_refused() {
        for codec in [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
            let mut packed = compress(codec, b"some records").unwrap();
            packed.extend_from_slice(b"and more");
            let result = decompressed(codec, &packed, 1000);
            assert!(matches!(result, Err(Error::Codec { .. })), "{codec} {result:?}");
        }
    }

    proptest! {
        #[test]
        fn everything_survives_every_codec(
            noise in prop::collection::vec(any::<u8>(), 0..2000),
            times in 1_usize..60,
        ) {
            let data = noise.repeat(times);
            for codec in Compression::ALL {
                let packed = compress(codec, &data).unwrap();
                prop_assert_eq!(&decompressed(codec, &packed, data.len()).unwrap(), &data);
            }
        }
    }
}
