//! Keeps the boundary fresh in the background, so that drawing it costs a beat no jitter.
//!
//! One thread per broker that leads partitions of `statusclaims`: a slow broker costs only its own
//! partitions their freshness.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use backbeat_broker::ClaimEnds;
use rand::Rng;

use crate::core::Boundary;

const QUERY_TIMEOUT: Duration = Duration::from_secs(2);
/// At least this often, whatever the tempo.
const REFRESH_EVERY: Duration = Duration::from_secs(1);
/// Added partitions and moved leaders are seen within this.
const METADATA_EVERY: Duration = Duration::from_secs(5);
/// As long as it is not known who leads, it is asked more often.
const METADATA_RETRY: Duration = Duration::from_millis(200);
/// Kafka that has not answered for this long is away.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);
/// A log end that was below the boundary for this long is no stale answer: the topic was lost or made anew.
const LOST_AFTER: Duration = Duration::from_secs(30);

/// The boundary as it was last sampled.
#[derive(Debug, Default)]
struct Sampled {
    boundary: Boundary,
    /// When each partition's newest answer was asked for.
    asked: BTreeMap<i32, Instant>,
    below: BTreeMap<i32, Below>,
    /// When the newest answer of any broker came.
    answered: Option<Instant>,
}

/// A partition whose answers lie below its boundary.
#[derive(Debug, Clone, Copy)]
struct Below {
    end: i64,
    first: Instant,
    last: Instant,
}

/// A partition of `statusclaims` that ends before offsets it once had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "statusclaims-{partition} ends at offset {end}, below the boundary {boundary} already sampled, for over 30 s: \
     the topic was lost or made anew, and its claims no longer match the beats"
)]
pub(crate) struct LogLost {
    partition: i32,
    end: i64,
    boundary: i64,
}

/// The threads that draw boundaries. They end when this is dropped.
pub(crate) struct BoundarySampler {
    shared: Arc<Shared>,
    /// Closed to end the thread that looks after the others.
    _running: Sender<()>,
}

struct Shared {
    ends: ClaimEnds,
    sampled: Mutex<Sampled>,
    leaders: Mutex<BTreeMap<i32, PartitionLeader>>,
}

/// The thread that asks one broker; it ends when this is dropped.
struct PartitionLeader {
    wake: Sender<()>,
    partitions: Arc<Mutex<Vec<i32>>>,
}

impl BoundarySampler {
    pub(crate) fn start(ends: ClaimEnds) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { ends, sampled: Mutex::default(), leaders: Mutex::default() });
        let (running, ended) = channel();
        let threads = Arc::clone(&shared);
        thread::Builder::new().name("leaders".into()).spawn(move || follow_partition_leaders(&threads, &ended))?;
        Ok(Self { shared, _running: running })
    }

    /// Draws the boundary anew, now, in the background.
    pub(crate) fn refresh(&self) {
        for leader in lock(&self.shared.leaders).values() {
            // A thread that has ended is started again by the one that looks after it.
            let _ = leader.wake.send(());
        }
    }

    /// Never below `boundary`: the last frame's, behind which no boundary goes back.
    pub(crate) fn at_least(&self, boundary: Boundary) {
        let mut sampled = lock(&self.shared.sampled);
        let mut merged = boundary;
        merged.advance_to(&sampled.boundary);
        sampled.boundary = merged;
    }

    /// The boundary.
    pub(crate) fn current(&self) -> Boundary {
        lock(&self.shared.sampled).boundary.clone()
    }

    /// Whether every partition's end was asked for since `since`.
    pub(crate) fn is_fresh(&self, since: Instant) -> bool {
        let sampled = lock(&self.shared.sampled);
        !sampled.asked.is_empty() && sampled.asked.values().all(|asked| *asked >= since)
    }

    /// Whether Kafka has answered of late.
    pub(crate) fn is_kafka_answering(&self) -> bool {
        let sampled = lock(&self.shared.sampled);
        sampled.answered.is_some_and(|at| at.elapsed() < ANSWERED_WITHIN)
    }

    /// Whether claims were lost under us.
    pub(crate) fn check(&self) -> Result<(), LogLost> {
        let sampled = lock(&self.shared.sampled);
        let lost = sampled.below.iter().find(|(_, below)| below.last - below.first >= LOST_AFTER);
        lost.map_or(Ok(()), |(partition, below)| {
            Err(LogLost {
                partition: *partition,
                end: below.end,
                boundary: sampled.boundary.end(*partition).unwrap_or(0),
            })
        })
    }
}

/// Keeps a thread for each broker that leads partitions.
fn follow_partition_leaders(shared: &Arc<Shared>, running: &Receiver<()>) {
    loop {
        let mut pause = METADATA_RETRY;
        match shared.ends.partitions(QUERY_TIMEOUT) {
            Ok(by_leader) => {
                let known = by_leader.keys().any(|leader| *leader >= 0);
                assign(shared, by_leader);
                if known {
                    pause = METADATA_EVERY;
                }
            }
            Err(error) => tracing::warn!(%error, "the leaders of statusclaims are not to be had now"),
        }
        if running.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
            lock(&shared.leaders).clear();
            return;
        }
    }
}

fn assign(shared: &Arc<Shared>, by_leader: BTreeMap<i32, Vec<i32>>) {
    // Every partition counts, led or not: one without a leader is not fresh.
    let epoch = Instant::now().checked_sub(METADATA_EVERY).unwrap_or_else(Instant::now);
    for partition in by_leader.values().flatten() {
        lock(&shared.sampled).asked.entry(*partition).or_insert(epoch);
    }
    let mut leaders = lock(&shared.leaders);
    leaders.retain(|leader, _| by_leader.contains_key(leader));
    for (leader, partitions) in by_leader.into_iter().filter(|(leader, _)| *leader >= 0) {
        if let Some(known) = leaders.get(&leader) {
            *lock(&known.partitions) = partitions;
            continue;
        }
        let (wake, woken) = channel();
        let partitions = Arc::new(Mutex::new(partitions));
        let (ours, theirs) = (Arc::clone(shared), Arc::clone(&partitions));
        match thread::Builder::new().name("boundaries".into()).spawn(move || keep_fresh(&ours, &theirs, &woken)) {
            Ok(_) => drop(leaders.insert(leader, PartitionLeader { wake, partitions })),
            Err(error) => tracing::warn!(%error, leader, "no thread to ask this broker"),
        }
    }
}

/// Asks one broker until its leader entry is dropped.
fn keep_fresh(shared: &Shared, partitions: &Mutex<Vec<i32>>, woken: &Receiver<()>) {
    loop {
        let asked = Instant::now();
        // Not held while the broker is asked: the beating thread comes by here.
        let ours = lock(partitions).clone();
        let answers = shared.ends.read(&ours, QUERY_TIMEOUT);
        note(&mut lock(&shared.sampled), &answers, asked);
        // Spread out, so that nodes which started together do not ask together.
        let pause = REFRESH_EVERY.mul_f64(rand::rng().random_range(0.8..1.0));
        match woken.recv_timeout(pause) {
            Ok(()) => while woken.try_recv().is_ok() {},
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn note(sampled: &mut Sampled, answers: &[(i32, i64)], asked: Instant) {
    for (partition, end) in answers {
        if sampled.boundary.end(*partition).is_some_and(|boundary| *end < boundary) {
            let below = sampled.below.entry(*partition).or_insert(Below { end: *end, first: asked, last: asked });
            (below.end, below.last) = (*end, asked);
        } else {
            sampled.below.remove(partition);
        }
        sampled.boundary.advance(*partition, *end);
        sampled.asked.insert(*partition, asked);
        sampled.answered = Some(Instant::now());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boundaries(sampled: Sampled) -> Option<Below> {
        sampled.below.into_values().next()
    }

    #[test]
    fn one_stale_answer_is_not_a_lost_log_however_long_nobody_answers_after_it() {
        let mut sampled = Sampled::default();
        let start = Instant::now();
        note(&mut sampled, &[(0, 10)], start);
        note(&mut sampled, &[(0, 7)], start + Duration::from_secs(1));
        let below = boundaries(sampled).expect("it was below");
        assert!(below.last - below.first < LOST_AFTER);
    }

    #[test]
    fn answers_below_the_line_for_30_s_are_and_a_good_one_clears_them() {
        let mut sampled = Sampled::default();
        let start = Instant::now();
        note(&mut sampled, &[(0, 10)], start);
        for second in 1..=31 {
            note(&mut sampled, &[(0, 7)], start + Duration::from_secs(second));
        }
        assert_eq!(sampled.boundary.offsets(), [10], "a boundary never goes back");
        assert!(sampled.below.values().all(|below| below.last - below.first >= LOST_AFTER));
        note(&mut sampled, &[(0, 10)], start + Duration::from_secs(32));
        assert!(sampled.below.is_empty());
    }
}
