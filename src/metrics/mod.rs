//! What a server measures, as typed handles that the layers update and `/metrics` prints.
//!
//! One [`Metrics`] per server and no globals, so that many nodes run in one test process. Each
//! layer takes its own group (`wal`, `storage`, ...) by clone; a group's `default()` is registered
//! nowhere and serves tests.
//!
//! Invariants:
//! - updating is a relaxed atomic or two: no lock, no label look-up. Handles with labels are made
//!   once (a route when the router is built, a topic when its handle is made) and kept;
//! - names end in their unit; label values come from closed sets, of which topic names are the
//!   largest. Member ids, client addresses and keys are never labels.

mod http;
mod instruments;
mod topics;
mod ws;

pub use http::{HttpMetrics, RouteMetrics};
pub use instruments::{Counter, Gauge, Histogram, Tracked};
pub use topics::{TopicMetrics, TopicsMetrics};
pub use ws::WebSocketMetrics;

use std::fmt;
use std::sync::Arc;

use prometheus_client::registry::{Registry, Unit};

/// The type of what [`Metrics::encode`] returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All measurements of one server.
#[derive(Debug)]
pub struct Metrics {
    /// Requests, by route.
    pub http: HttpMetrics,
    /// Records, by topic.
    pub topics: TopicsMetrics,
    /// Proposers and apply, over all shards.
    pub shards: ShardMetrics,
    /// The write-ahead log.
    pub wal: WalMetrics,
    /// Segments, caches and files.
    pub storage: StorageMetrics,
    /// Consumer groups.
    pub groups: GroupMetrics,
    /// Requests that stay open.
    pub streams: StreamMetrics,
    /// WebSockets.
    pub ws: WebSocketMetrics,
    /// The metadata's SQL view.
    pub metadata: MetadataMetrics,
    registry: Registry,
}

impl Metrics {
    /// Makes the metrics of one server, all zero.
    pub fn shared() -> Arc<Self> {
        let mut registry = Registry::with_prefix("eddyline");
        let http = HttpMetrics::default();
        let topics = TopicsMetrics::default();
        let shards = ShardMetrics::default();
        let wal = WalMetrics::default();
        let storage = StorageMetrics::default();
        let groups = GroupMetrics::default();
        let streams = StreamMetrics::default();
        let ws = WebSocketMetrics::default();
        let metadata = MetadataMetrics::default();
        http.register(&mut registry);
        topics.register(&mut registry);
        shards.register(&mut registry);
        wal.register(&mut registry);
        storage.register(&mut registry);
        groups.register(&mut registry);
        streams.register(&mut registry);
        ws.register(&mut registry);
        metadata.register(&mut registry);
        Arc::new(Self {
            http,
            topics,
            shards,
            wal,
            storage,
            groups,
            streams,
            ws,
            metadata,
            registry,
        })
    }

    /// Writes everything in OpenMetrics' text format, of type [`CONTENT_TYPE`].
    ///
    /// # Errors
    /// None in practice: writing to a `String` does not fail.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::with_capacity(16 * 1024);
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Proposers and apply, over all data shards of the node.
#[derive(Debug, Clone)]
pub struct ShardMetrics {
    /// Records of each batch that was sealed.
    pub batch_records: Histogram,
    /// Bytes of each batch that was sealed.
    pub batch_bytes: Histogram,
    /// Bytes of each Raft entry that was proposed.
    pub entry_bytes: Histogram,
    /// Time that applying one entry took.
    pub apply_seconds: Histogram,
    /// Bytes of records that wait in accumulators.
    pub accumulator_bytes: Gauge,
    /// Entries that were proposed and are not applied yet.
    pub proposals_in_flight: Gauge,
    /// Time that writing one checkpoint took.
    pub checkpoint_seconds: Histogram,
}

impl Default for ShardMetrics {
    fn default() -> Self {
        Self {
            batch_records: Histogram::counts(),
            batch_bytes: Histogram::bytes(),
            entry_bytes: Histogram::bytes(),
            apply_seconds: Histogram::seconds(),
            accumulator_bytes: Gauge::default(),
            proposals_in_flight: Gauge::default(),
            checkpoint_seconds: Histogram::seconds(),
        }
    }
}

impl ShardMetrics {
    fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("shard");
        r.register("batch_records", "Records per sealed batch", self.batch_records.clone());
        let bytes = "Bytes per sealed batch";
        r.register_with_unit("batch", bytes, Unit::Bytes, self.batch_bytes.clone());
        let bytes = "Bytes per proposed Raft entry";
        r.register_with_unit("entry", bytes, Unit::Bytes, self.entry_bytes.clone());
        let apply = "Time to apply one entry";
        r.register_with_unit("apply", apply, Unit::Seconds, self.apply_seconds.clone());
        let waiting = "Bytes of records waiting in accumulators";
        r.register_with_unit("accumulator", waiting, Unit::Bytes, self.accumulator_bytes.clone());
        let proposed = "Entries proposed and not applied yet";
        r.register("proposals_in_flight", proposed, self.proposals_in_flight.clone());
        let checkpoint = "Time to write one checkpoint";
        r.register_with_unit(
            "checkpoint",
            checkpoint,
            Unit::Seconds,
            self.checkpoint_seconds.clone(),
        );
    }
}

/// The write-ahead log.
#[derive(Debug, Clone)]
pub struct WalMetrics {
    /// Bytes that one round wrote.
    pub round_bytes: Histogram,
    /// Callers that one round's sync answered: how well syncs are shared.
    pub round_callers: Histogram,
    /// Time that one round's sync took.
    pub sync_seconds: Histogram,
    /// Bytes that wait for the next round.
    pub queued_bytes: Gauge,
    /// Bytes of live log: from the oldest file that is still needed to the end.
    pub live_bytes: Gauge,
}

impl Default for WalMetrics {
    fn default() -> Self {
        Self {
            round_bytes: Histogram::bytes(),
            round_callers: Histogram::counts(),
            sync_seconds: Histogram::seconds(),
            queued_bytes: Gauge::default(),
            live_bytes: Gauge::default(),
        }
    }
}

impl WalMetrics {
    fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("wal");
        let bytes = "Bytes written per round (one write and one sync)";
        r.register_with_unit("round", bytes, Unit::Bytes, self.round_bytes.clone());
        r.register("round_callers", "Callers answered per round", self.round_callers.clone());
        let sync = "Time of one round's fdatasync";
        r.register_with_unit("sync", sync, Unit::Seconds, self.sync_seconds.clone());
        let queued = "Bytes waiting for the next round";
        r.register_with_unit("queued", queued, Unit::Bytes, self.queued_bytes.clone());
        let live = "Bytes of log that are still needed";
        r.register_with_unit("live", live, Unit::Bytes, self.live_bytes.clone());
    }
}

/// Consumer groups: what the image has, and what this node did for them.
#[derive(Debug, Clone)]
pub struct GroupMetrics {
    /// Groups that there are.
    pub groups: Gauge,
    /// Members of all groups.
    pub members: Gauge,
    /// Commits that were carried to the log, taken or refused there.
    pub commits: Counter,
    /// Commits that shared one entry of the log.
    pub commits_per_entry: Histogram,
    /// Members whose session timeout passed.
    pub expired_sessions: Counter,
}

impl Default for GroupMetrics {
    fn default() -> Self {
        Self {
            groups: Gauge::default(),
            members: Gauge::default(),
            commits: Counter::default(),
            commits_per_entry: Histogram::counts(),
            expired_sessions: Counter::default(),
        }
    }
}

impl GroupMetrics {
    fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("groups");
        r.register("groups", "Consumer groups", self.groups.clone());
        r.register("members", "Members of all consumer groups", self.members.clone());
        r.register("commits", "Commits carried to the log", self.commits.clone());
        let shared = "Commits that shared one entry of the log";
        r.register("commits_per_entry", shared, self.commits_per_entry.clone());
        let expired = "Members whose session timeout passed";
        r.register("expired_sessions", expired, self.expired_sessions.clone());
    }
}

/// Segments, caches and files.
#[derive(Debug, Clone)]
pub struct StorageMetrics {
    /// Reads of a batch that the tail cache answered.
    pub tail_cache_hits: Counter,
    /// Reads of a batch that went to a file.
    pub tail_cache_misses: Counter,
    /// Bytes in the tail cache.
    pub tail_cache_bytes: Gauge,
    /// Time that one flush of a partition took: its pending batches into the page cache.
    pub segment_flush_seconds: Histogram,
    /// Time that one sync of a segment took.
    pub segment_sync_seconds: Histogram,
    /// Descriptors that the file cache holds.
    pub open_files: Gauge,
    /// Ranges of segments that failed their checksum and are not repaired.
    pub damaged_ranges: Gauge,
}

impl Default for StorageMetrics {
    fn default() -> Self {
        Self {
            tail_cache_hits: Counter::default(),
            tail_cache_misses: Counter::default(),
            tail_cache_bytes: Gauge::default(),
            segment_flush_seconds: Histogram::seconds(),
            segment_sync_seconds: Histogram::seconds(),
            open_files: Gauge::default(),
            damaged_ranges: Gauge::default(),
        }
    }
}

impl StorageMetrics {
    fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("storage");
        let hits = "Batch reads answered by the tail cache";
        r.register("tail_cache_hits", hits, self.tail_cache_hits.clone());
        let misses = "Batch reads that went to a file";
        r.register("tail_cache_misses", misses, self.tail_cache_misses.clone());
        let cached = "Bytes in the tail cache";
        r.register_with_unit("tail_cache", cached, Unit::Bytes, self.tail_cache_bytes.clone());
        let flush = "Time to write one partition's pending batches to its segments";
        r.register_with_unit(
            "segment_flush",
            flush,
            Unit::Seconds,
            self.segment_flush_seconds.clone(),
        );
        let sync = "Time of one segment's fdatasync";
        r.register_with_unit(
            "segment_sync",
            sync,
            Unit::Seconds,
            self.segment_sync_seconds.clone(),
        );
        r.register("open_files", "Descriptors held by the file cache", self.open_files.clone());
        let damaged = "Segment ranges that fail their checksum";
        r.register("damaged_ranges", damaged, self.damaged_ranges.clone());
    }
}

/// Requests that stay open. Use [`Gauge::track`], so that a dropped connection is counted off.
#[derive(Debug, Clone, Default)]
pub struct StreamMetrics {
    /// Reads that wait for a record.
    pub long_polls_waiting: Gauge,
    /// SSE connections.
    pub sse_streams_open: Gauge,
    /// NDJSON produce requests whose body is still arriving.
    pub produce_streams_open: Gauge,
}

impl StreamMetrics {
    fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("http");
        let polls = "Reads waiting for a record";
        r.register("long_polls_waiting", polls, self.long_polls_waiting.clone());
        r.register("sse_streams_open", "Open SSE connections", self.sse_streams_open.clone());
        let produce = "NDJSON produce requests still arriving";
        r.register("produce_streams_open", produce, self.produce_streams_open.clone());
    }
}

/// The metadata's SQL view.
#[derive(Debug, Clone, Default)]
pub struct MetadataMetrics {
    /// Metadata entries that are applied to the image and not yet written to SQL.
    pub sql_lag_entries: Gauge,
}

impl MetadataMetrics {
    fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("metadata");
        let lag = "Metadata entries that the SQL view lacks";
        r.register("sql_lag_entries", lag, self.sql_lag_entries.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::TopicName;
    use std::time::Duration;

    #[test]
    fn every_update_shows_in_the_text() {
        let metrics = Metrics::shared();
        let route = metrics.http.route("POST", "/topics/{topic}");
        route.observe(200, Duration::from_micros(30));
        route.observe(404, Duration::from_micros(30));
        route.request_bytes.add(120);
        metrics.topics.topic(&TopicName::parse("flights").unwrap()).records_in.add(7);
        metrics.wal.sync_seconds.observe_duration(Duration::from_micros(300));
        metrics.shards.batch_records.observe(3);
        metrics.storage.open_files.add(5);
        metrics.storage.open_files.sub(2);
        metrics.metadata.sql_lag_entries.set(4);

        let text = metrics.encode().unwrap();
        for line in [
            r#"eddyline_http_requests_total{route="/topics/{topic}",method="POST",status="2xx"} 1"#,
            r#"eddyline_http_requests_total{route="/topics/{topic}",method="POST",status="4xx"} 1"#,
            r#"eddyline_http_request_body_bytes_total{route="/topics/{topic}",method="POST"} 120"#,
            r#"eddyline_topic_records_in_total{topic="flights"} 7"#,
            "eddyline_wal_sync_seconds_count 1",
            r#"eddyline_shard_batch_records_bucket{le="4.0"} 1"#,
            "eddyline_storage_open_files 3",
            "eddyline_metadata_sql_lag_entries 4",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn servers_in_one_process_do_not_share_counters() {
        let (one, two) = (Metrics::shared(), Metrics::shared());
        one.storage.tail_cache_hits.inc();
        assert_eq!(one.storage.tail_cache_hits.get(), 1);
        assert_eq!(two.storage.tail_cache_hits.get(), 0);
    }

    #[test]
    fn names_follow_the_naming_rules() {
        let text = Metrics::shared().encode().unwrap();
        let mut names: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
            .collect();
        assert!(names.len() > 20, "{names:?}");
        assert!(names.iter().all(|name| name.starts_with("eddyline_")), "{names:?}");
        names.sort_unstable();
        let before = names.len();
        names.dedup();
        assert_eq!(names.len(), before, "a name is registered twice");
    }
}
