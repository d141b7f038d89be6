//! The native face, `/v1`: topics, produce, stateless reads and consumer groups.
//!
//! One file per resource. Paths are constants here, used by the routes and by the document.
//!
//! Invariants:
//! - unknown query parameters and unknown JSON members are refused by name;
//! - an answer says of each record either where it was written or why not, in order.

mod delivery;
mod group_tail;
mod groups;
mod lines;
mod member;
mod page;
mod plan;
pub(crate) mod produce;
mod reports;
mod stream;
mod tail;
mod topics;

use std::borrow::Cow;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::response::Response;
use utoipa::OpenApi;

use crate::api::State;
use crate::api::error::{ApiError, Caller, Code, Problem};
use crate::api::flushes::Flushes;
use crate::api::hot::{self, Handler};
use crate::api::http::{Verb, negotiate, route, topic_in_path};
use crate::broker::Topic;

/// All topics.
pub(crate) const TOPICS: &str = "/v1/topics";
/// One topic.
pub(crate) const TOPIC: &str = "/v1/topics/{topic}";
/// The records of one topic.
pub(crate) const RECORDS: &str = "/v1/topics/{topic}/records";

/// Builds the face's routes.
pub(crate) fn router(state: &Arc<State>) -> Router {
    let native = Caller::native;
    Router::new()
        .merge(groups::router(state))
        .route(TOPICS, route(state, (Verb::Get, TOPICS), native, topics::list))
        .route(
            TOPIC,
            route(state, (Verb::Get, TOPIC), native, topics::show)
                .merge(route(state, (Verb::Put, TOPIC), native, topics::put))
                .merge(route(state, (Verb::Delete, TOPIC), native, topics::delete)),
        )
        .route(
            RECORDS,
            route(state, (Verb::Post, RECORDS), native, produce::produce).merge(route(
                state,
                (Verb::Get, RECORDS),
                native,
                read,
            )),
        )
}

/// Makes the handler of produce requests that need no router.
pub(crate) fn produce_handler(state: &Arc<State>) -> Handler {
    hot::handler(state, (Verb::Post, RECORDS), Caller::native, produce::produce)
}

/// The face's part of the API document.
#[derive(OpenApi)]
#[openapi(
    paths(topics::list, topics::show, topics::put, topics::delete, produce::produce, read),
    components(schemas(Problem))
)]
struct Document;

/// Returns the face's part of the API document.
pub(crate) fn openapi() -> utoipa::openapi::OpenApi {
    let mut document = Document::openapi();
    document.merge(groups::openapi());
    document
}

/// Finds the topic that the path names, for reading or showing it.
fn topic_of(state: &State, parts: &Parts) -> Result<Arc<Topic>, ApiError> {
    Ok(state.broker.topic(&state.principal, &topic_name(parts)?)?)
}

/// Returns the name of the topic that the path wants to be read, shown or deleted.
fn topic_name(parts: &Parts) -> Result<Cow<'_, str>, ApiError> {
    topic_in_path(&parts.uri)
        .ok_or_else(|| ApiError::new(Code::TopicNotFound, "no topic has a name that is not UTF-8"))
}

/// Returns the name of the topic that the path wants to be written.
fn name_to_write(parts: &Parts) -> Result<Cow<'_, str>, ApiError> {
    topic_in_path(&parts.uri)
        .ok_or_else(|| ApiError::new(Code::InvalidName, "a topic name is ASCII text"))
}

/// Reads records without a group.
///
/// `Accept` picks the answer: a JSON page, NDJSON with the cursor in `Eddyline-Next`, or
/// server-sent events, which stay open and resume by `Last-Event-ID`.
#[utoipa::path(
    get,
    path = "/v1/topics/{topic}/records",
    operation_id = "readRecords",
    tag = "records",
    params(
        ("topic" = String, Path, description = "The topic's name"),
        ("Last-Event-ID" = Option<String>, Header, description = "A cursor, which beats `from`. \
            Up to 144 KiB fit, those of a topic with 10,000 partitions; a head of more than \
            160 KiB is answered 431, an address of more than 65,534 bytes 414"),
        plan::ReadParameters,
    ),
    responses(
        (status = 200, description = "Records", content(
            (page::Page = "application/json"),
            (String = "application/x-ndjson"),
            (String = "text/event-stream"),
        ), headers(
            ("Eddyline-Next" = String, description = "NDJSON: the cursor to go on with"),
            ("Eddyline-End" = String, description = "NDJSON: log end offsets, `0:17,1:5`; absent \
                when that is longer than 8 KiB"),
            ("Eddyline-Gaps" = String, description = "NDJSON: offsets that are gone, `0:5-9`; \
                after 8 KiB it ends in `,...`"),
            ("Eddyline-Start" = String, description = "Events: the cursor of the real start"),
        )),
        (status = 400, description = "A parameter is not acceptable", body = Problem,
            content_type = "application/problem+json"),
        (status = 404, description = "No such topic or partition", body = Problem,
            content_type = "application/problem+json"),
        (status = 406, description = "No such answer", body = Problem,
            content_type = "application/problem+json"),
        (status = 410, description = "The cursor's topic was deleted", body = Problem,
            content_type = "application/problem+json"),
        (status = 416, description = "Offset out of range", body = Problem,
            content_type = "application/problem+json"),
        (status = 503, description = "Not readable now; `overloaded` when the \
            requests that are open hold `http.memory_bytes`; or damaged: then with `partition`, \
            `damaged_from` and `next_good_offset`", body = Problem,
            content_type = "application/problem+json"),
    )
)]
async fn read(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    use crate::api::http::{EVENT_STREAM, JSON, NDJSON};
    let (parts, _) = request.into_parts();
    let answer = negotiate(&parts.headers, &[JSON, NDJSON, EVENT_STREAM])?;
    let streams = answer == EVENT_STREAM;
    let mut parameters = plan::parse(&parts, streams)?;
    let topic = topic_of(&state, &parts)
        .map_err(|error| plan::gone_with_its_cursor(&state, &parameters, error))?;
    if let (true, Some(member)) = (streams, parameters.member.take()) {
        let flushes = parts.extensions.get::<Flushes>().cloned();
        return group_tail::answer(state, topic, (parameters, member), flushes).await;
    }
    if streams {
        return tail::answer(state, topic, parameters).await;
    }
    let style = if answer == NDJSON { page::Shape::Lines } else { page::Shape::Page };
    page::answer(state, topic, parameters, style).await
}
