//! `backbeat topics`: creates and checks the topics, and registers the schemas.

use std::process::ExitCode;

use backbeat_broker::{Broker, KafkaArgs, Registry, TopicError, TopicName, check_log, ensure_topics};
use backbeat_schemas::{BarPartial, BarReport, BarRoster, BeatFrame, StatusClaim};
use indicatif::ProgressBar;
use serde_json::json;

use crate::output::OutputArgs;

const RETRY_BACKOFF: std::time::Duration = std::time::Duration::from_secs(1);

/// Flags of `backbeat topics`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat topics
  backbeat topics --claim-partitions 24 --output json")]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) settings: TopicSettings,

    #[command(flatten)]
    output: OutputArgs,
}

/// The settings that the topics must have.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct TopicSettings {
    /// Number of partitions of statusclaims when it is created; an existing one must have at least as many.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) claim_partitions: i32,

    /// Replication factor. With 1, losing a broker loses its data: for development only.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) replication_factor: i32,

    #[command(flatten)]
    pub(crate) kafka: KafkaArgs,
}

pub(crate) async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let created = ensure(&args.settings).await?;
    let all = TopicName::ALL.len();
    let as_text = || {
        let created = created.iter().fold(String::new(), |text, name| text + "created " + name + "\n");
        format!("{created}all {all} topics exist with the right settings, and the schemas are registered")
    };
    args.output.print(as_text, || json!({ "created": created, "topics": all }));
    Ok(ExitCode::SUCCESS)
}

/// Creates and checks the topics and registers the schemas; waits while Kafka is unavailable.
pub(crate) async fn ensure(args: &TopicSettings) -> anyhow::Result<Vec<String>> {
    let broker = Broker::new(&args.kafka, "backbeat-topics")?;
    // Shown on a terminal only.
    let waiting = ProgressBar::new_spinner();
    let created = loop {
        match ensure_topics(&broker, args.claim_partitions, args.replication_factor).await {
            Err(error @ TopicError::Kafka { .. }) => {
                waiting.suspend(|| tracing::warn!(%error, "waiting for kafka"));
                waiting.enable_steady_tick(RETRY_BACKOFF / 10);
                waiting.set_message(format!("waiting for kafka at {}", broker.bootstrap_servers()));
                tokio::time::sleep(RETRY_BACKOFF).await;
            }
            result => break result?,
        }
    };
    waiting.finish_and_clear();
    let registry = Registry::new(&args.kafka)?;
    check_log(&broker, &registry).await?;
    let topics = broker.topics();
    registry.register::<BeatFrame>(&topics.subject(TopicName::BeatFrames)).await?;
    registry.register::<StatusClaim>(&topics.subject(TopicName::StatusClaims)).await?;
    registry.register::<BarReport>(&topics.subject(TopicName::BarReports)).await?;
    registry.register::<BarRoster>(&topics.subject(TopicName::BarRosters)).await?;
    registry.register::<BarPartial>(&topics.subject(TopicName::BarPartials)).await?;
    Ok(created)
}
