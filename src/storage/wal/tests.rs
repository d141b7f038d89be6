//! Tests of the log as its callers see it, on a disk that can lose power.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use bytes::Bytes;

use crate::storage::fs::sim::SimFs;
use crate::storage::fs::{Fs, Open, read_file};
use crate::storage::wal::files::{Name, parse_name};
use crate::storage::wal::format::{FileHeader, ROUND_HEADER_BYTES};
use crate::storage::wal::parse::Walker;
use crate::storage::wal::{
    Config, Done, Entry, Error, LogId, NoObserver, OnDamage, Poisoned, Recovery, Vote, Wal,
};
use crate::types::{RaftIndex, ReplicaId, Term};

mod basics;
mod damage;
mod faults;
mod golden;
mod model;

pub(super) const FILE_BYTES: u64 = 8 << 10;

pub(super) fn config() -> Config {
    Config { file_bytes: FILE_BYTES, max_bytes: 16 << 10, on_damage: OnDamage::Refuse }
}

pub(super) fn dir() -> &'static Path {
    Path::new("/wal")
}

pub(super) fn replica(raw: u64) -> ReplicaId {
    ReplicaId::new(raw)
}

pub(super) fn index(raw: u64) -> RaftIndex {
    RaftIndex::new(raw)
}

pub(super) fn id(term: u64, raw: u64) -> LogId {
    LogId { term: Term::new(term), index: index(raw) }
}

pub(super) fn vote(term: u64) -> Vote {
    Vote { term: Term::new(term), voted_for: replica(term * 10), committed: term.is_multiple_of(2) }
}

pub(super) fn entry(term: u64, raw: u64, payload: &[u8]) -> Entry {
    let half = payload.len() / 2;
    let parts = [&payload[..half], &payload[half..]];
    let payload = parts.into_iter().map(Bytes::copy_from_slice).collect();
    Entry { index: index(raw), term: Term::new(term), payload }
}

/// The payload of the entry with this id, so that any mix-up shows.
pub(super) fn payload(replica: u64, term: u64, raw: u64, bytes: usize) -> Vec<u8> {
    let text = format!("<{replica}/{term}/{raw}>");
    text.bytes().cycle().take(bytes.max(text.len())).collect()
}

pub(super) fn flat(entries: &[Entry]) -> Vec<(u64, u64, Vec<u8>)> {
    let flat = |entry: &Entry| {
        let bytes = entry.payload.iter().flat_map(|part| part.to_vec()).collect();
        (entry.term.get(), entry.index.get(), bytes)
    };
    entries.iter().map(flat).collect()
}

/// Opens with what checkpoints say of the replicas, as a lone node does.
pub(super) fn open_with(fs: &SimFs, floors: &[(u64, LogId)]) -> Result<(Wal, Recovery), Error> {
    let floors = floors.iter().map(|(of, id)| (replica(*of), Some(*id))).collect();
    Wal::open(fs.shared(), dir(), config(), &floors, Arc::new(NoObserver))
}

/// Opens as a node of a cluster does.
pub(super) fn open_retiring(fs: &SimFs, floors: &[(u64, LogId)]) -> (Wal, Recovery) {
    let floors = floors.iter().map(|(of, id)| (replica(*of), Some(*id))).collect();
    let config = Config { on_damage: OnDamage::Retire, ..config() };
    Wal::open(fs.shared(), dir(), config, &floors, Arc::new(NoObserver)).unwrap()
}

/// The log's live files that were begun, oldest first.
pub(super) fn begun_files(fs: &SimFs) -> Vec<PathBuf> {
    let names = Fs::list(fs, dir()).unwrap().into_iter().map(|entry| entry.name);
    names
        .filter(|name| match parse_name(name) {
            Name::Live(sequence) => FileHeader::parse(&read_bytes(fs, &dir().join(name)))
                .is_ok_and(|header| header.sequence == sequence),
            _ => false,
        })
        .map(|name| dir().join(name))
        .collect()
}

pub(super) fn read_bytes(fs: &SimFs, path: &Path) -> Vec<u8> {
    read_file(fs, path, 1 << 30).unwrap()
}

/// Returns the disk after a power cut, with a file's contents changed.
pub(super) fn with_bytes(fs: &SimFs, path: &Path, bytes: &[u8]) -> SimFs {
    let fs = fs.cut();
    let file = fs.open(path, Open::Write).unwrap();
    file.set_len(0).unwrap();
    file.write_all_at(&[IoSlice::new(bytes)], 0).unwrap();
    file.sync_data().unwrap();
    fs
}

/// Where the last round of a file ends.
pub(super) fn end_of(bytes: &[u8]) -> (usize, usize) {
    let header = FileHeader::parse(bytes).unwrap();
    let mut walker = Walker::new(bytes, header.sequence, header.previous_round);
    let (mut last_round, mut start) = (0, 0);
    while let Ok(Some(frame)) = walker.next_frame() {
        if frame.round != last_round {
            (last_round, start) = (frame.round, frame.position);
        }
    }
    let start = usize::try_from(start).unwrap().saturating_sub(ROUND_HEADER_BYTES);
    (start, usize::try_from(walker.position()).unwrap())
}

pub(super) fn try_open(fs: &SimFs) -> Result<(Wal, Recovery), Error> {
    Wal::open(fs.shared(), dir(), config(), &BTreeMap::new(), Arc::new(NoObserver))
}

pub(super) fn open(fs: &SimFs) -> (Wal, Recovery) {
    try_open(fs).unwrap()
}

/// A callback and the place where its call is seen.
pub(super) fn done() -> (Done, Receiver<Result<(), Poisoned>>) {
    let (sender, receiver) = channel();
    let done = move |result| {
        let _ = sender.send(result);
    };
    (Box::new(done), receiver)
}

/// Waits for an answer; a writer that dies drops the callback, which is seen too.
pub(super) fn wait(receiver: &Receiver<Result<(), Poisoned>>) -> Result<(), Poisoned> {
    receiver.recv().expect("the callback was dropped without a call")
}

pub(super) fn append(wal: &Wal, of: u64, entries: Vec<Entry>) -> Result<(), Poisoned> {
    let (done, receiver) = done();
    wal.append(replica(of), entries, done);
    wait(&receiver)
}

/// Appends entries `from..to` of one term with generated payloads.
pub(super) fn append_range(
    wal: &Wal,
    of: u64,
    term: u64,
    range: std::ops::Range<u64>,
    bytes: usize,
) -> Result<(), Poisoned> {
    let entries = range.map(|raw| entry(term, raw, &payload(of, term, raw, bytes))).collect();
    append(wal, of, entries)
}

/// Appends entries of replica 1 one by one, each when the next file is ready, so that files roll.
pub(super) fn append_rolling(wal: &Wal, range: std::ops::Range<u64>, bytes: usize) {
    for raw in range {
        while !wal.has_next_file() {
            std::thread::yield_now();
        }
        append_range(wal, 1, 1, raw..raw + 1, bytes).unwrap();
    }
}

pub(super) fn save_vote(wal: &Wal, of: u64, vote: Vote) -> Result<(), Poisoned> {
    let (done, receiver) = done();
    wal.save_vote(replica(of), vote, done);
    wait(&receiver)
}

pub(super) fn truncate(wal: &Wal, of: u64, keep: Option<u64>) -> Result<(), Poisoned> {
    let (done, receiver) = done();
    wal.truncate_after(replica(of), keep.map(index), done);
    wait(&receiver)
}

pub(super) fn barrier(wal: &Wal) -> Result<(), Poisoned> {
    let (done, receiver) = done();
    wal.barrier(done);
    wait(&receiver)
}

/// Reads all that a replica has.
pub(super) fn read_all(wal: &Wal, of: u64) -> Vec<(u64, u64, Vec<u8>)> {
    let Some(state) = wal.state(replica(of)) else {
        return Vec::new();
    };
    let (Some(first), Some(last)) = (state.first, state.last) else {
        return Vec::new();
    };
    flat(&wal.read(replica(of), first..last.index.next(), u64::MAX).unwrap())
}
