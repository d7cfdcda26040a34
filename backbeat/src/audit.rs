//! `backbeat audit`: recomputes reports and compares them with the published ones.

use std::process::ExitCode;

use backbeat_broker::{Broker, KafkaArgs, Registry};
use backbeat_reverb::audit::{AuditRange, AuditedWindow, Finding, audit};
use backbeat_schemas::BeatIndex;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::beat_flag::beat_parser;
use crate::output::{EXIT_PROBLEM_FOUND, Output, OutputArgs};

/// Flags of `backbeat audit`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat audit
  backbeat audit --from 40 --to 80
  backbeat audit --output json | jq 'select(.finding != \"identical\")'")]
pub(crate) struct Args {
    /// The first beat to audit; by default the first retained one.
    #[arg(long, value_name = "BEAT", value_parser = beat_parser())]
    from: Option<BeatIndex>,

    /// The last beat to audit; by default that of the newest window that can have a report.
    #[arg(long, value_name = "BEAT", value_parser = beat_parser())]
    to: Option<BeatIndex>,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    kafka: KafkaArgs,
}

/// The number of windows by finding.
#[derive(Default)]
pub(crate) struct Summary {
    pub(crate) identical: u64,
    pub(crate) different: u64,
    pub(crate) missing: u64,
    pub(crate) duplicate: u64,
    pub(crate) not_retained: u64,
}

impl Summary {
    fn count(&mut self, finding: &Finding) {
        *match finding {
            Finding::Identical => &mut self.identical,
            Finding::Duplicate { .. } => &mut self.duplicate,
            Finding::Different { .. } => &mut self.different,
            Finding::Missing => &mut self.missing,
            Finding::NotRetained => &mut self.not_retained,
        } += 1;
    }

    fn windows(&self) -> u64 {
        self.identical + self.different + self.missing + self.duplicate + self.not_retained
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = Runtime::new()?;
    let broker = Broker::new(&args.kafka, "backbeat-audit")?;
    let registry = Registry::new(&args.kafka)?;
    let range = AuditRange { from: args.from, to: args.to };
    let summary = audit_range(&broker, &registry, &runtime, range, args.output)?;
    let Summary { identical, different, missing, duplicate, not_retained } = summary;
    let counts = format!(
        "{} windows: {identical} identical, {different} different, {missing} missing, {duplicate} duplicate, {not_retained} not retained",
        summary.windows()
    );
    args.output.print_summary(&counts);
    Ok(if different + missing + duplicate > 0 { ExitCode::from(EXIT_PROBLEM_FOUND) } else { ExitCode::SUCCESS })
}

/// Recomputes the reports of `range`, compares them with the published ones, and prints the findings.
pub(crate) fn audit_range(
    broker: &Broker,
    registry: &Registry,
    runtime: &Runtime,
    range: AuditRange,
    output: OutputArgs,
) -> anyhow::Result<Summary> {
    let stop = backbeat_service::on_signals_in(runtime.handle())?;
    let mut summary = Summary::default();
    // Shown on standard error, and only if that is a terminal.
    let progress = ProgressBar::no_length().with_style(
        ProgressStyle::with_template("{bar:30} {pos}/{len} windows, {eta} left").expect("the template is valid"),
    );
    audit(broker, registry, runtime.handle(), range, &stop, |audited, windows| {
        summary.count(&audited.finding);
        if output.output == Output::Json || audited.finding != Finding::Identical {
            progress.suspend(|| output.print(|| as_text(&audited), || as_json(&audited)));
        }
        progress.set_length(windows as u64);
        progress.inc(1);
    })?;
    progress.finish_and_clear();
    Ok(summary)
}

fn as_text(audited: &AuditedWindow) -> String {
    let (beat, id) = (audited.from_beat, audited.window_id);
    match &audited.finding {
        Finding::Identical => format!("identical     beat {beat}  window {id}"),
        Finding::Duplicate { reports } => format!("duplicate     beat {beat}  window {id}: {reports} reports"),
        Finding::Missing => format!("missing       beat {beat}  window {id}"),
        Finding::NotRetained => format!("not retained  beat {beat}  window {id}: its claims are not all retained"),
        Finding::Different { published, computed } => {
            let fields = differences("computed", &json!(published), &json!(computed));
            format!("different     beat {beat}  window {id}: {}", fields.join(", "))
        }
    }
}

/// Returns `field published, <name> value` for each field in which the report `other`, named so, differs.
pub(crate) fn differences(name: &str, published: &Value, other: &Value) -> Vec<String> {
    let fields = published.as_object().into_iter().flatten();
    let differing = fields.filter(|(field, value)| other[field.as_str()] != **value);
    differing.map(|(field, value)| format!("{field} {value}, {name} {}", other[field.as_str()])).collect()
}

fn as_json(audited: &AuditedWindow) -> Value {
    let (finding, detail) = match &audited.finding {
        Finding::Identical => ("identical", json!({})),
        Finding::Duplicate { reports } => ("duplicate", json!({ "reports": reports })),
        Finding::Missing => ("missing", json!({})),
        Finding::NotRetained => ("not_retained", json!({})),
        Finding::Different { published, computed } => {
            ("different", json!({ "published": published, "computed": computed }))
        }
    };
    json!({ "window_id": audited.window_id, "from_beat": audited.from_beat, "finding": finding, "detail": detail })
}
