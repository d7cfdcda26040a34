//! Events that count for a while.

use std::time::Duration;

/// The times of events, oldest first. Each counts for a while.
#[derive(Debug, Default)]
pub(crate) struct RecentEvents(Vec<Duration>);

impl RecentEvents {
    /// Adds an event at `now`, and forgets those that no longer count because each does for `remembered`.
    pub(crate) fn add(&mut self, now: Duration, remembered: Duration) {
        self.forget(now, remembered);
        self.0.push(now);
    }

    /// Forgets the events that no longer count. Returns true if one is left.
    pub(crate) fn forget(&mut self, now: Duration, remembered: Duration) -> bool {
        self.0.retain(|at| now.saturating_sub(*at) < remembered);
        !self.0.is_empty()
    }

    /// Returns the number of events after `since` that still count.
    pub(crate) fn count_since(&self, since: Option<Duration>, now: Duration, remembered: Duration) -> u32 {
        let counts = |at: &&Duration| now.saturating_sub(**at) < remembered && since.is_none_or(|since| **at > since);
        self.0.iter().filter(counts).count() as u32
    }

    /// Returns the time of the last event.
    pub(crate) fn last(&self) -> Option<Duration> {
        self.0.last().copied()
    }
}
