//! Consumer instances of the REST Proxy: subscribe, poll, commit, seek.
//!
//! Better than the proxies that it replaces: joining happens at subscribe, so the first poll has
//! partitions; a poll that waits delays no rebalance and no other call; a poll whose answer was
//! lost can be repeated; a record of any size arrives.
//!
//! Invariants:
//! - every call on an instance refreshes its idle time, and works with the instance alone but for
//!   the time that a poll waits;
//! - a trailing slash, a body on GET and its like in the query are all the same.

mod consumer;
mod create;
mod offsets;
mod poll;
mod position;
mod records;
mod registry;
mod subscription;

use std::sync::Arc;

use axum::RequestPartsExt;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, StatusCode, request::Parts};
use axum::response::Response;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};

use crate::api::error::{ApiError, Code};
use crate::api::http::{Verb, path_parameter, read_body, route};
use crate::api::v2::consumers::registry::InUse;
use crate::api::v2::{ErrorBody, answer_type, caller, media, not_found};
use crate::api::{State, body};

pub use registry::Consumers;

// Paths of consumers, for the router and the API document.
const GROUP: &str = "/consumers/{group}";
const INSTANCE: &str = "/consumers/{group}/instances/{instance}";
const SUBSCRIPTION: &str = "/consumers/{group}/instances/{instance}/subscription";
const ASSIGNMENTS: &str = "/consumers/{group}/instances/{instance}/assignments";
const RECORDS: &str = "/consumers/{group}/instances/{instance}/records";
const OFFSETS: &str = "/consumers/{group}/instances/{instance}/offsets";
const POSITIONS: &str = "/consumers/{group}/instances/{instance}/positions";
const BEGINNING: &str = "/consumers/{group}/instances/{instance}/positions/beginning";
const END: &str = "/consumers/{group}/instances/{instance}/positions/end";

/// Makes the routes of consumers.
pub(super) fn router(state: &Arc<State>) -> Router {
    use Verb::{Delete, Get, Post};
    let subscription = route(state, (Post, SUBSCRIPTION), caller, subscription::subscribe)
        .merge(route(state, (Get, SUBSCRIPTION), caller, subscription::show))
        .merge(route(state, (Delete, SUBSCRIPTION), caller, subscription::unsubscribe));
    let assignments = route(state, (Post, ASSIGNMENTS), caller, subscription::assign).merge(route(
        state,
        (Get, ASSIGNMENTS),
        caller,
        subscription::assignments,
    ));
    let offsets = route(state, (Post, OFFSETS), caller, offsets::commit).merge(route(
        state,
        (Get, OFFSETS),
        caller,
        offsets::committed,
    ));
    Router::new()
        .route(GROUP, route(state, (Post, GROUP), caller, create::create))
        .route(INSTANCE, route(state, (Delete, INSTANCE), caller, create::delete))
        .route(SUBSCRIPTION, subscription)
        .route(ASSIGNMENTS, assignments)
        .route(RECORDS, route(state, (Get, RECORDS), caller, poll::records))
        .route(OFFSETS, offsets)
        .route(POSITIONS, route(state, (Post, POSITIONS), caller, offsets::seek))
        .route(BEGINNING, route(state, (Post, BEGINNING), caller, offsets::beginning))
        .route(END, route(state, (Post, END), caller, offsets::end))
}

/// Describes consumers.
#[derive(OpenApi)]
#[openapi(paths(
    create::create,
    create::delete,
    subscription::subscribe,
    subscription::show,
    subscription::unsubscribe,
    subscription::assign,
    subscription::assignments,
    poll::records,
    offsets::commit,
    offsets::committed,
    offsets::seek,
    offsets::beginning,
    offsets::end,
))]
struct Document;

/// Describes the operations of consumers.
pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// A partition of a topic.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = V2TopicPartition)]
struct PartitionBody {
    /// The topic.
    topic: String,
    /// The partition.
    partition: u32,
}

/// Partitions of topics.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = V2TopicPartitions)]
struct PartitionsBody {
    /// The partitions.
    partitions: Vec<PartitionBody>,
}

/// Reads the media types of a call that has no records: any of the face's for the body, which is
/// small; returns that of the answer.
fn control(headers: &HeaderMap) -> Result<HeaderValue, ApiError> {
    media::embedded(headers).map_err(|media::Unsupported| {
        ApiError::new(Code::UnsupportedMediaType, "HTTP 415 Unsupported Media Type")
    })?;
    answer_type(headers)
}

async fn read(state: &State, content: Body) -> Result<Bytes, ApiError> {
    read_body(state, content).await
}

/// Reads a body; `None` when it is empty.
async fn read_as<T: DeserializeOwned>(state: &State, content: Body) -> Result<Option<T>, ApiError> {
    let content = read(state, content).await?;
    if content.trim_ascii().is_empty() { Ok(None) } else { body::parse(&content).map(Some) }
}

/// Reads a body that must be there.
async fn expect_body<T: DeserializeOwned>(state: &State, content: Body) -> Result<T, ApiError> {
    let missing = || ApiError::new(Code::InvalidBody, "the body is missing");
    read_as(state, content).await?.ok_or_else(missing)
}

async fn group_of(parts: &mut Parts) -> Result<String, ApiError> {
    path_parameter(parts).await.ok_or_else(not_found)
}

/// Finds the instance that the path names.
async fn instance_of(state: &State, parts: &mut Parts) -> Result<InUse, ApiError> {
    let path = parts.extract::<Path<(String, String)>>().await;
    let Path((group, instance)) = path.map_err(|_| not_found())?;
    state.consumers.find(&group, &instance)
}

fn no_content() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}
