//! How often rare paths were taken, over all seeds.

use std::collections::BTreeMap;

/// The number of times that each path was taken.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    pub(crate) fn add(&mut self, path: &'static str, times: u64) {
        *self.0.entry(path).or_default() += times;
    }

    pub(crate) fn extend(&mut self, other: &Self) {
        for (path, times) in &other.0 {
            self.add(path, *times);
        }
    }

    pub(crate) fn get(&self, path: &str) -> u64 {
        self.0.get(path).copied().unwrap_or(0)
    }
}
