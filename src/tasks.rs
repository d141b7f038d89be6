//! The one place that starts tasks, so that shutdown knows what is still running.
//!
//! A [`Tracker`] belongs to one server (many run in one test process), clones share it. Work that
//! should end with the server watches [`Tracker::stopping`]; work that must finish first (a request
//! that is being answered) is simply waited for.
//!
//! Invariants:
//! - after [`Tracker::shutdown`] has returned, no task of this tracker runs: those that missed the
//!   deadline were aborted and are counted in the answer;
//! - a task spawned while the server is stopping is tracked like any other.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;

/// Starts tasks and waits for them. Clones are cheap and share the same tasks.
#[derive(Debug, Clone, Default)]
pub struct Tracker {
    tasks: TaskTracker,
    /// Told to every task first: finish what you are doing.
    stop: CancellationToken,
    /// Handles of the tasks that run, to drop those that are left at the deadline. A token that
    /// each task watches would be looked at whenever the task is polled.
    running: Arc<Mutex<HashMap<tokio::task::Id, AbortHandle>>>,
}

/// Takes a task's handle off the list when its future has ended or was dropped.
struct Ended {
    running: Arc<Mutex<HashMap<tokio::task::Id, AbortHandle>>>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(id) = tokio::task::try_id() {
            self.running.lock().remove(&id);
        }
    }
}

/// What was still running at the deadline of a shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Aborted {
    /// Tasks that were dropped in the middle of what they did.
    pub tasks: usize,
}

impl Tracker {
    /// Makes a tracker without tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task. Its end, at the latest at the deadline of [`Tracker::shutdown`], is waited
    /// for. The output is dropped: a task reports through a channel.
    pub fn spawn<F>(&self, future: F)
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let ended = Ended { running: Arc::clone(&self.running) };
        // Held until the handle is noted, so that a task which ends at once cannot be missed.
        let mut noted = self.running.lock();
        let task = self.tasks.spawn(async move {
            let _ended = ended;
            drop(future.await);
        });
        noted.insert(task.id(), task.abort_handle());
    }

    /// Runs `work` on the pool for blocking work and returns a handle to its answer. It is waited
    /// for at shutdown without a deadline of its own: a file operation cannot be interrupted.
    pub fn spawn_blocking<F, T>(&self, work: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.tasks.spawn_blocking(work)
    }

    /// Completes when the server begins to stop. Immediately, when it already has.
    ///
    /// # Cancel safety
    /// Safe: it only watches.
    pub fn stopping(&self) -> WaitForCancellationFuture<'_> {
        self.stop.cancelled()
    }

    /// Returns whether the server has begun to stop.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Returns a token that is cancelled when the server begins to stop, for code that keeps one.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.child_token()
    }

    /// Tells every task that the server stops, without waiting. Calling it again changes nothing.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Returns how many tasks are running.
    pub fn running(&self) -> usize {
        self.tasks.len()
    }

    /// Tells every task to stop, waits until all have ended or `deadline` has passed, then aborts
    /// what is left and waits for that to be dropped.
    pub async fn shutdown(&self, deadline: Duration) -> Aborted {
        self.stop();
        self.tasks.close();
        if tokio::time::timeout(deadline, self.tasks.wait()).await.is_ok() {
            return Aborted { tasks: 0 };
        }
        let tasks = self.tasks.len();
        let handles: Vec<AbortHandle> = self.running.lock().values().cloned().collect();
        handles.iter().for_each(AbortHandle::abort);
        self.tasks.wait().await;
        Aborted { tasks }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn shutdown_waits_for_a_task_that_finishes_in_time() {
        let tracker = Tracker::new();
        let finished = Arc::new(AtomicBool::new(false));
        let (inside, seen) = (tracker.clone(), Arc::clone(&finished));
        tracker.spawn(async move {
            inside.stopping().await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            seen.store(true, Ordering::SeqCst);
        });
        assert_eq!(tracker.shutdown(Duration::from_secs(10)).await, Aborted { tasks: 0 });
        assert!(finished.load(Ordering::SeqCst));
        assert_eq!(tracker.running(), 0);
    }

    /// Says when it was dropped.
    struct Guard(Arc<AtomicBool>);

    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_misses_the_deadline_is_dropped_and_counted() {
        let tracker = Tracker::new();
        let dropped = Arc::new(AtomicBool::new(false));
        let guard = Guard(Arc::clone(&dropped));
        tracker.spawn(async move {
            let _guard = guard;
            std::future::pending::<()>().await;
        });
        assert_eq!(tracker.shutdown(Duration::from_secs(1)).await, Aborted { tasks: 1 });
        assert!(dropped.load(Ordering::SeqCst), "the task still holds what it held");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_started_while_stopping_is_waited_for() {
        let tracker = Tracker::new();
        let inside = tracker.clone();
        let finished = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&finished);
        tracker.spawn(async move {
            inside.stopping().await;
            let late = inside.clone();
            late.spawn(async move {
                tokio::time::sleep(Duration::from_millis(500)).await;
                seen.store(true, Ordering::SeqCst);
            });
        });
        assert_eq!(tracker.shutdown(Duration::from_secs(1)).await, Aborted { tasks: 0 });
        assert!(finished.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn stopping_is_told_to_those_who_ask_late() {
        let tracker = Tracker::new();
        let token = tracker.stop_token();
        assert!(!tracker.is_stopping());
        tracker.stop();
        tracker.stopping().await;
        assert!(tracker.is_stopping());
        assert!(token.is_cancelled());
    }
}
