//! `backbeat topics`.

use std::process::ExitCode;

use backbeat_broker::{Broker, KafkaArgs, Registry, TopicError, TopicName, ensure_topics};
use backbeat_schemas::{BarPartial, BarReport, BeatFrame, StatusClaim};
use indicatif::ProgressBar;
use serde_json::json;

use crate::output::OutputArgs;

const RETRY_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// Flags of `backbeat topics`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat topics
  backbeat topics --claim-partitions 24 --output json")]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) wanted: Wanted,

    #[command(flatten)]
    output: OutputArgs,
}

/// How topics should be.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Wanted {
    /// Partitions of a new statusclaims; an existing one must have at least as many.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) claim_partitions: i32,

    /// Copies of each partition. 1 loses everything with its broker: for development only.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) replication_factor: i32,

    #[command(flatten)]
    pub(crate) kafka: KafkaArgs,
}

pub(crate) async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let created = ensure(&args.wanted).await?;
    let all = TopicName::ALL.len();
    let as_text = || {
        let created = created.iter().fold(String::new(), |text, name| text + "created " + name + "\n");
        format!("{created}all {all} topics are there, with the right settings, and the schemas are registered")
    };
    args.output.say(as_text, || json!({ "created": created, "topics": all }));
    Ok(ExitCode::SUCCESS)
}

/// Creates and checks the topics and registers the schemas; waits for a Kafka that is away.
pub(crate) async fn ensure(args: &Wanted) -> anyhow::Result<Vec<String>> {
    let broker = Broker::new(&args.kafka, "backbeat-topics")?;
    // On a terminal only.
    let waiting = ProgressBar::new_spinner();
    let created = loop {
        match ensure_topics(&broker, args.claim_partitions, args.replication_factor).await {
            Err(error @ TopicError::Kafka { .. }) => {
                waiting.suspend(|| tracing::warn!(%error, "waiting for kafka"));
                waiting.enable_steady_tick(RETRY_PAUSE / 10);
                waiting.set_message(format!("waiting for kafka at {}", broker.bootstrap_servers()));
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            settled => break settled?,
        }
    };
    waiting.finish_and_clear();
    let registry = Registry::new(&args.kafka)?;
    let topics = broker.topics();
    registry.register::<BeatFrame>(&topics.subject(TopicName::BeatFrames)).await?;
    registry.register::<StatusClaim>(&topics.subject(TopicName::StatusClaims)).await?;
    registry.register::<BarReport>(&topics.subject(TopicName::BarReports)).await?;
    registry.register::<BarPartial>(&topics.subject(TopicName::BarPartials)).await?;
    Ok(created)
}
