//! A subscription that is a member of a group: it reads what the group assigns to it.
//!
//! ```text
//! joined --> watch --> new view --> partitions to give up: `revoking`, wait, `revoked` --+
//!              ^                \-> partitions to take on: find starts, `assigned` ------+
//!              +-------------------------------------------------------------------------+
//! ```
//!
//! Invariants:
//! - nothing of a partition is sent after its `revoking`; it is given up when the client has
//!   committed all that it was sent of it, or the time for that is over;
//! - a commit counts for what the client was told to have: a partition that went and came back
//!   meanwhile is another assignment of it;
//! - whatever the group asks back is given up, also what the client was not told of yet;
//! - one step at a time: what the group wants meanwhile is looked at afterwards;
//! - a membership ends with its subscription: by leaving when that is ended, else (the socket
//!   breaks) as the group's rules say.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::api::State;
use crate::api::error::{ApiError, Code};
use crate::api::ws::jobs::{Done, Job};
use crate::api::ws::replies::{self, Passed};
use crate::api::ws::requests::{About, Commit, GroupRequest, Offsets};
use crate::api::ws::session::Session;
use crate::api::ws::start::partition_of;
use crate::broker::{
    AssignedPartition, GapReason, GroupError, JoinGroup, Member, MemberKind, MemberView,
    OffsetCommit, OffsetReset, Revocation, StartOffset, Subscription as Wanted, Topic,
};
use crate::types::{Epoch, Offset, PartitionId};

/// How long to wait before a revocation that was not acknowledged is tried again.
const REVOCATION_PAUSE: Duration = Duration::from_millis(500);

/// Time for a client to commit what it was sent of partitions that it has to give up.
const REVOCATION_TIME: Duration = Duration::from_secs(3);

/// How often `auto_commit` commits what was sent a full interval before.
const AUTO_COMMIT_EVERY: Duration = Duration::from_secs(5);

/// A member, and how far it has come.
pub(super) struct Membership {
    id: u64,
    member: Member,
    topic: Arc<Topic>,
    revoking: Option<Revoking>,
    /// The epoch of the newest assignment that the client was told; `None` before the first.
    told: Option<Epoch>,
    /// What each partition was committed at last, or started at.
    settled: Vec<(PartitionId, Offset)>,
    auto_commit: Option<AutoCommit>,
}

/// Partitions that are being given up.
struct Revoking {
    /// With the offset that the client was sent last.
    partitions: Vec<(PartitionId, Offset)>,
    by: Instant,
    /// Whether the group was told.
    is_sent: bool,
}

struct AutoCommit {
    at: Instant,
    /// Where the subscription was an interval ago.
    seen: Vec<(PartitionId, Offset)>,
}

/// Where a member starts in partitions that it was assigned.
pub(super) type Starts = Vec<(AssignedPartition, StartOffset)>;

/// Joins a group for the records of one topic.
///
/// # Errors
/// Those of the broker.
pub(super) async fn join(
    state: &State,
    topic: &Arc<Topic>,
    (id, request): (u64, GroupRequest),
) -> Result<Membership, ApiError> {
    let session_timeout = request.session_timeout();
    let join = JoinGroup {
        group: request.id,
        instance_id: request.instance_id,
        kind: MemberKind::WebSocket,
        client: "websocket".to_owned(),
        subscription: Wanted::Topics(BTreeSet::from([topic.summary().name.clone()])),
        assignor: request.assignor,
        session_timeout,
        rebalance_timeout: None,
        // What was never committed was never processed: a group loses nothing unasked.
        offset_reset: OffsetReset::Earliest,
        revocation: Revocation::Acknowledged,
    };
    let member = state.broker.join_group(&state.principal, join).await?;
    let at = Instant::now() + AUTO_COMMIT_EVERY;
    Ok(Membership {
        id,
        member,
        topic: Arc::clone(topic),
        revoking: None,
        told: None,
        settled: Vec::new(),
        auto_commit: request.auto_commit.then(|| AutoCommit { at, seen: Vec::new() }),
    })
}

impl Membership {
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Returns how long the group waits for the member when nothing is heard of it.
    pub(super) fn session_timeout(&self) -> Duration {
        self.member.session_timeout()
    }

    /// Returns when it wants to be looked at.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        let revoking = self.revoking.as_ref().filter(|revoking| !revoking.is_sent);
        let auto_commit = self.auto_commit.as_ref().map(|auto_commit| auto_commit.at);
        [revoking.map(|revoking| revoking.by), auto_commit].into_iter().flatten().min()
    }

    fn assigned<'v>(&self, view: &'v MemberView) -> impl Iterator<Item = &'v AssignedPartition> {
        let topic = self.topic.summary().id;
        view.assigned.iter().filter(move |assigned| assigned.topic_id == topic)
    }

    /// Waits for the group to want something else than `seen`.
    fn watch(&self, seen: Arc<MemberView>) -> Job {
        let (id, mut views) = (self.id, self.member.watch());
        Job::new(async move {
            // It fails when the member is dropped: then nobody looks at the answer.
            let _ = views.wait_for(|view| !Arc::ptr_eq(view, &seen)).await;
            Done::Regrouped { id }
        })
    }

    /// Finds where to start in partitions.
    fn start(&self, added: Vec<AssignedPartition>) -> Job {
        let (id, member) = (self.id, self.member.clone());
        Job::new(async move {
            let starts = async {
                let mut starts = Starts::new();
                for assigned in added {
                    let start = member.start_of(&assigned).await?;
                    starts.push((assigned, start));
                }
                Ok::<_, GroupError>(starts)
            };
            Done::Assigned { id, starts: starts.await.map_err(ApiError::from) }
        })
    }

    /// Returns whether the group wants partitions back that the client has not, because they were
    /// taken away before their starts were found, or has just given up.
    fn has_unknown(&self, view: &MemberView) -> bool {
        let topic = self.topic.summary().id;
        view.revoking.iter().any(|revoking| revoking.topic_id == topic)
    }

    /// Gives partitions up of which the client knows nothing any more, and looks again.
    fn give_up_unknown(&self, seen: Arc<MemberView>) -> Job {
        let (id, member, mut views) = (self.id, self.member.clone(), self.member.watch());
        Job::new(async move {
            let named = |each: &AssignedPartition| (each.topic_id, each.partition);
            let named: Vec<_> = seen.revoking.iter().map(named).collect();
            let acknowledged = member.revoked(&named).await;
            // Either way the group does not want them back for ever. It fails as `watch` does.
            let news = views.wait_for(|view| !Arc::ptr_eq(view, &seen));
            match acknowledged {
                Ok(()) => drop(news.await),
                Err(error) => {
                    tracing::debug!(%error, "a revocation was not acknowledged");
                    // Without news it is tried again: others wait for the partitions.
                    drop(tokio::time::timeout(REVOCATION_PAUSE, news).await);
                }
            }
            Done::Regrouped { id }
        })
    }

    /// Gives partitions up.
    fn give_up(&self, partitions: &[(PartitionId, Offset)]) -> Job {
        let (id, member, topic) = (self.id, self.member.clone(), self.topic.summary().id);
        let partitions: Vec<_> = partitions.iter().map(|(partition, _)| *partition).collect();
        Job::new(async move {
            let named: Vec<_> = partitions.iter().map(|partition| (topic, *partition)).collect();
            // When it fails the member is out of the group, or the group takes the partitions
            // itself in time: either way they are no longer this client's.
            if let Err(error) = member.revoked(&named).await {
                tracing::debug!(%error, "a revocation was not acknowledged");
            }
            Done::Revoked { id, partitions }
        })
    }

    /// Commits offsets; `seq` is `None` for those that the client did not ask for.
    fn commit(&self, offsets: Vec<(PartitionId, Offset)>, seq: Option<Option<u64>>) -> Job {
        let (id, member) = (self.id, self.member.clone());
        let epoch = self.told.unwrap_or(Epoch::ZERO);
        let topic = self.topic.summary().name.to_string();
        let commit = |(partition, offset): &(PartitionId, Offset)| OffsetCommit {
            topic: topic.clone(),
            partition: partition.get(),
            offset: *offset,
            metadata: String::new(),
        };
        let commits = offsets.iter().map(commit).collect();
        Job::new(async move {
            let committed = member.commit(epoch, commits).await.map_err(ApiError::from);
            Done::Committed { id, seq, committed: committed.map(|()| offsets) }
        })
    }

    /// Leaves the group, after the last automatic commit.
    pub(super) fn leave(mut self) -> Job {
        let id = self.id;
        let mut last =
            self.auto_commit.take().map(|auto_commit| auto_commit.seen).unwrap_or_default();
        // What went to others since, or was committed further on by hand, is not taken back.
        let view = self.member.state();
        let kept: BTreeSet<_> = self.assigned(&view).map(|each| each.partition).collect();
        last.retain(|(partition, offset)| {
            kept.contains(partition) && !self.is_settled(*partition, *offset)
        });
        let last = (!last.is_empty()).then(|| self.commit(last, None));
        Job::new(async move {
            if let Some(last) = last
                && let Done::Committed { committed: Err(error), .. } = last.await
            {
                tracing::debug!(error = error.detail(), "the last automatic commit failed");
            }
            if let Err(error) = self.member.leave().await {
                tracing::debug!(%error, "a member could not leave its group");
            }
            Done::Left { id }
        })
    }

    fn gives_up(&self, partition: PartitionId) -> bool {
        let revoking = self.revoking.as_ref();
        revoking.is_some_and(|revoking| revoking.partitions.iter().any(|(p, _)| *p == partition))
    }

    fn is_settled(&self, partition: PartitionId, sent: Offset) -> bool {
        self.settled.iter().any(|(settled, at)| *settled == partition && *at >= sent)
    }

    fn settle(&mut self, offsets: &[(PartitionId, Offset)]) {
        for (partition, offset) in offsets {
            match self.settled.iter_mut().find(|(settled, _)| settled == partition) {
                Some((_, at)) => *at = *offset,
                None => self.settled.push((*partition, *offset)),
            }
        }
    }
}

impl Session {
    fn membership(&mut self, id: u64) -> Option<&mut Membership> {
        self.memberships.iter_mut().find(|membership| membership.id == id)
    }

    /// Takes up what the group wants of a member.
    pub(super) fn regroup(&mut self, id: u64) {
        let Some(at) = self.memberships.iter().position(|each| each.id == id) else { return };
        let (Some(membership), Some(subscription)) = (
            self.memberships.get_mut(at),
            self.subscriptions.iter_mut().find(|each| each.id() == id),
        ) else {
            return;
        };
        let view = membership.member.state();
        if let Some(why) = view.fenced {
            let detail = format!("the member is out of its group ({why:?}): subscribe again");
            return self.end_subscription(id, &ApiError::new(Code::StaleMember, detail));
        }
        let kept: BTreeSet<_> = membership.assigned(&view).map(|each| each.partition).collect();
        let removed = subscription.remove_all_but(&kept);
        if !removed.is_empty() {
            let by = Instant::now() + REVOCATION_TIME;
            let partitions: Vec<_> = removed.iter().map(|(partition, _)| *partition).collect();
            membership.revoking = Some(Revoking { partitions: removed, by, is_sent: false });
            return self.send(replies::revoking(id, &partitions, REVOCATION_TIME));
        }
        if membership.has_unknown(&view) {
            let job = membership.give_up_unknown(view);
            return self.jobs.push(job);
        }
        let added: Vec<_> = membership
            .assigned(&view)
            .filter(|assigned| !subscription.has(assigned.partition))
            .cloned()
            .collect();
        let job = if added.is_empty() && membership.told.is_some() {
            membership.watch(view)
        } else {
            membership.start(added)
        };
        self.jobs.push(job);
    }

    /// Takes on partitions whose starts were found.
    pub(super) fn finish_assigned(&mut self, id: u64, starts: Result<Starts, ApiError>) {
        let starts = match starts {
            Ok(starts) => starts,
            Err(error) => return self.end_subscription(id, &error),
        };
        let Some(at) = self.memberships.iter().position(|each| each.id == id) else { return };
        let (Some(membership), Some(subscription)) = (
            self.memberships.get_mut(at),
            self.subscriptions.iter_mut().find(|each| each.id() == id),
        ) else {
            return;
        };
        let view = membership.member.state();
        // What was taken away meanwhile is not taken on.
        let kept: BTreeSet<_> = membership.assigned(&view).map(|each| each.partition).collect();
        let starts: Vec<_> =
            starts.into_iter().filter(|(each, _)| kept.contains(&each.partition)).collect();
        let position =
            |(each, start): &(AssignedPartition, StartOffset)| (each.partition, start.offset);
        let positions: Vec<_> = starts.iter().map(position).collect();
        subscription.add(&positions);
        membership.settle(&positions);
        membership.told = Some(view.epoch);
        self.send(replies::assigned(id, view.epoch.get(), &positions));
        for (each, start) in &starts {
            if let Some(committed) = start.reset_from
                && let Some(to) = start.offset.get().checked_sub(1).and_then(Offset::new)
                && to >= committed
            {
                let lost = Passed::Lost(GapReason::Retention);
                self.send(replies::gap(id, each.partition, (committed, to), lost));
            }
        }
        self.regroup(id);
    }

    /// Tells that partitions are given up, and goes on.
    pub(super) fn finish_revoked(&mut self, id: u64, partitions: &[PartitionId]) {
        let Some(membership) = self.membership(id) else { return };
        membership.revoking = None;
        membership.settled.retain(|(settled, _)| !partitions.contains(settled));
        self.send(replies::revoked(id, partitions));
        self.regroup(id);
    }

    /// Commits offsets for a client.
    pub(super) fn commit(&mut self, request: &Commit) -> Result<(), ApiError> {
        let Some(membership) = self.memberships.iter().find(|each| each.id == request.id) else {
            let detail = "the socket has no subscription with this id in a group";
            return Err(ApiError::new(Code::InvalidRequest, detail));
        };
        let offsets = named(&membership.topic, &request.offsets)?;
        let subscription = self.subscriptions.iter().find(|each| each.id() == request.id);
        let is_known = |partition: PartitionId| {
            subscription.is_some_and(|each| each.has(partition)) || membership.gives_up(partition)
        };
        if let Some((other, _)) = offsets.iter().find(|(partition, _)| !is_known(*partition)) {
            let detail = format!("partition {other} is not assigned to this subscription");
            return Err(ApiError::new(Code::StaleMember, detail));
        }
        let job = membership.commit(offsets, Some(request.seq));
        self.outstanding += 1;
        self.jobs.push(job);
        Ok(())
    }

    /// Tells what became of a commit.
    pub(super) fn finish_commit(
        &mut self,
        id: u64,
        seq: Option<Option<u64>>,
        committed: Result<Vec<(PartitionId, Offset)>, ApiError>,
    ) {
        if seq.is_some() {
            self.outstanding -= 1;
        }
        match (committed, seq) {
            (Ok(offsets), seq) => {
                if let Some(membership) = self.membership(id) {
                    membership.settle(&offsets);
                }
                if let Some(seq) = seq {
                    self.send(replies::committed(id, seq));
                }
            }
            (Err(error), Some(seq)) => self.refuse(About { id: Some(id), seq }, &error),
            (Err(error), None) => {
                tracing::debug!(error = error.detail(), "an automatic commit failed");
            }
        }
    }

    /// Does what is due of memberships: revocations whose time has come, automatic commits.
    pub(super) fn poll_memberships(&mut self, now: Instant) -> bool {
        let mut jobs = Vec::new();
        for membership in &mut self.memberships {
            let subscription = self.subscriptions.iter().find(|each| each.id() == membership.id);
            let told = subscription.map(|each| each.told()).unwrap_or_default();
            if let Some(job) = membership.commit_due(now, told) {
                jobs.push(job);
            }
            let Some(revoking) = membership.revoking.take() else { continue };
            let is_over = revoking.by <= now
                || revoking.partitions.iter().all(|(p, sent)| membership.is_settled(*p, *sent));
            let is_sent = revoking.is_sent || is_over;
            if is_over && !revoking.is_sent {
                jobs.push(membership.give_up(&revoking.partitions));
            }
            membership.revoking = Some(Revoking { is_sent, ..revoking });
        }
        let moved = !jobs.is_empty();
        self.jobs.extend(jobs);
        moved
    }
}

impl Membership {
    /// Commits what was sent an interval ago, when that is due.
    fn commit_due(&mut self, now: Instant, told: Vec<(PartitionId, Offset)>) -> Option<Job> {
        let auto_commit = self.auto_commit.as_mut().filter(|auto_commit| auto_commit.at <= now)?;
        auto_commit.at = now + AUTO_COMMIT_EVERY;
        let mut seen = std::mem::replace(&mut auto_commit.seen, told);
        let current: Vec<_> = auto_commit.seen.iter().map(|(partition, _)| *partition).collect();
        seen.retain(|(partition, offset)| {
            current.contains(partition) && !self.is_settled(*partition, *offset)
        });
        (!seen.is_empty()).then(|| self.commit(seen, None))
    }
}

fn named(topic: &Topic, offsets: &Offsets) -> Result<Vec<(PartitionId, Offset)>, ApiError> {
    let named = offsets.iter().map(|(number, offset)| Ok((partition_of(topic, *number)?, *offset)));
    named.collect()
}
