//! Pulse's decisions, without I/O, clock or randomness: events and the time in, commands out.

mod boundary;
mod event;
mod leadership;
mod metronome;
mod plan;
mod published_beats;
mod quorum_checks;
mod raft_timeouts;

pub use boundary::Boundary;
pub use event::{Command, Event, KafkaCommand, KafkaResponse, Now, RaftRole, StopReason};
pub use leadership::{Leadership, Role};
pub use metronome::{InitialConfig, Metronome};
pub use plan::{MAX_BAR_LENGTH, Plan, PlanRequest, Refusal, TempoBounds};
pub use raft_timeouts::RaftTimeouts;
