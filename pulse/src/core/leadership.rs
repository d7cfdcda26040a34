//! The way to the first beat, from beat to beat, and out of every doubt.
//!
//! ```text
//!  Following ─▶ Confirming ─▶ Approaching ─▶ Opening ─▶ Resuming ─▶ Drawing ─▶ Confirming ─▶ Waiting ─┐
//!   ▲  ▲  │        quorum        tail      ▲  fence       tail        boundary       quorum        ▲  due │
//!   │  │  └─ no leader, beats missed: ▲    │                                                   │      ▼
//!   │  │                              │    └───────────── in doubt ───────────────┐  committed └─ Publishing
//!   │  └─ Abdicated ◀─ no commit      └─ Pausing ◀─ fenced, Kafka away ───────────┴──────────────────┘
//!   └──── another leads
//! ```
//!
//! Raft's word starts it, a quorum's word is needed twice, and Kafka's fence makes it safe: opening the
//! transactional id fences every earlier leader, and only what the log says after that is believed.
//! Without a quorum, beats go on (or begin, after a while) marked as degraded, under the same fence.

use std::time::Duration;

use backbeat_schemas::{BeatFrame, BeatIndex};

use super::{
    Boundary, Bounds, Command, Event, MAX_BAR_LENGTH, Metronome, Now, Plan, RaftRole, Refusal, Request, StopReason,
};

/// A leader that could not commit for this long, or for a period if that is longer, lets another try.
const COMMIT_WITHIN: Duration = Duration::from_secs(10);
/// How long before a beat its boundary is sampled, if a quarter of the period is not shorter.
const BOUNDARY_LEAD: Duration = Duration::from_millis(25);
/// The wait after Kafka did not answer.
const KAFKA_PAUSE: Duration = Duration::from_millis(250);
/// The first wait after a fence; it doubles with each.
const FENCE_PAUSE: Duration = Duration::from_millis(50);
const MAX_FENCE_DOUBLINGS: u32 = 6;
/// After the beat that a rival would have sent, how long a node without peers waits to see it.
const COMPETING_LEADER_MARGIN: Duration = Duration::from_secs(1);
/// This many election timeouts without a confirmed leader make a cluster leaderless.
const LEADERLESS_TIMEOUTS: u32 = 5;

/// A quorum that did not say yes is asked again this often an election timeout.
const NO_ANSWERS_PER_TIMEOUT: u32 = 6;

/// Where we are.
#[derive(Debug, Clone, PartialEq)]
enum State {
    /// Another's turn, or nobody's.
    Following,
    /// A quorum is asked, for this.
    Confirming(Purpose),
    /// Reading the tail before the fence.
    ReadingTail,
    /// Opening the transactional id.
    InitTransactions,
    /// Reading the tail behind the fence.
    VerifyingTail,
    SamplingBoundary,
    Waiting {
        due: Duration,
        /// When to draw the beat's boundary; `None` once it was asked for.
        sample_at: Option<Duration>,
    },
    Publishing(Box<BeatFrame>),
    /// Kafka is away, or another was faster: waiting before the next attempt.
    Pausing {
        until: Duration,
    },
    /// Letting another lead.
    SteppedDown {
        until: Duration,
    },
    /// Fenced without having peers: giving a rival the time to show itself.
    AwaitingCompetingLeader {
        until: Duration,
    },
    /// Reading whether it did.
    CheckingCompetingLeader,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To begin a takeover.
    TakeOver,
    /// To end it with a first beat.
    Lead,
    /// To know whether a beat that is due is degraded.
    Beat,
}

/// What quorums have said.
#[derive(Debug, Default)]
struct Quorum {
    ticket: u64,
    /// When the question was put that is not answered yet.
    asked: Option<Duration>,
    /// When the last question was put that was answered: an answer may have lain about while this node slept.
    answered: Option<Duration>,
    /// When the last one was put that was answered with yes.
    confirmed: Option<Duration>,
}

/// The newest frame that was read.
#[derive(Debug, Clone, Copy)]
struct Heard {
    beat: BeatIndex,
    period: Duration,
    at: Duration,
}

/// What a node does, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It follows another's beats.
    Follower,
    /// It knows no leader, and is none.
    Leaderless,
    /// It is no member of the cluster.
    NonMember,
    /// It is on the way to its first beat.
    TakingOver,
    /// It beats.
    Leader,
    /// It beats without a quorum.
    DegradedLeader,
}

/// Decides what a pulse node does, event by event.
#[derive(Debug)]
pub struct Leadership {
    metronome: Metronome,
    bounds: Bounds,
    /// Raft's longest.
    election_timeout: Duration,
    state: State,
    raft_role: RaftRole,
    raft_term: u64,
    quorum: Quorum,
    /// When a leader was last known, and how much longer than others this node waits without one.
    led: (Duration, Duration),
    heard: Option<Heard>,
    plan: Option<Plan>,
    /// What Raft is to agree on at this moment.
    proposed: Option<Plan>,
    /// Behind the fence, and not since given up.
    leading: bool,
    /// This takeover has no quorum.
    degraded: bool,
    /// Since when a beat could not be committed; `None` while there is none to commit.
    trying_since: Option<Duration>,
    /// The frame whose fate is in doubt since the last tail was read.
    in_doubt: Option<Box<BeatFrame>>,
    /// Fences since the last commit.
    fences: u32,
}

impl Leadership {
    /// A node that has heard nothing yet. `election_timeout` is Raft's longest.
    pub fn new(metronome: Metronome, bounds: Bounds, election_timeout: Duration, now: Now) -> Self {
        Self {
            metronome,
            bounds,
            election_timeout,
            state: State::Following,
            raft_role: RaftRole::Leaderless,
            raft_term: 0,
            quorum: Quorum::default(),
            led: (now.monotonic, election_timeout.mul_f64(now.random)),
            heard: None,
            plan: None,
            proposed: None,
            leading: false,
            degraded: false,
            trying_since: None,
            in_doubt: None,
            fences: 0,
        }
    }

    /// The schedule.
    pub fn metronome(&self) -> &Metronome {
        &self.metronome
    }

    /// What Raft has agreed on.
    pub fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref()
    }

    /// What this node does.
    pub fn role(&self) -> Role {
        match self.state {
            State::Waiting { .. } | State::Publishing(_) | State::Confirming(Purpose::Beat) if self.degraded => {
                Role::DegradedLeader
            }
            State::Waiting { .. } | State::Publishing(_) | State::Confirming(Purpose::Beat) => Role::Leader,
            State::Following | State::SteppedDown { .. } | State::AwaitingCompetingLeader { .. } => {
                match self.raft_role {
                    RaftRole::Follower { .. } => Role::Follower,
                    RaftRole::NonMember => Role::NonMember,
                    RaftRole::Leader { .. } | RaftRole::Leaderless => Role::Leaderless,
                }
            }
            _ => Role::TakingOver,
        }
    }

    /// Whether Raft has a leader, as far as this node knows.
    pub fn is_led(&self, now: Now) -> bool {
        matches!(self.raft_role, RaftRole::Follower { .. }) || self.has_quorum(now)
    }

    /// When [`Event::Elapsed`] is wanted, on the monotonic clock.
    pub fn deadline(&self) -> Option<Duration> {
        match &self.state {
            State::Following => [self.next_question(), self.takeover_at()].into_iter().flatten().min(),
            State::Waiting { due, sample_at } => {
                [Some(*due), *sample_at, self.next_question()].into_iter().flatten().min()
            }
            // A question is a heartbeat to the others, and would keep them from electing another.
            State::SteppedDown { until } => Some(*until),
            State::Pausing { until } | State::AwaitingCompetingLeader { until } => {
                [Some(*until), self.next_question()].into_iter().flatten().min()
            }
            State::ReadingTail
            | State::InitTransactions
            | State::VerifyingTail
            | State::SamplingBoundary
            | State::Publishing(_)
            | State::CheckingCompetingLeader => self.next_question(),
            State::Confirming(_) => None,
        }
    }

    /// What to do after `event`, at `now`, with the boundary as it is known now.
    pub fn on(&mut self, event: Event, now: Now, boundary: &Boundary) -> Vec<Command> {
        match event {
            Event::Raft(raft_role) => self.on_raft_role(raft_role, now),
            Event::Planned(plan) => {
                self.plan = Some(plan);
                self.proposed.take_if(|proposed| *proposed == plan);
                Vec::new()
            }
            Event::Quorum { ticket, confirmed } => self.on_quorum(ticket, confirmed, now, boundary),
            Event::Heard(frame) => {
                self.hear(&frame, now);
                Vec::new()
            }
            Event::Elapsed => self.on_elapsed(now, boundary),
            answer => self.on_kafka(answer, now),
        }
    }

    /// Checks an operator's request; `Ok` is what Raft is to agree on, to be followed by
    /// [`Event::Planned`] or [`Leadership::give_up_proposal`].
    pub fn propose(&mut self, request: Request) -> Result<Plan, Refusal> {
        if let Request::Change { tempo: Some(tempo), .. } = request
            && !(self.bounds.min..=self.bounds.max).contains(&tempo)
        {
            return Err(Refusal::OutOfBounds { tempo, bounds: self.bounds });
        }
        match self.role() {
            Role::Leader => {}
            Role::DegradedLeader => return Err(Refusal::NotNow("there is no quorum: the tempo is frozen")),
            _ => return Err(Refusal::NotNow("the leader does not beat yet")),
        }
        let in_flight = match &self.state {
            State::Publishing(frame) => Some(&**frame),
            _ => None,
        };
        let Some(last) = in_flight.or(self.metronome.last()) else {
            return Err(Refusal::NotNow("the first beat is not published yet"));
        };
        if self.proposed.is_some() {
            return Err(Refusal::NotNow("another change is being agreed on"));
        }
        let from = self.metronome.next_downbeat(in_flight);
        let current = last.tempo_bpm;
        let pending = self.plan.filter(|plan| plan.is_pending(last));
        let plan = match (request, pending) {
            (Request::Cancel, None) => return Err(Refusal::NothingPending),
            (Request::Cancel, Some(_)) => Plan { from: last.beat_index, tempo: current, bar_length: last.bar_length },
            (Request::Change { .. }, Some(plan)) => return Err(Refusal::Pending { plan, current }),
            (Request::Change { tempo, ramp, bar_length }, None) => {
                let tempo = tempo.unwrap_or(current);
                let bar_length = bar_length.unwrap_or(last.bar_length);
                if !ramp && !current.allowed_next().contains(&tempo) {
                    return Err(Refusal::TooFar { tempo, current });
                }
                if !(last.grace_beats.max(1)..=MAX_BAR_LENGTH).contains(&bar_length) {
                    return Err(Refusal::BarLength(bar_length, last.grace_beats));
                }
                Plan { from, tempo, bar_length }
            }
        };
        self.proposed = Some(plan);
        Ok(plan)
    }

    /// Raft did not agree on what was proposed, as far as we know.
    pub fn give_up_proposal(&mut self) {
        self.proposed = None;
    }

    fn on_raft_role(&mut self, raft_role: RaftRole, now: Now) -> Vec<Command> {
        if let RaftRole::Leader { term, .. } = &raft_role {
            self.raft_term = *term;
        }
        // Known until now, or from now on.
        if matches!(self.raft_role, RaftRole::Follower { .. }) || matches!(raft_role, RaftRole::Follower { .. }) {
            self.note_leader(now);
        }
        self.raft_role = raft_role;
        let other_leads = self.other_leads();
        match self.state {
            State::Following if self.is_raft_leader() => vec![self.ask(Purpose::TakeOver, now)],
            State::Waiting { .. } | State::Pausing { .. } | State::AwaitingCompetingLeader { .. } if other_leads => {
                self.follow()
            }
            State::SteppedDown { .. } if other_leads => {
                self.state = State::Following;
                vec![Command::Rejoin]
            }
            _ => Vec::new(),
        }
    }

    fn on_quorum(&mut self, ticket: u64, confirmed: bool, now: Now, boundary: &Boundary) -> Vec<Command> {
        if ticket != self.quorum.ticket {
            return Vec::new();
        }
        self.quorum.answered = self.quorum.asked.take();
        if confirmed {
            self.quorum.confirmed = self.quorum.answered;
            self.note_leader(now);
        }
        if matches!(self.state, State::Waiting { .. }) {
            self.degraded = !self.has_quorum(now);
        }
        let State::Confirming(purpose) = self.state else { return Vec::new() };
        if !self.has_recent_answer(now) {
            return vec![self.ask(purpose, now)];
        }
        match (purpose, confirmed) {
            (Purpose::TakeOver, true) => {
                self.degraded = false;
                self.read_tail(now)
            }
            (Purpose::TakeOver, false) => self.follow(),
            (Purpose::Lead | Purpose::Beat, _) if self.other_leads() => self.follow(),
            (Purpose::Lead, false) if !self.degraded => self.follow(),
            (Purpose::Lead, confirmed) => {
                // What was said before the fence does not count for the first beat behind it.
                self.quorum.confirmed.take_if(|_| !confirmed);
                self.wait(now)
            }
            (Purpose::Beat, _) => self.publish(now, boundary),
        }
    }

    fn on_elapsed(&mut self, now: Now, boundary: &Boundary) -> Vec<Command> {
        let has_come = |at: Option<Duration>| at.is_some_and(|at| at <= now.monotonic);
        let may_take_over = has_come(self.takeover_at());
        let must_ask = has_come(self.next_question());
        match &mut self.state {
            State::Following if may_take_over => {
                self.degraded = true;
                self.read_tail(now)
            }
            State::Following if must_ask => vec![self.ask(Purpose::TakeOver, now)],
            State::Waiting { due, .. } if *due <= now.monotonic => {
                let question = self.is_raft_leader() && !self.has_recent_answer(now);
                if question { vec![self.ask(Purpose::Beat, now)] } else { self.publish(now, boundary) }
            }
            State::Waiting { sample_at, .. } => {
                let mut commands = Vec::new();
                if has_come(*sample_at) {
                    *sample_at = None;
                    commands.push(Command::RefreshBoundary);
                }
                if must_ask {
                    commands.push(self.question(now));
                }
                commands
            }
            State::Pausing { until } if *until <= now.monotonic => self.start_over(now),
            State::SteppedDown { until } if *until <= now.monotonic => {
                let mut commands = vec![Command::Rejoin];
                commands.extend(self.start_over(now));
                commands
            }
            State::AwaitingCompetingLeader { until } if *until <= now.monotonic => {
                self.enter(State::CheckingCompetingLeader, Command::ReadTail)
            }
            State::Confirming(_) | State::SteppedDown { .. } => Vec::new(),
            _ if must_ask => vec![self.question(now)],
            _ => Vec::new(),
        }
    }

    /// An answer of Kafka's.
    fn on_kafka(&mut self, answer: Event, now: Now) -> Vec<Command> {
        let answer = if self.is_stale(&answer) { Event::KafkaUnavailable } else { answer };
        match (std::mem::replace(&mut self.state, State::Following), answer) {
            (State::ReadingTail, Event::Tail { frame, no_reports }) => self.on_tail(frame.as_deref(), no_reports, now),
            (State::CheckingCompetingLeader, Event::Tail { frame, .. }) => {
                match self.competing_leader(frame.as_deref()) {
                    Some(reason) => vec![Command::Stop(reason)],
                    None => self.enter(State::InitTransactions, Command::InitTransactions),
                }
            }
            (State::VerifyingTail, Event::Tail { frame, no_reports }) => self.on_verified_tail(frame, no_reports, now),
            (State::InitTransactions, Event::TransactionsInitialized) => {
                self.enter(State::VerifyingTail, Command::ReadTail)
            }
            (State::SamplingBoundary, Event::BoundarySampled) => {
                if self.other_leads() {
                    self.follow()
                } else if self.degraded && !self.is_raft_leader() {
                    self.wait(now)
                } else {
                    vec![self.ask(Purpose::Lead, now)]
                }
            }
            (State::Publishing(frame), Event::Committed) => {
                self.metronome.resume(*frame);
                self.trying_since = None;
                self.fences = 0;
                if self.other_leads() { self.follow() } else { self.wait(now) }
            }
            (State::Publishing(frame), Event::InDoubt) => {
                self.in_doubt = Some(frame);
                if let Some(commands) = self.give_way(now) {
                    commands
                } else if self.is_raft_leader() && !self.has_recent_answer(now) {
                    // Asleep for a while, it would fence whoever leads by now.
                    vec![self.ask(Purpose::TakeOver, now)]
                } else {
                    self.enter(State::InitTransactions, Command::InitTransactions)
                }
            }
            (State::Publishing(frame), Event::Fenced) => {
                self.in_doubt = Some(frame);
                self.fenced(now)
            }
            (State::InitTransactions, Event::Fenced) => self.fenced(now),
            (
                State::ReadingTail | State::InitTransactions | State::VerifyingTail | State::CheckingCompetingLeader,
                Event::KafkaUnavailable,
            ) => self
                .give_way(now)
                .unwrap_or_else(|| self.enter(State::Pausing { until: now.monotonic + KAFKA_PAUSE }, Command::Close)),
            (state, answer) => unreachable!("{answer:?} answers no command of {state:?}"),
        }
    }

    fn enter(&mut self, state: State, command: Command) -> Vec<Command> {
        self.state = state;
        vec![command]
    }

    fn read_tail(&mut self, now: Now) -> Vec<Command> {
        self.trying_since.get_or_insert(now.monotonic);
        self.enter(State::ReadingTail, Command::ReadTail)
    }

    fn on_tail(&mut self, frame: Option<&BeatFrame>, no_reports: bool, now: Now) -> Vec<Command> {
        if let Some(reason) = self.refusal(frame, no_reports) {
            return vec![Command::Stop(reason)];
        }
        if let Some(frame) = frame {
            self.hear(frame, now);
        }
        // Without a quorum, only where nobody else beats.
        let has_right = !self.degraded || self.takeover_at().is_some_and(|at| at <= now.monotonic);
        if self.other_leads() || !has_right {
            return self.follow();
        }
        self.enter(State::InitTransactions, Command::InitTransactions)
    }

    /// Behind the fence: nobody but us can add a frame now.
    fn on_verified_tail(&mut self, frame: Option<Box<BeatFrame>>, no_reports: bool, now: Now) -> Vec<Command> {
        if let Some(reason) = self.refusal(frame.as_deref(), no_reports) {
            return vec![Command::Stop(reason)];
        }
        if let Some(reason) = self.competing_leader(frame.as_deref()).filter(|_| self.is_alone()) {
            return vec![Command::Stop(reason)];
        }
        self.leading &= frame.as_deref().is_none_or(|frame| self.knows(frame));
        self.in_doubt = None;
        if let Some(frame) = frame {
            self.hear(&frame, now);
            self.metronome.resume(*frame);
        }
        if !self.leading {
            self.leading = true;
            self.metronome.take_over(self.raft_term);
        }
        self.enter(State::SamplingBoundary, Command::SampleBoundary)
    }

    fn wait(&mut self, now: Now) -> Vec<Command> {
        let period = self.period();
        let until_due = self.metronome.due().map_or(0, |due| due.millis() * 1_000 - now.wall_micros);
        // A wall clock that jumped must not stop the beat. A little longer than a period, so that beats which
        // came early, because their clock was behind, fall in with the schedule again.
        let wait = Duration::from_micros(until_due.max(0) as u64).min(period + period / 8);
        let due = now.monotonic + wait;
        let sample_at = due.saturating_sub(BOUNDARY_LEAD.min(period / 4));
        self.state = State::Waiting { due, sample_at: Some(sample_at) };
        Vec::new()
    }

    fn publish(&mut self, now: Now, boundary: &Boundary) -> Vec<Command> {
        self.degraded = !self.has_quorum(now);
        // Without a quorum the plan may be an old one: the tempo stays as it is.
        let plan = self.plan.as_ref().filter(|_| !self.degraded);
        self.trying_since.get_or_insert(now.monotonic);
        let mut frame = Box::new(self.metronome.beat(now.wall(), boundary, plan));
        frame.degraded = self.degraded;
        self.enter(State::Publishing(frame.clone()), Command::Publish(frame))
    }

    fn fenced(&mut self, now: Now) -> Vec<Command> {
        self.fences += 1;
        if self.other_leads() {
            return self.follow();
        }
        self.state = if self.is_alone() {
            let until_due = self.metronome.due().map_or(0, |due| due.millis_since(now.wall()));
            let until_due = Duration::from_millis(until_due.max(0) as u64).min(self.period());
            State::AwaitingCompetingLeader {
                until: now.monotonic + until_due + COMPETING_LEADER_MARGIN.mul_f64(1.0 + now.random / 2.0),
            }
        } else {
            let doubled = FENCE_PAUSE * 2_u32.pow(self.fences.min(MAX_FENCE_DOUBLINGS));
            State::Pausing { until: now.monotonic + doubled.mul_f64(0.5 + now.random / 2.0) }
        };
        vec![Command::Close]
    }

    /// Another attempt, if it is still ours to make.
    fn start_over(&mut self, now: Now) -> Vec<Command> {
        if self.is_raft_leader() {
            vec![self.ask(Purpose::TakeOver, now)]
        } else if self.degraded && !self.other_leads() {
            self.read_tail(now)
        } else {
            self.follow()
        }
    }

    /// It is another's turn.
    fn follow(&mut self) -> Vec<Command> {
        self.leading = false;
        self.degraded = false;
        self.in_doubt = None;
        self.trying_since = None;
        self.proposed = None;
        self.enter(State::Following, Command::Close)
    }

    /// After a failure: what to do if it is not for this node to try again.
    fn give_way(&mut self, now: Now) -> Option<Vec<Command>> {
        if self.other_leads() {
            Some(self.follow())
        } else if self.must_step_down(now) {
            Some(self.step_down(now))
        } else {
            None
        }
    }

    fn step_down(&mut self, now: Now) -> Vec<Command> {
        let commands = self.follow();
        self.state = State::SteppedDown { until: now.monotonic + self.leaderless_after() };
        commands.into_iter().chain([Command::StepDown]).collect()
    }

    fn must_step_down(&self, now: Now) -> bool {
        self.trying_since.is_some_and(|since| now.monotonic.saturating_sub(since) > COMMIT_WITHIN.max(self.period()))
    }

    fn ask(&mut self, purpose: Purpose, now: Now) -> Command {
        self.state = State::Confirming(purpose);
        self.question(now)
    }

    fn question(&mut self, now: Now) -> Command {
        self.quorum.ticket += 1;
        self.quorum.asked = Some(now.monotonic);
        Command::ConfirmQuorum { ticket: self.quorum.ticket }
    }

    /// As Raft's leader, a quorum is asked once an election timeout, and sooner again if it did not say yes.
    fn next_question(&self) -> Option<Duration> {
        let was_confirmed = self.quorum.confirmed == self.quorum.answered;
        let pause = if was_confirmed { self.election_timeout } else { self.election_timeout / NO_ANSWERS_PER_TIMEOUT };
        let next = self.quorum.answered.map_or(Duration::ZERO, |at| at + pause);
        (self.is_raft_leader() && self.quorum.asked.is_none()).then_some(next)
    }

    fn has_quorum(&self, now: Now) -> bool {
        let confirmed =
            self.quorum.confirmed.is_some_and(|at| now.monotonic.saturating_sub(at) <= self.leaderless_after());
        self.is_raft_leader() && confirmed
    }

    fn has_recent_answer(&self, now: Now) -> bool {
        self.quorum.answered.is_some_and(|at| now.monotonic.saturating_sub(at) <= self.leaderless_after())
    }

    /// When this node may beat without a quorum: there has been no leader, and more than one beat was
    /// missed.
    fn takeover_at(&self) -> Option<Duration> {
        let heard = self.heard.as_ref().filter(|_| !self.other_leads())?;
        let missed = heard.at + heard.period * 2;
        let (led_at, patience) = self.led;
        Some(missed.max(led_at + self.leaderless_after()) + patience)
    }

    fn leaderless_after(&self) -> Duration {
        self.election_timeout * LEADERLESS_TIMEOUTS
    }

    fn note_leader(&mut self, now: Now) {
        self.led = (now.monotonic, self.election_timeout.mul_f64(2.0 * now.random));
    }

    fn hear(&mut self, frame: &BeatFrame, now: Now) {
        if self.heard.is_none_or(|heard| heard.beat < frame.beat_index) {
            let period = Duration::from_millis(frame.tempo_bpm.period_ms() as u64);
            self.heard = Some(Heard { beat: frame.beat_index, period, at: now.monotonic });
        }
    }

    fn period(&self) -> Duration {
        Duration::from_millis(self.metronome.tempo().period_ms() as u64)
    }

    fn is_raft_leader(&self) -> bool {
        matches!(self.raft_role, RaftRole::Leader { .. })
    }

    fn is_alone(&self) -> bool {
        matches!(self.raft_role, RaftRole::Leader { alone: true, .. })
    }

    /// Whether it is not for this node to beat.
    fn other_leads(&self) -> bool {
        matches!(self.raft_role, RaftRole::Follower { .. } | RaftRole::NonMember)
    }

    fn refusal(&self, frame: Option<&BeatFrame>, no_reports: bool) -> Option<StopReason> {
        let ours = self.metronome.cluster_id();
        match frame {
            None if !no_reports || self.heard.is_some() => Some(StopReason::FramesLost),
            Some(frame) if frame.cluster_id != ours => {
                Some(StopReason::OtherCluster { found: frame.cluster_id.clone(), ours: ours.to_owned() })
            }
            _ => None,
        }
    }

    /// A tail that lacks a frame which was read before: whoever answered did not know the whole log.
    fn is_stale(&self, answer: &Event) -> bool {
        let Event::Tail { frame: Some(frame), .. } = answer else { return false };
        frame.cluster_id == self.metronome.cluster_id() && self.heard.is_some_and(|heard| frame.beat_index < heard.beat)
    }

    /// The newest frame is another's that came while we led. One without a quorum is not: it is of a node
    /// that was a member once.
    fn competing_leader(&self, frame: Option<&BeatFrame>) -> Option<StopReason> {
        let frame = frame.filter(|frame| self.leading && !frame.degraded && !self.knows(frame))?;
        Some(StopReason::CompetingLeader { node: frame.node.clone(), beat: frame.beat_index.get() })
    }

    /// Whether `frame` is the last that we know to be committed, or the one in doubt.
    fn knows(&self, frame: &BeatFrame) -> bool {
        self.metronome.last() == Some(frame) || self.in_doubt.as_deref() == Some(frame)
    }
}

#[cfg(test)]
mod tests;
