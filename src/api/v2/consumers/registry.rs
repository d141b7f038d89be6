//! The consumer instances of this node, and what keeps each of them.
//!
//! An instance lives where it was made. In a cluster a record in the metadata names that node and
//! the others forward to it; this registry is all of an instance that such a node needs.
//!
//! Invariants:
//! - there are no more than [`INSTANCES_MAX`] instances, and one task for each;
//! - an instance that is in use does not expire; one that is not does after its idle time;
//! - whatever ends an instance (its client, its idle time, the server's stop) commits what is to
//!   be committed unasked and leaves the group.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::State;
use crate::api::error::{ApiError, Code};
use crate::api::v2::consumers::consumer::Consumer;
use crate::api::v2::consumers::create::Settings;

/// Instances of one node.
const INSTANCES_MAX: usize = 10_000;

/// How often positions are committed unasked, as Kafka's consumers do it.
const AUTO_COMMIT_EVERY: Duration = Duration::from_secs(5);

/// How long the end of an instance waits for the coordinator.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(5);

/// All instances of this node.
#[derive(Debug)]
pub struct Consumers {
    idle_max: Duration,
    instances: Mutex<Instances>,
}

/// A consumer instance.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) group: String,
    pub(super) name: String,
    /// What it reads; held for short calls and never while a poll waits.
    pub(super) consumer: tokio::sync::Mutex<Consumer>,
    /// Counts polls, so that one that waits learns of a newer one.
    polls: watch::Sender<u64>,
    usage: Mutex<Usage>,
    /// Cancelled when the instance is out of the registry.
    gone: CancellationToken,
}

#[derive(Debug)]
struct Usage {
    calls: usize,
    last: Instant,
    idle_max: Duration,
}

/// An instance while a call works with it.
#[derive(Debug)]
pub(super) struct InUse(Arc<Instance>);

impl Deref for InUse {
    type Target = Instance;

    fn deref(&self) -> &Instance {
        &self.0
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut usage = self.0.usage.lock();
        usage.calls -= 1;
        usage.last = Instant::now();
    }
}

impl Consumers {
    /// Makes an empty registry; `idle_max` is how long an instance may be idle that does not say.
    pub fn new(idle_max: Duration) -> Self {
        Self { idle_max, instances: Mutex::new(HashMap::new()) }
    }

    /// Finds an instance.
    ///
    /// # Errors
    /// `instance_not_found`.
    pub(super) fn find(&self, group: &str, name: &str) -> Result<InUse, ApiError> {
        let key = (group.to_owned(), name.to_owned());
        let found = self.instances.lock().get(&key).map(|instance| instance.enter());
        found.ok_or_else(|| ApiError::new(Code::InstanceNotFound, "Consumer instance not found."))
    }

    /// Adds an instance, or returns the one that has its name already, as an error.
    ///
    /// # Errors
    /// The instance that is there; `overloaded` when there are too many.
    pub(super) fn insert(
        &self,
        state: &Arc<State>,
        (group, name): (&str, &str),
        settings: Settings,
    ) -> Result<InUse, Taken> {
        let mut instances = self.instances.lock();
        let key = (group.to_owned(), name.to_owned());
        if let Some(there) = instances.get(&key) {
            return Err(Taken::By(there.enter()));
        }
        if instances.len() >= INSTANCES_MAX {
            let detail = format!("this node has {INSTANCES_MAX} consumer instances already");
            return Err(Taken::Full(ApiError::new(Code::Overloaded, detail)));
        }
        let idle_max = settings.idle_max.unwrap_or(self.idle_max);
        let instance = Arc::new(Instance {
            group: group.to_owned(),
            name: name.to_owned(),
            consumer: tokio::sync::Mutex::new(Consumer::new(
                group.to_owned(),
                name.to_owned(),
                settings,
            )),
            polls: watch::Sender::new(0),
            usage: Mutex::new(Usage { calls: 0, last: Instant::now(), idle_max }),
            gone: CancellationToken::new(),
        });
        instances.insert(key, Arc::clone(&instance));
        let entered = instance.enter();
        state.tasks.spawn(keep(Arc::clone(state), instance));
        Ok(entered)
    }

    /// Takes an instance out; the task that keeps it does not touch it any more.
    pub(super) fn remove(&self, instance: &Instance) {
        take_out(&mut self.instances.lock(), instance);
    }

    /// Takes an instance out if nobody uses it and its idle time is over.
    fn remove_idle(&self, instance: &Instance) -> bool {
        // Who finds an instance enters it under this lock, so it cannot come into use meanwhile.
        let mut instances = self.instances.lock();
        let is_idle = {
            let usage = instance.usage.lock();
            usage.calls == 0 && usage.last.elapsed() >= usage.idle_max
        };
        if is_idle {
            take_out(&mut instances, instance);
        }
        is_idle
    }
}

type Instances = HashMap<(String, String), Arc<Instance>>;

fn take_out(instances: &mut Instances, instance: &Instance) {
    let key = (instance.group.clone(), instance.name.clone());
    // By now another one may have the name.
    if instances.get(&key).is_some_and(|there| std::ptr::eq(&raw const **there, instance)) {
        instances.remove(&key);
    }
    instance.gone.cancel();
}

/// Why an instance was not added.
#[derive(Debug)]
pub(super) enum Taken {
    /// Another one has its name.
    By(InUse),
    /// There are too many.
    Full(ApiError),
}

impl Instance {
    fn enter(self: &Arc<Self>) -> InUse {
        self.usage.lock().calls += 1;
        InUse(Arc::clone(self))
    }

    /// Replaces the idle time.
    pub(super) fn set_idle_max(&self, idle_max: Option<Duration>) {
        if let Some(idle_max) = idle_max {
            self.usage.lock().idle_max = idle_max;
        }
    }

    /// Notes that a poll begins, and returns what completes when a newer one does.
    pub(super) fn begin_poll(&self) -> watch::Receiver<u64> {
        self.polls.send_modify(|polls| *polls += 1);
        self.polls.subscribe()
    }

    /// Completes when the instance was deleted.
    pub(super) async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// Commits what is to be committed unasked and leaves the group, in bounded time.
    pub(super) async fn close(&self, state: &State) {
        let closing = async { self.consumer.lock().await.unsubscribe(state).await };
        if !matches!(tokio::time::timeout(CLOSE_TIME_MAX, closing).await, Ok(Ok(()))) {
            let (group, instance) = (&self.group, &self.name);
            // Without its handle the member is given up by the coordinator.
            tracing::warn!(%group, %instance, "a consumer instance did not leave in order");
        }
    }
}

/// Commits unasked, and ends the instance when its time or the server's has come.
async fn keep(state: Arc<State>, instance: Arc<Instance>) {
    let stop = state.tasks.stop_token();
    let mut commit_at = Instant::now() + AUTO_COMMIT_EVERY;
    loop {
        let idle_at = {
            let usage = instance.usage.lock();
            let since = if usage.calls == 0 { usage.last } else { Instant::now() };
            since + usage.idle_max
        };
        tokio::select! {
            biased;
            () = instance.gone.cancelled() => return,
            () = stop.cancelled() => {
                state.consumers.remove(&instance);
                return instance.close(&state).await;
            }
            () = tokio::time::sleep_until(idle_at.min(commit_at)) => {}
        }
        if state.consumers.remove_idle(&instance) {
            let (group, name) = (&instance.group, &instance.name);
            tracing::info!(%group, instance = %name, "a consumer instance was idle for too long");
            return instance.close(&state).await;
        }
        if Instant::now() >= commit_at {
            instance.consumer.lock().await.commit_pending(&state).await;
            commit_at = Instant::now() + AUTO_COMMIT_EVERY;
        }
    }
}
