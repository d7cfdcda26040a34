//! The member's status, as served over HTTP.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backbeat_http_api::reverb::{
    LastPartial, MemberStatus, PartitionStatus, ShareStatus, Slo, StatusBody, WindowStatus,
};
use backbeat_schemas::{BarReport, BeatFrame, BeatIndex, Timestamp, Verdict, WindowId};

use crate::core::{Frames, PartitionProgress, Slos, Window};

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

/// Returns what the API shows of an owned partition.
pub(crate) fn partition_status(progress: &PartitionProgress, pending_claims: usize) -> PartitionStatus {
    let PartitionProgress { partition, position, end, beat, .. } = *progress;
    PartitionStatus { partition, position, end, beat, pending_claims }
}

/// Returns what the API shows of a partition's share of a window.
pub(crate) fn share_status(
    frames: &Frames,
    window: &Window,
    partition: i32,
    position: Option<i64>,
    claims: i64,
) -> ShareStatus {
    let boundary = |beat| frames.get(beat).map(|frame| frame.boundary(partition));
    let (from_offset, to_offset) = (boundary(window.from).unwrap_or_default(), boundary(window.end));
    ShareStatus { from_offset, to_offset, position, claims }
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
