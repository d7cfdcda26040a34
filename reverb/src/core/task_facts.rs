//! The facts about tasks that claims state, and the counts of these tasks.

use backbeat_schemas::{BorrowedClaim, Counts, Help, State};
use bitflags::bitflags;

bitflags! {
    /// The facts about a task that distinct counts need: each is set once a claim has stated it.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct TaskFacts: u8 {
        /// The task is in state review or done, and its beat budget is not overdrawn (`beats_left >= 0`).
        const ON_TIME_REVIEW = 1;
        /// Help that was promised has been given.
        const HELP_FULFILLED = 1 << 1;
        /// The task is done.
        const DONE = 1 << 2;
        /// The task failed.
        const FAILED = 1 << 3;
    }
}

impl TaskFacts {
    /// Returns the facts that `claim` states.
    pub(crate) fn of(claim: &BorrowedClaim<'_>) -> Self {
        let mut facts = Self::empty();
        facts.set(Self::ON_TIME_REVIEW, matches!(claim.state, State::Review | State::Done) && claim.beats_left >= 0);
        facts.set(Self::HELP_FULFILLED, claim.help == Some(Help::Fulfilled));
        facts.set(Self::DONE, claim.state == State::Done);
        facts.set(Self::FAILED, claim.state == State::Failed);
        facts
    }

    /// Returns true if the task was done or failed, even if a later claim opened it again.
    pub(crate) fn has_ended(self) -> bool {
        self.intersects(Self::DONE | Self::FAILED)
    }

    /// Counts a task of which these facts are known.
    pub fn count(self, counts: &mut Counts) {
        counts.on_time_reviews += i64::from(self.contains(Self::ON_TIME_REVIEW));
        counts.help_fulfilled += i64::from(self.contains(Self::HELP_FULFILLED));
        counts.tasks_done += i64::from(self.contains(Self::DONE));
        counts.tasks_failed += i64::from(self.contains(Self::FAILED));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fact_is_in_one_count_of_its_own() {
        let mut counted = Vec::new();
        for fact in TaskFacts::all() {
            let mut counts = Counts::default();
            fact.count(&mut counts);
            assert_ne!(counts, Counts::default(), "{fact:?} is in no count");
            assert!(!counted.contains(&counts), "{fact:?} is in the count of another fact");
            counted.push(counts);
        }
    }
}
