//! Which windows of a partition are finished, and from where a successor must begin.

use std::collections::VecDeque;

use backbeat_schemas::BeatIndex;

/// The windows of one partition that its aggregator has opened and that are not known to be done.
#[derive(Debug, Default)]
pub struct CommitTracker {
    windows: VecDeque<Entry>,
}

#[derive(Debug)]
struct Entry {
    from: BeatIndex,
    /// The window's boundary in this partition.
    offset: i64,
    step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Open,
    /// Our partial was sent under this number.
    Sent(i64),
    /// It was met in `barpartials`; what is done after it is done with it.
    Observed,
    Done,
}

impl CommitTracker {
    /// A window was opened.
    pub fn opened(&mut self, from: BeatIndex, offset: i64) {
        if self.windows.back().is_none_or(|last| last.from < from) {
            self.windows.push_back(Entry { from, offset, step: Step::Open });
        }
    }

    /// Its partial was sent under the member's `counter`.
    pub fn sent(&mut self, from: BeatIndex, counter: i64) {
        self.step(from, |_| Step::Sent(counter));
    }

    /// Our partial with `counter` was read in `barpartials`.
    pub fn observed(&mut self, from: BeatIndex, counter: i64) {
        self.step(from, |step| if step == Step::Sent(counter) { Step::Observed } else { step });
    }

    /// A `done` was read. One that came before our partial is of an earlier run and says nothing.
    pub fn done(&mut self, from: BeatIndex) {
        self.step(from, |step| if step == Step::Observed { Step::Done } else { step });
        self.forget_done();
    }

    /// A window closed in which this partition has no part.
    pub fn not_ours(&mut self, from: BeatIndex) {
        self.step(from, |_| Step::Done);
        self.forget_done();
    }

    /// Where a successor begins: the boundary of the oldest window that is not done, and its downbeat.
    pub fn position(&self) -> Option<(i64, BeatIndex)> {
        self.windows.front().map(|entry| (entry.offset, entry.from))
    }

    fn step(&mut self, from: BeatIndex, change: impl FnOnce(Step) -> Step) {
        if let Ok(index) = self.windows.binary_search_by_key(&from, |entry| entry.from) {
            let entry = &mut self.windows[index];
            entry.step = change(entry.step);
        }
    }

    fn forget_done(&mut self) {
        while self.windows.front().is_some_and(|entry| entry.step == Step::Done) {
            self.windows.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(index: i64) -> BeatIndex {
        BeatIndex::try_from(index).expect("not negative")
    }

    #[test]
    fn a_window_is_done_when_its_partial_was_met_and_a_done_came_after() {
        let mut commit_tracker = CommitTracker::default();
        commit_tracker.opened(beat(0), 10);
        commit_tracker.opened(beat(4), 20);
        commit_tracker.sent(beat(0), 7);
        commit_tracker.done(beat(0));
        assert_eq!(commit_tracker.position(), Some((10, beat(0))), "a done of an earlier run");
        commit_tracker.observed(beat(0), 6);
        commit_tracker.done(beat(0));
        assert_eq!(commit_tracker.position(), Some((10, beat(0))), "another run's partial");
        commit_tracker.observed(beat(0), 7);
        commit_tracker.done(beat(0));
        assert_eq!(commit_tracker.position(), Some((20, beat(4))));
    }

    #[test]
    fn windows_are_let_go_in_order() {
        let mut commit_tracker = CommitTracker::default();
        for (from, counter) in [(0, 1), (4, 2)] {
            commit_tracker.opened(beat(from), from);
            commit_tracker.sent(beat(from), counter);
            commit_tracker.observed(beat(from), counter);
        }
        commit_tracker.done(beat(4));
        assert_eq!(commit_tracker.position(), Some((0, beat(0))));
        commit_tracker.done(beat(0));
        assert_eq!(commit_tracker.position(), None);
    }
}
