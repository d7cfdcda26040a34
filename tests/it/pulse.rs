//! One pulse node and a second one on a real Kafka: no beat is missing, and none is there twice.

use std::time::Duration;

use backbeat_tests::{Cluster, Program, wait_until};
use rustix::process::Signal;

use crate::frames::check;

const LIMIT: Duration = Duration::from_mins(1);
/// 20 beats per second.
const FAST: &[&str] = &["--cluster", "it", "--bpm", "1200", "--max-bpm", "6000", "--bar", "4"];

fn wait_for_beats(cluster: &Cluster, beats: usize) {
    wait_until(&format!("{beats} beats"), LIMIT, || cluster.frames().len() >= beats);
}

#[test]
fn pulse_killed_and_restarted_continues_without_gap_or_repeat() {
    let cluster = Cluster::new(3);
    for _ in 0..5 {
        let before = cluster.frames().len();
        let pulse = cluster.serve("pulse", FAST);
        wait_for_beats(&cluster, before + 20);
        pulse.signal(Signal::KILL);
    }
    let frames = cluster.frames();
    assert!(frames.len() >= 100);
    check(&frames);
    assert_eq!(frames.last().map(|frame| frame.term), Some(5), "each start must have its own term");
    assert_eq!(frames[0].claim_offsets, [0, 0, 0]);
}

#[test]
fn pulse_fenced_by_another_without_peers_stops_with_the_reason() {
    let cluster = Cluster::new(1);
    let mut first = cluster.serve("pulse", &[FAST, &["--node", "one"]].concat());
    wait_for_beats(&cluster, 5);
    let mut second = cluster.serve("pulse", &[FAST, &["--node", "two"]].concat());
    // The first to publish a beat after the fencing stays leader; the other one stops.
    wait_until("one of the two to stop", LIMIT, || !first.is_running() || !second.is_running());
    let (loser, mut winner): (&mut Program, Program) =
        if first.is_running() { (&mut second, first) } else { (&mut first, second) };
    assert_eq!(loser.wait(), 1);
    assert!(
        loser.log().contains("the producer was fenced; backing off"),
        "the fenced node did not wait: {}",
        loser.log()
    );
    assert!(loser.log().contains("this node has no peers, so it stops"), "{}", loser.log());
    let beats = cluster.frames().len();
    wait_for_beats(&cluster, beats + 20);
    assert!(winner.is_running());
    check(&cluster.frames());
}

#[test]
fn pulse_api_shows_status_and_metrics() {
    let cluster = Cluster::new(1);
    let pulse = cluster.serve("pulse", FAST);
    pulse.wait_ready();
    wait_for_beats(&cluster, 8);
    assert_eq!(pulse.get_json("/health")["status"], "ok");
    // The newest beat is the one that the node has read back, which is later than the one that it has published.
    wait_until("a beat in the status", LIMIT, || !pulse.get_json("/api/v1/status")["last_beat"].is_null());
    let status = pulse.get_json("/api/v1/status");
    assert_eq!((status["role"].as_str(), status["cluster_id"].as_str()), (Some("leader"), Some("it")));
    assert_eq!(status["last_beat"]["type"], "backbeat.beatframe.v1");
    for metric in [
        "backbeat_beats_total",
        "backbeat_pulse_jitter_seconds_count",
        "backbeat_is_leader",
        "backbeat_current_tempo_bpm",
    ] {
        assert!(pulse.metric(metric).is_some_and(|value| value > 0.0), "{metric}");
    }
    let (code, body) = pulse.get("/nowhere").expect("the program answers");
    assert_eq!((code, body.contains("no such path: /nowhere")), (404, true));
}

#[test]
fn pulse_on_topics_of_another_cluster_exits_with_an_error() {
    let cluster = Cluster::new(1);
    let first = cluster.serve("pulse", FAST);
    wait_for_beats(&cluster, 1);
    drop(first);
    let mut other = cluster.serve("pulse", &["--cluster", "other", "--node", "other"]);
    assert_eq!(other.wait(), 1);
    assert!(other.log().contains("beatframes belongs to cluster \"it\", not to \"other\""), "{}", other.log());
}
