//! Frames and claims for the tests of the core.

use backbeat_schemas::{BeatFrame, BeatIndex, Counts, Partial, State, testing};

use super::{Claim, Frames, LOGIC, TaskFacts};

pub(crate) fn beat(index: i64) -> BeatIndex {
    BeatIndex::try_from(index).expect("the beat index is not negative")
}

pub(crate) fn claim(agent: &str, beat: i64) -> Claim<'static> {
    Claim {
        agent: agent.to_owned().into(),
        task: "t".into(),
        beat,
        state: State::Executing,
        beats_left: 1,
        progress: 0.5,
        facts: TaskFacts::default(),
        rotation_failed: false,
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
    for index in 0..boundaries[0].len() {
        let claim_offsets = boundaries.iter().map(|partition| partition[index]).collect();
        let frame = BeatFrame { grace_beats, claim_offsets, ..testing::frame(index as u32, bar_length) };
        frames.push(frame).expect("the frames are consecutive");
    }
    frames
}

/// Returns the share of `partition` in a window in which `agents` agents have one claim each.
pub(crate) fn partial(partition: i32, agents: i64) -> Partial {
    let counts = Counts { agents, claims: agents, ..Counts::default() };
    Partial { member: "m".into(), ..Partial::new(partition, LOGIC, true, &counts) }
}
