//! Pulse: the cluster's metronome.
//!
//! ```text
//!   Raft ────┐ Event                       Command ┌──▶ Raft
//!   Kafka ───┼────────▶ core::Leadership ──────────┼──▶ shell::Publisher ──▶ beatframes
//!   clock ───┘         (core::Metronome)           └──▶ shell::BoundarySampler ◀── last stable offsets of statusclaims
//! ```
//!
//! The core decides, and the shell executes its commands: see `ARCHITECTURE.md`.

pub mod core;
pub mod shell;
