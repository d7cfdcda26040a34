//! Agent-sim's command line.

use std::path::PathBuf;

use backbeat_sdk::KafkaArgs;
use backbeat_service::LogArgs;

use crate::Rates;

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

    /// Drive the agents from a task list instead: a CSV file with the columns name, `pod_phase`,
    /// `creation_time`, `scheduled_time` and `deletion_time` (seconds). Each task is an agent.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,

    /// Seconds of the task list that pass in a beat.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub trace_seconds_per_beat: u64,

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
