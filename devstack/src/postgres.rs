//! A PostgreSQL server from the system's packages, with its data in a temporary directory.

use std::ffi::OsStr;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::artifacts::{require_postgres, run};
use crate::error::Context;
use crate::{DevstackError, Supervised, port};

const READY_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
const PROBE_INTERVAL: Duration = Duration::from_millis(100);
const DATABASE: &str = "backbeat";
const USER: &str = "postgres";

/// A running PostgreSQL with a database `backbeat` and a user `postgres` without a password. Dropping it stops the
/// server and removes its data.
#[derive(Debug)]
pub struct Postgres {
    process: Supervised,
    server: Command,
    bin: PathBuf,
    port: u16,
    // In the system's temporary directory: the server refuses to run as root, and the user it runs as may have no
    // access to the stack's directory.
    _data: TempDir,
}

impl Postgres {
    /// Starts a server on `port` (0 for a free one) that logs to `log`, and waits until it answers.
    pub fn start(port: u16, log: &Path) -> Result<Self, DevstackError> {
        let bin = require_postgres()?;
        let port = port::choose("postgresql", port)?;
        let data = tempfile::Builder::new().prefix("backbeat-postgres-").tempdir();
        let data = data.context(|| "cannot create a data directory for postgresql".to_owned())?;
        let as_root = rustix::process::geteuid().is_root();
        if as_root {
            let (uid, gid) = account()?;
            chown(data.path(), Some(uid), Some(gid))
                .context(|| "cannot change the owner of postgresql's data directory".to_owned())?;
        }
        let command = |program: &str| {
            let program = bin.join(program);
            let mut command = if as_root { Command::new("setpriv") } else { Command::new(&program) };
            if as_root {
                command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]).arg(program);
            }
            command.current_dir(data.path());
            command
        };
        let mut initialize = command("initdb");
        initialize.args([
            "--auth",
            "trust",
            "--username",
            USER,
            "--encoding",
            "UTF8",
            "--locale",
            "C",
            "--no-sync",
            "--pgdata",
        ]);
        run(initialize.arg(data.path().join("data")))?;
        let mut server = command("postgres");
        server.arg("-D").arg(data.path().join("data")).args(["-p", &port.to_string()]);
        // The data is discarded, so fsync is off.
        let settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"];
        server.args(settings.iter().flat_map(|setting| ["-c", setting]));
        let process = Supervised::spawn(&server, log, STOP_TIMEOUT).context(|| "cannot start postgresql".to_owned())?;
        let mut postgres = Self { process, server, bin, port, _data: data };
        postgres.wait_until_ready()?;
        postgres.psql("postgres", &format!("create database {DATABASE}"))?;
        Ok(postgres)
    }

    /// Returns the JDBC URL of the database.
    pub fn jdbc_url(&self) -> String {
        format!("jdbc:postgresql://127.0.0.1:{}/{DATABASE}", self.port)
    }

    /// Returns the `postgresql://` URL of the database, for psql.
    pub fn url(&self) -> String {
        format!("postgresql://{USER}@127.0.0.1:{}/{DATABASE}", self.port)
    }

    /// Returns the name of the database user.
    pub fn user(&self) -> &'static str {
        USER
    }

    /// Runs `sql` and returns psql's output: one line per row, without headings.
    pub fn query(&self, sql: &str) -> Result<String, DevstackError> {
        self.psql(DATABASE, sql)
    }

    fn psql(&self, database: &str, sql: &str) -> Result<String, DevstackError> {
        let mut psql = Command::new(self.bin.join("psql"));
        psql.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", USER, "-d", database]);
        run(psql.args(["-v", "ON_ERROR_STOP=1", "-X", "-A", "-t", "-c", sql]))
    }

    /// Returns an error if the server has ended.
    pub fn check(&mut self) -> Result<(), DevstackError> {
        self.process.check("postgresql")
    }

    /// Stops the server with a fast shutdown, which closes the connections of its clients at once, as a failing machine
    /// would.
    pub fn stop(&mut self) -> Result<(), DevstackError> {
        // SIGTERM would wait for the clients.
        self.process.signal(Signal::INT).context(|| "cannot stop postgresql".to_owned())?;
        self.process.stop().map(drop).context(|| "cannot stop postgresql".to_owned())
    }

    /// Restarts the server with the same data and port.
    pub fn restart(&mut self) -> Result<(), DevstackError> {
        let restarted = self.process.restart(&self.server, STOP_TIMEOUT);
        restarted.context(|| "cannot restart postgresql".to_owned())?;
        self.wait_until_ready()
    }

    fn wait_until_ready(&mut self) -> Result<(), DevstackError> {
        let deadline = Instant::now() + READY_TIMEOUT;
        while Instant::now() < deadline {
            if self.process.try_wait().context(|| "cannot get the status of postgresql".to_owned())?.is_some() {
                break;
            }
            if self.psql("postgres", "select 1").is_ok() {
                return Ok(());
            }
            thread::sleep(PROBE_INTERVAL);
        }
        Err(DevstackError::not_ready("postgresql", READY_TIMEOUT, &self.process))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // The SIGTERM that follows would wait for the clients.
        if matches!(self.process.try_wait(), Ok(None)) {
            let _ = self.process.signal(Signal::INT);
        }
    }
}

/// Returns the user and group ids of the user that the package created.
fn account() -> Result<(u32, u32), DevstackError> {
    let id = |flag: &str| {
        let printed = run(Command::new("id").args([OsStr::new(flag), OsStr::new(USER)]))?;
        let unusable = || DevstackError::Command { command: format!("id {flag} {USER}"), output: printed.clone() };
        printed.trim().parse().map_err(|_| unusable())
    };
    Ok((id("-u")?, id("-g")?))
}
