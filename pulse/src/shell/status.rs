//! The status that pulse publishes over HTTP.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use backbeat_schemas::{BeatFrame, BeatIndex, Tempo};
use serde::Serialize;
use utoipa::ToSchema;

use super::raft::NodeStatus;
use crate::core::{Plan, Role};

/// The number of this node's last beats that the jitter percentiles cover.
const RECENT_BEATS: usize = 1_000;

/// The status, shared by the threads that update it and the HTTP server.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedStatus(Arc<Mutex<Status>>);

/// The node's current status.
#[derive(Debug, Clone, Default)]
pub(crate) struct Status {
    pub(crate) cluster_id: String,
    pub(crate) node: String,
    pub(crate) role: RoleName,
    /// True if Raft has a leader, as far as this node knows.
    pub(crate) knows_leader: bool,
    /// The newest committed frame, from any node.
    pub(crate) last_beat: Option<BeatFrame>,
    pub(crate) plan: Option<Plan>,
    /// The services that must answer before this node can take part.
    pub(crate) waiting_for: Option<String>,
    jitter_ms: VecDeque<i64>,
}

/// The body of `/api/v1/status`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StatusBody {
    cluster_id: String,
    node: String,
    role: RoleName,
    /// The name of Raft's leader, as far as this node knows.
    leader: Option<String>,
    /// The term of the newest beat.
    term: Option<i64>,
    beat: Option<BeatIndex>,
    tempo_bpm: Option<Tempo>,
    bar_length: Option<u16>,
    /// A committed change that is not yet carried out.
    pending: Option<Pending>,
    /// The jitter of the last beats that this node published.
    jitter_ms: Option<Jitter>,
    /// The nodes of the cluster.
    members: Vec<NodeStatus>,
    /// The newest committed frame.
    last_beat: Option<BeatFrame>,
    /// The services that must answer before this node can take part.
    waiting_for: Option<String>,
}

/// A committed change that is not yet carried out.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Pending {
    /// The beat from which the change applies: it takes effect at the first downbeat at or after this beat.
    from_beat: BeatIndex,
    tempo_bpm: Tempo,
    bar_length: u16,
    /// True if the change takes more than one step of 10 %.
    ramp: bool,
}

/// Percentiles of the absolute difference between `emitted_at` and `scheduled_at`, in milliseconds.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Jitter {
    beats: usize,
    p50: i64,
    p95: i64,
    p99: i64,
}

/// The node's role.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RoleName {
    #[default]
    Starting,
    Follower,
    Leaderless,
    // The API keeps the name from its first version.
    #[serde(rename = "outsider")]
    NonMember,
    TakingOver,
    Leader,
    DegradedLeader,
}

impl From<Role> for RoleName {
    fn from(role: Role) -> Self {
        match role {
            Role::Follower => Self::Follower,
            Role::Leaderless => Self::Leaderless,
            Role::NonMember => Self::NonMember,
            Role::TakingOver => Self::TakingOver,
            Role::Leader => Self::Leader,
            Role::DegradedLeader => Self::DegradedLeader,
        }
    }
}

impl SharedStatus {
    pub(crate) fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn snapshot(&self) -> Status {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Status {
    /// Records the jitter of a beat that this node published.
    pub(crate) fn record_beat(&mut self, frame: &BeatFrame) {
        if self.jitter_ms.len() == RECENT_BEATS {
            self.jitter_ms.pop_front();
        }
        self.jitter_ms.push_back(frame.emitted_at.millis_since(frame.scheduled_at).saturating_abs());
    }

    pub(crate) fn body(self, nodes: Vec<NodeStatus>) -> StatusBody {
        let jitter_ms = self.jitter();
        let last = self.last_beat.as_ref();
        let pending = self.plan.zip(last).filter(|(plan, last)| plan.is_pending(last)).map(|(plan, last)| Pending {
            from_beat: plan.from,
            tempo_bpm: plan.tempo,
            bar_length: plan.bar_length,
            ramp: !last.tempo_bpm.allowed_next().contains(&plan.tempo),
        });
        StatusBody {
            leader: nodes.iter().find(|node| node.leader).map(|node| node.node.to_string()),
            term: last.map(|last| last.term),
            beat: last.map(|last| last.beat_index),
            tempo_bpm: last.map(|last| last.tempo_bpm),
            bar_length: last.map(|last| last.bar_length),
            pending,
            jitter_ms,
            members: nodes,
            cluster_id: self.cluster_id,
            node: self.node,
            role: self.role,
            last_beat: self.last_beat,
            waiting_for: self.waiting_for,
        }
    }

    fn jitter(&self) -> Option<Jitter> {
        let mut sorted: Vec<i64> = self.jitter_ms.iter().copied().collect();
        sorted.sort_unstable();
        // The smallest value that `percent` of the values do not exceed.
        let percentile = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100) - 1];
        (!sorted.is_empty()).then(|| Jitter {
            beats: sorted.len(),
            p50: percentile(50),
            p95: percentile(95),
            p99: percentile(99),
        })
    }
}
