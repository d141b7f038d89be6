//! When a segment is sealed and which segments are too old: Kafka's rules, decided purely.
//!
//! (`LogSegment.shouldRoll`, `UnifiedLog.deleteRetentionMsBreachedSegments` and its neighbours.)

use crate::record::Batch;
use crate::storage::log::state::SegmentState;
use crate::types::{Offset, Timestamp, TopicConfig};

/// Relative offsets in an index have 31 bits.
const SEGMENT_OFFSETS_MAX: u64 = i32::MAX as u64;

/// What a topic's configuration says about segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rules {
    segment_bytes: u64,
    segment_ms: i64,
    retention_ms: Option<i64>,
    retention_bytes: Option<u64>,
}

impl Rules {
    pub(super) fn of(config: &TopicConfig) -> Self {
        Self {
            segment_bytes: config.segment_bytes(),
            segment_ms: config.segment_ms(),
            retention_ms: config.retention_ms(),
            retention_bytes: config.retention_bytes(),
        }
    }

    /// Returns whether `active` has to be sealed before `batch` is appended.
    ///
    /// Age is record time, from the first batch of the segment to the new one, so that replicas and
    /// replays come to the same answer; batches without a timestamp do not make a segment old.
    pub(super) fn rolls(&self, active: &SegmentState, batch: &Batch) -> bool {
        if active.len == 0 {
            return false;
        }
        let bytes = u64::try_from(batch.total_bytes()).unwrap_or(u64::MAX);
        let (first, newest) = (active.first_timestamp, batch.max_timestamp());
        let has_timestamps = first != Timestamp::NONE && newest != Timestamp::NONE;
        active.len.saturating_add(bytes) > self.segment_bytes
            || (has_timestamps && newest.millis_since(first) > self.segment_ms)
            || batch.last_offset().records_since(active.base) > SEGMENT_OFFSETS_MAX
    }

    /// Returns the offset before which `segments`, oldest first, are too old or too much, `None`
    /// when none is.
    ///
    /// By time a segment goes when its newest record is older than `retention.ms`; by size when the
    /// log has at least `retention.bytes` without it. The first that stays ends the pass; one
    /// without any timestamp has no age of its own and goes with the next that goes by time.
    pub(super) fn expired(&self, segments: &[SegmentState], now: Timestamp) -> Option<Offset> {
        let mut target = None;
        let mut total: u64 = segments.iter().map(|segment| segment.len).sum();
        for segment in segments.iter().filter(|segment| segment.len > 0) {
            let newest = segment.max_timestamp;
            let is_old = self.retention_ms.is_some_and(|retention_ms| {
                newest != Timestamp::NONE && now.millis_since(newest) > retention_ms
            });
            let is_excess = self.retention_bytes.is_some_and(|retention_bytes| {
                total.checked_sub(segment.len).is_some_and(|rest| rest >= retention_bytes)
            });
            total = total.saturating_sub(segment.len);
            if is_old || is_excess {
                target = Some(segment.next_offset);
            } else if newest != Timestamp::NONE {
                break;
            }
        }
        target
    }
}
