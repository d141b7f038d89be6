//! Which records a subscription wants; all conditions must hold.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::api::error::{ApiError, Code};
use crate::api::json::scan::{JsonString, is_json};
use crate::api::ws::pointer::Pointer;
use crate::record::Record;

/// Conditions on headers at most: each is looked at for every record that is scanned.
const HEADERS_MAX: usize = 16;

/// A filter as clients give it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FilterRequest {
    key: Option<KeyRequest>,
    headers: Option<BTreeMap<String, String>>,
    value: Option<ValueRequest>,
    json: Option<JsonRequest>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyRequest {
    equals: Option<String>,
    prefix: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ValueRequest {
    contains: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonRequest {
    ptr: String,
    op: String,
    v: Box<RawValue>,
}

/// A filter, checked.
#[derive(Debug)]
pub(super) struct Filter {
    key: Option<String>,
    key_prefix: Option<String>,
    headers: Vec<(String, String)>,
    contains: Option<memchr::memmem::Finder<'static>>,
    json: Option<Comparison>,
}

impl Filter {
    /// Checks a filter; `None` when it wants every record.
    ///
    /// # Errors
    /// `invalid_body`, which points at what is wrong.
    pub(super) fn new(request: FilterRequest) -> Result<Option<Self>, ApiError> {
        let refuse = |pointer: &str, detail: &str| ApiError::at(Code::InvalidBody, pointer, detail);
        let (key, key_prefix) = match request.key {
            None => (None, None),
            Some(KeyRequest { equals: None, prefix: None }) => {
                return Err(refuse("/filter/key", "expected 'equals' or 'prefix'"));
            }
            Some(KeyRequest { equals, prefix }) => (equals, prefix),
        };
        let headers: Vec<_> = request.headers.unwrap_or_default().into_iter().collect();
        if headers.len() > HEADERS_MAX {
            let detail = format!("at most {HEADERS_MAX} headers can be compared");
            return Err(refuse("/filter/headers", &detail));
        }
        let contains = request
            .value
            .map(|value| memchr::memmem::Finder::new(value.contains.as_bytes()).into_owned());
        let json = request.json.as_ref().map(Comparison::new).transpose()?;
        let filter = Self { key, key_prefix, headers, contains, json };
        let wants_all = filter.key.is_none()
            && filter.key_prefix.is_none()
            && filter.headers.is_empty()
            && filter.contains.is_none()
            && filter.json.is_none();
        Ok((!wants_all).then_some(filter))
    }

    /// Returns whether a record is wanted. What is null or missing has nothing to compare.
    pub(super) fn matches(&self, record: &Record<'_>) -> bool {
        let key = |wanted: &Option<String>, test: fn(&[u8], &[u8]) -> bool| {
            wanted
                .as_ref()
                .is_none_or(|wanted| record.key.is_some_and(|key| test(key, wanted.as_bytes())))
        };
        let header = |(name, value): &(String, String)| {
            let mut found = record.headers.iter();
            found.any(|(found, bytes)| found == name && bytes == Some(value.as_bytes()))
        };
        let value = |finder: &memchr::memmem::Finder<'_>| {
            record.value.is_some_and(|value| finder.find(value).is_some())
        };
        key(&self.key, |key, wanted| key == wanted)
            && key(&self.key_prefix, |key, prefix| key.starts_with(prefix))
            && self.headers.iter().all(header)
            && self.contains.as_ref().is_none_or(value)
            && self.json.as_ref().is_none_or(|json| record.value.is_some_and(|v| json.holds(v)))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A part of a JSON value, compared with a scalar. Numbers compare by value, texts by code point;
/// parts that are missing or of another type are unequal and neither less nor greater.
#[derive(Debug)]
struct Comparison {
    pointer: Pointer,
    operator: Operator,
    wanted: Scalar,
}

#[derive(Debug, Clone, PartialEq)]
enum Scalar {
    /// `null`, `true`, `false`: their texts.
    Word(String),
    Text(String),
    /// An integer that fits, compared exactly.
    Integer(i128),
    Float(f64),
}

impl Scalar {
    fn parse(json: &str) -> Option<Self> {
        match json.bytes().next()? {
            b'{' | b'[' => None,
            b'"' => Some(Self::Text(JsonString::of(json)?.decode()?.into_owned())),
            b'n' | b't' | b'f' => Some(Self::Word(json.to_owned())),
            _ => match json.parse() {
                Ok(integer) => Some(Self::Integer(integer)),
                Err(_) => json.parse().ok().map(Self::Float),
            },
        }
    }

    fn compare(&self, other: &Self) -> Option<std::cmp::Ordering> {
        #[expect(
            clippy::cast_precision_loss,
            reason = "the other side is no integer: nearest wins"
        )]
        match (self, other) {
            (Self::Word(one), Self::Word(other)) => {
                (one == other).then_some(std::cmp::Ordering::Equal)
            }
            (Self::Text(one), Self::Text(other)) => Some(one.cmp(other)),
            (Self::Integer(one), Self::Integer(other)) => Some(one.cmp(other)),
            (Self::Float(one), Self::Float(other)) => one.partial_cmp(other),
            (Self::Integer(one), Self::Float(other)) => (*one as f64).partial_cmp(other),
            (Self::Float(one), Self::Integer(other)) => one.partial_cmp(&(*other as f64)),
            _ => None,
        }
    }
}

impl Comparison {
    fn new(request: &JsonRequest) -> Result<Self, ApiError> {
        let refuse = |member: &str, detail: &str| {
            ApiError::at(Code::InvalidBody, format!("/filter/json/{member}"), detail)
        };
        let pointer = Pointer::parse(&request.ptr)
            .ok_or_else(|| refuse("ptr", "expected a JSON pointer, as in /total"))?;
        let operator = match &*request.op {
            "==" => Operator::Equal,
            "!=" => Operator::NotEqual,
            "<" => Operator::Less,
            "<=" => Operator::LessOrEqual,
            ">" => Operator::Greater,
            ">=" => Operator::GreaterOrEqual,
            _ => return Err(refuse("op", "expected ==, !=, <, <=, > or >=")),
        };
        let wanted = Scalar::parse(request.v.get().trim_ascii())
            .ok_or_else(|| refuse("v", "expected a number, a string, true, false or null"))?;
        Ok(Self { pointer, operator, wanted })
    }

    fn holds(&self, value: &[u8]) -> bool {
        let json = if is_json(value) { std::str::from_utf8(value).ok() } else { None };
        let part = json.and_then(|json| self.pointer.find(json)).and_then(Scalar::parse);
        let order = part.and_then(|part| part.compare(&self.wanted));
        match self.operator {
            Operator::Equal => order.is_some_and(std::cmp::Ordering::is_eq),
            Operator::NotEqual => order.is_none_or(std::cmp::Ordering::is_ne),
            Operator::Less => order.is_some_and(std::cmp::Ordering::is_lt),
            Operator::LessOrEqual => order.is_some_and(std::cmp::Ordering::is_le),
            Operator::Greater => order.is_some_and(std::cmp::Ordering::is_gt),
            Operator::GreaterOrEqual => order.is_some_and(std::cmp::Ordering::is_ge),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Headers;
    use crate::types::{Offset, Timestamp};

    fn filter(json: &str) -> Result<Option<Filter>, ApiError> {
        Filter::new(serde_json::from_str(json).unwrap())
    }

    fn wants(json: &str, key: Option<&str>, value: Option<&str>) -> bool {
        let record = Record {
            offset: Offset::ZERO,
            timestamp: Timestamp::from_millis(0),
            key: key.map(str::as_bytes),
            value: value.map(str::as_bytes),
            headers: Headers::default(),
        };
        filter(json).unwrap().unwrap().matches(&record)
    }

    #[test]
    fn all_conditions_must_hold() {
        let both = r#"{"key":{"prefix":"user-"},"value":{"contains":"lap"}}"#;
        assert!(wants(both, Some("user-1"), Some("a laptop")));
        assert!(!wants(both, Some("user-1"), Some("a phone")));
        assert!(!wants(both, Some("usr-1"), Some("a laptop")));
        assert!(!wants(both, None, Some("a laptop")));
        assert!(!wants(both, Some("user-1"), None));
        assert!(wants(r#"{"key":{"equals":"a"}}"#, Some("a"), None));
        assert!(!wants(r#"{"key":{"equals":"a"}}"#, Some("ab"), None));
        assert!(!wants(r#"{"headers":{"type":"purchase"}}"#, None, None));
    }

    #[test]
    fn parts_of_json_compare_by_type() {
        let json = |op: &str, v: &str, value: &str| {
            let filter = format!(r#"{{"json":{{"ptr":"/a","op":"{op}","v":{v}}}}}"#);
            wants(&filter, None, Some(value))
        };
        assert!(json(">", "100", r#"{"a":101}"#));
        assert!(json(">", "100", r#"{"a":100.5}"#));
        assert!(!json(">", "100", r#"{"a":100}"#));
        assert!(json(">=", "100", r#"{"a":1e2}"#));
        // Beyond what a float can tell apart.
        assert!(json(">", "9007199254740992", r#"{"a":9007199254740993}"#));
        assert!(json("==", r#""x\u0041""#, r#"{"a":"xA"}"#));
        assert!(json("<", r#""b""#, r#"{"a":"a"}"#));
        assert!(!json(">", "1", r#"{"a":"2"}"#));
        assert!(json("!=", "1", r#"{"a":"1"}"#));
        assert!(json("!=", "1", "{}"));
        assert!(!json("==", "1", "no JSON"));
        assert!(json("==", "null", r#"{"a":null}"#));
        assert!(!json("<=", "true", r#"{"a":false}"#));
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_an_empty_filter_is_none() {
        assert!(filter("{}").unwrap().is_none());
        for (bad, pointer) in [
            (r#"{"key":{}}"#, "/filter/key"),
            (r#"{"json":{"ptr":"a","op":"==","v":1}}"#, "/filter/json/ptr"),
            (r#"{"json":{"ptr":"/a","op":"~","v":1}}"#, "/filter/json/op"),
            (r#"{"json":{"ptr":"/a","op":"==","v":[1]}}"#, "/filter/json/v"),
        ] {
            let error = filter(bad).unwrap_err();
            assert!(error.detail().starts_with(pointer), "{}", error.detail());
        }
        let many: BTreeMap<_, _> = (0..=HEADERS_MAX).map(|n| (format!("h{n}"), "v")).collect();
        let many = serde_json::json!({"headers": many}).to_string();
        assert!(filter(&many).is_err());
    }
}
