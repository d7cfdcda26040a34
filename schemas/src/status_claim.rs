//! The record of an agent's status of one task on one beat.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::codec::{DecodeError, Record, RecordSchema, WriterSchema, record_schema};
use crate::json;
use crate::record_type::StatusClaimType;

/// A claim: an agent's status of one task on one beat. The key of its record is `agent_id`.
///
/// A decoded claim is not validated (see `check_claim` in `backbeat-schemas`): a claim that breaks one of the limits
/// below counts as invalid.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusClaim {
    /// The constant `backbeat.statusclaim.v1`.
    pub r#type: StatusClaimType,
    /// The agent's id: 1 to 256 bytes.
    pub agent_id: String,
    /// The task's id: 1 to 256 bytes.
    pub task_id: String,
    /// The index of the last beat that the agent heard.
    pub beat_index: i64,
    /// The task's state.
    pub state: State,
    /// The rest of the task's beat budget, in beats; negative once overdrawn.
    pub beats_left: i32,
    /// The completed part of the task, 0 to 1.
    #[serde(serialize_with = "json::number")]
    pub progress: f64,
    /// A note for people: at most 4,096 bytes.
    pub notes: String,
    /// An HLC timestamp (of a hybrid logical clock), later than that of the beat's frame.
    pub hlc: String,
    /// The status of the task's request for help; `None` without one.
    #[serde(default)]
    pub help: Option<Help>,
    /// The outcome of the agent's secret rotation; `None` without one.
    #[serde(default)]
    pub secret_rotation: Option<SecretRotation>,
    /// True if the claim was made while the agent heard no beats.
    #[serde(default)]
    pub degraded: bool,
}

impl Record for StatusClaim {
    fn schema() -> &'static RecordSchema {
        record_schema!("../status_claim.avsc")
    }

    /// Without the Avro library, which looks up each field and symbol by its name: claims are by far the most frequent records.
    fn encode(&self, body: &mut Vec<u8>) {
        let Self {
            r#type: _,
            agent_id,
            task_id,
            beat_index,
            state,
            beats_left,
            progress,
            notes,
            hlc,
            help,
            secret_rotation,
            degraded,
        } = self;
        let string = |body: &mut Vec<u8>, text: &str| {
            encode_long(body, text.len() as i64);
            body.extend_from_slice(text.as_bytes());
        };
        // A union of null and an enum: the branch, then the symbol.
        let optional = |body: &mut Vec<u8>, symbol: Option<i64>| {
            encode_long(body, i64::from(symbol.is_some()));
            if let Some(symbol) = symbol {
                encode_long(body, symbol);
            }
        };
        string(body, StatusClaimType::TEXT);
        string(body, agent_id);
        string(body, task_id);
        encode_long(body, *beat_index);
        encode_long(body, index_of(&STATES, *state));
        encode_long(body, i64::from(*beats_left));
        body.extend_from_slice(&progress.to_le_bytes());
        string(body, notes);
        string(body, hlc);
        optional(body, help.map(|help| index_of(&HELP, help)));
        optional(body, secret_rotation.map(|outcome| index_of(&SECRET_ROTATIONS, outcome)));
        body.push(u8::from(*degraded));
    }
}

/// The symbols of the enums of `status_claim.avsc`, in its order.
const STATES: [State; 7] =
    [State::Planning, State::Executing, State::Waiting, State::Review, State::Done, State::Failed, State::Unknown];
const HELP: [Help; 3] = [Help::Requested, Help::Promised, Help::Fulfilled];
const SECRET_ROTATIONS: [SecretRotation; 2] = [SecretRotation::Ok, SecretRotation::Failed];

fn index_of<T: Copy + PartialEq>(symbols: &[T], symbol: T) -> i64 {
    symbols.iter().position(|known| *known == symbol).expect("every symbol of the type is in its schema") as i64
}

/// Appends a zigzag varint.
fn encode_long(body: &mut Vec<u8>, value: i64) {
    let mut zigzag = ((value << 1) ^ (value >> 63)) as u64;
    while zigzag >= 0x80 {
        body.push(zigzag as u8 | 0x80);
        zigzag >>= 7;
    }
    body.push(zigzag as u8);
}

/// A [`StatusClaim`] whose strings borrow from the body that it was decoded from, if its writer schema equals the reader
/// schema.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the fields are those of StatusClaim")]
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
    /// Decodes the claim in `body` like [`WriterSchema::decode`], but without copying its strings if the writer schema
    /// equals the reader schema. This is several times as fast, which matters since claims are by far the most
    /// frequent records.
    pub fn decode_borrowed<'r>(&self, body: &'r [u8]) -> Result<BorrowedClaim<'r>, DecodeError> {
        if !self.equals_reader_schema() {
            return self.decode(body).map(Into::into);
        }
        let mut rest = Datum(body);
        let claim = rest.claim().ok_or_else(|| {
            // Decode again with the Avro library for its error text.
            self.decode(body)
                .err()
                .unwrap_or_else(|| DecodeError::Body("not a claim of this program's schema".to_owned()))
        })?;
        if rest.0.is_empty() { Ok(claim) } else { Err(DecodeError::LeftOver { bytes: rest.0.len() }) }
    }
}

/// The undecoded rest of a claim's Avro datum. Every method returns `None` for malformed bytes.
struct Datum<'r>(&'r [u8]);

impl<'r> Datum<'r> {
    /// Decodes all fields, in the order of `status_claim.avsc`.
    fn claim(&mut self) -> Option<BorrowedClaim<'r>> {
        Some(BorrowedClaim {
            r#type: self.string().map(|_| StatusClaimType)?,
            agent_id: self.string()?.into(),
            task_id: self.string()?.into(),
            beat_index: self.long()?,
            state: self.symbol(&STATES)?,
            beats_left: self.long()?.try_into().ok()?,
            progress: f64::from_le_bytes(self.bytes(8)?.try_into().ok()?),
            notes: self.string()?.into(),
            hlc: self.string()?.into(),
            help: if self.is_present()? { Some(self.symbol(&HELP)?) } else { None },
            secret_rotation: if self.is_present()? { Some(self.symbol(&SECRET_ROTATIONS)?) } else { None },
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

    /// Decodes a zigzag varint: at most ten groups of seven bits.
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

    fn string(&mut self) -> Option<&'r str> {
        let length = self.long()?.try_into().ok()?;
        std::str::from_utf8(self.bytes(length)?).ok()
    }

    fn symbol<T: Copy>(&mut self, symbols: &[T]) -> Option<T> {
        let index: usize = self.long()?.try_into().ok()?;
        symbols.get(index).copied()
    }

    /// Decodes the branch of a union of null and a value; true if a value follows.
    fn is_present(&mut self) -> Option<bool> {
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
pub enum State {
    /// The task is being planned.
    Planning,
    /// The task is in progress.
    Executing,
    /// The task waits for something.
    Waiting,
    /// The task's result is under review.
    Review,
    /// The task has succeeded.
    Done,
    /// The task has failed.
    Failed,
    /// The state is unknown; also a state of a newer schema that this program does not know.
    Unknown,
}

/// The status of a task's request for help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Help {
    /// Help was requested.
    Requested,
    /// Help was promised.
    Promised,
    /// The promise of help was fulfilled.
    Fulfilled,
}

/// The outcome of an agent's secret rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretRotation {
    /// The rotation succeeded.
    Ok,
    /// The rotation failed.
    Failed,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim(agent: &str, task: String, notes: String, beat_index: i64, beats_left: i32) -> StatusClaim {
        StatusClaim {
            task_id: task,
            state: State::Review,
            beats_left,
            progress: 0.25,
            notes,
            help: Some(Help::Promised),
            degraded: true,
            ..crate::testing::claim(agent, beat_index)
        }
    }

    fn body(claim: &StatusClaim) -> Vec<u8> {
        crate::wire(1, claim)[5..].to_vec()
    }

    /// Decodes `body` with both decoders; `None` for an error, since their error texts may differ.
    fn both(body: &[u8]) -> (Option<BorrowedClaim<'static>>, Option<BorrowedClaim<'_>>) {
        let schema = WriterSchema::<StatusClaim>::own();
        (schema.decode(body).ok().map(Into::into), schema.decode_borrowed(body).ok())
    }

    proptest! {
        #[test]
        fn encode_equals_the_avro_librarys_encoding(
            [agent, task, notes, hlc] in any::<[String; 4]>(),
            (beat, left, progress, degraded) in any::<(i64, i32, f64, bool)>(),
            state in prop::sample::select(&STATES[..]),
            help in prop::option::of(prop::sample::select(&HELP[..])),
            secret_rotation in prop::option::of(prop::sample::select(&SECRET_ROTATIONS[..])),
        ) {
            let claim = claim(&agent, task, notes, beat, left);
            let claim = StatusClaim { state, progress, hlc, help, secret_rotation, degraded, ..claim };
            let (mut own, mut library) = (Vec::new(), Vec::new());
            claim.encode(&mut own);
            StatusClaim::schema().encode(&claim, &mut library);
            prop_assert_eq!(own, library);
        }

        #[test]
        fn decode_borrowed_of_a_valid_claim_equals_decode(
            agent in ".*", task in ".*", notes in ".*", beat: i64, left: i32,
        ) {
            let claim = claim(&agent, task, notes, beat, left);
            let body = body(&claim);
            let (owned, borrowed) = both(&body);
            let borrowed = borrowed.expect("an encoded claim decodes");
            prop_assert!(matches!((&borrowed.agent_id, &borrowed.notes), (Cow::Borrowed(_), Cow::Borrowed(_))));
            prop_assert_eq!(Some(&borrowed), owned.as_ref());
            prop_assert_eq!(borrowed, BorrowedClaim::from(claim));
        }

        /// Neither decoder panics on corrupted bytes, and one accepts exactly what the other accepts.
        #[test]
        fn decode_borrowed_of_a_corrupted_claim_equals_decode(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut in prop::option::of(any::<prop::sample::Index>()),
            more in prop::collection::vec(any::<u8>(), 0..3),
        ) {
            let mut body = body(&claim("agent-1", "task".into(), "notes".into(), 70_000, -3));
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
        fn decode_borrowed_of_random_bytes_equals_decode(body in prop::collection::vec(any::<u8>(), 0..80)) {
            let (owned, borrowed) = both(&body);
            prop_assert_eq!(format!("{owned:?}"), format!("{borrowed:?}"));
        }
    }
}
