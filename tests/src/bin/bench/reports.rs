//! The delay from the beat that closes a window to the receipt of its report by a consumer, at 20,000 claims per
//! second; and the share of the reports' transactions in a replay.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backbeat_broker::TopicName;
use backbeat_schemas::{BarReport, BeatFrame};
use backbeat_tests::{Cluster, now_ms, percentile, wait_for, wait_until};

use crate::claim_source::{ClaimSource, Load};
use crate::table::{Row, Table, median};

const POLL: Duration = Duration::from_millis(5);
const LIMIT: Duration = Duration::from_mins(1);
const WINDOWS: usize = 200;
const WARM_UP: usize = 10;
const DELAY_GOAL_MS: f64 = 250.0;
const REPLAYS: usize = 3;
/// The number of windows of a replay: half a minute of them.
const REPLAYED_WINDOWS: i64 = 300;
const EOS_SHARE_GOAL_PERCENT: f64 = 5.0;

pub(crate) fn run(table: &mut Table) {
    let delays = delays();
    for (name, percent) in [("report_delay_p50_ms", 50), ("report_delay_p95_ms", 95), ("report_delay_p99_ms", 99)] {
        let value = percentile(&delays, percent);
        table.add(Row {
            name: name.into(),
            value,
            unit: "ms",
            baseline: "goal for the p99",
            baseline_value: DELAY_GOAL_MS,
        });
    }
    table.add(Row {
        name: "eos_share_percent".into(),
        value: median((0..REPLAYS).map(|_| transactions_share_percent()).collect()),
        unit: "% of the time",
        baseline: "goal",
        baseline_value: EOS_SHARE_GOAL_PERCENT,
    });
}

/// The delays from the closing beat's `emitted_at` to the receipt of the report by a consumer, in milliseconds.
fn delays() -> Vec<f64> {
    let cluster = Cluster::new(12);
    let _pulse = cluster.serve("pulse", &["--cluster", "bench", "--bpm", "240", "--max-bpm", "240", "--bar", "2"]);
    let reverb = cluster.serve("reverb", &["--cluster", "bench"]);
    wait_until("a report", LIMIT, || !cluster.reports().is_empty());
    let (newest, done) = (AtomicI64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| ClaimSource::new(&cluster).send_at_constant_rate(Load::default(), &newest, &done));
        let deadline = Instant::now() + 10 * LIMIT;
        let received = watch(&cluster, &newest, |received| {
            assert!(Instant::now() < deadline, "{received} reports: {}", reverb.log());
            received >= WARM_UP + WINDOWS
        });
        done.store(true, Ordering::Relaxed);
        let received = &received[WARM_UP..];
        let counted = received.iter().map(|(report, _)| report.claims).sum::<i64>();
        assert!(counted > 0, "no claim was counted");
        received.iter().map(|(_, delay)| *delay).collect()
    })
}

/// Returns the reports that come until `is_done` is true of their number, each with its delay in milliseconds from the
/// `emitted_at` of its window's closing beat. Stores the newest beat.
pub(crate) fn watch(
    cluster: &Cluster,
    newest: &AtomicI64,
    mut is_done: impl FnMut(usize) -> bool,
) -> Vec<(BarReport, f64)> {
    let mut frames = cluster.reader::<BeatFrame>(TopicName::BeatFrames);
    let mut reports = cluster.reader::<BarReport>(TopicName::BarReports);
    frames.seek(0).expect("Kafka answers");
    let end = reports.end_offset().expect("Kafka answers");
    reports.seek(end).expect("Kafka answers");
    let mut emitted = HashMap::new();
    let mut received: Vec<(BarReport, f64)> = Vec::new();
    while !is_done(received.len()) {
        if let Some(entry) = reports.poll(Duration::from_millis(1)).expect("Kafka answers") {
            received.push((entry.record, now_ms()));
        }
        if let Some(entry) = frames.poll(Duration::ZERO).expect("Kafka answers") {
            newest.store(entry.record.beat_index.get(), Ordering::Relaxed);
            emitted.insert(entry.record.beat_index, entry.record.emitted_at.millis() as f64);
        }
    }
    let with_delay = |(report, at): (BarReport, f64)| {
        let delay = at - emitted[&report.to_beat.plus(1)];
        (report, delay)
    };
    received.into_iter().map(with_delay).collect()
}

/// The part of a cold replay's time in which the merge has a transaction open, in percent. The replay, of a bar of 2 beats for
/// each 2,000 claims, is from the start of the member to the last report.
fn transactions_share_percent() -> f64 {
    let cluster = Cluster::new(12);
    let pulse = cluster.serve("pulse", &["--cluster", "bench", "--bpm", "1200", "--max-bpm", "1200", "--bar", "2"]);
    wait_until("a beat", LIMIT, || !cluster.frames().is_empty());
    let (newest, done) = (AtomicI64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| ClaimSource::new(&cluster).send_at_constant_rate(Load::default(), &newest, &done));
        let mut frames = cluster.reader::<BeatFrame>(TopicName::BeatFrames);
        frames.seek(0).expect("Kafka answers");
        while newest.load(Ordering::Relaxed) < 2 * REPLAYED_WINDOWS {
            let entry = wait_for("a beat", LIMIT, || frames.poll(POLL).expect("Kafka answers"));
            newest.store(entry.record.beat_index.get(), Ordering::Relaxed);
        }
        done.store(true, Ordering::Relaxed);
    });
    drop(pulse);
    let windows = (cluster.frames().len() - 1) / 2;
    let began = Instant::now();
    let reverb = cluster.serve("reverb", &["--cluster", "bench"]);
    let finished = || reverb.metric("backbeat_reverb_windows_completed_total").unwrap_or(0.0) as usize;
    wait_until("all reports", LIMIT, || finished() >= windows);
    let took = began.elapsed().as_secs_f64();
    let claims: i64 = cluster.reports().iter().map(|entry| entry.record.claims).sum();
    assert!(claims > 0, "no claim was counted");
    100.0 * reverb.metric("backbeat_reverb_transaction_seconds_sum").expect("the metric is exported") / took
}
