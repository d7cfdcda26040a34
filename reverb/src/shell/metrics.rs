//! Reverb's metrics; those that count events are recorded by `events.rs`. The first five have the names that the prototype exported.

use backbeat_schemas::{BarReport, InvalidClaim, Partial, Verdict};
use prometheus::{GaugeVec, Histogram, IntCounter, IntCounterVec, IntGauge, Registry};
// Each creates a metric and registers it.
use prometheus::{
    register_gauge_vec_with_registry as gauge_vec, register_histogram_with_registry as histogram,
    register_int_counter_vec_with_registry as int_counter_vec, register_int_counter_with_registry as int_counter,
    register_int_gauge_with_registry as int_gauge,
};

use backbeat_http_api::reverb::Slo;

use crate::core::Lag;

/// Buckets from 1 ms to 1 s; the SLO is 100 ms.
const DELIVERY_BUCKETS: [f64; 9] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0];
/// Buckets from 5 ms to 1 min; the SLO is one beat.
const PROCESSING_BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0];
const WINDOWS_COMPLETED: &str = "Windows finished by this member's merge, with any verdict";

pub(crate) struct Metrics {
    pub(crate) registry: Registry,
    agents_reporting: IntGauge,
    on_time_reviews: IntGauge,
    agents_fell_silent: IntGauge,
    tasks_stalled: IntGauge,
    tasks_overdrawn: IntGauge,
    window_processing: Histogram,
    pub(super) claims: ClaimMetrics,
    pub(super) merge: MergeMetrics,
    pub(super) rebalances: IntCounter,
    pub(super) partitions: IntGauge,
    pending_claims: IntGauge,
    lag_beats: IntGauge,
    lag_records: IntGauge,
    oldest_window_beats: IntGauge,
    beat_delivery: Histogram,
    slo_p95: GaugeVec,
    slo_limit: GaugeVec,
    started_at_ms: i64,
}

/// Metrics of claims and dead letters.
pub(super) struct ClaimMetrics {
    processed: IntCounter,
    late: IntCounter,
    excess: IntCounter,
    misplaced: IntCounter,
    invalid: IntCounterVec,
    pub(super) dead_letters: IntCounterVec,
    pub(super) lost_dead_letters: IntCounter,
    pub(super) lost_rosters: IntCounter,
}

/// Metrics of the merge.
pub(super) struct MergeMetrics {
    windows_completed: IntCounter,
    verdicts: IntCounterVec,
    pub(super) merge_restarts: IntCounter,
    pub(super) takeovers: IntCounter,
    pub(super) rescued_shares: IntCounter,
    reemitted: IntCounter,
    pub(super) skipped: IntCounterVec,
    pub(super) transactions: IntCounterVec,
    pub(super) transaction_seconds: Histogram,
}

impl ClaimMetrics {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        let reason = |name, help| int_counter_vec!(name, help, &["reason"], registry);
        Ok(Self {
            processed: int_counter!(
                "backbeat_reverb_claims_processed_total",
                "Records that this member polled from statusclaims, invalid ones and those that were read before included",
                registry
            )?,
            late: int_counter!(
                "backbeat_reverb_late_claims_total",
                "Late claims in windows closed by this member",
                registry
            )?,
            excess: int_counter!(
                "backbeat_reverb_excess_claims_total",
                "Claims of tasks beyond a partition's limit",
                registry
            )?,
            misplaced: int_counter!(
                "backbeat_reverb_misplaced_agents_total",
                "Agents with claims in other partitions than murmur2 gives them, once per window and partition",
                registry
            )?,
            invalid: reason("backbeat_reverb_invalid_claims_total", "Invalid claims in statusclaims")?,
            dead_letters: reason(
                "backbeat_reverb_dead_letters_total",
                "Invalid claims sent to the dead-letter topic, those that Kafka refused included",
            )?,
            lost_dead_letters: int_counter!(
                "backbeat_reverb_lost_dead_letters_total",
                "Invalid claims that Kafka refused in the dead-letter topic",
                registry
            )?,
            lost_rosters: int_counter!(
                "backbeat_reverb_lost_rosters_total",
                "Rosters that Kafka refused in barrosters",
                registry
            )?,
        })
    }
}

impl MergeMetrics {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            windows_completed: int_counter!("backbeat_reverb_windows_completed_total", WINDOWS_COMPLETED, registry)?,
            verdicts: int_counter_vec!(
                "backbeat_reverb_verdicts_total",
                "Windows finished by this member's merge, by verdict",
                &["verdict"],
                registry
            )?,
            merge_restarts: int_counter!(
                "backbeat_reverb_merge_restarts_total",
                "Restarts of the merge after an error",
                registry
            )?,
            takeovers: int_counter!(
                "backbeat_reverb_takeovers_total",
                "Times that this member has taken the merge over, the first time in a new cluster included",
                registry
            )?,
            rescued_shares: int_counter!(
                "backbeat_reverb_rescued_shares_total",
                "Shares of windows that this member's merge has read itself, because their members did not send them in time",
                registry
            )?,
            reemitted: int_counter!(
                "backbeat_reverb_reemitted_reports_total",
                "Reports written again with the same bytes because of --reemit always",
                registry
            )?,
            skipped: int_counter_vec!(
                "backbeat_reverb_skipped_windows_total",
                "Windows without a report, because retention deleted claims before they were read (expired_before_read) or before they were read again (expired_before_recompute)",
                &["cause"],
                registry
            )?,
            transactions: int_counter_vec!(
                "backbeat_reverb_transactions_total",
                "Transactions of the merge by outcome; one that failed or timed_out is in doubt until the merge has started over and read the log",
                &["outcome"],
                registry
            )?,
            transaction_seconds: histogram!(
                "backbeat_reverb_transaction_seconds",
                "Time from the begin of a transaction of the merge to its end",
                registry
            )?,
        })
    }
}

impl Metrics {
    pub(crate) fn new() -> prometheus::Result<Self> {
        let registry = &Registry::new();
        // Metric names and the label keep `objective`, for SLO: dashboards and alerts use them.
        let slo_gauge = |name, help| gauge_vec!(name, help, &["objective"], registry);
        let metrics = Self {
            agents_reporting: int_gauge!(
                "backbeat_reverb_agents_reporting",
                "agents_reporting of the last report",
                registry
            )?,
            on_time_reviews: int_gauge!(
                "backbeat_reverb_on_time_reviews",
                "on_time_reviews of the last report",
                registry
            )?,
            agents_fell_silent: int_gauge!(
                "backbeat_reverb_agents_fell_silent",
                "agents_fell_silent of the last report",
                registry
            )?,
            tasks_stalled: int_gauge!("backbeat_reverb_tasks_stalled", "tasks_stalled of the last report", registry)?,
            tasks_overdrawn: int_gauge!(
                "backbeat_reverb_tasks_overdrawn",
                "tasks_overdrawn of the last report",
                registry
            )?,
            window_processing: histogram!(
                "backbeat_reverb_window_processing_seconds",
                "Seconds from a window's closed_at, which is before its grace, to its committed report; replayed windows are not observed",
                PROCESSING_BUCKETS.to_vec(),
                registry
            )?,
            claims: ClaimMetrics::new(registry)?,
            merge: MergeMetrics::new(registry)?,
            rebalances: int_counter!(
                "backbeat_reverb_rebalances_total",
                "Changes of this member's assignment: each assignment and each revocation of partitions counts, so a rebalance may count twice",
                registry
            )?,
            partitions: int_gauge!(
                "backbeat_reverb_assigned_partitions",
                "Partitions of statusclaims assigned to this member",
                registry
            )?,
            // The metric keeps its name from when pending claims were called waiting.
            pending_claims: int_gauge!(
                "backbeat_reverb_waiting_claims",
                "Pending claims: those past the newest boundary, which wait for the next frame",
                registry
            )?,
            lag_beats: int_gauge!(
                "backbeat_reverb_lag_beats",
                "Beats between the newest frame and the slowest assigned partition",
                registry
            )?,
            lag_records: int_gauge!(
                "backbeat_reverb_lag_records",
                "Claims in assigned partitions that were not processed yet",
                registry
            )?,
            oldest_window_beats: int_gauge!(
                "backbeat_reverb_oldest_window_beats",
                "Age in beats of the oldest window that is not done in an assigned partition",
                registry
            )?,
            beat_delivery: histogram!(
                "backbeat_reverb_beat_delivery_seconds",
                "Seconds from a frame's emitted_at, by pulse's clock, to its reading by this member",
                DELIVERY_BUCKETS.to_vec(),
                registry
            )?,
            slo_p95: slo_gauge(
                "backbeat_reverb_objective_p95_seconds",
                "95th percentile of the SLO's last 1,000 samples",
            )?,
            slo_limit: slo_gauge("backbeat_reverb_objective_limit_seconds", "Limit of the SLO's 95th percentile")?,
            started_at_ms: chrono::Utc::now().timestamp_millis(),
            registry: registry.clone(),
        };
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
            self.merge.skipped.with_label_values(&[cause]);
        }
        for outcome in ["committed", "fenced", "failed", "timed_out"] {
            self.merge.transactions.with_label_values(&[outcome]);
        }
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
                    gauge.with_label_values(&[&*slo.name]).set(millis as f64 / 1_000.0);
                }
            };
            set(&self.slo_p95, slo.p95_ms);
            set(&self.slo_limit, slo.limit_ms);
        }
    }

    /// Sets the gauges of the last report, whoever wrote it.
    pub(crate) fn set_last_report(&self, report: &BarReport) {
        self.agents_reporting.set(report.agents_reporting);
        self.on_time_reviews.set(report.on_time_reviews);
        self.agents_fell_silent.set(report.agents_fell_silent);
        self.tasks_stalled.set(report.tasks_stalled);
        self.tasks_overdrawn.set(report.tasks_overdrawn);
    }

    pub(super) fn count_finished_window(&self, verdict: Verdict, report: Option<&BarReport>, reemitted: bool) {
        self.merge.windows_completed.inc();
        self.merge.verdicts.with_label_values(&[verdict.as_str()]).inc();
        self.merge.reemitted.inc_by(u64::from(reemitted));
        let Some(report) = report else { return };
        let closed_at = report.closed_at.millis();
        if verdict == Verdict::Written && closed_at >= self.started_at_ms {
            let delay_ms = chrono::Utc::now().timestamp_millis() - closed_at;
            self.window_processing.observe(delay_ms as f64 / 1_000.0);
        }
    }
}
