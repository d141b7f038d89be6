//! Records as clients of the REST Proxy receive them, written straight into the answer.
//!
//! `{"topic","key","value","partition","offset","timestamp"}`, then `headers` when there are any
//! and `key_encoding` or `value_encoding` when base64 stands where JSON or text was asked for: any
//! bytes must be servable. A stored value that is JSON goes out as it is.

use crate::api::json::scan::is_json;
use crate::api::json::text::{push_base64, push_string};
use crate::api::v2::media::Embedded;
use crate::record::Record;
use crate::types::PartitionId;

/// Writes the records of one topic.
#[derive(Debug)]
pub(super) struct Writer {
    format: Embedded,
    /// `{"topic":"<name>","key":`, which all records of the topic begin with.
    head: Vec<u8>,
}

impl Writer {
    /// Makes a writer for a topic.
    pub(super) fn new(topic: &str, format: Embedded) -> Self {
        let mut head = b"{\"topic\":".to_vec();
        push_string(&mut head, topic);
        head.extend_from_slice(b",\"key\":");
        Self { format, head }
    }

    /// Appends a record as a JSON object.
    pub(super) fn push(&self, out: &mut Vec<u8>, partition: PartitionId, record: &Record<'_>) {
        let mut number = itoa::Buffer::new();
        let bytes = record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len);
        out.reserve(bytes + self.head.len() + 128);
        out.extend_from_slice(&self.head);
        let key = self.push_bytes(out, record.key);
        out.extend_from_slice(b",\"value\":");
        let value = self.push_bytes(out, record.value);
        out.extend_from_slice(b",\"partition\":");
        out.extend_from_slice(number.format(partition.get()).as_bytes());
        out.extend_from_slice(b",\"offset\":");
        out.extend_from_slice(number.format(record.offset.get()).as_bytes());
        out.extend_from_slice(b",\"timestamp\":");
        out.extend_from_slice(number.format(record.timestamp.as_millis()).as_bytes());
        if !record.headers.is_empty() {
            push_headers(out, record);
        }
        if key == Stands::ForOtherBytes {
            out.extend_from_slice(b",\"key_encoding\":\"base64\"");
        }
        if value == Stands::ForOtherBytes {
            out.extend_from_slice(b",\"value_encoding\":\"base64\"");
        }
        out.push(b'}');
    }

    fn push_bytes(&self, out: &mut Vec<u8>, bytes: Option<&[u8]>) -> Stands {
        let Some(bytes) = bytes else {
            out.extend_from_slice(b"null");
            return Stands::ForItself;
        };
        let text = match self.format {
            Embedded::Json if is_json(bytes) => {
                out.extend_from_slice(bytes);
                return Stands::ForItself;
            }
            Embedded::Json | Embedded::Text => simdutf8::basic::from_utf8(bytes).ok(),
            Embedded::Binary | Embedded::Schema => {
                push_base64(out, bytes);
                return Stands::ForItself;
            }
        };
        match text {
            Some(text) => push_string(out, text),
            None => {
                push_base64(out, bytes);
                return Stands::ForOtherBytes;
            }
        }
        Stands::ForItself
    }
}

/// What a written key or value stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stands {
    /// What the format says.
    ForItself,
    /// Bytes that the format cannot show: it is their base64.
    ForOtherBytes,
}

fn push_headers(out: &mut Vec<u8>, record: &Record<'_>) {
    for (index, (name, value)) in record.headers.iter().enumerate() {
        let start: &[u8] = if index == 0 { b",\"headers\":[{\"key\":" } else { b",{\"key\":" };
        out.extend_from_slice(start);
        push_string(out, name);
        out.extend_from_slice(b",\"value\":");
        match value {
            Some(value) => push_base64(out, value),
            None => out.extend_from_slice(b"null"),
        }
        out.push(b'}');
    }
    out.push(b']');
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::record::Headers;
    use crate::types::{Offset, Timestamp};

    fn written(key: Option<&[u8]>, value: Option<&[u8]>, format: Embedded) -> String {
        let record = Record {
            offset: Offset::new(3).unwrap(),
            timestamp: Timestamp::from_millis(1_764_000_000_000),
            key,
            value,
            headers: Headers::default(),
        };
        let mut out = Vec::new();
        Writer::new("t", format).push(&mut out, PartitionId::ZERO, &record);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_record_has_the_proxys_members_and_its_value_as_it_is() {
        assert_eq!(
            written(Some(b"\"k\""), Some(b"{\"n\": 1.0, \"n\": 2}"), Embedded::Json),
            "{\"topic\":\"t\",\"key\":\"k\",\"value\":{\"n\": 1.0, \"n\": 2},\"partition\":0,\
             \"offset\":3,\"timestamp\":1764000000000}"
        );
    }

    #[test]
    fn any_bytes_can_be_served_in_every_format() {
        use Embedded::{Binary, Json, Text};
        let cases: [(&[u8], Embedded, Value, bool); 8] = [
            (b"[1]", Json, json!([1]), false),
            (b"plain", Json, json!("plain"), false),
            (b"", Json, json!(""), false),
            (b"\xff", Json, json!("/w=="), true),
            (b"plain", Text, json!("plain"), false),
            (b"\xff", Text, json!("/w=="), true),
            (b"[1]", Binary, json!("WzFd"), false),
            (b"\xff", Binary, json!("/w=="), false),
        ];
        for (bytes, format, expected, marked) in cases {
            let record: Value = serde_json::from_str(&written(None, Some(bytes), format)).unwrap();
            assert_eq!(record["value"], expected, "{bytes:?} {format:?}");
            assert_eq!(record["key"], Value::Null);
            assert_eq!(record.get("value_encoding").is_some(), marked, "{bytes:?} {format:?}");
            let record: Value = serde_json::from_str(&written(Some(bytes), None, format)).unwrap();
            assert_eq!(record["key"], expected, "{bytes:?} {format:?}");
            assert_eq!(record.get("key_encoding").is_some(), marked, "{bytes:?} {format:?}");
        }
    }
}
