//! A child process that never outlives this process, however this process ends.

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
/// It runs under a small shell (`supervise.sh`) that reads a pipe from this process. When the pipe closes, because this
/// value was stopped or dropped or this process died for any reason, the shell terminates the child. The child is in a
/// process group of its own, so that Ctrl-C reaches only this process, which then stops its children in order.
#[derive(Debug)]
pub struct Supervised {
    shell: Child,
    pid: Pid,
    log: PathBuf,
}

impl Supervised {
    /// Starts `command` and appends its output to `log`. When stopped, the child gets SIGTERM, and SIGKILL after
    /// `grace`.
    pub fn spawn(command: &Command, log: &Path, grace: Duration) -> io::Result<Self> {
        // Created before the child starts, so that the log can be read at once.
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
            pid.ok_or_else(|| io::Error::other(format!("the supervising shell printed {line:?}, not a process id")))?;
        Ok(Self { shell, pid, log: log.to_owned() })
    }

    /// Starts `command` after the child has ended, with the same log.
    pub(crate) fn restart(&mut self, command: &Command, grace: Duration) -> io::Result<()> {
        *self = Self::spawn(command, &self.log, grace)?;
        Ok(())
    }

    /// Returns the child's process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Returns the path of the child's log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Sends `signal` to the child.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        kill_process(self.pid, signal).map_err(io::Error::from)
    }

    /// Returns the child's exit status if it has ended. A child ended by signal N has the exit code 128 + N.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.shell.try_wait()
    }

    /// Returns an error if the child has ended; `service` is its name in the error.
    pub(crate) fn check(&mut self, service: &'static str) -> Result<(), DevstackError> {
        match self.try_wait().context(|| format!("cannot get the status of {service}"))? {
            None => Ok(()),
            Some(_) => Err(DevstackError::Ended { service, log: self.log.clone(), tail: self.log_tail() }),
        }
    }

    /// Starts to stop the child, without waiting for its end.
    pub fn begin_stop(&mut self) {
        drop(self.shell.stdin.take());
    }

    /// Stops the child and waits for its end.
    pub fn stop(&mut self) -> io::Result<ExitStatus> {
        // `wait` closes the pipe first, on which the shell stops the child.
        self.shell.wait()
    }

    /// Returns the last lines of the child's log, for error messages.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        // Errors cannot be returned here.
        let _ = self.stop();
    }
}
