//! The agent-sim program: see `agent-sim --help`.

use backbeat_agent_sim::{Args, run};
use clap::Parser;

fn main() -> anyhow::Result<()> {
    let args = Args::parse_from(backbeat_service::command_line());
    args.log.init();
    tokio::runtime::Runtime::new()?.block_on(async { run(args, backbeat_service::on_signals()?).await })
}
