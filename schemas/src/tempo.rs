//! The tempo of a cluster.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

/// A tempo in beats per minute, kept in whole thousandths so that every node computes the same deadlines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "f64")]
pub struct Tempo(u32);

/// The fastest tempo, at which a beat lasts one millisecond, the resolution of a deadline.
const MAX_MILLI_BPM: u32 = 60_000_000;

impl Tempo {
    /// The default tempo of a new cluster: one beat per minute, as in the prototype.
    pub const DEFAULT: Self = Self(1_000);

    /// Returns the tempo in beats per minute.
    pub fn bpm(self) -> f64 {
        f64::from(self.0) / 1_000.0
    }

    /// Returns the tempos that one change may set: at most 10 % from this one, both ends rounded towards it.
    pub fn allowed_next(self) -> RangeInclusive<Self> {
        let milli = u64::from(self.0);
        let slowest = (milli * 9).div_ceil(10);
        let fastest = (milli * 11 / 10).min(u64::from(MAX_MILLI_BPM));
        Self(slowest as u32)..=Self(fastest as u32)
    }

    /// Returns the tempo after one change towards `target`: `target` itself, or the nearest tempo that one change may
    /// set.
    #[must_use]
    pub fn towards(self, target: Self) -> Self {
        let allowed = self.allowed_next();
        target.clamp(*allowed.start(), *allowed.end())
    }

    /// Returns the duration of `beats` beats in milliseconds, rounded to the nearest.
    pub fn beats_ms(self, beats: i64) -> i64 {
        let milli_bpm = i128::from(self.0);
        let numerator = i128::from(beats) * 60_000_000;
        ((numerator * 2 + milli_bpm) / (milli_bpm * 2)) as i64
    }

    /// Returns the duration of one beat, rounded down to a whole nanosecond.
    pub fn period(self) -> Duration {
        Duration::from_nanos(60_000_000_000_000 / u64::from(self.0))
    }

    /// Returns the duration of one beat in milliseconds, rounded to the nearest.
    pub fn period_ms(self) -> i64 {
        self.beats_ms(1)
    }
}

/// An invalid tempo.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TempoError {
    /// The number is not between 0.001 and 60,000 BPM.
    #[error("tempo {0} BPM is out of range: must be 0.001 to 60000 BPM")]
    OutOfRange(f64),
    /// The text is not a number.
    #[error("tempo {0:?} is not a number")]
    NotANumber(String),
}

impl TryFrom<f64> for Tempo {
    type Error = TempoError;

    fn try_from(bpm: f64) -> Result<Self, TempoError> {
        let milli = (bpm * 1_000.0).round();
        if milli >= 1.0 && milli <= f64::from(MAX_MILLI_BPM) {
            Ok(Self(milli as u32))
        } else {
            Err(TempoError::OutOfRange(bpm))
        }
    }
}

impl FromStr for Tempo {
    type Err = TempoError;

    fn from_str(text: &str) -> Result<Self, TempoError> {
        let bpm: f64 = text.parse().map_err(|_| TempoError::NotANumber(text.to_owned()))?;
        Self::try_from(bpm)
    }
}

impl Serialize for Tempo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        crate::json::number(&self.bpm(), serializer)
    }
}

impl fmt::Display for Tempo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} BPM", self.bpm())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_ms_of_many_beats_rounds_without_drift() {
        let seven: Tempo = "7".parse().expect("the tempo is in range");
        assert_eq!(seven.beats_ms(1), 8_571);
        assert_eq!(seven.beats_ms(7), 60_000);
        assert_eq!(seven.beats_ms(7_000_000), 60_000_000_000);
        assert_eq!(Tempo::DEFAULT.period_ms(), 60_000);
        assert_eq!(Tempo::DEFAULT.period(), Duration::from_mins(1));
    }

    #[test]
    fn allowed_next_is_within_ten_percent() {
        let tempo = |text: &str| text.parse::<Tempo>().expect("the tempo is in range");
        assert_eq!(tempo("5").allowed_next(), tempo("4.5")..=tempo("5.5"));
        assert_eq!(tempo("1.331").allowed_next(), tempo("1.198")..=tempo("1.464"));
        assert_eq!(tempo("5").towards(tempo("24")), tempo("5.5"));
        assert_eq!(tempo("5").towards(tempo("4.9")), tempo("4.9"));
        let changes =
            std::iter::successors(Some(tempo("1")), |now| (*now != tempo("24")).then(|| now.towards(tempo("24"))));
        assert_eq!(changes.count() - 1, 34, "bars from 1 to 24 BPM");
    }

    #[test]
    fn parse_of_an_invalid_tempo_fails() {
        for text in ["0", "-1", "NaN", "inf", "60001", "fast"] {
            assert!(text.parse::<Tempo>().is_err(), "{text}");
        }
    }
}
