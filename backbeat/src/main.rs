//! The `backbeat` CLI, for operators: see `backbeat --help`.

mod agent;
mod audit;
mod beat_flag;
mod console;
mod corrections;
mod dev;
mod dev_state;
mod generate;
mod kafka_tool;
mod notify;
mod output;
mod overview;
mod replay;
mod roster;
mod run;
mod schemas;
mod sinks;
mod status;
mod status_file;
mod tail;
mod tempo;
mod topics;
mod ui;
mod warehouse;

use std::ffi::OsString;
use std::process::ExitCode;

use backbeat_schemas::Timestamp;
use backbeat_service::{Environment, LogArgs};
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser};

/// Operates a BACKBEAT cluster.
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
    /// Runs a whole cluster on this machine: Kafka, a schema registry, three pulse nodes, two reverb members, agents.
    Dev(dev::Args),
    /// Runs a program as an agent: sends one claim per beat, and stops the program when its beat budget is spent.
    ///
    /// The exit code is the program's own; it is 124 if the budget was spent, and 126 or 127 if the program could not
    /// be started. The program can append JSON lines with state, progress, notes and help to the file named in
    /// `BACKBEAT_STATUS_FILE`; they go into its claims. While Kafka is unavailable, local beats count towards the
    /// budget.
    Run(run::Args),
    /// Shows the cluster's status on one screen: pulse, reverb, the last report, the SLOs.
    ///
    /// Exits with 0 if every program is ready, with 3 if one is not, with 1 if none answers.
    Status(status::Args),
    /// Live status: the screen of `backbeat status`, refreshed until Ctrl-C.
    Top(status::TopArgs),
    /// Shows or changes the tempo.
    Tempo(tempo::Args),
    /// Serves the cluster's page, for browsers: beats, windows, reports, who needs attention, and the programs, as they change.
    Ui(ui::Args),
    /// Creates missing topics, checks the settings of existing ones, and registers the schemas.
    Topics(topics::Args),
    /// Recomputes reports from the log and compares them with the published ones.
    ///
    /// Exits with 0 if all are identical, with 3 if one is different, missing or duplicate.
    Audit(audit::Args),
    /// Shows what reports would say if the claims that came late until now had come in time. Writes nothing.
    Corrections(corrections::Args),
    /// Shows who needs attention, by name: agents that fell silent, tasks that stalled, tasks that are overdrawn.
    Roster(roster::Args),
    /// Shows what one agent claimed, bar by bar, and what became of each claim: counted, late or invalid.
    Agent(agent::Args),
    /// Says in words why an agent's claim for a beat counted or did not.
    Explain(agent::ExplainArgs),
    /// Resets reverb's consumer group, so that it recomputes reports from a given window; without --execute, shows the plan.
    Replay(replay::Args),
    /// Prints records as JSON lines.
    Tail(tail::Args),
    /// Prints records as JSON lines with Kafka's console consumer and an Avro deserializer.
    Console(console::Args),
    /// Checks schema compatibility with the registry.
    Schemas(schemas::Args),
    /// Posts a notification for each bar that has something to say, and a heartbeat for each report.
    ///
    /// Its position is the committed offset of the consumer group `notify`. It begins with the next report when it is started
    /// for the first time. Run one.
    Notify(notify::Args),
    /// Shows the state of a Connect worker's sinks; creates or updates those whose files are given.
    ///
    /// Exits with 0 if all are running, with 3 if one is not.
    Sinks(sinks::Args),
    /// Runs one of the Kafka CLI tools.
    Kafka(kafka_tool::Args),
    /// Prints shell completions.
    Completions(generate::CompletionsArgs),
    /// Writes manual pages.
    Man(generate::ManArgs),
}

/// Returns the time of the wall clock.
fn now() -> Timestamp {
    Timestamp::from_millis(chrono::Utc::now().timestamp_millis())
}

fn main() -> ExitCode {
    let args = parse(backbeat_service::command_line()).unwrap_or_else(|error| error.exit());
    args.log.init();
    backbeat_service::exit_code(run(args.command, args.log.environment))
}

/// Parses a command line. The default log level of `run` is error: the terminal belongs to the program that is run.
fn parse(command_line: impl Iterator<Item = OsString>) -> Result<Args, clap::Error> {
    let matches = Args::command().try_get_matches_from(command_line)?;
    let mut args = Args::from_arg_matches(&matches)?;
    if matches!(args.command, Command::Run(_)) && matches.value_source("log_level") == Some(ValueSource::DefaultValue) {
        "error".clone_into(&mut args.log.log_level);
    }
    Ok(args)
}

fn run(command: Command, environment: Environment) -> anyhow::Result<ExitCode> {
    match command {
        Command::Dev(args) => dev::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Corrections(args) => corrections::run(&args),
        Command::Roster(args) => roster::run(&args),
        Command::Agent(args) => agent::run(&args),
        Command::Explain(args) => agent::explain(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Tempo(args) => tempo::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Top(args) => status::top(&args),
        Command::Ui(args) => ui::run(args, environment),
        Command::Kafka(args) => kafka_tool::run(&args),
        Command::Completions(args) => Ok(generate::completions(&args, &mut Args::command())),
        Command::Man(args) => generate::man(&args, Args::command()),
        Command::Topics(args) => tokio::runtime::Runtime::new()?.block_on(topics::run(&args)),
        Command::Tail(args) => tail::run(&args),
        Command::Console(args) => console::run(&args),
        Command::Schemas(args) => schemas::run(&args),
        Command::Notify(args) => notify::run(&args, environment),
        Command::Sinks(args) => sinks::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_default_log_level_of_run_is_error() {
        let level = |line: &str| {
            let args = parse(line.split(' ').map(OsString::from)).expect("the command line is valid");
            args.log.log_level
        };
        assert_eq!(level("backbeat run --agent a1 --task t1 -- true"), "error");
        assert_eq!(level("backbeat --log-level info run --agent a1 --task t1 -- true"), "info");
        assert_eq!(level("backbeat topics"), "info");
    }
}
