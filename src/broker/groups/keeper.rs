//! The task that looks after groups: keeps handles up to date and members alive.
//!
//! Members with a handle on this node need nothing. Members without one (their process is gone, or
//! the server was restarted) have their session timeout, by this node's monotonic clock and from
//! the moment that it found them; a member that does not give up partitions has its rebalance
//! timeout. Only changes become entries of the log.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;

use crate::broker::groups::coordinator::{Matching, matching};
use crate::broker::{AssignedPartition, Broker, GroupError, Revocation};
use crate::groups::{Change, Departure, MemberStatus, Pattern, Selection, Timers};
use crate::metadata::{Command, ConsumerGroup, ExpireOffsets, Image};
use crate::types::limits::SUBSCRIPTION_TOPICS_MAX;
use crate::types::{Epoch, GroupName, LogPosition, MemberId, Timestamp, TopicName, TopicPartition};

/// Longest pause between two looks, also when nothing happens.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Changes that are proposed at a time.
const PROPOSALS_MAX: usize = 64;
/// How often it is looked for offsets that are too old, at most and at least.
const EXPIRY_INTERVAL_MIN: Duration = Duration::from_secs(1);
const EXPIRY_INTERVAL_MAX: Duration = Duration::from_secs(600);
/// Groups of one expiry entry.
const EXPIRED_GROUPS_MAX: usize = 1_000;

/// What is remembered from look to look. All of it can be lost.
#[derive(Default)]
struct Watch {
    sessions: Timers<(GroupName, MemberId)>,
    revocations: Timers<(GroupName, MemberId, Epoch)>,
    /// The image's topics that all groups were compared with.
    topics_seen: Option<LogPosition>,
    /// When offsets were last looked at, by the monotonic clock.
    expiry: Option<Duration>,
}

impl Broker {
    /// Looks after the groups' members of this node and, while it coordinates, after all members,
    /// until `stop` completes. Nobody can join or commit without it, so it is stopped after all who
    /// do, and then proposes once more that those leave who went last.
    pub async fn run_groups(self, stop: impl Future<Output = ()> + Send) {
        let look = async {
            let mut changes = self.inner.metadata.members_changed();
            let mut watch = Watch::default();
            let mut stop = std::pin::pin!(stop);
            loop {
                let next = self.look_after_groups(&mut watch).await;
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = self.inner.groups.wake.notified() => {}
                    () = tokio::time::sleep(next) => {}
                    () = &mut stop => break,
                }
            }
            self.look_after_groups(&mut watch).await;
        };
        tokio::select! {
            () = look => {}
            () = self.run_commits() => {}
        }
    }

    /// Looks once and returns how long nothing is due.
    async fn look_after_groups(&self, watch: &mut Watch) -> Duration {
        let mut changes = self.revoke_automatically();
        for (group, member) in self.inner.groups.take_lost() {
            changes.push((group, Change::Leave { member, departure: Departure::Left }));
        }
        let now = self.inner.clock.monotonic();
        let image = self.inner.metadata.image();
        if self.inner.metadata.status().leads {
            self.find_overdue(watch, &image, &mut changes);
            find_outdated(watch, &image, &mut changes);
        } else {
            *watch = Watch::default();
        }
        self.count(&image);
        let again = !changes.is_empty();
        let are_made = stream::iter(changes)
            .map(|change| self.propose_quietly(change))
            .buffer_unordered(PROPOSALS_MAX)
            .fold(true, |all, made| async move { all && made })
            .await;
        if !are_made {
            // What has to wait is found again by the next look, which must not come at once.
            watch.topics_seen = None;
            return LOOK_INTERVAL;
        }
        self.expire_offsets(watch).await;
        if again {
            // What was proposed is applied: handles are shown it in the next look.
            return Duration::ZERO;
        }
        let due =
            watch.sessions.next_after(now).into_iter().chain(watch.revocations.next_after(now));
        due.min().map_or(LOOK_INTERVAL, |due| due.saturating_sub(now).min(LOOK_INTERVAL))
    }

    /// Shows every handle its member's state, and gives up partitions for those that have no say.
    fn revoke_automatically(&self) -> Vec<(GroupName, Change)> {
        let mut changes = Vec::new();
        for shared in self.inner.groups.live() {
            self.show(&shared);
            let view = shared.view.borrow();
            if shared.revocation == Revocation::Automatic && !view.revoking.is_empty() {
                let of = |revoking: &AssignedPartition| TopicPartition {
                    topic: revoking.topic_id,
                    partition: revoking.partition,
                };
                let partitions = view.revoking.iter().map(of).collect();
                let (member, epoch) = (shared.id.clone(), view.epoch);
                let change = Change::Revoked { member, epoch, partitions };
                changes.push((shared.group.clone(), change));
            }
        }
        changes
    }

    /// Finds members that have been away, or have not given up partitions, for too long.
    fn find_overdue(
        &self,
        watch: &mut Watch,
        image: &Image,
        changes: &mut Vec<(GroupName, Change)>,
    ) {
        let now = self.inner.clock.monotonic();
        let (mut away, mut stuck) = (Vec::new(), Vec::new());
        for group in image.groups_from(None) {
            for (id, member) in &group.state().members {
                if !self.inner.groups.is_held(id) {
                    let key = (group.name().clone(), id.clone());
                    away.push((key, member.profile.session_timeout()));
                }
                if member.status() == MemberStatus::UnrevokedPartitions {
                    let key = (group.name().clone(), id.clone(), member.epoch);
                    stuck.push((key, member.profile.rebalance_timeout()));
                }
            }
        }
        for (group, member) in watch.sessions.observe(now, away) {
            tracing::info!(%group, %member, "session expired");
            self.inner.metrics.groups.expired_sessions.inc();
            changes.push((group, Change::Leave { member, departure: Departure::SessionExpired }));
        }
        for (group, member, epoch) in watch.revocations.observe(now, stuck) {
            tracing::warn!(%group, %member, %epoch, "partitions were not given up in time");
            changes.push((group, Change::RevocationTimedOut { member, epoch }));
        }
    }

    /// Returns whether the change was made, or is not needed any more.
    async fn propose_quietly(&self, (group, change): (GroupName, Change)) -> bool {
        let lost = match &change {
            Change::Leave { member, departure: Departure::Left } => Some(member.clone()),
            _ => None,
        };
        match self.change_group(&group, change).await {
            // It has left by itself, or with its group.
            Ok(_) | Err(GroupError::StaleMember { .. } | GroupError::NotFound(_)) => true,
            Err(error) => {
                tracing::debug!(%group, %error, "a change of a group has to wait");
                if let Some(member) = lost {
                    self.inner.groups.still_lost((group, member));
                }
                false
            }
        }
    }

    /// Forgets offsets that are too old, now and then.
    async fn expire_offsets(&self, watch: &mut Watch) {
        let now = self.inner.clock.monotonic();
        let retention = self.config().offsets_retention;
        let interval = (retention / 10).clamp(EXPIRY_INTERVAL_MIN, EXPIRY_INTERVAL_MAX);
        let last = *watch.expiry.get_or_insert(now);
        if now.saturating_sub(last) < interval || !self.inner.metadata.status().leads {
            return;
        }
        watch.expiry = Some(now);
        let Some(wall) = self.inner.clock_guard.trusted_now() else { return };
        let retention_ms = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
        let before = wall.as_millis().saturating_sub(retention_ms);
        let before = Timestamp::from_millis(before);
        let image = self.inner.metadata.image();
        let expired = image.groups_from(None).filter(|group| group.has_expired(before));
        let groups: Vec<GroupName> =
            expired.map(|group| group.name().clone()).take(EXPIRED_GROUPS_MAX).collect();
        if groups.is_empty() {
            return;
        }
        tracing::info!(groups = groups.len(), "forgetting offsets of groups that were left alone");
        let command = Command::ExpireOffsets(ExpireOffsets { groups, before });
        if let Err(error) = self.inner.metadata.change(&command).await {
            tracing::warn!(%error, "old offsets could not be forgotten");
        }
    }

    fn count(&self, image: &Image) {
        let metrics = &self.inner.metrics.groups;
        metrics.groups.set(u64::try_from(image.groups_len()).unwrap_or(u64::MAX));
        let members = image.groups_from(None).map(|group| group.state().members.len());
        metrics.members.set(u64::try_from(members.sum::<usize>()).unwrap_or(u64::MAX));
    }
}

/// Finds groups whose topics are not those that their assignment is about. Looks only when topics
/// have changed since the last look.
fn find_outdated(watch: &mut Watch, image: &Image, changes: &mut Vec<(GroupName, Change)>) {
    if watch.topics_seen == Some(image.changed()) {
        return;
    }
    watch.topics_seen = Some(image.changed());
    for group in image.groups_from(None) {
        let matched = matched_again(group, image);
        if !matched.is_empty() || group.state().is_outdated(image) {
            changes.push((group.name().clone(), Change::TopicsChanged { matched }));
        }
    }
}

/// Lists the members whose pattern matches other topics than it did.
fn matched_again(group: &ConsumerGroup, image: &Image) -> Vec<(MemberId, BTreeSet<TopicName>)> {
    let members = group.state().members.iter();
    members
        .filter_map(|(id, member)| {
            let Selection::Pattern { pattern, matched } = &member.selection else { return None };
            // It compiled when the member joined.
            let Matching { names, left_out } = matching(image, &Pattern::parse(pattern).ok()?);
            if left_out > 0 && matched.len() < SUBSCRIPTION_TOPICS_MAX {
                let (group, limit) = (group.name(), SUBSCRIPTION_TOPICS_MAX);
                tracing::warn!(%group, member = %id, limit, "a pattern matches too many topics");
            }
            (names != *matched).then(|| (id.clone(), names))
        })
        .collect()
}
