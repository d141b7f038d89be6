//! The Raft library's log, kept in the node's write-ahead log.
//!
//! Entries that are not applied yet are also kept in memory, as they were proposed: `apply` needs
//! them back with what the proposer attached ([`Command::local`]). They are forgotten once applied;
//! whoever needs an older entry reads the write-ahead log.
//!
//! [`Command::local`]: crate::raft::Command::local

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{Stream, stream};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{OptionalSend, RaftTypeConfig};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::raft::codec;
use crate::raft::type_config::{Entry, LogId, Payload, TypeConfig, Vote, log_id_of, position_of};
use crate::storage::wal::{self, Wal};
use crate::types::{LogPosition, RaftIndex, ReplicaId, Term};

/// Bytes of entries that one read of the log holds at a time.
const READ_BYTES: usize = 8 * 1024 * 1024;

/// The log of one replica. Clones are readers of the same log.
#[derive(Clone)]
pub(crate) struct LogStore {
    shared: Arc<Shared>,
}

struct Shared {
    wal: Wal,
    replica: ReplicaId,
    /// Entries that `apply` has not taken yet, without holes. Bounded by what proposers keep in
    /// flight and by what a leader sends at a time.
    unapplied: Mutex<VecDeque<Entry>>,
    /// Index after the last applied entry; written by the state machine's adapter.
    applied_end: Arc<AtomicU64>,
}

impl LogStore {
    pub(crate) fn new(wal: Wal, replica: ReplicaId, applied_end: Arc<AtomicU64>) -> Self {
        let unapplied = Mutex::new(VecDeque::new());
        Self { shared: Arc::new(Shared { wal, replica, unapplied, applied_end }) }
    }

    fn state(&self) -> Option<wal::ReplicaState> {
        self.shared.wal.state(self.shared.replica)
    }

    /// Reads from `start` to before `end`, at most `max_bytes` but one entry if there is any.
    fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        if start >= end {
            return Ok(Vec::new());
        }
        if let Some(entries) = self.read_unapplied(start, end, max_bytes) {
            return Ok(entries);
        }
        let range = RaftIndex::new(start)..RaftIndex::new(end);
        let stored = self.shared.wal.read(self.shared.replica, range, max_bytes as u64);
        let mut entries = Vec::new();
        for entry in stored.map_err(io::Error::other)? {
            let bytes = match entry.payload.as_slice() {
                [one] => one.clone(),
                parts => Bytes::from(parts.concat()),
            };
            entries.push(Entry {
                log_id: log_id_of(LogPosition { term: entry.term, index: entry.index }),
                payload: codec::decode_payload(bytes)?,
            });
        }
        Ok(entries)
    }

    fn read_unapplied(&self, start: u64, end: u64, max_bytes: usize) -> Option<Vec<Entry>> {
        let unapplied = self.shared.unapplied.lock();
        let first = unapplied.front()?.log_id.index();
        let skip = usize::try_from(start.checked_sub(first)?).ok()?;
        let mut entries = Vec::new();
        let mut bytes = 0;
        for (index, entry) in (start..end).zip(unapplied.iter().skip(skip)) {
            // What is not what it should be is in the write-ahead log.
            if bytes >= max_bytes || entry.log_id.index() != index {
                break;
            }
            bytes += match &entry.payload {
                Payload::Normal(command) => command.len_bytes(),
                _ => 0,
            };
            entries.push(entry.clone());
        }
        if entries.is_empty() { None } else { Some(entries) }
    }

    fn keep_unapplied(&self, entries: &[Entry]) {
        let applied_end = self.shared.applied_end.load(Ordering::Acquire);
        let mut unapplied = self.shared.unapplied.lock();
        while unapplied.front().is_some_and(|entry| entry.log_id.index() < applied_end) {
            unapplied.pop_front();
        }
        let next = unapplied.back().map(|entry| entry.log_id.index().saturating_add(1));
        let first = entries.first().map(|entry| entry.log_id.index());
        if next.is_some() && first.is_some() && next != first {
            // A snapshot has taken the place of what lies between.
            unapplied.clear();
        }
        unapplied.extend(entries.iter().cloned());
    }

    fn bounds(&self, range: &impl RangeBounds<u64>) -> (u64, u64) {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => {
                let last = self.state().and_then(|state| state.last);
                last.map_or(0, |last| last.index.get().saturating_add(1))
            }
        };
        (start, end)
    }
}

fn to_log_id(position: wal::LogId) -> LogId {
    log_id_of(LogPosition { term: position.term, index: position.index })
}

fn from_log_id(id: &LogId) -> wal::LogId {
    let LogPosition { term, index } = position_of(id);
    wal::LogId { term, index }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<R>(&mut self, range: R) -> io::Result<Vec<Entry>>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = self.bounds(&range);
        let mut entries = Vec::new();
        let mut next = start;
        while next < end {
            let more = self.read(next, end, READ_BYTES)?;
            let Some(last) = more.last() else { break };
            next = last.log_id.index() + 1;
            entries.extend(more);
        }
        Ok(entries)
    }

    async fn entries_stream<R>(
        &mut self,
        range: R,
    ) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = self.bounds(&range);
        let state = (self.clone(), start, end, VecDeque::<Entry>::new());
        Box::pin(stream::unfold(state, |(store, next, end, mut ready)| async move {
            if ready.is_empty() {
                match store.read(next, end, READ_BYTES) {
                    Ok(entries) => ready.extend(entries),
                    Err(error) => return Some((Err(error), (store, end, end, ready))),
                }
            }
            let entry = ready.pop_front()?;
            let next = entry.log_id.index() + 1;
            Some((Ok(entry), (store, next, end, ready)))
        }))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, READ_BYTES)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.state().and_then(|state| state.vote).map(|vote| {
            let (term, replica) = (vote.term.get(), vote.voted_for.get());
            if vote.committed {
                Vote::new_committed(term, replica)
            } else {
                Vote::new(term, replica)
            }
        }))
    }

    async fn get_key_log_ids(&mut self, range: RangeInclusive<LogId>) -> io::Result<Vec<LogId>> {
        let (first, last) = (range.start().index(), range.end().index());
        let ends = self.shared.wal.key_log_ids(self.shared.replica);
        let mut keys: Vec<LogId> = ends
            .into_iter()
            .map(to_log_id)
            .filter(|id| id.index() >= first && id.index() < last)
            .collect();
        keys.push(*range.end());
        Ok(keys)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let state = self.state();
        let purged = state.as_ref().and_then(|state| state.purged).map(to_log_id);
        let last = state.as_ref().and_then(|state| state.last).map(to_log_id);
        Ok(LogState { last_purged_log_id: purged, last_log_id: last.or(purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (done, synced) = oneshot::channel();
        let vote = wal::Vote {
            term: Term::new(vote.leader_id.term),
            voted_for: ReplicaId::new(vote.leader_id.voted_for),
            committed: vote.committed,
        };
        let reply = Box::new(move |result| drop(done.send(result)));
        self.shared.wal.save_vote(self.shared.replica, vote, reply);
        synced.await.map_err(io::Error::other)?.map_err(io::Error::other)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        if let Some(committed) = committed {
            self.shared.wal.save_committed(self.shared.replica, from_log_id(&committed));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.state().and_then(|state| state.committed).map(to_log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = <TypeConfig as RaftTypeConfig>::Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let stored = entries
            .iter()
            .map(|entry| {
                let LogPosition { term, index } = position_of(&entry.log_id);
                wal::Entry { index, term, payload: codec::encode_payload(&entry.payload) }
            })
            .collect();
        self.keep_unapplied(&entries);
        let reply = Box::new(move |result: Result<(), wal::Poisoned>| {
            callback.io_completed(result.map_err(io::Error::other));
        });
        self.shared.wal.append(self.shared.replica, stored, reply);
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let keep_end = last.map_or(0, |last| last.index() + 1);
        {
            let mut unapplied = self.shared.unapplied.lock();
            while unapplied.back().is_some_and(|entry| entry.log_id.index() >= keep_end) {
                unapplied.pop_back();
            }
        }
        let (done, synced) = oneshot::channel();
        let index = last.map(|last| RaftIndex::new(last.index()));
        let reply = Box::new(move |result| drop(done.send(result)));
        self.shared.wal.truncate_after(self.shared.replica, index, reply);
        synced.await.map_err(io::Error::other)?.map_err(io::Error::other)
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.shared.unapplied.lock().retain(|entry| entry.log_id.index() > upto.index());
        self.shared.wal.purge(self.shared.replica, from_log_id(&upto));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::storage::fs::sim::SimFs;

    fn store() -> LogStore {
        let (config, floors) = (wal::Config::default(), BTreeMap::new());
        let observer = Arc::new(wal::NoObserver);
        let opened = Wal::open(SimFs::new().shared(), Path::new("wal"), config, &floors, observer);
        LogStore::new(opened.unwrap().0, ReplicaId::new(1), Arc::default())
    }

    fn blanks(range: std::ops::Range<u64>) -> Vec<Entry> {
        let at = |index| LogPosition { term: Term::new(1), index: RaftIndex::new(index) };
        range.map(|index| Entry { log_id: log_id_of(at(index)), payload: Payload::Blank }).collect()
    }

    fn indexes(store: &LogStore, start: u64, end: u64) -> Option<Vec<u64>> {
        let entries = store.read_unapplied(start, end, 1 << 20)?;
        Some(entries.iter().map(|entry| entry.log_id.index()).collect())
    }

    #[test]
    fn entries_in_memory_are_the_ones_asked_for_after_a_snapshot_jumped_ahead() {
        let store = store();
        store.keep_unapplied(&blanks(1..4));
        assert_eq!(indexes(&store, 2, 9), Some(vec![2, 3]));
        store.keep_unapplied(&blanks(10..13));
        assert_eq!(indexes(&store, 10, 12), Some(vec![10, 11]));
        assert_eq!(indexes(&store, 1, 3), None, "what the snapshot replaced is forgotten");
        assert_eq!(indexes(&store, 4, 6), None);
        // Were a hole ever kept, no entry would be taken for another.
        store.shared.unapplied.lock().extend(blanks(20..22));
        assert_eq!(indexes(&store, 11, 21), Some(vec![11, 12]));
        assert_eq!(indexes(&store, 13, 15), None);
    }

    #[tokio::test]
    async fn purged_entries_are_forgotten_here_too() {
        let mut store = store();
        store.keep_unapplied(&blanks(1..6));
        let upto = blanks(3..4).remove(0).log_id;
        store.purge(upto).await.unwrap();
        assert_eq!(indexes(&store, 2, 5), None);
        assert_eq!(indexes(&store, 4, 9), Some(vec![4, 5]));
    }
}
