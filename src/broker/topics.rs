//! Topics: create, show, list, delete.
//!
//! Creating and deleting span the metadata shard and the data shards. A topic is *Creating* until
//! every shard has its partitions, and *Deleting* (hidden, its name not free) until every shard has
//! dropped them, so that no node acknowledges records of a topic that another takes for gone. Both
//! are finished by [`Broker::run_topic_changes`] when their caller went away, and after a restart.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use uuid::Uuid;

use crate::broker::{Broker, ProduceError, ProduceRecord, ReadError, TopicError};
use crate::metadata::{self, Accepted, ChangeError, Command, Rejection, TopicState};
use crate::metrics::TopicMetrics;
use crate::record::StickyPartitioner;
use crate::shard::{ControlError, Partition, Shard};
use crate::types::{
    NodeId, Offset, PartitionId, Principal, ShardId, Timestamp, TopicConfig, TopicId, TopicName,
    TopicPartition,
};

/// How often it is looked for changes of topics that are half done.
const CHANGES_INTERVAL: Duration = Duration::from_secs(1);

/// What a client asks of a new topic. What is `None` takes the server's default.
#[derive(Debug, Clone, Default)]
pub struct CreateTopic {
    /// Number of partitions, from 1.
    pub partitions: Option<u32>,
    /// Copies of each partition.
    pub replication_factor: Option<u16>,
    /// Configs by Kafka's names, as text.
    pub configs: Vec<(String, String)>,
}

/// Whether a topic was made or was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Creation {
    /// It is new.
    Created,
    /// It exists and equals what was asked for.
    Confirmed,
}

/// A topic as every node knows it from the metadata image.
#[derive(Debug, Clone)]
pub struct TopicSummary {
    /// Its name.
    pub name: TopicName,
    /// Its identity.
    pub id: TopicId,
    /// Number of partitions.
    pub partitions: u32,
    /// Copies of each partition.
    pub replication_factor: u16,
    /// The configs that are set.
    pub config: TopicConfig,
    /// When it was created.
    pub created_at: Timestamp,
}

/// A partition as its replica on this node knows it.
#[derive(Debug, Clone)]
pub struct PartitionDetails {
    /// The partition.
    pub partition: PartitionId,
    /// The shard that replicates it.
    pub shard: ShardId,
    /// The node that leads the shard, if any does.
    pub leader: Option<NodeId>,
    /// The nodes that hold it.
    pub replicas: Vec<NodeId>,
    /// First readable offset.
    pub log_start: Offset,
    /// Offset that the next record gets.
    pub log_end: Offset,
    /// Bytes of its segments.
    pub size_bytes: u64,
}

/// A handle to one topic, good for producing and reading. It outlives the topic's deletion, after
/// which its calls fail.
#[derive(Debug)]
pub struct Topic {
    summary: TopicSummary,
    pub(in crate::broker) partitions: Vec<Placed>,
    pub(in crate::broker) sticky: StickyPartitioner,
    metrics: TopicMetrics,
    /// The image's version of the topic that this handle was made from.
    version: Arc<metadata::Topic>,
}

/// A partition with the shard that replicates it.
#[derive(Debug)]
pub(in crate::broker) struct Placed {
    pub(in crate::broker) partition: Arc<Partition>,
    pub(in crate::broker) shard: Shard,
}

impl Topic {
    /// Returns the topic's name, identity and configuration.
    pub fn summary(&self) -> &TopicSummary {
        &self.summary
    }

    /// Returns the topic's measurements.
    pub fn metrics(&self) -> &TopicMetrics {
        &self.metrics
    }

    /// Checks a partition number against the topic.
    pub fn partition(&self, number: u32) -> Option<PartitionId> {
        PartitionId::new(number).filter(|partition| partition.get() < self.summary.partitions)
    }

    pub(in crate::broker) fn placed(&self, partition: PartitionId) -> Option<&Placed> {
        self.partitions.get(partition.index())
    }
}

impl Broker {
    /// Creates a topic, or confirms that it exists as asked for: of an existing topic every value
    /// that is given must be equal. Returns when every partition has a leader and can be written.
    ///
    /// # Errors
    /// [`TopicError`]; nothing was created unless it is `OutcomeUnknown`.
    pub async fn create_topic(
        &self,
        principal: &Principal,
        name: &str,
        topic: CreateTopic,
    ) -> Result<(Creation, Arc<Topic>), TopicError> {
        let name = TopicName::parse_for_write(name)
            .map_err(|source| TopicError::InvalidName { name: name.to_owned(), source })?;
        let config = checked_config(&topic.configs)?;
        let partitions = self.checked_partitions(topic.partitions)?;
        let factor = topic.replication_factor.unwrap_or(self.default_replication_factor());
        if factor == 0 {
            return Err(TopicError::InvalidConfig("replication_factor starts at 1".to_owned()));
        }
        let _turn = self.inner.creating.take(&name).await;
        if let Some(existing) = self.image_topic(name.as_str()) {
            confirm(&existing, &topic, &config)?;
            return Ok((Creation::Confirmed, self.ready_handle(&existing).await?));
        }
        if self.inner.storage_full.load(Ordering::Acquire) {
            return Err(TopicError::StorageFull);
        }
        let command = Command::CreateTopic(metadata::CreateTopic {
            topic_id: TopicId::new(Uuid::now_v7()),
            name: name.clone(),
            partitions,
            replication_factor: factor,
            config,
            created_at: self.inner.clock.now(),
            principal: principal.clone(),
        });
        let (_, response) =
            self.inner.metadata.change(&command).await.map_err(|error| changed(&error))?;
        match response {
            Ok(Accepted::Topic(created)) => {
                Ok((Creation::Created, self.ready_handle(&created).await?))
            }
            Ok(_) => Err(TopicError::OutcomeUnknown("no topic returned".to_owned())),
            Err(rejection) => Err(refused(&name, rejection)),
        }
    }

    /// Deletes a topic. Returns when every shard has dropped its partitions and the name is free.
    ///
    /// # Errors
    /// [`TopicError::NotFound`] and those of the metadata shard.
    pub async fn delete_topic(&self, principal: &Principal, name: &str) -> Result<(), TopicError> {
        let topic = self.image_topic(name).ok_or_else(|| TopicError::NotFound(name.to_owned()))?;
        let command = Command::DeleteTopic(metadata::DeleteTopic {
            topic_id: topic.id,
            at: self.inner.clock.now(),
            principal: principal.clone(),
        });
        let (_, response) =
            self.inner.metadata.change(&command).await.map_err(|error| changed(&error))?;
        match response {
            Ok(Accepted::Topic(deleting)) => self.finish_deletion(&deleting).await,
            Ok(Accepted::Done | Accepted::Group(_) | Accepted::Commits(_)) => Ok(()),
            Err(_gone) => Err(TopicError::NotFound(name.to_owned())),
        }
    }

    /// Finds a topic for reading or showing. Never creates one.
    ///
    /// # Errors
    /// [`TopicError::NotFound`], also for names that no topic can have; `Unavailable` while it is
    /// being created.
    pub fn topic(&self, _principal: &Principal, name: &str) -> Result<Arc<Topic>, TopicError> {
        let topic = self.image_topic(name).ok_or_else(|| TopicError::NotFound(name.to_owned()))?;
        self.handle(&topic)
    }

    /// Returns whether there is a topic of this identity that clients may see.
    pub fn knows_topic(&self, id: TopicId) -> bool {
        self.inner.metadata.image().topic(id).is_some_and(|topic| topic.is_visible())
    }

    /// Finds a topic for writing; creates a missing one where `topics.auto_create` allows it. With
    /// `partition` given, a topic that would not have that partition is not created.
    ///
    /// # Errors
    /// [`ProduceError::Topic`], [`ProduceError::PartitionNotFound`].
    pub async fn topic_for_produce(
        &self,
        principal: &Principal,
        name: &str,
        partition: Option<u32>,
    ) -> Result<Arc<Topic>, ProduceError> {
        self.topic_for_records(principal, name, partition, &[]).await
    }

    /// Finds a topic like [`Broker::topic_for_produce`] for records that are known: a missing one
    /// is not created for records that it would refuse.
    ///
    /// # Errors
    /// Those of [`Broker::topic_for_produce`]; [`ProduceError::Records`] when the topic is missing
    /// and would not take them.
    pub async fn topic_for_records(
        &self,
        principal: &Principal,
        name: &str,
        partition: Option<u32>,
        records: &[ProduceRecord<'_>],
    ) -> Result<Arc<Topic>, ProduceError> {
        // Boxed: creating is rare and its future large, and every request moves its own.
        let topic = match self.topic(principal, name) {
            Ok(topic) => topic,
            Err(TopicError::NotFound(_)) => {
                Box::pin(self.auto_create(principal, name, partition, records)).await?
            }
            Err(TopicError::Unavailable(_)) => {
                Box::pin(self.create_topic(principal, name, CreateTopic::default())).await?.1
            }
            Err(error) => return Err(error.into()),
        };
        match partition {
            Some(number) if topic.partition(number).is_none() => {
                Err(no_partition(&topic.summary.name, number))
            }
            _ => Ok(topic),
        }
    }

    async fn auto_create(
        &self,
        principal: &Principal,
        name: &str,
        partition: Option<u32>,
        records: &[ProduceRecord<'_>],
    ) -> Result<Arc<Topic>, ProduceError> {
        let parsed = TopicName::parse_for_write(name)
            .map_err(|source| TopicError::InvalidName { name: name.to_owned(), source })?;
        if !self.inner.config.auto_create {
            return Err(TopicError::NotFound(name.to_owned()).into());
        }
        if let Some(number) = partition
            && number >= self.inner.config.default_partitions
        {
            return Err(no_partition(&parsed, number));
        }
        self.check_for_new_topic(records)?;
        Ok(self.create_topic(principal, name, CreateTopic::default()).await?.1)
    }

    /// Lists topics by name: at most `limit`, those that start with `prefix`, after the name
    /// `after`.
    pub fn list_topics(
        &self,
        _principal: &Principal,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Vec<TopicSummary> {
        let image = self.inner.metadata.image();
        image.topics_from(prefix, after, limit).map(|topic| summary(topic)).collect()
    }

    /// Describes every partition of a topic, in order.
    ///
    /// # Errors
    /// [`ReadError::TopicDeleted`], [`ReadError::Unavailable`].
    pub async fn describe_partitions(
        &self,
        principal: &Principal,
        topic: &Topic,
    ) -> Result<Vec<PartitionDetails>, ReadError> {
        let image = self.inner.metadata.image();
        let mut described = Vec::with_capacity(topic.partitions.len());
        for (partition, placed) in PartitionId::all(topic.summary.partitions).zip(&topic.partitions)
        {
            let shard = placed.shard.id();
            let replicas = image
                .shard(shard)
                .map(|shard| shard.replicas.iter().map(|replica| replica.node).collect::<Vec<_>>());
            let (log_start, log_end) = self.bounds(principal, topic, partition).await?;
            described.push(PartitionDetails {
                partition,
                shard,
                leader: placed.shard.status().leader,
                replicas: replicas.unwrap_or_default(),
                log_start,
                log_end,
                size_bytes: placed.partition.reader().size_bytes(),
            });
        }
        Ok(described)
    }

    /// Finishes creations and deletions whose callers have gone away (their time was over, a shard
    /// had no leader), now and then for ever.
    pub async fn run_topic_changes(self) {
        // What all topics were found finished at.
        let mut settled = None;
        loop {
            tokio::time::sleep(CHANGES_INTERVAL).await;
            let changed = self.inner.metadata.image().changed();
            if settled == Some(changed) {
                continue;
            }
            match self.finish_topic_changes().await {
                Ok(()) => settled = Some(changed),
                Err(error) => tracing::debug!(%error, "a topic's change is not finished yet"),
            }
        }
    }

    /// Finishes creations and deletions that were left half done, and those that are under way.
    ///
    /// # Errors
    /// The first that cannot be finished now; the rest is tried all the same.
    pub async fn finish_topic_changes(&self) -> Result<(), TopicError> {
        let image = self.inner.metadata.image();
        let mut first_error = Ok(());
        for topic in image.topics() {
            let finished = match topic.state {
                TopicState::Creating => self.finish_creation_in_turn(topic).await,
                TopicState::Deleting => self.finish_deletion(topic).await,
                TopicState::Active => Ok(()),
            };
            first_error = first_error.and(finished);
        }
        first_error
    }

    /// Finishes a creation unless whoever began it, and has the turn, did.
    async fn finish_creation_in_turn(&self, topic: &metadata::Topic) -> Result<(), TopicError> {
        let _turn = self.inner.creating.take(&topic.name).await;
        let image = self.inner.metadata.image();
        match image.topic(topic.id) {
            Some(topic) if topic.state == TopicState::Creating => self.finish_creation(topic).await,
            _ => Ok(()),
        }
    }

    async fn finish_creation(&self, topic: &metadata::Topic) -> Result<(), TopicError> {
        for (shard, partitions) in topic.by_shard() {
            let shard = self.shard(shard)?;
            shard
                .create_partitions(topic.changed, topic.id, topic.config.clone(), partitions)
                .await
                .map_err(controlled)?;
        }
        let ready = Command::TopicReady { topic_id: topic.id };
        let (_, response) =
            self.inner.metadata.change(&ready).await.map_err(|error| changed(&error))?;
        response.map(|_| ()).map_err(|rejection| refused(&topic.name, rejection))
    }

    async fn finish_deletion(&self, topic: &metadata::Topic) -> Result<(), TopicError> {
        for shard in topic.by_shard().into_keys() {
            let shard = self.shard(shard)?;
            shard.delete_topic(topic.changed, topic.id).await.map_err(controlled)?;
        }
        self.inner.handles.write().remove(&topic.id);
        if self.inner.metadata.image().topic(topic.id).is_some() {
            // While the name is taken: later it may be that of another topic.
            self.inner.metrics.topics.remove(&topic.name);
        }
        let finish = Command::FinishDeleteTopic { topic_id: topic.id };
        let (_, response) =
            self.inner.metadata.change(&finish).await.map_err(|error| changed(&error))?;
        match response {
            // Another call that deletes the same topic was faster.
            Ok(_) | Err(Rejection::UnknownTopic(_)) => Ok(()),
            Err(rejection) => Err(refused(&topic.name, rejection)),
        }
    }

    /// Returns a handle of a topic, after finishing its creation if that is not done.
    async fn ready_handle(&self, topic: &Arc<metadata::Topic>) -> Result<Arc<Topic>, TopicError> {
        if topic.state == TopicState::Creating {
            self.finish_creation(topic).await?;
        }
        let image = self.inner.metadata.image();
        match image.topic(topic.id) {
            Some(topic) => self.handle(topic),
            None => Err(TopicError::NotFound(topic.name.to_string())),
        }
    }

    fn image_topic(&self, name: &str) -> Option<Arc<metadata::Topic>> {
        let image = self.inner.metadata.image();
        image.topic_by_name(name).filter(|topic| topic.is_visible()).cloned()
    }

    fn handle(&self, topic: &Arc<metadata::Topic>) -> Result<Arc<Topic>, TopicError> {
        if let Some(handle) = self.inner.handles.read().get(&topic.id)
            && Arc::ptr_eq(&handle.version, topic)
        {
            return Ok(Arc::clone(handle));
        }
        let unavailable =
            || TopicError::Unavailable(format!("topic '{}' is being created", topic.name));
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for (number, shard) in topic.partitions.iter().enumerate() {
            let number = u32::try_from(number).ok().and_then(PartitionId::new);
            let partition = number.ok_or_else(unavailable)?;
            let shard = self.shard(*shard)?;
            let id = TopicPartition { topic: topic.id, partition };
            let partition = shard.partition(id).ok_or_else(unavailable)?;
            partitions.push(Placed { partition, shard: shard.clone() });
        }
        let handle = Arc::new(Topic {
            summary: summary(topic),
            partitions,
            sticky: StickyPartitioner::new(),
            metrics: self.inner.metrics.topics.topic(&topic.name),
            version: Arc::clone(topic),
        });
        let mut handles = self.inner.handles.write();
        // The topic may have been deleted since it was looked up: its handle would stay for ever.
        if self.inner.metadata.image().topic(topic.id).is_none() {
            return Err(TopicError::NotFound(topic.name.to_string()));
        }
        handles.insert(topic.id, Arc::clone(&handle));
        Ok(handle)
    }

    fn shard(&self, id: ShardId) -> Result<&Shard, TopicError> {
        self.inner
            .shards
            .get(&id)
            .ok_or_else(|| TopicError::Unavailable(format!("shard {id} has no replica here")))
    }

    fn default_replication_factor(&self) -> u16 {
        u16::try_from(self.inner.metadata.image().nodes().len().clamp(1, 3)).unwrap_or(1)
    }

    fn checked_partitions(&self, asked: Option<u32>) -> Result<u32, TopicError> {
        let partitions = asked.unwrap_or(self.inner.config.default_partitions);
        let max = self.inner.config.max_partitions;
        if (1..=max).contains(&partitions) {
            return Ok(partitions);
        }
        Err(TopicError::InvalidConfig(format!(
            "partitions is {partitions}, a topic has 1 to {max}"
        )))
    }
}

fn summary(topic: &metadata::Topic) -> TopicSummary {
    TopicSummary {
        name: topic.name.clone(),
        id: topic.id,
        partitions: u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX),
        replication_factor: topic.replication_factor,
        config: topic.config.clone(),
        created_at: topic.created_at,
    }
}

fn no_partition(topic: &TopicName, number: u32) -> ProduceError {
    ProduceError::PartitionNotFound { topic: topic.clone(), partition: number }
}

fn checked_config(configs: &[(String, String)]) -> Result<TopicConfig, TopicError> {
    let mut config = TopicConfig::default();
    for (name, value) in configs {
        config.set(name, value).map_err(|error| TopicError::InvalidConfig(error.to_string()))?;
    }
    Ok(config)
}

/// Compares an existing topic with what was asked for: only values that were given count.
fn confirm(
    existing: &metadata::Topic,
    asked: &CreateTopic,
    config: &TopicConfig,
) -> Result<(), TopicError> {
    let mut differences = Vec::new();
    let partitions = existing.partitions.len();
    if let Some(count) = asked.partitions
        && usize::try_from(count) != Ok(partitions)
    {
        differences.push(format!("partitions is {partitions}, not {count}"));
    }
    if let Some(factor) = asked.replication_factor
        && factor != existing.replication_factor
    {
        let is = existing.replication_factor;
        differences.push(format!("replication_factor is {is}, not {factor}"));
    }
    for (name, value) in config.iter() {
        let in_force = existing.config.resolved().find(|(known, ..)| *known == name);
        let in_force = in_force.map_or("", |(_, value, _)| value);
        if in_force != value {
            differences.push(format!("{name} is {in_force}, not {value}"));
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    let difference = differences.join("; ");
    Err(TopicError::Exists { name: existing.name.clone(), difference })
}

fn changed(error: &ChangeError) -> TopicError {
    match error {
        ChangeError::NotLeader => TopicError::Unavailable("the metadata has no leader".to_owned()),
        ChangeError::OutcomeUnknown | ChangeError::Encode(_) => {
            TopicError::OutcomeUnknown(error.to_string())
        }
    }
}

fn controlled(error: ControlError) -> TopicError {
    match error {
        ControlError::NotLeader => TopicError::Unavailable("a shard has no leader".to_owned()),
        ControlError::OutcomeUnknown => TopicError::OutcomeUnknown(error.to_string()),
    }
}

fn refused(name: &TopicName, rejection: Rejection) -> TopicError {
    match rejection {
        Rejection::NameCollides(other) => TopicError::NameCollides { name: name.clone(), other },
        Rejection::TopicExists(_) => {
            TopicError::Exists { name: name.clone(), difference: "it was just created".to_owned() }
        }
        Rejection::UnknownTopic(_) => TopicError::NotFound(name.to_string()),
        Rejection::PartitionCount(_) => TopicError::InvalidConfig(rejection.to_string()),
        other => TopicError::Unavailable(other.to_string()),
    }
}
