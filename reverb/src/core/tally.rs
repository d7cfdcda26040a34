//! The counts of one window.

use hashbrown::HashMap;

use super::{Claim, partition_of};

/// The counts of a window, or of one partition's share of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Distinct agents with a counted claim.
    pub agents: i64,
    /// Distinct tasks in state review or done whose beat budget is not overdrawn (`beats_left >= 0`).
    pub on_time_reviews: i64,
    /// Distinct tasks with help fulfilled.
    pub help_fulfilled: i64,
    /// Distinct agents with a failed secret rotation.
    pub rotation_failed_agents: i64,
    /// Distinct tasks in state done.
    pub tasks_done: i64,
    /// Distinct tasks in state failed.
    pub tasks_failed: i64,
    /// Counted claims.
    pub claims: i64,
    /// Counted claims made while their agent received no beats.
    pub degraded_claims: i64,
    /// Late claims in the offsets that the window owns.
    pub late_claims: i64,
    /// Invalid claims in the offsets that the window owns.
    pub invalid_claims: i64,
    /// Invalid claims whose schema id the registry does not know.
    pub unknown_schema_claims: i64,
}

impl Counts {
    /// Adds the counts of another partition's share.
    pub fn add(&mut self, other: &Self) {
        // A partial may have been written by anyone: an overflow must not stop the merge.
        let add = |sum: &mut i64, share: i64| *sum = sum.saturating_add(share);
        add(&mut self.agents, other.agents);
        add(&mut self.on_time_reviews, other.on_time_reviews);
        add(&mut self.help_fulfilled, other.help_fulfilled);
        add(&mut self.rotation_failed_agents, other.rotation_failed_agents);
        add(&mut self.tasks_done, other.tasks_done);
        add(&mut self.tasks_failed, other.tasks_failed);
        add(&mut self.claims, other.claims);
        add(&mut self.degraded_claims, other.degraded_claims);
        add(&mut self.late_claims, other.late_claims);
        add(&mut self.invalid_claims, other.invalid_claims);
        add(&mut self.unknown_schema_claims, other.unknown_schema_claims);
    }
}

/// A window's counts while they are collected, with the sets of agents and tasks that they are distinct over.
///
/// Only the sizes of the sets leave this type, so the iteration order of hash maps cannot reach a report.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    agents: HashMap<String, Agent>,
    claims: i64,
    degraded_claims: i64,
    late_claims: i64,
    invalid_claims: i64,
    unknown_schema_claims: i64,
}

#[derive(Debug, Clone, Default)]
struct Agent {
    rotation_failed: bool,
    tasks: HashMap<String, Task>,
}

#[derive(Debug, Clone, Copy, Default)]
#[allow(clippy::struct_excessive_bools, reason = "independent facts")]
struct Task {
    on_time_review: bool,
    help_fulfilled: bool,
    done: bool,
    failed: bool,
}

impl Task {
    fn add(&mut self, other: Self) {
        self.on_time_review |= other.on_time_review;
        self.help_fulfilled |= other.help_fulfilled;
        self.done |= other.done;
        self.failed |= other.failed;
    }
}

impl Tally {
    /// Counts a claim.
    pub fn count(&mut self, claim: &Claim<'_>) {
        self.claims += 1;
        self.degraded_claims += i64::from(claim.degraded);
        let Claim { on_time_review, help_fulfilled, done, failed, rotation_failed, .. } = *claim;
        let agent = self.agents.entry_ref(&*claim.agent).or_default();
        agent.rotation_failed |= rotation_failed;
        let task = Task { on_time_review, help_fulfilled, done, failed };
        agent.tasks.entry_ref(&*claim.task).or_default().add(task);
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

    /// Adds another partition's share. An agent or task in both counts once.
    pub fn add(&mut self, other: Self) {
        for (name, other) in other.agents {
            let agent = self.agents.entry(name).or_default();
            agent.rotation_failed |= other.rotation_failed;
            for (name, task) in other.tasks {
                agent.tasks.entry(name).or_default().add(task);
            }
        }
        self.claims += other.claims;
        self.degraded_claims += other.degraded_claims;
        self.late_claims += other.late_claims;
        self.invalid_claims += other.invalid_claims;
        self.unknown_schema_claims += other.unknown_schema_claims;
    }

    /// Returns the number of counted claims so far.
    pub fn claims(&self) -> i64 {
        self.claims
    }

    /// Returns true if murmur2 places any of the agents in another of the `partitions` than this one. Then the distinct
    /// counts of the partitions do not add up.
    pub fn is_misplaced(&self, partition: i32, partitions: usize) -> bool {
        self.agents.keys().any(|agent| partition_of(agent.as_bytes(), partitions) as i64 != i64::from(partition))
    }

    /// Returns the counts.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts {
            agents: self.agents.len() as i64,
            claims: self.claims,
            degraded_claims: self.degraded_claims,
            late_claims: self.late_claims,
            invalid_claims: self.invalid_claims,
            unknown_schema_claims: self.unknown_schema_claims,
            ..Counts::default()
        };
        for agent in self.agents.values() {
            counts.rotation_failed_agents += i64::from(agent.rotation_failed);
            for task in agent.tasks.values() {
                counts.on_time_reviews += i64::from(task.on_time_review);
                counts.help_fulfilled += i64::from(task.help_fulfilled);
                counts.tasks_done += i64::from(task.done);
                counts.tasks_failed += i64::from(task.failed);
            }
        }
        counts
    }
}
