//! `LogReader`, the reader of single-partition topics.

use std::time::Duration;

use backbeat_broker::{Entry, TopicName};
use backbeat_schemas::{BarReport, BeatFrame, testing};
use backbeat_tests::{Cluster, KafkaProxy, own_devstack, stack, wait_for, wait_until};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_mins(1);
const TIMES: usize = 100;

/// librdkafka aborts the process if a partition is unassigned a second time before its fetcher has stopped after the
/// first (its issue 5573).
#[test]
fn reader_that_seeks_repeatedly_does_not_abort_the_process() {
    let cluster = Cluster::new(1);
    let _pulse = cluster.serve("pulse", &["--cluster", "it", "--bpm", "1200", "--max-bpm", "1200"]);
    wait_until("some beats", LIMIT, || cluster.frames().len() > 3);
    let mut reader = cluster.reader::<BeatFrame>(TopicName::BeatFrames);
    for _ in 0..TIMES {
        for offset in [0, 1, 0] {
            reader.seek(offset).expect("Kafka answers");
        }
        let first =
            wait_for("the first frame", LIMIT, || reader.poll(Duration::from_millis(100)).expect("Kafka answers"));
        assert_eq!(first.record.beat_index.get(), 0);
        reader.pause().expect("Kafka answers");
        reader.seek(1).expect("Kafka answers");
    }
}

/// A partition leader that has just started reports an end below its log's for a moment: the last record that pulse would
/// read then would not be the last, and a beat would be published again.
#[test]
fn reader_does_not_believe_an_end_that_a_new_leader_reports_too_low() {
    let proxy = KafkaProxy::start(&stack().bootstrap_servers());
    let cluster = Cluster::behind(&proxy, 1);
    let report = testing::report(0, 4);
    cluster.publish_report(&report);
    // Kafka acknowledges a commit before it shows the records to committed readers.
    wait_until("the report", LIMIT, || !cluster.reports().is_empty());
    let reader = || cluster.reader::<BarReport>(TopicName::BarReports);
    let reads: [&dyn Fn() -> Option<Entry<BarReport>>; 3] =
        [&|| cluster.reports().into_iter().next(), &|| reader().last().expect("Kafka answers"), &|| {
            reader().first_where(|_| true).expect("Kafka answers")
        }];
    for read in reads {
        proxy.misreport_ends(1);
        assert_eq!(read().map(|entry| entry.record).as_ref(), Some(&report));
        assert_eq!(proxy.ends_to_misreport(), 0, "the fault was caused");
    }
}

/// A reader that fetches nothing does not hear of an election, and asks with the leader epoch of before.
#[test]
fn reader_that_is_paused_answers_after_an_election() {
    let dir = TempDir::new().expect("a temporary directory");
    let mut devstack = own_devstack(1, dir.path());
    let cluster = Cluster::on(&devstack, 1);
    cluster.publish_report(&testing::report(0, 4));
    let mut reader = cluster.reader::<BarReport>(TopicName::BarReports);
    let end =
        wait_for("the report", LIMIT, || Some(reader.end_offset().expect("Kafka answers")).filter(|end| *end > 0));
    for _ in 0..3 {
        devstack.restart_broker(0).expect("the broker restarts");
        assert_eq!(reader.end_offset().expect("Kafka answers"), end);
        assert_eq!(reader.log_start().expect("Kafka answers"), 0);
    }
}
