//! Hybrid logical clocks (Kulkarni et al., "Logical Physical Clocks", 2014).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::Timestamp;

/// The largest physical part. 48 bits of milliseconds reach 8,900 years ahead; a larger value is corrupt.
const MAX_PHYSICAL: u64 = (1 << 48) - 1;

/// An HLC timestamp, the time of a hybrid logical clock: `<physical>:<logical>:<node>` in lower-case hex. The
/// physical part is in milliseconds since the Unix epoch.
///
/// HLC timestamps are ordered by physical and logical part; the node part only breaks ties.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hlc {
    physical: u64,
    logical: u16,
    node: u16,
}

impl Hlc {
    /// Returns true if this HLC timestamp is later than `other`, the node parts disregarded.
    pub fn is_after(self, other: Self) -> bool {
        (self.physical, self.logical) > (other.physical, other.logical)
    }
}

impl fmt::Display for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}:{:04x}", self.physical, self.logical, self.node)
    }
}

/// The error of parsing text that is not an HLC timestamp.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("hlc {0:?} is not <1 to 12 hex digits>:<4 hex digits>:<4 hex digits> in lower case")]
pub struct HlcError(String);

impl FromStr for Hlc {
    type Err = HlcError;

    fn from_str(text: &str) -> Result<Self, HlcError> {
        let parse = || {
            // Split from the end, since the last two parts have a fixed length: this runs for every claim.
            let (physical, rest) = text.as_bytes().split_at_checked(text.len().checked_sub(10)?)?;
            let ([b':', logical @ ..], [b':', node @ ..]) = rest.split_at(5) else { return None };
            let physical = (1..=12).contains(&physical.len()).then(|| hex(physical))??;
            Some(Self { physical, logical: hex(logical)? as u16, node: hex(node)? as u16 })
        };
        parse().ok_or_else(|| HlcError(shortened(text)))
    }
}

/// Parses at most 12 lower-case hex digits.
fn hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u64::from(value))
    })
}

/// Truncates `text` to 64 characters: errors quote the refused input, which may be a megabyte long.
fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

impl Serialize for Hlc {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hlc {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A hybrid logical clock: each HLC timestamp is later than all that this clock has returned or observed before.
#[derive(Debug, Clone)]
pub struct HlcClock {
    last: Hlc,
}

impl HlcClock {
    /// Creates a clock. `node` may be any number that distinguishes the writers.
    pub fn new(node: u16) -> Self {
        Self { last: Hlc { physical: 0, logical: 0, node } }
    }

    /// Returns the next HLC timestamp; `now` is the wall clock's time.
    pub fn tick(&mut self, now: Timestamp) -> Hlc {
        let physical = u64::try_from(now.millis()).unwrap_or(0).min(MAX_PHYSICAL);
        if physical > self.last.physical {
            self.last = Hlc { physical, logical: 0, ..self.last };
        } else if let Some(logical) = self.last.logical.checked_add(1) {
            self.last.logical = logical;
        } else {
            // More than 65,536 timestamps in one millisecond, or a wall clock that stands still: carry into the physical
            // part, so that no timestamp repeats.
            self.last = Hlc { physical: self.last.physical + 1, logical: 0, ..self.last };
        }
        self.last
    }

    /// Advances this clock past `other`, an HLC timestamp of another clock: all later ones of this clock are after it.
    pub fn observe(&mut self, other: Hlc) {
        if other.is_after(self.last) {
            self.last = Hlc { node: self.last.node, ..other };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn parse_of_the_prototypes_form_round_trips() {
        let hlc: Hlc = "7ffd:0001:beef".parse().expect("the prototype's example");
        assert_eq!(hlc.to_string(), "7ffd:0001:beef");
    }

    #[test]
    fn parse_of_other_forms_fails() {
        for text in [
            "",
            "7ffd",
            "7ffd:1:beef",
            "7FFD:0001:beef",
            "7ffd:0001:beef:0",
            ":0001:beef",
            "+7ffd:0001:beef",
            "1234567890abc:0001:beef",
        ] {
            assert!(text.parse::<Hlc>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn clock_with_a_wall_clock_that_stands_still_or_goes_back_rises() {
        let mut clock = HlcClock::new(7);
        let mut last = clock.tick(at(1_000));
        for step in 0..70_000 {
            let next = clock.tick(at(1_000 - step % 3));
            assert!(next.is_after(last), "{next} after {last}");
            last = next;
        }
    }

    #[test]
    fn clock_that_observed_a_timestamp_minutes_ahead_continues_after_it() {
        let mut clock = HlcClock::new(1);
        clock.tick(at(1_000));
        let other = HlcClock::new(2).tick(at(601_000));
        clock.observe(other);
        assert!(clock.tick(at(1_001)).is_after(other));
    }
}
