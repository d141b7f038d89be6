//! Files: the write-ahead log, partitions' segments, checkpoints, and the seam to the disk.

pub mod ballast;
pub mod checkpoint;
pub mod fs;
pub mod log;
pub mod segment_tools;
pub mod wal;
