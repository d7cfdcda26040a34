//! The merge: collects partials and writes reports. One member of a cluster runs it, the one that owns
//! `statusclaims-0`.
//!
//! All its state is in the log. After any error it drops its state, initializes transactions again, which resolves
//! transactions in doubt, and reads `barpartials` from the restart offset in the last done record.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use backbeat_broker::{Broker, Entry, LogReader, Registry, TopicName, TransactionError, TransactionalProducer};
use backbeat_schemas::{BarPartial, BarReport, BeatIndex, Done, PartialBody, Verdict, wire};
use backbeat_service::Shutdown;
use tokio::runtime::Handle;

use super::args::Reemit;
use super::frame_table::{FrameTable, TableError};
use super::metrics::Metrics;
use super::recompute::{Recompute, RecomputeError};
use super::report_index::{Fingerprint, ReportIndex};
use crate::core::{Completion, Counts, Merge, Window, bar_report, verdict};

/// Kafka aborts a transaction that is open for longer. An open one blocks every reader of `barpartials`.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Windows finished in one transaction. A transaction of this size commits within about a second.
const MAX_WINDOWS_PER_TRANSACTION: usize = 500;
/// The maximum number of records read before the sets of partials are checked again.
const MAX_RECORDS_PER_POLL: usize = 10_000;
const POLL: Duration = Duration::from_millis(5);
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The clients and settings of the merge.
#[derive(Clone)]
pub(crate) struct MergeContext {
    pub(crate) broker: Broker,
    pub(crate) registry: Registry,
    pub(crate) runtime: Handle,
    pub(crate) cluster_id: String,
    pub(crate) report_schema: u32,
    pub(crate) partial_schema: u32,
    pub(crate) reemit: Reemit,
    pub(crate) metrics: Arc<Metrics>,
}

/// The reason why a merge ended by itself.
#[derive(Debug)]
pub(crate) enum MergeExit {
    /// Kafka fenced the merge's producer: another member initialized the transactional id, or a transaction timed out.
    Fenced,
    /// The log is inconsistent.
    Failed(anyhow::Error),
}

/// The thread of a running merge. Dropping it stops the merge and waits until it has ended.
pub(crate) struct MergeThread {
    stop: Shutdown,
    exit: Receiver<MergeExit>,
    thread: Option<JoinHandle<()>>,
}

impl MergeThread {
    pub(crate) fn start(context: MergeContext) -> std::io::Result<Self> {
        let stop = Shutdown::new();
        let (sender, exit) = channel();
        let thread = std::thread::Builder::new().name("merge".into()).spawn({
            let stop = stop.clone();
            move || {
                if let Some(reason) = run(&context, &stop) {
                    // Fails only if the receiver was dropped.
                    let _ = sender.send(reason);
                }
            }
        })?;
        Ok(Self { stop, exit, thread: Some(thread) })
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Returns the reason if the merge ended by itself.
    pub(crate) fn exit(&self) -> Option<MergeExit> {
        self.exit.try_recv().ok()
    }
}

impl Drop for MergeThread {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The error that ended a session.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Transaction(#[from] TransactionError),
    #[error(transparent)]
    Read(#[from] backbeat_broker::ReadError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Recompute(#[from] RecomputeError),
    #[error("cannot create a reader of claims: {0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
}

fn run(context: &MergeContext, stop: &Shutdown) -> Option<MergeExit> {
    while !stop.is_cancelled() {
        let error = match Session::start(context).and_then(|mut session| session.run(stop)) {
            Ok(()) | Err(SessionError::Recompute(RecomputeError::Stopped)) => return None,
            Err(SessionError::Transaction(TransactionError::Fenced(error))) => {
                tracing::warn!(%error, "the merge was fenced");
                return Some(MergeExit::Fenced);
            }
            Err(SessionError::Table(TableError::Frame(error))) => return Some(MergeExit::Failed(error.into())),
            Err(error) => error,
        };
        context.metrics.record_merge_restart();
        tracing::warn!(%error, "the merge failed and starts over");
        let until = Instant::now() + RETRY_PAUSE;
        while Instant::now() < until && !stop.is_cancelled() {
            std::thread::sleep(POLL);
        }
    }
    None
}

/// A merge from `InitTransactions` to its first error.
struct Session<'c> {
    context: &'c MergeContext,
    producer: TransactionalProducer,
    partials: LogReader<BarPartial>,
    table: FrameTable,
    reports: ReportIndex,
    recompute: Recompute,
    merge: Merge,
}

/// The way in which one window is finished.
struct WindowOutcome {
    window: Window,
    verdict: Verdict,
    /// The report to write, if any.
    report: Option<(BarReport, Fingerprint)>,
    /// True if the report to write is already published, with the same bytes.
    reemitted: bool,
    /// The value of the metric's `cause` if the window is skipped.
    skip_cause: Option<&'static str>,
}

impl WindowOutcome {
    /// A window finished without writing a report.
    fn without_report(window: Window, verdict: Verdict) -> Self {
        Self { window, verdict, report: None, reemitted: false, skip_cause: None }
    }
}

impl<'c> Session<'c> {
    /// Initializes transactions, which fences every earlier merge, then reads the partials of windows not yet done.
    fn start(context: &'c MergeContext) -> Result<Self, SessionError> {
        let MergeContext { broker, registry, runtime, .. } = context;
        let producer = TransactionalProducer::open(
            broker,
            &broker.topics().merge_transactional_id(),
            TRANSACTION_TIMEOUT,
            TRANSACTION_TIMEOUT,
        )?;
        let mut session = Self {
            context,
            producer,
            partials: LogReader::new(broker, registry, runtime, TopicName::BarPartials)?,
            table: FrameTable::new(
                LogReader::new(broker, registry, runtime, TopicName::BeatFrames)?,
                context.cluster_id.clone(),
            ),
            reports: ReportIndex::new(LogReader::new(broker, registry, runtime, TopicName::BarReports)?),
            recompute: Recompute::new(broker, registry, runtime)?,
            merge: Merge::default(),
        };
        session.catch_up()?;
        tracing::info!(windows = session.merge.len(), "the merge starts");
        Ok(session)
    }

    fn catch_up(&mut self) -> Result<(), SessionError> {
        let end = self.partials.end_offset()?;
        let last_done = self.partials.last_where(BarPartial::is_done)?;
        let restart_offset = match last_done.and_then(|entry| entry.record.into_body()) {
            Some(PartialBody::Done(done)) => done.low.max(self.partials.log_start()?),
            _ => self.partials.log_start()?,
        };
        let merge = &mut self.merge;
        self.partials.read(restart_offset, end, |entry| add_record(merge, entry))?;
        Ok(self.partials.seek(restart_offset.max(end))?)
    }

    fn run(&mut self, stop: &Shutdown) -> Result<(), SessionError> {
        while !stop.is_cancelled() {
            let mut timeout = POLL;
            for _ in 0..MAX_RECORDS_PER_POLL {
                let Some(entry) = self.partials.poll(timeout)? else {
                    break;
                };
                add_record(&mut self.merge, entry);
                timeout = Duration::ZERO;
            }
            let Some(oldest) = self.merge.oldest() else { continue };
            self.table.ensure_covers(oldest)?;
            self.table.poll(Duration::ZERO)?;
            let completions = self.merge.completions(self.table.frames(), MAX_WINDOWS_PER_TRANSACTION);
            if !completions.is_empty() {
                self.finish_windows(completions, stop)?;
            }
        }
        Ok(())
    }

    /// Determines the outcome of each window, then writes all of them in one transaction.
    fn finish_windows(&mut self, completions: Vec<(Window, Completion)>, stop: &Shutdown) -> Result<(), SessionError> {
        let mut outcomes = Vec::with_capacity(completions.len());
        for (window, completion) in completions {
            outcomes.push(self.determine_outcome(window, &completion, stop)?);
        }
        let written = self.write_transaction(&outcomes);
        self.context.metrics.record_transaction(written.as_ref().err());
        written?;
        for outcome in &outcomes {
            self.merge.add_done(None, outcome.window.from);
            self.record_outcome(outcome);
        }
        let newest = outcomes.last().map(|outcome| outcome.window);
        let oldest = self.merge.oldest().or(newest.map(|window| window.from));
        if let Some(opened_at) = oldest.and_then(|from| self.table.frames().get(from)).map(|frame| frame.scheduled_at) {
            let oldest = oldest.expect("its frame was found above");
            self.reports.drop_before(oldest, opened_at);
            self.table.drop_before(oldest);
        }
        Ok(())
    }

    fn determine_outcome(
        &mut self,
        window: Window,
        completion: &Completion,
        stop: &Shutdown,
    ) -> Result<WindowOutcome, SessionError> {
        let is_reported = *completion == Completion::RecomputeUnlessReported && self.last_report(&window)?.is_some();
        if is_reported {
            return Ok(WindowOutcome::without_report(window, Verdict::Dropped));
        }
        let counts = match completion {
            Completion::Sum(counts) => Some(*counts),
            Completion::Skip => None,
            Completion::Recompute | Completion::RecomputeUnlessReported => {
                self.recompute.window(self.table.frames(), &window, stop)?
            }
        };
        let Some(counts) = counts else {
            let cause =
                if *completion == Completion::Skip { "expired_before_read" } else { "expired_before_recompute" };
            return Ok(WindowOutcome {
                skip_cause: Some(cause),
                ..WindowOutcome::without_report(window, Verdict::Skipped)
            });
        };
        self.compare_with_published(window, &counts)
    }

    fn compare_with_published(&mut self, window: Window, counts: &Counts) -> Result<WindowOutcome, SessionError> {
        let report = bar_report(self.table.frames(), &window, counts)
            .expect("a window is finished only if its closing frame is there");
        let computed = ReportIndex::fingerprint(&avro_body(&report));
        let published = self.last_report(&window)?;
        let (verdict, write) = verdict(published.as_ref(), &computed, self.context.reemit == Reemit::Always);
        let reemitted = write && published == Some(computed);
        Ok(WindowOutcome { window, verdict, report: write.then_some((report, computed)), reemitted, skip_cause: None })
    }

    fn last_report(&mut self, window: &Window) -> Result<Option<Fingerprint>, SessionError> {
        let next =
            self.table.frames().get(window.end).expect("a window is finished only if its closing frame is there");
        Ok(self.reports.last(window.from, next.scheduled_at)?)
    }

    fn write_transaction(&mut self, outcomes: &[WindowOutcome]) -> Result<(), TransactionError> {
        let froms: Vec<BeatIndex> = outcomes.iter().map(|outcome| outcome.window.from).collect();
        let restart_offset = self.merge.restart_offset(&froms);
        let topics = self.context.broker.topics();
        let (reports, partials) = (topics.name(TopicName::BarReports), topics.name(TopicName::BarPartials));
        let now = chrono::Utc::now().timestamp_millis();
        let mut transaction = self.producer.begin()?;
        for WindowOutcome { window, verdict, report, .. } in outcomes {
            let key = window.id.to_string();
            if let Some((report, _)) = report {
                transaction.send(
                    &reports,
                    &key,
                    &wire(self.context.report_schema, report),
                    report.closed_at.millis(),
                )?;
            }
            let done = PartialBody::Done(Done { verdict: *verdict, low: restart_offset });
            let record = BarPartial::new(window.id, window.from, done);
            transaction.send(&partials, &key, &wire(self.context.partial_schema, &record), now)?;
        }
        transaction.commit()
    }

    fn record_outcome(&mut self, outcome: &WindowOutcome) {
        let WindowOutcome { window, verdict, report, reemitted, skip_cause } = outcome;
        if let Some(cause) = skip_cause {
            self.context.metrics.record_skipped_window(cause);
        }
        self.context.metrics.record_finished_window(*verdict, report.as_ref().map(|(report, _)| report), *reemitted);
        if let Some((_, fingerprint)) = report {
            self.reports.record_written(window.from, *fingerprint);
        }
        let (window_id, from_beat, verdict) = (window.id, window.from, verdict.as_str());
        if outcome.verdict == Verdict::Skipped {
            tracing::warn!(%window_id, %from_beat, verdict, "window skipped without a report, because its claims are no longer retained");
        } else {
            tracing::info!(%window_id, %from_beat, verdict, "window finished");
        }
    }
}

fn add_record(merge: &mut Merge, entry: Entry<BarPartial>) {
    let from = entry.record.from_beat;
    match entry.record.into_body() {
        Some(PartialBody::Partial(partial)) => merge.add_partial(entry.offset, from, partial),
        Some(PartialBody::Done(_)) => merge.add_done(Some(entry.offset), from),
        None => {
            tracing::warn!(
                entry.offset,
                "ignoring a record of barpartials that is neither a partial nor a done record"
            );
        }
    }
}

/// Returns a report's Avro body, which is the same on every replay. The schema id before it depends on the registry.
pub(crate) fn avro_body(report: &BarReport) -> Vec<u8> {
    wire(0, report).split_off(5)
}
