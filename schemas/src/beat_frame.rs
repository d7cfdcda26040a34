//! The record of one beat.

use serde::{Deserialize, Serialize};

use crate::codec::{Record, RecordSchema, record_schema};
use crate::record_type::BeatFrameType;
use crate::{BeatIndex, Hlc, Tempo, Timestamp, WindowId};

/// One beat of a cluster, as the pulse leader publishes it to `beatframes`.
///
/// All instants are of the leader's wall clock, in milliseconds since the Unix epoch, UTC.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BeatFrame {
    /// The constant `backbeat.beatframe.v1`.
    pub r#type: BeatFrameType,
    /// The cluster's name.
    pub cluster_id: String,
    /// The beat's index, from 0 without gaps or repeats.
    pub beat_index: BeatIndex,
    /// True on the first beat of a bar, which opens a window.
    pub downbeat: bool,
    /// The part of the bar that the beat belongs to.
    pub phase: Phase,
    /// An HLC timestamp (of a hybrid logical clock), which rises strictly from frame to frame.
    pub hlc: Hlc,
    /// The scheduled instant of the next beat.
    pub deadline_at: Timestamp,
    /// The tempo in beats per minute.
    pub tempo_bpm: Tempo,
    /// The id of the window that the beat belongs to.
    pub window_id: WindowId,
    /// The number of beats in this bar.
    #[serde(default = "default_bar_length")]
    pub bar_length: u16,
    /// The number of beats after a window's end in which its claims still count.
    #[serde(default)]
    pub grace_beats: u16,
    /// The scheduled instant of this beat: the previous frame's `deadline_at`.
    #[serde(default)]
    pub scheduled_at: Timestamp,
    /// The instant at which the leader sent this frame.
    #[serde(default)]
    pub emitted_at: Timestamp,
    /// The beat from which deadlines are computed.
    #[serde(default)]
    pub anchor_beat: BeatIndex,
    /// The instant of `anchor_beat`.
    #[serde(default)]
    pub anchor_at: Timestamp,
    /// The leader's term, which rises at every takeover.
    #[serde(default)]
    pub term: i64,
    /// The name of the pulse node that wrote this frame.
    #[serde(default)]
    pub node: String,
    /// True if the leader published this frame without a Raft quorum.
    #[serde(default)]
    pub degraded: bool,
    /// The boundary: for every partition of `statusclaims`, its last stable offset just before this beat.
    #[serde(default)]
    pub claim_offsets: Vec<i64>,
}

fn default_bar_length() -> u16 {
    8
}

impl BeatFrame {
    /// Returns the boundary of `partition`: its last stable offset just before this beat. It is 0 for a partition that
    /// the frame does not list, since partitions added later had no claims at this beat.
    pub fn boundary(&self, partition: i32) -> i64 {
        usize::try_from(partition).ok().and_then(|p| self.claim_offsets.get(p)).copied().unwrap_or(0)
    }

    /// Returns true if the schedule was re-anchored at this beat because the beat was more than one period off its
    /// schedule.
    pub fn re_anchored(&self) -> bool {
        self.anchor_beat == self.beat_index && self.anchor_at != self.scheduled_at
    }
}

impl Record for BeatFrame {
    fn schema() -> &'static RecordSchema {
        record_schema!("../beat_frame.avsc")
    }
}

/// The part of a bar that a beat belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The first quarter of a bar, at least one beat.
    Planning,
    /// The beats between planning and review.
    Execution,
    /// The last quarter of a bar, none in bars shorter than 4 beats.
    Review,
}

impl Phase {
    /// Returns the phase of the beat at `position` (from 0) in a bar of `bar_length` beats.
    pub fn of(position: u16, bar_length: u16) -> Self {
        let quarter = bar_length / 4;
        if position < quarter.max(1) {
            Self::Planning
        } else if position >= bar_length - quarter {
            Self::Review
        } else {
            Self::Execution
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phase_of_each_position_splits_the_bar_by_quarters() {
        use Phase::{Execution, Planning, Review};
        let bar = |length| (0..length).map(|i| Phase::of(i, length)).collect::<Vec<_>>();
        assert_eq!(bar(1), [Planning]);
        assert_eq!(bar(3), [Planning, Execution, Execution]);
        assert_eq!(bar(4), [Planning, Execution, Execution, Review]);
        assert_eq!(bar(8), [Planning, Planning, Execution, Execution, Execution, Execution, Review, Review]);
    }
}
