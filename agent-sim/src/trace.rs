//! Agents that replay a recorded task list: the pods of a GPU cluster, or the requests to a language model.

use std::io::Read;

use backbeat_sdk::{State, Status};
use chrono::NaiveDateTime;
use serde::Deserialize;

use crate::claim_plan::{ClaimPlan, Delivery};

/// A task list in beats: each task is an agent that is planning from its creation, executing from its scheduling, and
/// done or failed at its end.
#[derive(Debug, Clone)]
pub struct Trace {
    /// Tasks that have not been created yet, in reverse order.
    pending: Vec<Task>,
    active: Vec<Task>,
    beat: u64,
}

/// A task, with its times in beats since the start of the task list.
#[derive(Debug, Clone)]
struct Task {
    name: String,
    created: u64,
    scheduled: Option<u64>,
    ended: u64,
    /// The state at the task's end; `None` if the task never ran: it waited until it was deleted.
    outcome: Option<State>,
}

/// The tokens that a request generates per second. The duration of a request is not recorded and derived from this.
const TOKENS_PER_SECOND: u64 = 20;

/// A row of a list of pods (Alibaba's cluster-trace-gpu-v2023), in seconds from the start of the task list.
#[derive(Debug, Deserialize)]
struct Pod {
    name: String,
    #[serde(rename = "pod_phase")]
    phase: String,
    creation_time: u64,
    scheduled_time: Option<u64>,
    deletion_time: u64,
}

/// A row of a list of requests (Azure's LLM inference trace).
#[derive(Debug, Deserialize)]
struct Request {
    #[serde(rename = "TIMESTAMP")]
    timestamp: String,
    #[serde(rename = "GeneratedTokens")]
    generated_tokens: u64,
}

/// A task list that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// A file that is neither of the two kinds of CSV.
    #[error(
        "the task list is not CSV with the columns name, pod_phase, creation_time, scheduled_time and deletion_time, \
         or TIMESTAMP and GeneratedTokens: {0}"
    )]
    Csv(#[from] csv::Error),
    /// An invalid arrival time.
    #[error("row {row}: TIMESTAMP is {text:?}; expected a timestamp such as 2023-11-16 18:17:03.9799600")]
    Timestamp {
        /// The row number, from 1, without the header.
        row: usize,
        /// The text in the column TIMESTAMP.
        text: String,
    },
    /// An unknown phase.
    #[error("task {task}: pod_phase is {phase:?}; must be Running, Succeeded, Failed or Pending")]
    Phase {
        /// The name of the task.
        task: String,
        /// The text in the column `pod_phase`.
        phase: String,
    },
    /// A task that ends before it is created.
    #[error("task {task}: deletion_time {deleted} is before creation_time {created}")]
    Backwards {
        /// The name of the task.
        task: String,
        /// The value of `creation_time`.
        created: u64,
        /// The value of `deletion_time`.
        deleted: u64,
    },
    /// A task list without tasks.
    #[error("the task list is empty")]
    Empty,
}

impl Trace {
    /// Reads a task list of either kind, with `seconds_per_beat` seconds of it per beat. The first task is created on
    /// the first beat.
    pub fn read(list: impl Read, seconds_per_beat: u64) -> Result<Self, TraceError> {
        let mut reader = csv::Reader::from_reader(list);
        let pods: Vec<Pod> = if reader.headers()?.iter().any(|column| column == "TIMESTAMP") {
            let requests = reader.deserialize().collect::<Result<Vec<Request>, _>>()?;
            Pod::from_requests(&requests)?
        } else {
            reader.deserialize().collect::<Result<_, _>>()?
        };
        let start = pods.iter().map(|pod| pod.creation_time).min().ok_or(TraceError::Empty)?;
        let beat = |seconds: u64| seconds.saturating_sub(start) / seconds_per_beat;
        let mut pending = pods.into_iter().map(|pod| Task::new(pod, beat)).collect::<Result<Vec<_>, _>>()?;
        pending.sort_by(|a, b| (b.created, &b.name).cmp(&(a.created, &a.name)));
        Ok(Self { pending, active: Vec::new(), beat: 0 })
    }

    /// Returns true if the last claim of every task was returned.
    pub fn is_finished(&self) -> bool {
        self.pending.is_empty() && self.active.iter().all(|task| task.ended < self.beat)
    }

    /// Returns the claims for the next beat.
    pub fn claims_for_next_beat(&mut self) -> impl Iterator<Item = ClaimPlan> {
        let now = self.beat;
        self.beat += 1;
        self.active.retain(|task| task.ended >= now);
        while self.pending.last().is_some_and(|task| task.created <= now) {
            self.active.extend(self.pending.pop());
        }
        self.active.iter().map(move |task| ClaimPlan { status: task.status(now), delivery: Delivery::OnTime })
    }
}

impl Pod {
    /// Converts each request to a pod that runs from its arrival until its tokens are generated.
    fn from_requests(requests: &[Request]) -> Result<Vec<Self>, TraceError> {
        let arrivals = requests.iter().enumerate().map(|(index, request)| {
            NaiveDateTime::parse_from_str(&request.timestamp, "%Y-%m-%d %H:%M:%S%.f")
                .map(|arrival| arrival.and_utc().timestamp())
                .map_err(|_| TraceError::Timestamp { row: index + 1, text: request.timestamp.clone() })
        });
        let arrivals = arrivals.collect::<Result<Vec<i64>, _>>()?;
        let first = arrivals.iter().min().copied().unwrap_or_default();
        let pod = |(index, (request, arrival)): (usize, (&Request, i64))| {
            let arrived = arrival.abs_diff(first);
            Self {
                name: format!("request-{:05}", index + 1),
                phase: "Succeeded".to_owned(),
                creation_time: arrived,
                scheduled_time: Some(arrived),
                deletion_time: arrived + request.generated_tokens.div_ceil(TOKENS_PER_SECOND),
            }
        };
        Ok(requests.iter().zip(arrivals).enumerate().map(pod).collect())
    }
}

impl Task {
    fn new(pod: Pod, beat: impl Fn(u64) -> u64) -> Result<Self, TraceError> {
        let Pod { name, phase, creation_time: created, scheduled_time, deletion_time: deleted } = pod;
        let outcome = match phase.as_str() {
            "Running" | "Succeeded" => Some(State::Done),
            "Failed" => Some(State::Failed),
            "Pending" => None,
            _ => {
                return Err(TraceError::Phase { task: name, phase });
            }
        };
        if deleted < created {
            return Err(TraceError::Backwards { task: name, created, deleted });
        }
        Ok(Self { name, created: beat(created), scheduled: scheduled_time.map(&beat), ended: beat(deleted), outcome })
    }

    fn status(&self, now: u64) -> Status {
        let state = match (self.outcome, self.scheduled) {
            (Some(outcome), _) if now >= self.ended => outcome,
            (None, _) => State::Waiting,
            (_, Some(scheduled)) if now >= scheduled => State::Executing,
            _ => State::Planning,
        };
        let started = self.scheduled.unwrap_or(self.ended);
        let progress = match state {
            State::Done => 1.0,
            State::Executing | State::Failed => {
                now.saturating_sub(started) as f64 / (self.ended + 1).saturating_sub(started).max(1) as f64
            }
            _ => 0.0,
        };
        let beats_left = i32::try_from(self.ended.saturating_sub(now)).unwrap_or(i32::MAX);
        Status { beats_left, progress, ..Status::new(&self.name, &self.name, state) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "name,pod_phase,creation_time,deletion_time,scheduled_time
ran,Succeeded,100,400,200
broke,Failed,150,160,150
waited,Pending,300,400,
";

    /// The task and state of each claim, by beat, until the task list ends.
    fn claims(mut trace: Trace) -> Vec<Vec<(String, State)>> {
        let mut claims = Vec::new();
        while !trace.is_finished() {
            claims.push(trace.claims_for_next_beat().map(|plan| (plan.status.task_id, plan.status.state)).collect());
        }
        claims
    }

    fn claim(task: &str, state: State) -> (String, State) {
        (task.to_owned(), state)
    }

    #[test]
    fn pods_claim_their_states_from_creation_to_deletion() {
        assert_eq!(
            claims(Trace::read(LIST.as_bytes(), 100).expect("the list is valid")),
            [
                vec![claim("broke", State::Failed), claim("ran", State::Planning)],
                vec![claim("ran", State::Executing)],
                vec![claim("ran", State::Executing), claim("waited", State::Waiting)],
                vec![claim("ran", State::Done), claim("waited", State::Waiting)],
            ]
        );
    }

    #[test]
    fn requests_claim_execution_until_their_tokens_are_generated() {
        let list = "TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,60
";
        assert_eq!(
            claims(Trace::read(list.as_bytes(), 1).expect("the list is valid")),
            [
                vec![claim("request-00001", State::Executing)],
                vec![claim("request-00001", State::Done), claim("request-00002", State::Executing)],
                vec![claim("request-00002", State::Executing)],
                vec![claim("request-00002", State::Executing)],
                vec![claim("request-00002", State::Done)],
            ]
        );
    }

    #[test]
    fn invalid_task_lists_are_refused_with_the_reason() {
        let error = |list: &str| Trace::read(list.as_bytes(), 1).expect_err("the list is invalid").to_string();
        let head = "name,pod_phase,creation_time,scheduled_time,deletion_time\n";
        assert_eq!(error(head), "the task list is empty");
        assert!(error(&format!("{head}a,Lost,1,,2\n")).contains("must be Running"));
        assert!(error(&format!("{head}a,Failed,5,,2\n")).contains("deletion_time 2 is before creation_time 5"));
        assert!(error("name,pod_phase\na,Failed\n").contains("creation_time"));
        let reason = error("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n");
        assert!(reason.contains("row 1: TIMESTAMP is \"yesterday\""), "{reason}");
    }
}
