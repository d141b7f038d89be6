//! Groups of one member, in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use uuid::Uuid;

use crate::broker::groups::member::Shared;
use crate::broker::{
    AssignedPartition, Broker, CommitAs, CommittedOffset, GroupDescription, GroupError,
    GroupSummary, JoinGroup, Member, MemberView, OffsetCommit, OffsetMove, ResetMode, ResetOffsets,
    ResetTo, Start, Subscription,
};
use crate::broker::{OnDamage, Search, Topic};
use crate::groups::{Assignor, Departure, GroupStatus};
use crate::types::{
    Epoch, GroupName, MemberId, Offset, PartitionId, Principal, Timestamp, TopicId, TopicName,
    TopicPartition,
};

/// All groups, by name.
#[derive(Debug, Default)]
pub(in crate::broker) struct Groups(Mutex<BTreeMap<GroupName, Group>>);

#[derive(Debug, Default)]
struct Group {
    epoch: Epoch,
    member: Weak<Shared>,
    offsets: BTreeMap<TopicPartition, Stored>,
}

#[derive(Debug, Clone)]
struct Stored {
    topic: TopicName,
    offset: Offset,
    metadata: Arc<str>,
    at: Timestamp,
}

impl Broker {
    /// Joins a group and waits, for a bounded time, until the member has been told its first
    /// assignment, so that a first poll has partitions.
    ///
    /// # Errors
    /// [`GroupError`].
    pub async fn join_group(
        &self,
        principal: &Principal,
        join: JoinGroup,
    ) -> Result<Member, GroupError> {
        let group = GroupName::parse_for_write(&join.group).map_err(|source| {
            GroupError::InvalidName { name: join.group.clone(), what: "group name", source }
        })?;
        let shared = Arc::new(Shared {
            group: group.clone(),
            id: MemberId::new(Uuid::now_v7()),
            principal: principal.clone(),
            session_timeout: join.session_timeout.unwrap_or(Duration::from_secs(45)),
            offset_reset: join.offset_reset,
            view: watch::Sender::new(Arc::default()),
        });
        let mut groups = self.inner.groups.0.lock();
        let state = groups.entry(group).or_default();
        state.epoch = state.epoch.next();
        if let Some(former) = state.member.upgrade() {
            fence(&former, Departure::Replaced);
        }
        state.member = Arc::downgrade(&shared);
        self.assign(&shared, state, &join.subscription);
        drop(groups);
        Ok(Member { broker: self.clone(), shared })
    }

    /// Finds a member that this node keeps alive.
    pub fn member(&self, _principal: &Principal, group: &str, id: &MemberId) -> Option<Member> {
        let groups = self.inner.groups.0.lock();
        let shared = groups.get(group)?.member.upgrade()?;
        (shared.id == *id).then(|| Member { broker: self.clone(), shared })
    }

    /// Lists groups by name: at most `limit`, after the name `after`.
    ///
    /// # Errors
    /// Those of looking at the partitions.
    pub async fn list_groups(
        &self,
        principal: &Principal,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<GroupSummary>, GroupError> {
        let names: Vec<GroupName> = self.inner.groups.0.lock().keys().cloned().collect();
        let mut summaries = Vec::new();
        for name in names.into_iter().filter(|name| after.is_none_or(|after| name.as_str() > after))
        {
            let group = self.group(principal, name.as_str()).await?;
            let mut topics: Vec<_> = group.offsets.iter().map(|of| of.topic.clone()).collect();
            topics.dedup();
            let (status, lag) = (group.status, group.lag);
            let members = usize::from(status != GroupStatus::Empty);
            summaries.push(GroupSummary { group: name, status, members, topics, lag });
            if summaries.len() == limit {
                break;
            }
        }
        Ok(summaries)
    }

    /// Describes a group.
    ///
    /// # Errors
    /// [`GroupError::NotFound`].
    pub async fn group(
        &self,
        principal: &Principal,
        name: &str,
    ) -> Result<GroupDescription, GroupError> {
        let offsets = self.group_offsets(principal, name).await?;
        let groups = self.inner.groups.0.lock();
        let (group, state) =
            groups.get_key_value(name).ok_or_else(|| GroupError::NotFound(name.to_owned()))?;
        let status = match state.member.upgrade() {
            Some(_) => GroupStatus::Stable,
            None => GroupStatus::Empty,
        };
        Ok(GroupDescription {
            group: group.clone(),
            status,
            epoch: state.epoch,
            assignor: Assignor::Uniform,
            coordinator: Some(self.inner.node),
            members: Vec::new(),
            lag: offsets.iter().map(|offset| offset.lag).sum(),
            offsets,
            rebalances: Vec::new(),
        })
    }

    /// Lists the committed offsets of a group, by topic name and partition.
    ///
    /// # Errors
    /// [`GroupError::NotFound`].
    pub async fn group_offsets(
        &self,
        principal: &Principal,
        name: &str,
    ) -> Result<Vec<CommittedOffset>, GroupError> {
        let stored = {
            let groups = self.inner.groups.0.lock();
            let group = groups.get(name).ok_or_else(|| GroupError::NotFound(name.to_owned()))?;
            group.offsets.clone()
        };
        let mut offsets = Vec::with_capacity(stored.len());
        for (of, stored) in stored {
            let Ok(topic) = self.topic(principal, stored.topic.as_str()) else { continue };
            let Ok((log_start, log_end)) = self.bounds(principal, &topic, of.partition).await
            else {
                continue;
            };
            offsets.push(CommittedOffset {
                topic: stored.topic,
                topic_id: of.topic,
                partition: of.partition,
                offset: stored.offset,
                metadata: stored.metadata,
                committed_at: stored.at,
                log_end,
                lag: log_end.records_since(stored.offset.max(log_start)),
                lag_ms: None,
            });
        }
        offsets.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        Ok(offsets)
    }

    /// Commits offsets, each the next to read; all or nothing. A group that does not exist is made.
    ///
    /// # Errors
    /// [`GroupError::NotEmpty`], [`GroupError::StaleMember`], those of missing topics.
    pub async fn commit_offsets(
        &self,
        principal: &Principal,
        name: &str,
        commit_as: CommitAs,
        offsets: Vec<OffsetCommit>,
    ) -> Result<(), GroupError> {
        let group = GroupName::parse_for_write(name).map_err(|source| GroupError::InvalidName {
            name: name.to_owned(),
            what: "group name",
            source,
        })?;
        let resolved = self.resolve(principal, offsets)?;
        let mut groups = self.inner.groups.0.lock();
        let state = groups.entry(group).or_default();
        let member = state.member.upgrade();
        match (commit_as, member) {
            (CommitAs::Group, None) => {}
            (CommitAs::Group, Some(_)) => {
                return Err(GroupError::NotEmpty { group: name.to_owned(), members: 1 });
            }
            (CommitAs::Member(id, epoch), Some(member))
                if member.id == id && state.epoch == epoch => {}
            (CommitAs::Member(member, _), _) => {
                let detail = "it is another member or epoch".to_owned();
                return Err(GroupError::StaleMember { member, detail });
            }
        }
        state.offsets.extend(resolved);
        Ok(())
    }

    /// Moves the committed offsets of an empty group, or tells what that would do.
    ///
    /// # Errors
    /// [`GroupError::NotEmpty`], and those of topics that do not exist.
    pub async fn reset_offsets(
        &self,
        principal: &Principal,
        name: &str,
        reset: ResetOffsets,
    ) -> Result<Vec<OffsetMove>, GroupError> {
        let topic = self.topic(principal, &reset.topic)?;
        let committed = self.group_offsets(principal, name).await?;
        let count = topic.summary().partitions;
        let numbers = reset.partitions.clone().unwrap_or_else(|| (0..count).collect());
        let mut moves = Vec::new();
        for number in numbers {
            let partition = known(&topic, number)?;
            let from = committed
                .iter()
                .find(|of| of.topic_id == topic.summary().id && of.partition == partition)
                .map(|of| of.offset);
            let to = self.reset_target(principal, &topic, partition, (from, reset.to)).await?;
            moves.push(OffsetMove { topic: topic.summary().name.clone(), partition, from, to });
        }
        if reset.mode == ResetMode::Apply {
            let commit = |step: &OffsetMove| OffsetCommit {
                topic: step.topic.to_string(),
                partition: step.partition.get(),
                offset: step.to,
                metadata: String::new(),
            };
            let commits = moves.iter().map(commit).collect();
            self.commit_offsets(principal, name, CommitAs::Group, commits).await?;
        }
        Ok(moves)
    }

    async fn reset_target(
        &self,
        principal: &Principal,
        topic: &Arc<Topic>,
        partition: PartitionId,
        (from, to): (Option<Offset>, ResetTo),
    ) -> Result<Offset, GroupError> {
        let (log_start, log_end) = self.bounds(principal, topic, partition).await?;
        let wanted = match to {
            ResetTo::Earliest => log_start,
            ResetTo::Latest => log_end,
            ResetTo::Offset(offset) => offset,
            ResetTo::Shift(by) => {
                let from = from.unwrap_or(log_start).get();
                Offset::new(from.saturating_add(by)).unwrap_or(log_start)
            }
            ResetTo::Timestamp(timestamp) => {
                let start = Start::Timestamp(timestamp);
                let search = Search { start, on_damage: OnDamage::Skip };
                let found = self.start_offsets(principal, topic, &[partition], search).await?;
                found.first().map_or(log_end, |(_, offset)| *offset)
            }
        };
        Ok(wanted.clamp(log_start, log_end))
    }

    /// Deletes an empty group with its offsets.
    ///
    /// # Errors
    /// [`GroupError::NotFound`], [`GroupError::NotEmpty`].
    pub async fn delete_group(&self, _: &Principal, name: &str) -> Result<(), GroupError> {
        let mut groups = self.inner.groups.0.lock();
        let group = groups.get(name).ok_or_else(|| GroupError::NotFound(name.to_owned()))?;
        if group.member.upgrade().is_some() {
            return Err(GroupError::NotEmpty { group: name.to_owned(), members: 1 });
        }
        groups.remove(name);
        Ok(())
    }

    /// Deletes the committed offsets of a topic, or of one partition of it, of an empty group.
    ///
    /// # Errors
    /// [`GroupError::NotFound`], [`GroupError::NotEmpty`], and those of a missing topic.
    pub async fn delete_group_offsets(
        &self,
        principal: &Principal,
        name: &str,
        topic: &str,
        partition: Option<u32>,
    ) -> Result<(), GroupError> {
        let topic = self.topic(principal, topic)?;
        let only = partition.map(|number| known(&topic, number)).transpose()?;
        let mut groups = self.inner.groups.0.lock();
        let group = groups.get_mut(name).ok_or_else(|| GroupError::NotFound(name.to_owned()))?;
        group.offsets.retain(|of, _| {
            of.topic != topic.summary().id || only.is_some_and(|only| only != of.partition)
        });
        Ok(())
    }

    pub(in crate::broker::groups) async fn commit_of_member(
        &self,
        shared: &Shared,
        offsets: Vec<OffsetCommit>,
    ) -> Result<(), GroupError> {
        let commit_as = CommitAs::Member(shared.id.clone(), shared.view.borrow().epoch);
        self.commit_offsets(&shared.principal, shared.group.as_str(), commit_as, offsets).await
    }

    pub(in crate::broker::groups) async fn revoked(
        &self,
        _shared: &Shared,
        _partitions: &[(TopicId, PartitionId)],
    ) -> Result<(), GroupError> {
        Ok(())
    }

    pub(in crate::broker::groups) async fn set_subscription(
        &self,
        shared: &Shared,
        subscription: Subscription,
    ) -> Result<(), GroupError> {
        let mut groups = self.inner.groups.0.lock();
        if let Some(group) = groups.get_mut(&shared.group) {
            group.epoch = group.epoch.next();
            self.assign(shared, group, &subscription);
        }
        Ok(())
    }

    pub(in crate::broker::groups) async fn leave_group(
        &self,
        shared: &Shared,
    ) -> Result<(), GroupError> {
        if let Some(group) = self.inner.groups.0.lock().get_mut(&shared.group) {
            group.member = Weak::new();
        }
        fence(shared, Departure::Left);
        Ok(())
    }

    fn assign(&self, shared: &Shared, group: &Group, subscription: &Subscription) {
        let topics: Vec<Arc<Topic>> = match subscription {
            Subscription::Topics(names) => names
                .iter()
                .filter_map(|name| self.topic(&shared.principal, name.as_str()).ok())
                .collect(),
            Subscription::Pattern(_) => Vec::new(),
        };
        let assigned = topics.iter().flat_map(|topic| {
            let summary = topic.summary();
            PartitionId::all(summary.partitions).map(|partition| AssignedPartition {
                topic: summary.name.clone(),
                topic_id: summary.id,
                partition,
                committed: group
                    .offsets
                    .get(&TopicPartition { topic: summary.id, partition })
                    .map(|stored| stored.offset),
            })
        });
        let assigned = assigned.collect();
        let view = MemberView { epoch: group.epoch, assigned, ..MemberView::default() };
        shared.view.send_replace(Arc::new(view));
    }

    fn resolve(
        &self,
        principal: &Principal,
        offsets: Vec<OffsetCommit>,
    ) -> Result<Vec<(TopicPartition, Stored)>, GroupError> {
        let at = self.inner.clock.now();
        let resolve = |commit: OffsetCommit| {
            let topic = self.topic(principal, &commit.topic)?;
            let partition = known(&topic, commit.partition)?;
            let summary = topic.summary();
            let stored = Stored {
                topic: summary.name.clone(),
                offset: commit.offset,
                metadata: commit.metadata.into(),
                at,
            };
            Ok((TopicPartition { topic: summary.id, partition }, stored))
        };
        offsets.into_iter().map(resolve).collect()
    }
}

fn known(topic: &Topic, number: u32) -> Result<PartitionId, GroupError> {
    topic.partition(number).ok_or_else(|| GroupError::PartitionNotFound {
        topic: topic.summary().name.clone(),
        partition: number,
    })
}

fn fence(shared: &Shared, reason: Departure) {
    let view = MemberView { fenced: Some(reason), ..MemberView::default() };
    shared.view.send_replace(Arc::new(view));
}
