//! `backbeat run`: any program as an agent.

use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use backbeat_sdk::{Beats, Connection, KafkaArgs, State, Task};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::{interval, sleep, timeout};

use crate::status_file::{StatusFile, VARIABLE};

/// As timeout(1) has them.
const BUDGET_SPENT: u8 = 124;
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;
/// How often it is looked whether the program has said something.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Flags of `backbeat run`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat run --agent a1 --task train --budget 8 -- python3 train.py
  backbeat run --agent ci --task tests -- make test")]
pub(crate) struct Args {
    /// The agent's name, 1 to 256 bytes.
    #[arg(long, env = "BACKBEAT_AGENT", value_parser = id)]
    agent: String,

    /// What it does, 1 to 256 bytes.
    #[arg(long, value_parser = id)]
    task: String,

    /// How many beats the program may take; without one it may take for ever.
    #[arg(long, value_name = "BEATS", value_parser = clap::value_parser!(u32).range(1..))]
    budget: Option<u32>,

    /// How many seconds after SIGTERM a program that spent its budget gets SIGKILL.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    kill_after: u64,

    /// How many seconds the last claims may take to reach Kafka after the program has ended.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    flush: u64,

    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,

    #[command(flatten)]
    kafka: KafkaArgs,
}

fn id(text: &str) -> Result<String, String> {
    match text.len() {
        1..=256 => Ok(text.to_owned()),
        bytes => Err(format!("it has {bytes} bytes; allowed are 1 to 256")),
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = Runtime::new()?;
    let outcome = runtime.block_on(supervise(args));
    // A Kafka that is away must not keep us.
    runtime.shutdown_background();
    outcome
}

#[allow(clippy::print_stderr, reason = "what the program prints is its own; this is ours")]
async fn supervise(args: &Args) -> anyhow::Result<ExitCode> {
    let connection = Connection::new(&args.kafka, &format!("backbeat-run-{}", args.agent))?;
    let beats = connection.beats()?;
    let tasks = connection.tasks(&beats);
    let task = tasks.task(&args.agent, &args.task, args.budget);
    let status_file = StatusFile::new().context("making the status file")?;
    let signals = signals()?;
    let mut program = match Program::start(args, &status_file) {
        Ok(program) => program,
        Err(error) => {
            eprintln!("backbeat run: {}: {error}", args.command[0].display());
            task.notes(&error.to_string());
            task.finish(State::Failed);
            tasks.flush(Duration::from_secs(args.flush)).await;
            return Ok(ExitCode::from(if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN }));
        }
    };
    task.state(State::Executing);
    let (outcome, task) = program.watch(args, &beats, task, status_file, signals).await?;
    let state = if outcome.succeeded() { State::Done } else { State::Failed };
    if let Outcome::BudgetSpent { budget } = outcome {
        task.notes(&format!("the budget of {budget} beats is spent"));
    }
    task.finish(state);
    let claims = tasks.flush(Duration::from_secs(args.flush)).await;
    if claims.lost + claims.waiting > 0 {
        let lost = claims.lost + claims.waiting;
        eprintln!("backbeat run: {} claims were reported and {lost} were lost", claims.acknowledged);
    }
    Ok(outcome.exit_code())
}

/// How the program ended.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    Ended(ExitStatus),
    BudgetSpent { budget: u32 },
}

impl Outcome {
    fn succeeded(self) -> bool {
        matches!(self, Self::Ended(status) if status.success())
    }

    /// The program's own, 128 and the signal that ended it, or what timeout(1) says.
    fn exit_code(self) -> ExitCode {
        match self {
            Self::BudgetSpent { .. } => ExitCode::from(BUDGET_SPENT),
            Self::Ended(status) => {
                let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
                ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
            }
        }
    }
}

/// The program, in a process group of its own.
struct Program {
    child: tokio::process::Child,
    group: Pid,
    guard: Guard,
}

impl Program {
    fn start(args: &Args, status_file: &StatusFile) -> std::io::Result<Self> {
        let mut guard = Guard::start()?;
        let mut command = tokio::process::Command::new(&args.command[0]);
        command.args(&args.command[1..]).process_group(0).env(VARIABLE, status_file.path());
        if std::io::stdin().is_terminal() {
            // It is in the background of the terminal, and would be stopped where it reads from it.
            command.stdin(Stdio::null());
        }
        let child = command.spawn()?;
        let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let group = id.ok_or_else(|| std::io::Error::other("it has no process id"))?;
        guard.guards(group)?;
        Ok(Self { child, group, guard })
    }

    /// Waits for its end, or for that of its budget; passes on what it says and what it is told.
    async fn watch(
        &mut self,
        args: &Args,
        beats: &Beats,
        task: Task,
        mut status_file: StatusFile,
        signals: Receiver<Signal>,
    ) -> anyhow::Result<(Outcome, Task)> {
        let group = self.group;
        let listen = async {
            let mut look = interval(LOOK_EVERY);
            loop {
                look.tick().await;
                status_file.read(&task);
            }
        };
        let outcome = tokio::select! {
            outcome = wait(&mut self.child, group, args, beats) => outcome?,
            () = async { tokio::join!(forward(signals, group), listen); } => unreachable!("they go on for ever"),
        };
        // What it said last.
        status_file.read_to_end(&task);
        self.guard.release();
        Ok((outcome, task))
    }
}

/// Waits for the program's end; ends it when its budget is spent.
async fn wait(child: &mut tokio::process::Child, group: Pid, args: &Args, beats: &Beats) -> anyhow::Result<Outcome> {
    let Some(budget) = args.budget else { return Ok(Outcome::Ended(child.wait().await?)) };
    if let Ok(status) = beats.with_beat_budget(budget, child.wait()).await {
        return Ok(Outcome::Ended(status?));
    }
    // It may have ended this very moment.
    let _ = kill_process_group(group, Signal::TERM);
    // A program that was stopped hears it only when it goes on.
    let _ = kill_process_group(group, Signal::CONT);
    let ended = async {
        child.wait().await?;
        // What it started may take longer.
        while test_kill_process_group(group).is_ok() {
            sleep(LOOK_EVERY).await;
        }
        std::io::Result::Ok(())
    };
    if timeout(Duration::from_secs(args.kill_after), ended).await.is_err() {
        let _ = kill_process_group(group, Signal::KILL);
        child.wait().await?;
    }
    Ok(Outcome::BudgetSpent { budget })
}

/// The signals that are the program's.
fn signals() -> std::io::Result<Receiver<Signal>> {
    let (told, received) = channel(8);
    let ignored = ignored_signals().unwrap_or(0);
    for forwarded in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2] {
        if ignored & (1 << (forwarded.as_raw() - 1)) != 0 {
            // As under nohup(1): it stays ignored, by the program, too.
            continue;
        }
        let mut arrivals = signal(SignalKind::from_raw(forwarded.as_raw()))?;
        let told = told.clone();
        tokio::spawn(async move { while arrivals.recv().await.is_some() && told.send(forwarded).await.is_ok() {} });
    }
    Ok(received)
}

/// A bit for each signal, from 1 on.
fn ignored_signals() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

/// Passes signals on to the program's group.
async fn forward(mut signals: Receiver<Signal>, group: Pid) {
    while let Some(signal) = signals.recv().await {
        // It may have ended already.
        let _ = kill_process_group(group, signal);
    }
}

/// Ends the program's process group if this process dies before it, of whatever cause: a shell that waits for the
/// end of a pipe that only this process holds.
struct Guard {
    pipe: Option<ChildStdin>,
    shell: Child,
}

impl Guard {
    fn start() -> std::io::Result<Self> {
        const SCRIPT: &str = r#"read -r group || exit 0
read -r _ && exit 0
kill -TERM "-$group" 2>/dev/null || exit 0
sleep 1
kill -KILL "-$group" 2>/dev/null
exit 0"#;
        let mut shell = Command::new("sh");
        // Not in our group: what ends us must not end it.
        std::os::unix::process::CommandExt::process_group(&mut shell, 0);
        shell.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut shell = shell.spawn()?;
        Ok(Self { pipe: shell.stdin.take(), shell })
    }

    fn guards(&mut self, group: Pid) -> std::io::Result<()> {
        self.say(&format!("{}\n", group.as_raw_nonzero()))
    }

    /// The program has ended; what it left running is left alone.
    fn release(&mut self) {
        // It is gone if somebody killed it.
        let _ = self.say("done\n");
        let _ = self.shell.wait();
    }

    fn say(&mut self, words: &str) -> std::io::Result<()> {
        self.pipe.as_mut().map_or(Ok(()), |pipe| pipe.write_all(words.as_bytes()))
    }
}
