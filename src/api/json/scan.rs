//! A validating scanner: finds where each value of a JSON text begins and ends.
//!
//! Strings are skipped eight bytes at a time. The input is `&str`, so UTF-8 was checked once for
//! the whole body; everything else of RFC 8259 is checked here. As with
//! `serde_json::value::RawValue` a lone surrogate escape is accepted: it is only refused where the
//! text is needed (see [`JsonString::decode`]).

use std::borrow::Cow;

use crate::api::json::text;

/// Levels of arrays and objects within one value. `serde_json` and its like stop at 127 for a whole
/// document; this leaves room for the object, array and page that a value is sent in.
pub(crate) const NESTING_MAX: u32 = 120;

/// Levels that the scanner can follow at all: one bit each.
const LEVELS: u32 = u128::BITS;

const _: () = assert!(NESTING_MAX + 4 < LEVELS);

/// Where a text stops being JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed JSON at byte {at}: {expected}")]
pub(crate) struct SyntaxError {
    /// Position in bytes from the start of the text.
    pub(crate) at: usize,
    /// What should have been there.
    pub(crate) expected: &'static str,
}

/// A position in a JSON text. All methods that read a value expect to be at it or at whitespace
/// before it.
#[derive(Debug, Clone)]
pub(crate) struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

/// A string as it stands between its quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct JsonString<'a> {
    raw: &'a str,
    escaped: bool,
}

impl<'a> JsonString<'a> {
    /// Takes a string value as the scanner returned it, with its quotes; `None` for other values.
    pub(crate) fn of(value: &'a str) -> Option<Self> {
        let raw = value.strip_prefix('"')?.strip_suffix('"')?;
        Some(Self { raw, escaped: memchr::memchr(b'\\', raw.as_bytes()).is_some() })
    }

    /// Returns the text, without a copy unless it has escapes; `None` when an escape is a lone
    /// surrogate, which no text can hold.
    pub(crate) fn decode(self) -> Option<Cow<'a, str>> {
        if self.escaped { text::unescape(self.raw).map(Cow::Owned) } else { Some(self.raw.into()) }
    }
}

impl<'a> Scanner<'a> {
    /// Starts at the beginning of a text.
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// Returns the position, in bytes from the start.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Goes back to a position that [`Scanner::at`] returned.
    pub(crate) fn rewind(&mut self, at: usize) {
        self.at = at;
    }

    /// Skips whitespace and returns the byte there, without going past it.
    #[inline]
    pub(crate) fn peek(&mut self) -> Option<u8> {
        self.at = after_whitespace(self.text.as_bytes(), self.at);
        self.text.as_bytes().get(self.at).copied()
    }

    /// Skips whitespace and `byte`.
    pub(crate) fn expect(&mut self, byte: u8, expected: &'static str) -> Result<(), SyntaxError> {
        if self.peek() == Some(byte) {
            self.at += 1;
            return Ok(());
        }
        Err(SyntaxError { at: self.at, expected })
    }

    /// Skips whitespace and `byte` if it is there.
    #[inline]
    pub(crate) fn skip_if(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        if there {
            self.at += 1;
        }
        there
    }

    /// Skips whitespace and `text` if that is what is there. `text` must be whole tokens.
    #[inline]
    pub(crate) fn skip_text(&mut self, text: &'static [u8]) -> bool {
        self.peek();
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        let there = rest.starts_with(text);
        if there {
            self.at += text.len();
        }
        there
    }

    /// Reads the name of an object's member and the colon after it.
    pub(crate) fn name(&mut self) -> Result<JsonString<'a>, SyntaxError> {
        if self.peek() != Some(b'"') {
            return Err(SyntaxError { at: self.at, expected: "expected a member's name" });
        }
        let start = self.at;
        self.at = string_end(self.text.as_bytes(), start)?;
        let name = self.text.get(start..self.at).and_then(JsonString::of);
        self.expect(b':', "expected ':'")?;
        name.ok_or(SyntaxError { at: start, expected: "expected a member's name" })
    }

    /// Reads any value and returns its text, at most [`NESTING_MAX`] levels deep.
    pub(crate) fn value(&mut self) -> Result<&'a str, SyntaxError> {
        self.value_within(NESTING_MAX)
    }

    /// Skips a value that may be a few levels deeper: one that holds values.
    pub(crate) fn skip_container(&mut self) -> Result<(), SyntaxError> {
        self.value_within(LEVELS).map(|_| ())
    }

    /// Checks that only whitespace is left.
    pub(crate) fn end(&mut self) -> Result<(), SyntaxError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(SyntaxError { at: self.at, expected: "expected the end" }),
        }
    }

    fn value_within(&mut self, levels: u32) -> Result<&'a str, SyntaxError> {
        let bytes = self.text.as_bytes();
        let start = after_whitespace(bytes, self.at);
        self.at = value_end(bytes, start, levels)?;
        self.text.get(start..self.at).ok_or(SyntaxError { at: start, expected: "expected a value" })
    }
}

/// Returns whether bytes are one JSON value, with whitespace around it or not.
pub(crate) fn is_json(bytes: &[u8]) -> bool {
    // Most bytes that are not JSON show it at once; only the others are worth the UTF-8 check.
    let start = after_whitespace(bytes, 0);
    let plausible = matches!(
        bytes.get(start),
        Some(b'{' | b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n')
    );
    plausible
        && value_end(bytes, start, NESTING_MAX)
            .is_ok_and(|end| after_whitespace(bytes, end) == bytes.len())
        && simdutf8::basic::from_utf8(bytes).is_ok()
}

/// Returns the position of the first byte at or after `at` that a JSON string cannot hold as it is:
/// a quote, a backslash or a control character; the length when there is none.
#[inline]
pub(crate) fn find_special(bytes: &[u8], mut at: usize) -> usize {
    while let Some(chunk) = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let specials = specials(u64::from_le_bytes(*chunk));
        if specials != 0 {
            return at + (specials.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while let Some(&byte) = bytes.get(at) {
        if byte < 0x20 || byte == b'"' || byte == b'\\' {
            break;
        }
        at += 1;
    }
    at
}

/// Sets the high bit of each byte of a word that is special. Bytes above the lowest special one may
/// be marked wrongly (the subtraction borrows), so only the lowest mark may be used.
#[inline]
const fn specials(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    let quotes = word ^ (ONES * b'"' as u64);
    let backslashes = word ^ (ONES * b'\\' as u64);
    let found = (quotes.wrapping_sub(ONES) & !quotes)
        | (backslashes.wrapping_sub(ONES) & !backslashes)
        | (word.wrapping_sub(ONES * 0x20) & !word);
    found & HIGH
}

#[inline]
fn after_whitespace(bytes: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = bytes.get(at) {
        at += 1;
    }
    at
}

/// Open arrays and objects, one bit each: set for an object.
struct Nesting {
    objects: u128,
    depth: u32,
    limit: u32,
}

impl Nesting {
    fn open(&mut self, object: bool, at: usize) -> Result<(), SyntaxError> {
        if self.depth >= self.limit {
            return Err(SyntaxError { at, expected: "the value is nested too deeply" });
        }
        self.objects = (self.objects << 1) | u128::from(object);
        self.depth += 1;
        Ok(())
    }

    fn close(&mut self) {
        self.objects >>= 1;
        self.depth -= 1;
    }

    fn in_object(&self) -> bool {
        self.objects & 1 == 1
    }
}

/// Returns where the value that starts at `at` ends.
fn value_end(bytes: &[u8], mut at: usize, levels: u32) -> Result<usize, SyntaxError> {
    let mut nesting = Nesting { objects: 0, depth: 0, limit: levels };
    loop {
        match bytes.get(at) {
            Some(b'"') => at = string_end(bytes, at)?,
            Some(b'{') => {
                nesting.open(true, at)?;
                at = after_whitespace(bytes, at + 1);
                if bytes.get(at) != Some(&b'}') {
                    at = name_end(bytes, at)?;
                    continue;
                }
            }
            Some(b'[') => {
                nesting.open(false, at)?;
                at = after_whitespace(bytes, at + 1);
                if bytes.get(at) != Some(&b']') {
                    continue;
                }
            }
            Some(b'-' | b'0'..=b'9') => at = number_end(bytes, at)?,
            Some(b't') => at = word_end(bytes, at, b"true")?,
            Some(b'f') => at = word_end(bytes, at, b"false")?,
            Some(b'n') => at = word_end(bytes, at, b"null")?,
            _ => {
                return Err(SyntaxError { at, expected: "expected a value" });
            }
        }
        // A value has ended, or an empty array or object is about to.
        loop {
            if nesting.depth == 0 {
                return Ok(at);
            }
            at = after_whitespace(bytes, at);
            match (bytes.get(at), nesting.in_object()) {
                (Some(b','), true) => {
                    at = name_end(bytes, after_whitespace(bytes, at + 1))?;
                    break;
                }
                (Some(b','), false) => {
                    at = after_whitespace(bytes, at + 1);
                    break;
                }
                (Some(b'}'), true) | (Some(b']'), false) => {
                    nesting.close();
                    at += 1;
                }
                (_, true) => {
                    return Err(SyntaxError { at, expected: "expected ',' or '}'" });
                }
                (_, false) => {
                    return Err(SyntaxError { at, expected: "expected ',' or ']'" });
                }
            }
        }
    }
}

/// Returns where the value of the member begins whose name starts at `at`.
#[inline]
fn name_end(bytes: &[u8], at: usize) -> Result<usize, SyntaxError> {
    if bytes.get(at) != Some(&b'"') {
        return Err(SyntaxError { at, expected: "expected a member's name" });
    }
    let at = after_whitespace(bytes, string_end(bytes, at)?);
    if bytes.get(at) != Some(&b':') {
        return Err(SyntaxError { at, expected: "expected ':'" });
    }
    Ok(after_whitespace(bytes, at + 1))
}

/// Returns the position after the string whose opening quote is at `at`.
#[inline]
fn string_end(bytes: &[u8], at: usize) -> Result<usize, SyntaxError> {
    let mut at = at + 1;
    loop {
        at = find_special(bytes, at);
        match bytes.get(at) {
            Some(b'"') => return Ok(at + 1),
            Some(b'\\') => at = escape_end(bytes, at)?,
            Some(_) => {
                return Err(SyntaxError { at, expected: "control character in a string" });
            }
            None => {
                return Err(SyntaxError { at, expected: "the string does not end" });
            }
        }
    }
}

fn escape_end(bytes: &[u8], at: usize) -> Result<usize, SyntaxError> {
    match bytes.get(at + 1) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(at + 2),
        Some(b'u')
            if bytes
                .get(at + 2..at + 6)
                .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) =>
        {
            Ok(at + 6)
        }
        _ => Err(SyntaxError { at, expected: "no such escape" }),
    }
}

#[inline]
fn digits_end(bytes: &[u8], mut at: usize) -> usize {
    while let Some(b'0'..=b'9') = bytes.get(at) {
        at += 1;
    }
    at
}

fn number_end(bytes: &[u8], at: usize) -> Result<usize, SyntaxError> {
    let digits = |at: usize| match digits_end(bytes, at) {
        end if end > at => Ok(end),
        end => Err(SyntaxError { at: end, expected: "expected a digit" }),
    };
    let first = if bytes.get(at) == Some(&b'-') { at + 1 } else { at };
    let mut end = digits(first)?;
    if bytes.get(first) == Some(&b'0') && end > first + 1 {
        return Err(SyntaxError { at: first, expected: "a number does not start with 0" });
    }
    if bytes.get(end) == Some(&b'.') {
        end = digits(end + 1)?;
    }
    if let Some(b'e' | b'E') = bytes.get(end) {
        let signed = matches!(bytes.get(end + 1), Some(b'+' | b'-'));
        end = digits(end + 1 + usize::from(signed))?;
    }
    Ok(end)
}

fn word_end(bytes: &[u8], at: usize, word: &'static [u8]) -> Result<usize, SyntaxError> {
    if bytes.get(at..).is_some_and(|rest| rest.starts_with(word)) {
        return Ok(at + word.len());
    }
    Err(SyntaxError { at, expected: "expected a value" })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;

    /// What the scanner makes of a whole text.
    fn scan(text: &str) -> Result<&str, SyntaxError> {
        let mut scanner = Scanner::new(text);
        let value = scanner.value()?;
        scanner.end()?;
        Ok(value)
    }

    fn same_as_serde_json(text: &str) -> Result<(), TestCaseError> {
        let theirs = serde_json::from_str::<&RawValue>(text).ok().map(RawValue::get);
        prop_assert_eq!(scan(text).ok(), theirs, "{:?}", text);
        prop_assert_eq!(is_json(text.as_bytes()), theirs.is_some(), "{:?}", text);
        Ok(())
    }

    /// JSON texts with every kind of token, some whitespace and many escapes.
    fn json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("true".to_owned()),
            Just("false".to_owned()),
            "-?(0|[1-9][0-9]{0,5})(\\.[0-9]{1,3})?([eE][+-]?[0-9]{1,3})?",
            any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
            "\"[ -!#-\\[\\]-~]{0,40}(\\\\(u[0-9a-fA-F]{4}|[\"\\\\/bfnrt])){0,3}[a-z]{0,9}\"",
        ];
        leaf.prop_recursive(6, 48, 6, |inner| {
            let name = any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap());
            prop_oneof![
                (proptest::collection::vec(inner.clone(), 0..6), "[ \n\r\t]{0,2}")
                    .prop_map(|(items, gap)| format!("[{gap}{}{gap}]", items.join(","))),
                (proptest::collection::vec((name, inner), 0..6), "[ \n\r\t]{0,2}").prop_map(
                    |(members, gap)| {
                        let members: Vec<_> =
                            members.iter().map(|(n, v)| format!("{gap}{n}{gap}:{v}")).collect();
                        format!("{{{}{gap}}}", members.join(","))
                    }
                ),
            ]
        })
    }

    /// Many, and more where `PROPTEST_CASES` asks for them.
    fn many() -> ProptestConfig {
        let config = ProptestConfig::default();
        ProptestConfig { cases: config.cases.max(1500), ..config }
    }

    proptest! {
        #![proptest_config(many())]

        #[test]
        fn json_is_accepted_as_serde_json_does(text in json(), before in "[ \n\r\t]{0,2}") {
            let text = format!("{before}{text}{before}");
            prop_assert!(scan(&text).is_ok(), "{:?}", text);
            same_as_serde_json(&text)?;
        }

        #[test]
        fn mutated_json_is_judged_as_serde_json_does(
            text in json(),
            edits in proptest::collection::vec(
                (any::<prop::sample::Index>(), "[\\]\\[{}\",:\\\\0-9eE.+\\-a-z \n\u{1}\u{e9}]"),
                1..4,
            ),
            delete in any::<bool>(),
        ) {
            let mut chars: Vec<char> = text.chars().collect();
            for (index, with) in edits {
                let at = index.index(chars.len().max(1));
                if delete && !chars.is_empty() {
                    chars.remove(at);
                } else {
                    chars.splice(at..at, with.chars());
                }
            }
            same_as_serde_json(&chars.into_iter().collect::<String>())?;
        }

        #[test]
        fn any_text_is_judged_as_serde_json_does(
            text in "[\\]\\[{}\",:\\\\0-9eE.+\\-truefalsn \n\u{1f}\u{1F600}]{0,24}",
        ) {
            same_as_serde_json(&text)?;
        }

        #[test]
        fn any_bytes_are_judged_without_panic(bytes in any::<Vec<u8>>()) {
            let theirs = serde_json::from_slice::<&RawValue>(&bytes).is_ok();
            prop_assert_eq!(is_json(&bytes), theirs);
        }

        #[test]
        fn the_first_special_byte_is_found(bytes in any::<Vec<u8>>(), at in 0_usize..12) {
            let theirs = bytes
                .iter()
                .enumerate()
                .skip(at)
                .find(|(_, byte)| **byte < 0x20 || **byte == b'"' || **byte == b'\\')
                .map_or(bytes.len().max(at), |(index, _)| index);
            prop_assert_eq!(find_special(&bytes, at), theirs);
        }
    }

    #[test]
    fn tricky_texts_are_judged_as_serde_json_does() {
        for text in [
            "",
            " ",
            "nul",
            "nulll",
            "01",
            "-",
            "-0",
            "-01",
            "1.",
            ".5",
            "1e",
            "1e+",
            "1E-7",
            "1e999",
            "\"",
            "\"\\\"",
            "\"\\u12\"",
            "\"\\ud800\"",
            "\"\\ud800\\u0041\"",
            "\"\\x\"",
            "\"\t\"",
            "[",
            "]",
            "[1,]",
            "[,1]",
            "[1 2]",
            "{,}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{1:2}",
            "{\"a\":1 \"b\":2}",
            "[}",
            "{]",
            "[[]",
            "{}}",
            "\u{feff}1",
            "1 1",
            "\"\u{7f}\"",
            "\u{a0}1",
            "{\"a\":1,\"a\":2}",
            "[1]x",
            "tru",
            "truee",
            "\u{c}1",
        ] {
            same_as_serde_json(text).unwrap();
        }
    }

    #[test]
    fn nesting_is_limited_and_does_not_recurse() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(scan(&nested(120)).is_ok());
        let deep = "{\"a\":".repeat(121);
        for text in [nested(121), nested(100_000), deep] {
            assert!(scan(&text).unwrap_err().expected.contains("deeply"));
            assert!(!is_json(text.as_bytes()));
        }
    }

    #[test]
    fn strings_decode_unless_a_surrogate_is_alone() {
        let decode = |text| JsonString::of(text).unwrap().decode();
        assert!(matches!(decode("\"plain\""), Some(Cow::Borrowed("plain"))));
        assert_eq!(decode(r#""a\n\u00e9\ud83d\ude00\/""#).unwrap(), "a\n\u{e9}\u{1F600}/");
        assert_eq!(decode(r#""\ud83d""#), None);
        assert_eq!(decode(r#""\ude00\ud83d""#), None);
    }
}
