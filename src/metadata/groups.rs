//! Consumer groups in the image: their members, as [`crate::groups`] computes them, and their
//! committed offsets.
//!
//! Invariants:
//! - a commit is taken as a whole or not at all; offsets of partitions that do not exist are
//!   dropped from it;
//! - offsets change without a copy of the group's members, and of the offsets only the chunks that
//!   are touched are copied;
//! - a group has no offsets of a topic that is gone.

use std::ops::Bound;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::groups::{Change, Fence, Group, Refusal, Topics};
use crate::metadata::cow_map::CowMap;
use crate::metadata::{Accepted, Image, Rejection, Response};
use crate::types::limits::GROUPS_MAX;
use crate::types::{GroupName, Offset, PartitionId, Timestamp, TopicId, TopicName, TopicPartition};

/// Something happens to a group's members. A group that does not exist is made by a join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeGroup {
    /// The group.
    pub group: GroupName,
    /// What happens.
    pub change: Change,
    /// When, by the proposer's clock.
    pub at: Timestamp,
}

/// Offsets that one client commits to one group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commit {
    /// The group.
    pub group: GroupName,
    /// In whose name.
    pub fence: Fence,
    /// When, by the proposer's clock.
    pub at: Timestamp,
    /// The offsets.
    pub offsets: Vec<NewOffset>,
}

/// An offset that is committed: topic, partition, the next offset to read, and the client's text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewOffset(
    /// The topic.
    pub TopicId,
    /// The partition.
    pub PartitionId,
    /// The next offset to read.
    pub Offset,
    /// The client's text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub Option<Arc<str>>,
);

/// Deletes committed offsets of an empty group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteOffsets {
    /// The group.
    pub group: GroupName,
    /// The topic.
    pub topic_id: TopicId,
    /// The partition, `None` for all of the topic.
    pub partition: Option<PartitionId>,
}

/// Forgets what has been left alone for too long: offsets that were committed before, and groups
/// that then have nothing left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpireOffsets {
    /// The groups.
    pub groups: Vec<GroupName>,
    /// What is older is too old, by the proposer's clock.
    pub before: Timestamp,
}

/// A committed offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The next offset to read.
    pub offset: Offset,
    /// The client's text.
    pub metadata: Option<Arc<str>>,
    /// When it was committed, by the proposer's clock.
    pub at: Timestamp,
}

/// A consumer group. Clones are cheap: they share everything that did not change.
#[derive(Debug, Clone, PartialEq)]
pub struct ConsumerGroup {
    name: GroupName,
    state: Arc<Group>,
    offsets: CowMap<TopicPartition, Committed>,
}

impl ConsumerGroup {
    fn new(name: GroupName) -> Self {
        Self { name, state: Arc::default(), offsets: CowMap::default() }
    }

    /// Returns the group's name.
    pub fn name(&self) -> &GroupName {
        &self.name
    }

    /// Returns the members and their assignment. It is the same `Arc` until one of them changes.
    pub fn state(&self) -> &Arc<Group> {
        &self.state
    }

    /// Finds a committed offset.
    pub fn offset(&self, partition: &TopicPartition) -> Option<&Committed> {
        self.offsets.get(partition)
    }

    /// Lists the committed offsets by topic id and partition.
    pub fn offsets(&self) -> impl Iterator<Item = (&TopicPartition, &Committed)> {
        self.offsets.iter()
    }

    /// Returns whether [`ExpireOffsets`] would change the group.
    pub fn has_expired(&self, before: Timestamp) -> bool {
        self.is_forgotten(before) || self.offsets().any(|offset| self.is_expired(offset, before))
    }

    /// Returns whether an offset is too old: its group has been empty for as long, or does not read
    /// the topic any more.
    fn is_expired(
        &self,
        (of, committed): (&TopicPartition, &Committed),
        before: Timestamp,
    ) -> bool {
        let is_unused = if self.state.members.is_empty() {
            self.state.empty_since.is_none_or(|since| since < before)
        } else {
            !self.state.topics.contains_key(&of.topic)
        };
        is_unused && committed.at < before
    }

    /// Returns whether nothing would be left of the group.
    fn is_forgotten(&self, before: Timestamp) -> bool {
        self.state.members.is_empty()
            && self.state.empty_since.is_none_or(|since| since < before)
            && self.offsets().all(|(_, committed)| committed.at < before)
    }

    fn remove_topic(&mut self, topic: TopicId) {
        for of in self.of_topic(topic) {
            self.offsets.remove(&of);
        }
    }

    fn of_topic(&self, topic: TopicId) -> Vec<TopicPartition> {
        let first = TopicPartition { topic, partition: PartitionId::ZERO };
        let from = self.offsets.iter_from(Bound::Included(&first)).map(|(of, _)| *of);
        from.take_while(|of| of.topic == topic).collect()
    }
}

impl Topics for Image {
    fn find(&self, name: &TopicName) -> Option<(TopicId, u32)> {
        let topic = self.topic_by_name(name.as_str()).filter(|topic| topic.is_active())?;
        Some((topic.id, u32::try_from(topic.partitions.len()).ok()?))
    }

    fn partitions(&self, topic: TopicId) -> Option<u32> {
        let topic = self.topic(topic).filter(|topic| topic.is_active())?;
        u32::try_from(topic.partitions.len()).ok()
    }
}

impl Image {
    /// Finds a consumer group.
    pub fn group(&self, name: &str) -> Option<&Arc<ConsumerGroup>> {
        self.groups.get(name)
    }

    /// Lists consumer groups by name, after the name `after`.
    pub fn groups_from<'a>(
        &'a self,
        after: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Arc<ConsumerGroup>> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.groups.iter_from(start).map(|(_, group)| group)
    }

    /// Counts the consumer groups.
    pub fn groups_len(&self) -> usize {
        self.groups.len()
    }

    /// Forgets the committed offsets of a topic that is gone.
    pub(in crate::metadata) fn remove_offsets_of(&mut self, topic: TopicId) {
        let has_some = |group: &&Arc<ConsumerGroup>| !group.of_topic(topic).is_empty();
        let names: Vec<GroupName> =
            self.groups_from(None).filter(has_some).map(|group| group.name.clone()).collect();
        for name in names {
            if let Some(group) = self.groups.get_mut(&name) {
                Arc::make_mut(group).remove_topic(topic);
            }
        }
    }

    fn group_or_new(&self, name: &GroupName) -> Result<Arc<ConsumerGroup>, Rejection> {
        match self.groups.get(name) {
            Some(group) => Ok(Arc::clone(group)),
            None if self.groups.len() >= GROUPS_MAX => Err(Rejection::TooManyGroups),
            None => Ok(Arc::new(ConsumerGroup::new(name.clone()))),
        }
    }

    fn put_group(&mut self, group: Arc<ConsumerGroup>) {
        self.groups.insert(group.name.clone(), group);
    }

    fn empty_group(&self, name: &GroupName) -> Result<&Arc<ConsumerGroup>, Rejection> {
        let group = self.group(name.as_str()).ok_or(Rejection::UnknownGroup)?;
        match group.state.members.len() {
            0 => Ok(group),
            members => Err(Rejection::Group(Refusal::NotEmpty(members))),
        }
    }
}

/// Carries out a change of a group's members.
pub(in crate::metadata) fn change_group(image: &mut Image, command: &ChangeGroup) -> Response {
    let mut group = match &command.change {
        Change::Join { .. } => image.group_or_new(&command.group)?,
        Change::Leave { .. }
        | Change::Revoked { .. }
        | Change::RevocationTimedOut { .. }
        | Change::Subscribe { .. }
        | Change::TopicsChanged { .. } => {
            let known = image.group(command.group.as_str());
            Arc::clone(known.ok_or(Rejection::UnknownGroup)?)
        }
    };
    let mut state = Group::clone(&group.state);
    state.apply(&command.change, image, command.at).map_err(Rejection::Group)?;
    if state != *group.state {
        Arc::make_mut(&mut group).state = Arc::new(state);
        image.put_group(Arc::clone(&group));
    }
    Ok(Accepted::Group(group))
}

/// Takes commits, each by itself.
pub(in crate::metadata) fn commit_offsets(image: &mut Image, commits: &[Commit]) -> Response {
    let outcomes = commits.iter().map(|commit| commit_one(image, commit)).collect();
    Ok(Accepted::Commits(outcomes))
}

fn commit_one(image: &mut Image, commit: &Commit) -> Result<(), Rejection> {
    let partition = |new: &NewOffset| TopicPartition { topic: new.0, partition: new.1 };
    let partitions: Vec<TopicPartition> = commit.offsets.iter().map(partition).collect();
    match image.group(commit.group.as_str()) {
        Some(group) => group.state.check_commit(&commit.fence, &partitions),
        None => Group::default().check_commit(&commit.fence, &partitions),
    }
    .map_err(Rejection::Group)?;
    let exists = |of: &TopicPartition| {
        image.partitions(of.topic).is_some_and(|count| of.partition.get() < count)
    };
    let known: Vec<bool> = partitions.iter().map(exists).collect();
    if image.groups.get(&commit.group).is_none() {
        let group = image.group_or_new(&commit.group)?;
        image.put_group(group);
    }
    let Some(group) = image.groups.get_mut(&commit.group) else { return Ok(()) };
    let group = Arc::make_mut(group);
    for ((of, new), known) in partitions.into_iter().zip(&commit.offsets).zip(known) {
        if known {
            let NewOffset(_, _, offset, metadata) = new;
            let (offset, metadata) = (*offset, metadata.clone());
            group.offsets.insert(of, Committed { offset, metadata, at: commit.at });
        }
    }
    Ok(())
}

/// Deletes an empty group.
pub(in crate::metadata) fn delete_group(image: &mut Image, name: &GroupName) -> Response {
    image.empty_group(name)?;
    image.groups.remove(name);
    Ok(Accepted::Done)
}

/// Deletes offsets of an empty group.
pub(in crate::metadata) fn delete_offsets(image: &mut Image, command: &DeleteOffsets) -> Response {
    let mut group = Arc::clone(image.empty_group(&command.group)?);
    let changed = Arc::make_mut(&mut group);
    match command.partition {
        Some(partition) => {
            changed.offsets.remove(&TopicPartition { topic: command.topic_id, partition });
        }
        None => changed.remove_topic(command.topic_id),
    }
    image.put_group(group);
    Ok(Accepted::Done)
}

/// Forgets old offsets and groups that then have nothing left.
pub(in crate::metadata) fn expire_offsets(image: &mut Image, command: &ExpireOffsets) -> Response {
    for name in &command.groups {
        let Some(group) = image.group(name.as_str()) else { continue };
        if group.is_forgotten(command.before) {
            image.groups.remove(name);
            continue;
        }
        let expired: Vec<TopicPartition> = group
            .offsets()
            .filter(|offset| group.is_expired(*offset, command.before))
            .map(|(of, _)| *of)
            .collect();
        if let Some(group) = image.groups.get_mut(name).filter(|_| !expired.is_empty()) {
            let group = Arc::make_mut(group);
            for of in expired {
                group.offsets.remove(&of);
            }
        }
    }
    Ok(Accepted::Done)
}

/// A group as it stands in the image's JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::metadata) struct StoredGroup {
    name: GroupName,
    state: Arc<Group>,
    offsets: Vec<(NewOffset, Timestamp)>,
}

impl From<&ConsumerGroup> for StoredGroup {
    fn from(group: &ConsumerGroup) -> Self {
        let offset = |(of, committed): (&TopicPartition, &Committed)| {
            let metadata = committed.metadata.clone();
            (NewOffset(of.topic, of.partition, committed.offset, metadata), committed.at)
        };
        let (name, state) = (group.name.clone(), Arc::clone(&group.state));
        Self { name, state, offsets: group.offsets().map(offset).collect() }
    }
}

impl StoredGroup {
    /// Adds the group to an image, which has all topics.
    ///
    /// # Errors
    /// What contradicts itself.
    pub(in crate::metadata) fn restore(self, image: &mut Image) -> Result<(), String> {
        let Self { name, state, offsets: stored } = self;
        state.check().map_err(|fault| format!("group '{name}': {fault}"))?;
        let mut offsets = CowMap::default();
        for (NewOffset(topic, partition, offset, metadata), at) in stored {
            let of = TopicPartition { topic, partition };
            if image.topic(topic).is_none() {
                return Err(format!("group '{name}' has an offset of unknown topic {topic}"));
            }
            if offsets.insert(of, Committed { offset, metadata, at }).is_some() {
                return Err(format!("group '{name}' has two offsets of {of}"));
            }
        }
        if image.groups.get(&name).is_some() {
            return Err(format!("group '{name}' twice"));
        }
        image.put_group(Arc::new(ConsumerGroup { name, state, offsets }));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
