//! A queue of a consumer's records, from which they are taken in batches and read in place.
//!
//! `BaseConsumer::poll` makes an event, an `Arc` and two clock reads of each record, which a batch does not. rdkafka has no
//! call for batches, so this module uses librdkafka's, and is the only one with unsafe code.
//!
//! The consumer's own queue is not taken in batches: librdkafka answers a rebalance that is found by
//! `rd_kafka_consume_batch_queue` by dropping all partitions, since it has no callback for it. So the records of each
//! partition are forwarded to a queue of their own, while the owner polls the consumer for everything else.

#![expect(unsafe_code, reason = "rdkafka has no safe call that takes records in batches")]

use std::ffi::CString;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::bindings as sys;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::types::RDKafkaRespErr;

/// A queue of the records of a consumer's partitions, taken over from the consumer one by one.
///
/// librdkafka (2.12.1, `rd_kafka_q_serve_rkmessages`) takes an error that it finds in a batch for a record, and after a
/// pause, such as its own in a rebalance, it continues one record too late. So a partition with a [`BatchItem::Failed`] is
/// to be sought again; and the consumer must not have `enable.partition.eof`, which makes each end such an error.
///
/// Dropping it while the consumer lives silences the partitions that it has taken over.
pub struct RecordQueue<C: ConsumerContext + 'static> {
    queue: NonNull<sys::rd_kafka_queue_t>,
    /// Where librdkafka writes the batch. Only a [`Batch`] reads it, and only what was written for that batch.
    slots: Vec<*mut sys::rd_kafka_message_t>,
    /// Keeps the client alive that `queue` and its records belong to. It is dropped after the queue was destroyed.
    consumer: Arc<BaseConsumer<C>>,
}

/// librdkafka knows no such partition.
#[derive(Debug, thiserror::Error)]
#[error("librdkafka has no queue for partition {partition} of {topic:?}")]
pub struct NoSuchPartition {
    topic: String,
    partition: i32,
}

/// The records and errors of partitions that were taken at once, in order.
pub struct Batch<'q> {
    /// Each is a message of librdkafka that this batch owns.
    messages: &'q [*mut sys::rd_kafka_message_t],
}

/// One element of a batch.
#[derive(Debug, Clone, Copy)]
pub enum BatchItem<'b> {
    /// A record.
    Record(BatchRecord<'b>),
    /// A partition could not be read. It is to be sought to the record that must come next.
    Failed {
        /// The partition.
        partition: i32,
        /// Kafka's reason.
        reason: RDKafkaErrorCode,
    },
    /// A record, or a batch of them in the log, cannot be read, and is skipped.
    Unreadable {
        /// The partition.
        partition: i32,
        /// The offset.
        offset: i64,
        /// librdkafka's reason.
        reason: RDKafkaErrorCode,
    },
}

/// A record, in librdkafka's memory.
#[derive(Debug, Clone, Copy)]
pub struct BatchRecord<'b> {
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// The key; `None` if it is null.
    pub key: Option<&'b [u8]>,
    /// The value; `None` if it is null.
    pub value: Option<&'b [u8]>,
}

impl<C: ConsumerContext + 'static> RecordQueue<C> {
    /// Creates a queue for records of `consumer`, taken at most `max_batch` at a time.
    pub fn new(consumer: &Arc<BaseConsumer<C>>, max_batch: usize) -> Self {
        // SAFETY: the client outlives the call, and the queue, since `Self` keeps the consumer.
        let queue = unsafe { sys::rd_kafka_queue_new(consumer.client().native_ptr()) };
        Self {
            queue: NonNull::new(queue).expect("librdkafka always returns a new queue"),
            slots: vec![ptr::null_mut(); max_batch],
            consumer: Arc::clone(consumer),
        }
    }

    /// Takes over the records of `partition`: those that the consumer fetches from now on, and those that it has fetched
    /// and that were not polled.
    ///
    /// To be called after each assignment, as soon as a seek of the partition has succeeded: before, librdkafka may still
    /// be about to start the partition, and would direct it to the consumer's own queue again.
    pub fn take_over(&self, topic: &str, partition: i32) -> Result<(), NoSuchPartition> {
        let missing = || NoSuchPartition { topic: topic.to_owned(), partition };
        let name = CString::new(topic).map_err(|_| missing())?;
        // SAFETY: the client lives, and librdkafka copies what it needs of the name. The queue that it returns is a
        // reference of ours, which is given back; forwarding takes references of its own to both queues.
        unsafe {
            let source =
                sys::rd_kafka_queue_get_partition(self.consumer.client().native_ptr(), name.as_ptr(), partition);
            let source = NonNull::new(source).ok_or_else(missing)?;
            sys::rd_kafka_queue_forward(source.as_ptr(), self.queue.as_ptr());
            sys::rd_kafka_queue_destroy(source.as_ptr());
        }
        Ok(())
    }

    /// Takes what has arrived. If that is nothing, waits for one element, at most for `timeout`.
    ///
    /// Records of an earlier assignment, or of before a seek, never come: librdkafka drops them as it hands them over.
    pub fn take(&mut self, timeout: Duration) -> Batch<'_> {
        // librdkafka waits until the batch is full or the time is over.
        let mut length = self.fill(self.slots.len(), 0);
        if length == 0 && !timeout.is_zero() {
            length = self.fill(1, i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX));
        }
        Batch { messages: &self.slots[..length] }
    }

    fn fill(&mut self, max: usize, timeout_ms: i32) -> usize {
        let slots = &mut self.slots[..max];
        // SAFETY: the queue lives as long as `self`, and there are as many slots as librdkafka is told. It returns how
        // many it has written, each a message that is ours to destroy. No batch refers to the slots: one would borrow
        // `self`. The queue has only what partitions send, so there is no rebalance to be served here.
        let taken = unsafe {
            sys::rd_kafka_consume_batch_queue(self.queue.as_ptr(), timeout_ms, slots.as_mut_ptr(), slots.len())
        };
        // It returns -1 only for a client that is not a consumer.
        usize::try_from(taken).unwrap_or(0)
    }
}

impl<C: ConsumerContext + 'static> Drop for RecordQueue<C> {
    fn drop(&mut self) {
        // SAFETY: this is the only reference of ours, and the client lives: `consumer` is dropped after this.
        // Partitions that are still forwarded hold references of their own.
        unsafe { sys::rd_kafka_queue_destroy(self.queue.as_ptr()) }
    }
}

impl Batch<'_> {
    /// Returns true if nothing had arrived.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Returns the elements in order.
    pub fn iter(&self) -> impl Iterator<Item = BatchItem<'_>> {
        self.messages.iter().map(|message| {
            // SAFETY: the batch owns the message, and destroys it only when it is dropped, which ends the borrow.
            let message = unsafe { &**message };
            match message.err {
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => BatchItem::Record(BatchRecord {
                    partition: message.partition,
                    offset: message.offset,
                    // SAFETY: both point into the message's memory, with these lengths, or are null.
                    key: unsafe { bytes(message.key, message.key_len) },
                    value: unsafe { bytes(message.payload, message.len) },
                }),
                reason => {
                    use RDKafkaErrorCode::{BadCompression, BadMessage, MessageSizeTooLarge, NotImplemented};
                    let (partition, offset, reason) = (message.partition, message.offset, reason.into());
                    match reason {
                        BadCompression | BadMessage | MessageSizeTooLarge | NotImplemented => {
                            BatchItem::Unreadable { partition, offset, reason }
                        }
                        reason => BatchItem::Failed { partition, reason },
                    }
                }
            }
        })
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        for message in self.messages {
            // SAFETY: the batch owns the message, and nothing that it lent is left.
            unsafe { sys::rd_kafka_message_destroy(*message) }
        }
    }
}

/// Returns the `length` bytes at `start`, or `None` if it is null.
///
/// # Safety
///
/// `start` is null, or there are `length` bytes that do not change for `'b`.
unsafe fn bytes<'b>(start: *const std::ffi::c_void, length: usize) -> Option<&'b [u8]> {
    // SAFETY: as the caller promises.
    (!start.is_null()).then(|| unsafe { slice::from_raw_parts(start.cast::<u8>(), length) })
}
