//! The HTTP API of a member of reverb.

use std::time::Duration;

use backbeat_tests::{Cluster, Program, wait_for, wait_until};
use serde_json::Value;

use crate::reports::reverb;

const LIMIT: Duration = Duration::from_mins(2);

/// Starts pulse, a member and nine agents, and waits for a report of all of them.
fn reporting_pipeline(cluster: &Cluster) -> (Program, Program, Program) {
    let pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "1200", "--max-bpm", "1200", "--bar", "4"]);
    let reverb = reverb(cluster, &[]);
    let sim = cluster.start("agent-sim", &["--agents", "9"]);
    wait_until("a report of all agents", LIMIT, || {
        cluster.reports().iter().any(|entry| entry.record.agents_reporting == 9)
    });
    (pulse, reverb, sim)
}

#[test]
fn status_and_metrics_of_a_member_are_complete() {
    let cluster = Cluster::new(2);
    let (pulse, reverb, sim) = reporting_pipeline(&cluster);

    let status = reverb.get_json("/api/v1/status");
    assert_eq!((status["cluster_id"].as_str(), status["merging"].as_bool()), (Some("it"), Some(true)));
    assert_eq!(status["partitions"].as_array().map(Vec::len), Some(2));
    assert!(status["oldest_open_window"]["from_beat"].as_i64() >= Some(0), "{status}");
    assert_eq!(status["group"]["1"]["member"], status["name"], "{status}");
    let slos = status["objectives"].as_array().expect("objectives is a list");
    let names: Vec<_> = slos.iter().filter_map(|slo| slo["name"].as_str()).collect();
    assert_eq!(names, ["rollup_delay", "beat_delivery", "pulse_jitter"]);
    assert!(slos.iter().all(|slo| slo["samples"].as_i64() > Some(0) && slo["holds"].is_boolean()), "{status}");
    wait_until("the lag in records", LIMIT, || reverb.get_json("/api/v1/status")["lag_records"].is_i64());
    for metric in [
        "backbeat_reverb_agents_reporting",
        "backbeat_reverb_windows_completed_total",
        "backbeat_reverb_window_processing_seconds_count",
        "backbeat_reverb_claims_processed_total",
        "backbeat_reverb_assigned_partitions",
        "backbeat_reverb_rebalances_total",
        "backbeat_reverb_beat_delivery_seconds_count",
        r#"backbeat_reverb_transactions_total{outcome="committed"}"#,
        "backbeat_reverb_transaction_seconds_count",
        r#"backbeat_reverb_objective_limit_seconds{objective="rollup_delay"}"#,
    ] {
        // On a slow machine all agents may miss a bar.
        wait_until(metric, LIMIT, || reverb.metric(metric).is_some_and(|value| value > 0.0));
    }
    for metric in ["on_time_reviews", "lag_records", "lag_beats", "oldest_window_beats", "reemitted_reports_total"] {
        let name = format!("backbeat_reverb_{metric}");
        assert!(reverb.metric(&name).is_some(), "{name}");
    }
    drop((sim, pulse));
}

#[test]
fn windows_of_the_api_are_those_of_the_topic_on_each_member() {
    let cluster = Cluster::new(2);
    let (pulse, reverb, sim) = reporting_pipeline(&cluster);
    let windows = reverb.get_json("/api/v1/windows");
    let windows = windows["windows"].as_array().expect("windows is a list");
    let is_written = |window: &&Value| window["report"].is_object() && window["verdict"] == "written";
    let finished = windows.iter().find(is_written).expect("the API has a finished window");
    let id = finished["window_id"].as_str().expect("window_id is a string");
    let window = reverb.get_json(&format!("/api/v1/windows/{id}"));
    let report = &window["report"];
    assert_eq!((report["window_id"].as_str(), report["type"].as_str()), (Some(id), Some("backbeat.barreport.v1")));
    let shares = ["0", "1"].map(|partition| &window["partitions"][partition]);
    assert_eq!(shares.iter().filter_map(|share| share["claims"].as_i64()).sum::<i64>(), report["claims"], "{window}");
    for (partition, share) in shares.iter().enumerate() {
        assert_eq!(share["from_offset"], report["from_offsets"][partition], "{window}");
        assert_eq!(share["to_offset"], report["to_offsets"][partition], "{window}");
    }

    wait_until("five reports", LIMIT, || cluster.reports().len() >= 5);
    let froms = |page: &Value| -> Vec<i64> {
        let windows = page["windows"].as_array().expect("windows is a list");
        windows.iter().filter_map(|window| window["from_beat"].as_i64()).collect()
    };
    let page = reverb.get_json("/api/v1/windows?limit=2");
    let newest = froms(&page);
    assert_eq!(page["next_before"].as_i64(), newest.last().copied(), "{page}");
    let next = froms(&reverb.get_json(&format!("/api/v1/windows?limit=2&before={}", page["next_before"])));
    assert_eq!(next, [newest[1] - 4, newest[1] - 8]);
    let last = reverb.get_json("/api/v1/windows?before=4");
    assert_eq!((froms(&last), &last["next_before"]), (vec![0], &Value::Null));

    let answer = |path: &str| reverb.get(path).unwrap_or_else(|| panic!("{path}: no answer"));
    for (path, expected) in [
        ("nonsense", "window"),
        ("?limit=0", "limit is 0; must be 1 to 1000"),
        ("?before=-1", "the parameters are `before` (a beat index) and `limit`"),
        ("?bevore=4", "the parameters are `before` (a beat index) and `limit`"),
    ] {
        let separator = if path.starts_with('?') { "" } else { "/" };
        let (status, body) = answer(&format!("/api/v1/windows{separator}{path}"));
        assert!(status == 400 && body.contains(expected), "{path}: {status} {body}");
    }
    assert_eq!(answer(&format!("/api/v1/windows/{}", "0".repeat(32))).0, 404);

    // A member that has just joined knows the reports too.
    let second = self::reverb(&cluster, &[]);
    let known = || second.get(&format!("/api/v1/windows/{id}")).filter(|(status, _)| *status == 200);
    let (_, body) = wait_for("the window in the other member's API", LIMIT, known);
    assert_eq!(serde_json::from_str::<Value>(&body).expect("valid JSON")["report"], *report);
    drop((sim, pulse));
}
