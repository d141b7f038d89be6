//! Committed offsets of a group: show, commit, move, delete.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::Response;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::api::error::{ApiError, Code, Problem};
use crate::api::http::{
    FORM, JSON, MediaType, bad_parameter, json_of, negotiate, query, read_body, unknown_parameter,
};
use crate::api::v1::groups::{group_of, in_time, no_content};
use crate::api::v1::topics::no_parameters;
use crate::api::{State, body};
use crate::broker::{
    CommitAs, CommittedOffset, OffsetCommit, OffsetMove, ResetMode, ResetOffsets, ResetTo,
};
use crate::types::{Epoch, MemberId, Offset, Timestamp};

/// The committed offsets of a group.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct GroupOffsets {
    /// The group's name.
    group: String,
    /// Its offsets, by topic and partition.
    offsets: Vec<CommittedBody>,
}

/// A committed offset.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CommittedOffset)]
pub(super) struct CommittedBody {
    /// The topic.
    topic: String,
    /// The partition.
    partition: u32,
    /// The next offset to read.
    offset: i64,
    /// What the client stored with it.
    metadata: String,
    /// Milliseconds since the epoch.
    committed_at: i64,
    /// Offset that the partition's next record gets.
    log_end_offset: i64,
    /// Records from the committed offset to the end.
    lag: u64,
    /// Age of the first record that is to be read; null when it could not be read.
    lag_ms: Option<u64>,
}

impl From<&CommittedOffset> for CommittedBody {
    fn from(offset: &CommittedOffset) -> Self {
        Self {
            topic: offset.topic.to_string(),
            partition: offset.partition.get(),
            offset: offset.offset.get(),
            metadata: offset.metadata.to_string(),
            committed_at: offset.committed_at.as_millis(),
            log_end_offset: offset.log_end.get(),
            lag: offset.lag,
            lag_ms: offset.lag_ms,
        }
    }
}

/// Offsets to commit, all or none of them.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CommitBody {
    /// The offsets.
    offsets: Vec<CommitItem>,
    /// The member in whose name it is done, with `epoch`. Without it the group must be empty.
    #[serde(default)]
    member_id: Option<String>,
    /// The epoch that the member has reached.
    #[serde(default)]
    epoch: Option<u32>,
}

/// An offset to commit.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CommitItem {
    /// The topic.
    topic: String,
    /// The partition.
    partition: u32,
    /// The next offset to read.
    #[serde(deserialize_with = "offset")]
    #[schema(value_type = i64, minimum = 0)]
    offset: Offset,
    /// What the client wants to find with it, at most 4,096 bytes.
    #[serde(default)]
    metadata: Option<String>,
}

/// Where committed offsets shall be moved to.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResetBody {
    /// The topic.
    topic: String,
    /// The partitions; all of the topic when absent.
    #[serde(default)]
    partitions: Option<Vec<u32>>,
    /// The place, clamped to what the partition has.
    to: Place,
    /// Whether it is only told what would be done.
    #[serde(default)]
    dry_run: bool,
}

/// A place in a partition.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Place {
    /// The log start.
    Earliest,
    /// The log end.
    Latest,
    /// An offset.
    Offset(i64),
    /// The first record, in offset order, that is not older.
    Timestamp(Time),
    /// So many records on or, negative, back.
    Shift(i64),
}

/// Milliseconds since the epoch, or RFC 3339.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
enum Time {
    Millis(i64),
    Text(String),
}

/// What a reset did, or would do.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ResetAnswer {
    /// Whether nothing was changed.
    dry_run: bool,
    /// What was moved.
    offsets: Vec<MoveBody>,
}

/// What a reset does to one partition.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OffsetMove)]
struct MoveBody {
    /// The topic.
    topic: String,
    /// The partition.
    partition: u32,
    /// The committed offset before, null when there was none.
    from: Option<i64>,
    /// The committed offset after.
    to: i64,
}

impl From<&OffsetMove> for MoveBody {
    fn from(step: &OffsetMove) -> Self {
        Self {
            topic: step.topic.to_string(),
            partition: step.partition.get(),
            from: step.from.map(Offset::get),
            to: step.to.get(),
        }
    }
}

fn offset<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Offset, D::Error> {
    let raw = i64::deserialize(deserializer)?;
    Offset::new(raw).ok_or_else(|| serde::de::Error::custom("an offset is not below 0"))
}

/// Lists the committed offsets of a group.
#[utoipa::path(
    get,
    path = "/v1/groups/{group}/offsets",
    operation_id = "getGroupOffsets",
    tag = "groups",
    params(("group" = String, Path, description = "The group's name")),
    responses(
        (status = 200, description = "The offsets", body = GroupOffsets),
        (status = 404, description = "No such group", body = Problem,
            content_type = "application/problem+json"),
        (status = 406, description = "No such answer", body = Problem,
            content_type = "application/problem+json"),
        (status = 503, description = "Not possible now", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn list(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (mut parts, _) = request.into_parts();
    negotiate(&parts.headers, &[JSON])?;
    no_parameters(&parts.uri)?;
    let group = group_of(&mut parts).await?;
    shown(&state, group).await
}

async fn shown(state: &State, group: String) -> Result<Response, ApiError> {
    let offsets = in_time(state, state.broker.group_offsets(&state.principal, &group)).await?;
    let offsets = offsets.iter().map(CommittedBody::from).collect();
    json_of(StatusCode::OK, &GroupOffsets { group, offsets })
}

/// Commits offsets: of a member, or of a group without members, which is made when it is new.
#[utoipa::path(
    post,
    path = "/v1/groups/{group}/offsets",
    operation_id = "commitGroupOffsets",
    tag = "groups",
    params(("group" = String, Path, description = "The group's name")),
    request_body(content = CommitBody, content_type = "application/json"),
    responses(
        (status = 200, description = "All offsets of the group", body = GroupOffsets),
        (status = 400, description = "Malformed JSON", body = Problem,
            content_type = "application/problem+json"),
        (status = 404, description = "No such topic or partition", body = Problem,
            content_type = "application/problem+json"),
        (status = 409, description = "The group has members, or the member is stale",
            body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "Too many offsets, or too long metadata", body = Problem,
            content_type = "application/problem+json"),
        (status = 415, description = "Not JSON", body = Problem,
            content_type = "application/problem+json"),
        (status = 422, description = "Name or body not acceptable", body = Problem,
            content_type = "application/problem+json"),
        (status = 503, description = "Not possible now", body = Problem,
            content_type = "application/problem+json"),
        (status = 504, description = "It is not known whether it was committed", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn commit(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (mut parts, body) = request.into_parts();
    negotiate(&parts.headers, &[JSON])?;
    no_parameters(&parts.uri)?;
    expect_json(&parts.headers)?;
    let group = group_of(&mut parts).await?;
    let CommitBody { offsets, member_id, epoch } = body::parse(&read_body(&state, body).await?)?;
    let commit_as = match (member_id, epoch) {
        (None, None) => CommitAs::Group,
        (Some(member), Some(epoch)) => CommitAs::Member(member_of(&member)?, Epoch::new(epoch)),
        (Some(_), None) => return Err(missing("/epoch", "'member_id' needs 'epoch'")),
        (None, Some(_)) => return Err(missing("/member_id", "'epoch' needs 'member_id'")),
    };
    let commit = |item: CommitItem| OffsetCommit {
        topic: item.topic,
        partition: item.partition,
        offset: item.offset,
        metadata: item.metadata.unwrap_or_default(),
    };
    let offsets = offsets.into_iter().map(commit).collect();
    let broker = &state.broker;
    in_time(&state, broker.commit_offsets(&state.principal, &group, commit_as, offsets)).await?;
    shown(&state, group).await
}

fn missing(pointer: &str, detail: &str) -> ApiError {
    ApiError::at(Code::InvalidBody, pointer, detail)
}

/// Reads a member's id. What cannot be one is not in the group.
fn member_of(text: &str) -> Result<MemberId, ApiError> {
    MemberId::parse(text).map_err(|error| {
        ApiError::new(Code::StaleMember, format!("'member_id' is none of this group: {error}"))
    })
}

/// Moves the committed offsets of a group without members, or tells what that would do.
#[utoipa::path(
    post,
    path = "/v1/groups/{group}/offsets/reset",
    operation_id = "resetGroupOffsets",
    tag = "groups",
    params(("group" = String, Path, description = "The group's name")),
    request_body(content = ResetBody, content_type = "application/json"),
    responses(
        (status = 200, description = "What was moved", body = ResetAnswer),
        (status = 400, description = "Malformed JSON", body = Problem,
            content_type = "application/problem+json"),
        (status = 404, description = "No such group, topic or partition", body = Problem,
            content_type = "application/problem+json"),
        (status = 409, description = "The group has members", body = Problem,
            content_type = "application/problem+json"),
        (status = 415, description = "Not JSON", body = Problem,
            content_type = "application/problem+json"),
        (status = 422, description = "Body not acceptable", body = Problem,
            content_type = "application/problem+json"),
        (status = 503, description = "Not possible now", body = Problem,
            content_type = "application/problem+json"),
        (status = 504, description = "It is not known whether they were moved", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn reset(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (mut parts, body) = request.into_parts();
    negotiate(&parts.headers, &[JSON])?;
    no_parameters(&parts.uri)?;
    expect_json(&parts.headers)?;
    let group = group_of(&mut parts).await?;
    let ResetBody { topic, partitions, to, dry_run } =
        body::parse(&read_body(&state, body).await?)?;
    let mode = if dry_run { ResetMode::DryRun } else { ResetMode::Apply };
    let reset = ResetOffsets { topic, partitions, to: place(to)?, mode };
    let broker = &state.broker;
    let moves = in_time(&state, broker.reset_offsets(&state.principal, &group, reset)).await?;
    let offsets = moves.iter().map(MoveBody::from).collect();
    json_of(StatusCode::OK, &ResetAnswer { dry_run, offsets })
}

fn place(to: Place) -> Result<ResetTo, ApiError> {
    Ok(match to {
        Place::Earliest => ResetTo::Earliest,
        Place::Latest => ResetTo::Latest,
        Place::Offset(raw) => {
            let refuse = || missing("/to/offset", "an offset is not below 0");
            ResetTo::Offset(Offset::new(raw).ok_or_else(refuse)?)
        }
        Place::Shift(by) => ResetTo::Shift(by),
        Place::Timestamp(Time::Millis(millis)) => {
            ResetTo::Timestamp(Timestamp::from_millis(millis))
        }
        Place::Timestamp(Time::Text(text)) => {
            let refuse = |_| missing("/to/timestamp", "milliseconds or an RFC 3339 time");
            let time: jiff::Timestamp = text.parse().map_err(refuse)?;
            // Rounded up, so that no record is older than what was asked for.
            let rounded = i64::from(time.subsec_nanosecond() % 1_000_000 > 0);
            let millis = time.as_millisecond().saturating_add(rounded);
            ResetTo::Timestamp(Timestamp::from_millis(millis))
        }
    })
}

/// Deletes the committed offsets of a topic or of one partition of it.
#[utoipa::path(
    delete,
    path = "/v1/groups/{group}/offsets",
    operation_id = "deleteGroupOffsets",
    tag = "groups",
    params(
        ("group" = String, Path, description = "The group's name"),
        ("topic" = String, Query, description = "The topic"),
        ("partition" = Option<u32>, Query, description = "The partition; all when absent")),
    responses(
        (status = 204, description = "They are gone"),
        (status = 400, description = "A parameter is not acceptable", body = Problem,
            content_type = "application/problem+json"),
        (status = 404, description = "No such group, topic or partition", body = Problem,
            content_type = "application/problem+json"),
        (status = 409, description = "The group has members", body = Problem,
            content_type = "application/problem+json"),
        (status = 503, description = "Not possible now", body = Problem,
            content_type = "application/problem+json"),
        (status = 504, description = "It is not known whether they were deleted", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn delete(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (mut parts, _) = request.into_parts();
    let (topic, partition) = chosen(&parts.uri)?;
    let group = group_of(&mut parts).await?;
    let (broker, principal) = (&state.broker, &state.principal);
    in_time(&state, broker.delete_group_offsets(principal, &group, &topic, partition)).await?;
    Ok(no_content())
}

/// Reads which offsets the query chooses.
fn chosen(uri: &Uri) -> Result<(String, Option<u32>), ApiError> {
    let (mut topic, mut partition) = (None, None);
    for (name, value) in query(uri)? {
        let first = match &*name {
            "topic" => topic.replace(value.into_owned()).is_none(),
            "partition" => {
                let refuse = || bad_parameter("partition", &value, "a number");
                let number = value.parse::<u32>().ok().ok_or_else(refuse)?;
                partition.replace(number).is_none()
            }
            _ => return Err(unknown_parameter(&name)),
        };
        if !first {
            let detail = format!("query parameter '{name}' is given twice");
            return Err(ApiError::invalid_request(detail));
        }
    }
    let missing = || ApiError::invalid_request("query parameter 'topic' is missing");
    Ok((topic.ok_or_else(missing)?, partition))
}

/// Checks that a body says it is JSON, or says nothing.
fn expect_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(given) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let media_type = MediaType::parse(given.to_str().unwrap_or_default());
    if media_type.is(JSON) || media_type.is(FORM) {
        return media_type.expect_utf8();
    }
    Err(ApiError::new(Code::UnsupportedMediaType, format!("the body is {JSON}")))
}
