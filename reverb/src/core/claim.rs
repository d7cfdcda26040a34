//! A record of `statusclaims`, as the aggregator takes it.

use std::borrow::Cow;

use backbeat_schemas::{BorrowedClaim, Help, InvalidClaim, SecretRotation, State};

/// What counts of a valid claim, small enough to keep a beat's worth of them waiting.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "independent facts")]
pub struct Claim<'r> {
    /// The agent.
    pub agent: Cow<'r, str>,
    /// The task.
    pub task: Cow<'r, str>,
    /// The claim's beat; whether it was issued is for the aggregator to say.
    pub beat: i64,
    /// In review or done with budget left.
    pub on_time_review: bool,
    /// Promised help was given.
    pub help_fulfilled: bool,
    /// A secret rotation failed.
    pub rotation_failed: bool,
    /// The task is done.
    pub done: bool,
    /// The task failed.
    pub failed: bool,
    /// Made while the agent heard no beats.
    pub degraded: bool,
}

impl Claim<'_> {
    /// The same, for longer than its record.
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

/// What reading a record gave.
#[derive(Debug, Clone, PartialEq)]
pub enum DecodedClaim<'r> {
    /// A claim that keeps every rule but, maybe, the one about its beat.
    Valid(Claim<'r>),
    /// A record that is no valid claim.
    Invalid(InvalidClaim),
}

impl DecodedClaim<'_> {
    /// The same, for longer than its record.
    pub fn into_owned(self) -> DecodedClaim<'static> {
        match self {
            Self::Valid(claim) => DecodedClaim::Valid(claim.into_owned()),
            Self::Invalid(reason) => DecodedClaim::Invalid(reason),
        }
    }
}

/// A record as it was read, for the dead-letter topic.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RawRecord {
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The value.
    pub value: Option<Vec<u8>>,
}

impl RawRecord {
    /// How much of it there is.
    pub fn bytes(&self) -> usize {
        [&self.key, &self.value].into_iter().flatten().map(Vec::len).sum()
    }
}
