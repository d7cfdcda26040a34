//! The pulse program; `pulse --help` lists its flags.

use std::process::ExitCode;

use backbeat_pulse::{Args, run};
use clap::Parser;

fn main() -> ExitCode {
    let args = Args::parse_from(backbeat_service::command_line());
    args.log.init();
    if let Some(exit_code) = args.http.check(args.admin_port) {
        return exit_code;
    }
    backbeat_service::block_on(async {
        let listener = args.http.listen(args.admin_port).await?;
        run(args, listener, backbeat_service::on_signals()?).await
    })
}
