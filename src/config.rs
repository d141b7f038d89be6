//! The configuration of a node: where settings come from, what they are, what is wrong with them.
//!
//! Sources, each overriding the one before: defaults, a TOML file, `EDDYLINE_*` environment
//! variables (`__` for the dot), `--set key=value`, named flags. The table in `settings` is the one
//! list of keys; `--help`, `config check` and the documentation print it.
//!
//! Invariants:
//! - a [`Config`] is whole and consistent: every bound below was checked by [`load`];
//! - every fault of every source is reported at once, with its key and where it came from;
//! - secrets never appear in `Debug`, in errors or in what `config check` prints.

mod memory;
mod settings;
mod sources;
mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::api;
use crate::telemetry;
use crate::types::NodeId;
use crate::types::limits::TOPIC_PARTITIONS_MAX;

pub use sources::{Invalid, Origin, Problem, Sources};

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;
const DAY: Duration = Duration::from_secs(86_400);

/// The settings of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where the HTTP faces listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The URL that other nodes and clients reach this node by; none: `http://` and the bound
    /// address.
    pub advertise: Option<String>,
    /// Where everything is kept, unless `wal_dir` says otherwise.
    pub data_dir: PathBuf,
    /// Where the write-ahead log is kept; may be another disk.
    pub wal_dir: PathBuf,
    /// Whether a listener that is not on loopback may do without authentication.
    pub insecure: bool,
    /// The filter of the log on stderr, like `info,eddyline::storage=debug`.
    pub log: telemetry::Filter,
    /// `shards.*`
    pub shards: Shards,
    /// `wal.*`
    pub wal: Wal,
    /// `storage.*`
    pub storage: Storage,
    /// `topics.*`
    pub topics: Topics,
    /// `http.*`
    pub http: Http,
    /// `groups.*`
    pub groups: Groups,
    /// `ws.*`
    pub ws: Ws,
    /// `raft.*`
    pub raft: Raft,
    /// `cluster.*`
    pub cluster: Cluster,
    /// `metadata.*`
    pub metadata: Metadata,
}

/// Data shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shards {
    /// Data shards per replication factor in use, fixed at the first start; from 1.
    pub count: u32,
}

/// The write-ahead log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wal {
    /// Size of one file, at least 1 MiB.
    pub file_bytes: u64,
    /// Size above which the oldest files are freed by checkpoints; at least two files.
    pub max_bytes: u64,
}

/// Segments and caches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// Newest batches kept in memory for readers, over all partitions.
    pub tail_cache_bytes: u64,
    /// Segment files kept open.
    pub open_files: usize,
    /// How often retention looks for records to delete.
    pub retention_interval: Duration,
}

/// What new topics get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    /// Whether the first produce to a missing topic creates it.
    pub auto_create: bool,
    /// Partitions of a topic that does not say how many.
    pub default_partitions: u32,
    /// Most partitions that one topic may have.
    pub max_partitions: u32,
}

/// Limits of the HTTP faces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// Largest JSON or raw body; NDJSON bodies are unlimited.
    pub max_body_bytes: u64,
    /// Most records in one JSON body.
    pub max_records: usize,
    /// Longest NDJSON line.
    pub max_line_bytes: u64,
    /// Reports of one NDJSON request that its client has not read yet.
    pub report_buffer_bytes: u64,
    /// Bodies, answers and reports that all requests together hold in memory.
    pub memory_bytes: u64,
    /// How long a write may take before it is answered with 504.
    pub request_timeout: Duration,
    /// Connections at a time; those beyond wait to be accepted.
    pub max_connections: usize,
    /// Timers of connections and streams; they have no key.
    pub timers: api::Timers,
}

impl Http {
    /// Returns what the largest body or line takes when it is alone.
    fn largest_request(&self) -> u64 {
        self.max_body_bytes.max(self.max_line_bytes).saturating_mul(HTTP_BODY_WEIGHT)
    }
}

/// Consumer groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    /// How long a group without members keeps its offsets.
    pub offsets_retention: Duration,
    /// How long a REST consumer instance may be idle.
    pub instance_timeout: Duration,
    /// How long a member may be silent, 6 s to 30 min.
    pub session_timeout: Duration,
}

/// WebSocket connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ws {
    /// How long records wait for others to share a frame with.
    pub linger: Duration,
    /// Subscriptions on one socket.
    pub max_subscriptions: usize,
    /// Web pages' origins that may connect; none allows the node's own only.
    pub allowed_origins: Vec<String>,
    /// Timers of the protocol; they have no key.
    pub timers: api::ws::Timers,
}

/// Raft's timers: `heartbeat` < `election_min` < `election_max`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raft {
    /// Time between two heartbeats of a leader.
    pub heartbeat: Duration,
    /// Shortest wait of a follower before it stands for election.
    pub election_min: Duration,
    /// Longest such wait.
    pub election_max: Duration,
}

/// The other nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// This node's id, from 1, the same for ever.
    pub node_id: NodeId,
    /// Where other nodes connect; none: a lone node.
    pub listen: Option<SocketAddr>,
    /// `host:port` by which other nodes dial this one; none: the same as `listen`.
    pub advertise: Option<String>,
    /// All first members' `cluster.advertise`, this node's included.
    pub initial: Vec<String>,
    /// Members of a cluster that exists already, to join it by.
    pub join: Vec<String>,
    /// What nodes prove to each other, when not by certificates; at least 32 bytes.
    pub secret: Option<Secret>,
    /// Mutual TLS between nodes; all three or none.
    pub tls: Option<ClusterTls>,
    /// Bytes per second that sending snapshots may take; none: unlimited.
    pub snapshot_rate: Option<u64>,
}

/// Files of the mutual TLS between nodes (PEM).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterTls {
    /// This node's certificate chain.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authority that every node's certificate comes from.
    pub ca: PathBuf,
}

/// The SQL view of the metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// `postgres://...`; none: SQLite in the data directory.
    pub url: Option<Secret>,
}

/// Text that is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Returns the text itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What requests may hold together by default, however little memory there is.
const HTTP_MEMORY_MIN: u64 = 64 * MIB;
/// Part of the memory, one in so many, that they may hold by default.
const HTTP_MEMORY_PART: u64 = 4;
/// A body, and what is decoded of it, is charged so many times its bytes.
const HTTP_BODY_WEIGHT: u64 = api::BODY_WEIGHT as u64;

/// Segment files that are kept open by default, however many the process may have.
const OPEN_FILES_MAX: usize = 16_384;
/// Descriptors that are kept for what is open for a moment: directories, indexes, checkpoints.
const RESERVED_FILES: usize = 64;
/// Bounds of the connections that are served at a time.
const CONNECTIONS_MIN: usize = 16;
const CONNECTIONS_MAX: usize = 1_000_000;

/// What defaults depend on: facts of the machine that a test can choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Processors that the process may use.
    pub cores: usize,
    /// Files that the process may have open.
    pub open_files_limit: u64,
    /// Memory that the process may use: the machine's, its control group's or its own limit.
    pub memory_bytes: u64,
}

impl Machine {
    /// Asks the system.
    pub fn detect() -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        Self {
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            open_files_limit: limit.current.unwrap_or(1_048_576),
            memory_bytes: memory::limit(),
        }
    }

    fn shards(self, initial: usize) -> u32 {
        u32::try_from((self.cores / 2).clamp(1, 8).max(initial)).unwrap_or(1)
    }

    fn open_files(self) -> usize {
        usize::try_from(self.open_files_limit / 4).unwrap_or(usize::MAX).clamp(16, OPEN_FILES_MAX)
    }

    /// Returns what requests may hold together: a part of the memory, and what the largest of them
    /// needs.
    fn http_memory(self, http: &Http) -> u64 {
        (self.memory_bytes / HTTP_MEMORY_PART).max(HTTP_MEMORY_MIN).max(http.largest_request())
    }

    /// Returns how many connections there may be beside the files: segments (twice as many while
    /// they wait for a sync), the write-ahead log's, and a reserve for what is open for a moment.
    fn connections(self, storage: &Storage, wal: &Wal) -> usize {
        let limit = usize::try_from(self.open_files_limit).unwrap_or(usize::MAX);
        let wal_files = wal.max_bytes.checked_div(wal.file_bytes).unwrap_or(0);
        let files = storage
            .open_files
            .saturating_mul(2)
            .saturating_add(usize::try_from(wal_files).unwrap_or(usize::MAX));
        let reserve = RESERVED_FILES.saturating_add(limit / 16);
        let left = limit.saturating_sub(files).saturating_sub(reserve);
        left.max(limit / 8).clamp(CONNECTIONS_MIN, CONNECTIONS_MAX)
    }
}

/// A configuration and where each of its settings came from.
#[derive(Debug, Clone)]
pub struct Effective {
    /// The settings.
    pub config: Config,
    origins: BTreeMap<&'static str, Origin>,
}

impl Effective {
    /// Prints every setting as TOML that [`load`] reads back (secrets excepted), with a comment
    /// that says where it came from.
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        for setting in settings::all() {
            let origin = self.origins.get(setting.key).unwrap_or(&Origin::Default);
            match (setting.show)(&self.config) {
                Some(value) => out.push_str(&format!("{} = {value}  # {origin}\n", setting.key)),
                None => out.push_str(&format!("# {} is not set\n", setting.key)),
            }
        }
        out
    }

    /// Lists what was asked for and is not in this version: a node that ignored it would promise
    /// more than it keeps.
    fn unsupported(&self) -> impl Iterator<Item = Problem> {
        let cluster = &self.config.cluster;
        let asked = [
            ("cluster.listen", cluster.listen.is_some()),
            ("cluster.initial", !cluster.initial.is_empty()),
            ("cluster.join", !cluster.join.is_empty()),
            ("cluster.secret", cluster.secret.is_some()),
            ("cluster.tls.cert", cluster.tls.is_some()),
            ("metadata.url", self.config.metadata.url.is_some()),
        ];
        asked.into_iter().filter(|(_, set)| *set).map(|(key, _)| Problem {
            key: key.to_owned(),
            origin: self.origins.get(key).cloned().unwrap_or(Origin::Default),
            message: String::from("is not available in this version"),
        })
    }
}

impl Config {
    /// Makes the settings of a node that keeps everything in `dir` and listens on a free port of
    /// loopback: what tests and tools start from.
    pub fn in_dir(dir: &Path, machine: Machine) -> Self {
        let mut draft = settings::Draft::default();
        draft.config.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        draft.config.data_dir = dir.to_path_buf();
        draft.resolve(machine)
    }
}

impl Config {
    /// The defaults, with placeholders for what depends on other settings or on the machine.
    fn defaults() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            advertise: None,
            data_dir: PathBuf::from("./data"),
            wal_dir: PathBuf::from("./data/wal"),
            insecure: false,
            log: telemetry::Filter::default(),
            shards: Shards { count: 1 },
            wal: Wal { file_bytes: 64 * MIB, max_bytes: GIB },
            storage: Storage {
                tail_cache_bytes: 64 * MIB,
                open_files: 256,
                retention_interval: Duration::from_secs(300),
            },
            topics: Topics {
                auto_create: true,
                default_partitions: 4,
                max_partitions: TOPIC_PARTITIONS_MAX,
            },
            http: Http {
                max_body_bytes: 16 * MIB,
                max_records: 10_000,
                max_line_bytes: 2 * MIB,
                report_buffer_bytes: 32 * MIB,
                memory_bytes: HTTP_MEMORY_MIN,
                request_timeout: Duration::from_secs(30),
                max_connections: 1024,
                timers: api::Timers::default(),
            },
            groups: Groups {
                offsets_retention: DAY * 7,
                instance_timeout: Duration::from_secs(300),
                session_timeout: Duration::from_secs(45),
            },
            ws: Ws {
                linger: Duration::from_millis(5),
                max_subscriptions: 64,
                allowed_origins: Vec::new(),
                timers: api::ws::Timers::default(),
            },
            raft: Raft {
                heartbeat: Duration::from_millis(150),
                election_min: Duration::from_millis(450),
                election_max: Duration::from_millis(900),
            },
            cluster: Cluster {
                node_id: NodeId::new(1),
                listen: None,
                advertise: None,
                initial: Vec::new(),
                join: Vec::new(),
                secret: None,
                tls: None,
                snapshot_rate: None,
            },
            metadata: Metadata { url: None },
        }
    }
}

/// Reads all sources, fills in the defaults and checks the whole.
///
/// # Errors
/// [`Invalid`] with every fault of every source; the process should print it and exit with 64.
pub fn load(sources: &Sources, machine: Machine) -> Result<Effective, Invalid> {
    let (effective, problems) = look(sources, machine);
    Invalid::unless_empty(problems).map(|()| effective)
}

/// Reads all sources like [`load`] for a node of this version, which cannot do everything yet.
///
/// # Errors
/// [`Invalid`] with every fault, and with every setting that asks for more than there is.
pub fn load_supported(sources: &Sources, machine: Machine) -> Result<Effective, Invalid> {
    let (effective, mut problems) = look(sources, machine);
    let unsupported: Vec<_> = effective
        .unsupported()
        .filter(|asked| problems.iter().all(|problem| problem.key != asked.key))
        .collect();
    problems.extend(unsupported);
    Invalid::unless_empty(problems).map(|()| effective)
}

fn look(sources: &Sources, machine: Machine) -> (Effective, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut draft = settings::Draft::default();
    let mut origins = BTreeMap::new();
    for given in sources.read(&mut problems) {
        let Some(setting) = settings::find(&given.key) else {
            problems.push(given.unknown());
            continue;
        };
        match (setting.set)(&mut draft, &given.value) {
            Ok(()) => {
                origins.insert(setting.key, given.origin);
            }
            Err(message) => problems.push(Problem {
                key: given.key,
                message: if setting.is_secret {
                    message
                } else {
                    format!("{message}, not '{}'", given.value)
                },
                origin: given.origin,
            }),
        }
    }
    let tls = draft.tls.clone();
    let config = draft.resolve(machine);
    for (keys, message) in settings::conflicts(&config, &tls) {
        let faulty = |key: &&str| problems.iter().any(|problem| problem.key == **key);
        if keys.iter().any(faulty) {
            continue;
        }
        let key =
            keys.iter().copied().find(|key| origins.contains_key(key)).or(keys.first().copied());
        let key = key.unwrap_or_default();
        let origin = origins.get(key).cloned().unwrap_or(Origin::Default);
        problems.push(Problem { key: key.to_owned(), origin, message });
    }
    (Effective { config, origins }, problems)
}

/// Returns the table of all settings as lines for `--help`: key, default, meaning.
pub fn help() -> String {
    let defaults = Config::defaults();
    let mut out = String::from(
        "Settings (TOML file, EDDYLINE_* environment with __ for the dot, --set KEY=VALUE):\n",
    );
    for setting in settings::all() {
        let default = setting.default_text(&defaults);
        out.push_str(&format!("  {} [{default}]\n      {}\n", setting.key, setting.doc));
    }
    out
}

#[cfg(test)]
mod tests;
