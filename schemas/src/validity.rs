//! The validity rules of a claim (docs/design.md, "Validity of a claim"), except the one on its beat, which needs the claim's
//! arrival beat.

use crate::{BorrowedClaim, DecodeError, HeaderError, Hlc, HlcError};

/// The largest value of a record of `statusclaims`, in bytes. Kafka accepts batches of as many (`max.message.bytes`), but a
/// compressed one may have records of 16 MB.
pub const MAX_CLAIM_BYTES: usize = 64 * 1024;
/// The longest agent or task id, in bytes.
pub const MAX_ID_BYTES: usize = 256;
/// The longest notes, in bytes.
pub const MAX_NOTES_BYTES: usize = 4_096;

/// The reason why a record of `statusclaims` is not a valid claim.
///
/// The error's text goes into the header of the dead letter.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidClaim {
    /// The record has no value (a tombstone).
    #[error("the record has no value; claims are never deleted")]
    NoValue,
    /// The value is too large.
    #[error("the value has {0} bytes; allowed are at most 65536")]
    Size(usize),
    /// The value is not in the Confluent wire format.
    #[error(transparent)]
    WireFormat(#[from] HeaderError),
    /// The registry has no schema of claims with this id.
    #[error("the registry has no schema with id {0} for claims")]
    UnknownSchema(u32),
    /// The value is not a record of a `StatusClaim` schema, or bytes follow the record.
    #[error(transparent)]
    Undecodable(#[from] DecodeError),
    /// The record's key is not the claim's `agent_id`.
    #[error("the record's key is {key}, expected the agent_id {agent_id:?}")]
    Key {
        /// The key, as text.
        key: String,
        /// The claim's `agent_id`.
        agent_id: String,
    },
    /// An id is empty or too long.
    #[error("{field} has {bytes} bytes; allowed are 1 to 256")]
    IdLength {
        /// `agent_id` or `task_id`.
        field: &'static str,
        /// The id's length in bytes.
        bytes: usize,
    },
    /// The beat is below 0, or after the beat on which the claim arrived.
    #[error("beat_index is {beat}; allowed are 0 to {arrival}, the beat on which the claim arrived")]
    Beat {
        /// The claim's beat.
        beat: i64,
        /// The beat on which the claim arrived.
        arrival: i64,
    },
    /// The progress is NaN, infinite or out of range.
    #[error("progress is {0}; allowed are 0 to 1")]
    Progress(f64),
    /// The notes are too long.
    #[error("notes have {0} bytes; allowed are at most 4096")]
    Notes(usize),
    /// The hlc does not parse.
    #[error(transparent)]
    Hlc(#[from] HlcError),
}

impl InvalidClaim {
    /// All values of [`InvalidClaim::reason`].
    pub const REASONS: [&str; 12] = [
        "no_value",
        "size",
        "wire_format",
        "unknown_schema",
        "left_over_bytes",
        "undecodable",
        "key",
        "id_length",
        "beat",
        "progress",
        "notes",
        "hlc",
    ];

    /// Returns a short name for headers, metrics and logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoValue => "no_value",
            Self::Size(_) => "size",
            Self::WireFormat(_) => "wire_format",
            Self::UnknownSchema(_) => "unknown_schema",
            Self::Undecodable(DecodeError::LeftOver { .. }) => "left_over_bytes",
            Self::Undecodable(_) => "undecodable",
            Self::Key { .. } => "key",
            Self::IdLength { .. } => "id_length",
            Self::Beat { .. } => "beat",
            Self::Progress(_) => "progress",
            Self::Notes(_) => "notes",
            Self::Hlc(_) => "hlc",
        }
    }
}

/// Checks every validity rule of `claim` and its record's `key`, except the one on its beat.
pub fn check_claim(key: Option<&[u8]>, claim: &BorrowedClaim<'_>) -> Result<(), InvalidClaim> {
    if key != Some(claim.agent_id.as_bytes()) {
        let shown = key.map_or_else(|| "null".to_owned(), |key| format!("{:?}", lossy(key)));
        return Err(InvalidClaim::Key { key: shown, agent_id: lossy(claim.agent_id.as_bytes()) });
    }
    for (field, id) in [("agent_id", &claim.agent_id), ("task_id", &claim.task_id)] {
        if !(1..=MAX_ID_BYTES).contains(&id.len()) {
            return Err(InvalidClaim::IdLength { field, bytes: id.len() });
        }
    }
    // No range contains NaN.
    if !(0.0..=1.0).contains(&claim.progress) {
        return Err(InvalidClaim::Progress(claim.progress));
    }
    if claim.notes.len() > MAX_NOTES_BYTES {
        return Err(InvalidClaim::Notes(claim.notes.len()));
    }
    claim.hlc.parse::<Hlc>()?;
    Ok(())
}

/// Returns at most 64 characters of `bytes`, since errors go into record headers.
fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::State;

    fn claim() -> BorrowedClaim<'static> {
        BorrowedClaim {
            r#type: Default::default(),
            agent_id: "a".into(),
            task_id: "t".into(),
            beat_index: 3,
            state: State::Executing,
            beats_left: 1,
            progress: 0.5,
            notes: "".into(),
            hlc: "7ffd:0001:beef".into(),
            help: None,
            secret_rotation: None,
            degraded: false,
        }
    }

    fn reason_of(change: impl FnOnce(&mut BorrowedClaim<'static>)) -> Option<&'static str> {
        let mut claim = claim();
        change(&mut claim);
        let key = claim.agent_id.clone();
        let reason = check_claim(Some(key.as_bytes()), &claim).err().map(|invalid| invalid.reason());
        assert!(reason.is_none_or(|reason| InvalidClaim::REASONS.contains(&reason)));
        reason
    }

    #[test]
    fn check_claim_of_a_valid_claim_passes() {
        assert_eq!(reason_of(|_| ()), None);
        assert_eq!(reason_of(|c| c.progress = 1.0), None);
        assert_eq!(reason_of(|c| c.notes = "x".repeat(MAX_NOTES_BYTES).into()), None);
        assert_eq!(reason_of(|c| c.agent_id = "é".repeat(128).into()), None);
    }

    #[test]
    fn check_claim_of_an_invalid_claim_names_the_broken_rule() {
        assert_eq!(reason_of(|c| c.agent_id = "".into()), Some("id_length"));
        assert_eq!(reason_of(|c| c.task_id = "".into()), Some("id_length"));
        assert_eq!(reason_of(|c| c.task_id = "x".repeat(257).into()), Some("id_length"));
        assert_eq!(reason_of(|c| c.progress = f64::NAN), Some("progress"));
        assert_eq!(reason_of(|c| c.progress = f64::INFINITY), Some("progress"));
        assert_eq!(reason_of(|c| c.progress = -0.1), Some("progress"));
        assert_eq!(reason_of(|c| c.notes = "x".repeat(MAX_NOTES_BYTES + 1).into()), Some("notes"));
        assert_eq!(reason_of(|c| c.hlc = "now".into()), Some("hlc"));
        for key in [None, Some(&b""[..]), Some(&b"b"[..])] {
            assert_eq!(check_claim(key, &claim()).expect_err("wrong key").reason(), "key");
        }
    }
}
