//! Events for operators: one call logs and counts each.

use std::fmt::Display;
use std::time::Duration;

use backbeat_broker::TransactionError;
use backbeat_schemas::{BarReport, InvalidClaim, Verdict};

use super::group::AssignmentChange;
use super::metrics::Metrics;
use crate::core::{Rescue, Window};

/// This member's merge has failed, and starts over or leaves the merge to another member.
pub(crate) struct MergeFailed<'e> {
    pub(crate) error: &'e dyn Display,
}

impl MergeFailed<'_> {
    pub(crate) fn emit(self, metrics: &Metrics) {
        metrics.merge.merge_restarts.inc();
        tracing::warn!(error = %self.error, "the merge failed; it is taken over again");
    }
}

/// A transaction of the merge has ended.
pub(crate) struct TransactionEnded<'e> {
    pub(crate) error: Option<&'e TransactionError>,
    pub(crate) took: Duration,
}

impl TransactionEnded<'_> {
    pub(crate) fn emit(self, metrics: &Metrics) {
        let outcome = match self.error {
            None => "committed",
            Some(TransactionError::Fenced(_)) => "fenced",
            Some(TransactionError::Failed(_)) => "failed",
            Some(TransactionError::TimedOut(_)) => "timed_out",
        };
        metrics.merge.transactions.with_label_values(&[outcome]).inc();
        metrics.merge.transaction_seconds.observe(self.took.as_secs_f64());
        match self.error {
            None => tracing::debug!("a transaction of the merge was committed"),
            Some(error) => tracing::warn!(%error, outcome, "a transaction of the merge failed"),
        }
    }
}

/// This member has taken the merge over.
pub(crate) struct MergeTakenOver {
    /// The number of windows that are not done.
    pub(crate) windows: usize,
}

impl MergeTakenOver {
    pub(crate) fn emit(self, metrics: &Metrics) {
        metrics.merge.takeovers.inc();
        tracing::info!(windows = self.windows, "this member takes the merge over");
    }
}

/// The merge has read shares that were overdue.
pub(crate) struct SharesRescued<'r> {
    pub(crate) rescue: &'r Rescue,
    /// The number of shares that were read.
    pub(crate) shares: usize,
}

impl SharesRescued<'_> {
    pub(crate) fn emit(self, metrics: &Metrics) {
        let Self { rescue: Rescue { first, last, partitions }, shares } = self;
        metrics.merge.rescued_shares.inc_by(shares as u64);
        tracing::info!(window_id = %first.id, from_beat = %first.from, end_beat = %last.end, ?partitions, shares, "read the shares that are overdue");
    }
}

/// A window is done.
pub(crate) struct WindowFinished<'r> {
    pub(crate) window: &'r Window,
    pub(crate) verdict: Verdict,
    /// The report that was written.
    pub(crate) report: Option<&'r BarReport>,
    /// True if the report was written again with the same bytes.
    pub(crate) reemitted: bool,
    /// The reason why there is no report.
    pub(crate) skip_cause: Option<&'static str>,
}

impl WindowFinished<'_> {
    pub(crate) fn emit(self, metrics: &Metrics) {
        let Self { window, verdict, report, reemitted, skip_cause } = self;
        metrics.count_finished_window(verdict, report, reemitted);
        let (window_id, from_beat) = (window.id, window.from);
        if let Some(cause) = skip_cause {
            metrics.merge.skipped.with_label_values(&[cause]).inc();
            tracing::warn!(%window_id, %from_beat, verdict = verdict.as_str(), cause, "window skipped without a report, because its claims are no longer retained");
        } else {
            tracing::info!(%window_id, %from_beat, verdict = verdict.as_str(), "window finished");
        }
    }
}

/// A dead letter was handed to the producer.
pub(crate) struct DeadLetterSent<'r> {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) reason: &'r InvalidClaim,
}

impl DeadLetterSent<'_> {
    pub(crate) fn emit(self, metrics: &Metrics) {
        let Self { partition, offset, reason } = self;
        metrics.claims.dead_letters.with_label_values(&[reason.reason()]).inc();
        tracing::debug!(partition, offset, %reason, "dead letter");
    }
}

/// Kafka has refused dead letters or rosters for good.
pub(crate) struct RecordsLost {
    pub(crate) dead_letters: u64,
    pub(crate) rosters: u64,
}

impl RecordsLost {
    /// Does nothing if both are 0.
    pub(crate) fn emit(self, metrics: &Metrics) {
        let Self { dead_letters, rosters } = self;
        if dead_letters + rosters > 0 {
            metrics.claims.lost_dead_letters.inc_by(dead_letters);
            metrics.claims.lost_rosters.inc_by(rosters);
            tracing::warn!(dead_letters, rosters, "kafka has refused dead letters or rosters: they are lost");
        }
    }
}

/// Partitions were assigned to this member, or revoked.
pub(crate) struct AssignmentChanged<'c> {
    pub(crate) change: &'c AssignmentChange,
    /// The number of partitions that it has now.
    pub(crate) partitions: usize,
}

impl AssignmentChanged<'_> {
    pub(crate) fn emit(self, metrics: &Metrics) {
        metrics.rebalances.inc();
        metrics.partitions.set(self.partitions as i64);
        match self.change {
            AssignmentChange::Assigned(partitions) => tracing::info!(?partitions, "partitions assigned"),
            AssignmentChange::Revoked(partitions) => tracing::info!(?partitions, "partitions revoked"),
        }
    }
}
