//! Collects the partials of each window until every partition's share is there.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use backbeat_schemas::{BeatIndex, Counts, Partial, Verdict};

use super::{Frames, LOGIC, Window};

/// The partials of all windows that are not done.
#[derive(Debug, Default)]
pub struct Merge {
    sets: BTreeMap<BeatIndex, PartialSet>,
    /// By partition, its newest share, whether sent or rescued: the offset in `barpartials` of the record that tells of
    /// it, and its window's downbeat.
    newest: HashMap<i32, (i64, BeatIndex)>,
    next_offset: i64,
}

/// The shares of one window. The window's first partial opens the set, or its closing frame if that was heard live.
#[derive(Debug)]
pub(crate) struct PartialSet {
    /// The offset of the window's first partial in `barpartials`.
    first_offset: Option<i64>,
    /// The offset of the last record of `barpartials` that was read when the set was opened.
    opened_at: i64,
    /// The time at which the closing frame was heard live.
    pub(crate) closed_at: Option<Duration>,
    /// The time at which the set was opened or got its last share.
    pub(crate) changed_at: Duration,
    shares: BTreeMap<i32, Share>,
}

#[derive(Debug)]
struct Share {
    partial: Partial,
    /// True if this merge read the share itself.
    rescued: bool,
}

/// The way to finish a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completion {
    /// Every partition's share is there: report the sum of their counts, by the lowest `logic` among them.
    Sum(Counts, i32),
    /// A share's claims are no longer wholly retained: finish the window without a report.
    Skip,
    /// A share has a `logic` that this version does not know: read the claims again.
    Recompute,
    /// The missing shares will not come: drop the window if its report exists, and read the claims again otherwise.
    RecomputeUnlessReported,
}

impl Merge {
    /// Adds a partial that was read at `offset` of `barpartials` at `now`.
    pub fn add_partial(&mut self, offset: i64, from: BeatIndex, partial: Partial, now: Duration) {
        self.next_offset = offset + 1;
        self.newest.insert(partial.partition, (offset, from));
        let set = self.set_mut(from, now);
        set.first_offset.get_or_insert(offset);
        set.add(Share { partial, rescued: false }, now);
    }

    /// Adds a share that this merge read itself, unless its partial has come meanwhile or the window is done.
    pub fn add_rescued(&mut self, from: BeatIndex, partial: Partial, now: Duration) {
        if let Some(set) = self.sets.get_mut(&from)
            && !set.shares.contains_key(&partial.partition)
        {
            set.add(Share { partial, rescued: true }, now);
        }
    }

    /// Opens the set of a window whose closing frame was heard live.
    pub fn close_window(&mut self, from: BeatIndex, now: Duration) {
        self.set_mut(from, now).closed_at.get_or_insert(now);
    }

    /// Removes a window that is done, and whose shares of the partitions `rescued` were read by the merge. `offset` is
    /// that of its done record, or `None` if this merge just wrote it.
    pub fn add_done(&mut self, offset: Option<i64>, from: BeatIndex, rescued: &[i32]) {
        if let Some(offset) = offset {
            self.next_offset = offset + 1;
            self.newest.extend(rescued.iter().map(|partition| (*partition, (offset, from))));
        }
        self.sets.remove(&from);
    }

    /// Records that another record was read at `offset` of `barpartials`.
    pub fn skip(&mut self, offset: i64) {
        self.next_offset = offset + 1;
    }

    fn set_mut(&mut self, from: BeatIndex, now: Duration) -> &mut PartialSet {
        let opened_at = self.next_offset - 1;
        self.sets.entry(from).or_insert_with(|| PartialSet {
            first_offset: None,
            opened_at,
            closed_at: None,
            changed_at: now,
            shares: BTreeMap::new(),
        })
    }

    /// Returns the windows that can be finished now and how, oldest first, at most `limit`.
    pub fn completions(&self, frames: &Frames, limit: usize) -> Vec<(Window, Completion)> {
        let completions = self
            .closed_sets(frames)
            .filter_map(|(window, set, partitions)| Some((window, self.completion(window.from, set, partitions)?)));
        completions.take(limit).collect()
    }

    /// Returns the windows whose closing frame is in `frames`, oldest first, each with its set and its number of
    /// partitions.
    pub(crate) fn closed_sets<'m>(
        &'m self,
        frames: &'m Frames,
    ) -> impl Iterator<Item = (Window, &'m PartialSet, usize)> {
        self.sets.iter().filter_map(|(from, set)| {
            let window = frames.window_of(*from).filter(|window| window.from == *from)?;
            Some((window, set, frames.get(window.closing)?.claim_offsets.len()))
        })
    }

    /// Returns the way to finish the window that opened at `from`, or `None` while shares may still come.
    fn completion(&self, from: BeatIndex, set: &PartialSet, partitions: usize) -> Option<Completion> {
        let mut missing = set.missing(partitions).peekable();
        if missing.peek().is_some() {
            let sent_later_window =
                |p| self.newest.get(&p).is_some_and(|(offset, window)| *offset > set.opened_at && *window > from);
            return missing.all(sent_later_window).then_some(Completion::RecomputeUnlessReported);
        }
        let partials = || {
            let partials = set.shares.values().map(|share| &share.partial);
            partials.filter(|partial| (0..partitions as i32).contains(&partial.partition))
        };
        if partials().any(|partial| !partial.retained) {
            return Some(Completion::Skip);
        }
        let logic = partials().map(|partial| partial.logic).min().unwrap_or(LOGIC);
        if partials().any(|partial| !(1..=LOGIC).contains(&partial.logic)) {
            return Some(Completion::Recompute);
        }
        let mut counts = Counts::default();
        partials().for_each(|partial| counts.add(&partial.counts()));
        Some(Completion::Sum(counts, logic))
    }

    /// Returns the partitions whose shares of a window this merge read itself.
    pub fn rescued(&self, from: BeatIndex) -> Vec<i32> {
        let shares = self.sets.get(&from).into_iter().flat_map(|set| &set.shares);
        shares.filter(|(_, share)| share.rescued).map(|(partition, _)| *partition).collect()
    }

    /// Returns the time at which the window's set was opened or got its last share.
    pub(crate) fn changed_at(&self, from: BeatIndex) -> Option<Duration> {
        self.sets.get(&from).map(|set| set.changed_at)
    }

    /// Returns the time at which the window's closing frame was heard live.
    pub(crate) fn closed_at(&self, from: BeatIndex) -> Option<Duration> {
        self.sets.get(&from)?.closed_at
    }

    /// Returns the downbeat of the oldest window that is not done.
    pub fn oldest(&self) -> Option<BeatIndex> {
        self.sets.keys().next().copied()
    }

    /// Returns the number of windows that are not done.
    pub fn len(&self) -> usize {
        self.sets.len()
    }

    /// Returns true if every window is done.
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// Returns the offset of `barpartials` after the last record that was read.
    pub fn next_offset(&self) -> i64 {
        self.next_offset
    }

    /// Returns an offset of `barpartials` at or before every partial of a window that is not done, assuming that those
    /// in `finishing` are. A new merge starts to read there.
    pub fn restart_offset(&self, finishing: &[BeatIndex]) -> i64 {
        let left = self.sets.iter().filter(|(from, _)| !finishing.contains(from));
        left.filter_map(|(_, set)| set.first_offset).min().unwrap_or(self.next_offset)
    }
}

impl PartialSet {
    fn add(&mut self, share: Share, now: Duration) {
        self.shares.insert(share.partial.partition, share);
        self.changed_at = now;
    }

    /// Returns the partitions, of `partitions`, whose share is not there.
    pub(crate) fn missing(&self, partitions: usize) -> impl Iterator<Item = i32> {
        (0..partitions as i32).filter(|partition| !self.shares.contains_key(partition))
    }
}

/// Returns the version of the rules for the report of a window whose shares are of `logic`, and whose last report is of
/// `published`: a report stays of its version. `None` if the shares cannot tell whether a report of a later version is right, so
/// that it stays as it is.
pub fn report_logic(published: Option<i32>, logic: i32) -> Option<i32> {
    published.map_or(Some(logic), |published| (published <= logic).then_some(published))
}

/// Returns the verdict on a window whose last report is `published` and whose correct report is `computed`, and true
/// if `computed` must be written. `always` writes it even if the two are equal.
pub fn verdict<T: PartialEq>(published: Option<&T>, computed: &T, always: bool) -> (Verdict, bool) {
    match published {
        None => (Verdict::Written, true),
        Some(last) if last != computed || always => (Verdict::Rewritten, true),
        Some(_) => (Verdict::Verified, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{beat, frames_of_partitions, partial};

    const NOW: Duration = Duration::ZERO;

    fn completions(merge: &Merge) -> Vec<(i64, Completion)> {
        // Bars of 2 beats, two partitions, 9 beats.
        let frames = frames_of_partitions(2, 0, &[&[0; 9], &[0; 9]]);
        merge.completions(&frames, 100).into_iter().map(|(window, how)| (window.from.get(), how)).collect()
    }

    #[test]
    fn window_with_a_partial_of_every_partition_has_their_sum() {
        let mut merge = Merge::default();
        merge.add_partial(0, beat(0), partial(0, 3), NOW);
        assert_eq!(completions(&merge), []);
        merge.add_partial(1, beat(0), partial(1, 4), NOW);
        assert_eq!(
            completions(&merge),
            [(0, Completion::Sum(Counts { agents: 7, claims: 7, ..Counts::default() }, LOGIC))]
        );
    }

    #[test]
    fn partial_sent_twice_counts_once() {
        let mut merge = Merge::default();
        for (offset, partition) in [(0, 0), (1, 0), (2, 1)] {
            merge.add_partial(offset, beat(0), partial(partition, 3), NOW);
        }
        assert_eq!(
            completions(&merge),
            [(0, Completion::Sum(Counts { agents: 6, claims: 6, ..Counts::default() }, LOGIC))]
        );
    }

    #[test]
    fn window_without_its_closing_frame_cannot_be_finished() {
        let mut merge = Merge::default();
        merge.add_partial(0, beat(8), partial(0, 1), NOW);
        merge.add_partial(1, beat(8), partial(1, 1), NOW);
        assert_eq!(completions(&merge), []);
    }

    #[test]
    fn share_of_a_newer_logic_is_recomputed() {
        let mut merge = Merge::default();
        merge.add_partial(0, beat(0), Partial { logic: LOGIC + 1, ..partial(0, 1) }, NOW);
        merge.add_partial(1, beat(0), partial(1, 1), NOW);
        assert_eq!(completions(&merge), [(0, Completion::Recompute)]);
    }

    #[test]
    fn shares_of_known_logics_are_summed_by_the_lowest() {
        let mut merge = Merge::default();
        merge.add_partial(0, beat(0), Partial { logic: 1, ..partial(0, 1) }, NOW);
        merge.add_partial(1, beat(0), partial(1, 1), NOW);
        assert_eq!(
            completions(&merge),
            [(0, Completion::Sum(Counts { agents: 2, claims: 2, ..Counts::default() }, 1))]
        );
    }

    #[test]
    fn window_with_an_unretained_share_is_skipped() {
        let mut merge = Merge::default();
        merge.add_partial(0, beat(0), Partial { retained: false, logic: LOGIC + 1, ..partial(0, 1) }, NOW);
        merge.add_partial(1, beat(0), partial(1, 1), NOW);
        assert_eq!(completions(&merge), [(0, Completion::Skip)]);
    }

    #[test]
    fn window_whose_missing_partitions_sent_a_later_window_is_recomputed_unless_reported() {
        let mut merge = Merge::default();
        // Partition 1 sent a later window before the first partial of window 0: it may have been reset since.
        merge.add_partial(0, beat(4), partial(1, 1), NOW);
        merge.add_partial(1, beat(0), partial(0, 1), NOW);
        assert_eq!(completions(&merge), []);
        merge.add_partial(2, beat(2), partial(1, 1), NOW);
        assert_eq!(completions(&merge), [(0, Completion::RecomputeUnlessReported)]);
    }

    #[test]
    fn closed_window_that_all_partitions_pass_over_is_recomputed_unless_reported() {
        let mut merge = Merge::default();
        merge.add_partial(0, beat(2), partial(0, 1), NOW);
        merge.close_window(beat(0), NOW);
        merge.add_partial(1, beat(2), partial(1, 1), NOW);
        assert_eq!(completions(&merge).len(), 1, "partition 0 was past window 0 before it closed here");
        merge.add_partial(2, beat(4), partial(0, 1), NOW);
        assert_eq!(completions(&merge)[0], (0, Completion::RecomputeUnlessReported));
    }

    #[test]
    fn rescued_share_counts_until_its_partial_comes() {
        let mut merge = Merge::default();
        merge.close_window(beat(0), NOW);
        assert_eq!(completions(&merge), [], "no partial of it has come");
        merge.add_rescued(beat(0), partial(0, 3), NOW);
        merge.add_rescued(beat(0), partial(1, 4), NOW);
        assert_eq!(merge.rescued(beat(0)), [0, 1]);
        assert_eq!(
            completions(&merge),
            [(0, Completion::Sum(Counts { agents: 7, claims: 7, ..Counts::default() }, LOGIC))]
        );
        merge.add_partial(8, beat(0), partial(1, 4), NOW);
        merge.add_rescued(beat(0), partial(1, 5), NOW);
        assert_eq!(merge.rescued(beat(0)), [0]);
        merge.add_done(Some(9), beat(0), &[0]);
        merge.add_rescued(beat(0), partial(0, 3), NOW);
        assert!(merge.is_empty(), "a share that was rescued too late opens no window");
    }

    #[test]
    fn partial_after_its_rescue_opens_a_window_that_later_windows_complete() {
        let mut merge = Merge::default();
        merge.add_partial(0, beat(0), partial(0, 3), NOW);
        merge.add_done(Some(1), beat(0), &[1]);
        merge.add_partial(2, beat(0), partial(1, 3), NOW);
        assert_eq!(completions(&merge), []);
        merge.add_done(Some(3), beat(2), &[0]);
        assert_eq!(completions(&merge), [(0, Completion::RecomputeUnlessReported)], "its later share was rescued");
    }

    #[test]
    fn report_stays_of_its_logic() {
        assert_eq!(
            [None, Some(1), Some(2), Some(3)].map(|published| report_logic(published, 2)),
            [Some(2), Some(1), Some(2), None]
        );
    }

    #[test]
    fn verdict_writes_a_report_that_is_missing_or_different_or_always() {
        assert_eq!(verdict(None, &1, false), (Verdict::Written, true));
        assert_eq!(verdict(Some(&2), &1, false), (Verdict::Rewritten, true));
        assert_eq!(verdict(Some(&1), &1, false), (Verdict::Verified, false));
        assert_eq!(verdict(Some(&1), &1, true), (Verdict::Rewritten, true));
    }

    #[test]
    fn restart_offset_is_that_of_the_oldest_partial_still_needed() {
        let mut merge = Merge::default();
        merge.add_partial(10, beat(0), partial(0, 1), NOW);
        merge.add_partial(11, beat(2), partial(0, 1), NOW);
        merge.add_partial(12, beat(0), partial(1, 1), NOW);
        assert_eq!(merge.restart_offset(&[]), 10);
        assert_eq!(merge.restart_offset(&[beat(0)]), 11);
        assert_eq!(merge.restart_offset(&[beat(0), beat(2)]), 13);
        merge.add_done(Some(13), beat(0), &[]);
        assert_eq!((merge.len(), merge.restart_offset(&[])), (1, 11));
    }
}
