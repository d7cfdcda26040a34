//! `backbeat tempo`.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::Method;
use reqwest::blocking::Client;
use serde_json::{Value, json};

use crate::output::OutputArgs;

/// A node that passes a request on waits for the leader.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Flags of `backbeat tempo`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat tempo                   the present one
  backbeat tempo 22                from the next downbeat on, at most 10 % away
  backbeat tempo 6 --ramp          further, by 10 % a bar
  backbeat tempo --bar-length 8
  backbeat tempo --cancel")]
pub(crate) struct Args {
    /// The tempo to change to, in beats per minute, at most 10 % away; without one, the present one is shown.
    #[arg(conflicts_with = "cancel")]
    bpm: Option<f64>,

    /// Change by 10 % a bar, to a tempo that is further away.
    #[arg(long, requires = "bpm")]
    ramp: bool,

    /// Beats in a bar, from the next downbeat on.
    #[arg(long, conflicts_with = "cancel")]
    bar_length: Option<u16>,

    /// Stop a change that is under way, at the tempo of the moment.
    #[arg(long)]
    cancel: bool,

    /// Any pulse node's HTTP server.
    #[arg(long, env = "BACKBEAT_PULSE_URL", default_value = "http://localhost:8080")]
    url: String,

    /// A file with the token that pulse's --admin-token-file holds.
    #[arg(long, env = "BACKBEAT_ADMIN_TOKEN_FILE", value_name = "FILE")]
    admin_token_file: Option<PathBuf>,

    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.cancel {
        let stays = args.ask(Method::DELETE, "/api/v1/tempo", None)?;
        args.output.say(|| format!("the tempo stays at {} BPM", stays["tempo_bpm"]), || stays.clone());
    } else if args.bpm.is_some() || args.bar_length.is_some() {
        let change = json!({ "tempo_bpm": args.bpm, "ramp": args.ramp, "bar_length": args.bar_length });
        let agreed = args.ask(Method::POST, "/api/v1/tempo", Some(&change))?;
        let steps = if args.ramp { ", by 10 % a bar" } else { "" };
        let as_text = || {
            let (tempo, length, from) = (&agreed["tempo_bpm"], &agreed["bar_length"], &agreed["from_beat"]);
            format!("{tempo} BPM in bars of {length}, from beat {from}{steps}")
        };
        args.output.say(as_text, || agreed.clone());
    } else {
        let status = args.ask(Method::GET, "/api/v1/status", None)?;
        if status["tempo_bpm"].is_null() {
            bail!("no beat has been published yet; ask {}/ready what it waits for", args.url);
        }
        let pending = &status["pending"];
        let way = if pending.is_null() {
            String::new()
        } else {
            format!(
                ", on the way to {} BPM in bars of {} from beat {}",
                pending["tempo_bpm"], pending["bar_length"], pending["from_beat"]
            )
        };
        let (tempo, length, beat) = (&status["tempo_bpm"], &status["bar_length"], &status["beat"]);
        args.output.say(
            || format!("{tempo} BPM in bars of {length}{way}; beat {beat}"),
            || json!({ "tempo_bpm": tempo, "bar_length": length, "beat": beat, "pending": pending }),
        );
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    /// The body of the answer; what is refused is an error with the reason.
    fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let url = format!("{}{path}", self.url.trim_end_matches('/'));
        let mut request = Client::builder().timeout(TIMEOUT).no_proxy().build()?.request(method, &url);
        if let Some(file) = &self.admin_token_file {
            let token = fs::read_to_string(file).with_context(|| format!("reading the token in {}", file.display()))?;
            request = request.bearer_auth(token.trim());
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().with_context(|| format!("{url} does not answer; is it a pulse node's? (--url)"))?;
        let status = answer.status();
        let body: Value = answer.json().with_context(|| format!("{url} answered {status}, and not in JSON"))?;
        if status.is_success() {
            return Ok(body);
        }
        bail!("{}", body["error"].as_str().unwrap_or("refused without a reason"))
    }
}
