//! End-to-end tests: real programs against a real Kafka and schema registry.

mod cli;
mod devstack;
mod interop;
mod invalid_claims;
mod oracle;
mod pipeline;
mod pulse;
