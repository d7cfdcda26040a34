//! A Connect worker with the plugins of `connect/plugins`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::artifacts::Artifacts;
use crate::empty_dir::create_empty_dir;
use crate::error::Context;
use crate::kafka::{LOGGING, java};
use crate::{DevstackError, Supervised, port};

const READY_TIMEOUT: Duration = Duration::from_mins(2);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
const PROBE_INTERVAL: Duration = Duration::from_millis(100);
/// The settings of a production worker; those appended for this machine override them.
const SETTINGS: &str = include_str!("../../connect/worker.properties");

/// A running worker. Dropping it stops it.
#[derive(Debug)]
pub struct Connect {
    process: Supervised,
    worker: Command,
    port: u16,
}

impl Connect {
    /// Starts a worker on `port` (0 for a free one), with its settings and its log in `dir`, and waits until it
    /// answers. Files of an earlier worker in `dir` are removed.
    ///
    /// `environment` has the variables to which the configurations of sinks refer.
    pub fn start(
        port: u16,
        bootstrap_servers: &str,
        environment: &[(&str, String)],
        dir: &Path,
    ) -> Result<Self, DevstackError> {
        let artifacts = Artifacts::fetch()?;
        let plugins = artifacts.connect_plugins()?;
        let port = port::choose("kafka connect", port)?;
        create_empty_dir(dir)?;
        let settings = dir.join("worker.properties");
        let local_settings = format!(
            "{SETTINGS}\nlisteners=http://127.0.0.1:{port}\nrest.advertised.host.name=127.0.0.1\nplugin.path={}\nscheduled.rebalance.max.delay.ms=0\noffset.flush.interval.ms=1000\n",
            plugins.display()
        );
        fs::write(&settings, local_settings).context(|| format!("cannot write {}", settings.display()))?;
        let logging = dir.join("log4j2.properties");
        fs::write(&logging, LOGGING).context(|| format!("cannot write {}", logging.display()))?;
        let mut worker = java(false);
        worker.args(["-Xms64m", "-Xmx512m"]).arg(format!("-Dlog4j2.configurationFile={}", logging.display()));
        worker.arg("-cp").arg(artifacts.kafka_libs.join("*"));
        worker.arg("org.apache.kafka.connect.cli.ConnectDistributed").arg(&settings);
        worker.env("KAFKA_BOOTSTRAP_SERVERS", bootstrap_servers).env("CONNECT_REPLICATION", "1");
        worker.envs(environment.iter().map(|(name, value)| (*name, value)));
        let log = dir.join("connect.log");
        let process =
            Supervised::spawn(&worker, &log, STOP_TIMEOUT).context(|| "cannot start kafka connect".to_owned())?;
        let mut connect = Self { process, worker, port };
        connect.wait_until_ready()?;
        Ok(connect)
    }

    /// Returns the base URL of the worker's REST API.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns an error if the worker has ended.
    pub fn check(&mut self) -> Result<(), DevstackError> {
        self.process.check("kafka connect")
    }

    /// Kills the worker with SIGKILL, so that it cannot leave its group first.
    pub fn kill(&mut self) -> Result<(), DevstackError> {
        self.process.signal(Signal::KILL).context(|| "cannot kill kafka connect".to_owned())?;
        self.process.stop().map(drop).context(|| "cannot kill kafka connect".to_owned())
    }

    /// Restarts the worker and waits until it answers.
    pub fn restart(&mut self) -> Result<(), DevstackError> {
        let restarted = self.process.restart(&self.worker, STOP_TIMEOUT);
        restarted.context(|| "cannot restart kafka connect".to_owned())?;
        self.wait_until_ready()
    }

    /// Returns the last lines of the worker's log.
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    /// Waits until the worker lists its connectors. (The root path answers earlier, before the connectors are known.)
    fn wait_until_ready(&mut self) -> Result<(), DevstackError> {
        let http = reqwest::blocking::Client::builder().timeout(PROBE_TIMEOUT).build();
        let http = http.map_err(std::io::Error::other).context(|| "cannot create an HTTP client".to_owned())?;
        let connectors = format!("{}/connectors", self.url());
        let deadline = Instant::now() + READY_TIMEOUT;
        while Instant::now() < deadline {
            let answered = http.get(&connectors).send().is_ok_and(|answer| answer.status().is_success());
            if self.process.try_wait().context(|| "cannot get the status of kafka connect".to_owned())?.is_some() {
                break;
            }
            if answered {
                return Ok(());
            }
            thread::sleep(PROBE_INTERVAL);
        }
        Err(DevstackError::not_ready("kafka connect", READY_TIMEOUT, &self.process))
    }
}
