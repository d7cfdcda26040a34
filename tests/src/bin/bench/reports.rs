//! The delay from the beat that closes a window to the receipt of its report by a consumer, at 20,000 claims per
//! second; and the cost of the report's transactions.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backbeat_broker::{Deliveries, ProducerRecord, Sender, TopicName, TransactionalProducer};
use backbeat_schemas::{BarPartial, BarReport, BeatFrame, BeatIndex, Done, PartialBody, Verdict, WindowId, wire};
use backbeat_tests::{Cluster, now_ms, percentile, wait_until};

use crate::claim_source::ClaimSource;
use crate::table::{Row, Table, median};

const LIMIT: Duration = Duration::from_mins(1);
const WINDOWS: usize = 200;
const WARM_UP: usize = 10;
const DELAY_GOAL_MS: f64 = 250.0;
/// The number of windows that the merge finishes in one transaction during a replay.
const BATCH: u32 = 500;
const ROUNDS: usize = 15;
const TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) fn run(table: &mut Table) {
    let (delays, report) = delays();
    for (name, percent) in [("report_delay_p50_ms", 50), ("report_delay_p95_ms", 95), ("report_delay_p99_ms", 99)] {
        let value = percentile(&delays, percent);
        table.add(Row { name, value, unit: "ms", baseline: "goal for the p99", baseline_value: DELAY_GOAL_MS });
    }
    let one = costs(&report, 1);
    table.add(Row {
        name: "eos_window_ms",
        value: median(one.iter().map(|(transactional, _)| *transactional).collect()),
        unit: "ms",
        baseline: "the same without a transaction",
        baseline_value: median(one.iter().map(|(_, plain)| *plain).collect()),
    });
    let batches = costs(&report, BATCH);
    let percent = batches.iter().map(|(transactional, plain)| (transactional / plain - 1.0) * 100.0).collect();
    table.add(Row {
        name: "eos_cost_percent",
        value: median(percent),
        unit: "% of the time",
        baseline: "without transactions",
        baseline_value: 0.0,
    });
}

/// The delays from the closing beat's `emitted_at` to the receipt of the report by a consumer, in milliseconds; and one
/// of the reports.
fn delays() -> (Vec<f64>, BarReport) {
    let cluster = Cluster::new(12);
    let _pulse = cluster.serve("pulse", &["--cluster", "bench", "--bpm", "240", "--max-bpm", "240", "--bar", "2"]);
    let reverb = cluster.serve("reverb", &["--cluster", "bench"]);
    wait_until("a report", LIMIT, || !cluster.reports().is_empty());
    let (newest, done) = (AtomicI64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| ClaimSource::new(&cluster).send_at_constant_rate(&newest, &done));
        let deadline = Instant::now() + 10 * LIMIT;
        let received = watch(&cluster, &newest, |received| {
            assert!(Instant::now() < deadline, "{received} reports: {}", reverb.log());
            received >= WARM_UP + WINDOWS
        });
        done.store(true, Ordering::Relaxed);
        let received = &received[WARM_UP..];
        let counted = received.iter().map(|(report, _)| report.claims).sum::<i64>();
        assert!(counted > 0, "no claim was counted");
        (received.iter().map(|(_, delay)| *delay).collect(), received[0].0.clone())
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

/// The milliseconds until Kafka has acknowledged the records of `windows` windows, for each round with a transaction
/// and without one.
fn costs(report: &BarReport, windows: u32) -> Vec<(f64, f64)> {
    let cluster = Cluster::new(1);
    let topics = cluster.broker().topics();
    let (reports, partials) = (topics.name(TopicName::BarReports), topics.name(TopicName::BarPartials));
    let records: Vec<(String, Vec<u8>, Vec<u8>)> = (0..windows)
        .map(|window| {
            let from = BeatIndex::ZERO.plus(window);
            let id = WindowId::new("bench", from);
            let done = PartialBody::Done(Done { verdict: Verdict::Written, low: 0, rescued: Vec::new() });
            (id.to_string(), wire(1, report), wire(1, &BarPartial::new(id, from, done)))
        })
        .collect();
    let id = topics.merge_transactional_id();
    let mut producer = TransactionalProducer::open(cluster.broker(), &id, TIMEOUT, TIMEOUT).expect("Kafka answers");
    let sender = Sender::new(cluster.broker(), TopicName::BarPartials, None).expect("a producer");
    let mut send_in_transaction = || {
        let began = Instant::now();
        let mut transaction = producer.begin().expect("the transaction begins");
        for (key, report, done) in &records {
            transaction.send(&reports, key, report, 0).expect("the queue has room");
            transaction.send(&partials, key, done, 0).expect("the queue has room");
        }
        transaction.commit().expect("the transaction commits");
        began.elapsed().as_secs_f64() * 1_000.0
    };
    let send_plain = || {
        let began = Instant::now();
        let deliveries = std::sync::Arc::new(Deliveries::default());
        for (key, report, done) in &records {
            for (topic, value) in [(&reports, report), (&partials, done)] {
                let record = ProducerRecord { topic, key: Some(key.as_bytes()), value, headers: &[] };
                sender.send(record, &deliveries).expect("the queue has room");
            }
        }
        // Not by a flush, which takes at least 100 ms.
        while deliveries.outstanding() > 0 {
            assert!(began.elapsed() < TIMEOUT, "not acknowledged within {TIMEOUT:?}");
            thread::sleep(Duration::from_micros(50));
        }
        assert_eq!(deliveries.acknowledged(), 2 * u64::from(windows));
        began.elapsed().as_secs_f64() * 1_000.0
    };
    // Not measured: the first sends, which open the connections.
    send_in_transaction();
    send_plain();
    (0..ROUNDS).map(|_| (send_in_transaction(), send_plain())).collect()
}
