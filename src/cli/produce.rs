//! `eddyline produce`: one streaming request, its reports read while it is being sent.
//!
//! Invariants:
//! - memory is bounded: a few chunks of input wait, reports are counted as they come;
//! - reports that nobody reads any more (`--reports | head`) are still counted: records go on being
//!   written, and the exit code tells what became of all of them;
//! - nothing is sent twice: when the connection breaks, the lines without a report have an unknown
//!   outcome and are told, not repeated.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::stream;
use parking_lot::Mutex;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Body, Method, Response};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::ProduceArgs;
use super::client::{Client, Refusal, refusal, without_url};
use super::failures::Ledger;
use super::input::{Chunks, Source};
use super::progress::{Progress, Stdout};

/// Chunks of input that wait for the connection.
const CHUNKS_WAITING_MAX: usize = 8;
/// Longest report line; a server's are far shorter.
const REPORT_BYTES_MAX: usize = 1024 * 1024;
const NDJSON: &str = "application/x-ndjson";

/// What reader, sender and report reader share; locked for a few instructions at a time.
#[derive(Debug)]
struct Shared {
    ledger: Ledger,
    progress: Progress,
}

/// One report line, as far as it matters here.
#[derive(Deserialize)]
struct Report {
    error: Option<Refusal>,
}

/// Runs the command.
pub(super) async fn run(args: ProduceArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.server.url)?;
    let sources = Source::list(&args.files);
    let stdout = if args.reports { Stdout::Data } else { Stdout::Silent };
    let shared = Arc::new(Mutex::new(Shared {
        ledger: Ledger::default(),
        progress: Progress::start(total_bytes(&sources), stdout),
    }));
    let (sender, receiver) = mpsc::channel(CHUNKS_WAITING_MAX);
    let (reading, seen) = (sources.clone(), Arc::clone(&shared));
    let reader = tokio::task::spawn_blocking(move || read_all(&reading, &seen, &sender));
    let streaming = stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|chunk: Bytes| (Ok::<_, io::Error>(chunk), receiver))
    });
    let request = client
        .topics(Method::POST, Some(&args.topic), "records", &[])
        .header(CONTENT_TYPE, NDJSON)
        .header(ACCEPT, NDJSON)
        .body(Body::wrap_stream(streaming));
    let outcome = match request.send().await {
        Ok(response) if response.status().is_success() => {
            read_reports(response, &shared, stdout).await
        }
        Ok(response) => Err(refusal(response).await.into()),
        Err(error) => Err(without_url(error)),
    };
    // The reader may wait for input that nobody will send; only its own failure is of interest.
    let input = if outcome.is_ok() { reader.await.context("reading the input")? } else { Ok(()) };
    let shared = shared.lock();
    shared.progress.finish();
    // What became of the records is told by the exit code, too, where nobody reads the summary.
    let _ = summarise(&shared, &sources);
    outcome.with_context(|| format!("producing to {} at {}", args.topic, client.url()))?;
    input?;
    let all_written = shared.ledger.failed() == 0 && shared.ledger.unknown() == 0;
    Ok(if all_written { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns the bytes of the input when all of it is plain files.
fn total_bytes(sources: &[Source]) -> Option<u64> {
    let size = |source: &Source| match source {
        Source::Stdin => None,
        Source::File(path) if path.extension().is_some_and(|name| name == "gz") => None,
        Source::File(path) => std::fs::metadata(path).ok().map(|metadata| metadata.len()),
    };
    sources.iter().map(size).sum()
}

/// Reads all sources, one after the other, into the request's body.
fn read_all(
    sources: &[Source],
    shared: &Mutex<Shared>,
    body: &mpsc::Sender<Bytes>,
) -> anyhow::Result<()> {
    for (number, source) in sources.iter().enumerate() {
        let context = || format!("reading {source}");
        let mut chunks = Chunks::new(source.open().with_context(context)?);
        while let Some(chunk) = chunks.next().with_context(context)? {
            let mut seen = shared.lock();
            for (line, count) in chunk.runs {
                seen.ledger.sent(number, line, count);
            }
            seen.progress.add_bytes(u64::try_from(chunk.bytes.len()).unwrap_or(u64::MAX));
            drop(seen);
            if body.blocking_send(chunk.bytes).is_err() {
                // The request has ended; why is told by the answer.
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Reads the answer to its end and books every report.
async fn read_reports(
    mut response: Response,
    shared: &Mutex<Shared>,
    stdout: Stdout,
) -> anyhow::Result<()> {
    let mut is_read = stdout == Stdout::Data;
    let mut partial = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(without_url)? {
        let end = memchr::memrchr(b'\n', &chunk).map_or(0, |at| at + 1);
        let (lines, rest) = chunk.split_at(end);
        partial.extend_from_slice(lines);
        if end > 0 {
            book(&partial, shared)?;
            is_read = is_read && print(&partial)?;
            partial.clear();
        }
        partial.extend_from_slice(rest);
        if partial.len() > REPORT_BYTES_MAX {
            bail!("the server sent a report of more than {REPORT_BYTES_MAX} bytes");
        }
    }
    if !partial.is_empty() {
        bail!("the server's last report is cut off");
    }
    Ok(())
}

/// Prints reports; returns false when their reader went away.
fn print(lines: &[u8]) -> io::Result<bool> {
    match io::stdout().write_all(lines) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

/// Books whole report lines.
fn book(lines: &[u8], shared: &Mutex<Shared>) -> anyhow::Result<()> {
    let mut shared = shared.lock();
    let mut count = 0;
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let reason = failure(line)?;
        count += u64::from(reason.is_none());
        if !shared.ledger.reported(reason) {
            bail!("the server sent more reports than it got records");
        }
    }
    shared.progress.add_records(count);
    Ok(())
}

/// Returns why a record was refused; `None` when it was written.
fn failure(line: &[u8]) -> anyhow::Result<Option<String>> {
    // Nearly every report is a success, and a success has no member `error`.
    if memchr::memmem::find(line, b"\"error\"").is_none() && line.starts_with(b"{\"partition\"") {
        return Ok(None);
    }
    let report: Report = serde_json::from_slice(line).context("the server sent a bad report")?;
    Ok(report.error.map(|error| error.to_string()))
}

/// Writes to standard error what became of the records.
fn summarise(shared: &Shared, sources: &[Source]) -> io::Result<()> {
    let mut out = io::stderr().lock();
    let ledger = &shared.ledger;
    let name = |at: usize| sources.get(at).map_or_else(String::new, Source::to_string);
    for failure in ledger.listed() {
        writeln!(out, "{}:{}: {}", name(failure.source), failure.line, failure.reason)?;
    }
    let listed = u64::try_from(ledger.listed().len()).unwrap_or(u64::MAX);
    if ledger.failed() > listed {
        writeln!(out, "... and {} more", ledger.failed() - listed)?;
    }
    write!(out, "{}", shared.progress.rates())?;
    if ledger.failed() > 0 {
        write!(out, "; {} failed", ledger.failed())?;
    }
    writeln!(out)?;
    if let Some((source, line)) = ledger.first_unknown() {
        writeln!(
            out,
            "{} records from {}:{line} on have no report: they may have been written or not",
            ledger.unknown(),
            name(source),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_success_or_says_why_not() {
        assert_eq!(failure(br#"{"partition":0,"offset":1,"timestamp":2}"#).unwrap(), None);
        assert_eq!(failure(br#"{"offset":1,"partition":0}"#).unwrap(), None);
        let refused = br#"{"error":{"code":"invalid_body","message":"no","status":422}}"#;
        assert_eq!(failure(refused).unwrap().as_deref(), Some("invalid_body: no"));
        assert!(failure(b"what").is_err());
    }
}
