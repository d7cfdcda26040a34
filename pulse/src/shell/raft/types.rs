//! The types that openraft is configured with.

use std::fmt;
use std::io::Cursor;
use std::str::FromStr;

use arrayvec::ArrayString;
use serde::{Deserialize, Serialize};

use crate::core::Plan;

openraft::declare_raft_types!(
    /// Raft replicates plans.
    pub(crate) Types:
        D = Plan,
        R = (),
        NodeId = NodeName,
        Node = NodeInfo,
);

/// Kubernetes' length limit for a pod's host name.
const MAX_NAME: usize = 63;

/// A node's name, from `--node`. openraft writes an empty one into the log where there is no node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub(crate) struct NodeName(ArrayString<MAX_NAME>);

/// A text is not a valid node name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a node name; must be 1 to 63 letters, digits, '-', '_' and '.'")]
pub(crate) struct NameError(String);

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let invalid = || NameError(text.chars().take(100).collect());
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if text.is_empty() || !text.chars().all(allowed) {
            return Err(invalid());
        }
        ArrayString::from(text).map(Self).map_err(|_| invalid())
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// openraft's test suite names nodes by numbers, with 0 for no node.
#[cfg(test)]
impl From<u64> for NodeName {
    fn from(number: u64) -> Self {
        if number == 0 { Self::default() } else { format!("n{number}").parse().expect("a name") }
    }
}

/// The data that Raft's membership holds of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct NodeInfo {
    /// The host:port of the node's Raft server.
    pub(crate) address: String,
}

/// Returns true if `address` is host:port, with a port that can be connected to.
pub(crate) fn is_host_and_port(address: &str) -> bool {
    address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_name_with_invalid_characters_or_length_is_refused() {
        assert_eq!("pulse-1.a_b".parse::<NodeName>().expect("a name").to_string(), "pulse-1.a_b");
        for text in ["", "a b", "a=b", "ä", &"x".repeat(64)] {
            assert!(text.parse::<NodeName>().is_err(), "{text:?}");
        }
    }
}
