//! Tests of the segment store over a simulated disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::clock::ManualClock;
use crate::record::{BatchBuilder, NewRecord};
use crate::storage::fs::sim::SimFs;
use crate::storage::fs::{Fs, Open, SharedFs, read_file};
use crate::storage::log::{
    Config, LogReader, PartitionLog, PartitionState, ReadError, Store, sync_all,
};
use crate::types::{
    Offset, PartitionId, Timestamp, TimestampType, TopicConfig, TopicId, TopicPartition,
};

mod durability;
mod model;
mod reading;
mod retention;

pub(super) const PARTITIONS: &str = "/data/partitions";

/// A store over a disk, with little memory and few descriptors unless told otherwise.
pub(super) fn store_with(fs: SharedFs, config: Config) -> Arc<Store> {
    let clock = ManualClock::at(Timestamp::from_millis(0));
    Store::new(fs, PathBuf::from(PARTITIONS), config, clock)
}

/// A disk with a durable data directory, as the server makes it before anything else.
pub(super) fn disk() -> SimFs {
    let fs = SimFs::new();
    fs.create_dir_all(Path::new("/data")).unwrap();
    fs.sync_dir(Path::new("/")).unwrap();
    fs
}

pub(super) fn store(fs: &SimFs) -> Arc<Store> {
    store_with(fs.shared(), Config::default())
}

/// Keeps nothing in memory that is in a file, so that reads go to the disk.
pub(super) const NO_CACHE: Config = Config {
    tail_cache_bytes: 0,
    open_files: 4,
    index_interval_bytes: 512,
    index_bytes_max: 10 << 20,
};

pub(super) fn partition(number: u32) -> TopicPartition {
    let topic = TopicId::from_bytes([7; 16]);
    TopicPartition { topic, partition: PartitionId::new(number).unwrap() }
}

pub(super) fn directory(number: u32) -> PathBuf {
    super::names::partition_dir(Path::new(PARTITIONS), partition(number))
}

pub(super) fn config(entries: &[(&str, &str)]) -> TopicConfig {
    let mut config = TopicConfig::default();
    entries.iter().for_each(|(name, value)| config.set(name, value).unwrap());
    config
}

/// The smallest segments that a topic can have: 64 KiB.
pub(super) fn small_segments() -> TopicConfig {
    config(&[("segment.bytes", "65536")])
}

/// A batch with a record of `bytes` for each timestamp; `tag` makes its content its own.
pub(super) fn batch(tag: u64, timestamps: &[i64], bytes: usize) -> Bytes {
    let mut builder = BatchBuilder::new(1024);
    for timestamp in timestamps {
        let value: Vec<u8> = tag.to_be_bytes().iter().copied().cycle().take(bytes.max(8)).collect();
        let record = NewRecord {
            timestamp: Timestamp::from_millis(*timestamp),
            key: None,
            value: Some(&value),
            headers: &[],
        };
        builder.push(&record).unwrap();
    }
    builder.seal(TimestampType::CreateTime)
}

pub(super) fn offset(raw: i64) -> Offset {
    Offset::new(raw).unwrap()
}

/// Appends, publishes and flushes one-record batches of about `bytes`.
pub(super) fn fill(log: &mut PartitionLog, tags: std::ops::Range<u64>, bytes: usize) {
    for tag in tags {
        log.append(batch(tag, &[i64::try_from(tag).unwrap()], bytes), 1).unwrap();
    }
    log.publish();
    log.flush().unwrap();
}

/// Makes a log durable and returns what a checkpoint would record.
pub(super) fn checkpoint(log: &mut PartitionLog) -> PartitionState {
    log.flush().unwrap();
    let state = log.state();
    sync_all(&log.sync_targets()).unwrap();
    state
}

/// A record as the tests compare it.
pub(super) type Seen = (i64, i64, Vec<u8>);

/// Reads everything from the log start on; damaged ranges are returned apart.
pub(super) fn read_all(reader: &LogReader, max_bytes: usize) -> (Vec<Seen>, Vec<(i64, i64)>) {
    let (mut seen, mut damaged) = (Vec::new(), Vec::new());
    let start = reader.log_start();
    let mut from = start;
    loop {
        let chunk = match reader.read(from, max_bytes) {
            Err(ReadError::Damaged { from: first, to }) => {
                assert!(first <= from && from < to, "{first:?} {from:?} {to:?}");
                damaged.push((first.get(), to.get()));
                from = to;
                continue;
            }
            read => read.unwrap(),
        };
        if chunk.batches.is_empty() {
            assert_eq!(chunk.next, reader.log_end());
            return (seen, damaged);
        }
        assert!(chunk.batches[0].next_offset() > from, "a batch that was not asked for");
        for batch in &chunk.batches {
            batch.verify_crc().unwrap();
            let records = batch.records(crate::record::DecompressLimit::new(1 << 20)).unwrap();
            for record in &records {
                let record = record.unwrap();
                if record.offset >= start && record.offset >= from {
                    let value = record.value.unwrap().to_vec();
                    seen.push((record.offset.get(), record.timestamp.as_millis(), value));
                }
            }
        }
        assert!(chunk.next > from, "a read that gets nowhere");
        from = chunk.next;
    }
}

pub(super) fn file(fs: &SimFs, path: &Path) -> Vec<u8> {
    read_file(fs, path, u64::MAX).unwrap()
}

/// Overwrites a part of a file, as a failing disk does.
pub(super) fn overwrite(fs: &SimFs, path: &Path, position: usize, bytes: &[u8]) {
    let file = fs.open(path, Open::Write).unwrap();
    file.write_all_at(&[std::io::IoSlice::new(bytes)], position.try_into().unwrap()).unwrap();
}

pub(super) fn set_len(fs: &SimFs, path: &Path, len: u64) {
    fs.open(path, Open::Write).unwrap().set_len(len).unwrap();
}
