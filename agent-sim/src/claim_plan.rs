//! A claim that an agent plans to make, before it has an HLC timestamp and an encoding.

use backbeat_sdk::{Status, StatusClaim};

/// A claim and its delivery.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimPlan {
    /// The content of the claim.
    pub status: Status,
    /// The way in which it is sent.
    pub delivery: Delivery,
}

/// The way in which a claim is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// A valid claim, sent on its own beat.
    OnTime,
    /// A valid claim, sent one bar plus the grace after its beat, so that it counts as late.
    Late,
    /// A claim made invalid on purpose, sent on its own beat.
    Malformed(Malformation),
}

/// A way to make a claim invalid: one of its violations of the validity rules.
///
/// An unknown schema id is not among them: reverb retries the lookup for up to a minute before such a claim counts as
/// invalid, and the partition waits meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformation {
    /// Text instead of the wire format.
    NotAvro,
    /// A byte after the Avro record.
    TrailingByte,
    /// Another agent's key.
    WrongKey,
    /// No key.
    NullKey,
    /// Progress that is not a number.
    NanProgress,
    /// A beat that has not been published yet.
    FutureBeat,
    /// An empty task id.
    EmptyTask,
    /// 100 KiB of notes.
    LongNotes,
    /// An hlc that does not parse.
    InvalidHlc,
}

impl Malformation {
    /// All ways to make a claim invalid.
    pub const ALL: [Self; 9] = [
        Self::NotAvro,
        Self::TrailingByte,
        Self::WrongKey,
        Self::NullKey,
        Self::NanProgress,
        Self::FutureBeat,
        Self::EmptyTask,
        Self::LongNotes,
        Self::InvalidHlc,
    ];

    /// Makes `claim` invalid in this way, and returns its record's key and value; `encode` returns the wire format.
    pub fn apply(self, mut claim: StatusClaim, encode: impl Fn(&StatusClaim) -> Vec<u8>) -> (Option<Vec<u8>>, Vec<u8>) {
        let key = Some(claim.agent_id.clone().into_bytes());
        match self {
            Self::NotAvro => return (key, format!("{} is fine", claim.agent_id).into_bytes()),
            Self::TrailingByte => return (key, [encode(&claim), vec![0]].concat()),
            Self::WrongKey => return (Some(b"somebody-else".to_vec()), encode(&claim)),
            Self::NullKey => return (None, encode(&claim)),
            Self::NanProgress => claim.progress = f64::NAN,
            Self::FutureBeat => claim.beat_index += 1_000_000,
            Self::EmptyTask => claim.task_id.clear(),
            Self::LongNotes => claim.notes = "x".repeat(32 * 1_024),
            Self::InvalidHlc => "yesterday".clone_into(&mut claim.hlc),
        }
        (key, encode(&claim))
    }
}
