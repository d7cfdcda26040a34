//! The state machine of a pulse node: from an election to its first beat, from beat to beat, and through failures.
//!
//! ```text
//!               elected                        quorum
//!  Standby ──────────────▶ Confirming(TakeOver) ──────▶ ReadingTail ──▶ InitTransactions ──▶ VerifyingTail ─┐
//!      │                                                   ▲                                                │
//!      └────────── no leader and beats missed: degraded ───┘                                                │
//!  ┌────────────────────────────────────────────────────────────────────────────────────────────────────────┘
//!  │                                              quorum, or degraded              due
//!  └▶ SamplingBoundary ──▶ Confirming(FirstBeat) ────────────────────▶ Waiting ─────────────▶ Publishing
//!           │                                                          ▲ ▲ │                    ▲   │
//!           └────────────── degraded and not Raft's leader ────────────┘ │ └▶ Confirming(Beat) ─┘   │
//!                                                                        └─────── committed ────────┘
//!
//!  on                  in state                               goes to
//!  due                 Waiting                                Publishing, or Confirming(Beat) as Raft's leader
//!                                                             without a recent quorum check
//!  in doubt            Publishing                             InitTransactions, or Confirming(TakeOver) as Raft's
//!                                                             leader without a recent quorum check
//!  fenced              InitTransactions, Publishing           Pausing, or AwaitingCompetingLeader as the only voter
//!  Kafka unavailable   ReadingTail, InitTransactions,         Pausing
//!                      VerifyingTail, CheckingCompetingLeader
//!  in doubt or Kafka unavailable, and no commit               SteppedDown
//!  for COMMIT_TIMEOUT
//!  deadline            AwaitingCompetingLeader                CheckingCompetingLeader
//!                      Pausing, SteppedDown                   Confirming(TakeOver) as Raft's leader, ReadingTail if
//!                                                             degraded, otherwise Standby
//!  tail                CheckingCompetingLeader                InitTransactions, or stops if another pulse has
//!                                                             published a beat
//!                      ReadingTail, degraded, newer beats     Standby
//!  another leads, or   Waiting, Pausing, SteppedDown,         Standby, at once
//!  not a voter         AwaitingCompetingLeader
//!                      ReadingTail, SamplingBoundary,         Standby, with the next response
//!                      Confirming(FirstBeat),
//!                      Confirming(Beat), Publishing
//!                      any other, after a failure             Standby
//!  not confirmed       Confirming(TakeOver), and              Standby
//!                      Confirming(FirstBeat) unless degraded
//! ```
//!
//! An election starts a takeover, and a quorum confirms it twice. Kafka's fencing makes it safe: `InitTransactions`
//! fences the producer of every earlier leader, and only the tail that is read after it is trusted. Without a quorum
//! the leader continues, or after a while another node takes over, also with `InitTransactions` and with frames marked
//! as degraded.

mod kafka;

use std::time::Duration;

use backbeat_schemas::{BeatFrame, BeatIndex};

use super::published_beats::PublishedBeats;
use super::quorum_checks::QuorumChecks;
use super::{
    Boundary, Command, Event, KafkaCommand, Metronome, Now, Plan, PlanRequest, RaftRole, RaftTimeouts, Refusal,
    TempoBounds,
};

/// A leader that could not commit a beat for this long, or for a period if that is longer, steps down.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);
/// The time before a beat at which its boundary is sampled, or a quarter of the period if that is shorter.
const BOUNDARY_LEAD: Duration = Duration::from_millis(25);
/// The node's state; the module's documentation draws the transitions.
#[derive(Debug, Clone, PartialEq)]
enum State {
    /// The node stands by without publishing: another node leads, or none does.
    Standby,
    /// The node waits for a quorum to confirm that it is Raft's leader.
    Confirming(Purpose),
    /// The node reads the tail before any producer is fenced.
    ReadingTail,
    /// The node initializes transactions, which fences the producer of every earlier leader.
    InitTransactions,
    /// The node reads the tail again, which no other node can extend now.
    VerifyingTail,
    /// The node samples the first boundary of its leadership.
    SamplingBoundary,
    /// The node waits until the next beat is due.
    Waiting {
        due: Duration,
        /// The instant at which the boundary for the beat is requested; `None` once it was.
        sample_at: Option<Duration>,
    },
    /// The node commits this frame.
    Publishing(Box<BeatFrame>),
    /// The node backs off after it was fenced, or while Kafka is unavailable.
    Pausing { until: Duration },
    /// The node sends no heartbeats as Raft's leader, so that another node is elected.
    SteppedDown { until: Duration },
    /// The node was fenced as the only voter, and waits until a competing leader would have published its next beat.
    AwaitingCompetingLeader { until: Duration },
    /// The node reads the tail to look for that beat.
    CheckingCompetingLeader,
}

/// The step that waits for a quorum's confirmation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// The start of a takeover.
    TakeOver,
    /// The end of a takeover: the first beat.
    FirstBeat,
    /// A due beat, which is degraded without a quorum.
    Beat,
}

/// The newest frame that was read.
#[derive(Debug, Clone, Copy)]
struct ObservedFrame {
    beat: BeatIndex,
    period: Duration,
    at: Duration,
}

/// A node's role, for the API, logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Another node is Raft's leader.
    Follower,
    /// No leader of Raft is known, and this node publishes no beats.
    Leaderless,
    /// The node is not a voter of the cluster.
    NonMember,
    /// The node is taking over, or taking over again after a failure.
    TakingOver,
    /// The node publishes beats.
    Leader,
    /// The node publishes beats without a quorum.
    DegradedLeader,
}

/// Decides, event by event, what a pulse node does.
#[derive(Debug)]
pub struct Leadership {
    metronome: Metronome,
    bounds: TempoBounds,
    state: State,
    raft_role: RaftRole,
    raft_term: u64,
    quorum_checks: QuorumChecks,
    /// The instant at which Raft was last known to have a leader.
    leader_known_at: Duration,
    /// Random extra wait before a takeover without a quorum, so that nodes do not all start at once.
    takeover_delay: Duration,
    observed: Option<ObservedFrame>,
    published: PublishedBeats,
    plan: Option<Plan>,
    /// The plan that is being proposed to Raft.
    proposed: Option<Plan>,
    /// True from the tail verified after this node's own `InitTransactions` until it stands by.
    leading: bool,
    /// True while this node takes over or leads without a quorum.
    degraded: bool,
    /// The instant at which this node began the takeover or beat that is not committed yet.
    uncommitted_since: Option<Duration>,
    /// The frame whose commit is in doubt until the tail is read.
    in_doubt: Option<Box<BeatFrame>>,
    /// The number of times that this node was fenced since its last commit.
    times_fenced: u32,
}

impl Leadership {
    /// Creates the state of a node that has seen no event yet.
    pub fn new(metronome: Metronome, bounds: TempoBounds, timeouts: RaftTimeouts, now: Now) -> Self {
        Self {
            metronome,
            bounds,
            state: State::Standby,
            raft_role: RaftRole::Leaderless,
            raft_term: 0,
            quorum_checks: QuorumChecks::new(timeouts.election),
            leader_known_at: now.monotonic,
            takeover_delay: timeouts.election.mul_f64(now.random),
            observed: None,
            published: PublishedBeats::default(),
            plan: None,
            proposed: None,
            leading: false,
            degraded: false,
            uncommitted_since: None,
            in_doubt: None,
            times_fenced: 0,
        }
    }

    /// Tells of a beat that was published.
    pub fn remember(&mut self, beat: BeatIndex) {
        self.published.remember(beat);
    }

    /// The beat schedule.
    pub fn metronome(&self) -> &Metronome {
        &self.metronome
    }

    /// The plan last committed by Raft.
    pub fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref()
    }

    /// This node's role.
    pub fn role(&self) -> Role {
        match self.state {
            State::Waiting { .. } | State::Publishing(_) | State::Confirming(Purpose::Beat) if self.degraded => {
                Role::DegradedLeader
            }
            State::Waiting { .. } | State::Publishing(_) | State::Confirming(Purpose::Beat) => Role::Leader,
            State::Standby | State::SteppedDown { .. } | State::AwaitingCompetingLeader { .. } => {
                match self.raft_role {
                    RaftRole::Follower { .. } => Role::Follower,
                    RaftRole::NonMember => Role::NonMember,
                    RaftRole::Leader { .. } | RaftRole::Leaderless => Role::Leaderless,
                }
            }
            _ => Role::TakingOver,
        }
    }

    /// Returns true if Raft has a leader, as far as this node knows.
    pub fn knows_leader(&self, now: Now) -> bool {
        matches!(self.raft_role, RaftRole::Follower { .. }) || self.has_quorum(now)
    }

    /// The instant at which the shell must send [`Event::Elapsed`], on the monotonic clock.
    pub fn deadline(&self) -> Option<Duration> {
        match &self.state {
            State::Standby => [self.next_quorum_check(), self.takeover_at()].into_iter().flatten().min(),
            State::Waiting { due, sample_at } => {
                [Some(*due), *sample_at, self.next_quorum_check()].into_iter().flatten().min()
            }
            // A quorum check sends heartbeats, which would keep the others from electing another leader.
            State::SteppedDown { until } => Some(*until),
            State::Pausing { until } | State::AwaitingCompetingLeader { until } => {
                [Some(*until), self.next_quorum_check()].into_iter().flatten().min()
            }
            State::ReadingTail
            | State::InitTransactions
            | State::VerifyingTail
            | State::SamplingBoundary
            | State::Publishing(_)
            | State::CheckingCompetingLeader => self.next_quorum_check(),
            State::Confirming(_) => None,
        }
    }

    /// Processes `event` at `now`, with the newest known boundary, and returns what the shell must do.
    pub fn on(&mut self, event: Event, now: Now, boundary: &Boundary) -> Vec<Command> {
        match event {
            Event::RaftRoleChanged(raft_role) => self.on_raft_role(raft_role, now),
            Event::PlanApplied(plan) => {
                self.plan = Some(plan);
                self.proposed.take_if(|proposed| *proposed == plan);
                Vec::new()
            }
            Event::QuorumChecked { check_id, confirmed } => self.on_quorum(check_id, confirmed, now, boundary),
            Event::FrameRead(frame) => {
                self.observe(&frame, now);
                Vec::new()
            }
            Event::Elapsed => self.on_elapsed(now, boundary),
            Event::Kafka(response) => self.on_kafka_response(response, now),
        }
    }

    /// Checks an operator's request and returns the plan that the shell must propose to Raft; it must answer with
    /// [`Event::PlanApplied`] or [`Leadership::give_up_proposal`].
    pub fn propose(&mut self, request: PlanRequest) -> Result<Plan, Refusal> {
        request.check_bounds(self.bounds)?;
        match self.role() {
            Role::Leader => {}
            Role::DegradedLeader => return Err(Refusal::Unavailable("there is no quorum: the tempo is frozen")),
            _ => return Err(Refusal::Unavailable("this node is not publishing beats")),
        }
        let in_flight = match &self.state {
            State::Publishing(frame) => Some(&**frame),
            _ => None,
        };
        let Some(last) = in_flight.or(self.metronome.last()) else {
            return Err(Refusal::Unavailable("the first beat is not published yet"));
        };
        if self.proposed.is_some() {
            return Err(Refusal::Unavailable("another change is being proposed"));
        }
        let pending = self.plan.filter(|plan| plan.is_pending(last));
        let plan = request.plan(pending, last, self.metronome.next_downbeat(in_flight))?;
        self.proposed = Some(plan);
        Ok(plan)
    }

    /// Forgets the proposed plan: as far as this node knows, Raft did not commit it.
    pub fn give_up_proposal(&mut self) {
        self.proposed = None;
    }

    fn on_raft_role(&mut self, raft_role: RaftRole, now: Now) -> Vec<Command> {
        if let RaftRole::Leader { raft_term, .. } = &raft_role {
            self.raft_term = *raft_term;
        }
        // A leader was known until now, or is known from now on.
        if matches!(self.raft_role, RaftRole::Follower { .. }) || matches!(raft_role, RaftRole::Follower { .. }) {
            self.record_leader(now);
        }
        self.raft_role = raft_role;
        let must_stand_by = self.must_stand_by();
        match self.state {
            State::Standby if self.is_raft_leader() => vec![self.confirm(Purpose::TakeOver, now)],
            State::Waiting { .. } | State::Pausing { .. } | State::AwaitingCompetingLeader { .. } if must_stand_by => {
                self.stand_by()
            }
            State::SteppedDown { .. } if must_stand_by => {
                self.state = State::Standby;
                vec![Command::Rejoin]
            }
            _ => Vec::new(),
        }
    }

    fn on_quorum(&mut self, check_id: u64, confirmed: bool, now: Now, boundary: &Boundary) -> Vec<Command> {
        if !self.quorum_checks.complete(check_id, confirmed) {
            return Vec::new();
        }
        if confirmed {
            self.record_leader(now);
        }
        if matches!(self.state, State::Waiting { .. }) {
            self.degraded = !self.has_quorum(now);
        }
        let State::Confirming(purpose) = self.state else { return Vec::new() };
        if !self.quorum_checks.is_recent(now.monotonic) {
            return vec![self.confirm(purpose, now)];
        }
        match (purpose, confirmed) {
            (Purpose::TakeOver, true) => {
                self.degraded = false;
                self.read_tail(now)
            }
            (Purpose::TakeOver, false) => self.stand_by(),
            (Purpose::FirstBeat | Purpose::Beat, _) if self.must_stand_by() => self.stand_by(),
            (Purpose::FirstBeat, false) if !self.degraded => self.stand_by(),
            (Purpose::FirstBeat, confirmed) => {
                // For the first beat only a confirmation after `InitTransactions` counts.
                if !confirmed {
                    self.quorum_checks.forget_confirmation();
                }
                self.wait(now)
            }
            (Purpose::Beat, _) => self.publish(now, boundary),
        }
    }

    fn on_elapsed(&mut self, now: Now, boundary: &Boundary) -> Vec<Command> {
        let has_passed = |at: Option<Duration>| at.is_some_and(|at| at <= now.monotonic);
        let is_takeover_due = has_passed(self.takeover_at());
        let must_check_quorum = has_passed(self.next_quorum_check());
        match &mut self.state {
            State::Standby if is_takeover_due => {
                self.degraded = true;
                self.read_tail(now)
            }
            State::Standby if must_check_quorum => vec![self.confirm(Purpose::TakeOver, now)],
            State::Waiting { due, .. } if *due <= now.monotonic => {
                let needs_check = self.is_raft_leader() && !self.quorum_checks.is_recent(now.monotonic);
                if needs_check { vec![self.confirm(Purpose::Beat, now)] } else { self.publish(now, boundary) }
            }
            State::Waiting { sample_at, .. } => {
                let mut commands = Vec::new();
                if has_passed(*sample_at) {
                    *sample_at = None;
                    commands.push(Command::RefreshBoundary);
                }
                if must_check_quorum {
                    commands.push(self.quorum_check(now));
                }
                commands
            }
            State::Pausing { until } if *until <= now.monotonic => self.retry(now),
            State::SteppedDown { until } if *until <= now.monotonic => {
                let mut commands = vec![Command::Rejoin];
                commands.extend(self.retry(now));
                commands
            }
            State::AwaitingCompetingLeader { until } if *until <= now.monotonic => {
                self.enter(State::CheckingCompetingLeader, KafkaCommand::ReadTail)
            }
            State::Confirming(_) | State::SteppedDown { .. } => Vec::new(),
            _ if must_check_quorum => vec![self.quorum_check(now)],
            _ => Vec::new(),
        }
    }

    fn enter(&mut self, state: State, command: KafkaCommand) -> Vec<Command> {
        self.state = state;
        vec![Command::Kafka(command)]
    }

    fn read_tail(&mut self, now: Now) -> Vec<Command> {
        self.uncommitted_since.get_or_insert(now.monotonic);
        self.enter(State::ReadingTail, KafkaCommand::ReadTail)
    }

    fn wait(&mut self, now: Now) -> Vec<Command> {
        let period = self.period();
        let until_due = self.metronome.due().map_or(0, |due| due.millis() * 1_000 - now.wall_micros);
        // Limited, because a wall clock that jumped must not stop the beat. The limit is a little longer than a
        // period, so that beats which came early, because the wall clock was behind, return to the schedule.
        let wait = Duration::from_micros(until_due.max(0) as u64).min(period + period / 8);
        let due = now.monotonic + wait;
        let sample_at = due.saturating_sub(BOUNDARY_LEAD.min(period / 4));
        self.state = State::Waiting { due, sample_at: Some(sample_at) };
        Vec::new()
    }

    fn publish(&mut self, now: Now, boundary: &Boundary) -> Vec<Command> {
        self.degraded = !self.has_quorum(now);
        // Without a quorum the plan may be outdated, so the tempo does not change.
        let plan = self.plan.as_ref().filter(|_| !self.degraded);
        self.uncommitted_since.get_or_insert(now.monotonic);
        let mut frame = Box::new(self.metronome.build_frame(now.wall(), boundary, plan));
        frame.degraded = self.degraded;
        self.enter(State::Publishing(frame.clone()), KafkaCommand::Publish(frame))
    }

    /// Starts another attempt to publish, unless this node must no longer lead.
    fn retry(&mut self, now: Now) -> Vec<Command> {
        if self.is_raft_leader() {
            vec![self.confirm(Purpose::TakeOver, now)]
        } else if self.degraded && !self.must_stand_by() {
            self.read_tail(now)
        } else {
            self.stand_by()
        }
    }

    /// Gives up the leadership, or the attempt at it, and stands by.
    fn stand_by(&mut self) -> Vec<Command> {
        self.leading = false;
        self.degraded = false;
        self.in_doubt = None;
        self.uncommitted_since = None;
        self.proposed = None;
        self.enter(State::Standby, KafkaCommand::CloseProducer)
    }

    /// Reacts to a failure: stands by or steps down, or returns `None` if this node should try again.
    fn stand_by_or_step_down(&mut self, now: Now) -> Option<Vec<Command>> {
        if self.must_stand_by() {
            Some(self.stand_by())
        } else if self.must_step_down(now) {
            Some(self.step_down(now))
        } else {
            None
        }
    }

    fn step_down(&mut self, now: Now) -> Vec<Command> {
        let commands = self.stand_by();
        self.state = State::SteppedDown { until: now.monotonic + self.quorum_checks.leaderless_after() };
        commands.into_iter().chain([Command::StepDown]).collect()
    }

    fn must_step_down(&self, now: Now) -> bool {
        self.uncommitted_since
            .is_some_and(|since| now.monotonic.saturating_sub(since) > COMMIT_TIMEOUT.max(self.period()))
    }

    fn confirm(&mut self, purpose: Purpose, now: Now) -> Command {
        self.state = State::Confirming(purpose);
        self.quorum_check(now)
    }

    fn quorum_check(&mut self, now: Now) -> Command {
        Command::CheckQuorum { check_id: self.quorum_checks.start(now.monotonic) }
    }

    /// The instant of the next quorum check, if this node is Raft's leader.
    fn next_quorum_check(&self) -> Option<Duration> {
        self.quorum_checks.next().filter(|_| self.is_raft_leader())
    }

    fn has_quorum(&self, now: Now) -> bool {
        self.is_raft_leader() && self.quorum_checks.is_confirmed(now.monotonic)
    }

    /// The instant from which this node may take over without a quorum: by then the cluster has been leaderless for
    /// long, and more than one beat was missed.
    fn takeover_at(&self) -> Option<Duration> {
        let observed = self.observed.as_ref().filter(|_| !self.must_stand_by())?;
        let missed = observed.at + observed.period * 2;
        Some(missed.max(self.leader_known_at + self.quorum_checks.leaderless_after()) + self.takeover_delay)
    }

    fn record_leader(&mut self, now: Now) {
        self.leader_known_at = now.monotonic;
        self.takeover_delay = self.quorum_checks.election_timeout().mul_f64(2.0 * now.random);
    }

    fn observe(&mut self, frame: &BeatFrame, now: Now) {
        self.remember(frame.beat_index);
        if self.observed.is_none_or(|observed| observed.beat < frame.beat_index) {
            let period = Duration::from_millis(frame.tempo_bpm.period_ms() as u64);
            self.observed = Some(ObservedFrame { beat: frame.beat_index, period, at: now.monotonic });
        }
    }

    fn period(&self) -> Duration {
        Duration::from_millis(self.metronome.tempo().period_ms() as u64)
    }

    fn is_raft_leader(&self) -> bool {
        matches!(self.raft_role, RaftRole::Leader { .. })
    }

    fn is_sole_voter(&self) -> bool {
        matches!(self.raft_role, RaftRole::Leader { sole_voter: true, .. })
    }

    /// Returns true if this node must stand by: another node is Raft's leader, or this one is not a voter.
    fn must_stand_by(&self) -> bool {
        matches!(self.raft_role, RaftRole::Follower { .. } | RaftRole::NonMember)
    }
}

#[cfg(test)]
mod tests;
