//! One owned partition: what it aggregators, what is on its way out, and what of it is finished.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use backbeat_schemas::{BarPartial, BeatIndex, InvalidClaim, Partial, PartialBody};

use super::{
    ClosedWindow, CommitTracker, Committed, DecodedClaim, Frames, LOGIC, Output, PartitionAggregator, RawRecord,
};

/// Records that may wait for a boundary before the partition pauses: tens of megabytes over a dozen
/// partitions.
const MAX_WAITING: usize = 20_000;
/// Messages that may wait to be sent before the partition pauses.
const MAX_OUTBOX: usize = 1_000;
/// Bytes of possible dead letters that may wait for a boundary before the partition pauses.
const MAX_RAW_BYTES: usize = 8 * 1024 * 1024;
/// A partial that nobody finished is sent again after this: it may have been lost with its topic.
pub const RESEND_AFTER: Duration = Duration::from_hours(1);

/// A partition of `statusclaims` whose aggregator has begun.
#[derive(Debug)]
pub struct Partition {
    id: i32,
    aggregator: PartitionAggregator,
    commit_tracker: CommitTracker,
    /// What the aggregator wants done and was not looked at yet.
    outputs: Vec<Output>,
    outbox: VecDeque<Outbound>,
    /// Partials of windows that are not done, and when each was sent, since the member's start.
    unfinished: BTreeMap<BeatIndex, (Duration, BarPartial)>,
}

/// What is to be sent.
#[derive(Debug)]
pub enum Outbound {
    /// To the dead-letter topic.
    DeadLetter {
        /// The record's offset.
        offset: i64,
        /// Why.
        reason: InvalidClaim,
        /// The record.
        raw: Box<RawRecord>,
    },
    /// To `barpartials`. Who sends it, and under which number, is for the sender to say.
    Partial(Box<BarPartial>),
}

impl Partition {
    /// Partition `id`, aggregated from where `aggregator` begins.
    pub fn new(id: i32, aggregator: PartitionAggregator) -> Self {
        Self {
            id,
            aggregator,
            commit_tracker: CommitTracker::default(),
            outputs: Vec::new(),
            outbox: VecDeque::new(),
            unfinished: BTreeMap::new(),
        }
    }

    /// Its number.
    pub fn id(&self) -> i32 {
        self.id
    }

    /// Its aggregator.
    pub fn aggregator(&self) -> &PartitionAggregator {
        &self.aggregator
    }

    /// Takes the record at `offset`: see [`PartitionAggregator::take`].
    pub fn take(&mut self, offset: i64, reading: DecodedClaim<'_>, frames: &Frames, raw: impl FnOnce() -> RawRecord) {
        self.aggregator.take(offset, reading, frames, raw, &mut self.outputs);
    }

    /// No record below `offset` is to come, in a log that begins at `low`.
    pub fn reached(&mut self, offset: i64, low: i64) {
        self.aggregator.reached(offset, low);
    }

    /// Goes as far as the boundaries allow. What it wants sent since is returned.
    pub fn advance(&mut self, frames: &Frames) -> impl Iterator<Item = &Outbound> {
        let sent_before = self.outbox.len();
        self.aggregator.advance(frames, &mut self.outputs);
        for output in self.outputs.drain(..) {
            match output {
                Output::DeadLetter { offset, reason, raw } => {
                    self.outbox.push_back(Outbound::DeadLetter { offset, reason, raw });
                }
                Output::WindowClosed(closed) => {
                    let frame = |beat| frames.get(beat).expect("the table reaches back to every window that closes");
                    self.commit_tracker.opened(closed.window.from, frame(closed.window.from).boundary(self.id));
                    let partitions = frame(closed.window.closes).claim_offsets.len();
                    if self.id as usize >= partitions {
                        // It was added later.
                        self.commit_tracker.not_ours(closed.window.from);
                        continue;
                    }
                    self.outbox.push_back(Outbound::Partial(Box::new(partial(self.id, &closed, partitions))));
                }
            }
        }
        for (window, _) in self.aggregator.open() {
            if let Some(opening) = frames.get(window.from) {
                self.commit_tracker.opened(window.from, opening.boundary(self.id));
            }
        }
        self.outbox.range(sent_before..)
    }

    /// What to send next; no partial while dead letters of its window may still be lost.
    pub fn next_outbound(&self, dead_letters_on_their_way: bool) -> Option<&Outbound> {
        let next = self.outbox.front()?;
        (matches!(next, Outbound::DeadLetter { .. }) || !dead_letters_on_their_way).then_some(next)
    }

    /// The next message was sent at `now`; a partial under the member's `counter`.
    pub fn sent(&mut self, counter: i64, now: Duration) -> Option<Outbound> {
        let message = self.outbox.pop_front()?;
        if let Outbound::Partial(partial) = &message {
            self.commit_tracker.sent(partial.from_beat, counter);
            self.unfinished.insert(partial.from_beat, (now, (**partial).clone()));
        }
        Some(message)
    }

    /// Partials that nobody finished in time go out again.
    pub fn resend(&mut self, now: Duration) {
        let overdue = self.unfinished.extract_if(.., |_, (sent, _)| now.saturating_sub(*sent) >= RESEND_AFTER);
        self.outbox.extend(overdue.map(|(_, (_, partial))| Outbound::Partial(Box::new(partial))));
    }

    /// Our partial of the window was met in `barpartials`, under the member's `counter`.
    pub fn observed(&mut self, from: BeatIndex, counter: i64) {
        self.commit_tracker.observed(from, counter);
    }

    /// A window is done.
    pub fn done(&mut self, from: BeatIndex) {
        self.commit_tracker.done(from);
        let oldest = self.commit_tracker.position().map(|(_, oldest)| oldest);
        while self.unfinished.first_key_value().is_some_and(|(first, _)| oldest.is_none_or(|oldest| *first < oldest)) {
            self.unfinished.pop_first();
        }
    }

    /// Where a successor begins: the boundary of the oldest window that is not done, and its downbeat.
    pub fn position(&self) -> Option<Committed> {
        let (offset, from) = self.commit_tracker.position()?;
        Some(Committed { offset, downbeat: Some(from.get()) })
    }

    /// Whether it must not be given more records for now.
    pub fn is_full(&self) -> bool {
        self.aggregator.waiting() >= MAX_WAITING
            || self.aggregator.raw_bytes() >= MAX_RAW_BYTES
            || self.outbox.len() >= MAX_OUTBOX
    }
}

/// The record of one partition's share of a window.
fn partial(id: i32, closed: &ClosedWindow, partitions: usize) -> BarPartial {
    let counts = closed.tally.counts();
    let partial = Partial {
        partition: id,
        member: String::new(),
        counter: 0,
        logic: LOGIC,
        retained: closed.retained,
        misplaced: closed.tally.is_misplaced(id, partitions),
        agents: counts.agents,
        on_time_reviews: counts.on_time_reviews,
        help_fulfilled: counts.help_fulfilled,
        rotation_failed_agents: counts.rotation_failed_agents,
        tasks_done: counts.tasks_done,
        tasks_failed: counts.tasks_failed,
        claims: counts.claims,
        degraded_claims: counts.degraded_claims,
        late_claims: counts.late_claims,
        invalid_claims: counts.invalid_claims,
        unknown_schema_claims: counts.unknown_schema_claims,
    };
    BarPartial::new(closed.window.id, closed.window.from, PartialBody::Partial(partial))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{beat, claim, frames};

    const NOW: Duration = Duration::from_secs(10);

    /// A partition that has closed window 0, of two beats, with an invalid claim and a valid one.
    fn closed() -> Partition {
        let mut partition = Partition::new(0, PartitionAggregator::new(0, beat(0), 0, 0));
        let table = frames(2, 0, &[0, 1, 2]);
        let broken = InvalidClaim::NoValue;
        partition.take(0, DecodedClaim::Invalid(broken), &table, RawRecord::default);
        partition.take(1, DecodedClaim::Valid(claim("a", 0)), &table, RawRecord::default);
        assert_eq!(partition.advance(&table).count(), 2);
        partition
    }

    fn committed(offset: i64, downbeat: i64) -> Committed {
        Committed { offset, downbeat: Some(downbeat) }
    }

    fn is_partial(message: Option<&Outbound>) -> bool {
        matches!(message, Some(Outbound::Partial(_)))
    }

    #[test]
    fn a_partial_waits_until_its_dead_letters_are_acknowledged() {
        let mut partition = closed();
        assert!(matches!(partition.next_outbound(true), Some(Outbound::DeadLetter { offset: 0, .. })));
        partition.sent(0, NOW);
        assert!(partition.next_outbound(true).is_none());
        assert!(is_partial(partition.next_outbound(false)));
    }

    #[test]
    fn a_window_is_let_go_when_it_is_done_after_its_partial_was_met() {
        let mut partition = closed();
        partition.sent(0, NOW);
        partition.sent(5, NOW);
        assert_eq!((partition.position(), partition.unfinished.len()), (Some(committed(0, 0)), 1));
        partition.observed(beat(0), 5);
        partition.done(beat(0));
        assert_eq!((partition.position(), partition.unfinished.len()), (Some(committed(2, 2)), 0));
    }

    #[test]
    fn a_partial_that_nobody_finishes_is_sent_again() {
        let mut partition = closed();
        partition.sent(0, NOW);
        partition.sent(5, NOW);
        partition.resend(RESEND_AFTER);
        assert!(partition.next_outbound(false).is_none());
        partition.resend(NOW + RESEND_AFTER);
        assert!(is_partial(partition.next_outbound(false)));
        // The first one does not count any more.
        partition.sent(6, NOW + RESEND_AFTER);
        partition.observed(beat(0), 5);
        partition.done(beat(0));
        assert_eq!(partition.position(), Some(committed(0, 0)));
    }

    #[test]
    fn a_window_from_before_the_partition_was_added_is_not_its_own() {
        let mut partition = Partition::new(1, PartitionAggregator::new(1, beat(0), 0, 0));
        assert_eq!(partition.advance(&frames(2, 0, &[0, 0, 0])).count(), 0);
        assert_eq!(partition.position(), Some(committed(0, 2)));
    }
}
