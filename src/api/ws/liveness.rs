//! When a socket is pinged, when it is told that the server lives, and when it is given up.

use std::time::Duration;

use tokio::time::Instant;

use crate::api::ws::Timers;

/// The clockwork of one socket.
#[derive(Debug)]
pub(super) struct Liveness {
    every: Duration,
    /// Time between two pings; shorter than that between heartbeats where a group waits.
    ping_every: Duration,
    pong_timeout: Duration,
    ping_at: Instant,
    /// By when a sign of life has to come, while one is waited for.
    pong_by: Option<Instant>,
    sent_at: Instant,
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// A ping.
    Ping,
    /// A heartbeat that pages can see.
    Heartbeat,
    /// The end: no sign of life came.
    Lost,
}

impl Liveness {
    /// Starts the clockwork.
    pub(super) fn new(timers: &Timers, now: Instant) -> Self {
        Self {
            every: timers.heartbeat,
            ping_every: timers.heartbeat,
            pong_timeout: timers.pong,
            ping_at: now + timers.heartbeat,
            pong_by: None,
            sent_at: now,
        }
    }

    /// Has a client that is gone found out within `session`, from now to the socket's end: others
    /// wait for its partitions. The shortest session counts.
    pub(super) fn find_out_within(&mut self, session: Duration, now: Instant) {
        let half = session / 2;
        self.ping_every = self.ping_every.min(half);
        self.pong_timeout = self.pong_timeout.min(half);
        self.ping_at = self.ping_at.min(now + half);
    }

    /// Notes that a frame was sent.
    pub(super) fn sent(&mut self, now: Instant) {
        self.sent_at = now;
    }

    /// Notes that something came.
    pub(super) fn heard(&mut self) {
        self.pong_by = None;
    }

    /// Puts off the judgement: the server itself does not listen.
    pub(super) fn deaf(&mut self, now: Instant) {
        if self.pong_by.is_some() {
            self.pong_by = Some(now + self.pong_timeout);
        }
    }

    /// Returns when something is due next.
    pub(super) fn next(&self) -> Instant {
        let due = self.ping_at.min(self.sent_at + self.every);
        self.pong_by.map_or(due, |pong_by| pong_by.min(due))
    }

    /// Returns what is due now, one at a time.
    pub(super) fn due(&mut self, now: Instant) -> Option<Due> {
        if self.pong_by.is_some_and(|pong_by| pong_by <= now) {
            return Some(Due::Lost);
        }
        if self.ping_at <= now {
            self.ping_at = now + self.ping_every;
            self.pong_by.get_or_insert(now + self.pong_timeout);
            return Some(Due::Ping);
        }
        if self.sent_at + self.every <= now {
            self.sent_at = now;
            return Some(Due::Heartbeat);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_pinged_told_and_given_up() {
        let start = Instant::now();
        let timers = Timers::default();
        let mut liveness = Liveness::new(&timers, start);
        assert_eq!(liveness.due(start), None);
        let tick = liveness.next();
        assert_eq!(tick, start + timers.heartbeat);
        assert_eq!(liveness.due(tick), Some(Due::Ping));
        assert_eq!(liveness.due(tick), Some(Due::Heartbeat));
        assert_eq!(liveness.due(tick), None);
        assert_eq!(liveness.next(), tick + timers.pong);
        liveness.deaf(tick + timers.pong);
        assert_eq!(liveness.due(tick + timers.pong), None);
        assert_eq!(liveness.due(tick + timers.pong * 2), Some(Due::Lost));
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_says_nothing_is_given_up_within_its_session() {
        let start = Instant::now();
        let timers = Timers::default();
        for session in [6, 20, 30, 45, 1800].map(Duration::from_secs) {
            let mut liveness = Liveness::new(&timers, start);
            liveness.find_out_within(session, start);
            liveness.find_out_within(session * 2, start);
            let mut now = start;
            while liveness.due(now) != Some(Due::Lost) {
                now = now.max(liveness.next());
            }
            let usual = timers.heartbeat + timers.pong;
            assert!(now - start <= session.min(usual), "{session:?}: {:?}", now - start);
            assert!(now - start >= session.min(usual) / 2, "{session:?}: {:?}", now - start);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_answers_and_is_sent_records_sees_pings_only() {
        let timers = Timers::default();
        let mut now = Instant::now();
        let mut liveness = Liveness::new(&timers, now);
        for _ in 0..10 {
            now += timers.heartbeat;
            liveness.sent(now);
            assert_eq!(liveness.due(now), Some(Due::Ping));
            assert_eq!(liveness.due(now), None);
            liveness.heard();
        }
    }
}
