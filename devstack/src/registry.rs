//! A schema registry with the Confluent API and its state in memory.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::artifacts::Artifacts;
use crate::empty_dir::create_empty_dir;
use crate::error::Context;
use crate::kafka::java;
use crate::{DevstackError, Options, Supervised, port};

const READY_TIMEOUT: Duration = Duration::from_mins(1);
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
const PROBE_INTERVAL: Duration = Duration::from_millis(100);
const MAX_ATTEMPTS: u32 = 3;

#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) process: Supervised,
    port: u16,
}

/// Returns a command that runs a registry on loopback with its state in memory; the caller sets its port.
pub(crate) fn command(artifacts: &Artifacts, throughput: bool) -> Command {
    let mut command = java(throughput);
    command.arg("-Xmx128m").arg("-jar").arg(&artifacts.registry_jar);
    command.envs([
        ("QUARKUS_HTTP_HOST", "127.0.0.1"),
        ("QUARKUS_MANAGEMENT_HOST", "127.0.0.1"),
        ("QUARKUS_MANAGEMENT_PORT", "0"),
        ("QUARKUS_LOG_LEVEL", "WARN"),
        // Without this, the same schema with different white space gets a different id.
        ("APICURIO_CCOMPAT_USE_CANONICAL_HASH", "true"),
    ]);
    command
}

impl Registry {
    /// Starts a registry. Retries with another port if another process takes the free port before the registry binds
    /// it.
    pub(crate) fn start(artifacts: &Artifacts, options: &Options) -> Result<Self, DevstackError> {
        let mut attempt = 1;
        loop {
            match Self::start_once(artifacts, options) {
                Err(DevstackError::NotReady { .. }) if options.registry_port == 0 && attempt < MAX_ATTEMPTS => {
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    fn start_once(artifacts: &Artifacts, options: &Options) -> Result<Self, DevstackError> {
        let port = port::choose("the schema registry", options.registry_port)?;
        let dir = options.dir.join("registry");
        create_empty_dir(&dir)?;
        let mut command = command(artifacts, options.throughput);
        command.env("QUARKUS_HTTP_PORT", port.to_string()).current_dir(&dir);
        let log = dir.join("registry.log");
        let process =
            Supervised::spawn(&command, &log, STOP_TIMEOUT).context(|| "cannot start the registry".to_owned())?;
        let mut registry = Self { process, port };
        registry.wait_until_ready()?;
        Ok(registry)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/apis/ccompat/v7", self.port)
    }

    /// Waits until the registry answers and its process is alive. If another process has taken the port, that one
    /// answers, but the registry's process ends.
    fn wait_until_ready(&mut self) -> Result<(), DevstackError> {
        let http = reqwest::blocking::Client::builder().timeout(PROBE_TIMEOUT).build();
        let http = http.map_err(std::io::Error::other).context(|| "cannot create an HTTP client".to_owned())?;
        let subjects = format!("{}/subjects", self.url());
        let deadline = Instant::now() + READY_TIMEOUT;
        while Instant::now() < deadline {
            let answered = http.get(&subjects).send().is_ok_and(|answer| answer.status().is_success());
            let ended =
                self.process.try_wait().context(|| "cannot get the status of the registry".to_owned())?.is_some();
            if ended {
                break;
            }
            if answered {
                return Ok(());
            }
            thread::sleep(PROBE_INTERVAL);
        }
        Err(DevstackError::not_ready("the schema registry", READY_TIMEOUT, &self.process))
    }
}
