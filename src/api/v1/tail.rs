//! A read that stays open: server-sent events.
//!
//! The log is read when the connection asks for the next chunk, so a slow client costs an offset
//! and no memory. Every event with an `id` can be resumed from.
//!
//! Invariants:
//! - `records` and `progress` carry as `id` the cursor past everything that was looked at;
//! - a stream ends in time (`events_life`), so that clients spread over the nodes again.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use futures_util::stream;
use tokio::time::Instant;

use crate::api::error::{ApiError, Caller, Code};
use crate::api::http::EVENT_STREAM;
use crate::api::json::records_out::Lines;
use crate::api::v1::page::{Found, Plan, Shape, WithReason, push_gap, read};
use crate::api::v1::plan::{self, Parameters, Positions};
use crate::api::{State, cursor, sse};
use crate::broker::{OnDamage, Search, Start, Topic};
use crate::metrics::Tracked;
use crate::types::Offset;

/// Progress without records is told this often at most.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// Bytes of records of one event at most, whatever the client asks for: what one slow client holds.
const EVENT_BYTES_MAX: u64 = 256 * 1024;

/// Starts a stream.
///
/// # Errors
/// Those of finding the start; what happens later is an event.
pub(super) async fn answer(
    state: Arc<State>,
    topic: Arc<Topic>,
    mut parameters: Parameters,
) -> Result<Response, ApiError> {
    let positions = plan::positions(&state, &topic, &parameters).await?;
    parameters.max_bytes = parameters.max_bytes.min(EVENT_BYTES_MAX);
    let start = real_start(&state, &topic, &positions).await?;
    let start = cursor::encode(topic.summary().id, &start);
    let now = Instant::now();
    let ends_at = now + state.config.timers.events_life;
    let open = state.metrics.streams.sse_streams_open.track();
    let feed = Feed {
        plan: Plan::new(parameters, Shape::Page, Lines::One),
        state,
        topic,
        told: positions.clone(),
        positions,
        begun: false,
        ended: false,
        ends_at,
        sent_at: now,
        _open: open,
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
    if let Ok(start) = HeaderValue::from_str(&start) {
        headers.insert("eddyline-start", start);
    }
    Ok(response)
}

/// Returns where reading really starts: what retention took is not there.
async fn real_start(
    state: &State,
    topic: &Arc<Topic>,
    positions: &Positions,
) -> Result<Positions, ApiError> {
    let partitions: Vec<_> = positions.iter().map(|(partition, _)| *partition).collect();
    let search = Search { start: Start::Earliest, on_damage: OnDamage::Skip };
    let broker = &state.broker;
    let starts = broker.start_offsets(&state.principal, topic, &partitions, search).await?;
    let later = |((partition, offset), (_, start)): (&(_, Offset), &(_, Offset))| {
        (*partition, *offset.max(start))
    };
    Ok(positions.iter().zip(&starts).map(later).collect())
}

/// One client's stream.
struct Feed {
    state: Arc<State>,
    topic: Arc<Topic>,
    plan: Plan,
    /// Where reading goes on.
    positions: Positions,
    /// Where the last event with an id ended.
    told: Positions,
    begun: bool,
    ended: bool,
    ends_at: Instant,
    sent_at: Instant,
    _open: Tracked,
}

/// Why a wait ended.
enum Woken {
    Records,
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
        if !self.begun {
            // At once, so that the client learns that it is connected.
            self.begun = true;
            out.extend_from_slice(sse::RETRY);
        }
        while out.is_empty() {
            if Instant::now() >= self.ends_at {
                self.end(&mut out, "max_age");
                break;
            }
            self.read_into(&mut out).await;
            if !out.is_empty() {
                break;
            }
            match self.wait().await {
                Woken::Records => tokio::task::yield_now().await,
                Woken::Failure(error) => self.fail(&mut out, &error),
                Woken::Silence => self.break_silence(&mut out),
                Woken::Age => self.end(&mut out, "max_age"),
                Woken::Stop => self.end(&mut out, "shutdown"),
            }
        }
        self.sent_at = Instant::now();
        Some(out.into())
    }

    async fn read_into(&mut self, out: &mut Vec<u8>) {
        let positions = self.positions.clone();
        let mut body = Vec::new();
        sse::start(&mut body, "records");
        body.extend_from_slice(b"{\"records\":[");
        let found = match read(&self.state, &self.topic, &self.plan, positions, body).await {
            Ok(found) => found,
            Err(error) => return self.fail(out, &error),
        };
        let Found { body, records, end, .. } = found;
        for gap in &end.gaps {
            sse::start(out, "gap");
            push_gap(out, gap, WithReason::Yes);
            sse::finish(out, None);
        }
        self.positions = end.next;
        if records > 0 {
            let next = self.tell();
            out.extend_from_slice(&body);
            out.extend_from_slice(b"],\"next\":\"");
            out.extend_from_slice(next.as_bytes());
            out.extend_from_slice(b"\"}");
            sse::finish(out, Some(&next));
        } else if !end.gaps.is_empty() || self.sent_at.elapsed() >= PROGRESS_EVERY {
            self.push_progress(out);
        }
    }

    /// Appends a `progress` event if there is progress that no event has told.
    fn push_progress(&mut self, out: &mut Vec<u8>) {
        if self.positions != self.told {
            let next = self.tell();
            let data = format!("{{\"next\":\"{next}\"}}");
            sse::push(out, "progress", data.as_bytes(), Some(&next));
        }
    }

    /// Returns the cursor of the positions, which the event at hand tells the client.
    fn tell(&mut self) -> String {
        self.told.clone_from(&self.positions);
        cursor::encode(self.topic.summary().id, &self.positions)
    }

    fn break_silence(&mut self, out: &mut Vec<u8>) {
        self.push_progress(out);
        if out.is_empty() {
            out.extend_from_slice(sse::COMMENT);
        }
    }

    fn end(&mut self, out: &mut Vec<u8>, reason: &str) {
        self.push_progress(out);
        let data = format!("{{\"reason\":\"{reason}\"}}");
        sse::push(out, "end", data.as_bytes(), None);
        self.ended = true;
    }

    /// Tells an error and ends: the client connects again and goes on from its last id.
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

    async fn wait(&self) -> Woken {
        let stop = self.state.tasks.stop_token();
        // Untold progress is told soon, so that a client that breaks off does not scan again.
        let untold = self.positions != self.told;
        let silence =
            if untold { PROGRESS_EVERY } else { self.state.config.timers.events_comment_every };
        let (broker, principal) = (&self.state.broker, &self.state.principal);
        let waiting = broker.wait_for_records(principal, &self.topic, &self.positions);
        tokio::select! {
            biased;
            () = stop.cancelled() => Woken::Stop,
            () = tokio::time::sleep_until(self.ends_at) => Woken::Age,
            woken = waiting => match woken {
                Ok(()) => Woken::Records,
                Err(error) => Woken::Failure(error.into()),
            },
            () = tokio::time::sleep_until(self.sent_at + silence) => Woken::Silence,
        }
    }
}
