//! Reverb's internal records: one partition's share of a window, or the mark that a window is finished.

use serde::{Deserialize, Serialize};

use crate::codec::{Record, RecordSchema, record_schema};
use crate::{BeatIndex, WindowId};

/// A record of `barpartials`. The fields are documented in `bar_partial.avsc`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "documented in the schema, which the registry shows")]
pub struct BarPartial {
    pub window_id: WindowId,
    pub from_beat: BeatIndex,
    partial: Option<Partial>,
    done: Option<Done>,
}

/// The content of a record of `barpartials`.
#[derive(Debug, Clone, PartialEq)]
pub enum PartialBody {
    /// One partition's share of the window.
    Partial(Partial),
    /// The window is finished.
    Done(Done),
}

impl BarPartial {
    /// Creates the record with content `body` for a window.
    pub fn new(window_id: WindowId, from_beat: BeatIndex, body: PartialBody) -> Self {
        let (partial, done) = match body {
            PartialBody::Partial(partial) => (Some(partial), None),
            PartialBody::Done(done) => (None, Some(done)),
        };
        Self { window_id, from_beat, partial, done }
    }

    /// Sets the partial's sender and its sequence number at that sender. A `done` is returned unchanged.
    #[must_use]
    pub fn sent_by(mut self, member: &str, counter: i64) -> Self {
        if let Some(partial) = &mut self.partial {
            member.clone_into(&mut partial.member);
            partial.counter = counter;
        }
        self
    }

    /// Returns the partition's share, or `None` if the record is a `done`.
    pub fn partial(&self) -> Option<&Partial> {
        self.partial.as_ref()
    }

    /// Returns true if the record marks the window as finished.
    pub fn is_done(&self) -> bool {
        self.done.is_some()
    }

    /// Returns the content, or `None` if the record has both `partial` and `done` or neither; reverb writes no such
    /// record.
    pub fn into_body(self) -> Option<PartialBody> {
        match (self.partial, self.done) {
            (Some(partial), None) => Some(PartialBody::Partial(partial)),
            (None, Some(done)) => Some(PartialBody::Done(done)),
            _ => None,
        }
    }
}

impl Record for BarPartial {
    fn schema() -> &'static RecordSchema {
        record_schema!("../bar_partial.avsc")
    }
}

/// One partition's share of one window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "documented in the schema, which the registry shows")]
pub struct Partial {
    pub partition: i32,
    pub member: String,
    pub counter: i64,
    pub logic: i32,
    pub retained: bool,
    pub misplaced: bool,
    pub agents: i64,
    pub on_time_reviews: i64,
    pub help_fulfilled: i64,
    pub rotation_failed_agents: i64,
    pub tasks_done: i64,
    pub tasks_failed: i64,
    pub claims: i64,
    pub degraded_claims: i64,
    pub late_claims: i64,
    pub invalid_claims: i64,
    pub unknown_schema_claims: i64,
}

/// The mark that a window is finished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "documented in the schema, which the registry shows")]
pub struct Done {
    pub verdict: Verdict,
    pub low: i64,
}

/// How a window was finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// There was no report, and one was written.
    Written,
    /// The last report differed, and a new one was written.
    Rewritten,
    /// The last report has the same Avro body.
    Verified,
    /// The set of partials could not complete, and the report exists.
    Dropped,
    /// The window's claims are no longer all retained, so no report was written.
    Skipped,
}

impl Verdict {
    /// Returns the name used in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Written => "written",
            Self::Rewritten => "rewritten",
            Self::Verified => "verified",
            Self::Dropped => "dropped",
            Self::Skipped => "skipped",
        }
    }
}
