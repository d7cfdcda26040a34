//! `backbeat run` makes any program an agent.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use backbeat_tests::{Cluster, own_devstack, wait_for, wait_until};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

use crate::sdk::{claims_of, states_of};

const LIMIT: Duration = Duration::from_mins(1);

/// A command that runs `program` with `backbeat run` as agent `agent`.
fn run(cluster: &Cluster, agent: &str, flags: &[&str], program: &[&str]) -> Command {
    let head = ["run", "--agent", agent, "--task", "t"];
    cluster.command("backbeat", &[&head[..], flags, &["--"], program].concat())
}

fn output(mut command: Command) -> Output {
    command.output().expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until a program has written a process id to `path`, and returns it.
fn process_in(path: &Path) -> Pid {
    let id = wait_for("a process id", LIMIT, || fs::read_to_string(path).ok()?.trim().parse().ok());
    Pid::from_raw(id).expect("the id is positive")
}

fn has_ended(process: Pid) -> bool {
    test_kill_process(process).is_err()
}

/// Starts a cluster with ten beats per second.
fn cluster() -> (Cluster, backbeat_tests::Program) {
    let cluster = Cluster::new(2);
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "600", "--max-bpm", "600"]);
    wait_until("a beat", LIMIT, || !cluster.frames().is_empty());
    (cluster, pulse)
}

#[test]
fn run_passes_on_the_programs_exit_code_and_output() {
    let (cluster, _pulse) = cluster();
    let done = output(run(&cluster, "done", &[], &["sh", "-c", "echo out; echo err >&2; sleep 1"]));
    assert_eq!((done.status.code(), text(&done.stdout), text(&done.stderr)), (Some(0), "out\n".into(), "err\n".into()));
    assert_eq!(states_of(&claims_of(&cluster, "done"), "t"), ["executing", "done"]);

    let failed = output(run(&cluster, "failed", &[], &["sh", "-c", "sleep 1; exit 3"]));
    assert_eq!((failed.status.code(), text(&failed.stderr)), (Some(3), String::new()));
    assert_eq!(states_of(&claims_of(&cluster, "failed"), "t"), ["executing", "failed"]);
    let killed = output(run(&cluster, "killed", &[], &["sh", "-c", "kill -KILL $$"]));
    assert_eq!(killed.status.code(), Some(128 + 9));

    let registry = cluster.kafka().schema_registry.replace("http://", "http://agent:registry-secret@");
    let mut prints_environment = run(&cluster, "environment", &[], &["sh", "-c", "env; sleep 1"]);
    prints_environment.env("SCHEMA_REGISTRY_URL", registry);
    let environment = text(&output(prints_environment).stdout);
    assert!(
        environment.contains("SCHEMA_REGISTRY_URL=http") && !environment.contains("registry-secret"),
        "{environment}"
    );
    assert_eq!(states_of(&claims_of(&cluster, "environment"), "t"), ["executing", "done"]);

    let missing = output(run(&cluster, "missing", &[], &["/no/such/program"]));
    assert_eq!(missing.status.code(), Some(127), "{}", text(&missing.stderr));
    assert!(
        text(&missing.stderr).contains("backbeat run: /no/such/program: No such file"),
        "{}",
        text(&missing.stderr)
    );
    let not_executable = output(run(&cluster, "not-executable", &[], &["/etc/passwd"]));
    assert_eq!(not_executable.status.code(), Some(126), "{}", text(&not_executable.stderr));

    let flood = output(run(&cluster, "flood", &[], &["sh", "-c", "yes | head -c 50000000"]));
    assert_eq!((flood.status.code(), flood.stdout.len()), (Some(0), 50_000_000));
}

#[test]
fn run_with_a_spent_budget_ends_the_program_and_its_children() {
    let (cluster, _pulse) = cluster();
    let dir = TempDir::new().expect("a temporary directory");
    let child = dir.path().join("child");
    let forks = format!("sleep 100 & echo $! >{}; wait", child.display());
    let spent = output(run(&cluster, "forks", &["--budget", "8"], &["sh", "-c", &forks]));
    assert_eq!(spent.status.code(), Some(124), "{}", text(&spent.stderr));
    wait_until("the program's child to end", LIMIT, || has_ended(process_in(&child)));
    let claims = claims_of(&cluster, "forks");
    let last = claims.last().expect("claims");
    assert_eq!(last["state"], "failed", "{last}");
    // Negative if beats pass while the program ends.
    assert!(last["beats_left"].as_i64().is_some_and(|left| left <= 0), "the budget is not spent: {last}");
    assert_eq!(last["notes"], "the budget of 8 beats is spent");

    // The program ends at SIGTERM, and its child does not.
    let (child, signalled) = (dir.path().join("stubborn"), dir.path().join("signalled"));
    let loops = format!("trap 'echo signalled >{}' TERM; while :; do sleep 0.1; done", signalled.display());
    let stubborn = format!("sh -c \"{loops}\" & echo $! >{}; wait", child.display());
    let flags = ["--budget", "8", "--kill-after", "1"];
    let killed = output(run(&cluster, "stubborn", &flags, &["sh", "-c", &stubborn]));
    assert_eq!(killed.status.code(), Some(124), "{}", text(&killed.stderr));
    assert!(signalled.exists(), "the child did not get SIGTERM before SIGKILL");
    wait_until("the program's child to end", LIMIT, || has_ended(process_in(&child)));
}

#[test]
fn run_forwards_signals_to_the_program() {
    let (cluster, _pulse) = cluster();
    let dir = TempDir::new().expect("a temporary directory");
    let ready = dir.path().join("ready");
    let traps = format!("trap 'exit 7' USR1; echo $$ >{}; while :; do sleep 0.1; done", ready.display());
    let mut wrapper = run(&cluster, "signalled", &[], &["sh", "-c", &traps]).spawn().expect("backbeat starts");
    process_in(&ready);
    kill_process(Pid::from_child(&wrapper), Signal::USR1).expect("backbeat runs");
    assert_eq!(wrapper.wait().expect("backbeat ends").code(), Some(7));
}

#[test]
fn run_killed_with_sigkill_ends_the_program_and_its_children() {
    let (cluster, _pulse) = cluster();
    let dir = TempDir::new().expect("a temporary directory");
    let (own, child) = (dir.path().join("own"), dir.path().join("child"));
    let forks = format!("trap '' TERM; sleep 100 & echo $! >{}; echo $$ >{}; wait", child.display(), own.display());
    let mut wrapper = run(&cluster, "killed", &[], &["sh", "-c", &forks]).spawn().expect("backbeat starts");
    let processes = [process_in(&own), process_in(&child)];
    wrapper.kill().expect("backbeat runs");
    wrapper.wait().expect("backbeat ends");
    wait_until("the program and its child to end", LIMIT, || processes.iter().all(|process| has_ended(*process)));
}

#[test]
fn run_puts_the_programs_status_into_its_claims() {
    let (cluster, _pulse) = cluster();
    let examples = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples"));
    for (agent, example, notes) in [("shell", "status.sh", "step 4 of 4"), ("python", "status.py", "epoch 4 of 4")] {
        let program = examples.join(example);
        let mut command = run(&cluster, agent, &["--budget", "100"], &[program.to_str().expect("the output is UTF-8")]);
        command.env("STEP_SECONDS", "0.6");
        let ended = output(command);
        assert_eq!(ended.status.code(), Some(0), "{}", text(&ended.stderr));
        let claims = claims_of(&cluster, agent);
        assert!(claims.iter().any(|claim| claim["notes"] == notes), "{claims:?}");
        let progress: Vec<f64> = claims.iter().filter_map(|claim| claim["progress"].as_f64()).collect();
        assert!(progress.is_sorted() && progress.last() == Some(&1.0), "{progress:?}");
        assert_eq!(states_of(&claims, "t").last().map(String::as_str), Some("done"));
    }
    assert!(claims_of(&cluster, "python").iter().any(|claim| claim["help"] == "requested"));
}

#[test]
fn run_during_a_kafka_outage_supervises_the_program() {
    let dir = TempDir::new().expect("a temporary directory");
    let mut devstack = own_devstack(1, dir.path());
    let cluster = Cluster::on(&devstack, 2);
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "600", "--max-bpm", "600"]);
    wait_until("a beat", LIMIT, || !cluster.frames().is_empty());
    let started = dir.path().join("started");
    let program = format!("sleep 1; echo $$ >{}; sleep 100", started.display());
    let flags = ["--budget", "60", "--flush", "1"];
    let wrapper = run(&cluster, "outage", &flags, &["sh", "-c", &program]);
    let mut wrapper = { wrapper }.stderr(Stdio::piped()).spawn().expect("backbeat starts");
    process_in(&started);
    devstack.set_broker_paused(0, true).expect("the broker is paused");
    // Local beats spend the budget.
    wait_until("the budget to be spent", LIMIT, || wrapper.try_wait().expect("backbeat is a child").is_some());
    let ended = wrapper.wait_with_output().expect("backbeat has ended");
    assert_eq!(ended.status.code(), Some(124), "{}", text(&ended.stderr));
    assert!(text(&ended.stderr).contains("were lost"), "{}", text(&ended.stderr));
    devstack.set_broker_paused(0, false).expect("the broker continues");
    drop(pulse);

    devstack.stop_broker(0).expect("the broker stops");
    let without = output(run(&cluster, "without", &["--flush", "1"], &["sh", "-c", "echo ran"]));
    assert_eq!((without.status.code(), text(&without.stdout)), (Some(0), "ran\n".into()));
    devstack.stop();
}
