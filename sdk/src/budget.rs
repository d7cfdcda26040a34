//! Work that may take so many beats.

use std::future::Future;

use crate::Beats;

/// A beat budget was spent before the work was done. The work was dropped where it waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the budget of {budget} beats is spent: the work ran for {ran} beats and was stopped")]
pub struct BudgetSpent {
    /// What it was given.
    pub budget: u32,
    /// How many beats it ran: its budget, or more where beats came in a burst.
    pub ran: u32,
}

impl Beats {
    /// Runs `task` for at most `budget` beats, heard or local. When they have gone by, `task` is dropped.
    ///
    /// A budget inside another one ends with the outer one at the latest: the outer one drops it.
    ///
    /// ```no_run
    /// # async fn example(beats: backbeat_sdk::Beats) {
    /// match beats.with_beat_budget(4, async { "built" }).await {
    ///     Ok(built) => println!("{built}"),
    ///     Err(spent) => println!("{spent}"), // the budget of 4 beats is spent: ...
    /// }
    /// # }
    /// ```
    pub async fn with_beat_budget<T>(&self, budget: u32, task: impl Future<Output = T>) -> Result<T, BudgetSpent> {
        let mut periods = self.periods();
        // The listener may have been told of a beat that is just being counted.
        let began = self.told().max(*periods.borrow());
        let spent_at = began + u64::from(budget);
        let spent = async {
            // The stream ends with the runtime: then nobody waits any more.
            let total = periods.wait_for(|total| *total >= spent_at).await.map_or(spent_at, |total| *total);
            BudgetSpent { budget, ran: u32::try_from(total.saturating_sub(began)).unwrap_or(u32::MAX) }
        };
        tokio::select! {
            // First, so that of two budgets that end at once the outer one says so.
            biased;
            spent = spent => Err(spent),
            done = task => Ok(done),
        }
    }
}
