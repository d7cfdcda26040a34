//! Agents with one task after another, each with a life of its own.

use backbeat_sdk::{Help, SecretRotation, State, Status};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::claim_plan::{ClaimPlan, Fate, Malformation};

/// Chances in a beat that make a task's life.
const STALLS: f64 = 0.08;
const RESUMES: f64 = 0.5;
const ASKS_FOR_HELP: f64 = 0.06;
/// The chance that an agent rotates its secrets on a downbeat.
const ROTATES: f64 = 0.05;

/// How often what goes wrong goes wrong, each from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Tasks and rotations that fail.
    pub failure: f64,
    /// Claims never made.
    pub silence: f64,
    /// Claims sent a bar late.
    pub late: f64,
    /// Claims that break a rule.
    pub malformed: f64,
}

/// A fleet of agents.
#[derive(Debug, Clone)]
pub struct Fleet {
    agents: Vec<Agent>,
    rates: Rates,
}

#[derive(Debug, Clone)]
struct Agent {
    id: String,
    rng: ChaCha8Rng,
    task: u64,
    state: State,
    /// Beats that the task still needs in its present state, while planning, executing or in review.
    needed: i32,
    work: i32,
    worked: i32,
    beats_left: i32,
    help: Option<Help>,
}

impl Fleet {
    /// `count` agents named `prefix` and a number; `seed` decides all that they do.
    pub fn new(prefix: &str, count: u32, seed: u64, rates: Rates) -> Self {
        let agents = (0..count).map(|index| Agent::new(format!("{prefix}{index:05}"), seed, index)).collect();
        Self { agents, rates }
    }

    /// What the agents claim on the next beat, which is a downbeat or not.
    pub fn beat(&mut self, downbeat: bool) -> Vec<ClaimPlan> {
        let rates = self.rates;
        self.agents.iter_mut().filter_map(|agent| agent.beat(downbeat, rates)).collect()
    }
}

impl Agent {
    fn new(id: String, seed: u64, index: u32) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(u64::from(index));
        let mut agent =
            Self { id, rng, task: 0, state: State::Done, needed: 0, work: 0, worked: 0, beats_left: 0, help: None };
        agent.begin_task();
        agent
    }

    fn begin_task(&mut self) {
        self.task += 1;
        self.state = State::Planning;
        self.needed = self.rng.random_range(1..=2);
        self.work = self.rng.random_range(3..=12);
        self.worked = 0;
        // Some budgets are too short: those tasks overdraw.
        self.beats_left = self.work + self.rng.random_range(0..=8);
        self.help = None;
    }

    fn beat(&mut self, downbeat: bool, rates: Rates) -> Option<ClaimPlan> {
        self.live(rates.failure);
        let rotates = downbeat && self.rng.random_bool(ROTATES);
        let rotation_fails = self.rng.random_bool(rates.failure);
        let secret_rotation =
            rotates.then_some(if rotation_fails { SecretRotation::Failed } else { SecretRotation::Ok });
        let status = Status {
            beats_left: self.beats_left,
            progress: f64::from(self.worked) / f64::from(self.work),
            notes: format!("{:?}, {} of {} beats of work", self.state, self.worked, self.work),
            help: self.help,
            secret_rotation,
            ..Status::new(&self.id, &format!("{}-task-{}", self.id, self.task), self.state)
        };
        let fate = self.fate(rates);
        if self.rng.random_bool(rates.silence) { None } else { Some(ClaimPlan { status, fate }) }
    }

    /// planning → executing ↔ waiting → review → done or failed → the next task.
    fn live(&mut self, failure: f64) {
        self.beats_left -= 1;
        self.help = match self.help {
            Some(Help::Requested) => Some(Help::Promised),
            Some(Help::Promised) => Some(Help::Fulfilled),
            _ => None,
        };
        match self.state {
            State::Planning => {
                self.needed -= 1;
                if self.needed <= 0 {
                    self.state = State::Executing;
                }
            }
            State::Executing => {
                self.worked += 1;
                if self.worked >= self.work {
                    self.state = State::Review;
                    self.needed = 2;
                } else if self.rng.random_bool(STALLS) {
                    self.state = State::Waiting;
                } else if self.help.is_none() && self.rng.random_bool(ASKS_FOR_HELP) {
                    self.help = Some(Help::Requested);
                }
            }
            State::Waiting => {
                if self.rng.random_bool(RESUMES) {
                    self.state = State::Executing;
                }
            }
            State::Review => {
                self.needed -= 1;
                if self.needed <= 0 {
                    self.state = if self.rng.random_bool(failure) { State::Failed } else { State::Done };
                }
            }
            State::Done | State::Failed | State::Unknown => self.begin_task(),
        }
    }

    fn fate(&mut self, rates: Rates) -> Fate {
        // Both dice are always thrown, so that one rate does not change what another does.
        let (late, malformed) = (self.rng.random_bool(rates.late), self.rng.random_bool(rates.malformed));
        let kind = self.rng.random_range(0..Malformation::ALL.len());
        match (malformed, late) {
            (true, _) => Fate::Malformed(Malformation::ALL[kind]),
            (false, true) => Fate::Late,
            (false, false) => Fate::Honest,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const RATES: Rates = Rates { failure: 0.1, silence: 0.05, late: 0.05, malformed: 0.05 };

    fn plans(seed: u64, beats: u32) -> Vec<ClaimPlan> {
        let mut fleet = Fleet::new("a-", 30, seed, RATES);
        (0..beats).flat_map(|beat| fleet.beat(beat % 4 == 0)).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_claims_and_another_others() {
        assert_eq!(plans(7, 100), plans(7, 100));
        assert_ne!(plans(7, 100), plans(8, 100));
    }

    #[test]
    fn lives_have_everything_in_them() {
        let plans = plans(1, 400);
        let states: HashSet<State> = plans.iter().map(|plan| plan.status.state).collect();
        assert_eq!(states.len(), 6, "every state but unknown: {states:?}");
        let helps: HashSet<_> = plans.iter().filter_map(|plan| plan.status.help).collect();
        assert_eq!(helps.len(), 3, "{helps:?}");
        let rotations: HashSet<_> = plans.iter().filter_map(|plan| plan.status.secret_rotation).collect();
        assert_eq!(rotations.len(), 2, "{rotations:?}");
        let broken =
            Malformation::ALL.iter().filter(|kind| plans.iter().any(|plan| plan.fate == Fate::Malformed(**kind)));
        assert_eq!(broken.count(), Malformation::ALL.len());
        assert!(plans.iter().any(|plan| plan.fate == Fate::Late));
        assert!(plans.iter().any(|plan| plan.status.beats_left < 0), "some overdraw");
        assert!(plans.iter().all(|plan| (0.0..=1.0).contains(&plan.status.progress)));
        assert!(plans.len() < 30 * 400, "some keep silent");
    }
}
