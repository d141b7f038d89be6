//! Topics: create, confirm, show, list, delete.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, Uri, header};
use axum::response::Response;
use base64_simd::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::oneshot;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::api::State;
use crate::api::error::{ApiError, Code, Problem};
use crate::api::http::{
    FORM, JSON, MediaType, bad_parameter, expect_identity, json_of, negotiate, query, read_body,
    repeated_parameter, unknown_parameter,
};
use crate::api::json::Scanner;
use crate::api::json::records_in::{pointer_to, syntax, utf8};
use crate::api::v1::{name_to_write, topic_name, topic_of};
use crate::broker::{CreateTopic, Creation, PartitionDetails, Topic, TopicError, TopicSummary};

/// Topics of one page unless the client says otherwise.
const LIMIT_DEFAULT: usize = 100;
/// Topics of one page at most.
const LIMIT_MAX: usize = 1000;

/// A topic.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Topic)]
pub(crate) struct TopicBody {
    /// Its name.
    #[schema(example = "flights")]
    topic: String,
    /// Its identity: a topic that is deleted and created again gets another one.
    topic_id: Uuid,
    /// Number of partitions.
    partitions: u32,
    /// Copies of each partition.
    replication_factor: u16,
    /// The configs that are set.
    configs: BTreeMap<String, String>,
    /// Milliseconds since the epoch.
    created_at: i64,
    /// Each partition; not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Vec<PartitionBody>>,
}

/// A partition.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Partition)]
struct PartitionBody {
    /// Its number.
    partition: u32,
    /// The shard that replicates it.
    shard: u32,
    /// The node that leads the shard, null when none does.
    leader: Option<u64>,
    /// The nodes that hold it.
    replicas: Vec<u64>,
    /// First readable offset.
    log_start_offset: i64,
    /// Offset that the next record gets.
    log_end_offset: i64,
    /// Bytes of its segments.
    size_bytes: u64,
}

/// A page of topics.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TopicList {
    /// Topics by name.
    topics: Vec<TopicBody>,
    /// Cursor of the next page, null on the last one.
    next: Option<String>,
}

/// What a new topic shall be. Members that are absent take the server's default.
#[derive(Debug, ToSchema)]
#[schema(as = TopicSettings)]
#[expect(
    dead_code,
    reason = "describes the body for the document; it is read by hand for pointers"
)]
pub(crate) struct PutBody {
    /// Number of partitions, from 1.
    #[schema(example = 12)]
    partitions: Option<u32>,
    /// Copies of each partition.
    replication_factor: Option<u16>,
    /// Configs by Kafka's names; strings, numbers and booleans are accepted.
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    configs: Option<BTreeMap<String, Value>>,
}

impl From<PartitionDetails> for PartitionBody {
    fn from(details: PartitionDetails) -> Self {
        Self {
            partition: details.partition.get(),
            shard: details.shard.get(),
            leader: details.leader.map(|node| node.get()),
            replicas: details.replicas.iter().map(|node| node.get()).collect(),
            log_start_offset: details.log_start.get(),
            log_end_offset: details.log_end.get(),
            size_bytes: details.size_bytes,
        }
    }
}

impl From<&TopicSummary> for TopicBody {
    fn from(topic: &TopicSummary) -> Self {
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Self {
            topic: topic.name.to_string(),
            topic_id: topic.id.uuid(),
            partitions: topic.partitions,
            replication_factor: topic.replication_factor,
            configs: topic.config.iter().map(owned).collect(),
            created_at: topic.created_at.as_millis(),
            details: None,
        }
    }
}

async fn detailed(state: &State, topic: &Topic) -> Result<TopicBody, ApiError> {
    let partitions = state.broker.describe_partitions(&state.principal, topic).await?;
    let details = Some(partitions.into_iter().map(PartitionBody::from).collect());
    Ok(TopicBody { details, ..TopicBody::from(topic.summary()) })
}

/// Lists topics by name.
#[utoipa::path(
    get,
    path = "/v1/topics",
    operation_id = "listTopics",
    tag = "topics",
    params(ListParameters),
    responses(
        (status = 200, description = "Topics", body = TopicList),
        (status = 400, description = "A parameter is not acceptable", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn list(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (parts, _) = request.into_parts();
    negotiate(&parts.headers, &[JSON])?;
    let parameters = list_parameters(&parts.uri)?;
    let (prefix, after) = (parameters.prefix.as_str(), parameters.after.as_deref());
    // One more than asked for tells whether there is a next page.
    let limit = parameters.limit;
    let mut topics = state.broker.list_topics(&state.principal, prefix, after, limit + 1);
    let more = topics.len() > limit;
    topics.truncate(limit);
    let next = topics.last().filter(|_| more).map(|topic| list_cursor(topic.name.as_str()));
    let topics = topics.iter().map(TopicBody::from).collect();
    json_of(StatusCode::OK, &TopicList { topics, next })
}

/// Shows a topic and its partitions.
#[utoipa::path(
    get,
    path = "/v1/topics/{topic}",
    operation_id = "getTopic",
    tag = "topics",
    params(("topic" = String, Path, description = "The topic's name")),
    responses(
        (status = 200, description = "The topic", body = TopicBody),
        (status = 404, description = "No such topic", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn show(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (parts, _) = request.into_parts();
    negotiate(&parts.headers, &[JSON])?;
    no_parameters(&parts.uri)?;
    let topic = topic_of(&state, &parts)?;
    json_of(StatusCode::OK, &detailed(&state, &topic).await?)
}

/// Creates a topic, or confirms that it is as asked for.
#[utoipa::path(
    put,
    path = "/v1/topics/{topic}",
    operation_id = "putTopic",
    tag = "topics",
    params(("topic" = String, Path, description = "The topic's name")),
    request_body(content = Option<PutBody>, content_type = "application/json"),
    responses(
        (status = 200, description = "It exists as asked for", body = TopicBody),
        (status = 201, description = "It was created", body = TopicBody),
        (status = 400, description = "Settings not acceptable", body = Problem,
            content_type = "application/problem+json"),
        (status = 409, description = "It exists with other settings", body = Problem,
            content_type = "application/problem+json"),
        (status = 415, description = "Not JSON", body = Problem,
            content_type = "application/problem+json"),
        (status = 422, description = "Name or body not acceptable", body = Problem,
            content_type = "application/problem+json"),
        (status = 503, description = "Not possible now", body = Problem,
            content_type = "application/problem+json"),
        (status = 504, description = "It is not known whether it was created", body = Problem,
            content_type = "application/problem+json"),
        (status = 507, description = "Not created: the disk is full", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn put(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    negotiate(&parts.headers, &[JSON])?;
    no_parameters(&parts.uri)?;
    expect_identity(&parts.headers)?;
    if let Some(given) = parts.headers.get(header::CONTENT_TYPE) {
        let media_type = MediaType::parse(given.to_str().unwrap_or_default());
        if !media_type.is(JSON) && !media_type.is(FORM) {
            let detail = format!("a topic's settings are {JSON}");
            return Err(ApiError::new(Code::UnsupportedMediaType, detail));
        }
        media_type.expect_utf8()?;
    }
    let name = name_to_write(&parts)?.into_owned();
    let asked = settings(&read_body(&state, body).await?)?;
    let working = Arc::clone(&state);
    let create = async move { working.broker.create_topic(&working.principal, &name, asked).await };
    let (creation, topic) = to_its_end(&state, create).await?;
    let status = match creation {
        Creation::Created => StatusCode::CREATED,
        Creation::Confirmed => StatusCode::OK,
    };
    let body = detailed(&state, &topic).await.map_err(|error| match error.code() {
        // It was there when it was created or confirmed: a deletion has come in between.
        Code::TopicNotFound => {
            ApiError::new(Code::Unavailable, format!("'{}' is being deleted", topic.summary().name))
        }
        _ => error,
    })?;
    json_of(status, &body)
}

/// Deletes a topic and its records.
#[utoipa::path(
    delete,
    path = "/v1/topics/{topic}",
    operation_id = "deleteTopic",
    tag = "topics",
    params(("topic" = String, Path, description = "The topic's name")),
    responses(
        (status = 204, description = "It is gone"),
        (status = 404, description = "No such topic", body = Problem,
            content_type = "application/problem+json"),
        (status = 503, description = "Not possible now", body = Problem,
            content_type = "application/problem+json"),
        (status = 504, description = "It is not known whether it was deleted", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn delete(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (parts, _) = request.into_parts();
    no_parameters(&parts.uri)?;
    // One that is still being created can be deleted too, so no handle of it is asked for.
    let name = topic_name(&parts)?.into_owned();
    let working = Arc::clone(&state);
    let delete = async move { working.broker.delete_topic(&working.principal, &name).await };
    to_its_end(&state, delete).await?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

/// Runs a change of several steps to its end even when the client goes away, and waits for it as
/// long as a request may take.
async fn to_its_end<T: Send + 'static>(
    state: &State,
    change: impl Future<Output = Result<T, TopicError>> + Send + 'static,
) -> Result<T, ApiError> {
    let place = Arc::clone(&state.changes).try_acquire_owned().map_err(|_none_free| {
        let detail = "too many topics are being created or deleted";
        ApiError::new(Code::Overloaded, detail.to_owned())
    })?;
    let (done, changed) = oneshot::channel();
    state.tasks.spawn(async move {
        drop(done.send(change.await));
        drop(place);
    });
    match tokio::time::timeout(state.config.request_timeout, changed).await {
        Ok(Ok(changed)) => Ok(changed?),
        _ => Err(TopicError::OutcomeUnknown("it took too long".to_owned()).into()),
    }
}

/// Refuses any query parameter.
pub(super) fn no_parameters(uri: &Uri) -> Result<(), ApiError> {
    match query(uri)?.first() {
        None => Ok(()),
        Some((name, _)) => Err(unknown_parameter(name)),
    }
}

#[derive(Debug, PartialEq, Eq, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct ListParameters {
    /// Topics of one page, 1 to 1000.
    #[param(default = 100, minimum = 1, maximum = 1000)]
    limit: usize,
    /// `next` of the page before.
    #[param(rename = "cursor", required = false)]
    after: Option<String>,
    /// Only topics whose name starts so.
    #[param(required = false)]
    prefix: String,
}

fn list_parameters(uri: &Uri) -> Result<ListParameters, ApiError> {
    let mut parameters =
        ListParameters { limit: LIMIT_DEFAULT, after: None, prefix: String::new() };
    let mut given = BTreeSet::new();
    for (name, value) in query(uri)? {
        if !given.insert(name.clone()) {
            return Err(repeated_parameter(&name));
        }
        match &*name {
            "limit" => {
                parameters.limit = value
                    .parse()
                    .ok()
                    .filter(|limit| (1..=LIMIT_MAX).contains(limit))
                    .ok_or_else(|| bad_parameter("limit", &value, "a number from 1 to 1000"))?;
            }
            "cursor" if value.is_empty() => {}
            "cursor" => {
                let refuse = || bad_parameter("cursor", &value, "the 'next' of a page before");
                parameters.after = Some(parse_list_cursor(&value).ok_or_else(refuse)?);
            }
            "prefix" => parameters.prefix = value.into_owned(),
            _ => return Err(unknown_parameter(&name)),
        }
    }
    Ok(parameters)
}

/// Version byte of a list's cursor, which is the last name of the page, in base64url.
const LIST_CURSOR_VERSION: u8 = 1;

/// Makes the cursor of a list's next page from the last name of this one.
pub(super) fn list_cursor(last: &str) -> String {
    let mut bytes = vec![LIST_CURSOR_VERSION];
    bytes.extend_from_slice(last.as_bytes());
    URL_SAFE_NO_PAD.encode_to_string(bytes)
}

/// Reads what [`list_cursor`] made.
pub(super) fn parse_list_cursor(text: &str) -> Option<String> {
    let bytes = URL_SAFE_NO_PAD.decode_to_vec(text).ok()?;
    let (version, name) = bytes.split_first()?;
    (*version == LIST_CURSOR_VERSION).then(|| String::from_utf8(name.to_vec()).ok())?
}

/// Reads the body of a PUT, which may be empty.
fn settings(body: &[u8]) -> Result<CreateTopic, ApiError> {
    let mut asked = CreateTopic::default();
    if body.trim_ascii().is_empty() {
        return Ok(asked);
    }
    let mut seen = BTreeSet::new();
    for (name, raw) in members(utf8(body)?, "")? {
        let pointer = pointer_to(&name);
        if !seen.insert(name.clone()) {
            return Err(ApiError::at(Code::InvalidBody, pointer, "the member repeats"));
        }
        match name.as_str() {
            "partitions" | "replication_factor" | "configs" if raw == "null" => {}
            // A count that no u32 holds is not acceptable, like any other that is too large.
            "partitions" => asked.partitions = Some(count(raw, "partitions")?),
            "replication_factor" => {
                asked.replication_factor = Some(count(raw, "replication_factor")?);
            }
            "configs" => asked.configs = configs(raw)?,
            _ => return Err(ApiError::at(Code::InvalidBody, pointer, "unknown member")),
        }
    }
    Ok(asked)
}

fn configs(raw: &str) -> Result<Vec<(String, String)>, ApiError> {
    let mut configs = Vec::new();
    let mut seen = BTreeSet::new();
    for (name, raw) in members(raw, "/configs")? {
        let refuse = |detail: &str| {
            ApiError::at(Code::InvalidBody, format!("/configs{}", pointer_to(&name)), detail)
        };
        if !seen.insert(name.clone()) {
            return Err(refuse("the member repeats"));
        }
        let text = match serde_json::from_str(raw) {
            Ok(Value::String(text)) => text,
            Ok(Value::Number(number)) => number.to_string(),
            Ok(Value::Bool(flag)) => flag.to_string(),
            Ok(Value::Null | Value::Array(_) | Value::Object(_)) | Err(_) => {
                return Err(refuse("expected a string, a number or a boolean"));
            }
        };
        configs.push((name, text));
    }
    Ok(configs)
}

/// Splits an object into its members, in order, also those that repeat.
///
/// # Errors
/// `invalid_request` when it is not JSON, `invalid_body` when it is no object.
fn members<'a>(text: &'a str, pointer: &str) -> Result<Vec<(String, &'a str)>, ApiError> {
    let mut scanner = Scanner::new(text);
    if scanner.peek() != Some(b'{') {
        scanner.value().and_then(|_| scanner.end()).map_err(syntax)?;
        return Err(ApiError::at(Code::InvalidBody, pointer, "expected an object"));
    }
    let mut read = || {
        let mut members = Vec::new();
        scanner.expect(b'{', "expected an object")?;
        let mut more = !scanner.skip_if(b'}');
        while more {
            let name = scanner.name()?.decode().unwrap_or_default().into_owned();
            members.push((name, scanner.value()?));
            more = scanner.skip_if(b',');
            if !more {
                scanner.expect(b'}', "expected ',' or '}'")?;
            }
        }
        scanner.end()?;
        Ok(members)
    };
    read().map_err(syntax)
}

fn count<N: TryFrom<u64>>(raw: &str, name: &str) -> Result<N, ApiError> {
    let value: Option<Value> = serde_json::from_str(raw).ok();
    let Some(value) = value.filter(|value| value.is_i64() || value.is_u64()) else {
        return Err(ApiError::at(Code::InvalidBody, format!("/{name}"), "expected an integer"));
    };
    let count = value.as_u64().and_then(|count| N::try_from(count).ok());
    count.ok_or_else(|| ApiError::new(Code::InvalidConfig, format!("{name} cannot be {value}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_body_asks_for_the_defaults() {
        for body in [b"".as_slice(), b" \n", b"{}", br#"{"partitions":null}"#] {
            let asked = settings(body).unwrap();
            assert_eq!((asked.partitions, asked.replication_factor), (None, None));
            assert!(asked.configs.is_empty());
        }
    }

    #[test]
    fn configs_may_be_strings_numbers_and_booleans() {
        let body =
            br#"{"partitions":12,"replication_factor":3,"configs":{"a":"x","b":-1,"c":true}}"#;
        let asked = settings(body).unwrap();
        assert_eq!((asked.partitions, asked.replication_factor), (Some(12), Some(3)));
        let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(asked.configs, [text("a", "x"), text("b", "-1"), text("c", "true")]);
    }

    #[test]
    fn a_wrong_body_is_pointed_at() {
        for (body, code, pointer) in [
            ("{", Code::InvalidRequest, None),
            ("[]", Code::InvalidBody, Some("")),
            (r#"{"partition":1}"#, Code::InvalidBody, Some("/partition")),
            (r#"{"partitions":"1"}"#, Code::InvalidBody, Some("/partitions")),
            (r#"{"partitions":1.5}"#, Code::InvalidBody, Some("/partitions")),
            (r#"{"partitions":-1}"#, Code::InvalidConfig, None),
            (r#"{"partitions":4294967296}"#, Code::InvalidConfig, None),
            (r#"{"replication_factor":65536}"#, Code::InvalidConfig, None),
            (r#"{"configs":[]}"#, Code::InvalidBody, Some("/configs")),
            (r#"{"configs":{"a/b":null}}"#, Code::InvalidBody, Some("/configs/a~1b")),
            (r#"{"configs":{"a":1,"a":1}}"#, Code::InvalidBody, Some("/configs/a")),
            (r#"{"configs":{},"configs":{}}"#, Code::InvalidBody, Some("/configs")),
            (r#"{"partitions":1,"partitions":null}"#, Code::InvalidBody, Some("/partitions")),
            (r#"{"partitions":1} x"#, Code::InvalidRequest, None),
        ] {
            let error = settings(body.as_bytes()).unwrap_err();
            assert_eq!(error.code(), code, "{body}");
            let problem = serde_json::to_value(error.problem(None)).unwrap();
            assert_eq!(problem["errors"][0]["pointer"].as_str(), pointer, "{body}");
        }
    }

    #[test]
    fn lists_are_paged_by_name() {
        let parse = |query: &str| list_parameters(&format!("/v1/topics{query}").parse().unwrap());
        let cursor = list_cursor("flights");
        let parameters = parse(&format!("?limit=7&prefix=f&cursor={cursor}")).unwrap();
        assert_eq!(parameters.limit, 7);
        assert_eq!(parameters.after.as_deref(), Some("flights"));
        assert_eq!(parameters.prefix, "f");
        for bad in ["?limit=0", "?limit=1001", "?limit=x", "?cursor=zz", "?cursor=*", "?offset=1"] {
            assert_eq!(parse(bad).unwrap_err().code(), Code::InvalidRequest, "{bad}");
        }
    }
}
