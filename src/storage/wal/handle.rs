//! The handle that callers hold.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

use crate::storage::fs::SharedFs;
use crate::storage::wal::files::Upkeep;
use crate::storage::wal::format::PAYLOAD_BYTES_MAX;
use crate::storage::wal::index::Batch;
use crate::storage::wal::read::{find, read_found};
use crate::storage::wal::recovery::{io_error, recover};
use crate::storage::wal::state::{Append, Command, OnPoison, Phase, ROUND_BYTES, Shared, State};
use crate::storage::wal::writer::Writer;
use crate::storage::wal::{
    Config, Done, Entry, Error, Floors, LogId, Poisoned, Pressure, Recovery, ReplicaState,
    SharedObserver, Vote,
};
use crate::types::{RaftIndex, ReplicaId, Term};

/// The node's log. Clones share it; the last one that goes without [`Wal::close`] stops the threads
/// as a crash would.
#[derive(Clone)]
pub struct Wal {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal").field("dir", &self.handle.shared.dir).finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        if state.phase == Phase::Running {
            state.phase = Phase::Abandoned;
        }
        drop(state);
        self.shared.work.notify_all();
        self.shared.upkeep.notify_all();
        // The threads are not waited for: this may run on one of them, inside of a callback.
    }
}

impl Wal {
    /// Opens the log in `dir`, which is made if it does not exist, and starts its threads.
    ///
    /// A log that ends before a replica's floor has lost something, and one that starts after it
    /// has nothing to be applied to.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Damaged`], [`Error::Behind`] and [`Error::NoCheckpoint`] when
    /// something that was synced is lost and `config.on_damage` is to refuse: the log is then as it
    /// was.
    pub fn open(
        fs: SharedFs,
        dir: &Path,
        config: Config,
        floors: &Floors,
        observer: SharedObserver,
    ) -> Result<(Self, Recovery), Error> {
        let recovered = recover(fs.as_ref(), dir, &config, floors)?;
        let directory = fs.open_dir(dir).map_err(io_error("open", dir))?;
        let state = State {
            replicas: recovered.replicas,
            forgotten: recovered.forgotten,
            queue: std::collections::VecDeque::new(),
            queued_bytes: 0,
            appended_bytes: 0,
            next_ticket: 0,
            wake: false,
            phase: Phase::Running,
            poisoned: None,
            on_poison: Vec::new(),
            files: recovered.files,
            next: None,
            wants_next: false,
            next_sequence: recovered.next_sequence,
            retired: Vec::new(),
            storage_full: false,
            no_file: None,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            work: parking_lot::Condvar::new(),
            upkeep: parking_lot::Condvar::new(),
            fs,
            dir: dir.to_owned(),
            config,
            observer,
        });
        let upkeep = Upkeep::new(Arc::clone(&shared), directory, recovered.spares);
        let writer =
            Writer::new(Arc::clone(&shared), recovered.current, recovered.round, recovered.marks);
        let handle = Handle { shared, threads: Mutex::new(Vec::new()) };
        handle.spawn("wal-files", || upkeep.run(), dir)?;
        handle.spawn("wal", || writer.run(), dir)?;
        Ok((Self { handle: Arc::new(handle) }, recovered.report))
    }

    /// Appends entries, which can be read when this returns and are durable when `done` is called.
    ///
    /// The first index must follow the replica's last; otherwise the log ends, because going on
    /// would spread the damage.
    pub fn append(&self, replica: ReplicaId, entries: Vec<Entry>, done: Done) {
        let mut done = Some(done);
        let mut chunks = split(entries).into_iter().peekable();
        if chunks.peek().is_none() {
            return self.barrier_of(done);
        }
        let mut state = self.handle.shared.state.lock();
        let mut wake = false;
        while let Some(batch) = chunks.next() {
            let refusal = state.refusal(Some(replica));
            let misfit = if refusal.is_none() { misfit(&mut state, replica, &batch) } else { None };
            if let Some(poisoned) = misfit.clone().or(refusal) {
                drop(state);
                if misfit.is_some() {
                    self.handle.shared.poison(&poisoned);
                }
                if let Some(done) = done {
                    done(Err(poisoned));
                }
                return;
            }
            let ticket = state.next_ticket;
            state.next_ticket = ticket.wrapping_add(1);
            state.replicas.entry(replica).or_default().push_queued(&batch, ticket);
            let done = if chunks.peek().is_none() { done.take() } else { None };
            let bytes: usize = batch.iter().map(Entry::payload_bytes).sum();
            let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
            wake |= state.enqueue(Command::Append(Append { replica, batch, ticket, bytes, done }));
        }
        drop(state);
        self.wake_if(wake);
    }

    /// Saves a replica's vote.
    pub fn save_vote(&self, replica: ReplicaId, vote: Vote, done: Done) {
        self.command(Command::Vote { replica, vote, done }, |state| {
            state.replicas.entry(replica).or_default().vote = Some(vote);
        });
    }

    /// Removes the entries after `keep`, or all.
    pub fn truncate_after(&self, replica: ReplicaId, keep: Option<RaftIndex>, done: Done) {
        self.command(Command::Truncate { replica, keep, done }, |state| {
            state.replicas.entry(replica).or_default().truncate_after(keep);
        });
    }

    /// Says that a checkpoint of the replica up to `id` is about to replace its log (a snapshot is
    /// being installed): after a power cut between the two the log may end before the checkpoint.
    pub fn announce_snapshot(&self, replica: ReplicaId, id: LogId, done: Done) {
        self.command(Command::Announce { replica, id, done }, |state| {
            state.replicas.entry(replica).or_default();
        });
    }

    /// Notes that the entries up to `id` are committed; written when something else needs a sync.
    pub fn save_committed(&self, replica: ReplicaId, id: LogId) {
        self.command(Command::Committed { replica, id }, |state| {
            state.replicas.entry(replica).or_default().committed = Some(id);
        });
    }

    /// Gives the entries up to `id` up, and the files that nobody else holds. Does not wait.
    pub fn purge(&self, replica: ReplicaId, id: LogId) {
        let under_pressure = self.command(Command::Purge { replica, id }, |state| {
            state.replicas.entry(replica).or_default().purge(id);
        });
        if under_pressure {
            self.wake_now();
        }
    }

    /// Forgets a replica that has left this node for ever. Does not wait. The replica's checkpoint
    /// must be gone, durably, before: a checkpoint without a log reads as a lost log.
    pub fn forget(&self, replica: ReplicaId) {
        let under_pressure = self.command(Command::Forget { replica }, |state| {
            state.replicas.remove(&replica);
            state.forgotten.insert(replica);
        });
        if under_pressure {
            self.wake_now();
        }
    }

    /// Calls `done` when everything queued before is synced.
    pub fn barrier(&self, done: Done) {
        self.command(Command::Barrier { done }, |_| {});
    }

    fn barrier_of(&self, done: Option<Done>) {
        if let Some(done) = done {
            self.barrier(done);
        }
    }

    /// Returns what is known of a replica, queued changes included.
    pub fn state(&self, replica: ReplicaId) -> Option<ReplicaState> {
        let state = self.handle.shared.state.lock();
        state.replicas.get(&replica).map(super::index::ReplicaLog::state)
    }

    /// Returns an entry's term, or the purged entry's, from memory.
    pub fn term_of(&self, replica: ReplicaId, index: RaftIndex) -> Option<Term> {
        self.handle.shared.state.lock().replicas.get(&replica)?.term_of(index)
    }

    /// Returns the last entry of each term, in order, from memory.
    pub fn key_log_ids(&self, replica: ReplicaId) -> Vec<LogId> {
        let state = self.handle.shared.state.lock();
        state.replicas.get(&replica).map(super::index::ReplicaLog::key_log_ids).unwrap_or_default()
    }

    /// Reads entries in order without a gap: at least one if there is one at the range's start, and
    /// not more than about `max_bytes` otherwise. What is past the log's end is not there.
    ///
    /// # Errors
    /// [`Error::NotInLog`] when the range begins before the log, [`Error::Damaged`] when what was
    /// written cannot be read back, [`Error::Io`].
    pub fn read(
        &self,
        replica: ReplicaId,
        range: Range<RaftIndex>,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, Error> {
        let found = find(&self.handle.shared.state.lock(), replica, range, max_bytes)?;
        read_found(found, replica)
    }

    /// Returns the bytes that the log has on disk.
    pub fn live_bytes(&self) -> u64 {
        self.handle.shared.state.lock().live_bytes()
    }

    /// Returns the payload bytes that were appended since the log was opened; it only grows.
    pub fn appended_bytes(&self) -> u64 {
        self.handle.shared.state.lock().appended_bytes
    }

    /// Returns the payload bytes that are queued and not synced yet. Whoever proposes or receives
    /// entries refuses them above its bound; the log itself never does.
    pub fn queued_bytes(&self) -> u64 {
        self.handle.shared.state.lock().queued_bytes
    }

    /// Returns who keeps the oldest files when the log is above its soft bound: as many files as
    /// must go for the log to come below it.
    pub fn pressure(&self) -> Option<Pressure> {
        let state = self.handle.shared.state.lock();
        let excess = state.live_bytes().checked_sub(self.handle.shared.config.max_bytes)?;
        if excess == 0 {
            return None;
        }
        let mut hold = BTreeMap::new();
        let mut freed = 0;
        // The last file is being written and stays.
        for file in state.files.values().take(state.files.len().saturating_sub(1)) {
            if freed >= excess {
                break;
            }
            freed = freed.saturating_add(file.used);
            for (replica, last) in &file.highest {
                let Some(log) = state.replicas.get(replica) else { continue };
                if log.purged().is_none_or(|id| id.index < *last) {
                    let upto = hold.entry(*replica).or_insert(*last);
                    *upto = (*last).max(*upto);
                }
            }
        }
        Some(Pressure { hold: hold.into_iter().collect() })
    }

    /// Returns whether log and queue have four times the soft bound: nothing may be added but what
    /// frees space.
    pub fn is_over_hard_bound(&self) -> bool {
        self.bytes_to_hard_bound() == 0
    }

    /// Returns what may be added until the hard bound is reached.
    pub fn bytes_to_hard_bound(&self) -> u64 {
        let state = self.handle.shared.state.lock();
        let bytes = state.live_bytes().saturating_add(state.queued_bytes);
        self.handle.shared.config.max_bytes.saturating_mul(4).saturating_sub(bytes)
    }

    /// Returns whether the disk had no space for the next file. The log goes on in the room that is
    /// left, and waits, unanswered, when that is used up; it recovers by itself when space returns.
    pub fn is_storage_full(&self) -> bool {
        self.handle.shared.state.lock().storage_full
    }

    /// Returns why the next file could not be made when that was last tried, if it could not. It is
    /// tried again and again.
    pub fn no_file(&self) -> Option<Arc<str>> {
        self.handle.shared.state.lock().no_file.clone()
    }

    /// Returns why the log has ended, if it has.
    pub fn poisoned(&self) -> Option<Poisoned> {
        self.handle.shared.state.lock().poisoned.clone()
    }

    /// Calls `callback` when the log is poisoned, or now if it is. A close does not call it.
    pub fn on_poison(&self, callback: impl FnOnce(&Poisoned) + Send + 'static) {
        let callback: OnPoison = Box::new(callback);
        let mut state = self.handle.shared.state.lock();
        match state.poisoned.clone() {
            None => state.on_poison.push(callback),
            Some(poisoned) => {
                drop(state);
                callback(&poisoned);
            }
        }
    }

    /// Syncs what is queued, marks the clean stop, and ends the threads. Not to be called from a
    /// callback.
    ///
    /// # Errors
    /// [`Poisoned`] when the log had ended before, or ends by this.
    pub fn close(&self) -> Result<(), Poisoned> {
        let shared = &self.handle.shared;
        let failed = Arc::new(Mutex::new(None));
        let heard = Arc::clone(&failed);
        {
            let mut state = shared.state.lock();
            if let Some(poisoned) = &state.poisoned {
                return Err(poisoned.clone());
            }
            // Registered before the writer can end: a close is not a failure, and is not told.
            let hear = move |poisoned: &Poisoned| *heard.lock() = Some(poisoned.clone());
            state.on_poison.push(Box::new(hear));
            state.phase = Phase::Closing;
        }
        shared.work.notify_all();
        shared.upkeep.notify_all();
        let threads = std::mem::take(&mut *self.handle.threads.lock());
        for thread in threads {
            if thread.join().is_err() {
                return Err(Poisoned::new("a thread of the log panicked"));
            }
        }
        let failed = failed.lock().take();
        failed.map_or(Ok(()), Err)
    }

    /// Queues a command and does `then` with the state; returns whether space is wanted.
    fn command(&self, command: Command, then: impl FnOnce(&mut State)) -> bool {
        let shared = &self.handle.shared;
        let mut state = shared.state.lock();
        if let Some(poisoned) = state.refusal(command.replica()) {
            drop(state);
            if let Some(done) = command.into_done() {
                done(Err(poisoned));
            }
            return false;
        }
        then(&mut state);
        let wake = state.enqueue(command);
        let under_pressure = state.storage_full || state.live_bytes() > shared.config.max_bytes;
        drop(state);
        self.wake_if(wake);
        under_pressure
    }

    /// Returns whether the next file is ready, for tests that wait for the file thread.
    #[cfg(test)]
    pub(super) fn has_next_file(&self) -> bool {
        self.handle.shared.state.lock().next.is_some()
    }

    /// Returns how many commands wait, for tests of what wakes the writer.
    #[cfg(test)]
    pub(super) fn queued_commands(&self) -> usize {
        self.handle.shared.state.lock().queue.len()
    }

    fn wake_if(&self, wake: bool) {
        if wake {
            self.handle.shared.work.notify_all();
        }
    }

    fn wake_now(&self) {
        self.handle.shared.state.lock().wake = true;
        self.handle.shared.work.notify_all();
    }
}

impl Handle {
    fn spawn(
        &self,
        name: &'static str,
        run: impl FnOnce() + Send + 'static,
        dir: &Path,
    ) -> Result<(), Error> {
        let spawned = std::thread::Builder::new().name(name.into()).spawn(run);
        let thread = spawned.map_err(|source| Error::Io {
            action: "start a thread for",
            path: dir.to_owned(),
            source,
        })?;
        self.threads.lock().push(thread);
        Ok(())
    }
}

/// Says why entries cannot be what comes next.
fn misfit(state: &mut State, replica: ReplicaId, batch: &Batch) -> Option<Poisoned> {
    let mut last = state.replicas.entry(replica).or_default().last();
    for entry in batch.iter() {
        let id = entry.id();
        if last.is_some_and(|last| id.index != last.index.next() || id.term < last.term) {
            let text = format_args!("{id:?} of replica {replica} cannot follow {last:?}");
            return Some(Poisoned::new(text));
        }
        if entry.payload_bytes() > PAYLOAD_BYTES_MAX {
            return Some(Poisoned::new(format_args!("{id:?} of {replica} is too large")));
        }
        last = Some(id);
    }
    None
}

/// Splits entries into groups that rounds can take without growing large.
fn split(entries: Vec<Entry>) -> Vec<Batch> {
    let mut groups: Vec<Batch> = Vec::new();
    let mut group = Vec::new();
    let mut bytes = 0_u64;
    for entry in entries {
        bytes = bytes.saturating_add(u64::try_from(entry.payload_bytes()).unwrap_or(u64::MAX));
        group.push(entry);
        if bytes >= ROUND_BYTES {
            groups.push(std::mem::take(&mut group).into());
            bytes = 0;
        }
    }
    if !group.is_empty() {
        groups.push(group.into());
    }
    groups
}
