//! Committed offsets and positions of an instance.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::Uri;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::State;
use crate::api::error::{ApiError, Code};
use crate::api::http::{bad_parameter, query};
use crate::api::v2::consumers::registry::InUse;
use crate::api::v2::consumers::{
    ErrorBody, PartitionBody, PartitionsBody, control, expect_body, instance_of, no_content,
    read_as,
};
use crate::api::v2::{answer, partition_not_found};
use crate::broker::{GroupError, OffsetCommit, Start};
use crate::types::{Offset, Timestamp};

/// Offsets of partitions.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = V2PartitionOffsets)]
pub(super) struct OffsetsBody {
    /// The offsets; a commit without them is of all records that were answered.
    #[serde(default)]
    offsets: Option<Vec<OffsetBody>>,
}

/// An offset of a partition.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = V2PartitionOffset)]
pub(super) struct OffsetBody {
    /// The topic.
    topic: String,
    /// The partition.
    partition: u32,
    /// The offset.
    offset: i64,
    /// What the client stores with it.
    #[serde(default)]
    metadata: Option<String>,
}

/// Where to read on.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = V2Positions)]
pub(super) struct PositionsBody {
    /// Next offsets to read.
    #[serde(default)]
    offsets: Option<Vec<OffsetBody>>,
    /// Times, of whose first record that is not older reading goes on.
    #[serde(default)]
    timestamps: Option<Vec<TimeBody>>,
}

/// A time in a partition.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = V2PartitionTime)]
pub(super) struct TimeBody {
    /// The topic.
    topic: String,
    /// The partition.
    partition: u32,
    /// ISO 8601 with a time zone.
    timestamp: String,
    /// Ignored.
    #[serde(default, rename = "metadata")]
    _metadata: Option<String>,
}

fn offset_of(body: &OffsetBody) -> Result<Offset, ApiError> {
    Offset::new(body.offset).ok_or_else(|| {
        let OffsetBody { topic, partition, offset, .. } = body;
        let detail = format!("offset {offset} of {topic}-{partition} is below 0");
        ApiError::new(Code::InvalidBody, detail)
    })
}

/// Commits offsets of records that were dealt with: the next one is what the group reads on from.
#[utoipa::path(post, path = "/consumers/{group}/instances/{instance}/offsets",
    operation_id = "v2Commit", tag = "v2",
    params(
        ("group" = String, Path, description = "The group's name"),
        ("instance" = String, Path, description = "The instance's name")),
    request_body(content = Option<OffsetsBody>, content_type = "application/vnd.kafka.v2+json"),
    responses(
        (status = 200, description = "Committed; always an empty list", body = Vec<OffsetBody>,
            content_type = "application/vnd.kafka.v2+json"),
        (status = "4XX", description = "400; 404 40401: no such topic, 40402: no such partition, \
            40403: no such instance; 406; 409 40905: the group has members and the instance is \
            none, 40906: the partition is another member's by now; 413; 415; 422",
            body = ErrorBody, content_type = "application/vnd.kafka.v2+json"),
        (status = "5XX", description = "503: not committed; 504 50401: it is not known",
            body = ErrorBody, content_type = "application/vnd.kafka.v2+json")))]
pub(super) async fn commit(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (mut parts, content) = request.into_parts();
    let media_type = control(&parts.headers)?;
    let instance = instance_of(&state, &mut parts).await?;
    let body: OffsetsBody = read_as(&state, content).await?.unwrap_or_default();
    let named = body.offsets.map(|offsets| offsets.into_iter().map(processed).collect());
    let named: Option<Vec<OffsetCommit>> = named.transpose()?;
    let mut consumer = instance.consumer.lock().await;
    let offsets = named.unwrap_or_else(|| consumer.delivered());
    consumer.commit(&state, offsets).await?;
    answer(media_type, &[(); 0])
}

/// Turns the offset of the last record that was dealt with into the next one to read.
fn processed(body: OffsetBody) -> Result<OffsetCommit, ApiError> {
    let offset = offset_of(&body)?.saturating_add(1);
    let OffsetBody { topic, partition, metadata, .. } = body;
    Ok(OffsetCommit { topic, partition, offset, metadata: metadata.unwrap_or_default() })
}

/// Shows what the group has committed. The partitions stand in the body, as in
/// `{"partitions":[{"topic":"a","partition":0}]}`, or in the query.
#[utoipa::path(get, path = "/consumers/{group}/instances/{instance}/offsets",
    operation_id = "v2Committed", tag = "v2",
    params(
        ("group" = String, Path, description = "The group's name"),
        ("instance" = String, Path, description = "The instance's name"),
        ("partitions" = Option<String>, Query, description = "`topic:0,topic:1`, for clients \
            that send no body with GET")),
    responses(
        (status = 200, description = "The offsets; partitions without one are left out",
            body = OffsetsBody, content_type = "application/vnd.kafka.v2+json"),
        (status = "4XX", description = "400; 404 40402: no partitions are named, 40403: no such \
            instance; 406; 415; 422", body = ErrorBody,
            content_type = "application/vnd.kafka.v2+json")))]
pub(super) async fn committed(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (mut parts, content) = request.into_parts();
    let media_type = control(&parts.headers)?;
    let instance = instance_of(&state, &mut parts).await?;
    let body: Option<PartitionsBody> = read_as(&state, content).await?;
    let asked = match body {
        Some(PartitionsBody { partitions }) => partitions,
        None => in_query(&parts.uri)?.ok_or_else(partition_not_found)?,
    };
    let known = match state.broker.group_offsets(&state.principal, &instance.group).await {
        Err(GroupError::NotFound(_)) => Vec::new(),
        found => found?,
    };
    let find = |part: PartitionBody| {
        let found = known
            .iter()
            .find(|of| of.topic.as_str() == part.topic && of.partition.get() == part.partition)?;
        Some(OffsetBody {
            topic: part.topic,
            partition: part.partition,
            offset: found.offset.get(),
            metadata: Some(found.metadata.to_string()),
        })
    };
    let offsets = asked.into_iter().filter_map(find).collect();
    answer(media_type, &OffsetsBody { offsets: Some(offsets) })
}

/// Reads `partitions=topic:0,topic:1`; no topic's name has a colon.
fn in_query(uri: &Uri) -> Result<Option<Vec<PartitionBody>>, ApiError> {
    let mut all: Option<Vec<PartitionBody>> = None;
    for (_, value) in query(uri)?.iter().filter(|(name, _)| name == "partitions") {
        for pair in value.split(',').filter(|pair| !pair.is_empty()) {
            let expected = "topic:partition pairs with commas between";
            let refuse = || bad_parameter("partitions", value, expected);
            let (topic, number) = pair.rsplit_once(':').ok_or_else(refuse)?;
            let partition = number.parse().ok().ok_or_else(refuse)?;
            let topic = topic.to_owned();
            all.get_or_insert_default().push(PartitionBody { topic, partition });
        }
    }
    Ok(all)
}

/// Moves an instance to offsets, exactly as given, or to times.
#[utoipa::path(post, path = "/consumers/{group}/instances/{instance}/positions",
    operation_id = "v2Seek", tag = "v2",
    params(
        ("group" = String, Path, description = "The group's name"),
        ("instance" = String, Path, description = "The instance's name")),
    request_body(content = PositionsBody, content_type = "application/vnd.kafka.v2+json"),
    responses(
        (status = 204, description = "Moved"),
        (status = "4XX", description = "400; 404 40403: no such instance; 406; 409 40903: a \
            partition is not the instance's; 415; 416 41601: outside of the log, with \
            `auto.offset.reset` none; 422", body = ErrorBody,
            content_type = "application/vnd.kafka.v2+json")))]
pub(super) async fn seek(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (mut parts, content) = request.into_parts();
    control(&parts.headers)?;
    let instance = instance_of(&state, &mut parts).await?;
    let PositionsBody { offsets, timestamps } = expect_body(&state, content).await?;
    let offsets = offsets.unwrap_or_default();
    let wanted: Vec<Offset> = offsets.iter().map(offset_of).collect::<Result<_, _>>()?;
    let times = timestamps.unwrap_or_default();
    let starts: Vec<Start> = times.iter().map(time_of).collect::<Result<_, _>>()?;
    let mut consumer = instance.consumer.lock().await;
    consumer.sync(&state).await?;
    // All are looked up before any is moved.
    let at = offsets.iter().map(|body| (body.topic.as_str(), body.partition));
    for (topic, partition) in
        at.chain(times.iter().map(|time| (time.topic.as_str(), time.partition)))
    {
        consumer.part(topic, partition)?;
    }
    for (body, offset) in offsets.iter().zip(wanted) {
        consumer.seek(&state, (&body.topic, body.partition), offset).await?;
    }
    for (time, start) in times.iter().zip(starts) {
        consumer.seek_to(&state, (&time.topic, time.partition), start).await?;
    }
    Ok(no_content())
}

fn time_of(body: &TimeBody) -> Result<Start, ApiError> {
    let time: Result<jiff::Timestamp, _> = body.timestamp.parse();
    let time = time.map_err(|_| {
        let detail = format!("'{}' is not an ISO 8601 time with a zone", body.timestamp);
        ApiError::new(Code::InvalidBody, detail)
    })?;
    // Rounded up, so that no record is older than what was asked for.
    let rounded = i64::from(time.subsec_nanosecond() % 1_000_000 > 0);
    let millis = time.as_millisecond().saturating_add(rounded);
    Ok(Start::Timestamp(Timestamp::from_millis(millis)))
}

/// Moves an instance to the beginning of partitions; without any, of all that it has.
#[utoipa::path(post, path = "/consumers/{group}/instances/{instance}/positions/beginning",
    operation_id = "v2SeekToBeginning", tag = "v2",
    params(
        ("group" = String, Path, description = "The group's name"),
        ("instance" = String, Path, description = "The instance's name")),
    request_body(content = PartitionsBody, content_type = "application/vnd.kafka.v2+json"),
    responses(
        (status = 204, description = "Moved"),
        (status = "4XX", description = "400; 404 40403: no such instance; 406; 409 40903: a \
            partition is not the instance's; 415; 422", body = ErrorBody,
            content_type = "application/vnd.kafka.v2+json")))]
pub(super) async fn beginning(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    move_to(state, request, Start::Earliest).await
}

/// Moves an instance to the end of partitions; without any, of all that it has.
#[utoipa::path(post, path = "/consumers/{group}/instances/{instance}/positions/end",
    operation_id = "v2SeekToEnd", tag = "v2",
    params(
        ("group" = String, Path, description = "The group's name"),
        ("instance" = String, Path, description = "The instance's name")),
    request_body(content = PartitionsBody, content_type = "application/vnd.kafka.v2+json"),
    responses(
        (status = 204, description = "Moved"),
        (status = "4XX", description = "400; 404 40403: no such instance; 406; 409 40903: a \
            partition is not the instance's; 415; 422", body = ErrorBody,
            content_type = "application/vnd.kafka.v2+json")))]
pub(super) async fn end(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    move_to(state, request, Start::Latest).await
}

async fn move_to(state: Arc<State>, request: Request, start: Start) -> Result<Response, ApiError> {
    let (mut parts, content) = request.into_parts();
    control(&parts.headers)?;
    let instance: InUse = instance_of(&state, &mut parts).await?;
    let PartitionsBody { partitions } = expect_body(&state, content).await?;
    let mut consumer = instance.consumer.lock().await;
    consumer.sync(&state).await?;
    let mut wanted: Vec<(String, u32)> =
        partitions.into_iter().map(|part| (part.topic, part.partition)).collect();
    if wanted.is_empty() {
        let all = consumer.parts.keys();
        wanted.extend(all.map(|(topic, partition)| (topic.to_string(), partition.get())));
    }
    for (topic, partition) in &wanted {
        consumer.part(topic, *partition)?;
    }
    for (topic, partition) in &wanted {
        consumer.seek_to(&state, (topic, *partition), start).await?;
    }
    Ok(no_content())
}
