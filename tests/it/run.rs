//! `backbeat run` with real programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use backbeat_tests::{Cluster, own_devstack, wait_for, wait_until};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

use crate::sdk::{claims_of, states_of};

const LIMIT: Duration = Duration::from_mins(1);

/// `backbeat run` of a program as agent `agent`.
fn run(cluster: &Cluster, agent: &str, flags: &[&str], program: &[&str]) -> Command {
    let head = ["run", "--agent", agent, "--task", "t"];
    cluster.command("backbeat", &[&head[..], flags, &["--"], program].concat())
}

fn output(mut command: Command) -> Output {
    command.output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The process whose id a program has written to `path`.
fn process_in(path: &Path) -> Pid {
    let id = wait_for("a process id", LIMIT, || fs::read_to_string(path).ok()?.trim().parse().ok());
    Pid::from_raw(id).expect("an id")
}

fn is_gone(process: Pid) -> bool {
    test_kill_process(process).is_err()
}

/// A cluster with ten beats a second.
fn cluster() -> (Cluster, backbeat_tests::Program) {
    let cluster = Cluster::new(2);
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "600", "--max-bpm", "600"]);
    wait_until("a beat", LIMIT, || !cluster.frames().is_empty());
    (cluster, pulse)
}

#[test]
fn programs_end_as_they_do_and_their_output_is_theirs() {
    let (cluster, _pulse) = cluster();
    let well = output(run(&cluster, "well", &[], &["sh", "-c", "echo out; echo err >&2; sleep 1"]));
    assert_eq!((well.status.code(), text(&well.stdout), text(&well.stderr)), (Some(0), "out\n".into(), "err\n".into()));
    assert_eq!(states_of(&claims_of(&cluster, "well"), "t"), ["executing", "done"]);

    let failed = output(run(&cluster, "failed", &[], &["sh", "-c", "sleep 1; exit 3"]));
    assert_eq!((failed.status.code(), text(&failed.stderr)), (Some(3), String::new()));
    assert_eq!(states_of(&claims_of(&cluster, "failed"), "t"), ["executing", "failed"]);
    let killed = output(run(&cluster, "killed", &[], &["sh", "-c", "kill -KILL $$"]));
    assert_eq!(killed.status.code(), Some(128 + 9));

    let missing = output(run(&cluster, "missing", &[], &["/no/such/program"]));
    assert_eq!(missing.status.code(), Some(127), "{}", text(&missing.stderr));
    assert!(
        text(&missing.stderr).contains("backbeat run: /no/such/program: No such file"),
        "{}",
        text(&missing.stderr)
    );
    let no_program = output(run(&cluster, "no-program", &[], &["/etc/passwd"]));
    assert_eq!(no_program.status.code(), Some(126), "{}", text(&no_program.stderr));

    let flood = output(run(&cluster, "flood", &[], &["sh", "-c", "yes | head -c 50000000"]));
    assert_eq!((flood.status.code(), flood.stdout.len()), (Some(0), 50_000_000));
}

#[test]
fn a_spent_budget_ends_the_program_and_all_that_it_started() {
    let (cluster, _pulse) = cluster();
    let dir = TempDir::new().expect("a directory");
    let child = dir.path().join("child");
    let forks = format!("sleep 100 & echo $! >{}; wait", child.display());
    let spent = output(run(&cluster, "forks", &["--budget", "8"], &["sh", "-c", &forks]));
    assert_eq!(spent.status.code(), Some(124), "{}", text(&spent.stderr));
    wait_until("its child to end", LIMIT, || is_gone(process_in(&child)));
    let claims = claims_of(&cluster, "forks");
    let last = claims.last().expect("claims");
    assert_eq!(last["state"], "failed", "{last}");
    assert!(last["beats_left"].as_i64().is_some_and(|left| left <= 0), "it may have overdrawn while it ended: {last}");
    assert_eq!(last["notes"], "the budget of 8 beats is spent");

    // The program ends at SIGTERM, and what it started does not.
    let (child, told) = (dir.path().join("stubborn"), dir.path().join("told"));
    let loops = format!("trap 'echo told >{}' TERM; while :; do sleep 0.1; done", told.display());
    let stubborn = format!("sh -c \"{loops}\" & echo $! >{}; wait", child.display());
    let flags = ["--budget", "8", "--kill-after", "1"];
    let killed = output(run(&cluster, "stubborn", &flags, &["sh", "-c", &stubborn]));
    assert_eq!(killed.status.code(), Some(124), "{}", text(&killed.stderr));
    assert!(told.exists(), "SIGTERM came first");
    wait_until("its child to end", LIMIT, || is_gone(process_in(&child)));
}

#[test]
fn signals_reach_the_program_and_a_killed_wrapper_takes_it_along() {
    let (cluster, _pulse) = cluster();
    let dir = TempDir::new().expect("a directory");
    let ready = dir.path().join("ready");
    let traps = format!("trap 'exit 7' USR1; echo $$ >{}; while :; do sleep 0.1; done", ready.display());
    let mut wrapper = run(&cluster, "signalled", &[], &["sh", "-c", &traps]).spawn().expect("it runs");
    process_in(&ready);
    kill_process(Pid::from_child(&wrapper), Signal::USR1).expect("it lives");
    assert_eq!(wrapper.wait().expect("it ends").code(), Some(7));

    let (own, child) = (dir.path().join("own"), dir.path().join("child"));
    let forks = format!("trap '' TERM; sleep 100 & echo $! >{}; echo $$ >{}; wait", child.display(), own.display());
    let mut wrapper = run(&cluster, "killed", &[], &["sh", "-c", &forks]).spawn().expect("it runs");
    let processes = [process_in(&own), process_in(&child)];
    wrapper.kill().expect("it lives");
    wrapper.wait().expect("it ends");
    wait_until("the program's end", LIMIT, || processes.iter().all(|process| is_gone(*process)));
}

#[test]
fn what_programs_say_of_themselves_is_in_their_claims() {
    let (cluster, _pulse) = cluster();
    let examples = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples"));
    for (agent, example, notes) in [("shell", "status.sh", "step 4 of 4"), ("python", "status.py", "epoch 4 of 4")] {
        let program = examples.join(example);
        let mut command = run(&cluster, agent, &["--budget", "100"], &[program.to_str().expect("text")]);
        command.env("STEP_SECONDS", "0.6");
        let said = output(command);
        assert_eq!(said.status.code(), Some(0), "{}", text(&said.stderr));
        let claims = claims_of(&cluster, agent);
        assert!(claims.iter().any(|claim| claim["notes"] == notes), "{claims:?}");
        let progress: Vec<f64> = claims.iter().filter_map(|claim| claim["progress"].as_f64()).collect();
        assert!(progress.is_sorted() && progress.last() == Some(&1.0), "{progress:?}");
        assert_eq!(states_of(&claims, "t").last().map(String::as_str), Some("done"));
    }
    assert!(claims_of(&cluster, "python").iter().any(|claim| claim["help"] == "requested"));
}

#[test]
fn kafka_being_away_stops_no_program_and_no_budget() {
    let dir = TempDir::new().expect("a directory");
    let mut devstack = own_devstack(1, dir.path());
    let cluster = Cluster::on(&devstack, 2);
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "600", "--max-bpm", "600"]);
    wait_until("a beat", LIMIT, || !cluster.frames().is_empty());
    let begun = dir.path().join("begun");
    let program = format!("sleep 1; echo $$ >{}; sleep 100", begun.display());
    let flags = ["--budget", "60", "--flush", "1"];
    let wrapper = run(&cluster, "outage", &flags, &["sh", "-c", &program]);
    let mut wrapper = { wrapper }.stderr(Stdio::piped()).spawn().expect("it runs");
    process_in(&begun);
    devstack.hang_broker(0, true).expect("it hangs");
    // Local beats spend the budget.
    wait_until("the budget's end", LIMIT, || wrapper.try_wait().expect("it can be waited for").is_some());
    let said = wrapper.wait_with_output().expect("it has ended");
    assert_eq!(said.status.code(), Some(124), "{}", text(&said.stderr));
    assert!(text(&said.stderr).contains("were lost"), "{}", text(&said.stderr));
    devstack.hang_broker(0, false).expect("it goes on");
    drop(pulse);

    devstack.stop_broker(0).expect("it stops");
    let without = output(run(&cluster, "without", &["--flush", "1"], &["sh", "-c", "echo ran"]));
    assert_eq!((without.status.code(), text(&without.stdout)), (Some(0), "ran\n".into()));
    devstack.stop();
}
