//! JSON pointers (RFC 6901) into values as they are stored: found by scanning, without a tree.

use crate::api::json::Scanner;
use crate::api::json::scan::JsonString;

/// Steps that a pointer has at most.
const STEPS_MAX: usize = 32;

/// A pointer, parsed once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pointer {
    steps: Vec<String>,
}

impl Pointer {
    /// Parses a pointer; the empty one is the whole value.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self { steps: Vec::new() });
        }
        let steps: Option<Vec<String>> = text.strip_prefix('/')?.split('/').map(unescape).collect();
        steps.filter(|steps| steps.len() <= STEPS_MAX).map(|steps| Self { steps })
    }

    /// Finds what it points to: the text of a JSON value. Of members that repeat the first counts.
    pub(super) fn find<'a>(&self, json: &'a str) -> Option<&'a str> {
        let mut value = json;
        for step in &self.steps {
            let mut scanner = Scanner::new(value);
            value = match scanner.peek()? {
                b'{' => member(&mut scanner, step)?,
                b'[' => element(&mut scanner, step)?,
                _ => return None,
            };
        }
        Some(value.trim_ascii())
    }
}

fn unescape(step: &str) -> Option<String> {
    let mut text = String::with_capacity(step.len());
    let mut chars = step.chars();
    while let Some(c) = chars.next() {
        text.push(match c {
            '~' => match chars.next()? {
                '0' => '~',
                '1' => '/',
                _ => return None,
            },
            c => c,
        });
    }
    Some(text)
}

fn member<'a>(scanner: &mut Scanner<'a>, wanted: &str) -> Option<&'a str> {
    scanner.expect(b'{', "").ok()?;
    if scanner.skip_if(b'}') {
        return None;
    }
    loop {
        let name: JsonString<'_> = scanner.name().ok()?;
        let value = scanner.value().ok()?;
        if name.decode().is_some_and(|name| name == wanted) {
            return Some(value);
        }
        if !scanner.skip_if(b',') {
            return None;
        }
    }
}

fn element<'a>(scanner: &mut Scanner<'a>, wanted: &str) -> Option<&'a str> {
    let index: usize = wanted.parse().ok().filter(|index: &usize| index.to_string() == wanted)?;
    scanner.expect(b'[', "").ok()?;
    if scanner.skip_if(b']') {
        return None;
    }
    for _ in 0..index {
        scanner.value().ok()?;
        if !scanner.skip_if(b',') {
            return None;
        }
    }
    scanner.value().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn pointers_find_what_the_standard_says() {
        let text = concat!(
            r#"{ "foo" : ["bar", "baz"], "":0, "a/b":1, "#,
            r#""c%d":2, "m~n":8, "o":{"p":[{}]} }"#
        );
        for (pointer, found) in [
            ("/foo", Some("[\"bar\", \"baz\"]")),
            ("/foo/0", Some("\"bar\"")),
            ("/foo/2", None),
            ("/foo/01", None),
            ("/foo/-", None),
            ("/", Some("0")),
            ("/a~1b", Some("1")),
            ("/c%d", Some("2")),
            ("/m~0n", Some("8")),
            ("/o/p/0", Some("{}")),
            ("/o/p/0/x", None),
            ("/foo/0/x", None),
        ] {
            assert_eq!(Pointer::parse(pointer).unwrap().find(text), found, "{pointer}");
        }
        assert_eq!(Pointer::parse("").unwrap().find(" 1 "), Some("1"));
        for bad in ["foo", "/~", "/~2", &"/a".repeat(STEPS_MAX + 1)] {
            assert_eq!(Pointer::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn pointers_find_what_a_tree_finds(
            names in proptest::collection::vec("[a-c/~\"0-2]{0,2}", 1..4),
            path in proptest::collection::vec("[a-c/~\"0-2]{0,2}", 0..4),
        ) {
            let mut tree = json!([1, {"x": "y"}]);
            for name in names {
                tree = json!({name: [tree.clone(), 7], "a": tree});
            }
            let escape = |step: &String| step.replace('~', "~0").replace('/', "~1");
            let pointer: String = path.iter().map(|step| format!("/{}", escape(step))).collect();
            let text = tree.to_string();
            let found = Pointer::parse(&pointer).unwrap().find(&text);
            let found = found.map(|text| serde_json::from_str::<Value>(text).unwrap());
            prop_assert_eq!(found.as_ref(), tree.pointer(&pointer));
        }

        #[test]
        fn any_text_is_searched_without_panic(text in any::<String>(), pointer in "(/[a0]?){0,4}") {
            if let Some(pointer) = Pointer::parse(&pointer) {
                let _ = pointer.find(&text);
            }
        }
    }
}
