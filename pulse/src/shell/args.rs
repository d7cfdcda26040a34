//! Pulse's command line.

use backbeat_broker::KafkaArgs;
use backbeat_schemas::Tempo;
use backbeat_service::{HttpArgs, LogArgs};

use crate::core::Plan;

/// The cluster's metronome: publishes one `BeatFrame` per beat.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "pulse", version)]
pub struct Args {
    /// The cluster's name.
    #[arg(long, env = "BACKBEAT_CLUSTER", default_value = "backbeat")]
    pub cluster: String,

    /// This node's name.
    #[arg(long, env = "BACKBEAT_NODE", default_value = "pulse-1")]
    pub node: String,

    /// The tempo of a new cluster, in beats per minute.
    #[arg(long, default_value_t = Tempo::DEFAULT.bpm())]
    pub bpm: f64,

    /// Beats in a bar of a new cluster.
    #[arg(long, alias = "bar-length", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub bar: u16,

    /// Beats after a window's end in which its claims still count, for a new cluster; at most a bar.
    #[arg(long, default_value_t = 0)]
    pub grace: u16,

    /// The slowest tempo allowed, in beats per minute.
    #[arg(long, default_value_t = DEFAULT_MIN_BPM)]
    pub min_bpm: f64,

    /// The fastest tempo allowed, in beats per minute.
    #[arg(long, default_value_t = DEFAULT_MAX_BPM)]
    pub max_bpm: f64,

    /// Port of the HTTP server, 0 for a free one.
    #[arg(long, default_value_t = 8080)]
    pub admin_port: u16,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub http: HttpArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub kafka: KafkaArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub log: LogArgs,
}

/// The prototype's bounds.
const DEFAULT_MIN_BPM: f64 = 1.0;
const DEFAULT_MAX_BPM: f64 = 24.0;

/// A flag whose value cannot be.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum FlagError {
    /// A tempo out of bounds.
    #[error("--bpm {bpm} is out of bounds; allowed are {min} to {max} BPM (--min-bpm, --max-bpm)")]
    Tempo {
        /// The tempo asked for.
        bpm: f64,
        /// The slowest.
        min: f64,
        /// The fastest.
        max: f64,
    },
    /// A grace longer than a bar.
    #[error("--grace {grace} is longer than a bar; allowed are 0 to {bar} beats")]
    Grace {
        /// The grace asked for.
        grace: u16,
        /// The bar.
        bar: u16,
    },
    /// A name that cannot be a cluster's.
    #[error("--cluster is empty")]
    NoCluster,
}

impl Args {
    /// What a new cluster starts with.
    pub fn plan(&self) -> Result<Plan, FlagError> {
        if self.min_bpm != DEFAULT_MIN_BPM || self.max_bpm != DEFAULT_MAX_BPM {
            tracing::warn!(self.min_bpm, self.max_bpm, "tempo bounds differ from the standard 1 to 24 BPM");
        }
        let out_of_bounds = FlagError::Tempo { bpm: self.bpm, min: self.min_bpm, max: self.max_bpm };
        let tempo = Tempo::try_from(self.bpm).ok().filter(|tempo| (self.min_bpm..=self.max_bpm).contains(&tempo.bpm()));
        let Some(tempo) = tempo else { return Err(out_of_bounds) };
        if self.grace > self.bar {
            return Err(FlagError::Grace { grace: self.grace, bar: self.bar });
        }
        if self.cluster.is_empty() {
            return Err(FlagError::NoCluster);
        }
        Ok(Plan { cluster_id: self.cluster.clone(), tempo, bar_length: self.bar, grace_beats: self.grace })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn plan(flags: &[&str]) -> Result<Plan, FlagError> {
        Args::parse_from([&["pulse"], flags].concat()).plan()
    }

    #[test]
    fn the_defaults_are_the_prototypes() {
        let plan = plan(&[]).expect("defaults are allowed");
        assert_eq!((plan.tempo.bpm(), plan.bar_length, plan.grace_beats), (1.0, 8, 0));
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_with_the_bounds() {
        let error = plan(&["--bpm", "25"]).expect_err("too fast").to_string();
        assert_eq!(error, "--bpm 25 is out of bounds; allowed are 1 to 24 BPM (--min-bpm, --max-bpm)");
        assert!(plan(&["--bpm", "25", "--max-bpm", "30"]).is_ok());
        assert!(plan(&["--bpm", "NaN"]).is_err());
        assert_eq!(plan(&["--bar", "4", "--grace", "5"]), Err(FlagError::Grace { grace: 5, bar: 4 }));
    }
}
