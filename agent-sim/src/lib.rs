//! Seeded fleets of agents: what they claim is pure (`fleet`, `trace`), sending it is `drive`.

mod args;
mod claim_plan;
mod drive;
mod fleet;
mod trace;

pub use args::Args;
pub use claim_plan::{ClaimPlan, Fate, Malformation};
pub use drive::run;
pub use fleet::{Fleet, Rates};
pub use trace::{Trace, TraceError};
