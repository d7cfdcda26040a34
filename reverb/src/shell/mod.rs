//! The I/O around the core: Kafka, threads, clocks and sockets.
//!
//! Two threads: the member polls the group consumer and runs the aggregators. The other follows `barpartials` and, in one
//! member of the cluster, runs the merge.

pub mod agent_history;
mod args;
pub mod audit;
mod claim_decoder;
pub mod corrections;
mod events;
mod frame_table;
mod group;
mod http;
mod member;
mod merge_context;
mod merge_producer;
mod merge_thread;
mod merger;
mod metrics;
mod owned_partition;
mod recompute;
pub mod replay;
mod report_index;
pub mod rosters;
mod run;
mod share_records;
mod start_positions;
mod status;
mod timeouts;

pub use args::{Args, Reemit};
pub use run::run;
