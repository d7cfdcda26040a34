//! A decoded record of `statusclaims`, the aggregator's input.

use std::borrow::Cow;

use backbeat_schemas::{
    BorrowedClaim, Header, InvalidClaim, MAX_CLAIM_BYTES, SecretRotation, State, StatusClaim, WriterSchema, check_claim,
};
use sha2::{Digest, Sha256};

use super::TaskFacts;

/// The most that is kept of a key. An agent's id has at most 256 bytes.
const MAX_KEY_BYTES: usize = 1_024;

/// The fields of a valid claim that reports need. Kept small, because up to a beat's worth of claims is held in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim<'r> {
    /// The agent's id.
    pub agent: Cow<'r, str>,
    /// The task's id.
    pub task: Cow<'r, str>,
    /// The beat that the claim names. Only the aggregator knows whether it had been published when the claim arrived.
    pub beat: i64,
    /// The task's state.
    pub state: State,
    /// The rest of the task's beat budget, in beats; negative once overdrawn.
    pub beats_left: i32,
    /// The completed part of the task, 0 to 1.
    pub progress: f64,
    /// The facts about its task that the claim states.
    pub facts: TaskFacts,
    /// True if a secret rotation failed.
    pub rotation_failed: bool,
    /// True if the claim was made while the agent received no beats.
    pub degraded: bool,
}

impl<'r> Claim<'r> {
    fn decode<'s>(
        key: Option<&[u8]>,
        value: Option<&'r [u8]>,
        schema: impl FnOnce(u32) -> Result<Option<&'s WriterSchema<StatusClaim>>, InvalidClaim>,
    ) -> Result<Option<Self>, InvalidClaim> {
        let value = value.ok_or(InvalidClaim::NoValue)?;
        if value.len() > MAX_CLAIM_BYTES {
            return Err(InvalidClaim::Size(value.len()));
        }
        let (header, body) = Header::split(value)?;
        let Some(schema) = schema(header.schema_id)? else {
            return Ok(None);
        };
        let claim = schema.decode_borrowed(body)?;
        check_claim(key, &claim)?;
        Ok(Some(claim.into()))
    }

    /// Copies the borrowed texts, so that the claim outlives its record.
    pub fn into_owned(self) -> Claim<'static> {
        Claim { agent: Cow::Owned(self.agent.into_owned()), task: Cow::Owned(self.task.into_owned()), ..self }
    }
}

impl<'r> From<BorrowedClaim<'r>> for Claim<'r> {
    fn from(claim: BorrowedClaim<'r>) -> Self {
        Self {
            beat: claim.beat_index,
            state: claim.state,
            beats_left: claim.beats_left,
            progress: claim.progress,
            facts: TaskFacts::of(&claim),
            rotation_failed: claim.secret_rotation == Some(SecretRotation::Failed),
            degraded: claim.degraded,
            agent: claim.agent_id,
            task: claim.task_id,
        }
    }
}

/// The result of decoding and checking one record.
#[derive(Debug, Clone, PartialEq)]
pub enum DecodedClaim<'r> {
    /// A claim that passes every check except the one of its beat, which needs the arrival beat.
    Valid(Claim<'r>),
    /// A record that is not a valid claim.
    Invalid(InvalidClaim),
}

impl<'r> DecodedClaim<'r> {
    /// Decodes and checks a record with this key and value. `schema` returns the schema of an id, `None` if it is not known yet
    /// whether there is one; then this returns `None`, too.
    pub fn decode<'s>(
        key: Option<&[u8]>,
        value: Option<&'r [u8]>,
        schema: impl FnOnce(u32) -> Result<Option<&'s WriterSchema<StatusClaim>>, InvalidClaim>,
    ) -> Option<Self> {
        match Claim::decode(key, value, schema) {
            Ok(claim) => claim.map(Self::Valid),
            Err(reason) => Some(Self::Invalid(reason)),
        }
    }

    /// Copies the borrowed texts, so that the claim outlives its record.
    pub fn into_owned(self) -> DecodedClaim<'static> {
        match self {
            Self::Valid(claim) => DecodedClaim::Valid(claim.into_owned()),
            Self::Invalid(reason) => DecodedClaim::Invalid(reason),
        }
    }
}

/// A record's key and value as they were read, for the dead-letter topic.
///
/// Whoever writes claims can make records of 16 MB, of which there may be many: of a value that is larger than any claim's
/// only the head is kept, with its length and its hash.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RawRecord {
    /// The key, or its first 1,024 bytes.
    pub key: Option<Vec<u8>>,
    /// The value, or its first [`MAX_CLAIM_BYTES`].
    pub value: Option<Vec<u8>>,
    /// Tells of the whole value if `value` is only its head.
    pub cut_value: Option<CutValue>,
}

/// A value of which only the head is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutValue {
    /// The length of the whole value.
    pub bytes: usize,
    /// The SHA-256 hash of the whole value.
    pub sha256: [u8; 32],
}

impl RawRecord {
    /// Copies a record.
    pub fn new(key: Option<&[u8]>, value: Option<&[u8]>) -> Self {
        let head = |bytes: &[u8], limit: usize| bytes[..bytes.len().min(limit)].to_vec();
        let large_value = value.filter(|value| value.len() > MAX_CLAIM_BYTES);
        Self {
            key: key.map(|key| head(key, MAX_KEY_BYTES)),
            value: value.map(|value| head(value, MAX_CLAIM_BYTES)),
            cut_value: large_value.map(|value| CutValue { bytes: value.len(), sha256: Sha256::digest(value).into() }),
        }
    }

    /// Returns the number of bytes that are kept of key and value.
    pub fn bytes(&self) -> usize {
        [&self.key, &self.value].into_iter().flatten().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_of_a_large_value_is_kept_with_its_length_and_hash() {
        let value = vec![7; MAX_CLAIM_BYTES];
        let whole = RawRecord::new(Some(b"key"), Some(&value));
        assert_eq!((whole.value.as_ref(), whole.cut_value), (Some(&value), None));
        let megabyte = vec![7; 1_000_000];
        let large = RawRecord::new(Some(&[b'k'; 2_000]), Some(&megabyte));
        assert_eq!((large.value, large.key.map(|key| key.len())), (Some(value), Some(MAX_KEY_BYTES)));
        let sha256 = Sha256::digest(&megabyte).into();
        assert_eq!(large.cut_value, Some(CutValue { bytes: 1_000_000, sha256 }));
        assert_eq!(RawRecord::new(None, None), RawRecord::default());
    }
}
