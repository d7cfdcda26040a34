//! Hostile records: an agent with write rights to `statusclaims` and to the schema registry costs the others no report.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use backbeat_broker::{Deliveries, ProducerRecord, Sender, TopicName};
use backbeat_schemas::{Record, State, StatusClaim, wire};
use backbeat_tests::{Cluster, Program, read_raw, wait_until};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::{ClientConfig, ClientContext};
use reqwest::blocking::Client;
use serde_json::{Value, json};

use crate::pipeline::{check_reports, claim, totals};

/// Longer than the minute for which reverb waits for unknown schemas.
const LIMIT: Duration = Duration::from_mins(3);
const PARTITIONS: u32 = 3;
const AGENTS: i64 = 20;

struct Pipeline {
    cluster: Cluster,
    pulse: Program,
    reverb: Program,
    sim: Program,
    sender: Sender,
    deliveries: Arc<Deliveries>,
}

impl Pipeline {
    fn start() -> Self {
        Self::with_bars("4")
    }

    /// Starts the programs with bars of this many beats, four a second.
    fn with_bars(beats: &str) -> Self {
        let cluster = Cluster::new(PARTITIONS as i32);
        let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "240", "--max-bpm", "240", "--bar", beats]);
        let reverb = cluster.serve("reverb", &["--cluster", "it"]);
        let sim = cluster.start("agent-sim", &["--agents", &AGENTS.to_string()]);
        let sender = Sender::new(cluster.broker(), TopicName::StatusClaims, None).expect("a producer");
        let pipeline = Self { cluster, pulse, reverb, sim, sender, deliveries: Arc::default() };
        pipeline.wait_until_reports_continue();
        pipeline
    }

    /// Waits for two more reports of all honest agents.
    fn wait_until_reports_continue(&self) {
        let reports = || self.cluster.reports().iter().filter(|entry| entry.record.agents_reporting == AGENTS).count();
        let before = reports();
        wait_until("two more reports of all agents", LIMIT, || reports() >= before + 2);
    }

    fn send(&self, key: &str, value: &[u8]) {
        let topic = self.cluster.broker().topics().name(TopicName::StatusClaims);
        let record = ProducerRecord { topic: &topic, key: Some(key.as_bytes()), value, headers: &[] };
        while self.sender.send(record, &self.deliveries).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
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

    /// Waits until `hostile` records are reported as invalid, and compares all reports with the oracle's.
    fn check(mut self, hostile: usize) {
        wait_until("Kafka to acknowledge the records", LIMIT, || self.deliveries.outstanding() == 0);
        wait_until("a report of all hostile records", LIMIT, || totals(&self.cluster.reports()).2 == hostile as i64);
        self.wait_until_reports_continue();
        assert!(self.reverb.is_running(), "{}", self.reverb.log());
        drop(self.sim);
        drop(self.pulse);
        check_reports(&self.cluster);
        let dead_letters = self.cluster.broker().topics().name(TopicName::DeadLetters);
        assert_eq!(read_raw(&self.cluster, &dead_letters, |_| ()).len(), hostile);
    }
}

/// Five bytes are a record with a schema id. Reverb waits a minute for the first ones, and for all others together.
#[test]
fn flood_of_unknown_schema_ids_stops_no_report() {
    const ROUNDS: u32 = 10;
    const IDS: u32 = 1_000;
    let pipeline = Pipeline::start();
    for id in 0..ROUNDS * IDS {
        let value = [&[0], &(3_000_000_000 + id).to_be_bytes()[..]].concat();
        pipeline.send(&format!("stranger-{}", id % (2 * PARTITIONS)), &value);
        if id % IDS == 0 {
            pipeline.wait_until_reports_continue();
        }
    }
    pipeline.check((ROUNDS * IDS) as usize);
}

/// Schemas whose records take more memory or stack than their bytes.
#[test]
fn records_of_nested_and_repeated_schemas_are_invalid() {
    let pipeline = Pipeline::start();
    let with_field = |field: Value| {
        let mut schema: Value = serde_json::from_str(StatusClaim::schema().text()).expect("valid JSON");
        schema["fields"].as_array_mut().expect("a record has fields").push(field);
        schema
    };
    let recursive = with_field(json!({ "name": "next", "type": ["null", "backbeat.StatusClaim"], "default": null }));
    let repeated = with_field(json!({ "name": "nulls", "type": { "type": "array", "items": "null" }, "default": [] }));
    // Three strings of a byte, and zeros: beat, state, beats left, progress (8 bytes), notes, hlc and three more fields.
    let body = [&[2, b'a', 2, b'a', 2, b't'][..], &[0; 16]].concat();
    let record = |id: u32, body: &[u8]| [&[0], &id.to_be_bytes()[..], body].concat();
    // Each claim has another one as its last field.
    let nested = [&body[..], &[2]].concat().repeat(2_000);
    pipeline.send("a", &record(pipeline.register(&recursive), &nested));
    // A thousand million nulls, none of which takes a byte.
    let count = [0x80, 0xa8, 0xd6, 0xb9, 0x07, 0];
    pipeline.send("a", &record(pipeline.register(&repeated), &[&body[..], &count].concat()));
    pipeline.check(2);
}

/// An agent that invents tasks: those beyond the limit of its partition are in no distinct count, which the report says.
#[test]
fn tasks_beyond_the_limit_are_reported_as_such() {
    const TASKS: usize = 252_000;
    let pipeline = Pipeline::with_bars("40");
    let id = pipeline.cluster.register::<StatusClaim>(TopicName::StatusClaims);
    let claim = |beat_index, task: usize| StatusClaim {
        agent_id: "stranger".into(),
        task_id: format!("task-{task}"),
        state: State::Done,
        ..claim(beat_index)
    };
    // All of them name the downbeat of the next window, and are sent while it is open.
    let newest_beat = || pipeline.cluster.frames().pop().expect("there are frames").beat_index.get();
    let downbeat = (newest_beat() / 40 + 1) * 40;
    let values: Vec<Vec<u8>> = (0..TASKS).map(|task| wire(id, &claim(downbeat, task))).collect();
    wait_until("the downbeat", LIMIT, || newest_beat() >= downbeat);
    for value in &values {
        pipeline.send("stranger", value);
    }
    let issue = || {
        let issues = pipeline.cluster.reports().into_iter().flat_map(|entry| entry.record.issues);
        issues.into_iter().find(|issue| issue.ends_with("claims of agents or tasks beyond the limit"))
    };
    wait_until("a report of claims beyond the limit", LIMIT, || issue().is_some());
    eprintln!("{:?}", issue());
    let excess = pipeline.reverb.metric("backbeat_reverb_excess_claims_total");
    assert!(excess.is_some_and(|claims| claims >= 1.0), "{excess:?}");
    pipeline.check(0);
}

/// A batch of few bytes that takes many when it is decompressed: Kafka refuses it, or members can read it.
#[test]
fn compressed_bombs_are_refused_or_read() {
    let pipeline = Pipeline::start();
    let topic = pipeline.cluster.broker().topics().name(TopicName::StatusClaims);
    let servers = pipeline.cluster.broker().bootstrap_servers();
    let send = |codec: &str, records: usize, bytes: usize| {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", servers).set("compression.codec", codec).set("linger.ms", "200");
        config.set("message.max.bytes", "100000000").set("batch.size", "100000000");
        let refused = Arc::<AtomicUsize>::default();
        let producer: BaseProducer<Refused> =
            config.create_with_context(Refused(Arc::clone(&refused))).expect("a producer");
        let value = vec![0; bytes];
        for _ in 0..records {
            let record = BaseRecord::to(&topic).key("stranger").payload(&value);
            producer.send(record).map_err(|(error, _)| error).expect("the record is queued");
        }
        producer.flush(LIMIT).expect("Kafka answers");
        refused.load(Ordering::Relaxed)
    };
    let mut read = 0;
    for codec in ["gzip", "zstd", "snappy", "lz4"] {
        // Compressed, 40 MB are more than 64 KiB with snappy and lz4 only, and 10 MB with none but snappy.
        assert_eq!(send(codec, 40, 1_000_000), 40, "{codec}");
        read += 10 - send(codec, 10, 1_000_000);
        pipeline.wait_until_reports_continue();
    }
    assert!(read > 0, "the test needs a bomb that Kafka accepts");
    pipeline.check(read);
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
