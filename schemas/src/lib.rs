//! The contract between pulse, agents and reverb: records, their Avro codec, identifiers, and the validity rules of
//! claims.
//!
//! - [`BeatFrame`]: one beat of a cluster, written by pulse. Its `claim_offsets` are the *boundary*: for every
//!   partition of `statusclaims`, its last stable offset just before that beat.
//! - [`StatusClaim`]: an agent's status of one task on one beat (a *claim*).
//! - [`BarReport`]: the report of one *window*, which is the claims' offset range of one bar.
//! - [`BarRoster`]: who needs attention in one window, by name, in one partition.
//! - [`BarPartial`]: internal to reverb: a partial, which carries one partition's *share* of a window; a done
//!   record, which marks a window as finished; or a merging record, which names the member that runs the merge.
//!
//! This crate depends neither on Kafka nor on an async runtime. The `.avsc` files in its folder are registered with
//! the schema registry; the Rust types mirror them field by field.

mod bar_partial;
mod bar_report;
mod bar_roster;
mod beat_frame;
mod beat_index;
mod codec;
mod hlc;
mod json;
#[cfg(feature = "openapi")]
mod openapi;
mod record_type;
mod status_claim;
mod tempo;
pub mod testing;
mod timestamp;
mod validity;
mod window_id;

pub use bar_partial::{BarPartial, Counts, Done, Merging, Partial, PartialBody, Verdict};
pub use bar_report::BarReport;
pub use bar_roster::{BarRoster, RosterEntry, RosterKind};
pub use beat_frame::{BeatFrame, Phase};
pub use beat_index::BeatIndex;
pub use codec::{DecodeError, Header, HeaderError, Record, RecordSchema, WriterSchema, wire};
pub use hlc::{Hlc, HlcClock, HlcError};
pub use status_claim::{BorrowedClaim, Help, SecretRotation, State, StatusClaim};
pub use tempo::{Tempo, TempoError};
pub use timestamp::Timestamp;
pub use validity::{InvalidClaim, MAX_CLAIM_BYTES, MAX_ID_BYTES, MAX_NOTES_BYTES, check_claim};
pub use window_id::{WindowId, WindowIdError};
