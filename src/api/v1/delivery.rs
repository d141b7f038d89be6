//! How far the events of a stream have arrived, as far as a server can know.
//!
//! Server-sent events are not acknowledged. What the socket accepted a full interval ago is taken
//! for delivered; that is the promise of `commit=auto`, and no more.
//!
//! Invariant: what [`Delivery::due`] returns was accepted at least [`INTERVAL`] before.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::types::{Offset, PartitionId};

/// How often offsets are committed, and how long ago the socket must have accepted them.
pub(super) const INTERVAL: Duration = Duration::from_secs(5);

/// How often the accepted offsets are noted.
pub(super) const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// The next offset of each partition.
pub(super) type Places = BTreeMap<PartitionId, Offset>;

/// The events of one stream, from the server to the socket.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    /// An event that the socket may not have yet.
    sent: Option<Sent>,
    /// Where the newest event ends, when that is a later one than `sent`.
    newer: Option<Places>,
    /// Where the newest event ends that the socket has.
    accepted: Places,
    /// What was accepted at some times, oldest first; [`INTERVAL`] / [`SAMPLE_EVERY`] and one.
    samples: VecDeque<(Instant, Places)>,
}

#[derive(Debug)]
struct Sent {
    /// Flushes of the socket before it.
    flushes: u64,
    /// Whether the connection asked for more since: with HTTP/2 it may hold an event back while it
    /// flushes others' bytes.
    is_taken: bool,
    /// Where it ends.
    ends: Places,
}

impl Delivery {
    /// Notes an event that is handed over; `flushes` counts what came before it.
    pub(super) fn sent(&mut self, flushes: u64, ends: &Places) {
        match &self.sent {
            None => self.sent = Some(Sent { flushes, is_taken: false, ends: ends.clone() }),
            Some(_) => self.newer = Some(ends.clone()),
        }
    }

    /// Notes that the connection asks for the next event.
    pub(super) fn taken(&mut self) {
        if let Some(sent) = &mut self.sent {
            sent.is_taken = true;
        }
    }

    /// Notes how often the socket was flushed by now.
    pub(super) fn flushed(&mut self, flushes: u64) {
        let is_out = |sent: &mut Sent| sent.is_taken && flushes > sent.flushes;
        if let Some(Sent { ends, .. }) = self.sent.take_if(is_out) {
            self.accepted = ends;
            let newer = self.newer.take();
            self.sent = newer.map(|ends| Sent { flushes, is_taken: false, ends });
        }
    }

    /// Notes the time with what is accepted by now.
    pub(super) fn sample(&mut self, now: Instant) {
        self.samples.push_back((now, self.accepted.clone()));
        // The newest of those that are old enough is all that is asked for.
        while self.samples.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= INTERVAL) {
            self.samples.pop_front();
        }
    }

    /// Returns what was accepted a full interval ago.
    pub(super) fn due(&self, now: Instant) -> Places {
        let old = self.samples.front().filter(|(at, _)| now.duration_since(*at) >= INTERVAL);
        old.map(|(_, places)| places.clone()).unwrap_or_default()
    }

    /// Forgets a partition, which is another member's from now on.
    pub(super) fn forget(&mut self, partition: PartitionId) {
        let pending = self.sent.as_mut().map(|sent| &mut sent.ends);
        let samples = self.samples.iter_mut().map(|(_, places)| places);
        for places in pending.into_iter().chain(&mut self.newer).chain(samples) {
            places.remove(&partition);
        }
        self.accepted.remove(&partition);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: i64) -> Places {
        Places::from([(PartitionId::ZERO, Offset::new(offset).unwrap())])
    }

    #[tokio::test(start_paused = true)]
    async fn an_offset_is_due_a_full_interval_after_the_socket_had_it() {
        let mut delivery = Delivery::default();
        let start = Instant::now();
        delivery.sent(0, &at(10));
        delivery.sample(start);
        delivery.flushed(1);
        assert_eq!(delivery.accepted, Places::new(), "flushed, but held back");
        delivery.taken();
        delivery.flushed(0);
        assert_eq!(delivery.accepted, Places::new(), "written, but not flushed");
        delivery.flushed(1);
        delivery.sent(1, &at(20));
        delivery.taken();
        delivery.sample(start + SAMPLE_EVERY);
        delivery.flushed(2);
        for second in 2..=5 {
            delivery.sample(start + SAMPLE_EVERY * second);
        }
        assert_eq!(delivery.due(start + INTERVAL), Places::new());
        let later = start + INTERVAL + SAMPLE_EVERY;
        delivery.sample(later);
        assert_eq!(delivery.due(later), at(10));
        delivery.sample(later + SAMPLE_EVERY);
        assert_eq!(delivery.due(later + SAMPLE_EVERY), at(20));
        assert!(delivery.samples.len() <= 7);
    }

    #[test]
    fn events_that_wait_for_the_socket_are_one_and_the_newest() {
        let mut delivery = Delivery::default();
        for offset in 1..100 {
            delivery.sent(0, &at(offset));
            delivery.taken();
        }
        delivery.flushed(1);
        assert_eq!(delivery.accepted, at(1), "of the others it is not known yet");
        delivery.taken();
        delivery.flushed(1);
        assert_eq!(delivery.accepted, at(1));
        delivery.flushed(2);
        assert_eq!(delivery.accepted, at(99));
    }

    #[tokio::test(start_paused = true)]
    async fn a_partition_that_is_gone_is_never_due() {
        let mut delivery = Delivery::default();
        let start = Instant::now();
        delivery.sent(0, &at(1));
        delivery.taken();
        delivery.flushed(1);
        delivery.sample(start);
        delivery.sent(1, &at(2));
        delivery.sent(1, &at(3));
        delivery.forget(PartitionId::ZERO);
        assert_eq!(delivery.due(start + INTERVAL), Places::new());
        for flushes in 2..5 {
            delivery.taken();
            delivery.flushed(flushes);
        }
        assert_eq!(delivery.accepted, Places::new());
    }
}
