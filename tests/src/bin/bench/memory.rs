//! Peak memory of a reverb member with 100,000 and 1,000,000 agents that each send one claim per beat.

use std::time::Duration;

use backbeat_tests::{Cluster, peak_mib, wait_until};

use crate::claim_source::ClaimSource;
use crate::table::{Row, Table};

const LIMIT: Duration = Duration::from_mins(2);
const BEATS: i64 = 12;

pub(crate) fn run(table: &mut Table) {
    // A beat of 10 s is enough for a million claims.
    for (name, agents, bpm, goal_mib) in
        [("reverb_rss_100k_agents_mib", 100_000, "24", 96.0), ("reverb_rss_1m_agents_mib", 1_000_000, "6", 512.0)]
    {
        let value = peak(agents, bpm);
        table.add(Row { name: name.into(), value, unit: "MiB", baseline: "goal", baseline_value: goal_mib });
    }
}

/// The peak memory, in MiB, with `agents` agents.
fn peak(agents: u64, bpm: &str) -> f64 {
    let cluster = Cluster::new(12);
    let _pulse = cluster.serve("pulse", &["--cluster", "bench", "--bpm", bpm, "--bar", "4"]);
    let reverb = cluster.serve("reverb", &["--cluster", "bench"]);
    wait_until("a beat", LIMIT, || !cluster.frames().is_empty());
    let claims = ClaimSource::new(&cluster);
    let newest = || cluster.frames().last().map_or(0, |frame| frame.beat_index.get());
    let first = newest() + 1;
    for beat in first..first + BEATS {
        wait_until("the next beat", LIMIT, || newest() >= beat);
        (0..agents).for_each(|agent| claims.send(agent, beat));
    }
    claims.wait_until_acknowledged();
    let is_complete = |report: &backbeat_schemas::BarReport| report.agents_reporting == agents as i64;
    wait_until("two reports of all agents", LIMIT, || {
        cluster.reports().iter().filter(|entry| is_complete(&entry.record)).count() >= 2
    });
    peak_mib(reverb.pid())
}
