//! Who needs attention in a window: agents that fell silent, tasks that stalled, tasks that are overdrawn.

use backbeat_schemas::{BarRoster, BeatFrame, Counts, RosterEntry};

use super::tally::Entry;
use super::{LOGIC, OpenTasks, Tally, Window, partition_of};

/// The largest size of a roster's lists, in bytes, of which each has a third: Kafka takes records of 1 MB by default.
pub const MAX_ROSTER_BYTES: usize = 256 * 1024;
/// The most that an entry takes besides its names: their lengths, beat, state, progress and budget, in Avro.
const ENTRY_BYTES: usize = 28;

/// Returns the roster of `partition` in `window`, or `None` if nobody needs attention, and sets its counts. `tally` has the
/// window's claims, and `previous` the open tasks of the window before, with the frame that it opened with. `next` is the next
/// window's first frame, and `closing` that of this window's closing beat.
///
/// An agent whose place is another partition is not silent if the number of partitions has changed since the window before
/// opened: it claims elsewhere now.
pub(super) fn roster(
    partition: i32,
    window: &Window,
    tally: &Tally,
    previous: Option<(&OpenTasks, &BeatFrame)>,
    [next, closing]: [&BeatFrame; 2],
    counts: &mut Counts,
) -> Option<Box<BarRoster>> {
    let partitions = closing.claim_offsets.len();
    let (mut silent, mut stalled) = (Vec::new(), Vec::new());
    if let Some((open_tasks, opening)) = previous {
        let may_have_moved = opening.claim_offsets.len() != partitions;
        let is_judged = |entry: &Entry<'_>| {
            !may_have_moved || partition_of(entry.agent.as_bytes(), partitions) as i64 == i64::from(partition)
        };
        silent.extend(tally.fell_silent(open_tasks).into_iter().filter(is_judged));
        stalled.extend(tally.stalled(open_tasks));
    }
    let overdrawn: Vec<Entry<'_>> = tally.overdrawn().collect();
    counts.silent_agents = silent.len() as i64;
    counts.stalled_tasks = stalled.len() as i64;
    counts.overdrawn_tasks = overdrawn.len() as i64;
    if silent.is_empty() && stalled.is_empty() && overdrawn.is_empty() {
        return None;
    }
    Some(Box::new(BarRoster {
        r#type: Default::default(),
        window_id: window.id,
        from_beat: window.from,
        cluster_id: closing.cluster_id.clone(),
        closed_at: next.scheduled_at,
        partition,
        logic: LOGIC,
        agents_fell_silent: counts.silent_agents,
        tasks_stalled: counts.stalled_tasks,
        tasks_overdrawn: counts.overdrawn_tasks,
        silent: first_by_name(silent),
        stalled: first_by_name(stalled),
        overdrawn: first_by_name(overdrawn),
    }))
}

/// Returns the first entries by agent and task, as many as fit.
fn first_by_name(mut entries: Vec<Entry<'_>>) -> Vec<RosterEntry> {
    const LIST_BYTES: usize = MAX_ROSTER_BYTES / 3;
    let by_name = |a: &Entry<'_>, b: &Entry<'_>| (a.agent, a.task).cmp(&(b.agent, b.task));
    // So many fit at most: the rest need not be sorted.
    let most = LIST_BYTES / ENTRY_BYTES;
    if entries.len() > most {
        entries.select_nth_unstable_by(most, by_name);
        entries.truncate(most);
    }
    entries.sort_unstable_by(by_name);
    let mut bytes = 0;
    let fit = entries.iter().take_while(|entry| {
        bytes += entry.agent.len() + entry.task.len() + ENTRY_BYTES;
        bytes <= LIST_BYTES
    });
    fit.map(RosterEntry::from).collect()
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use backbeat_schemas::{RosterKind, State};

    use super::*;
    use crate::core::testing::{beat, claim, frames, frames_of_partitions};
    use crate::core::{Claim, ClosedWindow, DecodedClaim, Frames, Output, PartitionAggregator, RawRecord, TaskFacts};

    /// Returns a claim of `agent` for its task `task`, in a state and with a progress in percent.
    fn said(agent: &str, task: &'static str, beat: i64, state: State, percent: i32) -> Claim<'static> {
        let facts = match state {
            State::Done => TaskFacts::DONE,
            State::Failed => TaskFacts::FAILED,
            _ => TaskFacts::empty(),
        };
        let progress = f64::from(percent) / 100.0;
        Claim { task: Cow::Borrowed(task), state, progress, facts, ..claim(agent, beat) }
    }

    /// Returns the windows that close while the `claims` of partition 0 are processed, which are retained from `log_start` on.
    fn closed_from(start: i64, frames: &Frames, log_start: i64, claims: Vec<Claim<'static>>) -> Vec<ClosedWindow> {
        let mut aggregator = PartitionAggregator::new(0, beat(start), frames, log_start);
        let mut outputs = Vec::new();
        for (offset, claim) in (0..).zip(claims).skip(log_start as usize) {
            aggregator.process(offset, DecodedClaim::Valid(claim), frames, RawRecord::default, &mut outputs);
        }
        aggregator.skip_to(i64::MAX, 0);
        aggregator.advance(frames, &mut outputs);
        let windows = outputs.into_iter().filter_map(|output| match output {
            Output::WindowClosed(closed) => Some(*closed),
            Output::DeadLetter { .. } => None,
        });
        windows.collect()
    }

    /// Returns the agents on the roster of the second of two bars of two beats, by kind. The boundaries of the five beats are
    /// `boundaries`.
    fn second_bar(boundaries: [i64; 5], claims: Vec<Claim<'static>>) -> [Vec<String>; 3] {
        let frames = frames(2, 0, &boundaries);
        let closed = closed_from(0, &frames, 0, claims);
        let [first, second] = &closed[..] else { panic!("{closed:?}") };
        assert_eq!((first.counts.silent_agents, first.counts.stalled_tasks), (0, 0), "no window before it");
        let names = RosterKind::ALL.map(|kind| {
            let entries = second.roster.as_ref().map_or(&[][..], |roster| roster.entries(kind));
            entries.iter().map(|entry| entry.agent_id.clone()).collect::<Vec<String>>()
        });
        let counts = [second.counts.silent_agents, second.counts.stalled_tasks, second.counts.overdrawn_tasks];
        assert_eq!(counts, names.clone().map(|names| names.len() as i64));
        names
    }

    #[test]
    fn agent_without_a_claim_after_an_open_task_fell_silent() {
        use State::{Done, Executing, Failed, Review};
        let claims = vec![
            said("silent", "t", 0, Executing, 50),
            said("done", "t", 0, Executing, 50),
            said("done", "t", 1, Done, 100),
            said("failed", "t", 1, Failed, 0),
            said("reopened", "t", 0, Done, 100),
            said("reopened", "t", 1, Review, 90),
            // The newest beat counts, not the newest record.
            said("out of order", "t", 1, Done, 100),
            said("out of order", "t", 0, Executing, 90),
            said("alive", "t", 1, Executing, 50),
            said("late", "t", 1, Executing, 50),
            // The second bar.
            said("alive", "other", 2, Executing, 0),
            said("late", "t", 1, Executing, 60),
            said("new", "t", 2, Executing, 0),
        ];
        let [silent, stalled, overdrawn] = second_bar([0, 0, 10, 10, 13], claims);
        assert_eq!(silent, ["reopened", "silent"]);
        assert!(stalled.is_empty() && overdrawn.is_empty(), "{stalled:?} {overdrawn:?}");
    }

    #[test]
    fn task_in_the_same_state_without_progress_stalled() {
        use State::{Done, Executing, Waiting};
        let claims = vec![
            said("stalled", "t", 0, Executing, 50),
            said("went back", "t", 0, Executing, 50),
            said("moved", "t", 0, Executing, 50),
            said("waits", "t", 0, Executing, 50),
            said("was done", "t", 0, Done, 50),
            said("was done", "t", 1, Executing, 50),
            said("is done", "t", 0, Executing, 50),
            // The second bar.
            said("stalled", "t", 3, Executing, 50),
            said("went back", "t", 3, Executing, 40),
            said("moved", "t", 3, Executing, 51),
            said("waits", "t", 2, Waiting, 50),
            said("was done", "t", 3, Executing, 50),
            said("is done", "t", 2, Done, 50),
            said("is done", "t", 3, Executing, 50),
        ];
        let [silent, stalled, _] = second_bar([0, 0, 7, 7, 14], claims);
        assert_eq!(stalled, ["stalled", "went back"]);
        assert!(silent.is_empty(), "{silent:?}");
    }

    #[test]
    fn open_task_with_a_spent_budget_is_overdrawn() {
        let spent = |agent, state, beats_left| Claim { beats_left, ..said(agent, "t", 2, state, 50) };
        let claims = vec![
            spent("overdrawn", State::Executing, -1),
            spent("last beat", State::Executing, 0),
            spent("done", State::Done, -3),
            spent("paid off", State::Executing, -1),
            Claim { beats_left: 5, ..said("paid off", "t", 3, State::Executing, 60) },
        ];
        let [.., overdrawn] = second_bar([0, 0, 0, 0, 5], claims);
        assert_eq!(overdrawn, ["overdrawn"]);
    }

    #[test]
    fn silent_agent_is_named_with_the_open_task_that_it_claimed_last() {
        let claims = vec![
            said("a", "newest", 1, State::Executing, 10),
            said("a", "as new", 1, State::Waiting, 20),
            said("a", "older", 0, State::Executing, 30),
            said("a", "done", 1, State::Done, 100),
        ];
        let closed = closed_from(0, &frames(2, 0, &[0, 0, 4, 4, 4]), 0, claims);
        let roster = closed[1].roster.as_ref().expect("somebody is silent");
        assert_eq!((&*roster.silent[0].task_id, roster.silent[0].beat_index), ("as new", beat(1)));
        assert_eq!((roster.silent[0].state, roster.silent[0].progress), (State::Waiting, 0.2));
        assert_eq!((roster.agents_fell_silent, roster.silent.len()), (1, 1));
    }

    #[test]
    fn claim_within_the_grace_counts_for_the_window_before() {
        // Bars of two beats with a grace of one. Offset 1 arrives on beat 2, within the grace of the first bar.
        let frames = frames(2, 1, &[0, 1, 1, 2, 2, 2]);
        let claims = vec![said("a", "t", 0, State::Executing, 50), said("a", "t", 1, State::Done, 100)];
        let closed = closed_from(0, &frames, 0, claims);
        assert_eq!(closed.iter().map(|closed| closed.counts.claims).collect::<Vec<_>>(), [2, 0]);
        assert!(closed[1].roster.is_none(), "{closed:?}");
    }

    #[test]
    fn aggregator_that_starts_later_makes_the_same_share_and_sends_nothing_of_the_window_before() {
        let frames = frames(2, 0, &[0, 2, 4, 6, 8]);
        let claims = || {
            let agents = ["a", "b", "a", "c", "a", "d", "d", "a"];
            let claims = (0..).zip(agents).map(|(offset, agent)| said(agent, "t", offset / 2, State::Executing, 50));
            claims.collect::<Vec<_>>()
        };
        let whole = closed_from(0, &frames, 0, claims());
        let later = closed_from(2, &frames, 0, claims());
        let [only] = &later[..] else { panic!("{later:?}") };
        assert_eq!((only.counts, &only.roster), (whole[1].counts, &whole[1].roster));
        assert_eq!((only.counts.silent_agents, only.counts.stalled_tasks), (2, 1));
        assert!(only.is_retained(2) && only.previous_retained);
        // Retention has deleted a claim of the window before, and none of this one.
        let [short] = &closed_from(2, &frames, 1, claims())[..] else { panic!("one window") };
        assert!(short.is_retained(1) && !short.is_retained(2) && short.roster.is_none());
    }

    #[test]
    fn first_window_of_a_log_that_begins_later_has_none_before_it() {
        let whole = frames(2, 0, &[0, 2, 4, 6, 8]);
        let mut later = Frames::default();
        for index in 2..5 {
            later.push(whole.get(beat(index)).expect("a frame").clone()).expect("the frames are consistent");
        }
        let closed = closed_from(2, &later, 0, Vec::new());
        assert!(matches!(&closed[..], [only] if only.is_retained(2)), "{closed:?}");
    }

    #[test]
    fn agent_that_moved_to_a_new_partition_is_not_silent() {
        let partitions = |agent: &str| partition_of(agent.as_bytes(), 2);
        let (stays, moves) = ("abcdefgh".split("").filter(|agent| !agent.is_empty()))
            .partition::<Vec<&str>, _>(|agent| partitions(agent) == 0);
        assert!(!stays.is_empty() && !moves.is_empty());
        let claims = || {
            let agents = stays.iter().chain(&moves);
            agents.map(|agent| said(agent, "t", 0, State::Executing, 50)).collect::<Vec<_>>()
        };
        let silent = |frames: &Frames| {
            let closed = closed_from(0, frames, 0, claims());
            let roster = closed[1].roster.as_ref().expect("somebody is silent");
            roster.silent.iter().map(|entry| entry.agent_id.clone()).collect::<Vec<_>>()
        };
        let all = [stays.clone(), moves.clone()].concat();
        let sorted = |mut names: Vec<&str>| {
            names.sort_unstable();
            names.into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        // With two partitions all the while, agents in this one that murmur2 places elsewhere have a partitioner of their own.
        let unchanged = frames_of_partitions(2, 0, &[&[0, 8, 8, 8, 8], &[0; 5]]);
        assert_eq!(silent(&unchanged), sorted(all));
        // The second partition was added with the second bar.
        let mut added = Frames::default();
        for index in 0..5 {
            let mut frame = unchanged.get(beat(index)).expect("a frame").clone();
            frame.claim_offsets.truncate(if index < 2 { 1 } else { 2 });
            added.push(frame).expect("the frames are consistent");
        }
        assert_eq!(silent(&added), sorted(stays.clone()));
    }

    #[test]
    fn nobody_is_silent_where_agents_found_no_place_within_the_limits() {
        let mut previous = Tally::new(beat(0), None);
        previous.count(&said("a", "t", 0, State::Executing, 50));
        let previous = OpenTasks::from(&previous);
        let mut full = Tally::new(beat(2), Some(&previous));
        assert_eq!(full.fell_silent(&previous).len(), 1);
        for number in 0..super::super::MAX_TASKS {
            full.count(&claim(&format!("other-{number}"), 2));
        }
        assert_eq!(full.fell_silent(&previous).len(), 1);
        full.count(&claim("may be anybody", 2));
        assert_eq!(full.fell_silent(&previous).len(), 0);
    }

    #[test]
    fn roster_names_the_first_that_fit_and_counts_all() {
        let agents = 20_000;
        let claims = (0..agents).rev().map(|number| Claim {
            beats_left: -1,
            ..said(&format!("agent-{number:05}"), "t", 0, State::Executing, 50)
        });
        let closed = closed_from(0, &frames(2, 0, &[0, agents, agents]), 0, claims.collect());
        let roster = closed[0].roster.as_ref().expect("all are overdrawn");
        assert_eq!((roster.tasks_overdrawn, closed[0].counts.overdrawn_tasks), (agents, agents));
        let named = roster.overdrawn.len();
        assert_eq!(named, MAX_ROSTER_BYTES / 3 / (11 + 1 + ENTRY_BYTES));
        let agents_named = roster.overdrawn.iter().map(|entry| entry.agent_id.clone());
        assert!(agents_named.eq((0..named).map(|number| format!("agent-{number:05}"))));
        assert!(backbeat_schemas::wire(1, &**roster).len() <= MAX_ROSTER_BYTES);
    }
}
