//! Reading: tail and file, visibility, waiting, time, memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};
use std::thread::{self, Thread};

use super::*;
use crate::storage::fs::RealFs;
use crate::storage::log::Error;
use crate::storage::log::view::Shared;

#[test]
fn memory_and_disk_answer_alike() {
    let fs = SimFs::new();
    let store = store(&fs);
    let mut log = PartitionLog::create(&store, partition(0), &small_segments());
    fill(&mut log, 0..200, 1000);
    let state = checkpoint(&mut log);
    let from_memory = read_all(&log.reader(), 5000);
    assert_eq!(store.counters().tail_misses, 0);
    assert!(log.reader().segment_count() > 2);

    let cold = store_with(fs.shared(), NO_CACHE);
    let log = PartitionLog::open(&cold, partition(0), &small_segments(), &state).unwrap();
    assert_eq!(fs.counters().reads, 1, "opening reads nothing but the directory");
    for max_bytes in [1, 1500, 5000, 1 << 20] {
        assert_eq!(read_all(&log.reader(), max_bytes), from_memory);
    }
    assert_eq!(cold.counters().tail_hits, 0);
    assert!(!log.reader().is_in_memory(offset(0)));
    assert!(log.reader().is_in_memory(offset(200)));
}

#[test]
fn every_offset_is_found_at_once_wherever_it_is() {
    let fs = SimFs::new();
    let mut log =
        PartitionLog::create(&store_with(fs.shared(), NO_CACHE), partition(0), &small_segments());
    for tag in 0..60 {
        log.append(batch(tag, &[1, 2, 3], 700), 1).unwrap();
    }
    log.publish();
    log.flush().unwrap();
    let reader = log.reader();
    for raw in 0..180 {
        let reads = fs.counters().reads;
        let chunk = reader.read(offset(raw), 10).unwrap();
        assert_eq!(chunk.batches.len(), 1);
        assert_eq!(chunk.batches[0].base_offset().get(), raw / 3 * 3);
        assert_eq!(fs.counters().reads, reads + 1, "one read answers a read");
    }
}

#[test]
fn a_full_index_has_its_segment_sealed_and_everything_is_found_again() {
    let fs = SimFs::new();
    // One entry a batch: 10 of 8 bytes, or 6 of 12 where the times ascend.
    let small = Config { index_interval_bytes: 0, index_bytes_max: 80, ..NO_CACHE };
    for (ascend, entries) in [(0, 10), (1, 6)] {
        let number = u32::try_from(entries).unwrap();
        let store = store_with(fs.shared(), small);
        let mut log = PartitionLog::create(&store, partition(number), &TopicConfig::default());
        for tag in 0..60 {
            let time = 1 + ascend * i64::try_from(tag).unwrap();
            log.append(batch(tag, &[time], 30), 1).unwrap();
        }
        log.publish();
        let state = checkpoint(&mut log);
        // The first batch of a segment has no entry of its own.
        let per_segment = entries + 1;
        assert_eq!(state.segments.len(), 60_usize.div_ceil(per_segment), "{ascend}");
        assert!(state.segments.iter().rev().skip(1).all(|segment| segment.sealed));
        let all = read_all(&log.reader(), 1000).0;
        assert_eq!(all.len(), 60);
        let topic = TopicConfig::default();
        let log = PartitionLog::open(&store, partition(number), &topic, &state).unwrap();
        assert_eq!(read_all(&log.reader(), 1), (all, vec![]));
    }
}

#[test]
fn a_log_whose_offsets_are_used_up_takes_no_more() {
    let store = store(&SimFs::new());
    let end = offset(i64::MAX - 3);
    let state = PartitionState { log_start: end, end, ..PartitionState::default() };
    let topic = TopicConfig::default();
    let mut log = PartitionLog::open(&store, partition(0), &topic, &state).unwrap();
    log.append(batch(0, &[1], 10), 1).unwrap();
    for _ in 0..2 {
        let refused = log.append(batch(1, &[1, 1], 10), 1);
        assert!(matches!(refused, Err(Error::OffsetsExhausted(id)) if id == partition(0)));
    }
    log.append(batch(2, &[1], 10), 1).unwrap();
    log.publish();
    log.flush().unwrap();
    assert_eq!(log.end(), offset(i64::MAX - 1));
    let chunk = log.reader().read(end, 1 << 20).unwrap();
    assert_eq!(chunk.batches.len(), 2, "what was refused is not there");
}

#[test]
fn appends_touch_no_disk_and_a_flush_writes_once() {
    let fs = SimFs::new();
    let store = store(&fs);
    let mut log = PartitionLog::create(&store, partition(0), &TopicConfig::default());
    for tag in 0..100 {
        log.append(batch(tag, &[5], 100), 1).unwrap();
    }
    log.publish();
    assert_eq!(fs.counters(), Default::default());
    assert!(log.pending_bytes() > 100 * 100);
    assert_eq!(log.state().segments, []);
    log.flush().unwrap();
    assert_eq!(fs.counters().writes, 1);
    assert_eq!(log.pending_bytes(), 0);
    assert_eq!(log.state().end, offset(100));
    log.flush().unwrap();
    assert_eq!(fs.counters().writes, 1, "nothing is pending");
}

#[test]
fn a_large_batch_is_read_whole_however_little_is_asked_for() {
    let fs = SimFs::new();
    let store = store_with(fs.shared(), NO_CACHE);
    let mut log = PartitionLog::create(&store, partition(0), &small_segments());
    fill(&mut log, 0..3, 300_000);
    assert_eq!(read_all(&log.reader(), 1).0.len(), 3);
    assert_eq!(log.reader().segment_count(), 3, "a batch larger than a segment has its own");
}

#[test]
fn readers_see_what_is_published_and_no_more() {
    let fs = SimFs::new();
    let store = store_with(fs.shared(), NO_CACHE);
    let mut log = PartitionLog::create(&store, partition(0), &TopicConfig::default());
    let reader = log.reader();
    log.append(batch(0, &[1, 1], 10), 1).unwrap();
    log.publish();
    log.append(batch(1, &[1], 10), 1).unwrap();
    for _ in ["in memory", "on disk"] {
        assert_eq!(reader.log_end(), offset(2));
        assert_eq!(read_all(&reader, 1000).0.len(), 2);
        let out_of_range = reader.read(offset(3), 1).unwrap_err();
        assert!(matches!(out_of_range, ReadError::OutOfRange { .. }));
        assert!(reader.find_timestamp(Offset::ZERO, Timestamp::from_millis(1)).unwrap().is_some());
        log.flush().unwrap();
    }
    log.publish();
    assert_eq!(read_all(&reader, 1000).0.len(), 3);
    assert!(reader.read(offset(4), 1).is_err());
}

#[test]
fn the_batch_that_is_stored_has_its_offset_and_epoch() {
    let fs = SimFs::new();
    let store = store_with(fs.shared(), NO_CACHE);
    let mut log = PartitionLog::create(&store, partition(0), &TopicConfig::default());
    log.append(batch(0, &[1, 1], 10), 4).unwrap();
    log.append(batch(1, &[1], 10), 9).unwrap();
    log.publish();
    let epochs = |log: &PartitionLog| -> Vec<_> {
        let chunk = log.reader().read(offset(0), 1000).unwrap();
        let headers = chunk.batches.iter().map(|batch| *batch.header());
        headers.map(|header| (header.base_offset.get(), header.leader_epoch)).collect()
    };
    assert_eq!(epochs(&log), [(0, 4), (2, 9)]);
    log.flush().unwrap();
    assert!(!log.reader().is_in_memory(offset(0)));
    assert_eq!(epochs(&log), [(0, 4), (2, 9)]);
}

/// Counts how often it is woken, and unparks a thread.
struct Count(AtomicUsize, Thread);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
        self.1.unpark();
    }
}

fn counting() -> (Arc<Count>, Waker) {
    let count = Arc::new(Count(AtomicUsize::new(0), thread::current()));
    (Arc::clone(&count), Waker::from(count))
}

#[test]
fn waiters_are_woken_once_when_data_arrives_and_not_before() {
    let fs = SimFs::new();
    let mut log = PartitionLog::create(&store(&fs), partition(0), &TopicConfig::default());
    let reader = log.reader();
    let (count, waker) = counting();
    let (gone_count, gone_waker) = counting();
    let registration = reader.register(&waker);
    drop(reader.register(&gone_waker));
    log.append(batch(0, &[1], 10), 1).unwrap();
    assert_eq!(count.0.load(Ordering::SeqCst), 0, "not visible yet");
    log.publish();
    log.append(batch(1, &[1], 10), 1).unwrap();
    log.publish();
    assert_eq!(count.0.load(Ordering::SeqCst), 1, "once until armed again");
    registration.rearm(&waker);
    registration.rearm(&waker);
    log.append(batch(2, &[1], 10), 1).unwrap();
    log.publish();
    assert_eq!(count.0.load(Ordering::SeqCst), 2);
    registration.rearm(&waker);
    log.remove().unlink();
    assert_eq!(count.0.load(Ordering::SeqCst), 3, "deletion wakes as well");
    assert!(matches!(reader.read(offset(0), 1), Err(ReadError::Deleted)));
    assert_eq!(gone_count.0.load(Ordering::SeqCst), 0);
}

#[test]
fn registering_first_and_then_looking_misses_nothing() {
    let fs = SimFs::new();
    let mut log = PartitionLog::create(&store(&fs), partition(0), &TopicConfig::default());
    let rounds = 3000;
    let followers: Vec<_> = (0..3)
        .map(|_| {
            let reader = log.reader();
            thread::spawn(move || {
                let (_, waker) = counting();
                let mut from = Offset::ZERO;
                while from < offset(rounds) {
                    let registration = reader.register(&waker);
                    // A lost wake-up hangs here.
                    while reader.log_end() <= from {
                        thread::park();
                        registration.rearm(&waker);
                    }
                    from = reader.read(from, 1 << 20).unwrap().next;
                }
            })
        })
        .collect();
    for tag in 0..rounds {
        log.append(batch(u64::try_from(tag).unwrap(), &[1], 10), 1).unwrap();
        log.publish();
    }
    followers.into_iter().for_each(|follower| follower.join().unwrap());
}

/// Small everything, on the machine's own disk: rolls, evictions and closed descriptors all the
/// time.
#[test]
fn readers_beside_the_writer_see_every_record_once_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let tight = Config { open_files: 1, ..NO_CACHE };
    let clock = ManualClock::at(Timestamp::from_millis(0));
    let store = Store::new(RealFs::shared(), directory.path().join("p"), tight, clock);
    let mut logs: Vec<_> = (0..2)
        .map(|number| PartitionLog::create(&store, partition(number), &small_segments()))
        .collect();
    let readers: Vec<_> = (0..4)
        .map(|number| {
            let reader = logs[number % 2].reader();
            thread::spawn(move || follow(&reader, offset(1500)))
        })
        .collect();
    for tag in 0..1500 {
        for log in &mut logs {
            log.append(batch(tag, &[1], 700), 1).unwrap();
            log.publish();
            if tag % 20 == 0 {
                log.flush().unwrap();
            }
            if tag % 100 == 99 {
                sync_all(&log.sync_targets()).unwrap();
                log.advance_log_start(offset((i64::try_from(tag).unwrap() - 900).max(0)));
                log.take_removed().unlink();
            }
        }
    }
    for reader in readers {
        assert!(reader.join().unwrap() >= 900);
    }
    assert_eq!(store.poisoned(), None);
    assert!(store.counters().tail_misses > 0);
}

/// Reads up to `end` and returns how many batches there were.
fn follow(reader: &LogReader, end: Offset) -> usize {
    let (_, waker) = counting();
    let registration = reader.register(&waker);
    let (mut from, mut seen) = (Offset::ZERO, 0);
    // Late, so that there is something that only files have.
    while reader.log_end() < offset(300) {
        thread::park();
        registration.rearm(&waker);
    }
    while from < end {
        let chunk = match reader.read(from, 3000) {
            Err(ReadError::OutOfRange { start, .. }) if start > from => {
                from = start;
                continue;
            }
            read => read.unwrap(),
        };
        for batch in &chunk.batches {
            assert_eq!(batch.base_offset(), from);
            from = batch.next_offset();
            seen += 1;
        }
        if chunk.batches.is_empty() {
            registration.rearm(&waker);
            if reader.log_end() <= from {
                thread::park();
            }
        }
    }
    seen
}

#[test]
fn many_waiters_leave_no_memory_behind() {
    let fs = SimFs::new();
    let log = PartitionLog::create(&store(&fs), partition(0), &TopicConfig::default());
    let reader = log.reader();
    let (_, waker) = counting();
    let many: Vec<_> = (0..5000).map(|_| reader.register(&waker)).collect();
    drop(many);
    assert!(log.shared.waiters.is_empty());
}

#[test]
fn an_empty_partition_costs_less_than_a_kilobyte_and_no_file() {
    let fs = SimFs::new();
    let mut log = PartitionLog::create(&store(&fs), partition(0), &TopicConfig::default());
    log.flush().unwrap();
    assert!(sync_all(&log.sync_targets()).is_ok());
    assert_eq!(fs.counters(), Default::default());
    let home = size_of::<crate::storage::log::store::Home>();
    assert!(size_of::<PartitionLog>() + size_of::<Shared>() + home + 64 < 1024);
}

#[test]
fn the_cache_evicts_the_oldest_flushed_batches_and_never_unflushed_ones() {
    let fs = SimFs::new();
    let budget = Config { tail_cache_bytes: 50_000, ..Config::default() };
    let store = store_with(fs.shared(), budget);
    let mut logs: Vec<_> = (0..3)
        .map(|number| PartitionLog::create(&store, partition(number), &TopicConfig::default()))
        .collect();
    for tag in 0..100 {
        for log in &mut logs {
            log.append(batch(tag, &[1], 1000), 1).unwrap();
            log.publish();
        }
    }
    assert!(store.counters().tail_bytes > 300_000, "nothing is flushed");
    for log in &logs {
        assert!(log.reader().is_in_memory(offset(0)));
    }
    logs[0].flush().unwrap();
    assert!(!logs[0].reader().is_in_memory(offset(99)));
    assert!(logs[1].reader().is_in_memory(offset(0)));
    logs[1].flush().unwrap();
    logs[2].flush().unwrap();
    let left = store.counters().tail_bytes;
    assert!(left <= 50_000 && left > 45_000, "{left}");
    assert!(!logs[1].reader().is_in_memory(offset(99)));
    assert!(logs[2].reader().is_in_memory(offset(99)), "the newest stay");
    for log in logs {
        assert_eq!(read_all(&log.reader(), 5000).0.len(), 100);
    }
    assert_eq!(store.counters().tail_bytes, 0, "a log that is gone holds nothing");
}

#[test]
fn an_eviction_stops_at_what_is_not_flushed() {
    let budget = Config { tail_cache_bytes: 50_000, ..Config::default() };
    let store = store_with(SimFs::new().shared(), budget);
    let topic = TopicConfig::default();
    let mut first = PartitionLog::create(&store, partition(0), &topic);
    let mut second = PartitionLog::create(&store, partition(1), &topic);
    fill(&mut first, 0..20, 1000);
    for tag in 20..60 {
        first.append(batch(tag, &[i64::try_from(tag).unwrap()], 1000), 1).unwrap();
    }
    first.publish();
    assert!(first.reader().is_in_memory(offset(0)), "nobody has looked for memory yet");
    fill(&mut second, 0..1, 10);
    assert!(!first.reader().is_in_memory(offset(19)));
    assert!(first.reader().is_in_memory(offset(20)));
    assert_eq!(read_all(&first.reader(), 5000).0.len(), 60);
}

#[test]
fn a_search_by_time_finds_the_first_in_offset_order_however_timestamps_jump() {
    let fs = SimFs::new();
    let store = store_with(fs.shared(), NO_CACHE);
    let mut log = PartitionLog::create(&store, partition(0), &small_segments());
    // Out of order within batches, between batches and between segments.
    let mut timestamps = Vec::new();
    for tag in 0..120_i64 {
        let times = [tag * 37 % 101 * 10, tag * 53 % 97 * 10, 500 + tag];
        timestamps.extend_from_slice(&times);
        log.append(batch(u64::try_from(tag).unwrap(), &times, 700), 1).unwrap();
    }
    log.publish();
    for start in [0, 100, 101, 300] {
        log.flush().unwrap();
        log.advance_log_start(offset(start));
        for time in (-1..1100).step_by(7) {
            // Below, at and above the log start, on and between the edges of batches.
            let from = time % 11 * 20;
            let lowest = start.max(from);
            let expected = timestamps
                .iter()
                .enumerate()
                .position(|(at, found)| i64::try_from(at).unwrap() >= lowest && *found >= time);
            let time = Timestamp::from_millis(time);
            let found = log.reader().find_timestamp(offset(from.max(0)), time).unwrap();
            assert_eq!(found.map(Offset::get), expected.map(|at| i64::try_from(at).unwrap()));
        }
    }
}
