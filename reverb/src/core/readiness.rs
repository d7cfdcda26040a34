//! How far a member is behind the log, and whether it is ready.

use std::fmt;
use std::time::Duration;

use backbeat_schemas::BeatIndex;

use super::Frames;

/// The time since its start after which a member that lags is ready all the same. It does what it can; and if a flood of
/// claims holds it up, the rollout that mends this must not wait for it.
const CATCH_UP_LIMIT: Duration = Duration::from_mins(1);

/// The progress of one owned partition.
#[derive(Debug, Clone, Copy)]
pub struct PartitionProgress {
    /// The partition.
    pub partition: i32,
    /// The next offset to process; `None` until the start position is known.
    pub position: Option<i64>,
    /// The last stable offset, if it is known.
    pub end: Option<i64>,
    /// The beat up to whose boundary the partition was processed; `None` until the start position is known.
    pub beat: Option<BeatIndex>,
    /// The downbeat of the oldest window that is not done.
    pub oldest_open: Option<BeatIndex>,
}

/// The lag of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lag {
    /// Beats between the newest frame and the slowest partition.
    pub beats: i64,
    /// Claims that were not processed yet; `None` if the end of a partition is not known.
    pub claims: Option<i64>,
    /// The downbeat of the oldest window that is not done, and the beats since then.
    pub oldest_open: Option<(BeatIndex, i64)>,
}

impl Lag {
    /// Returns the lag of a member that has `frames` and owns `partitions`.
    pub fn new(frames: &Frames, partitions: &[PartitionProgress]) -> Self {
        let beats_since = |beat| frames.last().map_or(0, |newest| newest.beat_index.since(beat));
        let slowest = partitions.iter().filter_map(|partition| partition.beat).min();
        let behind = |partition: &PartitionProgress| Some((partition.end? - partition.position?).max(0));
        let oldest_open = partitions.iter().filter_map(|partition| partition.oldest_open).min();
        Self {
            beats: slowest.map_or(0, beats_since),
            claims: partitions.iter().map(behind).sum(),
            oldest_open: oldest_open.map(|from| (from, beats_since(from))),
        }
    }
}

/// The reason why a member is not ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotReady {
    /// It has not joined the group.
    Joining,
    /// The start positions of these partitions are not known.
    StartPositions(Vec<i32>),
    /// The table of frames has not reached the end of the log.
    Frames,
    /// The slowest partition lags by this number of beats, more than a bar, and the member has just started.
    Behind(i64),
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Joining => write!(f, "the group coordinator to admit this member"),
            Self::StartPositions(partitions) => {
                write!(f, "the start positions of partitions {partitions:?} of statusclaims")
            }
            Self::Frames => write!(f, "the table of frames to reach the end of beatframes"),
            Self::Behind(beats) => {
                write!(f, "the aggregators to catch up: the slowest partition lags by {beats} beats")
            }
        }
    }
}

/// Returns the reason why a member is not ready, or `None` if it is. `uptime` is the time since its start.
pub fn not_ready(
    has_joined: bool,
    partitions: &[PartitionProgress],
    frames: &Frames,
    frames_are_current: bool,
    uptime: Duration,
) -> Option<NotReady> {
    let lag = Lag::new(frames, partitions).beats;
    // A lag within one bar is normal: its windows close with the next downbeat.
    let normal = frames.last().map_or(0, |newest| i64::from(newest.bar_length));
    let unknown = partitions.iter().filter(|partition| partition.beat.is_none()).map(|partition| partition.partition);
    let unknown: Vec<i32> = unknown.collect();
    if !has_joined {
        Some(NotReady::Joining)
    } else if !unknown.is_empty() {
        Some(NotReady::StartPositions(unknown))
    } else if !partitions.is_empty() && !frames_are_current {
        Some(NotReady::Frames)
    } else if lag > normal && uptime < CATCH_UP_LIMIT {
        Some(NotReady::Behind(lag))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{beat, frames};

    fn progress(partition: i32, at: i64) -> PartitionProgress {
        PartitionProgress {
            partition,
            position: Some(at * 10),
            end: Some(55),
            beat: Some(beat(at)),
            oldest_open: Some(beat(at / 2 * 2)),
        }
    }

    #[test]
    fn lag_is_that_of_the_slowest_partition_and_the_claims_of_all() {
        let table = frames(2, 0, &[0, 10, 20, 30, 40, 50]);
        let lag = Lag::new(&table, &[progress(0, 5), progress(1, 3)]);
        assert_eq!(lag, Lag { beats: 2, claims: Some(5 + 25), oldest_open: Some((beat(2), 3)) });
        let unknown = PartitionProgress { end: None, ..progress(1, 3) };
        assert_eq!(Lag::new(&table, &[progress(0, 5), unknown]).claims, None);
        assert_eq!(Lag::new(&table, &[]), Lag { beats: 0, claims: Some(0), oldest_open: None });
    }

    #[test]
    fn member_is_ready_when_it_has_joined_and_is_within_a_bar_of_the_newest_frame() {
        let table = frames(2, 0, &[0, 10, 20, 30, 40, 50]);
        let after = |uptime, joined, partitions: &[PartitionProgress], current| {
            not_ready(joined, partitions, &table, current, uptime)
        };
        let reason =
            |joined, partitions: &[PartitionProgress], current| after(Duration::ZERO, joined, partitions, current);
        assert_eq!(reason(false, &[], true), Some(NotReady::Joining));
        assert_eq!(reason(true, &[], false), None, "it needs no frames without partitions");
        let unknown = PartitionProgress { beat: None, ..progress(3, 5) };
        assert_eq!(reason(true, &[progress(0, 5), unknown], true), Some(NotReady::StartPositions(vec![3])));
        assert_eq!(reason(true, &[progress(0, 5)], false), Some(NotReady::Frames));
        assert_eq!(reason(true, &[progress(0, 2)], true), Some(NotReady::Behind(3)));
        assert_eq!(reason(true, &[progress(0, 3)], true), None);
        assert_eq!(after(CATCH_UP_LIMIT, true, &[progress(0, 2)], true), None, "it has had its time");
        assert_eq!(after(CATCH_UP_LIMIT, true, &[progress(0, 2)], false), Some(NotReady::Frames));
    }
}
