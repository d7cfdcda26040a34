//! The computation of reports, without I/O, clock or randomness.

mod claim;
mod commit_tracker;
mod corrector;
mod fetch_start;
mod frames;
mod lease;
mod merge;
mod merge_session;
mod murmur2;
mod overdue;
mod partition;
mod partition_aggregator;
mod readiness;
mod recent;
mod report;
mod roster;
mod slos;
mod stall;
mod start_position;
mod tally;
mod task_facts;
#[cfg(test)]
mod testing;

pub use claim::{Claim, CutValue, DecodedClaim, RawRecord};
pub use commit_tracker::CommitTracker;
pub use corrector::Corrector;
pub use fetch_start::FetchStart;
pub use frames::{FrameError, Frames, Window, is_retained};
pub use merge::{Completion, Merge, report_logic, verdict};
pub use merge_session::{MAX_RESCUE_TIMEOUTS, MAX_RESCUED_CLAIMS, MergeCommand, MergeSession, Rescue};
pub use murmur2::partition_of;
pub use partition::{OutboxRecord, Partition, RESEND_AFTER, share};
pub use partition_aggregator::{ClosedWindow, Output, PartitionAggregator};
pub use readiness::{Lag, NotReady, PartitionProgress, not_ready};
pub use report::bar_report;
pub use roster::MAX_ROSTER_BYTES;
pub use slos::Slos;
pub use stall::{STALLED_AFTER, StallDetector};
pub use start_position::CommittedOffset;
pub use tally::{MAX_NAME_BYTES, MAX_TASKS, MAX_TASKS_PER_AGENT, OpenTasks, Tally};
pub use task_facts::TaskFacts;

/// The version of the rules by which claims become reports. Version 2 has rosters and their counts. Otherwise the versions agree:
/// shares of both are added up to a report of the lower one.
pub const LOGIC: i32 = 2;
/// The first version of the rules that has rosters and their counts.
pub const LOGIC_WITH_ROSTERS: i32 = 2;
