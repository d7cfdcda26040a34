//! `backbeat schemas`: the registry's schemas beside ours.

use std::fmt;
use std::process::ExitCode;

use backbeat_broker::{Broker, KafkaArgs, Registered, Registry, TopicName};
use backbeat_schemas::{BarPartial, BarReport, BeatFrame, Record, StatusClaim};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::output::{FOUND, OutputArgs};

/// Flags of `backbeat schemas`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// Says whether this program's schemas go with all versions in the registry, and changes nothing.
    ///
    /// Exits with 0 if all are registered or could be, with 3 if one is refused or a subject is not `FULL_TRANSITIVE`.
    #[command(after_help = "Examples:
  backbeat schemas check
  backbeat schemas check --output json | jq 'select(.ok == false)'")]
    Check(CheckArgs),
}

#[derive(Debug, Clone, clap::Args)]
struct CheckArgs {
    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    kafka: KafkaArgs,
}

/// What was found of one subject.
struct Checked {
    subject: String,
    found: Registered,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Command::Check(args) = &args.command;
    let topics = Broker::new(&args.kafka, "backbeat-schemas")?.topics().clone();
    let registry = Registry::new(&args.kafka)?;
    let checked = Runtime::new()?.block_on(async {
        let subject = |topic| topics.subject(topic);
        anyhow::Ok([
            check::<BeatFrame>(&registry, subject(TopicName::BeatFrames)).await?,
            check::<StatusClaim>(&registry, subject(TopicName::StatusClaims)).await?,
            check::<BarReport>(&registry, subject(TopicName::BarReports)).await?,
            check::<BarPartial>(&registry, subject(TopicName::BarPartials)).await?,
        ])
    })?;
    for one in &checked {
        args.output.say(|| one.to_string(), || one.as_json());
    }
    Ok(if checked.iter().all(Checked::is_ok) { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

async fn check<R: Record>(registry: &Registry, subject: String) -> anyhow::Result<Checked> {
    let found = registry.check::<R>(&subject).await?;
    Ok(Checked { subject, found })
}

impl Checked {
    fn is_ok(&self) -> bool {
        self.found.refused.is_none() && (self.found.versions == 0 || self.is_transitive())
    }

    fn is_transitive(&self) -> bool {
        self.found.compatibility.as_deref() == Some("FULL_TRANSITIVE")
    }

    fn as_json(&self) -> Value {
        let Registered { versions, is_ours, compatibility, refused } = &self.found;
        json!({
            "subject": self.subject, "ok": self.is_ok(), "versions": versions, "registered": is_ours,
            "compatibility": compatibility, "refused": refused,
        })
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Registered { versions, is_ours, compatibility, refused } = &self.found;
        write!(f, "{:<24} ", self.subject)?;
        match refused {
            Some(reason) => write!(f, "REFUSED beside {versions} versions: {reason}")?,
            None if *versions == 0 => write!(f, "not registered yet; `backbeat topics` does it")?,
            None if *is_ours => write!(f, "registered, among {versions} versions")?,
            None => write!(f, "compatible with all {versions} versions, not registered yet")?,
        }
        if *versions > 0 && !self.is_transitive() {
            let found = compatibility.as_deref().unwrap_or("not set");
            write!(f, "; its compatibility is {found}, must be FULL_TRANSITIVE: `backbeat topics` sets it")?;
        }
        Ok(())
    }
}
