//! The reactions of a node to Kafka's responses.

use std::time::Duration;

use backbeat_schemas::BeatFrame;

use super::{Leadership, Purpose, State};
use crate::core::published_beats::LogEnd;
use crate::core::{Command, KafkaCommand, KafkaResponse, Now, StopReason};

/// The pause before the next attempt when Kafka was unavailable.
pub(super) const KAFKA_PAUSE: Duration = Duration::from_millis(250);
/// The base of the exponential backoff, with jitter, after this node was fenced.
const FENCE_BACKOFF: Duration = Duration::from_millis(50);
const MAX_FENCE_DOUBLINGS: u32 = 6;
/// The time that a node without peers waits for a competing leader's beat, from that beat's schedule on.
const COMPETING_LEADER_MARGIN: Duration = Duration::from_secs(1);

impl Leadership {
    /// Processes the response to a command that the publisher carried out.
    pub(super) fn on_kafka_response(&mut self, response: KafkaResponse, now: Now) -> Vec<Command> {
        let response = match self.check_tail(response, now) {
            Ok(response) => response,
            Err(reason) => return vec![Command::Stop(reason)],
        };
        match (std::mem::replace(&mut self.state, State::Standby), response) {
            (State::ReadingTail, KafkaResponse::Tail { frame, .. }) => self.on_tail(frame.as_deref(), now),
            (State::CheckingCompetingLeader, KafkaResponse::Tail { frame, .. }) => {
                match self.competing_leader(frame.as_deref()) {
                    Some(reason) => vec![Command::Stop(reason)],
                    None => self.enter(State::InitTransactions, KafkaCommand::InitTransactions),
                }
            }
            (State::VerifyingTail, KafkaResponse::Tail { frame, open_frame, .. }) => {
                self.on_verified_tail(open_frame.or(frame), now)
            }
            (State::InitTransactions, KafkaResponse::TransactionsInitialized) => {
                self.enter(State::VerifyingTail, KafkaCommand::ReadTail)
            }
            (State::SamplingBoundary, KafkaResponse::BoundarySampled) => {
                if self.must_stand_by() {
                    self.stand_by()
                } else if self.degraded && !self.is_raft_leader() {
                    self.wait(now)
                } else {
                    vec![self.confirm(Purpose::FirstBeat, now)]
                }
            }
            (State::Publishing(frame), KafkaResponse::Committed) => {
                self.metronome.set_last(*frame);
                self.uncommitted_since = None;
                self.times_fenced = 0;
                if self.must_stand_by() { self.stand_by() } else { self.wait(now) }
            }
            (State::Publishing(frame), KafkaResponse::InDoubt) => {
                self.in_doubt = Some(frame);
                if let Some(commands) = self.stand_by_or_step_down(now) {
                    commands
                } else if self.is_raft_leader() && !self.quorum_checks.is_recent(now.monotonic) {
                    // If this node was suspended, initializing transactions now would fence a newer leader.
                    vec![self.confirm(Purpose::TakeOver, now)]
                } else {
                    self.enter(State::InitTransactions, KafkaCommand::InitTransactions)
                }
            }
            (State::Publishing(frame), KafkaResponse::Fenced) => {
                self.in_doubt = Some(frame);
                self.on_fenced(now)
            }
            (State::InitTransactions, KafkaResponse::Fenced) => self.on_fenced(now),
            (
                State::ReadingTail | State::InitTransactions | State::VerifyingTail | State::CheckingCompetingLeader,
                KafkaResponse::KafkaUnavailable,
            ) => self.stand_by_or_step_down(now).unwrap_or_else(|| {
                self.enter(State::Pausing { until: now.monotonic + KAFKA_PAUSE }, KafkaCommand::CloseProducer)
            }),
            (state, response) => unreachable!("{response:?} is not a response to a command of {state:?}"),
        }
    }

    fn on_tail(&mut self, frame: Option<&BeatFrame>, now: Now) -> Vec<Command> {
        if let Some(frame) = frame {
            self.observe(frame, now);
        }
        // Without a quorum, a node takes over only if no other node publishes beats.
        let may_take_over = !self.degraded || self.takeover_at().is_some_and(|at| at <= now.monotonic);
        if self.must_stand_by() || !may_take_over {
            return self.stand_by();
        }
        self.enter(State::InitTransactions, KafkaCommand::InitTransactions)
    }

    /// Continues from the tail read after `InitTransactions`: only this node can append a frame now.
    fn on_verified_tail(&mut self, frame: Option<Box<BeatFrame>>, now: Now) -> Vec<Command> {
        if let Some(reason) = self.competing_leader(frame.as_deref()).filter(|_| self.is_sole_voter()) {
            return vec![Command::Stop(reason)];
        }
        self.leading &= frame.as_deref().is_none_or(|frame| self.is_known_frame(frame));
        self.in_doubt = None;
        if let Some(frame) = frame {
            self.observe(&frame, now);
            self.metronome.set_last(*frame);
        }
        if !self.leading {
            self.leading = true;
            self.metronome.take_over(self.raft_term);
        }
        self.enter(State::SamplingBoundary, KafkaCommand::SampleBoundary)
    }

    fn on_fenced(&mut self, now: Now) -> Vec<Command> {
        self.times_fenced += 1;
        if self.must_stand_by() {
            return self.stand_by();
        }
        self.state = if self.is_sole_voter() {
            let until_due = self.metronome.due().map_or(0, |due| due.millis_since(now.wall()));
            let until_due = Duration::from_millis(until_due.max(0) as u64).min(self.period());
            State::AwaitingCompetingLeader {
                until: now.monotonic + until_due + COMPETING_LEADER_MARGIN.mul_f64(1.0 + now.random / 2.0),
            }
        } else {
            let backoff = FENCE_BACKOFF * 2_u32.pow(self.times_fenced.min(MAX_FENCE_DOUBLINGS));
            State::Pausing { until: now.monotonic + backoff.mul_f64(0.5 + now.random / 2.0) }
        };
        vec![Command::Kafka(KafkaCommand::CloseProducer)]
    }

    /// Checks a tail: an error if pulse must not continue after it. One that ends before a beat that was published comes from
    /// a broker without the whole log, and counts as no response; unless that lasts.
    fn check_tail(&mut self, response: KafkaResponse, now: Now) -> Result<KafkaResponse, StopReason> {
        let KafkaResponse::Tail { frame, open_frame, newest_reported } = &response else { return Ok(response) };
        if let Some(reported) = newest_reported {
            self.remember(*reported);
        }
        let cluster_id = self.metronome.cluster_id();
        if let Some(frame) = frame.as_deref().filter(|frame| frame.cluster_id != cluster_id) {
            let configured = cluster_id.to_owned();
            return Err(StopReason::OtherCluster { found: frame.cluster_id.clone(), configured });
        }
        let found = open_frame.as_deref().or(frame.as_deref()).map(|frame| frame.beat_index);
        match self.published.judge(found, self.metronome.first_beat(), now.monotonic) {
            LogEnd::Whole => Ok(response),
            LogEnd::Stale => Ok(KafkaResponse::KafkaUnavailable),
            LogEnd::Lost(known) => Err(StopReason::FramesLost { found, known }),
        }
    }

    /// Returns a reason to stop if `frame`, the newest, was published by another leader while this node led. A degraded
    /// frame is no such reason: it comes from a node that was removed from the cluster.
    fn competing_leader(&self, frame: Option<&BeatFrame>) -> Option<StopReason> {
        let frame = frame.filter(|frame| self.leading && !frame.degraded && !self.is_known_frame(frame))?;
        Some(StopReason::CompetingLeader { node: frame.node.clone(), beat: frame.beat_index.get() })
    }

    /// Returns true if `frame` is the last one known to be committed, or the one in doubt.
    fn is_known_frame(&self, frame: &BeatFrame) -> bool {
        self.metronome.last() == Some(frame) || self.in_doubt.as_deref() == Some(frame)
    }
}
