//! What operations ask the server: its checks and its cluster, in the API's shapes.

use std::sync::Arc;

use crate::api::ops::{
    Check, CheckName, ClusterStatus, NodeState, NodeStatus, ReplicaRole, ReplicaStatus,
    ShardStatus, Sources,
};
use crate::broker::{self, Broker, ClusterView};
use crate::metadata::view::ViewMonitor;
use crate::types::ClusterId;

/// Returns the sources of `/readyz` and `/v1/cluster`.
pub(super) fn sources(broker: &Broker, view: ViewMonitor) -> Sources {
    let checking = broker.clone();
    let showing = broker.clone();
    Sources {
        node: broker.node(),
        checks: Arc::new(move || {
            let mut checks: Vec<Check> = checking.checks().into_iter().map(check).collect();
            checks.push(sql(&view));
            checks
        }),
        cluster: Arc::new(move |principal| cluster(showing.cluster(principal))),
    }
}

fn check(check: broker::Check) -> Check {
    let name = match check.part {
        broker::Part::Wal => CheckName::Wal,
        broker::Part::Storage => CheckName::Storage,
        broker::Part::Metadata => CheckName::Metadata,
        broker::Part::Shards => CheckName::Shards,
    };
    Check { name, ok: check.ok, detail: check.detail }
}

/// The SQL view may lag or be away: requests never need it.
fn sql(view: &ViewMonitor) -> Check {
    let status = view.status();
    match status.last_error {
        Some(error) => Check::passed_with(CheckName::Sql, format!("away: {error}")),
        None if status.behind > 0 => {
            Check::passed_with(CheckName::Sql, format!("{} entries behind", status.behind))
        }
        None => Check::passed(CheckName::Sql),
    }
}

fn cluster(view: ClusterView) -> ClusterStatus {
    let nodes = view.nodes.into_iter();
    let shards = view.shards.into_iter().map(|shard| ShardStatus {
        shard: shard.shard,
        leader: shard.leader,
        term: shard.term,
        partitions: u32::try_from(shard.partitions).unwrap_or(u32::MAX),
        replicas: shard
            .replicas
            .into_iter()
            .map(|replica| ReplicaStatus {
                node: replica.node,
                role: ReplicaRole::Voter,
                lag: 0,
                damaged: replica.damaged,
            })
            .collect(),
    });
    ClusterStatus {
        cluster_id: view.cluster_id.unwrap_or_else(|| ClusterId::new(uuid::Uuid::nil())),
        leader: view.leader,
        nodes: nodes
            .map(|node| NodeStatus { node: node.node, url: node.url, state: NodeState::Up })
            .collect(),
        shards: shards.collect(),
    }
}
