//! Which shard a new partition goes to.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::metadata::Image;
use crate::types::ShardId;

/// Places the partitions of a new topic on the data shards that have its replication factor: first
/// so that no shard has two more of the topic's own than another, since that shares a topic's load;
/// then on the shard with the fewest partitions; then on the one with the lowest id.
///
/// Returns `None` when no shard has the factor.
pub(in crate::metadata) fn place(
    image: &Image,
    partitions: u32,
    replication_factor: u16,
) -> Option<Arc<[ShardId]>> {
    let mut candidates: BTreeSet<(u32, u64, ShardId)> = image
        .shards
        .values()
        .filter(|shard| shard.id != ShardId::METADATA)
        .filter(|shard| shard.replication_factor == replication_factor)
        .map(|shard| (0, image.partitions_on(shard.id), shard.id))
        .collect();
    let mut placed = Vec::new();
    for _ in 0..partitions {
        let (of_topic, of_all, shard) = candidates.pop_first()?;
        placed.push(shard);
        candidates.insert((of_topic + 1, of_all + 1, shard));
    }
    Some(placed.into())
}
