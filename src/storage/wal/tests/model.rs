//! The log against a naive model: whatever was queued when, and wherever the machine stopped, what
//! is found is the state after some queued command, not before the last acknowledged one.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// A command as it was queued.
#[derive(Debug, Clone)]
enum Op {
    Append { of: u64, term: u64, range: std::ops::Range<u64>, bytes: usize },
    Vote { of: u64, term: u64 },
    Truncate { of: u64, keep: Option<u64> },
    Purge { of: u64, upto: LogId },
    Forget { of: u64 },
}

/// What one replica's log should be; committed marks may be lost and are looked at elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Log {
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: Vec<(u64, u64, Vec<u8>)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Model(BTreeMap<u64, Log>);

impl Log {
    fn last(&self) -> u64 {
        let purged = self.purged.map_or(0, |id| id.index.get());
        self.entries.last().map_or(purged, |(_, raw, _)| *raw)
    }
}

impl Model {
    fn log(&mut self, of: u64) -> &mut Log {
        self.0.entry(of).or_default()
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Append { of, term, range, bytes } => {
                let entries =
                    range.clone().map(|raw| (*term, raw, payload(*of, *term, raw, *bytes)));
                self.log(*of).entries.extend(entries);
            }
            Op::Vote { of, term } => self.log(*of).vote = Some(vote(*term)),
            Op::Truncate { of, keep } => {
                self.log(*of).entries.retain(|(_, raw, _)| Some(*raw) <= *keep);
            }
            Op::Purge { of, upto } => {
                let log = self.log(*of);
                log.purged = Some(*upto);
                log.entries.retain(|(_, raw, _)| *raw > upto.index.get());
            }
            Op::Forget { of } => drop(self.0.remove(of)),
        }
    }

    /// A replica of which nothing is known is as good as none.
    fn normal(&self) -> Self {
        let known = |(_, log): &(&u64, &Log)| **log != Log::default();
        Self(self.0.iter().filter(known).map(|(of, log)| (*of, log.clone())).collect())
    }

    fn of(wal: &Wal, recovery: &Recovery) -> Self {
        let log = |of: u64| {
            let state = wal.state(replica(of)).unwrap();
            Log { vote: state.vote, purged: state.purged, entries: read_all(wal, of) }
        };
        let ids = recovery.replicas.keys().map(|replica| replica.get());
        Self(ids.map(|of| (of, log(of))).collect()).normal()
    }
}

/// A run of the log on one disk.
struct Run {
    fs: SimFs,
    wal: Wal,
    /// What was found at the start.
    base: Model,
    /// What was queued since.
    ops: Vec<Op>,
    /// Answers to come, with the number of ops that they cover.
    waiting: Vec<(usize, Receiver<Result<(), Poisoned>>)>,
    /// How many ops were acknowledged.
    acked: usize,
    /// `base` with all ops.
    now: Model,
    committed: BTreeMap<u64, BTreeSet<u64>>,
    term: u64,
}

impl Run {
    fn new() -> Self {
        let fs = SimFs::new();
        let (wal, _) = open(&fs);
        Self {
            fs,
            wal,
            base: Model::default(),
            ops: Vec::new(),
            waiting: Vec::new(),
            acked: 0,
            now: Model::default(),
            committed: BTreeMap::new(),
            term: 1,
        }
    }

    fn note(&mut self, op: Op) {
        self.now.apply(&op);
        self.ops.push(op);
    }

    fn queue(&mut self, op: Op) {
        let (done, receiver) = done();
        match &op {
            Op::Append { of, term, range, bytes } => {
                let made = |raw| entry(*term, raw, &payload(*of, *term, raw, *bytes));
                self.wal.append(replica(*of), range.clone().map(made).collect(), done);
            }
            Op::Vote { of, term } => self.wal.save_vote(replica(*of), vote(*term), done),
            Op::Truncate { of, keep } => {
                self.wal.truncate_after(replica(*of), keep.map(index), done);
            }
            Op::Purge { of, upto } => {
                self.wal.purge(replica(*of), *upto);
                return self.note(op);
            }
            Op::Forget { of } => {
                self.wal.forget(replica(*of));
                return self.note(op);
            }
        }
        self.note(op);
        self.waiting.push((self.ops.len(), receiver));
    }

    fn committed_of(&self, of: u64) -> u64 {
        self.committed.get(&of).and_then(|marks| marks.last()).copied().unwrap_or(0)
    }

    /// Does what a raw step means for the log as it is now.
    fn step(&mut self, (kind, of, a, b): (u8, u64, u8, bool)) {
        let log = self.now.log(of).clone();
        let (first, last) = (log.entries.first().map_or(0, |entry| entry.1), log.last());
        let pick = |from: u64, to: u64| from + u64::from(a) % (to - from + 1);
        match kind {
            0..=5 => {
                let bytes = [12, 40, 300, 1500][usize::from(a) % 4];
                let range = last + 1..last + 2 + u64::from(a) % 3;
                self.queue(Op::Append { of, term: self.term, range, bytes });
            }
            6 => {
                self.term += 1;
                self.queue(Op::Vote { of, term: self.term });
            }
            7 if first > 0 => {
                let floor = self.committed_of(of).max(first.saturating_sub(1));
                let keep = pick(floor.min(last), last);
                self.term += 1;
                self.queue(Op::Truncate { of, keep: (keep > 0).then_some(keep) });
            }
            8 if first > 0 => {
                let upto = pick(first, last);
                let term = log.entries.iter().find(|entry| entry.1 == upto).unwrap().0;
                self.queue(Op::Purge { of, upto: id(term, upto) });
            }
            9 if first > 0 => {
                let raw = pick(first, last).max(self.committed_of(of));
                if let Some(term) = self.wal.term_of(replica(of), index(raw)) {
                    self.wal.save_committed(replica(of), LogId { term, index: index(raw) });
                    self.committed.entry(of).or_default().insert(raw);
                }
            }
            _ => {}
        }
        if b {
            self.wait();
        }
    }

    /// Waits for all answers; returns whether the log still works.
    fn wait(&mut self) -> bool {
        let mut works = true;
        for (ops, receiver) in std::mem::take(&mut self.waiting) {
            match wait(&receiver) {
                Ok(()) => self.acked = ops,
                Err(_) => works = false,
            }
        }
        works
    }

    /// Takes in the answers that are there.
    fn poll(&mut self) {
        for (ops, receiver) in &self.waiting {
            match receiver.try_recv() {
                Ok(Ok(())) => self.acked = *ops,
                _ => break,
            }
        }
    }

    /// Opens the log on `fs`, and checks what is found: it may be found, and it is durable.
    fn restart(&mut self, fs: SimFs) {
        let (wal, recovery) = open(&fs);
        let found = Model::of(&wal, &recovery);
        self.check(&found);
        for (replica, state) in &recovery.replicas {
            let saved = self.committed.get(&replica.get());
            if let Some(committed) = state.committed {
                assert!(saved.is_some_and(|saved| saved.contains(&committed.index.get())));
            }
        }
        let (again, recovery_again) = open(&fs.cut());
        assert_eq!(Model::of(&again, &recovery_again), found, "what was answered was not durable");
        assert_eq!(recovery_again.replicas, recovery.replicas);
        drop(again);
        (self.fs, self.wal) = (fs, wal);
        (self.base, self.now) = (found.clone(), found);
        self.ops.clear();
        self.waiting.clear();
        self.acked = 0;
        for (of, marks) in &mut self.committed {
            let known = recovery.replicas.get(&replica(*of)).and_then(|state| state.committed);
            marks.retain(|raw| known.is_some_and(|id| *raw <= id.index.get()));
        }
    }

    /// Checks that a found state is the one after some op, not before the acknowledged ones. Of the
    /// op after it, an append, a beginning may be there.
    fn check(&self, found: &Model) {
        let mut model = self.base.clone();
        for (count, op) in self.ops.iter().enumerate() {
            if count >= self.acked && model.normal() == *found {
                return;
            }
            if let (Op::Append { of, term, range, bytes }, true) = (op, count >= self.acked) {
                for end in range.start + 1..range.end {
                    let mut partly = model.clone();
                    let (of, term, bytes) = (*of, *term, *bytes);
                    partly.apply(&Op::Append { of, term, range: range.start..end, bytes });
                    if partly.normal() == *found {
                        return;
                    }
                }
            }
            model.apply(op);
        }
        assert_eq!(model.normal(), *found, "acked {} of {:?}", self.acked, self.ops);
    }
}

/// How a run is interrupted.
#[derive(Debug, Clone)]
enum Stop {
    Close,
    Crash,
    Cut,
    Luck(u64),
    CrashThenLuck(u64),
}

fn stop() -> impl Strategy<Value = Stop> {
    prop_oneof![
        Just(Stop::Close),
        Just(Stop::Crash),
        Just(Stop::Cut),
        any::<u64>().prop_map(Stop::Luck),
        any::<u64>().prop_map(Stop::CrashThenLuck),
    ]
}

fn steps() -> impl Strategy<Value = Vec<(u8, u64, u8, bool)>> {
    proptest::collection::vec((0..10_u8, 1..4_u64, any::<u8>(), any::<bool>()), 1..60)
}

fn interrupt(run: &mut Run, stop: &Stop) {
    let fs = match stop {
        Stop::Close => {
            run.wait();
            run.wal.close().unwrap();
            run.acked = run.ops.len();
            run.fs.crash()
        }
        Stop::Crash => {
            run.poll();
            run.fs.crash()
        }
        Stop::Cut => {
            run.poll();
            run.fs.cut()
        }
        Stop::Luck(seed) => {
            run.poll();
            run.fs.cut_with_luck(*seed)
        }
        Stop::CrashThenLuck(seed) => {
            run.poll();
            run.fs.crash().cut_with_luck(*seed)
        }
    };
    run.restart(fs);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn nothing_acknowledged_is_lost_or_reordered(
        runs in proptest::collection::vec((steps(), stop()), 1..6)
    ) {
        let mut run = Run::new();
        for (steps, stop) in &runs {
            steps.iter().for_each(|step| run.step(*step));
            interrupt(&mut run, stop);
        }
    }
}

#[test]
fn rolling_survives_a_stop_at_every_operation() {
    for changes in 0..140 {
        let mut run = Run::new();
        run.fs.stop_after(changes);
        let mut works = true;
        for at in 0..30_u8 {
            let kind = [0, 1, 6, 0, 9, 8, 0, 7][usize::from(at) % 8];
            run.step((kind, 1 + u64::from(at) % 2, at.wrapping_mul(7) | 3, false));
            works = run.wait() && works;
            if !works {
                break;
            }
        }
        let disks = [run.fs.cut(), run.fs.cut_with_luck(changes), run.fs.crash()];
        for fs in disks {
            let (wal, recovery) = open(&fs);
            let found = Model::of(&wal, &recovery);
            run.check(&found);
            let (again, recovery) = open(&fs.cut());
            assert_eq!(Model::of(&again, &recovery), found);
        }
    }
}

#[test]
fn a_forgotten_replica_leaves_the_others_as_they_are() {
    let mut run = Run::new();
    for at in 0..40_u8 {
        run.step((0, 1 + u64::from(at) % 3, at, true));
    }
    run.queue(Op::Forget { of: 2 });
    run.step((0, 1, 0, true));
    let fs = run.fs.cut();
    run.restart(fs);
    assert!(!run.now.0.contains_key(&2));
    assert!(run.now.0.contains_key(&1) && run.now.0.contains_key(&3));
}
