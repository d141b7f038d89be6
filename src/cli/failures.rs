//! Which line of which source a report is about, and the records that failed.
//!
//! The server reports in the order in which lines were sent, so a queue of runs of lines, dropped
//! as reports come in, is all that is remembered.

use std::collections::VecDeque;

/// Failed records that are listed; the rest is counted.
const LISTED_MAX: usize = 50;

/// Lines that were sent one after the other and not reported yet.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// Number of the source in the command line's list.
    source: usize,
    /// Number of the first line in it, from 1.
    line: u64,
    count: u64,
}

/// Everything that was sent, against everything that was reported.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    open: VecDeque<Run>,
    sent: u64,
    written: u64,
    failed: u64,
    listed: Vec<Failure>,
}

/// A record that was not written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// Number of the source in the command line's list.
    pub(super) source: usize,
    /// Number of the line in it, from 1.
    pub(super) line: u64,
    /// What the server said.
    pub(super) reason: String,
}

impl Ledger {
    /// Notes lines as sent.
    pub(super) fn sent(&mut self, source: usize, line: u64, count: u64) {
        self.sent += count;
        match self.open.back_mut() {
            Some(run) if run.source == source && run.line + run.count == line => {
                run.count += count;
            }
            _ => self.open.push_back(Run { source, line, count }),
        }
    }

    /// Takes the oldest line that has no report; `None` when there is none.
    fn next(&mut self) -> Option<(usize, u64)> {
        let run = self.open.front_mut()?;
        let place = (run.source, run.line);
        run.line += 1;
        run.count -= 1;
        if run.count == 0 {
            self.open.pop_front();
        }
        Some(place)
    }

    /// Notes the next report; `reason` when it is a failure. Returns false for one report too many.
    pub(super) fn reported(&mut self, reason: Option<String>) -> bool {
        let Some((source, line)) = self.next() else {
            return false;
        };
        match reason {
            None => self.written += 1,
            Some(reason) => {
                self.failed += 1;
                if self.listed.len() < LISTED_MAX {
                    self.listed.push(Failure { source, line, reason });
                }
            }
        }
        true
    }

    /// Records that were refused.
    pub(super) fn failed(&self) -> u64 {
        self.failed
    }

    /// Records that were sent and never reported: they may have been written or not.
    pub(super) fn unknown(&self) -> u64 {
        self.sent - self.written - self.failed
    }

    /// The first line that has no report.
    pub(super) fn first_unknown(&self) -> Option<(usize, u64)> {
        self.open.front().map(|run| (run.source, run.line))
    }

    /// The first failures, as many as are listed.
    pub(super) fn listed(&self) -> &[Failure] {
        &self.listed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_find_their_lines_across_sources_and_blank_lines() {
        let mut ledger = Ledger::default();
        ledger.sent(0, 1, 2);
        ledger.sent(0, 3, 1);
        ledger.sent(0, 7, 1);
        ledger.sent(1, 1, 2);
        let mut failures = Vec::new();
        for _ in 0..5 {
            assert!(ledger.reported(Some(String::from("no"))));
        }
        failures.extend(ledger.listed().iter().map(|failure| (failure.source, failure.line)));
        assert_eq!(failures, [(0, 1), (0, 2), (0, 3), (0, 7), (1, 1)]);
        assert_eq!(ledger.unknown(), 1);
        assert_eq!(ledger.first_unknown(), Some((1, 2)));
        assert!(ledger.reported(None));
        assert_eq!((ledger.written, ledger.failed(), ledger.unknown()), (1, 5, 0));
        assert!(!ledger.reported(None), "a report for nothing");
    }

    #[test]
    fn the_list_of_failures_is_bounded() {
        let mut ledger = Ledger::default();
        let many = LISTED_MAX as u64 * 2;
        ledger.sent(0, 1, many);
        for _ in 0..many {
            ledger.reported(Some(String::new()));
        }
        assert_eq!(ledger.listed().len(), LISTED_MAX);
        assert_eq!(ledger.failed(), many);
    }
}
