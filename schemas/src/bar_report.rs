//! The report of one window.

use serde::{Deserialize, Serialize};

use crate::codec::{Record, RecordSchema, record_schema};
use crate::record_type::BarReportType;
use crate::{BeatIndex, Timestamp, WindowId};

/// The report of one window: a pure function of the frames and the claims (docs/reports.md, "Fields").
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BarReport {
    /// The constant `backbeat.barreport.v1`.
    pub r#type: BarReportType,
    /// The id of the window; also the record's key.
    pub window_id: WindowId,
    /// The window's downbeat.
    pub from_beat: BeatIndex,
    /// The window's last beat.
    pub to_beat: BeatIndex,
    /// The number of distinct agents with a counted claim.
    pub agents_reporting: i64,
    /// The number of distinct tasks with a counted claim in review or done and `beats_left` >= 0.
    pub on_time_reviews: i64,
    /// The number of distinct tasks with a counted claim whose help is fulfilled.
    pub help_promises_fulfilled: i64,
    /// True if no counted claim has a failed secret rotation.
    pub secret_rotations_ok: bool,
    /// The largest distance of a frame's `emitted_at` from its `scheduled_at`, in milliseconds.
    pub tempo_drift_ms: i64,
    /// Texts for operators, sorted.
    pub issues: Vec<String>,
    /// The cluster's name.
    #[serde(default)]
    pub cluster_id: String,
    /// The scheduled instant of the window's downbeat.
    #[serde(default)]
    pub opened_at: Timestamp,
    /// The scheduled instant of the next downbeat; also the record's timestamp.
    #[serde(default)]
    pub closed_at: Timestamp,
    /// The number of counted claims.
    #[serde(default)]
    pub claims: i64,
    /// The number of late claims among the offsets that the window owns.
    #[serde(default)]
    pub late_claims: i64,
    /// The number of invalid claims among the offsets that the window owns.
    #[serde(default)]
    pub invalid_claims: i64,
    /// The number of distinct tasks with a counted claim in the state done.
    #[serde(default)]
    pub tasks_done: i64,
    /// The number of distinct tasks with a counted claim in the state failed.
    #[serde(default)]
    pub tasks_failed: i64,
    /// The number of the window's frames that pulse published without a Raft quorum.
    #[serde(default)]
    pub degraded_beats: i64,
    /// The number of counted claims that are degraded.
    #[serde(default)]
    pub degraded_claims: i64,
    /// The window's grace, in beats.
    #[serde(default)]
    pub grace_beats: u16,
    /// The first offset that the window owns, by partition of `statusclaims`.
    #[serde(default)]
    pub from_offsets: Vec<i64>,
    /// The offset after the last one that the window owns, by partition of `statusclaims`.
    #[serde(default)]
    pub to_offsets: Vec<i64>,
    /// The version of the rules by which the report was computed.
    #[serde(default = "first_logic")]
    pub logic: i32,
    /// The number of agents with an open task in the window before, and no claim in this one. 0 before logic 2.
    #[serde(default)]
    pub agents_fell_silent: i64,
    /// The number of tasks in the same state as in the window before, without progress. 0 before logic 2.
    #[serde(default)]
    pub tasks_stalled: i64,
    /// The number of open tasks whose beat budget is overdrawn. 0 before logic 2.
    #[serde(default)]
    pub tasks_overdrawn: i64,
}

fn first_logic() -> i32 {
    1
}

impl Record for BarReport {
    fn schema() -> &'static RecordSchema {
        record_schema!("../bar_report.avsc")
    }
}
