//! For agents: keep the beat, spend beat budgets, report the state of each task.
//!
//! ```no_run
//! # async fn example(args: backbeat_sdk::KafkaArgs) -> Result<(), backbeat_sdk::ConnectError> {
//! use std::time::Duration;
//!
//! use backbeat_sdk::{Connection, State};
//!
//! // Returns at once, whether Kafka is there or not.
//! let connection = Connection::new(&args, "my-agent")?;
//! let mut beats = connection.beats()?;
//! let tasks = connection.tasks(&beats);
//!
//! // Claimed for on every beat from here on, with the newest of what is said of it.
//! let task = tasks.task("my-agent", "build", Some(4));
//! task.state(State::Executing);
//! let outcome = beats.with_beat_budget(4, async {
//!     task.progress(0.5);
//!     tokio::time::sleep(Duration::from_secs(60)).await;
//! });
//! match outcome.await {
//!     Ok(()) => task.finish(State::Done),
//!     Err(spent) => {
//!         task.notes(&spent.to_string());
//!         task.finish(State::Failed);
//!     }
//! }
//! let claims = tasks.flush(Duration::from_secs(5)).await;
//! println!("{} claims reported, {} lost", claims.acknowledged, claims.lost);
//!
//! // The beats themselves, heard or, where none is heard in time, local ones.
//! while let Some(beat) = beats.next().await {
//!     println!("{beat:?}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A beat that is overdue is kept locally, at the last tempo that was heard (1 BPM if none was): the work goes on without
//! Kafka, its budget runs, and its claims say `degraded` and carry the last beat that was heard. See [`BeatClock`].

mod beats;
mod budget;
mod clock;
mod connection;
mod reporter;
mod tasks;

pub use backbeat_broker::{Deliveries, KafkaArgs, QueueFull};
pub use backbeat_schemas::{BeatFrame, BeatIndex, Help, SecretRotation, State, StatusClaim};
pub use beats::Beats;
pub use budget::BudgetSpent;
pub use clock::{Beat, BeatClock, BeatSource};
pub use connection::{ConnectError, Connection};
pub use reporter::{Reporter, Status};
pub use tasks::{Claims, Task, Tasks};
