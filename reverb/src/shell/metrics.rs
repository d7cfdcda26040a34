//! Reverb's metrics. The first five have the prototype's names.

use backbeat_schemas::{BarPartial, BarReport, Verdict};
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

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
    started_at_ms: i64,
}

impl Metrics {
    pub(crate) fn new() -> prometheus::Result<Self> {
        let reason = |name, help| IntCounterVec::new(Opts::new(name, help), &["reason"]);
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
            waiting: IntGauge::new("backbeat_reverb_waiting_claims", "Claims that wait for the next line")?,
            lag_beats: IntGauge::new(
                "backbeat_reverb_lag_beats",
                "Beats between the newest frame and the slowest owned partition",
            )?,
            started_at_ms: chrono::Utc::now().timestamp_millis(),
            registry: Registry::new(),
        };
        metrics.register()?;
        Ok(metrics)
    }

    fn register(&self) -> prometheus::Result<()> {
        let collectors: [Box<dyn prometheus::core::Collector>; 14] = [
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
        ];
        collectors.into_iter().try_for_each(|collector| self.registry.register(collector))
    }

    pub(crate) fn processed(&self, claims: u64) {
        self.claims_processed.inc_by(claims);
    }

    pub(crate) fn closed(&self, partial: &BarPartial) {
        self.late.inc_by(partial.partial().map_or(0, |share| share.late_claims as u64));
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

    pub(crate) fn lag(&self, waiting: usize, beats: i64) {
        self.waiting.set(waiting as i64);
        self.lag_beats.set(beats);
    }

    pub(crate) fn finished(&self, verdict: Verdict, report: Option<&BarReport>) {
        self.windows_completed.inc();
        self.verdicts.with_label_values(&[verdict.as_str()]).inc();
        let Some(report) = report else { return };
        self.agents_reporting.set(report.agents_reporting);
        self.on_time_reviews.set(report.on_time_reviews);
        let closed_at = report.closed_at.millis();
        if verdict == Verdict::Written && closed_at >= self.started_at_ms {
            let delay_ms = chrono::Utc::now().timestamp_millis() - closed_at;
            self.window_processing.observe(delay_ms as f64 / 1_000.0);
        }
    }
}
