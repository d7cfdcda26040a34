//! Pulse against a real Kafka: no beat missing, none twice.

use std::time::Duration;

use backbeat_tests::{Cluster, Program, wait_until};
use rustix::process::Signal;

use crate::frames::check;

const LIMIT: Duration = Duration::from_mins(1);
/// 20 beats a second.
const FAST: &[&str] = &["--cluster", "it", "--bpm", "1200", "--max-bpm", "6000", "--bar", "4"];

fn wait_for_beats(cluster: &Cluster, beats: usize) {
    wait_until(&format!("{beats} beats"), LIMIT, || cluster.frames().len() >= beats);
}

#[test]
fn killed_and_started_again_it_goes_on_without_a_gap_or_a_repeat() {
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
    assert_eq!(frames.last().map(|frame| frame.term), Some(5), "one term a start");
    assert_eq!(frames[0].claim_offsets, [0, 0, 0]);
}

#[test]
fn a_second_pulse_fences_the_first_which_stops_and_says_why() {
    let cluster = Cluster::new(1);
    let mut first = cluster.serve("pulse", &[FAST, &["--node", "one"]].concat());
    wait_for_beats(&cluster, 5);
    let mut second = cluster.serve("pulse", &[FAST, &["--node", "two"]].concat());
    // Whichever beats first after the fence stays: the other gives way.
    wait_until("one of them to stop", LIMIT, || !first.is_running() || !second.is_running());
    let (loser, mut winner): (&mut Program, Program) =
        if first.is_running() { (&mut second, first) } else { (&mut first, second) };
    assert_eq!(loser.wait(), 1);
    assert!(loser.log().contains("looking out for another pulse"), "fenced, it stays quiet: {}", loser.log());
    assert!(loser.log().contains("a pulse without peers gives way"), "{}", loser.log());
    let beats = cluster.frames().len();
    wait_for_beats(&cluster, beats + 20);
    assert!(winner.is_running());
    check(&cluster.frames());
}

#[test]
fn its_http_api_tells_of_it() {
    let cluster = Cluster::new(1);
    let pulse = cluster.serve("pulse", FAST);
    pulse.wait_ready();
    wait_for_beats(&cluster, 8);
    assert_eq!(pulse.get_json("/health")["status"], "ok");
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
    let (code, body) = pulse.get("/nowhere").expect("it answers");
    assert_eq!((code, body.contains("no such path: /nowhere")), (404, true));
}

#[test]
fn it_refuses_topics_of_another_cluster() {
    let cluster = Cluster::new(1);
    let first = cluster.serve("pulse", FAST);
    wait_for_beats(&cluster, 1);
    drop(first);
    let mut other = cluster.serve("pulse", &["--cluster", "other", "--node", "other"]);
    assert_eq!(other.wait(), 1);
    assert!(other.log().contains("beatframes belongs to cluster \"it\", not to \"other\""), "{}", other.log());
}
