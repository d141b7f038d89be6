//! Frames from the client, parsed and checked for their shape.
//!
//! A frame that is no JSON object with a known `type` is a fault of the client as a whole; one of a
//! known type with wrong members is refused, and the socket goes on.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::api::error::{ApiError, Code};
use crate::api::json::records_out::Format;
use crate::api::ws::filter::FilterRequest;
use crate::broker::Assignor;
use crate::types::Offset;

/// Largest id and sequence number: what every client's JSON can hold.
const ID_MAX: u64 = (1 << 53) - 1;

/// Partitions and offsets that a frame names.
pub(super) type Offsets = BTreeMap<u32, Offset>;

/// What a client asks for.
#[derive(Debug)]
pub(super) enum Request<'a> {
    Hello(Hello),
    Subscribe(Box<Subscribe>),
    Credit(Credit),
    Commit(Commit),
    Seek(Seek),
    Pause(Named),
    Resume(Named),
    Unsubscribe(Named),
    Auth,
    Ping(Ping<'a>),
    Produce(Produce<'a>),
}

/// Which request an answer is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct About {
    /// The subscription.
    pub(super) id: Option<u64>,
    /// The request's number.
    pub(super) seq: Option<u64>,
}

/// Why a frame is not a request.
#[derive(Debug)]
pub(super) enum Refused {
    /// It is no JSON object, or of no known type: the client speaks another protocol.
    Frame,
    /// Its members are wrong.
    Request(About, ApiError),
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    seq: Option<&'a RawValue>,
}

/// The first frame.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hello {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    /// Not looked at as long as there is no authentication.
    #[serde(rename = "token")]
    _token: Option<String>,
    /// What the client calls itself.
    pub(super) client: Option<String>,
    /// Largest frame that it wants to be sent.
    pub(super) max_frame_bytes: Option<usize>,
}

/// A new subscription.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Subscribe {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    pub(super) id: u64,
    pub(super) topic: String,
    pub(super) partitions: Option<Vec<u32>>,
    pub(super) from: Option<From>,
    pub(super) group: Option<GroupRequest>,
    pub(super) filter: Option<FilterRequest>,
    #[serde(default)]
    pub(super) format: FormatRequest,
    pub(super) max_value_bytes: Option<usize>,
    #[serde(default)]
    pub(super) credit: CreditRequest,
    #[serde(default, rename = "isolation")]
    _isolation: Isolation,
    #[serde(default)]
    pub(super) on_lag: OnLag,
}

/// Where a subscription starts, as given: one of its forms.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct From {
    pub(super) offsets: Option<Offsets>,
    pub(super) epoch: Option<BTreeMap<u32, i32>>,
    pub(super) at: Option<At>,
    pub(super) ts: Option<i64>,
    pub(super) tail: Option<u64>,
    pub(super) group: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum At {
    Earliest,
    Latest,
    Timestamp,
}

/// A membership in a group.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GroupRequest {
    /// The group's name.
    pub(super) id: String,
    pub(super) instance_id: Option<String>,
    pub(super) session_timeout_ms: Option<u64>,
    #[serde(default)]
    pub(super) auto_commit: bool,
    /// How partitions should be shared out.
    pub(super) assignor: Option<Assignor>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum FormatRequest {
    #[default]
    Text,
    Json,
    Base64,
    Meta,
}

impl FormatRequest {
    pub(super) const fn format(self) -> Format {
        match self {
            Self::Text => Format::Text,
            Self::Json => Format::Json,
            Self::Base64 => Format::Base64,
            Self::Meta => Format::Meta,
        }
    }
}

/// Only committed records exist for readers.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Isolation {
    #[default]
    Committed,
}

/// What happens to a subscription that has no credit while records arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnLag {
    /// It goes on where it was.
    #[default]
    Wait,
    /// It goes on with the newest records.
    Skip,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CreditRequest {
    pub(super) records: u64,
    pub(super) bytes: u64,
}

impl Default for CreditRequest {
    fn default() -> Self {
        Self { records: 1000, bytes: 1024 * 1024 }
    }
}

/// More credit.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Credit {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    pub(super) id: u64,
    #[serde(default)]
    pub(super) records: u64,
    #[serde(default)]
    pub(super) bytes: u64,
}

/// How far a group's member has come.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Commit {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    pub(super) id: u64,
    pub(super) offsets: Offsets,
    pub(super) seq: Option<u64>,
}

/// Where to go on.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Seek {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    pub(super) id: u64,
    pub(super) offsets: Offsets,
}

/// A request that names a subscription and nothing else.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Named {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    pub(super) id: u64,
}

/// A new token.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Auth {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    /// Not looked at as long as there is no authentication.
    #[serde(rename = "token")]
    _token: String,
}

/// A sign of life that is answered.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ping<'a> {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    /// What the answer repeats.
    #[serde(borrow)]
    pub(super) t: Option<&'a RawValue>,
}

/// Records to write.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Produce<'a> {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    pub(super) seq: u64,
    #[serde(borrow)]
    pub(super) topic: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) records: &'a RawValue,
    #[serde(default, borrow)]
    acks: Option<&'a RawValue>,
}

/// What a produce waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Acks {
    /// The records are stored on a majority; then they are told.
    All,
    /// The records are checked and queued; nothing is told of them.
    None,
}

impl Produce<'_> {
    /// Returns what the client waits for, as on every other face.
    pub(super) fn acks(&self) -> Result<Acks, ApiError> {
        match self.acks.map(RawValue::get) {
            None | Some("null" | "\"all\"" | "\"1\"" | "\"-1\"" | "1" | "-1") => Ok(Acks::All),
            Some("0" | "\"0\"") => Ok(Acks::None),
            Some(_) => Err(ApiError::at(Code::InvalidBody, "/acks", "expected all, 1, -1 or 0")),
        }
    }
}

impl GroupRequest {
    /// Returns how long the member is waited for, as asked for.
    pub(super) fn session_timeout(&self) -> Option<Duration> {
        self.session_timeout_ms.map(Duration::from_millis)
    }
}

impl<'a> Request<'a> {
    /// Parses a frame.
    ///
    /// # Errors
    /// [`Refused`].
    pub(super) fn parse(text: &'a str) -> Result<Self, Refused> {
        let head: Head<'a> = serde_json::from_str(text).map_err(|_| Refused::Frame)?;
        let number = |raw: Option<&RawValue>| {
            raw.and_then(|raw| raw.get().parse().ok()).filter(|number| *number <= ID_MAX)
        };
        let about = About { id: number(head.id), seq: number(head.seq) };
        let parsed = match &*head.kind {
            "hello" => parse(text).map(Self::Hello),
            "subscribe" => parse(text).map(Self::Subscribe),
            "credit" => parse(text).map(Self::Credit),
            "commit" => parse(text).map(Self::Commit),
            "seek" => parse(text).map(Self::Seek),
            "pause" => parse(text).map(Self::Pause),
            "resume" => parse(text).map(Self::Resume),
            "unsubscribe" => parse(text).map(Self::Unsubscribe),
            "auth" => parse::<Auth>(text).map(|_| Self::Auth),
            "ping" => parse(text).map(Self::Ping),
            "produce" => parse(text).map(Self::Produce),
            _ => return Err(Refused::Frame),
        };
        let too_large = |raw: Option<&RawValue>, number: Option<u64>| {
            number.is_none() && raw.is_some_and(|raw| raw.get() != "null")
        };
        if too_large(head.id, about.id) || too_large(head.seq, about.seq) {
            let detail = format!("'id' and 'seq' are integers from 0 to {ID_MAX}");
            return Err(Refused::Request(about, ApiError::new(Code::InvalidBody, detail)));
        }
        parsed.map_err(|error| Refused::Request(about, error))
    }

    /// Returns which request an answer to this is about.
    pub(super) fn about(&self) -> About {
        let id = |id: u64| About { id: Some(id), seq: None };
        match self {
            Self::Hello(_) | Self::Auth | Self::Ping(_) => About::default(),
            Self::Subscribe(request) => id(request.id),
            Self::Credit(request) => id(request.id),
            Self::Commit(request) => About { id: Some(request.id), seq: request.seq },
            Self::Seek(request) => id(request.id),
            Self::Pause(request) | Self::Resume(request) | Self::Unsubscribe(request) => {
                id(request.id)
            }
            Self::Produce(request) => About { id: None, seq: Some(request.seq) },
        }
    }
}

fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, ApiError> {
    serde_json::from_str(text).map_err(|error| ApiError::new(Code::InvalidBody, error.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The examples of the protocol's description.
    const EXAMPLES: &[&str] = &[
        r#"{"type":"hello","token":"eyJ...","client":"console/0.1","max_frame_bytes":262144}"#,
        r#"{"type":"hello"}"#,
        r#"{"type":"subscribe","id":1,"topic":"orders","partitions":[0,1],
            "from":{"offsets":{"0":15500,"1":90},"epoch":{"0":7}},
            "filter":{"key":{"prefix":"user-"},"headers":{"type":"purchase"},
                "value":{"contains":"laptop"},"json":{"ptr":"/total","op":">","v":100}},
            "format":"text","max_value_bytes":1024,"credit":{"records":1000,"bytes":1048576},
            "isolation":"committed","on_lag":"skip"}"#,
        r#"{"type":"subscribe","id":1,"topic":"orders","group":{"id":"analytics",
            "instance_id":"tab-7","session_timeout_ms":30000,"auto_commit":false}}"#,
        r#"{"type":"subscribe","id":1,"topic":"orders","group":{"id":"a","assignor":"range"}}"#,
        r#"{"type":"subscribe","id":1,"topic":"orders","from":{"at":"timestamp","ts":1764}}"#,
        r#"{"type":"subscribe","id":1,"topic":"orders","from":{"tail":100}}"#,
        r#"{"type":"credit","id":1,"records":500,"bytes":400000}"#,
        r#"{"type":"commit","id":1,"offsets":{"0":15600},"seq":12}"#,
        r#"{"type":"seek","id":1,"offsets":{"0":0}}"#,
        r#"{"type":"pause","id":1}"#,
        r#"{"type":"resume","id":1}"#,
        r#"{"type":"unsubscribe","id":1}"#,
        r#"{"type":"auth","token":"..."}"#,
        r#"{"type":"ping","t":123}"#,
        r#"{"type":"produce","seq":3,"topic":"orders",
            "records":[{"key":"k","value":"v","headers":[]}],"acks":"all"}"#,
    ];

    #[test]
    fn the_examples_of_the_protocol_are_understood() {
        for example in EXAMPLES {
            assert!(Request::parse(example).is_ok(), "{:?}", Request::parse(example));
        }
        let Ok(Request::Subscribe(plain)) =
            Request::parse(r#"{"type":"subscribe","id":1,"topic":"a"}"#)
        else {
            panic!("a subscription needs no more")
        };
        assert_eq!(plain.credit, CreditRequest { records: 1000, bytes: 1_048_576 });
        assert_eq!(plain.format, FormatRequest::Text);
        assert_eq!(plain.on_lag, OnLag::Wait);
    }

    #[test]
    fn other_protocols_are_told_from_bad_requests() {
        for frame in [
            "",
            "[]",
            "{}",
            "null",
            "{\"type\":1}",
            "{\"type\":\"x\"}",
            "{\"type\":\"ping\"",
            "{\"type\":\"pause\",\"id\":1,\"id\":1}",
        ] {
            assert!(matches!(Request::parse(frame), Err(Refused::Frame)), "{frame}");
        }
        let about = |frame: &str| match Request::parse(frame) {
            Err(Refused::Request(about, error)) => {
                assert_eq!(error.code(), Code::InvalidBody);
                about
            }
            other => panic!("{frame}: {other:?}"),
        };
        let of = |id, seq| About { id, seq };
        assert_eq!(about(r#"{"type":"pause","id":7,"x":1}"#), of(Some(7), None));
        assert_eq!(about(r#"{"type":"produce","seq":7,"topic":"a"}"#), of(None, Some(7)));
        assert_eq!(about(r#"{"type":"pause","id":"7"}"#), of(None, None));
        assert_eq!(about(r#"{"type":"pause","id":9007199254740992}"#), of(None, None));
        assert_eq!(about(r#"{"type":"seek","id":1,"offsets":{"0":-1}}"#), of(Some(1), None));
    }

    #[test]
    fn acks_are_those_of_every_face() {
        let acks = |acks: &str| {
            let frame = format!(r#"{{"type":"produce","seq":1,"topic":"a","records":[]{acks}}}"#);
            match Request::parse(&frame) {
                Ok(Request::Produce(produce)) => produce.acks().ok(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(acks(""), Some(Acks::All));
        assert_eq!(acks(r#","acks":"all""#), Some(Acks::All));
        assert_eq!(acks(r#","acks":-1"#), Some(Acks::All));
        assert_eq!(acks(r#","acks":"0""#), Some(Acks::None));
        assert_eq!(acks(r#","acks":"some""#), None);
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_without_panic(text in any::<String>()) {
            let _ = Request::parse(&text);
        }
    }
}
