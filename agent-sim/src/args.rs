//! Agent-sim's command line.

use std::path::PathBuf;

use backbeat_sdk::KafkaArgs;
use backbeat_service::LogArgs;

use crate::{Output, Rates, Shape};

/// A fleet of simulated agents that follow the beats and report their tasks.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "agent-sim", version)]
pub struct Args {
    /// How many agents.
    #[arg(long, default_value_t = 20)]
    pub agents: u32,

    /// The same seed and the same beats give the same claims, but for clocks.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// What stands before each agent's number in its name.
    #[arg(long, default_value = "agent-")]
    pub agent_prefix: String,

    /// Stop after this many beats; 0 goes on until stopped, or until the trace ends.
    #[arg(long, default_value_t = 0)]
    pub beats: u64,

    /// The share of tasks, and of secret rotations, that fail.
    #[arg(long, default_value_t = 0.05, value_parser = share)]
    pub failure_rate: f64,

    /// The share of claims that are never made.
    #[arg(long, default_value_t = 0.02, value_parser = share)]
    pub silence_rate: f64,

    /// The share of claims that are sent a bar late.
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    pub late_rate: f64,

    /// The share of claims that break a rule.
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    pub malformed_rate: f64,

    /// The shape of the load: steady (all agents on every beat), ramp[:BEATS] (from a few to all in 16 beats),
    /// spike[:SHARE] (all on downbeats, a tenth of them between) or churn[:SHARE] (on each beat 5 % give their places
    /// to new ones).
    #[arg(long, default_value = "steady")]
    pub shape: Shape,

    /// Drive the agents by a recorded task list instead, each task an agent: a CSV file of pods (columns name,
    /// `pod_phase`, `creation_time`, `scheduled_time` and `deletion_time`, in seconds) or of requests to a language model
    /// (columns TIMESTAMP and `GeneratedTokens`; a request lasts as long as its tokens take at 20 a second).
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,

    /// Seconds of the task list that pass in a beat.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub trace_seconds_per_beat: u64,

    /// In the end, wait for the reports, and check that what was sent is in the log, agent by agent, and that the
    /// reports count what is there. Takes memory for each claim, up to two bars of beats, and reverb running.
    #[arg(long)]
    pub verify: bool,

    /// How the summary is shown.
    #[arg(long, value_enum, default_value = "text")]
    pub output: Output,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub kafka: KafkaArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub log: LogArgs,
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err(format!("{share} is not a share; allowed are 0 to 1")) }
}

impl Args {
    /// The rates among the flags.
    pub fn rates(&self) -> Rates {
        Rates {
            failure: self.failure_rate,
            silence: self.silence_rate,
            late: self.late_rate,
            malformed: self.malformed_rate,
        }
    }
}
