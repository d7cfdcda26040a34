//! `backbeat dev`: starts everything, shows beats and reports, and leaves no process behind.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use backbeat_devstack::kafka_cli;
use backbeat_tests::{Program, run, wait_for, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(90);

/// Starts `backbeat dev` with a fast tempo, Kafka on `kafka_port` and everything else on free ports. It starts a Kafka
/// of its own, even if the environment names another one.
fn dev(dir: &Path, kafka_port: &str, more: &[&str]) -> Dev {
    // Downloads Kafka now, if it was not yet, and not while a test waits.
    kafka_cli("kafka.Kafka").expect("Kafka can be downloaded");
    let mut command = Command::new(Program::executable("backbeat"));
    command.args(["dev", "--dir"]).arg(dir);
    command.args([
        "--bpm",
        "600",
        "--kafka-port",
        kafka_port,
        "--registry-port",
        "0",
        "--pulse-port",
        "0",
        "--reverb-port",
        "0",
        "--ui-port",
        "0",
    ]);
    command.args(more).env_remove("KAFKA_BOOTSTRAP_SERVERS").env_remove("SCHEMA_REGISTRY_URL");
    let out = fs::File::create(dir.join("stdout.txt")).expect("the file is created");
    let err = fs::File::create(dir.join("stderr.txt")).expect("the file is created");
    Dev(command.stdin(Stdio::null()).stdout(out).stderr(err).spawn().expect("backbeat starts"))
}

/// A run of `backbeat dev`. Dropping it kills it, so that it ends with a failed test too.
struct Dev(Child);

impl Drop for Dev {
    fn drop(&mut self) {
        // Errors are expected: after a successful test it has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn shown(dir: &Path) -> String {
    fs::read_to_string(dir.join("stdout.txt")).unwrap_or_default()
}

/// Every process that the run in `dir` has started, with its command line. It is recognised by its directory or by the
/// address of its Kafka.
fn processes_of(dir: &Path) -> BTreeMap<i32, String> {
    let kafka = shown(dir).lines().find_map(|line| Some(line.strip_prefix("kafka ")?.split(',').next()?.to_owned()));
    let dir_name = dir.to_str().expect("the path is UTF-8");
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc").expect("Linux has /proc") {
        let path = entry.expect("a directory entry").path();
        let Some(pid) = path.file_name().and_then(|name| name.to_str()?.parse::<i32>().ok()) else {
            continue;
        };
        let read = |file| {
            fs::read(path.join(file))
                .map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "))
                .unwrap_or_default()
        };
        let names_dir = read("cmdline").contains(dir_name);
        let names_kafka = kafka.as_ref().is_some_and(|kafka| read("environ").contains(kafka));
        let runs_in_dir = fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
        if names_dir || names_kafka || runs_in_dir {
            found.insert(pid, read("cmdline"));
        }
    }
    found
}

fn wait_for_complete_report(dir: &Path) -> String {
    wait_for("a report with all agents", LIMIT, || {
        shown(dir).lines().find(|line| line.contains("report beats") && line.contains(": 7 agents")).map(str::to_owned)
    })
}

/// Runs `backbeat status`.
fn status(dir: &Path) -> Output {
    let mut command = Command::new(Program::executable("backbeat"));
    command.args(["status", "--dir"]).arg(dir).output().expect("the program runs")
}

fn pid(Dev(child): &Dev) -> Pid {
    Pid::from_child(child)
}

#[test]
fn dev_runs_a_whole_cluster_until_ctrl_c() {
    let dir = TempDir::new().expect("a temporary directory");
    let mut child = dev(dir.path(), "0", &["--agents", "7"]);
    wait_for_complete_report(dir.path());
    assert!(shown(dir.path()).contains("● beat 0 "), "{}", shown(dir.path()));
    let page = shown(dir.path()).lines().find_map(|line| Some(line.strip_prefix("page")?.trim().to_owned()));
    let page = reqwest::blocking::get(page.expect("the page's address")).and_then(reqwest::blocking::Response::text);
    let page = page.expect("the page answers");
    assert!(page.contains("some fall silent, stall, or send late and invalid claims on purpose"), "{page}");
    assert!(page.contains("Change the tempo") && page.contains("★ leader"), "{page}");
    let running = processes_of(dir.path());
    for program in ["backbeat dev", "kafka.Kafka", "apicurio", "/pulse ", "/reverb ", "/agent-sim ", "backbeat ui"] {
        assert!(running.values().any(|command| command.contains(program)), "no {program} in {running:?}");
    }

    // A member is not ready, and the command says so by its exit code, while its aggregators catch up.
    let all_ready = || {
        let output = status(dir.path());
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success() && printed.matches("  ready").count() == 5).then_some(printed)
    };
    let printed = wait_for("five programs that are ready", LIMIT, all_ready);
    for part in ["BPM in bars of", "led by pulse-", "partitions, lag ", "  beats ", " agents, ", "pulse_jitter"] {
        assert!(printed.contains(part), "no {part:?} in {printed}");
    }
    // `backbeat top` needs a terminal, which `script` provides.
    let backbeat = Program::executable("backbeat");
    let top =
        format!("timeout --preserve-status --signal INT 3 {} top --dir {}", backbeat.display(), dir.path().display());
    let drawn = run(Command::new("script").args(["--quiet", "--return", "--command", &top, "/dev/null"]));
    let (entered, left) = (drawn.find("\x1b[?1049h"), drawn.rfind("\x1b[?1049l"));
    assert!(entered < left && drawn.matches("led by pulse-").count() >= 2, "{drawn}");

    kill_process(pid(&child), Signal::INT).expect("the process runs");
    assert!(child.0.wait().expect("the process ends").success(), "{}", shown(dir.path()));
    assert_eq!(processes_of(dir.path()), BTreeMap::new());
    assert!(String::from_utf8_lossy(&status(dir.path()).stderr).contains("nothing answers at"));
}

#[test]
fn dev_killed_with_sigkill_leaves_no_process() {
    let dir = TempDir::new().expect("a temporary directory");
    let mut child = dev(dir.path(), "0", &["--agents", "7"]);
    wait_for_complete_report(dir.path());
    kill_process(pid(&child), Signal::KILL).expect("the process runs");
    child.0.wait().expect("the process ends");
    wait_until("all processes to end", LIMIT, || processes_of(dir.path()).is_empty());
}

#[test]
fn dev_on_a_taken_port_exits_with_the_reason() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let dir = TempDir::new().expect("a temporary directory");
    let mut child = dev(dir.path(), &port, &[]);
    assert!(!child.0.wait().expect("the process ends").success());
    let stderr = fs::read_to_string(dir.path().join("stderr.txt")).expect("the file exists");
    assert!(stderr.contains(&format!("port {port} for kafka is taken by another process")), "{stderr}");
    wait_until("all processes to end", LIMIT, || processes_of(dir.path()).is_empty());
}

#[test]
fn dev_whose_program_dies_exits_with_the_reason() {
    let dir = TempDir::new().expect("a temporary directory");
    let mut child = dev(dir.path(), "0", &["--cluster", ""]);
    assert!(!child.0.wait().expect("the process ends").success());
    let stderr = fs::read_to_string(dir.path().join("stderr.txt")).expect("the file exists");
    assert!(stderr.contains(" has ended") && stderr.contains("--cluster \"\" is not a cluster name"), "{stderr}");
    wait_until("all processes to end", LIMIT, || processes_of(dir.path()).is_empty());
}

#[test]
fn dev_with_connect_writes_reports_to_postgres() {
    let dir = TempDir::new().expect("a temporary directory");
    let mut child = dev(dir.path(), "0", &["--connect", "--connect-port", "0", "--postgres-port", "0"]);
    // The limit allows for the download of Connect's plugins.
    let port = wait_for("rows of reports", Duration::from_mins(10), || {
        let shown = shown(dir.path());
        let port = shown.split_once("postgresql://postgres@127.0.0.1:")?.1.split_once('/')?.0;
        shown.contains("⇣ bar_reports has ").then(|| port.parse::<u16>().expect("a port"))
    });
    kill_process(pid(&child), Signal::INT).expect("the process runs");
    assert!(child.0.wait().expect("the process ends").success(), "{}", shown(dir.path()));
    assert_eq!(processes_of(dir.path()), BTreeMap::new());
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("PostgreSQL has released its port");
}
