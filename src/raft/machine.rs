//! State machines: the trait that shards implement, and how the Raft library drives it.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::raft::codec;
use crate::raft::command::Command;
use crate::raft::type_config::{
    LogId, Membership, Payload, Snapshot, SnapshotMeta, StoredMembership, TypeConfig, log_id_of,
    position_of,
};
use crate::storage::wal::Wal;
use crate::types::{LogPosition, RaftIndex, ReplicaId};

/// What a state machine's durable state covers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The last entry that is part of the state.
    pub applied: Option<LogPosition>,
    /// The membership in force there, with the entry that brought it; opaque bytes.
    pub membership: Option<(LogPosition, Bytes)>,
}

/// The replicated state of one shard. Called from one thread, in log order, never twice for an
/// entry.
pub trait StateMachine: fmt::Debug + Send + Sync + 'static {
    /// Returns what the state covers, after recovery.
    fn recovered(&self) -> Recovered;

    /// Applies one committed command. What it does may depend on the entry and on the machine's own
    /// replicated state only: no clock, no configuration of the node, no state of the disk.
    ///
    /// # Errors
    /// An error ends the group for good on this node. A full disk must not be returned.
    fn apply(&mut self, position: LogPosition, command: &Command) -> io::Result<()>;

    /// Notes an entry without a command: a new leader's first, or (with `membership`) a change of
    /// the group.
    fn advance(&mut self, position: LogPosition, membership: Option<Bytes>);

    /// A run of entries has been applied and no more are waiting: time to publish what was put off.
    ///
    /// # Errors
    /// As [`StateMachine::apply`].
    fn end_of_run(&mut self) -> io::Result<()>;

    /// Returns what the newest durable checkpoint covers. Log entries up to there may be purged.
    fn checkpointed(&self) -> Recovered;
}

/// Applies the entries of the write-ahead log after the machine's checkpoint up to the saved commit
/// index, before the group starts: a few at a time, so that memory stays bounded.
///
/// # Errors
/// The log's, and the machine's.
pub fn replay(wal: &Wal, replica: ReplicaId, machine: &mut dyn StateMachine) -> io::Result<u64> {
    let Some(committed) = wal.state(replica).and_then(|state| state.committed) else {
        return Ok(0);
    };
    let mut next = machine.recovered().applied.map_or(RaftIndex::new(0), |at| at.index.next());
    let mut count = 0;
    while next <= committed.index {
        let entries = wal
            .read(replica, next..committed.index.next(), REPLAY_BYTES)
            .map_err(io::Error::other)?;
        if entries.is_empty() {
            return Err(io::Error::other(format!(
                "the log of replica {replica} has no entry {next}, committed is {}",
                committed.index
            )));
        }
        for entry in entries {
            let position = LogPosition { term: entry.term, index: entry.index };
            let bytes = match entry.payload.as_slice() {
                [one] => one.clone(),
                parts => parts.concat().into(),
            };
            match codec::decode_payload(bytes)? {
                Payload::Blank => machine.advance(position, None),
                Payload::Membership(membership) => {
                    machine.advance(position, Some(codec::encode_membership(&membership)));
                }
                Payload::Normal(command) => machine.apply(position, &command)?,
            }
            next = entry.index.next();
            count += 1;
        }
        machine.end_of_run()?;
    }
    Ok(count)
}

/// Bytes of entries that are held at a time while the log is replayed.
const REPLAY_BYTES: u64 = 8 * 1024 * 1024;

/// Drives a [`StateMachine`] as the Raft library wants it.
pub(crate) struct Adapter {
    machine: Arc<Mutex<Box<dyn StateMachine>>>,
    /// Written after every run of entries; read by the log store, which may then forget the
    /// entries that it keeps in memory for `apply`. Holds the index after the last applied one.
    applied_end: Arc<AtomicU64>,
    _alive: Alive,
}

/// Goes with the task that applies: the library's core does not notice when that one panics, and
/// would wait for it for ever.
pub(crate) type Alive = oneshot::Sender<std::convert::Infallible>;

impl Adapter {
    pub(crate) fn new(
        machine: Arc<Mutex<Box<dyn StateMachine>>>,
        applied_end: Arc<AtomicU64>,
        alive: Alive,
    ) -> Self {
        Self { machine, applied_end, _alive: alive }
    }
}

fn stored(recovered: &Recovered) -> io::Result<(Option<LogId>, StoredMembership)> {
    let membership = match &recovered.membership {
        Some((position, bytes)) => {
            let membership: Membership = codec::decode_membership(bytes)?;
            StoredMembership::new(Some(log_id_of(*position)), membership)
        }
        None => StoredMembership::default(),
    };
    Ok((recovered.applied.map(log_id_of), membership))
}

impl RaftStateMachine<TypeConfig> for Adapter {
    type SnapshotData = ();
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        stored(&self.machine.lock().recovered())
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + openraft::OptionalSend,
    {
        let mut end = None;
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let position = position_of(&entry.log_id);
            {
                let mut machine = self.machine.lock();
                match &entry.payload {
                    Payload::Blank => machine.advance(position, None),
                    Payload::Membership(membership) => {
                        machine.advance(position, Some(codec::encode_membership(membership)));
                    }
                    Payload::Normal(command) => machine.apply(position, command)?,
                }
            }
            end = Some(position.index.next());
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        if let Some(end) = end {
            self.machine.lock().end_of_run()?;
            self.applied_end.store(end.get(), Ordering::Release);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { machine: Arc::clone(&self.machine) }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, (): ()) -> io::Result<()> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("a lone voter receives no snapshot (offered: {:?})", meta.last_log_id),
        ))
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        current(&self.machine)
    }
}

/// Answers the newest checkpoint as a snapshot: its data are the files it names.
pub(crate) struct Builder {
    machine: Arc<Mutex<Box<dyn StateMachine>>>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        current(&self.machine)?.ok_or_else(|| io::Error::other("no checkpoint yet"))
    }
}

fn current(machine: &Mutex<Box<dyn StateMachine>>) -> io::Result<Option<Snapshot>> {
    let checkpointed = machine.lock().checkpointed();
    let (last_log_id, last_membership) = stored(&checkpointed)?;
    Ok(last_log_id.map(|last| Snapshot {
        meta: SnapshotMeta { last_log_id: Some(last), last_membership },
        snapshot: (),
    }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::storage::fs::sim::SimFs;
    use crate::storage::wal::{self, Entry};
    use crate::types::Term;

    const REPLICA: ReplicaId = ReplicaId::new(1);

    /// Notes what is applied to it.
    #[derive(Debug, Default)]
    struct Notebook {
        checkpoint: Option<LogPosition>,
        applied: Vec<(u64, usize)>,
        runs: usize,
    }

    impl StateMachine for Notebook {
        fn recovered(&self) -> Recovered {
            Recovered { applied: self.checkpoint, membership: None }
        }

        fn apply(&mut self, position: LogPosition, command: &Command) -> io::Result<()> {
            self.applied.push((position.index.get(), command.len_bytes()));
            Ok(())
        }

        fn advance(&mut self, position: LogPosition, _membership: Option<Bytes>) {
            self.applied.push((position.index.get(), 0));
        }

        fn end_of_run(&mut self) -> io::Result<()> {
            self.runs += 1;
            Ok(())
        }

        fn checkpointed(&self) -> Recovered {
            self.recovered()
        }
    }

    fn at(index: u64) -> LogPosition {
        LogPosition { term: Term::new(1), index: RaftIndex::new(index) }
    }

    /// The library would read and apply the same itself, but for all shards at once and after it
    /// has said that the node leads.
    #[test]
    fn a_start_applies_what_was_committed_after_the_checkpoint_a_few_entries_at_a_time() {
        const BYTES: usize = 1 << 20;
        let (config, floors) = (wal::Config::default(), BTreeMap::new());
        let fs = SimFs::new().shared();
        let opened = Wal::open(fs, Path::new("/wal"), config, &floors, Arc::new(wal::NoObserver));
        let wal = opened.unwrap().0;
        let entry = |index: u64| {
            let payload = match index {
                0 => codec::encode_payload(&Payload::Blank),
                _ => {
                    let command = Command::new(vec![Bytes::from(vec![7; BYTES])], None);
                    codec::encode_payload(&Payload::Normal(command))
                }
            };
            Entry { index: RaftIndex::new(index), term: Term::new(1), payload }
        };
        wal.append(REPLICA, (0..24).map(entry).collect(), Box::new(|_| {}));
        let mut nothing = Notebook::default();
        assert_eq!(replay(&wal, REPLICA, &mut nothing).unwrap(), 0, "nothing is known committed");
        wal.save_committed(REPLICA, at(20));
        let mut all = Notebook::default();
        assert_eq!(replay(&wal, REPLICA, &mut all).unwrap(), 21);
        let expected: Vec<_> =
            (0..=20).map(|index| (index, if index == 0 { 0 } else { BYTES })).collect();
        assert_eq!(all.applied, expected);
        assert!(all.runs >= 20 * BYTES / usize::try_from(REPLAY_BYTES).unwrap(), "{}", all.runs);
        let mut rest = Notebook { checkpoint: Some(at(15)), ..Notebook::default() };
        assert_eq!(replay(&wal, REPLICA, &mut rest).unwrap(), 5);
        assert_eq!(rest.applied, expected[16..]);
        let mut ahead = Notebook { checkpoint: Some(at(20)), ..Notebook::default() };
        assert_eq!(replay(&wal, REPLICA, &mut ahead).unwrap(), 0);
    }
}
