//! `backbeat topics`.

use std::process::ExitCode;

use backbeat_broker::{Broker, KafkaArgs, Registry, TopicError, TopicName, ensure_topics};
use backbeat_schemas::{BarPartial, BarReport, BeatFrame, StatusClaim};

const RETRY_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// Flags of `backbeat topics`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Partitions of a new statusclaims; an existing one must have at least as many.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) claim_partitions: i32,

    /// Copies of each partition. 1 loses everything with its broker: for development only.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) replication_factor: i32,

    #[command(flatten)]
    pub(crate) kafka: KafkaArgs,
}

#[allow(clippy::print_stdout, reason = "it is the command's output")]
pub(crate) async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let created = ensure(args).await?;
    for name in &created {
        println!("created {name}");
    }
    println!("all {} topics are there, with the right settings, and the schemas are registered", TopicName::ALL.len());
    Ok(ExitCode::SUCCESS)
}

/// Creates and checks the topics and registers the schemas; waits for a Kafka that is away.
pub(crate) async fn ensure(args: &Args) -> anyhow::Result<Vec<String>> {
    let broker = Broker::new(&args.kafka, "backbeat-topics")?;
    let created = loop {
        match ensure_topics(&broker, args.claim_partitions, args.replication_factor).await {
            Err(error @ TopicError::Kafka { .. }) => {
                tracing::warn!(%error, "waiting for kafka");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            settled => break settled?,
        }
    };
    let registry = Registry::new(&args.kafka)?;
    let topics = broker.topics();
    registry.register::<BeatFrame>(&topics.subject(TopicName::BeatFrames)).await?;
    registry.register::<StatusClaim>(&topics.subject(TopicName::StatusClaims)).await?;
    registry.register::<BarReport>(&topics.subject(TopicName::BarReports)).await?;
    registry.register::<BarPartial>(&topics.subject(TopicName::BarPartials)).await?;
    Ok(created)
}
