//! Media types of the v2 face: which embedded format a request body has, and what an answer may be.
//!
//! Accepted are the types of all known proxies: `application/vnd.kafka[.<format>][.v1|.v2]+json`,
//! `application/json` and `application/octet-stream`. Other versions and suffixes are refused, so
//! that a client of another protocol learns so at once.

use axum::http::{HeaderMap, HeaderValue, header};

use crate::api::error::PROBLEM_JSON;
use crate::api::http::{JSON, MediaType, quality};

/// What a v2 answer has as type when the client does not ask for another.
pub(super) const V2_JSON: &str = "application/vnd.kafka.v2+json";

const OCTET_STREAM: &str = "application/octet-stream";

/// How keys and values are written inside of a produce body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Embedded {
    /// Base64 strings; also what a plain JSON type or none means.
    Binary,
    /// Any JSON.
    Json,
    /// Strings, stored as their UTF-8.
    Text,
    /// Avro, JSON Schema or Protobuf: needs a schema registry, which does not exist here.
    Schema,
}

/// The body's media type is none that v2 reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unsupported;

/// Nothing that the client accepts can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotAcceptable;

/// Reads the embedded format of a produce body from its `Content-Type`.
pub(super) fn embedded(headers: &HeaderMap) -> Result<Embedded, Unsupported> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok(Embedded::Binary);
    };
    match value.as_bytes() {
        b"application/vnd.kafka.json.v2+json" => return Ok(Embedded::Json),
        b"application/vnd.kafka.binary.v2+json" => return Ok(Embedded::Binary),
        _ => {}
    }
    let media_type = MediaType::parse(value.to_str().map_err(|_| Unsupported)?);
    media_type.expect_utf8().map_err(|_| Unsupported)?;
    let essence = media_type.essence.to_ascii_lowercase();
    match essence.as_str() {
        JSON | OCTET_STREAM => Ok(Embedded::Binary),
        other => kafka_type(other).ok_or(Unsupported),
    }
}

/// Chooses the type of the answer from `Accept`.
pub(super) fn answer_type(headers: &HeaderMap) -> Result<HeaderValue, NotAcceptable> {
    let default = HeaderValue::from_static(V2_JSON);
    let mut values = headers.get_all(header::ACCEPT).iter();
    let Some(first) = values.next() else {
        return Ok(default);
    };
    if matches!(first.as_bytes(), b"*/*" | b"application/vnd.kafka.v2+json") {
        return Ok(default);
    }
    let ranges: Vec<Range> = std::iter::once(first).chain(values).flat_map(ranges_of).collect();
    let excluded = |name: &str| ranges.iter().any(|range| range.q == 0 && range.essence == name);
    let mut best: Option<(u16, HeaderValue)> = None;
    for range in ranges.iter().filter(|range| range.q > 0) {
        let offer = match range.essence.as_str() {
            "*/*" | "application/*" | PROBLEM_JSON => {
                [V2_JSON, JSON].into_iter().find(|name| !excluded(name))
            }
            "*/json" | JSON => Some(JSON),
            name if kafka_type(name).is_some() => Some(name),
            _ => None,
        };
        let Some(offer) = offer.and_then(|name| HeaderValue::from_str(name).ok()) else {
            continue;
        };
        if best.as_ref().is_none_or(|(q, _)| range.q > *q) {
            best = Some((range.q, offer));
        }
    }
    best.map(|(_, offer)| offer).ok_or(NotAcceptable)
}

/// Why the records of an instance cannot be answered as `Accept` asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PollRefused {
    /// Nothing that this face sends is accepted.
    NotAcceptable,
    /// What is accepted is another embedded format than the instance's.
    OtherFormat,
}

/// Chooses the type of an answer with records that are embedded in `format`, which the instance's
/// creator decided: types that name no format take it, those that name another are passed over.
pub(super) fn poll_type(headers: &HeaderMap, format: Embedded) -> Result<HeaderValue, PollRefused> {
    let own = HeaderValue::from_static(match format {
        Embedded::Json => "application/vnd.kafka.json.v2+json",
        Embedded::Text => "application/vnd.kafka.text.v2+json",
        Embedded::Binary | Embedded::Schema => "application/vnd.kafka.binary.v2+json",
    });
    let values = headers.get_all(header::ACCEPT);
    if values.iter().next().is_none() {
        return Ok(own);
    }
    let mut refused = PollRefused::NotAcceptable;
    let mut best: Option<(u16, HeaderValue)> = None;
    for range in values.iter().flat_map(ranges_of).filter(|range| range.q > 0) {
        let offer = match range.essence.as_str() {
            "*/*" | "application/*" | "application/vnd.kafka+json" | PROBLEM_JSON => own.clone(),
            "application/vnd.kafka.v1+json" | V2_JSON => own.clone(),
            "*/json" | JSON => HeaderValue::from_static(JSON),
            name => match kafka_type(name) {
                Some(named) if named == format => own.clone(),
                Some(_) => {
                    refused = PollRefused::OtherFormat;
                    continue;
                }
                None => continue,
            },
        };
        if best.as_ref().is_none_or(|(q, _)| range.q > *q) {
            best = Some((range.q, offer));
        }
    }
    best.map(|(_, offer)| offer).ok_or(refused)
}

/// One entry of an `Accept` list.
struct Range {
    essence: String,
    /// Quality in thousandths, 0 excludes.
    q: u16,
}

fn ranges_of(value: &HeaderValue) -> impl Iterator<Item = Range> + '_ {
    value.to_str().unwrap_or_default().split(',').filter_map(|entry| {
        let range = MediaType::parse(entry);
        let essence = range.essence.to_ascii_lowercase();
        (!essence.is_empty()).then(|| Range { essence, q: quality(&range) })
    })
}

/// Reads a lower-case `application/vnd.kafka...+json`.
fn kafka_type(essence: &str) -> Option<Embedded> {
    let middle = essence.strip_prefix("application/vnd.kafka")?.strip_suffix("+json")?;
    let format = middle.strip_suffix(".v2").or_else(|| middle.strip_suffix(".v1"));
    match format.unwrap_or(middle) {
        "" | ".binary" => Some(Embedded::Binary),
        ".json" => Some(Embedded::Json),
        ".text" => Some(Embedded::Text),
        ".avro" | ".jsonschema" | ".protobuf" => Some(Embedded::Schema),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    fn content(value: &str) -> Result<Embedded, Unsupported> {
        embedded(&with(header::CONTENT_TYPE, value))
    }

    fn accept(value: &str) -> Result<String, NotAcceptable> {
        let answer = answer_type(&with(header::ACCEPT, value))?;
        Ok(answer.to_str().unwrap().to_owned())
    }

    #[test]
    fn every_version_of_a_known_type_is_read_and_no_other() {
        for version in ["", ".v1", ".v2"] {
            let kafka =
                |format: &str| content(&format!("application/vnd.kafka{format}{version}+json"));
            assert_eq!(kafka(""), Ok(Embedded::Binary));
            assert_eq!(kafka(".binary"), Ok(Embedded::Binary));
            assert_eq!(kafka(".json"), Ok(Embedded::Json));
            assert_eq!(kafka(".text"), Ok(Embedded::Text));
            for schema in [".avro", ".jsonschema", ".protobuf"] {
                assert_eq!(kafka(schema), Ok(Embedded::Schema));
            }
            assert_eq!(kafka(".xml"), Err(Unsupported));
        }
        for bad in [
            "application/vnd.kafka.v0+json",
            "application/vnd.kafka.v3+json",
            "application/vnd.kafka.json.v3+json",
            "application/vnd.kafka.json.v2+foo",
            "application/vnd.kafka.json.v2",
            "application/text",
            "text/plain",
            "application/vnd.kafka.v2.json+json",
            "",
            "json",
        ] {
            assert_eq!(content(bad), Err(Unsupported), "{bad}");
        }
    }

    #[test]
    fn plain_types_and_none_mean_binary() {
        assert_eq!(content("application/json"), Ok(Embedded::Binary));
        assert_eq!(content("Application/Octet-Stream"), Ok(Embedded::Binary));
        assert_eq!(embedded(&HeaderMap::new()), Ok(Embedded::Binary));
    }

    #[test]
    fn only_utf8_is_read() {
        let json = "application/vnd.kafka.json.v2+json";
        assert_eq!(content(&format!("{json}; charset=UTF-8")), Ok(Embedded::Json));
        assert_eq!(content(&format!("{json};charset=\"utf-8\";x=y")), Ok(Embedded::Json));
        assert_eq!(content(&format!("{json}; charset=latin1")), Err(Unsupported));
    }

    #[test]
    fn the_answer_is_what_is_accepted_most() {
        for default in ["*/*", V2_JSON, "application/*", "text/html, */*;q=0.1", PROBLEM_JSON] {
            assert_eq!(accept(default).as_deref(), Ok(V2_JSON), "{default}");
        }
        assert_eq!(answer_type(&HeaderMap::new()).unwrap(), V2_JSON);
        assert_eq!(accept("application/json").as_deref(), Ok(JSON));
        assert_eq!(accept("*/json").as_deref(), Ok(JSON));
        assert_eq!(
            accept("application/json;q=0.5, application/vnd.kafka.v2+json").as_deref(),
            Ok(V2_JSON)
        );
        assert_eq!(
            accept("application/vnd.kafka.v2+json;q=0.2,application/json;q=0.25").as_deref(),
            Ok(JSON)
        );
        assert_eq!(accept("application/vnd.kafka.v2+json;q=0, */*").as_deref(), Ok(JSON));
        let echoed = "application/vnd.kafka.json.v2+json";
        assert_eq!(accept(echoed).as_deref(), Ok(echoed));
        for bad in [
            "text/html",
            "application/vnd.kafka.v3+json",
            "*/*;q=0",
            "application/vnd.kafka+foo",
            ",",
        ] {
            assert_eq!(accept(bad), Err(NotAcceptable), "{bad}");
        }
    }

    #[test]
    fn records_come_in_the_instances_format_or_not_at_all() {
        let poll = |value: &str| {
            let answer = poll_type(&with(header::ACCEPT, value), Embedded::Json)?;
            Ok(answer.to_str().unwrap().to_owned())
        };
        let own = "application/vnd.kafka.json.v2+json";
        assert_eq!(poll_type(&HeaderMap::new(), Embedded::Json).unwrap(), own);
        for accept in ["*/*", "application/*", V2_JSON, own, "text/html, */*;q=0.1"] {
            assert_eq!(poll(accept).as_deref(), Ok(own), "{accept}");
        }
        assert_eq!(poll("application/json").as_deref(), Ok(JSON));
        let binary = "application/vnd.kafka.binary.v2+json";
        assert_eq!(poll(binary), Err(PollRefused::OtherFormat));
        assert_eq!(poll(&format!("{binary}, {own};q=0.5")).as_deref(), Ok(own));
        assert_eq!(poll("text/html"), Err(PollRefused::NotAcceptable));
        assert_eq!(poll("*/*;q=0"), Err(PollRefused::NotAcceptable));
    }

    #[test]
    fn every_accept_header_line_counts() {
        let mut headers = with(header::ACCEPT, "text/html");
        headers.append(header::ACCEPT, HeaderValue::from_static(JSON));
        assert_eq!(answer_type(&headers).unwrap(), JSON);
    }
}
