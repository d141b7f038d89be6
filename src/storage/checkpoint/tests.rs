//! Checkpoint files over a simulated disk. (What they name is tested with the segments.)

use std::path::Path;

use bytes::Bytes;
use proptest::prelude::*;

use crate::storage::checkpoint::codec;
use crate::storage::checkpoint::{Changes, CheckpointStore, Damage, Error, LogId, ShardCheckpoint};
use crate::storage::fs::sim::{IO_FAILED, NO_DESCRIPTORS, NO_SPACE, Operation, SimFs};
use crate::storage::fs::{Fs, Open, read_file};
use crate::storage::log::{PartitionState, SegmentState};
use crate::types::{Offset, PartitionId, RaftIndex, Term, Timestamp, TopicId, TopicPartition};

const DIRECTORY: &str = "/data/shards/1";

/// A disk with a durable data directory.
fn disk() -> SimFs {
    let fs = SimFs::new();
    fs.create_dir_all(Path::new("/data")).unwrap();
    fs.sync_dir(Path::new("/")).unwrap();
    fs
}

fn open(fs: &SimFs) -> (CheckpointStore, Option<ShardCheckpoint>) {
    CheckpointStore::open(fs.shared(), Path::new(DIRECTORY)).unwrap()
}

fn damage(fs: &SimFs) -> Damage {
    match CheckpointStore::open(fs.shared(), Path::new(DIRECTORY)) {
        Err(Error::Damaged { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

fn id(number: u32) -> TopicPartition {
    let topic =
        TopicId::from_bytes(*b"\x01\x90\xa0\xb0\xc0\xd0\x7e\x0f\x80\x11\x22\x33\x44\x55\x66\x77");
    TopicPartition { topic, partition: PartitionId::new(number).unwrap() }
}

fn at(raw: i64) -> Offset {
    Offset::new(raw).unwrap()
}

fn grown(end: i64) -> PartitionState {
    PartitionState { log_start: at(0), end: at(end), ..PartitionState::default() }
}

fn changes(index: u64, changed: &[(u32, i64)], removed: &[u32]) -> Changes {
    Changes {
        applied: Some(LogId { term: Term::new(1), index: RaftIndex::new(index) }),
        membership: Bytes::from(format!("members at {index}")),
        shard_time: Timestamp::from_millis(i64::try_from(index).unwrap() * 10),
        extra: Bytes::from_static(b"extra"),
        changed: changed.iter().map(|(number, end)| (id(*number), grown(*end))).collect(),
        removed: removed.iter().map(|number| id(*number)).collect(),
    }
}

fn names(fs: &SimFs) -> Vec<String> {
    fs.list(Path::new(DIRECTORY)).unwrap().into_iter().map(|entry| entry.name).collect()
}

fn bytes_of(fs: &SimFs, name: &str) -> Vec<u8> {
    read_file(fs, &Path::new(DIRECTORY).join(name), 1 << 20).unwrap()
}

fn put(fs: &SimFs, name: &str, bytes: &[u8]) {
    let path = Path::new(DIRECTORY).join(name);
    let _ = fs.remove_file(&path);
    fs.create_dir_all(Path::new(DIRECTORY)).unwrap();
    let file = fs.open(&path, Open::CreateNew).unwrap();
    file.write_all_at(&[std::io::IoSlice::new(bytes)], 0).unwrap();
}

fn golden(name: &str) -> Vec<u8> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoint-v1");
    std::fs::read(directory.join(name)).unwrap()
}

/// The state that the golden files of version 1 describe: the base, then the delta.
fn golden_changes() -> [Changes; 2] {
    let segment = |base, len, crc, next| SegmentState {
        base: at(base),
        generation: 0,
        len,
        crc,
        sealed: false,
        next_offset: at(next),
        first_timestamp: Timestamp::from_millis(-1),
        max_timestamp: Timestamp::from_millis(-1),
    };
    let time = Timestamp::from_millis(1_700_000_000_005);
    let first = PartitionState {
        log_start: at(2),
        end: at(6),
        segments: vec![SegmentState {
            sealed: true,
            first_timestamp: time,
            max_timestamp: time,
            ..segment(0, 230, 0xa4f6_e6c0, 6)
        }],
        extra: Bytes::from_static(b"producers"),
    };
    let third = PartitionState {
        log_start: at(10),
        end: at(40),
        segments: vec![
            SegmentState {
                generation: 3,
                sealed: true,
                first_timestamp: Timestamp::from_millis(5),
                max_timestamp: Timestamp::from_millis(99),
                ..segment(10, 1000, 0xdead_beef, 30)
            },
            segment(30, 500, 0x0102_0304, 40),
        ],
        extra: Bytes::new(),
    };
    let second = PartitionState {
        log_start: at(0),
        end: at(7),
        segments: vec![SegmentState {
            first_timestamp: Timestamp::from_millis(8),
            max_timestamp: Timestamp::from_millis(9),
            ..segment(0, 300, 0x0a0b_0c0d, 7)
        }],
        extra: Bytes::from_static(b"x"),
    };
    let mut base = Changes {
        applied: Some(LogId { term: Term::new(3), index: RaftIndex::new(1234) }),
        membership: Bytes::from_static(b"members"),
        shard_time: Timestamp::from_millis(1_700_000_000_123),
        extra: Bytes::from_static(b"more"),
        ..Changes::default()
    };
    base.changed.extend((0..20).map(|number| (id(number), PartitionState::default())));
    base.changed.insert(id(0), first);
    base.changed.insert(id(2), third);
    let delta = Changes {
        applied: Some(LogId { term: Term::new(4), index: RaftIndex::new(1300) }),
        membership: Bytes::from_static(b"members2"),
        shard_time: Timestamp::from_millis(1_700_000_000_456),
        extra: Bytes::new(),
        changed: [(id(1), second)].into(),
        removed: vec![id(2)],
    };
    [base, delta]
}

#[test]
fn the_format_is_that_of_the_golden_files() {
    let [base, delta] = golden_changes();
    let fs = disk();
    put(&fs, "checkpoint", &golden("checkpoint"));
    put(&fs, "checkpoint.1", &golden("checkpoint.1"));
    let mut expected = ShardCheckpoint::default();
    expected.apply(base.clone());
    expected.apply(delta.clone());
    assert_eq!(open(&fs).1, Some(expected));

    let place = codec::Place { base: 5, delta: 0, previous_crc: 0 };
    let (bytes, crc) = codec::encode(place, &base, base.changed.iter());
    assert_eq!(bytes, golden("checkpoint"));
    let place = codec::Place { base: 5, delta: 1, previous_crc: crc };
    assert_eq!(codec::encode(place, &delta, delta.changed.iter()).0, golden("checkpoint.1"));
}

#[test]
fn what_was_saved_is_found_again_after_a_power_cut() {
    let fs = disk();
    let (mut store, found) = open(&fs);
    assert_eq!(found, None);
    let all: Vec<_> = (0..50).map(|number| (number, 0)).collect();
    store.save(&changes(1, &all, &[])).unwrap();
    for index in 2..300_u64 {
        let number = u32::try_from(index % 50).unwrap();
        let removed = if index % 7 == 0 { vec![(number + 1) % 50] } else { vec![] };
        let end = i64::try_from(index).unwrap();
        store.save(&changes(index, &[(number, end)], &removed)).unwrap();
        if index % 13 == 0 {
            let (_, found) = open(&fs.cut());
            assert_eq!(found.as_ref(), Some(store.current()));
        }
        if index % 31 == 0 {
            store = open(&fs).0;
        }
    }
}

#[test]
fn a_small_change_of_many_partitions_writes_little() {
    let fs = disk();
    let (mut store, _) = open(&fs);
    let all: Vec<_> = (0..10_000).map(|number| (number, 0)).collect();
    store.save(&changes(1, &all, &[])).unwrap();
    let base = fs.counters().bytes_written;
    assert!(base > 400_000);
    for index in 2..50 {
        store.save(&changes(index, &[(3, 5)], &[])).unwrap();
    }
    assert!(fs.counters().bytes_written - base < 20_000);
    assert_eq!(names(&fs).len(), 49);
}

#[test]
fn deltas_are_folded_into_a_base_before_they_outgrow_half_of_it_or_a_hundred() {
    let fs = disk();
    let (mut store, _) = open(&fs);
    let all: Vec<_> = (0..10_000).map(|number| (number, 0)).collect();
    store.save(&changes(1, &all, &[])).unwrap();
    for index in 2..=101 {
        store.save(&changes(index, &[(3, 5)], &[])).unwrap();
    }
    assert_eq!(names(&fs).len(), 101);
    store.save(&changes(102, &[(3, 6)], &[])).unwrap();
    assert_eq!(names(&fs), ["checkpoint"]);
    for index in 103..110 {
        store.save(&changes(index, &all[..1500], &[])).unwrap();
        let files = fs.list(Path::new(DIRECTORY)).unwrap();
        let base = files[0].len;
        assert!(files[1..].iter().map(|file| file.len).sum::<u64>() * 2 <= base);
    }
    assert!(names(&fs).len() > 1);
    assert_eq!(open(&fs).1.as_ref(), Some(store.current()));
}

/// Three saves: a base, a delta, and one that makes a new base and removes the delta.
fn three_saves(fs: &SimFs, steps: Option<u64>) -> (usize, Vec<ShardCheckpoint>) {
    let (mut store, _) = open(fs);
    let all: Vec<_> = (0..50).map(|number| (number, 0)).collect();
    let mut states = vec![ShardCheckpoint::default()];
    let saves = [
        changes(1, &all, &[]),
        changes(2, &[(7, 9)], &[8]),
        changes(3, &all[..40], &[45]),
        changes(4, &[(1, 77)], &[]),
    ];
    for save in &saves {
        let mut next = states.last().unwrap().clone();
        next.apply(save.clone());
        states.push(next);
    }
    if let Some(steps) = steps {
        fs.stop_after(steps);
    }
    let done = saves.iter().take_while(|save| store.save(save).is_ok()).count();
    (done, states)
}

#[test]
fn a_power_cut_anywhere_leaves_one_of_the_saved_states() {
    let mut steps = 0;
    loop {
        let fs = disk();
        let (done, states) = three_saves(&fs, Some(steps));
        let disks = (0..8).map(|seed| fs.cut_with_luck(seed)).chain([fs.cut()]);
        for disk in disks {
            let found = open(&disk).1.unwrap_or_default();
            let place = states.iter().position(|state| *state == found).unwrap();
            assert!(place == done || place == done + 1, "{place} after {done} saves");
            // And it can be saved to again.
            let (mut store, _) = open(&disk);
            store.save(&changes(99, &[(3, 3)], &[])).unwrap();
            assert_eq!(open(&disk.cut()).1.as_ref(), Some(store.current()));
        }
        if done == states.len() - 1 {
            break;
        }
        steps += 1;
    }
    assert!(steps > 15);
}

#[test]
fn a_full_disk_leaves_the_old_one_and_the_save_can_be_repeated() {
    let faults = [
        (Operation::Write, NO_SPACE),
        (Operation::Create, NO_SPACE),
        (Operation::Sync, NO_SPACE),
        (Operation::Create, NO_DESCRIPTORS),
        (Operation::OpenDir, NO_DESCRIPTORS),
    ];
    for (operation, errno) in faults {
        let fs = disk();
        let (mut store, _) = open(&fs);
        store.save(&changes(1, &[(1, 1)], &[])).unwrap();
        let old = store.current().clone();
        fs.fail_nth(operation, 0, errno);
        assert!(store.save(&changes(2, &[(1, 2)], &[])).unwrap_err().is_full());
        assert_eq!((store.current(), open(&fs.cut()).1.as_ref()), (&old, Some(&old)));
        store.save(&changes(2, &[(1, 2)], &[])).unwrap();
        assert_eq!(open(&fs.cut()).1.as_ref(), Some(store.current()));
    }
}

/// The new file is there then, and whether a power cut leaves it is unknown: it must not be taken
/// for a full disk and saved again beside deltas of the one before.
#[test]
fn a_directory_that_cannot_be_synced_for_lack_of_space_ends_the_checkpoints() {
    let fs = disk();
    let (mut store, _) = open(&fs);
    store.save(&changes(1, &[(1, 1)], &[])).unwrap();
    fs.fail_nth(Operation::SyncDir, 0, NO_SPACE);
    assert!(!store.save(&changes(2, &[(1, 2)], &[])).unwrap_err().is_full());
    assert!(matches!(store.save(&changes(3, &[], &[])), Err(Error::Failed)));
}

#[test]
fn after_a_failed_save_nothing_is_saved_any_more() {
    for operation in [Operation::Write, Operation::Sync, Operation::Rename, Operation::SyncDir] {
        let fs = disk();
        let (mut store, _) = open(&fs);
        store.save(&changes(1, &[(1, 1)], &[])).unwrap();
        fs.fail_nth(operation, 0, IO_FAILED);
        assert!(matches!(store.save(&changes(2, &[], &[])), Err(Error::Io { .. })));
        assert!(matches!(store.save(&changes(3, &[], &[])), Err(Error::Failed)));
    }
}

#[test]
fn a_changed_bit_or_a_lost_end_is_damage_and_never_an_older_checkpoint() {
    let fs = disk();
    three_saves(&fs, None);
    let files = ["checkpoint", "checkpoint.1"];
    assert_eq!(names(&fs), files);
    for name in files {
        let good = bytes_of(&fs, name);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            put(&fs, name, &bad);
            damage(&fs);
            put(&fs, name, &good[..at]);
            damage(&fs);
        }
        put(&fs, name, &good);
    }
    let (_, found) = open(&fs);
    assert!(found.is_some());
}

#[test]
fn a_missing_file_is_noticed_and_a_stale_one_is_removed() {
    let fs = disk();
    let (mut store, _) = open(&fs);
    let all: Vec<_> = (0..200).map(|number| (number, 0)).collect();
    store.save(&changes(1, &all, &[])).unwrap();
    store.save(&changes(2, &[(1, 1)], &[])).unwrap();
    store.save(&changes(3, &[(1, 2)], &[])).unwrap();
    let first = bytes_of(&fs, "checkpoint.1");
    fs.remove_file(&Path::new(DIRECTORY).join("checkpoint.1")).unwrap();
    assert_eq!(damage(&fs), Damage::Chain);
    put(&fs, "checkpoint.1", &first);
    let base = bytes_of(&fs, "checkpoint");
    fs.remove_file(&Path::new(DIRECTORY).join("checkpoint")).unwrap();
    assert_eq!(damage(&fs), Damage::Missing);
    put(&fs, "checkpoint", &first);
    assert_eq!(damage(&fs), Damage::Kind);
    put(&fs, "checkpoint", &base);

    let (mut store, _) = open(&fs);
    store.save(&changes(4, &all, &[])).unwrap();
    assert_eq!(names(&fs), ["checkpoint"]);
    put(&fs, "checkpoint.1", &first);
    put(&fs, "checkpoint.2.tmp", b"half");
    put(&fs, "notes", b"kept");
    assert_eq!(open(&fs).1.as_ref(), Some(store.current()));
    assert_eq!(names(&fs), ["checkpoint", "notes"]);
}

proptest! {
    #[test]
    fn any_bytes_are_a_checkpoint_or_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        at in 16..300_usize,
    ) {
        let _ = codec::decode(Bytes::from(bytes.clone()));
        // Behind a header that is right.
        let [base, _] = golden_changes();
        let place = codec::Place { base: 1, delta: 0, previous_crc: 0 };
        let (mut good, _) = codec::encode(place, &base, base.changed.iter());
        for (into, from) in good.iter_mut().skip(at).zip(&bytes) {
            *into = *from;
        }
        let crc = crate::record::crc32c(&good[16..]);
        good[12..16].copy_from_slice(&crc.to_be_bytes());
        let _ = codec::decode(Bytes::from(good));
    }
}
