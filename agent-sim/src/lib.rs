//! Simulated agents: `fleet` and `trace` plan the claims, without I/O; `drive` sends them; with `--verify`, `verify`
//! reads the log and the reports back, and `ledger` compares them with the sent claims.

mod agents;
mod args;
mod claim_plan;
mod drive;
mod expected_rosters;
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
