//! The merge: gathers partials, writes reports. One at a time in a cluster, where `statusclaims-0` is
//! owned.
//!
//! All its state is in the log: after any error it drops everything, opens its transactional id again,
//! which settles what was in doubt, and reads from where the last `done` says.

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
use crate::core::{Counts, Merge, Ready, Window, bar_report, verdict};

/// An open transaction holds every reader of `barpartials` up: Kafka ends one after this.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Windows finished in one transaction, so that it commits within about a second.
const MAX_WINDOWS: usize = 500;
/// Partials taken before the sets are looked at again.
const BATCH: usize = 10_000;
const POLL: Duration = Duration::from_millis(5);
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What the merge works with.
#[derive(Clone)]
pub(crate) struct MergeSettings {
    pub(crate) broker: Broker,
    pub(crate) registry: Registry,
    pub(crate) runtime: Handle,
    pub(crate) cluster_id: String,
    pub(crate) report_schema: u32,
    pub(crate) partial_schema: u32,
    pub(crate) reemit: Reemit,
    pub(crate) metrics: Arc<Metrics>,
}

/// How a merge ended by itself.
#[derive(Debug)]
pub(crate) enum MergeEnd {
    /// Another producer opened its transactional id: another member's, or Kafka's own after a timeout.
    Fenced,
    /// The log is wrong.
    Failed(anyhow::Error),
}

/// A running merge. Dropping it stops it and waits until it has ended.
pub(crate) struct MergeThread {
    stop: Shutdown,
    end: Receiver<MergeEnd>,
    thread: Option<JoinHandle<()>>,
}

impl MergeThread {
    pub(crate) fn start(settings: MergeSettings) -> std::io::Result<Self> {
        let stop = Shutdown::new();
        let (ended, end) = channel();
        let thread = std::thread::Builder::new().name("merge".into()).spawn({
            let stop = stop.clone();
            move || {
                if let Some(how) = run(&settings, &stop) {
                    // The other end may be gone: then nobody asks.
                    let _ = ended.send(how);
                }
            }
        })?;
        Ok(Self { stop, end, thread: Some(thread) })
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// How it ended by itself.
    pub(crate) fn end(&self) -> Option<MergeEnd> {
        self.end.try_recv().ok()
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

/// Why a session ended.
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
    #[error("making a reader of claims: {0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
}

fn run(settings: &MergeSettings, stop: &Shutdown) -> Option<MergeEnd> {
    while !stop.is_cancelled() {
        let error = match Session::open(settings).and_then(|mut session| session.run(stop)) {
            Ok(()) | Err(SessionError::Recompute(RecomputeError::Stopped)) => return None,
            Err(SessionError::Transaction(TransactionError::Fenced(error))) => {
                tracing::warn!(%error, "the merge was fenced");
                return Some(MergeEnd::Fenced);
            }
            Err(SessionError::Table(TableError::Frame(error))) => return Some(MergeEnd::Failed(error.into())),
            Err(error) => error,
        };
        settings.metrics.merge_restarted();
        tracing::warn!(%error, "the merge starts over");
        let until = Instant::now() + RETRY_PAUSE;
        while Instant::now() < until && !stop.is_cancelled() {
            std::thread::sleep(POLL);
        }
    }
    None
}

/// A merge from its fence to its first error.
struct Session<'s> {
    settings: &'s MergeSettings,
    producer: TransactionalProducer,
    partials: LogReader<BarPartial>,
    table: FrameTable,
    reports: ReportIndex,
    recompute: Recompute,
    merge: Merge,
}

/// A window about to be finished.
struct Finish {
    window: Window,
    verdict: Verdict,
    /// What to write, if anything.
    report: Option<(BarReport, Fingerprint)>,
    /// What is written is there already, with the same bytes.
    again: bool,
    /// Why there is no report, where there can be none.
    skipped: Option<&'static str>,
}

impl Finish {
    /// Without a report.
    fn bare(window: Window, verdict: Verdict) -> Self {
        Self { window, verdict, report: None, again: false, skipped: None }
    }
}

impl<'s> Session<'s> {
    /// Fences every earlier merge, then reads the partials of the windows that are not done.
    fn open(settings: &'s MergeSettings) -> Result<Self, SessionError> {
        let MergeSettings { broker, registry, runtime, .. } = settings;
        let producer = TransactionalProducer::open(
            broker,
            &broker.topics().merge_transactional_id(),
            TRANSACTION_TIMEOUT,
            TRANSACTION_TIMEOUT,
        )?;
        let mut session = Self {
            settings,
            producer,
            partials: LogReader::new(broker, registry, runtime, TopicName::BarPartials)?,
            table: FrameTable::new(
                LogReader::new(broker, registry, runtime, TopicName::BeatFrames)?,
                settings.cluster_id.clone(),
            ),
            reports: ReportIndex::new(LogReader::new(broker, registry, runtime, TopicName::BarReports)?),
            recompute: Recompute::new(broker, registry, runtime)?,
            merge: Merge::default(),
        };
        session.catch_up()?;
        tracing::info!(windows = session.merge.len(), "merging");
        Ok(session)
    }

    fn catch_up(&mut self) -> Result<(), SessionError> {
        let end = self.partials.end()?;
        let last_done = self.partials.last_where(BarPartial::is_done)?;
        let low = match last_done.and_then(|entry| entry.record.into_body()) {
            Some(PartialBody::Done(done)) => done.low.max(self.partials.low()?),
            _ => self.partials.low()?,
        };
        let merge = &mut self.merge;
        self.partials.read(low, end, |entry| take(merge, entry))?;
        Ok(self.partials.seek(low.max(end))?)
    }

    fn run(&mut self, stop: &Shutdown) -> Result<(), SessionError> {
        while !stop.is_cancelled() {
            let mut timeout = POLL;
            for _ in 0..BATCH {
                let Some(entry) = self.partials.poll(timeout)? else {
                    break;
                };
                take(&mut self.merge, entry);
                timeout = Duration::ZERO;
            }
            let Some(oldest) = self.merge.oldest() else { continue };
            self.table.cover(oldest)?;
            self.table.follow(Duration::ZERO)?;
            let ready = self.merge.ready(self.table.frames(), MAX_WINDOWS);
            if !ready.is_empty() {
                self.finish(ready, stop)?;
            }
        }
        Ok(())
    }

    /// Decides on each window, then writes all of it in one transaction.
    fn finish(&mut self, ready: Vec<(Window, Ready)>, stop: &Shutdown) -> Result<(), SessionError> {
        let mut finishing = Vec::with_capacity(ready.len());
        for (window, ready) in ready {
            finishing.push(self.decide(window, &ready, stop)?);
        }
        let written = self.write(&finishing);
        self.settings.metrics.transaction(written.as_ref().err());
        written?;
        for finish in &finishing {
            self.merge.done(None, finish.window.from);
            self.note(finish);
        }
        let newest = finishing.last().map(|finish| finish.window);
        let oldest = self.merge.oldest().or(newest.map(|window| window.from));
        if let Some(closed_at) = oldest.and_then(|from| self.table.frames().get(from)).map(|frame| frame.scheduled_at) {
            let oldest = oldest.expect("its frame was just found");
            self.reports.forget_before(oldest, closed_at);
            self.table.forget_before(oldest);
        }
        Ok(())
    }

    fn decide(&mut self, window: Window, ready: &Ready, stop: &Shutdown) -> Result<Finish, SessionError> {
        let exists = *ready == Ready::Stuck && self.last_report(&window)?.is_some();
        if exists {
            return Ok(Finish::bare(window, Verdict::Dropped));
        }
        let counts = match ready {
            Ready::Complete(counts) => Some(*counts),
            Ready::Skip => None,
            Ready::Recompute | Ready::Stuck => self.recompute.window(self.table.frames(), &window, stop)?,
        };
        let Some(counts) = counts else {
            let cause = if *ready == Ready::Skip { "expired_before_read" } else { "expired_before_recompute" };
            return Ok(Finish { skipped: Some(cause), ..Finish::bare(window, Verdict::Skipped) });
        };
        self.judge(window, &counts)
    }

    fn judge(&mut self, window: Window, counts: &Counts) -> Result<Finish, SessionError> {
        let report = bar_report(self.table.frames(), &window, counts)
            .expect("a window is ready once its closing frame is there");
        let ours = ReportIndex::fingerprint(&body(&report));
        let published = self.last_report(&window)?;
        let (verdict, write) = verdict(published.as_ref(), &ours, self.settings.reemit == Reemit::Always);
        let again = write && published == Some(ours);
        Ok(Finish { window, verdict, report: write.then_some((report, ours)), again, skipped: None })
    }

    fn last_report(&mut self, window: &Window) -> Result<Option<Fingerprint>, SessionError> {
        let closing = self.table.frames().get(window.end).expect("a window is ready once its closing frame is there");
        Ok(self.reports.last(window.from, closing.scheduled_at)?)
    }

    fn write(&mut self, finishing: &[Finish]) -> Result<(), TransactionError> {
        let froms: Vec<BeatIndex> = finishing.iter().map(|finish| finish.window.from).collect();
        let low = self.merge.low_without(&froms);
        let topics = self.settings.broker.topics();
        let (reports, partials) = (topics.name(TopicName::BarReports), topics.name(TopicName::BarPartials));
        let now = chrono::Utc::now().timestamp_millis();
        let mut transaction = self.producer.begin()?;
        for Finish { window, verdict, report, .. } in finishing {
            let key = window.id.to_string();
            if let Some((report, _)) = report {
                transaction.send(
                    &reports,
                    &key,
                    &wire(self.settings.report_schema, report),
                    report.closed_at.millis(),
                )?;
            }
            let done = PartialBody::Done(Done { verdict: *verdict, low });
            let record = BarPartial::new(window.id, window.from, done);
            transaction.send(&partials, &key, &wire(self.settings.partial_schema, &record), now)?;
        }
        transaction.commit()
    }

    fn note(&mut self, finish: &Finish) {
        let Finish { window, verdict, report, again, skipped } = finish;
        if let Some(cause) = skipped {
            self.settings.metrics.skipped(cause);
        }
        self.settings.metrics.finished(*verdict, report.as_ref().map(|(report, _)| report), *again);
        if let Some((_, fingerprint)) = report {
            self.reports.written(window.from, *fingerprint);
        }
        let (window_id, from_beat, verdict) = (window.id, window.from, verdict.as_str());
        if finish.verdict == Verdict::Skipped {
            tracing::warn!(%window_id, %from_beat, verdict, "claims of this window are no longer retained: no report");
        } else {
            tracing::info!(%window_id, %from_beat, verdict, "window finished");
        }
    }
}

fn take(merge: &mut Merge, entry: Entry<BarPartial>) {
    let from = entry.record.from_beat;
    match entry.record.into_body() {
        Some(PartialBody::Partial(partial)) => merge.partial(entry.offset, from, partial),
        Some(PartialBody::Done(_)) => merge.done(Some(entry.offset), from),
        None => tracing::warn!(entry.offset, "a record of barpartials says neither partial nor done"),
    }
}

/// A report's Avro body: what must be the same on every replay. The schema id is the registry's.
pub(crate) fn body(report: &BarReport) -> Vec<u8> {
    wire(0, report).split_off(5)
}
