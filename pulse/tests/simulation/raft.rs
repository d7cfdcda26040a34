//! Raft, as far as pulse depends on it: at most one leader a term, elected by a majority; a quorum's word
//! is true when it is given; nodes learn of leaders late, and a leader that is cut off does not notice.

use backbeat_pulse::core::RaftRole;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::world::NODES;

/// Between the loss of a leader and the next election, in microseconds.
const ELECTION: std::ops::Range<u64> = 250_000..600_000;

/// Who can take part, and reach whom.
#[derive(Clone)]
pub(crate) struct Links {
    /// The cluster's nodes are the first so many.
    pub(crate) members: usize,
    pub(crate) alive: [bool; NODES],
    pub(crate) cut: [[bool; NODES]; NODES],
    /// A leader that keeps quiet.
    pub(crate) quiet: [bool; NODES],
}

impl Links {
    fn reaches(&self, from: usize, to: usize) -> bool {
        self.alive[from] && self.alive[to] && (from == to || !self.cut[from][to])
    }

    fn has_majority(&self, node: usize) -> bool {
        (0..self.members).filter(|other| self.reaches(node, *other)).count() > self.members / 2
    }
}

pub(crate) struct Raft {
    pub(crate) term: u64,
    pub(crate) leader: Option<usize>,
    /// What each node believes.
    pub(crate) views: [RaftRole; NODES],
    /// When the next leader is elected, if the present one stays lost.
    election_at: Option<u64>,
}

impl Raft {
    pub(crate) fn new() -> Self {
        Self { term: 0, leader: None, views: std::array::from_fn(|_| RaftRole::Leaderless), election_at: None }
    }

    /// Whether a majority says that `node` leads.
    pub(crate) fn confirms(&self, node: usize, links: &Links) -> bool {
        self.leader == Some(node) && links.has_majority(node)
    }

    /// Lets Raft go on until `now`; the nodes whose view changed.
    pub(crate) fn step(&mut self, now: u64, links: &Links, rng: &mut ChaCha8Rng) -> Vec<usize> {
        let holds = self.leader.is_some_and(|leader| links.has_majority(leader) && !links.quiet[leader]);
        if holds {
            self.election_at = None;
        } else if self.election_at.is_none() {
            self.election_at = Some(now + rng.random_range(ELECTION));
        } else if self.election_at.is_some_and(|at| at <= now) {
            self.election_at = None;
            let able: Vec<usize> =
                (0..links.members).filter(|node| links.has_majority(*node) && !links.quiet[*node]).collect();
            if !able.is_empty() {
                self.term += 1;
                self.leader = Some(able[rng.random_range(0..able.len())]);
            }
        }
        (0..NODES).filter(|node| links.alive[*node] && self.look(*node, links)).collect()
    }

    /// `node` looks around; whether its view changed.
    fn look(&mut self, node: usize, links: &Links) -> bool {
        let view = match self.leader {
            Some(leader) if leader == node => RaftRole::Leader { term: self.term, alone: links.members == 1 },
            Some(leader) if links.reaches(leader, node) && !links.quiet[leader] => {
                RaftRole::Follower { leader: name(leader) }
            }
            // Cut off, a leader goes on believing in itself.
            _ if matches!(self.views[node], RaftRole::Leader { .. }) => return false,
            _ => RaftRole::Leaderless,
        };
        let changed = self.views[node] != view;
        self.views[node] = view;
        changed
    }

    /// What a node that starts believes: one that led does so still.
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
