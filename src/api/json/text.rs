//! Texts as JSON strings, both ways, and base64.

use base64_simd::{Out, STANDARD};

use crate::api::json::scan::find_special;

/// Decodes the inside of a JSON string whose escapes were checked; `None` when one of them is a
/// lone surrogate.
pub(crate) fn unescape(raw: &str) -> Option<String> {
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((plain, escape)) = rest.split_once('\\') {
        text.push_str(plain);
        let mut chars = escape.chars();
        let c = match chars.next()? {
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let unit = hex4(chars.as_str())?;
                chars = chars.as_str().get(4..)?.chars();
                if (0xd800..0xdc00).contains(&unit) {
                    let low = hex4(chars.as_str().strip_prefix("\\u")?)?;
                    chars = chars.as_str().get(6..)?.chars();
                    let low = low.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
                    char::from_u32(0x1_0000 + ((unit - 0xd800) << 10) + low)?
                } else {
                    char::from_u32(unit)?
                }
            }
            other => other,
        };
        text.push(c);
        rest = chars.as_str();
    }
    text.push_str(rest);
    Some(text)
}

fn hex4(text: &str) -> Option<u32> {
    u32::from_str_radix(text.get(..4)?, 16).ok()
}

/// Decodes standard base64 with padding, and no other: a text that was cut off must not pass for
/// shorter bytes.
pub(crate) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode_to_vec(text).ok()
}

/// Appends bytes as a JSON string of their base64.
pub(crate) fn push_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    let start = out.len();
    out.resize(start + STANDARD.encoded_length(bytes.len()), 0);
    if let Some(room) = out.get_mut(start..) {
        let _ = STANDARD.encode(bytes, Out::from_slice(room));
    }
    out.push(b'"');
}

/// Appends a text as a JSON string.
pub(crate) fn push_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut at = 0;
    loop {
        let special = find_special(bytes, at);
        out.extend_from_slice(bytes.get(at..special).unwrap_or_default());
        let Some(&byte) = bytes.get(special) else {
            break;
        };
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                out.extend_from_slice(b"\\u00");
                out.push(b'0' + (byte >> 4));
                out.push(hex_digit(byte & 15));
            }
        }
        at = special + 1;
    }
    out.push(b'"');
}

const fn hex_digit(nibble: u8) -> u8 {
    if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 }
}

/// Appends bytes as a JSON string when they are UTF-8, else as `{"base64":"..."}`.
pub(crate) fn push_text_or_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    match simdutf8::basic::from_utf8(bytes) {
        Ok(text) => push_string(out, text),
        Err(_) => {
            out.extend_from_slice(b"{\"base64\":");
            push_base64(out, bytes);
            out.push(b'}');
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn strings_survive_both_ways(text in any::<String>()) {
            let mut out = Vec::new();
            push_string(&mut out, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text.clone());
            let inner = std::str::from_utf8(&out[1..out.len() - 1]).unwrap();
            prop_assert_eq!(unescape(inner).unwrap(), text);
        }

        #[test]
        fn control_characters_are_escaped_as_serde_json_reads_them(
            text in "[\u{0}-\u{24}\\\\]{0,20}",
        ) {
            let mut out = Vec::new();
            push_string(&mut out, &text);
            prop_assert!(out.iter().all(|byte| *byte >= 0x20));
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }

        #[test]
        fn base64_survives_both_ways(bytes in any::<Vec<u8>>()) {
            let mut out = Vec::new();
            push_base64(&mut out, &bytes);
            let text = serde_json::from_slice::<String>(&out).unwrap();
            prop_assert_eq!(decode_base64(&text).unwrap(), bytes.clone());
            for cut in 1..=text.len().min(4) {
                let left = &text[..text.len() - cut];
                prop_assert!(decode_base64(left).is_none() || cut == 4, "{left}");
            }
        }

        #[test]
        fn escapes_decode_as_serde_json_decodes_them(
            raw in concat!(
                "([ -!#-\\[\\]-~]|\\\\u[dD][89a-fA-F][0-9a-f]{2}|",
                "\\\\u[0-9a-f]{4}|\\\\[nrtbf\"/]){0,8}"
            ),
        ) {
            let theirs = serde_json::from_str::<String>(&format!("\"{raw}\"")).ok();
            prop_assert_eq!(unescape(&raw), theirs);
        }
    }

    #[test]
    fn broken_base64_is_refused() {
        for bad in ["a", "a===", "ab=c", "ab cd", "ab\n", "a-_b", "QQ=", "QQ", "QR=="] {
            assert_eq!(decode_base64(bad), None, "{bad}");
        }
    }
}
