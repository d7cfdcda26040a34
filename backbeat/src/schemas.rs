//! `backbeat schemas`: checks this program's schemas for compatibility with the registry.

use std::fmt;
use std::process::ExitCode;

use backbeat_broker::{Broker, KafkaArgs, Registry, SubjectStatus, TopicName};
use backbeat_schemas::{BarPartial, BarReport, BarRoster, BeatFrame, Record, StatusClaim};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::output::{EXIT_PROBLEM_FOUND, OutputArgs};

/// Flags of `backbeat schemas`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// Checks that this program's schemas are compatible with all registered versions; changes nothing.
    ///
    /// Exits with 0 if all are registered or can be, with 3 if one is refused or a subject is not `FULL_TRANSITIVE`.
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

/// The result of checking one subject.
struct SubjectCheck {
    subject: String,
    found: SubjectStatus,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Command::Check(args) = &args.command;
    let topics = Broker::new(&args.kafka, "backbeat-schemas")?.topics().clone();
    let registry = Registry::new(&args.kafka)?;
    let checks = Runtime::new()?.block_on(async {
        let subject = |topic| topics.subject(topic);
        anyhow::Ok([
            check::<BeatFrame>(&registry, subject(TopicName::BeatFrames)).await?,
            check::<StatusClaim>(&registry, subject(TopicName::StatusClaims)).await?,
            check::<BarReport>(&registry, subject(TopicName::BarReports)).await?,
            check::<BarRoster>(&registry, subject(TopicName::BarRosters)).await?,
            check::<BarPartial>(&registry, subject(TopicName::BarPartials)).await?,
        ])
    })?;
    for check in &checks {
        args.output.print(|| check.to_string(), || check.as_json());
    }
    Ok(if checks.iter().all(SubjectCheck::is_ok) { ExitCode::SUCCESS } else { ExitCode::from(EXIT_PROBLEM_FOUND) })
}

async fn check<R: Record>(registry: &Registry, subject: String) -> anyhow::Result<SubjectCheck> {
    let found = registry.check::<R>(&subject).await?;
    Ok(SubjectCheck { subject, found })
}

impl SubjectCheck {
    fn is_ok(&self) -> bool {
        self.found.refused.is_none() && (self.found.versions == 0 || self.is_transitive())
    }

    fn is_transitive(&self) -> bool {
        self.found.compatibility.as_deref() == Some("FULL_TRANSITIVE")
    }

    fn as_json(&self) -> Value {
        let SubjectStatus { versions, is_registered, compatibility, refused } = &self.found;
        json!({
            "subject": self.subject, "ok": self.is_ok(), "versions": versions, "registered": is_registered,
            "compatibility": compatibility, "refused": refused,
        })
    }
}

impl fmt::Display for SubjectCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SubjectStatus { versions, is_registered, compatibility, refused } = &self.found;
        write!(f, "{:<24} ", self.subject)?;
        match refused {
            Some(reason) => write!(f, "REFUSED by the registry, which has {versions} versions: {reason}")?,
            None if *versions == 0 => write!(f, "not registered yet; `backbeat topics` registers it")?,
            None if *is_registered => write!(f, "registered, one of {versions} versions")?,
            None => write!(f, "compatible with all {versions} versions, not registered yet")?,
        }
        if *versions > 0 && !self.is_transitive() {
            let found = compatibility.as_deref().unwrap_or("not set");
            write!(f, "; its compatibility is {found}, must be FULL_TRANSITIVE; `backbeat topics` sets it")?;
        }
        Ok(())
    }
}
