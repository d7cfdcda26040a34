//! What an agent says of a task on a beat.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

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
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "documented in the schema, which the registry shows")]
pub struct BorrowedClaim<'r> {
    pub r#type: StatusClaimType,
    pub agent_id: Cow<'r, str>,
    pub task_id: Cow<'r, str>,
    pub beat_index: i64,
    pub state: State,
    pub beats_left: i32,
    pub progress: f64,
    pub notes: Cow<'r, str>,
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

impl WriterSchema<StatusClaim> {
    /// The claim in `body`, as [`WriterSchema::decode`] gives it, but without copying its texts where it was
    /// written with our schema: there are many claims, and this is several times as fast.
    pub fn decode_borrowed<'r>(&self, body: &'r [u8]) -> Result<BorrowedClaim<'r>, DecodeError> {
        if !self.is_ours() {
            return self.decode(body).map(Into::into);
        }
        let mut rest = Datum(body);
        let claim = rest.claim().ok_or_else(|| {
            // Which of its bytes is wrong, in the words of the library.
            self.decode(body).err().unwrap_or_else(|| DecodeError::Body("not a claim of our schema".to_owned()))
        })?;
        if rest.0.is_empty() { Ok(claim) } else { Err(DecodeError::LeftOver { bytes: rest.0.len() }) }
    }
}

/// What is left of an Avro datum of our schema; `None` is for bytes that are none.
struct Datum<'r>(&'r [u8]);

impl<'r> Datum<'r> {
    /// The fields in the order of `status_claim.avsc`.
    fn claim(&mut self) -> Option<BorrowedClaim<'r>> {
        const STATES: [State; 7] = [
            State::Planning,
            State::Executing,
            State::Waiting,
            State::Review,
            State::Done,
            State::Failed,
            State::Unknown,
        ];
        Some(BorrowedClaim {
            r#type: self.text().map(|_| StatusClaimType)?,
            agent_id: self.text()?.into(),
            task_id: self.text()?.into(),
            beat_index: self.long()?,
            state: self.symbol(&STATES)?,
            beats_left: self.long()?.try_into().ok()?,
            progress: f64::from_le_bytes(self.bytes(8)?.try_into().ok()?),
            notes: self.text()?.into(),
            hlc: self.text()?.into(),
            help: if self.is_there()? {
                Some(self.symbol(&[Help::Requested, Help::Promised, Help::Fulfilled])?)
            } else {
                None
            },
            secret_rotation: if self.is_there()? {
                Some(self.symbol(&[SecretRotation::Ok, SecretRotation::Failed])?)
            } else {
                None
            },
            degraded: match self.bytes(1)? {
                [0] => false,
                [1] => true,
                _ => return None,
            },
        })
    }

    fn bytes(&mut self, count: usize) -> Option<&'r [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    /// A zigzag integer in groups of seven bits, at most ten of them.
    fn long(&mut self) -> Option<i64> {
        let mut zigzag = 0_u64;
        for group in 0..10 {
            let [byte] = self.bytes(1)? else { return None };
            zigzag |= u64::from(byte & 0x7f) << (7 * group);
            if byte & 0x80 == 0 {
                return Some((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64));
            }
        }
        None
    }

    fn text(&mut self) -> Option<&'r str> {
        let length = self.long()?.try_into().ok()?;
        std::str::from_utf8(self.bytes(length)?).ok()
    }

    fn symbol<T: Copy>(&mut self, symbols: &[T]) -> Option<T> {
        let index: usize = self.long()?.try_into().ok()?;
        symbols.get(index).copied()
    }

    /// Which branch of a union of null and a value follows.
    fn is_there(&mut self) -> Option<bool> {
        match self.long()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
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
