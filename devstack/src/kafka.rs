//! Kafka: one node or more, each broker and controller.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::artifacts::{Artifacts, run};
use crate::error::Context;
use crate::{DevstackError, Options, Supervised, port};

const READY_WITHIN: Duration = Duration::from_mins(1);
/// An orderly shutdown takes about a second; the data is thrown away, so more is not worth it.
const STOP_WITHIN: Duration = Duration::from_secs(5);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
const PROBE_PAUSE: Duration = Duration::from_millis(100);

/// How its programs log.
pub(crate) const LOGGING: &str = include_str!("log4j2.properties");
/// What Kafka says of a port that it cannot bind.
const PORT_TAKEN: &str = "Address already in use";
const MAX_ATTEMPTS: u32 = 3;

#[derive(Debug)]
pub(crate) struct Kafka {
    pub(crate) nodes: Vec<Node>,
    cluster_id: String,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) process: Supervised,
    port: u16,
    command: Command,
}

impl Kafka {
    /// Starts the nodes. A free port may be taken by another before a node binds it: then there are
    /// other ports.
    pub(crate) fn start(artifacts: &Artifacts, options: &Options) -> Result<Self, DevstackError> {
        let mut attempt = 1;
        loop {
            match Self::start_once(artifacts, options) {
                Err(DevstackError::NotReady { tail, .. }) if tail.contains(PORT_TAKEN) && attempt < MAX_ATTEMPTS => {
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    fn start_once(artifacts: &Artifacts, options: &Options) -> Result<Self, DevstackError> {
        // The first has the port that was asked for.
        let claim = |node| {
            Ok((port::claim("kafka", if node == 1 { options.kafka_port } else { 0 })?, port::claim("kafka", 0)?))
        };
        let ports = (1..=options.brokers).map(claim).collect::<Result<Vec<_>, DevstackError>>()?;
        let cluster_id = random_cluster_id(ports[0].0);
        let voters: Vec<String> =
            (1..).zip(&ports).map(|(node, (_, controller))| format!("{node}@127.0.0.1:{controller}")).collect();
        let start = |(node, (port, controller)): (u16, &(u16, u16))| {
            let name = if options.brokers == 1 { "kafka".to_owned() } else { format!("kafka-{node}") };
            let settings = include_str!("server.properties")
                .replace("@NODE@", &node.to_string())
                .replace("@VOTERS@", &voters.join(","))
                .replace("@PORT@", &port.to_string())
                .replace("@CONTROLLER_PORT@", &controller.to_string())
                .replace("@REPLICAS@", &options.brokers.min(3).to_string())
                .replace("@MIN_ISR@", &(options.brokers.min(3) - 1).max(1).to_string());
            Node::start(artifacts, options, &options.dir.join(name), &settings, *port, &cluster_id)
        };
        let nodes = (1..).zip(&ports).map(start).collect::<Result<Vec<_>, _>>()?;
        let mut kafka = Self { nodes, cluster_id };
        kafka.wait_until_ready()?;
        Ok(kafka)
    }

    /// `host:port,...`
    pub(crate) fn addresses(&self) -> String {
        self.nodes.iter().map(Node::address).collect::<Vec<_>>().join(",")
    }

    /// Waits until every node answers.
    pub(crate) fn wait_until_ready(&mut self) -> Result<(), DevstackError> {
        let deadline = Instant::now() + READY_WITHIN;
        self.nodes.iter_mut().try_for_each(|node| node.wait_until_ready(&self.cluster_id, deadline))
    }
}

impl Node {
    fn start(
        artifacts: &Artifacts,
        options: &Options,
        dir: &Path,
        settings: &str,
        port: u16,
        cluster_id: &str,
    ) -> Result<Self, DevstackError> {
        if dir.exists() {
            fs::remove_dir_all(dir).context(|| format!("removing {}", dir.display()))?;
        }
        fs::create_dir_all(dir).context(|| format!("creating {}", dir.display()))?;
        let settings_path = dir.join("server.properties");
        let settings = settings.replace("@DATA@", &dir.join("data").display().to_string());
        fs::write(&settings_path, settings).context(|| "writing server.properties".to_owned())?;
        let logging = dir.join("log4j2.properties");
        fs::write(&logging, LOGGING).context(|| "writing log4j2.properties".to_owned())?;

        let mut format = java_class(artifacts, "kafka.tools.StorageTool");
        run(format.args(["format", "-t", cluster_id, "-c"]).arg(&settings_path))?;

        let mut command = java(options.throughput);
        command.args(["-Xms64m", "-Xmx512m"]).arg(format!("-Dlog4j2.configurationFile={}", logging.display()));
        command.arg("-cp").arg(artifacts.kafka_libs.join("*")).arg("kafka.Kafka").arg(&settings_path);
        let log = dir.join("broker.log");
        let process = Supervised::spawn(&command, &log, STOP_WITHIN).context(|| "starting kafka".to_owned())?;
        Ok(Self { process, port, command })
    }

    /// Starts the node again, on its data and its ports.
    pub(crate) fn start_again(&mut self) -> Result<(), DevstackError> {
        let started = self.process.start_again(&self.command, STOP_WITHIN);
        started.context(|| "starting kafka again".to_owned())
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn wait_until_ready(&mut self, cluster_id: &str, deadline: Instant) -> Result<(), DevstackError> {
        while Instant::now() < deadline {
            let ended = self.process.try_wait().context(|| "looking after kafka".to_owned())?.is_some();
            if ended {
                break;
            }
            match backbeat_broker::cluster_id(&self.address(), PROBE_TIMEOUT) {
                Some(found) if found == cluster_id => return Ok(()),
                Some(found) => {
                    let expected = cluster_id.to_owned();
                    return Err(DevstackError::NotOurs { address: self.address(), found, expected });
                }
                None => thread::sleep(PROBE_PAUSE),
            }
        }
        Err(DevstackError::not_ready("kafka", READY_WITHIN, &self.process))
    }
}

/// A cluster id of 22 characters of URL-safe base64, as Kafka's own; it tells our broker from
/// another's on the same port.
fn random_cluster_id(port: u16) -> String {
    let mut id = format!("backbeat-{:05}-{:06x}", port, std::process::id());
    id.truncate(21);
    format!("{id:A<21}A")
}

/// A JVM that starts fast; with `throughput` one that runs fast.
pub(crate) fn java(throughput: bool) -> Command {
    let mut java = Command::new("java");
    java.args(["-XX:+UseSerialGC", "-XX:-UsePerfData", "-Xshare:auto"]);
    if !throughput {
        java.arg("-XX:TieredStopAtLevel=1");
    }
    java
}

/// The class of a Kafka tool, ready for its arguments.
pub(crate) fn java_class(artifacts: &Artifacts, class: &str) -> Command {
    java_class_with(artifacts, &[], class)
}

/// The same with further directories of jars.
pub(crate) fn java_class_with(artifacts: &Artifacts, further: &[&Path], class: &str) -> Command {
    let directories = std::iter::once(artifacts.kafka_libs.as_path()).chain(further.iter().copied());
    let jars: Vec<String> = directories.map(|directory| directory.join("*").display().to_string()).collect();
    let mut command = java(false);
    command.arg("-cp").arg(jars.join(":")).arg(class);
    command
}
