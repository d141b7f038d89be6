//! Counter, gauge and histogram: plain atomics behind an `Arc`. Clones update the same value.
//!
//! The histogram is our own because `prometheus_client`'s takes a mutex, and the hot path
//! observes several per round from several threads.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric, counter, gauge};

/// A number that only grows.
#[derive(Debug, Clone, Default)]
pub struct Counter(counter::Counter);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.0.inc();
    }

    /// Adds `amount`.
    pub fn add(&self, amount: u64) {
        self.0.inc_by(amount);
    }

    /// Returns the number.
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

impl EncodeMetric for Counter {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Counter {
    const TYPE: MetricType = MetricType::Counter;
}

/// A number that goes up and down: a size or a count of things that exist now.
#[derive(Debug, Clone, Default)]
pub struct Gauge(gauge::Gauge);

impl Gauge {
    /// Replaces the number.
    pub fn set(&self, value: u64) {
        self.0.set(signed(value));
    }

    /// Adds `amount`.
    pub fn add(&self, amount: u64) {
        self.0.inc_by(signed(amount));
    }

    /// Takes `amount` off.
    pub fn sub(&self, amount: u64) {
        self.0.dec_by(signed(amount));
    }

    /// Adds one until the returned guard is dropped.
    #[must_use = "dropping the guard counts off again"]
    pub fn track(&self) -> Tracked {
        self.add(1);
        Tracked(self.clone())
    }

    /// Returns the number.
    pub fn get(&self) -> i64 {
        self.0.get()
    }
}

impl EncodeMetric for Gauge {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Gauge {
    const TYPE: MetricType = MetricType::Gauge;
}

/// Something that is counted in a [`Gauge`] as long as it lives.
#[derive(Debug)]
pub struct Tracked(Gauge);

impl Drop for Tracked {
    fn drop(&mut self) {
        self.0.sub(1);
    }
}

/// How often values of each magnitude were seen.
#[derive(Debug, Clone)]
pub struct Histogram(Arc<Buckets>);

#[derive(Debug)]
struct Buckets {
    /// Upper bounds, inclusive, ascending, in the unit that is observed.
    bounds: &'static [u64],
    /// One count per bound and one for what is above the last.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
    /// What one observed unit is in the printed unit.
    scale: f64,
}

const NANOS_PER_MICRO: u64 = 1_000;
const NANOS_PER_MILLI: u64 = 1_000_000;

/// 10 microseconds to 10 seconds, observed in nanoseconds and printed in seconds.
const SECONDS_BOUNDS: &[u64] = &[
    10 * NANOS_PER_MICRO,
    25 * NANOS_PER_MICRO,
    50 * NANOS_PER_MICRO,
    100 * NANOS_PER_MICRO,
    250 * NANOS_PER_MICRO,
    500 * NANOS_PER_MICRO,
    NANOS_PER_MILLI,
    2_500 * NANOS_PER_MICRO,
    5 * NANOS_PER_MILLI,
    10 * NANOS_PER_MILLI,
    25 * NANOS_PER_MILLI,
    50 * NANOS_PER_MILLI,
    100 * NANOS_PER_MILLI,
    250 * NANOS_PER_MILLI,
    500 * NANOS_PER_MILLI,
    1_000 * NANOS_PER_MILLI,
    2_500 * NANOS_PER_MILLI,
    10_000 * NANOS_PER_MILLI,
];

/// 64 bytes to 64 MiB, by factors of four.
const BYTES_BOUNDS: &[u64] = &[
    64,
    256,
    1 << 10,
    4 << 10,
    16 << 10,
    64 << 10,
    256 << 10,
    1 << 20,
    4 << 20,
    16 << 20,
    64 << 20,
];

/// 1 to 16,384, by factors of two.
const COUNT_BOUNDS: &[u64] =
    &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192, 16_384];

impl Histogram {
    /// Makes a histogram of durations; use [`Histogram::observe_duration`].
    pub fn seconds() -> Self {
        Self::new(SECONDS_BOUNDS, 1e-9)
    }

    /// Makes a histogram of sizes in bytes.
    pub fn bytes() -> Self {
        Self::new(BYTES_BOUNDS, 1.0)
    }

    /// Makes a histogram of small counts.
    pub fn counts() -> Self {
        Self::new(COUNT_BOUNDS, 1.0)
    }

    fn new(bounds: &'static [u64], scale: f64) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Buckets { bounds, counts, sum: AtomicU64::new(0), scale }))
    }

    /// Counts one value, in bytes or pieces.
    pub fn observe(&self, value: u64) {
        let bucket = self.0.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.0.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.0.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// Counts one duration.
    pub fn observe_duration(&self, duration: Duration) {
        self.observe(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Returns how many values were counted.
    pub fn count(&self) -> u64 {
        self.0.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Returns the sum of all values, in the unit that is observed (nanoseconds for durations).
    pub fn sum(&self) -> u64 {
        self.0.sum.load(Ordering::Relaxed)
    }
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let Buckets { bounds, counts, scale, .. } = &*self.0;
        // The encoder prints the largest float as "+Inf". The total is the sum of what is printed,
        // so that the text agrees with itself while others count.
        let bounds = bounds.iter().map(|bound| *bound as f64 * scale).chain([f64::MAX]);
        let buckets: Vec<(f64, u64)> =
            bounds.zip(counts.iter().map(|count| count.load(Ordering::Relaxed))).collect();
        let total = buckets.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(self.sum() as f64 * scale, total, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_tracked_thing_is_counted_while_it_lives() {
        let gauge = Gauge::default();
        let first = gauge.track();
        let second = gauge.track();
        assert_eq!(gauge.get(), 2);
        drop(first);
        assert_eq!(gauge.get(), 1);
        drop(second);
        assert_eq!(gauge.get(), 0);
    }

    proptest! {
        #[test]
        fn a_value_is_counted_in_the_first_bucket_that_holds_it(value in 0_u64..200_000_000) {
            let histogram = Histogram::bytes();
            histogram.observe(value);
            let expected = BYTES_BOUNDS.iter().take_while(|bound| **bound < value).count();
            for (i, count) in histogram.0.counts.iter().enumerate() {
                prop_assert_eq!(count.load(Ordering::Relaxed), u64::from(i == expected));
            }
            prop_assert_eq!(histogram.sum(), value);
        }
    }

    #[test]
    fn bounds_ascend() {
        for bounds in [SECONDS_BOUNDS, BYTES_BOUNDS, COUNT_BOUNDS] {
            assert!(bounds.is_sorted_by(|a, b| a < b));
        }
    }
}
