//! Who needs attention in a window: agents that fell silent, tasks that stalled, tasks that are overdrawn.

use backbeat_schemas::{BarRoster, BeatFrame, Counts, RosterEntry};

use super::tally::Entry;
use super::{LOGIC, OpenTasks, Tally, Window, partition_of};

/// The largest size of a roster's lists, in bytes, of which each has a third: Kafka takes records of 1 MB by default.
pub const MAX_ROSTER_BYTES: usize = 256 * 1024;
/// The most that an entry takes besides its names: their lengths, beat, state, progress and budget, in Avro.
const ENTRY_BYTES: usize = 28;

/// The roster of `partition` in `window`, whose claims `tally` has; `previous` are the open tasks of the window before, if there
/// is one. `opening` and `closing` are the frames that the window before opened with, and that this one closes with.
///
/// An agent whose place is another partition is not silent if the number of partitions has changed since the window before
/// opened: it claims elsewhere now. Returns `None` if nobody needs attention; sets the roster's counts otherwise.
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
        silent.extend(tally.fell_silent(open_tasks).filter(is_judged));
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
