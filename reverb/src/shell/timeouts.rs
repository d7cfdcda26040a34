//! How long the shell waits for Kafka.

use std::time::Duration;

/// A question to Kafka: offsets, watermarks, metadata.
pub(crate) const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
