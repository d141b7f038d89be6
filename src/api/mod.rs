//! The HTTP faces: routers, shapes of requests and answers, the catalogue of errors.
//!
//! A handler is an async function from a request to an answer or an [`ApiError`]; `http::Endpoint`
//! wraps it once with everything that all routes share (the caller's face, time, counts), so that
//! there is no tower layer between the router and a handler, and no router before the produce
//! handlers (see `hot`).
//!
//! Invariants:
//! - this layer knows the broker and no other layer below it;
//! - every body, line, list and stream has a bound, in [`Config`] or beside the code that reads it;
//! - an error leaves here only through the catalogue in [`error`].

pub mod error;
pub mod openapi;
pub mod ops;

mod body;
mod cursor;
mod flushes;
mod hot;
mod http;
mod json;
mod memory;
mod sse;
mod unread;
mod v1;
mod v2;
pub mod ws;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{Method, StatusCode, Uri};
use axum::response::Response;
use tokio::sync::Semaphore;
use tower::ServiceExt;

use crate::api::error::{ApiError, Caller, Code};
use crate::broker::Broker;
use crate::clock::SharedClock;
use crate::metrics::Metrics;
use crate::tasks::Tracker;
use crate::types::Principal;

pub use flushes::Flushes;
pub use hot::{HEAD_BYTES_MAX, Service};
pub use memory::{BODY_WEIGHT, Charge, Memory};
pub use v2::Consumers;

/// Bounds of requests, `http.*` in the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Bytes of a body that is read as a whole (JSON, raw records).
    pub max_body_bytes: usize,
    /// Records of one JSON body.
    pub max_records: usize,
    /// Bytes of one line of an NDJSON body, which itself has no bound.
    pub max_line_bytes: usize,
    /// Bytes of reports that wait for an NDJSON sender to take them, before its body is no longer
    /// read.
    pub report_buffer_bytes: usize,
    /// Bytes that all requests together hold: bodies, answers and reports above what a small
    /// request takes. Streams of events and WebSockets are not among them.
    pub memory_bytes: usize,
    /// Time for a body to arrive, and then for its records to be written.
    pub request_timeout: Duration,
    /// Connections that are served at a time; those beyond wait to be accepted.
    pub max_connections: usize,
    /// Timers of connections and streams.
    pub timers: Timers,
    /// WebSockets, `ws.*` in the settings.
    pub ws: ws::Config,
}

/// Timers of connections and streams. They are part of the protocol and no settings; tests shorten
/// them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timers {
    /// Time for a request's head to arrive, and for an idle connection to send the next one.
    pub head: Duration,
    /// How long a stream of events lives: clients spread over the nodes again when it ends.
    pub events_life: Duration,
    /// A stream of events is not silent for longer.
    pub events_comment_every: Duration,
    /// How long the sender of an NDJSON body may neither send anything nor take a report.
    pub produce_idle: Duration,
    /// How long a client may take nothing of an answer that is ready for it, and send nothing.
    pub answer_stall: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(60),
            events_life: Duration::from_secs(15 * 60),
            events_comment_every: Duration::from_secs(15),
            produce_idle: Duration::from_secs(5 * 60),
            answer_stall: Duration::from_secs(60),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_body_bytes: 16 * 1024 * 1024,
            max_records: 10_000,
            max_line_bytes: 2 * 1024 * 1024,
            report_buffer_bytes: 32 * 1024 * 1024,
            memory_bytes: 256 * 1024 * 1024,
            request_timeout: Duration::from_secs(30),
            max_connections: 4096,
            timers: Timers::default(),
            ws: ws::Config::default(),
        }
    }
}

/// Changes of topics at a time, those whose clients have left included.
pub const CHANGES_MAX: usize = 64;

/// What handlers work with; one per server.
#[derive(Debug)]
pub struct State {
    /// The use cases.
    pub broker: Broker,
    /// Bounds of requests.
    pub config: Config,
    /// What requests may hold together, of `config.memory_bytes`.
    pub memory: Memory,
    /// The server's clock.
    pub clock: SharedClock,
    /// Counts of what is done.
    pub metrics: Arc<Metrics>,
    /// Places for changes that go on when their client has left.
    pub changes: Arc<Semaphore>,
    /// The consumer instances of the REST Proxy face.
    pub consumers: Consumers,
    /// Starts what outlives a handler, and says when the server stops.
    pub tasks: Tracker,
    /// What WebSockets share.
    pub ws: ws::Shared,
    /// What the server tells about itself.
    pub sources: ops::Sources,
    /// Who callers are as long as there is no authentication.
    pub principal: Principal,
}

/// Builds the router of all faces.
fn router(state: &Arc<State>) -> Router {
    let routes = Router::new()
        .merge(v1::router(state))
        .merge(v2::router(state))
        .merge(ws::router(state))
        .merge(ops::router(state))
        .method_not_allowed_fallback(of_no_route(state, method_not_allowed));
    // A path with a trailing slash is found in a second look, so that it costs others nothing.
    let not_found = of_no_route(state, not_found);
    let second_look = routes.clone().fallback(not_found.clone());
    routes.fallback(move |mut request: Request| {
        let (second_look, not_found) = (second_look.clone(), not_found.clone());
        async move {
            match without_trailing_slash(request.uri()) {
                Some(uri) => {
                    *request.uri_mut() = uri;
                    match second_look.oneshot(request).await {
                        Ok(response) => response,
                        Err(never) => match never {},
                    }
                }
                None => not_found(request).await,
            }
        }
    })
}

/// Makes the handler of what no route takes; as a route's, it has what is left of a body read.
fn of_no_route(
    state: &Arc<State>,
    answer: fn(&Request) -> Response,
) -> impl Fn(Request) -> std::future::Ready<Response> + Clone + Send + Sync + 'static {
    let state = Arc::clone(state);
    move |request| {
        let request = unread::read_to_its_end(&state, request);
        std::future::ready(answer(&request))
    }
}

/// Takes slashes off the end of the path; `None` when it has none to take.
fn without_trailing_slash(uri: &Uri) -> Option<Uri> {
    let path = uri.path();
    let bare = path.trim_end_matches('/');
    if bare.is_empty() || bare.len() == path.len() {
        return None;
    }
    let path_and_query = match uri.query() {
        Some(query) => format!("{bare}?{query}"),
        None => bare.to_owned(),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path_and_query.parse().ok()?);
    Uri::from_parts(parts).ok()
}

fn not_found(request: &Request) -> Response {
    let detail = format!("no resource has the path '{}'", request.uri().path());
    refuse(request, Code::NotFound, (detail, "HTTP 404 Not Found"))
}

/// Answers a method that a path does not have. The router adds `Allow`, which is all that OPTIONS
/// asks for.
fn method_not_allowed(request: &Request) -> Response {
    if request.method() == Method::OPTIONS {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        return response;
    }
    let detail = format!("{} is not possible on '{}'", request.method(), request.uri().path());
    refuse(request, Code::MethodNotAllowed, (detail, "HTTP 405 Method Not Allowed"))
}

/// The media type of errors of the REST Proxy's v2 face.
const V2_JSON: &str = "application/vnd.kafka.v2+json";

/// Answers a request that no handler takes. The path tells the face; clients of the REST Proxy's
/// compare its errors by their text.
fn refuse(request: &Request, code: Code, (detail, proxy_text): (String, &'static str)) -> Response {
    match rest_proxy_type(request) {
        Some(media_type) => ApiError::new(code, proxy_text)
            .respond(&Caller::two_fields(request.headers(), media_type)),
        None => ApiError::new(code, detail).respond(&Caller::native(request.headers())),
    }
}

/// Returns the media type of errors of the REST Proxy face that a path belongs to, if it does.
fn rest_proxy_type(request: &Request) -> Option<&'static str> {
    let path = request.uri().path();
    let under = |prefix: &str| {
        path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if path == "/" || ["/topics", "/consumers", "/brokers"].into_iter().any(under) {
        Some(V2_JSON)
    } else if under("/v3") || under("/kafka/v3") {
        Some(http::JSON)
    } else {
        None
    }
}
