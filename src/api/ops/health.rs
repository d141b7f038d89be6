//! `/healthz` and `/readyz`.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::State;
use crate::api::error::ApiError;
use crate::api::http::json_of;
use crate::types::NodeId;

/// A part of the node that must work before it can serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckName {
    /// The write-ahead log takes writes.
    Wal,
    /// Segments can be read and written, none is damaged, there is room.
    Storage,
    /// The metadata image is loaded and its shard has a leader.
    Metadata,
    /// Every shard of this node has a leader and has applied what was acknowledged.
    Shards,
    /// The SQL view. Being behind is no failure.
    Sql,
}

/// What was found about one part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Check {
    /// The part.
    pub name: CheckName,
    /// Whether it works.
    pub ok: bool,
    /// What is wrong, or worth knowing.
    pub detail: Option<String>,
}

impl Check {
    /// Says that a part works.
    pub fn passed(name: CheckName) -> Self {
        Self { name, ok: true, detail: None }
    }

    /// Says that a part works, with something worth knowing.
    pub fn passed_with(name: CheckName, detail: impl Into<String>) -> Self {
        Self { name, ok: true, detail: Some(detail.into()) }
    }

    /// Says why a part does not work.
    pub fn failed(name: CheckName, detail: impl Into<String>) -> Self {
        Self { name, ok: false, detail: Some(detail.into()) }
    }
}

/// That the process serves.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// Always `ok`.
    #[schema(example = "ok")]
    status: &'static str,
}

/// Whether the node can take requests, and if not, why.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Readiness {
    /// `ready` when every check passed.
    status: ReadyStatus,
    /// This node.
    node: u64,
    /// Every part that was looked at.
    checks: Vec<Check>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ReadyStatus {
    Ready,
    NotReady,
}

/// Says that the process serves.
#[utoipa::path(get, path = "/healthz", operation_id = "healthz", tag = "operations",
    responses((status = 200, description = "It does", body = Health)))]
pub(super) async fn healthz(_: Arc<State>, _: Request) -> Result<Response, ApiError> {
    json_of(StatusCode::OK, &Health { status: "ok" })
}

/// Says whether the node can take requests.
#[utoipa::path(get, path = "/readyz", operation_id = "readyz", tag = "operations",
    responses(
        (status = 200, description = "Every check passed", body = Readiness),
        (status = 503, description = "A check failed", body = Readiness)))]
pub(super) async fn readyz(state: Arc<State>, _: Request) -> Result<Response, ApiError> {
    let (status, readiness) = judge(state.sources.node, (state.sources.checks)());
    json_of(status, &readiness)
}

fn judge(node: NodeId, checks: Vec<Check>) -> (StatusCode, Readiness) {
    let (code, status) = if checks.iter().all(|check| check.ok) {
        (StatusCode::OK, ReadyStatus::Ready)
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, ReadyStatus::NotReady)
    };
    (code, Readiness { status, node: node.get(), checks })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_ready_when_every_check_passed() {
        let behind = Check::passed_with(CheckName::Sql, "12 entries behind");
        let mut checks = vec![Check::passed(CheckName::Wal), behind];
        let (status, readiness) = judge(NodeId::new(1), checks.clone());
        assert_eq!(status, 200);
        assert_eq!(
            serde_json::to_value(readiness).unwrap(),
            json!({"status": "ready", "node": 1, "checks": [
                {"name": "wal", "ok": true, "detail": null},
                {"name": "sql", "ok": true, "detail": "12 entries behind"},
            ]})
        );
        checks.push(Check::failed(CheckName::Shards, "shard 1 has no leader"));
        let (status, readiness) = judge(NodeId::new(1), checks);
        assert_eq!(status, 503);
        let readiness = serde_json::to_value(readiness).unwrap();
        assert_eq!(readiness["status"], "not_ready");
        assert_eq!(readiness["checks"][2]["name"], "shards");
    }
}
