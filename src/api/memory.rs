//! The bytes that all requests together may hold, `http.memory_bytes` in the settings.
//!
//! Each request has bounds of its own, and they are generous; what keeps a thousand of them from
//! filling the machine is one budget. Bodies are charged while they are collected and held, answers
//! while they are built and until the connection has taken their last byte, NDJSON streams for the
//! reports that wait. Whoever finds nothing left is refused (`overloaded`, nothing written), makes
//! do with a shorter page, or stops reading. Streams of events and WebSockets have bounds of their
//! own and are not charged.
//!
//! Invariants:
//! - what is charged is given back when it is dropped, wherever that happens: a charge lies beside
//!   the very bytes that it is for;
//! - the budget is never passed: who cannot be charged holds no more than [`FREE_BYTES`], but for
//!   the chunks that NDJSON streams have read already, and one line of the one whose turn it is;
//! - who waits for steps gets all of them at once or holds none of them, so that no two waiters can
//!   each have a part of what the other needs;
//! - a small request costs nothing here. On HTTP/1 there is one a connection, so that their number
//!   bounds what small ones hold; on HTTP/2 each is charged a step, see [`Memory::stream`].

use std::sync::Arc;

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use futures_util::FutureExt;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::api::error::{ApiError, Code};

/// The budget is handed out in steps, so that growing by a record costs nothing.
const STEP_BYTES: usize = 64 * 1024;

/// What a request may hold without a charge.
pub(crate) const FREE_BYTES: usize = 64 * 1024;

/// A body is charged twice its bytes: what is decoded of it can be as large again.
pub const BODY_WEIGHT: usize = 2;

/// Pages leave this part of the budget, one in so many, to others: whoever reads slowly must not
/// keep everyone from writing.
const NOT_FOR_PAGES: usize = 4;

/// Steps that a charge keeps although it needs fewer, where it goes up and down.
const SLACK_STEPS: usize = 4;

/// The budget. Clones share it.
#[derive(Debug, Clone)]
pub struct Memory {
    /// A permit is a step.
    free: Arc<Semaphore>,
    steps: usize,
    /// The turn to read a line that is not charged.
    turn: Arc<Semaphore>,
}

/// What is charged for some bytes; given back when dropped.
#[derive(Debug)]
pub struct Charge {
    free: Arc<Semaphore>,
    steps: usize,
    /// Steps that it leaves to others.
    leaves: usize,
}

/// There is nothing left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UsedUp;

impl From<UsedUp> for ApiError {
    fn from(_: UsedUp) -> Self {
        let detail = "the requests that are open hold all of http.memory_bytes";
        Self::new(Code::Overloaded, detail)
    }
}

/// Says that an answer has its charge, or needs none.
#[derive(Debug, Clone, Copy)]
struct Charged;

/// Notes that an answer has its charge, or needs none.
pub(crate) fn mark_charged(answer: &mut Response) {
    // A small one is not asked.
    if answer.body().size_hint().exact().is_none_or(|bytes| bytes > FREE_BYTES as u64) {
        answer.extensions_mut().insert(Charged);
    }
}

/// Bytes and their charge, as the owner of both.
struct Held<B> {
    bytes: B,
    _charge: Charge,
}

impl<B: AsRef<[u8]>> AsRef<[u8]> for Held<B> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

/// How many steps are charged for some bytes.
fn steps_of(bytes: usize) -> usize {
    if bytes <= FREE_BYTES { 0 } else { bytes.div_ceil(STEP_BYTES) }
}

impl Memory {
    /// Makes a budget.
    pub fn new(bytes: usize) -> Self {
        let steps = (bytes / STEP_BYTES).clamp(1, Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(steps)), steps, turn: Arc::new(Semaphore::new(1)) }
    }

    /// Returns how many bytes are charged.
    pub fn used(&self) -> usize {
        self.steps.saturating_sub(self.free.available_permits()).saturating_mul(STEP_BYTES)
    }

    /// Makes a charge for nothing yet.
    pub(crate) fn charge(&self) -> Charge {
        Charge { free: Arc::clone(&self.free), steps: 0, leaves: 0 }
    }

    /// Makes a charge for nothing yet, of a page.
    pub(crate) fn charge_page(&self) -> Charge {
        let mut charge = self.charge();
        charge.leaves = self.steps / NOT_FOR_PAGES;
        charge
    }

    /// Charges `bytes`; `None` when so few are free.
    ///
    /// # Errors
    /// [`UsedUp`].
    pub(crate) fn charge_for(&self, bytes: usize) -> Result<Option<Charge>, UsedUp> {
        if bytes <= FREE_BYTES {
            return Ok(None);
        }
        let mut charge = self.charge();
        charge.cover(bytes)?;
        Ok(Some(charge))
    }

    /// Charges what one of many requests on a connection holds at least; `None` when there is
    /// nothing left.
    pub fn stream(&self) -> Option<Charge> {
        let mut charge = self.charge();
        charge.take(1).is_ok().then_some(charge)
    }

    /// Returns whether a charge for so many bytes could be had now.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.free.available_permits() >= steps_of(bytes)
    }

    /// Waits for all that one who holds `held` steps lacks for `bytes` in all, and charges it. What
    /// the budget can never give is not waited for, since that would only keep others out.
    ///
    /// # Cancel safety
    /// Nothing stays charged when the future is dropped.
    pub(crate) async fn wait(&self, held: usize, bytes: usize) -> Charge {
        let wanted = steps_of(bytes);
        if wanted > self.steps {
            std::future::pending::<()>().await;
        }
        let steps = wanted.saturating_sub(held);
        let mut charge = self.charge();
        // The semaphore is never closed.
        if let Ok(permit) = self.free.acquire_many(u32::try_from(steps).unwrap_or(u32::MAX)).await {
            charge.steps = permit.num_permits();
            permit.forget();
        }
        charge
    }

    /// Waits for the turn to go on with a line that cannot be charged. One has it at a time, and
    /// whoever waited longest is next.
    pub(crate) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.turn).acquire_owned().await.ok()
    }

    /// Charges an answer that is there as a whole; `None` when it needs no charge, or has one.
    ///
    /// # Errors
    /// [`UsedUp`].
    pub(crate) fn charge_answer(&self, answer: &Response) -> Result<Option<Charge>, UsedUp> {
        let bytes = answer.body().size_hint().exact().unwrap_or(0);
        if bytes <= FREE_BYTES as u64 || answer.extensions().get::<Charged>().is_some() {
            return Ok(None);
        }
        self.charge_for(usize::try_from(bytes).map_err(|_| UsedUp)?)
    }
}

impl Charge {
    /// Charges what is missing for `bytes` in all.
    ///
    /// # Errors
    /// [`UsedUp`]; what was charged before stays charged.
    pub(crate) fn cover(&mut self, bytes: usize) -> Result<(), UsedUp> {
        let wanted = steps_of(bytes);
        if wanted <= self.steps { Ok(()) } else { self.take(wanted - self.steps) }
    }

    /// Charges what is missing for `bytes` in all, or gives back what is too much. Returns whether
    /// it is enough.
    pub(crate) fn fit(&mut self, bytes: usize) -> bool {
        let wanted = steps_of(bytes);
        if wanted == 0 || self.steps > wanted + SLACK_STEPS {
            self.give_back(self.steps - wanted.min(self.steps));
        }
        self.cover(bytes).is_ok()
    }

    /// Returns how many steps are charged.
    pub(crate) fn steps(&self) -> usize {
        self.steps
    }

    /// Takes over another charge.
    pub(crate) fn join(&mut self, mut other: Self) {
        self.steps += std::mem::take(&mut other.steps);
    }

    /// Binds the charge to the bytes that it is for: it is given back with the last reference to
    /// them.
    pub(crate) fn hold<B>(self, bytes: B) -> Bytes
    where
        B: AsRef<[u8]> + Into<Bytes> + Send + 'static,
    {
        if self.steps == 0 {
            return bytes.into();
        }
        Bytes::from_owner(Held { bytes, _charge: self })
    }

    /// Binds the charge to the body of an answer, which is there as a whole.
    pub(crate) fn hold_answer(self, answer: Response) -> Response {
        let (parts, mut body) = answer.into_parts();
        // A body of known length is one piece.
        let whole = match body.frame().now_or_never() {
            Some(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            Some(Some(Err(_)) | None) | None => Bytes::new(),
        };
        let mut answer = Response::from_parts(parts, Body::from(self.hold(whole)));
        mark_charged(&mut answer);
        answer
    }

    fn take(&mut self, steps: usize) -> Result<(), UsedUp> {
        if self.free.available_permits() < steps.saturating_add(self.leaves) {
            return Err(UsedUp);
        }
        let count = u32::try_from(steps).map_err(|_| UsedUp)?;
        // Those who wait go first.
        let permit = self.free.try_acquire_many(count).map_err(|_| UsedUp)?;
        permit.forget();
        self.steps += steps;
        Ok(())
    }

    fn give_back(&mut self, steps: usize) {
        self.steps -= steps;
        if steps > 0 {
            self.free.add_permits(steps);
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.give_back(self.steps);
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use proptest::prelude::*;

    use super::*;

    const BUDGET: usize = 16 * STEP_BYTES;

    #[test]
    fn what_is_small_is_free_and_the_rest_has_a_bound() {
        let memory = Memory::new(BUDGET);
        let mut small = memory.charge();
        small.cover(FREE_BYTES).unwrap();
        assert_eq!(memory.used(), 0);
        let mut large = memory.charge();
        large.cover(FREE_BYTES + 1).unwrap();
        assert_eq!(memory.used(), 2 * STEP_BYTES);
        large.cover(10).unwrap();
        assert_eq!(memory.used(), 2 * STEP_BYTES, "it covers that already");
        assert_eq!(large.cover(BUDGET + 1), Err(UsedUp));
        assert_eq!(memory.used(), 2 * STEP_BYTES, "a refusal charges nothing");
        large.cover(BUDGET).unwrap();
        assert_eq!(small.cover(FREE_BYTES + 1), Err(UsedUp));
        assert!(memory.stream().is_none());
        drop(large);
        assert_eq!(memory.used(), 0);
        small.cover(FREE_BYTES + 1).unwrap();
    }

    #[test]
    fn pages_leave_a_part_to_others() {
        let memory = Memory::new(BUDGET);
        let mut page = memory.charge_page();
        assert_eq!(page.cover(BUDGET), Err(UsedUp));
        page.cover(BUDGET - BUDGET / NOT_FOR_PAGES).unwrap();
        assert_eq!(memory.charge_page().cover(FREE_BYTES + 1), Err(UsedUp));
        memory.charge().cover(BUDGET / NOT_FOR_PAGES).unwrap();
    }

    #[test]
    fn a_charge_lives_as_long_as_its_bytes() {
        let memory = Memory::new(BUDGET);
        let mut charge = memory.charge();
        charge.cover(3 * STEP_BYTES).unwrap();
        let mut bytes = charge.hold(vec![7; 3 * STEP_BYTES]);
        let part = bytes.split_to(10);
        drop(bytes);
        assert_eq!(memory.used(), 3 * STEP_BYTES);
        assert_eq!(part, [7; 10].as_slice());
        drop(part);
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test]
    async fn who_waits_gets_all_that_is_missing_at_once() {
        let memory = Memory::new(BUDGET);
        let mut all = memory.charge();
        all.cover(BUDGET).unwrap();
        let mut waiting = Box::pin(memory.wait(1, 3 * STEP_BYTES));
        assert!(waiting.as_mut().now_or_never().is_none());
        assert!(all.fit(BUDGET / 2));
        let mut charge = waiting.await;
        assert_eq!(memory.used(), BUDGET / 2 + 2 * STEP_BYTES);
        all.join(charge);
        charge = all;
        assert!(charge.fit(0));
        assert_eq!(memory.used(), 0);
        assert!(memory.wait(0, BUDGET + 1).now_or_never().is_none(), "it will never be there");
        assert_eq!(memory.used(), 0);
    }

    /// Each step that is given back went to another waiter once, until each had a half.
    #[tokio::test]
    async fn many_who_need_two_steps_of_a_small_budget_all_get_them() {
        let memory = Memory::new(4 * STEP_BYTES);
        let mut all = memory.charge();
        all.cover(4 * STEP_BYTES).unwrap();
        let mut waiters = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let memory = memory.clone();
            waiters.spawn(async move {
                let charge = memory.wait(0, FREE_BYTES + 1).await;
                assert_eq!(charge.steps(), 2);
                tokio::task::yield_now().await;
            });
        }
        tokio::task::yield_now().await;
        while all.steps > 0 {
            all.give_back(1);
            tokio::task::yield_now().await;
        }
        assert_eq!(waiters.join_all().await.len(), 16);
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test]
    async fn large_answers_are_charged_or_refused() {
        let memory = Memory::new(BUDGET);
        let answer = |bytes: usize| {
            let mut response = Response::new(Body::from(vec![b'x'; bytes]));
            *response.status_mut() = StatusCode::CREATED;
            response
        };
        assert!(memory.charge_answer(&answer(FREE_BYTES)).unwrap().is_none());
        let large = answer(BUDGET);
        let charge = memory.charge_answer(&large).unwrap().unwrap();
        let large = charge.hold_answer(large);
        assert_eq!(memory.used(), BUDGET);
        let mut other = answer(FREE_BYTES + 1);
        assert_eq!(memory.charge_answer(&other).unwrap_err(), UsedUp);
        mark_charged(&mut other);
        assert!(memory.charge_answer(&other).unwrap().is_none(), "it says that it has one");
        assert_eq!(large.status(), StatusCode::CREATED);
        assert_eq!(large.body().size_hint().exact(), Some(BUDGET as u64));
        let body = large.into_body().collect().await.unwrap().to_bytes();
        assert_eq!((memory.used(), body.len()), (BUDGET, BUDGET));
        drop(body);
        assert_eq!(memory.used(), 0);
    }

    proptest! {
        #[test]
        fn whatever_is_charged_is_given_back(
            steps in proptest::collection::vec((0_usize..4, 0_usize..20 * STEP_BYTES), 1..60),
        ) {
            let memory = Memory::new(BUDGET);
            let mut charges: Vec<Charge> = (0..4).map(|_| memory.charge()).collect();
            for (index, bytes) in steps {
                let charge = &mut charges[index];
                match bytes % 4 {
                    0 => drop(std::mem::replace(charge, memory.charge_page())),
                    1 => drop(charge.fit(bytes)),
                    _ => drop(charge.cover(bytes)),
                }
                let sum: usize = charges.iter().map(|charge| charge.steps * STEP_BYTES).sum();
                prop_assert_eq!(memory.used(), sum);
                prop_assert!(sum <= BUDGET);
            }
            drop(charges);
            prop_assert_eq!(memory.used(), 0);
        }
    }
}
