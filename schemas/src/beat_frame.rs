//! One beat of a cluster.

use serde::{Deserialize, Serialize};

use crate::codec::{Record, RecordSchema, record_schema};
use crate::record_type::BeatFrameType;
use crate::{BeatIndex, Hlc, Tempo, Timestamp, WindowId};

/// One beat. Fields are documented in `beat_frame.avsc`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "documented in the schema, which the registry shows")]
pub struct BeatFrame {
    pub r#type: BeatFrameType,
    pub cluster_id: String,
    pub beat_index: BeatIndex,
    pub downbeat: bool,
    pub phase: Phase,
    pub hlc: Hlc,
    pub deadline_at: Timestamp,
    pub tempo_bpm: Tempo,
    pub window_id: WindowId,
    #[serde(default = "default_bar_length")]
    pub bar_length: u16,
    #[serde(default)]
    pub grace_beats: u16,
    #[serde(default)]
    pub scheduled_at: Timestamp,
    #[serde(default)]
    pub emitted_at: Timestamp,
    #[serde(default)]
    pub anchor_beat: BeatIndex,
    #[serde(default)]
    pub anchor_at: Timestamp,
    #[serde(default)]
    pub term: i64,
    #[serde(default)]
    pub node: String,
    #[serde(default)]
    pub degraded: bool,
    #[serde(default)]
    pub claim_offsets: Vec<i64>,
}

fn default_bar_length() -> u16 {
    8
}

impl BeatFrame {
    /// The boundary of `partition`: the claims' end just before this beat. A partition that the frame
    /// does not know yet had no claims.
    pub fn boundary(&self, partition: i32) -> i64 {
        usize::try_from(partition).ok().and_then(|p| self.claim_offsets.get(p)).copied().unwrap_or(0)
    }

    /// Whether the schedule was anchored anew at this beat because it came more than a period off.
    pub fn re_anchored(&self) -> bool {
        self.anchor_beat == self.beat_index && self.anchor_at != self.scheduled_at
    }
}

impl Record for BeatFrame {
    fn schema() -> &'static RecordSchema {
        record_schema!("../beat_frame.avsc")
    }
}

/// The part of a bar that a beat lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The first quarter of a bar, at least one beat.
    Planning,
    /// What lies between.
    Execution,
    /// The last quarter of a bar, none in bars shorter than 4 beats.
    Review,
}

impl Phase {
    /// The phase of the beat `position` (from 0) of a bar of `bar_length` beats.
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
    fn phases_split_a_bar_in_quarters() {
        use Phase::{Execution, Planning, Review};
        let bar = |length| (0..length).map(|i| Phase::of(i, length)).collect::<Vec<_>>();
        assert_eq!(bar(1), [Planning]);
        assert_eq!(bar(3), [Planning, Execution, Execution]);
        assert_eq!(bar(4), [Planning, Execution, Execution, Review]);
        assert_eq!(bar(8), [Planning, Planning, Execution, Execution, Execution, Execution, Review, Review]);
    }
}
