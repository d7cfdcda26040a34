//! The counts of one window.

use std::hash::BuildHasher;

use backbeat_schemas::{BeatIndex, Counts, RosterEntry, State};
use hashbrown::{DefaultHashBuilder, HashTable};

use super::{Claim, TaskFacts, partition_of};

/// The largest number of tasks, that is of pairs of agent and task, of a partition in a window. The first ones in the log
/// count, so that every replay has the same; a larger fleet takes more partitions.
pub const MAX_TASKS: usize = 250_000;
/// The largest number of bytes of the names of these tasks and their agents, likewise.
pub const MAX_NAME_BYTES: usize = 12 * 1024 * 1024;
/// The largest number of tasks of one agent of a partition in a window, so that one agent cannot use up [`MAX_TASKS`].
pub const MAX_TASKS_PER_AGENT: usize = 10_000;

/// A partition's counts of a window while they are collected, with the sets of agents and tasks that they are distinct over.
///
/// Whoever writes claims chooses the ids, and so the sizes of the sets: a task takes some 60 bytes besides its name and its
/// agent's. The iteration order of hash tables reaches neither a report nor a roster.
#[derive(Debug, Clone)]
pub struct Tally {
    /// The window's downbeat.
    from: BeatIndex,
    tasks: TaskTable,
    /// The positions in the table of agents, by name.
    agent_index: HashTable<u32>,
    /// The positions in the table of tasks, by agent and name.
    task_index: HashTable<u32>,
    hasher: DefaultHashBuilder,
    claims: i64,
    degraded_claims: i64,
    late_claims: i64,
    invalid_claims: i64,
    unknown_schema_claims: i64,
    excess_claims: i64,
    /// True if an agent claimed that found no place within the limits.
    has_unknown_agents: bool,
}

/// Agents and tasks, each with the content of its last counted claim.
#[derive(Debug, Clone, Default)]
struct TaskTable {
    /// The names of agents and tasks, one after another.
    names: String,
    agents: Vec<Agent>,
    tasks: Vec<Task>,
}

/// A name's place in [`TaskTable::names`].
#[derive(Debug, Clone, Copy)]
struct Name {
    start: u32,
    bytes: u16,
}

#[derive(Debug, Clone, Copy)]
struct Agent {
    name_start: u32,
    /// The last byte of its name, from 0: names have 1 to 256 bytes.
    last_name_byte: u8,
    rotation_failed: bool,
    /// The number of its tasks: 0 if only late claims of it arrived, which no count of agents includes.
    tasks: u16,
}

/// A task of an agent. Its fields are small, because there may be many.
#[derive(Debug, Clone, Copy)]
struct Task {
    /// The position of its agent.
    agent: u32,
    name_start: u32,
    name_bytes: u16,
    facts: TaskFacts,
    last: LastClaim,
}

/// The content of a task's last counted claim: of those that name the newest beat, the one with the highest offset.
#[derive(Debug, Clone, Copy)]
struct LastClaim {
    /// The claim's beat, counted from the window's downbeat.
    beat: u16,
    state: State,
    beats_left: i32,
    /// The bytes of the progress, which need no alignment.
    progress: [u8; 8],
}

impl LastClaim {
    fn of(claim: &Claim<'_>, from: BeatIndex) -> Self {
        Self {
            beat: u16::try_from(claim.beat - from.get()).expect("a claim counts in the bar of its beat"),
            state: claim.state,
            beats_left: claim.beats_left,
            progress: claim.progress.to_ne_bytes(),
        }
    }

    fn progress(self) -> f64 {
        f64::from_ne_bytes(self.progress)
    }

    fn is_open(self) -> bool {
        !matches!(self.state, State::Done | State::Failed)
    }
}

impl Agent {
    fn name(self) -> Name {
        Name { start: self.name_start, bytes: u16::from(self.last_name_byte) + 1 }
    }
}

impl Task {
    fn name(self) -> Name {
        Name { start: self.name_start, bytes: self.name_bytes }
    }
}

impl TaskTable {
    fn push_name(&mut self, name: &str) -> Name {
        let start = u32::try_from(self.names.len()).expect("the names of a window have less than 4 GiB");
        self.names.push_str(name);
        Name { start, bytes: u16::try_from(name.len()).expect("an id has at most 256 bytes") }
    }

    fn push_agent(&mut self, name: &str) -> u32 {
        let position = u32::try_from(self.agents.len()).expect("there are fewer agents than bytes of names");
        let name = self.push_name(name);
        let last_name_byte = u8::try_from(name.bytes.saturating_sub(1)).expect("an id has at most 256 bytes");
        self.agents.push(Agent { name_start: name.start, last_name_byte, rotation_failed: false, tasks: 0 });
        position
    }

    fn push_task(&mut self, agent: u32, name: &str, facts: TaskFacts, last: LastClaim) -> u32 {
        let position = u32::try_from(self.tasks.len()).expect("there are fewer tasks than bytes of names");
        let name = self.push_name(name);
        self.agents[agent as usize].tasks += 1;
        self.tasks.push(Task { agent, name_start: name.start, name_bytes: name.bytes, facts, last });
        position
    }

    fn text(&self, name: Name) -> &str {
        let start = name.start as usize;
        &self.names[start..start + usize::from(name.bytes)]
    }

    fn agent_name(&self, position: u32) -> &str {
        self.text(self.agents[position as usize].name())
    }

    fn is_task(&self, position: u32, agent: u32, name: &str) -> bool {
        let task = &self.tasks[position as usize];
        task.agent == agent && self.text(task.name()) == name
    }

    /// Makes room for as many names, agents and tasks as `open` has.
    fn reserve_like(&mut self, open: &OpenTasks) {
        self.names.reserve_exact(open.names.len());
        self.agents.reserve_exact(open.agents.len());
        self.tasks.reserve_exact(open.tasks.len());
    }
}

impl Tally {
    /// Creates the counts of the window that opens at `from`, with room for as many tasks as `previous` has: the window before,
    /// in which mostly the same ones claimed.
    pub fn new(from: BeatIndex, previous: Option<&OpenTasks>) -> Self {
        let mut tasks = TaskTable::default();
        if let Some(previous) = previous {
            tasks.reserve_like(previous);
        }
        Self {
            from,
            tasks,
            agent_index: HashTable::new(),
            task_index: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            claims: 0,
            degraded_claims: 0,
            late_claims: 0,
            invalid_claims: 0,
            unknown_schema_claims: 0,
            excess_claims: 0,
            has_unknown_agents: false,
        }
    }

    /// Counts a claim.
    pub fn count(&mut self, claim: &Claim<'_>) {
        self.claims += 1;
        self.degraded_claims += i64::from(claim.degraded);
        let is_counted = self.add_task(claim);
        self.excess_claims += i64::from(!is_counted);
    }

    /// Counts a late claim of `agent`, which is not silent.
    pub fn count_late(&mut self, agent: &str) {
        self.late_claims += 1;
        if self.find_agent(agent).is_none() {
            if self.tasks.agents.len() < MAX_TASKS && self.tasks.names.len() + agent.len() <= MAX_NAME_BYTES {
                self.add_agent(agent);
            } else {
                self.has_unknown_agents = true;
            }
        }
    }

    /// Counts an invalid claim.
    pub fn count_invalid(&mut self, unknown_schema: bool) {
        self.invalid_claims += 1;
        self.unknown_schema_claims += i64::from(unknown_schema);
    }

    fn find_agent(&self, name: &str) -> Option<u32> {
        let hash = self.hasher.hash_one(name);
        self.agent_index.find(hash, |position| self.tasks.agent_name(*position) == name).copied()
    }

    fn find_task(&self, agent: u32, name: &str) -> Option<&Task> {
        let hash = self.hasher.hash_one((agent, name));
        let position = self.task_index.find(hash, |position| self.tasks.is_task(*position, agent, name))?;
        Some(&self.tasks.tasks[*position as usize])
    }

    fn add_agent(&mut self, name: &str) -> u32 {
        let Self { tasks, agent_index, hasher, .. } = self;
        let position = tasks.push_agent(name);
        let hash_of = |position: &u32| hasher.hash_one(tasks.agent_name(*position));
        agent_index.insert_unique(hasher.hash_one(name), position, hash_of);
        position
    }

    /// Adds what a claim says of its task and agent. Returns false if the task is new and beyond a limit.
    fn add_task(&mut self, claim: &Claim<'_>) -> bool {
        let (agent_name, task_name) = (&*claim.agent, &*claim.task);
        let last = LastClaim::of(claim, self.from);
        let found_agent = self.find_agent(agent_name);
        if let Some(agent) = found_agent {
            let hash = self.hasher.hash_one((agent, task_name));
            let found = self.task_index.find(hash, |position| self.tasks.is_task(*position, agent, task_name));
            if let Some(position) = found {
                self.tasks.agents[agent as usize].rotation_failed |= claim.rotation_failed;
                let task = &mut self.tasks.tasks[*position as usize];
                task.facts |= claim.facts;
                if last.beat >= task.last.beat {
                    task.last = last;
                }
                return true;
            }
        }
        let names = self.tasks.names.len() + task_name.len() + found_agent.map_or(agent_name.len(), |_| 0);
        let tasks_of_agent = found_agent.map_or(0, |agent| usize::from(self.tasks.agents[agent as usize].tasks));
        if self.tasks.tasks.len() >= MAX_TASKS || tasks_of_agent >= MAX_TASKS_PER_AGENT || names > MAX_NAME_BYTES {
            self.has_unknown_agents |= found_agent.is_none();
            return false;
        }
        let agent = found_agent.unwrap_or_else(|| self.add_agent(agent_name));
        let Self { tasks, task_index, hasher, .. } = self;
        tasks.agents[agent as usize].rotation_failed |= claim.rotation_failed;
        let position = tasks.push_task(agent, task_name, claim.facts, last);
        let hash_of = |position: &u32| {
            let task = tasks.tasks[*position as usize];
            hasher.hash_one((task.agent, tasks.text(task.name())))
        };
        task_index.insert_unique(hasher.hash_one((agent, task_name)), position, hash_of);
        true
    }

    /// Returns the number of counted claims so far.
    pub fn claims(&self) -> i64 {
        self.claims
    }

    /// Returns the counts of `partition`, one of the window's `partitions`, without those of its roster.
    pub fn counts(&self, partition: i32, partitions: usize) -> Counts {
        let agents = || (0..).zip(&self.tasks.agents).filter(|(_, agent)| agent.tasks > 0);
        let is_misplaced = |(position, _): &(u32, &Agent)| {
            partition_of(self.tasks.agent_name(*position).as_bytes(), partitions) as i64 != i64::from(partition)
        };
        let mut counts = Counts {
            agents: agents().count() as i64,
            claims: self.claims,
            degraded_claims: self.degraded_claims,
            late_claims: self.late_claims,
            invalid_claims: self.invalid_claims,
            unknown_schema_claims: self.unknown_schema_claims,
            excess_claims: self.excess_claims,
            misplaced_agents: agents().filter(is_misplaced).count() as i64,
            rotation_failed_agents: agents().filter(|(_, agent)| agent.rotation_failed).count() as i64,
            ..Counts::default()
        };
        self.tasks.tasks.iter().for_each(|task| task.facts.count(&mut counts));
        counts
    }

    /// Returns the tasks that are open and whose budget is overdrawn.
    pub(crate) fn overdrawn(&self) -> impl Iterator<Item = Entry<'_>> {
        let overdrawn = |task: &&Task| task.last.is_open() && task.last.beats_left < 0;
        self.tasks.tasks.iter().filter(overdrawn).map(|task| self.entry(task))
    }

    /// Returns the tasks that are in the same state as in the window before, without progress, and that no claim of the two
    /// windows ended.
    pub(crate) fn stalled(&self, previous: &OpenTasks) -> impl Iterator<Item = Entry<'_>> {
        let before = previous.iter().filter(|before| !before.task.has_ended);
        before.filter_map(|OpenEntry { entry: before, .. }| {
            let task = self.find_task(self.find_agent(before.agent)?, before.task)?;
            let is_stalled = !task.facts.has_ended()
                && task.last.state == before.last.state
                && task.last.progress() <= before.last.progress();
            is_stalled.then(|| self.entry(task))
        })
    }

    /// Returns the agents that had an open task in the window before, and have no claim in this one, not even a late one; each
    /// with the open task that it claimed last, the first of these by name. Nobody fell silent if agents claimed that found no
    /// place within the limits, because it may be they.
    pub(crate) fn fell_silent<'p>(&self, previous: &'p OpenTasks) -> Vec<Entry<'p>> {
        let mut silent: Vec<Entry<'p>> = Vec::new();
        let mut is_silent = false;
        for OpenEntry { entry, is_first_of_agent, .. } in previous.iter() {
            if is_first_of_agent {
                is_silent = !self.has_unknown_agents && self.find_agent(entry.agent).is_none();
                silent.extend(is_silent.then_some(entry));
            } else if let Some(shown) = silent.last_mut().filter(|_| is_silent)
                && (entry.last.beat, shown.task) > (shown.last.beat, entry.task)
            {
                *shown = entry;
            }
        }
        silent
    }

    fn entry(&self, task: &Task) -> Entry<'_> {
        let (agent, name) = (self.tasks.agent_name(task.agent), self.tasks.text(task.name()));
        Entry { agent, task: name, from: self.from, last: task.last }
    }
}

/// The tasks of a window that are open at its end, for the roster of the next window. They are read in order only, and no larger
/// than they must be, because they are kept that long.
#[derive(Debug, Clone)]
pub struct OpenTasks {
    /// The window's downbeat.
    from: BeatIndex,
    /// The name of each agent, followed by those of its tasks.
    names: String,
    agents: Vec<OpenAgent>,
    /// In the order of their agents.
    tasks: Vec<OpenTask>,
}

#[derive(Debug, Clone, Copy)]
struct OpenAgent {
    name_bytes: u16,
    /// The number of its tasks.
    tasks: u16,
}

#[derive(Debug, Clone, Copy)]
struct OpenTask {
    name_bytes: u16,
    /// True if a claim has said that the task is done, or that it failed, before another one opened it again.
    has_ended: bool,
    last: LastClaim,
}

/// A task of [`OpenTasks`].
struct OpenEntry<'t> {
    entry: Entry<'t>,
    task: &'t OpenTask,
    is_first_of_agent: bool,
}

impl From<&Tally> for OpenTasks {
    fn from(tally: &Tally) -> Self {
        let table = &tally.tasks;
        let mut open: Vec<&Task> = table.tasks.iter().filter(|task| task.last.is_open()).collect();
        open.sort_by_key(|task| task.agent);
        let by_agent = || open.chunk_by(|a, b| a.agent == b.agent);
        let names = |tasks: &[&Task]| {
            let of_tasks: usize = tasks.iter().map(|task| usize::from(task.name_bytes)).sum();
            table.agent_name(tasks[0].agent).len() + of_tasks
        };
        let mut names = String::with_capacity(by_agent().map(names).sum());
        let mut agents = Vec::with_capacity(by_agent().count());
        for tasks in by_agent() {
            let agent = table.agents[tasks[0].agent as usize];
            names.push_str(table.text(agent.name()));
            for task in tasks {
                names.push_str(table.text(task.name()));
            }
            agents.push(OpenAgent { name_bytes: agent.name().bytes, tasks: tasks.len() as u16 });
        }
        let task =
            |task: &&Task| OpenTask { name_bytes: task.name_bytes, has_ended: task.facts.has_ended(), last: task.last };
        Self { from: tally.from, names, agents, tasks: open.iter().map(task).collect() }
    }
}

impl OpenTasks {
    fn iter(&self) -> impl Iterator<Item = OpenEntry<'_>> {
        let (mut names, mut agents, mut tasks) = (&*self.names, self.agents.iter(), self.tasks.iter());
        let mut take = move |bytes: u16| {
            let (name, rest) = names.split_at(bytes.into());
            names = rest;
            name
        };
        let (mut agent, mut tasks_left) = ("", 0);
        std::iter::from_fn(move || {
            let is_first_of_agent = tasks_left == 0;
            if is_first_of_agent {
                let next = agents.next()?;
                (agent, tasks_left) = (take(next.name_bytes), next.tasks);
            }
            tasks_left -= 1;
            let task = tasks.next()?;
            let entry = Entry { agent, task: take(task.name_bytes), from: self.from, last: task.last };
            Some(OpenEntry { entry, task, is_first_of_agent })
        })
    }
}

/// An entry of a roster.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'t> {
    pub(crate) agent: &'t str,
    pub(crate) task: &'t str,
    /// The downbeat of the window of the claim.
    from: BeatIndex,
    last: LastClaim,
}

impl From<&Entry<'_>> for RosterEntry {
    fn from(entry: &Entry<'_>) -> Self {
        Self {
            agent_id: entry.agent.to_owned(),
            task_id: entry.task.to_owned(),
            beat_index: entry.from.plus(entry.last.beat.into()),
            state: entry.last.state,
            progress: entry.last.progress(),
            beats_left: entry.last.beats_left,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{beat, claim};

    fn table_bytes(tasks: &TaskTable) -> usize {
        tasks.names.capacity()
            + tasks.agents.capacity() * size_of::<Agent>()
            + tasks.tasks.capacity() * size_of::<Task>()
    }

    fn open_bytes(open: &OpenTasks) -> usize {
        open.names.capacity()
            + open.agents.capacity() * size_of::<OpenAgent>()
            + open.tasks.capacity() * size_of::<OpenTask>()
    }

    fn bytes(tally: &Tally) -> usize {
        table_bytes(&tally.tasks) + tally.agent_index.allocation_size() + tally.task_index.allocation_size()
    }

    #[test]
    fn tasks_beyond_the_limit_are_counted_as_excess() {
        let mut tally = Tally::new(beat(0), None);
        let mut names = 0;
        for number in 0..MAX_TASKS {
            let claim = claim(&format!("agent-{number}"), 0);
            names += claim.agent.len() + claim.task.len();
            tally.count(&claim);
        }
        let limit = MAX_TASKS as i64;
        let counts = |tally: &Tally| tally.counts(0, 1);
        assert_eq!((counts(&tally).agents, counts(&tally).excess_claims), (limit, 0));
        // A known task is counted, a new one of a known agent and a new agent are not.
        let done = |agent| Claim { facts: TaskFacts::DONE, ..claim(agent, 0) };
        tally.count(&done("agent-7"));
        tally.count(&Claim { task: "another".into(), rotation_failed: true, ..done("agent-7") });
        tally.count(&done("stranger"));
        let counts = counts(&tally);
        assert_eq!((counts.agents, counts.tasks_done, counts.rotation_failed_agents), (limit, 1, 0));
        assert_eq!((counts.claims, counts.excess_claims), (limit + 3, 2));
        // Names have a limit of their own.
        let mut long = Tally::new(beat(0), None);
        let pairs = MAX_NAME_BYTES / 512;
        for number in 0..=pairs {
            long.count(&Claim { task: format!("{number:0256}").into(), ..claim(&format!("{number:0256}"), 0) });
        }
        let counts = long.counts(0, 1);
        assert_eq!((counts.agents, counts.excess_claims), (pairs as i64, 1));
        let besides_names = bytes(&tally).saturating_sub(names) / MAX_TASKS;
        assert!(besides_names <= 100, "{besides_names} bytes a task");
    }

    #[test]
    fn tasks_of_an_agent_beyond_its_limit_take_no_place_of_others() {
        let mut tally = Tally::new(beat(0), None);
        for number in 0..=MAX_TASKS_PER_AGENT {
            tally.count(&Claim { task: number.to_string().into(), facts: TaskFacts::DONE, ..claim("greedy", 0) });
        }
        tally.count(&Claim { facts: TaskFacts::DONE, ..claim("another", 0) });
        let counts = tally.counts(0, 1);
        assert_eq!((counts.agents, counts.excess_claims), (2, 1));
        assert_eq!(counts.tasks_done, MAX_TASKS_PER_AGENT as i64 + 1);
    }

    /// The bytes of a window's aggregate with that of the window before, beside those of the aggregate that had no rosters, for
    /// `agents` agents of one task.
    fn bytes_beside_those_without_rosters(agents: usize) -> (usize, usize) {
        /// The bytes that the aggregate kept of an agent and of a task.
        const AGENT: usize = 16;
        const TASK: usize = 16;
        let claims = || {
            (0..agents).map(|number| Claim {
                task: format!("task-{number}").into(),
                ..claim(&format!("agent-{number:06}"), 0)
            })
        };
        let mut previous = Tally::new(beat(0), None);
        claims().for_each(|claim| previous.count(&claim));
        let (agents, tasks) = (previous.tasks.agents.capacity(), previous.tasks.tasks.capacity());
        let indexes = previous.agent_index.allocation_size() + previous.task_index.allocation_size();
        let without = previous.tasks.names.capacity() + agents * AGENT + tasks * TASK + indexes;
        let previous = OpenTasks::from(&previous);
        let mut tally = Tally::new(beat(0), Some(&previous));
        claims().for_each(|claim| tally.count(&claim));
        (bytes(&tally) + open_bytes(&previous), without)
    }

    #[test]
    fn aggregate_with_the_window_before_takes_little_more_than_without_rosters() {
        for agents in [1_000, 8_333, 20_000, 100_000, MAX_TASKS] {
            let (with, without) = bytes_beside_those_without_rosters(agents);
            eprintln!("{agents} agents: {with} bytes, {without} without rosters: {:.2}", with as f64 / without as f64);
            assert!(with * 10 <= without * 16, "{agents} agents: {with} bytes, {without} without rosters");
        }
    }
}
