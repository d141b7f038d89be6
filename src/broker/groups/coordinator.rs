//! Talks to the coordinator, which is the metadata shard: proposes changes of groups and shows the
//! handles of this node what became of them.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::broker::groups::commits::Commits;
use crate::broker::groups::member::Shared;
use crate::broker::{
    AssignedPartition, Broker, Config, GroupError, JoinGroup, Member, MemberView, Subscription,
};
use crate::groups::{
    self, Change, Departure, MemberStatus, Pattern, PatternError, Profile, RebalanceReason,
    Refusal, Selection,
};
use crate::metadata::{
    Accepted, ChangeError, ChangeGroup, Command, ConsumerGroup, Image, Rejection,
};
use crate::types::limits::{
    GROUP_MEMBERS_MAX, GROUP_NAME_BYTES_MAX, GROUPS_MAX, SUBSCRIPTION_PATTERN_BYTES_MAX,
    SUBSCRIPTION_TOPICS_MAX,
};
use crate::types::{
    GroupName, GroupNameError, InstanceId, MemberId, PartitionId, Principal, TopicId, TopicName,
    TopicPartition,
};

/// Shortest and longest session and rebalance timeouts.
const TIMEOUT_MIN: Duration = Duration::from_secs(6);
const TIMEOUT_MAX: Duration = Duration::from_secs(30 * 60);
/// How long a member may take to give up partitions when it does not say.
const REBALANCE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a join waits for others to give up the first partitions of the new member.
const FIRST_ASSIGNMENT_WAIT: Duration = Duration::from_secs(3);

/// What this node knows of groups beside the image: the members that it keeps alive.
#[derive(Debug, Default)]
pub(in crate::broker) struct Groups {
    /// The handles, by member. Bounded by the members that groups may have. Short sections
    /// without await.
    handles: Mutex<HashMap<MemberId, Weak<Shared>>>,
    /// Members whose handle was dropped and that are not waited for; as many as had a handle.
    lost: Mutex<Vec<(GroupName, MemberId)>>,
    /// Wakes the task that looks after groups.
    pub(in crate::broker::groups) wake: Notify,
    /// Commits on their way to the log.
    pub(in crate::broker::groups) commits: Commits,
}

impl Groups {
    /// Takes note that nobody holds the handle of a member any more.
    pub(in crate::broker::groups) fn dropped(&self, shared: &Shared) {
        self.handles.lock().remove(&shared.id);
        let is_out = shared.view.borrow().fenced.is_some();
        if !is_out && shared.instance_id.is_none() {
            self.lost.lock().push((shared.group.clone(), shared.id.clone()));
        }
        self.wake.notify_one();
    }

    /// Lists the handles that somebody holds.
    pub(in crate::broker::groups) fn live(&self) -> Vec<Arc<Shared>> {
        // Upgraded handles are not dropped under the lock: dropping the last one takes it.
        let handles: Vec<Weak<Shared>> = self.handles.lock().values().cloned().collect();
        handles.iter().filter_map(Weak::upgrade).collect()
    }

    /// Takes the members that have left by dropping their handle.
    pub(in crate::broker::groups) fn take_lost(&self) -> Vec<(GroupName, MemberId)> {
        std::mem::take(&mut *self.lost.lock())
    }

    /// Puts back members whose departure could not be told.
    pub(in crate::broker::groups) fn still_lost(&self, member: (GroupName, MemberId)) {
        self.lost.lock().push(member);
    }

    /// Returns whether somebody holds the handle of a member.
    pub(in crate::broker::groups) fn is_held(&self, id: &MemberId) -> bool {
        self.handles.lock().get(id).is_some_and(|handle| handle.strong_count() > 0)
    }
}

impl Broker {
    /// Joins a group and waits, for a bounded time, until the member has been told its first
    /// assignment, so that a first poll has partitions.
    ///
    /// # Errors
    /// [`GroupError`]: a name or pattern that breaks a rule, a limit that is reached, no
    /// coordinator.
    ///
    /// # Cancel safety
    /// A join whose future is dropped is taken back.
    pub async fn join_group(
        &self,
        principal: &Principal,
        join: JoinGroup,
    ) -> Result<Member, GroupError> {
        let group = group_name(&join.group)?;
        let instance_id = join.instance_id.as_deref().map(instance_id).transpose()?;
        let image = self.inner.metadata.image();
        let selection = select(&image, &join.subscription)?;
        if self.is_storage_full() {
            return Err(GroupError::StorageFull);
        }
        let session = clamp(join.session_timeout.unwrap_or(self.config().session_timeout));
        let rebalance = clamp(join.rebalance_timeout.unwrap_or(REBALANCE_TIMEOUT));
        let id = MemberId::new(Uuid::now_v7());
        let shared = Arc::new(Shared {
            group,
            id: id.clone(),
            instance_id: instance_id.clone(),
            principal: principal.clone(),
            session_timeout: session,
            offset_reset: join.offset_reset,
            revocation: join.revocation,
            groups: Arc::clone(&self.inner.groups),
            joined: AtomicBool::new(false),
            seen: Mutex::new(None),
            view: watch::Sender::new(Arc::default()),
        });
        // Before the member exists, or it would be taken for one that nobody keeps alive.
        self.inner.groups.handles.lock().insert(id.clone(), Arc::downgrade(&shared));
        let profile = Profile {
            instance_id,
            kind: join.kind,
            client: shortened(&join.client),
            node: self.inner.node,
            session_timeout_ms: millis(session),
            rebalance_timeout_ms: millis(rebalance),
            assignor: join.assignor,
        };
        let change = Change::Join { member: id, profile, selection };
        let joined = self.change_group(&shared.group, change).await;
        if let Err(error) = joined {
            if !error.may_have_applied() {
                shared.fence(Departure::Left);
            }
            return Err(error);
        }
        shared.joined.store(true, Ordering::Release);
        self.show(&shared);
        self.wait_for_first_assignment(&shared).await;
        Ok(Member { broker: self.clone(), shared })
    }

    /// Finds a member that this node keeps alive.
    pub fn member(&self, _principal: &Principal, group: &str, id: &MemberId) -> Option<Member> {
        let shared = self.inner.groups.handles.lock().get(id)?.upgrade()?;
        let is_it = shared.group.as_str() == group && shared.joined.load(Ordering::Acquire);
        is_it.then(|| Member { broker: self.clone(), shared })
    }

    pub(in crate::broker::groups) async fn revoked(
        &self,
        shared: &Shared,
        partitions: &[(TopicId, PartitionId)],
    ) -> Result<(), GroupError> {
        let view = Arc::clone(&shared.view.borrow());
        if partitions.is_empty() {
            return Ok(());
        }
        let of = |(topic, partition): &(TopicId, PartitionId)| TopicPartition {
            topic: *topic,
            partition: *partition,
        };
        let partitions = partitions.iter().map(of).collect();
        let (member, epoch) = (shared.id.clone(), view.epoch);
        self.change_group(&shared.group, Change::Revoked { member, epoch, partitions }).await?;
        self.show(shared);
        Ok(())
    }

    pub(in crate::broker::groups) async fn set_subscription(
        &self,
        shared: &Shared,
        subscription: Subscription,
    ) -> Result<(), GroupError> {
        let selection = select(&self.inner.metadata.image(), &subscription)?;
        let member = shared.id.clone();
        self.change_group(&shared.group, Change::Subscribe { member, selection }).await?;
        self.show(shared);
        self.wait_for_first_assignment(shared).await;
        Ok(())
    }

    pub(in crate::broker::groups) async fn leave_group(
        &self,
        shared: &Shared,
    ) -> Result<(), GroupError> {
        let member = shared.id.clone();
        let change = Change::Leave { member, departure: Departure::Left };
        match self.change_group(&shared.group, change).await {
            Ok(_) | Err(GroupError::StaleMember { .. } | GroupError::NotFound(_)) => {
                shared.fence(Departure::Left);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Proposes a change of a group and returns the group as it is then.
    ///
    /// # Errors
    /// [`GroupError`].
    pub(in crate::broker::groups) async fn change_group(
        &self,
        group: &GroupName,
        change: Change,
    ) -> Result<Arc<ConsumerGroup>, GroupError> {
        let at = self.inner.clock.now();
        let command = Command::ChangeGroup(ChangeGroup { group: group.clone(), change, at });
        match self.propose_for(group, &command).await? {
            Accepted::Group(changed) => Ok(changed),
            Accepted::Done | Accepted::Topic(_) | Accepted::Commits(_) => {
                Err(GroupError::OutcomeUnknown("no group was returned".to_owned()))
            }
        }
    }

    /// Proposes a command about a group.
    ///
    /// # Errors
    /// [`GroupError`].
    pub(in crate::broker::groups) async fn propose_for(
        &self,
        group: &GroupName,
        command: &Command,
    ) -> Result<Accepted, GroupError> {
        let (_, response) =
            self.inner.metadata.change(command).await.map_err(|error| unchanged(&error))?;
        response.map_err(|rejection| refused(group, rejection))
    }

    /// Shows a handle how its member stands in the newest image. The view changes only if the
    /// member has.
    pub(in crate::broker::groups) fn show(&self, shared: &Shared) {
        if !shared.joined.load(Ordering::Acquire) {
            return;
        }
        // Under the lock, so that an older image is never shown after a newer one.
        let mut seen = shared.seen.lock();
        let image = self.inner.metadata.image();
        let group = image.group(shared.group.as_str());
        let member = group.and_then(|group| group.state().member(&shared.id));
        let (Some(group), Some(member)) = (group, member) else {
            shared.fence(departure(group.map(Arc::as_ref), shared));
            return;
        };
        if seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, member)) {
            return;
        }
        *seen = Some(Arc::clone(member));
        let view = MemberView {
            epoch: member.epoch,
            assigned: list(&image, group, member.assigned.keys()),
            revoking: list(&image, group, member.revoking.keys()),
            is_waiting: member.status() != MemberStatus::Stable,
            fenced: None,
        };
        shared.view.send_replace(Arc::new(view));
    }

    /// Waits until the member has a partition, or it is clear that there is none for it.
    async fn wait_for_first_assignment(&self, shared: &Shared) {
        let mut views = shared.view.subscribe();
        let is_told = |view: &Arc<MemberView>| !view.is_waiting || !view.assigned.is_empty();
        // Whoever holds the partitions has its rebalance timeout to give them up; the member is
        // told later then.
        let told = tokio::time::timeout(FIRST_ASSIGNMENT_WAIT, views.wait_for(is_told)).await;
        if told.is_err() {
            tracing::debug!(group = %shared.group, "joined before partitions were free");
        }
    }

    pub(in crate::broker::groups) fn config(&self) -> &Config {
        &self.inner.config
    }
}

/// Finds out why a member is not in its group any more.
fn departure(group: Option<&ConsumerGroup>, shared: &Shared) -> Departure {
    let Some(state) = group.map(ConsumerGroup::state) else { return Departure::Left };
    let instance = shared.instance_id.as_ref();
    let has_instance = |member: &Arc<groups::Member>| {
        instance.is_some() && member.profile.instance_id.as_ref() == instance
    };
    if state.members.values().any(has_instance) {
        return Departure::Replaced;
    }
    let name = instance.map_or(shared.id.as_str(), InstanceId::as_str);
    let about_it = |rebalance: &&groups::Rebalance| rebalance.detail == name;
    match state.rebalances.iter().rev().find(about_it).map(|rebalance| rebalance.reason) {
        Some(RebalanceReason::SessionExpired) => Departure::SessionExpired,
        Some(RebalanceReason::RebalanceTimedOut) => Departure::RebalanceTimedOut,
        Some(_) | None => Departure::Left,
    }
}

/// Lists partitions with their topics' names and committed offsets, by name and partition.
fn list<'p>(
    image: &Image,
    group: &ConsumerGroup,
    partitions: impl Iterator<Item = &'p TopicPartition>,
) -> Vec<AssignedPartition> {
    let describe = |of: &TopicPartition| {
        Some(AssignedPartition {
            topic: image.topic(of.topic)?.name.clone(),
            topic_id: of.topic,
            partition: of.partition,
            committed: group.offset(of).map(|committed| committed.offset),
        })
    };
    let mut list: Vec<AssignedPartition> = partitions.filter_map(describe).collect();
    list.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
    list
}

/// Checks a group's name that is to be written to.
///
/// # Errors
/// [`GroupError::InvalidName`].
pub(in crate::broker::groups) fn group_name(text: &str) -> Result<GroupName, GroupError> {
    GroupName::parse_for_write(text).map_err(invalid(text, "group name"))
}

fn instance_id(text: &str) -> Result<InstanceId, GroupError> {
    InstanceId::parse(text).map_err(invalid(text, "instance id"))
}

fn invalid(name: &str, what: &'static str) -> impl FnOnce(GroupNameError) -> GroupError {
    move |source| GroupError::InvalidName { name: name.to_owned(), what, source }
}

/// Checks a subscription and finds what a pattern matches now.
fn select(image: &Image, subscription: &Subscription) -> Result<Selection, GroupError> {
    match subscription {
        Subscription::Topics(names) if names.len() > SUBSCRIPTION_TOPICS_MAX => {
            Err(GroupError::TooLarge {
                what: "the number of topics of a subscription",
                value: names.len(),
                limit: SUBSCRIPTION_TOPICS_MAX,
            })
        }
        Subscription::Topics(names) => Ok(Selection::Topics(names.clone())),
        Subscription::Pattern(text) => {
            let pattern = Pattern::parse(text).map_err(|error| match error {
                PatternError::TooLong(value) => GroupError::TooLarge {
                    what: "the length of a pattern",
                    value,
                    limit: SUBSCRIPTION_PATTERN_BYTES_MAX,
                },
                PatternError::Syntax(_) => GroupError::Invalid(error.to_string()),
            })?;
            let Matching { names: matched, left_out } = matching(image, &pattern);
            if left_out > 0 {
                return Err(GroupError::TooLarge {
                    what: "the number of topics that the pattern matches",
                    value: matched.len().saturating_add(left_out),
                    limit: SUBSCRIPTION_TOPICS_MAX,
                });
            }
            Ok(Selection::Pattern { pattern: text.clone(), matched })
        }
    }
}

/// What a pattern matches.
pub(in crate::broker::groups) struct Matching {
    /// The topics, as many as a subscription may have: the oldest.
    pub(in crate::broker::groups) names: BTreeSet<TopicName>,
    /// How many match beyond those.
    pub(in crate::broker::groups) left_out: usize,
}

/// Finds the topics that match a pattern. Internal ones are for those who name them.
pub(in crate::broker::groups) fn matching(image: &Image, pattern: &Pattern) -> Matching {
    let active = image.topics().filter(|topic| topic.is_active()).map(|topic| &topic.name);
    let mut matching =
        active.filter(|name| !name.as_str().starts_with("__") && pattern.matches(name.as_str()));
    let names = matching.by_ref().take(SUBSCRIPTION_TOPICS_MAX).cloned().collect();
    Matching { names, left_out: matching.count() }
}

fn clamp(timeout: Duration) -> Duration {
    timeout.clamp(TIMEOUT_MIN, TIMEOUT_MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn shortened(client: &str) -> String {
    client.chars().filter(|c| !c.is_control()).take(GROUP_NAME_BYTES_MAX).collect()
}

/// Says what a failed proposal means.
pub(in crate::broker::groups) fn unchanged(error: &ChangeError) -> GroupError {
    match error {
        ChangeError::NotLeader => GroupError::Unavailable("there is no coordinator".to_owned()),
        ChangeError::OutcomeUnknown | ChangeError::Encode(_) => {
            GroupError::OutcomeUnknown(error.to_string())
        }
    }
}

/// Says what a refused command means.
pub(in crate::broker::groups) fn refused(group: &GroupName, rejection: Rejection) -> GroupError {
    let refusal = match rejection {
        Rejection::Group(refusal) => refusal,
        Rejection::UnknownGroup => return GroupError::NotFound(group.to_string()),
        Rejection::TooManyGroups => {
            let (what, limit) = ("the number of groups", GROUPS_MAX);
            return GroupError::TooLarge { what, value: limit + 1, limit };
        }
        other => return GroupError::Unavailable(other.to_string()),
    };
    let detail = refusal.to_string();
    match refusal {
        Refusal::UnknownMember(member)
        | Refusal::MemberExists(member)
        | Refusal::OtherEpoch { member, .. }
        | Refusal::NotOwned { member, .. } => GroupError::StaleMember { member, detail },
        Refusal::NotEmpty(members) => GroupError::NotEmpty { group: group.to_string(), members },
        Refusal::Full => {
            let (what, limit) = ("the number of members of a group", GROUP_MEMBERS_MAX);
            GroupError::TooLarge { what, value: limit + 1, limit }
        }
    }
}
