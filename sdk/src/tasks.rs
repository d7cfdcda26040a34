//! The tasks of an agent: for each, a claim with its current status on every beat.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backbeat_schemas::{BeatFrame, Help, SecretRotation, State, StatusClaim};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::{Beat, BeatSource, Beats, ClaimSender, Connection, Status};

/// The maximum number of claims that are kept until the first beat is heard and the claim sender is created. Beyond it,
/// the oldest ones are dropped and count as failed.
const MAX_PENDING_CLAIMS: usize = 1_000;

/// The tasks of an agent. On every beat, heard or local, a claim with each task's current status is sent in the
/// background; no call waits for Kafka, except for [`Tasks::flush`]. Clones share the tasks.
///
/// Claims that are made before the first beat is heard are kept, at most 1,000, and then sent for that first beat.
#[derive(Clone)]
pub struct Tasks {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    /// The number of periods that have passed.
    periods: watch::Receiver<u64>,
    next_id: u64,
    tasks: BTreeMap<u64, TaskEntry>,
    last_heard: Option<BeatFrame>,
    /// True if the last beat was a local one.
    is_degraded: bool,
    claim_sender: Option<ClaimSender>,
    /// Claims made before the first beat was heard, or before the claim sender was created.
    pending: VecDeque<PendingClaim>,
    /// The number of claims that were not passed to Kafka's client, since a queue was full.
    dropped: u64,
}

struct PendingClaim {
    /// The frame of the last beat heard when the claim was made; `None` stands for the first one heard later.
    frame: Option<BeatFrame>,
    status: Status,
    degraded: bool,
}

struct TaskEntry {
    status: Status,
    budget: Option<u32>,
    /// The number of periods that had passed when the task started.
    started: u64,
}

/// The counts of an agent's claims by outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClaimCounts {
    /// The number of claims that Kafka acknowledged.
    pub acknowledged: u64,
    /// The number of claims in flight, or kept until they can be sent.
    pub outstanding: u64,
    /// The number of claims that could not be delivered: within 5 minutes, or because a queue was full.
    pub failed: u64,
}

/// A task of an agent. The claim of the next beat has all changes of its status.
///
/// Finishing or dropping the task sends a last claim at once, with its current status. A task that is dropped without
/// [`Task::finish`] keeps its last state, so that none of its claims has the state done or failed.
pub struct Task {
    id: u64,
    tasks: Tasks,
}

impl Tasks {
    pub(crate) fn start(connection: Connection, beats: Beats) -> Self {
        let shared = Shared {
            periods: beats.periods(),
            next_id: 0,
            tasks: BTreeMap::new(),
            last_heard: None,
            is_degraded: false,
            claim_sender: None,
            pending: VecDeque::new(),
            dropped: 0,
        };
        let tasks = Self { shared: Arc::new(Mutex::new(shared)) };
        tokio::spawn(claim_on_each_beat(Arc::downgrade(&tasks.shared), beats));
        let shared = Arc::downgrade(&tasks.shared);
        tokio::spawn(async move {
            let claim_sender = connection.wait_for_claim_sender().await;
            if let Some(shared) = shared.upgrade() {
                let mut shared = lock(&shared);
                shared.claim_sender = Some(claim_sender);
                shared.send_pending();
            }
        });
        tasks
    }

    /// Creates a task in [`State::Planning`], with the ids `agent` and `task` (1 to 256 bytes each).
    ///
    /// `budget` is the task's beat budget, in beats from now on. Claims state the rest of it in `beats_left`, or 0 for
    /// `None`. The budget does not stop the work: see [`Beats::with_beat_budget`].
    pub fn task(&self, agent: &str, task: &str, budget: Option<u32>) -> Task {
        let mut shared = lock(&self.shared);
        let id = shared.next_id;
        shared.next_id += 1;
        let started = *shared.periods.borrow();
        shared.tasks.insert(id, TaskEntry { status: Status::new(agent, task, State::Planning), budget, started });
        Task { id, tasks: self.clone() }
    }

    /// Returns the counts of the claims so far.
    pub fn claim_counts(&self) -> ClaimCounts {
        lock(&self.shared).claim_counts()
    }

    /// Waits until all claims are acknowledged or failed, at most `limit`, and returns their counts. Claims that are
    /// still `outstanding` are lost if the process then exits.
    pub async fn flush(&self, limit: Duration) -> ClaimCounts {
        let settled = async {
            while self.claim_counts().outstanding > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        // After a timeout, the counts show what is left.
        let _ = timeout(limit, settled).await;
        self.claim_counts()
    }
}

impl Task {
    /// Changes the task's status for its claims from the next beat on. A change of `beats_left` has no effect.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        if let Some(entry) = lock(&self.tasks.shared).tasks.get_mut(&self.id) {
            change(&mut entry.status);
        }
    }

    /// Sets the task's state.
    pub fn set_state(&self, state: State) {
        self.update(|status| status.state = state);
    }

    /// Sets the completed part of the task, 0 to 1; other values are clamped.
    pub fn set_progress(&self, progress: f64) {
        self.update(|status| status.progress = progress.clamp(0.0, 1.0));
    }

    /// Sets the note for people: at most 4,096 bytes.
    pub fn set_notes(&self, notes: &str) {
        self.update(|status| notes.clone_into(&mut status.notes));
    }

    /// Sets the status of the task's request for help.
    pub fn set_help(&self, help: Option<Help>) {
        self.update(|status| status.help = help);
    }

    /// Sets the outcome of the agent's secret rotation.
    pub fn set_secret_rotation(&self, outcome: Option<SecretRotation>) {
        self.update(|status| status.secret_rotation = outcome);
    }

    /// Finishes the task: sends a last claim, with `state`, at once. Call [`Tasks::flush`] before the process exits.
    pub fn finish(self, state: State) {
        self.set_state(state);
    }
}

impl Drop for Task {
    /// Sends the last claim.
    fn drop(&mut self) {
        let mut shared = lock(&self.tasks.shared);
        if let Some(entry) = shared.tasks.remove(&self.id) {
            let status = entry.status_at(*shared.periods.borrow());
            shared.claim(status);
        }
    }
}

impl TaskEntry {
    /// Returns the status for the claim that is made when `periods` have passed.
    fn status_at(&self, periods: u64) -> Status {
        let ran = i64::try_from(periods.saturating_sub(self.started)).unwrap_or(i64::MAX);
        let left = |budget: u32| i32::try_from(i64::from(budget).saturating_sub(ran)).unwrap_or(i32::MIN);
        Status { beats_left: self.budget.map_or(0, left), ..self.status.clone() }
    }
}

impl Shared {
    fn on_beat(&mut self, beat: Beat) {
        self.is_degraded = matches!(beat.source, BeatSource::Local { .. });
        if let BeatSource::Heard(frame) = beat.source {
            self.last_heard = Some(*frame);
            self.send_pending();
        }
        let periods = *self.periods.borrow();
        let statuses: Vec<Status> = self.tasks.values().map(|entry| entry.status_at(periods)).collect();
        for status in statuses {
            self.claim(status);
        }
    }

    /// Sends a claim for the last heard beat, or keeps it until that is possible. A claim made on a local beat is for the
    /// last heard beat, too: windows follow the frames in Kafka, and so stand still without them.
    fn claim(&mut self, status: Status) {
        self.pending.push_back(PendingClaim { frame: self.last_heard.clone(), status, degraded: self.is_degraded });
        self.send_pending();
        if self.pending.len() > MAX_PENDING_CLAIMS {
            self.pending.pop_front();
            self.dropped += 1;
        }
    }

    fn send_pending(&mut self) {
        let (Some(claim_sender), Some(first)) = (&mut self.claim_sender, &self.last_heard) else { return };
        for PendingClaim { frame, status, degraded } in self.pending.drain(..) {
            let claim = StatusClaim { degraded, ..claim_sender.build_claim(frame.as_ref().unwrap_or(first), status) };
            let sent = claim_sender.send_record(Some(claim.agent_id.as_bytes()), &claim_sender.encode(&claim));
            self.dropped += u64::from(sent.is_err());
        }
    }

    fn claim_counts(&self) -> ClaimCounts {
        let deliveries = self.claim_sender.as_ref().map(ClaimSender::deliveries);
        let count_of = |count: fn(&crate::Deliveries) -> u64| deliveries.map_or(0, count);
        ClaimCounts {
            acknowledged: count_of(crate::Deliveries::acknowledged),
            outstanding: self.pending.len() as u64 + count_of(|deliveries| deliveries.outstanding().unsigned_abs()),
            failed: self.dropped + count_of(crate::Deliveries::failed),
        }
    }
}

async fn claim_on_each_beat(shared: std::sync::Weak<Mutex<Shared>>, mut beats: Beats) {
    while let Some(beat) = beats.next().await {
        let Some(shared) = shared.upgrade() else { return };
        lock(&shared).on_beat(beat);
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
