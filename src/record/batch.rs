//! A whole batch in shared memory, with the offsets that are true of it.

use bytes::Bytes;

use crate::record::header::batch_crc;
use crate::record::{
    BatchHeader, Compression, DecompressLimit, Error, HEAD_BYTES, HEADER_BYTES, Records,
    decompress, stamp,
};
use crate::types::{Offset, Timestamp};

/// A whole record batch in shared bytes. Clones share the bytes.
///
/// The first [`HEAD_BYTES`] bytes are not to be trusted: a batch is built before its offsets are
/// known and never patched afterwards, so base offset and leader epoch lie beside the bytes.
/// Whoever stores or sends the batch writes [`Batch::head`], then [`Batch::body`].
#[derive(Debug, Clone)]
pub struct Batch {
    bytes: Bytes,
    header: BatchHeader,
}

impl Batch {
    /// Wraps a batch whose base offset and leader epoch are known from elsewhere. The first 16
    /// bytes are not looked at; the length is that of `bytes`.
    ///
    /// # Errors
    /// [`Error`] when the header makes no sense. The CRC and the records are not looked at.
    pub fn new(bytes: Bytes, base_offset: Offset, leader_epoch: i32) -> Result<Self, Error> {
        // Checks that the size can be stamped, so that `head` cannot fail.
        stamp(bytes.len(), base_offset, leader_epoch)?;
        let header = BatchHeader::parse_unstamped(&bytes, base_offset, leader_epoch)?;
        Ok(Self { bytes, header })
    }

    /// Wraps a batch as it is stored, taking base offset and leader epoch from its own head.
    ///
    /// # Errors
    /// [`Error`] when the header makes no sense, [`Error::Truncated`] and [`Error::TrailingBytes`]
    /// when `bytes` is not exactly one batch. The CRC and the records are not looked at.
    pub fn from_stored(bytes: Bytes) -> Result<Self, Error> {
        let header = BatchHeader::parse(&bytes)?;
        let (need, have) = (header.total_bytes(), bytes.len());
        if have < need {
            return Err(Error::Truncated { need, have });
        }
        if have > need {
            return Err(Error::TrailingBytes(have - need));
        }
        Ok(Self { bytes, header })
    }

    /// Returns the header; its base offset and leader epoch are the true ones.
    pub const fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// Returns the offset of the first record.
    pub const fn base_offset(&self) -> Offset {
        self.header.base_offset
    }

    /// Returns the offset of the last record.
    pub const fn last_offset(&self) -> Offset {
        self.header.last_offset()
    }

    /// Returns the offset after the last record.
    pub const fn next_offset(&self) -> Offset {
        self.header.next_offset()
    }

    /// Returns the largest timestamp of the records, or their append time.
    pub const fn max_timestamp(&self) -> Timestamp {
        self.header.max_timestamp
    }

    /// Returns the number of records.
    pub const fn record_count(&self) -> u32 {
        self.header.record_count
    }

    /// Returns the bytes of the whole batch.
    pub const fn total_bytes(&self) -> usize {
        self.header.total_bytes()
    }

    /// Returns the shared bytes, whose first 16 are not to be trusted.
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Returns the 16 bytes to write in front of [`Batch::body`].
    pub fn head(&self) -> [u8; HEAD_BYTES] {
        // The constructors have checked that the size can be stamped.
        stamp(self.bytes.len(), self.header.base_offset, self.header.leader_epoch)
            .unwrap_or([0; HEAD_BYTES])
    }

    /// Returns the bytes after the head.
    pub fn body(&self) -> &[u8] {
        self.bytes.get(HEAD_BYTES..).unwrap_or_default()
    }

    /// Checks the bytes against the header's CRC.
    ///
    /// # Errors
    /// [`Error::Crc`]: the batch is damaged and must not be served.
    pub fn verify_crc(&self) -> Result<(), Error> {
        let computed = batch_crc(&self.bytes);
        let stored = self.header.crc;
        if computed == stored { Ok(()) } else { Err(Error::Crc { stored, computed }) }
    }

    /// Makes the records readable: shares the bytes when they are not compressed, else decompresses
    /// them once.
    ///
    /// # Errors
    /// [`Error::TooLarge`] when they would pass `limit`, [`Error::Codec`] when they are damaged.
    pub fn records(&self, limit: DecompressLimit) -> Result<Records, Error> {
        let bytes = match self.header.attributes.compression {
            Compression::None => self.bytes.slice(HEADER_BYTES..),
            codec => {
                let compressed = self.bytes.get(HEADER_BYTES..).unwrap_or_default();
                Bytes::from(decompress(codec, compressed, limit)?)
            }
        };
        Ok(Records::new(bytes, &self.header))
    }
}
