//! Which segment files are open: each segment holds its own descriptor, this list bounds how many
//! do.
//!
//! Using an open file costs its segment's lock and nothing shared. Opening one beyond the bound
//! closes others: the longest unused clean ones. Dirty ones may exceed it up to twice as many, as
//! syncing one takes the thread that opens, which is the one that applies: before that a checkpoint
//! is asked for, which syncs them elsewhere. Only at the second bound the opening thread syncs.
//!
//! Invariants:
//! - a dirty descriptor is synced before it is closed, because the kernel reports a failed
//!   write-back to descriptors that were open then, and to a later one perhaps not;
//! - the file that a flush is writing is not closed meanwhile;
//! - a failed sync poisons the store.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::storage::fs::{File, Open};
use crate::storage::log::Error;
use crate::storage::log::names::FileKind;
use crate::storage::log::segment::Segment;
use crate::storage::log::store::Listed;

/// Dirty descriptors beside the clean ones' bound, as a multiple of it.
const DIRTY_FACTOR: usize = 2;

/// Files that an open tries to close while there are fewer than the second bound.
const CLOSE_TRIES: usize = 8;

/// Called when many descriptors wait for a sync.
type PressureCallback = Box<dyn Fn() + Send + Sync>;

/// The open segment files of a node, least recently opened first (a clock with second chances).
pub(super) struct Descriptors {
    open_max: usize,
    open: Mutex<VecDeque<Listed<Segment>>>,
    callbacks: RwLock<Vec<PressureCallback>>,
    /// Whether the callbacks were called since there were last few.
    is_told: AtomicBool,
}

impl fmt::Debug for Descriptors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Descriptors").field("open_max", &self.open_max).finish_non_exhaustive()
    }
}

/// A segment's descriptor.
#[derive(Debug, Default)]
pub(super) struct Descriptor {
    state: Mutex<State>,
    /// Held during a sync, so that who finds the file clean knows that its sync has ended.
    syncing: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    file: Option<Arc<dyn File>>,
    is_writable: bool,
    /// Written since the last sync began.
    is_dirty: bool,
    /// A flush is writing.
    is_written: bool,
    /// Used since the list last looked.
    is_used: bool,
}

/// What became of an attempt to close a file.
enum Close {
    Done,
    Busy,
}

impl Descriptors {
    pub(super) fn new(open_max: usize) -> Self {
        Self {
            open_max: open_max.max(1),
            open: Mutex::default(),
            callbacks: RwLock::default(),
            is_told: AtomicBool::new(false),
        }
    }

    /// Has `callback` called when descriptors that wait for a sync become many.
    pub(super) fn on_pressure(&self, callback: impl Fn() + Send + Sync + 'static) {
        self.callbacks.write().push(Box::new(callback));
    }

    /// Lists a segment whose file was just opened and closes others beyond the bounds.
    fn opened(&self, segment: &Arc<Segment>) {
        self.open.lock().push_back(Arc::downgrade(segment));
        self.close_beyond(self.open_max, (CLOSE_TRIES, 0));
        let (open, dirty_max) =
            (self.open.lock().len(), self.open_max.saturating_mul(DIRTY_FACTOR));
        if open <= self.open_max {
            self.is_told.store(false, Ordering::Relaxed);
        }
        let is_many = open > self.open_max.saturating_add(self.open_max / 2);
        if open > dirty_max || (is_many && !self.is_told.swap(true, Ordering::Relaxed)) {
            self.callbacks.read().iter().for_each(|callback| callback());
        }
        // Three rounds over the list: take back second chances, close what is clean, then dirty.
        self.close_beyond(dirty_max, (open * 3, open));
    }

    /// Tries to close files while more than `bound` are open, in the last `dirty` of all tries also
    /// dirty ones.
    fn close_beyond(&self, bound: usize, (tries, dirty): (usize, usize)) {
        for left in (0..tries).rev() {
            let Some(listed) = self.pop_beyond(bound) else {
                return;
            };
            let Some(found) = listed.upgrade() else {
                continue;
            };
            if matches!(found.close(left < dirty), Close::Busy) {
                self.open.lock().push_back(listed);
            }
        }
    }

    fn pop_beyond(&self, bound: usize) -> Option<Listed<Segment>> {
        let mut open = self.open.lock();
        if open.len() > bound { open.pop_front() } else { None }
    }
}

impl Segment {
    /// Returns the file for reading, opening it if need be.
    pub(super) fn file(self: &Arc<Self>) -> io::Result<Arc<dyn File>> {
        let mut state = self.descriptor.state.lock();
        state.is_used = true;
        if let Some(file) = &state.file {
            return Ok(Arc::clone(file));
        }
        let file = self.open_file(&mut state, Open::Read)?;
        drop(state);
        self.home.store.descriptors.opened(self);
        Ok(file)
    }

    /// Returns the file for writing and keeps it open until [`Segment::end_write`]. The file must
    /// exist unless `how` is [`Open::CreateNew`].
    pub(super) fn begin_write(self: &Arc<Self>, how: Open) -> io::Result<Arc<dyn File>> {
        let mut state = self.descriptor.state.lock();
        let (file, is_new) = match &state.file {
            Some(file) if state.is_writable => (Arc::clone(file), false),
            // A file opened for reading may be dirty; its sync goes through the new descriptor,
            // which is opened before the old one is closed.
            Some(_) | None => {
                let was_open = state.file.is_some();
                (self.open_file(&mut state, how)?, !was_open)
            }
        };
        state.is_used = true;
        state.is_written = true;
        state.is_dirty = true;
        drop(state);
        if is_new {
            self.home.store.descriptors.opened(self);
        }
        Ok(file)
    }

    /// Lets the file be closed again after a write.
    pub(super) fn end_write(&self) {
        self.descriptor.state.lock().is_written = false;
    }

    /// Makes all bytes written so far durable, if they are not.
    pub(super) fn sync(&self) -> Result<(), Error> {
        let _only_one = self.descriptor.syncing.lock();
        let store = &self.home.store;
        // Also when nothing is dirty: the sync that cleaned it may have failed.
        store.check()?;
        let file = {
            let mut state = self.descriptor.state.lock();
            if !std::mem::take(&mut state.is_dirty) {
                return Ok(());
            }
            state.file.clone()
        };
        let synced = match file {
            Some(file) => file.sync_data(),
            // Cannot happen, since a dirty file is not closed; if it did the bytes are not safe.
            None => Err(io::Error::other("a dirty file was closed")),
        };
        synced.map_err(|source| store.sync_failed(self.path(FileKind::Log), source))
    }

    fn open_file(&self, state: &mut State, how: Open) -> io::Result<Arc<dyn File>> {
        let store = &self.home.store;
        let file: Arc<dyn File> = store.fs().open(&self.path(FileKind::Log), how)?.into();
        if state.file.replace(Arc::clone(&file)).is_none() {
            store.counts.files_open.fetch_add(1, Ordering::Relaxed);
        }
        state.is_writable = how != Open::Read;
        Ok(file)
    }

    fn close(&self, even_dirty: bool) -> Close {
        {
            let mut state = self.descriptor.state.lock();
            if state.is_written || std::mem::take(&mut state.is_used) {
                return Close::Busy;
            }
            if !state.is_dirty {
                self.forget_file(&mut state);
                return Close::Done;
            }
        }
        // A failed sync has poisoned the store; the file stays open, nothing more is promised.
        if !even_dirty || self.sync().is_err() {
            return Close::Busy;
        }
        let mut state = self.descriptor.state.lock();
        if state.is_written || state.is_dirty {
            return Close::Busy;
        }
        self.forget_file(&mut state);
        Close::Done
    }

    fn forget_file(&self, state: &mut State) {
        if state.file.take().is_some() {
            self.home.store.counts.files_open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Closes the file of a segment that nobody has any more.
    pub(super) fn close_last(&mut self) {
        if self.descriptor.state.get_mut().file.take().is_some() {
            self.home.store.counts.files_open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
