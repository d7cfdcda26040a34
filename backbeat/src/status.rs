//! `backbeat status` and `backbeat top`: print the cluster's status, once or repeatedly.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::runtime::Runtime;

use crate::output::{EXIT_PROBLEM_FOUND, OutputArgs};
use crate::overview::ProgramArgs;

/// Terminal sequences: switch to the alternate screen without a cursor, switch back, and clear the screen.
const ENTER_SCREEN: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE_SCREEN: &str = "\x1b[?25h\x1b[?1049l";
const CLEAR_SCREEN: &str = "\x1b[H\x1b[J";
/// The interval at which a shutdown is checked for.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

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
    let overview = args.programs.fetch()?;
    args.output.print(|| overview.to_string(), || overview.as_json());
    Ok(if overview.is_ready() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_PROBLEM_FOUND) })
}

/// Flags of `backbeat top`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat top
  backbeat top --interval 0.5")]
pub(crate) struct TopArgs {
    #[command(flatten)]
    programs: ProgramArgs,

    /// Seconds between two refreshes, 0.1 to 3600.
    #[arg(long, default_value_t = 1.0, value_parser = parse_interval)]
    interval: f64,
}

fn parse_interval(text: &str) -> Result<f64, String> {
    let allowed = 0.1..=3_600.0;
    let seconds: f64 = text.parse().map_err(|_| format!("{text} is not a number of seconds"))?;
    if allowed.contains(&seconds) { Ok(seconds) } else { Err("must be 0.1 to 3600 seconds".to_owned()) }
}

pub(crate) fn top(args: &TopArgs) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout();
    if !out.is_terminal() {
        bail!("standard output is not a terminal: use `backbeat status`, with --output json for programs");
    }
    let runtime = Runtime::new()?;
    let shutdown = backbeat_service::on_signals_in(runtime.handle())?;
    write!(out, "{ENTER_SCREEN}")?;
    let mut outcome = Ok(());
    while outcome.is_ok() && !shutdown.is_cancelled() {
        let refreshed = Instant::now();
        let page = args.programs.fetch().map_or_else(|error| format!("{error:#}"), |overview| overview.to_string());
        outcome = write!(out, "{CLEAR_SCREEN}{page}\n\nCtrl-C to exit").and_then(|()| out.flush());
        let interval = Duration::from_secs_f64(args.interval);
        while refreshed.elapsed() < interval && !shutdown.is_cancelled() {
            std::thread::sleep(POLL_INTERVAL);
        }
    }
    write!(out, "{LEAVE_SCREEN}")?;
    out.flush()?;
    outcome?;
    Ok(ExitCode::SUCCESS)
}
