//! The newest beat that is known to have been published, and what it means that the log ends before it.

use std::time::Duration;

use backbeat_schemas::BeatIndex;

/// A log that ends before a published beat for this long is not a stale response: frames were lost.
const LOST_AFTER: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(super) struct PublishedBeats {
    newest: Option<BeatIndex>,
    /// The instant since which the log has ended before it.
    stale_since: Option<Duration>,
}

/// The verdict on an end of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LogEnd {
    /// It reaches the newest beat that is known.
    Whole,
    /// It comes from a broker without the whole log.
    Stale,
    /// Frames were lost: this beat was published.
    Lost(BeatIndex),
}

impl PublishedBeats {
    /// Records a beat that was published.
    pub(super) fn remember(&mut self, beat: BeatIndex) {
        self.newest = self.newest.max(Some(beat));
    }

    /// Judges a log that ends at the beat `found`, or is empty. The first beat of an empty one would be `first_beat`.
    pub(super) fn judge(&mut self, found: Option<BeatIndex>, first_beat: BeatIndex, now: Duration) -> LogEnd {
        // The first beat continues one that was published if it comes after it.
        let reached = found.or_else(|| first_beat.previous());
        let Some(newest) = self.newest.filter(|newest| reached < Some(*newest)) else {
            self.stale_since = None;
            return LogEnd::Whole;
        };
        let since = *self.stale_since.get_or_insert(now);
        if found.is_some() && now.saturating_sub(since) < LOST_AFTER { LogEnd::Stale } else { LogEnd::Lost(newest) }
    }
}
