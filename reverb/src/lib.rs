//! Reverb: windows the claims by beat and publishes one `BarReport` per window.
//!
//! ```text
//!  statusclaims ──▶ core::PartitionAggregator, one per partition ──▶ barpartials ──▶ core::Merge ──▶ barreports
//!                        ▲                                │               ▲      └──▶ barpartials (done)
//!  beatframes  ──▶ core::Frames (with their boundaries) ──┼───────────────┘
//!                                                         └──▶ core::CommitTracker ──▶ committed offsets
//! ```
//!
//! The core computes, and the shell reads and writes: see `ARCHITECTURE.md`. The terms are defined in `docs/design.md`,
//! sections "The idea" and "Reverb".

pub mod core;
mod shell;

pub use shell::{Args, Reemit, agent_history, audit, corrections, replay, rosters, run};
