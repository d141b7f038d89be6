//! One subscriber: it subscribes, checks that nothing is missing or doubled, and gives credit back.
//!
//! Invariants:
//! - the work is per frame, never per record: what a frame covers is in its head, and the time at
//!   which its first record was meant to be sent is at the beginning of that record's value;
//! - continuity is what the protocol promises: `base` of a frame is the `next` of the last one, or
//!   a `gap` lies between.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::frames::{Frame, RECORDS};
use super::socket::{HELLO, Handler, Outgoing, Socket};
use super::stamp::Stamp;
use super::tally::Tally;
use crate::cli::client::{Client, Refusal};
use crate::types::TopicName;

/// Credit that a subscriber starts with; it gives back what it used when half is gone.
const CREDIT_RECORDS: u64 = 10_000;
const CREDIT_BYTES: u64 = 16 * 1024 * 1024;

/// Time for a subscription to begin.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(30);

/// Next offsets by partition, written by their subscriber and read by whoever looks how far it is.
pub(super) type Positions = Arc<[AtomicU64]>;

/// What all subscribers of a run share.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) topic: TopicName,
    pub(super) partitions: u32,
    pub(super) stamp: Stamp,
    pub(super) tally: Tally,
}

/// A subscriber.
pub(super) struct Subscriber {
    number: usize,
    run: Arc<Run>,
    positions: Positions,
    is_subscribed: bool,
    owed_records: u64,
    owed_bytes: u64,
}

/// What a frame with records says before the first record's value.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    partition: usize,
    base: u64,
    next: u64,
    /// When the first record was meant to be sent, if a producer of this run sent it.
    sent_us: Option<u64>,
}

/// A frame without records, as far as it matters.
#[derive(Debug, Deserialize)]
struct Message {
    #[serde(rename = "type")]
    kind: String,
    start: Option<BTreeMap<u32, u64>>,
    p: Option<u32>,
    from: Option<u64>,
    to: Option<u64>,
    #[serde(flatten)]
    refusal: Refusal,
}

impl Subscriber {
    /// Opens a socket and subscribes to all of the topic, from its end. Returns the subscriber with
    /// its socket and the positions that it keeps.
    ///
    /// # Errors
    /// Why there is no subscription.
    pub(super) async fn connect(
        client: &Client,
        run: &Arc<Run>,
        number: usize,
    ) -> anyhow::Result<(Self, Socket, Positions)> {
        let mut socket = Socket::open(client).await?;
        let positions: Positions = (0..run.partitions).map(|_| AtomicU64::new(0)).collect();
        let mut subscriber = Self {
            number,
            run: Arc::clone(run),
            positions: Arc::clone(&positions),
            is_subscribed: false,
            owed_records: 0,
            owed_bytes: 0,
        };
        let subscribe = json!({
            "type": "subscribe", "id": 1, "topic": run.topic, "from": {"at": "latest"},
            "format": "text", "credit": {"records": CREDIT_RECORDS, "bytes": CREDIT_BYTES},
        });
        socket.out.push(HELLO)?;
        socket.out.push(&subscribe.to_string())?;
        let subscribed = poll_fn(|context| match socket.drive(context, &mut subscriber) {
            Err(error) => Poll::Ready(Err(error)),
            Ok(()) if subscriber.is_subscribed => Poll::Ready(Ok(())),
            Ok(()) => Poll::Pending,
        });
        let subscribed = tokio::time::timeout(SUBSCRIBE_TIMEOUT, subscribed).await;
        subscribed.map_err(|_elapsed| anyhow!("the server answered no subscribe in time"))??;
        Ok((subscriber, socket, positions))
    }

    /// Receives until `stop`, and notes in the tally when that ends early.
    pub(super) async fn run(mut self, mut socket: Socket, stop: CancellationToken) {
        let failed =
            stop.run_until_cancelled(poll_fn(|context| match socket.drive(context, &mut self) {
                Err(error) => Poll::Ready(error),
                Ok(()) => Poll::Pending,
            }));
        match failed.await {
            Some(error) => self.run.tally.failed(&error),
            None => socket.close().await,
        }
    }

    fn take_records(&mut self, frame: Frame<'_>, out: &mut Outgoing) -> anyhow::Result<()> {
        let head = Head::parse(frame.begin, &self.run.stamp);
        let head = head.context("a frame of records is not as it should be")?;
        let position = self.positions.get(head.partition).context("an unknown partition")?;
        let expected = position.swap(head.next, Ordering::Relaxed);
        let records = head.next.saturating_sub(head.base);
        let tally = &self.run.tally;
        let now_us = tally.now_us();
        tally.add_delivered(records);
        if let Some(mut counts) = tally.counts(self.number) {
            counts.gaps += head.base.saturating_sub(expected);
            counts.duplicates += expected.min(head.next).saturating_sub(head.base);
            if tally.is_measured(now_us) {
                counts.frames += 1;
                counts.records += records;
                counts.bytes += frame.bytes;
            }
            if let Some(sent_us) = head.sent_us.filter(|sent_us| tally.is_measured(*sent_us)) {
                counts.latency.saturating_record_n(now_us.saturating_sub(sent_us), records);
            }
        }
        self.owed_records += records;
        self.owed_bytes += frame.bytes;
        if self.owed_records >= CREDIT_RECORDS / 2 || self.owed_bytes >= CREDIT_BYTES / 2 {
            let (records, bytes) = (self.owed_records, self.owed_bytes);
            (self.owed_records, self.owed_bytes) = (0, 0);
            out.push(&format!(
                r#"{{"type":"credit","id":1,"records":{records},"bytes":{bytes}}}"#
            ))?;
        }
        Ok(())
    }

    fn take_message(&mut self, text: &[u8]) -> anyhow::Result<()> {
        let message: Message =
            serde_json::from_slice(text).context("a frame is not as it should be")?;
        match message.kind.as_str() {
            "subscribed" => {
                for (partition, start) in message.start.unwrap_or_default() {
                    let at = usize::try_from(partition).ok();
                    let position = at.and_then(|at| self.positions.get(at));
                    position.context("an unknown partition")?.store(start, Ordering::Relaxed);
                }
                self.is_subscribed = true;
            }
            "gap" => {
                let next = message.to.context("a gap without an end")?.saturating_add(1);
                let from = message.from.context("a gap without a beginning")?;
                let partition = message.p.and_then(|p| usize::try_from(p).ok());
                let position = partition.and_then(|at| self.positions.get(at));
                position.context("an unknown partition")?.store(next, Ordering::Relaxed);
                if let Some(mut counts) = self.run.tally.counts(self.number) {
                    counts.passed += next.saturating_sub(from);
                }
            }
            "error" => return Err(message.refusal.into()),
            "unsubscribed" => bail!("the subscription ended: the topic was deleted"),
            "goaway" => bail!("the server stops"),
            _ => {}
        }
        Ok(())
    }
}

impl Handler for Subscriber {
    fn take(&mut self, frame: Frame<'_>, out: &mut Outgoing) -> anyhow::Result<()> {
        if frame.begin.starts_with(RECORDS) {
            self.take_records(frame, out)
        } else {
            self.take_message(frame.begin)
        }
    }
}

impl Head {
    /// Reads the members in the protocol's order.
    fn parse(begin: &[u8], stamp: &Stamp) -> Option<Self> {
        let mut rest = begin.strip_prefix(RECORDS)?;
        number(&mut rest, b"\"id\":")?;
        let partition = number(&mut rest, b",\"p\":")?;
        let base = number(&mut rest, b",\"base\":")?;
        let next = number(&mut rest, b",\"next\":")?;
        number(&mut rest, b",\"hw\":")?;
        let partition = usize::try_from(partition).ok()?;
        Some(Self { partition, base, next, sent_us: sent_us(rest, stamp) })
    }
}

/// Reads a member: its name and a number.
fn number(rest: &mut &[u8], name: &[u8]) -> Option<u64> {
    let text = rest.strip_prefix(name)?;
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, behind) = text.split_at_checked(digits)?;
    *rest = behind;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Reads the stamp of the first record, if that is one of this run.
fn sent_us(mut rest: &[u8], stamp: &Stamp) -> Option<u64> {
    number(&mut rest, b",\"records\":[[")?;
    number(&mut rest, b",")?;
    stamp.read(rest.strip_prefix(b",null,\"")?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::frames::Kind;

    fn subscriber() -> Subscriber {
        let run = Run {
            topic: TopicName::parse("t").unwrap(),
            partitions: 2,
            stamp: Stamp::new(7),
            tally: Tally::start().unwrap(),
        };
        run.tally.measure(tokio::time::Instant::now(), Duration::from_secs(3600));
        Subscriber {
            number: 0,
            run: Arc::new(run),
            positions: (0..2).map(|_| AtomicU64::new(0)).collect(),
            is_subscribed: false,
            owed_records: 0,
            owed_bytes: 0,
        }
    }

    fn frame(text: &str) -> Frame<'_> {
        Frame { kind: Kind::Text, begin: text.as_bytes(), bytes: 1000 }
    }

    fn records(partition: u32, base: u64, next: u64) -> String {
        format!(
            "{{\"type\":\"records\",\"id\":1,\"p\":{partition},\"base\":{base},\"next\":{next},\
             \"hw\":99,\"records\":[[{base},1764,"
        )
    }

    fn take(subscriber: &mut Subscriber, text: &str) -> anyhow::Result<()> {
        subscriber.take(frame(text), &mut Outgoing::default())
    }

    #[test]
    fn the_head_of_a_frame_says_what_it_covers_and_when_that_was_sent() {
        let stamp = Stamp::new(7);
        let mut text = records(3, 10, 20);
        text.push_str("null,\"");
        text.push_str(&stamp.write(123_456));
        text.push_str("xxxx\",[]]]}");
        let expected = Head { partition: 3, base: 10, next: 20, sent_us: Some(123_456) };
        assert_eq!(Head::parse(text.as_bytes(), &stamp), Some(expected));
        // The record of another run, one with a key, and a frame that was cut say no time.
        for (text, stamp) in [
            (text.clone(), Stamp::new(8)),
            (text.replace("null,", "\"k\","), stamp),
            (text[..text.len() - 20].to_owned(), stamp),
        ] {
            assert_eq!(Head::parse(text.as_bytes(), &stamp).unwrap().sent_us, None, "{text}");
        }
        assert_eq!(Head::parse(br#"{"type":"records","p":1}"#, &stamp), None);
    }

    #[test]
    fn gaps_and_duplicates_are_counted_by_partition() {
        let mut subscriber = subscriber();
        take(&mut subscriber, r#"{"type":"subscribed","id":1,"start":{"0":5,"1":7},"reset":{}}"#)
            .unwrap();
        assert!(subscriber.is_subscribed);
        take(&mut subscriber, &records(0, 5, 10)).unwrap();
        take(&mut subscriber, &records(1, 7, 9)).unwrap();
        let sum = subscriber.run.tally.sum().unwrap();
        assert_eq!((sum.gaps, sum.duplicates, sum.records), (0, 0, 7));
        take(&mut subscriber, &records(0, 13, 14)).unwrap();
        take(&mut subscriber, &records(1, 8, 12)).unwrap();
        let sum = subscriber.run.tally.sum().unwrap();
        assert_eq!((sum.gaps, sum.duplicates), (3, 1));
        // What the server tells is no gap, but it is lost all the same.
        let told = r#"{"type":"gap","id":1,"p":0,"from":14,"to":19,"reason":"retention"}"#;
        take(&mut subscriber, told).unwrap();
        take(&mut subscriber, &records(0, 20, 21)).unwrap();
        let sum = subscriber.run.tally.sum().unwrap();
        assert_eq!((sum.gaps, sum.duplicates, sum.passed), (3, 1, 6));
    }

    #[test]
    fn credit_is_given_back_at_half_of_the_window() {
        let mut subscriber = subscriber();
        let mut out = Outgoing::default();
        subscriber.take(frame(&records(0, 0, CREDIT_RECORDS / 2 - 1)), &mut out).unwrap();
        assert_eq!(subscriber.owed_bytes, 1000);
        subscriber
            .take(frame(&records(0, CREDIT_RECORDS / 2 - 1, CREDIT_RECORDS / 2)), &mut out)
            .unwrap();
        assert_eq!((subscriber.owed_records, subscriber.owed_bytes), (0, 0));
    }

    #[test]
    fn what_ends_a_subscription_is_told() {
        for (text, expected) in [
            (
                r#"{"type":"error","id":1,"code":"topic_not_found","message":"no t"}"#,
                "topic_not_found: no t",
            ),
            (r#"{"type":"goaway","reason":"drain"}"#, "the server stops"),
            (
                r#"{"type":"unsubscribed","id":1,"reason":"topic_deleted"}"#,
                "the subscription ended",
            ),
            (r#"{"type":"records","p":1}"#, "a frame of records is not as it should be"),
            (&records(9, 0, 1), "an unknown partition"),
        ] {
            let error = take(&mut subscriber(), text).unwrap_err();
            assert!(format!("{error:#}").starts_with(expected), "{error:#}");
        }
        for text in [r#"{"type":"welcome"}"#, r#"{"type":"hb","t":1}"#] {
            take(&mut subscriber(), text).unwrap();
        }
    }
}
