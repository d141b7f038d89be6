//! Power cuts, damage, full and failing disks.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::storage::checkpoint::{Changes, CheckpointStore, LogId, ShardCheckpoint};
use crate::storage::fs::sim::{Fault, IO_FAILED, NO_DESCRIPTORS, NO_SPACE, Operation, Repeat};
use crate::storage::log::Error;
use crate::types::{RaftIndex, Term};

const GOLDEN: &str = "tests/data/segment-v1";
const FIRST: &str = "00000000000000000000";

fn log_path() -> PathBuf {
    directory(0).join(format!("{FIRST}.log"))
}

/// Every batch has a segment of its own when its time is two later than that of the one before.
fn segment_ms() -> TopicConfig {
    config(&[("segment.ms", "1")])
}

fn fresh(fs: &SimFs, topic: &TopicConfig) -> PartitionLog {
    PartitionLog::create(&store_with(fs.shared(), NO_CACHE), partition(0), topic)
}

fn reopen(fs: &SimFs, state: &PartitionState) -> PartitionLog {
    let store = store_with(fs.shared(), NO_CACHE);
    PartitionLog::open(&store, partition(0), &segment_ms(), state).unwrap()
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(GOLDEN).join(name)).unwrap()
}

/// The golden files hold the two batches of Kafka's that `record` tests as well, and the indexes
/// that belong to them at an interval of 0. They are of version 1 and stay as they are.
#[test]
fn files_are_kafkas_byte_for_byte() {
    let log_bytes = golden(&format!("{FIRST}.log"));
    let fs = disk();
    let config = Config { index_interval_bytes: 0, tail_cache_bytes: 0, ..Config::default() };
    let store = store_with(fs.shared(), config);
    let mut log = PartitionLog::create(&store, partition(0), &segment_ms());
    for bytes in log_bytes.chunks(log_bytes.len() / 2) {
        let mut unstamped = bytes.to_vec();
        unstamped[..16].fill(0);
        log.append(unstamped.into(), 7).unwrap();
    }
    log.append(batch(0, &[i64::MAX / 2], 10), 7).unwrap();
    log.publish();
    let state = checkpoint(&mut log);
    for kind in ["log", "index", "timeindex"] {
        let name = format!("{FIRST}.{kind}");
        assert_eq!(file(&fs, &directory(0).join(&name)), golden(&name), "{name}");
    }
    assert_eq!(state.segments[0].crc, 0xa4f6_e6c0);
    assert_eq!(log.reader().read(offset(4), 1).unwrap().next, offset(6));
}

#[test]
fn an_active_file_is_cut_back_to_the_checkpoint_from_any_length() {
    let fs = disk();
    let mut log = fresh(&fs, &TopicConfig::default());
    fill(&mut log, 0..5, 30);
    let state = checkpoint(&mut log);
    let all = read_all(&log.reader(), 100).0;
    fill(&mut log, 5..8, 30);
    drop(log);
    let (recorded, full) = (state.segments[0].len, file(&fs, &log_path()));
    for len in recorded..=u64::try_from(full.len()).unwrap() {
        for garbage in [false, true] {
            overwrite(&fs, &log_path(), 0, &full);
            set_len(&fs, &log_path(), len);
            if garbage {
                let from = usize::try_from(recorded).unwrap();
                overwrite(&fs, &log_path(), from, &vec![0xa5; full.len() - from]);
            }
            let store = store_with(fs.shared(), NO_CACHE);
            let topic = TopicConfig::default();
            let mut log = PartitionLog::open(&store, partition(0), &topic, &state).unwrap();
            assert_eq!(file(&fs, &log_path()).len(), usize::try_from(recorded).unwrap());
            assert_eq!(read_all(&log.reader(), 100), (all.clone(), vec![]));
            fill(&mut log, 5..8, 30);
            assert_eq!(file(&fs, &log_path()), full);
            assert_eq!(read_all(&log.reader(), 100).0.len(), 8);
        }
    }
}

#[test]
fn a_file_shorter_than_recorded_is_damage_and_is_never_padded() {
    // The first file with five batches, active or sealed by a batch behind it.
    let make = |last: Option<i64>| {
        let fs = disk();
        let mut log = fresh(&fs, &segment_ms());
        for time in [1; 5].into_iter().chain(last) {
            log.append(batch(0, &[time], 30), 1).unwrap();
        }
        log.publish();
        let state = checkpoint(&mut log);
        (fs, state)
    };
    let (fs, _) = make(None);
    let full = file(&fs, &log_path()).len();
    for len in 0..full {
        let whole = i64::try_from(len / (full / 5)).unwrap();
        for last in [None, Some(100)] {
            let (fs, state) = make(last);
            assert_eq!(state.segments[0].sealed, last.is_some());
            set_len(&fs, &log_path(), u64::try_from(len).unwrap());
            let mut log = reopen(&fs, &state);
            let damaged = log.reader().damaged_ranges();
            assert_eq!(damaged.len(), 1);
            assert_eq!((damaged[0].from, damaged[0].to), (offset(whole), offset(5)));
            let (seen, found) = read_all(&log.reader(), 1);
            assert_eq!(found, [(whole, 5)]);
            assert_eq!(i64::try_from(seen.len()).unwrap(), whole + state.end.get() - 5);

            fill(&mut log, 200..201, 30);
            assert_eq!(read_all(&log.reader(), 1).0.len(), seen.len() + 1);
            let next = checkpoint(&mut log);
            let log = reopen(&fs, &next);
            assert_eq!(log.reader().damaged_ranges(), damaged, "it is not forgotten");
            assert_eq!(read_all(&log.reader(), 1).0.len(), seen.len() + 1);
            assert_eq!(file(&fs, &log_path()).len(), len, "never padded");
        }
    }
}

#[test]
fn a_missing_sealed_file_is_damage_of_its_offsets_alone() {
    let fs = disk();
    let mut log = fresh(&fs, &segment_ms());
    for time in [10, 20, 30] {
        log.append(batch(7, &[time, time], 30), 1).unwrap();
    }
    log.publish();
    let state = checkpoint(&mut log);
    drop(log);
    fs.remove_file(&directory(0).join(format!("{:020}.log", 2))).unwrap();
    let log = reopen(&fs, &state);
    let (seen, damaged) = read_all(&log.reader(), 1000);
    assert_eq!(damaged, [(2, 4)]);
    assert_eq!(seen.len(), 4);
}

#[test]
fn a_flipped_bit_is_found_and_never_served() {
    let fs = disk();
    let mut log = fresh(&fs, &segment_ms());
    for (tag, time) in [(0, 1), (1, 1), (2, 2), (3, 1), (4, 1), (5, 50)] {
        log.append(batch(tag, &[time, time], 150), 1).unwrap();
    }
    log.publish();
    let state = checkpoint(&mut log);
    assert_eq!(state.segments.len(), 2);
    let all = read_all(&log.reader(), 1000).0;
    drop(log);
    let good = file(&fs, &log_path());
    let each = good.len() / 5;
    for (at, byte) in good.iter().enumerate() {
        overwrite(&fs, &log_path(), at, &[byte ^ (1 << (at % 8))]);
        let log = reopen(&fs, &state);
        let (seen, damaged) = read_all(&log.reader(), if at % 2 == 0 { 1 } else { 1000 });
        // Kafka's checksum does not cover the leader epoch.
        let is_epoch = (12..16).contains(&(at % each));
        assert_eq!(damaged.is_empty(), is_epoch, "byte {at}");
        assert!(seen.iter().all(|record| all.contains(record)), "byte {at}");
        let lost = |offset: i64| damaged.iter().any(|(from, to)| (*from..*to).contains(&offset));
        assert!(all.iter().all(|record| seen.contains(record) != lost(record.0)), "byte {at}");
        let first_of_batch = i64::try_from(at / each * 2).unwrap();
        assert!(is_epoch || lost(first_of_batch) && !lost(10), "byte {at}: {damaged:?}");
        let known: Vec<_> = log.reader().damaged_ranges();
        let known: Vec<_> = known.iter().map(|range| (range.from.get(), range.to.get())).collect();
        assert_eq!(known, damaged);
        assert_eq!(read_all(&log.reader(), 1000), (seen, damaged), "the second time");
        overwrite(&fs, &log_path(), at, &[*byte]);
    }
}

/// The same over a segment that has index entries, from every offset: a read that starts in the
/// middle has no batch before it that says what must follow.
#[test]
fn a_flipped_bit_is_never_served_from_any_offset_with_an_index_or_without() {
    let fs = disk();
    let mut log = fresh(&fs, &segment_ms());
    for tag in 0..40 {
        log.append(batch(tag, &[1, 1], 150), 1).unwrap();
    }
    log.append(batch(40, &[50], 10), 1).unwrap();
    log.publish();
    let state = checkpoint(&mut log);
    let all = read_all(&log.reader(), 1 << 20).0;
    drop(log);
    let index = directory(0).join(format!("{FIRST}.index"));
    let index_bytes = file(&fs, &index);
    assert!(index_bytes.len() >= 8 * 8, "there are entries");
    let good = file(&fs, &log_path());
    let each = good.len() / 40;
    // All of what no checksum covers, and some of the rest.
    let bytes = (0..good.len()).filter(|at| at % each < 12 || at % 37 == 0);
    for at in bytes {
        overwrite(&fs, &log_path(), at, &[good[at] ^ (1 << (at / each % 8))]);
        for with_index in [true, false] {
            if !with_index {
                fs.remove_file(&index).unwrap();
            }
            let log = reopen(&fs, &state);
            let reader = log.reader();
            let damaged_batch = i64::try_from(at / each * 2).unwrap();
            let is_epoch = (12..16).contains(&(at % each));
            for from in [0, damaged_batch - 9, damaged_batch, damaged_batch + 1, 79, 80] {
                let from = from.clamp(0, 80);
                let chunk = match reader.read(offset(from), 1) {
                    Ok(chunk) => chunk,
                    Err(ReadError::Damaged { from: first, to }) => {
                        let lost = first.get()..to.get();
                        assert!(lost.contains(&damaged_batch) && lost.contains(&from), "byte {at}");
                        continue;
                    }
                    Err(error) => panic!("byte {at} from {from}: {error}"),
                };
                let first = &chunk.batches[0];
                let (base, next) = (first.base_offset().get(), first.next_offset().get());
                assert!((base..next).contains(&from), "byte {at}: {base} to {next} for {from}");
                assert!(is_epoch || base != damaged_batch, "byte {at} is served");
                let limit = crate::record::DecompressLimit::new(1 << 20);
                let records = first.records(limit).unwrap();
                let record = records.into_iter().next().unwrap().unwrap();
                let expected = &all[usize::try_from(base).unwrap()];
                assert_eq!((base, record.value.unwrap()), (expected.0, expected.2.as_slice()));
            }
            if !with_index {
                let file =
                    fs.open(&index, Open::CreateNew).or_else(|_| fs.open(&index, Open::Write));
                let file = file.unwrap();
                file.set_len(0).unwrap();
                file.write_all_at(&[std::io::IoSlice::new(&index_bytes)], 0).unwrap();
            }
        }
        overwrite(&fs, &log_path(), at, &[good[at]]);
    }
}

#[test]
fn a_damaged_time_index_hides_no_record() {
    let fs = disk();
    let mut log = fresh(&fs, &config(&[("segment.ms", "1000000")]));
    for tag in 0..60 {
        log.append(batch(tag, &[i64::try_from(tag).unwrap() * 10], 150), 1).unwrap();
    }
    log.append(batch(60, &[9_000_000], 10), 1).unwrap();
    log.publish();
    let state = checkpoint(&mut log);
    drop(log);
    let path = directory(0).join(format!("{FIRST}.timeindex"));
    let good = file(&fs, &path);
    assert!(good.len() >= 12 * 8, "there are entries");
    for (at, byte) in good.iter().enumerate() {
        for bit in 0..8 {
            overwrite(&fs, &path, at, &[byte ^ (1 << bit)]);
            let log = reopen(&fs, &state);
            for time in [5, 150, 295, 590] {
                let found = log.reader().find_timestamp(offset(0), Timestamp::from_millis(time));
                assert_eq!(found.unwrap(), Some(offset((time + 9) / 10)), "{at} {bit} {time}");
            }
            overwrite(&fs, &path, at, &[*byte]);
        }
    }
}

#[test]
fn only_the_damaged_batch_is_lost_when_its_header_is_good() {
    let fs = disk();
    let mut log = fresh(&fs, &segment_ms());
    for time in [1; 40].into_iter().chain([100]) {
        log.append(batch(0, &[time], 150), 1).unwrap();
    }
    log.publish();
    let state = checkpoint(&mut log);
    drop(log);
    let each = file(&fs, &log_path()).len() / 40;
    overwrite(&fs, &log_path(), each * 20 + 100, &[0xff]);
    let log = reopen(&fs, &state);
    assert_eq!(read_all(&log.reader(), 3000).1, [(20, 21)]);
    // Without the header's length, the index tells where to go on.
    overwrite(&fs, &log_path(), each * 20, &[0xff; 61]);
    let (_, damaged) = read_all(&reopen(&fs, &state).reader(), 3000);
    assert!(damaged.len() == 1 && damaged[0].0 == 20 && damaged[0].1 <= 25, "{damaged:?}");
}

#[test]
fn an_index_made_from_the_log_equals_the_one_that_was_written() {
    let fs = disk();
    let mut log = fresh(&fs, &small_segments());
    for tag in 0..400_i64 {
        let bytes = usize::try_from(tag * 7 % 900).unwrap();
        log.append(batch(u64::try_from(tag).unwrap(), &[tag * 31 % 1009], bytes), 1).unwrap();
    }
    log.publish();
    let state = checkpoint(&mut log);
    let all = read_all(&log.reader(), 1000).0;
    drop(log);
    let paths = ["index", "timeindex"].map(|kind| directory(0).join(format!("{FIRST}.{kind}")));
    let written = [file(&fs, &paths[0]), file(&fs, &paths[1])];
    assert!(written[0].len() > 40 * 8 && written[1].len() > 10 * 12);
    let damages: [&dyn Fn(&Path); 4] = [
        &|path| fs.remove_file(path).unwrap(),
        &|path| set_len(&fs, path, 11),
        &|path| overwrite(&fs, path, 0, &[0xff; 20]),
        &|path| overwrite(&fs, path, 0, &[0; 20]),
    ];
    for damage in damages {
        paths.iter().for_each(|path| damage(path));
        let log = reopen(&fs, &state);
        assert_eq!(read_all(&log.reader(), 1000), (all.clone(), vec![]));
        drop(log);
        assert_eq!([file(&fs, &paths[0]), file(&fs, &paths[1])], written);
    }
    // An index that looks right and points between batches.
    overwrite(&fs, &paths[0], 7, &[written[0][7].wrapping_add(1)]);
    let log = reopen(&fs, &state);
    assert_eq!(log.reader().read(offset(8), 1).unwrap().batches[0].base_offset(), offset(8));
    assert_eq!(read_all(&log.reader(), 1000), (all, vec![]));
}

#[test]
fn a_dirty_file_is_synced_before_its_descriptor_is_closed() {
    let fs = disk();
    let one = Config { open_files: 1, tail_cache_bytes: 0, ..Config::default() };
    let store = store_with(fs.shared(), one);
    let mut logs: Vec<_> = (0..5)
        .map(|number| PartitionLog::create(&store, partition(number), &TopicConfig::default()))
        .collect();
    for tag in 0..20 {
        for log in &mut logs {
            fill(log, tag..tag + 1, 100);
        }
    }
    assert_eq!(store.counters().files_open, 2, "twice as many as it should keep, being dirty");
    assert!(fs.counters().syncs >= 3, "evictions sync");
    let (targets, states): (Vec<_>, Vec<_>) =
        logs.iter_mut().map(|log| (log.sync_targets(), log.state())).unzip();
    sync_all(&targets.concat()).unwrap();
    let after = fs.cut();
    drop(logs);
    let store = store_with(after.shared(), one);
    for (number, state) in (0..).zip(&states) {
        let topic = TopicConfig::default();
        let log = PartitionLog::open(&store, partition(number), &topic, state).unwrap();
        let (seen, damaged) = read_all(&log.reader(), 1000);
        assert_eq!((seen.len(), damaged.len()), (20, 0));
    }
}

#[test]
fn a_sync_that_fails_at_an_eviction_poisons_the_store() {
    let fs = disk();
    let one = Config { open_files: 1, ..Config::default() };
    let store = store_with(fs.shared(), one);
    let mut first = PartitionLog::create(&store, partition(0), &TopicConfig::default());
    let mut second = PartitionLog::create(&store, partition(1), &TopicConfig::default());
    let mut third = PartitionLog::create(&store, partition(2), &TopicConfig::default());
    fill(&mut first, 0..1, 10);
    fill(&mut third, 0..1, 10);
    let targets = [first.sync_targets(), third.sync_targets()].concat();
    fs.fail_nth(Operation::Sync, 0, IO_FAILED);
    let _ = second.append(batch(0, &[1], 10), 1).map(|_| second.flush());
    assert!(store.poisoned().is_some());
    assert!(sync_all(&targets).is_err(), "the file must not count as synced");
    assert!(first.append(batch(0, &[1], 10), 1).is_ok());
    assert!(matches!(first.flush(), Err(Error::Poisoned(_))));
}

/// What a script of appends leaves on the disk, and whether a flush met an error meanwhile.
fn script(fs: &SimFs, on_error: impl Fn(Error)) -> (Vec<(String, Vec<u8>)>, usize) {
    let mut log = fresh(fs, &segment_ms());
    let mut errors = 0;
    for (tag, time) in [1, 2, 50, 51, 100, 101].into_iter().enumerate() {
        for _ in 0..2 {
            log.append(batch(u64::try_from(tag).unwrap(), &[time], 3000), 1).unwrap();
        }
        log.publish();
        if tag % 2 == 0 {
            continue;
        }
        while let Err(error) = log.flush() {
            errors += 1;
            assert!(errors < 10);
            assert_eq!(read_all(&log.reader(), 5000).0.len(), (tag + 1) * 2);
            on_error(error);
        }
    }
    assert_eq!(read_all(&log.reader(), 5000).0.len(), 12);
    let entries = fs.list(&directory(0)).unwrap().into_iter();
    let files = entries.map(|entry| (entry.name.clone(), file(fs, &directory(0).join(entry.name))));
    (files.collect(), errors)
}

#[test]
fn a_full_disk_at_any_step_of_a_flush_can_be_retried() {
    let (expected, _) = script(&disk(), |error| panic!("{error}"));
    assert_eq!(expected.len(), 3 + 2 * 2);
    let mut met = 0;
    for operation in [Operation::Write, Operation::Create, Operation::CreateDir] {
        for after in 0..12 {
            let fs = disk();
            fs.fail_nth(operation, after, NO_SPACE);
            let (files, errors) = script(&fs, |error| assert!(error.is_full(), "{error}"));
            assert_eq!(files, expected, "{operation:?} {after}");
            met += errors;
        }
    }
    assert!(met >= 3 + 4 + 4 + 3, "{met}");
    for capacity in (0..40_000).step_by(777) {
        let fs = disk();
        fs.set_capacity(Some(capacity));
        let (files, _) = script(&fs, |error| {
            assert!(error.is_full(), "{error}");
            fs.set_capacity(None);
        });
        assert_eq!(files, expected);
    }
}

#[test]
fn a_flush_syncs_nothing_while_a_checkpoint_can_still_do_it() {
    let fs = disk();
    let few = Config { open_files: 8, tail_cache_bytes: 0, ..Config::default() };
    let store = store_with(fs.shared(), few);
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    store.on_descriptor_pressure(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    let mut logs: Vec<_> = (0..16)
        .map(|number| PartitionLog::create(&store, partition(number), &TopicConfig::default()))
        .collect();
    let this = std::thread::current().name().unwrap().to_owned();
    for round in 1..5 {
        for tag in 0..3 {
            logs.iter_mut().for_each(|log| fill(log, tag..tag + 1, 100));
        }
        assert!(store.counters().files_open <= 16);
        assert_eq!(fs.performed_by(&this, Operation::Sync), 0, "round {round}");
        assert!(asked.load(Ordering::SeqCst) > 0, "a checkpoint is asked for");
        let targets: Vec<_> = logs.iter_mut().flat_map(PartitionLog::sync_targets).collect();
        std::thread::spawn(move || sync_all(&targets)).join().unwrap().unwrap();
        // What is clean gives way, a few at a time.
        for number in 0..16 {
            let path = partition(100 + number);
            let mut log = PartitionLog::create(&store, path, &TopicConfig::default());
            fill(&mut log, 0..1, 100);
            let targets = log.sync_targets();
            std::thread::spawn(move || sync_all(&targets)).join().unwrap().unwrap();
        }
        assert!(store.counters().files_open <= 9, "{}", store.counters().files_open);
    }
}

#[test]
fn a_lack_of_descriptors_at_any_step_of_a_checkpoint_can_be_waited_out() {
    let mut met = 0;
    for operation in [Operation::Open, Operation::Create, Operation::OpenDir] {
        for after in 0..12 {
            let fs = disk();
            fs.fail_nth(operation, after, NO_DESCRIPTORS);
            let mut log = fresh(&fs, &segment_ms());
            let tries = |step: &mut dyn FnMut() -> Result<(), Error>| {
                let failed = std::iter::from_fn(|| step().err());
                failed.inspect(|error| assert!(error.is_full(), "{error}")).count()
            };
            for time in [1, 50, 100] {
                log.append(batch(0, &[time], 3000), 1).unwrap();
                log.publish();
                met += tries(&mut || log.flush());
            }
            let state = log.state();
            let targets = log.sync_targets();
            met += tries(&mut || sync_all(&targets));
            let all = read_all(&log.reader(), 5000).0;
            assert_eq!(all.len(), 3);
            let after_cut = reopen(&fs.cut(), &state);
            assert_eq!(read_all(&after_cut.reader(), 5000), (all, vec![]), "{operation:?} {after}");
        }
    }
    assert!(met >= 4 + 3 + 4, "{met}");
}

#[test]
fn any_other_failure_of_a_flush_poisons_once_and_for_all() {
    for operation in [Operation::Write, Operation::Create] {
        for after in 0..3 {
            let fs = disk();
            let store = store(&fs);
            let called = Arc::new(AtomicUsize::new(0));
            let counter = Arc::clone(&called);
            store.on_poison(move |reason| {
                assert!(reason.contains("Input/output error"), "{reason}");
                counter.fetch_add(1, Ordering::SeqCst);
            });
            let mut log = PartitionLog::create(&store, partition(0), &segment_ms());
            for time in [1, 10, 20] {
                log.append(batch(0, &[time], 10), 1).unwrap();
            }
            fs.fail_nth(operation, after, IO_FAILED);
            assert!(matches!(log.flush(), Err(Error::Io { .. })));
            assert!(matches!(log.flush(), Err(Error::Poisoned(_))));
            assert!(sync_all(&log.sync_targets()).is_err());
            assert!(store.poisoned().is_some());
            assert_eq!(called.load(Ordering::SeqCst), 1);
        }
    }
}

#[test]
fn a_failed_sync_is_never_retried() {
    let fs = disk();
    let store = store(&fs);
    let mut log = PartitionLog::create(&store, partition(0), &TopicConfig::default());
    fill(&mut log, 0..1, 10);
    let targets = log.sync_targets();
    fs.fail_nth(Operation::Sync, 0, NO_SPACE);
    assert!(sync_all(&targets).is_err_and(|error| !error.is_full()));
    let syncs = fs.counters().syncs;
    assert!(sync_all(&targets).is_err());
    assert_eq!(fs.counters().syncs, syncs);
}

/// A shard of three partitions that goes from one checkpoint to the next.
struct Shard {
    checkpoints: CheckpointStore,
    logs: Vec<PartitionLog>,
}

impl Shard {
    fn start(fs: &SimFs) -> (Self, ShardCheckpoint) {
        let store = store_with(fs.shared(), NO_CACHE);
        let path = Path::new("/data/shards/1");
        let (checkpoints, found) = CheckpointStore::open(fs.shared(), path).unwrap();
        assert_eq!(found, None);
        let logs = (0..2).map(|n| PartitionLog::create(&store, partition(n), &segment_ms()));
        let mut shard = Self { checkpoints, logs: logs.collect() };
        shard.append(0..4, 10);
        shard.save(1).unwrap();
        let old = shard.checkpoints.current().clone();
        shard.logs.push(PartitionLog::create(&store, partition(2), &segment_ms()));
        (shard, old)
    }

    fn append(&mut self, tags: std::ops::Range<u64>, step: i64) {
        for tag in tags {
            for log in &mut self.logs {
                let time = i64::try_from(tag).unwrap() / 2 * step;
                log.append(batch(tag, &[time, time], 200), 1).unwrap();
                log.publish();
            }
        }
    }

    fn save(&mut self, index: u64) -> Result<(), Box<dyn std::error::Error>> {
        let applied = LogId { term: Term::new(1), index: RaftIndex::new(index) };
        let mut changes = Changes { applied: Some(applied), ..Changes::default() };
        let mut targets = Vec::new();
        for log in &mut self.logs {
            log.flush()?;
            changes.changed.insert(log.id(), log.state());
            targets.extend(log.sync_targets());
        }
        sync_all(&targets)?;
        self.checkpoints.save(&changes)?;
        self.logs.iter_mut().for_each(|log| log.take_removed().unlink());
        Ok(())
    }

    fn second_step(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        self.append(4..9, 10);
        self.logs[1].advance_log_start(offset(7));
        self.save(2)
    }
}

#[test]
fn a_power_cut_between_any_two_steps_of_a_checkpoint_leaves_the_old_or_the_new_one() {
    let whole = disk();
    let (mut shard, _) = Shard::start(&whole);
    shard.second_step().unwrap();
    let contents: Vec<_> = shard.logs.iter().map(|log| read_all(&log.reader(), 1000).0).collect();
    let first_log = {
        // The same without the moved log start: what the old checkpoint's log may show.
        let (mut shard, _) = Shard::start(&disk());
        shard.append(4..9, 10);
        read_all(&shard.logs[1].reader(), 1000).0
    };
    let (mut steps, mut is_done, mut saw_old, mut saw_new) = (0, false, 0, 0);
    while !is_done {
        let fs = disk();
        let (mut shard, old) = Shard::start(&fs);
        fs.stop_after(steps);
        is_done = shard.second_step().is_ok();
        let mut disks = vec![fs.cut()];
        disks.extend((0..6).map(|seed| fs.cut_with_luck(seed)));
        for disk in disks {
            let path = Path::new("/data/shards/1");
            let (_, found) = CheckpointStore::open(disk.shared(), path).unwrap();
            let found = found.unwrap();
            let is_old = found == old;
            assert!(is_old || found.applied.unwrap().index == RaftIndex::new(2));
            assert!(!(is_old && is_done), "a saved checkpoint is lost");
            saw_old += usize::from(is_old);
            saw_new += usize::from(!is_old);
            let store = store_with(disk.shared(), NO_CACHE);
            for (id, state) in &found.partitions {
                let log = PartitionLog::open(&store, *id, &segment_ms(), state).unwrap();
                let (seen, damaged) = read_all(&log.reader(), 1000);
                assert_eq!(damaged, [], "after {steps} steps");
                let number = usize::try_from(id.partition.get()).unwrap();
                let content = if number == 1 { &first_log } else { &contents[number] };
                let in_log = state.log_start.get()..state.end.get();
                let expected: Vec<_> =
                    content.iter().filter(|record| in_log.contains(&record.0)).collect();
                assert_eq!(seen.iter().collect::<Vec<_>>(), expected);
            }
        }
        steps += 1;
    }
    assert!(steps > 20 && saw_old > 20 && saw_new > 0, "{steps} {saw_old} {saw_new}");
}

#[test]
fn a_full_disk_at_any_write_of_a_checkpoint_leaves_the_old_one_and_can_be_retried() {
    for after in 0..40 {
        let fs = disk();
        let (mut shard, old) = Shard::start(&fs);
        fs.inject(Fault {
            operation: if after % 2 == 0 { Operation::Write } else { Operation::Create },
            after: after / 2,
            path_contains: String::new(),
            errno: NO_SPACE,
            repeat: Repeat::Always,
        });
        if shard.second_step().is_err() {
            let path = Path::new("/data/shards/1");
            let (_, found) = CheckpointStore::open(fs.cut().shared(), path).unwrap();
            assert_eq!(found, Some(old));
            fs.clear_faults();
            shard.save(2).unwrap();
        }
        let path = Path::new("/data/shards/1");
        let (_, found) = CheckpointStore::open(fs.cut().shared(), path).unwrap();
        assert_eq!(found.unwrap(), *shard.checkpoints.current());
        for log in &shard.logs {
            let (seen, damaged) = read_all(&log.reader(), 1000);
            assert!(damaged.is_empty() && !seen.is_empty());
        }
    }
}
