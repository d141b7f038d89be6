//! `eddyline bench commit`: members of a group that commit as fast as they are answered.
//!
//! ```text
//! join --> everybody has partitions --> go: commit, committed, commit, committed ... --> stop
//! ```
//!
//! Invariants:
//! - a commit counts when the server has said `committed`; a member has a fixed number on the way;
//! - nothing is committed before the group has settled, so that no commit is fenced.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use futures_util::StreamExt;
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::frames::{Frame, RECORDS};
use super::report::{CommitReport, Output};
use super::setup::{self, duration};
use super::socket::{HELLO, Handler, Outgoing, Socket};
use super::tally::Tally;
use crate::cli::client::{Client, Refusal};
use crate::cli::topic_name;
use crate::types::TopicName;

/// Members that join at a time.
const JOINING_MAX: usize = 16;

/// Time for all partitions to have found their members.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How often it is looked whether they have.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Commits of a member on their way at most; a server takes no more of one socket.
const IN_FLIGHT_MAX: i64 = 200;

/// Opens members of a consumer group, one WebSocket each, that commit the offsets of their
/// partitions again and again, and measures the time until each commit is acknowledged.
#[derive(Debug, Args)]
pub(super) struct CommitArgs {
    /// The topic; made when it is missing.
    #[arg(value_parser = topic_name)]
    topic: TopicName,
    /// The group; nobody else should be a member.
    #[arg(long, short, default_value = "bench")]
    group: String,
    /// Members.
    #[arg(long, short = 'n', default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..))]
    members: u32,
    /// Partitions, at least one for each member; a topic that exists must have as many. As many as
    /// members for one that is missing.
    #[arg(long, short, value_parser = clap::value_parser!(u32).range(1..))]
    partitions: Option<u32>,
    /// Commits of a member that are on their way at a time.
    #[arg(long, default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=IN_FLIGHT_MAX))]
    in_flight: u32,
    /// How long is measured.
    #[arg(long, default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// How long commits go on before that is measured.
    #[arg(long, default_value = "2s", value_parser = duration)]
    warm_up: Duration,
    /// How the result is printed.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// What all members share.
struct Run {
    in_flight: u32,
    tally: Tally,
    /// Partitions of each member.
    assigned: Vec<AtomicU32>,
}

struct Member {
    number: usize,
    run: Arc<Run>,
    /// Partitions and the next offset to commit.
    offsets: BTreeMap<u32, u64>,
    seq: u64,
    /// When the commits on their way were sent, by number.
    sent_us: BTreeMap<u64, u64>,
}

/// A frame, as far as it matters.
#[derive(Debug, Deserialize)]
struct Message {
    #[serde(rename = "type")]
    kind: String,
    seq: Option<u64>,
    start: Option<BTreeMap<u32, u64>>,
    partitions: Option<Vec<u32>>,
    #[serde(flatten)]
    refusal: Refusal,
}

impl Member {
    async fn join(
        client: &Client,
        args: &CommitArgs,
        (run, number): (&Arc<Run>, usize),
    ) -> anyhow::Result<(Self, Socket)> {
        let mut socket = Socket::open(client).await?;
        let subscribe = json!({
            "type": "subscribe", "id": 1, "topic": args.topic, "group": {"id": args.group},
        });
        socket.out.push(HELLO)?;
        socket.out.push(&subscribe.to_string())?;
        let (run, offsets) = (Arc::clone(run), BTreeMap::new());
        Ok((Self { number, run, offsets, seq: 0, sent_us: BTreeMap::new() }, socket))
    }

    /// Waits for `go`, then commits until `stop`.
    async fn run(mut self, mut socket: Socket, go: CancellationToken, stop: CancellationToken) {
        if let Err(error) = self.commit_all(&mut socket, &go, &stop).await {
            self.run.tally.failed(&error);
        } else {
            socket.close().await;
        }
    }

    async fn commit_all(
        &mut self,
        socket: &mut Socket,
        go: &CancellationToken,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        if let Some(error) = go.run_until_cancelled(failure(socket, self)).await {
            return Err(error);
        }
        for _ in 0..self.run.in_flight {
            self.commit(&mut socket.out)?;
        }
        match stop.run_until_cancelled(failure(socket, self)).await {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn commit(&mut self, out: &mut Outgoing) -> anyhow::Result<()> {
        self.seq += 1;
        self.offsets.values_mut().for_each(|offset| *offset += 1);
        self.sent_us.insert(self.seq, self.run.tally.now_us());
        let commit = json!({"type": "commit", "id": 1, "seq": self.seq, "offsets": self.offsets});
        out.push(&commit.to_string())
    }

    fn committed(&mut self, seq: Option<u64>, out: &mut Outgoing) -> anyhow::Result<()> {
        let sent_us = seq.and_then(|seq| self.sent_us.remove(&seq));
        let sent_us = sent_us.context("a commit that nobody asked for")?;
        let tally = &self.run.tally;
        let now_us = tally.now_us();
        if tally.is_measured(now_us)
            && let Some(mut counts) = tally.counts(self.number)
        {
            counts.records += 1;
            counts.latency.saturating_record(now_us.saturating_sub(sent_us));
        }
        self.commit(out)
    }
}

impl Handler for Member {
    fn take(&mut self, frame: Frame<'_>, out: &mut Outgoing) -> anyhow::Result<()> {
        if frame.begin.starts_with(RECORDS) {
            return Ok(());
        }
        let message: Message =
            serde_json::from_slice(frame.begin).context("a frame is not as it should be")?;
        match message.kind.as_str() {
            "committed" => return self.committed(message.seq, out),
            "assigned" => self.offsets.extend(message.start.unwrap_or_default()),
            "revoking" | "revoked" => {
                ensure!(self.seq == 0, "the group was rebalanced while it was measured");
                let gone = message.partitions.unwrap_or_default();
                self.offsets.retain(|partition, _| !gone.contains(partition));
            }
            "error" => return Err(message.refusal.into()),
            "unsubscribed" | "goaway" => bail!("the server ended the membership"),
            _ => {}
        }
        if let Some(assigned) = self.run.assigned.get(self.number) {
            let count = u32::try_from(self.offsets.len()).unwrap_or(u32::MAX);
            assigned.store(count, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Drives a socket until it fails.
async fn failure(socket: &mut Socket, handler: &mut impl Handler) -> anyhow::Error {
    poll_fn(|context| match socket.drive(context, handler) {
        Err(error) => Poll::Ready(error),
        Ok(()) => Poll::Pending,
    })
    .await
}

/// Runs the command.
pub(super) async fn run(url: &str, args: &CommitArgs) -> anyhow::Result<ExitCode> {
    setup::check_descriptors(u64::from(args.members))?;
    let client = Client::new(url)?;
    let asked = (args.partitions, args.members);
    let partitions = setup::topic(&client, &args.topic, asked).await?;
    ensure!(
        partitions >= args.members,
        "{} members need as many partitions and {} has {partitions}",
        args.members,
        args.topic
    );
    let numbers = 0..usize::try_from(args.members)?;
    let run = Arc::new(Run {
        in_flight: args.in_flight,
        tally: Tally::start()?,
        assigned: numbers.clone().map(|_| AtomicU32::new(0)).collect(),
    });
    let (go, stop) = (CancellationToken::new(), CancellationToken::new());
    let sockets = Client::for_sockets(url)?;
    let mut joining = stream::iter(numbers)
        .map(|number| Member::join(&sockets, args, (&run, number)))
        .buffer_unordered(JOINING_MAX);
    let mut members = JoinSet::new();
    while let Some(joined) = joining.next().await {
        let (member, socket) = joined.context("joining the group")?;
        members.spawn(member.run(socket, go.clone(), stop.clone()));
    }
    settle(&run, partitions).await?;
    run.tally.measure(Instant::now() + args.warm_up, args.duration);
    go.cancel();
    tokio::time::sleep(args.warm_up + args.duration).await;
    stop.cancel();
    while members.join_next().await.is_some() {}
    let (errors, told) = run.tally.errors();
    let report = CommitReport {
        group: args.group.clone(),
        members: args.members,
        seconds: args.duration.as_secs_f64(),
        counts: run.tally.sum()?,
        errors,
        told,
    };
    report.print(args.output)
}

/// Waits until every partition has its member and every member a partition.
async fn settle(run: &Run, partitions: u32) -> anyhow::Result<()> {
    let deadline = Instant::now() + SETTLE_TIMEOUT;
    loop {
        let counts = || run.assigned.iter().map(|count| count.load(Ordering::Relaxed));
        if counts().sum::<u32>() == partitions && counts().all(|count| count > 0) {
            return Ok(());
        }
        let (failed, told) = run.tally.errors();
        ensure!(failed == 0, "{failed} members failed: {}", told.join("; "));
        let busy = counts().filter(|count| *count > 0).count();
        ensure!(
            Instant::now() < deadline,
            "{busy} of {} members have partitions after {SETTLE_TIMEOUT:?}",
            run.assigned.len()
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
