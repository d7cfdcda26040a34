//! A real Kafka and a real schema registry on this machine, for `backbeat dev` and the tests; a worker of Kafka Connect and
//! a PostgreSQL, too, where they are wanted.
//!
//! What is Java comes from Maven Central, once per user. All run as child processes on loopback that never outlive this
//! process.

mod artifacts;
mod connect;
mod error;
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

/// The stock Kafka command-line tool of `class`, such as `org.apache.kafka.tools.TopicCommand`, ready
/// for its arguments.
pub fn stock_tool(class: &str) -> Result<Command, DevstackError> {
    Artifacts::fetch().map(|artifacts| kafka::java_class(&artifacts, class))
}

/// The stock console consumer with an Avro deserializer for Apicurio's registry on its class path, ready for its arguments.
pub fn console_consumer() -> Result<Command, DevstackError> {
    let artifacts = Artifacts::fetch()?;
    let class = "org.apache.kafka.tools.consumer.ConsoleConsumer";
    Ok(kafka::java_class_with(&artifacts, &[&artifacts.console_libs()?], class))
}

/// A schema registry, its state in memory, on loopback, ready for `QUARKUS_HTTP_PORT` and other settings of Quarkus.
pub fn stock_registry() -> Result<Command, DevstackError> {
    Artifacts::fetch().map(|artifacts| registry::command(&artifacts, false))
}

/// Where the stack runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Kafka's nodes. With three, topics that Kafka makes for itself have three replicas, two in sync.
    pub brokers: u16,
    /// The first node's port, 0 for a free one; the others' are free ones.
    pub kafka_port: u16,
    /// The registry's port, 0 for a free one.
    pub registry_port: u16,
    /// A directory for Kafka's data and both logs; what an earlier stack left there is removed.
    pub dir: PathBuf,
    /// Lets the JVM compile fully: slower to start, faster for benchmarks.
    pub throughput: bool,
}

/// A running Kafka and registry. Dropping it stops both.
#[derive(Debug)]
pub struct Devstack {
    kafka: Kafka,
    registry: Registry,
}

impl Devstack {
    /// Downloads what is missing, starts both and waits until both answer.
    pub fn start(options: &Options) -> Result<Self, DevstackError> {
        let artifacts = Artifacts::fetch()?;
        let (kafka, registry) = thread::scope(|scope| {
            let registry = scope.spawn(|| Registry::start(&artifacts, options));
            let kafka = Kafka::start(&artifacts, options);
            (kafka, registry.join().expect("starting the registry does not panic"))
        });
        Ok(Self { kafka: kafka?, registry: registry? })
    }

    /// `host:port,...` of the brokers.
    pub fn bootstrap_servers(&self) -> String {
        self.kafka.addresses()
    }

    /// How many nodes Kafka has.
    pub fn brokers(&self) -> usize {
        self.kafka.nodes.len()
    }

    /// Base URL of the registry's Confluent API.
    pub fn schema_registry(&self) -> String {
        self.registry.url()
    }

    /// Stops one of Kafka's nodes, counted from 0, in order, and keeps its data.
    pub fn stop_broker(&mut self, node: usize) -> Result<(), DevstackError> {
        self.kafka.nodes[node].process.stop().map(drop).context(|| "stopping kafka".to_owned())
    }

    /// Kills it, and keeps what it had written.
    pub fn kill_broker(&mut self, node: usize) -> Result<(), DevstackError> {
        let killed = self.kafka.nodes[node].process.signal(Signal::KILL);
        killed.context(|| "killing kafka".to_owned())?;
        self.stop_broker(node)
    }

    /// Starts it again, on its data and its ports, and waits until all nodes answer.
    pub fn start_broker(&mut self, node: usize) -> Result<(), DevstackError> {
        self.kafka.nodes[node].start_again()?;
        self.kafka.wait_until_ready()
    }

    /// Lets one of Kafka's nodes hang, as with SIGSTOP, or go on.
    pub fn hang_broker(&self, node: usize, hangs: bool) -> Result<(), DevstackError> {
        let signal = if hangs { Signal::STOP } else { Signal::CONT };
        self.kafka.nodes[node].process.signal(signal).context(|| "signalling kafka".to_owned())
    }

    /// Lets the registry hang, as with SIGSTOP, or go on.
    pub fn hang_registry(&self, hangs: bool) -> Result<(), DevstackError> {
        let signal = if hangs { Signal::STOP } else { Signal::CONT };
        self.registry.process.signal(signal).context(|| "signalling the registry".to_owned())
    }

    /// Stops both and waits for them.
    pub fn stop(mut self) {
        self.registry.process.begin_stop();
        self.kafka.nodes.iter_mut().for_each(|node| node.process.begin_stop());
        // Dropping waits for each.
    }
}
