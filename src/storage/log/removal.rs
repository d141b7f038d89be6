//! Files that are no longer part of a log, and files that must stay although they are not.
//!
//! A segment's files are removed when its last holder drops it, and only if it was doomed. A pin is
//! a holder; so is a read that is under way.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::storage::log::names::FileKind;
use crate::storage::log::segment::Segment;
use crate::storage::log::state::{PartitionState, SegmentState};
use crate::storage::log::store::Home;

/// Segments that left their log but whose files the last checkpoint may still name.
///
/// Dropping it leaves the files where they are, as orphans that the next start removes.
#[derive(Debug, Default)]
#[must_use = "the files stay until `unlink` is called"]
pub struct Removed {
    pub(super) segments: Vec<Arc<Segment>>,
    /// Directories of deleted partitions.
    pub(super) homes: Vec<Arc<Home>>,
}

/// A partition's files as they were, kept from removal while this exists.
#[derive(Debug, Clone)]
pub struct Pinned {
    /// The log that the files hold, without what the shard keeps beside it.
    pub state: PartitionState,
    /// The files of `state.segments`, in the same order.
    pub files: Vec<PinnedFile>,
}

/// A segment file that is kept from removal.
#[derive(Debug, Clone)]
pub struct PinnedFile {
    segment: Arc<Segment>,
    state: SegmentState,
}

impl Removed {
    /// Returns whether there is nothing to remove.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.homes.is_empty()
    }

    /// Adds what another removal holds.
    pub fn merge(&mut self, other: Self) {
        self.segments.extend(other.segments);
        self.homes.extend(other.homes);
    }

    /// Lets the files go: now, or when the last reader and pin let go of them. Call it when a
    /// checkpoint that does not name them is durable.
    pub fn unlink(self) {
        self.homes.iter().for_each(|home| home.is_doomed.store(true, Ordering::Release));
        self.segments.iter().for_each(|segment| segment.doom());
    }
}

impl PinnedFile {
    pub(super) fn new(segment: Arc<Segment>, state: SegmentState) -> Self {
        Self { segment, state }
    }

    /// Returns the file's name and what is known of it; it has at least `len` bytes.
    pub fn state(&self) -> &SegmentState {
        &self.state
    }

    /// Returns where the file is.
    pub fn path(&self) -> PathBuf {
        self.segment.path(FileKind::Log)
    }

    /// Reads into `buffer` from `position`, never beyond the pinned length; returns the bytes read.
    ///
    /// # Errors
    /// The operating system's.
    pub fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        let left = self.state.len.saturating_sub(position);
        let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.segment.file()?.read_at(buffer.get_mut(..want).unwrap_or_default(), position)
    }
}
