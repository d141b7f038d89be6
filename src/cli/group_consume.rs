//! `eddyline consume --group`: a stream of events as a member of a group.
//!
//! Invariants:
//! - what is committed was printed and flushed before, so a record is printed at least once;
//! - a broken connection is made anew, and goes on where the group is;
//! - without `--follow` it ends where the topic ended when the partitions came.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::header::ACCEPT;
use reqwest::{Method, Response};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::ConsumeArgs;
use super::client::{Client, NoConnection, Refusal, send, send_json, without_url};

/// Bytes of one event; the server's are smaller but for one large record.
const EVENT_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Pause before a broken stream is made anew, doubled each time up to the second.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Deserialize)]
struct Records<'a> {
    #[serde(borrow)]
    records: Vec<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
struct Place {
    partition: u32,
    offset: u64,
}

#[derive(Debug, Deserialize)]
struct Assigned {
    start: BTreeMap<u32, u64>,
    member_id: String,
    epoch: u32,
}

#[derive(Debug, Deserialize)]
struct Ended {
    reason: String,
}

#[derive(Debug, Deserialize)]
struct TopicObject {
    details: Vec<PartitionObject>,
}

#[derive(Debug, Deserialize)]
struct PartitionObject {
    partition: u32,
    log_end_offset: u64,
}

/// Why a stream is not read on.
enum Done {
    /// All that was asked for is printed.
    Finished,
    /// The server ended it; another connection goes on.
    Again,
}

/// A member while its stream is open.
struct Reader<'a> {
    client: &'a Client,
    args: &'a ConsumeArgs,
    group: &'a str,
    /// The membership of the last `assigned` event.
    member: Option<Assigned>,
    /// Where the topic ended when the partitions came.
    ends: BTreeMap<u32, u64>,
    left: u64,
}

/// Runs the command.
pub(super) async fn run(args: ConsumeArgs, group: &str) -> anyhow::Result<ExitCode> {
    if !matches!(args.from.as_str(), "earliest" | "latest") {
        bail!("with --group, --from is earliest or latest");
    }
    let client = Client::new(&args.server.url)?;
    let left = args.limit.unwrap_or(u64::MAX);
    let (member, ends) = (None, BTreeMap::new());
    let mut reader = Reader { client: &client, args: &args, group, member, ends, left };
    let mut pause = RETRY_FIRST;
    loop {
        match reader.stream().await {
            Ok(Done::Finished) => return Ok(ExitCode::SUCCESS),
            Ok(Done::Again) => pause = RETRY_FIRST,
            Err(error) if args.follow && is_passing(&error) => {
                writeln!(io::stderr(), "{error:#}; trying again")?;
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
            Err(error) => {
                return Err(error.context(format!("reading {} at {}", args.topic, client.url())));
            }
        }
    }
}

/// Whether another try may succeed: the connection failed, or the server says so.
fn is_passing(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<Refusal>() {
        Some(refusal) => refusal.is_passing() || refusal.code == "stale_member",
        None => {
            error.chain().any(|cause| cause.is::<reqwest::Error>() || cause.is::<NoConnection>())
        }
    }
}

impl Reader<'_> {
    async fn stream(&mut self) -> anyhow::Result<Done> {
        let args = self.args;
        let mut query: Vec<(&str, &str)> = vec![
            ("group", self.group),
            ("commit", "manual"),
            ("from", &args.from),
            ("format", args.format.as_str()),
            ("skip_damaged", if args.skip_damaged { "true" } else { "false" }),
        ];
        query.extend(args.instance_id.iter().map(|id| ("instance_id", id.as_str())));
        query.extend(args.key.iter().map(|key| ("key", key.as_str())));
        query.extend(args.key_prefix.iter().map(|prefix| ("key_prefix", prefix.as_str())));
        query.extend(args.headers.iter().map(|header| ("header", header.as_str())));
        let request = self.client.topics(Method::GET, Some(&args.topic), "records", &query);
        let mut response = send(request.header(ACCEPT, "text/event-stream")).await?;
        let mut buffer = Vec::new();
        while let Some(event) = next_event(&mut response, &mut buffer).await? {
            if let Some(done) = self.take(&event).await? {
                return Ok(done);
            }
        }
        Ok(Done::Again)
    }

    async fn take(&mut self, event: &str) -> anyhow::Result<Option<Done>> {
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
        let (kind, data) = (field("event: ").unwrap_or_default(), field("data: "));
        let Some(data) = data else {
            return Ok(None);
        };
        match kind {
            "assigned" => {
                let assigned: Assigned = serde_json::from_str(data)?;
                self.note_ends(&assigned).await?;
                self.member = Some(assigned);
            }
            "records" => {
                let next = self.print(data)?;
                self.commit(&next).await?;
            }
            "gap" => writeln!(io::stderr(), "not there any more: {data}")?,
            "error" => return Err(serde_json::from_str::<Refusal>(data)?.into()),
            "end" => {
                let Ended { reason } = serde_json::from_str(data)?;
                if reason == "topic_deleted" {
                    bail!("the topic was deleted");
                }
                return Ok(Some(Done::Again));
            }
            _ => {}
        }
        let is_end = !self.args.follow && self.is_at_the_end();
        Ok((self.left == 0 || is_end).then_some(Done::Finished))
    }

    /// Notes where the topic ends, of partitions that are new.
    async fn note_ends(&mut self, assigned: &Assigned) -> anyhow::Result<()> {
        if self.args.follow {
            return Ok(());
        }
        self.ends.retain(|partition, _| assigned.start.contains_key(partition));
        let request = self.client.topics(Method::GET, Some(&self.args.topic), "", &[]);
        let topic: TopicObject = send_json(request).await?;
        for part in topic.details {
            if assigned.start.contains_key(&part.partition) {
                self.ends.entry(part.partition).or_insert(part.log_end_offset);
            }
        }
        Ok(())
    }

    /// Whether every partition is read to where it ended. A member without partitions waits: the
    /// others' may come to it.
    fn is_at_the_end(&self) -> bool {
        let Some(Assigned { start, .. }) = &self.member else {
            return false;
        };
        let is_read = |(partition, next): (&u32, &u64)| {
            self.ends.get(partition).is_none_or(|end| next >= end)
        };
        !start.is_empty() && start.iter().all(is_read)
    }

    /// Prints records and returns the next offset of each of their partitions.
    fn print(&mut self, data: &str) -> anyhow::Result<BTreeMap<u32, u64>> {
        let page: Records<'_> = serde_json::from_str(data)?;
        let mut next = BTreeMap::new();
        let mut out = io::stdout().lock();
        for record in page.records {
            if self.left == 0 {
                break;
            }
            self.left -= 1;
            let Place { partition, offset } = serde_json::from_str(record.get())?;
            out.write_all(record.get().as_bytes())?;
            out.write_all(b"\n")?;
            next.insert(partition, offset + 1);
        }
        out.flush()?;
        Ok(next)
    }

    async fn commit(&mut self, next: &BTreeMap<u32, u64>) -> anyhow::Result<()> {
        let member = self.member.as_mut().context("the server sent records without partitions")?;
        let topic = self.args.topic.as_str();
        let one = |(partition, offset): (&u32, &u64)| {
            let (partition, offset) = (*partition, *offset);
            json!({"topic": topic, "partition": partition, "offset": offset})
        };
        let offsets: Vec<_> = next.iter().map(one).collect();
        let Assigned { member_id, epoch, .. } = member;
        let body = json!({"offsets": offsets, "member_id": member_id, "epoch": epoch});
        let path = [self.group, "offsets"];
        match send(self.client.groups(Method::POST, &path, &[]).json(&body)).await {
            Ok(_) => {}
            // Another member reads it again, or this one with its next epoch.
            Err(error)
                if error.downcast_ref::<Refusal>().is_some_and(|no| no.code == "stale_member") => {}
            Err(error) => return Err(error),
        }
        for (partition, offset) in next {
            member.start.insert(*partition, *offset);
        }
        Ok(())
    }
}

/// Reads on to the empty line that ends an event; `None` at the end of the stream.
async fn next_event(
    response: &mut Response,
    buffer: &mut Vec<u8>,
) -> anyhow::Result<Option<String>> {
    let mut searched = 0;
    loop {
        let found = buffer.get(searched..).and_then(|new| memchr::memmem::find(new, b"\n\n"));
        if let Some(at) = found {
            let rest = buffer.split_off(searched + at + 2);
            let event = std::mem::replace(buffer, rest);
            return Ok(Some(String::from_utf8(event).context("an event that is not UTF-8")?));
        }
        searched = buffer.len().saturating_sub(1);
        if buffer.len() > EVENT_BYTES_MAX {
            bail!("an event has more than {EVENT_BYTES_MAX} bytes");
        }
        match response.chunk().await.map_err(without_url)? {
            Some(chunk) => buffer.extend_from_slice(&chunk),
            None => return Ok(None),
        }
    }
}
