//! Gathers the partials of each window until every partition's is there.

use std::collections::{BTreeMap, HashMap};

use backbeat_schemas::{BeatIndex, Partial, Verdict};

use super::{Counts, Frames, LOGIC, Window};

/// The partials of the windows that are not done, in the order of `barpartials`.
#[derive(Debug, Default)]
pub struct Merge {
    sets: BTreeMap<BeatIndex, Set>,
    /// Of each partition, the newest partial: its offset and its window.
    newest: HashMap<i32, (i64, BeatIndex)>,
    next_offset: i64,
}

#[derive(Debug)]
struct Set {
    opened_at: i64,
    partials: BTreeMap<i32, Partial>,
}

/// What can be done about a window now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ready {
    /// Every partition's share is there.
    Complete(Counts),
    /// A share is no longer wholly retained: there can be no report.
    Skip,
    /// The shares do not add up, or were made by other rules: the claims must be read again.
    Recompute,
    /// Shares are missing that will not come: the report exists, or the claims must be read again.
    Stuck,
}

impl Merge {
    /// Takes a partial read at `offset`.
    pub fn partial(&mut self, offset: i64, from: BeatIndex, partial: Partial) {
        self.next_offset = offset + 1;
        self.newest.insert(partial.partition, (offset, from));
        let set = self.sets.entry(from).or_insert_with(|| Set { opened_at: offset, partials: BTreeMap::new() });
        set.partials.insert(partial.partition, partial);
    }

    /// Takes a `done` read at `offset`, or the news that we have just written one.
    pub fn done(&mut self, offset: Option<i64>, from: BeatIndex) {
        self.next_offset = offset.map_or(self.next_offset, |offset| offset + 1);
        self.sets.remove(&from);
    }

    /// The windows that can be finished now, oldest first, at most `limit`.
    pub fn ready(&self, frames: &Frames, limit: usize) -> Vec<(Window, Ready)> {
        let judged = self.sets.iter().filter_map(|(from, set)| {
            let window = frames.window_of(*from).filter(|window| window.from == *from)?;
            let partitions = frames.get(window.closes)?.claim_offsets.len();
            Some((window, self.judge(*from, set, partitions)?))
        });
        judged.take(limit).collect()
    }

    fn judge(&self, from: BeatIndex, set: &Set, partitions: usize) -> Option<Ready> {
        let mut missing = (0..partitions as i32).filter(|p| !set.partials.contains_key(p)).peekable();
        if missing.peek().is_some() {
            let moved_on =
                |p| self.newest.get(&p).is_some_and(|(offset, window)| *offset > set.opened_at && *window > from);
            return missing.all(moved_on).then_some(Ready::Stuck);
        }
        let partials = || set.partials.values().filter(|partial| (0..partitions as i32).contains(&partial.partition));
        if partials().any(|partial| !partial.retained) {
            return Some(Ready::Skip);
        }
        if partials().any(|partial| partial.misplaced || partial.logic != LOGIC) {
            return Some(Ready::Recompute);
        }
        let mut counts = Counts::default();
        partials().for_each(|partial| counts.add(&Counts::from(partial)));
        Some(Ready::Complete(counts))
    }

    /// The oldest window that is not done.
    pub fn oldest(&self) -> Option<BeatIndex> {
        self.sets.keys().next().copied()
    }

    /// How many windows are not done.
    pub fn len(&self) -> usize {
        self.sets.len()
    }

    /// Whether every window is done.
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// An offset of `barpartials` at or before every partial of a window that is not done, once those
    /// in `finishing` are.
    pub fn low_without(&self, finishing: &[BeatIndex]) -> i64 {
        let left = self.sets.iter().filter(|(from, _)| !finishing.contains(from));
        left.map(|(_, set)| set.opened_at).min().unwrap_or(self.next_offset)
    }
}

/// How a window is finished whose last report is `published` and whose right one is `ours`, and whether
/// ours is to be written. `always` writes it even where the two agree.
pub fn verdict<T: PartialEq>(published: Option<&T>, ours: &T, always: bool) -> (Verdict, bool) {
    match published {
        None => (Verdict::Written, true),
        Some(theirs) if theirs != ours || always => (Verdict::Rewritten, true),
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

    fn ready(merge: &Merge) -> Vec<(i64, Ready)> {
        // Bars of 2 beats, two partitions, 9 beats.
        let frames = frames_of_partitions(2, 0, &[&[0; 9], &[0; 9]]);
        merge.ready(&frames, 100).into_iter().map(|(window, ready)| (window.from.get(), ready)).collect()
    }

    #[test]
    fn a_window_is_ready_when_every_partition_has_spoken() {
        let mut merge = Merge::default();
        merge.partial(0, beat(0), partial(0, 3));
        assert_eq!(ready(&merge), []);
        merge.partial(1, beat(0), partial(1, 4));
        assert_eq!(ready(&merge), [(0, Ready::Complete(Counts { agents: 7, claims: 7, ..Counts::default() }))]);
    }

    #[test]
    fn a_partial_sent_twice_counts_once() {
        let mut merge = Merge::default();
        for (offset, partition) in [(0, 0), (1, 0), (2, 1)] {
            merge.partial(offset, beat(0), partial(partition, 3));
        }
        assert_eq!(ready(&merge), [(0, Ready::Complete(Counts { agents: 6, claims: 6, ..Counts::default() }))]);
    }

    #[test]
    fn a_window_in_the_future_of_the_frames_waits() {
        let mut merge = Merge::default();
        merge.partial(0, beat(8), partial(0, 1));
        merge.partial(1, beat(8), partial(1, 1));
        assert_eq!(ready(&merge), []);
    }

    #[test]
    fn shares_that_cannot_be_added_are_computed_again() {
        for change in [|p: &mut Partial| p.misplaced = true, |p: &mut Partial| p.logic = LOGIC + 1] {
            let mut merge = Merge::default();
            let mut changed = partial(0, 1);
            change(&mut changed);
            merge.partial(0, beat(0), changed);
            merge.partial(1, beat(0), partial(1, 1));
            assert_eq!(ready(&merge), [(0, Ready::Recompute)]);
        }
    }

    #[test]
    fn a_share_that_is_not_retained_skips_the_window() {
        let mut merge = Merge::default();
        merge.partial(0, beat(0), Partial { retained: false, misplaced: true, ..partial(0, 1) });
        merge.partial(1, beat(0), partial(1, 1));
        assert_eq!(ready(&merge), [(0, Ready::Skip)]);
    }

    #[test]
    fn a_set_is_stuck_when_all_that_is_missing_has_moved_on_since_it_was_opened() {
        let mut merge = Merge::default();
        // Partition 1 was at a later window before the set of window 0 was opened: it may come back.
        merge.partial(0, beat(4), partial(1, 1));
        merge.partial(1, beat(0), partial(0, 1));
        assert_eq!(ready(&merge), []);
        merge.partial(2, beat(2), partial(1, 1));
        assert_eq!(ready(&merge), [(0, Ready::Stuck)]);
    }

    #[test]
    fn a_report_is_written_where_it_is_missing_or_wrong_or_always() {
        assert_eq!(verdict(None, &1, false), (Verdict::Written, true));
        assert_eq!(verdict(Some(&2), &1, false), (Verdict::Rewritten, true));
        assert_eq!(verdict(Some(&1), &1, false), (Verdict::Verified, false));
        assert_eq!(verdict(Some(&1), &1, true), (Verdict::Rewritten, true));
    }

    #[test]
    fn low_is_the_oldest_partial_still_needed() {
        let mut merge = Merge::default();
        merge.partial(10, beat(0), partial(0, 1));
        merge.partial(11, beat(2), partial(0, 1));
        merge.partial(12, beat(0), partial(1, 1));
        assert_eq!(merge.low_without(&[]), 10);
        assert_eq!(merge.low_without(&[beat(0)]), 11);
        assert_eq!(merge.low_without(&[beat(0), beat(2)]), 13);
        merge.done(Some(13), beat(0));
        assert_eq!((merge.len(), merge.low_without(&[])), (1, 11));
    }
}
