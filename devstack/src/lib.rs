//! A real Kafka and schema registry on this machine, and optionally a Connect worker and PostgreSQL, for `backbeat dev`
//! and the tests.
//!
//! The Java programs are downloaded from Maven Central once per user. All services run as child processes on loopback
//! and never outlive this process.

mod artifacts;
mod connect;
mod empty_dir;
mod error;
mod jar_lock;
mod kafka;
mod port;
mod postgres;
mod registry;
mod stack;
mod supervised;

use std::path::PathBuf;
use std::process::Command;
use std::thread;

use rustix::process::Signal;

pub use artifacts::require_program;
pub use connect::Connect;
pub use error::DevstackError;
pub use port::free_port;
pub use postgres::Postgres;
pub use stack::Stack;
pub use supervised::Supervised;

use artifacts::Artifacts;
use error::Context;
use kafka::Kafka;
use registry::Registry;

/// Returns a command that runs the Kafka CLI tool of `class`, such as `org.apache.kafka.tools.TopicCommand`, without
/// arguments.
pub fn kafka_cli(class: &str) -> Result<Command, DevstackError> {
    Artifacts::fetch().map(|artifacts| kafka::java_class(&artifacts, class))
}

/// Returns a command that runs Kafka's console consumer, with an Avro deserializer for Apicurio's registry on its class
/// path and without arguments.
pub fn console_consumer() -> Result<Command, DevstackError> {
    let artifacts = Artifacts::fetch()?;
    let class = "org.apache.kafka.tools.consumer.ConsoleConsumer";
    Ok(kafka::java_class_with(&artifacts, &[&artifacts.console_libs()?], class))
}

/// Returns a command that runs a schema registry on loopback, with its state in memory. The caller sets
/// `QUARKUS_HTTP_PORT` and other settings of Quarkus.
pub fn registry_command() -> Result<Command, DevstackError> {
    Artifacts::fetch().map(|artifacts| registry::command(&artifacts, false))
}

/// The options of a stack.
#[derive(Debug, Clone)]
pub struct Options {
    /// The number of Kafka brokers. With three, Kafka's internal topics have three replicas, of which two must be in
    /// sync.
    pub brokers: u16,
    /// The port of the first broker, 0 for a free one; the other brokers get free ones.
    pub kafka_port: u16,
    /// The port of the registry, 0 for a free one.
    pub registry_port: u16,
    /// A directory for Kafka's data and all logs; files of an earlier stack are removed.
    pub dir: PathBuf,
    /// True to enable all JIT tiers of the JVM, which then starts slower and runs faster, for benchmarks.
    pub throughput: bool,
}

/// A running Kafka and schema registry. Dropping it stops both.
#[derive(Debug)]
pub struct Devstack {
    kafka: Kafka,
    registry: Registry,
}

impl Devstack {
    /// Downloads missing artifacts, starts Kafka and the registry, and waits until both answer.
    pub fn start(options: &Options) -> Result<Self, DevstackError> {
        let artifacts = Artifacts::fetch()?;
        let (kafka, registry) = thread::scope(|scope| {
            let registry = scope.spawn(|| Registry::start(&artifacts, options));
            let kafka = Kafka::start(&artifacts, options);
            (kafka, registry.join().expect("starting the registry does not panic"))
        });
        Ok(Self { kafka: kafka?, registry: registry? })
    }

    /// Returns the addresses of the brokers as `host:port,...`.
    pub fn bootstrap_servers(&self) -> String {
        self.kafka.addresses()
    }

    /// Returns the number of brokers.
    pub fn brokers(&self) -> usize {
        self.kafka.brokers.len()
    }

    /// Returns the process id of one broker. `index` counts from 0.
    pub fn broker_pid(&self, index: usize) -> i32 {
        self.kafka.brokers[index].process.pid()
    }

    /// Returns the base URL of the registry's Confluent API.
    pub fn schema_registry(&self) -> String {
        self.registry.url()
    }

    /// Shuts one broker down cleanly and keeps its data. `index` counts from 0.
    pub fn stop_broker(&mut self, index: usize) -> Result<(), DevstackError> {
        self.kafka.brokers[index].process.stop().map(drop).context(|| "cannot stop kafka".to_owned())
    }

    /// Kills one broker with SIGKILL and keeps its data.
    pub fn kill_broker(&mut self, index: usize) -> Result<(), DevstackError> {
        let killed = self.kafka.brokers[index].process.signal(Signal::KILL);
        killed.context(|| "cannot kill kafka".to_owned())?;
        self.stop_broker(index)
    }

    /// Restarts one broker with the same data and ports, and waits until all brokers answer.
    pub fn restart_broker(&mut self, index: usize) -> Result<(), DevstackError> {
        self.kafka.brokers[index].restart()?;
        self.kafka.wait_until_ready()
    }

    /// Suspends one broker with SIGSTOP, or resumes it.
    pub fn set_broker_paused(&self, index: usize, paused: bool) -> Result<(), DevstackError> {
        let signal = if paused { Signal::STOP } else { Signal::CONT };
        self.kafka.brokers[index].process.signal(signal).context(|| "cannot send a signal to kafka".to_owned())
    }

    /// Suspends the registry with SIGSTOP, or resumes it.
    pub fn set_registry_paused(&self, paused: bool) -> Result<(), DevstackError> {
        let signal = if paused { Signal::STOP } else { Signal::CONT };
        self.registry.process.signal(signal).context(|| "cannot send a signal to the registry".to_owned())
    }

    /// Stops Kafka and the registry, and waits until both have ended.
    pub fn stop(mut self) {
        self.registry.process.begin_stop();
        self.kafka.brokers.iter_mut().for_each(|broker| broker.process.begin_stop());
        // Dropping `self` waits for each process.
    }
}
