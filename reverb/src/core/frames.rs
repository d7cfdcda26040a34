//! Consecutive frames by beat, with the window of each beat.

use std::collections::{BTreeMap, VecDeque};

use backbeat_schemas::{BeatFrame, BeatIndex, InvalidClaim, WindowId};

/// Consecutive frames, the first of them a downbeat.
#[derive(Debug, Clone, Default)]
pub struct Frames {
    rows: VecDeque<Row>,
}

#[derive(Debug, Clone)]
struct Row {
    frame: BeatFrame,
    /// The downbeat of the frame's window.
    from: BeatIndex,
}

/// The range of beats of one window, and its closing beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The window's id.
    pub id: WindowId,
    /// The window's downbeat.
    pub from: BeatIndex,
    /// The next window's downbeat.
    pub end: BeatIndex,
    /// The closing beat: `end` plus the grace. Claims at or past its boundary cannot count in this window.
    pub closing: BeatIndex,
}

/// A frame that cannot follow the last one of the table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Beats are missing before this frame.
    #[error("beatframes has beat {found} after beat {last}: beats are missing from the log")]
    Gap {
        /// The last beat of the table.
        last: BeatIndex,
        /// The frame's beat.
        found: BeatIndex,
    },
    /// A frame that contradicts itself or the frame before it, so pulse did not write it.
    #[error("frame of beat {beat} in beatframes is invalid: {reason}")]
    Invalid {
        /// The frame's beat.
        beat: BeatIndex,
        /// The rule that the frame breaks.
        reason: &'static str,
    },
    /// A frame of another cluster.
    #[error("beatframes belongs to cluster {found:?}, not to {expected:?}")]
    OtherCluster {
        /// The frame's cluster.
        found: String,
        /// The cluster of the frames before it.
        expected: String,
    },
}

impl Frames {
    /// Appends the next frame of the log. Frames before the first downbeat, and beats that the table already has, are
    /// ignored.
    pub fn push(&mut self, frame: BeatFrame) -> Result<(), FrameError> {
        let from = match self.rows.back() {
            _ if frame.bar_length == 0 => return Err(invalid(&frame, "its bar has no beats")),
            None if !frame.downbeat => return Ok(()),
            None => frame.beat_index,
            Some(last) if frame.beat_index <= last.frame.beat_index => return Ok(()),
            Some(last) if frame.beat_index != last.frame.beat_index.plus(1) => {
                return Err(FrameError::Gap { last: last.frame.beat_index, found: frame.beat_index });
            }
            Some(last) if frame.cluster_id != last.frame.cluster_id => {
                return Err(FrameError::OtherCluster {
                    found: frame.cluster_id,
                    expected: last.frame.cluster_id.clone(),
                });
            }
            Some(last) if !continues(&last.frame.claim_offsets, &frame.claim_offsets) => {
                return Err(invalid(&frame, "its claim_offsets go back or lose a partition"));
            }
            Some(last)
                if frame.downbeat
                    != self.window_of(last.frame.beat_index).is_some_and(|w| w.end == frame.beat_index) =>
            {
                return Err(invalid(
                    &frame,
                    "it starts a bar too early or too late for the bar_length of the last downbeat",
                ));
            }
            Some(_) if frame.downbeat => frame.beat_index,
            Some(last) => last.from,
        };
        self.rows.push_back(Row { frame, from });
        Ok(())
    }

    /// Returns the oldest frame.
    pub fn first(&self) -> Option<&BeatFrame> {
        self.rows.front().map(|row| &row.frame)
    }

    /// Returns the newest frame.
    pub fn last(&self) -> Option<&BeatFrame> {
        self.rows.back().map(|row| &row.frame)
    }

    /// Returns the frame of `beat`.
    pub fn get(&self, beat: BeatIndex) -> Option<&BeatFrame> {
        self.row(beat).map(|row| &row.frame)
    }

    /// Returns the frames of `[from, end)` that the table has.
    pub fn range(&self, from: BeatIndex, end: BeatIndex) -> impl Iterator<Item = &BeatFrame> {
        (from.get()..end.get()).filter_map(|beat| self.get(BeatIndex::try_from(beat).ok()?))
    }

    /// Returns true if every window in which a claim that arrives on `beat` may count is here, and the window before
    /// them.
    pub fn cover(&self, beat: BeatIndex) -> bool {
        self.first().is_some_and(|first| {
            beat.since(first.beat_index) >= i64::from(first.grace_beats) + i64::from(first.bar_length)
        })
    }

    /// Returns the window of `beat`.
    pub fn window_of(&self, beat: BeatIndex) -> Option<Window> {
        let opening = self.get(self.row(beat)?.from)?;
        let end = opening.beat_index.plus(opening.bar_length.into());
        Some(Window {
            id: opening.window_id,
            from: opening.beat_index,
            end,
            closing: end.plus(opening.grace_beats.into()),
        })
    }

    /// Returns the windows from that of `from`, or from the oldest one, to that of `to`, or to the newest one, which may be open.
    pub fn windows(&self, from: Option<BeatIndex>, to: Option<BeatIndex>) -> impl Iterator<Item = Window> {
        let oldest = self.first().map(|first| first.beat_index).unwrap_or_default();
        let first = self.window_of(from.map_or(oldest, |from| from.max(oldest)));
        std::iter::successors(first, |window| self.window_of(window.end))
            .take_while(move |window| to.is_none_or(|to| window.from <= to))
    }

    /// Returns the window in which a claim for `beat` counts if it arrives on the beat `arrival`; `None` if it is late. Fails if
    /// the beat had not been published.
    pub fn window_counting(&self, beat: i64, arrival: BeatIndex) -> Result<Option<Window>, InvalidClaim> {
        let published = BeatIndex::try_from(beat).ok().filter(|beat| *beat <= arrival);
        let published = published.ok_or(InvalidClaim::Beat { beat, arrival: arrival.get() })?;
        // A beat from before the table belongs to a window that closed long ago.
        Ok(self.window_of(published).filter(|window| arrival < window.closing))
    }

    /// Returns the beat on which the claim at `offset` of `partition` arrived; `None` if that is not known yet, or was before the
    /// table.
    pub fn arrival_beat(&self, partition: i32, offset: i64) -> Option<BeatIndex> {
        let next = self.rows.partition_point(|row| row.frame.boundary(partition) <= offset);
        let row = self.rows.get(next.checked_sub(1)?).filter(|_| next < self.rows.len())?;
        Some(row.frame.beat_index)
    }

    /// Returns the window whose closing beat is `beat`.
    pub fn closed_by(&self, beat: BeatIndex) -> Option<Window> {
        let grace = i64::from(self.get(beat)?.grace_beats);
        let end = BeatIndex::try_from(beat.get() - grace).ok()?;
        let window = self.window_of(end.previous()?)?;
        (window.closing == beat).then_some(window)
    }

    /// Returns the first downbeat at or after `beat`.
    pub fn downbeat_from(&self, beat: BeatIndex) -> Option<BeatIndex> {
        let start = self.first().map_or(0, |first| beat.since(first.beat_index).max(0)) as usize;
        self.rows.iter().skip(start).find(|row| row.frame.downbeat).map(|row| row.frame.beat_index)
    }

    /// Removes whole windows that end at or before `beat`.
    pub fn drop_before(&mut self, beat: BeatIndex) {
        while let Some(window) = self.first().and_then(|first| self.window_of(first.beat_index)) {
            if window.end > beat || self.get(window.end).is_none() {
                return;
            }
            let beats = window.end.since(window.from) as usize;
            self.rows.drain(..beats);
        }
    }

    fn row(&self, beat: BeatIndex) -> Option<&Row> {
        let index = beat.since(self.first()?.beat_index);
        usize::try_from(index).ok().and_then(|index| self.rows.get(index))
    }
}

/// Returns true if every claim from the boundaries of `frame` on is at or after the log start offset of its partition.
pub fn is_retained(frame: &BeatFrame, log_starts: &BTreeMap<i32, i64>) -> bool {
    log_starts.iter().all(|(partition, log_start)| frame.boundary(*partition) >= *log_start)
}

fn invalid(frame: &BeatFrame, reason: &'static str) -> FrameError {
    FrameError::Invalid { beat: frame.beat_index, reason }
}

/// Returns true if no boundary goes back and no partition disappears.
fn continues(before: &[i64], after: &[i64]) -> bool {
    before.len() <= after.len() && before.iter().zip(after).all(|(before, after)| before <= after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{beat, frames_of_partitions};

    #[test]
    fn frames_cover_a_beat_if_the_bar_before_its_windows_is_there() {
        // Bars of 2 beats.
        let covered = |grace, beats| frames_of_partitions(2, grace, &[&[0; 9]]).cover(beat(beats));
        assert_eq!([1, 2].map(|beats| covered(0, beats)), [false, true]);
        assert_eq!([2, 3].map(|beats| covered(1, beats)), [false, true], "within the grace, the window before counts");
        assert!(!Frames::default().cover(beat(9)), "an empty table may have been started for a later beat");
    }
}
