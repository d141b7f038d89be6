//! Metadata: brokers, topics, partitions, offsets.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::Request;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::State;
use crate::api::error::{ApiError, Code};
use crate::api::v2::{
    answer, answer_type, partition_not_found, partition_of, topic_not_found, topic_of,
};
use crate::broker::{PartitionDetails, ReadError, Topic, TopicError};
use crate::types::{NodeId, PartitionId};

/// Topics that one look at the metadata takes; lists of any length are put together from these.
const TOPICS_PER_LOOK: usize = 1_000;

/// An object without members.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = V2Empty)]
pub(super) struct Empty {}

/// The nodes of the cluster.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = V2Brokers)]
pub(super) struct Brokers {
    /// Their ids.
    brokers: Vec<u64>,
}

/// A topic.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = V2Topic)]
pub(super) struct TopicView {
    /// Its name.
    name: String,
    /// Every config with its value in force.
    configs: BTreeMap<&'static str, String>,
    /// Its partitions, in order.
    partitions: Vec<PartitionView>,
}

/// A partition.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = V2Partition)]
pub(super) struct PartitionView {
    /// Its number.
    partition: u32,
    /// The node that leads it, -1 when none does.
    leader: i64,
    /// The nodes that hold it.
    replicas: Vec<ReplicaView>,
}

/// A partition's replica.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = V2Replica)]
pub(super) struct ReplicaView {
    /// The node.
    broker: u64,
    /// Whether it leads the partition.
    leader: bool,
    /// Whether it can take over without loss.
    in_sync: bool,
}

/// The readable range of a partition.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = V2Offsets)]
pub(super) struct Offsets {
    /// First readable offset.
    beginning_offset: i64,
    /// Offset that the next record gets.
    end_offset: i64,
}

/// Says that the server is there.
#[utoipa::path(get, path = "/", operation_id = "v2Root", tag = "v2",
    responses((status = 200, description = "Always", body = Empty,
        content_type = "application/vnd.kafka.v2+json")))]
pub(super) async fn root(_: Arc<State>, request: Request) -> Result<Response, ApiError> {
    answer(answer_type(request.headers())?, &Empty {})
}

/// Says that the server is there, whatever is sent.
#[utoipa::path(post, path = "/", operation_id = "v2Check", tag = "v2",
    request_body(content = Object, content_type = "application/json", description = "Any object"),
    responses((status = 200, description = "Always", body = Empty,
        content_type = "application/vnd.kafka.v2+json")))]
pub(super) async fn check(_: Arc<State>, request: Request) -> Result<Response, ApiError> {
    answer(answer_type(request.headers())?, &Empty {})
}

/// Lists the nodes.
#[utoipa::path(get, path = "/brokers", operation_id = "v2Brokers", tag = "v2",
    responses((status = 200, description = "The nodes' ids", body = Brokers,
        content_type = "application/vnd.kafka.v2+json")))]
pub(super) async fn brokers(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let media_type = answer_type(request.headers())?;
    let nodes = (state.sources.cluster)(&state.principal).nodes;
    answer(media_type, &Brokers { brokers: nodes.iter().map(|node| node.node.get()).collect() })
}

/// Lists the names of all topics.
#[utoipa::path(get, path = "/topics", operation_id = "v2Topics", tag = "v2",
    responses((status = 200, description = "All names, in order", body = Vec<String>,
        content_type = "application/vnd.kafka.v2+json")))]
pub(super) async fn list(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let media_type = answer_type(request.headers())?;
    let mut names: Vec<String> = Vec::new();
    loop {
        let after = names.last().map(String::as_str);
        let page = state.broker.list_topics(&state.principal, "", after, TOPICS_PER_LOOK);
        let is_last = page.len() < TOPICS_PER_LOOK;
        names.extend(page.into_iter().map(|topic| topic.name.as_str().to_owned()));
        if is_last {
            return answer(media_type, &names);
        }
    }
}

/// Shows a topic.
#[utoipa::path(get, path = "/topics/{topic}", operation_id = "v2Topic", tag = "v2",
    params(("topic" = String, Path, description = "The topic's name")),
    responses(
        (status = 200, description = "The topic", body = TopicView,
            content_type = "application/vnd.kafka.v2+json"),
        (status = 404, description = "40403: no such topic", body = crate::api::v2::ErrorBody,
            content_type = "application/vnd.kafka.v2+json")))]
pub(super) async fn topic(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (parts, _) = request.into_parts();
    let media_type = answer_type(&parts.headers)?;
    let name = topic_of(&parts)?;
    // Confluent's proxy says 40403 here and 40401 below; clients test for both.
    let topic = find(&state, &name).map_err(|error| match error.code() {
        Code::TopicNotFound => {
            let text = "This server does not host this topic-partition.";
            ApiError::new(Code::TopicNotFound, text).with_error_code(40403)
        }
        _ => error,
    })?;
    let summary = topic.summary();
    let configs = summary.config.resolved();
    let view = TopicView {
        name: summary.name.as_str().to_owned(),
        configs: configs.map(|(name, value, _)| (name, value.to_owned())).collect(),
        partitions: views(&state, &topic).await?,
    };
    answer(media_type, &view)
}

/// Lists a topic's partitions.
#[utoipa::path(get, path = "/topics/{topic}/partitions", operation_id = "v2Partitions", tag = "v2",
    params(("topic" = String, Path, description = "The topic's name")),
    responses(
        (status = 200, description = "The partitions, in order", body = Vec<PartitionView>,
            content_type = "application/vnd.kafka.v2+json"),
        (status = 404, description = "40401: no such topic", body = crate::api::v2::ErrorBody,
            content_type = "application/vnd.kafka.v2+json")))]
pub(super) async fn partitions(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (parts, _) = request.into_parts();
    let media_type = answer_type(&parts.headers)?;
    let name = topic_of(&parts)?;
    answer(media_type, &views(&state, &*find(&state, &name)?).await?)
}

/// Shows a partition.
#[utoipa::path(get, path = "/topics/{topic}/partitions/{partition}", operation_id = "v2Partition",
    tag = "v2",
    params(
        ("topic" = String, Path, description = "The topic's name"),
        ("partition" = u32, Path, description = "The partition's number")),
    responses(
        (status = 200, description = "The partition", body = PartitionView,
            content_type = "application/vnd.kafka.v2+json"),
        (status = 404, description = "40401: no such topic; 40402: no such partition",
            body = crate::api::v2::ErrorBody, content_type = "application/vnd.kafka.v2+json")))]
pub(super) async fn partition(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (mut parts, _) = request.into_parts();
    let media_type = answer_type(&parts.headers)?;
    let (name, number) = partition_of(&mut parts).await?;
    let topic = find(&state, &name)?;
    let partition = existing(&topic, number)?;
    let details = state.broker.describe_partitions(&state.principal, &topic).await?;
    let found = details.iter().find(|details| details.partition == partition);
    answer(media_type, &found.map(view).ok_or_else(partition_not_found)?)
}

/// Shows which offsets of a partition can be read.
#[utoipa::path(get, path = "/topics/{topic}/partitions/{partition}/offsets",
    operation_id = "v2Offsets", tag = "v2",
    params(
        ("topic" = String, Path, description = "The topic's name"),
        ("partition" = u32, Path, description = "The partition's number")),
    responses(
        (status = 200, description = "The range", body = Offsets,
            content_type = "application/vnd.kafka.v2+json"),
        (status = 404, description = "40401: no such topic; 40402: no such partition",
            body = crate::api::v2::ErrorBody, content_type = "application/vnd.kafka.v2+json")))]
pub(super) async fn offsets(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (mut parts, _) = request.into_parts();
    let media_type = answer_type(&parts.headers)?;
    let (name, number) = partition_of(&mut parts).await?;
    let topic = find(&state, &name)?;
    let partition = existing(&topic, number)?;
    let bounds = state.broker.bounds(&state.principal, &topic, partition).await;
    let bounds = bounds.map_err(|error| match error {
        ReadError::PartitionNotFound { .. } => partition_not_found(),
        other => other.into(),
    })?;
    let (start, end) = bounds;
    answer(media_type, &Offsets { beginning_offset: start.get(), end_offset: end.get() })
}

fn find(state: &State, name: &str) -> Result<Arc<Topic>, ApiError> {
    state.broker.topic(&state.principal, name).map_err(|error| match error {
        TopicError::NotFound(_) => topic_not_found(),
        other => other.into(),
    })
}

fn existing(topic: &Topic, number: Option<PartitionId>) -> Result<PartitionId, ApiError> {
    number.and_then(|number| topic.partition(number.get())).ok_or_else(partition_not_found)
}

async fn views(state: &State, topic: &Topic) -> Result<Vec<PartitionView>, ApiError> {
    let details = state.broker.describe_partitions(&state.principal, topic).await?;
    Ok(details.iter().map(view).collect())
}

fn view(details: &PartitionDetails) -> PartitionView {
    let replica = |node: &NodeId| ReplicaView {
        broker: node.get(),
        leader: details.leader == Some(*node),
        in_sync: true,
    };
    PartitionView {
        partition: details.partition.get(),
        leader: details.leader.and_then(|node| i64::try_from(node.get()).ok()).unwrap_or(-1),
        replicas: details.replicas.iter().map(replica).collect(),
    }
}
