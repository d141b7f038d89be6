//! A produce body, `{"records":[{"key":..,"value":..,"partition":..}, ..]}`, in every embedded
//! format.
//!
//! One pass over the body, with records that borrow from it: a JSON value is the slice as it came.
//! Strimzi's `timestamp` and `headers` are read as well. What is not known is refused, so that a
//! misspelt member is never lost silently.
//!
//! Invariants:
//! - nothing is allocated per record unless it has escapes, base64 or headers;
//! - the number of records never exceeds the limit, whatever the body's size.

use std::borrow::Cow;

use serde::Deserialize;

use crate::api::json::scan::JsonString;
use crate::api::json::{Scanner, SyntaxError};
use crate::api::v2::key;
use crate::api::v2::media::Embedded;
use crate::broker::{NewHeader, ProduceRecord};
use crate::types::{PartitionId, Timestamp};

/// Bytes that a record takes at least, roughly: sizes the list of records from the body's length.
const RECORD_BYTES_GUESS: usize = 100;

/// What the reader needs to know besides the body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    /// The embedded format.
    pub(super) format: Embedded,
    /// Most records that are accepted.
    pub(super) records_max: usize,
    /// The path's partition, for records that name none.
    pub(super) partition: Option<PartitionId>,
}

/// Why a body is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// Which rule it breaks.
    pub(super) kind: FaultKind,
    /// The rule in words, with what was found.
    pub(super) message: String,
    /// Where, as a JSON pointer; empty for the body itself.
    pub(super) pointer: String,
}

/// Which rule a body breaks; each has its own status and error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FaultKind {
    /// Not JSON, not base64, or not made of records.
    Malformed,
    /// A member is missing, unknown, given twice or of the wrong type.
    Shape,
    /// More records than the limit.
    TooMany,
    /// A number that no partition has.
    Partition,
    /// A key in a format that needs a schema, without one.
    KeySchemaMissing,
    /// A value in a format that needs a schema, without one.
    ValueSchemaMissing,
    /// A schema is given and there is nothing to look it up in.
    NoRegistry,
}

/// Reads a body.
pub(super) fn parse(body: &str, options: Options) -> Result<Vec<ProduceRecord<'_>>, Fault> {
    let mut reader =
        Reader { scanner: Scanner::new(body), body_bytes: body.len(), options, index: None };
    let envelope = reader.envelope()?;
    if options.format == Embedded::Schema {
        return Err(envelope.schema_fault());
    }
    Ok(envelope.records)
}

/// What a body holds.
struct Envelope<'a> {
    records: Vec<ProduceRecord<'a>>,
    has_key_schema: bool,
    has_value_schema: bool,
}

impl Envelope<'_> {
    fn schema_fault(&self) -> Fault {
        let has_keys = self.records.iter().any(|record| record.key.is_some());
        let has_values = self.records.iter().any(|record| record.value.is_some());
        let (kind, message) = if has_keys && !self.has_key_schema {
            (FaultKind::KeySchemaMissing, "Request includes keys but no key schema.")
        } else if has_values && !self.has_value_schema {
            (FaultKind::ValueSchemaMissing, "Request includes values but no value schema.")
        } else {
            (FaultKind::NoRegistry, "No schema registry is configured.")
        };
        Fault { kind, message: message.to_owned(), pointer: String::new() }
    }
}

/// A place in a body.
struct Reader<'a> {
    scanner: Scanner<'a>,
    body_bytes: usize,
    options: Options,
    /// The record that is being read, from 0.
    index: Option<usize>,
}

impl<'a> Reader<'a> {
    fn envelope(&mut self) -> Result<Envelope<'a>, Fault> {
        let mut records = None;
        let mut schemas = [None; 4];
        self.token(b'{', "expected an object with records")?;
        let mut more = !self.scanner.skip_if(b'}');
        while more {
            let name = self.name()?;
            let schema = match &*name {
                "records" if records.is_some() => return Err(self.duplicate(&name)),
                "records" => {
                    records = Some(self.records()?);
                    None
                }
                "key_schema" => schemas.get_mut(0),
                "key_schema_id" => schemas.get_mut(1),
                "value_schema" => schemas.get_mut(2),
                "value_schema_id" => schemas.get_mut(3),
                _ => return Err(self.unknown(&name)),
            };
            if let Some(schema) = schema {
                let raw = self.scanner.value().map_err(|error| self.syntax(error))?;
                if schema.replace(raw != "null").is_some() {
                    return Err(self.duplicate(&name));
                }
            }
            more = self.more(b'}', "expected ',' or '}'")?;
        }
        self.scanner.end().map_err(|error| self.syntax(error))?;
        let records: Vec<_> = records.unwrap_or_default();
        if records.is_empty() {
            let message = "records must have at least one record".to_owned();
            return Err(self.fault(FaultKind::Shape, "records", message));
        }
        let [key_schema, key_schema_id, value_schema, value_schema_id] =
            schemas.map(|given| given == Some(true));
        Ok(Envelope {
            records,
            has_key_schema: key_schema || key_schema_id,
            has_value_schema: value_schema || value_schema_id,
        })
    }

    fn records(&mut self) -> Result<Vec<ProduceRecord<'a>>, Fault> {
        self.token(b'[', "records must be an array")?;
        let limit = self.options.records_max;
        let mut records = Vec::with_capacity(limit.min(self.body_bytes / RECORD_BYTES_GUESS + 1));
        let mut more = !self.scanner.skip_if(b']');
        while more {
            if records.len() == limit {
                let message = format!("a body has at most {limit} records (http.max_records)");
                return Err(self.fault(FaultKind::TooMany, "records", message));
            }
            self.index = Some(records.len());
            let partition = self.options.partition;
            records.push(ProduceRecord { partition, ..ProduceRecord::default() });
            // Read where it stays: a record is a hundred bytes, and this is the hot path.
            if let Some(record) = records.last_mut() {
                self.record(record)?;
            }
            self.index = None;
            more = self.more(b']', "expected ',' or ']'")?;
        }
        Ok(records)
    }

    fn record(&mut self, record: &mut ProduceRecord<'a>) -> Result<(), Fault> {
        let mut seen = 0_u8;
        self.token(b'{', "a record must be an object")?;
        let mut more = !self.scanner.skip_if(b'}');
        while more {
            let bit = self.member(seen)?;
            seen |= bit;
            let raw = self.scanner.value().map_err(|error| self.syntax(error))?;
            match bit {
                _ if raw == "null" => {}
                member::KEY => record.key = Some(self.key(raw)?),
                member::VALUE => record.value = Some(self.value(raw)?),
                member::PARTITION => record.partition = Some(self.partition(raw)?),
                member::TIMESTAMP => record.timestamp = Some(self.timestamp(raw)?),
                _ => record.headers = self.headers(raw)?,
            }
            more = self.more(b'}', "expected ',' or '}'")?;
        }
        Ok(())
    }

    /// Reads the name of a record's member and returns its bit, if it may still come.
    fn member(&mut self, seen: u8) -> Result<u8, Fault> {
        // As nearly every client writes the two that nearly every record has.
        if seen & member::VALUE == 0 && self.scanner.skip_text(b"\"value\":") {
            return Ok(member::VALUE);
        }
        if seen & member::KEY == 0 && self.scanner.skip_text(b"\"key\":") {
            return Ok(member::KEY);
        }
        let name = self.name()?;
        let bit = match &*name {
            "key" => member::KEY,
            "value" => member::VALUE,
            "partition" => member::PARTITION,
            "timestamp" => member::TIMESTAMP,
            "headers" => member::HEADERS,
            _ => return Err(self.unknown(&name)),
        };
        if seen & bit == 0 { Ok(bit) } else { Err(self.duplicate(&name)) }
    }

    /// Reads a member's name and the colon.
    fn name(&mut self) -> Result<Cow<'a, str>, Fault> {
        let name = self.scanner.name().map_err(|error| self.syntax(error))?;
        // No member's name holds half of a surrogate pair, so what is not text is unknown.
        Ok(name.decode().unwrap_or_default())
    }

    fn token(&mut self, token: u8, expected: &'static str) -> Result<(), Fault> {
        self.scanner.expect(token, expected).map_err(|error| self.syntax(error))
    }

    /// Goes past a comma, and says so, or past the end of a list or an object.
    fn more(&mut self, end: u8, expected: &'static str) -> Result<bool, Fault> {
        if self.scanner.skip_if(b',') {
            return Ok(true);
        }
        self.token(end, expected).map(|()| false)
    }

    fn partition(&self, text: &str) -> Result<PartitionId, Fault> {
        if let Some(partition) = text.parse().ok().and_then(PartitionId::new) {
            return Ok(partition);
        }
        let digits = text.strip_prefix('-').unwrap_or(text);
        if digits.bytes().all(|b| b.is_ascii_digit()) {
            let message = "Partition not found.".to_owned();
            return Err(self.fault(FaultKind::Partition, "partition", message));
        }
        let message = format!("partition must be a whole number, not {}", brief(text));
        Err(self.fault(FaultKind::Shape, "partition", message))
    }

    fn timestamp(&self, text: &str) -> Result<Timestamp, Fault> {
        text.parse().map(Timestamp::from_millis).map_err(|_| {
            let message = format!("timestamp must be whole milliseconds, not {}", brief(text));
            self.fault(FaultKind::Shape, "timestamp", message)
        })
    }

    fn key(&self, text: &'a str) -> Result<Cow<'a, [u8]>, Fault> {
        match self.options.format {
            Embedded::Json => key::compact(text).ok_or_else(|| self.half_surrogate("key")),
            Embedded::Binary => self.base64("key", text),
            Embedded::Text => self.text("key", text),
            Embedded::Schema => Ok(Cow::Borrowed(text.as_bytes())),
        }
    }

    fn value(&self, text: &'a str) -> Result<Cow<'a, [u8]>, Fault> {
        match self.options.format {
            Embedded::Json | Embedded::Schema => Ok(Cow::Borrowed(text.as_bytes())),
            Embedded::Binary => self.base64("value", text),
            Embedded::Text => self.text("value", text),
        }
    }

    /// Decodes padded base64 and no other: text that was cut off must not pass for shorter bytes.
    fn base64(&self, member: &str, text: &str) -> Result<Cow<'static, [u8]>, Fault> {
        let encoded = JsonString::of(text).and_then(JsonString::decode);
        let decoded =
            encoded.and_then(|text| base64_simd::STANDARD.decode_to_vec(text.as_bytes()).ok());
        decoded.map(Cow::Owned).ok_or_else(|| {
            let text = brief(text);
            let message = format!("Bad Request: {member}={text} is not a valid base64 string.");
            self.fault(FaultKind::Malformed, member, message)
        })
    }

    fn text(&self, member: &str, text: &'a str) -> Result<Cow<'a, [u8]>, Fault> {
        let Some(string) = JsonString::of(text) else {
            let text = brief(text);
            let message = format!("{member} must be a string in the text format, not {text}");
            return Err(self.fault(FaultKind::Shape, member, message));
        };
        match string.decode() {
            Some(Cow::Borrowed(text)) => Ok(Cow::Borrowed(text.as_bytes())),
            Some(Cow::Owned(text)) => Ok(Cow::Owned(text.into_bytes())),
            None => Err(self.half_surrogate(member)),
        }
    }

    fn headers(&self, text: &str) -> Result<Vec<NewHeader<'a>>, Fault> {
        let members: Vec<HeaderMember> = serde_json::from_str(text).map_err(|error| {
            let message = format!("headers must be a list of {{\"key\",\"value\"}}: {error}");
            self.fault(FaultKind::Shape, "headers", message)
        })?;
        let mut headers = Vec::with_capacity(members.len());
        for HeaderMember { key, value } in members {
            let value = value
                .map(|encoded| base64_simd::STANDARD.decode_to_vec(encoded.as_bytes()))
                .transpose()
                .map_err(|_| {
                    let key = brief(&key);
                    let message =
                        format!("Bad Request: header {key} is not a valid base64 string.");
                    self.fault(FaultKind::Malformed, "headers", message)
                })?;
            headers.push(NewHeader { name: Cow::Owned(key), value: value.map(Cow::Owned) });
        }
        Ok(headers)
    }

    fn half_surrogate(&self, member: &str) -> Fault {
        let message = format!("Bad Request: {member} has half of a surrogate pair");
        self.fault(FaultKind::Malformed, member, message)
    }

    fn unknown(&self, name: &str) -> Fault {
        let message = format!("Unrecognized field: {}", brief(name));
        self.fault(FaultKind::Shape, name, message)
    }

    fn duplicate(&self, name: &str) -> Fault {
        self.fault(FaultKind::Shape, name, format!("Duplicate field: {name}"))
    }

    fn syntax(&self, error: SyntaxError) -> Fault {
        self.fault(FaultKind::Malformed, "", format!("Bad Request: {error}"))
    }

    fn fault(&self, kind: FaultKind, member: &str, message: String) -> Fault {
        let mut pointer = match self.index {
            Some(index) => format!("/records/{index}"),
            None => String::new(),
        };
        if !member.is_empty() {
            pointer.push('/');
            pointer.push_str(&brief(member).replace('~', "~0").replace('/', "~1"));
        }
        Fault { kind, message, pointer }
    }
}

/// The members of a record, as bits of what was seen.
mod member {
    pub(super) const KEY: u8 = 1;
    pub(super) const VALUE: u8 = 2;
    pub(super) const PARTITION: u8 = 4;
    pub(super) const TIMESTAMP: u8 = 8;
    pub(super) const HEADERS: u8 = 16;
}

/// A header as Strimzi's bridge writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderMember {
    key: String,
    #[serde(default)]
    value: Option<String>,
}

/// Cuts what is quoted in a message: enough to find it, never a payload's whole text.
fn brief(text: &str) -> &str {
    let end = text.char_indices().nth(40).map_or(text.len(), |(end, _)| end);
    text.get(..end).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const JSON: Options = Options { format: Embedded::Json, records_max: 3, partition: None };
    const BINARY: Options = Options { format: Embedded::Binary, ..JSON };
    const TEXT: Options = Options { format: Embedded::Text, ..JSON };
    const SCHEMA: Options = Options { format: Embedded::Schema, ..JSON };

    fn one(record: &str, options: Options) -> Result<ProduceRecord<'static>, Fault> {
        let body: &'static str = format!(r#"{{"records":[{record}]}}"#).leak();
        parse(body, options).map(|mut records| records.remove(0))
    }

    fn fault(body: &str, options: Options) -> (FaultKind, String) {
        let fault = parse(body, options).unwrap_err();
        (fault.kind, fault.pointer)
    }

    #[test]
    fn json_values_are_the_bytes_that_came_and_keys_are_compact() {
        let record =
            one(r#"{ "value" : { "b" : 1.00, "a":"\u0061" } , "key":{ "k" : 1 }}"#, JSON).unwrap();
        assert_eq!(record.value.as_deref(), Some(&br#"{ "b" : 1.00, "a":"\u0061" }"#[..]));
        assert!(matches!(record.value, Some(Cow::Borrowed(_))));
        assert_eq!(record.key.as_deref(), Some(&br#"{"k":1}"#[..]));
        let record = one(r#"{"key":"user123","value":null}"#, JSON).unwrap();
        assert_eq!(record.key.as_deref(), Some(&br#""user123""#[..]));
        assert_eq!(record.value, None);
        assert_eq!(one("{}", JSON).unwrap(), ProduceRecord::default());
    }

    #[test]
    fn binary_is_base64_of_any_spelling_of_the_string() {
        let record = one(r#"{"key":"a2V5","value":"\/\u002b8="}"#, BINARY).unwrap();
        assert_eq!(record.key.as_deref(), Some(&b"key"[..]));
        assert_eq!(record.value.as_deref(), Some(&[0xff, 0xef][..]));
        assert_eq!(one(r#"{"value":""}"#, BINARY).unwrap().value.as_deref(), Some(&b""[..]));
        for bad in [r#""x""#, "\"a2V5 \"", "\"a2V\"", "7", "{}", r#""\ud800""#] {
            let fault = one(&format!(r#"{{"value":{bad}}}"#), BINARY).unwrap_err();
            assert_eq!(
                (fault.kind, fault.pointer.as_str()),
                (FaultKind::Malformed, "/records/0/value")
            );
            assert!(fault.message.contains("is not a valid base64 string"), "{}", fault.message);
        }
    }

    #[test]
    fn text_is_the_string_and_nothing_else() {
        let record = one(r#"{"key":"k","value":"a\n\u00e9"}"#, TEXT).unwrap();
        assert_eq!(record.key.as_deref(), Some(&b"k"[..]));
        assert_eq!(record.value.as_deref(), Some("a\n\u{e9}".as_bytes()));
        assert_eq!(one(r#"{"value":7}"#, TEXT).unwrap_err().kind, FaultKind::Shape);
        assert_eq!(one(r#"{"value":"\udc00"}"#, TEXT).unwrap_err().kind, FaultKind::Malformed);
    }

    #[test]
    fn strimzis_timestamp_and_headers_are_read() {
        let record = one(
            r#"{"value":1,"timestamp":17,"partition":2,
                "headers":[{"key":"a","value":"YQ=="},{"key":"b","value":null}]}"#,
            JSON,
        )
        .unwrap();
        assert_eq!(record.timestamp, Some(Timestamp::from_millis(17)));
        assert_eq!(record.partition, PartitionId::new(2));
        assert_eq!(record.headers.len(), 2);
        assert_eq!(record.headers[0].value.as_deref(), Some(&b"a"[..]));
        assert_eq!(record.headers[1].value, None);
    }

    #[test]
    fn a_records_partition_beats_the_paths() {
        let options = Options { partition: PartitionId::new(5), ..JSON };
        assert_eq!(one(r#"{"value":1}"#, options).unwrap().partition, PartitionId::new(5));
        assert_eq!(one(r#"{"partition":null}"#, options).unwrap().partition, PartitionId::new(5));
        assert_eq!(one(r#"{"partition":1}"#, options).unwrap().partition, PartitionId::new(1));
    }

    #[test]
    fn what_is_not_made_of_records_is_malformed() {
        for body in [
            "",
            "{",
            "[]",
            "7",
            r#"{"records":{}}"#,
            r#"{"records":"x"}"#,
            r#"{"records":[1]}"#,
            r#"{"records":[[]]}"#,
            r#"{"records":[{}]} x"#,
            r#"{"records":[{},]}"#,
            "\u{feff}{\"records\":[{}]}",
        ] {
            assert_eq!(fault(body, JSON).0, FaultKind::Malformed, "{body}");
        }
    }

    #[test]
    fn what_has_the_wrong_shape_is_pointed_at() {
        for (body, pointer) in [
            ("{}", "/records"),
            (r#"{"records":[]}"#, "/records"),
            (r#"{"records":[{}],"x":1}"#, "/x"),
            (r#"{"records":[{},{"valeu":1}]}"#, "/records/1/valeu"),
            (r#"{"records":[{"a/b":1}]}"#, "/records/0/a~1b"),
            (r#"{"records":[{"key":1,"key":1}]}"#, "/records/0/key"),
            (r#"{"records":[{}],"records":[{}]}"#, "/records"),
            (r#"{"records":[{"partition":"0"}]}"#, "/records/0/partition"),
            (r#"{"records":[{"partition":1.5}]}"#, "/records/0/partition"),
            (r#"{"records":[{"timestamp":"now"}]}"#, "/records/0/timestamp"),
            (r#"{"records":[{"headers":{}}]}"#, "/records/0/headers"),
            (r#"{"records":[{"headers":[{"key":"a","x":1}]}]}"#, "/records/0/headers"),
        ] {
            assert_eq!(fault(body, JSON), (FaultKind::Shape, pointer.to_owned()), "{body}");
        }
    }

    #[test]
    fn partitions_that_cannot_exist_are_not_found() {
        for number in ["-1", "2147483648", "99999999999999999999"] {
            let body = format!(r#"{{"records":[{{"partition":{number}}}]}}"#);
            assert_eq!(fault(&body, JSON).0, FaultKind::Partition);
        }
    }

    #[test]
    fn the_number_of_records_is_bounded() {
        let body = |count: usize| format!(r#"{{"records":[{}]}}"#, vec!["{}"; count].join(","));
        assert_eq!(parse(&body(3), JSON).unwrap().len(), 3);
        assert_eq!(fault(&body(4), JSON), (FaultKind::TooMany, "/records".to_owned()));
    }

    #[test]
    fn schema_formats_say_what_is_missing_first() {
        for (body, kind) in [
            (r#"{"records":[{"key":1,"value":1}]}"#, FaultKind::KeySchemaMissing),
            (r#"{"records":[{"value":1}],"value_schema":null}"#, FaultKind::ValueSchemaMissing),
            (
                r#"{"records":[{"key":1,"value":1}],"key_schema_id":1}"#,
                FaultKind::ValueSchemaMissing,
            ),
            (r#"{"value_schema":"x","records":[{"value":1}]}"#, FaultKind::NoRegistry),
            (r#"{"records":[{"value":null}]}"#, FaultKind::NoRegistry),
        ] {
            assert_eq!(fault(body, SCHEMA).0, kind, "{body}");
        }
        let ignored = r#"{"records":[{"value":1}],"value_schema_id":7,"key_schema":"x"}"#;
        assert!(parse(ignored, JSON).is_ok());
    }

    #[test]
    fn a_message_never_repeats_a_whole_payload() {
        let long = "!".repeat(10_000);
        for record in [format!(r#"{{"value":"{long}"}}"#), format!(r#"{{"{long}":1}}"#)] {
            let fault = one(&record, BINARY).unwrap_err();
            assert!(fault.message.len() < 200, "{}", fault.message.len());
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(body in r#"[\[\]{}",:a\\0-9 ]{0,40}|\PC{0,40}"#) {
            for options in [JSON, BINARY, TEXT, SCHEMA] {
                let _ = parse(&body, options);
                let _ = one(&body, options);
            }
        }

        #[test]
        fn every_json_value_is_kept_byte_for_byte(text in ".*", number in any::<f64>()) {
            let text = serde_json::to_string(&text).unwrap();
            let number = serde_json::to_string(&number).unwrap();
            let value = format!("{{ \"a\" :[{text}, {number} ]}}");
            let record = one(&format!(r#"{{"value": {value} }}"#), JSON).unwrap();
            prop_assert_eq!(record.value.as_deref(), Some(value.as_bytes()));
        }
    }
}
