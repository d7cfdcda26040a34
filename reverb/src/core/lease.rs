//! Decides when a member may take the merge over from the one that runs it.

use std::time::Duration;

use backbeat_schemas::Merging;

use super::LOGIC;
use super::murmur2::murmur2;
use super::recent::RecentEvents;

/// A takeover, or a fencing of this member, makes it wait longer for this many takeover timeouts.
const REMEMBERED_TIMEOUTS: u32 = 60;
/// The wait doubles at most this often, to 16 times: longer than a transaction may take.
const MAX_DOUBLINGS: u32 = 4;
/// Members take over this fraction of the takeover timeout apart.
const RANKS: u32 = 10;

/// The lease of the merge, as one member sees it.
///
/// Fencing by the transactional id makes it safe that any member takes the merge over at any time. The lease only keeps
/// them from doing so needlessly: whatever the merge writes renews it, and the others wait in an order that they agree
/// on. All times are monotonic and count from the member's start.
#[derive(Debug)]
pub(crate) struct Lease {
    takeover_after: Duration,
    holder: Holder,
    /// The time of the last write of any merge.
    renewed_at: Duration,
    /// The time of this member's start, or of its last opening, fencing or failure.
    turned_at: Duration,
    /// The end of the last standstill: of this member, or of Kafka.
    pub(crate) standstill_at: Duration,
    /// Takeovers by other members.
    changes: RecentEvents,
    /// Fencings of this member without a standstill, those in a race to take over left out.
    fencings: RecentEvents,
}

/// The member that runs the merge.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Holder {
    /// The log does not say, since its record is older than what was read, or was written by an earlier version.
    Unknown,
    /// Nobody: the last one stopped in good order, or there has never been one.
    Nobody,
    Member {
        name: String,
        logic: i32,
    },
}

/// The place of a member in the order in which members take over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rank {
    /// The place among the members whose partials are the newest ones, from 0.
    Sender(u32),
    /// Another member: it waits for `senders` others, and a time that its `hash` spreads.
    Other { senders: u32, hash: u32 },
}

impl Rank {
    /// Returns the rank of `name` among `senders`, for the window that opened at `from`. Each window has its own order,
    /// so that a member that cannot take over delays some windows only.
    pub(crate) fn new<'n>(name: &str, senders: impl Iterator<Item = &'n str>, from: i64) -> Self {
        let place = |name: &str| (murmur2(format!("{name}/{from}").as_bytes()), name.to_owned());
        let own = place(name);
        let (mut count, mut before, mut sends) = (0, 0, false);
        for sender in senders {
            count += 1;
            before += u32::from(place(sender) < own);
            sends |= sender == name;
        }
        if sends { Self::Sender(before) } else { Self::Other { senders: count, hash: own.0 } }
    }
}

impl Lease {
    pub(crate) fn new(takeover_after: Duration, now: Duration) -> Self {
        Self {
            takeover_after,
            holder: Holder::Unknown,
            renewed_at: now,
            turned_at: now,
            standstill_at: now,
            changes: RecentEvents::default(),
            fencings: RecentEvents::default(),
        }
    }

    /// Records that the whole log was read and no merge has ever written to it.
    pub(crate) fn record_empty_log(&mut self) {
        self.holder = Holder::Nobody;
    }

    /// Records a merging record, written by any member.
    pub(crate) fn record_merging(&mut self, merging: Merging, now: Duration) {
        let holder = merging.member.map_or(Holder::Nobody, |name| Holder::Member { name, logic: merging.logic });
        let was_taken_over = matches!(
            (&self.holder, &holder),
            (Holder::Member { name: before, .. }, Holder::Member { name, .. }) if before != name
        );
        if was_taken_over {
            self.changes.add(now, self.remembered());
        }
        self.holder = holder;
        self.renewed_at = now;
    }

    /// Records another write of a merge.
    pub(crate) fn record_write(&mut self, now: Duration) {
        self.renewed_at = now;
        if self.holder == Holder::Nobody {
            // A merge of an earlier version writes no merging records.
            self.holder = Holder::Unknown;
        }
    }

    /// Records that this member's merge was fenced.
    pub(crate) fn record_fencing(&mut self, now: Duration) {
        // While this member stood still, it was right to take over from it. One that is fenced as soon as it has taken over has
        // lost a race for the place of a third: that is no duel.
        let lost_race = now.saturating_sub(self.turned_at) < self.takeover_after / 2;
        if self.standstill_at <= self.turned_at && !lost_race {
            self.fencings.add(now, self.remembered());
        }
        self.turned_at = now;
    }

    /// Records that this member has opened the transactional id, or that its merge has failed.
    pub(crate) fn record_change_of_role(&mut self, now: Duration) {
        self.turned_at = now;
    }

    /// Returns the time for which takeovers and fencings count.
    fn remembered(&self) -> Duration {
        self.takeover_after * REMEMBERED_TIMEOUTS
    }

    /// Returns true if the merge must write, so that its lease does not end: half of the takeover timeout has passed.
    pub(crate) fn renewal_due(&self, now: Duration) -> bool {
        now.saturating_sub(self.renewed_at) >= self.takeover_after / 2
    }

    /// Returns the time at which a member with `rank` takes over, for a window that could be finished since
    /// `finishable_at` and closed at `closed_at`.
    pub(crate) fn takeover_at(
        &self,
        closed_at: Duration,
        finishable_at: Duration,
        rank: Rank,
        now: Duration,
    ) -> Duration {
        let timeout = self.takeover_after;
        let step = timeout / RANKS;
        let place = match rank {
            Rank::Sender(place) => step * place,
            Rank::Other { senders, hash } => step * senders + timeout / 2 * (hash % 1_000) / 1_000,
        };
        let silence = if self.holder == Holder::Nobody { Duration::ZERO } else { timeout };
        let newer = matches!(&self.holder, Holder::Member { logic, .. } if *logic > LOGIC);
        let changes = self.changes.count_since(Some(closed_at), now, self.remembered());
        let fencings = self.fencings.count_since(None, now, self.remembered());
        // After one takeover the new merge may have ended like the last one. Several show members that take it from each
        // other.
        let doublings = (changes.saturating_sub(1) + fencings).min(MAX_DOUBLINGS);
        let wait = (silence + place + if newer { timeout } else { Duration::ZERO }) * 2_u32.pow(doublings);
        let quiet_since = self.renewed_at.max(self.turned_at).max(self.standstill_at).max(closed_at);
        (finishable_at + place).max(quiet_since + wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn merging(member: Option<&str>, logic: i32) -> Merging {
        Merging { member: member.map(str::to_owned), logic }
    }

    /// Returns a lease of which `member` became the holder at 10 s.
    fn lease(member: Option<&str>) -> Lease {
        let mut lease = Lease::new(SECOND, Duration::ZERO);
        lease.record_merging(merging(member, LOGIC), SECOND * 10);
        lease
    }

    fn takeover_at(lease: &Lease, closed_at: Duration, rank: Rank) -> Duration {
        lease.takeover_at(closed_at, closed_at, rank, closed_at)
    }

    #[test]
    fn members_take_over_in_the_order_of_their_ranks_after_the_last_write() {
        let mut lease = lease(Some("a"));
        assert_eq!(takeover_at(&lease, SECOND * 20, Rank::Sender(0)), SECOND * 21);
        assert_eq!(takeover_at(&lease, SECOND * 20, Rank::Sender(2)), millis(21_200));
        assert_eq!(takeover_at(&lease, SECOND * 20, Rank::Other { senders: 3, hash: 500 }), millis(21_550));
        lease.record_write(millis(20_500));
        assert_eq!(takeover_at(&lease, SECOND * 20, Rank::Sender(0)), millis(21_500));
        lease.standstill_at = millis(20_700);
        assert_eq!(takeover_at(&lease, SECOND * 20, Rank::Sender(0)), millis(21_700));
        assert_eq!(lease.takeover_at(SECOND * 20, SECOND * 30, Rank::Sender(0), SECOND * 30), SECOND * 30);
    }

    #[test]
    fn nobody_is_waited_for_after_a_good_stop_or_in_an_empty_log() {
        let stopped = lease(None);
        assert_eq!(takeover_at(&stopped, SECOND * 20, Rank::Sender(1)), millis(20_100));
        let later = stopped.takeover_at(SECOND * 20, SECOND * 30, Rank::Sender(1), SECOND * 30);
        assert_eq!(later, millis(30_100), "in their order also if the window can be finished later");
        let mut new = Lease::new(SECOND, Duration::ZERO);
        assert_eq!(takeover_at(&new, SECOND, Rank::Sender(0)), SECOND * 2);
        new.record_empty_log();
        assert_eq!(takeover_at(&new, SECOND, Rank::Sender(0)), SECOND);
        new.record_write(SECOND);
        assert_eq!(takeover_at(&new, SECOND, Rank::Sender(0)), SECOND * 2, "a merge of an earlier version writes");
    }

    #[test]
    fn each_takeover_but_the_first_since_the_window_closed_doubles_the_wait() {
        let mut lease = lease(Some("a"));
        let closed_at = SECOND * 20;
        lease.record_merging(merging(Some("b"), LOGIC), millis(20_500));
        assert_eq!(takeover_at(&lease, closed_at, Rank::Sender(1)), millis(20_500 + 1_100));
        lease.record_merging(merging(Some("a"), LOGIC), millis(20_600));
        assert_eq!(takeover_at(&lease, closed_at, Rank::Sender(1)), millis(20_600 + 2_200));
        lease.record_merging(merging(Some("b"), LOGIC), millis(20_700));
        assert_eq!(takeover_at(&lease, closed_at, Rank::Sender(0)), millis(20_700 + 4_000));
        lease.record_merging(merging(None, LOGIC), millis(20_800));
        lease.record_merging(merging(Some("c"), LOGIC), millis(20_900));
        assert_eq!(
            takeover_at(&lease, closed_at, Rank::Sender(0)),
            millis(20_900 + 4_000),
            "a good stop is no takeover"
        );
        assert_eq!(takeover_at(&lease, SECOND * 21, Rank::Sender(0)), SECOND * 22, "it is over for later windows");
    }

    #[test]
    fn each_fencing_without_a_standstill_doubles_the_wait_for_a_minute() {
        let mut lease = lease(Some("a"));
        lease.record_change_of_role(SECOND * 11);
        lease.record_fencing(SECOND * 12);
        assert_eq!(takeover_at(&lease, SECOND * 20, Rank::Sender(0)), SECOND * 22);
        assert_eq!(takeover_at(&lease, SECOND * 80, Rank::Sender(0)), SECOND * 81);
        lease.record_change_of_role(SECOND * 81);
        lease.record_fencing(SECOND * 81 + millis(499));
        assert_eq!(takeover_at(&lease, SECOND * 82, Rank::Sender(0)), SECOND * 83, "it has lost a race");
        lease.record_change_of_role(SECOND * 82);
        lease.standstill_at = SECOND * 83;
        lease.record_fencing(SECOND * 83);
        assert_eq!(takeover_at(&lease, SECOND * 90, Rank::Sender(0)), SECOND * 91);
    }

    #[test]
    fn merge_of_newer_logic_is_given_more_time() {
        let mut lease = lease(None);
        lease.record_merging(merging(Some("a"), LOGIC + 1), SECOND * 10);
        assert_eq!(takeover_at(&lease, SECOND * 20, Rank::Sender(0)), SECOND * 22);
    }

    #[test]
    fn rank_is_the_place_among_the_senders_and_differs_by_window() {
        let names = ["a", "b", "c"];
        let ranks = |from| names.map(|name| Rank::new(name, names.into_iter(), from));
        for from in 0..20 {
            let mut places = ranks(from);
            places.sort_by_key(|rank| if let Rank::Sender(place) = rank { *place } else { 9 });
            assert_eq!(places, [0, 1, 2].map(Rank::Sender));
        }
        assert!((0..20).any(|from| ranks(from) != ranks(0)));
        assert!(matches!(Rank::new("d", names.into_iter(), 0), Rank::Other { senders: 3, .. }));
    }

    #[test]
    fn merge_renews_its_lease_twice_within_the_timeout() {
        let lease = lease(Some("a"));
        assert!(!lease.renewal_due(millis(10_499)));
        assert!(lease.renewal_due(millis(10_500)));
    }
}
