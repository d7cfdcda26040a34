//! Kafka and the schema registry: client settings, topics, readers, the idempotent producer and the transactional one.
//! Kafka clients that are created elsewhere, such as reverb's group consumer, get their settings from here.
//!
//! Functions that block are documented as such; call them from a dedicated thread, never from an async worker.

mod broker;
mod claim_ends;
mod client_log;
mod client_watch;
mod dead_letter_reader;
mod group_position;
mod kafka_args;
mod kafka_probe;
mod list_offsets;
mod log_check;
mod log_reader;
mod record_queue;
mod registry;
mod schema_cache;
mod sender;
mod subject_schemas;
mod topic_reader;
mod topics;
mod transaction;

pub use broker::{Broker, GroupProtocol, SettingsError, kafka_cluster_id};
pub use claim_ends::ClaimEnds;
pub use client_log::{ClientLog, Reader, assign, is_transient, log_client_error};
pub use client_watch::{ClientWatch, WatchedReader, check_clients};
pub use dead_letter_reader::{DeadLetter, DeadLetterReader};
pub use group_position::GroupPosition;
pub use kafka_args::KafkaArgs;
pub use kafka_probe::KafkaProbe;
pub use list_offsets::list_offsets;
pub use log_check::{OtherRegistry, check_log};
pub use log_reader::{Entry, LogReader, ReadError};
pub use record_queue::{Batch, BatchItem, BatchRecord, NoSuchPartition, RecordQueue};
pub use registry::{FetchError, Registry, RegistryError, SubjectStatus, without_credentials};
pub use schema_cache::{Lookup, SchemaCache};
pub use sender::{Deliveries, ProducerRecord, QueueFull, Sender};
pub use subject_schemas::SubjectSchemas;
pub use topic_reader::{ReadFrom, TopicEvent, TopicReader, TopicRecord};
pub use topics::{TopicError, TopicName, Topics, ensure_group_offset, ensure_topic, ensure_topics, wait_for_topics};
pub use transaction::{Transaction, TransactionError, TransactionalProducer, UnopenedProducer};
