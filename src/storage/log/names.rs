//! File names: `<partitions>/<topic uuid>/<partition>/<20 digits>[.<generation>].<kind>`.

use std::path::{Path, PathBuf};

use crate::types::{Offset, PartitionId, TopicId, TopicPartition};

/// What a file beside or of a segment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FileKind {
    /// Record batches.
    Log,
    /// Kafka's sparse offset index.
    OffsetIndex,
    /// Kafka's time index.
    TimeIndex,
}

impl FileKind {
    /// All kinds; the log comes last, so that who removes in this order leaves no lone index.
    pub(crate) const ALL: [Self; 3] = [Self::OffsetIndex, Self::TimeIndex, Self::Log];

    const fn extension(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::OffsetIndex => "index",
            Self::TimeIndex => "timeindex",
        }
    }
}

/// What tells a partition's segments apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SegmentName {
    /// Offset of the first record that the segment may hold.
    pub(crate) base: Offset,
    /// 0 as first written, counted up each time that the segment is rewritten.
    pub(crate) generation: u32,
}

impl SegmentName {
    /// Returns the name of one of the segment's files.
    pub(crate) fn file_name(self, kind: FileKind) -> String {
        let (base, extension) = (self.base.get(), kind.extension());
        match self.generation {
            0 => format!("{base:020}.{extension}"),
            generation => format!("{base:020}.{generation}.{extension}"),
        }
    }

    /// Reads a file name; `None` when [`SegmentName::file_name`] does not make such a name.
    pub(crate) fn parse(name: &str) -> Option<(Self, FileKind)> {
        let (stem, extension) = name.rsplit_once('.')?;
        let kind = FileKind::ALL.into_iter().find(|kind| kind.extension() == extension)?;
        let (base, generation) = match stem.split_once('.') {
            None => (stem, 0),
            Some((base, generation)) => (base, generation.parse().ok()?),
        };
        let segment = Self { base: Offset::new(base.parse().ok()?)?, generation };
        (segment.file_name(kind) == name).then_some((segment, kind))
    }
}

/// Returns the directory of a topic's partitions.
pub(crate) fn topic_dir(partitions: &Path, topic: TopicId) -> PathBuf {
    partitions.join(topic.to_string())
}

/// Returns the directory of a partition's segments.
pub(crate) fn partition_dir(partitions: &Path, id: TopicPartition) -> PathBuf {
    topic_dir(partitions, id.topic).join(id.partition.to_string())
}

/// Reads the name of a partition's directory.
pub(crate) fn parse_partition(name: &str) -> Option<PartitionId> {
    let id = PartitionId::new(name.parse().ok()?)?;
    (id.to_string() == name).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_nothing_else_is() {
        for (base, generation) in [(0, 0), (17, 3), (i64::MAX, u32::MAX)] {
            let name = SegmentName { base: Offset::new(base).unwrap(), generation };
            for kind in FileKind::ALL {
                assert_eq!(SegmentName::parse(&name.file_name(kind)), Some((name, kind)));
            }
        }
        let zero = SegmentName { base: Offset::ZERO, generation: 0 };
        assert_eq!(zero.file_name(FileKind::Log), "00000000000000000000.log");
        for wrong in ["0.log", "00000000000000000000", "00000000000000000000.0.log", ".log"] {
            assert_eq!(SegmentName::parse(wrong), None);
        }
        assert_eq!(SegmentName::parse("-0000000000000000001.log"), None);
        assert_eq!(SegmentName::parse("00000000000000000000.01.log"), None);
    }
}
