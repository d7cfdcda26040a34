//! The SLOs about latency, measured by one member.

use std::borrow::Cow;
use std::collections::VecDeque;

use backbeat_http_api::reverb::Slo;
use backbeat_schemas::{BarReport, BeatFrame, BeatIndex, Timestamp};

/// Samples kept per SLO: about an hour of beats at 16 BPM.
const MAX_SAMPLES: usize = 1_000;
/// The SLO of the time from a beat's sending to its arrival at a subscriber (PER-001).
const BEAT_DELIVERY_MS: i64 = 100;
/// The SLO of the time between a beat's schedule and its sending.
const PULSE_JITTER_MS: i64 = 20;

/// Measures the SLOs on the beats and reports that a member reads while they are new.
#[derive(Debug)]
pub struct Slos {
    /// The instant before which sent frames are ignored: they were not read as they came.
    since: Timestamp,
    beats: VecDeque<Beat>,
    delivery: Samples,
    jitter: Samples,
    rollup: Samples,
    reported: Option<BeatIndex>,
}

#[derive(Debug, Clone, Copy)]
struct Beat {
    index: BeatIndex,
    emitted_at: Timestamp,
    period_ms: i64,
}

#[derive(Debug, Default)]
struct Samples(VecDeque<i64>);

impl Samples {
    fn add(&mut self, millis: i64) {
        if self.0.len() == MAX_SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back(millis);
    }

    /// Returns the 95th percentile, by the nearest rank.
    fn p95(&self) -> Option<i64> {
        let mut sorted: Vec<i64> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        let rank = (sorted.len() * 95).div_ceil(100);
        rank.checked_sub(1).map(|index| sorted[index])
    }
}

impl Slos {
    /// Starts without samples. Frames sent before `since` are ignored.
    pub fn new(since: Timestamp) -> Self {
        Self {
            since,
            beats: VecDeque::new(),
            delivery: Samples::default(),
            jitter: Samples::default(),
            rollup: Samples::default(),
            reported: None,
        }
    }

    /// Measures a frame that was read at `now`. Returns its delivery time in milliseconds if it is a new one.
    pub fn observe_frame(&mut self, frame: &BeatFrame, now: Timestamp) -> Option<i64> {
        let is_new = self.beats.back().is_none_or(|last| frame.beat_index > last.index);
        if !is_new || frame.emitted_at < self.since {
            return None;
        }
        if self.beats.len() == MAX_SAMPLES {
            self.beats.pop_front();
        }
        let period_ms = frame.deadline_at.millis_since(frame.scheduled_at);
        self.beats.push_back(Beat { index: frame.beat_index, emitted_at: frame.emitted_at, period_ms });
        let delivered_after = now.millis_since(frame.emitted_at);
        self.delivery.add(delivered_after);
        self.jitter.add(frame.emitted_at.millis_since(frame.scheduled_at).saturating_abs());
        Some(delivered_after)
    }

    /// Measures a report that was read at `now`, if it is the first of its window.
    pub fn observe_report(&mut self, report: &BarReport, now: Timestamp) {
        let closing = report.to_beat.plus(1 + u32::from(report.grace_beats));
        let is_first = self.reported.is_none_or(|last| report.from_beat > last);
        if let Some(beat) = self.beats.iter().rev().find(|beat| beat.index == closing).filter(|_| is_first) {
            self.rollup.add(now.millis_since(beat.emitted_at));
            self.reported = Some(report.from_beat);
        }
    }

    /// Returns the SLOs with their measurements.
    pub fn snapshot(&self) -> [Slo; 3] {
        let period_ms = self.beats.back().map(|beat| beat.period_ms);
        let slo = |name, requirement, limit_ms: Option<i64>, samples: &Samples| {
            let p95_ms = samples.p95();
            let met = p95_ms.zip(limit_ms).map(|(p95, limit)| p95 <= limit);
            Slo {
                name: Cow::Borrowed(name),
                requirement: Cow::Borrowed(requirement),
                limit_ms,
                p95_ms,
                samples: samples.0.len(),
                met,
            }
        };
        [
            slo("rollup_delay", "at most one beat after the closing beat (PER-002)", period_ms, &self.rollup),
            slo("beat_delivery", "p95 at most 100 ms (PER-001)", Some(BEAT_DELIVERY_MS), &self.delivery),
            slo("pulse_jitter", "p95 at most 20 ms", Some(PULSE_JITTER_MS), &self.jitter),
        ]
    }
}

#[cfg(test)]
mod tests {
    use backbeat_schemas::Counts;

    use super::*;
    use crate::core::LOGIC;
    use crate::core::bar_report;
    use crate::core::testing::{beat, frames};

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn p95_is_the_nearest_rank() {
        let samples = |count: i64| Samples((1..=count).rev().collect());
        assert_eq!(
            [0, 1, 19, 20, 100].map(|count| samples(count).p95()),
            [None, Some(1), Some(19), Some(19), Some(95)]
        );
    }

    #[test]
    fn frame_sent_before_the_start_or_read_again_is_not_measured() {
        let table = frames(2, 0, &[0; 5]);
        let mut slos = Slos::new(at(2_000));
        let frame = |index| table.get(beat(index)).expect("the frame is in the table");
        assert_eq!(slos.observe_frame(frame(1), at(9_000)), None);
        assert_eq!(slos.observe_frame(frame(2), at(2_030)), Some(30));
        assert_eq!(slos.observe_frame(frame(2), at(2_040)), None, "read again");
        assert_eq!(slos.observe_frame(frame(3), at(3_200)), Some(200));
        let [_, delivery, jitter] = slos.snapshot();
        assert_eq!((delivery.p95_ms, delivery.samples, delivery.met), (Some(200), 2, Some(false)));
        assert_eq!((jitter.p95_ms, jitter.met), (Some(0), Some(true)));
    }

    #[test]
    fn report_read_twice_is_measured_once_from_its_closing_beat() {
        let table = frames(2, 1, &[0; 5]);
        let mut slos = Slos::new(at(0));
        let [rollup, ..] = slos.snapshot();
        assert_eq!((rollup.limit_ms, rollup.met), (None, None));
        for frame in table.range(beat(0), beat(5)) {
            assert_eq!(slos.observe_frame(frame, frame.emitted_at), Some(0));
        }
        let window = table.window_of(beat(0)).expect("the window is in the table");
        let report = bar_report(&table, &window, &Counts::default(), LOGIC).expect("the closing frame is in the table");
        slos.observe_report(&report, at(3_070));
        slos.observe_report(&report, at(5_000));
        let [rollup, ..] = slos.snapshot();
        assert_eq!((rollup.limit_ms, rollup.p95_ms, rollup.samples), (Some(1_000), Some(70), 1));
    }
}
