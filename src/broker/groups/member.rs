//! The handle that makes its holder a member of a group.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::broker::groups::Groups;
use crate::broker::{
    AssignedPartition, Broker, GroupError, OffsetCommit, OffsetReset, Revocation, StartOffset,
    Subscription,
};
use crate::groups::{self, Departure};
use crate::types::{
    Epoch, GroupName, InstanceId, MemberId, Offset, PartitionId, Principal, TopicId,
};

/// Why a member is not one any more.
pub type Fenced = Departure;

/// What a member may do, as of one epoch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemberView {
    /// The epoch that the member has reached.
    pub epoch: Epoch,
    /// The partitions that it may read, by topic and partition.
    pub assigned: Vec<AssignedPartition>,
    /// The partitions that it must give up and commit for the last time; no longer in `assigned`.
    pub revoking: Vec<AssignedPartition>,
    /// Whether partitions are still to come that other members have not given up yet.
    pub is_waiting: bool,
    /// Why it is out of the group. Then it has no partitions, and only a new join helps.
    pub fenced: Option<Fenced>,
}

/// A membership that lasts as long as somebody holds the handle. Clones are cheap and are the same
/// member.
///
/// When the last clone is dropped without [`Member::leave`], a static member (one with an instance
/// id) is waited for until its session timeout has passed; any other leaves at once.
#[derive(Debug, Clone)]
pub struct Member {
    pub(in crate::broker) broker: Broker,
    pub(in crate::broker::groups) shared: Arc<Shared>,
}

/// What all clones of a handle share.
#[derive(Debug)]
pub(in crate::broker::groups) struct Shared {
    pub(in crate::broker::groups) group: GroupName,
    pub(in crate::broker::groups) id: MemberId,
    pub(in crate::broker::groups) instance_id: Option<InstanceId>,
    pub(in crate::broker::groups) principal: Principal,
    pub(in crate::broker::groups) session_timeout: Duration,
    pub(in crate::broker::groups) offset_reset: OffsetReset,
    pub(in crate::broker::groups) revocation: Revocation,
    /// Who is told when this is dropped.
    pub(in crate::broker::groups) groups: Arc<Groups>,
    /// Set once the join is applied; before, the member's absence means nothing.
    pub(in crate::broker::groups) joined: AtomicBool,
    /// What the view was made from. Taken before the view's own lock.
    pub(in crate::broker::groups) seen: Mutex<Option<Arc<groups::Member>>>,
    pub(in crate::broker::groups) view: watch::Sender<Arc<MemberView>>,
}

impl Shared {
    /// Shows that the member is out of the group. The first reason stands.
    pub(in crate::broker::groups) fn fence(&self, reason: Departure) {
        self.view.send_if_modified(|view| {
            let is_news = view.fenced.is_none();
            if is_news {
                let epoch = view.epoch;
                let fenced = Some(reason);
                *view = Arc::new(MemberView { epoch, fenced, ..MemberView::default() });
            }
            is_news
        });
    }
}

impl Member {
    /// Returns the member's id.
    pub fn id(&self) -> &MemberId {
        &self.shared.id
    }

    /// Returns the group's name.
    pub fn group(&self) -> &GroupName {
        &self.shared.group
    }

    /// Returns the epoch that the member has reached.
    pub fn epoch(&self) -> Epoch {
        self.state().epoch
    }

    /// Returns how long the member is waited for when it is gone: what it asked for, clamped.
    pub fn session_timeout(&self) -> Duration {
        self.shared.session_timeout
    }

    /// Returns what the member may do now.
    pub fn state(&self) -> Arc<MemberView> {
        Arc::clone(&self.shared.view.borrow())
    }

    /// Returns what follows the member's state: `borrow_and_update` it, then await `changed`.
    pub fn watch(&self) -> watch::Receiver<Arc<MemberView>> {
        self.shared.view.subscribe()
    }

    /// Waits until the state is another one than `seen`, and returns it.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn changed(&self, seen: &Arc<MemberView>) -> Arc<MemberView> {
        let mut views = self.shared.view.subscribe();
        // The sender is in `self`: it does not close.
        let changed = views.wait_for(|view| !Arc::ptr_eq(view, seen)).await;
        changed.map_or_else(|_closed| self.state(), |view| Arc::clone(&view))
    }

    /// Acknowledges that nothing more is delivered of these partitions, so that others may take
    /// them over; what was delivered may be committed before, not after. Needed only with
    /// [`Revocation::Acknowledged`](crate::broker::Revocation::Acknowledged).
    ///
    /// # Errors
    /// [`GroupError::StaleMember`] when the member is out of the group, and the coordinator's.
    pub async fn revoked(&self, partitions: &[(TopicId, PartitionId)]) -> Result<(), GroupError> {
        self.broker.revoked(&self.shared, partitions).await
    }

    /// Replaces what the member wants to read.
    ///
    /// # Errors
    /// As [`Broker::join_group`].
    pub async fn set_subscription(&self, subscription: Subscription) -> Result<(), GroupError> {
        self.broker.set_subscription(&self.shared, subscription).await
    }

    /// Commits offsets (each the next to read) of partitions that the member has or is giving up,
    /// and has had without a break since `epoch`: that of the newest [`MemberView`] that its client
    /// knows. All or nothing.
    ///
    /// # Errors
    /// [`GroupError::StaleMember`] when the member is out of the group or one of the partitions is
    /// not its own; those of [`Broker::commit_offsets`].
    pub async fn commit(&self, epoch: Epoch, offsets: Vec<OffsetCommit>) -> Result<(), GroupError> {
        self.broker.commit_of_member(&self.shared, epoch, offsets).await
    }

    /// Finds where to start to read an assigned partition: at its committed offset, or where the
    /// member's [`OffsetReset`] says when that is missing or lies outside of the log.
    ///
    /// # Errors
    /// [`GroupError::NoOffset`], and those of reading the partition's bounds.
    pub async fn start_of(&self, assigned: &AssignedPartition) -> Result<StartOffset, GroupError> {
        let topic = self.broker.topic(&self.shared.principal, assigned.topic.as_str())?;
        let (log_start, log_end) = {
            let principal = &self.shared.principal;
            self.broker.bounds(principal, &topic, assigned.partition).await?
        };
        let reset_from = match assigned.committed {
            Some(offset) if (log_start..=log_end).contains(&offset) => {
                return Ok(StartOffset { offset, reset_from: None });
            }
            out_of_range => out_of_range,
        };
        let none = || GroupError::NoOffset {
            topic: assigned.topic.clone(),
            partition: assigned.partition,
        };
        let above_end = reset_from.is_some_and(|offset: Offset| offset > log_end);
        let offset = match self.shared.offset_reset {
            OffsetReset::None => return Err(none()),
            // Records were lost: starting over at the log start would deliver everything again.
            OffsetReset::Earliest | OffsetReset::Latest if above_end => log_end,
            OffsetReset::Earliest => log_start,
            OffsetReset::Latest => log_end,
        };
        Ok(StartOffset { offset, reset_from })
    }

    /// Leaves the group, also as a static member. The handle is fenced afterwards.
    ///
    /// # Errors
    /// The coordinator's; a member that is out of the group already has left.
    pub async fn leave(&self) -> Result<(), GroupError> {
        self.broker.leave_group(&self.shared).await
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let groups = Arc::clone(&self.groups);
        groups.dropped(self);
    }
}
