//! What an agent says of a task on a beat.

use std::borrow::Cow;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use serde_avro_fast::Schema;
use serde_avro_fast::de::read::SliceRead;
use serde_avro_fast::de::{DeserializerConfig, DeserializerState};

use crate::codec::{DecodeError, Record, RecordSchema, WriterSchema, record_schema};
use crate::json;
use crate::record_type::StatusClaimType;

/// One claim, as it was sent: nothing in it is checked yet (see [`crate::check_claim`]). Fields are
/// documented in `status_claim.avsc`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "documented in the schema, which the registry shows")]
pub struct StatusClaim {
    pub r#type: StatusClaimType,
    pub agent_id: String,
    pub task_id: String,
    pub beat_index: i64,
    pub state: State,
    pub beats_left: i32,
    #[serde(serialize_with = "json::number")]
    pub progress: f64,
    pub notes: String,
    pub hlc: String,
    #[serde(default)]
    pub help: Option<Help>,
    #[serde(default)]
    pub secret_rotation: Option<SecretRotation>,
    #[serde(default)]
    pub degraded: bool,
}

impl Record for StatusClaim {
    fn schema() -> &'static RecordSchema {
        record_schema!("../status_claim.avsc")
    }
}

/// A claim whose texts lie in the record that it was read from, if it was written with our schema.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[allow(missing_docs, reason = "documented in the schema, which the registry shows")]
pub struct BorrowedClaim<'r> {
    pub r#type: StatusClaimType,
    #[serde(borrow)]
    pub agent_id: Cow<'r, str>,
    #[serde(borrow)]
    pub task_id: Cow<'r, str>,
    pub beat_index: i64,
    pub state: State,
    pub beats_left: i32,
    pub progress: f64,
    #[serde(borrow)]
    pub notes: Cow<'r, str>,
    #[serde(borrow)]
    pub hlc: Cow<'r, str>,
    pub help: Option<Help>,
    pub secret_rotation: Option<SecretRotation>,
    pub degraded: bool,
}

impl From<StatusClaim> for BorrowedClaim<'static> {
    fn from(claim: StatusClaim) -> Self {
        Self {
            r#type: claim.r#type,
            agent_id: claim.agent_id.into(),
            task_id: claim.task_id.into(),
            beat_index: claim.beat_index,
            state: claim.state,
            beats_left: claim.beats_left,
            progress: claim.progress,
            notes: claim.notes.into(),
            hlc: claim.hlc.into(),
            help: claim.help,
            secret_rotation: claim.secret_rotation,
            degraded: claim.degraded,
        }
    }
}

static FAST: LazyLock<Schema> = LazyLock::new(|| StatusClaim::schema().text().parse().expect("our schema parses"));

impl WriterSchema<StatusClaim> {
    /// The claim in `body`, as [`WriterSchema::decode`] gives it, but without copying its texts where it was
    /// written with our schema.
    pub fn decode_borrowed<'r>(&self, body: &'r [u8]) -> Result<BorrowedClaim<'r>, DecodeError> {
        if !self.is_ours() {
            return self.decode(body).map(Into::into);
        }
        let mut state = DeserializerState::with_config(SliceRead::new(body), DeserializerConfig::new(&FAST));
        let claim = BorrowedClaim::deserialize(state.deserializer());
        let claim = claim.map_err(|error| DecodeError::Body(error.to_string()))?;
        let mut rest = state.into_reader();
        match std::io::BufRead::fill_buf(&mut rest) {
            Ok([]) => Ok(claim),
            Ok(left) => Err(DecodeError::LeftOver { bytes: left.len() }),
            Err(error) => Err(DecodeError::Body(error.to_string())),
        }
    }
}

/// The state of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names say it")]
pub enum State {
    Planning,
    Executing,
    Waiting,
    Review,
    Done,
    Failed,
    Unknown,
}

/// Where a task's request for help stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Help {
    Requested,
    Promised,
    Fulfilled,
}

/// How an agent's rotation of its secrets ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names say it")]
pub enum SecretRotation {
    Ok,
    Failed,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim(agent: String, task: String, notes: String, beat_index: i64, beats_left: i32) -> StatusClaim {
        StatusClaim {
            r#type: Default::default(),
            agent_id: agent,
            task_id: task,
            beat_index,
            state: State::Review,
            beats_left,
            progress: 0.25,
            notes,
            hlc: "7ffd:0001:beef".into(),
            help: Some(Help::Promised),
            secret_rotation: None,
            degraded: true,
        }
    }

    fn body(claim: &StatusClaim) -> Vec<u8> {
        crate::wire(1, claim)[5..].to_vec()
    }

    /// Both ways of decoding, without their words for what is wrong.
    fn both(body: &[u8]) -> (Option<BorrowedClaim<'static>>, Option<BorrowedClaim<'_>>) {
        let schema = WriterSchema::<StatusClaim>::ours();
        (schema.decode(body).ok().map(Into::into), schema.decode_borrowed(body).ok())
    }

    proptest! {
        #[test]
        fn claims_come_back_without_copies(agent in ".*", task in ".*", notes in ".*", beat: i64, left: i32) {
            let claim = claim(agent, task, notes, beat, left);
            let body = body(&claim);
            let (owned, borrowed) = both(&body);
            let borrowed = borrowed.expect("our own record");
            prop_assert!(matches!((&borrowed.agent_id, &borrowed.notes), (Cow::Borrowed(_), Cow::Borrowed(_))));
            prop_assert_eq!(Some(&borrowed), owned.as_ref());
            prop_assert_eq!(borrowed, BorrowedClaim::from(claim));
        }

        /// Whatever bytes come from outside, nothing panics, and one decoder takes what the other takes.
        #[test]
        fn both_decoders_take_the_same_of_broken_records(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut in prop::option::of(any::<prop::sample::Index>()),
            more in prop::collection::vec(any::<u8>(), 0..3),
        ) {
            let mut body = body(&claim("agent-1".into(), "task".into(), "notes".into(), 70_000, -3));
            for (index, byte) in changes {
                let index = index.index(body.len());
                body[index] = byte;
            }
            if let Some(cut) = cut {
                body.truncate(cut.index(body.len()));
            }
            body.extend(more);
            let (owned, borrowed) = both(&body);
            // NaN equals nothing, itself included.
            prop_assert_eq!(format!("{owned:?}"), format!("{borrowed:?}"));
        }

        #[test]
        fn both_decoders_take_the_same_of_any_bytes(body in prop::collection::vec(any::<u8>(), 0..80)) {
            let (owned, borrowed) = both(&body);
            prop_assert_eq!(format!("{owned:?}"), format!("{borrowed:?}"));
        }
    }
}
