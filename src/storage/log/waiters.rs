//! Who waits for a partition's log end to move.
//!
//! A waiting reader costs one slot with its waker, no task and no timer; publishing to a partition
//! that nobody waits for costs one atomic load.
//!
//! Invariants:
//! - register first, then look at the log end again: a publish is either seen by that look or wakes
//!   the waker, because the publisher stores the end before it looks for waiters (both sequentially
//!   consistent);
//! - a waker is woken at most once until it is armed again, and never under the lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;

use parking_lot::Mutex;

use crate::storage::log::view::Shared;

/// The waiters of one partition.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    /// Wakers that are armed.
    armed: AtomicUsize,
    /// Allocated with the first waiter.
    slots: Mutex<Option<Box<Slots>>>,
}

#[derive(Debug, Default)]
struct Slots {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

#[derive(Debug)]
enum Slot {
    Free,
    /// Registered, but woken since it was last armed.
    Spent,
    Armed(Waker),
}

/// A reader's place among the waiters of a partition; dropping it gives the place back.
#[derive(Debug)]
#[must_use = "dropping a registration ends it"]
pub struct Registration {
    shared: Arc<Shared>,
    slot: usize,
}

impl Registration {
    pub(super) fn new(shared: Arc<Shared>, waker: &Waker) -> Self {
        let slot = shared.waiters.register(waker.clone());
        Self { shared, slot }
    }

    /// Has `waker` woken by the next change, after the last one was. Then look again, as after
    /// registering.
    pub fn rearm(&self, waker: &Waker) {
        self.shared.waiters.arm(self.slot, waker);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.shared.waiters.unregister(self.slot);
    }
}

impl Waiters {
    fn register(&self, waker: Waker) -> usize {
        let mut guard = self.slots.lock();
        let slots = guard.get_or_insert_default();
        self.armed.fetch_add(1, Ordering::SeqCst);
        if let Some(free) = slots.free.pop()
            && let Some(slot) = slots.slots.get_mut(free)
        {
            *slot = Slot::Armed(waker);
            return free;
        }
        slots.slots.push(Slot::Armed(waker));
        slots.slots.len() - 1
    }

    fn arm(&self, slot: usize, waker: &Waker) {
        let mut guard = self.slots.lock();
        let Some(slot) = guard.as_mut().and_then(|slots| slots.slots.get_mut(slot)) else {
            return;
        };
        match slot {
            Slot::Armed(old) if old.will_wake(waker) => {}
            Slot::Armed(old) => *old = waker.clone(),
            Slot::Free | Slot::Spent => {
                self.armed.fetch_add(1, Ordering::SeqCst);
                *slot = Slot::Armed(waker.clone());
            }
        }
    }

    fn unregister(&self, slot: usize) {
        let mut guard = self.slots.lock();
        let Some(slots) = guard.as_mut() else { return };
        let Some(found) = slots.slots.get_mut(slot) else {
            return;
        };
        if let Slot::Armed(_) = std::mem::replace(found, Slot::Free) {
            self.armed.fetch_sub(1, Ordering::SeqCst);
        }
        slots.free.push(slot);
        if slots.free.len() == slots.slots.len() {
            // The last one gone: a partition without waiters keeps no memory for them.
            *guard = None;
        }
    }

    /// Returns whether there is nobody and no memory for anybody.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.slots.lock().is_none()
    }

    /// Wakes all that are armed.
    pub(super) fn wake(&self) {
        if self.armed.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut woken = Vec::new();
        if let Some(slots) = self.slots.lock().as_mut() {
            for slot in &mut slots.slots {
                if matches!(slot, Slot::Armed(_))
                    && let Slot::Armed(waker) = std::mem::replace(slot, Slot::Spent)
                {
                    woken.push(waker);
                }
            }
            self.armed.fetch_sub(woken.len(), Ordering::SeqCst);
        }
        woken.into_iter().for_each(Waker::wake);
    }
}
