//! Pulse: the cluster's metronome.
//!
//! ```text
//!   Raft ────┐ Event                       Command ┌──▶ Raft
//!   Kafka ───┼────────▶ core::Leadership ──────────┼──▶ shell::Publisher ──▶ beatframes
//!   clock ───┘         (core::Metronome)           └──▶ shell::BoundarySampler ◀── last stable offsets of statusclaims
//! ```
//!
//! The core turns events into commands, and the shell executes them: see `ARCHITECTURE.md`.

pub mod core;
mod shell;

pub use shell::{Args, FlagError, run};
