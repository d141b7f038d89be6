//! Records in the positional form: `[offset, timestamp, key, value, headers]` and, only when it is
//! needed, a sixth element `{"encoding","size","truncated"}`.
//!
//! The rules for keys, values and headers are those of the object form; what is special here is
//! that a long value can be cut, for views that show no more of it anyway.

use crate::api::json::records_out::{Format, push_headers, push_nullable};
use crate::api::json::scan::is_json;
use crate::api::json::text::{push_base64, push_string};
use crate::record::Record;

/// How records are written. Subscriptions with the same style share frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Style {
    /// How values are shown.
    pub(super) format: Format,
    /// Bytes of a value that are shown; longer ones are cut.
    pub(super) value_bytes_max: usize,
}

/// What a reader must know of a value beside what it is shown.
#[derive(Default)]
struct Note {
    encoding: Option<&'static [u8]>,
    /// Bytes of the whole value, when they are not all shown.
    size: Option<usize>,
    truncated: bool,
}

/// Appends a record.
pub(super) fn push_record(out: &mut Vec<u8>, record: &Record<'_>, style: Style) {
    let mut number = itoa::Buffer::new();
    out.push(b'[');
    out.extend_from_slice(number.format(record.offset.get()).as_bytes());
    out.push(b',');
    out.extend_from_slice(number.format(record.timestamp.as_millis()).as_bytes());
    out.push(b',');
    push_nullable(out, record.key);
    out.push(b',');
    let note = push_value(out, record.value, style);
    out.extend_from_slice(b",[");
    if !record.headers.is_empty() {
        push_headers(out, record);
    }
    out.push(b']');
    push_note(out, &note);
    out.push(b']');
}

fn push_value(out: &mut Vec<u8>, value: Option<&[u8]>, style: Style) -> Note {
    let Some(value) = value else {
        out.extend_from_slice(b"null");
        return Note::default();
    };
    if style.format == Format::Meta {
        out.extend_from_slice(b"null");
        return Note { size: Some(value.len()), ..Note::default() };
    }
    let truncated = value.len() > style.value_bytes_max;
    let size = truncated.then_some(value.len());
    if !truncated && style.format == Format::Json && is_json(value) && value.trim_ascii() != b"null"
    {
        out.extend_from_slice(value);
        return Note::default();
    }
    if style.format != Format::Base64
        && let Ok(text) = simdutf8::basic::from_utf8(value)
    {
        let shown = text.floor_char_boundary(style.value_bytes_max);
        push_string(out, text.get(..shown).unwrap_or_default());
        let encoding = (style.format == Format::Json).then_some(b"\"text\"".as_slice());
        return Note { encoding, size, truncated };
    }
    push_base64(out, value.get(..style.value_bytes_max).unwrap_or(value));
    Note { encoding: Some(b"\"base64\""), size, truncated }
}

fn push_note(out: &mut Vec<u8>, note: &Note) {
    let mut before: &[u8] = b",{";
    if let Some(encoding) = note.encoding {
        out.extend_from_slice(before);
        out.extend_from_slice(b"\"encoding\":");
        out.extend_from_slice(encoding);
        before = b",";
    }
    if let Some(size) = note.size {
        out.extend_from_slice(before);
        out.extend_from_slice(b"\"size\":");
        out.extend_from_slice(itoa::Buffer::new().format(size).as_bytes());
        before = b",";
    }
    if note.truncated {
        out.extend_from_slice(before);
        out.extend_from_slice(b"\"truncated\":true");
        before = b",";
    }
    if before == b"," {
        out.push(b'}');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::record::Headers;
    use crate::types::{Offset, Timestamp};

    fn shown(value: Option<&[u8]>, format: Format, value_bytes_max: usize) -> Value {
        let record = Record {
            offset: Offset::new(17).unwrap(),
            timestamp: Timestamp::from_millis(1_764_000_000_000),
            key: Some(b"k"),
            value,
            headers: Headers::default(),
        };
        let mut out = Vec::new();
        push_record(&mut out, &record, Style { format, value_bytes_max });
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn the_sixth_element_is_there_only_when_it_is_needed() {
        use Format::{Base64, Json, Meta, Text};
        let cases: [(Option<&[u8]>, Format, Value, Value); 14] = [
            (Some(b"[1]"), Json, json!([1]), json!(null)),
            (Some(b"plain"), Json, json!("plain"), json!({"encoding": "text"})),
            (Some(b"null"), Json, json!("null"), json!({"encoding": "text"})),
            (Some(b"\xff"), Json, json!("/w=="), json!({"encoding": "base64"})),
            (None, Json, json!(null), json!(null)),
            (Some(b"[1]"), Text, json!("[1]"), json!(null)),
            (Some(b"\xff"), Text, json!("/w=="), json!({"encoding": "base64"})),
            (Some(b"[1]"), Base64, json!("WzFd"), json!({"encoding": "base64"})),
            (Some(b"[1]"), Meta, json!(null), json!({"size": 3})),
            (None, Meta, json!(null), json!(null)),
            (Some(b"123456789"), Text, json!("12345678"), json!({"size": 9, "truncated": true})),
            (
                Some(b"123456789"),
                Json,
                json!("12345678"),
                json!({"encoding": "text", "size": 9, "truncated": true}),
            ),
            (
                Some(b"\xff23456789"),
                Text,
                json!("/zIzNDU2Nzg="),
                json!({"encoding": "base64", "size": 9, "truncated": true}),
            ),
            (
                "1234567\u{e4}".as_bytes().into(),
                Text,
                json!("1234567"),
                json!({"size": 9, "truncated": true}),
            ),
        ];
        for (value, format, expected, note) in cases {
            let mut record = json!([17, 1_764_000_000_000_i64, "k", expected, []]);
            if !note.is_null() {
                record.as_array_mut().unwrap().push(note);
            }
            assert_eq!(shown(value, format, 8), record, "{value:?} {format:?}");
        }
    }

    proptest! {
        #[test]
        fn any_value_is_shown_as_json(
            value in any::<Option<Vec<u8>>>(),
            text in any::<Option<String>>(),
            format in prop_oneof![
                Just(Format::Json), Just(Format::Text), Just(Format::Base64), Just(Format::Meta),
            ],
            value_bytes_max in 0usize..20,
        ) {
            let value = text.map(String::into_bytes).or(value);
            let record = shown(value.as_deref(), format, value_bytes_max);
            prop_assert!((5..=6).contains(&record.as_array().unwrap().len()));
        }
    }
}
