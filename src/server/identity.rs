//! Who this node is: `node.json` and the locks of its directories.
//!
//! `node.json` is written once, before anything else, and never changed: cluster id, node id and
//! replica ids are what keeps a directory from being taken for another one's.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::config::Config;
use crate::metadata::{NewShard, Replica};
use crate::server::{Members, owner};
use crate::storage::fs::{Fs, RealFs, read_file, replace_file};
use crate::types::{ClusterId, NodeId, ReplicaId, ShardId};

/// Version of the data directory's layout.
const FORMAT: u32 = 1;
/// `node.json` has a few hundred bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process uses the directory.
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    /// The directory belongs to another node.
    #[error("{path} belongs to node {found}, cluster.node_id is {configured}")]
    OtherNode {
        /// Its `node.json`.
        path: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Whose it should be.
        configured: NodeId,
    },
    /// Another process uses the write-ahead log's directory.
    #[error("{wal} is in use by another process, it cannot have the write-ahead log of {data}")]
    LogInUse {
        /// Where the log should be.
        wal: PathBuf,
        /// The data directory that it should belong to.
        data: PathBuf,
    },
    /// The write-ahead log is another node's.
    #[error(
        "{wal} has the write-ahead log of node {} of cluster {}, {data} belongs to node {} of \
         cluster {}",
        .theirs.1, .theirs.0, .ours.1, .ours.0
    )]
    OtherLog {
        /// Where the log is.
        wal: PathBuf,
        /// Cluster and node whose it is.
        theirs: (ClusterId, NodeId),
        /// The data directory.
        data: PathBuf,
        /// Cluster and node whose it is.
        ours: (ClusterId, NodeId),
    },
    /// Nothing says whose the write-ahead log is, and it is not where an earlier version kept it.
    #[error(
        "{wal} has a write-ahead log and does not say whose; if it is that of {data}, write {mark} \
         to {}",
        .wal.join(owner::FILE).display()
    )]
    UnknownLog {
        /// Where the log is.
        wal: PathBuf,
        /// The data directory.
        data: PathBuf,
        /// What would mark it as the data directory's.
        mark: String,
    },
    /// The directory is of a version that this program does not know.
    #[error("{path} has format {found}, this program knows {known}")]
    Format {
        /// Its `node.json` or `owner.json`.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The version that can be read.
        known: u32,
    },
    /// `node.json` or `owner.json` is not what was written.
    #[error("{path} cannot be read: {detail}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// A file or directory cannot be used.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
}

/// Who this node is.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) cluster: ClusterId,
    pub(super) node: NodeId,
    replicas: BTreeMap<ShardId, ReplicaId>,
}

/// Holds the node's directories against other processes for as long as it lives.
#[derive(Debug)]
pub(super) struct Locks(
    #[expect(dead_code, reason = "closing a file gives its lock back")] Vec<fs::File>,
);

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeFile {
    format: u32,
    cluster_id: ClusterId,
    node_id: NodeId,
    replicas: BTreeMap<ShardId, ReplicaId>,
}

impl Identity {
    /// Returns this node's replica of a shard. All shards of `node.json` have one.
    pub(super) fn replica(&self, shard: ShardId) -> ReplicaId {
        self.replicas.get(&shard).copied().unwrap_or(ReplicaId::new(0))
    }

    /// Returns the members that a shard's group starts with.
    pub(super) fn members(&self, shard: ShardId) -> Members {
        Members::from([(self.replica(shard), self.node)])
    }

    /// Lists the data shards.
    pub(super) fn data_shards(&self) -> impl Iterator<Item = ShardId> + '_ {
        self.replicas.keys().copied().filter(|shard| *shard != ShardId::METADATA)
    }

    /// Returns all shards as the founding command names them.
    pub(super) fn new_shards(&self) -> Vec<NewShard> {
        let new = |(shard, replica): (&ShardId, &ReplicaId)| NewShard {
            shard: *shard,
            replication_factor: 1,
            replicas: vec![Replica { replica: *replica, node: self.node }],
        };
        self.replicas.iter().map(new).collect()
    }
}

/// Locks the node's directories and reads who they belong to; new ones are given an identity first.
///
/// # Errors
/// [`Error`].
pub(super) fn open(config: &Config) -> Result<(Identity, Locks), Error> {
    let directory = &config.data_dir;
    make_directory(directory)?;
    let in_use = || Error::InUse(directory.clone());
    let mut locks = vec![lock(directory)?.ok_or_else(in_use)?];
    let path = directory.join("node.json");
    let file = match read_file(&RealFs, &path, FILE_BYTES_MAX) {
        Ok(bytes) => parse(&path, &bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(&path, config)?,
        Err(source) => return Err(io_error(&path, source)),
    };
    if file.node_id != config.cluster.node_id {
        let configured = config.cluster.node_id;
        return Err(Error::OtherNode { path, found: file.node_id, configured });
    }
    let shards = file.replicas.len().saturating_sub(1);
    if usize::try_from(config.shards.count) != Ok(shards) {
        tracing::warn!(
            shards,
            configured = config.shards.count,
            "the number of shards was set when the data directory was made and stays"
        );
    }
    let NodeFile { cluster_id, node_id, replicas, .. } = file;
    let identity = Identity { cluster: cluster_id, node: node_id, replicas };
    locks.extend(owner::claim(config, &identity)?);
    Ok((identity, Locks(locks)))
}

fn parse(path: &Path, bytes: &[u8]) -> Result<NodeFile, Error> {
    let damaged = |detail: String| Error::Damaged { path: path.to_owned(), detail };
    let file: NodeFile =
        serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
    if file.format != FORMAT {
        return Err(Error::Format { path: path.to_owned(), found: file.format, known: FORMAT });
    }
    if !file.replicas.contains_key(&ShardId::METADATA) {
        return Err(damaged("no replica of shard 0".to_owned()));
    }
    Ok(file)
}

fn create(path: &Path, config: &Config) -> Result<NodeFile, Error> {
    let replicas =
        (0..=config.shards.count).map(|n| (ShardId::new(n), ReplicaId::new(u64::from(n) + 1)));
    let file = NodeFile {
        format: FORMAT,
        cluster_id: ClusterId::new(Uuid::new_v4()),
        node_id: config.cluster.node_id,
        replicas: replicas.collect(),
    };
    let bytes = serde_json::to_vec_pretty(&file)
        .map_err(|error| Error::Damaged { path: path.to_owned(), detail: error.to_string() })?;
    replace_file(&RealFs, path, &bytes).map_err(|source| io_error(path, source))?;
    Ok(file)
}

/// Makes a directory and those above it. Without a name in the directory above it, all that is
/// durable below that name is lost.
pub(super) fn make_directory(directory: &Path) -> Result<(), Error> {
    let missing = directory.ancestors().skip(1).take_while(|above| !above.exists());
    let to_sync = missing.count() + 1;
    fs::create_dir_all(directory).map_err(|source| io_error(directory, source))?;
    for above in directory.ancestors().skip(1).take(to_sync) {
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        RealFs.sync_dir(above).map_err(|source| io_error(above, source))?;
    }
    Ok(())
}

/// Locks a directory by the file `LOCK` in it; `None` when another process has it.
pub(super) fn lock(directory: &Path) -> Result<Option<fs::File>, Error> {
    let path = directory.join("LOCK");
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|source| io_error(&path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(source)) => Err(io_error(&path, source)),
    }
}

pub(super) fn io_error(path: &Path, source: io::Error) -> Error {
    Error::Io { path: path.to_owned(), source }
}
