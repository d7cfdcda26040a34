//! The computation of reports, without I/O, clock or randomness.

mod claim;
mod commit_tracker;
mod fetch_start;
mod frames;
mod merge;
mod murmur2;
mod partition;
mod partition_aggregator;
mod report;
mod slos;
mod stall;
mod start_position;
mod tally;
#[cfg(test)]
mod testing;

pub use claim::{Claim, DecodedClaim, RawRecord};
pub use commit_tracker::CommitTracker;
pub use fetch_start::FetchStart;
pub use frames::{FrameError, Frames, Window};
pub use merge::{Completion, Merge, verdict};
pub use murmur2::partition_of;
pub use partition::{OutboxRecord, Partition, RESEND_AFTER};
pub use partition_aggregator::{ClosedWindow, Output, PartitionAggregator};
pub use report::bar_report;
pub use slos::{Slo, Slos};
pub use stall::{STALLED_AFTER, StallDetector};
pub use start_position::CommittedOffset;
pub use tally::{Counts, Tally};

/// The version of the rules by which claims become reports. Partials of different versions are never added up.
pub const LOGIC: i32 = 1;
