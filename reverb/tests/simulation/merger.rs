//! The merge of one member: the core, with a model of the shell that works in small steps.

use std::collections::BTreeMap;

use backbeat_reverb::core::{Completion, Counts, Merge, Tally, Window, bar_report, verdict};
use backbeat_schemas::{BarPartial, BarReport, BeatIndex, Done, PartialBody, Timestamp, Verdict};
use backbeat_simulation::{Violation, ensure};

use crate::kafka::{Fenced, Kafka};
use crate::member::{Context, Table, recompute_share};
use crate::model::MEMORY;
use crate::world::Sabotage;

/// Windows finished in one transaction.
const MAX_WINDOWS_PER_TRANSACTION: usize = 5;

/// A merge from `InitTransactions` to its first error.
#[derive(Default)]
pub(crate) struct Merger {
    /// The producer's epoch; `None` until transactions are initialized.
    epoch: Option<u64>,
    partials_at: Option<i64>,
    merge: Merge,
    table: Table,
    /// The published reports, from those closed at `since` on.
    since: Option<Timestamp>,
    reports: BTreeMap<BeatIndex, BarReport>,
    /// The outcomes to write in the current transaction, and how many were sent.
    writing: Vec<WindowOutcome>,
    sent: usize,
}

struct WindowOutcome {
    window: Window,
    verdict: Verdict,
    report: Option<BarReport>,
}

impl Merger {
    /// Does one step of the merge.
    pub(crate) fn step(&mut self, context: &mut Context<'_>) -> Result<Result<(), Violation>, Fenced> {
        if context.happens(0.01) {
            // Any error: the merge drops all its state and starts over.
            *self = Self::default();
        }
        let Some(epoch) = self.epoch else {
            self.epoch = Some(context.kafka.init_transactions());
            return Ok(Ok(()));
        };
        if self.partials_at.is_none() {
            self.catch_up(context.kafka);
        } else if !self.writing.is_empty() {
            self.write(epoch, context)?;
        } else {
            self.poll_partials(context.kafka);
            return self.start_transaction(epoch, context);
        }
        Ok(Ok(()))
    }

    /// Stops after the transaction that it has begun.
    pub(crate) fn stop(mut self, context: &mut Context<'_>) {
        while let (false, Some(epoch)) = (self.writing.is_empty(), self.epoch) {
            if self.write(epoch, context).is_err() {
                return;
            }
        }
    }

    /// Reads from the restart offset in the last done record.
    fn catch_up(&mut self, kafka: &Kafka) {
        let is_done = |(_, record): &(i64, &BarPartial)| record.is_done();
        let last = kafka.read(&kafka.partials, kafka.partials.log_start).filter(is_done).last();
        let restart_offset = match last.and_then(|(_, record)| record.clone().into_body()) {
            Some(PartialBody::Done(done)) => done.low,
            _ => 0,
        };
        self.partials_at = Some(restart_offset.max(kafka.partials.log_start));
        self.poll_partials(kafka);
    }

    fn poll_partials(&mut self, kafka: &Kafka) {
        let start = self.partials_at.expect("catch_up has set the position");
        for (offset, record) in kafka.read(&kafka.partials, start) {
            self.partials_at = Some(offset + 1);
            match record.clone().into_body() {
                Some(PartialBody::Partial(partial)) => self.merge.add_partial(offset, record.from_beat, partial),
                Some(PartialBody::Done(_)) => self.merge.add_done(Some(offset), record.from_beat),
                None => unreachable!("only members write to barpartials"),
            }
        }
    }

    fn start_transaction(&mut self, epoch: u64, context: &mut Context<'_>) -> Result<Result<(), Violation>, Fenced> {
        let Some(oldest) = self.merge.oldest() else { return Ok(Ok(())) };
        self.table.ensure_covers(oldest, context.kafka);
        self.table.poll(context.kafka);
        for (window, completion) in self.merge.completions(&self.table.frames, MAX_WINDOWS_PER_TRANSACTION) {
            let outcome = self.determine_outcome(window, &completion, context);
            self.writing.push(outcome);
        }
        if !self.writing.is_empty() {
            context.kafka.begin(epoch)?;
        }
        // Sets of old windows, opened again by a reset or a zombie, are finished as fast as those of new windows.
        let beats = context.kafka.frames.len();
        let (sets, rows) = (self.merge.len(), self.table.len());
        Ok(ensure(sets <= beats && rows <= beats as i64, MEMORY, || format!("{sets} sets of {beats} beats")))
    }

    fn determine_outcome(&mut self, window: Window, completion: &Completion, context: &Context<'_>) -> WindowOutcome {
        let published = self.published(&window, context);
        let counts = match completion {
            Completion::RecomputeUnlessReported if published.is_some() => {
                return WindowOutcome { window, verdict: Verdict::Dropped, report: None };
            }
            Completion::Sum(counts) => Some(*counts),
            Completion::Skip => None,
            Completion::Recompute | Completion::RecomputeUnlessReported => self.recompute(&window, context),
        };
        let Some(counts) = counts else {
            return WindowOutcome { window, verdict: Verdict::Skipped, report: None };
        };
        let report = bar_report(&self.table.frames, &window, &counts).expect("the closing frame is in the table");
        let (verdict, write) = verdict(published.as_ref(), &report, false);
        WindowOutcome { window, verdict, report: write.then_some(report) }
    }

    fn recompute(&self, window: &Window, context: &Context<'_>) -> Option<Counts> {
        let partitions = self.table.frames.get(window.closing)?.claim_offsets.len() as i32;
        let mut whole = Tally::default();
        for partition in 0..partitions {
            whole.add(recompute_share(context, &self.table.frames, window, partition)?);
        }
        Some(whole.counts())
    }

    /// Returns the last report of a window. The log is read once, from the offset of `closed_at`.
    fn published(&mut self, window: &Window, context: &Context<'_>) -> Option<BarReport> {
        let kafka = &context.kafka;
        let closed_at = self.table.frames.get(window.end).expect("the closing frame is in the table").scheduled_at;
        if self.since.is_none_or(|since| closed_at < since) {
            let later = |(_, report): &(i64, &BarReport)| report.closed_at < closed_at;
            let found = kafka.read(&kafka.reports, 0).skip_while(later);
            self.reports = found.map(|(_, report)| (report.from_beat, report.clone())).collect();
            self.since = Some(closed_at);
        }
        if context.is(Sabotage::ReportsIgnored) { None } else { self.reports.get(&window.from).cloned() }
    }

    /// Sends one record of the transaction, or commits it.
    fn write(&mut self, epoch: u64, context: &mut Context<'_>) -> Result<(), Fenced> {
        if let Some(outcome) = self.writing.get(self.sent) {
            if let Some(report) = &outcome.report {
                let mut report = report.clone();
                report.claims += i64::from(context.is(Sabotage::ClaimsCountedTwice));
                context.kafka.send_report(epoch, report)?;
            }
            let froms: Vec<BeatIndex> = self.writing.iter().map(|outcome| outcome.window.from).collect();
            let restart_offset = self.merge.restart_offset(&froms);
            let done = PartialBody::Done(Done { verdict: outcome.verdict, low: restart_offset });
            context.kafka.send_done(epoch, BarPartial::new(outcome.window.id, outcome.window.from, done))?;
            self.sent += 1;
            return Ok(());
        }
        context.kafka.commit_transaction(epoch)?;
        if context.happens(0.05) {
            // Committed, but the response was lost.
            *self = Self::default();
            return Ok(());
        }
        self.sent = 0;
        for outcome in std::mem::take(&mut self.writing) {
            self.merge.add_done(None, outcome.window.from);
            if let Some(report) = outcome.report {
                self.reports.insert(outcome.window.from, report);
            }
        }
        if let Some(oldest) = self.merge.oldest() {
            self.table.drop_before(oldest);
        }
        Ok(())
    }

    /// Returns the state for the trace.
    pub(crate) fn state(&self) -> String {
        format!(" merge({} sets, {} writing)", self.merge.len(), self.writing.len())
    }
}
