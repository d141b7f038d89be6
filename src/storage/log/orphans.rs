//! Files below the partitions' directory that no checkpoint names.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use crate::storage::fs::{Entry, EntryKind};
use crate::storage::log::Error;
use crate::storage::log::names::{FileKind, SegmentName, parse_partition};
use crate::storage::log::state::PartitionState;
use crate::storage::log::store::Store;
use crate::types::{TopicId, TopicPartition};

/// A file that no checkpoint names: written after the last one, or left by a removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes.
    pub len: u64,
    /// Its partition.
    pub partition: TopicPartition,
}

impl Store {
    /// Lists segment and index files that none of `states` names: those of all shards of the node,
    /// as their checkpoints have them. Call it before a log is opened for writing. Names that are
    /// not ours are left out, so they are never removed.
    ///
    /// # Errors
    /// [`Error::Io`] when a directory cannot be listed.
    pub fn orphans<'a>(
        &self,
        states: impl Iterator<Item = (&'a TopicPartition, &'a PartitionState)>,
    ) -> Result<Vec<Orphan>, Error> {
        let known: BTreeSet<_> = states
            .flat_map(|(id, state)| state.segments.iter().map(move |segment| (*id, segment)))
            .flat_map(|(id, segment)| {
                let name = SegmentName { base: segment.base, generation: segment.generation };
                // An active segment's index files are of another life.
                let kinds = if segment.sealed { &FileKind::ALL[..] } else { &[FileKind::Log][..] };
                kinds.iter().map(move |kind| (id, name, *kind))
            })
            .collect();
        let mut orphans = Vec::new();
        for (id, directory) in self.partition_directories()? {
            for entry in self.list(&directory)? {
                let whole = entry.name.strip_suffix(".tmp");
                let stem = whole.unwrap_or(&entry.name);
                let Some((name, kind)) = SegmentName::parse(stem) else { continue };
                let is_known = whole.is_none() && known.contains(&(id, name, kind));
                if entry.kind == EntryKind::File && !is_known {
                    let path = directory.join(&entry.name);
                    orphans.push(Orphan { path, len: entry.len, partition: id });
                }
            }
        }
        Ok(orphans)
    }

    /// Removes orphans, and the directories that they leave empty.
    ///
    /// # Errors
    /// [`Error::Io`] for the first file that cannot be removed.
    pub fn remove_orphans(&self, orphans: &[Orphan]) -> Result<(), Error> {
        for orphan in orphans {
            match self.fs().remove_file(&orphan.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => {
                    removed.map_err(|source| Error::io("remove", orphan.path.clone(), source))?
                }
            }
        }
        let partitions: BTreeSet<_> =
            orphans.iter().filter_map(|found| found.path.parent()).collect();
        for partition in partitions {
            // Fails where other files are left, as it should.
            if self.fs().remove_dir(partition).is_ok()
                && let Some(topic) = partition.parent()
            {
                let _ = self.fs().remove_dir(topic);
            }
        }
        Ok(())
    }

    fn partition_directories(&self) -> Result<Vec<(TopicPartition, PathBuf)>, Error> {
        let mut found = Vec::new();
        for topic_entry in self.list(self.directory())? {
            let Ok(topic) = topic_entry.name.parse::<TopicId>() else {
                continue;
            };
            let directory = self.directory().join(&topic_entry.name);
            for entry in self.list(&directory)? {
                if let Some(partition) = parse_partition(&entry.name)
                    && entry.kind == EntryKind::Directory
                {
                    found.push((TopicPartition { topic, partition }, directory.join(&entry.name)));
                }
            }
        }
        Ok(found)
    }

    fn list(&self, directory: &Path) -> Result<Vec<Entry>, Error> {
        match self.fs().list(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            listed => listed.map_err(|source| Error::io("list", directory.to_owned(), source)),
        }
    }
}
