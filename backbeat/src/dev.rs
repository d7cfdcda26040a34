//! `backbeat dev`: runs a whole cluster on this machine.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use backbeat_broker::{Broker, KafkaArgs, LogReader, ReadError, Registry, TopicName, without_credentials};
use backbeat_devstack::{DevstackError, Options, Stack, Supervised, free_port};
use backbeat_schemas::{BarReport, BeatFrame, Record};
use backbeat_service::Shutdown;
use tokio::runtime::{Handle, Runtime};

use crate::dev_state::{DevState, Service};
use crate::topics;
use crate::warehouse::Warehouse;

/// The time between SIGTERM and SIGKILL.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_TIMEOUT: Duration = Duration::from_millis(20);
/// The time in which a program must open its HTTP port.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);
/// The interval at which the programs and the table of reports are checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Flags of `backbeat dev`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat dev --bpm 120 --bar 8 --agents 200
  backbeat dev --connect                         also writes reports to PostgreSQL
  backbeat dev --kafka-port 0 --registry-port 0 --pulse-port 0 --reverb-port 0 --dir /tmp/second")]
pub(crate) struct Args {
    /// The cluster's name.
    #[arg(long, default_value = "dev")]
    cluster: String,

    /// Beats per minute.
    #[arg(long, default_value_t = 24.0)]
    bpm: f64,

    /// The maximum tempo, in beats per minute; by default 24, or --bpm if that is higher.
    #[arg(long)]
    max_bpm: Option<f64>,

    /// Beats per bar.
    #[arg(long, default_value_t = 4)]
    bar: u16,

    /// Number of agents.
    #[arg(long, default_value_t = 20)]
    agents: u32,

    /// The random seed of the agents.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Number of members in reverb's consumer group.
    #[arg(long, default_value_t = 2)]
    members: u16,

    /// Number of partitions of statusclaims.
    #[arg(long, default_value_t = 12)]
    claim_partitions: i32,

    /// Kafka's port; 0 chooses a free one.
    #[arg(long, default_value_t = 9092)]
    kafka_port: u16,

    /// The schema registry's port; 0 chooses a free one.
    #[arg(long, default_value_t = 8085)]
    registry_port: u16,

    /// Number of pulse nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=5))]
    nodes: u16,

    /// HTTP port of the first pulse node; the other nodes use this port plus 1, 3, 6 and 7. 0 chooses free ones.
    #[arg(long, default_value_t = 8080)]
    pulse_port: u16,

    /// HTTP port of the first reverb member; each further member uses the port two above. 0 chooses free ones.
    #[arg(long, default_value_t = 8082)]
    reverb_port: u16,

    /// Also start PostgreSQL and a Connect worker that writes each report to it.
    #[arg(long)]
    connect: bool,

    /// Kafka Connect's port; 0 chooses a free one.
    #[arg(long, default_value_t = 8090)]
    connect_port: u16,

    /// PostgreSQL's port; 0 chooses a free one.
    #[arg(long, default_value_t = 5432)]
    postgres_port: u16,

    /// The directory for data and logs; those of an earlier run are removed.
    #[arg(long, default_value = ".backbeat")]
    dir: PathBuf,
}

/// Offsets of the pulse nodes' ports from the first one; the ports between belong to reverb and the registry.
const PULSE_PORT_OFFSETS: [u16; 5] = [0, 1, 3, 6, 7];

/// The programs that run, in the order in which they were started.
struct Programs {
    running: Vec<(String, Supervised)>,
}

impl Programs {
    fn start(
        &mut self,
        name: &str,
        program: &str,
        args: &[String],
        env: &[(&str, String)],
        dir: &Path,
    ) -> anyhow::Result<PathBuf> {
        let executable = std::env::current_exe()?.with_file_name(program);
        let mut command = Command::new(&executable);
        command
            .args(args)
            .args(["--env", "development"])
            .env_remove("KAFKA_CONFIG")
            .env_remove("SCHEMA_REGISTRY_CA")
            .env_remove("LOG_LEVEL")
            .env_remove("BACKBEAT_PEERS")
            .env_remove("BACKBEAT_RAFT_BIND")
            .env_remove("BACKBEAT_RAFT_SECRET_FILE")
            .env_remove("BACKBEAT_ADMIN_TOKEN_FILE")
            .envs(env.iter().map(|(name, value)| (*name, value.as_str())));
        let log = dir.join(format!("{name}.log"));
        let process = Supervised::spawn(&command, &log, STOP_TIMEOUT)
            .with_context(|| format!("cannot start {}", executable.display()))?;
        self.running.push((name.to_owned(), process));
        Ok(log)
    }

    /// Starts a program that has an HTTP server.
    fn start_service(
        &mut self,
        name: String,
        program: &str,
        mut args: Vec<String>,
        env: &[(&str, String)],
        dir: &Path,
    ) -> anyhow::Result<StartingService> {
        let port_file = dir.join(format!("{name}.port"));
        args.extend(["--port-file".to_owned(), port_file.display().to_string()]);
        let log = self.start(&name, program, &args, env, dir)?;
        Ok(StartingService { name, log, port_file })
    }

    /// Returns an error if a program has ended.
    fn check(&mut self) -> anyhow::Result<()> {
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

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = Runtime::new()?;
    let shutdown = {
        let _inside = runtime.enter();
        backbeat_service::on_signals()?
    };
    fs::create_dir_all(&args.dir).with_context(|| format!("cannot create {}", args.dir.display()))?;
    let dir = args.dir.canonicalize()?;
    remove_leftovers(&dir)?;
    print_line(&format!("starting kafka and the schema registry; data and logs are in {}", args.dir.display()))?;
    let options = Options {
        brokers: 1,
        kafka_port: args.kafka_port,
        registry_port: args.registry_port,
        dir: dir.clone(),
        throughput: false,
    };
    let stack = Stack::start(&options)?;
    if args.connect && matches!(stack, Stack::External { .. }) {
        bail!("--connect needs a Kafka that is started here; KAFKA_BOOTSTRAP_SERVERS names an external one");
    }
    let raft_stores = dir.join("pulse");
    if matches!(stack, Stack::Local(_)) && raft_stores.exists() {
        // Pulse's Raft state belongs to the beats of an earlier run, which were removed with Kafka's data.
        fs::remove_dir_all(&raft_stores).with_context(|| format!("cannot remove {}", raft_stores.display()))?;
    }
    let kafka = kafka_args(&stack);
    let registry = without_credentials(&kafka.schema_registry);
    print_line(&format!("kafka {}, schema registry {registry}", kafka.bootstrap_servers))?;
    let settings =
        topics::TopicSettings { claim_partitions: args.claim_partitions, replication_factor: 1, kafka: kafka.clone() };
    let topics_ensured = runtime.block_on(async {
        tokio::select! {
            created = topics::ensure(&settings) => created.map(drop),
            () = shutdown.cancelled() => Ok(()),
        }
    });
    let mut programs = Programs { running: Vec::new() };
    let mut warehouse = None;
    let outcome = topics_ensured
        .and_then(|()| if shutdown.is_cancelled() { Ok(()) } else { start_programs(args, &kafka, &dir, &mut programs) })
        .and_then(|()| {
            if let (true, Stack::Local(stack), false) = (args.connect, &stack, shutdown.is_cancelled()) {
                print_line("starting postgresql and kafka connect")?;
                let started = Warehouse::start(stack, args.connect_port, args.postgres_port, &dir)?;
                print_line(&format!("postgres  {}  table bar_reports", started.postgres_url()))?;
                print_line(&format!("connect   {}  log {}", started.connect_url(), started.log().display()))?;
                warehouse = Some(started);
            }
            Ok(())
        })
        .and_then(|()| {
            print_beats_and_reports(args, &kafka, runtime.handle(), &mut programs, warehouse.as_mut(), &shutdown)
        });
    print_line("stopping")?;
    drop(warehouse);
    drop(programs);
    if let Stack::Local(stack) = stack {
        stack.stop();
    }
    DevState::remove(&dir);
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Returns the connection settings of `stack`. An external Kafka may need a topic prefix and client properties, which
/// the environment names.
fn kafka_args(stack: &Stack) -> KafkaArgs {
    let external = |name: &str| match stack {
        Stack::Local(_) => None,
        Stack::External { .. } => std::env::var(name).ok().filter(|value| !value.is_empty()),
    };
    KafkaArgs {
        bootstrap_servers: stack.bootstrap_servers(),
        schema_registry: stack.schema_registry(),
        schema_registry_ca: external("SCHEMA_REGISTRY_CA").map(PathBuf::from),
        kafka_config: external("KAFKA_CONFIG").map(PathBuf::from),
        topic_prefix: external("BACKBEAT_TOPIC_PREFIX").unwrap_or_default(),
    }
}

/// Removes the logs and port files of an earlier run.
fn remove_leftovers(dir: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log" || extension == "port") {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn start_programs(args: &Args, kafka: &KafkaArgs, dir: &Path, programs: &mut Programs) -> anyhow::Result<()> {
    let mut env = vec![
        ("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap_servers.clone()),
        ("SCHEMA_REGISTRY_URL", kafka.schema_registry.clone()),
        ("BACKBEAT_TOPIC_PREFIX", kafka.topic_prefix.clone()),
        ("BACKBEAT_CLUSTER", args.cluster.clone()),
    ];
    if let Some(path) = &kafka.kafka_config {
        env.push(("KAFKA_CONFIG", path.display().to_string()));
    }
    if let Some(path) = &kafka.schema_registry_ca {
        env.push(("SCHEMA_REGISTRY_CA", path.display().to_string()));
    }
    let flags = |pairs: &[(&str, String)]| {
        pairs.iter().flat_map(|(name, value)| [(*name).to_owned(), value.clone()]).collect::<Vec<_>>()
    };
    let mut services = Vec::new();

    let max_bpm = args.max_bpm.unwrap_or_else(|| args.bpm.max(24.0));
    let peer = |node: u16| Ok(format!("pulse-{node}=127.0.0.1:{}", free_port()?));
    let peers = (1..=args.nodes).map(peer).collect::<Result<Vec<_>, DevstackError>>()?.join(",");
    for node in 0..args.nodes {
        let port = if args.pulse_port == 0 { 0 } else { args.pulse_port + PULSE_PORT_OFFSETS[usize::from(node)] };
        let name = format!("pulse-{}", node + 1);
        let pulse = flags(&[
            ("--node", name.clone()),
            ("--peers", peers.clone()),
            ("--data-dir", dir.join("pulse").display().to_string()),
            ("--bpm", args.bpm.to_string()),
            ("--max-bpm", max_bpm.to_string()),
            ("--bar", args.bar.to_string()),
            ("--admin-port", port.to_string()),
        ]);
        services.push(programs.start_service(name, "pulse", pulse, &env, dir)?);
    }

    for member in 0..args.members {
        let port = if args.reverb_port == 0 { 0 } else { args.reverb_port + 2 * member };
        let name = format!("reverb-{}", member + 1);
        let reverb = flags(&[("--node", name.clone()), ("--admin-port", port.to_string())]);
        services.push(programs.start_service(name, "reverb", reverb, &env, dir)?);
    }

    let agents = flags(&[("--agents", args.agents.to_string()), ("--seed", args.seed.to_string())]);
    programs.start("agent-sim", "agent-sim", &agents, &env, dir)?;

    let services = services.into_iter().map(|starting| starting.wait(programs)).collect::<anyhow::Result<Vec<_>>>()?;
    for service in &services {
        print_line(&format!("{:<9} {}  log {}", service.name, service.url, service.log.display()))?;
    }
    DevState { services }.write(dir)
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

/// Prints each beat and each report until `shutdown`, or until a program ends.
fn print_beats_and_reports(
    args: &Args,
    kafka: &KafkaArgs,
    runtime: &Handle,
    programs: &mut Programs,
    mut warehouse: Option<&mut Warehouse>,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let broker = Broker::new(kafka, "backbeat-dev")?;
    let registry = Registry::new(kafka)?;
    let mut frames = reader_at_end::<BeatFrame>(&broker, &registry, runtime, TopicName::BeatFrames)?;
    let mut reports = reader_at_end::<BarReport>(&broker, &registry, runtime, TopicName::BarReports)?;
    let period = 60.0 / args.bpm;
    print_line(&format!(
        "one beat every {period:.1} s, one report every {:.1} s; Ctrl-C stops everything",
        period * f64::from(args.bar)
    ))?;
    let mut checked = Instant::now();
    let mut shown_rows = String::new();
    while !shutdown.is_cancelled() {
        if let Some(entry) = or_warn(frames.poll(POLL_TIMEOUT)) {
            print_line(&beat_line(&entry.record))?;
        }
        if let Some(entry) = or_warn(reports.poll(Duration::ZERO)) {
            print_line(&report_line(&entry.record))?;
        }
        if checked.elapsed() > CHECK_INTERVAL {
            programs.check()?;
            let rows = warehouse.as_mut().map(|warehouse| warehouse.row_summary()).transpose()?.unwrap_or_default();
            if rows != shown_rows {
                print_line(&format!("  ⇣ bar_reports has {rows}"))?;
                shown_rows = rows;
            }
            checked = Instant::now();
        }
    }
    Ok(())
}

/// Returns the polled record; logs an error and returns `None` instead. The caller polls again: an outage that lasts ends
/// the programs, and with them `backbeat dev`.
fn or_warn<T>(polled: Result<Option<T>, ReadError>) -> Option<T> {
    polled.unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read beats or reports");
        None
    })
}

/// Opens a reader of the records that are appended from now on.
fn reader_at_end<R: Record + 'static>(
    broker: &Broker,
    registry: &Registry,
    runtime: &Handle,
    topic: TopicName,
) -> anyhow::Result<LogReader<R>> {
    let mut reader = LogReader::new(broker, registry, runtime, topic)?;
    let end = reader.end_offset()?;
    reader.seek(end)?;
    Ok(reader)
}

fn beat_line(frame: &BeatFrame) -> String {
    let mark = if frame.downbeat { "●" } else { "○" };
    let phase = format!("{:?}", frame.phase).to_lowercase();
    format!("{mark} beat {:<6} {phase:<10} {} window {}", frame.beat_index, frame.emitted_at, frame.window_id)
}

fn report_line(report: &BarReport) -> String {
    format!(
        "  ▣ report beats {}-{}: {} agents, {} claims, {} reviews on time, {} done, {} failed, {} helped, rotations {}{}",
        report.from_beat,
        report.to_beat,
        report.agents_reporting,
        report.claims,
        report.on_time_reviews,
        report.tasks_done,
        report.tasks_failed,
        report.help_promises_fulfilled,
        if report.secret_rotations_ok { "ok" } else { "failed" },
        if report.issues.is_empty() { String::new() } else { format!("; {}", report.issues.join("; ")) },
    )
}

/// Prints a line to standard output and flushes it.
fn print_line(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
