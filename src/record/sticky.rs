//! Where records without a key go: one partition for a while, then another (KIP-794, simplified).

use std::sync::atomic::{AtomicU64, Ordering};

use rand::{Rng, RngExt};

use crate::types::PartitionId;
use crate::types::limits::STICKY_BATCH_BYTES;

/// Chooses partitions for the null-key records of one topic on one node.
///
/// Records stay on a partition until [`STICKY_BATCH_BYTES`] went there, so that they share batches,
/// then move to a random one. Shared by all requests: one atomic word, no lock.
#[derive(Debug)]
pub struct StickyPartitioner {
    /// Partition in the high half, bytes that went there in the low half; see [`State`].
    word: AtomicU64,
}

/// Random tries to find an available partition before all of them are looked at.
const PROBES: usize = 8;

const NO_PARTITION: u32 = u32::MAX;

/// The word, unpacked. `partition` is [`NO_PARTITION`] before the first choice.
#[derive(Clone, Copy)]
struct State {
    partition: u32,
    bytes: u32,
}

impl State {
    fn unpack(word: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = word.to_be_bytes();
        Self {
            partition: u32::from_be_bytes([a, b, c, d]),
            bytes: u32::from_be_bytes([e, f, g, h]),
        }
    }

    fn pack(self) -> u64 {
        u64::from(self.partition) << 32 | u64::from(self.bytes)
    }

    fn is_full(self) -> bool {
        usize::try_from(self.bytes).is_ok_and(|bytes| bytes >= STICKY_BATCH_BYTES)
    }
}

impl StickyPartitioner {
    /// Makes a partitioner that has not chosen yet.
    pub fn new() -> Self {
        Self { word: AtomicU64::new(State { partition: NO_PARTITION, bytes: 0 }.pack()) }
    }

    /// Chooses the partition, of `count`, for records of `bytes` bytes and counts them as sent
    /// there. `is_available` says whether a partition has a leader; when none has, all count as
    /// available. `random` is asked only when the partition changes.
    pub fn choose(
        &self,
        count: u32,
        bytes: usize,
        is_available: impl Fn(PartitionId) -> bool,
        random: &mut (impl Rng + ?Sized),
    ) -> PartitionId {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        // Nothing else is published with the word, and a lost race only asks again.
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let now = State::unpack(word);
            let current = PartitionId::new(now.partition)
                .filter(|p| p.get() < count && !now.is_full() && is_available(*p));
            let (partition, state) = match current {
                Some(partition) => {
                    let bytes = now.bytes.saturating_add(bytes);
                    (partition, State { bytes, ..now })
                }
                None => {
                    let partition = pick(count, &is_available, random);
                    (partition, State { partition: partition.get(), bytes })
                }
            };
            match self.word.compare_exchange_weak(
                word,
                state.pack(),
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return partition,
                Err(other) => word = other,
            }
        }
    }
}

impl Default for StickyPartitioner {
    fn default() -> Self {
        Self::new()
    }
}

/// Draws uniformly from the available partitions, or from all when none is available.
fn pick(
    count: u32,
    is_available: impl Fn(PartitionId) -> bool,
    random: &mut (impl Rng + ?Sized),
) -> PartitionId {
    let mut draw = |count: u32| random.random_range(0..count.max(1));
    // Drawing until one is available is uniform, and cheap while most are.
    for _ in 0..PROBES {
        if let Some(partition) = PartitionId::new(draw(count)).filter(|p| is_available(*p)) {
            return partition;
        }
    }
    let available = || PartitionId::all(count).filter(|p| is_available(*p));
    let chosen = match u32::try_from(available().count()) {
        Ok(0) | Err(_) => PartitionId::new(draw(count)),
        Ok(number) => available().nth(usize::try_from(draw(number)).unwrap_or(0)),
    };
    chosen.unwrap_or(PartitionId::ZERO)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    fn always(_: PartitionId) -> bool {
        true
    }

    #[test]
    fn records_stay_until_the_batch_is_full_and_then_move_at_random() {
        let sticky = StickyPartitioner::new();
        let mut random = SmallRng::seed_from_u64(1);
        let mut stays = Vec::new();
        let mut last = None;
        for _ in 0..100_000 {
            let partition = sticky.choose(64, 1024, always, &mut random);
            match stays.last_mut() {
                Some(stay) if last == Some(partition) => *stay += 1,
                _ => stays.push(1),
            }
            last = Some(partition);
        }
        // 16 KiB are 16 records; the same partition may be drawn twice in a row.
        assert!(stays.iter().rev().skip(1).all(|stay| stay % 16 == 0), "{stays:?}");
        assert!(stays.len() > 5000, "{}", stays.len());
    }

    #[test]
    fn one_partition_needs_no_choice() {
        let sticky = StickyPartitioner::new();
        let mut random = SmallRng::seed_from_u64(2);
        for _ in 0..100 {
            assert_eq!(sticky.choose(1, 1 << 20, always, &mut random), PartitionId::ZERO);
        }
    }

    #[test]
    fn concurrent_callers_count_together() {
        let sticky = StickyPartitioner::new();
        let mut counts = vec![0_usize; 8];
        let threads = 4;
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..threads)
                .map(|seed| {
                    let sticky = &sticky;
                    scope.spawn(move || {
                        let mut random = SmallRng::seed_from_u64(seed);
                        (0..10_000)
                            .map(|_| sticky.choose(8, 4096, always, &mut random))
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            for handle in handles {
                for partition in handle.join().unwrap() {
                    counts[partition.index()] += 1;
                }
            }
        });
        // Every stay is four records, whoever sent them.
        let open = State::unpack(sticky.word.load(Ordering::Relaxed));
        let unfinished = usize::try_from(open.bytes / 4096).unwrap() % 4;
        counts[usize::try_from(open.partition).unwrap()] -= unfinished;
        assert!(counts.iter().all(|count| count % 4 == 0), "{counts:?}");
    }

    proptest! {
        #[test]
        fn partitions_share_evenly(seed: u64, count in 2_u32..40) {
            let sticky = StickyPartitioner::new();
            let mut random = SmallRng::seed_from_u64(seed);
            let mut sent = vec![0_u32; usize::try_from(count).unwrap()];
            for _ in 0..count * 400 {
                let partition = sticky.choose(count, STICKY_BATCH_BYTES, always, &mut random);
                sent[partition.index()] += 1;
            }
            // 400 expected with a standard deviation of 20: seven of them.
            prop_assert!(sent.iter().all(|n| (260..=540).contains(n)), "{sent:?}");
        }

        #[test]
        fn only_available_partitions_are_chosen(seed: u64, count in 1_u32..400, up: u64) {
            let sticky = StickyPartitioner::new();
            let mut random = SmallRng::seed_from_u64(seed);
            // Few of them are up, so that the probes fail often.
            let is_up = |p: PartitionId| p.get() < 64 && up >> p.get() & 1 == 1;
            let any = PartitionId::all(count).any(is_up);
            for _ in 0..64 {
                let partition = sticky.choose(count, STICKY_BATCH_BYTES, is_up, &mut random);
                prop_assert!(partition.get() < count);
                prop_assert!(!any || is_up(partition));
            }
        }

        #[test]
        fn a_partition_that_went_away_is_left_at_once(seed: u64, count in 2_u32..20) {
            let sticky = StickyPartitioner::new();
            let mut random = SmallRng::seed_from_u64(seed);
            let gone = sticky.choose(count, 1, always, &mut random);
            for _ in 0..20 {
                let partition = sticky.choose(count, 1, |p| p != gone, &mut random);
                prop_assert_ne!(partition, gone);
            }
            let fewer = sticky.choose(1, 1, always, &mut random);
            prop_assert_eq!(fewer, PartitionId::ZERO);
        }
    }
}
