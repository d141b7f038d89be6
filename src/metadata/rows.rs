//! What a command changed, in the words of the SQL view's tables.

use std::sync::Arc;

use crate::metadata::{HistoryEntry, Node, Shard, Topic};
use crate::types::{ClusterId, RaftIndex, TopicId};

/// One change of the view's rows. Each can be written again with the same result.
#[derive(Debug, Clone, PartialEq)]
pub enum RowChange {
    /// The cluster was founded.
    Cluster(ClusterId),
    /// A node is new or has another address.
    Node(Arc<Node>),
    /// A shard and its replicas are new.
    Shard(Arc<Shard>),
    /// A topic is new, with its configs and partitions.
    TopicAdded(Arc<Topic>),
    /// A topic's state or configs changed; its partitions did not.
    TopicChanged(Arc<Topic>),
    /// A topic is gone.
    TopicRemoved(TopicId),
    /// Something is to be remembered.
    HistoryAdded(Arc<HistoryEntry>),
    /// What happened at or before this index is forgotten.
    HistoryTrimmed(RaftIndex),
}
