//! Whether the wall clock may decide what is deleted.
//!
//! Retention and the expiry of offsets go by wall time, and what they delete does not come back. A
//! clock that was set wrong (a bad battery, a resumed machine, a typing error) must not empty every
//! topic at once.
//!
//! Invariants:
//! - after a step of the wall clock against the monotonic clock nothing is deleted by time for an
//!   hour, or until an operator confirms the time;
//! - a restart ends no such pause: a mark in the data directory outlives it;
//! - the same after a start at a time that is before, or long after, anything that was ever
//!   written: what happened to the clock while the node was down cannot be seen;
//! - whoever deletes uses the very time that was checked, since the clock may be set in between.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::SharedClock;
use crate::storage::fs::{Open, SharedFs};
use crate::types::Timestamp;

/// A wall clock that differs by more than this from what the monotonic clock says was stepped.
const STEP_MS_MAX: i64 = 60_000;
/// A start this long after the last write may be one with a wrong clock.
const DOWN_MS_MAX: i64 = 24 * 3600 * 1000;
/// How long nothing is deleted by time then.
const PAUSE: Duration = Duration::from_secs(3600);

/// The file that says that the wall clock is not trusted.
#[derive(Debug, Clone)]
pub struct ClockMark {
    fs: SharedFs,
    path: PathBuf,
}

impl ClockMark {
    /// Makes a mark of a path, whose directory exists.
    pub fn new(fs: SharedFs, path: PathBuf) -> Self {
        Self { fs, path }
    }

    fn is_set(&self) -> bool {
        self.fs.open(&self.path, Open::Read).is_ok()
    }

    fn set(&self) {
        let made = self.fs.open(&self.path, Open::CreateNew).map(drop);
        self.finish(made, io::ErrorKind::AlreadyExists);
    }

    fn clear(&self) {
        self.finish(self.fs.remove_file(&self.path), io::ErrorKind::NotFound);
    }

    /// Makes a change durable. Without it a restart ends the pause, or begins it again.
    fn finish(&self, changed: io::Result<()>, fine: io::ErrorKind) {
        let directory = self.path.parent();
        let changed = match changed {
            Err(error) if error.kind() == fine => return,
            changed => changed
                .and_then(|()| directory.map_or(Ok(()), |directory| self.fs.sync_dir(directory))),
        };
        if let Err(error) = changed {
            let path = self.path.display();
            tracing::warn!(%path, %error, "the mark of the clock is not kept");
        }
    }
}

/// Watches the wall clock for all who delete by it.
#[derive(Debug)]
pub(in crate::broker) struct ClockGuard {
    clock: SharedClock,
    mark: ClockMark,
    /// Short sections without await only; the mark is changed in them, which is rare.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    wall: Timestamp,
    monotonic: Duration,
    paused_until: Option<Duration>,
}

impl ClockGuard {
    /// Makes a guard of a node that starts. `written` is the newest time at which anything was
    /// written before, if anything was.
    pub(in crate::broker) fn new(
        clock: SharedClock,
        written: Option<Timestamp>,
        mark: ClockMark,
    ) -> Self {
        let (wall, monotonic) = (clock.now(), clock.monotonic());
        let mut state = State { wall, monotonic, paused_until: None };
        let down_ms = written.map_or(0, |written| wall.millis_since(written));
        if mark.is_set() {
            state.pause(down_ms, "the clock was not trusted before the start", &mark);
        } else if !(-STEP_MS_MAX..=DOWN_MS_MAX).contains(&down_ms) {
            state.pause(down_ms, "the clock is far from the last write", &mark);
        }
        Self { clock, mark, state: Mutex::new(state) }
    }

    /// Looks at the clocks. Asked often, so that a step is known before much is written after it.
    pub(in crate::broker) fn look(&self) {
        self.state.lock().look(&self.clock, &self.mark);
    }

    /// Returns the wall time if it may decide what is deleted.
    pub(in crate::broker) fn trusted_now(&self) -> Option<Timestamp> {
        let mut state = self.state.lock();
        state.look(&self.clock, &self.mark);
        state.pause_left().is_none().then_some(state.wall)
    }

    /// Returns for how long nothing is deleted by time, when that is so.
    pub(in crate::broker) fn pause_left(&self) -> Option<Duration> {
        let mut state = self.state.lock();
        state.look(&self.clock, &self.mark);
        state.pause_left()
    }

    /// Takes the wall clock for right as it is now, on an operator's word.
    pub(in crate::broker) fn confirm(&self) {
        let mut state = self.state.lock();
        state.look(&self.clock, &self.mark);
        if state.paused_until.take().is_some() {
            self.mark.clear();
            tracing::info!(wall_ms = state.wall.as_millis(), "the wall clock was confirmed");
        }
    }
}

impl State {
    fn look(&mut self, clock: &SharedClock, mark: &ClockMark) {
        let (wall, monotonic) = (clock.now(), clock.monotonic());
        let passed = monotonic.saturating_sub(self.monotonic);
        let passed_ms = i64::try_from(passed.as_millis()).unwrap_or(i64::MAX);
        let step_ms = wall.millis_since(self.wall).saturating_sub(passed_ms);
        self.wall = wall;
        self.monotonic = monotonic;
        if step_ms.saturating_abs() > STEP_MS_MAX {
            self.pause(step_ms, "the wall clock was stepped", mark);
        }
        if self.paused_until.is_some() && self.pause_left().is_none() {
            self.paused_until = None;
            mark.clear();
        }
    }

    fn pause(&mut self, by_ms: i64, reason: &'static str, mark: &ClockMark) {
        mark.set();
        self.paused_until = Some(self.monotonic.saturating_add(PAUSE));
        tracing::warn!(
            by_ms,
            reason,
            "nothing is deleted by time for an hour, or until the clock is confirmed \
             (POST /v1/cluster/clock/confirm)"
        );
    }

    fn pause_left(&self) -> Option<Duration> {
        let left = self.paused_until?.saturating_sub(self.monotonic);
        (!left.is_zero()).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::clock::{Clock as _, ManualClock};
    use crate::storage::fs::Fs as _;
    use crate::storage::fs::sim::SimFs;

    const START: Timestamp = Timestamp::from_millis(1_764_000_000_000);
    const DAY_MS: i64 = 24 * 3600 * 1000;

    fn guard(written_ms_ago: Option<i64>) -> (Arc<ManualClock>, ClockGuard) {
        let clock = ManualClock::at(START);
        let written = written_ms_ago.map(|ago| Timestamp::from_millis(START.as_millis() - ago));
        (Arc::clone(&clock), ClockGuard::new(clock, written, mark(&SimFs::new())))
    }

    fn mark(fs: &SimFs) -> ClockMark {
        fs.create_dir_all(Path::new("data")).unwrap();
        ClockMark::new(Arc::new(fs.clone()), PathBuf::from("data/clock-untrusted"))
    }

    #[test]
    fn a_restart_ends_no_pause() {
        let (fs, clock) = (SimFs::new(), ManualClock::at(START));
        let start = || {
            let shared: SharedClock = Arc::clone(&clock) as SharedClock;
            // What was written since the step has the wrong time too.
            ClockGuard::new(Arc::clone(&shared), Some(shared.now()), mark(&fs))
        };
        let guard = start();
        clock.step_wall(DAY_MS);
        assert_eq!(guard.trusted_now(), None);
        let guard = start();
        assert_eq!(guard.trusted_now(), None);
        clock.advance(PAUSE);
        assert!(guard.trusted_now().is_some());
        assert!(start().trusted_now().is_some(), "the pause was waited for");
        clock.step_wall(DAY_MS);
        let guard = start();
        assert!(guard.trusted_now().is_some(), "nobody saw the step");
        clock.step_wall(DAY_MS);
        guard.look();
        guard.confirm();
        assert!(start().trusted_now().is_some(), "it was confirmed");
    }

    #[test]
    fn a_stepped_clock_is_not_trusted_for_an_hour() {
        for step_ms in [DAY_MS, -DAY_MS, STEP_MS_MAX + 1] {
            let (clock, guard) = guard(None);
            clock.advance(Duration::from_secs(300));
            assert_eq!(guard.trusted_now(), Some(clock.now()), "both clocks moved alike");
            clock.step_wall(step_ms);
            assert_eq!(guard.trusted_now(), None, "{step_ms}");
            clock.advance(PAUSE - Duration::from_secs(1));
            assert_eq!(guard.pause_left(), Some(Duration::from_secs(1)));
            clock.advance(Duration::from_secs(1));
            assert_eq!(guard.trusted_now(), Some(clock.now()));
        }
    }

    #[test]
    fn a_corrected_clock_is_none_that_was_stepped() {
        let (clock, guard) = guard(None);
        clock.step_wall(STEP_MS_MAX);
        assert!(guard.trusted_now().is_some());
        clock.step_wall(-STEP_MS_MAX);
        assert!(guard.trusted_now().is_some());
    }

    #[test]
    fn an_operator_ends_the_pause_and_a_new_step_begins_another() {
        let (clock, guard) = guard(None);
        clock.step_wall(DAY_MS);
        assert_eq!(guard.trusted_now(), None);
        guard.confirm();
        assert_eq!(guard.trusted_now(), Some(clock.now()));
        clock.step_wall(-DAY_MS);
        assert_eq!(guard.trusted_now(), None);
    }

    #[test]
    fn a_confirmation_counts_for_a_step_that_nobody_has_seen_yet() {
        let (clock, guard) = guard(None);
        clock.step_wall(DAY_MS);
        guard.confirm();
        assert_eq!(guard.trusted_now(), Some(clock.now()));
    }

    #[test]
    fn a_start_far_from_the_last_write_is_not_trusted_at_once() {
        for (ago, is_trusted) in [
            (None, true),
            (Some(0), true),
            (Some(DAY_MS), true),
            (Some(DAY_MS + 1), false),
            (Some(-STEP_MS_MAX), true),
            (Some(-STEP_MS_MAX - 1), false),
        ] {
            let (_, guard) = guard(ago);
            assert_eq!(guard.trusted_now().is_some(), is_trusted, "{ago:?}");
        }
    }
}
