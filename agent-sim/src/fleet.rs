//! Agents with one task after another, each with a life of its own.
//!
//! A fleet may have 100,000 of them: an agent is some 50 bytes, and its claim is made when it is sent.

use backbeat_sdk::{Help, SecretRotation, State, Status};
use rand::{Rng, SeedableRng};
use rand_pcg::{Pcg32, Pcg64};

use crate::Shape;
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
    prefix: String,
    agents: Vec<Agent>,
    rates: Rates,
    shape: Shape,
    beat: u64,
}

#[derive(Debug, Clone)]
struct Agent {
    rng: Pcg32,
    /// How many agents had its place before it.
    predecessors: u32,
    task: u32,
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
    pub fn new(prefix: &str, count: u32, seed: u64, rates: Rates, shape: Shape) -> Self {
        let mut seeds = Pcg64::seed_from_u64(seed);
        let agents = (0..count).map(|_| Agent::new(Pcg32::from_rng(&mut seeds), 0)).collect();
        Self { prefix: prefix.to_owned(), agents, rates, shape, beat: 0 }
    }

    /// What the agents claim on the next beat, which is a downbeat or not. They live as the claims are taken.
    pub fn beat(&mut self, downbeat: bool) -> impl Iterator<Item = ClaimPlan> {
        let Self { prefix, agents, rates, shape, beat } = self;
        let present = shape.present(agents.len(), *beat, downbeat);
        *beat += 1;
        let claim = move |(index, agent): (usize, &mut Agent)| {
            if agent.rng.random_bool(shape.replaced()) {
                *agent = Agent::new(Pcg32::from_rng(&mut agent.rng), agent.predecessors + 1);
            }
            let id = |predecessors| match predecessors {
                0 => format!("{prefix}{index:05}"),
                _ => format!("{prefix}{index:05}.{predecessors}"),
            };
            agent.beat(id, downbeat, *rates)
        };
        agents[..present].iter_mut().enumerate().filter_map(claim)
    }
}

impl Agent {
    fn new(rng: Pcg32, predecessors: u32) -> Self {
        let state = State::Done;
        let mut agent =
            Self { rng, predecessors, task: 0, state, needed: 0, work: 0, worked: 0, beats_left: 0, help: None };
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

    fn beat(&mut self, id: impl FnOnce(u32) -> String, downbeat: bool, rates: Rates) -> Option<ClaimPlan> {
        self.live(rates.failure);
        let rotates = downbeat && self.rng.random_bool(ROTATES);
        let rotation_fails = self.rng.random_bool(rates.failure);
        let secret_rotation =
            rotates.then_some(if rotation_fails { SecretRotation::Failed } else { SecretRotation::Ok });
        let fate = self.fate(rates);
        if self.rng.random_bool(rates.silence) {
            return None;
        }
        let agent_id = id(self.predecessors);
        let status = Status {
            task_id: format!("{agent_id}-task-{}", self.task),
            agent_id,
            state: self.state,
            beats_left: self.beats_left,
            progress: f64::from(self.worked) / f64::from(self.work),
            notes: format!("{:?}, {} of {} beats of work", self.state, self.worked, self.work),
            help: self.help,
            secret_rotation,
        };
        Some(ClaimPlan { status, fate })
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
        plans_of(Shape::Steady, seed, beats)
    }

    fn plans_of(shape: Shape, seed: u64, beats: u32) -> Vec<ClaimPlan> {
        let mut fleet = Fleet::new("a-", 30, seed, RATES, shape);
        (0..beats).flat_map(|beat| fleet.beat(beat % 4 == 0).collect::<Vec<_>>()).collect()
    }

    fn names(plans: &[ClaimPlan]) -> HashSet<&str> {
        plans.iter().map(|plan| plan.status.agent_id.as_str()).collect()
    }

    #[test]
    fn an_agent_is_small() {
        assert!(size_of::<Agent>() <= 56, "{} bytes", size_of::<Agent>());
    }

    #[test]
    fn agents_come_and_go_with_the_churn() {
        let churned = plans_of(Shape::Churn { share: 0.1 }, 1, 100);
        // 30 places, each with 10 agents over 100 beats, more or less.
        let agents = names(&churned).len();
        assert!((200..450).contains(&agents), "{agents}");
        assert!(names(&churned).contains("a-00007.3"));
        assert_eq!(churned, plans_of(Shape::Churn { share: 0.1 }, 1, 100));
        assert_eq!(names(&plans_of(Shape::Steady, 1, 100)).len(), 30);
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
