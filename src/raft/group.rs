//! One shard's group on this node: the handle that the rest of the server uses.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use openraft::SnapshotPolicy;
use openraft::async_runtime::WatchReceiver;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::raft::command::Command;
use crate::raft::error::{ProposeError, StartError};
use crate::raft::log_store::LogStore;
use crate::raft::machine::{Adapter, StateMachine};
use crate::raft::network::NoPeers;
use crate::raft::type_config::{Raft, TypeConfig};
use crate::storage::wal::Wal;
use crate::types::{NodeId, ReplicaId, ShardId, Term};

/// How long a group may take to note a checkpoint before its purge is put off.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(5);

/// Timing of a group. The lease (`election_max`) must exceed the slowest tolerated fdatasync, since
/// followers acknowledge a heartbeat after their pending sync.
#[derive(Debug, Clone)]
pub struct Config {
    /// Time between a leader's heartbeats.
    pub heartbeat: Duration,
    /// Shortest election timeout.
    pub election_min: Duration,
    /// Longest election timeout, which is also the leader's lease.
    pub election_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(150),
            election_min: Duration::from_millis(450),
            election_max: Duration::from_millis(900),
        }
    }
}

/// The members that a new group starts with: each replica and the node that holds it.
pub type Members = BTreeMap<ReplicaId, NodeId>;

/// What is known here of a group's leadership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// The node that leads, if any is known to.
    pub leader: Option<NodeId>,
    /// Whether this node leads and has applied an entry of its own term.
    pub leads: bool,
    /// The newest term seen.
    pub term: Term,
    /// Whether the group's core still runs; when not, this replica is lost until a restart.
    pub running: bool,
}

/// A handle to one shard's group. Clones are cheap.
#[derive(Clone)]
pub struct Group {
    inner: Arc<Inner>,
}

struct Inner {
    shard: ShardId,
    raft: Raft,
    runtime: Handle,
    /// Node id + 1 of the leader, 0 when there is none. Written by the watcher.
    leader: AtomicU64,
    term: AtomicU64,
    leads: Arc<AtomicBool>,
    running: AtomicBool,
    changed: tokio::sync::Notify,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("shard", &self.inner.shard)
            .field("status", &self.status())
            .finish()
    }
}

/// What a group is made of.
pub struct Parts {
    /// The shard.
    pub shard: ShardId,
    /// This node's replica of it.
    pub replica: ReplicaId,
    /// The members that the group starts with, when it has never started.
    pub members: Members,
    /// The node's write-ahead log.
    pub wal: Wal,
    /// The shard's state, recovered and replayed up to the saved commit index.
    pub machine: Arc<Mutex<Box<dyn StateMachine>>>,
    /// Timing.
    pub config: Config,
    /// Where the group says whether this node leads (see [`Status::leads`]), for those who must
    /// know without a detour.
    pub leads: Arc<AtomicBool>,
}

impl Group {
    /// Starts a group on the current tokio runtime, which then drives its core and its `apply`.
    /// A lone voter elects itself at once.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(parts: Parts) -> Result<Self, StartError> {
        let Parts { shard, replica, members, wal, machine, config, leads } = parts;
        let refuse = |detail: String| StartError::Storage { shard, detail };
        let applied_end = {
            let recovered = machine.lock().recovered();
            recovered.applied.map_or(0, |at| at.index.get() + 1)
        };
        let applied_end = Arc::new(AtomicU64::new(applied_end));
        let store = LogStore::new(wal, replica, Arc::clone(&applied_end));
        let (alive, machine_gone) = oneshot::channel();
        let adapter = Adapter::new(machine, applied_end, alive);
        let settings = settings(shard, &config)?;
        let raft = Raft::new(replica.get(), Arc::new(settings), NoPeers, store, adapter)
            .await
            .map_err(|error| refuse(error.to_string()))?;
        if !raft.is_initialized().await.map_err(|error| refuse(error.to_string()))? {
            let members: BTreeMap<u64, NodeId> =
                members.iter().map(|(replica, node)| (replica.get(), *node)).collect();
            raft.initialize(members).await.map_err(|error| refuse(error.to_string()))?;
        }
        let group = Self {
            inner: Arc::new(Inner {
                shard,
                raft,
                runtime: Handle::current(),
                leader: AtomicU64::new(0),
                term: AtomicU64::new(0),
                leads,
                running: AtomicBool::new(true),
                changed: tokio::sync::Notify::new(),
            }),
        };
        group.watch(async move { drop(machine_gone.await) });
        group.elect_if_alone().await.map_err(refuse)?;
        Ok(group)
    }

    /// Returns the shard.
    pub fn shard(&self) -> ShardId {
        self.inner.shard
    }

    /// Returns the runtime that drives the group: one thread, so that work spawned there takes
    /// turns with `apply`.
    pub fn runtime(&self) -> &Handle {
        &self.inner.runtime
    }

    /// Returns what is known of the leadership, from memory.
    pub fn status(&self) -> Status {
        let leader = self.inner.leader.load(Ordering::Acquire);
        Status {
            leader: leader.checked_sub(1).map(NodeId::new),
            leads: self.inner.leads.load(Ordering::Acquire),
            term: Term::new(self.inner.term.load(Ordering::Acquire)),
            running: self.inner.running.load(Ordering::Acquire),
        }
    }

    /// Proposes a command and returns at once. Its outcome reaches whoever waits in the command's
    /// [`local`](Command::local) part: `apply` completes it, dropping it means that it is unknown.
    ///
    /// # Errors
    /// [`ProposeError::NotLeader`] when the command surely got no place in the log.
    pub async fn propose(&self, command: Command) -> Result<(), ProposeError> {
        let status = self.status();
        if !status.leads {
            return Err(ProposeError::NotLeader { leader: status.leader });
        }
        let sent = self.inner.raft.client_write_ff(command, None).await;
        sent.map_err(|_stopped| ProposeError::OutcomeUnknown)
    }

    /// Waits until this node leads and has applied the first entry of its term, or the core ends.
    /// Returns whether it leads.
    pub async fn wait_until_leading(&self) -> bool {
        loop {
            let changed = self.inner.changed.notified();
            let status = self.status();
            if status.leads || !status.running {
                return status.leads;
            }
            changed.await;
        }
    }

    /// Returns a future that completes at the next change of [`Group::status`]. Make it, then look
    /// at the status, then await it: no change is missed.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.inner.changed.notified()
    }

    /// Waits until the core has ended.
    pub async fn stopped(&self) {
        loop {
            let changed = self.inner.changed.notified();
            if !self.status().running {
                return;
            }
            changed.await;
        }
    }

    /// Returns why the core has ended, if it has.
    pub fn why_ended(&self) -> Option<String> {
        let metrics = self.inner.raft.metrics();
        let ended = metrics.borrow_watched().running_state.as_ref().err().map(ToString::to_string);
        let is_running = self.status().running;
        // A panic has been reported where it happened.
        ended.or_else(|| (!is_running).then(|| "a task of it panicked".to_owned()))
    }

    /// Tells the group that the state machine has a newer durable checkpoint: entries that it
    /// covers may be purged, up to `upto`.
    pub async fn purge(&self, upto: crate::types::RaftIndex) {
        let raft = &self.inner.raft;
        let covered = |metrics: &openraft::RaftMetrics<TypeConfig>| {
            metrics.snapshot.as_ref().is_some_and(|at| at.index() >= upto.get())
        };
        // The library purges only what it knows a snapshot of; ours is the checkpoint's
        // coordinates.
        let asked = raft.trigger().snapshot().await;
        let known = raft.wait(Some(SNAPSHOT_WAIT)).metrics(covered, "snapshot known").await;
        if asked.is_ok() && known.is_ok() {
            drop(raft.trigger().purge_log(upto.get()).await);
        }
    }

    /// Stops the group's tasks; nothing is applied afterwards.
    pub async fn shutdown(&self) {
        drop(self.inner.raft.shutdown().await);
    }

    async fn elect_if_alone(&self) -> Result<(), String> {
        let raft = &self.inner.raft;
        let voters = raft
            .with_raft_state(|state| state.membership_state.effective().voter_ids().count())
            .await
            .map_err(|error| error.to_string())?;
        if voters == 1 {
            raft.trigger().elect(false).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Follows the core's leadership. The channel closes when the core ends, whatever the reason;
    /// `machine_gone` completes when nothing is applied any more, even if the core goes on.
    fn watch(&self, machine_gone: impl Future<Output = ()> + Send + 'static) {
        let group = self.clone();
        let watcher = async move {
            tokio::select! {
                () = group.follow() => {}
                () = machine_gone => {}
            }
            group.inner.leads.store(false, Ordering::Release);
            group.inner.leader.store(0, Ordering::Release);
            group.inner.running.store(false, Ordering::Release);
            group.inner.changed.notify_waiters();
        };
        drop(self.inner.runtime.spawn(watcher));
    }

    async fn follow(&self) {
        let mut metrics = self.inner.raft.server_metrics();
        loop {
            self.note(&metrics.borrow_watched());
            self.note_leading().await;
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    fn note(&self, metrics: &openraft::metrics::RaftServerMetrics<TypeConfig>) {
        let leader = metrics
            .current_leader
            .and_then(|id| metrics.membership_config.membership().get_node(&id).copied());
        self.inner.leader.store(leader.map_or(0, |node| node.get() + 1), Ordering::Release);
        self.inner.term.store(metrics.vote.leader_id.term, Ordering::Release);
        if !metrics.state.is_leader() {
            self.inner.leads.store(false, Ordering::Release);
        }
        self.inner.changed.notify_waiters();
    }

    /// A leader may speak for the shard once it has applied an entry of its own term: only then is
    /// everything known that earlier leaders acknowledged (Raft, section 8).
    async fn note_leading(&self) {
        let is_leader = self.inner.raft.server_metrics().borrow_watched().state.is_leader();
        if !is_leader || self.inner.leads.load(Ordering::Acquire) {
            return;
        }
        let term = self.inner.term.load(Ordering::Acquire);
        let applied_own = |metrics: &openraft::RaftMetrics<TypeConfig>| {
            let applied = metrics.last_applied.as_ref();
            metrics.current_term != term
                || applied.is_some_and(|at| at.committed_leader_id().term == term)
        };
        let waited = self.inner.raft.wait(None).metrics(applied_own, "applied own term").await;
        if waited.is_ok_and(|metrics| metrics.current_term == term && metrics.state.is_leader()) {
            self.inner.leads.store(true, Ordering::Release);
            self.inner.changed.notify_waiters();
        }
    }
}

fn settings(shard: ShardId, config: &Config) -> Result<openraft::Config, StartError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let settings = openraft::Config {
        cluster_name: format!("shard-{shard}"),
        heartbeat_interval: millis(config.heartbeat),
        heartbeat_min_interval: Some(millis(config.heartbeat) / 2),
        election_timeout_min: millis(config.election_min),
        election_timeout_max: millis(config.election_max),
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        quorum_loss_probe_interval: Some(millis(config.election_max).saturating_mul(2)),
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        max_payload_entries: 1024,
        ..openraft::Config::default()
    };
    settings.validate().map_err(|error| StartError::Config { shard, detail: error.to_string() })
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use bytes::Bytes;

    use super::*;
    use crate::raft::Recovered;
    use crate::storage::fs::sim::SimFs;
    use crate::storage::wal;
    use crate::types::LogPosition;

    /// How a machine fails.
    #[derive(Debug, Clone, Copy)]
    enum Failing {
        Error,
        Panic,
    }

    /// A machine that fails at the first command.
    #[derive(Debug)]
    struct Broken(Failing);

    impl StateMachine for Broken {
        fn recovered(&self) -> Recovered {
            Recovered::default()
        }

        fn apply(&mut self, _position: LogPosition, _command: &Command) -> io::Result<()> {
            match self.0 {
                Failing::Error => Err(io::Error::other("it is broken")),
                Failing::Panic => panic!("it is broken"),
            }
        }

        fn advance(&mut self, _position: LogPosition, _membership: Option<Bytes>) {}

        fn end_of_run(&mut self) -> io::Result<()> {
            Ok(())
        }

        fn checkpointed(&self) -> Recovered {
            Recovered::default()
        }
    }

    async fn start(machine: impl StateMachine) -> Group {
        let (config, floors) = (wal::Config::default(), BTreeMap::new());
        let fs = SimFs::new().shared();
        let opened = Wal::open(fs, Path::new("wal"), config, &floors, Arc::new(wal::NoObserver));
        let parts = Parts {
            shard: ShardId::new(3),
            replica: ReplicaId::new(1),
            members: Members::from([(ReplicaId::new(1), NodeId::new(1))]),
            wal: opened.unwrap().0,
            machine: Arc::new(Mutex::new(Box::new(machine))),
            config: Config::default(),
            leads: Arc::default(),
        };
        let group = Group::start(parts).await.unwrap();
        assert!(group.wait_until_leading().await);
        assert_eq!(group.why_ended(), None);
        group
    }

    /// STORAGE's and CLUSTER's rules of the Raft library. Each is here because without it replicas
    /// diverge or entries go that a follower or a restart needs; no one-node test can tell.
    #[test]
    fn the_librarys_settings_are_those_that_the_rules_rest_on() {
        let set = settings(ShardId::new(3), &Config::default()).unwrap();
        assert_eq!(set.enable_leader_restore, Some(false), "a restored leader reuses log ids");
        assert_eq!(set.enable_pre_vote, Some(true));
        assert!(matches!(set.snapshot_policy, SnapshotPolicy::Never), "checkpoints are ours");
        assert_eq!(set.max_in_snapshot_log_to_keep, u64::MAX, "purging is ours");
        assert_eq!(set.quorum_loss_probe_interval, Some(1_800));
        assert_ne!(set.allow_log_reversion, Some(true), "a log that went back is a lost log");
        assert_eq!((set.heartbeat_interval, set.heartbeat_min_interval), (150, Some(75)));
        assert_eq!((set.election_timeout_min, set.election_timeout_max), (450, 900));
        let slow = Config { heartbeat: Duration::from_secs(2), ..Config::default() };
        assert!(matches!(settings(ShardId::new(3), &slow), Err(StartError::Config { .. })));
    }

    #[tokio::test]
    async fn a_core_that_ends_is_noticed_whatever_ended_it() {
        for failing in [Failing::Error, Failing::Panic] {
            let group = start(Broken(failing)).await;
            group.propose(Command::new(vec![Bytes::from_static(b"x")], None)).await.unwrap();
            let ended = tokio::time::timeout(Duration::from_secs(20), group.stopped()).await;
            assert!(ended.is_ok(), "{failing:?}: the core goes on");
            assert!(!group.status().running && !group.status().leads);
            assert!(!group.wait_until_leading().await);
            let why = group.why_ended().unwrap();
            let expected = match failing {
                Failing::Error => "it is broken",
                Failing::Panic => "panicked",
            };
            assert!(why.contains(expected), "{why}");
        }
    }
}
