//! The invariants of a log of frames.

use backbeat_schemas::BeatFrame;

/// Asserts the invariants over all frames of a log, in order.
pub(crate) fn check(frames: &[BeatFrame]) {
    for (index, frame) in (0_i64..).zip(frames) {
        let before = index.checked_sub(1).and_then(|before| frames.get(before as usize));
        assert_eq!(frame.beat_index.get(), index, "a beat is missing or repeated: {frame:?} after {before:?}");
    }
    for pair in frames.windows(2) {
        let [before, after] = pair else { unreachable!("windows of two") };
        assert!(after.hlc.is_after(before.hlc), "hlc {} does not follow {}", after.hlc, before.hlc);
        assert_eq!(after.scheduled_at, before.deadline_at);
        assert!(after.deadline_at > before.deadline_at);
        assert!(after.tempo_bpm == before.tempo_bpm || after.downbeat, "tempo changed off a downbeat: {after:?}");
        let allowed = before.tempo_bpm.allowed_next();
        assert!(allowed.contains(&after.tempo_bpm), "tempo changed too much: {after:?} after {before:?}");
        let same = (after.term, &after.node) == (before.term, &before.node);
        assert!(same || after.term > before.term, "two nodes in one term, or a lower one: {after:?} after {before:?}");
        assert!(after.claim_offsets.len() >= before.claim_offsets.len());
        assert!(before.claim_offsets.iter().zip(&after.claim_offsets).all(|(b, a)| b <= a), "a boundary went back");
    }
}
