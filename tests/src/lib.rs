//! The fixture of the end-to-end tests and benchmarks: one Kafka and schema registry for a test run, and for each test
//! a BACKBEAT cluster with topics of its own.

mod attacker;
mod browser;
mod chaos;
mod cluster;
mod kafka_proxy;
mod measure;
mod oracle;
mod program;
mod pulse_nodes;
mod secured;
mod small_disk;
mod wait;
mod watchdog;

pub use attacker::Attacker;
pub use browser::Browser;
pub use chaos::{Chaos, ChaosResult};
pub use cluster::{Cluster, own_devstack, runtime, stack, start_stack_for_throughput};
pub use kafka_proxy::{ApiKey, KafkaProxy, ProxyFault, ResponseError};
pub use measure::{cpu_seconds, now_ms, peak_mib, percentile, resident_mib};
pub use oracle::{Oracle, Raw, assert_reports_equal, read_claims, read_raw};
pub use program::{Program, run};
pub use pulse_nodes::PulseNodes;
pub use secured::{SecuredKafka, SecuredRegistry};
pub use small_disk::SmallDisk;
pub use wait::{wait_for, wait_for_boundaries, wait_until};
