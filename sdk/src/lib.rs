//! The SDK for agents of a BACKBEAT cluster: follow the cluster's beats, bound work by beat budgets, and send a claim
//! with the status of each task on every beat.
//!
//! # Terms
//!
//! - **Beat**: one tick of the cluster's tempo. The pulse leader publishes one [`BeatFrame`] per beat to the topic
//!   `beatframes`; beat indices start at 0, without gaps or repeats. The tempo is given in beats per minute (BPM), and
//!   the time from one beat to the next is a *period*: 60 s at 1 BPM.
//! - **Bar**: a fixed number of beats ([`BeatFrame::bar_length`]); its first beat is the *downbeat*. BACKBEAT publishes
//!   one report per bar.
//! - **Claim**: a [`StatusClaim`], an agent's record of the status of one task on one beat. Claims go
//!   to the topic `statusclaims`, and the reports are computed from them.
//! - **Heard beat**: a beat that the agent read from Kafka. **Local beat**: a beat of the agent's own clock, made when
//!   a beat is overdue.
//! - **Beat budget**: the number of beats that a task may take. Heard and local beats consume it alike, one per period.
//! - **Degraded**: an agent that hears no beats is degraded. It continues on local beats, and its claims carry the last
//!   beat that it heard and are marked `degraded`.
//!
//! # Example
//!
//! ```no_run
//! # async fn example(args: backbeat_sdk::KafkaArgs) -> Result<(), backbeat_sdk::ConnectError> {
//! use std::time::Duration;
//!
//! use backbeat_sdk::{Connection, State};
//!
//! // Returns at once, even if Kafka is unavailable.
//! let connection = Connection::new(&args, "my-agent")?;
//! let mut beats = connection.beats()?;
//! let tasks = connection.tasks(&beats);
//!
//! // From here on, a claim with the task's current status goes out on every beat.
//! let task = tasks.task("my-agent", "build", Some(4));
//! task.set_state(State::Executing);
//! let outcome = beats.with_beat_budget(4, async {
//!     task.set_progress(0.5);
//!     tokio::time::sleep(Duration::from_secs(60)).await;
//! });
//! match outcome.await {
//!     Ok(()) => task.finish(State::Done),
//!     Err(spent) => {
//!         task.set_notes(&spent.to_string());
//!         task.finish(State::Failed);
//!     }
//! }
//! let claims = tasks.flush(Duration::from_secs(5)).await;
//! println!("{} claims acknowledged, {} failed", claims.acknowledged, claims.failed);
//!
//! // The beats themselves: heard ones, and local ones while none is heard.
//! while let Some(beat) = beats.next().await {
//!     println!("{beat:?}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Without Kafka
//!
//! No work waits for Kafka. When a beat is overdue, the agent's clock makes local beats at the last tempo that it
//! heard, or at 1 BPM if it has heard none: work continues and its budget runs. [`BeatClock`] has the rules. Claims are
//! queued, and fail only once the queue is full or Kafka has been unavailable for 5 minutes; [`Tasks::claim_counts`]
//! counts them.
//!
//! # Runtime
//!
//! The SDK runs in a tokio runtime and logs with `tracing`. To control each claim yourself, see [`ClaimSender`]; for
//! programs that are not written in Rust, see the command `backbeat run`.

mod beats;
mod budget;
mod claim_sender;
mod clock;
mod connection;
mod tasks;

#[doc(inline)]
pub use backbeat_broker::{Deliveries, KafkaArgs, QueueFull};
#[doc(inline)]
pub use backbeat_schemas::{BeatFrame, BeatIndex, Help, SecretRotation, State, StatusClaim};
pub use beats::Beats;
pub use budget::BudgetSpent;
pub use claim_sender::{ClaimSender, Outstanding, Status};
pub use clock::{Beat, BeatClock, BeatSource};
pub use connection::{ConnectError, Connection};
pub use tasks::{ClaimCounts, Task, Tasks};
