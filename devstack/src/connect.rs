//! A worker of Kafka Connect, with the plugins of `connect/plugins`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::artifacts::Artifacts;
use crate::error::Context;
use crate::kafka::{LOGGING, java};
use crate::{DevstackError, Supervised, port};

const READY_WITHIN: Duration = Duration::from_mins(2);
const STOP_WITHIN: Duration = Duration::from_secs(10);
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
const PROBE_PAUSE: Duration = Duration::from_millis(100);
/// What a user's worker has, and what of it is other on this machine: the last word counts.
const SETTINGS: &str = include_str!("../../connect/worker.properties");

/// A running worker. Dropping it stops it.
#[derive(Debug)]
pub struct Connect {
    process: Supervised,
    worker: Command,
    port: u16,
}

impl Connect {
    /// Starts a worker on `port`, 0 for a free one, with its settings and its log in `dir`, and waits until it answers;
    /// what an earlier one left there is removed.
    ///
    /// `environment` is what the configurations of sinks refer to.
    pub fn start(
        port: u16,
        bootstrap_servers: &str,
        environment: &[(&str, String)],
        dir: &Path,
    ) -> Result<Self, DevstackError> {
        let artifacts = Artifacts::fetch()?;
        let plugins = artifacts.connect_plugins()?;
        let port = port::claim("kafka connect", port)?;
        if dir.exists() {
            fs::remove_dir_all(dir).context(|| format!("removing {}", dir.display()))?;
        }
        fs::create_dir_all(dir).context(|| format!("creating {}", dir.display()))?;
        let settings = dir.join("worker.properties");
        let ours = format!(
            "{SETTINGS}\nlisteners=http://127.0.0.1:{port}\nrest.advertised.host.name=127.0.0.1\nplugin.path={}\nscheduled.rebalance.max.delay.ms=0\noffset.flush.interval.ms=1000\n",
            plugins.display()
        );
        fs::write(&settings, ours).context(|| format!("writing {}", settings.display()))?;
        let logging = dir.join("log4j2.properties");
        fs::write(&logging, LOGGING).context(|| format!("writing {}", logging.display()))?;
        let mut worker = java(false);
        worker.args(["-Xms64m", "-Xmx512m"]).arg(format!("-Dlog4j2.configurationFile={}", logging.display()));
        worker.arg("-cp").arg(artifacts.kafka_libs.join("*"));
        worker.arg("org.apache.kafka.connect.cli.ConnectDistributed").arg(&settings);
        worker.env("KAFKA_BOOTSTRAP_SERVERS", bootstrap_servers).env("CONNECT_REPLICATION", "1");
        worker.envs(environment.iter().map(|(name, value)| (*name, value)));
        let log = dir.join("connect.log");
        let process = Supervised::spawn(&worker, &log, STOP_WITHIN).context(|| "starting kafka connect".to_owned())?;
        let mut connect = Self { process, worker, port };
        connect.wait_until_ready()?;
        Ok(connect)
    }

    /// Base URL of its REST API.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// An error if it has ended by itself.
    pub fn check(&mut self) -> Result<(), DevstackError> {
        self.process.check("kafka connect")
    }

    /// Kills it, so that it can tell nobody.
    pub fn kill(&mut self) -> Result<(), DevstackError> {
        self.process.signal(Signal::KILL).context(|| "killing kafka connect".to_owned())?;
        self.process.stop().map(drop).context(|| "killing kafka connect".to_owned())
    }

    /// Starts it again, and waits until it answers.
    pub fn start_again(&mut self) -> Result<(), DevstackError> {
        let started = self.process.start_again(&self.worker, STOP_WITHIN);
        started.context(|| "starting kafka connect again".to_owned())?;
        self.wait_until_ready()
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    /// Its root answers before it has read what connectors there are.
    fn wait_until_ready(&mut self) -> Result<(), DevstackError> {
        let http = reqwest::blocking::Client::builder().timeout(PROBE_TIMEOUT).build();
        let http = http.map_err(std::io::Error::other).context(|| "making an HTTP client".to_owned())?;
        let connectors = format!("{}/connectors", self.url());
        let deadline = Instant::now() + READY_WITHIN;
        while Instant::now() < deadline {
            let answered = http.get(&connectors).send().is_ok_and(|answer| answer.status().is_success());
            if self.process.try_wait().context(|| "looking after kafka connect".to_owned())?.is_some() {
                break;
            }
            if answered {
                return Ok(());
            }
            thread::sleep(PROBE_PAUSE);
        }
        Err(DevstackError::not_ready("kafka connect", READY_WITHIN, &self.process))
    }
}
