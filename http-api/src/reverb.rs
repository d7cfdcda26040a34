//! The bodies of reverb's API.

use std::borrow::Cow;
use std::collections::BTreeMap;

use backbeat_schemas::{BarReport, BeatIndex, RosterEntry, RosterKind, StatusClaim, Verdict, WindowId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The body of `/api/v1/status`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StatusBody {
    /// The member.
    #[serde(flatten)]
    pub member: MemberStatus,
    /// By partition, the sender of its newest partial.
    #[schema(value_type = BTreeMap<String, LastPartial>)]
    pub group: BTreeMap<i32, LastPartial>,
    // The API keeps the name from its first version.
    /// The SLOs: `rollup_delay`, `beat_delivery` and `pulse_jitter`.
    #[schema(value_type = Vec<Slo>, min_items = 3, max_items = 3)]
    pub objectives: [Slo; 3],
}

/// The status of this member.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct MemberStatus {
    /// The cluster's name.
    pub cluster_id: String,
    /// The member's name.
    pub name: String,
    /// True if this member runs the merge.
    pub merging: bool,
    /// The newest beat that it has read.
    pub newest_beat: Option<BeatIndex>,
    /// Beats between the newest frame and the slowest owned partition.
    pub lag_beats: i64,
    /// Claims in owned partitions that were not processed yet; `None` until the last stable offsets of all partitions
    /// are known.
    pub lag_records: Option<i64>,
    // The API keeps the name from its first version.
    /// The oldest window that is not done in an owned partition.
    pub oldest_open_window: Option<UnfinishedWindow>,
    /// The owned partitions.
    pub partitions: Vec<PartitionStatus>,
    /// The reason why the member is not ready; `None` if it is.
    pub waiting_for: Option<String>,
}

/// The oldest window that is not done.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct UnfinishedWindow {
    /// The window's downbeat.
    pub from_beat: BeatIndex,
    /// Beats since its downbeat.
    pub age_beats: i64,
}

/// One owned partition.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PartitionStatus {
    /// The partition of `statusclaims`.
    pub partition: i32,
    /// The next offset to process; `None` until the start position is known.
    pub position: Option<i64>,
    /// The last stable offset, as of the last statistics.
    pub end: Option<i64>,
    /// The beat up to whose boundary the partition was processed.
    pub beat: Option<BeatIndex>,
    // The API keeps the name from its first version.
    /// Pending claims: those past the newest boundary, which wait for the next frame.
    #[serde(rename = "waiting_claims")]
    pub pending_claims: usize,
}

/// The owner of a partition, taken from its newest partial.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LastPartial {
    /// The member's name.
    pub member: String,
    /// The window of that partial.
    pub from_beat: BeatIndex,
}

/// One window and what this member knows of it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WindowStatus {
    /// The window's id.
    pub window_id: WindowId,
    /// The window's downbeat.
    pub from_beat: BeatIndex,
    /// The verdict: how the window was finished, once this member has read its done record.
    pub verdict: Option<Verdict>,
    /// The shares of the partitions that this member owns.
    #[schema(value_type = BTreeMap<String, ShareStatus>)]
    pub partitions: BTreeMap<i32, ShareStatus>,
    /// The report, once this member has read it.
    pub report: Option<BarReport>,
}

/// One partition's share of a window.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ShareStatus {
    /// The window's boundary in the partition.
    pub from_offset: i64,
    /// The next window's boundary, once its downbeat was read.
    pub to_offset: Option<i64>,
    /// The next offset to process; `None` once the share is complete.
    pub position: Option<i64>,
    /// Claims counted so far.
    pub claims: i64,
}

/// The body of `/ready`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Ready {
    /// `ready`.
    pub status: Cow<'static, str>,
}

/// The body of `/api/v1/windows`: windows, newest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Windows {
    /// The windows, newest first.
    pub windows: Vec<WindowStatus>,
    /// The value of `before` for the next page, if there is one.
    pub next_before: Option<BeatIndex>,
}

/// The body of `/api/v1/windows/{id}/roster`: who needs attention in a window.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Roster {
    /// The window's id.
    pub window_id: WindowId,
    /// The window's downbeat.
    pub from_beat: BeatIndex,
    /// The window's last beat.
    pub to_beat: BeatIndex,
    /// The number of agents with an open task in the window before, and no claim in this one.
    pub agents_fell_silent: i64,
    /// The number of tasks in the same state as in the window before, without progress.
    pub tasks_stalled: i64,
    /// The number of open tasks whose beat budget is overdrawn.
    pub tasks_overdrawn: i64,
    /// The entries by kind, agent and task. Fewer than those numbers if a partition has more than fit into its roster, or if
    /// rosters have expired.
    pub entries: Vec<RosterItem>,
    /// The value of `after` for the next page, if there is one.
    pub next_after: Option<usize>,
}

/// An entry of a roster.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RosterItem {
    /// The reason why it is there.
    pub kind: RosterKind,
    /// The partition of `statusclaims`.
    pub partition: i32,
    /// The task's last counted claim.
    #[serde(flatten)]
    pub entry: RosterEntry,
}

/// The body of `/api/v1/agents/{id}/claims`: an agent's claims, bar by bar.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AgentHistory {
    /// The partitions of `statusclaims` that were read. More than one if partitions were added meanwhile, or if all were asked for.
    pub partitions: Vec<i32>,
    /// The number of records that were read in them.
    pub records: u64,
    /// The bars in order.
    pub bars: Vec<AgentBar>,
}

/// An agent's claims of one bar.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AgentBar {
    /// The window's id.
    pub window_id: WindowId,
    /// The bar's first beat.
    pub from_beat: BeatIndex,
    /// The bar's last beat.
    pub to_beat: BeatIndex,
    /// False while claims may still count in the window.
    pub closed: bool,
    /// False if retention has deleted some of the window's claims in these partitions.
    pub retained: bool,
    /// The number of claims that count in the window.
    pub counted: usize,
    /// The claims for the bar's beats, and those that arrived in the bar without a beat of any of these bars, in log order.
    pub claims: Vec<AgentClaim>,
}

/// A record of the agent, and its outcome.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AgentClaim {
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// True if the agent's key belongs to another partition.
    pub misplaced: bool,
    /// The beat on which the record arrived; `None` if that is not known yet.
    pub arrival_beat: Option<BeatIndex>,
    /// The claim; `None` if the record cannot be decoded.
    pub claim: Option<StatusClaim>,
    /// The outcome.
    #[serde(flatten)]
    pub outcome: ClaimOutcome,
}

/// The outcome of a claim.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum ClaimOutcome {
    /// It counts in the window of its beat.
    Counted,
    /// It arrived when its beat's window was closed.
    Late {
        /// The number of beats between the last one on which it would have counted and its arrival; `None` if its window is older
        /// than the frames that were read.
        late_by_beats: Option<i64>,
    },
    /// It is a dead letter.
    Invalid {
        /// The short name of the reason, as in the dead letter.
        reason: Cow<'static, str>,
        /// The rule that it breaks.
        message: String,
    },
    /// The next frame decides.
    AwaitsBeat,
}

/// One SLO and its recent measurements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Slo {
    // Wire: `rollup_delay` is the time from a window's closing beat to its report.
    /// `rollup_delay`, `beat_delivery` or `pulse_jitter`.
    pub name: Cow<'static, str>,
    /// The requirement in words, with its source.
    pub requirement: Cow<'static, str>,
    /// The limit of the 95th percentile, in milliseconds; `None` before the first beat, where it depends on the tempo.
    pub limit_ms: Option<i64>,
    /// The 95th percentile of the last 1,000 samples, in milliseconds; `None` without samples.
    pub p95_ms: Option<i64>,
    /// The number of samples, at most 1,000.
    pub samples: usize,
    // The API keeps the name from its first version.
    /// True if the SLO is met; `None` without samples.
    #[serde(rename = "holds")]
    pub met: Option<bool>,
}
