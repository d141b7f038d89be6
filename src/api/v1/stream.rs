//! Produce as a stream of lines: the body is written while it arrives, and each line is reported
//! while the request is still open.
//!
//! A task of its own reads the body, because an answer's stream is only asked for more when its
//! client reads, and most clients do not read before they have sent everything. It groups the lines
//! that are there into one append, keeps some appends in flight, and queues reports in order.
//!
//! With `acks=0` a line is reported, as `{}`, when its record is checked and queued.
//!
//! Invariants:
//! - every line that is not empty gets one report, in order: a bad one does not end the stream;
//! - memory is bounded by one chunk and one line of the body, [`GROUPS_IN_FLIGHT_MAX`] groups of
//!   bookkeeping, and `report_buffer_bytes`, and over all requests by `memory_bytes`; beyond that
//!   the body is not read;
//! - full queues stop the reading and are never a report;
//! - a client that neither sends nor takes anything for `produce_idle` is given up: its answer
//!   ends;
//! - streams that lack memory never stand still together. Lines that are whole are appended as long
//!   as the reports that wait are charged, which only takes their client to read. Then all that a
//!   stream holds is the begin of a line, and it waits for what it lacks of the budget, all at
//!   once, or for its turn: the one stream that has it reads on, past the budget, until its line is
//!   whole and appended. A turn ends after `request_timeout`, so it passes through all who wait,
//!   and each turn is a line that goes out or is refused;
//! - a stream that has lacked memory for its lines for `request_timeout`, while nothing moved, is
//!   answered with `overloaded` for them and ends.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use futures_util::stream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::api::State;
use crate::api::error::{ApiError, Code};
use crate::api::http::{NDJSON, next_data};
use crate::api::json::records_in;
use crate::api::memory::UsedUp;
use crate::api::v1::lines::{Batch, Line, Lines};
use crate::api::v1::produce::Acks;
use crate::api::v1::reports::{Covered, Report, ReportLines, Reports};
use crate::broker::{AppendError, Appending, Outcomes, ProduceError, ProduceRecord, Topic};

/// Lines of one append at most.
const GROUP_LINES_MAX: usize = 1000;

/// Bytes of the lines of one append at most, apart from the last line.
const GROUP_BYTES_MAX: usize = 1024 * 1024;

/// Bytes that a line takes whose append waits for its outcome, about.
const LINE_BYTES: usize = 32;

/// Appends that wait for their outcome at a time.
const GROUPS_IN_FLIGHT_MAX: usize = 32;

/// Starts to read the body and answers with its reports.
pub(super) async fn answer(
    state: &Arc<State>,
    topic: Arc<Topic>,
    mut body: Body,
    (acks, awaits_continue): (Acks, bool),
) -> Response {
    let mut first = None;
    if awaits_continue {
        // `100 Continue` goes out when the body is first asked for, and not any more once the
        // answer has begun: ask before answering, and let the connection see it.
        let mut asked = Box::pin(next_data(&mut body));
        first = futures_util::FutureExt::now_or_never(&mut asked);
        drop(asked);
        tokio::task::yield_now().await;
    }
    let reports = Reports::new(state.config.report_buffer_bytes, state.memory.charge());
    let lines = ReportLines(Arc::clone(&reports));
    let mut lines_in = Lines::new(state.config.max_line_bytes);
    let pump = Pump {
        state: Arc::clone(state),
        topic,
        batch: lines_in.push(Bytes::new()),
        lines: lines_in,
        is_ended: false,
        turn: None,
        acks,
        in_flight: VecDeque::new(),
        reports,
    };
    state.tasks.spawn(pump.run(body, first));
    let reports = stream::unfold(lines, async |mut lines| {
        let chunk = lines.next().await?;
        Some((Ok::<_, std::convert::Infallible>(chunk), lines))
    });
    let mut response = Response::new(Body::from_stream(reports));
    *response.status_mut() = match acks {
        Acks::All => StatusCode::OK,
        Acks::None => StatusCode::ACCEPTED,
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(NDJSON));
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Reads one body, appends its lines, queues their reports.
struct Pump {
    state: Arc<State>,
    topic: Arc<Topic>,
    /// The line that has not ended.
    lines: Lines,
    /// Lines that are not appended yet.
    batch: Batch,
    /// Whether nothing more comes.
    is_ended: bool,
    /// Held while a line is read that could not be charged.
    turn: Option<Turn>,
    acks: Acks,
    in_flight: VecDeque<Group>,
    reports: Arc<Reports>,
}

/// The turn to read a line past the budget.
struct Turn {
    ends: Instant,
    _permit: OwnedSemaphorePermit,
}

/// Lines that were read together and wait for their reports.
struct Group {
    lines: usize,
    /// Lines that were refused, by their position, ascending.
    refused: VecDeque<(usize, ApiError)>,
    /// What becomes of the other lines.
    fate: Fate,
    /// When its outcome counts as unknown, counted from when its records were queued.
    deadline: Instant,
}

/// What becomes of the lines that were not refused.
enum Fate {
    /// There are none.
    NoLines,
    /// Their append's outcome is reported.
    Awaited(Appending),
    /// Their append's outcome is of no interest.
    Queued,
}

/// What the body gave.
type Chunk = Result<Option<Bytes>, ApiError>;

impl Pump {
    async fn run(mut self, mut body: Body, first: Option<Chunk>) {
        let _open = self.state.metrics.streams.produce_streams_open.track();
        let stop = self.state.tasks.stop_token();
        if let Some(chunk) = first {
            self.take(chunk);
        }
        while !stop.is_cancelled() && !self.reports.is_abandoned() {
            let covered = self.reports.charge(self.held_bytes());
            let has_memory = covered == Covered::All;
            if has_memory {
                self.turn = None;
            }
            let has_places = self.in_flight.len() < GROUPS_IN_FLIGHT_MAX && self.reports.has_room();
            if self.batch.is_empty() {
                if self.is_ended {
                    break;
                }
            } else if has_places && covered != Covered::Less {
                self.append().await;
                if self.batch.is_empty() {
                    self.turn = None;
                }
                continue;
            }
            let reads = has_places && self.batch.is_empty() && (has_memory || self.turn.is_some());
            let wants_turn = covered == Covered::Reports
                && self.turn.is_none()
                && self.batch.is_empty()
                && self.lines.is_inside();
            let ends = self.patience(has_memory);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = report_oldest(&mut self.in_flight, &self.reports),
                    if !self.in_flight.is_empty() => {}
                next = next_data(&mut body), if reads => self.take(next),
                () = self.reports.wait_for(&self.state.memory), if !has_memory => {}
                turn = self.state.memory.turn(), if wants_turn => self.turn = turn.map(|permit| {
                    let ends = Instant::now() + self.state.config.request_timeout;
                    Turn { ends, _permit: permit }
                }),
                () = self.reports.changed() => {}
                () = tokio::time::sleep_until(ends) => {
                    self.give_up(has_memory);
                    break;
                }
            }
        }
        // What is not appended goes now, not after what is on its way.
        self.turn = None;
        self.lines = Lines::new(self.state.config.max_line_bytes);
        self.batch = self.lines.push(Bytes::new());
        self.reports.charge(self.held_bytes());
        while !self.in_flight.is_empty() {
            report_oldest(&mut self.in_flight, &self.reports).await;
        }
        self.reports.end();
    }

    /// Takes what the body gave.
    fn take(&mut self, chunk: Chunk) {
        match chunk {
            Ok(Some(bytes)) => self.batch = self.lines.push(bytes),
            Ok(None) => {
                self.batch = self.lines.end();
                self.is_ended = true;
            }
            // A body that breaks off has no last line: it is cut at an arbitrary place.
            Err(_) => self.is_ended = true,
        }
    }

    /// Returns how many bytes this holds besides the reports that wait.
    fn held_bytes(&self) -> usize {
        let lines: usize = self.in_flight.iter().map(|group| group.lines).sum();
        self.lines.kept_bytes() + self.batch.bytes() + lines * LINE_BYTES
    }

    /// Returns whether lines that were read, or begun, wait for memory.
    fn lacks_memory(&self, has_memory: bool) -> bool {
        !has_memory && (self.lines.is_inside() || !self.batch.is_empty())
    }

    /// Returns until when the stream may stand still.
    fn patience(&self, has_memory: bool) -> Instant {
        let idle_max = self.state.config.timers.produce_idle;
        if !self.lacks_memory(has_memory) {
            return Instant::now() + idle_max;
        }
        let ends = Instant::now() + self.state.config.request_timeout.min(idle_max);
        self.turn.as_ref().map_or(ends, |turn| ends.min(turn.ends))
    }

    /// Ends a stream that stands still. A line that was begun is reported, as every line is.
    fn give_up(&self, has_memory: bool) {
        let idle_max = self.state.config.timers.produce_idle;
        let error = if self.lacks_memory(has_memory) {
            UsedUp.into()
        } else {
            let detail = if self.lines.is_inside() && self.batch.is_empty() {
                format!("the rest of the line did not arrive within {idle_max:?}")
            } else {
                format!("there was no room for its report within {idle_max:?}")
            };
            ApiError::new(Code::RequestTimeout, detail)
        };
        let lines = self.batch.lines().count() + usize::from(self.lines.is_inside());
        self.reports.push(std::iter::repeat_n(Err(error), lines));
    }

    /// Appends the next lines of the batch.
    async fn append(&mut self) {
        let group = self.batch.split_off_group(GROUP_LINES_MAX, GROUP_BYTES_MAX);
        let (mut lines, mut refused) = (0, VecDeque::new());
        let mut records = Vec::new();
        for line in group.lines() {
            let record = match line {
                Line::Whole(line) => records_in::parse_line(line),
                Line::TooLong => Err(self.lines.too_long()),
            };
            match record {
                Ok(record) => records.push((lines, record)),
                Err(error) => refused.push_back((lines, error)),
            }
            lines += 1;
        }
        if lines == 0 {
            return;
        }
        let fate = self.submit(&mut refused, records).await;
        // Only now is the write on its way: the wait for room in full queues is not its time.
        let deadline = Instant::now() + self.state.config.request_timeout;
        self.in_flight.push_back(Group { lines, refused, fate, deadline });
    }

    /// Queues a group's records, once there is room, and returns what becomes of them; what the
    /// broker refuses joins the refused lines.
    async fn submit(
        &self,
        refused: &mut VecDeque<(usize, ApiError)>,
        records: Vec<(usize, ProduceRecord<'_>)>,
    ) -> Fate {
        let (mut positions, mut records): (Vec<_>, Vec<_>) = records.into_iter().unzip();
        let mut fate = Fate::NoLines;
        while !records.is_empty() {
            match self.state.broker.produce(&self.state.principal, &self.topic, &records) {
                Ok(appending) => {
                    fate = match self.acks {
                        Acks::All => Fate::Awaited(appending),
                        Acks::None => Fate::Queued,
                    };
                    break;
                }
                // Full queues slow the sender down.
                Err(ProduceError::Overloaded) => self.state.broker.wait_for_room(&self.topic).await,
                Err(ProduceError::Records(faults)) if !faults.is_empty() => {
                    let faulty: BTreeSet<_> = faults.iter().map(|fault| fault.index).collect();
                    for fault in &faults {
                        let position = positions.get(fault.index).copied().unwrap_or_default();
                        let one = std::slice::from_ref(fault);
                        let error = ApiError::of_records(one, |_| String::new());
                        refused.push_back((position, error));
                    }
                    let all = positions.into_iter().zip(records).enumerate();
                    (positions, records) = all
                        .filter(|(index, _)| !faulty.contains(index))
                        .map(|(_, record)| record)
                        .unzip();
                }
                Err(error) => {
                    let error = ApiError::from(error);
                    refused.extend(positions.iter().map(|position| (*position, error.clone())));
                    break;
                }
            }
        }
        refused.make_contiguous().sort_by_key(|(position, _)| *position);
        fate
    }
}

/// Waits for the oldest group's outcomes and queues its reports.
///
/// # Cancel safety
/// The group stays the oldest when the future is dropped.
async fn report_oldest(in_flight: &mut VecDeque<Group>, reports: &Reports) {
    let Some(group) = in_flight.front_mut() else {
        return;
    };
    let outcomes = match &mut group.fate {
        Fate::Awaited(appending) => tokio::time::timeout_at(group.deadline, appending).await.ok(),
        Fate::Queued | Fate::NoLines => None,
    };
    if let Some(Group { lines, refused, fate, .. }) = in_flight.pop_front() {
        match fate {
            Fate::Queued => {
                reports.push(merge(lines, refused, std::iter::repeat(Report::Queued).map(Ok)))
            }
            Fate::Awaited(_) | Fate::NoLines => {
                let outcomes = outcomes.iter().flat_map(Outcomes::iter);
                let written = outcomes.map(|outcome| outcome.map(Report::Written));
                reports.push(merge(lines, refused, written));
            }
        }
    }
}

/// Puts refused lines and outcomes back in the order of the lines. A line without an outcome is one
/// whose append took too long.
fn merge(
    lines: usize,
    mut refused: VecDeque<(usize, ApiError)>,
    mut outcomes: impl Iterator<Item = Result<Report, AppendError>>,
) -> impl Iterator<Item = Result<Report, ApiError>> {
    (0..lines).map(move |line| {
        if let Some((_, error)) = refused.pop_front_if(|(position, _)| *position == line) {
            return Err(error);
        }
        outcomes.next().unwrap_or(Err(AppendError::OutcomeUnknown)).map_err(ApiError::from)
    })
}
