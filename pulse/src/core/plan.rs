//! What the operator wants and the nodes have agreed on: the tempo, and when it is in force.

use backbeat_schemas::{BeatFrame, BeatIndex, Tempo};
use serde::{Deserialize, Serialize};

/// The change that was agreed on last. Raft replicates it, so that every leader carries it out.
///
/// In force from the first downbeat at or after `from`; every downbeat changes the tempo by at most
/// 10 % towards `tempo`, so a distant tempo is a ramp, and a plan that a new leader finds overdue is
/// no leap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The first beat that it may hold for.
    pub from: BeatIndex,
    /// The tempo to reach.
    pub tempo: Tempo,
    /// Beats in a bar.
    pub bar_length: u16,
}

impl Plan {
    /// Whether `last`, the newest frame, does not show all of it yet.
    pub fn is_pending(&self, last: &BeatFrame) -> bool {
        (self.tempo, self.bar_length) != (last.tempo_bpm, last.bar_length) || self.from > last.beat_index
    }
}

/// What an operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Another tempo or bar length, from the next downbeat.
    Change {
        /// `None`: as it is.
        tempo: Option<Tempo>,
        /// In steps of 10 % a bar, if the tempo is further away.
        ramp: bool,
        /// `None`: as it is.
        bar_length: Option<u16>,
    },
    /// No more changes than those that have been made.
    Cancel,
}

/// The tempi that a cluster allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The slowest.
    pub min: Tempo,
    /// The fastest.
    pub max: Tempo,
}

/// The longest bar, in beats.
pub const MAX_BAR_LENGTH: u16 = 1_000;

/// Why a request is not executed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// Beyond the bounds.
    #[error("tempo {tempo} is out of bounds; allowed are {} to {} BPM", bounds.min.bpm(), bounds.max.bpm())]
    OutOfBounds {
        /// What was asked for.
        tempo: Tempo,
        /// What is allowed.
        bounds: Bounds,
    },
    /// More than 10 % at once.
    #[error(
        "tempo {tempo} is more than 10 % from the current {current}; allowed are {} to {} BPM, or a ramp (\"ramp\": true) \
         that changes it by 10 % a bar", current.allowed_next().start().bpm(), current.allowed_next().end().bpm()
    )]
    TooFar {
        /// What was asked for.
        tempo: Tempo,
        /// The tempo in force.
        current: Tempo,
    },
    /// A bar that cannot be.
    #[error("bar_length {0} is out of range; allowed are 1 to 1000 beats, and no less than the grace of {1} beats")]
    BarLength(u16, u16),
    /// An earlier change is not yet carried out.
    #[error("a change to {} in bars of {}, from beat {}, is under way, now at {current}; wait for it or cancel it", plan.tempo, plan.bar_length, plan.from)]
    Pending {
        /// The earlier change.
        plan: Plan,
        /// The tempo in force.
        current: Tempo,
    },
    /// Nothing to cancel.
    #[error("no change is under way")]
    NothingPending,
    /// This node cannot change anything now.
    #[error("{0}")]
    NotNow(&'static str),
}
