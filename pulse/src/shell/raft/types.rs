//! What openraft is made of here.

use std::fmt;
use std::io::Cursor;
use std::str::FromStr;

use arrayvec::ArrayString;
use serde::{Deserialize, Serialize};

use crate::core::Plan;

openraft::declare_raft_types!(
    /// Raft agrees on plans.
    pub(crate) Types:
        D = Plan,
        R = (),
        NodeId = NodeName,
        Node = Member,
);

/// Kubernetes' limit for the name of a pod.
const MAX_NAME: usize = 63;

/// A node's name, as `--node` says it. openraft writes an empty one into the log, for no node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub(crate) struct NodeName(ArrayString<MAX_NAME>);

/// A text that is no node's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no node name; allowed are 1 to 63 letters, digits, '-', '_' and '.'")]
pub(crate) struct NameError(String);

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError(text.chars().take(100).collect());
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if text.is_empty() || !text.chars().all(allowed) {
            return Err(wrong());
        }
        ArrayString::from(text).map(Self).map_err(|_| wrong())
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What openraft's test suite names nodes by; it takes 0 for no node.
#[cfg(test)]
impl From<u64> for NodeName {
    fn from(number: u64) -> Self {
        if number == 0 { Self::default() } else { format!("n{number}").parse().expect("a name") }
    }
}

/// Where a node is reached by the others.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Member {
    /// host:port of its Raft server.
    pub(crate) address: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_where_they_enter() {
        assert_eq!("pulse-1.a_b".parse::<NodeName>().expect("a name").to_string(), "pulse-1.a_b");
        for text in ["", "a b", "a=b", "ä", &"x".repeat(64)] {
            assert!(text.parse::<NodeName>().is_err(), "{text:?}");
        }
    }
}
