//! The node's files, opened in the one order that is safe.
//!
//! Invariants:
//! - checkpoints come before the write-ahead log, which must not be cut below what they cover, and
//!   must not start after it;
//! - files that no checkpoint names are removed only when the log is known to be good, since they
//!   hold a second copy of what is in it, and before any of it is replayed, since that writes files
//!   of the same names;
//! - a node that refuses to start has changed no log, segment or checkpoint.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::clock::SharedClock;
use crate::config::Config;
use crate::metadata::{self, CheckpointFile, Generation, Loaded};
use crate::metrics::Metrics;
use crate::server::identity::Identity;
use crate::server::{Error, chain, io_error, observe};
use crate::storage::checkpoint::{CheckpointStore, ShardCheckpoint};
use crate::storage::fs::SharedFs;
use crate::storage::log::{Orphan, Store};
use crate::storage::{log, wal};
use crate::types::ShardId;

/// A data shard's checkpoint files, and the newest checkpoint in them.
pub(super) type DataFiles = (CheckpointStore, Option<ShardCheckpoint>);

/// The node's files.
pub(super) struct Disk {
    pub(super) wal: wal::Wal,
    pub(super) store: Arc<Store>,
    pub(super) metadata_files: (CheckpointFile, Option<metadata::Checkpoint>),
    pub(super) data_files: BTreeMap<ShardId, DataFiles>,
}

impl Disk {
    /// Opens them.
    ///
    /// # Errors
    /// [`Error::Checkpoint`], [`Error::Wal`], [`Error::Unknown`], [`Error::Io`].
    pub(super) fn open(
        config: &Config,
        identity: &Identity,
        fs: &SharedFs,
        clock: &SharedClock,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, Error> {
        let mut floors = wal::Floors::new();
        let files =
            CheckpointFile::new(Arc::clone(fs), &shard_directory(config, fs, ShardId::METADATA)?);
        let loaded = files.load().map_err(|error| Error::Checkpoint(error.into()))?;
        if let Some(Loaded { generation: Generation::Previous(error), .. }) = &loaded {
            let error = chain(error);
            tracing::warn!(%error, "the metadata restarts from its older checkpoint");
        }
        let metadata = loaded.map(|loaded| loaded.checkpoint);
        let applied = metadata.as_ref().map(|checkpoint| checkpoint.applied);
        floors.insert(identity.replica(ShardId::METADATA), applied);
        let mut data_files = BTreeMap::new();
        for shard in identity.data_shards() {
            let directory = shard_directory(config, fs, shard)?;
            let (store, checkpoint) = CheckpointStore::open(Arc::clone(fs), &directory)
                .map_err(|error| Error::Checkpoint(error.into()))?;
            let applied = checkpoint.as_ref().and_then(|checkpoint| checkpoint.applied);
            floors.insert(identity.replica(shard), applied);
            data_files.insert(shard, (store, checkpoint));
        }
        let store = open_store(config, fs, clock, metrics);
        let orphans = orphans(&store, &data_files)?;
        let wal_config = wal::Config {
            file_bytes: config.wal.file_bytes,
            max_bytes: config.wal.max_bytes,
            on_damage: wal::OnDamage::Refuse,
        };
        let observer = observe::WalObserver::shared(metrics, clock);
        let (wal, recovery) =
            wal::Wal::open(Arc::clone(fs), &config.wal_dir, wal_config, &floors, observer)?;
        if let Some(torn) = recovery.torn_tail {
            tracing::warn!(%torn, "the log's last round was never synced and is cut");
        }
        if recovery.replicas.is_empty() && !orphans.is_empty() {
            // The first start wrote no segment before its log had an entry.
            let (path, wal) = (config.data_dir.join("partitions"), config.wal_dir.clone());
            return Err(Error::Unknown { path, wal });
        }
        remove_orphans(&store, &orphans)?;
        Ok(Self { wal, store, metadata_files: (files, metadata), data_files })
    }
}

/// Makes the directory of a shard's checkpoints.
fn shard_directory(config: &Config, fs: &SharedFs, shard: ShardId) -> Result<PathBuf, Error> {
    let directory = config.data_dir.join("shards").join(shard.to_string());
    fs.create_dir_all(&directory).map_err(|source| io_error(&directory, source))?;
    // A checkpoint is only as durable as the names of the directories it is in.
    for above in directory.ancestors().skip(1).take(2) {
        fs.sync_dir(above).map_err(|source| io_error(above, source))?;
    }
    Ok(directory)
}

fn open_store(
    config: &Config,
    fs: &SharedFs,
    clock: &SharedClock,
    metrics: &Metrics,
) -> Arc<Store> {
    let settings = log::Config {
        tail_cache_bytes: usize::try_from(config.storage.tail_cache_bytes).unwrap_or(usize::MAX),
        open_files: config.storage.open_files,
        ..log::Config::default()
    };
    let timings = log::Timings {
        flush: metrics.storage.segment_flush_seconds.clone(),
        sync: metrics.storage.segment_sync_seconds.clone(),
    };
    let directory = config.data_dir.join("partitions");
    Store::timed(Arc::clone(fs), directory, settings, Arc::clone(clock), timings)
}

fn orphans(
    store: &Arc<Store>,
    data_files: &BTreeMap<ShardId, DataFiles>,
) -> Result<Vec<Orphan>, Error> {
    let checkpoints = data_files.values().filter_map(|(_, checkpoint)| checkpoint.as_ref());
    let states = checkpoints.flat_map(|checkpoint| checkpoint.partitions.iter());
    store.orphans(states).map_err(|error| Error::Checkpoint(error.into()))
}

fn remove_orphans(store: &Arc<Store>, orphans: &[Orphan]) -> Result<(), Error> {
    if orphans.is_empty() {
        return Ok(());
    }
    let bytes: u64 = orphans.iter().map(|orphan| orphan.len).sum();
    tracing::warn!(
        files = orphans.len(),
        bytes,
        "removing files that no checkpoint names; what they held is in the log"
    );
    store.remove_orphans(orphans).map_err(|error| Error::Checkpoint(error.into()))
}
