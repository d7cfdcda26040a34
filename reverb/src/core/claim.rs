//! A decoded record of `statusclaims`, the aggregator's input.

use std::borrow::Cow;

use backbeat_schemas::{BorrowedClaim, Help, InvalidClaim, SecretRotation, State};

/// The fields of a valid claim that reports need. Kept small, because up to a beat's worth of claims is held in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "independent facts")]
pub struct Claim<'r> {
    /// The agent's id.
    pub agent: Cow<'r, str>,
    /// The task's id.
    pub task: Cow<'r, str>,
    /// The beat that the claim names. Only the aggregator knows whether it had been published when the claim arrived.
    pub beat: i64,
    /// True if the task is in state review or done, and its beat budget is not overdrawn (`beats_left >= 0`).
    pub on_time_review: bool,
    /// True if help that was promised has been given.
    pub help_fulfilled: bool,
    /// True if a secret rotation failed.
    pub rotation_failed: bool,
    /// True if the task is done.
    pub done: bool,
    /// True if the task failed.
    pub failed: bool,
    /// True if the claim was made while the agent received no beats.
    pub degraded: bool,
}

impl Claim<'_> {
    /// Copies the borrowed texts, so that the claim outlives its record.
    pub fn into_owned(self) -> Claim<'static> {
        Claim { agent: Cow::Owned(self.agent.into_owned()), task: Cow::Owned(self.task.into_owned()), ..self }
    }
}

impl<'r> From<BorrowedClaim<'r>> for Claim<'r> {
    fn from(claim: BorrowedClaim<'r>) -> Self {
        Self {
            beat: claim.beat_index,
            on_time_review: matches!(claim.state, State::Review | State::Done) && claim.beats_left >= 0,
            help_fulfilled: claim.help == Some(Help::Fulfilled),
            rotation_failed: claim.secret_rotation == Some(SecretRotation::Failed),
            done: claim.state == State::Done,
            failed: claim.state == State::Failed,
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

impl DecodedClaim<'_> {
    /// Copies the borrowed texts, so that the claim outlives its record.
    pub fn into_owned(self) -> DecodedClaim<'static> {
        match self {
            Self::Valid(claim) => DecodedClaim::Valid(claim.into_owned()),
            Self::Invalid(reason) => DecodedClaim::Invalid(reason),
        }
    }
}

/// A record's key and value as they were read, for the dead-letter topic.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RawRecord {
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The value.
    pub value: Option<Vec<u8>>,
}

impl RawRecord {
    /// Returns the length of key and value together.
    pub fn bytes(&self) -> usize {
        [&self.key, &self.value].into_iter().flatten().map(Vec::len).sum()
    }
}
