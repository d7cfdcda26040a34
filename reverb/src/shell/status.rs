//! The member's status, as served over HTTP.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backbeat_schemas::{BarReport, BeatFrame, BeatIndex, Timestamp, Verdict, WindowId};
use serde::Serialize;
use utoipa::ToSchema;

use crate::core::{Frames, PartitionProgress, Slo, Slos, Window};

/// Windows kept for `/api/v1/windows`.
pub(crate) const MAX_LISTED_WINDOWS: usize = 1_000;

/// The status shared by the member, which writes it, and the HTTP server.
#[derive(Debug, Clone)]
pub(crate) struct SharedStatus(Arc<Mutex<Status>>);

#[derive(Debug)]
struct Status {
    member: MemberStatus,
    /// By partition, the newest partial in `barpartials`, of any member.
    group: BTreeMap<i32, LastPartial>,
    windows: BTreeMap<BeatIndex, WindowStatus>,
    slos: Slos,
}

/// The body of `/api/v1/status`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StatusBody {
    #[serde(flatten)]
    member: MemberStatus,
    /// By partition, the sender of its newest partial.
    #[schema(value_type = BTreeMap<String, LastPartial>)]
    group: BTreeMap<i32, LastPartial>,
    // The API keeps the name from its first version.
    /// The SLOs: `rollup_delay`, `beat_delivery` and `pulse_jitter`.
    #[schema(value_type = Vec<Slo>, min_items = 3, max_items = 3)]
    objectives: [Slo; 3],
}

/// The status of this member.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub(crate) struct MemberStatus {
    pub(crate) cluster_id: String,
    pub(crate) name: String,
    /// True if this member runs the merge.
    pub(crate) merging: bool,
    pub(crate) newest_beat: Option<BeatIndex>,
    /// Beats between the newest frame and the slowest owned partition.
    pub(crate) lag_beats: i64,
    /// Claims in owned partitions that were not processed yet; `None` until the last stable offsets of all partitions
    /// are known.
    pub(crate) lag_records: Option<i64>,
    // The API keeps the name from its first version.
    /// The oldest window that is not done in an owned partition.
    pub(crate) oldest_open_window: Option<UnfinishedWindow>,
    /// The owned partitions.
    pub(crate) partitions: Vec<PartitionStatus>,
    /// The reason why the member is not ready; `None` if it is.
    pub(crate) waiting_for: Option<String>,
}

/// The oldest window that is not done.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct UnfinishedWindow {
    pub(crate) from_beat: BeatIndex,
    /// Beats since its downbeat.
    pub(crate) age_beats: i64,
}

/// One owned partition.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct PartitionStatus {
    pub(crate) partition: i32,
    /// The next offset to process; `None` until the start position is known.
    pub(crate) position: Option<i64>,
    /// The last stable offset, as of the last statistics.
    pub(crate) end: Option<i64>,
    /// The beat up to whose boundary the partition was processed.
    pub(crate) beat: Option<BeatIndex>,
    // The API keeps the name from its first version.
    /// Pending claims: those past the newest boundary, which wait for the next frame.
    #[serde(rename = "waiting_claims")]
    pub(crate) pending_claims: usize,
}

/// The owner of a partition, taken from its newest partial.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct LastPartial {
    pub(crate) member: String,
    /// The window of that partial.
    pub(crate) from_beat: BeatIndex,
}

/// One window and what this member knows of it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct WindowStatus {
    pub(crate) window_id: WindowId,
    pub(crate) from_beat: BeatIndex,
    /// The verdict: how the window was finished, once this member has read its done record.
    pub(crate) verdict: Option<Verdict>,
    /// The shares of the partitions that this member owns.
    #[schema(value_type = BTreeMap<String, ShareStatus>)]
    pub(crate) partitions: BTreeMap<i32, ShareStatus>,
    /// The report, once this member has read it.
    pub(crate) report: Option<BarReport>,
}

/// One partition's share of a window.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ShareStatus {
    /// The window's boundary in the partition.
    pub(crate) from_offset: i64,
    /// The next window's boundary, once its downbeat was read.
    pub(crate) to_offset: Option<i64>,
    /// The next offset to process; `None` once the share is complete.
    pub(crate) position: Option<i64>,
    /// Claims counted so far.
    pub(crate) claims: i64,
}

impl PartitionStatus {
    pub(crate) fn new(progress: &PartitionProgress, pending_claims: usize) -> Self {
        let PartitionProgress { partition, position, end, beat, .. } = *progress;
        Self { partition, position, end, beat, pending_claims }
    }
}

impl ShareStatus {
    pub(crate) fn new(frames: &Frames, window: &Window, partition: i32, position: Option<i64>, claims: i64) -> Self {
        let boundary = |beat| frames.get(beat).map(|frame| frame.boundary(partition));
        Self {
            from_offset: boundary(window.from).unwrap_or_default(),
            to_offset: boundary(window.end),
            position,
            claims,
        }
    }
}

impl SharedStatus {
    pub(crate) fn new(cluster_id: String, name: String) -> Self {
        let waiting_for = Some("kafka, its topics and the schema registry".to_owned());
        Self(Arc::new(Mutex::new(Status {
            member: MemberStatus { cluster_id, name, waiting_for, ..MemberStatus::default() },
            group: BTreeMap::new(),
            windows: BTreeMap::new(),
            slos: Slos::new(now()),
        })))
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut MemberStatus)) {
        change(&mut self.lock().member);
    }

    pub(crate) fn body(&self) -> StatusBody {
        let status = self.lock();
        StatusBody { member: status.member.clone(), group: status.group.clone(), objectives: status.slos.snapshot() }
    }

    pub(crate) fn slos(&self) -> [Slo; 3] {
        self.lock().slos.snapshot()
    }

    pub(crate) fn waiting_for(&self) -> Option<String> {
        self.lock().member.waiting_for.clone()
    }

    /// Returns at most `limit` windows opened before `before`, newest first, and true if there are more.
    pub(crate) fn windows(&self, before: Option<BeatIndex>, limit: usize) -> (Vec<WindowStatus>, bool) {
        let status = self.lock();
        let mut older =
            status.windows.values().rev().filter(|window| before.is_none_or(|beat| window.from_beat < beat));
        let page = older.by_ref().take(limit).cloned().collect();
        (page, older.next().is_some())
    }

    pub(crate) fn window(&self, id: WindowId) -> Option<WindowStatus> {
        self.lock().windows.values().find(|window| window.window_id == id).cloned()
    }

    /// Records a frame. Returns its delivery time in milliseconds if it is a new one.
    pub(crate) fn record_frame(&self, frame: &BeatFrame) -> Option<i64> {
        self.lock().slos.observe_frame(frame, now())
    }

    /// Sets the share of `partition` in a window.
    pub(crate) fn set_share(&self, window: &Window, partition: i32, share: ShareStatus) {
        self.lock().window_mut(window.from, window.id).partitions.insert(partition, share);
    }

    /// Records a partial of any member.
    pub(crate) fn record_partial(&self, partition: i32, member: &str, from_beat: BeatIndex) {
        self.lock().group.insert(partition, LastPartial { member: member.to_owned(), from_beat });
    }

    pub(crate) fn record_done(&self, from: BeatIndex, id: WindowId, verdict: Verdict) {
        self.lock().window_mut(from, id).verdict = Some(verdict);
    }

    pub(crate) fn record_report(&self, report: BarReport) {
        let mut status = self.lock();
        status.slos.observe_report(&report, now());
        let (from, id) = (report.from_beat, report.window_id);
        status.window_mut(from, id).report = Some(report);
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Status {
    /// Returns the window's entry. Makes room for a new one by removing the oldest.
    fn window_mut(&mut self, from_beat: BeatIndex, window_id: WindowId) -> &mut WindowStatus {
        if !self.windows.contains_key(&from_beat) && self.windows.len() >= MAX_LISTED_WINDOWS {
            self.windows.pop_first();
        }
        let new = || WindowStatus { window_id, from_beat, verdict: None, partitions: BTreeMap::new(), report: None };
        self.windows.entry(from_beat).or_insert_with(new)
    }
}

fn now() -> Timestamp {
    Timestamp::from_millis(chrono::Utc::now().timestamp_millis())
}
