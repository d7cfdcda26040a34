//! Loopback ports.

use std::net::{Ipv4Addr, TcpListener};

use crate::DevstackError;
use crate::error::Context;

/// `port` if nothing listens on it, or a free one for 0.
///
/// Another process may still take it before the service binds it; the service then fails to start
/// and its log says why.
pub(crate) fn claim(service: &'static str, port: u16) -> Result<u16, DevstackError> {
    if port == 0 {
        return free_port();
    }
    // Bound on all interfaces, so that a service that listens on any of them is noticed.
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .map(|_| port)
        .map_err(|_| DevstackError::PortTaken { service, port })
}

/// A loopback port that nobody listens on at this moment.
pub fn free_port() -> Result<u16, DevstackError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    listener
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .context(|| "looking for a free port".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_refused() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = taken.local_addr().expect("an address").port();
        let error = claim("kafka", port).expect_err("it is taken");
        assert_eq!(
            error.to_string(),
            format!("port {port} for kafka is taken by another process; stop it or choose another port")
        );
    }
}
