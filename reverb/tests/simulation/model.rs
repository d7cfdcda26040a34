//! The reports by brute force, from all frames and all claims that were ever written, and the names of the checks.

use std::collections::{BTreeMap, BTreeSet};

use backbeat_reverb::core::{Claim, LOGIC, TaskFacts, partition_of};
use backbeat_schemas::{BarReport, BarRoster, BeatFrame, BeatIndex, RosterEntry, State};

use crate::kafka::{ClaimLog, Record};

pub(crate) const ONE_REPORT: &str = "one report per window";
pub(crate) const BYTES: &str = "each report equals that of the log, byte for byte";
pub(crate) const WHOLE: &str = "no report of a window whose claims are not wholly retained";
pub(crate) const COMPLETE: &str = "every wholly retained window has a report";
pub(crate) const CONSERVED: &str = "every claim is in one report, once";
pub(crate) const DEAD_LETTERS: &str = "no partial without its dead letters";
pub(crate) const ROSTERS: &str = "each roster equals that of the log, and no report without its rosters";
pub(crate) const MEMORY: &str = "memory within its bound";
pub(crate) const CLOSED: &str = "every window is done soon after faults end";
pub(crate) const QUIET: &str = "no takeover once faults have ended";
pub(crate) const COMMITTED: &str = "every done window is committed soon after faults end";

/// The way in which one record counts.
enum Classification<'l> {
    /// In this partition.
    Counted(usize, &'l Claim<'static>),
    Late(usize, &'l Claim<'static>),
    Invalid,
}

/// A partition, an agent and a task.
type TaskKey<'l> = (usize, &'l str, &'l str);

/// The windows and their claims.
pub(crate) struct Model<'l> {
    frames: &'l [BeatFrame],
    /// By downbeat, the records that count in the window's report.
    classifications: BTreeMap<i64, Vec<Classification<'l>>>,
    /// The invalid records, as (partition, offset, downbeat of the window that owns the offset).
    pub(crate) invalid: Vec<(i32, i64, i64)>,
}

fn boundary(frame: &BeatFrame, partition: usize) -> i64 {
    frame.claim_offsets.get(partition).copied().unwrap_or(0)
}

impl<'l> Model<'l> {
    pub(crate) fn new(frames: &'l [BeatFrame], claims: &'l [ClaimLog]) -> Self {
        let mut model = Self { frames, classifications: BTreeMap::new(), invalid: Vec::new() };
        for (partition, log) in claims.iter().enumerate() {
            for (offset, record) in (0..).zip(&log.records) {
                let Some(arrival) = frames.iter().rposition(|frame| boundary(frame, partition) <= offset) else {
                    continue;
                };
                let owner = model.opening(arrival as i64).beat_index.get();
                let (window, classification) = match record {
                    Record::Control => continue,
                    Record::Claim(claim) if (0..=arrival as i64).contains(&claim.beat) => {
                        let opening = model.opening(claim.beat);
                        let end = opening.beat_index.get() + i64::from(opening.bar_length) - 1;
                        if arrival as i64 <= end + i64::from(opening.grace_beats) {
                            (opening.beat_index.get(), Classification::Counted(partition, claim))
                        } else {
                            (owner, Classification::Late(partition, claim))
                        }
                    }
                    Record::Claim(_) | Record::Broken => {
                        model.invalid.push((partition as i32, offset, owner));
                        (owner, Classification::Invalid)
                    }
                };
                model.classifications.entry(window).or_default().push(classification);
            }
        }
        model
    }

    fn opening(&self, beat: i64) -> &'l BeatFrame {
        self.frames[..=beat as usize].iter().rfind(|frame| frame.downbeat).expect("beat 0 is a downbeat")
    }

    /// Returns the downbeats of the windows whose closing beat was published.
    pub(crate) fn windows(&self) -> impl Iterator<Item = &'l BeatFrame> {
        self.frames.iter().filter(|frame| frame.downbeat && self.closing(frame).is_some())
    }

    pub(crate) fn closing(&self, opening: &BeatFrame) -> Option<&'l BeatFrame> {
        let beat = opening.beat_index.get() + i64::from(opening.bar_length) + i64::from(opening.grace_beats);
        self.frames.get(beat as usize)
    }

    /// Returns true if all claims of the window's range and of the window before it are retained, given the log start offsets.
    pub(crate) fn is_whole(&self, opening: &BeatFrame, log_starts: &BTreeMap<i32, i64>) -> bool {
        let first = self.previous(opening).unwrap_or(opening);
        log_starts.iter().all(|(partition, log_start)| boundary(first, *partition as usize) >= *log_start)
    }

    /// Returns the downbeat of the window before.
    fn previous(&self, opening: &BeatFrame) -> Option<&'l BeatFrame> {
        Some(self.opening(opening.beat_index.previous()?.get()))
    }

    fn classifications(&self, opening: &BeatFrame) -> &[Classification<'l>] {
        self.classifications.get(&opening.beat_index.get()).map_or(&[][..], Vec::as_slice)
    }

    /// Returns the counted claims of a window, by task and in the order of their offsets.
    fn tasks(&self, opening: &BeatFrame) -> BTreeMap<TaskKey<'l>, Vec<&'l Claim<'static>>> {
        let mut tasks = BTreeMap::<_, Vec<_>>::new();
        for classification in self.classifications(opening) {
            if let Classification::Counted(partition, claim) = classification {
                tasks.entry((*partition, &*claim.agent, &*claim.task)).or_default().push(*claim);
            }
        }
        tasks
    }

    /// Returns the rosters of the window that opens with `opening`, of the partitions in which somebody needs attention.
    pub(crate) fn rosters(&self, opening: &BeatFrame) -> Vec<BarRoster> {
        let closing = self.closing(opening).expect("the closing frame was published");
        let next = &self.frames[opening.beat_index.get() as usize + usize::from(opening.bar_length)];
        let partitions = closing.claim_offsets.len();
        let tasks = self.tasks(opening);
        let before = self.previous(opening);
        let tasks_before = before.map(|before| self.tasks(before)).unwrap_or_default();
        let last = |claims: &[&'l Claim<'static>]| {
            *claims.iter().enumerate().max_by_key(|(place, claim)| (claim.beat, *place)).expect("a task has claims").1
        };
        let is_ended = |claim: &Claim<'_>| matches!(claim.state, State::Done | State::Failed);
        let mut heard: BTreeSet<(usize, &str)> =
            tasks.keys().map(|(partition, agent, _)| (*partition, *agent)).collect();
        for classification in self.classifications(opening) {
            if let Classification::Late(partition, claim) = classification {
                heard.insert((*partition, &*claim.agent));
            }
        }
        let moves = before.is_some_and(|before| before.claim_offsets.len() != partitions);
        let mut silent = BTreeMap::<(usize, &str), &Claim<'_>>::new();
        for ((partition, agent, _), claims) in &tasks_before {
            let claim = last(claims);
            let is_judged = !moves || partition_of(agent.as_bytes(), partitions) == *partition;
            if !is_ended(claim) && is_judged && !heard.contains(&(*partition, *agent)) {
                // Tasks come in the order of their names.
                let newest = silent.entry((*partition, *agent)).or_insert(claim);
                if claim.beat > newest.beat {
                    *newest = claim;
                }
            }
        }
        let is_stalled = |(key, claims): &(&TaskKey<'l>, &Vec<&'l Claim<'static>>)| {
            let Some(earlier) = tasks_before.get(*key) else { return false };
            let (was, is) = (last(earlier), last(claims));
            let ended = earlier.iter().chain(*claims).any(|claim| is_ended(claim));
            !ended && was.state == is.state && is.progress <= was.progress
        };
        let stalled: Vec<_> = tasks.iter().filter(is_stalled).map(|(key, claims)| (key.0, last(claims))).collect();
        let overdrawn: Vec<_> = tasks.iter().map(|(key, claims)| (key.0, last(claims))).collect();
        let overdrawn = overdrawn.into_iter().filter(|(_, claim)| !is_ended(claim) && claim.beats_left < 0);
        let overdrawn: Vec<_> = overdrawn.collect();
        let silent: Vec<_> = silent.into_iter().map(|((partition, _), claim)| (partition, claim)).collect();
        let roster = |partition: usize| {
            let of = |claims: &[(usize, &Claim<'_>)]| {
                let of_partition = claims.iter().filter(|(of, _)| *of == partition);
                of_partition.map(|(_, claim)| entry(claim)).collect::<Vec<RosterEntry>>()
            };
            let (silent, stalled, overdrawn) = (of(&silent), of(&stalled), of(&overdrawn));
            BarRoster {
                r#type: Default::default(),
                window_id: opening.window_id,
                from_beat: opening.beat_index,
                cluster_id: opening.cluster_id.clone(),
                closed_at: next.scheduled_at,
                partition: partition as i32,
                logic: LOGIC,
                agents_fell_silent: silent.len() as i64,
                tasks_stalled: stalled.len() as i64,
                tasks_overdrawn: overdrawn.len() as i64,
                silent,
                stalled,
                overdrawn,
            }
        };
        let rosters = (0..partitions).map(roster);
        rosters.filter(|r| r.agents_fell_silent + r.tasks_stalled + r.tasks_overdrawn > 0).collect()
    }

    /// Returns the number of records below the boundary of `frame`.
    pub(crate) fn records_below(frame: &BeatFrame, claims: &[ClaimLog]) -> usize {
        let below = |(partition, log): (usize, &ClaimLog)| {
            let records = &log.records[..boundary(frame, partition) as usize];
            records.iter().filter(|record| !matches!(record, Record::Control)).count()
        };
        claims.iter().enumerate().map(below).sum()
    }

    /// Returns the report of the window that opens with `opening`, by the rules of version `logic`.
    pub(crate) fn report(&self, opening: &BeatFrame, logic: i32) -> BarReport {
        let rosters = if logic == 1 { Vec::new() } else { self.rosters(opening) };
        let from = opening.beat_index.get();
        let end = from + i64::from(opening.bar_length);
        let (bar, next) = (&self.frames[from as usize..end as usize], &self.frames[end as usize]);
        let partitions = self.closing(opening).expect("the closing frame was published").claim_offsets.len();
        let classifications = self.classifications(opening);
        let counted = || {
            classifications.iter().filter_map(|classification| {
                if let Classification::Counted(partition, claim) = classification {
                    Some((*partition, *claim))
                } else {
                    None
                }
            })
        };
        // Distinct in each partition.
        let agents = |wanted: &dyn Fn(usize, &Claim<'_>) -> bool| {
            let wanted = counted().filter(|(partition, claim)| wanted(*partition, claim));
            wanted.map(|(partition, claim)| (partition, &claim.agent)).collect::<BTreeSet<_>>().len() as i64
        };
        let tasks = |fact: TaskFacts| {
            let wanted = counted().filter(|(_, claim)| claim.facts.contains(fact));
            let tasks = wanted.map(|(partition, claim)| (partition, &claim.agent, &claim.task));
            tasks.collect::<BTreeSet<_>>().len() as i64
        };
        let misplaced = agents(&|partition, claim| partition_of(claim.agent.as_bytes(), partitions) != partition);
        let late =
            classifications.iter().filter(|classification| matches!(classification, Classification::Late(..))).count();
        let invalid =
            classifications.iter().filter(|classification| matches!(classification, Classification::Invalid)).count();
        let degraded_beats = bar.iter().filter(|frame| frame.degraded).count();
        let degraded_claims = counted().filter(|(_, claim)| claim.degraded).count();
        let failed_rotations = agents(&|_, claim| claim.rotation_failed);
        let mut issues: Vec<String> = [
            (late, "late claims"),
            (invalid, "invalid claims"),
            (misplaced as usize, "agents with claims in other partitions than theirs"),
            (degraded_beats, "degraded beats"),
            (degraded_claims, "degraded claims"),
            (failed_rotations as usize, "agents failed secret rotation"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, label)| format!("{count} {label}"))
        .collect();
        issues.sort();
        BarReport {
            r#type: Default::default(),
            window_id: opening.window_id,
            from_beat: opening.beat_index,
            to_beat: BeatIndex::try_from(end - 1).expect("the beat index is not negative"),
            agents_reporting: agents(&|_, _| true),
            on_time_reviews: tasks(TaskFacts::ON_TIME_REVIEW),
            help_promises_fulfilled: tasks(TaskFacts::HELP_FULFILLED),
            secret_rotations_ok: failed_rotations == 0,
            tempo_drift_ms: bar.iter().map(|f| f.emitted_at.millis() - f.scheduled_at.millis()).max().unwrap_or(0),
            issues,
            cluster_id: opening.cluster_id.clone(),
            opened_at: opening.scheduled_at,
            closed_at: next.scheduled_at,
            claims: counted().count() as i64,
            late_claims: late as i64,
            invalid_claims: invalid as i64,
            tasks_done: tasks(TaskFacts::DONE),
            tasks_failed: tasks(TaskFacts::FAILED),
            degraded_beats: degraded_beats as i64,
            degraded_claims: degraded_claims as i64,
            grace_beats: opening.grace_beats,
            from_offsets: (0..partitions).map(|partition| boundary(opening, partition)).collect(),
            to_offsets: (0..partitions).map(|partition| boundary(next, partition)).collect(),
            logic,
            agents_fell_silent: rosters.iter().map(|roster| roster.agents_fell_silent).sum(),
            tasks_stalled: rosters.iter().map(|roster| roster.tasks_stalled).sum(),
            tasks_overdrawn: rosters.iter().map(|roster| roster.tasks_overdrawn).sum(),
        }
    }
}

fn entry(claim: &Claim<'_>) -> RosterEntry {
    RosterEntry {
        agent_id: claim.agent.to_string(),
        task_id: claim.task.to_string(),
        beat_index: BeatIndex::try_from(claim.beat).expect("a counted claim names a beat"),
        state: claim.state,
        progress: claim.progress,
        beats_left: claim.beats_left,
    }
}
