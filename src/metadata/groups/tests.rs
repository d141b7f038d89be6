//! Consumer groups in the image, under random commands.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::groups::{Departure, MemberKind, Profile, Selection};
use crate::metadata::tests::{at, bootstrap, create, delete, name, run, topic_id};
use crate::metadata::{Command, Topic, apply};
use crate::types::{Epoch, InstanceId, MemberId, NodeId};

fn group(number: u8) -> GroupName {
    GroupName::parse(&format!("g{number}")).unwrap()
}

fn member(number: u8) -> MemberId {
    MemberId::parse(&format!("m{number}")).unwrap()
}

fn time(ms: i64) -> Timestamp {
    Timestamp::from_millis(ms)
}

fn change(number: u8, change: Change) -> Command {
    Command::ChangeGroup(ChangeGroup { group: group(number), change, at: time(5_000) })
}

fn join(to: u8, number: u8, instance: Option<u8>, topics: &[&str]) -> Command {
    let profile = Profile {
        instance_id: instance.map(|i| InstanceId::parse(&format!("i{i}")).unwrap()),
        kind: MemberKind::Sse,
        client: String::new(),
        node: NodeId::new(1),
        session_timeout_ms: 45_000,
        rebalance_timeout_ms: 60_000,
        assignor: None,
    };
    let selection = Selection::Topics(topics.iter().map(|topic| name(topic)).collect());
    change(to, Change::Join { member: member(number), profile, selection })
}

fn leave(of: u8, number: u8) -> Command {
    change(of, Change::Leave { member: member(number), departure: Departure::Left })
}

fn commit(to: u8, fence: Fence, topic: u8, partition: u32, offset: i64) -> Commit {
    let partition = PartitionId::new(partition).unwrap();
    let offset = Offset::new(offset).unwrap();
    let offsets = vec![NewOffset(topic_id(topic), partition, offset, Some("x".into()))];
    Commit { group: group(to), fence, at: time(6_000 + offset.get()), offsets }
}

fn any_fence() -> impl Strategy<Value = Fence> {
    let of_member = (0u8..6, 0u32..6).prop_map(|(m, epoch)| (member(m), Epoch::new(epoch)));
    prop_oneof![
        Just(Fence::Empty),
        of_member.clone().prop_map(|(member, epoch)| Fence::Exact { member, epoch }),
        of_member.prop_map(|(member, epoch)| Fence::Since { member, epoch }),
    ]
}

fn any_command() -> impl Strategy<Value = Command> {
    let names = prop::sample::subsequence(vec!["a", "b", "c"], 1..3);
    let one = (0u8..3, any_fence(), 0u8..4, 0u32..6, 0i64..50).prop_map(
        |(to, fence, topic, partition, offset)| commit(to, fence, topic, partition, offset),
    );
    let partition = |partition: u32| PartitionId::new(partition).unwrap();
    let revoked = (0u8..3, 0u8..6, 0u32..6, 0u8..4, 0u32..6).prop_map(
        move |(of, number, epoch, topic, p)| {
            let partitions =
                vec![TopicPartition { topic: topic_id(topic), partition: partition(p) }];
            let epoch = Epoch::new(epoch);
            change(of, Change::Revoked { member: member(number), epoch, partitions })
        },
    );
    prop_oneof![
        4 => (0u8..3, 0u8..6, prop::option::of(0u8..2), names)
            .prop_map(|(to, number, instance, topics)| join(to, number, instance, &topics)),
        2 => (0u8..3, 0u8..6).prop_map(|(of, number)| leave(of, number)),
        2 => revoked,
        1 => (0u8..3).prop_map(|of| change(of, Change::TopicsChanged { matched: Vec::new() })),
        6 => prop::collection::vec(one, 0..4)
            .prop_map(|commits| Command::CommitOffsets { commits }),
        1 => (0u8..3).prop_map(|of| Command::DeleteGroup { group: group(of) }),
        1 => (0u8..3, 0u8..4, prop::option::of(0u32..6)).prop_map(move |(of, topic, only)| {
            let (topic_id, partition) = (topic_id(topic), only.map(partition));
            Command::DeleteOffsets(DeleteOffsets { group: group(of), topic_id, partition })
        }),
        1 => (5_000i64..6_060).prop_map(|before| {
            let groups = (0..3).map(group).collect();
            Command::ExpireOffsets(ExpireOffsets { groups, before: time(before) })
        }),
        1 => (0u8..4).prop_map(|id| create(id, ["a", "b", "c", "d"][usize::from(id)], 4, 1)),
        1 => (0u8..4).prop_map(|id| Command::TopicReady { topic_id: topic_id(id) }),
        1 => (0u8..4).prop_map(delete),
        1 => (0u8..4).prop_map(|id| Command::FinishDeleteTopic { topic_id: topic_id(id) }),
    ]
}

fn founded(rest: impl IntoIterator<Item = Command>) -> Vec<Command> {
    let mut commands = vec![bootstrap(2)];
    for (id, topic) in [(0, "a"), (1, "b"), (2, "c")] {
        commands.push(create(id, topic, 4, 1));
        commands.push(Command::TopicReady { topic_id: topic_id(id) });
    }
    commands.extend(rest);
    commands
}

proptest! {
    #[test]
    fn a_replay_and_a_restart_make_the_same_groups(
        rest in prop::collection::vec(any_command(), 0..60),
    ) {
        let commands = founded(rest);
        let half = commands.len() / 2;
        let (other, _) = run(&commands[..half]);
        let mut other = Image::decode(&other.encode().unwrap()).unwrap();
        let (mut image, _) = run(&commands[..half]);
        for (command, index) in commands.iter().zip(1..).skip(half) {
            let before = image.clone();
            let (response, _) = apply(&mut image, at(index), command);
            prop_assert!(response.is_ok() || image == before, "a refusal changes nothing");
            let command = Command::decode(&command.encode().unwrap()).unwrap();
            prop_assert_eq!(&apply(&mut other, at(index), &command).0, &response);
            for group in image.groups_from(None) {
                group.state().check().unwrap();
                for (of, _) in group.offsets() {
                    prop_assert!(image.topic(of.topic).is_some(), "an offset of no topic");
                }
            }
        }
        prop_assert_eq!(&image, &other);
        prop_assert_eq!(image.encode().unwrap(), other.encode().unwrap());
    }
}

#[test]
fn a_commit_is_fenced_and_taken_as_a_whole() {
    let since = |m, epoch| Fence::Since { member: member(m), epoch: Epoch::new(epoch) };
    let two = |fence: Fence, other: u8| {
        let mut first = commit(0, fence.clone(), 0, 1, 7);
        first.offsets.extend(commit(0, fence, other, 0, 8).offsets);
        first
    };
    let commits = vec![
        commit(0, Fence::Empty, 0, 1, 1),
        two(since(1, 1), 1),
        commit(0, since(2, 1), 0, 1, 1),
        two(since(1, 1), 0),
    ];
    let (image, answers) =
        run(&founded([join(0, 1, None, &["a"]), Command::CommitOffsets { commits }]));
    let Some(Ok(Accepted::Commits(outcomes))) = answers.last() else {
        panic!("{:?}", answers.last());
    };
    let taken: Vec<bool> = outcomes.iter().map(Result::is_ok).collect();
    assert_eq!(taken, [false, false, false, true]);
    let group = image.group("g0").unwrap();
    let offsets: Vec<i64> = group.offsets().map(|(_, committed)| committed.offset.get()).collect();
    assert_eq!(offsets, [8, 7]);
}

#[test]
fn commits_share_the_members_and_copy_one_chunk_of_offsets() {
    let (mut image, _) = run(&founded([join(0, 1, None, &["a"])]));
    let before = image.clone();
    let fence = Fence::Exact { member: member(1), epoch: Epoch::new(1) };
    let commits = vec![commit(0, fence, 0, 1, 1)];
    apply(&mut image, at(50), &Command::CommitOffsets { commits }).0.unwrap();
    let state = |image: &Image| Arc::clone(image.group("g0").unwrap().state());
    assert!(Arc::ptr_eq(&state(&before), &state(&image)));
    assert_ne!(image, before);
}

#[test]
fn offsets_expire_when_their_group_was_empty_for_long_enough() {
    let fence = |epoch| Fence::Since { member: member(1), epoch: Epoch::new(epoch) };
    let commits = vec![commit(0, fence(1), 0, 1, 10), commit(0, fence(1), 1, 1, 20)];
    let only_a = Selection::Topics(BTreeSet::from([name("a")]));
    let subscribe = Change::Subscribe { member: member(1), selection: only_a };
    let mut commands = founded([join(0, 1, None, &["a", "b"]), Command::CommitOffsets { commits }]);
    commands.push(change(0, subscribe));
    let offsets_at = |commands: &[Command], before: i64| {
        let (mut image, _) = run(commands);
        let (groups, before) = (vec![group(0)], time(before));
        let has_expired = image.group("g0").unwrap().has_expired(before);
        let unchanged = image.clone();
        let expire = Command::ExpireOffsets(ExpireOffsets { groups, before });
        apply(&mut image, at(90), &expire).0.unwrap();
        assert_eq!(has_expired, image != unchanged);
        image.group("g0").map(|group| group.offsets().count())
    };
    // A group that lives keeps the offsets of what it reads.
    assert_eq!(offsets_at(&commands, 6_020), Some(2));
    assert_eq!(offsets_at(&commands, 6_021), Some(1));
    commands.push(leave(0, 1));
    assert_eq!(offsets_at(&commands, 5_000), Some(2));
    assert_eq!(offsets_at(&commands, 6_011), Some(1));
    assert_eq!(offsets_at(&commands, 6_021), None, "nothing is left of the group");
}

#[test]
fn a_group_with_members_cannot_be_deleted_or_lose_offsets() {
    let not_empty = Err(Rejection::Group(Refusal::NotEmpty(1)));
    let of = DeleteOffsets { group: group(0), topic_id: topic_id(0), partition: None };
    let deletions = [Command::DeleteGroup { group: group(0) }, Command::DeleteOffsets(of)];
    for deletion in deletions {
        let (_, answers) = run(&founded([join(0, 1, None, &["a"]), deletion.clone()]));
        assert_eq!(answers.last(), Some(&not_empty));
        let (image, answers) =
            run(&founded([join(0, 1, None, &["a"]), leave(0, 1), deletion.clone()]));
        assert_eq!(answers.last(), Some(&Ok(Accepted::Done)));
        let gone = matches!(deletion, Command::DeleteGroup { .. });
        assert_eq!(image.group("g0").is_none(), gone);
    }
}

#[test]
fn more_partitions_of_a_topic_are_shared_out_and_move_nothing() {
    let (mut image, _) = run(&founded([
        join(0, 1, None, &["a"]),
        join(0, 2, None, &["a"]),
        join(1, 3, None, &["b"]),
    ]));
    let topic = Arc::clone(image.topic_by_name("a").unwrap());
    let before = topic.partitions.len();
    let revoked = |image: &Image| {
        let state = image.group("g0").unwrap().state().clone();
        let of = |(id, member): (&MemberId, &Arc<crate::groups::Member>)| {
            let partitions = member.revoking.keys().copied().collect();
            change(0, Change::Revoked { member: id.clone(), epoch: member.epoch, partitions })
        };
        state.members.iter().map(of).collect::<Vec<_>>()
    };
    for command in revoked(&image) {
        apply(&mut image, at(60), &command).0.unwrap();
    }
    let held = |image: &Image| -> Vec<BTreeSet<TopicPartition>> {
        let members = image.group("g0").unwrap().state().members.clone();
        members.values().map(|member| member.assigned.keys().copied().collect()).collect()
    };
    let former = held(&image);
    assert_eq!(former.iter().map(BTreeSet::len).sum::<usize>(), before);
    // There is no command for it yet; a topic that has grown looks like this.
    let mut partitions = topic.partitions.to_vec();
    partitions.extend([partitions[0]; 6]);
    image.put_topic(Arc::new(Topic { partitions: partitions.into(), ..(*topic).clone() }));
    assert!(image.group("g0").unwrap().state().is_outdated(&image), "the coordinator sees it");
    assert!(!image.group("g1").unwrap().state().is_outdated(&image), "and whom it concerns");
    let changed = change(0, Change::TopicsChanged { matched: Vec::new() });
    apply(&mut image, at(61), &changed).0.unwrap();
    let now = held(&image);
    assert_eq!(now.iter().map(BTreeSet::len).sum::<usize>(), before + 6);
    assert!(former.iter().zip(&now).all(|(former, now)| former.is_subset(now)));
    assert!(now[0].len().abs_diff(now[1].len()) <= 1);
    let state = image.group("g0").unwrap().state();
    assert!(!state.is_outdated(&image));
    let last = state.rebalances.back().unwrap();
    assert_eq!(last.reason, crate::groups::RebalanceReason::TopicsChanged);
}

/// One of each command about groups, in an order in which all are accepted.
fn golden_commands() -> Vec<Command> {
    let since = Fence::Since { member: member(1), epoch: Epoch::new(1) };
    let exact = Fence::Exact { member: member(1), epoch: Epoch::new(1) };
    let pattern = "[ab]".to_owned();
    let matched = BTreeSet::from([name("a")]);
    let selection = Selection::Pattern { pattern, matched: matched.clone() };
    let given_up = TopicPartition { topic: topic_id(1), partition: PartitionId::ZERO };
    let (epoch, partitions) = (Epoch::new(2), vec![given_up]);
    let timed_out = Change::RevocationTimedOut { member: member(2), epoch };
    let matched = vec![(member(2), BTreeSet::from([name("a"), name("b")]))];
    let only = DeleteOffsets {
        group: group(1),
        topic_id: topic_id(0),
        partition: Some(PartitionId::ZERO),
    };
    founded([
        join(0, 1, Some(1), &["a", "b"]),
        Command::CommitOffsets {
            commits: vec![commit(0, since, 0, 1, 7), commit(0, exact, 1, 0, 8)],
        },
        join(0, 2, None, &["b"]),
        change(0, Change::Subscribe { member: member(2), selection }),
        change(0, Change::Revoked { member: member(1), epoch, partitions }),
        change(0, timed_out),
        change(0, Change::TopicsChanged { matched }),
        Command::CommitOffsets { commits: vec![commit(1, Fence::Empty, 0, 0, 9)] },
        Command::DeleteOffsets(only),
        Command::DeleteGroup { group: group(1) },
        join(2, 3, None, &["c"]),
        leave(2, 3),
        Command::ExpireOffsets(ExpireOffsets { groups: vec![group(2)], before: time(0) }),
    ])
}

fn golden(file: &str) -> Vec<u8> {
    let path = std::path::Path::new("tests/data/metadata-v1").join(file);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn golden_commands_and_image_of_groups_are_understood_for_ever() {
    let commands = golden_commands();
    let (image, answers) = run(&commands);
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    let stored = golden("groups-commands.txt");
    let lines: Vec<&[u8]> = stored.split(|byte| *byte == b'\n').filter(|l| !l.is_empty()).collect();
    assert_eq!(lines.len(), commands.len());
    for (line, command) in lines.iter().zip(&commands) {
        assert_eq!(&Command::decode(line).unwrap(), command);
        assert_eq!(&command.encode().unwrap()[..], *line);
    }
    assert_eq!(Image::decode(&golden("groups-image.bin")).unwrap(), image);
    assert_eq!(golden("groups-image.bin"), image.encode().unwrap());
}
