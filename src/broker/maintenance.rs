//! What the node does by itself: retention, and watching the room on its disk.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::broker::Broker;
use crate::shard::Shard;
use crate::storage::ballast::Ballast;
use crate::storage::fs::{SharedFs, Space};
use crate::types::Timestamp;

/// How often the room on the disk is looked at while there is much, and while it is full.
const SPACE_INTERVAL: Duration = Duration::from_millis(250);
/// How often it is looked at right before it is full.
const SPACE_INTERVAL_MIN: Duration = Duration::from_millis(5);
/// A disk is not expected to fill faster than this between two looks.
const FILL_BYTES_PER_MS: u64 = 1024 * 1024;
/// Room that is always kept, on disks that are large enough.
const RESERVE_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// Share of a small disk that is kept instead.
const RESERVE_SHARE: u64 = 32;
/// A wall clock that differs by more than this from what the monotonic clock says was stepped.
const STEP_MS_MAX: i64 = 60_000;
/// After a step no retention is proposed for this long.
const STEP_PAUSE: Duration = Duration::from_secs(3600);

/// What [`Broker::watch_space`] watches.
#[derive(Debug, Clone)]
pub struct SpaceWatch {
    /// The file system.
    pub fs: SharedFs,
    /// Room that is held for the moment when there is none.
    pub ballast: Arc<Ballast>,
    /// The directories whose disks are watched.
    pub directories: Vec<PathBuf>,
    /// Bytes of one file of the write-ahead log.
    pub wal_file_bytes: u64,
    /// Soft bound of the write-ahead log in bytes.
    pub wal_max_bytes: u64,
}

impl Broker {
    /// Returns whether the disk is nearly full, so that produce is refused.
    pub fn is_storage_full(&self) -> bool {
        self.inner.storage_full.load(Ordering::Acquire)
    }

    /// Looks at the room on the disks, now and then for ever: below the reserve proposers refuse
    /// records, so that what is acknowledged can always be written and checkpointed.
    pub async fn watch_space(self, watch: SpaceWatch) {
        let mut told = None;
        loop {
            let next = self.look_at_space(&watch);
            let no_file = self.inner.wal.no_file();
            if no_file != told {
                match &no_file {
                    Some(why) => tracing::warn!(%why, "the log's next file cannot be made"),
                    None => tracing::warn!("the log's next file could be made"),
                }
                told = no_file;
            }
            if !self.is_storage_full() && !watch.ballast.is_held() {
                let ballast = Arc::clone(&watch.ballast);
                let held = tokio::task::spawn_blocking(move || ballast.hold()).await;
                if let Ok(Err(error)) = held {
                    tracing::warn!(%error, "no ballast could be put on the disk");
                }
            }
            tokio::time::sleep(next).await;
        }
    }

    /// Looks at the room and returns when to look again.
    fn look_at_space(&self, watch: &SpaceWatch) -> Duration {
        let wal_room = watch.wal_max_bytes.saturating_sub(self.inner.wal.live_bytes());
        let accepted = self.accepted_bytes();
        let spare = |directory: &PathBuf| {
            // A disk that does not answer is noticed by whoever writes to it.
            let space = watch.fs.space(directory).ok()?;
            let reserve = reserve(space, wal_room, watch.wal_file_bytes).saturating_add(accepted);
            Some(space.available.saturating_sub(reserve))
        };
        let spare = watch.directories.iter().filter_map(spare).min().unwrap_or(u64::MAX);
        let wal = &self.inner.wal;
        let unwritten = self.inner.shards.values().any(Shard::has_no_room);
        let full = wal.is_storage_full() || wal.is_over_hard_bound() || unwritten || spare == 0;
        let was_full = self.inner.storage_full.swap(full, Ordering::AcqRel);
        if full != was_full {
            tracing::warn!(full, "room on the disk changed: produce is refused while it is full");
        }
        // The log's bound is one as well: it must not be passed between two looks.
        let room = spare.min(wal.bytes_to_hard_bound());
        if full { SPACE_INTERVAL } else { until_next_look(room) }
    }

    /// What was accepted and is yet to be written: to the log and to a segment.
    fn accepted_bytes(&self) -> u64 {
        let queued = self.inner.shards.values().map(|shard| shard.queue().0);
        let queued = u64::try_from(queued.sum::<usize>()).unwrap_or(u64::MAX);
        queued.saturating_mul(2).saturating_add(self.inner.wal.queued_bytes())
    }

    /// Proposes the log starts that retention wants, every `interval`, for ever. After the wall
    /// clock was stepped nothing is proposed for an hour: a wrong clock must not delete data.
    pub async fn run_retention(self, interval: Duration) {
        let mut tick = tokio::time::interval(interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut steps = StepWatch::new(self.now(), self.monotonic());
        loop {
            tick.tick().await;
            self.retain_once(&mut steps).await;
        }
    }

    /// Proposes the log starts that retention wants now, unless the clock cannot be trusted.
    pub(crate) async fn retain_once(&self, steps: &mut StepWatch) {
        // The time that was checked is the one that is used: the clock may be stepped in between.
        let now = self.now();
        if steps.is_paused(now, self.monotonic()) {
            tracing::warn!("the wall clock was stepped: retention pauses for an hour");
            return;
        }
        for shard in self.inner.shards.values() {
            match shard.run_retention(now).await {
                Ok(0) => {}
                Ok(moved) => tracing::info!(shard = %shard.id(), moved, "retention"),
                Err(error) => tracing::warn!(shard = %shard.id(), %error, "retention failed"),
            }
        }
    }

    fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }

    fn monotonic(&self) -> Duration {
        self.inner.clock.monotonic()
    }
}

/// Returns when to look at a disk again that has `spare` bytes above what must be left.
fn until_next_look(spare: u64) -> Duration {
    Duration::from_millis(spare / FILL_BYTES_PER_MS).clamp(SPACE_INTERVAL_MIN, SPACE_INTERVAL)
}

/// Notices that the wall clock was set, by comparing it with the monotonic clock.
pub(crate) struct StepWatch {
    wall: Timestamp,
    monotonic: Duration,
    paused_until: Option<Duration>,
}

impl StepWatch {
    pub(crate) fn new(wall: Timestamp, monotonic: Duration) -> Self {
        Self { wall, monotonic, paused_until: None }
    }

    fn is_paused(&mut self, wall: Timestamp, monotonic: Duration) -> bool {
        let passed = monotonic.saturating_sub(self.monotonic);
        let passed_ms = i64::try_from(passed.as_millis()).unwrap_or(i64::MAX);
        let step = wall.millis_since(self.wall).saturating_sub(passed_ms);
        self.wall = wall;
        self.monotonic = monotonic;
        if step.saturating_abs() > STEP_MS_MAX {
            self.paused_until = Some(monotonic.saturating_add(STEP_PAUSE));
        }
        self.paused_until.is_some_and(|until| monotonic < until)
    }
}

/// The room that must be left: what the write-ahead log can still take, its next file, and
/// something to write a checkpoint with. A disk on which that is more than a quarter keeps a
/// quarter.
fn reserve(space: Space, wal_room: u64, wal_file_bytes: u64) -> u64 {
    let floor = RESERVE_BYTES_MIN.min(space.total / RESERVE_SHARE);
    let wanted = wal_room.saturating_add(wal_file_bytes).saturating_add(floor);
    wanted.min((space.total / 4).max(floor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stepped_wall_clock_pauses_retention_for_an_hour() {
        let wall = |ms: i64| Timestamp::from_millis(1_764_000_000_000 + ms);
        let mono = Duration::from_secs;
        let mut steps = StepWatch::new(wall(0), mono(0));
        assert!(!steps.is_paused(wall(300_000), mono(300)), "both clocks moved alike");
        assert!(steps.is_paused(wall(400_000 + 86_400_000), mono(400)), "a day ahead");
        assert!(steps.is_paused(wall(400_000 + 86_400_000 + 3_000_000), mono(3_400)));
        assert!(!steps.is_paused(wall(400_000 + 86_400_000 + 3_600_000), mono(4_000)));
        assert!(steps.is_paused(wall(0), mono(4_100)), "back again");
    }

    #[test]
    fn the_reserve_fits_small_disks() {
        let mib = 1024 * 1024;
        let small = Space { available: 0, total: 256 * mib };
        assert_eq!(reserve(small, 32 * mib, 4 * mib), 44 * mib);
        let large = Space { available: 0, total: 1024 * 1024 * mib };
        assert_eq!(reserve(large, 1024 * mib, 64 * mib), 1152 * mib);
    }
}
