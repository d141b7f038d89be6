//! Where time comes from. Code that needs the time takes a [`Clock`]; only this file asks the
//! system.
//!
//! Wall time stamps records and decides retention. Sessions, timeouts and measurements use the
//! monotonic clock, so that a stepped wall clock cannot end them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::types::Timestamp;

/// A wall clock and a monotonic clock.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Returns the wall time.
    fn now(&self) -> Timestamp;

    /// Returns the time since some fixed point in the process's past; it never goes back.
    fn monotonic(&self) -> Duration;
}

/// A clock that can be handed around.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: std::time::Instant,
}

impl SystemClock {
    /// Makes a clock whose monotonic time starts at zero now.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that asks the system")]
    pub fn shared() -> SharedClock {
        Arc::new(Self { start: std::time::Instant::now() })
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that asks the system")]
    fn now(&self) -> Timestamp {
        let since_epoch = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        Timestamp::from_millis(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A clock that moves only when it is told to, for tests and the simulation.
#[derive(Debug)]
pub struct ManualClock {
    now: parking_lot::Mutex<(i64, Duration)>,
}

impl ManualClock {
    /// Makes a clock that stands at `now`.
    pub fn at(now: Timestamp) -> Arc<Self> {
        Arc::new(Self { now: parking_lot::Mutex::new((now.as_millis(), Duration::ZERO)) })
    }

    /// Moves both clocks forward together, as time does.
    pub fn advance(&self, by: Duration) {
        let mut now = self.now.lock();
        now.0 = now.0.saturating_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX));
        now.1 = now.1.saturating_add(by);
    }

    /// Steps the wall clock alone, as an operator or NTP does.
    pub fn step_wall(&self, by_ms: i64) {
        let mut now = self.now.lock();
        now.0 = now.0.saturating_add(by_ms);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.now.lock().0)
    }

    fn monotonic(&self) -> Duration {
        self.now.lock().1
    }
}
