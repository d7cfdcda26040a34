//! What became of a run.

use std::fmt;

use backbeat_sdk::{BeatIndex, Reporter};
use serde::Serialize;

use crate::ledger::Verdict;

/// How many of a verdict's disagreements are shown as text; all of them are in the JSON.
const MAX_SHOWN: usize = 20;

/// How the summary is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// Counts of a run, so far or in the end.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Summary {
    /// That were heard.
    pub(crate) beats: u64,
    /// The newest of them.
    #[serde(skip)]
    pub(crate) beat_index: Option<BeatIndex>,
    /// Given to the producer.
    pub(crate) claims_sent: u64,
    pub(crate) claims_acknowledged: u64,
    /// Given up by the producer.
    pub(crate) claims_failed: u64,
    /// Neither acknowledged nor given up.
    pub(crate) claims_unsent: i64,
    /// Never given to the producer: its queue was full when the run was to end.
    pub(crate) claims_refused: u64,
    /// Of those sent, after their beat was over: on purpose, or since the program or Kafka was slow.
    pub(crate) claims_late: u64,
    /// Of those sent, broken on purpose.
    pub(crate) claims_malformed: u64,
    /// Seconds in which claims were made and sent, not those in which the next beat was waited for.
    pub(crate) sending_s: f64,
    pub(crate) latency_ms: Latency,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) verified: Option<Verdict>,
}

/// From sending a claim to Kafka's acknowledgement, in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Summary {
    /// Reads what became of the claims until now.
    pub(crate) fn settle(&mut self, reporter: &Reporter) {
        let deliveries = reporter.deliveries();
        self.claims_acknowledged = deliveries.acknowledged();
        self.claims_failed = deliveries.failed();
        self.claims_unsent = deliveries.outstanding();
        let millis = |quantile| reporter.latency(quantile).as_micros() as f64 / 1_000.0;
        self.latency_ms = Latency { p50: millis(0.5), p95: millis(0.95), p99: millis(0.99), max: millis(1.0) };
    }

    pub(crate) fn shown(&self, output: Output) -> serde_json::Result<String> {
        match output {
            Output::Text => Ok(self.to_string()),
            Output::Json => serde_json::to_string(self),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { beats, claims_sent, claims_acknowledged, claims_late, claims_malformed, .. } = self;
        writeln!(f, "beats heard   {beats}")?;
        writeln!(f, "claims        {claims_sent} sent, {claims_acknowledged} acknowledged")?;
        writeln!(f, "              {claims_late} late, {claims_malformed} malformed")?;
        for (count, what) in [
            (self.claims_failed, "given up"),
            (self.claims_unsent.unsigned_abs(), "unsent"),
            (self.claims_refused, "refused by a full queue"),
        ] {
            if count > 0 {
                writeln!(f, "              {count} {what}")?;
            }
        }
        let Latency { p50, p95, p99, max } = self.latency_ms;
        write!(f, "acknowledged  p50 {p50:.1} ms, p95 {p95:.1} ms, p99 {p99:.1} ms, max {max:.1} ms")?;
        let Some(verdict) = &self.verified else { return Ok(()) };
        write!(f, "\nverified      {verdict}")?;
        for disagreement in verdict.disagreements.iter().take(MAX_SHOWN) {
            write!(f, "\n              {disagreement}")?;
        }
        match verdict.disagreements.len().saturating_sub(MAX_SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n              and {more} more: see --output json"),
        }
    }
}
