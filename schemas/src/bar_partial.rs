//! Reverb's internal records: a partial, which carries one partition's share of a window; a done record, which marks a
//! window as finished; or a merging record, which names the member that runs the merge.

use serde::{Deserialize, Serialize};

use crate::codec::{Record, RecordSchema, record_schema};
use crate::{BeatIndex, WindowId};

/// A record of `barpartials`: a partial, a done record or a merging record, never two of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BarPartial {
    /// The id of the window; also the record's key. A merging record has that of a window that was open.
    pub window_id: WindowId,
    /// The window's downbeat.
    pub from_beat: BeatIndex,
    partial: Option<Partial>,
    done: Option<Done>,
    merging: Option<Merging>,
}

/// The content of a record of `barpartials`.
#[derive(Debug, Clone, PartialEq)]
pub enum PartialBody {
    /// The content of a partial: one partition's share of the window.
    Partial(Partial),
    /// The content of a done record: the window is finished.
    Done(Done),
    /// The content of a merging record: a member runs the merge from here on.
    Merging(Merging),
}

impl BarPartial {
    /// Creates the record of a window with `body` as its content.
    pub fn new(window_id: WindowId, from_beat: BeatIndex, body: PartialBody) -> Self {
        let mut record = Self { window_id, from_beat, partial: None, done: None, merging: None };
        match body {
            PartialBody::Partial(partial) => record.partial = Some(partial),
            PartialBody::Done(done) => record.done = Some(done),
            PartialBody::Merging(merging) => record.merging = Some(merging),
        }
        record
    }

    /// Sets the member that sends the partial, and the sequence number of this partial at its sender. Other records are
    /// returned unchanged.
    #[must_use]
    pub fn sent_by(mut self, member: &str, counter: i64) -> Self {
        if let Some(partial) = &mut self.partial {
            member.clone_into(&mut partial.member);
            partial.counter = counter;
        }
        self
    }

    /// Returns the partial, or `None` if this is another record.
    pub fn partial(&self) -> Option<&Partial> {
        self.partial.as_ref()
    }

    /// Returns true if this is a done record: the window is finished.
    pub fn is_done(&self) -> bool {
        self.done.is_some()
    }

    /// Returns the content, or `None` if the record has more than one or none; this version of reverb writes no such
    /// record.
    pub fn into_body(self) -> Option<PartialBody> {
        match (self.partial, self.done, self.merging) {
            (Some(partial), None, None) => Some(PartialBody::Partial(partial)),
            (None, Some(done), None) => Some(PartialBody::Done(done)),
            (None, None, Some(merging)) => Some(PartialBody::Merging(merging)),
            _ => None,
        }
    }
}

impl Record for BarPartial {
    fn schema() -> &'static RecordSchema {
        record_schema!("../bar_partial.avsc")
    }
}

/// Declares [`Counts`] and [`Partial`], whose fields of the same names are flat in Avro, so that each counter is named once.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The counts of a window, or of one partition's share of it. Agents and tasks are distinct in each partition: one with
        /// claims in several partitions counts once in each.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct Counts {
            $($(#[$doc])* pub $name: i64,)*
        }

        impl Counts {
            /// The names of all counters.
            pub const NAMES: &[&str] = &[$(stringify!($name)),*];

            /// Returns counts from their values, in the order of [`Counts::NAMES`].
            pub fn from_values(mut values: impl Iterator<Item = i64>) -> Self {
                Self { $($name: values.next().unwrap_or_default()),* }
            }

            /// Adds the counts of another partition's share. A partial may have been written by anyone: an overflow must not
            /// stop the merge.
            pub fn add(&mut self, other: &Self) {
                $(self.$name = self.$name.saturating_add(other.$name);)*
            }
        }

        /// A partial: one partition's share of one window. Counts are of the claims of this partition.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        pub struct Partial {
            /// The partition of `statusclaims`.
            pub partition: i32,
            /// The name of the reverb member that sent this partial.
            pub member: String,
            /// The sequence number of this partial at its sender.
            pub counter: i64,
            /// The version of the rules by which the share was computed.
            pub logic: i32,
            /// False if claims at the start of the window's range have expired; then the window is skipped.
            pub retained: bool,
            /// True if `misplaced_agents` is not 0. Early versions of the merge recompute such a window.
            pub misplaced: bool,
            $($(#[$doc])* pub $name: i64,)*
        }

        impl Partial {
            /// Creates the share of `partition`, without the name and the counter of a member.
            pub fn new(partition: i32, logic: i32, retained: bool, counts: &Counts) -> Self {
                Self {
                    partition,
                    member: String::new(),
                    counter: 0,
                    logic,
                    retained,
                    misplaced: counts.misplaced_agents > 0,
                    $($name: counts.$name,)*
                }
            }

            /// Returns the counts.
            pub fn counts(&self) -> Counts {
                Counts { $($name: self.$name),* }
            }
        }
    };
}

counters! {
    /// Distinct agents with a counted claim.
    agents,
    /// Distinct tasks with a counted claim in state review or done whose beat budget is not overdrawn (`beats_left >= 0`).
    on_time_reviews,
    /// Distinct tasks with a counted claim whose help is fulfilled.
    help_fulfilled,
    /// Distinct agents with a counted claim of a failed secret rotation.
    rotation_failed_agents,
    /// Distinct tasks with a counted claim in state done.
    tasks_done,
    /// Distinct tasks with a counted claim in state failed.
    tasks_failed,
    /// Counted claims.
    claims,
    /// Counted claims made while their agent received no beats.
    degraded_claims,
    /// Late claims in the offsets that the window owns.
    late_claims,
    /// Invalid claims in the offsets that the window owns.
    invalid_claims,
    /// Invalid claims whose schema id the subject of claims does not have.
    unknown_schema_claims,
    /// Counted claims of agents and tasks beyond the limits of a partition, which no distinct count includes.
    excess_claims,
    /// Agents with a counted claim in another partition than the one in which murmur2 places them. As many agents at most count
    /// twice.
    misplaced_agents,
    /// Agents with an open task in the window before, and no claim in this one.
    silent_agents,
    /// Tasks in the same state as in the window before, without progress.
    stalled_tasks,
    /// Open tasks whose beat budget is overdrawn.
    overdrawn_tasks,
}

/// The content of a done record, which marks a window as finished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The outcome of the window.
    pub verdict: Verdict,
    /// The first offset of `barpartials` that an unfinished window still needs.
    pub low: i64,
    /// The partitions whose share the merge read itself, because their members sent none in time.
    pub rescued: Vec<i32>,
}

/// The content of a merging record: the member that runs the merge from here on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merging {
    /// The member's name; `None` if the last one stopped in good order and nobody has taken over yet.
    pub member: Option<String>,
    /// The version of the rules that the member reports by.
    pub logic: i32,
}

/// The outcome of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The window had no report, and one was written.
    Written,
    /// The last report differed, and a new one was written.
    Rewritten,
    /// The last report has the same Avro body.
    Verified,
    /// The set of partials could not complete, or is of an earlier `logic` than the report, which exists.
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
