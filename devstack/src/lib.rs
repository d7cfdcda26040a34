//! A real Kafka and a real schema registry on this machine, for `backbeat dev` and the tests.
//!
//! Both come from Maven Central, once per user, and run as child processes on loopback that never
//! outlive this process.

mod artifacts;
mod error;
mod kafka;
mod port;
mod registry;
mod stack;
mod supervised;

use std::path::PathBuf;
use std::process::Command;
use std::thread;

pub use error::DevstackError;
pub use port::free_port;
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

/// Where the stack runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Kafka's port, 0 for a free one.
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

    /// `host:port` of the broker.
    pub fn bootstrap_servers(&self) -> String {
        self.kafka.address()
    }

    /// Base URL of the registry's Confluent API.
    pub fn schema_registry(&self) -> String {
        self.registry.url()
    }

    /// Stops Kafka alone, in order, and keeps its data.
    pub fn stop_kafka(&mut self) -> Result<(), DevstackError> {
        self.kafka.process.stop().map(drop).context(|| "stopping kafka".to_owned())
    }

    /// Starts Kafka again after [`Devstack::stop_kafka`], on its data and its port.
    pub fn start_kafka(&mut self) -> Result<(), DevstackError> {
        self.kafka.start_again()
    }

    /// Stops both and waits for them.
    pub fn stop(mut self) {
        self.registry.process.begin_stop();
        self.kafka.process.begin_stop();
        // Dropping waits for each.
    }
}
