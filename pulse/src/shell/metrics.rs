//! Pulse's metrics. Some have the prototype's names, and twins with the service's prefix.

use std::time::Duration;

use backbeat_schemas::BeatFrame;
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntGauge, Registry};

/// From 0.1 ms to 1 s, finest around the requirement of 20 ms.
const JITTER_BUCKETS: [f64; 13] = [0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0];

/// From a warm start to the time after which agents beat by themselves.
const TAKEOVER_BUCKETS: [f64; 10] = [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];
/// A beat later than this is late: the requirement on jitter.
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
    retries: IntCounter,
    stale_boundaries: IntCounter,
    commit: Histogram,
    leader_changes: IntCounter,
    takeover: Histogram,
    degraded: IntGauge,
    has_leader: IntGauge,
}

impl Metrics {
    pub(crate) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let metrics = Self {
            beats: both("backbeat_beats_total", "backbeat_pulse_beats_total", |name| {
                IntCounter::new(name, "Beats published by this node")
            })?,
            jitter: Histogram::with_opts(
                HistogramOpts::new("backbeat_pulse_jitter_seconds", "Distance of a beat's sending from its schedule")
                    .buckets(JITTER_BUCKETS.to_vec()),
            )?,
            is_leader: both("backbeat_is_leader", "backbeat_pulse_is_leader", |name| {
                IntGauge::new(name, "1 while this node publishes the beats")
            })?,
            tempo: both("backbeat_current_tempo_bpm", "backbeat_pulse_current_tempo_bpm", |name| {
                Gauge::new(name, "Tempo of the last beat that this node published, in beats per minute")
            })?,
            late_beats: IntCounter::new(
                "backbeat_pulse_late_beats_total",
                "Beats sent over 20 ms after their schedule",
            )?,
            degraded_beats: IntCounter::new("backbeat_pulse_degraded_beats_total", "Beats published without a quorum")?,
            re_anchors: IntCounter::new(
                "backbeat_pulse_re_anchors_total",
                "Beats more than a period off, which began a new schedule",
            )?,
            retries: IntCounter::new(
                "backbeat_pulse_transaction_failures_total",
                "Transactions that failed or were fenced",
            )?,
            stale_boundaries: IntCounter::new(
                "backbeat_pulse_stale_lines_total",
                "Beats whose boundary could not be sampled afresh in time: answers to ListOffsets came too late",
            )?,
            commit: Histogram::with_opts(HistogramOpts::new(
                "backbeat_pulse_commit_seconds",
                "From a beat's sending to its commit",
            ))?,
            leader_changes: IntCounter::new(
                "backbeat_pulse_leader_changes_total",
                "Changes of who leads, as this node saw them",
            )?,
            takeover: Histogram::with_opts(
                HistogramOpts::new("backbeat_pulse_takeover_seconds", "From this node's election to its first beat")
                    .buckets(TAKEOVER_BUCKETS.to_vec()),
            )?,
            degraded: IntGauge::new("backbeat_pulse_degraded", "1 while this node beats without a quorum")?,
            has_leader: IntGauge::new("backbeat_pulse_has_leader", "1 while this node knows of a Raft leader")?,
            registry,
        };
        let registry = &metrics.registry;
        metrics.beats.iter().try_for_each(|metric| registry.register(Box::new(metric.clone())))?;
        registry.register(Box::new(metrics.jitter.clone()))?;
        metrics.is_leader.iter().try_for_each(|metric| registry.register(Box::new(metric.clone())))?;
        metrics.tempo.iter().try_for_each(|metric| registry.register(Box::new(metric.clone())))?;
        registry.register(Box::new(metrics.late_beats.clone()))?;
        registry.register(Box::new(metrics.degraded_beats.clone()))?;
        registry.register(Box::new(metrics.leader_changes.clone()))?;
        registry.register(Box::new(metrics.takeover.clone()))?;
        registry.register(Box::new(metrics.degraded.clone()))?;
        registry.register(Box::new(metrics.has_leader.clone()))?;
        registry.register(Box::new(metrics.re_anchors.clone()))?;
        registry.register(Box::new(metrics.retries.clone()))?;
        registry.register(Box::new(metrics.stale_boundaries.clone()))?;
        registry.register(Box::new(metrics.commit.clone()))?;
        Ok(metrics)
    }

    pub(crate) fn beat(&self, frame: &BeatFrame, commit: Duration) {
        let off_ms = frame.emitted_at.millis_since(frame.scheduled_at);
        self.beats.iter().for_each(IntCounter::inc);
        self.jitter.observe(off_ms.saturating_abs() as f64 / 1_000.0);
        self.tempo.iter().for_each(|tempo| tempo.set(frame.tempo_bpm.bpm()));
        self.commit.observe(commit.as_secs_f64());
        self.late_beats.inc_by((off_ms > LATE_MS).into());
        self.degraded_beats.inc_by(frame.degraded.into());
        self.re_anchors.inc_by(frame.re_anchored().into());
    }

    pub(crate) fn stands(&self, beats: bool, degraded: bool, has_leader: bool) {
        self.is_leader.iter().for_each(|is_leader| is_leader.set(beats.into()));
        self.degraded.set(degraded.into());
        self.has_leader.set(has_leader.into());
    }

    pub(crate) fn leader_changes_by(&self, changes: u64) {
        self.leader_changes.inc_by(changes);
    }

    pub(crate) fn took_over(&self, after: Duration) {
        self.takeover.observe(after.as_secs_f64());
    }

    pub(crate) fn transaction_failed(&self) {
        self.retries.inc();
    }

    pub(crate) fn stale_boundary(&self) {
        self.stale_boundaries.inc();
    }
}

/// The same metric under the prototype's name and under one with the service's prefix.
fn both<M>(prototype: &str, prefixed: &str, new: impl Fn(&str) -> prometheus::Result<M>) -> prometheus::Result<[M; 2]> {
    Ok([new(prototype)?, new(prefixed)?])
}
