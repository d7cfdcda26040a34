//! Claims on their way to Kafka.

use std::sync::Arc;
use std::time::Duration;

use backbeat_broker::{Deliveries, Outgoing, QueueFull, Sender};
use backbeat_schemas::{BeatFrame, Help, HlcClock, SecretRotation, State, StatusClaim, Timestamp, wire};
use rdkafka::error::KafkaError;

/// What an agent says of a task on a beat.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// The agent, 1 to 256 bytes.
    pub agent_id: String,
    /// The task, 1 to 256 bytes.
    pub task_id: String,
    /// The task's state.
    pub state: State,
    /// What is left of its beat budget; negative once overdrawn.
    pub beats_left: i32,
    /// 0 to 1.
    pub progress: f64,
    /// At most 4,096 bytes.
    pub notes: String,
    /// Where a request for help stands.
    pub help: Option<Help>,
    /// How a rotation of secrets ended.
    pub secret_rotation: Option<SecretRotation>,
}

impl Status {
    /// A status without budget, progress or notes.
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

/// Sends claims. Never blocks: what does not fit the queue is refused.
pub struct Reporter {
    sender: Sender,
    topic: String,
    schema_id: u32,
    clock: HlcClock,
    deliveries: Arc<Deliveries>,
}

impl Reporter {
    pub(crate) fn new(sender: Sender, topic: String, schema_id: u32) -> Self {
        // The node part only breaks ties between readings of different clocks.
        Self { sender, topic, schema_id, clock: HlcClock::new(rand::random()), deliveries: Arc::default() }
    }

    /// Claims `status` for the beat of `frame`. The claim's clock is after the frame's.
    pub fn report(&mut self, frame: &BeatFrame, status: Status) -> Result<(), QueueFull> {
        let claim = self.claim(frame, status);
        self.send(Some(claim.agent_id.as_bytes()), &self.encode(&claim))
    }

    /// The claim of `status` for the beat of `frame`, not sent.
    pub fn claim(&mut self, frame: &BeatFrame, status: Status) -> StatusClaim {
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

    /// `claim` in the wire format.
    pub fn encode(&self, claim: &StatusClaim) -> Vec<u8> {
        wire(self.schema_id, claim)
    }

    /// Sends bytes as they are: for simulators of agents that send nonsense.
    pub fn send(&self, key: Option<&[u8]>, value: &[u8]) -> Result<(), QueueFull> {
        self.sender.send(Outgoing { topic: &self.topic, key, value, headers: &[] }, &self.deliveries)
    }

    /// What became of the claims.
    pub fn deliveries(&self) -> &Deliveries {
        &self.deliveries
    }

    /// How long Kafka took to acknowledge claims, at `quantile` (0 to 1); zero before it has acknowledged one.
    pub fn latency(&self, quantile: f64) -> Duration {
        self.sender.latency(quantile)
    }

    /// Waits until every claim was acknowledged or given up, at most `timeout`. Blocks.
    pub fn flush(&self, timeout: Duration) -> Result<(), KafkaError> {
        self.sender.flush(timeout)
    }
}
