//! How fast Raft notices a dead leader.

use std::ops::Range;
use std::time::Duration;

/// Raft's timeouts, the same on all nodes: the leader sends heartbeats, and a node that hears none starts an election.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RaftTimeouts {
    /// The interval of heartbeats.
    pub heartbeat: Duration,
    /// The longest time without a heartbeat before a node starts an election. Each time it is random, and at least half of
    /// this, so that nodes do not all start one at once.
    pub election: Duration,
}

impl RaftTimeouts {
    /// For nodes within some 10 ms of each other. A takeover takes some 500 ms.
    pub const DEFAULT: Self = Self { heartbeat: Duration::from_millis(40), election: Duration::from_millis(240) };

    /// The times after which a node that hears no heartbeat starts an election.
    pub fn election_range(&self) -> Range<Duration> {
        self.election / 2..self.election
    }

    /// Returns true if a late or lost heartbeat does not start an election.
    pub fn are_valid(&self) -> bool {
        !self.heartbeat.is_zero() && self.heartbeat * 4 <= self.election
    }
}
