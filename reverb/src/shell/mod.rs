//! The I/O around the core: Kafka, threads, clocks and sockets.
//!
//! Two threads: the member polls the group consumer and runs the aggregators. The other follows `barpartials` and, in one
//! member of the cluster, runs the merge.

mod args;
mod audit;
mod claim_decoder;
mod dead_letters;
mod frame_table;
mod group;
mod http;
mod member;
mod merger;
mod metrics;
mod owned_partition;
mod recompute;
mod replay;
mod report_index;
mod run;
mod start_positions;
mod status;
mod timeouts;

pub use args::{Args, Reemit};
pub use audit::{AuditRange, AuditedWindow, Finding, audit};
pub use replay::{ReplayPlan, ReplayTarget, execute_replay, plan_replay};
pub use run::run;
