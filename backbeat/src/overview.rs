//! The cluster's status at one moment, fetched from the HTTP APIs of its programs.

use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::bail;
use backbeat_http_api::{ErrorBody, pulse, reverb};
use backbeat_schemas::{BarReport, BeatFrame};
use reqwest::blocking::Client;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::dev_state::DevState;
use crate::now;

const TIMEOUT: &str = "timeout";
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
    pulse: Vec<ProgramStatus<pulse::StatusBody>>,
    reverb: Vec<ProgramStatus<reverb::StatusBody>>,
    /// The newest report that a reverb member has.
    last_report: Option<BarReport>,
}

/// The status of one program.
#[derive(Debug)]
pub(crate) struct ProgramStatus<S> {
    pub(crate) url: String,
    /// The reason why it is not ready.
    pub(crate) problem: Option<String>,
    /// The response of `/api/v1/status`.
    pub(crate) status: Option<S>,
}

impl ProgramArgs {
    /// Returns the URLs of the pulse nodes and of the reverb members.
    pub(crate) fn urls(&self) -> anyhow::Result<(Vec<String>, Vec<String>)> {
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
        let http = &Client::builder().timeout(REQUEST_TIMEOUT).no_proxy().build()?;
        let (pulse, reverb) = thread::scope(|scope| {
            let pulse: Vec<_> =
                pulse.iter().map(|url| scope.spawn(|| ProgramStatus::<pulse::StatusBody>::fetch(http, url))).collect();
            let reverb: Vec<_> = reverb
                .iter()
                .map(|url| scope.spawn(|| ProgramStatus::<reverb::StatusBody>::fetch(http, url)))
                .collect();
            (join_all(pulse), join_all(reverb))
        });
        let answers =
            pulse.iter().any(|node| node.status.is_some()) || reverb.iter().any(|member| member.status.is_some());
        if !answers {
            let urls = pulse.iter().map(|node| &*node.url).chain(reverb.iter().map(|member| &*member.url));
            bail!(
                "nothing answers at {}: start a cluster with `make run-dev`, or give its URLs (--pulse, --reverb)",
                urls.collect::<Vec<_>>().join(", ")
            );
        }
        let last_report = reverb.iter().find_map(|member| member.last_report(http));
        Ok(Overview { pulse, reverb, last_report })
    }
}

pub(crate) fn join_all<T>(threads: Vec<thread::ScopedJoinHandle<'_, T>>) -> Vec<T> {
    threads.into_iter().map(|thread| thread.join().expect("fetching does not panic")).collect()
}

impl<S: Serialize + DeserializeOwned> ProgramStatus<S> {
    pub(crate) fn fetch(http: &Client, url: &str) -> Self {
        let url = url.trim_end_matches('/').to_owned();
        let problem = match http.get(format!("{url}/ready")).send() {
            Err(error) if error.is_timeout() => Some(TIMEOUT.to_owned()),
            Err(_) => Some("does not answer".to_owned()),
            Ok(response) if response.status().is_success() => None,
            Ok(response) => {
                let body = response.json::<ErrorBody>();
                Some(body.map_or_else(|_| "not ready, no reason given".to_owned(), |body| body.error))
            }
        };
        // A program that hangs would take as long again.
        let hangs = problem.as_deref() == Some(TIMEOUT);
        let fetch = || http.get(format!("{url}/api/v1/status")).send().and_then(reqwest::blocking::Response::json).ok();
        let status = if hangs { None } else { fetch() };
        let foreign = status.is_none().then(|| "answers, but is not a BACKBEAT program".to_owned());
        Self { url, problem: problem.or(foreign), status }
    }

    fn as_json(&self) -> Value {
        json!({ "url": self.url, "ready": self.problem.is_none(), "trouble": self.problem, "status": self.status })
    }
}

impl ProgramStatus<reverb::StatusBody> {
    fn last_report(&self, http: &Client) -> Option<BarReport> {
        self.status.as_ref()?;
        // The newest windows may still be open.
        let response = http.get(format!("{}/api/v1/windows?limit=10", self.url)).send().ok()?;
        let body: reverb::Windows = response.json().ok()?;
        body.windows.into_iter().find_map(|window| window.report)
    }
}

impl Overview {
    /// Returns true if every program is ready.
    pub(crate) fn is_ready(&self) -> bool {
        self.pulse.iter().all(|node| node.problem.is_none())
            && self.reverb.iter().all(|member| member.problem.is_none())
    }

    pub(crate) fn as_json(&self) -> Value {
        let pulse: Vec<Value> = self.pulse.iter().map(ProgramStatus::as_json).collect();
        let reverb: Vec<Value> = self.reverb.iter().map(ProgramStatus::as_json).collect();
        json!({ "pulse": pulse, "reverb": reverb, "last_report": self.last_report })
    }

    /// Returns the newest frame, and the status of the pulse node that has it.
    fn newest_beat(&self) -> Option<(&BeatFrame, &pulse::StatusBody)> {
        let statuses = self.pulse.iter().filter_map(|node| node.status.as_ref());
        let beats = statuses.filter_map(|status| Some((status.last_beat.as_ref()?, status)));
        beats.max_by_key(|(frame, _)| frame.beat_index)
    }
}

impl fmt::Display for Overview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.newest_beat() {
            Some((frame, status)) => writeln!(f, "{}", heading(frame, status))?,
            None => writeln!(f, "no beat has been published yet")?,
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
        for slo in slos(self.reverb.iter().filter_map(|member| member.status.as_ref())) {
            write!(f, "\n{}", slo_line(slo))?;
        }
        Ok(())
    }
}

/// Returns the SLOs of the member with the most samples: all measure the same.
pub(crate) fn slos<'s>(statuses: impl Iterator<Item = &'s reverb::StatusBody>) -> &'s [reverb::Slo] {
    let samples = |status: &&reverb::StatusBody| status.objectives.iter().map(|slo| slo.samples).sum::<usize>();
    statuses.max_by_key(samples).map_or(&[], |status| &status.objectives)
}

fn heading(frame: &BeatFrame, status: &pulse::StatusBody) -> String {
    let mut line = format!(
        "{}   beat {}, {} in bars of {}, term {}, {}",
        status.cluster_id,
        frame.beat_index,
        frame.tempo_bpm,
        frame.bar_length,
        frame.term,
        status.leader.as_ref().map_or_else(|| "no leader".to_owned(), |leader| format!("led by {leader}"))
    );
    if let Some(pulse::Pending { from_beat, tempo_bpm, bar_length, .. }) = &status.pending {
        let _ = write!(line, "; changing to {tempo_bpm} in bars of {bar_length} from beat {from_beat}");
    }
    line
}

fn pulse_line(node: &ProgramStatus<pulse::StatusBody>) -> String {
    let Some(status) = &node.status else {
        return format!("  {:<18} {:<16} {}", "?", "", url_and_readiness(node));
    };
    let jitter = status.jitter_ms.as_ref().map(|jitter| format!("   jitter p95 {} ms", jitter.p95)).unwrap_or_default();
    let (name, role) = (&status.node, json!(status.role));
    let role = role.as_str().unwrap_or("?");
    format!("  {name:<18} {role:<16} {}{jitter}", url_and_readiness(node))
}

fn reverb_line(member: &ProgramStatus<reverb::StatusBody>) -> String {
    let Some(reverb::StatusBody { member: status, .. }) = &member.status else {
        return format!("  {:<18} {:<16} {}", "?", "", url_and_readiness(member));
    };
    let role = if status.merging { "merge" } else { "" };
    let lag_claims = status.lag_records.map_or_else(|| "?".to_owned(), |claims| claims.to_string());
    let open = status
        .oldest_open_window
        .as_ref()
        .map(|open| format!(", oldest open window from beat {} ({} beats ago)", open.from_beat, open.age_beats));
    format!(
        "  {:<18} {role:<16} {}   {} partitions, lag {} beats, {lag_claims} claims{}",
        status.name,
        url_and_readiness(member),
        status.partitions.len(),
        status.lag_beats,
        open.unwrap_or_default()
    )
}

fn url_and_readiness<S>(program: &ProgramStatus<S>) -> String {
    format!("{}  {}", program.url, program.problem.as_deref().unwrap_or("ready"))
}

fn report_line(report: &BarReport) -> String {
    let age = now().millis_since(report.closed_at) / 1_000;
    let issues = if report.issues.is_empty() { String::new() } else { format!("\n  {}", report.issues.join("; ")) };
    let attention = format!(
        "\n  {} agents fell silent, {} tasks stalled, {} overdrawn",
        report.agents_fell_silent, report.tasks_stalled, report.tasks_overdrawn
    );
    format!(
        "  beats {}-{}, closed {age} s ago: {} agents, {} claims, {} late, {} invalid, {} tasks done, {} failed{attention}{issues}",
        report.from_beat,
        report.to_beat,
        report.agents_reporting,
        report.claims,
        report.late_claims,
        report.invalid_claims,
        report.tasks_done,
        report.tasks_failed
    )
}

fn slo_line(slo: &reverb::Slo) -> String {
    let state = match slo.met {
        Some(true) => "met",
        Some(false) => "violated",
        None => "no samples",
    };
    let number = |number: Option<i64>| number.map_or_else(|| "?".to_owned(), |number| number.to_string());
    let (p95, limit) = (number(slo.p95_ms), number(slo.limit_ms));
    format!("  {:<14} {p95:>6} ms of {limit} allowed   {state}", slo.name)
}
