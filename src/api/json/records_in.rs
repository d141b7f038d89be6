//! Records as clients send them: one, an array, or `{"records":[...]}`; a line of NDJSON is one.
//!
//! An object that is a whole body says by `key`, `value` or `headers` that it is a record; what
//! stands where a record must be may lack all three: a tombstone with a null key.
//!
//! Everything is borrowed from the body except texts with escapes and base64. A member that is
//! `null` counts as absent. All faulty records of a body are reported, up to a bound; malformed
//! JSON ends the search, since nothing after it can be told apart.

use std::borrow::Cow;

use crate::api::error::{ApiError, Code, FAULTS_MAX, Fault};
use crate::api::json::text::decode_base64;
use crate::api::json::{NESTING_MAX, Scanner, SyntaxError, scan::JsonString};
use crate::broker::{NewHeader, ProduceRecord};
use crate::types::{PartitionId, Timestamp};

/// Bytes that a record takes at least, roughly: sizes the list of records from the body's length.
const RECORD_BYTES_GUESS: usize = 100;

/// How a body held its records, which is how an error points at one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// The body is the record.
    One,
    /// The body is an array.
    Array,
    /// The body is an object with `records`.
    Records,
}

impl Form {
    /// Returns the JSON pointer of a record.
    pub(crate) fn pointer(self, index: usize) -> String {
        match self {
            Self::One => String::new(),
            Self::Array => format!("/{index}"),
            Self::Records => format!("/records/{index}"),
        }
    }
}

/// The records of a body.
#[derive(Debug, PartialEq)]
pub(crate) struct Body<'a> {
    /// How they were given.
    pub(crate) form: Form,
    /// The records, at least one.
    pub(crate) records: Vec<ProduceRecord<'a>>,
}

/// Parses a body of one record or more.
///
/// # Errors
/// `invalid_request` when it is not JSON, `invalid_body` and its kin with pointers when it has
/// another shape, `too_large` when it has more than `records_max` records.
pub(crate) fn parse_body(body: &[u8], records_max: usize) -> Result<Body<'_>, ApiError> {
    let text = utf8(body)?;
    let mut scanner = Scanner::new(text);
    let mut reader = BodyReader::new(text.len(), records_max);
    match reader.body(&mut scanner) {
        Ok(form) => reader.finish(form),
        Err(error) => Err(syntax(error)),
    }
}

/// Parses a list of records that is the member `records` of a request.
///
/// # Errors
/// As [`parse_body`].
pub(crate) fn parse_list(
    list: &str,
    records_max: usize,
) -> Result<Vec<ProduceRecord<'_>>, ApiError> {
    let mut scanner = Scanner::new(list);
    let mut reader = BodyReader::new(list.len(), records_max);
    let read = match scanner.peek() {
        Some(b'[') => reader.array(&mut scanner, Form::Records),
        _ => {
            reader.fault_at("/records", "expected an array");
            Ok(())
        }
    };
    read.map_err(syntax)?;
    Ok(reader.finish(Form::Records)?.records)
}

/// Parses a line of NDJSON: one record.
///
/// # Errors
/// As [`parse_body`]; pointers start at the record.
pub(crate) fn parse_line(line: &[u8]) -> Result<ProduceRecord<'_>, ApiError> {
    let mut scanner = Scanner::new(utf8(line)?);
    let mut record = ProduceRecord::default();
    let read = record_or_fault(&mut scanner, Place::Listed, &mut record);
    match read.and_then(|fault| scanner.end().map(|()| fault)) {
        Ok(None) => Ok(record),
        Ok(Some(fault)) => Err(fault.error("")),
        Err(error) => Err(syntax(error)),
    }
}

/// Checks a body's encoding, once for all of it.
///
/// # Errors
/// `invalid_request`.
pub(crate) fn utf8(body: &[u8]) -> Result<&str, ApiError> {
    simdutf8::basic::from_utf8(body)
        .map_err(|_| ApiError::invalid_request("malformed JSON: the text is not UTF-8"))
}

/// Translates a syntax error.
pub(crate) fn syntax(error: SyntaxError) -> ApiError {
    ApiError::invalid_request(error.to_string())
}

/// Why a record that is JSON is not acceptable.
#[derive(Debug, PartialEq)]
struct RecordError {
    code: Code,
    /// Pointer from the record on.
    pointer: Cow<'static, str>,
    detail: Cow<'static, str>,
}

impl RecordError {
    fn new(
        code: Code,
        pointer: impl Into<Cow<'static, str>>,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { code, pointer: pointer.into(), detail: detail.into() }
    }

    fn shape(pointer: impl Into<Cow<'static, str>>, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::InvalidBody, pointer, detail)
    }

    fn error(self, prefix: &str) -> ApiError {
        ApiError::at(self.code, format!("{prefix}{}", self.pointer), self.detail)
    }
}

/// Where an object stands that is read as a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// It is the body: only its members tell that it is meant to be a record.
    WholeBody,
    /// Nothing but a record can stand there.
    Listed,
}

/// Reading a record fails in two ways: the text is not JSON, or the record is not acceptable.
enum Failure {
    Syntax(SyntaxError),
    Record(Box<RecordError>),
}

impl From<SyntaxError> for Failure {
    fn from(error: SyntaxError) -> Self {
        Self::Syntax(error)
    }
}

impl From<RecordError> for Failure {
    fn from(error: RecordError) -> Self {
        Self::Record(Box::new(error))
    }
}

struct BodyReader<'a> {
    records: Vec<ProduceRecord<'a>>,
    faults: Vec<(Code, Fault)>,
    count: usize,
    records_max: usize,
}

impl<'a> BodyReader<'a> {
    fn new(bytes: usize, records_max: usize) -> Self {
        Self {
            records: Vec::with_capacity(records_max.min(bytes / RECORD_BYTES_GUESS + 1)),
            faults: Vec::new(),
            count: 0,
            records_max,
        }
    }

    fn body(&mut self, scanner: &mut Scanner<'a>) -> Result<Form, SyntaxError> {
        let form = match scanner.peek() {
            Some(b'[') => {
                self.array(scanner, Form::Array)?;
                Form::Array
            }
            Some(b'{') => self.object(scanner)?,
            _ => {
                scanner.value()?;
                self.fault(Form::One, RecordError::shape("", "expected an object or an array"));
                Form::One
            }
        };
        scanner.end()?;
        Ok(form)
    }

    /// An object is a list of records when `records` is its first member, else it is a record.
    fn object(&mut self, scanner: &mut Scanner<'a>) -> Result<Form, SyntaxError> {
        let start = scanner.at();
        scanner.expect(b'{', "expected an object")?;
        let first = if scanner.peek() == Some(b'}') { None } else { Some(scanner.name()?) };
        if first.and_then(JsonString::decode).as_deref() != Some("records") {
            scanner.rewind(start);
            self.record(scanner, Form::One)?;
            return Ok(Form::One);
        }
        if scanner.peek() == Some(b'[') {
            self.array(scanner, Form::Records)?;
        } else {
            scanner.value()?;
            self.fault_at("/records", "expected an array");
        }
        while scanner.skip_if(b',') {
            let name = scanner.name()?;
            scanner.skip_container()?;
            let name = name.decode().unwrap_or_default();
            let detail = if name == "records" { "the member repeats" } else { "unknown member" };
            self.fault_at(&pointer_to(&name), detail);
        }
        scanner.expect(b'}', "expected ',' or '}'")?;
        Ok(Form::Records)
    }

    fn array(&mut self, scanner: &mut Scanner<'a>, form: Form) -> Result<(), SyntaxError> {
        scanner.expect(b'[', "expected an array")?;
        if !scanner.skip_if(b']') {
            loop {
                self.record(scanner, form)?;
                if !scanner.skip_if(b',') {
                    break;
                }
            }
            scanner.expect(b']', "expected ',' or ']'")?;
        }
        if self.count == 0 {
            let pointer = if form == Form::Records { "/records" } else { "" };
            self.fault_at(pointer, "expected at least one record");
        }
        Ok(())
    }

    fn record(&mut self, scanner: &mut Scanner<'a>, form: Form) -> Result<(), SyntaxError> {
        self.count += 1;
        if self.count > self.records_max {
            // Only counted from here on: the answer names how many there were.
            return scanner.skip_container();
        }
        // Read where it stays: a record is a hundred bytes, and this is the hot path.
        self.records.push(ProduceRecord::default());
        let Some(record) = self.records.last_mut() else { return Ok(()) };
        let place = if form == Form::One { Place::WholeBody } else { Place::Listed };
        if let Some(fault) = record_or_fault(scanner, place, record)? {
            self.records.pop();
            self.fault(form, fault);
        }
        Ok(())
    }

    fn fault(&mut self, form: Form, error: RecordError) {
        if self.faults.len() < FAULTS_MAX {
            let pointer = form.pointer(self.count.saturating_sub(1)) + &error.pointer;
            let detail = error.detail.into_owned();
            self.faults.push((error.code, Fault { pointer, detail }));
        }
    }

    fn fault_at(&mut self, pointer: &str, detail: &str) {
        let fault = Fault { pointer: pointer.to_owned(), detail: detail.to_owned() };
        self.faults.push((Code::InvalidBody, fault));
        self.faults.truncate(FAULTS_MAX);
    }

    fn finish(self, form: Form) -> Result<Body<'a>, ApiError> {
        if self.count > self.records_max {
            return Err(ApiError::new(
                Code::TooLarge,
                format!(
                    "the body has {} records, more than http.max_records ({})",
                    self.count, self.records_max
                ),
            ));
        }
        let mut faults = self.faults.into_iter();
        match faults.next() {
            None => Ok(Body { form, records: self.records }),
            Some((code, first)) => Err(ApiError::at(code, first.pointer, first.detail)
                .with_faults(faults.map(|(_, fault)| fault))),
        }
    }
}

/// Reads a record into an empty one; when it is not acceptable, says why and goes on to its end all
/// the same, so that what follows can be read.
fn record_or_fault<'a>(
    scanner: &mut Scanner<'a>,
    place: Place,
    record: &mut ProduceRecord<'a>,
) -> Result<Option<RecordError>, SyntaxError> {
    scanner.peek();
    let start = scanner.at();
    match read_record(scanner, place, record) {
        Ok(()) => Ok(None),
        Err(Failure::Syntax(error)) => Err(error),
        Err(Failure::Record(error)) => {
            scanner.rewind(start);
            scanner.skip_container()?;
            Ok(Some(*error))
        }
    }
}

/// The members of a record, as bits of what was seen.
mod member {
    pub(super) const KEY: u8 = 1;
    pub(super) const VALUE: u8 = 2;
    pub(super) const HEADERS: u8 = 4;
    pub(super) const PARTITION: u8 = 8;
    pub(super) const TIMESTAMP: u8 = 16;
    pub(super) const ENCODING: u8 = 32;
    pub(super) const OFFSET: u8 = 64;
    pub(super) const TOPIC: u8 = 128;
}

fn member_bit(name: &str) -> Option<u8> {
    Some(match name {
        "key" => member::KEY,
        "value" => member::VALUE,
        "headers" => member::HEADERS,
        "partition" => member::PARTITION,
        "timestamp" => member::TIMESTAMP,
        "encoding" => member::ENCODING,
        "offset" => member::OFFSET,
        "topic" => member::TOPIC,
        _ => return None,
    })
}

/// Reads a member's name up to its value and returns its bit, if it may still come.
#[inline]
fn member(scanner: &mut Scanner<'_>, seen: u8) -> Result<u8, Failure> {
    // As nearly every client writes the two that nearly every record has.
    if seen & member::VALUE == 0 && scanner.skip_text(b"\"value\":") {
        return Ok(member::VALUE);
    }
    if seen & member::KEY == 0 && scanner.skip_text(b"\"key\":") {
        return Ok(member::KEY);
    }
    let name = scanner.name()?;
    let name = name.decode().unwrap_or_default();
    match member_bit(&name) {
        Some(bit) if seen & bit == 0 => Ok(bit),
        Some(_) => Err(RecordError::shape(pointer_to(&name), "the member repeats").into()),
        None => Err(RecordError::shape(pointer_to(&name), "unknown member").into()),
    }
}

fn read_record<'a>(
    scanner: &mut Scanner<'a>,
    place: Place,
    record: &mut ProduceRecord<'a>,
) -> Result<(), Failure> {
    if scanner.peek() != Some(b'{') {
        scanner.value()?;
        return Err(RecordError::shape("", "expected an object: a record").into());
    }
    scanner.expect(b'{', "expected an object")?;
    let mut seen = 0_u8;
    let mut value = None;
    let mut encoding = Encoding::Json;
    if !scanner.skip_if(b'}') {
        loop {
            let bit = member(scanner, seen)?;
            let raw = scanner.value()?;
            seen |= bit;
            match bit {
                _ if raw == "null" => {}
                member::VALUE => value = Some(raw),
                member::KEY => record.key = text_or_base64(raw, "/key")?,
                member::HEADERS => record.headers = headers(raw)?,
                member::PARTITION => record.partition = Some(partition(raw)?),
                member::TIMESTAMP => record.timestamp = Some(timestamp(raw)?),
                member::ENCODING => encoding = Encoding::parse(raw)?,
                // What a consume says about where a record was does not decide where it goes.
                _ => {}
            }
            if !scanner.skip_if(b',') {
                break;
            }
        }
        scanner.expect(b'}', "expected ',' or '}'")?;
    }
    let is_unnamed = seen & (member::KEY | member::VALUE | member::HEADERS) == 0;
    if is_unnamed && place == Place::WholeBody {
        let detail = "expected 'records', or a record with 'key', 'value' or 'headers'";
        return Err(RecordError::shape("", detail).into());
    }
    record.value = value.map(|raw| encoding.decode(raw)).transpose()?;
    Ok(())
}

/// How a record's `value` stands for bytes.
#[derive(Clone, Copy)]
enum Encoding {
    Json,
    Text,
    Base64,
}

impl Encoding {
    fn parse(raw: &str) -> Result<Self, RecordError> {
        match JsonString::of(raw).and_then(JsonString::decode).as_deref() {
            Some("text") => Ok(Self::Text),
            Some("base64") => Ok(Self::Base64),
            _ => Err(RecordError::shape("/encoding", "expected \"text\" or \"base64\"")),
        }
    }

    fn decode(self, raw: &str) -> Result<Cow<'_, [u8]>, RecordError> {
        match self {
            Self::Json => Ok(Cow::Borrowed(raw.as_bytes())),
            Self::Text => {
                let Some(string) = JsonString::of(raw) else {
                    return Err(RecordError::shape("/value", "expected a string, for 'encoding'"));
                };
                Ok(bytes_of(decode(string, "/value")?))
            }
            Self::Base64 => base64(raw, "/value"),
        }
    }
}

fn bytes_of(text: Cow<'_, str>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

fn decode<'a>(
    string: JsonString<'a>,
    pointer: impl Into<Cow<'static, str>>,
) -> Result<Cow<'a, str>, RecordError> {
    string.decode().ok_or_else(|| RecordError::shape(pointer, "a lone surrogate is not text"))
}

fn base64<'a>(
    raw: &'a str,
    pointer: impl Into<Cow<'static, str>> + Clone,
) -> Result<Cow<'a, [u8]>, RecordError> {
    let Some(string) = JsonString::of(raw) else {
        return Err(RecordError::shape(pointer, "expected a string of base64"));
    };
    let text = decode(string, pointer.clone())?;
    match decode_base64(&text) {
        Some(bytes) => Ok(Cow::Owned(bytes)),
        None => Err(RecordError::new(Code::InvalidRequest, pointer, "not valid base64")),
    }
}

/// Reads a key or a header's value: null, a string, or `{"base64":"..."}`.
fn text_or_base64<'a>(
    raw: &'a str,
    pointer: impl Into<Cow<'static, str>> + Clone,
) -> Result<Option<Cow<'a, [u8]>>, RecordError> {
    if raw == "null" {
        return Ok(None);
    }
    if let Some(string) = JsonString::of(raw) {
        return decode(string, pointer).map(|text| Some(bytes_of(text)));
    }
    match only_member(raw, "base64") {
        Some(inner) => base64(inner, pointer.into().into_owned() + "/base64").map(Some),
        None => Err(RecordError::shape(pointer, "expected null, a string or {\"base64\":\"...\"}")),
    }
}

/// Returns the value of an object's member if that is the only one. `raw` was scanned before.
fn only_member<'a>(raw: &'a str, name: &str) -> Option<&'a str> {
    let mut scanner = Scanner::new(raw);
    scanner.expect(b'{', "").ok()?;
    let found = scanner.name().ok()?.decode()?;
    let value = scanner.value().ok()?;
    scanner.expect(b'}', "").ok()?;
    (found == name).then_some(value)
}

/// Reads `[["name", H], ...]`. `raw` was scanned before, so its syntax is right.
fn headers(raw: &str) -> Result<Vec<NewHeader<'_>>, RecordError> {
    let Some(pairs) = elements(raw) else {
        return Err(RecordError::shape("/headers", "expected an array of [name, value]"));
    };
    let mut headers = Vec::with_capacity(pairs.len());
    for (index, pair) in pairs.into_iter().enumerate() {
        let refuse = |part: &str, detail: &'static str| {
            RecordError::shape(format!("/headers/{index}{part}"), detail)
        };
        let pair = elements(pair).unwrap_or_default();
        let [name, value] = pair.as_slice() else {
            return Err(refuse("", "expected [name, value]"));
        };
        let Some(name) = JsonString::of(name) else {
            return Err(refuse("/0", "expected a string"));
        };
        headers.push(NewHeader {
            name: decode(name, format!("/headers/{index}/0"))?,
            value: text_or_base64(value, format!("/headers/{index}/1"))?,
        });
    }
    Ok(headers)
}

/// Splits an array, `None` when it is something else. `raw` was scanned before.
fn elements(raw: &str) -> Option<Vec<&str>> {
    let mut scanner = Scanner::new(raw);
    scanner.expect(b'[', "").ok()?;
    let mut elements = Vec::new();
    if scanner.skip_if(b']') {
        return Some(elements);
    }
    loop {
        elements.push(scanner.value().ok()?);
        if !scanner.skip_if(b',') {
            return Some(elements);
        }
    }
}

fn partition(raw: &str) -> Result<PartitionId, RecordError> {
    integer(raw)
        .and_then(PartitionId::new)
        .ok_or_else(|| RecordError::shape("/partition", "expected an integer from 0 to 2147483647"))
}

fn timestamp(raw: &str) -> Result<Timestamp, RecordError> {
    integer(raw).map(Timestamp::from_millis).ok_or_else(|| {
        RecordError::shape("/timestamp", "expected an integer: milliseconds since the epoch")
    })
}

/// Reads a JSON number without fraction or exponent. `raw` was scanned before, so that what
/// `FromStr` takes beyond JSON (`+1`) cannot occur.
fn integer<N: std::str::FromStr>(raw: &str) -> Option<N> {
    raw.parse().ok()
}

/// Returns the JSON pointer (RFC 6901) to a member.
pub(crate) fn pointer_to(name: &str) -> String {
    format!("/{}", name.replace('~', "~0").replace('/', "~1"))
}

const _: () = assert!(NESTING_MAX > 4, "headers are nested three deep");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn one(body: &str) -> Result<ProduceRecord<'_>, ApiError> {
        let parsed = parse_body(body.as_bytes(), 10)?;
        assert_eq!(parsed.form, Form::One);
        Ok(parsed.records.into_iter().next().unwrap())
    }

    fn refused(body: &str) -> (Code, String) {
        let error = parse_body(body.as_bytes(), 3).unwrap_err();
        let problem = serde_json::to_value(error.problem(None)).unwrap();
        let pointer = problem["errors"][0]["pointer"].as_str().unwrap_or("none");
        (error.code(), pointer.to_owned())
    }

    #[test]
    fn the_three_forms_hold_the_same_records() {
        let record =
            r#"{"key":"k","value":{"a":1},"headers":[["h","x"]],"partition":2,"timestamp":5}"#;
        let expected = ProduceRecord {
            partition: PartitionId::new(2),
            timestamp: Some(Timestamp::from_millis(5)),
            key: Some(Cow::Borrowed(b"k")),
            value: Some(Cow::Borrowed(br#"{"a":1}"#)),
            headers: vec![NewHeader { name: "h".into(), value: Some(Cow::Borrowed(b"x")) }],
        };
        assert_eq!(one(record).unwrap(), expected);
        assert_eq!(parse_line(record.as_bytes()).unwrap(), expected);
        for (body, form) in [
            (format!("[{record},{record}]"), Form::Array),
            (format!(" {{ \"records\" : [ {record} , {record} ] }} "), Form::Records),
        ] {
            let parsed = parse_body(body.as_bytes(), 2).unwrap();
            assert_eq!(parsed.form, form);
            assert_eq!(parsed.records, [expected.clone(), expected.clone()]);
        }
    }

    #[test]
    fn values_are_stored_byte_for_byte() {
        let value = |body| one(body).unwrap().value.map(Cow::into_owned);
        let stored = |text: &str| Some(text.as_bytes().to_vec());
        assert_eq!(
            value("{\"value\": \n [1, 2.50 ,\"\\u0041\"]\t}"),
            stored("[1, 2.50 ,\"\\u0041\"]")
        );
        assert_eq!(value(r#"{"value":1e999}"#), stored("1e999"));
        assert_eq!(value(r#"{"value":"\ud800"}"#), stored(r#""\ud800""#));
        assert_eq!(value(r#"{"value":null}"#), None);
        assert_eq!(value(r#"{"key":"k"}"#), None);
        assert_eq!(value(r#"{"value":"a\n","encoding":"text"}"#), stored("a\n"));
        assert_eq!(value(r#"{"encoding":"text","value":"null"}"#), stored("null"));
        assert_eq!(value(r#"{"encoding":"base64","value":"AP8="}"#), Some(vec![0, 255]));
        assert_eq!(value(r#"{"encoding":"base64","value":null}"#), None);
    }

    #[test]
    fn keys_are_null_text_or_bytes() {
        let key = |body| one(body).unwrap().key.map(Cow::into_owned);
        assert_eq!(key(r#"{"key":"user123"}"#).unwrap(), b"user123");
        assert_eq!(key(r#"{"key":""}"#).unwrap(), b"");
        assert_eq!(key(r#"{"key":"\u00e9"}"#).unwrap(), "\u{e9}".as_bytes());
        assert_eq!(key(r#"{"key":{"base64":"/w=="}}"#).unwrap(), [255]);
        assert_eq!(key(r#"{"key":null,"value":1}"#), None);
        assert_eq!(key(r#"{"k\u0065y":"x"}"#).unwrap(), b"x");
    }

    #[test]
    fn what_was_read_can_be_written_back() {
        let out = concat!(
            r#"{"partition":3,"offset":17,"timestamp":1,"key":null,"value":"x","#,
            r#""headers":[["n",null],["n",{"base64":"gA=="}]],"encoding":"text","topic":"t"}"#
        );
        let record = one(out).unwrap();
        assert_eq!(record.value.as_deref(), Some(b"x".as_slice()));
        assert_eq!(record.headers[0].value, None);
        assert_eq!(record.headers[1].value.as_deref(), Some([0x80].as_slice()));
    }

    /// Body, code, pointer of the first fault.
    const REFUSED: &[(&str, Code, &str)] = &[
        ("", Code::InvalidRequest, "none"),
        ("{\"value\":1", Code::InvalidRequest, "none"),
        ("{\"value\":01}", Code::InvalidRequest, "none"),
        ("{\"value\":1}x", Code::InvalidRequest, "none"),
        ("{\"value\":{]}", Code::InvalidRequest, "none"),
        // The wrong shape comes first, yet the body is not JSON at all.
        ("[1,{\"value\":}]", Code::InvalidRequest, "none"),
        ("7", Code::InvalidBody, ""),
        ("{}", Code::InvalidBody, ""),
        ("[]", Code::InvalidBody, ""),
        ("{\"records\":[]}", Code::InvalidBody, "/records"),
        ("{\"records\":{}}", Code::InvalidBody, "/records"),
        ("{\"records\":[{\"value\":1}],\"x\":1}", Code::InvalidBody, "/x"),
        ("{\"records\":[{\"value\":1}],\"records\":[]}", Code::InvalidBody, "/records"),
        ("{\"partition\":1}", Code::InvalidBody, ""),
        ("{\"value\":1,\"val/ue\":2}", Code::InvalidBody, "/val~1ue"),
        ("[{\"value\":1},{\"value\":1,\"value\":2}]", Code::InvalidBody, "/1/value"),
        ("{\"records\":[{\"value\":1},3]}", Code::InvalidBody, "/records/1"),
        ("{\"value\":1,\"key\":7}", Code::InvalidBody, "/key"),
        ("{\"value\":1,\"key\":{\"base64\":\"A\",\"x\":1}}", Code::InvalidBody, "/key"),
        ("{\"value\":1,\"key\":{\"base64\":\"A\"}}", Code::InvalidRequest, "/key/base64"),
        ("{\"value\":1,\"key\":\"\\ud800\"}", Code::InvalidBody, "/key"),
        ("{\"value\":1,\"partition\":-1}", Code::InvalidBody, "/partition"),
        ("{\"value\":1,\"partition\":2147483648}", Code::InvalidBody, "/partition"),
        ("{\"value\":1,\"partition\":1.0}", Code::InvalidBody, "/partition"),
        ("{\"value\":1,\"timestamp\":\"now\"}", Code::InvalidBody, "/timestamp"),
        ("{\"value\":1,\"timestamp\":9223372036854775808}", Code::InvalidBody, "/timestamp"),
        ("{\"value\":1,\"encoding\":\"text\"}", Code::InvalidBody, "/value"),
        ("{\"value\":\"*\",\"encoding\":\"base64\"}", Code::InvalidRequest, "/value"),
        ("{\"value\":\"x\",\"encoding\":\"json\"}", Code::InvalidBody, "/encoding"),
        ("{\"value\":1,\"headers\":{}}", Code::InvalidBody, "/headers"),
        ("{\"value\":1,\"headers\":[[\"a\"]]}", Code::InvalidBody, "/headers/0"),
        ("{\"value\":1,\"headers\":[[\"a\",\"b\"],[1,\"b\"]]}", Code::InvalidBody, "/headers/1/0"),
        ("{\"value\":1,\"headers\":[[\"a\",1]]}", Code::InvalidBody, "/headers/0/1"),
        ("[{\"value\":1},{\"value\":1},{\"value\":1},{\"value\":1}]", Code::TooLarge, "none"),
    ];

    #[test]
    fn malformed_json_and_wrong_shapes_are_told_apart() {
        for (body, code, pointer) in REFUSED {
            assert_eq!(refused(body), (*code, (*pointer).to_owned()), "{body}");
        }
    }

    #[test]
    fn every_faulty_record_is_pointed_at() {
        let error = parse_body(br#"[{"value":1},{"x":1},{"value":1,"key":1}]"#, 10).unwrap_err();
        let problem = serde_json::to_value(error.problem(None)).unwrap();
        let pointers: Vec<_> =
            problem["errors"].as_array().unwrap().iter().map(|fault| &fault["pointer"]).collect();
        assert_eq!(pointers, ["/1/x", "/2/key"]);
    }

    #[test]
    fn a_body_of_faults_is_answered_by_a_bounded_list() {
        let body = format!("[{}1]", "1,".repeat(5000));
        let error = parse_body(body.as_bytes(), 10_000).unwrap_err();
        let problem = serde_json::to_value(error.problem(None)).unwrap();
        assert_eq!(problem["errors"].as_array().unwrap().len(), FAULTS_MAX);
    }

    #[test]
    fn a_line_is_one_record() {
        assert!(parse_line(b" {\"value\":1} \r").is_ok());
        assert_eq!(parse_line(b"[{\"value\":1}]").unwrap_err().code(), Code::InvalidBody);
        assert_eq!(parse_line(b"{\"value\":1}{}").unwrap_err().code(), Code::InvalidRequest);
        assert_eq!(parse_line(b"{\"value\":\"\xff\"}").unwrap_err().code(), Code::InvalidRequest);
        assert_eq!(parse_line(b"{\"records\":[]}").unwrap_err().code(), Code::InvalidBody);
    }

    proptest! {
        #[test]
        fn records_survive_the_way_in(
            key in any::<Option<String>>(),
            text in any::<String>(),
            headers in proptest::collection::vec(any::<(String, Option<String>)>(), 0..3),
            partition in proptest::option::of(0..i32::MAX),
            timestamp in any::<Option<i64>>(),
        ) {
            let pairs: Vec<Value> = headers.iter().map(|(n, v)| json!([n, v])).collect();
            let body = json!({
                "key": key, "value": {"v": text}, "headers": pairs, "partition": partition,
                "timestamp": timestamp,
            })
            .to_string();
            let record = one(&body).unwrap();
            let stored = json!({"v": text}).to_string();
            prop_assert_eq!(record.value.as_deref(), Some(stored.as_bytes()));
            prop_assert_eq!(record.key.as_deref(), key.as_deref().map(str::as_bytes));
            prop_assert_eq!(record.timestamp.map(Timestamp::as_millis), timestamp);
            prop_assert_eq!(
                record.partition.map(PartitionId::get),
                partition.and_then(|p| u32::try_from(p).ok())
            );
            let got: Vec<_> = record
                .headers
                .iter()
                .map(|h| (h.name.to_string(), h.value.as_ref().map(|v| v.to_vec())))
                .collect();
            let sent: Vec<_> =
                headers.into_iter().map(|(n, v)| (n, v.map(String::into_bytes))).collect();
            prop_assert_eq!(got, sent);
        }

        #[test]
        fn any_bytes_parse_or_are_refused(bytes in any::<Vec<u8>>()) {
            let _ = parse_body(&bytes, 10);
            let _ = parse_line(&bytes);
        }
    }
}
