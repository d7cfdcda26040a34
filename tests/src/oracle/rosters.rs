//! The oracle's rosters, by brute force from the claims of two windows.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use apache_avro::types::Value;
use backbeat_schemas::{BarRoster, BeatFrame, RosterEntry, State};

use super::{ByWindow, Classification, Oracle, is_in_place, text};

/// The largest size of each of a roster's lists, in bytes.
const MAX_LIST_BYTES: usize = 256 * 1024 / 3;
/// The size of an entry besides its names.
const ENTRY_BYTES: usize = 28;

/// The status of a task that a claim states.
#[derive(Clone)]
struct Said {
    beat: i64,
    state: String,
    progress: f64,
    beats_left: i32,
}

/// The claims of one partition in one window.
#[derive(Default)]
struct Claims {
    /// By agent and task, in the order of their offsets.
    tasks: BTreeMap<(String, String), Vec<Said>>,
    /// Agents with a claim, be it late.
    heard: BTreeSet<String>,
    /// True if an agent claimed beyond the limits.
    has_unknown_agents: bool,
}

impl Said {
    fn of(claim: &HashMap<String, Value>) -> Self {
        let (Some(Value::Long(beat)), Some(Value::Int(beats_left)), Some(Value::Double(progress))) =
            (claim.get("beat_index"), claim.get("beats_left"), claim.get("progress"))
        else {
            panic!("a valid claim has these fields: {claim:?}");
        };
        Self { beat: *beat, state: text(claim, "state"), progress: *progress, beats_left: *beats_left }
    }

    fn has_ended(&self) -> bool {
        self.state == "done" || self.state == "failed"
    }
}

/// Returns the claim that names the newest beat; of several, the one with the highest offset.
fn last(claims: &[Said]) -> &Said {
    claims.iter().enumerate().max_by_key(|(place, said)| (said.beat, *place)).expect("a task has claims").1
}

fn entry((agent, task): &(String, String), said: &Said) -> RosterEntry {
    RosterEntry {
        agent_id: agent.clone(),
        task_id: task.clone(),
        beat_index: said.beat.try_into().expect("a counted claim names a beat"),
        state: serde_json::from_value::<State>(said.state.clone().into()).expect("a state"),
        progress: said.progress,
        beats_left: said.beats_left,
    }
}

/// Returns the entries by agent and task, as many as fit.
fn fitting(mut entries: Vec<RosterEntry>) -> Vec<RosterEntry> {
    entries.sort_by(|a, b| (&a.agent_id, &a.task_id).cmp(&(&b.agent_id, &b.task_id)));
    let mut bytes = 0;
    entries.retain(|entry| {
        bytes += entry.agent_id.len() + entry.task_id.len() + ENTRY_BYTES;
        bytes <= MAX_LIST_BYTES
    });
    entries
}

impl Oracle {
    /// Computes the rosters of every window that can be closed, of the partitions in which somebody needs attention.
    pub fn rosters(&self) -> Vec<BarRoster> {
        let by_window = self.classify_all();
        let downbeats = self.frames.iter().filter(|frame| frame.downbeat);
        downbeats.filter_map(|opening| self.rosters_of(opening, &by_window)).flatten().collect()
    }

    pub(super) fn rosters_of(&self, opening: &BeatFrame, by_window: &ByWindow) -> Option<Vec<BarRoster>> {
        let from = opening.beat_index.get();
        let end = from + i64::from(opening.bar_length);
        let closing = self.frame(end + i64::from(opening.grace_beats))?;
        let before = self.window_from(from - 1).filter(|_| from > 0).and_then(|before| self.frame(before));
        let partitions = closing.claim_offsets.len();
        let roster = |partition: usize| {
            let here = claims(by_window, from, partition);
            let mut silent = Vec::new();
            let mut stalled = Vec::new();
            if let Some(before) = before {
                let earlier = claims(by_window, before.beat_index.get(), partition);
                let moves = before.claim_offsets.len() != partitions;
                let mut agents = BTreeMap::<&str, Vec<RosterEntry>>::new();
                for (key, said) in &earlier.tasks {
                    let is_heard = here.has_unknown_agents || here.heard.contains(&key.0);
                    let is_judged = !moves || is_in_place(&key.0, partition, partitions);
                    if !is_heard && is_judged && !last(said).has_ended() {
                        agents.entry(&key.0).or_default().push(entry(key, last(said)));
                    }
                }
                let newest = |mut entries: Vec<RosterEntry>| {
                    entries
                        .sort_by(|a, b| (Reverse(a.beat_index), &a.task_id).cmp(&(Reverse(b.beat_index), &b.task_id)));
                    entries.swap_remove(0)
                };
                silent.extend(agents.into_values().map(newest));
                for (key, said) in &here.tasks {
                    let Some(was) = earlier.tasks.get(key) else { continue };
                    let has_ended = was.iter().chain(said).any(Said::has_ended);
                    let (was, is) = (last(was), last(said));
                    if !has_ended && was.state == is.state && is.progress <= was.progress {
                        stalled.push(entry(key, is));
                    }
                }
            }
            let overdrawn = here.tasks.iter().filter(|(_, said)| !last(said).has_ended() && last(said).beats_left < 0);
            let overdrawn: Vec<RosterEntry> = overdrawn.map(|(key, said)| entry(key, last(said))).collect();
            BarRoster {
                r#type: Default::default(),
                window_id: opening.window_id,
                from_beat: opening.beat_index,
                cluster_id: opening.cluster_id.clone(),
                closed_at: self.frame(end).expect("a later frame is there").scheduled_at,
                partition: partition as i32,
                logic: 2,
                agents_fell_silent: silent.len() as i64,
                tasks_stalled: stalled.len() as i64,
                tasks_overdrawn: overdrawn.len() as i64,
                silent: fitting(silent),
                stalled: fitting(stalled),
                overdrawn: fitting(overdrawn),
            }
        };
        let needed = |roster: &BarRoster| {
            roster.agents_fell_silent > 0 || roster.tasks_stalled > 0 || roster.tasks_overdrawn > 0
        };
        Some((0..partitions).map(roster).filter(needed).collect())
    }
}

fn claims(by_window: &ByWindow, from: i64, wanted: usize) -> Claims {
    let mut claims = Claims::default();
    for classification in by_window.get(&from).into_iter().flatten() {
        match classification {
            Classification::Counted { partition, claim, excess, unknown_agent, .. }
                if *partition as usize == wanted =>
            {
                claims.has_unknown_agents |= unknown_agent;
                if !excess {
                    let (agent, task) = (text(claim, "agent_id"), text(claim, "task_id"));
                    claims.heard.insert(agent.clone());
                    claims.tasks.entry((agent, task)).or_default().push(Said::of(claim));
                }
            }
            Classification::Late { partition, agent, unknown_agent } if *partition as usize == wanted => {
                claims.has_unknown_agents |= unknown_agent;
                claims.heard.insert(agent.clone());
            }
            _ => {}
        }
    }
    claims
}
