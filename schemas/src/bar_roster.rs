//! Who needs attention in one window, by name.

use serde::{Deserialize, Serialize};

use crate::codec::{Record, RecordSchema, record_schema};
use crate::record_type::BarRosterType;
use crate::{BeatIndex, State, Timestamp, WindowId, json};

/// The roster of one window and one partition: a pure function of the claims of this window and of the one before
/// (docs/reports.md, "Rosters"). A partition in which nobody needs attention has none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BarRoster {
    /// The constant `backbeat.barroster.v1`.
    pub r#type: BarRosterType,
    /// The window's id.
    pub window_id: WindowId,
    /// The window's downbeat.
    pub from_beat: BeatIndex,
    /// The cluster's name.
    pub cluster_id: String,
    /// The scheduled instant of the next downbeat; also the record's timestamp.
    pub closed_at: Timestamp,
    /// The partition of `statusclaims`.
    pub partition: i32,
    /// The version of the rules by which the roster was computed.
    pub logic: i32,
    /// The number of agents with an open task in the window before, and no claim in this one.
    pub agents_fell_silent: i64,
    /// The number of tasks in the same state as in the window before, without progress.
    pub tasks_stalled: i64,
    /// The number of open tasks whose beat budget is overdrawn.
    pub tasks_overdrawn: i64,
    /// The first silent agents by name, as many as fit, each with the open task that it claimed last.
    pub silent: Vec<RosterEntry>,
    /// The first stalled tasks by agent and task, as many as fit.
    pub stalled: Vec<RosterEntry>,
    /// The first overdrawn tasks by agent and task, as many as fit.
    pub overdrawn: Vec<RosterEntry>,
}

/// A task's last counted claim.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RosterEntry {
    /// The agent's id.
    pub agent_id: String,
    /// The task's id.
    pub task_id: String,
    /// The beat of the claim.
    pub beat_index: BeatIndex,
    /// The task's state.
    pub state: State,
    /// The completed part of the task, 0 to 1.
    #[serde(serialize_with = "json::number")]
    pub progress: f64,
    /// The rest of the task's beat budget, in beats; negative once overdrawn.
    pub beats_left: i32,
}

/// A reason to be on a roster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RosterKind {
    /// The agent had an open task in the window before, and has no claim in this one.
    Silent,
    /// The task is in the same state as in the window before, without progress.
    Stalled,
    /// The task is open and its beat budget is overdrawn.
    Overdrawn,
}

impl RosterKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Silent, Self::Stalled, Self::Overdrawn];

    /// Returns the name used in metrics, flags and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Stalled => "stalled",
            Self::Overdrawn => "overdrawn",
        }
    }
}

impl BarRoster {
    /// Returns the key of the roster's record.
    pub fn key(&self) -> String {
        format!("{}/{}", self.window_id, self.partition)
    }

    /// Returns the entries of one kind.
    pub fn entries(&self, kind: RosterKind) -> &[RosterEntry] {
        match kind {
            RosterKind::Silent => &self.silent,
            RosterKind::Stalled => &self.stalled,
            RosterKind::Overdrawn => &self.overdrawn,
        }
    }

    /// Returns the number of agents or tasks of one kind, of which the entries name the first.
    pub fn count(&self, kind: RosterKind) -> i64 {
        match kind {
            RosterKind::Silent => self.agents_fell_silent,
            RosterKind::Stalled => self.tasks_stalled,
            RosterKind::Overdrawn => self.tasks_overdrawn,
        }
    }
}

impl Record for BarRoster {
    fn schema() -> &'static RecordSchema {
        record_schema!("../bar_roster.avsc")
    }
}
