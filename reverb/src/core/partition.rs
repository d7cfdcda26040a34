//! One owned partition of `statusclaims`: its aggregator, its outbox and its commit tracker.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use backbeat_schemas::{BarPartial, BarRoster, BeatIndex, InvalidClaim, Partial, PartialBody};

use super::{
    ClosedWindow, CommitTracker, CommittedOffset, DecodedClaim, Frames, LOGIC, Output, PartitionAggregator, RawRecord,
};

/// Claims that may be pending, that is, lie past the newest boundary, before the partition is paused.
const MAX_PENDING: usize = 20_000;
/// Records in the outbox before the partition is paused.
const MAX_OUTBOX: usize = 1_000;
/// Bytes of pending claims and of dead letters before the partition is paused.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// The time after which a partial without a done record is sent again: it may have been lost with its topic.
pub const RESEND_AFTER: Duration = Duration::from_hours(1);

/// The state of one owned partition of `statusclaims` whose start position is known.
///
/// The aggregator turns claims into shares of windows. The outbox holds the dead letters, rosters and partials that must
/// be sent, in order. The commit tracker knows which windows are done, and so which offset may be committed.
#[derive(Debug)]
pub struct Partition {
    id: i32,
    aggregator: PartitionAggregator,
    commit_tracker: CommitTracker,
    /// Outputs of the aggregator that are not in the outbox yet.
    outputs: Vec<Output>,
    outbox: VecDeque<OutboxRecord>,
    /// Bytes of the dead letters in the outbox.
    outbox_bytes: usize,
    /// The partials that were sent and whose windows are not done, by downbeat, each with the time of sending since the
    /// member's start.
    unfinished: BTreeMap<BeatIndex, (Duration, BarPartial)>,
}

/// A record of the outbox.
#[derive(Debug)]
pub enum OutboxRecord {
    /// A record for the dead-letter topic.
    DeadLetter {
        /// The record's offset in its partition.
        offset: i64,
        /// The reason for its rejection.
        reason: InvalidClaim,
        /// The record as it was read.
        raw: Box<RawRecord>,
    },
    /// A record for `barrosters`.
    Roster(Box<BarRoster>),
    /// A record for `barpartials`. The sender adds its name and counter.
    Partial(Box<BarPartial>),
}

impl Partition {
    /// Creates the state of partition `id`, whose claims are processed from the start position of `aggregator`.
    pub fn new(id: i32, aggregator: PartitionAggregator) -> Self {
        Self {
            id,
            aggregator,
            commit_tracker: CommitTracker::default(),
            outputs: Vec::new(),
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            unfinished: BTreeMap::new(),
        }
    }

    /// Returns the partition's number.
    pub fn id(&self) -> i32 {
        self.id
    }

    /// Returns the partition's aggregator.
    pub fn aggregator(&self) -> &PartitionAggregator {
        &self.aggregator
    }

    /// Processes the record at `offset`: see [`PartitionAggregator::process`].
    pub fn process(
        &mut self,
        offset: i64,
        decoded: DecodedClaim<'_>,
        frames: &Frames,
        raw: impl FnOnce() -> RawRecord,
    ) {
        self.aggregator.process(offset, decoded, frames, raw, &mut self.outputs);
    }

    /// Advances to `offset`, because no record with a lower offset will be delivered: see
    /// [`PartitionAggregator::skip_to`].
    pub fn skip_to(&mut self, offset: i64, log_start: i64) {
        self.aggregator.skip_to(offset, log_start);
    }

    /// Advances the aggregator as far as the boundaries in `frames` allow, and returns the records added to the outbox.
    pub fn advance(&mut self, frames: &Frames) -> impl Iterator<Item = &OutboxRecord> {
        let queued_before = self.outbox.len();
        if !self.aggregator.is_covered_by(frames) {
            return self.outbox.range(queued_before..);
        }
        self.aggregator.advance(frames, &mut self.outputs);
        for output in self.outputs.drain(..) {
            match output {
                Output::DeadLetter { offset, reason, raw } => {
                    self.outbox_bytes += raw.bytes();
                    self.outbox.push_back(OutboxRecord::DeadLetter { offset, reason, raw });
                }
                Output::WindowClosed(mut closed) => {
                    let frame = |beat| frames.get(beat).expect("the table reaches back to every window that closes");
                    self.commit_tracker.add_window(closed.window.from, frame(closed.window.from).boundary(self.id));
                    let partitions = frame(closed.window.closing).claim_offsets.len();
                    if self.id as usize >= partitions {
                        // The partition was added after this window closed, so the window has no share of it.
                        self.commit_tracker.mark_not_needed(closed.window.from);
                        continue;
                    }
                    self.outbox.extend(closed.roster.take().map(OutboxRecord::Roster));
                    let body = PartialBody::Partial(share(self.id, &closed));
                    let record = BarPartial::new(closed.window.id, closed.window.from, body);
                    self.outbox.push_back(OutboxRecord::Partial(Box::new(record)));
                }
            }
        }
        for (window, _) in self.aggregator.open_windows() {
            if let Some(opening) = frames.get(window.from) {
                self.commit_tracker.add_window(window.from, opening.boundary(self.id));
            }
        }
        self.outbox.range(queued_before..)
    }

    /// Returns the next record to send. Partials wait while dead letters or rosters, maybe of their window, are
    /// unacknowledged, so that no report counts what has a record that could still be lost.
    pub fn next_record(&self, is_unacknowledged: bool) -> Option<&OutboxRecord> {
        let next = self.outbox.front()?;
        (!matches!(next, OutboxRecord::Partial(_)) || !is_unacknowledged).then_some(next)
    }

    /// Removes the next record from the outbox, after it was sent at `now`. `counter` numbers the member's partials.
    pub fn mark_sent(&mut self, counter: i64, now: Duration) -> Option<OutboxRecord> {
        let record = self.outbox.pop_front()?;
        match &record {
            OutboxRecord::DeadLetter { raw, .. } => self.outbox_bytes -= raw.bytes(),
            OutboxRecord::Roster(_) => {}
            OutboxRecord::Partial(partial) => {
                self.commit_tracker.mark_sent(partial.from_beat, counter);
                self.unfinished.insert(partial.from_beat, (now, (**partial).clone()));
            }
        }
        Some(record)
    }

    /// Puts partials back into the outbox that have had no done record for [`RESEND_AFTER`].
    pub fn resend_overdue(&mut self, now: Duration) {
        let overdue = self.unfinished.extract_if(.., |_, (sent, _)| now.saturating_sub(*sent) >= RESEND_AFTER);
        self.outbox.extend(overdue.map(|(_, (_, partial))| OutboxRecord::Partial(Box::new(partial))));
    }

    /// Records that the partial with the member's `counter` was read back from `barpartials`.
    pub fn mark_observed(&mut self, from: BeatIndex, counter: i64) {
        self.commit_tracker.mark_observed(from, counter);
    }

    /// Records a done record of the window that opened at `from`.
    pub fn mark_done(&mut self, from: BeatIndex) {
        self.commit_tracker.mark_done(from);
        let oldest = self.commit_tracker.committable().map(|(_, oldest)| oldest);
        while self.unfinished.first_key_value().is_some_and(|(first, _)| oldest.is_none_or(|oldest| *first < oldest)) {
            self.unfinished.pop_first();
        }
    }

    /// Returns the position to commit: the boundary of the oldest window that is not done, and that window's downbeat.
    pub fn committable(&self) -> Option<CommittedOffset> {
        let (offset, from) = self.commit_tracker.committable()?;
        Some(CommittedOffset { offset, downbeat: Some(from.get()) })
    }

    /// Returns true if the partition must be paused, because too much is pending or unsent.
    pub fn is_full(&self) -> bool {
        self.aggregator.pending() >= MAX_PENDING
            || self.aggregator.pending_bytes() + self.outbox_bytes >= MAX_BYTES
            || self.outbox.len() >= MAX_OUTBOX
    }
}

/// Returns the share of `partition` in a closed window, without the name and the counter of a member.
pub fn share(partition: i32, closed: &ClosedWindow) -> Partial {
    Partial::new(partition, LOGIC, closed.is_retained(LOGIC), &closed.counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{beat, claim, frames};

    const NOW: Duration = Duration::from_secs(10);

    /// Returns a partition that has closed window 0, of two beats, with an invalid claim and a valid one.
    fn closed() -> Partition {
        let mut partition = Partition::new(0, PartitionAggregator::new(0, beat(0), &Frames::default(), 0));
        let table = frames(2, 0, &[0, 1, 2]);
        let reason = InvalidClaim::NoValue;
        partition.process(0, DecodedClaim::Invalid(reason), &table, RawRecord::default);
        partition.process(1, DecodedClaim::Valid(claim("a", 0)), &table, RawRecord::default);
        assert_eq!(partition.advance(&table).count(), 2);
        partition
    }

    fn committed(offset: i64, downbeat: i64) -> CommittedOffset {
        CommittedOffset { offset, downbeat: Some(downbeat) }
    }

    fn is_partial(record: Option<&OutboxRecord>) -> bool {
        matches!(record, Some(OutboxRecord::Partial(_)))
    }

    #[test]
    fn partial_with_unacknowledged_dead_letters_waits() {
        let mut partition = closed();
        assert!(matches!(partition.next_record(true), Some(OutboxRecord::DeadLetter { offset: 0, .. })));
        partition.mark_sent(0, NOW);
        assert!(partition.next_record(true).is_none());
        assert!(is_partial(partition.next_record(false)));
    }

    #[test]
    fn window_done_after_its_partial_was_observed_is_removed() {
        let mut partition = closed();
        partition.mark_sent(0, NOW);
        partition.mark_sent(5, NOW);
        assert_eq!((partition.committable(), partition.unfinished.len()), (Some(committed(0, 0)), 1));
        partition.mark_observed(beat(0), 5);
        partition.mark_done(beat(0));
        assert_eq!((partition.committable(), partition.unfinished.len()), (Some(committed(2, 2)), 0));
    }

    #[test]
    fn partial_without_a_done_record_in_time_is_sent_again() {
        let mut partition = closed();
        partition.mark_sent(0, NOW);
        partition.mark_sent(5, NOW);
        partition.resend_overdue(RESEND_AFTER);
        assert!(partition.next_record(false).is_none());
        partition.resend_overdue(NOW + RESEND_AFTER);
        assert!(is_partial(partition.next_record(false)));
        // The counter of the first one is outdated.
        partition.mark_sent(6, NOW + RESEND_AFTER);
        partition.mark_observed(beat(0), 5);
        partition.mark_done(beat(0));
        assert_eq!(partition.committable(), Some(committed(0, 0)));
    }

    #[test]
    fn window_from_before_the_partition_was_added_has_no_share_of_it() {
        let mut partition = Partition::new(1, PartitionAggregator::new(1, beat(0), &Frames::default(), 0));
        assert_eq!(partition.advance(&frames(2, 0, &[0, 0, 0])).count(), 0);
        assert_eq!(partition.committable(), Some(committed(0, 2)));
    }
}
