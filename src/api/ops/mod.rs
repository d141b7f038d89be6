//! Operations: health, readiness, metrics, the cluster's state, the API document and its page.
//!
//! What is asked here is known to the server, not to a use case, so the server hands it in as
//! [`Sources`]. None of these routes waits for anything.

mod cluster;
mod docs;
mod health;

pub use cluster::{ClusterStatus, NodeState, NodeStatus, ReplicaRole, ReplicaStatus, ShardStatus};
pub use health::{Check, CheckName};

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use utoipa::OpenApi;

use crate::api::State;
use crate::api::error::{ApiError, Caller, Code};
use crate::api::http::{Verb, route};
use crate::api::memory::mark_charged;
use crate::metrics::CONTENT_TYPE;
use crate::types::{NodeId, Principal};

/// Paths of operations, for the router and the API document.
mod paths {
    pub(super) const HEALTHZ: &str = "/healthz";
    pub(super) const READYZ: &str = "/readyz";
    pub(super) const METRICS: &str = "/metrics";
    pub(super) const CLUSTER: &str = "/v1/cluster";
    pub(super) const CLOCK: &str = "/v1/cluster/clock/confirm";
    pub(super) const OPENAPI: &str = "/openapi.json";
    pub(super) const DOCS: &str = "/docs";
    pub(super) const DOCS_FILE: &str = "/docs/{file}";
}

/// What the server tells about itself.
#[derive(Clone)]
pub struct Sources {
    /// This node.
    pub node: NodeId,
    /// Looks at every part that must work before the node can serve. Must not block.
    pub checks: Arc<dyn Fn() -> Vec<Check> + Send + Sync>,
    /// Describes the cluster as this node knows it. Must not block.
    pub cluster: Arc<dyn Fn(&Principal) -> ClusterStatus + Send + Sync>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Makes the routes of operations.
pub(crate) fn router(state: &Arc<State>) -> Router {
    use Verb::{Get, Post};
    let native = Caller::native;
    Router::new()
        .route(paths::HEALTHZ, route(state, (Get, paths::HEALTHZ), native, health::healthz))
        .route(paths::READYZ, route(state, (Get, paths::READYZ), native, health::readyz))
        .route(paths::METRICS, route(state, (Get, paths::METRICS), native, metrics))
        .route(paths::CLUSTER, route(state, (Get, paths::CLUSTER), native, cluster::show))
        .route(paths::CLOCK, route(state, (Post, paths::CLOCK), native, cluster::confirm_clock))
        .route(paths::OPENAPI, route(state, (Get, paths::OPENAPI), native, docs::document))
        .route(paths::DOCS, route(state, (Get, paths::DOCS), native, docs::page))
        .route(paths::DOCS_FILE, route(state, (Get, paths::DOCS_FILE), native, docs::file))
}

/// Describes operations.
#[derive(OpenApi)]
#[openapi(
    paths(
        health::healthz,
        health::readyz,
        metrics,
        cluster::show,
        cluster::confirm_clock,
        docs::document,
        docs::page,
        docs::file,
    ),
    tags((name = "operations", description = "Health, metrics and the API's description"))
)]
struct Document;

/// Describes these operations.
pub(crate) fn openapi() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// Prints all measurements.
#[utoipa::path(get, path = "/metrics", operation_id = "metrics", tag = "operations",
    responses((status = 200, description = "OpenMetrics text", body = String,
        content_type = "application/openmetrics-text")))]
async fn metrics(state: Arc<State>, _: Request) -> Result<Response, ApiError> {
    state.metrics.http.memory_bytes.set(state.memory.used() as u64);
    let text =
        state.metrics.encode().map_err(|cause| ApiError::new(Code::Internal, cause.to_string()))?;
    Ok(content(CONTENT_TYPE, text))
}

/// Makes an answer of any type. It is not charged: it is there once for all who ask, or it is what
/// tells that everything else is charged.
fn content(media_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    mark_charged(&mut response);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}
