//! The `eddyline` binary: reads the command line and hands over to what was asked for.

use std::io::{self, BufWriter};
use std::process::ExitCode;

use eddyline::cli::{self, Command, ConfigCommand, ServeArgs};
use eddyline::config::{self, Config, Effective, Invalid, Machine, Sources};
use eddyline::{api, offline, process, server, telemetry};
use tokio::net::TcpListener;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let command = match cli::parse(config::help()) {
        Ok(command) => command,
        Err(code) => return code,
    };
    let outcome = match command {
        Command::Serve(args) => {
            process::raise_open_files();
            configure(&args).map(|found| process::done(serve(&found.config)))
        }
        Command::Config(ConfigCommand::Check(args)) => {
            configure(&args).map(|found| process::print(&found.to_toml()))
        }
        Command::Remote(command) => {
            process::raise_open_files();
            Ok(remote(command))
        }
        Command::Offline(command) => {
            let mut out = BufWriter::new(io::stdout().lock());
            Ok(process::done(offline::run(&command, &mut out)))
        }
        Command::Openapi => Ok(process::print(&api::openapi::json())),
    };
    outcome.unwrap_or_else(|invalid| process::fail(&invalid, ExitCode::from(cli::EXIT_USAGE)))
}

fn configure(args: &ServeArgs) -> Result<Effective, Invalid> {
    let sources = Sources {
        file: args.file(),
        environment: std::env::vars_os().collect(),
        set: args.set(),
        flags: args.flags(),
    };
    config::load_supported(&sources, Machine::detect())
}

fn serve(config: &Config) -> anyhow::Result<()> {
    process::without_huge_pages();
    telemetry::init(&config.log)?;
    let runtime = process::runtime()?;
    let outcome = runtime.block_on(async {
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(|error| anyhow::anyhow!("cannot listen on {}: {error}", config.listen))?;
        // Whoever started the node may have closed its stdout; it serves all the same.
        let announce = |address| {
            let _ = process::print(&cli::greeting(address));
        };
        Ok(server::run(config, listener, announce, process::asked_to_stop()?).await?)
    });
    // A thread may wait for a disk that does not answer.
    runtime.shutdown_background();
    outcome
}

fn remote(command: cli::Remote) -> ExitCode {
    let runtime = match process::runtime() {
        Ok(runtime) => runtime,
        Err(error) => return process::fail(&error, ExitCode::FAILURE),
    };
    let code = runtime.block_on(cli::run(command));
    // A thread may still wait for input on a terminal; nobody is interested in it any more.
    runtime.shutdown_background();
    code
}
