//! The report of one window.

use serde::{Deserialize, Serialize};

use crate::codec::{Record, RecordSchema, record_schema};
use crate::record_type::BarReportType;
use crate::{BeatIndex, Timestamp, WindowId};

/// The report of one window. The fields are documented in `bar_report.avsc`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "documented in the schema, which the registry shows")]
pub struct BarReport {
    pub r#type: BarReportType,
    pub window_id: WindowId,
    pub from_beat: BeatIndex,
    pub to_beat: BeatIndex,
    pub agents_reporting: i64,
    pub on_time_reviews: i64,
    pub help_promises_fulfilled: i64,
    pub secret_rotations_ok: bool,
    pub tempo_drift_ms: i64,
    pub issues: Vec<String>,
    #[serde(default)]
    pub cluster_id: String,
    #[serde(default)]
    pub opened_at: Timestamp,
    #[serde(default)]
    pub closed_at: Timestamp,
    #[serde(default)]
    pub claims: i64,
    #[serde(default)]
    pub late_claims: i64,
    #[serde(default)]
    pub invalid_claims: i64,
    #[serde(default)]
    pub tasks_done: i64,
    #[serde(default)]
    pub tasks_failed: i64,
    #[serde(default)]
    pub degraded_beats: i64,
    #[serde(default)]
    pub degraded_claims: i64,
    #[serde(default)]
    pub grace_beats: u16,
    #[serde(default)]
    pub from_offsets: Vec<i64>,
    #[serde(default)]
    pub to_offsets: Vec<i64>,
    #[serde(default = "first_logic")]
    pub logic: i32,
}

fn first_logic() -> i32 {
    1
}

impl Record for BarReport {
    fn schema() -> &'static RecordSchema {
        record_schema!("../bar_report.avsc")
    }
}
