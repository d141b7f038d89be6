//! Tests of a whole server in this process, over HTTP.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code fails by panicking")]
#![allow(clippy::indexing_slicing, clippy::panic, reason = "test code fails by panicking")]

mod bench;
mod browser;
mod cli;
mod clients;
mod damage;
mod http2;
mod memory;
mod openapi;
mod ops;
mod pressure;
mod retention;
mod support;
mod v1_contract;
mod v1_group_events;
mod v1_groups;
mod v1_limits;
mod v1_produce;
mod v1_read;
mod v1_streams;
mod v1_topics;
mod v2;
mod v2_consumers;
mod ws;
mod ws_client;
mod ws_conformance;
mod ws_groups;
mod ws_limits;
