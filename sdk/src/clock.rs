//! The beat as an agent keeps it, with a Kafka or without: pure, on a monotonic clock that it is told.

use std::time::Duration;

use backbeat_schemas::{BeatFrame, BeatIndex};

/// The period of an agent that never heard a beat: 1 BPM.
const UNHEARD_PERIOD: Duration = Duration::from_mins(1);
/// A beat is overdue after this part of a period, within these bounds: so late, a beat was lost on its way. It may
/// take 100 ms to be delivered (PER-001).
const SLACK_PART: u32 = 8;
const MIN_SLACK: Duration = Duration::from_millis(100);
const MAX_SLACK: Duration = Duration::from_secs(2);

/// A beat, as an agent hears it or keeps it itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Beat {
    /// Where it comes from.
    pub source: BeatSource,
    /// How many periods have gone by since the beat before it: what it costs of a beat budget. 0 for a beat that was
    /// kept locally before it was heard, more than 1 after a time in which nobody listened.
    pub periods: u32,
}

/// Where a beat comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum BeatSource {
    /// From the log; indices rise strictly.
    Heard(Box<BeatFrame>),
    /// From the agent's own clock: the `k`th since a beat was last heard.
    Local {
        /// The last beat that was heard.
        since: Option<BeatIndex>,
        /// From 1.
        k: u32,
    },
}

/// Keeps the beat: frames as they arrive, and in their absence beats of its own, at the last tempo that was heard.
///
/// All times are of one monotonic clock, since whenever. Beats follow the periods that have gone by: of the frames
/// that come in a burst after a silence, those whose periods were counted locally cost nothing.
#[derive(Debug)]
pub struct BeatClock {
    last: Option<BeatIndex>,
    period: Duration,
    /// When the last frame arrived: local beats are counted from here, so that they do not drift.
    base: Duration,
    /// Local beats since then.
    local: u32,
    /// When the last period ended.
    ticked: Duration,
}

impl BeatClock {
    /// A clock that has heard nothing by `now`.
    pub fn new(now: Duration) -> Self {
        Self { last: None, period: UNHEARD_PERIOD, base: now, local: 0, ticked: now }
    }

    /// The last beat that was heard.
    pub fn last_heard(&self) -> Option<BeatIndex> {
        self.last
    }

    /// A frame has arrived. `None` if it was heard before.
    pub fn heard(&mut self, frame: BeatFrame, now: Duration) -> Option<Beat> {
        if self.last.is_some_and(|last| frame.beat_index <= last) {
            return None;
        }
        // The first beat that is heard begins the count.
        let first = self.last.is_none() && self.local == 0;
        let periods = if first { 0 } else { rounded(now.saturating_sub(self.ticked), self.period) };
        if periods > 0 || first {
            // The log's beat is the right one: what jitter there was is forgotten.
            self.ticked = now;
        }
        let period = frame.tempo_bpm.period();
        // What has gone by of a period is as much of the new one.
        let gone = now.saturating_sub(self.ticked).mul_f64(period.as_secs_f64() / self.period.as_secs_f64());
        self.ticked = now.saturating_sub(gone);
        self.last = Some(frame.beat_index);
        self.period = period;
        self.base = now;
        self.local = 0;
        Some(Beat { source: BeatSource::Heard(Box::new(frame)), periods })
    }

    /// When a beat will be overdue, if none is heard until then.
    pub fn overdue_at(&self) -> Duration {
        self.base + self.period.saturating_mul(self.local + 1) + self.slack()
    }

    /// The local beat of `now`, if one is due. After a time in which nobody asked it stands for all that were missed.
    pub fn overdue(&mut self, now: Duration) -> Option<Beat> {
        if now < self.overdue_at() {
            return None;
        }
        let gone = now.saturating_sub(self.base).saturating_sub(self.slack());
        let k = u32::try_from(gone.as_nanos() / self.period.as_nanos()).unwrap_or(u32::MAX).max(self.local + 1);
        // When it should have been heard, not when that was noticed.
        let due = self.base + self.period.saturating_mul(k);
        let periods = rounded(due.saturating_sub(self.ticked), self.period);
        self.local = k;
        self.ticked = due;
        Some(Beat { source: BeatSource::Local { since: self.last, k }, periods })
    }

    fn slack(&self) -> Duration {
        (self.period / SLACK_PART).clamp(MIN_SLACK, MAX_SLACK)
    }
}

/// How many periods `elapsed` comes to, to the nearest.
fn rounded(elapsed: Duration, period: Duration) -> u32 {
    u32::try_from((elapsed + period / 2).as_nanos() / period.as_nanos()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use backbeat_schemas::{HlcClock, Phase, Tempo, Timestamp, WindowId};
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn frame(index: u32, bpm: f64) -> BeatFrame {
        let at = Timestamp::from_millis(i64::from(index) * 1_000);
        let beat_index = BeatIndex::ZERO.plus(index);
        BeatFrame {
            r#type: Default::default(),
            cluster_id: "c".into(),
            beat_index,
            downbeat: false,
            phase: Phase::Execution,
            hlc: HlcClock::new(1).tick(at),
            deadline_at: at,
            tempo_bpm: Tempo::try_from(bpm).expect("a tempo"),
            window_id: WindowId::new("c", BeatIndex::ZERO),
            bar_length: 8,
            grace_beats: 0,
            scheduled_at: at,
            emitted_at: at,
            anchor_beat: BeatIndex::ZERO,
            anchor_at: at,
            term: 1,
            node: "p".into(),
            degraded: false,
            claim_offsets: Vec::new(),
        }
    }

    fn periods(beat: Option<Beat>) -> Option<u32> {
        beat.map(|beat| beat.periods)
    }

    /// A clock that has heard beat 0 of 60 a minute at second 0.
    fn heard() -> BeatClock {
        let mut clock = BeatClock::new(Duration::ZERO);
        assert_eq!(periods(clock.heard(frame(0, 60.0), Duration::ZERO)), Some(0));
        clock
    }

    #[test]
    fn each_frame_is_a_period_and_is_heard_once() {
        let mut clock = heard();
        assert_eq!(periods(clock.heard(frame(1, 60.0), SECOND)), Some(1));
        assert_eq!(clock.heard(frame(1, 60.0), SECOND), None);
        assert_eq!(clock.heard(frame(0, 60.0), 2 * SECOND), None, "never back");
        assert_eq!(periods(clock.heard(frame(2, 60.0), 2 * SECOND)), Some(1));
    }

    #[test]
    fn without_frames_it_beats_at_the_last_tempo_and_does_not_drift() {
        let mut clock = heard();
        for k in 1..=3_600 {
            let at = clock.overdue_at();
            assert_eq!(at, SECOND * k + SECOND / SLACK_PART);
            assert_eq!(clock.overdue(at.saturating_sub(Duration::from_nanos(1))), None);
            let beat = clock.overdue(at + Duration::from_millis(3)).expect("it is due");
            assert_eq!(beat.source, BeatSource::Local { since: Some(BeatIndex::ZERO), k });
            assert_eq!(beat.periods, 1);
        }
    }

    #[test]
    fn who_never_heard_a_beat_keeps_one_a_minute() {
        let mut clock = BeatClock::new(SECOND);
        assert_eq!(clock.overdue_at(), 61 * SECOND + MAX_SLACK);
        let beat = clock.overdue(63 * SECOND).expect("it is due");
        assert_eq!((beat.source, beat.periods), (BeatSource::Local { since: None, k: 1 }, 1));
        // The first frame comes 30 s into the next minute: half a period.
        assert_eq!(periods(clock.heard(frame(7, 60.0), 90 * SECOND)), Some(0));
        assert_eq!(periods(clock.heard(frame(8, 60.0), 91 * SECOND)), Some(1), "of the new tempo");
    }

    #[test]
    fn a_burst_after_a_silence_was_paid_for_locally() {
        let mut clock = heard();
        for _ in 1..=5 {
            assert_eq!(periods(clock.overdue(clock.overdue_at())), Some(1));
        }
        let now = 5 * SECOND + SECOND / 4;
        for index in 1..=5 {
            assert_eq!(periods(clock.heard(frame(index, 60.0), now)), Some(0));
        }
        assert_eq!(periods(clock.heard(frame(6, 60.0), 6 * SECOND)), Some(1));
    }

    #[test]
    fn an_outage_of_pulse_itself_costs_the_periods_that_went_by() {
        let mut clock = heard();
        for _ in 1..=5 {
            clock.overdue(clock.overdue_at());
        }
        // Beat 1 was re-anchored and comes when beat 6 would have come; the next ones follow it.
        for (index, at) in [(1, 6), (2, 7), (3, 8)] {
            assert_eq!(periods(clock.heard(frame(index, 60.0), at * SECOND)), Some(1));
        }
    }

    #[test]
    fn a_process_that_was_stopped_counts_what_went_by_in_one() {
        let mut clock = heard();
        let beat = clock.overdue(10 * SECOND + SECOND / 2).expect("it is due");
        assert_eq!((beat.source, beat.periods), (BeatSource::Local { since: Some(BeatIndex::ZERO), k: 10 }, 10));
    }

    #[test]
    fn a_laptop_that_slept_pays_for_no_beat_of_its_sleep() {
        let mut clock = heard();
        // An hour in which the monotonic clock stood still, as the work did.
        assert_eq!(periods(clock.heard(frame(3_600, 60.0), SECOND)), Some(1));
        assert_eq!(clock.last_heard(), Some(BeatIndex::ZERO.plus(3_600)));
        assert_eq!(periods(clock.heard(frame(3_601, 60.0), 2 * SECOND)), Some(1));
    }

    #[test]
    fn a_new_tempo_holds_from_its_frame_on() {
        let mut clock = heard();
        clock.heard(frame(1, 120.0), SECOND);
        assert_eq!(clock.overdue_at(), SECOND + SECOND / 2 + MIN_SLACK);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 100, ..ProptestConfig::default() })]

        /// An hour in which frames are late, lost for a while and come in bursts, the leader fails over, pulse
        /// re-anchors, the process stops: indices rise, and periods follow the time that went by within 1 %.
        #[test]
        fn budgets_follow_the_time_that_goes_by(
            faults in prop::collection::vec((0u64..3_600_000, 1u64..600_000, 0u8..3), 0..8), jitter in 0u64..80,
        ) {
            const HOUR: u64 = 3_600_000;
            // When each beat, one a second, is in the agent's hands.
            let mut arrivals: Vec<u64> = Vec::new();
            let (mut at, mut index) = (0u64, 0u64);
            while at < HOUR {
                let late = (index * 7_919) % (jitter + 1);
                let held = faults.iter().filter(|(from, _, kind)| *kind == 0 && at >= *from && at < from + 600_000);
                let until = held.map(|(from, long, _)| from + long).filter(|until| *until > at).max();
                // Of kind 1 is an outage of pulse: its schedule goes on after it.
                let outage = faults.iter().find(|(from, long, kind)| *kind == 1 && at >= *from && at < from + long);
                if let Some((from, long, _)) = outage {
                    at = from + long;
                }
                arrivals.push(until.unwrap_or(at).max(at) + late);
                at += 1_000;
                index += 1;
            }
            arrivals.sort_unstable();
            let asleep = |now: u64| faults.iter().find(|(from, long, kind)| *kind == 2 && now >= *from && now < from + long);
            let mut clock = BeatClock::new(Duration::ZERO);
            let (mut counted, mut last, mut next) = (0u64, None, 0);
            let mut now = 0u64;
            let began = arrivals[0];
            while now < HOUR {
                if let Some((from, long, _)) = asleep(now) {
                    now = from + long;
                }
                let at = Duration::from_millis(now);
                while next < arrivals.len() && arrivals[next] <= now {
                    if let Some(beat) = clock.heard(frame(next as u32, 60.0), at) {
                        prop_assert!(clock.last_heard() > last);
                        last = clock.last_heard();
                        counted += u64::from(beat.periods);
                    }
                    next += 1;
                }
                if let Some(beat) = clock.overdue(at) {
                    counted += u64::from(beat.periods);
                }
                let expected = (now - began.min(now)) as f64 / 1_000.0;
                let off = (counted as f64 - expected).abs();
                prop_assert!(off <= 2.0 + expected * 0.01, "{} periods counted after {} s", counted, expected);
                now += 20;
            }
        }
    }
}
