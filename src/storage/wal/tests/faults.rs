//! Failing disks, full disks, killed processes.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::storage::fs::sim::{
    Counters, Fault, IO_FAILED, NO_SPACE, NO_SUCH_CALL, NOT_PERMITTED, NOT_SUPPORTED, Operation,
    Repeat,
};
use crate::storage::wal::{Observer, RoundSize, SharedObserver};

/// Waits until the disk's counters say something; the threads of the log run meanwhile.
fn wait_for(fs: &SimFs, what: impl Fn(Counters) -> bool) {
    while !what(fs.counters()) {
        std::thread::yield_now();
    }
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged_and_what_recovery_keeps_is_durable() {
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    append_range(&wal, 1, 1, 1..4, 50).unwrap();
    let (told, heard) = channel();
    wal.on_poison(move |poisoned| drop(told.send(poisoned.reason.to_string())));
    // The simulation knows the first file by the name under which it was made.
    let fault = Fault {
        operation: Operation::Sync,
        after: 0,
        path_contains: "recovery".into(),
        errno: IO_FAILED,
        repeat: Repeat::Once,
    };
    fs.inject(fault);
    assert!(append_range(&wal, 1, 1, 4..6, 50).is_err());
    assert!(heard.recv().unwrap().contains("cannot sync"));
    assert!(append_range(&wal, 1, 1, 6..7, 50).is_err());
    assert!(save_vote(&wal, 1, vote(2)).is_err());
    assert!(barrier(&wal).is_err());
    assert!(wal.close().is_err());

    // The page cache still has the round; the disk does not, whatever is synced later.
    let fs = fs.crash();
    let (wal, recovery) = open(&fs);
    assert_eq!(recovery.replicas[&replica(1)].last, Some(id(1, 5)));
    let answered = read_all(&wal, 1);
    let (wal, _) = open(&fs.cut());
    assert_eq!(read_all(&wal, 1), answered);
}

#[test]
fn unsynced_frames_that_a_killed_process_left_are_durable_once_they_were_answered() {
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    append_range(&wal, 1, 1, 1..4, 50).unwrap();
    // Let the file thread come to rest, so that the next write is the round's.
    wait_for(&fs, |_| wal.has_next_file());
    fs.hold_syncs();
    let writes = fs.counters().writes;
    let (done, receiver) = done();
    wal.append(replica(1), vec![entry(1, 4, b"unsynced")], done);
    wait_for(&fs, |counters| counters.writes > writes);
    let fs = fs.crash();
    assert!(wait(&receiver).is_err());
    assert_eq!(open(&fs.cut()).1.replicas[&replica(1)].last, Some(id(1, 3)), "not synced");
    let (wal, recovery) = open(&fs);
    assert_eq!(recovery.replicas[&replica(1)].last, Some(id(1, 4)));
    drop(wal);
    let (_, recovery) = open(&fs.cut());
    assert_eq!(recovery.replicas[&replica(1)].last, Some(id(1, 4)));
}

/// A file that is too large to be copied without need is copied after an unclean stop all the same:
/// what was read of it may be in the page cache alone.
#[test]
fn unsynced_frames_of_a_large_file_are_durable_once_they_were_answered() {
    let fs = SimFs::new();
    let large = Config { file_bytes: 4 << 20, max_bytes: 16 << 20, ..config() };
    let open = |fs: &SimFs| {
        Wal::open(fs.shared(), dir(), large, &BTreeMap::new(), Arc::new(NoObserver)).unwrap()
    };
    let (wal, _) = open(&fs);
    let mut raw = 1;
    // Beyond the first file, which is small, and into the middle of another.
    let is_large = || {
        let files = begun_files(&fs);
        files.len() > 1 && (2 << 20..3 << 20).contains(&end_of(&read_bytes(&fs, &files[1])).1)
    };
    while !is_large() {
        wait_for(&fs, |_| wal.has_next_file());
        append_range(&wal, 1, 1, raw..raw + 1, 300 << 10).unwrap();
        raw += 1;
    }
    wait_for(&fs, |_| wal.has_next_file());
    fs.hold_syncs();
    let writes = fs.counters().writes;
    let (done, receiver) = done();
    wal.append(replica(1), vec![entry(1, raw, b"unsynced")], done);
    wait_for(&fs, |counters| counters.writes > writes);
    let fs = fs.crash();
    assert!(wait(&receiver).is_err());
    let last = |recovery: &Recovery| recovery.replicas[&replica(1)].last;
    assert_eq!(last(&open(&fs.cut()).1), Some(id(1, raw - 1)), "not synced");
    let (wal, recovery) = open(&fs);
    assert_eq!(last(&recovery), Some(id(1, raw)));
    drop(wal);
    assert_eq!(last(&open(&fs.cut()).1), Some(id(1, raw)), "what was answered was not durable");
}

#[test]
fn no_space_for_any_one_write_loses_and_ends_nothing() {
    for nth in 0..60 {
        let fs = SimFs::new();
        let (wal, _) = open(&fs);
        fs.fail_nth(Operation::Write, nth, NO_SPACE);
        for raw in 1..40 {
            append_range(&wal, 1, 1, raw..raw + 1, 400).unwrap();
        }
        assert!(wal.poisoned().is_none());
        let expected = read_all(&wal, 1);
        assert_eq!(expected.len(), 39);
        let (wal, _) = open(&fs.cut());
        assert_eq!(read_all(&wal, 1), expected);
    }
}

/// Counts how often the round at hand was begun: more than once when the disk has no space for it.
#[derive(Default)]
struct Attempts(AtomicU64);

impl Observer for Attempts {
    fn round_begins(&self, _round: RoundSize) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
    fn sync_begins(&self) {}
    fn round_ends(&self) {
        self.0.store(0, Ordering::SeqCst);
    }
}

#[test]
fn a_full_disk_is_no_poison_and_the_log_goes_on_when_space_returns() {
    let fs = SimFs::new();
    let attempts = Arc::new(Attempts::default());
    let observer = Arc::clone(&attempts) as SharedObserver;
    let (wal, _) = Wal::open(fs.shared(), dir(), config(), &BTreeMap::new(), observer).unwrap();
    append_range(&wal, 1, 1, 1..2, 10).unwrap();
    wait_for(&fs, |_| wal.has_next_file());
    let used = Fs::space(&fs, dir()).unwrap();
    fs.set_capacity(Some(used.total - used.available));
    let mut raw = 2;
    // The room of the prepared file is used up, and then the log waits without answering.
    let stuck = 'full: loop {
        let (done, receiver) = done();
        wal.append(replica(1), vec![entry(1, raw, &payload(1, 1, raw, 500))], done);
        raw += 1;
        assert!(raw < 100, "the disk is not full");
        loop {
            match receiver.try_recv() {
                Ok(result) => break result.unwrap(),
                Err(_) if attempts.0.load(Ordering::SeqCst) > 3 => break 'full receiver,
                Err(_) => std::thread::yield_now(),
            }
        }
    };
    assert!(wal.is_storage_full());
    assert!(wal.poisoned().is_none());
    fs.set_capacity(None);
    wait(&stuck).unwrap();
    append_range(&wal, 1, 1, raw..raw + 30, 500).unwrap();
    wait_for(&fs, |_| !wal.is_storage_full());
    let expected = read_all(&wal, 1);
    let (wal, _) = open(&fs.cut());
    assert_eq!(read_all(&wal, 1), expected);
    assert_eq!(expected.len(), usize::try_from(raw + 29).unwrap());
}

#[test]
fn a_disk_that_cannot_make_a_file_says_so_and_the_current_file_grows() {
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    fs.inject(Fault {
        operation: Operation::Create,
        after: 0,
        path_contains: "spare".into(),
        errno: NO_SPACE,
        repeat: Repeat::Always,
    });
    for raw in 1..100 {
        append_range(&wal, 1, 1, raw..raw + 1, 500).unwrap();
    }
    wait_for(&fs, |_| wal.is_storage_full());
    fs.clear_faults();
    wait_for(&fs, |_| !wal.is_storage_full());
    append_range(&wal, 1, 1, 100..110, 500).unwrap();
    let expected = read_all(&wal, 1);
    assert_eq!(read_all(&open(&fs.cut()).0, 1), expected);
}

fn allocate_fails(errno: i32) -> Fault {
    let (operation, path_contains) = (Operation::Allocate, String::new());
    Fault { operation, after: 0, path_contains, errno, repeat: Repeat::Always }
}

fn wait_for_next_file(wal: &Wal) {
    while !wal.has_next_file() {
        assert_eq!(wal.no_file(), None);
        std::thread::yield_now();
    }
}

/// NFS before 4.2, FUSE, 9p: files are made all the same, and have the bytes that were written.
#[test]
fn a_file_system_that_cannot_allocate_gets_files_that_are_written() {
    for errno in [NOT_SUPPORTED, NO_SUCH_CALL] {
        let fs = SimFs::new();
        fs.inject(allocate_fails(errno));
        let (wal, _) = open(&fs);
        wait_for_next_file(&wal);
        // At rest: the next file is filled to its end, and used.
        append_rolling(&wal, 1..100, 300);
        let lens = || Fs::list(&fs, dir()).unwrap().into_iter().map(|entry| entry.len);
        assert!(lens().any(|len| len >= FILE_BYTES), "{:?}", lens().collect::<Vec<_>>());
        // In a hurry: it is taken as far as it is filled.
        for raw in 100..400 {
            append_range(&wal, 1, 1, raw..raw + 1, 300).unwrap();
        }
        assert_eq!((wal.no_file(), wal.is_storage_full()), (None, false));
        let expected = read_all(&wal, 1);
        assert_eq!(expected.len(), 399);
        let after = fs.cut();
        after.inject(allocate_fails(errno));
        assert_eq!(read_all(&open(&after).0, 1), expected);
    }
}

/// A file that is not allocated has no room of its own: the disk may be full in the middle of it.
#[test]
fn a_file_that_is_not_allocated_waits_for_space_in_its_middle() {
    let fs = SimFs::new();
    fs.inject(allocate_fails(NOT_SUPPORTED));
    let (wal, _) = open(&fs);
    wait_for_next_file(&wal);
    append_range(&wal, 1, 1, 1..2, 10).unwrap();
    let mut answers = Vec::new();
    for raw in 2..200 {
        let used = Fs::space(&fs, dir()).unwrap();
        fs.set_capacity(Some(used.total - used.available));
        let (done, receiver) = done();
        wal.append(replica(1), vec![entry(1, raw, &payload(1, 1, raw, 700))], done);
        // Whatever the file thread does with the room that comes back.
        if raw % 3 == 0 {
            fs.set_capacity(None);
            wait(&receiver).unwrap();
        } else {
            answers.push(receiver);
        }
    }
    fs.set_capacity(None);
    answers.iter().for_each(|receiver| wait(receiver).unwrap());
    assert!(wal.poisoned().is_none());
    wait_for(&fs, |_| !wal.is_storage_full());
    let expected = read_all(&wal, 1);
    assert_eq!(expected.len(), 199);
    assert_eq!(read_all(&open(&fs.cut()).0, 1), expected);
}

#[test]
fn why_no_file_can_be_made_is_told_until_one_can() {
    let fs = SimFs::new();
    fs.inject(allocate_fails(NOT_PERMITTED));
    let (wal, _) = open(&fs);
    wait_for(&fs, |_| wal.no_file().is_some());
    let why = wal.no_file().unwrap();
    assert!(why.contains("cannot allocate /wal/spare.") && why.contains("os error 1"), "{why}");
    assert!(wal.is_storage_full());
    fs.clear_faults();
    wait_for(&fs, |_| wal.no_file().is_none());
    wait_for(&fs, |_| !wal.is_storage_full());
}

#[test]
fn a_failed_directory_sync_ends_the_log() {
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    wait_for(&fs, |_| wal.has_next_file());
    fs.fail_nth(Operation::SyncDir, 0, IO_FAILED);
    for raw in 1..200 {
        if append_range(&wal, 1, 1, raw..raw + 1, 500).is_err() {
            break;
        }
    }
    assert!(wal.poisoned().is_some());
}

/// A killed node must start on a full disk, or nothing is ever deleted from it.
#[test]
fn a_log_opens_on_a_full_disk_in_a_file_that_was_prepared_for_later() {
    for entries in [1, 40, 120] {
        let fs = SimFs::new();
        let (wal, _) = open(&fs);
        save_vote(&wal, 1, vote(1)).unwrap();
        append_range(&wal, 1, 1, 1..entries, 20).unwrap();
        while !wal.has_next_file() {
            std::thread::yield_now();
        }
        let before = read_all(&wal, 1);
        let killed = fs.crash();
        let used = |fs: &SimFs| {
            let space = fs.space(dir()).unwrap();
            space.total - space.available
        };
        for spare_bytes in [0, 1, 100, 2000] {
            let full = killed.cut_with_luck(1);
            let full = if spare_bytes == 0 { killed.cut() } else { full };
            full.set_capacity(Some(used(&full) + spare_bytes));
            let (wal, _) = open(&full);
            assert_eq!(read_all(&wal, 1), before, "{entries} {spare_bytes}");
            append(&wal, 1, vec![entry(1, entries, b"more")]).unwrap();
            full.set_capacity(None);
            wal.close().unwrap();
            let (wal, _) = open(&full.cut());
            assert_eq!(read_all(&wal, 1).len(), before.len() + 1);
        }
    }
}
