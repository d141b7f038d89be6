//! Subscriptions by regular expression.

use regex::{Regex, RegexBuilder};

use crate::types::limits::SUBSCRIPTION_PATTERN_BYTES_MAX;

/// Bytes that a compiled pattern may take; bounded repetitions multiply.
const COMPILED_BYTES_MAX: usize = 256 * 1024;

/// Why a text is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// The text is longer than it may be.
    #[error("a pattern has at most {SUBSCRIPTION_PATTERN_BYTES_MAX} bytes, this one has {0}")]
    TooLong(usize),
    /// The text is not a regular expression that takes linear time.
    #[error("the pattern is not a regular expression of the supported kind: {0}")]
    Syntax(String),
}

/// A regular expression that a topic's whole name must match. Matching takes time linear in the
/// name: there is no backtracking.
#[derive(Debug, Clone)]
pub struct Pattern(Regex);

impl Pattern {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if text.len() > SUBSCRIPTION_PATTERN_BYTES_MAX {
            return Err(PatternError::TooLong(text.len()));
        }
        let compile = |text: &str| {
            RegexBuilder::new(text).size_limit(COMPILED_BYTES_MAX).build().map_err(|error| {
                let text = error.to_string();
                let last = text.lines().last().unwrap_or_default();
                PatternError::Syntax(last.trim_start_matches("error: ").to_owned())
            })
        };
        // By itself first: "a)|(b" must not become valid by what is put around it.
        compile(text)?;
        compile(&format!("^(?:{text})$")).map(Self)
    }

    /// Returns whether a topic's name matches as a whole.
    pub fn matches(&self, name: &str) -> bool {
        self.0.is_match(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_name_must_match() {
        let pattern = Pattern::parse("a|b.*").unwrap();
        for (name, expected) in [("a", true), ("ab", false), ("b", true), ("bcd", true)] {
            assert_eq!(pattern.matches(name), expected, "{name}");
        }
    }

    #[test]
    fn what_does_not_compile_or_is_too_large_is_refused() {
        for bad in ["(", "a)|(b", r"(a)\1", "(?=a)", "((a{100}){100}){100}"] {
            assert!(matches!(Pattern::parse(bad), Err(PatternError::Syntax(_))), "{bad}");
        }
        let long = "a".repeat(SUBSCRIPTION_PATTERN_BYTES_MAX + 1);
        assert!(matches!(Pattern::parse(&long), Err(PatternError::TooLong(_))));
    }
}
