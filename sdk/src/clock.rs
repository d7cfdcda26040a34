//! The agent's clock of beats, with Kafka or without: pure, driven by monotonic times that it is given.

use std::time::Duration;

use backbeat_schemas::{BeatFrame, BeatIndex};

/// The period of an agent that has not heard a beat yet: 1 BPM.
const DEFAULT_PERIOD: Duration = Duration::from_mins(1);
/// The slack, after which a beat is overdue, is an eighth of a period, within the bounds below.
const SLACK_DIVISOR: u32 = 8;
/// The minimum slack: the time that a beat's delivery may take (PER-001).
const MIN_SLACK: Duration = Duration::from_millis(100);
/// The maximum slack.
const MAX_SLACK: Duration = Duration::from_secs(2);

/// A beat: heard from Kafka, or made by the agent's own clock.
#[derive(Debug, Clone, PartialEq)]
pub struct Beat {
    /// The source of the beat.
    pub source: BeatSource,
    /// The number of periods that have passed since the previous beat; this beat consumes as many beats of a beat
    /// budget. Usually 1; 0 for the first beat and for a heard beat whose period a local beat has counted already; more
    /// than 1 if beats were missed, for example by a process that was stopped.
    pub periods: u32,
}

/// The source of a beat.
#[derive(Debug, Clone, PartialEq)]
pub enum BeatSource {
    /// A frame that was read from Kafka. Its indices rise strictly.
    Heard(Box<BeatFrame>),
    /// A local beat, made by the agent's own clock because no frame arrived in time.
    Local {
        /// The last beat that was heard; `None` if none was heard yet.
        since: Option<BeatIndex>,
        /// The number of this local beat since the last heard one, from 1.
        k: u32,
    },
}

/// The agent's clock: turns the frames that arrive into beats, and makes local beats when none arrive.
///
/// - A beat is overdue when it is late by an eighth of a period, at least 100 ms and at most 2 s. Then a local beat
///   takes its place. Local beats have the last tempo that was heard; 1 BPM if none was.
/// - Beats count the periods that have passed, by frames and by local beats alike. When frames arrive in a burst after a
///   silence, those whose periods were counted by local beats count no period again.
/// - Only time on the monotonic clock counts: the beats of a time in which it stood still, such as a laptop's sleep,
///   count no periods.
///
/// The clock is pure. All times are of one monotonic clock, as durations since an arbitrary origin.
/// [`Beats`](crate::Beats) drives it; use it directly only for simulations.
#[derive(Debug)]
pub struct BeatClock {
    last: Option<BeatIndex>,
    period: Duration,
    /// The arrival of the last frame. Local beats are computed from it, so that they do not drift.
    base: Duration,
    /// The number of local beats since `base`.
    local_beats: u32,
    /// The end of the last counted period.
    period_end: Duration,
}

impl BeatClock {
    /// Creates a clock at time `now` that has heard no beat yet.
    pub fn new(now: Duration) -> Self {
        Self { last: None, period: DEFAULT_PERIOD, base: now, local_beats: 0, period_end: now }
    }

    /// Returns the index of the last beat that was heard.
    pub fn last_heard(&self) -> Option<BeatIndex> {
        self.last
    }

    /// Processes a frame that arrived at time `now`, and returns its beat; `None` if this beat or a later one was heard
    /// before.
    pub fn on_frame(&mut self, frame: BeatFrame, now: Duration) -> Option<Beat> {
        if self.last.is_some_and(|last| frame.beat_index <= last) {
            return None;
        }
        // The count of periods starts at the first heard beat, unless a local one came before it.
        let first = self.last.is_none() && self.local_beats == 0;
        let periods = if first { 0 } else { rounded(now.saturating_sub(self.period_end), self.period) };
        if periods > 0 || first {
            // Realign to the frame, so that the jitter of arrivals does not add up.
            self.period_end = now;
        }
        let period = frame.tempo_bpm.period();
        // At a change of tempo, the elapsed part of the current period stays the same part of the new one.
        let elapsed = now.saturating_sub(self.period_end).mul_f64(period.as_secs_f64() / self.period.as_secs_f64());
        self.period_end = now.saturating_sub(elapsed);
        self.last = Some(frame.beat_index);
        self.period = period;
        self.base = now;
        self.local_beats = 0;
        Some(Beat { source: BeatSource::Heard(Box::new(frame)), periods })
    }

    /// Returns the time at which the next beat is overdue, if no frame arrives before.
    pub fn overdue_at(&self) -> Duration {
        self.base + self.period.saturating_mul(self.local_beats + 1) + self.slack()
    }

    /// Returns a local beat if a beat is overdue at time `now`. If several are, because the caller was not scheduled
    /// for a while, the returned beat is the last of them and counts the periods of all.
    pub fn on_timer(&mut self, now: Duration) -> Option<Beat> {
        if now < self.overdue_at() {
            return None;
        }
        let elapsed = now.saturating_sub(self.base).saturating_sub(self.slack());
        let k =
            u32::try_from(elapsed.as_nanos() / self.period.as_nanos()).unwrap_or(u32::MAX).max(self.local_beats + 1);
        // The scheduled time of the beat, not the time of this call.
        let due = self.base + self.period.saturating_mul(k);
        let periods = rounded(due.saturating_sub(self.period_end), self.period);
        self.local_beats = k;
        self.period_end = due;
        Some(Beat { source: BeatSource::Local { since: self.last, k }, periods })
    }

    fn slack(&self) -> Duration {
        (self.period / SLACK_DIVISOR).clamp(MIN_SLACK, MAX_SLACK)
    }
}

/// Returns the number of periods in `elapsed`, rounded to the nearest.
fn rounded(elapsed: Duration, period: Duration) -> u32 {
    u32::try_from((elapsed + period / 2).as_nanos() / period.as_nanos()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use backbeat_schemas::{Tempo, testing};
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn frame(index: u32, bpm: f64) -> BeatFrame {
        BeatFrame { tempo_bpm: Tempo::try_from(bpm).expect("a tempo"), ..testing::frame(index, 8) }
    }

    fn periods(beat: Option<Beat>) -> Option<u32> {
        beat.map(|beat| beat.periods)
    }

    /// Returns a clock that has heard beat 0, at 60 BPM, at second 0.
    fn clock_after_beat_0() -> BeatClock {
        let mut clock = BeatClock::new(Duration::ZERO);
        assert_eq!(periods(clock.on_frame(frame(0, 60.0), Duration::ZERO)), Some(0));
        clock
    }

    #[test]
    fn on_frame_of_a_repeated_or_older_frame_gives_no_beat() {
        let mut clock = clock_after_beat_0();
        assert_eq!(periods(clock.on_frame(frame(1, 60.0), SECOND)), Some(1));
        assert_eq!(clock.on_frame(frame(1, 60.0), SECOND), None);
        assert_eq!(clock.on_frame(frame(0, 60.0), 2 * SECOND), None, "an older frame gives no beat");
        assert_eq!(periods(clock.on_frame(frame(2, 60.0), 2 * SECOND)), Some(1));
    }

    #[test]
    fn on_timer_without_frames_beats_at_the_last_tempo_without_drift() {
        let mut clock = clock_after_beat_0();
        for k in 1..=3_600 {
            let at = clock.overdue_at();
            assert_eq!(at, SECOND * k + SECOND / SLACK_DIVISOR);
            assert_eq!(clock.on_timer(at.saturating_sub(Duration::from_nanos(1))), None);
            let beat = clock.on_timer(at + Duration::from_millis(3)).expect("a beat is overdue");
            assert_eq!(beat.source, BeatSource::Local { since: Some(BeatIndex::ZERO), k });
            assert_eq!(beat.periods, 1);
        }
    }

    #[test]
    fn on_timer_before_any_frame_beats_once_a_minute() {
        let mut clock = BeatClock::new(SECOND);
        assert_eq!(clock.overdue_at(), 61 * SECOND + MAX_SLACK);
        let beat = clock.on_timer(63 * SECOND).expect("a beat is overdue");
        assert_eq!((beat.source, beat.periods), (BeatSource::Local { since: None, k: 1 }, 1));
        // The first frame arrives 29 s after the local beat was due: less than half a period.
        assert_eq!(periods(clock.on_frame(frame(7, 60.0), 90 * SECOND)), Some(0));
        assert_eq!(periods(clock.on_frame(frame(8, 60.0), 91 * SECOND)), Some(1), "a period of the new tempo");
    }

    #[test]
    fn on_frame_of_a_burst_after_local_beats_counts_no_period_again() {
        let mut clock = clock_after_beat_0();
        for _ in 1..=5 {
            assert_eq!(periods(clock.on_timer(clock.overdue_at())), Some(1));
        }
        let now = 5 * SECOND + SECOND / 4;
        for index in 1..=5 {
            assert_eq!(periods(clock.on_frame(frame(index, 60.0), now)), Some(0));
        }
        assert_eq!(periods(clock.on_frame(frame(6, 60.0), 6 * SECOND)), Some(1));
    }

    #[test]
    fn on_frame_after_an_outage_of_pulse_counts_the_passed_periods() {
        let mut clock = clock_after_beat_0();
        for _ in 1..=5 {
            clock.on_timer(clock.overdue_at());
        }
        // Beat 1 was re-anchored and arrives when beat 6 would have; the next ones follow it.
        for (index, at) in [(1, 6), (2, 7), (3, 8)] {
            assert_eq!(periods(clock.on_frame(frame(index, 60.0), at * SECOND)), Some(1));
        }
    }

    #[test]
    fn on_timer_after_a_stopped_process_counts_all_periods_in_one_beat() {
        let mut clock = clock_after_beat_0();
        let beat = clock.on_timer(10 * SECOND + SECOND / 2).expect("a beat is overdue");
        assert_eq!((beat.source, beat.periods), (BeatSource::Local { since: Some(BeatIndex::ZERO), k: 10 }, 10));
    }

    #[test]
    fn on_frame_after_a_suspended_monotonic_clock_counts_no_period_of_the_suspension() {
        let mut clock = clock_after_beat_0();
        // An hour in which the monotonic clock stood still, and so did the work.
        assert_eq!(periods(clock.on_frame(frame(3_600, 60.0), SECOND)), Some(1));
        assert_eq!(clock.last_heard(), Some(BeatIndex::ZERO.plus(3_600)));
        assert_eq!(periods(clock.on_frame(frame(3_601, 60.0), 2 * SECOND)), Some(1));
    }

    #[test]
    fn overdue_at_after_a_tempo_change_follows_the_new_tempo() {
        let mut clock = clock_after_beat_0();
        clock.on_frame(frame(1, 120.0), SECOND);
        assert_eq!(clock.overdue_at(), SECOND + SECOND / 2 + MIN_SLACK);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 100, ..ProptestConfig::default() })]

        /// An hour in which frames are late, missing for a while and arrive in bursts, the leader fails over, pulse
        /// re-anchors, and the process stops: indices rise, and the counted periods match the elapsed time within 1 %.
        #[test]
        fn periods_under_faults_match_the_elapsed_time(
            faults in prop::collection::vec((0u64..3_600_000, 1u64..600_000, 0u8..3), 0..8), jitter in 0u64..80,
        ) {
            const HOUR: u64 = 3_600_000;
            // The arrival of each beat at the agent, in milliseconds; there is one beat per second.
            let mut arrivals: Vec<u64> = Vec::new();
            let (mut at, mut index) = (0u64, 0u64);
            while at < HOUR {
                let delay = (index * 7_919) % (jitter + 1);
                // Kind 0: frames are held back, and arrive together at the end.
                let held = faults.iter().filter(|(from, _, kind)| *kind == 0 && at >= *from && at < from + 600_000);
                let until = held.map(|(from, length, _)| from + length).filter(|until| *until > at).max();
                // Kind 1: an outage of pulse, whose schedule continues after it.
                let outage = faults.iter().find(|(from, length, kind)| *kind == 1 && at >= *from && at < from + length);
                if let Some((from, length, _)) = outage {
                    at = from + length;
                }
                arrivals.push(until.unwrap_or(at).max(at) + delay);
                at += 1_000;
                index += 1;
            }
            arrivals.sort_unstable();
            // Kind 2: the process is stopped.
            let stopped =
                |now: u64| faults.iter().find(|(from, length, kind)| *kind == 2 && now >= *from && now < from + length);
            let mut clock = BeatClock::new(Duration::ZERO);
            let (mut counted, mut last, mut next) = (0u64, None, 0);
            let mut now = 0u64;
            let started = arrivals[0];
            while now < HOUR {
                if let Some((from, length, _)) = stopped(now) {
                    now = from + length;
                }
                let at = Duration::from_millis(now);
                while next < arrivals.len() && arrivals[next] <= now {
                    if let Some(beat) = clock.on_frame(frame(next as u32, 60.0), at) {
                        prop_assert!(clock.last_heard() > last);
                        last = clock.last_heard();
                        counted += u64::from(beat.periods);
                    }
                    next += 1;
                }
                if let Some(beat) = clock.on_timer(at) {
                    counted += u64::from(beat.periods);
                }
                let expected = (now - started.min(now)) as f64 / 1_000.0;
                let deviation = (counted as f64 - expected).abs();
                prop_assert!(deviation <= 2.0 + expected * 0.01, "{} periods counted after {} s", counted, expected);
                now += 20;
            }
        }
    }
}
