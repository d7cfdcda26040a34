//! What touches Kafka, threads, clocks and sockets.

mod args;
mod conductor;
mod http;
mod lines;
mod metrics;
mod run;
mod status;

pub use args::Args;
pub use run::run;
