//! A whole node below the HTTP faces, on a disk in memory that can lose power.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use arc_swap::ArcSwap;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use uuid::Uuid;

use crate::broker::{
    AppendError, Broker, BrokerParts, ClockMark, Config, CreateTopic, Creation, OnDamage,
    ProduceError, ProduceRecord, ReadError, ReadRequest, Search, Start, Topic, TopicError, Visit,
};
use crate::clock::{Clock, ManualClock, SharedClock};
use crate::metadata::view::{SqliteStore, view_writer};
use crate::metadata::{self, Bootstrap, CheckpointFile, Command, Image, MetadataShard, NewShard};
use crate::metrics::Metrics;
use crate::raft;
use crate::shard::{self, Shard, ShardParts};
use crate::storage::ballast::Ballast;
use crate::storage::checkpoint::CheckpointStore;
use crate::storage::fs::SharedFs;
use crate::storage::fs::sim::{Fault, NO_DESCRIPTORS, NO_SPACE, Operation, Repeat, SimFs};
use crate::storage::log::{self, Store};
use crate::storage::wal::{self, Wal};
use crate::tasks::Tracker;
use crate::types::{
    ClusterId, NodeId, Offset, PartitionId, Principal, ReplicaId, ShardId, Timestamp, TopicName,
};

mod groups;

const NODE: NodeId = NodeId::new(1);
const DATA_SHARD: ShardId = ShardId::new(1);
/// What tokio calls the threads for blocking work.
const BLOCKING_THREAD: &str = "tokio-rt-worker";

/// One node's running parts.
struct Node {
    broker: Broker,
    metadata: MetadataShard,
    shard: Shard,
    wal: Wal,
    tasks: Tracker,
}

fn members(replica: u64) -> raft::Members {
    raft::Members::from([(ReplicaId::new(replica), NODE)])
}

impl Node {
    async fn start(fs: &SimFs, clock: &Arc<ManualClock>) -> Self {
        let shared: SharedFs = Arc::new(fs.clone());
        let clock: SharedClock = Arc::clone(clock) as SharedClock;
        for shard in ["shards/0", "shards/1"] {
            shared.create_dir_all(Path::new(shard)).unwrap();
            // A checkpoint rests on the names of the directories above it.
            Path::new(shard).ancestors().skip(1).for_each(|above| shared.sync_dir(above).unwrap());
        }
        let files = CheckpointFile::new(Arc::clone(&shared), Path::new("shards/0"));
        let image_checkpoint = files.load().unwrap().map(|loaded| loaded.checkpoint);
        let (checkpoints, checkpoint) =
            CheckpointStore::open(Arc::clone(&shared), Path::new("shards/1")).unwrap();
        let floors = BTreeMap::from([
            (ReplicaId::new(1), image_checkpoint.as_ref().map(|c| c.applied)),
            (ReplicaId::new(2), checkpoint.as_ref().and_then(|c| c.applied)),
        ]);
        let store = Store::new(
            Arc::clone(&shared),
            PathBuf::from("partitions"),
            log::Config::default(),
            Arc::clone(&clock),
        );
        let states = checkpoint.iter().flat_map(|checkpoint| checkpoint.partitions.iter());
        let orphans = store.orphans(states).unwrap();
        store.remove_orphans(&orphans).unwrap();
        let config =
            wal::Config { file_bytes: 1 << 20, max_bytes: 8 << 20, ..wal::Config::default() };
        let observer = Arc::new(wal::NoObserver);
        let (wal, _) =
            Wal::open(Arc::clone(&shared), Path::new("wal"), config, &floors, observer).unwrap();
        let ballast = Arc::new(Ballast::new(Arc::clone(&shared), PathBuf::from("ballast")));
        let metadata = start_metadata((files, image_checkpoint), &wal, &ballast).await;
        let shard = Shard::start(ShardParts {
            shard: DATA_SHARD,
            replica: ReplicaId::new(2),
            members: members(2),
            checkpoints: (checkpoints, checkpoint),
            wal: wal.clone(),
            store: Arc::clone(&store),
            clock: Arc::clone(&clock),
            metrics: Metrics::shared().shards.clone(),
            storage_full: Arc::new(AtomicBool::new(false)),
            ballast,
            config: shard::Config::default(),
        })
        .await
        .unwrap();
        assert!(shard.group().wait_until_leading().await);
        let broker = Broker::new(BrokerParts {
            node: NODE,
            metadata: metadata.clone(),
            shards: BTreeMap::from([(DATA_SHARD, shard.clone())]),
            wal: wal.clone(),
            store,
            clock,
            metrics: Metrics::shared(),
            random: SmallRng::seed_from_u64(7),
            storage_full: Arc::new(AtomicBool::new(false)),
            config: Config::default(),
            clock_mark: ClockMark::new(shared, PathBuf::from("clock-untrusted")),
        });
        broker.finish_topic_changes().await.unwrap();
        let tasks = Tracker::new();
        tasks.spawn(broker.clone().run_groups(std::future::pending()));
        Self { broker, metadata, shard, wal, tasks }
    }

    /// Ends the threads of a node whose disk is gone; what that returns says nothing.
    async fn abandon(self) {
        let _aborted = self.tasks.shutdown(Duration::ZERO).await;
        self.shard.close().await;
        self.metadata.close().await;
        drop(self.wal.close());
    }

    async fn stop(self) {
        let _aborted = self.tasks.shutdown(Duration::ZERO).await;
        self.shard.close().await;
        self.metadata.close().await;
        self.wal.close().unwrap();
    }
}

async fn start_metadata(
    checkpoints: (CheckpointFile, Option<metadata::Checkpoint>),
    wal: &Wal,
    ballast: &Arc<Ballast>,
) -> MetadataShard {
    let image = checkpoints.1.as_ref().map(|c| c.image.clone()).unwrap_or_default();
    let image: Arc<ArcSwap<Image>> = Arc::new(ArcSwap::from_pointee(image));
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&directory.path().join("metadata.db")).await.unwrap();
    let current = Arc::clone(&image);
    let (feed, _writer) = view_writer(Arc::new(store), move || current.load_full());
    let metadata = MetadataShard::start(metadata::ShardParts {
        replica: ReplicaId::new(1),
        members: members(1),
        checkpoints,
        wal: wal.clone(),
        image,
        feed,
        ballast: Arc::clone(ballast),
        // A node here ends with its disk, whichever write finds it gone.
        on_failure: Arc::new(|_reason| {}),
        config: raft::Config::default(),
    })
    .await
    .unwrap();
    assert!(metadata.group().wait_until_leading().await);
    if metadata.image().cluster_id().is_none() {
        let new = |shard, replica| NewShard {
            shard,
            replication_factor: 1,
            replicas: vec![metadata::Replica { replica: ReplicaId::new(replica), node: NODE }],
        };
        let bootstrap = Command::Bootstrap(Bootstrap {
            cluster_id: ClusterId::new(Uuid::from_u128(5)),
            node: NODE,
            url: "http://127.0.0.1:8080".to_owned(),
            shards: vec![new(ShardId::METADATA, 1), new(DATA_SHARD, 2)],
            at: Timestamp::from_millis(0),
        });
        metadata.change(&bootstrap).await.unwrap().1.unwrap();
    }
    metadata
}

fn clock() -> Arc<ManualClock> {
    ManualClock::at(Timestamp::from_millis(1_764_000_000_000))
}

fn anyone() -> Principal {
    Principal::anonymous()
}

fn record(key: &str, value: String) -> ProduceRecord<'_> {
    ProduceRecord {
        key: Some(Cow::Borrowed(key.as_bytes())),
        value: Some(Cow::Owned(value.into_bytes())),
        ..ProduceRecord::default()
    }
}

/// Produces one record and returns where it was acknowledged.
async fn produce(broker: &Broker, topic: &Arc<Topic>, key: &str, value: String) -> (u32, i64) {
    let records = [record(key, value)];
    let outcomes = broker.produce(&anyone(), topic, &records).unwrap().await;
    let acknowledged = outcomes.iter().next().unwrap().unwrap();
    (acknowledged.partition.get(), acknowledged.offset.get())
}

async fn read_all(broker: &Broker, topic: &Arc<Topic>) -> HashMap<(u32, i64), String> {
    let partitions: Vec<_> = PartitionId::all(topic.summary().partitions).collect();
    let search = Search { start: Start::Earliest, on_damage: OnDamage::Fail };
    let positions = broker.start_offsets(&anyone(), topic, &partitions, search).await.unwrap();
    let request = ReadRequest {
        positions,
        records_max: 1_000_000,
        bytes_max: u64::MAX,
        scan_bytes_max: u64::MAX,
        on_damage: OnDamage::Fail,
    };
    let mut found = HashMap::new();
    let end = broker
        .read(&anyone(), topic, &request, &mut |partition, record| {
            let value = String::from_utf8(record.value.unwrap().to_vec()).unwrap();
            let at = (partition.get(), record.offset.get());
            assert!(found.insert(at, value).is_none(), "{at:?} was read twice");
            Visit::Taken
        })
        .await
        .unwrap();
    for ((partition, next), (_, end)) in end.next.iter().zip(&end.end_offsets) {
        assert_eq!(next, end, "partition {partition}");
        let count = found.keys().filter(|(p, _)| *p == partition.get()).count();
        assert_eq!(
            i64::try_from(count),
            Ok(end.get()),
            "offsets of partition {partition} are dense"
        );
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_records_survive_stops_kills_and_power_cuts() {
    let (mut fs, clock) = (SimFs::new(), clock());
    let mut acknowledged = HashMap::new();
    for round in 0..6 {
        let node = Node::start(&fs, &clock).await;
        let topic = node.broker.topic_for_produce(&anyone(), "flights", None).await.unwrap();
        assert_eq!(read_all(&node.broker, &topic).await, acknowledged, "round {round}");
        for n in 0..200 {
            let value = format!("{{\"round\":{round},\"n\":{n}}}");
            let at = produce(&node.broker, &topic, &format!("k{}", n % 17), value.clone()).await;
            assert!(acknowledged.insert(at, value).is_none(), "{at:?} was given out twice");
        }
        if round % 2 == 0 {
            node.shard.checkpoint().await.unwrap();
        }
        match round % 3 {
            0 => node.stop().await,
            _ => {
                // The disk as a power cut leaves it, taken while the node runs.
                let after = fs.cut();
                node.stop().await;
                fs = after;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_created_again_starts_at_offset_zero() {
    let node = Node::start(&SimFs::new(), &clock()).await;
    let broker = &node.broker;
    let asked = CreateTopic { partitions: Some(1), ..CreateTopic::default() };
    let (creation, old) = broker.create_topic(&anyone(), "t", asked.clone()).await.unwrap();
    assert_eq!(creation, Creation::Created);
    assert_eq!(broker.create_topic(&anyone(), "t", asked).await.unwrap().0, Creation::Confirmed);
    let other = CreateTopic { partitions: Some(2), ..CreateTopic::default() };
    let exists = broker.create_topic(&anyone(), "t", other).await;
    assert!(matches!(exists, Err(TopicError::Exists { .. })));
    assert_eq!(produce(broker, &old, "k", "1".to_owned()).await, (0, 0));
    broker.delete_topic(&anyone(), "t").await.unwrap();
    assert!(matches!(broker.topic(&anyone(), "t"), Err(TopicError::NotFound(_))));
    assert!(broker.produce(&anyone(), &old, &[record("k", "2".to_owned())]).is_err());
    let new = broker.topic_for_produce(&anyone(), "t", None).await.unwrap();
    assert_ne!(new.summary().id, old.summary().id);
    let (_, offset) = produce(broker, &new, "k", "3".to_owned()).await;
    assert_eq!(offset, 0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_waits_for_those_of_the_same_name_only() {
    let node = Node::start(&SimFs::new(), &clock()).await;
    let (broker, principal) = (&node.broker, anyone());
    let slow = TopicName::parse_for_write("slow").unwrap();
    let turn = broker.inner.creating.take(&slow).await;
    let other = broker.create_topic(&principal, "other", CreateTopic::default());
    let other = tokio::time::timeout(Duration::from_secs(20), other).await.unwrap();
    assert_eq!(other.unwrap().0, Creation::Created);
    // All that come at once create it once.
    let produce = || broker.topic_for_produce(&principal, "slow", None);
    let together = async { tokio::join!(produce(), produce(), async { drop(turn) }) };
    let (first, second, ()) = together.await;
    assert_eq!(first.unwrap().summary().id, second.unwrap().summary().id);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_whose_topic_is_being_deleted_is_free_later() {
    let node = Node::start(&SimFs::new(), &clock()).await;
    let (broker, principal) = (&node.broker, anyone());
    let (_, topic) = broker.create_topic(&principal, "a.b", CreateTopic::default()).await.unwrap();
    // The deletion has begun and the shards have not dropped it yet.
    let delete = Command::DeleteTopic(metadata::DeleteTopic {
        topic_id: topic.summary().id,
        at: Timestamp::from_millis(0),
        principal: principal.clone(),
    });
    node.metadata.change(&delete).await.unwrap().1.unwrap();
    for name in ["a.b", "a_b"] {
        let refused = broker.create_topic(&principal, name, CreateTopic::default()).await;
        let error = refused.unwrap_err();
        assert!(matches!(error, TopicError::Unavailable(_)), "{name}: {error:?}");
        assert!(error.is_retriable());
    }
    broker.finish_topic_changes().await.unwrap();
    let created = broker.create_topic(&principal, "a_b", CreateTopic::default()).await.unwrap();
    assert_eq!(created.0, Creation::Created);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_reader_is_woken_by_the_record_it_waits_for() {
    let node = Node::start(&SimFs::new(), &clock()).await;
    let topic = node.broker.topic_for_produce(&anyone(), "t", None).await.unwrap();
    let positions: Vec<_> = PartitionId::all(4).map(|p| (p, Offset::ZERO)).collect();
    let principal = anyone();
    let waiting = node.broker.wait_for_records(&principal, &topic, &positions);
    let producing = produce(&node.broker, &topic, "k", "v".to_owned());
    let both = async { tokio::join!(waiting, producing) };
    tokio::time::timeout(Duration::from_secs(20), both).await.unwrap().0.unwrap();
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_reader_is_told_that_its_topic_was_deleted() {
    let node = Node::start(&SimFs::new(), &clock()).await;
    let (broker, principal) = (&node.broker, anyone());
    let topic = broker.topic_for_produce(&principal, "t", None).await.unwrap();
    let positions: Vec<_> = PartitionId::all(4).map(|p| (p, Offset::ZERO)).collect();
    let waiting = broker.wait_for_records(&principal, &topic, &positions);
    let both = async { tokio::join!(waiting, broker.delete_topic(&principal, "t")) };
    let (woken, deleted) = tokio::time::timeout(Duration::from_secs(20), both).await.unwrap();
    deleted.unwrap();
    assert_eq!(woken, Err(ReadError::TopicDeleted));
    let described = broker.describe_partitions(&principal, &topic).await;
    assert_eq!(described.unwrap_err(), ReadError::TopicDeleted);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_between_any_two_steps_of_a_checkpoint_loses_nothing() {
    let (mut fs, clock) = (SimFs::new(), clock());
    let mut acknowledged = HashMap::new();
    let mut whole = 0;
    for steps in 0..40 {
        let node = Node::start(&fs, &clock).await;
        let topic = node.broker.topic_for_produce(&anyone(), "flights", None).await.unwrap();
        assert_eq!(read_all(&node.broker, &topic).await, acknowledged, "before step {steps}");
        for n in 0..8 {
            let value = format!("{{\"steps\":{steps},\"n\":{n}}}");
            let at = produce(&node.broker, &topic, &format!("k{n}"), value.clone()).await;
            assert!(acknowledged.insert(at, value).is_none(), "{at:?} was given out twice");
        }
        fs.stop_after(steps);
        let finished = node.shard.checkpoint().await.is_ok();
        let after = fs.cut();
        node.abandon().await;
        fs = after;
        whole += u32::from(finished);
    }
    assert!((1..36).contains(&whole), "{whole} of 40 checkpoints were not cut");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retention_pass_ends_in_one_checkpoint_whose_files_go_off_the_shards_thread() {
    let (fs, clock) = (SimFs::new(), clock());
    let shared: SharedClock = Arc::clone(&clock) as SharedClock;
    let node = Node::start(&fs, &clock).await;
    let configs = vec![("retention.ms".to_owned(), "1000".to_owned())];
    let asked = CreateTopic { partitions: Some(20), configs, ..CreateTopic::default() };
    let (_, topic) = node.broker.create_topic(&anyone(), "old", asked).await.unwrap();
    for n in 0..200 {
        produce(&node.broker, &topic, &format!("k{n}"), n.to_string()).await;
    }
    node.shard.checkpoint().await.unwrap();
    let performed =
        |operation| ["shard-1", BLOCKING_THREAD].map(|thread| fs.performed_by(thread, operation));
    let (renames, removals) = (performed(Operation::Rename), performed(Operation::Remove));
    clock.advance(Duration::from_secs(60));
    let moved = node.shard.run_retention(shared.now()).await.unwrap();
    assert_eq!(moved, 20);
    let gone = async {
        // A log and two indexes, there or not.
        while performed(Operation::Remove)[1] < removals[1] + 3 * moved as u64 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
    assert_eq!(performed(Operation::Remove)[0], removals[0], "the shard's thread removes none");
    assert_eq!(performed(Operation::Rename), [renames[0], renames[1] + 1], "one checkpoint");
    node.stop().await;
}

/// A wrong clock must not delete data, neither at once nor at the next look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stepped_clock_deletes_nothing_for_an_hour() {
    let clock = clock();
    let node = Node::start(&SimFs::new(), &clock).await;
    let configs = vec![("retention.ms".to_owned(), "7200000".to_owned())];
    let asked = CreateTopic { partitions: Some(1), configs, ..CreateTopic::default() };
    let (_, topic) = node.broker.create_topic(&anyone(), "t", asked).await.unwrap();
    produce(&node.broker, &topic, "k", "v".to_owned()).await;
    let partitions = [PartitionId::ZERO];
    let start = async || {
        let search = Search { start: Start::Earliest, on_damage: OnDamage::Fail };
        let found = node.broker.start_offsets(&anyone(), &topic, &partitions, search).await;
        found.unwrap()[0].1.get()
    };
    clock.step_wall(86_400_000);
    for _ in 0..3 {
        node.broker.retain_once().await;
        assert_eq!(start().await, 0, "a day that never passed has deleted it");
        clock.advance(Duration::from_secs(600));
    }
    clock.advance(Duration::from_secs(3600));
    node.broker.retain_once().await;
    assert_eq!(start().await, 1, "after an hour the clock is believed");
    node.stop().await;
}

/// A checkpoint that fails for lack of descriptors has flushed, and not synced: what it should have
/// synced must not be forgotten by the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_syncs_what_the_one_before_it_could_not() {
    let (fs, clock) = (SimFs::new(), clock());
    let node = Node::start(&fs, &clock).await;
    let topic = node.broker.topic_for_produce(&anyone(), "t", None).await.unwrap();
    for n in 0..20 {
        produce(&node.broker, &topic, &format!("k{n}"), n.to_string()).await;
    }
    let expected = read_all(&node.broker, &topic).await;
    let path_contains = "partitions".to_owned();
    let (errno, repeat) = (NO_DESCRIPTORS, Repeat::Always);
    fs.inject(Fault { operation: Operation::OpenDir, after: 1, path_contains, errno, repeat });
    node.shard.checkpoint().await.unwrap_err();
    fs.clear_faults();
    node.shard.checkpoint().await.unwrap();
    let after = fs.cut();
    node.stop().await;
    let node = Node::start(&after, &clock).await;
    assert_eq!(node.shard.damaged_ranges(), []);
    let topic = node.broker.topic_for_produce(&anyone(), "t", None).await.unwrap();
    assert_eq!(read_all(&node.broker, &topic).await, expected);
    node.stop().await;
}

/// `statvfs` knows nothing of inodes and quotas: the disk shows room and takes no new file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_takes_no_new_file_refuses_records_and_loses_none() {
    let (fs, clock) = (SimFs::new(), clock());
    let node = Node::start(&fs, &clock).await;
    let topic = node.broker.topic_for_produce(&anyone(), "t", None).await.unwrap();
    let mut acked = 0;
    let (errno, repeat) = (NO_SPACE, Repeat::Always);
    for path_contains in ["partitions", "shards"] {
        let path_contains = path_contains.to_owned();
        fs.inject(Fault { operation: Operation::Create, after: 0, path_contains, errno, repeat });
        let refused = async {
            loop {
                let value = acked.to_string();
                let records = [record("k", value)];
                match node.broker.produce(&anyone(), &topic, &records) {
                    Ok(outcomes) => {
                        let outcomes = outcomes.await;
                        match outcomes.iter().next().unwrap() {
                            Ok(_) => acked += 1,
                            Err(error) => break assert_eq!(error, AppendError::StorageFull),
                        }
                    }
                    Err(error) => break assert!(matches!(error, ProduceError::StorageFull)),
                }
                // What finds no room is a flush, or a checkpoint.
                let _ = node.shard.checkpoint().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), refused).await.unwrap();
        fs.clear_faults();
        let accepted = async {
            while node.shard.has_no_room() {
                tokio::time::sleep(Duration::from_millis(1)).await;
                let _ = node.shard.checkpoint().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), accepted).await.unwrap();
        produce(&node.broker, &topic, "k", acked.to_string()).await;
        acked += 1;
    }
    let expected = read_all(&node.broker, &topic).await;
    assert_eq!(expected.len(), acked);
    let after = fs.cut();
    node.stop().await;
    let node = Node::start(&after, &clock).await;
    let topic = node.broker.topic_for_produce(&anyone(), "t", None).await.unwrap();
    assert_eq!(read_all(&node.broker, &topic).await, expected);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_was_set_deletes_no_records_until_it_is_confirmed() {
    let clock = clock();
    let node = Node::start(&SimFs::new(), &clock).await;
    let broker = &node.broker;
    let configs = vec![("retention.ms".to_owned(), "60000".to_owned())];
    let asked = CreateTopic { partitions: Some(1), configs, ..CreateTopic::default() };
    let (_, topic) = broker.create_topic(&anyone(), "t", asked).await.unwrap();
    produce(broker, &topic, "k", "1".to_owned()).await;
    let log_start = async || broker.bounds(&anyone(), &topic, PartitionId::ZERO).await.unwrap().0;
    clock.step_wall(24 * 3600 * 1000);
    broker.retain_once().await;
    assert_eq!(log_start().await, Offset::ZERO);
    let details: Vec<_> = broker.checks().into_iter().filter_map(|check| check.detail).collect();
    assert!(details.iter().any(|detail| detail.contains("the wall clock was set")), "{details:?}");
    broker.confirm_clock(&anyone());
    broker.retain_once().await;
    assert_eq!(log_start().await.get(), 1);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_with_a_wrong_clock_deletes_no_records() {
    let (fs, clock) = (SimFs::new(), clock());
    let node = Node::start(&fs, &clock).await;
    let topic = node.broker.topic_for_produce(&anyone(), "t", None).await.unwrap();
    let (partition, _) = produce(&node.broker, &topic, "k", "1".to_owned()).await;
    let partition = PartitionId::new(partition).unwrap();
    node.stop().await;
    // A year ahead.
    clock.step_wall(365 * 24 * 3600 * 1000);
    let node = Node::start(&fs, &clock).await;
    let topic = node.broker.topic(&anyone(), "t").unwrap();
    node.broker.retain_once().await;
    let bounds = node.broker.bounds(&anyone(), &topic, partition).await.unwrap();
    assert_eq!((bounds.0.get(), bounds.1.get()), (0, 1));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn append_time_never_goes_back_whatever_the_clock_does() {
    let (fs, clock) = (SimFs::new(), clock());
    let start = clock_ms(&clock);
    let mut node = Node::start(&fs, &clock).await;
    let configs = vec![("message.timestamp.type".to_owned(), "LogAppendTime".to_owned())];
    let asked = CreateTopic { partitions: Some(1), configs, ..CreateTopic::default() };
    node.broker.create_topic(&anyone(), "t", asked).await.unwrap();
    let mut times = Vec::new();
    for is_restarted in [false, false, true] {
        if is_restarted {
            node.shard.checkpoint().await.unwrap();
            node.stop().await;
            node = Node::start(&fs, &clock).await;
        }
        let topic = node.broker.topic(&anyone(), "t").unwrap();
        let outcomes =
            node.broker.produce(&anyone(), &topic, &[record("k", "1".to_owned())]).unwrap().await;
        times.push(outcomes.iter().next().unwrap().unwrap().timestamp.as_millis());
        clock.step_wall(-10_000);
    }
    assert_eq!(times, [start, start, start]);
    node.stop().await;
}

fn clock_ms(clock: &Arc<ManualClock>) -> i64 {
    clock.now().as_millis()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_whose_creator_went_away_is_finished_or_can_be_deleted() {
    let node = Node::start(&SimFs::new(), &clock()).await;
    let broker = &node.broker;
    let begin = async |name: &str| {
        let command = Command::CreateTopic(metadata::CreateTopic {
            topic_id: crate::types::TopicId::new(Uuid::now_v7()),
            name: TopicName::parse_for_write(name).unwrap(),
            partitions: 2,
            replication_factor: 1,
            config: crate::types::TopicConfig::default(),
            created_at: Timestamp::from_millis(0),
            principal: anyone(),
        });
        node.metadata.change(&command).await.unwrap().1.unwrap();
        let unfinished = broker.topic(&anyone(), name);
        assert!(matches!(unfinished, Err(TopicError::Unavailable(_))), "{unfinished:?}");
    };
    begin("deleted").await;
    broker.delete_topic(&anyone(), "deleted").await.unwrap();
    begin("finished").await;
    node.tasks.spawn(broker.clone().run_topic_changes());
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while broker.topic(&anyone(), "finished").is_err() {
        assert!(tokio::time::Instant::now() < deadline, "nobody finished it");
        tokio::task::yield_now().await;
    }
    assert!(matches!(broker.topic(&anyone(), "deleted"), Err(TopicError::NotFound(_))));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_nobody_waits_for_are_written_by_a_stop_in_order() {
    let (fs, clock) = (SimFs::new(), clock());
    let node = Node::start(&fs, &clock).await;
    let topic = node.broker.topic_for_produce(&anyone(), "t", None).await.unwrap();
    for n in 0..500 {
        let records = [record("k", n.to_string())];
        drop(node.broker.produce(&anyone(), &topic, &records).unwrap());
    }
    drop(topic);
    node.stop().await;
    let node = Node::start(&fs, &clock).await;
    let topic = node.broker.topic(&anyone(), "t").unwrap();
    assert_eq!(read_all(&node.broker, &topic).await.len(), 500);
    node.stop().await;
}
