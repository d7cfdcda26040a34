//! The shell: everything that touches Kafka, Raft, threads, clocks and sockets.

mod args;
mod boundary_sampler;
mod conductor;
mod control;
mod events;
mod http;
mod metrics;
mod newest_beat;
mod publisher;
mod raft;
mod run;
mod status;
mod watcher;

pub use args::{Args, FlagError};
pub use run::run;
