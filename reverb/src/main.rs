//! The reverb program: see `reverb --help`.

use backbeat_reverb::shell::{Args, run};
use clap::Parser;

fn main() -> anyhow::Result<()> {
    let args = Args::parse_from(backbeat_service::command_line());
    args.log.init();
    tokio::runtime::Runtime::new()?.block_on(async {
        let listener = args.http.listen(args.admin_port).await?;
        run(args, listener, backbeat_service::on_signals()?).await
    })
}
