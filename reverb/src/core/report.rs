//! A window's report, a pure function of its frames and its counts.

use backbeat_schemas::{BarReport, BeatFrame, Counts};

use super::{Frames, LOGIC_WITH_ROSTERS, Window};

/// Returns the report of `window` by the rules of version `logic`, or `None` if the frame of its closing beat is not in the table.
pub fn bar_report(frames: &Frames, window: &Window, counts: &Counts, logic: i32) -> Option<BarReport> {
    let since_rosters = |count| if logic < LOGIC_WITH_ROSTERS { 0 } else { count };
    let opening = frames.get(window.from)?;
    let next = frames.get(window.end)?;
    let partitions = frames.get(window.closing)?.claim_offsets.len() as i32;
    let boundary = |frame: &BeatFrame| (0..partitions).map(|partition| frame.boundary(partition)).collect();
    let drift = |frame: &BeatFrame| frame.emitted_at.millis_since(frame.scheduled_at).saturating_abs();
    let beats = || frames.range(window.from, window.end);
    let degraded_beats = beats().filter(|frame| frame.degraded).count() as i64;
    Some(BarReport {
        r#type: Default::default(),
        window_id: window.id,
        from_beat: window.from,
        to_beat: window.end.previous()?,
        agents_reporting: counts.agents,
        on_time_reviews: counts.on_time_reviews,
        help_promises_fulfilled: counts.help_fulfilled,
        secret_rotations_ok: counts.rotation_failed_agents == 0,
        tempo_drift_ms: beats().map(drift).max().unwrap_or(0),
        issues: issues(beats(), degraded_beats, counts),
        cluster_id: opening.cluster_id.clone(),
        opened_at: opening.scheduled_at,
        closed_at: next.scheduled_at,
        claims: counts.claims,
        late_claims: counts.late_claims,
        invalid_claims: counts.invalid_claims,
        tasks_done: counts.tasks_done,
        tasks_failed: counts.tasks_failed,
        degraded_beats,
        degraded_claims: counts.degraded_claims,
        grace_beats: opening.grace_beats,
        from_offsets: boundary(opening),
        to_offsets: boundary(next),
        logic,
        agents_fell_silent: since_rosters(counts.silent_agents),
        tasks_stalled: since_rosters(counts.stalled_tasks),
        tasks_overdrawn: since_rosters(counts.overdrawn_tasks),
    })
}

fn issues<'f>(beats: impl Iterator<Item = &'f BeatFrame>, degraded_beats: i64, counts: &Counts) -> Vec<String> {
    let counted = [
        (counts.late_claims, "late claims"),
        (counts.invalid_claims, "invalid claims"),
        (counts.unknown_schema_claims, "claims with an unknown schema"),
        (counts.excess_claims, "claims of agents or tasks beyond the limit"),
        (counts.misplaced_agents, "agents with claims in other partitions than theirs"),
        (degraded_beats, "degraded beats"),
        (counts.degraded_claims, "degraded claims"),
        (counts.rotation_failed_agents, "agents failed secret rotation"),
    ];
    let outages = beats.filter(|frame| frame.re_anchored()).filter_map(|frame| {
        let millis = frame.emitted_at.millis_since(frame.scheduled_at);
        (millis > 0).then(|| format!("pulse outage of {millis} ms before beat {}", frame.beat_index))
    });
    let mut issues: Vec<String> = counted
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, label)| format!("{count} {label}"))
        .chain(outages)
        .collect();
    issues.sort();
    issues
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::LOGIC;
    use crate::core::testing::{beat, frames_of_partitions};

    #[test]
    fn report_of_a_closed_window_has_the_values_of_its_frames_and_counts() {
        let mut frames = frames_of_partitions(2, 0, &[&[0, 1, 4], &[0, 0, 2]]);
        let window = frames.window_of(beat(0)).expect("the window is in the table");
        let counts = Counts {
            agents: 3,
            claims: 5,
            late_claims: 10,
            invalid_claims: 2,
            unknown_schema_claims: 1,
            excess_claims: 4,
            misplaced_agents: 3,
            rotation_failed_agents: 1,
            ..Counts::default()
        };
        let report = bar_report(&frames, &window, &counts, LOGIC).expect("the closing frame is there");
        assert_eq!((report.from_beat, report.to_beat, report.agents_reporting), (beat(0), beat(1), 3));
        assert_eq!((report.opened_at.millis(), report.closed_at.millis()), (0, 2_000));
        assert_eq!((report.from_offsets, report.to_offsets), (vec![0, 0], vec![4, 2]));
        assert!(!report.secret_rotations_ok);
        let issues = [
            "1 agents failed secret rotation",
            "1 claims with an unknown schema",
            "10 late claims",
            "2 invalid claims",
            "3 agents with claims in other partitions than theirs",
            "4 claims of agents or tasks beyond the limit",
        ];
        assert_eq!(report.issues, issues);
        frames = frames_of_partitions(2, 0, &[&[0, 1]]);
        assert_eq!(bar_report(&frames, &window, &counts, LOGIC), None);
    }

    #[test]
    fn each_counter_is_in_the_report() {
        let frames = frames_of_partitions(2, 0, &[&[0, 0, 0]]);
        let window = frames.window_of(beat(0)).expect("the window is in the table");
        let report = |counts| bar_report(&frames, &window, &counts, LOGIC).expect("the closing frame is there");
        let none = report(Counts::default());
        for (index, name) in Counts::NAMES.iter().enumerate() {
            let one = Counts::from_values((0..).map(|at| i64::from(at == index)));
            assert_ne!(report(one), none, "{name}");
        }
    }

    #[test]
    fn re_anchored_beat_is_reported_as_outage_and_drift() {
        let table = frames_of_partitions(2, 0, &[&[0, 0, 0]]);
        let mut late = Frames::default();
        for beat_index in 0..3 {
            let mut frame = table.get(beat(beat_index)).expect("the frame is in the table").clone();
            if beat_index == 1 {
                frame.emitted_at = frame.scheduled_at.plus_millis(7_000);
                frame.anchor_beat = frame.beat_index;
                frame.anchor_at = frame.emitted_at;
                frame.degraded = true;
            }
            late.push(frame).expect("the frames are consecutive");
        }
        let window = late.window_of(beat(0)).expect("the window is in the table");
        let report = bar_report(&late, &window, &Counts::default(), LOGIC).expect("the closing frame is in the table");
        assert_eq!((report.tempo_drift_ms, report.degraded_beats), (7_000, 1));
        assert_eq!(report.issues, ["1 degraded beats", "pulse outage of 7000 ms before beat 1"]);
    }
}
