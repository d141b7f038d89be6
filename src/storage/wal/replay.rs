//! What the frames of a log add up to, and whether they fit together.
//!
//! Invariants:
//! - a replica's entries are without a gap, from its purged index on;
//! - a replica that lost a synced frame is not among the recovered ones: it may have forgotten a
//!   vote or an entry that it had acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::storage::wal::format::{FrameHead, Kind, parse_vote};
use crate::storage::wal::index::{ReplicaLog, Slot};
use crate::storage::wal::parse::Frame;
use crate::storage::wal::round::AllMarks;
use crate::storage::wal::{Damage, Error, Floors, LogId, OnDamage};
use crate::types::{RaftIndex, ReplicaId};

/// Whose frames were in a damaged place.
#[derive(Debug, Clone, Copy)]
pub(super) enum Blame {
    One(ReplicaId),
    /// It cannot be told, so all replicas of the log.
    All,
}

/// A damaged place, to be judged when the whole log was read.
struct Finding {
    damage: Damage,
    blame: Blame,
    /// The entry that is damaged when it is known that nothing else is.
    entry: Option<(RaftIndex, Slot)>,
}

/// The last entry of each replica in one file.
pub(super) type Highest = BTreeMap<ReplicaId, RaftIndex>;

pub(super) struct Replay {
    pub(super) replicas: BTreeMap<ReplicaId, ReplicaLog>,
    pub(super) marks: AllMarks,
    pub(super) highest: BTreeMap<u32, Highest>,
    pub(super) damaged: BTreeMap<ReplicaId, Vec<Damage>>,
    pub(super) torn_tail: Option<Damage>,
    pub(super) dropped: BTreeSet<ReplicaId>,
    /// Whether it cannot be told who lost something, so that nothing of the log can be used.
    pub(super) lost_all: bool,
    findings: Vec<Finding>,
    /// Replicas of which nothing more is taken in, because something does not fit.
    broken: BTreeSet<ReplicaId>,
    dir: PathBuf,
    on_damage: OnDamage,
}

impl Replay {
    pub(super) fn new(dir: &Path, on_damage: OnDamage) -> Self {
        Self {
            replicas: BTreeMap::new(),
            marks: AllMarks::new(),
            highest: BTreeMap::new(),
            damaged: BTreeMap::new(),
            torn_tail: None,
            dropped: BTreeSet::new(),
            lost_all: false,
            findings: Vec::new(),
            broken: BTreeSet::new(),
            dir: dir.to_owned(),
            on_damage,
        }
    }

    /// Notes a damaged place.
    pub(super) fn damage(&mut self, damage: Damage, blame: Blame) {
        if let Blame::One(replica) = blame {
            self.broken.insert(replica);
        }
        self.findings.push(Finding { damage, blame, entry: None });
    }

    /// Notes a frame whose payload is damaged. Its head is good: an entry that was purged or
    /// truncated later is no loss.
    pub(super) fn damaged_payload(&mut self, file: u32, head: &FrameHead, damage: Damage) {
        let blame = Blame::One(head.replica);
        let slot = Slot { position: damage.position, file, length: head.length };
        if head.kind != Kind::Entry || self.entry(file, (head.replica, head.id), slot).is_err() {
            self.damage(damage, blame);
            return;
        }
        self.findings.push(Finding { damage, blame, entry: Some((head.id.index, slot)) });
    }

    /// Takes a frame in.
    pub(super) fn frame(&mut self, file: u32, path: &Path, frame: &Frame<'_>) {
        let FrameHead { kind, replica, .. } = frame.head;
        if kind.closes() || (self.broken.contains(&replica) && kind != Kind::Dropped) {
            return;
        }
        if let Err(reason) = self.try_frame(file, frame) {
            let (path, position) = (path.to_owned(), frame.position);
            self.damage(Damage { path, position, reason }, Blame::One(replica));
        }
    }

    fn try_frame(&mut self, file: u32, frame: &Frame<'_>) -> Result<(), String> {
        let (replica, id) = (frame.head.replica, frame.head.id);
        if frame.head.kind == Kind::Dropped {
            self.forget(replica);
            return Ok(());
        }
        if self.dropped.contains(&replica) {
            return Err("a frame of a replica that was dropped".to_owned());
        }
        match frame.head.kind {
            Kind::Entry => {
                let (position, length) = (frame.position, frame.head.length);
                self.entry(file, (replica, id), Slot { position, file, length })?;
            }
            Kind::Truncate => self.truncate(replica, Some(id.index)),
            Kind::TruncateAll => self.truncate(replica, None),
            Kind::Purged => self.purge(replica, id),
            Kind::Vote => {
                let vote = parse_vote(id.term, frame.payload).map_err(|bad| bad.to_string())?;
                self.replicas.entry(replica).or_default().vote = Some(vote);
                self.marks.entry(replica).or_default().vote = Some(vote);
            }
            Kind::Committed => {
                self.replicas.entry(replica).or_default().committed = Some(id);
                self.marks.entry(replica).or_default().committed = Some(id);
            }
            Kind::Announced => {
                self.replicas.entry(replica).or_default();
                self.marks.entry(replica).or_default().announced = Some(id);
            }
            Kind::Dropped | Kind::End | Kind::Stop => {}
        }
        Ok(())
    }

    fn forget(&mut self, replica: ReplicaId) {
        self.dropped.insert(replica);
        self.replicas.remove(&replica);
        self.marks.remove(&replica);
    }

    fn entry(
        &mut self,
        file: u32,
        (replica, id): (ReplicaId, LogId),
        slot: Slot,
    ) -> Result<(), String> {
        let log = self.replicas.entry(replica).or_default();
        if log.purged().is_some_and(|purged| id.index <= purged.index) {
            return Ok(());
        }
        if !log.accepts_recovered(id) {
            return Err(format!("{id:?} cannot follow {:?}", log.last()));
        }
        log.push_slot(id, slot);
        self.marks.entry(replica).or_default().last = Some(id.index);
        self.holds(file, replica, id.index);
        Ok(())
    }

    /// Notes that a replica's entry lies in a file.
    pub(super) fn holds(&mut self, file: u32, replica: ReplicaId, index: RaftIndex) {
        self.highest.entry(file).or_default().insert(replica, index);
    }

    fn truncate(&mut self, replica: ReplicaId, keep: Option<RaftIndex>) {
        let log = self.replicas.entry(replica).or_default();
        log.truncate_after(keep);
        self.marks.entry(replica).or_default().last = log.last().map(|last| last.index);
        for highest in self.highest.values_mut() {
            match (highest.get_mut(&replica), keep) {
                (Some(last), Some(keep)) => *last = (*last).min(keep),
                (Some(_), None) => {
                    highest.remove(&replica);
                }
                (None, _) => {}
            }
        }
    }

    fn purge(&mut self, replica: ReplicaId, id: LogId) {
        let log = self.replicas.entry(replica).or_default();
        log.purge(id);
        let marks = self.marks.entry(replica).or_default();
        marks.purged = log.purged();
        marks.last = log.last().map(|last| last.index);
    }

    /// Compares what was found with what must be there.
    ///
    /// # Errors
    /// [`Error::Damaged`] and [`Error::Behind`] when a damaged log is not to be opened.
    pub(super) fn check(&mut self, floors: &Floors) -> Result<(), Error> {
        let with_checkpoint =
            |(replica, floor): (&ReplicaId, &Option<LogId>)| floor.map(|floor| (*replica, floor));
        let known = floors.iter().filter_map(with_checkpoint).collect();
        self.check_damage(&known)?;
        for (replica, floor) in floors {
            if !self.damaged.contains_key(replica) {
                self.check_checkpoint(*replica, *floor)?;
            }
        }
        for replica in self.damaged.keys() {
            self.replicas.remove(replica);
            self.marks.remove(replica);
            self.dropped.insert(*replica);
        }
        Ok(())
    }

    fn check_damage(&mut self, floors: &BTreeMap<ReplicaId, LogId>) -> Result<(), Error> {
        for finding in std::mem::take(&mut self.findings) {
            if self.is_forgiven(&finding, floors) {
                continue;
            }
            self.refuse(&finding.damage)?;
            match finding.blame {
                Blame::One(replica) => {
                    self.damaged.entry(replica).or_default().push(finding.damage);
                }
                Blame::All => {
                    self.lost_all = true;
                    for replica in self.replicas.keys().chain(floors.keys()) {
                        let damages = self.damaged.entry(*replica).or_default();
                        damages.push(finding.damage.clone());
                    }
                }
            }
        }
        let all: BTreeSet<ReplicaId> = self.replicas.keys().chain(floors.keys()).copied().collect();
        for replica in all {
            if !self.damaged.contains_key(&replica) {
                self.check_replica(replica, floors.get(&replica).copied())?;
            }
        }
        Ok(())
    }

    /// Returns whether what is damaged is not needed.
    fn is_forgiven(&self, finding: &Finding, floors: &BTreeMap<ReplicaId, LogId>) -> bool {
        let Blame::One(replica) = finding.blame else { return false };
        if self.dropped.contains(&replica) {
            return !floors.contains_key(&replica);
        }
        let Some((index, slot)) = finding.entry else { return false };
        self.replicas.get(&replica).and_then(|log| log.slot(index)) != Some(slot)
    }

    fn refuse(&self, damage: &Damage) -> Result<(), Error> {
        match self.on_damage {
            OnDamage::Refuse => Err(Error::Damaged(damage.clone())),
            OnDamage::Retire => Ok(()),
        }
    }

    fn check_replica(&mut self, replica: ReplicaId, floor: Option<LogId>) -> Result<(), Error> {
        let announced = self.marks.get(&replica).and_then(|marks| marks.announced);
        if let Some(floor) = floor
            && announced.is_some_and(|id| floor.index <= id.index)
            && self.last(replica) < Some(floor.index)
        {
            // A snapshot was installed, and power was cut before the log was purged up to it.
            self.purge(replica, floor);
        }
        let log = self.replicas.get(&replica);
        let committed = log.and_then(|log| log.committed);
        let known = floor.map(|id| id.index).max(committed.map(|id| id.index));
        let last = self.last(replica);
        if let Some(known) = known.filter(|known| Some(*known) > last) {
            let torn = self.torn_tail.clone();
            if self.on_damage == OnDamage::Refuse {
                return Err(Error::Behind { replica, known, last, torn });
            }
            let reason = format!("index {known} was in the log, it ends at {last:?}");
            let (path, position) =
                torn.map_or((self.dir.clone(), 0), |torn| (torn.path, torn.position));
            let damage = Damage { path, position, reason };
            self.damaged.entry(replica).or_default().push(damage);
            return Ok(());
        }
        self.check_start(replica)
    }

    /// Checks that nothing is missing between the purged entry and the first.
    fn check_start(&mut self, replica: ReplicaId) -> Result<(), Error> {
        let Some(log) = self.replicas.get(&replica) else {
            return Ok(());
        };
        let (Some(purged), Some(first)) = (log.purged(), log.first()) else {
            return Ok(());
        };
        if first == purged.index.next() {
            return Ok(());
        }
        let reason = format!("replica {replica} has no entries between {purged:?} and {first}");
        let damage = Damage { path: self.dir.clone(), position: 0, reason };
        self.refuse(&damage)?;
        self.damaged.entry(replica).or_default().push(damage);
        Ok(())
    }

    /// Checks that a replica's checkpoint reaches to where its log starts.
    fn check_checkpoint(&mut self, replica: ReplicaId, floor: Option<LogId>) -> Result<(), Error> {
        let Some(purged) = self.replicas.get(&replica).and_then(ReplicaLog::purged) else {
            return Ok(());
        };
        let covers = floor.map(|floor| floor.index);
        if covers >= Some(purged.index) {
            return Ok(());
        }
        let error = Error::NoCheckpoint { replica, purged: purged.index, covers };
        if self.on_damage == OnDamage::Refuse {
            return Err(error);
        }
        let damage = Damage { path: self.dir.clone(), position: 0, reason: error.to_string() };
        self.damaged.entry(replica).or_default().push(damage);
        Ok(())
    }

    fn last(&self, replica: ReplicaId) -> Option<RaftIndex> {
        self.replicas.get(&replica)?.last().map(|last| last.index)
    }
}
