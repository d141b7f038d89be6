//! Names of consumer groups and their members, and the epochs that order what happens in a group.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::types::limits::GROUP_NAME_BYTES_MAX;

/// Why a text is not the name of a group, a member or an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GroupNameError {
    /// The text is empty.
    #[error("a name has at least one character")]
    Empty,
    /// The text is too long.
    #[error("a name has at most {GROUP_NAME_BYTES_MAX} bytes, this one has {0}")]
    TooLong(usize),
    /// A control character.
    #[error("a name has no control characters")]
    Control,
    /// Names that start with `__` are the server's own.
    #[error("names that start with '__' are internal")]
    Internal,
}

/// Checks what all names of this file have in common: 1 to 249 bytes of printable text.
fn check(text: &str) -> Result<(), GroupNameError> {
    if text.is_empty() {
        return Err(GroupNameError::Empty);
    }
    if text.len() > GROUP_NAME_BYTES_MAX {
        return Err(GroupNameError::TooLong(text.len()));
    }
    if text.chars().any(char::is_control) {
        return Err(GroupNameError::Control);
    }
    Ok(())
}

/// Declares a name: private text, `parse`, `as_str`, `Display`, serde as the text.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks a name: 1 to 249 bytes without control characters.
            ///
            /// # Errors
            /// Says which rule the text breaks.
            pub fn parse(text: &str) -> Result<Self, GroupNameError> {
                check(text)?;
                Ok(Self(text.into()))
            }

            /// Returns the text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'_, str>::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

name! {
    /// The name of a consumer group, as its users chose it.
    GroupName
}
name! {
    /// One membership of one process in one group. A process that joins again is another member.
    MemberId
}
name! {
    /// The name by which a static member is known again after it was away: Kafka's
    /// `group.instance.id`.
    InstanceId
}

impl GroupName {
    /// Checks a name that a client wants to join or commit to.
    ///
    /// # Errors
    /// As [`GroupName::parse`], and [`GroupNameError::Internal`] for names starting with `__`.
    pub fn parse_for_write(text: &str) -> Result<Self, GroupNameError> {
        let name = Self::parse(text)?;
        if text.starts_with("__") { Err(GroupNameError::Internal) } else { Ok(name) }
    }
}

impl MemberId {
    /// Names a new member by a UUID that was never used before.
    pub fn new(id: Uuid) -> Self {
        Self(id.as_hyphenated().to_string().into())
    }
}

/// Orders the assignments of a group: it grows whenever a target assignment is computed. Kafka's
/// generation.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(u32);

impl Epoch {
    /// The epoch of a group that never had a member.
    pub const ZERO: Self = Self(0);

    /// Wraps a raw epoch.
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// Returns the raw number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Returns the epoch after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_printable_and_bounded() {
        for good in ["g", "my group/1", "gr\u{fc}ppe", &"x".repeat(249), "__internal"] {
            assert!(GroupName::parse(good).is_ok(), "{good}");
        }
        let long = "x".repeat(250);
        for bad in ["", "a\nb", "\u{7f}", long.as_str()] {
            assert!(GroupName::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(GroupName::parse_for_write("__x"), Err(GroupNameError::Internal));
    }
}
