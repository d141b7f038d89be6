//! One subscription: positions, credit, and what it wants next. It does no I/O and never waits.
//!
//! ```text
//! Want ---- frame ----> deliver --> records, gaps
//!   ^                      |
//!   |   nothing left       v
//! round <--- linger --- round ends --- nothing was sent in it --> wait for records
//! ```
//!
//! Invariants:
//! - a partition that was read to its end waits for the next round, so that a subscription which is
//!   caught up sends at most one frame of a partition in each `ws.linger`, and sends the first
//!   record after a pause at once; one that others are ahead of is not caught up, and sends what
//!   they have sent;
//! - `told` of a partition is what the client knows, `next` where reading goes on; they differ only
//!   while a filter passes over records, or where offsets are empty.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::api::ws::cache::{Encoded, Key};
use crate::api::ws::encode::Style;
use crate::api::ws::filter::Filter;
use crate::api::ws::replies::{self, Passed, RecordsHead, Scan};
use crate::api::ws::requests::{CreditRequest, OnLag};
use crate::api::ws::socket::Socket;
use crate::broker::{GapReason, ReadError, Topic, Watcher};
use crate::types::{Offset, PartitionId};

/// Records of a frame at most. Frames end at multiples of it, so that they are shared.
pub(super) const FRAME_RECORDS_MAX: u32 = 500;

/// Room for what comes before the records of a frame.
const HEAD_BYTES: usize = 160;

/// Progress without records is told this often at most.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// An offset that no log reaches.
const FAR: Offset = match Offset::new(i64::MAX) {
    Some(far) => far,
    None => Offset::ZERO,
};

/// What a subscription is, once it is known where it starts.
pub(super) struct Terms {
    pub(super) id: u64,
    pub(super) topic: Arc<Topic>,
    pub(super) start: Vec<(PartitionId, Offset)>,
    pub(super) style: Style,
    pub(super) filter: Option<Arc<Filter>>,
    pub(super) credit: CreditRequest,
    pub(super) on_lag: OnLag,
    pub(super) linger: Duration,
    pub(super) frame_bytes_max: usize,
}

/// A subscription of a socket.
pub(super) struct Subscription {
    terms: Terms,
    watcher: Watcher,
    parts: Vec<Part>,
    /// Bytes that may be sent; one record may overdraw them.
    credit_bytes: i64,
    credit_records: u64,
    is_paused: bool,
    /// Records may have been held back since credit was last there.
    is_stalled: bool,
    /// A read is under way; its answer counts only with this number.
    reading: Option<u64>,
    reads: u64,
    /// Which partition is looked at first.
    turn: usize,
    /// Something was sent in this round.
    has_sent: bool,
    /// The next round begins then.
    quiet_until: Option<Instant>,
    scan: Scan,
    progress_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Part {
    id: PartitionId,
    next: Offset,
    told: Offset,
    /// It was read to its end in this round.
    is_done: bool,
}

impl Part {
    fn new((id, next): &(PartitionId, Offset)) -> Self {
        Self { id: *id, next: *next, told: *next, is_done: false }
    }
}

/// What a subscription wants.
#[derive(Debug)]
pub(super) enum Next {
    /// The records of a frame.
    Want(Want),
    /// Another look at once: something was sent that is no frame of records.
    Again,
    /// Nothing, until it is woken, or until then.
    Wait(Option<Instant>),
}

/// The frame that is wanted, and how it is found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Want {
    pub(super) key: Key,
    pub(super) log_end: Offset,
}

impl Subscription {
    /// Makes a subscription that starts with a look at its partitions.
    pub(super) fn new(terms: Terms) -> Self {
        Self {
            watcher: Watcher::new(Arc::clone(&terms.topic)),
            parts: terms.start.iter().map(Part::new).collect(),
            credit_bytes: i64::try_from(terms.credit.bytes).unwrap_or(i64::MAX),
            credit_records: terms.credit.records,
            is_paused: false,
            is_stalled: false,
            reading: None,
            reads: 0,
            turn: 0,
            has_sent: false,
            quiet_until: None,
            scan: Scan::default(),
            progress_at: None,
            terms,
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.terms.id
    }

    pub(super) fn topic(&self) -> &Arc<Topic> {
        &self.terms.topic
    }

    pub(super) fn filter(&self) -> Option<&Arc<Filter>> {
        self.terms.filter.as_ref()
    }

    /// Returns the log ends of its partitions, for a heartbeat.
    pub(super) fn log_ends(&self) -> Vec<(PartitionId, Offset)> {
        let end = |part: &Part| Some((part.id, self.watcher.bounds(part.id).ok()?.1));
        self.parts.iter().filter_map(end).collect()
    }

    /// Adds credit.
    pub(super) fn grant(&mut self, records: u64, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.credit_records = self.credit_records.saturating_add(records);
        self.credit_bytes = self.credit_bytes.saturating_add(bytes);
    }

    /// Stops or goes on sending.
    pub(super) fn set_paused(&mut self, is_paused: bool) {
        self.is_paused = is_paused;
    }

    /// Returns whether the subscription has a partition.
    pub(super) fn has(&self, partition: PartitionId) -> bool {
        self.parts.iter().any(|part| part.id == partition)
    }

    /// Returns how far the client was told to have come.
    pub(super) fn told(&self) -> Vec<(PartitionId, Offset)> {
        self.parts.iter().map(|part| (part.id, part.told)).collect()
    }

    /// Takes on partitions.
    pub(super) fn add(&mut self, positions: &[(PartitionId, Offset)]) {
        self.parts.extend(positions.iter().map(Part::new));
        self.parts.sort_by_key(|part| part.id);
        self.watcher.reset();
    }

    /// Drops all partitions but these, and returns how far the client was told to have come in
    /// them.
    pub(super) fn remove_all_but(
        &mut self,
        kept: &BTreeSet<PartitionId>,
    ) -> Vec<(PartitionId, Offset)> {
        let removed: Vec<_> = self.parts.extract_if(.., |part| !kept.contains(&part.id)).collect();
        if !removed.is_empty() {
            self.reading = None;
            self.watcher.reset();
        }
        removed.into_iter().map(|part| (part.id, part.told)).collect()
    }

    /// Goes on at other offsets; what is being read is dropped.
    pub(super) fn seek(&mut self, positions: &[(PartitionId, Offset)]) {
        self.reading = None;
        self.quiet_until = None;
        for (partition, offset) in positions {
            if let Some(part) = self.parts.iter_mut().find(|part| part.id == *partition) {
                (part.next, part.told, part.is_done) = (*offset, *offset, false);
            }
        }
    }

    /// Notes that a read has begun and returns its number.
    pub(super) fn begin_read(&mut self) -> u64 {
        self.reads += 1;
        self.reading = Some(self.reads);
        self.reads
    }

    /// Returns whether the answer of a read still counts.
    pub(super) fn end_read(&mut self, number: u64) -> bool {
        let counts = self.reading == Some(number);
        if counts {
            self.reading = None;
        }
        counts
    }

    /// Returns whether the credit covers a frame; one record is always covered.
    pub(super) fn affords(&self, frame: &Encoded) -> bool {
        let bytes = i64::try_from(frame.body.len() + HEAD_BYTES).unwrap_or(i64::MAX);
        frame.records <= 1 || bytes <= self.credit_bytes
    }

    /// Decides what comes next, and queues what needs no reading.
    ///
    /// # Errors
    /// The topic's; the subscription is over then.
    pub(super) fn next(
        &mut self,
        socket: &mut Socket,
        now: Instant,
        context: &Context<'_>,
    ) -> Result<Next, ReadError> {
        if self.reading.is_some() {
            return Ok(Next::Wait(None));
        }
        if self.is_paused || self.credit_records == 0 || self.credit_bytes <= 0 {
            self.is_stalled = true;
            return Ok(Next::Wait(self.progress_due(socket, now)));
        }
        if let Some(until) = self.quiet_until {
            if now < until {
                return Ok(Next::Wait(Some(until)));
            }
            self.quiet_until = None;
        }
        if std::mem::take(&mut self.is_stalled) && self.terms.on_lag == OnLag::Skip {
            self.skip(socket)?;
        }
        if self.terms.filter.is_some() {
            // A scan that finds nothing must not keep to itself how far it has come.
            self.progress_due(socket, now);
        }
        for step in 0..self.parts.len() {
            let at = (self.turn + step) % self.parts.len();
            if let Some(want) = self.want(at, socket)? {
                self.turn = at + 1;
                return Ok(Next::Want(want));
            }
        }
        self.end_round(socket, now, context)
    }

    /// Returns the next frame of a partition, `None` when it has no more in this round.
    fn want(&mut self, at: usize, socket: &mut Socket) -> Result<Option<Want>, ReadError> {
        let id = self.terms.id;
        let Some(part) = self.parts.get_mut(at).filter(|part| !part.is_done) else {
            return Ok(None);
        };
        let (log_start, log_end) = self.watcher.bounds(part.id)?;
        if part.next < log_start {
            let lost = Passed::Lost(GapReason::Retention);
            pass(part, id, log_start, lost, socket);
        }
        if part.next >= log_end {
            return Ok(None);
        }
        let (partition, from) = (part.id, part.next);
        Ok(Some(Want { key: self.key(partition, from), log_end }))
    }

    /// Returns which frame comes next in a partition.
    fn key(&self, partition: PartitionId, from: Offset) -> Key {
        let is_shared = self.terms.filter.is_none();
        let records_max = u32::try_from(self.credit_records).unwrap_or(u32::MAX);
        Key {
            topic: self.terms.topic.summary().id,
            partition,
            from,
            until: if is_shared { frame_end(from) } else { FAR },
            records_max: records_max.min(FRAME_RECORDS_MAX),
            bytes_max: self.terms.frame_bytes_max.saturating_sub(HEAD_BYTES),
            style: self.terms.style,
        }
    }

    /// Goes on in a partition without waiting for the next round when others are ahead, that is,
    /// when the next frame has been made: a subscription whose rounds fall a little later than
    /// theirs sends their short frames, and would fall behind by a part of each round.
    pub(super) fn follow(&mut self, partition: PartitionId, is_made: impl FnOnce(&Key) -> bool) {
        let part = self.parts.iter().find(|part| part.id == partition && part.is_done);
        let Some(from) = part.map(|part| part.next) else { return };
        let is_made = self.terms.filter.is_none() && is_made(&self.key(partition, from));
        if is_made && let Some(part) = self.parts.iter_mut().find(|part| part.id == partition) {
            part.is_done = false;
        }
    }

    /// Returns the frame that the credit covers, where the one that others share is too large.
    pub(super) fn affordable(&self, mut want: Want) -> Want {
        let credit = usize::try_from(self.credit_bytes).unwrap_or(0);
        let bytes_max = want.key.bytes_max.min(credit.saturating_sub(HEAD_BYTES));
        want.key.bytes_max = bytes_max;
        want
    }

    /// Queues what a read found.
    pub(super) fn deliver(&mut self, partition: PartitionId, frame: &Encoded, socket: &mut Socket) {
        let id = self.terms.id;
        let log_end = self.watcher.bounds(partition).map_or(frame.next, |(_, end)| end);
        let Some(part) = self.parts.iter_mut().find(|part| part.id == partition) else { return };
        for gap in &frame.gaps {
            let why = Passed::Lost(gap.reason);
            if gap.from <= part.told {
                pass(part, id, gap.to.saturating_add(1), why, socket);
            } else {
                socket.push_text(replies::gap(id, partition, (gap.from, gap.to), why));
            }
        }
        part.next = frame.next;
        part.is_done = frame.next >= log_end || !frame.full;
        self.scan.scanned += frame.scanned;
        self.scan.matched += frame.records;
        if frame.records == 0 {
            return;
        }
        let (base, next) = (part.told, part.next);
        part.told = part.next;
        let head = RecordsHead { id, partition, base, next, log_end };
        let (head, text_bytes) = replies::records_head(&head, frame.body.len());
        // What the client sees: it gives back the text's length, and would run dry in time if the
        // frame's header counted, too.
        let bytes = i64::try_from(text_bytes).unwrap_or(i64::MAX);
        self.credit_records = self.credit_records.saturating_sub(frame.records);
        self.credit_bytes = self.credit_bytes.saturating_sub(bytes);
        self.has_sent = true;
        socket.push_record(head, frame.body.clone());
    }

    /// Tells how far a filter has come, if that is due; returns when it is, if not yet.
    pub(super) fn progress_due(&mut self, socket: &mut Socket, now: Instant) -> Option<Instant> {
        let untold: Vec<_> = self
            .parts
            .iter()
            .filter(|part| part.told != part.next)
            .map(|part| (part.id, part.next))
            .collect();
        if untold.is_empty() {
            return None;
        }
        if let Some(due) = self.progress_at.map(|at| at + PROGRESS_EVERY).filter(|due| now < *due) {
            return Some(due);
        }
        self.progress_at = Some(now);
        let at_end = |part: &Part| {
            self.watcher.bounds(part.id).is_ok_and(|(_, log_end)| part.next >= log_end)
        };
        let scan = Scan { caught_up: self.parts.iter().all(at_end), ..self.scan };
        self.scan = Scan::default();
        self.parts.iter_mut().for_each(|part| part.told = part.next);
        socket.push_text(replies::progress(self.terms.id, &untold, scan));
        None
    }

    /// Begins the next round, or waits for it, or for records when this one had none.
    fn end_round(
        &mut self,
        socket: &mut Socket,
        now: Instant,
        context: &Context<'_>,
    ) -> Result<Next, ReadError> {
        self.parts.iter_mut().for_each(|part| part.is_done = false);
        let progress_due = self.progress_due(socket, now);
        if std::mem::take(&mut self.has_sent) && !self.terms.linger.is_zero() {
            let until = now + self.terms.linger;
            self.quiet_until = Some(until);
            return Ok(Next::Wait(Some(until)));
        }
        // A member without partitions still learns that its topic is deleted.
        let topic = self.parts.is_empty().then_some((PartitionId::ZERO, FAR));
        let positions = self.parts.iter().map(|part| (part.id, part.next)).chain(topic);
        match self.watcher.poll_changed(context, positions) {
            Poll::Ready(Ok(())) => Ok(Next::Again),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Ok(Next::Wait(progress_due)),
        }
    }

    /// Goes to the newest records that the credit covers.
    fn skip(&mut self, socket: &mut Socket) -> Result<(), ReadError> {
        let kept = i64::try_from(self.credit_records).unwrap_or(i64::MAX);
        for part in &mut self.parts {
            let (_, log_end) = self.watcher.bounds(part.id)?;
            let newest = Offset::new(log_end.get().saturating_sub(kept).max(0)).unwrap_or_default();
            if newest > part.next {
                pass(part, self.terms.id, newest, Passed::Skipped, socket);
            }
        }
        Ok(())
    }
}

/// Goes on behind offsets that are not delivered, and says so.
fn pass(part: &mut Part, id: u64, next: Offset, why: Passed, socket: &mut Socket) {
    if let Some(to) = next.get().checked_sub(1).and_then(Offset::new)
        && to >= part.told
    {
        socket.push_text(replies::gap(id, part.id, (part.told, to), why));
    }
    (part.next, part.told) = (next, next);
}

/// Returns the offset at which a frame that starts at `from` ends at the latest.
fn frame_end(from: Offset) -> Offset {
    let size = i64::from(FRAME_RECORDS_MAX);
    let end = (from.get() / size).saturating_add(1).saturating_mul(size);
    Offset::new(end).unwrap_or(FAR)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frames_end_at_common_offsets_wherever_they_start(from in 0i64..i64::MAX) {
            let end = frame_end(Offset::new(from).unwrap()).get();
            prop_assert!(end > from);
            prop_assert!(end - from <= i64::from(FRAME_RECORDS_MAX));
            prop_assert!(end % i64::from(FRAME_RECORDS_MAX) == 0 || end == i64::MAX);
        }
    }
}
