//! Fuzzing: the core neither panics nor hangs on any bytes in the topics. Records that decode are processed, however
//! inconsistent they are.

use std::collections::BTreeMap;
use std::time::Duration;

use backbeat_reverb::core::{
    CommittedOffset, Completion, DecodedClaim, Frames, LOGIC, Merge, MergeSession, Output, PartitionAggregator,
    RawRecord, bar_report, verdict,
};
use backbeat_schemas::{
    BarPartial, BeatFrame, BeatIndex, Counts, Done, Header, InvalidClaim, Partial, PartialBody, Record, Timestamp,
    Verdict, WindowId, WriterSchema, testing, wire,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// Beats of the log before any frame is corrupted.
const BEATS: u32 = 12;

fn frames() -> Vec<BeatFrame> {
    let frame = |index: u32| BeatFrame {
        grace_beats: 1,
        claim_offsets: vec![i64::from(index) * 2, i64::from(index)],
        ..testing::frame(index, 3)
    };
    (0..BEATS).map(frame).collect()
}

fn partial(partition: i32) -> Partial {
    let counts = Counts::from_values(std::iter::repeat(1));
    Partial { member: "m".into(), counter: 1, ..Partial::new(partition, 1, true, &counts) }
}

/// Returns `record` with some bytes of its encoding changed, removed or inserted, if it still decodes.
fn mutated<R: Record>(record: &R, changes: &[(Index, u8, u8)]) -> Option<R> {
    let value = wire(1, record);
    let mut body = Header::split(&value).expect("the record was just encoded").1.to_vec();
    for (place, kind, byte) in changes {
        let at = place.index(body.len());
        match kind % 4 {
            0 => body[at] = *byte,
            1 => body[at] ^= 1 << (byte % 8),
            2 => body.insert(at, *byte),
            // The largest varint, of nine bytes.
            _ => drop(body.splice(at..=at, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, byte & 1])),
        }
    }
    WriterSchema::<R>::own().decode(&body).ok()
}

fn changes() -> impl Strategy<Value = Vec<(Index, u8, u8)>> {
    vec(any::<(Index, u8, u8)>(), 1..3)
}

/// Aggregates, merges and reports as far as the table allows.
fn work(frames: &Frames, committed: CommittedOffset, merge: &Merge) {
    let log_starts = BTreeMap::from([(0, 0), (1, 0)]);
    for partition in 0..2 {
        let Some(mut aggregator) = committed.start_aggregator(partition, frames, &log_starts) else { continue };
        let mut outputs = Vec::new();
        for offset in 0..30 {
            let decoded = DecodedClaim::Invalid(InvalidClaim::NoValue);
            aggregator.process(offset, decoded, frames, RawRecord::default, &mut outputs);
        }
        aggregator.advance(frames, &mut outputs);
        for output in outputs {
            if let Output::WindowClosed(closed) = output {
                let report = bar_report(frames, &closed.window, &closed.counts, LOGIC);
                assert!(report.is_some(), "a window closes only if its closing frame is in the table");
            }
        }
    }
    for (window, completion) in merge.completions(frames, 100) {
        if let Completion::Sum(counts, logic) = completion {
            let report = bar_report(frames, &window, &counts, logic).expect("the closing frame is in the table");
            assert_eq!(verdict(Some(&report), &report, false), (Verdict::Verified, false));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn corrupt_frames_are_refused_or_processed_without_a_panic(
        broken in vec((0..BEATS as usize, changes()), 1..4), offset in any::<i64>(), downbeat in any::<Option<i64>>(),
    ) {
        let mut log = frames();
        for (index, changes) in &broken {
            if let Some(frame) = mutated(&log[*index], changes) {
                log[*index] = frame;
            }
        }
        let mut table = Frames::default();
        for frame in log {
            if table.push(frame).is_err() {
                break;
            }
        }
        work(&table, CommittedOffset { offset, downbeat }, &Merge::default());
        work(&table, CommittedOffset { offset: 0, downbeat: None }, &Merge::default());
        for beat in [0, 5, BEATS, u32::MAX] {
            table.drop_before(BeatIndex::ZERO.plus(beat));
        }
    }

    #[test]
    fn corrupt_partials_are_merged_without_a_panic(sent in vec((0..4u32, 0..3i32, changes()), 1..20)) {
        let mut table = Frames::default();
        for frame in frames() {
            table.push(frame).expect("the frames are consistent");
        }
        let second = Duration::from_secs(1);
        let mut session = MergeSession::new("m".into(), second, Duration::ZERO);
        session.record_opening(Duration::ZERO);
        for (offset, (window, partition, changes)) in (0..).zip(&sent) {
            let from = BeatIndex::ZERO.plus(window * 3);
            let body = match partition {
                2 => PartialBody::Done(Done { verdict: Verdict::Written, low: offset, rescued: vec![-1, 1] }),
                _ => PartialBody::Partial(partial(*partition)),
            };
            let record = BarPartial::new(WindowId::new("c", from), from, body);
            let Some(record) = mutated(&record, changes) else { continue };
            let now = second * (2 * offset as u32);
            session.record(offset, record, now);
            session.record_frames(&table, now);
            let _ = session.next(&table, BeatIndex::MAX, now);
            work(&table, CommittedOffset { offset: 0, downbeat: None }, session.merge());
            prop_assert!(session.merge().restart_offset(&[]) <= offset + 1);
        }
    }

    #[test]
    fn any_committed_metadata_parses_to_a_beat_or_nothing(offset in any::<i64>(), metadata in "(1:)?\\PC{0,20}") {
        let committed = CommittedOffset::parse(offset, &metadata);
        prop_assert_eq!(committed.offset, offset);
        if let Some(downbeat) = committed.downbeat {
            prop_assert_eq!(CommittedOffset::parse(offset, &format!("1:{downbeat}")), committed);
        }
    }
}

/// A regression found by the tests above: the difference of two instants can overflow when its sign is dropped.
#[test]
fn beat_emitted_at_the_earliest_instant_has_the_largest_drift() {
    let mut table = Frames::default();
    for mut frame in frames() {
        frame.emitted_at = Timestamp::from_millis(i64::MIN);
        table.push(frame).expect("the frames are consecutive");
    }
    let window = table.window_of(BeatIndex::ZERO).expect("the window is in the table");
    let report = bar_report(&table, &window, &Counts::default(), LOGIC).expect("the closing frame is in the table");
    assert_eq!(report.tempo_drift_ms, i64::MAX);
}

/// Counts of the largest numbers saturate.
#[test]
fn counts_added_past_the_maximum_saturate() {
    let mut counts = Counts::default();
    for _ in 0..2 {
        counts.add(&Counts { claims: i64::MAX, ..partial(0).counts() });
    }
    assert_eq!(counts.claims, i64::MAX);
    let aggregator = PartitionAggregator::new(0, BeatIndex::ZERO, &Frames::default(), i64::MAX);
    assert_eq!(aggregator.next_offset(), i64::MAX);
}
