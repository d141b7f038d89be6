//! The table of settings: one row per key with its meaning, its parser and its printer, and the
//! checks that involve several of them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::values::{
    address, base_url, boolean, duration, host_port, list, number, quote, quote_list,
    show_duration, show_size, size, text,
};
use super::{ClusterTls, Config, DAY, GIB, MIB, Machine, Secret};
use crate::telemetry;
use crate::types::NodeId;
use crate::types::limits::TOPIC_PARTITIONS_MAX;

/// One key.
pub(super) struct Setting {
    /// The key in TOML.
    pub(super) key: &'static str,
    /// What it is for, in one line.
    pub(super) doc: &'static str,
    /// The default in words, where it depends on other settings or on the machine.
    pub(super) derived: Option<&'static str>,
    /// Whether the value must not be printed.
    pub(super) is_secret: bool,
    /// Reads a value, or says what would be acceptable ("must be ...").
    pub(super) set: fn(&mut Draft, &str) -> Result<(), String>,
    /// Prints the value as TOML; `None` when it is not set.
    pub(super) show: fn(&Config) -> Option<String>,
}

impl Setting {
    const fn new(
        key: &'static str,
        doc: &'static str,
        set: fn(&mut Draft, &str) -> Result<(), String>,
        show: fn(&Config) -> Option<String>,
    ) -> Self {
        Self { key, doc, derived: None, is_secret: false, set, show }
    }

    const fn derived(mut self, words: &'static str) -> Self {
        self.derived = Some(words);
        self
    }

    const fn secret(mut self) -> Self {
        self.is_secret = true;
        self
    }

    /// Returns the default for people to read.
    pub(super) fn default_text(&self, defaults: &Config) -> String {
        match self.derived {
            Some(words) => words.to_owned(),
            None => (self.show)(defaults).unwrap_or_else(|| String::from("none")),
        }
    }
}

/// Settings while sources are still being read: what is derived from others is still open.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) config: Config,
    wal_dir: Option<PathBuf>,
    shards_count: Option<u32>,
    open_files: Option<usize>,
    max_connections: Option<usize>,
    http_memory: Option<u64>,
    pub(super) tls: TlsDraft,
}

/// The three files of `cluster.tls`, as far as they are given.
#[derive(Debug, Default, Clone)]
pub(super) struct TlsDraft {
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    ca: Option<PathBuf>,
}

impl TlsDraft {
    fn given(&self) -> usize {
        [&self.cert, &self.key, &self.ca].into_iter().flatten().count()
    }
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            config: Config::defaults(),
            wal_dir: None,
            shards_count: None,
            open_files: None,
            max_connections: None,
            http_memory: None,
            tls: TlsDraft::default(),
        }
    }
}

impl Draft {
    /// Fills in what follows from the rest.
    pub(super) fn resolve(self, machine: Machine) -> Config {
        let mut config = self.config;
        config.wal_dir = self.wal_dir.unwrap_or_else(|| config.data_dir.join("wal"));
        config.shards.count =
            self.shards_count.unwrap_or_else(|| machine.shards(config.cluster.initial.len()));
        config.storage.open_files = self.open_files.unwrap_or_else(|| machine.open_files());
        config.http.max_connections = self
            .max_connections
            .unwrap_or_else(|| machine.connections(&config.storage, &config.wal));
        config.http.memory_bytes =
            self.http_memory.unwrap_or_else(|| machine.http_memory(&config.http));
        if let (Some(cert), Some(key), Some(ca)) = (self.tls.cert, self.tls.key, self.tls.ca) {
            config.cluster.tls = Some(ClusterTls { cert, key, ca });
        }
        config
    }
}

/// Lists all settings in the order in which they are printed.
pub(super) fn all() -> impl Iterator<Item = &'static Setting> {
    [NODE, STORAGE, TOPICS, HTTP, GROUPS, RAFT, CLUSTER].into_iter().flatten()
}

/// Finds a setting by its key.
pub(super) fn find(key: &str) -> Option<&'static Setting> {
    all().find(|setting| setting.key == key)
}

fn put<T>(place: &mut T, value: Result<T, String>) -> Result<(), String> {
    *place = value?;
    Ok(())
}

fn partitions(given: &str) -> Result<u32, String> {
    number(given, 1..=TOPIC_PARTITIONS_MAX)
}

fn path(text_given: &str) -> Result<PathBuf, String> {
    text(text_given).map(PathBuf::from)
}

fn log_filter(given: &str) -> Result<telemetry::Filter, String> {
    telemetry::Filter::parse(given)
        .map_err(|_| String::from("must be a log filter, like \"info,eddyline::storage=debug\""))
}

fn seconds(value: u64) -> Duration {
    Duration::from_secs(value)
}

fn millis(value: u64) -> Duration {
    Duration::from_millis(value)
}

fn shown<T: ToString + Copy>(value: T) -> Option<String> {
    Some(value.to_string())
}

fn shown_size(bytes: u64) -> Option<String> {
    let printed = show_size(bytes);
    let is_number = printed.bytes().all(|byte| byte.is_ascii_digit());
    Some(if is_number { printed } else { quote(&printed) })
}

fn shown_duration(value: Duration) -> Option<String> {
    Some(quote(&show_duration(value)))
}

fn shown_path(value: &std::path::Path) -> Option<String> {
    Some(quote(&value.to_string_lossy()))
}

/// Hides the password of a URL.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    match rest.rsplit_once('@') {
        Some((user, host)) => {
            let user = user.split_once(':').map_or(user, |(name, _)| name);
            format!("{scheme}://{user}:***@{host}")
        }
        None => url.to_owned(),
    }
}

const NODE: &[Setting] = &[
    Setting::new(
        "listen",
        "address of the HTTP faces",
        |d, v| put(&mut d.config.listen, address(v)),
        |c| Some(quote(&c.listen.to_string())),
    ),
    Setting::new(
        "advertise",
        "URL by which clients and other nodes reach this node",
        |d, v| put(&mut d.config.advertise, base_url(v).map(Some)),
        |c| c.advertise.as_deref().map(quote),
    )
    .derived("http:// and listen"),
    Setting::new(
        "data_dir",
        "where everything is kept",
        |d, v| put(&mut d.config.data_dir, path(v)),
        |c| shown_path(&c.data_dir),
    ),
    Setting::new(
        "wal_dir",
        "where the write-ahead log is kept",
        |d, v| put(&mut d.wal_dir, path(v).map(Some)),
        |c| shown_path(&c.wal_dir),
    )
    .derived("<data_dir>/wal"),
    Setting::new(
        "insecure",
        "allow a listener beyond loopback without authentication",
        |d, v| put(&mut d.config.insecure, boolean(v)),
        |c| shown(c.insecure),
    ),
    Setting::new(
        "log",
        "log filter, like info,eddyline::storage=debug",
        |d, v| put(&mut d.config.log, log_filter(v)),
        |c| Some(quote(c.log.as_str())),
    ),
];

const STORAGE: &[Setting] = &[
    Setting::new(
        "shards.count",
        "data shards per replication factor, fixed at the first start",
        |d, v| put(&mut d.shards_count, number(v, 1..=1024).map(Some)),
        |c| shown(c.shards.count),
    )
    .derived("half the cores, 1 to 8, at least the members of cluster.initial"),
    Setting::new(
        "wal.file_bytes",
        "size of one file of the write-ahead log",
        |d, v| put(&mut d.config.wal.file_bytes, size(v, MIB..=4 * GIB)),
        |c| shown_size(c.wal.file_bytes),
    ),
    Setting::new(
        "wal.max_bytes",
        "size above which checkpoints free the log's oldest files",
        |d, v| put(&mut d.config.wal.max_bytes, size(v, 2 * MIB..=1024 * GIB)),
        |c| shown_size(c.wal.max_bytes),
    ),
    Setting::new(
        "storage.tail_cache_bytes",
        "newest batches kept in memory for readers",
        |d, v| put(&mut d.config.storage.tail_cache_bytes, size(v, MIB..=1024 * GIB)),
        |c| shown_size(c.storage.tail_cache_bytes),
    ),
    Setting::new(
        "storage.retention_interval",
        "how often retention looks for records to delete",
        |d, v| {
            put(
                &mut d.config.storage.retention_interval,
                duration(v, millis(100)..=seconds(86_400)),
            )
        },
        |c| shown_duration(c.storage.retention_interval),
    ),
    Setting::new(
        "storage.open_files",
        "segment files kept open",
        |d, v| put(&mut d.open_files, number(v, 16..=1_000_000).map(Some)),
        |c| shown(c.storage.open_files),
    )
    .derived("a quarter of the process's limit, at most 16384"),
];

const TOPICS: &[Setting] = &[
    Setting::new(
        "topics.auto_create",
        "create a missing topic at its first produce",
        |d, v| put(&mut d.config.topics.auto_create, boolean(v)),
        |c| shown(c.topics.auto_create),
    ),
    Setting::new(
        "topics.default_partitions",
        "partitions of a topic that does not say",
        |d, v| put(&mut d.config.topics.default_partitions, partitions(v)),
        |c| shown(c.topics.default_partitions),
    ),
    Setting::new(
        "topics.max_partitions",
        "most partitions of one topic, at most 10000",
        |d, v| put(&mut d.config.topics.max_partitions, partitions(v)),
        |c| shown(c.topics.max_partitions),
    ),
];

const HTTP: &[Setting] = &[
    Setting::new(
        "http.max_body_bytes",
        "largest JSON or raw body",
        |d, v| put(&mut d.config.http.max_body_bytes, size(v, 1024..=GIB)),
        |c| shown_size(c.http.max_body_bytes),
    ),
    Setting::new(
        "http.max_records",
        "most records in a JSON body",
        |d, v| put(&mut d.config.http.max_records, number(v, 1..=1_000_000)),
        |c| shown(c.http.max_records),
    ),
    Setting::new(
        "http.max_line_bytes",
        "longest NDJSON line (the body is unlimited)",
        |d, v| put(&mut d.config.http.max_line_bytes, size(v, 1024..=GIB)),
        |c| shown_size(c.http.max_line_bytes),
    ),
    Setting::new(
        "http.report_buffer_bytes",
        "reports of one NDJSON request that its client has not read yet",
        |d, v| put(&mut d.config.http.report_buffer_bytes, size(v, 64 * 1024..=16 * GIB)),
        |c| shown_size(c.http.report_buffer_bytes),
    ),
    Setting::new(
        "http.memory_bytes",
        "bodies, answers and reports that all requests together hold",
        |d, v| put(&mut d.http_memory, size(v, MIB..=1024 * GIB).map(Some)),
        |c| shown_size(c.http.memory_bytes),
    )
    .derived("a quarter of the memory that the process may use, at least 64 MiB"),
    Setting::new(
        "http.request_timeout",
        "how long a write may take before it is answered with 504",
        |d, v| put(&mut d.config.http.request_timeout, duration(v, millis(100)..=seconds(3600))),
        |c| shown_duration(c.http.request_timeout),
    ),
    Setting::new(
        "http.max_connections",
        "connections at a time, those beyond wait to be accepted",
        |d, v| put(&mut d.max_connections, number(v, 1..=1_000_000).map(Some)),
        |c| shown(c.http.max_connections),
    )
    .derived("what the process's limit leaves beside its files"),
];

const GROUPS: &[Setting] = &[
    Setting::new(
        "groups.offsets_retention",
        "how long an empty group keeps its offsets",
        |d, v| put(&mut d.config.groups.offsets_retention, duration(v, seconds(60)..=DAY * 36_500)),
        |c| shown_duration(c.groups.offsets_retention),
    ),
    Setting::new(
        "groups.instance_timeout",
        "how long a REST consumer instance may be idle",
        |d, v| put(&mut d.config.groups.instance_timeout, duration(v, seconds(1)..=DAY)),
        |c| shown_duration(c.groups.instance_timeout),
    ),
    Setting::new(
        "groups.session_timeout",
        "how long a group's member may be silent",
        |d, v| put(&mut d.config.groups.session_timeout, duration(v, seconds(6)..=seconds(1800))),
        |c| shown_duration(c.groups.session_timeout),
    ),
    Setting::new(
        "ws.linger",
        "how long records wait for others to share a frame with",
        |d, v| put(&mut d.config.ws.linger, duration(v, Duration::ZERO..=seconds(1))),
        |c| shown_duration(c.ws.linger),
    ),
    Setting::new(
        "ws.max_subscriptions",
        "subscriptions on one WebSocket",
        |d, v| put(&mut d.config.ws.max_subscriptions, number(v, 1..=10_000)),
        |c| shown(c.ws.max_subscriptions),
    ),
    Setting::new(
        "ws.allowed_origins",
        "other web origins that may open a WebSocket",
        |d, v| put(&mut d.config.ws.allowed_origins, list(v, base_url)),
        |c| Some(quote_list(&c.ws.allowed_origins)),
    ),
];

const RAFT: &[Setting] = &[
    Setting::new(
        "raft.heartbeat",
        "time between a leader's heartbeats",
        |d, v| put(&mut d.config.raft.heartbeat, duration(v, millis(10)..=seconds(60))),
        |c| shown_duration(c.raft.heartbeat),
    ),
    Setting::new(
        "raft.election_min",
        "shortest silence before a follower stands for election",
        |d, v| put(&mut d.config.raft.election_min, duration(v, millis(20)..=seconds(300))),
        |c| shown_duration(c.raft.election_min),
    ),
    Setting::new(
        "raft.election_max",
        "longest such silence",
        |d, v| put(&mut d.config.raft.election_max, duration(v, millis(30)..=seconds(600))),
        |c| shown_duration(c.raft.election_max),
    ),
    Setting::new(
        "metadata.url",
        "postgres:// URL of the metadata's SQL view",
        |d, v| {
            if !["postgres://", "postgresql://"].iter().any(|scheme| v.starts_with(scheme)) {
                return Err(String::from("must start with postgres://"));
            }
            put(&mut d.config.metadata.url, Ok(Some(Secret(v.to_owned()))))
        },
        |c| c.metadata.url.as_ref().map(|url| quote(&without_password(url.reveal()))),
    )
    .derived("SQLite in data_dir")
    .secret(),
];

const CLUSTER: &[Setting] = &[
    Setting::new(
        "cluster.node_id",
        "this node's id, the same for ever",
        |d, v| put(&mut d.config.cluster.node_id, number(v, 1..=u64::MAX / 2).map(NodeId::new)),
        |c| shown(c.cluster.node_id),
    ),
    Setting::new(
        "cluster.listen",
        "address for other nodes",
        |d, v| put(&mut d.config.cluster.listen, address(v).map(Some)),
        |c| c.cluster.listen.map(|address| quote(&address.to_string())),
    ),
    Setting::new(
        "cluster.advertise",
        "host:port by which other nodes dial this one",
        |d, v| put(&mut d.config.cluster.advertise, host_port(v).map(Some)),
        |c| c.cluster.advertise.as_deref().map(quote),
    )
    .derived("cluster.listen"),
    Setting::new(
        "cluster.initial",
        "all first members' cluster.advertise",
        |d, v| put(&mut d.config.cluster.initial, list(v, host_port)),
        |c| Some(quote_list(&c.cluster.initial)),
    ),
    Setting::new(
        "cluster.join",
        "members of the cluster to join",
        |d, v| put(&mut d.config.cluster.join, list(v, host_port)),
        |c| Some(quote_list(&c.cluster.join)),
    ),
    Setting::new(
        "cluster.secret",
        "what nodes prove to each other, at least 32 bytes",
        |d, v| {
            if v.len() < 32 {
                return Err(String::from("must have at least 32 bytes"));
            }
            put(&mut d.config.cluster.secret, Ok(Some(Secret(v.to_owned()))))
        },
        |c| c.cluster.secret.as_ref().map(|_| quote("***")),
    )
    .secret(),
    Setting::new(
        "cluster.tls.cert",
        "this node's certificate chain (PEM)",
        |d, v| put(&mut d.tls.cert, path(v).map(Some)),
        |c| c.cluster.tls.as_ref().and_then(|tls| shown_path(&tls.cert)),
    ),
    Setting::new(
        "cluster.tls.key",
        "its private key (PEM)",
        |d, v| put(&mut d.tls.key, path(v).map(Some)),
        |c| c.cluster.tls.as_ref().and_then(|tls| shown_path(&tls.key)),
    ),
    Setting::new(
        "cluster.tls.ca",
        "the authority of all nodes' certificates (PEM)",
        |d, v| put(&mut d.tls.ca, path(v).map(Some)),
        |c| c.cluster.tls.as_ref().and_then(|tls| shown_path(&tls.ca)),
    ),
    Setting::new(
        "cluster.snapshot_rate",
        "bytes per second that sending snapshots may take",
        |d, v| put(&mut d.config.cluster.snapshot_rate, size(v, MIB..=1024 * GIB).map(Some)),
        |c| c.cluster.snapshot_rate.and_then(shown_size),
    )
    .derived("unlimited"),
];

/// The keys of a conflict, and what is wrong between them.
pub(super) type Conflict = (&'static [&'static str], String);

/// Finds settings that are each fine and do not fit together.
pub(super) fn conflicts(config: &Config, tls: &TlsDraft) -> Vec<Conflict> {
    let mut found: Vec<Conflict> = Vec::new();
    let mut expect = |fits: bool, keys: &'static [&'static str], message: &str| {
        if !fits {
            found.push((keys, message.to_owned()));
        }
    };
    expect(
        config.insecure || is_loopback(config.listen),
        &["listen", "insecure"],
        "is not on loopback and there is no authentication: anyone who reaches it may read and \
         write; start with --insecure if that is meant",
    );
    expect(
        config.wal.max_bytes / 2 >= config.wal.file_bytes,
        &["wal.max_bytes", "wal.file_bytes"],
        "wal.max_bytes must be at least twice wal.file_bytes",
    );
    expect(
        config.topics.default_partitions <= config.topics.max_partitions,
        &["topics.default_partitions", "topics.max_partitions"],
        "topics.default_partitions must not be above topics.max_partitions",
    );
    expect(
        config.http.memory_bytes >= config.http.largest_request(),
        &["http.memory_bytes", "http.max_body_bytes", "http.max_line_bytes"],
        "http.memory_bytes must be at least twice http.max_body_bytes and http.max_line_bytes: a \
         request that is alone must find room",
    );
    let raft = &config.raft;
    expect(
        raft.heartbeat * 2 <= raft.election_min && raft.election_min < raft.election_max,
        &["raft.election_min", "raft.election_max", "raft.heartbeat"],
        "must be at least twice raft.heartbeat and below raft.election_max",
    );
    expect(
        matches!(tls.given(), 0 | 3),
        &["cluster.tls.cert", "cluster.tls.key", "cluster.tls.ca"],
        "cluster.tls needs all of cert, key and ca",
    );
    cluster_conflicts(config, tls, &mut found);
    found
}

fn cluster_conflicts(config: &Config, tls: &TlsDraft, found: &mut Vec<Conflict>) {
    let cluster = &config.cluster;
    let mut expect = |fits: bool, keys: &'static [&'static str], message: &str| {
        if !fits {
            found.push((keys, message.to_owned()));
        }
    };
    let authenticated = cluster.secret.is_some() || tls.given() > 0;
    expect(
        cluster.listen.is_none() || authenticated,
        &["cluster.listen", "cluster.secret"],
        "needs cluster.secret or cluster.tls: nodes must know each other",
    );
    let is_alone = cluster.listen.is_none();
    expect(
        !is_alone || cluster.initial.is_empty(),
        &["cluster.initial", "cluster.listen"],
        "needs cluster.listen",
    );
    expect(
        !is_alone || cluster.join.is_empty(),
        &["cluster.join", "cluster.listen"],
        "needs cluster.listen",
    );
    expect(
        cluster.initial.is_empty() || cluster.join.is_empty(),
        &["cluster.join", "cluster.initial"],
        "cluster.initial founds a cluster, cluster.join enters one: give one of them",
    );
    if let (Some(listen), false) = (cluster.listen, cluster.initial.is_empty()) {
        let own = cluster.advertise.clone().unwrap_or_else(|| listen.to_string());
        expect(
            cluster.initial.contains(&own),
            &["cluster.initial", "cluster.advertise", "cluster.listen"],
            &format!("must name this node too, by its cluster.advertise '{own}'"),
        );
    }
}

fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}
