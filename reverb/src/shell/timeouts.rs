//! The shell's timeout for requests to Kafka.

use std::time::Duration;

/// The timeout of a request for offsets, watermarks or metadata.
pub(crate) const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
