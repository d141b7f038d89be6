//! Whose the write-ahead log is: `owner.json` and a lock in the log's own directory.
//!
//! The log may be anywhere, and replica ids are alike on all nodes. A node that took the log of
//! another one would replay entries that are not its own; one that took a log in use would copy its
//! last file and unlink it from under its writer, whose acknowledgements then rest on nothing.
//!
//! Invariants:
//! - the directory is locked and its owner compared before anything of the log is read or changed;
//! - a log without a mark is this node's only in the data directory, where versions without marks
//!   had it unless they were told otherwise.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::server::identity::{Error, Identity, io_error, lock, make_directory};
use crate::storage::fs::{RealFs, read_file, replace_file};
use crate::storage::wal;
use crate::types::{ClusterId, NodeId};

/// Name of the mark.
pub(super) const FILE: &str = "owner.json";
/// Version of the mark.
const FORMAT: u32 = 1;
/// The mark has about a hundred bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mark {
    format: u32,
    cluster_id: ClusterId,
    node_id: NodeId,
}

/// Locks the log's directory for this node, and marks a new log as this node's. Returns the lock,
/// none where the data directory's own is the same.
///
/// # Errors
/// [`Error`]; the log is then as it was.
pub(super) fn claim(config: &Config, identity: &Identity) -> Result<Option<fs::File>, Error> {
    let (data, wal) = (&config.data_dir, &config.wal_dir);
    make_directory(wal)?;
    let taken = if real(wal)? == real(data)? {
        None
    } else {
        let in_use = || Error::LogInUse { wal: wal.clone(), data: data.clone() };
        Some(lock(wal)?.ok_or_else(in_use)?)
    };
    let path = wal.join(FILE);
    let ours = Mark { format: FORMAT, cluster_id: identity.cluster, node_id: identity.node };
    match read_file(&RealFs, &path, FILE_BYTES_MAX) {
        Ok(bytes) => compare(config, &ours, &parse(&path, &bytes)?)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => mark(config, &ours)?,
        Err(source) => return Err(io_error(&path, source)),
    }
    Ok(taken)
}

/// Marks a log that has no mark, if it is new or surely this node's.
fn mark(config: &Config, ours: &Mark) -> Result<(), Error> {
    let (data, wal) = (&config.data_dir, &config.wal_dir);
    let path = wal.join(FILE);
    let damaged = |error: serde_json::Error| {
        let detail = error.to_string();
        Error::Damaged { path: path.clone(), detail }
    };
    let text = serde_json::to_string(ours).map_err(damaged)?;
    let has_log = wal::is_in(&RealFs, wal).map_err(|source| io_error(wal, source))?;
    if has_log && *wal != data.join("wal") && real(wal)? != real(data)?.join("wal") {
        return Err(Error::UnknownLog { wal: wal.clone(), data: data.clone(), mark: text });
    }
    replace_file(&RealFs, &path, text.as_bytes()).map_err(|source| io_error(&path, source))
}

fn compare(config: &Config, ours: &Mark, found: &Mark) -> Result<(), Error> {
    let ours = (ours.cluster_id, ours.node_id);
    let theirs = (found.cluster_id, found.node_id);
    if ours == theirs {
        return Ok(());
    }
    let (data, wal) = (config.data_dir.clone(), config.wal_dir.clone());
    Err(Error::OtherLog { wal, theirs, data, ours })
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Mark, Error> {
    let damaged = |error: serde_json::Error| {
        let detail = error.to_string();
        Error::Damaged { path: path.to_owned(), detail }
    };
    let mark: Mark = serde_json::from_slice(bytes).map_err(damaged)?;
    if mark.format != FORMAT {
        let path = path.to_owned();
        return Err(Error::Format { path, found: mark.format, known: FORMAT });
    }
    Ok(mark)
}

fn real(path: &Path) -> Result<std::path::PathBuf, Error> {
    fs::canonicalize(path).map_err(|source| io_error(path, source))
}
