//! Events for operators: one call logs and counts each.

use std::fmt::Display;
use std::time::Duration;

use backbeat_schemas::BeatIndex;

use super::metrics::Metrics;

/// A transaction, or an attempt to initialize transactions, has failed.
pub(crate) struct TransactionFailed<'e> {
    pub(crate) error: &'e dyn Display,
    /// The beat that may or may not be committed; `None` if transactions were being initialized.
    pub(crate) beat: Option<BeatIndex>,
}

impl TransactionFailed<'_> {
    pub(crate) fn emit(self, metrics: &Metrics) {
        metrics.failed_transactions.inc();
        let Self { error, beat } = self;
        if let Some(beat) = beat {
            tracing::warn!(%error, %beat, "a beat's transaction failed; reading the tail to see whether it was committed");
        } else {
            tracing::warn!(%error, "cannot initialize transactions");
        }
    }
}

/// Kafka did not tell the ends of `statusclaims` in time: a beat is published with an older boundary.
pub(crate) struct BoundaryStale {
    /// True for the first beat of a leadership, which takes the last frame's boundary.
    pub(crate) is_first: bool,
}

impl BoundaryStale {
    pub(crate) fn emit(self, metrics: &Metrics) {
        metrics.stale_boundaries.inc();
        if self.is_first {
            tracing::warn!("cannot sample a first boundary within 2 s; starting with the last frame's boundary");
        } else {
            tracing::warn!("kafka did not tell the ends of statusclaims in time; the beat has an older boundary");
        }
    }
}

/// Raft has another leader than before.
pub(crate) struct LeaderChanged<'n> {
    pub(crate) leader: &'n str,
    pub(crate) previous: &'n str,
}

impl LeaderChanged<'_> {
    pub(crate) fn emit(self, metrics: &Metrics) {
        metrics.leader_changes.inc();
        tracing::info!(leader = self.leader, previous = self.previous, "raft's leader changed");
    }
}

/// This node has committed its first beat since it was elected.
pub(crate) struct TookOver {
    pub(crate) after: Duration,
}

impl TookOver {
    pub(crate) fn emit(self, metrics: &Metrics) {
        metrics.takeover.observe(self.after.as_secs_f64());
        tracing::info!(after_ms = self.after.as_millis() as u64, "took over: the first beat is committed");
    }
}

/// A producer keeps a transaction open in a partition of `statusclaims`.
pub(crate) struct TransactionOpen {
    pub(crate) partition: i32,
    pub(crate) last_stable_offset: Option<i64>,
}

impl TransactionOpen {
    /// Logs the event. The metric is a gauge of all such partitions, [`Metrics::set_open_transactions`].
    pub(crate) fn emit(self) {
        let Self { partition, last_stable_offset } = self;
        tracing::warn!(
            partition,
            last_stable_offset,
            "a producer has a transaction open in statusclaims: claims after it arrive late, whoever wrote them \
             (`kafka-transactions.sh describe-producers` names it)"
        );
    }
}
