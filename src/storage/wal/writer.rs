//! The writer thread: takes what is queued, writes it at once, syncs it once, answers.
//!
//! Invariants:
//! - a round is published and answered only after its sync; the next is built only after that;
//! - a file is closed by an end frame that is synced before the next file's first byte is written,
//!   and always has room for that frame;
//! - no space for a round is waited out, the round is then written anew; any other failure, and a
//!   failed sync above all, ends the log.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::Arc;

use crate::storage::fs::is_no_space;
use crate::storage::wal::files::{LiveFile, OpenFile, SPACE_RETRY};
use crate::storage::wal::format::{FileHeader, Kind};
use crate::storage::wal::round::{AllMarks, CLOSING_ROOM, CLOSING_ROOM_BYTES, Placed, Round};
use crate::storage::wal::state::{Append, Command, Phase, ROUND_BYTES, Shared, State};
use crate::storage::wal::{Done, Poisoned, RoundSize};
use crate::types::{RaftIndex, ReplicaId};

/// Largest round buffer that is kept for the next round.
const BUFFER_BYTES_MAX: usize = 8 << 20;

const _: () = assert!(BUFFER_BYTES_MAX as u64 >= ROUND_BYTES);

/// The file being written.
pub(super) struct Current {
    pub(super) file: Arc<OpenFile>,
    /// Where the next round goes; 0 while the file has not begun.
    pub(super) position: u64,
    /// Bytes of the file on disk.
    pub(super) allocated: u64,
    /// Where the next file is begun.
    pub(super) roll_at: u64,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    current: Current,
    /// The last round that was synced.
    round: u64,
    /// What is durable.
    marks: AllMarks,
    buffer: Vec<u8>,
}

enum Failure {
    NoSpace(io::Error),
    Fatal(Poisoned),
}

fn to_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, current: Current, round: u64, marks: AllMarks) -> Self {
        Self { shared, current, round, marks, buffer: Vec::new() }
    }

    pub(super) fn run(mut self) {
        while let Some(commands) = self.take() {
            let result = self.serve(&commands);
            answer(commands, &result);
        }
        self.end();
    }

    /// Waits for commands and takes those of one round; `None` when the log ends.
    fn take(&self) -> Option<Vec<Command>> {
        let mut state = self.shared.state.lock();
        while !state.wake && state.phase == Phase::Running {
            self.shared.work.wait(&mut state);
        }
        if state.phase == Phase::Abandoned {
            return None;
        }
        let mut commands = Vec::new();
        let mut bytes = 0_u64;
        while bytes < ROUND_BYTES
            && let Some(command) = state.queue.pop_front()
        {
            bytes = bytes.saturating_add(command.bytes());
            commands.push(command);
        }
        state.wake = !state.queue.is_empty();
        if commands.is_empty() && state.phase == Phase::Closing { None } else { Some(commands) }
    }

    fn serve(&mut self, commands: &[Command]) -> Result<(), Poisoned> {
        if let Some(poisoned) = &self.shared.state.lock().poisoned {
            return Err(poisoned.clone());
        }
        if !commands.iter().any(Command::writes) {
            return Ok(());
        }
        match self.write_round(commands) {
            Ok(placed) => {
                self.publish(commands, &placed);
                Ok(())
            }
            Err(poisoned) => {
                self.shared.poison(&poisoned);
                Err(poisoned)
            }
        }
    }

    fn write_round(&mut self, commands: &[Command]) -> Result<Vec<Placed>, Poisoned> {
        let wanted: u64 = commands.iter().map(Command::bytes_on_disk).sum();
        let after = self.current.position.saturating_add(wanted).saturating_add(CLOSING_ROOM_BYTES);
        if after > self.current.roll_at {
            self.roll()?;
        }
        loop {
            let round = self.build(commands);
            let size = RoundSize {
                bytes: to_u64(round.bytes.len()),
                callers: to_u64(commands.iter().filter(|command| command.is_awaited()).count()),
            };
            self.shared.observer.round_begins(size);
            match self.put(&round) {
                Ok(()) => {
                    self.shared.observer.round_ends();
                    self.buffer = round.bytes;
                    if self.buffer.capacity() > BUFFER_BYTES_MAX {
                        self.buffer = Vec::new();
                    }
                    return Ok(round.placed);
                }
                Err(Failure::Fatal(poisoned)) => return Err(poisoned),
                Err(Failure::NoSpace(error)) => {
                    self.buffer = round.bytes;
                    self.wait_for_space(&error)?;
                }
            }
        }
    }

    fn build(&mut self, commands: &[Command]) -> Round {
        let mut round = self.begin_round();
        let mut committed = BTreeMap::new();
        // What the log of each replica ends with when this round is written.
        let mut last: BTreeMap<ReplicaId, Option<RaftIndex>> = BTreeMap::new();
        for command in commands {
            match command {
                Command::Append(Append { replica, batch, ticket, .. }) => {
                    for entry in batch.iter() {
                        round.entry(*replica, entry, *ticket);
                    }
                    last.insert(*replica, batch.last().map(|entry| entry.index));
                }
                Command::Vote { replica, vote, .. } => round.vote(*replica, vote),
                Command::Truncate { replica, keep, .. } => {
                    round.truncate(*replica, *keep);
                    last.insert(*replica, *keep);
                }
                Command::Announce { replica, id, .. } => {
                    round.frame(Kind::Announced, *replica, *id, &[]);
                }
                Command::Purge { replica, id } => {
                    round.frame(Kind::Purged, *replica, *id, &[]);
                    let marked = self.marks.get(replica).and_then(|marks| marks.last);
                    let before = last.get(replica).copied().unwrap_or(marked);
                    last.insert(*replica, before.max(Some(id.index)));
                }
                Command::Forget { replica } => {
                    round.dropped(*replica);
                    committed.remove(replica);
                }
                Command::Committed { replica, id } => {
                    committed.insert(*replica, *id);
                }
                Command::Barrier { .. } => {}
            }
        }
        for (replica, id) in committed {
            let marked = self.marks.get(&replica).and_then(|marks| marks.last);
            if last.get(&replica).copied().unwrap_or(marked) >= Some(id.index) {
                round.frame(Kind::Committed, replica, id, &[]);
            }
        }
        round.finish(self.round.saturating_add(1));
        round
    }

    fn begin_round(&mut self) -> Round {
        let buffer = std::mem::take(&mut self.buffer);
        let sequence = self.current.file.sequence;
        if self.current.position > 0 {
            return Round::begin(buffer, sequence, self.current.position);
        }
        let own = u64::from(sequence);
        let header = FileHeader { sequence: own, void_from: own, previous_round: self.round };
        let mut round = Round::begin_file(buffer, sequence, &header);
        round.head(&self.marks);
        round
    }

    /// Writes and syncs a finished round, and sees to it that there is room to close the file.
    fn put(&mut self, round: &Round) -> Result<(), Failure> {
        let end = self.current.position.saturating_add(round.len());
        let with_room = end.saturating_add(CLOSING_ROOM_BYTES);
        if with_room > self.current.allocated {
            self.put_parts(&[IoSlice::new(&round.bytes), IoSlice::new(&CLOSING_ROOM)])?;
            self.current.allocated = with_room;
        } else {
            self.put_parts(&[IoSlice::new(&round.bytes)])?;
        }
        self.advance(round);
        Ok(())
    }

    fn advance(&mut self, round: &Round) {
        self.current.position = self.current.position.saturating_add(round.len());
        self.round = self.round.saturating_add(1);
    }

    fn put_parts(&self, parts: &[IoSlice<'_>]) -> Result<(), Failure> {
        let OpenFile { file, path, .. } = self.current.file.as_ref();
        file.write_all_at(parts, self.current.position).map_err(|error| {
            if is_no_space(&error) {
                return Failure::NoSpace(error);
            }
            Failure::Fatal(Poisoned::new(format_args!("cannot write {}: {error}", path.display())))
        })?;
        self.shared.observer.sync_begins();
        file.sync_data().map_err(|error| {
            Failure::Fatal(Poisoned::new(format_args!("cannot sync {}: {error}", path.display())))
        })
    }

    /// Closes the current file and goes to the prepared one; returns whether it did. Otherwise the
    /// current file grows.
    fn roll(&mut self) -> Result<bool, Poisoned> {
        if self.current.position == 0 {
            return Ok(false);
        }
        {
            let mut state = self.shared.state.lock();
            if state.next.is_none() {
                state.wants_next = true;
                drop(state);
                self.shared.upkeep.notify_all();
                return Ok(false);
            }
        }
        match self.close_file(Kind::End) {
            Ok(()) => {}
            // What was written of the end frame is written over by the next round.
            Err(Failure::NoSpace(_)) => return Ok(false),
            Err(Failure::Fatal(poisoned)) => return Err(poisoned),
        }
        {
            let mut state = self.shared.state.lock();
            if let Some(closed) = state.files.get_mut(&self.current.file.sequence) {
                closed.used = self.current.position;
            }
            // Only this thread takes the file, so it is still there.
            let Some(next) = state.next.take() else {
                return Err(Poisoned::new("the next file is gone"));
            };
            let (allocated, file) = (next.allocated, Arc::new(next));
            let roll_at = self.shared.config.file_bytes;
            state.files.insert(file.sequence, LiveFile::new(Arc::clone(&file)));
            self.current = Current { file, position: 0, allocated, roll_at };
        }
        self.shared.upkeep.notify_all();
        Ok(true)
    }

    /// Writes and syncs a round that says that the file, or the log, ends here. The room for it is
    /// there.
    fn close_file(&mut self, kind: Kind) -> Result<(), Failure> {
        let mut round = self.begin_round();
        round.close(kind);
        round.finish(self.round.saturating_add(1));
        self.put_parts(&[IoSlice::new(&round.bytes)])?;
        self.advance(&round);
        self.buffer = round.bytes;
        Ok(())
    }

    /// Goes to the prepared file if there is one, and waits a while if not.
    fn wait_for_space(&mut self, error: &io::Error) -> Result<(), Poisoned> {
        let rolled = self.roll()?;
        let mut state = self.shared.state.lock();
        if !rolled {
            state.storage_full = true;
            if state.phase == Phase::Running {
                self.shared.work.wait_for(&mut state, SPACE_RETRY);
            }
        }
        if state.phase != Phase::Running {
            return Err(Poisoned::new(format_args!("closed while there was no space: {error}")));
        }
        state.poisoned.clone().map_or(Ok(()), Err)
    }

    /// Makes a synced round known to readers, and finds files that are not needed any more.
    fn publish(&mut self, commands: &[Command], placed: &[Placed]) {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.state.lock();
        let state = &mut *state;
        for entry in placed {
            if let Some(log) = state.replicas.get_mut(&entry.replica) {
                log.written(entry.index, entry.ticket, entry.slot);
            }
        }
        for command in commands {
            state.queued_bytes = state.queued_bytes.saturating_sub(command.bytes());
            self.mark(state, command);
        }
        if let Some(current) = state.files.get_mut(&self.current.file.sequence) {
            current.used = self.current.position;
        }
        if state.storage_full && state.next.is_some() {
            state.storage_full = false;
        }
        self.drop_files(state);
    }

    /// Learns what a durable command means for the heads of later files and for dropping files.
    fn mark(&mut self, state: &mut State, command: &Command) {
        match command {
            Command::Append(Append { replica, batch, .. }) => {
                let Some(last) = batch.last() else { return };
                self.marks.entry(*replica).or_default().last = Some(last.index);
                if let Some(current) = state.files.get_mut(&self.current.file.sequence) {
                    current.holds(*replica, last.index);
                }
            }
            Command::Vote { replica, vote, .. } => {
                self.marks.entry(*replica).or_default().vote = Some(*vote);
            }
            Command::Truncate { replica, keep, .. } => {
                self.marks.entry(*replica).or_default().last = *keep;
                state.files.values_mut().for_each(|file| file.truncated(*replica, *keep));
            }
            Command::Announce { replica, id, .. } => {
                self.marks.entry(*replica).or_default().announced = Some(*id);
            }
            Command::Purge { replica, id } => {
                let marks = self.marks.entry(*replica).or_default();
                if marks.purged.is_none_or(|purged| purged.index < id.index) {
                    marks.purged = Some(*id);
                }
                marks.last = marks.last.max(Some(id.index));
            }
            Command::Forget { replica } => {
                self.marks.remove(replica);
            }
            Command::Committed { replica, id } => {
                let marks = self.marks.entry(*replica).or_default();
                if marks.last >= Some(id.index) {
                    marks.committed = Some(*id);
                }
            }
            Command::Barrier { .. } => {}
        }
    }

    fn drop_files(&self, state: &mut State) {
        let mut dropped = false;
        while let Some((sequence, oldest)) = state.files.first_key_value() {
            let needed = oldest.highest.iter().any(|(replica, last)| {
                self.marks
                    .get(replica)
                    .is_some_and(|marks| marks.purged.is_none_or(|id| id.index < *last))
            });
            if needed || *sequence == self.current.file.sequence {
                break;
            }
            if let Some((_, oldest)) = state.files.pop_first() {
                state.retired.push(oldest.file);
                dropped = true;
            }
        }
        if dropped {
            self.shared.upkeep.notify_all();
        }
    }

    /// Marks a clean stop, and answers whoever still waits.
    fn end(mut self) {
        let clean = {
            let state = self.shared.state.lock();
            state.phase == Phase::Closing && state.poisoned.is_none()
        };
        if clean {
            // Without the mark the next start copies the last file, nothing worse.
            let _ = self.close_file(Kind::Stop);
        }
        let poisoned = Poisoned::new("it was closed");
        let (queue, poisoned) = {
            let mut state = self.shared.state.lock();
            let poisoned = state.poisoned.get_or_insert(poisoned).clone();
            (std::mem::take(&mut state.queue), poisoned)
        };
        self.shared.upkeep.notify_all();
        answer(queue, &Err(poisoned));
    }
}

fn answer(commands: impl IntoIterator<Item = Command>, result: &Result<(), Poisoned>) {
    let dones = commands.into_iter().filter_map(Command::into_done);
    dones.for_each(|done: Done| done(result.clone()));
}
