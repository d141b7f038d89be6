//! A read that stays open as a member of a group: server-sent events without ids.
//!
//! The log is read when the connection asks for the next chunk; `member` keeps the membership
//! meanwhile.
//!
//! Invariant: an event carries no `id`: the group keeps the place.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use futures_util::stream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::api::error::{ApiError, Caller, Code};
use crate::api::flushes::Flushes;
use crate::api::http::EVENT_STREAM;
use crate::api::json::records_out::Lines;
use crate::api::v1::delivery::Places;
use crate::api::v1::member::{End, Keeper, Look, Membership};
use crate::api::v1::page::{Found, Plan, Shape, WithReason, push_gap, read};
use crate::api::v1::plan::{self, AsMember, Parameters, Positions};
use crate::api::{State, cursor, sse};
use crate::broker::{JoinGroup, MemberKind, OffsetReset, Revocation, Start, Subscription, Topic};
use crate::metrics::Tracked;

/// Progress without records is told this often at most.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// Bytes of records of one event at most, whatever the client asks for.
const EVENT_BYTES_MAX: u64 = 256 * 1024;

/// Joins the group and starts a stream.
///
/// # Errors
/// Those of joining; what happens later is an event.
pub(super) async fn answer(
    state: Arc<State>,
    topic: Arc<Topic>,
    (mut parameters, wanted): (Parameters, AsMember),
    flushes: Option<Flushes>,
) -> Result<Response, ApiError> {
    let name = topic.summary().name.clone();
    let from_start = matches!(&parameters.from, plan::From::Start(Start::Earliest, _));
    let is_static = wanted.instance_id.is_some();
    let join = JoinGroup {
        group: wanted.group,
        instance_id: wanted.instance_id,
        kind: MemberKind::Sse,
        client: String::new(),
        subscription: Subscription::Topics([name.clone()].into()),
        assignor: wanted.assignor,
        session_timeout: None,
        rebalance_timeout: None,
        offset_reset: if from_start { OffsetReset::Earliest } else { OffsetReset::Latest },
        revocation: Revocation::Acknowledged,
    };
    let member = state.broker.join_group(&state.principal, join).await?;
    let (shared, closed) = (Membership::new(), CancellationToken::new());
    let keeper = Keeper {
        state: Arc::clone(&state),
        member,
        topic: name,
        shared: Arc::clone(&shared),
        commit: wanted.commit,
        is_static,
        flushes: flushes.clone(),
        closed: closed.clone(),
    };
    state.tasks.spawn(keeper.run());
    parameters.max_bytes = parameters.max_bytes.min(EVENT_BYTES_MAX);
    let now = Instant::now();
    let feed = Feed {
        plan: Plan::new(parameters, Shape::Page, Lines::One),
        topic,
        versions: shared.versions.subscribe(),
        shared,
        flushes,
        turn: 0,
        asked: 0,
        told: Places::new(),
        ends_at: now + state.config.timers.events_life,
        sent_at: now,
        ended: false,
        _open: state.metrics.streams.sse_streams_open.track(),
        _closed: closed.drop_guard(),
        state,
    };
    let events = stream::unfold(feed, async |mut feed| {
        let chunk = feed.next().await?;
        Some((Ok::<_, std::convert::Infallible>(chunk), feed))
    });
    let mut response = Response::new(Body::from_stream(events));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(EVENT_STREAM));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// One client's stream.
struct Feed {
    state: Arc<State>,
    topic: Arc<Topic>,
    plan: Plan,
    shared: Arc<Membership>,
    versions: watch::Receiver<u64>,
    flushes: Option<Flushes>,
    /// Which partition is read first, so that none waits for the others' end.
    turn: usize,
    /// How often the connection asked for a chunk.
    asked: u64,
    /// Places that an event has told.
    told: Places,
    ends_at: Instant,
    sent_at: Instant,
    ended: bool,
    _open: Tracked,
    /// Ends the membership with the stream.
    _closed: DropGuard,
}

/// Why a wait ended.
enum Woken {
    Again,
    Failure(ApiError),
    Silence,
    Age,
    Stop,
}

impl Feed {
    /// Returns the next chunk of the stream, `None` at its end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = Vec::new();
        if self.asked == 0 {
            // At once, so that the client learns that it is connected.
            out.extend_from_slice(sse::RETRY);
        }
        self.asked += 1;
        while out.is_empty() {
            self.versions.mark_unchanged();
            let look = self.shared.look(self.flush_count());
            out.extend_from_slice(&look.news);
            match &look.end {
                Some(End::Fenced) => self.end(&mut out, "fenced"),
                Some(End::Slow) => self.end(&mut out, "slow"),
                Some(End::Error(error)) => self.fail(&mut out, error),
                None if Instant::now() >= self.ends_at => self.end(&mut out, "max_age"),
                None if out.is_empty() => self.work(&mut out, look).await,
                None => {}
            }
        }
        self.sent_at = Instant::now();
        Some(out.into())
    }

    /// Returns the count of flushes; of a connection that does not count them, what it asks for
    /// stands for what it has sent.
    fn flush_count(&self) -> u64 {
        self.flushes.as_ref().map_or(self.asked, Flushes::count)
    }

    /// Reads, and waits when there is nothing.
    async fn work(&mut self, out: &mut Vec<u8>, look: Look) {
        let places: Positions = look.places.iter().map(|(part, at)| (*part, *at)).collect();
        self.read_into(out, look, &places).await;
        if !out.is_empty() || self.ended || self.versions.has_changed().unwrap_or(false) {
            return;
        }
        let positions = self.shared.look_at_places();
        match self.wait(&positions).await {
            Woken::Again => tokio::task::yield_now().await,
            Woken::Failure(error) => self.fail(out, &error),
            Woken::Silence => self.break_silence(out, &positions),
            Woken::Age => self.end(out, "max_age"),
            Woken::Stop => self.end(out, "shutdown"),
        }
    }

    async fn read_into(&mut self, out: &mut Vec<u8>, look: Look, places: &Positions) {
        let from = self.turn.checked_rem(places.len()).unwrap_or(0);
        let (later, first) = places.split_at(from);
        for positions in [first, later].into_iter().filter(|positions| !positions.is_empty()) {
            let mut body = Vec::new();
            sse::start(&mut body, "records");
            body.extend_from_slice(b"{\"records\":[");
            let found = read(&self.state, &self.topic, &self.plan, positions.to_vec(), body).await;
            let Found { body, records, end, .. } = match found {
                Ok(found) => found,
                Err(error) => return self.fail(out, &error),
            };
            let ends: Places = end.next.into_iter().collect();
            if !self.shared.hand_over(look.version, &ends, self.flush_count()) {
                return;
            }
            for gap in &end.gaps {
                sse::start(out, "gap");
                push_gap(out, gap, WithReason::Yes);
                sse::finish(out, None);
            }
            if records > 0 {
                self.turn = self.turn.wrapping_add(1);
                out.extend_from_slice(&body);
                out.extend_from_slice(b"],\"next\":\"");
                let next = self.shared.look_at_places();
                out.extend_from_slice(self.cursor(&next).as_bytes());
                out.extend_from_slice(b"\"}");
                sse::finish(out, None);
                self.told = next.into_iter().collect();
            }
            if !out.is_empty() {
                return;
            }
        }
    }

    fn cursor(&self, positions: &Positions) -> String {
        cursor::encode(self.topic.summary().id, positions)
    }

    fn break_silence(&mut self, out: &mut Vec<u8>, positions: &Positions) {
        let places: Places = positions.iter().copied().collect();
        if places != self.told && !places.is_empty() {
            let data = format!("{{\"next\":\"{}\"}}", self.cursor(positions));
            sse::push(out, "progress", data.as_bytes(), None);
            self.told = places;
        } else {
            out.extend_from_slice(sse::COMMENT);
        }
    }

    fn end(&mut self, out: &mut Vec<u8>, reason: &str) {
        let data = format!("{{\"reason\":\"{reason}\"}}");
        sse::push(out, "end", data.as_bytes(), None);
        self.ended = true;
    }

    /// Tells an error and ends: the client connects again and goes on from where its group is.
    fn fail(&mut self, out: &mut Vec<u8>, error: &ApiError) {
        if error.code() == Code::TopicNotFound {
            return self.end(out, "topic_deleted");
        }
        if error.code() == Code::Internal {
            // Logs it under a request id, as an answer with this error would.
            drop(error.respond(&Caller::native(&HeaderMap::new())));
        }
        let data = serde_json::to_vec(&error.problem(None)).unwrap_or_default();
        sse::push(out, "error", &data, None);
        self.ended = true;
    }

    async fn wait(&mut self, positions: &Positions) -> Woken {
        let stop = self.state.tasks.stop_token();
        let untold = positions.iter().any(|(part, at)| self.told.get(part) != Some(at));
        let silence =
            if untold { PROGRESS_EVERY } else { self.state.config.timers.events_comment_every };
        let (broker, principal) = (&self.state.broker, &self.state.principal);
        let waiting = broker.wait_for_records(principal, &self.topic, positions);
        tokio::select! {
            biased;
            () = stop.cancelled() => Woken::Stop,
            // The sender is in `self`: it does not close.
            _ = self.versions.changed() => Woken::Again,
            () = tokio::time::sleep_until(self.ends_at) => Woken::Age,
            woken = waiting => match woken {
                Ok(()) => Woken::Again,
                Err(error) => Woken::Failure(error.into()),
            },
            () = tokio::time::sleep_until(self.sent_at + silence) => Woken::Silence,
        }
    }
}
