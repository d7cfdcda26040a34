//! The bodies of pulse's API.

use std::borrow::Cow;

use backbeat_schemas::{BeatFrame, BeatIndex, Tempo};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The body of `/api/v1/status`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StatusBody {
    /// The cluster's name.
    pub cluster_id: String,
    /// The node's name.
    pub node: String,
    /// The node's role.
    pub role: RoleName,
    /// The name of Raft's leader, as far as this node knows.
    pub leader: Option<String>,
    /// The term of the newest beat.
    pub term: Option<i64>,
    /// The newest beat.
    pub beat: Option<BeatIndex>,
    /// The tempo in beats per minute.
    pub tempo_bpm: Option<Tempo>,
    /// Beats in a bar.
    pub bar_length: Option<u16>,
    /// A committed change that is not yet carried out.
    pub pending: Option<Pending>,
    /// The jitter of the last beats that this node published.
    pub jitter_ms: Option<Jitter>,
    /// The nodes of the cluster.
    pub members: Vec<NodeStatus>,
    /// The newest committed frame.
    pub last_beat: Option<BeatFrame>,
    /// The services that must answer before this node can take part.
    pub waiting_for: Option<String>,
}

/// A committed change that is not yet carried out.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Pending {
    /// The beat from which the change applies: it takes effect at the first downbeat at or after this beat.
    pub from_beat: BeatIndex,
    /// The tempo in beats per minute.
    pub tempo_bpm: Tempo,
    /// Beats in a bar.
    pub bar_length: u16,
    /// True if the change takes more than one step of 10 %.
    pub ramp: bool,
}

/// Percentiles of the absolute difference between `emitted_at` and `scheduled_at`, in milliseconds.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Jitter {
    /// The number of beats.
    pub beats: usize,
    /// The median.
    pub p50: i64,
    /// The 95th percentile.
    pub p95: i64,
    /// The 99th percentile.
    pub p99: i64,
}

/// The node's role.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RoleName {
    /// It waits for Kafka or the registry.
    #[default]
    Starting,
    /// Another node leads.
    Follower,
    /// No leader is known.
    Leaderless,
    /// It is no voter of the cluster.
    // The API keeps the name from its first version.
    #[serde(rename = "outsider")]
    NonMember,
    /// It takes over.
    TakingOver,
    /// It publishes beats.
    Leader,
    /// It publishes beats without a quorum.
    DegradedLeader,
}

/// The body of `/ready`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Ready {
    /// `ready`.
    pub status: Cow<'static, str>,
    /// The node's role.
    pub role: RoleName,
}

/// A node of the cluster, as the API shows it under `members`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct NodeStatus {
    /// The node's name.
    pub node: String,
    /// The host:port of its Raft server.
    pub address: String,
    /// True if the node is Raft's leader, as far as the answering node knows.
    pub leader: bool,
    /// True if the node replicates the log without a vote.
    pub learner: bool,
    /// Entries of Raft's log that the node has not acknowledged; known to the leader only.
    pub lag: Option<u64>,
}

/// The body of `POST /api/v1/tempo`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TempoChange {
    /// The new tempo. Give this, `bar_length`, or both.
    #[serde(default)]
    pub tempo_bpm: Option<Tempo>,
    /// True if the tempo may be more than 10 % away; it is then reached in steps of 10 % a bar.
    #[serde(default)]
    pub ramp: bool,
    /// The new bar length, in beats.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1000)]
    pub bar_length: Option<u16>,
}

/// The response to a change of tempo or bar length that Raft has committed.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CommittedPlan {
    /// The beat from which the change applies: it takes effect at the first downbeat at or after this beat.
    pub from_beat: BeatIndex,
    /// The tempo in beats per minute.
    pub tempo_bpm: Tempo,
    /// Beats in a bar.
    pub bar_length: u16,
}

/// The nodes of the cluster after a change.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Nodes {
    /// The nodes of the cluster.
    pub members: Vec<NodeStatus>,
}

/// A node to add, which runs with `--join`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewNode {
    /// The node's name, from its `--node`.
    #[schema(pattern = "^[A-Za-z0-9._-]{1,63}$")]
    pub node: String,
    /// The host:port of the node's Raft server.
    #[schema(example = "127.0.0.1:9004")]
    pub address: String,
}
