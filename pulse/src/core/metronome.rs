//! The beat schedule: when the next beat is due, and the content of its frame.

use backbeat_schemas::{BeatFrame, BeatIndex, Hlc, HlcClock, Phase, Tempo, Timestamp, WindowId};

use super::{Boundary, Plan};

/// The configuration that a cluster starts with. Once frames exist, they are the authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitialConfig {
    /// The cluster's name.
    pub cluster_id: String,
    /// The tempo.
    pub tempo: Tempo,
    /// Beats in a bar, at least 1.
    pub bar_length: u16,
    /// Beats after a window's end in which its claims still count, at most a bar.
    pub grace_beats: u16,
    /// The first beat's index: 0, unless the cluster continues one whose log was lost.
    pub first_beat: BeatIndex,
}

/// Builds the frames of a leadership, each from the one before it.
#[derive(Debug, Clone)]
pub struct Metronome {
    initial_config: InitialConfig,
    node: String,
    clock: HlcClock,
    term: i64,
    last: Option<BeatFrame>,
    /// The last beat's position in its bar, from 0.
    position: u16,
}

impl Metronome {
    /// Creates the metronome of `node`, without a last frame; its frames' clock readings carry `hlc_node`.
    pub fn new(initial_config: InitialConfig, node: String, hlc_node: u16) -> Self {
        Self { initial_config, node, clock: HlcClock::new(hlc_node), term: 0, last: None, position: 0 }
    }

    /// Sets the newest committed frame, after which the schedule continues.
    pub fn set_last(&mut self, last: BeatFrame) {
        self.clock.observe(last.hlc);
        let follows = last.beat_index == self.next_beat();
        self.position = match (last.downbeat, follows) {
            (true, _) => 0,
            (false, true) => self.position + 1,
            (false, false) => position_in_bar(&last),
        };
        self.last = Some(last);
    }

    /// Begins a leadership. Its frames' term is above that of every earlier frame, and not below Raft's.
    pub fn take_over(&mut self, raft_term: u64) {
        let newest = self.term.max(self.last.as_ref().map_or(0, |last| last.term));
        self.term = (newest + 1).max(raft_term as i64);
    }

    /// The node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The cluster's name.
    pub fn cluster_id(&self) -> &str {
        &self.initial_config.cluster_id
    }

    /// The index of a cluster's first beat.
    pub fn first_beat(&self) -> BeatIndex {
        self.initial_config.first_beat
    }

    /// The newest committed frame.
    pub fn last(&self) -> Option<&BeatFrame> {
        self.last.as_ref()
    }

    /// The next beat's index.
    pub fn next_beat(&self) -> BeatIndex {
        self.last.as_ref().map_or(self.initial_config.first_beat, |last| last.beat_index.plus(1))
    }

    /// The instant at which the next beat is due; `None` before a cluster's first beat, which is due at once.
    pub fn due(&self) -> Option<Timestamp> {
        self.last.as_ref().map(|last| last.deadline_at)
    }

    /// The tempo in force.
    pub fn tempo(&self) -> Tempo {
        self.last.as_ref().map_or(self.initial_config.tempo, |last| last.tempo_bpm)
    }

    /// Builds the next beat's frame, emitted at `now` with the boundary sampled just before. `plan` takes effect at
    /// downbeats only.
    pub fn build_frame(&mut self, now: Timestamp, boundary: &Boundary, plan: Option<&Plan>) -> BeatFrame {
        let hlc = self.clock.tick(now);
        match &self.last {
            None => self.first_frame(now, hlc, boundary),
            Some(last) => self.next_frame(last, now, hlc, boundary, plan),
        }
    }

    /// The first downbeat after the newest committed frame and after `in_flight`.
    pub fn next_downbeat(&self, in_flight: Option<&BeatFrame>) -> BeatIndex {
        match (in_flight, &self.last) {
            (Some(frame), _) if frame.downbeat => frame.beat_index.plus(u32::from(frame.bar_length)),
            (_, Some(last)) => last.beat_index.plus(u32::from(last.bar_length - self.position)),
            (_, None) => self.initial_config.first_beat,
        }
    }

    fn first_frame(&self, now: Timestamp, hlc: Hlc, boundary: &Boundary) -> BeatFrame {
        let InitialConfig { cluster_id, tempo, bar_length, grace_beats, first_beat } = self.initial_config.clone();
        BeatFrame {
            r#type: Default::default(),
            beat_index: first_beat,
            downbeat: true,
            phase: Phase::of(0, bar_length),
            hlc,
            deadline_at: now.plus_millis(tempo.period_ms()),
            tempo_bpm: tempo,
            window_id: WindowId::new(&cluster_id, first_beat),
            cluster_id,
            bar_length,
            grace_beats,
            scheduled_at: now,
            emitted_at: now,
            anchor_beat: first_beat,
            anchor_at: now,
            term: self.term,
            node: self.node.clone(),
            degraded: false,
            claim_offsets: boundary.offsets().to_vec(),
        }
    }

    fn next_frame(
        &self,
        last: &BeatFrame,
        now: Timestamp,
        hlc: Hlc,
        boundary: &Boundary,
        plan: Option<&Plan>,
    ) -> BeatFrame {
        let beat_index = last.beat_index.plus(1);
        let scheduled_at = last.deadline_at;
        let position = (self.position + 1) % last.bar_length;
        let downbeat = position == 0;
        let in_force = plan.filter(|plan| downbeat && plan.from <= beat_index);
        let tempo = in_force.map_or(last.tempo_bpm, |plan| last.tempo_bpm.towards(plan.tempo));
        let bar_length = in_force.map_or(last.bar_length, |plan| plan.bar_length);
        let (anchor_beat, anchor_at) = if now.millis_since(scheduled_at).saturating_abs() > last.tempo_bpm.period_ms() {
            // More than a period off, in either direction. Catching up would be a burst of stale beats. A wall clock
            // that is behind does not move the schedule back: it advances by 1 ms a beat until the clock catches up.
            (beat_index, now.max(scheduled_at.plus_millis(1 - tempo.period_ms())))
        } else if tempo == last.tempo_bpm {
            (last.anchor_beat, last.anchor_at)
        } else {
            (beat_index, scheduled_at)
        };
        BeatFrame {
            r#type: Default::default(),
            cluster_id: last.cluster_id.clone(),
            beat_index,
            downbeat,
            phase: Phase::of(position, bar_length),
            hlc,
            deadline_at: anchor_at.plus_millis(tempo.beats_ms(beat_index.since(anchor_beat) + 1)),
            tempo_bpm: tempo,
            window_id: if downbeat { WindowId::new(&last.cluster_id, beat_index) } else { last.window_id },
            bar_length,
            grace_beats: last.grace_beats,
            scheduled_at,
            emitted_at: now,
            anchor_beat,
            anchor_at,
            term: self.term,
            node: self.node.clone(),
            degraded: false,
            claim_offsets: boundary.offsets().to_vec(),
        }
    }
}

/// Returns the position of `frame` in its bar.
///
/// A frame does not carry its position, but its window id is derived from the downbeat: that is the newest beat less
/// than a bar ago that gives this id.
fn position_in_bar(frame: &BeatFrame) -> u16 {
    let back = (0..frame.bar_length).find(|back| {
        let from = BeatIndex::try_from(frame.beat_index.get() - i64::from(*back));
        from.is_ok_and(|from| WindowId::new(&frame.cluster_id, from) == frame.window_id)
    });
    // No window of this schedule opened more than a bar ago: end the bar here.
    back.unwrap_or(frame.bar_length.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metronome(bpm: &str, bar_length: u16) -> Metronome {
        from_beat(bpm, bar_length, BeatIndex::ZERO)
    }

    fn from_beat(bpm: &str, bar_length: u16, first_beat: BeatIndex) -> Metronome {
        let (cluster_id, tempo) = ("c".into(), tempo(bpm));
        let initial_config = InitialConfig { cluster_id, tempo, bar_length, grace_beats: 0, first_beat };
        Metronome::new(initial_config, "p".into(), 1)
    }

    fn tempo(bpm: &str) -> Tempo {
        bpm.parse().expect("a tempo")
    }

    fn beat(metronome: &mut Metronome, now: i64) -> BeatFrame {
        beat_with_plan(metronome, now, None)
    }

    fn beat_with_plan(metronome: &mut Metronome, now: i64, plan: Option<&Plan>) -> BeatFrame {
        let frame = metronome.build_frame(Timestamp::from_millis(now), &Boundary::default(), plan);
        metronome.set_last(frame.clone());
        frame
    }

    #[test]
    fn first_beat_is_due_at_once_and_opens_a_window() {
        let mut metronome = metronome("60", 4);
        metronome.take_over(0);
        assert_eq!(metronome.due(), None);
        let frame = beat(&mut metronome, 5_000);
        assert_eq!((frame.beat_index, frame.downbeat, frame.term), (BeatIndex::ZERO, true, 1));
        assert_eq!((frame.scheduled_at.millis(), frame.deadline_at.millis()), (5_000, 6_000));
        assert!(!frame.re_anchored());
    }

    #[test]
    fn first_beat_of_a_cluster_that_continues_another_opens_a_window() {
        let mut metronome = from_beat("60", 4, BeatIndex::ZERO.plus(1_001));
        assert_eq!(metronome.next_downbeat(None).get(), 1_001);
        let frames: Vec<BeatFrame> = (0..5).map(|i| beat(&mut metronome, i * 1_000)).collect();
        let downbeats: Vec<i64> = frames.iter().filter(|f| f.downbeat).map(|f| f.beat_index.get()).collect();
        assert_eq!(downbeats, [1_001, 1_005]);
        assert_eq!(frames[4].scheduled_at.millis(), 4_000);
        assert_eq!(frames[3].window_id, WindowId::new("c", BeatIndex::ZERO.plus(1_001)));
    }

    #[test]
    fn schedule_with_late_beats_does_not_drift() {
        let mut metronome = metronome("7", 3);
        beat(&mut metronome, 0);
        let deadlines: Vec<i64> = (1..=14)
            .map(|_| {
                let due = metronome.due().expect("a last frame").millis();
                beat(&mut metronome, due + 400).deadline_at.millis()
            })
            .collect();
        assert_eq!(deadlines[5], 60_000);
        assert_eq!(deadlines[12], 120_000);
    }

    #[test]
    fn downbeats_open_windows_and_set_the_phases() {
        let mut metronome = metronome("60", 4);
        let frames: Vec<BeatFrame> = (0..9).map(|i| beat(&mut metronome, i * 1_000)).collect();
        let downbeats: Vec<i64> = frames.iter().filter(|f| f.downbeat).map(|f| f.beat_index.get()).collect();
        assert_eq!(downbeats, [0, 4, 8]);
        assert_eq!(frames[3].phase, Phase::Review);
        assert_eq!(frames[3].window_id, WindowId::new("c", BeatIndex::ZERO));
        assert_eq!(frames[7].window_id, frames[4].window_id);
    }

    #[test]
    fn beat_more_than_a_period_late_re_anchors() {
        let mut metronome = metronome("60", 4);
        beat(&mut metronome, 0);
        let late = beat(&mut metronome, 2_001);
        assert!(late.re_anchored());
        assert_eq!(
            (late.scheduled_at.millis(), late.anchor_at.millis(), late.deadline_at.millis()),
            (1_000, 2_001, 3_001)
        );
        let next = beat(&mut metronome, 3_001);
        assert_eq!((next.scheduled_at.millis(), next.deadline_at.millis(), next.re_anchored()), (3_001, 4_001, false));
    }

    #[test]
    fn beat_exactly_a_period_late_does_not_re_anchor() {
        let mut metronome = metronome("60", 4);
        beat(&mut metronome, 0);
        assert!(!beat(&mut metronome, 2_000).re_anchored());
    }

    #[test]
    fn new_leadership_continues_from_the_last_frame() {
        let mut first = metronome("60", 4);
        first.take_over(0);
        (0..6).for_each(|i| drop(beat(&mut first, i * 1_000)));
        let last = first.last().expect("a last frame").clone();
        // With other flags, and a wall clock five minutes behind.
        let mut second = metronome("120", 8);
        second.set_last(last.clone());
        second.take_over(7);
        let next = second.build_frame(last.emitted_at.plus_millis(-300_000), &Boundary::default(), None);
        assert_eq!((next.beat_index.get(), next.term, next.bar_length), (6, 7, 4));
        assert_eq!(next.tempo_bpm, last.tempo_bpm);
        assert!(next.hlc.is_after(last.hlc));
    }

    #[test]
    fn schedule_with_a_clock_that_is_behind_does_not_go_back() {
        let mut metronome = metronome("60", 4);
        beat(&mut metronome, 10_000);
        let early = beat(&mut metronome, 6_000);
        assert!(early.re_anchored());
        assert_eq!((early.scheduled_at.millis(), early.deadline_at.millis()), (11_000, 11_001));
        let scheduled: Vec<i64> =
            (1..=4).map(|i| beat(&mut metronome, 6_000 + i * 1_000).scheduled_at.millis()).collect();
        assert_eq!(scheduled, [11_001, 11_002, 11_003, 11_004]);
        // Within a period again: the schedule continues without a new anchor.
        let caught_up = beat(&mut metronome, 11_000);
        assert!(!caught_up.re_anchored());
        assert_eq!(caught_up.deadline_at.millis_since(caught_up.scheduled_at), 1_000);
    }

    #[test]
    fn plan_takes_effect_from_its_downbeat_in_steps_of_10_percent() {
        let mut metronome = metronome("10", 2);
        let plan = Plan { from: BeatIndex::ZERO.plus(4), tempo: tempo("12"), bar_length: 2 };
        let mut frames = vec![beat_with_plan(&mut metronome, 0, Some(&plan))];
        for _ in 0..8 {
            let due = metronome.due().expect("a last frame").millis();
            frames.push(beat_with_plan(&mut metronome, due, Some(&plan)));
        }
        let tempos: Vec<f64> = frames.iter().map(|frame| frame.tempo_bpm.bpm()).collect();
        assert_eq!(tempos, [10.0, 10.0, 10.0, 10.0, 11.0, 11.0, 12.0, 12.0, 12.0]);
        assert!(plan.is_pending(&frames[5]) && !plan.is_pending(&frames[6]));
        let changed = &frames[4];
        assert_eq!((changed.anchor_beat, changed.anchor_at), (changed.beat_index, changed.scheduled_at));
        assert_eq!(changed.deadline_at.millis_since(changed.scheduled_at), 5_455);
        assert!(frames.iter().all(|frame| !frame.re_anchored()));
    }

    #[test]
    fn bar_length_changes_at_a_downbeat_only() {
        let mut metronome = metronome("60", 4);
        let plan = Plan { from: BeatIndex::ZERO.plus(1), tempo: tempo("60"), bar_length: 2 };
        let frames: Vec<BeatFrame> = (0..9).map(|i| beat_with_plan(&mut metronome, i * 1_000, Some(&plan))).collect();
        let downbeats: Vec<i64> = frames.iter().filter(|f| f.downbeat).map(|f| f.beat_index.get()).collect();
        assert_eq!(downbeats, [0, 4, 6, 8]);
        assert_eq!(metronome.next_downbeat(None).get(), 10);
        let in_flight = metronome.build_frame(Timestamp::from_millis(9_000), &Boundary::default(), Some(&plan));
        assert_eq!(metronome.next_downbeat(Some(&in_flight)).get(), 10);
    }
}
