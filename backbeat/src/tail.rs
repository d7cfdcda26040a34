//! `backbeat tail`: prints records as JSON lines.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use backbeat_broker::{Broker, KafkaArgs, ReadFrom, Registry, TopicEvent, TopicName, TopicReader, TopicRecord};
use backbeat_schemas::{BarReport, BarRoster, BeatFrame, Record, StatusClaim};
use tokio::runtime::Runtime;

use crate::output::print_line;

const POLL_TIMEOUT: Duration = Duration::from_millis(100);

/// Flags of `backbeat tail`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat tail barreports --from-beginning
  backbeat tail statusclaims --follow | jq 'select(.state == \"failed\")'")]
pub(crate) struct Args {
    /// The topic.
    #[arg(value_enum)]
    topic: Topic,

    /// Start with the first retained record, not with the last ten of each partition.
    #[arg(long)]
    from_beginning: bool,

    /// Maximum number of records to print.
    #[arg(long, value_name = "N")]
    max: Option<u64>,

    /// Keep printing records as they are appended.
    #[arg(long, short)]
    follow: bool,

    #[command(flatten)]
    kafka: KafkaArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Topic {
    Beatframes,
    Statusclaims,
    Barreports,
    Barrosters,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match args.topic {
        Topic::Beatframes => print_records::<BeatFrame>(args, TopicName::BeatFrames),
        Topic::Statusclaims => print_records::<StatusClaim>(args, TopicName::StatusClaims),
        Topic::Barreports => print_records::<BarReport>(args, TopicName::BarReports),
        Topic::Barrosters => print_records::<BarRoster>(args, TopicName::BarRosters),
    }
}

fn print_records<R: Record + 'static>(args: &Args, topic: TopicName) -> anyhow::Result<ExitCode> {
    let runtime = Runtime::new()?;
    let broker = Broker::new(&args.kafka, "backbeat-tail")?;
    let registry = Registry::new(&args.kafka)?;
    let from = if args.from_beginning { ReadFrom::Beginning } else { ReadFrom::Last(10) };
    let mut tail = TopicReader::<R>::new(&broker, &registry, runtime.handle(), topic, &from)
        .with_context(|| format!("cannot read {} from {}", broker.topics().name(topic), broker.bootstrap_servers()))?;
    let mut printed = 0;
    while args.max.is_none_or(|max| printed < max) {
        match tail.next(POLL_TIMEOUT)? {
            Some(TopicEvent::Record(TopicRecord { record: Ok(record), .. })) => {
                printed += 1;
                print_line(&serde_json::to_string(&record)?);
            }
            Some(TopicEvent::Record(TopicRecord { partition, offset, record: Err(reason), .. })) => {
                tracing::warn!(partition, offset, reason, "undecodable record");
            }
            Some(TopicEvent::End) if !args.follow => break,
            Some(TopicEvent::End) | None => {}
        }
    }
    Ok(ExitCode::SUCCESS)
}
