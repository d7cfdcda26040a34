//! One of our programs, run as a user would run it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use backbeat_devstack::Supervised;
use reqwest::Method;
use rustix::process::Signal;
use serde_json::Value;

use crate::wait::wait_for;

const STOP_WITHIN: Duration = Duration::from_secs(15);
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
const END_WITHIN: Duration = Duration::from_mins(1);

/// Runs `command` to its end, and returns what it printed; what it said is told where it fails.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = [output.stdout.as_slice(), &output.stderr].concat();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&said));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A running program of the workspace. Dropping it stops it.
pub struct Program {
    process: Supervised,
    /// Where it writes the address of its HTTP server, if it has one.
    port_file: PathBuf,
}

impl Program {
    /// The executable of `name`, beside this test's own.
    pub fn executable(name: &str) -> PathBuf {
        let own = env::current_exe().expect("a running program has a path");
        // Benchmarks run from target/PROFILE, tests from target/PROFILE/deps.
        let dir = own.ancestors().skip(1).find(|dir| !dir.ends_with("deps")).expect("it lies in a directory");
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
        let process =
            Supervised::spawn(command, log, STOP_WITHIN).unwrap_or_else(|error| panic!("starting {name}: {error}"));
        Self { process, port_file }
    }

    /// The port file of the program that logs to `log`.
    pub(crate) fn port_file(log: &Path) -> PathBuf {
        log.with_extension("port")
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Sends it `signal`.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal).unwrap_or_else(|error| panic!("{error}; it said:\n{}", self.log()));
    }

    /// Waits until it has ended by itself, and returns its exit code.
    pub fn wait(&mut self) -> i32 {
        let status = wait_for("the end of a program", END_WITHIN, || self.process.try_wait().expect("it is our child"));
        status.code().expect("the supervising shell exits with a code")
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.process.try_wait().expect("it is our child").is_none()
    }

    /// All that it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.process.log()).expect("it has a log")
    }

    /// The line of JSON that it has printed.
    pub fn printed_json(&self) -> Value {
        let log = self.log();
        let line = log.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("no JSON in {log}"));
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// Base URL of its HTTP server; `None` while it does not listen.
    pub fn url(&self) -> Option<String> {
        // It chose a free port itself, and writes which.
        let address = std::fs::read_to_string(&self.port_file).ok()?;
        Some(format!("http://{}", address.trim()))
    }

    /// GETs `path` of its HTTP server: the status and the body; `None` while it does not answer.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        self.request(Method::GET, path, "", None)
    }

    /// Sends its HTTP server a request, with a bearer token if there is one.
    pub fn request(&self, method: Method, path: &str, body: &str, token: Option<&str>) -> Option<(u16, String)> {
        // A paused program listens and does not answer.
        let http = reqwest::blocking::Client::builder().timeout(ANSWER_WITHIN).build().expect("a client");
        let mut request = http.request(method, format!("{}{path}", self.url()?)).body(body.to_owned());
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().ok()?;
        Some((answer.status().as_u16(), answer.text().ok()?))
    }

    /// GETs `path` and reads the body as JSON.
    pub fn get_json(&self, path: &str) -> Value {
        let (status, body) = self.get(path).unwrap_or_else(|| panic!("{path} does not answer"));
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path} is not JSON: {error}: {body}"))
    }

    /// Waits until `/ready` says so.
    pub fn wait_ready(&self) {
        let ready = || self.get("/ready").filter(|(status, _)| *status == 200);
        let deadline = Instant::now() + END_WITHIN;
        while ready().is_none() {
            assert!(
                Instant::now() < deadline,
                "not ready within {END_WITHIN:?}: {:?}\n{}",
                self.get("/ready"),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A metric's value, summed over its labels; `None` if it is not exported.
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
