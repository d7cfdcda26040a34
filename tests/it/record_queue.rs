//! `RecordQueue`, which takes a consumer's records in batches: each record comes once and in order, through rebalances,
//! pauses and seeks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backbeat_broker::{BatchItem, Deliveries, GroupProtocol, ProducerRecord, RecordQueue, Sender, TopicName};
use backbeat_schemas::{Header, StatusClaim, WriterSchema, testing, wire};
use backbeat_tests::{Cluster, KafkaProxy, ResponseError, stack, wait_until};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, ClientContext, Offset, TopicPartitionList};

const LIMIT: Duration = Duration::from_mins(2);
const TIMEOUT: Duration = Duration::from_secs(10);
const PARTITIONS: i32 = 6;
const RECORDS: i64 = 60_000;
const MAX_BATCH: usize = 100;

/// The state of one member of a group, for the callbacks, too.
#[derive(Default)]
struct Group {
    topic: String,
    /// By partition, the offset of the next record.
    positions: Mutex<BTreeMap<i32, i64>>,
    /// Partitions that were assigned and have not been sought.
    assigned: Mutex<Vec<i32>>,
}

impl ClientContext for Group {}

impl ConsumerContext for Group {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Revoke(revoked) = rebalance else { return };
        let mut list = TopicPartitionList::new();
        for partition in partitions(revoked) {
            lock(&self.assigned).retain(|assigned| *assigned != partition);
            if let Some(position) = lock(&self.positions).remove(&partition) {
                list.add_partition_offset(&self.topic, partition, Offset::Offset(position)).expect("a valid offset");
            }
        }
        // A member that its group has forgotten cannot commit: the next owner starts further back.
        if list.count() > 0 {
            drop(consumer.commit(&list, CommitMode::Sync));
        }
    }

    fn post_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Assign(list) = rebalance {
            lock(&self.assigned).extend(partitions(list));
        }
    }
}

fn partitions(list: &TopicPartitionList) -> Vec<i32> {
    list.elements().iter().map(rdkafka::topic_partition_list::TopicPartitionListElem::partition).collect()
}

/// A member that is dropped by a panic still leaves its group, which needs the locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Member {
    consumer: Arc<BaseConsumer<Group>>,
    queue: RecordQueue<Group>,
    paused: bool,
}

impl Member {
    fn join(cluster: &Cluster) -> Self {
        let topic = cluster.broker().topics().name(TopicName::StatusClaims);
        let settings = cluster.broker().group_member(GroupProtocol::Classic, Duration::from_secs(6));
        let context = Group { topic: topic.clone(), ..Group::default() };
        let consumer: Arc<BaseConsumer<Group>> = Arc::new(settings.create_with_context(context).expect("a consumer"));
        consumer.subscribe(&[&topic]).expect("a subscription");
        Self { queue: RecordQueue::new(&consumer, MAX_BATCH), consumer, paused: false }
    }

    fn group(&self) -> &Group {
        self.consumer.context()
    }

    /// Serves the group, starts new partitions, takes a batch, and records in `ends` how far each partition was read.
    /// Panics if a record is not the one that must come next. Returns the partitions that could not be read.
    fn turn(&mut self, ends: &mut BTreeMap<i32, i64>) -> Vec<i32> {
        // What the consumer's own queue has was fetched before the seek.
        while self.consumer.poll(Duration::ZERO).is_some() {}
        let assigned = std::mem::take(&mut *lock(&self.group().assigned));
        for partition in assigned {
            let mut list = TopicPartitionList::new();
            list.add_partition(&self.group().topic, partition);
            let committed = self.consumer.committed_offsets(list, TIMEOUT).expect("Kafka answers");
            let committed = match committed.elements()[0].offset() {
                Offset::Offset(offset) => offset,
                _ => 0,
            };
            self.seek(partition, committed);
        }
        let mut failed = Vec::new();
        let batch = self.queue.take(Duration::from_millis(1));
        let mut positions = lock(&self.consumer.context().positions);
        for item in batch.iter() {
            match item {
                BatchItem::Record(record) => {
                    let position = positions.get_mut(&record.partition).expect("a partition of this member");
                    assert_eq!(record.offset, *position, "partition {}", record.partition);
                    assert_eq!(record.key, record.value, "{record:?}");
                    assert!(record.key.is_some_and(|key| key.starts_with(b"record ")), "{record:?}");
                    *position += 1;
                    let end = ends.entry(record.partition).or_default();
                    *end = record.offset.max(*end);
                }
                BatchItem::Failed { partition, .. } => failed.push(partition),
                BatchItem::Unreadable { .. } => panic!("{item:?}"),
            }
        }
        failed
    }

    /// Seeks, and takes the partition over; tries again in the next turn if librdkafka has not started it yet.
    fn seek(&self, partition: i32, offset: i64) {
        let group = self.group();
        if self.consumer.seek(&group.topic, partition, Offset::Offset(offset), TIMEOUT).is_err() {
            return lock(&group.assigned).push(partition);
        }
        self.queue.take_over(&group.topic, partition).expect("the partition is assigned");
        lock(&group.positions).insert(partition, offset);
    }

    /// Leaves the group with records in the queue.
    fn leave(self) {
        self.consumer.unsubscribe();
        wait_until("the revocation", LIMIT, || {
            self.consumer.poll(Duration::ZERO).is_none()
                && self.consumer.assignment().is_ok_and(|list| list.count() == 0)
        });
    }

    /// Pauses all partitions, or resumes them.
    fn toggle_pause(&mut self) {
        let assignment = self.consumer.assignment().expect("an assignment");
        let done = if self.paused { self.consumer.resume(&assignment) } else { self.consumer.pause(&assignment) };
        done.expect("librdkafka knows the partitions");
        self.paused = !self.paused;
    }

    /// Seeks one partition back by fewer than 300 records.
    fn seek_back(&self, rng: &mut ChaCha8Rng) {
        let positions: Vec<(i32, i64)> =
            lock(&self.group().positions).iter().map(|(id, position)| (*id, *position)).collect();
        if !positions.is_empty() {
            let (partition, position) = positions[rng.random_range(0..positions.len())];
            self.seek(partition, (position - rng.random_range(0..300)).max(0));
        }
    }
}

/// The number of records read, by the last offset read of each partition.
fn read(ends: &BTreeMap<i32, i64>) -> i64 {
    ends.values().map(|last| last + 1).sum()
}

/// A producer of numbered records.
struct Records {
    sender: Sender,
    topic: String,
    deliveries: Arc<Deliveries>,
    sent: i64,
}

impl Records {
    fn new(cluster: &Cluster) -> Self {
        Self {
            sender: Sender::new(cluster.broker(), TopicName::StatusClaims, None).expect("a producer"),
            topic: cluster.broker().topics().name(TopicName::StatusClaims),
            deliveries: Arc::default(),
            sent: 0,
        }
    }

    fn send(&mut self, count: i64) {
        for _ in 0..count {
            let text = format!("record {}", self.sent);
            let record = ProducerRecord {
                topic: &self.topic,
                key: Some(text.as_bytes()),
                value: text.as_bytes(),
                ..Default::default()
            };
            self.sender.send(record, &self.deliveries).expect("a place in the queue");
            self.sent += 1;
        }
    }
}

#[test]
fn each_record_comes_once_and_in_order_through_rebalances_pauses_and_seeks() {
    let cluster = Cluster::new(PARTITIONS);
    let mut records = Records::new(&cluster);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut members = vec![Member::join(&cluster)];
    let mut ends = BTreeMap::new();
    let mut joined = 1;
    wait_until("all records", LIMIT, || {
        for _ in 0..20 {
            // Members reach the ends of partitions again and again.
            if records.sent - read(&ends) < 300 {
                records.send((RECORDS - records.sent).min(rng.random_range(0..300)));
            }
            for member in &mut members {
                assert_eq!(member.turn(&mut ends), [0; 0]);
                match rng.random_range(0..100) {
                    0..5 => member.toggle_pause(),
                    5..8 => member.seek_back(&mut rng),
                    _ => {}
                }
            }
        }
        // Members join after each eighth of the records, and from the fourth on one leaves each time.
        if read(&ends) > joined * RECORDS / 8 {
            joined += 1;
            members.push(Member::join(&cluster));
            if members.len() > 3 {
                members.remove(0).leave();
            }
        }
        read(&ends) == RECORDS
    });
    assert!(joined > 4, "members joined and left while records were read");
}

/// A batch, and the queue that it is from, keep the client alive.
#[test]
fn records_can_be_read_after_the_consumer_was_dropped() {
    let cluster = Cluster::new(PARTITIONS);
    let mut records = Records::new(&cluster);
    records.send(RECORDS);
    let mut member = Member::join(&cluster);
    let mut ends = BTreeMap::new();
    wait_until("the first records", LIMIT, || {
        assert_eq!(member.turn(&mut ends), [0; 0]);
        !ends.is_empty()
    });
    let Member { consumer, mut queue, .. } = member;
    let batch = queue.take(TIMEOUT);
    assert!(!batch.is_empty());
    drop(consumer);
    for item in batch.iter() {
        let BatchItem::Record(record) = item else { panic!("{item:?}") };
        assert_eq!(record.key, record.value);
    }
}

/// librdkafka takes the error for a record: without the seek, the pause would lose one.
#[test]
fn partition_that_cannot_be_read_is_reported_and_continues_after_a_seek() {
    let proxy = KafkaProxy::start(&stack().bootstrap_servers());
    let cluster = Cluster::behind(&proxy, PARTITIONS);
    let mut records = Records::new(&cluster);
    let mut member = Member::join(&cluster);
    let mut ends = BTreeMap::new();
    for reason in [ResponseError::UnknownServerError, ResponseError::TopicAuthorizationFailed] {
        records.send(1_000);
        wait_until("all records", LIMIT, || {
            assert_eq!(member.turn(&mut ends), [0; 0]);
            read(&ends) == records.sent
        });
        proxy.refuse_fetches(1, reason);
        records.send(1_000);
        let mut failed = Vec::new();
        wait_until("all records again", LIMIT, || {
            for partition in member.turn(&mut ends) {
                failed.push(partition);
                let position = lock(&member.group().positions)[&partition];
                member.seek(partition, position);
                member.toggle_pause();
                member.toggle_pause();
            }
            read(&ends) == records.sent
        });
        assert_eq!(proxy.fetches_to_refuse(), 0, "the fault was caused");
        assert_eq!(failed.len(), 1, "{failed:?}");
    }
}

/// The bytes of a record are in librdkafka's memory, of batches in each codec.
#[test]
fn claims_of_any_bytes_are_the_same_in_a_batch() {
    let cluster = Cluster::new(CODECS.len() as i32);
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let sent = (0..).zip(CODECS).map(|(partition, codec)| send_corrupt_claims(&cluster, partition, codec, &mut rng));
    let sent: Vec<Vec<CorruptClaim>> = sent.collect();
    let topic = cluster.broker().topics().name(TopicName::StatusClaims);
    let settings = cluster.broker().group_member(GroupProtocol::Classic, Duration::from_secs(6));
    let consumer: Arc<BaseConsumer> = Arc::new(settings.create().expect("a consumer"));
    let mut queue = RecordQueue::new(&consumer, MAX_BATCH);
    let mut assignment = TopicPartitionList::new();
    for partition in 0..CODECS.len() as i32 {
        assignment.add_partition_offset(&topic, partition, Offset::Offset(0)).expect("a valid partition");
    }
    consumer.assign(&assignment).expect("the partitions are assigned");
    let start = |queue: &RecordQueue<_>, partition| {
        let seek = || consumer.seek(&topic, partition, Offset::Offset(0), TIMEOUT).is_ok();
        wait_until("the partition to start", LIMIT, seek);
        queue.take_over(&topic, partition).expect("the partition is assigned");
    };
    let mut next = CODECS.map(|_| 0);
    let (mut valid, mut invalid) = (0, 0);
    wait_until("all records", LIMIT, || {
        // librdkafka has started this partition, with the consumer's own queue.
        if let Some(polled) = consumer.poll(Duration::ZERO) {
            let partition = polled.expect("Kafka answers").partition();
            next[partition as usize] = 0;
            start(&queue, partition);
        }
        for item in queue.take(Duration::from_millis(10)).iter() {
            let BatchItem::Record(record) = item else { panic!("{item:?}") };
            let partition = record.partition as usize;
            let expected = &sent[partition][record.offset as usize];
            assert_eq!(record.offset as usize, next[partition]);
            next[partition] += 1;
            assert_eq!((record.key, record.value), (expected.key.as_deref(), expected.value.as_deref()));
            let [decoded, again] = [record.value, expected.value.as_deref()].map(decode);
            assert_eq!(decoded, again);
            *(if decoded.is_ok() { &mut valid } else { &mut invalid }) += 1;
        }
        next.iter().zip(&sent).all(|(next, sent)| *next == sent.len())
    });
    assert!(valid > 1_000 && invalid > 1_000, "{valid} valid claims, {invalid} invalid");
}

const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];

/// A record whose bytes may be anything.
struct CorruptClaim {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
}

/// Sends claims with some of their bytes changed to a partition, compressed.
fn send_corrupt_claims(cluster: &Cluster, partition: i32, codec: &str, rng: &mut ChaCha8Rng) -> Vec<CorruptClaim> {
    let topic = cluster.broker().topics().name(TopicName::StatusClaims);
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", cluster.broker().bootstrap_servers())
        .set("compression.codec", codec)
        // Kafka refuses larger batches of claims.
        .set("message.max.bytes", "65536")
        .set("enable.idempotence", "true")
        .create()
        .expect("a producer");
    let sent: Vec<CorruptClaim> = (0..3_000).map(|number| corrupt_claim(number, rng)).collect();
    for claim in &sent {
        let mut record = BaseRecord::to(&topic).partition(partition);
        record.key = claim.key.as_ref();
        record.payload = claim.value.as_ref();
        producer.send(record).map_err(|(error, _)| error).expect("a place in the queue");
    }
    producer.flush(LIMIT).expect("Kafka acknowledges the records");
    sent
}

fn corrupt_claim(number: u32, rng: &mut ChaCha8Rng) -> CorruptClaim {
    let claim = testing::claim(&format!("agent-{number}"), i64::from(number));
    let key = (!rng.random_ratio(1, 20)).then(|| claim.agent_id.clone().into_bytes());
    if rng.random_ratio(1, 50) {
        return CorruptClaim { key, value: None };
    }
    let mut value = wire(1, &claim);
    for _ in 0..rng.random_range(0..3) {
        let at = rng.random_range(0..value.len());
        match rng.random_range(0..3) {
            0 => value[at] = rng.random(),
            1 => value.insert(at, rng.random()),
            _ => value.truncate(at + 1),
        }
    }
    if rng.random_ratio(1, 50) {
        value.clear();
    }
    CorruptClaim { key, value: Some(value) }
}

/// Decodes as reverb does: the claim or the error, as text.
fn decode(value: Option<&[u8]>) -> Result<String, String> {
    let (_, body) = Header::split(value.ok_or("no value")?).map_err(|error| error.to_string())?;
    let claim = WriterSchema::<StatusClaim>::own().decode_borrowed(body).map_err(|error| error.to_string())?;
    Ok(format!("{claim:?}"))
}
