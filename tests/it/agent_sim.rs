//! `agent-sim --verify` compares the claims that a fleet sent with the log and the reports.

use std::time::Duration;

use backbeat_tests::{Cluster, Program, wait_for, wait_until};

const LIMIT: Duration = Duration::from_mins(1);

fn pulse_and_reverb(cluster: &Cluster, grace: &str) -> [Program; 2] {
    let pulse = cluster
        .serve("pulse", &["--cluster", "it", "--bpm", "300", "--max-bpm", "300", "--bar", "4", "--grace", grace]);
    let reverb = cluster.serve("reverb", &["--cluster", "it"]);
    wait_until("a beat", LIMIT, || !cluster.frames().is_empty());
    [pulse, reverb]
}

#[test]
fn fleet_of_each_load_shape_is_verified_against_the_reports() {
    let cluster = Cluster::new(3);
    let _programs = pulse_and_reverb(&cluster, "1");
    let rates = ["--late-rate", "0.1", "--malformed-rate", "0.05", "--silence-rate", "0.1"];
    // A second agent-sim, whose claims the verification must attribute to others.
    let _others = cluster.start("agent-sim", &["--agents", "5", "--agent-prefix", "other-"]);
    for shape in ["steady", "ramp:8", "spike:0.2", "churn:0.2"] {
        let prefix = format!("{}-", &shape[..5]);
        let args = ["--agents", "40", "--beats", "14", "--shape", shape, "--agent-prefix", &prefix, "--verify"];
        let mut sim = cluster.start("agent-sim", &[&args[..], &rates, &["--output", "json"]].concat());
        assert_eq!(sim.wait(), 0, "{}", sim.log());
        let summary = sim.printed_json();
        let of = |field: &str| summary[field].as_u64().unwrap_or_else(|| panic!("no number {field} in {summary}"));
        assert_eq!(of("beats"), 14);
        assert_eq!(of("claims_sent"), of("claims_acknowledged"), "{summary}");
        assert_eq!(summary["verified"]["claims_sent"], summary["claims_sent"], "{summary}");
        assert!(of("claims_malformed") > 0 && of("claims_late") > 0, "{summary}");
        assert!(summary["verified"]["claims_of_others"].as_u64() > Some(0), "{summary}");
        assert!(summary["latency_ms"]["p50"].as_f64() > Some(0.0), "{summary}");
        let claims = of("claims_sent");
        assert!(if shape == "steady" { claims > 400 } else { claims > 40 }, "{shape}: {claims}");
    }
}

#[test]
fn report_with_a_wrong_count_fails_the_verification() {
    let cluster = Cluster::new(1);
    let [_pulse, reverb] = pulse_and_reverb(&cluster, "0");
    let mut sim = cluster.start("agent-sim", &["--agents", "4", "--beats", "30", "--verify"]);
    let complete = || cluster.reports().into_iter().map(|entry| entry.record).find(|report| report.claims >= 14);
    let mut report = wait_for("a report of a whole bar", LIMIT, complete);
    drop(reverb);
    report.claims += 1;
    cluster.publish_report(&report);
    // The last windows have no reports: agent-sim waits for them, and then prints that they are missing.
    let code = sim.wait();
    let log = sim.log();
    assert_eq!(code, 1, "{log}");
    let miscounted = format!("claims {} in the report, {} in the log", report.claims, report.claims - 1);
    assert!(log.contains("DO NOT MATCH") && log.contains(&miscounted) && log.contains("no report"), "{log}");
    assert!(log.contains(&format!("see backbeat audit --from {0} --to {0}", report.from_beat)), "{log}");
}
