//! `backbeat kafka`: runs the Kafka CLI tools of the Kafka version that `backbeat dev` downloads.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::Context;
use backbeat_devstack::kafka_cli;

/// Flags of `backbeat kafka`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat kafka consumer-groups --bootstrap-server localhost:9092 --describe --group reverb
  backbeat kafka topics --bootstrap-server localhost:9092 --describe")]
pub(crate) struct Args {
    /// The tool.
    #[arg(value_enum)]
    tool: Tool,

    /// Arguments of the tool.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    args: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Tool {
    ConsumerGroups,
    ConsoleConsumer,
    Topics,
    Configs,
    GetOffsets,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let class = match args.tool {
        Tool::ConsumerGroups => "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
        Tool::ConsoleConsumer => "org.apache.kafka.tools.consumer.ConsoleConsumer",
        Tool::Topics => "org.apache.kafka.tools.TopicCommand",
        Tool::Configs => "kafka.admin.ConfigCommand",
        Tool::GetOffsets => "org.apache.kafka.tools.GetOffsetShell",
    };
    // It replaces this process, so that signals reach it.
    Err(kafka_cli(class)?.args(&args.args).exec()).context("cannot run java")
}
