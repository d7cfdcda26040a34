//! `--check`: the program queries the health of a running instance of itself, for the health checks of containers that
//! have neither a shell nor an HTTP client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;
use std::time::Duration;

use crate::HttpArgs;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The kind of health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Check {
    /// The process is running (`/health`).
    Live,
    /// The process does its work (`/ready`).
    Ready,
}

impl HttpArgs {
    /// Runs the health check against the instance on this host at `port`, and returns the exit code with which to end
    /// this process; `None` without `--check`. Blocks.
    pub fn check(&self, port: u16) -> Option<ExitCode> {
        let path = match self.check? {
            Check::Live => "/health",
            Check::Ready => "/ready",
        };
        Some(match query(self.reachable_host(), port, path) {
            Ok(()) => ExitCode::SUCCESS,
            Err(reason) => {
                tracing::error!("{reason}");
                ExitCode::FAILURE
            }
        })
    }

    /// Returns an address to connect to for a server that listens on `admin_host`: the loopback address for 0.0.0.0.
    fn reachable_host(&self) -> IpAddr {
        match self.admin_host {
            IpAddr::V4(host) if host.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(host) if host.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            host => host,
        }
    }
}

fn query(host: IpAddr, port: u16, path: &str) -> Result<(), String> {
    let address = std::net::SocketAddr::new(host, port);
    let client = reqwest::blocking::Client::builder().no_proxy().timeout(REQUEST_TIMEOUT).build();
    let answer = client.and_then(|client| client.get(format!("http://{address}{path}")).send());
    let answer = answer.map_err(|error| format!("{address} does not answer: {error}"))?;
    if answer.status().is_success() {
        return Ok(());
    }
    Err(format!("{}: {}", answer.status(), answer.text().unwrap_or_default()))
}
