//! What an agent says of a task on a beat.

use serde::{Deserialize, Serialize};

use crate::codec::{Record, RecordSchema, record_schema};
use crate::json;
use crate::record_type::StatusClaimType;

/// One claim, as it was sent: nothing in it is checked yet (see [`crate::check_claim`]). Fields are
/// documented in `status_claim.avsc`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "documented in the schema, which the registry shows")]
pub struct StatusClaim {
    pub r#type: StatusClaimType,
    pub agent_id: String,
    pub task_id: String,
    pub beat_index: i64,
    pub state: State,
    pub beats_left: i32,
    #[serde(serialize_with = "json::number")]
    pub progress: f64,
    pub notes: String,
    pub hlc: String,
    #[serde(default)]
    pub help: Option<Help>,
    #[serde(default)]
    pub secret_rotation: Option<SecretRotation>,
    #[serde(default)]
    pub degraded: bool,
}

impl Record for StatusClaim {
    fn schema() -> &'static RecordSchema {
        record_schema!("../status_claim.avsc")
    }
}

/// The state of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names say it")]
pub enum State {
    Planning,
    Executing,
    Waiting,
    Review,
    Done,
    Failed,
    Unknown,
}

/// Where a task's request for help stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Help {
    Requested,
    Promised,
    Fulfilled,
}

/// How an agent's rotation of its secrets ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names say it")]
pub enum SecretRotation {
    Ok,
    Failed,
}
