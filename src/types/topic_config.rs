//! A topic's configuration: Kafka's names, checked values, resolved defaults.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::types::limits::{MESSAGE_BYTES_MAX_CEILING, MESSAGE_BYTES_MAX_DEFAULT};

/// Why a configuration was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No configuration has this name.
    #[error("unknown topic config '{0}'")]
    Unknown(String),
    /// The value is not acceptable for the name.
    #[error("topic config '{name}' must be {expected}, not '{value}'")]
    Value {
        /// The configuration's name.
        name: &'static str,
        /// What would be accepted, in words.
        expected: &'static str,
        /// What was given.
        value: String,
    },
}

/// Which time a record's timestamp is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TimestampType {
    /// The producer's (KIP-32 `CreateTime`), the default.
    #[default]
    CreateTime,
    /// The shard's time when the batch was appended (`LogAppendTime`).
    LogAppendTime,
}

/// The configs that a topic has set, by Kafka's names. What is not set has its default.
///
/// What comes from a person goes through [`TopicConfig::set`]; what was accepted once, here or by
/// another version, is kept by [`TopicConfig::keep`]. The getters answer the default for a value
/// that this version does not understand.
#[derive(Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct TopicConfig {
    set: BTreeMap<String, String>,
}

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// How a value is checked, and how that is said to a person.
enum Rule {
    Int { min: i64, max: i64, expected: &'static str },
    OneOf { values: &'static [&'static str], expected: &'static str },
}

struct Entry {
    name: &'static str,
    default: &'static str,
    rule: Rule,
}

impl Entry {
    fn accepts(&self, value: &str) -> bool {
        match self.rule {
            Rule::Int { min, max, .. } => {
                value.parse::<i64>().is_ok_and(|number| (min..=max).contains(&number))
            }
            Rule::OneOf { values, .. } => values.contains(&value),
        }
    }

    fn expected(&self) -> &'static str {
        match self.rule {
            Rule::Int { expected, .. } | Rule::OneOf { expected, .. } => expected,
        }
    }
}

const MINUS_ONE_OR_MORE: Rule =
    Rule::Int { min: -1, max: i64::MAX, expected: "-1 (no limit) or a number from 0" };
const FROM_ZERO: Rule = Rule::Int { min: 0, max: i64::MAX, expected: "a number from 0" };

/// Every config that has an effect, with Kafka's default.
const ENTRIES: &[Entry] = &[
    Entry {
        name: "cleanup.policy",
        default: "delete",
        rule: Rule::OneOf { values: &["delete"], expected: "'delete' (no compaction yet)" },
    },
    Entry {
        name: "max.message.bytes",
        default: "1048588",
        rule: Rule::Int {
            min: 1024,
            max: MESSAGE_BYTES_MAX_CEILING as i64,
            expected: "1024 to 67108864 bytes",
        },
    },
    Entry { name: "message.timestamp.after.max.ms", default: "3600000", rule: FROM_ZERO },
    Entry {
        name: "message.timestamp.before.max.ms",
        default: "9223372036854775807",
        rule: FROM_ZERO,
    },
    Entry {
        name: "message.timestamp.type",
        default: "CreateTime",
        rule: Rule::OneOf {
            values: &["CreateTime", "LogAppendTime"],
            expected: "'CreateTime' or 'LogAppendTime'",
        },
    },
    Entry { name: "retention.bytes", default: "-1", rule: MINUS_ONE_OR_MORE },
    Entry { name: "retention.ms", default: "604800000", rule: MINUS_ONE_OR_MORE },
    Entry {
        name: "segment.bytes",
        default: "1073741824",
        rule: Rule::Int {
            min: 64 * 1024,
            max: i32::MAX as i64,
            expected: "65536 to 2147483647 bytes",
        },
    },
    Entry {
        name: "segment.ms",
        default: "604800000",
        rule: Rule::Int { min: 1, max: i64::MAX, expected: "a number from 1" },
    },
];

impl TopicConfig {
    /// Checks and sets one config.
    ///
    /// # Errors
    /// [`ConfigError`] when the name is unknown or the value is out of its range; nothing changes.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), ConfigError> {
        let Some(entry) = ENTRIES.iter().find(|entry| entry.name == name) else {
            return Err(ConfigError::Unknown(name.to_owned()));
        };
        let refuse = |expected| {
            Err(ConfigError::Value { name: entry.name, expected, value: value.to_owned() })
        };
        if !entry.accepts(value) {
            return refuse(entry.expected());
        }
        self.set.insert(entry.name.to_owned(), value.to_owned());
        Ok(())
    }

    /// Sets one config that was accepted before, unchecked: it may be of a version that knows other
    /// names or has other ranges.
    pub fn keep(&mut self, name: String, value: String) {
        self.set.insert(name, value);
    }

    /// Lists the configs that are set, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.set.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Lists every config with its value in force and whether that is the default, by name.
    pub fn resolved(&self) -> impl Iterator<Item = (&'static str, &str, bool)> {
        ENTRIES.iter().map(|entry| match self.set.get(entry.name) {
            Some(value) => (entry.name, value.as_str(), false),
            None => (entry.name, entry.default, true),
        })
    }

    /// Returns the value that is set for a name, if any.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.set.get(name).map(String::as_str)
    }

    fn int(&self, name: &str, default: i64) -> i64 {
        let in_range = |value: &str| {
            let entry = ENTRIES.iter().find(|entry| entry.name == name)?;
            entry.accepts(value).then(|| value.parse().ok())?
        };
        self.get(name).and_then(in_range).unwrap_or(default)
    }

    /// `max.message.bytes`: largest batch, and largest record.
    pub fn max_message_bytes(&self) -> u32 {
        let bytes = self.int("max.message.bytes", i64::from(MESSAGE_BYTES_MAX_DEFAULT));
        u32::try_from(bytes).unwrap_or(MESSAGE_BYTES_MAX_DEFAULT)
    }

    /// Largest batch, and largest record with its batch's header, that the topic takes: a batch
    /// lies in one segment. Returns the bytes and the config that sets them.
    pub fn batch_limit(&self) -> (u32, &'static str) {
        let segment_bytes = u32::try_from(self.segment_bytes()).unwrap_or(u32::MAX);
        let message_bytes = self.max_message_bytes();
        if segment_bytes < message_bytes {
            (segment_bytes, "segment.bytes")
        } else {
            (message_bytes, "max.message.bytes")
        }
    }

    /// `retention.ms`, `None` when there is no limit.
    pub fn retention_ms(&self) -> Option<i64> {
        Some(self.int("retention.ms", 7 * DAY_MS)).filter(|ms| *ms >= 0)
    }

    /// `retention.bytes` of each partition, `None` when there is no limit.
    pub fn retention_bytes(&self) -> Option<u64> {
        u64::try_from(self.int("retention.bytes", -1)).ok()
    }

    /// `segment.bytes`: size at which the active segment is sealed.
    pub fn segment_bytes(&self) -> u64 {
        u64::try_from(self.int("segment.bytes", 1024 * 1024 * 1024)).unwrap_or(u64::MAX)
    }

    /// `segment.ms`: age, in record time, at which the active segment is sealed.
    pub fn segment_ms(&self) -> i64 {
        self.int("segment.ms", 7 * DAY_MS)
    }

    /// `message.timestamp.type`.
    pub fn timestamp_type(&self) -> TimestampType {
        match self.get("message.timestamp.type") {
            Some("LogAppendTime") => TimestampType::LogAppendTime,
            _ => TimestampType::CreateTime,
        }
    }

    /// `message.timestamp.before.max.ms`: how old a producer's timestamp may be.
    pub fn timestamp_before_max_ms(&self) -> i64 {
        self.int("message.timestamp.before.max.ms", i64::MAX)
    }

    /// `message.timestamp.after.max.ms`: how far in the future a producer's timestamp may be.
    pub fn timestamp_after_max_ms(&self) -> i64 {
        self.int("message.timestamp.after.max.ms", 3_600_000)
    }
}

impl fmt::Debug for TopicConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.set.fmt(f)
    }
}

impl<'de> Deserialize<'de> for TopicConfig {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut config = Self::default();
        for (name, value) in BTreeMap::<String, String>::deserialize(deserializer)? {
            config.keep(name, value);
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_acceptable_and_is_what_the_getters_answer() {
        let mut set = TopicConfig::default();
        for entry in ENTRIES {
            set.set(entry.name, entry.default).unwrap();
        }
        let unset = TopicConfig::default();
        assert_eq!(set.max_message_bytes(), unset.max_message_bytes());
        assert_eq!(set.retention_ms(), unset.retention_ms());
        assert_eq!(set.retention_bytes(), unset.retention_bytes());
        assert_eq!(set.segment_bytes(), unset.segment_bytes());
        assert_eq!(set.segment_ms(), unset.segment_ms());
        assert_eq!(set.timestamp_type(), unset.timestamp_type());
        assert_eq!(set.timestamp_before_max_ms(), unset.timestamp_before_max_ms());
        assert_eq!(set.timestamp_after_max_ms(), unset.timestamp_after_max_ms());
    }

    #[test]
    fn refused_values_change_nothing() {
        let mut config = TopicConfig::default();
        assert!(config.set("retention.ms", "-2").is_err());
        assert!(config.set("retention.ms", "soon").is_err());
        assert!(config.set("cleanup.policy", "compact").is_err());
        assert!(config.set("nope", "1").is_err());
        assert_eq!(config, TopicConfig::default());
    }

    #[test]
    fn what_another_version_accepted_is_kept_and_has_no_effect() {
        let mut config = TopicConfig::default();
        for (name, value) in [
            ("compression.type", "zstd"),
            ("segment.bytes", "1"),
            ("cleanup.policy", "compact"),
            ("retention.ms", "soon"),
        ] {
            config.keep(name.to_owned(), value.to_owned());
        }
        let unset = TopicConfig::default();
        assert_eq!(config.segment_bytes(), unset.segment_bytes());
        assert_eq!(config.retention_ms(), unset.retention_ms());
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<TopicConfig>(&json).unwrap(), config);
    }

    #[test]
    fn minus_one_switches_retention_off() {
        let mut config = TopicConfig::default();
        config.set("retention.ms", "-1").unwrap();
        assert_eq!(config.retention_ms(), None);
    }
}
