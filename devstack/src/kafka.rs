//! A Kafka cluster of one or more brokers, each of which is also a controller.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::artifacts::{Artifacts, run};
use crate::empty_dir::create_empty_dir;
use crate::error::Context;
use crate::{DevstackError, Options, Supervised, port};

const READY_TIMEOUT: Duration = Duration::from_mins(1);
/// A clean shutdown takes about a second; the data is discarded, so a longer wait gains nothing.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
const PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// The log4j configuration of Kafka and Connect.
pub(crate) const LOGGING: &str = include_str!("log4j2.properties");
/// The text in Kafka's log if it cannot bind its port.
const PORT_TAKEN: &str = "Address already in use";
const MAX_ATTEMPTS: u32 = 3;

#[derive(Debug)]
pub(crate) struct Kafka {
    pub(crate) brokers: Vec<KafkaBroker>,
    cluster_id: String,
}

#[derive(Debug)]
pub(crate) struct KafkaBroker {
    pub(crate) process: Supervised,
    port: u16,
    command: Command,
}

impl Kafka {
    /// Starts the brokers. Retries with other ports if another process takes a free port before a broker binds it.
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
        // The first broker gets the requested port.
        let choose_ports = |id| {
            let kafka_port = if id == 1 { options.kafka_port } else { 0 };
            Ok((port::choose("kafka", kafka_port)?, port::choose("kafka", 0)?))
        };
        let ports = (1..=options.brokers).map(choose_ports).collect::<Result<Vec<_>, DevstackError>>()?;
        let cluster_id = random_cluster_id(ports[0].0);
        let voters: Vec<String> =
            (1..).zip(&ports).map(|(id, (_, controller))| format!("{id}@127.0.0.1:{controller}")).collect();
        let start = |(id, (port, controller)): (u16, &(u16, u16))| {
            let name = if options.brokers == 1 { "kafka".to_owned() } else { format!("kafka-{id}") };
            let settings = include_str!("server.properties")
                .replace("@NODE@", &id.to_string())
                .replace("@VOTERS@", &voters.join(","))
                .replace("@PORT@", &port.to_string())
                .replace("@CONTROLLER_PORT@", &controller.to_string())
                .replace("@REPLICAS@", &options.brokers.min(3).to_string())
                .replace("@MIN_ISR@", &(options.brokers.min(3) - 1).max(1).to_string());
            KafkaBroker::start(artifacts, options, &options.dir.join(name), &settings, *port, &cluster_id)
        };
        let brokers = (1..).zip(&ports).map(start).collect::<Result<Vec<_>, _>>()?;
        let mut kafka = Self { brokers, cluster_id };
        kafka.wait_until_ready()?;
        Ok(kafka)
    }

    /// Returns the brokers' addresses as `host:port,...`.
    pub(crate) fn addresses(&self) -> String {
        self.brokers.iter().map(KafkaBroker::address).collect::<Vec<_>>().join(",")
    }

    /// Waits until every broker answers.
    pub(crate) fn wait_until_ready(&mut self) -> Result<(), DevstackError> {
        let deadline = Instant::now() + READY_TIMEOUT;
        self.brokers.iter_mut().try_for_each(|broker| broker.wait_until_ready(&self.cluster_id, deadline))
    }
}

impl KafkaBroker {
    fn start(
        artifacts: &Artifacts,
        options: &Options,
        dir: &Path,
        settings: &str,
        port: u16,
        cluster_id: &str,
    ) -> Result<Self, DevstackError> {
        create_empty_dir(dir)?;
        let settings_path = dir.join("server.properties");
        let settings = settings.replace("@DATA@", &dir.join("data").display().to_string());
        fs::write(&settings_path, settings).context(|| "cannot write server.properties".to_owned())?;
        let logging = dir.join("log4j2.properties");
        fs::write(&logging, LOGGING).context(|| "cannot write log4j2.properties".to_owned())?;

        let mut format = java_class(artifacts, "kafka.tools.StorageTool");
        run(format.args(["format", "-t", cluster_id, "-c"]).arg(&settings_path))?;

        let mut command = java(options.throughput);
        command.args(["-Xms64m", "-Xmx512m"]).arg(format!("-Dlog4j2.configurationFile={}", logging.display()));
        command.arg("-cp").arg(artifacts.kafka_libs.join("*")).arg("kafka.Kafka").arg(&settings_path);
        let log = dir.join("broker.log");
        let process = Supervised::spawn(&command, &log, STOP_TIMEOUT).context(|| "cannot start kafka".to_owned())?;
        Ok(Self { process, port, command })
    }

    /// Restarts the broker with the same data and ports.
    pub(crate) fn restart(&mut self) -> Result<(), DevstackError> {
        let restarted = self.process.restart(&self.command, STOP_TIMEOUT);
        restarted.context(|| "cannot restart kafka".to_owned())
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn wait_until_ready(&mut self, cluster_id: &str, deadline: Instant) -> Result<(), DevstackError> {
        while Instant::now() < deadline {
            let ended = self.process.try_wait().context(|| "cannot get the status of kafka".to_owned())?.is_some();
            if ended {
                break;
            }
            match backbeat_broker::kafka_cluster_id(&self.address(), PROBE_TIMEOUT) {
                Some(found) if found == cluster_id => return Ok(()),
                Some(found) => {
                    let expected = cluster_id.to_owned();
                    return Err(DevstackError::ForeignBroker { address: self.address(), found, expected });
                }
                None => thread::sleep(PROBE_INTERVAL),
            }
        }
        Err(DevstackError::not_ready("kafka", READY_TIMEOUT, &self.process))
    }
}

/// Returns a cluster id of 22 characters of URL-safe base64, the format of Kafka's own. It distinguishes the broker
/// that was started here from another one on the same port.
fn random_cluster_id(port: u16) -> String {
    let mut id = format!("backbeat-{:05}-{:06x}", port, std::process::id());
    id.truncate(21);
    format!("{id:A<21}A")
}

/// Returns a `java` command tuned for a fast start, or with `throughput` for fast execution.
pub(crate) fn java(throughput: bool) -> Command {
    let mut java = Command::new("java");
    java.args(["-XX:+UseSerialGC", "-XX:-UsePerfData", "-Xshare:auto"]);
    if !throughput {
        java.arg("-XX:TieredStopAtLevel=1");
    }
    java
}

/// Returns a command that runs `class` from Kafka's jars, without arguments.
pub(crate) fn java_class(artifacts: &Artifacts, class: &str) -> Command {
    java_class_with(artifacts, &[], class)
}

/// Returns a command that runs `class` from Kafka's jars and the jars in `extra_libs`, without arguments.
pub(crate) fn java_class_with(artifacts: &Artifacts, extra_libs: &[&Path], class: &str) -> Command {
    let directories = std::iter::once(artifacts.kafka_libs.as_path()).chain(extra_libs.iter().copied());
    let jars: Vec<String> = directories.map(|directory| directory.join("*").display().to_string()).collect();
    let mut command = java(false);
    command.arg("-cp").arg(jars.join(":")).arg(class);
    command
}
