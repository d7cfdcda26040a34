//! Seeded fleets of agents: what they claim is pure (`fleet`, `trace`), sending it is `drive`, and `ledger` is what
//! `--verify` goes by.

mod agents;
mod args;
mod claim_plan;
mod drive;
mod fleet;
mod ledger;
mod progress;
mod shape;
mod summary;
mod trace;
mod verify;

pub use args::Args;
pub use claim_plan::{ClaimPlan, Fate, Malformation};
pub use drive::run;
pub use fleet::{Fleet, Rates};
pub use shape::{Shape, UnknownShape};
pub use summary::Output;
pub use trace::{Trace, TraceError};
