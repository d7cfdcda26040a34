//! Collects the partials of each window until every partition's share is there.

use std::collections::{BTreeMap, HashMap};

use backbeat_schemas::{BeatIndex, Partial, Verdict};

use super::{Counts, Frames, LOGIC, Window};

/// The partials of all windows that are not done.
#[derive(Debug, Default)]
pub struct Merge {
    sets: BTreeMap<BeatIndex, PartialSet>,
    /// By partition, the newest partial: its offset in `barpartials` and its window's downbeat.
    newest: HashMap<i32, (i64, BeatIndex)>,
    next_offset: i64,
}

/// The partials of one window.
#[derive(Debug)]
struct PartialSet {
    /// The offset of the first of them in `barpartials`.
    first_offset: i64,
    partials: BTreeMap<i32, Partial>,
}

/// The way to finish a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completion {
    /// Every partition's share is there: report the sum of their counts.
    Sum(Counts),
    /// A share's claims are no longer wholly retained: finish the window without a report.
    Skip,
    /// The shares do not add up or have another `logic`: read the claims again.
    Recompute,
    /// The missing shares will not come: drop the window if its report exists, and read the claims again otherwise.
    RecomputeUnlessReported,
}

impl Merge {
    /// Adds a partial that was read at `offset` of `barpartials`.
    pub fn add_partial(&mut self, offset: i64, from: BeatIndex, partial: Partial) {
        self.next_offset = offset + 1;
        self.newest.insert(partial.partition, (offset, from));
        let set =
            self.sets.entry(from).or_insert_with(|| PartialSet { first_offset: offset, partials: BTreeMap::new() });
        set.partials.insert(partial.partition, partial);
    }

    /// Removes a window that is done. `offset` is that of its done record, or `None` if this merge just wrote it.
    pub fn add_done(&mut self, offset: Option<i64>, from: BeatIndex) {
        self.next_offset = offset.map_or(self.next_offset, |offset| offset + 1);
        self.sets.remove(&from);
    }

    /// Returns the windows that can be finished now and how, oldest first, at most `limit`.
    pub fn completions(&self, frames: &Frames, limit: usize) -> Vec<(Window, Completion)> {
        let completions = self.sets.iter().filter_map(|(from, set)| {
            let window = frames.window_of(*from).filter(|window| window.from == *from)?;
            let partitions = frames.get(window.closing)?.claim_offsets.len();
            Some((window, self.completion(*from, set, partitions)?))
        });
        completions.take(limit).collect()
    }

    /// Returns the way to finish the window that opened at `from`, or `None` while shares may still come.
    fn completion(&self, from: BeatIndex, set: &PartialSet, partitions: usize) -> Option<Completion> {
        let mut missing = (0..partitions as i32).filter(|p| !set.partials.contains_key(p)).peekable();
        if missing.peek().is_some() {
            let sent_later_window =
                |p| self.newest.get(&p).is_some_and(|(offset, window)| *offset > set.first_offset && *window > from);
            return missing.all(sent_later_window).then_some(Completion::RecomputeUnlessReported);
        }
        let partials = || set.partials.values().filter(|partial| (0..partitions as i32).contains(&partial.partition));
        if partials().any(|partial| !partial.retained) {
            return Some(Completion::Skip);
        }
        if partials().any(|partial| partial.misplaced || partial.logic != LOGIC) {
            return Some(Completion::Recompute);
        }
        let mut counts = Counts::default();
        partials().for_each(|partial| counts.add(&Counts::from(partial)));
        Some(Completion::Sum(counts))
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

    /// Returns an offset of `barpartials` at or before every partial of a window that is not done, assuming that those
    /// in `finishing` are. A new merge starts to read there.
    pub fn restart_offset(&self, finishing: &[BeatIndex]) -> i64 {
        let left = self.sets.iter().filter(|(from, _)| !finishing.contains(from));
        left.map(|(_, set)| set.first_offset).min().unwrap_or(self.next_offset)
    }
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

impl From<&Partial> for Counts {
    fn from(partial: &Partial) -> Self {
        Self {
            agents: partial.agents,
            on_time_reviews: partial.on_time_reviews,
            help_fulfilled: partial.help_fulfilled,
            rotation_failed_agents: partial.rotation_failed_agents,
            tasks_done: partial.tasks_done,
            tasks_failed: partial.tasks_failed,
            claims: partial.claims,
            degraded_claims: partial.degraded_claims,
            late_claims: partial.late_claims,
            invalid_claims: partial.invalid_claims,
            unknown_schema_claims: partial.unknown_schema_claims,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{beat, frames_of_partitions};

    fn partial(partition: i32, agents: i64) -> Partial {
        Partial {
            partition,
            member: "m".into(),
            counter: 0,
            logic: LOGIC,
            retained: true,
            misplaced: false,
            agents,
            on_time_reviews: 0,
            help_fulfilled: 0,
            rotation_failed_agents: 0,
            tasks_done: 0,
            tasks_failed: 0,
            claims: agents,
            degraded_claims: 0,
            late_claims: 0,
            invalid_claims: 0,
            unknown_schema_claims: 0,
        }
    }

    fn completions(merge: &Merge) -> Vec<(i64, Completion)> {
        // Bars of 2 beats, two partitions, 9 beats.
        let frames = frames_of_partitions(2, 0, &[&[0; 9], &[0; 9]]);
        merge.completions(&frames, 100).into_iter().map(|(window, how)| (window.from.get(), how)).collect()
    }

    #[test]
    fn window_with_a_partial_of_every_partition_has_their_sum() {
        let mut merge = Merge::default();
        merge.add_partial(0, beat(0), partial(0, 3));
        assert_eq!(completions(&merge), []);
        merge.add_partial(1, beat(0), partial(1, 4));
        assert_eq!(completions(&merge), [(0, Completion::Sum(Counts { agents: 7, claims: 7, ..Counts::default() }))]);
    }

    #[test]
    fn partial_sent_twice_counts_once() {
        let mut merge = Merge::default();
        for (offset, partition) in [(0, 0), (1, 0), (2, 1)] {
            merge.add_partial(offset, beat(0), partial(partition, 3));
        }
        assert_eq!(completions(&merge), [(0, Completion::Sum(Counts { agents: 6, claims: 6, ..Counts::default() }))]);
    }

    #[test]
    fn window_without_its_closing_frame_cannot_be_finished() {
        let mut merge = Merge::default();
        merge.add_partial(0, beat(8), partial(0, 1));
        merge.add_partial(1, beat(8), partial(1, 1));
        assert_eq!(completions(&merge), []);
    }

    #[test]
    fn shares_that_do_not_add_up_are_recomputed() {
        for change in [|p: &mut Partial| p.misplaced = true, |p: &mut Partial| p.logic = LOGIC + 1] {
            let mut merge = Merge::default();
            let mut changed = partial(0, 1);
            change(&mut changed);
            merge.add_partial(0, beat(0), changed);
            merge.add_partial(1, beat(0), partial(1, 1));
            assert_eq!(completions(&merge), [(0, Completion::Recompute)]);
        }
    }

    #[test]
    fn window_with_an_unretained_share_is_skipped() {
        let mut merge = Merge::default();
        merge.add_partial(0, beat(0), Partial { retained: false, misplaced: true, ..partial(0, 1) });
        merge.add_partial(1, beat(0), partial(1, 1));
        assert_eq!(completions(&merge), [(0, Completion::Skip)]);
    }

    #[test]
    fn window_whose_missing_partitions_sent_a_later_window_is_recomputed_unless_reported() {
        let mut merge = Merge::default();
        // Partition 1 sent a later window before the first partial of window 0: it may have been reset since.
        merge.add_partial(0, beat(4), partial(1, 1));
        merge.add_partial(1, beat(0), partial(0, 1));
        assert_eq!(completions(&merge), []);
        merge.add_partial(2, beat(2), partial(1, 1));
        assert_eq!(completions(&merge), [(0, Completion::RecomputeUnlessReported)]);
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
        merge.add_partial(10, beat(0), partial(0, 1));
        merge.add_partial(11, beat(2), partial(0, 1));
        merge.add_partial(12, beat(0), partial(1, 1));
        assert_eq!(merge.restart_offset(&[]), 10);
        assert_eq!(merge.restart_offset(&[beat(0)]), 11);
        assert_eq!(merge.restart_offset(&[beat(0), beat(2)]), 13);
        merge.add_done(Some(13), beat(0));
        assert_eq!((merge.len(), merge.restart_offset(&[])), (1, 11));
    }
}
