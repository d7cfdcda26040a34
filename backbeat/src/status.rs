//! `backbeat status`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use crate::dev_state::{DevState, Service};

const TIMEOUT: Duration = Duration::from_secs(2);

/// Flags of `backbeat status`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// The directory of `backbeat dev`.
    #[arg(long, default_value = ".backbeat")]
    dir: PathBuf,
}

#[allow(clippy::print_stdout, reason = "it is the command's output")]
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Some(state) = DevState::read(&args.dir)? else {
        println!("nothing runs here: start it with `make run-dev`");
        return Ok(ExitCode::FAILURE);
    };
    println!("kafka     {}", state.bootstrap_servers);
    println!("registry  {}", state.schema_registry);
    let http = reqwest::blocking::Client::builder().timeout(TIMEOUT).build()?;
    let mut all_ready = true;
    for service in &state.services {
        let (ready, word) = ask(&http, service);
        all_ready &= ready;
        println!("{:<9} {}  {word}", service.name, service.url);
    }
    Ok(if all_ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether a service is ready, and what it says.
fn ask(http: &reqwest::blocking::Client, service: &Service) -> (bool, String) {
    let answer = match http.get(format!("{}/ready", service.url)).send() {
        Ok(answer) => answer,
        Err(error) => return (false, format!("does not answer: {error}")),
    };
    let ready = answer.status().is_success();
    let body: Value = answer.json().unwrap_or_default();
    let word = body["status"].as_str().or(body["error"].as_str()).unwrap_or("no reason given").to_owned();
    (ready, word)
}
