//! A cluster at one moment, as its programs tell of themselves.

use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::bail;
use backbeat_schemas::Timestamp;
use reqwest::blocking::Client;
use serde_json::{Value, json};

use crate::dev_state::DevState;

const TIMEOUT: Duration = Duration::from_secs(2);
/// Where the compose file and the defaults have them.
const PULSE: [&str; 3] = ["http://localhost:8080", "http://localhost:8081", "http://localhost:8083"];
const REVERB: [&str; 2] = ["http://localhost:8082", "http://localhost:8084"];

/// Which programs to ask.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ProgramArgs {
    /// The directory of `backbeat dev`, which knows its programs.
    #[arg(long, default_value = ".backbeat")]
    dir: PathBuf,

    /// Pulse nodes. Without this and --reverb those of `backbeat dev`, or ports 8080, 8081 and 8083 of this machine.
    #[arg(long, value_name = "URL,...", value_delimiter = ',')]
    pulse: Vec<String>,

    /// Members of reverb's group. Without this and --pulse those of `backbeat dev`, or ports 8082 and 8084 of this machine.
    #[arg(long, value_name = "URL,...", value_delimiter = ',')]
    reverb: Vec<String>,
}

/// What the programs say.
pub(crate) struct Overview {
    pulse: Vec<Node>,
    reverb: Vec<Node>,
    /// The newest report that a member knows.
    last_report: Option<Value>,
}

/// A program, asked.
struct Node {
    url: String,
    /// Why it is not ready.
    trouble: Option<String>,
    /// Its `/api/v1/status`.
    status: Option<Value>,
}

impl ProgramArgs {
    /// The addresses of the pulse nodes and of reverb's members.
    fn programs(&self) -> anyhow::Result<(Vec<String>, Vec<String>)> {
        if !self.pulse.is_empty() || !self.reverb.is_empty() {
            return Ok((self.pulse.clone(), self.reverb.clone()));
        }
        let owned = |urls: &[&str]| urls.iter().map(|url| (*url).to_owned()).collect();
        Ok(match DevState::read(&self.dir)? {
            Some(dev) => (dev.urls("pulse"), dev.urls("reverb")),
            None => (owned(&PULSE), owned(&REVERB)),
        })
    }

    /// Asks all programs at once; an error if none answers.
    pub(crate) fn ask(&self) -> anyhow::Result<Overview> {
        let (pulse, reverb) = self.programs()?;
        let http = Client::builder().timeout(TIMEOUT).no_proxy().build()?;
        let (pulse, reverb) = thread::scope(|scope| {
            let asked = |urls: Vec<String>| {
                let http = &http;
                urls.into_iter().map(|url| scope.spawn(move || Node::ask(http, &url))).collect::<Vec<_>>()
            };
            let (pulse, reverb) = (asked(pulse), asked(reverb));
            let answered = |asked: Vec<thread::ScopedJoinHandle<'_, Node>>| {
                asked.into_iter().map(|node| node.join().expect("asking does not panic")).collect::<Vec<_>>()
            };
            (answered(pulse), answered(reverb))
        });
        if pulse.iter().chain(&reverb).all(|node| node.status.is_none()) {
            let urls: Vec<&str> = pulse.iter().chain(&reverb).map(|node| node.url.as_str()).collect();
            bail!(
                "nothing answers at {}: start it with `make run-dev`, or say where it runs (--pulse, --reverb)",
                urls.join(", ")
            );
        }
        let last_report = reverb.iter().find_map(|node| node.last_report(&http));
        Ok(Overview { pulse, reverb, last_report })
    }
}

impl Node {
    fn ask(http: &Client, url: &str) -> Self {
        let url = url.trim_end_matches('/').to_owned();
        let trouble = match http.get(format!("{url}/ready")).send() {
            Err(error) if error.is_timeout() => Some("does not answer in time".to_owned()),
            Err(_) => Some("does not answer".to_owned()),
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => {
                let body: Value = answer.json().unwrap_or_default();
                Some(body["error"].as_str().unwrap_or("is not ready, for no reason given").to_owned())
            }
        };
        let status = http.get(format!("{url}/api/v1/status")).send().and_then(reqwest::blocking::Response::json).ok();
        let strange = status.is_none().then(|| "answers, and not as a program of ours".to_owned());
        Self { url, trouble: trouble.or(strange), status }
    }

    fn last_report(&self, http: &Client) -> Option<Value> {
        self.status.as_ref()?;
        // The newest may be open still.
        let answer = http.get(format!("{}/api/v1/windows?limit=10", self.url)).send().ok()?;
        let body: Value = answer.json().ok()?;
        let mut reports = body["windows"].as_array()?.iter().map(|window| &window["report"]);
        reports.find(|report| !report.is_null()).cloned()
    }

    fn state(&self) -> &str {
        self.trouble.as_deref().unwrap_or("ready")
    }

    fn as_json(&self) -> Value {
        json!({ "url": self.url, "ready": self.trouble.is_none(), "trouble": self.trouble, "status": self.status })
    }
}

impl Overview {
    /// Whether every program is ready.
    pub(crate) fn is_well(&self) -> bool {
        self.pulse.iter().chain(&self.reverb).all(|node| node.trouble.is_none())
    }

    pub(crate) fn as_json(&self) -> Value {
        let nodes = |nodes: &[Node]| nodes.iter().map(Node::as_json).collect::<Vec<_>>();
        json!({ "pulse": nodes(&self.pulse), "reverb": nodes(&self.reverb), "last_report": self.last_report })
    }

    /// What the node that knows the newest beat says.
    fn newest(&self) -> Option<&Value> {
        let statuses = self.pulse.iter().filter_map(|node| node.status.as_ref());
        statuses.max_by_key(|status| status["beat"].as_i64())
    }
}

impl fmt::Display for Overview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.newest() {
            Some(status) if !status["beat"].is_null() => writeln!(f, "{}", heading(status))?,
            _ => writeln!(f, "no beat is known")?,
        }
        writeln!(f, "\npulse")?;
        for node in &self.pulse {
            writeln!(f, "{}", pulse_line(node))?;
        }
        writeln!(f, "\nreverb")?;
        for node in &self.reverb {
            writeln!(f, "{}", reverb_line(node))?;
        }
        writeln!(f, "\nlast report")?;
        match &self.last_report {
            Some(report) => writeln!(f, "{}", report_line(report))?,
            None => writeln!(f, "  none")?,
        }
        write!(f, "\nobjectives, p95 of the last 1,000")?;
        let kept = self.reverb.iter().filter_map(|node| node.status.as_ref()).max_by_key(|status| seen(status));
        for objective in kept.and_then(|status| status["objectives"].as_array()).into_iter().flatten() {
            write!(f, "\n{}", objective_line(objective))?;
        }
        Ok(())
    }
}

/// How many beats and reports a member's objectives rest on.
fn seen(status: &Value) -> i64 {
    status["objectives"].as_array().into_iter().flatten().filter_map(|objective| objective["samples"].as_i64()).sum()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

fn heading(status: &Value) -> String {
    let mut line = format!(
        "{}   beat {}, {} BPM in bars of {}, term {}, led by {}",
        text(&status["cluster_id"]),
        status["beat"],
        status["tempo_bpm"],
        status["bar_length"],
        status["term"],
        status["leader"].as_str().unwrap_or("nobody")
    );
    let pending = &status["pending"];
    if !pending.is_null() {
        let (tempo, from) = (&pending["tempo_bpm"], &pending["from_beat"]);
        let _ = write!(line, "; on the way to {tempo} BPM in bars of {} from beat {from}", pending["bar_length"]);
    }
    line
}

fn pulse_line(node: &Node) -> String {
    let Some(status) = &node.status else {
        return format!("  {:<18} {:<16} {}", "?", "", node_state(node));
    };
    let jitter = &status["jitter_ms"];
    let jitter = if jitter.is_null() { String::new() } else { format!("   jitter p95 {} ms", jitter["p95"]) };
    let (name, role) = (text(&status["node"]), text(&status["role"]));
    format!("  {name:<18} {role:<16} {}{jitter}", node_state(node))
}

fn reverb_line(node: &Node) -> String {
    let Some(status) = &node.status else {
        return format!("  {:<18} {:<16} {}", "?", "", node_state(node));
    };
    let partitions = status["partitions"].as_array().map_or(0, Vec::len);
    let role = if status["merging"] == true { "merges" } else { "" };
    let unread = status["lag_records"].as_i64().map_or_else(|| "?".to_owned(), |claims| claims.to_string());
    let open = &status["oldest_open_window"];
    let open = if open.is_null() {
        String::new()
    } else {
        format!(", oldest open window from beat {} ({} beats ago)", open["from_beat"], open["age_beats"])
    };
    format!(
        "  {:<18} {role:<16} {}   {partitions} partitions, {} beats behind, {unread} claims to read{open}",
        text(&status["name"]),
        node_state(node),
        status["lag_beats"]
    )
}

fn node_state(node: &Node) -> String {
    format!("{}  {}", node.url, node.state())
}

fn report_line(report: &Value) -> String {
    let age = serde_json::from_value::<Timestamp>(report["closed_at"].clone())
        .map(|closed| Timestamp::from_millis(chrono::Utc::now().timestamp_millis()).millis_since(closed) / 1_000);
    let age = age.map(|seconds| format!(", closed {seconds} s ago")).unwrap_or_default();
    let issues: Vec<&str> = report["issues"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let issues = if issues.is_empty() { String::new() } else { format!("\n  {}", issues.join("; ")) };
    format!(
        "  beats {}-{}{age}: {} agents, {} claims, {} late, {} invalid, {} tasks done, {} failed{issues}",
        report["from_beat"],
        report["to_beat"],
        report["agents_reporting"],
        report["claims"],
        report["late_claims"],
        report["invalid_claims"],
        report["tasks_done"],
        report["tasks_failed"]
    )
}

fn objective_line(objective: &Value) -> String {
    let verdict = match objective["holds"].as_bool() {
        Some(true) => "holds",
        Some(false) => "BROKEN",
        None => "nothing seen",
    };
    let number = |value: &Value| value.as_i64().map_or_else(|| "?".to_owned(), |number| number.to_string());
    let (p95, limit) = (number(&objective["p95_ms"]), number(&objective["limit_ms"]));
    format!("  {:<14} {p95:>6} ms of {limit} allowed   {verdict}", text(&objective["name"]))
}
