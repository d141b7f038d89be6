//! `eddyline consume`: pages of NDJSON, each asked for by the cursor of the one before.
//!
//! Invariants:
//! - a page is printed when it has arrived whole, and the cursor moves with it: a broken connection
//!   neither repeats nor skips a record;
//! - a page's size is bounded by the server's `max_bytes`, so memory is;
//! - records that should have come and did not, because they are deleted or damaged, are told on
//!   standard error.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use reqwest::Method;
use reqwest::header::ACCEPT;

use super::ConsumeArgs;
use super::client::{Client, NoConnection, Refusal, send, without_url};
use super::progress::{Progress, Stdout};

/// Records asked for at a time.
const PAGE_RECORDS: u64 = 5_000;
/// Longest wait for new records that is asked for, in milliseconds.
const WAIT_MS: &str = "30000";
/// Longest place that is asked for in the address. A cursor of thousands of partitions has no room
/// there, and goes into a header.
const FROM_BYTES_MAX: usize = 1024;
/// Pause after a failure, doubled each time up to the second.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// One page of records.
struct Page {
    lines: Bytes,
    records: u64,
    next: String,
    /// Offsets that were asked for and are gone, as the server writes them: `0:5-9,1:0-3`.
    gaps: Option<String>,
}

/// Where the next page starts.
enum Position {
    /// As the command line says.
    Start,
    /// After a page.
    Cursor(String),
}

/// Runs the command.
pub(super) async fn run(args: ConsumeArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.server.url)?;
    let mut progress = Progress::start(None, Stdout::Data);
    let outcome = read(&client, &args, &mut progress).await;
    progress.finish();
    let position = outcome?;
    if progress.is_shown() {
        writeln!(io::stderr(), "{}", progress.rates())?;
    }
    if let (true, Position::Cursor(cursor)) = (args.cursor, position) {
        writeln!(io::stderr(), "{cursor}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints page after page, and returns where the next one would start.
async fn read(
    client: &Client,
    args: &ConsumeArgs,
    progress: &mut Progress,
) -> anyhow::Result<Position> {
    let mut position = Position::Start;
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut pause = RETRY_FIRST;
    while left > 0 {
        let page = match fetch(client, args, &position, left).await {
            Ok(page) => page,
            Err(error) if args.follow && is_passing(&error) => {
                progress.say(&format!("{error:#}; trying again"))?;
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
                continue;
            }
            Err(error) => {
                return Err(error.context(format!("reading {} at {}", args.topic, client.url())));
            }
        };
        pause = RETRY_FIRST;
        let mut out = io::stdout().lock();
        out.write_all(&page.lines)?;
        out.flush()?;
        drop(out);
        progress.add_records(page.records);
        progress.add_bytes(u64::try_from(page.lines.len())?);
        if let Some(gaps) = &page.gaps {
            progress.say(&format!("not there any more: {gaps} (partition:first-last offset)"))?;
        }
        left = left.saturating_sub(page.records);
        // With a filter, or behind a gap, an empty page may only mean that the cursor moved.
        let has_moved = match &position {
            Position::Start => has_filter(args) || page.gaps.is_some(),
            Position::Cursor(cursor) => *cursor != page.next,
        };
        let is_end = page.records == 0 && !has_moved;
        position = Position::Cursor(page.next);
        if is_end && !args.follow {
            break;
        }
    }
    Ok(position)
}

fn has_filter(args: &ConsumeArgs) -> bool {
    args.key.is_some() || args.key_prefix.is_some() || !args.headers.is_empty()
}

/// Whether the same request may succeed later: the connection failed, or the server says so.
fn is_passing(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<Refusal>() {
        Some(refusal) => refusal.is_passing(),
        None => {
            error.chain().any(|cause| cause.is::<reqwest::Error>() || cause.is::<NoConnection>())
        }
    }
}

/// Asks for the next page.
async fn fetch(
    client: &Client,
    args: &ConsumeArgs,
    position: &Position,
    left: u64,
) -> anyhow::Result<Page> {
    let limit = left.min(PAGE_RECORDS).to_string();
    let partition = args.partition.map(|partition| partition.to_string());
    let offset = args.offset.map(|offset| offset.to_string());
    let mut cursor = None;
    let mut query: Vec<(&str, &str)> = vec![("limit", &limit), ("format", args.format.as_str())];
    match (position, &partition, &offset) {
        (Position::Start, Some(partition), Some(offset)) => {
            query.extend([("partition", partition.as_str()), ("offset", offset.as_str())]);
        }
        (start, partition, _) => {
            match start {
                Position::Start if args.from.len() <= FROM_BYTES_MAX => {
                    query.push(("from", &args.from));
                }
                Position::Start => cursor = Some(&args.from),
                Position::Cursor(next) => cursor = Some(next),
            }
            query.extend(partition.iter().map(|partition| ("partitions", partition.as_str())));
        }
    }
    query.extend(args.key.iter().map(|key| ("key", key.as_str())));
    query.extend(args.key_prefix.iter().map(|prefix| ("key_prefix", prefix.as_str())));
    query.extend(args.headers.iter().map(|header| ("header", header.as_str())));
    if args.follow {
        query.push(("wait", WAIT_MS));
    }
    if args.skip_damaged {
        query.push(("skip_damaged", "true"));
    }
    let mut request = client
        .topics(Method::GET, Some(&args.topic), "records", &query)
        .header(ACCEPT, "application/x-ndjson");
    if let Some(cursor) = cursor {
        request = request.header("Last-Event-ID", cursor);
    }
    let response = send(request).await?;
    let header = |name| {
        let value = response.headers().get(name).and_then(|value| value.to_str().ok());
        value.map(str::to_owned)
    };
    let next =
        header("Eddyline-Next").context("the server's answer has no header Eddyline-Next")?;
    let gaps = header("Eddyline-Gaps");
    let lines = response.bytes().await.map_err(without_url)?;
    let records = u64::try_from(memchr::memchr_iter(b'\n', &lines).count())?;
    Ok(Page { lines, records, next, gaps })
}
