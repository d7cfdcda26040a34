//! Samples the boundary, the last stable offset (LSO) of every partition of `statusclaims`, in the background, so that
//! it adds no jitter to a beat.
//!
//! One sampler thread for each broker that is a partition leader: with a slow broker only that broker's partitions
//! become stale. A metadata thread keeps the sampler threads in line with the partition leaders, and looks for open
//! transactions, which hold the boundary back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use backbeat_broker::{Broker, ClaimEnds};
use rand::Rng;

use super::events::TransactionOpen;
use super::metrics::Metrics;
use crate::core::Boundary;

const FETCH_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest interval between two samples, at any tempo.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);
/// The interval between two metadata requests, within which added partitions and moved leaders are noticed.
const METADATA_INTERVAL: Duration = Duration::from_secs(5);
/// The interval while no partition leader is known.
const METADATA_RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// Kafka counts as unavailable if no broker has answered for this long.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// A last stable offset below the boundary for this long is not a stale response: the topic was lost or recreated.
const LOST_AFTER: Duration = Duration::from_secs(30);

/// The newest boundary, and when it was sampled.
#[derive(Debug, Default)]
struct Sampled {
    boundary: Boundary,
    /// By partition, the instant at which the newest offset was requested.
    requested_at: BTreeMap<i32, Instant>,
    /// The partitions whose last stable offsets lie below the boundary.
    below: BTreeMap<i32, BelowBoundary>,
    /// The instant at which any broker answered last.
    last_response: Option<Instant>,
}

/// A last stable offset below the boundary, with the first and the last request that returned such an offset.
#[derive(Debug, Clone, Copy)]
struct BelowBoundary {
    end: i64,
    first: Instant,
    last: Instant,
}

/// A partition of `statusclaims` has lost offsets that a boundary already contains.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the last stable offset of statusclaims-{partition} has been {end} for over 30 s, below the boundary {boundary} already \
     sampled: the topic was lost or recreated, and its claims no longer match the beats. Restore it, or continue with new \
     topics (--topic-prefix) from a later beat (--first-beat), as docs/operations.md, \"Recovery\", describes"
)]
pub(crate) struct LogLost {
    partition: i32,
    end: i64,
    boundary: i64,
}

/// The threads that sample boundaries. They end when this is dropped.
pub(crate) struct BoundarySampler {
    shared: Arc<Shared>,
    /// The sender whose drop stops the metadata thread.
    _stop_sender: Sender<()>,
}

struct Shared {
    ends: ClaimEnds,
    high_watermarks: ClaimEnds,
    metrics: Arc<Metrics>,
    sampled: Mutex<Sampled>,
    /// The sampler threads, by the id of the broker that each queries.
    sampler_threads: Mutex<BTreeMap<i32, SamplerThread>>,
}

/// The handle of the thread that samples the partitions of one partition leader. The thread stops when this is dropped.
struct SamplerThread {
    wake_sender: Sender<()>,
    partitions: Arc<Mutex<Vec<i32>>>,
}

impl BoundarySampler {
    pub(crate) fn start(broker: &Broker, metrics: Arc<Metrics>) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            ends: ClaimEnds::stable(broker)?,
            high_watermarks: ClaimEnds::high_watermarks(broker)?,
            metrics,
            sampled: Mutex::default(),
            sampler_threads: Mutex::default(),
        });
        let (stop_sender, stop_receiver) = channel();
        let for_thread = Arc::clone(&shared);
        thread::Builder::new()
            .name("claim-metadata".into())
            .spawn(move || refresh_partition_leaders(&for_thread, &stop_receiver))?;
        Ok(Self { shared, _stop_sender: stop_sender })
    }

    /// Requests a new sample now, in the background.
    pub(crate) fn refresh(&self) {
        for thread in lock(&self.shared.sampler_threads).values() {
            // Fails only if the thread has ended.
            let _ = thread.wake_sender.send(());
        }
    }

    /// Advances the boundary to `boundary`, the last frame's, where that is higher: boundaries never go back.
    pub(crate) fn advance_to(&self, boundary: Boundary) {
        let mut sampled = lock(&self.shared.sampled);
        let mut merged = boundary;
        merged.advance_to(&sampled.boundary);
        sampled.boundary = merged;
    }

    /// The newest boundary.
    pub(crate) fn current(&self) -> Boundary {
        lock(&self.shared.sampled).boundary.clone()
    }

    /// Returns true if every partition's offset was requested at or after `since`.
    pub(crate) fn is_fresh(&self, since: Instant) -> bool {
        let sampled = lock(&self.shared.sampled);
        !sampled.requested_at.is_empty() && sampled.requested_at.values().all(|requested| *requested >= since)
    }

    /// Returns true if a broker has answered recently.
    pub(crate) fn is_kafka_answering(&self) -> bool {
        let sampled = lock(&self.shared.sampled);
        sampled.last_response.is_some_and(|at| at.elapsed() < RESPONSE_TIMEOUT)
    }

    /// Returns an error if a partition of `statusclaims` was lost or recreated.
    pub(crate) fn check_for_lost_log(&self) -> Result<(), LogLost> {
        let sampled = lock(&self.shared.sampled);
        let lost = sampled.below.iter().find(|(_, below)| below.last - below.first >= LOST_AFTER);
        lost.map_or(Ok(()), |(partition, below)| {
            Err(LogLost {
                partition: *partition,
                end: below.end,
                boundary: sampled.boundary.offset(*partition).unwrap_or(0),
            })
        })
    }
}

impl Shared {
    /// Returns true if all partition leaders have answered recently.
    fn are_all_answering(&self) -> bool {
        lock(&self.sampled).requested_at.values().all(|requested| requested.elapsed() < 2 * REFRESH_INTERVAL)
    }
}

/// Fetches the partition leaders from time to time, and keeps one sampler thread running for each.
fn refresh_partition_leaders(shared: &Arc<Shared>, stop_receiver: &Receiver<()>) {
    let mut open_transactions = OpenTransactions::default();
    loop {
        let mut interval = METADATA_RETRY_INTERVAL;
        match shared.ends.partitions_by_leader(FETCH_TIMEOUT) {
            Ok(by_leader) => {
                let with_leader = by_leader.iter().filter(|(leader, _)| **leader >= 0);
                let partitions: Vec<i32> = with_leader.flat_map(|(_, partitions)| partitions).copied().collect();
                assign(shared, by_leader);
                if !partitions.is_empty() {
                    // With a slow broker it would keep this thread from the next leader.
                    if shared.are_all_answering() {
                        open_transactions.check(shared, &partitions);
                    }
                    interval = METADATA_INTERVAL;
                }
            }
            Err(error) => tracing::warn!(%error, "cannot fetch the partition leaders of statusclaims"),
        }
        if stop_receiver.recv_timeout(interval) == Err(RecvTimeoutError::Disconnected) {
            lock(&shared.sampler_threads).clear();
            return;
        }
    }
}

/// The partitions in which a producer has a transaction open. No program of BACKBEAT writes claims in transactions.
#[derive(Debug, Default)]
struct OpenTransactions {
    /// Those of the last check.
    last: BTreeSet<i32>,
    /// Those of the last check and of the one before.
    lasting: BTreeSet<i32>,
}

impl OpenTransactions {
    fn check(&mut self, shared: &Shared, partitions: &[i32]) {
        // In this order: without a transaction the last stable offset is at or above an earlier high watermark.
        let high_watermarks = shared.high_watermarks.fetch(partitions, FETCH_TIMEOUT);
        let stable: BTreeMap<i32, i64> = shared.ends.fetch(partitions, FETCH_TIMEOUT).into_iter().collect();
        let is_open = |(partition, high): &(i32, i64)| stable.get(partition).is_some_and(|stable| stable < high);
        let open = high_watermarks.into_iter().filter(is_open).map(|(partition, _)| partition).collect();
        for partition in self.record(open) {
            TransactionOpen { partition, last_stable_offset: stable.get(&partition).copied() }.emit();
        }
        shared.metrics.set_open_transactions(self.lasting.len());
    }

    /// Records the partitions that a check found, and returns those in which a transaction is found to last.
    fn record(&mut self, open: BTreeSet<i32>) -> Vec<i32> {
        let lasting = &open & &self.last;
        let new = lasting.difference(&self.lasting).copied().collect();
        (self.last, self.lasting) = (open, lasting);
        new
    }
}

fn assign(shared: &Arc<Shared>, by_leader: BTreeMap<i32, Vec<i32>>) {
    // Partitions without a leader are entered, too, so that the boundary does not count as fresh.
    let long_ago = Instant::now().checked_sub(METADATA_INTERVAL).unwrap_or_else(Instant::now);
    for partition in by_leader.values().flatten() {
        lock(&shared.sampled).requested_at.entry(*partition).or_insert(long_ago);
    }
    let mut sampler_threads = lock(&shared.sampler_threads);
    sampler_threads.retain(|leader, _| by_leader.contains_key(leader));
    for (leader, partitions) in by_leader.into_iter().filter(|(leader, _)| *leader >= 0) {
        if let Some(known) = sampler_threads.get(&leader) {
            *lock(&known.partitions) = partitions;
            continue;
        }
        let (wake_sender, wake_receiver) = channel();
        let partitions = Arc::new(Mutex::new(partitions));
        let (for_thread, its_partitions) = (Arc::clone(shared), Arc::clone(&partitions));
        match thread::Builder::new()
            .name("claim-ends".into())
            .spawn(move || sample_partitions(&for_thread, &its_partitions, &wake_receiver))
        {
            Ok(_) => drop(sampler_threads.insert(leader, SamplerThread { wake_sender, partitions })),
            Err(error) => {
                tracing::warn!(%error, leader, "cannot start a thread to sample the partitions of this leader");
            }
        }
    }
}

/// Samples the partitions of one partition leader until its [`SamplerThread`] is dropped.
fn sample_partitions(shared: &Shared, partitions: &Mutex<Vec<i32>>, wake_receiver: &Receiver<()>) {
    loop {
        let requested = Instant::now();
        // Copied, because no lock may be held while the broker is asked: it would block the conductor.
        let partitions = lock(partitions).clone();
        let ends = shared.ends.fetch(&partitions, FETCH_TIMEOUT);
        record(&mut lock(&shared.sampled), &ends, requested);
        // Random, so that nodes which started together do not send their requests together.
        let pause = REFRESH_INTERVAL.mul_f64(rand::rng().random_range(0.8..1.0));
        match wake_receiver.recv_timeout(pause) {
            // Several requests at once are answered by one sample.
            Ok(()) => while wake_receiver.try_recv().is_ok() {},
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn record(sampled: &mut Sampled, ends: &[(i32, i64)], requested: Instant) {
    for (partition, end) in ends {
        if sampled.boundary.offset(*partition).is_some_and(|boundary| *end < boundary) {
            let below = sampled.below.entry(*partition).or_insert(BelowBoundary {
                end: *end,
                first: requested,
                last: requested,
            });
            (below.end, below.last) = (*end, requested);
        } else {
            sampled.below.remove(partition);
        }
        sampled.boundary.advance(*partition, *end);
        sampled.requested_at.insert(*partition, requested);
        sampled.last_response = Some(Instant::now());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transaction_that_two_checks_find_lasts_until_one_does_not() {
        let mut transactions = OpenTransactions::default();
        let mut record = |open: &[i32]| {
            let new = transactions.record(open.iter().copied().collect());
            (new, transactions.lasting.len())
        };
        assert_eq!(record(&[1, 2]), (vec![], 0));
        assert_eq!(record(&[2, 3]), (vec![2], 1));
        assert_eq!(record(&[2, 3]), (vec![3], 2));
        assert_eq!(record(&[]), (vec![], 0));
        assert_eq!(record(&[2]), (vec![], 0));
    }

    #[test]
    fn stale_response_without_a_later_one_is_not_a_lost_log() {
        let mut sampled = Sampled::default();
        let start = Instant::now();
        record(&mut sampled, &[(0, 10)], start);
        record(&mut sampled, &[(0, 7)], start + Duration::from_secs(1));
        let below = sampled.below.into_values().next().expect("an offset below the boundary");
        assert!(below.last - below.first < LOST_AFTER);
    }

    #[test]
    fn offsets_below_the_boundary_for_30_s_are_a_lost_log_until_a_newer_offset_clears_them() {
        let mut sampled = Sampled::default();
        let start = Instant::now();
        record(&mut sampled, &[(0, 10)], start);
        for second in 1..=31 {
            record(&mut sampled, &[(0, 7)], start + Duration::from_secs(second));
        }
        assert_eq!(sampled.boundary.offsets(), [10], "a boundary never goes back");
        assert!(sampled.below.values().all(|below| below.last - below.first >= LOST_AFTER));
        record(&mut sampled, &[(0, 10)], start + Duration::from_secs(32));
        assert!(sampled.below.is_empty());
    }
}
