//! Deadlines of things that should not stay as they are.

use std::collections::BTreeMap;
use std::time::Duration;

/// Notes since when each of a set of things has been there, by the monotonic clock, and says which
/// have been there for too long.
#[derive(Debug)]
pub struct Timers<K> {
    deadlines: BTreeMap<K, Duration>,
}

impl<K> Default for Timers<K> {
    fn default() -> Self {
        Self { deadlines: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> Timers<K> {
    /// Takes in everything that is there at `now`, with the time that each may stay. What is new
    /// gets its full time from now on, what is missing is forgotten. Returns what is due, which is
    /// returned again until it is missing.
    pub fn observe(
        &mut self,
        now: Duration,
        present: impl IntoIterator<Item = (K, Duration)>,
    ) -> Vec<K> {
        let mut next = BTreeMap::new();
        for (key, may_stay) in present {
            let known = self.deadlines.remove(&key);
            let deadline = known.unwrap_or_else(|| now.saturating_add(may_stay));
            next.insert(key, deadline);
        }
        self.deadlines = next;
        let due = self.deadlines.iter().filter(|(_, deadline)| **deadline <= now);
        due.map(|(key, _)| key.clone()).collect()
    }

    /// Returns when the next thing is due that is not due at `now`.
    pub fn next_after(&self, now: Duration) -> Option<Duration> {
        self.deadlines.values().copied().filter(|deadline| *deadline > now).min()
    }

    /// Forgets everything, so that all gets its full time again: a new coordinator knows nothing
    /// of what the former one has seen.
    pub fn clear(&mut self) {
        self.deadlines.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_stays_too_long_is_due_and_what_was_away_starts_anew() {
        let mut timers = Timers::default();
        assert!(timers.observe(SECOND, [("a", SECOND), ("b", 3 * SECOND)]).is_empty());
        assert_eq!(timers.next_after(SECOND), Some(2 * SECOND));
        assert_eq!(timers.observe(2 * SECOND, [("a", SECOND), ("b", SECOND)]), ["a"]);
        assert_eq!(timers.next_after(2 * SECOND), Some(4 * SECOND));
        assert!(timers.observe(3 * SECOND, [("b", SECOND)]).is_empty());
        assert_eq!(timers.observe(4 * SECOND, [("a", SECOND), ("b", SECOND)]), ["b"]);
        assert_eq!(timers.observe(5 * SECOND, [("a", SECOND)]), ["a"]);
    }

    #[test]
    fn a_new_coordinator_gives_everybody_the_full_time() {
        let mut timers = Timers::default();
        timers.observe(SECOND, [("a", 2 * SECOND)]);
        timers.clear();
        assert!(timers.observe(3 * SECOND, [("a", 2 * SECOND)]).is_empty());
        assert_eq!(timers.observe(5 * SECOND, [("a", 2 * SECOND)]), ["a"]);
    }
}
