//! `backbeat sinks`: shows and starts the sinks of a Connect worker.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use backbeat_broker::{Broker, KafkaArgs, ensure_group_offset, ensure_topic};
use reqwest::StatusCode;
use reqwest::blocking::{Client, RequestBuilder};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::output::{EXIT_PROBLEM_FOUND, OutputArgs};

/// The time in which Connect must accept a request, and in which a sink must start. It includes a rebalance: when a
/// worker is lost, Connect waits for its return before it reassigns the tasks.
const START_TIMEOUT: Duration = Duration::from_mins(2);
/// The time after a restart for which Connect may still show a failed state from before the restart.
const STALE_STATE_PERIOD: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const RETRY_BACKOFF: Duration = Duration::from_millis(200);
/// The setting that names the topic through which the tasks of Iceberg's sink coordinate; the sink does not create it.
const CONTROL_TOPIC: &str = "iceberg.control.topic";
/// The setting that names the consumer group of Iceberg's sink, if it is another than Connect's.
const GROUP: &str = "iceberg.connect.group-id";

/// Flags of `backbeat sinks`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat sinks                                                     the state of all sinks
  backbeat sinks connect/sinks/postgres.json                         create, update or restart this sink
  backbeat sinks --from-beginning connect/sinks/postgres.json        also read every report again
  backbeat sinks --output json | jq 'select(.state != \"RUNNING\")'")]
pub(crate) struct Args {
    /// Configurations of sinks to create or update, such as those in connect/sinks; a sink is named after its file.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Reset the offsets of these sinks, so that they read their topics from the first record.
    #[arg(long, requires = "files")]
    from_beginning: bool,

    /// URL of a Connect worker's REST API.
    #[arg(long, env = "BACKBEAT_CONNECT_URL", default_value = "http://localhost:8090")]
    connect_url: String,

    /// Replication factor of a control topic that a sink needs and that does not exist.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..))]
    replication_factor: i32,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    kafka: KafkaArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let worker = ConnectWorker::new(&args.connect_url)?;
    let mut sinks = Vec::new();
    for file in &args.files {
        let name = file.file_stem().and_then(|stem| stem.to_str());
        let name = name.with_context(|| format!("cannot name the sink: {} has no file name", file.display()))?;
        let config = read(file)?;
        if let Some(topic) = config[CONTROL_TOPIC].as_str() {
            let broker = Broker::new(&args.kafka, "backbeat-sinks")?;
            Runtime::new()?.block_on(ensure_topic(&broker, topic, args.replication_factor))?;
            // Without an offset, a new coordinator of the sink begins at the end of its control topic: what its tasks had
            // announced, and a coordinator that died had not yet committed to the table, is never committed
            // (apache/iceberg#18006).
            let group = config[GROUP].as_str().map_or_else(|| format!("connect-{name}"), str::to_owned);
            ensure_group_offset(&broker, topic, &format!("{group}-coord"))?;
        }
        worker.apply(name, &config).with_context(|| file.display().to_string())?;
        if args.from_beginning {
            worker.reset_offsets(name)?;
        }
        sinks.push(worker.wait_until_started(name)?);
    }
    if args.files.is_empty() {
        sinks = worker.sinks()?;
        if sinks.is_empty() {
            tracing::info!("the worker has no sinks; `backbeat sinks connect/sinks/postgres.json` creates one");
        }
    }
    for sink in &sinks {
        args.output.print(|| sink.to_string(), || sink.as_json());
    }
    Ok(if sinks.iter().all(Sink::is_running) { ExitCode::SUCCESS } else { ExitCode::from(EXIT_PROBLEM_FOUND) })
}

fn read(file: &Path) -> anyhow::Result<Value> {
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let config: Value = serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", file.display()))?;
    if config.is_object() { Ok(config) } else { bail!("{} is not a JSON object", file.display()) }
}

/// A client of a Connect worker's REST API.
pub(crate) struct ConnectWorker {
    url: String,
    http: Client,
}

/// The state of a sink connector and its tasks.
pub(crate) struct Sink {
    name: String,
    state: String,
    /// The cause of its failure.
    cause: Option<String>,
    tasks: Vec<Task>,
}

struct Task {
    state: String,
    cause: Option<String>,
}

impl ConnectWorker {
    pub(crate) fn new(url: &str) -> anyhow::Result<Self> {
        let http = Client::builder().timeout(REQUEST_TIMEOUT).no_proxy().build()?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), http })
    }

    fn path(&self, rest: &str) -> String {
        format!("{}/connectors{rest}", self.url)
    }

    /// Creates the sink `name` with `config`, or updates it. An existing sink is also restarted, because a failed one
    /// stays failed otherwise.
    pub(crate) fn apply(&self, name: &str, config: &Value) -> anyhow::Result<()> {
        let status = self.send_with_retry(|| self.http.put(self.path(&format!("/{name}/config"))).json(config))?;
        if status == StatusCode::OK {
            self.send_with_retry(|| self.http.put(self.path(&format!("/{name}/resume"))))?;
            // Connect reports the states of the new run from here on.
            self.send_with_retry(|| self.http.post(self.path(&format!("/{name}/restart?includeTasks=true"))))?;
        }
        Ok(())
    }

    /// Resets the offsets of the sink `name`, so that it reads its topics from the first record.
    pub(crate) fn reset_offsets(&self, name: &str) -> anyhow::Result<()> {
        self.send_with_retry(|| self.http.put(self.path(&format!("/{name}/stop"))))?;
        // Connect refuses this until the last task has stopped.
        self.send_with_retry(|| self.http.delete(self.path(&format!("/{name}/offsets"))))?;
        self.send_with_retry(|| self.http.put(self.path(&format!("/{name}/resume")))).map(drop)
    }

    /// Sends a request; retries while the worker rebalances, has an internal error, or is stopping tasks.
    fn send_with_retry(&self, request: impl Fn() -> RequestBuilder) -> anyhow::Result<StatusCode> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let (status, body) = self.send(request())?;
            let is_busy = status == StatusCode::CONFLICT
                || status.is_server_error()
                || error_message(&body).contains("must be in the STOPPED state");
            if status.is_success() {
                return Ok(status);
            }
            if !is_busy || Instant::now() > deadline {
                bail!("Kafka Connect refused the request: {}", error_message(&body));
            }
            thread::sleep(RETRY_BACKOFF);
        }
    }

    /// Waits until the sink `name` and all its tasks are running, or one of them has failed and stays so.
    pub(crate) fn wait_until_started(&self, name: &str) -> anyhow::Result<Sink> {
        let deadline = Instant::now() + START_TIMEOUT;
        let stale_until = Instant::now() + STALE_STATE_PERIOD;
        loop {
            let found = self.sinks()?.into_iter().find(|sink| sink.name == name);
            match found {
                Some(sink) if sink.is_running() || Instant::now() > deadline => return Ok(sink),
                Some(sink) if sink.has_failed() && Instant::now() > stale_until => return Ok(sink),
                None if Instant::now() > deadline => bail!("Kafka Connect accepted {name} but has not started it"),
                _ => thread::sleep(RETRY_BACKOFF),
            }
        }
    }

    fn sinks(&self) -> anyhow::Result<Vec<Sink>> {
        let (status, body) = self.send(self.http.get(self.path("?expand=status")))?;
        match body.as_object() {
            Some(sinks) if status.is_success() => {
                Ok(sinks.iter().map(|(name, sink)| Sink::new(name, &sink["status"])).collect())
            }
            _ => bail!("{} answered {status}, not as Kafka Connect does: {}", self.url, error_message(&body)),
        }
    }

    fn send(&self, request: RequestBuilder) -> anyhow::Result<(StatusCode, Value)> {
        let response = request.send();
        let response = response.with_context(|| {
            format!("Kafka Connect at {} does not answer; is a Connect worker running there? (--connect-url)", self.url)
        })?;
        Ok((response.status(), response.json().unwrap_or_default()))
    }
}

fn error_message(body: &Value) -> &str {
    body["message"].as_str().unwrap_or("no reason given")
}

impl Sink {
    fn new(name: &str, status: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or("UNKNOWN").to_owned();
        let task = |task: &Value| Task { state: text(&task["state"]), cause: cause(task) };
        let connector = &status["connector"];
        let tasks = status["tasks"].as_array().into_iter().flatten().map(task).collect();
        Self { name: name.to_owned(), state: text(&connector["state"]), cause: cause(connector), tasks }
    }

    /// Returns true if the sink and all its tasks are running.
    pub(crate) fn is_running(&self) -> bool {
        self.state == "RUNNING" && !self.tasks.is_empty() && self.tasks.iter().all(|task| task.state == "RUNNING")
    }

    fn has_failed(&self) -> bool {
        self.state == "FAILED" || self.tasks.iter().any(|task| task.state == "FAILED")
    }

    fn as_json(&self) -> Value {
        let task = |task: &Task| json!({ "state": task.state, "cause": task.cause });
        let tasks: Vec<Value> = self.tasks.iter().map(task).collect();
        json!({ "name": self.name, "state": self.state, "cause": self.cause, "tasks": tasks })
    }
}

/// Returns the last cause in the stack trace of a failed connector or task; the first line is the same for all
/// failures.
fn cause(status: &Value) -> Option<String> {
    let trace = status["trace"].as_str()?;
    trace.lines().rfind(|line| line.starts_with("Caused by")).or(trace.lines().next()).map(str::to_owned)
}

impl fmt::Display for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<18} {:<10} ", self.name, self.state)?;
        if let Some(cause) = &self.cause {
            return write!(f, "{cause}");
        }
        match self.tasks.iter().find(|task| task.state != "RUNNING") {
            None => write!(f, "tasks running: {}", self.tasks.len()),
            Some(Task { state, cause: Some(cause) }) => write!(f, "a task is {state}: {cause}"),
            Some(Task { state, cause: None }) => write!(f, "a task is {state}"),
        }
    }
}
