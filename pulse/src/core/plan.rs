//! The plan: the tempo and bar length that operators asked for and Raft has committed, and when they take effect.

use backbeat_schemas::{BeatFrame, BeatIndex, Tempo};
use serde::{Deserialize, Serialize};

/// The change that was committed last. Raft replicates it, so that every leader carries it out.
///
/// The plan takes effect at the first downbeat at or after `from`. Every downbeat changes the tempo by at most 10 %
/// towards `tempo`: so a distant tempo is reached by a ramp, and a plan that a new leader finds overdue causes no jump.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The first beat at which the plan may take effect.
    pub from: BeatIndex,
    /// The tempo to reach.
    pub tempo: Tempo,
    /// Beats in a bar.
    pub bar_length: u16,
}

impl Plan {
    /// Returns true if the plan is not yet carried out in full at `last`, the newest frame.
    pub fn is_pending(&self, last: &BeatFrame) -> bool {
        (self.tempo, self.bar_length) != (last.tempo_bpm, last.bar_length) || self.from > last.beat_index
    }
}

/// An operator's request to change the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanRequest {
    /// A change of the tempo, the bar length or both, from the next downbeat.
    Change {
        /// The new tempo; `None` keeps the current one.
        tempo: Option<Tempo>,
        /// True if the tempo may be more than 10 % away; it is then reached in steps of 10 % a bar.
        ramp: bool,
        /// The new bar length, in beats; `None` keeps the current one.
        bar_length: Option<u16>,
    },
    /// A cancellation of the pending change: the tempo and bar length of the newest frame stay.
    Cancel,
}

impl PlanRequest {
    /// Checks the tempo that is asked for.
    pub(super) fn check_bounds(&self, bounds: TempoBounds) -> Result<(), Refusal> {
        match *self {
            Self::Change { tempo: Some(tempo), .. } if !(bounds.min..=bounds.max).contains(&tempo) => {
                Err(Refusal::OutOfBounds { tempo, bounds })
            }
            _ => Ok(()),
        }
    }

    /// Returns the plan that carries the request out, while `pending` is not carried out yet. `last` is the newest frame, and
    /// `from` the next downbeat.
    pub(super) fn plan(self, pending: Option<Plan>, last: &BeatFrame, from: BeatIndex) -> Result<Plan, Refusal> {
        let current = last.tempo_bpm;
        match (self, pending) {
            (Self::Cancel, None) => Err(Refusal::NothingPending),
            (Self::Cancel, Some(_)) => Ok(Plan { from: last.beat_index, tempo: current, bar_length: last.bar_length }),
            (Self::Change { .. }, Some(plan)) => Err(Refusal::Pending { plan, current }),
            (Self::Change { tempo, ramp, bar_length }, None) => {
                let tempo = tempo.unwrap_or(current);
                let bar_length = bar_length.unwrap_or(last.bar_length);
                if !ramp && !current.allowed_next().contains(&tempo) {
                    return Err(Refusal::TooFar { tempo, current });
                }
                if !(last.grace_beats.max(1)..=MAX_BAR_LENGTH).contains(&bar_length) {
                    return Err(Refusal::BarLength(bar_length, last.grace_beats));
                }
                Ok(Plan { from, tempo, bar_length })
            }
        }
    }
}

/// The tempos that a cluster allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TempoBounds {
    /// The slowest.
    pub min: Tempo,
    /// The fastest.
    pub max: Tempo,
}

/// The longest bar, in beats.
pub const MAX_BAR_LENGTH: u16 = 1_000;

/// The reason why a request is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The tempo is out of bounds.
    #[error("tempo {tempo} is out of bounds; must be {} to {} BPM", bounds.min.bpm(), bounds.max.bpm())]
    OutOfBounds {
        /// The requested tempo.
        tempo: Tempo,
        /// The allowed tempos.
        bounds: TempoBounds,
    },
    /// The tempo is more than 10 % from the current one.
    #[error(
        "tempo {tempo} is more than 10 % from the current {current}; must be {} to {} BPM without a ramp \
         (\"ramp\": true), which changes it by 10 % a bar",
        current.allowed_next().start().bpm(), current.allowed_next().end().bpm()
    )]
    TooFar {
        /// The requested tempo.
        tempo: Tempo,
        /// The tempo in force.
        current: Tempo,
    },
    /// The requested bar length is out of range, or shorter than the cluster's grace; both in beats.
    #[error("bar_length {0} is out of range; must be 1 to 1000 beats, and no less than the grace of {1} beats")]
    BarLength(u16, u16),
    /// An earlier change is not yet carried out.
    #[error("a change to {} in bars of {}, from beat {}, is pending, now at {current}; wait for it or cancel it", plan.tempo, plan.bar_length, plan.from)]
    Pending {
        /// The earlier change.
        plan: Plan,
        /// The tempo in force.
        current: Tempo,
    },
    /// There is no pending change to cancel.
    #[error("no change is pending")]
    NothingPending,
    /// This node cannot change the plan at the moment.
    #[error("{0}")]
    Unavailable(&'static str),
}
