//! A read that is answered at once, or after a wait: a page of JSON, or NDJSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::api::State;
use crate::api::cursor;
use crate::api::error::ApiError;
use crate::api::http::{NDJSON, json};
use crate::api::json::records_out::{Lines, Style, push_record};
use crate::api::memory::{Charge, UsedUp, mark_charged};
use crate::api::v1::plan::{self, Filter, Parameters, Positions};
use crate::broker::{Gap, GapReason, OnDamage, ReadEnd, ReadRequest, Topic, Visit};
use crate::record::Record;
use crate::types::{Offset, PartitionId};

/// Bytes of records that one filtered read looks at; the client goes on from the cursor.
const SCAN_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Bytes of a list in an answer's header, apart from the cursor, which is needed whole: clients and
/// proxies refuse an answer with a large head.
const HEADER_LIST_BYTES_MAX: usize = 8 * 1024;

/// Room that an answer starts with.
const BODY_BYTES_START: usize = 16 * 1024;

/// A page of records.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RecordPage)]
pub(crate) struct Page {
    /// The records; order holds within a partition.
    records: Vec<RecordBody>,
    /// The cursor to go on with, also on an empty page.
    next: String,
    /// Log end offset of each partition that is read.
    #[schema(example = json!({"0": 17}))]
    end_offsets: BTreeMap<String, i64>,
    /// Offsets that retention took before they were read, or that are damaged and were skipped.
    gaps: Option<Vec<GapBody>>,
}

/// A record.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Record)]
struct RecordBody {
    /// Its partition.
    partition: u32,
    /// Its offset.
    offset: i64,
    /// Milliseconds since the epoch.
    timestamp: i64,
    /// Null, a string, or `{"base64":"..."}` for bytes that are not UTF-8.
    #[schema(value_type = Object, nullable)]
    key: Value,
    /// The value by `format`; with `meta` there is `value_bytes` instead.
    #[schema(value_type = Object, nullable)]
    value: Value,
    /// `[["name", value], ...]`, values like keys.
    #[schema(value_type = Vec<Vec<Object>>)]
    headers: Value,
    /// `text` or `base64` when `value` is a string that stands for other bytes than its JSON.
    encoding: Option<String>,
}

/// Offsets that cannot be read any more.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Gap)]
struct GapBody {
    /// The partition.
    partition: u32,
    /// First missing offset.
    from: i64,
    /// Last missing offset.
    to: i64,
}

/// How records stand in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// A list in a JSON document.
    Page,
    /// One on a line.
    Lines,
}

/// How one read chooses and writes records.
#[derive(Debug)]
pub(super) struct Plan {
    /// Which records are wanted.
    pub(super) filter: Filter,
    /// How they are written.
    pub(super) style: Style,
    /// Whether a record ends its line, or is parted from the next by a comma.
    pub(super) shape: Shape,
    /// Most records.
    pub(super) limit: u32,
    /// Most bytes of records.
    pub(super) max_bytes: u64,
    /// What happens at a damaged range.
    pub(super) on_damage: OnDamage,
}

impl Plan {
    /// Plans reads for some parameters.
    pub(super) fn new(parameters: Parameters, shape: Shape, lines: Lines) -> Self {
        let Parameters { limit, max_bytes, format, filter, on_damage, .. } = parameters;
        let style = Style { format, lines };
        Self { filter, style, shape, limit, max_bytes, on_damage }
    }

    fn request(&self, positions: Positions) -> ReadRequest {
        let scan_bytes_max = if self.filter.is_empty() { u64::MAX } else { SCAN_BYTES_MAX };
        ReadRequest {
            positions,
            records_max: self.limit,
            bytes_max: self.max_bytes,
            scan_bytes_max,
            on_damage: self.on_damage,
        }
    }
}

/// What a read found.
#[derive(Debug)]
pub(super) struct Found {
    /// Whether it ended before a record for which there was no room.
    is_cut: bool,
    /// The body that was handed in, with the records behind what it held.
    pub(super) body: Vec<u8>,
    /// How many records there are.
    pub(super) records: u32,
    /// Where the read ended.
    pub(super) end: ReadEnd,
}

/// Reads once and appends the records to `body`, which has bounds of its own.
///
/// # Errors
/// Those of the broker.
pub(super) async fn read(
    state: &State,
    topic: &Arc<Topic>,
    plan: &Plan,
    positions: Positions,
    body: Vec<u8>,
) -> Result<Found, ApiError> {
    read_while(state, topic, plan, (positions, body), |_| true).await
}

/// Reads once and appends the records to `body`, for as long as what it holds `fits`.
async fn read_while(
    state: &State,
    topic: &Arc<Topic>,
    plan: &Plan,
    (positions, mut body): (Positions, Vec<u8>),
    mut fits: impl FnMut(usize) -> bool + Send,
) -> Result<Found, ApiError> {
    let (mut records, mut is_cut) = (0, false);
    let request = plan.request(positions);
    let mut visit = |partition: PartitionId, record: &Record<'_>| {
        if !plan.filter.matches(record) {
            return Visit::Skipped;
        }
        let before = body.len();
        if plan.shape == Shape::Page && records > 0 {
            body.push(b',');
        }
        push_record(&mut body, partition, record, plan.style);
        if plan.shape == Shape::Lines {
            body.push(b'\n');
        }
        if !fits(body.capacity()) {
            body.truncate(before);
            is_cut = true;
            return Visit::Stop;
        }
        records += 1;
        Visit::Taken
    };
    let end = state.broker.read(&state.principal, topic, &request, &mut visit).await?;
    if is_cut {
        // What is not charged is not held either.
        body.shrink_to_fit();
    }
    Ok(Found { is_cut, body, records, end })
}

/// Answers a read. What its answer holds is charged while it grows; when nothing is left it ends
/// with the records that it has, and the client goes on from there.
pub(super) async fn answer(
    state: Arc<State>,
    topic: Arc<Topic>,
    parameters: Parameters,
    shape: Shape,
) -> Result<Response, ApiError> {
    let deadline = Instant::now() + parameters.wait;
    let waits = !parameters.wait.is_zero();
    let positions = plan::positions(&state, &topic, &parameters).await?;
    let lines = if shape == Shape::Lines { Lines::One } else { Lines::Any };
    let plan = Plan::new(parameters, shape, lines);
    let mut body = Vec::with_capacity(BODY_BYTES_START);
    if shape == Shape::Page {
        body.extend_from_slice(b"{\"records\":[");
    }
    let mut charge = state.memory.charge_page();
    let mut fits = |bytes: usize| charge.cover(bytes).is_ok();
    let mut found = read_while(&state, &topic, &plan, (positions, body), &mut fits).await?;
    while waits
        && found.records == 0
        && !found.is_cut
        && wait_for_more(&state, &topic, &found.end, deadline).await?
    {
        let gaps = std::mem::take(&mut found.end.gaps);
        let from = (found.end.next, found.body);
        found = read_while(&state, &topic, &plan, from, &mut fits).await?;
        found.end.gaps.splice(..0, gaps);
    }
    if found.is_cut && found.records == 0 {
        return Err(UsedUp.into());
    }
    let next = cursor::encode(topic.summary().id, &found.end.next);
    match shape {
        Shape::Page => Ok(page(found, charge, &next)),
        Shape::Lines => Ok(lines_of(found, charge, &next)),
    }
}

/// Waits until another read may find something; `false` when time is up or the server stops.
///
/// # Errors
/// Those of the broker.
async fn wait_for_more(
    state: &State,
    topic: &Arc<Topic>,
    end: &ReadEnd,
    deadline: Instant,
) -> Result<bool, ApiError> {
    let _counted = state.metrics.streams.long_polls_waiting.track();
    let stop = state.tasks.stop_token();
    let waiting = state.broker.wait_for_records(&state.principal, topic, &end.next);
    tokio::select! {
        biased;
        () = stop.cancelled() => Ok(false),
        () = tokio::time::sleep_until(deadline) => Ok(false),
        woken = waiting => {
            woken?;
            // A scan that goes on through what is there lets other requests have the thread.
            tokio::task::yield_now().await;
            Ok(true)
        }
    }
}

fn page(found: Found, charge: Charge, next: &str) -> Response {
    let Found { mut body, end, .. } = found;
    body.extend_from_slice(b"],\"next\":\"");
    body.extend_from_slice(next.as_bytes());
    body.extend_from_slice(b"\",\"end_offsets\":{");
    let mut number = itoa::Buffer::new();
    for (index, (partition, offset)) in end.end_offsets.iter().enumerate() {
        body.extend_from_slice(if index == 0 { b"\"" } else { b",\"" });
        body.extend_from_slice(number.format(partition.get()).as_bytes());
        body.extend_from_slice(b"\":");
        body.extend_from_slice(number.format(offset.get()).as_bytes());
    }
    body.push(b'}');
    if !end.gaps.is_empty() {
        body.extend_from_slice(b",\"gaps\":[");
        for (index, gap) in end.gaps.iter().enumerate() {
            if index > 0 {
                body.push(b',');
            }
            push_gap(&mut body, gap, WithReason::No);
        }
        body.push(b']');
    }
    body.push(b'}');
    let mut response = json(StatusCode::OK, charge.hold(body));
    mark_charged(&mut response);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Whether a gap is written with its reason: events tell it, pages do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WithReason {
    /// It is.
    Yes,
    /// It is not.
    No,
}

/// Appends a gap as a JSON object.
pub(super) fn push_gap(out: &mut Vec<u8>, gap: &Gap, with_reason: WithReason) {
    let mut number = itoa::Buffer::new();
    out.extend_from_slice(b"{\"partition\":");
    out.extend_from_slice(number.format(gap.partition.get()).as_bytes());
    out.extend_from_slice(b",\"from\":");
    out.extend_from_slice(number.format(gap.from.get()).as_bytes());
    out.extend_from_slice(b",\"to\":");
    out.extend_from_slice(number.format(gap.to.get()).as_bytes());
    if with_reason == WithReason::Yes {
        let reason: &[u8] = match gap.reason {
            GapReason::Retention => b",\"reason\":\"retention\"",
            GapReason::Damaged => b",\"reason\":\"damaged\"",
        };
        out.extend_from_slice(reason);
    }
    out.push(b'}');
}

fn lines_of(found: Found, charge: Charge, next: &str) -> Response {
    let mut response = Response::new(Body::from(charge.hold(found.body)));
    mark_charged(&mut response);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(NDJSON));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let mut insert = |name: &'static str, text: &str| {
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.insert(name, value);
        }
    };
    insert("eddyline-next", next);
    // Whoever needs it of so many partitions reads a page, or asks for the topic.
    if let Some(end) = offsets_text(&found.end.end_offsets) {
        insert("eddyline-end", &end);
    }
    if !found.end.gaps.is_empty() {
        insert("eddyline-gaps", &gaps_text(&found.end.gaps));
    }
    response
}

/// Writes offsets as `0:17,1:5`, `None` when that is too long for a header.
fn offsets_text(offsets: &[(PartitionId, Offset)]) -> Option<String> {
    let mut text = String::new();
    for (partition, offset) in offsets {
        let comma = if text.is_empty() { "" } else { "," };
        // Writing to a string does not fail.
        let _ = write!(text, "{comma}{partition}:{offset}");
        if text.len() > HEADER_LIST_BYTES_MAX {
            return None;
        }
    }
    Some(text)
}

/// Writes gaps as `0:5-9,2:0-3`; what is too long for a header ends in `,...`.
fn gaps_text(gaps: &[Gap]) -> String {
    let mut text = String::new();
    for Gap { partition, from, to, .. } in gaps {
        let comma = if text.is_empty() { "" } else { "," };
        if text.len() > HEADER_LIST_BYTES_MAX {
            text.push_str(",...");
            break;
        }
        let _ = write!(text, "{comma}{partition}:{from}-{to}");
    }
    text
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::api::memory::Memory;

    fn found(body: &[u8]) -> Found {
        let at = |p, o| (PartitionId::new(p).unwrap(), Offset::new(o).unwrap());
        let (from, to, reason) = (at(0, 5).1, at(0, 9).1, GapReason::Retention);
        let gap = Gap { partition: at(1, 0).0, from, to, reason };
        let end = ReadEnd {
            next: vec![at(0, 17), at(1, 10)],
            end_offsets: vec![at(0, 17), at(1, 15)],
            gaps: vec![gap],
        };
        Found { is_cut: false, body: body.to_vec(), records: 1, end }
    }

    fn no_charge() -> Charge {
        Memory::new(0).charge()
    }

    #[tokio::test]
    async fn a_page_is_one_json_document() {
        let response = page(found(b"{\"records\":[{\"offset\":16}"), no_charge(), "AQ");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(
            std::str::from_utf8(&body).unwrap(),
            "{\"records\":[{\"offset\":16}],\"next\":\"AQ\",\"end_offsets\":{\"0\":17,\"1\":15},\
             \"gaps\":[{\"partition\":1,\"from\":5,\"to\":9}]}"
        );
    }

    #[tokio::test]
    async fn lines_have_their_cursor_in_a_header() {
        let response = lines_of(found(b"{\"offset\":16}\n"), no_charge(), "AQ");
        assert_eq!(response.headers()["content-type"], NDJSON);
        assert_eq!(response.headers()["eddyline-next"], "AQ");
        assert_eq!(response.headers()["eddyline-end"], "0:17,1:15");
        assert_eq!(response.headers()["eddyline-gaps"], "1:5-9");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "{\"offset\":16}\n");
    }

    #[tokio::test]
    async fn the_lists_of_very_many_partitions_stay_out_of_the_head() {
        let mut many = found(b"");
        let at = |p: u32| (PartitionId::new(p).unwrap(), Offset::new(123_456_789).unwrap());
        many.end.end_offsets = (0..10_000).map(at).collect();
        many.end.gaps = vec![many.end.gaps[0]; 10_000];
        let response = lines_of(many, no_charge(), "AQ");
        assert_eq!(response.headers()["eddyline-next"], "AQ");
        assert!(!response.headers().contains_key("eddyline-end"));
        let gaps = response.headers()["eddyline-gaps"].to_str().unwrap();
        assert!(gaps.starts_with("1:5-9,1:5-9") && gaps.ends_with("1:5-9,..."), "{gaps}");
        assert!(gaps.len() < HEADER_LIST_BYTES_MAX + 100);
    }
}
