//! Sources of records for benchmarks.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backbeat_broker::{Deliveries, ProducerRecord, Sender, TopicName};
use backbeat_schemas::{Record, StatusClaim, testing, wire};
use backbeat_tests::{Cluster, wait_until};

const LIMIT: Duration = Duration::from_mins(5);
/// The number of batches of claims a second.
const BATCHES_PER_SECOND: u32 = 100;

/// A producer of the records of one topic of a cluster.
pub(crate) struct RecordSource<R> {
    sender: Sender,
    deliveries: Arc<Deliveries>,
    topic: String,
    schema: u32,
    record: PhantomData<fn(R)>,
}

impl<R: Record> RecordSource<R> {
    pub(crate) fn new(cluster: &Cluster, topic: TopicName) -> Self {
        let schema = cluster.register::<R>(topic);
        let sender = Sender::new(cluster.broker(), topic, None).expect("a producer");
        let topic = cluster.broker().topics().name(topic);
        Self { sender, deliveries: Arc::default(), topic, schema, record: PhantomData }
    }

    /// Sends a record; waits while the producer's queue is full.
    pub(crate) fn send(&self, key: &str, record: &R) {
        let value = wire(self.schema, record);
        let record =
            ProducerRecord { topic: &self.topic, key: Some(key.as_bytes()), value: &value, ..Default::default() };
        while self.sender.send(record, &self.deliveries).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until Kafka has acknowledged all records.
    pub(crate) fn wait_until_acknowledged(&self) {
        wait_until("Kafka to acknowledge all records", LIMIT, || self.deliveries.outstanding() == 0);
        assert_eq!(self.deliveries.failed(), 0);
    }
}

/// The claims of a fleet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) agents: u64,
    pub(crate) claims_per_second: u64,
}

impl Default for Load {
    fn default() -> Self {
        Self { agents: 20_000, claims_per_second: 20_000 }
    }
}

/// A producer of claims for a cluster.
pub(crate) struct ClaimSource(RecordSource<StatusClaim>);

impl ClaimSource {
    pub(crate) fn new(cluster: &Cluster) -> Self {
        Self(RecordSource::new(cluster, TopicName::StatusClaims))
    }

    /// Sends a claim; waits while the producer's queue is full.
    pub(crate) fn send(&self, agent: u64, beat_index: i64) {
        let claim = claim(agent, beat_index);
        self.0.send(&claim.agent_id, &claim);
    }

    /// Sends the claims of `load` evenly, the agents in turn, each claim for the beat `newest`, until `done`.
    pub(crate) fn send_at_constant_rate(&self, load: Load, newest: &AtomicI64, done: &AtomicBool) {
        let began = Instant::now();
        let mut sent = 0;
        for batch in 1.. {
            if done.load(Ordering::Relaxed) {
                break;
            }
            while sent < load.claims_per_second * u64::from(batch) / u64::from(BATCHES_PER_SECOND) {
                self.send(sent % load.agents, newest.load(Ordering::Relaxed));
                sent += 1;
            }
            thread::sleep((Duration::from_secs(1) / BATCHES_PER_SECOND * batch).saturating_sub(began.elapsed()));
        }
        self.wait_until_acknowledged();
    }

    /// Waits until Kafka has acknowledged all claims.
    pub(crate) fn wait_until_acknowledged(&self) {
        self.0.wait_until_acknowledged();
    }
}

/// A claim of about 170 bytes.
fn claim(agent: u64, beat_index: i64) -> StatusClaim {
    StatusClaim {
        task_id: format!("task-{agent:06}-of-the-benchmark"),
        notes: "compiling the third of seven crates, no errors".into(),
        hlc: "19a3b4c5d6e:0001:beef".into(),
        // It gets on: otherwise all would stall.
        progress: (beat_index % 1_000) as f64 / 1_000.0,
        ..testing::claim(&format!("agent-{agent:06}"), beat_index)
    }
}
