//! The sender of claims.

use std::sync::Arc;
use std::time::Duration;

use backbeat_broker::{Deliveries, ProducerRecord, QueueFull, Sender};
use backbeat_schemas::{BeatFrame, Help, HlcClock, SecretRotation, State, StatusClaim, Timestamp, wire};

/// The status of a task, as an agent states it in a claim.
///
/// Kafka accepts a claim that exceeds the limits below, but it counts as invalid in the report.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// The agent's id: 1 to 256 bytes.
    pub agent_id: String,
    /// The task's id: 1 to 256 bytes.
    pub task_id: String,
    /// The task's state.
    pub state: State,
    /// The rest of the task's beat budget, in beats; negative once overdrawn. [`Tasks`](crate::Tasks) computes it.
    pub beats_left: i32,
    /// The completed part of the task, 0 to 1.
    pub progress: f64,
    /// A note for people: at most 4,096 bytes.
    pub notes: String,
    /// The status of the task's request for help; `None` without one.
    pub help: Option<Help>,
    /// The outcome of the agent's secret rotation; `None` without one.
    pub secret_rotation: Option<SecretRotation>,
}

impl Status {
    /// Creates a status without beats left, progress, notes, help or secret rotation.
    pub fn new(agent_id: &str, task_id: &str, state: State) -> Self {
        Self {
            agent_id: agent_id.to_owned(),
            task_id: task_id.to_owned(),
            state,
            beats_left: 0,
            progress: 0.0,
            notes: String::new(),
            help: None,
            secret_rotation: None,
        }
    }
}

/// A sender of claims, for agents that make each claim themselves. Use [`Tasks`](crate::Tasks) unless you need that.
///
/// Sending never blocks: claims go into a local queue, from which they are delivered in the background. The delivery of
/// each is retried for 5 minutes; [`ClaimSender::deliveries`] counts the outcomes.
pub struct ClaimSender {
    sender: Sender,
    topic: String,
    schema_id: u32,
    clock: HlcClock,
    deliveries: Arc<Deliveries>,
}

impl ClaimSender {
    pub(crate) fn new(sender: Sender, topic: String, schema_id: u32) -> Self {
        // A random node part suffices: it only breaks ties between HLC timestamps of different clocks.
        Self { sender, topic, schema_id, clock: HlcClock::new(rand::random()), deliveries: Arc::default() }
    }

    /// Sends a claim of `status` for the beat of `frame`. The claim's HLC timestamp (of a hybrid logical clock) is later
    /// than the frame's.
    ///
    /// Fails with [`QueueFull`] if the local queue is full; then the claim is not sent.
    pub fn send_claim(&mut self, frame: &BeatFrame, status: Status) -> Result<(), QueueFull> {
        let claim = self.build_claim(frame, status);
        self.send_record(Some(claim.agent_id.as_bytes()), &self.encode(&claim))
    }

    /// Builds a claim of `status` for the beat of `frame`, without sending it.
    pub fn build_claim(&mut self, frame: &BeatFrame, status: Status) -> StatusClaim {
        self.clock.observe(frame.hlc);
        let hlc = self.clock.tick(Timestamp::from_millis(chrono::Utc::now().timestamp_millis()));
        let Status { agent_id, task_id, state, beats_left, progress, notes, help, secret_rotation } = status;
        StatusClaim {
            r#type: Default::default(),
            agent_id,
            task_id,
            beat_index: frame.beat_index.get(),
            state,
            beats_left,
            progress,
            notes,
            hlc: hlc.to_string(),
            help,
            secret_rotation,
            degraded: false,
        }
    }

    /// Encodes `claim` in the Confluent wire format.
    pub fn encode(&self, claim: &StatusClaim) -> Vec<u8> {
        wire(self.schema_id, claim)
    }

    /// Sends a record of any key and value to `statusclaims`, for simulations of agents that send invalid claims.
    ///
    /// Fails with [`QueueFull`] if the local queue is full; then the record is not sent.
    pub fn send_record(&self, key: Option<&[u8]>, value: &[u8]) -> Result<(), QueueFull> {
        self.sender.send(ProducerRecord { topic: &self.topic, key, value, ..Default::default() }, &self.deliveries)
    }

    /// Returns the counts of claims outstanding, acknowledged and failed.
    pub fn deliveries(&self) -> &Deliveries {
        &self.deliveries
    }

    /// Returns the time from sending a claim to Kafka's acknowledgement, at `quantile` (0 to 1) over all claims so far;
    /// zero if none was acknowledged yet.
    pub fn latency(&self, quantile: f64) -> Duration {
        self.sender.latency(quantile)
    }

    /// Waits until all claims are acknowledged or failed, at most `timeout`. Blocks the thread.
    ///
    /// Fails if claims are still outstanding after `timeout`.
    pub fn flush(&self, timeout: Duration) -> Result<(), Outstanding> {
        self.sender.flush(timeout).map_err(|error| Outstanding(error.into()))
    }
}

/// Claims are neither acknowledged nor failed yet.
#[derive(Debug, thiserror::Error)]
#[error("kafka has not acknowledged all claims: {0}")]
pub struct Outstanding(Box<dyn std::error::Error + Send + Sync>);
