//! What a session waits for: reads, starts of subscriptions, writes.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::Instant;
use tungstenite::Utf8Bytes;

use crate::api::State;
use crate::api::error::{ApiError, Code};
use crate::api::ws::cache::{Cell, Encoded};
use crate::api::ws::encode::push_record;
use crate::api::ws::filter::Filter;
use crate::api::ws::membership::{Membership, Starts};
use crate::api::ws::replies::{self, RECORDS_END};
use crate::api::ws::requests::{Offsets, Subscribe};
use crate::api::ws::subscription::{FRAME_RECORDS_MAX, Subscription, Terms, Want};
use crate::api::ws::{encode, membership, start};
use crate::broker::{OnDamage, ReadRequest, Topic, Visit};
use crate::record::Record;
use crate::types::{Offset, PartitionId};

/// Records that one filtered read looks at, matching or not.
const SCAN_RECORDS_MAX: u64 = 50_000;

/// Bytes of records that one filtered read looks at.
const SCAN_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Bytes of records that one frame is made of at most, however few of them it shows.
const FRAME_RECORD_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Room that a frame starts with.
const FRAME_BYTES_START: usize = 16 * 1024;

/// What a job has brought about.
pub(super) enum Done {
    /// A frame was read.
    Read { subscription: u64, number: u64, want: Want, found: Result<Arc<Encoded>, ApiError> },
    /// A subscription can begin, with the frame that says so.
    Subscribed { id: u64, made: Result<Made, ApiError> },
    /// Positions to go on at were found.
    Sought { id: u64, found: Result<Vec<(PartitionId, Offset)>, ApiError> },
    /// The topic that a produce names is there, or cannot be.
    TopicReady { text: Utf8Bytes, found: Result<Arc<Topic>, ApiError> },
    /// A produce was answered.
    Produced { frame: Vec<u8> },
    /// A group wants something else of its member.
    Regrouped { id: u64 },
    /// It is known where to start in partitions that a member was assigned.
    Assigned { id: u64, starts: Result<Starts, ApiError> },
    /// A member has given partitions up.
    Revoked { id: u64, partitions: Vec<PartitionId> },
    /// Offsets were committed, or not; `seq` is `None` for those that no client asked for.
    Committed {
        id: u64,
        seq: Option<Option<u64>>,
        committed: Result<Vec<(PartitionId, Offset)>, ApiError>,
    },
    /// A member has left its group.
    Left { id: u64 },
}

/// A subscription that can begin.
pub(super) struct Made {
    pub(super) subscription: Box<Subscription>,
    pub(super) membership: Option<Membership>,
    /// The frame that says so.
    pub(super) frame: Vec<u8>,
}

/// Something that takes time.
pub(super) struct Job(Pin<Box<dyn Future<Output = Done> + Send>>);

impl Future for Job {
    type Output = Done;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Done> {
        self.0.as_mut().poll(context)
    }
}

impl Job {
    /// Makes a job of a future.
    pub(super) fn new(future: impl Future<Output = Done> + Send + 'static) -> Self {
        Self(Box::pin(future))
    }

    /// Reads a frame for all who want it.
    pub(super) fn shared_read(
        state: &Arc<State>,
        subscription: &mut Subscription,
        want: Want,
        cell: Cell,
    ) -> Self {
        let (id, number) = (subscription.id(), subscription.begin_read());
        let (state, topic) = (Arc::clone(state), Arc::clone(subscription.topic()));
        Self::new(async move {
            let encode = encode(&state, &topic, want, None);
            let found = state.ws.cache.fill(&want.key, &cell, encode).await;
            Done::Read { subscription: id, number, want, found }
        })
    }

    /// Reads a frame for one subscription.
    pub(super) fn own_read(
        state: &Arc<State>,
        subscription: &mut Subscription,
        want: Want,
    ) -> Self {
        let (id, number) = (subscription.id(), subscription.begin_read());
        let (state, topic) = (Arc::clone(state), Arc::clone(subscription.topic()));
        let filter = subscription.filter().cloned();
        Self::new(async move {
            let left = want.log_end.records_since(want.key.from);
            // Long scans take turns with those of other sockets; the queue is in order.
            let is_long = filter.is_some() && left > u64::from(FRAME_RECORDS_MAX);
            let turn = if is_long { Some(state.ws.scans.acquire().await) } else { None };
            let found = encode(&state, &topic, want, filter.as_deref()).await;
            drop(turn);
            Done::Read { subscription: id, number, want, found: found.map(Arc::new) }
        })
    }

    /// Finds where a subscription starts.
    pub(super) fn subscribe(
        state: &Arc<State>,
        request: Box<Subscribe>,
        frame_bytes_max: usize,
    ) -> Self {
        let state = Arc::clone(state);
        Self::new(async move {
            let id = request.id;
            let made = subscribe(&state, *request, frame_bytes_max).await;
            Done::Subscribed { id, made }
        })
    }

    /// Finds where a subscription goes on.
    pub(super) fn seek(state: &Arc<State>, subscription: &Subscription, offsets: Offsets) -> Self {
        let (state, topic) = (Arc::clone(state), Arc::clone(subscription.topic()));
        let id = subscription.id();
        let named = offsets.into_iter().map(|(number, offset)| {
            let partition = start::partition_of(&topic, number)?;
            if subscription.has(partition) {
                return Ok((partition, offset));
            }
            let detail = format!("the subscription has no partition {number}");
            Err(ApiError::new(Code::PartitionNotFound, detail))
        });
        let named: Result<Vec<_>, _> = named.collect();
        Self::new(async move {
            let found = async {
                let mut positions = Vec::new();
                for (partition, offset) in named? {
                    let bounds = state.broker.bounds(&state.principal, &topic, partition).await?;
                    positions.push((partition, offset.clamp(bounds.0, bounds.1)));
                }
                Ok(positions)
            };
            Done::Sought { id, found: found.await }
        })
    }
}

async fn subscribe(
    state: &State,
    request: Subscribe,
    frame_bytes_max: usize,
) -> Result<Made, ApiError> {
    let topic = state.broker.topic(&state.principal, &request.topic)?;
    let filter = request.filter.map(Filter::new).transpose()?.flatten();
    let (started, membership) = match request.group {
        Some(_) if request.partitions.is_some() || request.from.is_some() => {
            let detail = "the group decides: 'partitions' and 'from' are not possible with it";
            return Err(ApiError::at(Code::InvalidBody, "/group", detail));
        }
        Some(group) => {
            let membership = membership::join(state, &topic, (request.id, group)).await?;
            let session_timeout = Some(membership.session_timeout());
            let started = replies::Started { session_timeout, ..replies::Started::default() };
            (started, Some(membership))
        }
        None => {
            let partitions = start::partitions_of(&topic, request.partitions)?;
            (start::find(state, &topic, &partitions, request.from).await?, None)
        }
    };
    let frame = replies::subscribed(request.id, &started);
    let terms = Terms {
        id: request.id,
        topic,
        start: started.start,
        style: encode::Style {
            format: request.format.format(),
            value_bytes_max: request.max_value_bytes.unwrap_or(usize::MAX),
        },
        filter: filter.map(Arc::new),
        credit: request.credit,
        on_lag: request.on_lag,
        linger: state.config.ws.linger,
        frame_bytes_max,
    };
    Ok(Made { subscription: Box::new(Subscription::new(terms)), membership, frame })
}

/// Reads and encodes the records of one frame.
async fn encode(
    state: &State,
    topic: &Arc<Topic>,
    want: Want,
    filter: Option<&Filter>,
) -> Result<Encoded, ApiError> {
    let key = want.key;
    let mut body = Vec::with_capacity(FRAME_BYTES_START);
    body.push(b'[');
    let (mut records, mut record_bytes, mut scanned) = (0_u64, 0_u64, 0_u64);
    let mut visit = |_: PartitionId, record: &Record<'_>| {
        if record.offset >= key.until || (filter.is_some() && scanned >= SCAN_RECORDS_MAX) {
            return Visit::Stop;
        }
        if filter.is_some_and(|filter| !filter.matches(record)) {
            scanned += 1;
            return Visit::Skipped;
        }
        let before = body.len();
        if records > 0 {
            body.push(b',');
        }
        push_record(&mut body, record, key.style);
        if records > 0 && body.len() + RECORDS_END.len() > key.bytes_max {
            body.truncate(before);
            return Visit::Stop;
        }
        scanned += 1;
        records += 1;
        record_bytes +=
            (record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len)) as u64;
        Visit::Taken
    };
    let request = ReadRequest {
        positions: vec![(key.partition, key.from)],
        records_max: key.records_max,
        bytes_max: FRAME_RECORD_BYTES_MAX,
        scan_bytes_max: SCAN_BYTES_MAX,
        on_damage: OnDamage::Skip,
    };
    let read = state.broker.read_shared(&state.principal, topic, &request, &mut visit);
    let end = read.await?;
    body.extend_from_slice(RECORDS_END);
    let next = end.next.first().map_or(key.from, |(_, next)| *next);
    let log_end = end.end_offsets.first().map_or(next, |(_, log_end)| *log_end);
    Ok(Encoded {
        body: body.into_boxed_slice().into(),
        records,
        record_bytes,
        next,
        gaps: end.gaps,
        scanned,
        full: next < log_end || next >= key.until,
        made: Instant::now(),
    })
}
