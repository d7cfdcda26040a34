//! Waits for a condition, never for a fixed time.

use std::time::{Duration, Instant};

use backbeat_broker::TopicName;
use rdkafka::consumer::Consumer;

use crate::Cluster;

const POLL: Duration = Duration::from_millis(20);

/// Polls until `poll` returns a value, and returns it; panics after `limit` with the `description` of what it waited
/// for.
pub fn wait_for<T>(description: &str, limit: Duration, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} for {description}");
        std::thread::sleep(POLL);
    }
}

/// Polls until `condition` is true; panics after `limit`, as [`wait_for`] does.
pub fn wait_until(description: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(description, limit, || condition().then_some(()));
}

/// Waits until every claim of `cluster` is below a boundary: before that, it belongs to no window. Panics after `limit`
/// with the `logs`.
pub fn wait_for_boundaries(cluster: &Cluster, limit: Duration, logs: impl Fn() -> String) {
    let topic = cluster.broker().topics().name(TopicName::StatusClaims);
    let consumer = cluster.broker().reader().expect("a consumer");
    let end = |partition| consumer.fetch_watermarks(&topic, partition, limit).expect("Kafka answers").1;
    let last = || cluster.frames().pop().expect("there are frames");
    let ends: Vec<i64> = (0..).zip(last().claim_offsets).map(|(partition, _)| end(partition)).collect();
    let deadline = Instant::now() + limit;
    while last().claim_offsets.iter().zip(&ends).any(|(boundary, end)| boundary < end) {
        assert!(
            Instant::now() < deadline,
            "boundary {:?} is below the high watermarks {ends:?}; {}",
            last().claim_offsets,
            logs()
        );
        std::thread::sleep(POLL);
    }
}
