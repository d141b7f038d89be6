//! Appending, reading, marks, files and restarts without trouble.

use super::*;

#[test]
fn what_was_acknowledged_is_there_after_a_power_cut() {
    let fs = SimFs::new();
    let (wal, recovery) = open(&fs);
    assert!(recovery.replicas.is_empty());
    append_range(&wal, 1, 1, 1..4, 20).unwrap();
    append_range(&wal, 2, 1, 1..3, 20).unwrap();
    save_vote(&wal, 1, vote(3)).unwrap();
    wal.save_committed(replica(1), id(1, 2));
    append_range(&wal, 1, 3, 4..6, 20).unwrap();
    let before = (read_all(&wal, 1), read_all(&wal, 2));
    let (wal, recovery) = open(&fs.cut());
    assert_eq!((read_all(&wal, 1), read_all(&wal, 2)), before);
    let state = recovery.replicas[&replica(1)];
    assert_eq!(state.vote, Some(vote(3)));
    assert_eq!(state.committed, Some(id(1, 2)));
    assert_eq!((state.first, state.last), (Some(index(1)), Some(id(3, 5))));
    assert_eq!(recovery.replicas[&replica(2)].vote, None);
    assert_eq!(wal.state(replica(1)), Some(state));
    assert_eq!(wal.key_log_ids(replica(1)), vec![id(1, 3), id(3, 5)]);
    assert_eq!(wal.term_of(replica(1), index(3)), Some(Term::new(1)));
    assert_eq!(wal.term_of(replica(1), index(6)), None);
}

#[test]
fn an_entry_is_readable_before_it_is_written() {
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    append_range(&wal, 1, 1, 1..3, 30).unwrap();
    fs.hold_syncs();
    let (done, receiver) = done();
    wal.append(replica(1), vec![entry(1, 3, b"three")], done);
    let found = flat(&wal.read(replica(1), index(2)..index(9), u64::MAX).unwrap());
    assert_eq!(found, vec![(1, 2, payload(1, 1, 2, 30)), (1, 3, b"three".to_vec())]);
    assert_eq!(wal.queued_bytes(), 5);
    assert!(receiver.try_recv().is_err(), "answered without a sync");
    fs.resume_syncs();
    wait(&receiver).unwrap();
    assert_eq!(wal.queued_bytes(), 0);
    assert_eq!(flat(&wal.read(replica(1), index(2)..index(9), u64::MAX).unwrap()), found);
}

#[test]
fn what_is_queued_during_a_sync_shares_the_next_one() {
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    append_range(&wal, 1, 1, 1..2, 10).unwrap();
    fs.hold_syncs();
    let (first, first_seen) = done();
    wal.append(replica(1), vec![entry(1, 2, b"x")], first);
    let receivers: Vec<_> = (3..50)
        .map(|raw| {
            let (done, receiver) = done();
            wal.append(replica(1), vec![entry(1, raw, b"x")], done);
            receiver
        })
        .collect();
    let before = fs.counters().syncs;
    fs.resume_syncs();
    wait(&first_seen).unwrap();
    receivers.iter().for_each(|receiver| wait(receiver).unwrap());
    // Two rounds at most, and the file thread's own sync of a filled file.
    assert!(fs.counters().syncs - before <= 4);
}

#[test]
fn reading_stops_at_the_bytes_asked_for_but_gives_one_entry() {
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    append_range(&wal, 1, 1, 1..10, 1000).unwrap();
    let count = |bytes| wal.read(replica(1), index(1)..index(10), bytes).unwrap().len();
    assert_eq!((count(0), count(1), count(2500), count(1 << 20)), (1, 1, 2, 9));
    assert!(wal.read(replica(1), index(10)..index(12), 1).unwrap().is_empty());
    wal.purge(replica(1), id(1, 4));
    let gone = wal.read(replica(1), index(4)..index(6), 1 << 20);
    assert!(matches!(gone, Err(Error::NotInLog { .. })));
    assert!(matches!(wal.read(replica(9), index(1)..index(2), 1), Err(Error::NotInLog { .. })));
}

#[test]
fn truncated_entries_are_gone_and_can_be_replaced() {
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    append_range(&wal, 1, 1, 1..10, 40).unwrap();
    truncate(&wal, 1, Some(5)).unwrap();
    assert_eq!(wal.state(replica(1)).unwrap().last, Some(id(1, 5)));
    append_range(&wal, 1, 2, 6..8, 40).unwrap();
    let expected = read_all(&wal, 1);
    assert_eq!(
        expected.iter().map(|(term, _, _)| *term).collect::<Vec<_>>(),
        [1, 1, 1, 1, 1, 2, 2]
    );
    let (wal, _) = open(&fs.cut());
    assert_eq!(read_all(&wal, 1), expected);
    truncate(&wal, 1, None).unwrap();
    assert_eq!(wal.state(replica(1)).unwrap().last, None);
    let (wal, _) = open(&fs.cut());
    assert_eq!(read_all(&wal, 1), expected, "the cut was of the first disk");
}

#[test]
fn an_entry_truncated_while_it_is_written_does_not_come_back() {
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    append_range(&wal, 1, 1, 1..3, 10).unwrap();
    fs.hold_syncs();
    let (append_done, _append_seen) = done();
    wal.append(replica(1), vec![entry(1, 3, b"old")], append_done);
    let (truncate_done, _truncate_seen) = done();
    wal.truncate_after(replica(1), Some(index(2)), truncate_done);
    let (done, receiver) = done();
    wal.append(replica(1), vec![entry(2, 3, b"new")], done);
    fs.resume_syncs();
    wait(&receiver).unwrap();
    assert_eq!(read_all(&wal, 1)[2], (2, 3, b"new".to_vec()));
    let (wal, _) = open(&fs.cut());
    assert_eq!(read_all(&wal, 1)[2], (2, 3, b"new".to_vec()));
}

#[test]
fn an_entry_that_does_not_follow_ends_the_log() {
    let (wal, _) = open(&SimFs::new());
    append_range(&wal, 1, 1, 1..3, 10).unwrap();
    assert!(append_range(&wal, 1, 1, 5..6, 10).is_err());
    assert!(wal.poisoned().is_some());
}

#[test]
fn a_clean_stop_is_followed_by_a_start_with_the_same_state() {
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    append_range(&wal, 1, 1, 1..50, 300).unwrap();
    save_vote(&wal, 1, vote(4)).unwrap();
    wal.save_committed(replica(1), id(1, 40));
    let expected = read_all(&wal, 1);
    wal.close().unwrap();
    assert!(append_range(&wal, 1, 1, 50..51, 1).is_err(), "closed");
    let (wal, recovery) = open(&fs.cut());
    assert_eq!(read_all(&wal, 1), expected);
    let state = recovery.replicas[&replica(1)];
    assert_eq!((state.committed, state.vote), (Some(id(1, 40)), Some(vote(4))));
    assert_eq!(recovery.torn_tail, None);
    append_range(&wal, 1, 1, 50..52, 1).unwrap();
}

#[test]
fn restarts_do_not_leave_files_behind() {
    let fs = SimFs::new();
    for round in 0..10 {
        let (wal, _) = open(&fs);
        append_range(&wal, 1, 1, round + 1..round + 2, 10).unwrap();
        wal.close().unwrap();
    }
    let (wal, _) = open(&fs);
    assert_eq!(read_all(&wal, 1).len(), 10);
    let names = Fs::list(&fs, dir()).unwrap();
    assert!(names.len() <= 5, "{names:?}");
}

#[test]
fn a_large_log_rolls_and_purging_gives_its_files_back() {
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    append_rolling(&wal, 1..400, 200);
    append_range(&wal, 2, 1, 1..2, 200).unwrap();
    assert!(wal.live_bytes() > config().max_bytes);
    let Some(pressure) = wal.pressure() else { panic!("no pressure") };
    assert_eq!(pressure.hold.len(), 1);
    let (held, upto) = pressure.hold[0];
    assert_eq!(held, replica(1));
    assert!(wal.is_over_hard_bound());
    wal.purge(held, LogId { term: Term::new(1), index: upto });
    wal.purge(held, id(1, 390));
    append_range(&wal, 2, 1, 2..3, 1).unwrap();
    assert!(wal.live_bytes() < config().max_bytes);
    assert_eq!(wal.pressure(), None);
    let before = (read_all(&wal, 1), read_all(&wal, 2));
    assert_eq!(before.0.len(), 9);
    let (wal, recovery) = open(&fs.cut());
    assert_eq!((read_all(&wal, 1), read_all(&wal, 2)), before);
    assert_eq!(recovery.replicas[&replica(1)].purged, Some(id(1, 390)));
}

#[test]
fn a_forgotten_replica_holds_nothing_and_stays_forgotten() {
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    append_rolling(&wal, 1..100, 200);
    wal.forget(replica(1));
    assert_eq!(wal.state(replica(1)), None);
    append_range(&wal, 2, 1, 1..2, 10).unwrap();
    assert!(wal.live_bytes() < FILE_BYTES);
    let (wal, recovery) = open(&fs.cut());
    assert_eq!(recovery.replicas.keys().collect::<Vec<_>>(), [&replica(2)]);
    assert_eq!(wal.state(replica(1)), None);
}

#[test]
fn committed_marks_and_purges_do_not_wake_the_writer() {
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    append_range(&wal, 1, 1, 1..10, 10).unwrap();
    fs.hold_syncs();
    let writes = fs.counters().writes;
    for raw in 1..9 {
        wal.save_committed(replica(1), id(1, raw));
    }
    wal.purge(replica(1), id(1, 3));
    fs.resume_syncs();
    // A barrier is served after them and would see their write.
    append_range(&wal, 1, 1, 10..11, 10).unwrap();
    barrier(&wal).unwrap();
    assert!(fs.counters().writes - writes <= 2);
    let (_, recovery) = open(&fs.cut());
    let state = recovery.replicas[&replica(1)];
    assert_eq!((state.committed, state.purged), (Some(id(1, 8)), Some(id(1, 3))));
}

#[test]
fn an_empty_barrier_needs_no_write() {
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    append_range(&wal, 1, 1, 1..2, 10).unwrap();
    barrier(&wal).unwrap();
    let (done, receiver) = done();
    wal.append(replica(1), Vec::new(), done);
    wait(&receiver).unwrap();
}

#[test]
fn a_committed_mark_is_not_written_before_its_entry() {
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    append_range(&wal, 1, 1, 1..4, 10).unwrap();
    wal.save_committed(replica(1), id(1, 9));
    save_vote(&wal, 1, vote(2)).unwrap();
    let (_, recovery) = open(&fs.cut());
    assert_eq!(recovery.replicas[&replica(1)].committed, None);
    append_range(&wal, 1, 1, 4..10, 10).unwrap();
    wal.save_committed(replica(1), id(1, 9));
    save_vote(&wal, 1, vote(2)).unwrap();
    let (_, recovery) = open(&fs.cut());
    assert_eq!(recovery.replicas[&replica(1)].committed, Some(id(1, 9)));
}

#[test]
fn purging_past_the_end_starts_the_log_anew_behind_it() {
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    append_range(&wal, 1, 1, 1..4, 10).unwrap();
    wal.purge(replica(1), id(5, 100));
    assert_eq!(wal.state(replica(1)).unwrap().last, Some(id(5, 100)));
    assert_eq!(wal.term_of(replica(1), index(100)), Some(Term::new(5)));
    append_range(&wal, 1, 5, 101..104, 10).unwrap();
    let expected = read_all(&wal, 1);
    assert_eq!(expected.len(), 3);
    let (wal, recovery) = open(&fs.cut());
    assert_eq!(read_all(&wal, 1), expected);
    assert_eq!(recovery.replicas[&replica(1)].purged, Some(id(5, 100)));
}

#[test]
fn what_is_said_of_a_forgotten_replica_does_not_reach_the_log() {
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    append_range(&wal, 1, 1, 1..4, 10).unwrap();
    wal.forget(replica(1));
    wal.save_committed(replica(1), id(1, 3));
    assert!(save_vote(&wal, 1, vote(2)).is_err());
    assert!(append_range(&wal, 1, 1, 4..5, 10).is_err());
    assert!(wal.poisoned().is_none());
    append_range(&wal, 2, 1, 1..2, 10).unwrap();
    let (wal, _) = open(&fs.cut());
    assert_eq!(wal.state(replica(1)), None);
    assert!(save_vote(&wal, 1, vote(3)).is_err(), "it is remembered over a restart");
}

/// A sync for each committed mark would double the syncs of a busy shard.
#[test]
fn committed_marks_wait_for_the_next_frame_that_needs_a_sync() {
    const MARKS: u64 = 200;
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    append_range(&wal, 1, 1, 1..2, 10).unwrap();
    append_range(&wal, 2, 1, 1..2, 10).unwrap();
    for n in 0..MARKS {
        wal.save_committed(replica(1 + n % 2), id(1, 1));
        std::thread::yield_now();
    }
    assert_eq!(wal.queued_commands() as u64, MARKS, "the writer was woken");
    append_range(&wal, 1, 1, 2..3, 10).unwrap();
    assert_eq!(wal.queued_commands(), 0);
    let (_, recovery) = open(&fs.cut());
    assert_eq!(recovery.replicas[&replica(2)].committed, Some(id(1, 1)));
}
