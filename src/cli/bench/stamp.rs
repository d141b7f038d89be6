//! What is at the beginning of every value: which run sent it, and when it was meant to be sent.

/// Bytes of a stamp.
pub(super) const STAMP_BYTES: usize = RUN_DIGITS + TIME_DIGITS;

const RUN_DIGITS: usize = 8;
const TIME_DIGITS: usize = 12;

/// Writes and reads stamps of one run: its number and microseconds since it began, as hex digits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamp {
    run: u32,
}

impl Stamp {
    pub(super) fn new(run: u32) -> Self {
        Self { run }
    }

    /// Writes a time.
    pub(super) fn write(&self, sent_us: u64) -> String {
        format!("{:0RUN_DIGITS$x}{sent_us:0TIME_DIGITS$x}", self.run)
    }

    /// Reads the time of a value of this run.
    pub(super) fn read(&self, value: &[u8]) -> Option<u64> {
        let (run, rest) = value.split_at_checked(RUN_DIGITS)?;
        let (time, _) = rest.split_at_checked(TIME_DIGITS)?;
        (hex(run)? == u64::from(self.run)).then_some(())?;
        hex(time)
    }
}

fn hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |number: u64, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(number << 4 | u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_stamp_is_read_by_its_own_run(run in any::<u32>(), sent_us in 0u64..1 << 48) {
            let text = Stamp::new(run).write(sent_us);
            prop_assert_eq!(text.len(), STAMP_BYTES);
            prop_assert_eq!(Stamp::new(run).read(text.as_bytes()), Some(sent_us));
            prop_assert_eq!(Stamp::new(run ^ 1).read(text.as_bytes()), None);
        }

        #[test]
        fn other_values_are_no_stamps(value in prop::collection::vec(any::<u8>(), 0..30)) {
            // Whatever comes, it does not panic.
            let _ = Stamp::new(0).read(&value);
        }
    }
}
