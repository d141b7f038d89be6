//! A log against the simplest thing that could be one: a list of records.

use proptest::prelude::*;

use super::*;
use crate::types::Timestamp;

#[derive(Debug, Clone)]
enum Op {
    Append {
        times: Vec<i64>,
        bytes: usize,
        count: u64,
    },
    Publish,
    Flush,
    /// Makes everything durable; files that left the log may go.
    Checkpoint,
    /// Ends the process: by a power cut or by a kill.
    Restart {
        cut: bool,
    },
    /// Moves the log start to a part of the log, in 256ths.
    Advance(u8),
    Retain(i64),
    Find(i64),
    Read {
        at: u8,
        max_bytes: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let times = prop::collection::vec(0..1000_i64, 1..4);
    prop_oneof![
        8 => (times, 0..3000_usize, 1..12_u64)
            .prop_map(|(times, bytes, count)| Op::Append { times, bytes, count }),
        4 => Just(Op::Publish),
        4 => Just(Op::Flush),
        3 => Just(Op::Checkpoint),
        2 => any::<bool>().prop_map(|cut| Op::Restart { cut }),
        1 => any::<u8>().prop_map(Op::Advance),
        1 => (0..3000_i64).prop_map(Op::Retain),
        3 => (0..1000_i64).prop_map(Op::Find),
        6 => (any::<u8>(), 0..20_000_usize).prop_map(|(at, max_bytes)| Op::Read { at, max_bytes }),
    ]
}

/// What was applied, as a Raft log would have it.
#[derive(Debug, Clone)]
enum Applied {
    Batch { bytes: Bytes, base: Offset, records: Vec<Seen> },
    Start(Offset),
}

struct World {
    fs: SimFs,
    log: PartitionLog,
    applied: Vec<Applied>,
    published: Offset,
    /// The last checkpoint, and how much of what was applied is in it.
    saved: Option<(PartitionState, usize)>,
    tags: u64,
}

fn topic() -> TopicConfig {
    config(&[("segment.bytes", "65536"), ("segment.ms", "900"), ("retention.ms", "500")])
}

fn tight(fs: &SimFs) -> Arc<Store> {
    let config = Config {
        tail_cache_bytes: 30_000,
        open_files: 2,
        index_interval_bytes: 1024,
        ..Config::default()
    };
    store_with(fs.shared(), config)
}

impl World {
    fn new() -> Self {
        let fs = disk();
        let log = PartitionLog::create(&tight(&fs), partition(0), &topic());
        Self { fs, log, applied: Vec::new(), published: Offset::ZERO, saved: None, tags: 0 }
    }

    fn records(&self) -> Vec<Seen> {
        let start = self.log_start().get();
        let batches = self.applied.iter().filter_map(|applied| match applied {
            Applied::Batch { records, .. } => Some(records),
            Applied::Start(_) => None,
        });
        let visible = start..self.published.get();
        batches.flatten().filter(|record| visible.contains(&record.0)).cloned().collect()
    }

    fn log_start(&self) -> Offset {
        let starts = self.applied.iter().filter_map(|applied| match applied {
            Applied::Start(start) => Some(*start),
            Applied::Batch { .. } => None,
        });
        starts.max().unwrap_or_default()
    }

    fn append(&mut self, times: &[i64], bytes: usize) {
        self.tags += 1;
        let bytes = batch(self.tags, times, bytes);
        let appended = self.log.append(bytes.clone(), 3).unwrap();
        let stored = crate::record::Batch::new(bytes.clone(), appended.base_offset, 3).unwrap();
        let decoded = stored.records(crate::record::DecompressLimit::new(1 << 20)).unwrap();
        let records = decoded.iter().map(|record| {
            let record = record.unwrap();
            let value = record.value.unwrap().to_vec();
            (record.offset.get(), record.timestamp.as_millis(), value)
        });
        let records = records.collect();
        self.applied.push(Applied::Batch { bytes, base: appended.base_offset, records });
    }

    fn publish(&mut self) {
        self.log.publish();
        self.published = self.log.end();
    }

    fn advance(&mut self, start: Offset) {
        self.log.advance_log_start(start);
        self.applied.push(Applied::Start(start.min(self.published)));
        assert_eq!(self.log.log_start(), self.log_start());
    }

    fn checkpoint(&mut self) {
        let state = checkpoint(&mut self.log);
        state.check().unwrap();
        let mut bytes = Vec::new();
        state.encode(&mut bytes);
        assert_eq!(PartitionState::decode(bytes.into()).unwrap(), state);
        self.saved = Some((state, self.applied.len()));
        self.log.take_removed().unlink();
    }

    fn restart(&mut self, cut: bool) {
        self.fs = if cut { self.fs.cut() } else { self.fs.crash() };
        let store = tight(&self.fs);
        let (log, from) = match &self.saved {
            None => (PartitionLog::create(&store, partition(0), &topic()), 0),
            Some((state, from)) => {
                let log = PartitionLog::open(&store, partition(0), &topic(), state);
                (log.unwrap(), *from)
            }
        };
        self.log = log;
        for applied in &self.applied[from..] {
            match applied {
                Applied::Batch { bytes, base, .. } => {
                    let appended = self.log.append(bytes.clone(), 3).unwrap();
                    assert_eq!(appended.base_offset, *base, "an offset changed");
                }
                Applied::Start(start) => {
                    self.log.publish();
                    self.log.advance_log_start(*start);
                }
            }
        }
        self.publish();
    }

    fn find(&self, time: i64) {
        let records = self.records();
        let expected = records.iter().find(|record| record.1 >= time).map(|record| record.0);
        let found =
            self.log.reader().find_timestamp(Offset::ZERO, Timestamp::from_millis(time)).unwrap();
        assert_eq!(found.map(Offset::get), expected);
    }

    fn read(&self, at: u8, max_bytes: usize) {
        let start = self.log_start().get();
        let from = start + (self.published.get() - start) * i64::from(at) / 255;
        let chunk = self.log.reader().read(offset(from), max_bytes).unwrap();
        assert_eq!(chunk.batches.is_empty(), from == self.published.get());
        let total: usize = chunk.batches.iter().map(|batch| batch.total_bytes()).sum();
        assert!(chunk.batches.len() <= 1 || total <= max_bytes);
        let mut next = None;
        for batch in &chunk.batches {
            assert!(next.is_none_or(|next| next == batch.base_offset()), "a gap");
            next = Some(batch.next_offset());
        }
        assert_eq!(chunk.next, next.unwrap_or(offset(from)));
    }

    fn play(&mut self, op: &Op) {
        match op {
            Op::Append { times, bytes, count } => {
                (0..*count).for_each(|_| self.append(times, *bytes));
            }
            Op::Publish => self.publish(),
            Op::Flush => self.log.flush().unwrap(),
            Op::Checkpoint => self.checkpoint(),
            Op::Restart { cut } => self.restart(*cut),
            Op::Advance(part) => {
                let start = self.log_start().get();
                let by = (self.published.get() - start) * i64::from(*part) / 255;
                self.advance(offset(start + by));
            }
            Op::Retain(now) => {
                if let Some(target) = self.log.retention_target(Timestamp::from_millis(*now)) {
                    self.advance(target);
                }
            }
            Op::Find(time) => self.find(*time),
            Op::Read { at, max_bytes } => self.read(*at, *max_bytes),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_log_is_the_list_of_its_records(ops in prop::collection::vec(op(), 1..60)) {
        let mut world = World::new();
        for op in &ops {
            world.play(op);
        }
        let expected = (world.records(), vec![]);
        prop_assert_eq!(read_all(&world.log.reader(), 4000), expected.clone());
        world.log.flush().unwrap();
        prop_assert_eq!(read_all(&world.log.reader(), 4000), expected);
        world.restart(true);
        prop_assert_eq!(read_all(&world.log.reader(), 4000), (world.records(), vec![]));
        world.log.flush().unwrap();
        let in_files: u64 = world.log.state().segments.iter().map(|segment| segment.len).sum();
        prop_assert_eq!(world.log.reader().size_bytes(), in_files);
    }

    #[test]
    fn any_bytes_are_a_state_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = PartitionState::decode(bytes.into());
    }
}
