//! Knows when a partition's share of a window is overdue, so that the merge reads it itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use backbeat_schemas::BeatIndex;

use super::recent::RecentEvents;

/// A member that was late is given more time for this many times the time that a partition has for its share.
const REMEMBERED_TIMEOUTS: u32 = 100;
/// The time for a late member's shares doubles at most this often, to eight times.
const MAX_DOUBLINGS: u32 = 3;

/// The timeliness of partials.
///
/// A member that is alive but slow would be slowed down further if all its claims were read twice. So its shares get more
/// time after each one that came after it was rescued. A member that was silent all the while, since it was paused, gets
/// no more.
#[derive(Debug)]
pub(crate) struct OverdueShares {
    timeout: Duration,
    /// By partition, the sender of its newest partial.
    newest: BTreeMap<i32, Sender>,
    /// By member, the time of its newest partial.
    heard: BTreeMap<String, Duration>,
    /// The shares of members that were not silent and that a merge has read itself, by window and partition.
    rescued: BTreeMap<(BeatIndex, i32), Rescued>,
    /// By member, its partials that came after the rescue.
    late: BTreeMap<String, RecentEvents>,
}

#[derive(Debug)]
struct Rescued {
    /// The sender of the partition's newest partial at that time.
    owner: String,
    at: Duration,
}

#[derive(Debug)]
struct Sender {
    member: String,
    /// The time at which the partial was read.
    at: Duration,
    /// True if a merge has read a share of the partition itself since.
    is_replaced: bool,
}

impl OverdueShares {
    /// Creates the state with the time that a partition has for its share from the closing frame on.
    pub(crate) fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            newest: BTreeMap::new(),
            heard: BTreeMap::new(),
            rescued: BTreeMap::new(),
            late: BTreeMap::new(),
        }
    }

    /// Records a partial.
    pub(crate) fn record_partial(&mut self, partition: i32, from: BeatIndex, member: &str, now: Duration) {
        self.newest.insert(partition, Sender { member: member.to_owned(), at: now, is_replaced: false });
        self.heard.insert(member.to_owned(), now);
        let rescued = self.rescued.remove(&(from, partition));
        // A partition's new owner sends the shares that its last one did not: it is not slow.
        if rescued.is_some_and(|rescued| rescued.owner == member) {
            let remembered = self.remembered();
            let late = self.late.entry(member.to_owned()).or_default();
            // It is late for all its partitions at the same time.
            if late.last().is_none_or(|last| now.saturating_sub(last) >= self.timeout) {
                late.add(now, remembered);
            }
        }
    }

    /// Records that a merge has read shares itself, of a window that closed at `closed_at`.
    pub(crate) fn record_rescued(&mut self, from: BeatIndex, partitions: &[i32], closed_at: Duration, now: Duration) {
        let remembered = self.remembered();
        self.heard.retain(|_, at| now.saturating_sub(*at) < remembered);
        self.rescued.retain(|_, rescued| now.saturating_sub(rescued.at) < remembered);
        self.late.retain(|_, late| late.forget(now, remembered));
        for partition in partitions {
            let Some(newest) = self.newest.get_mut(partition) else { continue };
            newest.is_replaced = true;
            let owner = &newest.member;
            if self.heard.get(owner).is_some_and(|at| *at >= closed_at) {
                self.rescued.insert((from, *partition), Rescued { owner: owner.clone(), at: now });
            }
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
        let late = newest.and_then(|newest| self.late.get(&newest.member));
        let late = late.map_or(0, |late| late.count_since(None, now, self.remembered()));
        since + self.timeout * 2_u32.pow(late.min(MAX_DOUBLINGS))
    }

    /// Returns the time for which a late partial counts.
    fn remembered(&self) -> Duration {
        self.timeout * REMEMBERED_TIMEOUTS
    }

    /// Returns the time of the last partial of any partition.
    pub(crate) fn last_partial_at(&self) -> Duration {
        self.newest.values().map(|sender| sender.at).max().unwrap_or_default()
    }

    /// Returns the members that sent some partition's newest share.
    pub(crate) fn senders(&self) -> BTreeSet<&str> {
        self.newest.values().filter(|sender| !sender.is_replaced).map(|sender| sender.member.as_str()).collect()
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
    fn member_that_is_slow_gets_more_time_for_a_while() {
        let mut shares = OverdueShares::new(SECOND);
        for (late, expected) in [(1, 2), (2, 4), (3, 8), (4, 8)] {
            let now = SECOND * late as u32;
            shares.record_partial(0, beat(0), "a", now);
            shares.record_rescued(beat(late), &[0], now, now);
            shares.record_partial(0, beat(late), "a", now);
            shares.record_partial(0, beat(late), "a", now);
            assert_eq!(overdue_at(&shares, SECOND * 10, SECOND), SECOND * (10 + expected), "late {late} times");
        }
        assert_eq!(overdue_at(&shares, SECOND * 110, SECOND), SECOND * 111);
    }

    #[test]
    fn member_that_is_late_for_several_partitions_is_late_once() {
        let mut shares = OverdueShares::new(SECOND);
        shares.record_partial(0, beat(0), "a", SECOND);
        shares.record_partial(1, beat(0), "a", SECOND);
        shares.record_rescued(beat(4), &[0, 1], SECOND, SECOND * 2);
        shares.record_partial(0, beat(4), "a", SECOND * 4);
        shares.record_partial(1, beat(4), "a", SECOND * 4);
        assert_eq!(overdue_at(&shares, SECOND * 10, SECOND), SECOND * 12);
    }

    #[test]
    fn member_whose_shares_others_read_is_no_sender_until_its_next_partial() {
        let mut shares = OverdueShares::new(SECOND);
        shares.record_partial(0, beat(0), "a", SECOND);
        shares.record_partial(1, beat(0), "b", SECOND);
        shares.record_rescued(beat(4), &[0], SECOND * 4, SECOND * 5);
        assert_eq!(shares.senders(), BTreeSet::from(["b"]));
        shares.record_partial(0, beat(4), "a", SECOND * 6);
        assert_eq!(shares.senders(), BTreeSet::from(["a", "b"]));
    }

    #[test]
    fn member_that_was_silent_or_a_new_owner_is_not_slow() {
        let mut shares = OverdueShares::new(SECOND);
        shares.record_partial(0, beat(0), "a", SECOND);
        shares.record_rescued(beat(4), &[0], SECOND * 2, SECOND * 3);
        shares.record_partial(0, beat(4), "a", SECOND * 4);
        shares.record_rescued(beat(8), &[0], SECOND * 4, SECOND * 5);
        shares.record_partial(0, beat(8), "b", SECOND * 6);
        assert_eq!(overdue_at(&shares, SECOND * 10, SECOND), SECOND * 11);
    }
}
