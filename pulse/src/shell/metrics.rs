//! Pulse's metrics. The first four have the prototype's names.

use backbeat_schemas::BeatFrame;
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntGauge, Registry};

/// From 0.1 ms to 1 s, finest around the requirement of 20 ms.
const JITTER_BUCKETS: [f64; 13] = [0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0];

pub(crate) struct Metrics {
    pub(crate) registry: Registry,
    beats: IntCounter,
    jitter: Histogram,
    is_leader: IntGauge,
    tempo: Gauge,
    re_anchors: IntCounter,
    retries: IntCounter,
    stale_lines: IntCounter,
    commit: Histogram,
}

impl Metrics {
    pub(crate) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let metrics = Self {
            beats: IntCounter::new("backbeat_beats_total", "Beats published by this node")?,
            jitter: Histogram::with_opts(
                HistogramOpts::new("backbeat_pulse_jitter_seconds", "Distance of a beat's sending from its schedule")
                    .buckets(JITTER_BUCKETS.to_vec()),
            )?,
            is_leader: IntGauge::new("backbeat_is_leader", "1 while this node beats")?,
            tempo: Gauge::new("backbeat_current_tempo_bpm", "Tempo of the last beat, in beats per minute")?,
            re_anchors: IntCounter::new(
                "backbeat_pulse_re_anchors_total",
                "Beats more than a period off, which began a new schedule",
            )?,
            retries: IntCounter::new(
                "backbeat_pulse_transaction_failures_total",
                "Transactions that failed or were fenced",
            )?,
            stale_lines: IntCounter::new(
                "backbeat_pulse_stale_lines_total",
                "Beats whose line could not be drawn afresh in time",
            )?,
            commit: Histogram::with_opts(HistogramOpts::new(
                "backbeat_pulse_commit_seconds",
                "From a beat's sending to its commit",
            ))?,
            registry,
        };
        let registry = &metrics.registry;
        registry.register(Box::new(metrics.beats.clone()))?;
        registry.register(Box::new(metrics.jitter.clone()))?;
        registry.register(Box::new(metrics.is_leader.clone()))?;
        registry.register(Box::new(metrics.tempo.clone()))?;
        registry.register(Box::new(metrics.re_anchors.clone()))?;
        registry.register(Box::new(metrics.retries.clone()))?;
        registry.register(Box::new(metrics.stale_lines.clone()))?;
        registry.register(Box::new(metrics.commit.clone()))?;
        Ok(metrics)
    }

    pub(crate) fn beat(&self, frame: &BeatFrame, commit_seconds: f64) {
        self.beats.inc();
        self.jitter.observe(frame.emitted_at.millis_since(frame.scheduled_at).abs() as f64 / 1_000.0);
        self.tempo.set(frame.tempo_bpm.bpm());
        self.commit.observe(commit_seconds);
        if frame.re_anchored() {
            self.re_anchors.inc();
        }
    }

    pub(crate) fn leading(&self, leading: bool) {
        self.is_leader.set(leading.into());
    }

    pub(crate) fn transaction_failed(&self) {
        self.retries.inc();
    }

    pub(crate) fn stale_line(&self) {
        self.stale_lines.inc();
    }
}
