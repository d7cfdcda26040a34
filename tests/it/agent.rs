//! `backbeat agent` and `backbeat explain`: what an agent claimed, and what became of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use backbeat_broker::{Deliveries, ProducerRecord, Sender, TopicName};
use backbeat_schemas::{BarReport, StatusClaim, testing, wire};
use backbeat_tests::{Attacker, Cluster, wait_for_boundaries, wait_until};
use serde_json::{Value, json};

use crate::reports::{check_reports, reverb, totals};

const LIMIT: Duration = Duration::from_mins(2);
const PARTITIONS: i32 = 3;
const AGENTS: usize = 8;
const BAR: i64 = 4;

/// Runs `backbeat` and returns the JSON objects that it prints.
pub(crate) fn lines(cluster: &Cluster, args: &[&str]) -> Vec<Value> {
    let output = cluster.backbeat(&[args, &["--output", "json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    let stdout = String::from_utf8(output.stdout).expect("the output is UTF-8");
    stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// The number of an agent's claims by outcome, in all bars.
fn outcomes(bars: &[Value]) -> BTreeMap<String, i64> {
    let mut counts = BTreeMap::new();
    for claim in bars.iter().flat_map(|bar| bar["claims"].as_array().expect("an array")) {
        *counts.entry(claim["outcome"].as_str().expect("a string").to_owned()).or_default() += 1;
    }
    counts
}

#[test]
fn histories_of_all_agents_add_up_to_the_reports() {
    let cluster = Cluster::new(PARTITIONS);
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "600", "--max-bpm", "600", "--bar", "4"]);
    let member = reverb(&cluster, &[]);
    let agents = AGENTS.to_string();
    let args = ["--agents", &agents, "--beats", "40", "--late-rate", "0.1", "--malformed-rate", "0.1"];
    let mut sim = cluster.start("agent-sim", &args);
    assert_eq!(sim.wait(), 0, "{}", sim.log());
    wait_for_boundaries(&cluster, LIMIT, || pulse.log());
    let end = cluster.frames().len() as i64 + 2 * BAR;
    wait_until("two more bars", LIMIT, || cluster.frames().len() as i64 >= end);
    drop(pulse);
    check_reports(&cluster);
    let (counted, late, invalid) = totals(&cluster.reports());
    assert!(counted > 0 && late > 0 && invalid > 0, "{counted} counted, {late} late, {invalid} invalid");

    let mut sums = BTreeMap::new();
    let mut by_window = BTreeMap::new();
    for agent in 0..AGENTS {
        let bars = lines(&cluster, &["agent", &format!("agent-{agent:05}"), "--from", "0", "--all-partitions"]);
        for (outcome, count) in outcomes(&bars) {
            *sums.entry(outcome).or_default() += count;
        }
        for bar in bars {
            *by_window.entry(bar["window_id"].as_str().expect("a string").to_owned()).or_insert(0) +=
                bar["counted"].as_i64().expect("a number");
        }
    }
    // Claims with another agent's key, or none, are in any partition.
    let expected = [("counted", counted), ("invalid", invalid), ("late", late)];
    assert_eq!(sums, BTreeMap::from(expected.map(|(outcome, count)| (outcome.to_owned(), count))));
    for entry in cluster.reports() {
        assert_eq!(by_window[&entry.record.window_id.to_string()], entry.record.claims, "{:?}", entry.record);
    }

    // A member answers the same.
    let closed = |bars: &Value| -> Vec<Value> {
        bars.as_array().expect("an array").iter().filter(|bar| bar["closed"] == true).cloned().collect()
    };
    let answered = member.get_json("/api/v1/agents/agent-00003/claims?last=7");
    let printed = lines(&cluster, &["agent", "agent-00003", "--last", "7"]);
    assert_eq!(closed(&answered["bars"]), closed(&printed.into()));
    assert!(answered["records"].as_u64() > Some(0), "{answered}");
    for (query, expected) in [
        ("last=0", "last is 0; must be 1 to 100"),
        ("to=1000000", "beat 1000000 has not been published yet"),
        ("from=1", "the parameters are `to` (a beat index) and `last` (a number of bars)"),
    ] {
        let (status, body) = member.get(&format!("/api/v1/agents/a/claims?{query}")).expect("the member answers");
        assert!(status == 400 && body.contains(expected), "{query}: {status} {body}");
    }

    // What came late counts in a correction, and nothing else changes.
    let mut corrected: BTreeMap<String, BarReport> =
        cluster.reports().into_iter().map(|entry| (entry.record.window_id.to_string(), entry.record)).collect();
    let published = corrected.clone();
    for line in lines(&cluster, &["corrections", "--from", "0"]) {
        let window = line["window_id"].as_str().expect("a string").to_owned();
        let before: BarReport = serde_json::from_value(line["published"].clone()).expect("a report");
        let after: BarReport = serde_json::from_value(line["corrected"].clone()).expect("a report");
        assert_eq!(published[&window], before);
        assert!(after.claims > before.claims && after.agents_reporting >= before.agents_reporting, "{line}");
        assert_eq!((after.late_claims, after.invalid_claims), (before.late_claims, before.invalid_claims));
        corrected.insert(window, after);
    }
    assert_eq!(corrected.values().map(|report| report.claims).sum::<i64>(), counted + late);
    assert_eq!(cluster.reports().len(), published.len(), "nothing was written");
}

#[test]
fn each_claim_of_an_agent_is_shown_with_its_outcome() {
    let cluster = Cluster::new(PARTITIONS);
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "120", "--max-bpm", "120", "--bar", "4"]);
    let newest = || cluster.frames().last().map_or(0, |frame| frame.beat_index.get());
    let schema = cluster.register::<StatusClaim>(TopicName::StatusClaims);
    let sender = Sender::new(cluster.broker(), TopicName::StatusClaims, None).expect("a producer");
    let (topic, deliveries) = (cluster.broker().topics().name(TopicName::StatusClaims), Arc::<Deliveries>::default());
    let send = |key: &str, claim: &StatusClaim| {
        let value = wire(schema, claim);
        let record = ProducerRecord { topic: &topic, key: Some(key.as_bytes()), value: &value, ..Default::default() };
        sender.send(record, &deliveries).expect("the queue has room");
    };
    // A claim of the first bar counts until its grace of one beat is over.
    wait_until("the first bar to close", LIMIT, || newest() > BAR);
    // After the first bar, and in the second: late, counted, invalid in three ways, and another agent's.
    let claim = |beat| testing::claim("historian", beat);
    send("historian", &claim(1));
    let named = newest();
    send("historian", &claim(named));
    send("historian", &StatusClaim { progress: 1.5, ..claim(named) });
    send("historian", &claim(named + 1_000));
    send("somebody", &claim(named));
    send("somebody", &testing::claim("somebody", named));
    wait_until("Kafka to acknowledge all records", LIMIT, || deliveries.outstanding() == 0);
    let attacker = Attacker::new(&cluster, &[]);
    let [history, all] = [&["agent", "historian", "--from", "0"][..], &["--all-partitions"]];
    let elsewhere = (0..PARTITIONS).find(|partition| {
        let at_home = lines(&cluster, history)[0]["claims"][0]["partition"].as_i64();
        Some(i64::from(*partition)) != at_home
    });
    attacker.send("historian", &attacker.claim("historian", "task", named), elsewhere);
    attacker.flush();
    wait_for_boundaries(&cluster, LIMIT, || pulse.log());
    let end = newest() + 2 * BAR;
    wait_until("the bars to close", LIMIT, || newest() >= end);

    let claims = |args: &[&str]| -> Vec<Value> {
        let bars = lines(&cluster, args);
        let mut claims: Vec<Value> =
            bars.into_iter().flat_map(|bar| bar["claims"].as_array().expect("an array").clone()).collect();
        claims.sort_by_key(|claim| (claim["misplaced"].as_bool(), claim["offset"].as_i64()));
        claims
    };
    let found = claims(history);
    let outcomes: Vec<&str> = found.iter().filter_map(|claim| claim["outcome"].as_str()).collect();
    assert_eq!(outcomes, ["late", "counted", "invalid", "invalid"], "{found:#?}");
    let arrival = found[0]["arrival_beat"].as_i64().expect("a number");
    let closing = BAR + i64::from(cluster.frames()[0].grace_beats);
    assert_eq!(found[0]["late_by_beats"], arrival - closing + 1);
    assert_eq!(found[1]["claim"]["beat_index"], named);
    assert_eq!(found[2]["reason"], "progress");
    assert_eq!(found[3]["reason"], "beat");
    let with_all = claims(&[history, all].concat());
    // The one with another agent's key, and the one in another partition than its key's.
    assert_eq!(with_all.len(), found.len() + 2, "{with_all:#?}");
    assert!(with_all.iter().any(|claim| claim["reason"] == "key"), "{with_all:#?}");
    let is_elsewhere = |claim: &&Value| claim["misplaced"] == true && claim["outcome"] != "invalid";
    let misplaced = with_all.iter().find(is_elsewhere).expect("a misplaced claim");
    assert_eq!(misplaced["partition"], json!(elsewhere));

    let explained = |args: &[&str]| {
        let output = cluster.backbeat(&[&["explain"], args].concat());
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (_, late) = explained(&["--agent", "historian", "--beat", "1"]);
    assert!(late.contains("too late for window"), "{late}");
    let beat = named.to_string();
    let (_, counted) = explained(&["--agent", "historian", "--beat", &beat]);
    assert!(
        counted.contains("so it counts in window") && counted.contains("and is invalid: progress is 1.5"),
        "{counted}"
    );
    let (_, none) = explained(&["--agent", "nobody", "--beat", &beat]);
    assert!(none.starts_with(&format!("nobody has no claim for beat {beat}, nor for another one of ")), "{none}");
    let (succeeded, future) = explained(&["--agent", "historian", "--beat", "1000000"]);
    assert!(!succeeded && future.contains("beat 1000000 has not been published yet"), "{future}");
    let text = cluster.backbeat(history);
    let text = String::from_utf8_lossy(&text.stdout);
    assert!(text.contains("silent") && text.contains(": counted\n"), "{text}");
}
