//! The statements of the view. All but those with a database's name run on every database; a test
//! prepares each of them on a real one.

/// All statements for SQLite, for the test that prepares them.
#[cfg(test)]
pub(super) const ALL_SQLITE: &[&str] = &[
    GET_STATE,
    PUT_STATE,
    PUT_CLUSTER,
    PUT_NODE,
    PUT_SHARD,
    PUT_REPLICA,
    PUT_TOPIC,
    PUT_CONFIG,
    PUT_PARTITIONS_SQLITE,
    REMOVE_TOPIC,
    REMOVE_CONFIGS,
    REMOVE_PARTITIONS,
    PUT_HISTORY,
    TRIM_HISTORY,
    SEARCH_TOPICS,
    LIST_HISTORY,
];

pub(super) const GET_STATE: &str =
    "SELECT cluster_id, applied_term, applied_index FROM view_state WHERE id = 1";

pub(super) const PUT_STATE: &str = "\
    INSERT INTO view_state (id, applied_term, applied_index) VALUES (1, $1, $2) \
    ON CONFLICT (id) DO UPDATE SET \
        applied_term = excluded.applied_term, applied_index = excluded.applied_index";

/// The position is written at the end of the same transaction.
pub(super) const PUT_CLUSTER: &str = "\
    INSERT INTO view_state (id, cluster_id, applied_term, applied_index) VALUES (1, $1, 0, 0) \
    ON CONFLICT (id) DO UPDATE SET cluster_id = excluded.cluster_id";

pub(super) const PUT_NODE: &str = "\
    INSERT INTO nodes (node_id, url, registered_at) VALUES ($1, $2, $3) \
    ON CONFLICT (node_id) DO UPDATE SET \
        url = excluded.url, registered_at = excluded.registered_at";

pub(super) const PUT_SHARD: &str = "\
    INSERT INTO shards (shard_id, replication_factor) VALUES ($1, $2) \
    ON CONFLICT (shard_id) DO UPDATE SET replication_factor = excluded.replication_factor";

pub(super) const PUT_REPLICA: &str = "\
    INSERT INTO replicas (replica_id, shard_id, node_id) VALUES ($1, $2, $3) \
    ON CONFLICT (replica_id) DO UPDATE SET \
        shard_id = excluded.shard_id, node_id = excluded.node_id";

pub(super) const PUT_TOPIC: &str = "\
    INSERT INTO topics (topic_id, name, partitions, replication_factor, state, created_at, \
        changed_term, changed_index) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
    ON CONFLICT (topic_id) DO UPDATE SET \
        name = excluded.name, partitions = excluded.partitions, \
        replication_factor = excluded.replication_factor, state = excluded.state, \
        created_at = excluded.created_at, changed_term = excluded.changed_term, \
        changed_index = excluded.changed_index";

pub(super) const PUT_CONFIG: &str = "\
    INSERT INTO topic_configs (topic_id, name, value) VALUES ($1, $2, $3) \
    ON CONFLICT (topic_id, name) DO UPDATE SET value = excluded.value";

/// One statement for all partitions of a topic, from a JSON array of their shards: a statement for
/// each would take seconds for a wide topic.
pub(super) const PUT_PARTITIONS_SQLITE: &str = "\
    INSERT INTO partitions (topic_id, partition_id, shard_id) \
    SELECT $1, key, value FROM json_each($2) WHERE true \
    ON CONFLICT (topic_id, partition_id) DO UPDATE SET shard_id = excluded.shard_id";

pub(super) const REMOVE_TOPIC: &str = "DELETE FROM topics WHERE topic_id = $1";
pub(super) const REMOVE_CONFIGS: &str = "DELETE FROM topic_configs WHERE topic_id = $1";
pub(super) const REMOVE_PARTITIONS: &str = "DELETE FROM partitions WHERE topic_id = $1";

pub(super) const PUT_HISTORY: &str = "\
    INSERT INTO history (log_index, happened_at, event, topic_id, name, principal) \
    VALUES ($1, $2, $3, $4, $5, $6) \
    ON CONFLICT (log_index) DO NOTHING";

pub(super) const TRIM_HISTORY: &str = "DELETE FROM history WHERE log_index <= $1";

/// Empties the view, in any order: the tables do not refer to each other.
pub(super) const CLEAR: &[&str] = &[
    "DELETE FROM view_state",
    "DELETE FROM nodes",
    "DELETE FROM shards",
    "DELETE FROM replicas",
    "DELETE FROM topics",
    "DELETE FROM topic_configs",
    "DELETE FROM partitions",
    "DELETE FROM history",
];

pub(super) const SEARCH_TOPICS: &str = "\
    SELECT topic_id, name, partitions, state FROM topics \
    WHERE lower(name) LIKE $1 ESCAPE '!' AND state <> 'deleting' \
    ORDER BY name LIMIT $2";

pub(super) const LIST_HISTORY: &str = "\
    SELECT log_index, happened_at, event, topic_id, name, principal FROM history \
    ORDER BY log_index DESC LIMIT $1";
