//! `backbeat replay`: resets reverb's consumer group to a window.

use std::process::ExitCode;

use backbeat_broker::{Broker, KafkaArgs, Registry};
use backbeat_reverb::audit::AuditRange;
use backbeat_reverb::replay::{ReplayPlan, ReplayTarget, execute_replay, plan_replay};
use backbeat_schemas::{BeatIndex, Timestamp, WindowId};
use chrono::DateTime;
use serde_json::json;
use tokio::runtime::Runtime;

use crate::audit::{self, Summary};
use crate::beat_flag::beat_parser;
use crate::output::{Output, OutputArgs, print_bytes};

/// Flags of `backbeat replay`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat replay --to-beat 40                     show the plan
  backbeat replay --to-beat 40 --dry-run-report    show what would change
  backbeat replay --to-datetime 2026-11-22T08:55:32Z --execute")]
pub(crate) struct Args {
    #[command(flatten)]
    to: Target,

    /// Reset the group; without this flag only the plan is shown.
    #[arg(long)]
    execute: bool,

    /// Recompute these windows without resetting the group, and show what would change.
    #[arg(long, conflicts_with = "execute")]
    dry_run_report: bool,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    kafka: KafkaArgs,
}

#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = false)]
#[allow(clippy::struct_field_names, reason = "the fields are named for the flags")]
struct Target {
    /// Replay from the window that contains this beat.
    #[arg(long, value_name = "BEAT", value_parser = beat_parser())]
    to_beat: Option<BeatIndex>,

    /// Replay from this window.
    #[arg(long, value_name = "ID")]
    to_window: Option<WindowId>,

    /// Replay from the window that was open at this time, in RFC 3339, such as 2026-11-22T08:55:32Z.
    #[arg(long, value_name = "INSTANT", value_parser = parse_instant)]
    to_datetime: Option<Timestamp>,

    /// Replay from the oldest window whose claims are all retained.
    #[arg(long)]
    to_earliest: bool,
}

fn parse_instant(text: &str) -> Result<Timestamp, String> {
    let parsed = DateTime::parse_from_rfc3339(text);
    let parsed = parsed.map_err(|error| format!("not an RFC 3339 time such as 2026-11-22T08:55:32Z: {error}"))?;
    Ok(Timestamp::from_millis(parsed.timestamp_millis()))
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = Runtime::new()?;
    let broker = Broker::new(&args.kafka, "backbeat-replay")?;
    let registry = Registry::new(&args.kafka)?;
    let Target { to_beat, to_window, to_datetime, .. } = &args.to;
    let to = match (to_beat, to_window, to_datetime) {
        (Some(beat), _, _) => ReplayTarget::Beat(*beat),
        (_, Some(window), _) => ReplayTarget::Window(*window),
        (_, _, Some(instant)) => ReplayTarget::Instant(*instant),
        _ => ReplayTarget::Earliest,
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
    args.output.print(as_text, as_json);
    if args.dry_run_report {
        let range = AuditRange { from: Some(*from_beat), to: None };
        let Summary { identical, different, missing, duplicate, not_retained } =
            audit::audit_range(&broker, &registry, &runtime, range, args.output)?;
        let verified = identical + duplicate;
        args.output.print(
            || format!("would verify {verified}, rewrite {different}, write {missing} and skip {not_retained} reports"),
            || json!({ "verify": verified, "rewrite": different, "write": missing, "skip": not_retained }),
        );
    } else if args.execute {
        execute_replay(&broker, &plan)?;
        args.output
            .print(|| "done: start reverb, and it recomputes these windows".to_owned(), || json!({ "executed": true }));
    } else if args.output.output == Output::Text {
        print_bytes(b"nothing was changed; run it with --execute while reverb is stopped\n");
    }
    Ok(ExitCode::SUCCESS)
}
