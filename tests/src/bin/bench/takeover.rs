//! The time from killing the leader to the receipt of the next beat by a subscriber, with three nodes.

use std::time::{Duration, Instant};

use backbeat_broker::{LogReader, TopicName};
use backbeat_schemas::BeatFrame;
use backbeat_tests::{Cluster, PulseNodes, percentile};

use crate::table::{Row, Table, median};

const KILLS: usize = 60;
const NODES: usize = 3;
/// 20 beats per second: the next beat is due within 50 ms, so the measured time is that of the takeover.
const FLAGS: [&str; 6] = ["--cluster", "bench", "--bpm", "1200", "--max-bpm", "1200"];
const LIMIT: Duration = Duration::from_mins(1);
const GOAL_MS: f64 = 1_000.0;
/// The pause before each kill, in which the restarted node catches up.
const SETTLE: Duration = Duration::from_millis(700);

pub(crate) fn run(table: &mut Table) {
    let took = takeovers(&Cluster::new(12), &FLAGS, KILLS);
    let rows = [
        ("pulse_takeover_min_ms", percentile(&took, 0)),
        ("pulse_takeover_median_ms", median(took.clone())),
        ("pulse_takeover_p99_ms", percentile(&took, 99)),
    ];
    for (name, value) in rows {
        table.add(Row { name: name.into(), value, unit: "ms", baseline: "goal for the p99", baseline_value: GOAL_MS });
    }
}

/// Returns the milliseconds that each of `kills` takeovers takes.
pub(crate) fn takeovers(cluster: &Cluster, pulse_flags: &[&str], kills: usize) -> Vec<f64> {
    let mut nodes = PulseNodes::start(cluster, NODES, pulse_flags);
    let mut frames = cluster.reader::<BeatFrame>(TopicName::BeatFrames);
    let end = frames.end_offset().expect("Kafka answers");
    frames.seek(end).expect("Kafka answers");
    next_frame(&mut frames, |_| true);
    (0..kills).map(|_| kill(&mut nodes, &mut frames)).collect()
}

/// Kills the leader and returns the milliseconds until the receipt of another node's beat.
fn kill(nodes: &mut PulseNodes<'_>, frames: &mut LogReader<BeatFrame>) -> f64 {
    nodes.wait_until_ready();
    std::thread::sleep(SETTLE);
    while let Some(entry) = frames.poll(Duration::ZERO).expect("Kafka answers") {
        drop(entry);
    }
    let leader_name = next_frame(frames, |_| true).node;
    let leader = PulseNodes::index_of(&leader_name);
    let killed = Instant::now();
    nodes.kill(leader);
    next_frame(frames, |frame| frame.node != leader_name);
    let took = killed.elapsed();
    nodes.start_node(leader);
    took.as_secs_f64() * 1_000.0
}

/// Returns the next frame that is `wanted`.
fn next_frame(frames: &mut LogReader<BeatFrame>, wanted: impl Fn(&BeatFrame) -> bool) -> BeatFrame {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        let entry = frames.poll(Duration::from_millis(100)).expect("Kafka answers");
        if let Some(entry) = entry.filter(|entry| wanted(&entry.record)) {
            return entry.record;
        }
    }
    panic!("no such frame within {LIMIT:?}");
}
