//! The operator's command: see `backbeat --help`.

mod audit;
mod console;
mod dev;
mod dev_state;
mod generate;
mod kafka_tool;
mod output;
mod overview;
mod replay;
mod run;
mod schemas;
mod sinks;
mod status;
mod status_file;
mod tail;
mod tempo;
mod topics;
mod warehouse;

use std::process::ExitCode;

use backbeat_service::{DEFAULT_LEVEL, LogArgs};
use clap::{CommandFactory, Parser};

/// Runs and looks after a BACKBEAT cluster.
#[derive(Debug, Parser)]
#[command(name = "backbeat", version)]
struct Args {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Runs everything on this machine: Kafka, a schema registry, three pulse nodes, two reverb members, agents.
    Dev(dev::Args),
    /// Runs a program as an agent: a claim a beat while it runs, and an end when its beat budget is spent.
    ///
    /// The exit code is the program's, 124 when the budget was spent, 126 or 127 when it could not be run. What the
    /// program appends to the file named in `BACKBEAT_STATUS_FILE`, JSON lines with state, progress, notes and help, goes
    /// into its claims. Kafka may be away: the budget then runs on local beats.
    Run(run::Args),
    /// Says how a cluster is doing, on one screen: pulse, reverb, the last report, the promises about time.
    ///
    /// Exits with 0 if every program is ready, with 3 if one is not, with 1 if none answers.
    Status(status::Args),
    /// The same, again and again.
    Top(status::TopArgs),
    /// Shows the tempo, or changes it.
    Tempo(tempo::Args),
    /// Creates the topics that are missing, and refuses ones with wrong settings.
    Topics(topics::Args),
    /// Computes reports again from the log and compares them with those that were published.
    ///
    /// Exits with 0 if all are the same, with 3 if one differs, is missing or is there twice.
    Audit(audit::Args),
    /// Puts reverb's group back to a window, so that it computes again from there; shows the plan first.
    Replay(replay::Args),
    /// Prints records as JSON lines.
    Tail(tail::Args),
    /// Prints records with Kafka's own console consumer and an Avro deserializer, as JSON lines.
    Console(console::Args),
    /// Holds this program's schemas against those in the registry.
    Schemas(schemas::Args),
    /// Says how the sinks of a Kafka Connect worker are doing; starts or changes those whose files are named.
    ///
    /// Exits with 0 if all run, with 3 if one does not.
    Sinks(sinks::Args),
    /// Runs one of Kafka's own command-line tools.
    Kafka(kafka_tool::Args),
    /// Prints completions for a shell.
    Completions(generate::CompletionsArgs),
    /// Writes manual pages.
    Man(generate::ManArgs),
}

fn main() -> ExitCode {
    let mut args = Args::parse_from(backbeat_service::command_line());
    if matches!(args.command, Command::Run(_)) && args.log.log_level == DEFAULT_LEVEL {
        // What stands on the terminal is the program's.
        "error".clone_into(&mut args.log.log_level);
    }
    args.log.init();
    backbeat_service::conclude(run(args.command))
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        // Its children are run and looked after on this thread.
        Command::Dev(args) => dev::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Tempo(args) => tempo::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Top(args) => status::top(&args),
        Command::Kafka(args) => kafka_tool::run(&args),
        Command::Completions(args) => Ok(generate::completions(&args, &mut Args::command())),
        Command::Man(args) => generate::man(&args, Args::command()),
        Command::Topics(args) => tokio::runtime::Runtime::new()?.block_on(topics::run(&args)),
        Command::Tail(args) => tail::run(&args),
        Command::Console(args) => console::run(&args),
        Command::Schemas(args) => schemas::run(&args),
        Command::Sinks(args) => sinks::run(&args),
    }
}
