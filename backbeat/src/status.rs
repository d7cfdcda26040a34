//! `backbeat status` and `backbeat top`.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::runtime::Runtime;

use crate::output::{FOUND, OutputArgs};
use crate::overview::ProgramArgs;

/// Of a terminal: another screen without a cursor, back again, and a clean page.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
const CLEAN_PAGE: &str = "\x1b[H\x1b[J";
const POLL: Duration = Duration::from_millis(50);

/// Flags of `backbeat status`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat status
  backbeat status --pulse http://pulse-1:8080,http://pulse-2:8080 --reverb http://reverb-1:8082
  backbeat status --output json | jq '.reverb[].status.lag_beats'")]
pub(crate) struct Args {
    #[command(flatten)]
    programs: ProgramArgs,

    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let overview = args.programs.ask()?;
    args.output.say(|| overview.to_string(), || overview.as_json());
    Ok(if overview.is_well() { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

/// Flags of `backbeat top`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat top
  backbeat top --interval 0.5")]
pub(crate) struct TopArgs {
    #[command(flatten)]
    programs: ProgramArgs,

    /// Seconds from one look to the next.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    interval: f64,
}

fn seconds(text: &str) -> Result<f64, String> {
    let allowed = 0.1..=3_600.0;
    let seconds: f64 = text.parse().map_err(|_| format!("{text} is not a number of seconds"))?;
    if allowed.contains(&seconds) { Ok(seconds) } else { Err("allowed are 0.1 to 3600 seconds".to_owned()) }
}

pub(crate) fn top(args: &TopArgs) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout();
    if !out.is_terminal() {
        bail!("top draws on a terminal, and this is none: use `backbeat status`, with --output json for programs");
    }
    let runtime = Runtime::new()?;
    let shutdown = {
        let _inside = runtime.enter();
        backbeat_service::on_signals()?
    };
    write!(out, "{ENTER}")?;
    let mut outcome = Ok(());
    while outcome.is_ok() && !shutdown.is_cancelled() {
        let looked = Instant::now();
        let page = args.programs.ask().map_or_else(|error| format!("{error:#}"), |overview| overview.to_string());
        outcome = write!(out, "{CLEAN_PAGE}{page}\n\nCtrl-C ends this").and_then(|()| out.flush());
        let interval = Duration::from_secs_f64(args.interval);
        while looked.elapsed() < interval && !shutdown.is_cancelled() {
            std::thread::sleep(POLL);
        }
    }
    write!(out, "{LEAVE}")?;
    out.flush()?;
    outcome?;
    Ok(ExitCode::SUCCESS)
}
