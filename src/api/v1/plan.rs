//! What a read asks for: its parameters, checked, and the records that they choose.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use axum::http::request::Parts;

use crate::api::State;
use crate::api::cursor::Cursor;
use crate::api::error::{ApiError, Code};
use crate::api::http::{bad_parameter, query, repeated_parameter, unknown_parameter};
use crate::api::json::records_out::Format;
use crate::api::v1::member::Commit;
use crate::broker::{Assignor, OnDamage, ReadError, Search, Start, Topic};
use crate::record::Record;
use crate::types::limits::{READ_BYTES_MAX, READ_RECORDS_MAX, READ_WAIT_MS_MAX};
use crate::types::{Offset, PartitionId, Timestamp};

/// Records of one page unless the client says otherwise.
const LIMIT_DEFAULT: u32 = 500;

/// Bytes of one page unless the client says otherwise.
const BYTES_DEFAULT: u64 = 4 * 1024 * 1024;

/// Filters on headers at most: each is looked at for every record that is scanned.
const HEADER_FILTERS_MAX: usize = 16;

/// Next offset of each partition that is read, ascending.
pub(super) type Positions = Vec<(PartitionId, Offset)>;

/// The query of a read, for the document.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the parameters for the document")]
pub(super) struct ReadParameters {
    /// `earliest` (the default), `latest` (events' default), a cursor, or an RFC 3339 time. An
    /// address has at most 65,534 bytes: a longer cursor, of a topic with thousands of partitions,
    /// goes into the header `Last-Event-ID`.
    from: Option<String>,
    /// Partitions to read, `0,2,5`; all unless given. With `from`.
    #[param(example = "0,2,5")]
    partitions: Option<String>,
    /// One partition, with `offset`; excludes `from` and `partitions`.
    partition: Option<u32>,
    /// The offset to start at, with `partition`.
    offset: Option<i64>,
    /// Most records of the answer.
    #[param(default = 500, minimum = 1, maximum = 10_000)]
    limit: Option<u32>,
    /// Most bytes of records of the answer; one record always fits. There are fewer when the
    /// requests that are open hold `http.memory_bytes`.
    #[param(default = 4_194_304, minimum = 1, maximum = 67_108_864)]
    max_bytes: Option<u64>,
    /// Milliseconds to wait for a record when there is none. Not with events.
    #[param(default = 0, maximum = 300_000)]
    wait: Option<u64>,
    /// How values are shown: `json`, `text`, `base64` or `meta`.
    #[param(default = "json")]
    format: Option<String>,
    /// Only records with this key.
    key: Option<String>,
    /// Only records whose key starts so.
    key_prefix: Option<String>,
    /// Only records with this header, `name:value`; repeatable, all must match.
    #[param(example = "type:purchase")]
    header: Option<String>,
    /// Whether to go on behind a damaged range, which is then reported as a gap, instead of an
    /// error with `damaged_from` and `next_good_offset`. Events do so unless told `false`.
    #[param(default = false)]
    skip_damaged: Option<bool>,
    /// Events only: like the header `Last-Event-ID`, for a first connect.
    last_event_id: Option<String>,
    /// Events only: the stream is a member of this group for as long as it is open. `from` is then
    /// `earliest` or `latest`, for partitions whose offset the group has not committed.
    group: Option<String>,
    /// With `group`: who commits. `manual` is the client, by `POST /v1/groups/{group}/offsets` with
    /// the `member_id` and `epoch` of the last `assigned` event. `auto` is the server: every 5 s,
    /// and at the end, what the connection's socket had accepted 5 s before; there is no
    /// acknowledgement in it, so records can be lost that were on the way when the client died.
    #[param(default = "manual")]
    commit: Option<String>,
    /// With `group`: makes the member static, so that a reconnect moves no partitions.
    instance_id: Option<String>,
    /// With `group`: how partitions should be shared out, `uniform` or `range`; what most of the
    /// members that say so ask for counts.
    assignor: Option<String>,
}

/// How a stream is a member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AsMember {
    /// The group.
    pub(super) group: String,
    /// The name of a static member.
    pub(super) instance_id: Option<String>,
    /// How partitions should be shared out.
    pub(super) assignor: Option<Assignor>,
    /// Who commits.
    pub(super) commit: Commit,
}

/// The parameters of a read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Parameters {
    /// Where it starts.
    pub(super) from: From,
    /// Most records.
    pub(super) limit: u32,
    /// Most bytes of records.
    pub(super) max_bytes: u64,
    /// How long to wait for a first record.
    pub(super) wait: Duration,
    /// How values are shown.
    pub(super) format: Format,
    /// Which records are wanted.
    pub(super) filter: Filter,
    /// What happens at a damaged range.
    pub(super) on_damage: OnDamage,
    /// The membership that a stream is, if it is one.
    pub(super) member: Option<AsMember>,
}

/// Where a read starts.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum From {
    /// At a place that every partition has. The list is ascending, empty for all partitions.
    Start(Start, Vec<u32>),
    /// Where another read ended. The list is ascending, empty for all partitions.
    Cursor(Cursor, Vec<u32>),
    /// At an offset of one partition.
    Offset(u32, Offset),
}

/// Which records are wanted; all conditions must hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Filter {
    key: Option<Vec<u8>>,
    key_prefix: Option<Vec<u8>>,
    headers: Vec<(String, Vec<u8>)>,
}

impl Filter {
    /// Returns whether every record is wanted.
    pub(super) fn is_empty(&self) -> bool {
        self.key.is_none() && self.key_prefix.is_none() && self.headers.is_empty()
    }

    /// Returns whether a record is wanted. A null key has no bytes to compare.
    pub(super) fn matches(&self, record: &Record<'_>) -> bool {
        let key = |wanted: &Option<Vec<u8>>, test: fn(&[u8], &[u8]) -> bool| {
            wanted.as_ref().is_none_or(|wanted| record.key.is_some_and(|key| test(key, wanted)))
        };
        key(&self.key, |key, wanted| key == wanted)
            && key(&self.key_prefix, |key, prefix| key.starts_with(prefix))
            && self.headers.iter().all(|(name, value)| {
                record
                    .headers
                    .iter()
                    .any(|(found, bytes)| found == name && bytes == Some(value.as_slice()))
            })
    }
}

/// Reads the parameters of a request; `streams` when events are asked for.
///
/// # Errors
/// `invalid_request`, which names the parameter.
pub(super) fn parse(parts: &Parts, streams: bool) -> Result<Parameters, ApiError> {
    let mut given = Given::default();
    for (name, value) in query(&parts.uri)? {
        given.set(&name, value, streams)?;
    }
    // Also without events: the one place that has room for the cursor of a very large topic. A
    // stream with a group sends no ids, so one that comes is of another stream.
    let wanted = given.group.is_none();
    if let Some(id) = parts.headers.get("last-event-id").filter(|id| wanted && !id.is_empty()) {
        let id = id.to_str().map_err(|_| {
            ApiError::invalid_request("the header Last-Event-ID is not a cursor of this server")
        })?;
        given.last_event_id = Some(Cow::Borrowed(id));
    }
    given.finish(streams)
}

/// The parameters as they stand in the query.
#[derive(Default)]
struct Given<'a> {
    from: Option<Cow<'a, str>>,
    last_event_id: Option<Cow<'a, str>>,
    partitions: Option<Vec<u32>>,
    partition: Option<u32>,
    offset: Option<Offset>,
    limit: Option<u32>,
    max_bytes: Option<u64>,
    wait_ms: Option<u64>,
    format: Option<Format>,
    filter: Filter,
    skip_damaged: Option<bool>,
    group: Option<Cow<'a, str>>,
    instance_id: Option<Cow<'a, str>>,
    assignor: Option<Assignor>,
    commit: Option<Commit>,
}

impl<'a> Given<'a> {
    fn set(&mut self, name: &str, value: Cow<'a, str>, streams: bool) -> Result<(), ApiError> {
        let text = &*value;
        let first = match name {
            "partitions" => self.partitions.replace(partition_list(text)?).is_none(),
            "partition" => {
                let number = number(name, text, 0, i32::MAX as u32)?;
                self.partition.replace(number).is_none()
            }
            "offset" => {
                let offset = text.parse().ok().and_then(Offset::new);
                let expected = "an offset, from 0";
                let offset = offset.ok_or_else(|| bad_parameter(name, text, expected))?;
                self.offset.replace(offset).is_none()
            }
            "limit" => self.limit.replace(number(name, text, 1, READ_RECORDS_MAX)?).is_none(),
            "max_bytes" => self.max_bytes.replace(number(name, text, 1, READ_BYTES_MAX)?).is_none(),
            "wait" if streams => {
                let detail = "query parameter 'wait' is for pages; events come when there are any";
                return Err(ApiError::invalid_request(detail));
            }
            "wait" => self.wait_ms.replace(number(name, text, 0, READ_WAIT_MS_MAX)?).is_none(),
            "format" => self.format.replace(format(text)?).is_none(),
            "key" => self.filter.key.replace(text.as_bytes().to_vec()).is_none(),
            "key_prefix" => self.filter.key_prefix.replace(text.as_bytes().to_vec()).is_none(),
            "header" => {
                let pair = text.split_once(':').filter(|(name, _)| !name.is_empty());
                let refuse = || bad_parameter(name, text, "name:value");
                let (header, wanted) = pair.ok_or_else(refuse)?;
                self.filter.headers.push((header.to_owned(), wanted.as_bytes().to_vec()));
                if self.filter.headers.len() > HEADER_FILTERS_MAX {
                    let detail =
                        format!("at most {HEADER_FILTERS_MAX} header filters are possible");
                    return Err(ApiError::invalid_request(detail));
                }
                true
            }
            "skip_damaged" => self.skip_damaged.replace(boolean(name, text)?).is_none(),
            "from" => self.from.replace(value).is_none(),
            "last_event_id" if streams => self.last_event_id.replace(value).is_none(),
            "group" if streams => self.group.replace(value).is_none(),
            "instance_id" if streams => self.instance_id.replace(value).is_none(),
            "assignor" if streams => {
                let refuse = || bad_parameter(name, text, "uniform or range");
                self.assignor.replace(Assignor::parse(text).ok_or_else(refuse)?).is_none()
            }
            "commit" if streams => {
                let commit = match text {
                    "auto" => Commit::Auto,
                    "manual" => Commit::Manual,
                    _ => return Err(bad_parameter(name, text, "auto or manual")),
                };
                self.commit.replace(commit).is_none()
            }
            _ => return Err(unknown_parameter(name)),
        };
        if first {
            return Ok(());
        }
        Err(repeated_parameter(name))
    }

    fn finish(self, streams: bool) -> Result<Parameters, ApiError> {
        let member = self.member()?;
        Ok(Parameters {
            member,
            from: self.start(streams)?,
            limit: self.limit.unwrap_or(LIMIT_DEFAULT),
            max_bytes: self.max_bytes.unwrap_or(BYTES_DEFAULT),
            wait: Duration::from_millis(self.wait_ms.unwrap_or(0)),
            format: self.format.unwrap_or_default(),
            filter: self.filter,
            on_damage: if self.skip_damaged.unwrap_or(streams) {
                OnDamage::Skip
            } else {
                OnDamage::Fail
            },
        })
    }

    fn member(&self) -> Result<Option<AsMember>, ApiError> {
        let Some(group) = &self.group else {
            let alone = [
                ("commit", self.commit.is_some()),
                ("instance_id", self.instance_id.is_some()),
                ("assignor", self.assignor.is_some()),
            ];
            return match alone.into_iter().find(|(_, given)| *given) {
                Some((name, _)) => {
                    Err(ApiError::invalid_request(format!("'{name}' needs 'group'")))
                }
                None => Ok(None),
            };
        };
        let is_place = |from: &str| matches!(from, "earliest" | "latest");
        let excluded = self.partitions.is_some()
            || self.partition.is_some()
            || self.offset.is_some()
            || self.last_event_id.is_some()
            || !self.from.as_deref().is_none_or(is_place);
        if excluded {
            let detail = "the group says where 'group' reads: of places only 'from' with \
                'earliest' or 'latest' goes with it, for partitions without an offset";
            return Err(ApiError::invalid_request(detail));
        }
        Ok(Some(AsMember {
            group: group.to_string(),
            instance_id: self.instance_id.as_ref().map(ToString::to_string),
            assignor: self.assignor,
            commit: self.commit.unwrap_or(Commit::Manual),
        }))
    }

    fn start(&self, streams: bool) -> Result<From, ApiError> {
        let excluded = self.from.is_some() || self.partitions.is_some();
        let by_offset = match (self.partition, self.offset) {
            (None, None) => None,
            (Some(_), Some(_)) if excluded => {
                let detail = "'partition' with 'offset' excludes 'from' and 'partitions'";
                return Err(ApiError::invalid_request(detail));
            }
            (Some(partition), Some(offset)) => Some(From::Offset(partition, offset)),
            (Some(_), None) => {
                let detail = "'partition' needs 'offset'; use 'partitions' with 'from'";
                return Err(ApiError::invalid_request(detail));
            }
            (None, Some(_)) => {
                return Err(ApiError::invalid_request("'offset' needs 'partition'"));
            }
        };
        let partitions = self.partitions.clone().unwrap_or_default();
        // Where a client was beats where it once asked to start.
        if let Some(id) = self.last_event_id.as_deref().filter(|id| !id.is_empty()) {
            let cursor = Cursor::decode(id)
                .map_err(|_| bad_parameter("last_event_id", id, "a cursor of this server"))?;
            let partitions = match by_offset {
                Some(From::Offset(partition, _)) => vec![partition],
                _ => partitions,
            };
            return Ok(From::Cursor(cursor, partitions));
        }
        if let Some(by_offset) = by_offset {
            return Ok(by_offset);
        }
        match self.from.as_deref() {
            None if streams => Ok(From::Start(Start::Latest, partitions)),
            None => Ok(From::Start(Start::Earliest, partitions)),
            Some(text) => parse_from(text, partitions),
        }
    }
}

fn parse_from(text: &str, partitions: Vec<u32>) -> Result<From, ApiError> {
    let start = match text {
        "earliest" => Start::Earliest,
        "latest" => Start::Latest,
        _ => {
            if let Ok(cursor) = Cursor::decode(text) {
                return Ok(From::Cursor(cursor, partitions));
            }
            // A plus sign of a time zone that was not escaped arrives as a space.
            let time: Result<jiff::Timestamp, _> = text.replace(' ', "+").parse();
            let expected = "earliest, latest, a cursor of this server or an RFC 3339 time";
            let time = time.map_err(|_| bad_parameter("from", text, expected))?;
            // Rounded up, so that no record is older than what was asked for.
            let millis = time.as_millisecond();
            let rounded =
                millis.saturating_add(i64::from(time.subsec_nanosecond() % 1_000_000 > 0));
            Start::Timestamp(Timestamp::from_millis(rounded))
        }
    };
    Ok(From::Start(start, partitions))
}

fn number<N>(name: &str, text: &str, min: N, max: N) -> Result<N, ApiError>
where
    N: std::str::FromStr + PartialOrd + std::fmt::Display + Copy,
{
    let number = text.parse().ok().filter(|number| (min..=max).contains(number));
    number.ok_or_else(|| bad_parameter(name, text, &format!("a number from {min} to {max}")))
}

fn boolean(name: &str, text: &str) -> Result<bool, ApiError> {
    text.parse().map_err(|_| bad_parameter(name, text, "true or false"))
}

fn partition_list(text: &str) -> Result<Vec<u32>, ApiError> {
    let refuse = || bad_parameter("partitions", text, "numbers with commas between, as in 0,2,5");
    let numbers = text.split(',').map(|number| number.trim().parse::<u32>());
    let mut list = numbers.collect::<Result<Vec<_>, _>>().map_err(|_| refuse())?;
    list.sort_unstable();
    list.dedup();
    Ok(list)
}

fn format(text: &str) -> Result<Format, ApiError> {
    match text {
        "json" => Ok(Format::Json),
        "text" => Ok(Format::Text),
        "base64" => Ok(Format::Base64),
        "meta" => Ok(Format::Meta),
        _ => Err(bad_parameter("format", text, "json, text, base64 or meta")),
    }
}

/// Tells a reader who was in a topic that it was deleted, where others hear that there is none.
pub(super) fn gone_with_its_cursor(
    state: &State,
    parameters: &Parameters,
    error: ApiError,
) -> ApiError {
    match &parameters.from {
        From::Cursor(cursor, _)
            if error.code() == Code::TopicNotFound && !state.broker.knows_topic(cursor.topic) =>
        {
            ApiError::new(Code::CursorGone, "the cursor's topic was deleted")
        }
        _ => error,
    }
}

/// Finds the next offset of each partition that a read covers.
///
/// # Errors
/// `partition_not_found`, `offset_out_of_range`, `cursor_gone`, and those of the broker.
pub(super) async fn positions(
    state: &State,
    topic: &Arc<Topic>,
    parameters: &Parameters,
) -> Result<Positions, ApiError> {
    let (broker, principal) = (&state.broker, &state.principal);
    let search = |start| Search { start, on_damage: parameters.on_damage };
    match &parameters.from {
        From::Start(start, partitions) => {
            let partitions = partitions_of(topic, partitions)?;
            Ok(broker.start_offsets(principal, topic, &partitions, search(*start)).await?)
        }
        From::Offset(partition, offset) => {
            let (partition, offset) = (partition_of(topic, *partition)?, *offset);
            let (log_start, log_end) = broker.bounds(principal, topic, partition).await?;
            if !(log_start..=log_end).contains(&offset) {
                return Err(
                    ReadError::OffsetOutOfRange { partition, offset, log_start, log_end }.into()
                );
            }
            Ok(vec![(partition, offset)])
        }
        From::Cursor(cursor, partitions) => {
            if cursor.topic != topic.summary().id {
                let name = &topic.summary().name;
                let detail =
                    format!("the cursor's topic was deleted; '{name}' is another topic now");
                return Err(ApiError::new(Code::CursorGone, detail));
            }
            // Partitions only ever grow in number, so a cursor of this topic names no other.
            if let Some((last, _)) = cursor.positions.last() {
                partition_of(topic, last.get())?;
            }
            let partitions = partitions_of(topic, partitions)?;
            let lacking: Vec<_> = partitions
                .iter()
                .copied()
                .filter(|partition| cursor.position(*partition).is_none())
                .collect();
            let mut positions: Positions = partitions
                .into_iter()
                .filter_map(|partition| Some((partition, cursor.position(partition)?)))
                .collect();
            if !lacking.is_empty() {
                let search = search(Start::Earliest);
                let starts = broker.start_offsets(principal, topic, &lacking, search).await?;
                positions.extend(starts);
                positions.sort_unstable_by_key(|(partition, _)| *partition);
            }
            Ok(positions)
        }
    }
}

fn partitions_of(topic: &Topic, listed: &[u32]) -> Result<Vec<PartitionId>, ApiError> {
    if listed.is_empty() {
        return Ok(PartitionId::all(topic.summary().partitions).collect());
    }
    listed.iter().map(|number| partition_of(topic, *number)).collect()
}

fn partition_of(topic: &Topic, number: u32) -> Result<PartitionId, ApiError> {
    topic.partition(number).ok_or_else(|| {
        let detail = format!("topic '{}' has no partition {number}", topic.summary().name);
        ApiError::new(Code::PartitionNotFound, detail)
    })
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use uuid::Uuid;

    use super::*;
    use crate::api::cursor;
    use crate::record::Headers;
    use crate::types::TopicId;

    fn parsed(
        query: &str,
        last_event_id: Option<&str>,
        streams: bool,
    ) -> Result<Parameters, ApiError> {
        let mut request = Request::get(format!("/v1/topics/t/records{query}"));
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        parse(&request.body(()).unwrap().into_parts().0, streams)
    }

    fn page(query: &str) -> Result<Parameters, ApiError> {
        parsed(query, None, false)
    }

    fn a_cursor() -> (String, Cursor) {
        let positions = vec![(PartitionId::ZERO, Offset::new(7).unwrap())];
        let topic = TopicId::new(Uuid::nil());
        (cursor::encode(topic, &positions), Cursor { topic, positions })
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let parameters = page("").unwrap();
        assert_eq!(parameters.from, From::Start(Start::Earliest, Vec::new()));
        assert_eq!((parameters.limit, parameters.max_bytes), (500, 4 * 1024 * 1024));
        assert_eq!((parameters.wait, parameters.format), (Duration::ZERO, Format::Json));
        assert!(parameters.filter.is_empty());
        assert_eq!(parameters.on_damage, OnDamage::Fail);
        assert_eq!(page("?skip_damaged=true").unwrap().on_damage, OnDamage::Skip);
        let streamed = parsed("", None, true).unwrap();
        assert_eq!(streamed.from, From::Start(Start::Latest, Vec::new()));
        assert_eq!(streamed.on_damage, OnDamage::Skip);
        let strict = parsed("?skip_damaged=false", None, true).unwrap();
        assert_eq!(strict.on_damage, OnDamage::Fail);
    }

    #[test]
    fn every_way_to_start_is_understood() {
        let from = |query: &str| page(query).unwrap().from;
        let at = |millis| From::Start(Start::Timestamp(Timestamp::from_millis(millis)), Vec::new());
        let (text, cursor) = a_cursor();
        assert_eq!(from("?from=latest"), From::Start(Start::Latest, Vec::new()));
        assert_eq!(
            from("?from=earliest&partitions=5,0,2,0"),
            From::Start(Start::Earliest, vec![0, 2, 5])
        );
        assert_eq!(from(&format!("?from={text}&partitions=0")), From::Cursor(cursor, vec![0]));
        assert_eq!(from("?from=1970-01-01T00:00:01Z"), at(1000));
        assert_eq!(from("?from=1970-01-01T01:00:01.5%2B01:00"), at(1500));
        assert_eq!(from("?from=1970-01-01T01:00:01+01:00"), at(1000));
        assert_eq!(from("?from=1970-01-01T00:00:00.0001Z"), at(1));
        assert_eq!(from("?partition=3&offset=17"), From::Offset(3, Offset::new(17).unwrap()));
    }

    #[test]
    fn what_is_not_acceptable_is_refused_by_name() {
        for (query, named) in [
            ("?limit=0", "limit"),
            ("?limit=10001", "limit"),
            ("?limit=", "limit"),
            ("?max_bytes=0", "max_bytes"),
            ("?max_bytes=67108865", "max_bytes"),
            ("?wait=300001", "wait"),
            ("?wait=-1", "wait"),
            ("?format=xml", "format"),
            ("?from=yesterday", "from"),
            ("?from=2026-01-01", "from"),
            ("?from=", "from"),
            ("?partitions=", "partitions"),
            ("?partitions=0,x", "partitions"),
            ("?partitions=-1", "partitions"),
            ("?partition=0", "offset"),
            ("?offset=0", "partition"),
            ("?partition=-1&offset=0", "partition"),
            ("?partition=2147483648&offset=0", "partition"),
            ("?partition=0&offset=-1", "offset"),
            ("?partition=0&offset=9223372036854775808", "offset"),
            ("?partition=0&offset=0&from=latest", "from"),
            ("?partition=0&offset=0&partitions=1", "partitions"),
            ("?header=novalue", "header"),
            ("?header=:v", "header"),
            ("?limit=1&limit=2", "limit"),
            ("?skip_damaged=yes", "skip_damaged"),
            ("?lmit=1", "lmit"),
            ("?group=g", "group"),
            ("?last_event_id=x", "last_event_id"),
        ] {
            let error = page(query).unwrap_err();
            assert_eq!(error.code(), Code::InvalidRequest, "{query}");
            assert!(error.detail().contains(named), "{query}: {}", error.detail());
        }
        let wait = parsed("?wait=1", None, true).unwrap_err();
        assert!(wait.code() == Code::InvalidRequest && wait.detail().contains("'wait'"));
        for query in ["?group=g&partitions=0", "?group=g&partition=0&offset=1", "?commit=auto"] {
            let group = parsed(query, None, true).unwrap_err();
            assert!(group.detail().contains("'group'"), "{query}: {}", group.detail());
        }
        assert!(parsed("?group=g&from=earliest", None, true).is_ok());
    }

    #[test]
    fn where_a_client_was_beats_where_it_asked_to_start() {
        let (text, cursor) = a_cursor();
        let query = format!("?from=earliest&partitions=1&last_event_id={text}");
        let resumed = From::Cursor(cursor, vec![1]);
        assert_eq!(parsed(&query, None, true).unwrap().from, resumed);
        assert_eq!(parsed("?from=latest&partitions=1", Some(&text), true).unwrap().from, resumed);
        let one = parsed("?partition=1&offset=0", Some(&text), true).unwrap();
        assert_eq!(one.from, resumed);
        assert!(parsed("", Some("nonsense"), true).is_err());
        // The header has room for cursors that an address has not.
        assert_eq!(parsed("?from=latest&partitions=1", Some(&text), false).unwrap().from, resumed);
        assert!(parsed("", Some("nonsense"), false).is_err());
    }

    #[test]
    fn filters_choose_records() {
        let filter = |query: &str| page(query).unwrap().filter;
        let record = |key: Option<&'static [u8]>| Record {
            offset: Offset::ZERO,
            timestamp: Timestamp::from_millis(0),
            key,
            value: None,
            headers: Headers::default(),
        };
        let matches = |query: &str, key| filter(query).matches(&record(key));
        assert!(matches("?key=user1", Some(b"user1")));
        assert!(!matches("?key=user1", Some(b"user12")));
        assert!(matches("?key_prefix=user", Some(b"user12")));
        assert!(!matches("?key_prefix=user", Some(b"use")));
        assert!(!matches("?key_prefix=user&key=x", Some(b"user12")));
        assert!(!matches("?key=", None), "a null key is not an empty one");
        assert!(matches("?key=", Some(b"")));
        assert!(!matches("?header=a:b", Some(b"x")));
        assert_eq!(filter("?header=a:b:c&header=d:").headers.len(), 2);
    }
}
