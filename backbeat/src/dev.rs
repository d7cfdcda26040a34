//! `backbeat dev`: runs a whole cluster on this machine.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use backbeat_broker::{KafkaArgs, without_credentials};
use backbeat_devstack::{Options, Stack};
use backbeat_service::Shutdown;
use tokio::runtime::Runtime;

use self::programs::Programs;
use crate::dev_state::DevState;
use crate::topics;
use crate::warehouse::Warehouse;

mod live_view;
mod programs;

const POLL_TIMEOUT: Duration = Duration::from_millis(20);

/// Flags of `backbeat dev`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat dev --bpm 120 --bar 8 --agents 200
  backbeat dev --connect                         also writes reports to PostgreSQL
  backbeat dev --kafka-port 0 --registry-port 0 --pulse-port 0 --reverb-port 0 --ui-port 0 --dir /tmp/second")]
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

    /// Simulate agents without trouble. By default some fall silent, stall, spend their budgets, or send claims that are late or
    /// invalid.
    #[arg(long)]
    no_trouble: bool,

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

    /// Port of the page, see `backbeat ui`; 0 chooses a free one.
    #[arg(long, default_value_t = 8086)]
    ui_port: u16,

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

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = Runtime::new()?;
    let shutdown = backbeat_service::on_signals_in(runtime.handle())?;
    let dir = prepare_dir(&args.dir)?;
    let stack = start_stack(args, &dir)?;
    let outcome = run_on(&stack, args, &dir, &runtime, &shutdown);
    if let Stack::Local(stack) = stack {
        stack.stop();
    }
    DevState::remove(&dir);
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Creates `dir` and removes the logs and port files of an earlier run.
fn prepare_dir(dir: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log" || extension == "port") {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(dir.canonicalize()?)
}

/// Starts Kafka and the registry, if the environment names none.
fn start_stack(args: &Args, dir: &Path) -> anyhow::Result<Stack> {
    print_line(&format!("starting kafka and the schema registry; data and logs are in {}", args.dir.display()))?;
    let options = Options {
        brokers: 1,
        kafka_port: args.kafka_port,
        registry_port: args.registry_port,
        dir: dir.to_owned(),
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
    Ok(stack)
}

/// Runs the programs on `stack` until `shutdown` or until one ends, and stops them.
fn run_on(stack: &Stack, args: &Args, dir: &Path, runtime: &Runtime, shutdown: &Shutdown) -> anyhow::Result<()> {
    let kafka = kafka_args(stack);
    let registry = without_credentials(&kafka.schema_registry);
    print_line(&format!("kafka {}, schema registry {registry}", kafka.bootstrap_servers))?;
    // Dropped in the reverse order: the warehouse stops first.
    let mut programs = Programs::new(&args.cluster, &kafka, dir);
    let mut warehouse = None;
    let settings =
        topics::TopicSettings { claim_partitions: args.claim_partitions, replication_factor: 1, kafka: kafka.clone() };
    runtime.block_on(shutdown.run_until_cancelled(topics::ensure(&settings))).transpose()?;
    if !shutdown.is_cancelled() {
        programs.start_all(args)?;
    }
    if let (true, Stack::Local(stack), false) = (args.connect, stack, shutdown.is_cancelled()) {
        print_line("starting postgresql and kafka connect")?;
        let started = Warehouse::start(stack.as_ref(), args.connect_port, args.postgres_port, dir)?;
        print_line(&format!("postgres  {}  table bar_reports", started.postgres_url()))?;
        print_line(&format!("connect   {}  log {}", started.connect_url(), started.log().display()))?;
        warehouse = Some(started);
    }
    let outcome =
        live_view::print_beats_and_reports(args, &kafka, runtime.handle(), &mut programs, warehouse.as_mut(), shutdown);
    print_line("stopping")?;
    outcome
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

/// Prints a line to standard output and flushes it.
fn print_line(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
