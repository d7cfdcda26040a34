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
const SETTLED_WITHIN: Duration = Duration::from_mins(2);
const FAILED_FOR: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);
/// The setting that names the topic by which Iceberg's sink agrees with itself; the sink does not create it.
const CONTROL_TOPIC: &str = "iceberg.control.topic";

/// Flags of `backbeat sinks`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat sinks                                                     the state of all sinks
  backbeat sinks connect/sinks/postgres.json                         start it, change it, or start it again
  backbeat sinks --from-beginning connect/sinks/postgres.json        and read every report again
  backbeat sinks --output json | jq 'select(.state != \"RUNNING\")'")]
pub(crate) struct Args {
    /// Configurations of sinks to start or change, as in connect/sinks; a sink has its file's name.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Let these sinks read their topics again, from the first record on.
    #[arg(long, requires = "files")]
    from_beginning: bool,

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
    let mut sinks = Vec::new();
    for file in &args.files {
        let name = file.file_stem().and_then(|stem| stem.to_str()).context("a file's name is the sink's")?;
        let config = read(file)?;
        if let Some(topic) = config[CONTROL_TOPIC].as_str() {
            let broker = Broker::new(&args.kafka, "backbeat-sinks")?;
            Runtime::new()?.block_on(ensure_topic(&broker, topic, args.replication_factor))?;
        }
        worker.apply(name, &config).with_context(|| file.display().to_string())?;
        if args.from_beginning {
            worker.rewind(name)?;
        }
        sinks.push(worker.settled(name)?);
    }
    if args.files.is_empty() {
        sinks = worker.sinks()?;
        if sinks.is_empty() {
            tracing::info!("no sinks yet: `backbeat sinks connect/sinks/postgres.json` starts one");
        }
    }
    for sink in &sinks {
        args.output.say(|| sink.to_string(), || sink.as_json());
    }
    Ok(if sinks.iter().all(Sink::runs) { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
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
pub(crate) struct Sink {
    name: String,
    state: String,
    /// Why it failed.
    cause: Option<String>,
    tasks: Vec<Task>,
}

struct Task {
    state: String,
    cause: Option<String>,
}

impl Worker {
    pub(crate) fn new(url: &str) -> anyhow::Result<Self> {
        let http = Client::builder().timeout(TIMEOUT).no_proxy().build()?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), http })
    }

    fn path(&self, rest: &str) -> String {
        format!("{}/connectors{rest}", self.url)
    }

    /// Starts the sink `name` with `config`; one that is there is changed and started again, since what failed stays
    /// so otherwise.
    pub(crate) fn apply(&self, name: &str, config: &Value) -> anyhow::Result<()> {
        let status = self.insist(|| self.http.put(self.path(&format!("/{name}/config"))).json(config))?;
        if status == StatusCode::OK {
            self.insist(|| self.http.put(self.path(&format!("/{name}/resume"))))?;
            // From here on its states are of the new run.
            self.insist(|| self.http.post(self.path(&format!("/{name}/restart?includeTasks=true"))))?;
        }
        Ok(())
    }

    /// Lets `name` begin with the first record of its topics.
    pub(crate) fn rewind(&self, name: &str) -> anyhow::Result<()> {
        self.insist(|| self.http.put(self.path(&format!("/{name}/stop"))))?;
        // Until the last task has gone the worker refuses.
        self.insist(|| self.http.delete(self.path(&format!("/{name}/offsets"))))?;
        self.insist(|| self.http.put(self.path(&format!("/{name}/resume")))).map(drop)
    }

    /// Sends a request again while the worker is busy with its group or with ending tasks.
    fn insist(&self, request: impl Fn() -> RequestBuilder) -> anyhow::Result<StatusCode> {
        let deadline = Instant::now() + SETTLED_WITHIN;
        loop {
            let (status, body) = self.ask(request())?;
            let is_busy = status == StatusCode::CONFLICT
                || status.is_server_error()
                || reason(&body).contains("must be in the STOPPED state");
            if status.is_success() {
                return Ok(status);
            }
            if !is_busy || Instant::now() > deadline {
                bail!("Kafka Connect refuses it: {}", reason(&body));
            }
            thread::sleep(PAUSE);
        }
    }

    /// The sink `name`, once it and its tasks run, or one has failed and stays so.
    pub(crate) fn settled(&self, name: &str) -> anyhow::Result<Sink> {
        let deadline = Instant::now() + SETTLED_WITHIN;
        // Until then a failure may be one of before it was started again.
        let believed = Instant::now() + FAILED_FOR;
        loop {
            let found = self.sinks()?.into_iter().find(|sink| sink.name == name);
            match found {
                Some(sink) if sink.runs() || Instant::now() > deadline => return Ok(sink),
                Some(sink) if sink.failed() && Instant::now() > believed => return Ok(sink),
                None if Instant::now() > deadline => bail!("Kafka Connect has taken {name} and does not start it"),
                _ => thread::sleep(PAUSE),
            }
        }
    }

    fn sinks(&self) -> anyhow::Result<Vec<Sink>> {
        let (status, body) = self.ask(self.http.get(self.path("?expand=status")))?;
        match body.as_object() {
            Some(sinks) if status.is_success() => {
                Ok(sinks.iter().map(|(name, sink)| Sink::new(name, &sink["status"])).collect())
            }
            _ => bail!("{} answers {status}, and not as Kafka Connect does: {}", self.url, reason(&body)),
        }
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
        let task = |task: &Value| Task { state: text(&task["state"]), cause: cause(task) };
        let connector = &status["connector"];
        let tasks = status["tasks"].as_array().into_iter().flatten().map(task).collect();
        Self { name: name.to_owned(), state: text(&connector["state"]), cause: cause(connector), tasks }
    }

    pub(crate) fn runs(&self) -> bool {
        self.state == "RUNNING" && !self.tasks.is_empty() && self.tasks.iter().all(|task| task.state == "RUNNING")
    }

    fn failed(&self) -> bool {
        self.state == "FAILED" || self.tasks.iter().any(|task| task.state == "FAILED")
    }

    fn as_json(&self) -> Value {
        let task = |task: &Task| json!({ "state": task.state, "cause": task.cause });
        let tasks: Vec<Value> = self.tasks.iter().map(task).collect();
        json!({ "name": self.name, "state": self.state, "cause": self.cause, "tasks": tasks })
    }
}

/// The last cause in a stack trace: the first line is Connect's own, whatever went wrong.
fn cause(of: &Value) -> Option<String> {
    let trace = of["trace"].as_str()?;
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
