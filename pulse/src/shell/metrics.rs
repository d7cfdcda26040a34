//! Pulse's metrics; those that count events are recorded by `events.rs`. Some exist twice: under a name without the service's prefix, which the prototype exported and
//! dashboards may use, and under the same name with the prefix.

use std::time::Duration;

use backbeat_schemas::BeatFrame;
use prometheus::{Gauge, Histogram, IntCounter, IntGauge, Registry};
// Each creates a metric and registers it.
use prometheus::{
    register_gauge_with_registry as gauge, register_histogram_with_registry as histogram,
    register_int_counter_with_registry as int_counter, register_int_gauge_with_registry as int_gauge,
};

/// Buckets from 0.1 ms to 1 s, finest around the SLO of 20 ms.
const JITTER_BUCKETS: [f64; 13] = [0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0];

/// Buckets from 50 ms to 1 min, the period at the default tempo.
const TAKEOVER_BUCKETS: [f64; 10] = [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];
/// A beat sent more than this after its schedule counts as late: the SLO on jitter.
const LATE_MS: i64 = 20;

pub(crate) struct Metrics {
    pub(crate) registry: Registry,
    beats: [IntCounter; 2],
    jitter: Histogram,
    is_leader: [IntGauge; 2],
    tempo: [Gauge; 2],
    late_beats: IntCounter,
    degraded_beats: IntCounter,
    re_anchors: IntCounter,
    pub(super) failed_transactions: IntCounter,
    pub(super) stale_boundaries: IntCounter,
    commit: Histogram,
    pub(super) leader_changes: IntCounter,
    pub(super) takeover: Histogram,
    degraded: IntGauge,
    has_leader: IntGauge,
    open_transactions: IntGauge,
}

impl Metrics {
    pub(crate) fn new() -> prometheus::Result<Self> {
        let registry = &Registry::new();
        Ok(Self {
            beats: under_both_names("backbeat_beats_total", "backbeat_pulse_beats_total", |name| {
                int_counter!(name, "Beats published by this node", registry)
            })?,
            jitter: histogram!(
                "backbeat_pulse_jitter_seconds",
                "Absolute difference between a beat's emission and its schedule",
                JITTER_BUCKETS.to_vec(),
                registry
            )?,
            is_leader: under_both_names("backbeat_is_leader", "backbeat_pulse_is_leader", |name| {
                int_gauge!(name, "1 while this node is the publishing leader: the one that publishes beats", registry)
            })?,
            tempo: under_both_names("backbeat_current_tempo_bpm", "backbeat_pulse_current_tempo_bpm", |name| {
                gauge!(name, "Tempo of the last beat published by this node, in beats per minute", registry)
            })?,
            late_beats: int_counter!(
                "backbeat_pulse_late_beats_total",
                "Beats sent over 20 ms after their schedule",
                registry
            )?,
            degraded_beats: int_counter!(
                "backbeat_pulse_degraded_beats_total",
                "Beats published without a quorum",
                registry
            )?,
            re_anchors: int_counter!(
                "backbeat_pulse_re_anchors_total",
                "Beats that this node published more than a period off their schedule, so that the schedule continues from them",
                registry
            )?,
            failed_transactions: int_counter!(
                "backbeat_pulse_transaction_failures_total",
                "Transactions, and attempts to initialize them, that failed or were fenced",
                registry
            )?,
            stale_boundaries: int_counter!(
                "backbeat_pulse_stale_lines_total",
                "Beats published with a stale boundary, because Kafka did not answer ListOffsets in time (boundaries were once called lines; the metric keeps its name for dashboards)",
                registry
            )?,
            commit: histogram!("backbeat_pulse_commit_seconds", "Time from a beat's emission to its commit", registry)?,
            leader_changes: int_counter!(
                "backbeat_pulse_leader_changes_total",
                "Changes of Raft's leader observed by this node",
                registry
            )?,
            takeover: histogram!(
                "backbeat_pulse_takeover_seconds",
                "Time from this node's election as Raft's leader to its first committed beat",
                TAKEOVER_BUCKETS.to_vec(),
                registry
            )?,
            degraded: int_gauge!(
                "backbeat_pulse_degraded",
                "1 while this node publishes beats without a quorum",
                registry
            )?,
            has_leader: int_gauge!(
                "backbeat_pulse_has_leader",
                "1 while this node knows a leader of Raft, which may be itself",
                registry
            )?,
            open_transactions: int_gauge!(
                "backbeat_pulse_open_transactions",
                "Partitions of statusclaims in which a producer keeps a transaction open for 5 s and longer",
                registry
            )?,
            registry: registry.clone(),
        })
    }

    pub(crate) fn record_beat(&self, frame: &BeatFrame, commit: Duration) {
        let off_ms = frame.emitted_at.millis_since(frame.scheduled_at);
        self.beats.iter().for_each(IntCounter::inc);
        self.jitter.observe(off_ms.saturating_abs() as f64 / 1_000.0);
        self.tempo.iter().for_each(|tempo| tempo.set(frame.tempo_bpm.bpm()));
        self.commit.observe(commit.as_secs_f64());
        self.late_beats.inc_by((off_ms > LATE_MS).into());
        self.degraded_beats.inc_by(frame.degraded.into());
        self.re_anchors.inc_by(frame.re_anchored().into());
    }

    pub(crate) fn set_role(&self, is_leader: bool, degraded: bool, has_leader: bool) {
        self.is_leader.iter().for_each(|gauge| gauge.set(is_leader.into()));
        self.degraded.set(degraded.into());
        self.has_leader.set(has_leader.into());
    }

    pub(crate) fn set_open_transactions(&self, partitions: usize) {
        self.open_transactions.set(partitions as i64);
    }
}

/// Creates a metric under its name without the service's prefix and again under the name with the prefix.
fn under_both_names<M>(
    unprefixed: &str,
    prefixed: &str,
    new: impl Fn(&str) -> prometheus::Result<M>,
) -> prometheus::Result<[M; 2]> {
    Ok([new(unprefixed)?, new(prefixed)?])
}
