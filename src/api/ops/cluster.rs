//! `GET /v1/cluster`: nodes, shards and their replicas as this node knows them.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::State;
use crate::api::error::{ApiError, Problem};
use crate::api::http::{JSON, json_of, negotiate, query, unknown_parameter};
use crate::types::{ClusterId, NodeId, ShardId, Term};

/// The cluster.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ClusterStatus {
    /// Its identity.
    #[schema(value_type = String, format = Uuid)]
    pub cluster_id: ClusterId,
    /// The node that leads the metadata shard, null when none does.
    #[schema(value_type = Option<u64>)]
    pub leader: Option<NodeId>,
    /// Its nodes, in ascending order.
    pub nodes: Vec<NodeStatus>,
    /// Its shards, in ascending order; shard 0 is the metadata shard.
    pub shards: Vec<ShardStatus>,
}

/// A node.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct NodeStatus {
    /// Its id.
    #[schema(value_type = u64)]
    pub node: NodeId,
    /// Where clients reach it.
    pub url: String,
    /// Whether it takes part.
    pub state: NodeState,
}

/// Whether a node takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It does.
    Up,
    /// It cannot be reached.
    Down,
    /// It hands over what it leads, before it stops.
    Draining,
    /// It copies what it will hold.
    Joining,
}

/// A shard.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ShardStatus {
    /// Its id.
    #[schema(value_type = u32)]
    pub shard: ShardId,
    /// The node that leads it, null when none does.
    #[schema(value_type = Option<u64>)]
    pub leader: Option<NodeId>,
    /// Its term.
    #[schema(value_type = u64)]
    pub term: Term,
    /// Its replicas.
    pub replicas: Vec<ReplicaStatus>,
    /// Number of partitions placed on it.
    pub partitions: u32,
}

/// A replica of a shard.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ReplicaStatus {
    /// The node that holds it.
    #[schema(value_type = u64)]
    pub node: NodeId,
    /// Whether it votes.
    pub role: ReplicaRole,
    /// Entries that it lacks of what the leader has.
    pub lag: u64,
    /// Whether segments of it fail their checksum and are not repaired.
    pub damaged: bool,
}

/// Whether a replica votes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReplicaRole {
    /// It does.
    Voter,
    /// It only copies.
    Learner,
}

/// Shows nodes and shards.
#[utoipa::path(get, path = "/v1/cluster", operation_id = "cluster", tag = "operations",
    responses(
        (status = 200, description = "The cluster as this node knows it", body = ClusterStatus),
        (status = 400, description = "`invalid_request`: a query parameter", body = Problem,
            content_type = "application/problem+json"),
        (status = 406, description = "`not_acceptable`", body = Problem,
            content_type = "application/problem+json")))]
pub(super) async fn show(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    negotiate(request.headers(), &[JSON])?;
    match query(request.uri())?.first() {
        Some((name, _)) => Err(unknown_parameter(name)),
        None => json_of(StatusCode::OK, &(state.sources.cluster)(&state.principal)),
    }
}

/// Takes the wall clock of this node for right.
///
/// After the wall clock was set by more than a minute, or at a start more than a day away from the
/// last write, a node deletes nothing by time for an hour: no retention, no expiry of offsets. With
/// this it goes on at once. `/readyz` says when that is so.
#[utoipa::path(post, path = "/v1/cluster/clock/confirm", operation_id = "confirmClock",
    tag = "operations",
    responses(
        (status = 204, description = "The clock is trusted"),
        (status = 400, description = "`invalid_request`: a query parameter", body = Problem,
            content_type = "application/problem+json")))]
pub(super) async fn confirm_clock(
    state: Arc<State>,
    request: Request,
) -> Result<Response, ApiError> {
    if let Some((name, _)) = query(request.uri())?.first() {
        return Err(unknown_parameter(name));
    }
    state.broker.confirm_clock(&state.principal);
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_cluster_is_shown_in_the_documented_shape() {
        let node = NodeId::new(1);
        let status = ClusterStatus {
            cluster_id: ClusterId::new(Uuid::nil()),
            leader: Some(node),
            nodes: vec![NodeStatus {
                node,
                url: "http://127.0.0.1:8080".to_owned(),
                state: NodeState::Draining,
            }],
            shards: vec![ShardStatus {
                shard: ShardId::METADATA,
                leader: None,
                term: Term::new(3),
                replicas: vec![ReplicaStatus {
                    node,
                    role: ReplicaRole::Voter,
                    lag: 0,
                    damaged: false,
                }],
                partitions: 0,
            }],
        };
        assert_eq!(
            serde_json::to_value(status).unwrap(),
            json!({
                "cluster_id": "00000000-0000-0000-0000-000000000000", "leader": 1,
                "nodes": [{"node": 1, "url": "http://127.0.0.1:8080", "state": "draining"}],
                "shards": [{"shard": 0, "leader": null, "term": 3, "partitions": 0, "replicas":
                    [{"node": 1, "role": "voter", "lag": 0, "damaged": false}]}],
            })
        );
    }
}
