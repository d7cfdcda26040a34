//! The simulated world: pulse, agents, the group, and the faults.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use backbeat_reverb::core::{Claim, CommittedOffset, LOGIC, RESEND_AFTER, TaskFacts, partition_of};
use backbeat_schemas::{BarReport, BeatFrame, BeatIndex, HlcClock, Phase, State, Timestamp, WindowId, testing};
use backbeat_simulation::{Violation, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::counts::Counts;
use crate::kafka::{ClaimLog, Kafka, Record};
use crate::member::{AssignmentChange, Context, Delays, Member};
use crate::model::{self, Model};

/// Steps in the phase with faults.
const STEPS: usize = 4_000;
const MAX_MEMBERS: usize = 4;
const MAX_PARTITIONS: usize = 5;
const MAX_BAR: u16 = 6;
/// Once faults end, a window has this many beats to become done: two bars and their graces until a set is known to be
/// incomplete for good, and as many for the windows that wait behind it.
const BEATS_TO_CLOSE: usize = 30;
/// Turns of all members within one of those beats, which take a minute each.
const TURNS_PER_BEAT: u32 = 40;
/// The takeover timeout: long, since a member's loop turns once in a second or so.
const TAKEOVER_AFTER: Duration = Duration::from_secs(10);
const DELAYS: Delays = Delays {
    request: Duration::from_millis(300),
    commit: Duration::ZERO,
    slow_share: 0.05,
    slow: Duration::from_secs(20),
    start: Duration::ZERO,
    read: Duration::from_secs(1),
};

/// Some states, the open ones more often.
const STATES: [State; 6] =
    [State::Executing, State::Executing, State::Waiting, State::Review, State::Done, State::Failed];

/// An invariant to break on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    ReportsIgnored,
    NoFence,
    ClaimLost,
    RetentionIgnored,
    CommitAhead,
    PartialsLost,
    DoneRecordsIgnored,
    TableNotTruncated,
    DeadLettersLost,
    ClaimsCountedTwice,
    RescueShort,
    RescueWithoutDeadLetters,
    RostersLost,
    RescueWithoutRosters,
    TakesOverAlways,
    NeverTakesOver,
}

impl Sabotage {
    pub(crate) const ALL: [Self; 16] = [
        Self::ReportsIgnored,
        Self::NoFence,
        Self::ClaimLost,
        Self::RetentionIgnored,
        Self::CommitAhead,
        Self::PartialsLost,
        Self::DoneRecordsIgnored,
        Self::TableNotTruncated,
        Self::DeadLettersLost,
        Self::ClaimsCountedTwice,
        Self::RescueShort,
        Self::RescueWithoutDeadLetters,
        Self::RostersLost,
        Self::RescueWithoutRosters,
        Self::TakesOverAlways,
        Self::NeverTakesOver,
    ];

    pub(crate) fn caught_by(self) -> &'static str {
        match self {
            Self::ReportsIgnored | Self::NoFence => model::ONE_REPORT,
            Self::ClaimLost | Self::RescueShort => model::BYTES,
            Self::RetentionIgnored => model::WHOLE,
            Self::CommitAhead => model::COMPLETE,
            Self::NeverTakesOver => model::CLOSED,
            Self::PartialsLost | Self::DoneRecordsIgnored => model::COMMITTED,
            Self::TableNotTruncated => model::MEMORY,
            Self::DeadLettersLost | Self::RescueWithoutDeadLetters => model::DEAD_LETTERS,
            Self::RostersLost | Self::RescueWithoutRosters => model::ROSTERS,
            Self::TakesOverAlways => model::QUIET,
            Self::ClaimsCountedTwice => model::CONSERVED,
        }
    }
}

/// The settings of a world.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    /// The largest number of members.
    pub(crate) members: usize,
    pub(crate) partitions: usize,
    /// The length of the first bar.
    pub(crate) bar_length: u16,
    /// True if bars change their lengths.
    pub(crate) bars_change: bool,
    pub(crate) grace: u16,
    /// The share of claims that are not where murmur2 places them.
    pub(crate) misplaced: f64,
    pub(crate) takeover_after: Duration,
    pub(crate) delays: Delays,
    /// The number of claims of a partition that a member reads in a turn, at most.
    pub(crate) claims_per_turn: usize,
    /// True if some members are of the version before the lease.
    pub(crate) has_old_members: bool,
}

impl Setup {
    fn random(rng: &mut ChaCha8Rng) -> Self {
        let bar_length = rng.random_range(1..=MAX_BAR);
        Self {
            members: MAX_MEMBERS,
            partitions: rng.random_range(2..=3),
            bar_length,
            bars_change: true,
            grace: rng.random_range(0..=bar_length),
            misplaced: if rng.random_bool(0.3) { 0.1 } else { 0.0 },
            takeover_after: TAKEOVER_AFTER,
            delays: DELAYS,
            claims_per_turn: 50,
            has_old_members: rng.random_bool(0.3),
        }
    }
}

pub(crate) struct World {
    rng: ChaCha8Rng,
    sabotage: Option<Sabotage>,
    setup: Setup,
    pub(crate) now: Duration,
    pub(crate) kafka: Kafka,
    pub(crate) members: Vec<Member>,
    /// The number of members that were ever started.
    names: u64,
    hlc: HlcClock,
    bar_length: u16,
    partials_were_lost: bool,
    /// True if a member of the version before the rosters was ever started.
    had_old_members: bool,
    pub(crate) is_calm: bool,
    /// Until then, Kafka answers nothing.
    pub(crate) hung_until: Duration,
    pub(crate) counts: Counts,
    trace: String,
}

impl World {
    pub(crate) fn new(seed: u64, sabotage: Option<Sabotage>) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let setup = Setup::random(&mut rng);
        Self::with(rng, setup, sabotage)
    }

    pub(crate) fn with(rng: ChaCha8Rng, setup: Setup, sabotage: Option<Sabotage>) -> Self {
        let mut kafka = Kafka::default();
        kafka.claims.resize_with(setup.partitions, ClaimLog::default);
        kafka.no_fence = sabotage == Some(Sabotage::NoFence);
        Self {
            rng,
            sabotage,
            setup,
            now: Duration::ZERO,
            kafka,
            members: Vec::new(),
            names: 0,
            hlc: HlcClock::new(1),
            bar_length: setup.bar_length,
            partials_were_lost: false,
            had_old_members: false,
            is_calm: false,
            hung_until: Duration::ZERO,
            counts: Counts::default(),
            trace: String::new(),
        }
    }

    pub(crate) fn trace(&self) -> &str {
        &self.trace
    }

    pub(crate) fn into_trace(self) -> String {
        self.trace
    }

    /// Returns what a step of a member sees, and the members.
    fn parts(&mut self) -> (&mut Vec<Member>, Context<'_>) {
        let Self { members, kafka, rng, now, sabotage, setup, is_calm, hung_until, counts, .. } = self;
        let context = Context {
            kafka,
            rng,
            now: *now,
            sabotage: *sabotage,
            is_calm: *is_calm,
            takeover_after: setup.takeover_after,
            delays: setup.delays,
            claims_per_turn: setup.claims_per_turn,
            is_hung: now < hung_until,
            counts,
        };
        (members, context)
    }

    /// Runs a phase with faults, then one without. Returns the number of reports.
    pub(crate) fn run(&mut self) -> Result<u64, Violation> {
        self.beat();
        for _ in 0..STEPS {
            self.now += Duration::from_millis(self.rng.random_range(0..100));
            match self.rng.random_range(0..1_000) {
                0..40 => self.beats(),
                40..140 => self.claim(),
                140..160 => self.coordinate(),
                160..170 => self.fault(),
                _ => self.step()?,
            }
        }
        self.end_faults();
        let mut takeovers = 0;
        for beat in 0..2 * BEATS_TO_CLOSE {
            if beat == 5 && self.partials_were_lost {
                self.now += RESEND_AFTER;
            }
            if beat == BEATS_TO_CLOSE {
                takeovers = self.counts.get("taken over");
            }
            self.beat();
            for turn in 0..TURNS_PER_BEAT {
                self.now += Duration::from_mins(1) / TURNS_PER_BEAT;
                if turn % 10 == 0 {
                    self.claim();
                    self.coordinate();
                }
                self.turn_all()?;
            }
        }
        let takeovers = self.counts.get("taken over") - takeovers;
        ensure(takeovers == 0, model::QUIET, || format!("{takeovers} takeovers"))?;
        self.check()
    }

    fn log(&mut self, entry: std::fmt::Arguments<'_>) {
        writeln!(self.trace, "{:>9} {entry}", self.now.as_millis()).expect("writing to a String does not fail");
    }

    /// Lets each member that is not paused do its loop once.
    pub(crate) fn turn_all(&mut self) -> Result<(), Violation> {
        for index in 0..self.members.len() {
            if !self.members[index].is_paused {
                self.act(index, Member::turn)?;
            }
        }
        Ok(())
    }

    /// Lets the member at `index` do `act`, and logs its state if that has written something.
    fn act(
        &mut self,
        index: usize,
        act: impl FnOnce(&mut Member, &mut Context<'_>) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        let before = (self.kafka.partials.end(), self.kafka.reports.end());
        let (members, mut context) = self.parts();
        act(&mut members[index], &mut context)?;
        let after = (self.kafka.partials.end(), self.kafka.reports.end());
        if before != after {
            let state = self.members[index].state();
            self.log(format_args!("{state}: partials end at {}, reports at {}", after.0, after.1));
        }
        Ok(())
    }

    /// Does one step of a random member, if there is one.
    fn step(&mut self) -> Result<(), Violation> {
        if self.members.is_empty() {
            return Ok(());
        }
        let index = self.rng.random_range(0..self.members.len());
        if self.members[index].is_paused {
            return Ok(());
        }
        let merges = self.rng.random_bool(0.3);
        self.act(index, |member, context| match (merges, context.is_hung) {
            (true, _) => member.step_merge(context),
            (false, false) => member.step(context),
            (false, true) => Ok(()),
        })
    }

    /// Publishes one beat, none, or several in a burst.
    fn beats(&mut self) {
        if self.now < self.hung_until {
            return;
        }
        let beats = if self.rng.random_bool(0.7) { 1 } else { self.rng.random_range(0..8) };
        (0..beats).for_each(|_| self.beat());
    }

    pub(crate) fn beat(&mut self) {
        let last = self.kafka.frames.last();
        let index = last.map_or(BeatIndex::ZERO, |last| last.beat_index.plus(1));
        let opening = self.kafka.frames.iter().rfind(|frame| frame.downbeat);
        let ends = opening.is_none_or(|frame| index.since(frame.beat_index) == i64::from(frame.bar_length));
        if ends && self.setup.bars_change && self.rng.random_bool(0.1) {
            self.bar_length = self.rng.random_range(1..=MAX_BAR);
        }
        let from = if ends { index } else { opening.expect("beat 0 opens a window").beat_index };
        let bar_length = opening.filter(|_| !ends).map_or(self.bar_length, |frame| frame.bar_length);
        let position = index.since(from) as u16;
        // A boundary may be stale, and the newest partitions may not be known yet.
        let known = last.map_or(1, |last| last.claim_offsets.len());
        let partitions = if self.rng.random_bool(0.8) { self.kafka.claims.len() } else { known };
        let stale = self.rng.random_range(0..6) * i64::from(self.rng.random_bool(0.3));
        let boundaries = self.kafka.claims[..partitions.max(known)].iter().enumerate();
        let before = |partition| last.and_then(|last| last.claim_offsets.get(partition)).copied().unwrap_or(0);
        let claim_offsets = boundaries.map(|(partition, log)| before(partition).max(log.end() - stale)).collect();
        let scheduled_at = Timestamp::from_millis(index.get() * 1_000);
        let emitted_at = scheduled_at.plus_millis(self.rng.random_range(0..5));
        let frame = BeatFrame {
            cluster_id: "sim".into(),
            beat_index: index,
            downbeat: position == 0,
            phase: Phase::of(position, bar_length),
            hlc: self.hlc.tick(emitted_at),
            window_id: WindowId::new("sim", from),
            grace_beats: self.setup.grace,
            scheduled_at,
            deadline_at: scheduled_at.plus_millis(1_000),
            emitted_at,
            degraded: self.rng.random_bool(0.05),
            claim_offsets,
            ..testing::frame(0, bar_length)
        };
        self.log(format_args!("beat {index}, {position} of {bar_length}, {:?}", frame.claim_offsets));
        self.kafka.frames.push(frame);
    }

    /// Lets some agents claim.
    pub(crate) fn claim(&mut self) {
        let newest = self.kafka.frames.last().map_or(0, |frame| frame.beat_index.get());
        for _ in 0..self.rng.random_range(1..5) {
            let rng = &mut self.rng;
            let agent = format!("a{}", rng.random_range(0..20));
            let partitions = self.kafka.claims.len();
            let partition = if rng.random_bool(self.setup.misplaced) {
                rng.random_range(0..partitions)
            } else {
                partition_of(agent.as_bytes(), partitions) as usize
            };
            let beat = match rng.random_range(0..20) {
                0 => newest + rng.random_range(1..4),
                1 => rng.random_range(-1..=newest),
                2..6 => newest - rng.random_range(0..3),
                _ => newest,
            };
            let state = STATES[rng.random_range(0..STATES.len())];
            let mut facts: TaskFacts = TaskFacts::all().iter().filter(|_| rng.random_bool(0.3)).collect();
            facts.set(TaskFacts::DONE, state == State::Done);
            facts.set(TaskFacts::FAILED, state == State::Failed);
            let claim = Claim {
                state,
                beats_left: rng.random_range(-1..3),
                progress: f64::from(rng.random_range(0..3)) / 2.0,
                facts,
                rotation_failed: rng.random_bool(0.3),
                degraded: rng.random_bool(0.3),
                agent: agent.into(),
                task: format!("t{}", rng.random_range(0..3)).into(),
                beat,
            };
            let record = match rng.random_range(0..20) {
                0 => Record::Broken,
                1 => Record::Control,
                _ => Record::Claim(claim),
            };
            self.kafka.claims[partition].records.push(record);
        }
    }

    /// Does the group coordinator's periodic work: admits members and assigns partitions without an owner.
    fn coordinate(&mut self) {
        for member in &self.members {
            if !member.is_paused && member.changes.is_empty() {
                self.kafka.members.insert(member.name);
            }
        }
        let names: Vec<u64> = self.kafka.members.iter().copied().collect();
        let unowned =
            (0..self.kafka.claims.len() as i32).filter(|id| !self.kafka.owners.contains_key(id)).collect::<Vec<_>>();
        for partition in unowned {
            if names.is_empty() {
                return;
            }
            let name = names[self.rng.random_range(0..names.len())];
            let Some(member) = self.members.iter_mut().find(|member| member.name == name) else { continue };
            member.changes.push_back(AssignmentChange::Assigned(partition));
            self.kafka.owners.insert(partition, name);
            self.log(format_args!("partition {partition} is assigned to {name}"));
        }
    }

    fn fault(&mut self) {
        let member = (!self.members.is_empty()).then(|| self.rng.random_range(0..self.members.len()));
        match (self.rng.random_range(0..15), member) {
            (0..2, _) => {
                let is_old = self.setup.has_old_members && self.rng.random_bool(0.5);
                self.add_member(is_old);
            }
            (2, Some(index)) => self.remove(index, true),
            (3, Some(index)) => self.remove(index, false),
            (4, Some(index)) => self.members[index].is_paused = true,
            (5..7, Some(index)) => self.expire(index),
            (7, Some(index)) => self.members[index].is_paused = false,
            (8, Some(_)) => self.rebalance(),
            (9, _) => self.retain(),
            (10, _) => self.lose_partials(),
            (11, _) => self.repeat_a_partial(),
            (12, _) if self.kafka.is_open() => drop(self.kafka.init_transactions()),
            (12, _) if self.kafka.claims.len() < MAX_PARTITIONS && self.rng.random_bool(0.3) => {
                self.kafka.claims.push(ClaimLog::default());
            }
            (13, _) if self.rng.random_bool(0.5) => self.reset(),
            (14, _) => {
                self.hung_until = self.now + Duration::from_millis(self.rng.random_range(0..30_000));
                self.log(format_args!("kafka hangs until {} ms", self.hung_until.as_millis()));
            }
            _ => {}
        }
    }

    pub(crate) fn add_member(&mut self, is_old: bool) {
        if self.members.len() < self.setup.members {
            self.names += 1;
            self.had_old_members |= is_old;
            let name = self.names;
            let (members, context) = self.parts();
            members.push(Member::new(name, is_old, &context));
            self.log(format_args!("{name} starts"));
        }
    }

    /// Stops a member, by a signal or a kill.
    pub(crate) fn remove(&mut self, index: usize, killed: bool) {
        let member = self.members.swap_remove(index);
        let name = member.name;
        self.log(format_args!("{name} stops, killed: {killed}"));
        let (_, mut context) = self.parts();
        if killed || member.is_paused {
            member.kill(&mut context);
        } else {
            member.stop(&mut context);
        }
        self.evict(name);
    }

    /// Kills a member, without the knowledge of the group coordinator. Returns its name.
    pub(crate) fn kill(&mut self, index: usize) -> u64 {
        let member = self.members.swap_remove(index);
        let name = member.name;
        self.log(format_args!("{name} is killed"));
        let (_, mut context) = self.parts();
        member.kill(&mut context);
        name
    }

    /// Lets the session of a member time out that was killed, or that is paused.
    pub(crate) fn expire_session(&mut self, name: u64) {
        if let Some(index) = self.members.iter().position(|member| member.name == name) {
            self.expire(index);
        }
        self.evict(name);
    }

    /// Does the work of a cooperative assignor: gives each partition without an owner to the member with the fewest, and
    /// revokes one from a member that has two more than another. The group coordinator thinks that the `silent` live.
    pub(crate) fn assign_evenly(&mut self, silent: &BTreeSet<u64>) {
        let live = self.members.iter().filter(|member| member.changes.is_empty() && !member.is_paused);
        let live: Vec<u64> = live.map(|member| member.name).filter(|name| !silent.contains(name)).collect();
        self.kafka.members.extend(&live);
        for partition in 0..self.kafka.claims.len() as i32 {
            let load = |name: &u64| self.kafka.owners.values().filter(|owner| *owner == name).count();
            let Some(fewest) = live.iter().copied().min_by_key(load) else { return };
            let owner = self.kafka.owners.get(&partition).copied();
            let change = match owner {
                None => {
                    self.kafka.owners.insert(partition, fewest);
                    (fewest, AssignmentChange::Assigned(partition))
                }
                Some(owner) if live.contains(&owner) && load(&owner) >= load(&fewest) + 2 => {
                    (owner, AssignmentChange::Revoked(partition))
                }
                Some(_) => continue,
            };
            self.log(format_args!("{change:?}"));
            let member = self.members.iter_mut().find(|member| member.name == change.0).expect("it lives");
            member.changes.push_back(change.1);
            if matches!(change.1, AssignmentChange::Revoked(_)) {
                return;
            }
        }
    }

    /// Lets a paused member's session time out, without its knowledge.
    fn expire(&mut self, index: usize) {
        if self.members[index].is_paused {
            let name = self.members[index].name;
            self.members[index].changes.clear();
            self.members[index].changes.push_back(AssignmentChange::Lost);
            self.evict(name);
            self.log(format_args!("{name} is removed from the group"));
        }
    }

    fn evict(&mut self, name: u64) {
        self.kafka.members.remove(&name);
        self.kafka.owners.retain(|_, owner| *owner != name);
    }

    fn rebalance(&mut self) {
        let partition = self.rng.random_range(0..self.kafka.claims.len()) as i32;
        let owner = self.kafka.owners.get(&partition).copied();
        if let Some(member) = self.members.iter_mut().find(|member| Some(member.name) == owner) {
            member.changes.push_back(AssignmentChange::Revoked(partition));
        }
    }

    /// Lets retention delete the oldest records of a partition.
    fn retain(&mut self) {
        if self.rng.random_bool(0.3) {
            let partition = self.rng.random_range(0..self.kafka.claims.len());
            let log = &mut self.kafka.claims[partition];
            let (log_start, end) = (log.log_start, log.end());
            log.log_start = if self.rng.random_bool(0.2) {
                end
            } else {
                log_start + self.rng.random_range(0..=(end - log_start) / 2)
            };
            let log_start = log.log_start;
            self.log(format_args!("claims of {partition} below {log_start} of {end} are deleted"));
        }
    }

    fn lose_partials(&mut self) {
        if self.rng.random_bool(0.3) {
            self.partials_were_lost = true;
            let log_start = self.rng.random_range(self.kafka.partials.log_start..=self.kafka.partials.end());
            self.kafka.partials.log_start = log_start;
            self.log(format_args!("partials below {log_start} are deleted"));
        }
    }

    /// Repeats a partial, as a member does that resumes after it was replaced.
    fn repeat_a_partial(&mut self) {
        let all = self.kafka.read(&self.kafka.partials, 0).filter(|(_, record)| !record.is_done());
        let partials: Vec<_> = all.map(|(_, record)| record.clone()).collect();
        if !partials.is_empty() {
            let again = partials[self.rng.random_range(0..partials.len())].clone();
            self.log(format_args!("the partial of {} is repeated", again.from_beat));
            self.kafka.append(again);
        }
    }

    /// Stops the group and resets its offsets. Partition 0 is not reset past a window that is not done, so that no
    /// window is left out.
    fn reset(&mut self) {
        while !self.members.is_empty() {
            let killed = self.rng.random_bool(0.5);
            self.remove(0, killed);
        }
        let done: BTreeSet<BeatIndex> = self.reports().into_keys().collect();
        let open = self.kafka.frames.iter().find(|frame| frame.downbeat && !done.contains(&frame.beat_index));
        let oldest = open.map_or(0, |frame| frame.boundary(0));
        for (partition, log) in (0..).zip(&self.kafka.claims) {
            let mut offset = self.rng.random_range(0..=log.end());
            let before = self.kafka.committed.get(&partition).copied();
            if partition == 0 {
                offset = offset.min(oldest);
            }
            // The Kafka CLI removes the metadata; another tool may keep it.
            let downbeat = before.filter(|_| self.rng.random_bool(0.5)).and_then(|before| before.downbeat);
            self.kafka.committed.insert(partition, CommittedOffset { offset, downbeat });
        }
        let committed = format!("{:?}", self.kafka.committed);
        self.log(format_args!("reset to {committed}"));
        self.add_member(false);
    }

    /// Ends the phase with faults: at least two members run, and none is paused.
    pub(crate) fn end_faults(&mut self) {
        self.is_calm = true;
        self.log(format_args!("faults end"));
        self.members.iter_mut().for_each(|member| member.is_paused = false);
        while let Some(old) = self.members.iter().position(|member| member.is_old) {
            self.remove(old, false);
        }
        while self.members.len() < 2 {
            self.add_member(false);
        }
        if self.kafka.is_open() {
            self.kafka.init_transactions();
        }
    }

    /// Returns all visible reports, by their windows' downbeats.
    fn reports(&self) -> BTreeMap<BeatIndex, Vec<BarReport>> {
        let mut reports = BTreeMap::<_, Vec<_>>::new();
        for (_, report) in self.kafka.read(&self.kafka.reports, 0) {
            reports.entry(report.from_beat).or_default().push(report.clone());
        }
        reports
    }

    pub(crate) fn check(&self) -> Result<u64, Violation> {
        let Kafka { frames, claims, .. } = &self.kafka;
        let (model, reports, log_starts) = (Model::new(frames, claims), self.reports(), self.kafka.log_starts());
        let settled = frames.len() - BEATS_TO_CLOSE;
        let windows: Vec<&BeatFrame> =
            model.windows().filter(|opening| opening.beat_index.get() < settled as i64).collect();

        let all_there = windows.iter().all(|opening| reports.contains_key(&opening.beat_index));
        if let (true, Some(last)) = (all_there, reports.keys().next_back()) {
            let counted: i64 = reports.values().flatten().map(|r| r.claims + r.late_claims + r.invalid_claims).sum();
            let opening = frames.iter().find(|frame| frame.beat_index == *last).expect("the window was reported");
            let next = &frames[last.get() as usize + usize::from(opening.bar_length)];
            let closing = model.closing(opening).expect("the window was reported");
            let between = Model::records_below(next, claims) as i64..=Model::records_below(closing, claims) as i64;
            let once = reports.values().all(|reports| reports.len() == 1);
            ensure(!once || between.contains(&counted), model::CONSERVED, || format!("{counted}, not {between:?}"))?;
        }
        for (from, reports) in &reports {
            let opening = &frames[from.get() as usize];
            for report in reports {
                // The version before rosters is that of old members.
                ensure(report.logic == LOGIC || self.had_old_members, model::BYTES, || format!("{report:?}"))?;
                let expected = model.report(opening, report.logic);
                let check = if model.is_whole(opening, &log_starts) { model::BYTES } else { model::WHOLE };
                ensure(*report == expected, check, || format!("{report:?}\nnot {expected:?}"))?;
            }
            ensure(reports.len() == 1, model::ONE_REPORT, || format!("{} of window {from}", reports.len()))?;
        }
        for opening in &windows {
            let expected = model.rosters(opening);
            let is_written_by_all = reports.get(&opening.beat_index).is_some_and(|reports| reports[0].logic == LOGIC);
            for roster in expected {
                let written = self.kafka.rosters.get(&(roster.from_beat, roster.partition));
                let are_equal = written.is_some_and(|written| written.iter().all(|written| *written == roster));
                ensure(are_equal || (written.is_none() && !is_written_by_all), model::ROSTERS, || {
                    format!("{written:?}\nnot {roster:?}")
                })?;
            }
        }
        let (done, partials) = (self.done(), self.partials());
        for opening in &windows {
            let from = opening.beat_index;
            let may_be_missing = !model.is_whole(opening, &log_starts);
            let has_partial = partials.iter().any(|(_, window)| *window == from.get());
            ensure(!has_partial || reports.contains_key(&from) || done.contains(&from), model::CLOSED, || {
                format!("window {from} of {} beats", frames.len())
            })?;
            ensure(may_be_missing || reports.contains_key(&from), model::COMPLETE, || format!("window {from}"))?;
        }
        for (partition, committed) in &self.kafka.committed {
            let downbeat = committed.downbeat.unwrap_or(-1);
            ensure(downbeat >= settled as i64, model::COMMITTED, || {
                format!("partition {partition} at {committed:?} of {} beats", frames.len())
            })?;
        }
        for (partition, offset, owner) in &model.invalid {
            let sent = self.kafka.dead_letters.contains(&(*partition, *offset));
            let due = *offset >= log_starts[partition] && partials.contains(&(*partition, *owner));
            ensure(sent || !due, model::DEAD_LETTERS, || format!("{partition}/{offset}"))?;
        }
        Ok(reports.len() as u64)
    }

    /// Returns the windows with a done record.
    fn done(&self) -> BTreeSet<BeatIndex> {
        let records = self.kafka.read(&self.kafka.partials, 0);
        records.filter(|(_, record)| record.is_done()).map(|(_, record)| record.from_beat).collect()
    }

    /// Returns the partitions and windows with a partial.
    fn partials(&self) -> BTreeSet<(i32, i64)> {
        let records = self.kafka.read(&self.kafka.partials, 0);
        records.filter_map(|(_, record)| Some((record.partial()?.partition, record.from_beat.get()))).collect()
    }
}
