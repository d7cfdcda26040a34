//! `backbeat completions` and `backbeat man`: generate shell completions and manual pages.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Command;
use clap_complete::Shell;

use crate::output::print_bytes;

/// Flags of `backbeat completions`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat completions bash > /etc/bash_completion.d/backbeat
  backbeat completions zsh > ~/.zfunc/_backbeat")]
pub(crate) struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Flags of `backbeat man`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat man /usr/local/share/man/man1")]
pub(crate) struct ManArgs {
    /// The directory for the pages, one for each subcommand; created if it does not exist.
    dir: PathBuf,
}

pub(crate) fn completions(args: &CompletionsArgs, command: &mut Command) -> ExitCode {
    // Generated into memory first: `generate` panics if it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "backbeat", &mut script);
    print_bytes(&script);
    ExitCode::SUCCESS
}

pub(crate) fn man(args: &ManArgs, command: Command) -> anyhow::Result<ExitCode> {
    fs::create_dir_all(&args.dir).with_context(|| format!("cannot create {}", args.dir.display()))?;
    clap_mangen::generate_to(command, &args.dir).with_context(|| format!("cannot write to {}", args.dir.display()))?;
    Ok(ExitCode::SUCCESS)
}
