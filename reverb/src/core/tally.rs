//! The counts of one window.

use std::hash::BuildHasher;

use backbeat_schemas::Counts;
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
/// Whoever writes claims chooses the ids, and so the sizes of the sets: a task takes some 50 bytes besides its name and its
/// agent's. Only the sizes leave this type, so the iteration order of hash tables cannot reach a report.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// The names of agents and tasks, one after another.
    names: String,
    agents: Vec<Agent>,
    tasks: Vec<Task>,
    /// The positions in `agents`, by name.
    agent_index: HashTable<u32>,
    /// The positions in `tasks`, by agent and name.
    task_index: HashTable<u32>,
    hasher: DefaultHashBuilder,
    claims: i64,
    degraded_claims: i64,
    late_claims: i64,
    invalid_claims: i64,
    unknown_schema_claims: i64,
    excess_claims: i64,
}

/// A name's place in [`Tally::names`].
#[derive(Debug, Clone, Copy)]
struct Name {
    start: u32,
    bytes: u16,
}

#[derive(Debug, Clone, Copy)]
struct Agent {
    name: Name,
    /// The number of its tasks.
    tasks: u32,
    rotation_failed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Task {
    /// The position of its agent.
    agent: u32,
    name: Name,
    facts: TaskFacts,
}

impl Name {
    fn push(names: &mut String, name: &str) -> Self {
        let start = u32::try_from(names.len()).expect("the names of a window have less than 4 GiB");
        names.push_str(name);
        Self { start, bytes: u16::try_from(name.len()).expect("an id has at most 256 bytes") }
    }

    fn of(self, names: &str) -> &str {
        let start = self.start as usize;
        &names[start..start + usize::from(self.bytes)]
    }
}

impl Tally {
    /// Counts a claim.
    pub fn count(&mut self, claim: &Claim<'_>) {
        self.claims += 1;
        self.degraded_claims += i64::from(claim.degraded);
        let is_counted = self.add_task(claim);
        self.excess_claims += i64::from(!is_counted);
    }

    /// Counts a late claim.
    pub fn count_late(&mut self) {
        self.late_claims += 1;
    }

    /// Counts an invalid claim.
    pub fn count_invalid(&mut self, unknown_schema: bool) {
        self.invalid_claims += 1;
        self.unknown_schema_claims += i64::from(unknown_schema);
    }

    /// Adds what a claim says of its task and agent. Returns false if the task is new and beyond a limit.
    fn add_task(&mut self, claim: &Claim<'_>) -> bool {
        let Claim { rotation_failed, facts, .. } = *claim;
        let (agent_name, task_name) = (&*claim.agent, &*claim.task);
        let Self { names, agents, tasks, agent_index, task_index, hasher, .. } = self;
        let agent_hash = hasher.hash_one(agent_name);
        let found_agent =
            agent_index.find(agent_hash, |position| agents[*position as usize].name.of(names) == agent_name);
        let found_agent = found_agent.copied();
        let found_task = found_agent.and_then(|agent| {
            task_index.find(hasher.hash_one((agent, task_name)), |position| {
                let task = &tasks[*position as usize];
                task.agent == agent && task.name.of(names) == task_name
            })
        });
        if let (Some(agent), Some(task)) = (found_agent, found_task) {
            agents[agent as usize].rotation_failed |= rotation_failed;
            tasks[*task as usize].facts |= facts;
            return true;
        }
        let new_names = task_name.len() + if found_agent.is_none() { agent_name.len() } else { 0 };
        let tasks_of_agent = found_agent.map_or(0, |agent| agents[agent as usize].tasks as usize);
        if tasks.len() >= MAX_TASKS || tasks_of_agent >= MAX_TASKS_PER_AGENT || names.len() + new_names > MAX_NAME_BYTES
        {
            return false;
        }
        let agent = found_agent.unwrap_or_else(|| {
            let position = u32::try_from(agents.len()).expect("there are fewer agents than bytes of names");
            agents.push(Agent { name: Name::push(names, agent_name), tasks: 0, rotation_failed });
            let hash_of = |position: &u32| hasher.hash_one(agents[*position as usize].name.of(names));
            agent_index.insert_unique(agent_hash, position, hash_of);
            position
        });
        agents[agent as usize].tasks += 1;
        agents[agent as usize].rotation_failed |= rotation_failed;
        let position = u32::try_from(tasks.len()).expect("there are fewer tasks than bytes of names");
        tasks.push(Task { agent, name: Name::push(names, task_name), facts });
        let hash_of = |position: &u32| {
            let task = &tasks[*position as usize];
            hasher.hash_one((task.agent, task.name.of(names)))
        };
        task_index.insert_unique(hasher.hash_one((agent, task_name)), position, hash_of);
        true
    }

    /// Returns the number of counted claims so far.
    pub fn claims(&self) -> i64 {
        self.claims
    }

    /// Returns the counts of `partition`, one of the window's `partitions`.
    pub fn counts(&self, partition: i32, partitions: usize) -> Counts {
        let is_misplaced = |agent: &&Agent| {
            partition_of(agent.name.of(&self.names).as_bytes(), partitions) as i64 != i64::from(partition)
        };
        let mut counts = Counts {
            agents: self.agents.len() as i64,
            claims: self.claims,
            degraded_claims: self.degraded_claims,
            late_claims: self.late_claims,
            invalid_claims: self.invalid_claims,
            unknown_schema_claims: self.unknown_schema_claims,
            excess_claims: self.excess_claims,
            misplaced_agents: self.agents.iter().filter(is_misplaced).count() as i64,
            ..Counts::default()
        };
        for agent in &self.agents {
            counts.rotation_failed_agents += i64::from(agent.rotation_failed);
        }
        self.tasks.iter().for_each(|task| task.facts.count(&mut counts));
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::claim;

    fn bytes(tally: &Tally) -> usize {
        tally.names.capacity()
            + tally.agents.capacity() * size_of::<Agent>()
            + tally.tasks.capacity() * size_of::<Task>()
            + tally.agent_index.allocation_size()
            + tally.task_index.allocation_size()
    }

    #[test]
    fn tasks_beyond_the_limit_are_counted_as_excess() {
        let mut tally = Tally::default();
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
        let mut long = Tally::default();
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
        let mut tally = Tally::default();
        for number in 0..=MAX_TASKS_PER_AGENT {
            tally.count(&Claim { task: number.to_string().into(), facts: TaskFacts::DONE, ..claim("greedy", 0) });
        }
        tally.count(&Claim { facts: TaskFacts::DONE, ..claim("another", 0) });
        let counts = tally.counts(0, 1);
        assert_eq!((counts.agents, counts.excess_claims), (2, 1));
        assert_eq!(counts.tasks_done, MAX_TASKS_PER_AGENT as i64 + 1);
    }
}
