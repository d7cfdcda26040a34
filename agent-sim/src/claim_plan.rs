//! A claim that an agent wants to make, before it has a clock or an encoding.

use backbeat_sdk::{Status, StatusClaim};

/// A claim and what becomes of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimPlan {
    /// What is claimed.
    pub status: Status,
    /// How it is sent.
    pub fate: Fate,
}

/// How a claim is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// At once, as it should be.
    Honest,
    /// A bar later.
    Late,
    /// Broken in one way.
    Malformed(Malformation),
}

/// One way to break the rules of a valid claim.
///
/// An unknown schema id is not among them: reverb asks the registry for a minute before it gives a
/// new one up, and its partition waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformation {
    /// Text instead of the wire format.
    NotAvro,
    /// A byte after the record.
    LeftOverByte,
    /// Another agent's key.
    WrongKey,
    /// No key.
    NullKey,
    /// Progress that is not a number.
    NanProgress,
    /// A beat that is not issued yet.
    FutureBeat,
    /// An empty task id.
    EmptyTask,
    /// 100 KiB of notes.
    LongNotes,
    /// An hlc that does not parse.
    BrokenHlc,
}

impl Malformation {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::NotAvro,
        Self::LeftOverByte,
        Self::WrongKey,
        Self::NullKey,
        Self::NanProgress,
        Self::FutureBeat,
        Self::EmptyTask,
        Self::LongNotes,
        Self::BrokenHlc,
    ];

    /// The key and the value of `claim`, broken; `encode` gives the wire format.
    pub fn apply(self, mut claim: StatusClaim, encode: impl Fn(&StatusClaim) -> Vec<u8>) -> (Option<Vec<u8>>, Vec<u8>) {
        let key = Some(claim.agent_id.clone().into_bytes());
        match self {
            Self::NotAvro => return (key, format!("{} is fine", claim.agent_id).into_bytes()),
            Self::LeftOverByte => return (key, [encode(&claim), vec![0]].concat()),
            Self::WrongKey => return (Some(b"somebody-else".to_vec()), encode(&claim)),
            Self::NullKey => return (None, encode(&claim)),
            Self::NanProgress => claim.progress = f64::NAN,
            Self::FutureBeat => claim.beat_index += 1_000_000,
            Self::EmptyTask => claim.task_id.clear(),
            Self::LongNotes => claim.notes = "x".repeat(100 * 1_024),
            Self::BrokenHlc => "yesterday".clone_into(&mut claim.hlc),
        }
        (key, encode(&claim))
    }
}
