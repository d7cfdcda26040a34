//! Peak memory of a reverb member with 100,000 agents that each send one claim per beat.

use std::time::Duration;

use backbeat_tests::{Cluster, peak_mib, wait_until};

use crate::claim_source::ClaimSource;
use crate::table::{Row, Table};

const LIMIT: Duration = Duration::from_mins(2);
const AGENTS: u64 = 100_000;
const BEATS: i64 = 12;
const GOAL_MIB: f64 = 256.0;

pub(crate) fn run(table: &mut Table) {
    let cluster = Cluster::new(12);
    let _pulse = cluster.serve("pulse", &["--cluster", "bench", "--bpm", "24", "--bar", "4"]);
    let reverb = cluster.serve("reverb", &["--cluster", "bench"]);
    wait_until("a beat", LIMIT, || !cluster.frames().is_empty());
    let claims = ClaimSource::new(&cluster);
    let newest = || cluster.frames().last().map_or(0, |frame| frame.beat_index.get());
    let first = newest() + 1;
    for beat in first..first + BEATS {
        wait_until("the next beat", LIMIT, || newest() >= beat);
        (0..AGENTS).for_each(|agent| claims.send(agent, beat));
    }
    claims.wait_until_acknowledged();
    let is_complete = |report: &backbeat_schemas::BarReport| report.agents_reporting == AGENTS as i64;
    wait_until("two reports of all agents", LIMIT, || {
        cluster.reports().iter().filter(|entry| is_complete(&entry.record)).count() >= 2
    });
    table.add(Row {
        name: "reverb_rss_100k_agents_mib",
        value: peak_mib(reverb.pid()),
        unit: "MiB",
        baseline: "goal",
        baseline_value: GOAL_MIB,
    });
}
