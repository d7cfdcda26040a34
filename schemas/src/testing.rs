//! One frame, one claim and one report, for the tests of all crates: a test names the fields that matter to it, and a new field
//! is added here. Not behind a feature, because programs and tests would then build this crate in turns.

use crate::{BarReport, BeatFrame, BeatIndex, HlcClock, Phase, State, StatusClaim, Tempo, Timestamp, WindowId};

/// Returns the frame of beat `index` of the cluster `c`, with a beat a second from the epoch on, in bars of `bar_length`. It has
/// no boundaries.
pub fn frame(index: u32, bar_length: u16) -> BeatFrame {
    let position = (index % u32::from(bar_length)) as u16;
    let beat_index = BeatIndex::ZERO.plus(index);
    let from = BeatIndex::ZERO.plus(index - u32::from(position));
    let at = Timestamp::from_millis(i64::from(index) * 1_000);
    BeatFrame {
        r#type: Default::default(),
        cluster_id: "c".to_owned(),
        beat_index,
        downbeat: position == 0,
        phase: Phase::of(position, bar_length),
        hlc: HlcClock::new(1).tick(at),
        deadline_at: at.plus_millis(1_000),
        tempo_bpm: Tempo::try_from(60.0).expect("a valid tempo"),
        window_id: WindowId::new("c", from),
        bar_length,
        grace_beats: 0,
        scheduled_at: at,
        emitted_at: at,
        anchor_beat: BeatIndex::ZERO,
        anchor_at: Timestamp::from_millis(0),
        term: 1,
        node: "p".to_owned(),
        degraded: false,
        claim_offsets: Vec::new(),
    }
}

/// Returns a valid claim of `agent` for its task `t`, made on beat `beat_index`.
pub fn claim(agent: &str, beat_index: i64) -> StatusClaim {
    StatusClaim {
        r#type: Default::default(),
        agent_id: agent.to_owned(),
        task_id: "t".to_owned(),
        beat_index,
        state: State::Executing,
        beats_left: 1,
        progress: 0.5,
        notes: String::new(),
        hlc: "7ffd:0001:beef".to_owned(),
        help: None,
        secret_rotation: None,
        degraded: false,
    }
}

/// Returns the report of the window of `bar_length` beats that opens at beat `from`, in which nobody claimed.
pub fn report(from: u32, bar_length: u16) -> BarReport {
    let (opening, next) = (frame(from, bar_length), frame(from + u32::from(bar_length), bar_length));
    BarReport {
        r#type: Default::default(),
        window_id: WindowId::new("c", opening.beat_index),
        from_beat: opening.beat_index,
        to_beat: next.beat_index.previous().expect("a bar has beats"),
        agents_reporting: 0,
        on_time_reviews: 0,
        help_promises_fulfilled: 0,
        secret_rotations_ok: true,
        tempo_drift_ms: 0,
        issues: Vec::new(),
        cluster_id: "c".to_owned(),
        opened_at: opening.scheduled_at,
        closed_at: next.scheduled_at,
        claims: 0,
        late_claims: 0,
        invalid_claims: 0,
        tasks_done: 0,
        tasks_failed: 0,
        degraded_beats: 0,
        degraded_claims: 0,
        grace_beats: 0,
        from_offsets: Vec::new(),
        to_offsets: Vec::new(),
        logic: 1,
        agents_fell_silent: 0,
        tasks_stalled: 0,
        tasks_overdrawn: 0,
    }
}
