//! One socket's task: reads requests, runs jobs, sends what subscriptions want.
//!
//! Everything happens in [`Session::poll`], round by round, until nothing moves any more. What
//! takes time (finding a start, reading files, waiting for a write) is a job; its answer comes back
//! into the loop.
//!
//! Invariants:
//! - nothing is read from the client while a request has to be finished before the next one, while
//!   too many outstanding are outstanding, or while too much waits to be written;
//! - no records are queued while more than [`QUEUED_BYTES_MAX`] wait to be written;
//! - one timer a socket.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::api::State;
use crate::api::error::{ApiError, Code};
use crate::api::ws::FRAME_BYTES_MAX;
use crate::api::ws::cache::{Encoded, Lookup};
use crate::api::ws::jobs::{Done, Job, Made};
use crate::api::ws::liveness::{Due, Liveness};
use crate::api::ws::membership::Membership;
use crate::api::ws::replies::{self, EndReason, FatalTo};
use crate::api::ws::requests::About;
use crate::api::ws::socket::{Incoming, Socket};
use crate::api::ws::subscription::{Next, Subscription, Want};
use crate::metrics::Tracked;

/// Bytes that wait to be written, above which nothing is added to them nor read.
const QUEUED_BYTES_MAX: usize = 64 * 1024;

/// Produces and commits of one socket that wait for their answer.
const OUTSTANDING_MAX: usize = 256;

/// Rounds before other tasks have their turn.
const ROUNDS_MAX: usize = 32;

/// Frames read in one round.
const READS_MAX: usize = 16;

/// Largest first frame: nobody has said yet who they are.
const HELLO_BYTES_MAX: usize = 8 * 1024;

/// Why a socket is closed. The ranges tell clients what to do: 44xx, not again unchanged; 45xx,
/// again with a growing pause.
pub(super) mod close {
    pub(in crate::api::ws) const RESTART: (u16, &str) = (1001, "the server stops");
    pub(in crate::api::ws) const TOO_LARGE: (u16, &str) = (1009, "frame too large");
    pub(in crate::api::ws) const BAD_FRAME: (u16, &str) = (4400, "bad frame");
    pub(in crate::api::ws) const NO_HELLO: (u16, &str) = (4408, "no hello in time");
    pub(in crate::api::ws) const DUPLICATE: (u16, &str) = (4409, "subscription id in use");
    pub(in crate::api::ws) const TOO_MANY: (u16, &str) = (4413, "too many subscriptions");
    pub(in crate::api::ws) const DRAINING: (u16, &str) = (4503, "the server stops");
    pub(in crate::api::ws) const SLOW: (u16, &str) = (4508, "nothing was read for too long");
    pub(in crate::api::ws) const NO_PONG: (u16, &str) = (4511, "no answer to a ping");
}

/// How far a session has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It waits for `hello`, at most until then.
    Greeting(Instant),
    Open,
    /// The server stops; the session ends then at the latest.
    Leaving(Instant),
    /// The closing handshake was begun.
    Closing,
    /// The client is gone, or cannot be understood any more.
    Gone,
}

/// One socket and all that belongs to it.
pub(super) struct Session {
    pub(super) state: Arc<State>,
    pub(super) socket: Socket,
    pub(super) phase: Phase,
    pub(super) subscriptions: Vec<Subscription>,
    /// Those of the subscriptions that are members of groups.
    pub(super) memberships: Vec<Membership>,
    pub(super) jobs: FuturesUnordered<Job>,
    /// A request has to be finished before the next one is read.
    pub(super) is_held: bool,
    /// Produces and commits that wait for their answer.
    pub(super) outstanding: usize,
    /// Largest frame that the client wants.
    pub(super) frame_bytes_max: usize,
    liveness: Liveness,
    /// How long the connection may take nothing of what is to be written.
    blocked_max: Duration,
    stop: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    timer: Pin<Box<Sleep>>,
    /// When a subscription wants another look.
    wakes_at: Option<Instant>,
    _open: Tracked,
}

impl Session {
    /// Takes over a socket.
    pub(super) fn new(state: Arc<State>, mut socket: Socket) -> Self {
        let now = Instant::now();
        let timers = &state.config.ws.timers;
        socket.set_frame_max(HELLO_BYTES_MAX);
        Self {
            phase: Phase::Greeting(now + timers.hello),
            liveness: Liveness::new(timers, now),
            blocked_max: timers.blocked,
            stop: Some(Box::pin(state.tasks.stop_token().cancelled_owned())),
            timer: Box::pin(tokio::time::sleep_until(now + timers.hello)),
            _open: state.ws.metrics.sockets_open.track(),
            socket,
            subscriptions: Vec::new(),
            memberships: Vec::new(),
            jobs: FuturesUnordered::new(),
            is_held: false,
            outstanding: 0,
            frame_bytes_max: FRAME_BYTES_MAX,
            wakes_at: None,
            state,
        }
    }

    /// Serves the socket until it is closed.
    pub(super) async fn run(mut self) {
        poll_fn(|context| self.poll(context)).await;
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        for _ in 0..ROUNDS_MAX {
            let now = Instant::now();
            let mut moved = self.poll_stop(now, context);
            moved |= self.poll_jobs(context);
            moved |= self.poll_requests(now, context);
            moved |= self.poll_memberships(now);
            moved |= self.poll_subscriptions(now, context);
            let queued = self.socket.queued_bytes();
            match self.socket.poll_flush(context) {
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(())) if self.phase == Phase::Gone => return Poll::Ready(()),
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
            moved |= self.socket.queued_bytes() < queued;
            moved |= self.poll_timer(now, context);
            if self.socket.closes_by().is_some_and(|by| by <= now) {
                return Poll::Ready(());
            }
            if !moved {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Queues a frame.
    pub(super) fn send(&mut self, frame: Vec<u8>) {
        self.liveness.sent(Instant::now());
        self.socket.push_text(frame);
    }

    /// Queues the refusal of a request.
    pub(super) fn refuse(&mut self, about: About, error: &ApiError) {
        self.send_error(about, error, FatalTo::Request);
    }

    fn send_error(&mut self, about: About, error: &ApiError, fatal_to: FatalTo) {
        if error.code() == Code::Internal {
            tracing::error!(detail = %error.detail(), "a request of a socket failed");
        }
        self.send(replies::error(about, error, fatal_to));
    }

    /// Begins the closing handshake.
    pub(super) fn close(&mut self, (code, why): (u16, &'static str), context: &mut Context<'_>) {
        if !matches!(self.phase, Phase::Closing | Phase::Gone) {
            self.phase = Phase::Closing;
            self.subscriptions.clear();
            self.memberships.clear();
            self.socket.close(code, why, context);
            self.state.ws.metrics.closed(code).inc();
        }
    }

    /// Finds a subscription.
    pub(super) fn subscription(&mut self, id: u64) -> Option<&mut Subscription> {
        self.subscriptions.iter_mut().find(|subscription| subscription.id() == id)
    }

    fn poll_stop(&mut self, now: Instant, context: &mut Context<'_>) -> bool {
        let Some(stop) = &mut self.stop else { return false };
        if stop.as_mut().poll(context).is_pending() {
            return false;
        }
        self.stop = None;
        match self.phase {
            Phase::Greeting(_) => self.close(close::DRAINING, context),
            Phase::Open => {
                self.send(replies::goaway());
                // They send nothing more, and what was received of them can be committed.
                self.subscriptions.iter_mut().for_each(|each| each.set_paused(true));
                self.phase = Phase::Leaving(now + self.state.config.ws.timers.drain);
            }
            Phase::Leaving(_) | Phase::Closing | Phase::Gone => {}
        }
        true
    }

    fn poll_jobs(&mut self, context: &mut Context<'_>) -> bool {
        let mut moved = false;
        while let Poll::Ready(Some(done)) = self.jobs.poll_next_unpin(context) {
            moved = true;
            self.finish(done);
        }
        moved
    }

    /// Returns whether the client is listened to.
    fn listens(&self) -> bool {
        match self.phase {
            Phase::Gone => false,
            Phase::Closing => true,
            Phase::Greeting(_) | Phase::Open | Phase::Leaving(_) => {
                !self.is_held
                    && self.outstanding < OUTSTANDING_MAX
                    && self.socket.queued_bytes() < QUEUED_BYTES_MAX
            }
        }
    }

    fn poll_requests(&mut self, now: Instant, context: &mut Context<'_>) -> bool {
        for reads in 0..READS_MAX {
            if !self.listens() {
                self.liveness.deaf(now);
                return reads > 0;
            }
            let Poll::Ready(incoming) = self.socket.poll_read(context) else { return reads > 0 };
            self.liveness.heard();
            match incoming {
                Incoming::Text(text) if self.phase != Phase::Closing => {
                    self.handle(&text, context);
                }
                Incoming::Text(_) | Incoming::Control => {}
                Incoming::Binary => self.close(close::BAD_FRAME, context),
                Incoming::TooLarge => self.give_up(close::TOO_LARGE, context),
                Incoming::Broken(code) => self.give_up((code, "not understood"), context),
                Incoming::Gone => {
                    self.socket.end();
                    self.subscriptions.clear();
                    self.memberships.clear();
                    self.phase = Phase::Gone;
                }
            }
        }
        true
    }

    /// Closes a socket of which nothing can be read any more.
    fn give_up(&mut self, why: (u16, &'static str), context: &mut Context<'_>) {
        self.close(why, context);
        self.phase = Phase::Gone;
    }

    fn poll_subscriptions(&mut self, now: Instant, context: &mut Context<'_>) -> bool {
        self.wakes_at = self.memberships.iter().filter_map(Membership::wakes_at).min();
        let mut moved = false;
        let mut at = 0;
        while let Some(subscription) = self.subscriptions.get_mut(at) {
            if self.socket.queued_bytes() >= QUEUED_BYTES_MAX {
                // Whoever comes last here comes first when there is room again.
                self.subscriptions.rotate_left(at);
                return moved;
            }
            let queued = self.socket.queued_bytes();
            let next = subscription.next(&mut self.socket, now, context);
            at += 1;
            match next {
                Ok(Next::Wait(until)) => {
                    self.wakes_at = [self.wakes_at, until].into_iter().flatten().min();
                }
                Ok(Next::Again) => moved = true,
                Ok(Next::Want(want)) => {
                    moved = true;
                    self.serve(at - 1, want, now);
                }
                Err(error) => {
                    moved = true;
                    at -= 1;
                    let id = subscription.id();
                    self.end_subscription(id, &error.into());
                }
            }
            if self.socket.queued_bytes() > queued {
                self.liveness.sent(now);
            }
        }
        moved
    }

    /// Sends a frame that is at hand, or begins to read it.
    fn serve(&mut self, at: usize, want: Want, now: Instant) {
        let Some(subscription) = self.subscriptions.get_mut(at) else { return };
        let cell = if subscription.filter().is_some() {
            None
        } else {
            match self.state.ws.cache.look_up(&want.key, want.log_end, now) {
                Lookup::Hit(frame) if subscription.affords(&frame) => {
                    deliver(&self.state, subscription, (want, &frame), &mut self.socket);
                    return;
                }
                Lookup::Hit(_) => None,
                Lookup::Miss(cell) => Some(cell),
            }
        };
        let job = match cell {
            Some(cell) => Job::shared_read(&self.state, subscription, want, cell),
            None => {
                let want = subscription.affordable(want);
                Job::own_read(&self.state, subscription, want)
            }
        };
        self.jobs.push(job);
    }

    /// Takes the answer of a read.
    pub(super) fn finish_read(
        &mut self,
        (id, number): (u64, u64),
        want: Want,
        found: Result<Arc<Encoded>, ApiError>,
    ) {
        let Some(at) = self.subscriptions.iter().position(|found| found.id() == id) else { return };
        let Some(subscription) = self.subscriptions.get_mut(at) else { return };
        if !subscription.end_read(number) {
            return;
        }
        match found {
            Ok(frame) if subscription.affords(&frame) => {
                deliver(&self.state, subscription, (want, &frame), &mut self.socket);
                self.liveness.sent(Instant::now());
            }
            Ok(_) => {
                let want = subscription.affordable(want);
                let job = Job::own_read(&self.state, subscription, want);
                self.jobs.push(job);
            }
            Err(error) => self.end_subscription(id, &error),
        }
    }

    /// Ends a subscription that cannot go on.
    pub(super) fn end_subscription(&mut self, id: u64, error: &ApiError) {
        self.subscriptions.retain(|subscription| subscription.id() != id);
        self.memberships.retain(|membership| membership.id() != id);
        if error.code() == Code::TopicNotFound {
            self.send(replies::unsubscribed(id, EndReason::TopicDeleted));
        } else {
            let about = About { id: Some(id), seq: None };
            self.send_error(about, error, FatalTo::Subscription);
        }
    }

    /// Does what is due and sets the timer to what is due next.
    fn poll_timer(&mut self, now: Instant, context: &mut Context<'_>) -> bool {
        let moved = self.do_due(now, context);
        let own = match self.phase {
            Phase::Greeting(until) | Phase::Leaving(until) => Some(until),
            Phase::Open | Phase::Closing | Phase::Gone => None,
        };
        let open = matches!(self.phase, Phase::Open | Phase::Leaving(_));
        let due = [
            own,
            self.wakes_at,
            self.socket.closes_by(),
            open.then(|| self.liveness.next()),
            self.socket.blocked_since().map(|since| since + self.blocked_max),
        ];
        let Some(due) = due.into_iter().flatten().min() else { return moved };
        if self.timer.deadline() != due {
            self.timer.as_mut().reset(due);
        }
        self.timer.as_mut().poll(context).is_ready() || moved
    }

    fn do_due(&mut self, now: Instant, context: &mut Context<'_>) -> bool {
        match self.phase {
            Phase::Greeting(until) if until <= now => self.close(close::NO_HELLO, context),
            Phase::Leaving(until) if until <= now || self.has_finished() => {
                self.close(close::RESTART, context);
            }
            _ => {}
        }
        let blocked = self.socket.blocked_since();
        if blocked.is_some_and(|since| since + self.blocked_max <= now) {
            self.close(close::SLOW, context);
        }
        if !matches!(self.phase, Phase::Open | Phase::Leaving(_)) {
            return false;
        }
        if blocked.is_some() {
            self.liveness.deaf(now);
        }
        let mut moved = false;
        while let Some(due) = self.liveness.due(now) {
            moved = true;
            match due {
                Due::Ping => self.socket.push_ping(),
                Due::Heartbeat => {
                    let ends = self.subscriptions.iter().map(|each| (each.id(), each.log_ends()));
                    let heartbeat = replies::heartbeat(self.state.clock.now(), ends);
                    self.socket.push_text(heartbeat);
                }
                Due::Lost => {
                    self.close(close::NO_PONG, context);
                    break;
                }
            }
        }
        moved
    }

    /// Returns whether nothing is left to be answered.
    fn has_finished(&self) -> bool {
        self.outstanding == 0 && !self.is_held && self.memberships.is_empty()
    }

    fn begin(&mut self, id: u64, made: Made) {
        if matches!(self.phase, Phase::Closing | Phase::Gone) {
            return;
        }
        self.send(made.frame);
        self.subscriptions.push(*made.subscription);
        if let Some(membership) = made.membership {
            let session = membership.session_timeout();
            self.liveness.find_out_within(session, Instant::now());
            self.blocked_max = self.blocked_max.min(session);
            self.memberships.push(membership);
            self.regroup(id);
        }
    }

    fn finish(&mut self, done: Done) {
        match done {
            Done::Read { subscription, number, want, found } => {
                self.finish_read((subscription, number), want, found);
            }
            Done::Subscribed { id, made } => {
                self.is_held = false;
                match made {
                    Ok(made) => self.begin(id, made),
                    Err(error) => self.refuse(About { id: Some(id), seq: None }, &error),
                }
            }
            Done::Sought { id, found } => {
                self.is_held = false;
                match found {
                    Ok(positions) => {
                        if let Some(subscription) = self.subscription(id) {
                            subscription.seek(&positions);
                            self.send(replies::seeked(id, &positions));
                        }
                    }
                    Err(error) => self.refuse(About { id: Some(id), seq: None }, &error),
                }
            }
            Done::TopicReady { text, found } => {
                self.is_held = false;
                self.finish_topic(&text, found);
            }
            Done::Regrouped { id } => self.regroup(id),
            Done::Assigned { id, starts } => self.finish_assigned(id, starts),
            Done::Revoked { id, partitions } => self.finish_revoked(id, &partitions),
            Done::Committed { id, seq, committed } => self.finish_commit(id, seq, committed),
            Done::Left { id } => {
                self.is_held = false;
                self.send(replies::unsubscribed(id, EndReason::Client));
            }
            Done::Produced { frame } => {
                self.outstanding -= 1;
                self.send(frame);
            }
        }
    }
}

/// Queues a frame of records and counts them.
fn deliver(
    state: &State,
    subscription: &mut Subscription,
    (want, frame): (Want, &Arc<Encoded>),
    socket: &mut Socket,
) {
    let topic = Arc::clone(subscription.topic());
    subscription.deliver(want.key.partition, frame, socket);
    subscription.follow(want.key.partition, |next| state.ws.cache.has(next));
    state.broker.count_read(&topic, frame.records, frame.record_bytes);
}
