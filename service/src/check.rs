//! `--check`: a program asks another one of its kind how it is, for the health checks of containers without a shell.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;
use std::time::Duration;

use crate::HttpArgs;

const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Check {
    /// Whether it lives (`/health`).
    Live,
    /// Whether it does its work (`/ready`).
    Ready,
}

impl HttpArgs {
    /// With `--check`, asks what runs here at `port` and says how this program is to end. Blocks.
    pub fn check(&self, port: u16) -> Option<ExitCode> {
        let path = match self.check? {
            Check::Live => "/health",
            Check::Ready => "/ready",
        };
        Some(match ask(self.reachable_host(), port, path) {
            Ok(()) => ExitCode::SUCCESS,
            Err(reason) => {
                tracing::error!("{reason}");
                ExitCode::FAILURE
            }
        })
    }

    /// An address at which what listens on `admin_host` answers.
    fn reachable_host(&self) -> IpAddr {
        match self.admin_host {
            IpAddr::V4(host) if host.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(host) if host.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            host => host,
        }
    }
}

fn ask(host: IpAddr, port: u16, path: &str) -> Result<(), String> {
    let address = std::net::SocketAddr::new(host, port);
    let client = reqwest::blocking::Client::builder().no_proxy().timeout(ANSWER_WITHIN).build();
    let answer = client.and_then(|client| client.get(format!("http://{address}{path}")).send());
    let answer = answer.map_err(|error| format!("{address} does not answer: {error}"))?;
    if answer.status().is_success() {
        return Ok(());
    }
    Err(format!("{}: {}", answer.status(), answer.text().unwrap_or_default()))
}
