//! What must hold, whatever fails.

use std::fmt;

use backbeat_pulse::core::Line;
use backbeat_schemas::{BeatFrame, Phase, WindowId};

/// Broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// Which check says so.
    pub(crate) check: &'static str,
    detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.check, self.detail)
    }
}

pub(crate) const INDICES: &str = "indices without gap or repeat";
pub(crate) const ONE_LEADER: &str = "never two unfenced leaders";
pub(crate) const TERMS: &str = "a term has one node, and terms rise";
pub(crate) const HLC: &str = "hlc strictly rising";
pub(crate) const SCHEDULE: &str = "scheduled_at strictly rising, and the deadline before it";
pub(crate) const LINES: &str = "lines never back, and never ahead of the log";
pub(crate) const TEMPO: &str = "tempo within the guard, from downbeats on";
pub(crate) const BARS: &str = "bars as long as they say";
pub(crate) const PROGRESS: &str = "progress once faults end";
pub(crate) const PLANS: &str = "an agreed plan is carried out once faults end";

pub(crate) fn ensure(holds: bool, check: &'static str, detail: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation { check, detail: detail() }) }
}

/// Checks `frame`, about to be committed behind `log` while the claims end at `ends`.
pub(crate) fn frame(log: &[BeatFrame], frame: &BeatFrame, ends: &Line) -> Result<(), Violation> {
    let index = frame.beat_index.get();
    let expected = log.len() as i64;
    ensure(index == expected, INDICES, || format!("beat {index}, not {expected}"))?;
    let within_ends = (0..).zip(&frame.claim_offsets).all(|(p, line)| ends.end(p).is_some_and(|end| *line <= end));
    ensure(within_ends, LINES, || format!("beat {index}: {:?} is ahead of {ends:?}", frame.claim_offsets))?;
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
    ensure(forward, LINES, || format!("beat {index}: {:?} after {:?}", frame.claim_offsets, before.claim_offsets))?;

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
