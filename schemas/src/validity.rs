//! The rules that a claim must keep to count (DESIGN, "Validity of a claim"), but for the one that
//! needs its arrival beat.

use crate::{BorrowedClaim, DecodeError, HeaderError, Hlc, HlcError};

/// The longest agent or task id, in bytes.
pub const MAX_ID_BYTES: usize = 256;
/// The longest notes, in bytes.
pub const MAX_NOTES_BYTES: usize = 4_096;

/// Why a record of `statusclaims` is no valid claim.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidClaim {
    /// A record without a value.
    #[error("the record has no value; claims are never deleted")]
    NoValue,
    /// Not in the wire format.
    #[error(transparent)]
    WireFormat(#[from] HeaderError),
    /// The registry does not know the schema id.
    #[error("schema id {0} is not known to the registry")]
    UnknownSchema(u32),
    /// Not a record of a `StatusClaim` schema, or bytes left over.
    #[error(transparent)]
    Undecodable(#[from] DecodeError),
    /// The record's key is not the agent.
    #[error("the record's key is {key}, expected the agent_id {agent_id:?}")]
    Key {
        /// The key, as text.
        key: String,
        /// The claim's agent.
        agent_id: String,
    },
    /// An id that is empty or too long.
    #[error("{field} has {bytes} bytes; allowed are 1 to 256")]
    IdLength {
        /// `agent_id` or `task_id`.
        field: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// A beat below 0 or one that was not issued when the claim arrived.
    #[error("beat_index is {beat}; allowed are 0 to {arrival}, the beat on which the claim arrived")]
    Beat {
        /// The claim's beat.
        beat: i64,
        /// The beat on which it arrived.
        arrival: i64,
    },
    /// NaN, infinite or out of range.
    #[error("progress is {0}; allowed are 0 to 1")]
    Progress(f64),
    /// Notes that are too long.
    #[error("notes have {0} bytes; allowed are at most 4096")]
    Notes(usize),
    /// An hlc that does not parse.
    #[error(transparent)]
    Hlc(#[from] HlcError),
}

impl InvalidClaim {
    /// Every [`InvalidClaim::reason`].
    pub const REASONS: [&str; 11] = [
        "no_value",
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

    /// A short name for headers, metrics and logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoValue => "no_value",
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

/// Checks everything about `claim` but its beat.
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
    // NaN is in no range.
    if !(0.0..=1.0).contains(&claim.progress) {
        return Err(InvalidClaim::Progress(claim.progress));
    }
    if claim.notes.len() > MAX_NOTES_BYTES {
        return Err(InvalidClaim::Notes(claim.notes.len()));
    }
    claim.hlc.parse::<Hlc>()?;
    Ok(())
}

/// At most 64 characters of it: errors travel in record headers.
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
    fn an_honest_claim_is_valid() {
        assert_eq!(reason_of(|_| ()), None);
        assert_eq!(reason_of(|c| c.progress = 1.0), None);
        assert_eq!(reason_of(|c| c.notes = "x".repeat(MAX_NOTES_BYTES).into()), None);
        assert_eq!(reason_of(|c| c.agent_id = "é".repeat(128).into()), None);
    }

    #[test]
    fn each_rule_refuses_what_breaks_it() {
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
