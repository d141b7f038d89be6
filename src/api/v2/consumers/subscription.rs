//! What an instance reads: topics and patterns by its group, partitions by name.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::Request;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::State;
use crate::api::error::{ApiError, Code};
use crate::api::v2::answer;
use crate::api::v2::consumers::consumer::{Reading, Subscribed, illegal_state};
use crate::api::v2::consumers::{
    ErrorBody, PartitionBody, PartitionsBody, control, expect_body, instance_of, no_content,
};
use crate::broker::{GroupError, Subscription};
use crate::types::TopicName;

/// What to subscribe to: one of the two.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = V2Subscription)]
pub(super) struct SubscriptionBody {
    /// These topics, whether they exist yet or not.
    #[serde(default)]
    topics: Option<Vec<String>>,
    /// All topics whose whole name matches this regular expression, now and later.
    #[serde(default)]
    topic_pattern: Option<String>,
}

/// What an instance is subscribed to.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = V2Subscribed)]
pub(super) struct Topics {
    /// The topics; those of a pattern as they match now.
    topics: Vec<String>,
}

/// Subscribes to topics. The instance has its partitions when this is answered.
#[utoipa::path(post, path = "/consumers/{group}/instances/{instance}/subscription",
    operation_id = "v2Subscribe", tag = "v2",
    params(
        ("group" = String, Path, description = "The group's name"),
        ("instance" = String, Path, description = "The instance's name")),
    request_body(content = SubscriptionBody, content_type = "application/vnd.kafka.v2+json"),
    responses(
        (status = 204, description = "Subscribed"),
        (status = "4XX", description = "400; 404 40403: no such instance; 406; 409 40901: a \
            pattern stands against a list, 40903: both or none are given, or partitions are \
            assigned; 415; 422", body = ErrorBody, content_type = "application/vnd.kafka.v2+json"),
        (status = 503, description = "50302: no coordinator", body = ErrorBody,
            content_type = "application/vnd.kafka.v2+json")))]
pub(super) async fn subscribe(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (mut parts, content) = request.into_parts();
    control(&parts.headers)?;
    let instance = instance_of(&state, &mut parts).await?;
    let wanted = match expect_body(&state, content).await? {
        SubscriptionBody { topics: Some(topics), topic_pattern: None } => {
            let names = topics.iter().map(|name| name_of(name));
            Subscription::Topics(names.collect::<Result<_, _>>()?)
        }
        SubscriptionBody { topics: None, topic_pattern: Some(pattern) } => {
            Subscription::Pattern(pattern)
        }
        SubscriptionBody { .. } => {
            return Err(illegal_state(
                "You must choose only one way to configure your consumer: 'topics' or \
                 'topic_pattern'",
            ));
        }
    };
    let mut consumer = instance.consumer.lock().await;
    match &wanted {
        // As in Kafka, to subscribe to nothing is to unsubscribe.
        Subscription::Topics(topics) if topics.is_empty() => consumer.unsubscribe(&state).await?,
        _ => consumer.subscribe(&state, wanted).await?,
    }
    Ok(no_content())
}

fn name_of(name: &str) -> Result<TopicName, ApiError> {
    TopicName::parse(name).map_err(|error| {
        ApiError::new(Code::InvalidBody, format!("'{name}' is not a topic name: {error}"))
    })
}

/// Shows what an instance is subscribed to.
#[utoipa::path(get, path = "/consumers/{group}/instances/{instance}/subscription",
    operation_id = "v2Subscription", tag = "v2",
    params(
        ("group" = String, Path, description = "The group's name"),
        ("instance" = String, Path, description = "The instance's name")),
    responses(
        (status = 200, description = "The topics, none when there is no subscription",
            body = Topics, content_type = "application/vnd.kafka.v2+json"),
        (status = 404, description = "40403: no such instance", body = ErrorBody,
            content_type = "application/vnd.kafka.v2+json")))]
pub(super) async fn show(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (mut parts, _) = request.into_parts();
    let media_type = control(&parts.headers)?;
    let instance = instance_of(&state, &mut parts).await?;
    let consumer = instance.consumer.lock().await;
    let topics = match &consumer.reading {
        Reading::Subscribed(subscribed) => topics_of(&state, subscribed).await?,
        Reading::Assigned | Reading::Nothing => Vec::new(),
    };
    answer(media_type, &Topics { topics })
}

async fn topics_of(state: &State, subscribed: &Subscribed) -> Result<Vec<String>, ApiError> {
    let member = &subscribed.member;
    if let Subscription::Topics(topics) = &subscribed.subscription {
        return Ok(topics.iter().map(ToString::to_string).collect());
    }
    match state.broker.group(&state.principal, member.group().as_str()).await {
        Ok(group) => {
            let found = group.members.into_iter().find(|other| other.id == *member.id());
            let topics = found.map(|member| member.topics).unwrap_or_default();
            Ok(topics.iter().map(ToString::to_string).collect())
        }
        Err(GroupError::NotFound(_)) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// Ends an instance's subscription or assignment.
#[utoipa::path(delete, path = "/consumers/{group}/instances/{instance}/subscription",
    operation_id = "v2Unsubscribe", tag = "v2",
    params(
        ("group" = String, Path, description = "The group's name"),
        ("instance" = String, Path, description = "The instance's name")),
    responses(
        (status = 204, description = "It reads nothing now"),
        (status = 404, description = "40403: no such instance", body = ErrorBody,
            content_type = "application/vnd.kafka.v2+json"),
        (status = 503, description = "50302: no coordinator", body = ErrorBody,
            content_type = "application/vnd.kafka.v2+json")))]
pub(super) async fn unsubscribe(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (mut parts, _) = request.into_parts();
    control(&parts.headers)?;
    let instance = instance_of(&state, &mut parts).await?;
    instance.consumer.lock().await.unsubscribe(&state).await?;
    Ok(no_content())
}

/// Takes partitions by name, without the group.
#[utoipa::path(post, path = "/consumers/{group}/instances/{instance}/assignments",
    operation_id = "v2Assign", tag = "v2",
    params(
        ("group" = String, Path, description = "The group's name"),
        ("instance" = String, Path, description = "The instance's name")),
    request_body(content = PartitionsBody, content_type = "application/vnd.kafka.v2+json"),
    responses(
        (status = 204, description = "Assigned"),
        (status = "4XX", description = "400; 404 40401: no such topic, 40402: no such partition, \
            40403: no such instance; 406; 409 40903: it is subscribed; 415; 422",
            body = ErrorBody, content_type = "application/vnd.kafka.v2+json"),
        (status = 503, description = "50302: not possible now", body = ErrorBody,
            content_type = "application/vnd.kafka.v2+json")))]
pub(super) async fn assign(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (mut parts, content) = request.into_parts();
    control(&parts.headers)?;
    let instance = instance_of(&state, &mut parts).await?;
    let PartitionsBody { partitions } = expect_body(&state, content).await?;
    let wanted: BTreeSet<_> =
        partitions.into_iter().map(|part| (part.topic, part.partition)).collect();
    instance.consumer.lock().await.assign(&state, wanted).await?;
    Ok(no_content())
}

/// Shows which partitions an instance has: by name or by its group.
#[utoipa::path(get, path = "/consumers/{group}/instances/{instance}/assignments",
    operation_id = "v2Assignments", tag = "v2",
    params(
        ("group" = String, Path, description = "The group's name"),
        ("instance" = String, Path, description = "The instance's name")),
    responses(
        (status = 200, description = "The partitions", body = PartitionsBody,
            content_type = "application/vnd.kafka.v2+json"),
        (status = 404, description = "40403: no such instance", body = ErrorBody,
            content_type = "application/vnd.kafka.v2+json")))]
pub(super) async fn assignments(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (mut parts, _) = request.into_parts();
    let media_type = control(&parts.headers)?;
    let instance = instance_of(&state, &mut parts).await?;
    let mut consumer = instance.consumer.lock().await;
    consumer.sync(&state).await?;
    let body = |(topic, partition): &(TopicName, crate::types::PartitionId)| PartitionBody {
        topic: topic.to_string(),
        partition: partition.get(),
    };
    let partitions = consumer.parts.keys().map(body).collect();
    answer(media_type, &PartitionsBody { partitions })
}
