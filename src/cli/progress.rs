//! A progress bar on a terminal, nothing elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

/// What a command's standard output carries while the bar is drawn on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stdout {
    /// Nothing that a bar could mix with.
    Silent,
    /// Data: on a terminal they would overwrite each other, so there is no bar then.
    Data,
}

/// Counts records and bytes and shows their rates while a terminal watches.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    started: Instant,
    records: u64,
    bytes: u64,
}

impl Progress {
    /// Starts counting. `total_bytes` of input, when known, makes it a bar with an end.
    pub(super) fn start(total_bytes: Option<u64>, stdout: Stdout) -> Self {
        // indicatif draws on stderr and hides itself when that is not a terminal.
        let bar = match total_bytes {
            _ if stdout == Stdout::Data && io::stdout().is_terminal() => ProgressBar::hidden(),
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::new_spinner(),
        };
        let template = match total_bytes {
            Some(_) => "{bar:30} {percent:>3}%  {msg}",
            None => "{spinner} {msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, started: Instant::now(), records: 0, bytes: 0 }
    }

    /// Counts records that were acknowledged.
    pub(super) fn add_records(&mut self, count: u64) {
        self.records += count;
        self.bar.set_message(self.rates());
    }

    /// Counts bytes that were sent or received.
    pub(super) fn add_bytes(&mut self, count: u64) {
        self.bytes += count;
        self.bar.set_position(self.bytes);
    }

    /// Shows a line of its own, above the bar if there is one.
    pub(super) fn say(&self, line: &str) -> io::Result<()> {
        self.bar.suspend(|| writeln!(io::stderr(), "{line}"))
    }

    /// Returns whether somebody watches the bar.
    pub(super) fn is_shown(&self) -> bool {
        !self.bar.is_hidden()
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// Says how much went how fast.
    pub(super) fn rates(&self) -> String {
        rates(self.records, self.bytes, self.started.elapsed())
    }
}

fn rates(records: u64, bytes: u64, elapsed: Duration) -> String {
    let millis = elapsed.as_millis().max(1);
    let per_second = u128::from(records) * 1000 / millis;
    let kilobytes_per_second = u128::from(bytes) / millis;
    format!(
        "{records} records, {} MB in {}.{:01} s: {per_second} records/s, {}.{:01} MB/s",
        bytes / 1_000_000,
        millis / 1000,
        millis % 1000 / 100,
        kilobytes_per_second / 1000,
        kilobytes_per_second % 1000 / 100,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_in_the_units_they_name() {
        let text = rates(336_776, 62_000_000, Duration::from_millis(2_500));
        assert_eq!(text, "336776 records, 62 MB in 2.5 s: 134710 records/s, 24.8 MB/s");
        assert!(rates(0, 0, Duration::ZERO).contains("0 records/s"));
    }
}
