//! The cluster's status at one moment, fetched from the HTTP APIs of its programs.

use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::bail;
use backbeat_schemas::Timestamp;
use reqwest::blocking::Client;
use serde_json::{Value, json};

use crate::dev_state::DevState;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// The addresses in the compose file and of programs started with default flags.
const DEFAULT_PULSE_URLS: [&str; 3] = ["http://localhost:8080", "http://localhost:8081", "http://localhost:8083"];
const DEFAULT_REVERB_URLS: [&str; 2] = ["http://localhost:8082", "http://localhost:8084"];

/// The programs whose status is fetched.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ProgramArgs {
    /// The directory of `backbeat dev`, which has the addresses of its programs.
    #[arg(long, default_value = ".backbeat")]
    dir: PathBuf,

    /// URLs of pulse nodes. Without --pulse and --reverb: those of `backbeat dev`, else localhost ports 8080, 8081, 8083.
    #[arg(long, value_name = "URL,...", value_delimiter = ',')]
    pulse: Vec<String>,

    /// URLs of reverb members. Without --pulse and --reverb: those of `backbeat dev`, else localhost ports 8082, 8084.
    #[arg(long, value_name = "URL,...", value_delimiter = ',')]
    reverb: Vec<String>,
}

/// The status of all programs of a cluster.
pub(crate) struct Overview {
    pulse: Vec<ProgramStatus>,
    reverb: Vec<ProgramStatus>,
    /// The newest report that a reverb member has.
    last_report: Option<Value>,
}

/// The status of one program.
struct ProgramStatus {
    url: String,
    /// The reason why it is not ready.
    problem: Option<String>,
    /// The response of `/api/v1/status`.
    status: Option<Value>,
}

impl ProgramArgs {
    /// Returns the URLs of the pulse nodes and of the reverb members.
    fn urls(&self) -> anyhow::Result<(Vec<String>, Vec<String>)> {
        if !self.pulse.is_empty() || !self.reverb.is_empty() {
            return Ok((self.pulse.clone(), self.reverb.clone()));
        }
        let owned = |urls: &[&str]| urls.iter().map(|url| (*url).to_owned()).collect();
        Ok(match DevState::read(&self.dir)? {
            Some(dev) => (dev.urls("pulse"), dev.urls("reverb")),
            None => (owned(&DEFAULT_PULSE_URLS), owned(&DEFAULT_REVERB_URLS)),
        })
    }

    /// Fetches the status of all programs in parallel; returns an error if none answers.
    pub(crate) fn fetch(&self) -> anyhow::Result<Overview> {
        let (pulse, reverb) = self.urls()?;
        let http = Client::builder().timeout(REQUEST_TIMEOUT).no_proxy().build()?;
        let (pulse, reverb) = thread::scope(|scope| {
            let spawn = |urls: Vec<String>| {
                let http = &http;
                urls.into_iter().map(|url| scope.spawn(move || ProgramStatus::fetch(http, &url))).collect::<Vec<_>>()
            };
            let (pulse, reverb) = (spawn(pulse), spawn(reverb));
            let join = |threads: Vec<thread::ScopedJoinHandle<'_, ProgramStatus>>| {
                threads.into_iter().map(|thread| thread.join().expect("fetching does not panic")).collect::<Vec<_>>()
            };
            (join(pulse), join(reverb))
        });
        if pulse.iter().chain(&reverb).all(|program| program.status.is_none()) {
            let urls: Vec<&str> = pulse.iter().chain(&reverb).map(|program| program.url.as_str()).collect();
            bail!(
                "nothing answers at {}: start a cluster with `make run-dev`, or give its URLs (--pulse, --reverb)",
                urls.join(", ")
            );
        }
        let last_report = reverb.iter().find_map(|member| member.last_report(&http));
        Ok(Overview { pulse, reverb, last_report })
    }
}

impl ProgramStatus {
    fn fetch(http: &Client, url: &str) -> Self {
        let url = url.trim_end_matches('/').to_owned();
        let problem = match http.get(format!("{url}/ready")).send() {
            Err(error) if error.is_timeout() => Some("timeout".to_owned()),
            Err(_) => Some("does not answer".to_owned()),
            Ok(response) if response.status().is_success() => None,
            Ok(response) => {
                let body: Value = response.json().unwrap_or_default();
                Some(body["error"].as_str().unwrap_or("not ready, no reason given").to_owned())
            }
        };
        let status = http.get(format!("{url}/api/v1/status")).send().and_then(reqwest::blocking::Response::json).ok();
        let foreign = status.is_none().then(|| "answers, but is not a BACKBEAT program".to_owned());
        Self { url, problem: problem.or(foreign), status }
    }

    fn last_report(&self, http: &Client) -> Option<Value> {
        self.status.as_ref()?;
        // The newest windows may still be open.
        let response = http.get(format!("{}/api/v1/windows?limit=10", self.url)).send().ok()?;
        let body: Value = response.json().ok()?;
        let mut reports = body["windows"].as_array()?.iter().map(|window| &window["report"]);
        reports.find(|report| !report.is_null()).cloned()
    }

    fn readiness(&self) -> &str {
        self.problem.as_deref().unwrap_or("ready")
    }

    fn as_json(&self) -> Value {
        json!({ "url": self.url, "ready": self.problem.is_none(), "trouble": self.problem, "status": self.status })
    }
}

impl Overview {
    /// Returns true if every program is ready.
    pub(crate) fn is_ready(&self) -> bool {
        self.pulse.iter().chain(&self.reverb).all(|program| program.problem.is_none())
    }

    pub(crate) fn as_json(&self) -> Value {
        let list = |programs: &[ProgramStatus]| programs.iter().map(ProgramStatus::as_json).collect::<Vec<_>>();
        json!({ "pulse": list(&self.pulse), "reverb": list(&self.reverb), "last_report": self.last_report })
    }

    /// Returns the status of the pulse node that has the newest beat.
    fn newest_pulse_status(&self) -> Option<&Value> {
        let statuses = self.pulse.iter().filter_map(|node| node.status.as_ref());
        statuses.max_by_key(|status| status["beat"].as_i64())
    }
}

impl fmt::Display for Overview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.newest_pulse_status() {
            Some(status) if !status["beat"].is_null() => writeln!(f, "{}", heading(status))?,
            _ => writeln!(f, "no beat has been published yet")?,
        }
        writeln!(f, "\npulse")?;
        for node in &self.pulse {
            writeln!(f, "{}", pulse_line(node))?;
        }
        writeln!(f, "\nreverb")?;
        for member in &self.reverb {
            writeln!(f, "{}", reverb_line(member))?;
        }
        writeln!(f, "\nlast report")?;
        match &self.last_report {
            Some(report) => writeln!(f, "{}", report_line(report))?,
            None => writeln!(f, "  none")?,
        }
        write!(f, "\nSLOs, p95 of the last 1,000")?;
        // The members measure the same SLOs: the one with the most samples is shown.
        let statuses = self.reverb.iter().filter_map(|member| member.status.as_ref());
        let shown = statuses.max_by_key(|status| sample_count(status));
        for slo in shown.and_then(|status| status["objectives"].as_array()).into_iter().flatten() {
            write!(f, "\n{}", slo_line(slo))?;
        }
        Ok(())
    }
}

/// Returns the number of samples behind the SLOs in a member's status.
fn sample_count(status: &Value) -> i64 {
    status["objectives"].as_array().into_iter().flatten().filter_map(|slo| slo["samples"].as_i64()).sum()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

fn heading(status: &Value) -> String {
    let mut line = format!(
        "{}   beat {}, {} BPM in bars of {}, term {}, {}",
        text(&status["cluster_id"]),
        status["beat"],
        status["tempo_bpm"],
        status["bar_length"],
        status["term"],
        status["leader"].as_str().map_or_else(|| "no leader".to_owned(), |leader| format!("led by {leader}"))
    );
    let pending = &status["pending"];
    if !pending.is_null() {
        let (tempo, from) = (&pending["tempo_bpm"], &pending["from_beat"]);
        let _ = write!(line, "; changing to {tempo} BPM in bars of {} from beat {from}", pending["bar_length"]);
    }
    line
}

fn pulse_line(node: &ProgramStatus) -> String {
    let Some(status) = &node.status else {
        return format!("  {:<18} {:<16} {}", "?", "", url_and_readiness(node));
    };
    let jitter = &status["jitter_ms"];
    let jitter = if jitter.is_null() { String::new() } else { format!("   jitter p95 {} ms", jitter["p95"]) };
    let (name, role) = (text(&status["node"]), text(&status["role"]));
    format!("  {name:<18} {role:<16} {}{jitter}", url_and_readiness(node))
}

fn reverb_line(member: &ProgramStatus) -> String {
    let Some(status) = &member.status else {
        return format!("  {:<18} {:<16} {}", "?", "", url_and_readiness(member));
    };
    let partitions = status["partitions"].as_array().map_or(0, Vec::len);
    let role = if status["merging"] == true { "merge" } else { "" };
    let lag_claims = status["lag_records"].as_i64().map_or_else(|| "?".to_owned(), |claims| claims.to_string());
    let open = &status["oldest_open_window"];
    let open = if open.is_null() {
        String::new()
    } else {
        format!(", oldest open window from beat {} ({} beats ago)", open["from_beat"], open["age_beats"])
    };
    format!(
        "  {:<18} {role:<16} {}   {partitions} partitions, lag {} beats, {lag_claims} claims{open}",
        text(&status["name"]),
        url_and_readiness(member),
        status["lag_beats"]
    )
}

fn url_and_readiness(program: &ProgramStatus) -> String {
    format!("{}  {}", program.url, program.readiness())
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

fn slo_line(slo: &Value) -> String {
    let state = match slo["holds"].as_bool() {
        Some(true) => "met",
        Some(false) => "violated",
        None => "no samples",
    };
    let number = |value: &Value| value.as_i64().map_or_else(|| "?".to_owned(), |number| number.to_string());
    let (p95, limit) = (number(&slo["p95_ms"]), number(&slo["limit_ms"]));
    format!("  {:<14} {p95:>6} ms of {limit} allowed   {state}", text(&slo["name"]))
}
