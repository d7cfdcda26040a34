//! Tracks which windows of a partition are done, and so which offset may be committed.

use std::collections::VecDeque;

use backbeat_schemas::BeatIndex;

/// The windows that one partition's aggregator has opened and that are not known to be done, oldest first.
#[derive(Debug, Default)]
pub struct CommitTracker {
    windows: VecDeque<Entry>,
}

#[derive(Debug)]
struct Entry {
    from: BeatIndex,
    /// The window's boundary in this partition.
    offset: i64,
    state: WindowState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WindowState {
    Open,
    /// The partial was sent, with this counter of the member.
    Sent(i64),
    /// The partial was read back from `barpartials`, so a later done record includes it.
    Observed,
    Done,
}

impl CommitTracker {
    /// Adds a window that was opened.
    pub fn add_window(&mut self, from: BeatIndex, offset: i64) {
        if self.windows.back().is_none_or(|last| last.from < from) {
            self.windows.push_back(Entry { from, offset, state: WindowState::Open });
        }
    }

    /// Records that the window's partial was sent with the member's `counter`.
    pub fn mark_sent(&mut self, from: BeatIndex, counter: i64) {
        self.update(from, |_| WindowState::Sent(counter));
    }

    /// Records that the partial with the member's `counter` was read back from `barpartials`.
    pub fn mark_observed(&mut self, from: BeatIndex, counter: i64) {
        self.update(from, |state| if state == WindowState::Sent(counter) { WindowState::Observed } else { state });
    }

    /// Records a done record of the window. One that was read before the partial belongs to an earlier run and is
    /// ignored.
    pub fn mark_done(&mut self, from: BeatIndex) {
        self.update(from, |state| if state == WindowState::Observed { WindowState::Done } else { state });
        self.remove_done();
    }

    /// Marks a window done at once, because it has no share of this partition.
    pub fn mark_not_needed(&mut self, from: BeatIndex) {
        self.update(from, |_| WindowState::Done);
        self.remove_done();
    }

    /// Returns the offset to commit, the boundary of the oldest window that is not done, and that window's downbeat.
    pub fn committable(&self) -> Option<(i64, BeatIndex)> {
        self.windows.front().map(|entry| (entry.offset, entry.from))
    }

    fn update(&mut self, from: BeatIndex, change: impl FnOnce(WindowState) -> WindowState) {
        if let Ok(index) = self.windows.binary_search_by_key(&from, |entry| entry.from) {
            let entry = &mut self.windows[index];
            entry.state = change(entry.state);
        }
    }

    fn remove_done(&mut self) {
        while self.windows.front().is_some_and(|entry| entry.state == WindowState::Done) {
            self.windows.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(index: i64) -> BeatIndex {
        BeatIndex::try_from(index).expect("the beat index is not negative")
    }

    #[test]
    fn window_with_observed_partial_is_done_at_the_next_done_record() {
        let mut tracker = CommitTracker::default();
        tracker.add_window(beat(0), 10);
        tracker.add_window(beat(4), 20);
        tracker.mark_sent(beat(0), 7);
        tracker.mark_done(beat(0));
        assert_eq!(tracker.committable(), Some((10, beat(0))), "a done record of an earlier run");
        tracker.mark_observed(beat(0), 6);
        tracker.mark_done(beat(0));
        assert_eq!(tracker.committable(), Some((10, beat(0))), "another run's partial");
        tracker.mark_observed(beat(0), 7);
        tracker.mark_done(beat(0));
        assert_eq!(tracker.committable(), Some((20, beat(4))));
    }

    #[test]
    fn windows_done_out_of_order_are_removed_in_order() {
        let mut tracker = CommitTracker::default();
        for (from, counter) in [(0, 1), (4, 2)] {
            tracker.add_window(beat(from), from);
            tracker.mark_sent(beat(from), counter);
            tracker.mark_observed(beat(from), counter);
        }
        tracker.mark_done(beat(4));
        assert_eq!(tracker.committable(), Some((0, beat(0))));
        tracker.mark_done(beat(0));
        assert_eq!(tracker.committable(), None);
    }
}
