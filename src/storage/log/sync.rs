//! Making flushed bytes and new names durable, on another thread than the one that writes.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::storage::fs::Open;
use crate::storage::log::Error;
use crate::storage::log::names::FileKind;
use crate::storage::log::segment::Segment;
use crate::storage::log::store::{Home, Store};

/// Something that has to be synced before a checkpoint may name it.
#[derive(Debug, Clone)]
pub struct SyncTarget(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Segment(Arc<Segment>),
    Indexes(Arc<Segment>),
    /// A partition's directory, because a file in it is new.
    Partition(Arc<Home>),
    /// The directories above it, because they are new.
    Parents(Arc<Home>),
}

impl SyncTarget {
    pub(super) fn segment(segment: Arc<Segment>) -> Self {
        Self(Kind::Segment(segment))
    }

    pub(super) fn indexes(segment: Arc<Segment>) -> Self {
        Self(Kind::Indexes(segment))
    }

    pub(super) fn partition(home: Arc<Home>) -> Self {
        Self(Kind::Partition(home))
    }

    pub(super) fn parents(home: Arc<Home>) -> Self {
        Self(Kind::Parents(home))
    }

    /// Tells targets apart: by what is synced, not by who listed it.
    fn key(&self) -> (u8, usize) {
        match &self.0 {
            Kind::Segment(segment) => (0, Arc::as_ptr(segment).addr()),
            Kind::Indexes(segment) => (1, Arc::as_ptr(segment).addr()),
            Kind::Partition(home) => (2, Arc::as_ptr(home).addr()),
            Kind::Parents(home) => (3, Arc::as_ptr(home).addr()),
        }
    }

    /// Lists the directories to sync, with their depth below the partitions' directory.
    fn directories(&self) -> Vec<(u8, PathBuf)> {
        match &self.0 {
            Kind::Segment(_) | Kind::Indexes(_) => Vec::new(),
            Kind::Partition(home) => vec![(3, home.directory())],
            Kind::Parents(home) => {
                let root = home.store.directory().to_owned();
                let above = root.parent().map(|above| (0, above.to_owned()));
                let topic = super::names::topic_dir(&root, home.id.topic);
                [Some((2, topic)), Some((1, root)), above].into_iter().flatten().collect()
            }
        }
    }

    fn store(&self) -> &Arc<Store> {
        match &self.0 {
            Kind::Segment(segment) | Kind::Indexes(segment) => &segment.home.store,
            Kind::Partition(home) | Kind::Parents(home) => &home.store,
        }
    }

    fn sync_files(&self) -> Result<(), Error> {
        match &self.0 {
            Kind::Segment(segment) => {
                let store = &segment.home.store;
                store.measure(|timings| &timings.sync, || segment.sync())
            }
            Kind::Indexes(segment) => {
                sync_index(segment, FileKind::OffsetIndex)?;
                sync_index(segment, FileKind::TimeIndex)
            }
            Kind::Partition(_) | Kind::Parents(_) => Ok(()),
        }
    }
}

/// Leaves each target once in a list that was put together of several.
pub fn dedup(targets: &mut Vec<SyncTarget>) {
    targets.sort_unstable_by_key(SyncTarget::key);
    targets.dedup_by_key(|target| target.key());
}

/// Syncs all files of `targets`, then all directories, deepest first. Targets that were taken from
/// a log must be synced before the checkpoint that they were taken for is written, and if a sync
/// fails no later checkpoint may be either: the store is poisoned.
///
/// # Errors
/// [`Error::Full`] when there are no descriptors left: call again with the same targets, before any
/// later checkpoint is written. [`Error::Io`] for the first sync that fails, [`Error::Poisoned`]
/// when one failed before.
pub fn sync_all(targets: &[SyncTarget]) -> Result<(), Error> {
    for target in targets {
        target.sync_files()?;
    }
    let Some(store) = targets.first().map(SyncTarget::store) else {
        return Ok(());
    };
    let directories: BTreeSet<_> = targets.iter().flat_map(SyncTarget::directories).collect();
    for (_, directory) in directories.into_iter().rev() {
        store.check()?;
        let opened = match store.fs().open_dir(&directory) {
            // A partition that was deleted meanwhile; no checkpoint will name it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(store.write_failed("open", directory, error)),
            Ok(opened) => opened,
        };
        opened.sync().map_err(|source| store.sync_failed(directory, source))?;
    }
    Ok(())
}

/// Syncs an index file. It was closed after its write, since it is not worth a descriptor: should
/// its write-back have failed unseen, or it be gone, that is found when it is loaded, and it is
/// made again.
fn sync_index(segment: &Arc<Segment>, kind: FileKind) -> Result<(), Error> {
    let store = &segment.home.store;
    store.check()?;
    let path = segment.path(kind);
    match store.fs().open(&path, Open::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(store.write_failed("open", path, error)),
        Ok(file) => file.sync_data().map_err(|source| store.sync_failed(path, source)),
    }
}
