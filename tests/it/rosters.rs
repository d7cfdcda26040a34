//! Rosters: who needs attention, in the topic, on the command line and over HTTP.

use std::collections::BTreeMap;
use std::time::Duration;

use backbeat_broker::{TopicName, TransactionalProducer};
use backbeat_schemas::{BarReport, BarRoster, BeatIndex, RosterKind, Verdict, wire};
use backbeat_tests::{Cluster, Oracle, Program, wait_until};
use reqwest::blocking::Client;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::agent::lines;
use crate::reports::{check_reports, count, reverb, verdicts};

const LIMIT: Duration = Duration::from_mins(2);
/// The schema of reports before there were rosters.
const FIRST_REPORT_SCHEMA: &str = include_str!("../../schemas/history/bar_report/1.avsc");
const TROUBLE: [&str; 8] =
    ["--silence-rate", "0", "--silent-task-rate", "0.2", "--stalled-task-rate", "0.2", "--overdrawn-task-rate", "0.2"];

/// Stops pulse after the window of the last claims was closed.
fn close_last_window(cluster: &Cluster, pulse: Program) {
    let end = cluster.frames().len() + 10;
    wait_until("two more bars", LIMIT, || cluster.frames().len() >= end);
    drop(pulse);
}

/// The Avro bodies of all rosters, by downbeat and partition.
fn bodies(cluster: &Cluster) -> BTreeMap<(BeatIndex, i32), Vec<Vec<u8>>> {
    let mut bodies = BTreeMap::<_, Vec<_>>::new();
    for entry in cluster.read_all::<BarRoster>(TopicName::BarRosters) {
        bodies.entry((entry.record.from_beat, entry.record.partition)).or_default().push(entry.body);
    }
    bodies
}

#[test]
fn rosters_after_a_kill_and_a_replay_equal_the_oracles_byte_for_byte() {
    let cluster = Cluster::new(3);
    let pulse =
        cluster.serve("pulse", &["--cluster", "it", "--bpm", "600", "--max-bpm", "600", "--bar", "4", "--grace", "1"]);
    let members = [reverb(&cluster, &[]), reverb(&cluster, &[])];
    let args = ["--agents", "60", "--beats", "60", "--late-rate", "0.05", "--malformed-rate", "0.05", "--verify"];
    let mut sim = cluster.start("agent-sim", &[&args[..], &TROUBLE, &["--output", "json"]].concat());
    wait_until("five reports", LIMIT, || cluster.reports().len() >= 5);
    let [survivor, victim] = members;
    victim.signal(Signal::KILL);
    drop(victim);
    assert_eq!(sim.wait(), 0, "{}", sim.log());
    let named = sim.printed_json()["verified"]["named"].as_u64();
    assert!(named > Some(60), "{named:?}");
    close_last_window(&cluster, pulse);
    let oracle = check_reports(&cluster);
    for kind in RosterKind::ALL {
        let rosters = oracle.rosters();
        assert!(rosters.iter().map(|roster| roster.count(kind)).sum::<i64>() > 10, "too few for a test of {kind:?}");
    }
    drop(survivor);

    cluster.reset_to_earliest();
    let before = verdicts(&cluster);
    let windows = cluster.reports().len();
    let members = [reverb(&cluster, &[]), reverb(&cluster, &[]), reverb(&cluster, &[])];
    let verified = || count(&verdicts(&cluster), Verdict::Verified) - count(&before, Verdict::Verified);
    wait_until("all windows to be verified", LIMIT, || verified() >= windows);
    let bodies = bodies(&cluster);
    for (key, bodies) in &bodies {
        assert!(bodies.len() > 1, "{key:?} was not written again");
        assert!(bodies.iter().all(|body| body == &bodies[0]), "{key:?}");
    }
    check_command_and_api(&cluster, &oracle, &members[0]);
}

/// Compares what `backbeat roster` prints and what a member answers with the oracle.
fn check_command_and_api(cluster: &Cluster, oracle: &Oracle, member: &Program) {
    let rosters = oracle.rosters();
    let newest = cluster.reports().into_iter().map(|entry| entry.record).max_by_key(|report| report.from_beat);
    let newest = newest.expect("there are reports");
    let busiest = oracle.reports().into_iter().max_by_key(|report| report.tasks_stalled + report.agents_fell_silent);
    let busiest = busiest.expect("there are reports");
    for report in [&newest, &busiest] {
        let mut expected = Vec::new();
        for kind in RosterKind::ALL {
            let of_window = rosters.iter().filter(|roster| roster.from_beat == report.from_beat);
            let entries =
                of_window.flat_map(|roster| roster.entries(kind).iter().map(|entry| (roster.partition, entry)));
            let mut entries: Vec<_> = entries.collect();
            entries.sort_by_key(|(_, entry)| (entry.agent_id.clone(), entry.task_id.clone()));
            expected.extend(entries.into_iter().map(|(partition, entry)| {
                // Numbers as they are read from text.
                let mut item: Value = serde_json::from_str(&json!(entry).to_string()).expect("valid JSON");
                item["kind"] = json!(kind);
                item["partition"] = partition.into();
                item
            }));
        }
        let (id, beat) = (report.window_id.to_string(), report.to_beat.to_string());
        let mut printed = lines(cluster, &["roster", "--window", &id]);
        assert_eq!(printed, lines(cluster, &["roster", "--beat", &beat]));
        for line in &mut printed {
            let line = line.as_object_mut().expect("an object");
            assert_eq!(line.remove("window_id"), Some(json!(report.window_id)));
            assert_eq!(line.remove("from_beat"), Some(json!(report.from_beat)));
        }
        assert_eq!(printed, expected);
        // In pages of seven.
        let (mut answered, mut after) = (Vec::new(), Some(0));
        while let Some(skipped) = after {
            let page = member.get_json(&format!("/api/v1/windows/{id}/roster?limit=7&after={skipped}"));
            assert_eq!(page["agents_fell_silent"], report.agents_fell_silent, "{page}");
            answered.extend(page["entries"].as_array().expect("an array").clone());
            after = page["next_after"].as_u64();
        }
        assert_eq!(answered, expected);
        let stalled = member.get_json(&format!("/api/v1/windows/{id}/roster?kind=stalled&limit=1000"));
        assert_eq!(stalled["entries"].as_array().map(Vec::len), Some(report.tasks_stalled as usize));
        let stalled = lines(cluster, &["roster", "--beat", &beat, "--kind", "stalled"]);
        assert_eq!(stalled.len() as i64, report.tasks_stalled);
    }
    for (path, status, expected) in [
        ("x/roster", 400, "x"),
        ("00000000000000000000000000000000/roster", 404, "no report of window"),
        ("00000000000000000000000000000000/roster?kind=late", 400, "`kind` (silent, stalled or overdrawn)"),
        ("00000000000000000000000000000000/roster?limit=0", 400, "limit is 0; must be 1 to 1000"),
    ] {
        let answer = member.get(&format!("/api/v1/windows/{path}")).expect("the member answers");
        assert!(answer.0 == status && answer.1.contains(expected), "{path}: {answer:?}");
    }
    for metric in ["agents_fell_silent", "tasks_stalled", "tasks_overdrawn"] {
        assert!(member.metric(&format!("backbeat_reverb_{metric}")).is_some(), "{metric}");
    }
    // All agents have stopped: those with an open task at the end fell silent, and are silent still.
    let still = lines(cluster, &["roster", "--last", "1000"]);
    let mut last_claims = BTreeMap::new();
    for roster in &rosters {
        for entry in &roster.silent {
            last_claims.insert(entry.agent_id.clone(), roster.from_beat);
        }
    }
    // Since: for a beat of that window or later, or late, after it was closed.
    let has_claimed_since = |agent: &str, from: i64| {
        let bars = lines(cluster, &["agent", agent, "--from", "0"]);
        let claims = bars.iter().flat_map(|bar| bar["claims"].as_array().expect("an array").clone());
        let mut valid = claims.filter(|claim| claim["outcome"] == "counted" || claim["outcome"] == "late");
        valid.any(|claim| {
            claim["claim"]["beat_index"].as_i64() >= Some(from) || claim["arrival_beat"].as_i64() >= Some(from + 5)
        })
    };
    assert!(!still.is_empty());
    for (agent, from) in last_claims.into_iter().take(10) {
        let is_silent = !has_claimed_since(&agent, from.get());
        let printed = still.iter().find(|line| line["agent_id"] == agent.as_str());
        assert_eq!(printed.map(|line| line["from_beat"].clone()), is_silent.then(|| json!(from)), "{agent}");
    }
}

/// Publishes a report as the version before the rosters did.
fn publish_first_logic(cluster: &Cluster, schema: u32, report: &BarReport) {
    // The three counts at the end are 0, a byte each.
    let mut value = wire(schema, report);
    value.truncate(value.len() - 3);
    let timeout = Duration::from_secs(10);
    let producer = TransactionalProducer::open(cluster.broker(), "test-first-logic", timeout, timeout);
    let mut producer = producer.expect("Kafka answers");
    let mut transaction = producer.begin().expect("the transaction begins");
    let topic = cluster.broker().topics().name(TopicName::BarReports);
    let sent = transaction.send(&topic, &report.window_id.to_string(), &value, report.closed_at.millis());
    sent.and_then(|()| transaction.commit()).expect("the transaction commits");
}

#[test]
fn reports_of_the_version_before_rosters_stay_as_they_are() {
    let cluster = Cluster::new(2);
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "600", "--max-bpm", "600", "--bar", "4"]);
    let member = reverb(&cluster, &[]);
    let mut sim = cluster.start("agent-sim", &[&["--agents", "20", "--beats", "30"][..], &TROUBLE].concat());
    assert_eq!(sim.wait(), 0, "{}", sim.log());
    close_last_window(&cluster, pulse);
    let expected = check_reports(&cluster).reports();
    drop(member);

    // The first half was published by the version before.
    cluster.recreate(TopicName::BarReports);
    cluster.recreate(TopicName::BarPartials);
    cluster.recreate(TopicName::BarRosters);
    let subject = cluster.broker().topics().subject(TopicName::BarReports);
    let url = format!("{}/subjects/{subject}/versions", cluster.kafka().schema_registry);
    let body = json!({ "schema": FIRST_REPORT_SCHEMA });
    let answer = Client::new().post(url).json(&body).send().expect("the registry answers");
    let answer: Value = answer.json().expect("the registry answers with JSON");
    let schema = answer["id"].as_u64().unwrap_or_else(|| panic!("{answer}")) as u32;
    let of_first_logic = |report: &BarReport| BarReport {
        logic: 1,
        agents_fell_silent: 0,
        tasks_stalled: 0,
        tasks_overdrawn: 0,
        ..report.clone()
    };
    let (old, new) = expected.split_at(expected.len() / 2);
    for report in old {
        publish_first_logic(&cluster, schema, &of_first_logic(report));
    }

    cluster.reset_to_earliest();
    let member = reverb(&cluster, &[]);
    wait_until("all windows to be finished", LIMIT, || {
        let verdicts = verdicts(&cluster);
        count(&verdicts, Verdict::Verified) == old.len() && count(&verdicts, Verdict::Written) == new.len()
    });
    drop(member);
    let published: Vec<BarReport> = cluster.reports().into_iter().map(|entry| entry.record).collect();
    let expected: Vec<BarReport> = old.iter().map(of_first_logic).chain(new.iter().cloned()).collect();
    assert_eq!(published, expected);
    let audit = cluster.backbeat(&["audit"]);
    let printed = String::from_utf8_lossy(&audit.stdout).into_owned();
    assert!(printed.contains(&format!("{} identical, 0 different", expected.len())), "{printed}");
}
