//! A real Chromium, driven by `WebDriver`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use backbeat_devstack::{Supervised, free_port, require_program};
use fantoccini::error::CmdError;
use fantoccini::wd::{Capabilities, WebDriverCompatibleCommand};
use fantoccini::{Client, ClientBuilder};
use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use url::{ParseError, Url};

use crate::{run, runtime, wait_for, wait_until};

const LIMIT: Duration = Duration::from_mins(1);
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

static INSTALLED: OnceLock<()> = OnceLock::new();
static AXE: OnceLock<String> = OnceLock::new();

/// A browser without a network but for loopback addresses. Dropping it stops it.
pub struct Browser {
    client: Option<Client>,
    _driver: Supervised,
    _dir: TempDir,
}

/// A command of Chromium's own protocol.
#[derive(Debug)]
struct DevToolsCommand {
    name: &'static str,
    parameters: Value,
}

impl WebDriverCompatibleCommand for DevToolsCommand {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, ParseError> {
        base.join(&format!("session/{}/goog/cdp/execute", session.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(json!({ "cmd": self.name, "params": self.parameters }).to_string()))
    }
}

impl Browser {
    /// Starts a browser; installs Chromium and its driver if they are missing and this is root on Debian.
    pub fn start() -> Self {
        INSTALLED.get_or_init(|| {
            for (program, package) in [("chromium", "chromium"), ("chromedriver", "chromium-driver")] {
                require_program(program, package).unwrap_or_else(|error| panic!("{error}"));
            }
        });
        let dir = TempDir::new().expect("a directory");
        let port = free_port().expect("a free port");
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={port}"));
        let driver = Supervised::spawn(&command, &dir.path().join("driver.log"), STOP_TIMEOUT);
        let driver = driver.expect("chromedriver starts");
        let url = format!("http://127.0.0.1:{port}");
        let status = format!("{url}/status");
        wait_until("chromedriver to listen", LIMIT, || reqwest::blocking::get(&status).is_ok());
        let profile = format!("--user-data-dir={}", dir.path().join("profile").display());
        // Without a sandbox, since tests may run as root in a container. Names other than loopback's cannot be resolved.
        let flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--enable-precise-memory-info",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
            "--window-size=1400,1000",
            &profile,
        ];
        let mut capabilities = Capabilities::new();
        capabilities.insert("goog:chromeOptions".to_owned(), json!({ "args": flags }));
        capabilities.insert("goog:loggingPrefs".to_owned(), json!({ "browser": "ALL" }));
        let connected = async { ClientBuilder::native().capabilities(capabilities).connect(&url).await };
        let client = runtime().block_on(connected).unwrap_or_else(|error| panic!("chromium does not start: {error}"));
        Self { client: Some(client), _driver: driver, _dir: dir }
    }

    fn client(&self) -> &Client {
        self.client.as_ref().expect("it is open until it is dropped")
    }

    /// Loads a page.
    pub fn open(&self, url: &str) {
        issue(self.client().goto(url));
    }

    /// Runs the body of a function in the page, and returns its result.
    pub fn eval(&self, body: &str) -> Value {
        issue(self.client().execute(body, Vec::new()))
    }

    /// Runs the body of a function in the page that calls its last argument with its result.
    pub fn eval_async(&self, body: &str) -> Value {
        issue(self.client().execute_async(body, Vec::new()))
    }

    /// Returns the text of the element that `selector` finds; empty if there is none.
    pub fn text(&self, selector: &str) -> String {
        let found = self.eval(&format!("return document.querySelector({})?.innerText ?? ''", json!(selector)));
        found.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the text of an element has `part` in it, and returns the text.
    pub fn wait_for_text(&self, selector: &str, part: &str) -> String {
        let mut last = String::new();
        wait_for(&format!("{part:?} in {selector}"), LIMIT, || {
            last = self.text(selector);
            last.contains(part).then(|| last.clone())
        })
    }

    /// Executes a command of Chromium's `DevTools` protocol.
    pub fn devtools(&self, name: &'static str, parameters: Value) -> Value {
        issue(self.client().issue_cmd(DevToolsCommand { name, parameters }))
    }

    /// Sets the preferences of whoever looks at the page.
    pub fn set_dark(&self, is_dark: bool) {
        let scheme = if is_dark { "dark" } else { "light" };
        let features = json!([
            { "name": "prefers-color-scheme", "value": scheme },
            { "name": "prefers-reduced-motion", "value": "reduce" },
        ]);
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    /// Sets the size of the page, in pixels.
    pub fn resize(&self, width: u32, height: u32) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", metrics);
    }

    /// Writes a picture of the page in PNG.
    pub fn screenshot(&self, path: &Path) {
        let picture = issue(self.client().screenshot());
        std::fs::write(path, picture).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Returns the violations of accessibility rules that axe-core finds in the page.
    pub fn accessibility_violations(&self) -> Vec<String> {
        let axe = AXE.get_or_init(axe_core);
        self.eval(axe);
        let run = "const done = arguments[arguments.length - 1]; \
                   axe.run().then(r => done(r.violations.map(v => `${v.id}: ${v.nodes.map(n => n.html).join(' ')}`)), e => done([`${e}`]))";
        serde_json::from_value(self.eval_async(run)).expect("a list of violations")
    }

    /// Returns the errors that the page has caused, and what its security policy has blocked.
    pub fn console_errors(&self) -> Vec<String> {
        let entries = issue(self.client().issue_cmd(BrowserLog));
        let severe = |entry: &&Value| entry["level"] == "SEVERE";
        entries.as_array().into_iter().flatten().filter(severe).map(|entry| entry["message"].to_string()).collect()
    }
}

/// Reads the console's entries.
#[derive(Debug)]
struct BrowserLog;

impl WebDriverCompatibleCommand for BrowserLog {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, ParseError> {
        base.join(&format!("session/{}/se/log", session.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(json!({ "type": "browser" }).to_string()))
    }
}

fn issue<T>(command: impl Future<Output = Result<T, CmdError>>) -> T {
    runtime().block_on(command).unwrap_or_else(|error| panic!("{error}"))
}

impl Drop for Browser {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            // The driver ends the browser with its session.
            let _ = runtime().block_on(client.close());
        }
    }
}

/// Returns the source of axe-core, which npm installs by the lock in `tests/npm`.
fn axe_core() -> String {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/npm");
    std::fs::create_dir_all(&dir).expect("a directory");
    for file in ["package.json", "package-lock.json"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("npm").join(file);
        std::fs::copy(from, dir.join(file)).expect("the lock is copied");
    }
    require_program("npm", "npm").unwrap_or_else(|error| panic!("{error}"));
    run(Command::new("npm").args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&dir));
    std::fs::read_to_string(dir.join("node_modules/axe-core/axe.min.js")).expect("axe-core is installed")
}
