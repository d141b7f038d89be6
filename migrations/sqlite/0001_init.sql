-- The metadata as rows, for people and their tools. The server writes it and decides nothing by it:
-- it is filled from the metadata log and may be deleted while the server is stopped.
-- Times are milliseconds since the Unix epoch. The same tables are in migrations/postgres.

-- One row: which cluster the rows are of, and the last command that they contain.
CREATE TABLE view_state (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    cluster_id TEXT,
    applied_term BIGINT NOT NULL,
    applied_index BIGINT NOT NULL
);

CREATE TABLE nodes (
    node_id BIGINT NOT NULL PRIMARY KEY,
    url TEXT NOT NULL,
    registered_at BIGINT NOT NULL
);

CREATE TABLE shards (
    shard_id BIGINT NOT NULL PRIMARY KEY,
    replication_factor BIGINT NOT NULL
);

CREATE TABLE replicas (
    replica_id BIGINT NOT NULL PRIMARY KEY,
    shard_id BIGINT NOT NULL,
    node_id BIGINT NOT NULL
);
CREATE INDEX replicas_by_shard ON replicas (shard_id);
CREATE INDEX replicas_by_node ON replicas (node_id);

-- state: creating, active or deleting.
CREATE TABLE topics (
    topic_id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    partitions BIGINT NOT NULL,
    replication_factor BIGINT NOT NULL,
    state TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    changed_term BIGINT NOT NULL,
    changed_index BIGINT NOT NULL
);

-- Only the configs that are set.
CREATE TABLE topic_configs (
    topic_id TEXT NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (topic_id, name)
);

CREATE TABLE partitions (
    topic_id TEXT NOT NULL,
    partition_id BIGINT NOT NULL,
    shard_id BIGINT NOT NULL,
    PRIMARY KEY (topic_id, partition_id)
);
CREATE INDEX partitions_by_shard ON partitions (shard_id);

-- event: topic_created or topic_deleted. The last 1,000 are kept.
CREATE TABLE history (
    log_index BIGINT NOT NULL PRIMARY KEY,
    happened_at BIGINT NOT NULL,
    event TEXT NOT NULL,
    topic_id TEXT NOT NULL,
    name TEXT NOT NULL,
    principal TEXT NOT NULL
);
