//! The conductor thread: receives events, passes them to the core, and executes the core's commands.
//!
//! ```text
//!   raft ──────┐                              ┌─▶ raft (check the quorum, step down)
//!   watcher ───┼─▶ inputs ─▶ core::Leadership ┼─▶ publisher ─▶ Kafka
//!   publisher ─┘                   ▲          └─▶ boundary sampler
//!                                clock
//! ```

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::Context;
use backbeat_schemas::BeatFrame;
use chrono::Utc;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::boundary_sampler::BoundarySampler;
use super::events::{BoundaryStale, LeaderChanged, TookOver};
use super::metrics::Metrics;
use super::raft::RaftNode;
use super::status::SharedStatus;
use crate::core::{
    Command, Event, InitialConfig, KafkaCommand, KafkaResponse, Leadership, Now, Plan, PlanRequest, RaftRole, Refusal,
    Role,
};

/// The longest wait for an input, so that a lost topic is noticed in time even at a slow tempo.
const IDLE_WAIT: Duration = Duration::from_secs(1);

/// An input of the conductor.
pub(crate) enum ConductorInput {
    Event(Event),
    /// An operator's request to check. The sender must propose the resulting plan to Raft.
    Propose(PlanRequest, oneshot::Sender<Result<Plan, Refusal>>),
    /// Raft did not commit the proposed plan.
    GiveUpProposal,
    Shutdown,
}

/// Runs the core on a thread of its own.
pub(crate) struct Conductor {
    /// The configuration from the flags, to compare with that of the frames, which are the authority.
    pub(crate) flags: InitialConfig,
    pub(crate) clock: Clock,
    pub(crate) leadership: Leadership,
    pub(crate) boundary_sampler: Arc<BoundarySampler>,
    pub(crate) raft: RaftNode,
    pub(crate) runtime: Handle,
    /// The sending end of the conductor's own inputs, for tasks that it starts.
    pub(crate) inputs: Sender<ConductorInput>,
    pub(crate) publisher: Sender<KafkaCommand>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) status: SharedStatus,
}

/// The conductor's own observations, for metrics and logs.
#[derive(Default)]
struct Observations {
    /// The instant at which Raft elected this node, until the first beat after it.
    elected: Option<Instant>,
    /// True if the flags were compared with a frame.
    flags_compared: bool,
    /// The instant at which the next beat's boundary was requested.
    boundary_requested: Option<Instant>,
    raft_role: Option<RaftRole>,
    /// The last known leader of Raft.
    leader: Option<String>,
    role: Option<Role>,
}

impl Conductor {
    /// Runs until [`ConductorInput::Shutdown`], or until pulse cannot continue. Blocks.
    pub(crate) fn run(mut self, inputs: &Receiver<ConductorInput>) -> anyhow::Result<()> {
        let mut observations = Observations::default();
        loop {
            let until_deadline = self.leadership.deadline().map(|at| at.saturating_sub(self.clock.monotonic()));
            let input = inputs.recv_timeout(until_deadline.map_or(IDLE_WAIT, |wait| wait.min(IDLE_WAIT)));
            self.boundary_sampler.check_for_lost_log()?;
            let event = match input {
                Ok(ConductorInput::Event(event)) => event,
                Ok(ConductorInput::Propose(request, reply)) => {
                    let proposed = self.leadership.propose(request);
                    if let Err(Ok(_)) = reply.send(proposed) {
                        self.leadership.give_up_proposal();
                    }
                    continue;
                }
                Ok(ConductorInput::GiveUpProposal) => {
                    self.leadership.give_up_proposal();
                    continue;
                }
                // May come before the deadline, too; the core then ignores it.
                Err(RecvTimeoutError::Timeout) => Event::Elapsed,
                Ok(ConductorInput::Shutdown) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            self.record(&event, &mut observations);
            let boundary = self.boundary_sampler.current();
            for command in self.leadership.on(event, self.clock.now(), &boundary) {
                self.execute(command, &mut observations)?;
            }
            self.publish_status(&mut observations);
        }
    }

    fn execute(&self, command: Command, observations: &mut Observations) -> anyhow::Result<()> {
        tracing::debug!(?command, "executing a command of the core");
        match command {
            Command::CheckQuorum { check_id } => {
                let (raft, inputs) = (self.raft.clone(), self.inputs.clone());
                self.runtime.spawn(async move {
                    let confirmed = raft.confirm_leadership().await;
                    // A plan committed before the confirmation must be known before it. During shutdown nobody
                    // receives these inputs.
                    if let Some(plan) = *raft.plan().borrow() {
                        let _ = inputs.send(ConductorInput::Event(Event::PlanApplied(plan)));
                    }
                    let _ = inputs.send(ConductorInput::Event(Event::QuorumChecked { check_id, confirmed }));
                });
            }
            Command::RefreshBoundary => {
                observations.boundary_requested = Some(Instant::now());
                self.boundary_sampler.refresh();
            }
            Command::StepDown => {
                tracing::warn!("cannot commit beats: stepping down so that another node is elected");
                self.raft.set_heartbeats(false);
            }
            Command::Rejoin => self.raft.set_heartbeats(true),
            Command::Stop(reason) => return Err(reason.into()),
            Command::Kafka(command) => {
                let is_beat = matches!(command, KafkaCommand::Publish(_));
                let requested = observations.boundary_requested.take_if(|_| is_beat);
                if requested.is_some_and(|requested| !self.boundary_sampler.is_fresh(requested)) {
                    BoundaryStale { is_first: false }.emit(&self.metrics);
                }
                self.publisher.send(command).context("the publisher thread has ended")?;
            }
        }
        Ok(())
    }

    /// Records an event in metrics and logs.
    fn record(&self, event: &Event, observations: &mut Observations) {
        match event {
            Event::RaftRoleChanged(raft_role) => {
                tracing::info!(?raft_role, "raft role changed");
                let leads = |raft_role: &RaftRole| matches!(raft_role, RaftRole::Leader { .. });
                if !leads(raft_role) {
                    observations.elected = None;
                } else if !observations.raft_role.as_ref().is_some_and(leads) {
                    observations.elected = Some(Instant::now());
                }
                observations.raft_role = Some(raft_role.clone());
                let leader = match raft_role {
                    RaftRole::Leader { .. } => Some(self.leadership.metronome().node()),
                    RaftRole::Follower { leader } => Some(leader.as_str()),
                    RaftRole::Leaderless | RaftRole::NonMember => None,
                };
                if let Some(leader) = leader
                    && observations.leader.as_deref() != Some(leader)
                    && let Some(previous) = observations.leader.replace(leader.to_owned())
                {
                    LeaderChanged { leader, previous: &previous }.emit(&self.metrics);
                }
            }
            Event::Kafka(KafkaResponse::Fenced) => {
                tracing::warn!("the producer was fenced; backing off");
            }
            Event::Kafka(KafkaResponse::Committed) => {
                if let Some(elected) = observations.elected.take() {
                    TookOver { after: elected.elapsed() }.emit(&self.metrics);
                }
            }
            Event::Kafka(KafkaResponse::Tail { frame: Some(frame), .. }) if !observations.flags_compared => {
                observations.flags_compared = true;
                self.compare_flags(frame);
            }
            _ => {}
        }
    }

    fn compare_flags(&self, last: &BeatFrame) {
        let InitialConfig { tempo, bar_length, grace_beats, .. } = self.flags;
        if (tempo, bar_length) != (last.tempo_bpm, last.bar_length) {
            tracing::warn!(
                flags = format!("{tempo}, bars of {bar_length}"),
                in_force = format!("{}, bars of {}", last.tempo_bpm, last.bar_length),
                command = format!("backbeat tempo {} --bar-length {bar_length} --ramp", tempo.bpm()),
                "the flags differ from the plan in force and are ignored: they apply to new clusters only"
            );
        }
        if grace_beats != last.grace_beats {
            tracing::warn!(
                flag = grace_beats,
                in_force = last.grace_beats,
                "the flag --grace differs from the cluster's grace and is ignored: a cluster's grace never changes"
            );
        }
    }

    /// Updates the role and the plan in status, metrics and logs.
    fn publish_status(&self, observations: &mut Observations) {
        let role = self.leadership.role();
        if observations.role.replace(role) != Some(role) {
            let last = self.leadership.metronome().last();
            let last_beat = last.map(|last| last.beat_index.get());
            let last_beat_node = last.map(|last| last.node.as_str());
            tracing::info!(?role, last_beat, last_beat_node, "pulse role changed");
        }
        let knows_leader = self.leadership.knows_leader(self.clock.now());
        let leads = matches!(role, Role::Leader | Role::DegradedLeader);
        self.metrics.set_role(leads, role == Role::DegradedLeader, knows_leader);
        let plan = self.leadership.plan().copied();
        self.status.update(|status| {
            status.role = role.into();
            status.knows_leader = knows_leader;
            status.plan = plan;
            status.waiting_for = None;
        });
    }
}

/// The wall clock, the monotonic clock and the random numbers of [`Now`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    started: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now() }
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn now(&self) -> Now {
        Now { wall_micros: Utc::now().timestamp_micros(), monotonic: self.monotonic(), random: rand::random() }
    }
}
