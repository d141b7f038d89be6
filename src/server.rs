//! The composition root: builds one node from its configuration, runs it, takes it down in order.
//!
//! This is the one place that knows all layers. It binds nothing itself: listeners, shutdown, time
//! and the disk come in as parameters, so that tests run many nodes in one process.
//!
//! Order of start: identity, checkpoints, write-ahead log, metadata shard, data shards, broker,
//! HTTP. Order of stop: HTTP, streams, data shards (each with a last checkpoint), metadata, log.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use arc_swap::ArcSwap;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::api;
use crate::broker::{self, Broker, BrokerParts, ClockMark, SpaceWatch};
use crate::clock::{SharedClock, SystemClock};
use crate::config::Config;
use crate::metadata::view::{LazySqlite, ViewMonitor, view_writer};
use crate::metadata::{
    self, Bootstrap, ChangeError, CheckpointFile, Command, Image, MetadataShard,
};
use crate::metrics::Metrics;
use crate::raft;
use crate::shard::{self, Shard, ShardParts};
use crate::storage::ballast::Ballast;
use crate::storage::fs::{RealFs, SharedFs};
use crate::storage::log::Store;
use crate::storage::wal;
use crate::tasks::Tracker;
use crate::types::{NodeId, Principal, ReplicaId, ShardId};

mod connection;
mod disk;
mod health;
mod http;
mod identity;
mod observe;
mod owner;
mod streams;

use disk::{DataFiles, Disk};
use identity::{Identity, Locks};

/// How long requests and streams may take to end after the server was asked to stop.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// Says in the data directory that the wall clock was set and nobody has confirmed it.
const CLOCK_MARK: &str = "clock-untrusted";
/// How long the leaving of the last members of groups may take after that.
const LEAVE_DEADLINE: Duration = Duration::from_secs(2);

/// How long the last checkpoints and the log's end may take: a disk that does not answer must not
/// keep the process. What was acknowledged is in the log, with or without them.
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

/// Why a node could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory is in use, or belongs to another node.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// The write-ahead log could not be opened.
    #[error("the write-ahead log could not be opened: {}{}", chain(.0), way_on(.0))]
    Wal(#[from] wal::Error),
    /// A shard's checkpoint could not be read.
    #[error("a checkpoint could not be read: {}", chain(.0.as_ref()))]
    Checkpoint(Box<dyn std::error::Error + Send + Sync>),
    /// There are segments, and neither a log nor a checkpoint that knows of any.
    #[error(
        "{path} has segments, {wal} is new and there are no checkpoints: a part of the data is \
         elsewhere, or lost"
    )]
    Unknown {
        /// Where the segments are.
        path: PathBuf,
        /// Where the write-ahead log should be.
        wal: PathBuf,
    },
    /// A shard could not start.
    #[error(transparent)]
    Shard(#[from] shard::OpenError),
    /// The metadata shard could not start.
    #[error(transparent)]
    Metadata(#[from] raft::StartError),
    /// The cluster could not be founded.
    #[error("the cluster could not be founded: {0}")]
    Bootstrap(String),
    /// A shard's group ended while the node started.
    #[error("shard {shard} did not come up: {reason}")]
    NotUp {
        /// The shard.
        shard: ShardId,
        /// Why it ended.
        reason: String,
    },
    /// A file or directory of the node cannot be used.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A write or sync failed, or a shard ended, while serving: nothing more was acknowledged.
    #[error("the node had to end: {0}")]
    Failed(String),
}

/// Writes an error with all its causes on one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Says what can be done about a log that lost something: a person decides.
fn way_on(error: &wal::Error) -> &'static str {
    match error {
        wal::Error::Damaged(_) | wal::Error::Behind { .. } => {
            "; nothing was changed: `eddyline wal dump --salvage --records` prints the records \
             that can be read, README.md says how to go on (\"When the log is damaged\")"
        }
        _ => "",
    }
}

/// A node that serves.
pub struct Server {
    address: SocketAddr,
    broker: Broker,
    metadata: MetadataShard,
    shards: BTreeMap<ShardId, Shard>,
    wal: wal::Wal,
    tasks: Tracker,
    /// What members of groups need to the last: commits, and leaving.
    keepers: Tracker,
    failed: Failed,
    state: Arc<api::State>,
    listener: TcpListener,
    _locks: Locks,
}

/// Starts a node, says so through `ready`, serves until `shutdown` completes, and stops in order.
/// A node that is still starting then is dropped as it is, as a crash would leave it.
///
/// # Errors
/// [`Error`].
pub async fn run(
    config: &Config,
    listener: TcpListener,
    ready: impl FnOnce(SocketAddr),
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let mut shutdown = std::pin::pin!(shutdown);
    let server = tokio::select! {
        started = Server::start(config, listener) => started?,
        () = &mut shutdown => {
            tracing::warn!("asked to stop while starting");
            return Ok(());
        }
    };
    ready(server.address());
    server.serve(shutdown).await
}

impl Server {
    /// Starts a node on the operating system's disk and clock.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn start(config: &Config, listener: TcpListener) -> Result<Self, Error> {
        Self::start_on(config, listener, RealFs::shared(), SystemClock::shared()).await
    }

    /// Starts a node on a given disk and clock. When it returns, everything that was ever
    /// acknowledged can be read.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn start_on(
        config: &Config,
        listener: TcpListener,
        fs: SharedFs,
        clock: SharedClock,
    ) -> Result<Self, Error> {
        let address = listener.local_addr().map_err(|source| io_error("listener", source))?;
        let (identity, locks) = identity::open(config)?;
        let metrics = Metrics::shared();
        let tasks = Tracker::new();
        let ballast = no_ballast_yet(config, &fs)?;
        let Disk { wal, store, metadata_files, data_files } =
            Disk::open(config, &identity, &fs, &clock, &metrics)?;
        let (fail, failed) = end_on_poison(&wal, &store);
        let node = MetadataCommon { wal: &wal, ballast: &ballast, fail: Arc::clone(&fail) };
        let (metadata, view) =
            start_metadata(config, &identity, metadata_files, node, &tasks).await?;
        let storage_full = Arc::new(AtomicBool::new(false));
        let common = ShardCommon {
            identity: &identity,
            wal: &wal,
            store: &store,
            clock: &clock,
            metrics: &metrics,
            storage_full: &storage_full,
            ballast: &ballast,
        };
        let shards = start_shards(config, common, data_files).await?;
        found(config, &identity, &metadata, (&clock, address)).await?;
        lead_all(&shards).await?;
        end_with_any_core(&metadata, &shards, &fail, &tasks);
        let broker = Broker::new(BrokerParts {
            node: identity.node,
            metadata: metadata.clone(),
            shards: shards.clone(),
            wal: wal.clone(),
            clock,
            metrics: Arc::clone(&metrics),
            random: SmallRng::from_rng(&mut rand::rng()),
            storage_full,
            config: broker_config(config),
            clock_mark: ClockMark::new(Arc::clone(&fs), config.data_dir.join(CLOCK_MARK)),
            store: Arc::clone(&store),
        });
        finish_topic_changes(&broker).await;
        start_maintenance(config, &broker, (&fs, ballast), &tasks);
        let keepers = keep_groups(&broker);
        observe::start(&tasks, &metrics, (&wal, &store), &shards, view.clone());
        if let Some(reason) = failed.borrow().clone() {
            return Err(Error::Failed(reason));
        }
        let state = api_state(config, &broker, view, &tasks);
        Ok(Self {
            address,
            broker,
            metadata,
            shards,
            wal,
            tasks,
            keepers,
            failed,
            state,
            listener,
            _locks: locks,
        })
    }

    /// Returns the address that clients reach.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the broker, for tests that look behind the HTTP faces.
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// Serves until `shutdown` completes or the node has to end, then stops in order.
    ///
    /// # Errors
    /// [`Error::Failed`] when a write or sync failed, or a shard ended.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let Self { metadata, shards, wal, tasks, keepers, mut failed, state, listener, .. } = self;
        let reason = {
            let failed = failed.wait_for(Option::is_some);
            let stop = async {
                tokio::select! {
                    () = shutdown => None,
                    failed = failed => failed.ok().and_then(|reason| reason.clone()),
                }
            };
            http::serve(listener, &state, &tasks, stop, DRAIN_DEADLINE).await
        };
        let aborted = tasks.shutdown(DRAIN_DEADLINE).await;
        if aborted.tasks > 0 {
            tracing::warn!(tasks = aborted.tasks, "tasks were cut off at the deadline");
        }
        if keepers.shutdown(LEAVE_DEADLINE).await.tasks > 0 {
            tracing::warn!("members of groups did not leave in time");
        }
        // Also what went wrong since the stop was asked for.
        if let Some(reason) = reason.or_else(|| failed.borrow().clone()) {
            return Err(Error::Failed(reason));
        }
        let closing = close(&shards, &metadata, (wal, &failed));
        match tokio::time::timeout(CLOSE_DEADLINE, closing).await {
            Ok(closed) => closed,
            Err(_late) => Err(Error::Failed("the disk did not answer in time".to_owned())),
        }
    }
}

/// Ends what writes, in order.
async fn close(
    shards: &BTreeMap<ShardId, Shard>,
    metadata: &MetadataShard,
    (wal, failed): (wal::Wal, &Failed),
) -> Result<(), Error> {
    for shard in shards.values() {
        shard.close().await;
    }
    metadata.close().await;
    // The log's own end may find no room for its last mark, which is no failure.
    if let Some(reason) = failed.borrow().clone() {
        return Err(Error::Failed(reason));
    }
    let was_full = wal.is_storage_full();
    match tokio::task::spawn_blocking(move || wal.close()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) if was_full => {
            tracing::warn!(%error, "the log has no mark of a clean stop: the disk is full");
            Ok(())
        }
        Ok(Err(error)) => Err(Error::Failed(error.to_string())),
        Err(error) => Err(Error::Failed(error.to_string())),
    }
}

/// Makes what the faces share.
fn api_state(
    config: &Config,
    broker: &Broker,
    view: ViewMonitor,
    tasks: &Tracker,
) -> Arc<api::State> {
    let (limits, metrics) = (http::limits(config), Arc::clone(broker.metrics()));
    Arc::new(api::State {
        broker: broker.clone(),
        ws: api::ws::Shared::new(&limits.ws, &metrics.ws),
        memory: api::Memory::new(limits.memory_bytes),
        config: limits,
        clock: Arc::clone(broker.clock()),
        metrics,
        changes: Arc::new(Semaphore::new(api::CHANGES_MAX)),
        consumers: api::Consumers::new(config.groups.instance_timeout),
        tasks: tasks.clone(),
        principal: Principal::anonymous(),
        sources: health::sources(broker, view),
    })
}

fn io_error(path: impl AsRef<Path>, source: std::io::Error) -> Error {
    Error::Io { path: path.as_ref().to_owned(), source }
}

fn broker_config(config: &Config) -> broker::Config {
    broker::Config {
        auto_create: config.topics.auto_create,
        default_partitions: config.topics.default_partitions,
        max_partitions: config.topics.max_partitions,
        session_timeout: config.groups.session_timeout,
        offsets_retention: config.groups.offsets_retention,
    }
}

fn raft_config(config: &Config) -> raft::Config {
    raft::Config {
        heartbeat: config.raft.heartbeat,
        election_min: config.raft.election_min,
        election_max: config.raft.election_max,
    }
}

/// Ends the node for a reason; the first one counts, others follow from it.
type Fail = Arc<dyn Fn(&str) + Send + Sync>;
/// Where it is seen why the node has to end.
type Failed = watch::Receiver<Option<String>>;

/// Has the node end when its log or its segments fail: what cannot be written must not be served as
/// if it were.
fn end_on_poison(wal: &wal::Wal, store: &Store) -> (Fail, Failed) {
    let (sender, failed) = watch::channel(None);
    let fail: Fail = Arc::new(move |reason| {
        sender.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert_with(|| reason.to_owned());
            is_first
        });
    });
    let on_wal = Arc::clone(&fail);
    wal.on_poison(move |error| on_wal(&error.to_string()));
    let on_store = Arc::clone(&fail);
    store.on_poison(move |reason| on_store(reason));
    (fail, failed)
}

/// Has the node end when a group's core ends that was not asked to: its replica is lost until a
/// restart, and must not be served as if it were only slow.
fn end_with_any_core(
    metadata: &MetadataShard,
    shards: &BTreeMap<ShardId, Shard>,
    fail: &Fail,
    tasks: &Tracker,
) {
    let groups = shards.values().map(Shard::group).chain([metadata.group()]);
    for group in groups {
        let (group, fail, stop) = (group.clone(), Arc::clone(fail), tasks.stop_token());
        let watching = async move {
            group.stopped().await;
            let reason = group.why_ended().unwrap_or_default();
            fail(&format!("shard {} has ended: {reason}", group.shard()));
        };
        tasks.spawn(async move { stop.run_until_cancelled(watching).await });
    }
}

/// Names the ballast, and gives back what an earlier process held: the start may need the room.
fn no_ballast_yet(config: &Config, fs: &SharedFs) -> Result<Arc<Ballast>, Error> {
    let ballast = Ballast::new(Arc::clone(fs), config.data_dir.join("ballast"));
    ballast.reclaim().map_err(|source| io_error(&config.data_dir, source))?;
    Ok(Arc::new(ballast))
}

/// What the metadata shard uses of its node.
struct MetadataCommon<'a> {
    wal: &'a wal::Wal,
    ballast: &'a Arc<Ballast>,
    fail: Fail,
}

async fn start_metadata(
    config: &Config,
    identity: &Identity,
    (files, checkpoint): (CheckpointFile, Option<metadata::Checkpoint>),
    node: MetadataCommon<'_>,
    tasks: &Tracker,
) -> Result<(MetadataShard, ViewMonitor), Error> {
    let image = checkpoint.as_ref().map(|checkpoint| checkpoint.image.clone()).unwrap_or_default();
    let image: Arc<ArcSwap<Image>> = Arc::new(ArcSwap::from_pointee(image));
    let store = LazySqlite::new(config.data_dir.join("metadata.db"));
    let current = Arc::clone(&image);
    let (feed, writer) = view_writer(Arc::new(store), move || current.load_full());
    let monitor = feed.monitor();
    tasks.spawn(writer.run(tasks.stop_token()));
    let metadata = MetadataShard::start(metadata::ShardParts {
        replica: identity.replica(ShardId::METADATA),
        members: identity.members(ShardId::METADATA),
        checkpoints: (files, checkpoint),
        wal: node.wal.clone(),
        image,
        feed,
        ballast: Arc::clone(node.ballast),
        on_failure: node.fail,
        config: raft_config(config),
    })
    .await?;
    Ok((metadata, monitor))
}

/// What all data shards of the node share.
struct ShardCommon<'a> {
    identity: &'a Identity,
    wal: &'a wal::Wal,
    store: &'a Arc<Store>,
    clock: &'a SharedClock,
    metrics: &'a Metrics,
    storage_full: &'a Arc<AtomicBool>,
    ballast: &'a Arc<Ballast>,
}

async fn start_shards(
    config: &Config,
    common: ShardCommon<'_>,
    files: BTreeMap<ShardId, DataFiles>,
) -> Result<BTreeMap<ShardId, Shard>, Error> {
    let mut shards = BTreeMap::new();
    for (shard, checkpoints) in files {
        let parts = ShardParts {
            shard,
            replica: common.identity.replica(shard),
            members: common.identity.members(shard),
            checkpoints,
            wal: common.wal.clone(),
            store: Arc::clone(common.store),
            clock: Arc::clone(common.clock),
            metrics: common.metrics.shards.clone(),
            storage_full: Arc::clone(common.storage_full),
            ballast: Arc::clone(common.ballast),
            config: shard::Config { raft: raft_config(config) },
        };
        shards.insert(shard, Shard::start(parts).await?);
    }
    Ok(shards)
}

/// Waits until this node leads all its data shards.
async fn lead_all(shards: &BTreeMap<ShardId, Shard>) -> Result<(), Error> {
    for shard in shards.values() {
        lead(shard.group()).await?;
    }
    Ok(())
}

async fn lead(group: &raft::Group) -> Result<(), Error> {
    if group.wait_until_leading().await {
        return Ok(());
    }
    let reason = group.why_ended().unwrap_or_default();
    Err(Error::NotUp { shard: group.shard(), reason })
}

/// Founds the cluster at the first start, and notes a changed address at later ones.
async fn found(
    config: &Config,
    identity: &Identity,
    metadata: &MetadataShard,
    (clock, address): (&SharedClock, SocketAddr),
) -> Result<(), Error> {
    let url = config.advertise.clone().unwrap_or_else(|| format!("http://{address}"));
    lead(metadata.group()).await?;
    let image = metadata.image();
    let known = image.node(identity.node).map(|node| node.url.clone());
    let command = match (image.cluster_id(), known) {
        (Some(cluster), _) if cluster != identity.cluster => {
            return Err(Error::Bootstrap(format!(
                "the data is of cluster {cluster}, node.json says {}",
                identity.cluster
            )));
        }
        (Some(_), Some(known)) if known == url => return Ok(()),
        (Some(_), _) => Command::RegisterNode(metadata::RegisterNode {
            node: identity.node,
            url,
            at: clock.now(),
        }),
        (None, _) => Command::Bootstrap(Bootstrap {
            cluster_id: identity.cluster,
            node: identity.node,
            url,
            shards: identity.new_shards(),
            at: clock.now(),
        }),
    };
    let changed: Result<_, ChangeError> = metadata.change(&command).await;
    let (_, response) = changed.map_err(|error| Error::Bootstrap(error.to_string()))?;
    response.map(|_| ()).map_err(|rejection| Error::Bootstrap(rejection.to_string()))
}

/// Ends what the last run began to create or delete; what cannot be ended now is tried again later.
async fn finish_topic_changes(broker: &Broker) {
    if let Err(error) = broker.finish_topic_changes().await {
        tracing::warn!(%error, "a topic's creation or deletion could not be finished");
    }
}

/// Starts what looks after groups.
fn keep_groups(broker: &Broker) -> Tracker {
    let keepers = Tracker::new();
    let stop = keepers.stop_token();
    keepers.spawn(broker.clone().run_groups(stop.cancelled_owned()));
    keepers
}

fn start_maintenance(
    config: &Config,
    broker: &Broker,
    (fs, ballast): (&SharedFs, Arc<Ballast>),
    tasks: &Tracker,
) {
    let watch = SpaceWatch {
        fs: Arc::clone(fs),
        ballast,
        directories: vec![config.data_dir.clone(), config.wal_dir.clone()],
        wal_file_bytes: config.wal.file_bytes,
        wal_max_bytes: config.wal.max_bytes,
    };
    let stop = tasks.stop_token();
    let watching = broker.clone();
    tasks.spawn(async move { stop.run_until_cancelled(watching.watch_space(watch)).await });
    let stop = tasks.stop_token();
    let changing = broker.clone();
    tasks.spawn(async move { stop.run_until_cancelled(changing.run_topic_changes()).await });
    let stop = tasks.stop_token();
    let retaining = broker.clone();
    let interval = config.storage.retention_interval;
    tasks.spawn(async move { stop.run_until_cancelled(retaining.run_retention(interval)).await });
}

/// The node and replica types that the submodules share.
type Members = BTreeMap<ReplicaId, NodeId>;

#[cfg(test)]
mod tests;
