//! Records as clients receive them, written straight into the answer.
//!
//! The form of API documentation, section "A record": six members always, `encoding` where it
//! applies. A stored value that is JSON goes out as it is.

use crate::api::json::scan::is_json;
use crate::api::json::text::{push_base64, push_string, push_text_or_base64};
use crate::record::Record;
use crate::types::PartitionId;

/// How values are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) enum Format {
    /// JSON as it is, other text as a string, other bytes as base64.
    #[default]
    Json,
    /// A string, base64 when it is not UTF-8.
    Text,
    /// Always base64.
    Base64,
    /// No values, only their sizes.
    Meta,
}

/// Whether line breaks between the tokens of a stored value may stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lines {
    /// They may: the answer is one JSON document.
    Any,
    /// They become spaces: the answer has one record, or one event's data, on a line.
    One,
}

/// How records are written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    /// How values are shown.
    pub(crate) format: Format,
    /// Whether a record keeps to one line.
    pub(crate) lines: Lines,
}

/// Appends a record as a JSON object.
pub(crate) fn push_record(
    out: &mut Vec<u8>,
    partition: PartitionId,
    record: &Record<'_>,
    style: Style,
) {
    let mut number = itoa::Buffer::new();
    let value_bytes = match style.format {
        Format::Meta => 0,
        Format::Json | Format::Text | Format::Base64 => record.value.map_or(0, <[u8]>::len),
    };
    out.reserve(value_bytes + 128);
    out.extend_from_slice(b"{\"partition\":");
    out.extend_from_slice(number.format(partition.get()).as_bytes());
    out.extend_from_slice(b",\"offset\":");
    out.extend_from_slice(number.format(record.offset.get()).as_bytes());
    out.extend_from_slice(b",\"timestamp\":");
    out.extend_from_slice(number.format(record.timestamp.as_millis()).as_bytes());
    out.extend_from_slice(b",\"key\":");
    push_nullable(out, record.key);
    let encoding = push_value(out, record.value, style);
    out.extend_from_slice(b",\"headers\":[");
    if !record.headers.is_empty() {
        push_headers(out, record);
    }
    out.extend_from_slice(match encoding {
        None => b"]}".as_slice(),
        Some(Encoding::Text) => b"],\"encoding\":\"text\"}",
        Some(Encoding::Base64) => b"],\"encoding\":\"base64\"}",
    });
}

/// What a reader must know to get a value's bytes back.
enum Encoding {
    Text,
    Base64,
}

/// Appends a key or a header's value.
pub(crate) fn push_nullable(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => out.extend_from_slice(b"null"),
        Some(bytes) => push_text_or_base64(out, bytes),
    }
}

/// Appends a record's headers, without the list's brackets.
pub(crate) fn push_headers(out: &mut Vec<u8>, record: &Record<'_>) {
    for (index, (name, value)) in record.headers.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b"[".as_slice() } else { b",[" });
        push_string(out, name);
        out.push(b',');
        push_nullable(out, value);
        out.push(b']');
    }
}

/// Appends the member that shows the value.
fn push_value(out: &mut Vec<u8>, value: Option<&[u8]>, style: Style) -> Option<Encoding> {
    if style.format == Format::Meta {
        out.extend_from_slice(b",\"value_bytes\":");
        match value {
            None => out.extend_from_slice(b"null"),
            Some(value) => {
                out.extend_from_slice(itoa::Buffer::new().format(value.len()).as_bytes());
            }
        }
        return None;
    }
    out.extend_from_slice(b",\"value\":");
    let Some(value) = value else {
        out.extend_from_slice(b"null");
        return None;
    };
    if style.format == Format::Json && is_json(value) && value.trim_ascii() != b"null" {
        push_json(out, value, style.lines);
        return None;
    }
    if style.format != Format::Base64
        && let Ok(text) = simdutf8::basic::from_utf8(value)
    {
        push_string(out, text);
        return (style.format == Format::Json).then_some(Encoding::Text);
    }
    push_base64(out, value);
    Some(Encoding::Base64)
}

/// Appends a value that is JSON. A raw CR or LF in it can only stand between tokens.
fn push_json(out: &mut Vec<u8>, value: &[u8], lines: Lines) {
    if lines == Lines::Any || memchr::memchr2(b'\n', b'\r', value).is_none() {
        out.extend_from_slice(value);
        return;
    }
    let spaced = |byte: &u8| {
        if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }
    };
    out.extend(value.iter().map(spaced));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::api::json::records_in::parse_line;
    use crate::record::Headers;
    use crate::types::{Offset, Timestamp};

    fn written(key: Option<&[u8]>, value: Option<&[u8]>, style: Style) -> String {
        let record = Record {
            offset: Offset::new(17).unwrap(),
            timestamp: Timestamp::from_millis(1_764_000_000_000),
            key,
            value,
            headers: Headers::default(),
        };
        let mut out = Vec::new();
        push_record(&mut out, PartitionId::new(3).unwrap(), &record, style);
        String::from_utf8(out).unwrap()
    }

    fn value(value: Option<&[u8]>, format: Format) -> Value {
        let text = written(None, value, Style { format, lines: Lines::One });
        let mut object = serde_json::from_str::<Value>(&text).unwrap();
        for member in ["partition", "offset", "timestamp", "key", "headers"] {
            object.as_object_mut().unwrap().remove(member).unwrap();
        }
        object
    }

    #[test]
    fn a_record_has_its_six_members_in_order() {
        let style = Style { format: Format::Json, lines: Lines::Any };
        assert_eq!(
            written(Some(b"user123"), Some(b"{\"any\": \"JSON\"}"), style),
            "{\"partition\":3,\"offset\":17,\"timestamp\":1764000000000,\"key\":\"user123\",\
             \"value\":{\"any\": \"JSON\"},\"headers\":[]}"
        );
        assert!(written(Some(b"\xff"), None, style).contains("\"key\":{\"base64\":\"/w==\"}"));
    }

    #[test]
    fn values_follow_the_table_of_formats() {
        use Format::{Base64, Json, Meta, Text};
        let cases: [(&[u8], Format, Value); 13] = [
            (b"[1]", Json, json!({"value": [1]})),
            (b"plain", Json, json!({"value": "plain", "encoding": "text"})),
            (b"null", Json, json!({"value": "null", "encoding": "text"})),
            (b" null\n", Json, json!({"value": " null\n", "encoding": "text"})),
            (b"", Json, json!({"value": "", "encoding": "text"})),
            (b"\"\xff\"", Json, json!({"value": "Iv8i", "encoding": "base64"})),
            (b"\xef\xbb\xbf1", Json, json!({"value": "\u{feff}1", "encoding": "text"})),
            (b"[1]", Text, json!({"value": "[1]"})),
            (b"\xff", Text, json!({"value": "/w==", "encoding": "base64"})),
            (b"[1]", Base64, json!({"value": "WzFd", "encoding": "base64"})),
            (b"[1]", Meta, json!({"value_bytes": 3})),
            (b"\xff", Meta, json!({"value_bytes": 1})),
            (b"", Base64, json!({"value": "", "encoding": "base64"})),
        ];
        for (bytes, format, expected) in cases {
            assert_eq!(value(Some(bytes), format), expected, "{bytes:?} {format:?}");
        }
        for format in [Json, Text, Base64] {
            assert_eq!(value(None, format), json!({"value": null}));
        }
        assert_eq!(value(None, Meta), json!({"value_bytes": null}));
    }

    #[test]
    fn line_breaks_between_tokens_become_spaces_only_where_lines_matter() {
        let stored: &[u8] = b"{\r\n \"a\": \"\\n\"\n}";
        let one = written(None, Some(stored), Style { format: Format::Json, lines: Lines::One });
        assert!(one.contains("{   \"a\": \"\\n\" }"), "{one}");
        let any = written(None, Some(stored), Style { format: Format::Json, lines: Lines::Any });
        assert!(any.contains("{\r\n \"a\": \"\\n\"\n}"), "{any}");
    }

    proptest! {
        #[test]
        fn every_record_keeps_to_one_line_and_reads_back(
            key in any::<Option<Vec<u8>>>(),
            value in prop_oneof![
                any::<Option<Vec<u8>>>(),
                any::<String>().prop_map(|text| Some(text.into_bytes())),
                any::<String>().prop_map(|text| json!({"a": [text]}).to_string())
                    .prop_map(|text| Some(text.into_bytes())),
                "[\\[\\]{}:,\"a0 nul]{0,8}".prop_map(|text| Some(text.into_bytes())),
            ],
            base64 in any::<bool>(),
        ) {
            let format = if base64 { Format::Base64 } else { Format::Json };
            let style = Style { format, lines: Lines::One };
            let line = written(key.as_deref(), value.as_deref(), style);
            prop_assert!(!line.contains(['\n', '\r']));
            let back = parse_line(line.as_bytes()).unwrap();
            prop_assert_eq!(back.key.as_deref(), key.as_deref());
            // Whitespace around a JSON value is the one thing that a round trip may lose.
            prop_assert_eq!(
                back.value.as_deref().map(<[u8]>::trim_ascii),
                value.as_deref().map(<[u8]>::trim_ascii)
            );
        }
    }
}
