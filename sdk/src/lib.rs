//! For agents: hear the beats, report the state of each task.
//!
//! ```no_run
//! # async fn example(args: backbeat_sdk::KafkaArgs) -> Result<(), backbeat_sdk::ConnectError> {
//! use backbeat_sdk::{Connection, State, Status};
//!
//! let connection = Connection::open(&args, "my-agent").await?;
//! let mut beats = connection.beats()?;
//! let mut reporter = connection.reporter()?;
//! while let Some(frame) = beats.next().await {
//!     let status = Status { beats_left: 3, progress: 0.5, ..Status::new("my-agent", "my-task", State::Executing) };
//!     if reporter.report(&frame, &status).is_err() {
//!         // Kafka is slow: this state is not reported, the next one will be.
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod beats;
mod connection;
mod reporter;

pub use backbeat_broker::{Deliveries, KafkaArgs, QueueFull};
pub use backbeat_schemas::{BeatFrame, BeatIndex, Help, SecretRotation, State, StatusClaim};
pub use beats::Beats;
pub use connection::{ConnectError, Connection};
pub use reporter::{Reporter, Status};
