//! What pulse tells of itself over HTTP.

use std::sync::{Arc, Mutex, PoisonError};

use backbeat_schemas::BeatFrame;
use serde::Serialize;

/// A shared snapshot, written by the conductor.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedStatus(Arc<Mutex<Status>>);

/// The body of `/api/v1/status`.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Status {
    pub(crate) cluster_id: String,
    pub(crate) node: String,
    pub(crate) role: Role,
    /// The newest committed frame.
    pub(crate) last_beat: Option<BeatFrame>,
    /// Why it does not beat, where it should.
    pub(crate) waiting_for: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    #[default]
    Starting,
    Leader,
    Stopped,
}

impl SharedStatus {
    pub(crate) fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn snapshot(&self) -> Status {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
