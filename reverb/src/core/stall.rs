//! Detects partitions whose aggregators do not advance although there is something to read.

use std::time::Duration;

/// A partition that has not advanced for this long is stalled. Kafka answers a fetch within half a second.
pub const STALLED_AFTER: Duration = Duration::from_secs(20);

/// The progress of one partition.
///
/// librdkafka can drop a resume, or stop fetching a partition (its issues 2190 and 5591): the partition then never
/// advances, and librdkafka reports no error.
#[derive(Debug, Default)]
pub struct StallDetector {
    /// The next offset and the time of its last change; `None` before the first observation.
    progress: Option<(i64, Duration)>,
}

impl StallDetector {
    /// Records that the partition's aggregator is at `next_offset`, and must reach `boundary`; `None` if it waits
    /// for something other than records. Returns true if it is stalled.
    pub fn observe(&mut self, next_offset: i64, boundary: Option<i64>, now: Duration) -> bool {
        let (offset, since) = self.progress.get_or_insert((next_offset, now));
        let must_advance = boundary.is_some_and(|boundary| next_offset < boundary);
        if *offset != next_offset || !must_advance {
            (*offset, *since) = (next_offset, now);
        }
        now.saturating_sub(*since) >= STALLED_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn partition_below_the_boundary_without_progress_is_stalled() {
        let mut detector = StallDetector::default();
        assert!(!detector.observe(10, Some(20), seconds(0)));
        assert!(!detector.observe(10, Some(30), seconds(19)));
        assert!(detector.observe(10, Some(30), seconds(20)));
    }

    #[test]
    fn progress_or_waiting_for_something_else_restarts_the_stall_timeout() {
        let mut detector = StallDetector::default();
        detector.observe(10, Some(20), seconds(0));
        assert!(!detector.observe(11, Some(20), seconds(20)), "it advanced");
        assert!(!detector.observe(11, None, seconds(39)), "it waits for the registry");
        assert!(!detector.observe(11, Some(20), seconds(58)));
        assert!(!detector.observe(20, Some(20), seconds(59)), "the boundary is reached");
        assert!(!detector.observe(20, Some(20), seconds(99)));
        assert!(!detector.observe(20, Some(21), seconds(100)));
        assert!(detector.observe(20, Some(21), seconds(120)));
    }
}
