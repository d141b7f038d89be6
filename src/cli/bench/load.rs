//! Producers: an open loop that sends when it is time to, whatever the answers do.
//!
//! ```text
//! schedule   0     1     2     3     4     5        one send each, at fixed intervals
//! producer A |-----answer----| |--answer--|         whoever is free takes the next send
//! producer B       |-answer-|    |--answer--|
//! ```
//!
//! Invariants:
//! - a send that finds no free producer is late, and its records carry the time at which it was
//!   due, so what they wait here is part of their latency;
//! - at most as many requests are under way as there are producers;
//! - without a rate every producer sends again as soon as it has its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::stamp::STAMP_BYTES;
use super::subscriber::Run;
use super::tally::histogram;
use crate::cli::client::{Client, Refusal, send, without_url};

/// Largest answer that is read: that to the largest request.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What is sent, and when.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Records of a second, `None` for as many as can be.
    pub(super) rate: Option<u64>,
    /// Records of a request.
    pub(super) batch: u64,
    /// Requests that are under way at a time.
    pub(super) producers: usize,
    pub(super) record_bytes: usize,
    pub(super) start: Instant,
    pub(super) duration: Duration,
}

impl Plan {
    /// Returns when a send is due, `None` when there is no more.
    fn due(&self, number: u64) -> Option<Instant> {
        let after = match self.rate {
            None => return (self.start.elapsed() < self.duration).then(Instant::now),
            Some(rate) => {
                let nanos = u128::from(number) * u128::from(self.batch) * 1_000_000_000
                    / u128::from(rate.max(1));
                Duration::from_nanos(u64::try_from(nanos).ok()?)
            }
        };
        (after < self.duration).then(|| self.start + after)
    }
}

/// What became of the records.
#[derive(Debug)]
pub(super) struct Sent {
    /// Records that were acknowledged.
    pub(super) acked: u64,
    /// Those of them that were due, and acknowledged, in the measured window.
    pub(super) acked_measured: u64,
    /// Records that were refused, or whose outcome is unknown.
    pub(super) failed: u64,
    /// Microseconds by which sends were late.
    pub(super) late: Histogram<u64>,
    /// Microseconds from when a request was due until it was answered.
    pub(super) answered: Histogram<u64>,
    /// The offset behind the last acknowledged record, by partition.
    pub(super) ends: Vec<u64>,
}

impl Sent {
    pub(super) fn nothing(partitions: u32) -> anyhow::Result<Self> {
        let ends = (0..partitions).map(|_| 0).collect();
        let (late, answered) = (histogram()?, histogram()?);
        Ok(Self { acked: 0, acked_measured: 0, failed: 0, late, answered, ends })
    }
}

#[derive(Deserialize)]
struct Answer {
    records: Vec<Report>,
}

#[derive(Deserialize)]
struct Report {
    partition: Option<usize>,
    offset: Option<u64>,
    error: Option<Refusal>,
}

/// Sends all that is planned and waits for the last answer.
///
/// # Errors
/// Only what keeps the load from being made; what fails on the way is in the tally.
pub(super) async fn produce(client: &Client, run: &Arc<Run>, plan: &Plan) -> anyhow::Result<Sent> {
    let sent = Arc::new(Mutex::new(Sent::nothing(run.partitions)?));
    let next = Arc::new(AtomicU64::new(0));
    let mut producers = JoinSet::new();
    for _ in 0..plan.producers {
        let producer = Producer {
            client: client.clone(),
            run: Arc::clone(run),
            plan: plan.clone(),
            next: Arc::clone(&next),
            sent: Arc::clone(&sent),
        };
        producers.spawn(producer.run());
    }
    while let Some(ended) = producers.join_next().await {
        ended.context("a producer failed")?;
    }
    let sent = Arc::into_inner(sent).context("a producer is still there")?;
    Ok(sent.into_inner())
}

struct Producer {
    client: Client,
    run: Arc<Run>,
    plan: Plan,
    next: Arc<AtomicU64>,
    sent: Arc<Mutex<Sent>>,
}

impl Producer {
    async fn run(self) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(due) = self.plan.due(number) else { return };
            tokio::time::sleep_until(due).await;
            let (due_us, now_us) = (self.run.tally.us_of(due), self.run.tally.now_us());
            if self.run.tally.is_measured(due_us) {
                self.sent.lock().late.saturating_record(now_us.saturating_sub(due_us));
            }
            let reports = self.request(number, due_us).await;
            let now_us = self.run.tally.now_us();
            let is_measured = self.run.tally.is_measured(now_us);
            if self.run.tally.is_measured(due_us) {
                let took_us = now_us.saturating_sub(due_us);
                self.sent.lock().answered.saturating_record(took_us);
            }
            if let Err(error) = self.note(reports, is_measured) {
                self.run.tally.failed(&error);
            }
        }
    }

    async fn request(&self, number: u64, due_us: u64) -> anyhow::Result<Vec<Report>> {
        let partition = number % u64::from(self.run.partitions.max(1));
        let value = self.run.stamp.write(due_us);
        let body = body(&value, partition, (self.plan.batch, self.plan.record_bytes));
        let request = self.client.topics(Method::POST, Some(&self.run.topic), "records", &[]);
        let request = request.header(CONTENT_TYPE, "application/json").body(body);
        let mut response = send(request).await?;
        let mut text = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(without_url)? {
            text.extend_from_slice(&chunk);
            if text.len() > ANSWER_BYTES_MAX {
                bail!("the server's answer is too long");
            }
        }
        let answer: Answer =
            serde_json::from_slice(&text).context("reading the server's answer")?;
        Ok(answer.records)
    }

    /// Notes what became of a request's records.
    fn note(&self, reports: anyhow::Result<Vec<Report>>, is_measured: bool) -> anyhow::Result<()> {
        let mut sent = self.sent.lock();
        let reports = match reports {
            Ok(reports) => reports,
            Err(error) => {
                sent.failed += self.plan.batch;
                return Err(error);
            }
        };
        let mut refused = None;
        for report in reports {
            match report {
                Report { partition: Some(partition), offset: Some(offset), error: None } => {
                    sent.acked += 1;
                    sent.acked_measured += u64::from(is_measured);
                    let end = sent.ends.get_mut(partition).context("an unknown partition")?;
                    *end = (*end).max(offset + 1);
                }
                Report { error, .. } => {
                    sent.failed += 1;
                    refused = error.or(refused);
                }
            }
        }
        refused.map_or(Ok(()), |refusal| Err(refusal.into()))
    }
}

/// Writes a request: records of `bytes` bytes each, all with the same stamp.
fn body(stamp: &str, partition: u64, (count, bytes): (u64, usize)) -> Vec<u8> {
    let filler = "x".repeat(bytes.saturating_sub(STAMP_BYTES));
    let record = format!(
        "{{\"partition\":{partition},\"encoding\":\"text\",\"value\":\"{stamp}{filler}\"}}"
    );
    let size = usize::try_from(count).unwrap_or(0).saturating_mul(record.len() + 1);
    let mut body = Vec::with_capacity(size + 16);
    body.extend_from_slice(b"{\"records\":[");
    for at in 0..count {
        if at > 0 {
            body.push(b',');
        }
        body.extend_from_slice(record.as_bytes());
    }
    body.extend_from_slice(b"]}");
    body
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::cli::bench::stamp::Stamp;

    fn plan(rate: Option<u64>, batch: u64) -> Plan {
        Plan {
            rate,
            batch,
            producers: 1,
            record_bytes: 100,
            start: Instant::now(),
            duration: Duration::from_secs(2),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn sends_are_due_at_fixed_intervals_and_end_with_the_duration() {
        let plan = plan(Some(10_000), 10);
        let due = |number| plan.due(number).map(|due| due - plan.start);
        assert_eq!(due(0), Some(Duration::ZERO));
        assert_eq!(due(7), Some(Duration::from_millis(7)));
        assert_eq!(due(1999), Some(Duration::from_millis(1999)));
        assert_eq!(due(2000), None);
        assert_eq!(due(u64::MAX), None);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_rate_a_send_is_due_at_once_until_the_end() {
        let plan = plan(None, 1);
        assert_eq!(plan.due(1 << 40), Some(Instant::now()));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(plan.due(0), None);
    }

    #[test]
    fn a_request_has_as_many_records_of_as_many_bytes_as_planned() {
        let stamp = Stamp::new(1).write(5);
        for (count, bytes) in [(1, 20), (3, 100)] {
            let body: Value = serde_json::from_slice(&body(&stamp, 4, (count, bytes))).unwrap();
            let records = body["records"].as_array().unwrap();
            assert_eq!(records.len() as u64, count);
            for record in records {
                assert_eq!(record["partition"], 4);
                assert_eq!(record["value"].as_str().unwrap().len(), bytes);
                assert!(record["value"].as_str().unwrap().starts_with(&stamp));
            }
        }
    }
}
