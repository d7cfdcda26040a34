//! Knows when a partition's share of a window is overdue, so that the merge reads it itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use backbeat_schemas::BeatIndex;

/// A member that was late is given more time for this many times the time that a partition has for its share.
const REMEMBERED_TIMEOUTS: u32 = 75;
/// The time for a late member's shares doubles at most this often, to eight times.
const MAX_DOUBLINGS: u32 = 3;

/// The timeliness of partials.
///
/// A member that is alive but slow would be slowed down further if all its claims were read twice. So its shares get
/// more time after each one that came after it was rescued.
#[derive(Debug)]
pub(crate) struct OverdueShares {
    timeout: Duration,
    /// By partition, the sender of its newest partial.
    newest: BTreeMap<i32, Sender>,
    /// The shares that a merge has read itself, by window and partition.
    rescued: BTreeMap<(BeatIndex, i32), Rescued>,
    /// By member, the times at which its partial came after the rescue.
    late: BTreeMap<String, Vec<Duration>>,
}

#[derive(Debug)]
struct Rescued {
    /// The sender of the partition's newest partial at that time.
    owner: Option<String>,
    at: Duration,
}

#[derive(Debug)]
struct Sender {
    member: String,
    /// The time at which the partial was read.
    at: Duration,
}

impl OverdueShares {
    /// Creates the state with the time that a partition has for its share from the closing frame on.
    pub(crate) fn new(timeout: Duration) -> Self {
        Self { timeout, newest: BTreeMap::new(), rescued: BTreeMap::new(), late: BTreeMap::new() }
    }

    /// Records a partial.
    pub(crate) fn record_partial(&mut self, partition: i32, from: BeatIndex, member: &str, now: Duration) {
        self.newest.insert(partition, Sender { member: member.to_owned(), at: now });
        let Some(rescued) = self.rescued.remove(&(from, partition)) else { return };
        // A partition's new owner sends the shares that its last one did not: it is not slow.
        if rescued.owner.as_deref() == Some(member) {
            let late = self.late.entry(member.to_owned()).or_default();
            // A member that was paused sends several at once.
            if late.last().is_none_or(|last| now.saturating_sub(*last) >= self.timeout) {
                late.push(now);
            }
        }
    }

    /// Records that a merge has read shares itself.
    pub(crate) fn record_rescued(&mut self, from: BeatIndex, partitions: &[i32], now: Duration) {
        let remembered = self.timeout * REMEMBERED_TIMEOUTS;
        self.rescued.retain(|_, rescued| now.saturating_sub(rescued.at) < remembered);
        self.late.values_mut().for_each(|late| late.retain(|at| now.saturating_sub(*at) < remembered));
        self.late.retain(|_, late| !late.is_empty());
        for partition in partitions {
            let owner = self.newest.get(partition).map(|newest| newest.member.clone());
            self.rescued.insert((from, *partition), Rescued { owner, at: now });
        }
    }

    /// Returns the time at which the share of `partition` is overdue in a window that closed at `closed_at`.
    pub(crate) fn overdue_at(
        &self,
        partition: i32,
        closed_at: Duration,
        standstill_at: Duration,
        now: Duration,
    ) -> Duration {
        let newest = self.newest.get(&partition);
        // A partition that has sent another partial meanwhile is behind, but has an owner.
        let since = closed_at.max(standstill_at).max(newest.map_or(Duration::ZERO, |newest| newest.at));
        let late = newest.and_then(|newest| self.late.get(&newest.member)).map_or(&[][..], Vec::as_slice);
        let late = late.iter().filter(|at| self.is_recent(**at, now)).count();
        since + self.timeout * 2_u32.pow((late as u32).min(MAX_DOUBLINGS))
    }

    fn is_recent(&self, at: Duration, now: Duration) -> bool {
        now.saturating_sub(at) < self.timeout * REMEMBERED_TIMEOUTS
    }

    /// Returns the members that sent some partition's newest partial.
    pub(crate) fn senders(&self) -> BTreeSet<&str> {
        self.newest.values().map(|sender| sender.member.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::beat;

    const SECOND: Duration = Duration::from_secs(1);

    fn overdue_at(shares: &OverdueShares, closed_at: Duration, standstill_at: Duration) -> Duration {
        shares.overdue_at(0, closed_at, standstill_at, closed_at)
    }

    #[test]
    fn share_is_overdue_after_the_closing_frame_the_last_partial_and_a_standstill() {
        let mut shares = OverdueShares::new(SECOND);
        assert_eq!(overdue_at(&shares, SECOND * 10, SECOND), SECOND * 11);
        assert_eq!(overdue_at(&shares, SECOND * 10, SECOND * 12), SECOND * 13);
        shares.record_partial(0, beat(0), "a", SECOND * 14);
        assert_eq!(overdue_at(&shares, SECOND * 10, SECOND * 12), SECOND * 15);
        assert_eq!(shares.senders(), BTreeSet::from(["a"]));
    }

    #[test]
    fn member_whose_partial_comes_after_its_rescue_gets_more_time_for_a_while() {
        let mut shares = OverdueShares::new(SECOND);
        shares.record_partial(0, beat(0), "a", SECOND);
        for (late, expected) in [(1, 2), (2, 4), (3, 8), (4, 8)] {
            shares.record_rescued(beat(late), &[0], SECOND * late as u32);
            shares.record_partial(0, beat(late), "a", SECOND * late as u32);
            shares.record_partial(0, beat(late), "a", SECOND * late as u32);
            assert_eq!(overdue_at(&shares, SECOND * 10, SECOND), SECOND * (10 + expected), "late {late} times");
        }
        assert_eq!(overdue_at(&shares, SECOND * 80, SECOND), SECOND * 81);
    }

    #[test]
    fn partials_of_a_paused_member_that_come_together_count_as_late_once() {
        let mut shares = OverdueShares::new(SECOND);
        shares.record_partial(0, beat(0), "a", SECOND);
        shares.record_rescued(beat(4), &[0], SECOND * 2);
        shares.record_rescued(beat(8), &[0], SECOND * 3);
        shares.record_partial(0, beat(4), "a", SECOND * 4);
        shares.record_partial(0, beat(8), "a", SECOND * 4);
        assert_eq!(overdue_at(&shares, SECOND * 10, SECOND), SECOND * 12);
    }

    #[test]
    fn partial_of_a_new_owner_after_a_rescue_is_not_late() {
        let mut shares = OverdueShares::new(SECOND);
        shares.record_partial(0, beat(0), "a", SECOND);
        shares.record_rescued(beat(4), &[0], SECOND * 2);
        shares.record_rescued(beat(8), &[0], SECOND * 2);
        shares.record_partial(0, beat(4), "b", SECOND * 3);
        shares.record_partial(0, beat(8), "b", SECOND * 3);
        assert_eq!(overdue_at(&shares, SECOND * 10, SECOND), SECOND * 11);
    }
}
