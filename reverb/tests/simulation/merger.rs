//! The merge of one member: drives the core's session, and does what it says in small steps that take time.

use std::collections::BTreeMap;
use std::time::Duration;

use backbeat_reverb::core::{
    Completion, LOGIC, MergeCommand, MergeSession, Rescue, Window, bar_report, report_logic, share, verdict,
};
use backbeat_schemas::{
    BarPartial, BarReport, BeatIndex, Counts, Done, Merging, Partial, PartialBody, Timestamp, Verdict, WindowId,
};
use backbeat_simulation::{Violation, ensure};

use crate::kafka::{Fenced, Record};
use crate::member::{Context, Table, recompute_share};
use crate::model::{DEAD_LETTERS, MEMORY};
use crate::world::Sabotage;

/// The merge of one member, active or not.
pub(crate) struct Merger {
    name: String,
    /// True for a member of the version before the lease: it merges while it owns partition 0, and neither writes nor knows
    /// merging records.
    is_old: bool,
    core: MergeSession,
    /// The producer's epoch; `None` unless the transactional id was opened.
    epoch: Option<u64>,
    table: Table,
    /// The published reports, from those closed at `since` on.
    since: Option<Timestamp>,
    reports: BTreeMap<BeatIndex, BarReport>,
    /// The command that is being executed, and the time at which its next step ends.
    doing: Option<Doing>,
    busy_until: Duration,
}

enum Doing {
    ReadToEnd {
        asked_at: Duration,
    },
    Open,
    Renew,
    /// The transactional id was opened: read to the end and write a merging record.
    Claim,
    Finish {
        outcomes: Vec<WindowOutcome>,
        sent: usize,
        began: Duration,
    },
    Rescue {
        rescue: Rescue,
        began: Duration,
    },
}

struct WindowOutcome {
    window: Window,
    verdict: Verdict,
    report: Option<BarReport>,
}

impl Merger {
    /// Reads the partials of windows that are not done.
    pub(crate) fn new(name: &str, is_old: bool, context: &Context<'_>) -> Self {
        let kafka = &context.kafka;
        let core = MergeSession::new(name.to_owned(), context.takeover_after, context.now);
        let mut merger = Self {
            name: name.to_owned(),
            is_old,
            core,
            epoch: None,
            table: Table::default(),
            since: None,
            reports: BTreeMap::new(),
            doing: None,
            busy_until: context.now,
        };
        let last_done = kafka.read(&kafka.partials, 0).filter(|(_, record)| record.is_done()).last();
        let restart_offset = match last_done.and_then(|(_, record)| record.clone().into_body()) {
            Some(PartialBody::Done(done)) => done.low,
            _ => 0,
        };
        let has_merge_record = kafka.read(&kafka.partials, 0).any(|(_, record)| record.partial().is_none());
        merger.read_partials(restart_offset, context);
        merger.core.record_start(has_merge_record);
        merger.table.ensure_covers(merger.core.first_beat(kafka.frames.last()), kafka);
        merger
    }

    pub(crate) fn is_active(&self) -> bool {
        self.core.is_active()
    }

    /// Does one step of the merge.
    pub(crate) fn step(
        &mut self,
        reached: BeatIndex,
        owns_first: bool,
        context: &mut Context<'_>,
    ) -> Result<(), Violation> {
        if context.happens(0.002) {
            // A failed read: the merge drops all its state and starts over.
            *self = Self::new(&self.name, self.is_old, context);
        }
        let stepped = match self.doing.take() {
            Some(doing) if context.is_hung || context.now < self.busy_until => {
                self.doing = Some(doing);
                return Ok(());
            }
            Some(doing) => self.proceed(doing, context),
            None => return self.turn(reached, owns_first, context),
        };
        stepped.unwrap_or_else(|Fenced| {
            context.count("fenced");
            self.epoch = None;
            self.core.record_fencing(context.now);
            Ok(())
        })
    }

    /// One turn of the loop: reads what is new, and begins the next command.
    fn turn(&mut self, reached: BeatIndex, owns_first: bool, context: &mut Context<'_>) -> Result<(), Violation> {
        let now = context.now;
        self.core.record_turn(now);
        if self.core.merge().next_offset() < context.kafka.partials.log_start && !context.is_hung {
            // Retention has deleted what it had not read: it starts over.
            *self = Self::new(&self.name, self.is_old, context);
        }
        if !context.is_hung {
            self.read_partials(self.core.merge().next_offset(), context);
            if let Some(oldest) = self.core.merge().oldest() {
                self.table.ensure_covers(oldest, context.kafka);
            }
            self.table.poll(context.kafka);
            self.core.record_frames(&self.table.frames, now);
        }
        if !self.core.is_active() {
            self.epoch = None;
        }
        let next =
            if self.is_old { self.old_command(owns_first) } else { self.core.next(&self.table.frames, reached, now) };
        let command = match next {
            None if context.is(Sabotage::TakesOverAlways) && !self.core.is_active() => MergeCommand::TakeOver,
            Some(MergeCommand::TakeOver) if context.is(Sabotage::NeverTakesOver) => return Ok(()),
            None => {
                self.drop_finished_windows();
                return self.check_memory(context);
            }
            Some(command) => command,
        };
        let recomputes = |completions: &[(Window, Completion)]| {
            let recomputes = |(_, how): &(Window, Completion)| {
                matches!(how, Completion::Recompute | Completion::RecomputeUnlessReported)
            };
            completions.iter().any(recomputes)
        };
        let takes = match &command {
            MergeCommand::Rescue(..) => context.read_latency(),
            MergeCommand::Finish(completions) if recomputes(completions) => context.read_latency(),
            _ => context.latency(),
        };
        self.busy_until = now + takes;
        let doing = match command {
            MergeCommand::ReadToEnd => Doing::ReadToEnd { asked_at: now },
            MergeCommand::TakeOver => Doing::Open,
            MergeCommand::Renew => Doing::Renew,
            MergeCommand::Finish(completions) => {
                let outcomes =
                    completions.into_iter().map(|(window, how)| self.determine_outcome(window, &how, context));
                let outcomes = outcomes.collect();
                Doing::Finish { outcomes, sent: 0, began: now }
            }
            MergeCommand::Rescue(rescue) => Doing::Rescue { rescue, began: now },
        };
        self.doing = Some(doing);
        Ok(())
    }

    /// Returns the next command of an old member.
    fn old_command(&mut self, owns_first: bool) -> Option<MergeCommand> {
        if !owns_first {
            self.epoch = None;
            return None;
        }
        if self.epoch.is_none() {
            return Some(MergeCommand::TakeOver);
        }
        let completions = self.core.merge().completions(&self.table.frames, 5);
        (!completions.is_empty()).then_some(MergeCommand::Finish(completions))
    }

    /// Continues a command whose last step has ended.
    fn proceed(&mut self, doing: Doing, context: &mut Context<'_>) -> Result<Result<(), Violation>, Fenced> {
        let now = context.now;
        match doing {
            Doing::ReadToEnd { asked_at } => {
                self.read_partials(self.core.merge().next_offset(), context);
                self.core.record_read_to_end(asked_at, now, now);
            }
            Doing::Open => {
                self.epoch = Some(context.kafka.init_transactions());
                self.busy_until = now + context.latency();
                self.doing = Some(Doing::Claim);
            }
            Doing::Claim => {
                self.read_partials(self.core.merge().next_offset(), context);
                self.since = None;
                self.core.record_opening(now);
                context.count("taken over");
                if !self.is_old {
                    self.renew(context)?;
                }
            }
            Doing::Renew => self.renew(context)?,
            Doing::Finish { outcomes, sent, began } => return self.write(outcomes, sent, began, context),
            Doing::Rescue { rescue, began } => {
                if self.core.keeps_lease() {
                    self.renew(context)?;
                }
                let Rescue { first, last, partitions } = rescue;
                let windows: Vec<Window> = self.table.frames.windows(Some(first.from), Some(last.from)).collect();
                if windows.len() > 1 {
                    context.count("windows rescued together");
                }
                let mut shares = Vec::new();
                for (window, partition) in
                    windows.iter().flat_map(|window| partitions.iter().map(move |p| (window, *p)))
                {
                    let share = self.rescue_share(window, partition, context);
                    shares.extend(share.map(|share| (window.from, share)));
                }
                context.counts.add("rescued share", shares.len() as u64);
                self.core.record_rescue(shares, began, now);
            }
        }
        Ok(Ok(()))
    }

    /// Writes a merging record.
    fn renew(&mut self, context: &mut Context<'_>) -> Result<(), Fenced> {
        self.write_merging(self.core.merging(), context)?;
        self.core.record_renewal(context.now);
        Ok(())
    }

    fn write_merging(&self, merging: Merging, context: &mut Context<'_>) -> Result<(), Fenced> {
        let epoch = self.epoch.expect("the merge is active");
        let record =
            BarPartial::new(WindowId::new("sim", BeatIndex::ZERO), BeatIndex::ZERO, PartialBody::Merging(merging));
        context.kafka.begin(epoch)?;
        context.kafka.send_done(epoch, record)?;
        context.kafka.commit_transaction(epoch)
    }

    /// Reads a share from the claims, and writes its dead letters.
    fn rescue_share(&self, window: &Window, partition: i32, context: &mut Context<'_>) -> Option<Partial> {
        if context.happens(0.1) {
            // Kafka, or the registry, did not answer in time.
            return None;
        }
        let (closed, dead_letters) = recompute_share(context, &self.table.frames, window, partition)?;
        let mut share = share(partition, &closed);
        if let Some(roster) = closed.roster.filter(|_| !context.is(Sabotage::RescueWithoutRosters)) {
            context.kafka.write_roster(*roster);
        }
        if context.is(Sabotage::RescueShort) {
            share.claims -= share.claims.min(1);
        }
        if !context.is(Sabotage::RescueWithoutDeadLetters) {
            context.kafka.dead_letters.extend(dead_letters.iter().map(|offset| (partition, *offset)));
        }
        Some(share)
    }

    /// Stops in good order, after the transaction that it has begun.
    pub(crate) fn stop(mut self, context: &mut Context<'_>) {
        while let Some(Doing::Finish { outcomes, sent, began }) = self.doing.take() {
            if self.write(outcomes, sent, began, context).is_err() {
                return;
            }
        }
        if self.core.is_active() && !self.is_old {
            // If it was fenced, another member has written that it merges.
            let _ = self.write_merging(Merging { member: None, logic: LOGIC }, context);
        }
    }

    fn read_partials(&mut self, start: i64, context: &Context<'_>) {
        let kafka = &context.kafka;
        for (offset, record) in kafka.read(&kafka.partials, start.max(kafka.partials.log_start)) {
            let is_merging = record.partial().is_none() && !record.is_done();
            if self.is_old && is_merging {
                continue;
            }
            assert!(self.core.record(offset, record.clone(), context.now), "only members write to barpartials");
        }
    }

    fn check_memory(&self, context: &Context<'_>) -> Result<(), Violation> {
        // Sets of old windows, opened again by a reset or a zombie, are finished as fast as those of new windows.
        let beats = context.kafka.frames.len();
        let (sets, rows) = (self.core.merge().len(), self.table.len());
        ensure(sets <= beats && rows <= beats as i64, MEMORY, || format!("{sets} sets of {beats} beats"))
    }

    fn determine_outcome(
        &mut self,
        window: Window,
        completion: &Completion,
        context: &mut Context<'_>,
    ) -> WindowOutcome {
        let published = self.published(&window, context);
        let counts = match completion {
            Completion::RecomputeUnlessReported if published.is_some() => {
                context.count("dropped");
                return WindowOutcome { window, verdict: Verdict::Dropped, report: None };
            }
            Completion::Sum(counts, logic) => Some((*counts, *logic)),
            Completion::Skip => None,
            Completion::Recompute | Completion::RecomputeUnlessReported => {
                context.count("recomputed");
                self.recompute(&window, context).map(|counts| (counts, if self.is_old { 1 } else { LOGIC }))
            }
        };
        let Some((counts, logic)) = counts else {
            context.count("skipped");
            return WindowOutcome { window, verdict: Verdict::Skipped, report: None };
        };
        let published_logic = published.as_ref().map(|published| published.logic);
        let Some(logic) = report_logic(published_logic, logic) else {
            context.count("of a later logic");
            return WindowOutcome { window, verdict: Verdict::Dropped, report: None };
        };
        if logic < LOGIC {
            context.count("of an earlier logic");
        }
        let report =
            bar_report(&self.table.frames, &window, &counts, logic).expect("the closing frame is in the table");
        let (verdict, write) = verdict(published.as_ref(), &report, false);
        context.count(verdict.as_str());
        WindowOutcome { window, verdict, report: write.then_some(report) }
    }

    fn recompute(&self, window: &Window, context: &mut Context<'_>) -> Option<Counts> {
        let partitions = self.table.frames.get(window.closing)?.claim_offsets.len() as i32;
        let mut whole = Counts::default();
        for partition in 0..partitions {
            let (closed, dead_letters) = recompute_share(context, &self.table.frames, window, partition)?;
            context.kafka.dead_letters.extend(dead_letters.iter().map(|offset| (partition, *offset)));
            whole.add(&closed.is_retained(LOGIC).then_some(closed.counts)?);
            if let Some(roster) = closed.roster.filter(|_| !self.is_old) {
                context.kafka.write_roster(*roster);
            }
        }
        Some(whole)
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
    fn write(
        &mut self,
        outcomes: Vec<WindowOutcome>,
        sent: usize,
        began: Duration,
        context: &mut Context<'_>,
    ) -> Result<Result<(), Violation>, Fenced> {
        let epoch = self.epoch.expect("the merge is active");
        if let Some(outcome) = outcomes.get(sent) {
            context.kafka.begin(epoch)?;
            if let Some(report) = &outcome.report {
                let mut report = report.clone();
                report.claims += i64::from(context.is(Sabotage::ClaimsCountedTwice));
                context.kafka.send_report(epoch, report)?;
            }
            let froms: Vec<BeatIndex> = outcomes.iter().map(|outcome| outcome.window.from).collect();
            let merge = self.core.merge();
            let (low, rescued) = (merge.restart_offset(&froms), merge.rescued(outcome.window.from));
            let done = PartialBody::Done(Done { verdict: outcome.verdict, low, rescued });
            context.kafka.send_done(epoch, BarPartial::new(outcome.window.id, outcome.window.from, done))?;
            let sent = sent + 1;
            if sent == outcomes.len() {
                self.busy_until = context.now + context.commit_latency();
            }
            self.doing = Some(Doing::Finish { outcomes, sent, began });
            return Ok(Ok(()));
        }
        context.kafka.commit_transaction(epoch)?;
        let mut reports = outcomes.iter().filter_map(|outcome| outcome.report.as_ref());
        let checked = reports.try_for_each(|report| check_dead_letters(report, context));
        if context.happens(0.05) {
            // Committed, but the response was lost.
            context.count("in doubt");
            self.epoch = None;
            self.core.record_failure(context.now);
            return Ok(checked);
        }
        let froms: Vec<BeatIndex> = outcomes.iter().map(|outcome| outcome.window.from).collect();
        self.core.record_finished(&froms, began, context.now);
        for outcome in outcomes {
            if let Some(report) = outcome.report {
                self.reports.insert(outcome.window.from, report);
            }
        }
        self.drop_finished_windows();
        Ok(checked)
    }

    fn drop_finished_windows(&mut self) {
        if let Some(oldest) = self.core.oldest_needed(&self.table.frames) {
            self.table.drop_before(oldest);
        }
    }

    /// Returns the state for the trace.
    pub(crate) fn state(&self) -> String {
        let role = if self.core.is_active() { "merges" } else { "follows" };
        format!(" {role}({} sets)", self.core.merge().len())
    }
}

/// Checks that the dead letters of a report were written before it.
fn check_dead_letters(report: &BarReport, context: &Context<'_>) -> Result<(), Violation> {
    let ranges = report.from_offsets.iter().zip(&report.to_offsets);
    for ((partition, log), (from, to)) in (0..).zip(&context.kafka.claims).zip(ranges) {
        let is_broken = |offset: &i64| matches!(log.records[*offset as usize], Record::Broken);
        let lost = (*from..*to).filter(is_broken).find(|o| !context.kafka.dead_letters.contains(&(partition, *o)));
        ensure(lost.is_none(), DEAD_LETTERS, || format!("{partition}/{lost:?} in the report of {}", report.from_beat))?;
    }
    Ok(())
}
