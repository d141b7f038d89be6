//! What each request does.

use std::task::Context;

use tungstenite::Utf8Bytes;

use crate::api::error::{ApiError, Code};
use crate::api::ws::FRAME_BYTES_MAX;
use crate::api::ws::jobs::Job;
use crate::api::ws::replies::{self, EndReason, Welcome};
use crate::api::ws::requests::{About, Hello, Refused, Request, Subscribe};
use crate::api::ws::session::{Phase, Session, close};
use crate::api::ws::subscription::Subscription;

/// Smallest frame that a client can ask for.
const FRAME_BYTES_MIN: usize = 1024;

impl Session {
    /// Does what a frame asks for.
    pub(super) fn handle(&mut self, text: &Utf8Bytes, context: &mut Context<'_>) {
        match (Request::parse(text), self.phase) {
            (Ok(Request::Hello(hello)), Phase::Greeting(_)) => self.hello(&hello),
            // Before `hello` nothing else is possible, afterwards `hello` is not.
            (Err(Refused::Frame) | Ok(Request::Hello(_)), _) | (_, Phase::Greeting(_)) => {
                self.close(close::BAD_FRAME, context);
            }
            (Err(Refused::Request(about, error)), _) => self.refuse(about, &error),
            (Ok(request), _) => self.serve_request(request, text, context),
        }
    }

    fn serve_request(&mut self, request: Request<'_>, text: &Utf8Bytes, context: &mut Context<'_>) {
        let about = request.about();
        match request {
            Request::Hello(_) => {}
            Request::Subscribe(request) => self.subscribe(request, context),
            Request::Credit(credit) => {
                self.with(about, |each| each.grant(credit.records, credit.bytes));
            }
            Request::Pause(_) => self.with(about, |each| each.set_paused(true)),
            Request::Resume(_) => self.with(about, |each| each.set_paused(false)),
            Request::Seek(seek) => {
                let found = self.subscriptions.iter().find(|each| each.id() == seek.id);
                let job = found.map(|each| Job::seek(&self.state, each, seek.offsets));
                match job {
                    Some(job) => {
                        self.is_held = true;
                        self.jobs.push(job);
                    }
                    None => self.refuse(about, &no_subscription()),
                }
            }
            Request::Unsubscribe(named) => self.unsubscribe(named.id, about),
            Request::Commit(commit) => {
                if let Err(error) = self.commit(&commit) {
                    self.refuse(about, &error);
                }
            }
            Request::Auth => self.send(replies::authenticated()),
            Request::Ping(ping) => {
                self.send(replies::pong(ping.t.map_or("null", |t| t.get())));
            }
            Request::Produce(produce) => self.produce(&produce, text),
        }
    }

    fn hello(&mut self, hello: &Hello) {
        let asked = hello.max_frame_bytes.unwrap_or(FRAME_BYTES_MAX);
        self.frame_bytes_max = asked.clamp(FRAME_BYTES_MIN, FRAME_BYTES_MAX);
        self.phase = Phase::Open;
        self.socket.set_frame_max(FRAME_BYTES_MAX);
        let session = uuid::Uuid::new_v4().simple().to_string();
        tracing::debug!(session, client = hello.client.as_deref(), "a socket is open");
        let welcome = replies::welcome(&Welcome {
            node: self.state.broker.node(),
            session: &session,
            heartbeat_ms: self.state.config.ws.timers.heartbeat.as_millis(),
            subscriptions_max: self.state.config.ws.max_subscriptions,
            frame_bytes_max: FRAME_BYTES_MAX,
        });
        self.send(welcome);
    }

    fn subscribe(&mut self, request: Box<Subscribe>, context: &mut Context<'_>) {
        if matches!(self.phase, Phase::Leaving(_)) {
            let error = ApiError::new(Code::Unavailable, "the server stops");
            return self.refuse(About { id: Some(request.id), seq: None }, &error);
        }
        if self.subscription(request.id).is_some() {
            return self.close(close::DUPLICATE, context);
        }
        if self.subscriptions.len() >= self.state.config.ws.max_subscriptions {
            return self.close(close::TOO_MANY, context);
        }
        let job = Job::subscribe(&self.state, request, self.frame_bytes_max);
        self.is_held = true;
        self.jobs.push(job);
    }

    fn unsubscribe(&mut self, id: u64, about: About) {
        let before = self.subscriptions.len();
        self.subscriptions.retain(|each| each.id() != id);
        if self.subscriptions.len() == before {
            return self.refuse(about, &no_subscription());
        }
        match self.memberships.iter().position(|each| each.id() == id) {
            Some(at) => {
                // Told when the group knows, so that nobody waits for this member any more.
                self.is_held = true;
                let membership = self.memberships.swap_remove(at);
                self.jobs.push(membership.leave());
            }
            None => self.send(replies::unsubscribed(id, EndReason::Client)),
        }
    }

    fn with(&mut self, about: About, change: impl FnOnce(&mut Subscription)) {
        match about.id.and_then(|id| self.subscription(id)) {
            Some(subscription) => change(subscription),
            None => self.refuse(about, &no_subscription()),
        }
    }
}

fn no_subscription() -> ApiError {
    ApiError::new(Code::InvalidRequest, "the socket has no subscription with this id")
}
