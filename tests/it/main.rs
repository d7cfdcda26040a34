//! End-to-end tests: real programs against a real Kafka and schema registry.

mod oracle;
mod pipeline;
mod pulse;
