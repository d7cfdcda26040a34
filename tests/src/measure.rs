//! Times and percentiles of measurements.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the time of the wall clock, in milliseconds since the Unix epoch.
pub fn now_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970").as_secs_f64() * 1_000.0
}

/// Returns the smallest of `values` that at least `percent` % of them do not exceed.
pub fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}
