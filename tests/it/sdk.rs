//! The SDK's example, against a real cluster.

use std::time::Duration;

use backbeat_tests::{Cluster, wait_until};
use serde_json::Value;

const LIMIT: Duration = Duration::from_mins(1);

/// Reads the claims of an agent, in the order of the log.
pub(crate) fn claims_of(cluster: &Cluster, agent: &str) -> Vec<Value> {
    let output = cluster.backbeat(&["tail", "statusclaims", "--from-beginning"]);
    let lines = String::from_utf8(output.stdout).expect("the output is UTF-8");
    let claims = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("valid JSON"));
    claims.filter(|claim| claim["agent_id"] == agent).collect()
}

/// The states in a task's claims, without consecutive repeats.
pub(crate) fn states_of(claims: &[Value], task: &str) -> Vec<String> {
    let of_task = claims.iter().filter(|claim| claim["task_id"] == task);
    let mut states: Vec<String> = of_task.filter_map(|claim| Some(claim["state"].as_str()?.to_owned())).collect();
    states.dedup();
    states
}

#[test]
fn example_agent_claims_once_per_beat_within_its_budgets() {
    let cluster = Cluster::new(2);
    let _pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "240", "--max-bpm", "240"]);
    wait_until("a beat", LIMIT, || !cluster.frames().is_empty());
    let output = cluster.command("examples/agent", &[]).output().expect("the program runs");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert!(printed.contains("build: Ok(())"), "{printed}");
    assert!(printed.contains("train: the budget of 3 beats is spent: the work ran for 3 beats"), "{printed}");
    let claims = claims_of(&cluster, "example-agent");
    assert!(printed.contains(&format!("{} claims acknowledged, 0 failed", claims.len())), "{printed}");
    assert_eq!(states_of(&claims, "build"), ["executing", "done"]);
    assert_eq!(states_of(&claims, "train"), ["executing", "failed"]);
    // One claim per beat, and one at the end.
    for task in ["build", "train"] {
        let of_task: Vec<&Value> = claims.iter().filter(|claim| claim["task_id"] == task).collect();
        let beats: Vec<i64> = of_task.iter().filter_map(|claim| claim["beat_index"].as_i64()).collect();
        assert!(beats[..beats.len() - 1].windows(2).all(|pair| pair[0] < pair[1]), "{task}: {beats:?}");
        let left: Vec<i64> = of_task.iter().filter_map(|claim| claim["beats_left"].as_i64()).collect();
        assert!(left.windows(2).all(|pair| pair[0] >= pair[1]), "{task}: {left:?}");
    }
    assert!(claims.iter().any(|claim| claim["help"] == "requested"));
    assert!(claims.iter().any(|claim| claim["secret_rotation"] == "ok"));
    assert!(claims.iter().all(|claim| claim["degraded"] == false));
}
