//! The index of a beat.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The index of a beat: from 0, without gaps or repeats over the life of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub struct BeatIndex(i64);

impl BeatIndex {
    /// The first beat of a cluster.
    pub const ZERO: Self = Self(0);

    /// The largest index, which no beat reaches.
    pub const MAX: Self = Self(i64::MAX);

    /// Returns the index `beats` beats later.
    #[must_use]
    pub fn plus(self, beats: u32) -> Self {
        Self(self.0.saturating_add(beats.into()))
    }

    /// Returns the index of the beat before this one, or `None` for beat 0.
    #[must_use]
    pub fn previous(self) -> Option<Self> {
        (self.0 > 0).then(|| Self(self.0 - 1))
    }

    /// Returns the number of beats from `earlier` to this one; negative if `earlier` comes after this one.
    pub fn since(self, earlier: Self) -> i64 {
        self.0 - earlier.0
    }

    /// Returns the index as an integer.
    pub fn get(self) -> i64 {
        self.0
    }
}

impl TryFrom<i64> for BeatIndex {
    type Error = NegativeBeat;

    fn try_from(index: i64) -> Result<Self, NegativeBeat> {
        if index < 0 { Err(NegativeBeat(index)) } else { Ok(Self(index)) }
    }
}

impl From<BeatIndex> for i64 {
    fn from(beat: BeatIndex) -> i64 {
        beat.0
    }
}

impl fmt::Display for BeatIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A beat index below 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("beat index {0} is negative; the first beat is 0")]
pub struct NegativeBeat(i64);
