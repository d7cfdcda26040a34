//! Counts claims in the windows of their beats, however late they came.

use std::collections::BTreeMap;

use backbeat_schemas::{BeatIndex, Counts, InvalidClaim};

use super::{DecodedClaim, Frames, Tally, Window};

/// The counts of windows as if nothing had been late.
///
/// More late claims come as the log grows, so these counts are no function of the windows' offset ranges, and are published
/// nowhere.
#[derive(Debug)]
pub struct Corrector<'f> {
    frames: &'f Frames,
    /// By the window's downbeat and the partition.
    tallies: BTreeMap<(BeatIndex, i32), Tally>,
}

impl<'f> Corrector<'f> {
    /// Creates the corrector of `windows` for `partitions` partitions.
    pub fn new(frames: &'f Frames, windows: &[Window], partitions: i32) -> Self {
        let keys = windows.iter().flat_map(|window| (0..partitions).map(|partition| (window.from, partition)));
        Self { frames, tallies: keys.map(|key| (key, Tally::new(key.0, None))).collect() }
    }

    /// Processes the record at `offset`. One whose arrival beat is not known yet, or that belongs to another window, is ignored.
    pub fn process(&mut self, partition: i32, offset: i64, decoded: DecodedClaim<'_>) {
        let Some(arrival) = self.frames.arrival_beat(partition, offset) else { return };
        let owner = self.frames.window_of(arrival).map(|window| window.from);
        let invalid = match decoded {
            DecodedClaim::Invalid(reason) => Some(reason),
            DecodedClaim::Valid(claim) => match self.frames.window_counting(claim.beat, arrival) {
                Err(reason) => Some(reason),
                Ok(counting) => {
                    let beat = BeatIndex::try_from(claim.beat).ok();
                    let window = counting.or_else(|| self.frames.window_of(beat?));
                    if let Some(tally) = self.tally(window.map(|window| window.from), partition) {
                        tally.count(&claim);
                    }
                    if let (None, Some(tally)) = (counting, self.tally(owner, partition)) {
                        tally.count_late(&claim.agent);
                    }
                    None
                }
            },
        };
        if let (Some(reason), Some(tally)) = (invalid, self.tally(owner, partition)) {
            tally.count_invalid(matches!(reason, InvalidClaim::UnknownSchema(_)));
        }
    }

    fn tally(&mut self, from: Option<BeatIndex>, partition: i32) -> Option<&mut Tally> {
        self.tallies.get_mut(&(from?, partition))
    }

    /// Returns the counts of `window`.
    pub fn counts(&self, window: &Window) -> Counts {
        let partitions = self.frames.get(window.closing).map_or(0, |frame| frame.claim_offsets.len());
        let mut sum = Counts::default();
        for ((_, partition), tally) in self.tallies.range((window.from, 0)..(window.end, 0)) {
            sum.add(&tally.counts(*partition, partitions));
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{beat, claim, frames};

    #[test]
    fn late_claim_counts_in_the_window_of_its_beat_and_as_late_where_it_came() {
        // Bars of 2 with boundaries 0, 2, 3, 6, 7: the claim at offset 3 arrives on beat 2.
        let frames = frames(2, 0, &[0, 2, 3, 6, 7]);
        let windows = [0, 2].map(|from| frames.window_of(beat(from)).expect("a window"));
        let mut corrector = Corrector::new(&frames, &windows, 1);
        let records = [
            DecodedClaim::Valid(claim("a", 0)),
            DecodedClaim::Invalid(InvalidClaim::NoValue),
            DecodedClaim::Valid(claim("a", 1)),
            DecodedClaim::Valid(claim("late", 1)),
            DecodedClaim::Valid(claim("a", 2)),
            DecodedClaim::Valid(claim("a", 3)),
            // It names a beat that had not been published.
            DecodedClaim::Valid(claim("a", 4)),
            // Its arrival beat is not known.
            DecodedClaim::Valid(claim("undecided", 0)),
        ];
        for (offset, record) in (0..).zip(records) {
            corrector.process(0, offset, record);
        }
        let counts = windows.map(|window| corrector.counts(&window));
        let counts =
            counts.iter().map(|counts| (counts.agents, counts.claims, counts.late_claims, counts.invalid_claims));
        assert_eq!(counts.collect::<Vec<_>>(), [(2, 3, 0, 1), (1, 1, 1, 2)]);
    }
}
