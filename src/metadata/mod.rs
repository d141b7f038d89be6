//! The cluster's metadata: which nodes, shards and topics there are, where partitions live, and the
//! consumer groups with their committed offsets.
//!
//! Commands go through the metadata shard's Raft log; [`apply`] turns them into a new [`Image`] and
//! into row changes for the SQL [`view`]. The shard's driver calls `apply`, publishes the image and
//! writes the [`CheckpointFile`]; the broker reads the image.
//!
//! Invariants:
//! - `apply` is a function of image, position and command: no clock, randomness, SQL or I/O, so
//!   that every replica computes the same image, byte for byte once encoded;
//! - a command that is refused changes nothing;
//! - an image never changes once it is published: clones share all unchanged pieces;
//! - the durable form of the image is the checkpoint file. SQL is a view that may lag, be away or
//!   be deleted; nothing reads it to decide anything.

mod apply;
mod checkpoint;
mod codec;
mod command;
mod cow_map;
mod groups;
mod image;
mod machine;
mod placement;
mod rows;
mod shard;
#[cfg(test)]
mod tests;
pub mod view;

pub use apply::{Accepted, Rejection, Response, apply};
pub use checkpoint::{Checkpoint, CheckpointFile, Generation, Loaded};
pub use codec::Error;
pub use command::{
    AddShards, AlterTopicConfig, Bootstrap, Command, CreateTopic, DeleteTopic, NewShard,
    RegisterNode,
};
pub use groups::{
    ChangeGroup, Commit, Committed, ConsumerGroup, DeleteOffsets, ExpireOffsets, NewOffset,
};
pub use image::{HistoryEntry, HistoryEvent, Image, Node, Replica, Shard, Topic};
pub use image::{TopicState, limits};
pub use rows::RowChange;
pub use shard::{ChangeError, MetadataShard, OnFailure, ShardParts};
