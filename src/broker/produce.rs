//! Producing: check, choose partitions, join the accumulators, wait for the acknowledgement.
//!
//! This is the hot path. A request costs one look at each record to place and size it, one lock for
//! each partition it touches, and one allocation for whoever waits.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::broker::{AppendError, Broker, ProduceError, Topic, TopicError};
use crate::record::{self, NewRecord, encoded_len, partition_for_key};
use crate::shard::{self, EnqueueError, Pending, RecordGroup};
use crate::types::{Offset, PartitionId, Principal, Timestamp, TimestampType, TopicConfig};

/// A record as a client wants it written, borrowed from its request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProduceRecord<'a> {
    /// Partition, `None`: murmur2 of the key, or sticky when there is none.
    pub partition: Option<PartitionId>,
    /// Time of the event, `None`: the server's clock.
    pub timestamp: Option<Timestamp>,
    /// Key, `None` is the null key (an empty key is a key).
    pub key: Option<Cow<'a, [u8]>>,
    /// Value, `None` is a tombstone.
    pub value: Option<Cow<'a, [u8]>>,
    /// Headers in order; a name may repeat.
    pub headers: Vec<NewHeader<'a>>,
}

/// A header of a record to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewHeader<'a> {
    /// Its name.
    pub name: Cow<'a, str>,
    /// Its value, `None` is null.
    pub value: Option<Cow<'a, [u8]>>,
}

/// Why one record of a request is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordFault {
    /// The record's position in the request, from 0.
    pub index: usize,
    /// What is wrong with it.
    pub kind: RecordFaultKind,
}

/// What is wrong with a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordFaultKind {
    /// The topic has no such partition.
    #[error("the topic has no partition {0}")]
    PartitionNotFound(PartitionId),
    /// The record is larger than a batch of the topic may be.
    #[error("the record has {bytes} bytes, more than {config} ({limit})")]
    TooLarge {
        /// Its size, alone in a batch.
        bytes: usize,
        /// The limit.
        limit: u32,
        /// The topic's config that sets the limit.
        config: &'static str,
    },
    /// The timestamp is further from the server's clock than the topic allows.
    #[error("timestamp {0} is outside of the range that the topic accepts")]
    Timestamp(Timestamp),
}

/// Where one record was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledged {
    /// Its partition.
    pub partition: PartitionId,
    /// Its offset.
    pub offset: Offset,
    /// Its timestamp, as readers will see it.
    pub timestamp: Timestamp,
}

/// A request whose records are queued: a future of their outcomes. Dropping it forgets the request;
/// the records are written all the same.
#[derive(Debug)]
pub struct Appending {
    queued: Option<Queued>,
}

/// The outcome of every record of a request, in the request's order, once all are known.
#[derive(Debug)]
pub struct Outcomes {
    queued: Option<Queued>,
}

#[derive(Debug)]
struct Queued {
    pending: Arc<Pending>,
    places: Places,
}

/// Where each record of the request went; one record needs no list.
#[derive(Debug)]
enum Places {
    One(Place),
    Many(Box<[Place]>),
}

#[derive(Debug, Clone, Copy, Default)]
struct Place {
    partition: PartitionId,
    /// Which of the request's groups the record is in.
    group: u32,
    /// Its position in the group.
    delta: u32,
    timestamp: Timestamp,
}

impl Outcomes {
    /// Returns each record's outcome, in the request's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Result<Acknowledged, AppendError>> + '_ {
        let places: &[Place] = match self.queued.as_ref().map(|queued| &queued.places) {
            None => &[],
            Some(Places::One(place)) => std::slice::from_ref(place),
            Some(Places::Many(places)) => places,
        };
        places.iter().map(|place| self.outcome(place))
    }

    fn outcome(&self, place: &Place) -> Result<Acknowledged, AppendError> {
        let queued = self.queued.as_ref().ok_or(AppendError::OutcomeUnknown)?;
        let (base, append_time) =
            queued.pending.outcome(place.group).map_err(|error| match error {
                shard::AppendError::Deleted => AppendError::Deleted,
                shard::AppendError::NotLeader => AppendError::Unavailable,
                shard::AppendError::OutcomeUnknown => AppendError::OutcomeUnknown,
            })?;
        Ok(Acknowledged {
            partition: place.partition,
            offset: base.saturating_add(u64::from(place.delta)),
            timestamp: append_time.unwrap_or(place.timestamp),
        })
    }
}

impl Future for Appending {
    type Output = Outcomes;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcomes> {
        if let Some(queued) = &self.queued
            && queued.pending.poll_done(context).is_pending()
        {
            return Poll::Pending;
        }
        Poll::Ready(Outcomes { queued: self.queued.take() })
    }
}

/// Records of one request that share a batch: positions `start..end` of the placing order.
struct Span {
    partition: PartitionId,
    start: usize,
    end: usize,
    bytes: usize,
}

impl Broker {
    /// Checks all records and queues them for writing; all or none are queued. Synchronous: the
    /// records are encoded before this returns, so they may borrow from the request's body.
    ///
    /// # Errors
    /// [`ProduceError`]; nothing was queued.
    pub fn produce(
        &self,
        _principal: &Principal,
        topic: &Arc<Topic>,
        records: &[ProduceRecord<'_>],
    ) -> Result<Appending, ProduceError> {
        let now = self.inner.clock.now();
        let summary = topic.summary();
        let sizes = check(&summary.config, summary.partitions, records, now)?;
        let bytes = sizes.total();
        let queued = match records {
            [] => return Ok(Appending { queued: None }),
            [record] => self.queue_one(topic, record, bytes, now)?,
            _ => self.queue_many(topic, records, &sizes, now)?,
        };
        topic.metrics().records_in.add(records.len() as u64);
        topic.metrics().bytes_in.add(bytes as u64);
        Ok(Appending { queued: Some(queued) })
    }

    /// Checks records like [`Broker::produce`] against a topic that does not exist yet and would be
    /// created with the defaults for them.
    ///
    /// # Errors
    /// [`ProduceError::Records`] with every fault.
    pub(in crate::broker) fn check_for_new_topic(
        &self,
        records: &[ProduceRecord<'_>],
    ) -> Result<(), ProduceError> {
        let partitions = self.inner.config.default_partitions;
        check(&TopicConfig::default(), partitions, records, self.inner.clock.now()).map(|_| ())
    }

    /// Waits until the topic's queues have room again, for a stream that should slow its sender
    /// down instead of refusing records after [`ProduceError::Overloaded`].
    pub async fn wait_for_room(&self, topic: &Arc<Topic>) {
        let mut waited = std::collections::BTreeSet::new();
        for placed in &topic.partitions {
            if waited.insert(placed.shard.id()) {
                placed.shard.wait_for_room().await;
            }
        }
    }

    fn queue_one(
        &self,
        topic: &Topic,
        record: &ProduceRecord<'_>,
        bytes: usize,
        now: Timestamp,
    ) -> Result<Queued, ProduceError> {
        let partition = match placed_by_client(topic, record) {
            Some(partition) => partition,
            None => self.sticky(topic, bytes),
        };
        let placed = topic.placed(partition).ok_or_else(|| missing(topic, partition))?;
        placed.partition.check_open().map_err(|error| refused(topic, error))?;
        let pending = Pending::new(1);
        let headers = headers(record);
        let timestamp = record.timestamp.unwrap_or(now);
        let record = new_record(record, timestamp, &headers);
        let records = std::iter::once(record);
        placed.partition.enqueue(RecordGroup { records, bytes, pending: &pending, group: 0 });
        let places = Places::One(Place { partition, group: 0, delta: 0, timestamp });
        Ok(Queued { pending, places })
    }

    fn queue_many(
        &self,
        topic: &Topic,
        records: &[ProduceRecord<'_>],
        sizes: &Sizes,
        now: Timestamp,
    ) -> Result<Queued, ProduceError> {
        let mut sticky = None;
        let partitions: Vec<PartitionId> = records
            .iter()
            .map(|record| match placed_by_client(topic, record) {
                Some(partition) => partition,
                None => *sticky.get_or_insert_with(|| self.sticky(topic, sizes.total())),
            })
            .collect();
        let order = placing_order(&partitions, topic.partitions.len());
        let (batch_max, _) = topic.summary().config.batch_limit();
        let batch_max = usize::try_from(batch_max).unwrap_or(usize::MAX);
        let batch_max = batch_max.saturating_sub(record::HEADER_BYTES);
        let spans = spans(&partitions, &order, sizes, batch_max);
        for span in &spans {
            let placed = topic.placed(span.partition);
            let placed = placed.ok_or_else(|| missing(topic, span.partition))?;
            placed.partition.check_open().map_err(|error| refused(topic, error))?;
        }
        let pending = Pending::new(u32::try_from(spans.len()).unwrap_or(u32::MAX));
        let mut places = vec![Place::default(); records.len()];
        for (group, span) in (0..).zip(&spans) {
            let members = order.get(span.start..span.end).unwrap_or_default();
            for (delta, index) in (0..).zip(members) {
                if let (Some(place), Some(record)) = (places.get_mut(*index), records.get(*index)) {
                    let timestamp = record.timestamp.unwrap_or(now);
                    *place = Place { partition: span.partition, group, delta, timestamp };
                }
            }
            enqueue(topic, span, members, (records, now), (&pending, group));
        }
        Ok(Queued { pending, places: Places::Many(places.into_boxed_slice()) })
    }

    /// Chooses the partition of null-key records; all of a request go to the same.
    fn sticky(&self, topic: &Topic, bytes: usize) -> PartitionId {
        let leads = |partition: PartitionId| {
            topic.placed(partition).is_some_and(|placed| placed.shard.status().leads)
        };
        let mut random = self.inner.random.lock();
        topic.sticky.choose(topic.summary().partitions, bytes, leads, &mut *random)
    }
}

/// Encodes a span's records into its partition's open batch.
fn enqueue(
    topic: &Topic,
    span: &Span,
    members: &[usize],
    (records, now): (&[ProduceRecord<'_>], Timestamp),
    (pending, group): (&Arc<Pending>, u32),
) {
    let Some(placed) = topic.placed(span.partition) else { return };
    let members = || members.iter().filter_map(|index| records.get(*index));
    let timestamp = |record: &ProduceRecord<'_>| record.timestamp.unwrap_or(now);
    if members().all(|record| record.headers.is_empty()) {
        let records = members().map(|record| new_record(record, timestamp(record), &[]));
        placed.partition.enqueue(RecordGroup { records, bytes: span.bytes, pending, group });
        return;
    }
    let lists: Vec<Vec<record::NewHeader<'_>>> = members().map(headers).collect();
    let records = members()
        .zip(&lists)
        .map(|(record, headers)| new_record(record, timestamp(record), headers));
    placed.partition.enqueue(RecordGroup { records, bytes: span.bytes, pending, group });
}

fn new_record<'r>(
    record: &'r ProduceRecord<'_>,
    timestamp: Timestamp,
    headers: &'r [record::NewHeader<'r>],
) -> NewRecord<'r> {
    NewRecord { timestamp, key: record.key.as_deref(), value: record.value.as_deref(), headers }
}

fn headers<'r>(record: &'r ProduceRecord<'_>) -> Vec<record::NewHeader<'r>> {
    let headers = record.headers.iter();
    headers
        .map(|header| record::NewHeader { name: &header.name, value: header.value.as_deref() })
        .collect()
}

/// Returns the partition that the client chose, by number or by key.
fn placed_by_client(topic: &Topic, record: &ProduceRecord<'_>) -> Option<PartitionId> {
    let by_key = |key: &Cow<'_, [u8]>| partition_for_key(key, topic.summary().partitions);
    record.partition.or_else(|| record.key.as_ref().map(by_key))
}

/// Sorts the records' positions by partition, keeping the request's order within each.
fn placing_order(partitions: &[PartitionId], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..partitions.len()).collect();
    if count <= partitions.len().saturating_mul(4) {
        // Counting sort: one pass to count, one to place.
        let mut next = vec![0_usize; count + 1];
        for partition in partitions {
            if let Some(slot) = next.get_mut(partition.index() + 1) {
                *slot += 1;
            }
        }
        let mut sum = 0;
        for slot in &mut next {
            sum += *slot;
            *slot = sum;
        }
        for (index, partition) in partitions.iter().enumerate() {
            if let Some(slot) = next.get_mut(partition.index()) {
                if let Some(place) = order.get_mut(*slot) {
                    *place = index;
                }
                *slot += 1;
            }
        }
    } else {
        order.sort_by_key(|index| partitions.get(*index).copied());
    }
    order
}

/// Cuts the placing order into spans of one partition that fit a batch each.
fn spans(
    partitions: &[PartitionId],
    order: &[usize],
    sizes: &Sizes,
    bytes_max: usize,
) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for (at, index) in order.iter().enumerate() {
        let Some(partition) = partitions.get(*index).copied() else { continue };
        let bytes = sizes.of(*index);
        match spans.last_mut() {
            Some(span)
                if span.partition == partition && span.bytes.saturating_add(bytes) <= bytes_max =>
            {
                span.end = at + 1;
                span.bytes += bytes;
            }
            _ => spans.push(Span { partition, start: at, end: at + 1, bytes }),
        }
    }
    spans
}

/// Encoded sizes of a request's records; one record needs no list.
enum Sizes {
    One(usize),
    Many(Vec<usize>),
}

impl Sizes {
    fn of(&self, index: usize) -> usize {
        match self {
            Self::One(bytes) => *bytes,
            Self::Many(sizes) => sizes.get(index).copied().unwrap_or(0),
        }
    }

    fn total(&self) -> usize {
        match self {
            Self::One(bytes) => *bytes,
            Self::Many(sizes) => sizes.iter().sum(),
        }
    }
}

/// Makes every check that can refuse a single record, and returns the records' encoded sizes.
fn check(
    config: &TopicConfig,
    partitions: u32,
    records: &[ProduceRecord<'_>],
    now: Timestamp,
) -> Result<Sizes, ProduceError> {
    let (limit, limit_name) = config.batch_limit();
    let size_max = usize::try_from(limit).unwrap_or(usize::MAX);
    let stamped = config.timestamp_type() == TimestampType::LogAppendTime;
    let oldest = now.as_millis().saturating_sub(config.timestamp_before_max_ms());
    let newest = now.as_millis().saturating_add(config.timestamp_after_max_ms());
    let mut faults = Vec::new();
    let mut one = |index: usize, record: &ProduceRecord<'_>| {
        if let Some(partition) = record.partition
            && partition.get() >= partitions
        {
            let kind = RecordFaultKind::PartitionNotFound(partition);
            faults.push(RecordFault { index, kind });
        }
        let outside = |time: Timestamp| !(oldest..=newest).contains(&time.as_millis());
        if let Some(time) = record.timestamp.filter(|time| !stamped && outside(*time)) {
            faults.push(RecordFault { index, kind: RecordFaultKind::Timestamp(time) });
        }
        let headers = headers(record);
        let size = encoded_len(&new_record(record, now, &headers));
        let bytes = size.saturating_add(record::HEADER_BYTES);
        if bytes > size_max {
            let kind = RecordFaultKind::TooLarge { bytes, limit, config: limit_name };
            faults.push(RecordFault { index, kind });
        }
        size
    };
    let sizes = match records {
        [record] => Sizes::One(one(0, record)),
        _ => Sizes::Many(
            records.iter().enumerate().map(|(index, record)| one(index, record)).collect(),
        ),
    };
    if faults.is_empty() { Ok(sizes) } else { Err(ProduceError::Records(faults)) }
}

fn missing(topic: &Topic, partition: PartitionId) -> ProduceError {
    let topic = topic.summary().name.clone();
    ProduceError::PartitionNotFound { topic, partition: partition.get() }
}

fn refused(topic: &Topic, error: EnqueueError) -> ProduceError {
    match error {
        EnqueueError::Overloaded => ProduceError::Overloaded,
        EnqueueError::StorageFull => ProduceError::StorageFull,
        EnqueueError::NotLeader => ProduceError::Unavailable(error.to_string()),
        EnqueueError::Deleted => TopicError::NotFound(topic.summary().name.to_string()).into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn partition(number: u32) -> PartitionId {
        PartitionId::new(number).unwrap()
    }

    proptest! {
        #[test]
        fn placing_keeps_the_requests_order_within_each_partition(
            numbers in proptest::collection::vec(0u32..50, 0..200), dense in any::<bool>(),
        ) {
            let partitions: Vec<_> = numbers.iter().map(|n| partition(*n)).collect();
            let order = placing_order(&partitions, if dense { 50 } else { 100_000 });
            let mut expected: Vec<usize> = (0..numbers.len()).collect();
            expected.sort_by_key(|index| (numbers[*index], *index));
            prop_assert_eq!(order, expected);
        }

        #[test]
        fn spans_hold_every_record_once_and_none_is_larger_than_a_batch(
            records in proptest::collection::vec((0u32..5, 1usize..100), 1..100),
        ) {
            let partitions: Vec<_> = records.iter().map(|(n, _)| partition(*n)).collect();
            let sizes = Sizes::Many(records.iter().map(|(_, bytes)| *bytes).collect());
            let order = placing_order(&partitions, 5);
            let spans = spans(&partitions, &order, &sizes, 250);
            prop_assert!(spans.iter().all(|span| span.bytes <= 250));
            let mut at = 0;
            for span in &spans {
                prop_assert_eq!(span.start, at);
                let members = &order[span.start..span.end];
                prop_assert!(members.iter().all(|index| partitions[*index] == span.partition));
                let bytes: usize = members.iter().map(|index| sizes.of(*index)).sum();
                prop_assert_eq!(bytes, span.bytes);
                at = span.end;
            }
            prop_assert_eq!(at, records.len());
        }
    }
}
