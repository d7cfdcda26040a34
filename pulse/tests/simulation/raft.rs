//! A model of Raft, as far as pulse depends on it: at most one leader a term, elected by a quorum; a quorum
//! confirmation is true when it is given; nodes learn of leaders late, and a partitioned leader does not notice.

use backbeat_pulse::core::{RaftRole, RaftTimeouts};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::world::NODES;

/// Raft's longest election timeout, in microseconds.
pub(crate) const ELECTION_TIMEOUT: u64 = RaftTimeouts::DEFAULT.election.as_micros() as u64;
/// Time from the loss of a leader to the next election, in microseconds: an election may fail.
const ELECTION: std::ops::Range<u64> = ELECTION_TIMEOUT..ELECTION_TIMEOUT * 5 / 2;

/// The nodes that are up, and their connections.
#[derive(Clone)]
pub(crate) struct Links {
    /// The number of voters, which are the first nodes.
    pub(crate) voters: usize,
    pub(crate) alive: [bool; NODES],
    pub(crate) cut: [[bool; NODES]; NODES],
    /// Nodes that have stepped down: they send no heartbeats.
    pub(crate) stepped_down: [bool; NODES],
}

impl Links {
    fn reaches(&self, from: usize, to: usize) -> bool {
        self.alive[from] && self.alive[to] && (from == to || !self.cut[from][to])
    }

    fn has_quorum(&self, node: usize) -> bool {
        (0..self.voters).filter(|other| self.reaches(node, *other)).count() > self.voters / 2
    }
}

pub(crate) struct Raft {
    pub(crate) term: u64,
    pub(crate) leader: Option<usize>,
    /// Each node's view of its role.
    pub(crate) views: [RaftRole; NODES],
    /// The time of the next election, if the current leader stays lost.
    election_at: Option<u64>,
}

impl Raft {
    pub(crate) fn new() -> Self {
        Self { term: 0, leader: None, views: std::array::from_fn(|_| RaftRole::Leaderless), election_at: None }
    }

    /// Returns true if a quorum confirms that `node` leads.
    pub(crate) fn confirms(&self, node: usize, links: &Links) -> bool {
        self.leader == Some(node) && links.has_quorum(node)
    }

    /// Advances Raft to `now`, and returns the nodes whose view changed.
    pub(crate) fn step(&mut self, now: u64, links: &Links, rng: &mut ChaCha8Rng) -> Vec<usize> {
        let is_stable = self.leader.is_some_and(|leader| links.has_quorum(leader) && !links.stepped_down[leader]);
        if is_stable {
            self.election_at = None;
        } else if self.election_at.is_none() {
            self.election_at = Some(now + rng.random_range(ELECTION));
        } else if self.election_at.is_some_and(|at| at <= now) {
            self.election_at = None;
            let candidates: Vec<usize> =
                (0..links.voters).filter(|node| links.has_quorum(*node) && !links.stepped_down[*node]).collect();
            if !candidates.is_empty() {
                self.term += 1;
                self.leader = Some(candidates[rng.random_range(0..candidates.len())]);
            }
        }
        (0..NODES).filter(|node| links.alive[*node] && self.update_view(*node, links)).collect()
    }

    /// Updates the view of `node`, and returns true if it changed.
    fn update_view(&mut self, node: usize, links: &Links) -> bool {
        let view = match self.leader {
            Some(leader) if leader == node => RaftRole::Leader { raft_term: self.term, sole_voter: links.voters == 1 },
            Some(leader) if links.reaches(leader, node) && !links.stepped_down[leader] => {
                RaftRole::Follower { leader: name(leader) }
            }
            // A partitioned leader does not notice that it was replaced.
            _ if matches!(self.views[node], RaftRole::Leader { .. }) => return false,
            _ => RaftRole::Leaderless,
        };
        let changed = self.views[node] != view;
        self.views[node] = view;
        changed
    }

    /// The view of a node that starts: one that led still believes that it leads.
    pub(crate) fn restarted(&mut self, node: usize) -> RaftRole {
        if !matches!(self.views[node], RaftRole::Leader { .. }) {
            self.views[node] = RaftRole::Leaderless;
        }
        self.views[node].clone()
    }
}

pub(crate) fn name(node: usize) -> String {
    format!("n{node}")
}
