//! The catalogue of errors: every code that a client can see, and how each face renders it.
//!
//! Handlers return an [`ApiError`]; [`ApiError::respond`] turns it into the answer that the
//! [`Caller`] understands: problem+json (RFC 9457) on the native face, the REST Proxy's two fields
//! on the others, unless those ask for problem+json.
//!
//! Invariants:
//! - one table, [`Code::row`], maps a code to status, number, title and `retriable`;
//! - conversions from the broker's errors are exhaustive: a new error does not compile unanswered;
//! - a code with `may_have_applied` is only made from an error that says so.

use std::borrow::Cow;

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use crate::broker::{
    AppendError, GroupError, ProduceError, ReadError, RecordFault, RecordFaultKind, TopicError,
};
use crate::types::{Offset, PartitionId};

/// Media type of the native face's errors.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// The header that names a request, taken from the client or made here.
pub const REQUEST_ID: &str = "x-request-id";

/// Longest request id that is taken over from a client; longer ones are replaced.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Faults that one answer lists at most: a body of bad records must not get a larger one back.
pub const FAULTS_MAX: usize = 100;

/// Seconds after which a client may come back, for codes that say so.
const RETRY_AFTER_SECONDS: &str = "1";

/// What went wrong, by name. `docs` and clients know these names; they never change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the table in `row` says what each code means")]
pub enum Code {
    InvalidRequest,
    InvalidConfig,
    Unauthenticated,
    Forbidden,
    NotFound,
    TopicNotFound,
    PartitionNotFound,
    InstanceNotFound,
    GroupNotFound,
    NodeNotFound,
    MethodNotAllowed,
    NotAcceptable,
    UnsupportedMediaType,
    RequestTimeout,
    NoSchemaRegistry,
    TopicExists,
    GroupNotEmpty,
    StaleMember,
    AlreadySubscribed,
    InstanceExists,
    IllegalState,
    FormatMismatch,
    InvalidConsumer,
    CursorGone,
    TooLarge,
    OffsetOutOfRange,
    InvalidBody,
    InvalidName,
    RateLimited,
    Internal,
    Unavailable,
    Overloaded,
    OutcomeUnknown,
    StorageFull,
}

/// A line of the catalogue.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// The code's name, as in `code` and `type`.
    pub name: &'static str,
    /// HTTP status.
    pub status: StatusCode,
    /// The REST Proxy's number, `error_code`.
    pub error_code: u32,
    /// The same for every occurrence.
    pub title: &'static str,
}

impl Code {
    /// Returns the code's line of the catalogue.
    pub const fn row(self) -> Row {
        use StatusCode as S;
        let (name, status, error_code, title) = match self {
            Self::InvalidRequest => ("invalid_request", S::BAD_REQUEST, 400, "Bad request"),
            Self::InvalidConfig => ("invalid_config", S::BAD_REQUEST, 40002, "Bad configuration"),
            Self::Unauthenticated => ("unauthenticated", S::UNAUTHORIZED, 40101, "Unauthenticated"),
            Self::Forbidden => ("forbidden", S::FORBIDDEN, 40301, "Not allowed"),
            Self::NotFound => ("not_found", S::NOT_FOUND, 404, "Not found"),
            Self::TopicNotFound => ("topic_not_found", S::NOT_FOUND, 40401, "Topic not found"),
            Self::PartitionNotFound => {
                ("partition_not_found", S::NOT_FOUND, 40402, "Partition not found")
            }
            Self::InstanceNotFound => {
                ("instance_not_found", S::NOT_FOUND, 40403, "Instance not found")
            }
            Self::GroupNotFound => ("group_not_found", S::NOT_FOUND, 40405, "Group not found"),
            Self::NodeNotFound => ("node_not_found", S::NOT_FOUND, 40406, "Node not found"),
            Self::MethodNotAllowed => {
                ("method_not_allowed", S::METHOD_NOT_ALLOWED, 405, "Method not allowed")
            }
            Self::NotAcceptable => ("not_acceptable", S::NOT_ACCEPTABLE, 406, "Not acceptable"),
            Self::UnsupportedMediaType => {
                let status = S::UNSUPPORTED_MEDIA_TYPE;
                ("unsupported_media_type", status, 415, "Unsupported media type")
            }
            Self::RequestTimeout => ("request_timeout", S::REQUEST_TIMEOUT, 408, "Too slow"),
            // The REST Proxy's status for anything that goes wrong with a schema.
            Self::NoSchemaRegistry => {
                ("no_schema_registry", S::REQUEST_TIMEOUT, 40801, "No schema registry")
            }
            Self::TopicExists => ("topic_exists", S::CONFLICT, 40904, "Topic exists"),
            Self::GroupNotEmpty => ("group_not_empty", S::CONFLICT, 40905, "Group not empty"),
            Self::StaleMember => ("stale_member", S::CONFLICT, 40906, "Stale member"),
            // The next five are only seen by clients of the REST Proxy's consumers.
            Self::AlreadySubscribed => {
                ("already_subscribed", S::CONFLICT, 40901, "Already subscribed")
            }
            Self::InstanceExists => ("instance_exists", S::CONFLICT, 40902, "Instance exists"),
            Self::IllegalState => ("illegal_state", S::CONFLICT, 40903, "Illegal state"),
            Self::FormatMismatch => {
                ("format_mismatch", S::NOT_ACCEPTABLE, 40601, "Another format than the instance's")
            }
            Self::InvalidConsumer => {
                let status = S::UNPROCESSABLE_ENTITY;
                ("invalid_consumer", status, 42204, "Invalid consumer configuration")
            }
            Self::CursorGone => ("cursor_gone", S::GONE, 41001, "Cursor gone"),
            Self::TooLarge => ("too_large", S::PAYLOAD_TOO_LARGE, 413, "Too large"),
            Self::OffsetOutOfRange => {
                ("offset_out_of_range", S::RANGE_NOT_SATISFIABLE, 41601, "Offset out of range")
            }
            Self::InvalidBody => ("invalid_body", S::UNPROCESSABLE_ENTITY, 422, "Invalid body"),
            Self::InvalidName => ("invalid_name", S::UNPROCESSABLE_ENTITY, 42206, "Invalid name"),
            Self::RateLimited => ("rate_limited", S::TOO_MANY_REQUESTS, 429, "Too many requests"),
            Self::Internal => ("internal", S::INTERNAL_SERVER_ERROR, 500, "Internal error"),
            Self::Unavailable => ("unavailable", S::SERVICE_UNAVAILABLE, 50302, "Unavailable"),
            Self::Overloaded => ("overloaded", S::SERVICE_UNAVAILABLE, 50303, "Overloaded"),
            Self::OutcomeUnknown => {
                ("outcome_unknown", S::GATEWAY_TIMEOUT, 50401, "Outcome unknown")
            }
            Self::StorageFull => ("storage_full", S::INSUFFICIENT_STORAGE, 50701, "Storage full"),
        };
        Row { name, status, error_code, title }
    }

    /// Returns whether the same request may succeed later.
    pub const fn is_retriable(self) -> bool {
        matches!(
            self,
            Self::RequestTimeout
                | Self::RateLimited
                | Self::Unavailable
                | Self::Overloaded
                | Self::OutcomeUnknown
                | Self::StorageFull
        )
    }

    /// Returns whether the answer says when to come back: nothing was applied, the cause passes.
    const fn says_when_to_retry(self) -> bool {
        matches!(self, Self::RateLimited | Self::Unavailable | Self::Overloaded | Self::StorageFull)
    }

    /// Returns whether the request may have taken effect although it failed.
    pub const fn may_have_applied(self) -> bool {
        matches!(self, Self::OutcomeUnknown)
    }
}

/// How errors are rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    /// problem+json.
    Native,
    /// `{"error_code","message"}` in this media type.
    TwoFields(&'static str),
}

/// What an answer needs to know of its request. Cheap: it allocates nothing unless there is a
/// request id to keep.
#[derive(Debug, Clone)]
pub struct Caller {
    face: Face,
    request_id: Option<HeaderValue>,
}

impl Caller {
    /// Describes the sender of a request on the native face.
    pub fn native(headers: &HeaderMap) -> Self {
        Self { face: Face::Native, request_id: request_id(headers) }
    }

    /// Describes the sender of a request on a REST Proxy face; `media_type` is that of its errors.
    pub fn two_fields(headers: &HeaderMap, media_type: &'static str) -> Self {
        let asks_for_problems = headers.get_all(header::ACCEPT).iter().any(|accept| {
            memchr::memmem::find(accept.as_bytes(), PROBLEM_JSON.as_bytes()).is_some()
        });
        let face = if asks_for_problems { Face::Native } else { Face::TwoFields(media_type) };
        Self { face, request_id: request_id(headers) }
    }
}

fn request_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let given = headers.get(REQUEST_ID)?;
    let fits = (1..=REQUEST_ID_BYTES_MAX).contains(&given.len());
    (fits && given.as_bytes().iter().all(u8::is_ascii_graphic)).then(|| given.clone())
}

/// Where in a body something is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Fault {
    /// JSON pointer (RFC 6901) into the request's body.
    #[schema(example = "/records/3/key")]
    pub pointer: String,
    /// What is wrong there.
    pub detail: String,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError(Box<Inner>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Inner {
    code: Code,
    error_code: u32,
    detail: Cow<'static, str>,
    faults: Vec<Fault>,
    log: Option<(Offset, Offset)>,
    damage: Option<Damage>,
}

/// Which offsets of which partition are damaged: `from..to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Damage {
    partition: PartitionId,
    from: Offset,
    to: Offset,
}

impl ApiError {
    /// Makes an error with a detail for this occurrence.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        let error_code = code.row().error_code;
        let detail = detail.into();
        let (faults, log, damage) = (Vec::new(), None, None);
        Self(Box::new(Inner { code, error_code, detail, faults, log, damage }))
    }

    /// Makes an [`Code::InvalidRequest`].
    pub fn invalid_request(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::InvalidRequest, detail)
    }

    /// Replaces the number, where the REST Proxy has a finer or another one for the same case.
    #[must_use]
    pub fn with_error_code(mut self, error_code: u32) -> Self {
        self.0.error_code = error_code;
        self
    }

    /// Adds places in the body; at most [`FAULTS_MAX`] are kept.
    #[must_use]
    pub fn with_faults(mut self, faults: impl IntoIterator<Item = Fault>) -> Self {
        self.0.faults.extend(faults);
        self.0.faults.truncate(FAULTS_MAX);
        self
    }

    /// Makes an error about one place in the body.
    pub fn at(code: Code, pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        let (pointer, detail) = (pointer.into(), detail.into());
        let place = if pointer.is_empty() { "the body" } else { pointer.as_str() };
        Self::new(code, format!("{place}: {detail}")).with_faults([Fault { pointer, detail }])
    }

    /// Translates the faults that the broker found in records; `pointer` locates a record in the
    /// body. The first fault decides the code.
    pub fn of_records(faults: &[RecordFault], pointer: impl Fn(usize) -> String) -> Self {
        let mut all = faults.iter().take(FAULTS_MAX).map(|fault| {
            let (code, member) = match fault.kind {
                RecordFaultKind::PartitionNotFound(_) => (Code::PartitionNotFound, "/partition"),
                RecordFaultKind::TooLarge { .. } => (Code::TooLarge, ""),
                RecordFaultKind::Timestamp(_) => (Code::InvalidBody, "/timestamp"),
            };
            let pointer = pointer(fault.index) + member;
            (code, Fault { pointer, detail: fault.kind.to_string() })
        });
        let Some((code, first)) = all.next() else {
            return Self::new(Code::Internal, "records were refused without a reason");
        };
        let rest: Vec<_> = all.map(|(_, fault)| fault).collect();
        Self::at(code, first.pointer, first.detail).with_faults(rest)
    }

    /// Returns the code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// Returns whether the same request may succeed later.
    pub fn is_retriable(&self) -> bool {
        self.0.code.is_retriable()
    }

    /// Returns the number of the two-field form.
    pub fn error_code(&self) -> u32 {
        self.0.error_code
    }

    /// Returns what happened, in words.
    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    /// Returns the problem object. Without a request id it serves inside an answer whose status
    /// tells of other records.
    pub fn problem(&self, request_id: Option<&str>) -> Problem {
        let row = self.0.code.row();
        Problem {
            kind: format!("urn:eddyline:error:{}", row.name),
            title: row.title,
            status: row.status.as_u16(),
            detail: self.0.detail.to_string(),
            error_code: self.0.error_code,
            code: row.name,
            message: self.0.detail.to_string(),
            retriable: self.is_retriable(),
            may_have_applied: self.0.code.may_have_applied(),
            request_id: request_id.map(str::to_owned),
            log_start_offset: self.0.log.map(|(start, _)| start.get()),
            log_end_offset: self.0.log.map(|(_, end)| end.get()),
            partition: self.0.damage.map(|damage| damage.partition.get()),
            damaged_from: self.0.damage.map(|damage| damage.from.get()),
            next_good_offset: self.0.damage.map(|damage| damage.to.get()),
            errors: self.0.faults.clone(),
        }
    }

    /// Renders the error for its caller. Internal errors are logged here, and nowhere else.
    pub fn respond(&self, caller: &Caller) -> Response<Body> {
        self.respond_with(caller, None)
    }

    /// Renders the error with the outcome of every record beside it: `records` is a JSON array.
    pub fn respond_with(&self, caller: &Caller, records: Option<&[u8]>) -> Response<Body> {
        let made;
        let request_id = match caller.request_id.as_ref().and_then(|id| id.to_str().ok()) {
            Some(given) => given,
            None => {
                made = uuid::Uuid::new_v4().simple().to_string();
                made.as_str()
            }
        };
        if self.0.code == Code::Internal {
            tracing::error!(request_id, detail = %self.0.detail, "request failed");
        }
        let (media_type, body) = match caller.face {
            Face::Native => (PROBLEM_JSON, serde_json::to_vec(&self.problem(Some(request_id)))),
            Face::TwoFields(media_type) => (
                media_type,
                serde_json::to_vec(&TwoFields {
                    error_code: self.0.error_code,
                    message: &self.0.detail,
                }),
            ),
        };
        let mut body = body.unwrap_or_default();
        if let Some(records) = records
            && body.last() == Some(&b'}')
        {
            body.pop();
            body.extend_from_slice(b",\"records\":");
            body.extend_from_slice(records);
            body.push(b'}');
        }
        let row = self.0.code.row();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = row.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Ok(id) = HeaderValue::from_str(request_id) {
            headers.insert(REQUEST_ID, id);
        }
        if self.0.code.says_when_to_retry() && self.is_retriable() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
        }
        response
    }
}

/// The error body of the native face, RFC 9457.
#[derive(Debug, Serialize, ToSchema)]
pub struct Problem {
    /// `urn:eddyline:error:<code>`.
    #[serde(rename = "type")]
    #[schema(example = "urn:eddyline:error:topic_not_found")]
    kind: String,
    /// The same for every occurrence of the code.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// What happened this time.
    detail: String,
    /// The REST Proxy's number.
    error_code: u32,
    /// The code.
    #[schema(example = "topic_not_found")]
    code: &'static str,
    /// The same as `detail`, for clients of the two-field form.
    message: String,
    /// Whether the same request may succeed later.
    retriable: bool,
    /// Whether the request may have taken effect although it failed.
    may_have_applied: bool,
    /// Names the request in the server's log.
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    /// First readable offset, with `offset_out_of_range`.
    #[serde(skip_serializing_if = "Option::is_none")]
    log_start_offset: Option<i64>,
    /// Offset that the next record gets, with `offset_out_of_range`.
    #[serde(skip_serializing_if = "Option::is_none")]
    log_end_offset: Option<i64>,
    /// The partition that is damaged, with `unavailable`; `skip_damaged=true` reads on behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<u32>,
    /// First offset that cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    damaged_from: Option<i64>,
    /// First offset behind the damage.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_good_offset: Option<i64>,
    /// Places in the request's body.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Fault>,
}

#[derive(Serialize)]
struct TwoFields<'a> {
    error_code: u32,
    message: &'a str,
}

impl From<TopicError> for ApiError {
    fn from(error: TopicError) -> Self {
        let code = match &error {
            TopicError::NotFound(_) => Code::TopicNotFound,
            TopicError::Exists { .. } => Code::TopicExists,
            TopicError::InvalidName { .. } | TopicError::NameCollides { .. } => Code::InvalidName,
            TopicError::InvalidConfig(_) => Code::InvalidConfig,
            TopicError::Unavailable(_) => Code::Unavailable,
            TopicError::StorageFull => Code::StorageFull,
            TopicError::OutcomeUnknown(_) => Code::OutcomeUnknown,
        };
        Self::new(code, error.to_string())
    }
}

impl From<ProduceError> for ApiError {
    fn from(error: ProduceError) -> Self {
        let code = match error {
            ProduceError::Topic(error) => return error.into(),
            ProduceError::Records(faults) => {
                return Self::of_records(&faults, |index| format!("/records/{index}"));
            }
            ProduceError::PartitionNotFound { .. } => Code::PartitionNotFound,
            ProduceError::Overloaded => Code::Overloaded,
            ProduceError::StorageFull => Code::StorageFull,
            ProduceError::Unavailable(_) => Code::Unavailable,
        };
        Self::new(code, error.to_string())
    }
}

impl From<AppendError> for ApiError {
    fn from(error: AppendError) -> Self {
        let code = match error {
            AppendError::Deleted => Code::TopicNotFound,
            AppendError::Unavailable => Code::Unavailable,
            AppendError::Overloaded => Code::Overloaded,
            AppendError::StorageFull => Code::StorageFull,
            AppendError::OutcomeUnknown => Code::OutcomeUnknown,
        };
        Self::new(code, error.to_string())
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        let code = match &error {
            ReadError::TopicDeleted => Code::TopicNotFound,
            ReadError::PartitionNotFound { .. } => Code::PartitionNotFound,
            ReadError::OffsetOutOfRange { .. } => Code::OffsetOutOfRange,
            ReadError::Damaged { .. } | ReadError::Unavailable(_) => Code::Unavailable,
            ReadError::Internal(_) => Code::Internal,
        };
        let mut made = Self::new(code, error.to_string());
        match error {
            ReadError::OffsetOutOfRange { log_start, log_end, .. } => {
                made.0.log = Some((log_start, log_end));
            }
            ReadError::Damaged { partition, from, to } => {
                made.0.damage = Some(Damage { partition, from, to });
            }
            ReadError::TopicDeleted
            | ReadError::PartitionNotFound { .. }
            | ReadError::Unavailable(_)
            | ReadError::Internal(_) => {}
        }
        made
    }
}

impl From<GroupError> for ApiError {
    fn from(error: GroupError) -> Self {
        let code = match error {
            GroupError::Topic(error) => return error.into(),
            GroupError::Read(error) => return error.into(),
            GroupError::InvalidName { .. } => Code::InvalidName,
            GroupError::NotFound(_) => Code::GroupNotFound,
            GroupError::NotEmpty { .. } => Code::GroupNotEmpty,
            GroupError::StaleMember { .. } => Code::StaleMember,
            GroupError::PartitionNotFound { .. } => Code::PartitionNotFound,
            GroupError::Invalid(_) => Code::InvalidBody,
            GroupError::TooLarge { .. } => Code::TooLarge,
            GroupError::NoOffset { .. } => Code::OffsetOutOfRange,
            GroupError::Overloaded => Code::Overloaded,
            GroupError::StorageFull => Code::StorageFull,
            GroupError::Unavailable(_) => Code::Unavailable,
            GroupError::OutcomeUnknown(_) => Code::OutcomeUnknown,
        };
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn body(response: Response<Body>) -> serde_json::Value {
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice(&bytes).unwrap()
    }

    #[tokio::test]
    async fn the_native_face_answers_a_problem() {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_static("abc-1"));
        let error = ApiError::from(TopicError::NotFound("x".to_owned()));
        let response = error.respond(&Caller::native(&headers));
        assert_eq!(response.status(), 404);
        assert_eq!(response.headers()["content-type"], PROBLEM_JSON);
        assert_eq!(response.headers()[REQUEST_ID], "abc-1");
        assert_eq!(
            body(response).await,
            serde_json::json!({
                "type": "urn:eddyline:error:topic_not_found", "title": "Topic not found",
                "status": 404, "detail": "topic 'x' does not exist", "error_code": 40401,
                "code": "topic_not_found", "message": "topic 'x' does not exist",
                "retriable": false, "may_have_applied": false, "request_id": "abc-1",
            })
        );
    }

    #[tokio::test]
    async fn the_rest_proxy_faces_answer_two_fields_unless_asked_for_problems() {
        let mut headers = HeaderMap::new();
        let error = ApiError::from(TopicError::NotFound("x".to_owned())).with_error_code(40403);
        let response = error.respond(&Caller::two_fields(&headers, "application/json"));
        assert_eq!(
            body(response).await,
            serde_json::json!({"error_code": 40403, "message": "topic 'x' does not exist"})
        );
        headers.insert(header::ACCEPT, HeaderValue::from_static("a/b, application/problem+json"));
        let response = error.respond(&Caller::two_fields(&headers, "application/json"));
        assert_eq!(body(response).await["code"], "topic_not_found");
    }

    #[test]
    fn only_an_unknown_outcome_may_have_applied() {
        let unknown = ApiError::from(AppendError::OutcomeUnknown);
        assert!(unknown.problem(None).may_have_applied);
        assert!(!ApiError::from(AppendError::Unavailable).problem(None).may_have_applied);
        for error in [AppendError::Unavailable, AppendError::Overloaded, AppendError::StorageFull] {
            assert_eq!(ApiError::from(error).code().is_retriable(), error.is_retriable());
        }
    }

    #[test]
    fn clients_are_told_when_to_come_back_where_nothing_was_applied() {
        let caller = Caller::native(&HeaderMap::new());
        let retry_after = |error: AppendError| {
            ApiError::from(error).respond(&caller).headers().contains_key("retry-after")
        };
        assert!(retry_after(AppendError::Overloaded));
        assert!(retry_after(AppendError::StorageFull));
        assert!(!retry_after(AppendError::OutcomeUnknown));
        assert!(!retry_after(AppendError::Deleted));
    }

    #[test]
    fn an_offset_out_of_range_names_the_range() {
        let error = ApiError::from(ReadError::OffsetOutOfRange {
            partition: PartitionId::ZERO,
            offset: Offset::new(9).unwrap(),
            log_start: Offset::new(2).unwrap(),
            log_end: Offset::new(5).unwrap(),
        });
        let problem = serde_json::to_value(error.problem(None)).unwrap();
        assert_eq!(problem["log_start_offset"], 2);
        assert_eq!(problem["log_end_offset"], 5);
        assert_eq!(problem["status"], 416);
    }

    #[test]
    fn faults_of_records_point_at_them_and_are_bounded() {
        let fault = |index| RecordFault {
            index,
            kind: RecordFaultKind::TooLarge { bytes: 9, limit: 8, config: "x" },
        };
        let faults: Vec<_> = (0..1000).map(fault).collect();
        let error = ApiError::of_records(&faults, |index| format!("/{index}"));
        assert_eq!(error.code(), Code::TooLarge);
        let problem = error.problem(None);
        assert_eq!(problem.errors.len(), FAULTS_MAX);
        assert_eq!(problem.errors[1].pointer, "/1");
    }

    #[test]
    fn strange_request_ids_are_replaced() {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_static("has space"));
        assert_eq!(request_id(&headers), None);
        headers.insert(REQUEST_ID, HeaderValue::from_str(&"x".repeat(129)).unwrap());
        assert_eq!(request_id(&headers), None);
    }
}
