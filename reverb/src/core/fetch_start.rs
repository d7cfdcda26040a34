//! Verifies that a consumer reads a partition from its start position on.

/// The start of fetching one partition.
///
/// A new partition is assigned at the log start, paused, and sought to its start position once that is known
/// (docs/design.md, Reverb). Records that were fetched before the pause or the seek may still be delivered. If one of
/// them were processed, the offsets between the start position and it would be counted as control records, and the
/// share would lack their claims. So records are discarded until the one at the start position arrives. A later first
/// record is accepted only if a second fetch returns it again: then the offsets in between are control records, or
/// expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchStart {
    /// The consumer is to be sought to `offset`.
    AwaitingSeek {
        /// The start position.
        offset: i64,
        /// The first record after the last seek, if its offset is above the start position.
        later: Option<i64>,
    },
    /// The consumer was sought, and no record of the start position or later has arrived.
    AwaitingRecord {
        /// The start position.
        offset: i64,
        /// The first record after the seek before, if its offset was above the start position.
        later: Option<i64>,
    },
    /// The consumer reads from the start position on.
    Verified,
}

impl FetchStart {
    /// Creates the start at the start position `offset`.
    pub fn new(offset: i64) -> Self {
        Self::AwaitingSeek { offset, later: None }
    }

    /// Returns the offset that the consumer is to be sought to.
    pub fn seek_offset(&self) -> Option<i64> {
        match self {
            Self::AwaitingSeek { offset, .. } => Some(*offset),
            Self::AwaitingRecord { .. } | Self::Verified => None,
        }
    }

    /// Records that the consumer was sought.
    pub fn mark_sought(&mut self) {
        if let Self::AwaitingSeek { offset, later } = *self {
            *self = Self::AwaitingRecord { offset, later };
        }
    }

    /// Returns true if the record at `record_offset` may be processed; otherwise it is to be discarded.
    pub fn admit(&mut self, record_offset: i64) -> bool {
        match *self {
            Self::Verified => true,
            Self::AwaitingSeek { .. } => false,
            Self::AwaitingRecord { offset, .. } if record_offset < offset => false,
            Self::AwaitingRecord { offset, later } if record_offset == offset || later == Some(record_offset) => {
                *self = Self::Verified;
                true
            }
            Self::AwaitingRecord { offset, .. } => {
                *self = Self::AwaitingSeek { offset, later: Some(record_offset) };
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_from_before_the_seek_are_discarded() {
        let mut start = FetchStart::new(10);
        assert_eq!(start.seek_offset(), Some(10));
        assert!(!start.admit(0) && !start.admit(10), "not sought yet");
        start.mark_sought();
        assert!(!start.admit(9) && start.admit(10) && start.admit(12), "later gaps are the aggregator's");
        assert_eq!((start, start.seek_offset()), (FetchStart::Verified, None));
    }

    #[test]
    fn later_first_record_after_a_second_fetch_is_admitted() {
        let mut start = FetchStart::new(10);
        start.mark_sought();
        assert!(!start.admit(500), "it may have been fetched before the seek");
        assert_eq!(start.seek_offset(), Some(10));
        start.mark_sought();
        assert!(start.admit(500), "offsets 10 to 499 are control records or expired");
        assert_eq!(start, FetchStart::Verified);
    }

    #[test]
    fn another_later_first_record_is_fetched_a_third_time() {
        let mut start = FetchStart::new(10);
        start.mark_sought();
        assert!(!start.admit(500));
        start.mark_sought();
        assert!(!start.admit(300));
        start.mark_sought();
        assert!(start.admit(10));
    }
}
