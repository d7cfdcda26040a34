//! What pulse decides, without I/O, clock or randomness: events and the time in, commands out.

mod leadership;
mod line;
mod metronome;

pub use leadership::{Command, Event, Leadership, StopReason};
pub use line::Line;
pub use metronome::{Metronome, Plan};
