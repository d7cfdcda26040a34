//! Reverb's metrics. The first five have the prototype's names.

use backbeat_broker::TransactionError;
use backbeat_schemas::{BarReport, InvalidClaim, Partial, Verdict};
use prometheus::{GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use crate::core::Slo;

/// From 1 ms to a second; the requirement is 100 ms.
const DELIVERY_BUCKETS: [f64; 9] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0];
/// From 5 ms to a minute; the requirement is one beat.
const PROCESSING_BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0];

pub(crate) struct Metrics {
    pub(crate) registry: Registry,
    agents_reporting: IntGauge,
    on_time_reviews: IntGauge,
    windows_completed: IntCounter,
    window_processing: Histogram,
    claims_processed: IntCounter,
    late: IntCounter,
    invalid: IntCounterVec,
    dead_letters: IntCounterVec,
    verdicts: IntCounterVec,
    merge_restarts: IntCounter,
    rebalances: IntCounter,
    partitions: IntGauge,
    waiting: IntGauge,
    lag_beats: IntGauge,
    lag_records: IntGauge,
    oldest_window_beats: IntGauge,
    reemitted: IntCounter,
    skipped: IntCounterVec,
    transactions: IntCounterVec,
    beat_delivery: Histogram,
    objective_p95: GaugeVec,
    objective_limit: GaugeVec,
    started_at_ms: i64,
}

impl Metrics {
    pub(crate) fn new() -> prometheus::Result<Self> {
        let reason = |name, help| IntCounterVec::new(Opts::new(name, help), &["reason"]);
        let objective = |name, help| GaugeVec::new(Opts::new(name, help), &["objective"]);
        let processing = HistogramOpts::new(
            "backbeat_reverb_window_processing_seconds",
            "From a window's end to its committed report; replayed windows do not count",
        );
        let metrics = Self {
            agents_reporting: IntGauge::new("backbeat_reverb_agents_reporting", "Agents in the last report")?,
            on_time_reviews: IntGauge::new("backbeat_reverb_on_time_reviews", "On-time reviews in the last report")?,
            windows_completed: IntCounter::new(
                "backbeat_reverb_windows_completed_total",
                "Windows finished by this member's merge",
            )?,
            window_processing: Histogram::with_opts(processing.buckets(PROCESSING_BUCKETS.to_vec()))?,
            claims_processed: IntCounter::new(
                "backbeat_reverb_claims_processed_total",
                "Records of statusclaims that were read",
            )?,
            late: IntCounter::new("backbeat_reverb_late_claims_total", "Late claims in closed windows")?,
            invalid: reason(
                "backbeat_reverb_invalid_claims_total",
                "Records of statusclaims that are no valid claims",
            )?,
            dead_letters: reason("backbeat_reverb_dead_letters_total", "Records sent to the dead-letter topic")?,
            verdicts: IntCounterVec::new(
                Opts::new("backbeat_reverb_verdicts_total", "How windows were finished"),
                &["verdict"],
            )?,
            merge_restarts: IntCounter::new(
                "backbeat_reverb_merge_restarts_total",
                "Times the merge started over after an error",
            )?,
            rebalances: IntCounter::new("backbeat_reverb_rebalances_total", "Changes of this member's assignment")?,
            partitions: IntGauge::new(
                "backbeat_reverb_assigned_partitions",
                "Partitions of statusclaims that this member owns",
            )?,
            waiting: IntGauge::new("backbeat_reverb_waiting_claims", "Claims that wait for the next boundary")?,
            lag_beats: IntGauge::new(
                "backbeat_reverb_lag_beats",
                "Beats between the newest frame and the slowest owned partition",
            )?,
            lag_records: IntGauge::new(
                "backbeat_reverb_lag_records",
                "Claims in owned partitions that were not taken yet",
            )?,
            oldest_window_beats: IntGauge::new(
                "backbeat_reverb_oldest_window_beats",
                "Beats since the oldest window was opened that owned partitions have not seen done",
            )?,
            reemitted: IntCounter::new(
                "backbeat_reverb_reemitted_reports_total",
                "Reports written again with the same bytes, as --reemit always does",
            )?,
            skipped: IntCounterVec::new(
                Opts::new(
                    "backbeat_reverb_skipped_windows_total",
                    "Windows without a report, because retention deleted claims before they were read (expired_before_read) or before they were read again (expired_before_recompute)",
                ),
                &["cause"],
            )?,
            transactions: IntCounterVec::new(
                Opts::new(
                    "backbeat_reverb_transactions_total",
                    "Transactions of the merge; failed and timed_out ones are read back",
                ),
                &["outcome"],
            )?,
            beat_delivery: Histogram::with_opts(
                HistogramOpts::new(
                    "backbeat_reverb_beat_delivery_seconds",
                    "From a beat's emitted_at, by pulse's clock, to this member's hands",
                )
                .buckets(DELIVERY_BUCKETS.to_vec()),
            )?,
            objective_p95: objective("backbeat_reverb_objective_p95_seconds", "The 95th percentile of the last 1,000")?,
            objective_limit: objective("backbeat_reverb_objective_limit_seconds", "What it may be at most")?,
            started_at_ms: chrono::Utc::now().timestamp_millis(),
            registry: Registry::new(),
        };
        metrics.register()?;
        metrics.begin_at_zero();
        Ok(metrics)
    }

    /// A counter that first shows itself at 1 has not risen, for Prometheus: what alerts look at begins at 0.
    fn begin_at_zero(&self) {
        for reason in InvalidClaim::REASONS {
            self.invalid.with_label_values(&[reason]);
            self.dead_letters.with_label_values(&[reason]);
        }
        for cause in ["expired_before_read", "expired_before_recompute"] {
            self.skipped.with_label_values(&[cause]);
        }
        for outcome in ["committed", "fenced", "failed", "timed_out"] {
            self.transactions.with_label_values(&[outcome]);
        }
    }

    fn register(&self) -> prometheus::Result<()> {
        let collectors: [Box<dyn prometheus::core::Collector>; 22] = [
            Box::new(self.agents_reporting.clone()),
            Box::new(self.on_time_reviews.clone()),
            Box::new(self.windows_completed.clone()),
            Box::new(self.window_processing.clone()),
            Box::new(self.claims_processed.clone()),
            Box::new(self.late.clone()),
            Box::new(self.invalid.clone()),
            Box::new(self.dead_letters.clone()),
            Box::new(self.verdicts.clone()),
            Box::new(self.merge_restarts.clone()),
            Box::new(self.rebalances.clone()),
            Box::new(self.partitions.clone()),
            Box::new(self.waiting.clone()),
            Box::new(self.lag_beats.clone()),
            Box::new(self.lag_records.clone()),
            Box::new(self.oldest_window_beats.clone()),
            Box::new(self.reemitted.clone()),
            Box::new(self.skipped.clone()),
            Box::new(self.transactions.clone()),
            Box::new(self.beat_delivery.clone()),
            Box::new(self.objective_p95.clone()),
            Box::new(self.objective_limit.clone()),
        ];
        collectors.into_iter().try_for_each(|collector| self.registry.register(collector))
    }

    pub(crate) fn processed(&self, claims: u64) {
        self.claims_processed.inc_by(claims);
    }

    pub(crate) fn closed(&self, partial: &Partial) {
        self.late.inc_by(partial.late_claims as u64);
    }

    pub(crate) fn invalid(&self, reason: &str) {
        self.invalid.with_label_values(&[reason]).inc();
    }

    pub(crate) fn dead_letter(&self, reason: &str) {
        self.dead_letters.with_label_values(&[reason]).inc();
    }

    pub(crate) fn merge_restarted(&self) {
        self.merge_restarts.inc();
    }

    pub(crate) fn rebalanced(&self, partitions: usize) {
        self.rebalances.inc();
        self.partitions.set(partitions as i64);
    }

    pub(crate) fn lag(&self, waiting: usize, beats: i64, records: Option<i64>, oldest_window_beats: i64) {
        self.waiting.set(waiting as i64);
        self.lag_beats.set(beats);
        if let Some(records) = records {
            self.lag_records.set(records);
        }
        self.oldest_window_beats.set(oldest_window_beats);
    }

    pub(crate) fn beat(&self, delivered_after_ms: i64) {
        self.beat_delivery.observe(delivered_after_ms as f64 / 1_000.0);
    }

    pub(crate) fn slos(&self, slos: &[Slo]) {
        for slo in slos {
            let set = |gauge: &GaugeVec, millis: Option<i64>| {
                if let Some(millis) = millis {
                    gauge.with_label_values(&[slo.name]).set(millis as f64 / 1_000.0);
                }
            };
            set(&self.objective_p95, slo.p95_ms);
            set(&self.objective_limit, slo.limit_ms);
        }
    }

    pub(crate) fn skipped(&self, cause: &str) {
        self.skipped.with_label_values(&[cause]).inc();
    }

    /// A transaction ended, in that error or well.
    pub(crate) fn transaction(&self, error: Option<&TransactionError>) {
        let outcome = match error {
            None => "committed",
            Some(TransactionError::Fenced(_)) => "fenced",
            Some(TransactionError::Failed(_)) => "failed",
            Some(TransactionError::TimedOut(_)) => "timed_out",
        };
        self.transactions.with_label_values(&[outcome]).inc();
    }

    /// A report was read, whoever wrote it.
    pub(crate) fn reported(&self, report: &BarReport) {
        self.agents_reporting.set(report.agents_reporting);
        self.on_time_reviews.set(report.on_time_reviews);
    }

    pub(crate) fn finished(&self, verdict: Verdict, report: Option<&BarReport>, again: bool) {
        self.windows_completed.inc();
        self.verdicts.with_label_values(&[verdict.as_str()]).inc();
        self.reemitted.inc_by(u64::from(again));
        let Some(report) = report else { return };
        let closed_at = report.closed_at.millis();
        if verdict == Verdict::Written && closed_at >= self.started_at_ms {
            let delay_ms = chrono::Utc::now().timestamp_millis() - closed_at;
            self.window_processing.observe(delay_ms as f64 / 1_000.0);
        }
    }
}
