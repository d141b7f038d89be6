//! Bounds that are constants. Those that an operator may change live in the layers' `Config` types;
//! the defaults of both are in the API documentation.

/// Longest topic name, in characters (Kafka, `Topic.java`).
pub const TOPIC_NAME_BYTES_MAX: usize = 249;

/// Default of `max.message.bytes`: Kafka's 1 MiB plus the 12 bytes of a batch's log overhead.
pub const MESSAGE_BYTES_MAX_DEFAULT: u32 = 1_048_588;

/// Largest `max.message.bytes` that can be configured: a batch must fit in one Raft entry.
pub const MESSAGE_BYTES_MAX_CEILING: u32 = 64 * 1024 * 1024;

/// Bytes that a proposer puts into one Raft entry before it starts the next one.
pub const ENTRY_BYTES_TARGET: usize = 4 * 1024 * 1024;

/// Raft entries that a lone voter's proposer keeps in flight.
pub const ENTRIES_IN_FLIGHT_MAX: usize = 2;

/// Bytes that wait in one shard's accumulators before produce is refused with `overloaded`.
pub const ACCUMULATOR_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Null-key records stay on one partition until this many bytes went there (KIP-794).
pub const STICKY_BATCH_BYTES: usize = 16 * 1024;

/// Records that one read may ask for.
pub const READ_RECORDS_MAX: u32 = 10_000;

/// Bytes of records that one read may ask for.
pub const READ_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Longest long poll, in milliseconds.
pub const READ_WAIT_MS_MAX: u64 = 300_000;

/// Longest name of a group, a member or an instance, in bytes.
pub const GROUP_NAME_BYTES_MAX: usize = 249;

/// Longest text that a client may store with a committed offset (Kafka's
/// `offset.metadata.max.bytes`).
pub const OFFSET_METADATA_BYTES_MAX: usize = 4_096;

/// Members of one group.
pub const GROUP_MEMBERS_MAX: usize = 1_000;

/// Groups of a cluster.
pub const GROUPS_MAX: usize = 100_000;

/// Topics that one member may name in its subscription.
pub const SUBSCRIPTION_TOPICS_MAX: usize = 1_000;

/// Longest pattern that a member may subscribe to, in bytes.
pub const SUBSCRIPTION_PATTERN_BYTES_MAX: usize = 1_024;

/// Offsets that one commit may name.
pub const COMMIT_OFFSETS_MAX: usize = 10_000;

/// Rebalances of a group that are remembered.
pub const GROUP_REBALANCES_MAX: usize = 100;

/// Most partitions of a topic, whatever the settings say: a client has to be able to send the
/// cursor of all of them back in a request's head. Also the default of `topics.max_partitions`.
pub const TOPIC_PARTITIONS_MAX: u32 = 10_000;

const _: () = assert!(MESSAGE_BYTES_MAX_DEFAULT <= MESSAGE_BYTES_MAX_CEILING);
const _: () = assert!(ENTRY_BYTES_TARGET >= MESSAGE_BYTES_MAX_DEFAULT as usize);
const _: () = assert!(ACCUMULATOR_BYTES_MAX >= ENTRY_BYTES_TARGET * ENTRIES_IN_FLIGHT_MAX);
