//! The agent-sim program: see `agent-sim --help`.

use std::process::ExitCode;

use backbeat_agent_sim::{Args, run};
use clap::Parser;
use tokio::runtime::Runtime;

fn main() -> ExitCode {
    let args = Args::parse_from(backbeat_service::command_line());
    args.log.init();
    backbeat_service::conclude(start(args))
}

fn start(args: Args) -> anyhow::Result<ExitCode> {
    Runtime::new()?.block_on(async {
        run(args, backbeat_service::on_signals()?).await?;
        Ok(ExitCode::SUCCESS)
    })
}
