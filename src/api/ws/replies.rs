//! Frames to the client, written by hand: `type` first, members in the protocol's order.

use std::io::Write as _;
use std::time::Duration;

use crate::api::error::ApiError;
use crate::api::json::text::push_string;
use crate::api::ws::frame::{HEADER_BYTES_MAX, push_text_header};
use crate::api::ws::requests::About;
use crate::broker::GapReason;
use crate::types::{NodeId, Offset, PartitionId, Timestamp};

/// Partitions and offsets, ascending.
pub(super) type Positions = [(PartitionId, Offset)];

/// Why a subscription starts elsewhere than it asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResetReason {
    /// Retention took the offset.
    Retention,
    /// The log ends before the offset, or was replaced: records were lost.
    Truncated,
}

/// A partition that starts elsewhere than it was asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reset {
    pub(super) partition: PartitionId,
    pub(super) asked: Offset,
    pub(super) reason: ResetReason,
}

/// What an error ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FatalTo {
    Request,
    Subscription,
}

/// Why a subscription ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndReason {
    Client,
    TopicDeleted,
}

/// A frame in the making.
struct Writer(Vec<u8>);

impl Writer {
    fn new(kind: &str) -> Self {
        let mut out = Vec::with_capacity(128);
        out.extend_from_slice(b"{\"type\":\"");
        out.extend_from_slice(kind.as_bytes());
        out.push(b'"');
        Self(out)
    }

    fn name(&mut self, name: &str) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    fn raw(&mut self, name: &str, json: &str) -> &mut Self {
        self.name(name);
        self.0.extend_from_slice(json.as_bytes());
        self
    }

    fn number(&mut self, name: &str, number: impl itoa::Integer) -> &mut Self {
        self.raw(name, itoa::Buffer::new().format(number))
    }

    fn text(&mut self, name: &str, text: &str) -> &mut Self {
        self.name(name);
        push_string(&mut self.0, text);
        self
    }

    fn offsets(&mut self, name: &str, offsets: &Positions) -> &mut Self {
        let offsets = offsets.iter().map(|(partition, offset)| (*partition, offset.get()));
        self.by_partition(name, offsets)
    }

    fn partitions(&mut self, partitions: &[PartitionId]) -> &mut Self {
        self.name("partitions");
        self.0.push(b'[');
        for (index, partition) in partitions.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let _ = write!(self.0, "{comma}{partition}");
        }
        self.0.push(b']');
        self
    }

    fn by_partition(
        &mut self,
        name: &str,
        numbers: impl Iterator<Item = (PartitionId, i64)>,
    ) -> &mut Self {
        self.name(name);
        self.0.push(b'{');
        for (index, (partition, number)) in numbers.enumerate() {
            let comma = if index > 0 { "," } else { "" };
            // Writing to memory does not fail.
            let _ = write!(self.0, "{comma}\"{partition}\":{number}");
        }
        self.0.push(b'}');
        self
    }

    fn finish(&mut self) -> Vec<u8> {
        self.0.push(b'}');
        std::mem::take(&mut self.0)
    }
}

pub(super) struct Welcome<'a> {
    pub(super) node: NodeId,
    pub(super) session: &'a str,
    pub(super) heartbeat_ms: u128,
    pub(super) subscriptions_max: usize,
    pub(super) frame_bytes_max: usize,
}

pub(super) fn welcome(welcome: &Welcome<'_>) -> Vec<u8> {
    let limits =
        format!("{{\"subs\":{},\"frame\":{}}}", welcome.subscriptions_max, welcome.frame_bytes_max);
    Writer::new("welcome")
        .number("node", welcome.node.get())
        .text("session", welcome.session)
        .number("hb_ms", welcome.heartbeat_ms)
        .raw("limits", &limits)
        .raw("expires_at", "null")
        .finish()
}

/// Where a subscription stands when it begins; the lists have the same partitions.
#[derive(Debug, Default)]
pub(super) struct Started {
    pub(super) start: Vec<(PartitionId, Offset)>,
    pub(super) reset: Vec<Reset>,
    pub(super) log_ends: Vec<(PartitionId, Offset)>,
    pub(super) epochs: Vec<(PartitionId, i32)>,
    /// How long the group waits for a member: what was asked for, clamped.
    pub(super) session_timeout: Option<Duration>,
}

pub(super) fn subscribed(id: u64, started: &Started) -> Vec<u8> {
    let mut writer = Writer::new("subscribed");
    writer.number("id", id).offsets("start", &started.start);
    writer.name("reset");
    push_resets(&mut writer.0, &started.reset);
    writer.offsets("hw", &started.log_ends);
    let epochs = started.epochs.iter().map(|(partition, epoch)| (*partition, i64::from(*epoch)));
    writer.by_partition("epoch", epochs);
    if let Some(session_timeout) = started.session_timeout {
        writer.number("session_timeout_ms", session_timeout.as_millis());
    }
    writer.finish()
}

fn push_resets(out: &mut Vec<u8>, resets: &[Reset]) {
    out.push(b'{');
    for (index, Reset { partition, asked, reason }) in resets.iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        let reason = match reason {
            ResetReason::Retention => "retention",
            ResetReason::Truncated => "truncated",
        };
        let _ = write!(out, "{comma}\"{partition}\":{{\"asked\":{asked},\"reason\":\"{reason}\"}}");
    }
    out.push(b'}');
}

/// What a `records` frame says beside its records.
#[derive(Debug, Clone, Copy)]
pub(super) struct RecordsHead {
    pub(super) id: u64,
    pub(super) partition: PartitionId,
    pub(super) base: Offset,
    pub(super) next: Offset,
    pub(super) log_end: Offset,
}

/// What is behind the records of a frame; the body of a frame is `[...]` and this.
pub(super) const RECORDS_END: &[u8] = b"]}";

/// Returns the header of a `records` frame and all of it that comes before a body of `body_bytes`,
/// which begins with the list's bracket; and how long the text is that the client gets to see.
pub(super) fn records_head(head: &RecordsHead, body_bytes: usize) -> (Vec<u8>, usize) {
    let mut writer = Writer::new("records");
    writer
        .number("id", head.id)
        .number("p", head.partition.get())
        .number("base", head.base.get())
        .number("next", head.next.get())
        .number("hw", head.log_end.get())
        .name("records");
    let text = writer.0;
    let mut out = Vec::with_capacity(HEADER_BYTES_MAX + text.len());
    let text_bytes = text.len() + body_bytes;
    push_text_header(&mut out, text_bytes);
    out.extend_from_slice(&text);
    (out, text_bytes)
}

/// How far a filtered subscription has come without telling.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Scan {
    pub(super) scanned: u64,
    pub(super) matched: u64,
    pub(super) caught_up: bool,
}

pub(super) fn progress(id: u64, next: &Positions, scan: Scan) -> Vec<u8> {
    Writer::new("progress")
        .number("id", id)
        .offsets("next", next)
        .number("scanned", scan.scanned)
        .number("matched", scan.matched)
        .raw("caught_up", if scan.caught_up { "true" } else { "false" })
        .finish()
}

/// Why offsets are passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passed {
    Lost(GapReason),
    Skipped,
}

pub(super) fn gap(
    id: u64,
    partition: PartitionId,
    (from, to): (Offset, Offset),
    why: Passed,
) -> Vec<u8> {
    let reason = match why {
        Passed::Lost(GapReason::Retention) => "retention",
        Passed::Lost(GapReason::Damaged) => "damaged",
        Passed::Skipped => "skip",
    };
    Writer::new("gap")
        .number("id", id)
        .number("p", partition.get())
        .number("from", from.get())
        .number("to", to.get())
        .text("reason", reason)
        .finish()
}

pub(super) fn seeked(id: u64, start: &Positions) -> Vec<u8> {
    Writer::new("seeked").number("id", id).offsets("start", start).finish()
}

pub(super) fn unsubscribed(id: u64, reason: EndReason) -> Vec<u8> {
    let reason = match reason {
        EndReason::Client => "client",
        EndReason::TopicDeleted => "topic_deleted",
    };
    Writer::new("unsubscribed").number("id", id).text("reason", reason).finish()
}

/// Writes `assigned`: partitions that a member takes on, and where it starts in them.
pub(super) fn assigned(id: u64, epoch: u32, start: &Positions) -> Vec<u8> {
    let partitions: Vec<_> = start.iter().map(|(partition, _)| *partition).collect();
    Writer::new("assigned")
        .number("id", id)
        .number("generation", epoch)
        .partitions(&partitions)
        .offsets("start", start)
        .finish()
}

pub(super) fn revoking(id: u64, partitions: &[PartitionId], within: Duration) -> Vec<u8> {
    Writer::new("revoking")
        .number("id", id)
        .partitions(partitions)
        .number("deadline_ms", within.as_millis())
        .finish()
}

pub(super) fn revoked(id: u64, partitions: &[PartitionId]) -> Vec<u8> {
    Writer::new("revoked").number("id", id).partitions(partitions).finish()
}

pub(super) fn committed(id: u64, seq: Option<u64>) -> Vec<u8> {
    let mut writer = Writer::new("committed");
    writer.number("id", id);
    if let Some(seq) = seq {
        writer.number("seq", seq);
    }
    writer.finish()
}

pub(super) fn authenticated() -> Vec<u8> {
    Writer::new("authenticated").raw("expires_at", "null").finish()
}

pub(super) fn pong(t: &str) -> Vec<u8> {
    Writer::new("pong").raw("t", t).finish()
}

/// Writes `produced`; `records` is the list of outcomes as JSON.
pub(super) fn produced(seq: u64, records: &str) -> Vec<u8> {
    Writer::new("produced").number("seq", seq).raw("records", records).finish()
}

pub(super) fn goaway() -> Vec<u8> {
    Writer::new("goaway").text("reason", "drain").raw("retry_in_ms", "[200,5000]").finish()
}

/// Writes a heartbeat with the log ends of every subscription.
pub(super) fn heartbeat(
    now: Timestamp,
    subscriptions: impl Iterator<Item = (u64, Vec<(PartitionId, Offset)>)>,
) -> Vec<u8> {
    let mut writer = Writer::new("hb");
    writer.number("t", now.as_millis()).name("hw");
    writer.0.push(b'{');
    for (index, (id, log_ends)) in subscriptions.enumerate() {
        let comma = if index > 0 { "," } else { "" };
        let _ = write!(writer.0, "{comma}\"{id}\":{{");
        for (index, (partition, offset)) in log_ends.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let _ = write!(writer.0, "{comma}\"{partition}\":{offset}");
        }
        writer.0.push(b'}');
    }
    writer.0.push(b'}');
    writer.finish()
}

pub(super) fn error(about: About, error: &ApiError, fatal_to: FatalTo) -> Vec<u8> {
    let code = error.code();
    let row = code.row();
    let mut writer = Writer::new("error");
    if let Some(id) = about.id {
        writer.number("id", id);
    }
    if let Some(seq) = about.seq {
        writer.number("seq", seq);
    }
    writer
        .text("code", row.name)
        .number("error_code", error.error_code())
        .number("status", row.status.as_u16())
        .text("message", error.detail())
        .raw("retriable", if code.is_retriable() { "true" } else { "false" })
        .text(
            "fatal_to",
            match fatal_to {
                FatalTo::Request => "request",
                FatalTo::Subscription => "subscription",
            },
        )
        .finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::error::Code;

    fn at(partition: u32, offset: i64) -> (PartitionId, Offset) {
        (PartitionId::new(partition).unwrap(), Offset::new(offset).unwrap())
    }

    fn text(frame: Vec<u8>) -> String {
        String::from_utf8(frame).unwrap()
    }

    #[test]
    fn frames_have_the_members_of_the_protocol_in_its_order() {
        let started = Started {
            start: vec![at(0, 15_500), at(1, 95)],
            reset: vec![Reset {
                partition: at(1, 0).0,
                asked: at(1, 90).1,
                reason: ResetReason::Retention,
            }],
            log_ends: vec![at(0, 16_000), at(1, 96)],
            epochs: vec![(at(0, 0).0, 7), (at(1, 0).0, 7)],
            session_timeout: None,
        };
        assert_eq!(
            text(subscribed(1, &started)),
            concat!(
                r#"{"type":"subscribed","id":1,"start":{"0":15500,"1":95},"#,
                r#""reset":{"1":{"asked":90,"reason":"retention"}},"#,
                r#""hw":{"0":16000,"1":96},"epoch":{"0":7,"1":7}}"#
            )
        );
        let (partition, base) = at(0, 15_500);
        let (next, log_end) = (at(0, 15_580).1, at(0, 16_000).1);
        let head = RecordsHead { id: 1, partition, base, next, log_end };
        let (head, text_bytes) = records_head(&head, 10);
        assert_eq!(
            &text(head[2..].to_vec()),
            r#"{"type":"records","id":1,"p":0,"base":15500,"next":15580,"hw":16000,"records":"#
        );
        assert_eq!((usize::from(head[1]), text_bytes), (text_bytes, head.len() - 2 + 10));
        let scan = Scan { scanned: 400, matched: 0, caught_up: false };
        assert_eq!(
            text(progress(1, &[at(0, 15_900)], scan)),
            concat!(
                r#"{"type":"progress","id":1,"next":{"0":15900},"#,
                r#""scanned":400,"matched":0,"caught_up":false}"#
            )
        );
        let lost = Passed::Lost(GapReason::Retention);
        assert_eq!(
            text(gap(1, partition, (at(0, 100).1, at(0, 5000).1), lost)),
            r#"{"type":"gap","id":1,"p":0,"from":100,"to":5000,"reason":"retention"}"#
        );
        let refused = ApiError::new(Code::TopicNotFound, "no \"x\"");
        assert_eq!(
            text(error(About { id: Some(1), seq: Some(12) }, &refused, FatalTo::Request)),
            concat!(
                r#"{"type":"error","id":1,"seq":12,"code":"topic_not_found","error_code":40401,"#,
                r#""status":404,"message":"no \"x\"","retriable":false,"fatal_to":"request"}"#
            )
        );
        let log_ends = std::iter::once((1, vec![at(0, 16_000)]));
        assert_eq!(
            text(heartbeat(Timestamp::from_millis(1764), log_ends)),
            r#"{"type":"hb","t":1764,"hw":{"1":{"0":16000}}}"#
        );
        assert_eq!(
            text(goaway()),
            r#"{"type":"goaway","reason":"drain","retry_in_ms":[200,5000]}"#
        );
        assert_eq!(text(pong("123")), r#"{"type":"pong","t":123}"#);
        assert_eq!(text(produced(3, "[]")), r#"{"type":"produced","seq":3,"records":[]}"#);
        assert_eq!(text(seeked(1, &[at(0, 0)])), r#"{"type":"seeked","id":1,"start":{"0":0}}"#);
    }

    #[test]
    fn frames_of_groups_have_the_members_of_the_protocol_in_its_order() {
        assert_eq!(
            text(assigned(1, 5, &[at(0, 15_500)])),
            r#"{"type":"assigned","id":1,"generation":5,"partitions":[0],"start":{"0":15500}}"#
        );
        assert_eq!(
            text(revoking(1, &[at(1, 0).0], Duration::from_secs(3))),
            r#"{"type":"revoking","id":1,"partitions":[1],"deadline_ms":3000}"#
        );
        assert_eq!(
            text(revoked(1, &[at(1, 0).0])),
            r#"{"type":"revoked","id":1,"partitions":[1]}"#
        );
        assert_eq!(text(committed(1, Some(12))), r#"{"type":"committed","id":1,"seq":12}"#);
    }
}
