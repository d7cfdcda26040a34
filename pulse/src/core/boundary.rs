//! The boundary: the last stable offset (LSO) of every partition of `statusclaims`, sampled just before a beat.

/// Offsets by partition. A boundary never goes back, and never loses a partition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Boundary(Vec<i64>);

impl Boundary {
    /// The boundary with a frame's `claim_offsets`.
    pub fn new(offsets: Vec<i64>) -> Self {
        Self(offsets)
    }

    /// Advances `partition` to `offset`; a lower offset, from a stale response, changes nothing.
    pub fn advance(&mut self, partition: i32, offset: i64) {
        let Ok(index) = usize::try_from(partition) else { return };
        if self.0.len() <= index {
            self.0.resize(index + 1, 0);
        }
        self.0[index] = self.0[index].max(offset);
    }

    /// Advances every partition to `other`'s offset, where that is higher.
    pub fn advance_to(&mut self, other: &Self) {
        for (partition, offset) in (0..).zip(&other.0) {
            self.advance(partition, *offset);
        }
    }

    /// The offset of `partition`, if the boundary has that partition.
    pub fn offset(&self, partition: i32) -> Option<i64> {
        usize::try_from(partition).ok().and_then(|index| self.0.get(index)).copied()
    }

    /// The offsets by partition, for a frame's `claim_offsets`.
    pub fn offsets(&self) -> &[i64] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundary_with_lower_or_missing_offsets_keeps_its_own() {
        let mut boundary = Boundary::new(vec![5, 7]);
        boundary.advance(0, 3);
        boundary.advance(1, 9);
        boundary.advance(3, 1);
        assert_eq!(boundary.offsets(), [5, 9, 0, 1]);
        boundary.advance_to(&Boundary::new(vec![6]));
        assert_eq!(boundary.offsets(), [6, 9, 0, 1]);
    }
}
