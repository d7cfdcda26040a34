//! Helpers of tests that compare or count reports.

use std::collections::BTreeMap;
use std::time::Duration;

use backbeat_broker::{Entry, TopicName};
use backbeat_schemas::{BarPartial, BarReport, PartialBody, Verdict};
use backbeat_tests::{Cluster, Oracle, Program, assert_reports_equal, wait_until};

const LIMIT: Duration = Duration::from_mins(2);

/// Waits until there are at least `windows` reports.
pub(crate) fn wait_for_reports(cluster: &Cluster, windows: usize) {
    wait_until(&format!("{windows} reports"), LIMIT, || cluster.reports().len() >= windows);
}

/// Compares every report with the oracle's, field by field, and returns the oracle.
pub(crate) fn check_reports(cluster: &Cluster) -> Oracle {
    let oracle = Oracle::read(cluster);
    let expected = oracle.reports();
    wait_for_reports(cluster, expected.len());
    assert_reports_equal(cluster, &expected, &oracle.rosters());
    oracle
}

/// The numbers of counted, late and invalid claims over all reports.
pub(crate) fn totals(reports: &[Entry<BarReport>]) -> (i64, i64, i64) {
    let sum = |count: fn(&BarReport) -> i64| reports.iter().map(|entry| count(&entry.record)).sum();
    (sum(|r| r.claims), sum(|r| r.late_claims), sum(|r| r.invalid_claims))
}

/// The number of done records by verdict.
pub(crate) fn verdicts(cluster: &Cluster) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for entry in cluster.read_all::<BarPartial>(TopicName::BarPartials) {
        if let Some(PartialBody::Done(done)) = entry.record.into_body() {
            *counts.entry(done.verdict.as_str()).or_default() += 1;
        }
    }
    counts
}

/// The number of done records with `verdict` in the result of [`verdicts`].
pub(crate) fn count(verdicts: &BTreeMap<&'static str, usize>, verdict: Verdict) -> usize {
    verdicts.get(verdict.as_str()).copied().unwrap_or(0)
}

/// Starts a member of reverb and waits until it is ready.
pub(crate) fn reverb(cluster: &Cluster, args: &[&str]) -> Program {
    let reverb = cluster.serve("reverb", &[&["--cluster", "it"], args].concat());
    reverb.wait_ready();
    reverb
}
