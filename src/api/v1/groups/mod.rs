//! Consumer groups: list, show, delete; their offsets are in `offsets`.

mod offsets;

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};

use crate::api::State;
use crate::api::error::{ApiError, Caller, Code, Problem};
use crate::api::http::{
    JSON, Verb, bad_parameter, json_of, negotiate, path_parameter, query, route, unknown_parameter,
};
use crate::api::v1::groups::offsets::CommittedBody;
use crate::api::v1::topics::{list_cursor, no_parameters, parse_list_cursor};
use crate::broker::{
    GroupDescription, GroupError, GroupSummary, MemberDescription, Rebalance as BrokerRebalance,
};

/// All groups.
pub(crate) const GROUPS: &str = "/v1/groups";
/// One group.
pub(crate) const GROUP: &str = "/v1/groups/{group}";
/// The offsets of one group.
pub(crate) const OFFSETS: &str = "/v1/groups/{group}/offsets";
/// Moves the offsets of one group.
pub(crate) const RESET: &str = "/v1/groups/{group}/offsets/reset";

/// Groups of one page unless the client says otherwise.
const LIMIT_DEFAULT: usize = 100;
/// Groups of one page at most.
const LIMIT_MAX: usize = 1000;

/// Builds the routes of groups.
pub(super) fn router(state: &Arc<State>) -> Router {
    use Verb::{Delete, Get, Post};
    let native = Caller::native;
    Router::new()
        .route(GROUPS, route(state, (Get, GROUPS), native, list))
        .route(
            GROUP,
            route(state, (Get, GROUP), native, show).merge(route(
                state,
                (Delete, GROUP),
                native,
                delete,
            )),
        )
        .route(
            OFFSETS,
            route(state, (Get, OFFSETS), native, offsets::list)
                .merge(route(state, (Post, OFFSETS), native, offsets::commit))
                .merge(route(state, (Delete, OFFSETS), native, offsets::delete)),
        )
        .route(RESET, route(state, (Post, RESET), native, offsets::reset))
}

/// The part of the API document about groups.
#[derive(OpenApi)]
#[openapi(
    paths(list, show, delete, offsets::list, offsets::commit, offsets::delete, offsets::reset),
    tags((name = "groups", description = "Consumer groups: members and committed offsets"))
)]
struct Document;

/// Returns the part of the API document about groups.
pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// A page of groups.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct GroupList {
    /// Groups by name.
    groups: Vec<SummaryBody>,
    /// Cursor of the next page, null on the last one.
    next: Option<String>,
}

/// A group in a list.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = GroupSummary)]
struct SummaryBody {
    /// Its name.
    group: String,
    /// `empty`, `assigning`, `reconciling`, `stable` or `dead`.
    state: &'static str,
    /// How many members it has.
    members: usize,
    /// The topics that it reads or has offsets of.
    topics: Vec<String>,
    /// Records that are behind its committed offsets.
    lag: u64,
}

/// A group.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Group)]
pub(crate) struct GroupBody {
    /// Its name.
    group: String,
    /// `empty`, `assigning`, `reconciling`, `stable` or `dead`.
    state: &'static str,
    /// The newest epoch.
    epoch: u32,
    /// `uniform` or `range`.
    assignor: &'static str,
    /// The node that coordinates it, null when none does.
    coordinator: Option<u64>,
    /// Its members, by id.
    members: Vec<MemberBody>,
    /// Its committed offsets, by topic and partition.
    offsets: Vec<CommittedBody>,
    /// Records that are behind its committed offsets.
    lag: u64,
    /// What made it share out its partitions, oldest first; the last 100.
    rebalances: Vec<RebalanceBody>,
}

/// A member of a group.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Member)]
struct MemberBody {
    /// Its id.
    member_id: String,
    /// The name by which a static member is known again.
    instance_id: Option<String>,
    /// `rest_v2`, `sse`, `websocket` or `kafka`.
    kind: &'static str,
    /// The epoch that it has reached.
    epoch: u32,
    /// `stable`, `unrevoked_partitions` or `unreleased_partitions`.
    state: &'static str,
    /// How long it is waited for when it is gone, in milliseconds: what it asked for, clamped to
    /// 6 s to 30 min.
    session_timeout_ms: u64,
    /// The topics that it is subscribed to.
    topics: Vec<String>,
    /// How many topics match its pattern beyond the 1,000 that a subscription may have; absent when
    /// there are none. They are read when others of them are deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    topics_left_out: Option<usize>,
    /// One entry for each partition that it may read.
    assignment: Vec<AssignmentBody>,
}

/// A partition of a topic.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Assignment)]
struct AssignmentBody {
    /// The topic.
    topic: String,
    /// The partition.
    partition: u32,
}

/// Something that made a group share out its partitions anew.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Rebalance)]
struct RebalanceBody {
    /// Milliseconds since the epoch.
    at: i64,
    /// The group's epoch that it began.
    epoch: u32,
    /// `member_joined`, `member_left`, `session_expired`, `rebalance_timed_out`,
    /// `subscription_changed` or `topics_changed`.
    reason: &'static str,
    /// Which member or topic it was about.
    detail: String,
    /// Milliseconds until every member had its part, null while that is not so.
    took_ms: Option<u64>,
}

impl From<GroupSummary> for SummaryBody {
    fn from(group: GroupSummary) -> Self {
        Self {
            group: group.group.to_string(),
            state: group.status.as_str(),
            members: group.members,
            topics: group.topics.iter().map(ToString::to_string).collect(),
            lag: group.lag,
        }
    }
}

impl From<GroupDescription> for GroupBody {
    fn from(group: GroupDescription) -> Self {
        Self {
            group: group.group.to_string(),
            state: group.status.as_str(),
            epoch: group.epoch.get(),
            assignor: group.assignor.as_str(),
            coordinator: group.coordinator.map(|node| node.get()),
            members: group.members.into_iter().map(MemberBody::from).collect(),
            offsets: group.offsets.iter().map(CommittedBody::from).collect(),
            lag: group.lag,
            rebalances: group.rebalances.into_iter().map(RebalanceBody::from).collect(),
        }
    }
}

impl From<MemberDescription> for MemberBody {
    fn from(member: MemberDescription) -> Self {
        let assignment = member.assignment.iter().map(|(topic, partition)| AssignmentBody {
            topic: topic.to_string(),
            partition: partition.get(),
        });
        Self {
            member_id: member.id.to_string(),
            instance_id: member.instance_id.map(|id| id.to_string()),
            kind: member.kind.as_str(),
            epoch: member.epoch.get(),
            state: member.status.as_str(),
            session_timeout_ms: u64::try_from(member.session_timeout.as_millis())
                .unwrap_or(u64::MAX),
            topics: member.topics.iter().map(ToString::to_string).collect(),
            topics_left_out: Some(member.topics_left_out).filter(|left_out| *left_out > 0),
            assignment: assignment.collect(),
        }
    }
}

impl From<BrokerRebalance> for RebalanceBody {
    fn from(rebalance: BrokerRebalance) -> Self {
        Self {
            at: rebalance.at.as_millis(),
            epoch: rebalance.epoch.get(),
            reason: rebalance.reason.as_str(),
            detail: rebalance.detail,
            took_ms: rebalance.took_ms,
        }
    }
}

/// Lists groups by name.
#[utoipa::path(
    get,
    path = "/v1/groups",
    operation_id = "listGroups",
    tag = "groups",
    params(ListParameters),
    responses(
        (status = 200, description = "Groups", body = GroupList),
        (status = 400, description = "A parameter is not acceptable", body = Problem,
            content_type = "application/problem+json"),
        (status = 406, description = "No such answer", body = Problem,
            content_type = "application/problem+json"),
        (status = 503, description = "Not possible now", body = Problem,
            content_type = "application/problem+json"),
    )
)]
async fn list(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (parts, _) = request.into_parts();
    negotiate(&parts.headers, &[JSON])?;
    let ListParameters { limit, after } = list_parameters(&parts.uri)?;
    // One more than asked for tells whether there is a next page.
    let found = state.broker.list_groups(&state.principal, after.as_deref(), limit + 1);
    let mut groups = in_time(&state, found).await?;
    let more = groups.len() > limit;
    groups.truncate(limit);
    let next = groups.last().filter(|_| more).map(|group| list_cursor(group.group.as_str()));
    let groups = groups.into_iter().map(SummaryBody::from).collect();
    json_of(StatusCode::OK, &GroupList { groups, next })
}

/// Shows a group: its members, offsets, lag and last rebalances.
#[utoipa::path(
    get,
    path = "/v1/groups/{group}",
    operation_id = "getGroup",
    tag = "groups",
    params(("group" = String, Path, description = "The group's name")),
    responses(
        (status = 200, description = "The group", body = GroupBody),
        (status = 404, description = "No such group", body = Problem,
            content_type = "application/problem+json"),
        (status = 406, description = "No such answer", body = Problem,
            content_type = "application/problem+json"),
        (status = 503, description = "Not possible now", body = Problem,
            content_type = "application/problem+json"),
    )
)]
async fn show(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (mut parts, _) = request.into_parts();
    negotiate(&parts.headers, &[JSON])?;
    no_parameters(&parts.uri)?;
    let name = group_of(&mut parts).await?;
    let group = in_time(&state, state.broker.group(&state.principal, &name)).await?;
    json_of(StatusCode::OK, &GroupBody::from(group))
}

/// Deletes a group without members, with its offsets.
#[utoipa::path(
    delete,
    path = "/v1/groups/{group}",
    operation_id = "deleteGroup",
    tag = "groups",
    params(("group" = String, Path, description = "The group's name")),
    responses(
        (status = 204, description = "It is gone"),
        (status = 404, description = "No such group", body = Problem,
            content_type = "application/problem+json"),
        (status = 409, description = "It has members", body = Problem,
            content_type = "application/problem+json"),
        (status = 503, description = "Not possible now", body = Problem,
            content_type = "application/problem+json"),
        (status = 504, description = "It is not known whether it was deleted", body = Problem,
            content_type = "application/problem+json"),
    )
)]
async fn delete(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (mut parts, _) = request.into_parts();
    no_parameters(&parts.uri)?;
    let name = group_of(&mut parts).await?;
    in_time(&state, state.broker.delete_group(&state.principal, &name)).await?;
    Ok(no_content())
}

#[derive(Debug, PartialEq, Eq, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct ListParameters {
    /// Groups of one page, 1 to 1000.
    #[param(default = 100, minimum = 1, maximum = 1000, required = false)]
    limit: usize,
    /// `next` of the page before.
    #[param(rename = "cursor", required = false)]
    after: Option<String>,
}

fn list_parameters(uri: &Uri) -> Result<ListParameters, ApiError> {
    let mut parameters = ListParameters { limit: LIMIT_DEFAULT, after: None };
    for (name, value) in query(uri)? {
        match &*name {
            "limit" => {
                let limit = value.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
                let refuse = || bad_parameter("limit", &value, "a number from 1 to 1000");
                parameters.limit = limit.ok_or_else(refuse)?;
            }
            "cursor" if value.is_empty() => {}
            "cursor" => {
                let refuse = || bad_parameter("cursor", &value, "the 'next' of a page before");
                parameters.after = Some(parse_list_cursor(&value).ok_or_else(refuse)?);
            }
            _ => return Err(unknown_parameter(&name)),
        }
    }
    Ok(parameters)
}

/// Returns the name of the group that the path names.
async fn group_of(parts: &mut Parts) -> Result<String, ApiError> {
    path_parameter(parts)
        .await
        .ok_or_else(|| ApiError::new(Code::GroupNotFound, "no group has a name that is not UTF-8"))
}

/// Waits for the coordinator as long as a request may take.
async fn in_time<T>(
    state: &State,
    call: impl Future<Output = Result<T, GroupError>>,
) -> Result<T, ApiError> {
    let answer = tokio::time::timeout(state.config.request_timeout, call).await;
    let late = || GroupError::OutcomeUnknown("it took too long".to_owned());
    Ok(answer.map_err(|_| late())??)
}

fn no_content() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}
