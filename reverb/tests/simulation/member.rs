//! A member of the group: the core, with a model of the shell that works in small steps.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use backbeat_reverb::core::{
    ClosedWindow, CommittedOffset, DecodedClaim, Frames, OutboxRecord, Output, Partition, PartitionAggregator,
    RawRecord, Window,
};
use backbeat_schemas::{BarPartial, BarRoster, BeatIndex, InvalidClaim, Partial, PartialBody};
use backbeat_simulation::{Violation, ensure};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::counts::Counts;
use crate::kafka::{Kafka, Record};
use crate::merger::Merger;
use crate::model::MEMORY;
use crate::world::Sabotage;

/// A change of the member's assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AssignmentChange {
    Assigned(i32),
    /// The member gives the partition up in an orderly way.
    Revoked(i32),
    /// The group coordinator has removed the member and reassigned its partitions.
    Lost,
}

/// A record that was sent and is not in the log yet.
#[derive(Debug)]
enum InFlight {
    DeadLetter(i32, i64),
    Roster(Box<BarRoster>),
    Partial(Box<BarPartial>),
}

#[derive(Debug, Default)]
struct OwnedPartition {
    assigned_at: Duration,
    /// The next offset to fetch; `None` until the start position is known.
    position: Option<i64>,
    committed: Option<CommittedOffset>,
    log_starts: BTreeMap<i32, i64>,
    core: Option<Partition>,
}

/// The world as a step of a member sees it.
pub(crate) struct Context<'w> {
    pub(crate) kafka: &'w mut Kafka,
    pub(crate) rng: &'w mut ChaCha8Rng,
    pub(crate) now: Duration,
    pub(crate) sabotage: Option<Sabotage>,
    /// True if faults have ended.
    pub(crate) is_calm: bool,
    pub(crate) takeover_after: Duration,
    pub(crate) delays: Delays,
    /// The number of claims of a partition that a member reads in a turn, at most.
    pub(crate) claims_per_turn: usize,
    /// True while Kafka answers nothing.
    pub(crate) is_hung: bool,
    pub(crate) counts: &'w mut Counts,
}

/// The time that Kafka takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Delays {
    /// The longest time of a request that is not slow.
    pub(crate) request: Duration,
    /// The time of a commit.
    pub(crate) commit: Duration,
    /// The probability of a slow request, which takes up to `slow`.
    pub(crate) slow_share: f64,
    pub(crate) slow: Duration,
    /// The time from the assignment of a partition until its start position is known.
    pub(crate) start: Duration,
    /// The longest time in which the merge reads a window's claims.
    pub(crate) read: Duration,
}

impl Context<'_> {
    pub(crate) fn happens(&mut self, probability: f64) -> bool {
        !self.is_calm && self.rng.random_bool(probability)
    }

    /// Returns the time that a request takes.
    pub(crate) fn latency(&mut self) -> Duration {
        let Delays { request, slow_share, slow, .. } = self.delays;
        let longest = if self.happens(slow_share) { slow } else { request };
        longest.mul_f64(self.rng.random_range(0.0..1.0))
    }

    /// Returns the time in which the merge reads a window's claims.
    pub(crate) fn read_latency(&mut self) -> Duration {
        self.delays.read.mul_f64(self.rng.random_range(0.0..1.0)) + self.latency()
    }

    pub(crate) fn commit_latency(&mut self) -> Duration {
        self.delays.commit + self.latency()
    }

    /// Counts that a rare path was taken.
    pub(crate) fn count(&mut self, path: &'static str) {
        self.counts.add(path, 1);
    }

    /// Returns the number of records to process in one step.
    fn batch(&mut self, most: usize) -> usize {
        if self.is_calm { most } else { self.rng.random_range(1..most) }
    }

    pub(crate) fn is(&self, sabotage: Sabotage) -> bool {
        self.sabotage == Some(sabotage)
    }

    fn log_starts(&self) -> BTreeMap<i32, i64> {
        let log_starts = self.kafka.log_starts();
        if self.is(Sabotage::RetentionIgnored) {
            log_starts.into_keys().map(|partition| (partition, 0)).collect()
        } else {
            log_starts
        }
    }
}

pub(crate) struct Member {
    pub(crate) name: u64,
    pub(crate) is_paused: bool,
    started: Duration,
    pub(crate) changes: VecDeque<AssignmentChange>,
    owned: BTreeMap<i32, OwnedPartition>,
    table: Table,
    partials_at: i64,
    counter: i64,
    in_flight: VecDeque<(Duration, InFlight)>,
    /// The time from sending a record until it is in the log.
    pub(crate) slow_by: Duration,
    /// True for a member of the version before the lease and the rosters.
    pub(crate) is_old: bool,
    merger: Merger,
}

/// The table of boundaries and the position in `beatframes`.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) frames: Frames,
    next: Option<usize>,
    reaches_log_start: bool,
}

impl Table {
    /// Adds the frames that are available.
    pub(crate) fn poll(&mut self, kafka: &Kafka) {
        let Some(next) = &mut self.next else { return };
        for frame in &kafka.frames[*next..] {
            self.frames.push(frame.clone()).expect("frames have no gaps");
        }
        *next = kafka.frames.len();
    }

    /// Makes the table reach back to every window in which a claim that arrives on `beat` may count, and to the window before.
    pub(crate) fn ensure_covers(&mut self, beat: BeatIndex, kafka: &Kafka) {
        if self.next.is_some() && (self.reaches_log_start || self.frames.cover(beat)) {
            return;
        }
        let grace = kafka.frames.first().map_or(0, |frame| i64::from(frame.grace_beats));
        let downbeat = |beat: usize| kafka.frames.iter().take(beat + 1).rposition(|frame| frame.downbeat).unwrap_or(0);
        let start = downbeat(downbeat((beat.get() - grace).max(0) as usize).saturating_sub(1));
        self.frames = Frames::default();
        for frame in &kafka.frames[start..self.next.unwrap_or(start).max(start)] {
            self.frames.push(frame.clone()).expect("frames have no gaps");
        }
        self.next = self.next.or(Some(start));
        self.reaches_log_start = start == 0;
    }

    pub(crate) fn drop_before(&mut self, beat: BeatIndex) {
        let grace = self.frames.first().map_or(0, |first| i64::from(first.grace_beats));
        let oldest = BeatIndex::try_from(beat.get() - grace).ok();
        if let Some(before) = oldest.and_then(|oldest| self.frames.window_of(oldest)?.from.previous()) {
            self.frames.drop_before(before);
            self.reaches_log_start &= self.frames.first().is_some_and(|first| first.beat_index == BeatIndex::ZERO);
        }
    }

    pub(crate) fn len(&self) -> i64 {
        match (self.frames.first(), self.frames.last()) {
            (Some(first), Some(last)) => last.beat_index.since(first.beat_index) + 1,
            _ => 0,
        }
    }
}

impl Member {
    /// Starts the member. It reads partials from before the first that it can send.
    pub(crate) fn new(name: u64, is_old: bool, context: &Context<'_>) -> Self {
        Self {
            name,
            is_paused: false,
            started: context.now,
            changes: VecDeque::new(),
            owned: BTreeMap::new(),
            table: Table::default(),
            partials_at: context.kafka.partials.end(),
            counter: 0,
            in_flight: VecDeque::new(),
            slow_by: Duration::ZERO,
            is_old,
            merger: Merger::new(&name.to_string(), is_old, context),
        }
    }

    pub(crate) fn is_merging(&self) -> bool {
        self.merger.is_active()
    }

    /// Does one random part of the member's loop.
    pub(crate) fn step(&mut self, context: &mut Context<'_>) -> Result<(), Violation> {
        match context.rng.random_range(0..9) {
            0 => self.fetch(context),
            1 => self.apply_assignment_change(context),
            2 => self.table.poll(context.kafka),
            3 => self.start_aggregators(context),
            4 => return self.advance(context),
            5 => (0..context.batch(4)).for_each(|_| self.send(context)),
            6 => (0..context.batch(12)).for_each(|_| self.deliver(context)),
            7 => self.poll_partials(context),
            _ => self.commit(context),
        }
        Ok(())
    }

    /// Does the whole loop of the member once, and one step of its merge.
    pub(crate) fn turn(&mut self, context: &mut Context<'_>) -> Result<(), Violation> {
        self.step_merge(context)?;
        if context.is_hung {
            return Ok(());
        }
        self.fetch(context);
        self.apply_assignment_change(context);
        self.table.poll(context.kafka);
        self.start_aggregators(context);
        self.advance(context)?;
        for _ in 0..4 {
            self.send(context);
            (0..4).for_each(|_| self.deliver(context));
        }
        self.poll_partials(context);
        self.commit(context);
        Ok(())
    }

    /// Does one step of the merge, which runs in parallel with the member's loop.
    pub(crate) fn step_merge(&mut self, context: &mut Context<'_>) -> Result<(), Violation> {
        let cores = self.owned.values().filter_map(|owned| owned.core.as_ref());
        let reached = cores.map(|core| core.aggregator().arrival_beat()).min().unwrap_or(BeatIndex::MAX);
        self.merger.step(reached, self.owned.contains_key(&0), context)
    }

    fn fetch(&mut self, context: &mut Context<'_>) {
        let log_starts = context.log_starts();
        let skipped = context.is(Sabotage::ClaimLost) && context.rng.random_bool(0.1);
        for (partition, owned) in &mut self.owned {
            let (Some(position), Some(core)) = (owned.position, &mut owned.core) else { continue };
            if core.is_full() {
                continue;
            }
            let batch = context.batch(context.claims_per_turn);
            let log = &context.kafka.claims[*partition as usize];
            for (offset, record) in log.read(position).take(batch) {
                owned.position = Some(offset + 1);
                let decoded = match record {
                    Record::Control => continue,
                    Record::Broken => DecodedClaim::Invalid(InvalidClaim::NoValue),
                    Record::Claim(_) if skipped => continue,
                    Record::Claim(claim) => DecodedClaim::Valid(claim.clone()),
                };
                if offset > core.aggregator().next_offset() {
                    core.skip_to(offset, log_starts[partition]);
                }
                core.process(offset, decoded, &self.table.frames, RawRecord::default);
            }
            // Every record was fetched, as the statistics would show.
            if owned.position.is_some_and(|position| position >= log.end()) {
                core.skip_to(log.end(), log_starts[partition]);
            }
        }
    }

    fn apply_assignment_change(&mut self, context: &mut Context<'_>) {
        match self.changes.pop_front() {
            None => {}
            Some(AssignmentChange::Assigned(partition)) => {
                let owned = OwnedPartition { assigned_at: context.now, ..OwnedPartition::default() };
                self.owned.insert(partition, owned);
            }
            Some(AssignmentChange::Revoked(partition)) => {
                let mut positions = self.positions(context);
                positions.retain(|other, _| *other == partition);
                if !context.happens(0.1) {
                    context.kafka.commit(self.name, &positions);
                }
                self.owned.remove(&partition);
                if context.kafka.owners.get(&partition) == Some(&self.name) {
                    context.kafka.owners.remove(&partition);
                }
            }
            Some(AssignmentChange::Lost) => {
                self.owned.clear();
            }
        }
        if self.owned.is_empty() {
            self.table = Table::default();
        }
    }

    fn start_aggregators(&mut self, context: &mut Context<'_>) {
        for (partition, owned) in &mut self.owned {
            if owned.core.is_some() || context.now < owned.assigned_at + context.delays.start {
                continue;
            }
            let log_starts = context.log_starts();
            let committed = *owned.committed.get_or_insert_with(|| {
                owned.log_starts.clone_from(&log_starts);
                let from_the_start = CommittedOffset { offset: log_starts[partition], downbeat: None };
                context.kafka.committed.get(partition).copied().unwrap_or(from_the_start)
            });
            let reached = |frame: &&_| committed.starts_by(frame, *partition, &owned.log_starts);
            let Some(earliest) = context.kafka.frames.iter().find(reached) else { continue };
            self.table.ensure_covers(earliest.beat_index, context.kafka);
            if context.happens(0.3) {
                // The frames of a table that was started come later.
                continue;
            }
            self.table.poll(context.kafka);
            if let Some(aggregator) = committed.start_aggregator(*partition, &self.table.frames, &owned.log_starts) {
                owned.position = Some(aggregator.next_offset());
                owned.core = Some(Partition::new(*partition, aggregator));
            }
        }
    }

    fn advance(&mut self, context: &Context<'_>) -> Result<(), Violation> {
        let newest = self.table.frames.last().map(|frame| frame.beat_index);
        let grace = context.kafka.frames.first().map_or(0, |frame| i64::from(frame.grace_beats));
        for core in self.owned.values_mut().filter_map(|owned| owned.core.as_mut()) {
            core.advance(&self.table.frames).for_each(drop);
            let open = core.aggregator().open_windows().count() as i64;
            ensure(open <= grace + 2, MEMORY, || format!("{open} windows are open with a grace of {grace}"))?;
        }
        let cores = || self.owned.values().filter_map(|owned| owned.core.as_ref());
        let oldest = cores().map(|core| core.aggregator().oldest_beat()).min();
        if let (Some(oldest), Some(newest)) = (oldest, newest)
            && self.owned.values().all(|owned| owned.core.is_some())
        {
            if !context.is(Sabotage::TableNotTruncated) {
                self.table.drop_before(oldest);
            }
            let before = self.table.frames.first().map_or(0, |first| i64::from(first.bar_length));
            let (rows, needed) = (self.table.len(), newest.since(oldest) + before);
            ensure(rows <= needed + 2 * grace + 20, MEMORY, || format!("{rows} frames for {needed} beats"))?;
        }
        Ok(())
    }

    fn send(&mut self, context: &mut Context<'_>) {
        let uptime = context.now.saturating_sub(self.started);
        let (name, is_old, waiting) = (self.name.to_string(), self.is_old, &mut self.in_flight);
        for (partition, owned) in &mut self.owned {
            let Some(core) = &mut owned.core else { continue };
            core.resend_overdue(uptime);
            let is_unacknowledged = waiting.iter().any(|(_, sent)| match sent {
                InFlight::DeadLetter(of, _) => of == partition,
                InFlight::Roster(roster) => roster.partition == *partition,
                InFlight::Partial(_) => false,
            });
            let sent = match core.next_record(is_unacknowledged) {
                None => continue,
                Some(OutboxRecord::DeadLetter { offset, .. }) => InFlight::DeadLetter(*partition, *offset),
                Some(OutboxRecord::Roster(_)) if is_old => {
                    core.mark_sent(self.counter, uptime);
                    continue;
                }
                Some(OutboxRecord::Roster(roster)) => InFlight::Roster(roster.clone()),
                Some(OutboxRecord::Partial(partial)) => {
                    self.counter += 1;
                    let partial = if is_old { of_old_member(partial) } else { partial.as_ref().clone() };
                    InFlight::Partial(Box::new(partial.sent_by(&name, self.counter)))
                }
            };
            core.mark_sent(self.counter, uptime);
            waiting.push_back((context.now, sent));
        }
    }

    fn deliver(&mut self, context: &mut Context<'_>) {
        if self.in_flight.front().is_none_or(|(sent_at, _)| context.now < *sent_at + self.slow_by) {
            return;
        }
        let Some((_, sent)) = self.in_flight.pop_front() else { return };
        match sent {
            InFlight::DeadLetter(..) if context.is(Sabotage::DeadLettersLost) && context.rng.random_bool(0.5) => {}
            InFlight::DeadLetter(partition, offset) => {
                context.kafka.dead_letters.insert((partition, offset));
            }
            InFlight::Roster(_) if context.is(Sabotage::RostersLost) && context.rng.random_bool(0.5) => {}
            InFlight::Roster(roster) => context.kafka.write_roster(*roster),
            InFlight::Partial(partial) => {
                let of = partial.partial().map(|share| share.partition);
                if context.is(Sabotage::PartialsLost) && of == Some(1) {
                    return;
                }
                context.kafka.append(*partial);
            }
        }
    }

    fn poll_partials(&mut self, context: &mut Context<'_>) {
        let batch = context.batch(20);
        let records: Vec<_> = context.kafka.read(&context.kafka.partials, self.partials_at).take(batch).collect();
        let Some((last, _)) = records.last() else { return };
        self.partials_at = last + 1;
        for (_, record) in records {
            let from = record.from_beat;
            match record.clone().into_body() {
                Some(PartialBody::Partial(partial)) if partial.member == self.name.to_string() => {
                    let owned = self.owned.get_mut(&partial.partition);
                    if let Some(core) = owned.and_then(|owned| owned.core.as_mut()) {
                        core.mark_observed(from, partial.counter);
                    }
                }
                Some(PartialBody::Done(_)) if !context.is(Sabotage::DoneRecordsIgnored) => {
                    self.owned
                        .values_mut()
                        .filter_map(|owned| owned.core.as_mut())
                        .for_each(|core| core.mark_done(from));
                }
                _ => {}
            }
        }
    }

    fn commit(&self, context: &mut Context<'_>) {
        if !context.happens(0.1) {
            let positions = self.positions(context);
            context.kafka.commit(self.name, &positions);
        }
    }

    fn positions(&self, context: &Context<'_>) -> BTreeMap<i32, CommittedOffset> {
        let position = |core: &Partition| {
            if context.is(Sabotage::CommitAhead) {
                let downbeat = core.aggregator().arrival_beat();
                let boundary = self.table.frames.get(downbeat)?.boundary(core.id());
                return Some(CommittedOffset { offset: boundary, downbeat: Some(downbeat.get()) });
            }
            core.committable()
        };
        let cores = self.owned.values().filter_map(|owned| owned.core.as_ref());
        cores.filter_map(|core| Some((core.id(), position(core)?))).collect()
    }

    /// Stops in an orderly way.
    pub(crate) fn stop(mut self, context: &mut Context<'_>) {
        self.slow_by = Duration::ZERO;
        while !self.in_flight.is_empty() {
            self.deliver(context);
        }
        self.commit(context);
        self.merger.stop(context);
    }

    /// Kills the member: records in flight may or may not reach the log.
    pub(crate) fn kill(mut self, context: &mut Context<'_>) {
        self.slow_by = Duration::ZERO;
        while !self.in_flight.is_empty() && context.happens(0.8) {
            self.deliver(context);
        }
    }

    /// Returns the state for the trace.
    pub(crate) fn state(&self) -> String {
        let partition = |(id, owned): (&i32, &OwnedPartition)| match &owned.core {
            Some(core) => format!("{id}@{}/{}", core.aggregator().next_offset(), core.aggregator().arrival_beat()),
            None => format!("{id}?"),
        };
        let owned: Vec<String> = self.owned.iter().map(partition).collect();
        format!("{}[{}]{}", self.name, owned.join(" "), self.merger.state())
    }
}

/// Returns a partial as a member of the version before the rosters sends it.
pub(crate) fn of_old_member(partial: &BarPartial) -> BarPartial {
    let Some(PartialBody::Partial(share)) = partial.clone().into_body() else { return partial.clone() };
    let share = Partial { logic: 1, silent_agents: 0, stalled_tasks: 0, overdrawn_tasks: 0, ..share };
    BarPartial::new(partial.window_id, partial.from_beat, PartialBody::Partial(share))
}

/// Recomputes the share of `partition` in a window from the log. Returns it with the offsets of its invalid claims.
pub(crate) fn recompute_share(
    context: &Context<'_>,
    frames: &Frames,
    window: &Window,
    partition: i32,
) -> Option<(ClosedWindow, Vec<i64>)> {
    let log_start = context.log_starts()[&partition];
    let end = frames.get(window.closing).map_or(0, |frame| frame.boundary(partition));
    let mut aggregator = PartitionAggregator::new(partition, window.from, frames, log_start);
    let start = aggregator.next_offset();
    let mut outputs = Vec::new();
    for (offset, record) in context.kafka.claims[partition as usize].read(start).take_while(|(offset, _)| *offset < end)
    {
        let decoded = match record {
            Record::Control => continue,
            Record::Broken => DecodedClaim::Invalid(InvalidClaim::NoValue),
            Record::Claim(claim) => DecodedClaim::Valid(claim.clone()),
        };
        aggregator.process(offset, decoded, frames, RawRecord::default, &mut outputs);
    }
    aggregator.skip_to(end, log_start.min(end));
    aggregator.advance(frames, &mut outputs);
    let (mut share, mut dead_letters) = (None, Vec::new());
    for output in outputs {
        match output {
            Output::WindowClosed(closed) if closed.window == *window => share = Some(*closed),
            Output::WindowClosed(_) => {}
            Output::DeadLetter { offset, .. } => dead_letters.push(offset),
        }
    }
    Some((share?, dead_letters))
}
