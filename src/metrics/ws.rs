//! Measurements of WebSockets.

use std::sync::Arc;

use prometheus_client::registry::{Registry, Unit};

use crate::metrics::{Counter, Gauge};

/// WebSockets and the frames that they share.
#[derive(Debug, Clone, Default)]
pub struct WebSocketMetrics {
    /// Open sockets. Use [`Gauge::track`].
    pub sockets_open: Gauge,
    /// Frames that were found encoded.
    pub cache_hits: Counter,
    /// Frames that had to be encoded, for one subscriber and those who come after it.
    pub cache_misses: Counter,
    /// Bytes of encoded frames that are kept.
    pub cache_bytes: Gauge,
    closed: Arc<Closed>,
}

/// Sockets that the server closed, by what that tells their clients.
#[derive(Debug, Default)]
struct Closed {
    client: Counter,
    server: Counter,
    other: Counter,
}

impl WebSocketMetrics {
    /// Returns the counter of sockets that the server closes with a code: 44xx are faults of
    /// clients, 45xx the server's.
    pub fn closed(&self, code: u16) -> &Counter {
        match code {
            4400..=4499 => &self.closed.client,
            4500..=4599 => &self.closed.server,
            _ => &self.closed.other,
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("ws");
        r.register("sockets_open", "Open WebSockets", self.sockets_open.clone());
        let hits = "Frames of records that were found encoded";
        r.register("frame_cache_hits", hits, self.cache_hits.clone());
        let misses = "Frames of records that had to be encoded";
        r.register("frame_cache_misses", misses, self.cache_misses.clone());
        let kept = "Bytes of encoded frames that are kept";
        r.register_with_unit("frame_cache", kept, Unit::Bytes, self.cache_bytes.clone());
        let closed = "WebSockets closed with a code 44xx";
        r.register("closed_44xx", closed, self.closed.client.clone());
        let closed = "WebSockets closed with a code 45xx";
        r.register("closed_45xx", closed, self.closed.server.clone());
        let closed = "WebSockets that the server closed with another code";
        r.register("closed_other", closed, self.closed.other.clone());
    }
}
