//! `backbeat run`: runs any program as an agent.

use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use backbeat_broker::without_credentials;
use backbeat_sdk::{Beats, Connection, KafkaArgs, State, Task};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::{interval, sleep, timeout};

use crate::status_file::{PATH_VARIABLE, StatusFile};

/// Exit codes, the same as those of timeout(1).
const EXIT_BUDGET_SPENT: u8 = 124;
const EXIT_CANNOT_RUN: u8 = 126;
const EXIT_NOT_FOUND: u8 = 127;
/// The environment variable with the schema registry's URL, which may have credentials.
const REGISTRY_URL_VARIABLE: &str = "SCHEMA_REGISTRY_URL";
/// The interval at which the status file is read, and a process group that is ending is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Flags of `backbeat run`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat run --agent a1 --task train --budget 8 -- python3 train.py
  backbeat run --agent ci --task tests -- make test")]
pub(crate) struct Args {
    /// The agent's id, 1 to 256 bytes.
    #[arg(long, env = "BACKBEAT_AGENT", value_parser = parse_id)]
    agent: String,

    /// The task's id, 1 to 256 bytes.
    #[arg(long, value_parser = parse_id)]
    task: String,

    /// The program's beat budget; unlimited by default.
    #[arg(long, value_name = "BEATS", value_parser = clap::value_parser!(u32).range(1..))]
    budget: Option<u32>,

    /// Seconds between SIGTERM and SIGKILL for a program that has spent its budget.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    kill_after: u64,

    /// Timeout, in seconds, for sending the last claims to Kafka after the program has ended.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    flush: u64,

    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,

    #[command(flatten)]
    kafka: KafkaArgs,
}

fn parse_id(text: &str) -> Result<String, String> {
    match text.len() {
        1..=256 => Ok(text.to_owned()),
        bytes => Err(format!("the id has {bytes} bytes: must be 1 to 256")),
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = Runtime::new()?;
    let outcome = runtime.block_on(supervise(args));
    // Does not wait for blocking Kafka calls: an unavailable Kafka must not delay the exit.
    runtime.shutdown_background();
    outcome
}

#[allow(clippy::print_stderr, reason = "standard output belongs to the program that is run")]
async fn supervise(args: &Args) -> anyhow::Result<ExitCode> {
    let connection = Connection::new(&args.kafka, &format!("backbeat-run-{}", args.agent))?;
    let beats = connection.beats()?;
    let tasks = connection.tasks(&beats);
    let task = tasks.task(&args.agent, &args.task, args.budget);
    let status_file = StatusFile::new().context("cannot create the status file")?;
    let signals = forwarded_signals()?;
    let mut program = match Program::start(args, &status_file) {
        Ok(program) => program,
        Err(error) => {
            eprintln!("backbeat run: {}: {error}", args.command[0].display());
            task.set_notes(&error.to_string());
            task.finish(State::Failed);
            tasks.flush(Duration::from_secs(args.flush)).await;
            return Ok(ExitCode::from(if error.kind() == ErrorKind::NotFound {
                EXIT_NOT_FOUND
            } else {
                EXIT_CANNOT_RUN
            }));
        }
    };
    task.set_state(State::Executing);
    let (outcome, task) = program.supervise(args, &beats, task, status_file, signals).await?;
    let state = if outcome.succeeded() { State::Done } else { State::Failed };
    if let Outcome::BudgetSpent { budget } = outcome {
        task.set_notes(&format!("the budget of {budget} beats is spent"));
    }
    task.finish(state);
    let claims = tasks.flush(Duration::from_secs(args.flush)).await;
    // Claims that are still outstanding are lost when this process exits.
    let lost = claims.failed + claims.outstanding;
    if lost > 0 {
        eprintln!("backbeat run: {} claims were acknowledged and {lost} were lost", claims.acknowledged);
    }
    Ok(outcome.exit_code())
}

/// The way in which the program ended.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    /// The program exited, or was ended by a signal that `backbeat run` did not send for its budget.
    Ended(ExitStatus),
    /// The program was stopped because its beat budget was spent.
    BudgetSpent { budget: u32 },
}

impl Outcome {
    fn succeeded(self) -> bool {
        matches!(self, Self::Ended(status) if status.success())
    }

    /// Returns the program's exit code, 128 plus the number of the signal that ended it, or the code for a spent
    /// budget.
    fn exit_code(self) -> ExitCode {
        match self {
            Self::BudgetSpent { .. } => ExitCode::from(EXIT_BUDGET_SPENT),
            Self::Ended(status) => {
                let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
                ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
            }
        }
    }
}

/// The running program, in a process group of its own.
struct Program {
    child: tokio::process::Child,
    group: Pid,
    guard: OrphanGuard,
}

impl Program {
    fn start(args: &Args, status_file: &StatusFile) -> std::io::Result<Self> {
        let mut guard = OrphanGuard::start()?;
        let mut command = tokio::process::Command::new(&args.command[0]);
        command.args(&args.command[1..]).process_group(0).env(PATH_VARIABLE, status_file.path());
        // The program is not BACKBEAT's: it must not learn the registry's credentials.
        if let Ok(url) = std::env::var(REGISTRY_URL_VARIABLE) {
            command.env(REGISTRY_URL_VARIABLE, without_credentials(&url));
        }
        if std::io::stdin().is_terminal() {
            // Its process group is a background one, which SIGTTIN stops when it reads from the terminal.
            command.stdin(Stdio::null());
        }
        let child = command.spawn()?;
        let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let group = id.ok_or_else(|| std::io::Error::other("the program has no process id"))?;
        guard.watch(group)?;
        Ok(Self { child, group, guard })
    }

    /// Waits until the program ends or its budget is spent; meanwhile forwards signals to it, and its status to its
    /// claims.
    async fn supervise(
        &mut self,
        args: &Args,
        beats: &Beats,
        task: Task,
        mut status_file: StatusFile,
        signals: Receiver<Signal>,
    ) -> anyhow::Result<(Outcome, Task)> {
        let group = self.group;
        let read_status = async {
            let mut ticks = interval(POLL_INTERVAL);
            loop {
                ticks.tick().await;
                status_file.read(&task);
            }
        };
        let outcome = tokio::select! {
            outcome = wait(&mut self.child, group, args, beats) => outcome?,
            () = async { tokio::join!(forward(signals, group), read_status); } => unreachable!("both loop forever"),
        };
        // The program may have written after the last tick.
        status_file.read_to_end(&task);
        self.guard.release();
        Ok((outcome, task))
    }
}

/// Waits for the program to end; terminates it after its budget is spent.
async fn wait(child: &mut tokio::process::Child, group: Pid, args: &Args, beats: &Beats) -> anyhow::Result<Outcome> {
    let Some(budget) = args.budget else { return Ok(Outcome::Ended(child.wait().await?)) };
    if let Ok(status) = beats.with_beat_budget(budget, child.wait()).await {
        return Ok(Outcome::Ended(status?));
    }
    let ended = async {
        child.wait().await?;
        // Its children may outlive it.
        while test_kill_process_group(group).is_ok() {
            sleep(POLL_INTERVAL).await;
        }
        std::io::Result::Ok(())
    };
    terminate(group, Duration::from_secs(args.kill_after), ended)
        .await
        .context("cannot wait for the end of the program")?;
    // Returns at once, unless the program had to be killed.
    child.wait().await?;
    Ok(Outcome::BudgetSpent { budget })
}

/// Sends SIGTERM to the process group, and SIGKILL unless `ended` completes without an error within `limit`. Returns the
/// error of `ended`.
async fn terminate(
    group: Pid,
    limit: Duration,
    ended: impl Future<Output = std::io::Result<()>>,
) -> std::io::Result<()> {
    // Errors of the signals are ignored: the program may have ended in this moment.
    let _ = kill_process_group(group, Signal::TERM);
    // A stopped program receives SIGTERM only when it is continued.
    let _ = kill_process_group(group, Signal::CONT);
    let outcome = timeout(limit, ended).await;
    if !matches!(outcome, Ok(Ok(()))) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    outcome.unwrap_or(Ok(()))
}

/// Subscribes to the signals that are forwarded to the program.
fn forwarded_signals() -> std::io::Result<Receiver<Signal>> {
    let (sender, receiver) = channel(8);
    let ignored = ignored_signals().unwrap_or(0);
    for forwarded in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2] {
        if ignored & (1 << (forwarded.as_raw() - 1)) != 0 {
            // As under nohup(1): the program inherits the ignored signal.
            continue;
        }
        let mut arrivals = signal(SignalKind::from_raw(forwarded.as_raw()))?;
        let sender = sender.clone();
        tokio::spawn(async move { while arrivals.recv().await.is_some() && sender.send(forwarded).await.is_ok() {} });
    }
    Ok(receiver)
}

/// Returns the mask of ignored signals: bit 0 is signal 1.
fn ignored_signals() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

/// Forwards signals to the program's process group.
async fn forward(mut signals: Receiver<Signal>, group: Pid) {
    while let Some(signal) = signals.recv().await {
        // Errors are ignored: the program may have ended already.
        let _ = kill_process_group(group, signal);
    }
}

/// Kills the program's process group if this process dies first, for any reason: a shell that waits for the end of a
/// pipe that only this process holds.
struct OrphanGuard {
    pipe: Option<ChildStdin>,
    shell: Child,
}

impl OrphanGuard {
    fn start() -> std::io::Result<Self> {
        const SCRIPT: &str = r#"read -r group || exit 0
read -r _ && exit 0
kill -TERM "-$group" 2>/dev/null || exit 0
sleep 1
kill -KILL "-$group" 2>/dev/null
exit 0"#;
        let mut shell = Command::new("sh");
        // In a process group of its own: a signal that kills this process's group must not kill the guard.
        std::os::unix::process::CommandExt::process_group(&mut shell, 0);
        shell.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut shell = shell.spawn()?;
        Ok(Self { pipe: shell.stdin.take(), shell })
    }

    /// Sets the process group to kill.
    fn watch(&mut self, group: Pid) -> std::io::Result<()> {
        self.send(&format!("{}\n", group.as_raw_nonzero()))
    }

    /// Ends the guard after the program's end; processes that the program left running are not killed.
    fn release(&mut self) {
        // Errors are ignored: the shell may have been killed.
        let _ = self.send("done\n");
        let _ = self.shell.wait();
    }

    fn send(&mut self, line: &str) -> std::io::Result<()> {
        self.pipe.as_mut().map_or(Ok(()), |pipe| pipe.write_all(line.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Error};
    use std::os::unix::process::CommandExt;

    use super::*;

    /// Starts a program that ignores SIGTERM and ends by itself only after 20 s, in a process group of its own.
    fn stubborn_program() -> (Child, Pid) {
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' TERM; echo ready; sleep 20; exit 0"]).process_group(0);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("sh starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("sh writes a line");
        let group = Pid::from_child(&child);
        (child, group)
    }

    #[tokio::test]
    async fn terminate_with_a_failed_wait_returns_its_error_after_sigkill() {
        let (mut child, group) = stubborn_program();
        let failed = async { Err(Error::other("no such child")) };
        let error = terminate(group, Duration::from_mins(1), failed).await.expect_err("the wait fails");
        assert_eq!(error.to_string(), "no such child");
        assert_eq!(child.wait().expect("the child ends").signal(), Some(Signal::KILL.as_raw()));
    }

    #[tokio::test]
    async fn terminate_after_the_limit_kills_the_program() {
        let (mut child, group) = stubborn_program();
        terminate(group, Duration::from_millis(10), std::future::pending()).await.expect("a timeout is no error");
        assert_eq!(child.wait().expect("the child ends").signal(), Some(Signal::KILL.as_raw()));
    }

    #[tokio::test]
    async fn terminate_of_a_program_that_ends_in_time_does_not_kill_it() {
        let (mut child, group) = stubborn_program();
        terminate(group, Duration::from_mins(1), async { Ok(()) }).await.expect("the wait succeeds");
        // A SIGKILL before this signal would have ended it first.
        kill_process_group(group, Signal::USR1).expect("the program runs");
        assert_eq!(child.wait().expect("the child ends").signal(), Some(Signal::USR1.as_raw()));
    }
}
