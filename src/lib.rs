//! Eddyline: an event-streaming server in one binary.
//!
//! The layers, each using only those above it in this list; `ARCHITECTURE.md` has the map:
//! `types`, `record`, `storage`, `raft`, `groups`, `shard` and `metadata`, `broker`, `api`,
//! `server`. Beside them stand the commands: `cli` talks to a server, `offline` reads a stopped
//! node's files.

pub mod api;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod config;
pub mod groups;
pub mod metadata;
pub mod metrics;
pub mod offline;
pub mod process;
pub mod raft;
pub mod record;
pub mod server;
pub mod shard;
pub mod storage;
pub mod tasks;
pub mod telemetry;
pub mod types;
