//! The errors of the development stack.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::Supervised;

/// An error of the development stack.
#[derive(Debug, thiserror::Error)]
pub enum DevstackError {
    /// A program that the stack needs is missing and could not be installed.
    #[error("{program} is needed and was not found: {hint}")]
    Missing {
        /// The name of the program.
        program: &'static str,
        /// The remedy.
        hint: String,
    },
    /// Another process listens on the port.
    #[error("port {port} for {service} is taken by another process; stop it or choose another port")]
    PortTaken {
        /// The service for which it was requested.
        service: &'static str,
        /// The port.
        port: u16,
    },
    /// Only one of the two settings for an external stack is set.
    #[error(
        "{set} is set and {unset} is not: set both to use an external Kafka and registry, or neither to start them here"
    )]
    IncompleteExternal {
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
    /// The files that Maven downloaded differ from the lock.
    #[error(
        "Maven downloaded other files than the lock names: {differences}. Do not use them: find out why; after a change of \
         a version, `make jar-locks` writes the locks anew"
    )]
    JarLock {
        /// Each file and how it differs.
        differences: String,
    },
    /// A service ended before it was ready, or did not become ready in time.
    #[error("{service} did not become ready within {seconds} s; the last lines of {log}:\n{tail}")]
    NotReady {
        /// The name of the service.
        service: &'static str,
        /// The timeout.
        seconds: u64,
        /// The log file of the service.
        log: PathBuf,
        /// The last lines of the log file.
        tail: String,
    },
    /// A running service has ended.
    #[error("{service} has ended; the last lines of {log}:\n{tail}")]
    Ended {
        /// The name of the service.
        service: &'static str,
        /// The log file of the service.
        log: PathBuf,
        /// The last lines of the log file.
        tail: String,
    },
    /// Another Kafka answers on the port.
    #[error("the broker at {address} has cluster id {found}, expected {expected}: another Kafka uses this port")]
    ForeignBroker {
        /// The address of the broker.
        address: String,
        /// The cluster id of that broker.
        found: String,
        /// The cluster id of the broker that was started here.
        expected: String,
    },
    /// A file or process operation failed.
    #[error("{action}: {source}")]
    Io {
        /// The failed operation, as "cannot ...".
        action: String,
        /// The cause.
        source: io::Error,
    },
}

impl DevstackError {
    /// Returns the error of a `process` that was not ready within `limit`.
    pub(crate) fn not_ready(service: &'static str, limit: Duration, process: &Supervised) -> Self {
        let (log, tail) = (process.log().to_owned(), process.log_tail());
        Self::NotReady { service, seconds: limit.as_secs(), log, tail }
    }
}

/// Adds the failed operation, as "cannot ...", to an I/O error.
pub(crate) trait Context<T> {
    fn context(self, action: impl FnOnce() -> String) -> Result<T, DevstackError>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, action: impl FnOnce() -> String) -> Result<T, DevstackError> {
        self.map_err(|source| DevstackError::Io { action: action(), source })
    }
}
