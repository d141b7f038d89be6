//! The command line: what can be asked for, and the commands that talk to a server over HTTP.
//!
//! `main` runs what needs a server's parts (`serve`, `config check`, `openapi`, the offline tools);
//! this layer knows `types` and HTTP only, so a client built from it could be another program.
//!
//! Invariants:
//! - stdout carries data and nothing else, so it can be piped; progress, summaries and errors go to
//!   stderr;
//! - a command that could not do all it was asked for ends with a code other than 0.

mod bench;
mod client;
mod consume;
mod failures;
mod group;
mod group_consume;
mod input;
mod produce;
mod progress;
mod topic;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

pub use bench::BenchArgs;

use crate::types::TopicName;

/// Exit code of a command line or a configuration that is wrong, `EX_USAGE` of sysexits.h.
pub const EXIT_USAGE: u8 = 64;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "eddyline", version, about, args_conflicts_with_subcommands = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

/// What the process was asked to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node (the default).
    Serve(ServeArgs),
    /// What a server is asked to do.
    #[command(flatten)]
    Remote(Remote),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the OpenAPI document.
    Openapi,
    /// What is done with a stopped node's files.
    #[command(flatten)]
    Offline(Offline),
}

/// A command that talks to a server.
#[derive(Debug, Subcommand)]
pub enum Remote {
    /// Create, list, describe and delete topics.
    Topic(TopicArgs),
    /// Write records, one JSON object a line, from files or standard input.
    Produce(ProduceArgs),
    /// Read records, one JSON object a line.
    Consume(ConsumeArgs),
    /// List, describe, reset and delete consumer groups.
    Group(GroupArgs),
    /// Put load on a server and measure how it does.
    Bench(BenchArgs),
}

/// A command that reads the files of a node that is stopped.
#[derive(Debug, Subcommand)]
pub enum Offline {
    /// Look into the segment files of a node that is stopped.
    #[command(subcommand)]
    Segment(SegmentCommand),
    /// Look into the write-ahead log of a node that is stopped.
    #[command(subcommand)]
    Wal(WalCommand),
}

/// Settings of a node, as flags.
#[derive(Debug, Default, Args)]
pub struct ServeArgs {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE", env = "EDDYLINE_CONFIG")]
    config: Option<PathBuf>,
    /// Where everything is kept.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Where the write-ahead log is kept.
    #[arg(long, value_name = "DIR")]
    wal_dir: Option<String>,
    /// Address of the HTTP faces.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// URL by which clients and other nodes reach this node.
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
    /// A member of the cluster to join; may be given several times.
    #[arg(long, value_name = "HOST:PORT")]
    join: Vec<String>,
    /// Allow a listener beyond loopback without authentication.
    #[arg(long)]
    insecure: bool,
    /// Log filter, like info,eddyline::storage=debug.
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// Any setting; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl ServeArgs {
    /// Returns the configuration file.
    pub fn file(&self) -> Option<PathBuf> {
        self.config.clone()
    }

    /// Returns each `--set`, as it was given.
    pub fn set(&self) -> Vec<String> {
        self.set.clone()
    }

    /// Returns the named flags that were given, as the settings' keys and values.
    pub fn flags(&self) -> Vec<(&'static str, String)> {
        let join = (!self.join.is_empty()).then(|| self.join.join(","));
        let insecure = self.insecure.then(|| String::from("true"));
        let flags = [
            ("data_dir", self.data_dir.clone()),
            ("wal_dir", self.wal_dir.clone()),
            ("listen", self.listen.clone()),
            ("advertise", self.advertise.clone()),
            ("cluster.join", join),
            ("insecure", insecure),
            ("log", self.log.clone()),
        ];
        flags.into_iter().filter_map(|(key, value)| value.map(|value| (key, value))).collect()
    }
}

/// `eddyline config ...`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check the configuration and print every setting that would be in force.
    Check(ServeArgs),
}

/// `eddyline segment ...`
#[derive(Debug, Subcommand)]
pub enum SegmentCommand {
    /// Print one line for each record batch.
    Dump {
        /// A segment file; with --records also a folder, for all files below it.
        path: PathBuf,
        /// Print the records instead, as lines that `eddyline produce` takes.
        #[arg(long)]
        records: bool,
    },
    /// Check every batch of a file, or of all files below a folder; and the files of a data
    /// directory against its checkpoints.
    Verify {
        /// A segment file, a folder, or a node's data directory.
        path: PathBuf,
    },
}

/// `eddyline wal ...`
#[derive(Debug, Subcommand)]
pub enum WalCommand {
    /// Print one line for each frame. Exit code 1 says that the log is damaged.
    Dump {
        /// The log's folder, or the data directory.
        dir: PathBuf,
        /// Go on after damage, with the next frame that is whole.
        #[arg(long)]
        salvage: bool,
        /// Print the records of all entries that can be read instead, as lines that
        /// `eddyline produce` takes; each names its topic by id.
        #[arg(long, requires = "salvage")]
        records: bool,
        /// The data directory, where the log is elsewhere: entries that its checkpoints cover are
        /// left out, their records are in segments.
        #[arg(long, value_name = "DIR", requires = "records")]
        data_dir: Option<PathBuf>,
    },
}

/// Where the server is.
#[derive(Debug, Clone, Args)]
struct ServerArgs {
    /// URL of a server.
    #[arg(long, global = true, env = "EDDYLINE_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
}

/// `eddyline topic ...`
#[derive(Debug, Args)]
pub struct TopicArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(subcommand)]
    command: TopicCommand,
}

#[derive(Debug, Subcommand)]
enum TopicCommand {
    /// Create a topic, or confirm that it is as given.
    Create {
        /// Its name.
        #[arg(value_parser = topic_name)]
        topic: TopicName,
        /// Partitions.
        #[arg(long, short)]
        partitions: Option<u32>,
        /// Copies of each partition, on as many nodes.
        #[arg(long)]
        replication_factor: Option<u32>,
        /// A topic config, like retention.ms=3600000; may be given several times.
        #[arg(long = "config", value_name = "NAME=VALUE")]
        configs: Vec<String>,
    },
    /// List topics by name.
    List {
        /// Only names that start so.
        #[arg(long, default_value = "")]
        prefix: String,
    },
    /// Show a topic and its partitions.
    Describe {
        /// Its name.
        #[arg(value_parser = topic_name)]
        topic: TopicName,
    },
    /// Delete a topic and its records.
    Delete {
        /// Its name.
        #[arg(value_parser = topic_name)]
        topic: TopicName,
    },
}

/// `eddyline produce ...`
#[derive(Debug, Args)]
pub struct ProduceArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// The topic to write to.
    #[arg(value_parser = topic_name)]
    topic: TopicName,
    /// Files of one JSON record a line, gzip or not; `-` or none is standard input.
    files: Vec<PathBuf>,
    /// Print the server's report of each record to standard output.
    #[arg(long)]
    reports: bool,
}

/// `eddyline consume ...`
#[derive(Debug, Args)]
pub struct ConsumeArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// The topic to read.
    #[arg(value_parser = topic_name)]
    topic: TopicName,
    /// Where to start: earliest, latest, a time (RFC 3339) or a cursor.
    #[arg(long, default_value = "earliest", conflicts_with = "offset")]
    from: String,
    /// Only this partition.
    #[arg(long, short)]
    partition: Option<u32>,
    /// Start at this offset of the partition.
    #[arg(long, short, requires = "partition")]
    offset: Option<u64>,
    /// Stop after this many records.
    #[arg(long, short = 'n')]
    limit: Option<u64>,
    /// Wait for new records at the end.
    #[arg(long, short)]
    follow: bool,
    /// How values are written.
    #[arg(long, value_enum, default_value_t = Format::Json)]
    format: Format,
    /// Only records with this key.
    #[arg(long)]
    key: Option<String>,
    /// Only records whose key starts so.
    #[arg(long)]
    key_prefix: Option<String>,
    /// Only records with this header; may be given several times.
    #[arg(long = "header", value_name = "NAME:VALUE")]
    headers: Vec<String>,
    /// Go around records that are damaged on the server's disk; what is left out is told.
    #[arg(long)]
    skip_damaged: bool,
    /// Print the cursor to go on from to standard error at the end.
    #[arg(long, conflicts_with = "group")]
    cursor: bool,
    /// Read as a member of this group: it shares the partitions with the others, goes on where the
    /// group is, and commits what was printed. Without --follow it ends where the topic ended when
    /// the partitions were assigned. `--from` is for partitions without a committed offset.
    #[arg(long, short, conflicts_with_all = ["partition", "offset"])]
    group: Option<String>,
    /// Makes the member static: started again, it gets its partitions back without a rebalance.
    #[arg(long, requires = "group")]
    instance_id: Option<String>,
}

/// `eddyline group ...`
#[derive(Debug, Args)]
pub struct GroupArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(subcommand)]
    command: GroupCommand,
}

#[derive(Debug, Subcommand)]
enum GroupCommand {
    /// List groups by name: state, members, lag.
    List,
    /// Show a group: its members, offsets, lag and last rebalances.
    Describe {
        /// Its name.
        group: String,
    },
    /// Move the committed offsets of a group without members.
    Reset(ResetArgs),
    /// Delete a group without members, with its offsets.
    Delete {
        /// Its name.
        group: String,
    },
}

#[derive(Debug, Args)]
struct ResetArgs {
    /// The group's name.
    group: String,
    /// The topic.
    #[arg(long)]
    topic: String,
    /// A partition; may be given several times. All of the topic without it.
    #[arg(long = "partition", short)]
    partitions: Vec<u32>,
    /// Where to: earliest, latest or a time (RFC 3339).
    #[arg(long, required_unless_present_any = ["to_offset", "shift"],
        conflicts_with_all = ["to_offset", "shift"])]
    to: Option<String>,
    /// To an offset.
    #[arg(long, conflicts_with = "shift")]
    to_offset: Option<u64>,
    /// By so many records on or, negative, back.
    #[arg(long, allow_negative_numbers = true)]
    shift: Option<i64>,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Json,
    Text,
    Base64,
    Meta,
}

impl Format {
    fn as_str(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Text => "text",
            Self::Base64 => "base64",
            Self::Meta => "meta",
        }
    }
}

fn topic_name(text: &str) -> Result<TopicName, String> {
    TopicName::parse(text).map_err(|error| error.to_string())
}

/// Parses the process's command line. `settings` is printed below the long help.
///
/// # Errors
/// The code to end with when help or a usage error was printed.
pub fn parse(settings: String) -> Result<Command, ExitCode> {
    let matches = CommandLine::command().after_long_help(settings).try_get_matches();
    match matches.and_then(|matches| CommandLine::from_arg_matches(&matches)) {
        Ok(line) => Ok(line.command.unwrap_or(Command::Serve(line.serve))),
        Err(error) => {
            let _ = error.print();
            let is_error = error.use_stderr();
            Err(if is_error { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS })
        }
    }
}

/// What a node prints when it serves: where, for programs, and three commands to try, for people.
pub fn greeting(address: SocketAddr) -> String {
    let url = format!("http://{address}");
    let records = format!("{url}/v1/topics/hello/records");
    format!(
        "ready {url}\n\
         curl -d '{{\"key\":\"me\",\"value\":{{\"text\":\"hello\"}}}}' {records}\n\
         curl {records}\n\
         curl -N -H 'Accept: text/event-stream' '{records}?from=earliest'\n"
    )
}

/// Runs a command that talks to a server and returns the process's exit code.
pub async fn run(command: Remote) -> ExitCode {
    let outcome = match command {
        Remote::Topic(args) => topic::run(args).await,
        Remote::Produce(args) => produce::run(args).await,
        Remote::Consume(args) => match args.group.clone() {
            Some(group) => group_consume::run(args, &group).await,
            None => consume::run(args).await,
        },
        Remote::Group(args) => group::run(args).await,
        Remote::Bench(args) => bench::run(args).await,
    };
    match outcome {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the reader of our output went away, as `head` does when it has enough.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<CommandLine, clap::Error> {
        CommandLine::try_parse_from(std::iter::once(&"eddyline").chain(words))
    }

    #[test]
    fn the_definition_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn serve_is_the_default_and_takes_the_same_flags() {
        for words in [&["--data-dir", "d", "--join", "a:1", "--join", "b:2"][..], &["serve"]] {
            assert!(parsed(words).is_ok(), "{words:?}");
        }
        let line = parsed(&["--data-dir", "d", "--join", "a:1", "--join", "b:2"]).unwrap();
        assert!(line.command.is_none());
        let expected = [("data_dir", "d"), ("cluster.join", "a:1,b:2")];
        assert_eq!(line.serve.flags(), expected.map(|(key, value)| (key, value.to_owned())));
        assert!(ServeArgs::default().flags().is_empty());
    }

    #[test]
    fn the_greeting_starts_with_the_line_that_programs_wait_for() {
        let greeting = greeting("127.0.0.1:8080".parse().unwrap());
        let lines: Vec<&str> = greeting.lines().collect();
        assert_eq!(lines[0], "ready http://127.0.0.1:8080");
        assert_eq!(lines.len(), 4);
        assert!(lines[1..].iter().all(|line| line.starts_with("curl ")));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for words in [
            &["consume", "t", "--offset", "3"][..],
            &["consume", "t", "--partition", "1", "--offset", "3", "--from", "latest"],
            &["topic", "create", "a/b"],
            &["produce"],
            &["nonsense"],
            &["consume", "t", "--group", "g", "--partition", "1"],
            &["consume", "t", "--instance-id", "i"],
            &["group", "reset", "g", "--topic", "t"],
            &["bench"],
            &["bench", "subscribe", "t", "--max", "--rate", "5"],
            &["bench", "subscribe", "t", "--idle", "--max"],
            &["bench", "subscribe", "t", "--record-bytes", "10"],
            &["bench", "subscribe", "t", "--duration", "10"],
            &["bench", "commit", "t", "--in-flight", "0"],
            &["group", "reset", "g", "--topic", "t", "--to", "earliest", "--shift", "-1"],
        ] {
            assert!(parsed(words).is_err(), "{words:?}");
        }
    }
}
