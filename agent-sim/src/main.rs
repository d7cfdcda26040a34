//! The agent-sim program: see `agent-sim --help`.

use std::process::ExitCode;

use backbeat_agent_sim::{Args, run};
use clap::Parser;

fn main() -> ExitCode {
    let args = Args::parse_from(backbeat_service::command_line());
    args.log.init();
    backbeat_service::block_on(async { run(args, backbeat_service::on_signals()?).await })
}
