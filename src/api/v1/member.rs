//! A stream of events that is a member of a group: its membership, apart from its records.
//!
//! A task keeps the membership, so that a client that reads slowly delays no rebalance: it gives
//! partitions up, takes new ones, and commits. The stream reads what is left to it.
//!
//! Invariants:
//! - a partition is given up only after the stream cannot hand over records of it any more: both
//!   take the lock, and a read that began before is thrown away;
//! - the membership ends with the stream, whatever ends it;
//! - what is told and not taken by the client yet has a bound, beyond which the stream ends.

use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::api::State;
use crate::api::error::ApiError;
use crate::api::flushes::Flushes;
use crate::api::sse;
use crate::api::v1::delivery::{Delivery, INTERVAL, Places, SAMPLE_EVERY};
use crate::api::v1::page::{WithReason, push_gap};
use crate::api::v1::plan::Positions;
use crate::broker::{
    AssignedPartition, Gap, GapReason, GroupError, Member, MemberView, OffsetCommit, StartOffset,
};
use crate::types::{Offset, PartitionId, TopicName};

/// Bytes of events about the membership that wait for the client.
const NEWS_BYTES_MAX: usize = 256 * 1024;

/// Who commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Commit {
    /// The server, late.
    Auto,
    /// The client, by `POST /v1/groups/{group}/offsets`.
    Manual,
}

/// What the stream and the task that keeps its membership share.
#[derive(Debug)]
pub(super) struct Membership {
    state: Mutex<Inner>,
    /// Grows when the partitions change or there is news.
    pub(super) versions: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The next offset of each partition that the stream may read.
    places: Places,
    /// Events that the client has not been sent yet.
    news: Vec<u8>,
    /// Why the stream must end.
    end: Option<End>,
    delivery: Delivery,
}

/// Why the membership ended before the stream.
#[derive(Debug, Clone)]
pub(super) enum End {
    /// The member is out of the group; a new connection is a new member.
    Fenced,
    /// The client does not take what it is told.
    Slow,
    /// An error, which is told.
    Error(ApiError),
}

/// What the stream may do next.
pub(super) struct Look {
    pub(super) version: u64,
    pub(super) places: Places,
    pub(super) news: Vec<u8>,
    pub(super) end: Option<End>,
}

impl Membership {
    /// Makes the shared state of a stream without partitions.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), versions: watch::Sender::new(0) })
    }

    /// Returns what the stream may read, and takes the news.
    pub(super) fn look(&self, flushes: u64) -> Look {
        let mut state = self.state.lock();
        state.delivery.flushed(flushes);
        state.delivery.taken();
        Look {
            version: *self.versions.borrow(),
            places: state.places.clone(),
            news: std::mem::take(&mut state.news),
            end: state.end.clone(),
        }
    }

    /// Moves the places behind an event that is handed over; `false` when the partitions changed
    /// since the look at `version`: then the event must be thrown away.
    pub(super) fn hand_over(&self, version: u64, ends: &Places, flushes: u64) -> bool {
        let mut state = self.state.lock();
        if *self.versions.borrow() != version {
            return false;
        }
        for (partition, next) in ends {
            state.places.insert(*partition, *next);
        }
        let places = state.places.clone();
        state.delivery.sent(flushes, &places);
        true
    }

    /// Returns what the stream may read, by partition.
    pub(super) fn look_at_places(&self) -> Positions {
        self.state.lock().places.iter().map(|(partition, next)| (*partition, *next)).collect()
    }

    /// Changes the state and wakes the stream.
    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let mut state = self.state.lock();
        change(&mut state);
        if state.news.len() > NEWS_BYTES_MAX {
            state.end = Some(End::Slow);
        }
        // Under the lock: who looks sees the places of its version.
        self.versions.send_modify(|version| *version += 1);
    }
}

/// Data of the events about a membership.
#[derive(Serialize)]
struct News<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    generation: u32,
    partitions: Vec<PartitionId>,
    /// Where each partition is read on.
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<&'a Places>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_ms: Option<u64>,
    member_id: &'a str,
    epoch: u32,
}

/// Returns the offsets between what was committed and what can still be read.
fn lost(partition: PartitionId, start: &StartOffset) -> Option<Gap> {
    let from = start.reset_from?;
    let to = start.offset.get().checked_sub(1).and_then(Offset::new)?;
    (to >= from).then_some(Gap { partition, from, to, reason: GapReason::Retention })
}

/// What keeps one membership.
pub(super) struct Keeper {
    pub(super) state: Arc<State>,
    pub(super) member: Member,
    pub(super) topic: TopicName,
    pub(super) shared: Arc<Membership>,
    pub(super) commit: Commit,
    /// Whether it has an instance id.
    pub(super) is_static: bool,
    pub(super) flushes: Option<Flushes>,
    /// Cancelled when the stream is no more.
    pub(super) closed: CancellationToken,
}

impl Keeper {
    /// Keeps the membership until the stream ends, or until there is none to keep.
    pub(super) async fn run(self) {
        let stop = self.state.tasks.stop_token();
        let mut samples = tokio::time::interval(SAMPLE_EVERY);
        samples.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut commit_at = Instant::now() + INTERVAL;
        let mut seen = self.member.state();
        self.look(&seen, &Arc::default()).await;
        loop {
            tokio::select! {
                biased;
                () = self.closed.cancelled() => break,
                () = stop.cancelled() => break,
                view = self.member.changed(&seen) => {
                    self.look(&view, &seen).await;
                    if view.fenced.is_some() {
                        return;
                    }
                    seen = view;
                }
                now = samples.tick() => {
                    self.sample(now);
                    if now >= commit_at {
                        self.commit_due(now, None).await;
                        commit_at = now + INTERVAL;
                    }
                }
            }
        }
        self.commit_due(Instant::now(), None).await;
        if self.is_static {
            // It is waited for: a reconnect within its session moves no partition.
            return;
        }
        if let Err(error) = self.member.leave().await {
            let group = self.member.group();
            tracing::debug!(%group, %error, "a stream's member did not leave in order");
        }
    }

    fn sample(&self, now: Instant) {
        let mut state = self.shared.state.lock();
        if let Some(flushes) = &self.flushes {
            state.delivery.flushed(flushes.count());
        }
        state.delivery.sample(now);
    }

    /// Does what a new view asks for.
    async fn look(&self, view: &Arc<MemberView>, before: &Arc<MemberView>) {
        if view.fenced.is_some() {
            return self.shared.change(|state| {
                state.places.clear();
                state.end = Some(End::Fenced);
            });
        }
        let numbers = |parts: &[AssignedPartition]| -> Vec<PartitionId> {
            parts.iter().map(|part| part.partition).collect()
        };
        let (assigned, revoking) = (numbers(&view.assigned), numbers(&view.revoking));
        if !revoking.is_empty() && view.revoking != before.revoking {
            self.give_up(view, &revoking).await;
        }
        let gone = |partition: &PartitionId| !assigned.contains(partition);
        let places = self.shared.state.lock().places.clone();
        let (mut starts, mut gaps) = (Places::new(), Vec::new());
        for part in view.assigned.iter().filter(|part| !places.contains_key(&part.partition)) {
            match self.member.start_of(part).await {
                Ok(start) => {
                    gaps.extend(lost(part.partition, &start));
                    starts.insert(part.partition, start.offset);
                }
                Err(error) => return self.end(error),
            }
        }
        if starts.is_empty() && !places.keys().any(gone) && view.epoch == before.epoch {
            return;
        }
        self.shared.change(|state| {
            for partition in places.keys().filter(|partition| gone(partition)) {
                state.delivery.forget(*partition);
                state.places.remove(partition);
            }
            state.places.extend(starts);
            let start = state.places.clone();
            self.tell(&mut state.news, ("assigned", view), assigned.clone(), Some(&start));
            for gap in &gaps {
                sse::start(&mut state.news, "gap");
                push_gap(&mut state.news, gap, WithReason::Yes);
                sse::finish(&mut state.news, None);
            }
        });
    }

    /// Gives partitions up: nothing more is delivered of them, what is due is committed, and only
    /// then the coordinator learns of it.
    async fn give_up(&self, view: &Arc<MemberView>, revoking: &[PartitionId]) {
        self.shared.change(|state| {
            state.places.retain(|partition, _| !revoking.contains(partition));
            self.tell(&mut state.news, ("revoking", view), revoking.to_vec(), None);
        });
        self.commit_due(Instant::now(), Some(revoking)).await;
        let parts: Vec<_> =
            view.revoking.iter().map(|part| (part.topic_id, part.partition)).collect();
        if let Err(error) = self.member.revoked(&parts).await {
            return self.end(error);
        }
        self.shared.change(|state| {
            revoking.iter().for_each(|partition| state.delivery.forget(*partition));
            self.tell(&mut state.news, ("revoked", view), revoking.to_vec(), None);
        });
    }

    fn tell(
        &self,
        news: &mut Vec<u8>,
        (kind, view): (&'static str, &MemberView),
        partitions: Vec<PartitionId>,
        start: Option<&Places>,
    ) {
        let news_of = News {
            kind,
            generation: view.epoch.get(),
            partitions,
            start,
            // The server gives up in the client's stead, at once.
            deadline_ms: (kind == "revoking").then_some(0),
            member_id: self.member.id().as_str(),
            epoch: view.epoch.get(),
        };
        let data = serde_json::to_vec(&news_of).unwrap_or_default();
        sse::push(news, kind, &data, None);
    }

    fn end(&self, error: GroupError) {
        self.shared.change(|state| state.end = Some(End::Error(error.into())));
    }

    /// Commits what was delivered a full interval ago, of all partitions or of some.
    async fn commit_due(&self, now: Instant, only: Option<&[PartitionId]>) {
        if self.commit == Commit::Manual {
            return;
        }
        let due = self.shared.state.lock().delivery.due(now);
        let wanted = due
            .into_iter()
            .filter(|(partition, _)| only.is_none_or(|only| only.contains(partition)));
        let offsets: Vec<OffsetCommit> = wanted
            .map(|(partition, offset)| OffsetCommit {
                topic: self.topic.to_string(),
                partition: partition.get(),
                offset,
                metadata: String::new(),
            })
            .collect();
        if offsets.is_empty() {
            return;
        }
        if let Err(error) = self.member.commit(self.member.epoch(), offsets).await {
            // It costs repeats and no records; the next turn tries again.
            let group = self.member.group();
            tracing::debug!(%group, %error, "a stream's offsets were not committed");
        }
    }
}
