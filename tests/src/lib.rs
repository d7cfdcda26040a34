//! What the end-to-end tests and benchmarks stand on: one Kafka and registry for all of them, and a
//! BACKBEAT cluster of its own, with its own topics, for each.

mod cluster;
mod program;
mod pulse_nodes;
mod secured;
mod wait;

pub use cluster::{Cluster, own_devstack, runtime, stack, start_stack_for_throughput};
pub use program::{Program, run};
pub use pulse_nodes::PulseNodes;
pub use secured::{SecuredKafka, SecuredRegistry};
pub use wait::{wait_for, wait_until};
