//! Aggregates one partition's claims into windows, in offset order.

use std::collections::VecDeque;
use std::ops::Range;

use backbeat_schemas::{BarRoster, BeatIndex, Counts, InvalidClaim};

use super::roster::roster;
use super::{Claim, DecodedClaim, Frames, LOGIC_WITH_ROSTERS, OpenTasks, RawRecord, Tally, Window};

/// The aggregator of one partition of `statusclaims`.
///
/// A claim at offset o arrived on beat n when boundary(n) <= o < boundary(n+1). A claim at or past the newest boundary
/// is kept as pending until the next frame gives its arrival beat. The arrival beat advances as each boundary is
/// reached, and a window closes when the boundary of its closing beat is reached.
///
/// Who needs attention in a window follows from its claims and from those of the window before. So the aggregator begins one
/// window early: nothing of that window leaves it.
#[derive(Debug)]
pub struct PartitionAggregator {
    partition: i32,
    /// The downbeat of the first window that is aggregated, for the roster of the next one or for itself.
    first: BeatIndex,
    /// The downbeat of the first window whose share is computed. The last owner finished the earlier ones.
    start: BeatIndex,
    /// The beat on which the next claim arrives, as far as boundaries were reached.
    arrival_beat: BeatIndex,
    /// The offset below which every record was processed or does not exist.
    next_offset: i64,
    pending: VecDeque<(i64, PendingClaim)>,
    /// Bytes of the ids and raw records in `pending`.
    pending_bytes: usize,
    /// Windows that were opened and not closed, oldest first.
    open_windows: VecDeque<(Window, Tally)>,
    /// The last window that was closed, for the roster of the next one.
    previous: Option<(Window, OpenTasks)>,
    /// Offset ranges that retention deleted before they were read.
    expired: Vec<Range<i64>>,
    /// The boundary of the beat after `arrival_beat`, once known. A claim below it needs no waiting.
    next_boundary: Option<i64>,
}

#[derive(Debug)]
enum PendingClaim {
    Valid {
        claim: Claim<'static>,
        /// The raw record, kept only if the claim's beat may not have been published when the claim arrived: the claim
        /// may turn out invalid.
        raw: Option<Box<RawRecord>>,
    },
    Invalid {
        reason: InvalidClaim,
        raw: Box<RawRecord>,
    },
}

impl PendingClaim {
    fn bytes(&self) -> usize {
        match self {
            Self::Valid { claim, raw } => {
                claim.agent.len() + claim.task.len() + raw.as_ref().map_or(0, |raw| raw.bytes())
            }
            Self::Invalid { raw, .. } => raw.bytes(),
        }
    }
}

/// A result of the aggregator.
#[derive(Debug)]
pub enum Output {
    /// A record for the dead-letter topic.
    DeadLetter {
        /// The record's offset.
        offset: i64,
        /// The reason for its rejection.
        reason: InvalidClaim,
        /// The record as it was read.
        raw: Box<RawRecord>,
    },
    /// A closed window.
    WindowClosed(Box<ClosedWindow>),
}

/// One partition's complete share of one window.
#[derive(Debug, Clone)]
pub struct ClosedWindow {
    /// The window.
    pub window: Window,
    /// The partition's counts.
    pub counts: Counts,
    /// The partition's roster, if somebody needs attention.
    pub roster: Option<Box<BarRoster>>,
    /// False if retention deleted some of the window's claims before they were read.
    pub retained: bool,
    /// False if retention deleted some of the claims of the window before: then the roster cannot be computed.
    pub previous_retained: bool,
}

impl ClosedWindow {
    /// Removes the roster if claims are missing that it needs.
    #[must_use]
    pub fn without_unfounded_roster(mut self) -> Self {
        self.roster = self.roster.take().filter(|_| self.is_retained(LOGIC_WITH_ROSTERS));
        self
    }

    /// Returns true if the claims that a report of `logic` needs were all there.
    pub fn is_retained(&self, logic: i32) -> bool {
        self.retained && (self.previous_retained || logic < LOGIC_WITH_ROSTERS)
    }
}

impl PartitionAggregator {
    /// Creates the aggregator of `partition` for the windows from that which opens at `start` on, beginning with the window
    /// before it. `log_start` is the partition's log start offset. `frames` must reach back to that window, unless the log has
    /// none: then there was none.
    pub fn new(partition: i32, start: BeatIndex, frames: &Frames, log_start: i64) -> Self {
        let previous = start.previous().and_then(|beat| frames.window_of(beat));
        let first = previous.map_or(start, |window| window.from);
        let offset = frames.get(first).map_or(0, |frame| frame.boundary(partition));
        let mut aggregator = Self {
            partition,
            first,
            start,
            arrival_beat: first,
            next_offset: offset,
            pending: VecDeque::new(),
            pending_bytes: 0,
            open_windows: VecDeque::new(),
            previous: None,
            expired: Vec::new(),
            next_boundary: None,
        };
        aggregator.skip_to(offset.max(log_start), log_start);
        aggregator
    }

    /// Returns the oldest beat whose frame is still needed, besides those of the window before.
    pub fn oldest_beat(&self) -> BeatIndex {
        self.open_windows.front().map_or(self.arrival_beat, |(window, _)| window.from)
    }

    /// Returns the offset below which every record was processed.
    pub fn next_offset(&self) -> i64 {
        self.next_offset
    }

    /// Returns the beat up to whose boundary the partition was processed.
    pub fn arrival_beat(&self) -> BeatIndex {
        self.arrival_beat
    }

    /// Returns true if the table reaches up to the arrival beat. It does not while it is read for the first time.
    pub fn is_covered_by(&self, frames: &Frames) -> bool {
        frames.get(self.arrival_beat).is_some()
    }

    /// Returns the number of records that wait for the next boundary.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Returns the bytes that the pending records hold.
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Returns the open windows, with the claims counted so far.
    pub fn open_windows(&self) -> impl Iterator<Item = (&Window, i64)> {
        let shares = self.open_windows.iter().filter(|(window, _)| window.from >= self.start);
        shares.map(|(window, tally)| (window, tally.claims()))
    }

    /// Processes the record at `offset`, after advancing over the boundaries before it. `raw` is called only if the
    /// record may become a dead letter.
    pub fn process(
        &mut self,
        offset: i64,
        decoded: DecodedClaim<'_>,
        frames: &Frames,
        raw: impl FnOnce() -> RawRecord,
        outputs: &mut Vec<Output>,
    ) {
        if offset < self.next_offset {
            return;
        }
        let is_before_boundary = self.next_boundary.is_some_and(|boundary| offset < boundary);
        if self.pending.is_empty() && is_before_boundary && self.is_covered_by(frames) {
            self.next_offset = offset + 1;
            return self.classify(offset, decoded, frames, || Box::new(raw()), outputs);
        }
        // Records come in the order of their offsets, so no record with a lower offset will be delivered.
        self.next_offset = offset;
        self.advance(frames, outputs);
        self.next_offset = offset + 1;
        let pending = match decoded {
            DecodedClaim::Invalid(reason) => PendingClaim::Invalid { reason, raw: Box::new(raw()) },
            DecodedClaim::Valid(claim) => {
                // The claim arrives on the current arrival beat or on a later one.
                let published = (0..=self.arrival_beat.get()).contains(&claim.beat);
                let raw = (!published).then(|| Box::new(raw()));
                PendingClaim::Valid { claim: claim.into_owned(), raw }
            }
        };
        self.pending_bytes += pending.bytes();
        self.pending.push_back((offset, pending));
    }

    /// Advances the position to `offset`, because no record with a lower offset will be delivered, or to `log_start`,
    /// the log start offset, if that is higher.
    pub fn skip_to(&mut self, offset: i64, log_start: i64) {
        if log_start > self.next_offset {
            self.expired.push(self.next_offset..log_start);
        }
        self.next_offset = self.next_offset.max(offset).max(log_start);
    }

    /// Advances over the boundaries in `frames` that were reached, and closes the windows that end there.
    pub fn advance(&mut self, frames: &Frames, outputs: &mut Vec<Output>) {
        self.open_window(frames);
        while let Some(next) = frames.get(self.arrival_beat.plus(1)) {
            let boundary = next.boundary(self.partition);
            while let Some((offset, _)) = self.pending.front()
                && *offset < boundary
            {
                let (offset, pending) = self.pending.pop_front().expect("the loop condition found a front element");
                self.pending_bytes -= pending.bytes();
                let (decoded, raw) = match pending {
                    PendingClaim::Valid { claim, raw } => (DecodedClaim::Valid(claim), raw),
                    PendingClaim::Invalid { reason, raw } => (DecodedClaim::Invalid(reason), Some(raw)),
                };
                self.classify(offset, decoded, frames, || raw.unwrap_or_default(), outputs);
            }
            // The boundary is reached by a record at or past it, or because no record with a lower offset will be
            // delivered.
            if self.pending.is_empty() && self.next_offset < boundary {
                break;
            }
            self.arrival_beat = self.arrival_beat.plus(1);
            self.close_windows(frames, outputs);
            self.open_window(frames);
        }
        self.next_boundary = frames.get(self.arrival_beat.plus(1)).map(|next| next.boundary(self.partition));
    }

    fn open_window(&mut self, frames: &Frames) {
        let Some(window) = frames.window_of(self.arrival_beat).filter(|window| window.from == self.arrival_beat) else {
            return;
        };
        let known = self.open_windows.back().is_some_and(|(last, _)| last.from >= window.from);
        if !known {
            let like = self.previous.as_ref().map(|(_, open_tasks)| open_tasks);
            self.open_windows.push_back((window, Tally::new(window.from, like)));
        }
    }

    fn close_windows(&mut self, frames: &Frames, outputs: &mut Vec<Output>) {
        while self.open_windows.front().is_some_and(|(window, _)| window.closing == self.arrival_beat) {
            let (window, tally) = self.open_windows.pop_front().expect("the loop condition found a front element");
            if window.from >= self.start {
                outputs.push(Output::WindowClosed(Box::new(self.share(window, &tally, frames))));
            }
            let start = frames.get(window.from).map_or(0, |frame| frame.boundary(self.partition));
            self.expired.retain(|expired| expired.end > start);
            self.previous = Some((window, OpenTasks::from(&tally)));
        }
    }

    /// Returns the partition's share of a window that closes on the current arrival beat.
    fn share(&self, window: Window, tally: &Tally, frames: &Frames) -> ClosedWindow {
        let frame =
            |beat| frames.get(beat).expect("the table reaches back to the window before each window that closes");
        let closing = frame(window.closing);
        let mut counts = tally.counts(self.partition, closing.claim_offsets.len());
        let previous = self.previous.as_ref().map(|(previous, open_tasks)| (open_tasks, frame(previous.from)));
        let roster = roster(self.partition, &window, tally, previous, [frame(window.end), closing], &mut counts);
        // The log's first window has none before it.
        let previous_retained =
            self.previous.as_ref().is_none_or(|(previous, _)| self.is_retained(previous.from, window.from, frames));
        let retained = self.is_retained(window.from, window.closing, frames);
        ClosedWindow { window, counts, roster, retained, previous_retained }.without_unfounded_roster()
    }

    /// Returns true if retention deleted no claim of those that arrived in `[from, end)` before it was read.
    fn is_retained(&self, from: BeatIndex, end: BeatIndex, frames: &Frames) -> bool {
        let boundary = |beat| frames.get(beat).map_or(0, |frame| frame.boundary(self.partition));
        let (start, end) = (boundary(from), boundary(end));
        !self.expired.iter().any(|expired| expired.start < end && start < expired.end)
    }

    /// Classifies a record that arrived on the current arrival beat as counted, late or invalid, and counts it.
    fn classify(
        &mut self,
        offset: i64,
        decoded: DecodedClaim<'_>,
        frames: &Frames,
        raw: impl FnOnce() -> Box<RawRecord>,
        outputs: &mut Vec<Output>,
    ) {
        let arrival = self.arrival_beat;
        let claim = match decoded {
            DecodedClaim::Valid(claim) => claim,
            DecodedClaim::Invalid(reason) => return self.reject(offset, reason, raw(), frames, outputs),
        };
        match frames.window_counting(claim.beat, arrival) {
            Err(reason) => self.reject(offset, reason, raw(), frames, outputs),
            Ok(Some(window)) if window.from < self.first => {} // counted by the partition's last owner
            Ok(Some(window)) => self.tally_mut(window.from).count(&claim),
            Ok(None) => self.owner_tally(frames).count_late(&claim.agent),
        }
    }

    fn reject(
        &mut self,
        offset: i64,
        reason: InvalidClaim,
        raw: Box<RawRecord>,
        frames: &Frames,
        outputs: &mut Vec<Output>,
    ) {
        self.owner_tally(frames).count_invalid(matches!(reason, InvalidClaim::UnknownSchema(_)));
        if self.arrival_beat >= self.start {
            outputs.push(Output::DeadLetter { offset, reason, raw });
        }
    }

    /// Returns the tally of the window that owns the offsets of the current arrival beat.
    fn owner_tally(&mut self, frames: &Frames) -> &mut Tally {
        let window = frames.window_of(self.arrival_beat).expect("the table reaches back to every open window");
        self.tally_mut(window.from)
    }

    fn tally_mut(&mut self, from: BeatIndex) -> &mut Tally {
        let found = self.open_windows.iter_mut().rev().find(|(window, _)| window.from == from);
        &mut found.expect("a window stays open from its downbeat to its closing beat").1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::TaskFacts;
    use crate::core::partition_of;
    use crate::core::testing::{beat, claim, frames, frames_of_partitions};

    /// Processes a valid claim of `agent` for `beat_index` at `offset`, before any frame is known.
    fn process(aggregator: &mut PartitionAggregator, offset: i64, agent: &str, beat_index: i64) {
        process_with(aggregator, offset, claim(agent, beat_index), &Frames::default());
    }

    fn process_with(
        aggregator: &mut PartitionAggregator,
        offset: i64,
        claim: Claim<'_>,
        frames: &Frames,
    ) -> Vec<Output> {
        let mut outputs = Vec::new();
        let raw = || RawRecord::new(None, Some(&[7]));
        aggregator.process(offset, DecodedClaim::Valid(claim), frames, raw, &mut outputs);
        outputs
    }

    fn advance(aggregator: &mut PartitionAggregator, frames: &Frames) -> Vec<Output> {
        let mut outputs = Vec::new();
        aggregator.advance(frames, &mut outputs);
        outputs
    }

    /// The closed windows, as (downbeat, counted, late, invalid).
    fn closed(outputs: &[Output]) -> Vec<(i64, i64, i64, i64)> {
        let shares = outputs.iter().filter_map(|output| match output {
            Output::WindowClosed(closed) => Some(closed),
            Output::DeadLetter { .. } => None,
        });
        shares
            .map(|closed| {
                let counts = closed.counts;
                (closed.window.from.get(), counts.claims, counts.late_claims, counts.invalid_claims)
            })
            .collect()
    }

    #[test]
    fn claim_in_time_counts_in_the_window_of_its_beat() {
        let mut aggregator = PartitionAggregator::new(0, beat(0), &Frames::default(), 0);
        // Bars of 2: windows [0, 2) and [2, 4); the boundaries of beats 0 to 2 are 0, 3 and 5.
        let table = frames(2, 0, &[0, 3, 5]);
        for (offset, beat_index) in [(0, 0), (1, 0), (2, 0), (3, 1), (4, 0)] {
            process(&mut aggregator, offset, &format!("a{offset}"), beat_index);
        }
        assert_eq!(closed(&advance(&mut aggregator, &table)), [(0, 5, 0, 0)]);
    }

    #[test]
    fn window_closes_only_when_its_closing_boundary_is_reached() {
        let mut aggregator = PartitionAggregator::new(0, beat(0), &Frames::default(), 0);
        let table = frames(2, 0, &[0, 3, 5]);
        for offset in 0..4 {
            process(&mut aggregator, offset, "a", 0);
        }
        assert_eq!(closed(&advance(&mut aggregator, &table)), []);
        // A record past the boundary proves that no record with a lower offset will be delivered.
        process(&mut aggregator, 5, "b", 2);
        assert_eq!(closed(&advance(&mut aggregator, &table)), [(0, 4, 0, 0)]);
    }

    #[test]
    fn partition_without_claims_closes_its_windows() {
        let mut aggregator = PartitionAggregator::new(0, beat(0), &Frames::default(), 0);
        assert_eq!(closed(&advance(&mut aggregator, &frames(2, 0, &[0, 0, 0, 0, 0]))), [(0, 0, 0, 0), (2, 0, 0, 0)]);
    }

    #[test]
    fn claim_past_the_newest_boundary_waits_for_the_next_frame() {
        let mut aggregator = PartitionAggregator::new(0, beat(0), &Frames::default(), 0);
        process(&mut aggregator, 0, "a", 0);
        assert!(advance(&mut aggregator, &frames(2, 0, &[0])).is_empty());
        assert_eq!(aggregator.pending(), 1);
        advance(&mut aggregator, &frames(2, 0, &[0, 1]));
        assert_eq!(aggregator.pending(), 0);
    }

    #[test]
    fn claim_after_the_grace_is_late_in_the_window_that_owns_its_offset() {
        let mut aggregator = PartitionAggregator::new(0, beat(0), &Frames::default(), 0);
        let table = frames(2, 0, &[0, 0, 0, 1, 1]);
        process(&mut aggregator, 0, "a", 1);
        assert_eq!(closed(&advance(&mut aggregator, &table)), [(0, 0, 0, 0), (2, 0, 1, 0)]);
    }

    #[test]
    fn claim_within_the_grace_counts() {
        let mut aggregator = PartitionAggregator::new(0, beat(0), &Frames::default(), 0);
        // Window [0, 2) closes at the boundary of beat 3; the claim arrives on beat 2.
        let table = frames(2, 1, &[0, 0, 0, 1, 1, 1]);
        process(&mut aggregator, 0, "a", 1);
        assert_eq!(closed(&advance(&mut aggregator, &table)), [(0, 1, 0, 0), (2, 0, 0, 0)]);
    }

    #[test]
    fn claim_for_a_beat_not_published_on_its_arrival_is_a_dead_letter() {
        for beat_index in [1, -1, i64::MAX] {
            let mut aggregator = PartitionAggregator::new(0, beat(0), &Frames::default(), 0);
            // Read when beat 0 was the newest, the claim is classified once its arrival beat is known.
            process_with(&mut aggregator, 0, claim("a", beat_index), &frames(2, 0, &[0]));
            let outputs = advance(&mut aggregator, &frames(2, 0, &[0, 1, 1]));
            let [Output::DeadLetter { offset: 0, reason, raw }, Output::WindowClosed(_)] = &outputs[..] else {
                panic!("{outputs:?}");
            };
            assert_eq!(reason, &InvalidClaim::Beat { beat: beat_index, arrival: 0 });
            assert_eq!(raw.value.as_deref(), Some(&[7][..]));
            assert_eq!(closed(&outputs), [(0, 0, 0, 1)]);
        }
    }

    #[test]
    fn claim_for_a_future_beat_keeps_its_bytes_in_a_replay() {
        let mut aggregator = PartitionAggregator::new(0, beat(0), &Frames::default(), 0);
        // Beat 3 is published when the log is read again, but was not when the claim arrived.
        let table = frames(2, 0, &[0, 1, 1, 1, 1]);
        process_with(&mut aggregator, 0, claim("a", 3), &table);
        let outputs = process_with(&mut aggregator, 1, claim("a", 4), &table);
        let [Output::DeadLetter { offset: 0, raw, .. }, ..] = &outputs[..] else { panic!("{outputs:?}") };
        assert_eq!(raw.value.as_deref(), Some(&[7][..]));
    }

    #[test]
    fn record_processed_before_is_ignored() {
        let mut aggregator = PartitionAggregator::new(0, beat(0), &Frames::default(), 0);
        process(&mut aggregator, 0, "a", 0);
        process(&mut aggregator, 0, "a", 0);
        assert_eq!(closed(&advance(&mut aggregator, &frames(2, 0, &[0, 1, 1]))), [(0, 1, 0, 0)]);
    }

    #[test]
    fn claim_of_a_window_before_the_start_position_is_not_counted() {
        let table = frames(2, 2, &[0, 1, 2, 4, 5, 6, 7]);
        let mut aggregator = PartitionAggregator::new(0, beat(2), &table, 0);
        // Offsets 2 and 3 arrive on beat 2: one is for the window before, within its grace.
        process(&mut aggregator, 2, "a", 1);
        process(&mut aggregator, 3, "b", 2);
        aggregator.skip_to(7, 0);
        assert_eq!(closed(&advance(&mut aggregator, &table)), [(2, 1, 0, 0)]);
    }

    #[test]
    fn window_with_expired_claims_is_not_retained_but_an_empty_range_is() {
        let retained = |boundaries: &[i64], log_start| {
            let mut aggregator = PartitionAggregator::new(0, beat(0), &frames(2, 0, boundaries), log_start);
            aggregator.skip_to(boundaries[boundaries.len() - 1], log_start);
            let outputs = advance(&mut aggregator, &frames(2, 0, boundaries));
            let [Output::WindowClosed(closed)] = &outputs[..] else { panic!("{outputs:?}") };
            closed.retained
        };
        assert!(retained(&[10, 12, 15], 10));
        assert!(!retained(&[10, 12, 15], 11));
        assert!(!retained(&[10, 12, 15], 20));
        assert!(retained(&[10, 10, 10], 20));
    }

    #[test]
    fn claim_processed_while_the_table_is_read_anew_counts_once_it_is_there() {
        let mut aggregator = PartitionAggregator::new(0, beat(0), &Frames::default(), 0);
        let table = frames(2, 0, &[0, 4, 4]);
        process_with(&mut aggregator, 0, claim("a", 0), &table);
        assert!(advance(&mut aggregator, &table).is_empty());
        process_with(&mut aggregator, 1, claim("b", 0), &table);
        // Another partition needs older frames: the table is emptied and read from there on.
        process_with(&mut aggregator, 2, claim("c", 0), &Frames::default());
        process_with(&mut aggregator, 3, claim("d", 0), &frames(2, 0, &[0]));
        aggregator.skip_to(4, 0);
        let outputs = advance(&mut aggregator, &table);
        let [Output::WindowClosed(closed)] = &outputs[..] else { panic!("{outputs:?}") };
        assert_eq!((closed.counts.agents, closed.counts.late_claims), (4, 0));
    }

    #[test]
    fn repeated_agents_and_tasks_count_once() {
        let mut aggregator = PartitionAggregator::new(0, beat(0), &Frames::default(), 0);
        for (offset, agent, task) in [(0, "a", "t"), (1, "a", "t"), (2, "a", "u"), (3, "b", "t")] {
            let claim =
                Claim { task: task.into(), facts: TaskFacts::DONE | TaskFacts::ON_TIME_REVIEW, ..claim(agent, 0) };
            process_with(&mut aggregator, offset, claim, &Frames::default());
        }
        let outputs = advance(&mut aggregator, &frames(2, 0, &[0, 4, 4]));
        let [Output::WindowClosed(closed)] = &outputs[..] else { panic!("{outputs:?}") };
        let counts = closed.counts;
        assert_eq!((counts.agents, counts.tasks_done, counts.on_time_reviews, counts.claims), (2, 3, 3, 4));
    }
    #[test]
    fn agents_that_murmur2_places_elsewhere_are_misplaced() {
        // Of two partitions, the window's number when it closes.
        let frames = frames_of_partitions(2, 0, &[&[0, 8, 8], &[0, 0, 0]]);
        let mut aggregator = PartitionAggregator::new(0, beat(0), &Frames::default(), 0);
        let agents = ["a", "b", "c", "d", "e", "f", "g", "h"];
        for (offset, agent) in (0..).zip(agents) {
            process(&mut aggregator, offset, agent, 0);
        }
        let outputs = advance(&mut aggregator, &frames);
        let [Output::WindowClosed(closed)] = &outputs[..] else { panic!("{outputs:?}") };
        let elsewhere = agents.iter().filter(|agent| partition_of(agent.as_bytes(), 2) != 0).count() as i64;
        assert!((1..8).contains(&elsewhere), "the test needs agents of both partitions");
        assert_eq!((closed.counts.agents, closed.counts.misplaced_agents), (8, elsewhere));
    }
}
