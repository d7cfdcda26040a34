//! What reverb tells of itself over HTTP.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backbeat_schemas::{BarReport, BeatFrame, BeatIndex, Timestamp, Verdict, WindowId};
use serde::Serialize;

use crate::core::{Frames, Slo, Slos, Window};

/// Windows that are remembered.
pub(crate) const MAX_WINDOWS: usize = 1_000;

/// A shared snapshot, written by the member.
#[derive(Debug, Clone)]
pub(crate) struct SharedStatus(Arc<Mutex<Status>>);

#[derive(Debug)]
struct Status {
    member: Member,
    /// Of each partition, the newest partial in `barpartials`, whoever sent it.
    group: BTreeMap<i32, LastPartial>,
    windows: BTreeMap<BeatIndex, WindowStatus>,
    slos: Slos,
}

/// The body of `/api/v1/status`.
#[derive(Debug, Serialize)]
pub(crate) struct StatusBody {
    #[serde(flatten)]
    member: Member,
    group: BTreeMap<i32, LastPartial>,
    objectives: [Slo; 3],
}

/// This member.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Member {
    pub(crate) cluster_id: String,
    pub(crate) name: String,
    /// Whether this member runs the merge.
    pub(crate) merging: bool,
    pub(crate) newest_beat: Option<BeatIndex>,
    /// Between the newest frame and the slowest owned partition.
    pub(crate) lag_beats: i64,
    /// Claims in owned partitions that were not taken yet; `None` until Kafka has told where they end.
    pub(crate) lag_records: Option<i64>,
    /// The oldest window that an owned partition has not seen done.
    pub(crate) oldest_open_window: Option<OpenWindow>,
    /// The owned ones.
    pub(crate) partitions: Vec<PartitionStatus>,
    /// Why it does not work, where it should.
    pub(crate) waiting_for: Option<String>,
}

/// The oldest window that is not done.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct OpenWindow {
    pub(crate) from_beat: BeatIndex,
    /// Beats since it was opened.
    pub(crate) age_beats: i64,
}

/// One owned partition.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PartitionStatus {
    pub(crate) partition: i32,
    /// The next offset to take; `None` until it is known where to begin.
    pub(crate) position: Option<i64>,
    /// The end of the partition, as far as Kafka has told.
    pub(crate) end: Option<i64>,
    /// The beat up to whose boundary it has read.
    pub(crate) beat: Option<BeatIndex>,
    pub(crate) waiting_claims: usize,
}

/// The owner of a partition, as its newest partial says.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LastPartial {
    pub(crate) member: String,
    /// The newest window that it has sent its share of.
    pub(crate) from_beat: BeatIndex,
}

/// One window, as far as this member knows it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct WindowStatus {
    pub(crate) window_id: WindowId,
    pub(crate) from_beat: BeatIndex,
    /// How it was finished, if this member saw that.
    pub(crate) verdict: Option<Verdict>,
    /// Its shares in owned partitions.
    pub(crate) partitions: BTreeMap<i32, Share>,
    /// The report, once there is one.
    pub(crate) report: Option<BarReport>,
}

/// One partition's share of a window.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Share {
    /// The window's boundary.
    pub(crate) from_offset: i64,
    /// The next window's boundary, once its downbeat was heard.
    pub(crate) to_offset: Option<i64>,
    /// The next offset to take; `None` once all of it was taken.
    pub(crate) position: Option<i64>,
    /// Claims counted so far.
    pub(crate) claims: i64,
}

impl Share {
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
            member: Member { cluster_id, name, waiting_for, ..Member::default() },
            group: BTreeMap::new(),
            windows: BTreeMap::new(),
            slos: Slos::new(now()),
        })))
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Member)) {
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

    /// At most `limit` windows that opened before the beat `before`, newest first, and whether there are more.
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

    /// A frame was read. Returns how long it took, in milliseconds, if it is a new one.
    pub(crate) fn beat(&self, frame: &BeatFrame) -> Option<i64> {
        self.lock().slos.beat(frame, now())
    }

    /// What `partition` has of a window.
    pub(crate) fn share(&self, window: &Window, partition: i32, share: Share) {
        self.lock().window_mut(window.from, window.id).partitions.insert(partition, share);
    }

    /// A partial was read.
    pub(crate) fn partial(&self, partition: i32, member: &str, from_beat: BeatIndex) {
        self.lock().group.insert(partition, LastPartial { member: member.to_owned(), from_beat });
    }

    pub(crate) fn done(&self, from: BeatIndex, id: WindowId, verdict: Verdict) {
        self.lock().window_mut(from, id).verdict = Some(verdict);
    }

    pub(crate) fn report(&self, report: BarReport) {
        let mut status = self.lock();
        status.slos.report(&report, now());
        let (from, id) = (report.from_beat, report.window_id);
        status.window_mut(from, id).report = Some(report);
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Status {
    /// The window, among the newest that are remembered.
    fn window_mut(&mut self, from_beat: BeatIndex, window_id: WindowId) -> &mut WindowStatus {
        if !self.windows.contains_key(&from_beat) && self.windows.len() >= MAX_WINDOWS {
            self.windows.pop_first();
        }
        let new = || WindowStatus { window_id, from_beat, verdict: None, partitions: BTreeMap::new(), report: None };
        self.windows.entry(from_beat).or_insert_with(new)
    }
}

fn now() -> Timestamp {
    Timestamp::from_millis(chrono::Utc::now().timestamp_millis())
}
