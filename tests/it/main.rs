//! End-to-end tests: real programs against a real Kafka and schema registry.

mod agent_sim;
mod cli;
mod connect;
mod devstack;
mod docs;
mod faults;
mod frames;
mod hostile;
mod http_api;
mod http_fuzz;
mod http_limits;
mod interop;
mod invalid_claims;
mod log_reader;
mod lost_clients;
mod members;
mod pipeline;
mod pulse;
mod pulse_faults;
mod raft_security;
mod reverb_faults;
mod run;
mod schemas;
mod sdk;
mod security;
mod tempo;
