//! A BACKBEAT cluster with topics of its own, usually on the Kafka that the whole test run shares.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use backbeat_broker::{
    Broker, Entry, KafkaArgs, LogReader, ReadError, Registry, TopicName, TransactionalProducer, ensure_topics,
};
use backbeat_devstack::{Devstack, Options, Stack, kafka_cli};
use backbeat_schemas::{BarReport, BeatFrame, Record, wire};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::{KafkaProxy, Program, run, wait_until};

const RECREATE_LIMIT: Duration = Duration::from_mins(1);

static RUNTIME: OnceLock<Runtime> = OnceLock::new();
static STACK: OnceLock<Stack> = OnceLock::new();
static NEXT_ID: AtomicU32 = AtomicU32::new(0);

/// The async runtime of the clients in tests.
pub fn runtime() -> &'static Runtime {
    RUNTIME.get_or_init(|| Runtime::new().expect("the runtime starts"))
}

/// The Kafka and the schema registry of this test run, which end with it.
pub fn stack() -> &'static Stack {
    STACK.get_or_init(|| {
        crate::watchdog::start();
        start(false)
    })
}

/// Starts the Kafka and the schema registry of this run with settings for throughput. Benchmarks call it before
/// anything else calls [`stack`].
pub fn start_stack_for_throughput() -> &'static Stack {
    STACK.get_or_init(|| start(true))
}

fn start(throughput: bool) -> Stack {
    // One directory for each test binary; starting the stack removes the data of the previous run.
    let binary = std::env::current_exe().expect("a running program has a path");
    let name = binary.file_stem().and_then(|stem| stem.to_str()).expect("the binary has a name in UTF-8");
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tmp").join(name);
    Stack::start(&Options { brokers: 1, kafka_port: 0, registry_port: 0, dir, throughput })
        .unwrap_or_else(|error| panic!("{error}"))
}

/// Starts a Kafka with `brokers` brokers and a schema registry for one test alone, with their data in `dir`.
pub fn own_devstack(brokers: u16, dir: &Path) -> Devstack {
    let options = Options { brokers, kafka_port: 0, registry_port: 0, dir: dir.to_owned(), throughput: false };
    Devstack::start(&options).unwrap_or_else(|error| panic!("{error}"))
}

/// A BACKBEAT cluster: a topic prefix, and a directory for data and logs.
pub struct Cluster {
    kafka: KafkaArgs,
    dir: TempDir,
    broker: Broker,
    registry: Registry,
}

impl Cluster {
    /// Creates a cluster and its topics, `statusclaims` with `claim_partitions` partitions.
    pub fn new(claim_partitions: i32) -> Self {
        let cluster = Self::without_topics();
        runtime().block_on(ensure_topics(&cluster.broker, claim_partitions, 1)).expect("the topics are created");
        cluster
    }

    /// Creates a cluster and its topics like [`Self::new`]; its own clients and its programs connect to `proxy`.
    pub fn behind(proxy: &KafkaProxy, claim_partitions: i32) -> Self {
        let cluster = Self::at(proxy.bootstrap_servers(), stack().schema_registry());
        runtime().block_on(ensure_topics(&cluster.broker, claim_partitions, 1)).expect("the topics are created");
        cluster
    }

    /// Creates a cluster with an unused topic prefix, without topics.
    pub fn without_topics() -> Self {
        Self::at(stack().bootstrap_servers(), stack().schema_registry())
    }

    /// Creates a cluster and its topics on the Kafka of `devstack`.
    pub fn on(devstack: &Devstack, claim_partitions: i32) -> Self {
        let cluster = Self::at(devstack.bootstrap_servers(), devstack.schema_registry());
        let replication = devstack.brokers().min(3) as i32;
        let created = runtime().block_on(ensure_topics(&cluster.broker, claim_partitions, replication));
        created.expect("the topics are created");
        cluster
    }

    /// Creates a cluster and its topics, whose names have no prefix, on the Kafka of `devstack`.
    pub fn unprefixed(devstack: &Devstack, claim_partitions: i32) -> Self {
        let cluster = Self::with_prefix(devstack.bootstrap_servers(), devstack.schema_registry(), String::new());
        runtime().block_on(ensure_topics(&cluster.broker, claim_partitions, 1)).expect("the topics are created");
        cluster
    }

    /// Creates a cluster with an unused topic prefix, without topics, on any Kafka.
    pub fn at(bootstrap_servers: String, schema_registry: String) -> Self {
        let topic_prefix = format!("t{}-{}-", std::process::id(), NEXT_ID.fetch_add(1, Ordering::Relaxed));
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
        let broker = Broker::new(&kafka, "tests").expect("settings without a properties file are valid");
        let registry = Registry::new(&kafka).expect("a registry client");
        Self { kafka, dir: TempDir::new().expect("a temporary directory"), broker, registry }
    }

    /// The prefix of the cluster's topics.
    pub fn prefix(&self) -> &str {
        &self.kafka.topic_prefix
    }

    /// A directory that is removed with the cluster.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The client settings for the cluster's Kafka.
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// The flags that connect a program to the cluster's Kafka and schema registry.
    pub fn kafka(&self) -> &KafkaArgs {
        &self.kafka
    }

    /// A client of the cluster's schema registry.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Returns a command that runs a program of the workspace with the settings of this cluster.
    pub fn command(&self, name: &str, args: &[&str]) -> Command {
        let mut command = Command::new(Program::executable(name));
        command.args(args);
        self.set_up(&mut command);
        command
    }

    /// Sets the environment variables of `command` to the settings of this cluster.
    pub fn set_up(&self, command: &mut Command) {
        command.env("KAFKA_BOOTSTRAP_SERVERS", &self.kafka.bootstrap_servers);
        command.env("SCHEMA_REGISTRY_URL", &self.kafka.schema_registry);
        command.env("BACKBEAT_TOPIC_PREFIX", &self.kafka.topic_prefix);
        command.env("BACKBEAT_DATA_DIR", self.dir.path().join("data"));
    }

    /// Runs the `backbeat` CLI to its end.
    pub fn backbeat(&self, args: &[&str]) -> Output {
        self.command("backbeat", args).output().expect("backbeat runs")
    }

    /// Starts a program without an HTTP server.
    pub fn start(&self, name: &str, args: &[&str]) -> Program {
        Program::start(name, &self.command(name, args), &self.log(name))
    }

    /// Starts a program that is not of the workspace.
    pub fn start_other(&self, name: &str, command: &Command) -> Program {
        Program::start(name, command, &self.log(name))
    }

    /// Starts a service with its HTTP server on a free port.
    pub fn serve(&self, name: &str, args: &[&str]) -> Program {
        self.serve_by(name, args, |command| command)
    }

    /// Starts a service as [`Self::serve`] does, by the command that `wrap` makes of its own.
    pub(crate) fn serve_by(&self, name: &str, args: &[&str], wrap: impl FnOnce(Command) -> Command) -> Program {
        let log = self.log(name);
        let mut command = self.command(name, args);
        command.args(["--admin-port", "0", "--port-file"]).arg(Program::port_file(&log));
        Program::start(name, &wrap(command), &log)
    }

    fn log(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(format!("{name}-{}.log", NEXT_ID.fetch_add(1, Ordering::Relaxed)))
    }

    /// Resets the offsets of reverb's group to the earliest ones with `kafka-consumer-groups`.
    pub fn reset_to_earliest(&self) {
        self.reset_offsets(&["--to-earliest"]);
    }

    /// Resets the offsets of reverb's group with `kafka-consumer-groups` and its flags `target`.
    pub fn reset_offsets(&self, target: &[&str]) {
        let mut tool = kafka_cli("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand")
            .expect("the Kafka CLI is available");
        tool.args(["--bootstrap-server", &self.kafka.bootstrap_servers, "--group", &self.broker.topics().group()]);
        tool.args(["--reset-offsets", "--execute"]).args(target);
        tool.args(["--topic", &self.broker.topics().name(TopicName::StatusClaims)]);
        run(&mut tool);
    }

    /// Deletes a topic and creates it again, empty; `statusclaims` with one partition.
    pub fn recreate(&self, topic: TopicName) {
        let topic = self.broker.topics().name(topic);
        let cli = |operation| {
            let mut cli = kafka_cli("org.apache.kafka.tools.TopicCommand").expect("Kafka's CLI is installed");
            cli.args(["--bootstrap-server", &self.kafka.bootstrap_servers, "--topic", &topic, operation]);
            cli
        };
        run(&mut cli("--delete"));
        // Kafka deletes a topic in the background.
        wait_until("the topic to be deleted", RECREATE_LIMIT, || {
            cli("--describe").output().is_ok_and(|output| !output.status.success())
        });
        runtime().block_on(ensure_topics(&self.broker, 1, 1)).expect("the topic is created");
    }

    /// Registers the schema of `topic`'s records, as the program that writes them does, and returns its id.
    pub fn register<R: Record>(&self, topic: TopicName) -> u32 {
        let subject = self.broker.topics().subject(topic);
        runtime().block_on(self.registry.register::<R>(&subject)).expect("the schema is registered")
    }

    /// Publishes `report` the way reverb does.
    pub fn publish_report(&self, report: &BarReport) {
        let topics = self.broker.topics();
        let schema = self.register::<BarReport>(TopicName::BarReports);
        let timeout = Duration::from_secs(10);
        let mut producer = TransactionalProducer::open(&self.broker, "test-report-publisher", timeout, timeout)
            .expect("Kafka answers");
        let mut transaction = producer.begin().expect("the transaction begins");
        let (key, value) = (report.window_id.to_string(), wire(schema, report));
        let sent = transaction.send(&topics.name(TopicName::BarReports), &key, &value, report.closed_at.millis());
        sent.and_then(|()| transaction.commit()).expect("the transaction commits");
    }

    /// Creates a reader of one of the cluster's single-partition topics.
    pub fn reader<R: Record + 'static>(&self, topic: TopicName) -> LogReader<R> {
        LogReader::new(&self.broker, &self.registry, runtime().handle(), topic).expect("a reader")
    }

    /// Reads all committed records of one of the cluster's single-partition topics; tries again for ten seconds, since a
    /// broker that hung answers without partitions until its controller knows it again.
    pub fn read_all<R: Record + 'static>(&self, topic: TopicName) -> Vec<Entry<R>> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match self.try_read_all(topic) {
                Ok(entries) => return entries,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Reads as [`Self::read_all`] does; an error if Kafka does not answer.
    pub fn try_read_all<R: Record + 'static>(&self, topic: TopicName) -> Result<Vec<Entry<R>>, ReadError> {
        let mut reader = self.reader(topic);
        let (low, end) = (reader.log_start()?, reader.end_offset()?);
        let mut entries = Vec::new();
        reader.read(low, end, |entry: Entry<R>| {
            let last = entries.last().map_or(-1, |last: &Entry<R>| last.offset);
            assert!(entry.offset > last, "the reader returned offset {} after {last}", entry.offset);
            entries.push(entry);
        })?;
        Ok(entries)
    }

    /// Reads all committed frames.
    pub fn frames(&self) -> Vec<BeatFrame> {
        self.read_all(TopicName::BeatFrames).into_iter().map(|entry| entry.record).collect()
    }

    /// Reads all committed reports.
    pub fn reports(&self) -> Vec<Entry<BarReport>> {
        self.read_all(TopicName::BarReports)
    }
}
