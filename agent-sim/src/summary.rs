//! The summary of a run: counts, latencies, and the result of the verification.

use std::fmt;

use backbeat_sdk::{BeatIndex, ClaimSender};
use serde::Serialize;

use crate::ledger::VerificationResult;

/// The maximum number of mismatches in the text; the JSON has all of them.
const MAX_SHOWN: usize = 20;

/// The format of the summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// Text for people.
    Text,
    /// One JSON object.
    Json,
}

/// The counts of a run, during it or at its end.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Summary {
    /// Beats received.
    pub(crate) beats: u64,
    /// The newest beat received.
    #[serde(skip)]
    pub(crate) beat_index: Option<BeatIndex>,
    /// Claims accepted by the producer.
    pub(crate) claims_sent: u64,
    pub(crate) claims_acknowledged: u64,
    /// Claims whose delivery failed.
    pub(crate) claims_failed: u64,
    /// Claims in flight: neither acknowledged nor failed yet.
    #[serde(rename = "claims_unsent")]
    pub(crate) claims_outstanding: i64,
    /// Claims never accepted by the producer: its queue was full during the shutdown.
    pub(crate) claims_refused: u64,
    /// Claims sent after the end of their beat: on purpose, or because the program or Kafka was slow. Not all of them
    /// arrive after the end of their window and so count as late.
    #[serde(rename = "claims_late")]
    pub(crate) claims_sent_after_deadline: u64,
    /// Claims made invalid on purpose.
    pub(crate) claims_malformed: u64,
    /// Seconds spent on making and sending claims, without the waiting for beats.
    pub(crate) sending_s: f64,
    pub(crate) latency_ms: Latency,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) verified: Option<VerificationResult>,
}

/// The latency from sending a claim to Kafka's acknowledgement, in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Summary {
    /// Updates the delivery counts and latencies from the claim sender.
    pub(crate) fn update_deliveries(&mut self, claim_sender: &ClaimSender) {
        let deliveries = claim_sender.deliveries();
        self.claims_acknowledged = deliveries.acknowledged();
        self.claims_failed = deliveries.failed();
        self.claims_outstanding = deliveries.outstanding();
        let millis = |quantile| claim_sender.latency(quantile).as_micros() as f64 / 1_000.0;
        self.latency_ms = Latency { p50: millis(0.5), p95: millis(0.95), p99: millis(0.99), max: millis(1.0) };
    }

    pub(crate) fn render(&self, output: Output) -> serde_json::Result<String> {
        match output {
            Output::Text => Ok(self.to_string()),
            Output::Json => serde_json::to_string(self),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { beats, claims_sent, claims_acknowledged, claims_sent_after_deadline, claims_malformed, .. } = self;
        writeln!(f, "beats         {beats}")?;
        writeln!(f, "claims        {claims_sent} sent, {claims_acknowledged} acknowledged")?;
        writeln!(
            f,
            "              {claims_sent_after_deadline} sent after their beat, {claims_malformed} sent invalid"
        )?;
        for (count, label) in [
            (self.claims_failed, "failed"),
            (self.claims_outstanding.unsigned_abs(), "not acknowledged"),
            (self.claims_refused, "not sent: the producer's queue was full"),
        ] {
            if count > 0 {
                writeln!(f, "              {count} {label}")?;
            }
        }
        let Latency { p50, p95, p99, max } = self.latency_ms;
        write!(f, "acknowledged  p50 {p50:.1} ms, p95 {p95:.1} ms, p99 {p99:.1} ms, max {max:.1} ms")?;
        let Some(result) = &self.verified else { return Ok(()) };
        write!(f, "\nverified      {result}")?;
        for mismatch in result.mismatches.iter().take(MAX_SHOWN) {
            write!(f, "\n              {mismatch}")?;
        }
        match result.mismatches.len().saturating_sub(MAX_SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n              and {more} more: see --output json"),
        }
    }
}
