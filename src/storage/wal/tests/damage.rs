//! Torn tails, stale bytes of recycled files, flipped bits.

use super::*;
use crate::storage::wal::format::{FILE_HEADER_BYTES, ROUND_MAGIC};
use crate::storage::wal::{Floors, Salvage, check, dump, find, salvage};

/// Replica 1 has fixed-size entries, votes and truncations, each in its own round.
fn step(wal: &Wal, at: u64) {
    save_vote(wal, 1, vote(at)).unwrap();
    let last = wal.state(replica(1)).unwrap().last.map_or(0, |last| last.index.get());
    if at.is_multiple_of(3) && last > 0 {
        truncate(wal, 1, Some(last - 1)).unwrap();
        append_range(wal, 1, at, last..last + 2, 40).unwrap();
    } else {
        append_range(wal, 1, at, last + 1..last + 2, 40).unwrap();
    }
}

/// What must not go back: the vote's term, and the last entry.
fn reached(recovery: &Recovery) -> (u64, u64, u64) {
    let state = recovery.replicas[&replica(1)];
    let last = state.last.unwrap();
    (state.vote.unwrap().term.get(), last.term.get(), last.index.get())
}

/// Cuts the last step's writes at every byte, with what the file held before behind the cut.
/// Returns which step it was.
fn cut_last_step_at_every_byte(fs: &SimFs, wal: &Wal, mut at: u64) -> u64 {
    let (before, after) = loop {
        let before = fs.cut();
        at += 1;
        step(wal, at);
        let after = fs.cut();
        if begun_files(&before) == begun_files(&after) {
            break (before, after);
        }
    };
    let path = begun_files(&after).pop().unwrap();
    let (old, new) = (read_bytes(&before, &path), read_bytes(&after, &path));
    let first = old.iter().zip(&new).position(|(old, new)| old != new).unwrap();
    let (_, end) = end_of(&new);
    let state = |fs: &SimFs| {
        let (wal, recovery) = open(&fs.cut());
        (reached(&recovery), read_all(&wal, 1))
    };
    let ((least, entries_before), (most, entries_after)) = (state(&before), state(&after));
    for cut in first..=end {
        let mut bytes = new[..cut].to_vec();
        bytes.extend_from_slice(old.get(cut..).unwrap_or_default());
        let (wal, recovery) = open(&with_bytes(&before, &path, &bytes));
        let found = reached(&recovery);
        assert!(found.0 >= least.0 && found.0 <= most.0, "vote {found:?} at {cut}");
        // The step may take its last entry back before it writes on.
        assert!(found.2 + 1 >= least.2 && found.2 <= most.2, "suffix {found:?} at {cut}");
        if cut == end {
            assert_eq!(found, most);
        }
        let entries = read_all(&wal, 1);
        let is_known = entries_before.starts_with(&entries) || entries_after.starts_with(&entries);
        assert!(is_known, "{found:?} at {cut} is of neither log");
        assert!(entries.iter().all(|(term, raw, bytes)| *bytes == payload(1, *term, *raw, 40)));
    }
    at
}

#[test]
fn a_tail_torn_at_any_byte_loses_nothing_acknowledged() {
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    (1..6).for_each(|at| step(&wal, at));
    // Each kind of step, those that take entries back too.
    (0..3).fold(5, |at, _| cut_last_step_at_every_byte(&fs, &wal, at));
}

#[test]
fn stale_frames_of_a_recycled_file_never_come_back() {
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    let mut at = 1;
    let recycled = |fs: &SimFs| {
        let bytes = read_bytes(fs, begun_files(fs).last().unwrap());
        let (_, end) = end_of(&bytes);
        memchr::memmem::find(&bytes[end..], &ROUND_MAGIC).is_some()
    };
    while !recycled(&fs.cut()) {
        step(&wal, at);
        at += 1;
        if let Some(last) = wal.state(replica(1)).unwrap().last.filter(|_| at.is_multiple_of(8)) {
            let upto = index(last.index.get() - 1);
            wal.purge(
                replica(1),
                LogId { term: wal.term_of(replica(1), upto).unwrap(), index: upto },
            );
        }
        assert!(at < 20_000, "no file was recycled");
    }
    (0..3).fold(at, |at, _| cut_last_step_at_every_byte(&fs, &wal, at));
}

/// A log of one file with two replicas, and that file's bytes.
fn small_log() -> (SimFs, PathBuf, Vec<u8>) {
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    for raw in 1..5 {
        append_range(&wal, 1, 1, raw..raw + 1, 30).unwrap();
        append_range(&wal, 2, 1, raw..raw + 1, 30).unwrap();
    }
    save_vote(&wal, 1, vote(1)).unwrap();
    append_range(&wal, 1, 1, 5..6, 30).unwrap();
    let fs = fs.cut();
    let path = begun_files(&fs).pop().unwrap();
    let bytes = read_bytes(&fs, &path);
    (fs, path, bytes)
}

#[test]
fn a_flipped_bit_before_the_last_round_is_damage_and_changes_nothing_on_disk() {
    let (fs, path, bytes) = small_log();
    let (last_round, end) = end_of(&bytes);
    let whole = open(&fs.cut()).1.replicas;
    for at in 0..end {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        let fs = with_bytes(&fs, &path, &flipped);
        let opened = try_open(&fs);
        if (12..16).contains(&at) {
            assert_eq!(opened.unwrap().1.replicas, whole, "reserved bytes mean nothing");
        } else if at < last_round {
            assert!(matches!(opened, Err(Error::Damaged(_))), "byte {at}: {opened:?}");
            assert_eq!(read_bytes(&fs.cut(), &path), flipped);
        } else {
            let (_, recovery) = opened.unwrap();
            assert_eq!(recovery.replicas[&replica(1)].last, Some(id(1, 4)), "byte {at}");
            assert_eq!(recovery.replicas[&replica(2)], whole[&replica(2)]);
        }
    }
}

#[test]
fn a_cut_below_a_checkpoint_or_a_committed_mark_is_refused() {
    let (fs, path, mut bytes) = small_log();
    assert!(open_with(&fs.cut(), &[(1, id(1, 5))]).is_ok());
    let (_, end) = end_of(&bytes);
    bytes[end - 1] ^= 1;
    let fs = with_bytes(&fs, &path, &bytes);
    assert!(open_with(&fs.cut(), &[(1, id(1, 4)), (2, id(1, 4))]).is_ok());
    let refused = open_with(&fs, &[(1, id(1, 5))]);
    assert!(matches!(refused, Err(Error::Behind { torn: Some(_), .. })), "{refused:?}");
    assert!(matches!(open_with(&fs, &[(3, id(1, 1))]), Err(Error::Behind { .. })), "lost log");
    let (_, recovery) = open_retiring(&fs, &[(1, id(1, 5)), (2, id(1, 4))]);
    assert_eq!(recovery.damaged.keys().collect::<Vec<_>>(), [&replica(1)]);
    assert_eq!(recovery.replicas.keys().collect::<Vec<_>>(), [&replica(2)]);
}

#[test]
fn a_log_that_starts_after_what_a_checkpoint_covers_is_refused_and_left_as_it_is() {
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    append_range(&wal, 1, 1, 1..10, 20).unwrap();
    wal.purge(replica(1), id(1, 5));
    barrier(&wal).unwrap();
    append_range(&wal, 1, 1, 10..11, 20).unwrap();
    wal.close().unwrap();
    let all = |fs: &SimFs| -> Vec<_> {
        let files = Fs::list(fs, dir()).unwrap().into_iter().map(|entry| dir().join(entry.name));
        files.map(|path| (path.clone(), read_bytes(fs, &path))).collect()
    };
    let before = all(&fs);
    let open = |floor: Option<LogId>| {
        let floors = Floors::from([(replica(1), floor), (replica(2), None)]);
        Wal::open(fs.shared(), dir(), config(), &floors, Arc::new(NoObserver))
    };
    for floor in [None, Some(id(1, 4))] {
        let refused = open(floor).unwrap_err();
        assert!(
            matches!(refused, Error::NoCheckpoint { purged, .. } if purged == index(5)),
            "{refused}"
        );
        assert_eq!(all(&fs), before);
    }
    drop(open(Some(id(1, 5))).unwrap());
}

#[test]
fn a_damaged_payload_retires_its_replica_alone_and_a_damaged_head_all() {
    let (fs, path, bytes) = small_log();
    let payload_at = memchr::memmem::find(&bytes, b"<2/1/2>").unwrap();
    for (at, retired, kept) in
        [(payload_at, vec![2], vec![1]), (payload_at - 20, vec![1, 2], vec![])]
    {
        let mut bytes = bytes.clone();
        bytes[at] ^= 4;
        let fs = with_bytes(&fs, &path, &bytes);
        let (wal, recovery) = open_retiring(&fs, &[]);
        let found: Vec<u64> = recovery.damaged.keys().map(|replica| replica.get()).collect();
        assert_eq!(found, retired);
        let found: Vec<u64> = recovery.replicas.keys().map(|replica| replica.get()).collect();
        assert_eq!(found, kept);
        for of in &kept {
            assert_eq!(read_all(&wal, *of).len(), 5);
        }
        assert!(append_range(&wal, 2, 1, 5..6, 1).is_err(), "a retired replica writes");
        assert!(wal.poisoned().is_none());
        append_range(&wal, 7, 1, 1..3, 1).unwrap();
        drop(wal);
        // The replacement lives on, and the old damage is over even for a node that refuses.
        let (wal, recovery) = open(&fs.cut());
        assert_eq!(read_all(&wal, 7).len(), 2);
        assert!(recovery.damaged.is_empty());
    }
}

#[test]
fn a_damaged_entry_that_was_purged_is_no_loss() {
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    append_range(&wal, 1, 1, 1..5, 30).unwrap();
    wal.purge(replica(1), id(1, 2));
    append_range(&wal, 1, 1, 5..6, 30).unwrap();
    let fs = fs.cut();
    let path = begun_files(&fs).pop().unwrap();
    for (raw, is_loss) in [(2, false), (3, true)] {
        let mut bytes = read_bytes(&fs, &path);
        let at = memchr::memmem::find(&bytes, format!("<1/1/{raw}>").as_bytes()).unwrap();
        bytes[at] ^= 1;
        assert_eq!(try_open(&with_bytes(&fs, &path, &bytes)).is_err(), is_loss);
    }
}

#[test]
fn an_entry_that_cannot_be_read_back_is_an_error_and_never_a_gap() {
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    append_range(&wal, 1, 1, 1..6, 30).unwrap();
    let path = begun_files(&fs).pop().unwrap();
    let bytes = read_bytes(&fs, &path);
    let at = memchr::memmem::find(&bytes, b"<1/1/3>").unwrap();
    let file = fs.open(&path, Open::Write).unwrap();
    file.write_all_at(&[IoSlice::new(b"?")], u64::try_from(at).unwrap()).unwrap();
    let read = |from, to| wal.read(replica(1), index(from)..index(to), u64::MAX);
    assert!(matches!(read(1, 6), Err(Error::Damaged(_))));
    assert_eq!(read(1, 3).unwrap().len(), 2);
    assert_eq!(read(4, 6).unwrap().len(), 2);
}

#[test]
fn a_missing_file_in_the_middle_is_damage() {
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    append_rolling(&wal, 1..200, 300);
    drop(wal);
    let fs = fs.cut();
    let files = begun_files(&fs);
    assert!(files.len() > 3);
    fs.remove_file(&files[1]).unwrap();
    assert!(matches!(try_open(&fs), Err(Error::Damaged(_))));
}

#[test]
fn an_announced_snapshot_may_be_ahead_of_the_log() {
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    append_range(&wal, 1, 1, 1..4, 10).unwrap();
    assert!(matches!(open_with(&fs.cut(), &[(1, id(2, 90))]), Err(Error::Behind { .. })));
    let (done, receiver) = done();
    wal.announce_snapshot(replica(1), id(2, 90), done);
    wait(&receiver).unwrap();
    let floors = [(1, id(2, 90))];
    let (wal, recovery) = open_with(&fs.cut(), &floors).unwrap();
    let state = recovery.replicas[&replica(1)];
    assert_eq!((state.purged, state.last, state.first), (Some(id(2, 90)), Some(id(2, 90)), None));
    append_range(&wal, 1, 2, 91..93, 10).unwrap();
    // Without the checkpoint the announcement means nothing.
    assert_eq!(open(&fs.cut()).1.replicas[&replica(1)].last, Some(id(1, 3)));
}

#[test]
fn a_dump_lists_every_frame_and_salvages_what_follows_damage() {
    let (fs, path, mut bytes) = small_log();
    let lines = |fs: &SimFs, salvage| {
        let mut out = Vec::new();
        dump(fs, dir(), &mut out, salvage).unwrap();
        String::from_utf8(out).unwrap()
    };
    let whole = lines(&fs, Salvage::StopAtDamage);
    assert_eq!(whole.matches("Entry replica=").count(), 9);
    assert!(whole.contains("Vote replica=1 term=1"));
    assert!(whole.contains(" end: "));
    let at = memchr::memmem::find(&bytes, b"<2/1/2>").unwrap();
    bytes[at] ^= 1;
    let fs = with_bytes(&fs, &path, &bytes);
    assert_eq!(lines(&fs, Salvage::StopAtDamage).matches("Entry replica=").count(), 3);
    let salvaged = lines(&fs, Salvage::SkipDamage);
    assert_eq!(salvaged.matches("Entry replica=").count(), 8);
    assert!(salvaged.contains("damaged, next round at"));
}

/// Replica, term, index and payload of all entries that can be salvaged.
fn salvaged(fs: &SimFs) -> Vec<(u64, u64, u64, Vec<u8>)> {
    let mut found = Vec::new();
    salvage(fs, dir(), &mut |replica, id, payload| {
        found.push((replica.get(), id.term.get(), id.index.get(), payload.to_vec()));
        Ok(())
    })
    .unwrap();
    found
}

#[test]
fn all_entries_but_the_damaged_one_are_salvaged_wherever_the_damage_is() {
    let (fs, path, bytes) = small_log();
    let (_, end) = end_of(&bytes);
    let whole = salvaged(&fs);
    assert_eq!(whole.len(), 9);
    assert!(whole.iter().all(|(of, term, raw, found)| *found == payload(*of, *term, *raw, 30)));
    for at in 0..end {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        let fs = with_bytes(&fs, &path, &flipped);
        let found = salvaged(&fs);
        assert!(found.len() >= 8, "byte {at}: {found:?}");
        assert!(found.iter().all(|entry| whole.contains(entry)), "byte {at}: {found:?}");
        let verdict = check(&fs, dir());
        assert_eq!(read_bytes(&fs.cut(), &path), flipped, "nothing is changed");
        let opened = try_open(&fs);
        assert_eq!(verdict.is_err(), opened.is_err(), "byte {at}: {verdict:?} {opened:?}");
    }
}

#[test]
fn what_the_log_took_back_is_not_salvaged_and_nothing_twice() {
    let fs = SimFs::new();
    let (wal, _) = open(&fs);
    append_range(&wal, 1, 1, 1..6, 20).unwrap();
    append_range(&wal, 2, 1, 1..3, 20).unwrap();
    append_range(&wal, 3, 1, 1..3, 20).unwrap();
    truncate(&wal, 1, Some(2)).unwrap();
    append_range(&wal, 1, 2, 3..5, 20).unwrap();
    truncate(&wal, 2, None).unwrap();
    wal.forget(replica(3));
    barrier(&wal).unwrap();
    let ids = |fs: &SimFs| -> Vec<_> {
        salvaged(fs).into_iter().map(|(of, term, raw, _)| (of, term, raw)).collect()
    };
    let expected = [(1, 1, 1), (1, 1, 2), (1, 2, 3), (1, 2, 4)];
    assert_eq!(ids(&fs), expected);
    // A start that is cut off after each of its steps: the last file and its copy are both there.
    for changes in 0..12 {
        let fs = fs.cut();
        fs.stop_after(changes);
        let _ = try_open(&fs);
        assert_eq!(ids(&fs.crash()), expected, "stopped after {changes} changes");
    }
}

#[test]
fn a_log_is_found_in_its_folder_and_in_the_data_directory_and_nowhere_else() {
    let (fs, _, _) = small_log();
    for folder in ["/wal", "/"] {
        assert_eq!(find(&fs, Path::new(folder)).unwrap(), dir());
    }
    fs.create_dir_all(Path::new("/other/wal")).unwrap();
    assert!(matches!(find(&fs, Path::new("/other")), Err(Error::NoLog(_))));
    assert!(matches!(find(&fs, Path::new("/other/wal")), Err(Error::NoLog(_))));
    assert!(matches!(find(&fs, Path::new("/nowhere")), Err(Error::Io { .. })));
}

#[test]
fn a_copy_that_was_not_finished_is_ignored() {
    let (fs, path, bytes) = small_log();
    let whole = open(&fs.cut()).1.replicas;
    for changes in 0..12 {
        let fs = with_bytes(&fs, &path, &bytes);
        fs.stop_after(changes);
        let _ = try_open(&fs);
        for fs in [fs.cut(), fs.cut_with_luck(changes), fs.crash()] {
            assert_eq!(open(&fs).1.replicas, whole, "stopped after {changes} changes");
        }
    }
}

const _: () = assert!(FILE_HEADER_BYTES == 64, "the flipped-bit test knows the reserved bytes");
