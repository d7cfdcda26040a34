//! `backbeat sinks`: the sinks of a worker of Kafka Connect.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use backbeat_broker::{Broker, KafkaArgs, ensure_topic};
use reqwest::StatusCode;
use reqwest::blocking::{Client, RequestBuilder};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::output::{FOUND, OutputArgs};

/// A worker that has lost another waits for it before it hands the tasks out again.
const RUNS_WITHIN: Duration = Duration::from_mins(2);
const TIMEOUT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);
/// The setting that names the topic by which Iceberg's sink agrees with itself; the sink does not create it.
const CONTROL_TOPIC: &str = "iceberg.control.topic";

/// Flags of `backbeat sinks`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat sinks                                                    the state of all sinks
  backbeat sinks connect/sinks/postgres.json                        start it, or change it
  backbeat sinks --output json | jq 'select(.state != \"RUNNING\")'")]
pub(crate) struct Args {
    /// Configurations of sinks to start or change, as in connect/sinks; a sink has its file's name.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,

    /// The REST API of a worker of Kafka Connect.
    #[arg(long, env = "BACKBEAT_CONNECT_URL", default_value = "http://localhost:8090")]
    connect_url: String,

    /// Copies of a topic that a sink needs and that is not there.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..))]
    replication_factor: i32,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    kafka: KafkaArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let worker = Worker::new(&args.connect_url)?;
    for file in &args.files {
        let name = file.file_stem().and_then(|stem| stem.to_str()).context("a file's name is the sink's")?;
        let config = read(file)?;
        if let Some(topic) = config[CONTROL_TOPIC].as_str() {
            let broker = Broker::new(&args.kafka, "backbeat-sinks")?;
            Runtime::new()?.block_on(ensure_topic(&broker, topic, args.replication_factor))?;
        }
        worker.apply(name, &config).with_context(|| file.display().to_string())?;
        worker.wait_until_runs(name)?;
    }
    let mut all_run = true;
    for sink in worker.sinks()? {
        all_run &= sink.runs();
        args.output.say(|| sink.to_string(), || sink.as_json());
    }
    Ok(if all_run { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

fn read(file: &Path) -> anyhow::Result<Value> {
    let text = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let config: Value = serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", file.display()))?;
    if config.is_object() { Ok(config) } else { bail!("{}: a configuration is a JSON object", file.display()) }
}

/// The REST API of a worker.
pub(crate) struct Worker {
    url: String,
    http: Client,
}

/// What a sink does.
struct Sink {
    name: String,
    state: String,
    /// Each task's state, and the first line of why it failed.
    tasks: Vec<(String, Option<String>)>,
}

impl Worker {
    pub(crate) fn new(url: &str) -> anyhow::Result<Self> {
        let http = Client::builder().timeout(TIMEOUT).no_proxy().build()?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), http })
    }

    /// Starts the sink `name` with `config`, or changes it.
    pub(crate) fn apply(&self, name: &str, config: &Value) -> anyhow::Result<()> {
        let url = format!("{}/connectors/{name}/config", self.url);
        let deadline = Instant::now() + RUNS_WITHIN;
        loop {
            match self.ask(self.http.put(&url).json(config))? {
                (StatusCode::CONFLICT, _) if Instant::now() < deadline => thread::sleep(PAUSE), // it rebalances
                (status, _) if status.is_success() => return Ok(()),
                (_, body) => bail!("Kafka Connect refuses it: {}", reason(&body)),
            }
        }
    }

    /// Waits until `name` and its tasks run; an error if one fails.
    pub(crate) fn wait_until_runs(&self, name: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + RUNS_WITHIN;
        loop {
            let found = self.sinks()?.into_iter().find(|sink| sink.name == name);
            match found {
                Some(sink) if sink.runs() => return Ok(()),
                Some(sink) if sink.failed() => bail!("{sink}"),
                found if Instant::now() > deadline => {
                    let state = found.map_or_else(|| "is not there".to_owned(), |sink| sink.to_string());
                    bail!("{name} does not run within {} s: {state}; see the worker's log", RUNS_WITHIN.as_secs());
                }
                _ => thread::sleep(PAUSE),
            }
        }
    }

    fn sinks(&self) -> anyhow::Result<Vec<Sink>> {
        let (status, body) = self.ask(self.http.get(format!("{}/connectors?expand=status", self.url)))?;
        if !status.is_success() {
            bail!("Kafka Connect at {} answers {status}: {}", self.url, reason(&body));
        }
        Ok(body.as_object().into_iter().flatten().map(|(name, sink)| Sink::new(name, &sink["status"])).collect())
    }

    fn ask(&self, request: RequestBuilder) -> anyhow::Result<(StatusCode, Value)> {
        let answer = request.send();
        let answer = answer.with_context(|| {
            format!("Kafka Connect at {} does not answer; is a worker there? (--connect-url)", self.url)
        })?;
        Ok((answer.status(), answer.json().unwrap_or_default()))
    }
}

fn reason(body: &Value) -> &str {
    body["message"].as_str().unwrap_or("no reason given")
}

impl Sink {
    fn new(name: &str, status: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or("UNKNOWN").to_owned();
        let task = |task: &Value| {
            let trace = task["trace"].as_str();
            // The first line is Connect's own; the last cause says what is wrong.
            let cause = trace
                .and_then(|trace| trace.lines().rfind(|line| line.starts_with("Caused by")).or(trace.lines().next()));
            (text(&task["state"]), cause.map(str::to_owned))
        };
        let tasks = status["tasks"].as_array().into_iter().flatten().map(task).collect();
        Self { name: name.to_owned(), state: text(&status["connector"]["state"]), tasks }
    }

    fn runs(&self) -> bool {
        self.state == "RUNNING" && !self.tasks.is_empty() && self.tasks.iter().all(|(state, _)| state == "RUNNING")
    }

    fn failed(&self) -> bool {
        self.state == "FAILED" || self.tasks.iter().any(|(state, _)| state == "FAILED")
    }

    fn as_json(&self) -> Value {
        let tasks: Vec<Value> =
            self.tasks.iter().map(|(state, cause)| json!({ "state": state, "cause": cause })).collect();
        json!({ "name": self.name, "state": self.state, "tasks": tasks })
    }
}

impl fmt::Display for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<18} {:<10} ", self.name, self.state)?;
        match self.tasks.iter().find(|(state, _)| state != "RUNNING") {
            _ if self.tasks.is_empty() => write!(f, "no task yet"),
            None => write!(f, "{} of {} tasks run", self.tasks.len(), self.tasks.len()),
            Some((state, cause)) => {
                write!(f, "a task is {state}: {}", cause.as_deref().unwrap_or("no reason given; see the worker's log"))
            }
        }
    }
}
