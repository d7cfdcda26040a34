//! The table of boundaries: which beat an offset arrived on, and which window a beat lies in.

use std::collections::VecDeque;

use backbeat_schemas::{BeatFrame, BeatIndex, WindowId};

/// Consecutive frames, beginning with a downbeat.
#[derive(Debug, Clone, Default)]
pub struct Frames {
    rows: VecDeque<Row>,
}

#[derive(Debug, Clone)]
struct Row {
    frame: BeatFrame,
    /// The downbeat of its window.
    from: BeatIndex,
}

/// The beats of one window and when it closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its name.
    pub id: WindowId,
    /// Its downbeat.
    pub from: BeatIndex,
    /// The next window's downbeat.
    pub end: BeatIndex,
    /// The beat whose boundary ends the claims that may count in it: `end` and the grace.
    pub closes: BeatIndex,
}

/// A frame that does not continue the table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A beat is missing.
    #[error("beatframes has beat {found} after beat {last}: beats are missing from the log")]
    Gap {
        /// The last beat of the table.
        last: BeatIndex,
        /// The frame's.
        found: BeatIndex,
    },
    /// A frame that no pulse would write.
    #[error("beat {beat} of beatframes is broken: {reason}")]
    Broken {
        /// The frame's.
        beat: BeatIndex,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A frame of another cluster.
    #[error("beatframes belongs to cluster {found:?}, not to {ours:?}")]
    OtherCluster {
        /// The frame's cluster.
        found: String,
        /// The table's.
        ours: String,
    },
}

impl Frames {
    /// Adds the next frame of the log. Frames before the first downbeat, and frames that are there
    /// already, change nothing.
    pub fn push(&mut self, frame: BeatFrame) -> Result<(), FrameError> {
        let from = match self.rows.back() {
            _ if frame.bar_length == 0 => return Err(broken(&frame, "its bar has no beats")),
            None if !frame.downbeat => return Ok(()),
            None => frame.beat_index,
            Some(last) if frame.beat_index <= last.frame.beat_index => return Ok(()),
            Some(last) if frame.beat_index != last.frame.beat_index.plus(1) => {
                return Err(FrameError::Gap { last: last.frame.beat_index, found: frame.beat_index });
            }
            Some(last) if frame.cluster_id != last.frame.cluster_id => {
                return Err(FrameError::OtherCluster { found: frame.cluster_id, ours: last.frame.cluster_id.clone() });
            }
            Some(last) if !continues(&last.frame.claim_offsets, &frame.claim_offsets) => {
                return Err(broken(&frame, "its boundaries lie before the last beat's"));
            }
            Some(last)
                if frame.downbeat
                    != self.window_of(last.frame.beat_index).is_some_and(|w| w.end == frame.beat_index) =>
            {
                return Err(broken(&frame, "its bar is not as long as its downbeat says"));
            }
            Some(_) if frame.downbeat => frame.beat_index,
            Some(last) => last.from,
        };
        self.rows.push_back(Row { frame, from });
        Ok(())
    }

    /// The oldest frame.
    pub fn first(&self) -> Option<&BeatFrame> {
        self.rows.front().map(|row| &row.frame)
    }

    /// The newest frame.
    pub fn last(&self) -> Option<&BeatFrame> {
        self.rows.back().map(|row| &row.frame)
    }

    /// The frame of `beat`.
    pub fn get(&self, beat: BeatIndex) -> Option<&BeatFrame> {
        self.row(beat).map(|row| &row.frame)
    }

    /// The frames of `[from, end)` that are there.
    pub fn range(&self, from: BeatIndex, end: BeatIndex) -> impl Iterator<Item = &BeatFrame> {
        (from.get()..end.get()).filter_map(|beat| self.get(BeatIndex::try_from(beat).ok()?))
    }

    /// The window that `beat` lies in.
    pub fn window_of(&self, beat: BeatIndex) -> Option<Window> {
        let opening = self.get(self.row(beat)?.from)?;
        let end = opening.beat_index.plus(opening.bar_length.into());
        Some(Window {
            id: opening.window_id,
            from: opening.beat_index,
            end,
            closes: end.plus(opening.grace_beats.into()),
        })
    }

    /// The first downbeat at or after `beat`.
    pub fn downbeat_from(&self, beat: BeatIndex) -> Option<BeatIndex> {
        let start = self.first().map_or(0, |first| beat.since(first.beat_index).max(0)) as usize;
        self.rows.iter().skip(start).find(|row| row.frame.downbeat).map(|row| row.frame.beat_index)
    }

    /// Forgets whole windows that end at or before `beat`.
    pub fn forget_before(&mut self, beat: BeatIndex) {
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

fn broken(frame: &BeatFrame, reason: &'static str) -> FrameError {
    FrameError::Broken { beat: frame.beat_index, reason }
}

/// Whether no boundary goes back, and none is lost.
fn continues(before: &[i64], after: &[i64]) -> bool {
    before.len() <= after.len() && before.iter().zip(after).all(|(before, after)| before <= after)
}
