//! What pulse decides, without I/O, clock or randomness: events and the time in, commands out.

mod event;
mod leadership;
mod line;
mod metronome;
mod plan;

pub use event::{Command, Event, Now, Standing, StopReason};
pub use leadership::{Leadership, Role};
pub use line::Line;
pub use metronome::{Metronome, Seed};
pub use plan::{Bounds, MAX_BAR_LENGTH, Plan, Refusal, Request};
