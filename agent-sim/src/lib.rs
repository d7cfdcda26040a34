//! Simulated agents: `fleet` and `trace` decide what is claimed, without I/O; `drive` sends it; with `--verify`,
//! `verify` reads the log and the reports back, and `ledger` compares them with what was sent.

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
pub use claim_plan::{ClaimPlan, Delivery, Malformation};
pub use drive::run;
pub use fleet::{Fleet, Rates};
pub use shape::{Shape, UnknownShape};
pub use summary::Output;
pub use trace::{Trace, TraceError};
