//! Reverb beside Kafka Streams (`tests/peers/`), in memory and with `RocksDB`, on the same claims in the same run. Both must count
//! the same claims and agents in each window.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use backbeat_broker::TopicName;
use backbeat_devstack::kafka_cli;
use backbeat_schemas::{BeatFrame, Record, StatusClaim};
use backbeat_tests::{Cluster, peak_mib, run as run_command, stack, wait_for};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::claim_source::ClaimSource;
use crate::claims_per_second::{Pass, measure, through_reverb};
use crate::table::{Row, Table, median};

const BARS: u64 = 10;
const CLAIMS_PER_BAR: u64 = 400_000;
const CLAIMS: u64 = BARS * CLAIMS_PER_BAR;
const AGENTS: u64 = 20_000;
const BAR_LENGTH: &str = "4";
const PARTITIONS: i32 = 12;
const ROUNDS: usize = 3;
const LIMIT: Duration = Duration::from_mins(5);
const IN_MEMORY: &str = "in-memory";
const ROCKSDB: &str = "rocksdb";

/// A figure of a pass and the peak memory.
type Figure = fn(&(Pass, f64)) -> f64;

/// By the first beat of a window: the numbers of claims and of agents.
type Counts = BTreeMap<i64, (i64, i64)>;

pub(crate) fn run(table: &mut Table) {
    let project = build();
    let cluster = Cluster::new(PARTITIONS);
    fill(&cluster);
    let mut measured: BTreeMap<&str, Vec<(Pass, f64)>> = BTreeMap::new();
    for round in 0..ROUNDS {
        let reverb = through_reverb(&cluster, CLAIMS);
        measured.entry("reverb").or_default().push(reverb);
        let counts = counts_of_reverb(&cluster);
        cluster.reset_to_earliest();
        for store in [IN_MEMORY, ROCKSDB] {
            let (streams, streams_counts) = through_streams(&cluster, &project, store, round);
            assert_eq!(streams_counts, counts, "{store}");
            measured.entry(store).or_default().push(streams);
        }
    }
    let of = |name, figure: Figure| median(measured[name].iter().map(figure).collect());
    let figures: [(&str, Figure, [&'static str; 2]); 3] = [
        ("CPU s / 1M", |(pass, _)| pass.cpu_per_million, ["peers_streams_cpu_ratio", "peers_rocksdb_cpu_ratio"]),
        ("claims/s", |(pass, _)| pass.claims_per_second, ["peers_streams_claims", "peers_rocksdb_claims"]),
        ("MiB", |(_, peak)| *peak, ["peers_streams_peak_mib", "peers_rocksdb_peak_mib"]),
    ];
    for (unit, figure, names) in figures {
        for (name, store) in names.into_iter().zip([IN_MEMORY, ROCKSDB]) {
            table.add(Row {
                name: name.into(),
                value: of(store, figure),
                unit,
                baseline: "reverb",
                baseline_value: of("reverb", figure),
            });
        }
    }
}

/// Writes claims for ten bars, each at the bar's beginning, so that none is late.
fn fill(cluster: &Cluster) {
    let args = ["--cluster", "bench", "--bpm", "60", "--max-bpm", "60", "--bar", BAR_LENGTH];
    let pulse = cluster.serve("pulse", &args);
    let claims = ClaimSource::new(cluster);
    let mut reader = cluster.reader::<BeatFrame>(TopicName::BeatFrames);
    let mut newest = || reader.last().expect("Kafka answers").map(|entry| entry.record);
    let mut downbeat = wait_for("a downbeat", LIMIT, || newest().filter(|frame| frame.downbeat));
    for _ in 0..BARS {
        for index in 0..CLAIMS_PER_BAR {
            claims.send(index % AGENTS, downbeat.beat_index.get());
        }
        claims.wait_until_acknowledged();
        let is_open = newest().is_some_and(|frame| frame.window_id == downbeat.window_id);
        assert!(is_open, "the machine is too slow: some claims were sent after their window's end");
        let is_next = |frame: &BeatFrame| frame.downbeat && frame.window_id != downbeat.window_id;
        downbeat = wait_for("the next downbeat", LIMIT, || newest().filter(is_next));
    }
    drop(pulse);
}

fn counts_of_reverb(cluster: &Cluster) -> Counts {
    let reports = cluster.reports().into_iter().map(|entry| entry.record).filter(|report| report.claims > 0);
    reports.map(|report| (report.from_beat.get(), (report.claims, report.agents_reporting))).collect()
}

/// One run of Kafka Streams from the first claim to the last: its measurements, its peak memory in MiB, and its counts.
fn through_streams(cluster: &Cluster, project: &Path, store: &str, round: usize) -> ((Pass, f64), Counts) {
    let application = format!("{}streams-{store}-{round}", cluster.prefix());
    let mut output = Output::new(&format!("{application}-counts"));
    let schema = cluster.dir().join("status_claim.avsc");
    std::fs::write(&schema, StatusClaim::schema().text()).expect("the schema is written");
    let mut java = Command::new("java");
    java.arg("-Xmx1g").arg("-cp").arg(format!("{0}/target/classes:{0}/target/libs/*", project.display()));
    java.args(["backbeat.StreamsPeer", &stack().bootstrap_servers(), &application]);
    java.args([&cluster.broker().topics().name(TopicName::StatusClaims), &output.topic]).arg(&schema);
    java.args([BAR_LENGTH, store]).arg(cluster.dir().join("streams"));
    let streams = cluster.start_other("streams", &java);
    let pass = measure(&streams, CLAIMS, || output.claims());
    ((pass, peak_mib(streams.pid())), output.counts())
}

/// The topic to which Kafka Streams writes its counts.
struct Output {
    topic: String,
    consumer: BaseConsumer,
    /// By partition of the claims and window: the newest counts.
    newest: BTreeMap<(i32, i64), (i64, i64)>,
}

impl Output {
    /// Creates the topic.
    fn new(topic: &str) -> Self {
        let servers = stack().bootstrap_servers();
        let mut cli = kafka_cli("org.apache.kafka.tools.TopicCommand").expect("Kafka's CLI is installed");
        cli.args(["--bootstrap-server", &servers, "--create", "--topic", topic, "--partitions", "1"]);
        run_command(&mut cli);
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &servers)
            .set("group.id", "bench")
            .set("isolation.level", "read_committed")
            .create()
            .expect("a consumer");
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(topic, 0, Offset::Beginning).expect("a valid partition");
        consumer.assign(&assignment).expect("the partition is assigned");
        Self { topic: topic.to_owned(), consumer, newest: BTreeMap::new() }
    }

    /// Reads what is new, and returns the number of claims counted so far.
    fn claims(&mut self) -> u64 {
        while let Some(message) = self.consumer.poll(Duration::ZERO) {
            let message = message.expect("Kafka answers");
            let [key, value] = [message.key(), message.payload()].map(|text| pair(text.expect("a key and a value")));
            self.newest.insert((key.0 as i32, key.1), value);
        }
        self.newest.values().map(|(claims, _)| *claims as u64).sum()
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts::new();
        for ((_, window), (claims, agents)) in &self.newest {
            let sum = counts.entry(*window).or_default();
            *sum = (sum.0 + claims, sum.1 + agents);
        }
        counts
    }
}

/// Parses two numbers.
fn pair(text: &[u8]) -> (i64, i64) {
    let text = std::str::from_utf8(text).expect("text");
    let (first, second) = text.split_once(' ').unwrap_or_else(|| panic!("not two numbers: {text}"));
    let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("not a number: {text}"));
    (number(first), number(second))
}

/// Builds the project with Maven in `target/tmp`, and returns its directory.
fn build() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tmp/peers");
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(dir.parent().expect("the path has a parent")).expect("the directory is created");
    run_command(Command::new("cp").arg("-r").arg(source).arg(&dir));
    run_command(Command::new("mvn").args(["-q", "-B", "-C", "process-classes"]).current_dir(&dir));
    dir
}
