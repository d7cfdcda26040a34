//! Jitter of beats, with a bare thread that sleeps until the same deadlines as baseline, and their delivery to a
//! subscriber, on an idle broker and on one with 20,000 claims per second.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;
use std::time::Duration;

use backbeat_broker::TopicName;
use backbeat_schemas::BeatFrame;
use backbeat_tests::{Cluster, PulseNodes, now_ms, percentile, wait_until};

use crate::claim_source::{ClaimSource, Load};
use crate::table::{Row, Table};

const LIMIT: Duration = Duration::from_mins(1);
const NODES: usize = 3;
/// Number of measured beats in a run.
const BEATS: usize = 150;
/// Number of measured beats in the run for the p99 of jitter, at 20 beats a second.
const JITTER_BEATS: usize = 2_000;
/// Number of beats before the measurement, while code is loaded and connections are made.
const WARM_UP: usize = 10;
/// The limit of PER-001.
const DELIVERY_REQUIRED_MS: f64 = 100.0;
const JITTER_GOAL_MS: f64 = 2.0;

pub(crate) fn run(table: &mut Table) {
    let slow = measure("60", BEATS, false);
    let fast = measure("120", BEATS, false);
    let many = measure("1200", JITTER_BEATS, false);
    let loaded = measure("120", BEATS, true);
    for (run, names) in [
        (
            &slow,
            [
                "pulse_jitter_p50_1hz_ms",
                "pulse_jitter_p95_1hz_ms",
                "pulse_jitter_p99_1hz_ms",
                "pulse_jitter_max_1hz_ms",
            ],
        ),
        (
            &fast,
            [
                "pulse_jitter_p50_2hz_ms",
                "pulse_jitter_p95_2hz_ms",
                "pulse_jitter_p99_2hz_ms",
                "pulse_jitter_max_2hz_ms",
            ],
        ),
    ] {
        for (name, percent) in names.into_iter().zip([50, 95, 99, 100]) {
            let (value, baseline_value) = (percentile(&run.jitter, percent), percentile(&run.bare, percent));
            table.add(Row { name: name.into(), value, unit: "ms", baseline: "a bare sleeping thread", baseline_value });
        }
    }
    table.add(Row {
        name: "pulse_jitter_p99_over_bare_ms".into(),
        value: percentile(&many.jitter, 99) - percentile(&many.bare, 99),
        unit: "ms",
        baseline: "goal",
        baseline_value: JITTER_GOAL_MS,
    });
    for (run, names) in [
        (&fast, ["beat_delivery_p50_ms", "beat_delivery_p95_ms", "beat_delivery_p99_ms"]),
        (&loaded, ["beat_delivery_loaded_p50_ms", "beat_delivery_loaded_p95_ms", "beat_delivery_loaded_p99_ms"]),
    ] {
        for (name, percent) in names.into_iter().zip([50, 95, 99]) {
            let value = percentile(&run.delivery, percent);
            let baseline = "required (PER-001, p95)";
            table.add(Row { name: name.into(), value, unit: "ms", baseline, baseline_value: DELIVERY_REQUIRED_MS });
        }
    }
    for (run, name) in [(&fast, "pulse_commit_mean_ms"), (&loaded, "pulse_commit_loaded_mean_ms")] {
        let (value, baseline) = (run.commit_mean_ms, "delivery, p50");
        let baseline_value = percentile(&run.delivery, 50);
        table.add(Row { name: name.into(), value, unit: "ms", baseline, baseline_value });
    }
    let drift = [&slow, &fast, &many, &loaded].map(|run| run.drift_ms.abs()).into_iter().fold(0.0, f64::max);
    table.add(Row {
        name: "schedule_drift_ms".into(),
        value: drift,
        unit: "ms",
        baseline: "goal",
        baseline_value: 0.0,
    });
}

/// The measurements of one run, in milliseconds.
struct Run {
    /// The distance of each `emitted_at` from its `scheduled_at`.
    jitter: Vec<f64>,
    /// The jitter of a thread that sleeps until the same deadlines.
    bare: Vec<f64>,
    /// From each `scheduled_at` to the receipt by a subscriber.
    delivery: Vec<f64>,
    /// The mean time from a beat's emission until Kafka has answered that it is committed.
    commit_mean_ms: f64,
    /// The difference between the run's length by its schedule and by its tempo.
    drift_ms: f64,
}

fn measure(bpm: &str, beats: usize, loaded: bool) -> Run {
    let cluster = Cluster::new(12);
    let nodes = PulseNodes::start(&cluster, NODES, &["--cluster", "bench", "--bpm", bpm, "--max-bpm", bpm]);
    wait_until("a beat", LIMIT, || !cluster.frames().is_empty());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        if loaded {
            scope
                .spawn(|| ClaimSource::new(&cluster).send_at_constant_rate(Load::default(), &AtomicI64::new(0), &done));
        }
        let run = receive_beats(&cluster, &nodes, beats, scope);
        done.store(true, Ordering::Relaxed);
        run
    })
}

fn receive_beats<'scope>(
    cluster: &Cluster,
    nodes: &PulseNodes<'_>,
    beats: usize,
    scope: &'scope thread::Scope<'scope, '_>,
) -> Run {
    let mut reader = cluster.reader::<BeatFrame>(TopicName::BeatFrames);
    let end = reader.end_offset().expect("Kafka answers");
    reader.seek(end).expect("Kafka answers");
    let mut received: Vec<(BeatFrame, f64)> = Vec::new();
    let mut bare = None;
    while received.len() < WARM_UP + beats {
        if let Some(entry) = reader.poll(LIMIT).expect("Kafka answers") {
            let at = now_ms();
            if received.len() == WARM_UP {
                let (first, period) = (entry.record.deadline_at.millis(), entry.record.tempo_bpm.period_ms());
                bare = Some(scope.spawn(move || sleeper(first, period, beats)));
            }
            received.push((entry.record, at));
        }
    }
    let measured = &received[WARM_UP..];
    let millis = |frame: &BeatFrame| frame.emitted_at.millis_since(frame.scheduled_at).abs() as f64;
    let (first, last) = (&measured[0].0, &measured[measured.len() - 1].0);
    let expected = first.tempo_bpm.beats_ms(last.beat_index.since(first.beat_index));
    let sum = |metric: &str| (0..NODES).filter_map(|node| nodes.node(node).metric(metric)).sum::<f64>();
    Run {
        jitter: measured.iter().map(|(frame, _)| millis(frame)).collect(),
        bare: bare.expect("the baseline thread was started").join().expect("the baseline thread did not panic"),
        delivery: measured.iter().map(|(frame, at)| at - frame.scheduled_at.millis() as f64).collect(),
        commit_mean_ms: 1_000.0 * sum("backbeat_pulse_commit_seconds_sum") / sum("backbeat_pulse_commit_seconds_count"),
        drift_ms: (last.scheduled_at.millis_since(first.scheduled_at) - expected) as f64,
    }
}

/// Sleeps until each deadline and returns the distances from them, in whole milliseconds like the instants in frames.
fn sleeper(first: i64, period: i64, beats: usize) -> Vec<f64> {
    let distance = |beat: i64| {
        let deadline = (first + beat * period) as f64;
        thread::sleep(Duration::from_secs_f64((deadline - now_ms()).max(0.0) / 1_000.0));
        (now_ms().floor() - deadline).abs()
    };
    // The run ends before the last deadline.
    (0..beats as i64 - 1).map(distance).collect()
}
