//! `LogReader`, the reader of single-partition topics.

use std::time::Duration;

use backbeat_broker::TopicName;
use backbeat_schemas::BeatFrame;
use backbeat_tests::{Cluster, wait_for, wait_until};

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
