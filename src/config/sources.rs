//! Where settings come from, and how a fault of one is told.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use super::settings;

/// Variables with the prefix that are not settings: the client's own, and the test suite's.
const NOT_SETTINGS: &[&str] =
    &["CONFIG", "URL", "SHARED", "NO_SKIP", "CRASH_ROUNDS", "CRASH_SEED", "CUT_ROUNDS"];
/// What Kubernetes sets in every pod beside a service of this name; none is a setting.
const INJECTED: &[&str] = &["SERVICE_HOST", "SERVICE_PORT", "PORT"];
const PREFIX: &str = "EDDYLINE_";

/// Everything that a person can give, unread.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The TOML file of `--config`.
    pub file: Option<PathBuf>,
    /// The process's environment; only names that start with `EDDYLINE_` are looked at.
    pub environment: Vec<(OsString, OsString)>,
    /// Each `--set`, as `key=value`.
    pub set: Vec<String>,
    /// Named flags that were given, as key and value.
    pub flags: Vec<(&'static str, String)>,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A line of the configuration file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// `--set`.
    Set,
    /// A named flag.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "from {}", path.display()),
            Self::Environment(name) => write!(f, "from {name}"),
            Self::Set => f.write_str("from --set"),
            Self::Flag(key) => write!(f, "from --{}", flag_name(key)),
        }
    }
}

/// `data_dir` is `--data-dir`, `cluster.join` is `--join`.
fn flag_name(key: &str) -> String {
    key.rsplit('.').next().unwrap_or(key).replace('_', "-")
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The setting's key, as it was given.
    pub key: String,
    /// Where its value came from.
    pub origin: Origin,
    /// What is wrong, to be read after the key.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.key, self.origin, self.message)
    }
}

/// Everything that is wrong with a configuration; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    problems: Vec<Problem>,
}

impl Invalid {
    pub(super) fn unless_empty(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self { problems }) }
    }

    /// Lists the problems in the order in which they were found.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.as_slice() {
            [one] => write!(f, "the configuration has a problem: {one}"),
            many => {
                write!(f, "the configuration has {} problems:", many.len())?;
                many.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl std::error::Error for Invalid {}

/// A key and its value as text, from some source.
pub(super) struct Given {
    pub(super) key: String,
    pub(super) value: String,
    pub(super) origin: Origin,
}

impl Given {
    /// Says that no setting has this key, and which one may have been meant.
    pub(super) fn unknown(self) -> Problem {
        let last = |key: &str| key.rsplit('.').next().unwrap_or(key).replace(['_', '-'], "");
        let wanted = last(&self.key);
        let meant = settings::all().find(|setting| last(setting.key) == wanted);
        let message = match meant {
            Some(setting) => format!("there is no such setting; did you mean {}?", setting.key),
            None => String::from("there is no such setting"),
        };
        Problem { key: self.key, origin: self.origin, message }
    }
}

impl Sources {
    /// Returns every given value, in the order in which later ones win.
    pub(super) fn read(&self, problems: &mut Vec<Problem>) -> Vec<Given> {
        let mut given = Vec::new();
        self.read_file(&mut given, problems);
        self.read_environment(&mut given, problems);
        for text in &self.set {
            match text.split_once('=') {
                Some((key, value)) => given.push(Given {
                    key: key.trim().to_owned(),
                    value: value.trim().to_owned(),
                    origin: Origin::Set,
                }),
                None => problems.push(Problem {
                    key: text.clone(),
                    origin: Origin::Set,
                    message: String::from("must be KEY=VALUE"),
                }),
            }
        }
        given.extend(self.flags.iter().map(|(key, value)| Given {
            key: (*key).to_owned(),
            value: value.clone(),
            origin: Origin::Flag(key),
        }));
        given
    }

    fn read_file(&self, given: &mut Vec<Given>, problems: &mut Vec<Problem>) {
        let Some(path) = &self.file else { return };
        let origin = Origin::File(path.clone());
        let mut refuse = |message: String| {
            let key = String::from("--config");
            problems.push(Problem { key, origin: origin.clone(), message });
        };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => return refuse(format!("cannot be read: {error}")),
        };
        match text.parse::<toml::Table>() {
            Ok(table) => flatten("", &table, &origin, given, problems),
            Err(error) => refuse(format!("is not TOML: {}", error.to_string().trim_end())),
        }
    }

    fn read_environment(&self, given: &mut Vec<Given>, problems: &mut Vec<Problem>) {
        for (name, value) in &self.environment {
            let Some(name) = name.to_str() else { continue };
            let Some(rest) = name.strip_prefix(PREFIX).filter(|rest| is_setting(rest)) else {
                continue;
            };
            let origin = Origin::Environment(name.to_owned());
            let key = rest.to_lowercase().replace("__", ".");
            match value.to_str() {
                Some(value) => {
                    given.push(Given { key, value: value.trim().to_owned(), origin });
                }
                None => {
                    let message = String::from("is not UTF-8");
                    problems.push(Problem { key, origin, message });
                }
            }
        }
    }
}

fn is_setting(name: &str) -> bool {
    let is_injected = |known: &str| {
        name.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    };
    !NOT_SETTINGS.contains(&name) && !INJECTED.iter().any(|known| is_injected(known))
}

/// Turns tables into dotted keys.
fn flatten(
    prefix: &str,
    table: &toml::Table,
    origin: &Origin,
    given: &mut Vec<Given>,
    problems: &mut Vec<Problem>,
) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        let origin = origin.clone();
        match value {
            toml::Value::Table(inner) if inner.is_empty() => {
                let start = format!("{key}.");
                if !settings::all().any(|setting| setting.key.starts_with(&start)) {
                    problems.push(Given { key, value: String::new(), origin }.unknown());
                }
            }
            toml::Value::Table(inner) => flatten(&key, inner, &origin, given, problems),
            other => match as_text(other) {
                Some(value) => given.push(Given { key, value, origin }),
                None => problems.push(Problem {
                    key,
                    origin,
                    message: String::from("must be text, a whole number, true or false, or a list"),
                }),
            },
        }
    }
}

/// A value as `--set` would give it; lists are joined by commas.
fn as_text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        toml::Value::Array(items) => {
            let items: Option<Vec<String>> =
                items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
            items.map(|items| items.join(","))
        }
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}
