//! A child process that never outlives this one, however this one ends.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::DevstackError;
use crate::error::Context;
use rustix::process::{Pid, Signal, kill_process};

/// A child process with its output in a log file.
///
/// It runs under a small shell (`supervise.sh`) that holds a pipe from us: when the pipe closes,
/// because this value was stopped or dropped or this process died by whatever cause, the shell ends
/// the child. It is in a process group of its own, so Ctrl-C reaches us alone and we stop it in order.
#[derive(Debug)]
pub struct Supervised {
    shell: Child,
    pid: Pid,
    log: PathBuf,
}

impl Supervised {
    /// Starts `command`, appending its output to `log`. When it is stopped it gets TERM, and KILL
    /// after `grace`.
    pub fn spawn(command: &Command, log: &Path, grace: Duration) -> io::Result<Self> {
        // Made before the child is there, so that whoever asks for it finds it.
        File::options().create(true).append(true).open(log)?;
        let tenths = (grace.as_millis() / 100).to_string();
        let mut shell = Command::new("sh");
        shell.args([OsStr::new("-c"), OsStr::new(include_str!("supervise.sh")), OsStr::new("sh")]);
        shell.args([log.as_os_str(), OsStr::new(&tenths), command.get_program()]).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        if let Some(dir) = command.get_current_dir() {
            shell.current_dir(dir);
        }
        let mut shell = shell.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        if let Some(stdout) = shell.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let pid = line.trim().parse().ok().and_then(Pid::from_raw);
        let pid =
            pid.ok_or_else(|| io::Error::other(format!("the supervising shell said {line:?}, not a process id")))?;
        Ok(Self { shell, pid, log: log.to_owned() })
    }

    /// Starts `command` again, after it has ended, with the same log.
    pub(crate) fn start_again(&mut self, command: &Command, grace: Duration) -> io::Result<()> {
        *self = Self::spawn(command, &self.log, grace)?;
        Ok(())
    }

    /// The child's process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Sends `signal` to the child.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        kill_process(self.pid, signal).map_err(io::Error::from)
    }

    /// How the child ended, if it has. A child ended by signal N has the exit code 128 + N.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.shell.try_wait()
    }

    /// An error if the child, which is `service`, has ended.
    pub(crate) fn check(&mut self, service: &'static str) -> Result<(), DevstackError> {
        match self.try_wait().context(|| format!("looking after {service}"))? {
            None => Ok(()),
            Some(_) => Err(DevstackError::Ended { service, log: self.log.clone(), tail: self.log_tail() }),
        }
    }

    /// Begins to end the child, and does not wait for it.
    pub fn begin_stop(&mut self) {
        drop(self.shell.stdin.take());
    }

    /// Ends the child and waits until it has.
    pub fn stop(&mut self) -> io::Result<ExitStatus> {
        // `wait` closes the pipe first.
        self.shell.wait()
    }

    /// The last lines of the child's log, for error messages.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = self.stop();
    }
}
