//! The rosters that the claims in the log demand, and their comparison with the published ones.
//!
//! This shares no code with reverb.

use std::collections::{BTreeMap, HashMap, HashSet};

use backbeat_schemas::{BarRoster, BorrowedClaim, RosterEntry, RosterKind, State};

/// The names that a mismatch shows.
const MAX_SHOWN: usize = 10;

/// The claims of one window, as far as rosters need them.
#[derive(Debug, Default)]
pub(crate) struct RosterClaims {
    /// By partition, agent and task.
    tasks: HashMap<(i32, String, String), Task>,
    /// The partitions and agents with a claim, be it late.
    heard: HashSet<(i32, String)>,
    published: HashMap<i32, BarRoster>,
}

#[derive(Debug)]
struct Task {
    last: RosterEntry,
    has_ended: bool,
}

/// The difference between a roster and the log.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RosterDifference {
    /// Agents that must be named and are not, the first by name.
    pub(crate) missing: Vec<String>,
    /// Agents that must not be named, the first by name.
    pub(crate) unexpected: Vec<String>,
}

fn has_ended(state: State) -> bool {
    matches!(state, State::Done | State::Failed)
}

impl RosterClaims {
    /// Records a claim that counts in the window. Those of a partition come in the order of their offsets.
    pub(crate) fn record_counted(&mut self, partition: i32, claim: &BorrowedClaim<'_>) {
        let Ok(beat_index) = claim.beat_index.try_into() else { return };
        let last = RosterEntry {
            agent_id: claim.agent_id.clone().into_owned(),
            task_id: claim.task_id.clone().into_owned(),
            beat_index,
            state: claim.state,
            progress: claim.progress,
            beats_left: claim.beats_left,
        };
        self.heard.insert((partition, last.agent_id.clone()));
        let ended = has_ended(last.state);
        let key = (partition, last.agent_id.clone(), last.task_id.clone());
        let task = self.tasks.entry(key).or_insert_with(|| Task { last: last.clone(), has_ended: false });
        task.has_ended |= ended;
        if last.beat_index >= task.last.beat_index {
            task.last = last;
        }
    }

    /// Records a late claim that arrived in the window.
    pub(crate) fn record_late(&mut self, partition: i32, agent: &str) {
        self.heard.insert((partition, agent.to_owned()));
    }

    /// Records a published roster; it replaces an earlier one of the same partition.
    pub(crate) fn record_roster(&mut self, roster: BarRoster) {
        self.published.insert(roster.partition, roster);
    }

    /// Returns the entries of one kind by agent and task. `previous` are the claims of the window before.
    pub(crate) fn expected(&self, kind: RosterKind, previous: &Self) -> Vec<RosterEntry> {
        let mut entries: Vec<RosterEntry> = match kind {
            RosterKind::Silent => {
                let mut silent = BTreeMap::<(i32, &str), &RosterEntry>::new();
                for ((partition, agent, _), task) in &previous.tasks {
                    if has_ended(task.last.state) || self.heard.contains(&(*partition, agent.clone())) {
                        continue;
                    }
                    let shown = silent.entry((*partition, agent)).or_insert(&task.last);
                    let is_newer = (shown.beat_index, &task.last.task_id) < (task.last.beat_index, &shown.task_id);
                    if is_newer {
                        *shown = &task.last;
                    }
                }
                silent.into_values().cloned().collect()
            }
            RosterKind::Stalled => {
                let stalled = self.tasks.iter().filter(|(key, task)| {
                    previous.tasks.get(*key).is_some_and(|before| {
                        !before.has_ended
                            && !task.has_ended
                            && before.last.state == task.last.state
                            && task.last.progress <= before.last.progress
                    })
                });
                stalled.map(|(_, task)| task.last.clone()).collect()
            }
            RosterKind::Overdrawn => {
                let tasks = self.tasks.values().map(|task| &task.last);
                tasks.filter(|last| !has_ended(last.state) && last.beats_left < 0).cloned().collect()
            }
        };
        sort(&mut entries);
        entries
    }

    /// Compares the published entries of one kind with the `expected` ones. A roster whose names do not all fit names the first.
    pub(crate) fn difference(&self, kind: RosterKind, expected: &[RosterEntry]) -> Option<RosterDifference> {
        let mut named: Vec<RosterEntry> =
            self.published.values().flat_map(|roster| roster.entries(kind)).cloned().collect();
        sort(&mut named);
        let counted: i64 = self.published.values().map(|roster| roster.count(kind)).sum();
        let is_cut = self.published.values().any(|roster| roster.entries(kind).len() as i64 != roster.count(kind));
        let differing = |entries: &[RosterEntry], others: &[RosterEntry]| {
            let is_other = |entry: &&RosterEntry| {
                let key = |entry: &RosterEntry| (entry.agent_id.clone(), entry.task_id.clone());
                others.binary_search_by_key(&key(entry), key).map_or(true, |place| others[place] != **entry)
            };
            let shown = entries.iter().filter(is_other).take(MAX_SHOWN);
            shown.map(|entry| entry.agent_id.clone()).collect::<Vec<_>>()
        };
        let missing = if is_cut { Vec::new() } else { differing(expected, &named) };
        let unexpected = differing(&named, expected);
        let is_equal = missing.is_empty() && unexpected.is_empty() && counted == expected.len() as i64;
        (!is_equal).then_some(RosterDifference { missing, unexpected })
    }
}

fn sort(entries: &mut [RosterEntry]) {
    entries.sort_by(|a, b| (&a.agent_id, &a.task_id).cmp(&(&b.agent_id, &b.task_id)));
}
