//! A member of the group: the core, and around it what the shell does, one small step at a time.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use backbeat_reverb::core::{
    Committed, DecodedClaim, Frames, Outbound, Output, Partition, PartitionAggregator, RawRecord, Tally, Window,
};
use backbeat_schemas::{BarPartial, BeatIndex, InvalidClaim, PartialBody};
use backbeat_simulation::{Violation, ensure};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::kafka::{Fenced, Kafka, Record};
use crate::merger::Merger;
use crate::model::MEMORY;
use crate::world::Sabotage;

/// The merge runs where this partition is owned.
const MERGE_PARTITION: i32 = 0;

/// What the coordinator tells a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Assigned(i32),
    /// To be given up in good order.
    Revoked(i32),
    /// Everything is another's already.
    Lost,
}

/// What is sent and not yet in the log.
#[derive(Debug)]
enum Sent {
    DeadLetter(i32, i64),
    Partial(BarPartial),
}

#[derive(Debug, Default)]
struct Owned {
    /// The next offset to fetch; `None` until the committed one is known.
    position: Option<i64>,
    committed: Option<Committed>,
    lows: BTreeMap<i32, i64>,
    core: Option<Partition>,
}

/// What all steps of a member work with.
pub(crate) struct Context<'w> {
    pub(crate) kafka: &'w mut Kafka,
    pub(crate) rng: &'w mut ChaCha8Rng,
    pub(crate) now: Duration,
    pub(crate) sabotage: Option<Sabotage>,
    /// Faults have ended.
    pub(crate) is_calm: bool,
}

impl Context<'_> {
    pub(crate) fn happens(&mut self, probability: f64) -> bool {
        !self.is_calm && self.rng.random_bool(probability)
    }

    /// How much of what there is to do is done in one step.
    fn batch(&mut self, most: usize) -> usize {
        if self.is_calm { most } else { self.rng.random_range(1..most) }
    }

    pub(crate) fn is(&self, sabotage: Sabotage) -> bool {
        self.sabotage == Some(sabotage)
    }

    fn lows(&self) -> BTreeMap<i32, i64> {
        let lows = self.kafka.lows();
        if self.is(Sabotage::RetentionHidden) {
            lows.into_keys().map(|partition| (partition, 0)).collect()
        } else {
            lows
        }
    }
}

pub(crate) struct Member {
    pub(crate) name: u64,
    pub(crate) is_paused: bool,
    started: Duration,
    pub(crate) changes: VecDeque<Change>,
    owned: BTreeMap<i32, Owned>,
    frames: Table,
    partials_at: i64,
    counter: i64,
    on_their_way: VecDeque<Sent>,
    merger: Option<Merger>,
    /// The merge was fenced and has to ask whether it is still ours.
    fenced: bool,
}

/// The table of boundaries and how far `beatframes` was read.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) frames: Frames,
    next: Option<usize>,
}

impl Table {
    /// Takes in the frames that are there.
    pub(crate) fn follow(&mut self, kafka: &Kafka) {
        let Some(next) = &mut self.next else { return };
        for frame in &kafka.frames[*next..] {
            self.frames.push(frame.clone()).expect("frames have no gaps");
        }
        *next = kafka.frames.len();
    }

    /// Makes the table reach back to every window in which a claim that arrives on `beat` may count.
    pub(crate) fn cover(&mut self, beat: BeatIndex, kafka: &Kafka) {
        let grace = kafka.frames.first().map_or(0, |frame| i64::from(frame.grace_beats));
        let oldest = (beat.get() - grace).max(0);
        let reaches = self.frames.first().is_none_or(|first| first.beat_index.get() <= oldest);
        if self.next.is_none() || !reaches {
            self.frames = Frames::default();
            let before = kafka.frames.iter().take(oldest as usize + 1);
            self.next = Some(before.collect::<Vec<_>>().iter().rposition(|frame| frame.downbeat).unwrap_or(0));
        }
    }

    pub(crate) fn forget_before(&mut self, beat: BeatIndex) {
        let grace = self.frames.first().map_or(0, |first| i64::from(first.grace_beats));
        if let Ok(oldest) = BeatIndex::try_from(beat.get() - grace) {
            self.frames.forget_before(oldest);
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
    /// Starts, and reads partials from before the first of its own can be there.
    pub(crate) fn new(name: u64, now: Duration, kafka: &Kafka) -> Self {
        Self {
            name,
            is_paused: false,
            started: now,
            changes: VecDeque::new(),
            owned: BTreeMap::new(),
            frames: Table::default(),
            partials_at: kafka.partials.end(),
            counter: 0,
            on_their_way: VecDeque::new(),
            merger: None,
            fenced: false,
        }
    }

    /// One of the things that it does in turn.
    pub(crate) fn step(&mut self, context: &mut Context<'_>) -> Result<(), Violation> {
        match context.rng.random_range(0..9) {
            0 => self.fetch(context),
            1 => self.take_change(context),
            2 => self.frames.follow(context.kafka),
            3 => self.start_aggregators(context),
            4 => return self.advance(context),
            5 => (0..context.batch(4)).for_each(|_| self.send(context)),
            6 => (0..context.batch(12)).for_each(|_| self.deliver(context)),
            7 => self.follow_partials(context),
            _ => self.commit(context),
        }
        Ok(())
    }

    /// The merge runs beside the rest.
    pub(crate) fn step_merge(&mut self, context: &mut Context<'_>) -> Result<(), Violation> {
        let Some(merger) = &mut self.merger else {
            if self.fenced && self.confirms(context) {
                self.fenced = false;
                self.merger = Some(Merger::default());
            }
            return Ok(());
        };
        merger.step(context).unwrap_or_else(|Fenced| {
            self.merger = None;
            self.fenced = true;
            Ok(())
        })
    }

    /// A commit in this very epoch shows that the merge's partition is ours.
    fn confirms(&self, context: &mut Context<'_>) -> bool {
        let positions = self.positions(context);
        positions.contains_key(&MERGE_PARTITION) && context.kafka.commit(self.name, &positions)
    }

    fn fetch(&mut self, context: &mut Context<'_>) {
        let lows = context.lows();
        let skipped = context.is(Sabotage::ClaimLost) && context.rng.random_bool(0.1);
        for (partition, owned) in &mut self.owned {
            let (Some(position), Some(core)) = (owned.position, &mut owned.core) else { continue };
            if core.is_full() {
                continue;
            }
            let batch = context.batch(50);
            let log = &context.kafka.claims[*partition as usize];
            for (offset, record) in log.read(position).take(batch) {
                owned.position = Some(offset + 1);
                let reading = match record {
                    Record::Control => continue,
                    _ if skipped => continue,
                    Record::Broken => DecodedClaim::Invalid(InvalidClaim::NoValue),
                    Record::Claim(claim) => DecodedClaim::Valid(claim.clone()),
                };
                if offset > core.aggregator().next_offset() {
                    core.reached(offset, lows[partition]);
                }
                core.take(offset, reading, &self.frames.frames, RawRecord::default);
            }
            // Everything was fetched, as the statistics say.
            if owned.position.is_some_and(|position| position >= log.end()) {
                core.reached(log.end(), lows[partition]);
            }
        }
    }

    fn take_change(&mut self, context: &mut Context<'_>) {
        match self.changes.pop_front() {
            None => {}
            Some(Change::Assigned(partition)) => {
                self.owned.insert(partition, Owned::default());
                if partition == MERGE_PARTITION {
                    self.fenced = false;
                    self.merger = Some(Merger::default());
                }
            }
            Some(Change::Revoked(partition)) => {
                if partition == MERGE_PARTITION {
                    self.stop_merge(context);
                }
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
            Some(Change::Lost) => {
                self.merger = None;
                self.fenced = false;
                self.owned.clear();
            }
        }
        if self.owned.is_empty() {
            self.frames = Table::default();
        }
    }

    /// Waits for a transaction that has begun.
    fn stop_merge(&mut self, context: &mut Context<'_>) {
        self.fenced = false;
        if let Some(merger) = self.merger.take() {
            merger.stop(context);
        }
    }

    fn start_aggregators(&mut self, context: &mut Context<'_>) {
        for (partition, owned) in &mut self.owned {
            if owned.core.is_some() {
                continue;
            }
            let lows = context.lows();
            let committed = *owned.committed.get_or_insert_with(|| {
                owned.lows.clone_from(&lows);
                let from_the_start = Committed { offset: lows[partition], downbeat: None };
                context.kafka.committed.get(partition).copied().unwrap_or(from_the_start)
            });
            let reached = |frame: &&_| committed.reached_by(frame, *partition, &owned.lows);
            let Some(earliest) = context.kafka.frames.iter().find(reached) else { continue };
            self.frames.cover(earliest.beat_index, context.kafka);
            self.frames.follow(context.kafka);
            if let Some(aggregator) = committed.aggregator(*partition, &self.frames.frames, &owned.lows) {
                owned.position = Some(committed.offset);
                owned.core = Some(Partition::new(*partition, aggregator));
            }
        }
    }

    fn advance(&mut self, context: &Context<'_>) -> Result<(), Violation> {
        let newest = self.frames.frames.last().map(|frame| frame.beat_index);
        let grace = context.kafka.frames.first().map_or(0, |frame| i64::from(frame.grace_beats));
        for core in self.owned.values_mut().filter_map(|owned| owned.core.as_mut()) {
            core.advance(&self.frames.frames).for_each(drop);
            let open = core.aggregator().open().count() as i64;
            ensure(open <= grace + 2, MEMORY, || format!("{open} windows are open with a grace of {grace}"))?;
        }
        let cores = || self.owned.values().filter_map(|owned| owned.core.as_ref());
        let oldest = cores().map(|core| core.aggregator().oldest_beat()).min();
        if let (Some(oldest), Some(newest)) = (oldest, newest)
            && self.owned.values().all(|owned| owned.core.is_some())
        {
            if !context.is(Sabotage::TableKept) {
                self.frames.forget_before(oldest);
            }
            let (rows, needed) = (self.frames.len(), newest.since(oldest));
            ensure(rows <= needed + 2 * grace + 20, MEMORY, || format!("{rows} frames for {needed} beats"))?;
        }
        Ok(())
    }

    fn send(&mut self, context: &mut Context<'_>) {
        let uptime = context.now.saturating_sub(self.started);
        let (name, waiting) = (self.name.to_string(), &mut self.on_their_way);
        for (partition, owned) in &mut self.owned {
            let Some(core) = &mut owned.core else { continue };
            core.resend(uptime);
            let letters = waiting.iter().any(|sent| matches!(sent, Sent::DeadLetter(of, _) if of == partition));
            let sent = match core.next_outbound(letters) {
                None => continue,
                Some(Outbound::DeadLetter { offset, .. }) => Sent::DeadLetter(*partition, *offset),
                Some(Outbound::Partial(partial)) => {
                    self.counter += 1;
                    Sent::Partial(partial.as_ref().clone().sent_by(&name, self.counter))
                }
            };
            core.sent(self.counter, uptime);
            waiting.push_back(sent);
        }
    }

    fn deliver(&mut self, context: &mut Context<'_>) {
        let Some(sent) = self.on_their_way.pop_front() else { return };
        match sent {
            Sent::DeadLetter(..) if context.is(Sabotage::DeadLettersLost) && context.rng.random_bool(0.5) => {}
            Sent::DeadLetter(partition, offset) => {
                context.kafka.dead_letters.insert((partition, offset));
            }
            Sent::Partial(partial) => {
                let of = partial.partial().map(|share| share.partition);
                if context.is(Sabotage::PartialsVanish) && of == Some(1) {
                    return;
                }
                context.kafka.append(partial);
            }
        }
    }

    fn follow_partials(&mut self, context: &mut Context<'_>) {
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
                        core.observed(from, partial.counter);
                    }
                }
                Some(PartialBody::Done(_)) if !context.is(Sabotage::DonesVanish) => {
                    self.owned.values_mut().filter_map(|owned| owned.core.as_mut()).for_each(|core| core.done(from));
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

    fn positions(&self, context: &Context<'_>) -> BTreeMap<i32, Committed> {
        let position = |core: &Partition| {
            if context.is(Sabotage::CommitAhead) {
                let downbeat = core.aggregator().arrival();
                let boundary = self.frames.frames.get(downbeat)?.boundary(core.id());
                return Some(Committed { offset: boundary, downbeat: Some(downbeat.get()) });
            }
            core.position()
        };
        let cores = self.owned.values().filter_map(|owned| owned.core.as_ref());
        cores.filter_map(|core| Some((core.id(), position(core)?))).collect()
    }

    /// Stops in good order.
    pub(crate) fn stop(mut self, context: &mut Context<'_>) {
        self.stop_merge(context);
        while !self.on_their_way.is_empty() {
            self.deliver(context);
        }
        self.commit(context);
    }

    /// Is killed: what was on its way may arrive or not.
    pub(crate) fn kill(mut self, context: &mut Context<'_>) {
        while !self.on_their_way.is_empty() && context.happens(0.8) {
            self.deliver(context);
        }
    }

    /// For the trace.
    pub(crate) fn state(&self) -> String {
        let partition = |(id, owned): (&i32, &Owned)| match &owned.core {
            Some(core) => format!("{id}@{}/{}", core.aggregator().next_offset(), core.aggregator().arrival()),
            None => format!("{id}?"),
        };
        let owned: Vec<String> = self.owned.iter().map(partition).collect();
        let merging = self.merger.as_ref().map_or(String::new(), Merger::state);
        format!("{}[{}]{merging}", self.name, owned.join(" "))
    }
}

/// What `partition` of a window's claims comes to, read again from the log.
pub(crate) fn recount(context: &Context<'_>, frames: &Frames, window: &Window, partition: i32) -> Option<Tally> {
    let boundary = |beat| frames.get(beat).map_or(0, |frame| frame.boundary(partition));
    let low = context.lows()[&partition];
    let (start, end) = (boundary(window.from), boundary(window.closes));
    let mut aggregator = PartitionAggregator::new(partition, window.from, start, low);
    let mut outputs = Vec::new();
    for (offset, record) in context.kafka.claims[partition as usize].read(start).take_while(|(offset, _)| *offset < end)
    {
        let reading = match record {
            Record::Control => continue,
            Record::Broken => DecodedClaim::Invalid(InvalidClaim::NoValue),
            Record::Claim(claim) => DecodedClaim::Valid(claim.clone()),
        };
        aggregator.take(offset, reading, frames, RawRecord::default, &mut outputs);
    }
    aggregator.reached(end, low.min(end));
    aggregator.advance(frames, &mut outputs);
    outputs.into_iter().find_map(|output| match output {
        Output::WindowClosed(closed) if closed.window == *window && closed.retained => Some(closed.tally),
        _ => None,
    })
}
