//! The merge of one member: follows the log, and while it is active collects partials and writes reports.
//!
//! What to do next is decided by [`MergeSession`]. All state is in the log. After a failed read the thread drops its
//! state, and reads `barpartials` from the restart offset in the last done record. After a failed transaction it is no longer
//! active; the next takeover, by this member or another, resolves the transaction in doubt.

use std::time::{Duration, Instant};

use backbeat_broker::{LogReader, TopicName, TransactionError};
use backbeat_schemas::{BarPartial, BarReport, BeatIndex, Counts, Merging, PartialBody, Verdict};
use backbeat_service::Shutdown;

use super::args::Reemit;
use super::events::{MergeFailed, MergeTakenOver, SharesRescued, WindowFinished};
use super::frame_table::{FrameTable, TableError};
use super::merge_context::{MergeContext, Reached};
use super::merge_producer::{MergeProducer, TRANSACTION_TIMEOUT, WindowOutcome};
use super::recompute::{Recompute, RecomputeError};
use super::report_index::{Fingerprint, ReportIndex, avro_body};
use super::share_records::{ShareRecordProducer, ShareRecords, Unacknowledged};
use crate::core::{
    Completion, LOGIC, MAX_RESCUE_TIMEOUTS, MergeCommand, MergeSession, Rescue, Window, bar_report, report_logic,
    share, verdict,
};

/// The maximum number of records read before the sets of partials are checked again.
const MAX_RECORDS_PER_POLL: usize = 10_000;
/// The longest wait for a record of `barpartials`, and so the delay until the active merge notices a new frame.
const ACTIVE_POLL: Duration = Duration::from_millis(5);
const STANDBY_POLL: Duration = Duration::from_millis(20);
/// The longest pause of a member after which its state still counts. `barpartials` is kept for a day.
const MAX_PAUSE: Duration = Duration::from_mins(5);
/// Frames and reports that no window needs are dropped after this time.
const DROP_INTERVAL: Duration = Duration::from_secs(10);

/// An error of a command.
#[derive(Debug, thiserror::Error)]
pub(super) enum MergeError {
    /// The merge is no longer active, or its last transaction is in doubt.
    #[error(transparent)]
    Transaction(#[from] TransactionError),
    #[error(transparent)]
    Read(#[from] backbeat_broker::ReadError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Recompute(#[from] RecomputeError),
    #[error(transparent)]
    ShareRecords(#[from] Unacknowledged),
    #[error("the member stood still for {0:?}, and what it has not read may have expired")]
    StoodStill(Duration),
    #[error("cannot create a reader of claims: {0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
}

/// The merge of one member from its start to its first failed read.
pub(super) struct MergeLoop<'c> {
    context: &'c MergeContext,
    core: MergeSession,
    started_at: Instant,
    producer: MergeProducer<'c>,
    /// Follows the end of `barpartials`.
    partials: LogReader<BarPartial>,
    /// Reads `barpartials` up to an end that was asked for; paused in between. The other one would wait for a fetch at the end of
    /// the log.
    searcher: LogReader<BarPartial>,
    open_partials: LogReader<BarPartial>,
    open_reports: LogReader<BarReport>,
    table: FrameTable,
    reports: ReportIndex,
    recompute: Recompute,
    share_records: ShareRecordProducer,
    reached: Reached,
    /// The oldest window that was needed since [`Self::dropped_at`].
    oldest_needed: Option<BeatIndex>,
    /// The instant at which frames and reports were dropped the last time.
    dropped_at: Instant,
}

impl<'c> MergeLoop<'c> {
    /// Creates the clients, and reads the partials of windows that are not done.
    pub(super) fn start(
        context: &'c MergeContext,
        name: &str,
        share_records: ShareRecordProducer,
        reached: Reached,
    ) -> Result<Self, MergeError> {
        let MergeContext { broker, registry, runtime, .. } = context;
        let mut merge = Self {
            context,
            core: MergeSession::new(name.to_owned(), context.takeover_after, Duration::ZERO),
            started_at: Instant::now(),
            producer: MergeProducer::new(context),
            partials: LogReader::new(broker, registry, runtime, TopicName::BarPartials)?,
            searcher: LogReader::for_random_access(broker, registry, runtime, TopicName::BarPartials)?,
            open_partials: LogReader::for_open_transactions(broker, registry, runtime, TopicName::BarPartials)?,
            open_reports: LogReader::for_open_transactions(broker, registry, runtime, TopicName::BarReports)?,
            table: FrameTable::new(broker, registry, runtime, context.cluster_id.clone())?,
            reports: ReportIndex::new(broker, registry, runtime)?,
            recompute: Recompute::new(broker, context.claim_schemas.clone())?,
            share_records,
            reached,
            oldest_needed: None,
            dropped_at: Instant::now(),
        };
        merge.catch_up()?;
        Ok(merge)
    }

    fn catch_up(&mut self) -> Result<(), MergeError> {
        let log = &mut self.searcher;
        let end = log.end_offset()?;
        let (last, last_done) = (log.last_where(is_of_merge)?, log.last_where(BarPartial::is_done)?);
        let restart_offset = match last_done.and_then(|entry| entry.record.into_body()) {
            Some(PartialBody::Done(done)) => done.low.max(log.log_start()?),
            _ => log.log_start()?,
        };
        self.read_partials(restart_offset, end)?;
        self.partials.seek(restart_offset.max(self.core.merge().next_offset()))?;
        self.core.record_start(last.is_some());
        let newest = self.table.newest_frame()?;
        Ok(self.table.ensure_covers(self.core.first_beat(newest.as_ref()))?)
    }

    /// Returns the time since the start.
    fn now(&self) -> Duration {
        self.started_at.elapsed()
    }

    /// Follows the log until `stop`, or until a read fails.
    pub(super) fn run(&mut self, stop: &Shutdown) -> Result<(), MergeError> {
        while !stop.is_cancelled() {
            let pause = self.core.record_turn(self.now());
            if pause > MAX_PAUSE {
                return Err(MergeError::StoodStill(pause));
            }
            self.poll_partials()?;
            if let Some(oldest) = self.core.merge().oldest() {
                self.table.ensure_covers(oldest)?;
            }
            self.table.poll(Duration::ZERO)?;
            if self.table.is_caught_up() {
                self.core.record_frames(self.table.frames(), self.now());
            }
            if !self.core.is_active() {
                if self.producer.close() {
                    tracing::warn!("another member has taken the merge over");
                }
                self.producer.prepare()?;
            }
            if let Some(command) = self.core.next(self.table.frames(), self.reached.get(), self.now()) {
                match self.execute(command, stop) {
                    Err(MergeError::Transaction(error)) => self.give_up(&error),
                    Err(MergeError::Recompute(RecomputeError::Stopped)) => break,
                    done => done?,
                }
            }
            self.context.status.update(|member| member.merging = self.core.is_active());
            self.drop_finished_windows();
        }
        self.stop();
        Ok(())
    }

    /// Adds the records that are available, waiting a little for the first.
    fn poll_partials(&mut self) -> Result<(), MergeError> {
        let mut timeout = if self.core.is_active() { ACTIVE_POLL } else { STANDBY_POLL };
        for _ in 0..MAX_RECORDS_PER_POLL {
            let Some(entry) = self.partials.poll(timeout)? else { break };
            timeout = Duration::ZERO;
            let is_read = entry.offset < self.core.merge().next_offset();
            if !is_read {
                record(&mut self.core, entry.offset, entry.record, self.started_at.elapsed());
            }
        }
        Ok(())
    }

    /// Adds the records of `[start, end)`.
    fn read_partials(&mut self, start: i64, end: i64) -> Result<(), MergeError> {
        let (core, started_at) = (&mut self.core, self.started_at);
        self.searcher.read(start, end, |entry| record(core, entry.offset, entry.record, started_at.elapsed()))?;
        Ok(self.searcher.pause()?)
    }

    fn execute(&mut self, command: MergeCommand, stop: &Shutdown) -> Result<(), MergeError> {
        match command {
            MergeCommand::ReadToEnd => {
                let asked_at = self.now();
                let answered_at = self.read_to_end()?;
                self.core.record_read_to_end(asked_at, answered_at, self.now());
                Ok(())
            }
            MergeCommand::TakeOver => self.take_over(),
            MergeCommand::Renew => self.renew(),
            MergeCommand::Finish(completions) => self.finish_windows(completions, stop),
            MergeCommand::Rescue(rescue) => self.rescue(&rescue, stop),
        }
    }

    /// Asks for the end of `barpartials` and reads up to there. Returns the time of the answer.
    fn read_to_end(&mut self) -> Result<Duration, MergeError> {
        let end = self.searcher.end_offset()?;
        let answered_at = self.now();
        self.read_partials(self.core.merge().next_offset(), end)?;
        Ok(answered_at)
    }

    /// Opens the transactional id, which fences every other merge, then reads what they have written.
    fn take_over(&mut self) -> Result<(), MergeError> {
        self.producer.open()?;
        self.abort_unmarked_records()?;
        self.read_to_end()?;
        self.reports.clear();
        self.core.record_opening(self.now());
        MergeTakenOver { windows: self.core.merge().len() }.emit(&self.context.metrics);
        self.renew()
    }

    /// Aborts what an earlier merge has left in a transaction that Kafka ended without a marker: the next transaction would
    /// commit it.
    fn abort_unmarked_records(&mut self) -> Result<(), MergeError> {
        let Self { searcher, reports, open_partials, open_reports, .. } = self;
        let partials = open_partials.read_open(|| searcher.end_offset())?;
        let reports = open_reports.read_open(|| reports.end_offset())?;
        let (partial, report) = (partials.first(), reports.first());
        if partial.is_none() && report.is_none() {
            return Ok(());
        }
        let offsets = (partial.map(|entry| entry.offset), report.map(|entry| entry.offset));
        tracing::warn!(
            ?offsets,
            "kafka has ended a transaction without a marker in barpartials or barreports; aborting it"
        );
        Ok(self.producer.abort(partial.map(|entry| &entry.record), report.map(|entry| &entry.record))?)
    }

    /// Writes a merging record.
    fn renew(&mut self) -> Result<(), MergeError> {
        self.producer.write_merging(self.table.frames(), self.core.merging())?;
        self.core.record_renewal(self.now());
        Ok(())
    }

    /// Handles a failed transaction, after which the producer must not be used again.
    fn give_up(&mut self, error: &TransactionError) {
        self.producer.close();
        let now = self.now();
        if matches!(error, TransactionError::Fenced(_)) {
            self.core.record_fencing(now);
            tracing::warn!(%error, "the merge was fenced");
        } else {
            self.core.record_failure(now);
            MergeFailed { error }.emit(&self.context.metrics);
        }
    }

    /// Stops in good order: the others need not wait until the lease has ended.
    fn stop(&mut self) {
        let nobody = Merging { member: None, logic: LOGIC };
        if self.core.is_active()
            && let Err(error) = self.producer.write_merging(self.table.frames(), nobody)
        {
            tracing::warn!(%error, "cannot write that this member has stopped merging; another takes over after a timeout");
        }
    }

    /// Drops what no window has needed for a while: in a replay, the merge may have finished all windows that it knows of.
    fn drop_finished_windows(&mut self) {
        let frames = self.table.frames();
        let Some(oldest) = self.core.oldest_needed(frames) else { return };
        let oldest = self.oldest_needed.map_or(oldest, |needed| needed.min(oldest));
        self.oldest_needed = Some(oldest);
        if self.dropped_at.elapsed() < DROP_INTERVAL {
            return;
        }
        if let Some(opened_at) = frames.get(oldest).map(|frame| frame.scheduled_at) {
            self.reports.drop_before(oldest, opened_at);
            self.table.drop_before(oldest);
        }
        (self.oldest_needed, self.dropped_at) = (None, Instant::now());
    }

    /// Reads shares from the claims, in place of the members that have not sent them.
    fn rescue(&mut self, rescue: &Rescue, stop: &Shutdown) -> Result<(), MergeError> {
        let keeps_lease = self.core.keeps_lease();
        if keeps_lease {
            self.renew()?;
        }
        let (began, deadline) = (self.now(), Instant::now() + self.context.takeover_after * MAX_RESCUE_TIMEOUTS);
        let Rescue { first, last, partitions } = rescue;
        let Self { context, core, producer, table, recompute, share_records, .. } = self;
        let mut records = ShareRecords::new(share_records, context.takeover_after);
        let mut lease = LeaseKeeper { core, producer, table, started_at: self.started_at, error: None };
        let mut keep_going =
            || !stop.is_cancelled() && Instant::now() < deadline && (!keeps_lease || lease.renew_if_due());
        let (frames, on_invalid) = (table.frames(), &mut |record| records.send_dead_letter(&record));
        let mut shares = Vec::new();
        match recompute.shares(frames, first, last, partitions, &mut keep_going, on_invalid) {
            Ok(read) => {
                let closed =
                    read.iter().flat_map(|(partition, closed)| closed.iter().map(|closed| (*partition, closed)));
                for (partition, closed) in closed {
                    closed.roster.iter().for_each(|roster| records.send_roster(roster));
                    shares.push((closed.window.from, share(partition, closed)));
                }
            }
            Err(error) => {
                tracing::warn!(%error, ?rescue, "cannot read the shares that are overdue");
                if matches!(error, RecomputeError::Kafka(_) | RecomputeError::Stopped) {
                    // After an outage, a client may know no brokers, or get no records, for seconds before it counts as
                    // lost.
                    *recompute = Recompute::new(&context.broker, context.claim_schemas.clone())?;
                }
            }
        }
        lease.error.map_or(Ok(()), Err)?;
        if let Err(error) = records.finish(&context.metrics) {
            tracing::warn!(%error, ?rescue, "cannot use the shares that were overdue");
            shares.clear();
        }
        SharesRescued { rescue, shares: shares.len() }.emit(&context.metrics);
        let now = self.now();
        self.core.record_rescue(shares, began, now);
        Ok(())
    }

    /// Determines the outcome of each window, then writes all of them in one transaction.
    fn finish_windows(&mut self, completions: Vec<(Window, Completion)>, stop: &Shutdown) -> Result<(), MergeError> {
        let mut outcomes = Vec::with_capacity(completions.len());
        for (window, completion) in completions {
            outcomes.push(self.determine_outcome(window, &completion, stop)?);
        }
        let froms: Vec<BeatIndex> = outcomes.iter().map(|outcome| outcome.window.from).collect();
        let (began, merge) = (self.now(), self.core.merge());
        self.producer.write_outcomes(&outcomes, merge.restart_offset(&froms), |from| merge.rescued(from))?;
        self.core.record_finished(&froms, began, self.now());
        for outcome in &outcomes {
            self.record_outcome(outcome);
        }
        Ok(())
    }

    fn determine_outcome(
        &mut self,
        window: Window,
        completion: &Completion,
        stop: &Shutdown,
    ) -> Result<WindowOutcome, MergeError> {
        let is_reported = *completion == Completion::RecomputeUnlessReported && self.last_report(&window)?.is_some();
        if is_reported {
            return Ok(WindowOutcome::without_report(window, Verdict::Dropped));
        }
        let counts = match completion {
            Completion::Sum(counts, logic) => Some((*counts, *logic)),
            Completion::Skip => None,
            Completion::Recompute | Completion::RecomputeUnlessReported => {
                self.recompute(&window, stop)?.map(|counts| (counts, LOGIC))
            }
        };
        let Some((counts, logic)) = counts else {
            let cause =
                if *completion == Completion::Skip { "expired_before_read" } else { "expired_before_recompute" };
            return Ok(WindowOutcome {
                skip_cause: Some(cause),
                ..WindowOutcome::without_report(window, Verdict::Skipped)
            });
        };
        self.compare_with_published(window, &counts, logic)
    }

    fn recompute(&mut self, window: &Window, stop: &Shutdown) -> Result<Option<Counts>, MergeError> {
        let Self { context, core, producer, table, recompute, share_records, .. } = self;
        let mut lease = LeaseKeeper { core, producer, table, started_at: self.started_at, error: None };
        let mut records = ShareRecords::new(share_records, TRANSACTION_TIMEOUT);
        let mut keep_going = || !stop.is_cancelled() && lease.renew_if_due();
        let on_invalid = &mut |record| records.send_dead_letter(&record);
        let recomputed = recompute.window(table.frames(), window, &mut keep_going, on_invalid);
        lease.error.map_or(Ok(()), Err)?;
        let Some(recomputed) = recomputed? else { return Ok(None) };
        for roster in &recomputed.rosters {
            records.send_roster(roster);
        }
        records.finish(&context.metrics)?;
        Ok(Some(recomputed.counts))
    }

    fn compare_with_published(
        &mut self,
        window: Window,
        counts: &Counts,
        logic: i32,
    ) -> Result<WindowOutcome, MergeError> {
        let published = self.last_report(&window)?;
        let Some(logic) = report_logic(published.map(|published| published.logic), logic) else {
            return Ok(WindowOutcome::without_report(window, Verdict::Dropped));
        };
        let report = bar_report(self.table.frames(), &window, counts, logic)
            .expect("a window is finished only if its closing frame is there");
        let computed = ReportIndex::fingerprint(&report, &avro_body(&report));
        let (verdict, write) = verdict(published.as_ref(), &computed, self.context.reemit == Reemit::Always);
        let reemitted = write && published == Some(computed);
        Ok(WindowOutcome { window, verdict, report: write.then_some((report, computed)), reemitted, skip_cause: None })
    }

    fn last_report(&mut self, window: &Window) -> Result<Option<Fingerprint>, MergeError> {
        let next =
            self.table.frames().get(window.end).expect("a window is finished only if its closing frame is there");
        Ok(self.reports.last(window.from, next.scheduled_at)?)
    }

    fn record_outcome(&mut self, outcome: &WindowOutcome) {
        let WindowOutcome { window, verdict, report, reemitted, skip_cause } = outcome;
        WindowFinished {
            window,
            verdict: *verdict,
            report: report.as_ref().map(|(report, _)| report),
            reemitted: *reemitted,
            skip_cause: *skip_cause,
        }
        .emit(&self.context.metrics);
        if let Some((_, fingerprint)) = report {
            self.reports.record_written(window.from, *fingerprint);
        }
    }
}

/// Renews the lease of a merge that reads claims.
struct LeaseKeeper<'m, 'c> {
    core: &'m mut MergeSession,
    producer: &'m mut MergeProducer<'c>,
    table: &'m FrameTable,
    started_at: Instant,
    error: Option<MergeError>,
}

impl LeaseKeeper<'_, '_> {
    /// Writes a merging record if it is due. Returns false if that fails.
    fn renew_if_due(&mut self) -> bool {
        if self.error.is_none() && self.core.renewal_due(self.started_at.elapsed()) {
            match self.producer.write_merging(self.table.frames(), self.core.merging()) {
                Ok(()) => self.core.record_renewal(self.started_at.elapsed()),
                Err(error) => self.error = Some(error.into()),
            }
        }
        self.error.is_none()
    }
}

fn record(core: &mut MergeSession, offset: i64, record: BarPartial, now: Duration) {
    if !core.record(offset, record, now) {
        tracing::warn!(offset, "ignoring a record of barpartials that this version does not know");
    }
}

/// Returns true if a merge wrote the record.
fn is_of_merge(record: &BarPartial) -> bool {
    record.partial().is_none()
}
