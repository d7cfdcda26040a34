//! A seeded fleet of agents, each of which works on one random task after another.
//!
//! A fleet may have 100,000 agents: an agent takes about 50 bytes, and its claim is built when it is sent.

use backbeat_sdk::{Help, SecretRotation, State, Status};
use rand::{Rng, SeedableRng};
use rand_pcg::{Pcg32, Pcg64};

use crate::Shape;
use crate::claim_plan::{ClaimPlan, Delivery, Malformation};

/// Probabilities of a task's state changes, per beat.
const STALL_PROBABILITY: f64 = 0.08;
const RESUME_PROBABILITY: f64 = 0.5;
const HELP_REQUEST_PROBABILITY: f64 = 0.06;
/// The probability that an agent rotates its secrets on a downbeat.
const ROTATION_PROBABILITY: f64 = 0.05;

/// The beats for which a troubled task is stuck: three bars of four beats.
const STUCK_BEATS: u8 = 12;

/// Rates at which tasks and claims go wrong, each from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// The fraction of tasks and secret rotations that fail.
    pub failure: f64,
    /// The fraction of claims that are not sent.
    pub silence: f64,
    /// The fraction of claims that are sent one bar plus the grace late.
    pub late: f64,
    /// The fraction of claims that are made invalid on purpose.
    pub malformed: f64,
    /// The fraction of tasks in the middle of which the agent sends nothing for three bars of four beats.
    pub silent_tasks: f64,
    /// The fraction of tasks in the middle of which nothing moves for as long.
    pub stalled_tasks: f64,
    /// The fraction of tasks whose beat budget is half of what they need.
    pub overdrawn_tasks: f64,
}

/// The trouble that an agent has with its task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    Silent,
    Stalled,
    Overdrawn,
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
    /// The number of agents that had this index before, under churn.
    generation: u32,
    task: u32,
    state: State,
    /// Beats until the task leaves its state, while planning or in review.
    beats_in_state: i32,
    /// Beats of execution that the task needs.
    work: i32,
    /// Beats of execution done.
    worked: i32,
    /// The rest of its beat budget.
    beats_left: i32,
    help: Option<Help>,
    trouble: Trouble,
    /// The beats for which its task was stuck.
    stuck_beats: u8,
}

impl Fleet {
    /// Creates `count` agents whose ids are `prefix` and a number; `seed` determines all their claims.
    pub fn new(prefix: &str, count: u32, seed: u64, rates: Rates, shape: Shape) -> Self {
        let mut seeds = Pcg64::seed_from_u64(seed);
        let agents = (0..count).map(|_| Agent::new(Pcg32::from_rng(&mut seeds), 0, rates)).collect();
        Self { prefix: prefix.to_owned(), agents, rates, shape, beat: 0 }
    }

    /// Returns the claims for the next beat, which may be a downbeat. An agent's state advances when the iterator
    /// reaches it.
    pub fn claims_for_next_beat(&mut self, downbeat: bool) -> impl Iterator<Item = ClaimPlan> {
        let Self { prefix, agents, rates, shape, beat } = self;
        let active = shape.active_agents(agents.len(), *beat, downbeat);
        *beat += 1;
        let claim = move |(index, agent): (usize, &mut Agent)| {
            if agent.rng.random_bool(shape.churn_rate()) {
                *agent = Agent::new(Pcg32::from_rng(&mut agent.rng), agent.generation + 1, *rates);
            }
            let id = |generation| match generation {
                0 => format!("{prefix}{index:05}"),
                _ => format!("{prefix}{index:05}.{generation}"),
            };
            agent.next_claim(id, downbeat, *rates)
        };
        agents[..active].iter_mut().enumerate().filter_map(claim)
    }
}

impl Agent {
    fn new(rng: Pcg32, generation: u32, rates: Rates) -> Self {
        let mut agent = Self {
            rng,
            generation,
            task: 0,
            state: State::Done,
            beats_in_state: 0,
            work: 0,
            worked: 0,
            beats_left: 0,
            help: None,
            trouble: Trouble::None,
            stuck_beats: 0,
        };
        agent.begin_task(rates);
        agent
    }

    fn begin_task(&mut self, rates: Rates) {
        self.task += 1;
        self.state = State::Planning;
        self.beats_in_state = self.rng.random_range(1..=2);
        self.work = self.rng.random_range(3..=12);
        self.worked = 0;
        // Some budgets are too small, so that some tasks overdraw theirs.
        self.beats_left = self.work + self.rng.random_range(0..=8);
        self.help = None;
        let mut chance = self.rng.random_range(0.0..1.0);
        let troubles = [
            (Trouble::Silent, rates.silent_tasks),
            (Trouble::Stalled, rates.stalled_tasks),
            (Trouble::Overdrawn, rates.overdrawn_tasks),
        ];
        let trouble = troubles.into_iter().find(|(_, rate)| {
            chance -= rate;
            chance < 0.0
        });
        self.trouble = trouble.map_or(Trouble::None, |(trouble, _)| trouble);
        self.stuck_beats = 0;
        if self.trouble == Trouble::Overdrawn {
            self.beats_left = self.work / 2;
        }
    }

    /// Returns true while its task is stuck.
    fn is_stuck(&self) -> bool {
        matches!(self.trouble, Trouble::Silent | Trouble::Stalled)
            && self.state == State::Executing
            && self.worked >= self.work / 2
            && self.stuck_beats < STUCK_BEATS
    }

    /// Advances the task by one beat and returns the claim, unless the agent is silent on this beat.
    fn next_claim(&mut self, id: impl FnOnce(u32) -> String, downbeat: bool, rates: Rates) -> Option<ClaimPlan> {
        let is_stuck = self.is_stuck();
        if is_stuck {
            self.stuck_beats += 1;
            self.beats_left -= 1;
        } else {
            self.advance_task(rates);
        }
        let rotates = downbeat && self.rng.random_bool(ROTATION_PROBABILITY);
        let rotation_fails = self.rng.random_bool(rates.failure);
        let secret_rotation =
            rotates.then_some(if rotation_fails { SecretRotation::Failed } else { SecretRotation::Ok });
        let delivery = self.delivery(rates);
        let is_silent = is_stuck && self.trouble == Trouble::Silent;
        if self.rng.random_bool(rates.silence) || is_silent {
            return None;
        }
        let agent_id = id(self.generation);
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
        Some(ClaimPlan { status, delivery })
    }

    /// Advances the task by one beat: planning → executing ↔ waiting → review → done or failed → the next task.
    fn advance_task(&mut self, rates: Rates) {
        self.beats_left -= 1;
        self.help = match self.help {
            Some(Help::Requested) => Some(Help::Promised),
            Some(Help::Promised) => Some(Help::Fulfilled),
            _ => None,
        };
        match self.state {
            State::Planning => {
                self.beats_in_state -= 1;
                if self.beats_in_state <= 0 {
                    self.state = State::Executing;
                }
            }
            State::Executing => {
                self.worked += 1;
                if self.worked >= self.work {
                    self.state = State::Review;
                    self.beats_in_state = 2;
                } else if self.rng.random_bool(STALL_PROBABILITY) {
                    self.state = State::Waiting;
                } else if self.help.is_none() && self.rng.random_bool(HELP_REQUEST_PROBABILITY) {
                    self.help = Some(Help::Requested);
                }
            }
            State::Waiting => {
                if self.rng.random_bool(RESUME_PROBABILITY) {
                    self.state = State::Executing;
                }
            }
            State::Review => {
                self.beats_in_state -= 1;
                if self.beats_in_state <= 0 {
                    self.state = if self.rng.random_bool(rates.failure) { State::Failed } else { State::Done };
                }
            }
            State::Done | State::Failed | State::Unknown => self.begin_task(rates),
        }
    }

    fn delivery(&mut self, rates: Rates) -> Delivery {
        // All random numbers are always drawn, so that one rate does not change the effect of another.
        let (late, malformed) = (self.rng.random_bool(rates.late), self.rng.random_bool(rates.malformed));
        let kind = self.rng.random_range(0..Malformation::ALL.len());
        match (malformed, late) {
            (true, _) => Delivery::Malformed(Malformation::ALL[kind]),
            (false, true) => Delivery::Late,
            (false, false) => Delivery::OnTime,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const RATES: Rates = Rates {
        failure: 0.1,
        silence: 0.05,
        late: 0.05,
        malformed: 0.05,
        silent_tasks: 0.0,
        stalled_tasks: 0.0,
        overdrawn_tasks: 0.0,
    };

    fn plans(seed: u64, beats: u32) -> Vec<ClaimPlan> {
        plans_of(Shape::Steady, seed, beats)
    }

    fn plans_of(shape: Shape, seed: u64, beats: u32) -> Vec<ClaimPlan> {
        let mut fleet = Fleet::new("a-", 30, seed, RATES, shape);
        (0..beats).flat_map(|beat| fleet.claims_for_next_beat(beat % 4 == 0).collect::<Vec<_>>()).collect()
    }

    fn agent_ids(plans: &[ClaimPlan]) -> HashSet<&str> {
        plans.iter().map(|plan| plan.status.agent_id.as_str()).collect()
    }

    #[test]
    fn agent_fits_into_56_bytes() {
        assert!(size_of::<Agent>() <= 56, "{} bytes", size_of::<Agent>());
    }

    #[test]
    fn troubled_tasks_are_silent_stalled_or_overdrawn() {
        let calm = Rates { failure: 0.0, silence: 0.0, late: 0.0, malformed: 0.0, ..RATES };
        let plans = |rates: Rates| {
            let mut fleet = Fleet::new("a-", 10, 1, rates, Shape::Steady);
            (0..40).map(|beat| fleet.claims_for_next_beat(beat % 4 == 0).collect()).collect::<Vec<Vec<ClaimPlan>>>()
        };
        let silent = plans(Rates { silent_tasks: 1.0, ..calm });
        assert!(silent.iter().any(|plans| plans.len() < 10) && silent.iter().any(|plans| !plans.is_empty()));
        let claims_of_a_task = |beats: Vec<Vec<ClaimPlan>>| {
            let claims = beats.into_iter().flatten().map(|plan| plan.status);
            claims.filter(|status| status.task_id == "a-00000-task-1").collect::<Vec<_>>()
        };
        let stalled = claims_of_a_task(plans(Rates { stalled_tasks: 1.0, ..calm }));
        let longest = stalled.chunk_by(|a, b| (a.state, a.progress) == (b.state, b.progress)).map(<[_]>::len).max();
        assert!(longest >= Some(usize::from(STUCK_BEATS)), "{longest:?}");
        let overdrawn = claims_of_a_task(plans(Rates { overdrawn_tasks: 1.0, ..calm }));
        assert!(overdrawn.iter().any(|status| status.beats_left < 0 && status.state != State::Done));
    }

    #[test]
    fn fleet_with_churn_replaces_agents() {
        let churned = plans_of(Shape::Churn { rate: 0.1 }, 1, 100);
        // 30 agents at a time, each replaced about 10 times in 100 beats.
        let agents = agent_ids(&churned).len();
        assert!((200..450).contains(&agents), "{agents}");
        assert!(agent_ids(&churned).contains("a-00007.3"));
        assert_eq!(churned, plans_of(Shape::Churn { rate: 0.1 }, 1, 100));
        assert_eq!(agent_ids(&plans_of(Shape::Steady, 1, 100)).len(), 30);
    }

    #[test]
    fn fleet_with_the_same_seed_makes_the_same_claims() {
        assert_eq!(plans(7, 100), plans(7, 100));
        assert_ne!(plans(7, 100), plans(8, 100));
    }

    #[test]
    fn fleet_over_many_beats_makes_every_kind_of_claim() {
        let plans = plans(1, 400);
        let states: HashSet<State> = plans.iter().map(|plan| plan.status.state).collect();
        assert_eq!(states.len(), 6, "every state except unknown: {states:?}");
        let helps: HashSet<_> = plans.iter().filter_map(|plan| plan.status.help).collect();
        assert_eq!(helps.len(), 3, "{helps:?}");
        let rotations: HashSet<_> = plans.iter().filter_map(|plan| plan.status.secret_rotation).collect();
        assert_eq!(rotations.len(), 2, "{rotations:?}");
        let is_planned = |kind: &&Malformation| plans.iter().any(|plan| plan.delivery == Delivery::Malformed(**kind));
        assert_eq!(Malformation::ALL.iter().filter(is_planned).count(), Malformation::ALL.len());
        assert!(plans.iter().any(|plan| plan.delivery == Delivery::Late));
        assert!(plans.iter().any(|plan| plan.status.beats_left < 0), "some tasks overdraw their budgets");
        assert!(plans.iter().all(|plan| (0.0..=1.0).contains(&plan.status.progress)));
        assert!(plans.len() < 30 * 400, "some claims are not sent");
    }
}
