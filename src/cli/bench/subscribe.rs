//! `eddyline bench subscribe`: subscribers on one side, an open loop of producers on the other.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;
use futures_util::stream;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::load::{self, Plan, Sent};
use super::report::{Output, Report};
use super::setup::{self, duration};
use super::stamp::{STAMP_BYTES, Stamp};
use super::subscriber::{Positions, Run, Subscriber};
use super::tally::Tally;
use crate::cli::client::Client;
use crate::cli::progress::{Progress, Stdout};
use crate::cli::topic_name;
use crate::types::TopicName;

/// Sockets that are opened at a time.
const OPENING_MAX: usize = 64;

/// Time between the last subscriber's arrival and the first record.
const LEAD: Duration = Duration::from_millis(200);

/// How long the last records may take to arrive while nothing else does.
const DRAIN_SILENCE: Duration = Duration::from_secs(10);

/// How often the drain, and whoever shows progress, looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const SHOW_EVERY: Duration = Duration::from_millis(500);

/// Requests a second, beyond which records share requests unless `--batch` says otherwise.
const REQUESTS_PER_SECOND: u64 = 1000;

/// Records of a request of `--max` unless `--batch` says otherwise.
const BATCH_OF_MAX: u64 = 100;

/// Most records of a request, what a server takes by default.
const BATCH_MAX: i64 = 10_000;

/// Opens many subscribers of a topic, writes records at a fixed rate, and measures the time from
/// when each record was due to be sent until a subscriber has it.
///
/// The loop is open: records are sent when they are due, however slowly the answers come, and a
/// send that is late counts from when it was due. A record counts as late as the oldest of its
/// frame. The exit code is 1 when a record is missing, came twice or could not be written, or when
/// a subscriber was lost.
#[derive(Debug, Args)]
pub(super) struct SubscribeArgs {
    /// The topic; made when it is missing. Nobody else should write to it meanwhile.
    #[arg(value_parser = topic_name)]
    topic: TopicName,
    /// WebSockets that subscribe to the topic, from its end.
    #[arg(long, short = 'n', default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..))]
    subscribers: u32,
    /// Records a second; 0 is the same as --max.
    #[arg(long, default_value_t = 1000, conflicts_with_all = ["max", "idle"])]
    rate: u64,
    /// Write as fast as the answers come, with as many requests under way as there are producers.
    #[arg(long, conflicts_with = "idle")]
    max: bool,
    /// Write nothing: only hold the subscribers.
    #[arg(long)]
    idle: bool,
    /// Bytes of a record's value.
    #[arg(long, default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(STAMP_BYTES as i64..=1_000_000))]
    record_bytes: u32,
    /// How long is measured.
    #[arg(long, default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// How long records are written before that is measured.
    #[arg(long, default_value = "2s", value_parser = duration)]
    warm_up: Duration,
    /// Partitions; a topic that exists must have as many. 1 for one that is missing.
    #[arg(long, short, value_parser = clap::value_parser!(u32).range(1..))]
    partitions: Option<u32>,
    /// Requests that are under way at a time; when all are, a send is late.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    producers: u32,
    /// Records of a request; as many as make 1,000 requests a second unless given.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=BATCH_MAX))]
    batch: Option<u32>,
    /// How the result is printed.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

impl SubscribeArgs {
    /// Returns the rate, `None` when there is none.
    fn rate(&self) -> Option<u64> {
        (!self.max && self.rate > 0).then_some(self.rate)
    }

    fn batch(&self) -> u64 {
        match (self.batch, self.rate()) {
            (Some(batch), _) => u64::from(batch),
            (None, Some(rate)) => (rate / REQUESTS_PER_SECOND).max(1),
            (None, None) => BATCH_OF_MAX,
        }
    }

    fn plan(&self, start: Instant) -> anyhow::Result<Plan> {
        Ok(Plan {
            rate: self.rate(),
            batch: self.batch(),
            producers: usize::try_from(self.producers)?,
            record_bytes: usize::try_from(self.record_bytes)?,
            start,
            duration: self.warm_up + self.duration,
        })
    }
}

/// The subscribers of a run.
struct Subscribers {
    positions: Vec<Positions>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

/// Runs the command.
pub(super) async fn run(url: &str, args: &SubscribeArgs) -> anyhow::Result<ExitCode> {
    setup::check_descriptors(u64::from(args.subscribers) + u64::from(args.producers))?;
    let client = Client::new(url)?;
    let partitions = setup::topic(&client, &args.topic, (args.partitions, 1)).await?;
    let run = Arc::new(Run {
        topic: args.topic.clone(),
        partitions,
        stamp: Stamp::new(rand::random()),
        tally: Tally::start()?,
    });
    let mut subscribers = connect(&Client::for_sockets(url)?, &run, args.subscribers).await?;
    let start = Instant::now() + LEAD;
    run.tally.measure(start + args.warm_up, args.duration);
    let working = work(&client, &run, args, start);
    let sent = watch(&run, working).await?;
    let lost = drain(&run, &sent, &subscribers.positions).await;
    let ended = end(&mut subscribers).await;
    let (errors, told) = run.tally.errors();
    let report = Report {
        topic: args.topic.to_string(),
        subscribers: args.subscribers,
        connected: subscribers.positions.len(),
        closed_early: ended,
        asked_per_second: if args.idle { Some(0) } else { args.rate() },
        batch: args.batch(),
        seconds: args.duration.as_secs_f64(),
        counts: run.tally.sum()?,
        sent,
        lost,
        errors,
        told,
    };
    report.print(args.output)
}

/// Opens the subscribers, some at a time.
async fn connect(client: &Client, run: &Arc<Run>, count: u32) -> anyhow::Result<Subscribers> {
    let mut subscribers = Subscribers {
        positions: Vec::new(),
        tasks: JoinSet::new(),
        stop: CancellationToken::new(),
    };
    let numbers = 0..usize::try_from(count)?;
    let mut opening = stream::iter(numbers)
        .map(|number| Subscriber::connect(client, run, number))
        .buffer_unordered(OPENING_MAX);
    let mut failed = None;
    while let Some(opened) = opening.next().await {
        match opened {
            Ok((subscriber, socket, positions)) => {
                subscribers.positions.push(positions);
                subscribers.tasks.spawn(subscriber.run(socket, subscribers.stop.clone()));
            }
            Err(error) => {
                run.tally.failed(&error);
                failed.get_or_insert(error);
            }
        }
    }
    match failed {
        Some(error) if subscribers.positions.is_empty() => {
            Err(error.context("no subscriber could connect"))
        }
        _ => Ok(subscribers),
    }
}

/// Writes the records, or waits while nothing is written.
async fn work(
    client: &Client,
    run: &Arc<Run>,
    args: &SubscribeArgs,
    start: Instant,
) -> anyhow::Result<Sent> {
    let plan = args.plan(start)?;
    if args.idle {
        tokio::time::sleep_until(start + plan.duration).await;
        return Sent::nothing(run.partitions);
    }
    tokio::time::sleep_until(start).await;
    load::produce(client, run, &plan).await
}

/// Shows what is delivered while the work goes on.
async fn watch<T>(run: &Run, work: impl Future<Output = T>) -> T {
    let mut progress = Progress::start(None, Stdout::Silent);
    let mut work = std::pin::pin!(work);
    let mut shown = 0;
    loop {
        if let Ok(done) = tokio::time::timeout(SHOW_EVERY, work.as_mut()).await {
            progress.finish();
            return done;
        }
        let delivered = run.tally.delivered();
        progress.add_records(delivered - shown);
        shown = delivered;
    }
}

/// Waits until everybody has everything that was acknowledged, or nothing arrives any more. Returns
/// the records that are missing.
async fn drain(run: &Run, sent: &Sent, positions: &[Positions]) -> u64 {
    let (mut delivered, mut since) = (run.tally.delivered(), Instant::now());
    loop {
        let missing = missing(&sent.ends, positions);
        let now = run.tally.delivered();
        if now != delivered {
            (delivered, since) = (now, Instant::now());
        }
        if missing == 0 || since.elapsed() > DRAIN_SILENCE {
            return missing;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn missing(ends: &[u64], positions: &[Positions]) -> u64 {
    let of_one = |positions: &Positions| -> u64 {
        let missing = |(end, next): (&u64, &_)| end.saturating_sub(load_relaxed(next));
        ends.iter().zip(positions.iter()).map(missing).sum()
    };
    positions.iter().map(of_one).sum()
}

fn load_relaxed(number: &std::sync::atomic::AtomicU64) -> u64 {
    number.load(Ordering::Relaxed)
}

/// Closes the sockets; returns how many had ended before.
async fn end(subscribers: &mut Subscribers) -> u64 {
    let mut early = 0;
    while subscribers.tasks.try_join_next().is_some() {
        early += 1;
    }
    subscribers.stop.cancel();
    while subscribers.tasks.join_next().await.is_some() {}
    early
}
