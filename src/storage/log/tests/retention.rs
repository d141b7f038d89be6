//! When segments are sealed and when they go.

use super::*;
use crate::types::Timestamp;

fn bases(log: &PartitionLog) -> Vec<i64> {
    log.state().segments.iter().map(|segment| segment.base.get()).collect()
}

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

/// A log with a segment for each of `times`: the next is always too far in the future.
fn segment_for_each(fs: &SimFs, times: &[i64], configs: &[(&str, &str)]) -> PartitionLog {
    let mut log = PartitionLog::create(&store(fs), partition(0), &config(&[("segment.ms", "1")]));
    for (tag, time) in (0..).zip(times) {
        log.append(batch(tag, &[*time], 1000), 1).unwrap();
    }
    log.publish();
    log.flush().unwrap();
    assert_eq!(bases(&log).len(), times.len());
    log.set_config(&config(configs));
    log
}

#[test]
fn a_segment_is_sealed_before_it_outgrows_its_bytes() {
    let mut log = PartitionLog::create(&store(&disk()), partition(0), &small_segments());
    let bytes = batch(0, &[1], 1000).len();
    let fit = 65536 / bytes;
    fill(&mut log, 0..u64::try_from(fit + 1).unwrap(), 1000);
    assert_eq!(bases(&log), [0, i64::try_from(fit).unwrap()]);
    let segments = log.state().segments;
    assert_eq!(segments[0].len, u64::try_from(fit * bytes).unwrap());
    assert!(segments[0].sealed && !segments[1].sealed);
}

#[test]
fn a_segment_is_sealed_when_record_time_has_passed_since_its_first_batch() {
    let hour = config(&[("segment.ms", "3600000")]);
    let mut log = PartitionLog::create(&store(&disk()), partition(0), &hour);
    for time in [10, -1, 3_600_010, 5, 3_600_011, -1, 7_200_012] {
        log.append(batch(0, &[time], 10), 1).unwrap();
    }
    log.flush().unwrap();
    assert_eq!(bases(&log), [0, 4, 6]);
}

#[test]
fn retention_by_time_takes_the_oldest_and_stops_at_the_first_that_stays() {
    let fs = disk();
    let times = [1000, 2000, 9000, 3000 + 9000];
    let log = segment_for_each(&fs, &times, &[("retention.ms", "500")]);
    assert_eq!(log.retention_target(at(1500)), None, "exactly as old as may be");
    assert_eq!(log.retention_target(at(1501)), Some(offset(1)));
    assert_eq!(log.retention_target(at(9400)), Some(offset(2)));
    assert_eq!(log.retention_target(at(20_000)), Some(offset(4)), "the active one goes as well");
    let off = segment_for_each(&fs, &times, &[("retention.ms", "-1")]);
    assert_eq!(off.retention_target(at(i64::MAX)), None);
}

#[test]
fn a_segment_without_timestamps_has_no_age() {
    let mut log =
        PartitionLog::create(&store(&disk()), partition(0), &config(&[("retention.ms", "0")]));
    log.append(batch(0, &[-1], 10), 1).unwrap();
    log.publish();
    assert_eq!(log.retention_target(at(i64::MAX)), None);
}

#[test]
fn records_from_before_the_epoch_are_old() {
    let log = segment_for_each(&disk(), &[-5_000, -2, 1_000, 2_000], &[("retention.ms", "1000")]);
    assert_eq!(log.retention_target(at(1_500)), Some(offset(2)));
}

#[test]
fn a_segment_without_timestamps_goes_with_the_next_that_is_too_old() {
    // Only their size seals such segments.
    let by_size = config(&[("segment.bytes", "1048576"), ("retention.ms", "1000")]);
    let mut log = PartitionLog::create(&store(&disk()), partition(0), &by_size);
    for (tag, time) in [(0, -1), (1, 10), (2, -1), (3, 2_000)] {
        log.append(batch(tag, &[time], 600_000), 1).unwrap();
    }
    log.publish();
    log.flush().unwrap();
    assert_eq!(bases(&log), [0, 1, 2, 3]);
    assert_eq!(log.retention_target(at(500)), None);
    assert_eq!(log.retention_target(at(1_500)), Some(offset(2)));
    assert_eq!(log.retention_target(at(5_000)), Some(offset(4)));
}

#[test]
fn retention_by_size_keeps_at_least_what_was_asked_for() {
    let log = segment_for_each(&disk(), &[10, 20, 30, 40], &[]);
    let len = log.state().segments[0].len;
    assert!(log.state().segments.iter().all(|segment| segment.len == len));
    let target = |keep: u64| {
        let keep = keep.to_string();
        let mut log = segment_for_each(
            &disk(),
            &[10, 20, 30, 40],
            &[("retention.bytes", &keep), ("retention.ms", "-1")],
        );
        let target = log.retention_target(at(50));
        target.inspect(|target| log.advance_log_start(*target));
        assert!(log.reader().size_bytes() >= keep.parse().unwrap());
        target
    };
    assert_eq!(target(4 * len), None);
    assert_eq!(target(3 * len + 1), None);
    assert_eq!(target(3 * len), Some(offset(1)));
    assert_eq!(target(len), Some(offset(3)));
    assert_eq!(target(0), Some(offset(4)));
}

#[test]
fn the_log_start_hides_records_at_once_and_files_stay_until_unlinked() {
    let fs = disk();
    let mut log = segment_for_each(&fs, &[10, 20, 30], &[]);
    let reader = log.reader();
    let names = || -> Vec<_> {
        fs.list(&directory(0)).unwrap().into_iter().map(|entry| entry.name).collect()
    };
    assert_eq!(names().len(), 3 + 2 * 2);
    log.advance_log_start(offset(2));
    assert_eq!(reader.log_start(), offset(2));
    assert!(matches!(reader.read(offset(1), 1), Err(ReadError::OutOfRange { .. })));
    assert_eq!(reader.segment_count(), 1);
    assert_eq!(log.state().segments.len(), 1);
    assert_eq!(names().len(), 3 + 2 * 2, "a checkpoint still names them");
    let pinned = log.pin();
    log.take_removed().unlink();
    assert_eq!(names(), ["00000000000000000002.log"]);

    log.advance_log_start(offset(3));
    log.take_removed().unlink();
    assert_eq!(names(), ["00000000000000000002.log"], "it is pinned");
    let mut bytes = vec![0; 1 << 16];
    let len = usize::try_from(pinned.files[0].state().len).unwrap();
    assert_eq!(pinned.files[0].read_at(&mut bytes, 0).unwrap(), len);
    drop(pinned);
    assert!(names().is_empty());

    fill(&mut log, 0..1, 10);
    assert_eq!(names(), ["00000000000000000003.log"]);
    assert_eq!(read_all(&reader, 100).0.len(), 1);
    assert_eq!(reader.size_bytes(), log.state().segments[0].len);
}

#[test]
fn advancing_beyond_the_end_stops_there_and_never_goes_back() {
    let mut log = segment_for_each(&disk(), &[10, 20], &[]);
    log.advance_log_start(offset(100));
    assert_eq!(log.log_start(), offset(2));
    log.advance_log_start(offset(1));
    assert_eq!(log.log_start(), offset(2));
    assert_eq!(log.append(batch(9, &[1], 10), 1).unwrap().base_offset, offset(2));
}

#[test]
fn what_is_dropped_before_its_flush_is_never_written() {
    let fs = disk();
    let mut log = PartitionLog::create(&store(&fs), partition(0), &TopicConfig::default());
    log.append(batch(0, &[1], 1000), 1).unwrap();
    log.publish();
    log.advance_log_start(offset(1));
    assert_eq!(log.pending_bytes(), 0);
    log.flush().unwrap();
    assert_eq!(fs.counters().writes, 0);
    let state = log.state();
    assert_eq!((state.log_start, state.end, state.segments.len()), (offset(1), offset(1), 0));
}

#[test]
fn a_deleted_partition_leaves_nothing_behind() {
    let fs = disk();
    let log = segment_for_each(&fs, &[10, 20], &[]);
    let reader = log.reader();
    let removed = log.remove();
    assert!(reader.is_deleted());
    assert_eq!(fs.list(&directory(0)).unwrap().len(), 4, "a checkpoint still names it");
    removed.unlink();
    assert!(fs.list(&directory(0)).is_err() || fs.list(&directory(0)).unwrap().is_empty());
    drop(reader);
    assert!(fs.list(&directory(0)).is_err());
    assert_eq!(fs.list(Path::new(PARTITIONS)).unwrap(), []);
}

#[test]
fn orphans_are_what_no_checkpoint_names_and_nothing_else() {
    let fs = disk();
    let mut log = segment_for_each(&fs, &[10, 20], &[]);
    let state = checkpoint(&mut log);
    log.set_config(&config(&[("segment.ms", "1")]));
    fill(&mut log, 1000..1002, 10);
    // What a cut left of an index that was being made again.
    let half_made = directory(0).join(format!("{:020}.index.tmp", 0));
    fs.open(&half_made, Open::CreateNew).unwrap();
    let foreign = directory(0).join("notes.txt");
    fs.open(&foreign, Open::CreateNew).unwrap();
    drop(log);

    let store = store(&fs);
    let named = [(partition(0), state.clone())];
    let orphans = store.orphans(named.iter().map(|(id, state)| (id, state))).unwrap();
    let names: Vec<_> =
        orphans.iter().map(|found| found.path.file_name().unwrap().to_str().unwrap()).collect();
    // The segment that was active at the checkpoint is sealed since, which no checkpoint knows.
    let expected =
        ["0.index.tmp", "1.index", "1.timeindex", "2.log"].map(|end| format!("{:019}{end}", 0));
    assert_eq!(names, expected.each_ref().map(String::as_str));
    store.remove_orphans(&orphans).unwrap();
    let left = store.orphans(named.iter().map(|(id, state)| (id, state))).unwrap();
    assert_eq!(left, []);
    assert!(fs.open(&foreign, Open::Read).is_ok());
    let log = PartitionLog::open(&store, partition(0), &config(&[]), &state).unwrap();
    assert_eq!(read_all(&log.reader(), 100).0.len(), 2);

    let all = store.orphans([].into_iter()).unwrap();
    fs.remove_file(&foreign).unwrap();
    store.remove_orphans(&all).unwrap();
    assert_eq!(fs.list(Path::new(PARTITIONS)).unwrap(), []);
}
