//! The world: time, nodes, what is on its way between them, and what fails.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use backbeat_pulse::core::{
    Boundary, Bounds, Command, Event, InitialConfig, Leadership, Metronome, Now, Plan, RaftRole, Request, Role,
};
use backbeat_schemas::{BeatFrame, Tempo};
use backbeat_simulation::{Violation, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::checks;
use crate::kafka::{Commit, Kafka, boundary};
use crate::raft::{Links, Raft, name};

pub(crate) const NODES: usize = 3;
/// Beats per minute.
const SLOWEST: u32 = 4;
const FASTEST: u32 = 600;
const SECOND: u64 = 1_000_000;
const ELECTION_TIMEOUT: Duration = Duration::from_millis(240);
/// Raft is looked at this often.
const RAFT_STEP: u64 = 20_000;
/// Faults begin and end this often, on average, while there are any.
const FAULT_EVERY: u64 = 2 * SECOND;
const FAULTS_FOR: u64 = 90 * SECOND;
/// Once faults end, beats must go on within this, and two periods: an abdication, an election, a takeover, a long
/// commit, two contenders that fence each other for a while.
const RECOVERY: u64 = 30 * SECOND;
/// A schedule that a wild clock moved ahead has been caught up with after this many seconds.
const SECONDS_TO_CATCH_UP: u64 = 600;
/// Then a plan has this long to be carried out: from 4 to 600 BPM in bars of 5 takes half an hour.
const SECONDS_FOR_A_PLAN: u64 = 3_600;
/// How old a quorum's word may be for a beat that is not degraded.
const QUORUM_LASTS: u64 = 1_200_000;
/// The wall clock at the beginning, in microseconds since the Unix epoch.
const EPOCH: i64 = 1_790_000_000_000_000;

/// An invariant, broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    NoFence,
    PhantomTail,
    HiddenCommit,
    QuorumLies,
    PlanUnagreed,
    TimersLost,
    HlcStands,
    ScheduleTurnsBack,
    TermStands,
    LinesForgotten,
    LineAhead,
    TempoLeaps,
    DownbeatLost,
    NoElections,
    PlansLost,
}

impl Sabotage {
    pub(crate) const ALL: [Self; 15] = [
        Self::PhantomTail,
        Self::HiddenCommit,
        Self::QuorumLies,
        Self::PlanUnagreed,
        Self::TimersLost,
        Self::NoFence,
        Self::HlcStands,
        Self::ScheduleTurnsBack,
        Self::TermStands,
        Self::LinesForgotten,
        Self::LineAhead,
        Self::TempoLeaps,
        Self::DownbeatLost,
        Self::NoElections,
        Self::PlansLost,
    ];

    pub(crate) fn caught_by(self) -> &'static str {
        match self {
            Self::PhantomTail | Self::HiddenCommit => checks::INDICES,
            Self::NoElections => checks::PROGRESS,
            Self::QuorumLies => checks::DEGRADED,
            Self::PlanUnagreed => checks::PLANNED,
            Self::TimersLost => checks::EVEN,
            Self::NoFence => checks::ONE_LEADER,
            Self::HlcStands => checks::HLC,
            Self::ScheduleTurnsBack => checks::SCHEDULE,
            Self::TermStands => checks::TERMS,
            Self::LinesForgotten | Self::LineAhead => checks::BOUNDARIES,
            Self::TempoLeaps => checks::TEMPO,
            Self::DownbeatLost => checks::BARS,
            Self::PlansLost => checks::PLANS,
        }
    }
}

/// What comes to pass at its time.
#[derive(Debug, Clone)]
enum Happening {
    /// An event reaches a node's core.
    Deliver(Event),
    /// The time of its deadline.
    Timer(u64),
    /// A question reaches the quorum.
    Ask(u64),
    /// A command reaches Kafka, of the producer with this epoch.
    Reach(Box<Command>, u64),
    /// A request reaches Kafka after it was given up: nobody waits for an answer.
    Stray(Box<Command>, u64),
    /// The ends of `statusclaims` are known to a node.
    BoundaryKnown(Boundary),
    /// A node hears what Raft has agreed on by then.
    PlanKnown,
}

struct Node {
    core: Option<Leadership>,
    /// Happenings of earlier lives are void.
    life: u64,
    booted: u64,
    clock_off_by: i64,
    is_paused: bool,
    /// What a paused node finds when it wakes.
    found: Vec<Happening>,
    timer: u64,
    boundary: Boundary,
    /// The epoch of its open producer.
    epoch: Option<u64>,
    kafka_is_busy: bool,
    kafka_is_cut: bool,
    /// When a quorum's word for it was true, last.
    confirmed: Option<u64>,
    /// When it last opened the transactional id.
    opened: u64,
}

pub(crate) struct World {
    rng: ChaCha8Rng,
    sabotage: Option<Sabotage>,
    now: u64,
    queue: BTreeMap<(u64, u64), (usize, u64, Happening)>,
    sequence: u64,
    nodes: Vec<Node>,
    kafka: Kafka,
    raft: Raft,
    links: Links,
    /// All that were agreed on.
    plans: Vec<Plan>,
    /// What was committed since faults ended, and when.
    since_calm: Vec<(BeatFrame, u64)>,
    initial_config: InitialConfig,
    /// Faults have ended.
    is_calm: bool,
    trace: String,
}

impl World {
    pub(crate) fn new(seed: u64, sabotage: Option<Sabotage>) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let slow = rng.random_bool(0.2);
        let bounds = if slow { [SLOWEST, 30] } else { [60, FASTEST] };
        let tempo = tempo(f64::from(rng.random_range(bounds[0]..bounds[1])));
        let initial_config =
            InitialConfig { cluster_id: "sim".into(), tempo, bar_length: rng.random_range(1..6), grace_beats: 0 };
        let node = |_| Node {
            core: None,
            life: 0,
            booted: 0,
            clock_off_by: 0,
            is_paused: false,
            found: Vec::new(),
            timer: 0,
            boundary: Boundary::default(),
            epoch: None,
            kafka_is_busy: false,
            kafka_is_cut: false,
            confirmed: None,
            opened: 0,
        };
        let members = if rng.random_bool(0.15) { 1 } else { NODES };
        let links = Links { members, alive: [false; NODES], cut: [[false; NODES]; NODES], quiet: [false; NODES] };
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
            since_calm: Vec::new(),
            initial_config,
            is_calm: false,
            trace,
        }
    }

    pub(crate) fn into_trace(self) -> String {
        self.trace
    }

    /// Faults for a while, then none; the beats that were committed.
    pub(crate) fn run(&mut self) -> Result<u64, Violation> {
        (0..self.links.members).for_each(|node| self.boot(node));
        self.go_on(5 * SECOND)?;
        let faults_end = self.now + FAULTS_FOR;
        while self.now < faults_end {
            self.fault();
            let pause = self.rng.random_range(0..2 * FAULT_EVERY);
            self.go_on(pause)?;
        }
        self.heal();
        if self.links.members == NODES && !self.kafka.log.is_empty() && self.rng.random_bool(0.5) {
            self.leave_one();
            self.go_on_beating()?;
            let degraded = self.kafka.log.last().is_some_and(|frame| frame.degraded);
            ensure(degraded, checks::DEGRADED, || "one of three nodes beats, and not degraded".to_owned())?;
            self.heal();
        }
        self.go_on_beating()?;
        let leaders = self.roles().into_iter().filter(|role| *role == Some(Role::Leader)).count();
        ensure(leaders == 1, checks::ONE_LEADER, || format!("in the end {:?}", self.roles()))?;
        for _ in 0..SECONDS_TO_CATCH_UP {
            if self.kafka.log.last().is_some_and(|last| last.emitted_at >= last.scheduled_at && !last.re_anchored()) {
                break;
            }
            self.go_on(SECOND)?;
        }
        self.go_on(2 * self.period())?;
        self.since_calm.clear();
        self.check_plan()?;
        self.go_on(5 * self.period())?;
        checks::even(&self.since_calm)?;
        Ok(self.kafka.log.len() as u64)
    }

    /// Beats go on after the time that it may take.
    fn go_on_beating(&mut self) -> Result<(), Violation> {
        self.go_on(RECOVERY + 2 * self.period())?;
        let before = self.kafka.log.len();
        self.go_on(4 * self.period() + SECOND)?;
        let beats = self.kafka.log.len() - before;
        ensure(beats >= 3, checks::PROGRESS, || format!("{beats} beats in 4 periods, {:?}", self.roles()))
    }

    /// The longest period that may come: a plan may be on its way to a slower tempo.
    fn period(&self) -> u64 {
        let newest = self.kafka.log.last().map_or(self.initial_config.tempo, |frame| frame.tempo_bpm);
        let planned = self.plans.last().map_or(newest, |plan| plan.tempo.min(newest));
        planned.period_ms() as u64 * 1_000
    }

    /// Two of three nodes die, and stay dead.
    fn leave_one(&mut self) {
        let survivor = self.rng.random_range(0..NODES);
        (0..NODES).filter(|node| *node != survivor).for_each(|node| self.crash(node));
    }

    /// Gives the plan the time that it may take, then looks whether it was carried out.
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
            self.go_on(SECOND)?;
        }
        ensure(is_done, checks::PLANS, || format!("{plan:?}, not {:?}", self.kafka.log.last()))
    }

    fn roles(&self) -> Vec<Option<Role>> {
        self.nodes.iter().map(|node| node.core.as_ref().map(Leadership::role)).collect()
    }

    /// Lets time pass.
    fn go_on(&mut self, micros: u64) -> Result<(), Violation> {
        let until = self.now + micros;
        while self.now < until {
            let next_step = (self.now / RAFT_STEP + 1) * RAFT_STEP;
            while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 < next_step.min(until)) {
                self.now = entry.key().0.max(self.now);
                let (node, life, happening) = entry.remove();
                self.happen(node, life, happening)?;
            }
            self.now = next_step.min(until);
            if self.now == next_step && self.sabotage != Some(Sabotage::NoElections) {
                for node in self.raft.step(self.now, &self.links, &mut self.rng) {
                    let raft_role = self.raft.views[node].clone();
                    self.later(node, 0..10_000, Happening::Deliver(Event::Raft(raft_role)));
                }
            }
        }
        Ok(())
    }

    /// Whether a small fault comes to pass.
    fn happens(&mut self, probability: f64) -> bool {
        !self.is_calm && self.rng.random_bool(probability)
    }

    fn later(&mut self, node: usize, delay: std::ops::Range<u64>, happening: Happening) {
        let at = self.now + self.rng.random_range(delay);
        self.sequence += 1;
        self.queue.insert((at, self.sequence), (node, self.nodes[node].life, happening));
    }

    fn happen(&mut self, node: usize, of_life: u64, happening: Happening) -> Result<(), Violation> {
        if let Happening::Stray(command, epoch) = happening {
            // It left its node long ago, which may be dead by now.
            match *command {
                Command::Publish(frame) if self.kafka.up => {
                    self.commit(epoch, *frame)?;
                }
                Command::InitTransactions if self.kafka.up => {
                    self.kafka.open();
                }
                _ => {}
            }
            return Ok(());
        }
        if of_life != self.nodes[node].life || self.nodes[node].core.is_none() {
            return Ok(());
        }
        // Kafka and the others go on while a node is paused; only what it would do itself waits.
        let is_its_own = matches!(
            happening,
            Happening::Deliver(_) | Happening::Timer(_) | Happening::BoundaryKnown(_) | Happening::PlanKnown
        );
        if self.nodes[node].is_paused && is_its_own {
            self.nodes[node].found.push(happening);
            return Ok(());
        }
        match happening {
            Happening::Deliver(event) => self.deliver(node, event),
            Happening::Timer(timer) if timer == self.nodes[node].timer => self.deliver(node, Event::Elapsed),
            Happening::Timer(_) => Ok(()),
            Happening::BoundaryKnown(ends) => {
                self.nodes[node].boundary.advance_to(&ends);
                Ok(())
            }
            Happening::PlanKnown => match self.heard_plan() {
                Some(plan) if self.sabotage != Some(Sabotage::PlansLost) => self.deliver(node, Event::Planned(plan)),
                _ => Ok(()),
            },
            Happening::Ask(ticket) => {
                let is_true = self.raft.confirms(node, &self.links);
                if is_true {
                    self.nodes[node].confirmed = Some(self.now);
                }
                let confirmed = is_true || self.sabotage == Some(Sabotage::QuorumLies);
                let delay = if confirmed { 100..5_000 } else { 1_000..480_000 };
                self.later(node, delay, Happening::Deliver(Event::Quorum { ticket, confirmed }));
                Ok(())
            }
            Happening::Reach(command, epoch) => self.reach(node, *command, epoch),
            Happening::Stray(..) => unreachable!("handled above"),
        }
    }

    /// A command of `node` reaches Kafka.
    fn reach(&mut self, node: usize, command: Command, epoch: u64) -> Result<(), Violation> {
        let is_away = !self.kafka.up || self.nodes[node].kafka_is_cut;
        let answer_is_lost = self.happens(0.02);
        let answer = match command {
            Command::ReadTail | Command::InitTransactions if is_away || answer_is_lost => {
                if matches!(command, Command::InitTransactions) && !self.nodes[node].kafka_is_cut {
                    // It arrives all the same, now or later.
                    self.later(node, 0..10 * SECOND, Happening::Stray(Box::new(command), 0));
                }
                self.later(node, SECOND..10 * SECOND, Happening::Deliver(Event::KafkaUnavailable));
                return Ok(());
            }
            Command::ReadTail => {
                let frame = self.kafka.tail();
                if let Some(frame) = &frame
                    && self.sabotage != Some(Sabotage::LinesForgotten)
                {
                    self.nodes[node].boundary.advance_to(&Boundary::new(frame.claim_offsets.clone()));
                }
                Event::Tail { frame: frame.map(Box::new), no_reports: true }
            }
            Command::InitTransactions => {
                let epoch = self.kafka.open();
                self.nodes[node].epoch = Some(epoch);
                self.nodes[node].opened = self.now;
                let holders = self.nodes.iter().filter(|node| node.epoch == Some(epoch)).count();
                ensure(holders == 1, checks::ONE_LEADER, || format!("{holders} producers of epoch {epoch}"))?;
                Event::TransactionsInitialized
            }
            Command::SampleBoundary => {
                if !is_away && self.sabotage != Some(Sabotage::LinesForgotten) {
                    self.nodes[node].boundary.advance_to(&boundary(self.now));
                }
                Event::BoundarySampled
            }
            Command::Publish(frame) if is_away => {
                // Sent when Kafka is back, or never; the node knows neither.
                if self.rng.random_bool(0.5) {
                    self.later(node, 0..20 * SECOND, Happening::Stray(Box::new(Command::Publish(frame)), epoch));
                }
                self.later(node, SECOND..10 * SECOND, Happening::Deliver(Event::InDoubt));
                return Ok(());
            }
            Command::Publish(frame) => match self.commit(epoch, *frame)? {
                Commit::Done if answer_is_lost => Event::InDoubt,
                Commit::Unknown => Event::InDoubt,
                Commit::Done => Event::Committed,
                Commit::Fenced => Event::Fenced,
            },
            other => unreachable!("{other:?} is not Kafka's"),
        };
        let delay = if answer_is_lost { SECOND..10 * SECOND } else { 500..20_000 };
        self.later(node, delay, Happening::Deliver(answer));
        Ok(())
    }

    fn commit(&mut self, epoch: u64, frame: BeatFrame) -> Result<Commit, Violation> {
        let before = self.kafka.log.last().cloned();
        let fate = self.kafka.commit(epoch, frame, self.now)?;
        if let (Commit::Done, Some(frame)) = (&fate, self.kafka.log.last().cloned()) {
            if let Some(before) = before {
                checks::as_planned(&before, &frame, &self.plans)?;
            }
            self.since_calm.push((frame.clone(), self.now));
            if self.kafka.hides_last {
                return Ok(Commit::Unknown);
            }
            self.committed(&frame);
        }
        Ok(fate)
    }

    /// What nodes hear of the newest plan.
    fn heard_plan(&self) -> Option<Plan> {
        let plan = self.plans.last().copied()?;
        let is_another = self.sabotage == Some(Sabotage::PlanUnagreed);
        Some(if is_another { Plan { bar_length: plan.bar_length + 1, ..plan } } else { plan })
    }

    /// Every node reads what was committed, sooner or later.
    fn committed(&mut self, frame: &BeatFrame) {
        let (beat, node, emitted) = (frame.beat_index, &frame.node, frame.emitted_at.millis());
        let mark = if frame.degraded { " degraded" } else { "" };
        writeln!(self.trace, "{:>10} committed {beat} by {node} at {emitted} {}{mark}", self.now, frame.hlc)
            .expect("a string");
        for node in 0..NODES {
            if !self.nodes[node].kafka_is_cut {
                self.later(node, 500..50_000, Happening::Deliver(Event::Heard(Box::new(frame.clone()))));
            }
        }
    }

    fn deliver(&mut self, node: usize, event: Event) -> Result<(), Violation> {
        let is_kafkas = matches!(
            event,
            Event::Tail { .. }
                | Event::TransactionsInitialized
                | Event::BoundarySampled
                | Event::Committed
                | Event::InDoubt
                | Event::Fenced
                | Event::KafkaUnavailable
        );
        if is_kafkas {
            self.nodes[node].kafka_is_busy = false;
        }
        self.note(node, &event);
        let now = self.moment(node);
        let Node { core, boundary, .. } = &mut self.nodes[node];
        let Some(core) = core else { return Ok(()) };
        let commands = core.on(event, now, boundary);
        for command in commands {
            self.obey(node, command)?;
        }
        self.set_timer(node);
        Ok(())
    }

    fn note(&mut self, node: usize, event: &Event) {
        let what = match event {
            Event::Tail { frame, .. } => format!("tail {:?}", frame.as_ref().map(|frame| frame.beat_index.get())),
            Event::Heard(frame) => format!("heard {}", frame.beat_index),
            other => format!("{other:?}"),
        };
        writeln!(self.trace, "{:>10} n{node} {what}", self.now).expect("a string");
    }

    fn moment(&mut self, node: usize) -> Now {
        let Node { booted, clock_off_by, .. } = self.nodes[node];
        Now {
            wall_micros: EPOCH + self.now as i64 + clock_off_by,
            monotonic: Duration::from_micros(self.now - booted),
            random: self.rng.random(),
        }
    }

    fn set_timer(&mut self, node: usize) {
        self.nodes[node].timer += 1;
        let Node { core: Some(core), booted, timer, .. } = &self.nodes[node] else { return };
        let Some(deadline) = core.deadline() else { return };
        let at = (booted + deadline.as_micros() as u64).max(self.now);
        let happening = Happening::Timer(*timer);
        let life = self.nodes[node].life;
        // A scheduler is late, now and then.
        if self.is_calm && self.sabotage == Some(Sabotage::TimersLost) && self.rng.random_bool(0.2) {
            self.sequence += 1;
            self.queue.insert((at + 300_000, self.sequence), (node, life, happening));
            return;
        }
        let late = if self.happens(0.01) { self.rng.random_range(0..200_000) } else { 0 };
        self.sequence += 1;
        // Rounded up: to the microsecond before its time, it would come again at once.
        self.queue.insert((at + late + 1, self.sequence), (node, life, happening));
    }

    fn obey(&mut self, node: usize, command: Command) -> Result<(), Violation> {
        if !matches!(command, Command::ConfirmQuorum { .. } | Command::RefreshBoundary) {
            let what = match &command {
                Command::Publish(frame) => format!("publish {} of term {}", frame.beat_index, frame.term),
                other => format!("{other:?}"),
            };
            writeln!(self.trace, "{:>10} n{node} -> {what}", self.now).expect("a string");
        }
        match command {
            Command::ConfirmQuorum { ticket } => self.later(node, 0..2_000, Happening::Ask(ticket)),
            Command::RefreshBoundary => {
                if self.kafka.up && !self.nodes[node].kafka_is_cut {
                    self.later(node, 500..20_000, Happening::BoundaryKnown(boundary(self.now)));
                }
            }
            Command::Close => self.nodes[node].epoch = None,
            Command::StepDown => self.links.quiet[node] = true,
            Command::Rejoin => self.links.quiet[node] = false,
            Command::Stop(reason) => {
                ensure(false, checks::PROGRESS, || format!("n{node} stopped: {reason}"))?;
            }
            kafkas => {
                let is_busy = std::mem::replace(&mut self.nodes[node].kafka_is_busy, true);
                ensure(!is_busy, checks::PROGRESS, || format!("n{node} has two of Kafka's commands under way"))?;
                if matches!(kafkas, Command::InitTransactions) {
                    self.nodes[node].epoch = None;
                }
                if let Command::Publish(frame) = &kafkas {
                    self.check_right(node, frame)?;
                }
                let epoch = self.nodes[node].epoch.unwrap_or(u64::MAX);
                let slow = self.happens(0.02);
                let delay = if slow { 100_000..2 * SECOND } else { 200..5_000 };
                self.later(node, delay, Happening::Reach(Box::new(kafkas), epoch));
            }
        }
        Ok(())
    }

    /// What a node may publish: behind its own fence, and as not degraded only with a quorum's word.
    fn check_right(&self, node: usize, frame: &BeatFrame) -> Result<(), Violation> {
        let Node { epoch, confirmed, opened, is_paused, .. } = &self.nodes[node];
        ensure(epoch.is_some() && !is_paused, checks::ONE_LEADER, || format!("n{node} publishes without a producer"))?;
        // The word was given a little before it was heard.
        let has_word = confirmed.is_some_and(|at| self.now <= at + QUORUM_LASTS + SECOND / 2);
        ensure(frame.degraded || has_word, checks::DEGRADED, || format!("n{node} at {}: {frame:?}", self.now))?;
        // The word that counts for a new leader is one that was given behind its fence.
        let is_first = self.kafka.log.last().is_none_or(|last| last.term != frame.term);
        let after_fence = confirmed.is_some_and(|at| at >= *opened);
        ensure(frame.degraded || !is_first || after_fence, checks::DEGRADED, || format!("n{node} began: {frame:?}"))
    }

    fn boot(&mut self, node: usize) {
        let life = self.nodes[node].life + 1;
        let random = self.rng.random();
        let initial_config = self.initial_config.clone();
        let booted = &mut self.nodes[node];
        booted.life = life;
        booted.booted = self.now;
        booted.is_paused = false;
        booted.found.clear();
        booted.boundary = Boundary::default();
        booted.epoch = None;
        booted.kafka_is_busy = false;
        let metronome = Metronome::new(initial_config, name(node), node as u16);
        booted.confirmed = None;
        let bounds = Bounds { min: tempo(f64::from(SLOWEST)), max: tempo(f64::from(FASTEST)) };
        let now = Now { wall_micros: EPOCH, monotonic: Duration::ZERO, random };
        booted.core = Some(Leadership::new(metronome, bounds, ELECTION_TIMEOUT, now));
        self.links.alive[node] = true;
        self.links.quiet[node] = false;
        writeln!(self.trace, "{:>10} n{node} boots", self.now).expect("a string");
        let raft_role = self.raft.restarted(node);
        if raft_role != RaftRole::Leaderless {
            self.later(node, 0..10_000, Happening::Deliver(Event::Raft(raft_role)));
        }
        self.later(node, 0..10_000, Happening::PlanKnown);
        self.read_newest(node);
    }

    /// A node that can read Kafka again reads the newest frame.
    fn read_newest(&mut self, node: usize) {
        if let Some(last) = self.kafka.log.last().cloned() {
            self.later(node, 1_000..50_000, Happening::Deliver(Event::Heard(Box::new(last))));
        }
    }

    fn crash(&mut self, node: usize) {
        writeln!(self.trace, "{:>10} n{node} crashes", self.now).expect("a string");
        // What it has sent may still arrive.
        let life = self.nodes[node].life;
        let sent: Vec<_> = self.queue.iter().filter(|(_, (n, l, _))| (*n, *l) == (node, life)).collect();
        let strays: Vec<(Box<Command>, u64)> = sent
            .into_iter()
            .filter_map(|(_, (_, _, happening))| match happening {
                Happening::Reach(command, epoch) => Some((command.clone(), *epoch)),
                _ => None,
            })
            .collect();
        for (command, epoch) in strays {
            self.later(node, 0..5_000, Happening::Stray(command, epoch));
        }
        self.nodes[node].core = None;
        self.nodes[node].is_paused = false;
        self.nodes[node].epoch = None;
        self.links.alive[node] = false;
        self.links.quiet[node] = false;
    }

    fn wake(&mut self, node: usize) {
        writeln!(self.trace, "{:>10} n{node} wakes", self.now).expect("a string");
        self.nodes[node].is_paused = false;
        self.links.alive[node] = true;
        for (place, happening) in (1..).zip(std::mem::take(&mut self.nodes[node].found)) {
            // In the order in which it was found.
            self.later(node, place..place + 1, happening);
        }
    }

    /// Something breaks, or is mended, or somebody wants something.
    fn fault(&mut self) {
        let node = self.rng.random_range(0..self.links.members);
        let other = (node + self.rng.random_range(1..NODES)) % NODES;
        match self.rng.random_range(0..13) {
            12 => {
                writeln!(self.trace, "{:>10} kafka settles a transaction", self.now).expect("a string");
                self.kafka.time_out();
            }
            0 | 1 => match (self.nodes[node].core.is_some(), self.nodes[node].is_paused) {
                (true, true) => self.wake(node),
                (true, false) => self.crash(node),
                (false, _) => self.boot(node),
            },
            2 | 3 => match (self.nodes[node].core.is_some(), self.nodes[node].is_paused) {
                (true, true) => self.wake(node),
                (true, false) => {
                    writeln!(self.trace, "{:>10} n{node} pauses", self.now).expect("a string");
                    self.nodes[node].is_paused = true;
                    self.links.alive[node] = false;
                }
                (false, _) => self.boot(node),
            },
            4 | 5 => {
                let cut = !self.links.cut[node][other];
                writeln!(self.trace, "{:>10} n{node} n{other} cut {cut}", self.now).expect("a string");
                self.links.cut[node][other] = cut;
                self.links.cut[other][node] = cut;
            }
            6 => {
                self.nodes[node].kafka_is_cut ^= true;
                let cut = self.nodes[node].kafka_is_cut;
                if !cut {
                    self.read_newest(node);
                }
                writeln!(self.trace, "{:>10} n{node} kafka cut {cut}", self.now).expect("a string");
            }
            7 => {
                self.kafka.up ^= true;
                writeln!(self.trace, "{:>10} kafka up {}", self.now, self.kafka.up).expect("a string");
            }
            8 | 9 => {
                let wild = self.rng.random_bool(0.3);
                let most = if wild { 300 * SECOND as i64 } else { SECOND as i64 };
                self.nodes[node].clock_off_by = self.rng.random_range(-most..most);
                let off_by = self.nodes[node].clock_off_by;
                writeln!(self.trace, "{:>10} n{node} clock off by {off_by}", self.now).expect("a string");
            }
            _ => self.want(),
        }
    }

    /// An operator asks the leader for another tempo or bar.
    fn want(&mut self) {
        let Some(leader) = self.raft.leader else { return };
        let wanted = Request::Change {
            tempo: Some(tempo(f64::from(self.rng.random_range(SLOWEST..FASTEST)))),
            ramp: self.rng.random_bool(0.8),
            bar_length: self.rng.random_bool(0.3).then(|| self.rng.random_range(1..6)),
        };
        let request = if self.rng.random_bool(0.2) { Request::Cancel } else { wanted };
        let Some(core) = self.nodes[leader].core.as_mut() else { return };
        let Ok(plan) = core.propose(request) else { return };
        if !self.raft.confirms(leader, &self.links) {
            core.give_up_proposal();
            return;
        }
        writeln!(self.trace, "{:>10} agreed on {plan:?}", self.now).expect("a string");
        self.plans.push(plan);
        for node in 0..NODES {
            self.later(node, 0..50_000, Happening::PlanKnown);
        }
    }

    /// All faults end; clocks may be wrong for ever, but not by minutes.
    fn heal(&mut self) {
        writeln!(self.trace, "{:>10} faults end", self.now).expect("a string");
        self.is_calm = true;
        self.kafka.up = true;
        self.links.cut = [[false; NODES]; NODES];
        for node in 0..self.links.members {
            self.nodes[node].kafka_is_cut = false;
            self.read_newest(node);
            self.nodes[node].clock_off_by = self.nodes[node].clock_off_by.clamp(-(SECOND as i64), SECOND as i64);
            if self.nodes[node].core.is_none() {
                self.boot(node);
            } else if self.nodes[node].is_paused {
                self.wake(node);
            }
        }
    }
}

fn tempo(bpm: f64) -> Tempo {
    Tempo::try_from(bpm).expect("in range")
}
