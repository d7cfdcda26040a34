//! A reader of a single-partition topic, outside any consumer group.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use backbeat_schemas::{DecodeError, Header, HeaderError, Record};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Handle;

use crate::client_watch::WatchedReader;
use crate::list_offsets::query_offsets;
use crate::{Broker, Lookup, Reader, Registry, SchemaCache, TopicName, assign, is_transient};

/// The topic's only partition.
const PARTITION: i32 = 0;
/// The timeout of a query for offsets.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// Offsets that a search reads in one go instead of searching on.
const READ_AT_ONCE: i64 = 256;
/// The timeout of one poll during a read.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);
/// The time without a record, and without the end of the topic, after which a read fails.
const READ_TIMEOUT: Duration = Duration::from_secs(15);
/// The pause before a schema that is still being fetched is looked up again.
const SCHEMA_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A reader of the committed records, of type `R`, of a single-partition topic. All its calls block. A Kafka client that
/// has lost its brokers is replaced at the position that it had.
pub struct LogReader<R> {
    consumer: WatchedReader,
    topic: String,
    /// The offset of the next record; `None` while it is paused.
    position: Option<i64>,
    schemas: SchemaCache<R>,
    /// A record whose schema is still being fetched.
    pending: Option<RawRecord>,
    /// The number of undecodable records skipped since the reader was created.
    skipped: u64,
}

/// A decoded record of the topic.
#[derive(Debug, Clone)]
pub struct Entry<R> {
    /// The record's offset.
    pub offset: i64,
    /// The record.
    pub record: R,
    /// The record's Avro body, without the wire format's header.
    pub body: Vec<u8>,
}

struct RawRecord {
    offset: i64,
    value: Vec<u8>,
}

/// The result of one poll.
enum Polled<R> {
    Entry(Entry<R>),
    /// The last stable offset, as of a fetch after the last seek.
    End,
    /// An undecodable record.
    Skipped,
    Nothing,
}

/// An error of reading a topic.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Kafka returned an error.
    #[error("cannot read {topic}: {source}")]
    Kafka {
        /// The topic.
        topic: String,
        /// Kafka's error.
        source: KafkaError,
    },
    /// No record arrived within 15 s: Kafka is unavailable, or the registry that has the next record's schema is.
    #[error("cannot read {topic}: no answer within 15 s from Kafka or from the schema registry")]
    TimedOut {
        /// The topic.
        topic: String,
    },
    /// The topic has records, but none that can be decoded with the registry's schemas.
    #[error(
        "{topic} has records, and none can be decoded: has the schema registry lost or renumbered its schemas? \
         docs/operations.md, \"Recovery\", says how to restore them"
    )]
    Undecodable {
        /// The topic.
        topic: String,
    },
}

impl<R: Record + 'static> LogReader<R> {
    /// Creates a reader of `topic`. It reads nothing before the first [`LogReader::seek`].
    pub fn new(broker: &Broker, registry: &Registry, runtime: &Handle, topic: TopicName) -> Result<Self, ReadError> {
        Self::with(broker, registry, runtime, topic, Broker::reader)
    }

    /// Creates a reader with low latency for random access: [`LogReader::last`], [`LogReader::first_where`] and
    /// [`LogReader::read`]. Following the end of the topic with it would poll Kafka needlessly often.
    pub fn for_random_access(
        broker: &Broker,
        registry: &Registry,
        runtime: &Handle,
        topic: TopicName,
    ) -> Result<Self, ReadError> {
        Self::with(broker, registry, runtime, topic, Broker::random_access_reader)
    }

    /// Creates a reader as [`LogReader::for_random_access`] does that also sees records of open and of aborted transactions, and
    /// whose end is the high watermark: for [`LogReader::read_open`].
    pub fn for_open_transactions(
        broker: &Broker,
        registry: &Registry,
        runtime: &Handle,
        topic: TopicName,
    ) -> Result<Self, ReadError> {
        Self::with(broker, registry, runtime, topic, Broker::uncommitted_reader)
    }

    fn with(
        broker: &Broker,
        registry: &Registry,
        runtime: &Handle,
        topic: TopicName,
        create: fn(&Broker) -> KafkaResult<Reader>,
    ) -> Result<Self, ReadError> {
        let topic = broker.topics().name(topic);
        let consumer = WatchedReader::new(broker, &topic, create)
            .map_err(|source| ReadError::Kafka { topic: topic.clone(), source })?;
        Ok(Self {
            consumer,
            topic,
            position: None,
            schemas: SchemaCache::new(registry.clone(), runtime.clone()),
            pending: None,
            skipped: 0,
        })
    }

    /// Pauses the reader: it fetches nothing until the next [`LogReader::seek`].
    pub fn pause(&mut self) -> Result<(), ReadError> {
        self.position = None;
        self.assign_position()
    }

    /// Sets the position to `offset`.
    pub fn seek(&mut self, offset: i64) -> Result<(), ReadError> {
        self.pending = None;
        self.position = Some(offset);
        // A new client is assigned the position, too.
        if self.replace_if_lost()? { Ok(()) } else { self.assign_position() }
    }

    /// Replaces the Kafka client if it is lost, and returns true if it was.
    fn replace_if_lost(&mut self) -> Result<bool, ReadError> {
        let is_replaced = self.consumer.replace_if_lost().map_err(|source| self.failed(source))?;
        if is_replaced {
            self.assign_position()?;
        }
        Ok(is_replaced)
    }

    fn assign_position(&self) -> Result<(), ReadError> {
        let mut assignment = TopicPartitionList::new();
        let added = self.position.map_or(Ok(()), |position| {
            assignment.add_partition_offset(&self.topic, PARTITION, Offset::Offset(position))
        });
        added.and_then(|()| assign(&self.consumer, &assignment)).map_err(|source| self.failed(source))
    }

    /// Returns the next record, or `None` if none arrives within `timeout`. Undecodable records are skipped, which
    /// the program logs as a warning.
    pub fn poll(&mut self, timeout: Duration) -> Result<Option<Entry<R>>, ReadError> {
        Ok(match self.poll_event(timeout)? {
            Polled::Entry(entry) => Some(entry),
            Polled::End | Polled::Skipped | Polled::Nothing => None,
        })
    }

    /// Fetches the log start offset: the first offset that is retained.
    pub fn log_start(&mut self) -> Result<i64, ReadError> {
        self.end_of_log(Offset::Beginning)
    }

    /// Fetches the end offset of the committed records: the last stable offset.
    pub fn end_offset(&mut self) -> Result<i64, ReadError> {
        self.end_of_log(Offset::End)
    }

    fn end_of_log(&mut self, which: Offset) -> Result<i64, ReadError> {
        let offset = self.offset_for(which)?;
        // Without an error and without an offset, the answer is that of a request that was sent again.
        offset.ok_or_else(|| self.failed(KafkaError::OffsetFetch(RDKafkaErrorCode::OffsetNotAvailable)))
    }

    /// Fetches the offset of the first record whose timestamp is `millis` (milliseconds since the Unix epoch) or later;
    /// the last stable offset if there is none.
    pub fn offset_at(&mut self, millis: i64) -> Result<i64, ReadError> {
        match self.offset_for(Offset::Offset(millis))? {
            Some(offset) => Ok(offset),
            None => self.end_offset(),
        }
    }

    fn offset_for(&mut self, query: Offset) -> Result<Option<i64>, ReadError> {
        self.replace_if_lost()?;
        let mut list = TopicPartitionList::new();
        let added = list.add_partition_offset(&self.topic, PARTITION, query);
        let answer = added.and_then(|()| query_offsets(&self.consumer, &list, QUERY_TIMEOUT));
        let answer = answer.map_err(|source| self.failed(source))?;
        let Some(found) = answer.find_partition(&self.topic, PARTITION) else { return Ok(None) };
        found.error().map_err(|source| self.failed(source))?;
        Ok(match found.offset() {
            Offset::Offset(offset) if offset >= 0 => Some(offset),
            _ => None,
        })
    }

    /// Returns the last record of the topic, or `None` if it has none. Searches backwards in steps that double, since the
    /// topic may end with any number of aborted records and control records.
    pub fn last(&mut self) -> Result<Option<Entry<R>>, ReadError> {
        self.last_where(|_| true)
    }

    /// Returns the last record that matches `predicate`. Searches backwards like [`LogReader::last`].
    pub fn last_where(&mut self, predicate: impl Fn(&R) -> bool) -> Result<Option<Entry<R>>, ReadError> {
        let (low, mut end) = (self.log_start()?, self.end_offset()?);
        let skipped = self.skipped;
        let mut found = None;
        let mut step = 8;
        while end > low && found.is_none() {
            let start = (end - step).max(low);
            // Each range ends where the one before started, so that no record is read twice.
            self.read(start, end, |entry| {
                if predicate(&entry.record) {
                    found = Some(entry);
                }
            })?;
            end = start;
            step *= 2;
        }
        // An undecodable topic must not pass for an empty one: pulse would start again at beat 0.
        let undecodable = found.is_none() && self.skipped > skipped;
        if undecodable { Err(ReadError::Undecodable { topic: self.topic.clone() }) } else { Ok(found) }
    }

    /// Calls `on_entry` with each record in the offsets `[start, end)`, in order.
    pub fn read(&mut self, start: i64, end: i64, mut on_entry: impl FnMut(Entry<R>)) -> Result<(), ReadError> {
        self.read_until(start, end, |entry| {
            on_entry(entry);
            ControlFlow::Continue(())
        })
    }

    /// Returns the records from the last stable offset on, which `last_stable_offset` fetches: the first is one that no marker has
    /// committed or aborted.
    pub fn read_open(
        &mut self,
        last_stable_offset: impl FnOnce() -> Result<i64, ReadError>,
    ) -> Result<Vec<Entry<R>>, ReadError> {
        let (end, mut entries) = (self.end_offset()?, Vec::new());
        self.read(last_stable_offset()?, end, |entry| entries.push(entry))?;
        self.pause()?;
        Ok(entries)
    }

    /// Reads as [`LogReader::read`] does, until `on_entry` breaks.
    pub fn read_until(
        &mut self,
        start: i64,
        end: i64,
        mut on_entry: impl FnMut(Entry<R>) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        if start >= end {
            return Ok(());
        }
        self.seek(start)?;
        // A partition leader that has just started may report an end below its log's, because it does not know its high
        // watermark yet (KIP-207). So an end counts only if the fetch began after the leader knew of `end`.
        let mut leader_knows_end = false;
        let mut last = Instant::now();
        while last.elapsed() < READ_TIMEOUT {
            match self.poll_event(POLL_TIMEOUT)? {
                Polled::Entry(entry) => {
                    last = Instant::now();
                    let offset = entry.offset;
                    if offset < end && on_entry(entry).is_break() {
                        return Ok(());
                    }
                    if offset + 1 >= end {
                        return Ok(());
                    }
                }
                Polled::End if leader_knows_end => return Ok(()),
                Polled::End => {
                    leader_knows_end = self.end_offset()? >= end;
                    if !leader_knows_end {
                        std::thread::sleep(POLL_TIMEOUT);
                    }
                    self.assign_position()?;
                }
                Polled::Skipped => last = Instant::now(),
                Polled::Nothing => {}
            }
        }
        Err(ReadError::TimedOut { topic: self.topic.clone() })
    }

    /// Returns the first record that matches `predicate`. Every record after a matching one must match, too.
    ///
    /// Most searches are for recent records. So the range is found backwards from the end in steps that double, then by a
    /// binary search, and its last few records are read in one go: two fetches near the end, some 20 in a long topic.
    pub fn first_where(&mut self, predicate: impl Fn(&R) -> bool) -> Result<Option<Entry<R>>, ReadError> {
        let (mut low, end) = (self.log_start()?, self.end_offset()?);
        let mut high = end;
        let mut step = Some(READ_AT_ONCE);
        let mut found = None;
        while high - low > READ_AT_ONCE {
            let middle = step.map_or(low + (high - low) / 2, |step| (end - step).max(low));
            match self.first_in(middle, high)? {
                Some(entry) if !predicate(&entry.record) => {
                    low = entry.offset + 1;
                    step = None;
                }
                first => {
                    high = middle;
                    found = first.or(found);
                    step = step.map(|step| 2 * step);
                }
            }
        }
        let mut first = None;
        self.read_until(low, high, |entry| {
            first = Some(entry).filter(|entry| predicate(&entry.record));
            if first.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(first.or(found))
    }

    fn first_in(&mut self, start: i64, end: i64) -> Result<Option<Entry<R>>, ReadError> {
        let mut first = None;
        self.read_until(start, end, |entry| {
            first = Some(entry);
            ControlFlow::Break(())
        })?;
        Ok(first)
    }

    fn poll_event(&mut self, timeout: Duration) -> Result<Polled<R>, ReadError> {
        self.replace_if_lost()?;
        let raw = match self.pending.take() {
            Some(raw) => raw,
            None => match self.consumer.poll(timeout) {
                None => return Ok(Polled::Nothing),
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(Polled::End),
                Some(Err(error)) if is_transient(&error) => return Ok(Polled::Nothing),
                Some(Err(source)) => return Err(self.failed(source)),
                Some(Ok(message)) => {
                    self.position = Some(message.offset() + 1);
                    RawRecord { offset: message.offset(), value: message.payload().unwrap_or_default().to_vec() }
                }
            },
        };
        Ok(self.decode(raw, timeout))
    }

    fn decode(&mut self, raw: RawRecord, timeout: Duration) -> Polled<R> {
        match self.try_decode(&raw) {
            Ok(Some(record)) => {
                let body = Header::split(&raw.value).map(|(_, body)| body.to_vec()).unwrap_or_default();
                Polled::Entry(Entry { offset: raw.offset, record, body })
            }
            Ok(None) => {
                self.pending = Some(raw);
                // The schema is fetched in the background; no record after this one can be returned before it.
                std::thread::sleep(timeout.min(SCHEMA_POLL_INTERVAL));
                Polled::Nothing
            }
            Err(error) => {
                self.skipped += 1;
                tracing::warn!(topic = self.topic, offset = raw.offset, %error, "skipping an undecodable record");
                Polled::Skipped
            }
        }
    }

    /// Decodes `raw`; returns `None` while its schema cannot be fetched. That includes an id unknown to the registry:
    /// only BACKBEAT's programs write to these topics, so the registry knew the schema and must know it again.
    fn try_decode(&self, raw: &RawRecord) -> Result<Option<R>, UndecodableRecord> {
        let (header, body) = Header::split(&raw.value)?;
        match self.schemas.lookup(header.schema_id) {
            Lookup::Known(schema) => Ok(Some(schema.decode(body)?)),
            Lookup::Incompatible(error) => Err(error.into()),
            Lookup::Unknown | Lookup::Pending => Ok(None),
        }
    }

    fn failed(&self, source: KafkaError) -> ReadError {
        ReadError::Kafka { topic: self.topic.clone(), source }
    }
}

#[derive(Debug, thiserror::Error)]
enum UndecodableRecord {
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error(transparent)]
    Decode(#[from] DecodeError),
}
