//! What reverb computes, without I/O, clock or randomness.

mod beginning;
mod claim;
mod fold;
mod frames;
mod merge;
mod murmur2;
mod objectives;
mod partition;
mod progress;
mod report;
mod tally;
#[cfg(test)]
mod testing;

pub use beginning::Committed;
pub use claim::{Claim, RawRecord, Reading};
pub use fold::{Closed, Fold, Output};
pub use frames::{FrameError, Frames, Window};
pub use merge::{Merge, Ready, verdict};
pub use murmur2::partition_of;
pub use objectives::{Objective, Objectives};
pub use partition::{Message, Partition, RESEND_AFTER};
pub use progress::Progress;
pub use report::bar_report;
pub use tally::{Counts, Tally};

/// The version of the rules by which claims become reports. Partials of another version are never
/// mixed with ours.
pub const LOGIC: i32 = 1;
