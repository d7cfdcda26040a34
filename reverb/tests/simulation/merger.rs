//! The merge of one member: the core, and around it what the shell does, one small step at a time.

use std::collections::BTreeMap;

use backbeat_reverb::core::{Counts, Merge, Ready, Tally, Window, bar_report, verdict};
use backbeat_schemas::{BarPartial, BarReport, BeatIndex, Done, PartialBody, Timestamp, Verdict};
use backbeat_simulation::{Violation, ensure};

use crate::kafka::{Fenced, Kafka};
use crate::member::{Context, Table, recount};
use crate::model::MEMORY;
use crate::world::Sabotage;

/// Windows finished in one transaction.
const MAX_WINDOWS: usize = 5;

/// A merge, from its fence to its first error.
#[derive(Default)]
pub(crate) struct Merger {
    /// `None` until the transactional id is open.
    epoch: Option<u64>,
    partials_at: Option<i64>,
    merge: Merge,
    table: Table,
    /// The reports that are there, as far back as was asked for.
    since: Option<Timestamp>,
    reports: BTreeMap<BeatIndex, BarReport>,
    /// What the present transaction is to hold, and how much of it was sent.
    writing: Vec<Finish>,
    sent: usize,
}

struct Finish {
    window: Window,
    verdict: Verdict,
    report: Option<BarReport>,
}

impl Merger {
    /// One of the things that it does in turn.
    pub(crate) fn step(&mut self, context: &mut Context<'_>) -> Result<Result<(), Violation>, Fenced> {
        if context.happens(0.01) {
            // Any error: it drops all it knows and starts over.
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
            self.follow(context.kafka);
            return self.decide(epoch, context);
        }
        Ok(Ok(()))
    }

    /// Ends after the transaction that has begun.
    pub(crate) fn stop(mut self, context: &mut Context<'_>) {
        while let (false, Some(epoch)) = (self.writing.is_empty(), self.epoch) {
            if self.write(epoch, context).is_err() {
                return;
            }
        }
    }

    /// Reads from where the last `done` says.
    fn catch_up(&mut self, kafka: &Kafka) {
        let is_done = |(_, record): &(i64, &BarPartial)| record.is_done();
        let last = kafka.read(&kafka.partials, kafka.partials.low).filter(is_done).last();
        let low = match last.and_then(|(_, record)| record.clone().into_body()) {
            Some(PartialBody::Done(done)) => done.low,
            _ => 0,
        };
        self.partials_at = Some(low.max(kafka.partials.low));
        self.follow(kafka);
    }

    fn follow(&mut self, kafka: &Kafka) {
        let start = self.partials_at.expect("it has caught up");
        for (offset, record) in kafka.read(&kafka.partials, start) {
            self.partials_at = Some(offset + 1);
            match record.clone().into_body() {
                Some(PartialBody::Partial(partial)) => self.merge.partial(offset, record.from_beat, partial),
                Some(PartialBody::Done(_)) => self.merge.done(Some(offset), record.from_beat),
                None => unreachable!("nobody else writes there"),
            }
        }
    }

    fn decide(&mut self, epoch: u64, context: &mut Context<'_>) -> Result<Result<(), Violation>, Fenced> {
        let Some(oldest) = self.merge.oldest() else { return Ok(Ok(())) };
        self.table.cover(oldest, context.kafka);
        self.table.follow(context.kafka);
        for (window, ready) in self.merge.ready(&self.table.frames, MAX_WINDOWS) {
            let finish = self.finish(window, &ready, context);
            self.writing.push(finish);
        }
        if !self.writing.is_empty() {
            context.kafka.begin(epoch)?;
        }
        // Sets of windows that a reset or a zombie brought up again are finished as fast as new ones.
        let beats = context.kafka.frames.len();
        let (sets, rows) = (self.merge.len(), self.table.len());
        Ok(ensure(sets <= beats && rows <= beats as i64, MEMORY, || format!("{sets} sets of {beats} beats")))
    }

    fn finish(&mut self, window: Window, ready: &Ready, context: &Context<'_>) -> Finish {
        let published = self.published(&window, context);
        let counts = match ready {
            Ready::Stuck if published.is_some() => {
                return Finish { window, verdict: Verdict::Dropped, report: None };
            }
            Ready::Complete(counts) => Some(*counts),
            Ready::Skip => None,
            Ready::Recompute | Ready::Stuck => self.recompute(&window, context),
        };
        let Some(counts) = counts else {
            return Finish { window, verdict: Verdict::Skipped, report: None };
        };
        let report = bar_report(&self.table.frames, &window, &counts).expect("it is closed");
        let (verdict, write) = verdict(published.as_ref(), &report, false);
        Finish { window, verdict, report: write.then_some(report) }
    }

    fn recompute(&self, window: &Window, context: &Context<'_>) -> Option<Counts> {
        let partitions = self.table.frames.get(window.closes)?.claim_offsets.len() as i32;
        let mut whole = Tally::default();
        for partition in 0..partitions {
            whole.absorb(recount(context, &self.table.frames, window, partition)?);
        }
        Some(whole.counts())
    }

    /// The last report of a window: the log is read from where `closed_at` leads, once.
    fn published(&mut self, window: &Window, context: &Context<'_>) -> Option<BarReport> {
        let kafka = &context.kafka;
        let closed_at = self.table.frames.get(window.end).expect("it is closed").scheduled_at;
        if self.since.is_none_or(|since| closed_at < since) {
            let later = |(_, report): &(i64, &BarReport)| report.closed_at < closed_at;
            let found = kafka.read(&kafka.reports, 0).skip_while(later);
            self.reports = found.map(|(_, report)| (report.from_beat, report.clone())).collect();
            self.since = Some(closed_at);
        }
        if context.is(Sabotage::ReportsHidden) { None } else { self.reports.get(&window.from).cloned() }
    }

    /// Sends one record of the transaction, or commits it.
    fn write(&mut self, epoch: u64, context: &mut Context<'_>) -> Result<(), Fenced> {
        if let Some(finish) = self.writing.get(self.sent) {
            if let Some(report) = &finish.report {
                let mut report = report.clone();
                report.claims += i64::from(context.is(Sabotage::ClaimsTwice));
                context.kafka.send_report(epoch, report)?;
            }
            let froms: Vec<BeatIndex> = self.writing.iter().map(|finish| finish.window.from).collect();
            let low = self.merge.low_without(&froms);
            let done = PartialBody::Done(Done { verdict: finish.verdict, low });
            context.kafka.send_done(epoch, BarPartial::new(finish.window.id, finish.window.from, done))?;
            self.sent += 1;
            return Ok(());
        }
        context.kafka.commit_transaction(epoch)?;
        if context.happens(0.05) {
            // Committed, and the answer is lost.
            *self = Self::default();
            return Ok(());
        }
        self.sent = 0;
        for finish in std::mem::take(&mut self.writing) {
            self.merge.done(None, finish.window.from);
            if let Some(report) = finish.report {
                self.reports.insert(finish.window.from, report);
            }
        }
        if let Some(oldest) = self.merge.oldest() {
            self.table.forget_before(oldest);
        }
        Ok(())
    }

    /// For the trace.
    pub(crate) fn state(&self) -> String {
        format!(" merge({} sets, {} writing)", self.merge.len(), self.writing.len())
    }
}
