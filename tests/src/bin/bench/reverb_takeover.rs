//! The time from killing the member that runs the merge to the receipt of the next report by a consumer, in a group of
//! three.

use std::time::{Duration, Instant};

use backbeat_broker::TopicName;
use backbeat_schemas::BarReport;
use backbeat_tests::{Cluster, Program, wait_for, wait_until};
use rustix::process::Signal;

use crate::table::{Row, Table, median, now_ms, percentile};

const KILLS: usize = 15;
const LIMIT: Duration = Duration::from_mins(1);
const GOAL_MS: f64 = 10_000.0;
/// The pause before each kill, in which the group becomes stable.
const SETTLE: Duration = Duration::from_secs(2);

pub(crate) fn run(table: &mut Table) {
    let cluster = Cluster::new(12);
    let _pulse = cluster.serve("pulse", &["--cluster", "bench", "--bpm", "600", "--max-bpm", "600", "--bar", "4"]);
    let member = || cluster.serve("reverb", &["--cluster", "bench"]);
    let mut members: Vec<Program> = (0..3).map(|_| member()).collect();
    let _agents = cluster.start("agent-sim", &["--agents", "100"]);
    let mut took = Vec::new();
    for _ in 0..KILLS {
        members.iter().for_each(Program::wait_ready);
        std::thread::sleep(SETTLE);
        let merging = wait_for("a member that runs the merge", LIMIT, || members.iter().position(is_merging));
        let mut reports = cluster.reader::<BarReport>(TopicName::BarReports);
        let end = reports.end_offset().expect("Kafka answers");
        reports.seek(end).expect("Kafka answers");
        let mut victim = members.swap_remove(merging);
        let (killed, killed_ms) = (Instant::now(), now_ms());
        victim.signal(Signal::KILL);
        wait_until("a report of a window that closed after the kill", LIMIT, || {
            let entry = reports.poll(Duration::from_millis(10)).expect("Kafka answers");
            entry.is_some_and(|entry| entry.record.closed_at.millis() as f64 > killed_ms)
        });
        took.push(killed.elapsed().as_secs_f64() * 1_000.0);
        victim.wait();
        members.push(member());
    }
    let rows = [("reverb_takeover_median_ms", median(took.clone())), ("reverb_takeover_p99_ms", percentile(&took, 99))];
    for (name, value) in rows {
        table.add(Row { name, value, unit: "ms", baseline: "goal for the p99", baseline_value: GOAL_MS });
    }
}

fn is_merging(member: &Program) -> bool {
    member.get_json("/api/v1/status")["merging"] == true
}
