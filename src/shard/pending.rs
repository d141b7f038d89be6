//! Who waits for an append: one [`Pending`] per request, one [`Waiter`] per record group in it.
//!
//! Waiters travel inside the entry. If Raft drops or overwrites the entry they are dropped with it,
//! and a waiter that is dropped unanswered answers "outcome unknown": no table of waiters by index
//! exists that could be forgotten or raced.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

use crate::shard::error::AppendError;
use crate::types::{Offset, Timestamp};

const WAITING: i64 = -1;
const DELETED: i64 = -2;
const NOT_LEADER: i64 = -3;
const UNKNOWN: i64 = -4;

/// Where a record group was written: its first offset, and the append time where the topic stamps
/// it.
pub type Outcome = Result<(Offset, Option<Timestamp>), AppendError>;

/// A request that waits for its record groups.
#[derive(Debug)]
pub struct Pending {
    left: AtomicU32,
    waker: AtomicWaker,
    slots: Box<[Slot]>,
}

#[derive(Debug)]
struct Slot {
    /// The base offset, or one of the negative codes above.
    base: AtomicI64,
    /// `LogAppendTime` in milliseconds, or -1.
    append_time: AtomicI64,
}

impl Pending {
    /// Makes a request of `groups` record groups, at least one.
    pub fn new(groups: u32) -> Arc<Self> {
        let slot = |_| Slot { base: AtomicI64::new(WAITING), append_time: AtomicI64::new(-1) };
        Arc::new(Self {
            left: AtomicU32::new(groups),
            waker: AtomicWaker::new(),
            slots: (0..groups).map(slot).collect(),
        })
    }

    /// Polls for all groups being answered.
    pub fn poll_done(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.left.load(Ordering::Acquire) == 0 {
            return Poll::Ready(());
        }
        self.waker.register(context.waker());
        if self.left.load(Ordering::Acquire) == 0 { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Returns the outcome of a group; "unknown" while it is not answered.
    ///
    /// # Errors
    /// [`AppendError`].
    pub fn outcome(&self, group: u32) -> Outcome {
        let Some(slot) = usize::try_from(group).ok().and_then(|group| self.slots.get(group)) else {
            return Err(AppendError::OutcomeUnknown);
        };
        let base = slot.base.load(Ordering::Acquire);
        match Offset::new(base) {
            Some(base) => {
                let time = slot.append_time.load(Ordering::Acquire);
                Ok((base, (time >= 0).then_some(Timestamp::from_millis(time))))
            }
            None if base == DELETED => Err(AppendError::Deleted),
            None if base == NOT_LEADER => Err(AppendError::NotLeader),
            None => Err(AppendError::OutcomeUnknown),
        }
    }

    fn answer(&self, group: u32, base: i64, append_time: i64) {
        if let Some(slot) = usize::try_from(group).ok().and_then(|group| self.slots.get(group)) {
            slot.append_time.store(append_time, Ordering::Release);
            slot.base.store(base, Ordering::Release);
        }
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.waker.wake();
        }
    }
}

/// One record group of a request, on its way through the log.
#[derive(Debug)]
pub(crate) struct Waiter {
    pending: Option<Arc<Pending>>,
    group: u32,
    /// Records of the batch before this group's first.
    delta: u32,
}

impl Waiter {
    pub(crate) fn new(pending: Arc<Pending>, group: u32, delta: u32) -> Self {
        Self { pending: Some(pending), group, delta }
    }

    /// Answers with the batch's base offset.
    pub(crate) fn written(mut self, batch_base: Offset, append_time: Option<Timestamp>) {
        if let Some(pending) = self.pending.take() {
            let base = batch_base.saturating_add(u64::from(self.delta));
            pending.answer(self.group, base.get(), append_time.map_or(-1, Timestamp::as_millis));
        }
    }

    /// Answers with a failure.
    pub(crate) fn failed(mut self, error: AppendError) {
        self.answer_error(match error {
            AppendError::Deleted => DELETED,
            AppendError::NotLeader => NOT_LEADER,
            AppendError::OutcomeUnknown => UNKNOWN,
        });
    }

    fn answer_error(&mut self, code: i64) {
        if let Some(pending) = self.pending.take() {
            pending.answer(self.group, code, -1);
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.answer_error(UNKNOWN);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::task::noop_waker_ref;

    use super::*;

    fn is_done(pending: &Pending) -> bool {
        pending.poll_done(&mut Context::from_waker(noop_waker_ref())).is_ready()
    }

    #[test]
    fn a_request_is_done_when_its_last_group_is_answered() {
        let pending = Pending::new(2);
        let first = Waiter::new(Arc::clone(&pending), 0, 3);
        let second = Waiter::new(Arc::clone(&pending), 1, 0);
        first.written(Offset::new(10).unwrap(), None);
        assert!(!is_done(&pending));
        second.failed(AppendError::Deleted);
        assert!(is_done(&pending));
        assert_eq!(pending.outcome(0), Ok((Offset::new(13).unwrap(), None)));
        assert_eq!(pending.outcome(1), Err(AppendError::Deleted));
    }

    #[test]
    fn a_waiter_that_is_dropped_says_that_the_outcome_is_unknown() {
        let pending = Pending::new(1);
        drop(Waiter::new(Arc::clone(&pending), 0, 0));
        assert!(is_done(&pending));
        assert_eq!(pending.outcome(0), Err(AppendError::OutcomeUnknown));
    }
}
