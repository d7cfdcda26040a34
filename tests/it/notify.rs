//! `backbeat notify` against a real receiver that fails, hangs, asks to wait, and is killed, as is the notifier itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use backbeat_schemas::BarReport;
use backbeat_tests::{Cluster, Program, wait_until};
use rustix::process::Signal;
use serde_json::Value;

use crate::reports::reverb;

const LIMIT: Duration = Duration::from_mins(2);
const SECRET: &str = "a-secret-of-the-test";

/// A receiver, which can be killed and started again.
struct Receiver<'c> {
    cluster: &'c Cluster,
    port: u16,
    mode_file: PathBuf,
    taken_dir: PathBuf,
    program: Option<Program>,
}

impl<'c> Receiver<'c> {
    fn start(cluster: &'c Cluster) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let (mode_file, taken_dir) = (cluster.dir().join("receiver-mode"), cluster.dir().join("receiver-taken"));
        fs::create_dir(&taken_dir).expect("the directory is made");
        let mut receiver = Self { cluster, port, mode_file, taken_dir, program: None };
        receiver.set_mode("take");
        receiver.restart();
        receiver
    }

    fn set_mode(&self, mode: &str) {
        fs::write(&self.mode_file, mode).expect("the file is written");
    }

    fn restart(&mut self) {
        let mut command = Command::new("python3");
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/it/webhook_receiver.py")).arg(self.port.to_string());
        command.arg(&self.mode_file).arg(&self.taken_dir);
        self.program = Some(self.cluster.start_other("receiver", &command));
    }

    fn kill(&mut self) {
        self.program.take().expect("it runs").signal(Signal::KILL);
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn log(&self) -> String {
        self.program.as_ref().expect("it runs").log()
    }

    /// The requests that it has taken on `path`.
    fn taken(&self, path: &str) -> Vec<Value> {
        let files =
            fs::read_dir(&self.taken_dir).expect("the directory is there").map(|entry| entry.expect("an entry").path());
        let whole = files.filter(|file| file.extension().is_some_and(|extension| extension == "json"));
        let requests = whole.map(|file| fs::read(file).expect("the file is there"));
        let requests = requests.map(|bytes| serde_json::from_slice::<Value>(&bytes).expect("valid JSON"));
        requests.filter(|request| request["path"] == path).collect()
    }

    /// The windows of the findings that it has taken.
    fn windows(&self) -> BTreeSet<String> {
        let subject = |request: Value| {
            let event: Value = serde_json::from_str(request["body"].as_str().expect("text")).expect("valid JSON");
            assert_eq!(event["type"], "backbeat.bar.finding.v1", "{event}");
            event["subject"].as_str().expect("a window id").to_owned()
        };
        self.taken("/hook").into_iter().map(subject).collect()
    }
}

fn has_finding(report: &BarReport) -> bool {
    report.agents_fell_silent > 0 || report.tasks_stalled > 0
}

#[test]
fn every_bar_with_a_finding_arrives_over_faults_of_both_sides() {
    let cluster = Cluster::new(2);
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "300", "--max-bpm", "300", "--bar", "4"]);
    let reverb = reverb(&cluster, &[]);
    let mut receiver = Receiver::start(&cluster);
    let secret_file = cluster.dir().join("hook-secret");
    fs::write(&secret_file, format!("{SECRET}\n")).expect("the file is written");
    let (hook, heartbeat) = (receiver.url("/hook"), receiver.url("/heartbeat"));
    let secret_file = secret_file.to_str().expect("a path in UTF-8").to_owned();
    let args = ["notify", "--url", &hook, "--on", "silent,stalled", "--secret-file", &secret_file];
    let notify = || cluster.start("backbeat", &[&args[..], &["--heartbeat-url", &heartbeat]].concat());
    let first = notify();
    wait_until("the notifier to follow", LIMIT, || first.log().contains("waiting for reports"));
    let trouble = ["--silence-rate", "0", "--silent-task-rate", "0.3", "--stalled-task-rate", "0.3"];
    let sim = cluster.start("agent-sim", &[&["--agents", "20"][..], &trouble].concat());
    let mut notifier = first;
    for fault in ["fail", "hang", "limit", "kill the receiver", "kill the notifier", "kill both"] {
        let before = receiver.windows().len();
        wait_until(&format!("a notification before {fault:?}"), LIMIT, || receiver.windows().len() > before);
        if fault.ends_with("notifier") || fault.ends_with("both") {
            notifier.signal(Signal::KILL);
        }
        if fault.ends_with("receiver") || fault.ends_with("both") {
            receiver.kill();
        }
        if !fault.starts_with("kill") {
            receiver.set_mode(fault);
            let seen = receiver.log().matches(fault).count();
            wait_until(&format!("a request while it does {fault:?}"), LIMIT, || {
                receiver.log().matches(fault).count() > seen
            });
        }
        let windows = cluster.reports().len();
        wait_until("two more reports", LIMIT, || cluster.reports().len() >= windows + 2);
        receiver.set_mode("take");
        if receiver.program.is_none() {
            receiver.restart();
        }
        if fault.ends_with("notifier") || fault.ends_with("both") {
            notifier = notify();
        }
    }
    drop((sim, pulse));
    // Reports that were published before the notifier followed are not told.
    let reports: Vec<BarReport> = cluster.reports().into_iter().map(|entry| entry.record).collect();
    let expected: BTreeSet<String> =
        reports.iter().filter(|report| has_finding(report)).map(|report| report.window_id.to_string()).collect();
    assert!(expected.len() >= 10, "{} windows with findings", expected.len());
    wait_until("all notifications", LIMIT, || receiver.windows() == expected);

    let mut by_key = BTreeMap::<String, BTreeSet<String>>::new();
    let mut keys_of_windows = BTreeMap::<String, BTreeSet<String>>::new();
    for request in receiver.taken("/hook") {
        let body = request["body"].as_str().expect("text").to_owned();
        let event: Value = serde_json::from_str(&body).expect("valid JSON");
        let headers = &request["headers"];
        assert_eq!(headers["content-type"], "application/cloudevents+json");
        let key = headers["idempotency-key"].as_str().expect("a key").to_owned();
        assert_eq!(headers["x-backbeat-signature-256"], python_signature(&cluster, &body).as_str());
        let silent = event["data"]["roster"]["silent"].as_array().expect("a list").len();
        assert_eq!(event["data"]["report"]["agents_fell_silent"].as_u64(), Some(silent as u64), "{event}");
        by_key.entry(key.clone()).or_default().insert(body);
        keys_of_windows.entry(event["subject"].as_str().expect("text").to_owned()).or_default().insert(key);
    }
    assert!(by_key.values().all(|bodies| bodies.len() == 1), "a key is of one body");
    assert!(keys_of_windows.values().all(|keys| keys.len() == 1), "a window has one key, however often it is told");
    assert!(!receiver.taken("/heartbeat").is_empty());
    drop((notifier, reverb));
}

/// The signature of `body` by another library.
fn python_signature(cluster: &Cluster, body: &str) -> String {
    let file = cluster.dir().join("signed-body");
    fs::write(&file, body).expect("the file is written");
    let sign =
        "import hmac, sys; print(hmac.digest(sys.argv[1].encode(), open(sys.argv[2], 'rb').read(), 'sha256').hex())";
    let output = Command::new("python3").args(["-c", sign, SECRET]).arg(&file).output().expect("python runs");
    format!("sha256={}", String::from_utf8_lossy(&output.stdout).trim())
}

#[test]
fn refused_notification_is_skipped_and_a_missing_report_is_told_once() {
    let cluster = Cluster::new(1);
    let _pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "600", "--max-bpm", "600", "--bar", "4"]);
    let member = reverb(&cluster, &[]);
    let receiver = Receiver::start(&cluster);
    receiver.set_mode("refuse");
    let hook = receiver.url("/hook");
    let args = ["notify", "--url", &hook, "--on", "stalled", "--late-share", "0.5", "--no-report-beats", "10"];
    let notifier = cluster.start("backbeat", &args);
    wait_until("the notifier to follow", LIMIT, || notifier.log().contains("waiting for reports"));
    let sim = cluster.start("agent-sim", &["--agents", "5", "--silence-rate", "0", "--stalled-task-rate", "1"]);
    wait_until("a second notification", LIMIT, || receiver.log().matches("refuse /hook").count() >= 2);
    assert!(notifier.log().contains("the receiver refuses this notification; it is skipped"), "{}", notifier.log());
    drop(sim);
    let windows = cluster.reports().len();
    wait_until("reports without agents", LIMIT, || cluster.reports().len() >= windows + 3);
    receiver.set_mode("take");
    drop(member);
    let missing = || {
        let taken = receiver.taken("/hook").into_iter();
        let events = taken.map(|request| serde_json::from_str(request["body"].as_str().expect("text")));
        let events = events.map(|event: Result<Value, _>| event.expect("valid JSON"));
        events.filter(|event| event["type"] == "backbeat.report.missing.v1").collect::<Vec<_>>()
    };
    wait_until("the notification of a missing report", LIMIT, || !missing().is_empty());
    let beats = cluster.frames().len();
    wait_until("some more beats", LIMIT, || cluster.frames().len() >= beats + 20);
    let missing = missing();
    assert_eq!(missing.len(), 1, "it is told once");
    let last = cluster.reports().pop().expect("there are reports").record;
    assert_eq!(missing[0]["subject"], last.window_id.to_string());
}
