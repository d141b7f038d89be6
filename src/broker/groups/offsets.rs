//! Committed offsets: commit, list with lag, move, delete.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::broker::groups::coordinator::group_name;
use crate::broker::groups::member::Shared;
use crate::broker::{
    Broker, CommitAs, CommittedOffset, GroupError, OffsetCommit, OffsetMove, OnDamage, ReadRequest,
    ResetMode, ResetOffsets, ResetTo, Search, Start, Topic, Visit,
};
use crate::groups::Fence;
use crate::metadata::{Command, Commit, Committed, ConsumerGroup, DeleteOffsets, NewOffset};
use crate::types::limits::{COMMIT_OFFSETS_MAX, OFFSET_METADATA_BYTES_MAX};
use crate::types::{
    Epoch, GroupName, Offset, PartitionId, Principal, Timestamp, TopicId, TopicPartition,
};

impl Broker {
    /// Lists the committed offsets of a group, by topic name and partition.
    ///
    /// # Errors
    /// [`GroupError::NotFound`].
    pub async fn group_offsets(
        &self,
        principal: &Principal,
        name: &str,
    ) -> Result<Vec<CommittedOffset>, GroupError> {
        let group = self.known_group(name)?;
        let mut listed = Vec::new();
        for (of, committed) in group.offsets() {
            if let Some(offset) = self.describe_offset(principal, *of, committed).await {
                listed.push(offset);
            }
        }
        listed.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        Ok(listed)
    }

    /// Commits offsets, each the next to read; all or nothing. A group that does not exist is made.
    ///
    /// # Errors
    /// [`GroupError::NotEmpty`], [`GroupError::StaleMember`], [`GroupError::TooLarge`], those of
    /// missing topics, and the coordinator's.
    pub async fn commit_offsets(
        &self,
        principal: &Principal,
        name: &str,
        commit_as: CommitAs,
        offsets: Vec<OffsetCommit>,
    ) -> Result<(), GroupError> {
        let group = group_name(name)?;
        let fence = match commit_as {
            CommitAs::Group => Fence::Empty,
            CommitAs::Member(member, epoch) => Fence::Exact { member, epoch },
        };
        let commit = self.checked_commit(principal, (group, fence), offsets)?;
        self.commit(commit).await
    }

    pub(in crate::broker::groups) async fn commit_of_member(
        &self,
        shared: &Shared,
        epoch: Epoch,
        offsets: Vec<OffsetCommit>,
    ) -> Result<(), GroupError> {
        if let Some(departure) = shared.view.borrow().fenced {
            let detail = format!("it is out of the group: {departure:?}");
            return Err(GroupError::StaleMember { member: shared.id.clone(), detail });
        }
        // By ownership and not by the exact epoch: an epoch that begins while the commit is on its
        // way says nothing against partitions that stay where they are.
        let fence = Fence::Since { member: shared.id.clone(), epoch };
        let group = shared.group.clone();
        let commit = self.checked_commit(&shared.principal, (group, fence), offsets)?;
        self.commit(commit).await
    }

    /// Moves the committed offsets of an empty group, or tells what that would do.
    ///
    /// # Errors
    /// [`GroupError::NotFound`], [`GroupError::NotEmpty`], those of missing topics, and the
    /// coordinator's.
    pub async fn reset_offsets(
        &self,
        principal: &Principal,
        name: &str,
        reset: ResetOffsets,
    ) -> Result<Vec<OffsetMove>, GroupError> {
        let group = self.known_group(name)?;
        let topic = self.topic(principal, &reset.topic)?;
        let members = group.state().members.len();
        if members > 0 {
            return Err(GroupError::NotEmpty { group: name.to_owned(), members });
        }
        let count = topic.summary().partitions;
        let mut numbers = reset.partitions.clone().unwrap_or_else(|| (0..count).collect());
        numbers.sort_unstable();
        numbers.dedup();
        let mut moves = Vec::new();
        for number in numbers {
            let partition = known(&topic, number)?;
            let of = TopicPartition { topic: topic.summary().id, partition };
            let from = group.offset(&of).map(|committed| committed.offset);
            let to = self.reset_target(principal, &topic, partition, (from, reset.to)).await?;
            moves.push(OffsetMove { topic: topic.summary().name.clone(), partition, from, to });
        }
        if reset.mode == ResetMode::Apply {
            let id = topic.summary().id;
            let new = |step: &OffsetMove| NewOffset(id, step.partition, step.to, None);
            let offsets = moves.iter().map(new).collect();
            let (group, at) = (group.name().clone(), self.inner.clock.now());
            self.commit(Commit { group, fence: Fence::Empty, at, offsets }).await?;
        }
        Ok(moves)
    }

    /// Deletes an empty group with its offsets.
    ///
    /// # Errors
    /// [`GroupError::NotFound`], [`GroupError::NotEmpty`], and the coordinator's.
    pub async fn delete_group(&self, _: &Principal, name: &str) -> Result<(), GroupError> {
        let group = self.known_group(name)?.name().clone();
        self.propose_for(&group, &Command::DeleteGroup { group: group.clone() }).await.map(drop)
    }

    /// Deletes the committed offsets of a topic, or of one partition of it, of an empty group.
    ///
    /// # Errors
    /// [`GroupError::NotFound`], [`GroupError::NotEmpty`], those of a missing topic, and the
    /// coordinator's.
    pub async fn delete_group_offsets(
        &self,
        principal: &Principal,
        name: &str,
        topic: &str,
        partition: Option<u32>,
    ) -> Result<(), GroupError> {
        let group = self.known_group(name)?.name().clone();
        let topic = self.topic(principal, topic)?;
        let partition = partition.map(|number| known(&topic, number)).transpose()?;
        let topic_id = topic.summary().id;
        let delete = DeleteOffsets { group: group.clone(), topic_id, partition };
        self.propose_for(&group, &Command::DeleteOffsets(delete)).await.map(drop)
    }

    pub(in crate::broker::groups) fn known_group(
        &self,
        name: &str,
    ) -> Result<Arc<ConsumerGroup>, GroupError> {
        let image = self.inner.metadata.image();
        image.group(name).cloned().ok_or_else(|| GroupError::NotFound(name.to_owned()))
    }

    /// Sums up how far a group is behind, in records.
    pub(in crate::broker::groups) async fn lag_of(
        &self,
        principal: &Principal,
        group: &ConsumerGroup,
    ) -> u64 {
        let mut lag: u64 = 0;
        let mut topics: BTreeMap<TopicId, Option<Arc<Topic>>> = BTreeMap::new();
        let image = self.inner.metadata.image();
        for (of, committed) in group.offsets() {
            let topic = topics.entry(of.topic).or_insert_with(|| {
                let name = image.topic(of.topic)?.name.clone();
                self.topic(principal, name.as_str()).ok()
            });
            let Some(topic) = topic else { continue };
            if let Ok((start, end)) = self.bounds(principal, topic, of.partition).await {
                lag = lag.saturating_add(end.records_since(committed.offset.max(start)));
            }
        }
        lag
    }

    /// Describes a committed offset; `None` when its topic is going.
    async fn describe_offset(
        &self,
        principal: &Principal,
        of: TopicPartition,
        committed: &Committed,
    ) -> Option<CommittedOffset> {
        let name = self.inner.metadata.image().topic(of.topic)?.name.clone();
        let topic = self.topic(principal, name.as_str()).ok()?;
        let (log_start, log_end) = self.bounds(principal, &topic, of.partition).await.ok()?;
        let next = committed.offset.max(log_start);
        let lag = log_end.records_since(next);
        let lag_ms = match lag {
            0 => Some(0),
            _ => self.age_of(principal, &topic, (of.partition, next)).await,
        };
        Some(CommittedOffset {
            topic: name,
            topic_id: of.topic,
            partition: of.partition,
            offset: committed.offset,
            metadata: committed.metadata.clone().unwrap_or_default(),
            committed_at: committed.at,
            log_end,
            lag,
            lag_ms,
        })
    }

    /// Returns the age in milliseconds of the first record from an offset on.
    async fn age_of(
        &self,
        principal: &Principal,
        topic: &Arc<Topic>,
        from: (PartitionId, Offset),
    ) -> Option<u64> {
        let request = ReadRequest {
            positions: vec![from],
            records_max: 1,
            bytes_max: 1,
            scan_bytes_max: 1,
            on_damage: OnDamage::Skip,
        };
        let mut first: Option<Timestamp> = None;
        let mut note = |_, record: &crate::record::Record<'_>| {
            first.get_or_insert(record.timestamp);
            Visit::Taken
        };
        self.read(principal, topic, &request, &mut note).await.ok()?;
        let age = self.inner.clock.now().millis_since(first?);
        Some(u64::try_from(age).unwrap_or(0))
    }

    fn checked_commit(
        &self,
        principal: &Principal,
        (group, fence): (GroupName, Fence),
        offsets: Vec<OffsetCommit>,
    ) -> Result<Commit, GroupError> {
        if offsets.len() > COMMIT_OFFSETS_MAX {
            let (value, limit) = (offsets.len(), COMMIT_OFFSETS_MAX);
            return Err(GroupError::TooLarge { what: "the number of offsets", value, limit });
        }
        let resolve = |commit: OffsetCommit| {
            let topic = self.topic(principal, &commit.topic)?;
            let partition = known(&topic, commit.partition)?;
            let (value, limit) = (commit.metadata.len(), OFFSET_METADATA_BYTES_MAX);
            if value > limit {
                return Err(GroupError::TooLarge { what: "the metadata in bytes", value, limit });
            }
            let metadata = (!commit.metadata.is_empty()).then(|| commit.metadata.into());
            Ok(NewOffset(topic.summary().id, partition, commit.offset, metadata))
        };
        let offsets = offsets.into_iter().map(resolve).collect::<Result<_, _>>()?;
        Ok(Commit { group, fence, at: self.inner.clock.now(), offsets })
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
}

fn known(topic: &Topic, number: u32) -> Result<PartitionId, GroupError> {
    topic.partition(number).ok_or_else(|| GroupError::PartitionNotFound {
        topic: topic.summary().name.clone(),
        partition: number,
    })
}
