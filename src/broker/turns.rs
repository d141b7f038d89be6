//! Turns by name: whoever creates a topic waits for those that create the same, and for no others.
//!
//! Invariant: a name is listed as long as somebody has or awaits its turn, so the list is bounded
//! by the requests in flight.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

use crate::types::TopicName;

/// Who has a turn with which name.
#[derive(Debug, Default)]
pub(in crate::broker) struct Turns {
    /// Short sections without await only.
    names: Mutex<HashMap<TopicName, Arc<tokio::sync::Mutex<()>>>>,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(in crate::broker) struct Turn<'t> {
    turns: &'t Turns,
    name: TopicName,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    /// Waits for the turn with a name.
    ///
    /// # Cancel safety
    /// The turn is given up when the future is dropped.
    pub(in crate::broker) async fn take(&self, name: &TopicName) -> Turn<'_> {
        let lock = Arc::clone(self.names.lock().entry(name.clone()).or_default());
        // Made before the wait, so that whoever gives up waiting leaves the list in order too.
        let mut turn = Turn { turns: self, name: name.clone(), guard: None };
        turn.guard = Some(lock.lock_owned().await);
        turn
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        drop(self.guard.take());
        let mut names = self.turns.names.lock();
        // Nobody gets hold of a lock without the list, which is locked here.
        if names.get(&self.name).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            names.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn name(text: &str) -> TopicName {
        TopicName::parse_for_write(text).unwrap()
    }

    #[tokio::test]
    async fn a_name_is_taken_in_turns_and_hinders_no_other() {
        let (turns, a) = (Turns::default(), name("a"));
        let first = turns.take(&a).await;
        let mut second = Box::pin(turns.take(&a));
        assert!((&mut second).now_or_never().is_none(), "it has to wait");
        assert!(turns.take(&name("b")).now_or_never().is_some());
        drop(first);
        drop(second.await);
        assert!(turns.names.lock().is_empty());
    }

    #[tokio::test]
    async fn whoever_gives_up_waiting_leaves_no_trace() {
        let (turns, a) = (Turns::default(), name("a"));
        let first = turns.take(&a).await;
        let mut second = Box::pin(turns.take(&a));
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        drop(second);
        assert!(turns.names.lock().is_empty());
        assert!(turns.take(&a).now_or_never().is_some());
    }
}
