//! Reverb: windows the claims by beat and publishes one `BarReport` per window.
//!
//! ```text
//!  statusclaims ──▶ core::Fold, one per partition ──▶ barpartials ──▶ core::Merge ──▶ barreports
//!                        ▲                                │               ▲      └──▶ barpartials (done)
//!  beatframes  ──▶ core::Frames (the table of lines) ─────┼───────────────┘
//!                                                         └──▶ core::Progress ──▶ committed offsets
//! ```
//!
//! The core decides, the shell does: see `ARCHITECTURE.md`.

pub mod core;
pub mod shell;
