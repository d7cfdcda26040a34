//! The status that pulse publishes over HTTP.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::core::{Plan, Role};
use backbeat_http_api::pulse::{Jitter, NodeStatus, Pending, RoleName, StatusBody};
use backbeat_schemas::BeatFrame;

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
            leader: nodes.iter().find(|node| node.leader).map(|node| node.node.clone()),
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
