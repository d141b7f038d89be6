//! Counters: positions that only grow. They order events of one log and are never mixed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Position of a record in its partition: dense, starting at 0, never negative, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct Offset(i64);

impl Offset {
    /// The offset of a partition's first record.
    pub const ZERO: Self = Self(0);

    /// Checks and wraps a raw offset; negative numbers are not offsets.
    pub const fn new(raw: i64) -> Option<Self> {
        if raw >= 0 { Some(Self(raw)) } else { None }
    }

    /// Returns the raw number, `>= 0`.
    pub const fn get(self) -> i64 {
        self.0
    }

    /// Returns the offset `count` records later, or `None` past 2^63 - 1.
    pub const fn checked_add(self, count: u64) -> Option<Self> {
        match self.0.checked_add_unsigned(count) {
            Some(raw) => Some(Self(raw)),
            None => None,
        }
    }

    /// Returns the offset `count` records later, stopping at the largest one.
    pub const fn saturating_add(self, count: u64) -> Self {
        Self(self.0.saturating_add_unsigned(count))
    }

    /// Counts the records in `earlier..self`, 0 when `earlier` is not earlier.
    pub const fn records_since(self, earlier: Self) -> u64 {
        if self.0 > earlier.0 { self.0.abs_diff(earlier.0) } else { 0 }
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Offset({})", self.0)
    }
}

impl<'de> Deserialize<'de> for Offset {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = i64::deserialize(deserializer)?;
        Self::new(raw).ok_or_else(|| serde::de::Error::custom("an offset is not negative"))
    }
}

/// Entry number in a shard's Raft log. It is not an offset and is never converted into one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RaftIndex(u64);

impl RaftIndex {
    /// Wraps a raw index.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// Returns the raw number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the index after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for RaftIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for RaftIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RaftIndex({})", self.0)
    }
}

/// Raft term of a shard. One leader per term at most, so it serves as Kafka's leader epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Term(u64);

impl Term {
    /// Wraps a raw term.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// Returns the raw number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the term as Kafka's `partitionLeaderEpoch`, which is an `i32`.
    pub fn leader_epoch(self) -> i32 {
        i32::try_from(self.0).unwrap_or(i32::MAX)
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Term({})", self.0)
    }
}

/// A place in a shard's Raft log. Later places are greater.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(deny_unknown_fields)]
pub struct LogPosition {
    /// The term of the leader that proposed the entry.
    pub term: Term,
    /// The entry's index.
    pub index: RaftIndex,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_offsets_do_not_exist() {
        assert_eq!(Offset::new(-1), None);
        assert!(serde_json::from_str::<Offset>("-1").is_err());
    }

    #[test]
    fn offset_arithmetic_is_checked() {
        assert_eq!(Offset::ZERO.checked_add(3), Offset::new(3));
        assert_eq!(Offset::new(i64::MAX).unwrap().checked_add(1), None);
        assert_eq!(Offset::new(3).unwrap().records_since(Offset::ZERO), 3);
        assert_eq!(Offset::ZERO.records_since(Offset::new(3).unwrap()), 0);
    }
}
