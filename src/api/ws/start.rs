//! Where a subscription starts.

use std::sync::Arc;

use crate::api::State;
use crate::api::error::{ApiError, Code};
use crate::api::ws::replies::{Reset, ResetReason, Started};
use crate::api::ws::requests::{At, From, Offsets};
use crate::broker::{OnDamage, Search, Start, Topic};
use crate::types::{Offset, PartitionId, Timestamp};

/// What `from` asks for.
#[derive(Debug)]
enum Origin {
    Start(Start),
    Tail(u64),
    /// Partitions that are not named start at their log start.
    Offsets(Offsets, Vec<(u32, i32)>),
    /// Where a group is, without joining it; where it has committed nothing, the log start.
    Group(String),
}

fn refuse(pointer: &str, detail: &str) -> ApiError {
    ApiError::at(Code::InvalidBody, pointer, detail)
}

impl Origin {
    fn of(from: Option<From>) -> Result<Self, ApiError> {
        let Some(from) = from else { return Ok(Self::Start(Start::Latest)) };
        let epochs: Option<Vec<_>> = from.epoch.map(|epoch| epoch.into_iter().collect());
        match (from.offsets, from.at, from.tail, from.ts, epochs, from.group) {
            (Some(offsets), None, None, None, epochs, None) => {
                Ok(Self::Offsets(offsets, epochs.unwrap_or_default()))
            }
            (None, Some(At::Timestamp), None, Some(ts), None, None) => {
                Ok(Self::Start(Start::Timestamp(Timestamp::from_millis(ts))))
            }
            (None, Some(At::Timestamp), ..) => Err(refuse("/from/ts", "expected milliseconds")),
            (None, Some(At::Earliest), None, None, None, None) => Ok(Self::Start(Start::Earliest)),
            (None, Some(At::Latest), None, None, None, None) => Ok(Self::Start(Start::Latest)),
            (None, None, Some(tail), None, None, None) => Ok(Self::Tail(tail)),
            (None, None, None, None, None, Some(group)) => Ok(Self::Group(group)),
            _ => Err(refuse("/from", "expected one of 'offsets', 'at', 'tail' and 'group'")),
        }
    }
}

/// Finds the partitions that a subscription names, all when it names none.
///
/// # Errors
/// `partition_not_found`, `invalid_body` for an empty list.
pub(super) fn partitions_of(
    topic: &Topic,
    named: Option<Vec<u32>>,
) -> Result<Vec<PartitionId>, ApiError> {
    let Some(mut named) = named else {
        return Ok(PartitionId::all(topic.summary().partitions).collect());
    };
    named.sort_unstable();
    named.dedup();
    if named.is_empty() {
        return Err(refuse("/partitions", "expected at least one, or none of this member"));
    }
    named.into_iter().map(|number| partition_of(topic, number)).collect()
}

/// Finds one partition.
///
/// # Errors
/// `partition_not_found`.
pub(super) fn partition_of(topic: &Topic, number: u32) -> Result<PartitionId, ApiError> {
    topic.partition(number).ok_or_else(|| {
        let detail = format!("topic '{}' has no partition {number}", topic.summary().name);
        ApiError::new(Code::PartitionNotFound, detail)
    })
}

/// Finds where each of `partitions` starts, which are ascending.
///
/// # Errors
/// `invalid_body`, `partition_not_found`, and those of the broker.
pub(super) async fn find(
    state: &State,
    topic: &Arc<Topic>,
    partitions: &[PartitionId],
    from: Option<From>,
) -> Result<Started, ApiError> {
    let mut started = Started::default();
    let origin = match Origin::of(from)? {
        Origin::Group(group) => {
            let mut offsets = committed(state, topic, &group).await?;
            offsets.retain(|number, _| partitions.iter().any(|each| each.get() == *number));
            Origin::Offsets(offsets, Vec::new())
        }
        origin => origin,
    };
    let asked: Vec<(PartitionId, Offset)> = match &origin {
        Origin::Start(start) => {
            let search = Search { start: *start, on_damage: OnDamage::Skip };
            let broker = &state.broker;
            broker.start_offsets(&state.principal, topic, partitions, search).await?
        }
        Origin::Tail(_) | Origin::Group(_) => {
            partitions.iter().map(|partition| (*partition, Offset::ZERO)).collect()
        }
        Origin::Offsets(offsets, epochs) => {
            let named = offsets.keys().chain(epochs.iter().map(|(partition, _)| partition));
            for number in named {
                let partition = partition_of(topic, *number)?;
                if !partitions.contains(&partition) {
                    let detail = "the subscription has no such partition";
                    return Err(refuse(&format!("/from/offsets/{number}"), detail));
                }
            }
            let offset = |partition: &PartitionId| {
                let offset = offsets.get(&partition.get()).copied().unwrap_or(Offset::ZERO);
                (*partition, offset)
            };
            partitions.iter().map(offset).collect()
        }
    };
    for (partition, asked) in asked {
        let (log_start, log_end) = state.broker.bounds(&state.principal, topic, partition).await?;
        let epoch = state.broker.leader_epoch(topic, partition)?;
        let known_end = match origin.known_epoch(partition).filter(|known| *known < epoch) {
            Some(known) => {
                state.broker.end_of_epoch(&state.principal, topic, partition, known).await?
            }
            None => log_end,
        };
        let bounds = Bounds { log_start, log_end, epoch, known_end };
        let (offset, reset) = origin.resolve(partition, asked, bounds);
        started.reset.extend(reset.map(|reason| Reset { partition, asked, reason }));
        started.start.push((partition, offset));
        started.log_ends.push((partition, log_end));
        started.epochs.push((partition, epoch));
    }
    Ok(started)
}

/// Finds what a group has committed of a topic.
async fn committed(state: &State, topic: &Topic, group: &str) -> Result<Offsets, ApiError> {
    let all = state.broker.group_offsets(&state.principal, group).await?;
    let of_topic = all.into_iter().filter(|each| each.topic_id == topic.summary().id);
    Ok(of_topic.map(|each| (each.partition.get(), each.offset)).collect())
}

/// A partition as it is.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    log_start: Offset,
    log_end: Offset,
    epoch: i32,
    /// Where the records end that were written up to the epoch that the client knows.
    known_end: Offset,
}

impl Origin {
    /// Returns the leader epoch at which the client has read a partition, if it says so.
    fn known_epoch(&self, partition: PartitionId) -> Option<i32> {
        let Self::Offsets(_, epochs) = self else { return None };
        epochs.iter().find(|(number, _)| *number == partition.get()).map(|(_, known)| *known)
    }

    /// Returns where a partition really starts, and why not where it was asked to.
    fn resolve(
        &self,
        partition: PartitionId,
        asked: Offset,
        bounds: Bounds,
    ) -> (Offset, Option<ResetReason>) {
        let Bounds { log_start, log_end, epoch, known_end } = bounds;
        match self {
            Self::Start(_) | Self::Group(_) => (asked.clamp(log_start, log_end), None),
            Self::Tail(count) => {
                let count = i64::try_from(*count).unwrap_or(i64::MAX);
                let offset = Offset::new(log_end.get().saturating_sub(count).max(0));
                (offset.unwrap_or(log_start).max(log_start), None)
            }
            Self::Offsets(offsets, _) => {
                // Epochs only grow: a client that has seen a later one read what is lost by now.
                let is_replaced = self.known_epoch(partition).is_some_and(|known| known > epoch);
                let reason = if is_replaced || asked > log_end {
                    Some(ResetReason::Truncated)
                } else if asked > known_end.max(log_start) {
                    // What it has read last is of an epoch that it does not know: others were
                    // written in the place of what it read.
                    return (known_end.max(log_start), Some(ResetReason::Truncated));
                } else if asked < log_start && offsets.contains_key(&partition.get()) {
                    Some(ResetReason::Retention)
                } else {
                    None
                };
                (asked.clamp(log_start, log_end), reason)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset(raw: i64) -> Offset {
        Offset::new(raw).unwrap()
    }

    fn origin(json: &str) -> Result<Origin, ApiError> {
        Origin::of(Some(serde_json::from_str(json).unwrap()))
    }

    fn resolved(json: &str) -> (i64, Option<ResetReason>) {
        let origin = origin(json).unwrap();
        let asked = match &origin {
            Origin::Offsets(offsets, _) => offsets.get(&0).copied().unwrap_or(Offset::ZERO),
            _ => Offset::ZERO,
        };
        let known_end = if origin.known_epoch(PartitionId::ZERO) == Some(4) { 13 } else { 20 };
        let (log_start, log_end, known_end) = (offset(10), offset(20), offset(known_end));
        let bounds = Bounds { log_start, log_end, epoch: 5, known_end };
        let (offset, reason) = origin.resolve(PartitionId::ZERO, asked, bounds);
        (offset.get(), reason)
    }

    #[test]
    fn a_start_that_cannot_be_kept_is_told() {
        use ResetReason::{Retention, Truncated};
        assert_eq!(resolved(r#"{"offsets":{"0":15}}"#), (15, None));
        assert_eq!(resolved(r#"{"offsets":{"0":20}}"#), (20, None));
        assert_eq!(resolved(r#"{"offsets":{"0":9}}"#), (10, Some(Retention)));
        assert_eq!(resolved(r#"{"offsets":{"0":21}}"#), (20, Some(Truncated)));
        assert_eq!(resolved(r#"{"offsets":{"0":15},"epoch":{"0":5}}"#), (15, None));
        assert_eq!(resolved(r#"{"offsets":{"0":15},"epoch":{"0":6}}"#), (15, Some(Truncated)));
        assert_eq!(resolved(r#"{"offsets":{"0":13},"epoch":{"0":4}}"#), (13, None));
        assert_eq!(resolved(r#"{"offsets":{"0":14},"epoch":{"0":4}}"#), (13, Some(Truncated)));
        assert_eq!(resolved(r#"{"offsets":{"0":9},"epoch":{"0":4}}"#), (10, Some(Retention)));
        // A partition that the client has never seen starts at its log start: no loss.
        assert_eq!(resolved(r#"{"offsets":{}}"#), (10, None));
        assert_eq!(resolved(r#"{"tail":3}"#), (17, None));
        assert_eq!(resolved(r#"{"tail":30}"#), (10, None));
        assert_eq!(resolved(r#"{"tail":0}"#), (20, None));
    }

    #[test]
    fn a_start_has_one_form() {
        assert!(matches!(Origin::of(None), Ok(Origin::Start(Start::Latest))));
        for bad in [
            "{}",
            r#"{"offsets":{},"tail":1}"#,
            r#"{"at":"timestamp"}"#,
            r#"{"at":"latest","ts":1}"#,
            r#"{"epoch":{}}"#,
            r#"{"tail":1,"epoch":{"0":1}}"#,
        ] {
            assert_eq!(origin(bad).unwrap_err().code(), Code::InvalidBody, "{bad}");
        }
    }
}
