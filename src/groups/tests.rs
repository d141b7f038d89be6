//! Groups under any interleaving of joins, leaves, timeouts, topic changes and lost messages.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use uuid::Uuid;

use crate::groups::*;
use crate::types::limits::{GROUP_MEMBERS_MAX, GROUP_REBALANCES_MAX};
use crate::types::{
    Epoch, InstanceId, MemberId, NodeId, PartitionId, Timestamp, TopicId, TopicName, TopicPartition,
};

/// The topics `t0` to `t3`; a number of partitions of 0 means that there is none.
#[derive(Debug, Clone, Default)]
struct World {
    partitions: [u32; 4],
    /// Counts re-creations: another one is another topic.
    incarnation: [u8; 4],
}

fn topic_name(number: usize) -> TopicName {
    TopicName::parse(&format!("t{number}")).unwrap()
}

impl World {
    fn id(&self, number: usize) -> TopicId {
        let raw = (u128::from(self.incarnation[number]) << 8) + number as u128;
        TopicId::new(Uuid::from_u128(raw))
    }

    fn all(&self, names: &BTreeSet<TopicName>) -> BTreeSet<TopicPartition> {
        let found = names.iter().filter_map(|name| self.find(name));
        let all = |(topic, count)| {
            PartitionId::all(count).map(move |partition| TopicPartition { topic, partition })
        };
        found.flat_map(all).collect()
    }
}

impl Topics for World {
    fn find(&self, name: &TopicName) -> Option<(TopicId, u32)> {
        let number: usize = name.as_str().strip_prefix('t')?.parse().ok()?;
        let count = *self.partitions.get(number)?;
        (count > 0).then(|| (self.id(number), count))
    }

    fn partitions(&self, topic: TopicId) -> Option<u32> {
        (0..4).find(|number| self.id(*number) == topic).and_then(|number| {
            let count = self.partitions[number];
            (count > 0).then_some(count)
        })
    }
}

fn profile(instance: Option<&str>) -> Profile {
    Profile {
        instance_id: instance.map(|instance| InstanceId::parse(instance).unwrap()),
        kind: MemberKind::WebSocket,
        client: "test".to_owned(),
        node: NodeId::new(1),
        session_timeout_ms: 45_000,
        rebalance_timeout_ms: 60_000,
        assignor: None,
    }
}

fn topics(numbers: &[usize]) -> Selection {
    Selection::Topics(numbers.iter().map(|number| topic_name(*number)).collect())
}

fn member(number: u32) -> MemberId {
    MemberId::parse(&format!("m{number:04}")).unwrap()
}

/// A client process: what it believes to hold, which lags behind what the group says.
#[derive(Debug, Default)]
struct Client {
    holds: BTreeSet<TopicPartition>,
    /// Revocations that it has sent and that may not have arrived.
    sent: Vec<TopicPartition>,
    sent_at: Epoch,
    epoch: Epoch,
}

#[derive(Debug, Clone)]
enum Step {
    Join {
        instance: Option<u8>,
        topics: u8,
    },
    Leave(prop::sample::Index),
    Expire(prop::sample::Index),
    /// The client hears the newest state of its member and answers it.
    Hear(prop::sample::Index),
    /// What the client has answered arrives.
    Arrive(prop::sample::Index),
    /// What the client has answered is lost.
    Lose(prop::sample::Index),
    TimeOut(prop::sample::Index),
    Subscribe(prop::sample::Index, u8),
    Topic {
        number: usize,
        partitions: u32,
    },
}

fn any_step() -> impl Strategy<Value = Step> {
    use prop::sample::Index;
    prop_oneof![
        3 => (prop::option::weighted(0.3, 0u8..3), 1u8..16)
            .prop_map(|(instance, topics)| Step::Join { instance, topics }),
        1 => any::<Index>().prop_map(Step::Leave),
        1 => any::<Index>().prop_map(Step::Expire),
        5 => any::<Index>().prop_map(Step::Hear),
        4 => any::<Index>().prop_map(Step::Arrive),
        2 => any::<Index>().prop_map(Step::Lose),
        1 => any::<Index>().prop_map(Step::TimeOut),
        1 => (any::<Index>(), 1u8..16).prop_map(|(at, topics)| Step::Subscribe(at, topics)),
        1 => (0usize..4, 0u32..9)
            .prop_map(|(number, partitions)| Step::Topic { number, partitions }),
    ]
}

/// A group, its topics, and the processes that take part.
struct Play {
    group: Group,
    world: World,
    clients: BTreeMap<MemberId, Client>,
    now: i64,
    joined: u32,
}

impl Play {
    fn new() -> Self {
        let world = World { partitions: [5, 3, 7, 0], ..World::default() };
        let (group, clients) = (Group::default(), BTreeMap::new());
        Self { group, world, clients, now: 0, joined: 0 }
    }

    fn apply(&mut self, change: &Change) -> Result<(), Refusal> {
        self.now += 10;
        let before = self.group.clone();
        let applied = self.group.apply(change, &self.world, Timestamp::from_millis(self.now));
        if applied.is_err() {
            assert_eq!(self.group, before, "a refused change leaves the group as it was");
        }
        self.group.check().unwrap();
        applied
    }

    fn pick(&self, at: prop::sample::Index) -> Option<MemberId> {
        let ids: Vec<&MemberId> = self.group.members.keys().collect();
        (!ids.is_empty()).then(|| ids[at.index(ids.len())].clone())
    }

    fn selected(mask: u8) -> Selection {
        let numbers: Vec<usize> = (0..4).filter(|number| mask >> number & 1 == 1).collect();
        topics(&numbers)
    }

    fn join(&mut self, instance: Option<u8>, selection: Selection) -> MemberId {
        let id = member(self.joined);
        self.joined += 1;
        let instance = instance.map(|instance| format!("i{instance}"));
        let profile = profile(instance.as_deref());
        self.apply(&Change::Join { member: id.clone(), profile, selection }).unwrap();
        self.clients.insert(id.clone(), Client::default());
        id
    }

    fn hear(&mut self, id: &MemberId) {
        let member = Arc::clone(&self.group.members[id]);
        let client = self.clients.get_mut(id).unwrap();
        client.epoch = member.epoch;
        client.holds = member.assigned.keys().copied().collect();
        // An answer that is on its way may arrive after this one was heard.
        if !member.revoking.is_empty() {
            client.sent = member.revoking.keys().copied().collect();
            client.sent_at = member.epoch;
        }
    }

    fn arrive(&mut self, id: &MemberId) {
        // It may arrive again later: the client keeps what it has sent until it hears something.
        let Client { sent, sent_at, .. } = &self.clients[id];
        let (partitions, epoch) = (sent.clone(), *sent_at);
        self.apply(&Change::Revoked { member: id.clone(), epoch, partitions }).unwrap();
    }

    fn leave(&mut self, id: &MemberId, departure: Departure) {
        self.apply(&Change::Leave { member: id.clone(), departure }).unwrap();
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Join { instance, topics } => {
                self.join(*instance, Self::selected(*topics));
            }
            Step::Topic { number, partitions } => {
                // Topics are deleted and grow; they do not shrink.
                let count = &mut self.world.partitions[*number];
                *count = if *partitions == 0 { 0 } else { *partitions.max(count) };
                if *partitions == 0 {
                    self.world.incarnation[*number] += 1;
                }
                let outdated = self.group.is_outdated(&self.world);
                let epoch = self.group.epoch;
                self.apply(&Change::TopicsChanged { matched: Vec::new() }).unwrap();
                let is_new = self.group.epoch > epoch;
                assert!(is_new == outdated || self.group.members.is_empty());
            }
            Step::Leave(at) => self.with(*at, |play, id| play.leave(id, Departure::Left)),
            Step::Expire(at) => {
                self.with(*at, |play, id| play.leave(id, Departure::SessionExpired));
            }
            Step::Hear(at) => self.with(*at, Self::hear),
            Step::Arrive(at) => self.with(*at, Self::arrive),
            Step::Lose(at) => self.with(*at, |play, id| {
                play.clients.get_mut(id).unwrap().sent.clear();
            }),
            Step::TimeOut(at) => self.with(*at, |play, id| {
                let epoch = play.clients[id].epoch;
                let change = Change::RevocationTimedOut { member: id.clone(), epoch };
                play.apply(&change).unwrap();
            }),
            Step::Subscribe(at, mask) => self.with(*at, |play, id| {
                let selection = Self::selected(*mask);
                let member = id.clone();
                play.apply(&Change::Subscribe { member, selection }).unwrap();
            }),
        }
    }

    fn with(&mut self, at: prop::sample::Index, act: impl FnOnce(&mut Self, &MemberId)) {
        if let Some(id) = self.pick(at) {
            act(self, &id);
        }
    }

    /// What members believe to hold is never held by two of them.
    fn check_beliefs(&self) {
        let mut held = BTreeSet::new();
        for id in self.group.members.keys() {
            for partition in &self.clients[id].holds {
                let exists = self.world.partitions(partition.topic).is_some();
                assert!(!exists || held.insert(*partition), "{partition} is held twice");
            }
        }
    }

    /// A commit is accepted from a member that holds the partition and from nobody else.
    fn check_commits(&self) {
        for (id, client) in &self.clients {
            let Some(member) = self.group.members.get(id) else {
                for epoch in [client.epoch, self.group.epoch] {
                    let fence = Fence::Exact { member: id.clone(), epoch };
                    let refused = self.group.check_commit(&fence, []);
                    assert_eq!(refused, Err(Refusal::UnknownMember(id.clone())));
                }
                continue;
            };
            for partition in self.world.all(&(0..4).map(topic_name).collect()) {
                let since = Fence::Since { member: id.clone(), epoch: client.epoch };
                let accepted = self.group.check_commit(&since, [&partition]).is_ok();
                let owns = member.assigned.get(&partition).or(member.revoking.get(&partition));
                assert_eq!(accepted, owns.is_some_and(|since| *since <= client.epoch));
                let exact = Fence::Exact { member: id.clone(), epoch: client.epoch };
                let accepted = self.group.check_commit(&exact, [&partition]).is_ok();
                assert_eq!(accepted, owns.is_some() && member.epoch == client.epoch);
            }
        }
    }

    /// Every client hears and answers, once.
    fn settle(&mut self) {
        let ids: Vec<MemberId> = self.group.members.keys().cloned().collect();
        for id in &ids {
            self.hear(id);
            self.arrive(id);
        }
    }

    fn check_settled(&self) {
        let expected =
            if self.group.members.is_empty() { GroupStatus::Empty } else { GroupStatus::Stable };
        assert_eq!(self.group.status(), expected);
        let (mut owned, mut wanted) = (BTreeSet::new(), BTreeSet::new());
        for member in self.group.members.values() {
            assert_eq!(member.epoch, self.group.epoch);
            let assigned: BTreeSet<_> = member.assigned.keys().copied().collect();
            assert_eq!(assigned, member.target);
            owned.extend(assigned);
            wanted.extend(self.world.all(member.selection.names()));
        }
        assert_eq!(owned, wanted, "every partition has an owner");
        let members: Vec<_> = self.group.members.values().collect();
        if members.windows(2).all(|two| two[0].selection == two[1].selection) {
            let loads: Vec<usize> = members.iter().map(|member| member.assigned.len()).collect();
            let (least, most) = (loads.iter().min(), loads.iter().max());
            assert!(most.unwrap_or(&0) - least.unwrap_or(&0) <= 1, "{loads:?}");
        }
        assert!(self.group.rebalances.len() <= GROUP_REBALANCES_MAX);
    }
}

proptest! {
    #[test]
    fn no_partition_has_two_owners_and_any_interleaving_converges(
        steps in prop::collection::vec(any_step(), 0..80),
    ) {
        let mut play = Play::new();
        for step in &steps {
            play.step(step);
            play.check_beliefs();
            play.check_commits();
        }
        play.settle();
        play.check_settled();
    }

    #[test]
    fn any_interleaving_of_members_that_want_the_same_ends_with_loads_within_one(
        steps in prop::collection::vec(any_step(), 0..80),
    ) {
        let mut play = Play::new();
        for mut step in steps {
            if let Step::Join { topics, .. } | Step::Subscribe(_, topics) = &mut step {
                *topics = 0b1111;
            }
            play.step(&step);
            play.check_beliefs();
        }
        play.settle();
        play.check_settled();
    }

    #[test]
    fn what_a_member_had_that_is_gone_is_all_that_moves(
        partitions in 1u32..40, members in 2usize..9, leaver in any::<prop::sample::Index>(),
    ) {
        let mut play = Play::new();
        play.world.partitions = [partitions, 0, 0, 0];
        for _ in 0..members {
            play.join(None, topics(&[0]));
            play.settle();
        }
        let before = play.group.clone();
        let gone = play.pick(leaver).unwrap();
        play.leave(&gone, Departure::SessionExpired);
        // Nobody is asked for anything: it is all free at once.
        play.check_settled();
        for (id, member) in &play.group.members {
            let kept = &before.members[id].assigned;
            prop_assert!(kept.keys().all(|of| member.assigned.contains_key(of)));
        }
    }

    #[test]
    fn equal_members_have_equal_loads_and_a_joiner_takes_only_its_part(
        partitions in 1u32..40, members in 1usize..9,
    ) {
        let mut play = Play::new();
        play.world.partitions = [partitions, 0, 0, 0];
        for joined in 1..=members {
            let before = play.group.clone();
            let joiner = play.join(None, topics(&[0]));
            play.settle();
            play.check_settled();
            let loads: Vec<usize> =
                play.group.members.values().map(|member| member.assigned.len()).collect();
            prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1);
            let part = usize::try_from(partitions).unwrap().div_ceil(joined);
            prop_assert!(play.group.members[&joiner].assigned.len() <= part);
            for (id, member) in &before.members {
                let now = &play.group.members[id].assigned;
                prop_assert!(now.keys().all(|of| member.assigned.contains_key(of)));
            }
        }
    }

    #[test]
    fn a_group_survives_its_json(steps in prop::collection::vec(any_step(), 0..30)) {
        let mut play = Play::new();
        steps.iter().for_each(|step| play.step(step));
        let json = serde_json::to_string(&play.group).unwrap();
        prop_assert_eq!(serde_json::from_str::<Group>(&json).unwrap(), play.group);
    }
}

#[test]
fn a_partition_is_free_only_when_its_former_owner_has_given_it_up() {
    let mut play = Play::new();
    let first = play.join(None, topics(&[0]));
    assert_eq!(play.group.members[&first].assigned.len(), 5);
    let second = play.join(None, topics(&[0]));
    assert_eq!(play.group.members[&first].status(), MemberStatus::UnrevokedPartitions);
    assert_eq!(play.group.members[&second].status(), MemberStatus::UnreleasedPartitions);
    assert_eq!(play.group.members[&second].assigned.len(), 0);
    assert!(play.group.members[&first].epoch < play.group.epoch);
    assert_eq!(play.group.rebalances.back().unwrap().took_ms, None);
    play.hear(&first);
    play.arrive(&first);
    assert_eq!(play.group.members[&second].assigned.len(), 2);
    assert_eq!(play.group.members[&first].epoch, play.group.epoch);
    assert_eq!(play.group.rebalances.back().unwrap().took_ms, Some(10));
}

#[test]
fn a_static_member_comes_back_to_its_partitions_without_a_rebalance() {
    let mut play = Play::new();
    let first = play.join(Some(1), topics(&[0, 1]));
    play.join(Some(2), topics(&[0, 1]));
    play.settle();
    let (epoch, before) = (play.group.epoch, play.group.members[&first].assigned.clone());
    let again = play.join(Some(1), topics(&[0, 1]));
    assert_eq!(play.group.epoch, epoch);
    assert_eq!(play.group.members[&again].assigned, before);
    let fence = Fence::Since { member: first.clone(), epoch };
    let refused = play.group.check_commit(&fence, before.keys());
    assert_eq!(refused, Err(Refusal::UnknownMember(first)));
    let other = play.join(Some(1), topics(&[2]));
    assert_eq!(play.group.epoch, epoch.next());
    play.settle();
    assert_eq!(play.group.members[&other].assigned.len(), 7);
}

#[test]
fn a_member_that_gives_nothing_up_in_time_is_out_and_a_late_timeout_does_nothing() {
    let mut play = Play::new();
    let first = play.join(None, topics(&[0]));
    let epoch = play.group.members[&first].epoch;
    let second = play.join(None, topics(&[0]));
    let late = Change::RevocationTimedOut { member: first.clone(), epoch: play.group.epoch };
    play.apply(&late).unwrap();
    assert!(play.group.members.contains_key(&first));
    play.apply(&Change::RevocationTimedOut { member: first.clone(), epoch }).unwrap();
    assert!(!play.group.members.contains_key(&first));
    assert_eq!(play.group.members[&second].assigned.len(), 5);
    let last = play.group.rebalances.back().unwrap();
    assert_eq!(last.reason, RebalanceReason::RebalanceTimedOut);
}

#[test]
fn a_pattern_follows_the_topics_that_it_matches() {
    let mut play = Play::new();
    let matched = |numbers: &[usize]| numbers.iter().map(|n| topic_name(*n)).collect();
    let selection = Selection::Pattern { pattern: "t.*".to_owned(), matched: matched(&[0]) };
    let id = play.join(None, selection);
    assert_eq!(play.group.members[&id].assigned.len(), 5);
    let change = Change::TopicsChanged { matched: vec![(id.clone(), matched(&[0, 1]))] };
    play.apply(&change).unwrap();
    assert_eq!(play.group.members[&id].assigned.len(), 8);
    let epoch = play.group.epoch;
    play.apply(&change).unwrap();
    assert_eq!(play.group.epoch, epoch, "nothing has changed");
}

#[test]
fn the_last_hundred_rebalances_are_remembered() {
    let mut play = Play::new();
    let mut last = Vec::new();
    for _ in 0..75 {
        let id = play.join(None, topics(&[0]));
        play.settle();
        last.push((RebalanceReason::MemberJoined, id.to_string()));
        play.leave(&id, Departure::Left);
        last.push((RebalanceReason::MemberLeft, id.to_string()));
    }
    assert_eq!(GROUP_REBALANCES_MAX, 100);
    let kept = play.group.rebalances.iter().map(|each| (each.reason, each.detail.clone()));
    assert_eq!(kept.collect::<Vec<_>>(), last[50..]);
    let epochs: Vec<u32> = play.group.rebalances.iter().map(|each| each.epoch.get()).collect();
    assert_eq!(epochs, (51..=150).collect::<Vec<_>>());
}

#[test]
fn most_of_those_who_care_choose_the_assignor() {
    let mut play = Play::new();
    let mut join = |assignor| {
        let id = member(play.joined);
        play.joined += 1;
        let profile = Profile { assignor, ..profile(None) };
        play.apply(&Change::Join { member: id, profile, selection: topics(&[0]) }).unwrap();
        play.group.assignor
    };
    assert_eq!(join(None), Assignor::Uniform);
    assert_eq!(join(Some(Assignor::Range)), Assignor::Range);
    assert_eq!(join(Some(Assignor::Uniform)), Assignor::Uniform);
}

#[test]
fn a_full_group_takes_nobody_but_those_who_come_back() {
    let mut play = Play::new();
    play.join(Some(1), topics(&[3]));
    for _ in 1..GROUP_MEMBERS_MAX {
        play.join(None, topics(&[3]));
    }
    let change = |instance| Change::Join {
        member: MemberId::parse("late").unwrap(),
        profile: profile(instance),
        selection: topics(&[3]),
    };
    assert_eq!(play.apply(&change(None)), Err(Refusal::Full));
    assert_eq!(play.apply(&change(Some("i1"))), Ok(()));
}
