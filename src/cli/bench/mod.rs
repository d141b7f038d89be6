//! `eddyline bench`: load that measures a server from outside.
//!
//! ```text
//! subscribe/commit -> socket (one task each) -> frames   bytes to frames
//!        |                 \-> subscriber, member        continuity, credit, commits
//!        \-> load          producers on a schedule       tally: counts, histograms -> report
//! ```
//!
//! Invariants:
//! - a command measures the server and not itself: no work per record, no allocation per frame;
//! - times are this process's own, from when something was due, so there are no clocks to compare;
//! - stdout has the result only.

mod commit;
mod frames;
mod load;
mod report;
mod setup;
mod socket;
mod stamp;
mod subscribe;
mod subscriber;
mod tally;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::ServerArgs;

/// `eddyline bench ...`
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    Subscribe(subscribe::SubscribeArgs),
    Commit(commit::CommitArgs),
}

/// Runs the command.
pub(super) async fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        BenchCommand::Subscribe(subscribe) => subscribe::run(&args.server.url, &subscribe).await,
        BenchCommand::Commit(commit) => commit::run(&args.server.url, &commit).await,
    }
}
