//! Agents driven by the task list of a real cluster.

use std::io::Read;

use backbeat_sdk::{State, Status};
use serde::Deserialize;

use crate::claim_plan::{ClaimPlan, Fate};

/// A task list on the beat's time: each task is an agent that plans from its creation, executes from
/// its scheduling, and at its end claims done or failed.
#[derive(Debug, Clone)]
pub struct Trace {
    /// Not begun yet, the next one last.
    to_come: Vec<Task>,
    live: Vec<Task>,
    beat: u64,
}

#[derive(Debug, Clone)]
struct Task {
    name: String,
    created: u64,
    scheduled: Option<u64>,
    ended: u64,
    /// `None` if it never ran: it waited until it was withdrawn.
    outcome: Option<State>,
}

/// A row of the task list, in seconds.
#[derive(Debug, Deserialize)]
struct Row {
    name: String,
    pod_phase: String,
    creation_time: u64,
    scheduled_time: Option<u64>,
    deletion_time: u64,
}

/// A task list that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// Not such a CSV.
    #[error("the task list is not CSV with name, pod_phase, creation_time, scheduled_time and deletion_time: {0}")]
    Csv(#[from] csv::Error),
    /// A phase that means nothing to us.
    #[error("task {task}: pod_phase is {phase:?}; known are Running, Succeeded, Failed and Pending")]
    Phase {
        /// The task.
        task: String,
        /// Its phase.
        phase: String,
    },
    /// A task that ends before it begins.
    #[error("task {task}: deletion_time {deleted} is before creation_time {created}")]
    Backwards {
        /// The task.
        task: String,
        /// When it was created.
        created: u64,
        /// When it was deleted.
        deleted: u64,
    },
    /// No tasks.
    #[error("the task list is empty")]
    Empty,
}

impl Trace {
    /// Reads a task list, `seconds_per_beat` of which pass in a beat. The first task begins at once.
    pub fn read(list: impl Read, seconds_per_beat: u64) -> Result<Self, TraceError> {
        let rows: Vec<Row> = csv::Reader::from_reader(list).deserialize().collect::<Result<_, _>>()?;
        let start = rows.iter().map(|row| row.creation_time).min().ok_or(TraceError::Empty)?;
        let beat = |seconds: u64| seconds.saturating_sub(start) / seconds_per_beat;
        let mut to_come = rows.into_iter().map(|row| Task::new(row, beat)).collect::<Result<Vec<_>, _>>()?;
        to_come.sort_by(|a, b| (b.created, &b.name).cmp(&(a.created, &a.name)));
        Ok(Self { to_come, live: Vec::new(), beat: 0 })
    }

    /// Whether every task has claimed its end.
    pub fn is_over(&self) -> bool {
        self.to_come.is_empty() && self.live.iter().all(|task| task.ended < self.beat)
    }

    /// What the tasks claim on the next beat.
    pub fn beat(&mut self) -> impl Iterator<Item = ClaimPlan> {
        let now = self.beat;
        self.beat += 1;
        self.live.retain(|task| task.ended >= now);
        while self.to_come.last().is_some_and(|task| task.created <= now) {
            self.live.extend(self.to_come.pop());
        }
        self.live.iter().map(move |task| ClaimPlan { status: task.status(now), fate: Fate::Honest })
    }
}

impl Task {
    fn new(row: Row, beat: impl Fn(u64) -> u64) -> Result<Self, TraceError> {
        let Row { name, pod_phase, creation_time: created, scheduled_time, deletion_time: deleted } = row;
        let outcome = match pod_phase.as_str() {
            "Running" | "Succeeded" => Some(State::Done),
            "Failed" => Some(State::Failed),
            "Pending" => None,
            _ => {
                return Err(TraceError::Phase { task: name, phase: pod_phase });
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
        let began = self.scheduled.unwrap_or(self.ended);
        let progress = match state {
            State::Done => 1.0,
            State::Executing | State::Failed => {
                now.saturating_sub(began) as f64 / (self.ended + 1).saturating_sub(began).max(1) as f64
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

    #[test]
    fn tasks_live_as_the_list_says() {
        let mut trace = Trace::read(LIST.as_bytes(), 100).expect("well formed");
        let mut claims = Vec::new();
        while !trace.is_over() {
            claims.push(trace.beat().map(|plan| (plan.status.task_id, plan.status.state)).collect::<Vec<_>>());
        }
        let claim = |task: &str, state| (task.to_owned(), state);
        assert_eq!(
            claims,
            [
                vec![claim("broke", State::Failed), claim("ran", State::Planning)],
                vec![claim("ran", State::Executing)],
                vec![claim("ran", State::Executing), claim("waited", State::Waiting)],
                vec![claim("ran", State::Done), claim("waited", State::Waiting)],
            ]
        );
    }

    #[test]
    fn bad_lists_are_refused_with_the_reason() {
        let error = |list: &str| Trace::read(list.as_bytes(), 1).expect_err("bad").to_string();
        let head = "name,pod_phase,creation_time,scheduled_time,deletion_time\n";
        assert_eq!(error(head), "the task list is empty");
        assert!(error(&format!("{head}a,Lost,1,,2\n")).contains("known are Running"));
        assert!(error(&format!("{head}a,Failed,5,,2\n")).contains("deletion_time 2 is before creation_time 5"));
        assert!(error("name,pod_phase\na,Failed\n").contains("creation_time"));
    }
}
