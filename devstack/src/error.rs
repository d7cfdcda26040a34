//! Why the development stack did not start.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::Supervised;

/// Why the development stack did not start.
#[derive(Debug, thiserror::Error)]
pub enum DevstackError {
    /// A program that the stack needs is not there and could not be installed.
    #[error("{program} is needed and was not found: {hint}")]
    Missing {
        /// What is missing.
        program: &'static str,
        /// What to do about it.
        hint: String,
    },
    /// Another process listens on the port.
    #[error("port {port} for {service} is taken by another process; stop it or choose another port")]
    PortTaken {
        /// What wanted it.
        service: &'static str,
        /// The port.
        port: u16,
    },
    /// One of two settings is there.
    #[error(
        "{set} is set and {unset} is not: set both to use an outside Kafka and registry, or neither to start them here"
    )]
    HalfOutside {
        /// The one that is set.
        set: &'static str,
        /// The one that is not.
        unset: &'static str,
    },
    /// A command failed.
    #[error("{command} failed: {output}")]
    Command {
        /// The command line.
        command: String,
        /// The end of its output.
        output: String,
    },
    /// A service ended before it answered, or never answered.
    #[error("{service} did not become ready within {seconds} s; the end of {log}:\n{tail}")]
    NotReady {
        /// Which.
        service: &'static str,
        /// How long we waited.
        seconds: u64,
        /// Its log file.
        log: PathBuf,
        /// The end of it.
        tail: String,
    },
    /// A service ended by itself.
    #[error("{service} has ended; the end of {log}:\n{tail}")]
    Ended {
        /// Which.
        service: &'static str,
        /// Its log file.
        log: PathBuf,
        /// The end of it.
        tail: String,
    },
    /// Something else answers on the port.
    #[error("the broker at {address} has cluster id {found}, not ours ({expected}): the port is another's")]
    NotOurs {
        /// Where.
        address: String,
        /// Its cluster id.
        found: String,
        /// The one that we formatted.
        expected: String,
    },
    /// A file or process operation failed.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl DevstackError {
    /// `process` did not answer within `limit`.
    pub(crate) fn not_ready(service: &'static str, limit: Duration, process: &Supervised) -> Self {
        let (log, tail) = (process.log().to_owned(), process.log_tail());
        Self::NotReady { service, seconds: limit.as_secs(), log, tail }
    }
}

/// Adds what was tried to an I/O error.
pub(crate) trait Context<T> {
    fn context(self, action: impl FnOnce() -> String) -> Result<T, DevstackError>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, action: impl FnOnce() -> String) -> Result<T, DevstackError> {
        self.map_err(|source| DevstackError::Io { action: action(), source })
    }
}
