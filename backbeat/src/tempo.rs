//! `backbeat tempo`: shows or changes the tempo.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use backbeat_http_api::ErrorBody;
use backbeat_http_api::pulse::{CommittedPlan, Pending, StatusBody};
use reqwest::Method;
use reqwest::blocking::Client;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::output::OutputArgs;

/// Long enough for a node that forwards the request to the leader and waits for its answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Flags of `backbeat tempo`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat tempo                   show the current tempo
  backbeat tempo 22                change it at the next downbeat, by at most 10 %
  backbeat tempo 6 --ramp          change it further, by at most 10 % per bar
  backbeat tempo --bar-length 8
  backbeat tempo --cancel")]
pub(crate) struct Args {
    /// The new tempo in beats per minute, at most 10 % from the current one; without it, the current tempo is shown.
    #[arg(conflicts_with = "cancel")]
    bpm: Option<f64>,

    /// Change by at most 10 % per bar, to a tempo of any distance.
    #[arg(long, requires = "bpm")]
    ramp: bool,

    /// Beats per bar, from the next downbeat on.
    #[arg(long, conflicts_with = "cancel")]
    bar_length: Option<u16>,

    /// Cancel a change in progress; the tempo stays as it is at that moment.
    #[arg(long)]
    cancel: bool,

    /// URL of any pulse node's HTTP server.
    #[arg(long, env = "BACKBEAT_PULSE_URL", default_value = "http://localhost:8080")]
    url: String,

    /// File with the admin token, as given to pulse with --admin-token-file.
    #[arg(long, env = "BACKBEAT_ADMIN_TOKEN_FILE", value_name = "FILE")]
    admin_token_file: Option<PathBuf>,

    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.cancel {
        let kept: CommittedPlan = args.request(Method::DELETE, "/api/v1/tempo", None)?;
        args.output.print(|| format!("the tempo stays at {}", kept.tempo_bpm), || json!(kept));
    } else if args.bpm.is_some() || args.bar_length.is_some() {
        // Pulse checks the tempo.
        let change = json!({ "tempo_bpm": args.bpm, "ramp": args.ramp, "bar_length": args.bar_length });
        let accepted: CommittedPlan = args.request(Method::POST, "/api/v1/tempo", Some(&change))?;
        let steps = if args.ramp { ", by at most 10 % per bar" } else { "" };
        let as_text = || {
            let CommittedPlan { tempo_bpm, bar_length, from_beat } = &accepted;
            format!("{tempo_bpm} in bars of {bar_length}, from beat {from_beat}{steps}")
        };
        args.output.print(as_text, || json!(accepted));
    } else {
        let status: StatusBody = args.request(Method::GET, "/api/v1/status", None)?;
        let (Some(tempo), Some(length), Some(beat)) = (status.tempo_bpm, status.bar_length, status.beat) else {
            bail!("no beat has been published yet; {}/ready shows why", args.url);
        };
        let pending = &status.pending;
        let change = pending.as_ref().map(|Pending { from_beat, tempo_bpm, bar_length, .. }| {
            format!(", changing to {tempo_bpm} in bars of {bar_length} from beat {from_beat}")
        });
        args.output.print(
            || format!("{tempo} in bars of {length}{}; beat {beat}", change.unwrap_or_default()),
            || json!({ "tempo_bpm": tempo, "bar_length": length, "beat": beat, "pending": pending }),
        );
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    /// Sends a request and returns the response body; a refused request is an error with the reason.
    fn request<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<T> {
        let url = format!("{}{path}", self.url.trim_end_matches('/'));
        let mut request = Client::builder().timeout(TIMEOUT).no_proxy().build()?.request(method, &url);
        if let Some(file) = &self.admin_token_file {
            let tokens =
                fs::read_to_string(file).with_context(|| format!("cannot read the token in {}", file.display()))?;
            let token = tokens.lines().map(str::trim).find(|line| !line.is_empty());
            request = request.bearer_auth(token.with_context(|| format!("{} has no token", file.display()))?);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response =
            request.send().with_context(|| format!("{url} does not answer; is a pulse node running there? (--url)"))?;
        let status = response.status();
        let unexpected = || format!("{url} answered {status}, but not as pulse does");
        if status.is_success() {
            return response.json().with_context(unexpected);
        }
        bail!("{}", response.json::<ErrorBody>().with_context(unexpected)?.error)
    }
}
