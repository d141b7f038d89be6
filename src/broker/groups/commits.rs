//! Commits on their way to the log: those that arrive while an entry is on its way share the next.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::broker::groups::coordinator::{refused, unchanged};
use crate::broker::{Broker, GroupError};
use crate::metadata::{Accepted, Command, Commit, Rejection};
use crate::types::limits::COMMIT_OFFSETS_MAX;

/// Commits that wait at most, before further ones are refused as overload.
const WAITING_MAX: usize = 10_000;
/// Offsets that wait at most, of all commits.
const WAITING_OFFSETS_MAX: usize = 200_000;
/// Offsets of one entry, but for a commit that has more by itself.
const ENTRY_OFFSETS_MAX: usize = 10_000;

const _: () = assert!(WAITING_OFFSETS_MAX >= COMMIT_OFFSETS_MAX);

/// The commits that wait for an entry.
#[derive(Debug, Default)]
pub(in crate::broker::groups) struct Commits {
    /// Short sections without await.
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    commits: VecDeque<Pending>,
    offsets: usize,
}

#[derive(Debug)]
struct Pending {
    commit: Commit,
    done: oneshot::Sender<Result<(), GroupError>>,
}

impl Commits {
    fn push(&self, pending: Pending) -> Result<(), GroupError> {
        let mut waiting = self.waiting.lock();
        let offsets = waiting.offsets.saturating_add(pending.commit.offsets.len());
        if waiting.commits.len() >= WAITING_MAX || offsets > WAITING_OFFSETS_MAX {
            return Err(GroupError::Overloaded);
        }
        waiting.offsets = offsets;
        waiting.commits.push_back(pending);
        self.arrived.notify_one();
        Ok(())
    }

    /// Takes what one entry may hold, in the order of arrival.
    fn take(&self) -> Vec<Pending> {
        let mut waiting = self.waiting.lock();
        let (mut taken, mut offsets) = (Vec::new(), 0);
        while let Some(next) = waiting.commits.front() {
            let more = next.commit.offsets.len();
            if !taken.is_empty() && offsets + more > ENTRY_OFFSETS_MAX {
                break;
            }
            offsets += more;
            taken.extend(waiting.commits.pop_front());
        }
        waiting.offsets = waiting.offsets.saturating_sub(offsets);
        taken
    }
}

impl Broker {
    /// Commits and waits until it is replicated.
    ///
    /// # Errors
    /// [`GroupError::Overloaded`], the fence's, and those of the coordinator.
    ///
    /// # Cancel safety
    /// The commit may be done although its future was dropped.
    pub(in crate::broker::groups) async fn commit(&self, commit: Commit) -> Result<(), GroupError> {
        if self.is_storage_full() {
            return Err(GroupError::StorageFull);
        }
        let (done, outcome) = oneshot::channel();
        self.inner.groups.commits.push(Pending { commit, done })?;
        let lost = || GroupError::OutcomeUnknown("the server stops".to_owned());
        outcome.await.unwrap_or_else(|_ended| Err(lost()))
    }

    /// Carries waiting commits to the log, one entry at a time, for ever: what arrives while an
    /// entry is being synced is merged into the next.
    pub(in crate::broker::groups) async fn run_commits(&self) {
        let commits = &self.inner.groups.commits;
        loop {
            let taken = commits.take();
            if taken.is_empty() {
                commits.arrived.notified().await;
                continue;
            }
            let (batch, waiters): (Vec<Commit>, Vec<_>) = taken
                .into_iter()
                .map(|pending| (pending.commit.clone(), (pending.commit.group, pending.done)))
                .unzip();
            let metrics = &self.inner.metrics.groups;
            metrics.commits.add(u64::try_from(batch.len()).unwrap_or(u64::MAX));
            metrics.commits_per_entry.observe(u64::try_from(batch.len()).unwrap_or(u64::MAX));
            let outcomes = self.propose_commits(batch).await;
            for (at, (group, done)) in waiters.into_iter().enumerate() {
                let outcome = match &outcomes {
                    Ok(outcomes) => match outcomes.get(at) {
                        Some(Ok(())) => Ok(()),
                        Some(Err(rejection)) => Err(refused(&group, rejection.clone())),
                        None => Err(GroupError::OutcomeUnknown("no answer".to_owned())),
                    },
                    Err(error) => Err(error.clone()),
                };
                // The client may have gone; the commit is done all the same.
                let _ = done.send(outcome);
            }
        }
    }

    async fn propose_commits(
        &self,
        commits: Vec<Commit>,
    ) -> Result<Vec<Result<(), Rejection>>, GroupError> {
        let command = Command::CommitOffsets { commits };
        let changed = self.inner.metadata.change(&command).await;
        let (_, response) = changed.map_err(|error| unchanged(&error))?;
        match response {
            Ok(Accepted::Commits(outcomes)) => Ok(outcomes),
            Ok(Accepted::Done | Accepted::Topic(_) | Accepted::Group(_)) => {
                Err(GroupError::OutcomeUnknown("no outcomes were returned".to_owned()))
            }
            Err(rejection) => Err(GroupError::Unavailable(rejection.to_string())),
        }
    }
}
