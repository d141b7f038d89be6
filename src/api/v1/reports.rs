//! The reports of an NDJSON produce request between the task that makes them and the answer that
//! carries them.
//!
//! Most clients send everything before they read anything, so reports wait here: 20 bytes for a
//! record that was written or queued, the error's text for one that was not.
//!
//! Invariants:
//! - reports leave in the order in which they came;
//! - what waits is counted in bytes, and the maker asks [`Reports::has_room`] before it appends the
//!   next group of lines, and [`Reports::charge`] what all requests together leave it;
//!   both bounds are passed by the groups that are on their way at most;
//! - what waits stays charged when the maker has ended, until it is taken or given up.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::body::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::api::error::ApiError;
use crate::api::memory::{Charge, Memory};
use crate::api::v1::produce::{AcknowledgedWriter, push_error};
use crate::broker::Acknowledged;
use crate::types::{Offset, PartitionId, Timestamp};

/// Bytes of answer that are made at a time.
const CHUNK_BYTES: usize = 32 * 1024;

/// A queue that uses less than this part of its room, one in so many, is made smaller.
const SPARSE: usize = 4;

/// What became of a line that was not refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Report {
    /// Its record was written.
    Written(Acknowledged),
    /// Its record waits to be written, and nobody waits for that.
    Queued,
}

/// A line's report: partition, offset, timestamp, little endian. Two partitions that do not exist
/// stand for what has no place: the next of the errors, and a record that is queued.
type Packed = [u8; 20];

const ERROR: u32 = u32::MAX;
const QUEUED: u32 = u32::MAX - 1;

/// What of the bytes that are held could be charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Covered {
    /// All of them.
    All,
    /// The reports that wait, but not what their maker holds besides.
    Reports,
    /// Less than the reports that wait.
    Less,
}

/// Both ends' shared queue.
#[derive(Debug)]
pub(super) struct Reports {
    bytes_max: usize,
    /// Short sections without await only.
    queue: Mutex<Queue>,
    /// The maker added something or ended.
    added: Notify,
    /// The answer took something or was dropped.
    taken: Notify,
}

#[derive(Debug)]
struct Queue {
    packed: VecDeque<Packed>,
    errors: VecDeque<Box<[u8]>>,
    error_bytes: usize,
    charge: Charge,
    /// What the maker holds besides.
    maker_bytes: usize,
    /// No report will be added.
    ended: bool,
    /// Nobody takes reports any more.
    abandoned: bool,
}

impl Queue {
    fn bytes(&self) -> usize {
        self.packed.len() * size_of::<Packed>() + self.error_bytes
    }

    /// Returns how many bytes the reports that wait take.
    fn waiting_bytes(&self) -> usize {
        let packed = self.packed.capacity() * size_of::<Packed>();
        packed + self.errors.capacity() * size_of::<Box<[u8]>>() + self.error_bytes
    }

    /// Makes the charge fit what is held, as far as it can grow.
    fn fit(&mut self) -> Covered {
        let waiting = self.waiting_bytes();
        if self.charge.fit(waiting + self.maker_bytes) {
            Covered::All
        } else if self.charge.cover(waiting).is_ok() {
            Covered::Reports
        } else {
            Covered::Less
        }
    }
}

impl Reports {
    /// Makes an empty queue for about `bytes_max` bytes, which `charge` is for.
    pub(super) fn new(bytes_max: usize, charge: Charge) -> Arc<Self> {
        let queue = Queue {
            packed: VecDeque::new(),
            errors: VecDeque::new(),
            error_bytes: 0,
            charge,
            maker_bytes: 0,
            ended: false,
            abandoned: false,
        };
        Arc::new(Self {
            bytes_max,
            queue: Mutex::new(queue),
            added: Notify::new(),
            taken: Notify::new(),
        })
    }

    /// Adds the reports of some lines, in order.
    pub(super) fn push(&self, reports: impl Iterator<Item = Result<Report, ApiError>>) {
        let mut queue = self.queue.lock();
        for report in reports {
            match report {
                Ok(Report::Written(acknowledged)) => queue.packed.push_back(pack(&acknowledged)),
                Ok(Report::Queued) => queue.packed.push_back(pack_raw(QUEUED, 0, 0)),
                Err(error) => {
                    let mut text = Vec::new();
                    push_error(&mut text, &error);
                    queue.error_bytes += text.len();
                    queue.errors.push_back(text.into_boxed_slice());
                    queue.packed.push_back(pack_raw(ERROR, 0, 0));
                }
            }
        }
        drop(queue);
        self.added.notify_one();
    }

    /// Says that no more reports follow.
    pub(super) fn end(&self) {
        let mut queue = self.queue.lock();
        queue.ended = true;
        queue.maker_bytes = 0;
        queue.fit();
        drop(queue);
        self.added.notify_one();
    }

    /// Returns whether more lines may be read.
    pub(super) fn has_room(&self) -> bool {
        self.queue.lock().bytes() < self.bytes_max
    }

    /// Charges what waits here, and what the maker holds besides, if all requests together leave
    /// that much.
    pub(super) fn charge(&self, maker_bytes: usize) -> Covered {
        let mut queue = self.queue.lock();
        queue.maker_bytes = maker_bytes;
        queue.fit()
    }

    /// Waits until all that is held can be charged, and charges it.
    ///
    /// # Cancel safety
    /// Nothing more is charged when the future is dropped.
    pub(super) async fn wait_for(&self, memory: &Memory) {
        let (held, bytes) = {
            let queue = self.queue.lock();
            (queue.charge.steps(), queue.waiting_bytes() + queue.maker_bytes)
        };
        let more = memory.wait(held, bytes).await;
        self.queue.lock().charge.join(more);
    }

    /// Returns whether the client has gone.
    pub(super) fn is_abandoned(&self) -> bool {
        self.queue.lock().abandoned
    }

    /// Waits until the answer took something, or was dropped. May return early.
    pub(super) async fn changed(&self) {
        self.taken.notified().await;
    }
}

/// The answer's end; dropping it tells the maker that the client has gone.
#[derive(Debug)]
pub(super) struct ReportLines(pub(super) Arc<Reports>);

impl Drop for ReportLines {
    fn drop(&mut self) {
        self.0.queue.lock().abandoned = true;
        self.0.taken.notify_one();
    }
}

impl ReportLines {
    /// Waits for reports and returns some of them as lines of JSON; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        loop {
            let lines = {
                let mut queue = self.0.queue.lock();
                let lines = take_lines(&mut queue);
                if lines.is_empty() && queue.ended {
                    return None;
                }
                lines
            };
            if !lines.is_empty() {
                self.0.taken.notify_one();
                return Some(lines.into());
            }
            self.0.added.notified().await;
        }
    }
}

fn take_lines(queue: &mut Queue) -> Vec<u8> {
    let mut lines = Vec::new();
    let mut writer = AcknowledgedWriter::default();
    while lines.len() < CHUNK_BYTES {
        let Some(packed) = queue.packed.pop_front() else {
            break;
        };
        match unpack(&packed) {
            Some(Report::Written(acknowledged)) => writer.push(&mut lines, &acknowledged),
            Some(Report::Queued) => lines.extend_from_slice(b"{}"),
            None => {
                let text = queue.errors.pop_front().unwrap_or_default();
                queue.error_bytes -= text.len();
                lines.extend_from_slice(&text);
            }
        }
        lines.push(b'\n');
    }
    // A burst's memory is given back while it goes out.
    if queue.packed.len() < queue.packed.capacity() / SPARSE {
        let (packed, errors) = (queue.packed.len() * 2, queue.errors.len() * 2);
        queue.packed.shrink_to(packed);
        queue.errors.shrink_to(errors);
        queue.fit();
    }
    lines
}

fn pack(acknowledged: &Acknowledged) -> Packed {
    let Acknowledged { partition, offset, timestamp } = acknowledged;
    pack_raw(partition.get(), offset.get(), timestamp.as_millis())
}

fn pack_raw(partition: u32, offset: i64, timestamp: i64) -> Packed {
    let mut packed = [0; size_of::<Packed>()];
    let (head, tail) = packed.split_at_mut(4);
    head.copy_from_slice(&partition.to_le_bytes());
    let (head, tail) = tail.split_at_mut(8);
    head.copy_from_slice(&offset.to_le_bytes());
    tail.copy_from_slice(&timestamp.to_le_bytes());
    packed
}

/// Returns a report, `None` when it is the next of the errors.
fn unpack(packed: &Packed) -> Option<Report> {
    let (partition, rest) = packed.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*partition) == QUEUED {
        return Some(Report::Queued);
    }
    let (offset, rest) = rest.split_first_chunk::<8>()?;
    let (timestamp, _) = rest.split_first_chunk::<8>()?;
    Some(Report::Written(Acknowledged {
        partition: PartitionId::new(u32::from_le_bytes(*partition))?,
        offset: Offset::new(i64::from_le_bytes(*offset))?,
        timestamp: Timestamp::from_millis(i64::from_le_bytes(*timestamp)),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::AppendError;

    fn written(offset: i64) -> Result<Report, ApiError> {
        Ok(Report::Written(Acknowledged {
            partition: PartitionId::new(3).unwrap(),
            offset: Offset::new(offset).unwrap(),
            timestamp: Timestamp::from_millis(-7),
        }))
    }

    #[tokio::test]
    async fn reports_leave_in_order_and_the_answer_ends() {
        let reports = Reports::new(1000, Memory::new(0).charge());
        reports
            .push([written(1), Err(AppendError::Overloaded.into()), written(i64::MAX)].into_iter());
        reports.push([Ok(Report::Queued)].into_iter());
        reports.end();
        let mut lines = ReportLines(Arc::clone(&reports));
        let text = String::from_utf8(lines.next().await.unwrap().to_vec()).unwrap();
        let text: Vec<_> = text.lines().collect();
        assert_eq!(text[0], r#"{"partition":3,"offset":1,"timestamp":-7}"#);
        assert!(text[1].starts_with(r#"{"error":{"type":"urn:eddyline:error:overloaded""#));
        assert_eq!(text[2], r#"{"partition":3,"offset":9223372036854775807,"timestamp":-7}"#);
        assert_eq!(text[3], "{}");
        assert_eq!(text.len(), 4);
        assert!(lines.next().await.is_none());
    }

    #[tokio::test]
    async fn reports_that_nobody_takes_fill_the_room() {
        let reports = Reports::new(60, Memory::new(0).charge());
        let mut lines = ReportLines(Arc::clone(&reports));
        reports.push([written(0), written(1)].into_iter());
        assert!(reports.has_room());
        reports.push([written(2)].into_iter());
        assert!(!reports.has_room());
        let took = tokio::join!(lines.next(), reports.changed()).0;
        assert!(took.is_some());
        assert!(reports.has_room());
        reports.push([Err(AppendError::Overloaded.into())].into_iter());
        assert!(!reports.has_room(), "an error counts with its text");
    }

    #[tokio::test]
    async fn what_waits_is_charged_until_it_is_taken() {
        const BUDGET: usize = 64 << 20;
        let memory = Memory::new(BUDGET);
        let reports = Reports::new(BUDGET, memory.charge());
        let mut lines = ReportLines(Arc::clone(&reports));
        reports.push((0..100_000).map(written));
        assert_eq!(reports.charge(1 << 20), Covered::All);
        let held = memory.used();
        assert!(held >= (1 << 20) + 100_000 * size_of::<Packed>(), "{held}");
        assert_eq!(reports.charge(BUDGET), Covered::Reports);
        reports.end();
        let ended = memory.used();
        assert!(ended >= 100_000 * size_of::<Packed>(), "the maker has ended, they wait: {ended}");
        while lines.next().await.is_some() {}
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test]
    async fn the_maker_learns_that_the_client_has_gone() {
        let reports = Reports::new(60, Memory::new(0).charge());
        let lines = ReportLines(Arc::clone(&reports));
        assert!(!reports.is_abandoned());
        drop(lines);
        reports.changed().await;
        assert!(reports.is_abandoned());
    }
}
