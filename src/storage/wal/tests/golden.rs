//! The bytes on disk. `tests/data/wal-v1` was written once by the first version of this format and
//! is never written again: a log of any release can be opened by all later ones.

use proptest::prelude::*;

use super::*;
use crate::storage::wal::format::{FILE_HEADER_BYTES, FrameHead, Kind, Seed};
use crate::storage::wal::round::{AllMarks, Marks, Round};

const FIRST: &[u8] = include_bytes!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/data/wal-v1/00000000000000000007.wal"
));
const SECOND: &[u8] = include_bytes!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/data/wal-v1/00000000000000000009.wal"
));

/// The first file: all kinds of frames but the clean stop's.
fn first() -> Vec<u8> {
    let header = FileHeader { sequence: 7, void_from: 5, previous_round: 40 };
    let mut round = Round::begin_file(Vec::new(), 7, &header);
    let marks = Marks { vote: Some(vote(3)), purged: Some(id(2, 9)), ..Marks::default() };
    round.head(&AllMarks::from([(replica(1), marks)]));
    round.finish(41);
    let mut bytes = round.bytes;
    let mut round = Round::begin(Vec::new(), 7, u64::try_from(bytes.len()).unwrap());
    for raw in 10..14 {
        round.entry(replica(1), &entry(3, raw, &payload(1, 3, raw, 20)), 0);
    }
    round.truncate(replica(1), Some(index(12)));
    round.entry(replica(2), &entry(1, 1, b""), 0);
    round.truncate(replica(2), None);
    round.entry(replica(2), &entry(4, 1, b"again"), 0);
    round.entry(replica(3), &entry(1, 1, b"leaves"), 0);
    round.dropped(replica(3));
    round.frame(Kind::Announced, replica(2), id(4, 8), &[]);
    round.frame(Kind::Committed, replica(1), id(3, 11), &[]);
    round.close(Kind::End);
    round.finish(42);
    bytes.extend_from_slice(&round.bytes);
    bytes
}

/// The second file: the marks again, one entry, and the clean stop.
fn second() -> Vec<u8> {
    let header = FileHeader { sequence: 9, void_from: 9, previous_round: 42 };
    let mut round = Round::begin_file(Vec::new(), 9, &header);
    let one = Marks {
        vote: Some(vote(4)),
        purged: Some(id(2, 9)),
        committed: Some(id(3, 12)),
        ..Marks::default()
    };
    let two = Marks { announced: Some(id(4, 8)), ..Marks::default() };
    round.head(&AllMarks::from([(replica(1), one), (replica(2), two)]));
    round.entry(replica(1), &entry(4, 13, b"thirteen"), 0);
    round.close(Kind::Stop);
    round.finish(43);
    round.bytes
}

#[test]
fn the_writer_still_makes_the_golden_bytes() {
    assert_eq!(first(), FIRST);
    assert_eq!(second(), SECOND);
}

#[test]
fn the_golden_log_is_read_as_it_was_written() {
    let fs = SimFs::new();
    fs.create_dir_all(dir()).unwrap();
    for (name, bytes) in [("00000000000000000007.wal", FIRST), ("00000000000000000009.wal", SECOND)]
    {
        let file = fs.open(&dir().join(name), Open::CreateNew).unwrap();
        file.write_all_at(&[IoSlice::new(bytes)], 0).unwrap();
    }
    let (wal, recovery) = open_with(&fs, &[(2, id(4, 8))]).unwrap();
    let one = recovery.replicas[&replica(1)];
    assert_eq!((one.vote, one.purged), (Some(vote(4)), Some(id(2, 9))));
    assert_eq!((one.committed, one.last), (Some(id(3, 12)), Some(id(4, 13))));
    let expected = vec![
        (3, 10, payload(1, 3, 10, 20)),
        (3, 11, payload(1, 3, 11, 20)),
        (3, 12, payload(1, 3, 12, 20)),
        (4, 13, b"thirteen".to_vec()),
    ];
    assert_eq!(read_all(&wal, 1), expected);
    assert_eq!(recovery.replicas[&replica(2)].last, Some(id(4, 8)), "the announced snapshot");
    assert_eq!(wal.state(replica(3)), None);
    assert_eq!(recovery.torn_tail, None);
}

/// Drives every decoder over any bytes.
fn decode_any(bytes: &[u8]) {
    let _ = FileHeader::parse(bytes);
    let seed = Seed::of(1);
    if let Ok(head) = FrameHead::parse(bytes, seed, 0) {
        let _ = head.payload(bytes, seed, 0);
    }
    let mut walker = Walker::new(bytes, 1, 0);
    for _ in 0..1000 {
        match walker.next_frame() {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(stopped) => match (stopped.head, walker.higher_round(stopped.round)) {
                (Some(head), _) => walker.skip_frame(&head),
                (None, Some(found)) => walker.skip_to(found),
                (None, None) => break,
            },
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..600)
    ) {
        decode_any(&bytes);
    }

    #[test]
    fn a_changed_file_is_decoded_without_a_panic(
        at in 0..FIRST.len(), bit in 0..8_u8, cut in FILE_HEADER_BYTES..FIRST.len()
    ) {
        let mut bytes = FIRST.to_vec();
        bytes[at] ^= 1 << bit;
        bytes.truncate(cut);
        decode_any(&bytes);
        let mut walker = Walker::new(&bytes, 7, 40);
        while let Ok(Some(frame)) = walker.next_frame() {
            prop_assert!(frame.position != u64::try_from(at).unwrap());
        }
    }
}
