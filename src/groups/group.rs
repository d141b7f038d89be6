//! A group's durable state and what changes it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::groups::assignor::{Candidate, Counts, Share, assign};
use crate::groups::{
    Assignor, Departure, GroupStatus, MemberKind, MemberStatus, Rebalance, RebalanceReason,
};
use crate::types::limits::{GROUP_MEMBERS_MAX, GROUP_REBALANCES_MAX};
use crate::types::{
    Epoch, InstanceId, MemberId, NodeId, Timestamp, TopicId, TopicName, TopicPartition,
};

/// What a group has to know of topics.
pub trait Topics {
    /// Finds a topic that clients may read, by name: its identity and number of partitions.
    fn find(&self, name: &TopicName) -> Option<(TopicId, u32)>;

    /// Returns the number of partitions of a topic that clients may read.
    fn partitions(&self, topic: TopicId) -> Option<u32>;
}

/// What a member is subscribed to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Selection {
    /// These topics.
    Topics(BTreeSet<TopicName>),
    /// The topics that match a pattern. The proposer has matched it, so that replicas with
    /// different versions of the engine still compute the same.
    Pattern {
        /// The pattern's text.
        pattern: String,
        /// The topics that match.
        matched: BTreeSet<TopicName>,
    },
}

impl Selection {
    /// Lists the names of the topics.
    pub fn names(&self) -> &BTreeSet<TopicName> {
        match self {
            Self::Topics(names) => names,
            Self::Pattern { matched, .. } => matched,
        }
    }

    /// Returns the pattern, if it is one.
    pub fn pattern(&self) -> Option<&str> {
        match self {
            Self::Topics(_) => None,
            Self::Pattern { pattern, .. } => Some(pattern),
        }
    }
}

/// Who joins, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The instance id of a static member.
    pub instance_id: Option<InstanceId>,
    /// How it is connected.
    pub kind: MemberKind,
    /// What the client calls itself.
    pub client: String,
    /// The node that keeps it alive.
    pub node: NodeId,
    /// How long it is waited for when it is gone, in milliseconds.
    pub session_timeout_ms: u64,
    /// How long it may take to give up partitions, in milliseconds.
    pub rebalance_timeout_ms: u64,
    /// The assignor that it asks for, if it cares.
    pub assignor: Option<Assignor>,
}

impl Profile {
    /// Returns how long the member is waited for when it is gone.
    pub fn session_timeout(&self) -> Duration {
        Duration::from_millis(self.session_timeout_ms)
    }

    /// Returns how long the member may take to give up partitions.
    pub fn rebalance_timeout(&self) -> Duration {
        Duration::from_millis(self.rebalance_timeout_ms)
    }
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Who it is.
    pub profile: Profile,
    /// What it is subscribed to.
    pub selection: Selection,
    /// The epoch that it has reached: the group's, unless it has something to give up.
    pub epoch: Epoch,
    /// What the newest target gives it.
    #[serde(with = "shares")]
    pub target: BTreeSet<TopicPartition>,
    /// What it may read, each with the epoch at which it got it.
    #[serde(with = "holdings")]
    pub assigned: BTreeMap<TopicPartition, Epoch>,
    /// What it must give up; its own until it says that it has.
    #[serde(with = "holdings")]
    pub revoking: BTreeMap<TopicPartition, Epoch>,
}

impl Member {
    /// Returns how the member stands.
    pub fn status(&self) -> MemberStatus {
        if !self.revoking.is_empty() {
            MemberStatus::UnrevokedPartitions
        } else if self.assigned.len() < self.target.len() {
            MemberStatus::UnreleasedPartitions
        } else {
            MemberStatus::Stable
        }
    }

    /// Returns the epoch at which the member got a partition that is still its own.
    fn owns_since(&self, partition: &TopicPartition) -> Option<Epoch> {
        self.assigned.get(partition).or_else(|| self.revoking.get(partition)).copied()
    }
}

/// Something that happens to a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// A member joins under an id that was never used before. One with the instance id of another
    /// takes its place.
    Join {
        /// The member.
        member: MemberId,
        /// Who it is.
        profile: Profile,
        /// What it is subscribed to.
        selection: Selection,
    },
    /// A member is gone.
    Leave {
        /// The member.
        member: MemberId,
        /// Why.
        departure: Departure,
    },
    /// A member has given up partitions that it was asked for. Nothing happens if it has reached a
    /// later epoch: what it holds since then it was not asked for when it said so.
    Revoked {
        /// The member.
        member: MemberId,
        /// Its epoch when it was asked.
        epoch: Epoch,
        /// What it has given up; what it was not asked for is no fault and changes nothing.
        partitions: Vec<TopicPartition>,
    },
    /// A member has not given up what it was asked for in time. Nothing happens if it has reached
    /// a later epoch.
    RevocationTimedOut {
        /// The member.
        member: MemberId,
        /// The epoch at which it is stuck.
        epoch: Epoch,
    },
    /// A member subscribes to something else.
    Subscribe {
        /// The member.
        member: MemberId,
        /// What it is subscribed to from now on.
        selection: Selection,
    },
    /// Topics that members are subscribed to came, went or have other partitions.
    TopicsChanged {
        /// What the patterns of members match now.
        matched: Vec<(MemberId, BTreeSet<TopicName>)>,
    },
}

/// Whose commit it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Fence {
    /// Nobody's: the group must be empty.
    Empty,
    /// A member's that must be at exactly this epoch.
    Exact {
        /// The member.
        member: MemberId,
        /// The epoch.
        epoch: Epoch,
    },
    /// A member's that has had the partitions since this epoch or before without a break.
    Since {
        /// The member.
        member: MemberId,
        /// The epoch.
        epoch: Epoch,
    },
}

/// Why a change or a commit was refused. It changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The member is not in the group.
    #[error("member '{0}' is not in the group")]
    UnknownMember(MemberId),
    /// The id is in use.
    #[error("member '{0}' is in the group already")]
    MemberExists(MemberId),
    /// The group is at its limit.
    #[error("the group has {GROUP_MEMBERS_MAX} members, which is the limit")]
    Full,
    /// The group has members.
    #[error("the group has {0} members")]
    NotEmpty(usize),
    /// The member is at another epoch.
    #[error("member '{member}' is at epoch {at}, not {given}")]
    OtherEpoch {
        /// The member.
        member: MemberId,
        /// Where it is.
        at: Epoch,
        /// What was given.
        given: Epoch,
    },
    /// The partition is not the member's, or was not all the time.
    #[error("partition {partition} is not held by member '{member}'")]
    NotOwned {
        /// The member.
        member: MemberId,
        /// The partition.
        partition: TopicPartition,
    },
}

/// A group's members and their assignment. Clones share the members that did not change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// The newest epoch; the target of every member is of it.
    pub epoch: Epoch,
    /// How partitions are shared out.
    pub assignor: Assignor,
    /// The members.
    pub members: BTreeMap<MemberId, Arc<Member>>,
    /// When the last member went, `None` while there are members or never were.
    pub empty_since: Option<Timestamp>,
    /// The topics that the target is about, with their partitions.
    pub topics: BTreeMap<TopicId, u32>,
    /// The last rebalances, oldest first.
    pub rebalances: VecDeque<Rebalance>,
}

/// What made a rebalance necessary.
struct Cause {
    reason: RebalanceReason,
    detail: String,
}

impl Group {
    /// Carries out a change and, if it asks for that, computes a new target and moves every member
    /// as far towards it as it can go.
    ///
    /// # Errors
    /// [`Refusal`]; the group is as it was.
    pub fn apply(
        &mut self,
        change: &Change,
        topics: &dyn Topics,
        at: Timestamp,
    ) -> Result<(), Refusal> {
        let cause = match change {
            Change::Join { member, profile, selection } => self.join(member, profile, selection)?,
            Change::Leave { member, departure } => Some(self.leave(member, *departure)?),
            Change::Revoked { member, epoch, partitions } => {
                let member = self.member_mut(member)?;
                if member.epoch == *epoch {
                    let given_up: BTreeSet<_> = partitions.iter().collect();
                    Arc::make_mut(member).revoking.retain(|of, _| !given_up.contains(of));
                }
                None
            }
            Change::RevocationTimedOut { member, epoch } => {
                let stuck = self.member_mut(member)?;
                if stuck.epoch == *epoch && !stuck.revoking.is_empty() {
                    Some(self.leave(member, Departure::RebalanceTimedOut)?)
                } else {
                    None
                }
            }
            Change::Subscribe { member, selection } => {
                let detail = member.to_string();
                let member = self.member_mut(member)?;
                let is_other = member.selection != *selection;
                Arc::make_mut(member).selection = selection.clone();
                is_other.then_some(Cause { reason: RebalanceReason::SubscriptionChanged, detail })
            }
            Change::TopicsChanged { matched } => self.match_again(matched, topics),
        };
        if let Some(cause) = cause {
            self.retarget(cause, topics, at);
        }
        self.reconcile(at);
        Ok(())
    }

    /// Finds a member.
    pub fn member(&self, id: &MemberId) -> Option<&Arc<Member>> {
        self.members.get(id)
    }

    /// Returns how the group stands.
    pub fn status(&self) -> GroupStatus {
        if self.members.is_empty() {
            GroupStatus::Empty
        } else if self.is_stable() {
            GroupStatus::Stable
        } else {
            GroupStatus::Reconciling
        }
    }

    /// Checks a commit of offsets of some partitions.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn check_commit<'p>(
        &self,
        fence: &Fence,
        partitions: impl IntoIterator<Item = &'p TopicPartition>,
    ) -> Result<(), Refusal> {
        let (id, epoch) = match fence {
            Fence::Empty if self.members.is_empty() => return Ok(()),
            Fence::Empty => return Err(Refusal::NotEmpty(self.members.len())),
            Fence::Exact { member, epoch } | Fence::Since { member, epoch } => (member, *epoch),
        };
        let member = self.members.get(id).ok_or_else(|| Refusal::UnknownMember(id.clone()))?;
        if matches!(fence, Fence::Exact { .. }) && member.epoch != epoch {
            return Err(Refusal::OtherEpoch { member: id.clone(), at: member.epoch, given: epoch });
        }
        for partition in partitions {
            if member.owns_since(partition).is_none_or(|since| since > epoch) {
                return Err(Refusal::NotOwned { member: id.clone(), partition: *partition });
            }
        }
        Ok(())
    }

    /// Returns whether the target is about other topics or partitions than there are now. What
    /// patterns match is for the caller to compare.
    pub fn is_outdated(&self, topics: &dyn Topics) -> bool {
        !self.members.is_empty() && self.topics != self.wanted(topics)
    }

    /// Checks what must hold in every state: no partition has two owners, and a member that has
    /// nothing to give up has reached the group's epoch.
    ///
    /// # Errors
    /// What does not hold.
    pub fn check(&self) -> Result<(), String> {
        let mut owned = BTreeSet::new();
        for (id, member) in &self.members {
            for partition in member.assigned.keys().chain(member.revoking.keys()) {
                if !owned.insert(*partition) {
                    return Err(format!("{partition} has two owners, one is {id}"));
                }
            }
            if member.epoch > self.epoch {
                return Err(format!("member {id} is ahead of its group"));
            }
            if member.revoking.is_empty() && member.epoch != self.epoch {
                return Err(format!("member {id} is behind its group without a reason"));
            }
        }
        Ok(())
    }

    fn is_stable(&self) -> bool {
        self.members.values().all(|member| member.status() == MemberStatus::Stable)
    }

    fn member_mut(&mut self, id: &MemberId) -> Result<&mut Arc<Member>, Refusal> {
        self.members.get_mut(id).ok_or_else(|| Refusal::UnknownMember(id.clone()))
    }

    fn join(
        &mut self,
        id: &MemberId,
        profile: &Profile,
        selection: &Selection,
    ) -> Result<Option<Cause>, Refusal> {
        if self.members.contains_key(id) {
            return Err(Refusal::MemberExists(id.clone()));
        }
        let is_former = |member: &Arc<Member>| {
            profile.instance_id.is_some() && member.profile.instance_id == profile.instance_id
        };
        let former = self.members.iter().find(|(_, member)| is_former(member));
        let former = former.map(|(id, _)| id.clone());
        if former.is_none() && self.members.len() >= GROUP_MEMBERS_MAX {
            return Err(Refusal::Full);
        }
        let former = former.and_then(|id| self.members.remove(&id));
        let mut member = Member {
            profile: profile.clone(),
            selection: selection.clone(),
            epoch: self.epoch,
            target: BTreeSet::new(),
            assigned: BTreeMap::new(),
            revoking: BTreeMap::new(),
        };
        let mut reason = Some(RebalanceReason::MemberJoined);
        if let Some(former) = former {
            // The former process is fenced by its id, so what it had to give up is free.
            member.target.clone_from(&former.target);
            member.assigned.clone_from(&former.assigned);
            let is_same = former.selection == member.selection
                && former.profile.assignor == member.profile.assignor;
            reason = (!is_same).then_some(RebalanceReason::SubscriptionChanged);
        }
        let detail = profile.instance_id.as_ref().map_or_else(|| id.to_string(), |i| i.to_string());
        self.members.insert(id.clone(), Arc::new(member));
        self.empty_since = None;
        Ok(reason.map(|reason| Cause { reason, detail }))
    }

    fn leave(&mut self, id: &MemberId, departure: Departure) -> Result<Cause, Refusal> {
        let member = self.members.remove(id).ok_or_else(|| Refusal::UnknownMember(id.clone()))?;
        let reason = match departure {
            Departure::Left | Departure::Replaced => RebalanceReason::MemberLeft,
            Departure::SessionExpired => RebalanceReason::SessionExpired,
            Departure::RebalanceTimedOut => RebalanceReason::RebalanceTimedOut,
        };
        let instance = member.profile.instance_id.as_ref();
        let detail = instance.map_or_else(|| id.to_string(), |instance| instance.to_string());
        Ok(Cause { reason, detail })
    }

    fn match_again(
        &mut self,
        matched: &[(MemberId, BTreeSet<TopicName>)],
        topics: &dyn Topics,
    ) -> Option<Cause> {
        let mut is_other_match = false;
        for (id, names) in matched {
            // One that has left in the meantime needs no topics.
            if let Some(member) = self.members.get_mut(id)
                && let Selection::Pattern { matched, .. } = &member.selection
                && matched != names
                && let Selection::Pattern { matched, .. } = &mut Arc::make_mut(member).selection
            {
                matched.clone_from(names);
                is_other_match = true;
            }
        }
        let wanted = self.wanted(topics);
        let counts = |topics: &Counts, id: &TopicId| topics.get(id).copied();
        let other = self
            .topics
            .keys()
            .chain(wanted.keys())
            .find(|id| counts(&self.topics, id) != counts(&wanted, id));
        if other.is_none() && !is_other_match {
            return None;
        }
        let detail = other.map(TopicId::to_string).unwrap_or_default();
        Some(Cause { reason: RebalanceReason::TopicsChanged, detail })
    }

    /// Collects the topics that members are subscribed to and that exist.
    fn wanted(&self, topics: &dyn Topics) -> Counts {
        let names = self.members.values().flat_map(|member| member.selection.names());
        names.filter_map(|name| topics.find(name)).collect()
    }

    /// Computes a target for a new epoch.
    fn retarget(&mut self, cause: Cause, topics: &dyn Topics, at: Timestamp) {
        self.epoch = self.epoch.next();
        self.topics = self.wanted(topics);
        self.assignor = self.elected_assignor();
        if self.members.is_empty() {
            self.empty_since = Some(at);
        }
        let subscribed: Vec<Counts> = self
            .members
            .values()
            .map(|member| member.selection.names().iter().filter_map(|n| topics.find(n)).collect())
            .collect();
        let candidates: Vec<Candidate<'_>> = self
            .members
            .iter()
            .zip(&subscribed)
            .map(|((id, member), topics)| {
                let instance = member.profile.instance_id.as_ref();
                Candidate { id, instance, topics, former: &member.target }
            })
            .collect();
        let targets = assign(self.assignor, &candidates);
        for (member, target) in self.members.values_mut().zip(targets) {
            let exists = |of: &TopicPartition| {
                topics.partitions(of.topic).is_some_and(|count| of.partition.get() < count)
            };
            let has_gone =
                member.assigned.keys().chain(member.revoking.keys()).any(|of| !exists(of));
            if member.target == target && !has_gone {
                continue;
            }
            let member = Arc::make_mut(member);
            member.target = target;
            // What does not exist any more needs nobody's word.
            member.assigned.retain(|of, _| exists(of));
            member.revoking.retain(|of, _| exists(of));
        }
        let Cause { reason, detail } = cause;
        let took_ms = None;
        self.rebalances.push_back(Rebalance { at, epoch: self.epoch, reason, detail, took_ms });
        while self.rebalances.len() > GROUP_REBALANCES_MAX {
            self.rebalances.pop_front();
        }
    }

    /// Returns what most of the members that care ask for.
    fn elected_assignor(&self) -> Assignor {
        let votes = |assignor: Assignor| {
            let is_for = |member: &&Arc<Member>| member.profile.assignor == Some(assignor);
            self.members.values().filter(is_for).count()
        };
        match votes(Assignor::Range).cmp(&votes(Assignor::Uniform)) {
            std::cmp::Ordering::Greater => Assignor::Range,
            std::cmp::Ordering::Less | std::cmp::Ordering::Equal => Assignor::Uniform,
        }
    }

    /// Moves every member as far towards its target as it can go: first what it has beyond it is
    /// asked back, and only one that has nothing to give up takes what is free.
    fn reconcile(&mut self, at: Timestamp) {
        for member in self.members.values_mut() {
            let is_beyond = |of: &TopicPartition| !member.target.contains(of);
            if member.assigned.keys().any(is_beyond) {
                let Member { target, assigned, revoking, .. } = Arc::make_mut(member);
                revoking.extend(assigned.extract_if(.., |of, _| !target.contains(of)));
            }
        }
        let mut owned: Share = self
            .members
            .values()
            .flat_map(|member| member.assigned.keys().chain(member.revoking.keys()))
            .copied()
            .collect();
        for member in self.members.values_mut().filter(|member| member.revoking.is_empty()) {
            let free: Vec<TopicPartition> =
                member.target.iter().filter(|of| owned.insert(**of)).copied().collect();
            if free.is_empty() && member.epoch == self.epoch {
                continue;
            }
            let member = Arc::make_mut(member);
            member.epoch = self.epoch;
            member.assigned.extend(free.into_iter().map(|of| (of, self.epoch)));
        }
        let is_stable = self.is_stable();
        if let Some(last) = self.rebalances.back_mut()
            && last.took_ms.is_none()
            && is_stable
        {
            last.took_ms = Some(u64::try_from(at.millis_since(last.at)).unwrap_or(0));
        }
    }
}

/// Partitions as a list of pairs, which is a third of a list of objects.
mod shares {
    use std::collections::BTreeSet;

    use serde::{Deserialize, Deserializer, Serializer};

    use crate::types::{PartitionId, TopicId, TopicPartition};

    pub(super) fn serialize<S: Serializer>(
        share: &BTreeSet<TopicPartition>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(share.iter().map(|of| (of.topic, of.partition)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeSet<TopicPartition>, D::Error> {
        let list: Vec<(TopicId, PartitionId)> = Vec::deserialize(deserializer)?;
        Ok(list.into_iter().map(|(topic, partition)| TopicPartition { topic, partition }).collect())
    }
}

/// Partitions with epochs as a list: JSON has no maps with such keys.
mod holdings {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    use crate::types::{Epoch, PartitionId, TopicId, TopicPartition};

    pub(super) fn serialize<S: Serializer>(
        held: &BTreeMap<TopicPartition, Epoch>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(held.iter().map(|(of, since)| (of.topic, of.partition, since)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<TopicPartition, Epoch>, D::Error> {
        let list: Vec<(TopicId, PartitionId, Epoch)> = Vec::deserialize(deserializer)?;
        let pair = |(topic, partition, since)| (TopicPartition { topic, partition }, since);
        Ok(list.into_iter().map(pair).collect())
    }
}
