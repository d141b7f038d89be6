//! What a run counts, and how its latencies are kept.
//!
//! Invariants:
//! - only what lies in the measured window counts for rates and latencies, everything counts for
//!   gaps, duplicates, losses and errors;
//! - a latency starts when a record was meant to be sent, not when it was: a generator that is held
//!   up by a slow answer does not hide it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use hdrhistogram::Histogram;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

/// Longest latency that is told apart from longer ones, in microseconds.
const LATENCY_US_MAX: u64 = 3_600_000_000;

/// Significant digits of a latency.
const DIGITS: u8 = 3;

/// Parts of the counts, so that threads do not wait for each other.
const PARTS: usize = 8;

/// Errors that are told; the rest is counted.
const ERRORS_TOLD_MAX: usize = 5;

/// Makes a histogram of microseconds.
pub(super) fn histogram() -> anyhow::Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, DIGITS).context("making a histogram")
}

/// What subscribers or members see.
#[derive(Debug)]
pub(super) struct Counts {
    /// Microseconds; each record as late as the oldest of its frame.
    pub(super) latency: Histogram<u64>,
    pub(super) frames: u64,
    pub(super) records: u64,
    pub(super) bytes: u64,
    /// Records that are missing and of which nothing was said.
    pub(super) gaps: u64,
    /// Records that came again.
    pub(super) duplicates: u64,
    /// Records of which the server said that they are gone.
    pub(super) passed: u64,
}

impl Counts {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            latency: histogram()?,
            frames: 0,
            records: 0,
            bytes: 0,
            gaps: 0,
            duplicates: 0,
            passed: 0,
        })
    }
}

/// What went wrong.
#[derive(Debug, Default)]
struct Errors {
    count: u64,
    told: Vec<String>,
}

/// The counts of a run.
#[derive(Debug)]
pub(super) struct Tally {
    origin: Instant,
    /// Microseconds after the origin between which rates and latencies are measured.
    from_us: AtomicU64,
    to_us: AtomicU64,
    parts: Vec<Mutex<Counts>>,
    /// Records of all frames, in the window or not.
    delivered: AtomicU64,
    errors: Mutex<Errors>,
}

impl Tally {
    /// Starts a run's clock; nothing is measured before [`Tally::measure`].
    pub(super) fn start() -> anyhow::Result<Self> {
        let parts = (0..PARTS).map(|_| Counts::new().map(Mutex::new));
        Ok(Self {
            origin: Instant::now(),
            from_us: AtomicU64::new(u64::MAX),
            to_us: AtomicU64::new(u64::MAX),
            parts: parts.collect::<Result<_, _>>()?,
            delivered: AtomicU64::new(0),
            errors: Mutex::default(),
        })
    }

    /// Returns the microseconds since the run began.
    pub(super) fn now_us(&self) -> u64 {
        self.us_of(Instant::now())
    }

    /// Returns how many microseconds after the run's begin an instant is.
    pub(super) fn us_of(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.origin);
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    /// Says what is measured.
    pub(super) fn measure(&self, from: Instant, duration: Duration) {
        self.to_us.store(self.us_of(from + duration), Ordering::Relaxed);
        self.from_us.store(self.us_of(from), Ordering::Relaxed);
    }

    /// Returns whether a moment is measured.
    pub(super) fn is_measured(&self, at_us: u64) -> bool {
        let (from, to) = (self.from_us.load(Ordering::Relaxed), self.to_us.load(Ordering::Relaxed));
        from <= at_us && at_us < to
    }

    /// Gives the part of the counts in which a subscriber counts.
    pub(super) fn counts(&self, number: usize) -> Option<MutexGuard<'_, Counts>> {
        self.parts.get(number % PARTS).map(Mutex::lock)
    }

    /// Counts records that arrived, measured or not.
    pub(super) fn add_delivered(&self, records: u64) {
        self.delivered.fetch_add(records, Ordering::Relaxed);
    }

    /// Returns the records that arrived.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// Notes something that went wrong.
    pub(super) fn failed(&self, error: &anyhow::Error) {
        let mut errors = self.errors.lock();
        errors.count += 1;
        if errors.told.len() < ERRORS_TOLD_MAX {
            let text = format!("{error:#}");
            if !errors.told.contains(&text) {
                errors.told.push(text);
            }
        }
    }

    /// Returns how many things went wrong, and some of them.
    pub(super) fn errors(&self) -> (u64, Vec<String>) {
        let errors = self.errors.lock();
        (errors.count, errors.told.clone())
    }

    /// Adds everything up.
    pub(super) fn sum(&self) -> anyhow::Result<Counts> {
        let mut sum = Counts::new()?;
        for part in &self.parts {
            let part = part.lock();
            sum.latency.add(&part.latency).context("adding histograms")?;
            sum.frames += part.frames;
            sum.records += part.records;
            sum.bytes += part.bytes;
            sum.gaps += part.gaps;
            sum.duplicates += part.duplicates;
            sum.passed += part.passed;
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_measured_is_what_was_asked_for() {
        let tally = Tally::start().unwrap();
        let start = Instant::now();
        assert!(!tally.is_measured(0) && !tally.is_measured(u64::MAX - 1));
        tally.measure(start + Duration::from_secs(1), Duration::from_secs(2));
        for (at_ms, expected) in
            [(0, false), (999, false), (1000, true), (2999, true), (3000, false)]
        {
            let at = tally.us_of(start + Duration::from_millis(at_ms));
            assert_eq!(tally.is_measured(at), expected, "{at_ms} ms");
        }
    }

    #[test]
    fn the_sum_is_of_all_parts_and_errors_are_bounded() {
        let tally = Tally::start().unwrap();
        for number in 0..3 * PARTS {
            let mut counts = tally.counts(number).unwrap();
            counts.gaps += 1;
            counts.latency.saturating_record(7);
        }
        let sum = tally.sum().unwrap();
        assert_eq!((sum.gaps, sum.latency.len()), (24, 24));
        for number in 0..100 {
            tally.failed(&anyhow::anyhow!("error {number}"));
        }
        let (count, told) = tally.errors();
        assert_eq!((count, told.len()), (100, ERRORS_TOLD_MAX));
    }
}
