//! One owned partition: what it folds, what is on its way out, and what of it is finished.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use backbeat_schemas::{BarPartial, BeatIndex, InvalidClaim, Partial, PartialBody};

use super::{Closed, Committed, Fold, Frames, LOGIC, Output, Progress, RawRecord, Reading};

/// Records that may wait for a line before the partition pauses: tens of megabytes over a dozen
/// partitions.
const MAX_WAITING: usize = 20_000;
/// Messages that may wait to be sent before the partition pauses.
const MAX_OUTBOX: usize = 1_000;
/// Bytes of possible dead letters that may wait for a line before the partition pauses.
const MAX_RAW_BYTES: usize = 8 * 1024 * 1024;
/// A partial that nobody finished is sent again after this: it may have been lost with its topic.
pub const RESEND_AFTER: Duration = Duration::from_hours(1);

/// A partition of `statusclaims` whose fold has begun.
#[derive(Debug)]
pub struct Partition {
    id: i32,
    fold: Fold,
    progress: Progress,
    /// What the fold wants done and was not looked at yet.
    outputs: Vec<Output>,
    outbox: VecDeque<Message>,
    /// Partials of windows that are not done, and when each was sent, since the member's start.
    unfinished: BTreeMap<BeatIndex, (Duration, BarPartial)>,
}

/// What is to be sent.
#[derive(Debug)]
pub enum Message {
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
    /// Partition `id`, folded from where `fold` begins.
    pub fn new(id: i32, fold: Fold) -> Self {
        Self {
            id,
            fold,
            progress: Progress::default(),
            outputs: Vec::new(),
            outbox: VecDeque::new(),
            unfinished: BTreeMap::new(),
        }
    }

    /// Its number.
    pub fn id(&self) -> i32 {
        self.id
    }

    /// Its fold.
    pub fn fold(&self) -> &Fold {
        &self.fold
    }

    /// Takes the record at `offset`: see [`Fold::take`].
    pub fn take(&mut self, offset: i64, reading: Reading<'_>, frames: &Frames, raw: impl FnOnce() -> RawRecord) {
        self.fold.take(offset, reading, frames, raw, &mut self.outputs);
    }

    /// No record below `offset` is to come, in a log that begins at `low`.
    pub fn reached(&mut self, offset: i64, low: i64) {
        self.fold.reached(offset, low);
    }

    /// Goes as far as the lines allow. What it wants sent since is returned.
    pub fn advance(&mut self, frames: &Frames) -> impl Iterator<Item = &Message> {
        let sent_before = self.outbox.len();
        self.fold.advance(frames, &mut self.outputs);
        for output in self.outputs.drain(..) {
            match output {
                Output::DeadLetter { offset, reason, raw } => {
                    self.outbox.push_back(Message::DeadLetter { offset, reason, raw });
                }
                Output::Closed(closed) => {
                    let frame = |beat| frames.get(beat).expect("the table reaches back to every window that closes");
                    self.progress.opened(closed.window.from, frame(closed.window.from).line(self.id));
                    let partitions = frame(closed.window.closes).claim_offsets.len();
                    if self.id as usize >= partitions {
                        // It was added later.
                        self.progress.not_ours(closed.window.from);
                        continue;
                    }
                    self.outbox.push_back(Message::Partial(Box::new(partial(self.id, &closed, partitions))));
                }
            }
        }
        for (window, _) in self.fold.open() {
            if let Some(opening) = frames.get(window.from) {
                self.progress.opened(window.from, opening.line(self.id));
            }
        }
        self.outbox.range(sent_before..)
    }

    /// What to send next; no partial while dead letters of its window may still be lost.
    pub fn next_message(&self, dead_letters_on_their_way: bool) -> Option<&Message> {
        let next = self.outbox.front()?;
        (matches!(next, Message::DeadLetter { .. }) || !dead_letters_on_their_way).then_some(next)
    }

    /// The next message was sent at `now`; a partial under the member's `counter`.
    pub fn sent(&mut self, counter: i64, now: Duration) -> Option<Message> {
        let message = self.outbox.pop_front()?;
        if let Message::Partial(partial) = &message {
            self.progress.sent(partial.from_beat, counter);
            self.unfinished.insert(partial.from_beat, (now, (**partial).clone()));
        }
        Some(message)
    }

    /// Partials that nobody finished in time go out again.
    pub fn resend(&mut self, now: Duration) {
        let overdue = self.unfinished.extract_if(.., |_, (sent, _)| now.saturating_sub(*sent) >= RESEND_AFTER);
        self.outbox.extend(overdue.map(|(_, (_, partial))| Message::Partial(Box::new(partial))));
    }

    /// Our partial of the window was met in `barpartials`, under the member's `counter`.
    pub fn met(&mut self, from: BeatIndex, counter: i64) {
        self.progress.met(from, counter);
    }

    /// A window is done.
    pub fn done(&mut self, from: BeatIndex) {
        self.progress.done(from);
        let oldest = self.progress.position().map(|(_, oldest)| oldest);
        while self.unfinished.first_key_value().is_some_and(|(first, _)| oldest.is_none_or(|oldest| *first < oldest)) {
            self.unfinished.pop_first();
        }
    }

    /// Where a successor begins: the line of the oldest window that is not done, and its downbeat.
    pub fn position(&self) -> Option<Committed> {
        let (offset, from) = self.progress.position()?;
        Some(Committed { offset, downbeat: Some(from.get()) })
    }

    /// Whether it must not be given more records for now.
    pub fn is_full(&self) -> bool {
        self.fold.waiting() >= MAX_WAITING || self.fold.raw_bytes() >= MAX_RAW_BYTES || self.outbox.len() >= MAX_OUTBOX
    }
}

/// The record of one partition's share of a window.
fn partial(id: i32, closed: &Closed, partitions: usize) -> BarPartial {
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
        let mut partition = Partition::new(0, Fold::new(0, beat(0), 0, 0));
        let table = frames(2, 0, &[0, 1, 2]);
        let broken = InvalidClaim::NoValue;
        partition.take(0, Reading::Invalid(broken), &table, RawRecord::default);
        partition.take(1, Reading::Valid(claim("a", 0)), &table, RawRecord::default);
        assert_eq!(partition.advance(&table).count(), 2);
        partition
    }

    fn committed(offset: i64, downbeat: i64) -> Committed {
        Committed { offset, downbeat: Some(downbeat) }
    }

    fn is_partial(message: Option<&Message>) -> bool {
        matches!(message, Some(Message::Partial(_)))
    }

    #[test]
    fn a_partial_waits_until_its_dead_letters_are_acknowledged() {
        let mut partition = closed();
        assert!(matches!(partition.next_message(true), Some(Message::DeadLetter { offset: 0, .. })));
        partition.sent(0, NOW);
        assert!(partition.next_message(true).is_none());
        assert!(is_partial(partition.next_message(false)));
    }

    #[test]
    fn a_window_is_let_go_when_it_is_done_after_its_partial_was_met() {
        let mut partition = closed();
        partition.sent(0, NOW);
        partition.sent(5, NOW);
        assert_eq!((partition.position(), partition.unfinished.len()), (Some(committed(0, 0)), 1));
        partition.met(beat(0), 5);
        partition.done(beat(0));
        assert_eq!((partition.position(), partition.unfinished.len()), (Some(committed(2, 2)), 0));
    }

    #[test]
    fn a_partial_that_nobody_finishes_is_sent_again() {
        let mut partition = closed();
        partition.sent(0, NOW);
        partition.sent(5, NOW);
        partition.resend(RESEND_AFTER);
        assert!(partition.next_message(false).is_none());
        partition.resend(NOW + RESEND_AFTER);
        assert!(is_partial(partition.next_message(false)));
        // The first one does not count any more.
        partition.sent(6, NOW + RESEND_AFTER);
        partition.met(beat(0), 5);
        partition.done(beat(0));
        assert_eq!(partition.position(), Some(committed(0, 0)));
    }

    #[test]
    fn a_window_from_before_the_partition_was_added_is_not_its_own() {
        let mut partition = Partition::new(1, Fold::new(1, beat(0), 0, 0));
        assert_eq!(partition.advance(&frames(2, 0, &[0, 0, 0])).count(), 0);
        assert_eq!(partition.position(), Some(committed(0, 2)));
    }
}
