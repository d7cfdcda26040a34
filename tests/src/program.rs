//! A program of the workspace, run as a user runs it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use backbeat_devstack::Supervised;
use reqwest::Method;
use rustix::process::Signal;
use serde_json::Value;

use crate::wait::wait_for;

const STOP_TIMEOUT: Duration = Duration::from_secs(15);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
const WAIT_LIMIT: Duration = Duration::from_mins(1);

/// Runs `command` to its end and returns its standard output; panics with all its output if it fails.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let printed = [output.stdout.as_slice(), &output.stderr].concat();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&printed));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A running program of the workspace. Dropping it stops it.
pub struct Program {
    process: Supervised,
    /// The file to which it writes the address of its HTTP server, if it has one.
    port_file: PathBuf,
}

/// A test that fails shows what its programs said last: their logs are removed with its directory.
impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.process.log().display(), self.process.log_tail());
        }
    }
}

impl Program {
    /// The path of the executable `name` in the build directory of this test.
    pub fn executable(name: &str) -> PathBuf {
        let own = env::current_exe().expect("a running program has a path");
        // Benchmarks run from target/PROFILE, tests from target/PROFILE/deps.
        let dir = own.ancestors().skip(1).find(|dir| !dir.ends_with("deps")).expect("the executable is in a directory");
        let path = dir.join(name);
        assert!(
            path.exists(),
            "{} is not built: run `cargo build --workspace` first, as `make test` does",
            path.display()
        );
        path
    }

    /// Starts `command`, which writes its output to `log`, and the address of its HTTP server, if it has one, to
    /// [`Self::port_file`].
    pub(crate) fn start(name: &str, command: &Command, log: &Path) -> Self {
        let port_file = Self::port_file(log);
        let process = Supervised::spawn(command, log, STOP_TIMEOUT)
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Self { process, port_file }
    }

    /// The path of the port file of the program that logs to `log`.
    pub(crate) fn port_file(log: &Path) -> PathBuf {
        log.with_extension("port")
    }

    /// The program's process id.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Sends the program `signal`.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal).unwrap_or_else(|error| panic!("{error}; its log:\n{}", self.log()));
    }

    /// Waits until the program ends without being stopped, and returns its exit code.
    pub fn wait(&mut self) -> i32 {
        let poll = || self.process.try_wait().expect("the process is a child of this one");
        let status = wait_for("the end of a program", WAIT_LIMIT, poll);
        status.code().expect("the supervising shell exits with a code")
    }

    /// Returns true if the program still runs.
    pub fn is_running(&mut self) -> bool {
        self.process.try_wait().expect("the process is a child of this one").is_none()
    }

    /// Reads the program's log: its standard output and standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.process.log()).expect("the log exists")
    }

    /// Returns the first line of JSON in the program's output.
    pub fn printed_json(&self) -> Value {
        let log = self.log();
        let line = log.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("no JSON in {log}"));
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// The base URL of the program's HTTP server; `None` while it does not listen.
    pub fn url(&self) -> Option<String> {
        // The program listens on a free port of its choice and writes it to the port file.
        let address = std::fs::read_to_string(&self.port_file).ok()?;
        Some(format!("http://{}", address.trim()))
    }

    /// GETs `path` from the program's HTTP server and returns the status and the body; `None` while it does not answer.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        self.request(Method::GET, path, "", None)
    }

    /// Sends a request to the program's HTTP server, with a bearer token if one is given.
    pub fn request(&self, method: Method, path: &str, body: &str, token: Option<&str>) -> Option<(u16, String)> {
        // A paused program accepts connections and does not answer.
        let http = reqwest::blocking::Client::builder().timeout(RESPONSE_TIMEOUT).build().expect("an HTTP client");
        let mut request = http.request(method, format!("{}{path}", self.url()?)).body(body.to_owned());
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let response = request.send().ok()?;
        Some((response.status().as_u16(), response.text().ok()?))
    }

    /// GETs `path` and parses the body as JSON.
    pub fn get_json(&self, path: &str) -> Value {
        let (status, body) = self.get(path).unwrap_or_else(|| panic!("{path} does not answer"));
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path} is not JSON: {error}: {body}"))
    }

    /// Waits until `/ready` answers with 200.
    pub fn wait_ready(&self) {
        let ready = || self.get("/ready").filter(|(status, _)| *status == 200);
        let deadline = Instant::now() + WAIT_LIMIT;
        while ready().is_none() {
            assert!(
                Instant::now() < deadline,
                "not ready within {WAIT_LIMIT:?}: {:?}\n{}",
                self.get("/ready"),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The value of a metric, summed over its labels; `None` if it is not exported.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let (_, body) = self.get("/metrics")?;
        let values: Vec<f64> = body
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }
}
