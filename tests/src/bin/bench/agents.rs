//! A fleet of 100,000 agents in one process: its memory, its CPU time, and its rate of claims and the SDK's, beside a bare
//! producer of the same claims, already encoded, and beside librdkafka's own performance test.

use std::time::{Duration, Instant};

use backbeat_broker::TopicName;
use backbeat_sdk::{Connection, State, Status};
use backbeat_tests::{Cluster, Program, cpu_seconds, peak_mib, resident_mib, runtime, stack, wait_until};
use rdkafka::ClientConfig;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;

use crate::perf_test;
use crate::table::{Row, Table, median};

const LIMIT: Duration = Duration::from_mins(5);
const AGENTS: u32 = 100_000;
const BYTES_GOAL: f64 = 1_024.0;
const CORES_GOAL: f64 = 1.0;
/// One minute at the fastest default tempo, 24 BPM.
const BEATS: usize = 24;
/// Number of claims in a run at full speed.
const CLAIMS: u64 = 2_000_000;
/// Number of agents that send them.
const SENDERS: u64 = 20_000;
const ROUNDS: usize = 3;
const MIB: f64 = 1_048_576.0;

pub(crate) fn run(table: &mut Table) {
    let agents = AGENTS.to_string();
    let (one, _) = idle_mib("1");
    let (many, cluster) = idle_mib(&agents);
    table.add(Row {
        name: "agentsim_bytes_per_agent".into(),
        value: (many - one) * MIB / f64::from(AGENTS),
        unit: "B",
        baseline: "goal",
        baseline_value: BYTES_GOAL,
    });
    drop(cluster);
    at_24_bpm(table, &agents);
    at_full_speed(table);
}

/// The resident memory of a fleet that waits for its first beat, in MiB.
fn idle_mib(agents: &str) -> (f64, Cluster) {
    let cluster = Cluster::new(12);
    let sim = cluster.start("agent-sim", &["--agents", agents, "--log-level", "debug"]);
    wait_until("the fleet to wait for beats", LIMIT, || sim.log().contains("waiting for beats"));
    (resident_mib(sim.pid()), cluster)
}

fn at_24_bpm(table: &mut Table, agents: &str) {
    let cluster = Cluster::new(12);
    let _pulse = cluster.serve("pulse", &["--cluster", "bench", "--bpm", "24"]);
    let mut sim = cluster.start("agent-sim", &["--agents", agents, "--output", "json"]);
    let beats = || cluster.frames().len();
    // Not measured: the first beats, while code is loaded and connections are made.
    wait_until("three beats", LIMIT, || beats() >= 3);
    let (first, cpu, began) = (beats(), cpu_seconds(sim.pid()), Instant::now());
    wait_until("a minute of beats", LIMIT, || beats() >= first + BEATS);
    let cores = (cpu_seconds(sim.pid()) - cpu) / began.elapsed().as_secs_f64();
    let peak = peak_mib(sim.pid());
    let summary = stop(&mut sim);
    table.add(Row {
        name: "agentsim_cores_100k_agents".into(),
        value: cores,
        unit: "cores",
        baseline: "goal",
        baseline_value: CORES_GOAL,
    });
    table.add(Row {
        name: "agentsim_peak_mib_100k_agents".into(),
        value: peak,
        unit: "MiB",
        baseline: "",
        baseline_value: 0.0,
    });
    let p99 = summary["latency_ms"]["p99"].as_f64().expect("a number");
    table.add(Row {
        name: "agentsim_ack_p99_ms_100k_agents".into(),
        value: p99,
        unit: "ms",
        baseline: "a beat",
        baseline_value: 2_500.0,
    });
}

fn at_full_speed(table: &mut Table) {
    let cluster = Cluster::new(12);
    let _pulse = cluster.serve("pulse", &["--cluster", "bench", "--bpm", "600", "--max-bpm", "600"]);
    wait_until("a beat", LIMIT, || !cluster.frames().is_empty());
    let topic = cluster.broker().topics().name(TopicName::StatusClaims);
    let (mut bare, mut perf_test, mut sdk, mut sim) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (rate, claims) = through_sdk(&cluster);
        sdk.push(rate);
        bare.push(through_bare_producer(&topic, &claims));
        let bytes = claims[0].1.len() as u64;
        perf_test.push(perf_test::records_per_second(&stack().bootstrap_servers(), &topic, CLAIMS, bytes));
        sim.push(through_agent_sim(&cluster));
    }
    let (bare, perf_test, sdk, sim) = (median(bare), median(perf_test), median(sdk), median(sim));
    for (name, value, baseline, baseline_value) in [
        ("agentsim_vs_bare_producer", sim, "bare producer of encoded claims", bare),
        ("sdk_vs_bare_producer", sdk, "bare producer of encoded claims", bare),
        ("agentsim_vs_perf_test", sim, "rdkafka_performance, no keys", perf_test),
        ("sdk_vs_perf_test", sdk, "rdkafka_performance, no keys", perf_test),
    ] {
        table.add(Row { name: name.into(), value, unit: "claims/s", baseline, baseline_value });
    }
}

/// The claims per second of the SDK's claim sender, and one claim of each agent, as key and value.
fn through_sdk(cluster: &Cluster) -> (f64, Vec<(String, Vec<u8>)>) {
    let frame = cluster.frames().pop().expect("there are frames");
    let connection = Connection::new(cluster.kafka(), "bench").expect("the settings are valid");
    let mut claim_sender = runtime().block_on(connection.claim_sender()).expect("a claim sender");
    let status = |claim: u64| {
        let agent = format!("agent-{:05}", claim % SENDERS);
        let notes = "Executing, 3 of 9 beats of work".to_owned();
        Status {
            beats_left: 7,
            progress: 0.42,
            notes,
            ..Status::new(&agent, &format!("{agent}-task-3"), State::Executing)
        }
    };
    let encoded = (0..SENDERS).map(|agent| {
        let claim = claim_sender.build_claim(&frame, status(agent));
        (claim.agent_id.clone(), claim_sender.encode(&claim))
    });
    let encoded = encoded.collect();
    let began = Instant::now();
    for claim in 0..CLAIMS {
        while claim_sender.send_claim(&frame, status(claim)).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    claim_sender.flush(LIMIT).expect("Kafka acknowledges the claims");
    assert_eq!(claim_sender.deliveries().acknowledged(), CLAIMS);
    (CLAIMS as f64 / began.elapsed().as_secs_f64(), encoded)
}

/// The claims per second of rdkafka's plainest producer with the settings of this workspace's, which sends claims that are
/// already encoded, with their keys.
fn through_bare_producer(topic: &str, claims: &[(String, Vec<u8>)]) -> f64 {
    let mut config = ClientConfig::new();
    for (name, value) in [
        ("bootstrap.servers", stack().bootstrap_servers().as_str()),
        ("enable.idempotence", "true"),
        ("partitioner", "murmur2_random"),
        ("linger.ms", "2"),
        ("queue.buffering.max.messages", "200000"),
        ("compression.type", "lz4"),
    ] {
        config.set(name, value);
    }
    let producer: BaseProducer = config.create().expect("a producer");
    let began = Instant::now();
    for (key, value) in claims.iter().cycle().take(CLAIMS as usize) {
        let mut record = BaseRecord::to(topic).key(key).payload(value);
        while let Err((error, returned)) = producer.send(record) {
            assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::QueueFull), "{error}");
            record = returned;
            producer.poll(Duration::from_millis(1));
        }
    }
    producer.flush(LIMIT).expect("Kafka acknowledges the claims");
    CLAIMS as f64 / began.elapsed().as_secs_f64()
}

/// The claims per second of a fleet that never has to wait for the next beat.
fn through_agent_sim(cluster: &Cluster) -> f64 {
    let agents = (CLAIMS / 10).to_string();
    let args = ["--agents", &agents, "--beats", "10", "--silence-rate", "0", "--output", "json"];
    let mut sim = cluster.start("agent-sim", &args);
    assert_eq!(sim.wait(), 0, "{}", sim.log());
    let summary = sim.printed_json();
    assert_eq!(summary["claims_acknowledged"], CLAIMS);
    CLAIMS as f64 / summary["sending_s"].as_f64().expect("a number")
}

/// Stops agent-sim and returns its summary.
fn stop(sim: &mut Program) -> Value {
    sim.signal(rustix::process::Signal::TERM);
    assert_eq!(sim.wait(), 0, "{}", sim.log());
    sim.printed_json()
}
