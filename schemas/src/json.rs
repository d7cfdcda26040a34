//! Numbers in the prototype's JSON form.

use serde::{Serialize, Serializer};

/// The bound up to which a double represents every integer exactly.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// Serializes a double; in JSON a whole number has no fraction (`120`, not `120.0`), as in the prototype.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature that serialize_with requires")]
pub(crate) fn number<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    let whole = value.fract() == 0.0 && value.abs() <= MAX_EXACT;
    if serializer.is_human_readable() && whole {
        (*value as i64).serialize(serializer)
    } else {
        value.serialize(serializer)
    }
}
