//! The REST Proxy v2 face: metadata, produce and consumers, as clients of the known proxies expect
//! them.
//!
//! Shapes, codes and media types are Confluent's; where the known proxies disagree the choice is
//! written at the code. Errors are the catalogue's, in the two-field form.
//!
//! Invariants:
//! - a request that is answered with an error as a whole has written nothing, unless it says so;
//! - no route has middleware of its own: a layer would cost produce more than all of its parsing.

mod body;
mod consumers;
mod key;
mod media;
mod produce;
mod topics;

use std::borrow::Cow;
use std::sync::Arc;

use axum::RequestPartsExt;
use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, header, request::Parts};
use axum::response::Response;
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};

use crate::api::State;
use crate::api::error::{ApiError, Caller, Code};
use crate::api::hot::{self, Handler};
use crate::api::http::{Verb, route, topic_in_path};
use crate::types::PartitionId;

pub use consumers::Consumers;

/// Paths of this face, for the router and the API document.
mod paths {
    pub(super) const ROOT: &str = "/";
    pub(super) const BROKERS: &str = "/brokers";
    pub(super) const TOPICS: &str = "/topics";
    pub(super) const TOPIC: &str = "/topics/{topic}";
    pub(super) const PARTITIONS: &str = "/topics/{topic}/partitions";
    pub(super) const PARTITION: &str = "/topics/{topic}/partitions/{partition}";
    pub(super) const OFFSETS: &str = "/topics/{topic}/partitions/{partition}/offsets";
}

/// Makes the routes of this face.
pub(crate) fn router(state: &Arc<State>) -> Router {
    use Verb::{Get, Post};
    Router::new()
        .merge(consumers::router(state))
        .route(
            paths::ROOT,
            route(state, (Get, paths::ROOT), caller, topics::root).merge(route(
                state,
                (Post, paths::ROOT),
                caller,
                topics::check,
            )),
        )
        .route(paths::BROKERS, route(state, (Get, paths::BROKERS), caller, topics::brokers))
        .route(paths::TOPICS, route(state, (Get, paths::TOPICS), caller, topics::list))
        .route(
            paths::TOPIC,
            route(state, (Get, paths::TOPIC), caller, topics::topic).merge(route(
                state,
                (Post, paths::TOPIC),
                caller,
                produce::to_topic,
            )),
        )
        .route(
            paths::PARTITIONS,
            route(state, (Get, paths::PARTITIONS), caller, topics::partitions),
        )
        .route(
            paths::PARTITION,
            route(state, (Get, paths::PARTITION), caller, topics::partition).merge(route(
                state,
                (Post, paths::PARTITION),
                caller,
                produce::to_partition,
            )),
        )
        .route(paths::OFFSETS, route(state, (Get, paths::OFFSETS), caller, topics::offsets))
}

/// Makes the handler of produce requests that need no router.
pub(crate) fn produce_handler(state: &Arc<State>) -> Handler {
    hot::handler(state, (Verb::Post, paths::TOPIC), caller, produce::to_topic)
}

/// Says how this face's errors are rendered.
fn caller(headers: &HeaderMap) -> Caller {
    Caller::two_fields(headers, media::V2_JSON)
}

/// Describes this face.
#[derive(OpenApi)]
#[openapi(
    paths(
        topics::root,
        topics::check,
        topics::brokers,
        topics::list,
        topics::topic,
        topics::partitions,
        topics::partition,
        topics::offsets,
        produce::to_topic,
        produce::to_partition,
    ),
    tags((name = "v2", description = "REST Proxy v2: for clients of the Confluent REST Proxy \
        and its relatives"))
)]
struct Document;

/// Describes this face's operations.
pub(crate) fn openapi() -> utoipa::openapi::OpenApi {
    let mut document = Document::openapi();
    document.merge(consumers::openapi());
    document
}

/// An error, as clients of the REST Proxy know it.
#[derive(ToSchema)]
#[schema(as = V2Error)]
#[expect(dead_code, reason = "describes to clients what the catalogue renders")]
struct ErrorBody {
    /// The number that says what went wrong.
    error_code: u32,
    /// What happened.
    message: String,
}

/// Answers a DTO as JSON, in a type that the client accepts.
fn answer(media_type: HeaderValue, body: &impl Serialize) -> Result<Response, ApiError> {
    let body = serde_json::to_vec(body)
        .map_err(|cause| ApiError::new(Code::Internal, cause.to_string()))?;
    Ok(json(media_type, body))
}

fn json(media_type: HeaderValue, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    response
}

fn answer_type(headers: &HeaderMap) -> Result<HeaderValue, ApiError> {
    media::answer_type(headers).map_err(|media::NotAcceptable| {
        ApiError::new(Code::NotAcceptable, "HTTP 406 Not Acceptable")
    })
}

fn not_found() -> ApiError {
    ApiError::new(Code::NotFound, "HTTP 404 Not Found")
}

fn topic_not_found() -> ApiError {
    ApiError::new(Code::TopicNotFound, "Topic not found.")
}

fn partition_not_found() -> ApiError {
    ApiError::new(Code::PartitionNotFound, "Partition not found.")
}

/// Returns the topic that the path names; not checked to be a name.
fn topic_of(parts: &Parts) -> Result<Cow<'_, str>, ApiError> {
    topic_in_path(&parts.uri).ok_or_else(not_found)
}

/// Returns the topic and partition that the path names. A number that no partition has is `None`,
/// since a missing topic is answered first; what is no number is a path that does not exist.
async fn partition_of(parts: &mut Parts) -> Result<(String, Option<PartitionId>), ApiError> {
    let path = parts.extract::<Path<(String, String)>>().await;
    let Path((topic, partition)) = path.map_err(|_| not_found())?;
    let digits = partition.strip_prefix('-').unwrap_or(&partition);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(not_found());
    }
    Ok((topic, partition.parse().ok().and_then(PartitionId::new)))
}
