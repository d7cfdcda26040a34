//! One window, computed anew from the log alone.

use std::time::Duration;

use backbeat_broker::{Broker, Reader, Registry, SchemaCache, TopicName};
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Handle;

use super::claim_decoder::ClaimDecoder;
use super::timeouts::QUERY_TIMEOUT;
use crate::core::{Counts, Fold, Frames, Output, RawRecord, Tally, Window};

const POLL: Duration = Duration::from_millis(100);
const SCHEMA_POLL: Duration = Duration::from_millis(10);
/// Polls in a row that bring nothing, after which Kafka is taken to be away.
const MAX_IDLE_POLLS: u32 = 150;

/// Reads the claims of windows by their ranges. All its calls block.
pub(crate) struct Recompute {
    consumer: Reader,
    topic: String,
    decoder: ClaimDecoder,
}

impl Recompute {
    pub(crate) fn new(broker: &Broker, registry: &Registry, runtime: &Handle) -> Result<Self, KafkaError> {
        Ok(Self {
            consumer: broker.reader()?,
            topic: broker.topics().name(TopicName::StatusClaims),
            decoder: ClaimDecoder::new(SchemaCache::new(registry.clone(), runtime.clone())),
        })
    }

    /// The counts of `window`, whose closing frame is in `frames`; `None` if its claims are no longer
    /// wholly retained.
    pub(crate) fn window(&mut self, frames: &Frames, window: &Window) -> Result<Option<Counts>, KafkaError> {
        let partitions = frames.get(window.closes).map_or(0, |frame| frame.claim_offsets.len());
        let mut whole = Tally::default();
        for partition in 0..partitions as i32 {
            match self.partition(frames, window, partition)? {
                Some(share) => whole.absorb(share),
                None => return Ok(None),
            }
        }
        Ok(Some(whole.counts()))
    }

    fn partition(&mut self, frames: &Frames, window: &Window, partition: i32) -> Result<Option<Tally>, KafkaError> {
        let line = |beat| frames.get(beat).map_or(0, |frame| frame.line(partition));
        let (start, end) = (line(window.from), line(window.closes));
        let low = self.consumer.fetch_watermarks(&self.topic, partition, QUERY_TIMEOUT)?.0;
        let mut fold = Fold::new(partition, window.from, start, low);
        let mut outputs = Vec::new();
        if start.max(low) < end {
            self.read(partition, start.max(low), end, frames, &mut fold, &mut outputs)?;
        }
        fold.reached(end, low);
        fold.advance(frames, &mut outputs);
        let closed = outputs.into_iter().find_map(|output| match output {
            Output::Closed(closed) if closed.window.from == window.from => Some(closed),
            _ => None,
        });
        let closed = closed.expect("a window closes once its closing line is reached");
        Ok(closed.retained.then_some(closed.tally))
    }

    fn read(
        &mut self,
        partition: i32,
        start: i64,
        end: i64,
        frames: &Frames,
        fold: &mut Fold,
        outputs: &mut Vec<Output>,
    ) -> Result<(), KafkaError> {
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(&self.topic, partition, Offset::Offset(start))?;
        self.consumer.assign(&assignment)?;
        let mut idle = 0;
        while fold.next_offset() < end {
            let message = match self.consumer.poll(POLL) {
                Some(Ok(message)) => message,
                // The line was known before we began to read: the end that was met lies at or after it.
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(()),
                Some(Err(error)) => return Err(error),
                None if idle < MAX_IDLE_POLLS => {
                    idle += 1;
                    continue;
                }
                None => return Err(KafkaError::NoMessageReceived),
            };
            idle = 0;
            if message.offset() >= end {
                return Ok(());
            }
            let (key, value) = (message.key(), message.payload());
            let reading = loop {
                match self.decoder.decode(key, value) {
                    Some(reading) => break reading,
                    None => std::thread::sleep(SCHEMA_POLL),
                }
            };
            fold.take(message.offset(), reading, frames, RawRecord::default, outputs);
        }
        Ok(())
    }
}
