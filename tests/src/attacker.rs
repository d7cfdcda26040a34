//! An agent that means ill: it may write to `statusclaims`, and register schemas.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use backbeat_broker::TopicName;
use backbeat_schemas::{Record, State, StatusClaim, testing, wire};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::{ClientConfig, ClientContext};
use reqwest::blocking::Client;
use serde_json::{Value, json};

use crate::Cluster;

const LIMIT: Duration = Duration::from_mins(1);

/// The attacker's producers. It claims as agent `stranger`.
pub struct Attacker<'c> {
    cluster: &'c Cluster,
    topic: String,
    claim_schema: u32,
    producer: BaseProducer<Refused>,
    refused: Arc<AtomicUsize>,
}

/// Counts the records that Kafka refuses.
struct Refused(Arc<AtomicUsize>);

impl ClientContext for Refused {}

impl ProducerContext for Refused {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::MessageSizeTooLarge));
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<'c> Attacker<'c> {
    /// Creates a producer with `settings`, such as a codec, for the claims of `cluster`.
    pub fn new(cluster: &'c Cluster, settings: &[(&str, &str)]) -> Self {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", cluster.broker().bootstrap_servers()).set("message.max.bytes", "65536");
        config.extend(settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let refused = Arc::<AtomicUsize>::default();
        let producer = config.create_with_context(Refused(Arc::clone(&refused))).expect("a producer");
        let topic = cluster.broker().topics().name(TopicName::StatusClaims);
        let claim_schema = cluster.register::<StatusClaim>(TopicName::StatusClaims);
        Self { cluster, topic, claim_schema, producer, refused }
    }

    /// Creates a producer of batches of up to 100 MB, compressed with `codec`.
    pub fn with_large_batches(cluster: &'c Cluster, codec: &str) -> Self {
        let large = [("message.max.bytes", "100000000"), ("batch.size", "100000000"), ("linger.ms", "200")];
        Self::new(cluster, &[&large[..], &[("compression.codec", codec)]].concat())
    }

    /// Begins a transaction. The settings must have a `transactional.id`.
    pub fn begin_transaction(&self) {
        self.producer.init_transactions(LIMIT).expect("Kafka answers");
        self.producer.begin_transaction().expect("the transaction begins");
    }

    /// Commits the transaction.
    pub fn commit_transaction(&self) {
        self.producer.commit_transaction(LIMIT).expect("the transaction is committed");
    }

    /// Sends a record, to a partition of choice or to that of its key. Waits while the queue is full.
    pub fn send(&self, key: &str, value: &[u8], partition: Option<i32>) {
        let mut record = BaseRecord::to(&self.topic).key(key).payload(value);
        if let Some(partition) = partition {
            record = record.partition(partition);
        }
        while let Err((error, unsent)) = self.producer.send(record) {
            let is_full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) == error;
            assert!(is_full, "{error}");
            self.producer.poll(Duration::from_millis(1));
            record = unsent;
        }
        self.producer.poll(Duration::ZERO);
    }

    /// Waits until Kafka has accepted or refused all records, and returns the number that it has refused so far.
    pub fn flush(&self) -> usize {
        self.producer.flush(LIMIT).expect("Kafka answers");
        self.refused.load(Ordering::Relaxed)
    }

    /// Sends five bytes: a record with a schema id that the registry does not have. `number` chooses the id.
    pub fn send_unknown_schema(&self, key: &str, number: u32) {
        self.send(key, &[&[0], &(3_000_000_000 + number).to_be_bytes()[..]].concat(), None);
    }

    /// Returns a record of a recursive schema, nested 2,000 times, and one of 49 bytes with a thousand million values.
    pub fn nested_and_repeated(&self) -> [Vec<u8>; 2] {
        let with_field = |field: Value| {
            let mut schema: Value = serde_json::from_str(StatusClaim::schema().text()).expect("valid JSON");
            schema["fields"].as_array_mut().expect("a record has fields").push(field);
            self.register(&schema)
        };
        let recursive =
            with_field(json!({ "name": "next", "type": ["null", "backbeat.StatusClaim"], "default": null }));
        let repeated =
            with_field(json!({ "name": "nulls", "type": { "type": "array", "items": "null" }, "default": [] }));
        // Three strings of a byte, and zeros: beat, state, beats left, progress (8 bytes), notes, hlc and three more fields.
        let body = [&[2, b'a', 2, b'a', 2, b't'][..], &[0; 16]].concat();
        let record = |id: u32, body: &[u8]| [&[0], &id.to_be_bytes()[..], body].concat();
        // Each claim has another one as its last field.
        let nested = [&body[..], &[2]].concat().repeat(2_000);
        // A thousand million nulls, none of which takes a byte.
        let count = [0x80, 0xa8, 0xd6, 0xb9, 0x07, 0];
        [record(recursive, &nested), record(repeated, &[&body[..], &count].concat())]
    }

    /// Registers `schema` for claims, past the compatibility check, and returns its id.
    fn register(&self, schema: &Value) -> u32 {
        let registry = &self.cluster.kafka().schema_registry;
        let subject = self.cluster.broker().topics().subject(TopicName::StatusClaims);
        let (http, none) = (Client::new(), json!({ "compatibility": "NONE" }));
        let answer = http.put(format!("{registry}/config/{subject}")).json(&none).send();
        assert!(answer.expect("the registry answers").status().is_success());
        let body = json!({ "schema": schema.to_string() });
        let answer = http.post(format!("{registry}/subjects/{subject}/versions")).json(&body).send();
        let answer: Value = answer.expect("the registry answers").json().expect("JSON");
        answer["id"].as_u64().unwrap_or_else(|| panic!("{answer}")) as u32
    }

    /// Returns a valid claim for a task that is done, as a record.
    pub fn claim(&self, agent: &str, task: &str, beat_index: i64) -> Vec<u8> {
        let claim = StatusClaim { task_id: task.into(), state: State::Done, ..testing::claim(agent, beat_index) };
        wire(self.claim_schema, &claim)
    }
}
