//! Consumer groups on a whole node below the HTTP faces.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::broker::groups::GroupError;
use crate::broker::tests::{Node, clock, produce};
use crate::broker::{
    AssignedPartition, Broker, CommitAs, CreateTopic, Fenced, GroupStatus, JoinGroup, Member,
    MemberKind, MemberView, OffsetCommit, OffsetReset, OnDamage, ReadRequest, ResetMode,
    ResetOffsets, ResetTo, Revocation, Subscription, Topic, Visit,
};
use crate::clock::ManualClock;
use crate::record::Record;
use crate::storage::fs::sim::SimFs;
use crate::types::limits::{OFFSET_METADATA_BYTES_MAX, SUBSCRIPTION_TOPICS_MAX};
use crate::types::{Epoch, Offset, PartitionId, Principal, TopicName};

fn me() -> Principal {
    Principal::anonymous()
}

async fn topic(broker: &Broker, name: &str, partitions: u32) -> Arc<Topic> {
    let create = CreateTopic { partitions: Some(partitions), ..CreateTopic::default() };
    broker.create_topic(&me(), name, create).await.unwrap().1
}

fn topics(names: &[&str]) -> Subscription {
    Subscription::Topics(names.iter().map(|name| TopicName::parse(name).unwrap()).collect())
}

fn to_join(group: &str, subscription: Subscription) -> JoinGroup {
    JoinGroup {
        group: group.to_owned(),
        instance_id: None,
        kind: MemberKind::Sse,
        client: "test".to_owned(),
        subscription,
        assignor: None,
        session_timeout: None,
        rebalance_timeout: None,
        offset_reset: OffsetReset::Earliest,
        revocation: Revocation::Automatic,
    }
}

async fn join(broker: &Broker, group: &str, subscription: Subscription) -> Member {
    broker.join_group(&me(), to_join(group, subscription)).await.unwrap()
}

async fn join_static(broker: &Broker, group: &str, instance: &str) -> Member {
    let instance_id = Some(instance.to_owned());
    let join = JoinGroup { instance_id, ..to_join(group, topics(&["t"])) };
    broker.join_group(&me(), join).await.unwrap()
}

/// Waits until a member's view is as it should be.
async fn until(member: &Member, is_so: impl Fn(&MemberView) -> bool) -> Arc<MemberView> {
    let mut views = member.watch();
    let view = views.wait_for(|view| is_so(view));
    let view = tokio::time::timeout(Duration::from_secs(20), view).await;
    Arc::clone(&view.unwrap_or_else(|_| panic!("still {:?}", member.state())).unwrap())
}

/// Waits until the server is as it should be.
async fn eventually<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    for _ in 0..4_000 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

fn numbers(view: &MemberView) -> BTreeSet<u32> {
    view.assigned.iter().map(|assigned| assigned.partition.get()).collect()
}

fn commit(partition: u32, offset: i64) -> OffsetCommit {
    let (topic, metadata) = ("t".to_owned(), String::new());
    OffsetCommit { topic, partition, offset: Offset::new(offset).unwrap(), metadata }
}

async fn committed(broker: &Broker, group: &str) -> Vec<(u32, i64)> {
    let offsets = broker.group_offsets(&me(), group).await.unwrap();
    offsets.iter().map(|of| (of.partition.get(), of.offset.get())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_share_partitions_and_hand_them_over() {
    let node = Node::start(&SimFs::new(), &clock()).await;
    topic(&node.broker, "t", 6).await;
    let first = join(&node.broker, "g", topics(&["t"])).await;
    assert_eq!(numbers(&first.state()), (0..6).collect(), "the first poll has partitions");
    let second = join(&node.broker, "g", topics(&["t"])).await;
    assert_eq!(numbers(&second.state()).len(), 3, "and so has the second member's");
    let view = until(&first, |view| view.assigned.len() == 3 && view.revoking.is_empty()).await;
    assert!(numbers(&view).is_disjoint(&numbers(&second.state())));
    let group = node.broker.group(&me(), "g").await.unwrap();
    assert_eq!(
        (group.status, group.epoch, group.members.len()),
        (GroupStatus::Stable, Epoch::new(2), 2)
    );
    assert!(group.rebalances.iter().all(|rebalance| rebalance.took_ms.is_some()));
    drop(second);
    let view = until(&first, |view| view.assigned.len() == 6).await;
    assert_eq!(view.epoch, Epoch::new(3));
    first.leave().await.unwrap();
    assert_eq!(first.state().fenced, Some(Fenced::Left));
    let group = node.broker.group(&me(), "g").await.unwrap();
    assert_eq!(group.status, GroupStatus::Empty, "a group stays when its last member has gone");
    node.stop().await;
}

/// Cuts the power under a node with a static and a dynamic member and with commits.
async fn cut(clock: &Arc<ManualClock>) -> (SimFs, Epoch) {
    let disk = SimFs::new();
    let node = Node::start(&disk, clock).await;
    topic(&node.broker, "t", 4).await;
    let fixed = join_static(&node.broker, "g", "i").await;
    let free = join(&node.broker, "g", topics(&["t"])).await;
    let view = until(&fixed, |view| view.assigned.len() == 2 && view.revoking.is_empty()).await;
    let commits = view.assigned.iter().map(|of| commit(of.partition.get(), 7)).collect();
    fixed.commit(fixed.epoch(), commits).await.unwrap();
    let after = disk.cut();
    drop((fixed, free));
    let epoch = view.epoch;
    node.abandon().await;
    (after, epoch)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_and_commits_are_there_after_a_power_cut() {
    let clock = clock();
    let (disk, epoch) = cut(&clock).await;
    // Time that passes while the server is away is nobody's fault.
    clock.advance(Duration::from_secs(3_600));
    let node = Node::start(&disk, &clock).await;
    let group = node.broker.group(&me(), "g").await.unwrap();
    assert_eq!((group.members.len(), group.epoch), (2, epoch));
    let offsets = committed(&node.broker, "g").await;
    assert_eq!(offsets.iter().map(|(_, offset)| *offset).collect::<Vec<_>>(), [7, 7]);
    // The static member comes back without a rebalance, and finds its place.
    let back = join_static(&node.broker, "g", "i").await;
    assert_eq!(back.epoch(), epoch);
    let view = back.state();
    assert_eq!(view.assigned.len(), 2);
    assert!(view.assigned.iter().all(|of| of.committed == Offset::new(7)), "{view:?}");
    assert_eq!(back.start_of(&view.assigned[0]).await.unwrap().offset, Offset::ZERO);
    // The other one has its full session from now on, then its partitions are free.
    clock.advance(Duration::from_secs(44));
    assert_eq!(node.broker.group(&me(), "g").await.unwrap().members.len(), 2);
    clock.advance(Duration::from_secs(2));
    until(&back, |view| view.assigned.len() == 4).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_an_owner_commits() {
    let node = Node::start(&SimFs::new(), &clock()).await;
    topic(&node.broker, "t", 2).await;
    let stale = |result| matches!(result, Err(GroupError::StaleMember { .. }));
    let former = join_static(&node.broker, "g", "i").await;
    former.commit(former.epoch(), vec![commit(0, 1), commit(1, 1)]).await.unwrap();
    let as_group =
        node.broker.commit_offsets(&me(), "g", CommitAs::Group, vec![commit(0, 9)]).await;
    assert!(matches!(as_group, Err(GroupError::NotEmpty { members: 1, .. })));
    let by_id = |epoch| CommitAs::Member(former.id().clone(), epoch);
    let principal = me();
    let commit_by = |by| node.broker.commit_offsets(&principal, "g", by, vec![commit(0, 2)]);
    commit_by(by_id(former.epoch())).await.unwrap();
    assert!(stale(commit_by(by_id(former.epoch().next())).await));
    let latter = join_static(&node.broker, "g", "i").await;
    assert_eq!(until(&former, |v| v.fenced.is_some()).await.fenced, Some(Fenced::Replaced));
    assert!(stale(former.commit(former.epoch(), vec![commit(0, 3)]).await));
    assert!(stale(commit_by(by_id(latter.epoch())).await));
    let other = join(&node.broker, "g", topics(&["t"])).await;
    until(&latter, |view| view.assigned.len() == 1 && view.revoking.is_empty()).await;
    let taken = *numbers(&other.state()).first().unwrap();
    assert!(stale(
        latter.commit(latter.epoch(), vec![commit(1 - taken, 4), commit(taken, 4)]).await
    ));
    assert_eq!(committed(&node.broker, "g").await, [(0, 2), (1, 1)]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_went_and_came_back_is_not_committed_by_what_was_known_before() {
    let node = Node::start(&SimFs::new(), &clock()).await;
    topic(&node.broker, "t", 2).await;
    let member = join(&node.broker, "g", topics(&["t"])).await;
    let before = member.epoch();
    let other = join(&node.broker, "g", topics(&["t"])).await;
    let taken = until(&other, |view| view.assigned.len() == 1).await;
    let went = *numbers(&taken).first().unwrap();
    other.commit(other.epoch(), vec![commit(went, 5)]).await.unwrap();
    other.leave().await.unwrap();
    let view = until(&member, |view| view.assigned.len() == 2).await;
    let refused = member.commit(before, vec![commit(went, 2)]).await;
    assert!(matches!(refused, Err(GroupError::StaleMember { .. })), "{refused:?}");
    member.commit(before, vec![commit(1 - went, 2)]).await.expect("it was its own all the time");
    member.commit(view.epoch, vec![commit(went, 6)]).await.unwrap();
    let mut expected = [(went, 6), (1 - went, 2)];
    expected.sort_unstable();
    assert_eq!(committed(&node.broker, "g").await, expected);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_face_that_acknowledges_is_waited_for_until_its_rebalance_timeout() {
    let clock = clock();
    let node = Node::start(&SimFs::new(), &clock).await;
    topic(&node.broker, "t", 2).await;
    let revocation = Revocation::Acknowledged;
    let slow = JoinGroup { revocation, ..to_join("g", topics(&["t"])) };
    let slow = node.broker.join_group(&me(), slow).await.unwrap();
    let giving_up = async {
        let view = until(&slow, |view| view.revoking.len() == 1).await;
        // It may commit for the last time, and then says that it is done.
        let given_up = view.revoking[0].clone();
        slow.commit(slow.epoch(), vec![commit(given_up.partition.get(), 5)]).await.unwrap();
        slow.revoked(&[(given_up.topic_id, given_up.partition)]).await.unwrap();
        given_up
    };
    let (second, given_up) = tokio::join!(join(&node.broker, "g", topics(&["t"])), giving_up);
    let AssignedPartition { partition, committed, .. } = second.state().assigned[0].clone();
    assert_eq!((partition, committed), (given_up.partition, Offset::new(5)));
    // The next time it says nothing.
    drop(second);
    until(&slow, |view| view.assigned.len() == 2).await;
    let third = join(&node.broker, "g", topics(&["t"])).await;
    assert!(third.state().is_waiting);
    clock.advance(Duration::from_secs(61));
    until(&third, |view| view.assigned.len() == 2).await;
    let fenced = until(&slow, |view| view.fenced.is_some()).await;
    assert_eq!(fenced.fenced, Some(Fenced::RebalanceTimedOut));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_follow_topics_that_come_and_go() {
    let node = Node::start(&SimFs::new(), &clock()).await;
    let by_name = join(&node.broker, "g", topics(&["t"])).await;
    let by_pattern = join(&node.broker, "h", Subscription::Pattern("t|f.*".to_owned())).await;
    assert!(by_name.state().assigned.is_empty());
    for name in ["t", "flights", "other"] {
        topic(&node.broker, name, 2).await;
    }
    until(&by_name, |view| view.assigned.len() == 2).await;
    until(&by_pattern, |view| view.assigned.len() == 4).await;
    by_name.commit(by_name.epoch(), vec![commit(0, 1)]).await.unwrap();
    node.broker.delete_topic(&me(), "t").await.unwrap();
    until(&by_name, |view| view.assigned.is_empty()).await;
    until(&by_pattern, |view| view.assigned.len() == 2).await;
    assert!(committed(&node.broker, "g").await.is_empty(), "offsets go with their topic");
    by_name.set_subscription(topics(&["other", "flights"])).await.unwrap();
    assert_eq!(by_name.state().assigned.len(), 4);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn commits_that_arrive_together_share_entries() {
    let node = Node::start(&SimFs::new(), &clock()).await;
    topic(&node.broker, "t", 50).await;
    let mut members = Vec::new();
    for _ in 0..10 {
        members.push(join(&node.broker, "g", topics(&["t"])).await);
    }
    for member in &members {
        until(member, |view| view.assigned.len() == 5 && view.revoking.is_empty()).await;
    }
    let commits = members.iter().flat_map(|member| {
        let view = member.state();
        let partitions: Vec<u32> = numbers(&view).into_iter().collect();
        partitions.into_iter().map(move |partition| {
            let member = member.clone();
            async move { member.commit(member.epoch(), vec![commit(partition, 3)]).await.unwrap() }
        })
    });
    futures_util::future::join_all(commits).await;
    assert_eq!(committed(&node.broker, "g").await.len(), 50);
    let metrics = &node.broker.metrics().groups;
    assert_eq!(metrics.commits.get(), 50);
    assert!(metrics.commits_per_entry.count() < 25, "{}", metrics.commits_per_entry.count());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_of_a_group_that_is_left_alone_are_forgotten_after_a_week() {
    let clock = clock();
    let node = Node::start(&SimFs::new(), &clock).await;
    topic(&node.broker, "t", 1).await;
    let member = join(&node.broker, "g", topics(&["t"])).await;
    member.commit(member.epoch(), vec![commit(0, 1)]).await.unwrap();
    clock.advance(Duration::from_secs(8 * 24 * 3_600));
    node.broker.commit_offsets(&me(), "h", CommitAs::Group, vec![commit(0, 1)]).await.unwrap();
    member.leave().await.unwrap();
    clock.advance(Duration::from_secs(6 * 24 * 3_600));
    assert_eq!(committed(&node.broker, "g").await, [(0, 1)], "it was in use a week ago");
    clock.advance(Duration::from_secs(2 * 24 * 3_600));
    let is_gone = |group| {
        let broker = node.broker.clone();
        async move { matches!(broker.group(&me(), group).await, Err(GroupError::NotFound(_))) }
    };
    eventually("g is gone", || is_gone("g")).await;
    eventually("h is gone", || is_gone("h")).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_was_set_forgets_no_offsets_until_it_is_confirmed() {
    let clock = clock();
    let node = Node::start(&SimFs::new(), &clock).await;
    topic(&node.broker, "t", 1).await;
    node.broker.commit_offsets(&me(), "h", CommitAs::Group, vec![commit(0, 1)]).await.unwrap();
    clock.step_wall(30 * 24 * 3_600 * 1_000);
    for _ in 0..3 {
        clock.advance(Duration::from_secs(1_200));
        // The keeper of groups looks, and would find the offsets old.
        join(&node.broker, "g", topics(&["t"])).await.leave().await.unwrap();
    }
    assert_eq!(committed(&node.broker, "h").await, [(0, 1)]);
    node.broker.confirm_clock(&me());
    clock.advance(Duration::from_secs(1_200));
    let is_gone = || {
        let broker = node.broker.clone();
        async move { matches!(broker.group(&me(), "h").await, Err(GroupError::NotFound(_))) }
    };
    eventually("h is gone", is_gone).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_is_told_before_it_is_done_and_stays_within_the_log() {
    let node = Node::start(&SimFs::new(), &clock()).await;
    let handle = topic(&node.broker, "t", 1).await;
    for value in ["1", "2", "3"] {
        produce(&node.broker, &handle, "k", value.to_owned()).await;
    }
    let member = join(&node.broker, "g", topics(&["t"])).await;
    member.commit(member.epoch(), vec![commit(0, 2)]).await.unwrap();
    let reset = |to, mode| {
        let reset = ResetOffsets { topic: "t".to_owned(), partitions: None, to, mode };
        let broker = node.broker.clone();
        async move {
            let moves = broker.reset_offsets(&me(), "g", reset).await?;
            Ok::<_, GroupError>((moves[0].from.map(Offset::get), moves[0].to.get()))
        }
    };
    let refused = reset(ResetTo::Earliest, ResetMode::DryRun).await;
    assert!(matches!(refused, Err(GroupError::NotEmpty { .. })));
    member.leave().await.unwrap();
    for (to, expected) in [
        (ResetTo::Earliest, 0),
        (ResetTo::Latest, 3),
        (ResetTo::Shift(-1), 1),
        (ResetTo::Shift(-9), 0),
        (ResetTo::Shift(9), 3),
        (ResetTo::Offset(Offset::new(1).unwrap()), 1),
        (ResetTo::Offset(Offset::new(10).unwrap()), 3),
        (ResetTo::Timestamp(handle.summary().created_at), 0),
    ] {
        assert_eq!(reset(to, ResetMode::DryRun).await.unwrap(), (Some(2), expected), "{to:?}");
    }
    assert_eq!(committed(&node.broker, "g").await, [(0, 2)]);
    reset(ResetTo::Shift(-1), ResetMode::Apply).await.unwrap();
    let offsets = node.broker.group_offsets(&me(), "g").await.unwrap();
    assert_eq!((offsets[0].offset.get(), offsets[0].lag), (1, 2));
    assert!(offsets[0].lag_ms.is_some());
    node.broker.delete_group_offsets(&me(), "g", "t", Some(0)).await.unwrap();
    assert!(committed(&node.broker, "g").await.is_empty());
    node.broker.delete_group(&me(), "g").await.unwrap();
    assert!(matches!(node.broker.group(&me(), "g").await, Err(GroupError::NotFound(_))));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_nobody_waits_for_is_taken_back() {
    let node = Node::start(&SimFs::new(), &clock()).await;
    topic(&node.broker, "t", 1).await;
    for polls in 0..4 {
        let mut joining = Box::pin(join(&node.broker, "g", topics(&["t"])));
        for _ in 0..polls {
            drop(futures_util::poll!(&mut joining));
            tokio::task::yield_now().await;
        }
        drop(joining);
    }
    let member = join(&node.broker, "g", topics(&["t"])).await;
    until(&member, |view| view.assigned.len() == 1).await;
    let is_alone = || async { node.broker.group(&me(), "g").await.unwrap().members.len() == 1 };
    eventually("only the last is left", is_alone).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_or_makes_no_sense_is_refused() {
    let node = Node::start(&SimFs::new(), &clock()).await;
    topic(&node.broker, "t", 1).await;
    let refused = |join: JoinGroup| {
        let broker = node.broker.clone();
        async move { broker.join_group(&me(), join).await.unwrap_err() }
    };
    let many = (0..=SUBSCRIPTION_TOPICS_MAX).map(|n| TopicName::parse(&format!("t{n}")).unwrap());
    let many = to_join("g", Subscription::Topics(many.collect()));
    assert!(matches!(refused(many).await, GroupError::TooLarge { value: 1_001, .. }));
    let pattern = |text: &str| to_join("g", Subscription::Pattern(text.to_owned()));
    assert!(matches!(refused(pattern("(")).await, GroupError::Invalid(_)));
    let long = "a".repeat(2_000);
    assert!(matches!(refused(pattern(&long)).await, GroupError::TooLarge { .. }));
    let internal = to_join("__g", topics(&["t"]));
    assert!(matches!(refused(internal).await, GroupError::InvalidName { .. }));
    let commit_with = |commit: OffsetCommit| {
        let broker = node.broker.clone();
        async move { broker.commit_offsets(&me(), "g", CommitAs::Group, vec![commit]).await }
    };
    let metadata = |len| OffsetCommit { metadata: "x".repeat(len), ..commit(0, 1) };
    commit_with(metadata(OFFSET_METADATA_BYTES_MAX)).await.unwrap();
    let error = commit_with(metadata(OFFSET_METADATA_BYTES_MAX + 1)).await.unwrap_err();
    assert!(matches!(error, GroupError::TooLarge { value: 4_097, limit: 4_096, .. }));
    let error = commit_with(commit(1, 1)).await.unwrap_err();
    assert!(matches!(error, GroupError::PartitionNotFound { partition: 1, .. }));
    let none = JoinGroup { offset_reset: OffsetReset::None, ..to_join("h", topics(&["t"])) };
    let none = node.broker.join_group(&me(), none).await.unwrap();
    let error = none.start_of(&none.state().assigned[0]).await.unwrap_err();
    assert!(matches!(error, GroupError::NoOffset { .. }));
    let short = Some(Duration::from_secs(1));
    let short = JoinGroup { session_timeout: short, ..to_join("h", topics(&["t"])) };
    let short = node.broker.join_group(&me(), short).await.unwrap();
    assert_eq!(short.session_timeout(), Duration::from_secs(6));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pattern_that_matches_too_much_is_refused_and_told_when_it_comes_to_that_later() {
    let node = Node::start(&SimFs::new(), &clock()).await;
    let create = |n: usize| topic_of_one(&node.broker, format!("t{n}"));
    let mut creating = stream::iter(0..SUBSCRIPTION_TOPICS_MAX).map(create).buffer_unordered(100);
    while creating.next().await.is_some() {}
    drop(creating);
    let pattern = || to_join("g", Subscription::Pattern("t.*".to_owned()));
    let member = node.broker.join_group(&me(), pattern()).await.unwrap();
    until(&member, |view| view.assigned.len() == SUBSCRIPTION_TOPICS_MAX).await;
    create(1_000).await;
    create(1_001).await;
    let refused = node.broker.join_group(&me(), pattern()).await.unwrap_err();
    assert!(matches!(refused, GroupError::TooLarge { value: 1_002, limit: 1_000, .. }));
    let member_of = || async { node.broker.group(&me(), "g").await.unwrap().members[0].clone() };
    assert_eq!(member_of().await.topics_left_out, 2);
    assert_eq!(member.state().assigned.len(), SUBSCRIPTION_TOPICS_MAX, "it goes on with those");
    node.broker.delete_topic(&me(), "t7").await.unwrap();
    let has_newer = |view: &MemberView| view.assigned.iter().any(|of| of.topic.as_str() == "t1000");
    let view = until(&member, has_newer).await;
    assert_eq!(view.assigned.len(), SUBSCRIPTION_TOPICS_MAX);
    assert_eq!(member_of().await.topics_left_out, 1);
    node.stop().await;
}

async fn topic_of_one(broker: &Broker, name: String) {
    topic(broker, &name, 1).await;
}

/// Reads on in what a member has, from the committed offsets, notes it as processed and commits it.
async fn work(member: &Member, topic: &Arc<Topic>, processed: &Mutex<BTreeSet<(u32, i64)>>) {
    let offsets = member.broker.group_offsets(&me(), "g").await.unwrap();
    for assigned in &member.state().assigned {
        let known = offsets.iter().find(|of| of.partition == assigned.partition);
        let from = known.map_or(Offset::ZERO, |of| of.offset);
        let request = ReadRequest {
            positions: vec![(assigned.partition, from)],
            records_max: 3,
            bytes_max: 1 << 20,
            scan_bytes_max: 1 << 20,
            on_damage: OnDamage::Fail,
        };
        let mut seen = BTreeSet::new();
        let mut note = |partition: PartitionId, record: &Record<'_>| {
            seen.insert((partition.get(), record.offset.get()));
            Visit::Taken
        };
        let end = member.broker.read(&me(), topic, &request, &mut note).await.unwrap();
        // Processed first, committed then: at least once.
        processed.lock().extend(seen);
        let next = end.next[0].1.get();
        match member.commit(member.epoch(), vec![commit(assigned.partition.get(), next)]).await {
            Ok(()) | Err(GroupError::StaleMember { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Members come, work, hang (hold partitions and do nothing), go in order and vanish, by a seed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_come_and_go_process_every_record_and_converge() {
    let clock = clock();
    let node = Node::start(&SimFs::new(), &clock).await;
    let topic = topic(&node.broker, "t", 12).await;
    let records = 120;
    for n in 0..records {
        produce(&node.broker, &topic, &format!("key {n}"), n.to_string()).await;
    }
    let processed = Mutex::new(BTreeSet::new());
    let mut random = SmallRng::seed_from_u64(11);
    let mut members: Vec<Member> = Vec::new();
    for _ in 0..60 {
        let at = random.random_range(0..members.len().max(1));
        match random.random_range(0..8) {
            0 | 1 => members.push(join(&node.broker, "g", topics(&["t"])).await),
            2 => {
                let instance = format!("i{}", random.random_range(0..2));
                members.push(join_static(&node.broker, "g", &instance).await);
            }
            3 if !members.is_empty() => drop(members.swap_remove(at)),
            4 if !members.is_empty() => members.swap_remove(at).leave().await.unwrap(),
            5 => clock.advance(Duration::from_secs(10)),
            _ => {
                let working = members.iter().map(|member| work(member, &topic, &processed));
                futures_util::future::join_all(working).await;
            }
        }
    }
    members.push(join(&node.broker, "g", topics(&["t"])).await);
    // Those that vanished with an instance id have their session timeout.
    clock.advance(Duration::from_secs(46));
    members.retain(|member| member.state().fenced.is_none());
    let settled = || async {
        let group = node.broker.group(&me(), "g").await.unwrap();
        let owned: usize = members.iter().map(|member| member.state().assigned.len()).sum();
        group.status == GroupStatus::Stable && owned == 12
    };
    eventually("all partitions are owned by those who are left", settled).await;
    let total = || async {
        let working = members.iter().map(|member| work(member, &topic, &processed));
        futures_util::future::join_all(working).await;
        processed.lock().len() == records
    };
    eventually("every record is processed", total).await;
    node.stop().await;
}
