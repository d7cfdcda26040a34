//! Frames and claims for the tests of the core.

use backbeat_schemas::{BeatFrame, BeatIndex, HlcClock, Partial, Phase, Tempo, Timestamp, WindowId};

use super::{Claim, Frames, LOGIC};

pub(crate) fn beat(index: i64) -> BeatIndex {
    BeatIndex::try_from(index).expect("the beat index is not negative")
}

pub(crate) fn claim(agent: &str, beat: i64) -> Claim<'static> {
    Claim {
        agent: agent.to_owned().into(),
        task: "t".into(),
        beat,
        on_time_review: false,
        help_fulfilled: false,
        rotation_failed: false,
        done: false,
        failed: false,
        degraded: false,
    }
}

/// Returns frames from beat 0 on, one a second, with these boundaries in the only partition, 0.
pub(crate) fn frames(bar_length: u16, grace_beats: u16, boundaries: &[i64]) -> Frames {
    frames_of_partitions(bar_length, grace_beats, &[boundaries])
}

/// Returns frames from beat 0 on, one a second, with these boundaries by partition.
pub(crate) fn frames_of_partitions(bar_length: u16, grace_beats: u16, boundaries: &[&[i64]]) -> Frames {
    let mut frames = Frames::default();
    let mut clock = HlcClock::new(1);
    for index in 0..boundaries[0].len() {
        let at = Timestamp::from_millis(index as i64 * 1_000);
        let beat_index = beat(index as i64);
        let position = index as u16 % bar_length;
        let from = beat(index as i64 - i64::from(position));
        let frame = BeatFrame {
            r#type: Default::default(),
            cluster_id: "c".into(),
            beat_index,
            downbeat: position == 0,
            phase: Phase::of(position, bar_length),
            hlc: clock.tick(at),
            deadline_at: at.plus_millis(1_000),
            tempo_bpm: Tempo::try_from(60.0).expect("a tempo"),
            window_id: WindowId::new("c", from),
            bar_length,
            grace_beats,
            scheduled_at: at,
            emitted_at: at,
            anchor_beat: BeatIndex::ZERO,
            anchor_at: Timestamp::from_millis(0),
            term: 1,
            node: "p".into(),
            degraded: false,
            claim_offsets: boundaries.iter().map(|partition| partition[index]).collect(),
        };
        frames.push(frame).expect("the frames are consecutive");
    }
    frames
}

/// Returns the share of `partition` in a window in which `agents` agents have one claim each.
pub(crate) fn partial(partition: i32, agents: i64) -> Partial {
    Partial {
        partition,
        member: "m".into(),
        counter: 0,
        logic: LOGIC,
        retained: true,
        misplaced: false,
        agents,
        on_time_reviews: 0,
        help_fulfilled: 0,
        rotation_failed_agents: 0,
        tasks_done: 0,
        tasks_failed: 0,
        claims: agents,
        degraded_claims: 0,
        late_claims: 0,
        invalid_claims: 0,
        unknown_schema_claims: 0,
        excess_claims: 0,
        misplaced_agents: 0,
    }
}
