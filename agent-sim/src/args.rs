//! The command line of agent-sim.

use std::path::PathBuf;

use backbeat_sdk::KafkaArgs;
use backbeat_service::LogArgs;

use crate::{Output, Rates, Shape};

/// Simulates a fleet of agents that follow the beats and send claims of their tasks.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "agent-sim", version)]
pub struct Args {
    /// Number of agents.
    #[arg(long, default_value_t = 20)]
    pub agents: u32,

    /// The random seed: the same seed and beats give the same claims, except for their HLC timestamps.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// Prefix of the agent ids, which end in a number.
    #[arg(long, default_value = "agent-")]
    pub agent_prefix: String,

    /// Stop after this many beats; 0 runs until stopped, or until the task list ends.
    #[arg(long, default_value_t = 0)]
    pub beats: u64,

    /// Fraction of tasks, and of secret rotations, that fail.
    #[arg(long, default_value_t = 0.05, value_parser = parse_fraction)]
    pub failure_rate: f64,

    /// Fraction of claims that are not sent.
    #[arg(long, default_value_t = 0.02, value_parser = parse_fraction)]
    pub silence_rate: f64,

    /// Fraction of claims that are sent one bar plus the grace late, so that they count as late.
    #[arg(long, default_value_t = 0.0, value_parser = parse_fraction)]
    pub late_rate: f64,

    /// Fraction of claims that are made invalid on purpose.
    #[arg(long, default_value_t = 0.0, value_parser = parse_fraction)]
    pub malformed_rate: f64,

    /// Fraction of tasks in the middle of which the agent sends nothing for three bars of four beats.
    #[arg(long, default_value_t = 0.0, value_parser = parse_fraction)]
    pub silent_task_rate: f64,

    /// Fraction of tasks in the middle of which nothing moves for as long.
    #[arg(long, default_value_t = 0.0, value_parser = parse_fraction)]
    pub stalled_task_rate: f64,

    /// Fraction of tasks whose beat budget is half of what they need.
    #[arg(long, default_value_t = 0.0, value_parser = parse_fraction)]
    pub overdrawn_task_rate: f64,

    /// The load shape: steady (all agents on every beat), ramp[:BEATS] (from a few agents to all in 16 beats),
    /// spike[:FRACTION] (all agents on downbeats, 10 % of them on other beats) or churn[:FRACTION] (on each beat 5 % of
    /// the agents are replaced by new ones).
    #[arg(long, default_value = "steady")]
    pub shape: Shape,

    /// A recorded task list to replay instead, with one agent per task: a CSV file of pods (columns name,
    /// `pod_phase`, `creation_time`, `scheduled_time` and `deletion_time`, in seconds) or of LLM requests (columns
    /// TIMESTAMP and `GeneratedTokens`; a request lasts as long as its tokens take at 20 per second).
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,

    /// Seconds of the task list per beat.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub trace_seconds_per_beat: u64,

    /// After the run, wait for the reports and check that each agent's claims are in the log, that the reports count
    /// them correctly, and that the rosters name those agents that need attention, and no others. Needs reverb, memory
    /// for each claim, and up to two more bars of time.
    #[arg(long)]
    pub verify: bool,

    /// Format of the summary.
    #[arg(long, value_enum, default_value = "text")]
    pub output: Output,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub kafka: KafkaArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub log: LogArgs,
}

fn parse_fraction(text: &str) -> Result<f64, String> {
    let fraction: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if (0.0..=1.0).contains(&fraction) {
        Ok(fraction)
    } else {
        Err(format!("{fraction} is out of range: must be between 0 and 1"))
    }
}

impl Args {
    /// Returns the rates at which tasks and claims go wrong.
    pub fn rates(&self) -> Rates {
        Rates {
            failure: self.failure_rate,
            silence: self.silence_rate,
            late: self.late_rate,
            malformed: self.malformed_rate,
            silent_tasks: self.silent_task_rate,
            stalled_tasks: self.stalled_task_rate,
            overdrawn_tasks: self.overdrawn_task_rate,
        }
    }
}
