//! One schema registry with the Confluent API, its state in memory.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::artifacts::Artifacts;
use crate::error::Context;
use crate::kafka::java;
use crate::{DevstackError, Options, Supervised, port};

const READY_WITHIN: Duration = Duration::from_mins(1);
const STOP_WITHIN: Duration = Duration::from_secs(5);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
const PROBE_PAUSE: Duration = Duration::from_millis(100);
const MAX_ATTEMPTS: u32 = 3;

#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) process: Supervised,
    port: u16,
}

/// A registry with its state in memory, on loopback, ready for its port.
pub(crate) fn command(artifacts: &Artifacts, throughput: bool) -> Command {
    let mut command = java(throughput);
    command.arg("-Xmx128m").arg("-jar").arg(&artifacts.registry_jar);
    command.envs([
        ("QUARKUS_HTTP_HOST", "127.0.0.1"),
        ("QUARKUS_MANAGEMENT_HOST", "127.0.0.1"),
        ("QUARKUS_MANAGEMENT_PORT", "0"),
        ("QUARKUS_LOG_LEVEL", "WARN"),
        // Otherwise a schema with other white space gets another id.
        ("APICURIO_CCOMPAT_USE_CANONICAL_HASH", "true"),
    ]);
    command
}

impl Registry {
    /// Starts a registry. A free port may be taken by another before the registry binds it: then there
    /// are other ports.
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
        let port = port::claim("the schema registry", options.registry_port)?;
        let dir = options.dir.join("registry");
        if dir.exists() {
            fs::remove_dir_all(&dir).context(|| format!("removing {}", dir.display()))?;
        }
        fs::create_dir_all(&dir).context(|| format!("creating {}", dir.display()))?;
        let mut command = command(artifacts, options.throughput);
        command.env("QUARKUS_HTTP_PORT", port.to_string()).current_dir(&dir);
        let log = dir.join("registry.log");
        let process = Supervised::spawn(&command, &log, STOP_WITHIN).context(|| "starting the registry".to_owned())?;
        let mut registry = Self { process, port };
        registry.wait_until_ready()?;
        Ok(registry)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/apis/ccompat/v7", self.port)
    }

    /// Ready means that it answers while our process lives: had another taken the port first, ours
    /// would have ended.
    fn wait_until_ready(&mut self) -> Result<(), DevstackError> {
        let http = reqwest::blocking::Client::builder().timeout(PROBE_TIMEOUT).build();
        let http = http.map_err(std::io::Error::other).context(|| "making an HTTP client".to_owned())?;
        let subjects = format!("{}/subjects", self.url());
        let deadline = Instant::now() + READY_WITHIN;
        while Instant::now() < deadline {
            let answered = http.get(&subjects).send().is_ok_and(|answer| answer.status().is_success());
            let ended = self.process.try_wait().context(|| "looking after the registry".to_owned())?.is_some();
            if ended {
                break;
            }
            if answered {
                return Ok(());
            }
            thread::sleep(PROBE_PAUSE);
        }
        Err(DevstackError::not_ready("the schema registry", READY_WITHIN, &self.process))
    }
}
