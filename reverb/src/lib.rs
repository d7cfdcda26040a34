//! Reverb: windows the claims by beat and publishes one `BarReport` per window.
//!
//! ```text
//!  statusclaims ──▶ core::PartitionAggregator, one per partition ──▶ barpartials ──▶ core::Merge ──▶ barreports
//!                        ▲                                │               ▲      └──▶ barpartials (done)
//!  beatframes  ──▶ core::Frames (the table of lines) ─────┼───────────────┘
//!                                                         └──▶ core::CommitTracker ──▶ committed offsets
//! ```
//!
//! The core decides, the shell does: see `ARCHITECTURE.md`.

pub mod core;
pub mod shell;
