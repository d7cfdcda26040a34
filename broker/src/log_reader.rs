//! Reads one of our single-partition topics, outside any group.

use std::time::{Duration, Instant};

use backbeat_schemas::{DecodeError, Header, HeaderError, Record};
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Handle;

use crate::{Broker, Lookup, Reader, Registry, SchemaCache, TopicName, assign, is_transient};

const PARTITION: i32 = 0;
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);
/// A read is given up after this long without a record or the end of the log.
const GIVE_UP_AFTER: Duration = Duration::from_secs(15);
const SCHEMA_POLL: Duration = Duration::from_millis(10);

/// A reader of the committed records of a topic of `R`s. All its calls block.
pub struct LogReader<R> {
    consumer: Reader,
    topic: String,
    schemas: SchemaCache<R>,
    /// A record whose schema is not there yet.
    waiting: Option<Raw>,
    /// Records that are none of ours, since the reader was made.
    skipped: u64,
}

/// One record of the log.
#[derive(Debug, Clone)]
pub struct Entry<R> {
    /// Its offset.
    pub offset: i64,
    /// The record.
    pub record: R,
    /// Its Avro body, without the wire format's header.
    pub body: Vec<u8>,
}

struct Raw {
    offset: i64,
    value: Vec<u8>,
}

/// What a poll may find.
enum Polled<R> {
    Entry(Entry<R>),
    /// The end of the committed log, as of a fetch after the last seek.
    End,
    /// A record that is none of ours.
    Skipped,
    Nothing,
}

/// A read that failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Kafka said no.
    #[error("reading {topic}: {source}")]
    Kafka {
        /// The topic.
        topic: String,
        /// Why.
        source: KafkaError,
    },
    /// Nothing came for 15 s: Kafka, or the registry with the schema of the next record, is away.
    #[error("reading {topic}: nothing came within 15 s, from Kafka or from the schema registry")]
    TimedOut {
        /// The topic.
        topic: String,
    },
    /// There are records, but none that the registry's schemas make ours.
    #[error("{topic} has records and none is ours: has the schema registry lost or renumbered its schemas?")]
    Foreign {
        /// The topic.
        topic: String,
    },
}

impl<R: Record + 'static> LogReader<R> {
    /// A reader of `topic`, which reads nothing before it is told where to start.
    pub fn new(broker: &Broker, registry: &Registry, runtime: &Handle, topic: TopicName) -> Result<Self, ReadError> {
        Self::with(broker, registry, runtime, topic, Broker::reader)
    }

    /// A reader for [`LogReader::last`], [`LogReader::first_where`] and [`LogReader::read`] alone: it finds sooner
    /// and rests in between.
    pub fn for_searches(
        broker: &Broker,
        registry: &Registry,
        runtime: &Handle,
        topic: TopicName,
    ) -> Result<Self, ReadError> {
        Self::with(broker, registry, runtime, topic, Broker::searcher)
    }

    fn with(
        broker: &Broker,
        registry: &Registry,
        runtime: &Handle,
        topic: TopicName,
        make: impl FnOnce(&Broker) -> KafkaResult<Reader>,
    ) -> Result<Self, ReadError> {
        let topic = broker.topics().name(topic);
        let consumer = make(broker).map_err(|source| ReadError::Kafka { topic: topic.clone(), source })?;
        Ok(Self {
            consumer,
            topic,
            schemas: SchemaCache::new(registry.clone(), runtime.clone()),
            waiting: None,
            skipped: 0,
        })
    }

    /// Stops reading ahead, until the next seek.
    pub fn pause(&mut self) -> Result<(), ReadError> {
        assign(&self.consumer, &TopicPartitionList::new()).map_err(|source| self.failed(source))
    }

    /// Reads on from `offset`.
    pub fn seek(&mut self, offset: i64) -> Result<(), ReadError> {
        self.waiting = None;
        let mut assignment = TopicPartitionList::new();
        let added = assignment.add_partition_offset(&self.topic, PARTITION, Offset::Offset(offset));
        added.and_then(|()| assign(&self.consumer, &assignment)).map_err(|source| self.failed(source))
    }

    /// The next record, if one comes within `timeout`.
    pub fn poll(&mut self, timeout: Duration) -> Result<Option<Entry<R>>, ReadError> {
        Ok(match self.poll_event(timeout)? {
            Polled::Entry(entry) => Some(entry),
            Polled::End | Polled::Skipped | Polled::Nothing => None,
        })
    }

    /// The offset of the first record that is retained.
    pub fn low(&self) -> Result<i64, ReadError> {
        let watermarks = self.consumer.fetch_watermarks(&self.topic, PARTITION, QUERY_TIMEOUT);
        watermarks.map(|(low, _)| low).map_err(|source| self.failed(source))
    }

    /// The end of the committed log.
    pub fn end(&self) -> Result<i64, ReadError> {
        Ok(self.offset_for(Offset::End)?.unwrap_or(0))
    }

    /// The first record whose timestamp is `millis` or later; the end if there is none.
    pub fn offset_at(&self, millis: i64) -> Result<i64, ReadError> {
        match self.offset_for(Offset::Offset(millis))? {
            Some(offset) => Ok(offset),
            None => self.end(),
        }
    }

    fn offset_for(&self, query: Offset) -> Result<Option<i64>, ReadError> {
        let mut list = TopicPartitionList::new();
        let added = list.add_partition_offset(&self.topic, PARTITION, query);
        let answer = added.and_then(|()| self.consumer.offsets_for_times(list, QUERY_TIMEOUT));
        let answer = answer.map_err(|source| self.failed(source))?;
        let found = answer.find_partition(&self.topic, PARTITION).map(|found| found.offset());
        Ok(match found {
            Some(Offset::Offset(offset)) => Some(offset),
            _ => None,
        })
    }

    /// The last record of the log. Steps back, doubling, since what ends the log may be any number of
    /// aborted records and control markers.
    pub fn last(&mut self) -> Result<Option<Entry<R>>, ReadError> {
        self.last_where(|_| true)
    }

    /// The last record that `wanted` accepts, found in the same way.
    pub fn last_where(&mut self, wanted: impl Fn(&R) -> bool) -> Result<Option<Entry<R>>, ReadError> {
        let (low, mut end) = (self.low()?, self.end()?);
        let skipped = self.skipped;
        let mut found = None;
        let mut step = 8;
        while end > low && found.is_none() {
            let start = (end - step).max(low);
            // Each stretch is read once: up to where the one before began.
            self.read(start, end, |entry| {
                if wanted(&entry.record) {
                    found = Some(entry);
                }
            })?;
            end = start;
            step *= 2;
        }
        // To take an unreadable log for an empty one would be to begin again at beat 0.
        let unreadable = found.is_none() && self.skipped > skipped;
        if unreadable { Err(ReadError::Foreign { topic: self.topic.clone() }) } else { Ok(found) }
    }

    /// Reads the records of the offsets `[start, end)` that are there.
    pub fn read(&mut self, start: i64, end: i64, mut take: impl FnMut(Entry<R>)) -> Result<(), ReadError> {
        if start >= end {
            return Ok(());
        }
        self.seek(start)?;
        let mut last = Instant::now();
        while last.elapsed() < GIVE_UP_AFTER {
            match self.poll_event(POLL)? {
                Polled::Entry(entry) => {
                    last = Instant::now();
                    let offset = entry.offset;
                    if offset < end {
                        take(entry);
                    }
                    if offset + 1 >= end {
                        return Ok(());
                    }
                }
                Polled::End => return Ok(()),
                Polled::Skipped => last = Instant::now(),
                Polled::Nothing => {}
            }
        }
        Err(ReadError::TimedOut { topic: self.topic.clone() })
    }

    /// The first record that `reached` accepts, where it accepts all later ones too: a binary search,
    /// so it costs some 20 fetches however long the log is.
    pub fn first_where(&mut self, reached: impl Fn(&R) -> bool) -> Result<Option<Entry<R>>, ReadError> {
        let (mut low, mut high) = (self.low()?, self.end()?);
        let mut found = None;
        while low < high {
            let middle = low + (high - low) / 2;
            match self.first_in(middle, high)? {
                Some(entry) if reached(&entry.record) => {
                    high = middle;
                    found = Some(entry);
                }
                Some(entry) => low = entry.offset + 1,
                None => high = middle,
            }
        }
        Ok(found)
    }

    fn first_in(&mut self, start: i64, end: i64) -> Result<Option<Entry<R>>, ReadError> {
        self.seek(start)?;
        let mut last = Instant::now();
        while last.elapsed() < GIVE_UP_AFTER {
            match self.poll_event(POLL)? {
                Polled::Entry(entry) => return Ok((entry.offset < end).then_some(entry)),
                Polled::End => return Ok(None),
                Polled::Skipped => last = Instant::now(),
                Polled::Nothing => {}
            }
        }
        Err(ReadError::TimedOut { topic: self.topic.clone() })
    }

    fn poll_event(&mut self, timeout: Duration) -> Result<Polled<R>, ReadError> {
        let raw = match self.waiting.take() {
            Some(raw) => raw,
            None => match self.consumer.poll(timeout) {
                None => return Ok(Polled::Nothing),
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(Polled::End),
                Some(Err(error)) if is_transient(&error) => return Ok(Polled::Nothing),
                Some(Err(source)) => return Err(self.failed(source)),
                Some(Ok(message)) => {
                    Raw { offset: message.offset(), value: message.payload().unwrap_or_default().to_vec() }
                }
            },
        };
        Ok(self.decode(raw, timeout))
    }

    fn decode(&mut self, raw: Raw, timeout: Duration) -> Polled<R> {
        match self.try_decode(&raw) {
            Ok(Some(record)) => {
                let body = Header::split(&raw.value).map(|(_, body)| body.to_vec()).unwrap_or_default();
                Polled::Entry(Entry { offset: raw.offset, record, body })
            }
            Ok(None) => {
                self.waiting = Some(raw);
                // The registry is asked in the background; nothing can be read past this record.
                std::thread::sleep(timeout.min(SCHEMA_POLL));
                Polled::Nothing
            }
            Err(error) => {
                self.skipped += 1;
                tracing::warn!(topic = self.topic, offset = raw.offset, %error, "skipping a record that is none of ours");
                Polled::Skipped
            }
        }
    }

    /// `None` while the schema is not to be had: only we write here, so the registry must know it, or
    /// will again.
    fn try_decode(&self, raw: &Raw) -> Result<Option<R>, ForeignRecord> {
        let (header, body) = Header::split(&raw.value)?;
        match self.schemas.lookup(header.schema_id) {
            Lookup::Known(schema) => Ok(Some(schema.decode(body)?)),
            Lookup::Wrong(error) => Err(error.into()),
            Lookup::Unknown | Lookup::Pending => Ok(None),
        }
    }

    fn failed(&self, source: KafkaError) -> ReadError {
        ReadError::Kafka { topic: self.topic.clone(), source }
    }
}

#[derive(Debug, thiserror::Error)]
enum ForeignRecord {
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error(transparent)]
    Decode(#[from] DecodeError),
}
