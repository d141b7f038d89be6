//! What can be wrong with a batch's bytes.

use crate::record::Compression;
use crate::types::Timestamp;

/// Why bytes are not an acceptable record batch, or a batch could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There are fewer bytes than a header, or than the header's length says.
    #[error("{have} bytes where a record batch needs {need}")]
    Truncated {
        /// Bytes needed.
        need: usize,
        /// Bytes there.
        have: usize,
    },
    /// The length in the header is impossible.
    #[error("a record batch cannot have the length {0}")]
    Length(i64),
    /// More bytes follow the batch where one batch is expected.
    #[error("{0} bytes follow the record batch")]
    TrailingBytes(usize),
    /// The format is not version 2.
    #[error("record batch magic {0} is not 2")]
    Magic(i8),
    /// The checksum does not fit the bytes.
    #[error("record batch has crc {stored:08x}, its bytes have {computed:08x}")]
    Crc {
        /// The header's CRC.
        stored: u32,
        /// The bytes' CRC.
        computed: u32,
    },
    /// The codec number has no meaning.
    #[error("compression codec {0} is unknown")]
    UnknownCodec(u8),
    /// Base offset and last offset delta are not offsets.
    #[error("a record batch cannot have offset {base} and last offset delta {delta}")]
    Offsets {
        /// The base offset.
        base: i64,
        /// The last offset delta.
        delta: i32,
    },
    /// The record count is negative, or does not fit the offsets of a batch made by a client.
    #[error("record count {count} does not fit last offset delta {delta}")]
    RecordCount {
        /// The record count.
        count: i32,
        /// The last offset delta.
        delta: i32,
    },
    /// A record cannot be decoded, or breaks a rule.
    #[error("record {index} of the batch: {fault}")]
    Record {
        /// The record's position in the batch, from 0.
        index: u32,
        /// What is wrong with it.
        #[source]
        fault: RecordFault,
    },
    /// The output of a decompression would pass its limit.
    #[error("more than {limit} bytes when decompressed")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The compressed bytes are damaged, or compressing failed.
    #[error("{codec} codec failed")]
    Codec {
        /// The codec.
        codec: Compression,
        /// What it said.
        #[source]
        source: std::io::Error,
    },
    /// A client's batch is larger than the topic allows, or than a batch can be.
    #[error("record batch of {bytes} bytes, at most {limit} are allowed")]
    BatchTooLarge {
        /// The batch's size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A client's batch does not fit in a segment.
    #[error("record batch of {bytes} bytes in segments of {limit}")]
    SegmentTooSmall {
        /// The batch's size.
        bytes: usize,
        /// The segment's size.
        limit: u64,
    },
    /// A client's batch claims to be a control batch.
    #[error("clients do not write control batches")]
    Control,
    /// A client's batch names a producer without a sequence.
    #[error("producer {0} without a base sequence")]
    Sequence(i64),
    /// A client's batch claims to carry the server's append time.
    #[error("clients do not write append times")]
    AppendTime,
}

/// What is wrong with one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    /// The bytes end within the record.
    #[error("it is cut off")]
    Truncated,
    /// A variable-length number is too long, or a length is negative where none may be.
    #[error("it has an impossible number")]
    Number,
    /// The fields do not fill the record's length exactly.
    #[error("its fields do not fill its length")]
    Length,
    /// The offset does not follow the one before, or passes the batch's last.
    #[error("its offset is out of order")]
    Offset,
    /// A header's name is not UTF-8.
    #[error("a header name is not UTF-8")]
    HeaderName,
    /// Bytes follow the last record.
    #[error("bytes follow the last record")]
    TrailingBytes,
    /// The topic needs keys and this record has none.
    #[error("it has no key")]
    NoKey,
    /// The timestamp is outside of what the topic accepts.
    #[error("timestamp {0} is outside of the range that the topic accepts")]
    Timestamp(Timestamp),
}

/// The classes of errors that a client can tell apart, named after Kafka's error codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// `CORRUPT_MESSAGE` (2): not the bytes that the sender meant.
    CorruptMessage,
    /// `INVALID_RECORD` (87): intact, and against the rules.
    InvalidRecord,
    /// `INVALID_TIMESTAMP` (32).
    InvalidTimestamp,
    /// `MESSAGE_TOO_LARGE` (10).
    MessageTooLarge,
    /// `RECORD_LIST_TOO_LARGE` (18).
    RecordListTooLarge,
    /// `UNSUPPORTED_COMPRESSION_TYPE` (76).
    UnsupportedCompressionType,
}

impl Error {
    /// Returns the class of the error, for the faces that answer with Kafka's error codes.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Truncated { .. } | Self::Length(_) | Self::Magic(_) | Self::Crc { .. } => {
                ErrorKind::CorruptMessage
            }
            Self::Record { fault: RecordFault::Timestamp(_), .. } | Self::AppendTime => {
                ErrorKind::InvalidTimestamp
            }
            Self::TrailingBytes(_)
            | Self::Offsets { .. }
            | Self::RecordCount { .. }
            | Self::Record { .. }
            | Self::Codec { .. }
            | Self::Control
            | Self::Sequence(_) => ErrorKind::InvalidRecord,
            Self::TooLarge { .. } | Self::BatchTooLarge { .. } => ErrorKind::MessageTooLarge,
            Self::SegmentTooSmall { .. } => ErrorKind::RecordListTooLarge,
            Self::UnknownCodec(_) => ErrorKind::UnsupportedCompressionType,
        }
    }
}
