//! Reverb's metrics. The first five have the names that the prototype exported.

use backbeat_broker::TransactionError;
use backbeat_schemas::{BarReport, InvalidClaim, Partial, Verdict};
use prometheus::{GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use crate::core::{Lag, Slo};

/// Buckets from 1 ms to 1 s; the SLO is 100 ms.
const DELIVERY_BUCKETS: [f64; 9] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0];
/// Buckets from 5 ms to 1 min; the SLO is one beat.
const PROCESSING_BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0];
const WINDOWS_COMPLETED: &str = "Windows finished by this member's merge, with any verdict";

pub(crate) struct Metrics {
    pub(crate) registry: Registry,
    agents_reporting: IntGauge,
    on_time_reviews: IntGauge,
    windows_completed: IntCounter,
    window_processing: Histogram,
    claims: ClaimMetrics,
    verdicts: IntCounterVec,
    merge_restarts: IntCounter,
    takeovers: IntCounter,
    rescued_shares: IntCounter,
    rebalances: IntCounter,
    partitions: IntGauge,
    pending_claims: IntGauge,
    lag_beats: IntGauge,
    lag_records: IntGauge,
    oldest_window_beats: IntGauge,
    reemitted: IntCounter,
    skipped: IntCounterVec,
    transactions: IntCounterVec,
    beat_delivery: Histogram,
    slo_p95: GaugeVec,
    slo_limit: GaugeVec,
    started_at_ms: i64,
}

/// Metrics of claims and dead letters.
struct ClaimMetrics {
    processed: IntCounter,
    late: IntCounter,
    excess: IntCounter,
    misplaced: IntCounter,
    invalid: IntCounterVec,
    dead_letters: IntCounterVec,
    lost_dead_letters: IntCounter,
}

impl ClaimMetrics {
    fn new() -> prometheus::Result<Self> {
        let reason = |name, help| IntCounterVec::new(Opts::new(name, help), &["reason"]);
        Ok(Self {
            processed: IntCounter::new(
                "backbeat_reverb_claims_processed_total",
                "Records that this member polled from statusclaims, invalid ones and those that were read before included",
            )?,
            late: IntCounter::new("backbeat_reverb_late_claims_total", "Late claims in windows closed by this member")?,
            excess: IntCounter::new(
                "backbeat_reverb_excess_claims_total",
                "Claims of tasks beyond a partition's limit",
            )?,
            misplaced: IntCounter::new(
                "backbeat_reverb_misplaced_agents_total",
                "Agents with claims in other partitions than murmur2 gives them, once per window and partition",
            )?,
            invalid: reason("backbeat_reverb_invalid_claims_total", "Invalid claims in statusclaims")?,
            dead_letters: reason(
                "backbeat_reverb_dead_letters_total",
                "Invalid claims sent to the dead-letter topic, those that Kafka refused included",
            )?,
            lost_dead_letters: IntCounter::new(
                "backbeat_reverb_lost_dead_letters_total",
                "Invalid claims that Kafka refused in the dead-letter topic",
            )?,
        })
    }

    fn collectors(&self) -> [Box<dyn prometheus::core::Collector>; 7] {
        [
            Box::new(self.processed.clone()),
            Box::new(self.late.clone()),
            Box::new(self.excess.clone()),
            Box::new(self.misplaced.clone()),
            Box::new(self.invalid.clone()),
            Box::new(self.dead_letters.clone()),
            Box::new(self.lost_dead_letters.clone()),
        ]
    }
}

impl Metrics {
    pub(crate) fn new() -> prometheus::Result<Self> {
        // Metric names and the label keep `objective`, for SLO: dashboards and alerts use them.
        let slo_gauge = |name, help| GaugeVec::new(Opts::new(name, help), &["objective"]);
        let processing = HistogramOpts::new(
            "backbeat_reverb_window_processing_seconds",
            "Seconds from a window's closed_at, which is before its grace, to its committed report; replayed windows are not observed",
        );
        let metrics = Self {
            agents_reporting: IntGauge::new("backbeat_reverb_agents_reporting", "agents_reporting of the last report")?,
            on_time_reviews: IntGauge::new("backbeat_reverb_on_time_reviews", "on_time_reviews of the last report")?,
            windows_completed: IntCounter::new("backbeat_reverb_windows_completed_total", WINDOWS_COMPLETED)?,
            window_processing: Histogram::with_opts(processing.buckets(PROCESSING_BUCKETS.to_vec()))?,
            claims: ClaimMetrics::new()?,
            verdicts: IntCounterVec::new(
                Opts::new("backbeat_reverb_verdicts_total", "Windows finished by this member's merge, by verdict"),
                &["verdict"],
            )?,
            merge_restarts: IntCounter::new(
                "backbeat_reverb_merge_restarts_total",
                "Restarts of the merge after an error",
            )?,
            takeovers: IntCounter::new(
                "backbeat_reverb_takeovers_total",
                "Times that this member has taken the merge over, the first time in a new cluster included",
            )?,
            rescued_shares: IntCounter::new(
                "backbeat_reverb_rescued_shares_total",
                "Shares of windows that this member's merge has read itself, because their members did not send them in time",
            )?,
            rebalances: IntCounter::new(
                "backbeat_reverb_rebalances_total",
                "Changes of this member's assignment: each assignment and each revocation of partitions counts, so a rebalance may count twice",
            )?,
            partitions: IntGauge::new(
                "backbeat_reverb_assigned_partitions",
                "Partitions of statusclaims assigned to this member",
            )?,
            // The metric keeps its name from when pending claims were called waiting.
            pending_claims: IntGauge::new(
                "backbeat_reverb_waiting_claims",
                "Pending claims: those past the newest boundary, which wait for the next frame",
            )?,
            lag_beats: IntGauge::new(
                "backbeat_reverb_lag_beats",
                "Beats between the newest frame and the slowest assigned partition",
            )?,
            lag_records: IntGauge::new(
                "backbeat_reverb_lag_records",
                "Claims in assigned partitions that were not processed yet",
            )?,
            oldest_window_beats: IntGauge::new(
                "backbeat_reverb_oldest_window_beats",
                "Age in beats of the oldest window that is not done in an assigned partition",
            )?,
            reemitted: IntCounter::new(
                "backbeat_reverb_reemitted_reports_total",
                "Reports written again with the same bytes because of --reemit always",
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
                    "Transactions of the merge by outcome; one that failed or timed_out is in doubt until the merge has started over and read the log",
                ),
                &["outcome"],
            )?,
            beat_delivery: Histogram::with_opts(
                HistogramOpts::new(
                    "backbeat_reverb_beat_delivery_seconds",
                    "Seconds from a frame's emitted_at, by pulse's clock, to its reading by this member",
                )
                .buckets(DELIVERY_BUCKETS.to_vec()),
            )?,
            slo_p95: slo_gauge(
                "backbeat_reverb_objective_p95_seconds",
                "95th percentile of the SLO's last 1,000 samples",
            )?,
            slo_limit: slo_gauge("backbeat_reverb_objective_limit_seconds", "Limit of the SLO's 95th percentile")?,
            started_at_ms: chrono::Utc::now().timestamp_millis(),
            registry: Registry::new(),
        };
        metrics.register()?;
        metrics.init_labels();
        Ok(metrics)
    }

    /// Creates the label values that alerts use: Prometheus sees no increase in a counter that first appears at 1.
    fn init_labels(&self) {
        for reason in InvalidClaim::REASONS {
            self.claims.invalid.with_label_values(&[reason]);
            self.claims.dead_letters.with_label_values(&[reason]);
        }
        for cause in ["expired_before_read", "expired_before_recompute"] {
            self.skipped.with_label_values(&[cause]);
        }
        for outcome in ["committed", "fenced", "failed", "timed_out"] {
            self.transactions.with_label_values(&[outcome]);
        }
    }

    fn register(&self) -> prometheus::Result<()> {
        let collectors: [Box<dyn prometheus::core::Collector>; 20] = [
            Box::new(self.agents_reporting.clone()),
            Box::new(self.on_time_reviews.clone()),
            Box::new(self.windows_completed.clone()),
            Box::new(self.window_processing.clone()),
            Box::new(self.verdicts.clone()),
            Box::new(self.merge_restarts.clone()),
            Box::new(self.takeovers.clone()),
            Box::new(self.rescued_shares.clone()),
            Box::new(self.rebalances.clone()),
            Box::new(self.partitions.clone()),
            Box::new(self.pending_claims.clone()),
            Box::new(self.lag_beats.clone()),
            Box::new(self.lag_records.clone()),
            Box::new(self.oldest_window_beats.clone()),
            Box::new(self.reemitted.clone()),
            Box::new(self.skipped.clone()),
            Box::new(self.transactions.clone()),
            Box::new(self.beat_delivery.clone()),
            Box::new(self.slo_p95.clone()),
            Box::new(self.slo_limit.clone()),
        ];
        collectors
            .into_iter()
            .chain(self.claims.collectors())
            .try_for_each(|collector| self.registry.register(collector))
    }

    pub(crate) fn record_claims_processed(&self, claims: u64) {
        self.claims.processed.inc_by(claims);
    }

    pub(crate) fn record_closed_share(&self, partial: &Partial) {
        self.claims.late.inc_by(partial.late_claims as u64);
        self.claims.excess.inc_by(partial.excess_claims as u64);
        self.claims.misplaced.inc_by(partial.misplaced_agents as u64);
    }

    pub(crate) fn record_invalid_claim(&self, reason: &str) {
        self.claims.invalid.with_label_values(&[reason]).inc();
    }

    pub(crate) fn record_dead_letter(&self, reason: &str) {
        self.claims.dead_letters.with_label_values(&[reason]).inc();
    }

    pub(crate) fn record_lost_dead_letters(&self, lost: u64) {
        self.claims.lost_dead_letters.inc_by(lost);
    }

    pub(crate) fn record_merge_restart(&self) {
        self.merge_restarts.inc();
    }

    pub(crate) fn record_takeover(&self) {
        self.takeovers.inc();
    }

    pub(crate) fn record_rescued_shares(&self, shares: usize) {
        self.rescued_shares.inc_by(shares as u64);
    }

    pub(crate) fn record_assignment_change(&self, partitions: usize) {
        self.rebalances.inc();
        self.partitions.set(partitions as i64);
    }

    pub(crate) fn set_lag(&self, lag: &Lag, pending_claims: usize) {
        self.pending_claims.set(pending_claims as i64);
        self.lag_beats.set(lag.beats);
        if let Some(claims) = lag.claims {
            self.lag_records.set(claims);
        }
        self.oldest_window_beats.set(lag.oldest_open.map_or(0, |(_, age_beats)| age_beats));
    }

    pub(crate) fn record_beat_delivery(&self, delivered_after_ms: i64) {
        self.beat_delivery.observe(delivered_after_ms as f64 / 1_000.0);
    }

    pub(crate) fn set_slos(&self, slos: &[Slo]) {
        for slo in slos {
            let set = |gauge: &GaugeVec, millis: Option<i64>| {
                if let Some(millis) = millis {
                    gauge.with_label_values(&[slo.name]).set(millis as f64 / 1_000.0);
                }
            };
            set(&self.slo_p95, slo.p95_ms);
            set(&self.slo_limit, slo.limit_ms);
        }
    }

    pub(crate) fn record_skipped_window(&self, cause: &str) {
        self.skipped.with_label_values(&[cause]).inc();
    }

    /// Counts a transaction that ended in `error`, or committed.
    pub(crate) fn record_transaction(&self, error: Option<&TransactionError>) {
        let outcome = match error {
            None => "committed",
            Some(TransactionError::Fenced(_)) => "fenced",
            Some(TransactionError::Failed(_)) => "failed",
            Some(TransactionError::TimedOut(_)) => "timed_out",
        };
        self.transactions.with_label_values(&[outcome]).inc();
    }

    /// Sets the gauges of the last report, whoever wrote it.
    pub(crate) fn set_last_report(&self, report: &BarReport) {
        self.agents_reporting.set(report.agents_reporting);
        self.on_time_reviews.set(report.on_time_reviews);
    }

    pub(crate) fn record_finished_window(&self, verdict: Verdict, report: Option<&BarReport>, reemitted: bool) {
        self.windows_completed.inc();
        self.verdicts.with_label_values(&[verdict.as_str()]).inc();
        self.reemitted.inc_by(u64::from(reemitted));
        let Some(report) = report else { return };
        let closed_at = report.closed_at.millis();
        if verdict == Verdict::Written && closed_at >= self.started_at_ms {
            let delay_ms = chrono::Utc::now().timestamp_millis() - closed_at;
            self.window_processing.observe(delay_ms as f64 / 1_000.0);
        }
    }
}
