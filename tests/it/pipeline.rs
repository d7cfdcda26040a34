//! The whole pipeline: pulse, agents, reverb, reports, audit and replay.

use std::env;
use std::fs;
use std::time::Duration;

use backbeat_broker::TopicName;
use backbeat_schemas::{BarReport, Verdict};
use backbeat_tests::{Cluster, PulseNodes, wait_until};
use reqwest::Method;
use rustix::process::Signal;

use crate::frames::check;
use crate::reports::{check_reports, count, reverb, totals, verdicts, wait_for_reports};

const LIMIT: Duration = Duration::from_mins(2);

/// The path of the recorded task list that drives the agents, its number of tasks, and how many of its seconds pass per
/// beat (`tests/data/README.md`).
fn recorded_tasks() -> (String, usize, String) {
    let variable = |name, default: &str| env::var(name).unwrap_or_else(|_| default.to_owned());
    let path = variable("TRACE", concat!(env!("CARGO_MANIFEST_DIR"), "/data/azure-llm-code-requests.csv"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("the task list {path}: {error}"));
    (path, text.lines().count() - 1, variable("TRACE_SECONDS_PER_BEAT", "5"))
}

#[test]
fn recorded_tasks_replayed_give_the_same_report_bytes() {
    let cluster = Cluster::new(12);
    let (tasks, agents, seconds_per_beat) = recorded_tasks();
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "1200", "--max-bpm", "6000", "--bar", "8"]);
    let members = [reverb(&cluster, &[]), reverb(&cluster, &["--expect-bar-length", "8"])];
    let trace = ["--trace", &tasks, "--trace-seconds-per-beat", &seconds_per_beat, "--verify", "--output", "json"];
    let mut sim = cluster.start("agent-sim", &trace);
    wait_for_reports(&cluster, 10);
    let [survivor, victim] = members;
    victim.signal(Signal::KILL);
    drop(victim);
    let members = [survivor, reverb(&cluster, &[])];
    assert_eq!(sim.wait(), 0, "{}", sim.log());
    // The window of the last claims closes only with the next bar.
    let beats = cluster.frames().len();
    wait_until("two more bars", LIMIT, || cluster.frames().len() >= beats + 16);
    drop(pulse);

    let oracle = check_reports(&cluster);
    let first = cluster.reports();
    let (counted, late, invalid) = totals(&first);
    assert_eq!(counted + late + invalid, oracle.claims() as i64, "a claim is in no report or in two");
    assert!(sim.log().contains(&format!("\"claims_acknowledged\":{}", oracle.claims())), "{}", sim.log());
    assert_eq!(invalid, 0);
    let done: i64 = first.iter().map(|entry| entry.record.tasks_done + entry.record.tasks_failed).sum();
    // How many of the last claims are late depends on the machine, so the exact number is compared with the oracle
    // only.
    assert!(done > 0 && done as usize <= agents, "{done} of {agents} tasks ended in a window");
    for member in members {
        drop(member);
    }
    let audit = cluster.backbeat(&["audit"]);
    let summary =
        format!("{0} windows: {0} identical, 0 different, 0 missing, 0 duplicate, 0 not retained", first.len());
    assert_eq!(String::from_utf8_lossy(&audit.stdout).trim(), summary);
    assert!(audit.status.success());

    // A replay from the earliest offsets, with three members, computes the same bytes, so nothing is written.
    cluster.reset_to_earliest();
    let before = verdicts(&cluster);
    let members = [reverb(&cluster, &[]), reverb(&cluster, &[]), reverb(&cluster, &[])];
    wait_until("all windows to be verified", LIMIT, || count(&verdicts(&cluster), Verdict::Verified) >= first.len());
    for member in members {
        drop(member);
    }
    let after = verdicts(&cluster);
    assert_eq!(
        count(&after, Verdict::Verified) - count(&before, Verdict::Verified),
        first.len(),
        "a window was verified twice"
    );
    assert_eq!(count(&after, Verdict::Written), first.len());
    assert_eq!(cluster.reports().len(), first.len(), "a report was written again");

    // A second replay, with one member that writes every report again, gives the same bytes.
    cluster.reset_to_earliest();
    let member = reverb(&cluster, &["--reemit", "always"]);
    wait_for_reports(&cluster, first.len() * 2);
    drop(member);
    let all = cluster.reports();
    assert_eq!(all.len(), first.len() * 2);
    for (before, after) in all.iter().zip(&all[first.len()..]) {
        assert_eq!(before.body, after.body, "window {}", before.record.window_id);
    }
    let audit = cluster.backbeat(&["audit"]);
    let printed = String::from_utf8_lossy(&audit.stdout).into_owned();
    assert!(printed.contains(&format!("{} duplicate", first.len())), "{printed}");
    assert_eq!(audit.status.code(), Some(3), "exit code of an audit with findings");
}

/// `backbeat replay` prints a plan first, and is refused while members run.
#[test]
fn replay_starts_at_the_requested_window() {
    let cluster = Cluster::new(3);
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "1200", "--max-bpm", "1200", "--bar", "4"]);
    let first = reverb(&cluster, &[]);
    let sim = cluster.start("agent-sim", &["--agents", "20"]);
    wait_for_reports(&cluster, 8);
    drop((sim, pulse));
    // Wait until every window that can be closed has a report.
    wait_for_reports(&cluster, (cluster.frames().len() - 1) / 4);
    let replay = |args: &[&str]| {
        let output = cluster.backbeat(&[&["replay"], args].concat());
        let printed = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&printed).into_owned())
    };
    let reports = cluster.reports();
    let wanted = &reports[5].record;
    let (ok, printed) = replay(&["--to-beat", &wanted.to_beat.to_string()]);
    assert!(ok && printed.contains("nothing was changed"), "{printed}");
    let plan = format!("from window {}: beats {}", wanted.window_id, wanted.from_beat);
    assert!(printed.contains(&plan), "{printed}");
    for (partition, offset) in wanted.from_offsets.iter().enumerate() {
        assert!(printed.contains(&format!("partition {partition:<4} offset {offset}")), "{printed}");
    }
    for target in [["--to-window", &wanted.window_id.to_string()], ["--to-datetime", &wanted.opened_at.to_string()]] {
        let (ok, printed) = replay(&target);
        assert!(ok && printed.contains(&plan), "{target:?}: {printed}");
    }
    let (ok, printed) = replay(&["--to-earliest"]);
    assert!(ok && printed.contains("beats 0 to"), "{printed}");
    let (ok, printed) = replay(&["--to-beat", "1000000"]);
    assert!(!ok && printed.contains("has not been published yet"), "{printed}");
    let execute = ["--to-beat", &wanted.from_beat.to_string(), "--execute"];
    let (ok, printed) = replay(&execute);
    assert!(!ok && printed.contains("stop reverb first"), "{printed}");

    drop(first);
    let (ok, printed) = replay(&execute);
    assert!(ok && printed.contains("done"), "{printed}");
    let before = verdicts(&cluster);
    let second = reverb(&cluster, &[]);
    let replayed = reports.iter().filter(|entry| entry.record.from_beat >= wanted.from_beat).count();
    let verified = || count(&verdicts(&cluster), Verdict::Verified) - count(&before, Verdict::Verified);
    wait_until("the replayed windows to be verified", LIMIT, || verified() >= replayed);
    assert!(second.log().contains(&format!("from_beat={}", wanted.from_beat)), "{}", second.log());
    drop(second);
    assert_eq!(verified(), replayed, "a window before the requested one was replayed");
    assert_eq!(cluster.reports().len(), reports.len(), "a report was written again");
}

#[test]
fn audit_finds_different_and_missing_reports() {
    let cluster = Cluster::new(3);
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "1200", "--max-bpm", "1200", "--bar", "4"]);
    let reverb = reverb(&cluster, &[]);
    let sim = cluster.start("agent-sim", &["--agents", "20"]);
    wait_for_reports(&cluster, 6);
    drop((sim, reverb));
    // Reverb has stopped, so the windows that close now have no report.
    let beats = cluster.frames().len();
    wait_until("two more bars", LIMIT, || cluster.frames().len() >= beats + 8);
    drop(pulse);
    let reports = cluster.reports();
    let wrong = BarReport { claims: 1_000_000, ..reports[2].record.clone() };
    cluster.publish_report(&wrong);

    let audit = |args: &[&str]| {
        let output = cluster.backbeat(&[&["audit"], args].concat());
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, printed) = audit(&[]);
    assert_eq!(code, Some(3), "{printed}");
    let computed = format!("window {}: claims 1000000, computed {}", wrong.window_id, reports[2].record.claims);
    assert!(printed.contains(&computed), "{printed}");
    let missing = printed.lines().filter(|line| line.starts_with("missing ")).count();
    assert!(missing >= 1 && printed.contains(" 1 different"), "{printed}");
    let dry_run = cluster.backbeat(&["replay", "--to-beat", "4", "--dry-run-report"]);
    let printed = String::from_utf8_lossy(&dry_run.stdout).into_owned();
    let change = format!("rewrite 1, write {missing} and skip 0 reports");
    assert!(dry_run.status.success() && printed.contains(&computed) && printed.contains(&change), "{printed}");
    let to = reports[1].record.to_beat.to_string();
    let (code, printed) = audit(&["--to", &to]);
    assert_eq!(
        (code, printed.trim()),
        (Some(0), "2 windows: 2 identical, 0 different, 0 missing, 0 duplicate, 0 not retained")
    );
    let from = wrong.from_beat.to_string();
    let (_, printed) = audit(&["--from", &from, "--to", &from, "--output", "json"]);
    let found: serde_json::Value = serde_json::from_str(printed.trim()).expect("valid JSON");
    assert_eq!(
        (found["finding"].as_str(), found["detail"]["published"]["claims"].as_i64()),
        (Some("different"), Some(1_000_000))
    );
}

/// An audit of deleted claims must fail, not count zero claims.
#[test]
fn audit_of_a_recreated_topic_fails_with_the_reason() {
    let cluster = Cluster::new(1);
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "1200", "--max-bpm", "1200", "--bar", "4"]);
    let reverb = reverb(&cluster, &[]);
    let sim = cluster.start("agent-sim", &["--agents", "20"]);
    wait_until("a whole report", LIMIT, || cluster.reports().iter().any(|entry| entry.record.claims > 20));
    drop((sim, reverb, pulse));
    cluster.recreate(TopicName::StatusClaims);
    let audit = cluster.backbeat(&["audit"]);
    let stderr = String::from_utf8_lossy(&audit.stderr).into_owned();
    assert_eq!(audit.status.code(), Some(1), "{stderr}{}", String::from_utf8_lossy(&audit.stdout));
    assert!(stderr.contains("the last stable offset of statusclaims-0 is 0, below the boundary"), "{stderr}");
}

/// Reverb uses the consumer group protocol of KIP-848 here.
#[test]
fn claims_late_or_invalid_with_a_grace_are_reported_as_such() {
    let cluster = Cluster::new(5);
    let pulse = cluster
        .serve("pulse", &["--cluster", "it", "--bpm", "1200", "--max-bpm", "1200", "--bar", "4", "--grace", "2"]);
    let protocol = ["--group-protocol", "consumer"];
    let members = [reverb(&cluster, &protocol), reverb(&cluster, &protocol)];
    let rates = ["--silence-rate", "0.1", "--late-rate", "0.1", "--malformed-rate", "0.1", "--failure-rate", "0.2"];
    let mut sim =
        cluster.start("agent-sim", &[&["--agents", "60", "--seed", "7", "--beats", "80"], &rates[..]].concat());
    assert_eq!(sim.wait(), 0, "{}", sim.log());
    let beats = cluster.frames().len();
    wait_until("two more bars", LIMIT, || cluster.frames().len() >= beats + 10);
    drop(pulse);
    let oracle = check_reports(&cluster);
    let (counted, late, invalid) = totals(&cluster.reports());
    assert_eq!(counted + late + invalid, oracle.claims() as i64);
    assert!(late > 100 && invalid > 100, "late {late}, invalid {invalid}");
    assert!(cluster.reports().iter().any(|entry| !entry.record.secret_rotations_ok));
    drop(members);
}

/// The tempo and the bar length change, the pulse leader is killed, and reverb is replaced in between.
#[test]
fn reports_with_changing_bar_lengths_and_a_killed_leader_equal_the_oracles() {
    let cluster = Cluster::new(3);
    let fast = ["--cluster", "it", "--bpm", "900", "--max-bpm", "1200", "--bar", "16"];
    let mut pulses = PulseNodes::start(&cluster, 3, &fast);
    let first_reverb = reverb(&cluster, &[]);
    let sim = cluster.start("agent-sim", &["--agents", "30"]);
    let bar_length = || cluster.frames().last().map_or(0, |frame| frame.bar_length);
    let change = |pulses: &PulseNodes<'_>, body: &str| {
        let node = pulses.wait_for_leader();
        pulses.node(node).request(Method::POST, "/api/v1/tempo", body, None).expect("the leader answers")
    };
    wait_for_reports(&cluster, 2);
    let (status, body) = change(&pulses, r#"{"tempo_bpm": 1200, "ramp": true, "bar_length": 2}"#);
    assert_eq!(status, 200, "{body}");
    wait_until("bars of 2 beats", LIMIT, || bar_length() == 2);
    drop(first_reverb);
    let leader = pulses.wait_for_leader();
    pulses.kill(leader);
    let second_reverb = reverb(&cluster, &[]);
    let reports = cluster.reports().len();
    wait_for_reports(&cluster, reports + 10);
    let (status, body) = change(&pulses, r#"{"bar_length": 7}"#);
    assert_eq!(status, 200, "{body}");
    wait_until("bars of 7 beats", LIMIT, || bar_length() == 7);
    drop(sim);
    let beats = cluster.frames().len();
    wait_until("two more bars", LIMIT, || cluster.frames().len() >= beats + 16);
    drop(pulses);
    let oracle = check_reports(&cluster);
    let (counted, late, invalid) = totals(&cluster.reports());
    assert_eq!(counted + late + invalid, oracle.claims() as i64);
    check(&cluster.frames());

    drop(second_reverb);
    let windows = cluster.reports().len();
    cluster.reset_to_earliest();
    let replaying = reverb(&cluster, &[]);
    wait_until("all windows to be verified", LIMIT, || count(&verdicts(&cluster), Verdict::Verified) >= windows);
    assert_eq!(cluster.reports().len(), windows, "a report was written again");
    drop(replaying);
}
