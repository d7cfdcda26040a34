//! Pulse: the cluster's metronome.
//!
//! ```text
//!             Event                       Command
//!  Kafka ───────────────▶ core::Leadership ───────▶ shell::Conductor ──▶ beatframes
//!  clock                  (core::Metronome)              │
//!                                                   shell::Lines ◀── ends of statusclaims
//! ```
//!
//! The core decides, the shell does: see `ARCHITECTURE.md`.

pub mod core;
pub mod shell;
