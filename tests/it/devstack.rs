//! `backbeat dev`: everything starts, shows itself, and leaves nothing behind.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use backbeat_devstack::stock_tool;
use backbeat_tests::{Program, run, wait_for, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(90);

/// `backbeat dev`, Kafka on `kafka_port` and the rest on free ones, fast, with its own Kafka whatever the environment says.
fn dev(dir: &Path, kafka_port: &str, more: &[&str]) -> Dev {
    // Downloads happen once, and not within the time that a test waits.
    stock_tool("kafka.Kafka").expect("Kafka can be downloaded");
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
    ]);
    command.args(more).env_remove("KAFKA_BOOTSTRAP_SERVERS").env_remove("SCHEMA_REGISTRY_URL");
    let out = fs::File::create(dir.join("stdout.txt")).expect("creates");
    let err = fs::File::create(dir.join("stderr.txt")).expect("creates");
    Dev(command.stdin(Stdio::null()).stdout(out).stderr(err).spawn().expect("it starts"))
}

/// A run of `backbeat dev`, which ends with the test, however that ends.
struct Dev(Child);

impl Drop for Dev {
    fn drop(&mut self) {
        // It has ended already, where the test went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn shown(dir: &Path) -> String {
    fs::read_to_string(dir.join("stdout.txt")).unwrap_or_default()
}

/// Every process that the run in `dir` has started, found by its directory or its Kafka's port, with
/// its command line.
fn processes_of(dir: &Path) -> BTreeMap<i32, String> {
    let kafka = shown(dir).lines().find_map(|line| Some(line.strip_prefix("kafka ")?.split(',').next()?.to_owned()));
    let mark = dir.to_str().expect("a path");
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc").expect("Linux") {
        let path = entry.expect("an entry").path();
        let Some(pid) = path.file_name().and_then(|name| name.to_str()?.parse::<i32>().ok()) else {
            continue;
        };
        let read = |file| {
            fs::read(path.join(file))
                .map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "))
                .unwrap_or_default()
        };
        let ours =
            read("cmdline").contains(mark) || kafka.as_ref().is_some_and(|kafka| read("environ").contains(kafka));
        let cwd = fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
        if ours || cwd {
            found.insert(pid, read("cmdline"));
        }
    }
    found
}

fn wait_for_a_whole_report(dir: &Path) -> String {
    wait_for("a report with all agents", LIMIT, || {
        shown(dir).lines().find(|line| line.contains("report beats") && line.contains(": 7 agents")).map(str::to_owned)
    })
}

fn pid(Dev(child): &Dev) -> Pid {
    Pid::from_child(child)
}

#[test]
fn it_shows_beats_and_whole_reports_and_ctrl_c_stops_everything() {
    let dir = TempDir::new().expect("a directory");
    let mut child = dev(dir.path(), "0", &["--agents", "7"]);
    wait_for_a_whole_report(dir.path());
    assert!(shown(dir.path()).contains("● beat 0 "), "{}", shown(dir.path()));
    let running = processes_of(dir.path());
    for program in ["backbeat dev", "kafka.Kafka", "apicurio", "/pulse ", "/reverb ", "/agent-sim "] {
        assert!(running.values().any(|command| command.contains(program)), "{program} in {running:?}");
    }

    let status = Command::new(Program::executable("backbeat"))
        .args(["status", "--dir"])
        .arg(dir.path())
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.status.success() && said.matches("  ready").count() == 5, "{said}");
    for part in ["BPM in bars of", "led by pulse-", "beats behind", "  beats ", " agents, ", "pulse_jitter"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    // On a terminal, as `script` makes one.
    let backbeat = Program::executable("backbeat");
    let top =
        format!("timeout --preserve-status --signal INT 3 {} top --dir {}", backbeat.display(), dir.path().display());
    let drawn = run(Command::new("script").args(["--quiet", "--return", "--command", &top, "/dev/null"]));
    let (entered, left) = (drawn.find("\x1b[?1049h"), drawn.rfind("\x1b[?1049l"));
    assert!(entered < left && drawn.matches("led by pulse-").count() >= 2, "{drawn}");

    kill_process(pid(&child), Signal::INT).expect("it is there");
    assert!(child.0.wait().expect("it ends").success(), "{}", shown(dir.path()));
    assert_eq!(processes_of(dir.path()), BTreeMap::new());
    let status = Command::new(Program::executable("backbeat"))
        .args(["status", "--dir"])
        .arg(dir.path())
        .output()
        .expect("it runs");
    assert!(String::from_utf8_lossy(&status.stderr).contains("nothing answers at"));
}

#[test]
fn killed_with_9_it_leaves_no_process_behind() {
    let dir = TempDir::new().expect("a directory");
    let mut child = dev(dir.path(), "0", &["--agents", "7"]);
    wait_for_a_whole_report(dir.path());
    kill_process(pid(&child), Signal::KILL).expect("it is there");
    child.0.wait().expect("it ends");
    wait_until("nothing is left", LIMIT, || processes_of(dir.path()).is_empty());
}

#[test]
fn a_taken_port_is_a_clear_error_and_nothing_is_left() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let dir = TempDir::new().expect("a directory");
    let mut child = dev(dir.path(), &port, &[]);
    assert!(!child.0.wait().expect("it ends").success());
    let said = fs::read_to_string(dir.path().join("stderr.txt")).expect("it said something");
    assert!(said.contains(&format!("port {port} for kafka is taken by another process")), "{said}");
    wait_until("nothing is left", LIMIT, || processes_of(dir.path()).is_empty());
}

#[test]
fn a_program_that_dies_ends_it_with_the_reason() {
    let dir = TempDir::new().expect("a directory");
    let mut child = dev(dir.path(), "0", &["--cluster", ""]);
    assert!(!child.0.wait().expect("it ends").success());
    let said = fs::read_to_string(dir.path().join("stderr.txt")).expect("it said something");
    assert!(said.contains(" has ended") && said.contains("--cluster \"\" is no cluster name"), "{said}");
    wait_until("nothing is left", LIMIT, || processes_of(dir.path()).is_empty());
}

#[test]
fn with_connect_reports_become_rows() {
    let dir = TempDir::new().expect("a directory");
    let mut child = dev(dir.path(), "0", &["--connect", "--connect-port", "0", "--postgres-port", "0"]);
    // The first time, Connect's plugins are downloaded.
    let port = wait_for("rows", Duration::from_mins(10), || {
        let shown = shown(dir.path());
        let port = shown.split_once("postgresql://postgres@127.0.0.1:")?.1.split_once('/')?.0;
        shown.contains("⇣ bar_reports has ").then(|| port.parse::<u16>().expect("a port"))
    });
    kill_process(pid(&child), Signal::INT).expect("it is there");
    assert!(child.0.wait().expect("it ends").success(), "{}", shown(dir.path()));
    assert_eq!(processes_of(dir.path()), BTreeMap::new());
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("PostgreSQL is gone");
}
