//! The `eddyline` binary: reads the command line and hands over to what was asked for.

use std::fmt::Display;
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

use eddyline::api;
use eddyline::cli::{self, Command, ConfigCommand, Offline, SegmentCommand, ServeArgs, WalCommand};
use eddyline::config::{self, Config, Effective, Invalid, Machine, Sources};
use eddyline::server;
use eddyline::storage::fs::RealFs;
use eddyline::storage::{segment_tools, wal};
use eddyline::telemetry;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code of a bad configuration, `EX_USAGE` of sysexits.h.
const EXIT_USAGE: u8 = 64;

fn main() -> ExitCode {
    let outcome = match cli::parse(config::help()) {
        Command::Serve(args) => configure(&args).map(|effective| serve(&effective.config)),
        Command::Config(ConfigCommand::Check(args)) => {
            configure(&args).map(|effective| print(&effective.to_toml()))
        }
        Command::Remote(command) => Ok(remote(command)),
        Command::Offline(command) => Ok(offline(&command)),
        Command::Openapi => Ok(print(&api::openapi::json())),
    };
    outcome.unwrap_or_else(|invalid| fail(&invalid, ExitCode::from(EXIT_USAGE)))
}

fn configure(args: &ServeArgs) -> Result<Effective, Invalid> {
    let sources = Sources {
        file: args.file(),
        environment: std::env::vars_os().collect(),
        set: args.set(),
        flags: args.flags(),
    };
    let effective = config::load(&sources, Machine::detect())?;
    effective.refuse_unsupported()?;
    Ok(effective)
}

fn serve(config: &Config) -> ExitCode {
    // The allocator asks for huge pages; a node that idles would hold 20 MB that it never uses.
    // Where the kernel refuses, that is all that is lost.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let run = || -> anyhow::Result<()> {
        telemetry::init(&config.log)?;
        runtime()?.block_on(async {
            let listener = TcpListener::bind(config.listen)
                .await
                .map_err(|error| anyhow::anyhow!("cannot listen on {}: {error}", config.listen))?;
            Ok(server::run(config, listener, announce, asked_to_stop()?).await?)
        })
    };
    done(run())
}

/// Says that the node serves, and how to try it.
fn announce(address: SocketAddr) {
    // Whoever started the node may have closed its stdout; it serves all the same.
    print(&cli::greeting(address));
}

/// Completes at the first SIGTERM or SIGINT.
fn asked_to_stop() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn remote(command: cli::Remote) -> ExitCode {
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, ExitCode::FAILURE),
    };
    let code = runtime.block_on(cli::run(command));
    // A thread may still wait for input on a terminal; nobody is interested in it any more.
    runtime.shutdown_background();
    code
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread().enable_all().build()
}

fn offline(command: &Offline) -> ExitCode {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut run = || -> anyhow::Result<()> {
        match command {
            Offline::Segment(SegmentCommand::Dump { path }) => {
                segment_tools::dump(&RealFs, path, &mut out)?;
            }
            Offline::Segment(SegmentCommand::Verify { path }) => {
                let summary = segment_tools::verify(&RealFs, path, &mut out)?;
                writeln!(
                    out,
                    "{} files, {} batches, {} records, {} bytes; \
                     bad: {} batches, {} tails, {} indexes",
                    summary.files,
                    summary.batches,
                    summary.records,
                    summary.bytes,
                    summary.bad_batches,
                    summary.bad_tails,
                    summary.bad_indexes,
                )?;
                out.flush()?;
                anyhow::ensure!(summary.is_good(), "{} is damaged", path.display());
            }
            Offline::Wal(WalCommand::Dump { dir, salvage }) => {
                let salvage =
                    if *salvage { wal::Salvage::SkipDamage } else { wal::Salvage::StopAtDamage };
                wal::dump(&RealFs, dir, &mut out, salvage)?;
            }
        }
        Ok(out.flush()?)
    };
    done(run())
}

fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn done(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format_args!("{error:#}"), ExitCode::FAILURE),
    }
}

fn fail(error: &dyn Display, code: ExitCode) -> ExitCode {
    let _ = writeln!(io::stderr(), "error: {error}");
    code
}
