//! Properties of the image under random commands, and the formats' golden files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use uuid::Uuid;

use crate::metadata::limits::HISTORY_LEN_MAX;
use crate::metadata::*;
use crate::types::{
    ClusterId, LogPosition, NodeId, PartitionId, Principal, RaftIndex, ReplicaId, ShardId, Term,
    Timestamp, TopicConfig, TopicId, TopicName,
};

pub(in crate::metadata) fn at(index: u64) -> LogPosition {
    LogPosition { term: Term::new(1 + index / 10), index: RaftIndex::new(index) }
}

pub(in crate::metadata) fn topic_id(number: u8) -> TopicId {
    TopicId::new(Uuid::from_u128(0x0198_0000_0000_7000_8000_0000_0000_0000 | u128::from(number)))
}

pub(in crate::metadata) fn name(text: &str) -> TopicName {
    TopicName::parse(text).unwrap()
}

fn new_shard(shard: u32, replicas: &[(u64, u64)]) -> NewShard {
    let replicas: Vec<Replica> = replicas
        .iter()
        .map(|(replica, node)| Replica {
            replica: ReplicaId::new(*replica),
            node: NodeId::new(*node),
        })
        .collect();
    NewShard {
        shard: ShardId::new(shard),
        replication_factor: u16::try_from(replicas.len()).unwrap(),
        replicas,
    }
}

/// Node 1 with the metadata shard and `data_shards` data shards of factor 1.
pub(in crate::metadata) fn bootstrap(data_shards: u32) -> Command {
    let shards = (0..=data_shards).map(|shard| new_shard(shard, &[(shard.into(), 1)]));
    Command::Bootstrap(Bootstrap {
        cluster_id: ClusterId::new(Uuid::from_u128(7)),
        node: NodeId::new(1),
        url: "http://127.0.0.1:8080".to_owned(),
        shards: shards.collect(),
        at: Timestamp::from_millis(1_000),
    })
}

pub(in crate::metadata) fn create(id: u8, topic: &str, partitions: u32, factor: u16) -> Command {
    Command::CreateTopic(CreateTopic {
        topic_id: topic_id(id),
        name: name(topic),
        partitions,
        replication_factor: factor,
        config: TopicConfig::default(),
        created_at: Timestamp::from_millis(2_000 + i64::from(id)),
        principal: Principal::anonymous(),
    })
}

pub(in crate::metadata) fn delete(id: u8) -> Command {
    Command::DeleteTopic(DeleteTopic {
        topic_id: topic_id(id),
        at: Timestamp::from_millis(3_000 + i64::from(id)),
        principal: Principal::server(),
    })
}

fn ready(id: u8) -> Command {
    Command::TopicReady { topic_id: topic_id(id) }
}

fn finish(id: u8) -> Command {
    Command::FinishDeleteTopic { topic_id: topic_id(id) }
}

/// Applies commands one after the other from index 1 and returns the image and the answers.
pub(in crate::metadata) fn run(commands: &[Command]) -> (Image, Vec<Response>) {
    let mut image = Image::default();
    let answer = |(command, index)| apply(&mut image, at(index), command).0;
    let answers = commands.iter().zip(1..).map(answer).collect();
    (image, answers)
}

fn any_new_shard() -> impl Strategy<Value = NewShard> {
    let replicas = prop::collection::vec((0u64..30, 1u64..5), 0..4);
    (0u32..12, replicas, 0u16..4).prop_map(|(shard, replicas, off)| {
        let mut new = new_shard(shard, &replicas);
        new.replication_factor = if off == 0 { off } else { new.replication_factor };
        new
    })
}

fn any_config() -> impl Strategy<Value = TopicConfig> {
    prop::collection::btree_map(
        prop::sample::select(vec!["retention.ms", "retention.bytes", "segment.ms"]),
        1i64..1_000_000,
        0..3,
    )
    .prop_map(|set| {
        let mut config = TopicConfig::default();
        for (name, value) in set {
            config.set(name, &value.to_string()).unwrap();
        }
        config
    })
}

fn any_create() -> impl Strategy<Value = Command> {
    let names = ["a", "a.b", "a_b", "a.b.c", "a_b.c", "b", "ba", "bb", "__x", "flights"];
    let names = prop::sample::select(names.to_vec());
    (0u8..12, names, 0u32..20, 0u16..4, any_config(), any::<i64>()).prop_map(
        |(id, topic, partitions, factor, config, created_at)| {
            Command::CreateTopic(CreateTopic {
                topic_id: topic_id(id),
                name: name(topic),
                partitions,
                replication_factor: factor,
                config,
                created_at: Timestamp::from_millis(created_at),
                principal: Principal::anonymous(),
            })
        },
    )
}

fn any_command() -> impl Strategy<Value = Command> {
    let at = any::<i64>().prop_map(Timestamp::from_millis);
    prop_oneof![
        1 => (0u32..5).prop_map(bootstrap),
        2 => (1u64..5, "[a-z]{0,6}", at.clone()).prop_map(|(node, url, at)| {
            Command::RegisterNode(RegisterNode { node: NodeId::new(node), url, at })
        }),
        3 => (prop::collection::vec(any_new_shard(), 0..3), at)
            .prop_map(|(shards, at)| Command::AddShards(AddShards { shards, at })),
        10 => any_create(),
        3 => (0u8..12).prop_map(ready),
        3 => (0u8..12, any_config()).prop_map(|(id, config)| {
            Command::AlterTopicConfig(AlterTopicConfig { topic_id: topic_id(id), config })
        }),
        4 => (0u8..12).prop_map(delete),
        4 => (0u8..12).prop_map(finish),
    ]
}

/// Mostly a cluster that has been founded.
pub(in crate::metadata) fn any_commands() -> impl Strategy<Value = Vec<Command>> {
    let rest = prop::collection::vec(any_command(), 0..80);
    (prop::option::weighted(0.9, 1u32..5), rest).prop_map(|(data_shards, rest)| {
        let three = Command::AddShards(AddShards {
            shards: vec![new_shard(9, &[(20, 1), (21, 2), (22, 3)])],
            at: Timestamp::from_millis(0),
        });
        let register = |node| RegisterNode {
            node: NodeId::new(node),
            url: String::new(),
            at: Timestamp::from_millis(0),
        };
        let founded = data_shards.map_or_else(Vec::new, |shards| {
            vec![
                bootstrap(shards),
                Command::RegisterNode(register(2)),
                Command::RegisterNode(register(3)),
                three,
            ]
        });
        founded.into_iter().chain(rest).collect()
    })
}

fn check_invariants(image: &Image) {
    let mut on: BTreeMap<ShardId, u64> = BTreeMap::new();
    let (mut names, mut folded) = (BTreeSet::new(), BTreeSet::new());
    for topic in image.topics() {
        assert!(names.insert(topic.name.clone()), "{} twice", topic.name);
        assert!(folded.insert(topic.name.collision_key()), "{} collides", topic.name);
        assert_eq!(image.topic(topic.id), Some(topic));
        let by_name = image.topic_by_name(topic.name.as_str());
        assert_eq!(by_name, Some(topic).filter(|topic| topic.state != TopicState::Deleting));
        assert!(!topic.partitions.is_empty());
        assert!(topic.changed <= image.changed());
        let mut of_topic: BTreeMap<ShardId, u64> = BTreeMap::new();
        for shard in topic.partitions.iter() {
            assert_ne!(*shard, ShardId::METADATA);
            let factor = image.shard(*shard).unwrap().replication_factor;
            assert_eq!(factor, topic.replication_factor);
            *on.entry(*shard).or_default() += 1;
            *of_topic.entry(*shard).or_default() += 1;
        }
        let spread = of_topic.values().max().unwrap() - of_topic.values().min().unwrap();
        assert!(spread <= 1, "{of_topic:?}");
    }
    let visible: Vec<&TopicName> = image.topics_from("", None, 100).map(|t| &t.name).collect();
    let active = image.topics().filter(|topic| topic.is_visible()).map(|topic| &topic.name);
    assert_eq!(visible, active.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>());
    let mut replicas = BTreeSet::new();
    for shard in image.shards() {
        assert_eq!(image.partitions_on(shard.id), on.get(&shard.id).copied().unwrap_or(0));
        let nodes: BTreeSet<NodeId> = shard.replicas.iter().map(|replica| replica.node).collect();
        assert_eq!(nodes.len(), usize::from(shard.replication_factor));
        for replica in &shard.replicas {
            assert!(image.node(replica.node).is_some());
            assert!(replicas.insert(replica.replica), "{} twice", replica.replica);
            assert!(replica.replica < image.next_replica());
        }
    }
    assert!(image.history().count() <= HISTORY_LEN_MAX);
}

proptest! {
    #[test]
    fn random_commands_keep_the_images_invariants(commands in any_commands()) {
        let mut image = Image::default();
        for (command, index) in commands.iter().zip(1..) {
            let before = image.clone();
            let bytes_before = before.encode().unwrap();
            let (response, rows) = apply(&mut image, at(index), command);
            check_invariants(&image);
            // A refusal changes nothing, a change is always reported, and clones stay as they were.
            prop_assert!(response.is_ok() || image == before);
            prop_assert_eq!(rows.is_empty(), image == before);
            prop_assert_eq!(before.encode().unwrap(), bytes_before);
            prop_assert_eq!(image.changed() == at(index), !rows.is_empty());
        }
    }

    #[test]
    fn the_same_commands_make_the_same_bytes(commands in any_commands()) {
        let (image, answers) = run(&commands);
        // Another replica decodes the commands from its log and restarts from a checkpoint midway.
        let half = commands.len() / 2;
        let (other, _) = run(&commands[..half]);
        let mut other = Image::decode(&other.encode().unwrap()).unwrap();
        for ((command, index), answer) in commands.iter().zip(1..).zip(&answers).skip(half) {
            let command = Command::decode(&command.encode().unwrap()).unwrap();
            prop_assert_eq!(&apply(&mut other, at(index), &command).0, answer);
        }
        prop_assert_eq!(&image, &other);
        prop_assert_eq!(image.encode().unwrap(), other.encode().unwrap());
    }

    #[test]
    fn commands_and_images_survive_their_encoding(commands in any_commands()) {
        for command in &commands {
            let decoded = Command::decode(&command.encode().unwrap()).unwrap();
            prop_assert_eq!(&decoded, command);
        }
        let (image, _) = run(&commands);
        let decoded = Image::decode(&image.encode().unwrap()).unwrap();
        check_invariants(&decoded);
        prop_assert_eq!(image, decoded);
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Command::decode(&bytes);
        prop_assert!(Image::decode(&bytes).is_err());
        prop_assert!(Checkpoint::decode(&bytes).is_err());
        let mut versioned = vec![1];
        versioned.extend_from_slice(&bytes);
        let _ = Command::decode(&versioned);
    }

    #[test]
    fn changed_bytes_never_panic_and_are_noticed(
        commands in any_commands(),
        position in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let (image, _) = run(&commands);
        let mut bytes = image.encode().unwrap();
        *position.get_mut(&mut bytes) ^= 1 << bit;
        prop_assert!(Image::decode(&bytes).is_err());
        if let Some(command) = commands.last() {
            let mut bytes = command.encode().unwrap().to_vec();
            *position.get_mut(&mut bytes) ^= 1 << bit;
            let _ = Command::decode(&bytes);
        }
    }
}

#[test]
fn an_image_that_contradicts_itself_is_refused() {
    let (image, _) = run(&[bootstrap(2), create(1, "a.b", 2, 1), create(2, "c", 1, 1)]);
    let bytes = image.encode().unwrap();
    let json = String::from_utf8(bytes[24..].to_vec()).unwrap();
    let frame = codec::Frame { what: "metadata image", magic: *b"eddyimag", version: 1 };
    assert!(Image::decode(&frame.wrap(json.as_bytes())).is_ok());
    for (from, to) in [
        ("\"name\":\"c\"", "\"name\":\"a_b\""),
        ("\"partitions\":[1,2]", "\"partitions\":[0,2]"),
        ("\"partitions\":[1,2]", "\"partitions\":[1,7]"),
        ("\"partitions\":[1,2]", "\"partitions\":[]"),
        ("\"replication_factor\":1,\"config\"", "\"replication_factor\":3,\"config\""),
        ("\"next_replica\":3", "\"next_replica\":2"),
        ("\"replica\":1,", "\"replica\":2,"),
        ("\"replica\":1,\"node\":1", "\"replica\":1,\"node\":5"),
        ("{\"id\":1,\"replication_factor\"", "{\"id\":2,\"replication_factor\""),
        ("8000-000000000001\",\"name\"", "8000-000000000002\",\"name\""),
        ("\"index\":2,\"at\"", "\"index\":3,\"at\""),
        ("\"next_replica\"", "\"unknown\":1,\"next_replica\""),
    ] {
        let changed = json.replacen(from, to, 1);
        assert_ne!(changed, json, "{from} is not in {json}");
        assert!(Image::decode(&frame.wrap(changed.as_bytes())).is_err(), "{from} -> {to}");
    }
}

#[test]
fn a_topics_life_goes_from_creating_over_active_to_gone() {
    let (mut image, _) = run(&[bootstrap(2)]);
    let mut step = |index, command: &Command| apply(&mut image, at(index), command);

    let (response, rows) = step(2, &create(1, "a.b", 3, 1));
    let Ok(Accepted::Topic(topic)) = response else { panic!("{response:?}") };
    assert_eq!(topic.state, TopicState::Creating);
    assert_eq!(topic.changed, at(2));
    assert_eq!(rows.len(), 2);
    assert_eq!(step(3, &create(2, "a.b", 3, 1)).0, Err(Rejection::TopicExists(topic.id)));
    assert_eq!(step(3, &create(1, "other", 3, 1)).0, Err(Rejection::TopicExists(topic.id)));
    assert_eq!(step(3, &create(2, "a_b", 3, 1)).0, Err(Rejection::NameCollides(name("a.b"))));
    assert_eq!(step(3, &finish(1)).0, Err(Rejection::NotDeleting(topic.id)));

    let (response, _) = step(4, &ready(1));
    assert!(matches!(response, Ok(Accepted::Topic(t)) if t.state == TopicState::Active));
    assert_eq!(step(5, &ready(1)).1, []);

    let (response, rows) = step(6, &delete(1));
    assert!(matches!(response, Ok(Accepted::Topic(t)) if t.changed == at(6)));
    assert_eq!(rows.len(), 2);
    // A second DELETE that raced with the first one succeeds and changes nothing.
    assert!(matches!(step(7, &delete(1)), (Ok(Accepted::Topic(_)), rows) if rows.is_empty()));
    let deleting = Err(Rejection::TopicDeleting(topic.id));
    assert_eq!(step(8, &ready(1)).0, deleting);
    assert_eq!(step(8, &create(2, "a_b", 1, 1)).0, deleting);
    assert_eq!(step(8, &create(2, "a.b", 1, 1)).0, deleting);

    assert_eq!(step(9, &finish(1)), (Ok(Accepted::Done), vec![RowChange::TopicRemoved(topic.id)]));
    assert_eq!(step(10, &finish(1)).0, Err(Rejection::UnknownTopic(topic.id)));
    assert!(step(11, &create(2, "a_b", 1, 1)).0.is_ok());
    assert!(image.topic_by_name("a.b").is_none());
    let events: Vec<HistoryEvent> = image.history().map(|entry| entry.event).collect();
    let created = HistoryEvent::TopicCreated;
    assert_eq!(events, [created, HistoryEvent::TopicDeleted, created]);
}

#[test]
fn commands_that_cannot_be_carried_out_are_refused() {
    let (_, answers) = run(&[create(1, "a", 1, 1), ready(1), bootstrap(1), bootstrap(1)]);
    assert_eq!(answers[0], Err(Rejection::NotBootstrapped));
    assert_eq!(answers[1], Err(Rejection::UnknownTopic(topic_id(1))));
    assert!(answers[2].is_ok());
    assert!(matches!(answers[3], Err(Rejection::AlreadyBootstrapped(_))));

    let add = |shard: NewShard| {
        let shards = vec![shard];
        Command::AddShards(AddShards { shards, at: Timestamp::from_millis(0) })
    };
    let mut factor_2 = new_shard(5, &[(9, 1)]);
    factor_2.replication_factor = 2;
    let refused = [
        (create(1, "a", 0, 1), Rejection::PartitionCount(0)),
        (create(1, "a", 1_000_001, 1), Rejection::PartitionCount(1_000_001)),
        (create(1, "a", 1, 3), Rejection::NoShards { factor: 3 }),
        (add(new_shard(1, &[(9, 1)])), Rejection::ShardExists(ShardId::new(1))),
        (add(new_shard(5, &[(9, 2)])), Rejection::UnknownNode(NodeId::new(2))),
        (add(new_shard(5, &[(1, 1)])), Rejection::ReplicaReused(ReplicaId::new(1))),
        (add(new_shard(5, &[])), Rejection::ReplicaCount(ShardId::new(5))),
        (add(new_shard(5, &[(9, 1), (10, 1)])), Rejection::ReplicaCount(ShardId::new(5))),
        (add(factor_2), Rejection::ReplicaCount(ShardId::new(5))),
    ];
    for (command, rejection) in refused {
        let (image, answers) = run(&[bootstrap(1), command]);
        assert_eq!(answers[1], Err(rejection));
        assert_eq!(image, run(&[bootstrap(1)]).0);
    }
    let Command::Bootstrap(mut headless) = bootstrap(1) else { panic!() };
    headless.shards.remove(0);
    let (_, answers) = run(&[Command::Bootstrap(headless)]);
    assert_eq!(answers[0], Err(Rejection::NoMetadataShard));
}

#[test]
fn replica_ids_are_not_issued_again() {
    let (image, _) = run(&[bootstrap(3)]);
    assert_eq!(image.next_replica(), ReplicaId::new(4));
    assert_eq!(image.next_shard(), ShardId::new(4));
}

#[test]
fn partitions_go_to_the_emptiest_shards_and_spread_within_a_topic() {
    let (mut image, answers) =
        run(&[bootstrap(3), create(1, "a", 4, 1), create(2, "b", 1, 1), create(3, "c", 6, 1)]);
    let placed = |image: &Image, id| {
        let partitions = &image.topic(topic_id(id)).unwrap().partitions;
        partitions.iter().map(|shard| shard.get()).collect::<Vec<_>>()
    };
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(placed(&image, 1), [1, 2, 3, 1]);
    assert_eq!(placed(&image, 2), [2]);
    assert_eq!(placed(&image, 3), [3, 1, 2, 3, 1, 2]);
    let by_shard = image.topic(topic_id(1)).unwrap().by_shard();
    assert_eq!(by_shard[&ShardId::new(1)], [PartitionId::ZERO, PartitionId::new(3).unwrap()]);

    // A shard that is added gets the next small topics, and its share of a wide one.
    let shards = vec![new_shard(4, &[(9, 1)])];
    let add = Command::AddShards(AddShards { shards, at: Timestamp::from_millis(0) });
    for (command, index) in [add, create(4, "d", 1, 1), create(5, "e", 8, 1)].iter().zip(5..) {
        apply(&mut image, at(index), command).0.unwrap();
    }
    assert_eq!(placed(&image, 4), [4]);
    let wide = placed(&image, 5);
    assert_eq!(wide.iter().filter(|shard| **shard == 4).count(), 2);
}

#[test]
fn topics_are_listed_by_name_page_by_page() {
    let commands = [
        bootstrap(1),
        create(1, "b", 1, 1),
        create(2, "ab", 1, 1),
        create(3, "a", 1, 1),
        create(4, "ac", 1, 1),
        create(5, "aa", 1, 1),
        delete(2),
    ];
    let (image, _) = run(&commands);
    let list = |prefix, after, limit| {
        let topics = image.topics_from(prefix, after, limit);
        topics.map(|topic| topic.name.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(list("", None, 10), ["a", "aa", "ac", "b"]);
    assert_eq!(list("a", None, 2), ["a", "aa"]);
    assert_eq!(list("a", Some("aa"), 2), ["ac"]);
    assert_eq!(list("aa", Some("a"), 2), ["aa"]);
    assert_eq!(list("a", Some("ab"), 2), ["ac"]);
    assert_eq!(list("a", Some("b"), 2), [""; 0]);
}

#[test]
fn history_keeps_the_last_entries() {
    let (mut image, _) = run(&[bootstrap(1)]);
    let rounds = u64::try_from(HISTORY_LEN_MAX).unwrap();
    for round in 0..rounds {
        for (command, step) in [create(1, "a", 1, 1), delete(1), finish(1)].iter().zip(2..) {
            apply(&mut image, at(3 * round + step), command).0.unwrap();
        }
    }
    assert_eq!(image.history().count(), HISTORY_LEN_MAX);
    let last = image.history().next_back().unwrap();
    assert_eq!((last.index, last.event), (at(3 * rounds).index, HistoryEvent::TopicDeleted));
}

fn golden(file: &str) -> Vec<u8> {
    let path: PathBuf = Path::new("tests/data/metadata-v1").join(file);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// One of each command, in an order in which all are accepted.
fn golden_commands() -> Vec<Command> {
    let mut config = TopicConfig::default();
    config.set("retention.ms", "60000").unwrap();
    let mut commands = vec![
        bootstrap(2),
        Command::RegisterNode(RegisterNode {
            node: NodeId::new(2),
            url: "https://two.example:8443".to_owned(),
            at: Timestamp::from_millis(1_500),
        }),
        Command::AddShards(AddShards {
            shards: vec![new_shard(3, &[(3, 1), (4, 2)])],
            at: Timestamp::from_millis(1_600),
        }),
        create(1, "flights", 3, 1),
        ready(1),
        Command::AlterTopicConfig(AlterTopicConfig { topic_id: topic_id(1), config }),
        create(2, "orders.eu", 2, 2),
        create(3, "gone", 1, 1),
        delete(3),
        finish(3),
        delete(2),
    ];
    if let Some(Command::CreateTopic(create)) = commands.get_mut(3) {
        create.config.set("segment.bytes", "65536").unwrap();
    }
    commands
}

#[test]
fn golden_commands_are_understood_for_ever() {
    let stored = golden("commands.txt");
    let lines: Vec<&[u8]> = stored.split(|byte| *byte == b'\n').filter(|l| !l.is_empty()).collect();
    let commands = golden_commands();
    assert_eq!(lines.len(), commands.len());
    for (line, command) in lines.iter().zip(&commands) {
        assert_eq!(&Command::decode(line).unwrap(), command);
        assert_eq!(&command.encode().unwrap()[..], *line);
    }
}

#[test]
fn golden_image_and_checkpoint_are_understood_for_ever() {
    let (image, answers) = run(&golden_commands());
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(Image::decode(&golden("image.bin")).unwrap(), image);
    assert_eq!(golden("image.bin"), image.encode().unwrap());
    let checkpoint = Checkpoint {
        applied: LogPosition { term: Term::new(3), index: RaftIndex::new(12) },
        membership: bytes::Bytes::from_static(b"opaque"),
        image,
    };
    assert_eq!(Checkpoint::decode(&golden("checkpoint.bin")).unwrap(), checkpoint);
    assert_eq!(golden("checkpoint.bin"), checkpoint.encode().unwrap());
}

#[test]
fn other_versions_are_named_and_not_guessed_at() {
    let mut command = bootstrap(1).encode().unwrap().to_vec();
    command[0] = 2;
    assert!(matches!(Command::decode(&command), Err(Error::Version { found: 2, .. })));
    let mut image = Image::default().encode().unwrap();
    image[8] = 9;
    assert!(matches!(Image::decode(&image), Err(Error::Version { found: 9, .. })));
    assert!(Command::decode(b"\x01{\"topic_ready\":{\"topic_id\":\"x\"}}").is_err());
}

#[test]
fn ten_thousand_topics_share_what_did_not_change() {
    let (mut image, _) = run(&[bootstrap(16)]);
    let mut kept = Vec::new();
    for number in 0u32..10_000 {
        let Command::CreateTopic(mut command) = create(0, "x", 4, 1) else { panic!() };
        command.topic_id = TopicId::new(Uuid::from_u128(u128::from(number)));
        command.name = name(&format!("topic-{}", number.wrapping_mul(2_654_435_761)));
        let mut next = image.clone();
        let command = Command::CreateTopic(command);
        apply(&mut next, at(u64::from(number) + 2), &command).0.unwrap();
        // What readers hold on to must cost next to nothing: every hundredth image is kept.
        if number % 100 == 0 {
            kept.push(std::mem::replace(&mut image, next));
        } else {
            image = next;
        }
    }
    assert_eq!(image.topics_len(), 10_000);
    assert_eq!(kept.iter().map(Image::topics_len).max(), Some(9_900));
    let first = |image: &Image| std::sync::Arc::clone(image.topics().next().unwrap());
    assert!(kept[1..].iter().all(|old| std::sync::Arc::ptr_eq(&first(old), &first(&image))));
}
