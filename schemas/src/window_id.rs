//! The identifier of a window.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};

use crate::BeatIndex;

/// The identifier of a window: the first 32 hex digits of SHA-256 of `<cluster_id>:<from_beat>`.
///
/// It depends only on the cluster and the window's downbeat, so every replay of a window writes its report under the
/// same key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WindowId([u8; 16]);

impl WindowId {
    /// Returns the id of the window of `cluster_id` that opens at `from_beat`.
    pub fn new(cluster_id: &str, from_beat: BeatIndex) -> Self {
        let digest = Sha256::digest(format!("{cluster_id}:{from_beat}"));
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        Self(id)
    }
}

impl fmt::Display for WindowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for WindowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WindowId({self})")
    }
}

/// The error of parsing text that is not 32 lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("window id {0:?} is not 32 lower-case hex digits")]
pub struct WindowIdError(String);

impl FromStr for WindowId {
    type Err = WindowIdError;

    fn from_str(text: &str) -> Result<Self, WindowIdError> {
        let well_formed = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        u128::from_str_radix(text, 16)
            .ok()
            .filter(|_| well_formed)
            .map(|number| Self(number.to_be_bytes()))
            .ok_or_else(|| WindowIdError(text.to_owned()))
    }
}

impl Serialize for WindowId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WindowId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_id_is_the_prefix_of_the_sha256_of_cluster_and_downbeat() {
        // printf 'chorus-production:240' | sha256sum | cut -c1-32
        let beat = BeatIndex::try_from(240).expect("the beat index is not negative");
        let id = WindowId::new("chorus-production", beat);
        assert_eq!(id.to_string(), "d1eac9157ece802897f2f5a490a5a703");
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn parse_of_other_text_fails() {
        for text in ["", "7e9b", "7E9B0E6C4C9A4E59B7F2D9A3C1B2E4D5", "+e9b0e6c4c9a4e59b7f2d9a3c1b2e4d5"] {
            assert!(text.parse::<WindowId>().is_err(), "{text:?}");
        }
    }
}
