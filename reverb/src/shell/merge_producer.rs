//! The transactions of the active merge: reports with their done records, and its lease.

use std::time::{Duration, Instant};

use backbeat_broker::{TopicName, Transaction, TransactionError, TransactionalProducer, UnopenedProducer};
use backbeat_schemas::{BarPartial, BarReport, BeatIndex, Done, Merging, PartialBody, Verdict, wire};

use super::events::TransactionEnded;
use super::merge_context::MergeContext;
use super::report_index::Fingerprint;
use crate::core::{Frames, Window};

/// Kafka aborts a transaction that is open for longer. An open one blocks every reader of `barpartials`.
pub(super) const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);

/// The way in which one window is finished.
pub(super) struct WindowOutcome {
    pub(super) window: Window,
    pub(super) verdict: Verdict,
    /// The report to write, if any.
    pub(super) report: Option<(BarReport, Fingerprint)>,
    /// True if the report to write is already published, with the same bytes.
    pub(super) reemitted: bool,
    /// The value of the metric's `cause` if the window is skipped.
    pub(super) skip_cause: Option<&'static str>,
}

impl WindowOutcome {
    /// A window finished without writing a report.
    pub(super) fn without_report(window: Window, verdict: Verdict) -> Self {
        Self { window, verdict, report: None, reemitted: false, skip_cause: None }
    }
}

/// The transactional producer of the merge, which only the active merge has.
pub(super) struct MergeProducer<'c> {
    context: &'c MergeContext,
    active: Option<TransactionalProducer>,
    /// The producer of the next takeover. It is connected by then.
    prepared: Option<UnopenedProducer>,
}

impl<'c> MergeProducer<'c> {
    pub(super) fn new(context: &'c MergeContext) -> Self {
        Self { context, active: None, prepared: None }
    }

    /// Creates the producer of the next takeover, unless there is one.
    pub(super) fn prepare(&mut self) -> Result<(), TransactionError> {
        if self.prepared.is_none() {
            self.prepared = Some(self.create()?);
        }
        Ok(())
    }

    fn create(&self) -> Result<UnopenedProducer, TransactionError> {
        let broker = &self.context.broker;
        UnopenedProducer::new(broker, &broker.topics().merge_transactional_id(), TRANSACTION_TIMEOUT)
    }

    /// Opens the transactional id of the cluster's merge, which fences every other merge.
    ///
    /// If the last merge has ended within a transaction, Kafka has to abort that first, and librdkafka (2.12.1,
    /// `rd_kafka_idemp_pid_timer_restart`) asks again after half a second only. A new client asks at once. It also helps
    /// if the prepared one has lost its brokers.
    pub(super) fn open(&mut self) -> Result<(), TransactionError> {
        let (deadline, mut wait) = (Instant::now() + TRANSACTION_TIMEOUT, self.context.takeover_after / 5);
        loop {
            let producer = self.prepared.take().map_or_else(|| self.create(), Ok)?;
            let left = deadline.saturating_duration_since(Instant::now());
            match producer.open(wait.min(left)) {
                Ok(producer) => {
                    self.active = Some(producer);
                    return Ok(());
                }
                Err(TransactionError::TimedOut(after)) if wait < left => {
                    tracing::warn!(?after, "kafka has not opened the transactional id; trying again with a new client");
                    wait *= 2;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Closes the producer; returns true if it was open.
    pub(super) fn close(&mut self) -> bool {
        self.active.take().is_some()
    }

    /// Writes the reports and done records of `outcomes` in one transaction. The done records name `restart_offset`, and
    /// the partitions whose shares were `rescued` in the window that begins at a beat.
    pub(super) fn write_outcomes(
        &mut self,
        outcomes: &[WindowOutcome],
        restart_offset: i64,
        rescued: impl Fn(BeatIndex) -> Vec<i32>,
    ) -> Result<(), TransactionError> {
        let context = self.context;
        let topics = context.broker.topics();
        let (reports, partials) = (topics.name(TopicName::BarReports), topics.name(TopicName::BarPartials));
        let now = chrono::Utc::now().timestamp_millis();
        self.write(|transaction| {
            for WindowOutcome { window, verdict, report, .. } in outcomes {
                let key = window.id.to_string();
                if let Some((report, _)) = report {
                    let value = wire(context.schemas.report, report);
                    transaction.send(&reports, &key, &value, report.closed_at.millis())?;
                }
                let done = Done { verdict: *verdict, low: restart_offset, rescued: rescued(window.from) };
                let record = BarPartial::new(window.id, window.from, PartialBody::Done(done));
                transaction.send(&partials, &key, &wire(context.schemas.partial, &record), now)?;
            }
            Ok(())
        })
    }

    /// Writes a merging record, keyed by the newest window of `frames`.
    pub(super) fn write_merging(&mut self, frames: &Frames, merging: Merging) -> Result<(), TransactionError> {
        let Some(window) = frames.last().and_then(|newest| frames.window_of(newest.beat_index)) else {
            // The table is still being read. The lease is not renewed, and the others take over later.
            return Ok(());
        };
        let context = self.context;
        let record = BarPartial::new(window.id, window.from, PartialBody::Merging(merging));
        let topic = context.broker.topics().name(TopicName::BarPartials);
        let now = chrono::Utc::now().timestamp_millis();
        self.write(|transaction| {
            transaction.send(&topic, &window.id.to_string(), &wire(context.schemas.partial, &record), now)
        })
    }

    /// Aborts a transaction that has left these records without a marker.
    pub(super) fn abort(
        &mut self,
        partial: Option<&BarPartial>,
        report: Option<&BarReport>,
    ) -> Result<(), TransactionError> {
        let (topics, schemas) = (self.context.broker.topics(), self.context.schemas);
        let producer = self.active.as_mut().expect("the active merge has a producer");
        let mut transaction = producer.begin()?;
        let now = chrono::Utc::now().timestamp_millis();
        // A marker is written to the partitions of the transaction's records only.
        if let Some(partial) = partial {
            let (topic, key) = (topics.name(TopicName::BarPartials), partial.window_id.to_string());
            transaction.send(&topic, &key, &wire(schemas.partial, partial), now)?;
        }
        if let Some(report) = report {
            let (topic, key) = (topics.name(TopicName::BarReports), report.window_id.to_string());
            transaction.send(&topic, &key, &wire(schemas.report, report), report.closed_at.millis())?;
        }
        transaction.abort()
    }

    /// Commits a transaction of what `send_all` sends.
    fn write(
        &mut self,
        send_all: impl FnOnce(&mut Transaction<'_>) -> Result<(), TransactionError>,
    ) -> Result<(), TransactionError> {
        let producer = self.active.as_mut().expect("the active merge has a producer");
        let begun = Instant::now();
        let written = producer.begin().and_then(|mut transaction| {
            send_all(&mut transaction)?;
            transaction.commit()
        });
        TransactionEnded { error: written.as_ref().err(), took: begun.elapsed() }.emit(&self.context.metrics);
        written
    }
}
