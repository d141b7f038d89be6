//! What a command does to the image: the metadata shard's state machine.
//!
//! Invariants: see [`crate::metadata`]. All checks of a command come before its first change.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::groups::Refusal;
use crate::metadata::image::limits::{HISTORY_LEN_MAX, TOPIC_PARTITIONS_CEILING};
use crate::metadata::placement::place;
use crate::metadata::{
    AddShards, AlterTopicConfig, Bootstrap, Command, ConsumerGroup, CreateTopic, DeleteTopic,
    HistoryEntry, HistoryEvent, Image, NewShard, Node, RegisterNode, RowChange, Shard, Topic,
    TopicState, groups,
};
use crate::types::limits::GROUPS_MAX;
use crate::types::{ClusterId, LogPosition, NodeId, ReplicaId, ShardId, TopicId, TopicName};

/// What became of a command.
pub type Response = Result<Accepted, Rejection>;

/// A command was carried out, or had been before.
#[derive(Debug, Clone, PartialEq)]
pub enum Accepted {
    /// There is nothing more to say.
    Done,
    /// The topic as it is now.
    Topic(Arc<Topic>),
    /// The consumer group as it is now.
    Group(Arc<ConsumerGroup>),
    /// What became of each commit, in order.
    Commits(Vec<Result<(), Rejection>>),
}

/// A command was refused and changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The cluster has been founded before.
    #[error("the cluster {0} exists")]
    AlreadyBootstrapped(ClusterId),
    /// The cluster has not been founded yet.
    #[error("the cluster has not been founded yet")]
    NotBootstrapped,
    /// A topic has the name, or the id.
    #[error("the topic exists with id {0}")]
    TopicExists(TopicId),
    /// The topic that has the name or the id is being deleted; try again when it is gone.
    #[error("the topic {0} is being deleted")]
    TopicDeleting(TopicId),
    /// A topic has a name that differs only by `.` and `_`.
    #[error("the name collides with '{0}'")]
    NameCollides(TopicName),
    /// No topic has the id.
    #[error("no topic has the id {0}")]
    UnknownTopic(TopicId),
    /// The deletion of the topic has not begun.
    #[error("the topic {0} is not being deleted")]
    NotDeleting(TopicId),
    /// No data shard has the replication factor.
    #[error("no shard has the replication factor {factor}")]
    NoShards {
        /// What was asked for.
        factor: u16,
    },
    /// A topic cannot have so many partitions, or none.
    #[error("{0} is not a number of partitions from 1 to {TOPIC_PARTITIONS_CEILING}")]
    PartitionCount(u32),
    /// A replica is to be on a node that is not registered.
    #[error("the node {0} is not registered")]
    UnknownNode(NodeId),
    /// The shard exists, or is named twice.
    #[error("the shard {0} exists")]
    ShardExists(ShardId),
    /// The replica id was issued before, or is named twice.
    #[error("the replica id {0} was issued before")]
    ReplicaReused(ReplicaId),
    /// The shard's replicas are not as many as its factor, each on another node.
    #[error("the replicas of shard {0} are not as many as its factor, each on another node")]
    ReplicaCount(ShardId),
    /// The first shards lack the metadata shard.
    #[error("the first shards lack the metadata shard")]
    NoMetadataShard,
    /// No consumer group has the name.
    #[error("the group does not exist")]
    UnknownGroup,
    /// The cluster cannot hold one more consumer group.
    #[error("there are {GROUPS_MAX} groups, which is the limit")]
    TooManyGroups,
    /// The consumer group refused.
    #[error(transparent)]
    Group(#[from] Refusal),
}

/// Carries out a command: changes the image and returns the answer and the changes for SQL.
///
/// A refused command changes nothing, and one that had been carried out before nothing more.
/// `at` is the command's place in the log, greater than that of every command before.
pub fn apply(image: &mut Image, at: LogPosition, command: &Command) -> (Response, Vec<RowChange>) {
    let mut change = Change { image, at, rows: Vec::new() };
    let response = match command {
        Command::Bootstrap(command) => change.bootstrap(command),
        Command::RegisterNode(command) => change.register_node(command),
        Command::AddShards(command) => change.add_shards(command),
        Command::CreateTopic(command) => change.create_topic(command),
        Command::TopicReady { topic_id } => change.topic_ready(*topic_id),
        Command::AlterTopicConfig(command) => change.alter_topic_config(command),
        Command::DeleteTopic(command) => change.delete_topic(command),
        Command::FinishDeleteTopic { topic_id } => change.finish_delete_topic(*topic_id),
        Command::ChangeGroup(command) => groups::change_group(change.image, command),
        Command::CommitOffsets { commits } => groups::commit_offsets(change.image, commits),
        Command::DeleteGroup { group } => groups::delete_group(change.image, group),
        Command::DeleteOffsets(command) => groups::delete_offsets(change.image, command),
        Command::ExpireOffsets(command) => groups::expire_offsets(change.image, command),
    };
    let rows = change.rows;
    debug_assert!(response.is_ok() || rows.is_empty(), "a refused command changes nothing");
    if !rows.is_empty() {
        image.changed = at;
    }
    (response, rows)
}

/// One command being carried out.
struct Change<'a> {
    image: &'a mut Image,
    at: LogPosition,
    rows: Vec<RowChange>,
}

impl Change<'_> {
    fn bootstrap(&mut self, command: &Bootstrap) -> Response {
        if let Some(cluster) = self.image.cluster {
            return Err(Rejection::AlreadyBootstrapped(cluster));
        }
        if !command.shards.iter().any(|shard| shard.shard == ShardId::METADATA) {
            return Err(Rejection::NoMetadataShard);
        }
        self.check_shards(&command.shards, |node| node == command.node)?;
        self.image.cluster = Some(command.cluster_id);
        self.rows.push(RowChange::Cluster(command.cluster_id));
        self.put_node(Node {
            id: command.node,
            url: command.url.clone(),
            registered_at: command.at,
        });
        self.put_shards(&command.shards);
        Ok(Accepted::Done)
    }

    fn register_node(&mut self, command: &RegisterNode) -> Response {
        self.check_bootstrapped()?;
        let known = self.image.nodes.get(&command.node);
        if known.is_some_and(|node| node.url == command.url) {
            return Ok(Accepted::Done);
        }
        let registered_at = known.map_or(command.at, |node| node.registered_at);
        self.put_node(Node { id: command.node, url: command.url.clone(), registered_at });
        Ok(Accepted::Done)
    }

    fn add_shards(&mut self, command: &AddShards) -> Response {
        self.check_bootstrapped()?;
        self.check_shards(&command.shards, |node| self.image.nodes.contains_key(&node))?;
        self.put_shards(&command.shards);
        Ok(Accepted::Done)
    }

    fn create_topic(&mut self, command: &CreateTopic) -> Response {
        self.check_bootstrapped()?;
        let in_the_way = self.image.topic(command.topic_id);
        if let Some(other) = in_the_way.or_else(|| self.image.topic_in_the_way(&command.name)) {
            return Err(match other.state {
                TopicState::Deleting => Rejection::TopicDeleting(other.id),
                TopicState::Creating | TopicState::Active
                    if other.name == command.name || other.id == command.topic_id =>
                {
                    Rejection::TopicExists(other.id)
                }
                TopicState::Creating | TopicState::Active => {
                    Rejection::NameCollides(other.name.clone())
                }
            });
        }
        if !(1..=TOPIC_PARTITIONS_CEILING).contains(&command.partitions) {
            return Err(Rejection::PartitionCount(command.partitions));
        }
        let factor = command.replication_factor;
        let partitions =
            place(self.image, command.partitions, factor).ok_or(Rejection::NoShards { factor })?;
        let topic = Arc::new(Topic {
            id: command.topic_id,
            name: command.name.clone(),
            partitions,
            replication_factor: factor,
            config: command.config.clone(),
            created_at: command.created_at,
            state: TopicState::Creating,
            changed: self.at,
        });
        self.image.put_topic(Arc::clone(&topic));
        self.rows.push(RowChange::TopicAdded(Arc::clone(&topic)));
        self.remember(HistoryEntry {
            index: self.at.index,
            at: command.created_at,
            event: HistoryEvent::TopicCreated,
            topic_id: topic.id,
            name: topic.name.clone(),
            principal: command.principal.clone(),
        });
        Ok(Accepted::Topic(topic))
    }

    fn topic_ready(&mut self, id: TopicId) -> Response {
        let topic = self.find_topic(id)?;
        match topic.state {
            TopicState::Creating => {
                Ok(self.change_topic(Topic { state: TopicState::Active, ..Topic::clone(topic) }))
            }
            TopicState::Active => Ok(Accepted::Topic(Arc::clone(topic))),
            TopicState::Deleting => Err(Rejection::TopicDeleting(id)),
        }
    }

    fn alter_topic_config(&mut self, command: &AlterTopicConfig) -> Response {
        let topic = self.find_topic(command.topic_id)?;
        if topic.state == TopicState::Deleting {
            return Err(Rejection::TopicDeleting(topic.id));
        }
        if topic.config == command.config {
            return Ok(Accepted::Topic(Arc::clone(topic)));
        }
        let config = command.config.clone();
        Ok(self.change_topic(Topic { config, ..Topic::clone(topic) }))
    }

    fn delete_topic(&mut self, command: &DeleteTopic) -> Response {
        let topic = self.find_topic(command.topic_id)?;
        if topic.state == TopicState::Deleting {
            return Ok(Accepted::Topic(Arc::clone(topic)));
        }
        let entry = HistoryEntry {
            index: self.at.index,
            at: command.at,
            event: HistoryEvent::TopicDeleted,
            topic_id: topic.id,
            name: topic.name.clone(),
            principal: command.principal.clone(),
        };
        let state = TopicState::Deleting;
        let accepted = self.change_topic(Topic { state, ..Topic::clone(topic) });
        self.remember(entry);
        Ok(accepted)
    }

    fn finish_delete_topic(&mut self, id: TopicId) -> Response {
        let topic = Arc::clone(self.find_topic(id)?);
        if topic.state != TopicState::Deleting {
            return Err(Rejection::NotDeleting(id));
        }
        self.image.remove_topic(&topic);
        self.image.remove_offsets_of(id);
        self.rows.push(RowChange::TopicRemoved(id));
        Ok(Accepted::Done)
    }

    fn check_bootstrapped(&self) -> Result<(), Rejection> {
        self.image.cluster.map(|_| ()).ok_or(Rejection::NotBootstrapped)
    }

    fn check_shards(
        &self,
        shards: &[NewShard],
        is_known: impl Fn(NodeId) -> bool,
    ) -> Result<(), Rejection> {
        let (mut ids, mut replica_ids) = (BTreeSet::new(), BTreeSet::new());
        for new in shards {
            if self.image.shards.contains_key(&new.shard) || !ids.insert(new.shard) {
                return Err(Rejection::ShardExists(new.shard));
            }
            let mut nodes = BTreeSet::new();
            for replica in &new.replicas {
                if !is_known(replica.node) {
                    return Err(Rejection::UnknownNode(replica.node));
                }
                let is_issued = replica.replica.get() < self.image.next_replica;
                if is_issued || !replica_ids.insert(replica.replica) {
                    return Err(Rejection::ReplicaReused(replica.replica));
                }
                nodes.insert(replica.node);
            }
            let factor = usize::from(new.replication_factor);
            if factor == 0 || nodes.len() != factor || new.replicas.len() != factor {
                return Err(Rejection::ReplicaCount(new.shard));
            }
        }
        Ok(())
    }

    fn find_topic(&self, id: TopicId) -> Result<&Arc<Topic>, Rejection> {
        self.image.topic(id).ok_or(Rejection::UnknownTopic(id))
    }

    fn put_node(&mut self, node: Node) {
        let node = Arc::new(node);
        self.rows.push(RowChange::Node(Arc::clone(&node)));
        self.image.nodes.insert(node.id, node);
    }

    fn put_shards(&mut self, shards: &[NewShard]) {
        for new in shards {
            let shard = Arc::new(Shard {
                id: new.shard,
                replication_factor: new.replication_factor,
                replicas: new.replicas.clone(),
            });
            self.rows.push(RowChange::Shard(Arc::clone(&shard)));
            self.image.put_shard(shard);
        }
    }

    fn change_topic(&mut self, topic: Topic) -> Accepted {
        let topic = Arc::new(Topic { changed: self.at, ..topic });
        self.image.put_topic(Arc::clone(&topic));
        self.rows.push(RowChange::TopicChanged(Arc::clone(&topic)));
        Accepted::Topic(topic)
    }

    fn remember(&mut self, entry: HistoryEntry) {
        let entry = Arc::new(entry);
        self.rows.push(RowChange::HistoryAdded(Arc::clone(&entry)));
        self.image.history.insert(entry.index, entry);
        if self.image.history.len() > HISTORY_LEN_MAX
            && let Some((index, _)) = self.image.history.pop_first()
        {
            self.rows.push(RowChange::HistoryTrimmed(index));
        }
    }
}
