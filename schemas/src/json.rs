//! Numbers in JSON as the prototype wrote them.

use serde::{Serialize, Serializer};

/// The integers that a double holds exactly.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// Serializes a double; in JSON a whole number goes without a fraction (`120`, not `120.0`), as
/// the prototype's encoder did.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
pub(crate) fn number<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    let whole = value.fract() == 0.0 && value.abs() <= MAX_EXACT;
    if serializer.is_human_readable() && whole {
        (*value as i64).serialize(serializer)
    } else {
        value.serialize(serializer)
    }
}
