//! House rules that no compiler checks: which layer may use which, sizes, columns, imports.
//!
//! Every rule is a function from one file's path and text to complaints `path:line: what is wrong`.
//! Each has a sample below that breaks it, so a rule that stops biting is a failing test. The layer
//! table is the one of `ARCHITECTURE.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

/// Longest file, in lines that are not tests.
const LINES_MAX: usize = 800;
/// Longest line, in characters.
const COLUMNS_MAX: usize = 100;

/// Which parts of the crate each part may use (itself always). `main`, `lib` and `server` compose
/// and may use all; a folder that is missing here is a complaint.
const LAYERS: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("clock", &["types"]),
    ("tasks", &[]),
    ("metrics", &["types"]),
    ("telemetry", &["types"]),
    ("record", &["types"]),
    ("storage", &["types", "record", "clock", "metrics"]),
    ("raft", &["types", "record", "storage", "clock", "tasks", "metrics", "telemetry"]),
    ("shard", &["types", "record", "storage", "raft", "clock", "tasks", "metrics", "telemetry"]),
    ("groups", &["types"]),
    (
        "metadata",
        &["types", "record", "storage", "raft", "groups", "clock", "tasks", "metrics", "telemetry"],
    ),
    ("auth", &["types", "clock", "metrics", "telemetry"]),
    (
        "broker",
        &[
            "types",
            "record",
            "storage",
            "raft",
            "shard",
            "metadata",
            "groups",
            "auth",
            "clock",
            "tasks",
            "metrics",
            "telemetry",
        ],
    ),
    ("api", &["types", "record", "broker", "auth", "clock", "tasks", "metrics", "telemetry"]),
    ("kafka", &["types", "record", "broker", "auth", "clock", "tasks", "metrics", "telemetry"]),
    (
        "config",
        &[
            "types",
            "storage",
            "raft",
            "shard",
            "metadata",
            "groups",
            "auth",
            "broker",
            "api",
            "kafka",
            "telemetry",
        ],
    ),
    ("cli", &["types"]),
    ("offline", &["types", "record", "storage", "raft", "shard", "cli"]),
    ("process", &[]),
];

/// Parts that compose the others.
const COMPOSERS: &[&str] = &["main", "lib", "server"];

/// Crates that belong to some parts only: everyone else must not name them.
const CRATES: &[(&str, &[&str])] = &[
    ("openraft", &["raft"]),
    ("openraft_rt", &["raft"]),
    ("openraft_rt_tokio", &["raft"]),
    ("sqlx", &["metadata"]),
    ("axum", &["api", "server"]),
    ("utoipa", &["api"]),
    ("tungstenite", &["api", "cli"]),
    ("hdrhistogram", &["cli"]),
    ("reqwest", &["cli"]),
    ("clap", &["cli"]),
    ("anyhow", &["cli", "main"]),
    (
        "tokio",
        &[
            "tasks", "raft", "shard", "metadata", "broker", "api", "kafka", "server", "cli",
            "process", "main",
        ],
    ),
    (
        "serde_json",
        &["types", "metadata", "auth", "broker", "api", "cli", "server", "config", "offline"],
    ),
];

/// One source file, read once.
struct Source<'a> {
    /// Path from the package's root, with `/`.
    path: &'a str,
    text: &'a str,
    /// The text with comments, strings and character literals blanked, line by line as it was.
    code: String,
    /// Lines before the tests.
    lines_code: usize,
}

impl<'a> Source<'a> {
    fn new(path: &'a str, text: &'a str) -> Self {
        let code = blank(text);
        let is_test = path.starts_with("tests/")
            || path.ends_with("/tests.rs")
            || path.contains("/tests/")
            || path.ends_with("_tests.rs");
        let lines_code = if is_test { 0 } else { lines_before_tests(&code) };
        Self { path, text, code, lines_code }
    }

    /// The part of the crate that the file belongs to: `src/api/v1/mod.rs` is of `api`.
    fn part(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?;
        let first = inside.split('/').next()?;
        Some(first.strip_suffix(".rs").unwrap_or(first))
    }

    /// The lines that are not tests, numbered from 1, without comments and literals.
    fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.lines().take(self.lines_code).enumerate().map(|(at, line)| (at + 1, line))
    }

    fn complain(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}", self.path)
    }
}

/// Counts the lines before `#[cfg(test)]` followed by a module; a file's tests are at its end.
fn lines_before_tests(code: &str) -> usize {
    let lines: Vec<&str> = code.lines().map(str::trim).collect();
    let starts = |pair: &[&str]| match pair {
        [attribute, item] => {
            attribute.starts_with("#[cfg(") && attribute.contains("test") && {
                let item = item.trim_start_matches("pub(crate) ");
                item.starts_with("mod ") && item.ends_with('{')
            }
        }
        _ => false,
    };
    lines.windows(2).position(starts).unwrap_or(lines.len())
}

/// Replaces comments, strings and character literals by spaces, keeping every line break.
fn blank(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let previous = out.chars().next_back().unwrap_or(' ');
        let word_before = previous.is_alphanumeric() || previous == '_';
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if first == '"' {
            string_length(rest)
        } else if !word_before && (rest.starts_with("r\"") || rest.starts_with("r#")) {
            raw_string_length(rest, 1)
        } else if !word_before && (rest.starts_with("br\"") || rest.starts_with("br#")) {
            raw_string_length(rest, 2)
        } else if first == '\'' {
            char_length(rest)
        } else {
            0
        };
        if length == 0 {
            out.push(first);
            rest = rest.strip_prefix(first).unwrap_or_default();
            continue;
        }
        let (literal, after) = rest.split_at(length);
        out.extend(literal.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = after;
    }
    out
}

fn string_length(rest: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in rest.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Returns 0 for what only looks like a raw string (`r#type`).
fn raw_string_length(rest: &str, prefix: usize) -> usize {
    let hashes = rest.bytes().skip(prefix).take_while(|byte| *byte == b'#').count();
    let open = prefix + hashes;
    if rest.as_bytes().get(open) != Some(&b'"') {
        return 0;
    }
    let close = format!("\"{}", "#".repeat(hashes));
    let body = rest.split_at(open + 1).1;
    body.find(&close).map_or(rest.len(), |end| open + 1 + end + close.len())
}

/// Returns 0 for a lifetime.
fn char_length(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => {
            chars.next();
            chars.find(|(_, c)| *c == '\'').map_or(0, |(at, _)| at + 1)
        }
        Some(_) => match chars.next() {
            Some((at, '\'')) => at + 1,
            _ => 0,
        },
        None => 0,
    }
}

/// The paths that start with `root::` in a line: what follows, up to the end of that name.
fn names_after<'a>(line: &'a str, root: &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    let mut rest = line;
    while let Some(at) = rest.find(root) {
        let (before, after) = rest.split_at(at);
        let after = after.split_at(root.len()).1;
        let last = before.chars().next_back().unwrap_or(' ');
        if !(last.is_alphanumeric() || last == '_' || last == ':')
            && let Some(path) = after.strip_prefix("::")
        {
            let end = path.find(|c: char| !(c.is_alphanumeric() || c == '_'));
            found.push(path.split_at(end.unwrap_or(path.len())).0);
        }
        rest = after;
    }
    found
}

/// A part uses only the parts left of it.
fn layers(source: &Source<'_>, complaints: &mut Vec<String>) {
    let Some(part) = source.part().filter(|part| !COMPOSERS.contains(part)) else {
        return;
    };
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == part) else {
        complaints.push(source.complain(1, &format!("`{part}` is not in the layer table")));
        return;
    };
    for (number, line) in source.code_lines() {
        for target in names_after(line, "crate") {
            let known =
                LAYERS.iter().any(|(name, _)| *name == target) || COMPOSERS.contains(&target);
            if known && target != part && !allowed.contains(&target) {
                let what = format!("`{part}` must not use `{target}`");
                complaints.push(source.complain(number, &what));
            }
        }
    }
}

/// A crate with an owner is named by its owners only.
fn crates(source: &Source<'_>, complaints: &mut Vec<String>) {
    let Some(part) = source.part() else { return };
    for (number, line) in source.code_lines() {
        for (name, owners) in CRATES {
            if !owners.contains(&part) && !names_after(line, name).is_empty() {
                let what = format!("`{part}` must not know the crate `{name}`");
                complaints.push(source.complain(number, &what));
            }
        }
    }
}

/// Imports name their layer: `use crate::layer::Item;`.
fn imports(source: &Source<'_>, complaints: &mut Vec<String>) {
    for (at, line) in source.code.lines().enumerate() {
        if line.contains("use crate::{") {
            let what = "write `use crate::layer::Item;`, one layer a line";
            complaints.push(source.complain(at + 1, what));
        }
        if line.contains("super::super") {
            complaints.push(source.complain(at + 1, "write the path from `crate::`"));
        }
    }
}

/// Files and lines stay small enough to read.
fn sizes(source: &Source<'_>, complaints: &mut Vec<String>) {
    if source.lines_code > LINES_MAX {
        let what =
            format!("{} lines without tests, at most {LINES_MAX}: split it", source.lines_code);
        complaints.push(source.complain(LINES_MAX + 1, &what));
    }
    for (at, line) in source.text.lines().enumerate() {
        let columns = line.chars().count();
        if columns > COLUMNS_MAX {
            let what = format!("{columns} columns, at most {COLUMNS_MAX}");
            complaints.push(source.complain(at + 1, &what));
        }
    }
}

/// Source is ASCII; tests may hold other text in literals.
fn ascii(source: &Source<'_>, complaints: &mut Vec<String>) {
    for (at, (line, code)) in source.text.lines().zip(source.code.lines()).enumerate() {
        let seen = if at < source.lines_code { line } else { code };
        if let Some(other) = seen.chars().find(|c| !c.is_ascii()) {
            let what = format!("write {} instead of the character itself", other.escape_unicode());
            complaints.push(source.complain(at + 1, &what));
        }
    }
}

/// A module says first what it is for.
fn module_docs(source: &Source<'_>, complaints: &mut Vec<String>) {
    if !source.text.starts_with("//!") {
        complaints.push(source.complain(1, "start with `//!`: what it owns and its invariants"));
    }
}

/// Nothing is left half done, and no test is switched off.
fn leftovers(source: &Source<'_>, complaints: &mut Vec<String>) {
    for (at, line) in source.code.lines().enumerate() {
        for attribute in ["#[ignore", "#[should_panic"] {
            if line.trim_start().starts_with(attribute) {
                let what = format!("no `{attribute}]`: a test runs, and asserts what it expects");
                complaints.push(source.complain(at + 1, &what));
            }
        }
    }
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    for (at, line) in source.text.lines().enumerate() {
        if let Some(mark) = marks.iter().find(|mark| line.contains(**mark)) {
            complaints.push(source.complain(at + 1, &format!("`{mark}`: do it, or say it is so")));
        }
    }
}

fn check(path: &str, text: &str) -> Vec<String> {
    let source = Source::new(path, text);
    let mut complaints = Vec::new();
    for rule in [layers, crates, imports, sizes, ascii, module_docs, leftovers] {
        rule(&source, &mut complaints);
    }
    complaints
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("list a source folder") {
        let path = entry.expect("read a source folder").path();
        if path.is_dir() && !path.ends_with("tests/data") {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_source_file_keeps_the_house_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["src", "tests"] {
        rust_files(&root.join(folder), &mut files);
    }
    assert!(files.len() > 20, "the sources are somewhere else: {} files", files.len());
    files.sort();
    let mut complaints = Vec::new();
    for file in &files {
        let text = fs::read_to_string(file).expect("read a source file");
        let path = file.strip_prefix(root).expect("inside").to_string_lossy().replace('\\', "/");
        complaints.extend(check(&path, &text));
    }
    assert!(complaints.is_empty(), "{} complaints\n{}", complaints.len(), complaints.join("\n"));
}

#[test]
fn a_layer_that_looks_up_is_caught() {
    let up = "//! x\nuse crate::api::Router;\n";
    assert_eq!(
        check("src/storage/mod.rs", up),
        ["src/storage/mod.rs:2: `storage` must not use `api`"]
    );
    let inline = "//! x\nfn f() { let _ = crate::shard::x(); }\n";
    assert_eq!(check("src/raft/store.rs", inline).len(), 1);
    assert_eq!(
        check("src/new/mod.rs", "//! x\n"),
        ["src/new/mod.rs:1: `new` is not in the layer table"]
    );
    let fine = "//! x\nuse crate::types::Offset;\nuse crate::storage::Error;\n";
    assert!(check("src/storage/wal/mod.rs", fine).is_empty());
    assert!(check("src/server.rs", "//! x\nuse crate::api::Router;\n").is_empty());
}

#[test]
fn words_in_comments_strings_and_tests_are_not_uses() {
    let text = "//! x\n/// See [`crate::api`].\nconst A: &str = \"crate::api::x\";\n\
                const B: &str = r#\"crate::api::\"y\"#;\nconst C: char = '\"'; // crate::api::z\n\
                fn f<'a>(x: &'a str) -> &'a str { x }\n\
                #[cfg(test)]\nmod tests {\n    use crate::api::T;\n}\n";
    assert_eq!(check("src/types/x.rs", text), Vec::<String>::new());
    let after = text.replace("fn f", "use crate::api::U;\nfn f");
    assert_eq!(check("src/types/x.rs", &after).len(), 1);
}

#[test]
fn a_crate_outside_its_home_is_caught() {
    let text = "//! x\nuse openraft::Raft;\n";
    assert!(check("src/raft/mod.rs", text).is_empty());
    assert_eq!(check("src/shard/mod.rs", text).len(), 1);
    assert_eq!(check("src/storage/mod.rs", "//! x\nfn f() { tokio::spawn(x) }\n").len(), 1);
    assert_eq!(check("src/broker/mod.rs", "//! x\nuse axum::Json;\n").len(), 1);
}

#[test]
fn imports_from_the_root_are_caught() {
    assert_eq!(check("src/server.rs", "//! x\nuse crate::{api, raft};\n").len(), 1);
    assert_eq!(check("src/server.rs", "//! x\nuse super::super::api;\n").len(), 1);
}

#[test]
fn long_files_and_long_lines_are_caught() {
    let long = format!("//! x\n{}", "const A: u8 = 0;\n".repeat(LINES_MAX));
    assert_eq!(check("src/server.rs", &long).len(), 1);
    let tests = format!(
        "//! x\n#[cfg(test)]\nmod tests {{\n{}}}\n",
        "    const A: u8 = 0;\n".repeat(LINES_MAX)
    );
    assert!(check("src/server.rs", &tests).is_empty());
    assert_eq!(check("src/server.rs", &format!("//! {}\n", "x".repeat(COLUMNS_MAX))).len(), 1);
}

#[test]
fn other_alphabets_are_caught_outside_test_literals() {
    assert_eq!(check("src/server.rs", "//! caf\u{e9}\n").len(), 1);
    let in_test = "//! x\n#[cfg(test)]\nmod tests {\n    const A: &str = \"\u{e9}\";\n}\n";
    assert!(check("src/server.rs", in_test).is_empty());
    assert_eq!(check("src/server.rs", &in_test.replace("A:", "\u{e9}:")).len(), 1);
}

#[test]
fn missing_module_docs_and_leftovers_are_caught() {
    assert_eq!(check("src/server.rs", "use std::fs;\n").len(), 1);
    assert_eq!(check("tests/x.rs", "//! x\n#[ignore]\nfn f() {}\n").len(), 1);
    let mark = format!("//! x\n// {}{} later\n", "TO", "DO");
    assert_eq!(check("src/server.rs", &mark).len(), 1);
}
