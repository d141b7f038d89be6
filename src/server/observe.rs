//! Measurements that are read rather than counted where they happen, and the log's observer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;

use crate::clock::SharedClock;
use crate::metadata::view::ViewMonitor;
use crate::metrics::{Metrics, WalMetrics};
use crate::shard::Shard;
use crate::storage::log::{Counters, Store};
use crate::storage::wal::{Observer, RoundSize, SharedObserver, Wal};
use crate::tasks::Tracker;
use crate::types::ShardId;

/// How often levels are read.
const INTERVAL: Duration = Duration::from_secs(1);

/// Times the rounds of the write-ahead log. Called by its writer thread only.
pub(super) struct WalObserver {
    metrics: WalMetrics,
    clock: SharedClock,
    sync_started: Mutex<Duration>,
}

impl WalObserver {
    pub(super) fn shared(metrics: &Metrics, clock: &SharedClock) -> SharedObserver {
        Arc::new(Self {
            metrics: metrics.wal.clone(),
            clock: Arc::clone(clock),
            sync_started: Mutex::new(Duration::ZERO),
        })
    }
}

impl Observer for WalObserver {
    fn round_begins(&self, round: RoundSize) {
        self.metrics.round_bytes.observe(round.bytes);
        self.metrics.round_callers.observe(round.callers);
    }

    fn sync_begins(&self) {
        *self.sync_started.lock() = self.clock.monotonic();
    }

    fn round_ends(&self) {
        let started = *self.sync_started.lock();
        let took = self.clock.monotonic().saturating_sub(started);
        self.metrics.sync_seconds.observe_duration(took);
    }
}

/// Reads levels into the metrics, every second, until the server stops.
pub(super) fn start(
    tasks: &Tracker,
    metrics: &Arc<Metrics>,
    (wal, store): (&Wal, &Arc<Store>),
    shards: &BTreeMap<ShardId, Shard>,
    view: ViewMonitor,
) {
    let metrics = Arc::clone(metrics);
    let (wal, store) = (wal.clone(), Arc::clone(store));
    let shards: Vec<Shard> = shards.values().cloned().collect();
    let stop = tasks.stop_token();
    let observing = async move {
        let mut tick = tokio::time::interval(INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = Counters::default();
        loop {
            tick.tick().await;
            metrics.wal.live_bytes.set(wal.live_bytes());
            metrics.wal.queued_bytes.set(wal.queued_bytes());
            let queues = shards.iter().map(Shard::queue);
            let (queued, flying) = queues.fold((0, 0), |(b, e), (bytes, n)| (b + bytes, e + n));
            metrics.shards.accumulator_bytes.set(queued as u64);
            metrics.shards.proposals_in_flight.set(flying as u64);
            metrics.metadata.sql_lag_entries.set(view.status().behind);
            let now = store.counters();
            copy_storage(&metrics, &before, &now);
            before = now;
        }
    };
    tasks.spawn(async move { stop.run_until_cancelled(observing).await });
}

fn copy_storage(metrics: &Metrics, before: &Counters, now: &Counters) {
    let storage = &metrics.storage;
    storage.tail_cache_hits.add(now.tail_hits.saturating_sub(before.tail_hits));
    storage.tail_cache_misses.add(now.tail_misses.saturating_sub(before.tail_misses));
    storage.tail_cache_bytes.set(now.tail_bytes);
    storage.open_files.set(now.files_open);
    storage.damaged_ranges.set(now.damaged_ranges);
}
