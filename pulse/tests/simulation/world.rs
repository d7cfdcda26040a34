//! The simulated world: time, nodes, messages in flight, and faults.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use backbeat_pulse::core::{
    Boundary, Command, Event, InitialConfig, KafkaCommand, KafkaResponse, Leadership, Metronome, Now, Plan,
    PlanRequest, RaftRole, RaftTimeouts, Role, TempoBounds,
};
use backbeat_schemas::{BeatFrame, BeatIndex, Tempo};
use backbeat_simulation::{Violation, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::checks;
use crate::kafka::{Commit, Kafka, claim_ends};
use crate::raft::{ELECTION_TIMEOUT, Links, Raft, name};

pub(crate) const NODES: usize = 3;
const SLOWEST_BPM: u32 = 4;
const FASTEST_BPM: u32 = 600;
/// A second. All times here are in microseconds.
const SECOND: u64 = 1_000_000;
/// The interval between two steps of Raft.
const RAFT_STEP: u64 = 20_000;
/// The average interval between two changes of the faults.
const FAULT_INTERVAL: u64 = 2 * SECOND;
/// The time during which there are faults.
const FAULTS_DURATION: u64 = 90 * SECOND;
/// Once faults end, beats must continue within this time and two periods: it covers a leader that steps down, an
/// election, a takeover, a long commit, and two nodes that fence each other for a while.
const RECOVERY: u64 = 30 * SECOND;
/// The longest time, in seconds, until the clock catches up with a schedule that a wrong clock moved ahead.
const SECONDS_TO_CATCH_UP: u64 = 600;
/// The longest time, in seconds, to carry out a plan: from 4 to 600 BPM in bars of 5 takes half an hour.
const SECONDS_FOR_A_PLAN: u64 = 3_600;
/// The longest age of a quorum confirmation for a beat that is not degraded.
const QUORUM_VALIDITY: u64 = 5 * ELECTION_TIMEOUT;
/// The wall clock at the beginning, in microseconds since the Unix epoch.
const EPOCH: i64 = 1_790_000_000_000_000;

/// A violation of an invariant, made on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    NoFence,
    PhantomTail,
    HiddenCommit,
    FalseQuorum,
    PlanNotCommitted,
    TimersLost,
    HlcFrozen,
    ScheduleGoesBack,
    TermFrozen,
    BoundariesForgotten,
    BoundaryAhead,
    TempoJumps,
    DownbeatLost,
    NoElections,
    PlansLost,
}

impl Sabotage {
    pub(crate) const ALL: [Self; 15] = [
        Self::PhantomTail,
        Self::HiddenCommit,
        Self::FalseQuorum,
        Self::PlanNotCommitted,
        Self::TimersLost,
        Self::NoFence,
        Self::HlcFrozen,
        Self::ScheduleGoesBack,
        Self::TermFrozen,
        Self::BoundariesForgotten,
        Self::BoundaryAhead,
        Self::TempoJumps,
        Self::DownbeatLost,
        Self::NoElections,
        Self::PlansLost,
    ];

    /// The check that must report it.
    pub(crate) fn caught_by(self) -> &'static str {
        match self {
            Self::PhantomTail | Self::HiddenCommit => checks::INDICES,
            Self::NoElections => checks::PROGRESS,
            Self::FalseQuorum => checks::DEGRADED,
            Self::PlanNotCommitted => checks::PLANNED,
            Self::TimersLost => checks::EVEN,
            Self::NoFence => checks::ONE_LEADER,
            Self::HlcFrozen => checks::HLC,
            Self::ScheduleGoesBack => checks::SCHEDULE,
            Self::TermFrozen => checks::TERMS,
            Self::BoundariesForgotten | Self::BoundaryAhead => checks::BOUNDARIES,
            Self::TempoJumps => checks::TEMPO,
            Self::DownbeatLost => checks::BARS,
            Self::PlansLost => checks::PLANS,
        }
    }
}

/// A scheduled event of the simulation.
#[derive(Debug, Clone)]
enum SimEvent {
    /// A node's core receives an event.
    Deliver(Event),
    /// The deadline of a node's core has come; with the number of the timer.
    Timer(u64),
    /// A quorum check, with its id, reaches the other nodes.
    QuorumRequest(u64),
    /// A command, from the producer with this epoch, reaches Kafka.
    KafkaRequest(Box<KafkaCommand>, u64),
    /// A command reaches Kafka after its node gave it up, so that its response is lost.
    Orphan(Box<KafkaCommand>, u64),
    /// A node receives the last stable offsets of `statusclaims`.
    BoundaryResponse(Boundary),
    /// A node receives the newest plan that Raft has committed.
    PlanResponse,
    /// A node learns its role in Raft, which is the newest one then, as with a watch: an older one never comes later.
    RaftRole,
}

struct Node {
    core: Option<Leadership>,
    /// The number of its starts; events for an earlier incarnation are dropped.
    incarnation: u64,
    booted_at: u64,
    clock_offset: i64,
    is_paused: bool,
    /// The events that a paused node processes when it resumes.
    deferred: Vec<SimEvent>,
    /// The number of its current timer; earlier timers are void.
    timer: u64,
    boundary: Boundary,
    /// The epoch of its producer, while it has one.
    epoch: Option<u64>,
    /// True if a command to Kafka is pending.
    awaits_kafka: bool,
    is_cut_off_from_kafka: bool,
    /// The time at which a quorum last confirmed that the node is Raft's leader.
    confirmed_at: Option<u64>,
    /// The time at which the node last initialized transactions.
    initialized_at: u64,
}

pub(crate) struct World {
    rng: ChaCha8Rng,
    sabotage: Option<Sabotage>,
    now: u64,
    /// By time and sequence number: the node, its incarnation, and the event.
    queue: BTreeMap<(u64, u64), (usize, u64, SimEvent)>,
    sequence: u64,
    nodes: Vec<Node>,
    kafka: Kafka,
    raft: Raft,
    links: Links,
    /// All plans that Raft has committed.
    plans: Vec<Plan>,
    /// The frames committed since faults ended, each with its time.
    since_faults: Vec<(BeatFrame, u64)>,
    initial_config: InitialConfig,
    faults_ended: bool,
    trace: String,
}

impl World {
    pub(crate) fn new(seed: u64, sabotage: Option<Sabotage>) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let slow = rng.random_bool(0.2);
        let bounds = if slow { [SLOWEST_BPM, 30] } else { [60, FASTEST_BPM] };
        let tempo = tempo(f64::from(rng.random_range(bounds[0]..bounds[1])));
        let initial_config = InitialConfig {
            cluster_id: "sim".into(),
            tempo,
            bar_length: rng.random_range(1..6),
            grace_beats: 0,
            first_beat: BeatIndex::ZERO,
        };
        let node = |_| Node {
            core: None,
            incarnation: 0,
            booted_at: 0,
            clock_offset: 0,
            is_paused: false,
            deferred: Vec::new(),
            timer: 0,
            boundary: Boundary::default(),
            epoch: None,
            awaits_kafka: false,
            is_cut_off_from_kafka: false,
            confirmed_at: None,
            initialized_at: 0,
        };
        let voters = if rng.random_bool(0.15) { 1 } else { NODES };
        let links = Links { voters, alive: [false; NODES], cut: [[false; NODES]; NODES], stepped_down: [false; NODES] };
        let nodes = (0..NODES).map(node).collect();
        let (kafka, raft) = (Kafka::new(sabotage), Raft::new());
        let (queue, trace) = (BTreeMap::new(), String::new());
        Self {
            rng,
            sabotage,
            now: 0,
            queue,
            sequence: 0,
            nodes,
            kafka,
            raft,
            links,
            plans: Vec::new(),
            since_faults: Vec::new(),
            initial_config,
            faults_ended: false,
            trace,
        }
    }

    pub(crate) fn into_trace(self) -> String {
        self.trace
    }

    /// Runs a period with faults, then one without, and returns the number of committed beats.
    pub(crate) fn run(&mut self) -> Result<u64, Violation> {
        (0..self.links.voters).for_each(|node| self.boot(node));
        self.advance(5 * SECOND)?;
        let faults_end = self.now + FAULTS_DURATION;
        while self.now < faults_end {
            self.fault();
            let pause = self.rng.random_range(0..2 * FAULT_INTERVAL);
            self.advance(pause)?;
        }
        self.heal();
        if self.links.voters == NODES && !self.kafka.log.is_empty() && self.rng.random_bool(0.5) {
            self.crash_all_but_one();
            self.check_beats_continue()?;
            let degraded = self.kafka.log.last().is_some_and(|frame| frame.degraded);
            ensure(degraded, checks::DEGRADED, || "one of three nodes publishes beats, not degraded".to_owned())?;
            self.heal();
        }
        self.check_beats_continue()?;
        let leaders = self.roles().into_iter().filter(|role| *role == Some(Role::Leader)).count();
        ensure(leaders == 1, checks::ONE_LEADER, || format!("roles at the end: {:?}", self.roles()))?;
        for _ in 0..SECONDS_TO_CATCH_UP {
            if self.kafka.log.last().is_some_and(|last| last.emitted_at >= last.scheduled_at && !last.re_anchored()) {
                break;
            }
            self.advance(SECOND)?;
        }
        self.advance(2 * self.period())?;
        self.since_faults.clear();
        self.check_plan()?;
        self.advance(5 * self.period())?;
        checks::even(&self.since_faults)?;
        Ok(self.kafka.log.len() as u64)
    }

    /// Checks that beats continue after the time that a recovery may take.
    fn check_beats_continue(&mut self) -> Result<(), Violation> {
        self.advance(RECOVERY + 2 * self.period())?;
        let before = self.kafka.log.len();
        self.advance(4 * self.period() + SECOND)?;
        let beats = self.kafka.log.len() - before;
        ensure(beats >= 3, checks::PROGRESS, || format!("{beats} beats in 4 periods, {:?}", self.roles()))
    }

    /// The longest period to expect: a plan may lead to a slower tempo.
    fn period(&self) -> u64 {
        let newest = self.kafka.log.last().map_or(self.initial_config.tempo, |frame| frame.tempo_bpm);
        let planned = self.plans.last().map_or(newest, |plan| plan.tempo.min(newest));
        planned.period_ms() as u64 * 1_000
    }

    /// Crashes two of three nodes, without a restart.
    fn crash_all_but_one(&mut self) {
        let survivor = self.rng.random_range(0..NODES);
        (0..NODES).filter(|node| *node != survivor).for_each(|node| self.crash(node));
    }

    /// Checks that the last plan is carried out in the time that it may take.
    fn check_plan(&mut self) -> Result<(), Violation> {
        let Some(plan) = self.plans.last().copied() else { return Ok(()) };
        let mut is_done = false;
        for _ in 0..SECONDS_FOR_A_PLAN {
            is_done = self.kafka.log.last().is_some_and(|last| {
                (last.tempo_bpm, last.bar_length) == (plan.tempo, plan.bar_length) && last.beat_index >= plan.from
            });
            if is_done {
                break;
            }
            self.advance(SECOND)?;
        }
        ensure(is_done, checks::PLANS, || format!("{plan:?}, not {:?}", self.kafka.log.last()))
    }

    fn roles(&self) -> Vec<Option<Role>> {
        self.nodes.iter().map(|node| node.core.as_ref().map(Leadership::role)).collect()
    }

    /// Advances time, and processes the events that are due.
    fn advance(&mut self, micros: u64) -> Result<(), Violation> {
        let until = self.now + micros;
        while self.now < until {
            let next_step = (self.now / RAFT_STEP + 1) * RAFT_STEP;
            while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 < next_step.min(until)) {
                self.now = entry.key().0.max(self.now);
                let (node, incarnation, sim_event) = entry.remove();
                self.process(node, incarnation, sim_event)?;
            }
            self.now = next_step.min(until);
            if self.now == next_step && self.sabotage != Some(Sabotage::NoElections) {
                for node in self.raft.step(self.now, &self.links, &mut self.rng) {
                    self.schedule(node, 0..10_000, SimEvent::RaftRole);
                }
            }
        }
        Ok(())
    }

    /// Returns true, with this probability, if there are faults.
    fn small_fault(&mut self, probability: f64) -> bool {
        !self.faults_ended && self.rng.random_bool(probability)
    }

    fn schedule(&mut self, node: usize, delay: std::ops::Range<u64>, sim_event: SimEvent) {
        let at = self.now + self.rng.random_range(delay);
        self.sequence += 1;
        self.queue.insert((at, self.sequence), (node, self.nodes[node].incarnation, sim_event));
    }

    fn process(&mut self, node: usize, of_incarnation: u64, sim_event: SimEvent) -> Result<(), Violation> {
        if let SimEvent::Orphan(command, epoch) = sim_event {
            // Its node sent it earlier, and may have crashed since.
            match *command {
                KafkaCommand::Publish(frame) if self.kafka.up => {
                    self.commit(epoch, *frame)?;
                }
                KafkaCommand::InitTransactions if self.kafka.up => {
                    self.kafka.init_transactions();
                }
                _ => {}
            }
            return Ok(());
        }
        if of_incarnation != self.nodes[node].incarnation || self.nodes[node].core.is_none() {
            return Ok(());
        }
        // Kafka and the other nodes continue while a node is paused; only what the node itself would process waits.
        let is_processed_by_node = matches!(
            sim_event,
            SimEvent::Deliver(_)
                | SimEvent::Timer(_)
                | SimEvent::BoundaryResponse(_)
                | SimEvent::PlanResponse
                | SimEvent::RaftRole
        );
        if self.nodes[node].is_paused && is_processed_by_node {
            self.nodes[node].deferred.push(sim_event);
            return Ok(());
        }
        match sim_event {
            SimEvent::Deliver(event) => self.deliver(node, event),
            SimEvent::Timer(timer) if timer == self.nodes[node].timer => self.deliver(node, Event::Elapsed),
            SimEvent::Timer(_) => Ok(()),
            SimEvent::BoundaryResponse(ends) => {
                self.nodes[node].boundary.advance_to(&ends);
                Ok(())
            }
            SimEvent::PlanResponse => match self.visible_plan() {
                Some(plan) if self.sabotage != Some(Sabotage::PlansLost) => {
                    self.deliver(node, Event::PlanApplied(plan))
                }
                _ => Ok(()),
            },
            SimEvent::RaftRole => self.deliver(node, Event::RaftRoleChanged(self.raft.views[node].clone())),
            SimEvent::QuorumRequest(check_id) => {
                let is_true = self.raft.confirms(node, &self.links);
                if is_true {
                    self.nodes[node].confirmed_at = Some(self.now);
                }
                let confirmed = is_true || self.sabotage == Some(Sabotage::FalseQuorum);
                let delay = if confirmed { 100..5_000 } else { 1_000..480_000 };
                self.schedule(node, delay, SimEvent::Deliver(Event::QuorumChecked { check_id, confirmed }));
                Ok(())
            }
            SimEvent::KafkaRequest(command, epoch) => self.process_kafka_request(node, *command, epoch),
            SimEvent::Orphan(..) => unreachable!("handled above"),
        }
    }

    /// Processes a command of `node` that reaches Kafka.
    fn process_kafka_request(&mut self, node: usize, command: KafkaCommand, epoch: u64) -> Result<(), Violation> {
        let is_unavailable = !self.kafka.up || self.nodes[node].is_cut_off_from_kafka;
        let response_is_lost = self.small_fault(0.02);
        let response = match command {
            KafkaCommand::ReadTail | KafkaCommand::InitTransactions if is_unavailable || response_is_lost => {
                if matches!(command, KafkaCommand::InitTransactions) && !self.nodes[node].is_cut_off_from_kafka {
                    // Kafka executes it all the same, now or later.
                    self.schedule(node, 0..10 * SECOND, SimEvent::Orphan(Box::new(command), 0));
                }
                self.schedule(
                    node,
                    SECOND..10 * SECOND,
                    SimEvent::Deliver(Event::Kafka(KafkaResponse::KafkaUnavailable)),
                );
                return Ok(());
            }
            KafkaCommand::ReadTail => {
                let frame = self.kafka.tail();
                if let Some(frame) = &frame
                    && self.sabotage != Some(Sabotage::BoundariesForgotten)
                {
                    self.nodes[node].boundary.advance_to(&Boundary::new(frame.claim_offsets.clone()));
                }
                KafkaResponse::Tail { frame: frame.map(Box::new), open_frame: None, newest_reported: None }
            }
            KafkaCommand::InitTransactions => {
                let epoch = self.kafka.init_transactions();
                self.nodes[node].epoch = Some(epoch);
                self.nodes[node].initialized_at = self.now;
                let holders = self.nodes.iter().filter(|node| node.epoch == Some(epoch)).count();
                ensure(holders == 1, checks::ONE_LEADER, || format!("{holders} producers of epoch {epoch}"))?;
                KafkaResponse::TransactionsInitialized
            }
            KafkaCommand::SampleBoundary => {
                if !is_unavailable && self.sabotage != Some(Sabotage::BoundariesForgotten) {
                    self.nodes[node].boundary.advance_to(&claim_ends(self.now));
                }
                KafkaResponse::BoundarySampled
            }
            KafkaCommand::Publish(frame) if is_unavailable => {
                // Kafka may execute it later or never; the node does not know.
                if self.rng.random_bool(0.5) {
                    self.schedule(
                        node,
                        0..20 * SECOND,
                        SimEvent::Orphan(Box::new(KafkaCommand::Publish(frame)), epoch),
                    );
                }
                self.schedule(node, SECOND..10 * SECOND, SimEvent::Deliver(Event::Kafka(KafkaResponse::InDoubt)));
                return Ok(());
            }
            KafkaCommand::Publish(frame) => match self.commit(epoch, *frame)? {
                Commit::Done if response_is_lost => KafkaResponse::InDoubt,
                Commit::InDoubt => KafkaResponse::InDoubt,
                Commit::Done => KafkaResponse::Committed,
                Commit::Fenced => KafkaResponse::Fenced,
            },
            KafkaCommand::CloseProducer => {
                self.nodes[node].epoch = None;
                return Ok(());
            }
        };
        let delay = if response_is_lost { SECOND..10 * SECOND } else { 500..20_000 };
        self.schedule(node, delay, SimEvent::Deliver(Event::Kafka(response)));
        Ok(())
    }

    fn commit(&mut self, epoch: u64, frame: BeatFrame) -> Result<Commit, Violation> {
        let before = self.kafka.log.last().cloned();
        let outcome = self.kafka.commit(epoch, frame, self.now)?;
        if let (Commit::Done, Some(frame)) = (&outcome, self.kafka.log.last().cloned()) {
            if let Some(before) = before {
                checks::as_planned(&before, &frame, &self.plans)?;
            }
            self.since_faults.push((frame.clone(), self.now));
            if self.kafka.hides_last {
                return Ok(Commit::InDoubt);
            }
            self.deliver_frame(&frame);
        }
        Ok(outcome)
    }

    /// The newest plan, as nodes receive it.
    fn visible_plan(&self) -> Option<Plan> {
        let plan = self.plans.last().copied()?;
        let is_wrong = self.sabotage == Some(Sabotage::PlanNotCommitted);
        Some(if is_wrong { Plan { bar_length: plan.bar_length + 1, ..plan } } else { plan })
    }

    /// Schedules the reading of a committed frame by every node.
    fn deliver_frame(&mut self, frame: &BeatFrame) {
        let (beat, node, emitted) = (frame.beat_index, &frame.node, frame.emitted_at.millis());
        let mark = if frame.degraded { " degraded" } else { "" };
        writeln!(self.trace, "{:>10} committed {beat} by {node} at {emitted} {}{mark}", self.now, frame.hlc)
            .expect("writing to a String does not fail");
        for node in 0..NODES {
            if !self.nodes[node].is_cut_off_from_kafka {
                self.schedule(node, 500..50_000, SimEvent::Deliver(Event::FrameRead(Box::new(frame.clone()))));
            }
        }
    }

    fn deliver(&mut self, node: usize, event: Event) -> Result<(), Violation> {
        let is_kafka_response = matches!(event, Event::Kafka(_));
        if is_kafka_response {
            self.nodes[node].awaits_kafka = false;
        }
        self.trace_event(node, &event);
        let now = self.now_of(node);
        let Node { core, boundary, .. } = &mut self.nodes[node];
        let Some(core) = core else { return Ok(()) };
        let commands = core.on(event, now, boundary);
        for command in commands {
            self.execute(node, command)?;
        }
        self.set_timer(node);
        Ok(())
    }

    fn trace_event(&mut self, node: usize, event: &Event) {
        let what = match event {
            Event::Kafka(KafkaResponse::Tail { frame, .. }) => {
                format!("tail {:?}", frame.as_ref().map(|frame| frame.beat_index.get()))
            }
            Event::FrameRead(frame) => format!("read {}", frame.beat_index),
            other => format!("{other:?}"),
        };
        writeln!(self.trace, "{:>10} n{node} {what}", self.now).expect("writing to a String does not fail");
    }

    fn now_of(&mut self, node: usize) -> Now {
        let Node { booted_at, clock_offset, .. } = self.nodes[node];
        Now {
            wall_micros: EPOCH + self.now as i64 + clock_offset,
            monotonic: Duration::from_micros(self.now - booted_at),
            random: self.rng.random(),
        }
    }

    fn set_timer(&mut self, node: usize) {
        self.nodes[node].timer += 1;
        let Node { core: Some(core), booted_at, timer, .. } = &self.nodes[node] else { return };
        let Some(deadline) = core.deadline() else { return };
        let at = (booted_at + deadline.as_micros() as u64).max(self.now);
        let sim_event = SimEvent::Timer(*timer);
        let incarnation = self.nodes[node].incarnation;
        if self.faults_ended && self.sabotage == Some(Sabotage::TimersLost) && self.rng.random_bool(0.2) {
            self.sequence += 1;
            self.queue.insert((at + 300_000, self.sequence), (node, incarnation, sim_event));
            return;
        }
        // Now and then the scheduler wakes a thread late.
        let late = if self.small_fault(0.01) { self.rng.random_range(0..200_000) } else { 0 };
        self.sequence += 1;
        // Rounded up: a microsecond before its deadline, it would be set again at once.
        self.queue.insert((at + late + 1, self.sequence), (node, incarnation, sim_event));
    }

    fn execute(&mut self, node: usize, command: Command) -> Result<(), Violation> {
        if !matches!(command, Command::CheckQuorum { .. } | Command::RefreshBoundary) {
            let what = match &command {
                Command::Kafka(KafkaCommand::Publish(frame)) => {
                    format!("publish {} of term {}", frame.beat_index, frame.term)
                }
                other => format!("{other:?}"),
            };
            writeln!(self.trace, "{:>10} n{node} -> {what}", self.now).expect("writing to a String does not fail");
        }
        match command {
            Command::CheckQuorum { check_id } => self.schedule(node, 0..2_000, SimEvent::QuorumRequest(check_id)),
            Command::RefreshBoundary => {
                if self.kafka.up && !self.nodes[node].is_cut_off_from_kafka {
                    self.schedule(node, 500..20_000, SimEvent::BoundaryResponse(claim_ends(self.now)));
                }
            }
            Command::Kafka(KafkaCommand::CloseProducer) => self.nodes[node].epoch = None,
            Command::StepDown => self.links.stepped_down[node] = true,
            Command::Rejoin => self.links.stepped_down[node] = false,
            Command::Stop(reason) => {
                ensure(false, checks::PROGRESS, || format!("n{node} stopped: {reason}"))?;
            }
            Command::Kafka(command) => {
                let awaits_kafka = std::mem::replace(&mut self.nodes[node].awaits_kafka, true);
                ensure(!awaits_kafka, checks::PROGRESS, || format!("n{node} has two commands to Kafka pending"))?;
                if matches!(command, KafkaCommand::InitTransactions) {
                    self.nodes[node].epoch = None;
                }
                if let KafkaCommand::Publish(frame) = &command {
                    self.check_may_publish(node, frame)?;
                }
                let epoch = self.nodes[node].epoch.unwrap_or(u64::MAX);
                let slow = self.small_fault(0.02);
                let delay = if slow { 100_000..2 * SECOND } else { 200..5_000 };
                self.schedule(node, delay, SimEvent::KafkaRequest(Box::new(command), epoch));
            }
        }
        Ok(())
    }

    /// Checks that a node may publish `frame`: with an open producer, and if it is not degraded with a quorum.
    fn check_may_publish(&self, node: usize, frame: &BeatFrame) -> Result<(), Violation> {
        let Node { epoch, confirmed_at, initialized_at, is_paused, .. } = &self.nodes[node];
        ensure(epoch.is_some() && !is_paused, checks::ONE_LEADER, || format!("n{node} publishes without a producer"))?;
        // The confirmation was given a little before the node received it.
        let has_quorum = confirmed_at.is_some_and(|at| self.now <= at + QUORUM_VALIDITY + SECOND / 2);
        ensure(frame.degraded || has_quorum, checks::DEGRADED, || format!("n{node} at {}: {frame:?}", self.now))?;
        // For the first beat of a leader only a confirmation after its `InitTransactions` counts.
        let is_first = self.kafka.log.last().is_none_or(|last| last.term != frame.term);
        let is_after_init = confirmed_at.is_some_and(|at| at >= *initialized_at);
        ensure(frame.degraded || !is_first || is_after_init, checks::DEGRADED, || {
            format!("first beat of n{node}: {frame:?}")
        })
    }

    fn boot(&mut self, node: usize) {
        let incarnation = self.nodes[node].incarnation + 1;
        let random = self.rng.random();
        let initial_config = self.initial_config.clone();
        let state = &mut self.nodes[node];
        state.incarnation = incarnation;
        state.booted_at = self.now;
        state.is_paused = false;
        state.deferred.clear();
        state.boundary = Boundary::default();
        state.epoch = None;
        state.awaits_kafka = false;
        let metronome = Metronome::new(initial_config, name(node), node as u16);
        state.confirmed_at = None;
        let bounds = TempoBounds { min: tempo(f64::from(SLOWEST_BPM)), max: tempo(f64::from(FASTEST_BPM)) };
        let now = Now { wall_micros: EPOCH, monotonic: Duration::ZERO, random };
        state.core = Some(Leadership::new(metronome, bounds, RaftTimeouts::DEFAULT, now));
        self.links.alive[node] = true;
        self.links.stepped_down[node] = false;
        writeln!(self.trace, "{:>10} n{node} boots", self.now).expect("writing to a String does not fail");
        if self.raft.restarted(node) != RaftRole::Leaderless {
            self.schedule(node, 0..10_000, SimEvent::RaftRole);
        }
        self.schedule(node, 0..10_000, SimEvent::PlanResponse);
        self.read_newest(node);
    }

    /// Schedules the reading of the newest frame by a node that can read Kafka again.
    fn read_newest(&mut self, node: usize) {
        if let Some(last) = self.kafka.log.last().cloned() {
            self.schedule(node, 1_000..50_000, SimEvent::Deliver(Event::FrameRead(Box::new(last))));
        }
    }

    fn crash(&mut self, node: usize) {
        writeln!(self.trace, "{:>10} n{node} crashes", self.now).expect("writing to a String does not fail");
        // The commands that it has sent may still arrive.
        let incarnation = self.nodes[node].incarnation;
        let sent: Vec<_> = self.queue.iter().filter(|(_, (n, i, _))| (*n, *i) == (node, incarnation)).collect();
        let orphans: Vec<(Box<KafkaCommand>, u64)> = sent
            .into_iter()
            .filter_map(|(_, (_, _, sim_event))| match sim_event {
                SimEvent::KafkaRequest(command, epoch) => Some((command.clone(), *epoch)),
                _ => None,
            })
            .collect();
        for (command, epoch) in orphans {
            self.schedule(node, 0..5_000, SimEvent::Orphan(command, epoch));
        }
        self.nodes[node].core = None;
        self.nodes[node].is_paused = false;
        self.nodes[node].epoch = None;
        self.links.alive[node] = false;
        self.links.stepped_down[node] = false;
    }

    fn resume(&mut self, node: usize) {
        writeln!(self.trace, "{:>10} n{node} wakes", self.now).expect("writing to a String does not fail");
        self.nodes[node].is_paused = false;
        self.links.alive[node] = true;
        for (place, sim_event) in (1..).zip(std::mem::take(&mut self.nodes[node].deferred)) {
            // In the order in which they were deferred.
            self.schedule(node, place..place + 1, sim_event);
        }
    }

    /// Starts or ends a fault, or makes an operator's request.
    fn fault(&mut self) {
        let node = self.rng.random_range(0..self.links.voters);
        let other = (node + self.rng.random_range(1..NODES)) % NODES;
        match self.rng.random_range(0..13) {
            12 => {
                writeln!(self.trace, "{:>10} kafka aborts a transaction", self.now)
                    .expect("writing to a String does not fail");
                self.kafka.time_out();
            }
            0 | 1 => match (self.nodes[node].core.is_some(), self.nodes[node].is_paused) {
                (true, true) => self.resume(node),
                (true, false) => self.crash(node),
                (false, _) => self.boot(node),
            },
            2 | 3 => match (self.nodes[node].core.is_some(), self.nodes[node].is_paused) {
                (true, true) => self.resume(node),
                (true, false) => {
                    writeln!(self.trace, "{:>10} n{node} pauses", self.now).expect("writing to a String does not fail");
                    self.nodes[node].is_paused = true;
                    self.links.alive[node] = false;
                }
                (false, _) => self.boot(node),
            },
            4 | 5 => {
                let cut = !self.links.cut[node][other];
                writeln!(self.trace, "{:>10} n{node} n{other} cut {cut}", self.now)
                    .expect("writing to a String does not fail");
                self.links.cut[node][other] = cut;
                self.links.cut[other][node] = cut;
            }
            6 => {
                self.nodes[node].is_cut_off_from_kafka ^= true;
                let cut = self.nodes[node].is_cut_off_from_kafka;
                if !cut {
                    self.read_newest(node);
                }
                writeln!(self.trace, "{:>10} n{node} kafka cut {cut}", self.now)
                    .expect("writing to a String does not fail");
            }
            7 => {
                self.kafka.up ^= true;
                writeln!(self.trace, "{:>10} kafka up {}", self.now, self.kafka.up)
                    .expect("writing to a String does not fail");
            }
            8 | 9 => {
                let large = self.rng.random_bool(0.3);
                let most = if large { 300 * SECOND as i64 } else { SECOND as i64 };
                self.nodes[node].clock_offset = self.rng.random_range(-most..most);
                let off_by = self.nodes[node].clock_offset;
                writeln!(self.trace, "{:>10} n{node} clock off by {off_by}", self.now)
                    .expect("writing to a String does not fail");
            }
            _ => self.request_change(),
        }
    }

    /// Makes an operator's request to the leader: another tempo or bar length, or a cancellation.
    fn request_change(&mut self) {
        let Some(leader) = self.raft.leader else { return };
        let change = PlanRequest::Change {
            tempo: Some(tempo(f64::from(self.rng.random_range(SLOWEST_BPM..FASTEST_BPM)))),
            ramp: self.rng.random_bool(0.8),
            bar_length: self.rng.random_bool(0.3).then(|| self.rng.random_range(1..6)),
        };
        let request = if self.rng.random_bool(0.2) { PlanRequest::Cancel } else { change };
        let Some(core) = self.nodes[leader].core.as_mut() else { return };
        let Ok(plan) = core.propose(request) else { return };
        if !self.raft.confirms(leader, &self.links) {
            core.give_up_proposal();
            return;
        }
        writeln!(self.trace, "{:>10} committed plan {plan:?}", self.now).expect("writing to a String does not fail");
        self.plans.push(plan);
        for node in 0..NODES {
            self.schedule(node, 0..50_000, SimEvent::PlanResponse);
        }
    }

    /// Ends all faults; clocks stay wrong, but by a second at most.
    fn heal(&mut self) {
        writeln!(self.trace, "{:>10} faults end", self.now).expect("writing to a String does not fail");
        self.faults_ended = true;
        self.kafka.up = true;
        self.links.cut = [[false; NODES]; NODES];
        for node in 0..self.links.voters {
            self.nodes[node].is_cut_off_from_kafka = false;
            self.read_newest(node);
            self.nodes[node].clock_offset = self.nodes[node].clock_offset.clamp(-(SECOND as i64), SECOND as i64);
            if self.nodes[node].core.is_none() {
                self.boot(node);
            } else if self.nodes[node].is_paused {
                self.resume(node);
            }
        }
    }
}

fn tempo(bpm: f64) -> Tempo {
    Tempo::try_from(bpm).expect("a valid tempo")
}
