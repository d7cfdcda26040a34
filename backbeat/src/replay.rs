//! `backbeat replay`.

use std::process::ExitCode;

use anyhow::Context;
use backbeat_broker::{Broker, KafkaArgs, Registry};
use backbeat_reverb::shell::{AuditRange, ReplayPlan, ReplayTo, execute_replay, plan_replay};
use backbeat_schemas::{BeatIndex, Timestamp, WindowId};
use chrono::DateTime;
use serde_json::json;
use tokio::runtime::Runtime;

use crate::audit::{self, Summary};
use crate::output::{Output, OutputArgs, print};

/// Flags of `backbeat replay`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat replay --to-beat 40                     the plan
  backbeat replay --to-beat 40 --dry-run-report    what would change
  backbeat replay --to-datetime 2026-11-22T08:55:32Z --execute")]
pub(crate) struct Args {
    #[command(flatten)]
    to: Target,

    /// Do it; without this the plan is shown and nothing is changed.
    #[arg(long)]
    execute: bool,

    /// Compute these windows again without touching the group, and print what would change.
    #[arg(long, conflicts_with = "execute")]
    dry_run_report: bool,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    kafka: KafkaArgs,
}

#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = false)]
#[allow(clippy::struct_field_names, reason = "they are the flags")]
struct Target {
    /// To the window that has this beat.
    #[arg(long, value_name = "BEAT", value_parser = clap::value_parser!(i64).range(0..))]
    to_beat: Option<i64>,

    /// To this window.
    #[arg(long, value_name = "ID")]
    to_window: Option<WindowId>,

    /// To the window that was open then, such as 2026-11-22T08:55:32Z.
    #[arg(long, value_name = "INSTANT", value_parser = instant)]
    to_datetime: Option<Timestamp>,

    /// To the oldest window whose claims are wholly there.
    #[arg(long)]
    to_earliest: bool,
}

fn instant(text: &str) -> Result<Timestamp, String> {
    let parsed = DateTime::parse_from_rfc3339(text);
    let parsed = parsed.map_err(|error| format!("not RFC 3339, as 2026-11-22T08:55:32Z is: {error}"))?;
    Ok(Timestamp::from_millis(parsed.timestamp_millis()))
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = Runtime::new()?;
    let broker = Broker::new(&args.kafka, "backbeat-replay")?;
    let registry = Registry::new(&args.kafka)?;
    let Target { to_beat, to_window, to_datetime, .. } = &args.to;
    let to = match (to_beat, to_window, to_datetime) {
        (Some(beat), _, _) => ReplayTo::Beat(BeatIndex::try_from(*beat).context("--to-beat")?),
        (_, Some(window), _) => ReplayTo::Window(*window),
        (_, _, Some(instant)) => ReplayTo::Instant(*instant),
        _ => ReplayTo::Earliest,
    };
    let plan = plan_replay(&broker, &registry, runtime.handle(), to)?;
    let ReplayPlan { group, window_id, from_beat, newest_beat, offsets, claims } = &plan;
    let as_text = || {
        let partitions =
            offsets.iter().map(|(partition, offset)| format!("\n  partition {partition:<4} offset {offset}"));
        let partitions: String = partitions.collect();
        format!(
            "group {group} from window {window_id}: beats {from_beat} to {newest_beat}, {claims} claims to read{partitions}"
        )
    };
    let as_json = || {
        json!({
            "group": group, "window_id": window_id, "from_beat": from_beat, "newest_beat": newest_beat,
            "claims": claims, "offsets": offsets,
        })
    };
    args.output.say(as_text, as_json);
    if args.dry_run_report {
        let range = AuditRange { from: Some(*from_beat), to: None };
        let Summary { identical, different, missing, duplicate, not_retained } =
            audit::look(&broker, &registry, &runtime, range, args.output)?;
        let verified = identical + duplicate;
        args.output.say(
            || format!("would verify {verified}, rewrite {different}, write {missing} and skip {not_retained} reports"),
            || json!({ "verify": verified, "rewrite": different, "write": missing, "skip": not_retained }),
        );
    } else if args.execute {
        execute_replay(&broker, &plan)?;
        args.output.say(
            || "done: start reverb, and it computes these windows again".to_owned(),
            || json!({ "executed": true }),
        );
    } else if args.output.output == Output::Text {
        print(b"nothing was changed: --execute does it, while reverb is stopped\n");
    }
    Ok(ExitCode::SUCCESS)
}
