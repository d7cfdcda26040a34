//! One claim a beat for each task, with the newest of what the agent said.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backbeat_schemas::{BeatFrame, Help, SecretRotation, State, StatusClaim};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::{Beat, BeatSource, Beats, Connection, Reporter, Status};

/// Claims that wait for a first beat, or for a registry that was never there. Beyond, the oldest are lost.
const MAX_WAITING: usize = 1_000;

/// The tasks of an agent, claimed for on every beat, in the background. Nothing here ever waits for Kafka.
#[derive(Clone)]
pub struct Tasks {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    /// That have gone by.
    periods: watch::Receiver<u64>,
    next: u64,
    tasks: BTreeMap<u64, Entry>,
    last_heard: Option<BeatFrame>,
    /// Local beats since.
    is_degraded: bool,
    reporter: Option<Reporter>,
    /// Made before there was a beat to claim for, or a reporter.
    waiting: VecDeque<Waiting>,
    lost: u64,
}

struct Waiting {
    /// The last beat that was heard; `None` waits for the first.
    frame: Option<BeatFrame>,
    status: Status,
    degraded: bool,
}

struct Entry {
    status: Status,
    budget: Option<u32>,
    /// The period in which it began.
    began: u64,
}

/// What became of the claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Claims {
    /// Kafka has them.
    pub acknowledged: u64,
    /// On their way.
    pub waiting: u64,
    /// Given up, or never sent, since the queue was full.
    pub lost: u64,
}

/// One task. What is said of it goes out on the next beat; what is said at its end, at once.
pub struct Task {
    id: u64,
    tasks: Tasks,
}

impl Tasks {
    pub(crate) fn start(connection: Connection, beats: Beats) -> Self {
        let shared = Shared {
            periods: beats.periods(),
            next: 0,
            tasks: BTreeMap::new(),
            last_heard: None,
            is_degraded: false,
            reporter: None,
            waiting: VecDeque::new(),
            lost: 0,
        };
        let tasks = Self { shared: Arc::new(Mutex::new(shared)) };
        tokio::spawn(follow(Arc::downgrade(&tasks.shared), beats));
        let shared = Arc::downgrade(&tasks.shared);
        tokio::spawn(async move {
            let reporter = connection.wait_for_reporter().await;
            if let Some(shared) = shared.upgrade() {
                let mut shared = lock(&shared);
                shared.reporter = Some(reporter);
                shared.send_waiting();
            }
        });
        tasks
    }

    /// A task of `agent`, with a budget of beats if it has one.
    pub fn task(&self, agent: &str, task: &str, budget: Option<u32>) -> Task {
        let mut shared = lock(&self.shared);
        let id = shared.next;
        shared.next += 1;
        let began = *shared.periods.borrow();
        shared.tasks.insert(id, Entry { status: Status::new(agent, task, State::Planning), budget, began });
        Task { id, tasks: self.clone() }
    }

    /// What became of the claims so far.
    pub fn claims(&self) -> Claims {
        lock(&self.shared).claims()
    }

    /// Waits until every claim was acknowledged or given up, at most `limit`.
    pub async fn flush(&self, limit: Duration) -> Claims {
        let done = async {
            while self.claims().waiting > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        // What is left is told.
        let _ = timeout(limit, done).await;
        self.claims()
    }
}

impl Task {
    /// Changes what is claimed from the next beat on.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        if let Some(entry) = lock(&self.tasks.shared).tasks.get_mut(&self.id) {
            change(&mut entry.status);
        }
    }

    /// The task's state.
    pub fn state(&self, state: State) {
        self.update(|status| status.state = state);
    }

    /// How much of it is done, 0 to 1.
    pub fn progress(&self, progress: f64) {
        self.update(|status| status.progress = progress.clamp(0.0, 1.0));
    }

    /// A word for people.
    pub fn notes(&self, notes: &str) {
        self.update(|status| notes.clone_into(&mut status.notes));
    }

    /// Where a request for help stands.
    pub fn help(&self, help: Option<Help>) {
        self.update(|status| status.help = help);
    }

    /// How a rotation of secrets ended.
    pub fn secret_rotation(&self, outcome: Option<SecretRotation>) {
        self.update(|status| status.secret_rotation = outcome);
    }

    /// The task has ended: claims its last state at once. See [`Tasks::flush`].
    pub fn finish(self, state: State) {
        self.state(state);
    }
}

impl Drop for Task {
    /// However it ends, its last state is claimed.
    fn drop(&mut self) {
        let mut shared = lock(&self.tasks.shared);
        if let Some(entry) = shared.tasks.remove(&self.id) {
            let status = entry.at(*shared.periods.borrow());
            shared.claim(status);
        }
    }
}

impl Entry {
    /// What is said of it when so many `periods` have gone by.
    fn at(&self, periods: u64) -> Status {
        let ran = i64::try_from(periods.saturating_sub(self.began)).unwrap_or(i64::MAX);
        let left = |budget: u32| i32::try_from(i64::from(budget).saturating_sub(ran)).unwrap_or(i32::MIN);
        Status { beats_left: self.budget.map_or(0, left), ..self.status.clone() }
    }
}

impl Shared {
    fn beat(&mut self, beat: Beat) {
        self.is_degraded = matches!(beat.source, BeatSource::Local { .. });
        if let BeatSource::Heard(frame) = beat.source {
            self.last_heard = Some(*frame);
            self.send_waiting();
        }
        let periods = *self.periods.borrow();
        let newest: Vec<Status> = self.tasks.values().map(|entry| entry.at(periods)).collect();
        for status in newest {
            self.claim(status);
        }
    }

    /// Claims for the last beat that was heard: in the log time stands still.
    fn claim(&mut self, status: Status) {
        self.waiting.push_back(Waiting { frame: self.last_heard.clone(), status, degraded: self.is_degraded });
        self.send_waiting();
        if self.waiting.len() > MAX_WAITING {
            self.waiting.pop_front();
            self.lost += 1;
        }
    }

    fn send_waiting(&mut self) {
        let (Some(reporter), Some(first)) = (&mut self.reporter, &self.last_heard) else { return };
        for Waiting { frame, status, degraded } in self.waiting.drain(..) {
            let claim = StatusClaim { degraded, ..reporter.claim(frame.as_ref().unwrap_or(first), status) };
            let sent = reporter.send(Some(claim.agent_id.as_bytes()), &reporter.encode(&claim));
            self.lost += u64::from(sent.is_err());
        }
    }

    fn claims(&self) -> Claims {
        let deliveries = self.reporter.as_ref().map(Reporter::deliveries);
        let of = |count: fn(&crate::Deliveries) -> u64| deliveries.map_or(0, count);
        Claims {
            acknowledged: of(crate::Deliveries::acknowledged),
            waiting: self.waiting.len() as u64 + of(|deliveries| deliveries.outstanding().unsigned_abs()),
            lost: self.lost + of(crate::Deliveries::failed),
        }
    }
}

async fn follow(shared: std::sync::Weak<Mutex<Shared>>, mut beats: Beats) {
    while let Some(beat) = beats.next().await {
        let Some(shared) = shared.upgrade() else { return };
        lock(&shared).beat(beat);
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
