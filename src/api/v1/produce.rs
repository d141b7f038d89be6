//! Produce: JSON bodies and raw records. NDJSON goes to [`stream`].
//!
//! [`stream`]: crate::api::v1::stream

use std::borrow::Cow;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::State;
use crate::api::error::{ApiError, Caller, Code, Fault, Problem};
use crate::api::http::{
    FORM, JSON, MediaType, NDJSON, bad_parameter, expect_identity, json, negotiate, query,
    read_body, repeated_parameter, topic_to_write, unknown_parameter,
};
use crate::api::json::records_in::{self, Form};
use crate::api::memory::Charge;
use crate::api::v1::{name_to_write, stream};
use crate::broker::{Acknowledged, AppendError, Appending, NewHeader, ProduceError, ProduceRecord};
use crate::types::{PartitionId, Timestamp};

/// Bytes that one outcome takes in an answer, roughly.
const OUTCOME_BYTES: usize = 72;

/// Repeatable request header that becomes a header of a raw record: `name=value`.
const RECORD_HEADER: &str = "eddyline-header";

/// The record header that keeps a raw record's content type.
const CONTENT_TYPE_HEADER: &str = "content-type";

/// A record to be written: the body of a produce request, or a part of it.
#[derive(Debug, ToSchema)]
#[schema(as = NewRecord)]
#[expect(dead_code, reason = "describes the body for the document; it is read by hand for speed")]
pub(crate) struct RecordIn {
    /// Null, a string, or `{"base64":"..."}`.
    #[schema(value_type = Object, nullable, example = "user123")]
    key: Option<String>,
    /// Any JSON, stored byte for byte; null is a tombstone. With `encoding`, a string.
    #[schema(value_type = Object, nullable)]
    value: Option<String>,
    /// `[["name", null | "text" | {"base64":"..."}], ...]`.
    #[schema(value_type = Option<Vec<Vec<Object>>>)]
    headers: Option<Vec<Vec<String>>>,
    /// Absent: by the key's murmur2 hash, or sticky without a key.
    partition: Option<u32>,
    /// Milliseconds since the epoch; absent: the server's clock.
    timestamp: Option<i64>,
    /// `text`: the string's UTF-8 is stored; `base64`: the decoded bytes.
    #[schema(value_type = Option<String>)]
    encoding: Option<String>,
}

/// Where each record was written, in the request's order.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Produced)]
pub(crate) struct ProducedBody {
    /// One entry per record.
    records: Vec<OutcomeBody>,
}

/// Where a record was written, or `error` alone.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Outcome)]
struct OutcomeBody {
    /// Its partition.
    partition: Option<u32>,
    /// Its offset.
    offset: Option<i64>,
    /// Its timestamp, as readers see it.
    timestamp: Option<i64>,
    /// Why it was not written.
    #[schema(value_type = Option<Object>)]
    error: Option<String>,
}

/// What a produce request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Acks {
    /// The records are stored on a majority.
    All,
    /// The records are checked and queued.
    None,
}

/// Writes records.
///
/// `application/json`: one record, an array, or `{"records":[...]}`. `application/x-ndjson`: a
/// stream of records with one report a line, in order, while the request is open. Any other type:
/// the body is one record's value.
#[utoipa::path(
    post,
    path = "/v1/topics/{topic}/records",
    operation_id = "produceRecords",
    tag = "records",
    params(
        ("topic" = String, Path, description = "The topic's name"),
        ("Eddyline-Header" = Option<String>, Header, description = "Raw records: a header of the \
            record, `name=value`; repeatable"),
        ProduceParameters,
    ),
    request_body(content(
        (RecordIn = "application/json"),
        (String = "application/x-ndjson"),
        (Vec<u8> = "application/octet-stream"),
    )),
    responses(
        (status = 200, description = "All were written; NDJSON: the reports follow, until the body \
            ends or nothing is sent and no report taken for 5 minutes",
            body = ProducedBody),
        (status = 202, description = "With acks=0: checked, and queued; NDJSON: the status comes \
            at once, and each line is reported as `{}` when that is so"),
        (status = 207, description = "Some were written", body = ProducedBody),
        (status = 400, description = "Malformed", body = Problem,
            content_type = "application/problem+json"),
        (status = 404, description = "No such topic or partition", body = Problem,
            content_type = "application/problem+json"),
        (status = 406, description = "No such answer", body = Problem,
            content_type = "application/problem+json"),
        (status = 408, description = "The body came too slowly", body = Problem,
            content_type = "application/problem+json"),
        (status = 413, description = "Too large", body = Problem,
            content_type = "application/problem+json"),
        (status = 415, description = "No such charset", body = Problem,
            content_type = "application/problem+json"),
        (status = 422, description = "Wrong shape, or no name for a topic", body = Problem,
            content_type = "application/problem+json"),
        (status = 503, description = "Not written; `overloaded` when queues are full, or \
            the requests that are open hold `http.memory_bytes`", body = Problem,
            content_type = "application/problem+json"),
        (status = 504, description = "It is not known what was written", body = Problem,
            content_type = "application/problem+json"),
        (status = 507, description = "Not written: the disk is full", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn produce(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    expect_identity(&parts.headers)?;
    match BodyKind::of(&parts.headers)? {
        BodyKind::Json => whole(&state, &parts, body).await,
        // Boxed, so that the future of the usual kind stays small.
        BodyKind::Raw => Box::pin(raw(&state, &parts, body)).await,
        BodyKind::Ndjson => Box::pin(lines(&state, &parts, body)).await,
    }
}

async fn lines(state: &Arc<State>, parts: &Parts, body: Body) -> Result<Response, ApiError> {
    negotiate(&parts.headers, &[NDJSON])?;
    let acks = acks_alone(parts)?;
    let name = name_to_write(parts)?;
    let topic = topic_to_write(state, &name, None, &[]).await?;
    let awaits_continue = parts.headers.contains_key(header::EXPECT);
    Ok(stream::answer(state, topic, body, (acks, awaits_continue)).await)
}

/// What a body is, by its `Content-Type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyKind {
    Json,
    Ndjson,
    Raw,
}

impl BodyKind {
    fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let Some(given) = headers.get(header::CONTENT_TYPE).and_then(|text| text.to_str().ok())
        else {
            return Ok(Self::Raw);
        };
        let media_type = MediaType::parse(given);
        let kind = if media_type.is(JSON) || media_type.is(FORM) {
            Self::Json
        } else if media_type.is(NDJSON) {
            Self::Ndjson
        } else {
            return Ok(Self::Raw);
        };
        media_type.expect_utf8()?;
        Ok(kind)
    }
}

#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the parameters for the document")]
struct ProduceParameters {
    /// `all` (also `1`, `-1`), or `0`: answer 202 before the write.
    #[param(default = "all", required = false)]
    acks: String,
    /// Raw records: the key.
    key: Option<String>,
    /// Raw records: the partition.
    partition: Option<u32>,
    /// Raw records: the timestamp, milliseconds since the epoch.
    timestamp: Option<i64>,
}

fn parse_acks(value: &str) -> Result<Acks, ApiError> {
    match value {
        "all" | "1" | "-1" => Ok(Acks::All),
        "0" => Ok(Acks::None),
        _ => Err(bad_parameter("acks", value, "all, 1, -1 or 0")),
    }
}

/// Reads the query of a body whose records say everything else.
fn acks_alone(parts: &Parts) -> Result<Acks, ApiError> {
    let mut acks = None;
    for (name, value) in query(&parts.uri)? {
        match &*name {
            "acks" if acks.is_none() => acks = Some(parse_acks(&value)?),
            "acks" => return Err(repeated_parameter("acks")),
            _ => return Err(unknown_parameter(&name)),
        }
    }
    Ok(acks.unwrap_or(Acks::All))
}

async fn whole(state: &Arc<State>, parts: &Parts, body: Body) -> Result<Response, ApiError> {
    let acks = acks_alone(parts)?;
    negotiate(&parts.headers, &[JSON])?;
    let bytes = read_body(state, body).await?;
    let queued = {
        let body = records_in::parse_body(&bytes, state.config.max_records)?;
        queue(state, parts, body).await?
    };
    // Its records are encoded: the body need not be held until they are written.
    drop(bytes);
    queued.answer(state, parts, acks).await
}

async fn raw(state: &Arc<State>, parts: &Parts, body: Body) -> Result<Response, ApiError> {
    negotiate(&parts.headers, &[JSON])?;
    let query = RawQuery::parse(&parts.uri)?;
    let headers = parts.headers.clone();
    let value = read_body(state, body).await?;
    let record = ProduceRecord {
        partition: query.partition,
        timestamp: query.timestamp,
        key: query.key.map(|key| Cow::Owned(key.into_bytes())),
        value: Some(Cow::Borrowed(&value)),
        headers: raw_headers(&headers)?,
    };
    let body = records_in::Body { form: Form::One, records: vec![record] };
    let queued = queue(state, parts, body).await?;
    drop(value);
    queued.answer(state, parts, query.acks).await
}

/// Records that are queued.
struct Queued {
    appending: Appending,
    /// For what the answer will hold, unless that is little.
    charge: Option<Charge>,
}

/// Queues the records, and charges what the answer will hold.
async fn queue(
    state: &Arc<State>,
    parts: &Parts,
    body: records_in::Body<'_>,
) -> Result<Queued, ApiError> {
    let records_in::Body { form, records } = body;
    let charge = state.memory.charge_for(answer_bytes(records.len()))?;
    let name = name_to_write(parts)?;
    let highest = records.iter().filter_map(|record| record.partition).max();
    let appending = topic_to_write(state, &name, highest.map(PartitionId::get), &records)
        .await
        .and_then(|topic| state.broker.produce(&state.principal, &topic, &records))
        .map_err(|error| refused(error, form, &records))?;
    Ok(Queued { appending, charge })
}

impl Queued {
    /// Waits for the outcomes and answers.
    async fn answer(
        self,
        state: &Arc<State>,
        parts: &Parts,
        acks: Acks,
    ) -> Result<Response, ApiError> {
        if acks == Acks::None {
            return Ok(json(StatusCode::ACCEPTED, b"{}".to_vec()));
        }
        match tokio::time::timeout(state.config.request_timeout, self.appending).await {
            Ok(outcomes) => {
                Ok(answer(outcomes.iter(), self.charge, &Caller::native(&parts.headers)))
            }
            Err(_) => Err(AppendError::OutcomeUnknown.into()),
        }
    }
}

/// Returns how many bytes the outcomes of some records take in an answer, roughly.
fn answer_bytes(records: usize) -> usize {
    records.saturating_mul(OUTCOME_BYTES).saturating_add(16)
}

/// Translates the refusal of a whole request, with pointers to the records that cause it.
pub(crate) fn refused(error: ProduceError, form: Form, records: &[ProduceRecord<'_>]) -> ApiError {
    match error {
        ProduceError::Records(faults) => ApiError::of_records(&faults, |index| form.pointer(index)),
        ProduceError::PartitionNotFound { partition, .. } => {
            let detail = error.to_string();
            let names_it = |record: &ProduceRecord<'_>| {
                record.partition.map(PartitionId::get) == Some(partition)
            };
            let faults = records.iter().enumerate().filter(|(_, record)| names_it(record));
            let faults = faults.map(|(index, _)| Fault {
                pointer: form.pointer(index) + "/partition",
                detail: detail.clone(),
            });
            ApiError::new(Code::PartitionNotFound, detail.clone()).with_faults(faults)
        }
        ProduceError::Topic(_)
        | ProduceError::Overloaded
        | ProduceError::StorageFull
        | ProduceError::Unavailable(_) => error.into(),
    }
}

/// Answers 200 when all records were written, 207 when some were, else with the first error.
fn answer(
    outcomes: impl ExactSizeIterator<Item = Result<Acknowledged, AppendError>>,
    charge: Option<Charge>,
    caller: &Caller,
) -> Response {
    let mut body = Vec::with_capacity(answer_bytes(outcomes.len()));
    let mut writer = AcknowledgedWriter::default();
    body.extend_from_slice(b"{\"records\":[");
    let list_start = body.len() - 1;
    let mut first_error = None;
    let mut written = 0_usize;
    for (index, outcome) in outcomes.enumerate() {
        if index > 0 {
            body.push(b',');
        }
        match outcome {
            Ok(acknowledged) => {
                written += 1;
                writer.push(&mut body, &acknowledged);
            }
            Err(error) => {
                first_error = first_error.or(Some(error));
                push_error(&mut body, &error.into());
            }
        }
    }
    body.push(b']');
    match first_error {
        Some(error) if written == 0 => {
            ApiError::from(error).respond_with(caller, body.get(list_start..))
        }
        error => {
            body.push(b'}');
            let all = error.is_none();
            let status = if all { StatusCode::OK } else { StatusCode::MULTI_STATUS };
            match charge {
                Some(charge) => charge.hold_answer(json(status, body)),
                None => json(status, body),
            }
        }
    }
}

/// Writes where records were written, as JSON. Records of a request nearly always have the same
/// timestamp, whose text is kept.
#[derive(Debug, Default)]
pub(crate) struct AcknowledgedWriter {
    timestamp: Timestamp,
    /// What follows the offset.
    tail: Vec<u8>,
}

impl AcknowledgedWriter {
    pub(crate) fn push(&mut self, out: &mut Vec<u8>, acknowledged: &Acknowledged) {
        let mut number = itoa::Buffer::new();
        if self.tail.is_empty() || self.timestamp != acknowledged.timestamp {
            self.timestamp = acknowledged.timestamp;
            self.tail.clear();
            self.tail.extend_from_slice(b",\"timestamp\":");
            let timestamp = number.format(acknowledged.timestamp.as_millis());
            self.tail.extend_from_slice(timestamp.as_bytes());
            self.tail.push(b'}');
        }
        out.extend_from_slice(b"{\"partition\":");
        out.extend_from_slice(number.format(acknowledged.partition.get()).as_bytes());
        out.extend_from_slice(b",\"offset\":");
        out.extend_from_slice(number.format(acknowledged.offset.get()).as_bytes());
        out.extend_from_slice(&self.tail);
    }
}

/// Appends why a record was not written, as JSON.
pub(crate) fn push_error(out: &mut Vec<u8>, error: &ApiError) {
    out.extend_from_slice(b"{\"error\":");
    let written = serde_json::to_writer(&mut *out, &error.problem(None));
    debug_assert!(written.is_ok(), "a problem is plain data");
    out.push(b'}');
}

/// The query of a raw record.
#[derive(Debug, PartialEq)]
struct RawQuery {
    acks: Acks,
    key: Option<String>,
    partition: Option<PartitionId>,
    timestamp: Option<Timestamp>,
}

impl RawQuery {
    fn parse(uri: &Uri) -> Result<Self, ApiError> {
        let mut acks = None;
        let mut parsed = Self { acks: Acks::All, key: None, partition: None, timestamp: None };
        for (name, value) in query(uri)? {
            let first = match &*name {
                "acks" => acks.replace(parse_acks(&value)?).is_none(),
                "key" => parsed.key.replace(value.into_owned()).is_none(),
                "partition" => {
                    let refuse =
                        || bad_parameter("partition", &value, "a number from 0 to 2147483647");
                    let number = value.parse().ok().and_then(PartitionId::new);
                    parsed.partition.replace(number.ok_or_else(refuse)?).is_none()
                }
                "timestamp" => {
                    let refuse =
                        || bad_parameter("timestamp", &value, "milliseconds since the epoch");
                    let number = value.parse().map(Timestamp::from_millis);
                    parsed.timestamp.replace(number.map_err(|_| refuse())?).is_none()
                }
                _ => return Err(unknown_parameter(&name)),
            };
            if !first {
                return Err(repeated_parameter(&name));
            }
        }
        parsed.acks = acks.unwrap_or(Acks::All);
        Ok(parsed)
    }
}

/// Makes a raw record's headers: the request's content type, then what it lists.
fn raw_headers(headers: &HeaderMap) -> Result<Vec<NewHeader<'_>>, ApiError> {
    let mut made = Vec::new();
    if let Some(content_type) = headers.get(header::CONTENT_TYPE) {
        made.push(NewHeader {
            name: CONTENT_TYPE_HEADER.into(),
            value: Some(Cow::Borrowed(content_type.as_bytes())),
        });
    }
    for listed in headers.get_all(RECORD_HEADER) {
        let bytes = listed.as_bytes();
        let split = memchr::memchr(b'=', bytes).and_then(|at| bytes.split_at_checked(at));
        let header = split.and_then(|(name, value)| {
            let name = std::str::from_utf8(name).ok()?.into();
            Some(NewHeader { name, value: value.get(1..).map(Cow::Borrowed) })
        });
        made.push(header.ok_or_else(|| {
            ApiError::invalid_request("the header Eddyline-Header must be name=value")
        })?);
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use http_body_util::BodyExt;

    use super::*;
    use crate::types::Offset;

    #[test]
    fn the_content_type_decides_what_a_body_is() {
        let kind = |text: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            if let Some(text) = text {
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(text));
            }
            BodyKind::of(&headers)
        };
        assert_eq!(kind(Some("application/json")).unwrap(), BodyKind::Json);
        assert_eq!(kind(Some("Application/JSON; charset=utf-8")).unwrap(), BodyKind::Json);
        assert_eq!(kind(Some("application/x-www-form-urlencoded")).unwrap(), BodyKind::Json);
        assert_eq!(kind(Some("application/x-ndjson")).unwrap(), BodyKind::Ndjson);
        assert_eq!(kind(Some("image/png")).unwrap(), BodyKind::Raw);
        assert_eq!(kind(Some("application/problem+json")).unwrap(), BodyKind::Raw);
        assert_eq!(kind(Some("text/plain; charset=latin1")).unwrap(), BodyKind::Raw);
        assert_eq!(kind(None).unwrap(), BodyKind::Raw);
        for text in ["application/json; charset=latin1", "application/x-ndjson;charset=utf-16"] {
            assert_eq!(kind(Some(text)).unwrap_err().code(), Code::UnsupportedMediaType);
        }
    }

    #[test]
    fn a_raw_record_is_described_by_its_query() {
        let parse = |query: &str| RawQuery::parse(&format!("/r{query}").parse().unwrap());
        assert_eq!(
            parse("?key=a%20b&partition=2&timestamp=-1&acks=0").unwrap(),
            RawQuery {
                acks: Acks::None,
                key: Some("a b".to_owned()),
                partition: PartitionId::new(2),
                timestamp: Some(Timestamp::from_millis(-1)),
            }
        );
        assert_eq!(parse("?acks=-1").unwrap().acks, Acks::All);
        for bad in [
            "?partition=-1",
            "?partition=2147483648",
            "?timestamp=now",
            "?acks=2",
            "?acks=",
            "?keys=x",
            "?key=a&key=b",
        ] {
            assert_eq!(parse(bad).unwrap_err().code(), Code::InvalidRequest, "{bad}");
        }
    }

    #[test]
    fn a_raw_record_keeps_its_content_type_and_listed_headers() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("image/png"));
        headers.append(RECORD_HEADER, HeaderValue::from_static("a=b=c"));
        headers.append(RECORD_HEADER, HeaderValue::from_bytes(b"a=\xff").unwrap());
        let made = raw_headers(&headers).unwrap();
        let pairs: Vec<_> =
            made.iter().map(|header| (&*header.name, header.value.as_deref().unwrap())).collect();
        assert_eq!(
            pairs,
            [
                ("content-type", b"image/png".as_slice()),
                ("a", b"b=c".as_slice()),
                ("a", b"\xff".as_slice())
            ]
        );
        headers.append(RECORD_HEADER, HeaderValue::from_static("nothing"));
        assert_eq!(raw_headers(&headers).unwrap_err().code(), Code::InvalidRequest);
    }

    #[tokio::test]
    async fn the_status_tells_whether_all_some_or_none_were_written() {
        let (partition, offset) = (PartitionId::ZERO, Offset::ZERO);
        let written = Ok(Acknowledged { partition, offset, timestamp: Timestamp::from_millis(5) });
        let unknown = Err(AppendError::OutcomeUnknown);
        for (outcomes, status) in [
            (vec![written, written], 200),
            (vec![unknown, written], 207),
            (vec![Err(AppendError::Unavailable), unknown], 503),
            (vec![unknown, Err(AppendError::Unavailable)], 504),
            (vec![Err(AppendError::Deleted)], 404),
        ] {
            let response =
                answer(outcomes.iter().copied(), None, &Caller::native(&HeaderMap::new()));
            assert_eq!(response.status(), status, "{outcomes:?}");
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body.get("code").is_some(), status > 207, "{body}");
            let records = body["records"].as_array().unwrap();
            assert_eq!(records.len(), outcomes.len());
            for (record, outcome) in records.iter().zip(&outcomes) {
                let error = record.get("error");
                assert_eq!(error.is_some(), outcome.is_err(), "{body}");
                let unknown = outcome.is_err_and(AppendError::may_have_applied);
                assert!(error.is_none_or(|error| error["may_have_applied"] == unknown), "{body}");
            }
        }
    }

    #[test]
    fn outcomes_are_written_compactly() {
        let mut out = Vec::new();
        let mut writer = AcknowledgedWriter::default();
        for (partition, offset, timestamp) in [(0, 0, 5), (7, 10, 5), (0, 1, -1), (0, 2, 5)] {
            let acknowledged = Acknowledged {
                partition: PartitionId::new(partition).unwrap(),
                offset: Offset::new(offset).unwrap(),
                timestamp: Timestamp::from_millis(timestamp),
            };
            writer.push(&mut out, &acknowledged);
        }
        let expected = concat!(
            r#"{"partition":0,"offset":0,"timestamp":5}"#,
            r#"{"partition":7,"offset":10,"timestamp":5}"#,
            r#"{"partition":0,"offset":1,"timestamp":-1}"#,
            r#"{"partition":0,"offset":2,"timestamp":5}"#,
        );
        assert_eq!(String::from_utf8_lossy(&out), expected);
        out.clear();
        push_error(&mut out, &AppendError::Overloaded.into());
        let error: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(error["error"]["code"], "overloaded");
        assert_eq!(error["error"]["error_code"], 50303);
    }
}
