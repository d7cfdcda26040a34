//! When a node last asked a quorum whether it is Raft's leader, and what a quorum said.

use std::time::Duration;

/// Election timeouts without a confirmed leader after which the cluster counts as leaderless.
const LEADERLESS_TIMEOUTS: u32 = 5;
/// Retries of a failed quorum check per election timeout.
pub(super) const RETRIES_PER_ELECTION_TIMEOUT: u32 = 6;

/// The quorum checks so far. Instants are monotonic, and those at which a check was started, never those of its response: a
/// response may have been delayed while this node was suspended.
#[derive(Debug)]
pub(super) struct QuorumChecks {
    /// Raft's longest election timeout.
    election_timeout: Duration,
    /// The id of the last check.
    check_id: u64,
    /// Start of the check that is not completed yet.
    pending: Option<Duration>,
    /// Start of the last check that was completed.
    completed: Option<Duration>,
    /// Start of the last check that confirmed this node as leader.
    confirmed: Option<Duration>,
}

impl QuorumChecks {
    pub(super) fn new(election_timeout: Duration) -> Self {
        Self { election_timeout, check_id: 0, pending: None, completed: None, confirmed: None }
    }

    /// Records that a check is started, and returns its id.
    pub(super) fn start(&mut self, now: Duration) -> u64 {
        self.check_id += 1;
        self.pending = Some(now);
        self.check_id
    }

    /// Records the response to a check. Returns false if another one was started since.
    pub(super) fn complete(&mut self, check_id: u64, confirmed: bool) -> bool {
        if check_id != self.check_id {
            return false;
        }
        self.completed = self.pending.take();
        if confirmed {
            self.confirmed = self.completed;
        }
        true
    }

    /// Forgets the last confirmation.
    pub(super) fn forget_confirmation(&mut self) {
        self.confirmed = None;
    }

    /// The instant of the next check of Raft's leader: once per election timeout, and sooner after a failed one; `None` while
    /// one is pending.
    pub(super) fn next(&self) -> Option<Duration> {
        let was_confirmed = self.confirmed == self.completed;
        let interval =
            if was_confirmed { self.election_timeout } else { self.election_timeout / RETRIES_PER_ELECTION_TIMEOUT };
        let next = self.completed.map_or(Duration::ZERO, |at| at + interval);
        self.pending.is_none().then_some(next)
    }

    /// Returns true if a quorum has confirmed this node recently.
    pub(super) fn is_confirmed(&self, now: Duration) -> bool {
        self.confirmed.is_some_and(|at| now.saturating_sub(at) <= self.leaderless_after())
    }

    /// Returns true if a check was completed recently, whatever it said.
    pub(super) fn is_recent(&self, now: Duration) -> bool {
        self.completed.is_some_and(|at| now.saturating_sub(at) <= self.leaderless_after())
    }

    /// The time without a confirmed leader after which the cluster counts as leaderless.
    pub(super) fn leaderless_after(&self) -> Duration {
        self.election_timeout * LEADERLESS_TIMEOUTS
    }

    /// Raft's longest election timeout.
    pub(super) fn election_timeout(&self) -> Duration {
        self.election_timeout
    }

    #[cfg(test)]
    pub(super) fn last_id(&self) -> u64 {
        self.check_id
    }
}
