//! Waits for a condition, never for a fixed time.

use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);

/// Polls until `poll` returns a value, and returns it; panics after `limit` with the `description` of what it waited
/// for.
pub fn wait_for<T>(description: &str, limit: Duration, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} for {description}");
        std::thread::sleep(POLL);
    }
}

/// Polls until `condition` is true; panics after `limit`, as [`wait_for`] does.
pub fn wait_until(description: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(description, limit, || condition().then_some(()));
}
