//! The beating thread: hears events, asks the core, and does what it says.
//!
//! ```text
//!   raft ─┐                                  ┌─▶ raft (confirm, abdicate)
//!   watcher ─┤▶ messages ─▶ core::Leadership ┼─▶ publisher ─▶ Kafka
//!   publisher ┘              ▲  clock        └─▶ boundaries
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
use super::metrics::Metrics;
use super::raft::Node;
use super::status::SharedStatus;
use crate::core::{Command, Event, InitialConfig, Leadership, Now, Plan, RaftRole, Refusal, Request, Role};

/// Whether claims were lost under us is looked at this often, at least.
const IDLE: Duration = Duration::from_secs(1);

/// What the conductor hears.
pub(crate) enum ConductorInput {
    Event(Event),
    /// An operator's request, to be checked; what is executed is for the asker to have agreed on.
    Propose(Request, oneshot::Sender<Result<Plan, Refusal>>),
    /// It was not.
    GiveUpProposal,
    /// The end.
    Shutdown,
}

/// Runs the core on a thread of its own.
pub(crate) struct Conductor {
    /// What the flags say; the frames are the authority.
    pub(crate) flags: InitialConfig,
    pub(crate) clock: Clock,
    pub(crate) leadership: Leadership,
    pub(crate) boundary_sampler: Arc<BoundarySampler>,
    pub(crate) raft: Node,
    pub(crate) runtime: Handle,
    /// To answer ourselves from other threads.
    pub(crate) own: Sender<ConductorInput>,
    pub(crate) publisher: Sender<Command>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) status: SharedStatus,
}

/// What a takeover is measured and compared by.
#[derive(Default)]
struct TakeoverStatistics {
    /// When Raft made this node its leader, until the first beat after it.
    elected: Option<Instant>,
    compared: bool,
    /// When the next beat's boundary was asked for.
    boundary_requested: Option<Instant>,
    raft_role: Option<RaftRole>,
    /// Who led last, as far as this node knows.
    leader: Option<String>,
    role: Option<Role>,
}

impl Conductor {
    /// Beats until it is told to stop, or cannot go on. Blocks.
    pub(crate) fn run(mut self, messages: &Receiver<ConductorInput>) -> anyhow::Result<()> {
        let mut takeover = TakeoverStatistics::default();
        loop {
            let message = match self.leadership.deadline() {
                Some(at) => messages.recv_timeout(at.saturating_sub(self.clock.monotonic())),
                None => messages.recv_timeout(IDLE),
            };
            self.boundary_sampler.check()?;
            let event = match message {
                Ok(ConductorInput::Event(event)) => event,
                Ok(ConductorInput::Propose(request, answer)) => {
                    let proposed = self.leadership.propose(request);
                    if let Err(Ok(_)) = answer.send(proposed) {
                        self.leadership.give_up_proposal();
                    }
                    continue;
                }
                Ok(ConductorInput::GiveUpProposal) => {
                    self.leadership.give_up_proposal();
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => Event::Elapsed,
                Ok(ConductorInput::Shutdown) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            self.note(&event, &mut takeover);
            let boundary = self.boundary_sampler.current();
            for command in self.leadership.on(event, self.clock.now(), &boundary) {
                self.perform(command, &mut takeover)?;
            }
            self.tell(&mut takeover);
        }
    }

    fn perform(&self, command: Command, takeover: &mut TakeoverStatistics) -> anyhow::Result<()> {
        tracing::debug!(?command, "command");
        match command {
            Command::ConfirmQuorum { ticket } => {
                let (raft, own) = (self.raft.clone(), self.own.clone());
                self.runtime.spawn(async move {
                    let confirmed = raft.confirm().await;
                    // What was agreed on before the answer is known before it. At the end nobody waits for it.
                    if let Some(plan) = *raft.plan().borrow() {
                        let _ = own.send(ConductorInput::Event(Event::Planned(plan)));
                    }
                    let _ = own.send(ConductorInput::Event(Event::Quorum { ticket, confirmed }));
                });
            }
            Command::RefreshBoundary => {
                takeover.boundary_requested = Some(Instant::now());
                self.boundary_sampler.refresh();
            }
            Command::StepDown => {
                tracing::warn!("no beat could be committed for long: letting another node lead");
                self.raft.set_stepped_down(true);
            }
            Command::Rejoin => self.raft.set_stepped_down(false),
            Command::Stop(reason) => return Err(reason.into()),
            kafkas => {
                let asked = takeover.boundary_requested.take_if(|_| matches!(kafkas, Command::Publish(_)));
                if asked.is_some_and(|asked| !self.boundary_sampler.is_fresh(asked)) {
                    self.metrics.stale_boundary();
                }
                self.publisher.send(kafkas).context("the publishing thread has ended")?;
            }
        }
        Ok(())
    }

    /// What metrics and logs want to know of an event.
    fn note(&self, event: &Event, takeover: &mut TakeoverStatistics) {
        match event {
            Event::Raft(raft_role) => {
                tracing::info!(?raft_role, "raft");
                let leads = |raft_role: &RaftRole| matches!(raft_role, RaftRole::Leader { .. });
                if !leads(raft_role) {
                    takeover.elected = None;
                } else if !takeover.raft_role.as_ref().is_some_and(leads) {
                    takeover.elected = Some(Instant::now());
                }
                takeover.raft_role = Some(raft_role.clone());
                let leader = match raft_role {
                    RaftRole::Leader { .. } => Some(self.leadership.metronome().node()),
                    RaftRole::Follower { leader } => Some(leader.as_str()),
                    RaftRole::Leaderless | RaftRole::NonMember => None,
                };
                if let Some(leader) = leader
                    && takeover.leader.as_deref() != Some(leader)
                {
                    let known = takeover.leader.replace(leader.to_owned());
                    self.metrics.leader_changes_by(known.is_some().into());
                }
            }
            Event::Fenced => {
                tracing::warn!("fenced: quiet for a while, and looking out for another pulse of this cluster");
            }
            Event::Committed => {
                if let Some(elected) = takeover.elected.take() {
                    self.metrics.took_over(elected.elapsed());
                }
            }
            Event::Tail { frame: Some(frame), .. } if !takeover.compared => {
                takeover.compared = true;
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
                change_by = format!("backbeat tempo {} --bar-length {bar_length} --ramp", tempo.bpm()),
                "the cluster has beaten before and goes on as it did; flags are for new clusters only"
            );
        }
        if grace_beats != last.grace_beats {
            tracing::warn!(flag = grace_beats, in_force = last.grace_beats, "a cluster's grace never changes");
        }
    }

    /// Says how things are.
    fn tell(&self, takeover: &mut TakeoverStatistics) {
        let role = self.leadership.role();
        if takeover.role.replace(role) != Some(role) {
            let last = self.leadership.metronome().last();
            let (beat, node) = (last.map(|last| last.beat_index), last.map(|last| &last.node));
            tracing::info!(?role, last_beat = ?beat, by = ?node, "role");
        }
        let led = self.leadership.is_led(self.clock.now());
        self.metrics.stands(matches!(role, Role::Leader | Role::DegradedLeader), role == Role::DegradedLeader, led);
        let plan = self.leadership.plan().copied();
        self.status.update(|status| {
            status.role = role.into();
            status.is_led = led;
            status.plan = plan;
            status.waiting_for = None;
        });
    }
}

/// The clocks and the random.
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
