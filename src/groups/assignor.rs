//! Who gets which partition: from the members' subscriptions and what they had to a target.
//!
//! Invariants:
//! - every partition that some member is subscribed to gets exactly one member, and that one is
//!   subscribed to its topic;
//! - the answer is a function of the arguments: every replica computes the same;
//! - `uniform`: where one member has two partitions more than another, the other is subscribed to
//!   none of its topics. With equal subscriptions, loads differ by one at the most, a member that
//!   joins `n` others takes at most `ceil(P / (n + 1))` partitions, and no other member gets any.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::groups::Assignor;
use crate::types::{InstanceId, MemberId, PartitionId, TopicId, TopicPartition};

/// The partitions of each topic, by number.
pub(in crate::groups) type Counts = BTreeMap<TopicId, u32>;

/// Partitions of a member, sorted.
pub(in crate::groups) type Share = BTreeSet<TopicPartition>;

/// A member to be served.
#[derive(Debug, Clone, Copy)]
pub(in crate::groups) struct Candidate<'a> {
    /// Its id.
    pub(in crate::groups) id: &'a MemberId,
    /// Its instance id, which orders static members for `range`.
    pub(in crate::groups) instance: Option<&'a InstanceId>,
    /// The topics that it is subscribed to and that exist, with their partitions.
    pub(in crate::groups) topics: &'a Counts,
    /// What the former target gave it.
    pub(in crate::groups) former: &'a Share,
}

/// Shares out the partitions; the answer's places are those of `members`.
pub(in crate::groups) fn assign(assignor: Assignor, members: &[Candidate<'_>]) -> Vec<Share> {
    match assignor {
        Assignor::Range => range(members),
        Assignor::Uniform => {
            let are_equal = members.windows(2).all(|pair| match pair {
                [a, b] => a.topics == b.topics,
                _ => true,
            });
            if are_equal { balanced(members) } else { mixed(members) }
        }
    }
}

fn all(topics: &Counts) -> impl Iterator<Item = TopicPartition> {
    topics.iter().flat_map(|(topic, count)| {
        PartitionId::all(*count).map(|partition| TopicPartition { topic: *topic, partition })
    })
}

/// Members with equal subscriptions: every one keeps what it had up to its quota, the rest is dealt
/// out in turns.
fn balanced(members: &[Candidate<'_>]) -> Vec<Share> {
    let Some(first) = members.first() else {
        return Vec::new();
    };
    let mut free: Share = all(first.topics).collect();
    let quota = free.len() / members.len();
    let mut extras = free.len() % members.len();
    let mut shares: Vec<Share> = Vec::with_capacity(members.len());
    for member in members {
        let kept: Share = member.former.iter().filter(|of| free.remove(of)).copied().collect();
        shares.push(kept);
    }
    // Those who have more than the quota keep one more each while there are any, so that nothing
    // moves without need; then those who have least.
    let mut by_load: Vec<usize> = (0..members.len()).collect();
    by_load.sort_by_key(|at| std::cmp::Reverse(shares.get(*at).map_or(0, Share::len)));
    let mut quotas = vec![quota; members.len()];
    for (at, share) in by_load.iter().map(|at| (*at, shares.get(*at))) {
        let has_more = share.is_some_and(|share| share.len() > quota);
        if let Some(own) = quotas.get_mut(at).filter(|_| has_more && extras > 0) {
            *own += 1;
            extras -= 1;
        }
    }
    for at in by_load.iter().rev() {
        if let Some(own) = quotas.get_mut(*at).filter(|own| **own == quota && extras > 0) {
            *own += 1;
            extras -= 1;
        }
    }
    for (share, quota) in shares.iter_mut().zip(&quotas) {
        while share.len() > *quota {
            free.extend(share.pop_last());
        }
    }
    let mut needy: VecDeque<(&mut Share, usize)> =
        shares.iter_mut().zip(quotas).filter(|(share, quota)| share.len() < *quota).collect();
    for partition in free {
        let Some((share, quota)) = needy.pop_front() else { break };
        share.insert(partition);
        if share.len() < quota {
            needy.push_back((share, quota));
        }
    }
    shares
}

/// What members with different subscriptions have, while it is evened out.
struct Mixed<'a> {
    members: &'a [Candidate<'a>],
    /// Who is subscribed to each topic, by place.
    eligible: BTreeMap<TopicId, Vec<usize>>,
    shares: Vec<Share>,
}

/// Members with different subscriptions: every one keeps what it had, free partitions go where the
/// load is least, then single partitions move while that evens out a difference of two or more.
fn mixed(members: &[Candidate<'_>]) -> Vec<Share> {
    let mut counts = Counts::new();
    let mut eligible: BTreeMap<TopicId, Vec<usize>> = BTreeMap::new();
    for (at, member) in members.iter().enumerate() {
        for (topic, count) in member.topics {
            counts.insert(*topic, *count);
            eligible.entry(*topic).or_default().push(at);
        }
    }
    let mut free: Share = all(&counts).collect();
    let bound = free.len().saturating_mul(members.len());
    let keep = |member: &Candidate<'_>| -> Share {
        let is_kept = |of: &&TopicPartition| member.topics.contains_key(&of.topic);
        member.former.iter().filter(is_kept).filter(|of| free.remove(of)).copied().collect()
    };
    let shares = members.iter().map(keep).collect();
    let mut mixed = Mixed { members, eligible, shares };
    let mut free: Vec<TopicPartition> = free.into_iter().collect();
    free.sort_by_key(|of| mixed.eligible.get(&of.topic).map_or(0, Vec::len));
    for partition in free {
        if let Some(at) = mixed.least_loaded(partition.topic) {
            mixed.give(at, partition);
        }
    }
    // Every move makes the sum of the squared loads smaller, so this ends by itself; the bound is
    // for those who do not believe it.
    for _ in 0..bound {
        if !mixed.even_out() {
            break;
        }
    }
    mixed.shares
}

impl Mixed<'_> {
    fn load(&self, at: usize) -> usize {
        self.shares.get(at).map_or(0, Share::len)
    }

    fn give(&mut self, at: usize, partition: TopicPartition) {
        if let Some(share) = self.shares.get_mut(at) {
            share.insert(partition);
        }
    }

    fn least_loaded(&self, topic: TopicId) -> Option<usize> {
        self.eligible.get(&topic)?.iter().copied().min_by_key(|at| (self.load(*at), *at))
    }

    /// Moves one partition from the most loaded member that can give one away usefully. Returns
    /// whether there was one.
    fn even_out(&mut self) -> bool {
        let takers: BTreeMap<TopicId, usize> = self
            .eligible
            .keys()
            .filter_map(|topic| Some((*topic, self.least_loaded(*topic)?)))
            .collect();
        let mut by_load: Vec<usize> = (0..self.members.len()).collect();
        by_load.sort_by_key(|at| (std::cmp::Reverse(self.load(*at)), *at));
        for giver in by_load {
            let load = self.load(giver);
            let Some(share) = self.shares.get(giver) else { continue };
            let best = share
                .iter()
                .filter_map(|of| Some((*of, *takers.get(&of.topic)?)))
                .filter(|(_, taker)| self.load(*taker) + 2 <= load)
                .min_by_key(|(of, taker)| (self.load(*taker), std::cmp::Reverse(*of)));
            if let Some((partition, taker)) = best {
                if let Some(share) = self.shares.get_mut(giver) {
                    share.remove(&partition);
                }
                self.give(taker, partition);
                return true;
            }
        }
        false
    }
}

/// Cuts each topic into contiguous ranges, static members first, so that equal partition numbers of
/// topics with equal subscribers meet in one member.
fn range(members: &[Candidate<'_>]) -> Vec<Share> {
    let mut order: Vec<(usize, &Candidate<'_>)> = members.iter().enumerate().collect();
    order.sort_by_key(|(_, member)| (member.instance.is_none(), member.instance, member.id));
    let mut subscribers: BTreeMap<(TopicId, u32), Vec<usize>> = BTreeMap::new();
    for (at, member) in order {
        for (topic, count) in member.topics {
            subscribers.entry((*topic, *count)).or_default().push(at);
        }
    }
    let mut shares = vec![Share::new(); members.len()];
    for ((topic, count), subscribers) in subscribers {
        let mut partitions = PartitionId::all(count);
        let (each, extras) = (partitions.len() / subscribers.len(), count as usize);
        let extras = extras % subscribers.len();
        for (place, at) in subscribers.into_iter().enumerate() {
            let len = each + usize::from(place < extras);
            let part = partitions.by_ref().take(len);
            if let Some(share) = shares.get_mut(at) {
                share.extend(part.map(|partition| TopicPartition { topic, partition }));
            }
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn topic(number: u8) -> TopicId {
        TopicId::new(Uuid::from_u128(number.into()))
    }

    fn member(number: usize) -> MemberId {
        MemberId::parse(&format!("m{number:03}")).unwrap()
    }

    fn run(assignor: Assignor, members: &[(Counts, Share)]) -> Vec<Share> {
        let ids: Vec<MemberId> = (0..members.len()).map(member).collect();
        let candidates: Vec<Candidate<'_>> = members
            .iter()
            .zip(&ids)
            .map(|((topics, former), id)| Candidate { id, instance: None, topics, former })
            .collect();
        assign(assignor, &candidates)
    }

    fn names(share: &Share) -> Vec<String> {
        let name = |of: &TopicPartition| format!("t{}p{}", of.topic.to_bytes()[15], of.partition);
        share.iter().map(name).collect()
    }

    fn check_cover(members: &[(Counts, Share)], shares: &[Share]) {
        let mut wanted = Share::new();
        for (topics, _) in members {
            wanted.extend(all(topics));
        }
        let mut given = Share::new();
        for ((topics, _), share) in members.iter().zip(shares) {
            for of in share {
                assert!(topics.contains_key(&of.topic), "not subscribed to {of}");
                assert!(given.insert(*of), "{of} has two owners");
            }
        }
        assert_eq!(given, wanted);
    }

    fn any_counts() -> impl Strategy<Value = Counts> {
        prop::collection::btree_map((0u8..6).prop_map(topic), 1u32..12, 0..5)
    }

    /// Topics with their counts, and which of them each member is subscribed to.
    fn any_subscriptions() -> impl Strategy<Value = Vec<Counts>> {
        let masks = prop::collection::vec(any::<u8>(), 1..8);
        (any_counts(), masks).prop_map(|(counts, masks)| {
            let subscribed = |mask: &u8| -> Counts {
                let is_in = |topic: &TopicId| mask >> topic.to_bytes()[15] & 1 == 1;
                counts.iter().filter(|(t, _)| is_in(t)).map(|(t, c)| (*t, *c)).collect()
            };
            masks.iter().map(subscribed).collect()
        })
    }

    fn with(subscriptions: &[Counts], former: &[Share]) -> Vec<(Counts, Share)> {
        let former = former.iter().cloned().chain(std::iter::repeat(Share::new()));
        subscriptions.iter().cloned().zip(former).collect()
    }

    fn moved(before: &[Share], after: &[Share]) -> usize {
        before.iter().zip(after).map(|(before, after)| after.difference(before).count()).sum()
    }

    proptest! {
        #[test]
        fn a_member_that_joins_takes_its_part_and_nobody_else_gets_any(
            counts in any_counts(), others in 1usize..8,
        ) {
            let total = all(&counts).count();
            let mut shares: Vec<Share> = Vec::new();
            for members in 1..=others + 1 {
                let input = with(&vec![counts.clone(); members], &shares);
                let next = run(Assignor::Uniform, &input);
                check_cover(&input, &next);
                let loads: Vec<usize> = next.iter().map(Share::len).collect();
                let spread = loads.iter().max().unwrap() - loads.iter().min().unwrap();
                prop_assert!(spread <= 1, "{:?}", loads);
                prop_assert!(next.last().unwrap().len() <= total.div_ceil(members));
                prop_assert_eq!(moved(&shares, &next), 0, "another member got a partition");
                shares = next;
            }
        }

        #[test]
        fn when_a_member_leaves_only_its_partitions_move(
            counts in any_counts(), members in 2usize..8, leaver in any::<prop::sample::Index>(),
        ) {
            let before = run(Assignor::Uniform, &with(&vec![counts.clone(); members], &[]));
            let mut rest = before.clone();
            let left = rest.remove(leaver.index(members));
            let input = with(&vec![counts; members - 1], &rest);
            let after = run(Assignor::Uniform, &input);
            check_cover(&input, &after);
            prop_assert_eq!(moved(&rest, &after), left.len());
            let loads: Vec<usize> = after.iter().map(Share::len).collect();
            prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1);
        }

        #[test]
        fn different_subscriptions_are_evened_out_as_far_as_they_allow(
            first in any_subscriptions(), second in any_subscriptions(),
        ) {
            let before = run(Assignor::Uniform, &with(&first, &[]));
            let input = with(&second, &before);
            let shares = run(Assignor::Uniform, &input);
            check_cover(&input, &shares);
            for big in &shares {
                for ((topics, _), small) in input.iter().zip(&shares) {
                    let takes = big.iter().any(|of| topics.contains_key(&of.topic));
                    prop_assert!(!takes || big.len() <= small.len() + 1);
                }
            }
            // What is in balance stays as it is.
            prop_assert_eq!(&run(Assignor::Uniform, &with(&second, &shares)), &shares);
        }

        #[test]
        fn range_gives_every_partition_to_one_subscriber(subscriptions in any_subscriptions()) {
            let input = with(&subscriptions, &[]);
            check_cover(&input, &run(Assignor::Range, &input));
        }
    }

    #[test]
    fn range_cuts_every_topic_into_contiguous_parts() {
        let counts = Counts::from([(topic(0), 3), (topic(1), 3)]);
        let shares = run(Assignor::Range, &with(&[counts.clone(), counts], &[]));
        assert_eq!(names(&shares[0]), ["t0p0", "t0p1", "t1p0", "t1p1"]);
        assert_eq!(names(&shares[1]), ["t0p2", "t1p2"]);
    }

    #[test]
    fn uniform_deals_a_new_groups_partitions_out_in_turns() {
        let counts = Counts::from([(topic(0), 3), (topic(1), 3)]);
        let shares = run(Assignor::Uniform, &with(&[counts.clone(), counts], &[]));
        assert_eq!(names(&shares[0]), ["t0p0", "t0p2", "t1p1"]);
        assert_eq!(names(&shares[1]), ["t0p1", "t1p0", "t1p2"]);
    }
}
