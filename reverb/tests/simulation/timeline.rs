//! Time lines: a group of reverb's cores in which one thing goes wrong at a known time. Each report must come within its
//! bound, and the members must neither fight over the merge nor read more claims twice than they have to.

use std::collections::BTreeMap;
use std::iter::repeat_n;
use std::time::Duration;

use backbeat_reverb::core::{CommittedOffset, MAX_RESCUED_CLAIMS};
use backbeat_schemas::{BeatFrame, BeatIndex};
use backbeat_simulation::Violation;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::kafka::{ClaimLog, Record};
use crate::member::Delays;
use crate::world::{Setup, World};

const TICK: Duration = Duration::from_millis(10);
const BEAT: Duration = Duration::from_millis(250);
const TAKEOVER_AFTER: Duration = Duration::from_secs(1);
/// The group removes a member that has sent no heartbeat for this long.
const SESSION: Duration = Duration::from_secs(6);
/// The time until removed members' partitions have new owners.
const REBALANCE: Duration = Duration::from_millis(1_500);
/// How long a run goes on after its last fault.
const REST: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);
const DELAYS: Delays = Delays {
    request: Duration::from_millis(10),
    commit: Duration::from_millis(5),
    slow_share: 0.0,
    slow: Duration::ZERO,
    start: Duration::from_millis(500),
    read: Duration::from_millis(100),
};
const SETUP: Setup = Setup {
    members: 4,
    partitions: 6,
    bar_length: 4,
    bars_change: false,
    grace: 0,
    misplaced: 0.0,
    takeover_after: TAKEOVER_AFTER,
    delays: DELAYS,
    claims_per_turn: 50,
    has_old_members: false,
};

/// A group of three members and six partitions, with a window a second.
struct Timeline {
    world: World,
    /// The time between two turns of a member.
    tick: Duration,
    beat: Duration,
    next_beat: Duration,
    /// How often some agents claim in a beat.
    claims: usize,
    pulse_runs: bool,
    /// By member, the time from which it has sent no heartbeat.
    silent: BTreeMap<u64, Duration>,
    /// The time at which partitions without an owner are assigned.
    assign_at: Duration,
    /// By downbeat, the time at which the window could be finished.
    closed_at: BTreeMap<BeatIndex, Duration>,
    /// By downbeat, the time at which its report came.
    reported_at: BTreeMap<BeatIndex, Duration>,
    reports_read: i64,
}

impl Timeline {
    /// Starts `members` and lets them run until the group is steady.
    fn start(members: usize, delays: Delays) -> Self {
        Self::start_with(Setup { delays, ..SETUP }, members)
    }

    fn start_with(setup: Setup, members: usize) -> Self {
        let mut timeline = Self::empty(setup);
        (0..members).for_each(|_| timeline.world.add_member(false));
        timeline.run(SECOND * 15);
        timeline.forget();
        timeline
    }

    fn empty(setup: Setup) -> Self {
        let mut world = World::with(ChaCha8Rng::seed_from_u64(7), setup, None);
        world.is_calm = true;
        world.beat();
        Self {
            world,
            tick: TICK,
            beat: BEAT,
            next_beat: Duration::ZERO,
            claims: 1,
            pulse_runs: true,
            silent: BTreeMap::new(),
            assign_at: Duration::ZERO,
            closed_at: BTreeMap::new(),
            reported_at: BTreeMap::new(),
            reports_read: 0,
        }
    }

    /// Forgets what has happened so far: windows, takeovers, rescues.
    fn forget(&mut self) {
        self.closed_at.clear();
        self.world.counts = Default::default();
    }

    fn run(&mut self, time: Duration) {
        let end = self.world.now + time;
        while self.world.now < end {
            self.tick().unwrap_or_else(|violation| panic!("{violation}\n{}", self.tail()));
        }
    }

    fn tick(&mut self) -> Result<(), Violation> {
        self.world.now += self.tick;
        let now = self.world.now;
        if self.pulse_runs && now >= self.next_beat && now >= self.world.hung_until {
            (0..self.claims).for_each(|_| self.world.claim());
            self.world.beat();
            self.next_beat = now + self.beat;
            let newest = self.world.kafka.frames.last().expect("a beat was published");
            if newest.downbeat
                && let Some(from) = self.opening_before(newest.beat_index)
            {
                self.closed_at.insert(from, now);
            }
        }
        self.coordinate();
        self.world.turn_all()?;
        let reports: Vec<_> = self.world.kafka.read(&self.world.kafka.reports, self.reports_read).collect();
        let (mut read, mut froms) = (self.reports_read, Vec::new());
        for (offset, report) in reports {
            read = offset + 1;
            froms.push(report.from_beat);
        }
        self.reports_read = read;
        for from in froms {
            self.reported_at.entry(from).or_insert(now);
        }
        Ok(())
    }

    fn opening_before(&self, beat: BeatIndex) -> Option<BeatIndex> {
        let before = |frame: &&BeatFrame| frame.downbeat && frame.beat_index < beat;
        self.world.kafka.frames.iter().rev().find(before).map(|frame| frame.beat_index)
    }

    /// Does the group coordinator's work: removes silent members, and gives their partitions to others.
    fn coordinate(&mut self) {
        let now = self.world.now;
        if now < self.world.hung_until {
            return;
        }
        let expired: Vec<u64> =
            self.silent.iter().filter(|(_, since)| now >= **since + SESSION).map(|(name, _)| *name).collect();
        for name in expired {
            self.silent.remove(&name);
            self.world.expire_session(name);
            self.assign_at = now + REBALANCE;
        }
        if now >= self.assign_at {
            let silent = self.silent.keys().copied().collect();
            self.world.assign_evenly(&silent);
        }
    }

    /// Returns the index of the member that merges, or of one that does not.
    fn member(&self, merging: bool) -> usize {
        self.world.members.iter().position(|member| member.is_merging() == merging).expect("there is such a member")
    }

    fn kill(&mut self, index: usize) {
        let name = self.world.kill(index);
        self.silent.insert(name, self.world.now);
    }

    fn pause(&mut self, index: usize) -> u64 {
        self.world.members[index].is_paused = true;
        let name = self.world.members[index].name;
        self.silent.insert(name, self.world.now);
        name
    }

    fn resume(&mut self, name: u64) {
        self.silent.remove(&name);
        let member = self.world.members.iter_mut().find(|member| member.name == name).expect("it was paused");
        member.is_paused = false;
    }

    fn reset_offsets(&mut self, to: impl Fn(&ClaimLog) -> i64) {
        for (partition, committed) in &mut self.world.kafka.committed {
            let offset = to(&self.world.kafka.claims[*partition as usize]);
            *committed = CommittedOffset { offset, downbeat: None };
        }
    }

    /// Runs on after the last fault, then checks all reports and that each came within `bound` of its closing frame, or of
    /// `not_before` if that is later. At most `takeovers` takeovers and `rescued` rescued shares may have happened.
    fn check(mut self, not_before: Duration, bound: Duration, takeovers: u64, rescued: u64) {
        self.check_delays(not_before, bound, takeovers, rescued);
        self.world.end_faults();
        self.run(SECOND * 30);
        self.world.check().unwrap_or_else(|violation| panic!("{violation}\n{}", self.tail()));
    }

    /// Does the same without a look at the contents of the reports.
    fn check_delays(&mut self, not_before: Duration, bound: Duration, takeovers: u64, rescued: u64) {
        self.run(REST);
        let counted = self.world.now.saturating_sub(SECOND * 5);
        for (from, closed_at) in self.closed_at.iter().filter(|(_, closed_at)| **closed_at < counted) {
            let since = (*closed_at).max(not_before);
            let reported_at = self.reported_at.get(from);
            let delay = reported_at.map(|at| at.saturating_sub(since));
            assert!(
                delay.is_some_and(|delay| delay <= bound),
                "window {from} closed at {closed_at:?}, reported at {reported_at:?}\n{}",
                self.tail()
            );
        }
        let counts = &self.world.counts;
        let (taken_over, read) = (counts.get("taken over"), counts.get("rescued share"));
        assert!(taken_over <= takeovers, "{taken_over} takeovers\n{}", self.tail());
        assert!(read <= rescued, "{read} rescued shares\n{}", self.tail());
    }

    fn tail(&self) -> String {
        let lines: Vec<&str> = self.world.trace().lines().collect();
        lines[lines.len().saturating_sub(300)..].join("\n")
    }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn without_faults_reports_come_at_once() {
    Timeline::start(3, DELAYS).check(Duration::ZERO, millis(100), 0, 0);
}

#[test]
fn first_start() {
    let mut timeline = Timeline::empty(SETUP);
    timeline.run(SECOND * 2);
    (0..3).for_each(|_| timeline.world.add_member(false));
    let started = timeline.world.now;
    timeline.check(started, millis(800), 1, 0);
}

#[test]
fn merging_member_killed() {
    let mut timeline = Timeline::start(3, DELAYS);
    timeline.kill(timeline.member(true));
    timeline.check(Duration::ZERO, millis(1_300), 1, 2 * 9);
}

#[test]
fn members_killed_one_after_the_other() {
    let mut timeline = Timeline::start(3, DELAYS);
    for merging in [true, false, true, false] {
        timeline.kill(timeline.member(merging));
        timeline.run(SECOND * 3);
        timeline.world.add_member(false);
        timeline.run(SECOND * 9);
    }
    timeline.check(Duration::ZERO, millis(1_300), 2, 4 * 6 * 9);
}

#[test]
fn members_paused_one_after_the_other() {
    let mut timeline = Timeline::start(3, DELAYS);
    for merging in [true, false, true, false] {
        let name = timeline.pause(timeline.member(merging));
        timeline.run(SECOND * 4);
        timeline.resume(name);
        timeline.run(SECOND * 4);
    }
    timeline.check(Duration::ZERO, millis(1_300), 2, 4 * 2 * 9);
}

#[test]
fn member_that_only_aggregates_killed() {
    let mut timeline = Timeline::start(3, DELAYS);
    timeline.kill(timeline.member(false));
    timeline.check(Duration::ZERO, millis(1_000), 0, 2 * 9);
}

#[test]
fn all_but_one_killed() {
    let mut timeline = Timeline::start(3, DELAYS);
    timeline.kill(timeline.member(true));
    timeline.kill(0);
    timeline.check(Duration::ZERO, millis(1_500), 1, 4 * 9);
}

#[test]
fn all_killed_and_started_again() {
    let mut timeline = Timeline::start(3, DELAYS);
    (0..3).for_each(|_| timeline.kill(0));
    timeline.run(SECOND);
    (0..3).for_each(|_| timeline.world.add_member(false));
    let started = timeline.world.now;
    timeline.check(started, millis(1_500), 1, 6 * 12);
}

#[test]
fn merging_member_paused_and_resumed() {
    for pause in [millis(300), millis(700), SECOND * 2, SECOND * 10] {
        let mut timeline = Timeline::start(3, DELAYS);
        let name = timeline.pause(timeline.member(true));
        timeline.run(pause);
        timeline.resume(name);
        timeline.check(Duration::ZERO, millis(1_300), 1, 2 * 12);
    }
}

#[test]
fn slow_member_is_not_slowed_down_further() {
    let mut timeline = Timeline::start(3, DELAYS);
    let slow = timeline.member(false);
    timeline.world.members[slow].slow_by = millis(600);
    // It has dead letters or rosters in most windows, so that its partials come after twice that time. Its claims are read twice
    // for a few windows in thirty.
    timeline.check(Duration::ZERO, millis(3_400), 0, 12);
}

#[test]
fn kafka_hung_for_five_seconds() {
    let mut timeline = Timeline::start(3, DELAYS);
    for offset in 0..4 {
        timeline.run(SECOND * 10 + BEAT * offset / 2);
        timeline.world.hung_until = timeline.world.now + SECOND * 5;
        let (began, end) = (timeline.world.now, timeline.world.hung_until);
        timeline.run(SECOND * 6);
        // Windows that were not reported when it began wait for its end.
        let waited = timeline.reported_at.iter().filter(|(_, at)| **at >= began).map(|(from, _)| *from);
        for from in waited.collect::<Vec<_>>() {
            timeline.closed_at.entry(from).and_modify(|closed_at| *closed_at = (*closed_at).max(end));
        }
    }
    timeline.check(Duration::ZERO, millis(200), 0, 0);
}

#[test]
fn commits_that_take_two_seconds() {
    let mut timeline = Timeline::start(3, Delays { commit: SECOND * 2, ..DELAYS });
    timeline.run(SECOND * 60);
    timeline.check(Duration::ZERO, SECOND * 8, 8, 0);
}

#[test]
fn window_without_any_partial() {
    // The first member gets all partitions, the second none.
    let mut timeline = Timeline::start(1, DELAYS);
    timeline.world.add_member(false);
    timeline.run(SECOND * 10);
    timeline.forget();
    timeline.kill(0);
    timeline.check(Duration::ZERO, millis(1_300), 1, 6 * 9);
}

#[test]
fn single_member_killed_and_started_again() {
    let mut timeline = Timeline::start(1, DELAYS);
    timeline.kill(0);
    timeline.run(SECOND * 2);
    timeline.world.add_member(false);
    let started = timeline.world.now;
    timeline.check(started, millis(2_500), 1, 6 * 12);
}

#[test]
fn pulse_stopped_for_a_minute() {
    let mut timeline = Timeline::start(3, DELAYS);
    timeline.pulse_runs = false;
    timeline.run(SECOND * 60);
    timeline.pulse_runs = true;
    timeline.check(Duration::ZERO, millis(100), 0, 0);
}

#[test]
fn members_of_the_version_before_replaced_one_by_one() {
    let mut timeline = Timeline::empty(SETUP);
    (0..3).for_each(|_| timeline.world.add_member(true));
    timeline.run(SECOND * 15);
    timeline.forget();
    for _ in 0..3 {
        timeline.world.add_member(false);
        timeline.run(SECOND * 5);
        let old = timeline.world.members.iter().position(|member| member.is_old).expect("an old member is left");
        timeline.world.remove(old, false);
        timeline.run(SECOND * 5);
    }
    // An old member that gets partition 0 takes the merge from a new one.
    timeline.check(Duration::ZERO, millis(1_300), 3, 12);
}

#[test]
fn member_joins_and_leaves_in_good_order() {
    let mut timeline = Timeline::start(3, DELAYS);
    timeline.world.add_member(false);
    timeline.run(SECOND * 5);
    timeline.world.remove(timeline.member(false), false);
    timeline.check(Duration::ZERO, millis(200), 0, 0);
}

#[test]
fn merging_member_leaves_in_good_order() {
    let mut timeline = Timeline::start(3, DELAYS);
    timeline.world.remove(timeline.member(true), false);
    timeline.check(Duration::ZERO, millis(300), 1, 0);
}

#[test]
fn group_of_a_hundred_members() {
    let mut timeline = Timeline::start_with(Setup { members: 101, ..SETUP }, 100);
    // Most members own no partition, and each could take over.
    timeline.kill(timeline.member(true));
    timeline.run(SECOND * 8);
    (0..50).for_each(|_| timeline.kill(0));
    timeline.check(Duration::ZERO, millis(2_000), 2, 2 * 6 * 9);
}

#[test]
fn overloaded_group_reads_few_claims_twice() {
    let setup = Setup { claims_per_turn: 1, ..SETUP };
    let mut timeline = Timeline::start_with(setup, 3);
    // Three times as many as the members can read.
    timeline.claims = 200;
    timeline.run(SECOND * 20);
    timeline.claims = 1;
    timeline.run(SECOND * 90);
    timeline.check(Duration::ZERO, SECOND * 90, 2, 6 * 5);
}

#[test]
fn bars_of_two_hours() {
    const SLOW_TICK: Duration = Duration::from_millis(250);
    let mut timeline = Timeline::empty(Setup { bar_length: 120, ..SETUP });
    (timeline.tick, timeline.beat) = (SLOW_TICK, SECOND * 60);
    (0..3).for_each(|_| timeline.world.add_member(false));
    // A bar, and half of the next. Beats 0 and 1 come together.
    timeline.run(SECOND * 179 * 60);
    timeline.forget();
    let kill_one = |timeline: &mut Timeline, merging: bool| {
        timeline.tick = TICK;
        timeline.kill(timeline.member(merging));
        timeline.run(SECOND * 10);
        timeline.world.add_member(false);
        timeline.run(SECOND * 20);
        timeline.tick = SLOW_TICK;
    };
    kill_one(&mut timeline, true);
    timeline.run(SECOND * (60 * 60 - 35));
    // 5 s before the closing frame. Nobody merges yet.
    kill_one(&mut timeline, false);
    timeline.tick = TICK;
    assert_eq!(timeline.closed_at.len(), 1);
    timeline.check_delays(Duration::ZERO, millis(1_300), 1, 2);
    // Offsets are committed within two bars.
    timeline.tick = SLOW_TICK;
    timeline.run(SECOND * 4 * 3_600);
    timeline.check(Duration::ZERO, SECOND * 5, 2, 2 * 6);
}

#[test]
fn group_that_is_five_minutes_behind() {
    let mut timeline = Timeline::empty(SETUP);
    timeline.run(SECOND * 300);
    timeline.forget();
    (0..3).for_each(|_| timeline.world.add_member(false));
    let started = timeline.world.now;
    timeline.check(started, SECOND * 20, 2, 60);
}

#[test]
fn offsets_reset_to_the_earliest() {
    let mut timeline = Timeline::start(3, DELAYS);
    timeline.run(SECOND * 60);
    timeline.forget();
    (0..3).for_each(|_| timeline.world.remove(0, false));
    timeline.reset_offsets(|log| log.log_start);
    (0..3).for_each(|_| timeline.world.add_member(false));
    let started = timeline.world.now;
    timeline.check(started, millis(1_300), 1, 0);
}

#[test]
fn offsets_reset_past_windows_that_have_no_report() {
    let mut timeline = Timeline::start(3, DELAYS);
    (0..3).for_each(|_| timeline.world.remove(0, false));
    timeline.run(SECOND);
    // More than the merge rescues, in one window of several.
    let many = repeat_n(Record::Control, MAX_RESCUED_CLAIMS as usize + 1);
    timeline.world.kafka.claims[0].records.extend(many);
    timeline.run(SECOND * 3);
    timeline.reset_offsets(ClaimLog::end);
    (0..3).for_each(|_| timeline.world.add_member(false));
    let started = timeline.world.now;
    timeline.check(started, SECOND * 4, 1, 6 * 5);
}
