//! The invariants, which must hold under all faults.

use backbeat_pulse::core::{Boundary, Plan};
use backbeat_schemas::{BeatFrame, Phase, WindowId};
use backbeat_simulation::{Violation, ensure};

pub(crate) const INDICES: &str = "beat indices never skip and never repeat";
pub(crate) const ONE_LEADER: &str = "never two unfenced leaders";
pub(crate) const TERMS: &str = "a term has one node, and terms rise";
pub(crate) const HLC: &str = "hlc rises strictly";
pub(crate) const SCHEDULE: &str = "scheduled_at rises strictly and is the previous deadline_at";
pub(crate) const BOUNDARIES: &str = "boundaries never go back, and are never ahead of the log";
pub(crate) const TEMPO: &str = "the tempo changes at downbeats only, by at most 10 %";
pub(crate) const BARS: &str = "bars have the length that their downbeat announces";
pub(crate) const DEGRADED: &str = "a beat that is not degraded has a recent quorum confirmation";
pub(crate) const EVEN: &str = "beats are evenly spaced and boundaries fresh once faults end";
pub(crate) const PLANNED: &str = "tempo and bar length change as committed, and no sooner";
pub(crate) const PROGRESS: &str = "beats continue once faults end";
pub(crate) const PLANS: &str = "a committed plan is carried out once faults end";

/// Checks that a change from `before` to `frame` follows one of the committed `plans`.
pub(crate) fn as_planned(before: &BeatFrame, frame: &BeatFrame, plans: &[Plan]) -> Result<(), Violation> {
    let changed = (before.tempo_bpm, before.bar_length) != (frame.tempo_bpm, frame.bar_length);
    let follows = |plan: &Plan| {
        let tempo = before.tempo_bpm.towards(plan.tempo) == frame.tempo_bpm;
        tempo && plan.bar_length == frame.bar_length && plan.from <= frame.beat_index
    };
    ensure(!changed || plans.iter().any(follows), PLANNED, || {
        format!("{frame:?} after {before:?}, committed plans {plans:?}")
    })
}

/// Checks the frames of a period without faults, each with the true time of its commit in microseconds.
pub(crate) fn even(log: &[(BeatFrame, u64)]) -> Result<(), Violation> {
    for pair in log.windows(2) {
        let [(before, committed), (after, committed_after)] = pair else { unreachable!("windows of two") };
        let period = before.deadline_at.millis_since(before.scheduled_at);
        let apart = (committed_after - committed) as i64 / 1_000;
        ensure((apart - period).abs() <= 60, EVEN, || format!("{apart} ms, not {period}: {before:?} {after:?}"))?;
        let late = after.emitted_at.millis_since(after.scheduled_at);
        ensure((0..=30).contains(&late), EVEN, || format!("{late} ms late: {after:?}"))?;
        let claims = |frame: &BeatFrame| frame.claim_offsets.iter().sum::<i64>();
        ensure(period < 1_500 || claims(after) > claims(before), EVEN, || format!("a stale boundary: {after:?}"))?;
    }
    Ok(())
}

/// Checks `frame`, about to be committed after `log`, with the ends of `statusclaims` at `ends`.
pub(crate) fn frame(log: &[BeatFrame], frame: &BeatFrame, ends: &Boundary) -> Result<(), Violation> {
    let index = frame.beat_index.get();
    let expected = log.len() as i64;
    ensure(index == expected, INDICES, || format!("beat {index}, not {expected}"))?;
    let within_ends =
        (0..).zip(&frame.claim_offsets).all(|(p, boundary)| ends.offset(p).is_some_and(|end| *boundary <= end));
    ensure(within_ends, BOUNDARIES, || format!("beat {index}: {:?} is ahead of {ends:?}", frame.claim_offsets))?;
    let Some(before) = log.last() else { return Ok(()) };

    let same = (frame.term, &frame.node) == (before.term, &before.node);
    ensure(same || frame.term > before.term, TERMS, || {
        format!("beat {index}: term {} of {} after {} of {}", frame.term, frame.node, before.term, before.node)
    })?;
    ensure(frame.hlc.is_after(before.hlc), HLC, || format!("beat {index}: {} after {}", frame.hlc, before.hlc))?;
    let scheduled = frame.scheduled_at == before.deadline_at
        && frame.scheduled_at > before.scheduled_at
        && frame.deadline_at > frame.scheduled_at;
    ensure(scheduled, SCHEDULE, || format!("beat {index}: {frame:?} after {before:?}"))?;
    let forward = before.claim_offsets.len() <= frame.claim_offsets.len()
        && before.claim_offsets.iter().zip(&frame.claim_offsets).all(|(before, after)| before <= after);
    ensure(forward, BOUNDARIES, || {
        format!("beat {index}: {:?} after {:?}", frame.claim_offsets, before.claim_offsets)
    })?;

    let guard = before.tempo_bpm.allowed_next();
    let may_change = frame.downbeat && !frame.degraded;
    let tempo_holds = frame.tempo_bpm == before.tempo_bpm || (may_change && guard.contains(&frame.tempo_bpm));
    ensure(tempo_holds, TEMPO, || format!("beat {index}: {} after {}", frame.tempo_bpm, before.tempo_bpm))?;

    let downbeat = log.iter().rposition(|frame| frame.downbeat).unwrap_or(0);
    let bar = i64::from(log[downbeat].bar_length);
    let position = index - downbeat as i64;
    let bars_hold = if frame.downbeat {
        position == bar && frame.window_id == WindowId::new(&frame.cluster_id, frame.beat_index)
    } else {
        position < bar && i64::from(frame.bar_length) == bar && frame.window_id == before.window_id
    };
    let at = if frame.downbeat { 0 } else { position as u16 };
    let phase_holds = frame.phase == Phase::of(at, frame.bar_length);
    ensure(bars_hold && phase_holds, BARS, || format!("beat {index}, {position} after a downbeat of {bar}: {frame:?}"))
}
