//! Polls: records of an instance's partitions, with a wait.
//!
//! Invariants:
//! - positions move with the last step before the answer, so a poll that is given up by its client
//!   while it waits has moved nothing;
//! - while a poll waits it holds no lock; a newer poll of the same instance ends it, empty;
//! - one record is always answered, whatever its size, or the poll is refused;
//! - what an answer holds is charged while it grows; when nothing is left, a poll is answered with
//!   what it has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::{HeaderValue, Uri, header};
use axum::response::Response;
use futures_util::future::{BoxFuture, select_all};
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::api::State;
use crate::api::error::{ApiError, Code};
use crate::api::http::{bad_parameter, query};
use crate::api::memory::{Charge, UsedUp, mark_charged};
use crate::api::v2::consumers::consumer::{Consumer, Key, Reading};
use crate::api::v2::consumers::position::{self, Place};
use crate::api::v2::consumers::records::Writer;
use crate::api::v2::consumers::registry::Instance;
use crate::api::v2::consumers::{ErrorBody, instance_of};
use crate::api::v2::{json, media};
use crate::broker::{Member, MemberView, OnDamage, ReadError, ReadRequest, Topic, Visit};
use crate::record::Record;
use crate::types::limits::{READ_BYTES_MAX, READ_WAIT_MS_MAX};
use crate::types::{Offset, PartitionId, TopicName};

/// Records of one answer, as Kafka's consumers have it.
const RECORDS_MAX: u32 = 500;

/// Bytes of one answer unless the client says otherwise.
const BYTES_DEFAULT: u64 = 4 * 1024 * 1024;

/// How long a poll waits unless the client says otherwise.
const WAIT_DEFAULT: Duration = Duration::from_secs(1);

/// Pause before another look when there are records but fewer bytes than were asked for.
const GATHER_PAUSE: Duration = Duration::from_millis(50);

/// Room that an answer starts with.
const BODY_BYTES_START: usize = 16 * 1024;

/// The header that says where the instance is after an answer.
const POSITION: &str = "eddyline-position";

/// A record.
#[derive(ToSchema)]
#[schema(as = V2Record)]
#[expect(dead_code, reason = "describes to clients what is written by hand")]
pub(super) struct RecordBody {
    /// Its topic.
    topic: String,
    /// Base64, JSON or a string, as the instance's format says; null for the null key.
    #[schema(value_type = Object, nullable)]
    key: serde_json::Value,
    /// As the key.
    #[schema(value_type = Object, nullable)]
    value: serde_json::Value,
    /// Its partition.
    partition: u32,
    /// Its offset.
    offset: i64,
    /// Milliseconds since the epoch.
    timestamp: i64,
    /// `[{"key":"name","value":"<base64>"}]`, when there are any.
    headers: Option<Vec<serde_json::Value>>,
    /// `base64` when the key is bytes that the format cannot show.
    key_encoding: Option<String>,
    /// `base64` when the value is bytes that the format cannot show.
    value_encoding: Option<String>,
}

/// Reads records.
///
/// `Eddyline-Position` names the answer; `after=` with the one of the last answer that arrived
/// reads again what was lost on the way, and with nothing (`after=`) from where the instance began.
#[utoipa::path(get, path = "/consumers/{group}/instances/{instance}/records",
    operation_id = "v2Poll", tag = "v2",
    params(
        ("group" = String, Path, description = "The group's name"),
        ("instance" = String, Path, description = "The instance's name"),
        ("timeout" = Option<i64>, Query, description = "Milliseconds to wait for records, at \
            most 300,000"),
        ("max_bytes" = Option<i64>, Query, description = "Most bytes of records; one record \
            always fits"),
        ("after" = Option<String>, Query, description = "`Eddyline-Position` of the last answer \
            that arrived")),
    responses(
        (status = 200, description = "Records; none when there was none in time",
            body = Vec<RecordBody>,
            content_type = "application/vnd.kafka.json.v2+json",
            headers(("Eddyline-Position" = String, description = "Where the instance is now; \
                absent when it has very many partitions"))),
        (status = "4XX", description = "400; 404 40401: a topic was deleted, 40403: no such \
            instance; 406, 40601: another format than the instance's; 416 41601: no offset to \
            start at, with `auto.offset.reset` none", body = ErrorBody,
            content_type = "application/vnd.kafka.v2+json"),
        (status = 503, description = "50302: not possible now; 50303: the requests that are \
            open hold `http.memory_bytes`", body = ErrorBody,
            content_type = "application/vnd.kafka.v2+json")))]
pub(super) async fn records(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (mut parts, _) = request.into_parts();
    let instance = instance_of(&state, &mut parts).await?;
    let asked = asked(&parts.uri)?;
    let format = instance.consumer.lock().await.settings.format;
    let media_type = media::poll_type(&parts.headers, format).map_err(|refused| match refused {
        media::PollRefused::NotAcceptable => {
            ApiError::new(Code::NotAcceptable, "HTTP 406 Not Acceptable")
        }
        media::PollRefused::OtherFormat => ApiError::new(
            Code::FormatMismatch,
            "The requested embedded data format does not match the deserializer for this \
             consumer instance",
        ),
    })?;
    let Polled { body, position } = poll(&state, &instance, &asked).await?;
    let mut response = json(media_type, body);
    mark_charged(&mut response);
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(position) = position.and_then(|text| HeaderValue::from_str(&text).ok()) {
        headers.insert(POSITION, position);
    }
    Ok(response)
}

/// What a poll asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    timeout: Option<Duration>,
    bytes_max: Option<u64>,
    after: Option<Vec<Place>>,
}

fn asked(uri: &Uri) -> Result<Asked, ApiError> {
    let mut asked = Asked::default();
    for (name, value) in query(uri)? {
        let number = || {
            let number: Option<i64> = value.parse().ok();
            number.ok_or_else(|| bad_parameter(&name, &value, "a number"))
        };
        match &*name {
            // Nothing and less is the default, as in Confluent's proxy.
            "timeout" => {
                let millis = u64::try_from(number()?).unwrap_or(0).min(READ_WAIT_MS_MAX);
                asked.timeout = (millis > 0).then(|| Duration::from_millis(millis));
            }
            "max_bytes" => {
                let bytes = u64::try_from(number()?).unwrap_or(0).min(READ_BYTES_MAX);
                asked.bytes_max = (bytes > 0).then_some(bytes);
            }
            "after" if value.is_empty() => asked.after = Some(Vec::new()),
            "after" => {
                let expected = "the Eddyline-Position of an answer";
                let refuse = || bad_parameter("after", &value, expected);
                asked.after = Some(position::decode(&value).ok_or_else(refuse)?);
            }
            _ => {}
        }
    }
    Ok(asked)
}

/// What a poll is answered with.
struct Polled {
    body: Bytes,
    position: Option<String>,
}

async fn poll(state: &State, instance: &Instance, asked: &Asked) -> Result<Polled, ApiError> {
    let mut newer = instance.begin_poll();
    let stop = state.tasks.stop_token();
    let (mut begun, mut deadline) = (false, Instant::now());
    loop {
        let mut consumer = instance.consumer.lock().await;
        consumer.sync(state).await?;
        if !begun {
            begun = true;
            deadline += wait_of(&consumer, asked);
            consumer.begin_poll(asked.after.as_deref());
        }
        consumer.check_placed()?;
        let bytes_max = asked.bytes_max.unwrap_or(BYTES_DEFAULT);
        let read = read(state, &mut consumer, bytes_max).await?;
        let is_enough = read.records > 0
            && (read.is_full || read.bytes >= consumer.settings.min_bytes.min(bytes_max));
        if is_enough || Instant::now() >= deadline || stop.is_cancelled() {
            return Ok(answered(&mut consumer, read));
        }
        let waits = Waits::of(&consumer);
        drop(consumer);
        if read.records > 0 {
            // There is something, only not enough: every look reads it all again.
            let pause = tokio::time::sleep_until(deadline.min(Instant::now() + GATHER_PAUSE));
            stop.run_until_cancelled(pause).await;
        }
        tokio::select! {
            biased;
            () = instance.gone() => {
                let detail = "Consumer instance not found.";
                return Err(ApiError::new(Code::InstanceNotFound, detail));
            }
            // Its client has given this one up.
            _ = newer.changed() => {
                let position = position::encode(&instance.consumer.lock().await.places());
                return Ok(Polled { body: Bytes::from_static(b"[]"), position });
            }
            () = stop.cancelled() => {}
            () = tokio::time::sleep_until(deadline) => {}
            woken = waits.next(state, read.records) => woken?,
        }
    }
}

/// How long a poll waits: as it asks; an instance that was made with a time bounds it.
fn wait_of(consumer: &Consumer, asked: &Asked) -> Duration {
    match (asked.timeout, consumer.settings.request_timeout) {
        (Some(asked), Some(most)) => asked.min(most),
        (Some(wait), None) | (None, Some(wait)) => wait,
        (None, None) => WAIT_DEFAULT,
    }
}

/// Records that were read and not answered yet.
struct Read {
    body: Vec<u8>,
    records: u32,
    bytes: u64,
    /// Whether there may be more than fits.
    is_full: bool,
    /// Whether a record was left for which there was no memory.
    is_cut: bool,
    charge: Charge,
    /// Where the partitions are after it.
    ends: Vec<(Key, Offset)>,
}

/// Moves the positions behind what is answered.
fn answered(consumer: &mut Consumer, read: Read) -> Polled {
    for (key, next) in read.ends {
        if let Some(part) = consumer.parts.get_mut(&key) {
            part.next = Some(next);
        }
    }
    consumer.turn = consumer.turn.wrapping_add(1);
    let mut body = read.body;
    body.push(b']');
    Polled { body: read.charge.hold(body), position: position::encode(&consumer.places()) }
}

/// A topic's partitions and the next offset of each.
type Positions = Vec<(PartitionId, Offset)>;

fn by_topic(consumer: &Consumer) -> Vec<(TopicName, Arc<Topic>, Positions)> {
    let mut topics: BTreeMap<&TopicName, (Arc<Topic>, Positions)> = BTreeMap::new();
    for ((name, partition), part) in &consumer.parts {
        let Some(next) = part.next else {
            continue;
        };
        let entry = topics.entry(name).or_insert_with(|| (Arc::clone(&part.topic), Vec::new()));
        entry.1.push((*partition, next));
    }
    topics.into_iter().map(|(name, (topic, at))| (name.clone(), topic, at)).collect()
}

/// Reads what is there, topics taking turns at being first.
async fn read(state: &State, consumer: &mut Consumer, bytes_max: u64) -> Result<Read, ApiError> {
    let mut topics = by_topic(consumer);
    let turn = consumer.turn.checked_rem(topics.len()).unwrap_or(0);
    topics.rotate_left(turn);
    let mut body = Vec::with_capacity(BODY_BYTES_START);
    body.push(b'[');
    let (ends, charge) = (Vec::new(), state.memory.charge_page());
    let mut read = Read { body, records: 0, bytes: 0, is_full: false, is_cut: false, charge, ends };
    for (name, topic, positions) in topics {
        // The partition after the one that was first goes first, so that none starves.
        let from = consumer.turn.checked_rem(positions.len()).unwrap_or(0);
        let (later, first) = positions.split_at(from);
        let writer = Writer::new(name.as_str(), consumer.settings.format);
        for positions in [first, later].into_iter().filter(|positions| !positions.is_empty()) {
            let positions = positions.to_vec();
            match read.append(state, &topic, (&writer, positions, bytes_max)).await {
                Ok(ends) => {
                    read.ends.extend(ends.into_iter().map(|(p, at)| ((name.clone(), p), at)));
                }
                // Its group, or its client, names others in time.
                Err(ReadError::TopicDeleted) => {
                    consumer.parts.retain(|(topic, _), _| *topic != name);
                }
                // What was read of others is answered first; the next poll meets it again.
                Err(_) if read.records > 0 => return Ok(read),
                Err(error) => return Err(error.into()),
            }
            if read.is_cut && read.records == 0 {
                return Err(UsedUp.into());
            }
            if read.is_cut
                || read.records >= RECORDS_MAX
                || (read.records > 0 && read.bytes >= bytes_max)
            {
                read.is_full = true;
                return Ok(read);
            }
        }
    }
    Ok(read)
}

impl Read {
    async fn append(
        &mut self,
        state: &State,
        topic: &Arc<Topic>,
        (writer, positions, bytes_max): (&Writer, Positions, u64),
    ) -> Result<Positions, ReadError> {
        let request = ReadRequest {
            positions,
            records_max: RECORDS_MAX - self.records,
            bytes_max: bytes_max.saturating_sub(self.bytes).max(1),
            scan_bytes_max: u64::MAX,
            on_damage: OnDamage::Fail,
        };
        let mut visit = |partition: PartitionId, record: &Record<'_>| {
            let start = self.body.len();
            if self.records > 0 {
                self.body.push(b',');
            }
            let before = self.body.len();
            writer.push(&mut self.body, partition, record);
            if self.charge.cover(self.body.capacity()).is_err() {
                self.body.truncate(start);
                self.is_cut = true;
                return Visit::Stop;
            }
            self.records += 1;
            self.bytes += (self.body.len() - before) as u64;
            Visit::Taken
        };
        let end = state.broker.read(&state.principal, topic, &request, &mut visit).await?;
        if self.is_cut {
            self.body.shrink_to_fit();
        }
        Ok(end.next)
    }
}

/// What a poll without an answer waits for.
struct Waits {
    topics: Vec<(Arc<Topic>, Positions)>,
    member: Option<(Member, Arc<MemberView>)>,
}

impl Waits {
    fn of(consumer: &Consumer) -> Self {
        let topics = by_topic(consumer).into_iter().map(|(_, topic, at)| (topic, at)).collect();
        let member = match &consumer.reading {
            Reading::Subscribed(subscribed) => {
                let member = subscribed.member.clone();
                subscribed.seen().map(|seen| (member, seen))
            }
            Reading::Assigned | Reading::Nothing => None,
        };
        Self { topics, member }
    }

    /// Completes when another look may find more than `found` records.
    async fn next(&self, state: &State, found: u32) -> Result<(), ApiError> {
        let mut waiting: Vec<BoxFuture<'_, Result<(), ReadError>>> = Vec::new();
        if found == 0 {
            for (topic, positions) in &self.topics {
                let (broker, principal) = (&state.broker, &state.principal);
                waiting.push(Box::pin(broker.wait_for_records(principal, topic, positions)));
            }
        } else {
            waiting.push(Box::pin(async { Ok(()) }));
        }
        if let Some((member, seen)) = &self.member {
            waiting.push(Box::pin(async move {
                member.changed(seen).await;
                Ok(())
            }));
        }
        if waiting.is_empty() {
            return std::future::pending().await;
        }
        match select_all(waiting).await.0 {
            // Another look takes it out.
            Ok(()) | Err(ReadError::TopicDeleted) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(query: &str) -> Result<Asked, ApiError> {
        asked(&format!("/x?{query}").parse().unwrap())
    }

    #[test]
    fn parameters_are_those_of_the_proxies_and_unknown_ones_are_ignored() {
        assert_eq!(parsed("").unwrap(), Asked::default());
        assert_eq!(parsed("timeout=-1&max_bytes=0&x=y").unwrap(), Asked::default());
        let asked = parsed("timeout=9999999&max_bytes=10&after=").unwrap();
        assert_eq!(asked.timeout, Some(Duration::from_millis(READ_WAIT_MS_MAX)));
        assert_eq!((asked.bytes_max, asked.after), (Some(10), Some(Vec::new())));
        for bad in ["timeout=x", "max_bytes=", "after=%21"] {
            assert_eq!(parsed(bad).unwrap_err().code(), Code::InvalidRequest, "{bad}");
        }
    }
}
