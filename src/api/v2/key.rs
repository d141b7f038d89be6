//! The bytes of a JSON key: the parsed key, serialised compactly.
//!
//! Confluent's proxy parses a key and serialises it again, so two spellings of one key must become
//! the same bytes here too: they meet in one partition. White space between tokens goes, escapes in
//! strings become what a serialiser writes, the order of members and the text of numbers stay.

use std::borrow::Cow;

use crate::api::json::scan::JsonString;

/// Returns the compact form of `json`, which must be one valid JSON text without outer white space
/// (as `serde_json::value::RawValue` holds it). Keys that are compact already are not copied.
///
/// `None` when a string holds half of a surrogate pair: no UTF-8 text has such a character.
pub(super) fn compact(json: &str) -> Option<Cow<'_, [u8]>> {
    let bytes = json.as_bytes();
    let is_container = matches!(bytes.first(), Some(b'{' | b'['));
    let has_escape = memchr::memchr(b'\\', bytes).is_some();
    // Strings without escapes, numbers and literals are compact as they are.
    if !is_container && !has_escape {
        return Some(Cow::Borrowed(bytes));
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = json;
    while let Some(first) = rest.as_bytes().first() {
        let (token, after) = match first {
            b'"' => rest.split_at_checked(string_length(rest.as_bytes()))?,
            b' ' | b'\t' | b'\n' | b'\r' => {
                rest = rest.trim_ascii_start();
                continue;
            }
            _ => {
                let is_edge = |b: &u8| matches!(b, b'"' | b' ' | b'\t' | b'\n' | b'\r');
                let end = rest.bytes().position(|b| is_edge(&b)).unwrap_or(rest.len());
                rest.split_at_checked(end)?
            }
        };
        if *first == b'"' && memchr::memchr(b'\\', token.as_bytes()).is_some() {
            // Not the writer of records: a key must have the short escapes (`\\b`), as Jackson has.
            serde_json::to_writer(&mut out, &JsonString::of(token)?.decode()?).ok()?;
        } else {
            out.extend_from_slice(token.as_bytes());
        }
        rest = after;
    }
    Some(Cow::Owned(out))
}

/// Length of the string literal that `bytes` start with, quotes included.
fn string_length(bytes: &[u8]) -> usize {
    let mut position = 1;
    while let Some(found) =
        bytes.get(position..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest))
    {
        position += found;
        if bytes.get(position) == Some(&b'"') {
            return position + 1;
        }
        position += 2;
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn text(json: &str) -> String {
        String::from_utf8(compact(json).unwrap().into_owned()).unwrap()
    }

    #[test]
    fn spelling_goes_and_meaning_stays() {
        for (json, compact) in [
            (r#""user123""#, r#""user123""#),
            (r#""\u0061\/\n\u00e9""#, "\"a/\\n\u{e9}\""),
            ("1.50", "1.50"),
            ("1e400", "1e400"),
            ("true", "true"),
            ("{ \"b\" : 1.0 ,\n\t\"a\":[ 1 , \"x y\" ] }", r#"{"b":1.0,"a":[1,"x y"]}"#),
            (r#"{"a":{},"b":[]}"#, r#"{"a":{},"b":[]}"#),
            (r#"{ "\u0061": "\ud83d\ude00 \" \\" }"#, "{\"a\":\"\u{1f600} \\\" \\\\\"}"),
        ] {
            assert_eq!(text(json), compact);
        }
    }

    #[test]
    fn half_of_a_surrogate_pair_is_no_key() {
        assert_eq!(compact(r#""\ud800""#), None);
        assert_eq!(compact(r#"{"a":"\udc00x"}"#), None);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((".*", inner), 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn pretty_and_compact_spellings_are_one_key(value in any_json()) {
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            prop_assert_eq!(text(&pretty), serde_json::to_string(&value).unwrap());
        }

        #[test]
        fn any_valid_json_keeps_its_meaning(value in any_json()) {
            let escaped = serde_json::to_string(&value).unwrap().replace('/', "\\/");
            let read: Value = serde_json::from_str(&text(&escaped)).unwrap();
            prop_assert_eq!(read, value);
        }
    }
}
