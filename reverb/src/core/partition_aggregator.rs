//! One partition's claims, aggregated into windows in offset order.

use std::collections::VecDeque;
use std::ops::Range;

use backbeat_schemas::{BeatIndex, InvalidClaim};

use super::{Claim, DecodedClaim, Frames, RawRecord, Tally, Window};

/// Folds one partition of `statusclaims`.
///
/// A claim at offset o arrived on beat n when boundary(n) <= o < boundary(n+1); a claim at or past the newest
/// boundary waits. Arrival moves from boundary to boundary as each is reached, and every window closes when the
/// boundary of its closing beat is.
#[derive(Debug)]
pub struct PartitionAggregator {
    partition: i32,
    /// The first window that it aggregators.
    start: BeatIndex,
    /// The beat on which the next claim arrives, as far as boundaries were reached.
    arrival: BeatIndex,
    /// Every record below this offset was taken, or is not there.
    next_offset: i64,
    waiting: VecDeque<(i64, Waiting)>,
    /// Bytes of the records kept in `waiting`.
    raw_bytes: usize,
    /// Windows that opened and did not close, oldest first.
    open: VecDeque<(Window, Tally)>,
    /// Offsets that retention took before we read them.
    lost: Vec<Range<i64>>,
    /// The boundary of the beat after `arrival`, once it is known: what lies below it need not wait.
    next_boundary: Option<i64>,
}

#[derive(Debug)]
enum Waiting {
    Valid {
        claim: Claim<'static>,
        /// Kept where the claim's beat may not be issued by its arrival: it may turn out invalid.
        raw: Option<Box<RawRecord>>,
    },
    Invalid {
        reason: InvalidClaim,
        raw: Box<RawRecord>,
    },
}

impl Waiting {
    fn raw_bytes(&self) -> usize {
        match self {
            Self::Valid { raw, .. } => raw.as_ref().map_or(0, |raw| raw.bytes()),
            Self::Invalid { raw, .. } => raw.bytes(),
        }
    }
}

/// What the aggregator wants done.
#[derive(Debug)]
pub enum Output {
    /// A record belongs in the dead-letter topic.
    DeadLetter {
        /// Its offset.
        offset: i64,
        /// Why.
        reason: InvalidClaim,
        /// The record.
        raw: Box<RawRecord>,
    },
    /// A window closed.
    WindowClosed(Box<ClosedWindow>),
}

/// One partition's share of one window, complete.
#[derive(Debug, Clone)]
pub struct ClosedWindow {
    /// The window.
    pub window: Window,
    /// What was counted.
    pub tally: Tally,
    /// False if the head of its claims was gone before it was read.
    pub retained: bool,
}

impl PartitionAggregator {
    /// The aggregator of `partition` from the window that opens at `start`, whose boundary is `offset`, where
    /// the log begins at `low`.
    pub fn new(partition: i32, start: BeatIndex, offset: i64, low: i64) -> Self {
        let mut aggregator = Self {
            partition,
            start,
            arrival: start,
            next_offset: offset,
            waiting: VecDeque::new(),
            raw_bytes: 0,
            open: VecDeque::new(),
            lost: Vec::new(),
            next_boundary: None,
        };
        aggregator.reached(offset.max(low), low);
        aggregator
    }

    /// The oldest beat whose frame it needs.
    pub fn oldest_beat(&self) -> BeatIndex {
        self.open.front().map_or(self.arrival, |(window, _)| window.from)
    }

    /// Everything below this offset was taken.
    pub fn next_offset(&self) -> i64 {
        self.next_offset
    }

    /// The beat up to whose boundary it has read.
    pub fn arrival(&self) -> BeatIndex {
        self.arrival
    }

    /// How many records wait for a boundary.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Bytes of the waiting records that may become dead letters.
    pub fn raw_bytes(&self) -> usize {
        self.raw_bytes
    }

    /// The windows that are open, with the claims counted so far.
    pub fn open(&self) -> impl Iterator<Item = (&Window, i64)> {
        self.open.iter().map(|(window, tally)| (window, tally.claims()))
    }

    /// Takes the record at `offset`, going first as far as the boundaries before it allow. `raw` is called
    /// only if the record may be a dead letter.
    pub fn take(
        &mut self,
        offset: i64,
        reading: DecodedClaim<'_>,
        frames: &Frames,
        raw: impl FnOnce() -> RawRecord,
        outputs: &mut Vec<Output>,
    ) {
        if offset < self.next_offset {
            return;
        }
        if self.waiting.is_empty() && self.next_boundary.is_some_and(|boundary| offset < boundary) {
            self.next_offset = offset + 1;
            return self.judge(offset, reading, frames, || Box::new(raw()), outputs);
        }
        // Records come in the order of their offsets: nothing below this one is to come.
        self.next_offset = offset;
        self.advance(frames, outputs);
        self.next_offset = offset + 1;
        let waiting = match reading {
            DecodedClaim::Invalid(reason) => Waiting::Invalid { reason, raw: Box::new(raw()) },
            DecodedClaim::Valid(claim) => {
                // It arrives on the present beat or on a later one.
                let issued = (0..=self.arrival.get()).contains(&claim.beat);
                let raw = (!issued).then(|| Box::new(raw()));
                Waiting::Valid { claim: claim.into_owned(), raw }
            }
        };
        self.raw_bytes += waiting.raw_bytes();
        self.waiting.push_back((offset, waiting));
    }

    /// Notes that no record below `offset` is to come, in a log that begins at `low`.
    pub fn reached(&mut self, offset: i64, low: i64) {
        if low > self.next_offset {
            self.lost.push(self.next_offset..low);
        }
        self.next_offset = self.next_offset.max(offset).max(low);
    }

    /// Goes as far as the boundaries in `frames` allow.
    pub fn advance(&mut self, frames: &Frames, outputs: &mut Vec<Output>) {
        self.open_window(frames);
        while let Some(next) = frames.get(self.arrival.plus(1)) {
            let boundary = next.boundary(self.partition);
            while let Some((offset, _)) = self.waiting.front()
                && *offset < boundary
            {
                let (offset, waiting) = self.waiting.pop_front().expect("it was just looked at");
                self.raw_bytes -= waiting.raw_bytes();
                let (reading, raw) = match waiting {
                    Waiting::Valid { claim, raw } => (DecodedClaim::Valid(claim), raw),
                    Waiting::Invalid { reason, raw } => (DecodedClaim::Invalid(reason), Some(raw)),
                };
                self.judge(offset, reading, frames, || raw.unwrap_or_default(), outputs);
            }
            // Reached by a record at or past it, or because nothing below it is to come.
            if self.waiting.is_empty() && self.next_offset < boundary {
                break;
            }
            self.arrival = self.arrival.plus(1);
            self.close_windows(frames, outputs);
            self.open_window(frames);
        }
        self.next_boundary = frames.get(self.arrival.plus(1)).map(|next| next.boundary(self.partition));
    }

    fn open_window(&mut self, frames: &Frames) {
        let Some(window) = frames.window_of(self.arrival).filter(|window| window.from == self.arrival) else {
            return;
        };
        let known = self.open.back().is_some_and(|(last, _)| last.from >= window.from);
        if !known {
            self.open.push_back((window, Tally::default()));
        }
    }

    fn close_windows(&mut self, frames: &Frames, outputs: &mut Vec<Output>) {
        while self.open.front().is_some_and(|(window, _)| window.closes == self.arrival) {
            let (window, tally) = self.open.pop_front().expect("it was just looked at");
            let retained = self.is_retained(&window, frames);
            outputs.push(Output::WindowClosed(Box::new(ClosedWindow { window, tally, retained })));
        }
        let oldest = self.open.front().and_then(|(window, _)| frames.get(window.from));
        if let Some(start) = oldest.map(|frame| frame.boundary(self.partition)) {
            self.lost.retain(|lost| lost.end > start);
        }
    }

    fn is_retained(&self, window: &Window, frames: &Frames) -> bool {
        let boundary = |beat| frames.get(beat).map_or(0, |frame| frame.boundary(self.partition));
        let (start, end) = (boundary(window.from), boundary(window.closes));
        !self.lost.iter().any(|lost| lost.start < end && start < lost.end)
    }

    /// Counts one record that arrived on the present beat.
    fn judge(
        &mut self,
        offset: i64,
        reading: DecodedClaim<'_>,
        frames: &Frames,
        raw: impl FnOnce() -> Box<RawRecord>,
        outputs: &mut Vec<Output>,
    ) {
        let arrival = self.arrival;
        let claim = match reading {
            DecodedClaim::Valid(claim) => claim,
            DecodedClaim::Invalid(reason) => return self.refuse(offset, reason, raw(), frames, outputs),
        };
        let issued = BeatIndex::try_from(claim.beat).ok().filter(|beat| *beat <= arrival);
        let Some(beat) = issued else {
            let reason = InvalidClaim::Beat { beat: claim.beat, arrival: arrival.get() };
            return self.refuse(offset, reason, raw(), frames, outputs);
        };
        // A beat from before the table lies in a window that closed long ago.
        let window = frames.window_of(beat).filter(|window| arrival < window.closes);
        match window {
            Some(window) if window.from < self.start => {} // counted by whoever aggregated that window
            Some(window) => self.tally(window.from).count(&claim),
            None => self.owner(frames).late(),
        }
    }

    fn refuse(
        &mut self,
        offset: i64,
        reason: InvalidClaim,
        raw: Box<RawRecord>,
        frames: &Frames,
        outputs: &mut Vec<Output>,
    ) {
        self.owner(frames).invalid(matches!(reason, InvalidClaim::UnknownSchema(_)));
        outputs.push(Output::DeadLetter { offset, reason, raw });
    }

    /// The window that owns the offsets of the present arrival beat.
    fn owner(&mut self, frames: &Frames) -> &mut Tally {
        let window = frames.window_of(self.arrival).expect("the table reaches back to every open window");
        self.tally(window.from)
    }

    fn tally(&mut self, from: BeatIndex) -> &mut Tally {
        let found = self.open.iter_mut().rev().find(|(window, _)| window.from == from);
        &mut found.expect("a window is open from its downbeat until its closing beat").1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{beat, claim, frames};

    /// Takes a valid claim of `agent` for `beat_index` at `offset`, before any frame is known.
    fn take(aggregator: &mut PartitionAggregator, offset: i64, agent: &str, beat_index: i64) {
        take_with(aggregator, offset, claim(agent, beat_index), &Frames::default());
    }

    fn take_with(aggregator: &mut PartitionAggregator, offset: i64, claim: Claim<'_>, frames: &Frames) -> Vec<Output> {
        let mut outputs = Vec::new();
        let raw = || RawRecord { key: None, value: Some(vec![7]) };
        aggregator.take(offset, DecodedClaim::Valid(claim), frames, raw, &mut outputs);
        outputs
    }

    fn advance(aggregator: &mut PartitionAggregator, frames: &Frames) -> Vec<Output> {
        let mut outputs = Vec::new();
        aggregator.advance(frames, &mut outputs);
        outputs
    }

    /// The windows that close, as (downbeat, counted, late, invalid).
    fn closed(outputs: &[Output]) -> Vec<(i64, i64, i64, i64)> {
        let shares = outputs.iter().filter_map(|output| match output {
            Output::WindowClosed(closed) => Some(closed),
            Output::DeadLetter { .. } => None,
        });
        shares
            .map(|closed| {
                let counts = closed.tally.counts();
                (closed.window.from.get(), counts.claims, counts.late_claims, counts.invalid_claims)
            })
            .collect()
    }

    #[test]
    fn a_claim_counts_in_its_beats_window_and_the_window_closes_at_the_next_downbeats_line() {
        let mut aggregator = PartitionAggregator::new(0, beat(0), 0, 0);
        // Bars of 2: windows [0, 2) and [2, 4); the boundaries of beats 0 to 2 are 0, 3 and 5.
        let table = frames(2, 0, &[0, 3, 5]);
        for (offset, beat_index) in [(0, 0), (1, 0), (2, 0), (3, 1), (4, 0)] {
            take(&mut aggregator, offset, &format!("a{offset}"), beat_index);
        }
        assert_eq!(closed(&advance(&mut aggregator, &table)), [(0, 5, 0, 0)]);
    }

    #[test]
    fn a_window_waits_until_its_line_is_reached() {
        let mut aggregator = PartitionAggregator::new(0, beat(0), 0, 0);
        let table = frames(2, 0, &[0, 3, 5]);
        for offset in 0..4 {
            take(&mut aggregator, offset, "a", 0);
        }
        assert_eq!(closed(&advance(&mut aggregator, &table)), []);
        // A record past the boundary proves that nothing below it is to come.
        take(&mut aggregator, 5, "b", 2);
        assert_eq!(closed(&advance(&mut aggregator, &table)), [(0, 4, 0, 0)]);
    }

    #[test]
    fn a_quiet_partition_closes_with_the_beats() {
        let mut aggregator = PartitionAggregator::new(0, beat(0), 0, 0);
        assert_eq!(closed(&advance(&mut aggregator, &frames(2, 0, &[0, 0, 0, 0, 0]))), [(0, 0, 0, 0), (2, 0, 0, 0)]);
    }

    #[test]
    fn claims_past_the_newest_line_wait_for_the_next_frame() {
        let mut aggregator = PartitionAggregator::new(0, beat(0), 0, 0);
        take(&mut aggregator, 0, "a", 0);
        assert!(advance(&mut aggregator, &frames(2, 0, &[0])).is_empty());
        assert_eq!(aggregator.waiting(), 1);
        advance(&mut aggregator, &frames(2, 0, &[0, 1]));
        assert_eq!(aggregator.waiting(), 0);
    }

    #[test]
    fn a_claim_of_an_earlier_window_is_late_in_the_window_that_owns_its_offset() {
        let mut aggregator = PartitionAggregator::new(0, beat(0), 0, 0);
        let table = frames(2, 0, &[0, 0, 0, 1, 1]);
        take(&mut aggregator, 0, "a", 1);
        assert_eq!(closed(&advance(&mut aggregator, &table)), [(0, 0, 0, 0), (2, 0, 1, 0)]);
    }

    #[test]
    fn within_the_grace_it_counts() {
        let mut aggregator = PartitionAggregator::new(0, beat(0), 0, 0);
        // Window [0, 2) closes at the boundary of beat 3; the claim arrives on beat 2.
        let table = frames(2, 1, &[0, 0, 0, 1, 1, 1]);
        take(&mut aggregator, 0, "a", 1);
        assert_eq!(closed(&advance(&mut aggregator, &table)), [(0, 1, 0, 0), (2, 0, 0, 0)]);
    }

    #[test]
    fn a_claim_for_a_beat_not_issued_on_its_arrival_is_a_dead_letter() {
        for beat_index in [1, -1, i64::MAX] {
            let mut aggregator = PartitionAggregator::new(0, beat(0), 0, 0);
            // Read when beat 0 was the newest, it is judged when its arrival is known.
            take_with(&mut aggregator, 0, claim("a", beat_index), &frames(2, 0, &[0]));
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
    fn a_claim_from_the_future_keeps_its_bytes_in_a_replay_too() {
        let mut aggregator = PartitionAggregator::new(0, beat(0), 0, 0);
        // Beat 3 is long issued when the log is read again, but was not when the claim arrived.
        let table = frames(2, 0, &[0, 1, 1, 1, 1]);
        take_with(&mut aggregator, 0, claim("a", 3), &table);
        let outputs = take_with(&mut aggregator, 1, claim("a", 4), &table);
        let [Output::DeadLetter { offset: 0, raw, .. }, ..] = &outputs[..] else { panic!("{outputs:?}") };
        assert_eq!(raw.value.as_deref(), Some(&[7][..]));
    }

    #[test]
    fn what_it_took_before_is_not_taken_again() {
        let mut aggregator = PartitionAggregator::new(0, beat(0), 0, 0);
        take(&mut aggregator, 0, "a", 0);
        take(&mut aggregator, 0, "a", 0);
        assert_eq!(closed(&advance(&mut aggregator, &frames(2, 0, &[0, 1, 1]))), [(0, 1, 0, 0)]);
    }

    #[test]
    fn a_fold_that_begins_later_leaves_earlier_windows_alone() {
        let table = frames(2, 2, &[0, 1, 2, 4, 5, 6, 7]);
        let mut aggregator = PartitionAggregator::new(0, beat(2), 2, 0);
        // Offsets 2 and 3 arrive on beat 2: one for the window before, within its grace.
        take(&mut aggregator, 2, "a", 1);
        take(&mut aggregator, 3, "b", 2);
        aggregator.reached(7, 0);
        assert_eq!(closed(&advance(&mut aggregator, &table)), [(2, 1, 0, 0)]);
    }

    #[test]
    fn a_window_whose_head_is_gone_is_not_retained_but_an_empty_range_is() {
        let retained = |boundaries: &[i64], low| {
            let mut aggregator = PartitionAggregator::new(0, beat(0), boundaries[0], low);
            aggregator.reached(boundaries[boundaries.len() - 1], low);
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
    fn distinct_means_distinct() {
        let mut aggregator = PartitionAggregator::new(0, beat(0), 0, 0);
        for (offset, agent, task) in [(0, "a", "t"), (1, "a", "t"), (2, "a", "u"), (3, "b", "t")] {
            let claim = Claim { task: task.into(), done: true, on_time_review: true, ..claim(agent, 0) };
            take_with(&mut aggregator, offset, claim, &Frames::default());
        }
        let outputs = advance(&mut aggregator, &frames(2, 0, &[0, 4, 4]));
        let [Output::WindowClosed(closed)] = &outputs[..] else { panic!("{outputs:?}") };
        let counts = closed.tally.counts();
        assert_eq!((counts.agents, counts.tasks_done, counts.on_time_reviews, counts.claims), (2, 3, 3, 4));
    }
}
