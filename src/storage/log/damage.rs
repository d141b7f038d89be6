//! Which offsets of a partition are known to be damaged on this disk.

use parking_lot::Mutex;

use crate::types::Offset;

/// Offsets `from..to` that cannot be read from this disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DamagedRange {
    /// First damaged offset.
    pub from: Offset,
    /// First good offset after it.
    pub to: Offset,
}

/// The damaged ranges of a partition: sorted, disjoint, not touching. Empty takes no memory.
#[derive(Debug, Default)]
pub(super) struct Damage(Mutex<Vec<DamagedRange>>);

impl Damage {
    /// Adds a range and returns whether any of it is new.
    pub(super) fn mark(&self, range: DamagedRange) -> bool {
        if range.from >= range.to {
            return false;
        }
        let mut ranges = self.0.lock();
        if ranges.iter().any(|known| known.from <= range.from && range.to <= known.to) {
            return false;
        }
        let mut merged = range;
        ranges.retain(|known| {
            let apart = known.to < merged.from || merged.to < known.from;
            if !apart {
                merged.from = merged.from.min(known.from);
                merged.to = merged.to.max(known.to);
            }
            apart
        });
        let place = ranges.partition_point(|known| known.from < merged.from);
        ranges.insert(place, merged);
        true
    }

    /// Returns the range that holds `offset`.
    pub(super) fn at(&self, offset: Offset) -> Option<DamagedRange> {
        let ranges = self.0.lock();
        let after = ranges.partition_point(|known| known.from <= offset);
        let found = after.checked_sub(1).and_then(|found| ranges.get(found)).copied();
        found.filter(|range| offset < range.to)
    }

    /// Forgets what lies below the log start.
    pub(super) fn forget_below(&self, start: Offset) {
        self.0.lock().retain(|known| known.to > start);
    }

    pub(super) fn ranges(&self) -> Vec<DamagedRange> {
        self.0.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(from: i64, to: i64) -> DamagedRange {
        DamagedRange { from: Offset::new(from).unwrap(), to: Offset::new(to).unwrap() }
    }

    #[test]
    fn ranges_stay_sorted_disjoint_and_merged() {
        let damage = Damage::default();
        assert!(damage.mark(range(10, 20)));
        assert!(!damage.mark(range(12, 20)));
        assert!(damage.mark(range(30, 40)));
        assert!(damage.mark(range(0, 5)));
        assert!(!damage.mark(range(7, 7)));
        assert_eq!(damage.ranges(), [range(0, 5), range(10, 20), range(30, 40)]);
        assert!(damage.mark(range(20, 31)));
        assert_eq!(damage.ranges(), [range(0, 5), range(10, 40)]);
        assert_eq!(damage.at(Offset::new(39).unwrap()), Some(range(10, 40)));
        assert_eq!(damage.at(Offset::new(40).unwrap()), None);
        assert_eq!(damage.at(Offset::new(7).unwrap()), None);
        damage.forget_below(Offset::new(5).unwrap());
        assert_eq!(damage.ranges(), [range(10, 40)]);
    }
}
