//! Reverb's command line.

use backbeat_broker::{GroupProtocol, KafkaArgs};
use backbeat_service::{HttpArgs, LogArgs};

/// Windows the claims by beat and publishes one `BarReport` per bar, exactly once.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "reverb", version)]
pub struct Args {
    /// The cluster's name.
    #[arg(long, env = "BACKBEAT_CLUSTER", default_value = "backbeat")]
    pub cluster: String,

    /// This member's name, in logs and partials; a random part is added.
    #[arg(long, env = "BACKBEAT_NODE", default_value = "reverb")]
    pub node: String,

    /// Stop with an error if a window opens with another number of beats. The prototype's spelling, --bar-length, works too.
    #[arg(long, alias = "bar-length", value_name = "BEATS")]
    pub expect_bar_length: Option<u16>,

    /// Whether a replay writes reports that are there already with the same bytes.
    #[arg(long, value_enum, default_value_t = Reemit::Changed)]
    pub reemit: Reemit,

    /// How members agree on who reads which partition; all of a group the same.
    #[arg(long, value_enum, default_value_t = GroupProtocol::Classic)]
    pub group_protocol: GroupProtocol,

    /// Port of the HTTP server, 0 for a free one.
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

/// Which reports a replay writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Reemit {
    /// Those that are missing or different.
    Changed,
    /// All of them.
    Always,
}
