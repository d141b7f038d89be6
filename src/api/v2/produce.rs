//! Produce: parse, queue, wait, answer one outcome per record.
//!
//! Once the records are queued the status is 200 and each record has its own code, as Confluent's
//! proxy does, since clients look there; so has each record of a request that the node cannot take
//! now. `Prefer: handling=strict` gives an honest status instead.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::State;
use crate::api::error::{ApiError, Code, Fault};
use crate::api::http::{expect_identity, read_body, topic_to_write};
use crate::api::v2::{
    answer_type, json, partition_not_found, partition_of, topic_not_found, topic_of,
};
use crate::api::v2::{body, media};
use crate::broker::{Acknowledged, AppendError, ProduceError, Topic, TopicError};
use crate::types::PartitionId;

const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
const STRICT: &str = "handling=strict";

/// Per-record code of a failure that may pass: the client may send the record again.
const RETRIABLE: &str = "50003";
/// Per-record code of any other failure.
const NOT_RETRIABLE: &str = "50002";

/// Bytes of the answer for one record, about.
const OUTCOME_BYTES: usize = 72;

/// Records to write.
#[derive(ToSchema)]
#[schema(as = V2ProduceBody)]
#[expect(dead_code, reason = "describes the body to clients; `body` reads it without a struct")]
pub(super) struct ProduceBody {
    /// At least one record.
    records: Vec<ProduceItem>,
    /// Accepted and ignored outside of the schema formats.
    key_schema: Option<String>,
    /// Accepted and ignored outside of the schema formats.
    key_schema_id: Option<i64>,
    /// Accepted and ignored outside of the schema formats.
    value_schema: Option<String>,
    /// Accepted and ignored outside of the schema formats.
    value_schema_id: Option<i64>,
}

/// A record to write.
#[derive(ToSchema)]
#[schema(as = V2ProduceRecord)]
#[expect(dead_code, reason = "describes the body to clients; `body` reads it without a struct")]
struct ProduceItem {
    /// Base64 (binary), any JSON (json) or a string (text); null or absent is the null key.
    key: Option<serde_json::Value>,
    /// As the key; null or absent is a tombstone.
    value: Option<serde_json::Value>,
    /// Where to write it; by the key's hash when absent.
    partition: Option<u32>,
    /// Milliseconds since the epoch; the server's clock when absent.
    timestamp: Option<i64>,
    /// Its headers.
    headers: Option<Vec<ProduceHeader>>,
}

/// A header of a record to write.
#[derive(ToSchema)]
#[schema(as = V2Header)]
#[expect(dead_code, reason = "describes the body to clients; `body` reads it without a struct")]
struct ProduceHeader {
    /// Its name.
    key: String,
    /// Base64, or null.
    value: Option<String>,
}

/// What became of the records.
#[derive(Serialize, ToSchema)]
#[schema(as = V2ProduceResult)]
pub(super) struct ProduceResult {
    /// One entry per record, in the request's order.
    offsets: Vec<ProduceOutcome>,
    /// Always null.
    key_schema_id: Option<i64>,
    /// Always null.
    value_schema_id: Option<i64>,
}

/// What became of one record.
#[derive(Serialize, ToSchema)]
#[schema(as = V2ProduceOutcome)]
struct ProduceOutcome {
    /// Its partition, null when it failed.
    partition: Option<u32>,
    /// Its offset, null when it failed.
    offset: Option<i64>,
    /// 50003: it may be sent again; 50002: it may not; null: it was written.
    error_code: Option<u32>,
    /// Why it failed.
    error: Option<String>,
}

/// Writes records to a topic.
#[utoipa::path(post, path = "/topics/{topic}", operation_id = "v2Produce", tag = "v2",
    params(
        ("topic" = String, Path, description = "The topic's name"),
        ("prefer" = Option<String>, Header,
            description = "`handling=strict`: the status tells of failed records")),
    request_body(content(
        (ProduceBody = "application/vnd.kafka.json.v2+json"),
        (ProduceBody = "application/vnd.kafka.binary.v2+json"),
        (ProduceBody = "application/vnd.kafka.text.v2+json"),
        (ProduceBody = "application/json"))),
    responses(
        (status = 200, description = "The outcome of each record", body = ProduceResult,
            content_type = "application/vnd.kafka.v2+json"),
        (status = 207, description = "Some records failed, with `Prefer: handling=strict`",
            body = ProduceResult, content_type = "application/vnd.kafka.v2+json"),
        (status = "4XX", description = "Refused, nothing was written: 400, 404 40401 or 40402, \
            406, 408 40801, 413, 415, 422, 42201, 42202, 42206",
            body = crate::api::v2::ErrorBody, content_type = "application/vnd.kafka.v2+json"),
        (status = "5XX", description = "No record was written, or it is not known, with \
            `Prefer: handling=strict`: 503, 504, 507",
            body = ProduceResult, content_type = "application/vnd.kafka.v2+json")))]
pub(super) async fn to_topic(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let topic = topic_of(&parts)?;
    produce(&state, Target { topic: &topic, partition: None }, &parts.headers, body).await
}

/// Writes records to a partition; a record's own `partition` goes first.
#[utoipa::path(post, path = "/topics/{topic}/partitions/{partition}",
    operation_id = "v2ProduceToPartition", tag = "v2",
    params(
        ("topic" = String, Path, description = "The topic's name"),
        ("partition" = u32, Path, description = "The partition's number"),
        ("prefer" = Option<String>, Header,
            description = "`handling=strict`: the status tells of failed records")),
    request_body(content(
        (ProduceBody = "application/vnd.kafka.json.v2+json"),
        (ProduceBody = "application/vnd.kafka.binary.v2+json"),
        (ProduceBody = "application/vnd.kafka.text.v2+json"),
        (ProduceBody = "application/json"))),
    responses(
        (status = 200, description = "The outcome of each record", body = ProduceResult,
            content_type = "application/vnd.kafka.v2+json"),
        (status = 207, description = "Some records failed, with `Prefer: handling=strict`",
            body = ProduceResult, content_type = "application/vnd.kafka.v2+json"),
        (status = "4XX", description = "Refused, nothing was written: 400, 404 40401 or 40402, \
            406, 408 40801, 413, 415, 422, 42201, 42202, 42206",
            body = crate::api::v2::ErrorBody, content_type = "application/vnd.kafka.v2+json"),
        (status = "5XX", description = "No record was written, or it is not known, with \
            `Prefer: handling=strict`: 503, 504, 507",
            body = ProduceResult, content_type = "application/vnd.kafka.v2+json")))]
pub(super) async fn to_partition(
    state: Arc<State>,
    request: Request,
) -> Result<Response, ApiError> {
    let (mut parts, body) = request.into_parts();
    let (topic, partition) = partition_of(&mut parts).await?;
    let partition = Some(partition.ok_or_else(partition_not_found)?);
    produce(&state, Target { topic: &topic, partition }, &parts.headers, body).await
}

/// What the path names.
#[derive(Clone, Copy)]
struct Target<'a> {
    topic: &'a str,
    partition: Option<PartitionId>,
}

async fn produce(
    state: &State,
    target: Target<'_>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let media_type = answer_type(headers)?;
    let unsupported =
        || ApiError::new(Code::UnsupportedMediaType, "HTTP 415 Unsupported Media Type");
    let format = media::embedded(headers).map_err(|media::Unsupported| unsupported())?;
    expect_identity(headers).map_err(|_| unsupported())?;
    let bytes = read_body(state, body).await?;
    let options = body::Options {
        format,
        records_max: state.config.max_records,
        partition: target.partition,
    };
    // For what the answer will hold, unless that is little.
    let charge;
    let (queued, count) = {
        // UTF-8 is checked once for the whole body; serde_json would check every slice again.
        let text = simdutf8::basic::from_utf8(&bytes)
            .map_err(|_| ApiError::invalid_request("Bad Request: the body is not UTF-8"))?;
        let records = body::parse(text, options)?;
        charge = state.memory.charge_for(answer_bytes(records.len()))?;
        let highest = records.iter().filter_map(|record| record.partition).max();
        let highest = highest.max(target.partition).map(PartitionId::get);
        let broker = &state.broker;
        let topic = topic_to_write(state, target.topic, highest, &records).await;
        let missing = |topic: &Topic| {
            target.partition.is_some_and(|partition| topic.partition(partition.get()).is_none())
        };
        if topic.as_deref().is_ok_and(missing) {
            return Err(partition_not_found());
        }
        let produce = |topic| broker.produce(&state.principal, &topic, &records);
        (topic.and_then(produce), records.len())
    };
    drop(bytes);
    let mut answer = Answer::with_capacity(count);
    let mut fail_all = |error| (0..count).for_each(|_| answer.push(Err(error)));
    match queued {
        Ok(appending) => {
            match tokio::time::timeout(state.config.request_timeout, appending).await {
                Ok(outcomes) => outcomes.iter().for_each(|outcome| answer.push(outcome)),
                // The records are in the log or on their way: what becomes of them is not known.
                Err(_) => fail_all(AppendError::OutcomeUnknown),
            }
        }
        Err(error) => fail_all(passing(&error).ok_or_else(|| refusal(error))?),
    }
    let answer = answer.finish(media_type, is_strict(headers));
    Ok(match charge {
        Some(charge) => charge.hold_answer(answer),
        None => answer,
    })
}

/// Returns how many bytes the outcomes of some records take in an answer, about.
fn answer_bytes(records: usize) -> usize {
    records.saturating_mul(OUTCOME_BYTES).saturating_add(64)
}

/// Returns what each record of a refused request is told when the cause lies with the node and may
/// pass; `None` when it lies with the request. Nothing was written in either case.
fn passing(error: &ProduceError) -> Option<AppendError> {
    match error {
        ProduceError::Overloaded => Some(AppendError::Overloaded),
        ProduceError::StorageFull | ProduceError::Topic(TopicError::StorageFull) => {
            Some(AppendError::StorageFull)
        }
        // Whether the topic was created may be unknown, but its records were not written.
        ProduceError::Unavailable(_)
        | ProduceError::Topic(TopicError::Unavailable(_) | TopicError::OutcomeUnknown(_)) => {
            Some(AppendError::Unavailable)
        }
        ProduceError::PartitionNotFound { .. }
        | ProduceError::Records(_)
        | ProduceError::Topic(
            TopicError::NotFound(_)
            | TopicError::Exists { .. }
            | TopicError::InvalidName { .. }
            | TopicError::NameCollides { .. }
            | TopicError::InvalidConfig(_),
        ) => None,
    }
}

/// Translates what refuses the whole request; clients compare the texts of what is missing.
fn refusal(error: ProduceError) -> ApiError {
    match error {
        ProduceError::Topic(TopicError::NotFound(_)) => topic_not_found(),
        ProduceError::PartitionNotFound { .. } => partition_not_found(),
        other => other.into(),
    }
}

/// Whether the client wants a status that tells of failed records (RFC 7240).
fn is_strict(headers: &HeaderMap) -> bool {
    headers.get_all(PREFER).iter().any(|value| {
        let preferences = value.to_str().unwrap_or_default().split([',', ';']);
        preferences.into_iter().any(|preference| {
            preference.trim().replace([' ', '"'], "").eq_ignore_ascii_case(STRICT)
        })
    })
}

/// The answer's body, written as the outcomes come.
struct Answer {
    json: Vec<u8>,
    written: usize,
    first_error: Option<AppendError>,
    errors: usize,
}

impl Answer {
    fn with_capacity(count: usize) -> Self {
        let mut json = Vec::with_capacity(answer_bytes(count));
        json.extend_from_slice(b"{\"offsets\":[");
        Self { json, written: 0, first_error: None, errors: 0 }
    }

    fn push(&mut self, outcome: Result<Acknowledged, AppendError>) {
        if self.written + self.errors > 0 {
            self.json.push(b',');
        }
        match outcome {
            Ok(Acknowledged { partition, offset, .. }) => {
                self.written += 1;
                self.json.extend_from_slice(b"{\"partition\":");
                self.json.extend_from_slice(itoa::Buffer::new().format(partition.get()).as_bytes());
                self.json.extend_from_slice(b",\"offset\":");
                self.json.extend_from_slice(itoa::Buffer::new().format(offset.get()).as_bytes());
                self.json.extend_from_slice(b",\"error_code\":null,\"error\":null}");
            }
            Err(error) => {
                self.errors += 1;
                self.first_error.get_or_insert(error);
                let code = if error.is_retriable() { RETRIABLE } else { NOT_RETRIABLE };
                // The texts are this program's own and have nothing to escape.
                self.json.extend_from_slice(b"{\"partition\":null,\"offset\":null,\"error_code\":");
                self.json.extend_from_slice(code.as_bytes());
                self.json.extend_from_slice(format!(",\"error\":\"{error}\"}}").as_bytes());
            }
        }
    }

    fn finish(mut self, media_type: HeaderValue, strict: bool) -> Response {
        self.json.extend_from_slice(b"],\"key_schema_id\":null,\"value_schema_id\":null}");
        let mut response = json(media_type, self.json);
        if strict {
            if let Some(error) = self.first_error {
                *response.status_mut() = match self.written {
                    0 => ApiError::from(error).code().row().status,
                    _ => StatusCode::MULTI_STATUS,
                };
            }
            let says_later = matches!(response.status().as_u16(), 503 | 507);
            let headers = response.headers_mut();
            headers.insert(PREFERENCE_APPLIED, HeaderValue::from_static(STRICT));
            if says_later {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
        }
        response
    }
}

impl From<body::Fault> for ApiError {
    fn from(fault: body::Fault) -> Self {
        let (code, error_code) = match fault.kind {
            body::FaultKind::Malformed => (Code::InvalidRequest, None),
            body::FaultKind::Shape => (Code::InvalidBody, None),
            body::FaultKind::TooMany => (Code::TooLarge, None),
            body::FaultKind::Partition => (Code::PartitionNotFound, None),
            body::FaultKind::KeySchemaMissing => (Code::InvalidBody, Some(42201)),
            body::FaultKind::ValueSchemaMissing => (Code::InvalidBody, Some(42202)),
            body::FaultKind::NoRegistry => (Code::NoSchemaRegistry, None),
        };
        let error = Self::new(code, fault.message.clone());
        let error = error.with_error_code(error_code.unwrap_or(code.row().error_code));
        error.with_faults([Fault { pointer: fault.pointer, detail: fault.message }])
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use serde_json::{Value, json};

    use super::*;
    use crate::types::{Offset, Timestamp};

    fn written(offset: i64) -> Result<Acknowledged, AppendError> {
        Ok(Acknowledged {
            partition: PartitionId::new(3).unwrap(),
            offset: Offset::new(offset).unwrap(),
            timestamp: Timestamp::from_millis(0),
        })
    }

    async fn answer(
        outcomes: &[Result<Acknowledged, AppendError>],
        strict: bool,
    ) -> (u16, Value, HeaderMap) {
        let mut answer = Answer::with_capacity(outcomes.len());
        outcomes.iter().for_each(|outcome| answer.push(*outcome));
        let response = answer.finish(HeaderValue::from_static(media::V2_JSON), strict);
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts.status.as_u16(), serde_json::from_slice(&body).unwrap(), parts.headers)
    }

    #[tokio::test]
    async fn every_record_has_its_outcome_in_order() {
        let outcomes = [
            written(17),
            Err(AppendError::Deleted),
            Err(AppendError::Unavailable),
            Err(AppendError::Overloaded),
            Err(AppendError::StorageFull),
            Err(AppendError::OutcomeUnknown),
            written(i64::MAX),
        ];
        let (status, body, headers) = answer(&outcomes, false).await;
        assert_eq!(status, 200);
        assert_eq!(headers["content-type"], media::V2_JSON);
        assert_eq!(body["key_schema_id"], Value::Null);
        assert_eq!(body["value_schema_id"], Value::Null);
        let offsets = body["offsets"].as_array().unwrap();
        assert_eq!(
            offsets[0],
            json!({"partition": 3, "offset": 17, "error_code": null, "error": null})
        );
        assert_eq!(
            offsets[1],
            json!({"partition": null, "offset": null, "error_code": 50002,
                "error": "the topic was deleted"})
        );
        let codes: Vec<&Value> = offsets.iter().map(|outcome| &outcome["error_code"]).collect();
        assert_eq!(json!(codes), json!([null, 50002, 50003, 50003, 50003, 50003, null]));
        assert_eq!(offsets[6]["offset"], i64::MAX);
    }

    #[tokio::test]
    async fn strict_handling_makes_the_status_honest() {
        let failed = Err(AppendError::StorageFull);
        for (outcomes, status) in [
            (vec![written(0), written(1)], 200),
            (vec![written(0), failed], 207),
            (vec![failed, Err(AppendError::OutcomeUnknown)], 507),
            (vec![Err(AppendError::OutcomeUnknown)], 504),
            (vec![Err(AppendError::Overloaded)], 503),
            (vec![Err(AppendError::Deleted)], 404),
        ] {
            let (strict, body, headers) = answer(&outcomes, true).await;
            assert_eq!(strict, status, "{outcomes:?}");
            assert_eq!(headers["preference-applied"], STRICT);
            assert_eq!(headers.contains_key("retry-after"), [503, 507].contains(&status));
            assert_eq!(body["offsets"].as_array().unwrap().len(), outcomes.len());
            assert_eq!(answer(&outcomes, false).await.0, 200);
        }
    }

    #[test]
    fn the_preference_is_found_among_others() {
        for (prefer, expected) in [
            ("handling=strict", true),
            ("respond-async, Handling = \"strict\"; x=1", true),
            ("handling=lenient", false),
            ("wait=10", false),
        ] {
            let value = HeaderValue::from_static(prefer);
            let headers = HeaderMap::from_iter([(PREFER, value)]);
            assert_eq!(is_strict(&headers), expected, "{prefer}");
        }
        assert!(!is_strict(&HeaderMap::new()));
    }

    #[test]
    fn each_fault_of_a_body_has_its_status_and_number() {
        for (kind, status, error_code) in [
            (body::FaultKind::Malformed, 400, 400),
            (body::FaultKind::Shape, 422, 422),
            (body::FaultKind::TooMany, 413, 413),
            (body::FaultKind::Partition, 404, 40402),
            (body::FaultKind::KeySchemaMissing, 422, 42201),
            (body::FaultKind::ValueSchemaMissing, 422, 42202),
            (body::FaultKind::NoRegistry, 408, 40801),
        ] {
            let fault = body::Fault { kind, message: "m".to_owned(), pointer: "/p".to_owned() };
            let error = ApiError::from(fault);
            assert_eq!(error.code().row().status, status, "{kind:?}");
            assert_eq!((error.error_code(), error.detail()), (error_code, "m"), "{kind:?}");
        }
    }
}
