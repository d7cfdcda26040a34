//! `backbeat corrections`: reports corrected for the claims that came late.

use std::process::ExitCode;

use backbeat_broker::{Broker, KafkaArgs, Registry};
use backbeat_reverb::audit::AuditRange;
use backbeat_reverb::corrections::{Correction, corrections};
use backbeat_schemas::BeatIndex;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::audit::differences;
use crate::beat_flag::beat_parser;
use crate::output::OutputArgs;

/// Flags of `backbeat corrections`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat corrections --from 40 --to 80
  backbeat corrections --from 40 --to 80 --output json > corrections.jsonl")]
pub(crate) struct Args {
    /// A beat of the first window.
    #[arg(long, value_name = "BEAT", value_parser = beat_parser())]
    from: BeatIndex,

    /// A beat of the last window; by default that of the newest window that can have a report.
    #[arg(long, value_name = "BEAT", value_parser = beat_parser())]
    to: Option<BeatIndex>,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    kafka: KafkaArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = Runtime::new()?;
    let broker = Broker::new(&args.kafka, "backbeat-corrections")?;
    let registry = Registry::new(&args.kafka)?;
    let range = AuditRange { from: Some(args.from), to: args.to };
    let stop = backbeat_service::on_signals_in(runtime.handle())?;
    let (mut windows, mut changed) = (0, 0);
    corrections(&broker, &registry, runtime.handle(), range, &stop, |correction| {
        windows += 1;
        if correction.published.as_ref() != Some(&correction.corrected) {
            changed += 1;
            args.output.print(|| as_text(&correction), || as_json(&correction));
        }
    })?;
    let summary = format!("{windows} windows, {changed} of which would change; nothing was written");
    args.output.print_summary(&summary);
    Ok(ExitCode::SUCCESS)
}

fn as_text(Correction { published, corrected }: &Correction) -> String {
    let what = match published {
        Some(published) => differences("corrected", &json!(published), &json!(corrected)).join(", "),
        None => "no report".to_owned(),
    };
    format!("beat {}  window {}: {what}", corrected.from_beat, corrected.window_id)
}

fn as_json(Correction { published, corrected }: &Correction) -> Value {
    json!({
        "window_id": corrected.window_id, "from_beat": corrected.from_beat, "published": published, "corrected": corrected,
    })
}
