//! Waiting for records of some partitions of one topic.
//!
//! A watcher keeps its places among the partitions' waiters from one wait to the next, so that a
//! reader that waits again and again registers once. It has no task and no timer.

use std::sync::Arc;
use std::task::{Context, Poll};

use crate::broker::read::placed;
use crate::broker::topics::Placed;
use crate::broker::{ReadError, Topic};
use crate::storage::log::Registration;
use crate::types::{Offset, PartitionId};

/// Waits for the records of one reader.
#[derive(Debug)]
pub struct Watcher {
    topic: Arc<Topic>,
    /// One for each partition of the first poll, in its order.
    registrations: Vec<Registration>,
}

impl Watcher {
    /// Makes a watcher that is registered nowhere yet.
    pub fn new(topic: Arc<Topic>) -> Self {
        Self { topic, registrations: Vec::new() }
    }

    /// Returns the topic.
    pub fn topic(&self) -> &Arc<Topic> {
        &self.topic
    }

    /// Returns log start and log end of a partition as this node knows them, without waiting.
    ///
    /// # Errors
    /// [`ReadError::TopicDeleted`], [`ReadError::PartitionNotFound`].
    pub fn bounds(&self, partition: PartitionId) -> Result<(Offset, Offset), ReadError> {
        let reader = placed(&self.topic, partition)?.partition.reader();
        Ok((reader.log_start(), reader.log_end()))
    }

    /// Is ready when a partition has a record at or above its position, or cannot be read; else
    /// wakes the context's task when that may have changed. Every poll names the same partitions,
    /// until [`Watcher::reset`].
    ///
    /// # Errors
    /// [`ReadError::TopicDeleted`], [`ReadError::PartitionNotFound`].
    pub fn poll_changed(
        &mut self,
        context: &Context<'_>,
        positions: impl Iterator<Item = (PartitionId, Offset)> + Clone,
    ) -> Poll<Result<(), ReadError>> {
        let topic = &self.topic;
        // Register first, then look: a record that arrives in between wakes us.
        if self.registrations.is_empty() {
            let readers = positions.clone().filter_map(|(partition, _)| topic.placed(partition));
            let register = |placed: &Placed| placed.partition.reader().register(context.waker());
            self.registrations.extend(readers.map(register));
        } else {
            self.registrations.iter().for_each(|place| place.rearm(context.waker()));
        }
        for (partition, offset) in positions {
            match placed(topic, partition) {
                Ok(placed) if placed.partition.reader().log_end() <= offset => {}
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Pending
    }

    /// Gives the places back; the next poll may name other partitions.
    pub fn reset(&mut self) {
        self.registrations = Vec::new();
    }
}
