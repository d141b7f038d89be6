//! `/v1/ws`: many subscriptions on one WebSocket, with credits, produce and groups.
//!
//! The protocol is `eddyline.v1.json`: one JSON object per text frame, `type` first.
//!
//! ```text
//! handshake -> Session (one task a socket) -> Socket       bytes on the wire
//!                 |                       \-> Subscription positions, credit, filter
//!                 |                                |
//!                 \-- jobs (reads, writes) --- FrameCache  encoded once, shared by all
//! ```
//!
//! Invariants:
//! - the log is the queue: a client that reads slowly costs its offsets, its buffers, which are
//!   bounded, and references to frames that others share;
//! - credit decides how much is sent, commits say how much is done; neither changes the other;
//! - `base` of a `records` frame is the `next` that the client was last told, or a `gap`, `reset`
//!   or `seeked` lies between;
//! - a request that cannot be served is answered by an `error` frame; only what is wrong with the
//!   socket as a whole closes it, with a code whose range says what to do next.

mod cache;
mod encode;
mod filter;
mod frame;
mod handle;
mod handshake;
mod jobs;
mod liveness;
mod membership;
mod pointer;
mod produce;
mod replies;
mod requests;
mod session;
mod socket;
mod start;
mod subscription;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::sync::Semaphore;

use crate::api::State;
use crate::api::error::Caller;
use crate::api::http::{Verb, route};
use crate::api::ws::cache::FrameCache;
use crate::metrics::WebSocketMetrics;

pub(crate) use handshake::openapi;

/// Where sockets are opened.
pub(crate) const PATH: &str = "/v1/ws";

/// The one version of the protocol, as a subprotocol.
const SUBPROTOCOL: &str = "eddyline.v1.json";

/// Largest frame that a client may send, and that it is sent unless it asks for smaller ones. One
/// record is always sent whole.
const FRAME_BYTES_MAX: usize = 256 * 1024;

/// Filtered scans that run at a time: each keeps a thread busy.
const SCANS_MAX: usize = 2;

/// What an operator decides about sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How long records wait for others to share a frame with, when a subscription is caught up.
    pub linger: Duration,
    /// Subscriptions of one socket.
    pub max_subscriptions: usize,
    /// Origins of web pages that may connect, beside the server's own.
    pub allowed_origins: Vec<String>,
    /// Bytes of encoded frames that are kept for other subscribers.
    pub cache_bytes: usize,
    /// Timers of the protocol.
    pub timers: Timers,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            linger: Duration::from_millis(5),
            max_subscriptions: 64,
            allowed_origins: Vec::new(),
            cache_bytes: 32 * 1024 * 1024,
            timers: Timers::default(),
        }
    }
}

/// Timers of the protocol. They are part of it and no settings; tests shorten them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timers {
    /// Time for the first frame to arrive.
    pub hello: Duration,
    /// A client is pinged this often, and a socket is not silent for longer.
    pub heartbeat: Duration,
    /// Time for a ping's answer to arrive.
    pub pong: Duration,
    /// How long a socket may take nothing of what is to be written.
    pub blocked: Duration,
    /// Time between `goaway` and the end, for clients to finish what they do.
    pub drain: Duration,
    /// Time for the closing handshake.
    pub close: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            hello: Duration::from_secs(5),
            heartbeat: Duration::from_secs(20),
            pong: Duration::from_secs(10),
            blocked: Duration::from_secs(30),
            drain: Duration::from_secs(1),
            close: Duration::from_secs(2),
        }
    }
}

/// What all sockets of a server share.
#[derive(Debug)]
pub struct Shared {
    cache: FrameCache,
    scans: Arc<Semaphore>,
    metrics: WebSocketMetrics,
}

impl Shared {
    /// Makes what sockets share.
    pub fn new(config: &Config, metrics: &WebSocketMetrics) -> Self {
        Self {
            cache: FrameCache::new(config.cache_bytes, metrics.clone()),
            scans: Arc::new(Semaphore::new(SCANS_MAX)),
            metrics: metrics.clone(),
        }
    }
}

/// Builds the route.
pub(crate) fn router(state: &Arc<State>) -> Router {
    Router::new().route(PATH, route(state, (Verb::Get, PATH), Caller::native, handshake::open))
}
