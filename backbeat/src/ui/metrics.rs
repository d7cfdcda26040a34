//! The metrics of `backbeat ui`.

use prometheus::{IntCounter, IntGauge, Registry};
// Each creates a metric and registers it.
use prometheus::{register_int_counter_with_registry as int_counter, register_int_gauge_with_registry as int_gauge};

#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) registry: Registry,
    pub(crate) streams: IntGauge,
    pub(crate) refused_streams: IntCounter,
    pub(crate) lagged_streams: IntCounter,
    pub(crate) changes: IntCounter,
    pub(crate) newest_beat: IntGauge,
    pub(crate) kafka_available: IntGauge,
}

impl Metrics {
    pub(crate) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        Ok(Self {
            streams: int_gauge!("backbeat_ui_streams", "Pages that get changes at the moment", registry)?,
            refused_streams: int_counter!(
                "backbeat_ui_refused_streams_total",
                "Streams refused because as many were open as are allowed",
                registry
            )?,
            lagged_streams: int_counter!(
                "backbeat_ui_lagged_streams_total",
                "Snapshots sent in place of changes that a slow page had missed",
                registry
            )?,
            changes: int_counter!("backbeat_ui_changes_total", "Changes of the page", registry)?,
            newest_beat: int_gauge!(
                "backbeat_ui_newest_beat",
                "Index of the newest beat that the page shows",
                registry
            )?,
            kafka_available: int_gauge!(
                "backbeat_ui_kafka_available",
                "1 while Kafka answers this program, 0 while it does not",
                registry
            )?,
            registry,
        })
    }
}
