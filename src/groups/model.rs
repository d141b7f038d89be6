//! The words of a group: what a member is, in which state it and its group can be, what happened.

use serde::{Deserialize, Serialize};

use crate::types::{Epoch, Timestamp};

/// How a member is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberKind {
    /// A consumer instance of the REST Proxy v2 face.
    RestV2,
    /// A stream of server-sent events.
    Sse,
    /// A subscription of a WebSocket.
    #[serde(rename = "websocket")]
    WebSocket,
    /// A client that speaks Kafka's protocol.
    Kafka,
}

impl MemberKind {
    /// Returns the kind's name as clients see it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RestV2 => "rest_v2",
            Self::Sse => "sse",
            Self::WebSocket => "websocket",
            Self::Kafka => "kafka",
        }
    }
}

/// How partitions are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Assignor {
    /// Loads differ by one at the most, and as few partitions move as possible.
    #[default]
    Uniform,
    /// Every topic is cut into contiguous ranges, so that equal keys of two topics meet in one
    /// member.
    Range,
}

impl Assignor {
    /// Returns the assignor's name as clients see it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Range => "range",
        }
    }

    /// Finds an assignor by its name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Uniform, Self::Range].into_iter().find(|assignor| assignor.as_str() == name)
    }
}

/// How a group stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupStatus {
    /// It has no members.
    Empty,
    /// A new target assignment is being computed.
    Assigning,
    /// Some member has not reached the target assignment.
    Reconciling,
    /// All members have what the target assignment gives them.
    Stable,
    /// It was deleted.
    Dead,
}

impl GroupStatus {
    /// Returns the state's name as clients see it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Assigning => "assigning",
            Self::Reconciling => "reconciling",
            Self::Stable => "stable",
            Self::Dead => "dead",
        }
    }
}

/// How a member stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberStatus {
    /// It has what the target assignment gives it.
    Stable,
    /// It has been asked for partitions that it has not given up yet.
    UnrevokedPartitions,
    /// It waits for partitions that others have not given up yet.
    UnreleasedPartitions,
}

impl MemberStatus {
    /// Returns the state's name as clients see it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::UnrevokedPartitions => "unrevoked_partitions",
            Self::UnreleasedPartitions => "unreleased_partitions",
        }
    }
}

/// Why a member is not in its group any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Departure {
    /// It left, or its connection ended.
    Left,
    /// Nothing was heard of it for its session timeout.
    SessionExpired,
    /// It did not give up partitions within its rebalance timeout.
    RebalanceTimedOut,
    /// Another process joined under its instance id.
    Replaced,
}

/// Why a new target assignment was computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RebalanceReason {
    /// A member joined.
    MemberJoined,
    /// A member left.
    MemberLeft,
    /// Nothing was heard of a member for its session timeout.
    SessionExpired,
    /// A member did not give up partitions in time.
    RebalanceTimedOut,
    /// A member subscribed to something else.
    SubscriptionChanged,
    /// A topic was created or deleted, or has other partitions.
    TopicsChanged,
}

impl RebalanceReason {
    /// Returns the reason's name as clients see it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MemberJoined => "member_joined",
            Self::MemberLeft => "member_left",
            Self::SessionExpired => "session_expired",
            Self::RebalanceTimedOut => "rebalance_timed_out",
            Self::SubscriptionChanged => "subscription_changed",
            Self::TopicsChanged => "topics_changed",
        }
    }
}

/// Something that made a group share out its partitions anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rebalance {
    /// When it began, by the proposer's clock.
    pub at: Timestamp,
    /// The epoch that it began.
    pub epoch: Epoch,
    /// Why.
    pub reason: RebalanceReason,
    /// Which member or topic it was about.
    pub detail: String,
    /// Milliseconds until every member had its part, `None` while that is not so. A later
    /// rebalance that begins before ends this one.
    pub took_ms: Option<u64>,
}
