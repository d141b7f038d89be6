//! Record batches: Kafka's RecordBatch v2 bytes, read without copying and written once.
//!
//! Accumulators fill a [`BatchBuilder`], the storage layer keeps and hands out [`Batch`]es, readers
//! iterate their [`Records`], the Kafka face checks foreign batches with [`validate`], and produce
//! chooses partitions with [`partition_for_key`] and [`StickyPartitioner`].
//!
//! Invariants:
//! - a batch in memory is shared by the write-ahead log, replication and readers and is never
//!   patched: its first [`HEAD_BYTES`] bytes (base offset, length, leader epoch; outside of the
//!   CRC) may hold anything, and what is true of them lies beside the bytes, in [`Batch`];
//! - no input makes a decoder panic, and none makes it allocate more than a small factor of the
//!   input or the caller's [`DecompressLimit`];
//! - iterating an uncompressed batch allocates nothing;
//! - no clock, no randomness, no file: time and random numbers are arguments.

mod arbitrary;
mod batch;
mod builder;
mod compression;
mod crc;
mod error;
#[cfg(test)]
mod golden;
mod header;
mod partitioner;
mod records;
mod sticky;
mod validate;
pub mod varint;

pub use arbitrary::decode_any;
pub use batch::Batch;
pub use builder::{
    BatchBuilder, BatchKind, NewHeader, NewRecord, Producer, encoded_len, rewrite_append_time,
    rewrite_max_timestamp,
};
pub use compression::{Compression, DecompressLimit, compress, decompress};
pub use crc::{crc32c, crc32c_append};
pub use error::{Error, ErrorKind, RecordFault};
pub use header::{Attributes, BatchHeader, HEAD_BYTES, HEADER_BYTES, stamp};
pub use partitioner::{jump_hash, murmur2, partition_for_key};
pub use records::{HeaderIter, Headers, Record, RecordIter, Records};
pub use sticky::StickyPartitioner;
pub use validate::{KeyRule, Rules, Summary, TimestampRule, validate};
