//! What a run prints, for people and for scripts, and how it ends.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::ValueEnum;
use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::json;

use super::load::Sent;
use super::tally::Counts;

/// Quantiles that are told, with their names.
const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

/// How a result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// A table.
    Text,
    /// One JSON object; times in microseconds.
    Json,
}

/// Some quantiles of microseconds.
#[derive(Debug, Serialize)]
pub(super) struct Quantiles {
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

impl Quantiles {
    pub(super) fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: histogram.max() }
    }

    /// Writes them as milliseconds.
    pub(super) fn text(histogram: &Histogram<u64>) -> String {
        let mut text = String::new();
        for (name, quantile) in QUANTILES {
            text.push_str(&format!("{name} {}  ", millis(histogram.value_at_quantile(quantile))));
        }
        text.push_str(&format!("max {}", millis(histogram.max())));
        text
    }
}

fn millis(us: u64) -> String {
    format!("{}.{:02} ms", us / 1000, us % 1000 / 10)
}

/// The result of `bench subscribe`.
pub(super) struct Report {
    pub(super) topic: String,
    pub(super) subscribers: u32,
    pub(super) connected: usize,
    /// Subscribers that did not last until the end.
    pub(super) closed_early: u64,
    pub(super) asked_per_second: Option<u64>,
    pub(super) batch: u64,
    /// How long was measured.
    pub(super) seconds: f64,
    pub(super) counts: Counts,
    pub(super) sent: Sent,
    /// Acknowledged and not delivered, of all subscribers.
    pub(super) lost: u64,
    pub(super) errors: u64,
    /// Some of the errors.
    pub(super) told: Vec<String>,
}

impl Report {
    /// Prints the result; what went wrong goes to standard error. Returns the exit code.
    pub(super) fn print(&self, output: Output) -> anyhow::Result<ExitCode> {
        let text = match output {
            Output::Text => self.text(),
            Output::Json => format!("{}\n", self.json()),
        };
        print(&text, &self.told)?;
        Ok(if self.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn lost(&self) -> u64 {
        self.lost + self.counts.passed
    }

    fn is_good(&self) -> bool {
        let counts = &self.counts;
        let wrong = [counts.gaps, counts.duplicates, self.lost(), self.errors, self.sent.failed];
        wrong.iter().sum::<u64>() + self.closed_early == 0
            && u32::try_from(self.connected) == Ok(self.subscribers)
    }

    fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.seconds.max(1e-9)
    }

    fn text(&self) -> String {
        let Self { counts, sent, .. } = self;
        let rate = |count| self.per_second(count);
        let asked = match self.asked_per_second {
            Some(asked) => format!("of {asked} asked for"),
            None => String::from("as fast as possible"),
        };
        let mut lines = vec![
            (
                "subscribers",
                format!(
                    "{} of {} connected, {} lost on the way",
                    self.connected, self.subscribers, self.closed_early
                ),
            ),
            (
                "produced",
                format!(
                    "{} records, {:.0} a second, {asked}, {} a request",
                    sent.acked,
                    rate(sent.acked_measured),
                    self.batch
                ),
            ),
            (
                "delivered",
                format!(
                    "{} records, {:.0} a second, {:.1} MB/s in {:.0} frames/s",
                    counts.records,
                    rate(counts.records),
                    rate(counts.bytes) / 1e6,
                    rate(counts.frames)
                ),
            ),
        ];
        if !counts.latency.is_empty() {
            lines.push(("latency", Quantiles::text(&counts.latency)));
            lines.push(("answered", Quantiles::text(&sent.answered)));
            lines.push(("sent late", Quantiles::text(&sent.late)));
        }
        lines.push(("gaps", counts.gaps.to_string()));
        lines.push(("duplicates", counts.duplicates.to_string()));
        lines.push(("lost", self.lost().to_string()));
        lines.push(("errors", format!("{}, records not written {}", self.errors, sent.failed)));
        lines.iter().map(|(name, text)| format!("{name:<12} {text}\n")).collect()
    }

    fn json(&self) -> serde_json::Value {
        let Self { counts, sent, .. } = self;
        json!({
            "topic": self.topic,
            "subscribers": self.subscribers,
            "connected": self.connected,
            "closed_early": self.closed_early,
            "seconds": self.seconds,
            "asked_per_second": self.asked_per_second,
            "produced": sent.acked,
            "produced_per_second": self.per_second(sent.acked_measured),
            "not_written": sent.failed,
            "delivered": counts.records,
            "delivered_per_second": self.per_second(counts.records),
            "delivered_mb_per_second": self.per_second(counts.bytes) / 1e6,
            "frames_per_second": self.per_second(counts.frames),
            "latency_us": Quantiles::of(&counts.latency),
            "answered_us": Quantiles::of(&sent.answered),
            "sent_late_us": Quantiles::of(&sent.late),
            "gaps": counts.gaps,
            "duplicates": counts.duplicates,
            "lost": self.lost(),
            "errors": self.errors,
        })
    }
}

/// The result of `bench commit`.
pub(super) struct CommitReport {
    pub(super) group: String,
    pub(super) members: u32,
    /// How long was measured.
    pub(super) seconds: f64,
    pub(super) counts: Counts,
    pub(super) errors: u64,
    /// Some of the errors.
    pub(super) told: Vec<String>,
}

impl CommitReport {
    /// Prints the result; what went wrong goes to standard error. Returns the exit code.
    pub(super) fn print(&self, output: Output) -> anyhow::Result<ExitCode> {
        let (commits, latency) = (self.counts.records, &self.counts.latency);
        let per_second = commits as f64 / self.seconds.max(1e-9);
        let text = match output {
            Output::Text => format!(
                "members      {}\ncommitted    {commits}, {per_second:.0} a second\n\
                 latency      {}\nerrors       {}\n",
                self.members,
                Quantiles::text(latency),
                self.errors,
            ),
            Output::Json => {
                let json = json!({
                    "group": self.group,
                    "members": self.members,
                    "seconds": self.seconds,
                    "committed": commits,
                    "committed_per_second": per_second,
                    "latency_us": Quantiles::of(latency),
                    "errors": self.errors,
                });
                format!("{json}\n")
            }
        };
        print(&text, &self.told)?;
        Ok(if self.errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn print(result: &str, errors: &[String]) -> io::Result<()> {
    io::stdout().lock().write_all(result.as_bytes())?;
    errors.iter().try_for_each(|error| writeln!(io::stderr(), "error: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::tally::{Tally, histogram};

    fn report() -> Report {
        let tally = Tally::start().unwrap();
        Report {
            topic: String::from("t"),
            subscribers: 2,
            connected: 2,
            closed_early: 0,
            asked_per_second: Some(1000),
            batch: 1,
            seconds: 2.0,
            counts: tally.sum().unwrap(),
            sent: Sent::nothing(1).unwrap(),
            lost: 0,
            errors: 0,
            told: Vec::new(),
        }
    }

    #[test]
    fn whatever_is_missing_doubled_or_refused_is_a_failure() {
        assert!(report().is_good());
        let spoil: [fn(&mut Report); 8] = [
            |report| report.counts.gaps = 1,
            |report| report.counts.duplicates = 1,
            |report| report.counts.passed = 1,
            |report| report.lost = 1,
            |report| report.errors = 1,
            |report| report.sent.failed = 1,
            |report| report.connected = 1,
            |report| report.closed_early = 1,
        ];
        for spoil in spoil {
            let mut report = report();
            spoil(&mut report);
            assert!(!report.is_good());
        }
    }

    #[test]
    fn rates_are_those_of_a_second_and_times_are_milliseconds() {
        let mut report = report();
        report.counts.records = 3000;
        report.counts.latency.saturating_record_n(2500, 10);
        let text = report.text();
        assert!(text.contains("3000 records, 1500 a second"), "{text}");
        assert!(text.contains("p99 2.50 ms"), "{text}");
        let json = report.json();
        assert_eq!(json["delivered_per_second"], 1500.0);
        assert_eq!(json["latency_us"]["p999"], 2501, "within three digits");
        assert_eq!(millis(1_234_567), "1234.56 ms");
        assert!(Quantiles::text(&histogram().unwrap()).contains("p50 0.00 ms"));
    }
}
