//! Names that users choose, checked once where they enter.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::types::limits::TOPIC_NAME_BYTES_MAX;

/// Why a text is not a topic name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("a topic name has at least one character")]
    Empty,
    /// The text is longer than Kafka allows.
    #[error("a topic name has at most {TOPIC_NAME_BYTES_MAX} characters, this one has {0}")]
    TooLong(usize),
    /// `.` and `..` are not names.
    #[error("'.' and '..' are not topic names")]
    Dots,
    /// A character outside `[a-zA-Z0-9._-]`.
    #[error("a topic name has only the characters a-z A-Z 0-9 . _ -")]
    Character,
    /// Names that start with `__` are the server's own.
    #[error("names that start with '__' are internal")]
    Internal,
}

/// A topic name by Kafka's rules: 1 to 249 characters of `[a-zA-Z0-9._-]`, not `.` or `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct TopicName(Arc<str>);

impl TopicName {
    /// Checks a name.
    ///
    /// # Errors
    /// Says which rule the text breaks. Names starting with `__` are syntactically valid; use
    /// [`TopicName::parse_for_write`] where a client may create or write.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > TOPIC_NAME_BYTES_MAX {
            return Err(NameError::TooLong(text.chars().count()));
        }
        if text == "." || text == ".." {
            return Err(NameError::Dots);
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if !text.bytes().all(allowed) {
            return Err(NameError::Character);
        }
        Ok(Self(text.into()))
    }

    /// Checks a name that a client wants to create or write to.
    ///
    /// # Errors
    /// As [`TopicName::parse`], and [`NameError::Internal`] for names starting with `__`.
    pub fn parse_for_write(text: &str) -> Result<Self, NameError> {
        let name = Self::parse(text)?;
        if text.starts_with("__") { Err(NameError::Internal) } else { Ok(name) }
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name with `.` folded to `_`: two names that fold alike may not coexist, since
    /// Kafka's metric names could not tell them apart.
    pub fn collision_key(&self) -> String {
        self.0.replace('.', "_")
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TopicName({})", self.0)
    }
}

impl std::borrow::Borrow<str> for TopicName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for TopicName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'_, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_kafkas_rules() {
        for good in ["a", "flights", "A.b_c-9", "...", &"x".repeat(249), "__x"] {
            assert!(TopicName::parse(good).is_ok(), "{good}");
        }
        let long = "x".repeat(250);
        for bad in ["", ".", "..", "a/b", "a b", "a\0b", "\u{444}", long.as_str(), "a%2f"] {
            assert!(TopicName::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(TopicName::parse_for_write("__x"), Err(NameError::Internal));
    }

    #[test]
    fn dots_and_underscores_collide() {
        let key = |text| TopicName::parse(text).unwrap().collision_key();
        assert_eq!(key("a.b"), key("a_b"));
    }
}
