//! The programs of BACKBEAT that `backbeat dev` starts, and their addresses.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use backbeat_broker::KafkaArgs;
use backbeat_devstack::{DevstackError, Supervised, free_port};

use super::{Args, POLL_TIMEOUT, print_line};
use crate::dev_state::{DevState, Service};

/// The time between SIGTERM and SIGKILL.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// The time in which a program must open its HTTP port.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Offsets of the pulse nodes' ports from the first one; the ports between belong to reverb and the registry.
const PULSE_PORT_OFFSETS: [u16; 5] = [0, 1, 3, 6, 7];
/// Settings of the user's environment that do not reach the programs.
const UNSET: [&str; 8] = [
    "KAFKA_CONFIG",
    "SCHEMA_REGISTRY_CA",
    "LOG_LEVEL",
    "BACKBEAT_PEERS",
    "BACKBEAT_RAFT_BIND",
    "BACKBEAT_RAFT_SECRET_FILE",
    "BACKBEAT_ADMIN_TOKEN_FILE",
    "BACKBEAT_UI_ALLOWED_HOSTS",
];

/// The trouble of the simulated agents, as flags of agent-sim.
const TROUBLE: [(&str, &str); 5] = [
    ("--late-rate", "0.02"),
    ("--malformed-rate", "0.01"),
    ("--silent-task-rate", "0.15"),
    ("--stalled-task-rate", "0.15"),
    ("--overdrawn-task-rate", "0.1"),
];

/// Returns a sentence about the agents.
fn notice(args: &Args) -> &'static str {
    if args.no_trouble {
        "This is a demonstration: its agents are simulated."
    } else {
        "This is a demonstration: its agents are simulated, and some fall silent, stall, or send late and invalid claims on purpose."
    }
}

/// The programs that run, in the order in which they were started.
pub(super) struct Programs {
    env: Vec<(&'static str, String)>,
    dir: PathBuf,
    running: Vec<(String, Supervised)>,
}

impl Programs {
    /// Prepares to start programs of `cluster` that connect by `kafka` and keep their logs in `dir`.
    pub(super) fn new(cluster: &str, kafka: &KafkaArgs, dir: &Path) -> Self {
        let mut env = vec![
            ("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap_servers.clone()),
            ("SCHEMA_REGISTRY_URL", kafka.schema_registry.clone()),
            ("BACKBEAT_TOPIC_PREFIX", kafka.topic_prefix.clone()),
            ("BACKBEAT_CLUSTER", cluster.to_owned()),
        ];
        let path = |path: &PathBuf| path.display().to_string();
        env.extend(kafka.kafka_config.as_ref().map(|file| ("KAFKA_CONFIG", path(file))));
        env.extend(kafka.schema_registry_ca.as_ref().map(|file| ("SCHEMA_REGISTRY_CA", path(file))));
        Self { env, dir: dir.to_owned(), running: Vec::new() }
    }

    /// Starts pulse, reverb and the agents, and waits until each service listens.
    pub(super) fn start_all(&mut self, args: &Args) -> anyhow::Result<()> {
        let mut starting = self.start_pulse(args)?;
        starting.extend(self.start_reverb(args)?);
        let mut agents = flags([("--agents", args.agents.to_string()), ("--seed", args.seed.to_string())]);
        if !args.no_trouble {
            agents.extend(flags(TROUBLE.map(|(flag, rate)| (flag, rate.to_owned()))));
        }
        self.start("agent-sim", "agent-sim", &agents)?;

        let services = starting.into_iter().map(|service| service.wait(self)).collect::<anyhow::Result<Vec<_>>>()?;
        let state = DevState { services };
        let token = hex::encode(rand::random::<[u8; 16]>());
        let page = self.start_ui(args, &state, &token)?.wait(self)?;
        print_line(&format!("page      {}/#token={token}", page.url))?;
        print_line(notice(args))?;
        for service in state.services.iter().chain([&page]) {
            print_line(&format!("{:<9} {}  log {}", service.name, service.url, service.log.display()))?;
        }
        state.write(&self.dir)
    }

    /// Starts the page. Changes of the tempo need `token`: web pages from elsewhere do not know it.
    fn start_ui(&mut self, args: &Args, state: &DevState, token: &str) -> anyhow::Result<StartingService> {
        let token_file = self.dir.join("ui-token");
        fs::write(&token_file, token).with_context(|| format!("cannot write {}", token_file.display()))?;
        let mut command = vec!["ui".to_owned()];
        command.extend(flags([
            ("--port", args.ui_port.to_string()),
            ("--pulse", state.urls("pulse").join(",")),
            ("--reverb", state.urls("reverb").join(",")),
            ("--admin-token-file", token_file.display().to_string()),
            ("--notice", notice(args).to_owned()),
        ]));
        self.start_service("ui".to_owned(), "backbeat", command)
    }

    fn start_pulse(&mut self, args: &Args) -> anyhow::Result<Vec<StartingService>> {
        let max_bpm = args.max_bpm.unwrap_or_else(|| args.bpm.max(24.0));
        let peer = |node: u16| Ok(format!("pulse-{node}=127.0.0.1:{}", free_port()?));
        let peers = (1..=args.nodes).map(peer).collect::<Result<Vec<_>, DevstackError>>()?.join(",");
        let start = |node: u16| {
            let port = if args.pulse_port == 0 { 0 } else { args.pulse_port + PULSE_PORT_OFFSETS[usize::from(node)] };
            let name = format!("pulse-{}", node + 1);
            let flags = flags([
                ("--node", name.clone()),
                ("--peers", peers.clone()),
                ("--data-dir", self.dir.join("pulse").display().to_string()),
                ("--bpm", args.bpm.to_string()),
                ("--max-bpm", max_bpm.to_string()),
                ("--bar", args.bar.to_string()),
                ("--admin-port", port.to_string()),
            ]);
            self.start_service(name, "pulse", flags)
        };
        (0..args.nodes).map(start).collect()
    }

    fn start_reverb(&mut self, args: &Args) -> anyhow::Result<Vec<StartingService>> {
        let start = |member: u16| {
            let port = if args.reverb_port == 0 { 0 } else { args.reverb_port + 2 * member };
            let name = format!("reverb-{}", member + 1);
            self.start_service(name.clone(), "reverb", flags([("--node", name), ("--admin-port", port.to_string())]))
        };
        (0..args.members).map(start).collect()
    }

    /// Starts a program that has an HTTP server.
    fn start_service(&mut self, name: String, program: &str, mut args: Vec<String>) -> anyhow::Result<StartingService> {
        let port_file = self.dir.join(format!("{name}.port"));
        args.extend(["--port-file".to_owned(), port_file.display().to_string()]);
        let log = self.start(&name, program, &args)?;
        Ok(StartingService { name, log, port_file })
    }

    /// Starts a program; returns the path of its log.
    fn start(&mut self, name: &str, program: &str, args: &[String]) -> anyhow::Result<PathBuf> {
        let executable = std::env::current_exe()?.with_file_name(program);
        let mut command = Command::new(&executable);
        for name in UNSET {
            command.env_remove(name);
        }
        command.args(args).env("BACKBEAT_ENV", "development").envs(self.env.iter().map(|(name, value)| (*name, value)));
        let log = self.dir.join(format!("{name}.log"));
        let process = Supervised::spawn(&command, &log, STOP_TIMEOUT)
            .with_context(|| format!("cannot start {}", executable.display()))?;
        self.running.push((name.to_owned(), process));
        Ok(log)
    }

    /// Returns an error if a program has ended.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        for (name, process) in &mut self.running {
            if let Some(status) = process.try_wait()? {
                let log = process.log().display();
                bail!("{name} has ended ({status}); the last lines of {log}:\n{}", process.log_tail());
            }
        }
        Ok(())
    }
}

impl Drop for Programs {
    /// Stops all programs at once, so that their stop times do not add up.
    fn drop(&mut self) {
        self.running.iter_mut().for_each(|(_, process)| process.begin_stop());
        self.running.clear();
    }
}

/// A service that was started and may not listen yet.
struct StartingService {
    name: String,
    log: PathBuf,
    port_file: PathBuf,
}

impl StartingService {
    /// Waits until the service has written its address to the port file.
    fn wait(self, programs: &mut Programs) -> anyhow::Result<Service> {
        let deadline = Instant::now() + LISTEN_TIMEOUT;
        while Instant::now() < deadline {
            if let Ok(address) = fs::read_to_string(&self.port_file) {
                return Ok(Service { name: self.name, url: format!("http://{}", address.trim()), log: self.log });
            }
            programs.check()?;
            std::thread::sleep(POLL_TIMEOUT);
        }
        bail!("{} did not open its HTTP port within {LISTEN_TIMEOUT:?}; see {}", self.name, self.log.display())
    }
}

fn flags<const N: usize>(pairs: [(&str, String); N]) -> Vec<String> {
    pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
}
