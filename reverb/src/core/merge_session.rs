//! Decides what a member's merge does next.
//!
//! Every member follows `beatframes` and `barpartials` in this way; one of them, the last that opened the transactional
//! id, is active and writes. The others take over when a window waits although it could be finished: reports are pure
//! functions of the log, so any member can make them (docs/design.md, The merge).

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use backbeat_schemas::{BarPartial, BeatFrame, BeatIndex, Merging, Partial, PartialBody};

use super::lease::{Lease, Rank};
use super::overdue::OverdueShares;
use super::{Completion, Frames, LOGIC, Merge, Window};

/// The largest number of claims that the merge reads at once in place of the members that have not sent their shares.
/// Windows with more wait until the group has given the partitions to other members.
pub const MAX_RESCUED_CLAIMS: i64 = 200_000;
/// A rescue is given up after this many takeover timeouts, and the merge pauses at most as long after it.
pub const MAX_RESCUE_TIMEOUTS: u32 = 2;
/// The largest number of windows whose shares are rescued at once.
const MAX_RESCUED_WINDOWS: usize = 64;
/// Windows that had closed when a member started are finished as if they closed then, if there are at most so many.
const MAX_WINDOWS_AT_START: usize = 8;
/// The bars before the newest frame that are read at the start: those windows, and some more in case bars were longer.
const BARS_AT_START: i64 = 10;
/// Windows finished in one transaction: the limit grows from the smaller number to the larger one while commits are fast.
const BATCH: RangeInclusive<usize> = 32..=500;
/// Finished windows that are remembered, since their closing frames may be heard later than their done records.
const MAX_REMEMBERED_DONE: usize = 64;

/// The state of one member's merge, whether it is active or not.
#[derive(Debug)]
pub struct MergeSession {
    name: String,
    takeover_after: Duration,
    is_active: bool,
    merge: Merge,
    lease: Lease,
    shares: OverdueShares,
    /// The newest frame that was heard; `None` until the table has caught up with the log.
    heard: Option<BeatIndex>,
    /// The downbeats of windows that are done, the newest ones.
    done: BTreeSet<BeatIndex>,
    /// The time of the last turn of the member's loop.
    turned_at: Duration,
    /// The time at which the end of `barpartials` was asked for the last time, before it was read up to there.
    confirmed_at: Option<Duration>,
    /// Requests for the end of `barpartials`, one after the other, that were answered late.
    late_answers: u32,
    /// No shares are rescued before this time.
    rescue_after: Duration,
    /// True if the last rescue of this merge has read no share, and nothing was finished since.
    rescue_failed: bool,
    /// The number of windows in the next rescue, at most.
    rescue_windows: usize,
    /// The number of windows in the next transaction, at most.
    batch: usize,
}

/// The next thing to do. Each is reported back to the session when it is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MergeCommand {
    /// Ask for the end of `barpartials` anew, read up to there, and call [`MergeSession::record_read_to_end`].
    ReadToEnd,
    /// Open the transactional id, read `barpartials` to its end anew, call [`MergeSession::record_opening`], and write a
    /// merging record.
    TakeOver,
    /// Write a merging record and call [`MergeSession::record_renewal`]: the next rescue has to wait.
    Renew,
    /// Finish these windows in one transaction, then call [`MergeSession::record_finished`].
    Finish(Vec<(Window, Completion)>),
    /// Read the shares that are overdue from the claims, then call [`MergeSession::record_rescue`].
    Rescue(Rescue),
}

/// The shares that the merge reads at once: those of the same partitions, in consecutive windows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rescue {
    /// The first window.
    pub first: Window,
    /// The last window.
    pub last: Window,
    /// The partitions whose shares are missing.
    pub partitions: Vec<i32>,
}

impl MergeSession {
    /// Creates the session of the member `name`, which takes over after a silence of `takeover_after`.
    pub fn new(name: String, takeover_after: Duration, now: Duration) -> Self {
        Self {
            name,
            takeover_after,
            is_active: false,
            merge: Merge::default(),
            lease: Lease::new(takeover_after, now),
            shares: OverdueShares::new(share_timeout(takeover_after)),
            heard: None,
            done: BTreeSet::new(),
            turned_at: now,
            confirmed_at: None,
            late_answers: 0,
            rescue_after: now,
            rescue_failed: false,
            rescue_windows: MAX_RESCUED_WINDOWS,
            batch: *BATCH.start(),
        }
    }

    /// Returns true if this member runs the merge, as far as it knows.
    pub fn is_active(&self) -> bool {
        self.is_active
    }

    /// Returns the windows that are not done.
    pub fn merge(&self) -> &Merge {
        &self.merge
    }

    /// Returns the first beat whose frame must be read at the start, if `newest` is the newest frame: that of the oldest window
    /// that is not done, or a few bars before `newest`.
    pub fn first_beat(&self, newest: Option<&BeatFrame>) -> BeatIndex {
        let start = newest.map_or(0, |frame| frame.beat_index.get() - BARS_AT_START * i64::from(frame.bar_length));
        let start = BeatIndex::try_from(start).unwrap_or(BeatIndex::ZERO);
        self.merge.oldest().map_or(start, |oldest| oldest.min(start))
    }

    /// Returns the downbeat of the oldest window whose frames are still needed: one that is not done, or the newest one.
    pub fn oldest_needed(&self, frames: &Frames) -> Option<BeatIndex> {
        let newest = frames.last().and_then(|frame| frames.window_of(frame.beat_index)).map(|window| window.from);
        self.merge.oldest().into_iter().chain(newest).min()
    }

    /// Returns the merging record with which this member claims the lease.
    pub fn merging(&self) -> Merging {
        Merging { member: Some(self.name.clone()), logic: LOGIC }
    }

    /// Records that `barpartials` was read from the restart offset to its end, and whether it has any record of a merge.
    pub fn record_start(&mut self, has_merge_record: bool) {
        if !has_merge_record {
            self.lease.record_empty_log();
        }
    }

    /// Records a turn of the member's loop, and returns the time since the last one. If that was long ago, the member stood
    /// still: its timers start anew.
    pub fn record_turn(&mut self, now: Duration) -> Duration {
        let pause = now.saturating_sub(self.turned_at);
        if pause > self.takeover_after / 2 {
            self.lease.standstill_at = now;
        }
        self.turned_at = now;
        pause
    }

    /// Records the end of a command, however long it took.
    fn end_command(&mut self, now: Duration) {
        self.turned_at = now;
    }

    /// Records a record that was read at `offset` of `barpartials`. Returns false if it has no content that this version
    /// knows.
    pub fn record(&mut self, offset: i64, record: BarPartial, now: Duration) -> bool {
        let from = record.from_beat;
        match record.into_body() {
            Some(PartialBody::Partial(partial)) => {
                self.shares.record_partial(partial.partition, from, &partial.member, now);
                self.merge.add_partial(offset, from, partial, now);
            }
            Some(PartialBody::Done(done)) => {
                self.lease.record_write(now);
                let closed_at = self.merge.closed_at(from).unwrap_or(now);
                self.shares.record_rescued(from, &done.rescued, closed_at, now);
                self.merge.add_done(Some(offset), from, &done.rescued);
                self.remember_done(from);
            }
            Some(PartialBody::Merging(merging)) => {
                let is_own = merging.member.as_ref() == Some(&self.name);
                self.lease.record_merging(merging, now);
                self.merge.skip(offset);
                if self.is_active && !is_own {
                    // It was opened after ours, or its record would have been read before ours was.
                    self.record_fencing(now);
                }
            }
            None => {
                self.merge.skip(offset);
                return false;
            }
        }
        true
    }

    fn remember_done(&mut self, from: BeatIndex) {
        self.done.insert(from);
        if self.done.len() > MAX_REMEMBERED_DONE {
            self.done.pop_first();
        }
    }

    /// Records the frames in the table, which must have caught up with the log. Windows that closed since the last call
    /// get their sets.
    pub fn record_frames(&mut self, frames: &Frames, now: Duration) {
        let (Some(first), Some(last)) = (frames.first(), frames.last()) else { return };
        let (first, last) = (first.beat_index, last.beat_index);
        let start = self.heard.map_or(first, |heard| heard.plus(1).max(first));
        let closed = frames.range(start, last.plus(1)).filter_map(|frame| frames.closed_by(frame.beat_index));
        let mut closed: Vec<BeatIndex> = closed.map(|window| window.from).collect();
        closed.retain(|from| !self.done.contains(from));
        if self.heard.is_none() {
            closed.retain(|from| self.done.last().is_none_or(|done| from > done));
            closed.drain(..closed.len().saturating_sub(MAX_WINDOWS_AT_START));
        }
        for from in closed {
            self.merge.close_window(from, now);
        }
        self.heard = self.heard.max(Some(last));
    }

    /// Returns the next thing to do at `now`. `reached` is the beat up to whose boundary all aggregators of this member
    /// have come.
    pub fn next(&self, frames: &Frames, reached: BeatIndex, now: Duration) -> Option<MergeCommand> {
        let rescue = self.next_rescue(frames, reached, now);
        if !self.is_active {
            let takeover_at = self.takeover_at(frames, rescue.as_ref(), now)?;
            return self.is_due(takeover_at, MergeCommand::TakeOver, now);
        }
        let completions = self.merge.completions(frames, self.batch);
        if !completions.is_empty() {
            return Some(MergeCommand::Finish(completions));
        }
        let (rescue, at) = rescue?;
        let pauses = (at..self.rescue_after).contains(&now);
        if pauses && self.keeps_lease() && self.renewal_due(now) {
            return Some(MergeCommand::Renew);
        }
        self.is_due(at.max(self.rescue_after), MergeCommand::Rescue(rescue), now)
    }

    /// Returns `command` if it is due, and the log has been read to its end since: what this member waits for may be
    /// there, unread.
    fn is_due(&self, due_at: Duration, command: MergeCommand, now: Duration) -> Option<MergeCommand> {
        if now < due_at {
            None
        } else if self.confirmed_at >= Some(due_at) {
            Some(command)
        } else {
            Some(MergeCommand::ReadToEnd)
        }
    }

    /// Returns the time at which this member takes over, or `None` if no window could be finished.
    fn takeover_at(&self, frames: &Frames, rescue: Option<&(Rescue, Duration)>, now: Duration) -> Option<Duration> {
        let takeover_at = |from: BeatIndex, changed_at: Duration, finishable_at: Duration| {
            let rank = Rank::new(&self.name, self.shares.senders().into_iter(), from.get());
            // The active merge could not finish the window before.
            let waits_since = changed_at.max(finishable_at.saturating_sub(share_timeout(self.takeover_after)));
            self.lease.takeover_at(waits_since, finishable_at, rank, now)
        };
        let complete = self.merge.completions(frames, 1).pop();
        let complete = complete.map(|(window, completion)| {
            // Such a set becomes complete by a partial of another window.
            let by_another = completion == Completion::RecomputeUnlessReported;
            let complete_at = if by_another { self.shares.last_partial_at() } else { Duration::ZERO };
            takeover_at(window.from, self.merge.changed_at(window.from).unwrap_or(complete_at), complete_at)
        });
        // Shares that come meanwhile change nothing: the others are overdue.
        let rescue = rescue.map(|(rescue, at)| takeover_at(rescue.first.from, Duration::ZERO, *at));
        complete.into_iter().chain(rescue).min()
    }

    /// Returns the missing shares of the window in which all of them are overdue first, and when they are. If those of the
    /// windows after it are overdue, too, one read serves all of them.
    fn next_rescue(&self, frames: &Frames, reached: BeatIndex, now: Duration) -> Option<(Rescue, Duration)> {
        let overdue = self.merge.closed_sets(frames).filter_map(|(window, set, partitions)| {
            // A member that is behind cannot tell whether the others are.
            let closed_at = set.closed_at.filter(|_| reached >= window.closing)?;
            let partitions: Vec<i32> = set.missing(partitions).collect();
            let overdue_at = |p: &i32| self.shares.overdue_at(*p, closed_at, self.lease.standstill_at, now);
            let at = partitions.iter().map(overdue_at).max()?;
            let rescue = Rescue { first: window, last: window, partitions };
            rescue.is_small(frames).then_some((rescue, at))
        });
        let overdue: Vec<(Rescue, Duration)> = overdue.collect();
        let first = (0..overdue.len()).min_by_key(|index| overdue[*index].1)?;
        let mut overdue = overdue.into_iter().skip(first);
        let (mut rescue, at) = overdue.next()?;
        for (next, _) in overdue.take_while(|(_, at)| *at <= now).take(self.rescue_windows - 1) {
            let continues = next.first.from == rescue.last.end && next.partitions == rescue.partitions;
            let longer = Rescue { first: rescue.first, ..next };
            if !continues || !longer.is_small(frames) {
                break;
            }
            rescue = longer;
        }
        Some((rescue, at))
    }

    /// Records that the end of `barpartials` was asked for at `asked_at` and told at `answered_at`, and that the log has been
    /// read up to there. A late answer means that Kafka stood still, and that what the others sent may still be on its way;
    /// several in a row that Kafka is slow.
    pub fn record_read_to_end(&mut self, asked_at: Duration, answered_at: Duration, now: Duration) {
        let is_late = answered_at.saturating_sub(asked_at) > self.takeover_after / 2;
        self.late_answers = if is_late { self.late_answers + 1 } else { 0 };
        if self.late_answers == 1 {
            self.lease.standstill_at = now;
        }
        self.confirmed_at = Some(asked_at);
        self.end_command(now);
    }

    /// Records that this member has opened the transactional id, and that the log has been read to its end since.
    pub fn record_opening(&mut self, now: Duration) {
        self.is_active = true;
        // The log was read to its end just now.
        (self.rescue_after, self.rescue_failed) = (Duration::ZERO, false);
        self.batch = *BATCH.start();
        self.lease.record_change_of_role(now);
        self.end_command(now);
    }

    /// Returns true if the merge must write a merging record now: it reads claims, and its lease would end.
    pub fn renewal_due(&self, now: Duration) -> bool {
        self.lease.renewal_due(now)
    }

    /// Returns true if the merge keeps its lease while it rescues shares. One whose last rescue has failed does not: while
    /// it tries again, another member, whose Kafka client may work, takes over.
    pub fn keeps_lease(&self) -> bool {
        !self.rescue_failed
    }

    /// Records that this member has written a merging record.
    pub fn record_renewal(&mut self, now: Duration) {
        self.lease.record_merging(self.merging(), now);
    }

    /// Records that this member's merge has finished `windows` in one transaction, which began at `began`.
    pub fn record_finished(&mut self, windows: &[BeatIndex], began: Duration, now: Duration) {
        for from in windows {
            let closed_at = self.merge.closed_at(*from).unwrap_or(now);
            self.shares.record_rescued(*from, &self.merge.rescued(*from), closed_at, now);
            self.merge.add_done(None, *from, &[]);
            self.remember_done(*from);
        }
        self.lease.record_write(now);
        self.rescue_failed = false;
        // An open transaction holds every reader of `barpartials` up.
        if now.saturating_sub(began) > self.takeover_after / 4 {
            self.batch = (self.batch / 2).max(*BATCH.start());
        } else if windows.len() == self.batch {
            self.batch = (self.batch * 2).min(*BATCH.end());
        }
        self.end_command(now);
    }

    /// Records the shares that were read from the claims since `began`, each with the downbeat of its window. They may
    /// not be all that were overdue. At most half of the merge's time is spent in this way.
    pub fn record_rescue(&mut self, shares: Vec<(BeatIndex, Partial)>, began: Duration, now: Duration) {
        self.rescue_failed = shares.is_empty();
        // What takes too long fails as a whole.
        self.rescue_windows = if self.rescue_failed { 1 } else { (self.rescue_windows * 2).min(MAX_RESCUED_WINDOWS) };
        for (from, share) in shares {
            self.merge.add_rescued(from, share, now);
        }
        let pause = now.saturating_sub(began).min(self.takeover_after * MAX_RESCUE_TIMEOUTS);
        self.rescue_after = now + if self.rescue_failed { pause.max(self.takeover_after / 2) } else { pause };
        self.end_command(now);
    }

    /// Records that another member has opened the transactional id, or that Kafka has ended a transaction that was open
    /// for too long.
    pub fn record_fencing(&mut self, now: Duration) {
        self.is_active = false;
        self.lease.record_fencing(now);
        self.end_command(now);
    }

    /// Records that the merge has failed, and that it is not known whether its last transaction was committed.
    pub fn record_failure(&mut self, now: Duration) {
        self.is_active = false;
        self.lease.record_change_of_role(now);
        self.end_command(now);
    }
}

/// Returns the time that a partition has for its share from the closing frame on. The active merge has the rest of the
/// takeover timeout to say that it reads the share itself.
fn share_timeout(takeover_after: Duration) -> Duration {
    takeover_after * 3 / 5
}

impl Rescue {
    /// Returns true if it has to read few enough claims.
    fn is_small(&self, frames: &Frames) -> bool {
        let boundary = |beat, partition| frames.get(beat).map_or(0, |frame| frame.boundary(partition));
        let claims = |p: &i32| boundary(self.last.closing, *p).saturating_sub(boundary(self.first.from, *p));
        self.partitions.iter().map(claims).fold(0, i64::saturating_add) <= MAX_RESCUED_CLAIMS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{beat, frames_of_partitions, partial};
    use backbeat_schemas::{Done, Verdict, WindowId};

    const SECOND: Duration = Duration::from_secs(1);

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn record(from: i64, body: PartialBody) -> BarPartial {
        BarPartial::new(WindowId::new("c", beat(from)), beat(from), body)
    }

    fn sent(partition: i32, from: i64, member: &str) -> BarPartial {
        record(from, PartialBody::Partial(partial(partition, 1))).sent_by(member, 1)
    }

    fn done(from: i64, rescued: &[i32]) -> BarPartial {
        let done = Done { verdict: Verdict::Written, low: 0, rescued: rescued.to_vec() };
        record(from, PartialBody::Done(done))
    }

    fn merging(member: Option<&str>) -> BarPartial {
        let merging = Merging { member: member.map(str::to_owned), logic: LOGIC };
        record(0, PartialBody::Merging(merging))
    }

    /// Returns frames of bars of two beats in two partitions. A claim arrives on each beat in partition 0.
    fn frames(beats: usize) -> Frames {
        let boundaries: Vec<i64> = (0..beats as i64).collect();
        frames_of_partitions(2, 0, &[&boundaries, &vec![0; beats]])
    }

    /// Returns the session of member `b`, which has heard beats 0 and 1 at 0 s, while `a` merges.
    fn session() -> MergeSession {
        let mut session = MergeSession::new("b".into(), SECOND, Duration::ZERO);
        assert!(session.record(0, merging(Some("a")), Duration::ZERO));
        session.record_frames(&frames(2), Duration::ZERO);
        session
    }

    /// Returns the next command, after turns until `now`.
    fn next(session: &mut MergeSession, beats: usize, now: Duration) -> Option<MergeCommand> {
        session.turned_at = now;
        session.next(&frames(beats), beat(beats as i64), now)
    }

    /// Returns the downbeats of the first and the last window of a rescue, and its partitions.
    fn rescued(command: Option<MergeCommand>) -> (i64, i64, Vec<i32>) {
        let Some(MergeCommand::Rescue(Rescue { first, last, partitions })) = command else { panic!("{command:?}") };
        (first.from.get(), last.from.get(), partitions)
    }

    fn confirm(session: &mut MergeSession, now: Duration) {
        session.record_read_to_end(now, now, now);
    }

    #[test]
    fn member_takes_over_when_a_complete_window_waits_and_the_log_has_nothing_new() {
        let mut session = session();
        session.record_frames(&frames(3), SECOND * 10);
        session.record(1, sent(0, 0, "b"), SECOND * 10);
        session.record(2, sent(1, 0, "b"), SECOND * 10);
        assert_eq!(next(&mut session, 3, millis(10_999)), None);
        assert_eq!(next(&mut session, 3, SECOND * 11), Some(MergeCommand::ReadToEnd));
        confirm(&mut session, SECOND * 11);
        assert_eq!(next(&mut session, 3, SECOND * 11), Some(MergeCommand::TakeOver));
        session.record_opening(SECOND * 11);
        assert!(matches!(next(&mut session, 3, SECOND * 11), Some(MergeCommand::Finish(_))));
        session.record_finished(&[beat(0)], SECOND * 11, SECOND * 11);
        assert_eq!(next(&mut session, 3, SECOND * 60), None);
    }

    #[test]
    fn done_record_read_before_the_takeover_prevents_it() {
        let mut session = session();
        session.record_frames(&frames(3), SECOND * 10);
        assert_eq!(next(&mut session, 3, SECOND * 12), Some(MergeCommand::ReadToEnd));
        session.record(3, done(0, &[]), SECOND * 12);
        confirm(&mut session, SECOND * 12);
        assert_eq!(next(&mut session, 3, SECOND * 60), None);
    }

    #[test]
    fn closing_frame_heard_after_the_done_record_opens_no_window() {
        let mut session = session();
        session.record(1, done(0, &[]), SECOND);
        session.record_frames(&frames(3), SECOND);
        assert!(session.merge().is_empty());
    }

    #[test]
    fn active_member_rescues_overdue_shares_and_finishes_the_window() {
        let mut session = session();
        session.record_opening(SECOND);
        session.record_frames(&frames(3), SECOND * 10);
        session.record(1, sent(0, 0, "b"), SECOND * 10);
        assert_eq!(next(&mut session, 3, millis(10_599)), None);
        assert_eq!(next(&mut session, 3, millis(10_600)), Some(MergeCommand::ReadToEnd));
        confirm(&mut session, millis(10_600));
        assert_eq!(rescued(next(&mut session, 3, millis(10_600))), (0, 0, vec![1]));
        session.record_rescue(vec![(beat(0), partial(1, 2))], millis(10_600), millis(10_700));
        assert!(matches!(next(&mut session, 3, millis(10_700)), Some(MergeCommand::Finish(_))));
        assert_eq!(session.merge().rescued(beat(0)), [1]);
    }

    #[test]
    fn windows_in_which_the_same_shares_are_overdue_are_rescued_together() {
        let session = |partials: &[(i32, i64)]| {
            let mut session = session();
            session.record_opening(SECOND);
            session.record_frames(&frames(9), SECOND * 10);
            for (offset, (partition, from)) in (1..).zip(partials) {
                session.record(offset, sent(*partition, *from, "b"), SECOND * 10);
            }
            confirm(&mut session, SECOND * 60);
            session
        };
        let overdue = |partials: &[(i32, i64)]| rescued(next(&mut session(partials), 9, SECOND * 60));
        assert_eq!(overdue(&[]), (0, 6, vec![0, 1]));
        assert_eq!(overdue(&[(1, 0), (1, 2)]), (0, 2, vec![0]), "others are missing in window 4");
        assert_eq!(overdue(&[(1, 2)]), (0, 0, vec![0, 1]), "others are missing in window 2");
        let mut failed = session(&[]);
        failed.record_rescue(Vec::new(), SECOND * 59, SECOND * 59);
        assert_eq!(rescued(next(&mut failed, 9, SECOND * 60)), (0, 0, vec![0, 1]), "one at a time after a failure");
        let claims = [0, 0, 0, 0, MAX_RESCUED_CLAIMS, MAX_RESCUED_CLAIMS + 1, MAX_RESCUED_CLAIMS + 1];
        let (frames, mut session) = (frames_of_partitions(2, 0, &[&claims, &[0; 7]]), session(&[]));
        session.turned_at = SECOND * 60;
        assert_eq!(rescued(session.next(&frames, beat(9), SECOND * 60)), (0, 2, vec![0, 1]), "of 200,000 claims");
    }

    #[test]
    fn rescues_take_at_most_half_of_the_time() {
        let mut session = session();
        session.record_opening(SECOND);
        session.record_frames(&frames(5), SECOND * 10);
        confirm(&mut session, SECOND * 12);
        session.record_rescue(vec![(beat(0), partial(0, 1)), (beat(0), partial(1, 1))], SECOND * 12, SECOND * 14);
        session.record_finished(&[beat(0)], SECOND * 14, SECOND * 14);
        assert_eq!(next(&mut session, 5, millis(14_400)), None);
        assert_eq!(next(&mut session, 5, millis(15_999)), Some(MergeCommand::Renew), "the others must not take over");
        assert_eq!(next(&mut session, 5, SECOND * 16), Some(MergeCommand::ReadToEnd));
        session.record_rescue(Vec::new(), SECOND * 16, SECOND * 16);
        assert_eq!(next(&mut session, 5, millis(16_499)), None, "a rescue that failed is not tried again at once");
        assert!(!session.keeps_lease(), "another member may have more success");
        confirm(&mut session, SECOND * 60);
        session.record_opening(millis(60_100));
        assert!(session.keeps_lease());
        let command = next(&mut session, 5, millis(60_100));
        assert!(
            matches!(command, Some(MergeCommand::Rescue(_))),
            "at once: the log was read to its end at the opening"
        );
    }

    #[test]
    fn member_that_is_behind_or_whose_claims_are_too_many_rescues_nothing() {
        let mut session = session();
        session.record_opening(SECOND);
        session.record_frames(&frames(3), SECOND * 10);
        assert_eq!(session.next(&frames(3), beat(1), SECOND * 60), None);
        let many = [0, 0, MAX_RESCUED_CLAIMS + 1];
        assert_eq!(session.next(&frames_of_partitions(2, 0, &[&many]), beat(9), SECOND * 60), None);
    }

    #[test]
    fn standstill_of_the_member_or_of_kafka_starts_the_timers_anew() {
        let mut session = session();
        session.record_frames(&frames(3), SECOND * 10);
        session.record_turn(SECOND * 10);
        session.record_turn(SECOND * 20);
        assert_eq!(next(&mut session, 3, millis(20_999)), None);
        // It sent no partial: its rank is spread over half a second more.
        assert_eq!(next(&mut session, 3, SECOND * 22), Some(MergeCommand::ReadToEnd));
        session.record_read_to_end(SECOND * 22, SECOND * 27, SECOND * 27);
        assert_eq!(next(&mut session, 3, millis(27_999)), None);
        assert_eq!(next(&mut session, 3, SECOND * 29), Some(MergeCommand::ReadToEnd));
        session.record_read_to_end(SECOND * 29, SECOND * 34, SECOND * 34);
        assert_eq!(next(&mut session, 3, SECOND * 34), Some(MergeCommand::TakeOver), "kafka is slow");
    }

    #[test]
    fn merging_record_of_another_member_ends_the_own_merge() {
        let mut session = session();
        session.record_opening(SECOND);
        assert!(session.record(1, merging(Some("b")), SECOND) && session.is_active());
        assert!(session.record(2, merging(Some("c")), SECOND) && !session.is_active());
    }

    #[test]
    fn last_windows_closed_before_the_start_count_as_closed_at_the_start() {
        let started = |done_at: Option<i64>| {
            let mut session = MergeSession::new("b".into(), SECOND, Duration::ZERO);
            if let Some(from) = done_at {
                session.record(0, done(from, &[]), Duration::ZERO);
            }
            session.record_frames(&frames(31), Duration::ZERO);
            (session.merge().oldest(), session.merge().len())
        };
        assert_eq!(started(None), (Some(beat(14)), 8));
        assert_eq!(started(Some(24)), (Some(beat(26)), 2));
        assert_eq!(started(Some(28)), (None, 0));
    }

    #[test]
    fn transactions_grow_while_they_are_fast_and_shrink_when_they_are_slow() {
        let mut session = session();
        let batch: Vec<BeatIndex> = (0..*BATCH.start() as i64).map(beat).collect();
        session.record_finished(&batch, SECOND, SECOND);
        assert_eq!(session.batch, 2 * BATCH.start());
        session.record_finished(&batch, SECOND, SECOND * 2);
        assert_eq!(session.batch, *BATCH.start());
    }
}
