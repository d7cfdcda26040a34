//! Reverb's command line.

use backbeat_broker::{GroupProtocol, KafkaArgs};
use backbeat_service::{HttpArgs, LogArgs};

/// Aggregates claims into windows by beat and publishes one `BarReport` per bar, exactly once.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "reverb", version)]
pub struct Args {
    /// The cluster's name.
    #[arg(long, env = "BACKBEAT_CLUSTER", default_value = "backbeat")]
    pub cluster: String,

    /// This member's name in logs and partials; a random suffix is added.
    #[arg(long, env = "BACKBEAT_NODE", default_value = "reverb")]
    pub node: String,

    /// Stop with an error if a window opens with another number of beats (alias: --bar-length).
    #[arg(long, alias = "bar-length", value_name = "BEATS")]
    pub expect_bar_length: Option<u16>,

    /// The reports that a replay writes: only missing or different ones, or also identical ones.
    #[arg(long, value_enum, default_value_t = Reemit::Changed)]
    pub reemit: Reemit,

    /// Rebalance protocol of the consumer group; the same for all members.
    #[arg(long, value_enum, default_value_t = GroupProtocol::Classic)]
    pub group_protocol: GroupProtocol,

    /// Seconds without a heartbeat after which the group removes a member, with the classic protocol. The broker sets
    /// the limits: by default at least 6 (`group.min.session.timeout.ms`).
    #[arg(long, value_name = "SECONDS", default_value_t = 6, value_parser = clap::value_parser!(u64).range(3..=1800))]
    pub session_timeout: u64,

    /// Milliseconds of silence after which another member takes the merge over, or reads the claims of a member that has
    /// not sent its share of a window. Longer than a transaction takes.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(300..=60_000))]
    pub takeover_after: u64,

    /// Port of the HTTP server; 0 picks a free one.
    #[arg(long, env = "BACKBEAT_ADMIN_PORT", default_value_t = 8082)]
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

/// The reports that a replay writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Reemit {
    /// Missing or different reports only.
    Changed,
    /// All reports, identical ones too.
    Always,
}
