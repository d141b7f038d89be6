//! The image as bytes, in checkpoints and snapshots.
//!
//! ```text
//! 0   8  magic
//! 8   4  version, u32 little-endian
//! 12  8  length of the payload in bytes, u64 little-endian
//! 20  4  CRC-32C of bytes 0..20 and the payload, u32 little-endian
//! 24     payload; nothing follows it
//! ```
//!
//! The same frame holds an image (magic `eddyimag`, payload JSON) and a checkpoint (magic
//! `eddychkp`, see [`crate::metadata::Checkpoint`]).

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::metadata::groups::StoredGroup;
use crate::metadata::image::limits::HISTORY_LEN_MAX;
use crate::metadata::{HistoryEntry, Image, Node, Shard, Topic};
use crate::storage::fs::is_exhausted;
use crate::types::{ClusterId, LogPosition, ShardId};

const MAGIC_LEN: usize = 8;
const VERSION_AT: usize = MAGIC_LEN;
const LENGTH_AT: usize = VERSION_AT + size_of::<u32>();
const CRC_AT: usize = LENGTH_AT + size_of::<u64>();
const PAYLOAD_AT: usize = CRC_AT + size_of::<u32>();

const IMAGE: Frame = Frame { what: "metadata image", magic: *b"eddyimag", version: 1 };

/// Why bytes are not metadata, or could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes end too early, or go on too long.
    #[error("the {what} has not the length that it says")]
    Truncated {
        /// What the bytes should have been.
        what: &'static str,
    },
    /// The bytes are something else.
    #[error("this is not a {what}")]
    Magic {
        /// What the bytes should have been.
        what: &'static str,
    },
    /// The bytes are of another version of the format, probably of a newer server.
    #[error("the {what} has version {found}, which this server does not know")]
    Version {
        /// What the bytes should have been.
        what: &'static str,
        /// The version.
        found: u32,
    },
    /// The bytes were changed after they were written.
    #[error("the {what} is damaged: its checksum differs")]
    Checksum {
        /// What the bytes should have been.
        what: &'static str,
    },
    /// The JSON is not what it should be.
    #[error("the {what} cannot be understood")]
    Json {
        /// What the JSON should have been.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The image contradicts itself.
    #[error("the metadata image contradicts itself: {0}")]
    Inconsistent(String),
    /// A checkpoint file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// A checkpoint file is there and no generation of it is good.
    #[error("no generation of the checkpoint {} is good", path.display())]
    NoGoodGeneration {
        /// The newest generation.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<Self>,
    },
}

impl Error {
    /// Returns whether the disk is full, or no descriptor is left: the same can be tried again when
    /// there is room.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_exhausted(source))
    }

    /// Wraps an error of the JSON of something.
    pub(in crate::metadata) fn json(what: &'static str) -> impl FnOnce(serde_json::Error) -> Self {
        move |source| Self::Json { what, source }
    }
}

/// A kind of frame; see the module's description for its bytes.
#[derive(Debug, Clone, Copy)]
pub(in crate::metadata) struct Frame {
    /// What is in it, for errors.
    pub(in crate::metadata) what: &'static str,
    /// Its first bytes.
    pub(in crate::metadata) magic: [u8; MAGIC_LEN],
    /// The version that is written, and the only one that is read.
    pub(in crate::metadata) version: u32,
}

impl Frame {
    /// Wraps a payload.
    pub(in crate::metadata) fn wrap(&self, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(PAYLOAD_AT + payload.len());
        bytes.extend_from_slice(&self.magic);
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), payload);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    /// Checks a frame and returns its payload.
    ///
    /// # Errors
    /// [`Error::Truncated`], [`Error::Magic`], [`Error::Version`], [`Error::Checksum`].
    pub(in crate::metadata) fn unwrap<'a>(&self, bytes: &'a [u8]) -> Result<&'a [u8], Error> {
        let what = self.what;
        let truncated = Error::Truncated { what };
        let Some((head, payload)) = bytes.split_at_checked(PAYLOAD_AT) else {
            return Err(truncated);
        };
        let Some((checked, crc)) = head.split_last_chunk::<4>() else {
            return Err(truncated);
        };
        let Some((before, length)) = checked.split_last_chunk::<8>() else {
            return Err(truncated);
        };
        let Some((magic, version)) = before.split_last_chunk::<4>() else {
            return Err(truncated);
        };
        if magic != self.magic {
            return Err(Error::Magic { what });
        }
        let crc_found = crc32c::crc32c_append(crc32c::crc32c(checked), payload);
        let is_whole = u64::from_le_bytes(*length) == payload.len() as u64;
        // Before the checksum: a newer version may have another layout behind the version field.
        let version = u32::from_le_bytes(*version);
        if version != self.version {
            return Err(Error::Version { what, found: version });
        }
        if !is_whole {
            return Err(truncated);
        }
        if crc_found != u32::from_le_bytes(*crc) {
            return Err(Error::Checksum { what });
        }
        Ok(payload)
    }
}

/// The image's JSON. What can be computed from the rest is left out.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    cluster: Option<ClusterId>,
    changed: LogPosition,
    next_replica: u64,
    nodes: Vec<Arc<Node>>,
    shards: Vec<Arc<Shard>>,
    topics: Vec<Arc<Topic>>,
    history: Vec<Arc<HistoryEntry>>,
    /// Absent in images of servers that had no consumer groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    groups: Vec<StoredGroup>,
}

impl Image {
    /// Encodes the image; equal images have equal bytes.
    ///
    /// # Errors
    /// [`Error::Json`], which would be a bug: every image has a JSON form.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        let stored = Stored {
            cluster: self.cluster,
            changed: self.changed,
            next_replica: self.next_replica,
            nodes: self.nodes.values().cloned().collect(),
            shards: self.shards.values().cloned().collect(),
            topics: self.topics().cloned().collect(),
            history: self.history().cloned().collect(),
            groups: self.groups_from(None).map(|group| group.as_ref().into()).collect(),
        };
        let json = serde_json::to_vec(&stored).map_err(Error::json(IMAGE.what))?;
        Ok(IMAGE.wrap(&json))
    }

    /// Decodes an image.
    ///
    /// # Errors
    /// All of [`Error`] but the I/O ones. The bytes are of no use then; take another copy.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let json = IMAGE.unwrap(bytes)?;
        let stored: Stored = serde_json::from_slice(json).map_err(Error::json(IMAGE.what))?;
        restore(stored).map_err(Error::Inconsistent)
    }
}

fn restore(stored: Stored) -> Result<Image, String> {
    let mut image = Image::default();
    image.cluster = stored.cluster;
    image.changed = stored.changed;
    for node in stored.nodes {
        if let Some(node) = image.nodes.insert(node.id, node) {
            return Err(format!("node {} twice", node.id));
        }
    }
    let mut replica_ids = BTreeSet::new();
    for shard in stored.shards {
        if image.shards.contains_key(&shard.id) {
            return Err(format!("shard {} twice", shard.id));
        }
        for replica in &shard.replicas {
            if !image.nodes.contains_key(&replica.node) {
                return Err(format!("shard {} on unknown node {}", shard.id, replica.node));
            }
            if !replica_ids.insert(replica.replica) {
                return Err(format!("replica {} twice", replica.replica));
            }
        }
        image.put_shard(shard);
    }
    if image.next_replica > stored.next_replica {
        return Err(format!("replica ids from {} were issued", stored.next_replica));
    }
    image.next_replica = stored.next_replica;
    for topic in stored.topics {
        check_topic(&image, &topic)?;
        image.put_topic(topic);
    }
    for entry in stored.history {
        if let Some(entry) = image.history.insert(entry.index, entry) {
            return Err(format!("two history entries of index {}", entry.index));
        }
    }
    if image.history.len() > HISTORY_LEN_MAX {
        return Err(format!("{} history entries", image.history.len()));
    }
    for group in stored.groups {
        group.restore(&mut image)?;
    }
    Ok(image)
}

fn check_topic(image: &Image, topic: &Topic) -> Result<(), String> {
    if image.topic(topic.id).is_some() {
        return Err(format!("topic {} twice", topic.id));
    }
    if let Some(other) = image.topic_in_the_way(&topic.name) {
        return Err(format!("topics named '{}' and '{}'", other.name, topic.name));
    }
    if topic.partitions.is_empty() {
        return Err(format!("topic {} has no partitions", topic.id));
    }
    let on: BTreeSet<ShardId> = topic.partitions.iter().copied().collect();
    for id in on {
        let factor = image.shard(id).map(|shard| shard.replication_factor);
        if id == ShardId::METADATA || factor != Some(topic.replication_factor) {
            return Err(format!("topic {} on unsuitable shard {id}", topic.id));
        }
    }
    Ok(())
}
