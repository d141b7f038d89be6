//! What an instance reads and how far it is: the state behind an instance's lock.
//!
//! Invariants:
//! - a position moves when a poll is answered, or when the client says so, and never otherwise;
//! - what is committed unasked are positions of the answer before the last one: the client that
//!   polls again has dealt with what it got;
//! - the partitions of a member are those that its handle shows. They are looked at before every
//!   call; a partition that came back after it was away starts where the group is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::api::State;
use crate::api::error::{ApiError, Code};
use crate::api::v2::consumers::create::Settings;
use crate::api::v2::consumers::position::Place;
use crate::broker::{
    AssignedPartition, CommitAs, GroupError, JoinGroup, Member, MemberKind, MemberView,
    OffsetCommit, OffsetReset, OnDamage, Revocation, Search, Start, Subscription, Topic,
};
use crate::types::{Offset, PartitionId, TopicName};

/// A partition, by its topic's name, so that positions of a topic stand together.
pub(super) type Key = (TopicName, PartitionId);

/// What an instance reads and how far it is.
#[derive(Debug)]
pub(super) struct Consumer {
    pub(super) group: String,
    pub(super) name: String,
    pub(super) settings: Settings,
    pub(super) reading: Reading,
    /// The partitions that it may read.
    pub(super) parts: BTreeMap<Key, Part>,
    /// Which topic has its turn; grows for ever.
    pub(super) turn: usize,
}

/// How an instance comes by its partitions.
#[derive(Debug)]
pub(super) enum Reading {
    /// It has none.
    Nothing,
    /// By its group.
    Subscribed(Box<Subscribed>),
    /// Its client named them.
    Assigned,
}

/// A membership, and what it was asked for.
#[derive(Debug)]
pub(super) struct Subscribed {
    pub(super) subscription: Subscription,
    pub(super) member: Member,
    /// The view whose partitions are in `parts`, `None` before the first look.
    seen: Option<Arc<MemberView>>,
}

impl Subscribed {
    /// Returns the view whose partitions the consumer has, `None` before the first look.
    pub(super) fn seen(&self) -> Option<Arc<MemberView>> {
        self.seen.clone()
    }
}

/// How far a partition is read.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) topic: Arc<Topic>,
    /// The next offset to deliver. `None` when the group has none and the reset policy gives
    /// none: only the client can say one, so it must be able to name the partition meanwhile.
    pub(super) next: Option<Offset>,
    /// Where it was first read, or where its client last told it to be.
    start: Option<Offset>,
    /// The committed offset, as far as this instance knows.
    committed: Option<Offset>,
    /// What is committed next unasked.
    pending: Option<Offset>,
}

impl Part {
    fn new(topic: Arc<Topic>, next: Option<Offset>, committed: Option<Offset>) -> Self {
        Self { topic, next, start: next, committed, pending: None }
    }

    fn move_to(&mut self, offset: Offset) {
        self.next = Some(offset);
        self.start = Some(offset);
    }
}

impl Consumer {
    /// Makes a consumer that reads nothing.
    pub(super) fn new(group: String, name: String, settings: Settings) -> Self {
        let (reading, parts) = (Reading::Nothing, BTreeMap::new());
        Self { group, name, settings, reading, parts, turn: 0 }
    }

    /// Subscribes: joins the group, so that the first poll has partitions, or tells it what the
    /// member wants now.
    ///
    /// # Errors
    /// `already_subscribed` when a pattern stands against a list, `illegal_state` after an
    /// assignment, and those of the coordinator.
    pub(super) async fn subscribe(
        &mut self,
        state: &State,
        wanted: Subscription,
    ) -> Result<(), ApiError> {
        match &mut self.reading {
            Reading::Assigned => Err(illegal_state(
                "Subscription to topics, partitions and pattern are mutually exclusive",
            )),
            Reading::Subscribed(subscribed) => {
                let same_kind = matches!(
                    (&subscribed.subscription, &wanted),
                    (Subscription::Topics(_), Subscription::Topics(_))
                        | (Subscription::Pattern(_), Subscription::Pattern(_))
                );
                if !same_kind {
                    let detail = "Consumer instance is already subscribed to something else: \
                        delete its subscription first.";
                    return Err(ApiError::new(Code::AlreadySubscribed, detail));
                }
                if subscribed.subscription == wanted && subscribed.member.state().fenced.is_none() {
                    return Ok(());
                }
                match subscribed.member.set_subscription(wanted.clone()).await {
                    Err(GroupError::StaleMember { .. }) => self.join(state, wanted).await,
                    Err(error) => Err(error.into()),
                    Ok(()) => {
                        subscribed.subscription = wanted;
                        Ok(())
                    }
                }
            }
            Reading::Nothing => self.join(state, wanted).await,
        }
    }

    async fn join(&mut self, state: &State, wanted: Subscription) -> Result<(), ApiError> {
        let join = JoinGroup {
            group: self.group.clone(),
            instance_id: self.settings.instance_id.clone(),
            kind: MemberKind::RestV2,
            client: self.name.clone(),
            subscription: wanted.clone(),
            assignor: self.settings.assignor,
            session_timeout: self.settings.session_timeout,
            rebalance_timeout: None,
            offset_reset: self.settings.offset_reset,
            // Polls come when their client likes: nobody waits for one.
            revocation: Revocation::Automatic,
        };
        let member = state.broker.join_group(&state.principal, join).await?;
        self.parts.clear();
        let subscribed = Subscribed { subscription: wanted, member, seen: None };
        self.reading = Reading::Subscribed(Box::new(subscribed));
        Ok(())
    }

    /// Takes partitions by name, without the group.
    ///
    /// # Errors
    /// `illegal_state` when subscribed, and those of finding where each starts; then nothing was
    /// changed.
    pub(super) async fn assign(
        &mut self,
        state: &State,
        wanted: BTreeSet<(String, u32)>,
    ) -> Result<(), ApiError> {
        if matches!(self.reading, Reading::Subscribed(_)) {
            return Err(illegal_state(
                "Subscription to topics, partitions and pattern are mutually exclusive",
            ));
        }
        let committed = self.committed(state).await?;
        let (mut kept, mut added) = (BTreeSet::new(), BTreeMap::new());
        for (name, number) in wanted {
            let (topic, partition) = find(state, &name, number)?;
            let key = (topic.summary().name.clone(), partition);
            if self.parts.get(&key).is_some_and(|part| part.next.is_some()) {
                kept.insert(key);
                continue;
            }
            let committed = committed.get(&key).copied();
            let next = self.start(state, &topic, partition, committed).await?;
            added.insert(key, Part::new(topic, next, committed));
        }
        self.swap(&kept, added);
        self.reading = if self.parts.is_empty() { Reading::Nothing } else { Reading::Assigned };
        Ok(())
    }

    /// Gives up what it reads and leaves the group.
    ///
    /// # Errors
    /// The coordinator's.
    pub(super) async fn unsubscribe(&mut self, state: &State) -> Result<(), ApiError> {
        self.commit_pending(state).await;
        self.parts.clear();
        if let Reading::Subscribed(subscribed) =
            std::mem::replace(&mut self.reading, Reading::Nothing)
        {
            subscribed.member.leave().await?;
        }
        Ok(())
    }

    /// Starts over from what the group has committed: another process took the instance over.
    ///
    /// # Errors
    /// The coordinator's.
    pub(super) async fn rewind(&mut self, state: &State) -> Result<(), ApiError> {
        let committed = self.committed(state).await?;
        let keys: Vec<Key> = self.parts.keys().cloned().collect();
        for key in keys {
            let Some(topic) = self.parts.get(&key).map(|part| Arc::clone(&part.topic)) else {
                continue;
            };
            let committed = committed.get(&key).copied();
            let next = self.start(state, &topic, key.1, committed).await?;
            self.parts.insert(key, Part::new(topic, next, committed));
        }
        Ok(())
    }

    /// Looks at what the group has given and taken. A member that is out of the group joins again.
    ///
    /// # Errors
    /// The coordinator's, and those of reading a partition's bounds.
    pub(super) async fn sync(&mut self, state: &State) -> Result<(), ApiError> {
        let Reading::Subscribed(subscribed) = &self.reading else {
            return Ok(());
        };
        if subscribed.member.state().fenced.is_some() {
            let wanted = subscribed.subscription.clone();
            self.join(state, wanted).await?;
        }
        let Reading::Subscribed(subscribed) = &self.reading else {
            return Ok(());
        };
        let view = subscribed.member.state();
        if subscribed.seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &view)) {
            return Ok(());
        }
        let (mut kept, mut added) = (BTreeSet::new(), BTreeMap::new());
        for assigned in &view.assigned {
            let key = (assigned.topic.clone(), assigned.partition);
            if self.parts.get(&key).is_some_and(|part| is_kept(part, assigned)) {
                kept.insert(key);
                continue;
            }
            let start = match subscribed.member.start_of(assigned).await {
                Ok(start) => Some(start.offset),
                Err(GroupError::NoOffset { .. }) => None,
                Err(error) => return Err(error.into()),
            };
            let topic = state.broker.topic(&state.principal, assigned.topic.as_str())?;
            added.insert(key, Part::new(topic, start, assigned.committed));
        }
        self.swap(&kept, added);
        if let Reading::Subscribed(subscribed) = &mut self.reading {
            subscribed.seen = Some(view);
        }
        Ok(())
    }

    /// Changes which partitions there are, at once: while starts are looked for, which may fail or
    /// be given up, those that stay must not be lost.
    fn swap(&mut self, kept: &BTreeSet<Key>, added: BTreeMap<Key, Part>) {
        self.parts.retain(|key, _| kept.contains(key));
        self.parts.extend(added);
    }

    /// Notes that a poll begins: its client has dealt with all that was answered before, or, when
    /// it says which answer was the last to arrive, with that one.
    pub(super) fn begin_poll(&mut self, after: Option<&[Place]>) {
        if let Some(places) = after {
            for ((_, partition), part) in &mut self.parts {
                let id = part.topic.summary().id;
                let place = places.iter().find(|place| place.0 == id && place.1 == *partition);
                // What the answer did not know has come since, and none of it has arrived.
                part.next = place.map_or(part.start, |(_, _, offset)| Some(*offset));
            }
        }
        for part in self.parts.values_mut() {
            part.pending = part.next.filter(|next| part.committed != Some(*next));
        }
    }

    /// Checks that it is known where to read every partition.
    ///
    /// # Errors
    /// `offset_out_of_range` when the reset policy is `none` and nobody has named an offset.
    pub(super) fn check_placed(&self) -> Result<(), ApiError> {
        match self.parts.iter().find(|(_, part)| part.next.is_none()) {
            Some(((topic, partition), _)) => {
                Err(GroupError::NoOffset { topic: topic.clone(), partition: *partition }.into())
            }
            None => Ok(()),
        }
    }

    /// Returns where the instance is.
    pub(super) fn places(&self) -> Vec<Place> {
        let place = |((_, partition), part): (&Key, &Part)| {
            Some((part.topic.summary().id, *partition, part.next?))
        };
        self.parts.iter().filter_map(place).collect()
    }

    /// Moves a partition to an offset; one outside of the log goes where the reset policy says.
    ///
    /// # Errors
    /// `illegal_state` when the partition is not the instance's, `offset_out_of_range` when the
    /// policy is `none`.
    pub(super) async fn seek(
        &mut self,
        state: &State,
        (topic, partition): (&str, u32),
        offset: Offset,
    ) -> Result<(), ApiError> {
        let reset = self.settings.offset_reset;
        let (key, part) = self.part(topic, partition)?;
        let broker = &state.broker;
        let (start, end) = broker.bounds(&state.principal, &part.topic, key.1).await?;
        let offset = match reset {
            _ if (start..=end).contains(&offset) => offset,
            OffsetReset::Earliest => start,
            OffsetReset::Latest => end,
            OffsetReset::None => {
                let detail = format!("offset {offset} is outside of {start}..={end}");
                return Err(ApiError::new(Code::OffsetOutOfRange, detail));
            }
        };
        part.move_to(offset);
        Ok(())
    }

    /// Moves a partition to a place that every partition has.
    ///
    /// # Errors
    /// `illegal_state` when the partition is not the instance's, and those of the broker.
    pub(super) async fn seek_to(
        &mut self,
        state: &State,
        (topic, partition): (&str, u32),
        start: Start,
    ) -> Result<(), ApiError> {
        let (key, part) = self.part(topic, partition)?;
        let (broker, principal) = (&state.broker, &state.principal);
        let search = Search { start, on_damage: OnDamage::Skip };
        let found = broker.start_offsets(principal, &part.topic, &[key.1], search).await?;
        if let Some((_, offset)) = found.first() {
            part.move_to(*offset);
        }
        Ok(())
    }

    /// Finds a partition that the instance reads.
    ///
    /// # Errors
    /// `illegal_state`.
    pub(super) fn part(
        &mut self,
        topic: &str,
        partition: u32,
    ) -> Result<(&Key, &mut Part), ApiError> {
        let found = self
            .parts
            .iter_mut()
            .find(|((name, number), _)| name.as_str() == topic && number.get() == partition);
        // Tells only the pair: which partitions others have is none of the client's business.
        found.ok_or_else(|| {
            illegal_state(&format!("No current assignment for partition {topic}-{partition}"))
        })
    }

    /// Returns the offsets that commit all that was answered.
    pub(super) fn delivered(&self) -> Vec<OffsetCommit> {
        let moved = |(_, part): &(&Key, &Part)| {
            part.committed != part.next && (part.next != part.start || part.pending.is_some())
        };
        let commit = |((topic, partition), part): (&Key, &Part)| {
            Some(to_commit(topic, *partition, part.next?))
        };
        self.parts.iter().filter(moved).filter_map(commit).collect()
    }

    /// Commits offsets, as the member or, without membership, as the group.
    ///
    /// # Errors
    /// The coordinator's.
    pub(super) async fn commit(
        &mut self,
        state: &State,
        offsets: Vec<OffsetCommit>,
    ) -> Result<(), ApiError> {
        if offsets.is_empty() {
            return Ok(());
        }
        match &self.reading {
            Reading::Subscribed(subscribed) => {
                // What this instance knows counts, which may be older than what the group decided:
                // a partition that went and came back meanwhile was read on by another member.
                let epoch = match subscribed.seen() {
                    Some(view) => self.check_known(state, &offsets).map(|()| view.epoch)?,
                    None => subscribed.member.epoch(),
                };
                subscribed.member.commit(epoch, offsets.clone()).await?;
            }
            Reading::Assigned | Reading::Nothing => {
                let broker = &state.broker;
                let (principal, group) = (&state.principal, &self.group);
                broker.commit_offsets(principal, group, CommitAs::Group, offsets.clone()).await?;
            }
        }
        for commit in offsets {
            if let Ok((_, part)) = self.part(&commit.topic, commit.partition) {
                part.committed = Some(commit.offset);
                part.pending = None;
                if part.next.is_none() {
                    part.move_to(commit.offset);
                }
            }
        }
        Ok(())
    }

    /// Checks that all partitions are among those that this instance knows to have.
    fn check_known(&self, state: &State, offsets: &[OffsetCommit]) -> Result<(), ApiError> {
        for OffsetCommit { topic, partition, .. } in offsets {
            let (found, partition) = find(state, topic, *partition)?;
            if !self.parts.contains_key(&(found.summary().name.clone(), partition)) {
                let detail = format!("partition {topic}-{partition} is not the instance's");
                return Err(ApiError::new(Code::StaleMember, detail));
            }
        }
        Ok(())
    }

    /// Commits unasked what the client has dealt with, where its settings say so. A failure costs
    /// repeats and no records: the next turn tries again.
    pub(super) async fn commit_pending(&mut self, state: &State) {
        if !self.settings.auto_commit {
            return;
        }
        let commit = |((topic, partition), part): (&Key, &Part)| {
            Some(to_commit(topic, *partition, part.pending?))
        };
        let offsets: Vec<OffsetCommit> = self.parts.iter().filter_map(commit).collect();
        if let Err(error) = self.commit(state, offsets).await {
            let (group, instance) = (&self.group, &self.name);
            tracing::debug!(%group, %instance, detail = error.detail(), "commit failed");
        }
    }

    async fn committed(&self, state: &State) -> Result<BTreeMap<Key, Offset>, ApiError> {
        match state.broker.group_offsets(&state.principal, &self.group).await {
            Ok(offsets) => {
                let known = offsets.into_iter();
                Ok(known.map(|of| ((of.topic, of.partition), of.offset)).collect())
            }
            Err(GroupError::NotFound(_)) => Ok(BTreeMap::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Finds where to start a partition that no group gave; `None` when only its client can say.
    async fn start(
        &self,
        state: &State,
        topic: &Arc<Topic>,
        partition: PartitionId,
        committed: Option<Offset>,
    ) -> Result<Option<Offset>, ApiError> {
        let (start, end) = state.broker.bounds(&state.principal, topic, partition).await?;
        Ok(match (committed, self.settings.offset_reset) {
            (Some(offset), _) if (start..=end).contains(&offset) => Some(offset),
            // Records were lost: starting over would deliver everything again.
            (Some(offset), OffsetReset::Earliest) if offset > end => Some(end),
            (_, OffsetReset::Earliest) => Some(start),
            (_, OffsetReset::Latest) => Some(end),
            (_, OffsetReset::None) => None,
        })
    }
}

/// Whether a partition of the former view goes on where it was. It does not when another member
/// read on in between: its commit is ahead of ours and of what we delivered. One that is nowhere
/// may have an offset by now.
fn is_kept(part: &Part, assigned: &AssignedPartition) -> bool {
    let Some(next) = part.next else {
        return false;
    };
    let ours = part.committed.map_or(next, |committed| committed.max(next));
    part.topic.summary().id == assigned.topic_id
        && assigned.committed.is_none_or(|committed| committed <= ours)
}

fn to_commit(topic: &TopicName, partition: PartitionId, offset: Offset) -> OffsetCommit {
    let (topic, partition) = (topic.to_string(), partition.get());
    OffsetCommit { topic, partition, offset, metadata: String::new() }
}

/// Finds a topic's partition.
///
/// # Errors
/// `topic_not_found`, `partition_not_found`.
pub(super) fn find(
    state: &State,
    name: &str,
    number: u32,
) -> Result<(Arc<Topic>, PartitionId), ApiError> {
    let topic = state.broker.topic(&state.principal, name)?;
    let partition = topic.partition(number).ok_or_else(crate::api::v2::partition_not_found)?;
    Ok((topic, partition))
}

/// The REST Proxy's answer to what an instance cannot do as it is.
pub(super) fn illegal_state(detail: &str) -> ApiError {
    ApiError::new(Code::IllegalState, format!("Illegal state: {detail}"))
}
