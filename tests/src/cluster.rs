//! A BACKBEAT cluster with topics of its own on the shared Kafka.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use backbeat_broker::{
    Broker, Entry, KafkaArgs, LogReader, ReadError, Registry, TopicName, TransactionalProducer, ensure_topics,
};
use backbeat_devstack::{Devstack, Options, Stack, stock_tool};
use backbeat_schemas::{BarReport, BeatFrame, Record, wire};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::{Program, run};

static RUNTIME: OnceLock<Runtime> = OnceLock::new();
static STACK: OnceLock<Stack> = OnceLock::new();
static NEXT: AtomicU32 = AtomicU32::new(0);

/// The runtime of the clients in tests.
pub fn runtime() -> &'static Runtime {
    RUNTIME.get_or_init(|| Runtime::new().expect("a runtime starts"))
}

/// The Kafka and the registry of this test run; they end with it.
pub fn stack() -> &'static Stack {
    STACK.get_or_init(|| start(false))
}

/// The same, for benchmarks: call it first.
pub fn start_stack_for_throughput() -> &'static Stack {
    STACK.get_or_init(|| start(true))
}

fn start(throughput: bool) -> Stack {
    // One directory for each test binary; what its last run left there is removed at the next.
    let binary = std::env::current_exe().expect("a running program has a path");
    let name = binary.file_stem().and_then(|stem| stem.to_str()).expect("a name");
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tmp").join(name);
    Stack::start(&Options { brokers: 1, kafka_port: 0, registry_port: 0, dir, throughput })
        .unwrap_or_else(|error| panic!("{error}"))
}

/// A Kafka with `brokers` nodes and a registry, for one test alone, with their data in `dir`.
pub fn own_devstack(brokers: u16, dir: &Path) -> Devstack {
    let options = Options { brokers, kafka_port: 0, registry_port: 0, dir: dir.to_owned(), throughput: false };
    Devstack::start(&options).unwrap_or_else(|error| panic!("{error}"))
}

/// A cluster of BACKBEAT: a topic prefix, and a directory for logs.
pub struct Cluster {
    kafka: KafkaArgs,
    dir: TempDir,
    broker: Broker,
    registry: Registry,
}

impl Cluster {
    /// Topics of a new cluster, `statusclaims` with `claim_partitions`.
    pub fn new(claim_partitions: i32) -> Self {
        let cluster = Self::without_topics();
        runtime().block_on(ensure_topics(&cluster.broker, claim_partitions, 1)).expect("topics can be made");
        cluster
    }

    /// A prefix that nobody used before, and no topics yet.
    pub fn without_topics() -> Self {
        Self::at(stack().bootstrap_servers(), stack().schema_registry())
    }

    /// Topics of a new cluster on a Kafka of its own.
    pub fn on(devstack: &Devstack, claim_partitions: i32) -> Self {
        let cluster = Self::at(devstack.bootstrap_servers(), devstack.schema_registry());
        let replication = devstack.brokers().min(3) as i32;
        runtime().block_on(ensure_topics(&cluster.broker, claim_partitions, replication)).expect("topics can be made");
        cluster
    }

    /// The same with topics that have no prefix.
    pub fn unprefixed(devstack: &Devstack, claim_partitions: i32) -> Self {
        let cluster = Self::with_prefix(devstack.bootstrap_servers(), devstack.schema_registry(), String::new());
        runtime().block_on(ensure_topics(&cluster.broker, claim_partitions, 1)).expect("topics can be made");
        cluster
    }

    /// Topics of a new cluster that are not there yet, at any Kafka.
    pub fn at(bootstrap_servers: String, schema_registry: String) -> Self {
        let topic_prefix = format!("t{}-{}-", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self::with_prefix(bootstrap_servers, schema_registry, topic_prefix)
    }

    fn with_prefix(bootstrap_servers: String, schema_registry: String, topic_prefix: String) -> Self {
        let kafka = KafkaArgs {
            bootstrap_servers,
            schema_registry,
            schema_registry_ca: None,
            kafka_config: None,
            topic_prefix,
        };
        let broker = Broker::new(&kafka, "tests").expect("no properties file");
        let registry = Registry::new(&kafka).expect("a registry client");
        Self { kafka, dir: TempDir::new().expect("a directory"), broker, registry }
    }

    /// What stands before its topics' names.
    pub fn prefix(&self) -> &str {
        &self.kafka.topic_prefix
    }

    /// A directory that ends with the cluster.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its Kafka.
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// How its Kafka and registry are reached.
    pub fn kafka(&self) -> &KafkaArgs {
        &self.kafka
    }

    /// Its registry.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// A program of the workspace, not started, set up for this cluster.
    pub fn command(&self, name: &str, args: &[&str]) -> Command {
        let mut command = Command::new(Program::executable(name));
        command.args(args);
        self.set_up(&mut command);
        command
    }

    /// Sets the environment of `command` up for this cluster.
    pub fn set_up(&self, command: &mut Command) {
        command.env("KAFKA_BOOTSTRAP_SERVERS", &self.kafka.bootstrap_servers);
        command.env("SCHEMA_REGISTRY_URL", &self.kafka.schema_registry);
        command.env("BACKBEAT_TOPIC_PREFIX", &self.kafka.topic_prefix);
        command.env("BACKBEAT_DATA_DIR", self.dir.path().join("data"));
    }

    /// Runs the operator's command to its end.
    pub fn backbeat(&self, args: &[&str]) -> Output {
        self.command("backbeat", args).output().expect("it runs")
    }

    /// Starts a program without an HTTP server.
    pub fn start(&self, name: &str, args: &[&str]) -> Program {
        Program::start(name, &self.command(name, args), &self.log(name))
    }

    /// Starts a service, its HTTP server on a free port.
    pub fn serve(&self, name: &str, args: &[&str]) -> Program {
        let log = self.log(name);
        let mut command = self.command(name, args);
        command.args(["--admin-port", "0", "--port-file"]).arg(Program::port_file(&log));
        Program::start(name, &command, &log)
    }

    fn log(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(format!("{name}-{}.log", NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// Resets reverb's group to the earliest offsets, with Kafka's own tool.
    pub fn reset_to_earliest(&self) {
        self.reset(&["--to-earliest"]);
    }

    /// Resets reverb's group as Kafka's own tool is told by `to`.
    pub fn reset(&self, to: &[&str]) {
        let mut tool =
            stock_tool("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand").expect("Kafka's tools are there");
        tool.args(["--bootstrap-server", &self.kafka.bootstrap_servers, "--group", &self.broker.topics().group()]);
        tool.args(["--reset-offsets", "--execute"]).args(to);
        tool.args(["--topic", &self.broker.topics().name(TopicName::StatusClaims)]);
        run(&mut tool);
    }

    /// Publishes a report as if reverb had.
    pub fn publish_report(&self, report: &BarReport) {
        let topics = self.broker.topics();
        let subject = topics.subject(TopicName::BarReports);
        let schema = runtime().block_on(self.registry.register::<BarReport>(&subject)).expect("registered");
        let timeout = Duration::from_secs(10);
        let mut producer =
            TransactionalProducer::open(&self.broker, "forger", timeout, timeout).expect("Kafka answers");
        let mut transaction = producer.begin().expect("begins");
        let (key, value) = (report.window_id.to_string(), wire(schema, report));
        let sent = transaction.send(&topics.name(TopicName::BarReports), &key, &value, report.closed_at.millis());
        sent.and_then(|()| transaction.commit()).expect("commits");
    }

    /// A reader of one of its single-partition topics.
    pub fn reader<R: Record + 'static>(&self, topic: TopicName) -> LogReader<R> {
        LogReader::new(&self.broker, &self.registry, runtime().handle(), topic).expect("a reader")
    }

    /// All committed records of one of its single-partition topics.
    pub fn read_all<R: Record + 'static>(&self, topic: TopicName) -> Vec<Entry<R>> {
        self.try_read_all(topic).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same, while Kafka may not answer.
    pub fn try_read_all<R: Record + 'static>(&self, topic: TopicName) -> Result<Vec<Entry<R>>, ReadError> {
        let mut reader = self.reader(topic);
        let (low, end) = (reader.low()?, reader.end()?);
        let mut entries = Vec::new();
        reader.read(low, end, |entry| entries.push(entry))?;
        Ok(entries)
    }

    /// All committed frames.
    pub fn frames(&self) -> Vec<BeatFrame> {
        self.read_all(TopicName::BeatFrames).into_iter().map(|entry| entry.record).collect()
    }

    /// All committed reports.
    pub fn reports(&self) -> Vec<Entry<BarReport>> {
        self.read_all(TopicName::BarReports)
    }
}
