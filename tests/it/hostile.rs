//! Hostile records: an agent with write rights to `statusclaims` and to the schema registry costs the others no report.

use std::collections::BTreeSet;
use std::time::Duration;

use backbeat_broker::TopicName;
use backbeat_tests::{Attacker, Cluster, Program, peak_mib, read_raw, wait_until};
use rdkafka::message::{Headers, Message};

use crate::reports::{check_reports, totals};

/// Longer than the minute for which reverb waits for unknown schemas.
const LIMIT: Duration = Duration::from_mins(3);
const PARTITIONS: u32 = 3;
const AGENTS: i64 = 20;
/// The memory limit of the manifests in k8s/.
const MEMORY_LIMIT_MIB: f64 = 512.0;
/// One agent, with claims in three partitions, of which one is its own.
const MISPLACED: &str = "2 agents with claims in other partitions than theirs";

struct Pipeline {
    cluster: Cluster,
    pulse: Program,
    reverb: Program,
    sim: Program,
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
        let pipeline = Self { cluster, pulse, reverb, sim };
        pipeline.wait_until_reports_continue();
        pipeline
    }

    /// Waits for two more reports of all honest agents.
    fn wait_until_reports_continue(&self) {
        let reports = || self.cluster.reports().iter().filter(|entry| entry.record.agents_reporting == AGENTS).count();
        let before = reports();
        wait_until("two more reports of all agents", LIMIT, || reports() >= before + 2);
    }

    /// Waits until `hostile` records are reported as invalid, and compares all reports with the oracle's. Returns the cluster,
    /// in which pulse and the agents have ended.
    fn check(mut self, hostile: usize) -> Cluster {
        wait_until("a report of all hostile records", LIMIT, || totals(&self.cluster.reports()).2 == hostile as i64);
        self.wait_until_reports_continue();
        assert!(self.reverb.is_running(), "{}", self.reverb.log());
        let memory = peak_mib(self.reverb.pid());
        assert!(memory < MEMORY_LIMIT_MIB, "{memory} MiB");
        drop(self.sim);
        drop(self.pulse);
        check_reports(&self.cluster);
        let audit = self.cluster.backbeat(&["audit"]);
        let stderr = String::from_utf8_lossy(&audit.stderr);
        assert!(audit.status.success(), "{stderr}{}", String::from_utf8_lossy(&audit.stdout));
        let dead_letters = self.cluster.broker().topics().name(TopicName::DeadLetters);
        // A share that the merge has read, too, has its dead letters twice, with the same keys.
        let letters: BTreeSet<_> =
            read_raw(&self.cluster, &dead_letters, |_| ()).into_iter().map(|raw| raw.key).collect();
        assert_eq!(letters.len(), hostile);
        self.cluster
    }
}

/// Reverb waits a minute for the first ids that the registry does not have, and for all others together.
#[test]
fn flood_of_unknown_schema_ids_stops_no_report() {
    const ROUNDS: u32 = 10;
    const IDS: u32 = 1_000;
    let pipeline = Pipeline::start();
    let attacker = Attacker::new(&pipeline.cluster, &[]);
    for id in 0..ROUNDS * IDS {
        attacker.send_unknown_schema(&format!("stranger-{}", id % (2 * PARTITIONS)), id);
        if id % IDS == 0 {
            pipeline.wait_until_reports_continue();
        }
    }
    attacker.flush();
    drop(attacker);
    pipeline.check((ROUNDS * IDS) as usize);
}

/// Schemas whose records take more memory or stack than their bytes.
#[test]
fn records_of_nested_and_repeated_schemas_are_invalid() {
    let pipeline = Pipeline::start();
    let attacker = Attacker::new(&pipeline.cluster, &[]);
    attacker.nested_and_repeated().iter().for_each(|record| attacker.send("a", record, None));
    attacker.flush();
    drop(attacker);
    pipeline.check(2);
}

/// An agent that invents tasks: those beyond the limit of its partition are in no distinct count, which the report says.
#[test]
fn tasks_beyond_the_limit_are_reported_as_such() {
    // 25 agents with 500 tasks more each than an agent may have fill the partition's limit; those of one more are beyond it.
    const AGENTS: usize = 26;
    const TASKS: usize = 10_500;
    let pipeline = Pipeline::with_bars("40");
    let attacker = Attacker::new(&pipeline.cluster, &[]);
    // All of them name the downbeat of a window, and are sent while it is open.
    let newest_beat = || pipeline.cluster.frames().pop().expect("there are frames").beat_index.get();
    // The claims are made before the window opens.
    let downbeat = (newest_beat() / 40 + 2) * 40;
    let agent = |number: usize| format!("stranger-{}", number / TASKS);
    let claim = |number: usize| attacker.claim(&agent(number), &format!("task-{number}"), downbeat);
    let values: Vec<Vec<u8>> = (0..AGENTS * TASKS).map(claim).collect();
    wait_until("the downbeat", LIMIT, || newest_beat() >= downbeat);
    for (number, value) in values.iter().enumerate() {
        attacker.send(&agent(number), value, Some(0));
    }
    attacker.flush();
    drop(attacker);
    let issue = || {
        let issues = pipeline.cluster.reports().into_iter().flat_map(|entry| entry.record.issues);
        issues.into_iter().find(|issue| issue.ends_with("claims of agents or tasks beyond the limit"))
    };
    wait_until("a report of claims beyond the limit", LIMIT, || issue().is_some());
    let excess = pipeline.reverb.metric("backbeat_reverb_excess_claims_total");
    assert!(excess.is_some_and(|claims| claims >= 1.0), "{excess:?}");
    pipeline.check(0);
}

/// A batch of few bytes that takes many when it is decompressed: Kafka refuses it, or members can read it.
#[test]
fn compressed_bombs_are_refused_or_read() {
    let pipeline = Pipeline::start();
    let send = |codec: &str, records: usize, bytes: usize| {
        let attacker = Attacker::with_large_batches(&pipeline.cluster, codec);
        let value = vec![0; bytes];
        (0..records).for_each(|_| attacker.send("stranger", &value, None));
        attacker.flush()
    };
    let mut read = 0;
    for codec in ["gzip", "zstd", "snappy", "lz4"] {
        // Compressed, 40 MB are more than 64 KiB with snappy and lz4 only, and 10 MB with none but snappy.
        assert_eq!(send(codec, 40, 1_000_000), 40, "{codec}");
        read += 10 - send(codec, 10, 1_000_000);
        pipeline.wait_until_reports_continue();
    }
    assert!(read > 0, "the test needs a bomb that Kafka accepts");
    let cluster = pipeline.check(read);
    // Their dead letters have the head of the value, and tell of the rest.
    let dead_letters = cluster.broker().topics().name(TopicName::DeadLetters);
    read_raw(&cluster, &dead_letters, |letter| {
        let headers = letter.headers().expect("dead letters have headers");
        let header = |name| headers.iter().find(|header| header.key == name).and_then(|header| header.value);
        assert_eq!((header("reason"), header("bytes")), (Some(&b"size"[..]), Some(&b"1000000"[..])));
        // Of a million zeros.
        let hash = "d29751f2649b32ff572b5e0a9f541ea660a50f94ff0beedfb0b692b924cc8025";
        assert_eq!(header("sha256"), Some(hash.as_bytes()));
        assert_eq!(letter.payload(), Some(&vec![0; 65_536][..]));
    });
}

/// An agent that writes each of its claims to all partitions counts once in each, and the report says so.
#[test]
fn misplaced_claims_cost_no_other_agent_anything() {
    let pipeline = Pipeline::start();
    let attacker = Attacker::new(&pipeline.cluster, &[]);
    let reports_with_issue = || {
        let reports = pipeline.cluster.reports();
        let has_issue = |issues: &[String]| issues.iter().any(|issue| issue == MISPLACED);
        reports.into_iter().filter(|entry| has_issue(&entry.record.issues)).count()
    };
    wait_until("three reports of the misplaced agent", LIMIT, || {
        let beat = pipeline.cluster.frames().pop().expect("there are frames").beat_index.get();
        let value = attacker.claim("stranger", "task", beat);
        (0..PARTITIONS as i32).for_each(|partition| attacker.send("stranger", &value, Some(partition)));
        attacker.flush();
        reports_with_issue() >= 3
    });
    drop(attacker);
    let misplaced = pipeline.reverb.metric("backbeat_reverb_misplaced_agents_total");
    assert!(misplaced.is_some_and(|agents| agents >= 6.0), "{misplaced:?}");
    pipeline.check(0);
}

/// A producer that leaves a transaction open makes claims of others late. Pulse tells of it.
#[test]
fn open_transaction_is_detected() {
    let pipeline = Pipeline::start();
    let attacker = Attacker::new(&pipeline.cluster, &[("transactional.id", "stranger")]);
    attacker.begin_transaction();
    attacker.send("stranger", b"no claim", Some(1));
    attacker.flush();
    let open = || pipeline.pulse.metric("backbeat_pulse_open_transactions");
    wait_until("the open transaction in the metric", LIMIT, || open() == Some(1.0));
    assert!(pipeline.pulse.log().contains("a producer has a transaction open in statusclaims"));
    let late = || totals(&pipeline.cluster.reports()).1;
    let before = late();
    attacker.commit_transaction();
    wait_until("the claims that were held back", LIMIT, || late() > before);
    wait_until("no open transaction in the metric", LIMIT, || open() == Some(0.0));
    drop(attacker);
    pipeline.check(1);
}
