//! Beat budgets: work that may take a given number of beats.

use std::future::Future;

use crate::Beats;

/// The error of work that did not complete within its beat budget. Its future was dropped at the await point that it
/// had reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the budget of {budget} beats is spent: the work ran for {ran} beats and was stopped")]
pub struct BudgetSpent {
    /// The budget, in beats.
    pub budget: u32,
    /// The number of beats that the work ran for: the budget, or more if one beat stood for several periods.
    pub ran: u32,
}

impl Beats {
    /// Runs `task` for at most `budget` beats, heard or local, counted from the last beat. After these, `task` is
    /// dropped at its current await point, and the error is [`BudgetSpent`].
    ///
    /// Budgets nest: when the outer budget is spent, it drops the inner one with its work.
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
        // The newest count: beats that were counted before this call do not consume the budget, received or not.
        let started = self.received_periods().max(*periods.borrow());
        let spent_at = started + u64::from(budget);
        let spent = async {
            // The watch closes only when the runtime shuts down.
            let total = periods.wait_for(|total| *total >= spent_at).await.map_or(spent_at, |total| *total);
            BudgetSpent { budget, ran: u32::try_from(total.saturating_sub(started)).unwrap_or(u32::MAX) }
        };
        tokio::select! {
            // The budget is polled first, so that of two nested budgets spent on the same beat the outer one returns
            // the error.
            biased;
            spent = spent => Err(spent),
            output = task => Ok(output),
        }
    }
}
