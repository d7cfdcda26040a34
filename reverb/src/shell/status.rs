//! What reverb tells of itself over HTTP.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backbeat_schemas::{BarReport, BeatIndex, Verdict, WindowId};
use serde::Serialize;

/// Finished windows that are remembered.
const MAX_FINISHED: usize = 100;

/// A shared snapshot, written by the member and the merge.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedStatus(Arc<Mutex<Status>>);

#[derive(Debug, Default)]
struct Status {
    member: Member,
    windows: BTreeMap<BeatIndex, WindowStatus>,
}

/// The body of `/api/v1/status`.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Member {
    pub(crate) cluster_id: String,
    pub(crate) name: String,
    /// Whether this member runs the merge.
    pub(crate) merging: bool,
    pub(crate) newest_beat: Option<BeatIndex>,
    pub(crate) partitions: Vec<PartitionStatus>,
    /// Why it does not work, where it should.
    pub(crate) waiting_for: Option<String>,
}

/// One owned partition.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PartitionStatus {
    pub(crate) partition: i32,
    /// The next offset to take; `None` until it is known where to begin.
    pub(crate) position: Option<i64>,
    /// The beat up to whose line it has read.
    pub(crate) beat: Option<BeatIndex>,
    pub(crate) waiting_claims: usize,
}

/// One window, as far as this member knows it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct WindowStatus {
    pub(crate) window_id: WindowId,
    pub(crate) from_beat: BeatIndex,
    /// How it was finished; `None` while it is not.
    pub(crate) verdict: Option<Verdict>,
    /// Claims counted so far, by owned partition, while it is open here.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) claims: BTreeMap<i32, i64>,
    /// The report, where this member wrote it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) report: Option<BarReport>,
}

impl SharedStatus {
    pub(crate) fn update(&self, change: impl FnOnce(&mut Member)) {
        change(&mut self.lock().member);
    }

    pub(crate) fn member(&self) -> Member {
        self.lock().member.clone()
    }

    /// The windows, newest first.
    pub(crate) fn windows(&self) -> Vec<WindowStatus> {
        self.lock().windows.values().rev().cloned().collect()
    }

    pub(crate) fn window(&self, id: WindowId) -> Option<WindowStatus> {
        self.lock().windows.values().find(|window| window.window_id == id).cloned()
    }

    /// The windows that are open here now, with the claims counted by partition.
    pub(crate) fn open(&self, open: BTreeMap<(BeatIndex, WindowId), BTreeMap<i32, i64>>) {
        let mut status = self.lock();
        for window in status.windows.values_mut() {
            window.claims.clear();
        }
        for ((from, id), claims) in open {
            status.window_mut(from, id).claims = claims;
        }
    }

    pub(crate) fn done(&self, from: BeatIndex, id: WindowId, verdict: Verdict) {
        let mut status = self.lock();
        status.window_mut(from, id).verdict = Some(verdict);
        status.forget();
    }

    pub(crate) fn report(&self, report: BarReport) {
        let mut status = self.lock();
        let (from, id) = (report.from_beat, report.window_id);
        status.window_mut(from, id).report = Some(report);
        status.forget();
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Status {
    fn window_mut(&mut self, from_beat: BeatIndex, window_id: WindowId) -> &mut WindowStatus {
        let new = || WindowStatus { window_id, from_beat, verdict: None, claims: BTreeMap::new(), report: None };
        self.windows.entry(from_beat).or_insert_with(new)
    }

    fn forget(&mut self) {
        while self.windows.len() > MAX_FINISHED {
            self.windows.pop_first();
        }
    }
}
