//! What must hold in every log of frames.

use backbeat_schemas::BeatFrame;

/// The invariants of any log of frames.
pub(crate) fn check(frames: &[BeatFrame]) {
    for (index, frame) in (0..).zip(frames) {
        assert_eq!(frame.beat_index.get(), index, "no gap, no repeat");
    }
    for pair in frames.windows(2) {
        let [before, after] = pair else { unreachable!("windows of two") };
        assert!(after.hlc.is_after(before.hlc), "{} after {}", after.hlc, before.hlc);
        assert_eq!(after.scheduled_at, before.deadline_at);
        assert!(after.deadline_at > before.deadline_at);
        assert!(after.tempo_bpm == before.tempo_bpm || after.downbeat, "{after:?}");
        assert!(before.tempo_bpm.allowed_next().contains(&after.tempo_bpm), "{after:?} after {before:?}");
        let same = (after.term, &after.node) == (before.term, &before.node);
        assert!(same || after.term > before.term, "a term has one node: {after:?} after {before:?}");
        assert!(after.claim_offsets.len() >= before.claim_offsets.len());
        assert!(before.claim_offsets.iter().zip(&after.claim_offsets).all(|(b, a)| b <= a), "boundaries never go back");
    }
}
