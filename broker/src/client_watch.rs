//! Detects Kafka clients that have permanently lost all their brokers, so that their owners replace them.
//!
//! librdkafka (2.12 to 2.15 at least: its issue 5301) may stop connecting to any broker after a metadata response
//! without brokers, which a broker that hung for longer than its session sends. Such a client reports errors or nothing
//! at all until its process ends, while other clients of the same brokers work. So every long-lived client is probed at
//! intervals with a query for the end of a partition. A client whose probes fail for [`LOST_AFTER`], while those of
//! a new client with the same settings succeed, is lost. If Kafka itself is unavailable, both fail.

use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use rand::Rng;
use rdkafka::ClientContext;
use rdkafka::client::Client;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaResult;

use crate::client_log::count_replaced_client;
use crate::{Broker, Reader};

/// The interval of probes once one has failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// The time for which a client's probes fail, while those of new clients succeed, before the client counts as lost.
/// Clients reconnect within a second (`reconnect.backoff.max.ms`), so a client that is not lost has had several attempts
/// by then.
const LOST_AFTER: Duration = Duration::from_secs(2);
/// The longest pause between two new clients while Kafka is unavailable.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// The limit of replacements in a process. Beyond it, replacing clients does not help.
const MAX_REPLACEMENTS_PER_MINUTE: usize = 30;
const PERIOD: Duration = Duration::from_mins(1);

/// The state of one watched client, which the watch's thread sets and the client's owner reads.
#[derive(Debug, Clone, Default)]
pub struct ClientWatch {
    lost: Arc<AtomicBool>,
}

impl ClientWatch {
    /// Starts to watch `consumer`, by queries for partition 0 of `topic`, until it is dropped.
    pub fn consumer<C: ConsumerContext + 'static>(
        broker: &Broker,
        topic: &str,
        consumer: &Arc<BaseConsumer<C>>,
    ) -> Self {
        Self::start(broker, topic, consumer, |consumer, topic| probe(consumer.client(), topic), || ())
    }

    /// Starts to watch `client`, by calls of `probe`, and calls `on_lost` if it is lost.
    pub(crate) fn start<T: Send + Sync + 'static>(
        broker: &Broker,
        topic: &str,
        client: &Arc<T>,
        probe: fn(&T, &str) -> bool,
        on_lost: impl FnOnce() + Send + 'static,
    ) -> Self {
        let watch = Self::default();
        let (client, lost) = (Arc::downgrade(client), Arc::clone(&watch.lost));
        let (broker, topic) = (broker.clone(), topic.to_owned());
        let started = thread::Builder::new().name("kafka-watch".into()).spawn(move || {
            if wait_until_lost(&broker, &topic, &client, probe) {
                lost.store(true, Ordering::Release);
                on_lost();
            }
        });
        if let Err(error) = started {
            tracing::warn!(%error, "cannot start the thread that watches a kafka client; it is not replaced if it is lost");
        }
        watch
    }

    /// Returns true if the client has lost all its brokers: it never works again, and its owner should replace it.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }
}

/// Probes `client`: returns true if it gets the end of partition 0 of `topic`.
pub(crate) fn probe<C: ClientContext>(client: &Client<C>, topic: &str) -> bool {
    client.fetch_watermarks(topic, 0, PROBE_TIMEOUT).is_ok()
}

/// Returns true once the client is lost, false once it is dropped.
fn wait_until_lost<T>(broker: &Broker, topic: &str, client: &Weak<T>, probe: fn(&T, &str) -> bool) -> bool {
    let mut pause = broker.probe_interval();
    // The instant since which probes of new clients have succeeded and those of this one have failed.
    let mut failing_since = None::<Instant>;
    loop {
        // Clients of many processes that lost their brokers together are not replaced together.
        thread::sleep(pause.mul_f64(rand::rng().random_range(0.7..1.0)));
        let Some(watched) = client.upgrade() else { return false };
        if probe(&watched, topic) {
            (pause, failing_since) = (broker.probe_interval(), None);
            continue;
        }
        drop(watched);
        if !probe_new_client(broker, topic) {
            (pause, failing_since) = ((pause.max(RETRY_INTERVAL) * 2).min(MAX_PAUSE), None);
            continue;
        }
        pause = RETRY_INTERVAL;
        if failing_since.get_or_insert_with(Instant::now).elapsed() >= LOST_AFTER && may_replace() {
            tracing::warn!(
                topic,
                "a kafka client has lost its brokers, which answer a new client: replacing the client"
            );
            return true;
        }
    }
}

fn probe_new_client(broker: &Broker, topic: &str) -> bool {
    let Ok(client) = broker.probe() else { return false };
    // The new client has to connect first.
    client.fetch_watermarks(topic, 0, PROBE_TIMEOUT * 2).is_ok()
}

/// Locks this process's replacements.
fn replacements() -> MutexGuard<'static, Replacements> {
    static REPLACEMENTS: Mutex<Replacements> = Mutex::new(Replacements { recent: VecDeque::new(), refused_at: None });
    REPLACEMENTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts a replacement, unless there were too many within a minute.
fn may_replace() -> bool {
    let allowed = replacements().allow(Instant::now());
    if allowed {
        count_replaced_client();
    } else {
        tracing::error!(limit = MAX_REPLACEMENTS_PER_MINUTE, "kafka clients are lost faster than they may be replaced");
    }
    allowed
}

/// Checks whether replacing lost clients helps.
///
/// # Errors
///
/// The reason, if a client was not replaced within the last minute because too many had been: then a restart of the
/// process may help.
pub fn check_clients() -> Result<(), String> {
    let is_limited = replacements().is_limited(Instant::now());
    let reason = || {
        format!(
            "kafka clients of this process are lost faster than they may be replaced, {MAX_REPLACEMENTS_PER_MINUTE} a minute"
        )
    };
    if is_limited { Err(reason()) } else { Ok(()) }
}

/// The replacements of clients in this process.
#[derive(Debug)]
struct Replacements {
    /// The instants of those within the last minute, at most as many as are allowed.
    recent: VecDeque<Instant>,
    /// The instant at which one was last refused.
    refused_at: Option<Instant>,
}

impl Replacements {
    fn allow(&mut self, now: Instant) -> bool {
        while self.recent.front().is_some_and(|at| now.duration_since(*at) > PERIOD) {
            self.recent.pop_front();
        }
        let allowed = self.recent.len() < MAX_REPLACEMENTS_PER_MINUTE;
        if allowed {
            self.recent.push_back(now);
        } else {
            self.refused_at = Some(now);
        }
        allowed
    }

    fn is_limited(&self, now: Instant) -> bool {
        self.refused_at.is_some_and(|at| now.duration_since(at) <= PERIOD)
    }
}

/// A reader that is watched, with the means to replace it.
pub struct WatchedReader {
    broker: Broker,
    topic: String,
    create: fn(&Broker) -> KafkaResult<Reader>,
    consumer: Arc<Reader>,
    watch: ClientWatch,
}

impl WatchedReader {
    /// Creates a reader of `topic` by a call of `create`.
    pub fn new(broker: &Broker, topic: &str, create: fn(&Broker) -> KafkaResult<Reader>) -> KafkaResult<Self> {
        let consumer = Arc::new(create(broker)?);
        let watch = ClientWatch::consumer(broker, topic, &consumer);
        Ok(Self { broker: broker.clone(), topic: topic.to_owned(), create, consumer, watch })
    }

    /// Replaces the reader if it is lost. Returns true if it was; the new reader has no assignment.
    pub fn replace_if_lost(&mut self) -> KafkaResult<bool> {
        let is_lost = self.watch.is_lost();
        if is_lost {
            *self = Self::new(&self.broker, &self.topic, self.create)?;
        }
        Ok(is_lost)
    }

    /// Returns the reader, to be used without a lock on this value.
    pub(crate) fn reader(&self) -> Arc<Reader> {
        Arc::clone(&self.consumer)
    }
}

/// librdkafka aborts the process if a partition is removed by the close while an earlier removal of it is under way: see
/// [`crate::assign`], which waits in the same way.
impl Drop for WatchedReader {
    fn drop(&mut self) {
        if let Err(error) = self.consumer.assignment() {
            tracing::debug!(%error, "cannot wait for the last change of the assignment");
        }
    }
}

impl Deref for WatchedReader {
    type Target = Reader;

    fn deref(&self) -> &Reader {
        &self.consumer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replacements_are_limited_until_a_minute_after_the_last_refusal() {
        let mut replacements = Replacements { recent: VecDeque::new(), refused_at: None };
        let start = Instant::now();
        let second = Duration::from_secs(1);
        assert!((0..30).all(|number| replacements.allow(start + second * number)));
        assert!(!replacements.is_limited(start + second * 30));
        assert!(!replacements.allow(start + second * 30));
        assert!(replacements.allow(start + second * 61), "the first one was more than a minute before");
        assert!(replacements.is_limited(start + second * 90));
        assert!(!replacements.is_limited(start + second * 91));
    }
}
